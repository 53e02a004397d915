"""The documentation site builds without a warning; left out where Sphinx is not installed."""
from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.paths import ROOT

#: What builds the site, which takes a second to import.
MISSING = [name for name in ("sphinx", "furo", "myst_parser") if find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; warnings, broken links and unknown names are errors."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(folder)],
        cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_site_shows_arguments_and_errors_of_public_methods(site):
    page = re.sub(r"<[^>]+>", "", (site / "reference" / "python.html").read_text())

    for name in ("sync_task_progress", "acquire_task_lock", "locked", "read_entry"):
        assert re.search(rf"\b{name}\(", page), name
    assert page.count("Parameters:") > 20
    assert page.count("Raises:") > 8
    assert "they raise StoreError while Redis is away" in page


@pytest.mark.slow
def test_site_links_to_files_of_the_repository_that_exist(site):
    pages = "".join(page.read_text() for page in site.rglob("*.html"))

    targets = set(re.findall(r'href="https://github\.com/celery-memsync/celery-memsync/blob/main/([^"#]+)', pages))

    assert targets >= {"SECURITY.md", "CHANGELOG.md"}
    assert [target for target in targets if not (ROOT / target).exists()] == []
