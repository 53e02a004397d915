"""A soft time limit may raise at any line of a read: the next read gets its own answer, and copies are kept on."""
from __future__ import annotations

import linecache
import sys
import time

import pytest

from tests.support.cache_hits import is_hit
from tests.support.proxy import Proxy
from tests.support.publishing import publish
from tests.support.stress import stressed
from tests.support.waiting import eventually


class Limit(Exception):
    """Stands for a soft time limit."""


class SlowProxy(Proxy):
    """A proxy that takes its time with each answer."""

    def _wait(self, data, sent):
        time.sleep(0.002)


def may_strike(frame):
    """Whether a signal may raise there: Python lets none in between the end of a ``with`` block and its exit."""
    return not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def raise_at(number, act):
    """Call something and raise at the line of this number; return whether there is one."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line" and may_strike(frame)
        if event == "line" and count == number:
            sys.settrace(None)
            raise Limit
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Limit:
        pass
    finally:
        sys.settrace(before)
    return count >= number


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size, first", stressed([(0, 1), (1000, 1), (1000, 200)], [(0, 1), (1000, 1)]))
def test_a_read_that_was_cut_short_spoils_no_other(own_server, make_memsync, size, first):
    other = make_memsync(url=own_server.url)
    publish(other, {f"key-{number}": number for number in range(3000)})
    wrong, struck = [], 0

    with SlowProxy(own_server.port) as proxy:
        memsync = make_memsync(url=proxy.url, batch_interval=60.0, cache_size=size)
        memsync.read("warm")
        for number in range(first, 3000, stressed(3, 7)):
            if not raise_at(number, lambda: memsync.read(f"key-{number}", consistent=True)):
                break
            struck += 1
            found = memsync.read_many([f"key-{number + 1}"], consistent=True), memsync.read(f"key-{number}")
            if found != ({f"key-{number + 1}": number + 1}, number):
                wrong.append((number, found))

        assert wrong == []
        assert struck > 25
        assert len(own_server.client().client_list()) < 60
        assert size == 0 or eventually(lambda: is_hit(memsync, "key-0"), timeout=15)
