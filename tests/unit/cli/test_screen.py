"""What `celery memsync top` draws and how it takes keys, without a terminal."""
from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from celery_memsync.cli.screen import bar, bars, screen
from celery_memsync.cli.snapshot import TASK_ORDERS, WORKER_ORDERS, Event, Running, Snapshot, View, events_of, load_of
from celery_memsync.cli.terminal import keys_of
from celery_memsync.models.worker import WorkerRecord

WORKERS = tuple(
    WorkerRecord(f"w{number:02}@host", status, capacity={"total": 4, "free": 4 - number % 5}, last_beat=100.0 + number,
                 queues=("mail",) if number % 2 else ("video",))
    for number, status in enumerate(["active", "busy", "lost", "offline"] * 10))
TASKS = tuple(
    Running(f"task-{number:03}", "STARTED", f"proj.{'abc'[number % 3]}", f"w{number % 40:02}@host", 1000.0 - number,
            {"progress": float(number % 100), "message": "日本語 " * 20, "eta": 3.0})
    for number in range(200))
EVENTS = tuple(Event(2000.0 - number, "STARTED", f"task-{number:03}", "proj.a") for number in range(100))
FULL = Snapshot(2000.0, "ns", "7.0.15", 2.0**21, 0.001, WORKERS, TASKS, 500, EVENTS)


