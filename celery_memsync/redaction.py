"""`memsync_redact`: hides secrets in texts before they are written anywhere."""
from __future__ import annotations

import logging
import traceback
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from .user_code import ends_here, plain_text

#: What a text becomes that can't be redacted; it never shows as it was.
HIDDEN = "<hidden: memsync_redact {}>"

#: The redactors in force in this process; replaced as a whole.
_in_force: tuple[weakref.ref[Redactor], ...] = ()


class Redactor:
    """Calls the function of `memsync_redact`, which may do anything.

    A text for which it raises, or returns no text, is replaced as a whole.

    Args:
        function: Takes a text, and returns it as it may be written.
    """

    def __init__(self, function: Callable[[str], Any]) -> None:
        self.function = function

    def __call__(self, text: str) -> str:
        """Return a text as it may be written.

        Raises:
            BaseException: In a thread of the user's, what ends a task or a process, but for a plain SystemExit.
        """
        try:
            redacted = self.function(text)
            if isinstance(redacted, str):
                return str.__str__(redacted)
        except BaseException as exc:
            if not ends_here(exc) and type(exc) is not SystemExit:
                raise
            return HIDDEN.format("raised " + _type_name(exc))
        return HIDDEN.format("returned " + _type_name(redacted))


def _type_name(thing: object) -> str:
    return plain_text(lambda: type(thing).__qualname__, "something")


def redact_logs(redactor: Redactor) -> None:
    """Let a redactor see every line that this package logs in this process, until it is collected or ``leave_logs``."""
    global _in_force
    _in_force = (*(ref for ref in _in_force if ref() is not None), weakref.ref(redactor))
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if name.startswith(f"{__package__}.") and isinstance(logger, logging.Logger):
            logger.addFilter(_redact_record)


def leave_logs(redactor: Redactor) -> None:
    """Let a redactor see no further lines."""
    global _in_force
    _in_force = tuple(ref for ref in _in_force if ref() not in (None, redactor))


def _redact_record(record: logging.LogRecord) -> bool:
    """Redact message and traceback of a record; the objects of which they are made go, because handlers may show them."""
    redactors = [redactor for ref in _in_force if (redactor := ref()) is not None]
    if redactors:
        record.msg, record.args = _redacted(redactors, record.getMessage()), ()
        if record.exc_info:
            record.exc_text = _redacted(redactors, "".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
            record.exc_info = None
    return True


def _redacted(redactors: list[Redactor], text: str) -> str:
    for redactor in redactors:
        text = plain_text(partial(redactor, text), HIDDEN.format("was interrupted"))
    return text
