"""An app whose worker counts the calls of Python functions, in its main process and in its pool children."""
from __future__ import annotations

import json
import os
import sys
import threading

from celery import Celery, signals

from celery_memsync import MemSync

app = Celery("counted")
app.conf.update(json.loads(os.environ["MEMSYNC_TEST_CONF"]))
# Batches and heartbeats cost calls of their own, and a slow machine would make more of them for as many tasks.
app.conf.update(memsync_batch_interval=60.0, memsync_heartbeat_interval=60.0, memsync_worker_ttl=600.0)
memsync = MemSync(app)

calls = {"all": 0, "ours": 0}


@app.task(name="noop")
def noop():
    """Do nothing."""


def _count(frame, event, arg):
    if event == "call":
        calls["all"] += 1
        calls["ours"] += "/celery_memsync/" in frame.f_code.co_filename


def _begin_thread(frame, event, arg):
    # The other threads of the package do what they do by the clock, whatever the tasks are.
    name = threading.current_thread().name
    sys.setprofile(None if name.startswith("memsync-") and name != "memsync-writer" else _count)


def begin(**_):
    memsync.runtime.store.connect()  # as after the first batch: until then a child takes Redis's time from its parent
    calls.update(all=0, ours=0)
    threading.setprofile(_begin_thread)
    sys.setprofile(_count)


def write(process):
    memsync.force_sync()
    with open(f"{os.environ['MEMSYNC_TEST_NOTES']}.{process}", "w") as file:
        json.dump(calls, file)


signals.worker_init.connect(begin, weak=False)
signals.worker_process_init.connect(begin, weak=False)
signals.worker_process_shutdown.connect(lambda **_: write("child"), weak=False)
signals.worker_shutdown.connect(lambda **_: write("main"), weak=False)
