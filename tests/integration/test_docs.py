"""The examples of docs/ run, as those of README.md do."""
from __future__ import annotations

import re
import sys

import pytest

from tests.support.pages import Page
from tests.support.paths import ROOT
from tests.support.plugin_project import plugin_options
from tests.support.stress import stressed

PAGES = ("quickstart.md", "howto/progress.md", "howto/locks.md", "howto/workflows.md", "howto/asyncio.md", *stressed((
    "howto/testing.md", "howto/cancel.md", "howto/fleet.md", "howto/commands.md", "howto/web.md", "howto/several-apps.md",
    "howto/backup.md", "howto/agents.md"), ()))

#: Pages that need no worker.
BY_HAND = ("howto/changes.md", "howto/queue.md", "howto/cache.md", "howto/security.md")


@pytest.mark.parametrize("path", PAGES)
def test_every_example_of_a_page_runs(path, tmp_path, own_server):
    page = Page(ROOT / "docs" / path, tmp_path, own_server)
    worker = page.worker("proj").start()
    try:
        for code in page.scripts:
            page.run_script(code)
        if page.commands:
            page.run_commands([command for command, _ in page.commands])
        if (tmp_path / "bar.py").exists():
            assert page.run(sys.executable, "bar.py").endswith("SUCCESS\n")
        if (tmp_path / "test_proj.py").exists():
            page.run(sys.executable, "-m", "pytest", "-q", *plugin_options(), "test_proj.py")
    finally:
        worker.stop()


@pytest.mark.parametrize("path", BY_HAND)
def test_every_example_without_celery_runs(path, tmp_path, own_server):
    page = Page(ROOT / "docs" / path, tmp_path, own_server)

    assert page.scripts
    for code in page.scripts:
        page.run_script(code)


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")))
def test_every_link_of_a_page_leads_somewhere(path):
    text = (ROOT / path).read_text()

    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", text)

    assert [target for target in targets if not ((ROOT / path).parent / target).exists()] == []


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")))
def test_every_python_block_of_a_page_compiles(path):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)

    for code in blocks:
        compile(code, path, "exec")
