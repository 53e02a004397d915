-- Take a lock if it is free and has no waiters, or stand in its queue until it is given to the caller.
--
-- KEYS[1] lock     string: an entry, see lock_entry.lua
-- KEYS[2] queue    list of waiters, in the order in which they came
-- KEYS[3] asked    hash: when each waiter has asked last, and how long there were waiters (ms), see lock_entry.lua
-- KEYS[4] clock    string: high-water mark, see hybrid_clock.lua
-- KEYS[5] index    sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- On a cluster only the first one is given while the slot is being moved: the others may be on another node.
-- ARGV[1] path     the lock's; its changes are published there
-- ARGV[2] turns    the channels of waiters begin with that; up to its first colon it is put before a path to make a channel
-- ARGV[3] worker   the caller's
-- ARGV[4] caller   names one acquisition; a second try has the same
-- ARGV[5] ttl_ms   lease
-- ARGV[6] run      of the caller's task; "-" for none
-- ARGV[7] body     not looked into
-- ARGV[8] channel  where it is published that the caller has been given the lock; not given if it does not wait
--
-- Returns    "ok fence ms"          the caller has it for so long
--            "busy fence ms\ntext"  another has it for so long, if it is not renewed; then the entry.  A caller that waits
--                                   is in the queue, if that is given
-- Publishes  slot, header and body on the path of the lock; waiter, fence and lease (ms) on the channel of a waiter that
--            is given the lock
local caller, ttl_ms, run, body, channel = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

if left > 0 then
  if holder == caller then return has_it() end
-- The first try of a question that was sent twice comes late: what it was asked for is over.
elseif not given_back or holder ~= caller then
  -- What is free goes to the waiter that came first; a caller that is none gets it only if there are no waiters.
  local waiter = give_to_waiter("", channel and caller)
  if not waiter or waiter == caller then
    give_lock(run, caller, ttl_ms, worker, body)
    if index then
      redis.call("PEXPIRE", index, INDEX)
      -- One time in sixteen is enough.
      if now_ms % 16 == 0 then trim_index(index) end
    end
    return has_it()
  end
end
if queue and channel then
  local row = waiter_row(caller, ttl_ms, channel, run, body)
  if not call("LPOS", queue, row) then redis.call("RPUSH", queue, row) end
  redis.call("PEXPIRE", queue, MEMORY)
  redis.call("HSET", asked, caller, whole(waiting_time()))
end
return is_busy()
