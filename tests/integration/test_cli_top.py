"""`celery memsync top` on a real terminal."""
from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.support.redis_server import free_port
from tests.support.shell import Shell, one_line
from tests.support.stress import stressed
from tests.support.terminal import Terminal


@pytest.fixture
def fleet(make_fleet, own_store):
    """A fleet without Celery workers, but with the record of one, and with tasks."""
    fleet = make_fleet(store=own_store)
    fill(fleet)
    return fleet


def fill(fleet):
    fleet.reader.runtime.store.connect()
    now = fleet.reader.runtime.store.clock.now()
    for number, name in enumerate(("alpha", "beta", "gamma")):
        facts = {"name": f"proj.{name}", "worker": "w1@host", "started_at": now - 10 + number}
        fleet.reader.sync_task_state(f"task-{name}", {"status": "STARTED", **facts})
        fleet.reader.sync_task_progress(f"task-{name}", 20 * number, current=number, total=5, message=f"step {number}")
    fleet.reader.sync_queue({"processing": ["task-alpha", "task-beta", "task-gamma"], "pending": ["task-delta"]})
    fleet.reader.update_heartbeat()
    fleet.reader.force_sync()


@pytest.fixture
def top(fleet):
    """Starts `top` on a terminal."""
    started = []

    def start(*args, **options):
        started.append(Terminal(Shell(fleet.env()), "top", *(args or ("--interval", "0.2")), **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def order_of(terminal, *texts):
    """Return texts in the order in which they first stand on the screen."""
    shown = terminal.text
    return sorted((text for text in texts if text in shown), key=shown.index)


def test_workers_tasks_and_events_are_on_one_screen_of_80_by_24(top, fleet):
    terminal = top().shows("the-test", "task-alpha", "task-gamma", "step 2", "40%", "3 running, 1 waiting", "q quit")

    lines = terminal.lines

    assert len(lines) == 24
    assert lines[0].startswith("celery memsync") and fleet.name in lines[0]
    assert lines[-1].startswith("q quit")
    assert any("━" in line and "─" in line and "task-gamma" in line for line in lines)


def test_what_changes_is_seen(top, fleet):
    terminal = top().shows("task-gamma", "40%")

    fleet.reader.sync_task_progress("task-gamma", 80, current=4, total=5, message="step 4")
    fleet.reader.force_sync()

    terminal.shows("80%", "step 4")


def test_keys_sort_and_filter_and_q_ends_with_the_terminal_as_it_was(top):
    terminal = top().shows("task-alpha", "task-gamma")

    terminal.type("s")
    terminal.shows("tasks by progress")
    by_done = order_of(terminal, "task-alpha", "task-beta", "task-gamma")
    terminal.type("r")
    terminal.shows("reversed")
    reversed_ = order_of(terminal, "task-alpha", "task-beta", "task-gamma")
    terminal.type("/beta")
    terminal.shows("show only: beta_").hides("task-alpha")
    terminal.type("\r")
    terminal.shows("only beta")
    terminal.type("\x1b")
    terminal.shows("task-alpha")
    terminal.type("w\x1b[Aq")

    assert terminal.end() == 0
    assert by_done == ["task-gamma", "task-beta", "task-alpha"]
    assert reversed_ == by_done[::-1]
    assert terminal.restored


@pytest.mark.parametrize("how, code", stressed(
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], [(signal.SIGTERM, 143)]))
def test_a_signal_ends_it_with_the_terminal_as_it_was(top, how, code):
    terminal = top().shows("task-alpha")

    assert terminal.end(how) == code
    assert terminal.restored
    assert b"Traceback" not in terminal.raw


def test_ctrl_c_ends_it_and_ctrl_z_does_not_stop_it(top):
    terminal = top().shows("task-alpha")

    terminal.type("\x1a")
    terminal.type("s")
    terminal.shows("tasks by progress")
    terminal.type("\x03")

    assert terminal.end() == 130
    assert terminal.restored


def test_it_goes_on_when_redis_was_away(top, fleet, own_store):
    terminal = top().shows("task-alpha")

    own_store.stop()
    terminal.shows("Trying again", "task-alpha")
    own_store.start()
    terminal.hides("Trying again")
    fill(fleet)

    terminal.shows("task-alpha", "3 running")


def test_a_redis_that_does_not_answer_does_not_hold_up_keys(top, own_store):
    terminal = top().shows("task-alpha")
    began = time.monotonic()

    own_store.pause()
    for order in ("progress", "name", "worker", "runtime"):
        terminal.type("s")
        terminal.shows(f"tasks by {order}")
    terminal.type("q")

    assert terminal.end() == 0
    assert time.monotonic() - began < 12  # a question that is not answered takes three seconds
    own_store.resume()


@pytest.mark.parametrize("size", stressed([(40, 10), (200, 50), (20, 5), (2, 1)], [(40, 10), (2, 1)]))
def test_it_follows_the_size_of_the_terminal(top, size):
    terminal = top().shows("task-alpha")

    terminal.resize(*size)
    if size[0] >= 40:
        terminal.shows("celery memsync", "q quit")
    terminal.resize(80, 24)
    terminal.shows("celery memsync", "task-alpha", "q quit")
    terminal.type("q")

    assert terminal.end() == 0


def test_what_a_terminal_would_act_on_is_not_shown(top, fleet):
    fleet.reader.sync_task_progress("task-alpha", 50, message="\x1b[31mred [bold]text[/bold]\n")
    fleet.reader.force_sync()

    top(size=(150, 30)).shows("?[31mred [bold]text[")


def test_top_without_a_terminal_names_the_command_to_use(fleet):
    done = Shell(fleet.env()).run("top")

    assert done.returncode == 64
    assert "memsync status" in one_line(done)


def test_top_without_rich_names_what_to_install(top, tmp_path):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('rich')")

    terminal = top(PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}").shows("pip install 'celery-memsync[cli]'")

    assert terminal.end() == 69


def test_redis_away_at_the_beginning_is_exit_code_69(make_fleet):
    shell = Shell(make_fleet().env(memsync_backend=f"redis://127.0.0.1:{free_port()}/0"))
    terminal = Terminal(shell, "top").shows("Redis")

    assert terminal.end() == 69
    assert terminal.restored


def test_top_ends_when_its_terminal_is_closed(top):
    terminal = top().shows("task-alpha")

    os.close(terminal._theirs)
    terminal._theirs = None
    os.close(terminal.ours)

    try:
        assert terminal.process.wait(20) != 0
    except subprocess.TimeoutExpired:
        raise AssertionError("it goes on without its terminal") from None
