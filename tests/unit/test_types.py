"""The types of dicts have the keys of what they are made of, and explain each once."""
from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from typing import get_args, get_type_hints, is_typeddict

import pytest

import celery_memsync
from celery_memsync import types
from celery_memsync.integration.revokes import REQUESTED_AT
from celery_memsync.models.lock import LockRecord
from celery_memsync.models.progress import PROGRESS_FIELDS, encode_progress, progress_from
from celery_memsync.models.task import RUN_FIELDS, TaskRun
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.models.workflow import Group, Workflow, WorkflowNode
from tests.support.paths import ROOT, tree_of
from tests.support.typed_dicts import keys_of, mistakes, schema_mistakes

SCHEMA = json.loads((ROOT / "docs" / "reference" / "commands.schema.json").read_text())

GOLDEN = ROOT / "tests" / "golden" / "public_names.txt"

TYPES = {name: one for name, one in vars(types).items() if is_typeddict(one)}

#: What is a record as a dict, and explained there.
RECORDS = {"LockDict": LockRecord, "WorkerDict": WorkerRecord, "GroupDict": Group, "WorkflowNodeDict": WorkflowNode}


def explained(docstring):
    """Return the keys that a docstring explains."""
    return re.findall(r"^    (\w+):", (docstring or "").partition("Attributes:\n")[2], re.M)


def resolved(schema):
    """Return a schema with what it refers to in the place of each reference."""
    if isinstance(schema, list):
        return [resolved(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    return {name: resolved(part) for name, part in schema.items()}


# -- tasks

def test_state_has_the_fields_of_a_run_with_their_types():
    hints = keys_of(types.TaskState)
    of_run = {name: {*get_args(hint)} - {type(None)} or {hint} for name, hint in get_type_hints(TaskRun).items()}

    assert [*of_run] == [*RUN_FIELDS]
    assert [*hints] == [*RUN_FIELDS, REQUESTED_AT]
    assert {name: {hint} for name, hint in hints.items() if name in of_run} == of_run
    assert types.TaskState.__required_keys__ == frozenset()


@pytest.mark.parametrize("row", [
    [None] * len(PROGRESS_FIELDS), {}, {"current": 3},
    [50.0, 1, 2, "text", None, 1.0, 2.0, "r1", None, "read", 2, 1.5, 3.0]])
def test_progress_has_the_fields_that_are_stored_and_an_eta(row):
    stored = json.loads(encode_progress(row)) if isinstance(row, list) else row

    progress = progress_from(stored)

    assert progress.keys() == types.RunProgress.__required_keys__ == {*PROGRESS_FIELDS, "eta"} - {"fields"}
    assert mistakes(progress, types.RunProgress) == []


def test_a_mistake_is_found_where_there_is_one():
    progress = progress_from([50.0])

    assert mistakes({**progress, "message": 3}, types.TaskProgress) == [".message is 3, and not str"]
    assert mistakes({"type": "KeyError"}, types.ExceptionRecord) == [".message is missing"]
    assert mistakes({"pending": ["a", None], "processing": []}, types.QueueLists) == [
        ".pending[1] is None, and not str"]
    assert mistakes(None, types.QueueLists) == [" is None"]


# -- what type checkers see

def test_every_public_method_is_called_for_type_checkers():
    calls = "".join(path.read_text() for path in (ROOT / "typing_tests").glob("*.py"))
    public = re.findall(r"^(?:Lock|MemSync|MemorySyncManager)\.(\w+)", GOLDEN.read_text(), re.M)

    assert [name for name in public if not re.search(rf"\b[a-z]+\.{name}\b", calls)] == []
    assert len(public) > 50


# -- records

@pytest.mark.parametrize("name", RECORDS)
def test_a_record_as_a_dict_has_its_fields(name):
    assert [*keys_of(TYPES[name])] == [one.name for one in fields(RECORDS[name])]


@pytest.mark.parametrize("name, record", [
    ("LockDict", LockRecord("a", 1, "w1", None, 1.0, 2.0)),
    ("WorkerDict", WorkerRecord("w1")),
    ("WorkerDict", WorkerRecord(
        "w1", capacity={"total": 2, "active": 1, "reserved": 0, "free": 1}, queues=("a",), load=(0.5,), cpu=1.0,
        running=({"id": "t1", "name": "a", "started_at": None},), depths={"a": 3}, writer={"pending": 1})),
    ("GroupDict", Group("g1", 2, 1, 1, 0, 0, 50.0)),
    ("WorkflowDict", Workflow("g1", WorkflowNode(
        "group", "g1", "STARTED", 50.0, group=Group("g1", 2, 1, 1, 0, 0, 50.0), children=(WorkflowNode(
            "task", "t1", "FAILURE", 100.0, "a", cause={"task_id": "t2", "status": "FAILURE", "name": None}),)), 50.0)),
])
def test_a_record_as_a_dict_is_of_its_type(name, record):
    assert mistakes(record.as_dict(), TYPES[name]) == []
    assert record.as_dict().keys() == keys_of(TYPES[name]).keys()


# -- words

def test_all_types_of_dicts_are_public():
    public = {name for name in TYPES if not name.startswith("_")}

    assert public <= set(celery_memsync.__all__)
    assert all(getattr(celery_memsync, name) is TYPES[name] for name in public)


@pytest.mark.parametrize("node", [
    pytest.param(node, id=node.name) for node in tree_of(ROOT / "celery_memsync" / "types.py").body
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_")])
def test_each_key_is_explained_once(node):
    if node.name.endswith("Dict"):  # at the record
        assert explained(ast.get_docstring(node)) == []
        return
    private = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id.startswith("_")]
    own = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]

    assert explained(ast.get_docstring(node)) == [*(key for base in private for key in keys_of(TYPES[base])), *own]


# -- JSON

@pytest.mark.parametrize("part, name", [
    ("state", "TaskState"), ("progress", "TaskProgress"), ("listed_task", "ListedTask"), ("task", "TaskRecord"),
    ("lock", "LockDict"), ("worker", "WorkerDict"), ("group", "GroupDict"), ("cause", "TaskCause")])
def test_schema_of_commands_says_the_same(part, name):
    hint = TYPES[name] | None if "null" in SCHEMA["$defs"][part]["type"] else TYPES[name]

    assert schema_mistakes(resolved(SCHEMA["$defs"][part]), hint) == []


def test_schema_of_the_queue_says_the_same():
    assert schema_mistakes(SCHEMA["properties"]["queue"], types.QueueLists) == []
