"""Events at the end of a process, after a fork, and when signals raise in the middle of one."""
from __future__ import annotations

import subprocess
import sys
import time

from tests.support.paths import ROOT
from tests.support.scripts import HEAD, IN_CHILD, run


def test_a_process_with_a_handler_that_blocks_ends(tmp_path, redis_url):
    started = time.monotonic()

    run(tmp_path, """
        begun = threading.Event()
        memsync.on('write', lambda **details: begun.set() or time.sleep(60))
        memsync.write('a', 1)
        memsync.force_sync()
        begun.wait(5)
    """, redis_url)

    assert time.monotonic() - started < 10


# -- forks

def test_forked_child_receives_its_own_events_and_none_of_its_parent(tmp_path, redis_url):
    out = run(tmp_path, """
        begun, release, parent = threading.Event(), threading.Event(), os.getpid()
        memsync.on('force-sync', lambda **details: os.getpid() == parent and (begun.set(), release.wait(10)))
        memsync.on('write', lambda key, value: print(os.getpid() == parent, key[-1], flush=True))
        memsync.write('p', 1)
        memsync.force_sync()
        memsync.write('q', 1)
        memsync.force_sync()
        begun.wait(10)
        in_child(lambda: (memsync.write('c', 1), memsync.shutdown(timeout=5)))
        release.set()
        memsync.shutdown(timeout=5)
    """, redis_url, HEAD + IN_CHILD)

    assert out.splitlines() == ["True p", "False c", "True q"]


def test_a_handler_may_fork(tmp_path, redis_url):
    out = run(tmp_path, """
        parent = os.getpid()
        memsync.on('write', lambda key, value: os.getpid() == parent and in_child(
            lambda: (memsync.write('c', 1), memsync.shutdown(timeout=5))))
        memsync.on('write', lambda key, value: print(os.getpid() == parent, key[-1], flush=True))
        memsync.write('p', 1)
        memsync.force_sync()
        memsync.shutdown(timeout=5)
    """, redis_url, HEAD + IN_CHILD)

    assert out.splitlines() == ["False c", "True p"]


# -- exceptions of signals

STORM = """
import random, signal, threading, time
from celery_memsync.background_loop import BackgroundLoop
from celery_memsync.events import Events

class Limit(Exception):
    pass

def strike(*_):
    if armed:
        raise Limit

armed = False
chance, received, calls, struck = random.Random(20261129), [], [], 0
signal.signal(signal.SIGALRM, strike)
end = time.monotonic() + 3
while time.monotonic() < end:
    events = Events()
    events.on('write', lambda **details: received.append(1))
    loop = BackgroundLoop('a-test', lambda: calls.append(1), 0, on_demand=True)
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.001)
        for _ in range(200):
            loop.wake()
            loop.run_now()
            events.emit('write')
        armed = False
    except Limit:
        struck += 1
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    before = len(calls)
    threading.Thread(target=loop.wake).start()
    emitter = threading.Thread(target=events.emit, args=('write',))
    emitter.start()
    emitter.join(5)
    while len(calls) == before:
        time.sleep(0.001)
    assert events.wait_idle(5)
    loop.stop(5)
    events.close(5)
    assert not loop.running
print(struck, bool(received))
"""


def test_exceptions_at_any_bytecode_of_an_emission_leave_nothing_locked():
    storm = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=60, cwd=ROOT)

    assert storm.returncode == 0, storm.stderr
    assert int(storm.stdout.split()[0]) > 100
