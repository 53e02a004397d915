"""Agents whose ttl is over are removed while others of the task are written."""
from __future__ import annotations

import time

import pytest

from celery_memsync.keys import Keys

AGENTS = Keys("task-sentinel").agents("t1")


@pytest.mark.slow
def test_expired_agents_are_removed_as_others_are_added(make_memsync, redis):
    memsync = make_memsync(batch_interval=60.0, default_ttl=0.2)

    sizes = []
    for number in range(2000):
        memsync.sync_agent_coordination("t1", f"a{number}", number)
        if number % 50 == 0:
            memsync.force_sync()
            sizes.append(redis.hlen(AGENTS))
            time.sleep(0.02)

    memsync.sync_agent_coordination("t1", "last", 1)
    assert "last" in memsync.get_task_agents("t1")
    assert max(sizes) < 1500
    assert max(sizes[20:]) < 1.5 * max(sizes[10:20])


def test_expired_agents_are_removed_as_another_is_written_again(make_memsync, redis):
    memsync = make_memsync(batch_interval=60.0, default_ttl=0.3)
    for number in range(100):
        memsync.sync_agent_coordination("t1", f"a{number}", number)
    memsync.force_sync()

    time.sleep(0.35)
    for number in range(2500):
        memsync.sync_agent_coordination("t1", "stays", number)
        memsync.runtime.writer.flush()
        if redis.hlen(AGENTS) == 1:
            break

    assert redis.hkeys(AGENTS) == [b"stays"]
