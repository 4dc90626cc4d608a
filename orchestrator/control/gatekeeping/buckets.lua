-- Token buckets: hashes of the `tokens` there were `at` a time, when the bucket was `born`, and in which `life` of the
-- server. One that does not exist, or is from an old snapshot, is born with one token; none holds more than its burst.

local KEPT_MS = 86400000
local YOUTH_MS = 1000 -- of a bucket that fills for the first time: whoever finds it empty may wait so long

local function bucket(workflow, rate, burst, at)
  rate = math.max(rate, 1e-9)
  local one = {key = key('bucket', workflow), rate = rate, burst = burst, at = at, life = run_id()}
  local kept = redis.call('HMGET', one.key, 'tokens', 'at', 'born', 'life')
  local tokens, filled, born = tonumber(kept[1]), tonumber(kept[2]), tonumber(kept[3])
  if not (tokens and filled and born) or kept[4] ~= one.life then
    tokens, filled, born = 1, at, at
  end
  -- A clock that was set back refills nothing, and is believed from here on.
  one.tokens = math.min(burst, tokens + math.max(0, at - filled) * rate / 1000)
  one.born = math.min(born, at)
  return one
end

-- Whole tokens; what a sum of fractions has lost is forgiven.
local function whole(one)
  return math.floor(one.tokens + 1e-6)
end

-- Milliseconds until it holds a token.
local function dry(one)
  return math.max(0, 1 - one.tokens) / one.rate * 1000
end

-- Milliseconds for which it is young.
local function youth(one)
  local fills = (one.burst - 1) / one.rate * 1000
  return math.max(0, math.ceil(one.born + math.min(YOUTH_MS, fills) - one.at))
end

local function spend(one, count)
  one.tokens = one.tokens - count
  redis.call('HSET', one.key, 'tokens', string.format('%.17g', one.tokens), 'at', string.format('%.17g', one.at),
    'born', string.format('%.17g', one.born), 'life', one.life)
  -- Forgotten before it holds a token again, it would be born with one.
  redis.call('PEXPIRE', one.key, string.format('%.0f', math.min(1e14, math.max(KEPT_MS, math.ceil(dry(one)) + 1000))))
end
