"""Messages that a test has taken from a broker and not acknowledged."""
from __future__ import annotations

from celery import Celery
from kombu import Connection

from celery_memsync.fleet.unacked import is_unacked
from celery_memsync.fleet.visibility import VisibilityRenewal


class Deliveries:
    """Messages of one queue that were delivered to this process.

    Args:
        url: Of the broker.
        options: For its transport.
    """

    def __init__(self, url, **options):
        self.app = Celery("deliveries", broker=url, set_as_current=False)
        self.app.conf.broker_transport_options = options
        self.connection = Connection(url, transport_options=options)
        self.messages = []

    def take(self, count=1, channel=None):
        """Send messages, have them delivered, and return them."""
        channel = channel or self.connection.default_channel
        with self.connection.Producer() as producer:
            for number in range(count):
                producer.publish({"number": number}, routing_key="q1")
        taken = [channel.basic_get("q1") for _ in range(count)]
        self.messages += taken
        return taken

    def held(self):
        return [message for message in self.messages if is_unacked(message)]

    def renewal(self, is_stuck=lambda: False):
        """Return what renews them, which a test calls by hand."""
        return VisibilityRenewal(self.app, self.held, is_stuck)

    def scores(self, redis, key="unacked_index"):
        """Return when each message was delivered or renewed, by its tag."""
        return {tag.decode(): score for tag, score in redis.zrange(key, 0, -1, withscores=True)}

    def age(self, redis, seconds=1000.0, key="unacked_index"):
        """Let all messages be delivered longer ago."""
        for tag, score in self.scores(redis, key).items():
            redis.zadd(key, {tag: score - seconds})

    def close(self):
        self.app.close()
        self.connection.release()
