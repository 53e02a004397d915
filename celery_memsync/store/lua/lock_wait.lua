-- Take a lock, or stand in its queue until it is given to the caller.
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
-- ARGV[8] channel  where it is published that the caller has been given the lock
--
-- Returns    "ok fence ms"          the caller has it for so long
--            "busy fence ms\ntext"  the caller is in the queue, if that is given; another has it for so long, if it is not
--                                   renewed; then the entry
-- Publishes  slot, header and body on the path of the lock; waiter, fence and lease (ms) on the channel of a waiter that
--            is given the lock
lock, queue, asked, clock, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
path, turns, worker = ARGV[1], ARGV[2], ARGV[3]
local caller, ttl_ms, run, body, channel = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

read_lock()
if take_if_free(caller, true, run, ttl_ms, body) then return has_it() end
if not queue then return is_busy() end
local row = waiter_row(caller, ttl_ms, channel, run, body)
if not call("LPOS", queue, row) then redis.call("RPUSH", queue, row) end
redis.call("PEXPIRE", queue, MEMORY)
redis.call("HSET", asked, caller, whole(waiting_time()))
return is_busy()
