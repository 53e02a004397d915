-- Tasks that are put at the end of a list of the queue; put before queue_enqueue.lua and queue_dequeue.lua.

-- Append a task behind the last one, also if that one's time is ahead of the clock.
local function append(list, task, ttl_ms)
  local last = call("ZRANGE", list, -1, -1, "WITHSCORES")[2]
  local after = last and expires_at(last) > 0 and order_of(last) + 1 or 0
  redis.call("ZADD", list, score_of(math.max(present_order(), after), now_ms + ttl_ms), task)
  outlives(list, ttl_ms)
  trim(list, ttl_ms)
end

