"""The workers of the pytest plugin, beside Celery's fixtures and other plugins."""
from __future__ import annotations

import re

import pytest

from tests.support.plugin_project import TASKS, Project
from tests.support.stress import stressed

#: An app of a project, with its own settings, as `proj` has them in production.
PROJ = """
    from celery import Celery
    from celery_memsync import MemSync

    app = Celery("proj", broker="redis://localhost:1/0", backend="redis://localhost:1/0")
    app.conf.update(memsync_backend="rediss://localhost:1/1", memsync_namespace="production")
    memsync = MemSync(app)

    @app.task
    def convert(pages):
        for page in memsync.track(range(pages), message="converting"):
            pass
        return pages
"""


def test_worker_records_its_tasks_in_the_state_of_the_test(tmp_path):
    Project(tmp_path, tasks=TASKS, test_a="""
        import os

        from celery_memsync import InvalidValue
        from tasks import convert, hold

        def test_worker(memsync, memsync_worker, wait_for, assert_progress):
            result = hold.delay()

            assert_progress(result, 40, message="holding")
            assert wait_for(result, status="STARTED")["name"] == "tasks.hold"
            assert wait_for(result)["pid"] == os.getpid() == result.get(timeout=5)
            assert_progress(result, 100, at_least=100)
            assert memsync.get_active_workers() == [memsync_worker.hostname]
            assert wait_for(lambda: not memsync.get_queue()["processing"])

        def test_reload(memsync, memsync_worker, wait_for):
            assert [task["state"]["name"] for task in memsync.get_tasks()] == ["celery.ping"]

            @memsync.app.task
            def work():
                memsync.progress(-1)

            memsync_worker.reload()

            assert wait_for(work.delay())["exception"]["type"] == "InvalidValue"
    """).passes("-W", "error::pytest.PytestUnhandledThreadExceptionWarning", tests=2)


def test_worker_follows_the_fixtures_of_celery(tmp_path):
    Project(tmp_path, tasks=TASKS, conftest="""
        import pytest

        pytest_plugins = ["celery.contrib.pytest"]

        @pytest.fixture(scope="session")
        def celery_config(memsync_server):
            return {"broker_url": memsync_server, "result_backend": memsync_server, "memsync_default_ttl": 77.0}

        @pytest.fixture(scope="session")
        def celery_worker_pool():
            return "prefork"

        @pytest.fixture(scope="session")
        def celery_worker_parameters():
            return {"hostname": "mine@here", "concurrency": 2, "queues": ["celery", "slow"]}

        @pytest.fixture(scope="session")
        def celery_includes():
            return ["tasks"]
    """, test_a="""
        import os

        from tasks import hold

        def test_worker(memsync, memsync_worker, wait_for, assert_progress):
            results = [hold.apply_async(queue=queue) for queue in ("celery", "slow")]

            pids = {wait_for(result)["pid"] for result in results}
            assert len(pids) == 2 and os.getpid() not in pids
            assert assert_progress(results[0], 100)["message"] == "holding"
            (record,) = memsync.get_workers()
            assert (record.worker_id, record.pool, record.concurrency) == ("mine@here", "prefork", 2)
            assert memsync.settings.default_ttl == 77
    """).passes(tests=1)


def test_session_worker_serves_all_tests_that_use_it(tmp_path):
    Project(tmp_path, tasks=TASKS, test_a="""
        import pytest
        from tasks import convert

        seen = []

        @pytest.mark.parametrize("pages", [3, 4])
        def test_session(memsync, memsync_session_worker, wait_for, assert_progress, pages):
            seen.append((memsync, memsync_session_worker, memsync.settings.namespace))
            result = convert.delay(pages)
            assert_progress(result, 100, total=pages)
            assert seen[0] == seen[-1]

        def test_alone(memsync):
            assert memsync is not seen[0][0]
            assert memsync.get_tasks() == []
    """).passes(tests=3)


def test_app_of_the_project_is_used_with_its_memsync(tmp_path):
    Project(tmp_path, proj=PROJ, conftest="""
        import pytest
        from proj import app

        pytest_plugins = ["celery.contrib.pytest"]

        @pytest.fixture
        def celery_app(memsync_server):
            app.conf.broker_url = app.conf.result_backend = memsync_server
            return app
    """, test_a="""
        import proj
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_worker(memsync, memsync_worker, wait_for, assert_progress, number):
            assert memsync is proj.memsync
            assert [task["state"]["name"] for task in memsync.get_tasks()] == ["celery.ping"]
            assert_progress(proj.convert.delay(5), 100, current=5)

        def test_eager(memsync, assert_progress):
            assert_progress(proj.convert.apply([3]), 100, current=3)

        def test_settings():
            assert proj.memsync.settings.namespace == "production"
            assert proj.memsync.settings.backend == "rediss://localhost:1/1"
            assert proj.app.conf.memsync_namespace == "production"
            assert not proj.memsync.in_worker
    """).passes(tests=4)


