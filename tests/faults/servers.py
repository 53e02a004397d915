"""Shared states under faults: one Redis, a cluster, and Sentinels with their servers; what each fault excuses."""
from __future__ import annotations

import contextlib
import threading
import time
from typing import NamedTuple

import redis
from redis.crc import key_slot

from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.stepped_clock import SteppedServer
from tests.support.topologies import Cluster, Replicated, execute
from tests.support.waiting import eventually

#: Seconds by which a replica may lag behind its master on this machine, however busy it is.
LAG = 1.0

#: Seconds after a fault until everything must be as before for callers: nodes are tried again, the slot map is read again.
GRACE = 2.0

#: Seconds for which a former master takes writes after it was stopped, until a cluster or `min-replicas-max-lag` ends that.
FORMER = 3.0

#: Seconds that a round trip to an idle server takes on a machine that can't be blamed, and before and after which it may be
#: as busy as when it took longer.
SLOW, BUSY = 0.3, 5.0

#: That a master is replaced though it was not harmed.
BY_CHANCE = "replaced by chance"

#: Seconds by which a clock is set off; none is as long as anything here lives.
STEPS = (-600.0, -60.0, -5.0, 5.0, 60.0, 600.0)

#: Seconds that servers have to be in sync again, after a fault.
WHOLE = 90.0


class Fault(NamedTuple):
    """What was done to servers, and what that excuses.

    Attributes:
        kind: Such as ``"kill master"``.
        begin: Since when, in seconds since the epoch.
        end: Until when.
        slots: Those that are concerned.  None: all.
        excuses: ``"away"``: calls may fail, or find what a former master has.  ``"busy"``: they may fail.
            ``"moved"``: those about lists may.  ``"loss"``: what is acknowledged meanwhile may be undone.
            ``"ahead"``: leases may end early.  ``"missed"``: what is published may be received with
            the next change only.
    """

    kind: str
    begin: float
    end: float
    slots: frozenset | None
    excuses: str

    def covers(self, key, begin, end):
        """Whether a key may be concerned at some time from ``begin`` to ``end``."""
        return self.begin <= end and begin <= self.end and (self.slots is None or key_slot(key.encode()) in self.slots)


class OneServer:
    """A Redis that keeps what it has acknowledged, behind a network that can be harmed.

    Attributes:
        faults: Each `Fault` that was injected, here none that excuses anything.
    """

    kinds = ("kill redis", "stop redis", "kill clients", "pause clients", "reset", "black hole", "slow network")

    def __init__(self, folder, chance, longest):
        self.chance, self.longest = chance, longest
        self.faults = []
        self.server = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always", keep=True).start()
        self.network = Proxy(self.server.port)
        self.url = self.network.url
        self.conf = {}

    def pause(self):
        time.sleep(self.chance.uniform(0.2, self.longest))

    def client(self):
        return self.server.client()

    def heal(self):
        """Undo what lasts longer than its fault."""

    def close(self):
        self.network.__exit__()
        self.server.stop()

    def kill_redis(self):
        self.server.kill()
        self.pause()
        self.server.start()

    def stop_redis(self):
        with self.server.paused():
            self.pause()

    def kill_clients(self):
        with self.client() as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    def pause_clients(self):
        with self.client() as client:
            client.client_pause(self.chance.randrange(200, round(1000 * self.longest)))

    def reset(self):
        self.network.cut()

    def black_hole(self):
        self.network.hold_questions(b"")
        self.network.hold(b"")
        self.pause()
        self.network.cut()
        self.network.release()

    def slow_network(self):
        self.network.delay = 0.05
        self.pause()
        self.network.delay = 0.0


