-- Versions of the queue and of the metrics, which have no value in one piece; put before entry_write.lua, index_apply.lua,
-- queue_enqueue.lua, queue_dequeue.lua, queue_complete.lua, queue_replace.lua and metrics_update.lua.

-- Count a version of "queue" or "metrics", and publish that it has changed.  The hash of versions lives for at least
-- left_ms more.
local function touch(about, thing, channels, worker, ttl_ms, left_ms)
  local before = try("HGET", about, thing)
  local version = tonumber(parse(type(before) == "string" and before or "") or 0) + 1
  local text = header(version, "-", "-", "0", now_ms, ttl_ms, 0, "-", worker) .. "\n1"
  try("HSET", about, thing, text)
  outlives(about, left_ms)
  publish(channels .. thing, ":" .. thing .. "\n" .. text)
end

