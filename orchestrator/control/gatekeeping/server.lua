-- What a script knows of the server it runs on: its time, and which life of which server it is.
-- Tests put another in its place; everything else goes through these two.

-- Milliseconds. The only clock there is for leases and buckets: no process' own is ever compared with it.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Another after a restart, and on a replica that took over: what stands here may then be an old snapshot.
local function run_id()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
end
