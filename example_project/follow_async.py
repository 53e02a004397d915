"""Follow tasks from asyncio to their ends, and check what was seen of them.

A Redis and a worker are started, and stopped at the end.
"""
from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import DemoError, Worker, redis
from proj import survey

from celery_memsync import AsyncMemSync, StoreError

#: Modules whose words are counted, and tasks that count them.
LIMIT, PARTS = 24, 4

#: Most seconds to wait for a task.
PATIENCE = 60.0


def main() -> int:
    """Send the tasks and follow them; return the exit code."""
    try:
        with contextlib.ExitStack() as stack:
            location = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="follow-")))
            app = stack.enter_context(redis(location / "redis"))
            stack.enter_context(Worker("w1@demo", location))
            wrong = asyncio.run(follow(app))
    except (DemoError, StoreError, TimeoutError) as exc:
        print(f"follow_async.py: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; all that was started is stopped.", file=sys.stderr)
        return 130
    print("\n".join(f"WRONG: {one}" for one in wrong) or "All is as it should be.")
    return 1 if wrong else 0


async def follow(app: Any) -> list[str]:
    """Send tasks and show how far they are until all have ended; return what is wrong."""
    from proj.words import count

    modules = survey.modules(LIMIT)
    async with AsyncMemSync(app.memsync) as aio:
        async with aio.watch("tasks/*/progress") as changes:
            results = [await asyncio.to_thread(count.delay, modules, first, PARTS) for first in range(PARTS)]
            names = {result.id: f"part {number}" for number, result in enumerate(results, 1)}
            shown: dict[str, list[float]] = {name: [] for name in names.values()}
            showing = asyncio.create_task(show(changes, names, shown))
            states = await asyncio.gather(*(aio.wait(task_id, timeout=PATIENCE) for task_id in names))
            showing.cancel()
    wrong = [f"{name} is {state['status']}" for name, state in zip(names.values(), states) if state["status"] != "SUCCESS"]
    return wrong + [f"{name} was shown at {percents}" for name, percents in shown.items()
                    if not percents or percents != sorted(percents)]


async def show(changes: Any, names: dict[str, str], shown: dict[str, list[float]]) -> None:
    """Print progress as it comes."""
    async for change in changes:
        name = names.get(change.key.split("/")[2])
        if name is not None and change.value is not None:
            shown[name].append(change.value["progress"])
            print(f"{name}  {change.value['progress']:.0f}%", flush=True)


if __name__ == "__main__":
    sys.exit(main())
