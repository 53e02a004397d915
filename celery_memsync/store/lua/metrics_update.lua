-- Set counters and add to counters, once.
--
-- KEYS[1]  metrics  hash of counters
-- KEYS[2]  about    hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[3]  done     hash: numbers and answers of changes by this script, for a second try
-- ARGV[1]  worker    who changes
-- ARGV[2]  serial    number of the change; a second try has the same
-- ARGV[3]  ttl_ms    how long the counters are kept
-- ARGV[4]  prefix    put before a path to make its channel
-- ARGV[5]  together  path of what is in about, up to the last slash
-- ARGV[6..]  for each step: "=" to set or "+" to add; the counter; a number as JSON, or with "=" any JSON
--
-- Returns    {"ok", counter...}: those that hold something to which nothing can be added
--            {"again", the first of them}: an earlier try did it; {"forgotten"}: one may have; an error: nothing is done
-- Publishes  that the metrics have changed, with their new version
local metrics, about, done = KEYS[1], KEYS[2], KEYS[3]
local worker, serial, ttl_ms, channels = ARGV[1], ARGV[2], ARGV[3], ARGV[4] .. ARGV[5]
local earlier = earlier_answer(done, serial)
if earlier then return earlier end

-- Set a counter; return whether that was done, or nil and the error.
local function set(counter, json)
  local result = try("HSET", metrics, counter, json)
  if type(result) == "table" then return nil, result end
  return true
end

local failed, any = {}, false
for at = 6, #ARGV, 3 do
  local how, counter, json = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local changed, refusal
  if how == "=" then
    changed, refusal = set(counter, json)
  else
    changed, refusal = add_to(metrics, counter, json)
  end
  -- What a server refuses, for it is full or a replica, it refuses before the first write of a script.
  if refusal and not any then return refusal end
  any = any or changed
  if not changed then failed[#failed + 1] = counter end
end
outlives(metrics, ttl_ms)
touch(about, "metrics", channels, worker, ttl_ms, ttl_ms)
return keep_answer(done, serial, ttl_ms, unpack(failed))
