"""Write values so that others see them, and see what is published."""
from __future__ import annotations

from celery_memsync import ConflictError
from celery_memsync.models.task import TaskRun


def publish(memsync, values, **options):
    """Write values, and return when they are in Redis."""
    for key, value in values.items():
        memsync.write(key, value, **options)
    memsync.force_sync(timeout=20)


def flush_until_stored(memsync):
    """Flush until every write has won its conflicts."""
    for _ in range(100):
        try:
            return memsync.force_sync()
        except ConflictError:
            pass
    raise AssertionError(f"{memsync.worker_id} never got its turn")


def published(redis, act, quiet=0.2):
    """Return channel and data of each message that is published while ``act`` runs, until none came for so many seconds."""
    with redis.pubsub() as listener:
        listener.psubscribe("*")
        listener.get_message(timeout=5)
        act()
        messages = iter(lambda: listener.get_message(timeout=quiet), None)
        return [(message["channel"].decode(), message["data"]) for message in messages if message["type"] == "pmessage"]


def sync_stage(memsync, task_id, status, at=0.0):
    """Record a stage of a task, as the signal handlers do."""
    memsync.sync_task_run(task_id, TaskRun(status=status, name="proj.add", published_at=at), "sender-1.0.worker-1")


def publish_state(fleet, task_id, status, **fields):
    """Write the state of a task, and return when it is in Redis."""
    fleet.reader.sync_task_state(task_id, {"status": status, **fields})
    fleet.reader.force_sync()
