-- Store entries, count their versions, set their ttl and publish them.
--
-- An entry is kept in a field of a hash, or in a slot of a record, see
-- entry_format.lua.
--
-- The first slot of a task record holds the stage of its run.  From its rank
-- follow the list in which the task is, and what is counted.
--
-- KEYS[1..n]  key         hash or record of each entry, one for each write
-- KEYS[n+1]   index       stream of task ids in order of first write
-- KEYS[n+2]   names       sorted set: path of a user's own key by when it expires (ms)
-- KEYS[n+3]   pending     sorted set: task id by its score, see queue_score.lua
-- KEYS[n+4]   processing  the same
-- KEYS[n+5]   metrics     hash of counters
-- KEYS[n+6]   about       hash: an entry for each of "queue" and "metrics", which counts their versions
-- KEYS[n+7]   statistics  sorted set of the records of statistics, see statistics.lua
-- KEYS[n+8]   clock       string: high-water mark, see hybrid_clock.lua
-- KEYS[n+9..]  members    sorted sets of groups and workflows, see members.lua; records of statistics
-- ARGV[1]     n        number of writes
-- ARGV[2]     worker   who writes
-- ARGV[3]     writer   token of the writing process
-- ARGV[4]     index_ttl  ms that an id stays in the index
-- ARGV[5]     slots    most slots of a record
-- ARGV[6]     max_runs  most entries of earlier runs that a record keeps
-- ARGV[7]     prefix   put before a path to make its channel
-- ARGV[8]     together  path of what is in about, up to the last slash
-- ARGV[9]     counters  names of counters by first digit of the rank, each with a comma after it
-- ARGV[10]    made     Redis's time when the call was made, ms, as the writer knows it
-- ARGV[11]    lines    to which words of writes refer, see statistics.lua, each with a line feed after it
-- ARGV[12]    serials  of each write its number in its process and that of its words, with a space after each
-- ARGV[13..n+12]  body  of each write.  It is not looked into; "" deletes.
-- ARGV[n+13]  m        number of words
-- ARGV[n+14..n+m+13]  words  of one or more writes: six lines, in the fifth a space between two:
--   time     Redis's time when the writes were made, ms, as the writer knows it
--   where    slot in the record, or ":" and the field in the hash
--   path     the entry's, or "" if that is its key; its changes are published there
--   task     id of the task to which it belongs; "" for a user's own key
--   seen     "<version>@<ms>": which one the writer saw, and when Redis took it; "<version>": that one, whenever;
--            "*": whatever is there; "run": run and rank decide
--   run      run key of the run that writes, see run_order.lua; "": the one that is there; "-": none
--   rank     how far along in its run, sortable; "9..." absorbs what comes after; an equal one follows in the third slot
--   fence    of the lock under which it is written; "0" for none
--   ttl_ms
--   figure   of a stage with rank "0" or "1": when the task was published, in tenths of a millisecond; of any other:
--            us that the run took; "0" if that is not known
--   wait     us that the run has waited; "0" if that is not counted
--   counts   of a stage: five words, see run_words in statistics.lua; "" else
-- ARGV[n+m+14..]  1 for each set of members, see members.lua
--
-- On a cluster only the keys of the entries are given, which are in one slot, and what follows from the entries is
-- returned as index updates, for index_apply.lua.
--
-- Returns     {seconds, microseconds, versions, answer..., updates}, the updates on a cluster only; versions has a comma
--             between two: of each write that was stored its version, with "@" and the time as which it is stored (ms) if
--             that is another one, and of each other "", and one answer
--             {"unpublished", version, ms}  was stored at that time, but this user may not publish it
--             {"again", version, writes}  was stored before under this serial, or a later one; the last writes now
--             {"kept", version}  what is there is further along
--             {"conflict", version, text}  seen is not what is there; and 1 behind it: that is of an earlier run
--             {"fenced", version}  a newer fence has written
--             {"error", message}  Redis refused; others of the call go on, but for later ones of the same entry
--             Of a replica, which takes nothing, that message is an error of the whole call.
--             What is stored and no entry counts as absent.
-- Publishes   where, header and body on each entry's path, of slots 1 and 2, which make one state, the other's too; that
--             queue or metrics have changed, with their new version, but on a cluster
local n, writer = tonumber(ARGV[1]), ARGV[3]
local slots, max_runs, counters = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[9]
local prefix = ARGV[7]
worker, index_ttl, channels = ARGV[2], tonumber(ARGV[4]), prefix .. ARGV[8]
index, names, pending, processing, metrics, about, statistics =
  KEYS[n + 1], KEYS[n + 2], KEYS[n + 3], KEYS[n + 4], KEYS[n + 5], KEYS[n + 6], KEYS[n + 7]
