"""Buffered writes: one batching writer per process, the changes it gathers, and how conflicts are settled.

A change waits in `writer.py`, is coalesced with others of its key, and is sent in a batch; a second try has the
number of the first, so nothing is done twice.  What another process wrote in between is settled by
`conflict_settler.py` outside of any lock.  Start reading at `changes.py`.
"""
