-- Write what follows from entries that were written in other slots of a cluster, once.
--
-- KEYS[1]  index       see entry_write.lua, as the others
-- KEYS[2]  names
-- KEYS[3]  pending
-- KEYS[4]  processing
-- KEYS[5]  metrics
-- KEYS[6]  about
-- KEYS[7]  statistics
-- KEYS[8]  done        number of the last call of this process, for a second try
-- KEYS[9]  applied     sorted set: tasks and paths by the state of their entry from which the last update follows
--                      and, with a line feed behind them, tasks without a stage that are in the index
-- KEYS[10..]  members  sorted sets of groups and workflows, see members.lua; records of statistics
-- ARGV[1]   worker     who writes
-- ARGV[2]   index_ttl  ms that an id stays in the index
-- ARGV[3]   prefix     put before a path to make its channel
-- ARGV[4]   together   path of what is in about, up to the last slash
-- ARGV[5]   serial     number of the call; a second try has the same
-- ARGV[6..]  index updates, as entry_write.lua returns them
--
-- Returns   {seconds, microseconds}
-- Publishes that queue or metrics have changed, with their new version
index, names, pending, processing, metrics, about, statistics =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
worker, index_ttl, channels = ARGV[1], tonumber(ARGV[2]), ARGV[3] .. ARGV[4]
local done, applied, serial = KEYS[8], KEYS[9], ARGV[5]
local MEMORY = 50000 -- tasks and paths of which it is known from which state the last of their updates follows
local LOOK = 16 -- calls of a process after which it is looked how many there are
local answer = { tonumber(now[1]), tonumber(now[2]) }

-- Of two processes that write the same, the updates of the one that wrote first may come last: they are old, and not taken.
local applied_states, known_states = {}, {}

local function is_new(thing, state)
  local known = tonumber(applied_states[thing] or known_states[thing] or nil)
  -- A score further ahead than clocks differ is none of ours.
  if known and known > state and known < state + AHEAD * 1024 then return false end
  applied_states[thing] = state
  return true
end

local function add_stage(task, state, list, order, expires, is_added)
  -- The update with which its first stage went into the index may have been lost with its process, or in a failover.
  if is_added or not (applied_states[task] or known_states[task]) then added[#added + 1] = task end
  if is_new(task, state) then lists[task], orders[task], expiries[task] = list, order, expires end
end

-- Add what some updates have counted alike.
local function add_counted(times, its_counted, its_records, its_exceptions)
  for counter, by in pairs(its_counted) do counted[counter] = (counted[counter] or 0) + times * by end
  add_counts(record_counts, its_records, times)
  add_counts(exception_counts, its_exceptions, times)
end

-- Return under which name it is noted that a task without a stage is in the index; no task or path has it.
local function mark_of(task)
  return task .. "\n"
end

-- Add tasks without a stage to the index.
local function add_tasks(tasks, unless_known)
  for _, task in ipairs(tasks) do
    local mark = mark_of(task)
    local is_known = applied_states[task] or known_states[task] or applied_states[mark] or known_states[mark]
    if not (unless_known and is_known) then added[#added + 1] = task end
    applied_states[mark] = now_ms * 1024
  end
end

local function add_others(others, its_doubted, paths, its_sets)
  add_tasks(others, false)
  add_tasks(its_doubted, true)
  for at = 1, #paths, 3 do
    if is_new(paths[at], paths[at + 1]) then named[paths[at]] = paths[at + 2] end
  end
  for key, scores in pairs(its_sets) do
    for member, score in pairs(scores) do set_score(key, member, score) end
  end
end

-- Add updates to those that are to be applied.  States are read at once: a command for each would be on the path of every write.
local function add_updates(first)
  local rows, rests, counts, things = {}, {}, {}, {}
  for i = 1, #ARGV - first + 1 do
    local row = unpack_updates(ARGV[first + i - 1])
    rows[i] = row
    for at = 3, #row, 6 do things[#things + 1] = row[at] end
    if row[1] ~= "" then counts[row[1]] = (counts[row[1]] or 0) + 1 end
    if row[2] ~= "" then
      rests[i] = unpack_updates(row[2])
      local _, its_doubted, paths = unpack(rests[i])
      for at = 1, #paths, 3 do things[#things + 1] = paths[at] end
      for _, task in ipairs(its_doubted) do things[#things + 1], things[#things + 2] = task, mark_of(task) end
    end
  end
  known_states = scores_in(applied, things)
  for i, row in ipairs(rows) do
    for at = 3, #row, 6 do add_stage(unpack(row, at, at + 5)) end
    if rests[i] then add_others(unpack(rests[i])) end
  end
  for text, times in pairs(counts) do add_counted(times, unpack(unpack_updates(text))) end
end

local function keep_states()
  if not next(applied_states) then return end
  local row = {}
  for thing, state in pairs(applied_states) do
    row[#row + 1] = state
    row[#row + 1] = thing
  end
  try("ZADD", applied, unpack(row))
  if serial % LOOK ~= 1 then return end -- among them is the first call of each process
  local surplus = redis.call("ZCOUNT", applied, "-inf", "+inf") - MEMORY
  if surplus > 0 then redis.call("ZPOPMIN", applied, surplus) end
  redis.call("PEXPIRE", applied, whole(2 * index_ttl))
end

local last = tonumber(string.match(call("GET", done) or "", "^%d+$") or 0)
if last > 2 ^ 53 then last = 0 end
if last >= tonumber(serial) then return answer end
-- If Redis takes no writes this raises before anything was written.
redis.call("SET", done, serial, "PX", 3600000)
add_updates(6)
apply_updates()
pcall(keep_states)
return answer
