"""``memsync_redact`` sees texts of exceptions, messages of progress and lines of the log before they are written."""
from __future__ import annotations

import importlib
import io
import logging
import pkgutil
import re
import threading
import time
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded

import celery_memsync
from celery_memsync import MemSync
from celery_memsync.redaction import Redactor
from celery_memsync.settings import Settings
from celery_memsync.user_code import call_user_code
from tests.support.redis_contents import contents
from tests.support.waiting import eventually

SECRET = "hunter2-geheim"


def hide(text):
    return re.sub(r"hunter2\S*", "***", text)


def leave(text):
    raise SystemExit(3)


def fail(text):
    raise ValueError(f"can't redact {text}")


class Strange(str):
    """A text that shows something else than it is."""

    def __str__(self):
        raise SystemExit

    def __len__(self):
        return -1


#: What users may give, and what an error or a message with the secret becomes.
HOSTILE = [
    (fail, "<hidden: memsync_redact raised ValueError>"), (leave, "<hidden: memsync_redact raised SystemExit>"),
    (lambda text: None, "<hidden: memsync_redact returned NoneType>"),
    (lambda text: text.encode(), "<hidden: memsync_redact returned bytes>"),
    (lambda: "no argument", "<hidden: memsync_redact raised TypeError>"),
    (lambda text: Strange("strange"), "strange"), (hide, "the key is ***"),
]


@pytest.fixture
def make_app(redis_url):
    """Makes an app whose tasks run right here."""
    made = []

    def make(redact, **conf):
        app = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(
            memsync_backend=redis_url, memsync_redact=redact, task_always_eager=True, memsync_batch_interval=60.0,
            memsync_strict=True, memsync_signing_key="a secret of the tests",
            broker_transport_options={"polling_interval": 0.01}, **conf)
        made.append(MemSync(app))
        return app

    yield make
    for memsync in made:
        memsync.shutdown(0.5)


