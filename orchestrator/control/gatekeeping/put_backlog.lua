-- Say how many instances of a workflow were queued when they were counted. ARGV: ms it stays, workflow, how many.

redis.call('HSET', key('backlog'), ARGV[2], ARGV[3])
redis.call('PEXPIRE', key('backlog'), ARGV[1])
return 1
