-- Numbered changes of the queue and the metrics, each made once; put before queue_enqueue.lua, queue_dequeue.lua,
-- queue_complete.lua, queue_replace.lua and metrics_update.lua.
--
-- An answer may be lost on its way.  So numbers and answers of changes are kept, and a second try, which has the same
-- number, gets that answer, whatever was changed meanwhile.  A number has one of the fields in which they are kept; of
-- numbers that share a field only the highest is remembered, and nothing is done for the lower ones any more.

-- Numbers that are remembered of a process, and of one kind of change.
local SLOTS = 128

-- For a second try, an answer is kept for an hour at least.
local SHORTEST_MEMORY = 3600000

-- Return the answer to a change that was made already, or that may have been; nil if it is to be made now.
local function earlier_answer(done, serial)
  local last, answer = string.match(call("HGET", done, serial % SLOTS) or "", "^(%d+) ?(.*)$")
  if not last or #last > 15 or tonumber(last) < tonumber(serial) then return nil end
  if tonumber(last) > tonumber(serial) then return { "forgotten" } end
  return answer ~= "" and { "again", answer } or { "again" }
end

-- Keep the first word of an answer for a second try; return the answer.
local function keep_answer(done, serial, ttl_ms, ...)
  local first = ...
  redis.call("HSET", done, serial % SLOTS, serial .. " " .. tostring(first or ""))
  redis.call("PEXPIRE", done, whole(math.max(tonumber(ttl_ms), SHORTEST_MEMORY)))
  return { "ok", ... }
end

