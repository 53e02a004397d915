"""Copies in other kinds of processes: forked ones, those of greenlets, those that stand still for a while."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from celery_memsync.reading import listener
from tests.support.paths import ROOT
from tests.support.publishing import publish
from tests.support.stress import stressed
from tests.support.waiting import eventually

HEAD = """
import multiprocessing, os, signal, sys, threading, time
from celery_memsync import MemorySyncManager
from celery_memsync.reading import listener
from tests.support.waiting import eventually
signal.alarm(30)
memsync = MemorySyncManager('script', sys.argv[1], batch_interval=60.0)

def listeners():
    return memsync.runtime.store.redis.client_list(_type='pubsub')

def is_hit(key):
    before = memsync.get_metrics()['cache_hits']
    memsync.read(key)
    return memsync.get_metrics()['cache_hits'] > before

def report(*values):
    print(*values, flush=True)

def follows(number):
    # Reports when it has a copy; the test then changes the value, and this waits for the change.
    eventually(lambda: is_hit('a'))
    report('before', memsync.read('a'))
    eventually(lambda: memsync.read('a') == number, timeout=5)
    report('after', memsync.read('a'))

def in_child(act):
    pid = os.fork()
    if not pid:
        signal.alarm(30)
        try:
            act()
            os._exit(0)
        except BaseException as exc:
            print('child:', repr(exc), file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return pid

def wait_for(pid):
    assert os.waitpid(pid, 0)[1] == 0, 'the child failed'
"""

GEVENT = "from gevent import monkey; monkey.patch_all()\nfrom gevent import spawn, sleep"
EVENTLET = "import eventlet; eventlet.monkey_patch()\nfrom eventlet import spawn, sleep"


class Script:
    """Code in a process of its own, with which a test talks line by line."""

    def __init__(self, code, url, before=""):
        self.process = subprocess.Popen(
            [sys.executable, "-c", before + HEAD + textwrap.dedent(code), url], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()

    def next_line(self):
        """Return its next line."""
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def read(self):
        """Request by a line that it reads; return what it has read."""
        self.process.stdin.write("read\n")
        self.process.stdin.flush()
        return self.next_line()

    def ends(self):
        out, errors = self.process.communicate(timeout=50)
        assert self.process.returncode == 0, errors
        assert "Traceback" not in errors and "Exception ignored" not in errors, errors
        return out.split("\n")[:-1]


@pytest.fixture
def redis_url(own_server):
    """A Redis to which nothing else is connected."""
    return own_server.url


# -- forks

def test_a_forked_child_has_its_own_cache_and_connections_and_leaves_the_parent_s_alone(redis_url, other):
    publish(other, {"a": 1})

    with Script("""
        eventually(lambda: is_hit('a'))
        mine = [one['id'] for one in listeners()]

        def child():
            metrics = memsync.get_metrics()
            assert (metrics['cache']['size'], metrics['reads']) == (0, 0), metrics
            follows(2)
            theirs = [one['id'] for one in listeners()]
            assert len(mine) == 1 and len(theirs) == 2 and set(mine) < set(theirs), (mine, theirs)

        wait_for(in_child(child))
        eventually(lambda: [one['id'] for one in listeners()] == mine)
        report('parent', memsync.read('a'))
        follows(3)
    """, redis_url) as script:
        child_before = script.next_line()
        publish(other, {"a": 2})
        child_after = script.next_line(), script.next_line()
        parent_before = script.next_line()
        publish(other, {"a": 3})

        assert (child_before, child_after) == ("before 1", ("after 2", "parent 2"))
        assert (parent_before, script.ends()) == ("before 2", ["after 3"])


@pytest.mark.parametrize("method", stressed(["fork", "spawn", "forkserver"], ["fork", "spawn"]))
def test_child_of_multiprocessing_reads_and_follows_changes(tmp_path, redis_url, other, method):
    publish(other, {"a": 1})
    (tmp_path / "work.py").write_text(textwrap.dedent("""
        def work(memsync, url):
            from celery_memsync import MemorySyncManager
            from tests.support.waiting import eventually
            memsync = memsync or MemorySyncManager('child', url)
            assert eventually(lambda: memsync.read('a')) == 1
            print('before', memsync.read('a'), flush=True)
            eventually(lambda: memsync.read('a') == 2)
            print('after', memsync.read('a'), flush=True)
    """))

    with Script(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        from work import work
        memsync.read('a')
        context = multiprocessing.get_context({method!r})
        child = context.Process(target=work, args=(memsync if {method == 'fork'} else None, sys.argv[1]))
        child.start()
        child.join(30)
        report('parent', memsync.read('a'), child.exitcode)
    """, redis_url) as script:
        before = script.next_line()
        publish(other, {"a": 2})

        assert before == "before 1"
        assert script.ends() == ["after 2", "parent 2 0"]


