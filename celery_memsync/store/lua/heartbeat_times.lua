-- The times of what is stored of workers; put before heartbeat_write.lua and heartbeat_cut.lua.

-- Let an entry of a worker count from now on, if its time is still to come: then Redis's clock was set back since.
local function cut_time(workers, field)
  local known = try("HGET", workers, field)
  local version, run, rank, fence, time, ttl, lag, writes = parse(type(known) == "string" and known or "")
  local ahead = version and time - now_ms or 0
  if ahead > 0 then
    local rest = string.match(known, "^%S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ (.*)$")
    redis.call("HSET", workers, field, header(version, run, rank, fence, now_ms, ttl, lag + ahead, writes, rest))
  end
end

