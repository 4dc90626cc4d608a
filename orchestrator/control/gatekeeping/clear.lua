-- Nothing is granted, and nobody holds a slot any more. ARGV: workflows.

redis.call('DEL', key('slots:ready'), key('slots:walked'), key('slots'), key('demand'))
for _, workflow in ipairs(ARGV) do redis.call('DEL', key('slots', workflow)) end
return run_id()
