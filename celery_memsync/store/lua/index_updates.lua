-- What follows from entries: the index of tasks, the names of users' keys, the lists of the queue, what is counted; put
-- before entry_write.lua and index_apply.lua.
--
-- On a cluster it is in another slot than the entries, and on a node with another clock.  So times are counted from now.
-- It travels as index updates: the tables here, packed and unpacked by these functions, and read by no other program.

-- Set by the script, from its keys and arguments; channels is what stands before "queue" and "metrics" in their channels.
local worker, index_ttl, channels
local index, names, pending, processing, metrics, about
-- Tasks that go into the index; those that do unless they are known to be in it.
local added, doubted = {}, {}
-- What the stages of tasks come to: list, order in it (tenths of ms: since the epoch, or from now if it is below EPOCH),
-- and ms until they expire in it, by task id; counters by name.
local lists, orders, expiries, counted = {}, {}, {}, {}
local EPOCH = 1e12
-- Users' keys that were made, moved on by a ttl, or deleted: ms until they expire, or false, by path.
local named = {}
-- Which state of its entry each list and name follows from, by task id or path; a later state has a greater number.
local states = {}

-- Most tasks of an item of the index; items that stay in the index when it begins anew.
local PER_ITEM, KEPT = 8, 500

-- Note which state of an entry what follows from it, if that travels: when that is taken to be stored (ms), and its version.
local function note_state(thing, stored_ms, version)
  if not index then states[thing] = stored_ms * 1024 + version % 1024 end
end

-- Return the scores of members of a sorted set, false of those that it lacks, in one command for many of them.
local function scores_in(key, members)
  local scores = {}
  for first = 1, #members, 1000 do
    local last = math.min(first + 999, #members)
    local some = try("ZMSCORE", key, unpack(members, first, last))
    for i = first, last do scores[members[i]] = not some.err and some[i - first + 1] or false end
  end
  return scores
end

local function update_lists()
  local changed, longest = false, 1
  for list, key in pairs({ pending = pending, processing = processing }) do
    local out, wanted, into, left = {}, {}, {}, 0
    for task, its_list in pairs(lists) do
      if its_list == list then wanted[#wanted + 1] = task else out[#out + 1] = task end
    end
    -- A task that is there keeps its order; it only expires later.
    for task, score in pairs(scores_in(key, wanted)) do
      local order = score and expires_at(score) > 0 and order_of(score) or orders[task]
      if order < EPOCH then order = order + now_ms * 10 end
      into[#into + 1] = score_of(order, now_ms + expiries[task])
      into[#into + 1] = task
      left = math.max(left, expiries[task])
    end
    if #out > 0 then changed = try("ZREM", key, unpack(out)) ~= 0 or changed end
    if #into > 0 then
      changed = try("ZADD", key, unpack(into)) ~= 0 or changed
      outlives(key, left)
      longest = math.max(longest, left)
      trim(key, index_ttl)
    end
  end
  if changed then touch(about, "queue", channels, worker, index_ttl, math.max(longest, index_ttl)) end
end

local function update_names()
  local into, out, left = {}, {}, 0
  for path, expires in pairs(named) do
    if expires then
      into[#into + 1] = whole(now_ms + expires)
      into[#into + 1] = path
      left = math.max(left, expires)
    else
      out[#out + 1] = path
    end
  end
  if #out > 0 then try("ZREM", names, unpack(out)) end
  if #into > 0 then
    try("ZADD", names, unpack(into))
    -- More than were added, so that all that have expired are removed in the end.
    local gone = try("ZRANGEBYSCORE", names, "-inf", "(" .. whole(now_ms), "LIMIT", 0, 10 + #into)
    if #gone > 0 then redis.call("ZREM", names, unpack(gone)) end
    try("ZREMRANGEBYSCORE", names, whole(now_ms + 3 * LONGEST), "+inf")
    outlives(names, left)
  end
end

local function update_counters()
  for counter, by in pairs(counted) do
    if counter == "runtime" then
      add_to(metrics, counter, string.format("%.6f", by))
    elseif by ~= 0 then
      add_to(metrics, counter, whole(by))
    end
  end
  if next(counted) then
    redis.call("PEXPIRE", metrics, whole(index_ttl))
    touch(about, "metrics", channels, worker, index_ttl, index_ttl)
  end
end

-- Let the index begin anew, with the last tasks that are in it; return how many there were.
local function renew_index()
  local rows = try("XREVRANGE", index, "+", "-", "COUNT", KEPT)
  redis.call("DEL", index)
  for i = #rows, 1, -1 do
    local fields = rows[i][2]
    if #fields == 2 and fields[1] == "ids" then try("XADD", index, "*", "ids", fields[2]) end
  end
  return #rows
end

-- Add an item to the index.  After an id of the future, of another program or from before the clock was set back, no item
-- could be trimmed, or added at all.
local function add_item(...)
  local at = try("XADD", index, ...)
  local is_last = type(at) == "table" and (string.find(at.err, "XADD", 1, true) or string.find(at.err, "stream", 1, true))
  if is_last or type(at) == "string" and tonumber(string.match(at, "^%d+")) > now_ms + AHEAD then
    if renew_index() == 0 or is_last then try("XADD", index, ...) end
  end
end

local function update_index()
  for first = 1, #added, PER_ITEM do
    local last = math.min(first + PER_ITEM - 1, #added)
    local ids = table.concat(added, "\n", first, last)
    if last < #added then
      add_item("*", "ids", ids)
    else -- Once is enough for all of them.
      add_item("MINID", "~", whole(now_ms - index_ttl), "*", "ids", ids)
      redis.call("PEXPIRE", index, whole(index_ttl))
    end
  end
end

-- Write all of it.  What can't be written of it, for a right is missing, keeps nothing from the rest.
local function apply_updates()
  pcall(update_index)
  if next(named) then pcall(update_names) end
  if next(lists) then pcall(update_lists) end
  if next(counted) then pcall(update_counters) end
  if next(member_sets) then pcall(update_members, index_ttl) end
  if is_counted() then pcall(update_statistics) end
end

-- Return all of it as index updates, "" if there is nothing: what index_apply.lua reads.  Each task is there once, what many
-- have in common is one text, and what few have comes last, because reading them is most of what they cost.
local function pack_updates()
  local is_added, row, others, paths = {}, { "", "" }, {}, {}
  for _, task in ipairs(added) do
    is_added[task] = true
    if not lists[task] then others[#others + 1] = task end
  end
  for task, list in pairs(lists) do
    local at = #row
    row[at + 1], row[at + 2], row[at + 3] = task, states[task], list
    row[at + 4], row[at + 5], row[at + 6] = orders[task], expiries[task], is_added[task] or false
  end
  for path, expires in pairs(named) do
    local at = #paths
    paths[at + 1], paths[at + 2], paths[at + 3] = path, states[path], expires
  end
  if is_counted() or next(counted) then row[1] = cmsgpack.pack({ counted, record_counts, exception_counts }) end
  if others[1] or doubted[1] or paths[1] or next(member_sets) then
    row[2] = cmsgpack.pack({ others, doubted, paths, member_sets })
  end
  if row[1] == "" and row[2] == "" and not row[3] then return "" end
  return cmsgpack.pack(row)
end

-- Return index updates, or a part of them that is packed by itself, as a table.
local function unpack_updates(text)
  return cmsgpack.unpack(text)
end

