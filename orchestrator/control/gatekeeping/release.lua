-- Take the leases of these. Answers whether that freed a slot that somebody queues for.
-- ARGV: workflows, each with its holders.

local is_wanted = false
for group in groups(1, 0) do
  if take(group.workflow, group.ids) > 0 and (is_flagged('') or is_flagged(group.workflow)) then is_wanted = true end
end
return is_wanted and 1 or 0
