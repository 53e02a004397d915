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
-- KEYS[3] index    sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- ARGV[1] path     the lock's; its changes are told there
-- ARGV[2] turns    channels of those who wait begin with that; up to its first colon it is put before a path to make a
--                  channel
-- ARGV[3] worker   who asks
-- ARGV[4] what     "take"; "wait": take, else stand in the queue; "leave": give it back, or leave the queue;
--                  "free": give it back for its holder
-- ARGV[5] holder   names one acquisition; a second try has the same; with "free" it is named by its fence
-- ARGV[6] ttl_ms   lease
-- ARGV[7] run      of the task that asks; "-" for none
-- ARGV[8] body     not looked into
-- ARGV[9] channel  where the holder is told that it is its turn; "-" if it does not wait
--
-- Returns     words with blanks between, and a line for the entry
--             "ok fence ms"         it is the holder's for so long; after "leave": it was
--             "busy fence ms\ntext"  it is somebody else's, who has it for so long if it is not renewed
--             "lost"                after "leave": it was not the holder's any more, or not yet; after "free":
--                                   nobody has it with that fence
-- Publishes   slot, header and body on the lock's path; holder, fence and lease (ms) on the channel of who is next
local lock, queue, index = KEYS[1], KEYS[2], KEYS[3]
local path, turns, worker, what, holder = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local ttl_ms, run, body, channel = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
-- Milliseconds: that a waiter has a lock before it renews; that what nobody has or asks for is remembered; the index.
local CLAIM, MEMORY, INDEX = 3000, 60000, 7 * 86400000
local prefix = string.match(turns, "^%d+:")
local now_us = now[1] .. string.format("%06d", now[2])
local now_text = string.sub(now_us, 1, -4)
local text = call("GET", lock)
local version, _, _, fence, since, lease, _, writes = parse(text or "")
local left, has, had = 0, nil, ""
if version and (lease == "0" or string.find(text, "\n.")) then
  -- Where the clock was set back, a lease is not longer than it was at first.
  if lease ~= "0" then left = math.min(since + lease - now_ms, tonumber(lease)) end
  has, had = string.match(writes, "^([^,]*),?(.*)$")
else
  version, fence = 0, "0"
end

local function store(its_run, its_writes, its_lease, rest)
  text = whole(version + 1) .. " " .. its_run .. " - " .. fence .. " " .. now_text .. " " .. its_lease .. " 0 " .. its_writes
    .. " " .. rest
  redis.call("SET", lock, text, "PX", its_lease + MEMORY)
  redis.call("PUBLISH", prefix .. path, "1\n" .. text)
end

local function give(its_run, its_writes, its_lease, rest)
  -- Of two numbers as texts, the longer is the greater.
  if #fence > #now_us or #fence == #now_us and fence >= now_us then
    now_us = whole(fence + 1)
  end
  fence, left = now_us, tonumber(its_lease)
  store(its_run, its_writes, its_lease, rest)
  if index then call("ZADD", index, whole(now_ms + left), path) end
end

-- Give the lock to the first who waits and can hear of it; who asks is taken to be there.
local function pass_on(before)
  while true do
    local row = call("LPOP", queue)
    if not row then return nil end
    local id, its_lease, its_channel, its_run, rest = string.match(row, "^(%S+) (%d+) (%S+) (%S+) (.*)$")
    if id == holder and what == "wait" then return id end
    if id and string.sub(its_channel, 1, #turns) == turns and redis.call("PUBSUB", "NUMSUB", its_channel)[2] > 0 then
      give(its_run, id .. before, math.min(its_lease, CLAIM), rest)
      redis.call("PUBLISH", its_channel, id .. " " .. fence .. " " .. left)
      return id
    end
  end
end

-- Who gave it back last; a holder for whom it was freed must not find himself there.
local giver = holder
if what == "free" then
  if left <= 0 or fence ~= holder then return "lost" end
  what, holder, giver = "leave", has, "-"
end

local is_mine = left > 0 and has == holder
local me = channel ~= "-" and holder .. " " .. ttl_ms .. " " .. channel .. " " .. run .. " " .. worker .. "\n" .. body
if what == "leave" then
  if is_mine then
    if not pass_on("," .. giver) then
      store("-", giver, 0, worker .. "\n")
      if index then call("ZREM", index, path) end
    end
    return "ok 0 0"
  end
  if me then call("LREM", queue, 1, me) end
  return (left == 0 and has == holder or had == holder) and "ok 0 0" or "lost"
end

if not is_mine and left <= 0 then
  local id = pass_on("")
  is_mine = not id or id == holder
  if is_mine then
    give(run, holder, ttl_ms, worker .. "\n" .. body)
    if index then redis.call("PEXPIRE", index, INDEX) end
    if index and now_ms % 16 == 0 then
      redis.call("ZREMRANGEBYSCORE", index, "-inf", now_text)
      redis.call("ZREMRANGEBYSCORE", index, whole(now_ms + 2 * LONGEST), "+inf")
    end
  end
end
if is_mine then return "ok " .. fence .. " " .. left end
if what == "wait" then
  if not call("LPOS", queue, me) then redis.call("RPUSH", queue, me) end
  redis.call("PEXPIRE", queue, MEMORY)
end
return "busy " .. fence .. " " .. left .. "\n" .. text
