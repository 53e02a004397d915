"""The style of texts that a machine can check: words, length of lines, links."""
from __future__ import annotations

import re
from pathlib import Path

from tests.support.paths import ROOT, found_in

#: What keeps to the words below: documents, code and tests.
COVERED = (
    "celery_memsync", "tests", "benchmarks", "example_project", "docs", "README.md", "CHANGELOG.md",
    "CONTRIBUTING.md", "SECURITY.md")

#: Words of a private language, also as parts of names; Celery's and Redis's words stand for them.
WORDS = re.compile(
    r"(?<![a-z])(?:tells?|telling|told|hears?|heard|whoever|somebody|nobody|mends?)(?![a-z])"
    r"|(?<!celery )\bbeats?\b", re.IGNORECASE)

#: Blocks that repeat what a program prints, whose words are those of the program.
OUTPUT = re.compile(r"^```(?:console|text)$.*?^```$", re.MULTILINE | re.DOTALL)

#: Lines that cannot be shorter: rows of tables, pictures, and links.
LONG = re.compile(r"\||.*\]\(https://|\s*\S*$")

FILES = sorted(
    path for name in COVERED for path in [ROOT / name, *(ROOT / name).rglob("*")]
    if path.suffix in (".md", ".py", ".lua") and path != Path(__file__))
PAGES = [path for path in FILES if path.suffix == ".md"]


def text_of(path):
    """Return a text without what programs print, and without names of tests and files."""
    return re.sub(r"`[^`\n]*`", "", OUTPUT.sub("", path.read_text()))


def test_files_are_found():
    assert len(PAGES) > 30


def test_text_uses_the_words_of_the_field():
    def private_words(path):
        return [line for line in text_of(path).splitlines() if WORDS.search(line)]

    assert found_in(FILES, private_words) == {}


def test_line_of_a_page_has_at_most_100_characters():
    def too_long(path):
        return [line for line in path.read_text().splitlines() if len(line) > 100 and not LONG.match(line)]

    assert found_in(PAGES, too_long) == {}


def test_page_begins_with_its_title():
    def titles(path):
        """Return its titles, unless there is one, at its beginning."""
        found = re.findall(r"^# .*", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M)
        return [] if len(found) == 1 and path.read_text().startswith("# ") else found or ["no title"]

    pages = [path for path in PAGES if path.name != "decisions.md"]  # the end of another page
    assert found_in(pages, titles) == {}


def test_readme_has_no_relative_link():
    targets = re.findall(r"\]\(([^)]*)\)", (ROOT / "README.md").read_text())

    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


def test_design_is_short_enough_to_be_read():
    assert len((ROOT / "docs" / "design.md").read_text().splitlines()) <= 250


def test_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}

    listed = {line for block in re.findall(r"^```\{toctree\}(.*?)^```$", index, re.M | re.S) for line in block.split()}

    assert pages - listed == {"index"}
