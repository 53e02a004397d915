"""SECURITY.md: each sentence of the threat model names a test, and what an attacker can do is shown here."""
from __future__ import annotations

import ast
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_memsync import LockLost
from celery_memsync.globs import glob_regex
from celery_memsync.keys import Keys
from celery_memsync.models.task import TaskRun, describe_exception
from celery_memsync.signing import SIGNATURE_SIZE
from tests.support.paths import ROOT
from tests.support.runs import run_key
from tests.support.waiting import eventually

KEYS = Keys("task-sentinel")

POLICY = (ROOT / "SECURITY.md").read_text()
MODEL = POLICY.split("## Threat model")[1].split("## What to do")[0]


def known_tests():
    """Return the names of all test functions."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


# -- the document

def test_policy_names_only_tests_that_exist():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", POLICY))

    assert named - known_tests() == set()
    assert len(named) > 30


def test_each_row_of_the_threat_model_names_a_test():
    rows = [line for line in MODEL.splitlines() if line.startswith("| ")]
    statements = [row for row in rows if not re.match(r"\| (---|the attacker|promise)", row) or "`test_" in row]

    assert [row for row in statements if not re.search(r"`test_[a-z0-9_]+`", row)] == []
    assert len(statements) > 20


# -- what an attacker with write access to the store can do

def test_store_shows_the_arguments_of_kept_messages(make_sender):
    sender = make_sender()
    task = sender.task()
    task.delay("secret-argument")

    sender.receive(sender.take(task))
    eventually(sender.kept)

    (signed,) = sender.kept().values()
    assert b"secret-argument" in signed[SIGNATURE_SIZE:]


def test_store_writer_changes_a_state(memsync, other, redis):
    memsync.sync_task_run("t1", TaskRun("STARTED", name="proj.add"), run_key(0, 1))
    memsync.force_sync()
    before = redis.get(KEYS.task("t1"))

    redis.set(KEYS.task("t1"), before.replace(b'"STARTED"', b'"LOST"'), px=60_000)

    assert other.get_task_state("t1")["status"] == "LOST"


def test_store_writer_invents_a_worker(memsync, redis):
    now = int(time.time() * 1000)

    redis.hset(KEYS.workers, "ghost/heartbeat", f"1 - active:1 0 {now} 60000 0 token123 ghost\n{{}}")

    assert memsync.get_active_workers() == ["ghost"]


def test_store_writer_has_a_change_ignored(memsync, other, redis):
    memsync.increment_metrics(x=1)
    memsync.force_sync()

    redis.hset(KEYS.done(memsync.runtime.store.token, "metrics"), "2", "2")
    memsync.increment_metrics(x=1)
    memsync.force_sync()

    assert other.get_coordination_metrics()["x"] == 1


def test_store_writer_frees_a_lock(memsync, other, redis):
    lock = memsync.lock("a", ttl=0.6)
    lock.acquire()

    redis.delete(KEYS.lock_location("a").key)

    assert other.lock("a").acquire()
    with pytest.raises(LockLost):
        eventually(lambda: lock.check())


def test_signed_message_is_replayed_once_by_each_process(make_sender, redis):
    senders = make_sender(), make_sender()
    first, task = senders[0], senders[0].task()
    senders[1].task()
    task.delay(1)
    request = first.take(task)
    run = first.receive(request)
    eventually(first.kept)
    signed, stage, key = first.kept()[run], first.stage(request.id), first.run_key(request.id)
    sent = []

    for sender in (*senders, *senders):
        sender.forge_loss(redis, request.id, run, signed, stage, key)
        sender.lose(token=first.memsync.runtime.store.token)
        sent.append(first.take(task) is not None)
        sender.memsync.force_sync()

    assert sent == [True, True, False, False]


# -- what he cannot do

def test_value_that_looks_like_code_is_only_data(memsync, redis):
    header = f"1 - - 0 {int(time.time() * 1000)} 60000 0 t.1 w\n"
    values = [
        "cos\nsystem\n(S'touch /tmp/x'\ntR.", {"py/object": "os.system"}, {"__reduce__": ["os.system", ["true"]]},
        {"__type__": "os.system", "__value__": "true"}, "__import__('os').system('true')"]

    for number, value in enumerate(values):
        redis.set(f"task-sentinel/code-{number}", header.encode() + json.dumps(value).encode())

    read = [memsync.read(f"code-{number}") for number in range(len(values))]
    assert read == [None if "__type__" in value else value for value in values]


@pytest.mark.parametrize("message", [
    b"", b"x", b"a b c d", b"\xff \xff \xff", b"HOLDER 9e99 1", b"HOLDER 5 nan", b"HOLDER -1 -1",
    b"HOLDER " + b"9" * 5000 + b" 1",
    b"HOLDER 99999999999999999999 99999999999999999999"])
def test_forged_turn_does_not_end_a_waiter(make_memsync, redis, message):
    holder, waiter = make_memsync(), make_memsync()
    lock, wanted = holder.lock("a"), waiter.lock("a", wait=10.0, thread_local=False)
    lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(wanted.acquire)
        queue = KEYS.lock_location("a").key + "/queue/"
        name, _, channel, *_ = eventually(lambda: redis.lrange(queue, 0, 0))[0].split(b" ")

        assert redis.publish(channel, message.replace(b"HOLDER", name)) == 1

        assert not waits.done() and lock.owned
        lock.release()
        assert waits.result(timeout=10)
    assert wanted.owned


def test_lock_row_with_a_foreign_channel_publishes_nothing(memsync, redis):
    lock = memsync.lock("a")
    lock.acquire()
    turns = "task-sentinel//{locks}/turns/"
    channels = ["foreign", "0:task-sentinel/tasks/t1/state", f"0:{turns[:-2]}", f"1:{turns}a"]
    with redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(*channels)
        for channel in channels:
            listener.get_message(timeout=1)
            redis.rpush(KEYS.lock_location("a").key + "/queue/", f"tok.1 30000 {channel} - w\n{{}}")

        lock.release()

        assert listener.get_message(timeout=0.3) is None


@pytest.mark.parametrize("raised", [
    KeyboardInterrupt, SystemExit, GeneratorExit, RecursionError, MemoryError, ValueError, BaseException])
def test_exception_whose_text_raises_is_described(raised):
    class Odd(Exception):
        def __str__(self):
            raise raised

    assert describe_exception(Odd("x")) == {
        "type": f"{Odd.__qualname__}", "message": "<its message can't be shown>"}


class Text(str):
    """A text whose methods end the process."""

    def _end(self, *args):
        raise SystemExit("from a text")

    __len__ = __getitem__ = __iter__ = __add__ = __str__ = __repr__ = __hash__ = __eq__ = encode = _end


class Meta(type):
    """A class whose name cannot be read."""

    def __getattribute__(cls, name):
        if name == "__qualname__":
            raise SystemExit("from a class")
        return super().__getattribute__(name)


def test_exception_whose_text_has_odd_methods_is_described():
    class Odd(Exception, metaclass=Meta):
        def __str__(self):
            return Text("hello")

    assert describe_exception(Odd()) == {"type": "Exception", "message": "hello"}


def test_pattern_of_many_stars_takes_no_exponential_time():
    regex = glob_regex("*a" * 300 + "*b")
    texts = ["a" * 2000, "a" * 2000 + "b", "ab" * 1000]

    found = [regex.fullmatch(text) is not None for text in texts]

    assert found == [False, True, True]
