-- Keep what follows from entries that were written elsewhere in a cluster, once.
--
-- KEYS[1]  index       see entry_write.lua, as the others
-- KEYS[2]  names
-- KEYS[3]  pending
-- KEYS[4]  processing
-- KEYS[5]  metrics
-- KEYS[6]  about
-- KEYS[7]  done        number of the last notes of this process, for a second try
-- ARGV[1]   worker    who writes
-- ARGV[2]   horizon   ms that an id stays in the index
-- ARGV[3]   prefix    put before a path to make its channel
-- ARGV[4]   together  path of what is in about, up to the last slash
-- ARGV[5]   serial    number of these notes; a second try has the same
-- ARGV[6..]  notes    as entry_write.lua answers them
--
-- Returns   {seconds, microseconds}
-- Publishes that queue or metrics have changed, with their new version
index, names, pending, processing, metrics, about = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
worker, horizon, prefix, together = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local done, serial = KEYS[7], ARGV[5]
local answer = { tonumber(now[1]), tonumber(now[2]) }

local last = tonumber(redis.call("GET", done) or 0)
if last >= tonumber(serial) then return answer end
for i = 6, #ARGV do take_note(ARGV[i]) end
keep()
redis.call("SET", done, serial, "PX", 3600000)
return answer
