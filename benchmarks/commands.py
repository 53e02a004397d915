"""The command line: looking at one worker, and what our entry point costs every `celery` process, beside Celery's own.

`--help` of Celery itself loads the command line, and with it this package; an `import` without us is the floor of
that.  The worker is idle.
"""
from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import common
from celery import Celery

from celery_memsync import MemorySyncManager, MemSync

ROUNDS = 11
IMPORT = "import celery.bin.celery"
WITHOUT_US = "import importlib.metadata as m; found = m.entry_points; m.entry_points = lambda **a: []; " + IMPORT

COMMANDS = {
    "inspect_ping": ["-m", "celery", "-A", "commands", "inspect", "ping"],
    "status_of_celery": ["-m", "celery", "-A", "commands", "status"],
    "memsync_workers": ["-m", "celery", "-A", "commands", "memsync", "workers"],
    "memsync_status": ["-m", "celery", "-A", "commands", "memsync", "status"],
    "memsync_doctor": ["-m", "celery", "-A", "commands", "memsync", "doctor"],
    "memsync_help": ["-m", "celery", "-A", "commands", "memsync", "--help"],
    "import_with_us": ["-c", IMPORT],
    "import_without_us": ["-c", WITHOUT_US],
}


def make_app(url: str) -> Any:
    app = Celery("commands", broker=f"{url}/1")
    app.conf.update(broker_connection_retry_on_startup=True, memsync_backend=f"{url}/2")
    MemSync(app)
    return app


def runner(arguments: list[str], url: str) -> Callable[[], common.Round]:
    """Return what runs a program to its end and tells how long it took."""
    folder = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "BENCH_URL": url, "PYTHONPATH": f"{common.ROOT}{os.pathsep}{folder}"}

    def run() -> common.Round:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
        ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"ms": (ended - began) * 1000, "cpu_ms": cpu * 1000}

    return run


def main() -> None:
    with common.server() as url, common.worker(__file__, env={"BENCH_URL": url}):
        with MemorySyncManager(worker_id="bench", url=f"{url}/2") as memory:
            while not any(worker.consuming for worker in memory.get_workers()):
                time.sleep(0.2)
        time.sleep(5)  # until it hears Celery's remote control, too
        samples = common.interleave({name: runner(line, url) for name, line in COMMANDS.items()}, ROUNDS)
    looking = {name: rows for name, rows in samples.items() if not name.startswith("import")}
    loading = {name: rows for name, rows in samples.items() if name.startswith("import")}
    common.say("commands", "inspect_ping; import_without_us", {
        "looking": common.table(looking, "inspect_ping"), "loading": common.table(loading, "import_without_us")})


if "BENCH_URL" in os.environ:
    app = make_app(os.environ["BENCH_URL"])

if __name__ == "__main__":
    if "--worker" in sys.argv:
        app.worker_main(["worker", "-c", "1", "-l", "ERROR"])
    else:
        main()
