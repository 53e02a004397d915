"""Every way in which a connection can fail, with the sentence that the user reads."""
from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from celery_memsync import MemorySyncManager, StoreError
from tests.support.redis_server import RedisServer, free_port
from tests.support.topologies import certificates, system_server

SECRET = "hunter2-geheim"

RUNNING = "is it running, and is memsync_backend right?"
CLOSED = "it closed the connection; was it stopped, or does it want TLS (rediss:// in memsync_backend)?"
NO_REDIS = "its answer makes no sense; is that a Redis?"


@contextlib.contextmanager
def serving(answer):
    """Listen on a port, and answer what comes there with some bytes and the end of the connection; None: not at all."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                if answer:
                    client.recv(4096)
                client.sendall(answer)
                client.close()

    if answer is not None:
        threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """Ports by what is there."""
    folder = tmp_path_factory.mktemp("servers")
    servers = {
        "plain": RedisServer(folder / "plain"),
        "locked": RedisServer(folder / "locked"),
        "node": RedisServer(folder / "node", "--cluster-enabled", "yes"),
        "full": RedisServer(folder / "full", "--maxclients", "1"),
    }
    with contextlib.ExitStack() as stack:
        for server in servers.values():
            stack.callback(server.stop)
            server.start()
        with servers["locked"].client() as client:
            client.config_set("requirepass", SECRET)
        held = stack.enter_context(servers["full"].client())
        held.ping()
        others = {"hanging": None, "closing": b"", "http": b"HTTP/1.1 400 Bad Request\r\n\r\n"}
        yield {"free": free_port(), **{name: server.port for name, server in servers.items()},
               **{name: stack.enter_context(serving(answer)) for name, answer in others.items()}}


def message_of(url, timeout=5.0, **options):
    """Return what a read raises, and see that no credentials are in it."""
    with MemorySyncManager(url=url, backend_options=options, timeout=timeout) as memsync:
        with pytest.raises(StoreError) as caught:
            memsync.read("a", consistent=True)
    assert SECRET not in str(caught.value) and "someone" not in str(caught.value)
    return str(caught.value)


FAILURES = {
    "refused": ("redis://someone:{secret}@127.0.0.1:{free}/3", "127.0.0.1:{free}/3",
                f"it refused the connection; {RUNNING}"),
    "refused by a cluster": ("redis+cluster://127.0.0.1:{free}", "cluster 127.0.0.1:{free}",
                             f"it refused the connection; {RUNNING}"),
    "refused by the sentinels": ("sentinel://127.0.0.1:{free}/0?master_name=m", "m of Sentinels 127.0.0.1:{free}",
                                 f"it can't be reached; {RUNNING}"),
    "unknown host": ("redis://:{secret}@no-such-host.invalid/1", "no-such-host.invalid:6379/1",
                     "the name of its host is unknown; correct it in memsync_backend, "
                     "or see whether DNS works on this host"),
    "no socket": ("unix://:{secret}@/nowhere/r.sock?db=4", "/nowhere/r.sock, database 4",
                  f"its socket is not there; {RUNNING}"),
    "hanging": ("redis://127.0.0.1:{hanging}", "127.0.0.1:{hanging}/0",
               "it did not answer within 0.5 s; is it overloaded or paused?"),
    "hanging to TLS": ("rediss://127.0.0.1:{hanging}", "127.0.0.1:{hanging}/0",
                      "no TLS was agreed on within 0.5 s; does it speak TLS? else let memsync_backend begin with redis://"),
    "closed": ("redis://127.0.0.1:{closing}", "127.0.0.1:{closing}/0", CLOSED),
    "no Redis": ("redis://127.0.0.1:{http}", "127.0.0.1:{http}/0", NO_REDIS),
    "full": ("redis://127.0.0.1:{full}", "127.0.0.1:{full}/0", "all its connections are in use; raise its maxclients"),
    "no password": ("redis://127.0.0.1:{locked}", "127.0.0.1:{locked}/0",
                    "it wants a password, and memsync_backend has none; the URL is redis://:password@host"),
    "another password": ("redis://:x{secret}@127.0.0.1:{locked}", "127.0.0.1:{locked}/0",
                         "it refuses the user or password of memsync_backend; correct them in its URL"),
    "another user": ("redis://someone:{secret}@127.0.0.1:{locked}", "127.0.0.1:{locked}/0",
                     "it refuses the user or password of memsync_backend; correct them in its URL"),
    "needless password": ("redis://:{secret}@127.0.0.1:{plain}", "127.0.0.1:{plain}/0",
                          "it has no password; remove the one of memsync_backend, or set its requirepass"),
    "no such database": ("redis://127.0.0.1:{plain}/99", "127.0.0.1:{plain}/99",
                         "it has no database of that number; see `databases` in its configuration"),
    "not a cluster": ("redis+cluster://127.0.0.1:{plain}", "cluster 127.0.0.1:{plain}",
                      "it is not a cluster; let memsync_backend begin with redis://"),
    "not a sentinel": ("sentinel://127.0.0.1:{plain}/0?master_name=m", "m of Sentinels 127.0.0.1:{plain}",
                       "it is no Sentinel; name the Sentinels in memsync_backend, mostly at port 26379"),
    "node without slots": ("redis://127.0.0.1:{node}", "127.0.0.1:{node}/0",
                           "its cluster has no node for this key; see redis-cli --cluster check and "
                           "cluster-require-full-coverage"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_to_connect_names_where_what_why_and_the_next_step(ports, name):
    url, where, why = (text.format(secret=SECRET, **ports) for text in FAILURES[name])

    message = message_of(url, 0.5 if "hanging" in name else 5.0)

    assert message == f"Could not read entries task-sentinel/a (Redis at {where}): {why}"


@pytest.fixture(scope="module")
def tls_port(tmp_path_factory):
    """Port of a server that speaks nothing but TLS, and wants a client's certificate."""
    if system_server() is None:
        pytest.skip("the system has no redis-server, and that of the wheel speaks no TLS")
    certs = certificates(tmp_path_factory.mktemp("certs"))
    port = free_port()
    server = RedisServer(
        tmp_path_factory.mktemp("tls"), "--tls-port", str(port), "--tls-cert-file", str(certs / "server.crt"),
        "--tls-key-file", str(certs / "server.key"), "--tls-ca-cert-file", str(certs / "ca.crt"),
        binary=system_server()).start()
    yield port, certs
    server.stop()


@pytest.mark.parametrize("scheme, options, why", [
    ("redis", {}, "it closed the connection; was it stopped, or does it want TLS"),
    ("rediss", {}, "its certificate is not accepted (self"),
    ("rediss", {"ssl_cert_reqs": "none"}, "TLS failed ("),
], ids=["no TLS", "unknown authority", "no certificate"])
def test_failure_of_tls_names_the_side_that_refused(tls_port, scheme, options, why):
    port, _ = tls_port

    assert f"(Redis at localhost:{port}/0): {why}" in message_of(f"{scheme}://localhost:{port}", **options)


def test_error_of_several_entries_names_the_first_and_how_many_more(ports):
    with MemorySyncManager(url=f"redis://127.0.0.1:{ports['free']}") as memsync:
        with pytest.raises(StoreError, match=r"read entries task-sentinel/[ab] and 1 more \(Redis at"):
            memsync.read_many(["a", "b"], consistent=True)


def test_error_of_a_lock_names_the_lock(ports):
    with MemorySyncManager(url=f"redis://127.0.0.1:{ports['free']}") as memsync:
        with pytest.raises(StoreError, match=r"Could not take lock task-sentinel/locks/l \(Redis at"):
            memsync.lock("l").acquire()
