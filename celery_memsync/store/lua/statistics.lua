-- Statistics of the runs of tasks; put before entry_write.lua and index_apply.lua.
--
-- Each task of a queue has a record, under the key of the sorted set of all records, a slash, and its name: queue and task
-- with a line feed between.  It is a string of 40 counters, two sums and a day, see models/statistics.py.  The same name with
-- a line feed behind it is a hash of what its failures were, by exception.
--
-- Readers add the records of a task, and those of a queue, and such a sum must never get less: Prometheus would take that for
-- a restart, and count all of it once more.  So what a record held that is forgotten is added to one of its queue, and to one
-- of its task, while there are others of them.

-- Bits of a counter, of a sum and of the day; where the sums and the day are.
local COUNTER, SUM, DAY, SUMS_AT, DAY_AT = "u40", "u56", "u16", 1600, 1712
-- Numbers of counters: those of outcomes follow CREATED and STARTED by their digit; the first buckets of two histograms, whose
-- sums are the numbers 40 and 41.
local CREATED, STARTED, REVISED, WAITS, RUNTIMES, WAIT_SUM, RUNTIME_SUM = 0, 1, 9, 10, 25, 40, 41
local BUCKETS = 15
-- Most records, and exceptions of one; what comes on top of them has this name.
local MAX_RECORDS, MAX_EXCEPTIONS, OTHER = 500, 10, "(other)"
-- What a record has instead of a task, or a queue, that holds what was forgotten of its queue, or its task; no name of ours.
local FORGOTTEN = "\t"
-- Ms that a record is kept after the first run of the last day on which there was one.  It is forgotten by the next record that
-- is written first on a day, so its key is there for longer.
local RECORD_TTL, KEY_TTL, DAY_MS = 8 * 86400000, 24 * 86400000, 86400000
-- Most records that one call forgets: Redis does nothing else meanwhile.
local FORGET = 10

-- Set by the script: the key of the set, and the lines to which the words of writes refer.
local statistics
local lines = {}
-- What is to be added, by name of the record and number of the counter; and by name and exception.
local record_counts, exception_counts = {}, {}

