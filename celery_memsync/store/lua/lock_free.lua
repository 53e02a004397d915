-- Give a lock back for the holder that has it with a fence.
--
-- KEYS[1] lock    string: an entry, see lock_entry.lua
-- KEYS[2] queue   list of waiters, in the order in which they came
-- KEYS[3] asked   hash: when each waiter has asked last, and how long there were waiters (ms), see lock_entry.lua
-- KEYS[4] clock   string: high-water mark, see hybrid_clock.lua
-- KEYS[5] index   sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- On a cluster only the first one is given while the slot is being moved: the others may be on another node.
-- ARGV[1] path    the lock's; its changes are published there
-- ARGV[2] turns   the channels of waiters begin with that; up to its first colon it is put before a path to make a channel
-- ARGV[3] worker  who frees it
-- ARGV[4] fence   of the acquisition that is to end
--
-- Returns    "ok 0 0"  it was held with that fence until now
--            "lost"    it is not held with that fence
-- Publishes  slot, header and body on the path of the lock; waiter, fence and lease (ms) on the channel of a waiter that
--            is given the lock

if left <= 0 or fence ~= ARGV[4] then return "lost" end
-- Not in the name of the holder: for its own release is to return that it has lost the lock.
give_back("-")
return "ok 0 0"
