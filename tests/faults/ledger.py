"""Judge what callers were answered by what is in Redis, and by what faults excuse."""
from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

from tests.faults.callers import LEASE, TIMEOUT
from tests.faults.checker import UNRECORDED, Wrong
from tests.faults.servers import BY_CHANCE, GRACE, LAG

#: Seconds by which a call may miss its deadline on a busy machine.
LATE = 2.0

#: Calls about one key.
SINGLE = {"read own", "read", "read version", "change", "acquire", "release"}

#: Calls about a list.
LISTS = {"counters", "enqueue", "dequeue", "complete"}

#: Seconds after which a holder has learnt at the latest that its lock is lost.
LEARNT = LEASE / 3 + 1.0


#: Seconds after which all that a task has recorded is in Redis.
SETTLED = 1.5


def _judge_runs(task_id, rows, killed):
    """Yield what is wrong with how often a task ran that is sent again if its worker is lost."""
    begins = [row for row in rows if row["what"] == "begin" and row["name"].endswith("again")]
    fresh = [row for row in begins if not row["redelivered"]]
    for row in fresh[:-1]:
        if row["pid"] not in killed:
            yield Wrong("no task of a living worker is run again", task_id, rows)
    if fresh and fresh[-1]["pid"] in killed and not any(row["what"] == "end" for row in rows):
        kill = killed[fresh[-1]["pid"]]
        if kill.with_main and kill.at - fresh[-1]["at"] > UNRECORDED:
            yield Wrong("a task of a lost worker is run again", task_id, rows)


def parse(raw):
    """Return version and value of an entry that is alone in its key; 0 and None if there is none."""
    if not raw:
        return 0, None
    header, body, *_ = raw.decode().split("\n")
    return int(header.split()[0]), json.loads(body) if body else None


