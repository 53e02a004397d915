"""Messages that are kept in Redis, and how the tasks of lost workers are requeued."""
from __future__ import annotations

import gc

import pytest
from kombu import Exchange, Queue

from celery_memsync.integration.requests import HEADER
from celery_memsync.models.order import delivered_key, is_earlier_step
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key
from tests.support.sender import LOSS
from tests.support.waiting import eventually


@pytest.mark.parametrize("conf, options, recoveries, kept", [
    ({}, {}, 0, True),
    ({}, {}, 1, False),
    ({}, {"acks_late": True}, 0, False),
    ({}, {"memsync_recover": "mark"}, 0, False),
    ({"memsync_recover": "mark"}, {}, 0, False),
    ({"memsync_recover": "mark"}, {"memsync_recover": "requeue"}, 0, True),
    ({"memsync_max_recoveries": 3}, {}, 2, True),
    ({"memsync_max_recoveries": 3}, {}, 3, False),
    ({"memsync_max_recoveries": 3}, {"memsync_max_recoveries": 0}, 0, False),
    ({"memsync_max_recoveries": 0}, {"memsync_max_recoveries": 1}, 0, True),
])
def test_message_is_kept_if_the_task_or_the_app_opts_in(
    make_sender, conf, options, recoveries, kept,
):
    sender = make_sender(**conf)
    task = sender.task(**options)
    task.delay(1)

    run = sender.receive(sender.take(task), recoveries=recoveries)
    sender.messages.sync()

    assert list(sender.kept()) == [run] * kept


@pytest.mark.parametrize("how", [
    {}, {"compression": "gzip"}, {"serializer": "pickle"}, {"priority": 6}, {"expires": 600},
    {"reply_to": "me"}, {"headers": {"mark": [1, None, "ö"]}}, {"time_limit": 7, "soft_time_limit": 5},
])
def test_message_is_requeued_unchanged(make_sender, how):
    sender = make_sender(accept_content=["json", "pickle"])
    task = sender.task()
    task.apply_async(({"a": ["ö", 2 ** 70]},), {"b": None}, link=task.s(3), **how)
    first = sender.take(task)
    sender.receive(first)
    eventually(sender.kept)

    (done,) = sender.lose(first.id)
    again = sender.take(task)

    assert done.worker_id == "w"
    assert again._message.payload == first._message.payload
    assert (again.id, again.reply_to, again.correlation_id) == (first.id, first.reply_to, first.correlation_id)
    assert again.delivery_info == {**first.delivery_info, "exchange": "", "routing_key": "q"}
    same = {name: value for name, value in first._message.headers.items() if name not in ("memsync", "compression")}
    assert {name: again._message.headers.get(name) for name in same} == same
    assert again._message.headers["memsync"]["recoveries"] == 1
    assert sender.take(task) is None
    assert sender.kept() == {}
    assert sender.memsync.get_task_state(first.id)["status"] == "PENDING"
    assert [run["status"] for run in sender.memsync.get_task(first.id)["runs"]] == ["LOST", "PENDING"]


@pytest.mark.parametrize("skew", [0.0, 90.0, -90.0])
def test_requeued_run_follows_the_lost_one_despite_clock_skew(make_sender, monkeypatch, skew):
    sender = make_sender()
    task, clock = sender.task(), sender.memsync.runtime.store.clock
    first = sender.run_one(task)
    lost = sender.run_key(first.id)
    monkeypatch.setattr(clock, "learn", lambda *answer: None)
    monkeypatch.setattr(clock, "offset", clock.offset + skew)

    sender.lose(first.id)
    published = sender.take(task).request_dict[HEADER]["key"]
    for status, key in (("STARTED", delivered_key(published, "run-2")), ("FAILURE", lost), ("PENDING", published)):
        sender.memsync.sync_task_run(first.id, TaskRun(status), key)
        sender.memsync.force_sync()

    assert is_earlier_step(lost, published)
    assert sender.memsync.get_task_state(first.id)["status"] == "STARTED"
    assert [run["status"] for run in sender.memsync.get_task(first.id)["runs"]] == ["FAILURE", "STARTED"]


def test_message_of_a_topic_goes_back_to_its_queue_only(make_sender):
    letters = Exchange("letters", type="topic")
    queues = [Queue("news", letters, routing_key="news.#"), Queue("today", letters, routing_key="*.today"), Queue("q")]
    sender = make_sender(task_queues=queues)
    sender.app.amqp.queues.select("news")
    task = sender.task()
    task.apply_async((1,), queue="news", routing_key="news.today")
    first = sender.take(task, "news")
    sender.receive(first)
    eventually(sender.kept)

    sender.lose(first.id)

    assert sender.take(task, "news").id == first.id
    assert sender.take(task, "today") is None


