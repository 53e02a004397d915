"""No password, address or value shows in an error or in the log."""
from __future__ import annotations

import importlib
import subprocess
import sys
from urllib.parse import quote

import pytest
from celery import Celery, signals
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemorySyncManager, MemSync, StoreError
from celery_memsync.settings import Settings
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer, free_port

SECRET = "hunter2-geheim"
PASSWORD = "p@ss:w/ör d;&#?"


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


def test_wrong_password_is_logged_without_the_password(redis_url, caplog):
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


# -- reports of Celery

URLS = (
    f"redis://localhost/0?password={SECRET}",
    f"redis://localhost/0?db=1&PASSWORD={SECRET}&username=app",
    f"rediss://app@localhost:6380?%70assword={SECRET}",
    f"unix:///tmp/redis.sock?password={SECRET}",
    f"sentinel://h1;sentinel://h2/0?master_name=m&password={SECRET}",
    f"sentinel://h1,h2/0?password={SECRET}&master_name=m",
    f"redis+cluster://h1,h2?password={SECRET}",
    f"rediss+cluster://h1:7000?password={SECRET}",
)


def tied(app, url):
    app.conf.memsync_backend = url
    MemSync(app)


def tied_when_configured(app, url):
    app.conf.update(memsync_backend=url)
    app.conf.finalize()
    MemSync(app)


def tied_before_it_is_configured(app, url):
    MemSync(app)
    app.config_from_object({"memsync_backend": url})


def tied_with_a_prefix(app, url):
    MemSync(app)
    app.config_from_object({"CELERY_MEMSYNC_BACKEND": url}, namespace="CELERY")


def checked(app, url):
    memsync = MemSync(app)
    app.conf.finalize()
    app.conf.memsync_backend = url
    memsync.check()


def reported_without_a_memsync(app, url):
    importlib.import_module("celery_memsync.cli")
    app.conf.memsync_backend = url
    app.loader.import_default_modules()


def started_as_a_worker(app, url):
    MemSync(app, backend=url)
    worker = type("Worker", (), {"app": app, "hostname": "w1@host"})
    signals.worker_init.send(sender=worker)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("configure", [
    tied, tied_when_configured, tied_before_it_is_configured, tied_with_a_prefix, checked,
    reported_without_a_memsync, started_as_a_worker])
def test_report_masks_a_password_in_the_query_of_a_url(configure, url):
    app = Celery("app", set_as_current=False)

    configure(app, url)

    reports = app.bugreport() + str(app.conf.table(with_defaults=False, censored=True))
    assert reports.count("********@") == 2
    assert SECRET not in reports


@pytest.mark.parametrize("url", [
    f"redis://:{SECRET}/1@localhost", f"redis://:{SECRET}#1@localhost/0", f"redis://:{SECRET}?1@localhost",
    f"redis:/:{SECRET}@localhost", f":{SECRET}@localhost", f"redis://:'{SECRET}@localhost:port",
    f'sentinel://h1/0?master_name=m&sentinel_kwargs={{"password":"{SECRET}"}}'])
@pytest.mark.parametrize("configure", [tied, tied_with_a_prefix])
def test_report_masks_a_url_that_can_not_be_read(configure, url):
    app = Celery("app", set_as_current=False)

    configure(app, url)

    assert SECRET not in app.bugreport()
    with pytest.raises(ImproperlyConfigured) as caught:
        app.memsync.check()
    assert "memsync_backend must be a URL" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_report_masks_secrets_of_the_options():
    app = Celery("app", broker="memory://", set_as_current=False)
    app.conf.memsync_backend_options = {
        "password": SECRET, "ssl_password": SECRET, "sentinel_kwargs": {"password": SECRET},
        "socket_timeout": 5.0}

    reports = app.bugreport() + str(app.conf.table(with_defaults=False, censored=True))

    assert SECRET not in reports
    assert "socket_timeout" in reports


def test_repr_of_settings_holds_no_url_and_no_options():
    settings = Settings.build({"backend": URLS[0], "backend_options": {"password": SECRET}})

    assert SECRET not in repr(settings)
    assert "namespace='task-sentinel'" in repr(settings)


@pytest.fixture
def guarded(tmp_path):
    """A redis-server with a password, on a TCP port and a unix socket."""
    server = RedisServer(tmp_path, "--unixsocket", str(tmp_path / "redis.sock")).start()
    server.client().config_set("requirepass", PASSWORD)
    yield server
    server.stop()


@pytest.mark.parametrize("url", [
    "redis://localhost:{port}/0?password={password}", "unix://{socket}?password={password}",
    "redis://localhost:{port}?db=1&username=default&password={password}",
    "unix://{socket}?db=1&username=default&PASSWORD={password}"])
def test_url_whose_password_was_moved_still_connects(guarded, url):
    app = Celery("app", set_as_current=False)
    app.conf.memsync_backend = url.format(
        port=guarded.port, socket=guarded.folder / "redis.sock", password=quote(PASSWORD, safe=""))

    with MemSync(app) as memsync:
        memsync.write("a", 1)
        memsync.force_sync()
        value = memsync.read("a")

    assert value == 1
    assert "password=" not in app.conf.memsync_backend.lower()
