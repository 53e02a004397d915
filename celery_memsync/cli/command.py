"""What each command's help has beside its options: examples and exit codes."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from celery.bin.base import CeleryCommand
from celery.platforms import EX_UNAVAILABLE, EX_USAGE

#: Exit codes of every command.
EXIT_CODES = {
    0: "done",
    EX_USAGE: "an argument or an option is wrong",
    EX_UNAVAILABLE: "Redis is away, or refuses",
    os.EX_CONFIG: "a setting is wrong",
}


class Command(CeleryCommand):  # type: ignore[misc]
    """A command whose help shows examples and exit codes; arguments are in its usage, and not among the options.

    Args:
        examples: What to type behind ``celery -A proj memsync``.
        exit_codes: What an exit code means, beside or instead of :data:`EXIT_CODES`.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), exit_codes: Mapping[int, str] | None = None, **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.examples = examples
        self.exit_codes = dict(sorted({**EXIT_CODES, **(exit_codes or {})}.items()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(str(getattr(param, "help_group", None) or "Options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples and exit codes."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  celery -A proj memsync {example}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in self.exit_codes.items()])


def command(
    name: str | None = None, *, examples: Sequence[str], exit_codes: Mapping[int, str] | None = None,
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function, as :func:`click.command` does."""
    return click.command(name, cls=Command, examples=examples, exit_codes=exit_codes)