local clock = KEYS[n + 8]

-- Most ms by which what a writer takes for Redis's time may be wrong, unless the clock was set; and how far it was set.
local UNNOTICED = 1000
local set_by = ARGV[10] - now_ms
if math.abs(set_by) <= UNNOTICED then set_by = 0 end

-- The words of writes, by their number: many of a call have the same.
local WORDS = "^(%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(%S+) (%S*) (%S+) (%S+) (%S+) (%S+) (%S+)\n(.*)$"
local words = setmetatable({}, { __index = function(known, at)
  local given = { string.match(ARGV[13 + n + at], WORDS) }
  local time = given[1]
  -- A writer that does not know yet that the clock was set knows how long ago it was.
  if set_by ~= 0 or time - now_ms > UNNOTICED then given[1] = whole(math.min(time - set_by, now_ms)) end
  known[at] = given
  return given
end })

local tally = {}
for counter in string.gmatch(counters, "([^,]*),") do
  tally[#tally + 1] = counter
end

local function count(counter, by)
  if counter and counter ~= "" then counted[counter] = (counted[counter] or 0) + by end
end

-- Count a stage of a run in place of the one before; is_first: it is the first that is known of its task.
local function count_stage(before, rank, runtime, wait, counts, is_first)
  local was, is = tonumber(string.sub(before or "", 1, 1)) or -1, tonumber(string.sub(rank, 1, 1)) or -1
  if counts ~= "" then count_run(counts, is_first, was, is, runtime, wait) end
  local old, new = tally[was + 1], tally[is + 1]
  if old == new then return end
  count(old, -1)
  count(new, 1)
  if new and new ~= "" then count("runtime", tonumber(runtime) / 1e6) end
end

-- Update the list in which a task is, from its stage.
local function enlist(task, rank, time, ttl_ms, figure)
  local digit = string.sub(rank, 1, 1)
  local new = digit == "0" or digit == "1"
  lists[task] = (new or digit == "4") and "pending" or digit == "2" and "processing" or ""
  orders[task] = new and figure ~= "0" and tonumber(figure) or (time - now_ms) * 10
  expiries[task] = time + ttl_ms - now_ms
  if expiries[task] <= 0 then lists[task] = "" end
end

-- Remove the oldest entry of an earlier run, but rather one of a chain that others know, too: a write of a chain that is
-- forgotten would begin a new one.
local function drop_oldest(entries)
  local chains, count = {}, {}
  for i, entry in ipairs(entries) do
    local _, run = parse(string.gsub(entry, "^%d@", "", 1))
    local _, _, chain = numbers_of(run or "")
    chains[i] = chain
    if chain then count[chain] = (count[chain] or 0) + 1 end
  end
  local oldest = slots + 1
  for i = #entries, slots + 1, -1 do
    if (count[chains[i]] or 2) > 1 then oldest = i end
  end
  table.remove(entries, oldest)
end

-- Keep an entry of another run than the present one, also one that comes late.  Of a run that never began (rank below "2") only
-- the header is kept, if its number is not known without.  Return whether it was kept, and the rank that it replaced.
local function keep_former(entries, slot, run, rank, text, present)
  if not entries then return false end
  if rank < "2" then
    if not has_own_number(run, present) then return false end
    text = string.match(text, "^[^\n]*\n")
  end
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
  while #entries > slots + max_runs do drop_oldest(entries) end
  return true
end

-- Remove the entry of an earlier run, for that is the present one now; return its rank.
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

-- Return a run key as it is stored, from the runs in the other entries of its record if need be.
local function run_in(entries, own, run_key)
  if own and string.sub(own, -#run_key - 1) == ":" .. run_key then return own end
  local known = { own }
  for _, entry in ipairs(entries or {}) do
    local _, run = parse(string.gsub(entry, "^%d@", "", 1))
    known[#known + 1] = run
  end
  return numbered(run_key, known)
end

-- Return in how many ms the name of a user's key expires: in whole ttls, so that few writes move it on.
local function name_expiry(time, ttl_ms)
  return (math.floor((time + ttl_ms) / ttl_ms) + 1) * ttl_ms - now_ms
end

-- Update the name of a user's key: once when it is made, and whenever it expires later by a ttl.
local function update_name(path, before, stime, sttl, time, ttl_ms, deleted)
  local expires = name_expiry(time, ttl_ms)
  if deleted then
    named[path] = false
  elseif not before or sttl ~= ttl_ms or string.sub(before, -1) == "\n" or name_expiry(stime, sttl) ~= expires then
    named[path] = expires
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

-- Update once more what follows from a write whose answer, and index updates, were lost; but for what it counts.
local function update_again(slot, task, path, rank, srank, time, ttl_ms, figure, body, stored_ms, version)
  note_state(task ~= "" and task or path, stored_ms, version)
  if task ~= "" then
    added[#added + 1] = task
    if slot == 1 and rank == srank then enlist(task, rank, time, ttl_ms, figure) end
  elseif slot then
    update_name(path, nil, nil, nil, time, ttl_ms, body == "")
  end
end

-- Delete two fields of a hash, chosen at random, if their entries have expired: with each field that is added, so that
-- they become no more than the others, and with one in eight of the other writes.
local function drop_expired(key)
  for _, field in ipairs(redis.call("HRANDFIELD", key, 2)) do
    local _, _, _, _, time, ttl = parse(redis.call("HGET", key, field))
    if not time or time + ttl <= now_ms then redis.call("HDEL", key, field) end
  end
end

-- Put an entry in its slot of a record, or its field of a hash; return whether that hash is new.
local function store(key, entries, slot, field, text, time, ttl_ms)
  if slot == 1 and #entries < 2 then
    redis.call("SET", key, text, "PX", ttl_ms)
    return false
  elseif slot then
    for i = #entries + 1, slot - 1 do entries[i] = "" end
    entries[slot] = text
    return join(key, entries, slots, slot, time + ttl_ms - now_ms)
  end
  local left = redis.call("PTTL", key)
  local added_field = redis.call("HSET", key, field, text) == 1
  -- It is stored by now, whatever becomes of the rest.
  if left < tonumber(ttl_ms) then redis.pcall("PEXPIRE", key, ttl_ms) end
  if added_field or now_ms % 8 == 0 then pcall(drop_expired, key) end
  return left == -2
end

-- Ranks: a run that has begun; one that was revoked before it was known to have begun, which it may have.
local STARTED, REVOKED_WAITING = "2", "50"

-- The slot of a task's progress.
local PROGRESS = 3

-- When an entry is taken to be stored (ms): never earlier than any before in this namespace, or on a cluster than the one
-- before of its key, whatever Redis's clock says.
local clock_ms
local function stored_ms_after(before)
  if not clock_ms then clock_ms = clock and math.floor(tick(clock, 0) / 1000) or now_ms end
  return math.max(clock_ms, before)
end

-- Return what entries of users' keys that their writers have not seen come to, or false if the words are of others: what is
-- stored before and behind the serial, when they expire as names, and what is answered.
local function plan_new(given)
  local time, where, path, task, seen, run, rank, fence, ttl_ms = unpack(given)
  if seen ~= "0@0" or where ~= "1" or path ~= "" or task ~= "" or run ~= "" then return false end
  local stored_ms = stored_ms_after(0)
  local text = header(1, "-", rank, fence, time, ttl_ms, stored_ms - time, writer .. ".\n", worker)
  local first, last = string.match(text, "^(.*)\n(.*)$")
  local version = stored_ms == now_ms and "1" or "1@" .. whole(stored_ms)
  return { first, last .. "\n", name_expiry(time, ttl_ms), version, stored_ms }
end

-- Write a user's key that is new, which SET finds out by itself, and return what is answered; false if it is not.
local function write_new(key, given, serial, body)
  local plan = given.plan
  if plan == nil then
    plan = plan_new(given)
    given.plan = plan
  end
  if not plan then return false end
  local stored = plan[1] .. serial .. plan[2] .. body
  if not redis.call("SET", key, stored, "PX", given[9], "NX") then return false end
  local published = publish(prefix .. key, "1\n" .. stored)
  note_state(key, plan[5], 1)
  named[key] = body ~= "" and plan[3]
  return published and plan[4] or { "unpublished", 1, whole(plan[5]) }
end

-- Write one entry and return what is answered.
local function write(key, at, serial, body)
  local given = words[at]
  local answer = write_new(key, given, serial, body)
  if answer then return answer end
  local time, where, path, task, seen, run, rank, fence, ttl_ms, figure, wait, counts = unpack(given)
  if path == "" then path = key end
  local slot, field = tonumber(where), nil
  local entries, text, record
  if slot then
    record = redis.pcall("GET", key)
    text = record
  else
    field = string.sub(where, 2)
    text = redis.pcall("HGET", key, field)
  end
  if type(text) == "table" then
    if not was_foreign(text, key) then return { "error", text.err } end
    text, record = nil, nil
  end
  if slot then
    entries = split(record or "")
    text = entries[slot]
  end
  local version, srun, srank, sfence, writes, expired = 0, "-", "-", "0", "", false
  local stime, sttl
  local before_ms = 0 -- when it is taken to be stored
  local v, r, k, f, t, ttl, lag, w
  if text and text ~= "" then v, r, k, f, t, ttl, lag, w = parse(text) end
  if v then
    version, sfence, writes, stime, sttl, before_ms = tonumber(v), f, w, tonumber(t), ttl, t + lag
    expired = stime + ttl <= now_ms
    if not expired then srun, srank = r, k end
  else
    text = nil
  end
  local last, others = writes_of(writes)
  if last and last >= tonumber(serial) then
    if slot == 1 and task ~= "" then note_member(task, rank, time + ttl_ms - now_ms) end
    if not index then update_again(slot, task, path, rank, srank, time, ttl_ms, figure, body, before_ms, version) end
    return { "again", version, writes }
  end
  if fence ~= "0" and tonumber(fence) < tonumber(sfence) then return { "fenced", version } end
  if tonumber(fence) < tonumber(sfence) then fence = sfence end
  run = run == "" and srun or run_in(entries, r, run)

  writes = writer .. "." .. serial .. others

  local staged = slot == 1 and task ~= ""
  local stage_before = staged and not expired and run == srun and srank or nil
  if seen == "run" and text and not expired then
    local absorbed = string.sub(srank, 1, 1) == "9"
    -- Of two texts at the same progress the one that comes later counts.
    local follows = not absorbed and (string.sub(rank, 1, 1) == "9" or is_later(run, srun)
      or run == srun and (rank > srank or slot == PROGRESS and rank == srank
        or slot == 1 and srank == REVOKED_WAITING and rank >= STARTED))
    if not follows then
      if run == srun and rank == srank and not absorbed then -- written again: it lives on
        local stored = header(version, run, rank, fence, time, ttl_ms, before_ms - time, writes, worker) .. "\n" .. body
        store(key, entries, slot, field, stored, time, ttl_ms)
        if staged and rank < "3" then
          note_state(task, before_ms, version)
          enlist(task, rank, time, ttl_ms, figure)
          note_member(task, rank, expiries[task])
          added[#added + 1] = task
        end
      end
      -- The one that wrote it first may have been killed before it sent its index updates.
      if staged and not index and run == srun and rank == srank and rank >= "3" then
        note_state(task, before_ms, version)
        enlist(task, rank, time, ttl_ms, figure)
      end
      if run ~= srun and run ~= "-" then
        local former = header(1, run, rank, fence, time, ttl_ms, now_ms - time, writes, worker) .. "\n" .. body
        local kept, replaced = keep_former(entries, where, run, rank, former, srun)
        if kept then join(key, entries, slots, 0, 0) end
        if kept and staged then count_stage(replaced, rank, figure, wait, counts) end
      end
      return { "kept", version }
    end
    stage_before = srank
    if run ~= srun and srun ~= "-" then
      stage_before = drop_former(entries, where, run)
      keep_former(entries, where, srun, srank, text, run)
    end
  elseif seen ~= "run" and seen ~= "*" then
    local there = whole(version)
    if seen ~= there and seen ~= there .. "@" .. whole(before_ms) then
      return { "conflict", version, text, text and is_later(run, srun) and 1 or nil }
    end
  end

  local stored_ms = stored_ms_after(before_ms)
  local stored = header(version + 1, run, rank, fence, time, ttl_ms, stored_ms - time, writes, worker) .. "\n" .. body
  local is_new = store(key, entries, slot, field, stored, time, ttl_ms) or slot and not record
  local other = entries and slot < 3 and entries[3 - slot] or ""
  local published = publish(prefix .. path,
    where .. "\n" .. stored .. ((other == "" or other == "\n") and "" or "\n" .. other))
  if staged then
    note_state(task, stored_ms, version + 1)
    if not text or expired then count("total", 1) end
    count_stage(stage_before, rank, figure, wait, counts, srank < "0")
    enlist(task, rank, time, ttl_ms, figure)
    note_member(task, rank, expiries[task])
  end
  -- On a cluster the writer before may have been killed before its index updates were sent.
  local is_doubtful = text and not index and not (last and string.sub(w, 1, #writer + 1) == writer .. ".")
  if task == "" and entries or task ~= "" and tonumber(ttl_ms) > index_ttl then
    note_state(path, stored_ms, version + 1)
    update_name(path, not is_doubtful and text, stime, sttl, time, ttl_ms, body == "")
  end
  if task ~= "" and (is_new or stime and math.floor(2 * stime / index_ttl) ~= math.floor(2 * time / index_ttl)) then
    added[#added + 1] = task
  elseif task ~= "" and is_doubtful and (not entries or entries[1] == "") then -- those with a stage come with that
    doubted[#doubted + 1] = task
  end
  if not published then return { "unpublished", version + 1, whole(stored_ms) } end
  return stored_ms == now_ms and whole(version + 1) or whole(version + 1) .. "@" .. whole(stored_ms)
end

-- Errors by place of the entry, for later writes must not overtake one that was refused.
local refused = {}

local function place_of(key, at)
  return key .. "\n" .. string.match(ARGV[13 + n + at], "^[^\n]*\n([^\n]*)")
end

-- Write one entry, or return why Redis refuses that: an entry that can't be written stops no other.
local function write_alone(key, at, serial, body)
  local place = next(refused) and place_of(key, at)
  if place and refused[place] then return { "error", refused[place] } end
  local fine, answer = pcall(write, key, at, serial, body)
  if not fine then answer = { "error", type(answer) == "table" and answer.err or tostring(answer) } end
  if type(answer) == "table" and answer[1] == "error" then refused[place_of(key, at)] = answer[2] end
  return answer
end

read_lines(ARGV[11])
read_members(14 + n + ARGV[13 + n])
local answers, versions, i = { tonumber(now[1]), tonumber(now[2]), "" }, {}, 0
for serial, at in string.gmatch(ARGV[12], "(%d+) (%d+) ") do
  i = i + 1
  local answer = write_alone(KEYS[i], tonumber(at), serial, ARGV[12 + i])
  if type(answer) == "string" then
    versions[i] = answer
  else
    if answer[1] == "error" and string.find(answer[2], "READONLY", 1, true) then return redis.error_reply(answer[2]) end
    versions[i], answers[#answers + 1] = "", answer
  end
end
answers[3] = table.concat(versions, ",")
if index then apply_updates() else answers[#answers + 1] = pack_updates() end
return answers
