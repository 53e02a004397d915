"""What Redis does not do, as errors: whether trying again helps, and whether it may be done."""
from __future__ import annotations

import contextlib

import pytest
import redis as redis_py

from celery_memsync import StoreRefused, StoreUnavailable
from celery_memsync.store.errors import code_in, store_error
from tests.support.redis_server import RedisServer, free_port

SECRET = "hunter2"


def answered(redis, text):
    """Return the error that a user gets when Redis answers so."""
    try:
        redis.eval("return redis.error_reply(ARGV[1])", 0, text)
    except redis_py.RedisError as exc:
        return store_error("do it", exc)


# -- which kind

@pytest.mark.parametrize("code", [
    "OOM", "NOREPLICAS", "READONLY", "MISCONF", "NOPERM", "LOADING", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN",
    "NOSCRIPT"])
def test_what_may_pass_is_unavailable(redis, code):
    error = answered(redis, f"{code} some text")

    assert (type(error), error.code, error.maybe_done) == (StoreUnavailable, code, False)


@pytest.mark.parametrize("code", ["WRONGTYPE", "ERR", "NOPROTO", "WRONGPASS", "CROSSSLOT"])
def test_what_does_not_pass_by_itself_is_refused(redis, code):
    error = answered(redis, f"{code} some text")

    assert (type(error), error.code) == (StoreRefused, code)


@pytest.mark.parametrize("text, code", [
    ("ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM command not allowed", "OOM"),
    ("@user_script: 1: -READONLY You can't write against a read only replica.", "READONLY"),
    ("ERR The user executing the script can't run this command or subcommand", "NOPERM"),
    ("ERR ACL failure in script: User app has no permissions to access one of the channels", "NOPERM"),
    ("@user_script: 3: WRONGTYPE Operation against a key holding the wrong kind of value", "WRONGTYPE"),
    ("user_script:1: attempt to index a nil value", "ERR"),
])
def test_what_ends_a_script_has_the_code_of_its_cause(text, code):
    assert code_in(text) == code


def test_a_wrong_password_is_refused(make_memsync, redis_url):
    memsync = make_memsync(url=redis_url.replace("://", f"://user:{SECRET}@"))

    with pytest.raises(StoreRefused, match="user or password") as caught:
        memsync.read("a")

    assert SECRET not in str(caught.value)


def test_a_pool_without_a_free_connection_is_unavailable(make_memsync, redis_url):
    memsync = make_memsync(backend_options={"max_connections": 1}, batch_interval=60.0)
    pool = memsync.runtime.store.redis.connection_pool
    lent = pool.get_connection(*([] if redis_py.VERSION >= (5, 3) else ["PING"]))

    with pytest.raises(StoreUnavailable) as caught:
        memsync.enqueue("a")
    pool.release(lent)

    assert not caught.value.maybe_done
    assert memsync.enqueue("a")


# -- messages

def test_error_names_attempt_address_and_advice_without_credentials(make_memsync):
    port = free_port()
    memsync = make_memsync(url=f"redis://user:{SECRET}@127.0.0.1:{port}/3", batch_interval=60.0)

    with pytest.raises(StoreUnavailable) as caught:
        memsync.enqueue("a")

    what, where = "Could not enqueue task", f"Redis at 127.0.0.1:{port}/3"
    assert f"{what} ({where}): it refused the connection; is it running" in str(caught.value)
    assert SECRET not in str(caught.value) and "user" not in str(caught.value)


@pytest.mark.parametrize("url, where", [
    ("redis+cluster://u:pw@127.0.0.1:1,127.0.0.1:2", "cluster 127.0.0.1:1, 127.0.0.1:2"),
    ("sentinel://127.0.0.1:1,127.0.0.1:2/0?master_name=m", "m of Sentinels 127.0.0.1:1, 127.0.0.1:2"),
    ("redis://[::1]:1/2", "[::1]:1/2"), ("unix:///nowhere/r.sock?db=4", "/nowhere/r.sock, database 4"),
])
def test_error_names_the_address_for_any_url(make_memsync, url, where):
    memsync = make_memsync(url=url, batch_interval=60.0)

    with pytest.raises(StoreUnavailable) as caught:
        memsync.enqueue("a")

    assert f" (Redis at {where}): it" in str(caught.value)


