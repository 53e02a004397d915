-- Store what a worker tells of itself, or its goodbye, and forget workers that are long gone.
--
-- KEYS[1]  workers  hash of what is told of workers, a field per worker and thing
-- KEYS[2]  beats    sorted set: worker id by time of last beat (ms)
-- ARGV[1]  id
-- ARGV[2]  channel  on which it is told
-- ARGV[3]  leaving  "1": a goodbye, not a beat
-- ARGV[4]  time     Redis's time when it was told, ms
-- ARGV[5]  ttl_ms   how long anything of a silent worker is kept
-- ARGV[6]  body     JSON, not looked into
--
-- Returns  {"ok", version, seconds, microseconds}
-- Publishes field, header and body on the channel
local workers, beats = KEYS[1], KEYS[2]
local id, channel, leaving, time, ttl_ms, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)

local gone = redis.call("ZRANGEBYSCORE", beats, "-inf", now_ms - tonumber(ttl_ms), "LIMIT", 0, 100)
for _, silent in ipairs(gone) do
  redis.call("HDEL", workers, silent .. "/heartbeat", silent .. "/status", silent .. "/capacity")
  redis.call("ZREM", beats, silent)
end

-- What was told by hand of workers that never beat is not in beats: look at a few of all.
for _, other in ipairs(redis.call("HRANDFIELD", workers, 4)) do
  local told, lives = string.match(redis.call("HGET", workers, other), "^%d+ %S+ %S+ %d+ (%d+) (%d+) ")
  if not told or told + lives <= now_ms then redis.call("HDEL", workers, other) end
end

local field = id .. "/heartbeat"
local stored = redis.call("HGET", workers, field)
local version = (stored and tonumber(string.match(stored, "^%d+")) or 0) + 1
local text = string.format("%d - - 0 %s %s %.0f - %s\n", version, time, ttl_ms, now_ms - time, id) .. body
redis.call("HSET", workers, field, text)
redis.call("ZADD", beats, string.format("%.0f", now_ms), id)
if leaving == "1" then redis.call("ZADD", beats, string.format("-%.0f", now_ms), id) end
redis.call("PEXPIRE", workers, ttl_ms)
redis.call("PEXPIRE", beats, ttl_ms)
redis.call("PUBLISH", channel, ":" .. field .. "\n" .. text)
return { "ok", version, tonumber(now[1]), tonumber(now[2]) }
