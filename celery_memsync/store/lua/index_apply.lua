-- Keep what follows from entries that were written elsewhere in a cluster, once.
--
-- KEYS[1]  index       see entry_write.lua, as the others
-- KEYS[2]  names
-- KEYS[3]  pending
-- KEYS[4]  processing
-- KEYS[5]  metrics
-- KEYS[6]  about
-- KEYS[7]  done        number of the last notes of this process, for a second try
-- KEYS[8]  noted       sorted set: tasks and paths by when what is noted of them was written (us)
-- ARGV[1]   worker    who writes
-- ARGV[2]   index_ttl   ms that an id stays in the index
-- ARGV[3]   prefix    put before a path to make its channel
-- ARGV[4]   together  path of what is in about, up to the last slash
-- ARGV[5]   serial    number of these notes; a second try has the same
-- ARGV[6..]  notes    as entry_write.lua answers them
--
-- Returns   {seconds, microseconds}
-- Publishes that queue or metrics have changed, with their new version
index, names, pending, processing, metrics, about = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
worker, index_ttl, prefix, together = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local done, noted, serial = KEYS[7], KEYS[8], ARGV[5]
local MEMORY = 50000 -- tasks and keys of which it is known when what is noted of them was written
local answer = { tonumber(now[1]), tonumber(now[2]) }

-- Of two processes that write the same, who wrote first may note last: that is old, and not taken.
local stamps = {}
local function is_new(thing, stamp)
  local known = stamps[thing] or try("ZSCORE", noted, thing)
  -- A score further ahead than clocks differ is none of ours.
  if type(known) ~= "table" and known and tonumber(known) > stamp and tonumber(known) < stamp + AHEAD * 1000 then
    return false
  end
  stamps[thing] = stamp
  return true
end

-- Add what a note tells.
local function take_note(text)
  local stamp, its_added, its_lists, its_orders, its_ends, its_counted, its_named = parts_of(text)
  for _, task in ipairs(its_added) do added[#added + 1] = task end
  for task, list in pairs(its_lists) do
    if is_new(task, stamp) then lists[task], orders[task], ends[task] = list, its_orders[task], its_ends[task] end
  end
  for path, over in pairs(its_named) do
    if is_new(path, stamp) then named[path] = over end
  end
  for counter, by in pairs(its_counted) do counted[counter] = (counted[counter] or 0) + by end
end

local function keep_stamps()
  if not next(stamps) then return end
  local row = {}
  for thing, stamp in pairs(stamps) do
    row[#row + 1] = whole(stamp)
    row[#row + 1] = thing
  end
  try("ZADD", noted, unpack(row))
  local surplus = redis.call("ZCOUNT", noted, "-inf", "+inf") - MEMORY
  if surplus > 0 then redis.call("ZPOPMIN", noted, surplus) end
  redis.call("PEXPIRE", noted, whole(index_ttl))
end

local last = tonumber(string.match(call("GET", done) or "", "^%d+$") or 0)
if last > 2 ^ 53 then last = 0 end
if last >= tonumber(serial) then return answer end
for i = 6, #ARGV do take_note(ARGV[i]) end
keep()
keep_stamps()
redis.call("SET", done, serial, "PX", 3600000)
return answer
