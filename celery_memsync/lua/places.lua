-- Places in the lists of the queue; put before the scripts that keep them.
--
-- A place is one number, which sorts by when a task came: that time in tenths
-- of a millisecond, times 256, and how long from then on the task stays, as a
-- power of 1.07 of half a second, rounded up.  So it can stay longer without
-- moving back.

local function whole(number)
  return string.format("%.0f", number)
end

local function place_of(order, over_ms)
  local halves = math.max(1, (over_ms - order / 10) / 500)
  return whole(order * 256 + math.min(255, math.ceil(math.log(halves) / math.log(1.07))))
end

local function order_of(place)
  return math.floor(place / 256)
end

-- Return when a place is over, in ms.
local function over_at(place)
  return order_of(place) / 10 + 500 * 1.07 ^ (place % 256)
end

-- Remove tasks that are over: of those that have been there for horizon ms some, for many may stay longer still.
local function trim(list, now, horizon)
  local now_ms = now[1] * 1000 + now[2] / 1000
  local old = "(" .. whole((now_ms - horizon) * 2560)
  local count = redis.pcall("ZCOUNT", list, "-inf", old)
  if type(count) == "table" or count == 0 then return end
  local some = redis.call("ZRANGEBYSCORE", list, "-inf", old, "WITHSCORES", "LIMIT", now[2] % math.max(1, count - 19), 20)
  for i = 1, #some, 2 do
    if over_at(some[i + 1]) <= now_ms then redis.call("ZREM", list, some[i]) end
  end
end

