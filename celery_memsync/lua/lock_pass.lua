-- Take a lock, wait for it, or leave it; what is free goes to who has waited longest.
--
-- A lock is an entry.  Its run is that of the holder, its last write names the
-- holder, its time is since when it is held, and its ttl ends with the lease.
-- Of a free one there is no body: it is kept for a while, so that fences grow
-- whatever the clock does.
--
-- Who waits is subscribed to a channel.  A waiter whose connection is gone is
-- passed over.  One that is given the lock has it for a moment, until it renews.
--
-- KEYS[1] lock     string: the entry
-- KEYS[2] queue    list of those who wait, in the order in which they came
-- KEYS[3] waiters  hash of what is known of each
-- KEYS[4] index    sorted set: "run holder path" of each lock that is held, by the end of its lease (ms)
-- ARGV[1] what     "take"; "wait": take, else stand in the queue; "leave": give it back, or leave the queue
-- ARGV[2] holder   names one acquisition; a second try has the same
-- ARGV[3] path     the lock's; its changes are told there
-- ARGV[4] prefix   put before a path to make its channel
-- ARGV[5] ttl_ms   lease
-- ARGV[6] run      of the task that asks; "-" for none
-- ARGV[7] worker   who asks
-- ARGV[8] body     not looked into
-- ARGV[9] channel  where the holder is told that it is its turn
--
-- Returns     {"ok", fence, ms}   it is the holder's for so long; after "leave": it was
--             {"busy", ms, text}  it is somebody else's, who has it for so long if it is not renewed
--             {"lost", fence}     after "leave": it was not the holder's any more, or not yet
-- Publishes   slot, header and body on the lock's path; holder, fence and lease (ms) on the channel of who is next
local lock, queue, waiters, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local what, holder, path, prefix, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local run, worker, body, channel = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
-- Milliseconds: that a waiter has a lock before it renews; that what nobody has or asks for is remembered.
local CLAIM, MEMORY = 3000, 60000
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local text = redis.call("GET", lock) or ""
local version, of_run, fence, since, lease, writes =
  string.match(text, "^(%d+) (%S+) %S+ (%d+) (%d+) (%d+) %-?%d+ (%S+) ")
if text ~= "" and not version then return redis.error_reply("what is stored there is no lock") end
local left = version and string.sub(text, -1) ~= "\n" and since + lease - now_ms or 0
local has, had = string.match(writes or "", "^([^,]*),?(.*)$")
version, fence = tonumber(version or 0), tonumber(fence or 0)

local function whole(number)
  return string.format("%.0f", number)
end

local function store(its_run, its_writes, its_lease, rest)
  version = version + 1
  text = string.format("%.0f %s - %.0f %.0f %s 0 %s %s", version, its_run, fence, now_ms, its_lease, its_writes, rest)
  redis.call("SET", lock, text, "PX", whole(its_lease + MEMORY))
  redis.call("PUBLISH", prefix .. path, "1\n" .. text)
end

local function give(its_run, id, before, its_lease, rest)
  fence = math.max(fence + 1, now[1] * 1000000 + now[2])
  left = tonumber(its_lease)
  store(its_run, id .. before, its_lease, rest)
  redis.call("ZADD", index, whole(now_ms + its_lease), its_run .. " " .. id .. " " .. path)
end

local function leave_queue(id)
  redis.call("LREM", queue, 1, id)
  return redis.call("HDEL", waiters, id) == 1
end

-- Give the lock to the first who waits and can hear of it; who asks is taken to be there.
local function pass_on(before)
  while true do
    local id = redis.call("LINDEX", queue, 0)
    if not id then return nil end
    local its_lease, its_channel, its_run, rest =
      string.match(redis.call("HGET", waiters, id) or "", "^(%d+) (%S+) (%S+) (.*)$")
    leave_queue(id)
    if id == holder and what == "wait" then return id end
    if rest and redis.call("PUBSUB", "NUMSUB", its_channel)[2] > 0 then
      give(its_run, id, before, math.min(its_lease, CLAIM), rest)
      redis.call("PUBLISH", its_channel, string.format("%s %.0f %.0f", id, fence, left))
      return id
    end
  end
end

if left > 0 and has == holder and what ~= "leave" then -- its first answer was lost, or it was its turn
  return { "ok", fence, left }
end

if what == "leave" then
  if left > 0 and has == holder then
    redis.call("ZREM", index, of_run .. " " .. holder .. " " .. path)
    if not pass_on("," .. holder) then store("-", holder, 0, worker .. "\n") end
    return { "ok", fence }
  end
  leave_queue(holder)
  return { (left <= 0 and has == holder and lease == "0" or had == holder) and "ok" or "lost", fence }
end

if left <= 0 then
  local id = pass_on("")
  if not id or id == holder then
    redis.call("ZREMRANGEBYSCORE", index, "-inf", whole(now_ms))
    give(run, holder, "", ttl_ms, worker .. "\n" .. body)
    if redis.call("PTTL", index) < left + MEMORY then redis.call("PEXPIRE", index, whole(left + MEMORY)) end
    return { "ok", fence, left }
  end
end
if what == "wait" then
  if redis.call("HSET", waiters, holder, ttl_ms .. " " .. channel .. " " .. run .. " " .. worker .. "\n" .. body) == 1 then
    redis.call("RPUSH", queue, holder)
  end
  redis.call("PEXPIRE", queue, MEMORY)
  redis.call("PEXPIRE", waiters, MEMORY)
end
return { "busy", left, text }
