"""`celery-memsync-probe FILE`: whether a worker is alive, sends heartbeats and consumes, by exit code.

It reads the file that the worker writes (``memsync_probe_file``) and imports
neither an app nor Celery nor Redis's client, so it takes some tens of
milliseconds: cheap enough for a probe every few seconds.
"""
from __future__ import annotations

import json
import os
import sys
import time

#: Exit codes.
FINE, DEAD, SILENT, IDLE, USAGE = 0, 1, 2, 3, 64

HELP = """usage: celery-memsync-probe [--alive | --beating] FILE

Check whether the worker that writes FILE (its setting memsync_probe_file)

  1  is alive: its process is there and its heartbeat thread runs,
  2  sends heartbeats that Redis takes,
  3  consumes: it takes messages, or there are none, or it is about to leave.

The exit code is 0, or the number of the first that is not so. With --alive only
the first is checked, with --beating the first two: Redis and the broker may be
away then, which no restart of a worker fixes.
"""


def probe(path: str, now: float) -> tuple[int, str]:
    """Return an exit code and a sentence about a worker.

    Args:
        now: The monotonic time.
    """
    try:
        with open(path) as file:
            facts = json.load(file)
        pid, last, replied_at, within = int(facts["pid"]), float(facts["round"]), facts["replied_at"], float(facts["within"])
    except OSError as exc:
        return DEAD, f"no worker writes this file: {exc.strerror}"
    except (ValueError, KeyError, TypeError):
        return DEAD, "no worker wrote this file"
    if not is_there(pid):
        return DEAD, f"the worker's process {pid} has ended"
    if not 0 <= now - last <= within:
        return DEAD, (
            f"the heartbeat thread of the worker's process {pid} has not run for more than "
            f"{within:g} s")
    if not isinstance(replied_at, (int, float)) or now - replied_at > within:
        return SILENT, f"Redis has taken no heartbeat of the worker for more than {within:g} s"
    if not facts.get("consuming"):
        return IDLE, "the worker consumes nothing"
    return FINE, "the worker is alive, sends heartbeats and consumes"


def is_there(pid: int) -> bool:
    """Whether there is a process."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def main() -> int:
    """Run the command line; return the exit code."""
    options = [arg for arg in sys.argv[1:] if arg.startswith("-")]
    files = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    if "-h" in options or "--help" in options:
        sys.stdout.write(HELP)
        return FINE
    most = {(): IDLE, ("--alive",): DEAD, ("--beating",): SILENT}.get(tuple(options))
    if most is None or len(files) != 1:
        sys.stderr.write(HELP)
        return USAGE
    code, text = probe(files[0], time.monotonic())
    print(text)
    return code if code <= most else FINE


if __name__ == "__main__":
    sys.exit(main())
