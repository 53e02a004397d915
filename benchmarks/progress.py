"""One progress call in a task body, beside `self.update_state`, a SET of redis-py and a dict under a lock.

The task runs all variants itself, in its pool child, so that each sees the
same process, the same request and the same server.
"""
from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import common
import redis
from celery import Celery

from celery_memsync import MemSync

URL = os.environ.get("BENCH_URL", "")
ROUNDS = 15
PEER = "update_state"

app = Celery("bench", broker=f"{URL}/0", backend=f"{URL}/1")
app.conf.update(memsync_backend=f"{URL}/2", broker_connection_retry_on_startup=True)
if URL:
    memsync = MemSync(app)


def timed(call: Callable[[int], object], number: int) -> Callable[[], common.Round]:
    def run() -> common.Round:
        began = time.perf_counter()
        for i in range(number):
            call(i)
        return {"microseconds": (time.perf_counter() - began) / number * 1e6}
    return run


@app.task(bind=True, name="bench.progress")
def progress(self: Any) -> Any:
    lock, shared = threading.Lock(), {}

    def dict_under_lock(i: int) -> None:
        figures = {"current": i, "total": 10 ** 9, "message": "reading"}
        with lock:
            shared["task"] = figures

    client = redis.Redis.from_url(f"{URL}/3")

    def raw_set(i: int) -> None:
        client.set("progress", json.dumps({"current": i, "total": 10 ** 9, "message": "reading"}))

    count = iter(range(10 ** 9)).__next__
    variants = {
        "update_state": timed(
            lambda i: self.update_state(state="PROGRESS", meta={"current": i, "total": 10 ** 9, "message": "reading"}), 300),
        "raw_set": timed(raw_set, 1000),
        "progress": timed(lambda i: memsync.progress(count(), 10 ** 9, "reading"), 20_000),
        "dict_under_lock": timed(dict_under_lock, 20_000),
    }
    return common.table(common.interleave(variants, ROUNDS), PEER)


def main() -> None:
    with common.server() as url:
        os.environ["BENCH_URL"] = url
        with common.worker(__file__, env={"BENCH_URL": url}):
            sender = Celery("bench", broker=f"{url}/0", backend=f"{url}/1")
            common.say("progress", PEER, sender.send_task("bench.progress").get(timeout=300))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        app.worker_main(["worker", "-c", "1", "-l", "ERROR"])
    else:
        main()
