-- Let slots go on being granted, as long as the leases are known to be renewed; and agree on who renews them.
-- ARGV: for how long slots may be granted, how long the one who renews need not show up (ms), the process that asks,
-- '1' if it would renew them.
-- Answers with the state (2: granted; 1: not, and these are not the leases of this server; 0: not) and, 1 or 0, whether
-- the asker is to renew the leases, and how many there are.

local ready, state = redis.call('GET', key('slots:ready')), 0
if ready and ready ~= run_id() then
  redis.call('DEL', key('slots:ready'), key('slots:walked'))
  state = 1
elseif ready then
  local left = redis.call('PTTL', key('slots:walked'))
  if left > 0 then redis.call('PEXPIRE', key('slots:ready'), math.min(left, tonumber(ARGV[1]))) end
  state = 2
end

local walker, is_walker = redis.call('GET', key('slots:walker')), 0
if ARGV[4] == '1' and (not walker or walker == ARGV[3]) then
  redis.call('SET', key('slots:walker'), ARGV[3], 'PX', ARGV[2])
  is_walker = 1
elseif ARGV[4] ~= '1' and walker == ARGV[3] then
  redis.call('DEL', key('slots:walker'))
end
return {state, is_walker, redis.call('ZCARD', key('slots'))}
