"""What a Redis holds."""
from __future__ import annotations


def contents(server):
    """Return all keys and values of a Redis, but for results of tasks."""
    with server.client() as client:
        texts = []
        for key in client.scan_iter():
            if key.startswith(b"celery-task-meta-"):  # Celery's own
                continue
            texts.append(key)
            kind = client.type(key)
            if kind == b"hash":
                texts += [part for pair in client.hgetall(key).items() for part in pair]
            elif kind == b"stream":
                texts += [part for _, fields in client.xrange(key) for pair in fields.items() for part in pair]
            elif kind == b"list":
                texts += client.lrange(key, 0, -1)
            elif kind == b"set":
                texts += client.smembers(key)
            elif kind == b"zset":
                texts += client.zrange(key, 0, -1)
            elif kind == b"string":
                texts.append(client.get(key) or b"")
            elif kind != b"none":  # it is deleted or expired by now
                raise AssertionError(f"a key of type {kind} is not looked into")
        return b"\n".join(texts)


def remembered(redis, store, kind):
    """Return the numbers of changes by a process that Redis remembers.

    Args:
        redis: A client.
        store: The process's.
        kind: Of the changes: ``queue``, ``metrics``, ...
    """
    return {int(text.split(b" ")[0]) for text in redis.hgetall(store.keys.done(store.token, kind)).values()}
