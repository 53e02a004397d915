-- A clock that never goes back, for fences and for lives of keys; put before entry_write.lua, lock_acquire.lua,
-- lock_release.lua, lock_free.lua and lock_restore.lua.
--
-- It is Redis's own, unless that was set back: then it goes on by a millisecond with each call, from a high-water mark,
-- which is kept for ever.  See hybrid logical clocks (Kulkarni and others, 2014).

-- Above any moment of ours (us): the year 2112.  A mark or fence beyond is none of ours, and soon no exact number would
-- follow it.
local LIMIT = 2 ^ 52

-- Return a moment (us, a text) that is later than those of all calls before, and than another one; without a mark than
-- that one.
local function tick(mark, other)
  local text = now[1] .. string.format("%06d", now[2])
  local now_us = tonumber(text)
  local last = mark and tonumber(call("SET", mark, text, "GET") or 0) or 0
  local moment = now_us
  if last >= moment and last < LIMIT then moment = last + 1000 end
  if other >= moment and other < LIMIT then moment = other + 1 end
  if moment == now_us then return text end
  if mark then redis.call("SET", mark, whole(moment)) end
  return whole(moment)
end

