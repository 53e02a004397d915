"""The manager for coroutines: what waits for Redis there is awaitable here.

There is no second client of Redis.  `executor.py` makes calls of the manager in few threads, and `loops.py` hands their
answers to the event loop; `calls.py` is both together.  What waits longer than for an answer waits in the event loop,
and in no thread: `watch.py` follows the feeds of the process (`reading/feeds.py`), and `lock.py` takes the steps of the
lock service (`locking/waiting.py`).  Start reading at `client.py`.
"""
from __future__ import annotations

from .client import AsyncMemSync

__all__ = ["AsyncMemSync"]
