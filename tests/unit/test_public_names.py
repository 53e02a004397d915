"""Every public name, beside a committed list: what is on it stays until a release has announced its end.

``MEMSYNC_GOLDEN=write`` writes ``tests/golden/public_names.txt`` anew.
"""
from __future__ import annotations

import inspect
import json
import os
from dataclasses import fields
from typing import is_typeddict

import click

import celery_memsync
from celery_memsync import exceptions
from celery_memsync.cli import memsync as group
from celery_memsync.contrib import pytest_plugin, testing
from celery_memsync.events import EVENTS
from celery_memsync.metrics import exporter_names
from celery_memsync.metrics.families import families_of, own_families
from celery_memsync.metrics.reading import Reading
from celery_memsync.settings import TASK_SETTINGS, Settings
from celery_memsync.store.statistics import Totals
from tests.support.paths import ROOT, names_in, read_setup

GOLDEN = ROOT / "tests" / "golden" / "public_names.txt"
SCHEMA = json.loads((ROOT / "docs" / "reference" / "commands.schema.json").read_text())

#: Attributes of the managers for the other modules of this package, which are not public.
INTERNAL = {
    "backend_source", "check", "enabled", "events", "is_switched_off", "runtime", "spawned_settings", "strict",
    "sync_task_run", "time_to_leave"}


def parameters_of(function):
    """Return the names of the parameters of a function, those by keyword only marked."""
    kinds = {inspect.Parameter.KEYWORD_ONLY: "{}=", inspect.Parameter.VAR_POSITIONAL: "*{}",
             inspect.Parameter.VAR_KEYWORD: "**{}"}
    return ", ".join(kinds.get(one.kind, "{}").format(one.name)
                     for one in inspect.signature(function).parameters.values() if one.name != "self")


def members_of(cls):
    """Yield the public attributes of a class that no other public class has, and how it is made, if it is no exception.

    Of the type of a dict these are its keys, marked if they may be missing.
    """
    if is_typeddict(cls):
        yield from (f'{cls.__name__}["{key}"]' + "?" * (key in cls.__optional_keys__) for key in cls.__annotations__)
        return
    if not issubclass(cls, BaseException):
        yield f"{cls.__name__}({parameters_of(cls)})"
    names = {*dir(cls), *getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "__annotations__", ())}
    names = {name for name in names if not name.startswith("_")}
    bases = [base for base in cls.__mro__[1:] if base is BaseException or base.__name__ in celery_memsync.__all__]
    hidden = INTERNAL if issubclass(cls, celery_memsync.MemorySyncManager) else set()
    for name in names - {name for base in bases for name in dir(base)} - hidden:
        member = inspect.getattr_static(cls, name, None)
        member = getattr(member, "__func__", member)
        yield f"{cls.__name__}.{name}" + (f"({parameters_of(member)})" if inspect.isfunction(member) else "")


def options_of(command):
    """Yield arguments and options of a command."""
    for one in command.params:
        yield " ".join((*one.opts, *one.secondary_opts)) if isinstance(one, click.Option) else one.name.upper()


def keys_of(schema, path="", around=()):
    """Yield the paths of all names that JSON of a schema may have; of what contains itself once."""
    own = schema.get("$ref", "").rpartition("/")[2]
    if own in around:
        return
    schema, around = {**SCHEMA["$defs"].get(own, {}), **schema}, (*around, *filter(None, [own]))
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from keys_of(part, f"{path}.{name}", around)
    for part in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, dict):
            yield from keys_of(part, f"{path}[]", around)
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from keys_of(part, path, around)


def metric_names():
    """Yield the metrics that a scrape shows, and their labels."""
    nothing = Reading(0.0, 0.0, {}, [], [], Totals(0, 0, [], 0, {}), {})
    for family in (*families_of(nothing, per_worker=True), *own_families(True, 0.0), *exporter_names.families_of(nothing)):
        yield f"{family.name} {family.kind} ({', '.join(family.labels)})"


def public_names():
    """Yield every public name, by kind."""
    classes = [getattr(celery_memsync, name) for name in sorted(celery_memsync.__all__)]
    yield "names of celery_memsync", (name for name in celery_memsync.__all__)
    yield "attributes of its classes", (
        line for cls in classes for line in members_of(cls))
    yield "exceptions", (f"{name} < {', '.join(one.__name__ for one in getattr(exceptions, name).__bases__)}"
                         for name in exceptions.__all__)
    yield "settings", (f"memsync_{one.name}" for one in fields(Settings))
    yield "attributes of tasks", (f"memsync_{name}" for name in TASK_SETTINGS)
    yield "events", (f"{name}({', '.join(details)})" for name, details in EVENTS.items())
    yield "commands", (f"memsync {name} {' '.join(f'[{one}]' for one in options_of(command))}".rstrip()
                       for name, command in group.commands.items())
    yield "options of all commands", options_of(group)
    yield "names in JSON", (f"{name}{key}" for name, schema in SCHEMA["properties"].items() for key in keys_of(schema, ":"))
    yield "metrics", metric_names()
    yield "fixtures of pytest", fixture_names()
    yield "extras", read_setup("options.extras_require")
    yield "programs", (f"{kind}: {name}" for kind, lines in read_setup("options.entry_points").items()
                       for name in names_in(lines))


def fixture_names():
    """Yield the fixtures of the pytest plugin, with their arguments where they are functions."""
    functions = {"wait_for": testing.wait_for, "assert_progress": testing.assert_progress}
    for name, value in vars(pytest_plugin).items():
        is_fixture = hasattr(value, "_pytestfixturefunction") or "Fixture" in type(value).__name__  # as of pytest 8.4
        if is_fixture and not name.startswith("_"):
            yield name + (f"({parameters_of(functions[name])})" if name in functions else "")


def test_public_names_are_those_of_the_committed_list():
    found = "".join(f"== {kind}\n" + "".join(f"{name}\n" for name in sorted(set(names))) + "\n"
                    for kind, names in public_names())

    if os.environ.get("MEMSYNC_GOLDEN") == "write":
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


def test_list_of_public_names_has_every_kind():
    listed = GOLDEN.read_text().splitlines()

    assert {"MemSync", "memsync_backend", "memsync_recover", "LockLost < LockError", "embedded"} <= set(listed)
    assert any(line.startswith("memsync status [-j --json]") for line in listed)
    assert any(line.startswith("status:.") for line in listed)
    assert any(line.startswith("task-lost(") for line in listed)
