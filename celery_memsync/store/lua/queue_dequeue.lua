-- Move the first task of pending to the end of processing, once.
--
-- KEYS[1]  pending     sorted set: task id by its score, see queue_score.lua
-- KEYS[2]  processing  the same
-- KEYS[3]  about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[4]  done        hash: numbers and answers of changes by this script, for a second try
-- ARGV[1]  worker    who changes
-- ARGV[2]  serial    number of the change; a second try has the same
-- ARGV[3]  ttl_ms    how long the task stays in processing
-- ARGV[4]  prefix    put before a path to make its channel
-- ARGV[5]  together  path of what is in about, up to the last slash
--
-- Returns    {"ok", task id}, or {"ok"} if nothing is pending
--            {"again", the same}: an earlier try did it; {"forgotten"}: one may have
-- Publishes  that the queue has changed, with its new version
local pending, processing, about, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, serial, ttl_ms, channels = ARGV[1], ARGV[2], ARGV[3], ARGV[4] .. ARGV[5]
local earlier = earlier_answer(done, serial)
if earlier then return earlier end

local task, score
repeat
  task, score = unpack(call("ZPOPMIN", pending))
  if not task then return keep_answer(done, serial, ttl_ms) end
until expires_at(score) > now_ms and is_id(task)
append(processing, task, ttl_ms)
touch(about, "queue", channels, worker, ttl_ms, ttl_ms)
return keep_answer(done, serial, ttl_ms, task)
