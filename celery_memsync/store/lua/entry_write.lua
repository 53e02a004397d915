-- Store entries, count their versions, set their ttl and tell of them.
--
-- An entry is a header line and a body.  It is kept in a field of a hash, or
-- in a slot of a page: a string of entries, one after the other.  After its
-- last slot a page keeps what earlier runs told, marked "<slot>@".
--
-- The first slot of a task's page holds the stage of its run.  From its rank
-- follow the list in which the task is, and what is counted.
--
-- KEYS[1..n]  owner       hash or page of each entry, one for each write
-- KEYS[n+1]   index       stream of task ids in order of first write
-- KEYS[n+2]   names       sorted set: path of a user's own key by when it is over (ms)
-- KEYS[n+3]   pending     sorted set: task id by its place, see queue_score.lua
-- KEYS[n+4]   processing  the same
-- KEYS[n+5]   metrics     hash of counters
-- KEYS[n+6]   about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- ARGV[1]     n        number of writes
-- ARGV[2]     worker   who writes
-- ARGV[3]     writer   token of the writing process
-- ARGV[4]     index_ttl  ms that an id stays in the index
-- ARGV[5]     slots    most slots of a page
-- ARGV[6]     max_runs  most entries of earlier runs that a page keeps
-- ARGV[7]     prefix   put before a path to make its channel
-- ARGV[8]     together  path of what is in about, up to the last slash
-- ARGV[9]     counters  names of counters by first digit of the rank, each with a comma after it
-- ARGV[10..]  1 for each write: three lines with one word each, a fourth with the others and a space between two, and
--             its body, which is not looked into; "" deletes.
--   where    slot in the page, or ":" and the field in the hash
--   path     the entry's; its changes are told there
--   task     id of the task to which it belongs; "" for a user's own key
--   seen     "<version>@<ms>": which one the writer saw, and when Redis took it; "<version>": that one, whenever;
--            "*": whatever is there; "run": run and rank decide
--   run      the run that tells, sortable; "": the one that is there; "-": none
--   rank     how far along in its run, sortable; "9..." absorbs what comes after
--   fence    of the lock under which it is written; "0" for none
--   time     Redis's time of the write, ms
--   ttl_ms
--   serial   number of the write in its process
--   figure   of a stage with rank "0" or "1": when the task was published, in tenths of a millisecond; of any other:
--            us that the run took; "0" if that is not known
--
-- On a cluster only the owners are given, which are in one slot, and what follows from their entries is answered as a
-- note, for index_apply.lua.
--
-- Returns     {seconds, microseconds, versions, answer..., note}, the note on a cluster only; versions has a comma
--             between two: of each write that was stored its version, of each other "", and one answer
--             {"again", version}  was stored before under this serial
--             {"kept", version}  what is there is further along
--             {"conflict", version, text}  seen is not what is there
--             {"fenced", version}  a newer fence has written
--             {"error", message}  Redis refused
--             What is stored and no entry counts as absent.
-- Publishes   where, header and body on each entry's path; of slots 1 and 2, which make one state, the other's too
local n, writer = tonumber(ARGV[1]), ARGV[3]
local slots, max_runs, counters = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[9]
worker, index_ttl, prefix, together = ARGV[2], tonumber(ARGV[4]), ARGV[7], ARGV[8]
index, names, pending, processing, metrics, about =
  KEYS[n + 1], KEYS[n + 2], KEYS[n + 3], KEYS[n + 4], KEYS[n + 5], KEYS[n + 6]

local KNOWN = "^([^\n]*)\n([^\n]*)\n([^\n]*)\n(%S+) (%S*) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)\n(.*)$"

