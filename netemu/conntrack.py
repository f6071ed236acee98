"""Connection tracking: which connection a packet belongs to, and for how long the node remembers it.

A flow is two tuples: the original one, as the first packet had it, and the reply one, as answers will come. Flows stand
in columns; both tuples of a confirmed flow are keys of one hash table (id = 2 * flow + direction). A new flow is not
findable until its first packet has left or was delivered ("confirmed"): dropped on the way, it never was.

Timers are deadlines in nanoseconds on the packets' own clock: a flow whose deadline has passed is not there any more,
whoever looks first sweeps it out.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netemu.errors import REFUSED, UNSUPPORTED, Problem, Unsupported
from netemu.hashing import Table, span
from netemu.packets import (
    ACK,
    ANSWERS,
    DCCP,
    DONT_FRAGMENT,
    ESTABLISHED,
    GRE,
    HOST,
    I16,
    I32,
    I64,
    ICMP,
    ICMP_ERRORS,
    INVALID,
    NEW,
    OFFSET_MASK,
    PORTED,
    RELATED,
    RST,
    SCTP,
    SYN,
    TCP,
    U8,
    U16,
    U32,
    U64,
    UDP,
    UDPLITE,
    UNTRACKED,
    Mask,
    Packets,
    Rows,
    distinct,
    stretch,
)
from netemu.paths import Step
from netemu.protocols import FITS, LOST, TRACKERS, gre_keys
from netemu.tcp import ACCEPTED, CL, GONE, INVALID_SEGMENT, SECOND, STATES, UNTOUCHED, Flows, Life, Tracker, heard
from netemu.tcp import GOOD_FLAGS as GOOD_TCP_FLAGS
from netemu.timeouts import GENERIC, TIMEOUTS, Policies
from netemu.trip import Trip

if TYPE_CHECKING:
    from netemu.node import Node

# status bits, as `ctstatus` names them
EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED, SRC_NAT, DST_NAT, SEQ_ADJUST = 1, 2, 4, 8, 16, 32, 64
SRC_NAT_DONE, DST_NAT_DONE, DYING, FIXED_TIMEOUT = 128, 256, 512, 1024
MAPPED = 2048  # netemu's own: it stands among `Conntrack.mapped`
NOT_MAPPED = -2  # in the place of where it stands there

#: ICMP query type -> the type that answers it; only these make a tuple
PAIRED = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17}
_PAIRED = np.full(256, 255, np.uint8)
for _a, _b in PAIRED.items():
    _PAIRED[_a] = _b
_OPENING = np.isin(np.arange(256), (8, 13, 15, 17))
_PLAIN = np.isin(np.arange(256), (TCP, UDP, ICMP))  # where the columns hold all that makes a tuple
_ERROR = np.isin(np.arange(256), ICMP_ERRORS)

PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp", 33: "dccp", GRE: "gre", SCTP: "sctp", UDPLITE: "udplite"}
STATE_NAMES = {INVALID: "INVALID", NEW: "NEW", ESTABLISHED: "ESTABLISHED", RELATED: "RELATED", UNTRACKED: "UNTRACKED"}
_STEPS = {state: Step(None, f"conntrack: {name}") for state, name in STATE_NAMES.items()}
_FULL = Step(None, "conntrack: table full")
FULL = -2  # what `_open` says where there is no room

MANY = 12  # fewer than this begin one by one
_COMMON = np.isin(np.arange(256), (TCP, UDP, UDPLITE, ICMP))
_NONE = np.zeros(0, np.intp)
_HALF = np.uint64(32)

Tuple = tuple[int, int, int, int, int]  # src, dst, sport, dport, proto
FOREVER = 1 << 62


#: a zone as one number: its id, and which of the two tuples it is part of where it is not both (the other has zone 0)
SIDES = {"both": 0, "orig": 1 << 16, "reply": 2 << 16}


def zone_id(zone: int, direction: int) -> int:
    """The id that a zone has in one direction (0 original, 1 reply).

    >>> [zone_id(5 | SIDES[side], d) for side in SIDES for d in (0, 1)]
    [5, 5, 5, 0, 0, 5]
    """
    return zone & 0xFFFF if zone >> 16 in (0, 1 + direction) else 0


def key(t: Tuple, zone: int = 0, direction: int = 0) -> tuple[int, int]:
    """The two words under which a flow's tuple of one direction is found. Those of split zones are kept apart."""
    src, dst, sport, dport, proto = t
    word = zone_id(zone, direction) | 1 + direction << 24 if zone >> 16 else zone
    return src << 32 | dst, sport << 48 | dport << 32 | proto << 16 | word


def key_words(src: U32, dst: U32, sport: U16, dport: U16, proto: NDArray[np.integer]) -> tuple[U64, U64]:
    """The same of many, in zone 0, which takes the lowest bits of the second word."""
    addresses = src.astype(np.uint64)
    addresses <<= _HALF
    addresses |= dst
    ports = sport.astype(np.uint32)
    ports <<= np.uint32(16)
    ports |= dport
    low = ports.astype(np.uint64)
    low <<= _HALF
    low |= proto.astype(np.uint32) << np.uint32(16)
    return addresses, low


def inverse(t: Tuple) -> Tuple:
    """The tuple of an answer (ICMP: the paired type, the same id)."""
    src, dst, sport, dport, proto = t
    if proto == ICMP:
        return dst, src, sport, PAIRED.get(dport >> 8, 0) << 8 | (dport & 255), proto
    return dst, src, dport, sport, proto


@dataclass(frozen=True)
class Template:
    """What a rule (`-j CT`) wishes for the connection that a packet is about to begin, or to be found in.

    zone        number, with `of_mark` the packet's mark instead
    direction   "both", or the direction ("orig", "reply") whose tuple the zone is part of; the other one has zone 0
    helper      name of the helper that looks into the connection ("" none)
    timeout     name of a timeout policy ("" none)
    proxied     it is one that SYNPROXY opens
    """

    zone: int = 0
    of_mark: bool = False
    direction: str = "both"
    helper: str = ""
    timeout: str = ""
    proxied: bool = False

    @property
    def zoned(self) -> bool:
        """It says which zone."""
        return bool(self.zone or self.of_mark)


_COLUMNS = {
    "osrc": "u4", "odst": "u4", "osport": "u2", "odport": "u2",
    "rsrc": "u4", "rdst": "u4", "rsport": "u2", "rdport": "u2",
    "proto": "u1", "zone": "u4", "status": "u2", "mark": "u4",
    "deadline": "i8", "created": "i8", "born": "i8", "masq": "i2", "stored": "?", "counted": "?", "stamped": "?",
    "helper": "u1", "parent": "u1", "policy": "u1",
    "omen": "u8",
}  # fmt: skip


class Numbers:
    """A stack of flow numbers."""

    def __init__(self, numbers: NDArray[np.integer] = _NONE) -> None:
        self._all: I32 = numbers.astype(np.int32)
        self._n = len(numbers)

    def __len__(self) -> int:
        return self._n

    def push(self, number: int) -> None:
        if self._n == len(self._all):
            self._room(1)
        self._all[self._n] = number
        self._n += 1

    def extend(self, numbers: NDArray[np.integer]) -> None:
        """The last of them comes out first."""
        if self._n + len(numbers) > len(self._all):
            self._room(len(numbers))
        self._all[self._n : self._n + len(numbers)] = numbers
        self._n += len(numbers)

    def below(self, numbers: NDArray[np.integer]) -> None:
        """They come out when all others did."""
        self._all = np.concatenate([numbers.astype(np.int32), self.all()])
        self._n = len(self._all)

    def pop(self) -> int:
        self._n -= 1
        return self._all.item(self._n)

    def take(self, n: int) -> Flows:
        """The next n, as `pop` would give them."""
        self._n -= n
        return self._all[self._n : self._n + n][::-1].astype(np.intp)

    def all(self) -> I32:
        """Those that there are, the one that comes out first last."""
        return self._all[: self._n]

    def clear(self) -> None:
        self._n = 0

    def cut(self, n: int) -> None:
        """Only the first n that came are left."""
        self._n = n

    def remove(self, number: int) -> None:
        """One that is there is to be no more."""
        place = int(np.flatnonzero(self.all() == number)[0])
        self._all[place : self._n - 1] = self._all[place + 1 : self._n]
        self._n -= 1

    def _room(self, more: int) -> None:
        self._all = np.concatenate([self._all, np.zeros(max(more, len(self._all), 16), np.int32)])


