-- New ends for the leases of those who have one. Answers with '1' or '0' for each holder, in one string per workflow.
-- ARGV: the lease (ms); then workflows, each with its holders.

local at = now()
local till = at + tonumber(ARGV[1])
local answers = {}
for group in groups(2, 0) do
  local there, marks = {}, {}
  for place, is_there in ipairs(leases(group.ids, at)) do
    if is_there then there[#there + 1] = group.ids[place] end
    marks[place] = is_there and '1' or '0'
  end
  lease(group.workflow, there, at, till)
  answers[#answers + 1] = table.concat(marks)
end
return answers
