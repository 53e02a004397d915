-- Put entries back as they were, at another time or in another Redis, unless newer ones are there.
--
-- What is newer: of stages and progress the later run, and in it what is further along; of anything else what was told
-- later, and if that is nearly the same, for clocks differ a little, what has the higher version.  A version never goes back: where it would, the next one is taken.  An entry keeps its time, and lives for as long
-- as was left of it.  Nothing is counted again; the lists of the queue and the indexes come to hold what is put back.
--
-- KEYS[1..n]  owner       hash or page of each entry
-- KEYS[n+1]   index       stream of task ids in order of first write
-- KEYS[n+2]   names       sorted set: path of a user's own key by when it is over (ms)
-- KEYS[n+3]   pending     sorted set: task id by its place, see places.lua
-- KEYS[n+4]   processing  the same
-- KEYS[n+5]   about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[n+6]   beats       sorted set: token and id of each worker by when it is lost, see worker_beat.lua
-- ARGV[1]     n        number of entries
-- ARGV[2]     horizon  ms that an id stays in the index
-- ARGV[3]     slots    most slots of a page
-- ARGV[4]     formers  most entries of earlier runs that a page keeps
-- ARGV[5]     prefix   put before a path to make its channel
-- ARGV[6]     together  path of what is in about, up to the last slash
-- ARGV[7..]            14 for each entry:
--   where    slot in the page, "<slot>@" for what an earlier run told, or ":" and the field in the hash
--   path, task, version, run, rank, fence, time: as entry_write.lua has them
--   left_ms  how long it lives from now on
--   writes   last write of each of its last writers
--   worker   who wrote it
--   figure   of a stage with rank "0" or "1": when the task was published, in tenths of a millisecond; else "0"
--   due      of a heartbeat: ms from now after which the worker is lost unless it beats; negative: when it was lost, or
--            has said goodbye; "-": of anything else
--   body     not looked into
--
-- Returns     {seconds, microseconds, answer...}, for each entry one of
--             {"ok", version}
--             {"same", version}  it is there already
--             {"newer", version}  a newer one is there
--             {"error", message}  Redis refused
-- Publishes   where, header and body on each entry's path, as entry_write.lua; that the queue has changed
local n, horizon, slots, formers = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local prefix, together = ARGV[5], ARGV[6]
local index, names, pending, processing, about, beats =
  KEYS[n + 1], KEYS[n + 2], KEYS[n + 3], KEYS[n + 4], KEYS[n + 5], KEYS[n + 6]
-- Times, in ms, that are not told apart.
local CLOSE = 100
local queued = false

local function outlives(key, ms)
  if redis.call("PTTL", key) < ms then redis.call("PEXPIRE", key, whole(ms)) end
end

-- Put a task into the list where its stage belongs, if an order is given, and take it out of others.
local function enlist(task, rank, order, left_ms)
  local digit = string.sub(rank, 1, 1)
  local list = (digit == "0" or digit == "1" or digit == "4") and pending or digit == "2" and processing
  for _, key in ipairs({ pending, processing }) do
    if key ~= list then
      queued = redis.pcall("ZREM", key, task) == 1 or queued
    elseif order then
      local there = redis.pcall("ZSCORE", key, task)
      order = type(there) == "string" and order_of(there) or order
      queued = redis.pcall("ZADD", key, place_of(order, now_ms + left_ms), task) == 1 or queued
      outlives(key, left_ms)
    end
  end
end

-- Return whether what is stored goes before what is to be put back.
local function is_newer(run, rank, time, version, srun, srank, stime, sversion)
  if rank ~= "-" and srank ~= "-" and (run ~= srun or rank ~= srank) then
    if string.sub(srank, 1, 1) == "9" or string.sub(rank, 1, 1) == "9" then return string.sub(srank, 1, 1) == "9" end
    return srun > run or srun == run and srank > rank
  end
  if math.abs(stime - time) <= CLOSE and sversion ~= version then return sversion > version end
  return stime >= time
end