class Sources:
    """Which flows had their source rewritten, newest first of each source (protocol, address, port, zone).

    Flows stand in chains, one for each value of a hash of their source, linked both ways by columns of flow numbers:

        newest[hash] --> flow --older--> flow --older--> -1
                              <--newer--
    """

    def __init__(self, ct: Conntrack) -> None:
        self.ct = ct
        self._n = 0
        self._salt = np.uint32(ct.node.seed * 0x85EBCA6B & 0xFFFFFFFF)
        self._newest = np.full(64, -1, np.int32)
        self._older = self._newer = np.zeros(0, np.int32)  # by flow, as soon as there is one

    def __len__(self) -> int:
        return self._n

    def of(self, t: Tuple, zone: int) -> Iterator[int]:
        """Flows whose original tuple, of that zone, has the source of `t`."""
        there = zone_id(zone, 0)
        flow = self._newest.item(self._hash_one(t[0], t[2], t[4], there))
        ct = self.ct
        while flow >= 0:
            if (
                ct.osrc.item(flow) == t[0] and ct.osport.item(flow) == t[2] and ct.proto.item(flow) == t[4]
                and zone_id(ct.zone.item(flow), 0) == there
            ):  # fmt: skip
                yield flow
            flow = self._older.item(flow)

    def known(self, src: U32, sport: U16, proto: U8, zone: U32) -> Mask:
        """bool[n]: is there a flow of this source?   zone  uint32[n], none of them split"""
        out = np.zeros(len(src), bool)
        if not self._n:
            return out
        at = self._newest.take(self._hash(src, sport, proto, zone & np.uint32(0xFFFF)))
        left = np.flatnonzero(at >= 0)
        ct = self.ct
        while len(left):
            flow = at.take(left)
            same = (ct.osrc[flow] == src[left]) & (ct.osport[flow] == sport[left]) & (ct.proto[flow] == proto[left])
            same &= self._zone(flow) == zone[left]
            out[left[same]] = True
            left = left[~same]
            at[left] = self._older[at[left]]
            left = left[at[left] >= 0]
        return out

    def add(self, flows: NDArray[np.integer]) -> None:
        """Flows whose source was rewritten, the oldest first."""
        if not len(flows):
            return
        if len(self._older) < self.ct.capacity:
            self._older, self._newer = (
                np.concatenate([c, np.full(self.ct.capacity - len(c), -1, np.int32)])
                for c in (self._older, self._newer)
            )
        if self._n + len(flows) > 2 * len(self._newest):
            self._spread(self._n + len(flows))
        self._n += len(flows)
        if len(flows) > 1:
            self._link(flows)
            return
        flow, chain = int(flows[0]), self._of(flows).item()
        before = self._newest.item(chain)
        self._older[flow], self._newer[flow] = before, -1
        if before >= 0:
            self._newer[before] = flow
        self._newest[chain] = flow

    def _link(self, flows: NDArray[np.integer]) -> None:
        hashes = self._of(flows)
        order = grouped(hashes)  # those of one chain side by side, the oldest first
        flows, chain = flows[order], hashes[order]
        inside = chain[1:] == chain[:-1]
        oldest, newest = np.append(True, ~inside), np.append(~inside, True)
        older, newer = flows[:-1][inside], flows[1:][inside]
        self._older[newer], self._newer[older] = older, newer
        first, last = flows[oldest], flows[newest]
        before = self._newest[chain[oldest]]
        self._older[first], self._newer[last] = before, -1
        self._newer[before[before >= 0]] = first[before >= 0]
        self._newest[chain[newest]] = last

    def remove(self, flows: NDArray[np.integer]) -> None:
        """Flows that are there and are to be no more."""
        if not len(flows):
            return
        self._n -= len(flows)
        if not self._n:
            self._newest.fill(-1)
            return
        if len(flows) < MANY:
            for flow in flows.tolist():
                self._unlink(flow)
            return
        gone = np.zeros(len(self._older), bool)
        gone[flows] = True
        hashes = self._of(flows)
        older, newer = self._older, self._newer
        first = self._newest[hashes]
        hashes = hashes[gone[first]]  # (those of one chain come several times, and find the same)
        self._newest[hashes] = self._left(first[gone[first]], older, gone)
        heads = self._newest[hashes]
        newer[heads[heads >= 0]] = -1
        # who stood before one that is gone, and behind it
        near = newer[flows]
        near = near[near >= 0]
        near = near[~gone[near]]
        far = self._left(older[near], older, gone)
        older[near] = far
        newer[far[far >= 0]] = near[far >= 0]

    def _unlink(self, flow: int) -> None:
        older, newer = self._older.item(flow), self._newer.item(flow)
        if older >= 0:
            self._newer[older] = newer
        if newer >= 0:
            self._older[newer] = older
        else:
            self._newest[self._of(np.array([flow]))] = older

    def place(self, flow: int) -> int:
        """Where it stands among those of its source: the next older one of them, -1 none."""
        ct, older = self.ct, self._older.item(flow)
        own = ct.original(flow)
        there = zone_id(int(ct.zone[flow]), 0)
        while older >= 0:
            other = ct.original(older)
            if (other[0], other[2], other[4], zone_id(int(ct.zone[older]), 0)) == (own[0], own[2], own[4], there):
                break
            older = self._older.item(older)
        return older

    def put_back(self, flow: int, place: int) -> None:
        """A flow that was removed stands where it stood."""
        chain = self._of(np.array([flow])).item()
        if place < 0:  # the oldest of its source: behind all others
            newer, older = -1, self._newest.item(chain)
            while older >= 0:
                newer, older = older, self._older.item(older)
        else:
            newer, older = self._newer.item(place), place
            self._newer[place] = flow
        self._older[flow], self._newer[flow] = older, newer
        if newer >= 0:
            self._older[newer] = flow
        else:
            self._newest[chain] = flow
        self._n += 1

    @staticmethod
    def _left(flows: I32, older: I32, gone: Mask) -> I32:
        """The first of each flow and those behind it that is not gone, -1: all are."""
        flows = flows.copy()
        some = np.flatnonzero(flows >= 0)
        while len(some):
            some = some[gone[flows[some]]]
            flows[some] = older[flows[some]]
            some = some[flows[some] >= 0]
        return flows

    def _spread(self, n: int) -> None:
        """Room for n: more chains. Each of the new ones has flows of one of the old ones only."""
        levels = []
        here = self._newest[self._newest >= 0]
        while len(here):
            levels.append(here)
            here = self._older[here]
            here = here[here >= 0]
        self._newest = np.full(2 * (1 << n.bit_length()), -1, np.int32)
        if levels:
            self._link(np.concatenate(levels[::-1]))

    def _of(self, flows: NDArray[np.integer]) -> Flows:
        ct = self.ct
        return self._hash(ct.osrc[flows], ct.osport[flows], ct.proto[flows], self._zone(flows))

    def _zone(self, flows: NDArray[np.integer]) -> U32:
        """`zone_id` of many, in the original direction."""
        zone = self.ct.zone[flows]
        whole: U32 = (zone & np.uint32(0xFFFF)) * (zone >> np.uint32(16) <= 1)
        return whole

    def _hash(self, src: U32, sport: U16, proto: U8, zone: U32) -> Flows:
        h = (src ^ self._salt) * np.uint32(0x9E3779B1) ^ (sport.astype(np.uint32) << np.uint32(16) | sport) * np.uint32(
            0x85EBCA77
        )
        h ^= (zone << np.uint32(8) | proto) * np.uint32(0xC2B2AE3D)
        h ^= h >> np.uint32(15)
        h *= np.uint32(0x2C1B3C6D)
        return (h >> np.uint32(33 - len(self._newest).bit_length())).astype(np.intp)

    def _hash_one(self, src: int, sport: int, proto: int, zone: int) -> int:
        """The same of one."""
        h = ((src ^ int(self._salt)) * 0x9E3779B1 ^ (sport << 16 | sport) * 0x85EBCA77) & 0xFFFFFFFF
        h ^= (zone << 8 | proto) * 0xC2B2AE3D & 0xFFFFFFFF
        h = (h ^ h >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
        return h >> 33 - len(self._newest).bit_length()

    def check(self) -> None:
        """Are the chains whole, and are the flows in them those whose source was rewritten?"""
        found = list[int]()
        for k, flow in enumerate(self._newest.tolist()):
            before = -1
            while flow >= 0:
                assert self._newer[flow] == before and self._of(np.array([flow])).item() == k, "chains"
                found.append(flow)
                before, flow = flow, self._older.item(flow)
        assert len(found) == self._n == len(set(found)), "how many"


class Conntrack:
    """The flows of a node, in columns by flow number (see DESIGN of each column in `_COLUMNS`).

    osrc odst osport odport   the original tuple; ICMP: osport is the id, odport is type << 8 | code
    rsrc rdst rsport rdport   the reply tuple, as `conntrack -L` prints it
    policy   number of the timeout policy that it has, 0 none
    zone     id, and above it which tuple it is part of (SIDES)
    status   bits EXPECTED .. FIXED_TIMEOUT       deadline  int64 ns       created  int64 ns
    born     serial number of the packet that began it
    masq     link that MASQUERADE chose for it, -1 none
    helper   who looks into it (helpers.NAMES), 0 nobody   parent   who looked into the connection that told of this one
    omen     what its first packet looked like, if one that looks like it will fare as it did (`looks`), else 0
    stored   both tuples are findable             packets, bytes  int64[flows, 2], original and reply (when counted)

    fares    int32[2 * flows], by id: how the last packet fared (settled.py), 0 where nobody knows
    """

    osrc: NDArray[np.uint32]
    odst: NDArray[np.uint32]
    osport: NDArray[np.uint16]
    odport: NDArray[np.uint16]
    rsrc: NDArray[np.uint32]
    rdst: NDArray[np.uint32]
    rsport: NDArray[np.uint16]
    rdport: NDArray[np.uint16]
    proto: NDArray[np.uint8]
    zone: NDArray[np.uint32]
    status: NDArray[np.uint16]
    mark: NDArray[np.uint32]
    deadline: I64
    created: I64
    born: I64
    masq: NDArray[np.int16]
    stored: Mask
    counted: Mask
    stamped: Mask
    helper: U8
    parent: U8
    policy: U8
    omen: NDArray[np.uint64]

    def __init__(self, node: Node, capacity: int = 64) -> None:
        self.node = node
        self.capacity = capacity
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(capacity, dtype))
        self._counters: tuple[I64, I64] | None = None  # see `packets` and `bytes`
        self.fares = np.zeros(2 * capacity, np.int32)
        self.tcp = Tracker(capacity)
        self.table = Table(2, seed=node.seed)
        self._free = Numbers(np.arange(capacity)[::-1])
        self._fresh = Numbers()  # begun in this run, not yet confirmed
        self._ended: list[tuple[int, int]] = []  # (serial, flow): what packets of this run ended
        self._dead = Numbers()  # deleted in this run; packets under way may still hold them
        self.too_early = FOREVER  # the first packet (serial) that changed what one before it saw, as far as noticed
        self.killed: list[tuple[int, int]] | None = None  # what was findable and is not any more: see `take_back`
        self.mapped = Sources(self)
        self._oldest: list[tuple[int, int]] = []  # (born, flow) of those that may be thrown out first
        self._elders = Numbers()  # flows that stood next to be thrown out when this was put together,
        self._elders_born: I64 = np.zeros(0, np.int64)  # and when each flow on the stack began
        self.next_sweep = 0
        self._scratch = np.zeros(capacity, np.int32)
        self._ahead: tuple[Packets, int, int, NDArray[np.int32]] | None = None  # see look_ahead
        self.on = False
        self.related = False  # there were connections that helpers expected
        self.steady = False  # see `foretell`
        self.split = False  # there were flows whose two tuples are in different zones
        self.templates: list[Template] = []  # wishes of CT rules; packets hold their number, from 1 (Trip.template)
        self._template_of: dict[Template, int] = {}
        self.ported = np.isin(np.arange(256), PORTED)  # protocols with two ports in their tuple
        self.trackers = {proto: make() for proto, make in TRACKERS[node.kernel].items()}
        self.way = np.zeros(256, np.uint8)  # 0: timers alone, 1: TCP, 2: states of another kind
        self.way[TCP], self.way[list(self.trackers)] = 1, 2
        self.abrupt: set[int] = set()  # protocols but TCP that have connections which a packet may end
        self.ported[DCCP] = DCCP in self.trackers
        self.odd = np.isin(np.arange(256), [proto for proto in FITS if proto != DCCP or DCCP in self.trackers])
        self.policies = Policies(self)
        self.ruling = 0  # the policy whose timeouts are in force, instead of those set aside
        self._set_aside: dict[str, int] = {}
        self.read_sysctls()

    # ---- knobs -------------------------------------------------------------------------------------------------

    def read_sysctls(self) -> None:
        """Take over net.netfilter.nf_conntrack_*; timers that already run keep their deadline."""
        get = self._knob
        self.tcp.limits(get)
        for tracker in self.trackers.values():
            tracker.limits(get)
        self.udp_timeout = get("udp_timeout", 30) * SECOND
        self.udp_stream = get("udp_timeout_stream", 120) * SECOND
        self.icmp_timeout = get("icmp_timeout", 30) * SECOND
        self.generic_timeout = get("generic_timeout", 600) * SECOND
        self.gre_timeout = get("gre_timeout", 30) * SECOND
        self.gre_stream = get("gre_timeout_stream", 180) * SECOND
        self.ruling = 0
        self.verify_checksums = bool(get("checksum", 1))
        self.accounting = bool(get("acct", 0))
        self.stamping = bool(get("timestamp", 0))
        self.max = get("max", 262144)

    def _knob(self, name: str, default: int) -> int:
        value = self.node.sysctl.get(f"net.netfilter.nf_conntrack_{name}")
        return default if value is None else int(value)

    def timeouts(self, proto: int) -> dict[str, int]:
        """The timeouts of a protocol that are in force (ns), by the names that nfct has for them."""
        if proto == TCP:
            of = dict(zip(TIMEOUTS[TCP][:9], self.tcp.timeouts[1:], strict=True))
            return of | {"retrans": self.tcp.max_retrans_timeout, "unacknowledged": self.tcp.unacked_timeout}
        if proto in self.trackers:
            return dict(zip(TIMEOUTS[proto], self.trackers[proto].timeouts[1:], strict=False))
        plain = {
            ICMP: (self.icmp_timeout,), GENERIC: (self.generic_timeout,), GRE: (self.gre_timeout, self.gre_stream),
        }  # fmt: skip
        return dict(zip(TIMEOUTS[proto], plain.get(proto, (self.udp_timeout, self.udp_stream)), strict=True))

    def _rule(self, number: int) -> None:
        """Let the timeouts of this policy be in force; 0: those of the sysctls."""
        if number == self.ruling:
            return
        if self.ruling:
            self._force(self.policies.protocols[self.ruling], self._set_aside)
        self.ruling = number
        if number:
            proto = self.policies.protocols[number]
            self._set_aside = self.timeouts(proto)
            self._force(proto, self.policies.values[number])

    def _force(self, proto: int, values: dict[str, int]) -> None:
        of = [values[name] for name in TIMEOUTS[proto]]
        if proto == TCP:
            self.tcp.timeouts[1:], self.tcp.max_retrans_timeout, self.tcp.unacked_timeout = of[:9], of[9], of[10]
        elif proto in self.trackers:
            self.trackers[proto].timeouts[1 : 1 + len(of)] = of
        elif proto == ICMP:
            self.icmp_timeout = of[0]
        elif proto == GENERIC:
            self.generic_timeout = of[0]
        elif proto == GRE:
            self.gre_timeout, self.gre_stream = of
        else:
            self.udp_timeout, self.udp_stream = of

    def closing_timeout(self, flow: int) -> int:
        """For how long a TCP connection is remembered that a reset closes, ns."""
        number = int(self.policy[flow])
        return self.policies.values[number]["close"] if number else self.tcp.timeouts[CL]

    def shortest_timeout(self) -> int:
        """No timer that a packet sets is shorter than this (ns)."""
        return min(
            *self.policies.shortest(),
            *self.tcp.timeouts[1:], self.tcp.max_retrans_timeout, self.tcp.unacked_timeout, self.udp_timeout,
            self.udp_stream, self.icmp_timeout, self.generic_timeout, self.gre_timeout, self.gre_stream,
            *(timeout for tracker in self.trackers.values() for timeout in tracker.timeouts[1:]),
        )  # fmt: skip

    def switch(self, on: bool) -> None:
        """Tracking goes on or off as rules that need it come and go."""
        if on and not self.on:
            flows = np.flatnonzero(self.stored & (self.proto == TCP))
            self.tcp.forget_windows(flows)
        self.on = on

    def foretell(self, steady: bool) -> None:
        """Rules, routes or settings are new.

        steady   what becomes of a packet that begins a connection follows from what it looks like, and from draws: so
                 one like it, for whose like nothing was drawn, will fare the same, and use the same tuples
        """
        self.steady = steady
        self.omen[:] = 0

    def told(self, p: Packets, rows: Rows, flows: Flows, reply: Mask) -> Mask:
        """bool[n]: TCP segments that could begin their connection anew as it began."""
        out = np.zeros(len(rows), bool)
        if self.related or self.node.helpers.attended or self.node.helpers.expected:
            return out
        syn = p.flags.take(rows) & np.uint8(SYN | ACK | RST) == SYN
        if not syn.any():
            return out
        some = np.flatnonzero(syn & ~reply)
        omen = self.omen.take(flows.take(some))
        out[some] = (omen != 0) & (omen == looks(p, rows.take(some)))
        return out

    # ---- the store ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.stored.sum())

    @property
    def places(self) -> int:
        """How many more flows there is room for."""
        return self.max - (self.capacity - len(self._free) - len(self._dead)) if self.max else 1 << 62

    @property
    def packets(self) -> I64:
        """int64[capacity, 2]: how many packets each flow had, original and reply. There from when somebody counts."""
        return self._counted()[0]

    @property
    def bytes(self) -> I64:
        """int64[capacity, 2]: and how many bytes they were."""
        return self._counted()[1]

    def _counted(self) -> tuple[I64, I64]:
        if self._counters is None:
            self._counters = np.zeros((self.capacity, 2), np.int64), np.zeros((self.capacity, 2), np.int64)
        return self._counters

    def _allocate_many(self, n: int) -> Flows:
        while len(self._free) < n:
            self._grow()
        flows = self._free.take(n)
        self._fresh.extend(flows)
        self.fares.reshape(-1, 2)[flows] = 0
        return flows

    def _allocate(self) -> int:
        if not self._free:
            self._grow()
        flow = self._free.pop()
        self._fresh.push(flow)
        self.fares[2 * flow : 2 * flow + 2] = 0
        return flow

    def _grow(self) -> None:
        old, self.capacity = self.capacity, self.capacity * 2

        def longer(column: NDArray[Any]) -> NDArray[Any]:
            new = np.zeros((self.capacity, *column.shape[1:]), column.dtype)
            new[:old] = column
            return new

        for name in _COLUMNS:
            setattr(self, name, longer(getattr(self, name)))
        if self._counters is not None:
            self._counters = longer(self._counters[0]), longer(self._counters[1])
        self.fares = longer(self.fares.reshape(-1, 2)).ravel()
        self.tcp.grow(self.capacity)
        self._free.below(np.arange(old, self.capacity)[::-1])

    def begin(self, t: Tuple, now: int, zone: int = 0, born: int = -1) -> int:
        """A new flow that nobody can find yet; its reply tuple is the plain inverse."""
        f = self._allocate()
        src, dst, sport, dport, proto = t
        self.osrc[f], self.odst[f], self.osport[f], self.odport[f], self.proto[f] = src, dst, sport, dport, proto
        self.rsrc[f], self.rdst[f], self.rsport[f], self.rdport[f], _ = inverse(t)
        self.zone[f], self.status[f], self.mark[f] = zone, 0, 0
        self.deadline[f], self.created[f], self.born[f] = FOREVER, now, born
        self.masq[f], self.stored[f], self.counted[f], self.omen[f] = -1, False, self.accounting, 0
        self.stamped[f] = self.stamping
        self.helper[f] = self.parent[f] = self.policy[f] = 0
        if self._counters is not None:
            self.packets[f] = self.bytes[f] = 0
        return f

    def original(self, flow: int) -> Tuple:
        """The original tuple."""
        return (
            int(self.osrc[flow]), int(self.odst[flow]), int(self.osport[flow]), int(self.odport[flow]),
            int(self.proto[flow]),
        )  # fmt: skip

    def reply(self, flow: int) -> Tuple:
        """The reply tuple."""
        return (
            int(self.rsrc[flow]), int(self.rdst[flow]), int(self.rsport[flow]), int(self.rdport[flow]),
            int(self.proto[flow]),
        )  # fmt: skip

    def alter_reply(self, flow: int, t: Tuple) -> None:
        """Answers to this flow will come as `t` (only before the flow is stored)."""
        assert not self.stored[flow], "the reply tuple of a stored flow is a key"
        self.rsrc[flow], self.rdst[flow], self.rsport[flow], self.rdport[flow], _ = t

    def alter_replies(
        self, flows: NDArray[np.intp], side: str, addrs: NDArray[np.uint32], ports: NDArray[np.uint16]
    ) -> None:
        """`alter_reply` of many: answers will come from ("src") or go to ("dst") these; ICMP keeps its id and type."""
        assert not self.stored[flows].any(), "the reply tuple of a stored flow is a key"
        addr, port = (self.rsrc, self.rsport) if side == "src" else (self.rdst, self.rdport)
        addr[flows] = addrs
        plain = self.proto[flows] != ICMP
        port[flows[plain]] = ports[plain]

    def holder(self, t: Tuple, now: int, zone: int = 0) -> int:
        """id (2 * flow + direction) of the flow that holds tuple `t` at `now`, or -1."""
        found = self._among_zones(t, zone, (0, 1)) if self.split or zone >> 16 else self.table.find_one(*key(t, zone))
        return self._alive(found, now)

    def clash(self, t: Tuple, now: int, zone: int, direction: int) -> int:
        """As `holder`, for a flow of this zone that would be found under `t` in one direction."""
        if not self.split and not zone >> 16:
            return self.holder(t, now, zone)
        there = zone_id(zone, direction)
        same = [d for d in (0, 1) if zone_id(zone, d) == there]
        return self._alive(self._among_zones(t, zone, same), now)

    def _among_zones(self, t: Tuple, zone: int, directions: Iterable[int]) -> int:
        """The entry of `t` whose zone is that of `zone`, both seen in the entry's direction; the newest of several.

        Where the zone is a split one, originals come before answers.
        """
        best = -1
        a, b = key(t)
        for d in directions:
            there = zone_id(zone, d)
            for word in (there, there | 1 + d << 24):
                found = self.table.find_one(a, b | word)
                if found >= 0 and found & 1 == d and (best < 0 or self.born[found >> 1] > self.born[best >> 1]):
                    best = found
            if best >= 0 and zone >> 16:
                break
        return best

    def _alive(self, found: int, now: int) -> int:
        """`found`, unless its time is over: then it goes."""
        if found >= 0 and int(self.deadline[found >> 1]) <= now:
            self.kill(found >> 1)
            return -1
        return found

    def taken(self, t: Tuple, flow: int, now: int) -> bool:
        """Would answers that come as `t` be taken for another flow's? One with the same original does not count."""
        zone = int(self.zone[flow])
        found = self.clash(t, now, zone, 1)
        if found < 0:
            return False
        other = found >> 1
        self._seen_by(flow, other)
        same = self.original(other) == self.original(flow)
        return not same or zone_id(int(self.zone[other]), 0) != zone_id(zone, 0)

    def _seen_by(self, flow: int, other: int) -> None:
        """The other one is in the way of this one: one by one that is only so if it began before."""
        if self.born[other] > self.born[flow]:
            self.too_early = min(self.too_early, int(self.born[other]))

    def store(self, flow: int, now: int) -> bool:
        """Make both tuples findable; False when another flow holds one of them."""
        if self.stored[flow]:
            return True
        zone = int(self.zone[flow])
        there, back = self.original(flow), self.reply(flow)
        for t, direction in ((there, 0), (back, 1)):
            found = self.clash(t, now, zone, direction)
            if found >= 0:
                self._seen_by(flow, found >> 1)
                return False
        self.split |= zone >> 16 != 0
        if back != there or zone >> 16:
            self.table.add_one(*key(there, zone, 0), number=2 * flow)
        # what is sent to itself counts as an answer: Linux meets the newest key first
        self.table.add_one(*key(back, zone, 1), number=2 * flow + 1)
        self.stored[flow] = True
        return True

    def until_repeated(self, flows: NDArray[np.integer]) -> int:
        """How many of them stand there before one that was there already."""
        if isinstance(span(flows), slice):
            return len(flows)
        if len(self._scratch) < self.capacity:
            self._scratch = np.zeros(self.capacity, np.int32)
        places = np.arange(len(flows), dtype=np.int32)
        self._scratch[flows] = places
        again = self._scratch[flows] != places
        if not again.any():
            return len(flows)
        self._scratch[flows[::-1]] = places[::-1]
        return int((self._scratch[flows] != places).argmax())

    def store_many(self, flows: NDArray[np.integer]) -> int:
        """`store` for flows that are not stored, in their order, up to the first of which it must be asked itself:
        another flow seems to hold one of its tuples. Returns how many were stored."""
        if self.split:
            return 0
        n = self.until_repeated(flows)
        f = flows = span(flows[:n])
        if isinstance(f, slice):
            ids = np.arange(2 * f.start, 2 * f.stop)
        else:
            ids = np.repeat(2 * f.astype(np.intp), 2)
            ids[1::2] += 1
        zone = self.zone[f]
        if zone.any() and (zone >> 16).any():
            return 0
        proto = self.proto[f]
        words = np.empty((2, 2 * n), np.uint64)
        for d, (src, dst, sport, dport) in enumerate((
            (self.osrc, self.odst, self.osport, self.odport), (self.rsrc, self.rdst, self.rsport, self.rdport)
        )):  # fmt: skip
            words[0, d::2], words[1, d::2] = key_words(src[f], dst[f], sport[f], dport[f], proto)
        if zone.any():
            words[1] |= np.repeat(zone, 2)
        lost = np.flatnonzero(self.table.add((words[0], words[1]), ids) != ids)
        if len(lost):
            n = int(lost[0]) // 2
            self.table.remove(ids[2 * n :])
        self.stored[ids[: 2 * n : 2] >> 1 if len(lost) else flows] = True
        return n

    def kill(self, flow: int) -> None:
        """The flow is not there any more; its number stays taken until the run ends."""
        if self.killed is not None and self.stored[flow]:
            self.killed.append((flow, self.mapped.place(flow) if self.status[flow] & MAPPED else NOT_MAPPED))
        if self.stored[flow]:
            self.table.remove_one(2 * flow + 1)
            if self.original(flow) != self.reply(flow) or self.zone[flow] >> 16:
                self.table.remove_one(2 * flow)
            self.stored[flow] = False
        if not self.status[flow] & DYING:
            self._dead.push(flow)
            if self.status[flow] & MAPPED:
                self.mapped.remove(np.array([flow]))
            self.status[flow] = (self.status[flow] | (MAPPED | DYING)) ^ MAPPED
            if self.helper[flow] or self.status[flow] & SEQ_ADJUST:
                self.node.helpers.forget(flow)

    def kill_many(self, flows: NDArray[np.integer]) -> None:
        """The same of many, none of them twice."""
        if len(flows) < MANY or self.killed is not None:
            for flow in flows.tolist():
                self.kill(flow)
            return
        there = flows[self.stored[flows]]
        if len(there):
            two = self.zone[there] >> 16 != 0
            for one, back in ("osrc", "rsrc"), ("odst", "rdst"), ("osport", "rsport"), ("odport", "rdport"):
                two |= getattr(self, one)[there] != getattr(self, back)[there]
            ids = np.stack([2 * there, 2 * there + 1], 1)
            which = np.stack([two, np.ones(len(two), bool)], 1)
            self.table.remove(ids[which])
            self.stored[there] = False
        status = self.status[flows]
        dying = (status & DYING) != 0
        if dying.any():
            flows, status = flows[~dying], status[~dying]
        self.mapped.remove(flows[(status & MAPPED) != 0])
        self.status[flows] = (status | (MAPPED | DYING)) ^ MAPPED
        for flow in flows[(self.helper[flows] != 0) | ((status & SEQ_ADJUST) != 0)].tolist():
            self.node.helpers.forget(flow)
        self._dead.extend(flows[::-1])

    def remember_sources(self, flows: NDArray[np.integer]) -> None:
        """Later flows of the same source may be given the same source address and port. flows: the oldest first"""
        self.status[flows] |= MAPPED
        self.mapped.add(flows)

    def take_back(self, begun: int, ended: int, killed: list[tuple[int, int]]) -> None:
        """Only so many flows were begun and ended in this run, and those that were killed since are there again.

        killed  (flow, `Sources.place` or NOT_MAPPED) of what was findable: `killed`, as it was written since
        """
        flows = self._fresh.all()[begun:].astype(np.intp)
        self._fresh.cut(begun)
        del self._ended[ended:]
        mask = np.zeros(self.capacity, bool)
        mask[flows] = True
        self.kill_many(flows)
        killed = [(flow, place) for flow, place in killed if not mask[flow]]
        for flow, place in reversed(killed):
            zone, there, back = int(self.zone[flow]), self.original(flow), self.reply(flow)
            if back != there or zone >> 16:
                self.table.add_one(*key(there, zone, 0), number=2 * flow)
            self.table.add_one(*key(back, zone, 1), number=2 * flow + 1)
            self.stored[flow] = True
            self.status[flow] &= ~np.uint16(DYING)
            self._dead.remove(flow)
            if place != NOT_MAPPED:
                self.status[flow] |= MAPPED
                self.mapped.put_back(flow, place)

    def end_run(self) -> None:
        """No packet is under way: forget flows that never were confirmed, and reuse the numbers of the dead."""
        fresh = self._fresh.all()
        self.kill_many(fresh[(self.status[fresh] & (CONFIRMED | DYING)) == 0].astype(np.intp))
        self._fresh.clear()
        self._ended.clear()
        self._free.extend(self._dead.all())
        self._dead.clear()
        if self.node.helpers.leaving:
            self.node.helpers.end_run()

    def sweep(self, now: int) -> None:
        """Drop the flows whose time was over when the last whole second began. Nobody can see it but `places`."""
        second = now - now % SECOND
        self.next_sweep = second + SECOND
        self.kill_where(self.deadline <= second)

    def kill_where(self, mask: Mask) -> int:
        """Delete the stored flows of `mask` (bool[capacity]); how many there were."""
        flows = np.flatnonzero(self.stored & mask)
        self.kill_many(flows)
        return len(flows)

    def _make_room(self, draw: int) -> bool:
        """The table is full: throw out one flow that is not assured. Linux takes what it finds nearby; here one of the
        sixty-four that began first is drawn. False: all are assured."""
        fit = self._unsure
        self._oldest = [flow for flow in self._oldest if fit(flow)]
        if not self._oldest and not self._elders:
            flows = np.flatnonzero(self.stored & ((self.status & (ASSURED | CONFIRMED)) == CONFIRMED))
            flows = flows[np.lexsort((flows, self.born[flows]))][::-1]
            self._elders, self._elders_born = Numbers(flows), self.born[flows]
        while len(self._oldest) < 64 and self._elders:
            flow = self._elders.pop()
            one = self._elders_born.item(len(self._elders)), flow
            if fit(one):
                self._oldest.append(one)
        if not self._oldest:
            return False
        self.kill(self._oldest.pop(draw % len(self._oldest))[1])
        return True

    def _unsure(self, one: tuple[int, int]) -> bool:
        born, flow = one
        return bool(self.stored[flow]) and not self.status[flow] & ASSURED and int(self.born[flow]) == born

    # ---- looking up --------------------------------------------------------------------------------------------

    def keys(self, p: Packets, rows: Rows) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The two key words of each packet's tuple (ICMP: id in the place of the port, type and code beside it)."""
        at = stretch(rows)
        proto = p.proto[at]
        low, high = p.sport[at], p.dport[at]
        first = proto.item(0)
        if first not in (TCP, UDP) or not (proto == first).all():
            odd = ~_PLAIN.take(proto)
            if odd.any():
                low, high = low * self.ported[proto], high * self.ported[proto]
                for k in np.flatnonzero(odd & (proto == GRE)).tolist():
                    low[k], high[k] = self._ports(p, int(rows[k]))
            icmp = proto == ICMP
            if icmp.any():
                low = np.where(icmp, p.icmp_id[at], low)
                high = np.where(icmp, (p.icmp_type[at].astype(np.uint16) << 8) | p.icmp_code[at], high)
        return key_words(p.src[at], p.dst[at], low, high, proto)

    def look_up(self, p: Packets, rows: Rows, wishes: I16 | None = None) -> NDArray[np.int32]:
        """int32[len(rows)]: 2 * flow + direction of the flow each packet's tuple belongs to, -1 for none.

        wishes  int16[len(rows)], template of each packet (it says in which zone), None: none has one
        A flow whose time is over counts as there.
        """
        words = self.keys(p, rows)
        zones = None if wishes is None else self.zones(p, rows, wishes)
        if zones is None:
            if not self.split:
                return self.table.find(words)
            zones = np.zeros(len(rows), np.uint32)
        if not self.split and not (zones >> 16).any():
            return self.table.find((words[0], words[1] | zones))
        out = np.empty(len(rows), np.int32)
        for k, (a, b, zone) in enumerate(zip(words[0].tolist(), words[1].tolist(), zones.tolist(), strict=True)):
            t = a >> 32, a & 0xFFFFFFFF, b >> 48, b >> 32 & 0xFFFF, b >> 16 & 0xFF
            out[k] = self._among_zones(t, zone, (0, 1))
        return out

    def look_ahead(self, p: Packets, rows: Rows, wishes: I16 | None) -> NDArray[np.int32]:
        """`look_up` of packets that lie side by side and are about to be tracked; the answer is kept until then."""
        ids = self.look_up(p, rows, wishes)
        self._ahead = (p, self.table.version, int(rows[0]), ids) if wishes is None else None
        return ids

    def forget_ahead(self) -> None:
        """What was looked up is not what is about to be tracked."""
        self._ahead = None

    def _looked_up(self, trip: Trip, rows: Rows) -> NDArray[np.int32]:
        """`look_up`, or what `look_ahead` found when nothing has changed since."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and trip.hook == "PREROUTING" and trip.template is None:
            p, version, first, ids = ahead
            if p is trip.pkts and version == self.table.version and rows[-1] - first < len(ids) and rows[0] >= first:
                part = stretch(rows)
                return (
                    ids[part.start - first : part.stop - first] if isinstance(part, slice) else ids.take(rows - first)
                )
        return self.look_up(trip.pkts, rows, None if trip.template is None else trip.template[rows])

    def zones(self, p: Packets, rows: Rows, wishes: I16) -> NDArray[np.uint32] | None:
        """uint32[len(rows)]: the zone that each packet's template puts it in; None: all are in zone 0."""
        asked = [k for k in np.unique(wishes).tolist() if k and self.templates[k - 1].zoned]
        if not asked:
            return None
        out = np.zeros(len(rows), np.uint32)
        for k in asked:
            template, some = self.templates[k - 1], wishes == k
            out[some] = p.mark[rows[some]] & 0xFFFF if template.of_mark else template.zone
            out[some] |= SIDES[template.direction]
        return out

    def _zone(self, trip: Trip, row: int) -> int:
        assert trip.template is not None
        zones = self.zones(trip.pkts, np.array([row]), trip.template[row : row + 1])
        return 0 if zones is None else int(zones[0])

    def wish(self, trip: Trip, rows: Rows, template: Template) -> None:
        """A CT rule's wish for the connections of these packets. The first one counts."""
        if trip.template is None:
            trip.template = np.zeros(trip.pkts.n, np.int16)
        number = self._template_of.get(template)
        if number is None:
            self.templates.append(template)
            number = self._template_of[template] = len(self.templates)
        bare = rows[(trip.pkts.ct[rows] < 0) & (trip.pkts.state[rows] != UNTRACKED) & (trip.template[rows] == 0)]
        trip.template[bare] = number

    def well_formed(self, p: Packets, rows: Rows, verify: bool) -> Mask:
        """bool[len(rows)]: the transport header is one that tracking takes (flags, lengths, checksum if `verify`)."""
        part = stretch(rows)
        proto = p.proto[part]
        room = p.length[part] - p.ihl[part]
        ok: Mask = (p.frag[part] & OFFSET_MASK) == 0
        tcp = proto == TCP
        if tcp.any():
            doff = p.doff[part]
            fine: Mask = GOOD_TCP_FLAGS.take(p.flags[part])
            fine &= (doff >= 20) & (doff <= room)  # so there is room for 20 bytes, too
            ok &= fine if tcp.all() else fine | ~tcp
        udp = proto == UDP
        if udp.any():
            ok &= ~udp | (room >= 8)
            some = np.flatnonzero(udp & ok & (p.cap[rows] >= p.ihl[rows] + 8))
            if len(some):
                place = p.at[rows[some]] + p.ihl[rows[some]] + 4
                place = np.minimum(place, len(p.data) - 2)  # of a packet put together from fragments: read below
                said = (p.data[place].astype(np.int32) << 8) | p.data[place + 1]
                for k in np.flatnonzero(np.isin(rows[some], list(p.rebuilt))) if p.rebuilt else ():
                    row = int(rows[some[k]])
                    (said[k],) = struct.unpack_from("!H", p.original(row), int(p.ihl[row]) + 4)
                ok[some] &= (said >= 8) & (said <= room[some])
        icmp = proto == ICMP
        if icmp.any():
            ok &= ~icmp | ((room >= 8) & (p.icmp_type[part] <= 18))
        if verify and ok.any():
            some = np.flatnonzero(ok & (tcp | udp | icmp))
            if len(some) == len(rows):
                ok &= p.l4_checksum_ok(rows)
            elif len(some):
                ok[some] &= p.l4_checksum_ok(rows[some])
        odd = ok & self.odd.take(proto)
        if odd.any():
            for at in np.flatnonzero(odd).tolist():
                row = int(rows[at])
                packet, whole = p.original(row), bool(p.cap[row] >= p.length[row])
                ok[at] = FITS[int(proto[at])](packet, packet[int(p.ihl[row]) :], verify and whole)
        return ok

    def _ports(self, p: Packets, row: int) -> tuple[int, int]:
        """What stands in the place of the ports in the tuple of a packet that is not an ICMP one."""
        proto = int(p.proto[row])
        if proto == GRE:
            return gre_keys(p.original(row)[int(p.ihl[row]) :]) or (0, 0)
        return (int(p.sport[row]), int(p.dport[row])) if self.ported[proto] else (0, 0)

    # ---- the stop at -200 --------------------------------------------------------------------------------------

    def track(self, trip: Trip, rows: Rows) -> Rows:
        """Find or begin each packet's connection and move its state machine; all rows go on (INVALID ones too).

        Sets pkts.ct, state, reply and writes the step. Packets of one flow are taken in arrival order: the k-th packet
        of every flow together.
        """
        p = trip.pkts
        at = span(rows)
        unknown = (p.ct[at] < 0) & (p.state[at] != UNTRACKED)
        todo = rows if unknown.all() else rows[unknown]
        if not len(todo):
            return rows
        arrived = trip.hook == "PREROUTING"
        good = self.well_formed(p, todo, arrived and self.verify_checksums)
        icmp = p.proto[span(todo)] == ICMP
        if icmp.any():
            error = good & icmp & _ERROR[p.icmp_type[todo]]
            for k in np.flatnonzero(error):
                self._track_error(trip, int(todo[k]))
            good &= ~error & (~icmp | (_PAIRED[p.icmp_type[todo]] != 255))
        plain = todo if good.all() else todo[good]
        if len(plain):
            self._track_plain(trip, plain)
        if trip.template is not None:
            trip.template[todo] = 0
        at = span(todo)
        if p.fate[at].any():
            todo, rows = trip.travelling(todo), trip.travelling(rows)
            if not len(todo):
                return rows
            at = span(todo)
        states = p.state[at]
        for state in distinct(states):
            these = states == state
            trip.step(todo if these.all() else todo[these], _STEPS[state])
        trip.found[at] = states
        return rows

    def _track_plain(self, trip: Trip, rows: Rows) -> None:
        p = trip.pkts
        ids = self._looked_up(trip, rows)
        hit = ids >= 0
        if hit.any():
            late = hit & (self.deadline.take(ids >> 1, mode="clip") <= p.time[stretch(rows)])
            for k in np.flatnonzero(late).tolist():
                flow = int(ids[k]) >> 1
                if not self.status[flow] & DYING:
                    self.kill(flow)
                    self._ended.append((int(p.serial[rows[k]]), flow))
                ids[k] = -1
        fresh = begun = np.flatnonzero(ids < 0)
        followed = _NONE
        if len(fresh) >= MANY and self.places >= len(fresh) and (trip.template is None or not trip.template.any()):
            common = _COMMON.take(p.proto.take(rows.take(fresh)))
            these = fresh if common.all() else fresh[common]
            ids[these], went = self._open_many(p, rows.take(these))
            followed = these if went.all() else these[went]
            fresh = fresh[~common]
        for new in fresh.tolist():
            ids[new] = self._open(trip, int(rows[new]))
        if self.steady and len(begun):
            begun = begun.compress(ids.take(begun) >= 0)
            self.omen[span(ids.take(begun) >> 1)] = looks(p, rows.take(begun))
        known = ids >= 0
        known[followed] = False
        if not known.all():
            rows, ids = rows[known], ids[known]
        if not len(rows):
            return
        self._follow(trip, (ids >> 1).astype(np.intp), rows, (ids & 1).astype(bool))

    def _follow(self, trip: Trip, flows: Flows, rows: Rows, reply: Mask) -> None:
        """Packets of flows that we know, any number of each: states, timers, counters."""
        part = stretch(rows)
        trip.pkts.ct[part], trip.pkts.reply[part] = flows, reply
        if len(self.policies.values) == 1:
            self._follow_alike(trip, flows, rows, reply)
            return
        policy = self.policy[flows]
        for number in distinct(policy):
            some = np.flatnonzero(policy == number)
            self._rule(number)
            self._follow_alike(trip, flows[some], rows[some], reply[some])
        self._rule(0)

    def _follow_alike(self, trip: Trip, flows: Flows, rows: Rows, reply: Mask) -> None:
        """`_follow` of flows that have the same timeouts."""
        p = trip.pkts
        part = stretch(rows)
        starts = np.zeros(1, np.intp)
        if len(rows) > 1:  # those of one flow side by side, in arrival order
            order = grouped(flows)
            rows = order + part.start if isinstance(part, slice) else rows.take(order)
            flows, reply = flows.take(order), reply.take(order)
            first = np.ones(len(rows), bool)
            np.not_equal(flows[1:], flows[:-1], out=first[1:])
            starts = np.flatnonzero(first)
        each = flows.take(starts)
        ways = (self._timers, self._tcp, self._states)
        way = self.way[self.proto.take(each)]
        if (way == way[0]).all():
            counts = ways[way[0]](trip, each, starts, rows, reply)
        else:
            counts = np.empty(len(rows), bool)
            size = np.diff(starts, append=len(rows))
            for k, take in enumerate(ways):
                some = np.flatnonzero(way == k)
                if not len(some):
                    continue
                begin = np.cumsum(size[some]) - size[some]
                where = np.repeat(starts[some] - begin, size[some]) + np.arange(int(size[some].sum()))
                counts[where] = take(trip, each[some], begin, rows[where], reply[where])
        if self.accounting or self.counted.take(each).any():
            some = np.flatnonzero(counts)
            some = some[self.counted[p.ct[rows[some]]]]
            at = p.ct[rows[some]], p.reply[rows[some]].astype(np.intp)
            np.add.at(self.packets, at, 1)
            np.add.at(self.bytes, at, p.length[rows[some]])
        if self.related:
            some = rows[p.state[rows] == NEW]
            p.state[some[(self.status[p.ct[some]] & EXPECTED) != 0]] = RELATED

    def _open_many(self, p: Packets, rows: Rows) -> tuple[NDArray[np.int32], Mask]:
        """Begin a flow with each of these packets, for all of which there is room, in no zone.

        returns  int32[n]  ids, -1 where the protocol does not let it begin one
                 bool[n]   the packet was followed, too (`_follow`); of the others the states are to be moved still
        """
        n = len(rows)
        at = span(rows)
        proto = p.proto[at]
        icmp = proto == ICMP
        any_icmp = bool(icmp.any())
        ids, followed = np.full(n, -1, np.int32), np.zeros(n, bool)
        which: Any = slice(0, n)
        if any_icmp:
            which = np.flatnonzero(~icmp | _OPENING[p.icmp_type[at]])
            rows, proto, icmp = rows[which], proto[which], icmp[which]
            at = rows
        low, high = p.sport[at], p.dport[at]
        back_low, back_high = high, low
        if any_icmp:
            kind, code = p.icmp_type[rows], p.icmp_code[rows].astype(np.uint16)
            low, high = np.where(icmp, p.icmp_id[rows], low), np.where(icmp, kind.astype(np.uint16) << 8 | code, high)
            back_low = np.where(icmp, low, back_low)
            back_high = np.where(icmp, _PAIRED[kind].astype(np.uint16) << 8 | code, back_high)
        flows = self._allocate_many(len(rows))
        f = span(flows)
        src, dst = p.src[at], p.dst[at]
        self.osrc[f], self.odst[f], self.osport[f], self.odport[f] = src, dst, low, high
        self.rsrc[f], self.rdst[f], self.rsport[f], self.rdport[f] = dst, src, back_low, back_high
        self.proto[f] = proto
        self.zone[f] = self.status[f] = self.mark[f] = self.helper[f] = self.parent[f] = self.policy[f] = 0
        self.deadline[f], self.created[f], self.born[f] = FOREVER, p.time[at], p.serial[at]
        self.masq[f], self.stored[f], self.counted[f] = -1, False, self.accounting
        self.stamped[f], self.omen[f] = self.stamping, 0
        if self._counters is not None:
            self.packets[f] = self.bytes[f] = 0
        ids[which] = 2 * flows
        which, tcp = np.arange(n)[which], np.flatnonzero(proto == TCP)
        if len(tcp):
            may, went = self.tcp.begin(self, flows[tcp], p, rows[tcp])
            refused = ~may
            if refused.any():
                self.kill_many(flows[tcp[refused]])
                ids[which[tcp[refused]]] = -1
            begun = tcp if went.all() else tcp[went]
            followed[which[begun]] = True
            row, flow = rows[begun], flows[begun]
            p.ct[row], p.state[row], p.reply[row] = flow, NEW, False
            if self.accounting:
                self.packets[flow, 0], self.bytes[flow, 0] = 1, p.length[row]
        return ids, followed

    def _open(self, trip: Trip, row: int) -> int:
        """Begin a flow with this packet: its id, or -1 where the protocol does not let it begin one.

        Where there is no room for it the packet dies: FULL.
        """
        p = trip.pkts
        if self.places <= 0:
            one = np.array([row])
            if not self._make_room(int(trip.random(one, 0x4354)[0])):
                trip.step(one, _FULL)
                trip.end(one, "conntrack: table full")
                return FULL
        proto = int(p.proto[row])
        if proto == ICMP:
            if not _OPENING[p.icmp_type[row]]:
                return -1
            ports = int(p.icmp_id[row]), int(p.icmp_type[row]) << 8 | int(p.icmp_code[row])
        else:
            ports = self._ports(p, row)
            if proto in self.trackers and self.trackers[proto].abrupt:
                self.abrupt.add(proto)
        now = int(p.time[row])
        zone = 0 if trip.template is None else self._zone(trip, row)
        flow = self.begin((int(p.src[row]), int(p.dst[row]), *ports, proto), now, zone, int(p.serial[row]))
        if trip.template is not None and trip.template[row]:
            name = self.templates[trip.template[row] - 1].timeout
            self.policy[flow] = self.policies.find(name) if name else 0
        expected = self.node.helpers.match(self.original(flow), zone, now) if self.node.helpers.expected else None
        if expected is not None:
            self.node.helpers.begin(trip, row, flow, expected)
        elif trip.template is not None and trip.template[row]:
            template = self.templates[trip.template[row] - 1]
            if template.helper:
                self.node.helpers.attach(flow, template.helper)
            if template.proxied:
                self.node.synproxy.begin(flow)
        if proto == TCP and not self.tcp.opens(flow, p, row):
            self.kill(flow)
            return -1
        return 2 * flow

    def _timers(self, trip: Trip, flows: Flows, starts: Flows, rows: Rows, reply: Mask) -> Mask:
        """Packets of flows without states, grouped by flow; bool[n]: it counts for accounting.

        flows  intp[k]      starts  intp[k]  where the rows of each begin
        """
        p = trip.pkts
        stop = np.append(starts[1:], len(rows))
        seen = (self.status.take(flows) & SEEN_REPLY) != 0
        p.state[rows], answered, before = heard(seen, reply, starts, stop)
        now, proto = p.time.take(rows.take(stop - 1)), self.proto.take(flows)
        alike = bool((proto == proto[0]).all())
        for kind in proto[:1].tolist() if alike else np.flatnonzero(np.bincount(proto)).tolist():
            k = slice(None) if alike else np.flatnonzero(proto == kind)
            self._refresh(kind, flows[k], now[k], before[k])
        self.status[flows[answered]] |= SEEN_REPLY
        return np.ones(len(rows), bool)

    def _refresh(self, proto: int, flows: NDArray[np.intp], now: I64, seen: Mask) -> None:
        """Timers of everything that has no states: UDP and GRE have two timeouts, the rest one."""
        if proto == UDPLITE:
            self.deadline[flows] = now + np.where(seen, self.udp_stream, self.udp_timeout)
            self.status[flows[seen]] |= ASSURED
        elif proto == UDP:
            stream = seen & (now > self.created[flows] + 2 * SECOND)
            self.deadline[flows] = now + np.where(stream, self.udp_stream, self.udp_timeout)
            self.status[flows[stream]] |= ASSURED
        elif proto == GRE:
            self.deadline[flows] = now + np.where(seen, self.gre_stream, self.gre_timeout)
            self.status[flows[seen]] |= ASSURED
        else:
            self.deadline[flows] = now + (self.icmp_timeout if proto == ICMP else self.generic_timeout)

    def _states(self, trip: Trip, flows: Flows, starts: Flows, rows: Rows, reply: Mask) -> Mask:
        """Packets of the rarer protocols that have states, one by one; otherwise as `_timers`."""
        p = trip.pkts
        counts = np.ones(len(rows), bool)
        each = np.repeat(flows, np.diff(starts, append=len(rows)))
        for k, (flow, row) in enumerate(zip(each.tolist(), rows.tolist(), strict=True)):
            status = int(self.status[flow])
            verdict, timeout, assured = self.trackers[int(self.proto[flow])].one(
                flow, p.original(row)[int(p.ihl[row]) :], bool(reply[k]),
                confirmed=bool(status & CONFIRMED), answered=bool(status & SEEN_REPLY),
            )  # fmt: skip
            p.state[row] = ESTABLISHED if reply[k] or status & SEEN_REPLY else NEW
            if verdict in (INVALID_SEGMENT, LOST):
                if not status & CONFIRMED and not self.stored[flow]:
                    self.kill(flow)
                p.ct[row], p.state[row], p.reply[row] = -1, INVALID, False
                if verdict == LOST:
                    trip.end(np.array([row]), "conntrack: the header is not all there")
                counts[k] = False
                continue
            if verdict == ACCEPTED:
                self.deadline[flow] = int(p.time[row]) + timeout
            elif verdict == GONE:
                self.kill(flow)
            counts[k] = verdict != UNTOUCHED
            self.status[flow] |= ASSURED * assured | SEEN_REPLY * bool(reply[k])
        return counts

    def _tcp(self, trip: Trip, flows: Flows, starts: Flows, rows: Rows, reply: Mask) -> Mask:
        """TCP segments, as `_timers`."""
        p = trip.pkts

        def reopen(flow: int, row: int) -> int:
            self.kill(flow)
            self._ended.append((int(p.serial[row]), flow))
            opened = self._open(trip, row) >> 1
            if opened >= 0 and self.policy[opened] != self.ruling:
                self._rule(int(self.policy[opened]))
            if opened >= 0 and self.steady:
                self.omen[opened] = looks(p, np.array([row]))[0]
            return opened

        size = np.diff(starts, append=len(rows))
        was, lives, told = np.repeat(flows, size), list[Life](), None
        if self.steady and len(rows) > len(flows):
            told = self.told(p, rows, was, reply)
        verdicts, states, of = self.tcp.follow(self, flows.copy(), size, p, rows, reply, reopen, told, lives)
        p.state[rows] = states
        odd = np.flatnonzero(verdicts)
        again = np.flatnonzero(of != was)
        if not len(odd) and not len(again):
            return np.ones(len(rows), bool)
        p.reply[rows[again[of[again] >= 0]]] = False
        if lives:
            roots, before, numbers = self._succeed(p, lives)
            former = np.full(self.capacity, -1, np.int32)
            former[roots] = before
            theirs = np.flatnonzero((of == was) & (former.take(was) >= 0))  # of those whose number went to another one
            of[theirs] = former.take(was.take(theirs))
            of = np.where(of < 0, numbers.take(-1 - of, mode="clip"), of)
            again = np.concatenate([again, theirs])
        p.ct[rows[again]] = of[again]
        for verdict, flow, row in zip(verdicts[odd].tolist(), of[odd].tolist(), rows[odd].tolist(), strict=True):
            if verdict == GONE:
                self.kill(flow)
                self._ended.append((int(p.serial[row]), flow))
            elif verdict == INVALID_SEGMENT:
                if not self.status[flow] & CONFIRMED and not self.stored[flow]:
                    self.kill(flow)
                p.ct[row], p.reply[row] = -1, False
        counts: Mask = (verdicts == ACCEPTED) | (verdicts == GONE)
        return counts

    def _succeed(self, p: Packets, lives: list[Life]) -> tuple[Flows, Flows, Flows]:
        """Connections that began within a run in the place of others.

        returns  the flows that held their tuples before; new numbers for what those were; the number of each life

        Each takes over the tuples of the one before it; nobody else could have had them in between. The last one of a
        tuple takes over the number, too, so its tuples stay findable; all others are over already, and only packets
        under way still hold them.
        """
        root, rows = np.array([life.root for life in lives]), np.array([life.row for life in lives])
        roots, first = np.unique(root, return_index=True)
        order = grouped(root)
        follows = np.append(root[order[1:]] == root[order[:-1]], False)
        last = order[~follows]
        flows = self._allocate_many(len(lives))  # first of what the roots were, then of all lives but the last ones
        before, numbers = flows[: len(roots)], np.empty(len(lives), np.intp)
        numbers[order[follows]] = flows[len(roots) :]
        numbers[last] = root[last]
        ended = np.empty(len(lives), np.intp)  # whom each follows
        ended[order[1:]] = numbers[order[:-1]]
        ended[first] = before
        self._ended.extend(zip(p.serial[rows].tolist(), ended.tolist(), strict=True))
        for name in _COLUMNS:
            column = getattr(self, name)
            column[before], column[numbers] = column[roots], column[root]
        for columns in (*(self._counters or ()), self.tcp.td, self.tcp.misc, self.tcp.last):
            columns[before] = columns[roots]
        kept = self.mark, self.helper, self.parent, self.policy, self.fares.reshape(-1, 2), *(self._counters or ())
        for column in kept:
            column[numbers] = 0
        self.created[numbers], self.born[numbers] = p.time[rows], p.serial[rows]
        self.stamped[numbers], self.masq[numbers], self.counted[numbers] = self.stamping, -1, self.accounting
        self.status[numbers] = [life.watched.status & (SRC_NAT | DST_NAT) for life in lives]
        self.stored[flows] = False
        self.status[flows] |= DYING
        self._dead.extend(flows)
        final = [lives[k].watched for k in last.tolist()]
        for one, flow in zip(final, root[last].tolist(), strict=True):
            one.flow = flow
        self.tcp._keep(self, final)
        return roots, before, numbers

    def _track_error(self, trip: Trip, row: int) -> None:
        """An ICMP error belongs to the connection that it complains about, if it quotes one that we know."""
        p = trip.pkts
        packet = p.original(row)
        ihl = int(p.ihl[row])
        quoted = quoted_tuple(packet[ihl + 8 :])
        if quoted is None:
            return
        if quoted[4] == DCCP and not self.ported[DCCP]:
            quoted = (*quoted[:2], 0, 0, DCCP)
        zone = 0 if trip.template is None else self._zone(trip, row)
        found = self.holder(inverse(quoted), int(p.time[row]), zone)
        if int(p.serial[row]) >= ANSWERS:
            found = self._as_of(found, inverse(quoted), int(p.serial[row]) % ANSWERS, zone)
        if found < 0:
            return
        flow, direction = found >> 1, found & 1
        expected = int(self.rdst[flow] if direction else self.odst[flow])
        if int(p.dst[row]) != expected:
            return
        p.ct[row], p.state[row], p.reply[row] = flow, RELATED, bool(direction)

    def _as_of(self, found: int, t: Tuple, serial: int, zone: int) -> int:
        """`found` as it was when packet `serial` passed: errors about a run's packets leave when it is over.

        What a later packet began is not there yet, and what a later packet ended still is.
        """
        if found >= 0 and int(self.born[found >> 1]) > serial:
            found = -1
        for by, flow in self._ended if found < 0 else ():
            alive = int(self.born[flow]) <= serial < by
            if alive and int(self.zone[flow]) == zone and t in (self.original(flow), self.reply(flow)):
                return 2 * flow + (t == self.reply(flow))
        return found

    # ---- the last stop -----------------------------------------------------------------------------------------

    def confirm(self, trip: Trip, rows: Rows) -> Rows:
        """First packets that came this far make their flow findable; a clash with another flow drops the packet."""
        if self.node.helpers.attended or self.node.helpers.leaving:
            rows = self.node.helpers.attend(trip, rows)
        p = trip.pkts
        ct = p.ct.take(rows)
        mine = np.flatnonzero((ct >= 0) & ~p.reply[span(rows)])
        if not len(mine):
            return rows
        flows = ct.take(mine)
        new = np.flatnonzero((self.status[span(flows)] & (CONFIRMED | DYING)) == 0)
        if self.steady and len(new):
            moved = (self.status[span(flows.take(new))] & SRC_NAT) != 0
            if trip.drew is not None:
                moved |= trip.drew.take(rows.take(mine.take(new)))
            self.omen[flows[new[moved]]] = 0
        there = self.stored[flows[new]]
        self.status[flows[new[there]]] |= CONFIRMED
        new = new[~there]
        lost: list[int] = []
        while len(new):
            f = flows.take(new)
            there = self.stored[span(f)]
            many = len(new) >= MANY and not there.any()
            done = self.store_many(f) if many else len(f) * bool(there.all())
            self.status[span(f[:done])] |= CONFIRMED
            new = new[done:]
            for k in new[: 1 if len(new) >= MANY else MANY].tolist():
                flow, row = int(flows[k]), int(rows[mine[k]])
                if self.status[flow] & CONFIRMED:
                    continue
                if self.store(flow, int(p.time[row])):
                    self.status[flow] |= CONFIRMED
                else:
                    lost.append(row)
            new = new[1 if len(new) >= MANY else MANY :]
        if lost:
            trip.end(np.array(lost), "conntrack: another connection holds the tuple")
            return trip.travelling(rows)
        return rows

    # ---- text --------------------------------------------------------------------------------------------------

    def dump(self, now: int) -> str:
        """The table as `conntrack -L -o extended` prints it, the oldest connection first."""
        out = []
        flows = np.flatnonzero(self.stored & (self.deadline > now) & ((self.status & CONFIRMED) != 0))
        for flow in flows[np.argsort(self.born[flows], kind="stable")].tolist():
            out.append(self.line(flow, now))
        return "\n".join(out) + ("\n" if out else "")

    def line(self, flow: int, now: int, *, started: bool = False) -> str:
        """One connection as `conntrack -L -o extended` prints it.   started: and when it began, where that is kept"""
        proto, status, zone = int(self.proto[flow]), int(self.status[flow]), int(self.zone[flow])
        words = [f"ipv4     2 {PROTOCOLS.get(proto, 'unknown'):<8} {proto}"]
        words.append(str((int(self.deadline[flow]) - now) // SECOND))
        if proto == TCP:
            words.append(STATES[int(self.tcp.misc[flow, 9])])
        elif proto in self.trackers:
            words.append(self.trackers[proto].states[self.trackers[proto].state(flow)])
        for d, t in enumerate((self.original(flow), self.reply(flow))):
            words.append(_tuple_text(t))
            if zone >> 16 and zone_id(zone, d):
                words.append(f"zone-{'reply' if d else 'orig'}={zone & 0xFFFF}")
            if self.counted[flow]:
                words.append(f"packets={self.packets[flow, d]} bytes={self.bytes[flow, d]}")
            if d == 0 and not status & SEEN_REPLY:
                words.append("[UNREPLIED]")
        if status & ASSURED:
            words.append("[ASSURED]")
        words.append(f"mark={self.mark[flow]}")
        if zone and not zone >> 16:
            words.append(f"zone={zone}")
        if self.stamped[flow]:
            words.append(f"delta-time={(now - int(self.created[flow])) // SECOND}")
            if started:
                moment = (int(self.created[flow]) + (self.node.epoch or 0)) // SECOND
                words.append(f"[start={time.asctime(time.gmtime(moment))}]")
        if self.helper[flow]:
            words.append(f"helper={self.node.helpers.name(self.helper[flow])}")
        return " ".join([*words, "use=1"])

    @staticmethod
    def identity(flow: int) -> int:
        """A number that names the connection (in Linux a keyed hash: any number will do)."""
        return (flow + 1) * 0x9E3779B1 & 0xFFFFFFFF

    def read(self, text: str, file: str, problems: list[Problem], now: int = 0) -> None:
        """Take over a table as `conntrack -L` or `-L -o extended` printed it."""
        expected: list[tuple[int, str]] = []
        for n, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith(("#", "conntrack v")):
                continue
            if line.startswith("ipv6"):
                problems.append(Problem(UNSUPPORTED, "IPv6 connections", file, n, line, hint="leave the line out"))
                continue
            try:
                if " master-src=" in line:
                    expected.append((n, line))
                    continue
                self._read_line(line, now)
            except Unsupported as error:
                problems.append(Problem(UNSUPPORTED, error.problems[0].what, file, n, line, hint="leave the line out"))
            except (ValueError, KeyError, IndexError):
                problems.append(
                    Problem(
                        REFUSED, "not a line of `conntrack -L`", file, n, line, hint="use `conntrack -L -o extended`"
                    )
                )
        for n, line in expected:
            try:
                self.node.helpers.read_line(line, now)
            except Unsupported as error:
                problems.append(Problem(UNSUPPORTED, error.problems[0].what, file, n, line, hint="leave the line out"))
            except (ValueError, KeyError, IndexError):
                problems.append(Problem(REFUSED, "not a line of `conntrack -L expect`", file, n, line))
        self.end_run()

    def _read_line(self, line: str, now: int) -> None:
        words = line.split()
        if words[0] == "ipv4":
            words = words[2:]
        proto = int(words[1])
        rest = words[2:]
        left = int(rest.pop(0)) if rest[0].isdigit() else 0
        known = STATES if proto == TCP else self.trackers[proto].states if proto in self.trackers else ()
        state = rest.pop(0) if rest[0] in known else None
        tuples: list[dict[str, int]] = []
        status = CONFIRMED | SEEN_REPLY | SRC_NAT_DONE | DST_NAT_DONE
        other: dict[str, int] = {}
        helper = ""
        for word in rest:
            if word == "[UNREPLIED]":
                status &= ~SEEN_REPLY
            elif word == "[ASSURED]":
                status |= ASSURED
            elif "=" in word:
                name, _, value = word.partition("=")
                if name == "src":
                    tuples.append({})
                if name in ("src", "dst"):
                    a, b, c, d = (int(x) for x in value.split("."))
                    tuples[-1][name] = a << 24 | b << 16 | c << 8 | d
                elif name in ("sport", "dport", "type", "code", "id", "packets", "bytes"):
                    tuples[-1][name] = int(value)
                elif name in ("srckey", "dstkey"):
                    tuples[-1][name[0] + "port"] = int(value, 0)
                elif name == "helper":
                    helper = value
                else:
                    other[name] = int(value) if re.fullmatch(r"\d+", value) else 0
        there, back = (_tuple_of(t, proto) for t in tuples)
        zone = other.get("zone", 0)
        for side in ("orig", "reply"):
            if f"zone-{side}" in other:
                zone = other[f"zone-{side}"] | SIDES[side]
        flow = self.begin(there, now, zone)
        self.alter_reply(flow, back)
        self.mark[flow], self.deadline[flow] = other.get("mark", 0), now + left * SECOND
        self.created[flow] = min(self.created.item(flow), now - 2 * SECOND - 1)  # it is not of today: UDP's is a stream
        plain = inverse(there)
        if back[0] != plain[0] or (proto != ICMP and back[2] != plain[2]):
            status |= DST_NAT
        if back[1] != plain[1] or back[3 if proto != ICMP else 2] != plain[3 if proto != ICMP else 2]:
            status |= SRC_NAT
        self.status[flow] = status
        if "packets" in tuples[0]:
            self.counted[flow] = True
            for d, t in enumerate(tuples):
                self.packets[flow, d], self.bytes[flow, d] = t.get("packets", 0), t.get("bytes", 0)
        if proto == TCP:
            self.tcp.adopt(flow, STATES.index(state) if state else 3)
        elif proto in self.trackers:
            self.trackers[proto].restore(flow, state)
            if self.trackers[proto].abrupt:
                self.abrupt.add(proto)
        if not self.store(flow, now):
            self.kill(flow)
            return
        if status & SRC_NAT:
            self.remember_sources(np.array([flow]))
        if helper:
            self.node.helpers.attach(flow, helper, learning=True)

    def check(self) -> None:
        """Do the columns and the hash table say the same?"""
        self.table.check()
        used, free = self.capacity - len(self._free), self._free.all().tolist()
        assert len(set(free)) == len(free) and used == int(self.stored.sum()), "a flow number was lost"
        self.mapped.check()
        assert len(self.mapped) == np.count_nonzero(self.stored & ((self.status & MAPPED) != 0)), "mapped sources"
        for flow in np.flatnonzero(self.stored).tolist():
            zone = int(self.zone[flow])
            assert self.table.find_one(*key(self.original(flow), zone, 0)) >> 1 == flow
            assert self.table.find_one(*key(self.reply(flow), zone, 1)) >> 1 == flow


def _tuple_text(t: Tuple) -> str:
    src, dst, sport, dport, proto = t
    text = f"src={dotted(src)} dst={dotted(dst)}"
    if proto == ICMP:
        return f"{text} type={dport >> 8} code={dport & 255} id={sport}"
    if proto in PORTED:
        return f"{text} sport={sport} dport={dport}"
    if proto == GRE:
        return f"{text} srckey=0x{sport:x} dstkey=0x{dport:x}"
    return text


def _tuple_of(t: dict[str, int], proto: int) -> Tuple:
    if proto == ICMP:
        return t["src"], t["dst"], t["id"], t["type"] << 8 | t["code"], proto
    return t["src"], t["dst"], t.get("sport", 0), t.get("dport", 0), proto


def looks(p: Packets, rows: Rows) -> NDArray[np.uint64]:
    """uint64[n]: all that steady rules, routing and limits can see of SYNs that came in on links, apart from tuples.

    0 for other packets, and for those that are not simply passed on.
    """
    at = span(rows)
    arrived, length, ihl, flags = p.arrived[at], p.length[at], p.ihl[at], p.flags[at]
    fine = (ihl == 20) & (arrived >= 0) & (p.pkttype[at] == HOST) & (p.proto[at] == TCP)
    fine &= flags & np.uint8(SYN | ACK | RST) == SYN
    out: NDArray[np.uint64] = arrived.astype(np.uint64)
    for bits, field in (
        (8, p.tos[at]), (8, p.ttl[at]), (8, flags), (1, (p.frag[at] & DONT_FRAGMENT) != 0), (16, length),
        (5, p.doff[at] >> np.uint8(2)),
    ):  # fmt: skip
        out <<= np.uint64(bits)
        out |= field.astype(np.uint64)
    out *= fine
    return out


def grouped(numbers: Flows) -> Flows:
    """An order that puts equal numbers side by side, and leaves those in the order in which they came.

    Cost: numpy sorts 16-bit numbers by radix, the only quick sort that it has; so one or two of those.

    >>> grouped(np.array([7, 3, 7, 1, 3]))
    array([3, 1, 4, 0, 2])
    """
    order: Flows = np.argsort(numbers.astype(np.uint16), kind="stable")
    if len(numbers) and int(numbers.max()) >> 16:
        high = (numbers >> 16).astype(np.uint16).take(order)
        order = order.take(np.argsort(high, kind="stable"))
    return order


def dotted(address: int) -> str:
    """10.0.0.1 for 0x0a000001."""
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def quoted_tuple(inner: bytes) -> Tuple | None:
    """The tuple of the packet that an ICMP error quotes, or None where it quotes too little."""
    if len(inner) < 20 or inner[0] >> 4 != 4:
        return None
    ihl = (inner[0] & 15) * 4
    (frag,) = struct.unpack_from("!H", inner, 6)
    if ihl < 20 or frag & OFFSET_MASK:
        return None
    src, dst = struct.unpack_from("!II", inner, 12)
    proto = inner[9]
    if proto == ICMP:
        if len(inner) < ihl + 8 or inner[ihl] not in PAIRED:
            return None
        kind, code, _, number = struct.unpack_from("!BBHH", inner, ihl)
        return src, dst, number, kind << 8 | code, proto
    if proto in PORTED:
        if len(inner) < ihl + 4:
            return None
        sport, dport = struct.unpack_from("!HH", inner, ihl)
        return src, dst, sport, dport, proto
    if proto == GRE:
        keys = gre_keys(inner[ihl:])
        return (src, dst, *keys, proto) if keys else None
    return src, dst, 0, 0, proto
