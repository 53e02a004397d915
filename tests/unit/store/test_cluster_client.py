"""Which node has which key, and from which node the slots are read."""
from __future__ import annotations

import random

import pytest

from celery_memsync import MemorySyncManager, StoreError
from celery_memsync.store.cluster_client import Cluster, slot_of
from tests.support.redis_server import RedisServer, free_port
from tests.support.topologies import execute, free_pair

ODD = ["}", "}x", "{", "{}", "}{", "a{b}c", "{a}{b}", "}}", "x}", "{a}", "{{a}}", "ö{ü}", ""]


def rows_of(*hosts):
    """Return what a node answers that knows of these masters."""
    return [[number, number, [host.encode(), 1, b"id"]] for number, host in enumerate(hosts)]


def test_slots_are_counted_as_redis_does(tmp_path):
    server = RedisServer(tmp_path / "node", "--cluster-enabled", "yes")
    server.port = free_pair()
    server.url = f"redis://127.0.0.1:{server.port}/0"
    server.start()
    keys = [*ODD, *("".join(random.choices("{}ab/", k=6)) for _ in range(200))]
    try:
        counted = [execute(server, "CLUSTER", "KEYSLOT", key) for key in keys]
    finally:
        server.kill()

    assert [slot_of(key) for key in keys] == counted


def test_slots_are_read_from_more_than_one_node():
    queried = []

    def answer(address, question):
        queried.append(address[0])
        return rows_of("a", "b") if address[0] == "a" else rows_of("a", "c")

    cluster = Cluster([("a", 1), ("b", 1)], None, answer, "home")
    for _ in range(3):
        cluster.read_slots()

    assert queried[0] == "a" and len(set(queried)) > 1


def test_node_without_a_host_has_the_address_it_was_reached_at():
    cluster = Cluster([("a", 1)], None, lambda *_: [[0, 16383, [b"", 7, b"id"]]], "home")

    assert cluster.address_of("x") == ("a", 7)


@pytest.mark.slow
def test_reads_and_not_buffered_writes_raise_while_a_cluster_is_away():
    with MemorySyncManager("w1", f"redis+cluster://127.0.0.1:{free_port()}") as memsync:
        memsync.sync_task_state("t1", {"x": 1})

        with pytest.raises(StoreError, match="it refused the connection"):
            memsync.read("a")
        with pytest.raises(StoreError):
            memsync.lock("l").acquire()


@pytest.mark.parametrize("answer", [None, 7, b"?", [[1]], [[0, 1, None]], [[0, 1, [None, b"port"]]], [b"a", 1]])
def test_a_node_whose_answer_has_no_sense_is_passed_over(answer):
    cluster = Cluster([("a", 1), ("b", 1)], None, lambda address, _: rows_of("c") if address[0] == "b" else answer, "home")

    cluster.read_slots()

    assert cluster.masters() == {("c", 1)}
