-- Scores of tasks in the lists of the queue; put before entry_write.lua, index_apply.lua, queue_enqueue.lua,
-- queue_dequeue.lua and queue_replace.lua.
--
-- A score is one number, which sorts by when a task came: that time in tenths
-- of a millisecond, times 256, and how long from then on the task stays, as a
-- power of 1.07 of half a second, rounded up.  So a task can stay longer
-- without moving back.

-- Above any score: the year 2069.  Numbers beyond are soon not exact in a sorted set.
local MAX_SCORE = 8e15

-- A step of that power; the logarithm of a constant.
local STEP = math.log(1.07)

local function score_of(order, expires_ms)
  local halves = math.max(1, (expires_ms - order / 10) / 500)
  return order * 256 + math.min(255, math.ceil(math.log(halves) / STEP))
end

local function order_of(score)
  return math.floor(score / 256)
end

-- Return when a task with that score expires, in ms; a score that no script of ours has made expired long ago.
local function expires_at(score)
  local order = order_of(score)
  if not (order > 0 and tonumber(score) < MAX_SCORE) then return 0 end
  return order / 10 + 500 * 1.07 ^ (score % 256)
end

-- Remove scores that no script of ours has made.
local function trim_foreign(list)
  call("ZREMRANGEBYSCORE", list, "-inf", 0)
  redis.call("ZREMRANGEBYSCORE", list, whole(MAX_SCORE), "+inf")
end

-- Remove expired tasks: of those that have been there for ttl_ms some, for many may stay longer still.  They are the first
-- of the list; by rank they are found at once, where LIMIT walks over all before them.
local function trim(list, ttl_ms)
  trim_foreign(list)
  local old = "(" .. whole((now_ms - ttl_ms) * 2560)
  local count = redis.call("ZCOUNT", list, "-inf", old)
  if count == 0 then return end
  local first = now[2] % math.max(1, count - 19)
  local some = redis.call("ZRANGE", list, first, math.min(first + 20, count) - 1, "WITHSCORES")
  for i = 1, #some, 2 do
    if expires_at(some[i + 1]) <= now_ms then redis.call("ZREM", list, some[i]) end
  end
end

-- Return the time in the unit of an order: tenths of a millisecond.
local function present_order()
  return now[1] * 10000 + math.floor(now[2] / 100)
end

