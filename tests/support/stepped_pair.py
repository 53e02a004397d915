"""Two servers, one of which follows the other, with different clocks."""
from __future__ import annotations

from tests.support.proxy import Proxy
from tests.support.stepped_clock import SteppedServer
from tests.support.waiting import eventually


class SteppedPair:
    """A master and its replica, and one address of whichever is the master.

    Args:
        ahead: Seconds that the clock of the first replica is ahead of the first master's.
    """

    def __init__(self, folder, ahead):
        options = ("--repl-diskless-sync-delay", "0")
        self.master, self.replica = (SteppedServer(folder / name, *options) for name in ("one", "other"))
        for server in (self.master, self.replica):
            server.start()
        self.replica.set_clock(ahead)
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.master.port)
            eventually(lambda: client.info("replication")["master_link_status"] == "up", timeout=20)
        self.proxy = Proxy(self.master.port)
        self.url = self.proxy.url

    def fail_over(self):
        """Let the two change places; nothing that was acknowledged is lost."""
        with self.master.client() as old, self.replica.client() as new:
            eventually(lambda: old.info("replication")["slave0"]["state"] == "online")
            old.execute_command("FAILOVER")
            eventually(lambda: new.info("replication")["role"] == "master")
        self.master, self.replica = self.replica, self.master
        self.proxy.port = self.master.port
        self.proxy.cut()

    def stop(self):
        self.proxy.__exit__()
        for server in (self.master, self.replica):
            server.stop()
