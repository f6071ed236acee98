"""Is it ours, and which way out: links, addresses, policy rules, routing tables.

    packet --> rules, lowest priority first --> table --> longest prefix --> tos, metric --> route
                 |  0      all  -> local           |                                            |
                 |  32766  all  -> main            '-- throw, or nothing fits: next rule        '-- local, unicast,
                 |  32767  all  -> default                                                          unreachable, ...

Tables are kept as Linux keeps them: for each prefix a short list of routes in the order tos, metric, age. For columns
of packets a table is flattened to disjoint intervals of addresses, so that the longest prefix is one binary search a
packet. As long as nobody ever touched the policy rules, Linux keeps `local` and `main` in one trie, where the longer
prefix wins across both; the first `ip rule` command splits them for good. Both ways are modelled.

Routes that follow from addresses (`proto kernel`) are made and removed here as links and addresses come and go.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from netemu.errors import Refused, Unsupported
from netemu.hashing import jhash2, siphash24
from netemu.packets import I16, I32, U8, U16, U32, Mask
from netemu.sysctl import Sysctl

I8 = NDArray[np.int8]

# what a route says. 1 to 9 are Linux's route types, and what addr_type answers
UNICAST, LOCAL, BROADCAST, ANYCAST, MULTICAST, BLACKHOLE, UNREACHABLE, PROHIBIT, THROW = 1, 2, 3, 4, 5, 6, 7, 8, 9
FORWARD, BROADCAST_IN = UNICAST, BROADCAST
# why there is no route
NO_ROUTE, MARTIAN_SOURCE, MARTIAN_DESTINATION, NOT_FORWARDING = 10, 11, 12, 13
REVERSE_PATH, NOT_JOINED, BAD_SOURCE = 14, 15, 16
#: kind -> why the packet dies, for the kinds that end it
REASONS: dict[int, str] = {
    BLACKHOLE: "blackhole route",
    UNREACHABLE: "unreachable route",
    PROHIBIT: "prohibit route",
    NO_ROUTE: "no route",
    MARTIAN_SOURCE: "martian source",
    MARTIAN_DESTINATION: "martian destination",
    NOT_FORWARDING: "not forwarding",
    REVERSE_PATH: "reverse path filter",
    NOT_JOINED: "multicast group not joined",
    BAD_SOURCE: "invalid source address",
}
#: kind -> (type, code) of the ICMP error that a forwarding node answers with; other kinds are silent
ICMP_ERROR: dict[int, tuple[int, int]] = {NO_ROUTE: (3, 0), UNREACHABLE: (3, 1), PROHIBIT: (3, 13)}
#: kinds that go to the node itself
DELIVERED_KINDS = (LOCAL, BROADCAST, MULTICAST)
#: `-m addrtype` names -> code, as addr_type answers
ADDR_TYPES: dict[str, int] = {
    "UNSPEC": 0, "UNICAST": UNICAST, "LOCAL": LOCAL, "BROADCAST": BROADCAST, "ANYCAST": ANYCAST, "MULTICAST": MULTICAST,
    "BLACKHOLE": BLACKHOLE, "UNREACHABLE": UNREACHABLE, "PROHIBIT": PROHIBIT, "THROW": THROW, "NAT": 10, "XRESOLVE": 11,
}  # fmt: skip

ROUTE_TYPES = {
    "unicast": UNICAST, "local": LOCAL, "broadcast": BROADCAST, "blackhole": BLACKHOLE, "unreachable": UNREACHABLE,
    "prohibit": PROHIBIT, "throw": THROW,
}  # fmt: skip
_TYPE_NAMES = {code: name for name, code in ROUTE_TYPES.items()}
_ERRORS = (BLACKHOLE, UNREACHABLE, PROHIBIT, THROW)
SCOPES = {"global": 0, "universe": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}
_SCOPE_NAMES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
TABLES: dict[str, int] = {"unspec": 0, "default": 253, "main": 254, "local": 255}
_TABLE_NAMES = {number: name for name, number in TABLES.items()}
TableId = int | str

LBCAST = 0xFFFFFFFF
_MASKS = [(LBCAST << (32 - n)) & LBCAST for n in range(33)]
_NOTHING, _HARD = 0, -1  # entry numbers in a flattened table: no match; more to ask than the address
# first bytes of addresses that are more than an address
_SUSPECT = np.zeros(256, bool)
_SUSPECT[[0, 127, 255, *range(224, 240)]] = True
TOS_MASK = 0x1C  # what routing looks at of the TOS byte
LO = 0


def parse_ip(text: str) -> int:
    """An IPv4 address as a number. Raises ValueError.

    >>> hex(parse_ip("10.0.0.1"))
    '0xa000001'
    """
    parts = text.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) <= 3 and int(p) <= 255 for p in parts):
        raise ValueError(f'not an IPv4 address: "{text}"')
    return int(parts[0]) << 24 | int(parts[1]) << 16 | int(parts[2]) << 8 | int(parts[3])


def format_ip(ip: int) -> str:
    """
    >>> format_ip(0x0A000001)
    '10.0.0.1'
    """
    return f"{ip >> 24}.{ip >> 16 & 255}.{ip >> 8 & 255}.{ip & 255}"


def parse_prefix(text: str) -> tuple[int, int]:
    """(address, prefix length) of `10.0.0.1/24`, `10/8`, `default`; a bare address is a /32. Raises ValueError.

    >>> parse_prefix("10.1/16"), parse_prefix("default")
    ((167837696, 16), (0, 0))
    """
    if text in ("default", "any", "all"):
        return 0, 0
    addr, slash, plen = text.partition("/")
    parts = addr.split(".")
    if slash and 1 <= len(parts) < 4:
        parts += ["0"] * (4 - len(parts))
    ip = parse_ip(".".join(parts))
    if not slash:
        return ip, 32
    if plen.isdigit() and int(plen) <= 32:
        return ip, int(plen)
    if "." in plen and parse_ip(plen) in _MASKS:
        return ip, _MASKS.index(parse_ip(plen))
    raise ValueError(f'not an IPv4 prefix: "{text}"')


def format_prefix(net: int, plen: int) -> str:
    """
    >>> format_prefix(0x0A000000, 8), format_prefix(0x0A000001, 32), format_prefix(0, 0)
    ('10.0.0.0/8', '10.0.0.1', 'default')
    """
    return "default" if not plen and not net else format_ip(net) if plen == 32 else f"{format_ip(net)}/{plen}"


def parse_mac(text: str) -> int:
    """A MAC address as a number. Raises ValueError.

    >>> hex(parse_mac("02:00:00:00:00:01"))
    '0x20000000001'
    """
    if not re.fullmatch(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}", text):
        raise ValueError(f'not a MAC address: "{text}"')
    return int("".join(part.zfill(2) for part in re.split("[:-]", text)), 16)


def format_mac(mac: int) -> str:
    """
    >>> format_mac(0x20000000001)
    '02:00:00:00:00:01'
    """
    return ":".join(f"{mac >> shift & 255:02x}" for shift in range(40, -8, -8))


@dataclass
class Address:
    """One IPv4 address of a link.

    ip, plen   the address and its prefix length       broadcast  brd, if one was set
    secondary  not the first of its subnet             scope      global, site, link or host
    peer       the far end (`peer`), whose prefix is the connected route; usually ip itself
    connected  its connected route is made (False: noprefixroute), with `metric`
    """

    ip: int
    plen: int
    broadcast: int | None = None
    secondary: bool = False
    scope: str = "global"
    peer: int = -1
    connected: bool = True
    metric: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        if self.peer < 0:
            self.peer = self.ip

    @property
    def prefix(self) -> int:
        """The network that the address stands in."""
        return self.peer & _MASKS[self.plen]

    def __str__(self) -> str:
        return f"{format_ip(self.ip)}/{self.plen}"


@dataclass
class Link:
    """A network device. `addresses` is in the kernel's order: primaries by scope, then secondaries."""

    name: str
    mac: int | None = None
    mtu: int = 1500
    up: bool = True
    kind: str = ""
    addresses: list[Address] = field(default_factory=list)
    addresses6: list[str] = field(default_factory=list)  # kept aside: IPv6 is not modelled
    gone: bool = False
    group: int = 0


@dataclass
class Hop:
    """One of the ways of a route that has several (`nexthop via ... dev ... weight ...`).

    weight  share of the flows that go this way      dead  its link is down, or has no address
    """

    link: int = -1
    gateway: int | None = None
    weight: int = 1
    onlink: bool = False
    onward: int = 255
    dead: bool = field(default=False, compare=False)


@dataclass(eq=False)
class Entry:
    """One route in a table.

    net, plen   destination          kind      UNICAST, LOCAL, ... THROW       link     index, -1: none
    gateway     next hop or None     source    `src`, or None                  onward   scope of the next hop
    hops        the ways of a multipath route; link, gateway and onward are then those of the first that is not dead
    """

    table: TableId
    net: int
    plen: int
    kind: int
    link: int = -1
    gateway: int | None = None
    source: int | None = None
    metric: int = 0
    tos: int = 0
    scope: int = 0
    mtu: int = 0
    onlink: bool = False
    protocol: str = ""
    onward: int = 255
    hops: tuple[Hop, ...] = ()

    def same(self, other: Entry) -> bool:
        """Nothing tells the two apart (Linux: File exists)."""
        # of several ways these are of whichever is alive
        passing = {"link", "gateway", "onward", "mtu"} if self.hops or other.hops else {"mtu"}
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(Entry) if f.name not in passing)

    def alive(self) -> list[Hop]:
        return [hop for hop in self.hops if not hop.dead]

    def settle(self) -> None:
        """Take link, gateway and onward from the first way that is alive."""
        for hop in self.alive()[:1]:
            self.link, self.gateway, self.onward = hop.link, hop.gateway, hop.onward

    def leaves_by(self, link: int) -> bool:
        """One of its ways leads out there."""
        return self.link == link or any(hop.link == link for hop in self.hops)


@dataclass
class Rule:
    """One policy rule, as `ip rule` has it. iif and oif are link names; a name that no link has never matches."""

    priority: int
    src: int = 0
    src_len: int = 0
    dst: int = 0
    dst_len: int = 0
    tos: int = 0
    fwmark: int = 0
    fwmask: int = 0
    iif: str = ""
    oif: str = ""
    invert: bool = False
    action: str = "lookup"  # lookup, unreachable, prohibit, blackhole, goto, nop
    table: TableId = 254
    target: int = 0  # of goto
    suppress: int = -1  # suppress_prefixlength

    def __str__(self) -> str:
        words = [f"{self.priority}:\t{'not ' if self.invert else ''}from {_or_all(self.src, self.src_len)}"]
        if self.dst_len:
            words.append(f"to {format_prefix(self.dst, self.dst_len)}")
        if self.tos:
            words.append(f"tos {self.tos:#04x}")
        if self.fwmask:
            words.append(f"fwmark {self.fwmark:#x}" + ("" if self.fwmask == LBCAST else f"/{self.fwmask:#x}"))
        for word in ("iif", "oif"):
            if getattr(self, word):
                words.append(f"{word} {getattr(self, word)}")
        if self.action == "lookup":
            words.append(f"lookup {table_name(self.table)}")
            if self.suppress >= 0:
                words.append(f"suppress_prefixlength {self.suppress}")
        else:
            words.append(f"goto {self.target}" if self.action == "goto" else self.action)
        return " ".join(words)


def _or_all(net: int, plen: int) -> str:
    return format_prefix(net, plen) if plen else "all"


@dataclass(slots=True)
class Route:
    """Answers of a look-up as columns, one element a packet. Do not write into them: they may be shared.

    kind      int8     UNICAST goes out (or on); LOCAL, BROADCAST and MULTICAST are the node's own (input) or of that
                       sort (output); all others end the packet: see REASONS and ICMP_ERROR
    link      int16    the device it leaves by (lo for LOCAL); -1 where there is none
    nexthop   uint32   gateway, else the destination
    mtu       int32    of the route, else of the link
    source    uint32   the preferred source address; 0 where there is none
    redirect  bool     it goes back out where it came in and the sender should be told (ICMP redirect)
    """

    kind: I8
    link: I16
    nexthop: U32
    mtu: I32
    source: U32
    redirect: Mask


