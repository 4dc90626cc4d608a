-- Have the buckets of the account and of these workflows there, so that they have filled by the time somebody creates.
-- ARGV: workflows.

local at = now()
for place = 0, #ARGV do
  local name = key('bucket', ARGV[place])
  if redis.call('HGET', name, 'life') ~= run_id() then
    redis.call('DEL', name)
    local one = bucket(ARGV[place] or '', 1, 1, at) -- born with one token, whatever its rate
    spend(one, 0)
  elseif redis.call('PTTL', name) < KEPT_MS / 2 then
    redis.call('PEXPIRE', name, KEPT_MS)
  end
end
return 1
