"""Judges what processes did with shared state, and what they saw of it, without its code.

A history is a list of rows, dicts, by ``op``; times are of one monotonic clock, ``p`` is a process and ``s`` one
thread of it.  Every value is written once.

    write       p, s, key, value (None: deleted), how ("buffered", or "cas": a compare-and-set),
                ttl, begin, end, error (None, "ConflictError", "StoreError": it may be stored or
                not); of a compare-and-set: expected, version, saw (what it replaces)
    read        p, s, key, value, version (None: not known), fresh (whether it had to be
                read from the store), begin, end
    stored      p, key, value, at: the writer received the confirmation that it is stored
    synced      p, begin, end: all that p had written before is stored
    failed      p, at: a batch may have been stored, or not
    subscribed  p, sub, pattern, begin, end; ``unsubscribed`` p, sub
    received    p, sub, key, value, version, at; ``doubted`` p, sub, key, at
    fault       kind, begin, end; after the kind "empty" nothing is stored any more
    final       key, value, version: what is there when all is quiet

The name of a key shows what may be done with it: ``solo`` keys and agents have one writer, ``open``
ones have several, ``cas`` ones are written by compare-and-set, ``mixed`` ones in every way,
``brief`` ones have a ttl.  The value of a ``state`` is a dict, each field of which is a register
of one writer.
"""
from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import NamedTuple

#: Most by which two processes' ideas of the store's time may differ, in seconds.
CLOCKS = 0.05


class Violation(NamedTuple):
    """A claim that does not hold, and the rows that contradict it."""

    claim: str
    rows: list


def kind_of(key):
    """Return what may be done with a key."""
    if key.endswith("/state"):
        return "state"
    return "open" if key.endswith("/agents/all") else "solo" if "/agents/" in key or "#" in key else key.split("/")[0]


def text_of(value):
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


