"""`celery memsync watch`: changes as they come."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TypeVar

import click
from celery.bin.base import CeleryOption

from ..app import MemSync
from ..exceptions import StoreError, StoreRefused
from ..reading.subscription import KeyChange
from ..reading.watch import Watch
from .command import command
from .output import EX_TIMEOUT, json_option, memory_of, moment, print_error, print_json, print_line, shown, timeout_option

T = TypeVar("T")

#: Seconds without a change after which Redis is pinged, and between pings while it is away.
POLL_INTERVAL = 2.0


@command(examples=["watch", "watch 'tasks/*/state' --limit 10 --timeout 60"],
         exit_codes={EX_TIMEOUT: "the time was over before as many changes came"})
@click.argument("pattern", default="*")
@click.option("-n", "--limit", cls=CeleryOption, type=click.IntRange(1), help_group="Selection",
              help="End after so many changes.")
@timeout_option
@json_option
@click.pass_context
def watch(ctx: click.Context, pattern: str, limit: int | None, timeout: float | None, as_json: bool) -> None:
    """Show changes of keys that match a glob, from now on. Without one, of all."""
    with memory_of(ctx) as memsync:
        memsync.runtime.store.ping()
        deadline = deadline_of(timeout)
        count = 0
        with memsync.watch(pattern) as changes:
            for change in changes_until(ctx, memsync, changes, deadline):
                if change is not None:
                    _print_change(ctx, change, as_json)
                    count += 1
                if count == limit:
                    return
    if limit is not None:
        ctx.exit(EX_TIMEOUT)


def changes_until(ctx: click.Context, memsync: MemSync, changes: Watch, deadline: float) -> Iterator[KeyChange | None]:
    """Yield changes until a monotonic time, and None now and then while there are none.

    When Redis goes away and comes back that is reported on stderr.

    Raises:
        StoreError: If Redis was found to be away, and is not back in time.
    """
    while True:
        left = deadline - time.monotonic()
        change = changes.get(max(0.0, min(left, POLL_INTERVAL)))
        if change is not None:
            yield change
        elif left <= 0:
            return
        else:
            patiently(ctx, memsync.runtime.store.ping, deadline)
            yield None


def patiently(ctx: click.Context, ask: Callable[[], T], deadline: float) -> T:
    """Return an answer, waiting for Redis if it is away; report that on stderr.

    Raises:
        StoreError: If Redis is away still at the deadline, or refuses.
    """
    away = False
    while True:
        try:
            answer = ask()
        except StoreError as exc:
            if isinstance(exc, StoreRefused) or time.monotonic() >= deadline:
                raise
            if not away:
                print_error(ctx, f"{exc} Waiting for it." if str(exc).endswith("?") else f"{exc}; waiting for it.")
            away = True
            threading.Event().wait(max(0.0, min(POLL_INTERVAL, deadline - time.monotonic())))
        else:
            if away:
                print_error(ctx, "Redis is back.")
            return answer


def deadline_of(timeout: float | None) -> float:
    """Return the monotonic time at which a command ends."""
    return float("inf") if timeout is None else time.monotonic() + timeout


def _print_change(ctx: click.Context, change: KeyChange, as_json: bool) -> None:
    entry = change.entry
    if as_json:
        print_json(ctx, {"key": change.key, "value": None} if entry is None else asdict(entry))
    elif entry is None:
        print_line(ctx, f"{moment(None):24}  -     {change.key}  gone")
    else:
        version = f"v{entry.version}"
        at = moment(entry.timestamp)
        print_line(ctx, f"{at}  {version:4}  {entry.key}  {shown(entry.value)}")
