-- Add an id to the cancelled ones.
--
-- KEYS[1]  cancelled  sorted set: cancelled ids by when they are forgotten (ms)
-- KEYS[2]  causes     hash: who, when and why, by id
-- ARGV[1]  id
-- ARGV[2]  cause      JSON, not looked into
-- ARGV[3]  replaces   "1" if the cause takes the place of one that is there, else "0"
-- ARGV[4]  ttl_ms     how long it is kept
-- ARGV[5]  most       how many may be there
-- ARGV[6]  channel    on which the change is published
--
-- Returns    {"ok"}, or {"full"}: as many are there, and nothing is added
-- Publishes  that the set has changed
local cancelled, causes, id, cause, replaces = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3] == "1"
local ttl_ms, most, channel = ARGV[4], tonumber(ARGV[5]), ARGV[6]

-- Most ids that are forgotten in one call, so that it ends soon.
local SOME = 500

-- Remove what is forgotten, and what other programs have put there for longer than any script of ours.
for _, range in ipairs({ { "-inf", whole(now_ms) }, { whole(now_ms + 2 * ttl_ms), "+inf" } }) do
  local gone = call("ZRANGEBYSCORE", cancelled, range[1], range[2], "LIMIT", 0, SOME)
  if #gone > 0 then
    redis.call("ZREM", cancelled, unpack(gone))
    call("HDEL", causes, unpack(gone))
  end
end
local is_there = redis.call("ZSCORE", cancelled, id)
if not is_there and redis.call("ZCOUNT", cancelled, whole(now_ms), "+inf") >= most then return { "full" } end
-- A process that has read the set reads only what comes later, so a change is the last one, also if the clock was set back.
local last = tonumber(redis.call("ZRANGE", cancelled, -1, -1, "WITHSCORES")[2] or 0)
if last >= now_ms + 2 * ttl_ms then last = 0 end
local until_ms = math.max(now_ms + ttl_ms, last + 1)
redis.call("ZADD", cancelled, whole(until_ms), id)
if replaces or not is_there or not call("HGET", causes, id) then call("HSET", causes, id, cause) end
for _, key in ipairs(KEYS) do outlives(key, until_ms - now_ms) end
publish(channel, "")
return { "ok" }
