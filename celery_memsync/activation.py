"""Tie an app to its worker by configuration alone; a worker takes part if it is activated."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, signals

from .app import MemSync

if TYPE_CHECKING:
    from celery.worker import WorkController


#: Module that a spawned pool child imports to take part; a forked one needs no such thing.
CHILD_MODULE = "celery_memsync.spawned_child"


def activate(app: Celery) -> MemSync:
    """Return the memory of an app, made now if the app has none."""
    tied = getattr(app, "memsync", None)
    return tied if isinstance(tied, MemSync) else MemSync(app)


def on_worker_init(sender: WorkController, **_: Any) -> None:
    """Activate a worker whose app has ``memsync_backend`` set, or a `MemSync`."""
    app = sender.app
    tied = getattr(app, "memsync", None)
    if not isinstance(tied, MemSync) and not app.conf.get("memsync_backend"):
        return
    memsync = activate(app)
    memsync.node_name = sender.hostname
    memsync.in_worker = True
    memsync.check()
    if not memsync.enabled:
        return
    app.conf.update(memsync.spawned_settings())
    if CHILD_MODULE not in app.conf.include:
        app.conf.include = (*app.conf.include, CHILD_MODULE)


signals.worker_init.connect(on_worker_init, weak=False, dispatch_uid="celery_memsync.worker_init")
