"""The `celery memsync` commands, and what makes every worker take part.

Celery imports this module in every process that its command line starts: that
is how a worker is activated by the setting alone.  So it imports next to
nothing; a command is imported when it is asked for.
"""
from __future__ import annotations

import os
from collections import UserDict
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
from celery import signals
from celery.platforms import EX_USAGE

if TYPE_CHECKING:
    from celery.worker import WorkController


#: Where the commands are, by name: module and what it calls them.
COMMANDS = {
    "status": "status:status",
    "workers": "workers:workers",
    "tasks": "tasks:tasks",
    "task": "tasks:task",
    "why": "why:why",
    "cancel": "cancel:cancel",
    "workflow": "workflow:workflow",
    "agents": "tasks:agents",
    "follow": "follow:follow",
    "queue": "coordination:queue",
    "assignments": "coordination:assignments",
    "counters": "coordination:counters",
    "metrics": "metrics:metrics",
    "locks": "locks:locks",
    "unlock": "locks:unlock",
    "get": "entries:get",
    "set": "entries:set_",
    "delete": "entries:delete",
    "search": "entries:search",
    "watch": "watch:watch",
    "doctor": "doctor:doctor",
    "top": "top:top",
    "export": "export:export",
}


class _Lazily(UserDict[str, Any]):
    """Commands by name, each imported when it is looked at."""

    def __getitem__(self, name: str) -> click.Command:
        command = self.data[name]
        if isinstance(command, str):
            module, _, attribute = command.partition(":")
            command = self.data[name] = getattr(import_module(f".{module}", __name__), attribute)
        found: click.Command = command
        return found


class Commands(click.Group):
    """A group whose commands end with one safe line and a code of `sysexits.h` if they fail."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the name of a command."""
        try:
            return super().parse_args(ctx, args)
        except (click.NoSuchOption, click.BadOptionUsage) as exc:
            raise _misuse(exc) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            raise _misuse(exc) from None
        except RecursionError:
            _output().fail("A value is nested too deeply to be printed.", os.EX_DATAERR)


def _misuse(exc: click.UsageError) -> click.UsageError:
    """Return an error of click with a safe message, because that repeats arguments."""
    exc.message = _output().safe(exc.message)  # type: ignore[misc,unused-ignore]
    exc.exit_code = EX_USAGE  # type: ignore[misc]
    return exc


def _output() -> Any:
    # Imported for an error only, because it imports the whole package.
    return import_module(".output", __name__)


@click.group(name="memsync", cls=Commands, commands=_Lazily(COMMANDS))
def memsync() -> None:
    """Read and change the shared state of an app."""


def on_worker_init(sender: WorkController, **_: Any) -> None:
    """Activate a worker whose app has ``memsync_backend`` set, or a `MemSync`; import what that takes only then."""
    if getattr(sender.app, "memsync", None) is not None or sender.app.conf.get("memsync_backend"):
        import_module("..activation", __name__).on_worker_init(sender)


def on_import_modules(sender: Any, **_: Any) -> None:
    """Hide the password of ``memsync_backend`` in `celery report`, also if a module sets it that is imported next."""
    bugreport = sender.bugreport

    def report(*args: Any, **kwargs: Any) -> Any:
        if sender.conf.get("memsync_backend"):
            import_module("..integration.app_settings", __name__).hide_password(sender.conf)
        return bugreport(*args, **kwargs)

    sender.bugreport = report


signals.import_modules.connect(
    on_import_modules, weak=False, dispatch_uid="celery_memsync.import_modules")

# Under the name that activation.py has: where that is imported already, this is not connected.
signals.worker_init.connect(on_worker_init, weak=False, dispatch_uid="celery_memsync.worker_init")
