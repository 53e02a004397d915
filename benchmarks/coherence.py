"""How a process hears that an entry it keeps a copy of was changed, beside not telling it.

One script compares versions and writes, 100 entries at a time, and publishes each with
its value on a channel of its own, in all variants: subscribers are owed that anyway.

    none                 nobody listens; the latency is the writer's own, until its answer is there
    tracking             Redis remembers who read a key and names it to them once; they read it again
    tracking_bcast       Redis names every key below a prefix; nothing is read again
    tracking_bcast_read  the same, and the keys of interest are read again, as no value came along
    channel              the listeners subscribe to the channels of their keys, and get the value

What a variant costs the server beyond ``none`` is coherence, "more_us".  Every listener is
a process, with keys of its own if not all; a batch is written when all have dealt with the
one before.  Figures are per write, the latency per notice of a key of interest.
"""
from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import common
import redis

from celery_memsync.store.embedded import find_server

MECHANISMS = ("none", "tracking", "tracking_bcast", "tracking_bcast_read", "channel")
PEER = "none"
LISTENERS = (1, 10)
INTERESTS = {"all": 1, "1%": 100}  # every so manyeth key
KEYS, BATCH, BATCHES, ROUNDS = 1000, 100, 100, 19
LAP = KEYS // BATCH
PREFIX, CHANNEL = b"entry:", b"told:"
BODY = b"x" * 200
SCRIPT = """
local stored = 0
for i, key in ipairs(KEYS) do
  local before = redis.call("GET", key)
  local version = before and tonumber(string.match(before, "^%d+")) or 0
  if version == tonumber(ARGV[2 * i - 1]) then
    local text = string.format("%d\\n", version + 1) .. ARGV[2 * i]
    redis.call("SET", key, text)
    redis.call("PUBLISH", "told:" .. key, text)
    stored = stored + 1
  end
end
return stored
"""

keys = [PREFIX + b"%036d" % number for number in range(KEYS)]
fork = multiprocessing.get_context("fork")


@contextlib.contextmanager
def server(path: str) -> Iterator[int]:
    """Start an empty server; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with contextlib.suppress(redis.ConnectionError):
                if redis.Redis(port=port).ping():
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def connect(port: int) -> redis.Connection:
    return redis.Connection(host="127.0.0.1", port=port, protocol=2, socket_timeout=None)


def call(connection: redis.Connection, *words: Any) -> Any:
    connection.send_command(*words)
    return connection.read_response()


def listen(mechanism: str, port: int, interest: set[bytes], pipe: Any) -> None:
    """Report how many notices came, and when those of interest did, each time that some were dealt with."""
    ear, eye = connect(port), connect(port)
    channels = [CHANNEL + key for key in interest] if mechanism == "channel" else [b"__redis__:invalidate"]
    if mechanism != "channel":
        mode = [] if mechanism == "tracking" else ["BCAST", "PREFIX", PREFIX]
        call(eye, "CLIENT", "TRACKING", "ON", "REDIRECT", call(ear, "CLIENT", "ID"), *mode)
    ear.send_command("SUBSCRIBE", *channels)
    for _ in channels:
        ear.read_response()
    call(eye, "MGET", *interest)
    pipe.send((0, []))
    while True:
        heard, stale, times = 0, [], []
        while not heard or ear.can_read(0):
            _, channel, body = ear.read_response()
            named = [channel[len(CHANNEL):]] if mechanism == "channel" else body
            ours = [key for key in named if key in interest]
            times += [time.perf_counter()] * len(ours)
            stale += ours
            heard += len(named)
        if stale and mechanism in ("tracking", "tracking_bcast_read"):
            call(eye, "MGET", *stale)
        pipe.send((heard, times))


@contextlib.contextmanager
def listeners(mechanism: str, port: int, number: int, stride: int) -> Iterator[list[Any]]:
    """Run listeners until the end of the block; give the pipes on which they report."""
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
    """Return when a listener had the notices of interest of a batch; wait until it had all notices."""
    heard, times = 0, []
    while heard < expected and pipe.poll(10):
        more, when = pipe.recv()
        heard += more
        times += when
    assert heard == expected, f"{heard} notices, not {expected}"
    return times


def measure(port: int, pid: int, number: int, stride: int, mechanism: str) -> common.Round:
    pen = connect(port)
    call(pen, "FLUSHDB")
    sha = call(pen, "SCRIPT", "LOAD", SCRIPT)
    expected = BATCH if mechanism.startswith("tracking_bcast") else BATCH // stride

    def write(batch: int) -> float:
        first = batch % LAP * BATCH
        words = pen.pack_command("EVALSHA", sha, BATCH, *keys[first:first + BATCH], *[batch // LAP, BODY] * BATCH)
        began = time.perf_counter()
        pen.send_packed_command(words)
        stored = pen.read_response()
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
        "server_us": cpu / BATCHES / BATCH * 1e6,
        "latency_us": statistics.median(latencies) * 1e6,
        "notices": expected * len(pipes) / number / BATCH,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Server CPU per write, latency and notices, by mechanism.")
    parser.add_argument("--server", default=find_server(), metavar="PATH", help="the redis-server to measure")
    with server(parser.parse_args().server) as port:
        about = redis.Redis(port=port).info("server")
        result: dict[str, Any] = {"redis": about["redis_version"]}
        for number in LISTENERS:
            for interest, stride in INTERESTS.items():
                measured = partial(measure, port, about["process_id"], number, stride)
                samples = common.interleave({name: partial(measured, name) for name in MECHANISMS}, ROUNDS)
                for rows in samples.values():
                    for row, peer in zip(rows, samples[PEER]):
                        row["more_us"] = row["server_us"] - peer["server_us"]
                result[f"{number} listening, {interest}"] = common.table(samples, PEER)
    common.say("coherence", PEER, result)


if __name__ == "__main__":
    main()
