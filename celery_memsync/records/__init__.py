"""What the methods of the manager do, one class for each kind of record.

`EntryRecords` are the users' own keys and the general form of reading; `TaskRecords`, `WorkerRecords`, `QueueRecords`
and `Counters` are what Celery's signals keep, too; `LockRecords` are the locks that tasks and users hold.  Each checks
what its caller gives (`checks.py`), then puts a change into the writer, or reads through the reader.  Nothing in here has
a thread.  Invariant: a read or an atomic operation ends within ``memsync_timeout`` (`bounded` in `deadline.py`), and a
buffered write never waits for Redis.  Start reading at `entry_records.py`.
"""