class History:
    """What happened.

    Args:
        bound: Seconds after which nothing that was replaced may be read any more.
    """

    def __init__(self, rows, bound):
        self.bound = bound
        self.rows = defaultdict(list)
        for row in rows:
            self.rows[row["op"]].append(row)
        end = float("inf")
        self.rows["read"] += [
            {**row, "p": "end", "s": "end", "fresh": True, "begin": end, "end": end} for row in self.rows["final"]]
        self.emptied = sorted((row["begin"], row["end"]) for row in self.rows["fault"] if row["kind"] == "empty")
        self.edges = []
        for begin, end in self.emptied:
            if self.edges and begin <= self.edges[-1]:
                self.edges[-1] = end + bound
            else:
                self.edges += [begin, end + bound]
        self.worst, self.worst_rows = 0.0, ()
        self.checked = 0
        self.writes, self.reads, self.stored = (
            self._by_key(self.rows[op]) for op in ("write", "read", "stored"))
        self._split_states()
        self.known = {(key, text_of(row["value"])): row for key, rows in self.writes.items() for row in rows}
        self.acked_at = {
            (key, text_of(row["value"])): row["end"] for key, rows in self.writes.items() for row in rows
            if row["how"] == "cas" and not row["error"]}
        for key, rows in self.stored.items():
            for row in rows:
                self.acked_at.setdefault((key, text_of(row["value"])), row["at"])
        self.versions, self.values = {}, {}

    def _stale(self, seconds, *rows):
        if seconds > self.worst:
            self.worst, self.worst_rows = seconds, rows

    @staticmethod
    def _by_key(rows):
        found = defaultdict(list)
        for row in rows:
            found[row["key"]].append(row)
        return found

    def _split_states(self):
        """Make a register of each field of a state."""
        for key in [key for key in self.writes if kind_of(key) == "state"]:
            fields = {name for row in self.writes[key] for name in row["value"]}
            for name in fields:
                for table in (self.writes, self.stored):
                    table[f"{key}#{name}"] = [
                        {**row, "value": row["value"][name]} for row in table[key] if name in (row["value"] or ())
                        and name.startswith(f"{row['p']}.")]

    def _reads_of(self, key):
        state, _, name = key.partition("#")
        for row in self.reads[state]:
            yield {**row, "value": (row["value"] or {}).get(name), "version": None} if name else row

    def era(self, begin, end=None):
        """Return how often all was emptied before; None while something from before may still be seen."""
        at = bisect_left(self.edges, begin)
        return None if at % 2 or end is not None and at != bisect_left(self.edges, end) else at // 2

    def anew(self, era):
        """Return since when an era's writes are not lost, and when the one before was over."""
        if not era:
            return float("-inf"), float("-inf")
        over = self.edges[2 * era - 1] - self.bound
        return over, self.edges[2 * era - 2]

    # -- what holds for all keys

    def violations(self):
        """Return every claim that does not hold."""
        found = [*self._observe()]
        for key in sorted({*self.writes, *self.reads}):
            kind = kind_of(key)
            if kind == "solo":
                found += self._check_register(key)
            elif kind == "brief":
                found += self._check_brief(key)
            else:
                found += self._check_versions_read(key)
            if kind == "open":
                found += self._check_last_write(key)
            found += self._check_compare_and_set(key)
        found += self._check_counts()
        found += self._check_received()
        found += self._check_ends()
        return found

    def _is_guess(self, row):
        """Whether a version may be what a process expects of a write of its own that waits."""
        key, value = row["key"], row["value"]
        if kind_of(key) == "state":
            own = {name: text for name, text in (value or {}).items() if name.startswith(f"{row['p']}.")}
            return any(
                self.acked_at.get((f"{key}#{name}", text), float("inf")) >= row["begin"] for name, text in own.items())
        write = self.known.get((key, text_of(value)))
        return bool(write and write["p"] == row["p"]
                    and self.acked_at.get((key, text_of(value)), float("inf")) >= row["begin"])

    def _observe(self):
        """Yield versions with two values, values with two versions, and unknown values."""
        accepted = [row for row in self.rows["write"] if row.get("version") and not row["error"]]
        read = [row for row in self.rows["read"] if row["version"] and not self._is_guess(row)]
        for row in [*accepted, *read, *self.rows["received"]]:
            key, value, version = row["key"], text_of(row["value"]), row["version"]
            if row["value"] is None or kind_of(key) == "state":
                continue
            write = self.known.get((key, value))
            if write is None or write["error"] == "ConflictError":
                yield Violation("what is seen was written, and not refused", [row, write])
            era = self.era(row["at"]) if "at" in row else self.era(row["begin"], row["end"])
            if era is None or kind_of(key) == "brief":
                continue
            before = self.values.setdefault((key, era, version), row)
            if text_of(before["value"]) != value:
                yield Violation("a version is one write", [before, row, self.known.get((key, before["value"])), write])
            before = self.versions.setdefault((key, era, value), row)
            if before["version"] != version:
                yield Violation("a write is done once", [before, row, write])

    # -- keys of one writer

    def _check_register(self, key):
        writes = [row for row in self.writes[key] if row["error"] != "ConflictError"]
        begins = [row["begin"] for row in writes]
        sure = [at for at, row in enumerate(writes) if not row["error"]]
        sure_ends = [writes[at]["end"] for at in sure]
        owner = writes[0]["p"] if writes else None
        where = {text_of(row["value"]): at for at, row in enumerate(writes) if row["value"] is not None}
        deleted = [-1, *(at for at, row in enumerate(writes) if row["value"] is None)]
        acks = sorted(self._acks(key, sure, sure_ends, where, owner))
        ack_times = [moment for moment, _ in acks]
        acked = list(accumulate((at for _, at in acks), max))
        seen = {}
        for row in self._reads_of(key):
            era = self.era(row["begin"], row["end"])
            if era is None:
                seen.pop(row["s"], None)
                continue
            self.checked += 1
            since, before = self.anew(era)
            low = self._latest(ack_times, acked, row["begin"] - (0 if row["fresh"] else self.bound))
            own = self._latest(sure_ends, sure, row["begin"]) if row["p"] == owner else -1
            must = max(low, own)
            must = -1 if must < 0 or begins[must] < since else must
            last_era, last, last_row = seen.get(row["s"], (era, -1, None))
            at_least = max(must, last if last_era == era else -1)
            at = self._location(row, where, deleted, at_least, bisect_right(begins, row["end"]))
            if at is None:
                yield Violation("what is read was written", [row, last_row])
                continue
            if at < own and at < must:
                yield Violation("a process reads its own writes", [row, *writes[max(0, at):at + 1], writes[own]])
            elif at < must:
                yield Violation("nothing is read that was replaced long before",
                                [row, *writes[max(0, at):at + 1], writes[must]])
            elif at < at_least:
                yield Violation("a key is not read backward", [last_row, row])
            elif row["value"] is not None and self.acked_at.get((key, text_of(row["value"])), before) < before:
                yield Violation(
                    "what was lost with all data is not read any more", [row, writes[at]])
            else:
                first = bisect_right(acked, at)
                if row["value"] is not None and first < len(acked) and begins[acked[first]] > since:
                    self._stale(row["begin"] - ack_times[first], row, writes[acked[first]])
            seen[row["s"]] = (era, max(at, at_least), row)

    @staticmethod
    def _location(row, where, deleted, at_least, end):
        """Return which write was read, of deletions the one that may best be; None for what was not written before."""
        if row["value"] is None:
            after = deleted[bisect_left(deleted, at_least):][:1]
            if after and after[0] < end:
                return after[0]
            return deleted[bisect_left(deleted, at_least) - 1]
        at = where.get(text_of(row["value"]))
        return None if at is None or at >= end else at

    def _acks(self, key, sure, sure_ends, where, owner):
        """Yield times with the write that is known to be stored then, or one after it."""
        for row in self.stored[key]:
            if row["value"] is not None and text_of(row["value"]) in where:
                yield row["at"], where[text_of(row["value"])]
        for row in self.rows["synced"]:
            at = bisect_right(sure_ends, row["begin"])
            if row["p"] == owner and at:
                yield row["end"], sure[at - 1]

    @staticmethod
    def _latest(times, table, moment):
        at = bisect_right(times, moment)
        return table[at - 1] if at else -1

    def _check_counts(self):
        """Yield keys of one writer whose version is not the number of their writes."""
        if self.emptied:
            return
        failed = defaultdict(int)
        for row in self.rows["failed"]:
            failed[row["p"]] += 1
        for row in self.rows["final"]:
            writes, stored = self.writes[row["key"]], self.stored[row["key"]]
            if kind_of(row["key"]) != "solo" or row["version"] is None or not writes:
                continue
            unknown = failed[writes[0]["p"]] + sum(write["error"] == "StoreError" for write in writes)
            if not len(stored) <= row["version"] <= len(stored) + unknown:
                yield Violation("a version counts the writes that were accepted",
                                [row, {"stored": len(stored), "unknown": unknown}, *stored[-2:]])

    # -- keys of many writers

    def _version_of(self, row, era):
        """Return the version of what was read, None if it is not known for sure."""
        if row["version"] is not None:
            return None if self._is_guess(row) else row["version"]
        if row["value"] is None or self._is_guess(row):
            return None
        seen = self.versions.get((row["key"], era, text_of(row["value"])))
        return seen and seen["version"]

    def _acks_of_versions(self, key):
        """Return, by era and process (None: all), times with the greatest version that was stored before."""
        acks = defaultdict(list)
        for row in sorted(self.stored[key], key=lambda row: row["at"]):
            write = self.known.get((key, text_of(row["value"])))
            for era in range(len(self.edges) // 2 + 1):
                seen = self.versions.get((key, era, text_of(row["value"])))
                if seen and write and write["begin"] > self.anew(era)[0]:
                    for who in (None, row["p"]):
                        acks[era, who].append((row["at"], seen["version"], row))
        return {who: ([ack[0] for ack in rows], list(accumulate(rows, lambda old, new: max(old, new, key=_version))))
                for who, rows in acks.items()}

    def _check_versions_read(self, key):
        may_go = kind_of(key) == "mixed"
        acks = self._acks_of_versions(key)
        last = {}
        for row in self.reads[key]:
            era = self.era(row["begin"], row["end"])
            if era is None:
                continue
            before = last.get((row["s"], era))
            version = self._version_of(row, era)
            if row["value"] is None and not may_go and before is not None:
                yield Violation("what was read does not vanish", [before[1], row])
            if version is None:
                continue
            self.checked += 1
            if before is not None and version < before[0]:
                yield Violation("a key is not read backward", [before[1], row])
            last[row["s"], era] = (version, row)
            times, table = acks.get((era, None), ((), ()))
            at = bisect_left(times, row["begin"] - (0 if row["fresh"] else self.bound))
            if at and table[at - 1][1] > version:
                yield Violation("nothing is read that was replaced long before", [row, table[at - 1][2]])
            own_times, own = acks.get((era, row["p"]), ((), ()))
            own_at = bisect_left(own_times, row["begin"])
            if own_at and own[own_at - 1][1] > version:
                yield Violation("a process reads its own writes", [row, own[own_at - 1][2]])
            first = bisect_right(table, version, key=_version)
            if first < len(table) and times[first] < row["begin"]:
                self._stale(row["begin"] - times[first], row, table[first][2])

    def _check_brief(self, key):
        for row in self.reads[key]:
            write = self.known.get((key, text_of(row["value"])))
            if write is not None and float("inf") > row["begin"] > write["end"] + write["ttl"] + CLOCKS:
                yield Violation("nothing is read after its time", [row, write])

    def _check_last_write(self, key):
        """Of several writes the last wins, and each writer sees its own write or a later one."""
        by_process = defaultdict(list)
        for row in sorted(self.writes[key], key=lambda row: row["end"]):
            by_process[row["p"]].append(row)
        for row in self.reads[key]:
            era = self.era(row["begin"], row["end"])
            if era is None:
                continue
            own = by_process[row["p"]]
            is_final = row["p"] == "end"
            writes = [write for rows in by_process.values() for write in rows] if is_final else own
            at = bisect_right(own, row["begin"], key=lambda write: write["end"])
            mine = max(writes if row["p"] == "end" else writes[max(0, at - 1):at],
                       key=lambda write: write["begin"], default=None)
            if mine is None or mine["begin"] < self.anew(era)[0]:
                continue
            theirs = self.known.get((key, text_of(row["value"])))
            if theirs is None or theirs["end"] < mine["begin"] - (CLOCKS if theirs["s"] != mine["s"] else 0):
                yield Violation("the last of several writes wins", [row, theirs, mine])

    def _check_compare_and_set(self, key):
        for row in self.writes[key]:
            if row["how"] != "cas" or row["error"]:
                continue
            if row["expected"] and row["version"] != row["expected"] + 1:
                yield Violation("a compare-and-set makes the next version", [row])
            was = self.values.get((key, self.era(row["begin"]), row["expected"]))
            if was is not None and was["value"] != row["saw"] and row["saw"] is not None:
                yield Violation("a compare-and-set replaces what it read", [row, was])

    # -- what subscribers received

    def _check_received(self):
        last = {}
        rows = [*self.rows["received"], *self.rows["doubted"]]
        for row in sorted(rows, key=lambda row: row["at"]):
            who = row["p"], row["sub"], row["key"]
            before = last.get(who)
            if row["op"] == "doubted":
                last.pop(who, None)
                continue
            begins_anew = kind_of(row["key"]) == "brief" or before is not None and any(
                begin < row["at"] and end > before["at"] - self.bound for begin, end in self.emptied)
            if before is not None and row["version"] < before["version"] + (not begins_anew):
                yield Violation("of each key newer and newer versions are received", [before, row])
            last[who] = row

    def _check_ends(self):
        """Every subscription at the end has received what is there at the end."""
        ended = {(row["p"], row["sub"]) for row in self.rows["unsubscribed"]}
        received, doubted = {}, {}
        for table, op in ((received, "received"), (doubted, "doubted")):
            for row in self.rows[op]:
                table[row["p"], row["sub"], row["key"]] = row
        for sub in self.rows["subscribed"]:
            for final in self.rows["final"]:
                who = sub["p"], sub["sub"], final["key"]
                if who[:2] in ended or not fnmatchcase(final["key"], sub["pattern"]):
                    continue
                row, doubt = received.get(who), doubted.get(who)
                if final["value"] is None:
                    if row is not None and (doubt is None or doubt["at"] < row["at"]):
                        yield Violation("a subscriber ends with what is there", [sub, row, final])
                elif kind_of(final["key"]) == "brief":
                    continue  # it may have been over before all could look
                elif (row is not None or self._changed_since(final, sub)) and (
                        row is None or row["version"] != final["version"] or row["value"] != final["value"]):
                    yield Violation("a subscriber ends with what is there", [sub, row, doubt, final])

    def _changed_since(self, final, sub):
        if kind_of(final["key"]) != "state":
            write = self.known.get((final["key"], text_of(final["value"])))
            return write is not None and write["begin"] > sub["end"]
        return any(self.known[f"{final['key']}#{name}", text]["begin"] > sub["end"]
                   for name, text in final["value"].items())


def _version(ack):
    return ack[1]
