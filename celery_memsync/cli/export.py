"""`celery memsync export FILE`: every entry as a line of JSON."""
from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Callable, Iterator

import click
from celery.bin.base import CeleryCommand
from celery.exceptions import CeleryCommandException

from .. import values
from ..records import Entry
from .output import json_option, memory_of, say_json, visible
from .terminal import orderly_end

#: Stands for standard output.
PIPE = "-"

#: Moves the cursor of a terminal to the begin of its line and clears the line.
REWRITE = "\r\x1b[K"

#: Seconds between two updates of the count on a terminal.
PAUSE = 0.1


@click.command(cls=CeleryCommand)
@click.argument("path", metavar="FILE")
@json_option
@click.pass_context
def export(ctx: click.Context, path: str, as_json: bool) -> None:
    """Write every entry into a file, as a line of JSON. '-' is standard output."""
    count = 0
    with memory_of(ctx) as memsync, orderly_end(), _file_errors(path), _progress(path) as show:
        with _replaced(path) as file:
            for count, entry in enumerate(memsync.iter_entries(), 1):
                file.write(_line(entry))
                show(count)
    if path == PIPE:
        return
    if as_json:
        say_json(ctx, {"entries": count, "file": path})
    else:
        ctx.obj.echo(f"Wrote {count} entries to {visible(path, limit=None)}.")


def _line(entry: Entry) -> bytes:
    """Return an entry as `get --json` prints it, with null for a value that is not JSON."""
    try:
        return values.dumps(vars(entry)) + b"\n"
    except (TypeError, ValueError, RecursionError):
        # Python's decoder reads NaN and infinities, which another program may have written.
        return values.dumps(vars(entry.evolve(None))) + b"\n"


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Report an error of the file as one line with an exit code; click handles broken pipes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        reason = f"{visible(path, limit=None)}: {exc.strerror or exc}"
        raise CeleryCommandException(reason, exit_code=os.EX_CANTCREAT) from exc


@contextlib.contextmanager
def _replaced(path: str) -> Iterator[IO[bytes]]:
    """Open a file that replaces the one at a path when all is written."""
    if path == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # A device or a named pipe cannot be replaced.
        with open(target, "wb") as device:
            yield device
        return
    # Its mode is 0600, because entries may hold secrets.
    prefix = f".{target.name[:100]}."
    file = tempfile.NamedTemporaryFile(dir=target.parent, prefix=prefix, delete=False)
    try:
        with file:
            yield file.file
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)
        raise


@contextlib.contextmanager
def _progress(path: str) -> Iterator[Callable[[int], None]]:
    """Provide a function that shows a count on stderr, if it is a terminal."""
    # The lines themselves may go to the same terminal.
    shows = sys.stderr.isatty() and not (path == PIPE and sys.stdout.isatty())
    shown_at = 0.0

    def show(count: int) -> None:
        nonlocal shown_at
        if shows and (now := time.monotonic()) - shown_at >= PAUSE:
            shown_at = now
            print(end=f"{REWRITE}{count} entries", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shows:
            print(end=REWRITE, file=sys.stderr, flush=True)
