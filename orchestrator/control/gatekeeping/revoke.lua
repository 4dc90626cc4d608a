-- Take back what `admit` did for instances that were not created after all: the slots of those that had one, and the
-- place in the queue of the others. Tokens stay spent.
-- ARGV: request id, workflow, how many were to queue, the ids of those with a slot.

local request, workflow, queued = ARGV[1], ARGV[2], tonumber(ARGV[3])
if answered(request) then return 0 end

local ids = {}
for place = 4, #ARGV do ids[#ids + 1] = ARGV[place] end
if #ids > 0 then take(workflow, ids) end
unqueue(workflow, queued)
return answer(request, 1)
