"""The least that one can do: what shows how near the goal a thing can come on this machine.

Nothing here is fit for use.  There are no checks, no tries after a failure, no order, no locks, no shutdown, nothing of
retries, of children that are killed, or of memory that runs full; only the steps that cannot be left out.
"""
from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import deque
from typing import Any

import redis
from celery import signals

from celery_memsync.store.scripts import ENTRY_WRITE

TTL_MS = 3_600_000
TALLIES = ",,,lost,retried,failed,revoked,ignored,skipped,succeeded,"
INTERVAL, AT_ONCE = 0.1, 100

#: Path, task id or "", first words, Redis's time in milliseconds, body.
Row = tuple[str, str, str, int, bytes]


class Batch:
    """Writes with the script of the package, a hundred to a call."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.client.script_load(ENTRY_WRITE.text)
        self.serials = itertools.count(1)
        self.index = [f"least//{{{name}}}" for name in ("tasks", "keys", "pending", "processing", "metrics", "about")]

    def write(self, rows: list[Row]) -> None:
        """Write rows."""
        pipeline = self.client.pipeline(transaction=False)
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start:start + AT_ONCE]
            keys = [f"least/{{{path}}}" for path, *_ in part]
            args: list[Any] = [len(part), "w", "leastone", TTL_MS, 3, 12, "0:", "least/coordination/", TALLIES,
                               int(time.time() * 1000)]
            for path, task_id, known, time_ms, body in part:
                args.append(f"{time_ms} {next(self.serials)}\n1\n{path}\n{task_id}\n{known} {TTL_MS} 0")
                args.append(body)
            pipeline.execute_command("EVALSHA", ENTRY_WRITE.sha, len(keys) + len(self.index), *keys, *self.index, *args)
        for answer in pipeline.execute():
            assert len(answer) == 3, answer  # else a write was refused


class Tracker:
    """Tells of each task once, at its end; its main process remembers what children came to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs = itertools.count()
        self.outcomes: deque[Any] = deque(maxlen=10_000)
        self.begun: dict[str, float] = {}
        self.ended: deque[Any] = deque()
        self.bell = threading.Event()
        self.thread: threading.Thread | None = None
        for signal, handler in (
            (signals.task_received, self.on_received), (signals.task_prerun, self.on_started),
            (signals.task_postrun, self.on_ended),
        ):
            signal.connect(handler, weak=False)

    def on_received(self, request: Any, **_: Any) -> None:
        """Make the run and wait for what it comes to."""
        now, go_on = time.time(), request.on_success
        request.request_dict["least"] = {"run": f"leastone-{next(self.runs)}", "at": now}
        request.request_dict["least"]["key"] = f"000{int(now * 1000):013d}"

        def succeeded(outcome: Any, **kwargs: Any) -> Any:
            del request.on_success
            self.outcomes.append((now, request.worker_pid, request.id, outcome[2]))
            return go_on(outcome, **kwargs)

        request.on_success = succeeded

    def on_started(self, task_id: str, **_: Any) -> None:
        """Take the time."""
        self.begun[task_id] = time.time()

    def on_ended(self, task_id: str, task: Any, **_: Any) -> None:
        """Queue what is to be told."""
        facts = task.request.__dict__
        known = facts["task"], facts["delivery_info"]["routing_key"], facts["hostname"], facts["root_id"]
        self.ended.append((task_id, known, facts["least"], self.begun.pop(task_id), time.time()))
        if self.thread is None:
            self.thread = threading.Thread(target=self.tell, daemon=True)
            self.thread.start()
        self.bell.set()

    def tell(self) -> None:
        """Write what is queued, now and then."""
        batch, pid = Batch(self.url), os.getpid()
        while self.bell.wait():
            time.sleep(INTERVAL)
            self.bell.clear()
            rows: list[Row] = []
            for _ in range(len(self.ended)):
                task_id, (name, queue, worker, root), sent, began, ended = self.ended.popleft()
                row = ["SUCCESS", name, queue, worker, pid, sent["run"], 0, root == task_id, None, None, None,
                       int(sent["at"] * 1e4), int(began * 1e4), int(ended * 1e4), int((ended - began) * 1e6)]
                known = f"run {sent['key']} 9 0"
                rows.append((f"least/tasks/{task_id}/state", task_id, known, int(ended * 1000), json.dumps(row).encode()))
            batch.write(rows)
