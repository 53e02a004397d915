"""One progress call in the body of a task, beside ``self.update_state``.

    update_state  Celery's own, with the result backend in Redis
    SET           of JSON, by redis-py
    floor         a dict under a lock
    memsync       ``memsync.progress``

The task runs all variants itself, in its pool child, so that each has the same process, the same
request and the same server.
"""
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import common
import floors
import redis
from celery import Celery

from celery_memsync import MemSync

URL = os.environ.get("BENCH_URL", "")
ROUNDS = common.sized(15, quick=4)

app = Celery("bench", broker=f"{URL}/0", backend=f"{URL}/1")
app.conf.update(memsync_backend=f"{URL}/2", broker_connection_retry_on_startup=True)
if URL:
    memsync = MemSync(app)


def figures(current: int) -> dict[str, Any]:
    return {"current": current, "total": 10 ** 9, "message": "reading"}


def timed(call: Callable[[int], object], number: int) -> Callable[[], common.Round]:
    def run() -> common.Round:
        began = time.perf_counter()
        for current in range(number):
            call(current)
        return {"time, µs": (time.perf_counter() - began) / number * 1e6}
    return run


@app.task(bind=True, name="bench.progress")  # type: ignore[untyped-decorator]
def progress(self: Any) -> Any:
    client, cache, numbers = redis.Redis.from_url(f"{URL}/3"), floors.Cache(), count()
    variants = {
        "update_state": timed(
            lambda current: self.update_state(state="PROGRESS", meta=figures(current)), 300),
        "SET": timed(lambda current: client.set("progress", json.dumps(figures(current))), 1000),
        "floor": timed(lambda current: cache.set("task", figures(current)), 20_000),
        "memsync": timed(lambda _: memsync.progress(next(numbers), 10 ** 9, "reading"), 20_000),
    }
    return common.compare(variants, ROUNDS)


def main() -> None:
    with common.server() as url, common.worker(__file__, env={"BENCH_URL": url}):
        sender = Celery("bench", broker=f"{url}/0", backend=f"{url}/1")
        result = sender.send_task("bench.progress").get(timeout=300)
    common.print_results("progress", {"A progress call": result})


if __name__ == "__main__":
    if "--worker" in sys.argv:
        app.worker_main(["worker", "-c", "1", "-l", "ERROR"])
    else:
        main()
