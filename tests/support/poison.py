"""A namespace in which every structure holds hostile text, written past this package."""
from __future__ import annotations

import json

#: Title and colour sequences, CR and LF, C1, bidi, zero width, line separator, private use, a tag
#: character, a filler, a surrogate, NUL.
HOSTILE = (
    "a\x1b]0;pwn\x07\x1b[31mX\r\n\x9b31m"
    "\u202e\u2066\u200b\u2028\ue000\U000e0041\u3164\ud800\x00z")

#: The same for headers, whose parts end with a blank and which are valid Unicode on one line.
HOSTILE_PART = HOSTILE.replace("\n", "").replace("\ud800", "")

#: What may stand in ids, names and keys, which hold no control characters.
HOSTILE_ID = "\u202e\u2066\u200b\ue000\U000e0041\u3164z"

#: Texts that stay, so that commands take the same ways as with friendly data.
STATUSES = {"PENDING", "STARTED", "FAILURE", "SUCCESS", "RETRY", "active", "busy"}


STATE = {
    "name": "proj.work", "worker": "w1", "started_at": 1.0, "finished_at": 2.0, "queue": "mail",
    "runtime": 3.0, "exception": {"type": "OSError", "message": "it broke"}, "note": "words",
    "lock": {"name": "printer", "worker_id": "w2", "task_id": "t9", "since": 1.0},
}
WORKER = {
    "status": "busy", "hostname": "host", "pid": 7, "pool": "prefork", "concurrency": 2,
    "capacity": {"total": 2, "free": 1, "reserved": 0}, "queues": ["mail"], "depths": {"mail": 5},
    "running": [{"id": "t0", "name": "proj.work", "started_at": 1.0}], "counters": {"total": 5},
    "rss": 5, "cpu": 1.0, "load": [0.5], "started_at": 1.0, "versions": {"celery": "5"},
    "sequence": 3, "round_trip": 0.1, "consuming": True, "stretch": 1.0, "skew": 0.0,
    "writer": {"pending": 1, "dropped": 0},
}


def texts(value):
    """Return JSON with each text replaced but statuses."""
    if isinstance(value, dict):
        return {name: texts(item) for name, item in value.items()}
    if isinstance(value, list):
        return [texts(item) for item in value]
    return HOSTILE if isinstance(value, str) and value not in STATUSES else value


def names(value):
    """Return JSON with each text and each name of a field replaced or doubled."""
    if isinstance(value, dict):
        return {**{name: names(item) for name, item in value.items()}, HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [*map(names, value), HOSTILE]
    return HOSTILE if isinstance(value, str) else value


def kinds(value):
    """Return JSON with each value replaced by one of another type."""
    if isinstance(value, dict):
        return {name: kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    if isinstance(value, str) and value not in STATUSES:
        return [HOSTILE, {HOSTILE: -1e300}]
    return HOSTILE if isinstance(value, int) else {HOSTILE: 10 ** 400} if value is None else value


def lists(value):
    """Return JSON with each scalar, a status as well, replaced by a list."""
    if isinstance(value, dict):
        return {name: lists(item) for name, item in value.items()}
    return [lists(item) for item in value] if isinstance(value, list) else [HOSTILE]


def scalars(value):
    """Return JSON with each value of a dict, and each item of a list, replaced by a number."""
    if isinstance(value, dict):
        return dict.fromkeys(value, 5)
    return [5 for _ in value] if isinstance(value, list) else 5


def deep(value):
    """Return JSON with each text replaced by lists in lists, as many as can be read."""
    if isinstance(value, dict):
        return {name: deep(item) for name, item in value.items()}
    if isinstance(value, list):
        return [deep(item) for item in value]
    nested = HOSTILE
    for _ in range(80):
        nested = [nested]
    return nested if isinstance(value, str) and value not in STATUSES else value


def fill(manager, redis):
    """Write something friendly into every structure."""
    for number, status in enumerate(("STARTED", "FAILURE", "RETRY", "PENDING")):
        manager.sync_task_state(f"t{number}", {"status": status, **STATE})
        manager.sync_task_progress(
            f"t{number}", 20, status="copying", current=1, total=5, message="words")
        manager.sync_agent_coordination(f"t{number}", "critic", {"opinion": "good"})
    manager.write("own/1", {"a": ["words", 1.5, None]})
    manager.sync_metrics({"sent": "many", "count": 3})
    manager.sync_queue({"pending": ["t3"], "processing": ["t0", "t1"]})
    manager.sync_assignments({"w1": ["t0", "t1"]})
    manager.cancel("t1", "words")
    manager.force_sync()
    manager.printer = manager.lock("printer")
    manager.printer.acquire()
    row = json.dumps({"task_id": "t3", "worker_id": "w1"})
    queue = f"{manager.settings.namespace}/locks/{{printer}}/queue/"
    redis.rpush(queue, f"tok.2 30000 chan 1 w1\n{row}")
    for worker_id in ("w1", "w2"):
        record = json.dumps({"worker_id": worker_id, **WORKER})
        manager.runtime.store.write_heartbeat(worker_id, record.encode(), 60.0)


def poison(redis, namespace, change):
    """Change all that a namespace holds, and add hostile names to each structure."""
    for key in list(redis.scan_iter(f"{namespace}/*")):
        kind = redis.type(key)
        if kind == b"string":
            redis.set(key, _poisoned(redis.get(key), change), keepttl=True)
        elif kind == b"hash":
            for field, value in redis.hgetall(key).items():
                fields = [field, *_beside(field)]
                redis.hset(key, mapping=dict.fromkeys(fields, _poisoned(value, change)))
        elif kind == b"zset":
            for member, score in redis.zrange(key, 0, -1, withscores=True):
                redis.zadd(key, dict.fromkeys(_beside(member), score))
        elif kind == b"list":
            redis.rpush(key, *(_poisoned(row, change) for row in redis.lrange(key, 0, -1)))
        elif kind == b"stream":
            for name in _beside(b"t0"):
                redis.xadd(key, {"ids": name, name: name})
    for key in ("tasks/{t0%s}/", "locks/{printer%s}", "own/1%s"):
        redis.copy(f"{namespace}/{key % ''}", f"{namespace}/{key % HOSTILE_ID}")
    redis.set(f"{namespace}/own/{HOSTILE_PART}", b"\xff\x00\x1b[31m")


def _beside(name):
    """Return hostile names that begin as a friendly one; of ``worker/thing`` the worker's."""
    raw = [text.encode(errors="surrogatepass") for text in (HOSTILE, HOSTILE_ID)]
    worker_id, slash, thing = name.rpartition(b"/")
    if thing == b"heartbeat":
        return [worker_id + text + slash + thing for text in raw]
    return [name + text for text in raw]


def _poisoned(value, change):
    """Return an entry, or several, with hostile bodies and hostile writers in their headers."""
    return b"\n".join(_poisoned_line(line, change) for line in value.split(b"\n"))


def _poisoned_line(line, change):
    try:
        return json.dumps(change(json.loads(line))).encode()
    except ValueError:
        return line + HOSTILE_PART.encode() if line.count(b" ") >= 4 else line
