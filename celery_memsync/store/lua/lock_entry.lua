-- How a lock is stored and given to its next holder; put before lock_acquire.lua, lock_wait.lua, lock_release.lua,
-- lock_free.lua, lock_restore.lua and lock_renew.lua.
--
-- A lock is an entry.  Its run is that of the holder, its last write names the
-- holder, its time is since when it is held, its ttl ends with the lease, and its
-- rank is the length of that (ms).  Of a free one there is no body: it is kept for
-- a while, so that who gave it back may do so twice.
--
-- A waiter is subscribed to a channel, and asks again every two seconds at least.  One whose connection is gone, or that
-- has not asked for longer than that, is passed over.  One that is given the lock has it for a moment, until it renews.

-- Milliseconds: that a waiter has a lock before it renews; between two of its questions; that it may be silent; that a lock
-- without holder and waiters is remembered; that the index is kept.
local CLAIM, PACE, SILENCE, MEMORY, INDEX = 3000, 2000, 5000, 60000, 7 * 86400000
-- Most waiters that one call passes over.
local PASSED = 100

-- Set by the script, from its keys and arguments.
local lock, queue, asked, clock, index, path, turns, worker
-- The lock as it is stored: its text, version and fence; ms that are left of its lease; who holds it, and who gave it
-- back before.
local text, version, fence, left, holder, giver
-- Whether its last holder has given it back.
local given_back
-- When its entry is taken to be stored (ms): later than the entry before, also in a new life of the lock.
local stored_ms

-- Return the text of a lock with a lease that ends so many ms from now.
local function with_lease(known, lease_ms)
  local number, run, _, its_fence, since, _, lag, writes = parse(known)
  local by, body = string.match(known, "^%S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ ([^\n]*)(.*)$")
  local began = math.min(since, now_ms)
  return header(
    number, run, whole(lease_ms), its_fence, began, now_ms + lease_ms - began, since + lag - began, writes, by) .. body
end

-- Return how many ms are left of a lease.  One that ends further away than it is long was given before the clock was
-- set back, and ends when its length is over from now on.
local function left_of(since, lease, length)
  return math.min(since + lease - now_ms, tonumber(length) or tonumber(lease))
end

local function read_lock()
  local _, length, since, lease, lag, writes
  text, left, giver, stored_ms = call("GET", lock), 0, "", now_ms
  version, _, length, fence, since, lease, lag, writes = parse(text or "")
  if version and (lease == "0" or string.find(text, "\n.")) then
    given_back = lease == "0"
    if not given_back then left = left_of(since, lease, length) end
    stored_ms = math.max(now_ms, since + lag)
    holder, giver = string.match(writes, "^([^,]*),?(.*)$")
    if left > 0 and left < since + lease - now_ms then
      text = with_lease(text, left)
      redis.call("SET", lock, text, "PX", whole(left + MEMORY))
      if index then call("ZADD", index, whole(now_ms + left), path) end
    end
  else
    version, fence = 0, "0"
  end
end

-- Store the lock as it is from now on, and publish that.
local function store_lock(run, writes, lease_ms, by, body)
  text = header(version + 1, run, lease_ms, fence, now_ms, lease_ms, stored_ms - now_ms, writes, by) .. "\n" .. body
  redis.call("SET", lock, text, "PX", lease_ms + MEMORY)
  publish(string.match(turns, "^%d+:") .. path, "1\n" .. text)
end

-- Store a holder, with a fence.
local function hold(its_fence, run, writes, lease_ms, by, body)
  fence = its_fence
  stored_ms = math.max(stored_ms, math.floor(tonumber(fence) / 1000))
  left = tonumber(lease_ms)
  store_lock(run, writes, lease_ms, by, body)
  if index then call("ZADD", index, whole(now_ms + left), path) end
end

-- Store a holder, with a new fence.
local function give_lock(run, writes, lease_ms, by, body)
  hold(whole(tick(clock, tonumber(fence))), run, writes, lease_ms, by, body)
end

