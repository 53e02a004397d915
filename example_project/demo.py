"""Take a census of the standard library, kill a worker meanwhile, and check that nothing is lost.

The demo starts a Redis and two workers of its own, and stops them when it ends.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery.states import STARTED, SUCCESS
from display import display
from processes import DemoError, Worker, redis
from proj import survey
from watch import CENSUS, REPORT, Watch, status_of

from celery_memsync import StoreError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Fewest modules that a census takes.
FEWEST = 3

NEXT_STEPS = """\
What to try next:
    example_project/README.md   the same by hand, with `celery -A proj memsync top` beside it
    example_project/proj/       the code: an app, three tasks
    docs/quickstart.md          an app of your own, in five minutes"""


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
        # The reader has closed the pipe; the interpreter flushes the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("Interrupted; all that was started is stopped.", file=sys.stderr)
        return 128 + signal.SIGINT


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("census"),
                        help="where report.md and census.json go (default: ./census)")
    parser.add_argument("--limit", type=int, metavar="N",
                        help="measure N modules only, spread over the whole library")
    options = parser.parse_args()
    if options.limit is not None and options.limit < FEWEST:
        parser.error(f"--limit must be {FEWEST} or more")
    return options


def interrupt(*_: Any) -> None:
    """End the demo in good order, whichever signal it was; ignore further ones."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(location: Path, options: argparse.Namespace) -> int:
    """Take the census, show it and check it; return the exit code."""
    folder = new_folder(options.folder)
    with contextlib.closing(display()) as shown, redis(location / "redis") as app:
        shown.say("A Redis runs. Two workers start, w1@demo and w2@demo, with two processes each.")
        with Worker("w1@demo", location) as first, Worker("w2@demo", location) as second:
            watch = Watch(app, shown, (first, second))
            lost = take_census(watch, str(folder), options.limit)
            shown.say(f"The end:\n\n{watch.output_of('status')}\n")
        result = json.loads((folder / "census.json").read_text())
        wrong = check(watch, lost, result, survey.modules(options.limit))
        totals = result["totals"]
        shown.say("\n".join(f"WRONG: {one}" for one in wrong) or (
            f"Nothing is lost: {' and '.join(lost)} ended on the other worker, after theirs was\n"
            "killed. Nothing is counted twice: a plain count of the same files gives "
            f"{totals['modules']} modules\nwith {totals['lines']:,} lines, too. "
            "The progress of the whole never went backward."))
        shown.say(f"\nReport: {folder / 'report.md'}\n\n{NEXT_STEPS}")
        return 1 if wrong else 0


def new_folder(path: Path) -> Path:
    """Return the absolute path of a folder, which is made if it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DemoError(f"the report can't be written: {exc}") from exc
    return path.absolute()


def take_census(watch: Watch, folder: str, limit: int | None) -> list[str]:
    """Take the census, and kill a worker meanwhile; return the ids of the tasks that it ran."""
    say, memsync = watch.shown.say, watch.app.memsync
    watch.until(lambda _: len(memsync.get_active_workers()) == len(watch.workers))
    say("Both send heartbeats. They measure the modules of Python's standard library.\n")
    watch.app.send_task("proj.tasks.census", [folder, limit], task_id=CENSUS)

    victim, lost = watch.until(watch.worker_in_the_middle)
    other = next(worker for worker in watch.workers if worker is not victim)
    victim.kill()
    say(f"kill -9: {victim.name} and its processes are dead. They were running:\n\n"
        f"{watch.runs_of(lost)}\n")

    watch.until(lambda tasks: all(tasks[one]["state"].get("recoveries") for one in lost))
    say(f"{victim.name} has sent no heartbeat for 3 seconds. {other.name} has marked its tasks as "
        f"LOST, and sent\nthem again:\n\n{watch.runs_of(lost)}\n")
    say(f"Why is {lost[-1]} not done yet?\n\n{watch.output_of('why', lost[-1])}\n")

    watch.until(lambda tasks: all(status_of(tasks[one]) in (STARTED, SUCCESS) for one in lost))
    say(f"They run again, on {other.name}:\n\n{watch.runs_of(lost)}\n")
    watch.until(lambda tasks: status_of(tasks.get(REPORT)) == SUCCESS)
    return lost


def check(
    watch: Watch, lost: Sequence[str], result: dict[str, Any], modules: Sequence[str],
) -> list[str]:
    """Return what is wrong with a census.

    Args:
        lost: Tasks that must have run again, once, to their end.
        result: What the census has counted.
        modules: What it must have counted, each once.
    """
    wrong = list(watch.wrong)
    times, once = Counter(one["module"] for one in result["modules"]), Counter(modules)
    wrong += [f"{one} is counted {times[one]} times" for one in sorted(times | once)
              if times[one] != once[one]]
    lines = sum(len((survey.STDLIB / one).read_bytes().splitlines()) for one in modules)
    if lines != result["totals"]["lines"]:
        wrong.append(f"{lines} lines are counted as {result['totals']['lines']}")
    for task_id in lost:
        runs = [run["status"] for run in watch.app.memsync.get_task(task_id)["runs"]]
        if runs != ["LOST", SUCCESS]:
            wrong.append(f"the runs of {task_id} are {' and '.join(runs)}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
