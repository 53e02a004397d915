"""TLS, with certificates of both sides."""
from __future__ import annotations

import ssl

import pytest
from celery import Celery

from celery_memsync import MemorySyncManager, MemSync, StoreError
from tests.support.redis_server import RedisServer, free_port
from tests.support.topologies import certificates, execute, free_pair, system_server
from tests.support.waiting import eventually


class TLSServer(RedisServer):
    """A redis-server that takes no connection with TLS without a client's certificate."""

    def __init__(self, folder, certs, *options, tls_port=None):
        self.tls_port = tls_port or free_port()
        super().__init__(folder, "--tls-port", str(self.tls_port), *served_with(certs), *options, binary=system_server())


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """A folder with certificates."""
    return certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def port(tmp_path_factory, certs):
    """Port of a server that speaks TLS; the redis-server of the wheel can't."""
    if system_server() is None:
        pytest.skip("the system has no redis-server, and that of the wheel speaks no TLS")
    server = TLSServer(tmp_path_factory.mktemp("tls"), certs).start()
    yield server.tls_port
    server.stop()


def served_with(certs):
    return ("--tls-cert-file", str(certs / "server.crt"), "--tls-key-file", str(certs / "server.key"),
            "--tls-ca-cert-file", str(certs / "ca.crt"))


def options_of(certs):
    return {"ssl_ca_certs": str(certs / "ca.crt"), "ssl_certfile": str(certs / "client.crt"),
            "ssl_keyfile": str(certs / "client.key")}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_everything_goes_over_tls_with_a_clients_certificate(port, certs, host):
    url, options, received = f"rediss://{host}:{port}/0", options_of(certs), []
    with MemorySyncManager("w1", url, backend_options=options) as memsync, \
            MemorySyncManager("w2", url, backend_options=options) as other:
        other.subscribe("a", lambda key, value: received.append(value))

        memsync.write("a", host)
        memsync.force_sync()

        eventually(lambda: received == [host])
        assert [other.read("a"), other.read("a")] == [host, host]
        assert other.get_metrics()["cache_hits"] >= 1
        with memsync.lock("l", wait=1.0):
            assert not other.lock("l", wait=0.2).acquire()


def test_certificates_may_stand_in_the_url(port, certs):
    query = "&".join(f"{name}={value}" for name, value in options_of(certs).items())
    with MemorySyncManager("w1", f"rediss://localhost:{port}/0?{query}") as memsync:

        assert memsync.read("nothing") is None


@pytest.mark.parametrize("spelling", ["none", "NONE", "CERT_NONE", ssl.CERT_NONE])
def test_every_spelling_that_switches_the_check_of_certificates_off_is_taken(port, certs, spelling):
    options = {**options_of(certs), "ssl_ca_certs": None, "ssl_cert_reqs": spelling}

    with MemorySyncManager("w1", f"rediss://localhost:{port}/0", backend_options=options) as memsync:

        assert memsync.read("nothing") is None


@pytest.mark.parametrize("spelling", ["required", "CERT_REQUIRED", "CERT_OPTIONAL"])
def test_every_spelling_of_required_certificates_is_read_from_a_url(port, certs, spelling):
    query = "&".join(f"{name}={value}" for name, value in options_of(certs).items())

    with MemorySyncManager("w1", f"rediss://localhost:{port}/0?{query}&ssl_cert_reqs={spelling}") as memsync:

        assert memsync.read("nothing") is None


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_redis_backend_use_ssl_counts_where_the_result_backend_is_taken(port, certs, scheme):
    app = Celery("proj", broker="memory://", backend=f"{scheme}://localhost:{port}/0", set_as_current=False)
    app.conf.redis_backend_use_ssl = {**options_of(certs), "ssl_cert_reqs": ssl.CERT_REQUIRED}

    with MemSync(app) as memsync:

        assert memsync.read("nothing") is None
        assert memsync.backend_source == "result_backend"
    memsync.signals.disconnect()


@pytest.mark.parametrize("without", ["ssl_ca_certs", "ssl_certfile"])
def test_client_that_is_not_trusted_gets_an_error_without_secrets(port, certs, without):
    options = {name: value for name, value in options_of(certs).items() if name != without and (
        without != "ssl_certfile" or name == "ssl_ca_certs")}
    memsync = MemorySyncManager("w1", f"rediss://localhost:{port}/0", backend_options=options)

    with pytest.raises(StoreError) as caught:
        memsync.read("a")

    assert str(certs) not in str(caught.value)


def test_a_certificate_for_another_host_is_refused(port, certs):
    memsync = MemorySyncManager(
        "w1", f"rediss://127.0.0.2:{port}/0", backend_options={**options_of(certs), "ssl_check_hostname": True})

    with pytest.raises(StoreError):
        memsync.read("a")


@pytest.fixture
def watched(tmp_path, certs):
    """The URL of a Sentinel and its master, which speak TLS only with each other and with others."""
    if system_server() is None:
        pytest.skip("the system has no redis-server, and that of the wheel speaks no TLS")
    master = TLSServer(tmp_path / "master", certs, "--tls-replication", "yes").start()
    sentinel = TLSServer(tmp_path / "sentinel", certs, "--tls-replication", "yes")
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor mymaster 127.0.0.1 {master.tls_port} 1\n")
    sentinel.start(str(config), "--sentinel")
    yield f"sentinel://localhost:{sentinel.tls_port}/0?master_name=mymaster"
    sentinel.stop()
    master.stop()


def test_sentinels_and_their_master_may_speak_tls(watched, certs):
    with MemorySyncManager("w1", watched, backend_options={"ssl": True, **options_of(certs)}) as memsync:
        memsync.write("a", 1)
        memsync.force_sync()

        assert memsync.read("a") == 1
        with memsync.lock("l"):
            assert [one.name for one in memsync.locks()] == ["l"]


@pytest.fixture
def node(tmp_path, certs):
    """A cluster of one node that speaks TLS."""
    if system_server() is None:
        pytest.skip("the system has no redis-server, and that of the wheel speaks no TLS")
    node = TLSServer(tmp_path / "node", certs, "--cluster-enabled", "yes", "--tls-cluster", "yes", tls_port=free_pair())
    node.start()
    execute(node, "CLUSTER", "ADDSLOTS", *range(16384))
    eventually(lambda: b"cluster_state:ok" in execute(node, "CLUSTER", "INFO"))
    yield node
    node.stop()


def test_a_cluster_may_speak_tls(node, certs):
    url = f"rediss+cluster://localhost:{node.tls_port}"
    with MemorySyncManager("w1", url, backend_options=options_of(certs)) as memsync:
        memsync.write("a", 1)
        memsync.force_sync()

        assert memsync.read("a") == 1
        assert memsync.search("a") == ["task-sentinel/a"]
        with memsync.lock("l"):
            assert [one.name for one in memsync.locks()] == ["l"]
