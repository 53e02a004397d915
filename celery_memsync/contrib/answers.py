"""What the bearer of a token sees of a task, in every framework."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..app import MemSync
from ..exceptions import InvalidToken, StoreError
from ..models.entry import MAX_FIGURE
from ..models.order import FINAL
from ..models.progress import at_status, progress_from

#: Most letters of a text that is shown.
MAX_TEXT = 1000

#: Sent with every answer: it is for one reader, of this moment, and of this type; its URL has the token.
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

#: Seconds after which a client that is turned away may try again.
RETRY_AFTER = 5

#: What is shown while Redis is away.
UNKNOWN = {"error": "the progress is unknown at the moment"}


class Answer(NamedTuple):
    """An answer by HTTP.

    Attributes:
        status: Its status code.
        content: What it holds, for JSON.
        headers: Beside the type of the content.
    """

    status: int
    content: dict[str, Any]
    headers: dict[str, str] = HEADERS

    @classmethod
    def later(cls, content: dict[str, Any]) -> Answer:
        """Return the answer that something can't be done at the moment."""
        return cls(503, content, {**HEADERS, "Retry-After": str(RETRY_AFTER)})


def answer_of(memsync: MemSync, token: str | None, exceptions: bool = False) -> Answer:
    """Return how far the task of a token is.

    Args:
        token: None: there is none.
        exceptions: Whether type and message of the exception of the task are shown.
    """
    try:
        task_id = memsync.check_token(token or "")
        return Answer(200, document_of(*read_task(memsync, task_id), exceptions))
    except InvalidToken as exc:
        return refusal_of(token, exc)
    except StoreError:
        return Answer.later(UNKNOWN)


def refusal_of(token: str | None, error: InvalidToken) -> Answer:
    """Return the answer to a request without a valid token."""
    return Answer(403, {"error": str(error)}) if token else Answer(401, {"error": "the token is missing"})


def read_task(memsync: MemSync, task_id: str) -> tuple[Any, Any]:
    """Return the state and the progress of a task.

    Raises:
        StoreError: If Redis is away.
    """
    # In this order: the progress of a task whose end was seen is the last one.
    return memsync.get_task_state(task_id), memsync.get_task_progress(task_id)


def document_of(state: Any, progress: Any, exceptions: bool = False) -> dict[str, Any]:
    """Return what is shown of a task: texts that are not too long, numbers that JSON has, and nothing else.

    Tasks store any JSON as their state and progress, so each field is checked.

    Args:
        state: Of the task; of an unknown task nothing, and it is ``PENDING``, as Celery has it.
        progress: Of the task, as it is stored or read.
        exceptions: Whether type and message of an exception are shown.
    """
    state = state if isinstance(state, Mapping) else {}
    status = state.get("status", "PENDING")
    known = progress_from(progress) if isinstance(progress, dict) else None
    shown: Mapping[str, Any] = {} if known is None else at_status(known, status)
    document = {
        "status": _text(status),
        "ended": isinstance(status, str) and status in FINAL,
        "percent": _number(shown.get("progress")),
        "current": _number(shown.get("current")),
        "total": _number(shown.get("total")),
        "message": _text(shown.get("message")),
        "phase": _text(shown.get("phase")),
        "eta": _number(shown.get("eta")),
    }
    return {**document, "exception": _exception(state.get("exception"))} if exceptions else document


def _exception(error: Any) -> dict[str, Any] | None:
    return {name: _text(error.get(name)) for name in ("type", "message")} if isinstance(error, Mapping) else None


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "..."


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < MAX_FIGURE else None
