"""Reads, the local cache, the connection on which changes are pushed, and subscriptions.

A read is answered from the cache while the listener vouches for it, else by Redis, with the changes laid over
it that this process has pending (`reader.py`, `cache.py`, `listener.py`).  Subscriptions are level-triggered:
what counts is the present state of a key, not each change of it.  Start reading at `reader.py`.
"""
