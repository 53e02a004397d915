"""Libraries that patch Celery too, imported and set up before or after this package."""
from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemSync
from tests.support.paths import ROOT


@pytest.fixture
def app(redis_url):
    """An app that takes part."""
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.memsync_backend = redis_url
    yield app
    memsync = getattr(app, "memsync", None)
    if memsync is not None:
        memsync.shutdown(0.5)
        memsync.signals.disconnect()


@pytest.fixture
def wrapped(monkeypatch):
    """Wraps `send_task` of the class; returns the names of the tasks that went through it."""
    def wrap():
        names, plain = [], Celery.send_task

        def send_task(self, name, *args, **kwargs):
            names.append(name)
            return plain(self, name, *args, **kwargs)

        monkeypatch.setattr(Celery, "send_task", send_task)
        return names

    return wrap


def status_of(app, result):
    app.memsync.force_sync()
    return (app.memsync.get_task_state(result.id) or {}).get("status")


def test_a_patch_of_the_class_before_is_called(app, wrapped):
    names = wrapped()
    MemSync(app)
    assert status_of(app, app.send_task("tasks.add")) == "PENDING"
    assert names == ["tasks.add"]


def test_a_patch_of_the_class_after_is_called(app, wrapped):
    MemSync(app)
    app.send_task("tasks.add")
    names = wrapped()
    assert status_of(app, app.send_task("tasks.mul")) == "PENDING"
    assert names == ["tasks.mul"]


def test_a_mock_of_the_class_sends_nothing(app, redis):
    MemSync(app)
    with patch("celery.app.base.Celery.send_task") as send_task:
        app.send_task("tasks.add", countdown=10)
    app.memsync.force_sync()
    assert send_task.called
    assert app.memsync.get_tasks() == []


def test_a_patch_of_the_app_is_called(app):
    MemSync(app)
    with patch.object(app, "send_task", wraps=app.send_task) as send_task:
        result = app.send_task("tasks.add")
    assert send_task.called
    assert status_of(app, result) == "PENDING"


def test_an_app_that_has_sent_before_is_recorded(app):
    app.send_task("tasks.early")
    MemSync(app)
    assert status_of(app, app.send_task("tasks.add")) == "PENDING"


def test_a_second_memsync_of_an_app_records_once(app):
    MemSync(app).shutdown()
    MemSync(app)
    assert status_of(app, app.send_task("tasks.add")) == "PENDING"
    assert app.memsync.get_coordination_metrics()["total"] == 1


@pytest.mark.parametrize("setting, value, message", [
    ("memsync_batch_intervall", 1.0, "did you mean memsync_batch_interval"),
    ("memsync_timeout", -1, "memsync_timeout is -1"),
])
def test_a_wrong_setting_raises_at_each_send_of_a_producer(app, setting, value, message):
    MemSync(app)
    app.conf[setting] = value
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match=message):
            app.send_task("tasks.add")
    del app.conf.changes[setting]
    assert status_of(app, app.send_task("tasks.add")) == "PENDING"


#: By module: how it is set up, and what it has to have seen in the end; Django's settings come before all else.
LIBRARIES = {
    "sentry_sdk": ("""
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport
envelopes = []
class Kept(Transport):
    def capture_envelope(self, envelope):
        envelopes.append(envelope)
sentry_sdk.init("http://key@localhost/1", transport=Kept, default_integrations=False, shutdown_timeout=0,
                integrations=[CeleryIntegration()], traces_sample_rate=1.0)
""", """
    names = [item.payload.json.get("transaction") for one in envelopes for item in one.items]
    assert names.count(add.name) == 2 and fail.name in names, names
    events = [one.get_event() for one in envelopes if one.get_event()]
    assert events[0]["exception"]["values"][0]["value"] == "it went wrong", events
"""),
    "opentelemetry.instrumentation.celery": ("""
from opentelemetry.instrumentation.celery import CeleryInstrumentor
sent = []
CeleryInstrumentor().instrument()
celery.signals.before_task_publish.connect(lambda headers, **_: sent.append(headers), weak=False)
""", """
    assert len(sent) == 3 and all(one["memsync"]["key"] for one in sent), sent
"""),
    "django_celery_results": ("", """
    from django_celery_results.models import TaskResult
    assert sorted(TaskResult.objects.values_list("status", flat=True)) == ["FAILURE", "SUCCESS", "SUCCESS"]
"""),
    "redbeat": ("""
import redbeat
""", """
    redbeat.RedBeatSchedulerEntry("one", add.name, celery.schedules.schedule(0.1), args=(1, 2), app=app).save()
    scheduler = redbeat.RedBeatScheduler(app=app, lazy=True, lock_key=None)
    entry = next(iter(scheduler.schedule.values()))
    assert states(scheduler.apply_async(entry, advance=False)) == ["SUCCESS"]
"""),
}

BEGIN = """
class Custom(celery.Task):
    sent = []
    def apply_async(self, *args, **kwargs):
        Custom.sent.append(self.name)
        return super().apply_async(*args, **kwargs)
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

from django.conf import settings
settings.configure(INSTALLED_APPS=["django_celery_results"], DATABASES={{"default": {{
    "ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}, "OPTIONS": {{"timeout": 20}}}}}})
import celery.schedules
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
"""

#: A program that runs tasks by a test worker.
PROGRAM = """
import celery
{begin}
{first}
from celery_memsync import MemSync
app = celery.Celery("proj", broker="memory://", backend="django-db", task_cls=Custom, set_as_current=False)
app.conf.update(memsync_backend={url!r}, redbeat_redis_url={url!r}, broker_transport_options={{"polling_interval": 0.01}})
memsync = MemSync(app)
{late}
from celery.contrib.testing.worker import start_worker

@app.task
def add(x, y):
    memsync.progress(1, 2, "half")
    return x + y

@app.task
def fail():
    raise ValueError("it went wrong")

def states(*results):
    for one in results:
        one.get(timeout=10, interval=0.01, propagate=False)
    memsync.force_sync()
    return [memsync.get_task_state(one.id)["status"] for one in results]

with start_worker(app, perform_ping_check=False, shutdown_timeout=30):
    found = states(add.delay(1, 2), app.send_task(add.name, (1, 2)), fail.delay())
    assert found == ["SUCCESS", "SUCCESS", "FAILURE"], found
    assert Custom.sent == [add.name, fail.name], Custom.sent
    {checks}
"""


@pytest.mark.parametrize("order", ["first", pytest.param("late", marks=pytest.mark.acceptance)])
def test_sentry_opentelemetry_redbeat_django_and_a_task_class_go_together(redis_url, tmp_path, order):
    for module in LIBRARIES:
        pytest.importorskip(module)
    setups, checks = ("".join(texts) for texts in zip(*LIBRARIES.values()))
    begin = BEGIN.format(database=str(tmp_path / "results"))
    text = PROGRAM.format(**{
        "url": redis_url, "begin": begin, "first": "", "late": "", "checks": checks.strip(), order: setups})
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-4000:]
