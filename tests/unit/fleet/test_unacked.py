"""What kombu's Redis transport has delivered: its names are there, and mean what they are taken for."""
from __future__ import annotations

from collections import OrderedDict

import pytest
from kombu.transport.redis import Channel

from celery_memsync.fleet.unacked import PRIVATE_NAMES, adopt, delivered, is_closed, is_unacked, missing_names
from tests.support.redis_server import RedisServer


@pytest.mark.parametrize("owner, name", [(owner, name) for owner, names in PRIVATE_NAMES.items() for name in names])
def test_each_name_of_kombu_is_there_and_missed_if_it_is_not(owner, name):
    without = type("Channel", (), {one: None for one in PRIVATE_NAMES["Channel"]})
    without.QoS = type("QoS", (), {one: None for one in PRIVATE_NAMES["QoS"]})
    complete = missing_names(without)

    delattr(without if owner == "Channel" else without.QoS, name)

    assert (complete, missing_names(Channel)) == ([], [])
    assert missing_names(without) == [f"{owner}.{name}"]


def test_delivered_messages_are_unacked_until_they_are_acknowledged(deliveries):
    first, second, third = deliveries.take(3)

    first.ack()
    second.reject(requeue=True)

    assert [is_unacked(message) for message in (first, second, third)] == [False, False, True]
    assert set(third.channel.qos._delivered) >= {third.delivery_tag}
    assert third.channel.qos._dirty == {first.delivery_tag, second.delivery_tag}


def test_what_a_channel_has_delivered_is_read_while_it_changes(deliveries, monkeypatch):
    class Changing(OrderedDict):
        looks = 0

        def values(self):
            self.looks += 1
            if self.looks < 3:
                raise RuntimeError("OrderedDict mutated during iteration")
            return super().values()

    (message,) = deliveries.take()
    monkeypatch.setattr(message.channel.qos, "_delivered", Changing(message.channel.qos._delivered))

    assert delivered(message.channel) == [message]


def test_new_channel_acknowledges_what_was_not_given_back(make_deliveries, own_server):
    server = RedisServer(own_server.folder / "kept", keep=True).start()
    try:
        deliveries = make_deliveries(server.url)
        message, given_back = deliveries.take(2)
        given_back.reject(requeue=True)
        server.stop()
        with pytest.raises(deliveries.connection.connection_errors):
            message.channel.close()
        server.start()
        assert (is_closed(message), is_unacked(message)) == (True, True)

        adopt(message, deliveries.connection.clone().channel())
        message.ack()

        with server.client() as client:
            assert (is_closed(message), client.hlen("unacked"), client.zcard("unacked_index")) == (False, 0, 0)
    finally:
        server.stop()


def test_channel_that_gives_its_messages_back_holds_them_no_more(deliveries, redis):
    (message,) = deliveries.take()

    message.channel.close()

    assert (is_closed(message), is_unacked(message)) == (True, False)
    assert (redis.llen("q1"), redis.zcard("unacked_index")) == (1, 0)