class _Table:
    """Routes of one table: plen -> network -> routes in the order tos (falling), metric, age."""

    def __init__(self) -> None:
        self.prefixes: dict[int, dict[int, list[Entry]]] = {}
        self.lengths: list[int] = []  # minus the prefix lengths in use, ascending: longest first

    def routes(self, net: int, plen: int) -> list[Entry]:
        return self.prefixes.get(plen, {}).get(net, [])

    def all(self) -> list[Entry]:
        """Every route, shortest prefix first, then by address: the order of `ip route show`."""
        return [
            e
            for plen in reversed(self.lengths)
            for net in sorted(self.prefixes[-plen])
            for e in self.prefixes[-plen][net]
        ]

    def place(self, entry: Entry, before: bool = False) -> None:
        """Put a route among those of its prefix; `before` the ones of equal tos and metric, else after them."""
        if entry.plen not in self.prefixes:
            self.prefixes[entry.plen] = {}
            insort(self.lengths, -entry.plen)
        routes = self.prefixes[entry.plen].setdefault(entry.net, [])
        key = (-entry.tos, entry.metric)
        at = 0
        while at < len(routes) and (-routes[at].tos, routes[at].metric) < key:
            at += 1
        while not before and at < len(routes) and (-routes[at].tos, routes[at].metric) == key:
            at += 1
        routes.insert(at, entry)

    def remove(self, entry: Entry) -> None:
        nets = self.prefixes[entry.plen]
        routes = nets[entry.net]
        routes.remove(entry)
        if not routes:
            del nets[entry.net]
            if not nets:
                del self.prefixes[entry.plen]
                self.lengths.remove(-entry.plen)


class _Flat:
    """Tables (searched as one) as disjoint intervals of addresses, for columns."""

    def __init__(self, tables: Sequence[_Table], numbers: dict[int, int]) -> None:
        leaves: dict[tuple[int, int], list[Entry]] = {}
        for table in tables:
            for plen, nets in table.prefixes.items():
                for net, routes in nets.items():
                    leaves.setdefault((net, plen), []).extend(routes)
        keys = sorted(leaves)
        self.routes = [leaves[k] for k in keys]
        self.parent = [-1] * len(keys)
        self.numbers = numbers
        starts, owner = [0], [-1]

        def mark(start: int, leaf: int) -> None:
            if starts[-1] == start:
                owner[-1] = leaf
            elif start <= LBCAST:
                starts.append(start)
                owner.append(leaf)

        inside: list[tuple[int, int]] = []  # (last address, leaf) of the prefixes that hold the present address
        for leaf, (net, plen) in enumerate(keys):
            while inside and inside[-1][0] < net:
                last, _ = inside.pop()
                mark(last + 1, inside[-1][1] if inside else -1)
            self.parent[leaf] = inside[-1][1] if inside else -1
            mark(net, leaf)
            inside.append((net | LBCAST >> plen, leaf))
        while inside:
            last, _ = inside.pop()
            mark(last + 1, inside[-1][1] if inside else -1)
        self.starts = np.array(starts, np.uint32)
        self.leaf = np.array(owner, np.int32)
        self.starts_list = starts
        plain = [self._plain(leaf) for leaf in range(len(keys))]
        self.plain = np.array([plain[leaf] if leaf >= 0 else _NOTHING for leaf in owner], np.int32)

    def _plain(self, leaf: int) -> int:
        first = self.routes[leaf][0]
        return _HARD if first.tos else _NOTHING if first.kind == THROW else self.numbers[id(first)]

    def find(self, addrs: U32, tos: U8 | int, links: I32, oif: I16 | None = None) -> I32:
        """int32[n]: entry number of the route of each address, 0 where there is none.

        links  int32[entries]  link of each entry    oif  int16[n]  only routes that leave there (-1: any)
        Cost   one binary search a packet; packets that met a route with a tos, or need a certain link, are looked at
               once for each distinct question
        """
        at = np.searchsorted(self.starts, addrs, side="right") - 1
        got = self.plain[at]
        hard = got == _HARD
        if oif is not None:
            hard |= (oif >= 0) & (got > 0) & (links[got] != oif)
        if hard.any():
            seen: dict[tuple[int, int, int], int] = {}
            out = got.copy()
            for k in np.flatnonzero(hard):
                one = int(tos if isinstance(tos, int) else tos[k]) & TOS_MASK
                key = (int(self.leaf[at[k]]), one, -1 if oif is None else int(oif[k]))
                answer = seen.get(key)
                if answer is None:
                    answer = seen[key] = self._walk(*key)
                out[k] = answer
            return out
        return got

    def _walk(self, leaf: int, tos: int, oif: int) -> int:
        while leaf >= 0:
            for entry in self.routes[leaf]:
                if entry.tos and entry.tos != tos:
                    continue
                if entry.kind in _ERRORS:
                    return _NOTHING if entry.kind == THROW else self.numbers[id(entry)]
                if oif < 0 or entry.link == oif:
                    return self.numbers[id(entry)]
                for k, hop in enumerate(entry.alive()):
                    if hop.link == oif:
                        return self.numbers[id(entry)] + k
            leaf = self.parent[leaf]
        return _NOTHING


