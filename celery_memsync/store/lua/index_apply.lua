-- Write what follows from entries that were written in other slots of a cluster, once.
--
-- KEYS[1]  index       see entry_write.lua, as the others
-- KEYS[2]  names
-- KEYS[3]  pending
-- KEYS[4]  processing
-- KEYS[5]  metrics
-- KEYS[6]  about
-- KEYS[7]  done        number of the last call of this process, for a second try
-- KEYS[8]  applied     sorted set: tasks and paths by when the last of their updates was written (us)
-- ARGV[1]   worker     who writes
-- ARGV[2]   index_ttl  ms that an id stays in the index
-- ARGV[3]   prefix     put before a path to make its channel
-- ARGV[4]   together   path of what is in about, up to the last slash
-- ARGV[5]   serial     number of the call; a second try has the same
-- ARGV[6..]  index updates, as entry_write.lua returns them
--
-- Returns   {seconds, microseconds}
-- Publishes that queue or metrics have changed, with their new version
index, names, pending, processing, metrics, about = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
worker, index_ttl, channels = ARGV[1], tonumber(ARGV[2]), ARGV[3] .. ARGV[4]
local done, applied, serial = KEYS[7], KEYS[8], ARGV[5]
local MEMORY = 50000 -- tasks and paths of which it is known when the last of their updates was written
local answer = { tonumber(now[1]), tonumber(now[2]) }

-- Of two processes that write the same, the updates of the one that wrote first may come last: they are old, and not taken.
local written = {}
local function is_new(thing, moment)
  local known = written[thing] or try("ZSCORE", applied, thing)
  -- A score further ahead than clocks differ is none of ours, or of a key that was lost since.
  if type(known) ~= "table" and known and tonumber(known) > moment and tonumber(known) < moment + AHEAD * 1000 then
    return false
  end
  written[thing] = moment
  return true
end

-- Add updates to those that are to be applied.
local function add_updates(text)
  local its_added, its_lists, its_orders, its_expiries, its_counted, its_named, its_moments = unpack_updates(text)
  for _, task in ipairs(its_added) do added[#added + 1] = task end
  for task, list in pairs(its_lists) do
    if is_new(task, its_moments[task]) then
      lists[task], orders[task], expiries[task] = list, its_orders[task], its_expiries[task]
    end
  end
  for path, expires in pairs(its_named) do
    if is_new(path, its_moments[path]) then named[path] = expires end
  end
  for counter, by in pairs(its_counted) do counted[counter] = (counted[counter] or 0) + by end
end

local function keep_moments()
  if not next(written) then return end
  local row = {}
  for thing, moment in pairs(written) do
    row[#row + 1] = whole(moment)
    row[#row + 1] = thing
  end
  try("ZADD", applied, unpack(row))
  local surplus = redis.call("ZCOUNT", applied, "-inf", "+inf") - MEMORY
  if surplus > 0 then redis.call("ZPOPMIN", applied, surplus) end
  redis.call("PEXPIRE", applied, whole(index_ttl))
end

local last = tonumber(string.match(call("GET", done) or "", "^%d+$") or 0)
if last > 2 ^ 53 then last = 0 end
if last >= tonumber(serial) then return answer end
-- If Redis takes no writes this raises before anything was written.
redis.call("SET", done, serial, "PX", 3600000)
for i = 6, #ARGV do add_updates(ARGV[i]) end
apply_updates()
pcall(keep_moments)
return answer