class Servers:
    """Several servers, of which one at a time is harmed.

    Attributes:
        faults: Each `Fault` that was injected.
        keys: Keys whose slots are moved.
        lists: Under which the queue and the counters of a namespace are.
        missed: What it excuses if nodes do not reach each other.
        clock_excuses: What else it excuses that a clock is set.
    """

    lists = "{0}//{{coordination}}"
    missed = ""
    clock_excuses = ""

    def __init__(self, topology, chance, longest):
        self.topology, self.chance, self.longest = topology, chance, longest
        self.url, self.conf = topology.url, {}
        self.faults, self.keys = [], []
        self.clocks = dict.fromkeys(topology.servers, 0.0)
        #: The master that a fault is about to replace.
        self._harmed = None
        self._closed = threading.Event()
        topology.start()
        self._until_whole()
        threading.Thread(target=self._watch, daemon=True).start()

    def pause(self):
        time.sleep(self.chance.uniform(0.2, self.longest))

    def raw(self, key, command="GET", *args):
        """Return what Redis has under a key."""
        return execute(self._owner_of(key), command, key, *args)

    def heal(self):
        """Undo what lasts longer than its fault."""
        for server in self.clocks:
            self._set_clock("heal", server, 0.0)
        self._until_whole()

    def close(self):
        self._closed.set()
        self.topology.stop()

    def _watch(self):
        """Note what no fault was to do: on a busy machine servers answer late, and masters that do are replaced."""
        before, until = {}, 0.0
        while not self._closed.wait(0.3):
            now, began = before, time.time()
            with contextlib.suppress(redis.RedisError, StopIteration, LookupError, OSError, TypeError):
                now = {server: self._slots_of(server) for server in self._masters()}
            for server in before.keys() - now.keys():
                if server is self._harmed:
                    self._harmed = None
                else:
                    for excuses, longest in (("loss", FORMER), ("ahead", FORMER), ("away", WHOLE / 4)):
                        self.note(BY_CHANCE, began - 2 * LAG, time.time() + longest, before[server], excuses)
            before = now
            if any(map(self._is_slow, self.topology.servers)):
                since, until = max(until, began - BUSY), time.time() + BUSY
                self.note("busy machine", since, until, None, "busy")

    @staticmethod
    def _is_slow(server):
        """Whether a server takes long for next to nothing, and is not harmed."""
        if not server.is_running:
            return False
        interruptions, began = server.interruptions, time.time()
        with contextlib.suppress(redis.RedisError, OSError):
            execute(server, "PING")
        return time.time() - began > SLOW and server.is_running and server.interruptions == interruptions

    # -- faults of any topology

    def step_clock(self):
        """Set the clock of one server; that of another is right again."""
        for server in [server for server, seconds in self.clocks.items() if seconds]:
            self._set_clock("step clock", server, 0.0)
        self.pause()
        self._set_clock("step clock", self.chance.choice(self.topology.servers), self.chance.choice(STEPS))
        self.pause()

    def kill_replica(self):
        """Kill a server that has nothing of its own."""
        server = self.chance.choice([one for one in self.topology.servers if one not in self._masters()])
        server.kill()
        self.pause()
        server.start()
        self._rejoin(server)
        self._until_whole()

    def kill_master(self):
        """Kill a master, let its replica take its place, and start it as a replica of that."""
        server, slots = self._choose()
        began = time.time()
        after = self._fail_over(server)
        self.note("kill master", began - LAG, began, slots, "loss")
        self._note_succession("kill master", server, after, began, slots)
        self.pause()
        server.start()
        self._rejoin(server)
        self._until_whole()
        self.note("kill master", began, self._usable_at(time.time()), slots, "away")

    def stop_master(self):
        """Stop a master for a moment, which is too short for a replica to take its place."""
        self._stop_master("stop master", lambda slots, server: time.sleep(self.chance.uniform(0.2, 1.0)))

    def stop_master_until_it_is_replaced(self):
        """Stop a master until another one has its place, and let it go on a while later."""
        def wait(slots, server):
            eventually(lambda: self._successor(slots) not in (None, server), timeout=WHOLE)
            self.pause()

        self._stop_master("stop master until it is replaced", wait)

    def _stop_master(self, kind, wait):
        server, slots = self._choose()
        began = time.time()
        with server.paused():
            wait(slots, server)
        went_on = time.time()
        self._until_whole()
        self.note(kind, began, self._usable_at(went_on), slots, "away")
        after = self._successor(slots)
        if after is server:
            self.note(kind, began - LAG, went_on + GRACE, None, self.missed)
        else:
            self.note(kind, began - LAG, began + 0.2, slots, "loss")
            self.note(kind, went_on - 0.1, went_on + FORMER, slots, "loss")
            self._note_succession(kind, server, after, began, slots)

    # -- what is noted

    def note(self, kind, begin, end, slots, excuses):
        self.faults.append(Fault(kind, begin, end, slots, excuses))

    def _note_succession(self, kind, server, after, began, slots):
        if self.clocks[after] > self.clocks[server]:
            self.note(kind, began - LAG, time.time(), slots, "ahead")

    def _set_clock(self, kind, server, seconds):
        began, before, self.clocks[server] = time.time(), self.clocks[server], seconds
        if seconds != before:
            slots = self._slots_of(server)
            server.set_clock(seconds)
            if seconds > before and slots != frozenset():
                self.note(kind, began - 0.1, time.time() + 0.1, slots, "ahead")
            self.note(kind, began, time.time() + GRACE, slots, self.clock_excuses)

    # -- what differs

    def _choose(self):
        server = self._harmed = self.chance.choice(self._masters())
        return server, self._slots_of(server)

    def _until_whole(self):
        eventually(self._is_whole, timeout=WHOLE, message="the servers are not in sync again")

    def _is_whole(self):
        with contextlib.suppress(redis.RedisError, StopIteration, LookupError, OSError):
            return self._are_in_sync()