class Ledger:
    """The judge.

    Args:
        callers: What was called.
        servers: The servers, and what their faults excuse.
    """

    def __init__(self, callers, servers):
        self.callers, self.faults, self.raw = callers, servers.faults, servers.raw
        self._lists = servers.lists.format(callers.namespace)
        self.is_cluster = bool(servers.missed)

    def excused(self, excuses, key, begin, end=None):
        """Whether a fault excuses what came of a key at some time from ``begin`` to ``end``."""
        end = begin if end is None else end
        return any(fault.excuses in excuses and fault.covers(key, begin, end) for fault in self.faults)

    def judge(self):
        """Return what is wrong."""
        return [Wrong("no call raises anything else", "a caller", text) for text in self.callers.failed] + [
            wrong for judge in (
                self.calls, self.own_keys, self.shared_keys, self.locks, self.counters, self.queue, self.mirrors)
            for wrong in judge()]

    def summary(self):
        """Return what the callers did, in a line or two."""
        rows = self.callers.rows
        took = sorted(
            row["answered"] - row["called"] - row["wait"] for row in rows if self._is_healthy(row))
        failed = sum(row["how"] in ("maybe", "not") for row in rows)
        busy = sum(fault.end - fault.begin for fault in self.faults if fault.excuses == "busy")
        text = (f"calls: {len(rows)}, {failed} not done for their node was away; locks held: {len(self.callers.grants)}; "
                f"masters replaced by chance: {sum(fault.kind == BY_CHANCE for fault in self.faults) // 3}; "
                f"{busy:.0f} s in which the machine was too busy to blame calls that fail")
        if took:
            text += (f"\ndone on other nodes meanwhile: {len(took)}, in {took[len(took) // 2] * 1000:.0f} ms (median), "
                     f"{took[len(took) * 99 // 100]:.2f} s (99 of 100), {took[-1]:.2f} s (all)")
        return text

    def _is_healthy(self, row):
        """Whether a call was about a node that was there while another one was away."""
        away = [fault for fault in self.faults
                if fault.excuses == "away" and fault.begin <= row["called"] <= fault.end - GRACE]
        return row["what"] in SINGLE and away and not self.excused(
            ("away",), row["key"], row["called"], row["answered"])

    # -- tasks

    def tasks(self, wrong, notes, killed, namespace):
        """Return what is wrong with tasks and their locks and not excused.

        Args:
            wrong: What is wrong by their notes alone.
            namespace: That of the tasks.
        """
        by_task = defaultdict(list)
        for row in notes:
            by_task[row["id"]].append(row)
        kept = [one for one in wrong if not self._is_excused(one, by_task.get(one.about), killed, namespace)]
        return kept + [one for task_id, rows in by_task.items() for one in _judge_runs(task_id, rows, killed)]

    def _is_excused(self, wrong, rows, killed, namespace):
        if rows is None:
            times = [row["at"] for row in wrong.facts if isinstance(row, dict)] or [0.0]
            return self.excused(("loss", "ahead"), f"{namespace}/locks/{{{wrong.about}}}", min(times) - LEASE, max(times))
        key, kills = f"{namespace}/tasks/{{{wrong.about}}}/", [killed[row["pid"]].at for row in rows if row["pid"] in killed]
        begin, end = rows[0]["at"] - LAG, max([row["at"] for row in rows] + kills) + SETTLED
        if "recorded as it ran" in wrong.claim and wrong.facts[:1] == ("STARTED",):
            # In a cluster it is in no list yet, and so it is not found if its worker dies before that is written, too.
            if self.is_cluster and any(kill <= rows[-1]["at"] + UNRECORDED for kill in kills):
                return True
        return self.excused(("loss", "away") if kills else ("loss",), key, begin, end) or (
            "subscriber" in wrong.claim and self.excused(("missed",), key, begin, end))

    # -- calls

    def calls(self):
        """Calls end by their deadlines, and fail only if their node is away."""
        for row in self.callers.rows:
            took = row["answered"] - row["called"]
            if took > TIMEOUT + row["wait"] + LATE:
                yield Wrong("a call ends by its deadline", row["key"], (took, row, self._near(row)))
            if row["how"] not in ("maybe", "not"):
                continue
            if row["what"] == "sync":
                yield from self._sync(row)
            elif not self.excused(
                    ("away", "busy", "moved") if row["what"] in LISTS else ("away", "busy"),
                    row["key"], row["called"], row["answered"]):
                yield Wrong("a call on a node that is there is done", row["key"], (row, self._near(row)))

    def _sync(self, row):
        """force_sync fails only if something is away, and names an entry of that."""
        away = [fault for fault in self.faults if fault.excuses in ("away", "moved", "busy")
                and fault.begin <= row["answered"] and row["called"] <= fault.end]
        if not away:
            yield Wrong("force_sync is done while all nodes are there", "", (row, self._near(row)))
        elif all(fault.slots is not None for fault in away) and not any(
                name in row["error"] and self.excused(
                    ("away", "moved"), key, row["called"], row["answered"])
                for name, key in self._written()):
            yield Wrong("force_sync names what is missing", "", (row, self._near(row)))

    def _near(self, row):
        """Return the faults at about the time of a call, in seconds from then, and whether they concern its key."""
        return [(fault.kind, fault.excuses, round(fault.begin - row["called"], 2),
                 round(fault.end - row["called"], 2),
                 fault.covers(row["key"], fault.begin, fault.end)) for fault in self.faults
                if fault.begin <= row["answered"] + 5 and row["called"] - 15 <= fault.end]

    def _written(self):
        """Yield what force_sync may name, and a key in the same slot."""
        yield f"{self.callers.namespace}/coordination", self.callers.home
        yield "missing in lists and counters", self.callers.home
        for key in self.callers.wrote:
            yield key, key

    # -- entries

    def own_keys(self):
        """What one thread wrote last, or was answered to be in Redis, is there."""
        synced = defaultdict(list)
        for row in self.callers.rows:
            if row["what"] == "sync" and row["how"] == "done":
                for key, at in row["states"].items():
                    synced[key].append((row["answered"], at))
        for row in self.callers.rows:
            if row["what"] in ("read own", "read") and row["how"] == "done":
                before = [at for when, at in synced[row["key"]] if when < row["called"]]
                first = row["at"] if row["what"] == "read own" else max(before, default=-1)
                if not self._may_be(
                        row["key"], first, row["result"], row["called"], row["answered"]):
                    states = self.callers.states[row["key"]]
                    yield Wrong("a read finds what was written before", row["key"], (row, states[max(first, 0):][:20]))
        for key, states in self.callers.states.items():
            value = parse(self.raw(key))[1]
            last = len(states) - 1
            if value != states[last][1]:
                if not self.excused(("loss",), key, states[last][0], states[last][0] + TIMEOUT):
                    yield Wrong("what was written last is there", key, (value, states[-10:], synced[key][-3:]))

    def _may_be(self, key, first, value, called, answered):
        """Whether a read may find a value: that of one of the states from ``first`` on."""
        states = self.callers.states[key]
        if value in [state for _, state in states[max(first, 0):]] or first < 0 and value is None:
            return True
        # A former master may have answered.
        return self.excused(("loss",), key, states[max(first, 0)][0], answered) or self.excused(
            ("away",), key, called, answered)

    def shared_keys(self):
        """A change that was done has a version of its own, follows the one it expected, and is seen by all after it."""
        by_key = defaultdict(list)
        for row in self.callers.rows:
            if row["what"] in ("change", "read version") and row["how"] == "done":
                by_key[row["key"]].append(row)
        for key, rows in by_key.items():
            version, value = parse(self.raw(key))
            end = float("inf")
            final = {
                "what": "read version", "result": version, "called": end, "answered": end,
                "value": value}
            yield from self._versions(key, [*sorted(rows, key=lambda row: row["answered"]), final])

    def _versions(self, key, rows):
        by_version, done = {}, []
        for row in rows:
            for before in reversed(done):
                if before["answered"] >= row["called"]:
                    continue
                is_older = row["result"] < before["result"] + (row["what"] == "change")
                if is_older and not self._undone(key, before, row):
                    yield Wrong("versions do not go backward", key, (before, row))
                break
            if row["what"] == "change":
                twin = by_version.setdefault(row["result"], row)
                if twin["value"] != row["value"] and not self._undone(key, twin, row):
                    yield Wrong("no two changes have one version", key, (twin, row))
                by_version[row["result"]] = row
            done.append(row)
        last = by_version.get(rows[-1]["result"])
        if last is not None and last["value"] != rows[-1]["value"] and not self._undone(key, last, last):
            yield Wrong("what was changed last is there", key, (last, rows[-1]))

    def _undone(self, key, before, row):
        """Whether the answer of one call may be undone when the other is answered, which a former master may have done."""
        return self.excused(("loss",), key, before["called"], before["answered"]) or self.excused(
            ("away",), key, row["called"], row["answered"])

    # -- locks

    def locks(self):
        """Fences grow, and no caller has a lock that another one owns."""
        by_key = defaultdict(list)
        for grant in self.callers.grants:
            by_key[grant["key"]].append(grant)
        for key, grants in by_key.items():
            by_time = sorted(grants, key=lambda grant: grant["granted"])
            for one, other in pairwise(by_time):
                is_wrong = one["granted"] < other["called"] and one["fence"] >= other["fence"]
                if is_wrong and not self.excused(("loss",), key, one["called"], one["granted"]):
                    yield Wrong("fences grow", key, (one, other))
            by_fence = sorted(grants, key=lambda grant: grant["fence"])
            for one, other in pairwise(by_fence):
                if one["fence"] == other["fence"]:
                    yield Wrong("no two have one fence", key, (one, other))
                are_together = other["granted"] < one["owned"] and one["granted"] < other["owned"]
                if are_together and not self._may_overlap(key, one, other):
                    yield Wrong("no two callers own one lock", key, (one, other))

    def _may_overlap(self, key, one, other):
        """Whether a lock was free although a caller had it by its own clock, which its next renewal shows."""
        return one["owned"] < other["granted"] + LEARNT and (
            self.excused(("ahead",), key, one["called"], other["granted"])
            or self.excused(("loss",), key, one["called"], other["granted"]))

    # -- lists

    def counters(self):
        """Nothing is counted twice, and nothing left out but what a failover has undone."""
        home = self.callers.home
        raw = self.raw(f"{self._lists}/metrics", "HGETALL") or []
        found = dict(zip((name.decode() for name in raw[::2]), map(json.loads, raw[1::2])))
        for name, times in self.callers.added.items():
            undone = sum(self.excused(("loss", "away"), home, when, when + TIMEOUT) for when in times)
            if not len(times) - undone <= found.get(name, 0) <= len(times):
                yield Wrong("a counter is exact", name, (found.get(name, 0), len(times), undone))

    def queue(self):
        """What was put into the queue is taken once, or is still there."""
        home, put, taken = self.callers.home, {}, defaultdict(list)
        for row in self.callers.rows:
            if row["what"] == "enqueue" and row["how"] == "done":
                put[row["id"]] = row
            elif row["what"] == "dequeue" and row.get("result"):
                taken[row["result"]].append(row)
        left = {name.decode() for part in ("pending", "processing")
                for name in self.raw(f"{self._lists}/{part}", "ZRANGE", 0, -1)}
        for task_id, row in put.items():
            is_lost = task_id not in taken and task_id not in left
            if is_lost and not self.excused(("loss",), home, row["called"], row["answered"]):
                yield Wrong("what was put into the queue is there", task_id, row)
        for task_id, rows in taken.items():
            if len(rows) > 1 and not self.excused(
                    ("loss",), home, rows[0]["called"], rows[-1]["answered"]):
                yield Wrong("what is taken from the queue is taken once", task_id, rows)

    # -- subscriptions

    def mirrors(self):
        """A subscriber ends at what is there, and receives no version after a higher one."""
        for mirror in self.callers.mirrors:
            highest = {}
            for at, key, version in mirror.received:
                if version and version < highest.get(key, 0) and not self.excused(("loss",), key, 0, at):
                    yield Wrong(
                        "a subscriber receives no earlier version", key,
                        (highest[key], version, at))
                highest[key] = version
            for key, last in self.callers.wrote.items():
                version, value = parse(self.raw(key))
                if mirror.values.get(key) != value and not self.excused(
                        ("missed",), key, last, last + TIMEOUT):
                    yield Wrong("a subscriber ends at what is there", key, (mirror.values.get(key), value, version))
