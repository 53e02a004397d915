"""The project of docs/howto/django.md: a view that shows the progress of a task."""
from __future__ import annotations

import pytest

from tests.support.pages import Page
from tests.support.paths import ROOT

#: What every project of Django has beside the settings of the page.
SETTINGS = """
SECRET_KEY = "x"
ROOT_URLCONF = "mysite.urls"
ALLOWED_HOSTS = ["testserver"]
"""

PROGRAM = """
import os, time
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
import django
django.setup()
from django.test import Client
from mysite.celery import memsync
client = Client()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, store):
    """The project, and a worker of it."""
    folder = tmp_path_factory.mktemp("django")
    page = Page(ROOT / "docs" / "howto" / "django.md", folder, store)
    (folder / "shop" / "__init__.py").touch()
    with open(folder / "mysite" / "settings.py", "a") as file:
        file.write(SETTINGS + 'INSTALLED_APPS = ["shop"]\n')
    worker = page.worker("mysite").start()
    yield page
    worker.stop()


def test_view_of_django_shows_a_task_to_its_end(project):
    project.run_script(PROGRAM + """
token, task = client.post("/bills").json()["token"], {"ended": False}
while not task["ended"]:
    time.sleep(0.1)
    answer = client.get("/progress/" + token)
    task = answer.json()
assert answer.headers["Cache-Control"] == "no-store" and answer.headers["Content-Type"] == "application/json"
assert (task["status"], task["percent"], task["message"]) == ("SUCCESS", 100, "sending"), task
""")


def test_view_of_django_refuses_what_is_no_token_and_no_read(project):
    project.run_script(PROGRAM + """
token = memsync.token("t1")
assert client.get("/progress/" + token).json()["status"] == "PENDING"
assert client.get("/progress/x").status_code == 403
assert client.get("/progress/" + memsync.token("t1", max_age=1e-6)).json()["error"].startswith("the token has expired")
assert client.post("/progress/" + token).status_code == 405
""")


def test_view_of_django_says_that_redis_is_away(project):
    project.run_script("""
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
from mysite import settings
settings.CELERY_MEMSYNC_BACKEND = "redis://:hunter2@127.0.0.1:1/0"
""" + PROGRAM + """
answer = client.get("/progress/" + memsync.token("t1"))
assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
assert answer.json() == {"error": "the progress is unknown at the moment"}
""")
