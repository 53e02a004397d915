"""An attacker who can write to the store, but has no signing key, makes no worker send anything."""
from __future__ import annotations

import json
import os
import pickle

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemSync, encoding
from celery_memsync.fleet import kept_messages, requeue
from celery_memsync.fleet.kept_messages import KeptMessage, signer_of
from celery_memsync.signing import SIGNATURE_SIZE, Signer
from tests.support.sender import KEY
from tests.support.waiting import eventually

MARK_ONLY = {"memsync_recover": "mark", "memsync_signing_key": None}


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def kept_message(sender, task):
    """Return the request of a task that runs, and its message as Redis keeps it."""
    request = sender.run_one(task)
    ((run, signed),) = sender.kept().items()
    return request, run, signed


def replace(sender, redis, run, signed):
    """Put something else in the place of a kept message."""
    redis.hset(sender.memsync.runtime.keys.messages(sender.memsync.runtime.store.token), run, signed)


def resigned(sender, signed, key=KEY, namespace="task-sentinel", age=0.0, **changes):
    """Return a message with other fields, signed anew."""
    message = KeptMessage.decode(signed[SIGNATURE_SIZE:])
    message = message._replace(**{"signed_at": message.signed_at - age, **changes})
    return Signer([key.encode()], f"requeue {namespace}").sign(encoding.dumps(list(message)))


def plain(sender, request, run, **changes):
    """Return an unsigned message, as an attacker who knows the format would write it."""
    now = sender.memsync.runtime.store.clock.now()
    headers = {"id": request.id, "task": "proj.add", "lang": "py", "root_id": request.id}
    row = KeptMessage(request.id, run, f"000{int(now * 1000):013d}", 0, now, "q", json.dumps([[], {}, {}]), headers,
                      "application/json", "utf-8", 0, 2, {"correlation_id": request.id})
    return encoding.dumps(list(row._replace(**changes)))


@pytest.mark.parametrize("conf", [{}, MARK_ONLY], ids=["requeue", "default settings"])
@pytest.mark.parametrize("front", [b"", b"0" * SIGNATURE_SIZE], ids=["unsigned", "zeros"])
def test_message_without_a_signature_is_skipped_and_deleted(make_sender, redis, tmp_path, conf, front):
    sender = make_sender(**conf, accept_content=["json", "pickle"])
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    run = sender.receive(request)
    sender.messages.sync()
    code = pickle.dumps([[Exploit(tmp_path / "ran")], {}, {}], 0).decode("ascii")
    replace(sender, redis, run, front + plain(sender, request, run))
    replace(sender, redis, run + "2", front + plain(
        sender, request, run + "2", body=code, content_type="application/x-python-serialize"))

    done = sender.lose(request.id)

    assert [loss.worker_id for loss in done] == ["w"]
    assert sender.take(task) is None
    assert not (tmp_path / "ran").exists()
    assert conf or sender.kept() == {}


@pytest.mark.parametrize("changes", [
    {"key": "another-key-0123456789"},
    {"namespace": "another"},
    {"run": "token123-1"},
    {"task_id": "another"},
    {"headers": {"id": "another", "task": "proj.add"}},
    {"headers": {"task": "proj.add"}},
    {"headers": {"id": "another"}},
    {"run_key": "chain.0.another"},
    {"run_key": "chain.0"},
    {"run_key": "latest"},
    {"recoveries": 1},
    {"recoveries": "0"},
    {"queue": "q2"},
    {"queue": None},
    {"content_type": "application/x-python-serialize"},
    {"content_type": "unknown/type"},
    {"signed_at": 0.0},
    {"age": 3700.0},
    {"age": -90_000.0},
    {"body": {"a": "dict"}},
    {"properties": {"delivery_info": {"routing_key": "q2"}}},
], ids=str)
def test_message_whose_facts_do_not_fit_is_not_sent(make_sender, redis, changes):
    sender = make_sender(task_create_missing_queues=False, task_queues={"q": {}, "mail": {}})
    task = sender.task()
    request, run, signed = kept_message(sender, task)
    replace(sender, redis, run, resigned(sender, signed, **changes))

    sender.lose(request.id)

    assert sender.take(task) is None
    assert sender.memsync.get_task_state(request.id)["status"] == "LOST"


