"""The cache while many threads read and invalidate: nothing is recalled that was known to be old."""
from __future__ import annotations

import random
import sys
import threading
import time

import pytest

from celery_memsync.reading import cache as cache_module
from celery_memsync.reading.cache import EntryCache
from tests.support.cached_values import NEVER, Source, value_of
from tests.support.stress import stressed


@pytest.fixture(autouse=True)
def always_looking(monkeypatch):
    """Every recall checks whether something was received."""
    monkeypatch.setattr(cache_module, "CHECK_PAUSE", -1)


@pytest.mark.slow
def test_cache_in_many_threads_returns_no_value_known_to_be_old(request):
    request.addfinalizer(lambda interval=sys.getswitchinterval(): sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-5)
    cache, names = EntryCache(3, 60.0, lambda: False), ["a", "b", "c", "d"]
    truth, least_known, wrong = dict.fromkeys(names, 0), dict.fromkeys(names, 0), []
    end = time.monotonic() + stressed(10.0)

    def change(name):
        while time.monotonic() < end:
            truth[name] += 1
            cache.invalidate(name)
            least_known[name] = truth[name]
            time.sleep(random.random() / 1000)

    def read():
        while time.monotonic() < end:
            name = random.choice(names)
            least = least_known[name]
            value = value_of(cache, name)
            if value is None:
                reading = cache.begin((name,), Source())
                value = truth[name]
                cache.keep(reading, name, value, (name,), NEVER)
                cache.finish(reading)
            if value < least or len(cache) > 4:
                wrong.append((name, value, least))

    threads = [threading.Thread(target=change, args=(name,)) for name in names]
    threads += [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert cache.hits > 100
