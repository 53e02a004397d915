"""Locks with leases, shared by all processes of a namespace.

`lock.py` is the object that a user holds; `lock_service.py` acquires, renews and releases the locks of a
process.  Authoritative is the lock's entry in Redis; a process believes in its lease no longer than the time
from when it sent the request.  Start reading at `lock_service.py`.
"""