@pytest.fixture
def log():
    """What a handler of the whole log writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def everything(redis):
    """Return all that is stored."""
    return contents(SimpleNamespace(client=lambda: redis)).decode(errors="replace")


@pytest.mark.parametrize("redact, expected", HOSTILE)
def test_text_of_an_exception_is_redacted_before_it_is_stored(make_app, redis, redact, expected):
    app = make_app(redact)

    @app.task(shared=False)
    def work():
        raise ValueError(f"the key is {SECRET}")

    result = work.apply()
    app.memsync.force_sync()

    assert app.memsync.get_task_state(result.id)["exception"] == {"type": "ValueError", "message": expected}
    assert SECRET not in everything(redis)


@pytest.mark.parametrize("redact, expected", HOSTILE)
@pytest.mark.parametrize("report", [
    lambda memsync, task: memsync.progress(1, 2, f"the key is {SECRET}"),
    lambda memsync, task: [memsync.progress(1, 2), memsync.progress(2, None, f"the key is {SECRET}")],
    lambda memsync, task: list(memsync.track([1], message=f"the key is {SECRET}")),
    lambda memsync, task: memsync.sync_task_progress(task.request.id, 3, message=f"the key is {SECRET}"),
    lambda memsync, task: task.update_state(meta={"current": 1, "total": 2, "description": f"the key is {SECRET}"}),
], ids=["first", "second", "track", "by hand", "update_state"])
def test_message_of_progress_is_redacted_before_it_is_stored(make_app, redis, report, redact, expected):
    app = make_app(redact)

    @app.task(bind=True, shared=False)
    def work(self):
        report(app.memsync, self)

    result = work.apply()
    app.memsync.force_sync()

    assert result.state == "SUCCESS"
    assert app.memsync.get_task_progress(result.id)["message"] == expected
    assert SECRET not in everything(redis)


def test_reader_of_the_same_process_sees_the_redacted_message_too(make_memsync):
    memsync = make_memsync(batch_interval=60.0, redact=hide)

    memsync.sync_task_progress("t1", 5, message=SECRET)

    assert memsync.get_task_progress("t1")["message"] == "***"


@pytest.mark.parametrize("redact, expected", [
    (hide, "ValueError: ***"), (fail, "raised ValueError"), (leave, "SystemExit"), (lambda text: 5, "returned int")])
def test_log_is_redacted_with_its_tracebacks(make_memsync, log, caplog, redact, expected):
    def raise_secret():
        raise ValueError(SECRET)

    memsync = make_memsync(batch_interval=60.0, redact=redact)
    memsync.write("a", 1)
    call_user_code(f"A handler of {SECRET}", raise_secret)

    assert expected in log.getvalue()
    assert SECRET not in log.getvalue() + repr([vars(record) for record in caplog.records])


def test_log_is_redacted_only_while_a_manager_with_it_is_there(make_memsync, log):
    memsync = make_memsync(batch_interval=60.0, redact=hide)
    memsync.write("a", 1)
    logger = logging.getLogger("celery_memsync.closing")
    logger.warning(SECRET)
    redacted = log.getvalue()
    memsync.shutdown(0.5)

    logger.warning("%s", "plain")

    assert redacted == "***\n"
    assert log.getvalue() == "***\nplain\n"


def test_log_of_every_module_is_redacted(make_memsync):
    make_memsync(batch_interval=60.0, redact=hide).write("a", 1)
    redacted = {name for name, logger in logging.Logger.manager.loggerDict.items()
                if name.startswith("celery_memsync.") and getattr(logger, "filters", None)}

    for module in pkgutil.walk_packages(celery_memsync.__path__, "celery_memsync."):
        importlib.import_module(module.name)

    assert {name for name, logger in logging.Logger.manager.loggerDict.items()
            if name.startswith("celery_memsync.") and isinstance(logger, logging.Logger)} == redacted


def test_log_of_others_is_left_alone(make_memsync, log):
    make_memsync(batch_interval=60.0, redact=hide).write("a", 1)

    logging.getLogger("proj").warning(SECRET)

    assert log.getvalue() == f"{SECRET}\n"


def test_redactor_that_blocks_delays_its_task_only(make_app, make_memsync):
    released = threading.Event()
    app = make_app(lambda text: released.wait(30) and "released")

    @app.task(shared=False)
    def work():
        app.memsync.progress(1, 2, SECRET)

    thread = threading.Thread(target=work.apply)
    thread.start()
    begun = time.monotonic()
    app.memsync.write("a", 1)
    app.memsync.force_sync()
    value = make_memsync().read("a")
    seconds = time.monotonic() - begun
    released.set()
    thread.join(10)

    assert value == 1
    assert seconds < 5


def test_soft_time_limit_ends_a_task_in_the_middle_of_a_redactor(make_app):
    def strike(text):
        raise SoftTimeLimitExceeded()

    app = make_app(strike)

    @app.task(shared=False)
    def work():
        app.memsync.progress(1, 2, "half")

    result = work.apply()
    app.memsync.force_sync()

    assert result.state == "FAILURE"
    assert app.memsync.get_task_state(result.id)["status"] == "FAILURE"


def test_two_apps_redact_each_its_own(make_app):
    apps = [make_app(lambda text, number=number: f"{text} {number}") for number in (1, 2)]
    for app in apps:
        app.memsync.sync_task_progress("t1", 5, message=f"app {id(app)}")

    shown = [app.memsync.get_task_progress("t1")["message"] for app in apps]

    assert shown == [f"app {id(app)} {number}" for number, app in enumerate(apps, 1)]


def test_worker_redacts_what_its_tasks_raise(make_app, redis):
    app = make_app("tests.unit.test_redaction.hide", task_default_queue="redacted")
    app.conf.update(task_always_eager=False, memsync_batch_interval=0.05)

    @app.task(shared=False)
    def work():
        raise ValueError(SECRET)

    with start_worker(app, perform_ping_check=False, shutdown_timeout=30, loglevel="WARNING"):
        result = work.delay()
        eventually(lambda: (app.memsync.get_task_state(result.id) or {}).get("status") == "FAILURE")
        app.memsync.force_sync()

    assert SECRET not in everything(redis)


@pytest.mark.parametrize("wrong", [5, "no_such_module.redact", "tests.unit.test_redaction.SECRET", b"hide", ["hide"]])
def test_setting_that_is_no_callable_is_refused(wrong):
    with pytest.raises(ImproperlyConfigured, match="memsync_redact is .* it must be a callable"):
        Settings.build({"redact": wrong})


def test_what_ends_a_greenlet_goes_through_a_redactor():
    class GreenletExit(BaseException):
        pass

    def end(text):
        raise GreenletExit

    with pytest.raises(GreenletExit):
        Redactor(end)("text")