local function read_lines(text)
  for line in string.gmatch(text, "([^\n]*)\n") do lines[#lines + 1] = line end
end

local function counts_of(counts, name)
  local row = counts[name]
  if not row then
    row = {}
    counts[name] = row
  end
  return row
end

-- Add what other calls have counted alike, as it travels with index updates.
local function add_counts(counts_by_name, its_counts, times)
  for name, row in pairs(its_counts) do
    local counts = counts_of(counts_by_name, name)
    for what, by in pairs(row) do counts[what] = (counts[what] or 0) + times * by end
  end
end

-- What the words of a write come to, by their text, for many of a call have the same: what its record counts, whether its body
-- began, the counters of its waiting time and runtime, its name and its exception.
--
-- Words are: line of the queue, after which comes the task; whether its body began; bucket of its waiting time; bucket of its
-- runtime; line of its exception.  What is "" does not count.
local run_words = setmetatable({}, { __index = function(known, text)
  local at, began, waited, took, exception = string.match(text, "^(%d+) (%d) (%d*) (%d*) (%d*)$")
  local queue, task = lines[tonumber(at)], lines[(tonumber(at) or 0) + 1]
  local row = {}
  if task then
    local name = queue .. "\n" .. task
    waited, took = tonumber(waited) or BUCKETS, tonumber(took) or BUCKETS
    row = {
      counts_of(record_counts, name), began == "1", waited < BUCKETS and WAITS + waited, took < BUCKETS and RUNTIMES + took,
      name, lines[tonumber(exception)] }
  end
  known[text] = row
  return row
end })

-- Return whether anything is counted; of records without anything nothing stays.
local function is_counted()
  for name, counts in pairs(record_counts) do
    if not next(counts) then record_counts[name] = nil end
  end
  return next(record_counts) ~= nil
end

-- Count a stage of a run, once for each step from one digit of its rank to another; -1: there is none.
local function count_run(words, is_first, old, new, runtime, wait)
  local counts, began, waited, took, name, exception = unpack(run_words[words], 1, 6)
  if not counts then return end
  if is_first and new >= 0 then counts[CREATED] = (counts[CREATED] or 0) + 1 end
  if old == new then return end
  if old < 2 and new >= 2 and began then
    counts[STARTED] = (counts[STARTED] or 0) + 1
    if waited then
      counts[waited] = (counts[waited] or 0) + 1
      counts[WAIT_SUM] = (counts[WAIT_SUM] or 0) + wait
    end
  end
  if old >= 3 then counts[REVISED] = (counts[REVISED] or 0) + 1 end
  if new < 3 then return end
  counts[new - 1] = (counts[new - 1] or 0) + 1
  if took then
    counts[took] = (counts[took] or 0) + 1
    counts[RUNTIME_SUM] = (counts[RUNTIME_SUM] or 0) + runtime
  end
  if exception then
    local causes = counts_of(exception_counts, name)
    causes[exception] = (causes[exception] or 0) + 1
  end
end

local add_to_record

-- Add some of the counters of a record, and a sum if its number is given, to another one.
local function move_counts(name, target, first, last, sum)
  local get, numbers, counts = {}, {}, {}
  for number = first, last do
    get[#get + 1], get[#get + 2], get[#get + 3] = "GET", COUNTER, 40 * number
    numbers[#numbers + 1] = number
  end
  if sum then
    get[#get + 1], get[#get + 2], get[#get + 3] = "GET", SUM, SUMS_AT + 56 * (sum - WAIT_SUM)
    numbers[#numbers + 1] = sum
  end
  local answer = try("BITFIELD", statistics .. "/" .. name, unpack(get))
  for i, count in ipairs(answer) do
    if count > 0 then counts[numbers[i]] = count end
  end
  if next(counts) and not add_to_record(target, counts) then redis.call("DEL", statistics .. "/" .. target) end
end

-- Add the exceptions of a record to those of another one; they are written with the others of this call.
local function move_exceptions(name, target)
  local row = try("HRANDFIELD", statistics .. "/" .. name .. "\n", 2 * MAX_EXCEPTIONS, "WITHVALUES")
  for i = 1, #row, 2 do
    local by = tonumber(string.match(row[i + 1], "^%d+$"))
    if by and #row[i + 1] < 16 then
      local causes = counts_of(exception_counts, target)
      causes[row[i]] = (causes[row[i]] or 0) + by
    end
  end
end

-- Forget a record; queues and tasks are those of the records that stay, true or, if they hold what was forgotten, false.
-- These stay as long as there are others.
local function forget_record(name, queues, tasks)
  local queue, task = string.match(name, "^([^\n]*)\n([^\n]+)$")
  if not task then return end
  if task == FORGOTTEN and queues[queue] or queue == FORGOTTEN and tasks[task] then
    redis.call("ZADD", statistics, whole(now_ms + RECORD_TTL), name)
    redis.call("PEXPIRE", statistics .. "/" .. name, whole(KEY_TTL))
    redis.call("PEXPIRE", statistics .. "/" .. name .. "\n", whole(KEY_TTL))
    return
  end
  if queues[queue] ~= nil and task ~= FORGOTTEN then
    move_counts(name, queue .. "\n" .. FORGOTTEN, WAITS, RUNTIMES - 1, WAIT_SUM)
  end
  if tasks[task] ~= nil and queue ~= FORGOTTEN then
    move_counts(name, FORGOTTEN .. "\n" .. task, CREATED, REVISED)
    move_counts(name, FORGOTTEN .. "\n" .. task, RUNTIMES, RUNTIMES + BUCKETS - 1, RUNTIME_SUM)
    move_exceptions(name, FORGOTTEN .. "\n" .. task)
  end
  redis.call("DEL", statistics .. "/" .. name, statistics .. "/" .. name .. "\n")
end

-- Forget some records without a run for a week, once a call.
local has_forgotten = false
local function forget_records()
  if has_forgotten then return end
  has_forgotten = true
  try("ZREMRANGEBYSCORE", statistics, whole(now_ms + 2 * RECORD_TTL), "+inf")
  local due = try("ZRANGEBYSCORE", statistics, "-inf", whole(now_ms), "LIMIT", 0, FORGET)
  if not due[1] then return end
  redis.call("ZREM", statistics, unpack(due))
  local queues, tasks = {}, {}
  for _, name in ipairs(redis.call("ZRANGEBYSCORE", statistics, "-inf", "+inf", "LIMIT", 0, 2 * MAX_RECORDS)) do
    local queue, task = string.match(name, "^([^\n]*)\n([^\n]+)$")
    local is_own = task ~= FORGOTTEN and queue ~= FORGOTTEN
    if task then queues[queue], tasks[task] = is_own or queues[queue] or false, is_own or tasks[task] or false end
  end
  for _, name in ipairs(due) do forget_record(name, queues, tasks) end
end

-- Return whether a record that was not written today may stay; it does for some days then.
local function keep_record(name, key)
  forget_records()
  local is_known = name == OTHER .. "\n" .. OTHER or tonumber(try("ZSCORE", statistics, name))
  if not is_known and redis.call("ZCOUNT", statistics, "-inf", "+inf") >= MAX_RECORDS then return false end
  redis.call("ZADD", statistics, whole(now_ms + RECORD_TTL), name)
  redis.call("PEXPIRE", key, whole(KEY_TTL))
  redis.call("PEXPIRE", statistics, whole(RECORD_TTL))
  return true
end

-- Add to a record, and return whether it may stay.  It is one command: the answer has the day of the last one before.
function add_to_record(name, counts)
  local today = math.floor(now_ms / DAY_MS) % 65536
  local row = {}
  for number, by in pairs(counts) do
    local is_sum = number >= WAIT_SUM
    row[#row + 1] = "INCRBY"
    row[#row + 1] = is_sum and SUM or COUNTER
    row[#row + 1] = is_sum and SUMS_AT + 56 * (number - WAIT_SUM) or 40 * number
    row[#row + 1] = whole(by)
  end
  local key = statistics .. "/" .. name
  local answer = try("BITFIELD", key, "SET", DAY, DAY_AT, today, unpack(row))
  if answer.err or answer[1] == today then return true end
  return keep_record(name, key)
end

-- Count the exceptions of a record.
local function add_exceptions(name, counts)
  local key = statistics .. "/" .. name .. "\n"
  for exception, by in pairs(counts) do
    local count = try("HINCRBY", key, exception, by)
    if count == by and exception ~= OTHER and #redis.call("HRANDFIELD", key, MAX_EXCEPTIONS + 1) > MAX_EXCEPTIONS then
      redis.call("HDEL", key, exception)
      redis.call("HINCRBY", key, OTHER, by)
    end
  end
  outlives(key, KEY_TTL)
end

local function update_statistics()
  local others
  for name, counts in pairs(record_counts) do
    if not add_to_record(name, counts) then
      redis.call("DEL", statistics .. "/" .. name)
      others = others or {}
      for number, by in pairs(counts) do others[number] = (others[number] or 0) + by end
      exception_counts[name] = nil
    end
  end
  if others then add_to_record(OTHER .. "\n" .. OTHER, others) end
  for name, counts in pairs(exception_counts) do add_exceptions(name, counts) end
end

