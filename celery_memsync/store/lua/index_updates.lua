-- What follows from entries: the index of tasks, the names of users' keys, the lists of the queue, what is counted; put
-- before the scripts that write it, and behind validation.lua, counters.lua and queue_score.lua.
--
-- On a cluster it is kept elsewhere than the entries.  Then it travels as a note: the time (us) and these tables, packed
-- and unpacked here, and read by nobody else.
-- Set by the script, from its keys and arguments.
local worker, index_ttl, prefix, together
local index, names, pending, processing, metrics, about
-- Tasks that go into the index.
local added = {}
-- What the stages of tasks come to: list, order and end in it by task id; counters by name.
local lists, orders, ends, counted = {}, {}, {}, {}
-- Users' keys that were made, moved on by a ttl, or deleted: when they are over, or false, by path.
local named = {}

-- Count the version of what has no value in one piece, and tell that it has changed.
local function touch(thing, left)
  local before = try("HGET", about, thing)
  local version = tonumber(parse(type(before) == "string" and before or "") or 0) + 1
  local text = string.format("%.0f - - 0 %.0f %.0f 0 - %s\n1", version, now_ms, index_ttl, worker)
  try("HSET", about, thing, text)
  outlives(about, left)
  redis.call("PUBLISH", prefix .. together .. thing, ":" .. thing .. "\n" .. text)
end

local function keep_lists()
  local changed, longest = false, 1
  for list, key in pairs({ pending = pending, processing = processing }) do
    local out, into, left = {}, {}, 0
    for task, wanted in pairs(lists) do
      if wanted ~= list then
        out[#out + 1] = task
      else
        -- Who is there keeps the order; only its end moves on.
        local there = try("ZSCORE", key, task)
        local order = type(there) == "string" and over_at(there) > 0 and order_of(there) or orders[task]
        into[#into + 1] = place_of(order, ends[task])
        into[#into + 1] = task
        left = math.max(left, ends[task] - now_ms)
      end
    end
    if #out > 0 then changed = try("ZREM", key, unpack(out)) ~= 0 or changed end
    if #into > 0 then
      changed = try("ZADD", key, unpack(into)) ~= 0 or changed
      outlives(key, left)
      longest = math.max(longest, left)
      trim(key, index_ttl)
    end
  end
  if changed then touch("queue", math.max(longest, index_ttl)) end
end

local function keep_names()
  local into, out, left = {}, {}, 0
  for path, over in pairs(named) do
    if over then
      into[#into + 1] = whole(over)
      into[#into + 1] = path
      left = math.max(left, over - now_ms)
    else
      out[#out + 1] = path
    end
  end
  if #out > 0 then try("ZREM", names, unpack(out)) end
  if #into > 0 then
    try("ZADD", names, unpack(into))
    -- More than were made, so that all are forgotten in the end.
    local gone = try("ZRANGEBYSCORE", names, "-inf", "(" .. whole(now_ms), "LIMIT", 0, 10 + #into)
    if #gone > 0 then redis.call("ZREM", names, unpack(gone)) end
    try("ZREMRANGEBYSCORE", names, whole(now_ms + 3 * LONGEST), "+inf")
    outlives(names, left)
  end
end

local function keep_counters()
  for counter, by in pairs(counted) do
    if counter == "runtime" then
      add_to(metrics, counter, string.format("%.6f", by))
    elseif by ~= 0 then
      add_to(metrics, counter, whole(by))
    end
  end
  if next(counted) then
    redis.call("PEXPIRE", metrics, whole(index_ttl))
    touch("metrics", index_ttl)
  end
end

-- Add a task to the index.  An id of the future, which no script of ours has made, would be the last one for ever: no item
-- after it could be trimmed, or added at all.
local function index_task(...)
  local at = try("XADD", index, ...)
  if type(at) == "table" and (string.find(at.err, "XADD", 1, true) or string.find(at.err, "stream", 1, true))
      or type(at) == "string" and tonumber(string.match(at, "^%d+")) > now_ms + AHEAD then
    redis.call("DEL", index)
    try("XADD", index, ...)
  end
end

local function keep_added()
  local last = table.remove(added)
  if not last then return end
  for _, task in ipairs(added) do index_task("*", "id", task) end
  -- Once is enough for all of them.
  index_task("MINID", "~", whole(now_ms - index_ttl), "*", "id", last)
  redis.call("PEXPIRE", index, whole(index_ttl))
end

local function keep()
  keep_added()
  if next(named) then keep_names() end
  if next(lists) then keep_lists() end
  if next(counted) then keep_counters() end
end

local function note()
  if not (next(added) or next(named) or next(lists) or next(counted)) then return "" end
  return cmsgpack.pack({ now[1] * 1000000 + now[2], added, lists, orders, ends, counted, named })
end

-- Return what a note holds, in that order.
local function parts_of(text)
  return unpack(cmsgpack.unpack(text))
end

