"""`celery memsync doctor`: what is wrong, and what to do about it."""
from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import click

from ..app import MemSync
from ..exceptions import StoreError
from ..models.worker import GONE, WorkerRecord
from ..store.acl import CHANNELS, KEYS, MissingRights
from .checks import (
    Finding,
    examine_clocks,
    examine_indexes,
    examine_latency,
    examine_locks,
    examine_names,
    examine_nodes,
    examine_persistence,
    examine_queues,
    examine_renewal,
    examine_settings,
    examine_visibility,
    read_scene,
)
from .command import command
from .output import duration, figure, json_option, latency_of, mebibytes, memory_of, named, print_json, print_line, shorten

#: The oldest server whose commands are all that is needed.
OLDEST = (6, 2)

#: Part of the memory or of the connections that Redis may use, above which it is nearly full.
FULL = 0.9

#: Seconds that a worker may take after its start until it consumes.
STARTING = 10.0

#: Seconds for which a lost worker is something wrong, while others are alive; its record stays for longer.
LOST_LATELY = 600.0


@command(examples=["doctor", "doctor --json"], exit_codes={0: "nothing is wrong", 1: "something is wrong"})
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look for what is wrong with Redis and the workers.

    The exit code is 1 if anything is.
    """
    with memory_of(ctx) as memsync:
        lacking = memsync.runtime.store.check_rights()
        findings = [Finding(True, f"Redis at {memsync.runtime.store.address}, namespace {memsync.settings.namespace}"),
                    *examine_rights(lacking)]
        # What else can't be looked at without them is passed over.
        with contextlib.suppress(*[StoreError] if any(lacking) else []):
            findings += _examined(ctx, memsync)
    if as_json:
        print_json(ctx, [one._asdict() for one in findings])
    else:
        for one in findings:
            mark = ("ok  ", "green") if one.fine else ("WARN", "red")
            print_line(ctx, mark, f"  {one.what}" + (f": {one.advice}" if one.advice else ""))
    if not all(one.fine for one in findings):
        ctx.exit(1)


def _examined(ctx: click.Context, memsync: MemSync) -> Iterator[Finding]:
    latency, info, workers = latency_of(memsync), memsync.runtime.store.read_server_info(), memsync.get_workers()
    scene = read_scene(ctx.obj.app, memsync, workers)
    yield from examine_redis(info)
    yield from examine_persistence(info)
    yield from examine_latency(latency)
    yield from examine_workers(workers, scene.now)
    yield from examine_formats(workers)
    yield from examine_names(memsync.runtime.store.read_worker_processes())
    yield from examine_queues(scene)
    yield from examine_clocks(workers)
    yield from examine_nodes(memsync.runtime.store.node_skews())
    yield from examine_settings(scene)
    yield from examine_visibility(scene)
    yield from examine_renewal(scene)
    yield from examine_indexes(scene)
    yield from examine_locks(scene)


def examine_rights(lacking: MissingRights) -> Iterator[Finding]:
    """Yield which rights the user of memsync_backend lacks, and which commands Redis does not know."""
    if lacking.unknown:
        yield Finding(False, f"Redis does not know: {' '.join(lacking.unknown).replace('|', ' ')}",
                      "6.2 or newer is needed, without rename-command for these, and without a proxy that hides them")
    if lacking.forbidden:
        names = {KEYS: "~<memsync_namespace>/*", CHANNELS: "&*"}
        listed = " ".join(names.get(right, f"+{right}") for right in lacking.forbidden)
        yield Finding(False, f"Redis does not allow its user: {listed}",
                      "ACL SETUSER gives rights; docs/howto/security.md has all that are needed")


def examine_redis(info: dict[str, Any]) -> Iterator[Finding]:
    """Yield the answer of INFO; {} if that is not allowed, or not known."""
    if not info:
        yield Finding(True, "Redis itself is not looked at", "that takes the right +info, and the command INFO")
        return
    version = str(info.get("redis_version"))
    if _version(version) >= OLDEST:
        yield Finding(True, f"Redis {shorten(version)}")
    else:
        yield Finding(False, f"Redis {shorten(version)} is too old", "6.2 or newer is needed")
    if info.get("role", "master") != "master":
        yield Finding(False, "this Redis is a replica, which takes no writes", "let memsync_backend name its master")
    yield from _examine_memory(info)
    clients, most = (figure(info.get(name)) or 0 for name in ("connected_clients", "maxclients"))
    if most and clients > FULL * most:
        yield Finding(False, f"{clients} of {most} connections to Redis are in use", "raise maxclients of Redis")


def _examine_memory(info: dict[str, Any]) -> Iterator[Finding]:
    names = ("used_memory", "maxmemory", "evicted_keys")
    used, most, evicted = (figure(info.get(name)) or 0 for name in names)
    policy = str(info.get("maxmemory_policy"))
    share = f"{mebibytes(used)} are in use, " + (f"of {mebibytes(most)}" if most else "without a limit")
    if most and used > FULL * most:
        yield Finding(False, share, "raise maxmemory of Redis, or shorten memsync_default_ttl")
    else:
        yield Finding(True, share)
    if evicted:
        yield Finding(False, f"Redis has evicted {evicted} keys since its start",
                      "states and locks may be among them; raise maxmemory")
    elif most and policy != "noeviction":
        yield Finding(False, f"when it is full Redis evicts keys ({shorten(policy)})",
                      "states and locks may be among them; set maxmemory-policy to noeviction")


def examine_workers(workers: Sequence[WorkerRecord], now: float) -> Iterator[Finding]:
    """Yield the findings about workers.

    Args:
        now: Redis's time, in seconds.
    """
    counts = Counter(one.status for one in workers)
    alive = [one for one in workers if one.status not in GONE]
    if alive:
        listed = ", ".join(f"{number} {shorten(status)}" for status, number in counts.items())
        yield Finding(True, f"workers: {listed}")
    else:
        yield Finding(False, "no worker is alive",
                      "start one; it takes part if its app sets memsync_backend or makes a MemSync(app)")
    lost = [one for one in workers if one.status == "lost"]
    lately = [one.worker_id for one in lost if now - (one.last_beat or 0.0) < LOST_LATELY or not alive]
    if lately:
        yield Finding(False, f"lost: {named(lately)}", "see whether they were killed, or are cut off from Redis")
    earlier = [one.worker_id for one in lost if one.worker_id not in lately]
    if earlier:
        yield Finding(True, f"lost more than {duration(LOST_LATELY)} ago: {named(earlier)}")
    deaf = [one.worker_id for one in alive if one.consuming is False and one.status != "draining" and not _starting(one)]
    if deaf:
        yield Finding(False, f"alive, but consume nothing: {named(deaf)}", "see their logs, or start them again")
    for name in ("celery", "celery-memsync"):
        found = sorted({str(one.versions[name]) for one in alive if name in one.versions})
        if len(found) > 1:
            yield Finding(False, f"workers have different versions of {name}: {named(found)}", "bring all to the same")


def examine_formats(workers: Sequence[WorkerRecord]) -> Iterator[Finding]:
    """Yield whether live workers know different formats of what is shared."""
    known: dict[int, list[str]] = {}
    for one in workers:
        if one.status not in GONE and type(one.format) is int:
            known.setdefault(one.format, []).append(one.worker_id)
    if len(known) < 2:
        return
    listed = "; ".join(f"{number} ({named(names)})" for number, names in sorted(known.items()))
    lowest, highest = min(known), max(known)
    yield Finding(
        False, f"the newest formats that workers know differ: {listed}",
        f"format {lowest} is written until all know {highest}; bring all to the same release" if highest - lowest == 1 else
        "a release reads its own format and the one before; upgrade by one release at a time")


def _starting(one: WorkerRecord) -> bool:
    started_at, last_beat = figure(one.started_at), figure(one.last_beat)
    return started_at is not None and last_beat is not None and last_beat - started_at < STARTING


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split(".")[:2])
