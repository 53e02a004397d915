"""Locks with leases, shared by all processes of a namespace.

`lock.py` is the object that a user holds; `lock_service.py` acquires, renews and releases the locks of a process, each of
which has a `lease.py`; `waiting.py` requests them, and waits in their queues by steps that threads and coroutines take;
`lock_reader.py` reads the locks of all processes.  Authoritative is the lock's entry in Redis; a
lease counts from the moment when its request was sent.  Start reading at `lock_service.py`.
"""
