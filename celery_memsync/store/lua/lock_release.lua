-- Give a lock back, or leave its queue.
--
-- KEYS[1] lock     string: an entry, see lock_entry.lua
-- KEYS[2] queue    list of waiters, in the order in which they came
-- KEYS[3] asked    hash: when each waiter has asked last, and how long there were waiters (ms), see lock_entry.lua
-- KEYS[4] clock    string: high-water mark, see hybrid_clock.lua
-- KEYS[5] index    sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- On a cluster only the first one is given while the slot is being moved: the others may be on another node.
-- ARGV[1] path     the lock's; its changes are published there
-- ARGV[2] turns    the channels of waiters begin with that; up to its first colon it is put before a path to make a channel
-- ARGV[3] worker   who gives it back
-- ARGV[4] caller   names one acquisition, as it did when it was asked for
-- The others are given by a caller that has waited, or waits:
-- ARGV[5] ttl_ms   lease that was asked for
-- ARGV[6] run      of the task that asked; "-" for none
-- ARGV[7] body     as it was when it was asked for
-- ARGV[8] channel  where it receives that it has been given the lock
--
-- Returns    "ok 0 0"  the caller had it until now, or gave it back already
--            "lost"    the caller had it no more, or not yet
-- Publishes  slot, header and body on the path of the lock; waiter, fence and lease (ms) on the channel of a waiter that
--            is given the lock
local caller, ttl_ms, run, body, channel = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

if left > 0 and holder == caller then
  give_back(caller)
  return "ok 0 0"
end
if queue and channel then
  call("LREM", queue, 1, waiter_row(caller, ttl_ms, channel, run, body))
  call("HDEL", asked, caller)
end
return (left == 0 and holder == caller or giver == caller) and "ok 0 0" or "lost"
