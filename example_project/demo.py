"""Take a census of Python's standard library with a Redis and a worker of its own, which end with it."""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from celery import Celery
from celery.states import READY_STATES, SUCCESS
from display import Display, display
from proj import survey

from celery_memsync import StoreError
from celery_memsync.store import embedded

HERE = Path(__file__).resolve().parent

CELERY = (sys.executable, "-m", "celery", "-A", "proj")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds between two looks at the memory.
PAUSE = 0.1

#: Most seconds to wait for a thing to come true.
PATIENCE = 300.0

#: Seconds that a stopping worker may take to finish what it has.
WARM = 15.0

#: Percent of the census at which ``memsync status`` is shown.
MIDDLE = 30


class DemoError(Exception):
    """What ends the demo early; the text is for people."""


def main() -> int:
    """Run the demo; return the exit code."""
    options = arguments()
    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="census-") as location:
            return run(Path(location), options)
    except (DemoError, StoreError) as exc:
        print(f"demo.py: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has closed the pipe; the interpreter must not fail when it flushes the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("Interrupted; all that was started is stopped.", file=sys.stderr)
        return 128 + signal.SIGINT


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("census"),
                        help="where report.md and census.json go (default: ./census)")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N modules only, spread over the whole library")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be 1 or more")
    return options


def interrupt(*_: Any) -> None:
    """End the demo in good order, whichever signal it was; further ones do not disturb that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(location: Path, options: argparse.Namespace) -> int:
    """Take the census, show it and check it; return the exit code."""
    folder = new_folder(options.folder)
    with contextlib.closing(display()) as shown:
        with redis(location / "redis") as app:
            with worker(app, location / "worker.log") as alive:
                take_census(shown, app, alive, str(folder), options.limit)
            shown.say(status("When the worker has said goodbye"))
        result = json.loads((folder / "census.json").read_text())
        shown.say(in_short(result))
        shown.say(f"Report: {folder / 'report.md'}")
        return check(shown, result, survey.modules(options.limit))


def new_folder(path: Path) -> Path:
    """Return the absolute path of a folder that is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DemoError(f"the report can't be written: {exc}") from exc
    return path.absolute()


# -- what is started, and stopped again


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Celery]:
    """Run a Redis in a folder of its own, and give an app whose broker, results and memory are there."""
    for name in ("CENSUS_BROKER", "CENSUS_RESULTS"):
        os.environ.pop(name, None)
    os.environ["CENSUS_MEMORY"] = f"embedded://{quote(str(folder))}"
    with contextlib.ExitStack() as stack:
        stack.callback(end_redis, embedded.socket_path(str(folder)))
        from proj.celery import app
        stack.callback(app.close)
        stack.callback(app.memsync.shutdown)
        yield app


def end_redis(path: str) -> None:
    """Stop the Redis now; it would end with its last user, but that is this process, and its folder goes before."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"SHUTDOWN NOSAVE\r\n")
        connection.recv(1)


@contextlib.contextmanager
def worker(app: Celery, log: Path) -> Iterator[Callable[[], None]]:
    """Run a worker with two processes, and give a function that raises DemoError when it has ended."""
    with log.open("wb") as output:
        # A session of its own: a Ctrl-C at the terminal is for the demo, which stops the worker.
        process = subprocess.Popen(
            [*CELERY, "worker", "-c", "2", "-l", "WARNING", "--without-gossip", "--without-mingle"],
            cwd=HERE, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            # What a worker that has to be killed leaves there goes with the folder.
            env={**os.environ, "TMPDIR": str(log.parent)},
        )

    def alive() -> None:
        if process.poll() is not None:
            raise DemoError(f"the worker ended by itself; its last words:\n{log.read_text(errors='replace')[-3000:]}")

    try:
        wait_for(app.memsync.get_active_workers, alive)
        yield alive
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a worker warmly, or, if it takes too long, with all its children at once."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(WARM)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(check: Callable[[], Any], alive: Callable[[], None]) -> Any:
    """Return what a function answers as soon as that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := check()):
        alive()
        if time.monotonic() > deadline:
            raise DemoError(f"nothing more came within {PATIENCE:.0f} s")
        time.sleep(PAUSE)
    return answer


# -- the census


def take_census(shown: Display, app: Celery, alive: Callable[[], None], folder: str, limit: int | None) -> None:
    """Send the census and show how far it is until its report is written."""
    started = time.monotonic()
    coordinator = app.send_task("proj.tasks.census", [folder, limit]).id
    wait_for(lambda: ended(app, coordinator), alive)
    census_id = result_of(app, coordinator)
    with ThreadPoolExecutor(1) as beside:
        looks = []

        def reported() -> bool:
            progress = app.memsync.get_task_progress(census_id)
            if progress is not None:
                shown.show("Census", progress["current"], progress["total"], progress["message"] or "")
                if not looks and progress["progress"] >= MIDDLE:
                    looks.append(beside.submit(lambda: shown.say(status("In the middle"))))
            return ended(app, census_id)

        wait_for(reported, alive)
        for look in looks:
            look.result()
    totals = result_of(app, census_id)
    shown.show("Census", totals["modules"], totals["modules"])
    shown.say(f"The census took {time.monotonic() - started:.1f} s.")


def ended(app: Celery, task_id: str) -> bool:
    """Whether there is a result of a task."""
    return app.backend.get_state(task_id) in READY_STATES


def result_of(app: Celery, task_id: str) -> Any:
    """Return what a task that has ended came to."""
    result = app.backend.get_result(task_id)
    if app.backend.get_state(task_id) != SUCCESS:
        raise DemoError(f"the census failed: {result!r}")
    return result


def status(when: str) -> str:
    """Return what ``celery -A proj memsync status`` shows now."""
    done = subprocess.run([*CELERY, "memsync", "status"], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"celery memsync status failed: {done.stderr.strip()}")
    lines = "".join(f"    {line}".rstrip() + "\n" for line in done.stdout.splitlines())
    return f"\n{when}, `celery -A proj memsync status` shows:\n\n{lines}"


def in_short(result: dict[str, Any]) -> str:
    """Return the census in a few lines."""
    totals = result["totals"]
    wanted = ", ".join(f"{name} ({number})" for name, number in result["wanted"][:6])
    return (
        f"{totals['modules']:,} modules, {totals['unreadable']} of them unreadable: {totals['lines']:,} lines, "
        f"{totals['classes']:,} classes, {totals['functions']:,} functions, {totals['imports']:,} imports.\n"
        f"{survey.covered(totals):.1f} % of what can have a docstring has one.\n"
        f"Most wanted: {wanted}."
    )


def check(shown: Display, result: dict[str, Any], modules: list[str]) -> int:
    """Do it all again in a plain loop, and return 0 if that comes to the same."""
    started = time.monotonic()
    found = []
    for number, module in enumerate(modules, 1):
        found.append(survey.measure(module))
        shown.show("Plain loop", number, len(modules), module)
    plain = survey.summary(found)
    if plain == result:
        shown.say(f"A plain loop over the same files comes to the same figures, in {time.monotonic() - started:.1f} s.")
        return 0
    shown.say(f"WRONG: a plain loop over the same files comes to {plain['totals']}, the census to {result['totals']}.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
