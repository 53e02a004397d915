"""Bytes that atheris makes up, thrown at everything that reads what others may have written.

Usage (atheris is not installed by the extras: its wheels are for some Pythons on Linux only)::

    pip install atheris
    python -m tests.faults.fuzz --seconds 60

What is found is an exception that the function does not promise.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

#: Of the repository; nothing of the package may be imported yet.
ROOT = Path(__file__).resolve().parents[2]

#: Files of a task's page, a worker, a lock as they are, for a start.
SEEDS = (
    b'4 1.1:KcWd02xs-3.0.PtGcmlu6-1 9 0 1795366098347 3600000 61 hmKJTHAO.19,PtGcmlu6.1 celery@vm\n'
    b'["SUCCESS","proj.convert","celery"]',
    b'1 - - 1795366095325000 1795366098347 3600000 0 a.1 w\n{"task_id":"t1"}',
    b'["SUCCESS","n","q","w",1,17953660953140,31,92,30201,3020100,"r",1,false,null,null,9,{"type":"E","message":"m"}]',
    b'[50.0,1,2,"m",1795366095326,3020,"r","s",{"x":1},"p",2,9]',
    b'{"status":"active","capacity":{"total":8},"queues":["celery"],"running":[{"id":"x"}],"load":[1,2,3],"stretch":2}',
    b"tasks/*/state", b"a[b-d]c?\\*", b"redis-cluster://u:p@h:1,h2:2/0?x=1", b"sentinel://h:1;sentinel://h:2",
)


#: What is thrown at.
TARGETS = ("entry", "body", "page", "message", "fields", "key", "id", "pattern", "url")


def targets():
    """Return what is thrown at, by name: a function of bytes, and what it may raise."""
    from celery_memsync import encoding
    from celery_memsync.exceptions import InvalidKey
    from celery_memsync.globs import matcher
    from celery_memsync.integration.requests import timestamp
    from celery_memsync.keys import Keys, check_id
    from celery_memsync.models.entry import Header, StoredEntry
    from celery_memsync.models.progress import progress_from
    from celery_memsync.models.task import TaskRun
    from celery_memsync.models.worker import WorkerRecord
    from celery_memsync.reading.projections import entry_of, state_of, worker_record
    from celery_memsync.reading.subscriptions import _parts_of
    from celery_memsync.settings import Settings
    from celery_memsync.store.clock import Clock
    from celery_memsync.store.entries import split_page
    from celery_memsync.store.script_caller import stored_of
    from celery_memsync.writing.version_tracker import MergeBase

    keys, clock = Keys("task-sentinel"), Clock()

    def text(data):
        return data.decode(errors="surrogateescape")

    def an_entry(data):
        stored = stored_of(data)
        if stored is not None:
            stored.absent(clock.now())
            stored.entry("a")
            MergeBase.of(stored, clock).size
            worker_record("w", stored, 0.0, 15.0).as_dict()
            for path in ("a", "tasks/t1/state", "tasks/t1/progress"):
                location = keys.location(path)
                entry_of(location, {location.slot: stored}, clock.now())
            state_of("t1", {slot: stored for slot in (1, 2)})

    def a_body(data):
        value = StoredEntry(Header(1, "-", "-", 0, 0, 1, 0, "-", "w"), data).value
        run = TaskRun.from_row(value, "t1")
        if run is not None:
            run.as_dict()
            run.encode("t1")
        progress_from(value)
        WorkerRecord.from_dict("w", value).as_dict()
        timestamp(value)

    return {
        "entry": (an_entry, ()),
        "body": (a_body, ()),
        "page": (lambda data: [stored_of(part) for part in split_page(data)], ()),
        "message": (lambda data: _parts_of(keys.location("tasks/t1/state"), data, lambda _, stored: stored), (ValueError,)),
        "fields": (lambda data: encoding.split_fields(data), encoding.UNREADABLE),
        "key": (lambda data: keys.location(text(data)), (InvalidKey,)),
        "id": (lambda data: check_id(text(data), "task"), (InvalidKey,)),
        "pattern": (lambda data: matcher(text(data))("tasks/t1/state"), (InvalidKey,)),
        "url": (lambda data: Settings.build({"backend": text(data)}), ()),
    }


def throw(name, seconds, folder):
    """Let atheris do it, in this process; it does not return."""
    import atheris
    from celery.exceptions import ImproperlyConfigured

    with atheris.instrument_imports(include=["celery_memsync"]):
        function, allowed = targets()[name]  # it is imported here, and not before
    allowed = (*allowed, ImproperlyConfigured)

    def one(data):
        try:
            function(data)
        except allowed:
            pass

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", folder], one)
    atheris.Fuzz()


def main():
    """Throw at each target in a process of its own; return how many have fallen."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=TARGETS)
    args = parser.parse_args()
    fallen = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS):
            with open(f"{folder}/{number}", "wb") as file:
                file.write(seed)
        if args.target:
            throw(args.target, args.seconds, folder)
        for name in TARGETS:
            done = subprocess.run(
                [sys.executable, "-m", "tests.faults.fuzz", "--target", name, "--seconds", str(args.seconds)], cwd=ROOT,
                capture_output=True, text=True)
            fallen += done.returncode != 0
            text = done.stderr[-3000:] + done.stdout[-3000:] if done.returncode else "nothing found"
            print(f"{name:10} {text}", flush=True)
    return fallen


if __name__ == "__main__":
    sys.exit(main())
