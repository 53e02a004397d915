"""What the bearer of a token sees of a task."""
from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_memsync.contrib.answers import MAX_TEXT, Answer, answer_of, document_of
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key

FIELDS = ["status", "ended", "percent", "current", "total", "message", "phase", "eta"]

#: Any JSON, and what JSON does not have.
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3) |
    st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


def answer(memsync, task_id="t1", **options):
    return answer_of(memsync, memsync.token(task_id), **options)


def test_running_task_is_shown(app):
    app.sync_task_run("t1", TaskRun("STARTED", name="proj.add", args="(1, 'secret')", worker="w1"), run_key(0, 1))
    app.sync_task_progress("t1", None, current=2, total=8, message="adding")

    shown = answer(app)

    assert shown.status == 200
    assert shown.content == {
        "status": "STARTED", "ended": False, "percent": 25.0, "current": 2, "total": 8, "message": "adding",
        "phase": None, "eta": shown.content["eta"]}


@pytest.mark.parametrize("status, ended", [
    ("SUCCESS", True), ("FAILURE", True), ("REVOKED", True), ("SKIPPED", True), ("CANCELLED", True),
    ("LOST", False), ("RETRY", False), ("STARTED", False), ("SHIPPING", False)])
def test_final_statuses_have_ended(app, status, ended):
    app.sync_task_state("t1", {"status": status})

    assert answer(app).content["ended"] is ended


def test_unknown_task_is_pending(app):
    shown = answer(app, "never-sent")

    assert (shown.status, shown.content["status"], shown.content["ended"]) == (200, "PENDING", False)
    assert {shown.content[name] for name in FIELDS[2:]} == {None}


def test_exception_is_shown_only_if_that_is_asked_for(app):
    failed = TaskRun("FAILURE", name="proj.add", exception={"type": "OSError", "message": "no such user: bob"})
    app.sync_task_run("t1", failed, run_key(0, 1))

    assert list(answer(app).content) == FIELDS
    assert answer(app, exceptions=True).content["exception"] == {"type": "OSError", "message": "no such user: bob"}


def test_token_is_refused_without_a_reason_for_strangers(app, make_app):
    expired, foreign = app.token("t1", max_age=1e-6), make_app(namespace="other").token("t1")

    assert answer_of(app, None)[:2] == answer_of(app, "")[:2] == (401, {"error": "the token is missing"})
    assert answer_of(app, foreign)[:2] == answer_of(app, "x")[:2] == (403, {"error": "the token is not valid"})
    assert answer_of(app, expired)[:2] == (403, {"error": "the token has expired; a new one is needed"})


def test_answer_while_redis_is_away_is_503_and_names_no_address(make_app):
    away = make_app("redis://:hunter2@127.0.0.1:1/0", timeout=0.2)

    shown = answer(away)

    assert shown.status == 503 and int(shown.headers["Retry-After"]) > 0
    assert shown.content == {"error": "the progress is unknown at the moment"}


@pytest.mark.parametrize("make", [lambda: Answer(200, {}), lambda: Answer.later({})])
def test_answer_is_kept_by_no_cache(make):
    assert make().headers["Cache-Control"] == "no-store"


@given(state=values, progress=values)
def test_document_of_any_json_has_its_fields_and_is_json(state, progress):
    document = document_of(state, progress, exceptions=True)

    assert list(document) == [*FIELDS, "exception"]
    text = json.dumps(document, allow_nan=False)
    assert "\n" not in text and len(text) < 20 * MAX_TEXT


@given(names=st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("status", "progress", "current", "total", "message", "phase", "started_at", "updated_at", "phase_started_at",
     "stalled_at", "eta", "phase_number", "fields", "exception", "type"), values)))
@example(names={"status": "STARTED", "progress": 5e-324, "started_at": 0.0, "updated_at": 1e9})  # its ETA is infinite
def test_document_of_known_fields_of_wrong_types_has_texts_and_numbers_only(names):
    document = document_of({**names, "exception": names}, names, exceptions=True)

    texts = [document["status"], document["message"], document["phase"], *document["exception"].values()]
    numbers = [document[name] for name in ("percent", "current", "total", "eta")]
    assert all(text is None or isinstance(text, str) and len(text) <= MAX_TEXT + 3 for text in texts)
    assert all(number is None or type(number) in (int, float) for number in numbers)
    json.dumps(document, allow_nan=False)


def test_other_fields_of_a_task_are_not_shown(app):
    app.sync_task_state("t1", {"status": "STARTED", "args": "secret", "kwargs": "secret", "note": "secret"})
    app.sync_agent_coordination("t1", "a1", "secret")

    assert "secret" not in json.dumps(answer(app, exceptions=True).content)
