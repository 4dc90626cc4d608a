-- How free slots are shared: max-min, as in fairness.py. Knows no keys and no time.

-- Units that lift a claim no higher than `level` for each of its weight.
local function below(claim, level)
  return math.min(math.max(0, math.floor(level * claim.weight) - claim.held), claim.wanted)
end

local function summed(claims, level)
  local sum = 0
  for _, claim in ipairs(claims) do sum = sum + below(claim, level) end
  return sum
end

-- How many of `free` each claim gets, as its `share`. A claim has `wanted`, `weight`, `held`, and `served`: when it last
-- got one. Each unit goes to whoever holds least for his weight with it, among equals to who was served longest ago.
local function fill(free, claims)
  local total, low, high = 0, 0, 0
  for _, claim in ipairs(claims) do
    total = total + claim.wanted
    high = math.max(high, (claim.held + claim.wanted) / claim.weight + 1)
  end
  if total <= free then
    for _, claim in ipairs(claims) do claim.share = claim.wanted end
    return
  end
  for _ = 1, 50 do
    local level = (low + high) / 2
    local given = summed(claims, level)
    if given <= free then low = level else high = level end
    if given == free then break end
  end
  table.sort(claims, function(a, b)
    if a.served ~= b.served then return a.served < b.served end
    return a.name < b.name
  end)
  -- Between the two there is at most one unit of each, and more of them than there are to give.
  local left = free - summed(claims, low)
  for _, claim in ipairs(claims) do
    claim.share = below(claim, low)
    if left > 0 and below(claim, high) > claim.share then
      claim.share = claim.share + 1
      left = left - 1
    end
  end
end
