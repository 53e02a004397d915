-- A lock as it is stored, and how it is given to its next holder; put before lock_acquire.lua, lock_release.lua,
-- lock_free.lua and lock_restore.lua.
--
-- A lock is an entry.  Its run is that of the holder, its last write names the
-- holder, its time is since when it is held, its ttl ends with the lease, and its
-- rank is the length of that (ms).  Of a free one there is no body: it is kept for
-- a while, so that who gave it back may do so twice.
--
-- A waiter is subscribed to a channel, and asks again every two seconds at least.  One whose connection is gone, or that
-- has not asked for longer than that, is passed over.  One that is given the lock has it for a moment, until it renews.
local lock, queue, asked, clock, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local path, turns, worker = ARGV[1], ARGV[2], ARGV[3]

-- The lock as it is stored: its text, version and fence; ms that are left of its lease; who holds it, and who gave it
-- back before.
local text, left, holder, giver = call("GET", lock) or "", 0, nil, ""
local version, _, length, fence, since, lease, lag, writes = parse(text)
-- Whether its last holder has given it back.
local given_back = lease == "0"
-- When its entry is taken to be stored (ms): later than the entry before, also in a new life of the lock.
local stored_ms = now_ms

if given_back or version and (string.find(text, "\n", 1, true) or #text) < #text then
  if not given_back then left = left_of(since, lease, length) end
  stored_ms = math.max(now_ms, since + lag)
  holder, giver = string.match(writes, "^([^,]*),?(.*)$")
  if left > 0 and left < since + lease - now_ms then
    text = with_lease(text, left)
    redis.call("SET", lock, text, "PX", left + MEMORY)
    if index then call("ZADD", index, now_ms + left, path) end
  end
else
  version, fence = 0, "0"
end

-- Store the lock as it is from now on, and publish that.
local function store_lock(its_fence, run, writes, lease_ms, by, body)
  fence, left = its_fence, tonumber(lease_ms)
  stored_ms = math.max(stored_ms, math.floor(fence / 1000))
  local message = "1\n"
    .. header(version + 1, run, lease_ms, fence, now_ms, lease_ms, stored_ms - now_ms, writes, by) .. "\n" .. body
  text = string.sub(message, 3)
  redis.call("SET", lock, text, "PX", left + MEMORY)
  publish(string.match(turns, "^%d+:") .. path, message)
  if not index then return end
  if left > 0 then call("ZADD", index, now_ms + left, path) else call("ZREM", index, path) end
end

-- Store a holder, with a new fence.
local function give_lock(run, writes, lease_ms, by, body)
  store_lock(tick(clock, tonumber(fence)), run, writes, lease_ms, by, body)
end

-- Return a waiter as it stands in the queue.
local function waiter_row(waiter, lease_ms, channel, run, body)
  return waiter .. " " .. lease_ms .. " " .. channel .. " " .. run .. " " .. worker .. "\n" .. body
end

-- Return for how many ms there were waiters, which is no clock's time: of that between two calls at most PACE counts, for
-- what is more may be a clock that was set ahead, and that makes no waiter silent.
local waited_ms
local function waiting_time()
  local PACE = 2000 -- ms between two questions of a waiter
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
  local SILENCE = 5000 -- ms without a question
  local last = tonumber(call("HGET", asked, waiter) or waiting_time())
  redis.call("HDEL", asked, waiter)
  return last and waiting_time() - last <= SILENCE and string.sub(channel, 1, #turns) == turns
    and redis.call("PUBSUB", "NUMSUB", channel)[2] > 0
end

-- Give the lock to the first waiter that is there; return it, or nil if there is none, or "" if this was not found out yet.
-- The script's caller may be a waiter, too: it is taken to be there, and is returned without having been given the lock.
local function give_to_waiter(gave_back, caller)
  if not queue then return nil end
  local PASSED = 100 -- most waiters that one call passes over
  local CLAIM = 3000 -- ms that a waiter has the lock before it renews
  -- A waiter as it stands in the queue; a namespace, with which the channel begins, may hold blanks.
  local WAITER_ROW = "^(%S+) (%d+) ([^\n]-/%w+/%d+) (%S+) ([^\n]*)\n(.*)$"
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

-- Give the lock back: to the waiter that came first, or to none.
local function give_back(by)
  if (give_to_waiter("," .. by) or "") == "" then store_lock(fence, "-", by, 0, worker, "") end
end

-- Return what a caller is answered that has the lock, and one that has not.
local function has_it()
  return "ok " .. fence .. " " .. left
end

local function is_busy()
  return "busy " .. fence .. " " .. left .. "\n" .. text
end