def test_forks_in_the_middle_of_reads_harm_neither_side(redis_url, other):
    publish(other, {"a": 1, "b": [1]})

    with Script("""
        done, wrong, reads = [], [], []
        memsync.read('a')  # a fork in the middle of a first import by another thread hangs, in Python itself

        def read(number):
            while not done:
                try:
                    found = memsync.read_many(['a', 'b', f'c{number}'], consistent=len(reads) % 3 == 0)
                except BaseException as exc:
                    wrong.append(exc)
                    raise
                reads.append(1)
                if found != {'a': 1, 'b': [1], f'c{number}': None}:
                    wrong.append(found)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()

        def child():
            for _ in range(20):
                assert memsync.read_many(['a', 'b']) == {'a': 1, 'b': [1]}
            memsync.shutdown()

        for _ in range(30):
            wait_for(in_child(child))
        done.append(1)
        for thread in threads:
            thread.join()
        report(len(reads) > 30, wrong, len(listeners()))
    """, redis_url) as script:

        assert script.ends() == ["True [] 1"]


# -- greenlets

@pytest.mark.parametrize("before", stressed([GEVENT, EVENTLET], [GEVENT]))
def test_greenlets_read_copies_and_follow_changes(redis_url, other, before):
    publish(other, {"a": 1})

    with Script("""
        answers, ticks = [], []

        def read(number):
            for i in range(30):
                answers.append((memsync.read('a'), memsync.read(f'key-{number % 20}')))
                sleep(0)

        def tick():
            while True:
                sleep(0.01)
                ticks.append(1)

        spawn(tick)
        for one in [spawn(read, number) for number in range(100)]:
            one.wait() if hasattr(one, 'wait') else one.join()
        metrics = memsync.get_metrics()
        assert len(answers) == 3000 and set(answers) == {(1, None)}, set(answers)
        assert metrics['cache_hits'] > 3000, metrics
        clients = memsync.runtime.store.redis.client_list()
        assert len(listeners()) == 1
        theirs = [one for one in clients if int(one['redir']) > 0 and one['redir'] != one['id']]
        assert len(theirs) <= listener.MAX_SOURCES, theirs
        follows(2)
        sleep(0.1)
        assert ticks
        ticks.clear()
        started = time.monotonic()
        while time.monotonic() < started + 2:
            memsync.read('a')
            sleep(0.001)
        report(len(ticks) > 20)
        memsync.shutdown()
    """, redis_url, before) as script:
        first = script.next_line()
        publish(other, {"a": 2})

        assert first == "before 1"
        assert script.ends() == ["after 2", "True"]


@pytest.mark.parametrize("before", stressed([GEVENT, EVENTLET], [GEVENT]))
def test_greenlets_notice_killed_connections(redis_url, redis, other, before):
    publish(other, {"a": 1})

    with Script("""
        eventually(lambda: is_hit('a'))
        report('ready')
        eventually(lambda: memsync.read('a') == 2)
        follows(3)
    """, redis_url, before) as script:
        ready = script.next_line()
        for kind in ("pubsub", "normal"):
            redis.client_kill_filter(_type=kind, skipme=True)
        publish(other, {"a": 2})
        back = script.next_line()
        publish(other, {"a": 3})

        assert (ready, back) == ("ready", "before 2")
        assert script.ends() == ["after 3"]


# -- processes that stand still

@pytest.mark.parametrize("kinds, seconds, patience", [
    ((), 0.3, 2), (("pubsub",), 0.3, 2), (("normal", "pubsub"), listener.TRUST + 1, 0),
    *stressed([((), listener.TRUST + 1, 0), (("normal",), listener.TRUST + 1, 0)], []),
])
def test_process_that_was_stopped_reads_no_old_copy(
    redis_url, redis, other, kinds, seconds, patience,
):
    publish(other, {"a": 1, "b": 1})

    with Script("""
        memsync.read_many(['a', 'b'])
        eventually(lambda: is_hit('a') and is_hit('b'))
        report('ready')
        for line in sys.stdin:
            report(memsync.read('a'), memsync.read('b'), memsync.read_entry('a').value)
    """, redis_url) as script:
        ready, before = script.next_line(), script.read()
        script.process.send_signal(signal.SIGSTOP)
        for kind in kinds:
            redis.client_kill_filter(_type=kind, skipme=True)
        time.sleep(seconds)
        publish(other, {"a": 2, "b": 2})
        script.process.send_signal(signal.SIGCONT)
        eventually(lambda: script.read() == "2 2 2", timeout=patience)

        assert (ready, before) == ("ready", "1 1 1")
        assert [script.read() for _ in range(3)] == ["2 2 2"] * 3
        publish(other, {"a": 3})
        assert eventually(lambda: script.read() == "3 2 3", timeout=3)
