-- Let the leases of locks begin anew, as far as they are still held; none gets shorter.
--
-- KEYS[1..n]  lock    string: an entry, see lock_pass.lua
-- KEYS[n+1]   index   sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- ARGV[1]     n       number of locks
-- ARGV[2..]           3 for each lock:
--   holder   names one acquisition
--   path     the lock's
--   ttl_ms   lease from now on
--
-- Returns     for each lock 1, or 0: it is not the holder's any more
-- Publishes   nothing: who has a copy of the entry is told by Redis itself
local n = tonumber(ARGV[1])
local index = KEYS[n + 1]
local MEMORY, INDEX = 60000, 7 * 86400000 -- ms; as in lock_pass.lua
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local answers, leases = {}, {}

for i = 1, n do
  local holder, path, ttl_ms = ARGV[3 * i - 1], ARGV[3 * i], tonumber(ARGV[3 * i + 1])
  local text = redis.pcall("GET", KEYS[i])
  local first, since, lease, lag, writes, rest = string.match(
    type(text) == "string" and text or "", "^(%d+ %S+ %S+ %d+ (%d+)) (%d+) (%-?%d+) (%S+)(.*)$")
  local held = first and since + lease > now_ms and string.match(writes, "^[^,]*") == holder
  answers[i] = held and 1 or 0
  if held then
    local ends = math.max(now_ms + ttl_ms, since + lease)
    text = string.format("%s %.0f %s %s%s", first, ends - since, lag, writes, rest)
    redis.call("SET", KEYS[i], text, "PX", string.format("%.0f", ends - now_ms + MEMORY))
    leases[#leases + 1] = string.format("%.0f", ends)
    leases[#leases + 1] = path
  end
end
if index and #leases > 0 then
  redis.call("ZADD", index, unpack(leases))
  redis.call("ZREMRANGEBYSCORE", index, "-inf", string.format("%.0f", now_ms))
  redis.call("PEXPIRE", index, INDEX)
end
return answers
