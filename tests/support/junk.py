"""Ways to write junk under a key, by name; each is called with a client and the key."""
from __future__ import annotations

import time

NOW = int(time.time() * 1000)
HEADER = f"1 - - 0 {NOW} 3600000 0 t.1 w\n"

#: Scores that are no time, or one that no script of ours writes.
SCORES = (float("inf"), float("-inf"), 1e300, -1e300, 9e15, -9e15, 0, 1, -1, 0.5, NOW, NOW * 2560.0)
MEMBERS = (b"\xff\xfe", "", " ", "junk", "a b c", "a 1 b/c", "x" * 2000, "tok 99999999999999999999 w", "\x1b[31m", "a*")

#: Texts in the place of entries, pages, counters, numbers of changes and kept messages.
TEXTS = (
    b"", b"\xff\xfe\x00", b"junk", b"\n", b"\n" * 50, b"1 2 3\n4", HEADER.encode(), HEADER.encode() + b"{",
    b"99999999999999999999", b"-1", b"1e999", b"nan",
    f"{'9' * 400} - - 0 1 1 0 t.1 w\n1".encode(), f"1 - - 0 {'9' * 20} 3600000 0 t.1 w\n1".encode(),
    f"1 - - 0 {NOW} {'9' * 20} 0 t.1 w\n1".encode(), f"1 - - {'9' * 21} {NOW} 3600000 0 t.1 w\n1".encode(),
    f"1 - - 0 {NOW} 3600000 -{'9' * 20} t.1 w\n1".encode(), b"1 - - 0 0 0 0 - w\n1",
    f"1 {'9' * 500} {'9' * 500} 0 {NOW} 3600000 0 {'t.1,' * 500} w\n1".encode(),
    f"1 - - 0 {NOW * 2} 3600000 0 t.1 w\n1".encode(), f"1 - - 0 {NOW} 3600000 {NOW} t.1 w\n1".encode(),
    *(HEADER.encode() + body for body in (
        b'{"x":1e999}', b'"\\ud800"', b'{"\\ud800":1}', b"[" * 700 + b"]" * 700, b'{"status":["x"],"y":-1e999}', b"NaN",
        b'{"__type__":"decimal","__value__":"sNaN"}')),
    b"\n".join([b"", b"", b"x@junk", b"", b"7@" + HEADER.encode() + b"1"] * 20),
)


def of_type(write):
    def replace(redis, key):
        redis.delete(key)
        write(redis, key)
    return replace


def add_members(redis, key):
    """Add members of no format to a sorted set, each with a score of no meaning."""
    if redis.type(key) == b"zset":
        redis.zadd(key, {member: score for score in SCORES for member in MEMBERS})
        redis.zadd(key, {f"{number}": score for number, score in enumerate(SCORES)})


def scatter_scores(redis, key):
    """Give the members that are there scores of no meaning."""
    if redis.type(key) == b"zset":
        for number, member in enumerate(redis.zrange(key, 0, -1)):
            redis.zadd(key, {member: SCORES[number % len(SCORES)]})


def end_stream(redis, key):
    """Add the last item that a stream can have."""
    if redis.type(key) == b"stream":
        redis.xadd(key, {"ids": "last"}, id=f"{2 ** 64 - 1}-{2 ** 64 - 1}")


def add_items(redis, key):
    """Add items without an id, and with one that is none."""
    if redis.type(key) == b"stream":
        for item in ({"x": 1}, {"ids": ""}, {"ids": b"\xff"}, {"ids": "a/b"}, {"ids": "x" * 5000}, {"ids": "\x1b[31m"}):
            redis.xadd(key, item)
        redis.xadd(key, {"ids": "future"}, id=f"{NOW * 2}-0")


def add_rows(redis, key):
    """Put rows of no format in front of a list."""
    if redis.type(key) == b"list":
        redis.lpush(key, *TEXTS, "a 1 0:foreign-channel - w\n{}", "a 99999999999999999999999 0:c - w\n{}")


def with_text(text):
    def overwrite(redis, key):
        kind = redis.type(key)
        if kind == b"string":
            redis.set(key, text)
        elif kind == b"hash":
            redis.hset(key, mapping={field: text for field in [*redis.hkeys(key), "", "x", "x/heartbeat", b"\xff/status"]})
    return overwrite


JUNK = {
    "a string": of_type(lambda redis, key: redis.set(key, "junk")),
    "a list": of_type(lambda redis, key: redis.rpush(key, "junk")),
    "a set": of_type(lambda redis, key: redis.sadd(key, "junk")),
    "a hash": of_type(lambda redis, key: redis.hset(key, "junk", "junk")),
    "a sorted set": of_type(lambda redis, key: redis.zadd(key, {"junk": 1})),
    "a stream": of_type(lambda redis, key: redis.xadd(key, {"junk": "junk"})),
    "members": add_members, "scores": scatter_scores, "the last item": end_stream, "items": add_items, "rows": add_rows,
    **{f"text {number}": with_text(text) for number, text in enumerate(TEXTS)},
}
