"""`celery memsync export FILE` and `import FILE`: the whole memory into a file, and back."""
from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Callable, Iterator

import click
from celery.bin.base import CeleryCommand

from ..archive import Archive, BadLine, Report, lines_of, restore
from ..exceptions import StoreError
from ..plugin import MemSync
from .output import fail, json_option, memory_of, print_error, print_json, print_line, rewrite_line, shorten
from .terminal import orderly_end

#: Stands for standard output, and standard input.
PIPE = "-"

#: Bytes of what comes through a pipe that are kept in memory; what is more goes into a temporary file.
IN_MEMORY = 2 ** 20

#: Bytes of a line, if values are not allowed to be large: what is merged may be larger than what is told at once.
LONGEST = 2 ** 26

#: Bad lines that are told.
TOLD = 10

#: Seconds between two looks of a terminal at how far it is.
PAUSE = 0.1


@click.command("export", cls=CeleryCommand)
@click.argument("path", metavar="FILE")
@json_option
@click.pass_context
def export(ctx: click.Context, path: str, as_json: bool) -> None:
    """Write the whole memory into a file. '-' is standard output; each line is a JSON document."""
    with memory_of(ctx) as memsync, _shown("exported") as show:
        entries = -2  # the first and the last line are none
        with _errors_of(path, os.EX_CANTCREAT), orderly_end(), _written(path) as file:
            for line in lines_of(memsync.store):
                file.write(line)
                entries += 1
                show(max(0, entries), None)
            file.flush()
    if as_json and path != PIPE:
        print_json(ctx, {"entries": entries, "file": path})
    elif path != PIPE:
        print_line(ctx, f"{entries} entries are in {path}.")


@click.command("import", cls=CeleryCommand)
@click.argument("path", metavar="FILE")
@json_option
@click.pass_context
def import_(ctx: click.Context, path: str, as_json: bool) -> None:
    """Put what was exported back, unless newer entries are there. '-' is standard input."""
    report = Report()
    with memory_of(ctx) as memsync, _errors_of(path, os.EX_NOINPUT), _read(path) as file:
        try:
            longest = max(LONGEST, 8 * memsync.settings.max_value_size)
            archive = Archive(file, memsync.store, longest, memsync.settings.worker_ttl)
            total = _check(ctx, archive)
            _import(ctx, memsync, archive, report, total)
        except BadLine as exc:
            fail(f"{exc}; nothing was imported.", os.EX_DATAERR)
    if as_json:
        print_json(ctx, {
            "namespace": archive.namespace, "entries": report.total, "imported": report.counts["ok"],
            "same": report.counts["same"], "newer": report.counts["newer"], "refused": report.counts["error"],
            "newer_keys": report.newer, "errors": [{"key": key, "error": why} for key, why in report.errors]})
    else:
        _say(ctx, report)
    if report.counts["newer"] or report.counts["error"]:
        ctx.exit(1)


def _check(ctx: click.Context, archive: Archive) -> int:
    """Read all of an archive before anything is written; return how many entries it has."""
    bad: list[BadLine] = []
    more = 0

    def on_bad(line: BadLine) -> None:
        nonlocal more
        if len(bad) < TOLD:
            bad.append(line)
        else:
            more += 1

    count = 0
    with _shown("checked") as show:
        for count, _ in enumerate(archive.entries(on_bad), 1):
            show(count, None)
    for line in bad[:-1]:
        print_error(ctx, str(line))
    if more:
        print_error(ctx, f"and {more} lines more")
    if bad:
        raise bad[-1]
    return count


def _import(ctx: click.Context, memsync: MemSync, archive: Archive, report: Report, total: int) -> None:
    def counted() -> Iterator[Any]:
        for one in archive.entries():
            show(report.total, total)
            yield one

    with _shown("imported") as show, orderly_end():
        try:
            restore(memsync.store, counted(), report)
        except (StoreError, KeyboardInterrupt, SystemExit):
            print_error(ctx, f"{report.total} of {total} entries were looked at, and {report.counts['ok']} imported; "
                        "what is there already is passed over if you import the file again.")
            raise


def _say(ctx: click.Context, report: Report) -> None:
    counts = report.counts
    print_line(ctx, f"{counts['ok']} of {report.total} entries were imported"
               + (f", {counts['same']} were there already" if counts["same"] else "")
               + (f", {counts['newer']} are newer here" if counts["newer"] else "")
               + (f", {counts['error']} were refused" if counts["error"] else "") + ".")
    for key in report.newer:
        print_error(ctx, f"newer here: {key}")
    if counts["newer"] > len(report.newer):
        print_error(ctx, f"and {counts['newer'] - len(report.newer)} more")
    for key, why in report.errors:
        print_error(ctx, f"refused: {key}: {shorten(why)}")


# -- files

@contextlib.contextmanager
def _errors_of(path: str, code: int) -> Iterator[None]:
    """Turn errors of the system about a file into one line and an exit code; those of pipes are click's."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        fail(f"{path}: {exc.strerror or exc}", code)


@contextlib.contextmanager
def _written(path: str) -> Iterator[IO[bytes]]:
    """Give what to write to; a file has its name only when all is in it."""
    if path == PIPE:
        yield sys.stdout.buffer
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        with open(target, "wb") as device:
            yield device
        return
    # Only for its owner, as what is in it may be.
    file = tempfile.NamedTemporaryFile("wb", dir=target.parent, prefix=f".{target.name[:100]}.", delete=False)
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
def _read(path: str) -> Iterator[IO[bytes]]:
    """Give a file that can be read twice."""
    if path != PIPE and Path(path).is_file():
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as copy:
        with contextlib.nullcontext(sys.stdin.buffer) if path == PIPE else open(path, "rb") as pipe:
            shutil.copyfileobj(pipe, copy)
        copy.seek(0)
        yield copy


# -- how far it is

@contextlib.contextmanager
def _shown(word: str) -> Iterator[Callable[[int, int | None], None]]:
    """Give what shows on a terminal how many entries are done, and of how many; in a pipe nothing is shown."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    try:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield _now_and_then(lambda done, total: rewrite_line(
            f"{word} {done}" + (f" of {total}" if total else "")))
        rewrite_line("")
        return
    with Progress(
        TextColumn("{task.description}"), *Progress.get_default_columns()[1:], MofNCompleteColumn(),
        console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False,
    ) as bar:
        task = bar.add_task(word, total=None)
        yield _now_and_then(lambda done, total: bar.update(task, completed=done, total=total))


def _now_and_then(show: Callable[[int, int | None], None]) -> Callable[[int, int | None], None]:
    """Return what shows only if nothing was shown just now."""
    last = 0.0

    def shown(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PAUSE:
            last = now
            show(done, total)

    return shown
