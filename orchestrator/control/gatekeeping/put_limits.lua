-- Have exactly these limits there as what operators set. ARGV: ms they stay; then fields, each with its value.

redis.call('DEL', key('limits'))
for place = 2, #ARGV, 2 do redis.call('HSET', key('limits'), ARGV[place], ARGV[place + 1]) end
if #ARGV > 1 then redis.call('PEXPIRE', key('limits'), ARGV[1]) end
return 1
