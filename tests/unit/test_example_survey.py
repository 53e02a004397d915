"""What the example project measures of a module."""
from __future__ import annotations

import importlib.util

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def survey():
    """The module of the example that measures."""
    spec = importlib.util.spec_from_file_location("survey", ROOT / "example_project" / "proj" / "survey.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_can_not_be_read_is_counted(survey, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "STDLIB", tmp_path)
    (tmp_path / "fine.py").write_text("import os\n")
    (tmp_path / "old.py").write_text("print 'no parentheses'\n")
    (tmp_path / "strange.py").write_bytes(b"# coding: nothing\n")
    (tmp_path / "zero.py").write_bytes(b"\0")

    result = survey.summary([survey.measure(module) for module in [*survey.modules(), "gone.py"]])

    assert (result["totals"]["modules"], result["totals"]["unreadable"]) == (5, 4)
    assert result["wanted"] == [["os", 1]]
    assert "`old.py`: SyntaxError" in survey.as_markdown(result)


@pytest.mark.parametrize("module, name, level, expected", [
    ("os.py", "sys", 0, "sys"),
    ("json/decoder.py", "scanner", 1, "json.scanner"),
    ("json/__init__.py", "decoder", 1, "json.decoder"),
    ("email/mime/text.py", "charset", 2, "email.charset"),
    ("email/mime/text.py", "", 1, "email.mime"),
])
def test_relative_imports_get_their_full_name(survey, module, name, level, expected):
    assert survey.absolute(module, name, level) == expected
