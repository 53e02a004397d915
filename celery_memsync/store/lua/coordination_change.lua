-- Numbered changes of the queue and the metrics, each made once; put before queue_enqueue.lua, queue_dequeue.lua,
-- queue_complete.lua, queue_replace.lua and metrics_update.lua.
--
-- An answer may be lost on its way.  So number and answer of the last change are kept, and a second try, which has the
-- same number, gets that answer.

-- For a second try, an answer is kept for an hour at least.
local SHORTEST_MEMORY = 3600000

-- Return the answer to a change that was made already, nil if it is to be made now.
local function earlier_answer(done, serial)
  local last, answer = string.match(call("GET", done) or "", "^(%d+) ?(.*)$")
  if not (last and #last < 16 and tonumber(last) >= tonumber(serial)) then return nil end
  return tonumber(last) == tonumber(serial) and answer ~= "" and { "ok", answer } or { "ok" }
end

-- Keep the first word of an answer for a second try; return the answer.
local function keep_answer(done, serial, ttl_ms, ...)
  local first = ...
  redis.call("SET", done, serial .. " " .. tostring(first or ""), "PX", whole(math.max(tonumber(ttl_ms), SHORTEST_MEMORY)))
  return { "ok", ... }
end

