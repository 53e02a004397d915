"""What is wrapped of an app: the sending of tasks, for Celery's signals of publishing do not name the app; its end."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .task_signals import publishing


def mark_publishing(app: Any) -> None:
    """Let the signals of publishing know which app sends, and let wrong settings reach the sender.

    What puts messages together is wrapped, and not `send_task`, because other libraries and tests replace that on the
    class or on the app, before or after this.
    """
    amqp = app.amqp
    if hasattr(amqp, "marks_publishing"):
        return
    make_sender = amqp._create_task_sender

    def make_marking_sender() -> Callable[..., Any]:
        send_message = make_sender()

        def send(*args: Any, **kwargs: Any) -> Any:
            app.memsync.check()
            token = publishing.set(app)
            try:
                return send_message(*args, **kwargs)
            finally:
                publishing.reset(token)

        return send

    amqp.marks_publishing = True
    # Celery makes the sender at the first message, because it keeps settings in it; one that is there is made anew.
    amqp._create_task_sender = make_marking_sender
    vars(amqp).pop("send_task_message", None)


def end_with_app(app: Any) -> None:
    """Let ``app.close()``, which ``with app:`` calls, shut down the app's `MemSync`, too."""
    close = app.close
    if hasattr(close, "shuts_down"):
        return

    @functools.wraps(close)
    def shut_down_and_close() -> None:
        try:
            app.memsync.shutdown()
        finally:
            close()

    shut_down_and_close.shuts_down = True  # type: ignore[attr-defined]
    app.close = shut_down_and_close
