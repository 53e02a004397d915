"""Ways to keep the cached copies of other processes valid: what each costs Redis.

One script compares versions and writes, 100 entries at a time, and publishes each with its value
on its own channel, in all variants, because subscribers receive that in any case.

    none                 without listeners; the latency is the writer's own, until the reply
    tracking             Redis remembers the readers of a key, and sends it to them once; they read
                         it again
    tracking_bcast       Redis sends every key below a prefix; nothing is read again
    tracking_bcast_read  the same, and the keys of interest are read again, as no value came along
    channel              the listeners subscribe to the channels of their keys, and get the value

What a variant costs the server beyond ``none`` is "more CPU of Redis". Each listener is a process,
with keys of its own if not all; a batch is written when all have handled the one before. Figures
are per write, the latency per notice of a key of interest. This was measured for a decision and is
not part of ``make bench``.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import common
import redis

MECHANISMS = ("none", "tracking", "tracking_bcast", "tracking_bcast_read", "channel")
LISTENERS = (1, 10)
INTERESTS = {"all": 1, "1%": 100}  # of that many keys one
KEYS, BATCH, BATCHES, ROUNDS = 1000, 100, 100, common.sized(19, quick=2)
LAP = KEYS // BATCH
PREFIX, CHANNEL = b"entry:", b"changed:"
BODY = b"x" * 200
SCRIPT = """
local stored = 0
for i, key in ipairs(KEYS) do
  local before = redis.call("GET", key)
  local version = before and tonumber(string.match(before, "^%d+")) or 0
  if version == tonumber(ARGV[2 * i - 1]) then
    local text = string.format("%d\\n", version + 1) .. ARGV[2 * i]
    redis.call("SET", key, text)
    redis.call("PUBLISH", "changed:" .. key, text)
    stored = stored + 1
  end
end
return stored
"""

keys = [PREFIX + b"%036d" % number for number in range(KEYS)]
fork = multiprocessing.get_context("fork")


def connect(port: int) -> Any:
    pool = redis.ConnectionPool(host="127.0.0.1", port=port, protocol=2, socket_timeout=None)
    return pool.make_connection()


def call(connection: Any, *words: Any) -> Any:
    connection.send_command(*words)
    return connection.read_response()


def listen(mechanism: str, port: int, interest: set[bytes], pipe: Any) -> None:
    """Report how many notices came, and when those of interest did, after each few."""
    listener, reader = connect(port), connect(port)
    channels = [b"__redis__:invalidate"]
    if mechanism == "channel":
        channels = [CHANNEL + key for key in interest]
    else:
        mode = [] if mechanism == "tracking" else ["BCAST", "PREFIX", PREFIX]
        client_id = call(listener, "CLIENT", "ID")
        call(reader, "CLIENT", "TRACKING", "ON", "REDIRECT", client_id, *mode)
    listener.send_command("SUBSCRIBE", *channels)
    for _ in channels:
        listener.read_response()
    call(reader, "MGET", *interest)
    pipe.send((0, []))
    while True:
        received, stale, times = 0, [], []
        while not received or listener.can_read(0):
            _, channel, body = listener.read_response()
            changed = [channel[len(CHANNEL):]] if mechanism == "channel" else body
            ours = [key for key in changed if key in interest]
            times += [time.perf_counter()] * len(ours)
            stale += ours
            received += len(changed)
        if stale and mechanism in ("tracking", "tracking_bcast_read"):
            call(reader, "MGET", *stale)
        pipe.send((received, times))


@contextlib.contextmanager
def listeners(mechanism: str, port: int, number: int, stride: int) -> Iterator[list[Any]]:
    """Run listeners until the end of the block; yield the pipes on which they report."""
    processes, pipes = [], []
    try:
        for first in range(number if mechanism != "none" else 0):
            ours, theirs = fork.Pipe(duplex=False)
            arguments = (mechanism, port, set(keys[first % stride::stride]), theirs)
            processes.append(fork.Process(target=listen, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        yield pipes
    finally:
        for process, pipe in zip(processes, pipes):
            process.terminate()
            process.join()
            pipe.close()


def collect(pipe: Any, expected: int) -> list[float]:
    """Wait for all notices of a batch; return when a listener had those of interest."""
    received, times = 0, []
    while received < expected and pipe.poll(10):
        more, when = pipe.recv()
        received += more
        times += when
    assert received == expected, f"{received} notices, not {expected}"
    return times


def measure(port: int, pid: int, number: int, stride: int, mechanism: str) -> common.Round:
    writer = connect(port)
    call(writer, "FLUSHDB")
    sha = call(writer, "SCRIPT", "LOAD", SCRIPT)
    expected = BATCH if mechanism.startswith("tracking_bcast") else BATCH // stride

    def write(batch: int) -> float:
        first = batch % LAP * BATCH
        values = [batch // LAP, BODY] * BATCH
        words = writer.pack_command("EVALSHA", sha, BATCH, *keys[first:first + BATCH], *values)
        began = time.perf_counter()
        writer.send_packed_command(words)
        stored = writer.read_response()
        assert stored == BATCH, f"{stored} writes of {BATCH}"
        return began

    for batch in range(LAP):
        write(batch)
    latencies: list[float] = []
    with listeners(mechanism, port, number, stride) as pipes:
        cpu = common.cpu_of(pid)
        for batch in range(LAP, LAP + BATCHES):
            began = write(batch)
            times = [] if pipes else [time.perf_counter()]
            for pipe in pipes:
                times += collect(pipe, expected)
            latencies += [when - began for when in times]
        cpu = common.cpu_of(pid) - cpu
    return {
        "CPU of Redis, µs": cpu / BATCHES / BATCH * 1e6,
        "latency, µs": statistics.median(latencies) * 1e6,
        "notices": expected * len(pipes) / number / BATCH,
    }


def compare(port: int, pid: int, number: int, stride: int) -> common.Table:
    measured = partial(measure, port, pid, number, stride)
    samples = common.interleave({name: partial(measured, name) for name in MECHANISMS}, ROUNDS)
    for rows in samples.values():
        for row, without in zip(rows, samples["none"]):
            row["more CPU of Redis, µs"] = row["CPU of Redis, µs"] - without["CPU of Redis, µs"]
    return common.table(samples)


def main() -> None:
    with common.server() as url:
        about = redis.Redis.from_url(url).info("server")
        tables = {
            f"{number} listening, {interest}":
                compare(about["tcp_port"], about["process_id"], number, stride)
            for number in LISTENERS for interest, stride in INTERESTS.items()}
    common.print_results("coherence", tables, Redis=about["redis_version"])


if __name__ == "__main__":
    main()
