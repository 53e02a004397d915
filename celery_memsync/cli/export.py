"""`celery memsync export FILE`: every entry as a line of JSON."""
from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import click

from .command import command
from .output import fail, json_option, json_text, memory_of, print_json, print_line, rewrite_line
from .terminal import orderly_end

#: Stands for standard output.
PIPE = "-"

#: Seconds between two updates of the count on a terminal.
PAUSE = 0.1


@command(examples=["export shared-state.jsonl", "export - | gzip > shared-state.jsonl.gz"],
         exit_codes={os.EX_CANTCREAT: "the file can't be written"})
@click.argument("path", metavar="FILE")
@json_option
@click.pass_context
def export(ctx: click.Context, path: str, as_json: bool) -> None:
    """Write every entry into a file, as a line of JSON. '-' is standard output."""
    count = 0
    with memory_of(ctx) as memsync, orderly_end(), _file_errors(path), _progress(path) as show:
        with _replaced(path) as file:
            for count, entry in enumerate(memsync.iter_entries(), 1):
                file.write(json_text(vars(entry)).encode() + b"\n")
                show(count)
    if path == PIPE:
        return
    if as_json:
        print_json(ctx, {"entries": count, "file": path})
    else:
        print_line(ctx, f"Wrote {count} {'entry' if count == 1 else 'entries'} to {path}.")


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Report an error of the file as one line with an exit code; click handles broken pipes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        fail(f"{path}: {exc.strerror or exc}", os.EX_CANTCREAT)


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
            rewrite_line(f"{count} entries")

    try:
        yield show
    finally:
        if shows:
            rewrite_line("")
