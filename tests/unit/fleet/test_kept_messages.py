"""Kept messages: what is stored of them, and from which queue they came."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Exchange, Queue

from celery_memsync import encoding
from celery_memsync.fleet.kept_messages import KeptMessage
from celery_memsync.fleet.queue_names import queue_name_of

MESSAGE = KeptMessage(
    "t1", "token123-1", "chain.0.token123-1", 0, 1.5, "q", "[[], {}, {}]", {"id": "t1", "task": "proj.add"},
    "application/json", "utf-8", None, 2, {"correlation_id": "t1"})

JUNK = (None, True, -1, 10 ** 400, 1.5, "", "text/..", "a\nb", [], [[]], {}, {"id": "t1"})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=20)

QUEUES = [
    Queue("default", Exchange("default"), routing_key="default"),
    Queue("mail", Exchange("work"), routing_key="mail.key"),
    Queue("news", Exchange("letters", type="topic"), routing_key="news.#"),
    Queue("today", Exchange("letters", type="topic"), routing_key="*.today"),
    Queue("all", Exchange("broadcast", type="fanout")),
]


def test_message_is_equal_after_encode_and_decode():
    assert KeptMessage.decode(MESSAGE.encode(10_000)) == MESSAGE


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
@pytest.mark.parametrize("field", KeptMessage._fields)
def test_message_with_junk_in_a_field_is_none_or_sound(field, junk):
    read = KeptMessage.decode(encoding.dumps(list(MESSAGE._replace(**{field: junk}))))

    assert read is None or read.headers["id"] == read.task_id and isinstance(read.queue, str)


@given(junk=json_values)
def test_decode_of_any_json_raises_nothing(junk):
    KeptMessage.decode(encoding.dumps(junk))


@pytest.mark.parametrize("exchange, routing_key, expected", [
    ("", "mail", "mail"),
    ("", "unknown", None),
    ("", None, None),
    ("default", "default", "default"),
    ("work", "mail.key", "mail"),
    ("work", "mail", None),
    ("letters", "news.tomorrow", "news"),
    ("letters", "mail.today", "today"),
    ("letters", "news.today", None),
    ("letters", 5, None),
    ("broadcast", "", None),
    ("another", "default", None),
    (["default"], {"default": 1}, None),
])
def test_queue_of_a_message_is_found_by_its_binding(exchange, routing_key, expected):
    queues = {queue.name: queue for queue in QUEUES}

    assert queue_name_of(queues, {"exchange": exchange, "routing_key": routing_key}) == expected


@pytest.mark.parametrize("tag, expected", [("1", "news"), ("2", None), ("3", None), ("4", None)])
def test_queue_of_a_message_is_found_by_its_consumer_tag(tag, expected):
    queues = {queue.name: queue for queue in QUEUES}
    consumer = SimpleNamespace(task_consumer=SimpleNamespace(_active_tags={"news": "1", "all": "2", "foreign": "3"}))
    delivery = {"exchange": "celery_delayed_27", "routing_key": "0.0.1.news.today", "consumer_tag": tag}

    assert queue_name_of(queues, delivery, consumer) == expected
