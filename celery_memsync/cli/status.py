"""`celery memsync status`: the whole on one screen."""
from __future__ import annotations

from collections import Counter
from typing import Any

import click

from ..models.order import RUNNING, rank_of
from ..models.worker import GONE, WorkerRecord
from ..types import ListedTask, TaskState, WorkerDict
from .checks import unconsumed
from .command import command
from .output import (
    ago,
    as_lost,
    duration,
    figure,
    heartbeat_words,
    held_words,
    json_option,
    latency_of,
    mebibytes,
    memory_of,
    named,
    percent_cell,
    print_json,
    print_line,
    print_table,
    shorten,
)
from .usual import statistics_lines, statistics_of

#: What is counted for tasks of which something else than a status was recorded.
NO_STATUS = "-"

#: Newest tasks that are counted by status.
COUNTED = 1000


@command(examples=["status", "status --json"])
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show Redis, workers, and the newest tasks by status."""
    with memory_of(ctx) as memsync:
        latency = latency_of(memsync)
        info = memsync.runtime.store.read_server_info()
        records = memsync.get_workers()
        tasks = [as_lost(task, records) for task in memsync.get_tasks(limit=COUNTED)]
        held = memsync.locks()
        statistics = statistics_of(memsync)
        now = memsync.runtime.store.clock.now()
        interval = memsync.settings.heartbeat_interval
        namespace, address = memsync.settings.namespace, memsync.runtime.store.address
    counts = dict(Counter(str((task["state"] or {}).get("status", NO_STATUS)) for task in tasks).most_common())
    running = [task for task in tasks if _is_running(task["state"] or {})]
    server = {
        "address": address, "version": info.get("redis_version"), "used_memory": info.get("used_memory"),
        "maxmemory_policy": info.get("maxmemory_policy"), "uptime": info.get("uptime_in_seconds"), "latency": latency,
    }
    workers = [record.as_dict() for record in records]
    left = unconsumed(records, (task["state"] for task in tasks))
    queues, writers = {**_queues(workers), **dict.fromkeys(left)}, _writers(workers)
    locks = {"held": len(held), "waiting": sum(one.waiters or 0 for one in held)}
    if as_json:
        print_json(ctx, {
            "namespace": namespace, "redis": server, "workers": workers, "queues": queues,
            "tasks": counts, "locks": locks, "writers": writers, "running": running,
            "statistics": statistics})
        return
    print_line(ctx, f"Redis at {address}, namespace {namespace}")
    print_line(ctx, _server_words(server))
    print_line(ctx)
    _say_workers(ctx, records, now, interval)
    print_line(ctx)
    if queues:
        depths = ", ".join(
            f"{shorten(name)} {'-' if depth is None else depth}" for name, depth in queues.items() if name not in left)
        print_line(ctx, f"Queues: {depths or 'none is consumed'}")
    if left:
        pending = named([f"{name} ({count} pending)" for name, count in left.most_common()])
        print_line(ctx, f"Queues that no worker consumes: {pending}")
    _say_tasks(ctx, counts, len(tasks))
    for line in statistics_lines(statistics):
        print_line(ctx, line)
    print_line(ctx, f"Locks: {locks['held']} held, {locks['waiting']} waiting")
    renewing = [one for one in records if one.held_messages and one.status not in GONE]
    if renewing:
        print_line(ctx, f"Held messages: {held_words(renewing, now)}")
    if workers:
        numbers = ", ".join(f"{number} {name}" for name, number in writers.items())
        print_line(ctx, f"Writers: {numbers}")
    _say_running(ctx, running, now)


def _is_running(state: TaskState) -> bool:
    """Whether a task runs; of one without a status, which Celery has not sent, that is not known."""
    return state.get("status") is not None and rank_of(state["status"]) == RUNNING


def _server_words(server: dict[str, Any]) -> str:
    """Return what is known of the server, of which INFO may not be there."""
    answers = f"answers in {server['latency'] * 1000:.1f}ms"
    if server["version"] is None:
        return f"Redis {answers}; INFO is not available"
    return (f"Redis {shorten(server['version'])}, {mebibytes(server['used_memory'])} used, up {duration(server['uptime'])}, "
            f"{answers}, {shorten(server['maxmemory_policy'])}")


def _queues(workers: list[WorkerDict]) -> dict[str, int | None]:
    """Return how many messages are pending by queue, by the newest record, or None if that is unknown."""
    depths: dict[str, int | None] = {}
    alive = [one for one in workers if one["status"] not in GONE]
    for one in sorted(alive, key=lambda one: figure(one["last_beat"]) or 0):
        for name in map(str, one["queues"]):
            depth = figure(one["depths"].get(name))
            depths[name] = depths.get(name) if depth is None else int(depth)
    return dict(sorted(depths.items()))


def _writers(workers: list[WorkerDict]) -> dict[str, int]:
    """Return what the writers of the workers' main processes report, added up."""
    alive = [one for one in workers if one["status"] not in GONE]
    return {name: sum(int(figure(one["writer"].get(name)) or 0) for one in alive)
            for name in ("pending", "dropped", "conflicts")}


def _say_workers(ctx: click.Context, workers: list[WorkerRecord], now: float, interval: float) -> None:
    if not workers:
        print_line(ctx, "No workers found.")
        return
    rows = [
        [one.worker_id, one.status, one.pool or "-",
         "-" if one.status in GONE else f"{one.capacity.get('free', '-')}/{one.capacity.get('total', '-')}",
         one.counters.get("total", "-"),
         heartbeat_words(one, now, interval), ",".join(map(str, one.queues)) or "-"]
        for one in workers
    ]
    titles = ["WORKER", "STATUS", "POOL", "FREE", "RECEIVED", "HEARTBEAT", "QUEUES"]
    print_table(ctx, titles, rows, colour=1)


def _say_tasks(ctx: click.Context, counts: dict[str, int], total: int) -> None:
    if not counts:
        print_line(ctx, "No tasks found.")
        return
    numbers = ", ".join(
        f"{number} {'without a status' if name == NO_STATUS else shorten(name)}" for name, number in counts.items())
    print_line(ctx, f"Tasks: {numbers}" + (f" (of the newest {COUNTED})" if total >= COUNTED else ""))


def _say_running(ctx: click.Context, running: list[ListedTask], now: float) -> None:
    if not running:
        return
    print_line(ctx)
    rows = [_row(task, now) for task in running[:20]]
    print_table(ctx, ["RUNNING", "NAME", "PROGRESS", "RUNTIME", "MESSAGE"], rows)


def _row(task: ListedTask, now: float) -> list[object]:
    state, progress = task["state"] or {}, task["progress"]
    message = None if progress is None else progress["message"]
    return [task["id"], state.get("name") or "-", percent_cell(progress), ago(state.get("started_at"), now),
            shorten(message or "-", 60)]
