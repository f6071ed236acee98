"""Schedulers: which real server gets a new connection.

    a new connection --> Scheduler.choose --> one of service.destinations, or None: nobody can take it

One class each, one registry. The primary form is `choose`, for one packet, because most of them remember: a pointer,
the load of each server, a cache. What depends on the addresses alone also answers for many packets at once
(`choose_many`), and says the same. A service's list of destinations is newest first, as in Linux; ties go to the first.
"""

from __future__ import annotations

from functools import reduce
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from netemu.hashing import hash32, siphash13
from netemu.packets import I32, U16, U32

if TYPE_CHECKING:
    from netemu.ipvs import Destination, Service

SCHEDULERS: dict[str, type[Scheduler]] = {}

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
# what lblc and lblcr remember of addresses: looked through every minute, and whole every half hour, when what nobody
# asked for longer than a day goes; above so many addresses, what nobody asked for these six minutes
FULL_SWEEP = 30
CACHE_LIMIT, CACHE_BUCKETS = 16384, 1024
SHORT_LIFE = 6 * MINUTE


class Asked(NamedTuple):
    """What a scheduler may know of the packet. Addresses are ints in host order; `draw` is 64 random bits."""

    src: int
    sport: int
    dst: int
    dport: int
    now: int = 0
    draw: int = 0


class Scheduler:
    """One `-s name`. Every virtual service has its own.

    FLAGS   names of its `-b` flags, lowest bit first
    PURE    the answer depends on the packet's addresses and the servers only; nothing is remembered
    LOADS   it depends on how many connections servers have
    MANY    there is a `choose_many`
    """

    name: ClassVar[str] = ""
    FLAGS: ClassVar[tuple[str, ...]] = ()
    PURE: ClassVar[bool] = False
    LOADS: ClassVar[bool] = False
    MANY: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str = "") -> None:
        if name:  # else a family of schedulers
            cls.name = name
            SCHEDULERS[name] = cls

    def __init__(self, service: Service) -> None:
        self.service = service
        self.began = 0  # ns, when the service got it
        self.expiration = 24 * 3600 * SECOND  # net.ipv4.vs.lblc_expiration or lblcr_expiration

    @property
    def servers(self) -> list[Destination]:
        """The service's destinations, newest first."""
        return self.service.destinations

    def added(self, dest: Destination) -> None:
        """`dest` was put at the head of the list."""

    def deleted(self, dest: Destination, place: int) -> None:
        """`dest` was taken out of the list, where it stood at `place`."""

    def edited(self, dest: Destination) -> None:
        """The weight of `dest` may have changed."""

    def choose(self, asked: Asked) -> Destination | None:
        """The server for this new connection, or None when no server takes it."""
        raise NotImplementedError

    def choose_many(self, src: U32, sport: U16, dst: U32) -> I32:
        """What `choose` says of new connections one after the other: places in `servers`, -1 for nobody."""
        raise NotImplementedError

    def why(self, asked: Asked, chosen: Destination) -> str:
        """Why `choose` has just said so, in words."""
        raise NotImplementedError


def eligible(dest: Destination) -> bool:
    """It takes new connections: weight above 0 and below its upper threshold."""
    return dest.weight > 0 and not dest.overloaded


def overhead(dest: Destination) -> int:
    """How busy it is: an active connection counts as 256 inactive ones."""
    return dest.active * 256 + dest.inactive


def expected(dest: Destination) -> int:
    """The delay a new connection would meet there: the active ones and itself."""
    return dest.active + 1


def lightest(servers: list[Destination], cost: Any) -> Destination | None:
    """The smallest cost a weight. Compared crosswise, in integers, so that equal really is equal."""
    best: Destination | None = None
    for d in servers:
        if eligible(d) and (best is None or cost(best) * d.weight > cost(d) * best.weight):
            best = d
    return best


# ---- in turn ----------------------------------------------------------------------------------------------------


