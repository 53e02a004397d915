"""The page of docs/howto/web.md, served by a real uvicorn and run as a browser runs it."""
from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.request

import pytest

from tests.support.pages import SECRETS, Page
from tests.support.paths import ROOT
from tests.support.web_server import Client, WebServer, until

NODE = shutil.which("node")


def has_event_source():
    """Return whether there is a node that has what browsers have."""
    command = [NODE or "false", "--experimental-eventsource", "-e", "new EventSource('http://127.0.0.1:1').close()"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def server(tmp_path, own_server):
    """The server of the page, with a worker."""
    page = Page(ROOT / "docs" / "howto" / "web.md", tmp_path, own_server)
    worker = page.worker("proj").launch()
    server = WebServer("web:app", tmp_path / "web.log", SECRETS, tmp_path)
    try:
        yield server.wait_ready("/")
    finally:
        server.stop()
        worker.stop()


def test_page_of_the_documentation_streams_a_task(server):
    with urllib.request.urlopen(server.url) as answer:
        page, policy = answer.read().decode(), answer.headers["content-security-policy"]
    with urllib.request.urlopen(f"{server.url}/start", data=b"") as answer:
        token = json.load(answer)["token"]

    async def follow():
        client = await Client.connect(server, f"/progress/{token}")
        await until(lambda: client.has_ended, 40)
        return client.parser.events

    events = asyncio.run(follow())

    assert '<script src="/progress.js"></script>' in page and "script-src 'self'" in policy
    assert " on" not in page and page.count("<script") == 1  # which the policy would not allow
    percents = [event.content["percent"] or 0 for event in events]
    assert percents == sorted(percents) and len(set(percents)) > 3
    assert (events[-1].name, events[-1].content["status"]) == ("end", "SUCCESS")


def click(folder, server, way):
    """Run the script of the page, with a click; return the process that has ended, and what the page showed."""
    browser = [NODE, "--experimental-eventsource", ROOT / "tests" / "support" / "browser.js"]
    done = subprocess.run([*browser, folder / "progress.js", server.url, way], capture_output=True, text=True, timeout=60)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not has_event_source(), reason="no node with EventSource here")
@pytest.mark.parametrize("way", ["streams", "polls"])
def test_script_of_the_documentation_shows_a_task_to_its_end(server, tmp_path, way):
    done, changes = click(tmp_path, server, way)

    values = [value for element, _, value in changes if element == "bar"]
    messages = [value for element, name, value in changes if (element, name) == ("message", "textContent")]
    assert done.returncode == 0, done.stderr
    assert values == sorted(values) and values[-1] == 100 and len(values) > 1
    assert "converting" in messages and messages[-1] == "SUCCESS"


@pytest.mark.skipif(not has_event_source(), reason="no node with EventSource here")
def test_script_of_the_documentation_says_that_no_task_was_started(server, tmp_path, own_server):
    own_server.stop()

    done, changes = click(tmp_path, server, "streams")

    assert done.returncode == 0, done.stderr
    assert changes == [["message", "textContent", "The task was not started."]]
