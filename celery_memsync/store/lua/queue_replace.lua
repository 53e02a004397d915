-- Replace the lists of the queue that are named, once.
--
-- Many ids come in several calls, so that none holds Redis for long: each adds some to new lists beside the old ones, and
-- the last one puts the new lists in their place.  All calls of one change, and of second tries, add to the same new
-- lists in the same order.
--
-- KEYS[1]  pending         sorted set: task id by its score, see queue_score.lua
-- KEYS[2]  processing      the same
-- KEYS[3]  about           hash: an entry for each of "queue" and "metrics", which counts their versions; "replaced": when
-- KEYS[4]  done            hash: numbers and answers of changes by this script, for a second try
-- KEYS[5]  new_pending     the new list, while it is made
-- KEYS[6]  new_processing  the same
-- ARGV[1]  worker    who changes
-- ARGV[2]  serial    number of the change; a second try has the same
-- ARGV[3]  ttl_ms    how long the tasks stay
-- ARGV[4]  prefix    put before a path to make its channel
-- ARGV[5]  together  path of what is in about, up to the last slash
-- ARGV[6]  last      "1" if no more ids follow
-- ARGV[7..]  for each list: its name, "pending" or "processing"; how many ids the new list is to have in the end; how many
--            are added now; these ids, no id twice
--
-- Returns    {"ok"}; {"again"}: an earlier try did it; {"forgotten"}: one may have; an error: nothing is replaced
-- Publishes  that the queue has changed, with its new version, when it has
local pending, processing, about, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, serial, ttl_ms, channels, last = ARGV[1], ARGV[2], ARGV[3], ARGV[4] .. ARGV[5], ARGV[6]
local earlier = earlier_answer(done, serial)
if earlier then return earlier end

-- A new list that is not completed expires after so many ms.
local MAKING = 60000

-- Add ids behind those that a new list has; those that it has already stay where they are.
local function add(new, from, to)
  local behind = call("ZRANGE", new, -1, -1, "WITHSCORES")[2]
  local order = behind and order_of(behind) or present_order()
  local row = {}
  for i = from, to do
    row[#row + 1] = score_of(order + i - from + 1, now_ms + ttl_ms)
    row[#row + 1] = ARGV[i]
  end
  redis.call("ZADD", new, "NX", unpack(row))
  redis.call("PEXPIRE", new, MAKING)
end

local lists = {}
local at = 7
while ARGV[at] do
  local own, new = pending, KEYS[5]
  if ARGV[at] == "processing" then own, new = processing, KEYS[6] end
  local size, ids = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if ids > 0 then add(new, at + 3, at + 2 + ids) end
  lists[#lists + 1] = { own = own, new = new, size = size }
  at = at + 3 + ids
end
if last ~= "1" then return { "ok" } end

for _, list in ipairs(lists) do
  if call("ZCOUNT", list.new, "-inf", "+inf") ~= list.size then
    return redis.error_reply("ERR the new list of the queue was lost while it was made")
  end
end
for _, list in ipairs(lists) do
  redis.call("UNLINK", list.own)
  if list.size > 0 then
    redis.call("RENAME", list.new, list.own)
    redis.call("PEXPIRE", list.own, whole(ttl_ms))
  end
end
touch(about, "queue", channels, worker, ttl_ms, ttl_ms)
redis.call("HSET", about, "replaced", whole(now[1] * 1e6 + now[2]))
return keep_answer(done, serial, ttl_ms)
