-- Slots for those who want one: whoever has one keeps it, the others get what is due to this asker.
-- ARGV: the lease (ms), the account's limit, the asker ('' if it does not come again), how many workflows it wants no
-- more of, their names; then for each workflow its name, limit, weight of the asker in it, '1' if more is queued than is
-- asked for, its holders.
-- Answers with '1' or '0' for each holder, in one string per workflow.

local DEMAND_MS = 2500

local at = now()
local till = at + tonumber(ARGV[1])
local asker = ARGV[3]
local first = 5 + tonumber(ARGV[4])

-- What others would take, and this asker of other workflows: by workflow, lists of claims.
local function demands(asked)
  local found = {}
  local all = redis.call('HGETALL', key('demand'))
  for place = 1, #all, 2 do
    local field = all[place]
    local who, workflow = string.match(field, '^(.-)|(.*)$')
    local wanted, weight, ends, served, got, bound = string.match(all[place + 1], '^(.-):(.-):(.-):(.-):(.-):(.*)$')
    local claim = {name = who, wanted = tonumber(wanted), weight = tonumber(weight), held = tonumber(got),
      served = tonumber(served)}
    if tonumber(ends) <= at then
      redis.call('HDEL', key('demand'), field)
    elseif who == asker and asked[workflow] then
      asked[workflow].before = claim
    else
      found[workflow] = found[workflow] or {limit = bound}
      table.insert(found[workflow], claim)
    end
  end
  return found
end

-- What every workflow may still get, as claims on the account's free slots.
local function contenders(asked, waiting)
  local claims = {}
  local function add(workflow, bound, claimed)
    local holds = held(workflow, at)
    local claim = {name = workflow, wanted = 0, weight = 1, held = holds, served = math.huge}
    for _, each in ipairs(claimed) do
      claim.wanted = claim.wanted + each.wanted
      claim.served = math.min(claim.served, each.served)
    end
    claim.wanted = math.max(0, math.min(claim.wanted, limit('concurrency', workflow, bound) - holds))
    claims[#claims + 1] = claim
  end
  for workflow, group in pairs(asked) do
    local claimed = {{wanted = #group.open, served = group.before and group.before.served or at}}
    for _, each in ipairs(waiting[workflow] or {}) do claimed[#claimed + 1] = each end
    add(workflow, group[1], claimed)
  end
  for workflow, claimed in pairs(waiting) do
    if not asked[workflow] then add(workflow, claimed.limit, claimed) end
  end
  return claims
end

-- The claim of this asker on what a workflow gets. It counts as held what it got since it has been waiting: whoever asks
-- more often, or for more shards, does not get all. Who comes anew stands where the one stands that got least.
local function own_claim(group, others)
  local weight, before, level = tonumber(group[2]), group.before, math.huge
  local claim = {name = asker, wanted = #group.open, weight = weight, held = 0, served = at}
  if before then
    claim.served, claim.held = before.served, math.floor(before.held * weight / before.weight)
  else
    for _, each in ipairs(others) do level = math.min(level, each.held / each.weight) end
    if level < math.huge then claim.held = math.floor(level * weight) end
  end
  return claim
end

-- What is due to it.
local function own_part(claim, others, share)
  local claims = {claim}
  for _, each in ipairs(others) do claims[#claims + 1] = each end
  fill(share, claims)
  return claim.share
end

-- Remember what this asker did not get, and tell creators whether they have to wait in the queue.
local function note(group, claim, others, is_short)
  local left, field = claim.wanted - claim.share, asker .. '|' .. group.workflow
  if left > 0 or group[3] == '1' then flag(group.workflow) end
  if left > 0 and is_short then flag('') end
  if asker == '' then return end
  if left > 0 then
    local served = claim.share > 0 and at or claim.served
    local value = string.format('%d:%d:%.0f:%.0f:%d:%s', left, claim.weight, at + DEMAND_MS, served,
      claim.held + claim.share, group[1])
    redis.call('HSET', key('demand'), field, value)
    redis.call('PEXPIRE', key('demand'), 2 * DEMAND_MS)
  else
    redis.call('HDEL', key('demand'), field)
    if #others == 0 and group[3] ~= '1' then redis.call('DEL', key('queued', group.workflow)) end
  end
end

for place = 5, first - 1 do redis.call('HDEL', key('demand'), asker .. '|' .. ARGV[place]) end

local asked, order = {}, {}
for group in groups(first, 3) do
  asked[group.workflow], order[#order + 1] = group, group
end
if not is_ready() then
  local answers = {}
  flag('')
  for _, group in ipairs(order) do
    flag(group.workflow)
    answers[#answers + 1] = string.rep('0', #group.ids)
  end
  return answers
end

local free = limit('concurrency', '', ARGV[2]) - held('', at)
for _, group in ipairs(order) do
  group.ends, group.open = leases(group.ids, at), {}
  for place, id in ipairs(group.ids) do
    if not group.ends[place] then group.open[#group.open + 1] = id end
  end
end
local waiting = demands(asked)
local claims, wanted, shares = contenders(asked, waiting), 0, {}
for _, claim in ipairs(claims) do wanted = wanted + claim.wanted end
local is_short = wanted > free
fill(math.max(0, free), claims)
for _, claim in ipairs(claims) do shares[claim.name] = claim.share end

local answers = {}
for _, group in ipairs(order) do
  local others = waiting[group.workflow] or {}
  local claim = own_claim(group, others)
  local part = own_part(claim, others, shares[group.workflow])
  local given, marks, got = {}, {}, 0
  for place, id in ipairs(group.ids) do
    local is_granted = group.ends[place]
    if not is_granted and got < part then
      got, is_granted = got + 1, true
    end
    if is_granted then given[#given + 1] = id end
    marks[#marks + 1] = is_granted and '1' or '0'
  end
  lease(group.workflow, given, at, till)
  if asker ~= '' then unqueue(group.workflow, got) end -- a queue asks
  note(group, claim, others, is_short)
  answers[#answers + 1] = table.concat(marks)
end
for place = 5, first - 1 do
  if not waiting[ARGV[place]] then redis.call('DEL', key('queued', ARGV[place])) end
end
if asker ~= '' and not is_short then redis.call('DEL', key('queued')) end
return answers
