"""A broker, a Redis for the shared state, and the workers and producers on them."""
from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

from celery import Celery
from celery.result import AsyncResult

from celery_memsync import MemorySyncManager, MemSync
from tests.support.celery_worker import Worker
from tests.support.waiting import eventually

TASKS = "tests.support.tasks"

_numbers = itertools.count(1)


class Result(AsyncResult):
    """A result that may outlive its backend, as those of tests that failed do."""

    def __del__(self):
        pass


class Fleet:
    """An app with a queue and a namespace of its own.

    Args:
        folder: Where logs and notes go.
        broker: A server with a ``url``, and in ``conf`` what an app needs for it.
        conf: Further configuration of its app, for workers and producers.
    """

    def __init__(self, folder, broker, store, **conf):
        number = next(_numbers)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.notes_file = self.folder / f"notes-{number}.jsonl"
        self.broker = broker
        self.store = store
        self.name = f"fleet-{number}"
        self.conf = {
            "broker_url": broker.url,
            "broker_connection_retry_on_startup": True,
            "result_backend": store.url if broker.url.startswith("amqp") else broker.url,
            "include": [TASKS],
            "memsync_backend": store.url,
            "memsync_heartbeat_interval": 0.5,
            "memsync_namespace": self.name,
            "memsync_signing_key": "0123456789abcdef-fleet",
            "memsync_worker_ttl": 15.0,
            "task_default_queue": self.name,
            **broker.conf,
            **conf,
        }
        self.workers = []
        self._managers = []
        self.app = self.producer()
        self.reader = self.manager()

    def env(self, **conf):
        """Return the environment that makes a process one of this fleet."""
        return {
            "MEMSYNC_TEST_CONF": json.dumps({**self.conf, **conf}),
            "MEMSYNC_TEST_NOTES": str(self.notes_file),
        }

    def producer(self, **conf):
        """Return an app that sends tasks from this process."""
        app = Celery(self.name, set_as_current=False)
        app.AsyncResult = app.subclass_with_self(Result, name="AsyncResult")
        app.conf.update({**self.conf, **conf})
        app.loader.import_default_modules()
        self._managers.append(MemSync(app))
        return app

    def manager(self, **settings):
        """Return a manager that reads the shared state from this process."""
        same = {name: self.conf[f"memsync_{name}"] for name in ("namespace", "heartbeat_interval", "worker_ttl")}
        settings = {**same, **settings}
        manager = MemorySyncManager(worker_id="the-test", url=self.store.url, **settings)
        self._managers.append(manager)
        return manager

    def worker(self, *args, app="tests.support.proj", **conf):
        """Return a worker that is not started yet."""
        name = f"w{len(self.workers) + 1}-{self.name}@test"
        args = ["-n", name, "--without-gossip", "--without-mingle", *args]
        worker = Worker(app, self.folder / f"{name}.log", *args, env=self.env(**conf))
        worker.name = name
        self.workers.append(worker)
        return worker

    def start_worker(self, *args, **conf):
        """Return a worker that is ready."""
        return self.worker(*args, **conf).start()

    def start_all(self, *workers):
        """Start workers at the same time; return them when all are ready."""
        for worker in workers:
            worker.launch()
        return [worker.wait_ready() for worker in workers]

    def close(self):
        """Kill the workers that still run."""
        for worker in self.workers:
            worker.stop(signal.SIGKILL)
        for manager in self._managers:
            manager.shutdown(timeout=0.2)
            if isinstance(manager, MemSync):
                manager.signals.disconnect()
        self.app.close()

    # -- tasks

    def task(self, name):
        """Return one of the test's tasks, as this process has it."""
        return self.app.tasks[f"{TASKS}.{name}"]

    def send(self, name, *args, **options):
        """Send a task and return its result to be."""
        return self.task(name).apply_async(args, **options)

    def state(self, task_id):
        """Return the state of a task, {} if it is unknown."""
        return self.reader.get_task_state(task_id) or {}

    def status(self, task_id):
        return self.state(task_id).get("status")

    def runs(self, task_id):
        """Return the statuses of the runs of a task, oldest first."""
        return [run["status"] for run in (self.reader.get_task(task_id) or {"runs": []})["runs"]]

    def wait(self, result, *statuses, timeout=15):
        """Return the state of a task when it has one of these statuses."""
        def reached():
            state = self.state(result.id)
            return state if state.get("status") in statuses else None

        try:
            return eventually(reached, timeout, f"{result.id} is not {statuses}")
        except AssertionError as exc:
            logs = "".join(worker.output()[-3000:] for worker in self.workers)
            raise AssertionError(f"{exc}; its state is {self.state(result.id)}\n{logs}") from None

    def wait_runs(self, result, statuses, timeout=10):
        """Return the runs of a task when they have these statuses.

        Another process may record an earlier run later.
        """
        def reached():
            runs = (self.reader.get_task(result.id) or {"runs": []})["runs"]
            return runs if [run["status"] for run in runs] == statuses else None

        try:
            return eventually(reached, timeout)
        except AssertionError:
            raise AssertionError(f"the runs of {result.id} are {self.runs(result.id)}, not {statuses}") from None

    def wait_progress(self, result, current, timeout=10):
        """Return the progress of a task when it has come so far."""
        def reached():
            progress = self.reader.get_task_progress(result.id)
            return progress if progress and progress["current"] == current else None

        return eventually(reached, timeout, f"the progress of {result.id}")

    def notes(self, what, task_id):
        """Return what workers noted of a task."""
        lines = self.notes_file.read_text().splitlines() if self.notes_file.exists() else []
        rows = map(json.loads, lines)
        return [row for row in rows if (row["what"], row["id"]) == (what, task_id)]

    def unacked(self):
        """Return how many messages of this fleet the broker has given out that are not acknowledged."""
        with self.broker.client() as client:
            # Workers of other fleets that were killed have left theirs.
            return sum(json.loads(row)[2] == self.name for row in client.hvals("unacked"))

    # -- workers

    def record(self, worker):
        """Return what is known of a worker, None if nothing."""
        return next((record for record in self.reader.get_workers() if record.worker_id == worker.name), None)

    def wait_record(self, worker, check, timeout=10):
        """Return the record of a worker when it meets a condition."""
        def met():
            record = self.record(worker)
            return record if record is not None and check(record) else None

        return eventually(met, timeout, f"the record of {worker.name}")

    def wait_running(self, worker, *results, timeout=10):
        """Return the record of a worker when these tasks, and no others, are running there.

        A heartbeat may still show what a test before left running.
        """
        ids = {result.id for result in results}
        return self.wait_record(worker, lambda record: {one["id"] for one in record.running} == ids, timeout)
