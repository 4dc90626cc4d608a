-- Take the leases that `restore` gave to these, where nobody renewed or asked for them since.
-- ARGV: the end that `restore` told; then workflows, each with its holders.

local till = tonumber(ARGV[1])
for group in groups(2, 0) do
  local mine = {}
  for place, ends in ipairs(leases(group.ids, 0)) do
    if ends == till then mine[#mine + 1] = group.ids[place] end
  end
  take(group.workflow, mine)
end
return 1
