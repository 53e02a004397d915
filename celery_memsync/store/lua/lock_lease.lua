-- How long a lock is held; put before lock_acquire.lua, lock_release.lua, lock_free.lua, lock_restore.lua and lock_renew.lua.

-- Milliseconds: that a lock without holder and waiters is remembered; that the index is kept.
local MEMORY, INDEX = 60000, "604800000"

-- Return how many ms are left of a lease, as a whole number.  One that ends further away than it is long was given before
-- the clock was set back, and ends when its length is over from now on.
local function left_of(since, lease, length)
  return math.min(since + lease - now_ms, tonumber(string.match(length, "^%d+$") or lease), LONGEST)
end

-- Return the text of a lock with a lease that ends so many ms from now.
local function with_lease(known, lease_ms)
  local number, run, _, its_fence, since, _, lag, writes = parse(known)
  local by, body = string.match(known, "^%S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ ([^\n]*)(.*)$")
  local began = math.min(since, now_ms)
  return header(
    number, run, whole(lease_ms), its_fence, began, now_ms + lease_ms - began, since + lag - began, writes, by) .. body
end

-- Remove locks from the index whose leases have ended, and what no script of ours has put there.
local function trim_index(locks)
  redis.call("ZREMRANGEBYSCORE", locks, "-inf", whole(now_ms))
  redis.call("ZREMRANGEBYSCORE", locks, whole(now_ms + 2 * LONGEST), "+inf")
end

