-- Write a batch of events: append to the streams and fold into the blackboard, all or nothing.
--
--   KEYS[1]  the feed (stream, capped)
--   ARGV[1]  seconds that everything of a query lives
--   ARGV[2]  events that the feed keeps, about
--   ARGV[3]  operations: words that each end with a NUL byte
--     event KEY NUMBER 0|1 JSON        one event of a query (stream); 1: the feed gets it too
--     hash  KEY COUNT FIELD VALUE ...  fields of a query (hash); COUNT words follow
--     value KEY JSON                   what a layer was asked or said (string)
--     fence KEY ATTEMPT BYTES          the operations in the next BYTES count only while this is the
--                                      attempt of the query (hash) and the query has not ended
local ttl, cap = ARGV[1], ARGV[2]
local words, at = ARGV[3], 1
local find, sub = string.find, string.sub

-- A plain find is one memchr; a pattern would look at every byte in Lua's matcher.
local function next_word()
  local stop = find(words, '\0', at, true)
  if not stop then return nil end
  local word = sub(words, at, stop - 1)
  at = stop + 1
  return word
end

local expire, queued = {}, {}
for operation in next_word do
  local key = next_word()
  if operation == 'event' then
    local number, to_feed, event = next_word(), next_word(), next_word()
    -- The event's number is its id in the stream: what was written before, by a call whose reply
    -- got lost, is refused here and so written once.
    local added = redis.pcall('XADD', key, '0-' .. number, 'event', event)
    expire[key] = true
    if to_feed == '1' and not added.err then
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', cap, '*', 'event', event)
    end
  elseif operation == 'hash' then
    local fields = {}
    for field = 1, tonumber(next_word()) do
      fields[field] = next_word()
    end
    redis.call('HSET', key, unpack(fields))
    expire[key] = true
  elseif operation == 'value' then
    redis.call('SET', key, next_word(), 'EX', ttl)
  elseif operation == 'fence' then
    local attempt, bytes = next_word(), tonumber(next_word())
    local query = redis.call('HMGET', key, 'attempt', 'finished_at')
    if query[1] ~= attempt or query[2] then at = at + bytes end
    queued[key] = true
  else
    return redis.error_reply('unknown operation ' .. operation)
  end
end
-- The hash of a queued query holds its fence: it lives until the queue has done with it.
for key in pairs(queued) do
  expire[key] = nil
end
for key in pairs(expire) do
  redis.call('EXPIRE', key, ttl)
end
return redis.status_reply('OK')