# -- whether it may be done

ATOMIC = {
    "enqueue": lambda memsync: memsync.enqueue("a"),
    "dequeue": lambda memsync: memsync.dequeue(),
    "complete": lambda memsync: memsync.complete("a"),
    "lock": lambda memsync: memsync.lock("a").acquire(),
    "write": lambda memsync: memsync.write("a", 1, expected_version=0),
    "force_sync": lambda memsync: [memsync.write("a", 1), memsync.force_sync()],
}


@pytest.mark.parametrize("name", ATOMIC)
def test_what_was_sent_and_not_answered_may_be_done(proxied, proxy, name):
    # Beside the second try of each call, the writer has one for a change that is alone.
    proxy.cut(b"EVALSHA", 4 if name == "force_sync" else 2)

    with pytest.raises(StoreUnavailable) as caught:
        ATOMIC[name](proxied)

    assert caught.value.maybe_done
    ATOMIC[name](proxied)


@pytest.mark.parametrize("name", ATOMIC)
def test_what_could_not_be_sent_is_not_done(make_memsync, name):
    memsync = make_memsync(url=f"redis://127.0.0.1:{free_port()}", batch_interval=60.0)

    with pytest.raises(StoreUnavailable) as caught:
        ATOMIC[name](memsync)

    assert not caught.value.maybe_done


@pytest.mark.parametrize("name", ["enqueue", "write", "force_sync"])
def test_what_redis_has_no_room_for_is_not_done(tmp_path, make_memsync, name):
    server = RedisServer(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction").start()
    memsync = make_memsync(url=server.url, batch_interval=60.0)

    with pytest.raises(StoreUnavailable, match="it is full") as caught:
        ATOMIC[name](memsync)

    assert (caught.value.code, caught.value.maybe_done) == ("OOM", False)
    server.stop()


def test_error_of_a_buffered_write_is_not_that_of_an_atomic_operation(proxied, proxy):
    proxied.write("buffered", 1)
    proxy.cut(b"PING", 4)

    with pytest.raises(StoreUnavailable) as caught:
        proxied.write("a", 1, expected_version=0)

    assert not caught.value.maybe_done


# -- what counts as a lost connection

@pytest.mark.parametrize("refusal", [
    lambda redis: redis.config_set("maxmemory", 1), lambda redis: redis.replicaof("127.0.0.1", 1),
    lambda redis: redis.config_set("min-replicas-to-write", 3),
    lambda redis: redis.execute_command("ACL", "SETUSER", "default", "-set"),
], ids=["full", "replica", "few replicas", "right"])
def test_a_redis_that_takes_no_writes_is_not_lost(own_server, make_memsync, refusal):
    memsync, emitted = make_memsync(url=own_server.url, batch_interval=60.0), []
    memsync.on("connection-lost", lambda **details: emitted.append(details))
    memsync.read("a")
    with own_server.client() as client:
        refusal(client)
    memsync.write("a", 1)

    with pytest.raises(StoreUnavailable):
        memsync.force_sync()

    assert emitted == [] and memsync.get_metrics()["connected"]
    assert memsync.runtime.writer.pending == 1
    with own_server.client() as client, contextlib.suppress(redis_py.RedisError):
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.execute_command("ACL", "SETUSER", "default", "+@all")
    memsync.force_sync(timeout=5)
    assert memsync.read("a") == 1


def test_a_redis_that_is_away_is_lost(own_server, make_memsync):
    memsync, emitted = make_memsync(url=own_server.url, batch_interval=60.0), []
    memsync.on("connection-lost", lambda error: emitted.append(type(error)))
    own_server.stop()
    memsync.write("a", 1)

    with pytest.raises(StoreUnavailable):
        memsync.force_sync()

    assert not memsync.get_metrics()["connected"]
    assert memsync.events.wait_idle(5) and emitted == [StoreUnavailable]
