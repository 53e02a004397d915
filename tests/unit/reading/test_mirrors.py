"""What a subscriber keeps ends equal to what Redis has, whatever happened to connections and servers."""
from __future__ import annotations

import random
import time

import pytest
import redis as redis_py

from celery_memsync import StoreError
from tests.support.mirror import Mirror, contents
from tests.support.proxy import LISTENER, Proxy
from tests.support.publishing import publish
from tests.support.stress import stressed
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

KEYS = [f"m/{number}" for number in range(12)]


@pytest.fixture
def line(own_server):
    """A proxy before a server of this test's own."""
    with Proxy(own_server.port) as proxy:
        yield proxy


@pytest.fixture
def screen(make_memsync, line):
    """A manager behind the proxy, whose mirror is looked at."""
    return make_memsync(url=line.url)


@pytest.fixture
def writer(make_memsync, own_server):
    return make_memsync(url=own_server.url, batch_interval=60.0)


def ends_equal(mirror, writer):
    """Return when a mirror is what Redis has, and fail if it does not become that."""
    eventually(lambda: mirror.values == contents(writer, "m/*"), timeout=30, message="the mirror differs")


# -- single doubts

def hold_and_cut(line, own_server):
    line.hold_all()
    time.sleep(1.5)
    line.cut()
    line.release()


def pause(line, own_server):
    own_server.pause()
    time.sleep(2.0)
    own_server.resume()


def restart(line, own_server):
    own_server.kill()
    own_server.start()


DOUBTS = {
    "cut": lambda line, own_server: line.cut(),
    "killed": lambda line, own_server: own_server.client().client_kill_filter(_type="pubsub"),
    "held": hold_and_cut,
    "paused": pause,
}


@pytest.mark.slow
@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_was_invalidated_in_a_doubt_and_has_not_changed_is_delivered_again(screen, writer, line, own_server, doubt):
    publish(writer, {"m/before": 0})
    mirror = Mirror(screen, "m/*")
    publish(writer, {key: 1 for key in KEYS})
    ends_equal(mirror, writer)

    DOUBTS[doubt](line, own_server)

    eventually(lambda: screen.runtime.link.subscription_line("task-sentinel/m/*"), timeout=20)
    ends_equal(mirror, writer)
    assert len(mirror.values) == len(KEYS) + 1
    assert mirror.backward == []


@pytest.mark.slow
@pytest.mark.parametrize("received", [True, False])
def test_key_deleted_while_disconnected_is_invalidated(screen, writer, line, own_server, received):
    publish(writer, {} if received else {"m/a": 1, "m/b": 1})
    mirror = Mirror(screen, "m/*")
    publish(writer, {"m/a": 2, "m/b": 2} if received else {})
    ends_equal(mirror, writer)

    line.hold(LISTENER)
    writer.delete("m/a")
    publish(writer, {"m/b": 3})
    line.cut()
    line.release()

    ends_equal(mirror, writer)
    assert list(mirror.values.values()) == [3]


@pytest.mark.slow
def test_after_a_restart_without_data_a_mirror_is_empty_and_then_what_is_new(screen, writer, line, own_server):
    publish(writer, {key: 1 for key in KEYS})
    mirror = Mirror(screen, "m/*")
    publish(writer, {key: 2 for key in KEYS[:6]})
    ends_equal(mirror, writer)

    restart(line, own_server)
    eventually(lambda: mirror.values == {}, timeout=20)
    publish(writer, {"m/1": "new"})

    ends_equal(mirror, writer)
    assert mirror.values == {"task-sentinel/m/1": "new"}


# -- a random history

class History:
    """Writes, deletes and harms, drawn from a seed; what it does is in ``done``."""

    def __init__(self, seed, writer, line, own_server):
        self.random = random.Random(seed)
        self.writer = writer
        self.line = line
        self.server = own_server
        self.done = []

    def run(self, seconds):
        harms = [self.cut, self.kill, self.hold, self.pause, self.restart, self.empty]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(self.random.randrange(30)):
                self.change()
            harm = self.random.choice(harms)
            self.done.append(harm.__name__)
            harm()
        for _ in range(20):
            self.change()

    def change(self):
        key, number = self.random.choice(KEYS), len(self.done)
        self.done.append(key)
        if self.random.random() < 0.25:
            self.writer.delete(key)
        else:
            self.writer.write(key, [number, "x" * self.random.choice([1, 1000, 30_000])])
        while True:
            try:
                return self.writer.force_sync(timeout=20)
            except StoreError:
                time.sleep(0.05)

    def cut(self):
        self.line.cut()

    def kill(self):
        with self.server.client() as client:
            client.client_kill_filter(_type=self.random.choice(["pubsub", "normal"]), skipme=True)

    def hold(self):
        holds = [lambda: self.line.hold(LISTENER), self.line.hold_open, self.line.hold_all]
        self.random.choice(holds)()
        for _ in range(5):
            self.change()
        time.sleep(self.random.choice([0.1, 1.5]))
        if self.random.random() < 0.5:
            self.line.cut()
        self.line.release()

    def pause(self):
        self.server.pause()
        time.sleep(self.random.choice([0.1, 1.5]))
        self.server.resume()

    def restart(self):
        restart(self.line, self.server)

    def empty(self):
        with self.server.client() as client:
            try:
                client.flushall()
            except redis_py.RedisError:
                pass


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("seed", range(stressed(4, 1)))
def test_mirrors_end_equal_and_never_go_back_whatever_the_history(screen, writer, line, own_server, seed):
    history = History(seed, writer, line, own_server)
    mirrors = [Mirror(screen, "m/*"), Mirror(screen, "m/*", slow=0.05, seed=seed), Mirror(screen, "m/[0-4]")]

    history.run(stressed(30.0, 5.0))

    expected = {key: value for key, value in contents(writer, "m/*").items() if key[-1] in "01234" and len(key) == 17}
    for mirror in mirrors[:2]:
        ends_equal(mirror, writer)
    eventually(lambda: mirrors[2].values == expected, timeout=20)
    assert [mirror.backward for mirror in mirrors] == [[], [], []], history.done
