"""Conflicts in trouble: resolvers that fail, and Redis away before, while and after a conflict is settled."""
from __future__ import annotations

import time

import pytest

from celery_memsync import ConflictError, Entry, Resolution, StoreError
from celery_memsync.conflicts import MAX_ROUNDS, Resolvers
from tests.support.waiting import eventually

BIG = 2000


def both(entries):
    """Join lists, and the fields of dicts that hold lists."""
    old, new = (entry.value for entry in entries)
    if isinstance(old, list):
        return Resolution(old + new, "both")
    return Resolution({name: old.get(name, []) + new.get(name, []) for name in {**old, **new}}, "both")


def write(memsync, kind, item):
    if kind == "value":
        memsync.write("a", [item])
    elif kind == "agent":
        memsync.sync_agent_coordination("t1", "coder", [item])
    else:
        memsync.sync_task_state("t1", {"items": [item]})


KINDS = {"value": "a", "agent": "tasks/t1/agents/coder", "field": "tasks/t1/state"}


def items(memsync, kind):
    found = memsync.read(KINDS[kind], consistent=True)
    return found["items"] if kind == "field" else found


def forbid(redis, user):
    """Let Redis refuse what a user writes; it may go on reading."""
    redis.execute_command("ACL", "SETUSER", user, "-evalsha", "-eval")


def allow(redis, user):
    redis.execute_command("ACL", "SETUSER", user, "+evalsha", "+eval")


@pytest.fixture
def separate(own_server, make_memsync):
    """A Redis with users, and a manager for each of the users ``first`` and ``second``."""
    with own_server.client() as redis:
        managers = []
        for user in ("first", "second"):
            redis.execute_command("ACL", "SETUSER", user, "on", "nopass", "~*", "&*", "+@all")
            url = own_server.url.replace("//", f"//{user}:x@")
            managers.append(make_memsync(url=url, batch_interval=60.0, conflict_resolver=both))
        yield redis, *managers


