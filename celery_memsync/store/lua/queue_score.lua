-- Places in the lists of the queue; put before the scripts that keep them, behind validation.lua.
--
-- A place is one number, which sorts by when a task came: that time in tenths
-- of a millisecond, times 256, and how long from then on the task stays, as a
-- power of 1.07 of half a second, rounded up.  So it can stay longer without
-- moving back.

local function place_of(order, over_ms)
  local halves = math.max(1, (over_ms - order / 10) / 500)
  return whole(order * 256 + math.min(255, math.ceil(math.log(halves) / math.log(1.07))))
end

local function order_of(place)
  return math.floor(place / 256)
end

-- Return when a place is over, in ms; one that no script of ours has made was over long ago.
local function over_at(place)
  local order = order_of(place)
  if not (order > 0 and order <= (now_ms + AHEAD) * 10) then return 0 end
  return order / 10 + 500 * 1.07 ^ (place % 256)
end

-- Remove places that no script of ours has made: those that are too far ahead, or no time at all.
local function trim_foreign(list)
  call("ZREMRANGEBYSCORE", list, "-inf", 0)
  redis.call("ZREMRANGEBYSCORE", list, "(" .. whole((now_ms + AHEAD) * 2560 + 255), "+inf")
end

-- Remove tasks that are over: of those that have been there for index_ttl ms some, for many may stay longer still.
local function trim(list, index_ttl)
  trim_foreign(list)
  local old = "(" .. whole((now_ms - index_ttl) * 2560)
  local count = redis.call("ZCOUNT", list, "-inf", old)
  if count == 0 then return end
  local some = redis.call("ZRANGEBYSCORE", list, "-inf", old, "WITHSCORES", "LIMIT", now[2] % math.max(1, count - 19), 20)
  for i = 1, #some, 2 do
    if over_at(some[i + 1]) <= now_ms then redis.call("ZREM", list, some[i]) end
  end
end

