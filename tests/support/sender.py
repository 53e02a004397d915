"""An app that plays producer, lost worker and requeueing worker in one process."""
from __future__ import annotations

import time

from celery import Celery
from celery.worker.request import Request

from celery_memsync import MemSync
from celery_memsync.models.order import run_key_of
from celery_memsync.models.task import TaskRun
from celery_memsync.store import LostWorkerClaim
from tests.support.runs import run_key
from tests.support.waiting import eventually

LOSS = LostWorkerClaim(b"a 1 w", "a", "w", 0.0, b"5", float("inf"))

KEY = "0123456789abcdef-test"


class Sender:
    """An app whose messages are taken from the broker by hand, as a worker does it."""

    def __init__(self, url, **conf):
        self.app = Celery("proj", broker=url, set_as_current=False)
        self.app.conf.update({
            "memsync_backend": url, "memsync_recover": "requeue", "memsync_signing_key": KEY,
            "memsync_batch_interval": 0.01, "task_default_queue": "q", **conf})
        self.memsync = MemSync(self.app)
        self.messages = self.memsync.signals.kept
        self.requeuer = self.memsync.signals.requeuer
        self.connection = self.app.connection_for_read()
        self.taken = []

    def task(self, **options):
        @self.app.task(name="proj.add", shared=False, **options)
        def add(*args, **kwargs):
            pass

        return add

    def take(self, task, queue="q"):
        """Return the request of the next message, None if there is none."""
        message = self.app.amqp.queues[queue].bind(self.connection.default_channel).get(accept=["json", "pickle"])
        if message is None:
            return None
        message.ack()
        self.taken.append(Request(message, app=self.app, task=task))
        return self.taken[-1]

    def receive(self, request, number=1, recoveries=0):
        """Receive a request, record that it runs, and return the id of its run."""
        store = self.memsync.runtime.store
        run, key = f"{store.token}-{number}", run_key(0, number)
        self.messages.add(request, run, key, recoveries, self.memsync.settings)
        self.memsync.sync_task_run(request.id, TaskRun("STARTED", name=request.name, run=run), key)
        self.memsync.force_sync()
        return run

    def run_one(self, task, **options):
        """Send a task and receive it; return its request when its message is kept."""
        task.apply_async((1,), **options)
        request = self.take(task)
        self.receive(request)
        eventually(self.kept)
        return request

    def stage(self, task_id):
        """Return the stage of a task as it is stored."""
        return TaskRun.read(self.memsync.runtime.store.read_tasks([task_id])[0].slots[1], task_id)

    def run_key(self, task_id):
        """Return which run the stored stage of a task is of."""
        return run_key_of(self.memsync.runtime.store.read_tasks([task_id])[0].slots[1].header.run)

    def lose(self, *task_ids, token=None):
        """Mark tasks of a process as LOST and requeue them as another worker does."""
        store = self.memsync.runtime.store
        for task_id in task_ids:
            self.memsync.sync_task_run(task_id, self.stage(task_id).evolve(status="LOST"), self.run_key(task_id))
        self.memsync.force_sync()
        store.redis.zadd(store.keys.lost, {LOSS.name: float(LOSS.score)})
        return self.requeuer.settle([LOSS._replace(token=token or store.token)])

    def forge_loss(self, redis, task_id, run, signed, stage, key):
        """Write past the package that a run is LOST and that its message is kept, as an attacker does."""
        self.memsync.force_sync()
        redis.hset(self.memsync.runtime.keys.messages(run.partition("-")[0]), run, signed)
        header = f"1 {key} 3 0 {round(time.time() * 1000)} 60000 0 token123.1 w\n".encode()
        redis.set(self.memsync.runtime.keys.task(task_id), header + stage.evolve(status="LOST").encode(task_id), px=60_000)

    def kept(self):
        return self.memsync.runtime.store.read_messages(self.memsync.runtime.store.token)[1]

    def close(self):
        self.connection.release()
        self.memsync.signals.disconnect()
        self.memsync.shutdown(timeout=0.5)
        self.app.close()
