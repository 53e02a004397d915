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
local answers, leases = {}, {}

for i = 1, n do
  local holder, path, ttl_ms = ARGV[3 * i - 1], ARGV[3 * i], tonumber(ARGV[3 * i + 1])
  local text = call("GET", KEYS[i]) or ""
  local version, run, rank, fence, since, lease, lag, writes = parse(text)
  local held = version and since + lease > now_ms and string.match(writes, "^[^,]*") == holder
  answers[i] = held and 1 or 0
  if held then
    local ends = math.max(now_ms + ttl_ms, since + lease)
    local rest = string.match(text, "^%d+ %S+ %S+ %d+ %d+ %d+ %-?%d+ %S+(.*)$")
    text = string.format("%s %s %s %s %s %.0f %s %s%s", version, run, rank, fence, since, ends - since, lag, writes, rest)
    redis.call("SET", KEYS[i], text, "PX", whole(ends - now_ms + MEMORY))
    leases[#leases + 1] = whole(ends)
    leases[#leases + 1] = path
  end
end
if index and #leases > 0 then
  call("ZADD", index, unpack(leases))
  redis.call("ZREMRANGEBYSCORE", index, "-inf", whole(now_ms))
  redis.call("ZREMRANGEBYSCORE", index, whole(now_ms + 2 * LONGEST), "+inf")
  redis.call("PEXPIRE", index, INDEX)
end
return answers
