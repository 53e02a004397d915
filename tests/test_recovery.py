"""Messages that are kept for a second sending, and how they are sent."""
from __future__ import annotations

import gc

import pytest
from celery import Celery
from celery.worker.request import Request
from kombu import Exchange, Queue

from celery_memsync import MemSync
from celery_memsync.records import TaskRun, run_key
from celery_memsync.store import Loss

from .helpers import eventually

LOSS = Loss(b"a 1 w", "a", "w", 0.0, b"5", float("inf"))


class Sender:
    """An app whose messages are taken from the broker by hand, as a worker does it."""

    def __init__(self, url, **conf):
        self.app = Celery("proj", broker=url, set_as_current=False)
        self.app.conf.update({
            "memsync_backend": url, "memsync_recover": "requeue", "memsync_batch_interval": 0.01, "task_default_queue": "q",
            **conf})
        self.memsync = MemSync(self.app)
        self.recovery = self.memsync.signals.recovery
        self.connection = self.app.connection_for_read()
        self.taken = []

    def task(self, **options):
        @self.app.task(name="proj.add", shared=False, **options)
        def add(*args, **kwargs):
            pass

        return add

    def take(self, task, queue="q"):
        """Return the request of the next message, None if there is none."""
        message = self.app.amqp.queues[queue].bind(self.connection.default_channel).get(accept=["json", "pickle"])
        if message is None:
            return None
        message.ack()
        self.taken.append(Request(message, app=self.app, task=task))
        return self.taken[-1]

    def receive(self, request, number=1, recoveries=0):
        """Receive a request, and tell that it runs; return the id of its run."""
        store = self.memsync.store
        run, key = f"{store.token}-{number}", run_key(0, store.clock.now())
        self.recovery.receive(request, run, key, recoveries)
        self.memsync.sync_task_run(request.id, TaskRun("STARTED", name=request.name, run=run), key)
        self.memsync.force_sync()
        return run

    def lose(self, *task_ids):
        """Let what this process has be lost, and another worker settle that."""
        store = self.memsync.store
        for task_id in task_ids:
            life = store.read_tasks([task_id])[0].slots[1]
            run = TaskRun.from_row(life.value, task_id).evolve(status="LOST")
            self.memsync.sync_task_run(task_id, run, life.header.run)
        self.memsync.force_sync()
        store.redis.zadd(store.keys.lost, {LOSS.name: float(LOSS.score)})
        return self.recovery.settle([LOSS._replace(token=store.token)])

    def kept(self):
        return self.memsync.store.read_messages(self.memsync.store.token)

    def close(self):
        self.connection.release()
        self.memsync.signals.disconnect()
        self.memsync.shutdown(timeout=0.5)
        self.app.close()


@pytest.fixture
def make_sender(redis_url):
    made = []

    def make(**conf):
        made.append(Sender(redis_url, **conf))
        return made[-1]

    yield make
    for sender in made:
        sender.close()


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
def test_what_is_kept_is_said_by_the_app_and_then_by_the_task(make_sender, conf, options, recoveries, kept):
    sender = make_sender(**conf)
    task = sender.task(**options)
    task.delay(1)

    run = sender.receive(sender.take(task), recoveries=recoveries)
    sender.recovery.sync()

    assert list(sender.kept()) == [run] * kept


@pytest.mark.parametrize("how", [
    {}, {"compression": "gzip"}, {"serializer": "pickle"}, {"priority": 6}, {"expires": 600},
    {"reply_to": "me"}, {"headers": {"mark": [1, None, "ö"]}}, {"time_limit": 7, "soft_time_limit": 5},
])
def test_a_message_is_sent_again_as_it_was(make_sender, how):
    sender = make_sender()
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
    assert again.delivery_info == first.delivery_info
    same = {name: value for name, value in first._message.headers.items() if name not in ("memsync", "compression")}
    assert {name: again._message.headers.get(name) for name in same} == same
    assert again._message.headers["memsync"]["recoveries"] == 1
    assert sender.take(task) is None
    assert sender.kept() == {}
    assert sender.memsync.get_task_state(first.id)["status"] == "PENDING"
    assert [run["status"] for run in sender.memsync.get_task(first.id)["runs"]] == ["LOST", "PENDING"]


def test_what_was_routed_by_a_topic_goes_the_same_way_again(make_sender):
    queue = Queue("news", Exchange("letters", type="topic"), routing_key="news.#")
    sender = make_sender(task_queues=[queue, Queue("q")])
    task = sender.task()
    task.apply_async((1,), queue="news", routing_key="news.today")
    first = sender.take(task, "news")
    sender.receive(first)
    eventually(sender.kept)

    sender.lose(first.id)

    assert sender.take(task, "news").delivery_info["routing_key"] == "news.today"


