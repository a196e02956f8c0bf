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

-- A batch may come again, or late: Redis stood still, its reply got lost, its connection was cut. What is
-- in the stream already is refused by its number, and then nothing else of it is done either: a late
-- `running` must not go over `answered`, and the feed must not have an event twice.
local expire, queued, new = {}, {}, false
for operation in next_word do
  local key = next_word()
  if operation == 'event' then
    local number, to_feed, event = next_word(), next_word(), next_word()
    local added = redis.pcall('XADD', key, '0-' .. number, 'event', event)
    new = not added.err
    -- Any other refusal (no memory, no disk, no master) is the whole batch's; Redis 6 puts the line before its name.
    if added.err and not find(added.err, 'equal or smaller', 1, true) then
      return redis.error_reply(string.match(added.err, '%u%u+ .*') or added.err)
    end
    expire[key] = new or expire[key]
    if to_feed == '1' and new then
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', cap, '*', 'event', event)
    end
  elseif operation == 'hash' then
    local fields = {}
    for field = 1, tonumber(next_word()) do
      fields[field] = next_word()
    end
    if expire[key .. ':events'] then
      redis.call('HSET', key, unpack(fields))
      expire[key] = true
    end
  elseif operation == 'value' then
    local value = next_word()
    if new then
      redis.call('SET', key, value, 'EX', ttl)
    end
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
