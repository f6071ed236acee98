"""Matches that ask for the connection of a packet, for its mark, and for what IPVS made of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from netemu.clock import NEVER, jiffies
from netemu.grammar import Bad, Given, RuleContext
from netemu.hashing import jhash2
from netemu.ipvs import MASQ, ROUTE, TUNNEL
from netemu.matches.base import NONE, Match, Memory, Option, drop_at_once, turned
from netemu.matches.headers import Ports
from netemu.packets import HOST, ICMP, MULTICAST, OFFSET_MASK, PORTED, TCP, U8, Mask, Rows
from netemu.words import (
    M32,
    M64,
    address_and_width,
    bang,
    hex_masked,
    integer,
    prefix_length,
    quoted,
    read_loose_port,
    read_masked,
    read_names,
    read_netmask,
    read_network,
    read_number,
    read_protocol,
    read_range,
    span,
)

if TYPE_CHECKING:
    from netemu.conntrack import Conntrack
    from netemu.node import Node
    from netemu.trip import Trip

# ---- marks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark(Match, name="mark"):
    """--mark VALUE[/MASK]: the packet's mark, masked, equals VALUE."""

    alike = True
    SPEC: ClassVar = {"--mark": Option(invert=True)}
    NEEDED = ("--mark",)
    value: int
    wild: int = M32
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mark"]
        return cls(*read_masked(cls.name, "--mark", g.value), g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--mark {hex_masked(self.value, self.wild)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return turned((trip.pkts.mark[rows] & np.uint32(self.wild)) == self.value, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return ((trip.pkts.mark.item(row) & self.wild) == self.value) != self.invert


@dataclass(frozen=True)
class Connmark(Match, name="connmark"):
    """--mark VALUE[/MASK]: the same of the connection's mark. A packet without connection never matches, `!` or not."""

    SPEC: ClassVar = {"--mark": Option(invert=True)}
    NEEDED = ("--mark",)
    needs_conntrack = True
    value: int
    wild: int = M32
    invert: bool = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("flow",))

    def steadfast(self, node: Node) -> bool:
        return not any(m.touch == "flow" and m.target for m in node.tables.memories)  # nobody writes the mark

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mark"]
        return cls(*read_masked(cls.name, "--mark", g.value), g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--mark {hex_masked(self.value, self.wild)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        flow = trip.pkts.ct[rows]
        hit = (trip.node.conntrack.mark[flow] & np.uint32(self.wild)) == self.value
        said: Mask = (flow >= 0) & turned(hit, self.invert)
        if trip.template is not None and (self.value == 0) != self.invert:  # a template's mark is 0
            said |= trip.template[rows] != 0
        return said

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        if wished(trip, row):
            return (self.value == 0) != self.invert
        return flow >= 0 and ((trip.node.conntrack.mark.item(flow) & self.wild) == self.value) != self.invert


# ---- what a CT rule wished for: until it is tracked, the packet has a template for a connection ---------------------


def wished(trip: Trip, row: int) -> bool:
    """Has the packet a template?"""
    return trip.template is not None and trip.template.item(row) != 0


def states(trip: Trip, rows: Rows) -> U8:
    """The states of packets; what has a template looks new."""
    found: U8 = trip.pkts.state[rows]
    return found if trip.template is None else np.where(trip.template[rows] != 0, np.uint8(NEW_CODE), found)


# ---- states and tuples ----------------------------------------------------------------------------------------------

STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")  # as iptables-save orders them
#: packets.INVALID .. packets.UNTRACKED -> name
_STATE_OF_CODE = ("INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED")
NEW_CODE = _STATE_OF_CODE.index("NEW")
STATUSES = {"EXPECTED": 1, "SEEN_REPLY": 2, "ASSURED": 4, "CONFIRMED": 8}
ASSURED, CONFIRMED, SRC_NAT, DST_NAT = 4, 8, 16, 32


@dataclass(frozen=True)
class State(Match, name="state"):
    """--state LIST: the older spelling of `conntrack --ctstate`, without SNAT and DNAT."""

    alike = True
    SPEC: ClassVar = {"--state": Option(invert=True)}
    NEEDED = ("--state",)
    needs_conntrack = True
    states: frozenset[str]
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--state"]
        return cls(read_names(g.value, STATES, "Bad state"), g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--state {','.join(s for s in STATES if s in self.states)}"

    @cached_property
    def _answers(self) -> Mask:
        return np.array([(name in self.states) != self.invert for name in _STATE_OF_CODE])

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[states(trip, rows)]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(NEW_CODE if wished(trip, row) else trip.pkts.state.item(row))


_TUPLE_ADDRESSES = {"--ctorigsrc": "osrc", "--ctorigdst": "odst", "--ctreplsrc": "rsrc", "--ctrepldst": "rdst"}
_TUPLE_PORTS = {
    "--ctorigsrcport": "osport",
    "--ctorigdstport": "odport",
    "--ctreplsrcport": "rsport",
    "--ctrepldstport": "rdport",
}


@dataclass(frozen=True)
class ConntrackMatch(Match, name="conntrack"):
    """--ctstate, --ctproto, --ctorigsrc ..., --ctorigsrcport ..., --ctstatus, --ctexpire, --ctdir.

    A packet without connection is INVALID or UNTRACKED. It matches as soon as --ctstate (after `!`) does, whatever
    else is asked; without --ctstate it never matches.
    """

    SPEC: ClassVar = {
        "--ctstate": Option(invert=True),
        "--ctproto": Option(invert=True),
        **{option: Option(invert=True) for option in (*_TUPLE_ADDRESSES, *_TUPLE_PORTS)},
        "--ctstatus": Option(invert=True),
        "--ctexpire": Option(invert=True),
        "--ctdir": Option(),
    }
    needs_conntrack = True
    states: frozenset[str] | None = None
    states_invert: bool = False
    proto: tuple[int, bool] | None = None
    addresses: tuple[tuple[str, int, int, bool], ...] = ()  # option, address, mask, invert
    ports: tuple[tuple[str, Ports], ...] = ()
    status: tuple[int, bool] | None = None
    expire: tuple[int, int, bool] | None = None
    direction: str = ""

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("flow",)) if self.status or self.expire else NONE

    def steadfast(self, node: Node) -> bool:
        return self.expire is None

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("conntrack: At least one option is required")
        states, states_invert, proto, status, expire, direction = None, False, None, None, None, ""
        if "--ctstate" in o:
            g = o["--ctstate"]
            states = read_names(g.value, (*STATES, "SNAT", "DNAT"), "Bad ctstate")
            states_invert = g.invert
        if "--ctproto" in o:
            proto = (read_protocol(o["--ctproto"].value), o["--ctproto"].invert)
        addresses = []
        for option in _TUPLE_ADDRESSES:
            if option in o:
                address, mask = read_network(cls.name, option, o[option].value)
                addresses.append((option, address, mask, o[option].invert))
        ports = [(x, Ports.read_loosely(cls.name, x, o[x])) for x in _TUPLE_PORTS if x in o]
        if "--ctstatus" in o:
            g = o["--ctstatus"]
            names = read_names(g.value, ("NONE", *STATUSES), "Bad ctstatus")
            status = (sum(STATUSES.get(name, 0) for name in names), g.invert)
        if "--ctexpire" in o:
            g = o["--ctexpire"]
            expire = (*read_range(cls.name, "--ctexpire", g.value, M32), g.invert)
        if "--ctdir" in o:
            direction = o["--ctdir"].value.upper()
            if direction not in ("ORIGINAL", "REPLY"):
                raise Bad(f'conntrack: Bad value for "--ctdir" option: "{o["--ctdir"].value}"', o["--ctdir"].value)
        return cls(states, states_invert, proto, tuple(addresses), tuple(ports), status, expire, direction)

    def words(self) -> str:
        out = []
        if self.states is not None:
            names = (s for s in (*STATES, "SNAT", "DNAT") if s in self.states)
            out.append(f"{bang(self.states_invert)}--ctstate {','.join(names)}")
        if self.proto:
            out.append(f"{bang(self.proto[1])}--ctproto {self.proto[0]}")
        for option, address, mask, invert in self.addresses:
            out.append(f"{bang(invert)}{option} {address_and_width(address, mask)}")
        for option, ports in self.ports:
            out.append(f"{bang(ports.invert)}{option} {span(ports.lo, ports.hi)}")
        if self.status:
            names = (s for s, bit in STATUSES.items() if bit & self.status[0])
            out.append(f"{bang(self.status[1])}--ctstatus {','.join(names) or 'NONE'}")
        if self.expire:
            out.append(f"{bang(self.expire[2])}--ctexpire {span(*self.expire[:2])}")
        if self.direction:
            out.append(f"--ctdir {self.direction}")
        return " ".join(out)

    @cached_property
    def _answers(self) -> Mask:
        states = self.states or NONE
        return np.array([name in states for name in _STATE_OF_CODE])

    @cached_property
    def _nat_bits(self) -> int:
        states = self.states or NONE
        return (SRC_NAT if "SNAT" in states else 0) | (DST_NAT if "DNAT" in states else 0)

    @cached_property
    def _asks_more(self) -> bool:
        return bool(self.proto or self.addresses or self.ports or self.status or self.expire or self.direction)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p, flows = trip.pkts, trip.node.conntrack
        if self.states is None:
            yes = p.ct[rows] >= 0
        else:
            yes = self._answers[states(trip, rows)]
            if self._nat_bits:
                flow = p.ct[rows]
                yes |= (flow >= 0) & ((flows.status[flow] & self._nat_bits) != 0)
            if self.states_invert:
                yes = ~yes
            if not self._asks_more:
                return yes
        # without a connection there is nothing more to ask: what --ctstate said stands
        k = np.flatnonzero(yes & (p.ct[rows] >= 0))
        if len(k):
            yes[k] = self._of_flows(trip, rows[k])
        if trip.template is not None:
            has = trip.template[rows] != 0
            yes = np.where(has, (yes if self.states is not None else has) & self._of_template, yes)
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        flow = p.ct.item(row)
        bare = wished(trip, row)
        if self.states is not None:
            yes = self._answers.item(NEW_CODE if bare else p.state.item(row))
            if self._nat_bits and not yes and flow >= 0:
                yes = bool(trip.node.conntrack.status.item(flow) & self._nat_bits)
            if yes == self.states_invert:
                return False
            if flow < 0 and not bare:
                return True
        elif flow < 0 and not bare:
            return False
        if bare:
            return self._of_template
        return not self._asks_more or bool(self._of_flows(trip, np.array([row]))[0])

    @cached_property
    def _of_template(self) -> bool:
        """The criteria beyond --ctstate, of a template: confirmed, and everything else is 0."""
        yes = self.direction != "REPLY"
        yes &= all(((address & mask) == 0) != invert for _, address, mask, invert in self.addresses)
        yes &= all(bool(ports.of(np.zeros(1, np.uint16))[0]) for _, ports in self.ports)
        if self.proto:
            yes &= (self.proto[0] == 0) != self.proto[1]
        if self.status:
            yes &= bool(CONFIRMED & self.status[0]) != self.status[1]
        if self.expire:
            yes &= (self.expire[0] <= 0) != self.expire[2]
        return yes

    def _of_flows(self, trip: Trip, rows: Rows) -> Mask:
        """The criteria beyond --ctstate, of rows that have a connection."""
        p, flows = trip.pkts, trip.node.conntrack
        flow = p.ct[rows]
        yes = np.ones(len(rows), bool)
        if self.direction:
            yes &= p.reply[rows] == (self.direction == "REPLY")
        for option, address, mask, invert in self.addresses:
            column = getattr(flows, _TUPLE_ADDRESSES[option])[flow]
            yes &= ((column & np.uint32(mask)) == address & mask) != invert
        if self.proto:
            yes &= (flows.proto[flow] == self.proto[0]) != self.proto[1]
        for option, ports in self.ports:
            yes &= ports.of(getattr(flows, _TUPLE_PORTS[option])[flow])
        if self.status:
            yes &= ((flows.status[flow] & self.status[0]) != 0) != self.status[1]
        if self.expire:
            low, high, invert = self.expire
            hz = trip.node.hz
            left = np.array(
                [
                    jiffies(d, hz) - jiffies(t, hz)
                    for d, t in zip(flows.deadline[flow].tolist(), p.time[rows].tolist(), strict=True)
                ]
            )
            left = np.maximum(left, 0) // hz
            left[(flows.status[flow] & CONFIRMED) == 0] = 0  # its timer does not run yet
            yes &= ((left >= low) & (left <= high)) != invert
        return yes


# ---- how much, how many ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connbytes(Match, name="connbytes"):
    """--connbytes FROM[:TO] --connbytes-dir original|reply|both --connbytes-mode packets|bytes|avgpkt.

    Counts include this packet. Linux switches accounting on when such a rule comes; older connections never match.
    """

    SPEC: ClassVar = {
        "--connbytes": Option(invert=True),
        "--connbytes-dir": Option(),
        "--connbytes-mode": Option(),
    }
    NEEDED = ("--connbytes", "--connbytes-dir", "--connbytes-mode")
    DIRECTIONS: ClassVar[tuple[str, ...]] = ("original", "reply", "both")
    MODES: ClassVar[tuple[str, ...]] = ("packets", "bytes", "avgpkt")
    needs_conntrack = True
    low: int
    high: int
    direction: str
    mode: str
    invert: bool = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("flow",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--connbytes"]
        single = ":" not in g.value
        low, high = read_range(cls.name, "--connbytes", g.value, M64)
        if single:
            high = M64
        if low > high:
            raise Bad(f"{low} should be less than {high}", g.value)
        direction, mode = o["--connbytes-dir"].value, o["--connbytes-mode"].value
        if direction not in cls.DIRECTIONS:
            raise Bad(f"Unknown --connbytes-dir `{direction}'", direction, "one of " + ", ".join(cls.DIRECTIONS))
        if mode not in cls.MODES:
            raise Bad(f"Unknown --connbytes-mode `{mode}'", mode, "one of " + ", ".join(cls.MODES))
        # the tool says "not" by swapping the ends, which cannot be seen when they are equal
        return cls(low, high, direction, mode, g.invert and low != high)

    def words(self) -> str:
        high = "" if self.high == M64 else f":{self.high}"
        return (
            f"{bang(self.invert)}--connbytes {self.low}{high} --connbytes-mode {self.mode} "
            f"--connbytes-dir {self.direction}"
        )

    def start(self, node: Node, place: str) -> None:
        node.sysctl.set("net.netfilter.nf_conntrack_acct", 1)

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        flows = trip.node.conntrack
        if flow < 0 or not flows.counted.item(flow):
            return False
        sides = {"original": [0], "reply": [1], "both": [0, 1]}[self.direction]
        packets = sum(flows.packets.item(flow, side) for side in sides)
        size = sum(flows.bytes.item(flow, side) for side in sides)
        what = {"packets": packets, "bytes": size, "avgpkt": size // packets if packets else 0}[self.mode]
        return (self.low <= what <= self.high) != self.invert


@dataclass(eq=False)
class Connlimit(Memory, name="connlimit"):
    """--connlimit-above N | --connlimit-upto N [--connlimit-mask BITS] [--connlimit-saddr | --connlimit-daddr].

    How many connections with this source (or destination) network the rule has seen that are still open, this one
    included. TCP connections in TIME_WAIT or CLOSE do not count, once that is noticed (see ConnectionList).
    """

    SPEC: ClassVar = {
        "--connlimit-upto": Option(invert=True, alone=("--connlimit-above",)),
        "--connlimit-above": Option(invert=True, alone=("--connlimit-upto",)),
        "--connlimit-mask": Option(),
        "--connlimit-saddr": Option(0, alone=("--connlimit-daddr",)),
        "--connlimit-daddr": Option(0, alone=("--connlimit-saddr",)),
    }
    needs_conntrack = True
    limit: int
    above: bool
    width: int = 32
    side: str = "saddr"

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule", "flows"))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o.get("--connlimit-above") or o.get("--connlimit-upto")
        if g is None:
            raise Bad('You must specify "--connlimit-above" or "--connlimit-upto".')
        option = "--connlimit-above" if "--connlimit-above" in o else "--connlimit-upto"
        limit = read_number(cls.name, option, g.value, M32)
        width = 32
        if "--connlimit-mask" in o:
            text = o["--connlimit-mask"].value
            width = prefix_length(read_netmask(cls.name, "--connlimit-mask", text)) or 0
        side = "daddr" if "--connlimit-daddr" in o else "saddr"
        return cls(limit, (option == "--connlimit-above") != g.invert, width, side)

    def words(self) -> str:
        option = "above" if self.above else "upto"
        return f"--connlimit-{option} {self.limit} --connlimit-mask {self.width} --connlimit-{self.side}"

    def reset(self, node: Node) -> None:
        self._lists: dict[tuple[int, int], ConnectionList] = {}

    def ask(self, trip: Trip, row: int) -> bool:
        p, flows = trip.pkts, trip.node.conntrack
        address = (p.dst if self.side == "daddr" else p.src).item(row) & (M32 << (32 - self.width) & M32)
        flow = p.ct.item(row)
        now = p.time.item(row)
        if flow < 0:
            proto = p.proto.item(row)
            needed = 8 if proto == ICMP else 4 if proto in PORTED else 0
            if p.frag.item(row) & OFFSET_MASK or p.length.item(row) < p.ihl.item(row) + needed:
                drop_at_once(trip, np.array([row]))
                return False
            sport, dport = p.sport.item(row), p.dport.item(row)
            if proto == ICMP:
                sport, dport = p.icmp_id.item(row), p.icmp_type.item(row) << 8 | p.icmp_code.item(row)
            this = (p.src.item(row), p.dst.item(row), sport, dport, p.proto.item(row))
            flow = flows.holder(this, now) >> 1  # -1 stays -1
            if flow >= 0 and trip.node.kernel == "6.1":  # later kernels count such a packet as it reads
                this = flows.original(flow)
        else:
            this = flows.original(flow)
        zone = flows.zone.item(flow) if flow >= 0 else 0
        status = flows.status.item(flow) if flow >= 0 else 0
        known = self._lists.get((address, zone))
        if known is None:
            self._lists[address, zone] = ConnectionList((*this, zone), jiffies(now, trip.node.hz))
            count = 1
        elif status & (ASSURED if trip.node.kernel != "6.1" else CONFIRMED if p.link_in.item(row) != 0 else 0):
            # (6.1 knows that what comes over lo was confirmed before it came)
            count = known.sweep(trip.node, now)
        else:
            count = known.add((*this, zone), bool(status & CONFIRMED), trip.node, now)
        if not count:  # the kernel takes it for a failure
            drop_at_once(trip, np.array([row]))
            return False
        return (count > self.limit) == self.above


class ConnectionList:
    """The connections of one network that a connlimit rule counts, oldest first.

    A packet of a settled connection (6.1: a confirmed one, 6.18: an assured one) has the list swept and adds nothing:
    its connection was added when it was new, and may be swept away with the others. Any other looks for its connection,
    forgets those that ended on the way there, and is added if it is not found; one that is not confirmed is added
    without a look within the tick of the last sweep.
    """

    TIME_WAIT, CLOSE = 7, 8

    def __init__(self, first: tuple[int, ...], tick: int) -> None:
        self.tuples = [first]
        self.swept = tick

    def sweep(self, node: Node, now: int) -> int:
        """Forget all that ended, once a tick; how many are left."""
        tick = jiffies(now, node.hz)
        if tick != self.swept:
            self.tuples = [known for known in self.tuples if self._open(known, node, now)]
            self.swept = tick
        return len(self.tuples)

    def add(self, this: tuple[int, ...], confirmed: bool, node: Node, now: int) -> int:
        """See that `this` is among them; how many there are."""
        tick = jiffies(now, node.hz)
        if confirmed or tick != self.swept:
            left: list[tuple[int, ...]] = []
            for n, known in enumerate(self.tuples):
                if known == this and self._holder(known, node, now) >= 0:
                    self.tuples = left + self.tuples[n:]
                    return len(self.tuples)
                if self._open(known, node, now):
                    left.append(known)
            self.tuples, self.swept = left, tick
        self.tuples.append(this)
        return len(self.tuples)

    @staticmethod
    def _holder(known: tuple[int, ...], node: Node, now: int) -> int:
        src, dst, sport, dport, proto, zone = known
        return node.conntrack.holder((src, dst, sport, dport, proto), now, zone)

    def _open(self, known: tuple[int, ...], node: Node, now: int) -> bool:
        holder = self._holder(known, node, now)
        if holder < 0:
            return False
        return known[4] != TCP or int(node.conntrack.tcp.misc[holder >> 1, -1]) not in (self.TIME_WAIT, self.CLOSE)


# ---- IPVS -----------------------------------------------------------------------------------------------------------

FORWARDING_METHODS = {"GATE": ROUTE, "IPIP": TUNNEL, "MASQ": MASQ}


@dataclass(frozen=True)
class IpvsMatch(Match, name="ipvs"):
    """--ipvs: IPVS has dealt with this packet. --vproto, --vaddr, --vport, --vdir, --vmethod, --vportctl: of which
    service. The latter know requests only, after they were translated.
    """

    SPEC: ClassVar = {
        "--ipvs": Option(0, invert=True),
        "--vproto": Option(invert=True),
        "--vaddr": Option(invert=True),
        "--vport": Option(invert=True),
        "--vdir": Option(),
        "--vmethod": Option(invert=True),
        "--vportctl": Option(invert=True),
    }
    handled: bool | None = None  # only --ipvs or ! --ipvs was asked
    proto: tuple[int, bool] | None = None
    address: tuple[int, int, bool] | None = None
    port: tuple[int, bool] | None = None
    direction: str = ""
    method: tuple[str, bool] | None = None
    control_port: tuple[int, bool] | None = None

    @property
    def needs_tracking(self) -> bool:
        return bool(self.direction)

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("IPVS: At least one option is required")
        if len(o) == 1 and "--ipvs" in o:
            return cls(not o["--ipvs"].invert)
        if "--ipvs" in o and o["--ipvs"].invert:
            raise Bad("! --ipvs cannot be together with other options", "--ipvs")
        address = method = None
        direction = ""
        if "--vaddr" in o:
            address = (*read_network(cls.name, "--vaddr", o["--vaddr"].value), o["--vaddr"].invert)
        if "--vdir" in o:
            direction = o["--vdir"].value.upper()
            if direction not in ("ORIGINAL", "REPLY"):
                raise Bad(f'ipvs: Bad value for "--vdir" option: "{o["--vdir"].value}"', o["--vdir"].value)
        if "--vmethod" in o:
            name = o["--vmethod"].value.upper()
            if name not in FORWARDING_METHODS:
                raise Bad(f'ipvs: Bad value for "--vmethod" option: "{o["--vmethod"].value}"', o["--vmethod"].value)
            method = (name, o["--vmethod"].invert)

        def port(option: str) -> tuple[int, bool] | None:
            return (read_loose_port(o[option].value), o[option].invert) if option in o else None

        proto = (read_protocol(o["--vproto"].value), o["--vproto"].invert) if "--vproto" in o else None
        return cls(None, proto, address, port("--vport"), direction, method, port("--vportctl"))

    def words(self) -> str:
        if self.handled is not None:
            return f"{bang(not self.handled)}--ipvs"
        out = []
        if self.proto:
            out.append(f"{bang(self.proto[1])}--vproto {self.proto[0]}")
        if self.address:
            out.append(f"{bang(self.address[2])}--vaddr {address_and_width(*self.address[:2])}")
        if self.port:
            out.append(f"{bang(self.port[1])}--vport {self.port[0]}")
        if self.direction:
            out.append(f"--vdir {self.direction}")
        if self.method:
            out.append(f"{bang(self.method[1])}--vmethod {self.method[0]}")
        if self.control_port:
            out.append(f"{bang(self.control_port[1])}--vportctl {self.control_port[0]}")
        return " ".join(out)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p, ipvs = trip.pkts, trip.node.ipvs
        yes = p.ipvs[rows]
        if self.handled is not None:
            return turned(yes, not self.handled)
        yes = yes.copy()
        if self.proto:
            yes &= (p.proto[rows] == self.proto[0]) != self.proto[1]
        k = np.flatnonzero(yes)
        if not len(k):
            return yes
        found = ipvs.lookup_request(trip, rows[k])
        fits = found >= 0
        if fits.any():
            fits[fits] = self._of_connections(trip, rows[k][fits], found[fits])
        yes[k] = fits
        return yes

    def _of_connections(self, trip: Trip, rows: Rows, found: NDArray[np.integer[Any]]) -> Mask:
        p, conns = trip.pkts, trip.node.ipvs.conns
        yes = np.ones(len(rows), bool)
        if self.port:
            yes &= (conns.vport[found] == self.port[0]) != self.port[1]
        if self.address:
            address, mask, invert = self.address
            yes &= ((conns.vaddr[found] & np.uint32(mask)) == address & mask) != invert
        if self.direction:
            yes &= (p.ct[rows] >= 0) & (p.reply[rows] == (self.direction == "REPLY"))
        if self.method:
            yes &= (conns.method[found] == FORWARDING_METHODS[self.method[0]]) != self.method[1]
        if self.control_port:
            control = conns.parent[found]
            hit = (control >= 0) & (conns.vport[control] == self.control_port[0])
            yes &= hit != self.control_port[1]
        return yes


EMPTY = '""'


# ---- labels, helpers, clusters --------------------------------------------------------------------------------------


class Labels:
    """The 128 labels of each connection of a node.

    A connection has room for labels when a rule asked for some as it began; in an older one none can be set.
    """

    def __init__(self) -> None:
        self.bits: dict[int, tuple[int, int]] = {}  # flow -> (serial number of its first packet, bits)
        self.users: set[int] = set()  # rules in force
        self.spans: list[list[int]] = []  # serial numbers of packets between which there were some

    def of(self, ct: Conntrack, flow: int) -> int:
        """The labels of a connection, as bits."""
        born, bits = self.bits.get(flow, (-1, 0))
        return bits if born == int(ct.born[flow]) else 0

    def room(self, ct: Conntrack, flow: int) -> bool:
        """Can it be given a label? (Where no rule stands in a table, and for connections that a dump held: yes.)"""
        born = int(ct.born[flow])
        return born < 0 or not self.spans or any(first <= born < last for first, last in self.spans)


_LABELS: WeakKeyDictionary[Conntrack, Labels] = WeakKeyDictionary()


@dataclass(frozen=True)
class Connlabel(Match, name="connlabel"):
    """--label N [--set]: the connection carries label N; with --set, it gets it.

    A packet without a connection has no label, and a connection older than all such rules gets none. Names of labels
    come from a file that no dump holds: numbers only.
    """

    SPEC: ClassVar = {"--label": Option(invert=True), "--set": Option(0)}
    NEEDED = ("--label",)
    needs_conntrack = True
    label: int
    invert: bool = False
    set: bool = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("flow",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--label"]
        n = integer(g.value)
        if n is None or n > 0xFFFF:
            raise Bad(f"label '{g.value}' not found or invalid value", g.value, "labels are numbers here")
        return cls(n, g.invert, "--set" in o)

    def check(self, rule: RuleContext) -> str:
        return super().check(rule) or ("" if self.label < 128 else f"connlabel {self.label}: there are 128")

    def words(self) -> str:
        return f'{bang(self.invert)}--label "{self.label}"{" --set" if self.set else ""}'

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        if flow < 0:
            return self.invert
        ct = trip.node.conntrack
        labels = self.labels(ct)
        bits = labels.of(ct, flow)
        if bits >> self.label & 1:
            return not self.invert
        if not self.set or not labels.room(ct, flow):
            return self.invert
        labels.bits[flow] = int(ct.born[flow]), bits | 1 << self.label
        return not self.invert

    @staticmethod
    def labels(ct: Conntrack) -> Labels:
        """Those of the node."""
        return _LABELS.setdefault(ct, Labels())

    def start(self, node: Node, place: str) -> None:
        labels = self.labels(node.conntrack)
        if not labels.users:
            labels.spans.append([node.serial, NEVER])
        labels.users.add(id(self))

    def stop(self, node: Node) -> None:
        labels = self.labels(node.conntrack)
        labels.users.discard(id(self))
        if not labels.users:
            labels.spans[-1][1] = node.serial


@dataclass(frozen=True)
class Helper(Match, name="helper"):
    """--helper NAME: the connection belongs to one that this helper looks into (FTP data to FTP control).

    "" means any helper, and a beginning of the packet's helper's name will not do: NAME must begin with it.
    """

    SPEC: ClassVar = {"--helper": Option(invert=True)}
    NEEDED = ("--helper",)
    needs_conntrack = True
    helper: str
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--helper"]
        return cls(g.value[:29], g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--helper {quoted(self.helper) or EMPTY}"

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        name = self.of_flow(trip.node.conntrack, flow) if flow >= 0 else ""
        return (bool(name) and self.helper.startswith(name) if self.helper else bool(name)) != self.invert

    @staticmethod
    def of_flow(ct: Conntrack, flow: int) -> str:
        """Name of the helper that looks into the connection that told of this one; "" for none."""
        return ct.node.helpers.name(ct.parent.item(flow))


@dataclass(frozen=True)
class Cluster(Match, name="cluster"):
    """--cluster-total-nodes N --cluster-local-node K (or -nodemask M) --cluster-hash-seed S: this node's share.

    The share is the hash of the connection's first source. Packets without a connection are nobody's. A unicast packet
    that came in a multicast frame, as such clusters have it, counts as sent to this node from here on.
    """

    SPEC: ClassVar = {
        "--cluster-total-nodes": Option(),
        "--cluster-local-node": Option(invert=True, alone=("--cluster-local-nodemask",)),
        "--cluster-local-nodemask": Option(invert=True, alone=("--cluster-local-node",)),
        "--cluster-hash-seed": Option(),
    }
    needs_conntrack = True
    total: int
    nodes: int
    seed: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        total = seed = nodes = 0
        if "--cluster-total-nodes" in o:
            total = read_number("cluster", "--cluster-total-nodes", o["--cluster-total-nodes"].value, 32, 1)
        g = o.get("--cluster-local-node") or o.get("--cluster-local-nodemask")
        if g is None:
            raise Bad("cluster match: `--cluster-local-node' or`--cluster-local-nodemask' is missing")
        if g.option == "--cluster-local-node":
            node = read_number("cluster", g.option, g.value, 32, 1)
            nodes = 1 << (node - 1)
        else:
            nodes = read_number("cluster", g.option, g.value, M32)
        for option in ("--cluster-total-nodes", "--cluster-hash-seed"):
            if option not in o:
                raise Bad(f'cluster: option "{option}" must be specified')
        seed = read_number("cluster", "--cluster-hash-seed", o["--cluster-hash-seed"].value, M32)
        if nodes >> total:
            if g.option == "--cluster-local-node":
                raise Bad("cluster match: `--cluster-local-node' must be <= `--cluster-total-nodes'", g.value)
            raise Bad("cluster match: `--cluster-local-nodemask' too big for `--cluster-total-nodes'", g.value)
        return cls(total, nodes, seed, g.invert)

    def words(self) -> str:
        return (
            f"{bang(self.invert)}--cluster-local-nodemask 0x{self.nodes:08x} "
            f"--cluster-total-nodes {self.total} --cluster-hash-seed 0x{self.seed:08x}"
        )

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        framed = rows[(p.pkttype[rows] == MULTICAST) & (p.dst[rows] >> 28 != 14)]
        p.pkttype[framed] = HOST
        flows = p.ct[rows]
        mine = (np.uint64(self.nodes) >> self.whose(trip.node.conntrack, np.maximum(flows, 0))) & np.uint64(1) != 0
        answer: Mask = (flows >= 0) & (mine != self.invert)
        return answer

    def whose(self, ct: Conntrack, flows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Number of the cluster's node, from 0, that takes each connection."""
        sources = ct.osrc[flows].byteswap()  # hashed as it stands in memory
        share = np.asarray(jhash2((sources.astype(np.uint32),), self.seed)).astype(np.uint64) * np.uint64(self.total)
        return share >> np.uint64(32)