-- Put what an earlier run told behind the slots, unless it is there.
local function restore_former(entries, mark, run, text)
  for i, one in ipairs(entries) do
    local its, rest = string.match(one, "^(%d@)(.*)$")
    local _, its_run = parse(rest or one)
    if its_run == run and (its or i .. "@") == mark then return false end
  end
  for i = #entries + 1, slots do entries[i] = "" end
  entries[#entries + 1] = mark .. text
  if #entries > slots + formers then table.remove(entries, slots + 1) end
  return true
end

local function restore(owner, where, path, task, version, run, rank, fence, time, left_ms, writes, worker, figure, due, body)
  local slot, field, is_former = tonumber(where), string.sub(where, 2), string.match(where, "^%d@$")
  local entries, text, there
  if slot or is_former then
    text = redis.pcall("GET", owner)
  else
    text = redis.pcall("HGET", owner, field)
  end
  if type(text) == "table" then return { "error", text.err } end
  version, time, left_ms = tonumber(version), math.min(time, now_ms), tonumber(left_ms)
  local ttl_ms = now_ms - time + left_ms
  local function entry()
    local figures = whole(version) .. " " .. run .. " " .. rank .. " " .. fence .. " " .. whole(time) .. " " .. whole(ttl_ms)
    return figures .. " " .. whole(now_ms - time) .. " " .. writes .. " " .. worker .. "\n" .. body
  end
  if slot or is_former then
    entries, there = split(text or ""), text
    text = entries[slot]
  end
  if is_former then
    if not restore_former(entries, where, run, entry()) then return { "same", version } end
    join(owner, entries, 0, 0)
    return { "ok", version }
  end
  if text and text ~= "" then
    local v, srun, srank, sfence, stime, sttl = parse(text)
    if not v then return { "error", "what is stored is no entry" } end
    v, stime = tonumber(v), tonumber(stime)
    local stored = string.match(text, "\n(.*)$") or ""
    if stored ~= "" and stime + sttl > now_ms then
      if stime == time and stored == body then return { "same", v } end
      if is_newer(run, rank, time, version, srun, srank, stime, v) then
        if slot == 1 and task ~= "" then enlist(task, srank) end
        return { "newer", v }
      end
    end
    version = math.max(version, v + 1)
    if tonumber(sfence) > tonumber(fence) then fence = sfence end
  end

  local restored = entry()
  if entries then
    entries[slot] = restored
    for i = 1, slots do entries[i] = entries[i] or "" end
    join(owner, entries, slot, left_ms)
  else
    there = redis.call("PTTL", owner) ~= -2
    redis.call("HSET", owner, field, restored)
    outlives(owner, left_ms)
  end
  local other = entries and slot < 3 and entries[3 - slot] or ""
  redis.call("PUBLISH", prefix .. path,
    where .. "\n" .. restored .. ((other == "" or other == "\n") and "" or "\n" .. other))
  if slot == 1 and task ~= "" then enlist(task, rank, figure ~= "0" and tonumber(figure) or time * 10, left_ms) end
  if task == "" and entries or task ~= "" and ttl_ms > horizon then
    local over = math.floor((time + ttl_ms) / ttl_ms) + 1
    redis.pcall("ZADD", names, whole(over * ttl_ms), path)
    outlives(names, over * ttl_ms - now_ms)
  end
  if task ~= "" and not there then
    redis.pcall("XADD", index, "MINID", "~", whole(now_ms - horizon), "*", "id", task)
    outlives(index, horizon)
  end
  if due ~= "-" then
    local id = string.match(field, "^(.*)/heartbeat$") or field
    redis.pcall("ZADD", beats, "NX", whole(tonumber(due) < 0 and due or now_ms + due), writes .. " " .. id)
    outlives(beats, left_ms)
  end
  return { "ok", version }
end

-- Count the version of the queue, and tell that it has changed; when it was told last stays.
local function touch_queue()
  local before = redis.pcall("HGET", about, "queue")
  local version, time, ttl_ms = string.match(type(before) == "string" and before or "", "^(%d+) %S+ %S+ %d+ (%d+) (%d+) ")
  version, time, ttl_ms = version or 0, time or now_ms, math.max(ttl_ms or 0, horizon)
  local text = string.format("%d - - 0 %.0f %.0f %.0f - -\n1", version + 1, time, ttl_ms, now_ms - time)
  redis.pcall("HSET", about, "queue", text)
  outlives(about, horizon)
  redis.call("PUBLISH", prefix .. together .. "queue", ":queue\n" .. text)
end

local answers = { tonumber(now[1]), tonumber(now[2]) }
for i = 1, n do
  answers[i + 2] = restore(KEYS[i], unpack(ARGV, 14 * i - 7, 14 * i + 6))
end
if queued then touch_queue() end
return answers
