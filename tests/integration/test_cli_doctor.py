"""`celery memsync doctor` as a user types it."""
from __future__ import annotations

import contextlib
import json

import pytest
import redis as redis_py

from celery_memsync import encoding
from celery_memsync.cli.doctor import LOST_LATELY, examine_redis, examine_workers
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.store.acl import rules
from tests.support.redis_server import RedisServer, free_port
from tests.support.shell import Shell, plain
from tests.support.waiting import eventually

NOW = 1_000_000.0


@pytest.fixture
def fleet(make_fleet, own_store):
    """A fleet on a Redis of its own, to which the tests write the records of workers."""
    return make_fleet(store=own_store, memsync_worker_ttl=1.0)


def write_heartbeat(fleet, worker_id, ttl=60.0, **facts):
    """Write the record of a worker as the worker would."""
    record = WorkerRecord(worker_id, **{"consuming": True, **facts})
    fleet.reader.runtime.store.write_heartbeat(worker_id, encoding.dumps(record.as_dict()), ttl)


def examine(fleet, **conf):
    """Return the exit code and the findings."""
    done = Shell(fleet.env(memsync_worker_ttl=60.0, **conf)).run("doctor", "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def warnings(findings):
    return [one["what"] for one in findings if not one["fine"]]


def test_nothing_is_wrong_with_a_fleet_that_works(fleet):
    write_heartbeat(fleet, "w1")

    code, findings = examine(fleet)

    assert (code, warnings(findings)) == (0, [])
    assert findings[0]["what"].startswith("Redis ")


def test_what_is_found_is_a_line_each_with_advice(fleet):
    done = Shell(fleet.env()).run_process("doctor")

    assert (done.returncode, done.stderr) == (1, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok", "ok", "ok", "WARN"]
    assert "memsync_backend" in done.stdout.splitlines()[-1]


def test_everything_is_fine_in_text_too(fleet):
    write_heartbeat(fleet, "w1")

    shown = plain(Shell(fleet.env(memsync_worker_ttl=60.0)).run("doctor"))

    assert {line.split()[0] for line in shown.splitlines()} == {"ok"}


def test_workers_that_know_different_formats_are_found(fleet):
    write_heartbeat(fleet, "w1", format=1)
    write_heartbeat(fleet, "w2", format=2)

    code, findings = examine(fleet)

    assert (code, warnings(findings)) == (1, ["the newest formats that workers know differ: 1 (w1); 2 (w2)"])


def test_a_redis_that_evicts_when_it_is_full_is_found(fleet, client):
    write_heartbeat(fleet, "w1")
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")

    code, findings = examine(fleet)

    assert code == 1
    assert ["allkeys-lru" in what for what in warnings(findings)] == [True]


def test_a_limit_without_eviction_is_fine(fleet, client):
    write_heartbeat(fleet, "w1")
    client.config_set("maxmemory", "100mb")

    code, findings = examine(fleet)

    assert (code, warnings(findings)) == (0, [])


def test_a_redis_that_has_evicted_is_found(fleet, client):
    write_heartbeat(fleet, "w1")
    client.set("large", b"x" * 5_000_000)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] - 1_000_000)
    eventually(lambda: client.info("stats")["evicted_keys"])
    client.config_set("maxmemory", "100mb")

    code, findings = examine(fleet)

    assert code == 1
    assert any(what.startswith("Redis has evicted") for what in warnings(findings))


def test_a_redis_that_is_nearly_full_is_found(fleet, client):
    write_heartbeat(fleet, "w1")
    client.set("large", b"x" * 20_000_000)
    client.config_set("maxmemory", 22_000_000)

    code, findings = examine(fleet)

    assert code == 1
    assert ["are in use" in what for what in warnings(findings)] == [True]


def test_a_replica_is_found(fleet, client):
    write_heartbeat(fleet, "w1")
    client.replicaof("127.0.0.1", free_port())

    code, findings = examine(fleet)
    client.replicaof("NO", "ONE")

    assert code == 1
    assert ["replica" in what for what in warnings(findings)] == [True]


def test_a_lost_worker_is_found_and_named(fleet):
    write_heartbeat(fleet, "w2")
    eventually(lambda: fleet.reader.get_workers() and not fleet.reader.get_active_workers())

    done = Shell(fleet.env(memsync_worker_ttl=1.0)).run("doctor", "--json")

    assert done.returncode == 1
    assert "lost: w2" in warnings(json.loads(done.stdout))


def test_worker_that_was_lost_earlier_is_nothing_wrong_while_another_is_alive():
    gone, alive = WorkerRecord("w2", "lost", last_beat=NOW - LOST_LATELY - 1), WorkerRecord("w1", last_beat=NOW)

    assert [one.what for one in examine_workers([gone, alive], NOW) if one.fine][1:] == ["lost more than 10m00s ago: w2"]
    assert [one.what for one in examine_workers([gone], NOW) if not one.fine] == ["no worker is alive", "lost: w2"]
    assert [one.what for one in examine_workers([gone, alive], NOW - 2) if not one.fine] == ["lost: w2"]


def test_worker_that_sends_heartbeats_and_does_not_consume_is_found(fleet):
    write_heartbeat(fleet, "w1", consuming=False)
    write_heartbeat(fleet, "w2", consuming=False, status="draining")
    write_heartbeat(fleet, "w3")

    code, findings = examine(fleet)

    assert (code, warnings(findings)) == (1, ["alive, but consume nothing: w1"])