def test_broadcast_is_not_kept(make_sender, caplog):
    sender = make_sender(task_queues=[Queue("q"), Queue("mine", Exchange("all", type="fanout"))])
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    request._message.delivery_info["exchange"] = "all"

    sender.receive(request)
    sender.messages.sync()

    assert sender.kept() == {}
    assert "is a broadcast" in caplog.text


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "RETRY", "STARTED"])
def test_task_is_requeued_only_if_it_is_lost(make_sender, status):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    run = sender.receive(request)
    sender.memsync.sync_task_run(request.id, TaskRun(status, run=run), sender.run_key(request.id))
    eventually(sender.kept)

    sender.lose()

    assert sender.take(task) is None


def test_unreadable_messages_are_deleted_and_the_others_requeued(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    request = sender.run_one(task)
    for number, body in enumerate((b"", b"[]", b"{}", b'{"id": "x"}', b"\xff", b"0" * 64, b"0" * 2_000_000)):
        redis.hset(sender.memsync.runtime.keys.messages(sender.memsync.runtime.store.token), f"foreign-{number}", body)

    done = sender.lose(request.id)

    assert len(done) == 1
    assert sender.take(task).id == request.id
    assert sender.kept() == {}


def test_nothing_is_requeued_for_a_worker_that_is_back(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    request = sender.run_one(task)
    lost_messages = sender.requeuer._lost_messages

    def come_back(loss):
        for lost in lost_messages(loss):
            redis.zrem(sender.memsync.runtime.keys.lost, LOSS.name)
            yield lost

    sender.requeuer._lost_messages = come_back
    done = sender.lose(request.id)

    assert done == []
    assert sender.take(task) is None


def test_task_with_a_stored_result_is_not_requeued(make_sender, redis_url):
    sender = make_sender(result_backend=redis_url)
    task = sender.task()
    request = sender.run_one(task)
    sender.app.backend.store_result(request.id, 5, "SUCCESS")

    sender.lose(request.id)

    assert sender.take(task) is None
    assert sender.memsync.get_task_state(request.id)["status"] == "SUCCESS"
    assert sender.kept() == {}


def test_task_is_requeued_with_a_warning_without_a_result_backend(make_sender, caplog):
    sender = make_sender(
        result_backend="redis://:secret@localhost:1/0", result_backend_always_retry=False,
        result_backend_transport_options={"retry_policy": {"max_retries": 0}}, redis_socket_connect_timeout=0.5)
    task = sender.task()
    request = sender.run_one(task, ignore_result=True)

    sender.lose(request.id)

    assert sender.take(task).id == request.id
    (warning,) = [record.getMessage() for record in caplog.records if "result backend" in record.getMessage()]
    assert f"proj.add[{request.id}]" in warning and "ConnectionError" in warning
    assert "secret" not in warning


def test_task_without_a_result_backend_is_requeued_without_a_warning(make_sender, caplog):
    sender = make_sender()
    task = sender.task()
    request = sender.run_one(task)

    sender.lose(request.id)

    assert sender.take(task).id == request.id
    assert "result backend" not in caplog.text


def test_message_too_large_is_not_kept_and_logged_once(make_sender, caplog):
    sender = make_sender(memsync_max_value_size=5000)
    task = sender.task()
    for _ in range(2):
        task.delay("secret" * 2000)

    for number in range(2):
        sender.receive(sender.take(task), number)
    sender.messages.sync()

    assert sender.kept() == {}
    warnings = [record.getMessage() for record in caplog.records if "Could not keep" in record.getMessage()]
    assert len(warnings) == 1
    assert "secret" not in warnings[0]


def test_messages_are_stored_again_after_redis_lost_them(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    run = sender.receive(sender.take(task))
    eventually(sender.kept)
    redis.delete(sender.memsync.runtime.keys.messages(sender.memsync.runtime.store.token))

    sender.messages.refresh()

    eventually(lambda: list(sender.kept()) == [run])


def test_message_is_dropped_when_its_run_has_ended(make_sender):
    sender = make_sender()
    task = sender.task()
    for _ in range(3):
        task.delay(1)
    runs = [sender.receive(sender.take(task), number) for number in range(3)]
    eventually(lambda: len(sender.kept()) == 3)

    sender.messages.end(runs[0])
    del sender.taken[1]
    gc.collect()
    sender.messages.end("another")
    sender.messages.sync()

    assert list(sender.kept()) == [runs[2]]
    assert set(sender.messages.by_run) == {runs[2]}
    sender.messages.close(timeout=1)
    assert sender.kept() == {}


def test_forked_child_starts_without_messages(make_sender):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    sender.receive(sender.take(task))

    with sender.messages._syncing:
        sender.messages.forget()

    assert sender.messages.by_run == {}
    sender.messages.sync()


def test_messages_are_stored_after_redis_was_away(make_sender, own_server):
    sender = make_sender(memsync_backend=own_server.url)
    task = sender.task()
    task.delay(1)
    task.delay(2)
    first = sender.receive(sender.take(task), 1)
    eventually(sender.kept)
    own_server.pause()

    sender.messages.add(sender.take(task), "later-run", run_key(0, 1.0), 0, sender.memsync.settings)
    sender.messages.end(first)
    own_server.resume()

    eventually(lambda: list(sender.kept()) == ["later-run"])
