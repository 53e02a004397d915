"""Tasks whose bodies run an event loop."""
from __future__ import annotations

import asyncio

from celery import shared_task

from celery_memsync import AsyncMemSync, MemSync
from tests.support.tasks import note

#: Bound to no app: in a worker it is that of the app whose task runs.
memsync = MemSync()


@shared_task(bind=True)
def hold(self, name, seconds):
    """Hold a lock, wait for another one and for a task, all in an event loop."""
    aio = AsyncMemSync(self.app.memsync)

    async def main():
        async with aio.lock(name) as lock, aio.watch(f"{name}/*"):
            aio.write(f"{name}/fence", lock.fence, fence=lock)
            note("begin", self.request.id)
            await asyncio.wait([
                asyncio.ensure_future(aio.wait("no task")),
                asyncio.ensure_future(aio.lock(f"{name}-other", wait=60).acquire()),
            ], timeout=seconds)

    asyncio.run(main())
