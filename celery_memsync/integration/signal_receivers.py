"""The receivers of Celery's signals: one of each in a process, which passes it on to all listeners."""
from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from celery import signals

logger = logging.getLogger(__name__)

#: Signals, and which method of a listener takes them.
SIGNALS = (
    (signals.before_task_publish, "on_publish"),
    (signals.after_task_publish, "on_published"),
    (signals.task_received, "on_received"),
    (signals.task_prerun, "on_started"),
    (signals.task_postrun, "on_ended"),
    (signals.task_failure, "on_failed"),
    (signals.task_internal_error, "on_failed"),
    (signals.task_retry, "on_retried"),
    (signals.task_revoked, "on_revoked"),
    (signals.task_unknown, "on_unknown"),
    (signals.worker_before_create_process, "on_child_replaced"),
    (signals.worker_process_shutdown, "on_child_exit"),
)

#: The listeners of this process, by their id.
_listening: dict[int, weakref.ref[object]] = {}


def _receiver(name: str) -> Callable[..., None]:
    """Return the one receiver of a signal that this process has, however many apps it has.

    A receiver that Celery knows weakly stays on its list until the signal is sent again, or another is connected.
    """

    def receive(**details: Any) -> None:
        for find in list(_listening.values()):
            listener = find()
            if listener is not None:
                try:
                    getattr(listener, name)(**details)
                except Exception as exc:  # as Celery does: others listen, too
                    logger.exception("Signal handler %s raised: %r", name, exc)

    return receive


def connect(listener: object) -> None:
    """Pass signals on to the methods of a listener from now on, for as long as another object refers to it."""
    _listening[id(listener)] = weakref.ref(listener)
    for number, find in list(_listening.items()):
        if find() is None:
            _listening.pop(number, None)
    for signal, name in SIGNALS:
        signal.connect(_receiver(name), weak=False, dispatch_uid=f"celery_memsync.{name}")


def disconnect(listener: object) -> None:
    """Pass no more signals on to a listener."""
    _listening.pop(id(listener), None)