def drawn(snapshot, view=View(), width=80, height=24, **options):
    """The lines of a screen."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False, color_system=None)
    console.print(screen(snapshot, view, width, height, **options))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 120, 300])
@pytest.mark.parametrize("height", [6, 10, 24, 60, 500])
@pytest.mark.parametrize("snapshot", [FULL, Snapshot(0.0, "ns"), replace(FULL, workers=()), replace(FULL, running=())])
def test_a_screen_is_as_large_as_the_terminal(snapshot, width, height):
    lines = drawn(snapshot, width=width, height=height)

    assert len(lines) == height
    assert max(len(line.rstrip()) for line in lines) <= width


def test_each_part_has_its_lines_however_much_there_is():
    text = "\n".join(drawn(FULL))

    assert text.count("@host") >= 5 and text.count("proj.") >= 8
    assert text.count("STARTED") >= 5
    assert "WORKER, 35 more" in text and "TASK, 192 more" in text


def test_what_one_part_does_not_need_another_has():
    lines = drawn(replace(FULL, workers=WORKERS[:1], events=EVENTS[:1]))

    assert len([line for line in lines if line.startswith("task-")]) == 24 - 6 - 2


def test_a_terminal_without_other_letters_gets_ascii():
    assert "".join(drawn(replace(FULL, running=TASKS[50:51], workers=()), plain=True)).count("#") == 5


def test_redis_away_is_on_top():
    assert drawn(replace(FULL, away="it is down"))[1].startswith("Trying again: it is down")


@pytest.mark.parametrize("part, done", [(-1, 0), (0, 0), (0.5, 5), (1, 10), (7, 10)])
def test_a_bar_is_as_full_as_it_is(part, done):
    assert bar(part, plain=True).plain == "#" * done + "-" * (10 - done)


def typed(*keys):
    view = View()
    for key in keys:
        view = view.after(key)
    return view


def test_keys_go_round_through_the_orders():
    assert [typed(*"s" * number).task_order for number in range(5)] == [*TASK_ORDERS, TASK_ORDERS[0]]
    assert [typed(*"w" * number).worker_order for number in range(5)] == [*WORKER_ORDERS, WORKER_ORDERS[0]]


@pytest.mark.parametrize("keys, text, typing", [
    ("/mail", "mail", True), ("/mail\r", "mail", False), ("/mai\x7fl\n", "mal", False), ("/mail\x1b", "", False),
    ("/mail\r\x1b", "", False), ("/q", "q", True), ("/\x7f\x7f", "", True), ("/\x01é", "é", True),
    ("/" + "x" * 99, "x" * 60, True),
])
def test_letters_make_the_text_that_is_looked_for(keys, text, typing):
    view = typed(*keys)

    assert (view.text, view.typing, view.over) == (text, typing, False)


def test_a_text_chooses_workers_tasks_and_events():
    view = typed(*"/MAIL\r")

    assert {one.queues for one in view.workers(FULL)} == {("mail",)}
    assert typed(*"/proj.b").tasks(FULL) == [one for one in reversed(TASKS) if one.name == "proj.b"]
    assert [one.subject for one in typed(*"/task-042").events(FULL)] == ["task-042"]


@pytest.mark.parametrize("order, first", [
    ("runtime", "task-199"), ("progress", "task-099"), ("name", "task-000"), ("worker", "task-000")])
def test_tasks_are_shown_in_an_order(order, first):
    assert View(task_order=order).tasks(FULL)[0].task_id == first


@pytest.mark.parametrize("order, first", [
    ("name", "w00@host"), ("load", "w04@host"), ("status", "w00@host"), ("heartbeat", "w39@host")])
def test_workers_are_shown_in_an_order(order, first):
    assert View(worker_order=order).workers(FULL)[0].worker_id == first


def test_newest_events_are_made_of_tasks_and_workers():
    tasks = [
        {"id": "t1", "state": {"status": "SUCCESS", "name": "a", "published_at": 1, "started_at": 2, "finished_at": 5}},
        {"id": "t2", "state": {"status": "STARTED", "published_at": 3, "started_at": "soon"}},
        {"id": "t3", "state": "foreign"},
    ]
    workers = [WorkerRecord("w1", "lost", started_at=0.5, last_beat=4.0)]

    rows = [(one.at, one.what, one.subject) for one in events_of(tasks, workers)]

    assert rows == [
        (5, "SUCCESS", "t1"), (4.0, "lost", "w1"), (3, "PENDING", "t2"), (2, "STARTED", "t1"), (1, "PENDING", "t1"),
        (0.5, "online", "w1")]


@pytest.mark.parametrize("capacity, load", [
    ({}, 0.0), ({"total": 4, "free": 1}, 0.75), ({"total": 4, "free": 9}, 0.0), ({"total": "x", "free": None}, 0.0)])
def test_load_is_a_number_for_any_reported_capacity(capacity, load):
    assert load_of(WorkerRecord("w", capacity=capacity)) == load


def test_arrows_are_no_keys():
    assert keys_of("a\x1b[Ab\x1b[1;5Cc\x1bOPd\x1b[3~e\x1b") == "abcde\x1b"


HOSTILE = "[bold]x[/]\x1b[31m\r\n\x9b\u202e\u200b"
SHOWN = "[bold]x[/]?[31m"


def test_screen_draws_hostile_text_and_markup_as_plain_text():
    progress = dict.fromkeys(("message", "progress", "current"), HOSTILE)
    snapshot = Snapshot(
        2000.0, HOSTILE, HOSTILE, away=HOSTILE,
        workers=(WorkerRecord(HOSTILE, HOSTILE, capacity={"free": HOSTILE}, depths={"q": 5}),),
        running=(Running(HOSTILE, HOSTILE, HOSTILE, HOSTILE, None, progress),),
        events=(Event(1.0, HOSTILE, HOSTILE, HOSTILE),))

    text = "\n".join(drawn(snapshot, View(text="[bold]"), width=300))

    assert text.count(SHOWN) >= 9
    assert all(one.isprintable() or one == "\n" for one in text)


def test_bars_draw_hostile_text_and_markup_as_plain_text():
    console = Console(file=io.StringIO(), width=300, force_terminal=False, color_system=None)

    console.print(bars([(HOSTILE, HOSTILE, {"message": HOSTILE, "progress": HOSTILE})], 20, 300))

    assert console.file.getvalue().count("[bold]x") == 3
    assert all(one.isprintable() or one == "\n" for one in console.file.getvalue())
