"""Processes that do anything at random with the same shared state, under faults; a judge follows.

Usage::

    python -m tests.support.model --seconds 60 --processes 8 --seed 1 --faults kill,restart
"""
from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import redis

from celery_memsync import MemorySyncManager
from tests.support.actors import keys_of, work
from tests.support.histories import History, Violation
from tests.support.redis_server import RedisServer

#: Longest that a copy stays valid without an answer of Redis, as documented, and room for a busy
#: machine; in seconds.
TRUST, ROOM = 3.0, 2.0

#: Seconds for which Redis keeps what it has: just after it was emptied anything may be seen.
PEACE = TRUST + ROOM + 4.0

FAULTS = ("kill", "restart", "empty", "pause")

spawn = multiprocessing.get_context("spawn")


class Nemesis:
    """Does harm to a redis-server, of some kinds, at random."""

    def __init__(self, server, kinds, seed, peace):
        self.server = server
        self.kinds = kinds
        self.peace = peace
        self.random = random.Random(f"{seed} nemesis")
        self.rows = []
        self.enough = threading.Event()

    def run(self, until):
        emptied = time.monotonic()
        while self.kinds and not self.enough.wait(self.random.uniform(0.2, 1.5)):
            kind = self.random.choice(self.kinds)
            begin = time.monotonic()
            if kind == "empty" and not emptied + self.peace < begin < until - self.peace:
                continue
            how = self.random.choice(getattr(self, kind)())
            how()
            emptied = time.monotonic() if kind == "empty" else emptied
            self.rows.append({
                "op": "fault", "kind": kind, "how": how.__name__, "begin": begin, "end": time.monotonic()})

    def kill(self):
        return (
            self.kill_one, self.kill_listeners, self.kill_others, self.kill_all, self.lose_answers)

    def restart(self):
        return (self.restart_with_data,)

    def empty(self):
        return self.restart_without_data, self.flush_all

    def pause(self):
        return self.pause_all, self.pause_writes, self.freeze

    def kill_one(self):
        with self.server.client() as client:
            ids = {row["id"] for row in client.client_list()} - {str(client.client_id())}
            if ids:
                with contextlib.suppress(redis.ResponseError):
                    client.client_kill_filter(_id=self.random.choice(sorted(ids)))

    def kill_listeners(self):
        with self.server.client() as client:
            client.client_kill_filter(_type="pubsub")

    def kill_others(self):
        with self.server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def kill_all(self):
        self.kill_listeners()
        self.kill_others()

    def lose_answers(self):
        """Let Redis run commands, and lose its answers."""
        with self.server.client(single_connection_client=True) as client:
            client.ping()
            self.server.pause()
            self.enough.wait(0.1)
            client.connection.send_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            self.enough.wait(0.02)
            self.server.resume()
            client.connection.read_response()

    def restart_with_data(self):
        self.server.stop()
        self.enough.wait(self.random.uniform(0.0, 1.5))
        self.server.start()

    def restart_without_data(self):
        self.server.kill()
        (self.server.folder / "dump.rdb").unlink(missing_ok=True)
        self.enough.wait(self.random.uniform(0.0, 1.5))
        self.server.start()

    def flush_all(self):
        with self.server.client() as client:
            client.flushall()

    def pause_all(self):
        with self.server.client() as client:
            client.client_pause(self.random.randrange(50, 1500))

    def pause_writes(self):
        with self.server.client() as client:
            client.client_pause(self.random.randrange(50, 1500), all=False)

    def freeze(self):
        self.server.pause()
        self.enough.wait(self.random.uniform(0.1, 2.5))
        self.server.resume()


