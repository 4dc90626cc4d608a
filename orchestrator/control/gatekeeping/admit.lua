-- What may be created now. Takes a token of the account and of the workflow for each, in their order, and a slot for
-- those that may run at once: as far as slots are free and nothing queues before them.
--
-- ARGV: request id, workflow, count, kind ('run', 'queue' or 'restart'), the account's rate and burst ('' for that of a
-- second), the workflow's rate, the account's and the workflow's concurrency ('' for none), max_queued, lease in ms, ids.
--
-- Returns how many are admitted, how many of these (the first) hold a slot, and of the others why not ('', 'rate' or
-- 'full'), whether that is the account's limit or the workflow's, which it is, after how many ms to ask again, in how
-- many ms an empty bucket is full, and for how many it is young. Numbers are text: Redis would cut fractions off.

local request, workflow, count, kind = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local before = answered(request)
if before then return before end

local at = now()

local function filled(owner, rate, burst)
  rate, burst = limit('rate', owner, rate), limit('burst', owner, burst)
  return bucket(owner, rate, math.max(1, burst == math.huge and rate or burst), at)
end

local account, own = filled('', ARGV[5], ARGV[6]), filled(workflow, ARGV[7], '')
local free = math.max(0, math.min(count, whole(account), whole(own)))

-- Those that may run at once: what stands in ARGV as ids, from the first on.
local ids = {}
if kind == 'run' and is_ready() and not is_flagged(workflow) and not is_flagged('') then
  local room = math.min(free,
    limit('concurrency', '', ARGV[8]) - held('', at), limit('concurrency', workflow, ARGV[9]) - held(workflow, at))
  for place = 1, room do ids[place] = ARGV[11 + place] end
  lease(workflow, ids, at, at + tonumber(ARGV[11]))
end

-- The others queue, if there is room for them. The flags let nothing overtake them.
local admitted, why, whose, most, again, full, young = free, '', '', 0, 0, 0, 0
if kind ~= 'restart' then
  local backlog = key('backlog')
  most = limit('max_queued', workflow, limit('max_queued', '', ARGV[10]))
  local room = math.max(0, most - tonumber(redis.call('HGET', backlog, workflow) or 0))
  local queue = math.min(free - #ids, room)
  admitted = #ids + queue
  if queue > 0 and kind == 'run' then -- what 'queue' asks for may never be committed: it is there once it is counted
    redis.call('HINCRBY', backlog, workflow, queue)
    redis.call('EXPIRE', backlog, 86400)
    flag(workflow)
    if held('', at) >= limit('concurrency', '', ARGV[8]) then flag('') end
  end
  if admitted < free then why = 'full' end
end

spend(account, admitted)
spend(own, admitted)
if why == '' and admitted < count then
  local scarce = dry(account) > dry(own) and account or own
  why, whose, most = 'rate', scarce == account and 'account' or 'workflow', scarce.rate
  again, full, young = math.ceil(dry(scarce)) + 1, scarce.burst / scarce.rate * 1000, youth(scarce)
end
return answer(request, {tostring(admitted), tostring(#ids), why, whose, string.format('%.17g', most), tostring(again),
  tostring(full), tostring(young)})