local tally = {}
for counter in string.gmatch(counters, "([^,]*),") do
  tally[#tally + 1] = counter
end

local function count(counter, by)
  if counter and counter ~= "" then counted[counter] = (counted[counter] or 0) + by end
end

-- Count a stage of a run in place of the one before.
local function count_stage(before, rank, runtime)
  local old = tally[(tonumber(string.sub(before or "", 1, 1)) or -1) + 1]
  local new = tally[(tonumber(string.sub(rank, 1, 1)) or -1) + 1]
  if old == new then return end
  count(old, -1)
  count(new, 1)
  if new and new ~= "" then count("runtime", tonumber(runtime) / 1e6) end
end

-- Note the list to which a stage puts its task.
local function enlist(task, rank, time, ttl_ms, figure)
  local digit = string.sub(rank, 1, 1)
  local new = digit == "0" or digit == "1"
  lists[task] = (new or digit == "4") and "pending" or digit == "2" and "processing" or ""
  orders[task] = new and figure ~= "0" and tonumber(figure) or time * 10
  ends[task] = time + ttl_ms
  if ends[task] <= now_ms then lists[task] = "" end
end

-- Keep what an earlier run told, or a late word of it; not what never ran (rank below "2").
-- Return whether it was kept, and the rank that it replaced.
local function keep_former(entries, slot, run, rank, text)
  if rank < "2" or not entries then return false end
  local mark = slot .. "@"
  for i = slots + 1, #entries do
    local _, srun, srank = parse(string.sub(entries[i], #mark + 1))
    if srun == run and string.sub(entries[i], 1, #mark) == mark then
      if srank < rank then entries[i] = mark .. text end
      return srank < rank, srank
    end
  end
  for i = #entries + 1, slots do entries[i] = "" end
  entries[#entries + 1] = mark .. text
  while #entries > slots + max_runs do table.remove(entries, slots + 1) end
  return true
end

-- Forget what an earlier run told, for it is the present one now; return its rank.
local function drop_former(entries, slot, run)
  local dropped
  for i = #(entries or {}), slots + 1, -1 do
    local _, srun, srank = parse(string.gsub(entries[i], "^%d@", "", 1))
    if string.sub(entries[i], 1, #slot + 1) == slot .. "@" and srun == run then
      table.remove(entries, i)
      dropped = srank
    end
  end
  return dropped
end

-- Note the path of a user's key: once when it is made, and whenever its end has moved on by a ttl.
local function name(path, before, stime, sttl, time, ttl_ms, deleted)
  local over = math.floor((time + ttl_ms) / ttl_ms) + 1
  if deleted then
    named[path] = false
  elseif not before or sttl ~= ttl_ms or string.sub(before, -1) == "\n" or math.floor((stime + sttl) / sttl) + 1 ~= over then
    named[path] = over * ttl_ms
  end
end

-- Return the number of this writer's last write, and the last writes of two others with a comma before each.
local function writes_of(writes)
  if writes == "" then return nil, "" end
  local last, others, count = nil, "", 0
  for id in string.gmatch(writes, "[^,]+") do
    if string.sub(id, 1, #writer + 1) == writer .. "." then
      last = #id < #writer + 17 and tonumber(string.sub(id, #writer + 2)) or nil
    elseif count < 2 then
      others, count = others .. "," .. id, count + 1
    end
  end
  return last, others
end

-- Note once more what follows from a write whose answer, and note, was lost; but for what it counts.
local function note_again(slot, task, path, rank, srank, time, ttl_ms, figure, body)
  if task ~= "" then
    added[#added + 1] = task
    if slot == 1 and rank == srank then enlist(task, rank, time, ttl_ms, figure) end
  elseif slot then
    name(path, nil, nil, nil, time, ttl_ms, body == "")
  end
end

-- Return the text of an entry.
local function entry(version, told, stored_at, time, by, body)
  return string.format("%.0f %s %.0f %s.%s %s\n%s", version, told, stored_at - time, writer, by, worker, body)
end

-- Delete two fields of a hash, chosen at random, if their entries are over: with each field that is added, so that they
-- become no more than those that are not over, and with one in eight of the other writes.
local function drop_expired(owner)
  for _, field in ipairs(redis.call("HRANDFIELD", owner, 2)) do
    local _, _, _, _, time, ttl = parse(redis.call("HGET", owner, field))
    if not time or time + ttl <= now_ms then redis.call("HDEL", owner, field) end
  end
end

-- Put an entry in its slot of a page, or its field of a hash; return whether that hash is new.
local function store(owner, entries, slot, field, text, time, ttl_ms)
  if slot == 1 and #entries < 2 then
    redis.call("SET", owner, text, "PX", ttl_ms)
    return false
  elseif slot then
    for i = #entries + 1, slot - 1 do entries[i] = "" end
    entries[slot] = text
    return join(owner, entries, slots, slot, time + ttl_ms - now_ms)
  end
  local left = redis.call("PTTL", owner)
  local added_field = redis.call("HSET", owner, field, text) == 1
  if left < tonumber(ttl_ms) then redis.call("PEXPIRE", owner, ttl_ms) end
  if added_field or now_ms % 8 == 0 then drop_expired(owner) end
  return left == -2
end

local function write(owner, known)
  local where, path, task, seen, run, rank, fence, time, ttl_ms, serial, figure, body = string.match(known, KNOWN)
  local slot, field = tonumber(where), nil
  local entries, text, page
  if slot then
    page = redis.pcall("GET", owner)
    text = page
  else
    field = string.sub(where, 2)
    text = redis.pcall("HGET", owner, field)
  end
  if type(text) == "table" then
    if not was_foreign(text, owner) then return { "error", text.err } end
    text, page = nil, nil
  end
  if slot then
    entries = split(page or "")
    text = entries[slot]
  end
  local version, srun, srank, sfence, writes, over = 0, "-", "-", "0", "", false
  local stime, sttl, slag
  local v, r, k, f, t, ttl, lag, w
  if text and text ~= "" then v, r, k, f, t, ttl, lag, w = parse(text) end
  if v then
    version, sfence, writes, stime, sttl, slag = tonumber(v), f, w, t, ttl, lag
    over = t + ttl <= now_ms
    if not over then srun, srank = r, k end
  else
    text = nil
  end
  local last, others = writes_of(writes)
  if last and last >= tonumber(serial) then
    if not index then note_again(slot, task, path, rank, srank, time, ttl_ms, figure, body) end
    return { "again", version }
  end
  if fence ~= "0" and tonumber(fence) < tonumber(sfence) then return { "fenced", version } end
  if tonumber(fence) < tonumber(sfence) then fence = sfence end
  if run == "" then run = srun end

  local told, by = run .. " " .. rank .. " " .. fence .. " " .. time .. " " .. ttl_ms, serial .. others

  local staged = slot == 1 and task ~= ""
  local stage_before = staged and not over and run == srun and srank or nil
  if seen == "run" and text and not over then
    local absorbed = string.sub(srank, 1, 1) == "9"
    local follows = not absorbed
      and (string.sub(rank, 1, 1) == "9" or run > srun or run == srun and rank > srank)
    if not follows then
      if run == srun and rank == srank and not absorbed then -- told again: it lives on
        store(owner, entries, slot, field, entry(version, told, stime + slag, time, by, body), time, ttl_ms)
        if staged and rank < "3" then
          enlist(task, rank, time, ttl_ms, figure)
          added[#added + 1] = task
        end
      end
      if run ~= srun and run ~= "-" then
        local kept, replaced = keep_former(entries, where, run, rank, entry(1, told, now_ms, time, by, body))
        if kept then join(owner, entries, slots, 0, 0) end
        if kept and staged then count_stage(replaced, rank, figure) end
      end
      return { "kept", version }
    end
    stage_before = srank
    if run ~= srun and srun ~= "-" then
      stage_before = drop_former(entries, where, run)
      keep_former(entries, where, srun, srank, text)
    end
  elseif seen ~= "run" and seen ~= "*" then
    local wanted, at = string.match(seen, "^(%d+)@?(%d*)$")
    if tonumber(wanted) ~= version or at ~= "" and version > 0 and tonumber(at) ~= stime + slag then
      return { "conflict", version, text }
    end
  end

  local stored = entry(version + 1, told, now_ms, time, by, body)
  local is_new = store(owner, entries, slot, field, stored, time, ttl_ms) or slot and not page
  local other = entries and slot < 3 and entries[3 - slot] or ""
  redis.call("PUBLISH", prefix .. path,
    where .. "\n" .. stored .. ((other == "" or other == "\n") and "" or "\n" .. other))
  if staged then
    if not text or over then count("total", 1) end
    count_stage(stage_before, rank, figure)
    enlist(task, rank, time, ttl_ms, figure)
  end
  if task == "" and entries or task ~= "" and tonumber(ttl_ms) > index_ttl then
    name(path, text, stime, sttl, time, ttl_ms, body == "")
  end
  if task ~= "" and (is_new or stime and math.floor(2 * stime / index_ttl) ~= math.floor(2 * time / index_ttl)) then
    added[#added + 1] = task
  end
  return version + 1
end

local answers, versions = { tonumber(now[1]), tonumber(now[2]), "" }, {}
for i = 1, n do
  local answer = write(KEYS[i], ARGV[i + 9])
  local stored = type(answer) == "number"
  versions[i] = stored and whole(answer) or ""
  if not stored then answers[#answers + 1] = answer end
end
answers[3] = table.concat(versions, ",")
if index then keep() else answers[#answers + 1] = note() end
return answers