def run(folder, seconds, processes, seed, faults=(), sessions=1, peace=PEACE):
    """Let processes and a nemesis loose; return violations, figures and the rows."""
    server = RedisServer(Path(folder) / "redis", keep=True)
    (server.folder / "dump.rdb").unlink(missing_ok=True)
    server.start()
    names = [f"p{number}.{at}" for number in range(processes) for at in range(sessions)]
    nemesis = Nemesis(server, [kind for kind in FAULTS if kind in faults], seed, peace)
    pipes, children = [], []
    try:
        for number in range(processes):
            here, there = spawn.Pipe()
            child = spawn.Process(target=work, daemon=True, args=(
                number, server.url, str(folder), seed, sessions, names, seconds, there))
            child.start()
            pipes.append(here)
            children.append(child)
        request(pipes)
        send_all(pipes, "begin")
        harm = threading.Thread(target=nemesis.run, args=(time.monotonic() + seconds,), daemon=True)
        harm.start()
        request(pipes, timeout=seconds + 60)
        nemesis.enough.set()
        harm.join(20)
        send_all(pipes, "sync")
        request(pipes)
        with MemorySyncManager(worker_id="end", url=server.url) as fresh:
            final = {key: fresh.read_entry(key) for key in keys_of(names)}
        send_all(pipes, {key: entry and entry.version for key, entry in final.items()})
        metrics = request(pipes)
        send_all(pipes, "end")
        for child in children:
            child.join(20)
    finally:
        for child in children:
            child.kill()
        server.stop()
    rows = [*nemesis.rows, *({"op": "metrics", **one} for one in metrics)]
    rows += [{"op": "final", "key": key, "value": entry and entry.value, "version": entry and entry.version}
             for key, entry in final.items()]
    (Path(folder) / "end.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return judge(folder)


def send_all(pipes, message):
    for pipe in pipes:
        pipe.send(message)


def request(pipes, timeout=60):
    """Return the answer of each process."""
    deadline = time.monotonic() + timeout
    answers = []
    for pipe in pipes:
        assert pipe.poll(max(0.0, deadline - time.monotonic())), "a process does not answer"
        answers.append(pipe.recv())
    return answers


class Report(NamedTuple):
    """What came out.

    Attributes:
        violations: Claims that do not hold, with rows.
        figures: By name.
    """

    violations: list
    figures: dict


def judge(folder):
    """Judge the histories in a folder."""
    rows = [json.loads(line) for path in sorted(Path(folder).glob("*.jsonl")) for line in path.open()]
    history = History(rows, ROOM + (TRUST if any(row["op"] == "fault" for row in rows) else 0.0))
    violations = history.violations()
    synced = {row["p"] for row in history.rows["synced"] if row["last"]}
    violations += [Violation("nothing waits when all is quiet", [process])
                   for process in {row["p"] for row in history.rows["write"]} - synced]
    metrics = history.rows["metrics"]
    count = Counter(row["op"] for row in rows)
    errors = Counter(row["error"] for row in history.rows["write"])
    return Report(violations, {
        "operations": count["write"] + count["read"] + count["subscribed"] + count["unsubscribed"] + count["synced"],
        "writes": count["write"], "refused": errors["ConflictError"], "unknown": errors["StoreError"],
        "reads": count["read"], "reads judged": history.checked, "hits": sum(one["cache_hits"] for one in metrics),
        "conflicts": sum(one["conflicts"] for one in metrics), "notices": count["received"],
        "doubts": count["doubted"],
        "failed batches": count["failed"], "worst staleness, s": round(history.worst, 3),
        "faults": dict(Counter(row["how"] for row in history.rows["fault"])),
        "stalest read": history.worst_rows,
    })


def show(report, seed, most=10):
    """Return a report as text."""
    lines = [f"seed {seed}", *(f"{name:>20}  {figure}" for name, figure in report.figures.items())]
    lines += [f"{number:>6} x  {claim}" for claim, number in
              Counter(violation.claim for violation in report.violations).items()]
    for violation in report.violations[:most]:
        lines += ["", f"VIOLATION: {violation.claim}", *(f"    {row}" for row in violation.rows)]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--sessions", type=int, default=1, help="threads in each process")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--faults", default="", help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--peace", type=float, default=PEACE, help="seconds for which Redis keeps what it has")
    parser.add_argument("--folder", help="where to leave the histories")
    parser.add_argument("--judge", metavar="FOLDER", help="only judge the histories that an earlier run has left")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = judge(args.judge) if args.judge else run(
            args.folder or temporary, args.seconds, args.processes, args.seed,
            [kind for kind in args.faults.split(",") if kind], args.sessions, args.peace)
    print(show(report, args.seed))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
