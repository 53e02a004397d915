"""Workers without Celery: a heartbeat and a monitor of lost workers, which tests call step by step."""
from __future__ import annotations

import itertools

from celery_memsync.fleet.heartbeat import Heartbeat
from celery_memsync.fleet.lost_workers import LostWorkerMonitor
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord
from tests.support.runs import run_key

#: Of workers in tests: seconds between heartbeats, and without one until they are lost.
INTERVAL, TIMEOUT = 0.1, 0.4


class SimulatedWorker:
    """A worker that sends a heartbeat when a test calls for one.

    Args:
        manager: Its view of the shared state.
        worker_id: Its name.
        token: Of its process.
    """

    def __init__(
        self, manager, worker_id, token=None, interval=INTERVAL, timeout=TIMEOUT, keep=60.0,
    ):
        self.manager = manager
        self.worker_id = worker_id
        self.store = manager.runtime.store.with_token(token or manager.runtime.store.token)
        self.store.worker_id = worker_id
        self.events = manager.events.copy()
        self.emitted = []
        for name in ("worker-online", "worker-lost", "task-lost"):
            self.events.on(
                name, lambda name_=name, **details: self.emitted.append((name_, details)))
        self.tasks = {}
        self.losses = LostWorkerMonitor(self.store, self.events, timeout, lambda: list(self.tasks.items()))
        self.heartbeats = []
        self.heartbeat = Heartbeat(self.store, self.record, interval, keep, timeout, self.on_reply)
        self._numbers = itertools.count(1)

    def record(self):
        running = tuple({"id": task_id, "name": "proj.add", "started_at": None} for task_id in self.tasks)
        return WorkerRecord(self.worker_id, running=running)

    def on_reply(self, reply):
        self.heartbeats.append(reply)
        self.losses.take_claims(reply)

    def send_heartbeat(self):
        """Send one heartbeat, and do at once what follows from its reply."""
        self.heartbeat.send()
        self.losses.settle()
        self.events.wait_idle(5)

    def has(self, task_id, status="STARTED", retries=0):
        """Begin a task, as Celery's signals would record it."""
        key = self.tasks[task_id] = run_key(retries, self.store.clock.now())
        self.record_stage(task_id, status)
        return key

    def record_stage(self, task_id, status, **known):
        run = TaskRun(status, name="proj.add", worker=self.worker_id, run=f"{self.store.token}-{task_id}", **known)
        self.manager.sync_task_run(task_id, run, self.tasks[task_id])
        self.manager.runtime.writer.flush()

    def events_of(self, name):
        """Return the details of the events of a name, in order."""
        return [details for emitted, details in self.emitted if emitted == name]
