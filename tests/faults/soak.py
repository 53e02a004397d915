"""Real workers under faults, one after the other, drawn from a seed; a judge checks the records.

Usage::

    python -m tests.faults.soak --minutes 60 --seed 1
    python -m tests.faults.soak --minutes 10 --topology cluster
    python -m tests.faults.soak --minutes 30 --steady

On several servers, which are harmed instead of the network, threads call the package as well, and a
second judge checks the answers.  With ``--steady`` there are no faults: what the processes hold is
measured, and may not grow.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.faults.callers import Callers
from tests.faults.checker import Kill, Wrong, judge
from tests.faults.ledger import Ledger
from tests.faults.servers import TOPOLOGIES
from tests.support.fleet import Fleet
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

#: Seconds after which the broker delivers a task of a dead worker again.
VISIBILITY = 5

#: Seconds that all has to settle in, after the last fault.
SETTLE = 90

#: Tasks that may wait while more are sent.
BACKLOG = 20

#: Seconds of a steady run that are not measured: pools and caches fill, and records begin to go.
WARM_UP = 600.0

#: Seconds that records live in a steady run.
STEADY_TTL = 120.0

#: Growth that is taken for noise, in KB a minute of memory, and in all of file descriptors and threads.
NOISE = {"rss": 60.0, "fds": 3, "threads": 2}

#: Faults of processes, and those of them after which no living worker looks dead.
KINDS = ("kill child", "kill main", "processes", "stop child", "stop main")
ENDS = KINDS[:3]


class Soak:
    """Workers, a load, and faults.

    Args:
        folder: Where everything is kept.
        seed: Of everything that is drawn.
        longest: Most seconds that a fault lasts.
        steady: Whether there are short tasks only, many of them, and records that soon go.
        topology: Of the servers of the shared state.

    Attributes:
        kinds: Faults that are injected.
    """

    def __init__(self, folder, seed=1, longest=4.0, log=print, steady=False, topology="one"):
        self.seed = seed
        self.random = random.Random(seed)
        self.steady = steady
        self.longest = longest
        self.log = log
        self.broker = RedisServer(Path(folder) / "broker").start()
        self.servers = TOPOLOGIES[topology](Path(folder) / "store", self.random, longest)
        self.kinds = (KINDS if topology == "one" else ENDS) + self.servers.kinds
        self.fleet = Fleet(
            folder, self.broker, self.servers, include=["tests.faults.jobs", "tests.support.tasks"],
            broker_transport_options={"visibility_timeout": VISIBILITY}, memsync_worker_ttl=4.0, memsync_batch_interval=0.05,
            worker_prefetch_multiplier=1, **({"memsync_default_ttl": STEADY_TTL} if steady else {}))
        self.workers = [self.fleet.start_worker("-c", "2") for _ in range(2)]
        self.sent, self.killed, self.received = [], {}, {}
        self.callers = None if topology == "one" else Callers(
            self.servers.url, f"{self.fleet.name}-callers", seed)
        self.injected, self.recoveries = Counter(), []
        self.enough = threading.Event()
        self.fleet.reader.subscribe("tasks/*/state", self._on_state)
        self._feeder = threading.Thread(target=self._feed, daemon=True)

    def _on_state(self, key, state):
        self.received[key.split("/")[-2]] = (state or {}).get("status")

    # -- the load

    def _feed(self):
        chance = random.Random(f"{self.seed} load")
        names = ("early", "late") if self.callers is None else ("early", "late", "again")
        while not self.enough.wait(0.03):
            if self._waiting() < BACKLOG:
                steps, pause = (3, 0.001) if self.steady else (chance.randrange(1, 20), chance.choice((0.001, 0.02, 0.1)))
                self._send(chance.choice(names), steps, pause, f"key-{chance.randrange(4)}")

    def _waiting(self):
        with self.broker.client() as client:
            return client.llen(self.fleet.name)

    def _send(self, name, *args):
        result = self.fleet.app.send_task(f"tests.faults.jobs.{name}", args)
        self.sent.append(result.id)
        return result

    # -- the faults

    def run(self, seconds):
        """Inject faults until the time is over, and let everything settle; return what is wrong."""
        self.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            kind = draw(self.random, self.seed, sum(self.injected.values()), self.kinds)
            took = self.inject(kind)
            faults = sum(self.injected.values())
            self.log(f"{time.time():.1f} {faults:5} faults, {len(self.sent):6} tasks; {kind}: "
                     f"{took:.1f} s until the next task was done", flush=True)
        return self.settle()

    def start(self):
        """Begin to send tasks, and to call."""
        self._feeder.start()
        if self.callers is not None:
            self.servers.keys = self.callers.keys
            self.callers.start()
        return self

    def inject(self, kind):
        """Inject a fault; return how long it took after that until a task that was sent then was done."""
        method = kind.replace(" ", "_")
        (getattr(self, f"_{method}", None) or getattr(self.servers, method))()
        self.injected[kind] += 1
        began = time.monotonic()
        probe = self._send("late", 1, 0.0, "probe")
        self._until(lambda: self._status(probe.id) == "SUCCESS", f"no task is done any more after: {kind}")
        self.recoveries.append(time.monotonic() - began)
        return self.recoveries[-1]

    def settle(self):
        """Let everything come to its end; return what is wrong."""
        self.enough.set()
        with contextlib.suppress(RuntimeError):
            self._feeder.join(10)
        self.servers.heal()
        if self.callers is not None:
            self.callers.end()
        deadline = time.monotonic() + SETTLE
        while (wrong := self._judge()) and time.monotonic() < deadline:
            self._restore()
            time.sleep(3)
        return wrong

    def _restore(self):
        """Deliver again what the broker gave to dead workers; kombu does so every 100 s only."""
        options = {"visibility_timeout": VISIBILITY}
        with self.fleet.app.connection(transport_options=options) as connection:
            connection.default_channel.qos.restore_visible(interval=1)

    def _judge(self):
        if self._waiting() or self.fleet.unacked():
            return [Wrong("the broker gives all tasks out", "all", self._waiting())]
        lines = self.fleet.notes_file.read_text().splitlines() if self.fleet.notes_file.exists() else []
        notes = [json.loads(line) for line in lines]
        try:
            records = {task_id: self.fleet.reader.get_task(task_id) for task_id in self.sent}
        except Exception as exc:
            return [Wrong("the shared state can be read", "all", repr(exc))]
        wrong = list(judge(self.sent, notes, self.killed, records, self.received))
        if self.callers is None:
            return wrong
        self.ledger = Ledger(self.callers, self.servers)
        return self.ledger.tasks(wrong, notes, self.killed, self.fleet.name) + self.ledger.judge()

    def _status(self, task_id):
        with contextlib.suppress(Exception):
            return self.fleet.status(task_id)
        return None

    def _until(self, check, message):
        eventually(check, timeout=SETTLE, message=message)

    def _pause(self):
        time.sleep(self.random.uniform(0.2, self.longest))

    def _kill(self, pid):
        self.killed[pid] = Kill(time.time())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _child(self):
        return self.random.choice(eventually(self.random.choice(self.workers).children, timeout=30))

    def _kill_child(self):
        self._kill(self._child())

    def _stop_child(self):
        pid = self._child()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._pause()
            os.kill(pid, signal.SIGCONT)

    def _kill_main(self):
        worker = self.workers.pop(self.random.randrange(len(self.workers)))
        self.killed.update(dict.fromkeys(worker.children(), Kill(time.time(), with_main=True)))
        worker.stop(signal.SIGKILL)
        self.workers.append(self.fleet.start_worker("-c", "2"))

    def _stop_main(self):
        worker = self.random.choice(self.workers)
        worker.signal(signal.SIGSTOP)
        self._pause()
        worker.signal(signal.SIGCONT)

    def _processes(self):
        """Start processes that write something and end, and check that it is there."""
        program = ("import sys; from celery_memsync import MemorySyncManager as M\n"
                   "memsync = M(url=sys.argv[1], namespace=sys.argv[2])\n"
                   "for n in range(10): memsync.write(f'written/{sys.argv[3]}/{n}', n)\n"
                   "memsync.force_sync(timeout=30)\n")
        marks = [f"{self.random.randrange(10 ** 9)}" for _ in range(5)]
        processes = [subprocess.Popen(
            [sys.executable, "-c", program, self.servers.url, self.fleet.name, mark], cwd=ROOT)
                     for mark in marks]
        codes = [process.wait(60) for process in processes]
        assert codes == [0] * len(marks), "a process that writes does not end well"
        keys = [f"written/{mark}/{number}" for mark in marks for number in range(10)]
        found = self.fleet.reader.read_many(keys)
        assert [found[key] for key in keys] == list(range(10)) * len(marks), found

    # -- nothing but a load

    def hold_steady(self, seconds):
        """Measure what the processes hold, without faults; return what grows, as lines."""
        self.start()
        rows, end = [], time.monotonic() + seconds
        began = time.monotonic()
        while time.monotonic() < end:
            time.sleep(5)
            if time.monotonic() > began + min(WARM_UP, seconds / 3):
                rows.append((time.monotonic(), self._held()))
        return [line for name in rows[0][1] for line in self._growth(name, rows)]

    def _held(self):
        held = {}
        processes = {"redis": self.servers.server.process.pid}
        for number, worker in enumerate(self.workers, 1):
            processes[f"main {number}"] = worker.process.pid
            processes.update({f"child {number}.{at}": pid for at, pid in enumerate(sorted(worker.children()), 1)})
        for name, pid in processes.items():
            status = Path(f"/proc/{pid}/status").read_text().split()
            held[name, "rss"] = int(status[status.index("VmRSS:") + 1])
            held[name, "threads"] = int(status[status.index("Threads:") + 1])
            held[name, "fds"] = len(os.listdir(f"/proc/{pid}/fd"))
        return held

    def _growth(self, name, rows):
        times, values = [at / 60 for at, _ in rows], [held[name] for _, held in rows]
        slope, _ = statistics.linear_regression(times, values)
        what, bound = " ".join(name), NOISE[name[1]]
        grown = slope if name[1] == "rss" else values[-1] - values[0]
        unit = "KB/min" if name[1] == "rss" else "more"
        self.log(f"{what:18} {values[0]:8} .. {values[-1]:8}  {grown:8.2f} {unit}", flush=True)
        if grown > bound:
            yield f"{what} grows: {grown:.2f} {unit}, more than {bound}"

    def close(self):
        self.enough.set()
        if self.callers is not None:
            self.callers.close()
        self.fleet.close()
        self.servers.close()
        self.broker.stop()


def draw(chance, seed, number, kinds):
    """Return the kind of a fault, drawn by seed and number only, not by what came before."""
    chance.seed(f"{seed} {number}")
    return chance.choice(kinds)


def main(argv=None):
    """Run it with the given options; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--steady", action="store_true")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="one")
    args = parser.parse_args(argv)
    # Those of several topologies run at the same time, with ports of their own as processes of pytest-xdist have.
    os.environ.setdefault("PYTEST_XDIST_WORKER", f"gw{list(TOPOLOGIES).index(args.topology)}")
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(folder, args.seed, steady=args.steady, topology=args.topology)
        try:
            wrong = soak.hold_steady(args.minutes * 60) if args.steady else soak.run(args.minutes * 60)
        finally:
            soak.close()
    if not args.steady:
        faults = ", ".join(f"{count} {kind}" for kind, count in soak.injected.most_common())
        print(f"faults: {sum(soak.injected.values())} ({faults})")
        if soak.callers is not None:
            print(soak.ledger.summary())
        print(f"seconds until the next task was done: median {statistics.median(soak.recoveries):.1f}, "
              f"worst {max(soak.recoveries):.1f}")
    print(f"tasks: {len(soak.sent)}, wrong: {len(wrong)}")
    for one in wrong[:20]:
        print(one)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
