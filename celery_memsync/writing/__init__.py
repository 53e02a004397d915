"""Buffered writes: one batching writer per process, the changes it gathers, and how conflicts are settled.

A change is put into the inbox of `pending.py`, coalesced with others of its entry, and sent by the one thread of
`writer.py`; a second try has the number of the first, so nothing is done twice.  Callers that need what is pending to
be written wait for that thread (`requests.py`).  What another process wrote in between is settled by
`conflict_settler.py`.  Invariant: a change leaves its row when its outcome is known.  Start reading at `changes.py`.
"""
