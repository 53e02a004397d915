-- How a lock is stored and given to its next holder; put before lock_acquire.lua, lock_wait.lua, lock_release.lua,
-- lock_free.lua and lock_renew.lua.
--
-- A lock is an entry.  Its run is that of the holder, its last write names the
-- holder, its time is since when it is held, and its ttl ends with the lease.
-- Of a free one there is no body: it is kept for a while, so that fences grow
-- whatever the clock does.
--
-- A waiter is subscribed to a channel.  One whose connection is gone is passed
-- over.  One that is given the lock has it for a moment, until it renews.

-- Milliseconds: that a waiter has a lock before it renews; that a lock without holder and waiters is remembered; that
-- the index is kept.
local CLAIM, MEMORY, INDEX = 3000, 60000, 7 * 86400000

-- Set by the script, from its keys and arguments.
local lock, queue, index, path, turns, worker
-- The lock as it is stored: its text, version and fence; ms that are left of its lease; who holds it, and who gave it
-- back before.
local text, version, fence, left, holder, giver

local function read_lock()
  local _, since, lease, writes
  text, left, giver = call("GET", lock), 0, ""
  version, _, _, fence, since, lease, _, writes = parse(text or "")
  if version and (lease == "0" or string.find(text, "\n.")) then
    -- Where the clock was set back, a lease is not longer than it was at first.
    if lease ~= "0" then left = math.min(since + lease - now_ms, tonumber(lease)) end
    holder, giver = string.match(writes, "^([^,]*),?(.*)$")
  else
    version, fence = 0, "0"
  end
end

-- Store the lock as it is from now on, and publish that.
local function store_lock(run, writes, lease_ms, by, body)
  text = header(version + 1, run, "-", fence, now_ms, lease_ms, 0, writes, by) .. "\n" .. body
  redis.call("SET", lock, text, "PX", lease_ms + MEMORY)
  publish(string.match(turns, "^%d+:") .. path, "1\n" .. text)
end

-- Store a holder, with a new fence.
local function give_lock(run, writes, lease_ms, by, body)
  local now_us = now[1] .. string.format("%06d", now[2])
  -- Of two numbers as texts, the longer is the greater.
  local clock_is_behind = #fence > #now_us or #fence == #now_us and fence >= now_us
  fence = clock_is_behind and whole(fence + 1) or now_us
  left = tonumber(lease_ms)
  store_lock(run, writes, lease_ms, by, body)
  if index then call("ZADD", index, whole(now_ms + left), path) end
end

-- Return a waiter as it stands in the queue.
local function waiter_row(waiter, lease_ms, channel, run, body)
  return waiter .. " " .. lease_ms .. " " .. channel .. " " .. run .. " " .. worker .. "\n" .. body
end

-- Give the lock to the first waiter that is subscribed; return it, or nil if there is none.
-- The script's caller may be a waiter, too: it is taken to be there, and is returned without having been given the lock.
local function give_to_waiter(gave_back, caller)
  while true do
    local row = call("LPOP", queue)
    if not row then return nil end
    local waiter, lease_ms, channel, run, by, body = string.match(row, "^(%S+) (%d+) (%S+) (%S+) ([^\n]*)\n(.*)$")
    if waiter and waiter == caller then return waiter end
    if waiter and string.sub(channel, 1, #turns) == turns and redis.call("PUBSUB", "NUMSUB", channel)[2] > 0 then
      give_lock(run, waiter .. gave_back, math.min(lease_ms, CLAIM), by, body)
      publish(channel, waiter .. " " .. fence .. " " .. left)
      return waiter
    end
  end
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
  if give_to_waiter("," .. by) then return end
  store_lock("-", by, 0, worker, "")
  if index then call("ZREM", index, path) end
end

