"""The id of a trace comes with a message, where anybody may write anything."""
from __future__ import annotations

import json

import pytest

from celery_memsync.integration.requests import trace_id_of
from celery_memsync.models.task import TaskRun

ARABIC = "\u0661"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("flags", ["00", "01", "ff"])
def test_a_trace_id_is_taken_from_its_header(flags):
    assert trace_id_of(f"00-{TRACE}-{SPAN}-{flags}") == TRACE


@pytest.mark.parametrize("traceparent", [
    None, "", 5, ["00"], TRACE, f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-01-more", f"01-{TRACE}-{SPAN}-01",
    f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE[:-1]}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n",
    f"00-{ARABIC * 32}-{SPAN}-01", "x" * 1_000_000, b"00", {"a": 1},
])
def test_a_header_that_is_not_valid_is_ignored(traceparent):
    assert trace_id_of(traceparent) is None


@pytest.mark.parametrize("stored, read", [(TRACE, TRACE), (5, None), (["x"], None)])
def test_a_trace_id_is_kept_in_the_record_of_a_run(stored, read):
    run = TaskRun("SUCCESS", trace_id=TRACE)
    row = [*json.loads(run.encode("t1"))[:-1], stored]

    assert TaskRun.from_row(row, "t1").trace_id == read