class RoundRobin(Scheduler, name="rr"):
    """Each in turn, weights only asked whether they are 0. Starts with the newest, since that heads the list."""

    MANY = True

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.last: Destination | None = None  # None: before the head
        self.columns: Turns | None = None  # who knows better than `last`, if anybody

    def added(self, dest: Destination) -> None:
        self.come_home()

    def edited(self, dest: Destination) -> None:
        self.come_home()

    def deleted(self, dest: Destination, place: int) -> None:
        self.come_home()
        if dest is self.last:
            self.last = self.servers[place - 1] if place else None

    def come_home(self) -> None:
        """From here on this object knows whose turn it was."""
        if self.columns is not None:
            self.last = self.columns.give_back(self.service.stat, self.last)
            self.columns = None

    def choose(self, asked: Asked) -> Destination | None:
        for k in self.waiting()[:1]:
            self.last = self.servers[k]
            return self.last
        return None

    def waiting(self) -> list[int]:
        """Places in `servers` of those that take connections, in the order of their turns."""
        self.come_home()
        servers = self.servers
        start = servers.index(self.last) + 1 if self.last is not None else 0
        return [k for k in (*range(start, len(servers)), *range(start)) if eligible(servers[k])]

    def choose_many(self, src: U32, sport: U16, dst: U32) -> I32:
        n, turns = len(src), self.waiting()
        if not turns:
            return np.full(n, -1, np.int32)
        out = np.array((turns * -(-n // len(turns)))[:n], np.int32)
        self.last = self.servers[int(out[-1])]
        return out

    def why(self, asked: Asked, chosen: Destination) -> str:
        return "its turn: the first behind the one chosen last that takes connections"


class Turns:
    """Round robin for thousands of services together, in columns by the number of a service's counters.

    A service's own scheduler knows whose turn it was until its connections are chosen here; from then on it is known
    here, until the scheduler asks back (`RoundRobin.come_home`).
    """

    def __init__(self) -> None:
        self._begin, self._size, self._next = (np.zeros(64, np.int64) for _ in range(3))
        self._here, self._went = np.zeros(64, bool), np.zeros(64, bool)  # it is known here; somebody was chosen here
        self._order: dict[int, list[Destination]] = {}
        self._numbers = np.zeros(64, np.int32)  # of the servers of all orders, one after the other
        self._used = 0
        self._space: dict[int, int] = {}  # how many a service has room for there

    def choose(self, stats: I32, services: dict[int, Service]) -> I32:
        """Numbers of the servers of new connections in order of arrival, -1 for nobody.

        stats  int32[n]  the number of each one's service; all of these have a RoundRobin scheduler
        """
        top = int(stats.max()) + 1
        if top > len(self._here):
            for name in ("_begin", "_size", "_next", "_here", "_went"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros(max(top - len(old), len(old)), old.dtype)]))
        order = np.argsort(stats.astype(np.uint16) if top <= 1 << 16 else stats, kind="stable")
        ordered = stats[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        each, counts = ordered[starts], np.diff(starts, append=len(stats))
        for stat in each[~self._here[each]].tolist():
            self._take(services[stat])
        size = np.maximum(self._size[each], 1)
        place = np.repeat(self._next[each] - starts, counts) + np.arange(len(stats))
        place = np.repeat(self._begin[each], counts) + place % np.repeat(size, counts)
        out = np.empty(len(stats), np.int32)
        out[order] = np.where(np.repeat(self._size[each], counts) > 0, self._numbers.take(place, mode="clip"), -1)
        self._next[each] = (self._next[each] + counts) % size
        self._went[each] = True
        return out

    def _take(self, service: Service) -> None:
        scheduler = service.scheduler
        assert isinstance(scheduler, RoundRobin)
        servers = [service.destinations[k] for k in scheduler.waiting()]
        scheduler.columns = self
        if self._used + len(servers) > len(self._numbers):
            more = max(len(servers), len(self._numbers))
            self._numbers = np.concatenate([self._numbers, np.zeros(more, np.int32)])
        stat, begin = service.stat, self._used
        if stat in self._order and self._space[stat] >= len(servers):
            begin = int(self._begin[stat])  # where it had its place before
        else:
            self._used += len(servers)
            self._space[stat] = len(servers)
        self._numbers[begin : begin + len(servers)] = [d.number for d in servers]
        self._begin[stat], self._size[stat], self._next[stat], self._here[stat] = begin, len(servers), 0, True
        self._went[stat] = False
        self._order[stat] = servers

    def give_back(self, stat: int, before: Destination | None) -> Destination | None:
        """Whose turn it was last; `before`: whose it was when the service came here."""
        self._here[stat] = False
        servers = self._order[stat]
        return servers[int(self._next[stat]) - 1] if servers and self._went[stat] else before


class WeightedRoundRobin(Scheduler, name="wrr"):
    """Passes over the list with a falling bar: on each pass, everybody of at least that weight has one turn.

    step  greatest common divisor of the weights: how far the bar falls after each pass
    top   where the bar starts
    bar   where it is; last: whose turn it was (None: before the head)
    """

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.last: Destination | None = None
        self._measure()
        self.bar = self.top

    def _measure(self) -> None:
        weights = [d.weight for d in self.servers if d.weight > 0]
        self.step = reduce(gcd, weights) if weights else 1
        self.top = max(weights) - (self.step - 1) if weights else 0

    def _changed(self) -> None:
        self.last = None
        self._measure()
        if self.bar > self.top or self.bar == 0:
            self.bar = self.top
        elif self.step > 1:
            self.bar = self.bar // self.step * self.step + 1

    def added(self, dest: Destination) -> None:
        self._changed()

    def deleted(self, dest: Destination, place: int) -> None:
        self._changed()

    def edited(self, dest: Destination) -> None:
        self._changed()

    def choose(self, asked: Asked) -> Destination | None:
        servers = self.servers
        if self.top == 0:
            return None
        began = -1 if self.last is None else servers.index(self.last)
        place, stop = began, -1
        lowest = wrapped = False
        while True:
            for k in range(place + 1, len(servers)):
                dest = servers[k]
                if not dest.overloaded and dest.weight >= self.bar:
                    self.last = dest
                    return dest
                if k == stop:
                    self.last = dest
                    return None
            self.last = None
            self.bar -= self.step
            if self.bar <= 0:
                self.bar = self.top
                if lowest or began < 0:
                    return None
                wrapped = True
            place = -1
            lowest = self.bar <= self.step  # everybody with any weight is asked in this pass ...
            if lowest and wrapped and began >= 0:
                stop = began  # ... and those behind `began` were asked already

    def why(self, asked: Asked, chosen: Destination) -> str:
        return f"its turn: weight {chosen.weight} reaches the bar, which stands at {self.bar} of {self.top}"


# ---- by load ----------------------------------------------------------------------------------------------------


class LeastConnection(Scheduler, name="lc"):
    """Fewest connections wins."""

    LOADS = True

    def choose(self, asked: Asked) -> Destination | None:
        return min(filter(eligible, self.servers), key=overhead, default=None)

    def why(self, asked: Asked, chosen: Destination) -> str:
        return f"fewest connections: 256 x {chosen.active} active + {chosen.inactive} inactive = {overhead(chosen)}"


class WeightedLeastConnection(Scheduler, name="wlc"):
    """Fewest connections for its weight wins. ipvsadm's default."""

    LOADS = True

    def choose(self, asked: Asked) -> Destination | None:
        return lightest(self.servers, overhead)

    def why(self, asked: Asked, chosen: Destination) -> str:
        load = f"(256 x {chosen.active} active + {chosen.inactive} inactive) / weight {chosen.weight}"
        return f"fewest connections for its weight: {load}"


class ShortestExpectedDelay(Scheduler, name="sed"):
    """Fewest active connections for its weight, the new one counted in."""

    LOADS = True

    def choose(self, asked: Asked) -> Destination | None:
        return lightest(self.servers, expected)

    def why(self, asked: Asked, chosen: Destination) -> str:
        return f"shortest expected delay: ({chosen.active} active + 1) / weight {chosen.weight}"


class NeverQueue(Scheduler, name="nq"):
    """Whoever is idle, first in the list; when nobody is, as sed."""

    LOADS = True

    def choose(self, asked: Asked) -> Destination | None:
        for d in self.servers:
            if eligible(d) and d.active == 0:
                return d
        return lightest(self.servers, expected)

    def why(self, asked: Asked, chosen: Destination) -> str:
        if not chosen.active:
            return "the first that has no active connection"
        return f"nobody is idle; shortest expected delay: ({chosen.active} active + 1) / weight {chosen.weight}"


class FailOver(Scheduler, name="fo"):
    """Everything to the greatest weight."""

    def choose(self, asked: Asked) -> Destination | None:
        return max(filter(eligible, self.servers), key=lambda d: d.weight, default=None)

    def why(self, asked: Asked, chosen: Destination) -> str:
        return f"greatest weight that takes connections: {chosen.weight}"


class OverFlow(Scheduler, name="ovf"):
    """Everything to the greatest weight, until it has more active connections than its weight; then the next."""

    LOADS = True

    def choose(self, asked: Asked) -> Destination | None:
        room = (d for d in self.servers if eligible(d) and d.active <= d.weight)
        return max(room, key=lambda d: d.weight, default=None)

    def why(self, asked: Asked, chosen: Destination) -> str:
        return f"greatest weight ({chosen.weight}) that has no more active connections ({chosen.active}) than that"


class PowerOfTwos(Scheduler, name="twos"):
    """Two drawn by weight; the less busy of them. Linux draws at random, netemu from its seed."""

    LOADS = True

    def choose(self, asked: Asked) -> Destination | None:
        servers = [d for d in self.servers if eligible(d)]
        total = sum(d.weight for d in servers)
        if not servers:
            return None
        first, second = (self._at(servers, half % (total + 1)) for half in (asked.draw & 0xFFFFFFFF, asked.draw >> 32))
        return second if overhead(second) * first.weight < overhead(first) * second.weight else first

    @staticmethod
    def _at(servers: list[Destination], mark: int) -> Destination:
        for d in servers:
            mark -= d.weight
            if mark <= 0:
                return d
        return servers[-1]

    def why(self, asked: Asked, chosen: Destination) -> str:
        return (
            "the less busy, for its weight, of two drawn by weight (netemu's seed draws, where Linux draws at random)"
        )


# ---- by address -------------------------------------------------------------------------------------------------


class AddressHash(Scheduler):
    """A table of slots filled with servers, and a hash of the packet's address that points into it."""

    PURE = MANY = True
    port_flag: ClassVar[str] = ""
    fallback_flag: ClassVar[str] = ""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._slots: list[Destination] | None = None  # None: to be filled when somebody asks

    def added(self, dest: Destination) -> None:
        self._slots = None

    def deleted(self, dest: Destination, place: int) -> None:
        self._slots = None

    def edited(self, dest: Destination) -> None:
        self._slots = None

    @property
    def slots(self) -> list[Destination]:
        """The table; empty when no server has a place in it."""
        if self._slots is None:
            self._slots = self.filled()
        return self._slots

    def filled(self) -> list[Destination]:
        """A new table for the servers as they are."""
        raise NotImplementedError

    def slot(self, addr: Any, port: Any, offset: int = 0) -> Any:
        """Slot of an address and port; of one (ints) or of many (uint64[n])."""
        raise NotImplementedError

    def key(self, asked: Asked) -> tuple[int, int]:
        """The address and port that are hashed."""
        return asked.src, asked.sport if self.port_flag in self.service.flags else 0

    def choose(self, asked: Asked) -> Destination | None:
        slots = self.slots
        if not slots:
            return None
        addr, port = self.key(asked)
        first: int = self.slot(addr, port)
        dest: Destination = slots[first]
        if eligible(dest):
            return dest
        if self.fallback_flag in self.service.flags:
            for step in range(len(slots)):
                dest = slots[self.slot(addr, port, (step + first) % len(slots))]
                if eligible(dest):
                    return dest
        return None

    def choose_many(self, src: U32, sport: U16, dst: U32) -> I32:
        """As Scheduler says. Cost: one hash and two gathers each; slots whose server takes nobody go one by one."""
        if not self.slots:
            return np.full(len(src), -1, np.int32)
        addrs = dst if isinstance(self, DestinationHash) else src
        ports = sport if self.port_flag in self.service.flags else np.zeros_like(sport)
        place = {id(d): k for k, d in enumerate(self.servers)}
        table = np.array([place[id(d)] for d in self.slots], np.int32)
        able = np.array([eligible(d) for d in self.servers], bool)
        out: I32 = table[self.slot(addrs.astype(np.uint64), ports.astype(np.uint64)).astype(np.int64)]
        for k in np.flatnonzero(~able[out]).tolist():
            dest = self.choose(Asked(int(src[k]), int(sport[k]), int(dst[k]), 0))
            out[k] = -1 if dest is None else place[id(dest)]
        return out

    def why(self, asked: Asked, chosen: Destination) -> str:
        addr, port = self.key(asked)
        first: int = self.slot(addr, port)
        what = "destination address" if isinstance(self, DestinationHash) else "client address"
        if self.port_flag in self.service.flags:
            what += " and port"
        if self.slots[first] is chosen:
            return f"the {what} falls into slot {first} of {len(self.slots)}, which is this server's"
        return (
            f"slot {first} of {len(self.slots)} belongs to one that takes nobody; the first that does, slots further on"
        )


class DestinationHash(AddressHash, name="dh"):
    """By destination address: for caches behind a firewall mark. Weights are not asked for shares."""

    def filled(self) -> list[Destination]:
        servers = self.servers
        return [servers[k % len(servers)] for k in range(256)] if servers else []

    def key(self, asked: Asked) -> tuple[int, int]:
        return asked.dst, 0

    def slot(self, addr: Any, port: Any, offset: int = 0) -> Any:
        return hash32(addr, 8)


class SourceHash(AddressHash, name="sh"):
    """By client address (and port with sh-port): the same client meets the same server, weights give the shares."""

    FLAGS = ("sh-fallback", "sh-port")
    port_flag, fallback_flag = "sh-port", "sh-fallback"

    def filled(self) -> list[Destination]:
        turn = [d for d in self.servers for _ in range(min(max(1, d.weight), 256))]
        return [turn[k % len(turn)] for k in range(256)] if turn else []

    def slot(self, addr: Any, port: Any, offset: int = 0) -> Any:
        return (offset + hash32((addr + port) & 0xFFFFFFFF, 8)) & 255


class Maglev(AddressHash, name="mh"):
    """By client address, in a table that changes little when servers come and go (Maglev hashing, NSDI 2016).

    Every server has its own order of all slots; in turns, each takes the next slot of its order that is still free,
    several at a turn by weight. A server set to weight 0 keeps its slots, so that setting it back moves nobody.
    """

    FLAGS = ("mh-fallback", "mh-port")
    port_flag, fallback_flag = "mh-port", "mh-fallback"
    SIZE = 4093
    MAX_SHIFT = 6
    KEY1, KEY2 = 2654435761, 2654446892

    def filled(self) -> list[Destination]:
        servers = self.servers
        weights = [d.last_weight for d in servers]
        shared = reduce(gcd, (w for w in weights if w > 0), 0)
        if not shared:
            return []
        size = self.SIZE
        shift = max(0, (max(weights) // shared).bit_length() - self.MAX_SHIFT)
        turns = [(w // shared >> shift) or (1 if w else 0) for w in weights]
        at, stride = [], []
        for d in servers:
            mixed = (d.addr + d.port) & 0xFFFFFFFF
            at.append(siphash13(mixed, self.KEY1) % size)
            stride.append(siphash13(mixed, self.KEY2) % (size - 1) + 1)
        table: list[Destination | None] = [None] * size
        left = size
        while left:
            for k, d in enumerate(servers):
                for _ in range(turns[k]):
                    while table[at[k]] is not None:
                        at[k] = (at[k] + stride[k]) % size
                    table[at[k]] = d
                    left -= 1
                    if not left:
                        break
                if not left:
                    break
        return [d for d in table if d is not None]

    def slot(self, addr: Any, port: Any, offset: int = 0) -> Any:
        return siphash13((addr + port + offset) & 0xFFFFFFFF, self.KEY1) % self.SIZE


# ---- by what an address had before --------------------------------------------------------------------------------


class Remembered:
    """What an address has: servers (newest first), when that last changed, when it was last asked for."""

    __slots__ = ("asked", "changed", "members")

    def __init__(self, dest: Destination, now: int) -> None:
        self.members, self.changed, self.asked = [dest], now, now


class AddressCache(Scheduler):
    """Remembers what destination addresses had, and forgets addresses that nobody asks for."""

    LOADS = True

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.cache: dict[int, Remembered] = {}  # by address, newest last
        self.kept = False  # the last answer came from the cache
        self._swept = 0  # minutes since `began` that were looked after
        self._rounds = 1  # those since the last full sweep
        self._rover = 0  # bucket that a short sweep came to

    def _sweep(self, now: int) -> None:
        """Do what the minutes that went by would have done."""
        minutes = (now - self.began) // MINUTE
        while self._swept < minutes:
            self._swept += 1
            at = self.began + self._swept * MINUTE
            if self._rounds == FULL_SWEEP:
                self._rounds = 1
                self.cache = {a: e for a, e in self.cache.items() if at < e.asked + self.expiration}
            elif len(self.cache) <= CACHE_LIMIT:
                self._rounds += 1
            else:
                self._shorten(at)
            if not self.cache:  # nothing happens any more but counting
                self._rounds = (self._rounds - 1 + minutes - self._swept) % FULL_SWEEP + 1
                self._swept = minutes

    def _shorten(self, at: int) -> None:
        """Too many addresses: bucket by bucket, from where the last short sweep stopped, the unused ones go."""
        goal = min((len(self.cache) - CACHE_LIMIT) * 4 // 3, CACHE_LIMIT // 2)
        buckets: dict[int, list[int]] = {}
        for addr in reversed(self.cache):
            buckets.setdefault(addr * 2654435761 & (CACHE_BUCKETS - 1), []).append(addr)
        for _ in range(CACHE_BUCKETS):
            self._rover = (self._rover + 1) & (CACHE_BUCKETS - 1)
            for addr in buckets.get(self._rover, ()):
                if at >= self.cache[addr].asked + SHORT_LIFE:
                    del self.cache[addr]
                    goal -= 1
            if goal <= 0:
                break

    def why(self, asked: Asked, chosen: Destination) -> str:
        if self.kept:
            return "the destination address had it before, and it is not overloaded while another is half idle"
        load = f"(256 x {chosen.active} active + {chosen.inactive} inactive) / weight {chosen.weight}"
        return f"the destination address has nobody fit; fewest connections for its weight: {load}"


class Locality(AddressCache, name="lblc"):
    """A destination address stays with its server, until that server is overloaded while another is half idle.

    For clusters of caches. The first choice, and every new one, is wlc's.
    """

    def choose(self, asked: Asked) -> Destination | None:
        self._sweep(asked.now)
        self.kept = False
        entry = self.cache.get(asked.dst)
        if entry is not None:
            dest = entry.members[0]
            entry.asked = asked.now
            if dest.available and dest.weight > 0 and not overburdened(dest, self.servers):
                self.kept = True
                return dest
        best = lightest(self.servers, overhead)
        if best is not None and (entry is None or best is not entry.members[0]):
            self.cache.pop(asked.dst, None)
            self.cache[asked.dst] = Remembered(best, asked.now)
        return best


class LocalityReplicated(AddressCache, name="lblcr"):
    """Like lblc, but an address may have several servers: one joins under load, the busiest leaves after a day."""

    def choose(self, asked: Asked) -> Destination | None:
        self._sweep(asked.now)
        self.kept = False
        group = self.cache.get(asked.dst)
        if group is None:
            dest = lightest(self.servers, overhead)
            if dest is not None:
                self.cache[asked.dst] = Remembered(dest, asked.now)
            return dest
        group.asked = asked.now
        dest = lightest([d for d in group.members if d.available], overhead)
        if len(group.members) > 1 and asked.now - group.changed > self.expiration:
            most = self._most(group.members)
            if most is not None:
                group.members.remove(most)
                group.changed = asked.now
        if dest is not None and not overburdened(dest, self.servers):
            self.kept = True
            return dest
        dest = lightest(self.servers, overhead)
        if dest is not None and dest not in group.members:
            group.members.insert(0, dest)
            group.changed = asked.now
        return dest

    @staticmethod
    def _most(members: list[Destination]) -> Destination | None:
        worst: Destination | None = None
        for d in members:
            if d.weight > 0 and (worst is None or overhead(worst) * d.weight < overhead(d) * worst.weight):
                worst = d
        return worst


def overburdened(dest: Destination, servers: list[Destination]) -> bool:
    """More active connections than its weight, while somebody else has less than half of his."""
    return dest.active > dest.weight and any(d.active * 2 < d.weight for d in servers)


class Nobody(Scheduler, name="none"):
    """No scheduler: only what a persistence template already binds is served."""

    PURE = True

    def choose(self, asked: Asked) -> Destination | None:
        return None


def catalogue() -> str:
    """The registry as a Markdown table (docs/ipvs.md holds it, and a test that it is up to date)."""
    lines = ["| scheduler | flags | remembers | who gets a new connection |", "|---|---|---|---|"]
    for name, kind in sorted(SCHEDULERS.items()):
        meaning = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        flags = " ".join(f"`{flag}`" for flag in kind.FLAGS) or "-"
        lines.append(f"| `{name}` | {flags} | {'no' if kind.PURE else 'yes'} | {meaning} |")
    return "\n".join(lines) + "\n"
