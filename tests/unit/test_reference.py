"""What has its row in the reference."""
from __future__ import annotations

import re
from dataclasses import fields

import pytest

from celery_memsync import exceptions
from celery_memsync.events import EVENTS
from celery_memsync.settings import Settings
from tests.support.paths import ROOT


def reference(name):
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text()


@pytest.mark.parametrize("name", [f"memsync_{one.name}" for one in fields(Settings)])
def test_a_setting_has_its_row_in_the_reference(name):
    assert f"`{name}`" in reference("settings")


@pytest.mark.parametrize("name", exceptions.__all__)
def test_an_error_has_its_row_in_the_reference(name):
    assert f"`{name}`" in reference("errors")
    assert re.search(rf"^\s*\* {name}\b", exceptions.__doc__, re.M)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_an_event_has_its_row_in_the_reference(name):
    rows = [line for line in reference("events").splitlines() if f"`{name}`" in line]

    assert rows
    assert all(any(detail in row for row in rows) for detail in EVENTS[name])
