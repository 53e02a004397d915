"""Every example of README.md is run: by a real worker, real scripts and the real command line."""
from __future__ import annotations

import re
import signal

import pytest

from tests.support.pages import Page
from tests.support.paths import ROOT, names_in, read_setup
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def page(tmp_path_factory, module_server):
    """README.md, beside a worker for the app of its first block."""
    page = Page(ROOT / "README.md", tmp_path_factory.mktemp("readme"), module_server)
    worker = page.worker("proj").start()
    yield page
    worker.stop(signal.SIGQUIT)  # a task still runs, and a warm shutdown would wait for it


@pytest.fixture(scope="module")
def module_server(tmp_path_factory):
    """A redis-server for all examples of one page: they use several of its databases."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


def test_every_script_runs(page):
    assert len(page.scripts) == 3

    for code in page.scripts:
        page.run_script(code)


def test_the_first_example_prints_the_fields_that_the_readme_shows(page):
    (shown,) = re.findall(r"^```text\n(\{'status'.*?)^```$", page.text, re.M | re.S)

    printed = page.run_script(page.scripts[0] + """
while memsync.get_task_progress(task_id) is None or not memsync.get_task_progress(task_id)["current"]:
    time.sleep(0.05)
print(memsync.get_task_state(task_id), memsync.get_task_progress(task_id))
""").splitlines()[-1]

    assert sorted(re.findall(r"'(\w+)':", printed)) == sorted(re.findall(r"'(\w+)':", shown))


def test_every_command_runs_and_prints_what_the_readme_shows(page):
    task_id = page.run_script("from proj import convert; print(convert.delay(3000).id)").strip()
    eventually(lambda: "STARTED" in page.run_celery("-A", "proj", "memsync", "task", task_id), timeout=20)

    for command, shown in page.commands:
        printed = page.run_celery(*UUID.sub(task_id, command).split()[1:])

        titles = [line.split() for line in shown.splitlines() if line.isupper() and not UUID.search(line)]
        lines = [line.split() for line in printed.splitlines()]
        assert [title for title in titles if title not in lines] == []
    assert len(page.commands) == 1


def test_a_worker_takes_part_by_the_setting_alone(tmp_path, own_server):
    page = Page(ROOT / "README.md", tmp_path, own_server)
    worker = page.worker("bare").start()
    try:
        task_id = page.run_script("from bare import add; print(add.delay(1, 2).id)").strip()

        eventually(lambda: task_id in page.run_celery("-A", "bare", "memsync", "tasks", "--status", "success"), timeout=20)
    finally:
        worker.stop()


def test_every_link_to_a_file_leads_somewhere(page):
    base = names_in(read_setup("metadata")["project_urls"])["Source"]
    raw = base.replace("github.com", "raw.githubusercontent.com")
    targets = re.findall(rf"\]\((?:{re.escape(base)}/blob/main|{re.escape(raw)}/main)/([^)#]+)", page.text)

    assert len(targets) == len(re.findall(r"\]\(", page.text))
    assert [target for target in targets if not (ROOT / target).exists()] == []
