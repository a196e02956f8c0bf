-- Write a batch of events: append to the streams and fold into the blackboard, all or nothing.
--
--   ARGV[1]  seconds that everything of a query lives
--   ARGV[2]  events that the feed keeps, about
--   KEYS[1]  the feed (stream, capped)
--   ARGV[3..] operations, each a word and its operands:
--     hash  KEY COUNT FIELD VALUE ...   fields of a query (hash)
--     value KEY JSON                    what a layer was asked or said (string)
--     event KEY JSON                    one event of a query (stream)
--     feed  JSON                        one event of all (stream)
local ttl, cap = ARGV[1], ARGV[2]
local expire = {}
local at = 3
while at <= #ARGV do
  local operation = ARGV[at]
  if operation == 'hash' then
    local key, count = ARGV[at + 1], tonumber(ARGV[at + 2])
    redis.call('HSET', key, unpack(ARGV, at + 3, at + 2 + 2 * count))
    expire[key] = true
    at = at + 3 + 2 * count
  elseif operation == 'value' then
    redis.call('SET', ARGV[at + 1], ARGV[at + 2], 'EX', ttl)
    at = at + 3
  elseif operation == 'event' then
    redis.call('XADD', ARGV[at + 1], '*', 'event', ARGV[at + 2])
    expire[ARGV[at + 1]] = true
    at = at + 3
  elseif operation == 'feed' then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', cap, '*', 'event', ARGV[at + 1])
    at = at + 2
  else
    return redis.error_reply('unknown operation ' .. operation)
  end
end
for key in pairs(expire) do
  redis.call('EXPIRE', key, ttl)
end
return #ARGV