def _is_replica(server):
    """Whether a server follows another one; a new replica closes its connections."""
    with contextlib.suppress(redis.RedisError, OSError):
        info = server.client().info("replication")
        return info["role"] == "slave" and info["master_link_status"] == "up"


class ClusterServers(Servers):
    """Three masters, and a replica of each."""

    lists = "{0}//{{{0}}}/coordination"
    missed = "missed"
    kinds = ("kill master", "stop master", "stop master until it is replaced", "kill replica", "move slots", "step clock")

    def __init__(self, folder, chance, longest):
        options = ("--cluster-require-full-coverage", "no")
        super().__init__(Cluster(folder, make_server=SteppedServer, options=options), chance, longest)

    def move_slots(self):
        """Move the slots of some keys to other masters while they are used."""
        for key in self.chance.sample(self.keys, 3):
            slot, began = key_slot(key.encode()), time.time()
            source = self.topology.owner(slot)
            target = self.chance.choice([one for one in self._masters() if one is not source])
            self.topology.move(slot, target, pause=lambda: time.sleep(0.05))
            self.note("move slots", began, time.time() + GRACE, frozenset({slot}), "moved")
            self._note_succession("move slots", source, target, began, frozenset({slot}))
        self._until_whole()

    def _owner_of(self, key):
        return self.topology.owner_of(key)

    def _masters(self):
        return self.topology.masters()

    def _slots_of(self, server):
        return self.topology.slots_of(server)

    def _fail_over(self, server):
        return self.topology.fail_over(server)

    def _successor(self, slots):
        return self.topology.owner(min(slots))

    def _usable_at(self, moment):
        return moment + GRACE

    def _rejoin(self, server):
        """Do nothing: a node finds its successor by itself."""

    def _are_in_sync(self):
        masters = self._masters()
        views = {
            tuple(sorted(
                (start, end, master[1])
                for start, end, master, *_ in execute(server, "CLUSTER", "SLOTS")))
                 for server in self.topology.servers}
        return len(views) == 1 and len(masters) == 3 and all(
            _is_replica(server) for server in self.topology.servers if server not in masters) and all(
            server.client().info("replication")["connected_slaves"] for server in masters)


class SentinelServers(Servers):
    """A master, two replicas, and three Sentinels; a master that has lost its replicas takes no writes."""

    #: Its replicas seem to be disconnected since before its clock was set.
    clock_excuses = "away"
    kinds = ("kill master", "stop master", "stop master until it is replaced", "kill replica", "step down", "kill sentinel",
             "step clock")

    def __init__(self, folder, chance, longest):
        options = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
        super().__init__(Replicated(folder, make_server=SteppedServer, options=options), chance, longest)

    def kill_sentinel(self):
        """Kill a Sentinel; the two others go on."""
        sentinel = self.chance.choice(self.topology.sentinels)
        sentinel.kill()
        self.pause()
        sentinel.start()
        self._until_whole()

    def step_down(self):
        """Let the Sentinels replace a master that is well."""
        (before, _), began = self._choose(), time.time()
        eventually(lambda: self._replaces(before), timeout=WHOLE)
        eventually(lambda: _is_replica(before), timeout=WHOLE)
        self.note("step down", began - LAG, time.time(), None, "loss")
        self._until_whole()
        self.note("step down", began, self._usable_at(time.time()), None, "away")
        self._note_succession("step down", before, self.topology.master(), began, None)

    def _replaces(self, before):
        """Request another master; return whether there is one in 10 s: busy Sentinels give up."""
        with contextlib.suppress(redis.ResponseError):  # it is under way, or no replica is good enough at this moment
            execute(self.topology.sentinels[0], "SENTINEL", "FAILOVER", "mymaster")
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.topology.master() is not before, timeout=10)
        return self.topology.master() is not before

    def _owner_of(self, key):
        return self.topology.master()

    def _masters(self):
        return [self.topology.master()]

    def _slots_of(self, server):
        return None if server is self.topology.master() else frozenset()

    def _fail_over(self, server):
        return self.topology.fail_over()

    def _successor(self, slots):
        after = self.topology.master()
        with contextlib.suppress(redis.RedisError, OSError):
            return after if after.is_running and after.client().role()[0] == b"master" else None

    def _usable_at(self, moment):
        """Return when the master takes writes: when a replica has caught up, which it counts once a second."""
        return time.time() + GRACE

    def _rejoin(self, server):
        """Let a server be a replica now; the Sentinels would wait for ten seconds."""
        self.topology.demote(server)

    def _are_in_sync(self):
        master = self.topology.master()
        return self.topology.is_complete() and all(
            _is_replica(server) for server in self.topology.servers if server is not master)


TOPOLOGIES = {"one": OneServer, "cluster": ClusterServers, "sentinel": SentinelServers}
