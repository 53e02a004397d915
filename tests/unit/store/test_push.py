"""What Redis sends unasked is received whole, in order, and in time."""
from __future__ import annotations

import time

import pytest

from celery_memsync import StoreError
from celery_memsync.store import push
from tests.support.proxy import Proxy

CHANNEL = "0:some"

#: Bytes, as many as are read off a socket at once.
LARGE = 64 * 1024


class Cutter(Proxy):
    """A proxy that holds back the end of an answer in which a text is."""

    def _answer(self, data):
        return data[:-3] if b"CUT" in data else data


@pytest.fixture
def subscribe(make_memsync):
    """Makes connections that are subscribed to the channel."""
    made = []

    def make(url=None, **settings):
        made.append(make_memsync(url=url, **settings).runtime.store.listen_at(None))
        made[-1].subscribe(CHANNEL)
        return made[-1]

    yield make
    for line in made:
        line.close()


def publish(redis, texts):
    """Publish texts in one go."""
    pipeline = redis.pipeline(transaction=False)
    for text in texts:
        pipeline.publish(CHANNEL, text)
    pipeline.execute()


def received(line, number):
    """Return the data of so many messages."""
    data = []
    while len(data) < number and line.wait(5):
        data += [message[2] for message in line.receive()]
    return data


def test_messages_are_received_in_their_order_however_many_come_at_once(subscribe, redis):
    line = subscribe()
    texts = [b"%d" % number * 30 for number in range(3000)]

    publish(redis, texts)

    assert received(line, 3000) == texts


@pytest.mark.parametrize("size", [1, 3 * LARGE, 50 * LARGE])
def test_message_is_received_whole_whatever_its_size(subscribe, redis, size):
    line = subscribe()

    redis.publish(CHANNEL, b"x" * size)
    redis.publish(CHANNEL, b"\r\n$1\r\n")

    assert received(line, 2) == [b"x" * size, b"\r\n$1\r\n"]


def test_message_that_comes_byte_by_byte_is_received_whole(subscribe, redis, redis_url):
    with Proxy(redis.connection_pool.connection_kwargs["port"]) as proxy:
        line = subscribe(proxy.url)
        proxy.dribble = 0.001

        redis.publish(CHANNEL, b"first")
        redis.publish(CHANNEL, b"second")

        assert received(line, 2) == [b"first", b"second"]


def test_message_whose_end_does_not_come_is_given_up_at_the_deadline(subscribe, redis):
    with Cutter(redis.connection_pool.connection_kwargs["port"]) as proxy:
        line = subscribe(proxy.url, timeout=0.5)
        redis.publish(CHANNEL, b"CUT")
        line.wait(5)
        began = time.monotonic()

        with pytest.raises(StoreError, match="Could not receive changes"):
            line.receive()

        assert time.monotonic() < began + 2


def test_what_was_read_and_not_returned_has_still_arrived(subscribe, redis, monkeypatch):
    monkeypatch.setattr(push, "TAKEN_AT_ONCE", 1)
    line = subscribe()
    publish(redis, [b"0", b"1", b"2"])
    line.wait(5)

    first = line.receive()

    assert len(first) == 1
    assert line.has_arrived()
    assert received(line, 2) == [b"1", b"2"]
    assert line.receive() == []
    assert not line.has_arrived()


def test_large_messages_are_handed_on_before_all_of_them_have_come(subscribe, redis):
    line = subscribe()
    texts = [b"%d" % number * 10 * LARGE for number in range(4)]
    publish(redis, texts)

    taken = []
    while sum(map(len, taken)) < len(texts) and line.wait(5):
        taken.append([message[2] for message in line.receive()])

    assert taken == [[text] for text in texts]


def test_connection_that_redis_closes_raises(subscribe, redis):
    line = subscribe()

    redis.client_kill_filter(_type="pubsub")
    line.wait(5)

    with pytest.raises(StoreError, match="it closed the connection"):
        line.receive()


def test_wait_ends_when_woken_even_if_messages_keep_coming(subscribe, redis):
    line = subscribe()
    redis.publish(CHANNEL, b"first")
    line.wait(5)
    line.wake()

    assert not line.wait(5)
    assert line.wait(5)
    assert received(line, 1) == [b"first"]
