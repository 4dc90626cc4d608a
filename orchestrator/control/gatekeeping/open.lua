-- Slots may be granted from now on, if this still is the server that was cleared: its leases are those in Postgres.
-- ARGV: what `clear` answered, for how long (ms), for how long the leases are known to be renewed (ms).

if run_id() ~= ARGV[1] then return 0 end
redis.call('SET', key('slots:walked'), '1', 'PX', ARGV[3])
redis.call('SET', key('slots:ready'), ARGV[1], 'PX', ARGV[2])
return 1
