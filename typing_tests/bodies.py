"""What the body of a task calls: progress, track and agents."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import assert_type

from celery_memsync import MemSync
from celery_memsync.app import Agent

memsync = MemSync()


def track_keeps_the_type_of_items(rows: Iterator[tuple[int, str]], prices: dict[str, float]) -> None:
    assert_type(memsync.track(["a", "b"]), Iterator[str])
    for number, text in memsync.track(rows, total=10, message="rows", phase="read"):
        assert_type(number, int)
        assert_type(text, str)
    for name, price in memsync.track(prices.items()):
        assert_type(name, str)
        assert_type(price, float)
    assert_type([one for one in memsync.track(range(3))], list[int])
    memsync.track(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def progress_takes_numbers_and_fields_of_its_own() -> None:
    memsync.progress(1)
    memsync.progress(1.5, 10, "halfway", phase="write", file="a.csv", skipped=[1, 2])
    memsync.check_cancelled()
    memsync.progress("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    memsync.progress()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def agents_share_anything() -> None:
    agent = memsync.agent("coder")
    assert_type(agent, Agent)
    agent.sync({"files": 3})
    agent.sync(files=3)
    assert_type(agent.get("reviewer"), Any)
    assert_type(agent.agent_id, str)
    memsync.agent(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
