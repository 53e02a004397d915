"""Workers as a fleet: heartbeats, lost workers, requeued tasks, queue depths.

A worker's heartbeat thread writes its record and learns in the same round trip which workers are lost
(`heartbeat.py`).  Redis gives each loss to one worker, which marks the running tasks LOST (`lost_workers.py`)
and requeues those whose messages were kept and signed (`kept_messages.py`, `requeue.py`).  A worker renews the
messages that it holds at a Redis broker (`visibility.py`, `unacked.py`).  Authoritative is
Redis: a worker acts on a loss only while it holds the lease of it.  Start reading at `heartbeat.py`.
"""