def test_control_message_signed_the_same_way_is_sent(make_sender, redis):
    sender = make_sender(task_create_missing_queues=False, task_queues={"q": {}, "mail": {}})
    task = sender.task()
    request, run, signed = kept_message(sender, task)
    replace(sender, redis, run, resigned(sender, signed, queue="mail"))

    sender.lose(request.id)

    assert sender.take(task) is None
    assert sender.take(task, "mail").id == request.id


@pytest.mark.parametrize("where", ["field", "worker", "namespace"])
def test_signed_message_in_another_place_is_not_sent(make_sender, redis, where):
    sender, victim = make_sender(), make_sender(memsync_namespace="another" if where == "namespace" else "task-sentinel")
    task, other = sender.task(), victim.task()
    request, run, signed = kept_message(sender, task)
    foreign = f"{victim.memsync.runtime.store.token}-1"
    redis.hset(victim.memsync.runtime.keys.messages(victim.memsync.runtime.store.token),
               foreign if where == "field" else run, signed)
    victim.memsync.sync_task_run(request.id, sender.stage(request.id), sender.run_key(request.id))
    victim.memsync.force_sync()

    victim.lose(request.id)

    assert victim.take(other) is None


@pytest.mark.parametrize("conf, options", [
    ({"memsync_recover": "mark"}, {}),
    ({}, {"memsync_recover": "mark"}),
    ({}, {"acks_late": True}),
    ({}, {"memsync_max_recoveries": 0}),
    ({"memsync_max_recoveries": 0}, {}),
    ({"accept_content": ["pickle"]}, {}),
    ({"accept_content": ["unknown"]}, {}),
    ({"memsync_signing_key": "another-key-0123456789"}, {}),
    ({"memsync_signing_key": None}, {}),
], ids=str)
def test_app_without_recover_setting_requeues_nothing(make_sender, conf, options):
    keeper, consumer = make_sender(), make_sender(**conf)
    task, same = keeper.task(), consumer.task(**options)
    request, _, _ = kept_message(keeper, task)

    consumer.lose(request.id, token=keeper.memsync.runtime.store.token)

    assert consumer.take(same) is None


def test_task_that_is_not_registered_is_not_requeued(make_sender):
    keeper, consumer = make_sender(), make_sender()
    request, _, _ = kept_message(keeper, keeper.task())

    consumer.lose(request.id, token=keeper.memsync.runtime.store.token)

    assert keeper.take(keeper.task()) is None
    assert keeper.kept() == {}


def test_message_of_an_old_key_is_requeued_after_a_rotation(make_sender):
    keeper, consumer = make_sender(), make_sender(memsync_signing_key=("a-new-key-0123456789", KEY))
    request, _, _ = kept_message(keeper, keeper.task())
    task = consumer.task()

    consumer.lose(request.id, token=keeper.memsync.runtime.store.token)

    assert consumer.take(task).id == request.id


