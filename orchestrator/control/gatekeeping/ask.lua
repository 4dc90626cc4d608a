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
    local wanted, weight, untill, served, bound = string.match(all[place + 1], '^(.-):(.-):(.-):(.-):(.*)$')
    local claim = {name = who, wanted = tonumber(wanted), weight = tonumber(weight), held = 0, served = tonumber(served)}
    if tonumber(untill) <= at then
      redis.call('HDEL', key('demand'), field)
    elseif who == asker and asked[workflow] then
      asked[workflow].served = claim.served
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
    local claimed = {{name = asker, wanted = #group.open, served = group.served or at}}
    for _, each in ipairs(waiting[workflow] or {}) do claimed[#claimed + 1] = each end
    add(workflow, group[1], claimed)
  end
  for workflow, claimed in pairs(waiting) do
    if not asked[workflow] then add(workflow, claimed.limit, claimed) end
  end
  return claims
end

-- What is due to this asker of what a workflow gets.
local function own_part(group, others, share)
  local mine = {name = asker, wanted = #group.open, weight = tonumber(group[2]), held = 0, served = group.served or at}
  local claims = {mine}
  for _, each in ipairs(others or {}) do claims[#claims + 1] = each end
  fill(share, claims)
  return mine.share
end

-- Remember what this asker did not get, and tell creators whether they have to wait in the queue.
local function note(group, others, part, is_short)
  local left, field = #group.open - part, asker .. '|' .. group.workflow
  if left > 0 or group[3] == '1' then flag(group.workflow) end
  if left > 0 and is_short then flag('') end
  if asker == '' then return end
  if left > 0 then
    local served = part > 0 and at or group.served or at
    local value = string.format('%d:%s:%.0f:%.0f:%s', left, group[2], at + DEMAND_MS, served, group[1])
    redis.call('HSET', key('demand'), field, value)
    redis.call('PEXPIRE', key('demand'), 2 * DEMAND_MS)
  else
    redis.call('HDEL', key('demand'), field)
    if not others and group[3] ~= '1' then redis.call('DEL', key('queued', group.workflow)) end
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
  local part = own_part(group, waiting[group.workflow], shares[group.workflow])
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
  note(group, waiting[group.workflow], part, is_short)
  answers[#answers + 1] = table.concat(marks)
end
if asker ~= '' and not is_short then redis.call('DEL', key('queued')) end
return answers