-- A waiter as it stands in the queue; a namespace, with which the channel begins, may hold blanks.
local WAITER_ROW = "^(%S+) (%d+) ([^\n]-/%w+/%d+) (%S+) ([^\n]*)\n(.*)$"

-- Return a waiter as it stands in the queue.
local function waiter_row(waiter, lease_ms, channel, run, body)
  return waiter .. " " .. lease_ms .. " " .. channel .. " " .. run .. " " .. worker .. "\n" .. body
end

-- Return for how many ms there were waiters, which is no clock's time: of that between two calls at most PACE counts, for
-- what is more may be a clock that was set ahead, and that makes no waiter silent.
local waited_ms
local function waiting_time()
  if not waited_ms then
    local before, at = string.match(call("HGET", asked, ":") or "", "^(%d+) (%d+)$")
    if not before or #before > 14 or #at > 14 then before, at = 0, now_ms end
    waited_ms = before + math.max(0, math.min(PACE, now_ms - at))
    redis.call("HSET", asked, ":", whole(waited_ms) .. " " .. whole(now_ms))
    redis.call("PEXPIRE", asked, MEMORY)
  end
  return waited_ms
end

-- Take a waiter out of those that have asked, and return whether it is there still.
local function is_there(waiter, channel)
  local last = tonumber(call("HGET", asked, waiter) or waiting_time())
  redis.call("HDEL", asked, waiter)
  return last and waiting_time() - last <= SILENCE and string.sub(channel, 1, #turns) == turns
    and redis.call("PUBSUB", "NUMSUB", channel)[2] > 0
end

-- Give the lock to the first waiter that is there; return it, or nil if there is none, or "" if this was not found out yet.
-- The script's caller may be a waiter, too: it is taken to be there, and is returned without having been given the lock.
local function give_to_waiter(gave_back, caller)
  if not queue then return nil end
  for _ = 1, PASSED do
    local row = call("LPOP", queue)
    if not row then return nil end
    local waiter, lease_ms, channel, run, by, body = string.match(row, WAITER_ROW)
    if waiter and waiter == caller then
      redis.call("HDEL", asked, waiter)
      return waiter
    end
    if waiter and is_there(waiter, channel) then
      give_lock(run, waiter .. gave_back, math.min(lease_ms, CLAIM), by, body)
      publish(channel, waiter .. " " .. fence .. " " .. left)
      return waiter
    end
  end
  return redis.call("LLEN", queue) > 0 and "" or nil
end

-- Remove locks from the index whose leases have ended, and what no script of ours has put there.
local function trim_index(locks)
  redis.call("ZREMRANGEBYSCORE", locks, "-inf", whole(now_ms))
  redis.call("ZREMRANGEBYSCORE", locks, whole(now_ms + 2 * LONGEST), "+inf")
end

-- Take the lock if it is free; what is free goes to the waiter that came first.  Return whether the caller has it.
-- A caller that is a waiter gets it in its turn, any other one only if there are no waiters.
local function take_if_free(caller, is_waiter, run, ttl_ms, body)
  if left > 0 then return holder == caller end
  -- The first try of a question that was sent twice comes late: what it was asked for is over.
  if given_back and holder == caller then return false end
  local waiter = give_to_waiter("", is_waiter and caller or nil)
  if waiter and waiter ~= caller then return false end
  give_lock(run, caller, ttl_ms, worker, body)
  if index then
    redis.call("PEXPIRE", index, INDEX)
    -- One time in sixteen is enough.
    if now_ms % 16 == 0 then trim_index(index) end
  end
  return true
end

-- Return what a caller is answered that has the lock, and one that has not.
local function has_it()
  return "ok " .. fence .. " " .. left
end

local function is_busy()
  return "busy " .. fence .. " " .. left .. "\n" .. text
end

-- Give the lock back: to the waiter that came first, or to none.
local function give_back(by)
  if (give_to_waiter("," .. by) or "") ~= "" then return end
  store_lock("-", by, 0, worker, "")
  if index then call("ZREM", index, path) end
end

