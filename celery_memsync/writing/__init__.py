"""Buffered writes: one batching writer per process, the changes it gathers, and how conflicts are settled.

A change is put into the inbox of `pending.py`, coalesced with others of its entry, and sent by the one thread of
`writer.py`: `batch_sender.py` sends it, and a second try has the number of the first, so nothing is done twice;
`outcomes.py` settles it by what Redis answers, and `conflict_settler.py` what another process wrote in between;
`refusals.py` sets aside what Redis refuses; `write_report.py` counts, logs and emits events.  Callers that need what is
pending to be written wait for the thread (`requests.py`).  Invariant: a change leaves its row when its outcome is known.
Start reading at `changes.py`.
"""
