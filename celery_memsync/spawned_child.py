"""Imported by spawned pool children, which know the app's settings but none of its extensions."""
from __future__ import annotations

from typing import Any

from celery import current_app, signals

from .activation import activate
from .app import MemSync


def on_process_init(sender: Any = None, **_: Any) -> None:
    """Take part in the memory; a forked child has done so all along."""
    app = current_app._get_current_object()
    is_tied = isinstance(getattr(app, "memsync", None), MemSync)
    memsync = activate(app)
    memsync.in_worker = True
    if not is_tied:
        memsync.node_name = sender if isinstance(sender, str) else None


signals.worker_process_init.connect(on_process_init, weak=False, dispatch_uid="celery_memsync.spawned_child")
