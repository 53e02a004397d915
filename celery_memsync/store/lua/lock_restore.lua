-- Give a lock back its holder, under the same fence, if Redis lacks the data of that acquisition.
--
-- KEYS[1] lock    string: an entry, see lock_entry.lua
-- KEYS[2] queue   list of waiters, in the order in which they came
-- KEYS[3] asked   hash: when each waiter has asked last (ms)
-- KEYS[4] clock   string: high-water mark, see hybrid_clock.lua
-- KEYS[5] index   sorted set: path of each lock that is held, by the end of its lease (ms); not given on a cluster
-- On a cluster only the first one is given while the slot is being moved: the others may be on another node.
-- ARGV[1] path    the lock's; its changes are published there
-- ARGV[2] turns   up to its first colon it is put before a path to make a channel
-- ARGV[3] worker  the holder's
-- ARGV[4] holder  names the acquisition
-- ARGV[5] ttl_ms  lease from now on
-- ARGV[6] run     of the holder's task; "-" for none
-- ARGV[7] body    not looked into
-- ARGV[8] fence   of the acquisition
--
-- Returns    "ok fence ms"          the holder has it for so long
--            "busy fence ms\ntext"  there has been an acquisition with that fence or a later one
-- Publishes  slot, header and body on the path of the lock
local caller, ttl_ms, run, body, its_fence = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

-- Any state of the lock since that acquisition has its fence, or a later one: a holder with a lower one had it before, and
-- has given it back, or lost it.
if tonumber(fence) >= tonumber(its_fence) then return is_busy() end
tick(clock, tonumber(its_fence))
store_lock(its_fence, run, caller, ttl_ms, worker, body)
return has_it()