def test_stored_copy_of_a_sent_message_is_not_sent_again(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    request, run, signed = kept_message(sender, task)
    stage, key = sender.stage(request.id), sender.run_key(request.id)
    sender.lose(request.id)
    assert sender.take(task).id == request.id

    for _ in range(3):
        sender.forge_loss(redis, request.id, run, signed, stage, key)
        assert sender.memsync.get_task_state(request.id)["status"] == "LOST"
        sender.lose()

    assert sender.take(task) is None


def test_process_that_remembers_too_many_messages_sends_no_more(make_sender, monkeypatch):
    monkeypatch.setattr(requeue, "MAX_REMEMBERED", 1)
    sender = make_sender()
    task = sender.task()
    first, _, _ = kept_message(sender, task)
    sender.lose(first.id)
    assert sender.take(task).id == first.id
    task.delay(2)
    second = sender.take(task)
    sender.receive(second, 2)
    eventually(sender.kept)

    sender.lose(second.id)

    assert sender.take(task) is None
    sender.requeuer._requeued = dict.fromkeys(sender.requeuer._requeued, 0.0)
    sender.messages.refresh()
    eventually(sender.kept)
    sender.lose(second.id)
    assert sender.take(task).id == second.id


def test_a_message_from_before_the_clock_was_set_back_is_remembered_as_long_as_it_is_valid(make_sender, redis, monkeypatch):
    monkeypatch.setattr(requeue, "MAX_REMEMBERED", 1)
    sender = make_sender(memsync_default_ttl=60.0)
    task, clock = sender.task(), sender.memsync.runtime.store.clock
    request, _, _ = kept_message(sender, task)
    monkeypatch.setattr(clock, "learn", lambda *answer: None)
    monkeypatch.setattr(clock, "offset", clock.offset - 3600)

    sender.lose(request.id)

    assert sender.take(task).id == request.id
    (until,) = sender.requeuer._requeued.values()
    assert 3000 < until - clock.now() < 3700


def test_large_number_of_forged_messages_is_skipped_in_pieces(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    request, *_ = kept_message(sender, task)
    key = sender.memsync.runtime.keys.messages(sender.memsync.runtime.store.token)
    redis.hset(key, mapping={f"{sender.memsync.runtime.store.token}-{number}x": b"\xff" * 100 for number in range(5000)})

    sender.lose(request.id)

    assert sender.take(task).id == request.id
    assert sender.kept() == {}


@pytest.mark.parametrize("kind", ["set", "rpush", "sadd", "xadd"])
def test_messages_are_kept_in_place_of_a_foreign_type(make_sender, redis, kind):
    sender = make_sender()
    key = sender.memsync.runtime.keys.messages(sender.memsync.runtime.store.token)
    redis.execute_command(kind, key, *("*", "a", "b") if kind == "xadd" else ("a",))

    _, run, _ = kept_message(sender, sender.task())

    assert list(sender.kept()) == [run]


@pytest.mark.parametrize("conf, options, names", [
    ({"memsync_recover": "requeue"}, {}, "memsync_recover is 'requeue'"),
    ({}, {"memsync_recover": "requeue"}, "memsync_recover of the task proj.add is 'requeue'"),
])
def test_worker_without_a_signing_key_is_refused(make_sender, conf, options, names):
    sender = make_sender(**{**MARK_ONLY, **conf})
    sender.task(**options)

    with pytest.raises(ImproperlyConfigured) as refused:
        sender.requeuer.check()

    assert names in str(refused.value)
    assert "memsync_signing_key" in str(refused.value)


@pytest.mark.parametrize(
    "key", ["", "short", b"short", 5, ("long-enough-0123456789", "short"), (), [], {"a": 1}], ids=repr)
def test_signing_key_that_is_too_weak_is_refused_and_not_shown(make_sender, key):
    sender = make_sender(memsync_signing_key=key)

    with pytest.raises(ImproperlyConfigured, match="memsync_signing_key .* must be a secret text") as refused:
        sender.memsync.check()

    assert "short" not in str(refused.value) and "long-enough" not in str(refused.value)


def test_signing_key_is_in_no_report(make_sender):
    sender = make_sender()
    sender.memsync.check()

    conf = sender.app.conf.table(with_defaults=False, censored=True)

    assert not any(KEY in text for text in (sender.app.bugreport(), str(conf), repr(sender.memsync.settings)))


def test_message_is_not_kept_without_a_signing_key(make_sender):
    sender = make_sender(memsync_signing_key=None)
    task = sender.task()
    task.delay(1)

    sender.receive(sender.take(task))
    sender.messages.sync()

    assert signer_of(sender.memsync.settings) is None
    assert sender.kept() == {}


def test_time_in_the_signature_moves_on_with_each_refresh(make_sender):
    sender = make_sender()
    _, _, signed = kept_message(sender, sender.task())

    sender.messages.refresh()

    eventually(lambda: list(sender.kept().values()) != [signed])
    later = KeptMessage.decode(next(iter(sender.kept().values()))[SIGNATURE_SIZE:])
    assert later.signed_at > KeptMessage.decode(signed[SIGNATURE_SIZE:]).signed_at


def test_message_too_large_to_be_ours_is_not_verified(make_sender, redis):
    sender = make_sender(memsync_max_value_size=5000)
    task = sender.task()
    request, run, signed = kept_message(sender, task)
    large = resigned(sender, signed, body="x" * 10_000)
    replace(sender, redis, run, large)

    sender.lose(request.id)

    assert len(large) > kept_messages.signed_size(sender.memsync.settings)
    assert sender.take(task) is None


def test_second_memsync_of_an_app_shares_no_messages(make_sender):
    sender = make_sender()
    _, run, _ = kept_message(sender, sender.task())

    again = MemSync(sender.app)

    assert again.signals.kept is not sender.messages
    assert list(sender.kept()) == [run]
