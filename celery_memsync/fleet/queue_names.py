"""Which queue a message goes to, or came from: it may have an exchange and a routing key of other names."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kombu.transport.virtual.exchange import TopicExchange

#: What Celery puts before the routing key of a task with an ETA, where the broker delays it: the seconds, in binary
#: (``kombu.transport.native_delayed_delivery``).
_DELAY = re.compile(r"(?:[01]\.){28}(?=.)").match


class QueueNames:
    """Remembers which queues an app's exchanges and routing keys mean.

    Args:
        find_queues: Returns the queues of the app, ``app.amqp.queues``.
    """

    #: Most answers that are remembered: routing keys may be made up for each message.
    MOST = 1000

    def __init__(self, find_queues: Callable[[], Mapping[str, Any]]) -> None:
        self._find_queues = find_queues
        self._known: dict[tuple[Any, ...], str | None] = {}

    def of(self, delivery: Any, consumer: Any = None) -> str | None:
        """Return the name of a queue, as far as that can be known; otherwise the routing key or exchange.

        Args:
            delivery: ``exchange``, ``routing_key`` and perhaps ``consumer_tag``, as in a message's ``delivery_info``;
                anything may be in there.
            consumer: Celery's consumer that received the message, if one has.
        """
        if not isinstance(delivery, dict):
            return None
        words = delivery.get("exchange"), delivery.get("routing_key"), delivery.get("consumer_tag")
        try:
            return self._known[words]
        except KeyError:
            return self._find(words, delivery, consumer)
        except TypeError:  # one of them can't be a key
            return None

    def _find(self, words: tuple[Any, ...], delivery: Mapping[str, Any], consumer: Any) -> str | None:
        exchange, routing_key, _ = words
        if not all(isinstance(word, (str, type(None))) for word in words):
            return None
        if len(self._known) >= self.MOST:
            self._known.clear()
        queues = self._find_queues()
        names = queue_names(getattr(queues, "consume_from", queues), delivery, consumer) or queue_names(queues, delivery)
        self._known[words] = names[0] if names else _without_delay(routing_key) or exchange
        return self._known[words]


def queue_name_of(queues: Mapping[str, Any], delivery: Mapping[str, Any], consumer: Any = None) -> str | None:
    """Return the name of the queue from which a message came, or None if it is not certain.

    Args:
        queues: Those of the app, by name.
        delivery: ``delivery_info`` of the message.
        consumer: Celery's consumer; kombu's consumer in it knows the queue by the consumer tag.
    """
    names = queue_names(getattr(queues, "consume_from", queues), delivery, consumer)
    queue = queues.get(names[0]) if len(names) == 1 else None
    return names[0] if queue is not None and queue.exchange.type != "fanout" else None


def queue_names(queues: Mapping[str, Any], delivery: Mapping[str, Any], consumer: Any = None) -> list[str]:
    """Return the names of all queues from which a message may have come."""
    tags = getattr(getattr(consumer, "task_consumer", None), "_active_tags", None) or {}
    exchange, routing_key, tag = (delivery.get(name) for name in ("exchange", "routing_key", "consumer_tag"))
    found = [name for name, its_tag in tags.items() if tag is not None and its_tag == tag]
    return found or [queue.name for queue in list(queues.values()) if _is_bound(queue, exchange, routing_key)]


def _without_delay(routing_key: Any) -> Any:
    delay = _DELAY(routing_key) if isinstance(routing_key, str) else None
    return routing_key if delay is None else routing_key[delay.end():]


def _is_bound(queue: Any, exchange: Any, routing_key: Any) -> bool:
    """Return whether an exchange delivers messages with a routing key to a queue."""
    if not exchange:
        return bool(queue.name == routing_key)
    plain_key = _without_delay(routing_key)
    # What was delayed went through exchanges of Celery's own.
    if not isinstance(routing_key, str) or queue.exchange.name != exchange and plain_key == routing_key:
        return False
    if queue.exchange.type == "topic":
        pattern = TopicExchange(None).key_to_pattern(queue.routing_key or "")  # type: ignore[no-untyped-call]
        return re.match(pattern, plain_key) is not None
    return bool(queue.routing_key == plain_key)
