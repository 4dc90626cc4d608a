-- Held slots, and how many there are at most ('' for no limit): of the account, then of each workflow.
-- ARGV: the account's limit; then workflows, each with its limit. Changes nothing.

local at = now()
local answers = {is_ready() and '1' or '0'}
local function add(workflow, otherwise)
  local most = limit('concurrency', workflow, otherwise)
  answers[#answers + 1] = redis.call('ZCOUNT', key('slots', workflow), '(' .. at, '+inf')
  answers[#answers + 1] = most == math.huge and '' or string.format('%.0f', most)
end
add('', ARGV[1])
for place = 2, #ARGV, 2 do add(ARGV[place], ARGV[place + 1]) end
return answers
