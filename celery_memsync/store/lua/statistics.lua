-- Statistics of the runs of tasks; put before entry_write.lua and index_apply.lua.
--
-- Each task of a queue has a record, under the key of the sorted set of all records, a slash, and its name: queue and task
-- with a line feed between.  It is a string of 40 counters, two sums and a day, see models/statistics.py.  The same name with
-- a line feed behind it is a hash of what its failures were, by exception.

-- Bits of a counter, of a sum and of the day; where the sums and the day are.
local COUNTER, SUM, DAY, SUMS_AT, DAY_AT = "u40", "u56", "u16", 1600, 1712
-- Numbers of counters: those of outcomes follow CREATED and STARTED by their digit; the first buckets of two histograms, whose
-- sums are the numbers 40 and 41.
local CREATED, STARTED, REVISED, WAITS, RUNTIMES, WAIT_SUM, RUNTIME_SUM = 0, 1, 9, 10, 25, 40, 41
local BUCKETS = 15
-- Most records, and exceptions of one; what comes on top of them has this name.
local MAX_RECORDS, MAX_EXCEPTIONS, OTHER = 500, 10, "(other)"
-- Ms that a record is kept after the first run of the last day on which there was one.
local RECORD_TTL, DAY_MS = 8 * 86400000, 86400000

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

-- Add what other calls have counted, as it travels with index updates.
local function add_counts(its_records, its_exceptions)
  for _, pair in ipairs({ { record_counts, its_records }, { exception_counts, its_exceptions } }) do
    for name, row in pairs(pair[2]) do
      local counts = counts_of(pair[1], name)
      for what, by in pairs(row) do counts[what] = (counts[what] or 0) + by end
    end
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

-- Return whether a record that was not written today may stay; it does for some days then.
local function keep_record(name, key)
  if name ~= OTHER .. "\n" .. OTHER and not tonumber(try("ZSCORE", statistics, name)) then
    redis.call("ZREMRANGEBYSCORE", statistics, "-inf", whole(now_ms))
    redis.call("ZREMRANGEBYSCORE", statistics, whole(now_ms + 2 * RECORD_TTL), "+inf")
    if redis.call("ZCOUNT", statistics, "-inf", "+inf") >= MAX_RECORDS then return false end
  end
  redis.call("ZADD", statistics, whole(now_ms + RECORD_TTL), name)
  redis.call("PEXPIRE", key, whole(RECORD_TTL))
  redis.call("PEXPIRE", statistics, whole(RECORD_TTL))
  return true
end

-- Add to a record, and return whether it may stay.  It is one command: the answer has the day of the last one before.
local function add_to_record(name, counts)
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
  outlives(key, RECORD_TTL)
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

