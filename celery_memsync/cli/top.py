"""`celery memsync top`: workers, running tasks and the newest events, as they are just now."""
from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from celery.bin.base import CeleryOption
from celery.platforms import EX_UNAVAILABLE, EX_USAGE

from ..app import MemSync
from ..background_loop import BackgroundLoop
from ..exceptions import StoreError
from .command import command
from .output import Seconds, fail, memory_of
from .snapshot import Snapshot, View, take
from .terminal import is_terminal, keys, orderly_end

if TYPE_CHECKING:
    from rich.live import Live


#: Seconds between two looks at keys, at the size of the terminal and whether there is news.
LOOK = 0.1


@command(examples=["top", "top --interval 5"],
         exit_codes={EX_USAGE: "an option is wrong, or there is no terminal",
                     EX_UNAVAILABLE: "Redis is away, or rich is missing"})
@click.option("-i", "--interval", cls=CeleryOption, type=Seconds(0.1), default=1.0, show_default=True,
              help_group="Output", help="Seconds between two looks.")
@click.pass_context
def top(ctx: click.Context, interval: float) -> None:
    """Show workers, running tasks and the newest events, live. Keys: q s w r / and Esc."""
    if not (sys.stdin.isatty() and is_terminal()):
        fail("top needs a terminal; `memsync status` shows the same once, "
             "and `memsync watch` goes into a pipe", EX_USAGE)
    try:
        from rich.live import Live
    except ImportError:
        fail("top needs rich: pip install 'celery-memsync[cli]'", EX_UNAVAILABLE)
    with memory_of(ctx) as memsync:
        latest = Latest(memsync)
        reader = BackgroundLoop("memsync-top", latest.look, interval)
        try:
            with orderly_end(), keys() as pressed, _silence(), Live(screen=True, auto_refresh=False) as live:
                live.console.no_color = live.console.no_color or ctx.obj.no_color
                reader.start()
                show(live, latest, pressed)
        finally:
            reader.stop(0)


class Latest:
    """The newest snapshot.

    Raises:
        StoreError: If Redis is away at the beginning; later that is shown.
    """

    def __init__(self, memsync: MemSync) -> None:
        self._memsync = memsync
        self.snapshot: Snapshot = take(memsync)

    def look(self) -> None:
        """Read it anew."""
        try:
            self.snapshot = take(self._memsync)
        except StoreError as exc:
            self.snapshot = replace(self.snapshot, away=str(exc))


def show(live: Live, latest: Latest, pressed: Callable[[float], str]) -> None:
    """Draw what is new until the user ends it.

    Args:
        pressed: Returns keys that are pressed within so many seconds.
    """
    from .screen import screen

    view, drawn = View(), None
    while not view.over:
        snapshot, size = latest.snapshot, live.console.size
        if (snapshot, view, size) != drawn:
            drawn = (snapshot, view, size)
            live.update(screen(snapshot, view, *size, plain=live.console.options.ascii_only), refresh=True)
        for key in pressed(LOOK):
            view = view.after(key)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the log from the screen; what is wrong with Redis is shown there."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
