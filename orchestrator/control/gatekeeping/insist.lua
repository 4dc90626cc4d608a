-- A lease for each of these, whatever the limits are. ARGV: the lease (ms); then workflows, each with its holders.

local at = now()
for group in groups(2, 0) do lease(group.workflow, group.ids, at, at + tonumber(ARGV[1])) end
return 1
