"""The messages that a worker holds, also after it has connected to its broker anew.

Celery keeps a request as long as it means to run it, and this package refers to it weakly.  So a message whose request
is gone is not renewed, and comes back, whatever Celery dropped it for.
"""
from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from celery.worker import state

from ..fleet.unacked import adopt, channel_class, delivered, is_closed, is_unacked, missing_names
from ..user_code import message_of
from .app_manager import AppManager

logger = logging.getLogger(__name__)


def held_messages(memsync: AppManager) -> list[Any]:
    """Return the messages of this worker that are not acknowledged and whose requests Celery still has.

    When a worker connects to its broker anew, Celery drops its requests, except those that are running.
    """
    return [request.message for request in memsync.signals.requests.unended() if is_unacked(request.message)
            and (request in state.active_requests or not is_closed(request.message))]


def held_while_draining(memsync: AppManager, consumer: Any) -> list[Any]:
    """Return the messages of a worker that shuts down: Celery has dropped the requests of those that it will not run.

    Kombu gives them back when the pool has finished.  If one was delivered to another worker before that, kombu would
    take it away from there, and it would run twice.
    """
    channel = getattr(getattr(consumer, "task_consumer", None), "channel", None)
    rest = [] if channel is None or channel.closed else filter(is_unacked, delivered(channel))
    held = {message.delivery_tag: message for message in (*held_messages(memsync), *rest)}
    return list(held.values())


class ReconnectStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Let a new connection to a Redis broker acknowledge the messages of tasks that still run.

    Celery starts this step with each connection.  If the broker was away when the old one was closed, kombu could not
    give back its messages.  Those of running tasks are still theirs, but nothing can acknowledge them over the old
    connection: each would be delivered again when its task has ended.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "MemSync"

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.memsync: AppManager = parent.app.memsync

    def include_if(self, parent: Any) -> bool:
        """Whether this takes part: not if ``memsync_enabled`` or ``memsync_renew_visibility`` is False."""
        return bool(self.memsync.enabled and self.memsync.settings.renew_visibility)

    def start(self, parent: Any) -> None:
        """Let the new channel acknowledge what the old one can't."""
        try:
            self._adopt(parent)
        except Exception as exc:  # a worker works without this, too
            logger.warning("Running tasks may be delivered again, for their messages can't be acknowledged over the new "
                           "connection to the broker: %s", message_of(exc))

    def _adopt(self, consumer: Any) -> None:
        kind = channel_class(consumer.connection)
        if kind is None or missing_names(kind):
            return
        for message in held_messages(self.memsync):
            if is_closed(message):
                adopt(message, consumer.task_consumer.channel)
