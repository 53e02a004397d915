"""The web page of the example project, run as a user runs it."""
from __future__ import annotations

import contextlib
import json
import re
import signal
import urllib.request

import pytest

from tests.support.demo import EXAMPLE, Demo
from tests.support.event_streams import Parser
from tests.support.paths import ROOT
from tests.support.redis_server import free_port
from tests.support.waiting import eventually


def test_web_page_follows_a_census_to_its_end(tmp_path):
    demo, port = Demo(tmp_path, script="web.py"), free_port()
    process = demo.start("--port", str(port))
    process.url = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, process.stdout.read()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(process.url, timeout=5)

    page = eventually(answers, timeout=30).read()
    token = json.load(urllib.request.urlopen(f"{process.url}/start", data=b""))["token"]
    stream = urllib.request.Request(f"{process.url}/progress/{token}", headers={"Accept": "text/event-stream"})
    parser = Parser()
    parser.feed(urllib.request.urlopen(stream, timeout=60).read())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert page == (EXAMPLE / "page" / "index.html").read_bytes()
    percents = [event.content["percent"] or 0 for event in parser.events]
    assert percents == sorted(percents) and len(set(percents)) > 3
    assert (parser.events[-1].name, parser.events[-1].content["status"]) == ("end", "SUCCESS")
    assert (process.returncode, output.splitlines()[-1]) == (0, "All that was started is stopped.")
    demo.check_nothing_left()


@pytest.mark.parametrize("name, language", [("index.html", "html"), ("progress.js", "javascript")])
def test_web_page_is_that_of_the_documentation(name, language):
    guide = (ROOT / "docs" / "howto" / "web.md").read_text()

    (block,) = re.findall(rf"^```{language}\n.*?{name}.*?\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)

    assert (EXAMPLE / "page" / name).read_text() == block
