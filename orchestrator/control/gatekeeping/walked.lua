-- All running instances had their lease renewed. ARGV: for how long at least these last (ms).

redis.call('SET', key('slots:walked'), '1', 'PX', ARGV[1])
return 1
