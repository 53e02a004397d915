-- Put a task at the end of pending, once, unless it is in a list of the queue already.
--
-- KEYS[1]  pending     sorted set: task id by its score, see queue_score.lua
-- KEYS[2]  processing  the same
-- KEYS[3]  about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[4]  done        hash: numbers and answers of changes by this script, for a second try
-- ARGV[1]  worker    who changes
-- ARGV[2]  serial    number of the change; a second try has the same
-- ARGV[3]  ttl_ms    how long the task stays
-- ARGV[4]  prefix    put before a path to make its channel
-- ARGV[5]  together  path of what is in about, up to the last slash
-- ARGV[6]  task      its id
--
-- Returns    {"ok", 1 or 0}: whether it was put there
--            {"again", the same}: an earlier try did it; {"forgotten"}: one may have
-- Publishes  that the queue has changed, with its new version
local pending, processing, about, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, serial, ttl_ms, channels, task = ARGV[1], ARGV[2], ARGV[3], ARGV[4] .. ARGV[5], ARGV[6]
local earlier = earlier_answer(done, serial)
if earlier then return earlier end

-- Return whether the task is in a list, and remove it there if it has expired.
local function is_in(list)
  local score = call("ZSCORE", list, task)
  if score and expires_at(score) <= now_ms then
    redis.call("ZREM", list, task)
    return false
  end
  return score
end

if is_in(pending) or is_in(processing) then return keep_answer(done, serial, ttl_ms, 0) end
append(pending, task, ttl_ms)
touch(about, "queue", channels, worker, ttl_ms, ttl_ms)
return keep_answer(done, serial, ttl_ms, 1)