# -- an outage

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [
    lambda memsync, key: memsync.read(key),
    lambda memsync, key: memsync.read(key, consistent=True),
    lambda memsync, key: memsync.read_entry(key),
    lambda memsync, key: memsync.read_many([key]),
    lambda memsync, key: memsync.get_task("t1"),
    lambda memsync, key: memsync.get_task_state("t1"),
    lambda memsync, key: memsync.get_agent_coordination("t1", "coder"),
])
def test_a_read_between_two_writes_of_an_outage_does_not_hide_a_conflict(separate, kind, read):
    redis, first, second = separate
    write(first, kind, "before")
    first.force_sync()
    forbid(redis, "first")
    write(first, kind, "mine")
    with pytest.raises(StoreError):
        first.force_sync()
    second.get_task("t1")
    second.read(KINDS[kind])
    write(second, kind, "theirs")
    second.force_sync()

    read(first, KINDS[kind])
    write(first, kind, "mine again")
    allow(redis, "first")
    first.force_sync()

    assert items(second, kind) == ["theirs", "mine again"]
    assert first.get_metrics()["conflicts"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_resolver_answered_is_not_lost_with_the_connection(separate, kind):
    redis, first, second = separate
    write(first, kind, "stored")
    first.force_sync()
    write(second, kind, "incoming")
    resolvers, second.runtime.writer.settler.resolvers = second.runtime.writer.settler.resolvers, Resolvers(
        lambda entries: forbid(redis, "second") or both(entries), "task-sentinel")

    with pytest.raises(StoreError):
        second.force_sync()
    seen_meanwhile = items(first, kind)
    allow(redis, "second")
    second.runtime.writer.settler.resolvers = resolvers
    second.force_sync()

    assert seen_meanwhile == ["stored"]
    assert items(first, kind) == ["stored", "incoming"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_third_wrote_before_the_answer_arrived_is_settled_too(separate, make_memsync, own_server, kind):
    redis, first, second = separate
    third = make_memsync(url=own_server.url, batch_interval=60.0, conflict_resolver=both)
    write(first, kind, "stored")
    first.force_sync()
    write(second, kind, "incoming")
    resolvers, second.runtime.writer.settler.resolvers = second.runtime.writer.settler.resolvers, Resolvers(
        lambda entries: forbid(redis, "second") or both(entries), "task-sentinel")

    with pytest.raises(StoreError):
        second.force_sync()
    write(third, kind, "third")
    third.force_sync()
    allow(redis, "second")
    second.runtime.writer.settler.resolvers = resolvers
    second.force_sync()

    assert set(items(first, kind)) == {"stored", "third", "incoming"}


def test_an_answer_that_arrives_after_all_is_not_settled_again(own_server, make_memsync):
    options = {"socket_timeout": 0.5}
    first, second = [make_memsync(url=own_server.url, batch_interval=60.0, backend_options=options) for _ in range(2)]
    second.runtime.writer.settler.resolvers = Resolvers(lambda entries: own_server.pause() or both(entries), "task-sentinel")
    write(first, "value", "stored")
    first.force_sync()
    write(second, "value", "incoming")

    with pytest.raises(StoreError):
        second.force_sync()
    own_server.resume()
    second.runtime.writer.settler.resolvers = Resolvers(both, "task-sentinel")
    second.force_sync()

    assert items(first, "value") == ["stored", "incoming"]


# -- which resolver, and what it may answer

@pytest.mark.parametrize("pattern, keys, others", [
    ("a*", ["a", "ab", "a/b/c"], ["b", "ba"]),
    ("[^a]*", ["b", "ba"], ["a", "ab"]),
    ("[!a]", ["!", "a"], ["b"]),
    ("a\\b", ["ab"], ["a", "b"]),
    ("tasks/*/agents/*", ["tasks/t1/agents/coder"], ["tasks/t1/state"]),
    ("tasks/t?/state", ["tasks/t1/state"], ["tasks/t12/state", "tasks/t/state"]),
    ("task-sentinel/[a-c]", ["a", "b", "c"], ["d", "-"]),
])
def test_a_resolver_is_chosen_by_a_glob_as_redis_has_them(pattern, keys, others):
    resolvers = Resolvers({pattern: "max_value"}, "task-sentinel")
    entries = [Entry("-", 9, 1, 1.0, "w1", 60.0), Entry("-", 1, 2, 2.0, "w2", 60.0)]

    answers = {key: resolvers.settle(f"task-sentinel/{key}", entries).resolved for key in keys + others}

    assert answers == {**dict.fromkeys(keys, 9), **dict.fromkeys(others, 1)}


ANSWERS = [
    lambda entries: 1 / 0,
    lambda entries: "no resolution",
    lambda entries: (entries[0].value, "strategy", []),
    lambda entries: Resolution(object()),
    lambda entries: Resolution({1: "x"}),
    lambda entries: Resolution(float("nan")),
    lambda entries: Resolution({"x": "x" * BIG}),
    lambda: None,
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_failing_resolver_loses_nothing_and_is_reported(make_memsync, answer):
    memsync = make_memsync(batch_interval=60.0)
    other = make_memsync(
        batch_interval=60.0, max_value_size=BIG // 2, conflict_resolver={"a": answer, "b": "max_value"})
    resolved = []
    other.on("conflict-resolved", lambda **details: resolved.append(details))
    for key in ("a", "b"):
        memsync.write(key, "stored")
        other.write(key, "incoming")

    memsync.force_sync()
    other.force_sync()
    assert other.events.wait_idle(5)

    resolved.sort(key=lambda details: details["key"])
    assert memsync.read_many(["a", "b"], consistent=True) == {"a": "incoming", "b": "stored"}
    strategies = [details["strategy"].partition(":")[0] for details in resolved]
    assert strategies == ["failed", "max_value"]
    assert [entry.value for entry in resolved[0]["entries"]] == ["stored", "incoming"]
    assert (resolved[0]["discarded"], other.get_metrics()["conflicts"]) == (["stored"], 2)


@pytest.mark.parametrize("answer", [*ANSWERS, lambda entries: Resolution(["no fields"])])
def test_failing_resolver_of_fields_loses_no_field_and_is_reported(make_memsync, answer):
    memsync = make_memsync(batch_interval=60.0)
    other = make_memsync(batch_interval=60.0, max_value_size=BIG // 2, conflict_resolver=answer)
    resolved = []
    other.on("conflict-resolved", lambda **details: resolved.append(details))
    memsync.sync_task_state("t1", {"x": "stored", "theirs": 1})
    other.sync_task_state("t1", {"x": "incoming", "mine": 2})

    memsync.force_sync()
    other.force_sync()
    assert other.events.wait_idle(5)

    assert memsync.read("tasks/t1/state", consistent=True) == {"x": "incoming", "theirs": 1, "mine": 2}
    assert [details["strategy"].partition(":")[0] for details in resolved] == ["failed"]
    assert other.runtime.writer.pending == 0


# -- keys deleted in between

@pytest.mark.parametrize("how", ["it was emptied", "its ttl was over"])
def test_compare_and_set_is_refused_when_the_key_was_recreated(
    memsync, other, redis, how,
):
    memsync.write("a", "first life", ttl=0.3 if how == "its ttl was over" else None)
    expected = memsync.read_entry("a").version
    if how == "it was emptied":
        redis.flushall()
    eventually(lambda: not redis.keys("task-sentinel/a"))
    other.write("a", "second life", expected_version=0)

    with pytest.raises(ConflictError):
        memsync.write("a", "mine", expected_version=expected)

    assert memsync.read("a", consistent=True) == "second life"
    assert memsync.write("a", "mine", expected_version=expected).version == expected + 1


@pytest.mark.parametrize("flushed_first", ["earlier", "later"])
@pytest.mark.parametrize("later", ["value", "deletion"])
def test_later_of_a_deletion_and_a_value_wins_in_any_order_of_flushes(
    memsync, other, later, flushed_first,
):
    memsync.write("a", "old", expected_version=0)
    other.read("a")
    acts = [lambda: memsync.delete("a"), lambda: other.write("a", "new")]
    processes = [memsync, other]
    for act in acts if later == "value" else reversed(acts):
        act()
        time.sleep(0.02)

    for process in processes if (later == "value") == (flushed_first == "earlier") else reversed(processes):
        process.force_sync()

    assert memsync.read("a", consistent=True) == ("new" if later == "value" else None)
    over_nothing = later == "value" and flushed_first == "earlier"
    assert memsync.get_metrics()["conflicts"] + other.get_metrics()["conflicts"] == (0 if over_nothing else 1)


@pytest.mark.parametrize("kind", ["value", "task state"])
def test_what_lost_round_after_round_waits_on_when_redis_dies_in_the_last(own_server, make_memsync, kind):
    def change(memsync, content):
        if kind == "value":
            memsync.write("a", content)
        else:
            memsync.sync_task_state("t1", {"x": content})

    def meddle(entries):
        meddled.append(entries[0].key)
        if len(meddled) == MAX_ROUNDS:
            own_server.kill()
        else:
            change(meddler, len(meddled))
            meddler.force_sync()
        return Resolution(entries[1].value, "meddle")

    meddled = []
    meddler = make_memsync(url=own_server.url, batch_interval=60.0)
    unlucky = make_memsync(url=own_server.url, batch_interval=60.0, conflict_resolver=meddle)
    change(meddler, "x")
    meddler.force_sync()
    change(unlucky, "mine")

    with pytest.raises(StoreError):
        unlucky.force_sync()

    assert len(meddled) == MAX_ROUNDS
    assert unlucky.runtime.writer.pending == 1
    if kind == "value":
        assert unlucky.read("a") == "mine"
