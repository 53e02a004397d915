"""Tasks whose ids can't be part of a key run as any other; nothing of them is recorded."""
from __future__ import annotations

import pytest
from celery import Celery

from celery_memsync import MemSync

IDS = ["report/2026/11", "import[3]", "a*", "x" * 600, "a\nb", "\ud800"]


@pytest.fixture
def app(redis_url):
    """An app with a task that uses the shared state in every way."""
    app = Celery("unfit", broker="memory://", set_as_current=False)
    app.conf.update(memsync_backend=redis_url, memsync_strict=True)
    memsync = MemSync(app)

    @app.task(name="busy", shared=False)
    @memsync.exclusive
    def busy():
        memsync.progress(1, 3, "first")
        agent = memsync.agent("a")
        agent.sync(x=1)
        return list(memsync.track(range(3))), agent.get()

    yield app
    memsync.shutdown()
    memsync.signals.disconnect()


@pytest.mark.parametrize("task_id", IDS)
def test_a_task_with_any_id_runs(app, task_id):
    result = app.tasks["busy"].apply(task_id=task_id)

    assert result.get() == ([0, 1, 2], None)


def test_task_with_an_unfit_id_is_logged_once(app, caplog):
    for task_id in IDS * 2:
        app.tasks["busy"].apply(task_id=task_id)

    (record,) = [record for record in caplog.records if "Nothing is recorded" in record.message]
    assert record.levelname == "WARNING"
    assert "busy" in record.message and "report/2026/11" in record.message


def test_a_task_with_a_fit_id_is_recorded_as_ever(app):
    result = app.tasks["busy"].apply(task_id="fit")

    assert result.get() == ([0, 1, 2], {"x": 1})
    assert app.memsync.get_task_state("fit")["status"] == "SUCCESS"
