"""Decorators keep the signatures of functions, methods and tasks."""
from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from typing_extensions import assert_type

from celery_memsync import MemSync

P = ParamSpec("P")
R = TypeVar("R")

memsync = MemSync()


class Task(Generic[P, R]):
    """Stands for a task of Celery where that has types, as it has by `celery-types`."""

    def __init__(self, run: Callable[P, R]) -> None:
        self.run = run

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.run(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Send it."""


@memsync.locked("invoice:{invoice_id}", on_locked="retry")
def send(invoice_id: int, copy: bool = False) -> str:
    return f"{invoice_id}{copy}"


@memsync.exclusive
def render(video_id: int) -> bytes:
    return bytes(video_id)


@memsync.exclusive(ttl=60.0, wait=None, on_locked="skip", max_hold=3600.0, retry_delay=1.0, count_retries=True)
def render_again(video_id: int) -> bytes:
    return bytes(video_id)


@Task
@memsync.locked("account:{number}", ttl=60.0, wait=5.0)
@memsync.exclusive
def charge(number: str, *, amount: float) -> list[float]:
    return [float(number), amount]


class Mailer:
    @memsync.locked("mail:{address}")
    def mail(self, address: str) -> int:
        return len(address)

    @memsync.exclusive
    def flush(self) -> None:
        """Send what is left."""

    @staticmethod
    @memsync.locked("domain:{domain}")
    def verify(domain: str) -> bool:
        return bool(domain)


def functions_keep_their_signatures() -> None:
    assert_type(send(1, copy=True), str)
    assert_type(render(1), bytes)
    assert_type(render_again(video_id=1), bytes)
    send("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    render()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    render_again(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def methods_keep_their_signatures() -> None:
    assert_type(Mailer().mail("a@b"), int)
    assert_type(Mailer.verify("b"), bool)
    Mailer().flush()
    Mailer().mail()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Mailer().flush(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Mailer.verify(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def tasks_keep_the_signatures_of_their_bodies() -> None:
    assert_type(charge("1", amount=2.5), list[float])
    charge.delay("1", amount=2.5)
    charge.delay("1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    charge.delay(1, amount=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def decorators_need_what_they_decorate() -> None:
    memsync.locked()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    memsync.locked("a", hold=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    memsync.locked("a")(1)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    memsync.exclusive(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
