-- Add an id to the cancelled ones.
--
-- KEYS[1]  cancelled  sorted set: cancelled ids with who, when and why, by when they are forgotten (ms)
-- ARGV[1]  member     JSON, not looked into
-- ARGV[2]  ttl_ms     how long it is kept
-- ARGV[3]  most       how many may be there
-- ARGV[4]  channel    on which the change is published
--
-- Returns    {"ok"}, or {"full"}: as many are there, and nothing is added
-- Publishes  that the set has changed
local cancelled, member, ttl_ms, most, channel = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
-- Remove what is forgotten, and what other programs have put there for longer than any script of ours.
call("ZREMRANGEBYSCORE", cancelled, "-inf", whole(now_ms))
redis.call("ZREMRANGEBYSCORE", cancelled, whole(now_ms + 2 * ttl_ms), "+inf")
if redis.call("ZCOUNT", cancelled, "-inf", "+inf") >= most then return { "full" } end
redis.call("ZADD", cancelled, whole(now_ms + ttl_ms), member)
outlives(cancelled, ttl_ms)
publish(channel, "")
return { "ok" }
