-- Replace the lists of the queue that are named, once.
--
-- KEYS[1]  pending     sorted set: task id by its score, see queue_score.lua
-- KEYS[2]  processing  the same
-- KEYS[3]  about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[4]  done        number of the last change by this script, for a second try
-- ARGV[1]  worker    who changes
-- ARGV[2]  serial    number of the change; a second try has the same
-- ARGV[3]  ttl_ms    how long the tasks stay
-- ARGV[4]  prefix    put before a path to make its channel
-- ARGV[5]  together  path of what is in about, up to the last slash
-- ARGV[6..]  for each list: its name, "pending" or "processing"; number of ids; the ids
--
-- Returns    {"ok"}
-- Publishes  that the queue has changed, with its new version
local pending, processing, about, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, serial, ttl_ms, channels = ARGV[1], ARGV[2], ARGV[3], ARGV[4] .. ARGV[5]
local earlier = earlier_answer(done, serial)
if earlier then return earlier end

local present = present_order()
local at = 6
while ARGV[at] do
  local list, ids = ARGV[at] == "pending" and pending or processing, tonumber(ARGV[at + 1])
  redis.call("DEL", list)
  for i = 1, ids do
    -- An id that is given twice keeps its first place.
    redis.call("ZADD", list, "NX", score_of(present + i, now_ms + ttl_ms), ARGV[at + 1 + i])
  end
  if ids > 0 then outlives(list, ttl_ms) end
  at = at + 2 + ids
end
touch(about, "queue", channels, worker, ttl_ms, ttl_ms)
return keep_answer(done, serial, ttl_ms)