def test_a_broadcast_is_not_kept(make_sender):
    sender = make_sender(task_queues=[Queue("q"), Queue("mine", Exchange("all", type="fanout"))])
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    request.delivery_info["exchange"] = "all"

    sender.receive(request)
    sender.recovery.sync()

    assert sender.kept() == {}


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "RETRY", "STARTED"])
def test_only_what_is_lost_is_sent_again(make_sender, status):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    run = sender.receive(request)
    key = sender.memsync.store.read_tasks([request.id])[0].slots[1].header.run
    sender.memsync.sync_task_run(request.id, TaskRun(status, run=run), key)
    eventually(sender.kept)

    sender.lose()

    assert sender.take(task) is None


def test_what_nobody_can_read_does_not_hold_up_the_others(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    sender.receive(request)
    eventually(sender.kept)
    for number, body in enumerate((b"", b"[]", b"{}", b'{"id": "x"}', b"\xff")):
        redis.hset(sender.memsync.keys.messages(sender.memsync.store.token), f"foreign-{number}", body)

    done = sender.lose(request.id)

    assert len(done) == 1
    assert sender.take(task).id == request.id


def test_nothing_is_sent_again_for_a_worker_that_is_back(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    sender.receive(request)
    eventually(sender.kept)
    lost_runs = sender.recovery._lost

    def come_back(messages):
        for lost in lost_runs(messages):
            redis.zrem(sender.memsync.keys.lost, LOSS.name)
            yield lost

    sender.recovery._lost = come_back
    done = sender.lose(request.id)

    assert done == []
    assert sender.take(task) is None


def test_what_has_a_result_is_not_sent_again(make_sender, redis_url):
    sender = make_sender(result_backend=redis_url)
    task = sender.task()
    task.delay(1)
    request = sender.take(task)
    sender.receive(request)
    eventually(sender.kept)
    sender.app.backend.store_result(request.id, 5, "SUCCESS")

    sender.lose(request.id)

    assert sender.take(task) is None
    assert sender.memsync.get_task_state(request.id)["status"] == "SUCCESS"
    assert sender.kept() == {}


def test_a_message_that_is_too_large_is_not_kept_and_the_log_says_so_once(make_sender, caplog):
    sender = make_sender(memsync_max_value_size=5000)
    task = sender.task()
    for _ in range(2):
        task.delay("secret" * 2000)

    for number in range(2):
        sender.receive(sender.take(task), number)
    sender.recovery.sync()

    assert sender.kept() == {}
    warnings = [record.getMessage() for record in caplog.records if "can't be kept" in record.getMessage()]
    assert len(warnings) == 1
    assert "secret" not in warnings[0]


def test_what_redis_has_forgotten_is_kept_anew(make_sender, redis):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    run = sender.receive(sender.take(task))
    eventually(sender.kept)
    redis.delete(sender.memsync.keys.messages(sender.memsync.store.token))

    sender.recovery.refresh()

    eventually(lambda: list(sender.kept()) == [run])


def test_what_has_ended_or_is_gone_is_not_kept_any_more(make_sender):
    sender = make_sender()
    task = sender.task()
    for _ in range(3):
        task.delay(1)
    runs = [sender.receive(sender.take(task), number) for number in range(3)]
    eventually(lambda: len(sender.kept()) == 3)

    sender.recovery.end(runs[0])
    del sender.taken[1]
    gc.collect()
    sender.recovery.end("another")
    sender.recovery.sync()

    assert list(sender.kept()) == [runs[2]]
    assert set(sender.recovery._kept) == {runs[2]}
    sender.recovery.close(timeout=1)
    assert sender.kept() == {}


def test_a_child_has_none_of_what_its_parent_keeps(make_sender):
    sender = make_sender()
    task = sender.task()
    task.delay(1)
    sender.receive(sender.take(task))

    with sender.recovery._syncing:
        sender.recovery.forget()

    assert sender.recovery._kept == {}
    sender.recovery.sync()


def test_messages_wait_while_redis_is_away_and_nothing_is_raised(make_sender, own_server):
    sender = make_sender(memsync_backend=own_server.url)
    task = sender.task()
    task.delay(1)
    task.delay(2)
    first = sender.receive(sender.take(task), 1)
    eventually(sender.kept)
    own_server.pause()

    sender.recovery.receive(sender.take(task), "later-run", run_key(0, 1.0), 0)
    sender.recovery.end(first)
    own_server.resume()

    eventually(lambda: list(sender.kept()) == ["later-run"])
