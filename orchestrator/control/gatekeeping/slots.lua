-- What every script starts with: names, limits, slots, requests. KEYS[1] is the account's hash tag; a workflow of ''
-- means the account. Written behind server.lua.

local PART = 3000 -- members that one command names: unpack() of more than some 7,000 values overflows Lua's stack
local FLAG_MS = 3000
local ANSWER_MS = 30000

-- As in keys.py.
local function key(noun, workflow)
  if workflow == nil or workflow == '' then return KEYS[1] .. ':' .. noun end
  return KEYS[1] .. ':' .. noun .. ':of:' .. workflow
end

-- What an operator set, else `otherwise` ('' means no limit).
local function limit(noun, workflow, otherwise)
  local field = workflow == '' and noun or noun .. ':' .. workflow
  return tonumber(redis.call('HGET', key('limits'), field) or otherwise) or math.huge
end

-- Whether slots may be granted: the leases were written from Postgres to this life of this server.
local function is_ready()
  return redis.call('GET', key('slots:ready')) == run_id()
end

-- How many slots are held at `at`. A lease that ended holds none.
local function held(workflow, at)
  redis.call('ZREMRANGEBYSCORE', key('slots', workflow), '-inf', at)
  return redis.call('ZCARD', key('slots', workflow))
end

-- Parts of a list, each short enough to be unpacked.
local function parts(list, size)
  local from = 1 - size
  return function()
    from = from + size
    if from > #list then return nil end
    local part = {}
    for place = from, math.min(from + size - 1, #list) do part[#part + 1] = list[place] end
    return part
  end
end

-- The end of each one's lease in the account, false for those without. In their order.
local function leases(ids, at)
  local ends = {}
  for part in parts(ids, PART) do
    for _, till in ipairs(redis.call('ZMSCORE', key('slots'), unpack(part))) do
      till = tonumber(till or 0)
      ends[#ends + 1] = till > at and till
    end
  end
  return ends
end

-- Give these a lease until `till`, or a new end to the one they have. The keys outlive their last lease.
local function lease(workflow, ids, at, till)
  if #ids == 0 then return end
  for part in parts(ids, PART) do
    local pairs_ = {}
    for _, id in ipairs(part) do
      pairs_[#pairs_ + 1] = till
      pairs_[#pairs_ + 1] = id
    end
    redis.call('ZADD', key('slots'), unpack(pairs_))
    redis.call('ZADD', key('slots', workflow), unpack(pairs_))
  end
  local kept = math.ceil(till - at) * 2
  redis.call('PEXPIRE', key('slots'), kept)
  redis.call('PEXPIRE', key('slots', workflow), kept)
end

-- Take the leases of these; how many there were.
local function take(workflow, ids)
  local taken = 0
  for part in parts(ids, PART) do
    taken = taken + redis.call('ZREM', key('slots'), unpack(part))
    redis.call('ZREM', key('slots', workflow), unpack(part))
  end
  return taken
end

-- Say that something of this workflow waits in the queue, or, with '', that the account's slots are waited for.
local function flag(workflow)
  redis.call('SET', key('queued', workflow), '1', 'PX', FLAG_MS)
end

-- So many of a workflow queue no more. A backlog that is not known is counted before long.
local function unqueue(workflow, count)
  if count > 0 and redis.call('HEXISTS', key('backlog'), workflow) == 1 then
    local left = redis.call('HINCRBY', key('backlog'), workflow, -count)
    if left < 0 then redis.call('HSET', key('backlog'), workflow, 0) end
  end
end

local function is_flagged(workflow)
  return redis.call('EXISTS', key('queued', workflow)) == 1
end

-- Groups of holders in ARGV, from `place` on: a workflow, `fields` further values, and the ids, one behind the other in
-- one value: thousands of values cost the client more than all of this costs here.
local function groups(place, fields)
  return function()
    if place > #ARGV then return nil end
    local group, text = {workflow = ARGV[place], ids = {}}, ARGV[place + fields + 1]
    for field = 1, fields do group[field] = ARGV[place + field] end
    for at = 1, #text, 36 do group.ids[#group.ids + 1] = string.sub(text, at, at + 35) end
    place = place + fields + 2
    return group
  end
end

-- The answer that was given to a request before, if it is a repetition; and keeping the one that is given now.
local function answered(request)
  local answer = redis.call('GET', key('request:' .. request))
  return answer and cjson.decode(answer)
end

local function answer(request, value)
  redis.call('SET', key('request:' .. request), cjson.encode(value), 'PX', ANSWER_MS)
  return value
end
