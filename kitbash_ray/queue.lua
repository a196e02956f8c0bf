-- What the queue does to Redis, each operation all or nothing. ARGV[1] names it, ARGV[2] the consumer group.
--
--   KEYS[1]  the queue (stream with a consumer group)
--   KEYS[2]  the query (hash). `attempt` is its fence: it rises with every claim, and events of another are refused
--
-- The caller names every key, because where keys may lie is not for a script to say.
local queue, query, group = KEYS[1], KEYS[2], ARGV[2]
local call = redis.call

-- How often an entry was claimed, if `consumer` still holds it.
local function claims(consumer, entry)
  local held = redis.pcall('XPENDING', queue, group, entry, entry, 1, consumer)
  return held[1] and held[1][4]
end

local function running()
  return call('EXISTS', queue) == 1 and call('XPENDING', queue, group)[1] or 0
end

local function add(job)
  if call('EXISTS', queue) == 0 then call('XGROUP', 'CREATE', queue, group, '0', 'MKSTREAM') end
  call('XADD', queue, '*', 'job', job)
end

local operations = {}

-- KEYS[3] the idempotency key, if there is one. Gives the outcome and the id of the query it is about.
function operations.submit(most, id, job, text, asked_at, body)
  if KEYS[3] then
    local known = call('HMGET', KEYS[3], 'query_id', 'body')
    if known[1] then return {known[2] == body and 'accepted' or 'reused', known[1]} end
  end
  -- A call whose reply got lost is sent again.
  if call('EXISTS', query) == 1 then return {'accepted', id} end
  if call('XLEN', queue) - running() >= tonumber(most) then return {'full', id} end
  call('HSET', query, 'state', 'queued', 'text', text, 'asked_at', asked_at, 'attempt', 1)
  if KEYS[3] then call('HSET', KEYS[3], 'query_id', id, 'body', body) end
  add(job)
  return {'accepted', id}
end

-- Gives the attempt, how often the entry was claimed and whether the query has ended; nothing if the entry is not held.
function operations.begin(consumer, entry)
  local claimed = claims(consumer, entry)
  if not claimed then return nil end
  local found = call('HMGET', query, 'attempt', 'finished_at')
  if found[2] then return {tonumber(found[1]) or 0, claimed, 1} end
  call('HSET', query, 'state', 'running')
  return {call('HINCRBY', query, 'attempt', 1), claimed, 0}
end

-- Gives 1 if the entry is still held for this attempt: it is now for another term.
function operations.renew(consumer, entry, attempt)
  if not claims(consumer, entry) or call('HGET', query, 'attempt') ~= attempt then return 0 end
  call('XCLAIM', queue, group, consumer, 0, entry, 'JUSTID')
  return 1
end

-- KEYS[3] the dead letters (hash), KEYS[4] the idempotency key, if there is one. Gives 1 if the entry was held.
function operations.settle(consumer, entry, ttl, id, callback, letter, most)
  if not claims(consumer, entry) then return 0 end
  call('XACK', queue, group, entry)
  call('XDEL', queue, entry)
  if callback ~= '' then call('HSET', query, 'callback', callback) end
  call('EXPIRE', query, ttl)
  if KEYS[4] then call('EXPIRE', KEYS[4], ttl) end
  if letter ~= '' and call('HLEN', KEYS[3]) < tonumber(most) then call('HSET', KEYS[3], id, letter) end
  return 1
end

-- KEYS[3] the dead letters. Gives 1 if the letter was there as the caller knows it.
function operations.requeue(id, letter, job, text, asked_at, attempt)
  if call('HGET', KEYS[3], id) ~= letter then return 0 end
  call('HDEL', KEYS[3], id)
  call('HDEL', query, 'finished_at', 'answer', 'layer', 'judged', 'callback')
  call('HSET', query, 'state', 'queued', 'text', text, 'asked_at', asked_at, 'attempt', attempt)
  call('PERSIST', query)
  add(job)
  return 1
end

-- KEYS[2] the dead letters. Gives how many wait, are worked on and are dead.
function operations.count()
  local held = running()
  return {call('XLEN', queue) - held, held, call('HLEN', KEYS[2])}
end

-- Takes consumers away that hold nothing and have not asked for `idle` milliseconds: their processes are gone.
function operations.forget(idle)
  if call('EXISTS', queue) == 0 then return end
  for _, fields in ipairs(call('XINFO', 'CONSUMERS', queue, group)) do
    local consumer = {}
    for at = 1, #fields, 2 do consumer[fields[at]] = fields[at + 1] end
    if consumer.pending == 0 and consumer.idle > tonumber(idle) then
      call('XGROUP', 'DELCONSUMER', queue, group, consumer.name)
    end
  end
end

return operations[ARGV[1]](unpack(ARGV, 3))
