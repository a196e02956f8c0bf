-- One step of a worker with the work of its layer, all or nothing. Redis's own clock counts.
--
--   KEYS[1]  the work (stream): an entry has `request`, `ms` that its asker waits, and `reply`, the key of the asker's
--            list, which hears `ASK RESULT`, without a result when nobody will do it; `ask` is the asker's name for it
--   KEYS[2]  when each worker was heard (sorted set)
--   ARGV     what, GROUP, WORKER, then for each:
--     put LEASE MOST KEPT REQUEST MS ASK REPLY   its id; 'nobody' when no worker was heard within LEASE ms, 'full'
--     claim LEASE TRIES KEPT   {id, request, ms left}, or {the newest id} when there is nothing to do
--     beat LEASE KEPT ID...    those ids that are not the worker's any more; the others are its own for another LEASE ms
--     leave LEASE              what it had is free for the next worker
--     settle ID RESULT REPLY_KEPT   1, or 0 when the work is not the worker's any more
--     count LEASE              {workers heard within LEASE ms, work that waits or is worked on}
local stream, workers = KEYS[1], KEYS[2]
local what, group, worker = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function holds(id)
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  return pending[1] ~= nil and pending[1][2] == worker
end

local function drop(id)
  redis.call('XACK', stream, group, id)
  redis.call('XDEL', stream, id)
end

local function say(fields, said, kept)
  redis.call('RPUSH', fields.reply, fields.ask .. ' ' .. said)
  redis.call('EXPIRE', fields.reply, kept)
end

local function by_name(flat)
  local fields = {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  return fields
end

-- First what a worker had whose lease is over: it has waited longest. None for a worker that was not heard lately:
-- its claim waits at a connection that may be dead.
local function next_entry(lease)
  if tonumber(redis.call('ZSCORE', workers, worker) or 0) < now - lease then return end
  local lapsed = redis.call('XPENDING', stream, group, 'IDLE', lease, '-', '+', 1)[1]
  if lapsed then
    local entry = redis.call('XCLAIM', stream, group, worker, 0, lapsed[1])[1]
    return lapsed[1], entry and by_name(entry[2]), lapsed[4] + 1
  end
  local read = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', 1, 'STREAMS', stream, '>')
  if read then
    local entry = read[1][2][1]
    return entry[1], by_name(entry[2]), 1
  end
end

if what == 'put' then
  if redis.call('ZCOUNT', workers, now - ARGV[4], '+inf') == 0 then return 'nobody' end
  if redis.call('XLEN', stream) >= tonumber(ARGV[5]) then return 'full' end
  local id = redis.call('XADD', stream, '*', 'request', ARGV[7], 'ms', ARGV[8], 'ask', ARGV[9], 'reply', ARGV[10])
  redis.call('EXPIRE', stream, ARGV[6])
  return id
elseif what == 'claim' then
  local lease, tries, kept = ARGV[4], tonumber(ARGV[5]), ARGV[6]
  redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM') -- an error: it is there
  redis.call('EXPIRE', stream, kept)
  while true do
    local id, fields, try = next_entry(lease)
    if not id then
      local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
      return {newest and newest[1] or '0-0'}
    end
    local left = fields and fields.ms - (now - string.match(id, '^%d+')) or 0
    if left > 0 and try <= tries then return {id, fields.request, left} end
    drop(id)
    if left > 0 then say(fields, '', kept) end
  end
elseif what == 'beat' then
  redis.call('ZREMRANGEBYSCORE', workers, '-inf', now - ARGV[4])
  redis.call('ZADD', workers, now, worker)
  redis.call('EXPIRE', workers, ARGV[5])
  local lost = {}
  for at = 6, #ARGV do
    if holds(ARGV[at]) then
      redis.call('XCLAIM', stream, group, worker, 0, ARGV[at], 'JUSTID')
    else
      table.insert(lost, ARGV[at])
    end
  end
  return lost
elseif what == 'leave' then
  redis.call('ZREM', workers, worker)
  for _, pending in ipairs(redis.pcall('XPENDING', stream, group, '-', '+', 100, worker)) do
    redis.call('XCLAIM', stream, group, worker, 0, pending[1], 'IDLE', ARGV[4], 'JUSTID')
  end
  return {}
elseif what == 'settle' then
  local id, result, kept = ARGV[4], ARGV[5], ARGV[6]
  if not holds(id) then return 0 end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  drop(id)
  if not entry then return 0 end
  say(by_name(entry[2]), result, kept)
  return 1
elseif what == 'count' then
  return {redis.call('ZCOUNT', workers, now - ARGV[4], '+inf'), redis.call('XLEN', stream)}
end
return redis.error_reply('unknown step ' .. what)
