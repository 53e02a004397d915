-- Put a part of the queue or of the metrics back, unless they have changed since.
--
-- KEYS[1]   pending     sorted set: task id by its place, see places.lua
-- KEYS[2]   processing  the same
-- KEYS[3]   metrics     hash of counters
-- KEYS[4]   about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- ARGV[1]   thing     "queue" or "metrics"
-- ARGV[2]   version   that it had
-- ARGV[3]   time      when it was told last, ms
-- ARGV[4]   left_ms   how long it lives from now on
-- ARGV[5]   worker    who told it last
-- ARGV[6]   prefix    put before a path to make its channel
-- ARGV[7]   together  path of what is in about, up to the last slash
-- ARGV[8..] rest      queue: name of the list, task id, when it came in tenths of a millisecond, ms that it stays; then
--                     the next.  Who is in a list already stays where he is
--                     metrics: counter, JSON; then the next
--
-- Returns    {"ok", version}, {"same", version}: nothing of it was missing, or {"newer", version}
-- Publishes  that queue or metrics have changed, with their new version
local pending, processing, metrics, about = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local thing, version, time, left_ms, worker = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local prefix, together = ARGV[6], ARGV[7]
local rest = {}
for i = 8, #ARGV do
  rest[i - 7] = ARGV[i]
end
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
time = math.min(time, now_ms)

local function outlives(key, ms)
  if redis.call("PTTL", key) < ms then redis.call("PEXPIRE", key, whole(ms)) end
end

local its_version, its_time, its_ttl =
  string.match(redis.call("HGET", about, thing) or "", "^(%d+) %S+ %S+ %d+ (%d+) (%d+) ")
if its_version and tonumber(its_time) > time and its_time + its_ttl > now_ms then
  return { "newer", tonumber(its_version) }
end

local changed = not its_version
if thing == "metrics" then
  for i = 1, #rest, 2 do
    if redis.call("HGET", metrics, rest[i]) ~= rest[i + 1] then
      redis.call("HSET", metrics, rest[i], rest[i + 1])
      changed = true
    end
  end
  if #rest > 0 then outlives(metrics, left_ms) end
else
  for i = 1, #rest, 4 do
    local list, task, order, stays = unpack(rest, i, i + 3)
    local key = list == "pending" and pending or processing
    if not redis.call("ZSCORE", pending, task) and not redis.call("ZSCORE", processing, task) then
      redis.call("ZADD", key, place_of(tonumber(order), now_ms + stays), task)
      outlives(key, tonumber(stays))
      changed = true
    end
  end
end
if not changed then return { "same", tonumber(its_version) } end
if its_version then version = math.max(version, its_version + 1) end
local text = string.format("%.0f - - 0 %.0f %.0f %.0f - %s\n1", version, time, now_ms - time + left_ms, now_ms - time, worker)
redis.call("HSET", about, thing, text)
outlives(about, left_ms)
redis.call("PUBLISH", prefix .. together .. thing, ":" .. thing .. "\n" .. text)
return { "ok", version }
