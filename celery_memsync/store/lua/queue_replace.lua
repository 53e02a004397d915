-- Change the queue or the metrics by hand, once.
--
-- KEYS[1]   pending     sorted set: task id by its place, see queue_score.lua
-- KEYS[2]   processing  the same
-- KEYS[3]   metrics     hash of counters
-- KEYS[4]   about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[5]   done        number and answer of the last change that came this way, for a second try
-- ARGV[1]   worker    who changes
-- ARGV[2]   serial    number of the change; a second try has the same
-- ARGV[3]   ttl_ms    how long what is told is kept
-- ARGV[4]   prefix    put before a path to make its channel
-- ARGV[5]   together  path of what is in about, up to the last slash
-- ARGV[6]   kind      "enqueue": put a task into pending, unless it is in a list
--                     "dequeue": move the first task from pending to processing
--                     "complete": take a task out of both lists
--                     "queue": make the lists that are named what is given
--                     "metrics": set and add to counters
-- ARGV[7..]  rest     enqueue, complete: the task id
--                     queue: name of the list, number of ids, the ids; then the next list
--                     metrics: "=" or "+", counter, JSON; then the next counter
--
-- Returns    {"ok", answer...}: the task id or nothing for dequeue; 1 or 0, whether something changed, for enqueue and
--            complete; the counters that could not be changed for metrics
-- Publishes  that queue or metrics have changed, with their new version
local pending, processing, metrics, about, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local worker, serial, ttl_ms, prefix, together, kind = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local rest = {}
for i = 7, #ARGV do
  rest[i - 6] = ARGV[i]
end
local present = now[1] * 10000 + math.floor(now[2] / 100)
local over_ms = now_ms + ttl_ms
-- For a second try, an answer is kept for an hour at least.
local keep_ms = math.max(tonumber(ttl_ms), 3600000)

local last, answer = string.match(call("GET", done) or "", "^(%d+) ?(.*)$")
if last and #last < 16 and tonumber(last) >= tonumber(serial) then
  return tonumber(last) == tonumber(serial) and answer ~= "" and { "ok", answer } or { "ok" }
end

local function touch(thing)
  local version = tonumber(parse(call("HGET", about, thing) or "") or 0) + 1
  local text = string.format("%.0f - - 0 %.0f %s 0 - %s\n1", version, now_ms, ttl_ms, worker)
  redis.call("HSET", about, thing, text)
  outlives(about, ttl_ms)
  redis.call("PUBLISH", prefix .. together .. thing, ":" .. thing .. "\n" .. text)
end

-- Return whether a task is in a list, and forget it there if it is over.
local function waits_in(key, task)
  local place = call("ZSCORE", key, task)
  if place and over_at(place) <= now_ms then
    redis.call("ZREM", key, task)
    return false
  end
  return place
end

local function append(key, task)
  local last = call("ZRANGE", key, -1, -1, "WITHSCORES")[2]
  local after = last and over_at(last) > 0 and order_of(last) + 1 or 0
  redis.call("ZADD", key, place_of(math.max(present, after), over_ms), task)
  outlives(key, ttl_ms)
  trim(key, ttl_ms)
end

local change = {}

function change.enqueue()
  if waits_in(pending, rest[1]) or waits_in(processing, rest[1]) then return { 0 } end
  append(pending, rest[1])
  touch("queue")
  return { 1 }
end

function change.dequeue()
  local task, at
  repeat
    task, at = unpack(call("ZPOPMIN", pending))
    if not task then return {} end
  until over_at(at) > now_ms and is_id(task)
  append(processing, task)
  touch("queue")
  return { task }
end

function change.complete()
  if call("ZREM", pending, rest[1]) + call("ZREM", processing, rest[1]) == 0 then return { 0 } end
  touch("queue")
  return { 1 }
end

function change.queue()
  local at = 1
  while rest[at] do
    local key, ids = rest[at] == "pending" and pending or processing, tonumber(rest[at + 1])
    redis.call("DEL", key)
    for i = 1, ids do
      redis.call("ZADD", key, "NX", place_of(present + i, over_ms), rest[at + 1 + i])
    end
    if ids > 0 then outlives(key, ttl_ms) end
    at = at + 2 + ids
  end
  touch("queue")
  return {}
end

function change.metrics()
  local failed = {}
  for at = 1, #rest, 3 do
    local how, counter, json = rest[at], rest[at + 1], rest[at + 2]
    local changed
    if how == "=" then
      changed = type(try("HSET", metrics, counter, json)) ~= "table"
    else
      changed = add_to(metrics, counter, json)
    end
    if not changed then failed[#failed + 1] = counter end
  end
  outlives(metrics, ttl_ms)
  touch("metrics")
  return failed
end

local answers = change[kind]()
redis.call("SET", done, serial .. " " .. tostring(answers[1] or ""), "PX", whole(keep_ms))
return { "ok", unpack(answers) }
