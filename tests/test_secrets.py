"""No password, address or value shows in an error or in the log."""
from __future__ import annotations

import subprocess
import sys

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemorySyncManager, StoreError

from .helpers import ROOT, free_port

SECRET = "hunter2-geheim"


def chain_of(error):
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def shown(error):
    return " ".join(f"{one!r} {one} {one.args!r}" for one in chain_of(error))


@pytest.mark.parametrize("url", [
    f"http://:{SECRET}@localhost", f"redis:/{SECRET}@localhost", f"redis//:{SECRET}@localhost",
    f"redis://:{SECRET}@localhost:port/0", f"redis://user:{SECRET}@[::1/0", f"redis://:{SECRET}@localhost/0?bogus=1",
    f"redis://:{SECRET}@localhost:99999999/0",
])
def test_no_error_for_a_wrong_url_shows_its_password(url, caplog):
    with pytest.raises((ImproperlyConfigured, StoreError)) as caught:
        memsync = MemorySyncManager(url=url, batch_interval=60.0)
        memsync.read("a")

    assert SECRET not in shown(caught.value)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("options", [{"password": SECRET, "bogus": 1}, {"socket_timeout": 0.2, "password": SECRET}])
def test_no_error_shows_a_password_of_the_options(options, caplog):
    memsync = MemorySyncManager(url=f"redis://127.0.0.1:{free_port()}", backend_options=options, batch_interval=60.0)

    with pytest.raises((ImproperlyConfigured, StoreError)) as caught:
        memsync.read("a")

    assert SECRET not in shown(caught.value)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("act", [
    lambda memsync: memsync.read("a"),
    lambda memsync: memsync.get_task_state("t1"),
    lambda memsync: memsync.write("a", 1, expected_version=0),
    lambda memsync: [memsync.write("a", SECRET), memsync.force_sync()],
])
def test_no_error_while_redis_is_away_shows_a_password_or_a_value(act, caplog):
    memsync = MemorySyncManager(url=f"redis://user:{SECRET}@127.0.0.1:{free_port()}/3", batch_interval=60.0)

    with pytest.raises(StoreError) as caught:
        act(memsync)
    memsync.shutdown(timeout=0.1)

    assert SECRET not in shown(caught.value)
    assert SECRET not in caplog.text


def test_a_wrong_password_is_told_without_showing_it(redis_url, caplog):
    memsync = MemorySyncManager(url=redis_url.replace("://", f"://user:{SECRET}@"), batch_interval=60.0)

    with pytest.raises(StoreError, match="user or password") as caught:
        memsync.read("a")

    assert SECRET not in shown(caught.value)
    assert SECRET not in caplog.text


def test_a_url_that_redis_py_refuses_does_not_make_the_end_of_a_process_noisy():
    code = (
        "from celery_memsync import MemorySyncManager\n"
        "try:\n"
        f"    memsync = MemorySyncManager(url='redis://:{SECRET}@localhost:port/0', batch_interval=60.0)\n"
        "    memsync.write('a', 1)\n"
        "except Exception as exc:\n"
        "    print(type(exc).__name__)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)

    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