def test_worker_of_celery_that_began_earlier_is_an_error(tmp_path):
    output = Project(tmp_path, test_a="""
        def test_order(celery_worker, memsync_worker):
            pass

        def test_other_order(memsync_worker, celery_worker):
            assert memsync_worker is celery_worker
    """).run()

    assert re.search(r"1 passed.* 1 error", output.splitlines()[-1])
    assert "use memsync_worker instead of celery_worker, or name it first" in output


def test_worker_beside_a_fixture_of_the_same_name_says_what_to_do(tmp_path):
    output = Project(tmp_path, conftest="""
        import pytest

        pytest_plugins = ["celery.contrib.pytest"]

        @pytest.fixture
        def memsync():
            return ["mine"]
    """, test_a="""
        import pytest

        def test_mine(memsync):
            assert memsync == ["mine"]

        def test_worker(memsync_worker):
            pass

        class TestBuiltOn:
            @pytest.fixture
            def memsync(self, request, memsync):
                return memsync

            def test_worker_too(self, memsync_worker):
                pass
    """).run()

    assert "this project has one of that name; rename it, or let it return the plugin's" in output
    assert re.search(r"1 passed.* 2 errors", output.splitlines()[-1])


def test_fixtures_without_those_of_celery_say_what_to_do(tmp_path):
    output = Project(tmp_path, conftest="", test_a="""
        def test_a(memsync):
            pass
    """).run()

    assert 'put pytest_plugins = ["celery.contrib.pytest"] into the conftest.py at the root' in output
    assert "1 error" in output.splitlines()[-1]


def test_failure_with_a_result_at_hand_ends_without_a_delay_or_a_warning(tmp_path):
    output = Project(tmp_path, tasks=TASKS, test_a="""
        from tasks import hold

        def test_fails(memsync_worker):
            result = hold.delay()
            result.get(timeout=5)
            other = hold.delay()
            assert False
    """).run()

    assert "Unraisable" not in output and "Retry limit" not in output
    assert "1 failed" in output.splitlines()[-1]


# -- beside other plugins

def test_fixtures_work_with_django(tmp_path):
    project = Project(tmp_path, settings="""
        import os

        SECRET_KEY = "x"
        INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db", "TEST": {"NAME": "test.sqlite3"}}}
        USE_TZ = True
        CELERY_BROKER_URL = CELERY_RESULT_BACKEND = "redis://localhost:1/0"
        CELERY_MEMSYNC_BACKEND = "redis://localhost:1/1"
    """, proj="""
        from celery import Celery
        from celery_memsync import MemSync

        app = Celery("proj")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        memsync = MemSync(app)

        @app.task
        def add_group(name):
            from django.contrib.auth.models import Group

            memsync.progress(1, 2, "adding")
            return Group.objects.create(name=name).pk
    """, conftest="""
        import pytest
        from proj import app

        pytest_plugins = ["celery.contrib.pytest"]

        @pytest.fixture
        def celery_app(memsync_server):
            app.conf.update(broker_url=memsync_server, result_backend=memsync_server)
            return app
    """, test_a="""
        import pytest
        from proj import add_group

        @pytest.mark.django_db(transaction=True)
        @pytest.mark.parametrize("number", range(2))
        def test_worker(memsync_worker, wait_for, assert_progress, number):
            from django.contrib.auth.models import Group

            result = add_group.delay("editors")
            assert wait_for(result)["status"] == "SUCCESS"
            assert_progress(result, 100, message="adding")
            assert [group.name for group in Group.objects.all()] == ["editors"]

        def test_eager(db, memsync, assert_progress):
            assert_progress(add_group.apply(["authors"]), 100)

        def test_without_database(memsync, assert_progress):
            result = add_group.apply(["authors"])
            assert_progress(result, 50)
            assert "django_db" in memsync.get_task_state(result.id)["exception"]["message"]
    """)

    project.passes("--ds", "settings", tests=4)


@pytest.mark.parametrize("mode", stressed(("strict", "auto"), ("strict",)))
def test_fixtures_work_with_asyncio(tmp_path, mode):
    Project(tmp_path, tasks=TASKS, test_a="""
        import asyncio

        import pytest
        from tasks import hold

        pytestmark = [] if MODE == "auto" else pytest.mark.asyncio

        async def test_worker(memsync, memsync_worker, wait_for, assert_progress):
            result = hold.delay()
            waiting = asyncio.create_task(asyncio.to_thread(wait_for, result))
            await asyncio.sleep(0)
            assert not waiting.done()
            assert (await waiting)["status"] == "SUCCESS"
            assert_progress(result, 100)

        async def test_state(memsync):
            assert memsync.search("*") == []
    """.replace("MODE", repr(mode))).passes("-o", f"asyncio_mode={mode}", tests=2)
