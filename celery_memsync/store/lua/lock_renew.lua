-- Let the leases of locks begin anew, as far as they are still held; none gets shorter.
--
-- But one that ends further away than it is long was given before the clock was set back, and is cut to its length.
--
-- KEYS[1..n]  lock    string: an entry, see lock_entry.lua
-- KEYS[n+1]   index   sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- ARGV[1]     n       number of locks
-- ARGV[2..]           3 for each lock:
--   holder   names one acquisition; of another one than the holder's only what is too long is cut
--   path     the lock's
--   ttl_ms   lease from now on
--
-- Returns     Redis's run id, "" if this user may not read it; for each lock 1, or 0: it is not the holder's any more
-- Publishes   nothing: Redis itself invalidates copies of the entry
local n = tonumber(ARGV[1])
local index = KEYS[n + 1]
local info = redis.pcall("INFO", "server")
local answers, leases = { type(info) == "string" and string.match(info, "run_id:(%w+)") or "" }, {}

for i = 1, n do
  local caller, name, ttl_ms = ARGV[3 * i - 1], ARGV[3 * i], tonumber(ARGV[3 * i + 1])
  local stored = call("GET", KEYS[i]) or ""
  local number, _, length, _, since, lease, _, writes = parse(stored)
  local lasts = number and lease ~= "0" and left_of(since, lease, length) or 0
  local held = lasts > 0 and string.match(writes, "^[^,]*") == caller
  answers[i + 1] = held and 1 or 0
  if held or lasts > 0 and lasts < since + lease - now_ms then
    if held then lasts = math.max(ttl_ms, lasts) end
    redis.call("SET", KEYS[i], with_lease(stored, lasts), "PX", whole(lasts + MEMORY))
    leases[#leases + 1] = whole(now_ms + lasts)
    leases[#leases + 1] = name
  end
end
if index and #leases > 0 then
  call("ZADD", index, unpack(leases))
  trim_index(index)
  redis.call("PEXPIRE", index, INDEX)
end
return answers