class _Fan:
    """How a multipath route spreads flows over its ways.

    bounds   int64[k]   a flow goes by the first way whose bound its number (below 2^31) does not exceed
    sources  uint32[k]  the address that each way prefers
    """

    def __init__(self, routing: Routing, e: Entry, ways: list[Hop]) -> None:
        weights = np.cumsum([hop.weight for hop in ways], dtype=np.int64)
        total = int(weights[-1])
        self.bounds = ((weights << 31) + total // 2) // total - 1
        self.links = np.array([hop.link for hop in ways], np.int32)
        self.sources = np.array([routing._select(hop.link, hop.gateway or 0, e.scope) for hop in ways], np.uint32)

    def choose(self, flow: U32, src: U32 | None) -> NDArray[np.intp]:
        """intp[n]: which way each flow goes. src: ways that prefer the packet's own source come before all others."""
        if src is None:
            return np.searchsorted(self.bounds, flow)
        score = (flow[:, None] <= self.bounds) + 2 * ((src[:, None] == self.sources) & (src[:, None] != 0))
        best: NDArray[np.intp] = score.argmax(axis=1)
        return best


class _Compiled:
    """Everything the columns need, made anew after a change of links, addresses, routes, rules or sysctls."""

    def __init__(self, routing: Routing) -> None:
        # entry 0: no route; 1: a rule says prohibit; 2: a rule says blackhole; then every route of every table
        entries: list[Entry] = []
        numbers: dict[int, int] = {}
        self.fans: dict[int, _Fan] = {}  # of a multipath route, whose ways are entries one after the other
        for table in routing.tables.values():
            for nets in table.prefixes.values():
                for routes in nets.values():
                    for e in routes:
                        numbers[id(e)] = len(entries) + 3
                        ways = e.alive()
                        if len(ways) > 1:
                            self.fans[len(entries) + 3] = _Fan(routing, e, ways)
                            for hop in ways:
                                entries.append(replace(e, link=hop.link, gateway=hop.gateway, onward=hop.onward))
                        else:
                            entries.append(e)
        columns: dict[str, list[int]] = {
            "kind": [NO_ROUTE, PROHIBIT, BLACKHOLE], "link": [-1] * 3, "gateway": [0] * 3, "via": [0] * 3,
            "mtu": [0] * 3, "source": [0] * 3, "plen": [-1] * 3, "near": [0] * 3,
        }  # fmt: skip
        links = routing.links
        for e in entries:
            for name, value in (
                ("kind", e.kind),
                ("link", e.link),
                ("gateway", e.gateway or 0),
                ("via", e.gateway is not None and e.onward == 253),  # not where the gateway is the node itself
                ("mtu", e.mtu or (links[e.link].mtu if e.link >= 0 else 0)),
                ("source", routing._source_of(e)),
                ("plen", e.plen),
                ("near", e.onward >= 254),
            ):
                columns[name].append(value)
        self.kind = np.array(columns["kind"], np.int8)
        self.link = np.array(columns["link"], np.int32)
        self.gateway = np.array(columns["gateway"], np.uint32)
        self.via = np.array(columns["via"], bool)
        self.mtu = np.array(columns["mtu"], np.int32)
        self.source = np.array(columns["source"], np.uint32)
        self.plen = np.array(columns["plen"], np.int16)
        self.near = np.array(columns["near"], bool)
        self.fan = np.zeros(len(self.kind), bool)
        self.fan[list(self.fans)] = True
        self.type = np.where((self.kind >= BLACKHOLE), np.uint8(UNICAST), self.kind).astype(np.uint8)

        self.tables: dict[TableId, _Flat] = {}
        local, main, last = routing.tables[255], routing.tables[254], routing.tables.get(253)
        if routing.split:
            for number, table in routing.tables.items():
                self.tables[number] = _Flat([table], numbers)
            self.local = self.tables[255]
        else:
            self.local = _Flat([local, main], numbers)
            self.default = [self.local] + ([_Flat([last], numbers)] if last else [])

        sysctl = routing.sysctl
        names = routing.names

        def knob(name: str) -> NDArray[np.int64]:
            return np.array([sysctl.link_int(n, name) for n in names], np.int64)

        self.rp = knob("rp_filter")
        self.localnet = knob("route_localnet") != 0
        self.accept_local = knob("accept_local") != 0
        self.forwarding = (knob("forwarding") != 0).astype(np.intp)
        self.redirects = knob("send_redirects") != 0
        self.shared = knob("shared_media") != 0
        self.vmark = knob("src_valid_mark") != 0
        # what a packet that came in makes of an entry: [forwarding off, on][entry]
        on = np.where(np.isin(self.kind, (MULTICAST, ANYCAST)), np.int8(MARTIAN_DESTINATION), self.kind)
        off = np.where(np.isin(self.kind, (LOCAL, BROADCAST)), self.kind, np.int8(NOT_FORWARDING))
        self.input_kind = np.array([off, on], np.int8)
        self.bare = np.array([not link.addresses for link in links], bool)
        self.link_mtu = np.array([link.mtu for link in links], np.int32)
        self.own = np.unique(np.array([a.ip for link in links for a in link.addresses], np.uint32))
        self.rules = [
            (rule, _MASKS[rule.src_len], _MASKS[rule.dst_len], routing._device(rule.iif), routing._device(rule.oif))
            for rule in routing.rules
        ]

    def leaves_by(self, entry: I32, link: NDArray[np.integer]) -> Mask:
        """bool[n]: one of the ways of each route is by that link."""
        yes: Mask = self.link[entry] == link
        if self.fans:
            for k in np.flatnonzero(self.fan[entry] & ~yes).tolist():
                yes[k] = link[k] in self.fans[int(entry[k])].links
        return yes

    def is_own(self, addrs: U32) -> Mask:
        at = np.minimum(np.searchsorted(self.own, addrs), len(self.own) - 1)
        mask: Mask = self.own[at] == addrs
        return mask


class Routing:
    """Links, addresses, routes and rules of a node, and the answers that follow from them.

    links[0] is always `lo`. `version` grows with every change. The hooks are called after the change:
    on_link_down with (link index), on_address_removed with (link index, address).
    """

    def __init__(self, sysctl: Sysctl) -> None:
        self.sysctl = sysctl
        self.links: list[Link] = []
        self.names: list[str] = []
        self.tables: dict[TableId, _Table] = {254: _Table(), 255: _Table()}
        self.rules = [Rule(0, table=255), Rule(32766, table=254), Rule(32767, table=253)]
        #: somebody touched the policy rules: `local` and `main` are searched one after the other, for good
        self.split = False
        self.custom_local = False  # somebody added a route of type local
        self.version = 0
        self.on_link_down: list[Callable[[int], None]] = []
        self.on_address_removed: list[Callable[[int, int], None]] = []
        self._index: dict[str, int] = {}
        self._subnets: dict[tuple[int, int, int], list[Address]] = {}
        self._holders: dict[int, int] = {}  # own address -> how many links and prefixes have it
        self._user: list[Entry] = []  # routes that people added, not the kernel
        self._compiled: _Compiled | None = None
        self._compiled_for = (-1, -1)
        self._memo: dict[tuple[int, ...], Route] = {}
        self._masquerade: dict[tuple[int, int], int | None] = {}
        self.kernel = "6.18"
        self.drawn = 1  # the secret by which flows are spread over the ways of multipath routes, if no sysctl tells it
        self.add_link("lo", addresses=["127.0.0.1/8"], mtu=65536, kind="loopback")

    # ---- links and addresses -----------------------------------------------------------------------------------

    def index(self, name: str) -> int:
        """Index of the link called `name`, or -1.

        >>> Routing(Sysctl()).index("lo"), Routing(Sysctl()).index("eth7")
        (0, -1)
        """
        return self._index.get(name, -1)

    def _device(self, name: str) -> int:
        """Index of a link that a rule names: -1 for none named, -2 for one that there is not."""
        return self._index.get(name, -2) if name else -1

    def _link(self, name: str) -> int:
        at = self.index(name)
        if at < 0:
            raise Refused(f'Cannot find device "{name}"', status=1, hint=_near("links", name, self.names))
        return at

    def add_link(
        self,
        name: str,
        addresses: Iterable[str] = (),
        mac: str | int | None = None,
        mtu: int = 1500,
        up: bool = True,
        kind: str = "",
    ) -> int:
        """Add a link with its addresses (`10.0.0.1/24`), the first of a subnet being its primary; returns its index.

        `lo` is there already: naming it sets its mtu and adds to its addresses. Raises Refused.

        >>> r = Routing(Sysctl()); r.add_link("eth0", ["10.0.0.1/24"], mac="02:00:00:00:00:01"), r.names
        (1, ['lo', 'eth0'])
        """
        wrong = bad_link_name(name)
        if wrong:
            raise Refused(wrong, status=2)
        if name == "lo" and self.links:
            if not up:
                self.set_link(LO, up=False)
            if mtu != 1500:
                self.set_link(LO, mtu=mtu)
            for text in addresses:
                if text.split("/")[0] != "127.0.0.1":
                    self.add_address("lo", text)
            return LO
        if name in self._index:
            raise Refused("RTNETLINK answers: File exists", status=2, hint=f'there are two links called "{name}"')
        try:
            number = parse_mac(mac) if isinstance(mac, str) else mac
        except ValueError as e:
            raise Refused(str(e), status=1) from None
        at = len(self.links)
        self.links.append(Link(name, number, mtu, up, kind))
        self.names.append(name)
        self._index[name] = at
        self.sysctl.add_link(name)
        self.version += 1
        for text in addresses:
            self.add_address(at, text)
        return at

    def add_address(
        self,
        link: int | str,
        address: str,
        *,
        broadcast: int | None = None,
        scope: str = "global",
        peer: int = -1,
        connected: bool = True,
        metric: int = 0,
        label: str = "",
    ) -> None:
        """Give a link an address. IPv6 ones are kept aside. Raises Refused as `ip addr add` does."""
        at = self._link(link) if isinstance(link, str) else link
        dev = self.links[at]
        if ":" in address:
            if not re.fullmatch(r"[0-9a-fA-F:.]+(/\d{1,3})?", address):
                raise Refused(f'any valid prefix is expected rather than "{address}".', status=1)
            dev.addresses6.append(address)
            return
        try:
            ip, plen = parse_prefix(address)
        except ValueError:
            raise Refused(f'any valid prefix is expected rather than "{address}".', status=1) from None
        if at == LO and scope == "global" and ip >> 24 == 127:
            scope = "host"  # ip(8) does so for 127.0.0.0/8
        new = Address(ip, plen, broadcast, False, scope, peer, connected, metric, label)
        mates = self._subnets.setdefault((at, new.prefix, plen), [])
        for a in mates:
            if a.ip == ip:
                raise Refused("ipv4: Address already assigned.", status=2)
            if a.scope != scope:
                raise Refused("ipv4: Invalid scope value.", status=2)
        new.secondary = bool(mates)
        mates.append(new)
        self._file(dev, new)
        self._holders[ip] = self._holders.get(ip, 0) + 1
        self.sysctl.pin(dev.name)
        for entry in self._wanted(at, new, mates[0]):
            self._append(entry)
        self._revive(at)
        self.version += 1

    def _revive(self, at: int) -> None:
        """The ways of multipath routes that lead over a link are good again, once it is up and has an address."""
        if self.links[at].up and self.links[at].addresses:
            for e in self._multipath():
                for hop in e.hops:
                    hop.dead &= hop.link != at
                e.settle()

    def _fade(self, at: int) -> None:
        """The ways that lead over a link are good no longer; a route without any other goes."""
        for e in self._multipath():
            for hop in e.hops:
                hop.dead |= hop.link == at
            if e.alive():
                e.settle()
            else:
                self._drop(e)

    def _multipath(self) -> list[Entry]:
        return [e for e in self._user if e.hops]

    def _file(self, dev: Link, new: Address) -> None:
        """Put an address where the kernel's list has it: primaries behind those of the same or a wider scope."""
        rank, held = SCOPES[new.scope], dev.addresses
        if new.secondary or not held or (not held[-1].secondary and rank <= SCOPES[held[-1].scope]):
            held.append(new)
            return
        at = 0
        for k, a in enumerate(held):
            if not a.secondary and rank <= SCOPES[a.scope]:
                at = k + 1
        held.insert(at, new)

    def _wanted(self, at: int, a: Address, primary: Address) -> list[Entry]:
        """The routes that follow from one address, in the order in which the kernel adds them."""
        loopback = at == LO
        src = primary.ip

        def route(table: int, net: int, plen: int, kind: int, scope: int, metric: int = 0) -> Entry:
            onward = 255 if scope == 254 else 254
            return Entry(table, net, plen, kind, at, None, src, metric, 0, scope, protocol="kernel", onward=onward)

        out = [route(255, a.ip, 32, LOCAL, 254)]
        if not self.links[at].up:
            return out
        net, plen = a.prefix, a.plen
        if a.broadcast is not None and a.broadcast != LBCAST:
            out.append(route(255, a.broadcast, 32, BROADCAST, 253))
        if net and not a.secondary and (net != a.ip or plen < 32):
            if a.connected and loopback:
                out.append(route(255, net, plen, LOCAL, 254, a.metric))
            elif a.connected:
                out.append(route(254, net, plen, UNICAST, 253, a.metric))
            if plen < 31:
                out.append(route(255, net | LBCAST >> plen, 32, BROADCAST, 253))
        return out

    def _append(self, entry: Entry) -> None:
        """Add a route of the kernel's own, unless it is there or its source is not (or no longer) a local address.

        The latter happens where an address is the broadcast address of an older one.
        """
        table = self.tables[entry.table]
        if any(e.same(entry) for e in table.routes(entry.net, entry.plen)):
            return
        itself = entry.kind == LOCAL and entry.net == entry.source
        if itself or entry.source is None or self._type_of(entry.source) == LOCAL:
            table.place(entry)

    def remove_address(self, link: int | str, address: str) -> None:
        """Take an address from a link.

        Secondaries of its subnet go too, unless promote_secondaries says that the first of them moves up.
        """
        at = self._link(link) if isinstance(link, str) else link
        dev = self.links[at]
        if ":" in address:
            if address not in dev.addresses6:
                raise Refused("ipv6: address not found.", status=2)
            dev.addresses6.remove(address)
            return
        try:
            ip, plen = parse_prefix(address)
        except ValueError:
            raise Refused(f'any valid prefix is expected rather than "{address}".', status=1) from None
        bare = "/" not in address
        for a in dev.addresses:
            if a.ip == ip and (a.plen == plen or bare):
                self._remove(at, [a])
                return
        raise Refused("ipv4: Address not found.", status=2)

    def _remove(self, at: int, going: list[Address]) -> None:
        dev = self.links[at]
        promote = self.sysctl.link_int(dev.name, "promote_secondaries")
        removed: list[Address] = []
        for a in going:
            if not any(a is held for held in dev.addresses):
                continue  # went with its primary
            mates = self._subnets[at, a.prefix, a.plen]
            out = mates[1:] if not a.secondary and not promote else []
            for one in [*out, a]:
                mates.remove(one)
                dev.addresses = [held for held in dev.addresses if held is not one]
                removed.append(one)
            if not mates:
                del self._subnets[at, a.prefix, a.plen]
            elif mates[0].secondary:
                first = mates[0]
                first.secondary = False
                dev.addresses = [held for held in dev.addresses if held is not first]
                self._file(dev, first)
        self._resync(at)
        for a in removed:
            self._holders[a.ip] -= 1
            if not self._holders[a.ip]:
                del self._holders[a.ip]
                for entry in [e for e in self._user if e.source == a.ip and e.table == 254]:
                    if self._type_of(a.ip) != LOCAL:
                        self._drop(entry)
        if not dev.addresses:  # the last one: IP is off on this link
            for entry in [e for e in self._user if e.link == at and not e.hops]:
                self._drop(entry)
            self._fade(at)
        self.version += 1
        for a in removed:
            for hook in self.on_address_removed:
                hook(at, a.ip)

    def _resync(self, at: int) -> None:
        """Make the kernel's own routes of a link what its addresses and state ask for."""
        wanted: list[Entry] = []
        for a in self.links[at].addresses:
            wanted += self._wanted(at, a, self._subnets[at, a.prefix, a.plen][0])
        asked: dict[tuple[TableId, int, int], list[Entry]] = {}
        for w in wanted:
            asked.setdefault((w.table, w.net, w.plen), []).append(w)
        for table in (self.tables[255], self.tables[254]):
            for e in table.all():
                if (
                    e.link == at
                    and e.protocol == "kernel"
                    and not any(w.same(e) for w in asked.get((e.table, e.net, e.plen), ()))
                ):
                    self._drop(e)
        for w in wanted:
            self._append(w)

    def _drop(self, entry: Entry) -> None:
        self.tables[entry.table].remove(entry)
        self._user = [e for e in self._user if e is not entry]

    def set_link(
        self, link: int | str, *, up: bool | None = None, mtu: int | None = None, mac: int | None = None
    ) -> None:
        """Change a link, as `ip link set` does.

        Down takes away all its routes but the local ones; up brings back those that follow from its addresses.
        """
        at = self._link(link) if isinstance(link, str) else link
        dev = self.links[at]
        if mac is not None:
            dev.mac = mac
        if mtu is not None:
            if mtu < 68:
                raise Refused("mtu less than device minimum.", status=2)
            if mtu > (0x7FFFFFFF if at == LO else 65535):
                raise Refused("mtu greater than device maximum.", status=2)
            dev.mtu = mtu
        self.version += 1
        if up is None or up == dev.up:
            return
        dev.up = up
        if up:
            self._resync(at)
            self._revive(at)
            return
        for table in list(self.tables.values()):
            for e in table.all():
                if e.link == at and e.onward != 255 and not e.hops:
                    self._drop(e)
        self._fade(at)
        for hook in self.on_link_down:
            hook(at)

    def remove_link(self, link: int | str) -> None:
        """Delete a link. Its index stays taken; nothing else of it does."""
        at = self._link(link) if isinstance(link, str) else link
        if at == LO:
            raise Refused("RTNETLINK answers: Operation not supported", status=2)
        self.set_link(at, up=False)
        dev = self.links[at]
        if dev.addresses:
            self._remove(at, list(dev.addresses))
        for table in self.tables.values():
            for e in table.all():
                if e.leaves_by(at):
                    self._drop(e)
        dev.gone = True
        del self._index[dev.name]
        self.sysctl.remove_link(dev.name)
        self.version += 1

    # ---- routes ------------------------------------------------------------------------------------------------

    def add_route(self, words: str | Sequence[str], how: str = "add") -> None:
        """A route in the words of `ip route add`: `default via 10.0.0.254 dev eth0`.

        how     add, append, prepend, replace or change
        Raises  Refused with ip's message and status; Unsupported for what netemu does not model (nexthop, encap, ...)

        >>> r = Routing(Sysctl()); _ = r.add_link("eth0", ["10.0.0.1/24"]); r.add_route("default via 10.0.0.254")
        >>> r.show_routes().splitlines()[0]
        'default via 10.0.0.254 dev eth0 '
        """
        given = route_words(words)
        entry = self._entry(given)
        self._check(entry, given)
        table = self.tables.setdefault(entry.table, _Table())
        rivals = [e for e in table.routes(entry.net, entry.plen) if e.tos == entry.tos and e.metric == entry.metric]
        if how in ("replace", "change") and rivals:
            routes = table.prefixes[entry.plen][entry.net]
            if rivals[0].same(entry):
                return
            if any(e.same(entry) for e in rivals):
                raise Refused("RTNETLINK answers: File exists", status=2)
            routes[routes.index(rivals[0])] = entry
            self._user = [e for e in self._user if e is not rivals[0]]
        elif how == "change":
            raise Refused("RTNETLINK answers: No such file or directory", status=2)
        elif rivals and (how == "add" or any(e.same(entry) for e in rivals)):
            raise Refused("RTNETLINK answers: File exists", status=2)
        else:
            table.place(entry, before=how == "prepend")
        self._user.append(entry)
        if entry.kind == LOCAL:
            self.custom_local = True
        self.version += 1

    def _entry(self, given: dict[str, str]) -> Entry:
        kind = ROUTE_TYPES[given.get("type", "unicast")]
        net, plen = _prefix(given.get("to", "default"))
        gateway = _address(given["via"]) if "via" in given else None
        if gateway == 0:
            gateway = None
        link = self._link(given["dev"]) if "dev" in given else -1
        if "scope" in given:
            scope = _scope(given["scope"])
        elif kind == LOCAL:
            scope = 254
        elif kind == BROADCAST or (kind == UNICAST and gateway is None and "nexthop" not in given):
            scope = 253
        else:
            scope = 0
        table = table_id(given["table"]) if "table" in given else 255 if kind in (LOCAL, BROADCAST) else 254
        hops = tuple(self._hop(words) for words in given["nexthop"].split(" nexthop ")) if "nexthop" in given else ()
        if len(hops) == 1:
            gateway, link = hops[0].gateway, hops[0].link
        return Entry(
            table or 254,
            net,
            plen,
            kind,
            link,
            gateway,
            _address(given["src"]) if "src" in given else None,
            _int(given.get("metric", "0"), "metric", LBCAST),
            _tos(given["tos"]) if "tos" in given else 0,
            scope,
            _int(given.get("mtu", "0"), "mtu", LBCAST),
            "onlink" in given or (len(hops) == 1 and hops[0].onlink),
            given.get("proto", ""),
            hops=hops if len(hops) > 1 else (),
        )

    def _hop(self, words: str) -> Hop:
        """One way of a multipath route: `via 10.0.0.254 dev eth0 weight 2 onlink`."""
        hop, rest = Hop(), words.split()
        while rest:
            word = rest.pop(0)
            if word == "via":
                hop.gateway = _address(_next(rest, word)) or None
            elif word in ("dev", "oif"):
                hop.link = self._link(_next(rest, word))
            elif word == "weight":
                hop.weight = _int(_next(rest, word), "weight", 256)
                if not hop.weight:
                    raise Refused('argument "0" is wrong: "weight" is invalid', status=255)
            elif word == "onlink":
                hop.onlink = True
            elif word in ("realm", "realms", "encap", "as"):
                raise Unsupported(f"nexthop with {word}")
            elif word not in ("linkdown", "dead", "pervasive", *_ROUTE_FLAGS.split()):
                raise Refused('"nexthop" or end of line is expected', status=255, hint=f'instead of "{word}"')
        return hop

    def _check(self, e: Entry, given: dict[str, str]) -> None:
        """Refuse what the kernel refuses, and settle the device and the next hop's scope."""
        if e.net & ~_MASKS[e.plen]:
            raise Refused("Invalid prefix for given prefix length.", status=2)
        if e.kind in _ERRORS:
            if e.link >= 0 or e.gateway is not None or e.hops:
                raise Refused("Gateway, device and multipath can not be specified for this route type.", status=2)
        elif e.scope < {LOCAL: 254, BROADCAST: 253}.get(e.kind, 0):
            raise Refused("Invalid scope.", status=2)
        elif e.scope >= 254:
            if e.hops:
                raise Refused("Route with host scope can not have multiple nexthops.", status=2)
            if e.gateway is not None:
                raise Refused("Route with host scope can not have a gateway.", status=2)
            if e.link < 0:
                raise Refused("RTNETLINK answers: No such device", status=2)
            e.onward = 255
        elif e.hops:
            for hop in e.hops:
                one = replace(e, hops=(), link=hop.link, gateway=hop.gateway, onlink=hop.onlink)
                self._check_hop(one)
                hop.link, hop.onward = one.link, one.onward
            e.settle()
        else:
            self._check_hop(e)
        if e.source is not None and not (e.kind == LOCAL and e.source == e.net) and self._type_of(e.source) != LOCAL:
            raise Refused(
                "Invalid prefsrc address.", status=2, hint=f"{format_ip(e.source)} is not an address of the node"
            )

    def _check_hop(self, e: Entry) -> None:
        if e.gateway is not None:
            self._check_gateway(e)
        elif e.link < 0:
            raise Refused("RTNETLINK answers: No such device", status=2, hint="say `via` or `dev`")
        else:
            if not self.links[e.link].up:
                raise Refused("Device for nexthop is not up.", status=2, hint=f"{self.names[e.link]} is down")
            e.onward = 254

    def _check_gateway(self, e: Entry) -> None:
        assert e.gateway is not None
        if e.onlink:
            if e.link < 0:
                raise Refused("RTNETLINK answers: No such device", status=2, hint="onlink needs `dev`")
            if not self.links[e.link].up:
                raise Refused("Nexthop device is not up.", status=2)
            if e.scope >= 253 or self._type_of(e.gateway) != UNICAST:
                raise Refused("Nexthop has invalid gateway.", status=2)
            e.onward = 253
            return
        scope = max(e.scope + 1, 253)
        found = None
        if e.table in self.tables and e.table != 254:
            found = self._find([self.tables[e.table]], e.gateway, oif=e.link, scope=scope)
        if found is None or found.kind in _ERRORS:
            found = self._route(e.gateway, oif=e.link, scope=scope)
        if found is None or found.kind not in (UNICAST, LOCAL):
            dev = self.links[e.link] if e.link >= 0 else None
            hint = (
                f"{dev.name} is down"
                if dev and not dev.up
                else f"no link has an address in the network of {format_ip(e.gateway)}"
            )
            raise Refused("Nexthop has invalid gateway.", status=2, hint=hint)
        e.onward = found.scope
        e.link = e.link if e.link >= 0 else found.link

    def restore_route(self, words: str | Sequence[str]) -> None:
        """A route as a dump shows it: it was there, so nothing is asked of its gateway or device being up."""
        given = route_words(words)
        e = self._entry(given)
        e.onward = 253 if e.gateway is not None else 255 if e.scope >= 254 or e.link < 0 else 254
        for hop in e.hops:
            hop.onward = 253 if hop.gateway is not None else 254
            hop.dead = hop.link < 0 or not self.links[hop.link].up
        if e.hops and not e.alive():
            return
        e.settle()
        table = self.tables.setdefault(e.table, _Table())
        if any(old.same(e) for old in table.routes(e.net, e.plen)):
            return
        table.place(e)
        if e.protocol != "kernel":
            self._user.append(e)
            self.custom_local |= e.kind == LOCAL
        self.version += 1

    def clear_table(self, table: TableId) -> None:
        """Forget every route of a table, the kernel's own included: a dump of it follows."""
        if table in self.tables:
            self.tables[table] = _Table()
            self._user = [e for e in self._user if e.table != table]
            self.version += 1

    def delete_route(self, words: str | Sequence[str]) -> None:
        """Delete the first route that fits, as `ip route del` does. Raises Refused."""
        given = route_words(words)
        net, plen = _prefix(given.get("to", "default"))
        kind = ROUTE_TYPES[given["type"]] if "type" in given else 0
        local = given.get("type") in ("local", "broadcast")
        table = table_id(given["table"]) if "table" in given else 255 if local else 254
        tos = _tos(given["tos"]) if "tos" in given else 0
        want: dict[str, int] = {}
        if kind:
            want["kind"] = kind
        hops = self._entry(given).hops if "nexthop" in given else ()
        if "via" in given:
            want["gateway"] = _address(given["via"])
        if "dev" in given:
            want["link"] = self._link(given["dev"])
        if "src" in given:
            want["source"] = _address(given["src"])
        if "scope" in given:
            want["scope"] = _scope(given["scope"])
        if _int(given.get("metric", "0"), "metric", LBCAST):
            want["metric"] = int(given["metric"], 0)
        if "mtu" in given:
            want["mtu"] = _int(given["mtu"], "mtu", LBCAST)
        for e in self.tables[table].routes(net, plen) if table in self.tables else ():
            proto = given.get("proto")
            if (
                e.tos == tos
                and proto in (None, e.protocol or "boot")
                and (not hops or _alike(hops, e.hops))
                and all(getattr(e, k) == v for k, v in want.items())
            ):
                self._drop(e)
                self.version += 1
                return
        raise Refused("RTNETLINK answers: No such process", status=2)

    def _pick(self, words: Sequence[str]) -> list[Entry]:
        """Routes that `ip route show|flush SELECTOR` means."""
        given = route_words(words, selector=True)
        table: TableId = table_id(given["table"]) if given.get("table") not in (None, "all") else 254
        pools = (
            self.tables.values()
            if given.get("table") == "all"
            else [self.tables[table]]
            if table in self.tables
            else []
        )
        out = []
        for e in [e for pool in pools for e in pool.all()]:
            if "dev" in given and not e.leaves_by(self._link(given["dev"])):
                continue
            if "type" in given and e.kind != ROUTE_TYPES[given["type"]]:
                continue
            if "via" in given and _address(given["via"]) not in (e.gateway, *(hop.gateway for hop in e.hops)):
                continue
            if "src" in given and e.source != _address(given["src"]):
                continue
            if "metric" in given and e.metric != int(given["metric"]):
                continue
            if "scope" in given and e.scope != _scope(given["scope"]):
                continue
            if "proto" in given and (e.protocol or "boot") != given["proto"]:
                continue
            if "to" in given and (e.net, e.plen) != _prefix(given["to"]):
                continue
            if "root" in given:
                net, plen = _prefix(given["root"])
                if e.plen < plen or (e.net & _MASKS[plen]) != net:
                    continue
            if "match" in given:
                net, plen = _prefix(given["match"])
                if e.plen > plen or (net & _MASKS[e.plen]) != e.net:
                    continue
            out.append(e)
        return out

    def show_routes(self, words: Sequence[str] = ()) -> str:
        """What `ip route show [SELECTOR]` prints."""
        chosen = self._pick(words)
        tables = "all" in words
        return "".join(self._describe(e, tables) + "\n" for e in chosen)

    def _describe(self, e: Entry, tables: bool) -> str:
        words = [] if e.kind == UNICAST else [_TYPE_NAMES[e.kind]]
        words.append(format_prefix(e.net, e.plen))
        if e.tos:
            words.append(f"tos {e.tos:#04x}")
        if e.gateway is not None and not e.hops:
            words.append(f"via {format_ip(e.gateway)}")
        if e.link >= 0 and not e.hops:
            words.append(f"dev {self.names[e.link]}")
        if tables and e.table != 254:
            words.append(f"table {table_name(e.table)}")
        if e.protocol not in ("", "boot"):
            words.append(f"proto {e.protocol}")
        if e.scope:
            words.append(f"scope {_SCOPE_NAMES.get(e.scope, e.scope)}")
        if e.source is not None:
            words.append(f"src {format_ip(e.source)}")
        if e.metric:
            words.append(f"metric {e.metric}")
        if e.onlink:
            words.append("onlink")
        if e.mtu:
            words.append(f"mtu {e.mtu}")
        ways = [
            f"\n\tnexthop{f' via {format_ip(hop.gateway)}' if hop.gateway is not None else ''} "
            f"dev {self.names[hop.link]} weight {hop.weight} "
            f"{'dead linkdown ' * hop.dead}{'onlink ' * hop.onlink}"
            for hop in e.hops
        ]
        return " ".join(words) + " " + "".join(ways)

    # ---- rules -------------------------------------------------------------------------------------------------

    def add_rule(self, words: str | Sequence[str]) -> None:
        """A policy rule in the words of `ip rule add`: `fwmark 0x1/0x1 lookup 100`.

        Without a priority it goes before the second rule, as ip(8) has it. Raises Refused or Unsupported.

        >>> r = Routing(Sysctl()); r.add_rule("from 10.0.0.0/8 lookup 100"); r.run("ip rule".split()).splitlines()[1]
        '32765:\\tfrom 10.0.0.0/8 lookup 100'
        """
        rule, given = _rule_words(words)
        if "priority" not in given:
            rule.priority = self.rules[1].priority - 1 if len(self.rules) > 1 and self.rules[1].priority else 0
        if rule.action == "goto" and rule.target <= rule.priority:
            raise Refused("Backward goto not supported.", status=2)
        self.split = True
        if rule in self.rules:
            raise Refused("RTNETLINK answers: File exists", status=2)
        at = 0
        while at < len(self.rules) and self.rules[at].priority <= rule.priority:
            at += 1
        self.rules.insert(at, rule)
        self.version += 1

    def set_rules(self, rules: list[Rule]) -> None:
        """Replace all rules by those of a dump. The three that every node has, and no others, change nothing."""
        if rules != self.rules:
            self.rules = sorted(rules, key=lambda r: r.priority)
            self.split = True
            self.version += 1

    def delete_rule(self, words: str | Sequence[str]) -> None:
        """Delete the first rule that fits what is said. Raises Refused."""
        rule, given = _rule_words(words, deleting=True)
        self.split = True
        for k, old in enumerate(self.rules):
            if all(getattr(old, name) == getattr(rule, name) for name in given):
                del self.rules[k]
                self.version += 1
                return
        self.version += 1
        raise Refused("RTNETLINK answers: No such file or directory", status=2)

    # ---- one question (while routes are being added; and where there is a single packet) -------------------------

    @staticmethod
    def _find(tables: Sequence[_Table], addr: int, tos: int = 0, oif: int = -1, scope: int = 0) -> Entry | None:
        """Longest prefix over tables searched as one. A throw route comes back as such."""
        lengths = tables[0].lengths if len(tables) == 1 else sorted({n for t in tables for n in t.lengths})
        for minus in lengths:
            net = addr & _MASKS[-minus]
            for table in tables:
                for e in table.prefixes.get(-minus, {}).get(net, ()):
                    if (e.tos and e.tos != tos) or e.scope < scope:
                        continue
                    if e.kind in _ERRORS or oif < 0 or e.leaves_by(oif):
                        return e
        return None

    def _route(
        self, dst: int, src: int = 0, mark: int = 0, tos: int = 0, iif: int = LO, oif: int = -1, scope: int = 0
    ) -> Entry | None:
        """The route of one packet, by rules and tables; None when there is none, or a rule says no."""
        tos &= TOS_MASK
        if not self.split:
            for tables in ([self.tables[255], self.tables[254]], [self.tables[253]] if 253 in self.tables else []):
                e = self._find(tables, dst, tos, oif, scope) if tables else None
                if e is not None and e.kind != THROW:
                    return e
            return None
        at = 0
        while at < len(self.rules):
            r = self.rules[at]
            at += 1
            fits = not (
                (src ^ r.src) & _MASKS[r.src_len]
                or (dst ^ r.dst) & _MASKS[r.dst_len]
                or (r.tos and r.tos != tos)
                or (mark ^ r.fwmark) & r.fwmask
                or (r.iif and self._device(r.iif) != iif)
                or (r.oif and self._device(r.oif) != oif)
            )
            if fits == r.invert or r.action == "nop":
                continue
            if r.action == "goto":
                at = bisect_left([x.priority for x in self.rules], r.target)
            elif r.action != "lookup":
                return None
            elif r.table in self.tables:
                e = self._find([self.tables[r.table]], dst, tos, oif, scope)
                if e is not None and e.kind != THROW and (e.plen > r.suppress or e.kind in _ERRORS):
                    return e
        return None

    def _type_of(self, addr: int) -> int:
        """addr_type of one address."""
        if addr in (0, LBCAST):
            return BROADCAST
        if addr >> 28 == 14:
            return MULTICAST
        e = self._find([self.tables[255]] if self.split else [self.tables[255], self.tables[254]], addr)
        return UNICAST if e is None or e.kind in _ERRORS else e.kind

    def _source_of(self, e: Entry) -> int:
        """The source address that a route prefers (0: none, or for a local one the destination itself)."""
        if e.source is not None:
            return e.source
        if e.link < 0 or e.kind == LOCAL:
            return 0
        return self._select(e.link, e.gateway or 0, e.scope)

    def _select(self, link: int, dst: int, scope: int) -> int:
        """A primary address of a link with at most `scope`, best one in whose subnet dst is; else of other links."""
        dev = self.links[link]
        host = 253 if self.sysctl.link_int(dev.name, "route_localnet") else 254
        first = 0
        for a in dev.addresses:
            if a.secondary or min(SCOPES[a.scope], host) > scope:
                continue
            if not dst or (dst ^ a.peer) & _MASKS[a.plen] == 0:
                return a.ip
            first = first or a.ip
        if first:
            return first
        for other in self.links:
            for a in other.addresses:
                if not a.secondary and a.scope != "link" and SCOPES[a.scope] <= scope:
                    return a.ip
        return 0

    def masquerade_address(self, link: int, nexthop: int) -> int | None:
        """The address that MASQUERADE gives to what leaves by `link` towards `nexthop`, or None: drop."""
        key = (link, nexthop)
        self._compile()
        if key not in self._masquerade:
            self._masquerade[key] = self._select(link, nexthop, 0) or None
        return self._masquerade[key]

    def inbound_address(self, link: int, sender: int) -> int:
        """The address of a link that an ICMP error to `sender` comes from, if it is to come from where packets come in;
        0 when there is none."""
        return self._select(link, sender, SCOPES["link"])

    def first_address(self, link: int) -> int | None:
        """The first address on a link's list, which REDIRECT uses; None when there is none."""
        held = self.links[link].addresses
        return held[0].ip if held else None

    def source_for(self, dst: int) -> int:
        """The address that the node itself would send from to `dst`; 0 when it has no route.

        >>> r = Routing(Sysctl()); _ = r.add_link("eth0", ["10.0.0.1/24", "10.0.0.2/24"])
        >>> format_ip(r.source_for(parse_ip("10.0.0.9"))), format_ip(r.source_for(parse_ip("10.0.0.2")))
        ('10.0.0.1', '10.0.0.1')
        """
        one = np.array([dst], np.uint32)
        zero = np.zeros(1, np.uint32)
        return int(self.output(one, zero, zero, np.zeros(1, np.uint8)).source[0])

    # ---- many questions ----------------------------------------------------------------------------------------

    def _compile(self) -> _Compiled:
        state = (self.version, self.sysctl.version)
        if self._compiled is None or self._compiled_for != state:
            self._compiled = _Compiled(self)
            self._compiled_for = state
            self._memo.clear()
            self._masquerade.clear()
        return self._compiled

    def _lookup(
        self, c: _Compiled, dst: U32, src: U32, mark: U32, tos: U8, iif: NDArray[np.integer], oif: I16 | None = None
    ) -> I32:
        """int32[n]: entry numbers by rules and tables; 0 no route, 1 prohibited and 2 discarded by a rule."""
        if not self.split:
            got = c.default[0].find(dst, tos, c.link, oif)
            if len(c.default) > 1 and (got == _NOTHING).any():
                open_ = np.flatnonzero(got == _NOTHING)
                got = got.copy()
                got[open_] = c.default[1].find(dst[open_], tos[open_], c.link, None if oif is None else oif[open_])
            return got
        got = np.zeros(len(dst), np.int32)
        position = np.zeros(len(dst), np.int32)  # where in the rules each packet goes on; beyond the end: done
        low = tos & TOS_MASK
        for at, (r, src_mask, dst_mask, in_dev, out_dev) in enumerate(c.rules):
            rows = np.flatnonzero(position <= at)
            if not len(rows):
                break
            fits = np.ones(len(rows), bool)
            if r.src_len:
                fits &= (src[rows] & src_mask) == r.src & src_mask
            if r.dst_len:
                fits &= (dst[rows] & dst_mask) == r.dst & dst_mask
            if r.tos:
                fits &= low[rows] == r.tos
            if r.fwmask:
                fits &= (mark[rows] & r.fwmask) == r.fwmark & r.fwmask
            if r.iif:
                fits &= iif[rows] == in_dev
            if r.oif:
                fits &= oif[rows] == out_dev if oif is not None and out_dev >= 0 else False
            if r.invert:
                fits = ~fits
            rows = rows[fits]
            if not len(rows) or r.action == "nop":
                continue
            if r.action == "goto":
                position[rows] = bisect_left([x[0].priority for x in c.rules], r.target)
            elif r.action == "lookup":
                flat = c.tables.get(r.table)
                if flat is None:
                    continue
                found = flat.find(dst[rows], tos[rows], c.link, None if oif is None else oif[rows])
                if r.suppress >= 0:
                    short = (c.plen[found] <= r.suppress) & (c.kind[found] < BLACKHOLE)  # a refusal is not suppressed
                    found = np.where(short, np.int32(_NOTHING), found)
                hit = found != _NOTHING
                got[rows[hit]] = found[hit]
                position[rows[hit]] = len(c.rules)
            else:
                got[rows] = {"unreachable": 0, "prohibit": 1, "blackhole": 2}[r.action]
                position[rows] = len(c.rules)
        return got

    @property
    def spreads(self) -> bool:
        """There are multipath routes, and `input` and `output` may have to be told which flow a packet is of."""
        return bool(self._compile().fans)

    @property
    def seed(self) -> int:
        """By which flows are spread: what the sysctl says, else what was drawn."""
        return self.sysctl.int("net.ipv4.fib_multipath_hash_seed") or self.drawn

    def flow(
        self,
        src: U32,
        dst: U32,
        proto: U8 | int = 0,
        sport: U16 | int = 0,
        dport: U16 | int = 0,
        *,
        forwarded: bool = False,
    ) -> U32:
        """uint32[n], below 2^31: the number by which multipath routes choose, the same for both directions of a flow.

        Which of these say something is up to fib_multipath_hash_policy: 0 addresses, 1 all, 3 as
        fib_multipath_hash_fields says. Ports of ICMP, fragments and the like are 0.
        forwarded  packets that came in: what they carry in a tunnel would count, too (by policy 3)
        """
        policy = self.sysctl.int("net.ipv4.fib_multipath_hash_policy")
        fields = self.sysctl.int("net.ipv4.fib_multipath_hash_fields") if policy == 3 else (0x03, 0x37)[policy]
        a, b = (x.byteswap() if fields & bit else x * 0 for x, bit in ((src, 1), (dst, 2)))
        c, d = (
            np.broadcast_to(np.asarray(x, np.uint16), a.shape).byteswap()
            if fields & bit
            else np.zeros(a.shape, np.uint16)
            for x, bit in ((sport, 0x10), (dport, 0x20))
        )
        low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
        ports = np.minimum(c, d).astype(np.uint64) | np.maximum(c, d).astype(np.uint64) << np.uint64(16)
        kind = np.asarray(proto, np.uint64) << np.uint64(16) if fields & 4 else np.uint64(0)
        zero = np.zeros(a.shape, np.uint64)
        key = self.seed << 32 | self.seed
        hashed = siphash24((zero + kind, zero, zero, ports << np.uint64(32), low << np.uint64(32), high), key, key)
        number = (hashed & np.uint64(LBCAST)).astype(np.uint32)
        number = np.maximum(number, 1)
        if policy == 3 and forwarded:
            number = np.asarray(jhash2((number, number * 0))).astype(np.uint32)
        out: U32 = number >> np.uint32(1)
        return out

    @property
    def prefers(self) -> bool:
        """What the node itself sends from an address goes by the way that prefers this address."""
        return self.kernel != "6.1"

    def _spread(self, c: _Compiled, entry: I32, flow: U32, src: U32 | None) -> I32:
        """int32[n]: for each entry that is a multipath route, the entry of the way that the flow goes."""
        entry = entry.copy()
        for first in np.unique(entry[c.fan[entry]]).tolist():
            rows = np.flatnonzero(entry == first)
            entry[rows] = first + c.fans[first].choose(flow[rows], None if src is None else src[rows])
        return entry

    def input(self, src: U32, dst: U32, link_in: I16, mark: U32, tos: U8, flow: U32 | None = None) -> Route:
        """The way of packets that came in on `link_in` (KINDS: see Route).

        src, dst, mark  uint32[n]    link_in  int16[n] (all >= 0)    tos  uint8[n]
        flow     uint32[n] what multipath routes choose by (see `flow`); None: the addresses
        Cost     two or three binary searches a packet; a single packet's answer is remembered until something changes
        Source   the checks of ip_route_input_slow, ip_mc_validate_source and fib_validate_source, in their order
        """
        c = self._compile()
        if len(src) != 1:
            return self._input(c, src, dst, link_in, mark, tos, flow)
        which = -1 if flow is None else int(flow[0])
        key = (int(src[0]), int(dst[0]), int(link_in[0]), int(mark[0]), int(tos[0]), which)
        got = self._memo.get(key)
        if got is None:
            got = self._remember(key, self._input(c, src, dst, link_in, mark, tos, flow))
        return got

    def _remember(self, key: tuple[int, ...], route: Route) -> Route:
        if len(self._memo) > 65536:
            self._memo.clear()
        for name in Route.__slots__:
            getattr(route, name).flags.writeable = False
        self._memo[key] = route
        return route

    def _input(self, c: _Compiled, src: U32, dst: U32, link_in: I16, mark: U32, tos: U8, flow: U32 | None) -> Route:
        n = len(src)
        if (_SUSPECT[src >> 24] | _SUSPECT[dst >> 24]).any():
            kind = self._oddities(c, src, dst, link_in)
            asked = np.flatnonzero(kind == 0)
            entry = np.zeros(n, np.int32)
            if len(asked):
                found = self._lookup(c, dst[asked], src[asked], mark[asked], tos[asked], link_in[asked])
                entry[asked] = found
                kind[asked] = c.input_kind[c.forwarding[link_in[asked]], found]
        else:
            entry = self._lookup(c, dst, src, mark, tos, link_in)
            kind = c.input_kind[c.forwarding[link_in], entry]
        if c.fans:
            entry = self._spread(c, entry, self.flow(src, dst) if flow is None else flow, None)
        out = c.link[entry]
        redirect = np.zeros(n, bool)
        # is the source one that may come from there; a broadcast from 0.0.0.0 (DHCP) is not asked
        passing = kind < BLACKHOLE
        checked = np.flatnonzero(passing & ((src != 0) | (kind < BROADCAST)))
        forwarded = kind == UNICAST
        if len(checked):
            towards = np.where(kind <= LOCAL, dst, np.uint32(0))
            oif = np.where(forwarded, out, -1)
            if len(checked) == n:
                verdict = self._validate(c, src, towards, oif, link_in, mark, tos)
            else:
                verdict = self._validate(
                    c, src[checked], towards[checked], oif[checked], link_in[checked], mark[checked], tos[checked]
                )
            if verdict.any():
                bad = verdict < 0
                kind[checked[bad]] = np.where(verdict[bad] == -1, MARTIAN_SOURCE, REVERSE_PATH)
                back = (verdict > 0) & (oif[checked] == link_in[checked]) & c.redirects[link_in[checked]]
                told = checked[back]
                redirect[told] = c.shared[link_in[told]]
                for k in told[~c.shared[link_in[told]]]:
                    redirect[k] = self._on_link(int(link_in[k]), int(src[k]), int(c.gateway[entry[k]]))
                forwarded = kind == UNICAST
        link = out.astype(np.int16)
        mtu = c.mtu[entry]
        if not forwarded.all():
            passing = kind < BLACKHOLE
            mine = passing & ~forwarded
            link[mine] = LO
            mtu[mine] = c.link_mtu[LO]
            ends = ~passing
            entry = np.where(ends, np.int32(0), entry)
            link[ends] = -1
            mtu[ends] = 0
        nexthop = np.where(c.via[entry], c.gateway[entry], dst)
        return Route(kind, link, nexthop, mtu, self._sources(c, entry, dst), redirect)

    @staticmethod
    def _oddities(c: _Compiled, src: U32, dst: U32, link_in: I16) -> I8:
        """int8[n]: what is settled by the addresses alone, wherever routes lead; 0: ask the tables."""
        kind = np.zeros(len(src), np.int8)
        localnet = c.localnet[link_in]
        src_top, dst_top = src >> 24, dst >> 24
        # the last word counts
        kind[(src_top == 127) & ~localnet & (dst_top != 127)] = MARTIAN_SOURCE
        kind[(dst_top == 127) & ~localnet] = MARTIAN_DESTINATION
        kind[dst == 0] = MARTIAN_DESTINATION
        kind[src == 0] = MARTIAN_SOURCE
        kind[(dst == LBCAST) | ((dst == 0) & (src == 0))] = BROADCAST
        group = (dst_top & 0xF0) == 0xE0
        if group.any():
            kind[group] = MULTICAST
            kind[group & (src_top == 127) & ~localnet] = MARTIAN_SOURCE
            kind[group & (src == 0) & ((dst & 0xFFFFFF00) != 0xE0000000)] = MARTIAN_SOURCE
        kind[((src_top & 0xF0) == 0xE0) | (src == LBCAST)] = MARTIAN_SOURCE
        kind[group & (dst != 0xE0000001)] = NOT_JOINED  # only all-hosts is joined everywhere
        return kind

    @staticmethod
    def _sources(c: _Compiled, entry: I32, dst: U32) -> U32:
        source = c.source[entry]
        mine = (c.kind[entry] == LOCAL) & (source == 0)
        return np.where(mine, dst, source) if mine.any() else source

    def _on_link(self, link: int, a: int, b: int) -> bool:
        """One primary subnet of the link holds both addresses (b may be 0)."""
        return any(
            not x.secondary and not (a ^ x.peer) & _MASKS[x.plen] and (not b or not (b ^ x.peer) & _MASKS[x.plen])
            for x in self.links[link].addresses
        )

    def _validate(
        self, c: _Compiled, src: U32, dst: U32, oif: NDArray[np.integer], link: I16, mark: U32, tos: U8
    ) -> I8:
        """int8[n]: may `src` come in on `link`? -1 no, -2 no (reverse path), 0 yes, 1 yes and it is a neighbour.

        oif  where the packet is going to leave, -1 when it stays
        """
        rp = c.rp[link]
        easy = (rp == 0) & ((oif != link) | ~c.redirects[link])
        out = np.zeros(len(src), np.int8)
        trusting = c.accept_local[link]
        if self.split or self.custom_local:
            full = ~easy | ~trusting
        else:
            full = ~easy
            out[easy & ~trusting & c.is_own(src)] = -1
        rows = np.flatnonzero(full)
        if not len(rows):
            return out
        src, link, rp, trusting, tos = src[rows], link[rows], rp[rows], trusting[rows], tos[rows]
        seen_mark = np.where(c.vmark[link], mark[rows], np.uint32(0))
        iif = np.maximum(oif[rows], LO)
        entry = self._lookup(c, src, dst[rows], seen_mark, tos, iif)
        kind = c.kind[entry]
        missing = kind >= BLACKHOLE
        spoofed = ~missing & (kind != UNICAST) & ~((kind == LOCAL) & trusting)
        match = c.leaves_by(entry, link) | ((kind == LOCAL) & (link == LO))
        near = c.near[entry].astype(np.int8)
        # where the reverse route uses another link
        other = ~missing & ~spoofed & ~match
        verdict = np.where(match, near, np.int8(0))
        helpless = missing | (other & c.bare[link])
        loose = other & ~c.bare[link]
        verdict[helpless & (rp != 0)] = -2
        verdict[helpless & (rp == 0)] = 0
        verdict[loose & (rp == 1)] = -2
        again = np.flatnonzero(loose & (rp != 1))
        if len(again):
            second = self._lookup(
                c, src[again], dst[rows][again], seen_mark[again], tos[again], iif[again], link[again]
            )
            verdict[again] = (c.kind[second] == UNICAST) & c.near[second]
        verdict[spoofed] = -1
        out[rows] = verdict
        return out

    def output(self, dst: U32, src: U32, mark: U32, tos: U8, oif: int | None = None, flow: U32 | None = None) -> Route:
        """The way of packets that the node itself sends, whatever source they carry (0: not chosen yet).

        dst, src, mark  uint32[n]    tos  uint8[n]    oif  link index that a socket is bound to
        flow    uint32[n] what multipath routes choose by (see `flow`); None: the addresses
        kind    LOCAL goes over lo; errors as in REASONS. `source` is what the kernel would choose where src is 0
        Cost    one binary search a packet
        Source  ip_route_output_key_hash_rcu and __mkroute_output, any source allowed
        """
        c = self._compile()
        if len(dst) != 1:
            return self._output(c, dst, src, mark, tos, oif, flow)
        which = -1 if flow is None else int(flow[0])
        key = (int(dst[0]), int(src[0]), int(mark[0]), int(tos[0]), -1 if oif is None else oif, which, -1)
        got = self._memo.get(key)
        if got is None:
            got = self._remember(key, self._output(c, dst, src, mark, tos, oif, flow))
        return got

    def _output(self, c: _Compiled, dst: U32, src: U32, mark: U32, tos: U8, oif: int | None, flow: U32 | None) -> Route:
        n = len(dst)
        bound = None if oif is None else np.full(n, oif, np.int16)
        group = ((dst >> 28) == 14) | (dst == LBCAST)
        if (dst == 0).any():  # to nobody: to oneself
            dst = np.where(dst == 0, np.where(src == 0, np.uint32(0x7F000001), src), dst)
        entry = self._lookup(c, dst, src, mark, tos, np.zeros(n, np.int8), bound)
        if c.fans and oif is None:
            entry = self._spread(c, entry, self.flow(src, dst) if flow is None else flow, src if self.prefers else None)
        kind = c.kind[entry]
        link = c.link[entry].astype(np.int16)
        nexthop = np.where(c.via[entry], c.gateway[entry], dst)
        mtu = c.mtu[entry]
        source = self._sources(c, entry, dst)
        local = kind == LOCAL
        link[local] = LO
        mtu[local] = c.link_mtu[LO]
        if oif is not None:  # a link was asked for: whoever it is lives there
            lost = (kind >= BLACKHOLE) | group
            kind[lost] = UNICAST
            link[lost] = oif
            nexthop[lost] = dst[lost]
            mtu[lost] = c.link_mtu[oif]
            source[lost] = self._select(oif, 0, 253)
        elif group.any():
            for k in np.flatnonzero(group & (src != 0)):  # it leaves by the link that has the source
                dev = self._holder(int(src[k]))
                kind[k] = NO_ROUTE if dev < 0 else UNICAST
                link[k], nexthop[k], source[k] = dev, dst[k], src[k]
                mtu[k] = c.link_mtu[dev] if dev >= 0 else 0
        if group.any():
            sent = group & (kind < BLACKHOLE)
            kind[sent] = np.where(dst[sent] == LBCAST, BROADCAST, MULTICAST)
        src_top = src >> 24
        bad = ((src_top & 0xF0) == 0xE0) | (src == LBCAST)
        used = np.where(src == 0, source, src)
        bad |= ((used >> 24) == 127) & (link > LO) & ~c.localnet[np.maximum(link, 0)] & (kind < BLACKHOLE)
        kind[bad] = BAD_SOURCE
        ends = kind >= BLACKHOLE
        link[ends] = -1
        return Route(kind, link, nexthop, mtu, source, np.zeros(n, bool))

    def leads_by(self, dst: U32, src: U32, mark: U32, tos: U8, link: I16) -> Mask:
        """bool[n]: what the node sends to `dst` may leave by `link`, whichever of its ways a route then takes."""
        c = self._compile()
        return c.leaves_by(self._lookup(c, dst, src, mark, tos, np.zeros(len(dst), np.int8)), link)

    def _holder(self, ip: int) -> int:
        """Index of the link that has an address (or a local route to it), -1 when none has."""
        if ip in self._holders:
            return next(k for k, link in enumerate(self.links) if any(a.ip == ip for a in link.addresses))
        e = self._find([self.tables[255]], ip)
        return e.link if e is not None and e.kind == LOCAL else -1

    def addr_type(self, addrs: U32, link: I16 | int | None = None) -> U8:
        """What sort of address each is to this node (`-m addrtype`): codes of ADDR_TYPES.

        addrs  uint32[n]     link  int16[n] or one index: what is known counts only if it is on that link
        Cost   one binary search an address
        """
        c = self._compile()
        n = len(addrs)
        entry = c.local.find(addrs, 0, c.link)
        kind = c.type[entry]
        if link is not None:
            kind = np.where((c.link[entry] == link) | (entry == 0), kind, np.uint8(UNICAST))
        top = addrs >> 28
        if n and (top == 14).any():
            kind[top == 14] = MULTICAST
        kind[(addrs == 0) | (addrs == LBCAST)] = BROADCAST
        return kind

    def is_local(self, addrs: U32) -> Mask:
        """bool[n]: the address is the node's own, on whichever link, 127.0.0.0/8 included."""
        mask: Mask = self.addr_type(addrs) == LOCAL
        return mask

    # ---- the command -------------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str]) -> str:
        """`ip link|addr|route|rule ...`, with or without the leading `ip`; returns what it prints.

        Raises Refused with ip's message and exit status, Unsupported for what netemu does not model.

        >>> r = Routing(Sysctl()); _ = r.add_link("eth0"); _ = r.run("ip addr add 10.0.0.1/24 dev eth0".split())
        >>> r.run(["route"])
        '10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1 \\n'
        """
        words = list(argv[1:] if argv[:1] == ["ip"] else argv)
        while words and words[0].startswith("-"):
            option = words.pop(0).lstrip("-")
            if option in ("6", "B", "M", "0"):
                raise Unsupported(f"ip -{option} (netemu models IPv4)")
            if option in ("n", "netns", "batch", "b", "all", "a"):
                raise Unsupported(f"ip -{option}")
            if option in ("f", "family") and words and words.pop(0) != "inet":
                raise Unsupported(f"ip -{option} (netemu models IPv4)")
        if not words:
            raise Refused("Usage: ip [ OPTIONS ] OBJECT { COMMAND | help }", status=255)
        name = _abbreviated(words[0], ("address", "route", "rule", "link"))
        if name is None:
            if _abbreviated(words[0], _OBJECTS_LACKING.split()):
                raise Unsupported(f"ip {words[0]} (netemu knows ip link, addr, route, rule)")
            raise Refused(f'Object "{words[0]}" is unknown, try "ip help".', status=1)
        return {"address": self._run_addr, "route": self._run_route, "rule": self._run_rule, "link": self._run_link}[
            name
        ](words[1:])

    def _run_link(self, words: list[str]) -> str:
        verb = _verb(words, ("add", "set", "delete", "show", "list", "lst", "change"), "show")
        if verb in ("show", "list", "lst"):
            return "".join(
                f"{k + 1}: {link.name}: <{'UP' if link.up else 'DOWN'}> mtu {link.mtu}\n"
                for k, link in enumerate(self.links)
                if not link.gone
            )
        if verb == "add":
            given = _pairs(words, ["name", "type", "mtu", "address", "link"], first="name")
            if "type" not in given:
                raise Refused('Not enough information: "type" argument is required', status=255)
            if given["type"] not in ("dummy", "bridge", "ifb", "tun", "tap"):
                raise Unsupported(f"ip link add type {given['type']} (netemu adds dummy and bridge)")
            try:
                mac = parse_mac(given["address"]) if "address" in given else None
            except ValueError as e:
                raise Refused(str(e), status=1) from None
            self.add_link(
                given.get("name", ""),
                mac=mac,
                mtu=_int(given.get("mtu", "1500"), "mtu", 65535),
                up=False,
                kind=given["type"],
            )
            return ""
        words = words[1:] if words[:1] == ["dev"] else words
        if not words:
            raise Refused('Not enough information: "dev" argument is required.', status=255)
        at = self._link(words[0])
        if verb == "delete":
            self.remove_link(at)
            return ""
        rest = words[1:]
        up: bool | None = None
        mtu: int | None = None
        mac = None
        while rest:
            word = rest.pop(0)
            if word in ("up", "down"):
                up = word == "up"
            elif word == "mtu":
                mtu = _int(_next(rest, word), "mtu", LBCAST)
            elif word == "address":
                try:
                    mac = parse_mac(_next(rest, word))
                except ValueError as e:
                    raise Refused(str(e), status=1) from None
            elif word == "group":
                said = _next(rest, word)
                self.links[at].group = 0 if said == "default" else _int(said, "group", LBCAST)
            elif word in (
                "arp",
                "dynamic",
                "multicast",
                "allmulticast",
                "promisc",
                "trailers",
                "txqueuelen",
                "txqlen",
                "qlen",
                "alias",
            ):
                _next(rest, word)  # nothing that a routed packet would notice
            elif word in (
                "master",
                "nomaster",
                "name",
                "netns",
                "vf",
                "type",
                "carrier",
                "xdp",
                "addrgenmode",
                "vrf",
                "link-netns",
                "state",
            ):
                raise Unsupported(f"ip link set {word} (netemu knows up, down, mtu, address, group)")
            else:
                raise Refused(f'either "dev" is duplicate, or "{word}" is a garbage.', status=255)
        self.set_link(at, up=up, mtu=mtu, mac=mac)
        return ""

    def _run_addr(self, words: list[str]) -> str:
        verb = _verb(words, ("add", "change", "chg", "replace", "delete", "show", "list", "lst", "flush"), "show")
        if verb in ("show", "list", "lst", "flush"):
            words = words[1:] if words[:1] == ["dev"] else words
            chosen = [self._link(words[0])] if words else [k for k, link in enumerate(self.links) if not link.gone]
            scopes: set[str] | None = None
            rest = words[1:]
            while rest:
                word = rest.pop(0)
                if word == "scope":
                    scopes = {_next(rest, word)}
                elif word == "label":
                    raise Unsupported("ip addr ... label")
                else:
                    raise Unsupported(f"ip addr {verb} {word}")
            if verb == "flush":
                if not words:
                    raise Refused("Flush requires arguments.", status=255)
                going = [a for a in self.links[chosen[0]].addresses if scopes is None or a.scope in scopes]
                if going:
                    self._remove(chosen[0], going)
                return ""
            return "".join(
                f"{k + 1}: {self.names[k]}    inet {a} scope {a.scope}{secondary} {a.label or self.names[k]}\n"
                for k in chosen
                for a in self.links[k].addresses
                for secondary in (" secondary" if a.secondary else "",)
            )
        address, dev = "", ""
        more: dict[str, str] = {}
        rest = list(words)
        connected = True
        while rest:
            word = rest.pop(0)
            if word == "dev":
                dev = _next(rest, word)
            elif word in (
                "brd",
                "broadcast",
                "scope",
                "peer",
                "remote",
                "label",
                "metric",
                "priority",
                "preference",
                "anycast",
            ):
                more[
                    {"broadcast": "brd", "remote": "peer", "priority": "metric", "preference": "metric"}.get(word, word)
                ] = _next(rest, word)
            elif word in ("valid_lft", "preferred_lft"):
                if _next(rest, word) != "forever":
                    raise Unsupported(f"ip addr {word} (addresses do not expire in netemu)")
            elif word == "noprefixroute":
                connected = False
            elif word in ("nodad", "home", "mngtmpaddr", "optimistic", "autojoin"):
                continue
            elif word == "local":
                address = _next(rest, word)
            elif not address:
                address = word
            else:
                raise Refused(f'either "local" is duplicate, or "{word}" is a garbage.', status=255)
        if not dev:
            raise Refused('Not enough information: "dev" argument is required.', status=255)
        at = self._link(dev)
        if verb == "delete":
            self.remove_address(at, address)
            return ""
        peer, text = -1, address
        try:
            if "peer" in more:
                peer, plen = parse_prefix(more["peer"])
                text = f"{address.partition('/')[0]}/{plen}"
            broadcast: int | None = None
            if more.get("brd") in ("+", "-"):
                ip, plen = parse_prefix(text)
                broadcast = (ip & _MASKS[plen]) | (LBCAST >> plen if more["brd"] == "+" else 0) if plen < 31 else None
            elif "brd" in more:
                broadcast = parse_ip(more["brd"])
        except ValueError:
            raise Refused(f'any valid prefix is expected rather than "{address}".', status=1) from None
        scope = more.get("scope", "global")
        if scope not in SCOPES:
            raise Refused(f'argument "{scope}" is wrong: invalid scope value.', status=255)
        if verb in ("change", "chg", "replace"):
            ip, plen = parse_prefix(text)
            if any(a.ip == ip and a.plen == plen for a in self.links[at].addresses):
                return ""
            if verb != "replace":
                raise Refused("RTNETLINK answers: No such file or directory", status=2)
        self.add_address(
            at, text, broadcast=broadcast, scope=scope, peer=peer, connected=connected,
            metric=_int(more.get("metric", "0"), "metric", LBCAST), label=more.get("label", ""),
        )  # fmt: skip
        return ""

    def _run_route(self, words: list[str]) -> str:
        verb = _verb(
            words,
            ("add", "append", "prepend", "replace", "change", "chg", "delete", "show", "list", "lst", "get", "flush"),
            "show",
        )
        if verb in ("show", "list", "lst"):
            return self.show_routes(words)
        if verb == "get":
            return self._get(words)
        if verb == "flush":
            if not words:
                raise Refused('"ip route flush" requires arguments.', status=1)
            if words != ["cache"]:
                for e in self._pick(words):
                    self._drop(e)
                self.version += 1
            return ""
        if verb == "delete":
            self.delete_route(words)
        else:
            self.add_route(words, "change" if verb == "chg" else verb)
        return ""

    def _get(self, words: list[str]) -> str:
        given = _pairs(words, ["to", "from", "iif", "oif", "mark", "tos", "dsfield"], first="to")
        dst = np.array([_prefix(given["to"])[0]], np.uint32)
        src = np.array([_prefix(given["from"])[0] if "from" in given else 0], np.uint32)
        mark = np.array([int(given.get("mark", "0"), 0)], np.uint32)
        tos = np.array([int(given.get("tos", given.get("dsfield", "0")), 0)], np.uint8)
        if "iif" in given:
            route = self.input(src, dst, np.array([self._link(given["iif"])], np.int16), mark, tos)
        else:
            route = self.output(dst, src, mark, tos, self._link(given["oif"]) if "oif" in given else None)
        kind = int(route.kind[0])
        if kind in REASONS:
            raise Refused(f"RTNETLINK answers: {REASONS[kind]}", status=2)
        out = [] if kind == UNICAST else [{LOCAL: "local", BROADCAST: "broadcast", MULTICAST: "multicast"}[kind]]
        out.append(format_ip(int(dst[0])))
        if "from" in given:
            out.append(f"from {given['from']}")
        if route.nexthop[0] != dst[0]:
            out.append(f"via {format_ip(int(route.nexthop[0]))}")
        out.append(f"dev {self.names[int(route.link[0])]}")
        if "iif" in given:
            out.append(f"iif {given['iif']}")
        elif "from" not in given:
            out.append(f"src {format_ip(int(route.source[0]))}")
        return " ".join(out) + "\n"

    def _run_rule(self, words: list[str]) -> str:
        verb = _verb(words, ("add", "delete", "show", "list", "lst", "flush"), "show")
        if verb in ("show", "list", "lst"):
            return "".join(f"{rule}\n" for rule in self.rules)
        if verb == "flush":
            self.split = True
            self.rules = [r for r in self.rules if r.priority == 0]
            self.version += 1
        elif verb == "add":
            self.add_rule(words)
        else:
            self.delete_rule(words)
        return ""


_OBJECTS_LACKING = (
    "addrlabel maddress neighbor neighbour ntable tunnel tuntap token monitor xfrm netns l2tp fou vrf nexthop"
)

# ---- words -----------------------------------------------------------------------------------------------------


def bad_link_name(name: str) -> str | None:
    """Why Linux would not call a link so, or None."""
    if not name or len(name) > 15 or name in (".", "..") or re.search(r"[\s/:]", name):
        return f'"{name}" is not a link name (1 to 15 characters, no space, "/" or ":")'
    return None


def table_id(name: str | int) -> TableId:
    """The number of a table; a name that only the node's own rt_tables knows stays a name.

    >>> table_id("main"), table_id("100"), table_id("vpn")
    (254, 100, 'vpn')
    """
    if isinstance(name, int):
        return name
    if name in TABLES:
        return TABLES[name]
    try:
        number = int(name, 0)
    except ValueError:
        if re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            return name
        raise Refused(f'argument "{name}" is wrong: "table" value is invalid', status=255) from None
    if not 0 <= number <= LBCAST:
        raise Refused(f'argument "{name}" is wrong: "table" value is invalid', status=255)
    return number


def table_name(table: TableId) -> str:
    """
    >>> table_name(254), table_name(100)
    ('main', '100')
    """
    return _TABLE_NAMES.get(table, str(table)) if isinstance(table, int) else table


def _near(what: str, name: str, known: Sequence[str]) -> str:
    return f"{what}: {', '.join(known)}"


def _abbreviated(word: str, names: Sequence[str]) -> str | None:
    return next((n for n in names if n.startswith(word)), None) if word else None


def _verb(words: list[str], verbs: Sequence[str], default: str) -> str:
    """Take the verb from the front of `words`."""
    if not words:
        return default
    verb = _abbreviated(words[0], verbs)
    if verb is None:
        if default == "show" and words[0] == "dev":
            return default
        raise Refused(f'Command "{words[0]}" is unknown, try "ip help".', status=255)
    words.pop(0)
    return verb


def _next(words: list[str], option: str) -> str:
    if not words:
        raise Refused(f'Command line is not complete. Try option "help" (after "{option}")', status=255)
    return words.pop(0)


def _pairs(words: Sequence[str], known: Sequence[str], first: str) -> dict[str, str]:
    rest, out = list(words), {}
    while rest:
        word = rest.pop(0)
        if word in known:
            out[word] = _next(rest, word)
        elif first not in out:
            out[first] = word
        else:
            raise Unsupported(f'ip: word "{word}" (netemu knows {", ".join(known)})')
    return out


def _int(text: str, option: str, high: int) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= high:
        raise Refused(f'argument "{text}" is wrong: "{option}" value is invalid', status=255)
    return number


def _address(text: str) -> int:
    try:
        return parse_ip(text)
    except ValueError:
        if ":" in text:
            raise Unsupported(f"IPv6 address {text} in a route or rule") from None
        raise Refused(f'an inet address is expected rather than "{text}".', status=1) from None


def _prefix(text: str) -> tuple[int, int]:
    try:
        return parse_prefix(text)
    except ValueError:
        if ":" in text:
            raise Unsupported(f"IPv6 prefix {text} in a route or rule") from None
        raise Refused(f'an inet prefix is expected rather than "{text}".', status=1) from None


def _scope(text: str) -> int:
    if text in SCOPES:
        return SCOPES[text]
    return _int(text, "scope", 255)


_DSFIELD = {"lowdelay": 0x10, "throughput": 0x08, "reliability": 0x04, "mincost": 0x02}


def _tos(text: str) -> int:
    if text in _DSFIELD:
        return _DSFIELD[text]
    try:
        value = int(text, 16)
    except ValueError:
        value = 256
    if value > 255:
        raise Refused(f'argument "{text}" is wrong: TOS value is invalid', status=255)
    if value & 3:
        raise Refused("Invalid dsfield (tos): ECN bits must be 0.", status=2)
    return value


_ROUTE_VALUES = {
    "to": "to", "via": "via", "dev": "dev", "oif": "dev", "src": "src", "metric": "metric", "priority": "metric",
    "preference": "metric", "table": "table", "scope": "scope", "tos": "tos", "dsfield": "tos", "proto": "proto",
    "protocol": "proto", "type": "type", "mtu": "mtu",
}  # fmt: skip
# for the node's own TCP only: no packet on its way notices
_ROUTE_HARMLESS = (
    "advmss rtt rttvar reordering window cwnd initcwnd initrwnd ssthresh rto_min quickack congctl features pref "
    "expires fastopen_no_cookie"
)
_ROUTE_LACKING = "encap realm realms hoplimit as ttl-propagate xfrm"
_ROUTE_TYPES_LACKING = "anycast multicast nat xresolve"
# flags that dumps show
_ROUTE_FLAGS = "offload linkdown dead trap notify cache rt_offload rt_trap cloned unresolved"
#: what a [[route]] of node.toml may say
ROUTE_KEYS = (*_ROUTE_VALUES, "onlink", "nexthop", *_ROUTE_HARMLESS.split(), *_ROUTE_LACKING.split())


def route_words(words: str | Sequence[str], selector: bool = False) -> dict[str, str]:
    """The words of `ip route add` (or, as a selector, of `ip route show`) by name."""
    rest = words.split() if isinstance(words, str) else list(words)
    out: dict[str, str] = {}
    objects = ""

    def put(name: str, value: str) -> None:
        if name in out:
            raise Refused(f'duplicate "{name}": "{value}" is the second value.', status=255)
        out[name] = value

    while rest:
        word = rest.pop(0)
        if word in ("exact", "root", "match") and selector:
            put("to" if word == "exact" else word, _next(rest, word))
        elif word == "via":
            value = _next(rest, word)
            if value in ("inet", "inet6"):
                family, value = value, _next(rest, word)
                if family == "inet6":
                    raise Unsupported("a route via an IPv6 gateway")
            put("via", value)
        elif word == "to" and rest and (rest[0] in ROUTE_TYPES or rest[0] in _ROUTE_TYPES_LACKING.split()):
            continue
        elif word in _ROUTE_VALUES:
            value = _next(rest, word)
            if word == "mtu" and value == "lock":
                value = _next(rest, word)
            if word == "type":
                if value in _ROUTE_TYPES_LACKING.split():
                    raise Unsupported(f"route type {value} (netemu knows {', '.join(ROUTE_TYPES)})")
                if value not in ROUTE_TYPES:
                    raise Refused(
                        f'argument "{value}" is wrong: unknown route type',
                        status=255,
                        hint=f"types: {', '.join(ROUTE_TYPES)}",
                    )
            put(_ROUTE_VALUES[word], value)
        elif word in ("onlink", "pervasive"):
            put("onlink", "")
        elif word == "nexthop":  # all that follows
            put("nexthop", " ".join(rest))
            rest = []
        elif word == "nhid":  # what it stands for follows, in a dump
            objects = _next(rest, word)
        elif word in _ROUTE_FLAGS.split():
            continue
        elif word in _ROUTE_HARMLESS.split():
            value = _next(rest, word)
            if value == "lock":
                _next(rest, word)
        elif word in _ROUTE_LACKING.split():
            raise Unsupported(f"route option {word}")
        elif word in ROUTE_TYPES and "type" not in out:
            put("type", word)
        elif word in _ROUTE_TYPES_LACKING.split():
            raise Unsupported(f"route type {word} (netemu knows {', '.join(ROUTE_TYPES)})")
        elif "to" not in out:
            put("to", word)
        else:
            raise Refused(f'either "to" is duplicate, or "{word}" is a garbage.', status=255)
    if objects and not {"via", "dev", "nexthop"} & set(out):
        raise Unsupported(
            f"route option nhid {objects}", hint="say nexthop via ... dev ... instead of a nexthop object"
        )
    return out


def _alike(hops: tuple[Hop, ...], others: tuple[Hop, ...]) -> bool:
    """What is said of the ways in `ip route del` fits those of a route."""
    return len(hops) == len(others) and all(
        a.gateway in (None, b.gateway) and a.link in (-1, b.link) and a.weight == b.weight
        for a, b in zip(hops, others, strict=True)
    )


_RULE_WORDS = {
    "from": "from", "to": "to", "fwmark": "fwmark", "iif": "iif", "dev": "iif", "oif": "oif", "tos": "tos",
    "dsfield": "tos", "priority": "priority", "pref": "priority", "preference": "priority", "order": "priority",
    "lookup": "table", "table": "table", "goto": "goto", "suppress_prefixlength": "suppress", "sup_pl": "suppress",
    "suppress_prefixlen": "suppress", "type": "type", "protocol": "proto", "proto": "proto",
}  # fmt: skip
_RULE_LACKING = "l3mdev uidrange ipproto sport dport tun_id realms suppress_ifgroup sup_group nat map-to dscp flowlabel"
#: what a [[rule]] of node.toml may say
RULE_KEYS = (*_RULE_WORDS, "not", "action", *_RULE_LACKING.split())


def read_rule(words: str | Sequence[str]) -> Rule:
    """The rule that the words of `ip rule add` make. Raises Refused or Unsupported.

    >>> str(read_rule("pref 100 not fwmark 0x1/0xff lookup 7"))
    '100:\\tnot from all fwmark 0x1/0xff lookup 7'
    """
    return _rule_words(words)[0]


def _rule_words(words: str | Sequence[str], deleting: bool = False) -> tuple[Rule, set[str]]:
    """A rule from the words of `ip rule add`, and the names of the fields that were said."""
    rest = words.split() if isinstance(words, str) else list(words)
    rule = Rule(0)
    given: set[str] = set()
    while rest:
        word = rest.pop(0)
        if word == "not":
            rule.invert = True
            given.add("invert")
            continue
        if word in ("unreachable", "prohibit", "blackhole", "nop"):
            rule.action = word
            given.add("action")
            continue
        if word in _RULE_LACKING.split():
            raise Unsupported(f"rule selector {word}")
        name = _RULE_WORDS.get(word)
        if name is None:
            raise Refused(
                f'Failed to parse rule: "{word}" is unknown',
                status=255,
                hint=f"words: {', '.join(sorted(_RULE_WORDS))}, not",
            )
        value = _next(rest, word)
        if name == "from":
            rule.src, rule.src_len = _prefix(value)
            given |= {"src", "src_len"}
        elif name == "to":
            rule.dst, rule.dst_len = _prefix(value)
            given |= {"dst", "dst_len"}
        elif name == "fwmark":
            mark, slash, mask = value.partition("/")
            rule.fwmark = _int(mark, "fwmark", LBCAST)
            rule.fwmask = _int(mask, "fwmask", LBCAST) if slash else LBCAST
            given |= {"fwmark", "fwmask"}
        elif name == "tos":
            rule.tos = _tos(value)
            given.add("tos")
        elif name == "priority":
            rule.priority = _int(value, "preference", LBCAST)
            given.add("priority")
        elif name == "table":
            rule.table = table_id(value)
            given.add("table")
        elif name == "goto":
            rule.action, rule.target = "goto", _int(value, "goto", LBCAST)
            given |= {"action", "target"}
        elif name == "suppress":
            rule.suppress = _int(value, "suppress_prefixlength", 32)
            given.add("suppress")
        elif name == "type":
            if value in ("unreachable", "prohibit", "blackhole", "nop"):
                rule.action = value
                given.add("action")
            elif value not in ("unicast", "lookup"):
                raise Refused(f'Failed to parse rule type: "{value}"', status=255)
        elif name in ("iif", "oif"):
            wrong = bad_link_name(value)
            if wrong:
                raise Refused(f'"{name}" not a valid ifname', status=255)
            setattr(rule, name, value)
            given.add(name)
    if (rule.src & ~_MASKS[rule.src_len]) or (rule.dst & ~_MASKS[rule.dst_len]):
        rule.src &= _MASKS[rule.src_len]
        rule.dst &= _MASKS[rule.dst_len]
    if deleting and not given:
        raise Refused('"ip rule del" requires arguments.', status=255)
    return rule, given