def test_a_worker_that_has_just_started_need_not_consume_yet(fleet):
    now = fleet.reader.runtime.store.redis.time()[0]
    write_heartbeat(fleet, "w1", consuming=False, started_at=now - 1)
    write_heartbeat(fleet, "w2", consuming=False, started_at=now - 60)

    code, findings = examine(fleet)

    assert (code, warnings(findings)) == (1, ["alive, but consume nothing: w2"])


def test_workers_of_different_versions_are_found(fleet):
    for worker_id, version in (("w1", "5.6.0"), ("w2", "5.7.0"), ("w3", "5.7.0")):
        write_heartbeat(fleet, worker_id, versions={"celery": version, "celery-memsync": "1.0"})

    code, findings = examine(fleet)

    assert (code, warnings(findings)) == (1, ["workers have different versions of celery: 5.6.0, 5.7.0"])


def test_of_many_names_some_are_shown(fleet):
    for number in range(9):
        write_heartbeat(fleet, f"w{number}", consuming=False)

    _, findings = examine(fleet)

    assert warnings(findings) == ["alive, but consume nothing: w0, w1, w2, w3, w4 and 4 more"]


@pytest.mark.parametrize("version, fine", [
    ("6.0.16", False), ("6.2.0", True), ("7.0.15", True), ("10.1.0", True), ("255.255.255", True), ("unknown", False),
])
def test_a_server_is_new_enough_or_not(version, fine):
    first = next(examine_redis({"redis_version": version}))

    assert first.fine is fine


@pytest.mark.parametrize("clients, fine", [(90, True), (91, False)])
def test_connections_that_run_out_are_found(clients, fine):
    findings = examine_redis({"redis_version": "7.0.15", "connected_clients": clients, "maxclients": 100})

    assert all(one.fine for one in findings) is fine


def as_user(store, *without):
    """Return the URL of a user of Redis with all documented rights but some."""
    allowed = [rule for rule in rules("*") if rule not in without]
    with store.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "reset", "resetchannels", "on", ">secret", *allowed)
    return store.url.replace("://", "://app:secret@", 1)


@pytest.mark.parametrize("without", ["+hgetall", "+time", "+xadd", "&*"])
def test_a_right_that_is_missing_is_found_and_named(fleet, own_store, without):
    write_heartbeat(fleet, "w1")

    code, findings = examine(fleet, memsync_backend=as_user(own_store, without))

    assert (code, warnings(findings)) == (1, [f"Redis does not allow its user: {without}"])


def test_a_user_with_the_documented_rights_sees_server_and_workers(fleet, own_store):
    write_heartbeat(fleet, "w1")

    code, findings = examine(fleet, memsync_backend=as_user(own_store))

    assert (code, warnings(findings)) == (0, [])
    texts = [one["what"] for one in findings]
    assert "Redis itself is not looked at" not in texts and "workers: 1 active" in texts


def test_two_live_workers_under_one_name_are_found(fleet):
    write_heartbeat(fleet, "w1")
    other = fleet.manager()
    record = WorkerRecord("w1", consuming=True)
    other.runtime.store.write_heartbeat("w1", encoding.dumps(record.as_dict()), 60.0)

    code, findings = examine(fleet)

    assert code == 1
    assert [what for what in warnings(findings) if "name: w1" in what]


def test_a_queue_that_no_worker_consumes_is_found(fleet):
    write_heartbeat(fleet, "w1", queues=("other",))
    fleet.send("add", 1, 2)
    fleet.app.memsync.force_sync()

    _, findings = examine(fleet)

    assert [what for what in warnings(findings) if f"wait: {fleet.name} (1)" in what]


class Uninformed(RedisServer):
    """A redis-server without INFO, by which the others are known to be the right ones."""

    def answers(self):
        with contextlib.suppress(redis_py.RedisError):
            return self.client().ping()


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Servers that do not know a command, by the command; none when Redis is not that of the system."""
    servers = {
        name: RedisServer(tmp_path_factory.mktemp(name), "--rename-command", name, "") for name in ("SCRIPT", "HSCAN")}
    for server in servers.values():
        server.start()
    servers["INFO"] = Uninformed(tmp_path_factory.mktemp("info"), "--rename-command", "INFO", "").start()
    yield servers
    for server in servers.values():
        server.stop()


@pytest.mark.parametrize("name, shown", [("SCRIPT", "script load"), ("HSCAN", "hscan")])
def test_a_command_that_redis_does_not_know_is_named(fleet, without, name, shown):
    code, findings = examine(fleet, memsync_backend=without[name].url)

    assert code == 1
    assert f"Redis does not know: {shown}" in warnings(findings)


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_redis_without_info_can_be_looked_at(fleet, without, command):
    done = Shell(fleet.env(memsync_backend=without["INFO"].url)).run(command)

    assert done.stderr == "" and "INFO" in done.stdout
    assert done.stdout.splitlines()[0].endswith(f"Redis at 127.0.0.1:{without['INFO'].port}/0, namespace {fleet.name}")


def test_a_redis_that_is_away_is_named_with_the_cause(fleet):
    port = free_port()

    done = Shell(fleet.env(memsync_backend=f"redis://:geheim@127.0.0.1:{port}/3")).run("doctor")

    assert (done.returncode, done.stdout) == (69, "")
    assert f"Could not check rights (Redis at 127.0.0.1:{port}/3): it refused the connection; is it running" in done.stderr
    assert "geheim" not in done.stderr
