"""IPVS: virtual services, the real servers behind them, and the connections between clients and servers.

    INPUT, OUTPUT   request:  known connection? --> its server
                              else a service's? --> the scheduler chooses --> a new connection
                              --> translated, routed to the server, and back in at OUTPUT
    INPUT, FORWARD, OUTPUT    reply: of a known connection? --> source is the virtual address again

Services and servers are objects: there are few, and people change them. Connections stand in columns, found by hash
tables under two keys: how the client's packets look, and how the server's do. Packets of known connections whose state
does not change are dealt with as columns; new connections and changes of state go one by one, in arrival order, since
schedulers read what they write. What Linux does here is the same in 6.1 and 6.18.
"""

from __future__ import annotations

import heapq
import socket
import struct
from collections.abc import Callable, Iterator
from functools import cmp_to_key
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from netemu import routing
from netemu.clock import SECOND, minutes
from netemu.conntrack import CONFIRMED, dotted
from netemu.errors import REFUSED, UNSUPPORTED, Problem, Refused, Unsupported
from netemu.hashing import Table
from netemu.packets import (
    ACK,
    DONT_FRAGMENT,
    FIN,
    HOST,
    I32,
    I64,
    ICMP,
    INVALID,
    OFFSET_MASK,
    REJECTED,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
    UNTRACKED,
    Mask,
    Packets,
    Rows,
    checksum,
)
from netemu.paths import Step
from netemu.schedulers import SCHEDULERS, Asked, Scheduler

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

NEVER = 1 << 62
NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
SERVED = np.isin(np.arange(256), list(NAMES))
FTP, FTP_DATA = 21, 20

MASQ, TUNNEL, ROUTE, BYPASS = 0, 2, 3, 4  # how packets reach the server
METHODS = {MASQ: "Masq", TUNNEL: "Tunnel", ROUTE: "Route"}
METHOD_OPTIONS = {MASQ: "-m", TUNNEL: "-i", ROUTE: "-g"}

# flags of a connection
TEMPLATE, INACTIVE, NO_OUTPUT, ONE_PACKET, TRACKED, FOUND, ASSURED = 1, 2, 4, 8, 16, 32, 64

# ---- states -----------------------------------------------------------------------------------------------------

STATES = (
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
)
SHORT = ("NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA")
NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA = range(11)
ACTIVE = (ES, SS, SR, SA)
TIMEOUTS = {NO: 2, ES: 900, SS: 120, SR: 60, FW: 120, TW: 120, CL: 10, CW: 60, LA: 30, LI: 120, SA: 120}
UDP_TIMEOUT = 300
FIRST_TIMEOUT = 3
CONTROL_LIFE = 60  # how long a template lives on each time it is found to be still in use

TO_SERVER, TO_CLIENT, ONE_WAY = 0, 3, 6  # first row of each block below; ONE_WAY: answers do not pass here
ROWS_A_BLOCK = 4


def grid(text: str, states: tuple[str, ...]) -> NDArray[np.uint8]:
    """uint8[event, state]: a drawing of states as numbers, one line an event; . keeps it. Refuses one with gaps."""
    head, *lines = [line.split("#")[0].split() for line in text.strip().splitlines()]
    assert head == ["seen", *states], "columns are the states in order"
    number = {name: k for k, name in enumerate(states)}
    assert all(len(line) == len(head) + 1 for line in lines), "every event in every state"
    return np.array([[k if w == "." else number[w] for k, w in enumerate(line[2:])] for line in lines], np.uint8)


# What a segment does to the state of its connection. RST counts before SYN, FIN and ACK; a segment with none of them
# closes. "in" travels to the server; "one" does too, when answers pass the node by (direct routing, tunnels).
NORMAL = grid(
    """
    seen    NO ES SS SR FW TW CL CW LA LI SA
    in  syn SR ES ES SR SR SR SR SR SR SR SR
    in  fin CL CW SS TW TW TW CL CW LA LI TW
    in  ack ES ES SS ES FW TW CL CW CL LI ES
    in  rst CL CL CL SR CL CL CL CL LA LI SR
    out syn SS ES SS SR SS SS SS SS SS LI SR    # a SYN+ACK too: the client's ACK is what establishes
    out fin TW FW SS TW FW TW CL TW LA LI TW
    out ack ES ES SS ES FW TW CL CW LA ES ES
    out rst CL CL SS CL CL TW CL CL CL CL CL
    one syn SR ES ES SR SR SR SR SR SR SR SR
    one fin CL FW SS TW FW TW CL CW LA LI TW
    one ack ES ES SS ES FW TW CL CW CL LI ES
    one rst CL CL CL SR CL CL CL CL LA LI CL
""",
    SHORT,
)
# net.ipv4.vs.secure_tcp = 3: a client must answer before it counts
SECURE = grid(
    """
    seen    NO ES SS SR FW TW CL CW LA LI SA
    in  syn SR ES ES SR SR SR SR SR SR SR SA
    in  fin CL CW SS TW TW TW CL CW LA LI SA
    in  ack ES ES SS SR FW TW CL CW CL LI SA
    in  rst CL CL CL SR CL CL CL CL LA LI CL
    out syn SS ES SS SA SS SS SS SS SS LI SA
    out fin TW FW SS TW FW TW CL TW LA LI TW
    out ack ES ES SS ES FW TW CL CW LA ES ES
    out rst CL CL SS CL CL TW CL CL CL CL CL
    one syn SA ES ES SR SA SA SA SA SA SA SA
    one fin CL FW SS TW FW TW CL CW LA LI TW
    one ack ES ES SS ES FW TW CL CW CL LI ES
    one rst CL CL CL SR CL CL CL CL LA LI CL
""",
    SHORT,
)


def _event_rows() -> NDArray[np.uint8]:
    """uint8[256]: TCP flags -> row within a block; ROWS_A_BLOCK for a segment without any of the four."""
    out = np.full(256, ROWS_A_BLOCK, np.uint8)
    for row, flag in ((2, ACK), (1, FIN), (0, SYN), (3, RST)):  # the last written wins
        out[(np.arange(256) & flag) != 0] = row
    return out


EVENT = _event_rows()


def transitions(drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8[direction, event, state] of a drawing: direction 0 to the server, 1 to the client, 2 one way only."""
    out = np.full((3, ROWS_A_BLOCK + 1, len(STATES)), CL, np.uint8)
    out[:, :ROWS_A_BLOCK] = drawn.reshape(3, ROWS_A_BLOCK, len(STATES))
    return out


TRANSITIONS, SECURE_TRANSITIONS = transitions(NORMAL), transitions(SECURE)


# SCTP, by the first chunk of a packet; DATA and whatever is not named changes nothing. Found by sending every chunk to
# Linux 6.1 in every state that can be reached.
SCTP_STATES = (
    "NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED", "S-SENT",
    "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED",
)  # fmt: skip
SCTP_SHORT = ("NO", "I1", "IN", "CS", "CR", "CW", "CO", "CE", "ES", "SS", "SR", "SA", "RJ", "CL")
SCTP_ES, SCTP_CLOSED = SCTP_SHORT.index("ES"), SCTP_SHORT.index("CL")
SCTP_TIMEOUTS = {"NONE": 2, "INIT1": 4, "REJECTED": 4, "ESTABLISHED": 900}
SCTP_TIMEOUT = 61  # of every other state
SCTP_INIT, SCTP_ABORT = 1, 6
#: chunk type -> row in a block of the drawing
SCTP_CHUNKS = {1: 0, 2: 1, 6: 2, 7: 3, 8: 4, 9: 5, 10: 6, 11: 7, 14: 8}
SCTP_TRANSITIONS = grid(
    """
    seen         NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    in  init     I1 IN IN .  .  .  .  .  .  .  .  .  IN IN
    in  initack  CW CW CW .  .  CO .  .  .  .  .  .  .  .
    in  abort    CL CL CL CL CL RJ CL CL CL CL CL CL CL CL
    in  shutdown .  .  .  .  .  .  .  .  SR .  .  .  .  .
    in  shutack  IN IN .  .  .  .  .  .  .  CL .  CL .  .
    in  error    .  .  .  .  .  .  .  CL .  .  .  .  .  .
    in  cookie   IN IN .  CR .  .  .  .  .  .  .  .  .  .
    in  cookack  .  .  .  .  .  .  .  ES .  .  .  .  .  .
    in  done     CL CL CL .  .  .  .  .  .  .  .  CL .  .
    out init     CW CW CW CW CW CW CW CW .  CW CW CW CW CW
    out initack  CS CS CS .  .  .  .  .  .  .  .  .  .  .
    out abort    RJ RJ CL CL CL CL CL CL CL CL CL CL CL CL
    out shutdown SS SS SS SS SS SS SS SS SS SS .  .  .  .
    out shutack  SA SA SA SA SA .  .  .  .  SA SA SA .  .
    out error    CL CL CL CL CL .  .  .  .  .  .  .  .  .
    out cookie   CE CE CE CE CE CE CE CE .  .  .  .  .  .
    out cookack  ES ES ES ES ES ES ES ES ES .  .  .  .  .
    out done     .  .  .  .  .  .  .  .  .  .  .  .  .  .
    one init     I1 IN IN .  .  .  .  .  .  .  .  .  IN IN
    one initack  CE CE CE .  .  .  .  .  .  .  .  .  .  .
    one abort    CL CL CL CL CL CL CL CL CL CL CL CL CL CL
    one shutdown .  .  .  .  .  .  .  .  SR .  .  .  .  .
    one shutack  IN IN IN .  .  .  .  .  CL .  .  .  .  .
    one error    .  .  .  .  .  .  .  .  .  .  .  .  .  .
    one cookie   ES ES ES .  .  .  .  .  .  .  .  .  .  .
    one cookack  .  .  .  .  .  .  .  ES .  .  .  .  .  .
    one done     CL CL CL .  .  .  .  .  .  .  CL .  .  .
""",
    SCTP_SHORT,
).reshape(3, len(SCTP_CHUNKS), len(SCTP_STATES))


# ---- services and servers ---------------------------------------------------------------------------------------


class Destination:
    """A real server of one service.

    number      its place in the columns that Ipvs keeps of servers
    active, inactive   connections it has; persistent: templates that point to it
    upper, lower       thresholds (0 none): `overloaded` from upper on, until the number falls below lower
    available   it is in its service's list; else it was deleted, and waits for its connections to end or to be re-added
    last_weight the latest weight above 0 (0 if it was added with 0)
    """

    __slots__ = (
        "active", "addr", "available", "home", "idle", "inactive", "last_weight", "lower", "method", "number",
        "overloaded", "persistent", "port", "service", "stat", "text", "upper", "weight",
    )  # fmt: skip

    def __init__(self, number: int, service: Service, addr: int, port: int) -> None:
        self.number, self.stat = number, 0
        self.service = service
        self.home = service.identity
        self.addr, self.port = addr, port
        self.text = f"{dotted(addr)}:{port}"
        self.method = ROUTE
        self.weight = self.last_weight = 1
        self.upper = self.lower = 0
        self.active = self.inactive = self.persistent = 0
        self.overloaded = False
        self.available = True
        self.idle = -1

    def crowded(self) -> None:
        """A connection came: maybe one too many."""
        if self.upper and self.active + self.inactive >= self.upper:
            self.overloaded = True

    def relieved(self) -> None:
        """A connection went."""
        if self.overloaded:
            total = self.active + self.inactive
            self.overloaded = total >= self.lower if self.lower else bool(self.upper) and total * 4 >= self.upper * 3


class Service:
    """A virtual service: protocol, address and port, or a firewall mark.

    destinations  newest first                  timeout  seconds of persistence, 0: not persistent
    flags         names of scheduler flags      netmask  which clients share a template
    tracks        it needs connection tracking
    """

    def __init__(self, proto: int, addr: int, port: int, mark: int) -> None:
        self.proto, self.addr, self.port, self.mark = proto, addr, port, mark
        self.destinations: list[Destination] = []
        self.flags: tuple[str, ...] = ()
        self.timeout = 0
        self.netmask = 0xFFFFFFFF
        self.one_packet = False
        self.tracks = False
        self.stat = 0
        self.scheduler: Scheduler = SCHEDULERS["none"](self)
        self.text = f"fwmark {mark}" if mark else f"{dotted(addr)}:{port}/{NAMES[proto]}"
        self.steps: dict[tuple[str, str], Step] = {}

    @property
    def identity(self) -> tuple[int, int, int, int]:
        """What makes it this service, whatever its settings."""
        return self.proto, self.addr, self.port, self.mark

    def step(self, how: str, where: str) -> Step:
        """`ipvs: 10.96.0.1:443/tcp rr -> 10.244.2.6:6443`."""
        step = self.steps.get((how, where))
        if step is None:
            step = self.steps[how, where] = Step(None, f"ipvs: {self.text} {how} -> {where}")
        return step


# ---- connections ------------------------------------------------------------------------------------------------

_COLUMNS = {
    "proto": "u1", "caddr": "u4", "cport": "u2", "vaddr": "u4", "vport": "u2", "daddr": "u4", "dport": "u2",
    "method": "u1", "flags": "i4", "state": "u1", "dest": "i4", "timeout": "i8", "deadline": "i8", "parent": "i4",
    "children": "i4", "mark": "u4", "service": "i4", "known": "i4", "answer": "i4", "queued": "i8", "serial": "i8",
    "client_key": "i4", "server_key": "i4", "client_older": "i4", "server_older": "i4", "live": "?",
}  # fmt: skip


class Connections:
    """Connections in columns, by connection number.

    proto caddr cport vaddr vport   as the client's packets are; a template: caddr masked, cport 0
    daddr dport method              the server's address and port, how packets reach it
    dest      number of the Destination, -1: none        parent    the template that controls it, -1: none
    children  connections that it controls               state     of STATES
    flags     TEMPLATE .. ASSURED                        service   text number of the service it was made for
    timeout   ns that its state gives it                 deadline  when it goes, ns
    known, answer   step numbers: packets to the server, to the client
    queued    time under which the timer knows it, NEVER: not at all; serial: counts connections, never reused
    """

    proto: NDArray[np.uint8]
    caddr: NDArray[np.uint32]
    cport: NDArray[np.uint16]
    vaddr: NDArray[np.uint32]
    vport: NDArray[np.uint16]
    daddr: NDArray[np.uint32]
    dport: NDArray[np.uint16]
    method: NDArray[np.uint8]
    flags: I32
    state: NDArray[np.uint8]
    dest: I32
    timeout: I64
    deadline: I64
    parent: I32
    children: I32
    mark: NDArray[np.uint32]
    service: I32
    known: I32
    answer: I32
    queued: I64
    serial: I64
    client_key: I32
    server_key: I32
    client_older: I32
    server_older: I32
    live: Mask

    def __init__(self, seed: int) -> None:
        self.capacity = 0
        self.made = 0
        self._free: list[int] = []
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype))
        self.client = Index(seed)
        self.server = Index(seed)
        self._grow()

    def _grow(self) -> None:
        old, self.capacity = self.capacity, max(64, self.capacity * 2)
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros(self.capacity - old, column.dtype)]))
        self._free.extend(range(self.capacity - 1, old - 1, -1))

    def allocate(self) -> int:
        """A number for a new connection."""
        if not self._free:
            self._grow()
        c = self._free.pop()
        self.made += 1
        self.serial[c] = self.made
        self.live[c] = True
        self.parent[c] = self.client_key[c] = self.server_key[c] = -1
        self.children[c] = 0
        self.queued[c] = NEVER
        return c

    def release(self, c: int) -> None:
        """Nobody refers to the number any more."""
        self._free.append(c)

    def __len__(self) -> int:
        return int(self.live.sum())

    def find_client(self, proto: int, caddr: int, cport: int, vaddr: int, vport: int) -> int:
        """The connection of a packet to a virtual address (or a template: cport 0), or -1."""
        return self.client.find_one(caddr << 32 | vaddr, proto << 32 | cport << 16 | vport)

    def find_server(self, proto: int, caddr: int, cport: int, addr: int, port: int) -> int:
        """The connection of a packet that comes from addr:port and goes to the client, or -1."""
        return self.server.find_one(caddr << 32 | addr, proto << 32 | cport << 16 | port)

    def enlist(self, c: int) -> None:
        """Make it findable. Client port 0 marks a template, so such a client never finds its connection again."""
        self.flags[c] |= FOUND
        proto, caddr, cport = int(self.proto[c]) << 32, int(self.caddr[c]) << 32, int(self.cport[c]) << 16
        template = bool(self.flags[c] & TEMPLATE)
        if cport or template:
            key = caddr | int(self.vaddr[c]), proto | cport | int(self.vport[c])
            self.client_key[c], self.client_older[c] = self.client.push(key, c)
        if not template:
            masq = self.method[c] == MASQ
            addr, port = (self.daddr[c], self.dport[c]) if masq else (self.vaddr[c], self.vport[c])
            key = caddr | int(addr), proto | cport | int(port)
            self.server_key[c], self.server_older[c] = self.server.push(key, c)

    def delist(self, c: int) -> None:
        """Make it unfindable; an older connection of the same key shows again."""
        if self.client_key[c] >= 0:
            self.client.pull(int(self.client_key[c]), c, self.client_older)
            self.client_key[c] = -1
        if self.server_key[c] >= 0:
            self.server.pull(int(self.server_key[c]), c, self.server_older)
            self.server_key[c] = -1
        self.flags[c] &= ~FOUND


class Index:
    """Keys of two words -> the newest connection that has the key."""

    def __init__(self, seed: int) -> None:
        self.table = Table(2, seed=seed)
        self.heads: I32 = np.full(64, -1, np.int32)

    def find(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> I32:
        """int32[n]: connection numbers, -1 for none."""
        found = self.table.find((first, second))
        out = self.heads[found]  # -1 reads the last place, which is put right here
        out[found < 0] = -1
        return out

    def find_one(self, first: int, second: int) -> int:
        found = self.table.find_one(first, second)
        return -1 if found < 0 else int(self.heads[found])

    def push(self, key: tuple[int, int], c: int) -> tuple[int, int]:
        """(number of the key, the connection that had it so far or -1)."""
        older = self.find_one(*key)
        number = self.table.add_one(*key)
        if number >= len(self.heads):
            self.heads = np.concatenate([self.heads, np.full(max(len(self.heads), number), -1, np.int32)])
        self.heads[number] = c
        return number, older

    def pull(self, number: int, c: int, older: I32) -> None:
        at = int(self.heads[number])
        if at == c:
            self.heads[number] = older[c]
            if older[c] < 0:
                self.table.remove_one(number)
            return
        while int(older[at]) != c:
            at = int(older[at])
        older[at] = older[c]


class Ask(NamedTuple):
    """Who wants a connection, as ints in host order; quoted: an ICMP error about its answer does."""

    proto: int
    caddr: int
    cport: int
    vaddr: int
    vport: int
    mark: int
    quoted: bool = False


# what becomes of a packet at the in-hook
GO_ON, SENT, ENDED = 0, 1, 2
CONNS, IN_PACKETS, OUT_PACKETS, IN_BYTES, OUT_BYTES = range(5)
_NO_ROWS = np.zeros(0, np.intp)
FEW = 6  # so many packets are quicker one by one


class Ipvs:
    """All of a node's IPVS.

    services   in the order they were added          active    it serves anything, so its hooks are there
    conns      the connections                       next_due  ns, no timer falls due before it
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.services: list[Service] = []
        self.conns = Connections(node.seed)
        self.timeouts = {**TIMEOUTS}
        self.udp_timeout = UDP_TIMEOUT
        self.counters: I64 = np.zeros((64, 5), np.int64)  # 0: everything; then services and servers
        self._stats_used = 1
        self._by_address: dict[tuple[int, int, int], Service] = {}
        self._by_mark: dict[int, Service] = {}
        self._service_table = Table(1, seed=node.seed)
        self._wildcards = 0  # services that a packet may meet without carrying their port
        self._ftp = 0
        self._dests: list[Destination] = []
        self._trash: list[Destination] = []
        self._servers = Table(1, seed=node.seed)
        self._server_uses: dict[int, int] = {}
        # servers in columns: deleted or not, where its service and it are counted, the way there
        self._up: Mask = np.zeros(0, bool)
        self._dest_stat: I32 = np.zeros(0, np.int32)
        self._service_stat: I32 = np.zeros(0, np.int32)
        self._way: NDArray[np.int64] = np.zeros((0, 5), np.int64)  # routing version, kind, link, next hop, mtu
        self._timers: list[tuple[int, int, int]] = []  # (time, serial, connection); below 0: SPECIAL
        self._spent: list[int] = []  # numbers of connections that went
        self._depth = 0  # calls of the in-hook under way: what it sends passes the hooks too
        self._drop_counter = 0

    @property
    def active(self) -> bool:
        """The hooks are registered: at least one service."""
        return bool(self.services)

    @property
    def conntrack_needed(self) -> bool:
        """An FTP service with a masqueraded server switches connection tracking on, until the service goes."""
        return any(service.tracks for service in self.services)

    def _on(self, name: str) -> int:
        return self.node.sysctl.int("net.ipv4.vs." + name)

    # ---- the in-hook -------------------------------------------------------------------------------------------

    def request(self, trip: Trip, rows: Rows) -> tuple[Rows, Rows]:
        """The in-hook: packets to virtual services (INPUT 99, OUTPUT -98).

        returns  (rows that go on in this hook, rows that were translated and routed and enter OUTPUT anew); all others
                 were ended
        Cost     two look-ups a packet; scheduling is one by one
        """
        p = trip.pkts
        mine = ~p.ipvs[rows]
        if trip.hook != "OUTPUT":
            mine &= p.pkttype[rows] == HOST
        proto = p.proto[rows]
        icmp = (proto == ICMP) & mine
        mine &= SERVED[proto] & ((p.frag[rows] & OFFSET_MASK) == 0)
        fates = np.zeros(len(rows), np.uint8)
        picked = np.full(len(rows), -1, np.int32)  # connection of each packet that is to be translated
        steps = np.zeros(len(rows), np.int32)
        if len(rows) > FEW:
            candidates = np.flatnonzero(mine)
            left = self._settled_requests(trip, rows, candidates, fates, picked, steps)
        else:
            left = np.flatnonzero(mine)
        self._depth += 1
        for k in left.tolist():
            fates[k], picked[k], steps[k] = self._request_one(trip, int(rows[k]))
        if icmp.any():
            for k in np.flatnonzero(icmp).tolist():
                fates[k] = self._icmp_request(trip, int(rows[k]))
        self._transmit(trip, rows, picked, steps, fates == SENT)
        self._depth -= 1
        self._over()
        return rows[fates == GO_ON], rows[fates == SENT]

    def _keys(self, p: Packets, rows: Rows, reply: bool) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The two key words under which each packet's connection would stand."""
        src, dst = p.src[rows].astype(np.uint64), p.dst[rows].astype(np.uint64)
        sport, dport = p.sport[rows].astype(np.uint64), p.dport[rows].astype(np.uint64)
        proto = p.proto[rows].astype(np.uint64) << np.uint64(32)
        if reply:
            src, dst, sport, dport = dst, src, dport, sport
        return (src << np.uint64(32)) | dst, proto | (sport << np.uint64(16)) | dport

    def _same_state(self, p: Packets, rows: Rows, conns: I32, reply: bool) -> Mask:
        """bool[n]: this packet leaves its connection in the state that it is in."""
        t = self.conns
        flags, state = t.flags[conns], t.state[conns]
        tcp = p.proto[rows] == TCP
        blind = (flags & NO_OUTPUT) != 0
        direction = np.ones(len(rows), np.uint8) if reply else blind.astype(np.uint8) * 2
        table = SECURE_TRANSITIONS if self._on("secure_tcp") == 3 else TRANSITIONS
        out: Mask = table[direction, EVENT[p.flags[rows]], state] == state
        if reply:
            out &= ~blind
        other = ~tcp
        if other.any():
            udp = p.proto[rows] == UDP
            calm = udp.copy()
            if reply:
                parent = t.parent[conns]
                calm &= (parent < 0) | ((t.flags[parent] & ASSURED) != 0)
            out = np.where(tcp, out, calm)
        return out

    def _settled_requests(
        self, trip: Trip, rows: Rows, todo: NDArray[np.intp], fates: NDArray[np.uint8], picked: I32, steps: I32
    ) -> NDArray[np.intp]:
        """Deal with packets of known connections that nothing changes, as columns; the places that are left over."""
        p, t = trip.pkts, self.conns
        if not len(todo):
            return todo
        r = rows[todo]
        found = t.client.find(*self._keys(p, r, False))
        hit = found >= 0
        # without a connection and without a service it is none of ours, now or later in this run
        left = hit | self._may_serve(p, r)
        calm = hit.copy()
        k = np.flatnonzero(hit)
        if len(k):
            c, rk = found[k], r[k]
            dest = t.dest[c]
            fine = (dest >= 0) & ((p.proto[rk] != TCP) | ((p.flags[rk] & SYN) == 0))
            fine &= self._up[dest]  # -1 reads the last one, masked before
            fine &= self._same_state(p, rk, c, False)
            if fine.any():
                self._refresh_ways(dest[fine])
                way = self._way[dest]
                fine &= (
                    (way[:, 1] == routing.FORWARD)
                    & (p.ttl[rk] > 1)
                    & (p.src[rk] >> 24 != 127)
                    & (t.method[c] != TUNNEL)
                )
                fine &= (p.length[rk] <= way[:, 4]) | ((p.frag[rk] & DONT_FRAGMENT) == 0)
            odd = np.zeros(t.capacity, bool)
            odd[c[~fine]] = True
            fine = ~odd[c]
            calm[k] = fine
        left &= ~calm
        k = np.flatnonzero(calm)
        if len(k):
            c, rk = found[k], r[k]
            self._touch(c, p.time[rk])
            self._count(c, p.length[rk], IN_PACKETS, IN_BYTES)
            fates[todo[k]] = SENT
            picked[todo[k]] = c
            steps[todo[k]] = t.known[c]
        return todo[left]

    def _may_serve(self, p: Packets, rows: Rows) -> Mask:
        """bool[n]: some service could want this packet."""
        if self._wildcards:
            return np.ones(len(rows), bool)
        key = (
            (p.proto[rows].astype(np.uint64) << np.uint64(48))
            | (p.dst[rows].astype(np.uint64) << np.uint64(16))
            | p.dport[rows]
        )
        out: Mask = self._service_table.find((key,)) >= 0
        return out

    def _touch(self, conns: I32, times: I64) -> None:
        """Connections whose state stays: their timers start anew at their latest packet.

        Answers come after requests here, whatever their times, so of deadlines by one timeout the latest counts.
        """
        t = self.conns
        udp = t.proto[conns] == UDP
        timeout = self._timeout_column[t.state[conns]]
        timeout[udp] = self.udp_timeout * SECOND
        until = times + timeout
        t.deadline[conns[t.timeout[conns] != timeout]] = 0  # set by another timeout, maybe a longer one
        t.timeout[conns] = timeout
        np.maximum.at(t.deadline, conns, until)
        late = t.queued[conns] > t.deadline[conns]
        if late.any():  # `ipvsadm --set` made the timeout shorter meanwhile
            for c in set(conns[late].tolist()):
                self._set_timer(c, int(t.deadline[c]))

    @property
    def _timeout_column(self) -> I64:
        return np.array([self.timeouts[s] for s in range(len(STATES))], np.int64) * SECOND

    def _count(self, conns: I32, lengths: I32, packets: int, size: int) -> None:
        """Add packets to the counters of server, service and everything; a deleted server's do not count."""
        dest = self.conns.dest[conns]
        ok = dest >= 0
        ok &= self._up[dest]
        dest, lengths = dest[ok], lengths[ok]
        if not len(dest):
            return
        for where in (self._dest_stat[dest], self._service_stat[dest]):
            self.counters[: self._stats_used, packets] += np.bincount(where, minlength=self._stats_used)
            self.counters[: self._stats_used, size] += np.bincount(where, lengths, self._stats_used).astype(np.int64)
        self.counters[0, packets] += len(dest)
        self.counters[0, size] += int(lengths.sum())

    def _count_one(self, c: int, length: int, packets: int, size: int) -> None:
        number = int(self.conns.dest[c])
        if number >= 0 and self._up[number]:
            for where in (int(self._dest_stat[number]), int(self._service_stat[number]), 0):
                self.counters[where, packets] += 1
                self.counters[where, size] += length

    # ---- one request -------------------------------------------------------------------------------------------

    def _request_one(self, trip: Trip, row: int) -> tuple[int, int, int]:
        """(what becomes of it, its connection or -1, step number): the in-hook for one TCP, UDP or SCTP packet."""
        p, t = trip.pkts, self.conns
        proto, now = int(p.proto[row]), int(p.time[row])
        ask = Ask(proto, int(p.src[row]), int(p.sport[row]), int(p.dst[row]), int(p.dport[row]), int(p.mark[row]))
        c = t.find_client(*ask[:5]) if ask.cport else -1
        if c >= 0 and self._opens(p, row):
            gone = self._reopened(trip, row, c, now)
            if gone is None:
                self._die(trip, row, "ipvs: the old connection is still tracked")
                return ENDED, -1, 0
            if gone:
                c = -1
        if c >= 0 and t.dest[c] >= 0 and not self._up[t.dest[c]]:
            if not self._on("expire_nodest_conn"):
                self._die(trip, row, "ipvs: the real server is gone")
                return ENDED, -1, 0
            tracked = self._holds_old_flow(trip, row, c)
            if not tracked:
                t.flags[c] &= ~TRACKED
            self._expire_now(c, now)
            if tracked:
                self._die(trip, row, "ipvs: the real server is gone")
                return ENDED, -1, 0
            c = -1
        if c >= 0:
            step = int(t.known[c])
        else:
            made = self._try_schedule(trip, row, ask)
            if made is None:
                return GO_ON, -1, 0
            c, step = made
            if c < 0:
                return ENDED, -1, 0
        self._count_one(c, int(p.length[row]), IN_PACKETS, IN_BYTES)
        self._next_state(c, proto, p, row, False)
        fate = self._send_one(trip, row, c)
        if fate == ENDED:
            trip.step(np.array([row]), trip.paths.steps[step])
            trip.service[row] = t.service[c]
        if t.flags[c] & ONE_PACKET:
            self._expire(c, now)
        else:
            self._set_timer(c, now + int(t.timeout[c]))
        return fate, c, step

    def _opens(self, p: Packets, row: int) -> bool:
        proto = p.proto[row]
        if proto == TCP:
            return bool(p.flags[row] & SYN)
        return bool(proto == SCTP and self._sctp_chunk(p, row) == SCTP_INIT)

    @staticmethod
    def _sctp_chunk(p: Packets, row: int) -> int:
        """Type of the first chunk; an ABORT behind a cookie counts first."""
        body = p.payload(row)
        if len(body) < 16:
            return -1
        kind, size = body[12], struct.unpack_from("!H", body, 14)[0]
        behind = 12 + (size + 3 & ~3)
        if kind in (10, 11) and size >= 4 and len(body) > behind + 3 and body[behind] == SCTP_ABORT:
            return SCTP_ABORT
        return kind

    def _holds_old_flow(self, trip: Trip, row: int, c: int) -> bool:
        """The packet belongs to a tracked flow that was confirmed under this very connection."""
        flow = int(trip.pkts.ct[row])
        return bool(self.conns.flags[c] & TRACKED) and flow >= 0 and bool(self.node.conntrack.status[flow] & CONFIRMED)

    def _reopened(self, trip: Trip, row: int, c: int, now: int) -> bool | None:
        """A SYN on a connection that exists: False keep it, True forget it and schedule anew, None drop the packet."""
        t = self.conns
        dest = int(t.dest[c])
        mode = self._on("conn_reuse_mode")
        if dest >= 0 and self._dests[dest].weight == 0 and self._on("expire_nodest_conn"):
            tracked = self._holds_old_flow(trip, row, c)
        elif mode and t.parent[c] < 0 and self._worn_out(c, mode):
            tracked = self._holds_old_flow(trip, row, c)
            if t.children[c] and tracked:
                return False
        else:
            return False
        if not tracked:
            t.flags[c] &= ~TRACKED
        if not t.children[c]:
            self._expire_now(c, now)
        return None if tracked else True

    def _worn_out(self, c: int, mode: int) -> bool:
        t = self.conns
        state, proto = int(t.state[c]), t.proto[c]
        if proto == TCP:
            return state in (TW, CL) or bool(mode & 2 and state == FW and t.flags[c] & NO_OUTPUT)
        return bool(proto == SCTP and state == SCTP_CLOSED)

    @staticmethod
    def _die(trip: Trip, row: int, reason: str) -> None:
        trip.end(np.array([row]), reason)

    # ---- scheduling --------------------------------------------------------------------------------------------

    def find_service(self, proto: int, addr: int, port: int, mark: int) -> Service | None:
        """The service that a packet belongs to."""
        if mark:
            service = self._by_mark.get(mark)
            if service is not None:
                return service
        service = self._by_address.get((proto, addr, port))
        if service is not None or not self._wildcards:
            return service
        if self._ftp and proto == TCP:
            first = self.node.sysctl.get("net.ipv4.ip_unprivileged_port_start")
            if port == FTP_DATA or port >= int(1024 if first is None else first):
                service = self._by_address.get((proto, addr, FTP))
        return service or self._by_address.get((proto, addr, 0))

    def _try_schedule(self, trip: Trip, row: int, ask: Ask) -> tuple[int, int] | None:
        """(connection, step) made for a packet that has none; connection -1: it was ended; None: not for us."""
        p = trip.pkts
        if ask.proto == TCP:
            flags = int(p.flags[row])
            if flags & RST or not (flags & SYN or self._on("sloppy_tcp")):
                return None
        elif ask.proto == SCTP:
            chunk = self._sctp_chunk(p, row)
            if chunk != SCTP_INIT and not (self._on("sloppy_sctp") and chunk != SCTP_ABORT):
                return None
        service = self.find_service(ask.proto, ask.vaddr, ask.vport, ask.mark)
        if service is None:
            return None
        if self._drops_by_rate():
            self._die(trip, row, "ipvs: drop_packet")
            return -1, 0
        return self._schedule(trip, row, service, ask)

    def _drops_by_rate(self) -> bool:
        if self._on("drop_packet") != 3:  # 1 and 2 act when memory runs out, which it does not here
            return False
        self._drop_counter -= 1
        if self._drop_counter > 0:
            return False
        self._drop_counter = self._on("am_droprate")
        return True

    def _schedule(self, trip: Trip, row: int, service: Service, ask: Ask) -> tuple[int, int] | None:
        p, t = trip.pkts, self.conns
        if ask.cport == FTP_DATA:
            return None
        if (
            p.link_in[row] in (-1, 0)
            and ask.vport
            and t.find_client(ask.proto, ask.vaddr, ask.vport, ask.caddr, ask.cport) >= 0
        ):
            return None  # the answer of a server on this very node
        now = int(p.time[row])
        if service.timeout:
            made = self._persistent(trip, row, service, ask, now)
        else:
            dest = None
            if service.mark or ask.vport == service.port:
                dest = self._choose(trip, row, service, ask)
            made = None
            if dest is not None:
                c = self._connect(
                    ask, dest, dest.port or ask.vport, service, ONE_PACKET if service.one_packet else 0, now
                )
                made = c, service.step(service.scheduler.name, f"{dotted(dest.addr)}:{t.dport[c]}")
        if made is not None:
            c, step = made
            dest = self._dests[int(t.dest[c])]
            for where in (dest.stat, service.stat, 0):
                self.counters[where, CONNS] += 1
            return c, trip.paths.step_id(step)
        return self._no_server(trip, row, service, ask)

    def _choose(self, trip: Trip, row: int, service: Service, ask: Ask) -> Destination | None:
        draw = int(trip.random(np.array([row]), 0x1B5)[0]) if service.scheduler.name == "twos" else 0
        target = ask.caddr if ask.quoted else ask.vaddr  # the quoted packet goes to the client
        return service.scheduler.choose(Asked(ask.caddr, ask.cport, target, ask.vport, int(trip.pkts.time[row]), draw))

    def _no_server(self, trip: Trip, row: int, service: Service, ask: Ask) -> tuple[int, int] | None:
        """Nobody can take it."""
        p = trip.pkts
        if service.mark and not ask.quoted and self._on("cache_bypass") and self._elsewhere(ask.vaddr):
            c = self._bypass(ask, service, int(p.time[row]))
            return c, trip.paths.step_id(Step(None, f"ipvs: {service.text} bypassed"))
        if service.port == FTP and ask.vport != FTP:
            return None
        one = np.array([row])
        trip.step(one, Step(None, f"ipvs: {service.text} has no real server"))
        trip.service[row] = trip.paths.text_id(service.text)
        if ask.quoted:
            trip.end(one, f"ipvs: {service.text} has no real server")
        else:
            trip.cause_icmp(one, 3, 3)
            trip.end(one, f"ipvs: {service.text} has no real server", REJECTED)
        return -1, 0

    def _elsewhere(self, addr: int) -> bool:
        return self._address_kind(addr) == "UNICAST"

    def _address_kind(self, addr: int) -> str:
        code = int(self.node.routing.addr_type(np.array([addr], np.uint32))[0])
        return next(name for name, value in routing.ADDR_TYPES.items() if value == code)

    def _persistent(self, trip: Trip, row: int, service: Service, ask: Ask, now: int) -> tuple[int, Step] | None:
        """A connection under its client's template; the scheduler is asked only when there is none, or no good one."""
        t = self.conns
        net = ask.caddr & service.netmask
        proto, vaddr, vport = ask.proto, ask.vaddr, 0
        if ask.vport == service.port:
            if service.port != FTP:
                vport = ask.vport
        elif service.mark:
            proto, vaddr = 0, service.mark
        template = t.find_client(proto, net, 0, vaddr, vport)
        how = "persistent"
        if template >= 0 and not self._template_good(template):
            template = -1
        if template < 0:
            dest = self._choose(trip, row, service, ask)
            if dest is None:
                return None
            how = service.scheduler.name
            port = dest.port if ask.vport == service.port and service.port != FTP else 0
            key = Ask(proto, net, 0, vaddr, vport, ask.mark)
            template = self._connect(key, dest, port, service, TEMPLATE, now)
            t.timeout[template] = service.timeout * SECOND
        else:
            dest = self._dests[int(t.dest[template])]
        port = dest.port if ask.vport == service.port and dest.port else ask.vport
        c = self._connect(ask, dest, port, service, ONE_PACKET if service.one_packet else 0, now)
        t.parent[c] = template
        t.children[template] += 1
        self._set_timer(template, now + int(t.timeout[template]))
        return c, service.step(how, f"{dotted(dest.addr)}:{port}")

    def _template_good(self, c: int) -> bool:
        """It points to a server that may be used; else it is renamed, never found again, and left to its timer."""
        t = self.conns
        dest = self._dests[int(t.dest[c])]
        if dest.available and not (dest.weight == 0 and self._on("expire_quiescent_template")):
            return True
        t.delist(c)
        t.flags[c] |= FOUND  # it stays in the listing
        t.cport[c], t.vport[c], t.dport[c] = 0, 0xFFFF, 0xFFFF
        return False

    def _connect(self, ask: Ask, dest: Destination, dport: int, service: Service, flags: int, now: int) -> int:
        """A new connection, bound to its server and findable (but for one-packet ones)."""
        t = self.conns
        c = t.allocate()
        t.proto[c], t.caddr[c], t.cport[c], t.vaddr[c], t.vport[c] = ask[:5]
        t.mark[c], t.daddr[c], t.dport[c], t.method[c] = ask.mark, dest.addr, dport, dest.method
        if ask.proto != UDP:
            flags &= ~ONE_PACKET
        if dest.method != MASQ:
            flags |= NO_OUTPUT
        if self._on("conntrack"):
            flags |= TRACKED
        t.flags[c] = flags | INACTIVE
        t.state[c], t.dest[c] = NO, dest.number
        t.timeout[c] = FIRST_TIMEOUT * SECOND
        t.deadline[c] = now + FIRST_TIMEOUT * SECOND
        paths = self.node.paths
        t.service[c] = paths.text_id(service.text)
        where = f"{dotted(dest.addr)}:{dport}"
        t.known[c] = paths.step_id(service.step("known", where))
        t.answer[c] = paths.step_id(service.step("answer", where))
        if flags & TEMPLATE:
            dest.persistent += 1
        else:
            dest.inactive += 1
        dest.crowded()
        if not flags & ONE_PACKET:
            t.enlist(c)
        return c

    def _bypass(self, ask: Ask, service: Service, now: int) -> int:
        t = self.conns
        c = t.allocate()
        t.proto[c], t.caddr[c], t.cport[c], t.vaddr[c], t.vport[c] = ask[:5]
        t.mark[c], t.daddr[c], t.dport[c], t.method[c] = ask.mark, 0, 0, BYPASS
        t.flags[c] = (
            INACTIVE | NO_OUTPUT | (TRACKED if self._on("conntrack") else 0) | (ONE_PACKET if service.one_packet else 0)
        )
        t.state[c], t.dest[c] = NO, -1
        t.timeout[c] = FIRST_TIMEOUT * SECOND
        paths = self.node.paths
        t.service[c] = paths.text_id(service.text)
        t.known[c] = t.answer[c] = paths.step_id(Step(None, f"ipvs: {service.text} bypassed"))
        if not t.flags[c] & ONE_PACKET:
            t.enlist(c)
        return c

    # ---- state -------------------------------------------------------------------------------------------------

    def _next_state(self, c: int, proto: int, p: Packets, row: int, reply: bool) -> None:
        """What a packet does to its connection: state, timeout, and which of its server's counts it stands in."""
        t = self.conns
        if proto == UDP:
            t.timeout[c] = self.udp_timeout * SECOND
            if reply:
                self._assure(c)
            return
        direction = 0
        if reply:
            direction = 1
            t.flags[c] &= ~NO_OUTPUT
        elif t.flags[c] & NO_OUTPUT:
            direction = 2
        old = int(t.state[c])
        if proto == TCP:
            table = SECURE_TRANSITIONS if self._on("secure_tcp") == 3 else TRANSITIONS
            new = int(table[direction, EVENT[p.flags[row]], old])
            active, real = new in ACTIVE, new == ES
            timeout = self.timeouts[new]
        else:
            event = SCTP_CHUNKS.get(self._sctp_chunk(p, row))
            new = old if event is None else int(SCTP_TRANSITIONS[direction, event, old])
            active = real = new == SCTP_ES
            timeout = SCTP_TIMEOUTS.get(SCTP_STATES[new], SCTP_TIMEOUT)
        if new != old:
            number = int(t.dest[c])
            if number >= 0:
                self._reckon(c, self._dests[number], active)
            if real:
                self._assure(c)
            t.state[c] = new
        t.timeout[c] = timeout * SECOND

    def _reckon(self, c: int, dest: Destination, active: bool) -> None:
        """Count a connection as active or inactive at its server."""
        t = self.conns
        if active == bool(t.flags[c] & INACTIVE):
            change = 1 if active else -1
            dest.active += change
            dest.inactive -= change
            t.flags[c] ^= INACTIVE

    def _assure(self, c: int) -> None:
        """A connection proved real: its template outlives being unused."""
        parent = int(self.conns.parent[c])
        if parent >= 0 and self.conns.flags[parent] & TEMPLATE:
            self.conns.flags[parent] |= ASSURED

    # ---- sending on --------------------------------------------------------------------------------------------

    def _refresh_ways(self, dests: I32) -> None:
        """Look up the way to servers whose way is older than the routes."""
        version = self.node.routing.version
        seen = np.zeros(len(self._dests), bool)
        seen[dests] = True
        for number in np.flatnonzero(seen & (self._way[:, 0] != version)).tolist():
            self._way[number] = (version, *self._look_up(self._dests[number].addr))

    def _look_up(self, addr: int) -> tuple[int, int, int, int]:
        zero = np.zeros(1, np.uint32)
        way = self.node.routing.output(np.array([addr], np.uint32), zero, zero, np.zeros(1, np.uint8))
        return int(way.kind[0]), int(way.link[0]), int(way.nexthop[0]), int(way.mtu[0])

    def _way_of(self, trip: Trip, row: int, c: int) -> tuple[int, int, int, int]:
        """(kind, link, next hop, mtu) towards a connection's server."""
        t = self.conns
        number = int(t.dest[c])
        if number < 0:
            return self._look_up(int(trip.pkts.dst[row]))
        if self._way[number, 0] != self.node.routing.version:
            self._way[number] = (self.node.routing.version, *self._look_up(self._dests[number].addr))
        _, kind, link, hop, mtu = self._way[number].tolist()
        return kind, link, hop, mtu

    def _send_one(self, trip: Trip, row: int, c: int, *, local_allowed: bool = True) -> int:
        """May it be sent to its server, and does it leave the node? SENT, GO_ON (the server is local) or ENDED."""
        p, t = trip.pkts, self.conns
        kind, _link, _hop, mtu = self._way_of(trip, row, c)
        one = np.array([row])
        loopback = int(p.src[row]) >> 24 == 127
        if kind == routing.LOCAL:
            was_local = trip.route_kind[row] == routing.LOCAL
            method = t.method[c]
            into_loopback = method == MASQ and int(t.daddr[c]) >> 24 == 127 and not p.local[row]
            if not local_allowed or (method != MASQ and not was_local) or into_loopback:
                trip.end(one, "ipvs: the real server may not be on this node")
                return ENDED
            return GO_ON
        if kind not in (routing.FORWARD, routing.BROADCAST_IN, routing.MULTICAST):
            trip.cause_icmp(one, 3, 1)
            trip.end(one, "ipvs: no route to the real server", REJECTED)
            return ENDED
        if loopback:
            trip.end(one, "ipvs: a loopback source may not leave the node")
            return ENDED
        if p.ttl[row] <= 1:
            trip.cause_icmp(one, 11, 0)
            trip.end(one, "ttl exceeded", REJECTED)
            return ENDED
        tunnel = t.method[c] == TUNNEL
        if tunnel:
            mtu -= 20
        if p.length[row] > mtu and p.frag[row] & DONT_FRAGMENT and (not tunnel or self._on("pmtu_disc")):
            p.ttl[row] -= 1
            trip.cause_icmp(one, 3, 4, mtu)
            trip.end(one, "fragmentation needed", REJECTED)
            return ENDED
        return SENT

    def _transmit(self, trip: Trip, rows: Rows, picked: I32, steps: I32, leaves: Mask) -> None:
        """Translate what goes to servers, and attach the way there; `picked` -1: not to be translated."""
        go = picked >= 0
        go &= trip.pkts.fate[rows] == 0
        if not go.any():
            return
        p, t = trip.pkts, self.conns
        r, c, s, out = rows[go], picked[go], steps[go], leaves[go]
        trip.service[r] = t.service[c]
        self._untrack(trip, r, c)
        trip.step(r, s)
        masq = t.method[c] == MASQ
        some, conns, by = (r, c, s) if masq.all() else (r[masq], c[masq], s[masq])
        trip.rewrite(some, "dst", t.daddr[conns], by)
        trip.rewrite(some, "dport", t.dport[conns], by)
        if out.any():
            trip.rewrite(r[out], "ttl", p.ttl[r[out]] - 1, s[out])
        p.ipvs[r] = True
        if out.any():
            self._attach(trip, r[out], c[out])
            tunnel = out & (t.method[c] == TUNNEL)
            for row, conn in zip(r[tunnel].tolist(), c[tunnel].tolist(), strict=True):
                self._wrap(trip, row, conn)

    def _attach(self, trip: Trip, rows: Rows, conns: I32) -> None:
        dest = self.conns.dest[conns]
        if (dest < 0).any():
            for row, c in zip(rows.tolist(), conns.tolist(), strict=True):
                kind, link, hop, mtu = self._way_of(trip, row, c)
                trip.route_kind[row], trip.route_link[row], trip.nexthop[row], trip.mtu[row] = kind, link, hop, mtu
            return
        way = self._way[dest]
        trip.route_kind[rows], trip.route_link[rows] = way[:, 1], way[:, 2]
        trip.nexthop[rows], trip.mtu[rows] = way[:, 3], way[:, 4]

    def _untrack(self, trip: Trip, rows: Rows, conns: I32, reply: bool = False) -> None:
        """Part packets and conntrack; or, for connections made with vs.conntrack on, tell it of the server."""
        p, t = trip.pkts, self.conns
        flows = p.ct[rows]
        has = flows >= 0
        if not has.any():
            return
        keep = (t.flags[conns] & TRACKED) != 0
        off = rows[has & ~keep]
        if len(off):
            p.ct[off] = -1
            p.state[off] = UNTRACKED
            p.reply[off] = False
        ct = self.node.conntrack
        on = has & keep & ~p.reply[rows]
        if not on.any():
            return
        on[on] = (ct.status[flows[on]] & CONFIRMED) == 0
        for row, c in zip(rows[on].tolist(), conns[on].tolist(), strict=True):
            if t.method[c] != MASQ and not reply:
                continue
            if t.flags[c] & ONE_PACKET:
                continue
            flow = int(p.ct[row])
            src, dst, sport, dport, proto = ct.reply(flow)
            if reply:
                dst, dport = int(t.vaddr[c]), dport if proto == ICMP else int(t.vport[c])
            else:
                src, sport = int(t.daddr[c]), sport if proto == ICMP else int(t.dport[c])
            ct.alter_reply(flow, (src, dst, sport, dport, proto))

    def _wrap(self, trip: Trip, row: int, c: int) -> None:
        """Put a packet into an outer IP header (IPIP), as a new packet of the node's."""
        p = trip.pkts
        inner = p.bytes(row)
        number = int(self.conns.dest[c])
        server = self._dests[number].addr if number >= 0 else int(p.dst[row])
        source = self.node.routing.source_for(server)
        tos = inner[1]
        if tos & 3 == 3:  # "congestion experienced" stays inside; outside it says "capable"
            tos = (tos & 0xFC) | 2
        keep = struct.unpack_from("!H", inner, 6)[0] & DONT_FRAGMENT if self._on("pmtu_disc") else 0
        head = struct.pack("!BBHHHBBHII", 0x45, tos, 20 + len(inner), 0, keep, inner[8], 4, 0, source or 0, server)
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        if p.ct[row] >= 0 and self.conns.flags[c] & TRACKED:
            self.node.conntrack.confirm(trip, np.array([row]))
            if p.fate[row]:
                return
        p.rebuild(row, head + inner)
        p.ct[row], p.state[row], p.reply[row] = -1, INVALID, False

    # ---- the out-hook ------------------------------------------------------------------------------------------

    def reply(self, trip: Trip, rows: Rows) -> None:
        """The out-hook: packets from real servers to clients (INPUT 98, FORWARD 100, OUTPUT -99)."""
        p, t = trip.pkts, self.conns
        mine = ~p.ipvs[rows]
        proto = p.proto[rows]
        icmp = mine & (proto == ICMP)
        mine &= SERVED[proto] & ((p.frag[rows] & OFFSET_MASK) == 0)
        if icmp.any():
            for k in np.flatnonzero(icmp).tolist():
                self._icmp_reply(trip, int(rows[k]))
        if not mine.any():
            return
        r = rows[mine]
        if len(r) > 1:
            found = t.server.find(*self._keys(p, r, True))
        else:
            one = int(r[0])
            key = int(p.proto[one]), int(p.dst[one]), int(p.dport[one]), int(p.src[one]), int(p.sport[one])
            found = np.array([t.find_server(*key)], np.int32)
        hit = found >= 0
        if not hit.all() and self._on("nat_icmp_send"):
            for row in r[~hit].tolist():
                self._orphan(trip, row)
        if not hit.any():
            return
        r, c = r[hit], found[hit]
        if len(r) > FEW:
            odd = np.zeros(t.capacity, bool)
            odd[c[~self._same_state(p, r, c, True)]] = True
            calm = ~odd[c]
            if calm.any():
                self._touch(c[calm], p.time[r[calm]])
            left = np.flatnonzero(~calm).tolist()
        else:
            left = list(range(len(r)))
        for k in left:
            row, conn = int(r[k]), int(c[k])
            self._next_state(conn, int(p.proto[row]), p, row, True)
            self._set_timer(conn, int(p.time[row]) + int(t.timeout[conn]))
        answers = t.answer[c]
        trip.service[r] = t.service[c]
        trip.step(r, answers)
        trip.rewrite(r, "src", t.vaddr[c], answers)
        trip.rewrite(r, "sport", t.vport[c], answers)
        on = self._rerouted(trip, r)
        r, c = r[on], c[on]
        if len(r) == 1:
            self._count_one(int(c[0]), int(p.length[r[0]]), OUT_PACKETS, OUT_BYTES)
        elif len(r):
            self._count(c, p.length[r], OUT_PACKETS, OUT_BYTES)
        p.ipvs[r] = True
        self._untrack(trip, r, c, reply=True)

    def _rerouted(self, trip: Trip, rows: Rows) -> Mask:
        """bool[n]: still under way, after asking for the way out again with the virtual address as source."""
        on = np.ones(len(rows), bool)
        if trip.hook == "INPUT" or not self._on("snat_reroute"):
            return on
        k = np.flatnonzero(trip.route_kind[rows] != routing.LOCAL)
        if len(k):
            ok = trip.route_out(rows[k])
            if not ok.all():
                on[k[~ok]] = False
                trip.end(rows[~on], "no route")
        return on

    def _orphan(self, trip: Trip, row: int) -> None:
        """nat_icmp_send: tell a masqueraded server that its connection is not known any more."""
        p = trip.pkts
        if p.proto[row] == TCP and p.flags[row] & RST:
            return
        proto, addr, port = int(p.proto[row]), int(p.src[row]), int(p.sport[row])
        if not any(
            d.addr == addr and d.port == port and d.method == MASQ and s.proto in (proto, 0)
            for s in self.services
            for d in s.destinations
        ):
            return
        one = np.array([row])
        trip.step(one, Step(None, "ipvs: no connection for this real server"))
        trip.cause_icmp(one, 3, 3)
        trip.end(one, "ipvs: no connection for this real server", REJECTED)

    # ---- ICMP errors -------------------------------------------------------------------------------------------

    def forward_icmp(self, trip: Trip, rows: Rows) -> tuple[Rows, Rows]:
        """The in-hook for ICMP errors that are being forwarded (FORWARD 99). Returns as `request` does."""
        p = trip.pkts
        fates = np.zeros(len(rows), np.uint8)
        self._depth += 1
        for k in np.flatnonzero((p.proto[rows] == ICMP) & ~p.ipvs[rows] & (p.pkttype[rows] == HOST)).tolist():
            fates[k] = self._icmp_request(trip, int(rows[k]))
        self._depth -= 1
        self._over()
        return rows[fates == GO_ON], rows[fates == SENT]

    def _quoted(self, p: Packets, row: int) -> tuple[bytearray, int, Ask] | None:
        """(the packet, where the quoted one begins, its addresses as its sender had them) of an ICMP error, or None."""
        if p.frag[row] & OFFSET_MASK or p.icmp_type[row] not in (3, 4, 11):
            return None
        b = bytearray(p.bytes(row))
        at = int(p.ihl[row]) + 8
        if len(b) < at + 20:
            return None
        ihl = (b[at] & 15) * 4
        if b[at + 9] not in NAMES or struct.unpack_from("!H", b, at + 6)[0] & OFFSET_MASK or len(b) < at + ihl + 4:
            return None
        src, dst = struct.unpack_from("!II", b, at + 12)
        sport, dport = struct.unpack_from("!HH", b, at + ihl)
        return b, at, Ask(b[at + 9], src, sport, dst, dport, int(p.mark[row]))

    def _icmp_request(self, trip: Trip, row: int) -> int:
        """An error about what a server answered: it goes to the server, which knows that answer by its own address."""
        p, t = trip.pkts, self.conns
        quoted = self._quoted(p, row)
        if quoted is None:
            return GO_ON
        b, at, inner = quoted
        c = t.find_client(inner.proto, inner.vaddr, inner.vport, inner.caddr, inner.cport) if inner.vport else -1
        fresh = c < 0
        if fresh:
            if not self._on("schedule_icmp"):
                return GO_ON
            service = self.find_service(inner.proto, inner.caddr, inner.cport, inner.mark)
            if service is None:
                return GO_ON
            ask = Ask(inner.proto, inner.vaddr, inner.vport, inner.caddr, inner.cport, inner.mark, True)
            made = self._schedule(trip, row, service, ask)
            if made is None:
                return GO_ON
            c = made[0]
            if c < 0:
                return ENDED
        if checksum(bytes(b[int(p.ihl[row]) :])):
            self._die(trip, row, "ipvs: wrong ICMP checksum")
            return ENDED
        self._count_one(c, int(p.length[row]), IN_PACKETS, IN_BYTES)
        fate = self._send_one(trip, row, c, local_allowed=trip.hook != "FORWARD")
        one = np.array([row])
        step = trip.paths.steps[int(t.known[c])]
        trip.step(one, step)
        trip.service[row] = t.service[c]
        if fate != ENDED:
            self._untrack(trip, one, np.array([c], np.int32))
            if t.method[c] == MASQ:
                self._rewrite_error(trip, row, b, at, step, int(t.daddr[c]), int(t.dport[c]), to_server=True)
            p.ipvs[row] = True
        if fate == SENT:
            trip.rewrite(one, "ttl", p.ttl[one] - 1, step)
            self._attach(trip, one, np.array([c], np.int32))
            if t.method[c] == TUNNEL:
                self._wrap(trip, row, c)
        if fresh and t.flags[c] & ONE_PACKET:
            self._expire(c, int(p.time[row]))
        elif fresh:
            self._set_timer(c, int(p.time[row]) + int(t.timeout[c]))
        return fate

    def _icmp_reply(self, trip: Trip, row: int) -> None:
        """An error about a request that was sent on to a server: to the client it is about the virtual address."""
        p, t = trip.pkts, self.conns
        quoted = self._quoted(p, row)
        if quoted is None:
            return
        b, at, inner = quoted
        c = t.find_server(inner.proto, inner.caddr, inner.cport, inner.vaddr, inner.vport)
        if c < 0:
            return
        one = np.array([row])
        if checksum(bytes(b[int(p.ihl[row]) :])):
            trip.end(one, "ipvs: wrong ICMP checksum")
            return
        step = trip.paths.steps[int(t.answer[c])]
        trip.step(one, step)
        trip.service[row] = t.service[c]
        self._rewrite_error(trip, row, b, at, step, int(t.vaddr[c]), int(t.vport[c]), to_server=False)
        if not self._rerouted(trip, one)[0]:
            return
        self._count_one(c, int(p.length[row]), OUT_PACKETS, OUT_BYTES)
        p.ipvs[row] = True
        self._untrack(trip, one, np.array([c], np.int32), reply=True)

    def _rewrite_error(
        self, trip: Trip, row: int, b: bytearray, at: int, step: Step, addr: int, port: int, *, to_server: bool
    ) -> None:
        """Outer address and the quoted one := addr:port. The quoted transport checksum stays as it is."""
        p = trip.pkts
        ihl, inner = int(p.ihl[row]), (b[at] & 15) * 4
        place, inner_place, port_place = (16, at + 12, at + inner) if to_server else (12, at + 16, at + inner + 2)
        old = struct.unpack_from("!I", b, inner_place)[0], struct.unpack_from("!H", b, port_place)[0]
        outer = struct.unpack_from("!I", b, place)[0]
        struct.pack_into("!I", b, inner_place, addr)
        struct.pack_into("!H", b, port_place, port)
        struct.pack_into("!H", b, at + 10, 0)
        struct.pack_into("!H", b, at + 10, checksum(bytes(b[at : at + inner])))
        struct.pack_into("!I", b, place, addr)
        struct.pack_into("!H", b, 10, 0)
        struct.pack_into("!H", b, 10, checksum(bytes(b[:ihl])))
        struct.pack_into("!H", b, ihl + 2, 0)
        struct.pack_into("!H", b, ihl + 2, checksum(bytes(b[ihl:])))
        p.rebuild(row, bytes(b))
        if not trip.remember:
            return
        side = "src" if to_server else "dst"
        told: list[tuple[str, int, int]] = [
            ("dst" if to_server else "src", outer, addr),
            (f"inner.{side}", old[0], addr),
            ("inner.sport" if to_server else "inner.dport", old[1], port),
        ]
        for field, before, after in told:
            if before != after:
                trip.changes.append((step, field, np.array([row]), np.array([before]), np.array([after])))

    # ---- where a run must end ----------------------------------------------------------------------------------

    def run_end(self, p: Packets, rows: Rows) -> int:
        """How many of `rows` may be asked together: requests of a run are dealt with apart from its replies.

        So a run ends before a packet whose connection had one the other way in it, when either changes the state;
        before a new connection after a reply that changed a server's load, and the other way round; before what may
        be the answer to a new connection; after a SYN on a connection that exists; and at the first timeout that the
        run itself may begin.
        """
        t = self.conns
        end = len(rows)
        if end < 2:
            return end
        proto = p.proto[rows]
        served = SERVED[proto]
        if not served.any():
            return end
        shortest = min(min(self.timeouts.values()), self.udp_timeout, FIRST_TIMEOUT) * SECOND
        end = int(np.searchsorted(p.time[rows], p.time[rows[0]] + shortest))
        to = np.where(served, t.client.find(*self._keys(p, rows, False)), -1).astype(np.int32)
        back = np.where(served, t.server.find(*self._keys(p, rows, True)), -1).astype(np.int32)
        back[to >= 0] = -1
        asked, answered = np.flatnonzero(to >= 0), np.flatnonzero(back >= 0)
        sharp = np.zeros(len(rows), bool)
        if len(asked):
            syn = (proto[asked] == TCP) & ((p.flags[rows[asked]] & SYN) != 0)
            sharp[asked] = syn | ~self._same_state(p, rows[asked], to[asked], False)
            if syn.any():
                end = min(end, int(asked[syn][0]) + 1)
        if len(answered):
            sharp[answered] = ~self._same_state(p, rows[answered], back[answered], True)
        if sharp.any() and len(asked) and len(answered):
            conn = np.maximum(to, back)
            way = np.zeros(t.capacity, np.uint8)
            edgy = np.zeros(t.capacity, bool)
            edgy[conn[sharp]] = True
            for k in np.flatnonzero((conn >= 0) & edgy[conn]).tolist():
                if k >= end:
                    break
                mine = 1 if to[k] >= 0 else 2
                if way[conn[k]] not in (0, mine):
                    end = k
                    break
                way[conn[k]] = mine
        new = np.flatnonzero(served & (to < 0) & (back < 0))
        if not len(new):
            return end
        wanted = self._may_serve(p, rows[new])
        fresh = new[wanted]
        if len(fresh):
            moved = answered[sharp[answered]]
            if len(moved):  # the later of the first two that meet
                end = min(end, _meeting(fresh, moved))
            rest = new[~wanted]
            rest = rest[self._servers.find((p.src[rows[rest]].astype(np.uint64),)) >= 0] if len(rest) else rest
            if len(rest):
                clients = (p.src[rows[fresh]].astype(np.int64) << 16) | p.sport[rows[fresh]]
                targets = (p.dst[rows[rest]].astype(np.int64) << 16) | p.dport[rows[rest]]
                both = np.isin(targets, clients)
                if both.any():
                    end = min(end, _meeting(fresh[np.isin(clients, targets)], rest[both]))
        return max(end, 1)

    # ---- for -m ipvs -------------------------------------------------------------------------------------------

    def lookup_request(self, trip: Trip, rows: Rows) -> I32:
        """int32[n]: connection whose request, already on its way to the server, each packet is; -1 for none."""
        p = trip.pkts
        src, dst = p.src[rows].astype(np.uint64), p.dst[rows].astype(np.uint64)
        ports = (p.sport[rows].astype(np.uint64) << np.uint64(16)) | p.dport[rows]
        found = self.conns.server.find(
            (src << np.uint64(32)) | dst, (p.proto[rows].astype(np.uint64) << np.uint64(32)) | ports
        )
        return np.where(SERVED[p.proto[rows]], found, -1).astype(np.int32)

    # ---- timers ------------------------------------------------------------------------------------------------

    @property
    def next_due(self) -> int:
        """ns before which no timer falls due (a lower bound), 2**62 when there is none."""
        return self._timers[0][0] if self._timers else NEVER

    def _set_timer(self, c: int, deadline: int) -> None:
        """Connections live until `deadline`. Later ones cost nothing: the old alarm rings, and is set anew."""
        t = self.conns
        t.deadline[c] = deadline
        if deadline < t.queued[c]:
            t.queued[c] = deadline
            heapq.heappush(self._timers, (deadline, int(t.serial[c]), c))

    def advance(self, now: int) -> None:
        """Let every timer ring that falls due until `now`, in order of time."""
        t, timers = self.conns, self._timers
        while timers and timers[0][0] <= now:
            at, serial, c = heapq.heappop(timers)
            if c < 0:
                SPECIAL[c](self, at)
                continue
            if not t.live[c] or t.serial[c] != serial or t.queued[c] != at:
                continue
            deadline = int(t.deadline[c])
            if deadline > at:
                t.queued[c] = deadline
                heapq.heappush(timers, (deadline, serial, c))
                continue
            t.queued[c] = NEVER
            self._expire(c, at)
            self._over()

    def _expire_now(self, c: int, now: int) -> None:
        """It goes before the next packet comes (Linux: with the next tick of its timer)."""
        self._set_timer(c, now)

    def _expire(self, c: int, now: int, *, deleted: bool = False) -> None:
        """Its time is over. What controls others stays, a minute at a time."""
        t = self.conns
        if t.children[c]:
            t.timeout[c] = CONTROL_LIFE * SECOND
            self._set_timer(c, now + CONTROL_LIFE * SECOND)
            return
        if t.client_key[c] >= 0 or t.server_key[c] >= 0:
            t.delist(c)
        t.live[c] = False
        parent = int(t.parent[c])
        if parent >= 0:
            t.parent[c] = -1
            t.children[parent] -= 1
            if deleted and not t.children[parent] and not t.flags[parent] & ASSURED:
                self._expire(parent, now, deleted=True)
        flags = int(t.flags[c])
        if flags & TRACKED and not flags & (ONE_PACKET | TEMPLATE) and t.cport[c]:
            self._forget_flow(c, now)
        number = int(t.dest[c])
        if number >= 0:
            dest = self._dests[number]
            if flags & TEMPLATE:
                dest.persistent -= 1
            elif flags & INACTIVE:
                dest.inactive -= 1
            else:
                dest.active -= 1
            dest.relieved()
        self._spent.append(c)

    def _over(self) -> None:
        """Numbers of connections that went may be given out again, once nobody under way holds them."""
        if self._depth:
            return
        for c in self._spent:
            self.conns.release(c)
        self._spent.clear()

    def _forget_flow(self, c: int, now: int) -> None:
        """The tracked flow of a connection goes with it."""
        t, ct = self.conns, self.node.conntrack
        holder = ct.holder((int(t.caddr[c]), int(t.vaddr[c]), int(t.cport[c]), int(t.vport[c]), int(t.proto[c])), now)
        if holder >= 0:
            ct.kill(holder >> 1)

    def _flush_orphans(self, now: int) -> None:
        """expire_nodest_conn: connections of deleted servers go, and templates that then control nothing."""
        t = self.conns
        for c in np.flatnonzero(t.live).tolist():
            dest = int(t.dest[c])
            if not t.live[c] or dest < 0 or self._up[dest] or t.children[c]:
                continue
            parent = int(t.parent[c])
            self._expire(c, now, deleted=True)
            if parent >= 0 and t.live[parent] and not t.children[parent]:
                self._expire(parent, now, deleted=True)
        self._over()

    def _empty_trash(self, now: int) -> None:
        """Deleted servers that nothing has used for two minutes are forgotten."""
        kept = []
        for dest in self._trash:
            if dest.active or dest.inactive or dest.persistent:
                kept.append(dest)
            elif dest.idle < 0:
                dest.idle = now
                kept.append(dest)
            elif now < dest.idle + TRASH_LIFE:
                kept.append(dest)
        self._trash = kept
        if kept:
            heapq.heappush(self._timers, (now + TRASH_LIFE // 2, 0, -2))

    # ---- changes -----------------------------------------------------------------------------------------------

    def _new_stat(self) -> int:
        if self._stats_used == len(self.counters):
            self.counters = np.concatenate([self.counters, np.zeros_like(self.counters)])
        self._stats_used += 1
        return self._stats_used - 1

    def add_service(self, service: Service, scheduler: str) -> None:
        """Raises Refused when there is one already, or no such scheduler."""
        if self.named(service.identity) is not None:
            raise Refused("Service already exists", status=255)
        if scheduler not in SCHEDULERS:
            raise Refused("Scheduler or persistence engine not found", status=255)
        service.scheduler = SCHEDULERS[scheduler](service)
        service.stat = self._new_stat()
        self.services.append(service)
        if service.mark:
            self._by_mark[service.mark] = service
        else:
            self._by_address[service.proto, service.addr, service.port] = service
            self._service_table.add_one(_service_key(service))
        if service.mark or service.port in (0, FTP):
            self._wildcards += 1
            self._ftp += service.port == FTP

    def named(self, identity: tuple[int, int, int, int]) -> Service | None:
        proto, addr, port, mark = identity
        return self._by_mark.get(mark) if mark else self._by_address.get((proto, addr, port))

    def delete_service(self, service: Service, now: int) -> None:
        """Its servers are deleted with it; connections stay."""
        self.services.remove(service)
        if service.mark:
            del self._by_mark[service.mark]
        else:
            del self._by_address[service.proto, service.addr, service.port]
            key = _service_key(service)
            self._service_table.remove_one(self._service_table.find_one(key))
        if service.mark or service.port in (0, FTP):
            self._wildcards -= 1
            self._ftp -= service.port == FTP
        for dest in service.destinations:
            self._bin(dest, now)
        service.destinations = []

    def add_destination(self, service: Service, addr: int, port: int, how: dict[str, int]) -> None:
        """`how`: method, weight, upper, lower. A deleted server of the same service comes back as it was."""
        self._check_thresholds(how)
        if any(d.addr == addr and d.port == port for d in service.destinations):
            raise Refused("Destination already exists", status=255)
        dest = next((d for d in self._trash if (d.home, d.addr, d.port) == (service.identity, addr, port)), None)
        if dest is None:
            if self._address_kind(addr) not in ("UNICAST", "LOCAL"):
                raise Refused("Invalid operation.  Possibly wrong module version, address not unicast, ...", status=255)
            dest = Destination(len(self._dests), service, addr, port)
            self._dests.append(dest)
            dest.stat = self._new_stat()
            self._up = np.append(self._up, True)
            self._dest_stat = np.append(self._dest_stat, np.int32(dest.stat))
            self._service_stat = np.append(self._service_stat, np.int32(service.stat))
            self._way = np.concatenate([self._way, np.full((1, 5), -1, np.int64)])
        else:
            self._trash.remove(dest)
            if dest.service is not service:
                dest.service = service
                self.counters[dest.stat] = 0
        uses = self._server_uses.get(addr, 0)
        self._server_uses[addr] = uses + 1
        if not uses:
            self._servers.add_one(addr)
        dest.idle = -1
        dest.last_weight = how["weight"]
        self._set_up(dest, service, how)
        service.destinations.insert(0, dest)
        service.scheduler.added(dest)

    def _set_up(self, dest: Destination, service: Service, how: dict[str, int]) -> None:
        dest.available = True
        self._up[dest.number] = True
        self._service_stat[dest.number] = service.stat
        dest.method, dest.weight = how["method"], how["weight"]
        service.tracks |= dest.method == MASQ and service.port == FTP
        if how["weight"]:
            dest.last_weight = how["weight"]
        if how["upper"] == 0 or how["upper"] > dest.upper:
            dest.overloaded = False
        dest.upper, dest.lower = how["upper"], how["lower"]

    @staticmethod
    def _check_thresholds(how: dict[str, int]) -> None:
        if how["lower"] > how["upper"]:
            raise Refused("Numerical result out of range", status=255)

    def edit_destination(self, service: Service, dest: Destination, how: dict[str, int]) -> None:
        """New settings; its place in the list and its connections stay."""
        self._check_thresholds(how)
        self._set_up(dest, service, how)
        service.scheduler.edited(dest)

    def set_timeouts(self, tcp: int, tcp_fin: int, udp: int) -> None:
        """`ipvsadm --set`, in seconds; 0 keeps what is."""
        self.timeouts[ES] = tcp or self.timeouts[ES]
        self.timeouts[FW] = tcp_fin or self.timeouts[FW]
        self.udp_timeout = udp or self.udp_timeout

    def _bin(self, dest: Destination, now: int) -> None:
        dest.available = False
        self._up[dest.number] = False
        dest.idle = -1
        if not self._trash:
            heapq.heappush(self._timers, (now + TRASH_LIFE // 2, 0, -2))
        self._trash.append(dest)
        self._server_uses[dest.addr] -= 1
        if not self._server_uses[dest.addr]:
            self._servers.remove_one(self._servers.find_one(dest.addr))
        if self._on("expire_nodest_conn"):
            heapq.heappush(self._timers, (now, 0, -1))

    def delete_destination(self, service: Service, dest: Destination, now: int) -> None:
        """Connections that it has stay, and wait for it (or go, with expire_nodest_conn)."""
        place = service.destinations.index(dest)
        del service.destinations[place]
        dest.available = False
        service.scheduler.deleted(dest, place)
        self._bin(dest, now)

    def flush(self, now: int) -> None:
        """`ipvsadm -C`: no service any more."""
        for service in list(self.services):
            self.delete_service(service, now)

    def zero(self, service: Service | None) -> None:
        """`ipvsadm -Z`: counters of one service and its servers, or all."""
        if service is None:
            self.counters[:] = 0
        else:
            self.counters[[service.stat, *(d.stat for d in service.destinations)]] = 0

    # ---- texts -------------------------------------------------------------------------------------------------

    def restore(self, text: str, file: str, problems: list[Problem]) -> None:
        """Take `ipvsadm -Sn` text; what cannot be taken goes to `problems`. Comments are passed over."""
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if words[0] == "ipvsadm":
                words = words[1:]
            try:
                if words and words[0] in ("-L", "-l", "-S", "-R", "--list", "--save", "--restore"):
                    raise Refused(f"`{words[0]}` changes nothing: only lines that add, edit or delete belong here")
                Command(words).run(self, 0)
            except (Refused, Unsupported) as e:
                for problem in e.problems:
                    kind = REFUSED if isinstance(e, Refused) else UNSUPPORTED
                    problems.append(
                        Problem(kind, problem.what, file, number, line, _span(line, problem.text), problem.hint)
                    )

    def run(self, argv: list[str], now: int, stdin: str = "") -> str:
        """An `ipvsadm` command (with or without that first word); what it prints. Raises Refused, Unsupported."""
        words = argv[1:] if argv and argv[0].rsplit("/", 1)[-1] == "ipvsadm" else argv
        return Command(words).run(self, now, stdin)

    def save(self) -> str:
        """`ipvsadm -Sn`."""
        return "".join(f"{line}\n" for service in self._sorted(self.services) for line in self._save_lines(service))

    def _save_lines(self, service: Service) -> Iterator[str]:
        name = (
            f"-f {_signed(service.mark)}"
            if service.mark
            else f"{PROTO_OPTIONS[service.proto]} {dotted(service.addr)}:{service.port}"
        )
        line = f"-A {name} -s {service.scheduler.name}"
        if service.timeout:
            line += f" -p {service.timeout}"
            if service.netmask != 0xFFFFFFFF:
                line += f" -M {dotted(service.netmask)}"
        if service.one_packet:
            line += " -o"
        if service.flags:
            line += " -b " + ",".join(service.flags)
        yield line
        for dest in _merge_sorted(service.destinations, _dest_order):
            tunnel = " --tun-type ipip" if dest.method == TUNNEL else ""
            yield f"-a {name} -r {dest.text} {METHOD_OPTIONS[dest.method]} -w {dest.weight}{tunnel}"

    def _sorted(self, services: list[Service]) -> list[Service]:
        known = sorted(services, key=lambda s: s.identity)
        return _merge_sorted(known, _service_order)

    def list(
        self, *, services: list[Service] | None = None, what: str = "", exact: bool = False, sort: bool = True
    ) -> str:
        """`ipvsadm -Ln`; `what`: "", "stats", "thresholds", "persistent-conn" or "tun-info"."""
        self.advance(self.node.now)
        out = [] if services is not None else [f"IP Virtual Server version 1.2.1 (size={CONN_TAB_SIZE})"]
        out += LIST_HEADS[what]
        chosen = list(reversed(self.services)) if services is None else services
        for service in self._sorted(chosen) if sort else chosen:
            name = (
                f"FWM  {_signed(service.mark)}"
                if service.mark
                else f"{NAMES[service.proto].upper():<4} {dotted(service.addr)}:{service.port}"
            )
            if what == "stats":
                out.append(f"{name:<33}" + self._numbers(service.stat, exact))
            else:
                out.append(name + self._settings(service))
            for dest in _merge_sorted(service.destinations, _dest_order) if sort else service.destinations:
                out.append(f"  -> {dest.text:<28}" + self._dest_line(dest, what, exact))
        return "".join(f"{line}\n" for line in out)

    def _settings(self, service: Service) -> str:
        line = f" {service.scheduler.name}"
        if service.flags:
            line += f" ({','.join(service.flags)})"
        if service.timeout:
            line += f" persistent {service.timeout}"
            if service.netmask != 0xFFFFFFFF:
                line += f" mask {dotted(service.netmask)}"
        return line + (" ops" if service.one_packet else "")

    def _dest_line(self, d: Destination, what: str, exact: bool) -> str:
        if what == "stats":
            return self._numbers(d.stat, exact)
        if what == "thresholds":
            return f" {d.upper:<10d} {d.lower:<10d} {d.active:<10d} {d.inactive:<10d}"
        if what == "persistent-conn":
            return f" {d.weight:<9d} {d.persistent:<11d} {d.active:<10d} {d.inactive:<10d}"
        tunnel = f" {'ipip' if d.method == TUNNEL else 'n/a':<13}" if what == "tun-info" else ""
        return f" {METHODS[d.method]:<7}{tunnel} {d.weight:<6d} {d.active:<10d} {d.inactive:<10d}"

    def _numbers(self, stat: int, exact: bool) -> str:
        return "".join(_large(int(n), exact) for n in self.counters[stat])

    def stats(self) -> str:
        """`ipvsadm -Ln --stats --exact`, up to the last packet (Linux shows them up to two seconds late)."""
        return self.list(what="stats", exact=True)

    def connections(self, now: int) -> str:
        """`ipvsadm -Lnc`, oldest first (Linux: in hash order)."""
        self.advance(now)
        t = self.conns
        out = ["IPVS connection entries", "pro expire state       source             virtual            destination"]
        live = np.flatnonzero(t.live & ((t.flags & FOUND) != 0))
        for c in live[np.argsort(t.serial[live])].tolist():
            proto, flags = int(t.proto[c]), int(t.flags[c])
            if flags & TEMPLATE:
                state = "ASSURED" if flags & ASSURED else "NONE"
            else:
                state = "UDP" if proto == UDP else (STATES if proto == TCP else SCTP_STATES)[int(t.state[c])]
            client, virtual, server = (
                f"{dotted(int(addr[c]))}:{port[c]}"
                for addr, port in ((t.caddr, t.cport), (t.vaddr, t.vport), (t.daddr, t.dport))
            )
            name = NAMES[proto].upper() if proto else "IP"
            out.append(f"{name:<3} {minutes(int(t.deadline[c]), now)}  {state:<11} {client:<18} {virtual:<18} {server}")
        return "".join(f"{line}\n" for line in out)

    # ---- invariants --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that counts, keys and links between connections agree."""
        t = self.conns
        live = np.flatnonzero(t.live)
        for dest in self._dests:
            mine = live[t.dest[live] == dest.number]
            flags = t.flags[mine]
            template, idle = (flags & TEMPLATE) != 0, (flags & INACTIVE) != 0
            assert dest.persistent == int(template.sum()), "templates of a server"
            assert dest.inactive == int((~template & idle).sum()), "inactive connections of a server"
            assert dest.active == int((~template & ~idle).sum()), "active connections of a server"
            assert dest.available == bool(self._up[dest.number]), "server column"
        for c in live.tolist():
            assert t.children[c] == int((t.parent[live] == c).sum()), "children of a template"
            assert t.queued[c] <= t.deadline[c], "a timer that rings too late"
        t.client.table.check()
        t.server.table.check()


TRASH_LIFE = 120 * SECOND
CONN_TAB_SIZE = 4096
SPECIAL: dict[int, Callable[[Ipvs, int], None]] = {-1: Ipvs._flush_orphans, -2: Ipvs._empty_trash}


def _meeting(a: Rows, b: Rows) -> int:
    """First place by which there was one of both (ascending places, none empty)."""
    return max(int(a[0]), int(b[0]))


def _service_key(service: Service) -> int:
    return service.proto << 48 | service.addr << 16 | service.port


# ---- how ipvsadm prints -----------------------------------------------------------------------------------------

PROTO_OPTIONS = {TCP: "-t", UDP: "-u", SCTP: "--sctp-service"}
_STATS_HEAD = "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes"
LIST_HEADS = {
    "": [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ],
    "stats": [_STATS_HEAD, "  -> RemoteAddress:Port"],
    "thresholds": [
        "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ],
    "persistent-conn": [
        "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ],
    "tun-info": [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn",
    ],
}


def _large(n: int, exact: bool) -> str:
    """A counter in nine columns, as ipvsadm abbreviates it.

    >>> _large(99999999, False), _large(123456789, False), _large(5 * 10**12, False), _large(123456789, True)
    (' 99999999', '  123456K', '    5000G', ' 123456789')
    """
    if exact:
        return f"{n:>9d}" if n < 10**8 else f" {n:d}"
    if n < 10**8:
        return f"{n:>9d}"
    for limit, unit, letter in ((10**9, 10**3, "K"), (10**11, 10**6, "M"), (10**14, 10**9, "G")):
        if n < limit:
            return f"{n // unit:>8d}{letter}"
    return f"{n // 10**12:>8d}T"


def _signed(word: int) -> int:
    """A 32-bit word as a signed int.

    >>> _signed(7), _signed(0xFFFFFFFF)
    (7, -1)
    """
    return word - (1 << 32) if word & 0x80000000 else word


def _service_order(a: Service, b: Service) -> int:
    """As ipvsadm sorts: it subtracts, so addresses more than half the space apart compare the other way round."""
    return (
        _signed((a.mark - b.mark) & 0xFFFFFFFF)
        or a.proto - b.proto
        or _signed((a.addr - b.addr) & 0xFFFFFFFF)
        or a.port - b.port
    )


def _dest_order(a: Destination, b: Destination) -> int:
    return _signed((a.addr - b.addr) & 0xFFFFFFFF) or a.port - b.port


def _merge_sorted(items: list[Any], order: Callable[[Any, Any], int]) -> list[Any]:
    """A merge sort, spelt out: with an order that is not transitive (see _service_order) the method shows.

    >>> _merge_sorted([3, 1, 2], lambda a, b: a - b)
    [1, 2, 3]
    """
    if len(items) < 2:
        return list(items)
    if len(items) > 16 and all(getattr(x, "addr", 0) < 1 << 31 for x in items):
        return sorted(items, key=cmp_to_key(order))  # all in one half: an order like any other
    half = len(items) // 2
    left, right = _merge_sorted(items[:half], order), _merge_sorted(items[half:], order)
    out, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if order(left[i], right[j]) <= 0:
            out.append(left[i])
            i += 1
        else:
            out.append(right[j])
            j += 1
    return out + left[i:] + right[j:]


def _span(line: str, word: str) -> tuple[int, int] | None:
    at = line.find(word) if word else -1
    return None if at < 0 else (at, at + len(word))


# ---- commands ---------------------------------------------------------------------------------------------------

ILLEGAL, USAGE, KERNEL = 2, 255, 255  # exit statuses: wrong options, unknown options, what the kernel refused
LONGEST = 31 * 24 * 3600

_VERBS = {
    "add-service": "A", "edit-service": "E", "delete-service": "D", "clear": "C", "restore": "R", "save": "S",
    "add-server": "a", "edit-server": "e", "delete-server": "d", "list": "Ll", "zero": "Z", "set": "",
    "start-daemon": "", "stop-daemon": "", "help": "h",
}  # fmt: skip
#: long name -> (letter, how many words follow: 0, 1, or -1 for "one, perhaps")
_OPTIONS = {
    "tcp-service": ("t", 1), "udp-service": ("u", 1), "sctp-service": ("", 1), "fwmark-service": ("f", 1),
    "scheduler": ("s", 1), "persistent": ("p", -1), "netmask": ("M", 1), "real-server": ("r", 1),
    "masquerading": ("m", 0), "ipip": ("i", 0), "gatewaying": ("g", 0), "weight": ("w", 1), "u-threshold": ("x", 1),
    "l-threshold": ("y", 1), "numeric": ("n", 0), "connection": ("c", 0), "timeout": ("", 0), "daemon": ("", 0),
    "stats": ("", 0), "rate": ("", 0), "thresholds": ("", 0), "persistent-conn": ("", 0), "nosort": ("", 0),
    "sort": ("", 0), "exact": ("", 0), "ipv6": ("6", 0), "ops": ("o", 0), "pe": ("", 1), "sched-flags": ("b", 1),
    "tun-info": ("", 0), "tun-type": ("", 1), "tun-port": ("", 1), "tun-nocsum": ("", 0), "tun-csum": ("", 0),
    "tun-remcsum": ("", 0), "syncid": ("", 1), "mcast-interface": ("", 1), "sync-maxlen": ("", 1),
}  # fmt: skip
_LETTERS = {letter: (name, words) for name, (letter, words) in _OPTIONS.items() if letter}
_VERB_LETTERS = {letter: name for name, letters in _VERBS.items() for letter in letters}
_GROUPS = {
    **dict.fromkeys(("tcp-service", "udp-service", "sctp-service", "fwmark-service"), "service-address"),
    **dict.fromkeys(("masquerading", "ipip", "gatewaying"), "forwarding-method"),
}
_TUNNEL = {"tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"}
_SERVICE = {"scheduler", "persistent", "netmask", "ops", "pe", "sched-flags", "ipv6"}
_SERVER = {"forwarding-method", "weight", "u-threshold", "l-threshold", "ipv6"} | _TUNNEL
_LIST = {
    "service-address", "numeric", "connection", "timeout", "daemon", "stats", "rate", "thresholds", "persistent-conn",
    "nosort", "sort", "exact", "ipv6", "tun-info",
}  # fmt: skip
_ADDRESS, _BOTH = {"service-address"}, {"service-address", "real-server"}
#: verb -> (options that it needs, options that it takes)
_TAKES: dict[str, tuple[set[str], set[str]]] = {
    "add-service": (_ADDRESS, _SERVICE), "edit-service": (_ADDRESS, _SERVICE), "delete-service": (_ADDRESS, {"ipv6"}),
    "clear": (set(), set()), "restore": (set(), set()), "save": (set(), {"numeric"}),
    "add-server": (_BOTH, _SERVER), "edit-server": (_BOTH, _SERVER), "delete-server": (_BOTH, {"ipv6"}),
    "list": (set(), _LIST), "zero": (set(), {"service-address", "ipv6"}), "set": (set(), set()),
    "start-daemon": (set(), {"syncid", "mcast-interface", "sync-maxlen"}), "stop-daemon": (set(), {"syncid"}),
    "help": (set(), set(_OPTIONS)),
}  # fmt: skip
_METHODS = {"masquerading": MASQ, "ipip": TUNNEL, "gatewaying": ROUTE}
_PROTOS = {"tcp-service": TCP, "udp-service": UDP, "sctp-service": SCTP}
_FLAG_NAMES = {"flag-1": 0, "flag-2": 1, "flag-3": 2, "sh-fallback": 0, "sh-port": 1, "mh-fallback": 0, "mh-port": 1}
_TRY = "Try `ipvsadm -h' or 'ipvsadm --help' for more information."


class Command:
    """One `ipvsadm` command line. Raises Refused in the tool's own words and with its exit status."""

    def __init__(self, words: list[str]) -> None:
        self.verb = ""
        self.given: dict[str, str] = {}  # option (or the group it belongs to) -> its word
        self.chosen: dict[str, str] = {}  # group -> which of its options
        self.rest: list[str] = []
        if not words:
            self.verb = "list"
        self._read(words)
        if not self.verb:
            raise Refused(_TRY, status=USAGE)
        if self.rest and self.verb != "set":
            raise Refused(f"unexpected argument {self.rest[0]}", status=ILLEGAL, text=self.rest[0])
        self._allowed()

    def _read(self, words: list[str]) -> None:
        todo = list(words)
        while todo:
            word = todo.pop(0)
            if word == "--":
                self.rest += todo
                break
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                if name in _VERBS:
                    self._take_verb(name, word)
                elif name in _OPTIONS:
                    self._take(name, _OPTIONS[name][1], value if equals else None, todo, word)
                else:
                    raise Refused(f"{word}: unknown option", status=USAGE, text=word)
            elif word.startswith("-") and len(word) > 1:
                self._read_letters(word, todo)
            else:
                self.rest.append(word)

    def _read_letters(self, word: str, todo: list[str]) -> None:
        at = 1
        while at < len(word):
            letter = word[at]
            at += 1
            if letter in _VERB_LETTERS:
                self._take_verb(_VERB_LETTERS[letter], f"-{letter}")
            elif letter in _LETTERS:
                name, words = _LETTERS[letter]
                joined = word[at:].removeprefix("=") or None
                self._take(name, words, joined if words else None, todo, word)
                if words and joined is not None:
                    return
            else:
                raise Refused(f"{word}: unknown option", status=USAGE, text=word)

    def _take_verb(self, name: str, word: str) -> None:
        if self.verb:
            raise Refused(f"invalid option `{word}'", status=ILLEGAL, text=word)
        self.verb = name

    def _take(self, name: str, words: int, value: str | None, todo: list[str], word: str) -> None:
        if not self.verb:  # the command comes first
            raise Refused(_TRY, status=USAGE)
        if words == 1 and value is None:
            if not todo:
                raise Refused(f"{word}: missing argument", status=USAGE, text=word)
            value = todo.pop(0)
        elif words < 0 and value is None and todo and not todo[0].startswith("-"):
            value = todo.pop(0)
        group = _GROUPS.get(name, name)
        if group in self.given:
            raise Refused(f"multiple '{group}' options specified", status=ILLEGAL, text=word)
        self.given[group], self.chosen[group] = value or "", name

    def _allowed(self) -> None:
        needs, takes = _TAKES[self.verb]
        shown = {"clear": "flush"}.get(self.verb, self.verb)
        for name in sorted(needs - set(self.given), reverse=True):
            raise Refused(f"You need to supply the '{name}' option for the '{shown}' command", status=ILLEGAL)
        for name in self.given:
            if name not in needs | takes:
                raise Refused(f"Illegal '{name}' option with the '{shown}' command", status=ILLEGAL)

    # ---- words ---------------------------------------------------------------------------------------------------

    def _number(self, name: str, lowest: int, highest: int, message: str) -> int:
        word = self.given[name]
        if not (word.isascii() and word.isdigit() and lowest <= int(word) <= highest):
            raise Refused(message.format(word), status=ILLEGAL, text=word)
        return int(word)

    def _endpoint(self, word: str, proto: int, message: str) -> tuple[int, int | None]:
        """(address, port or None) of `addr[:port]`."""
        if word.startswith("[") or word.count(":") > 1:
            raise Unsupported(f"IPv6 address {word}", text=word, hint="IPVS is modelled for IPv4 only")
        host, colon, name = word.partition(":")
        port: int | None = None
        try:
            if host != host.strip():
                raise OSError
            addr = int.from_bytes(socket.inet_aton(host), "big")
            if colon:
                port = (
                    int(name)
                    if name.isascii() and name.isdigit()
                    else socket.getservbyname(name, NAMES.get(proto, "tcp"))
                )
                if port > 0xFFFF:
                    raise OSError
        except (OSError, ValueError):
            raise Refused(message, status=ILLEGAL, text=word) from None
        return addr, port

    def _identity(self) -> tuple[int, int, int, int]:
        option, word = self.chosen["service-address"], self.given["service-address"]
        if "ipv6" in self.given:
            raise Unsupported("-6: IPVS is modelled for IPv4 only", text="-6")
        if option == "fwmark-service":
            return 0, 0, 0, self._number("service-address", 1, 0xFFFFFFFF, "invalid fwmark value `{}' specified")
        proto = _PROTOS[option]
        addr, port = self._endpoint(word, proto, "illegal virtual server address[:port] specified")
        return proto, addr, port or 0, 0

    def _service_of(self, ipvs: Ipvs, message: str, status: int = KERNEL) -> Service:
        service = ipvs.named(self._identity())
        if service is None:
            raise Refused(message, status=status, text=self.given["service-address"])
        return service

    # ---- deeds -----------------------------------------------------------------------------------------------------

    def run(self, ipvs: Ipvs, now: int, stdin: str = "") -> str:
        """Do it; returns what it prints."""
        deed = getattr(self, "_" + self.verb.replace("-", "_"))
        out: str | None = deed(ipvs, now, stdin)
        return out or ""

    def _add_service(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = Service(*self._identity())
        scheduler = self._settings(service)
        ipvs.add_service(service, scheduler)

    def _edit_service(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        wish = Service(*self._identity())
        scheduler = self._settings(wish)
        service = self._service_of(ipvs, "No such service")
        if scheduler not in SCHEDULERS:
            raise Refused("Scheduler or persistence engine not found", status=KERNEL, text=scheduler)
        service.flags, service.timeout, service.netmask = wish.flags, wish.timeout, wish.netmask
        service.one_packet = wish.one_packet
        if service.scheduler.name != scheduler:
            service.scheduler = SCHEDULERS[scheduler](service)

    def _settings(self, service: Service) -> str:
        """Read the options of a service into it; the scheduler's name."""
        scheduler = self.given.get("scheduler") or "wlc"
        if "pe" in self.given:
            if self.given["pe"] != "sip":
                raise Refused("Scheduler or persistence engine not found", status=KERNEL, text=self.given["pe"])
            raise Unsupported("persistence engine `sip'", text="--pe")
        if "persistent" in self.given:
            service.timeout = 360
            if self.given["persistent"]:
                service.timeout = self._number("persistent", 1, LONGEST, "invalid timeout value `{}' specified")
        if "netmask" in self.given:
            try:
                service.netmask = int.from_bytes(socket.inet_aton(self.given["netmask"]), "big")
            except OSError:
                raise Refused(
                    "illegal virtual server persistent mask specified", status=ILLEGAL, text=self.given["netmask"]
                ) from None
        if "ops" in self.given:
            if service.proto not in (UDP, 0):
                raise Refused("One-Packet Scheduling is only for UDP virtual services", status=ILLEGAL)
            service.one_packet = True
        if not service.mark and not service.port and not service.timeout:
            raise Refused(
                "Zero port specified for non-persistent service", status=ILLEGAL, text=self.given["service-address"]
            )
        service.flags = self._flags(scheduler)
        return scheduler

    def _flags(self, scheduler: str) -> tuple[str, ...]:
        bits = set()
        for word in filter(None, self.given.get("sched-flags", "").split(",")):
            if word not in _FLAG_NAMES:
                raise Refused(f"invalid scheduler flag `{word}'", status=ILLEGAL, text=word)
            if not word.startswith(("flag-", f"{scheduler}-")):
                raise Refused(f"incompatible scheduler flag `{word}'", status=ILLEGAL, text=word)
            bits.add(_FLAG_NAMES[word])
        own = SCHEDULERS[scheduler].FLAGS if scheduler in SCHEDULERS else ()
        return tuple(own[bit] if bit < len(own) else f"flag-{bit + 1}" for bit in sorted(bits))

    def _delete_service(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        ipvs.delete_service(self._service_of(ipvs, "No such service"), now)

    def _clear(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        ipvs.flush(now)

    def _restore(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        if not stdin:
            raise Unsupported(
                "ipvsadm -R reads its standard input, which a command here does not have",
                hint="put the lines into ipvsadm.save, or run them one by one",
            )
        for line in stdin.splitlines():
            command = Command(line.split())
            try:
                command.run(ipvs, now)
            except Refused as e:
                if e.status != KERNEL:
                    raise  # what only the kernel refuses is told, and the next line is read

    def _save(self, ipvs: Ipvs, now: int, stdin: str) -> str:
        self._numeric()
        return ipvs.save()

    def _numeric(self) -> None:
        if "numeric" not in self.given:
            raise Unsupported("names of hosts and ports are not looked up", hint="add -n")

    def _server(self, service: Service) -> tuple[int, int, dict[str, int]]:
        """(address, port, settings) of `-r`."""
        method = _METHODS[self.chosen["forwarding-method"]] if "forwarding-method" in self.given else ROUTE
        addr, port = self._endpoint(
            self.given["real-server"], service.proto, "illegal real server address[:port] specified"
        )
        how = {"method": method, "weight": 1, "upper": 0, "lower": 0}
        for name, key in (("weight", "weight"), ("u-threshold", "upper"), ("l-threshold", "lower")):
            if name in self.given:
                how[key] = self._number(name, 0, 0x7FFFFFFF, f"illegal {name.replace('-', '_')} specified")
        self._tunnel(method)
        if port is None:
            port = service.port
        if method != MASQ and not service.mark and self.verb != "delete-server":
            port = service.port  # no translation, so no other port
        return addr, port, how

    def _tunnel(self, method: int) -> None:
        if not _TUNNEL & set(self.given):
            return
        kind = self.given.get("tun-type", "ipip")
        if kind not in ("ipip", "gue", "gre"):
            raise Refused("illegal tunnel type specified", status=ILLEGAL, text=kind)
        if method != TUNNEL:
            raise Refused("Tunnel options conflict with forward method", status=ILLEGAL)
        if kind == "gue" and "tun-port" not in self.given:
            raise Refused("You need to supply the 'tun-port' option for the 'gue' tunnel type", status=ILLEGAL)
        if kind != "gue" and "tun-port" in self.given:
            raise Refused(f"Illegal 'tun-port' option with the '{kind}' tunnel type", status=ILLEGAL)
        if kind != "ipip":
            raise Unsupported(f"tunnels of type {kind}", text=kind, hint="ipip is modelled")

    def _add_server(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = self._service_of(ipvs, "Service not defined")
        ipvs.add_destination(service, *self._server(service))

    def _edit_server(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = self._service_of(ipvs, "Service not defined")
        addr, port, how = self._server(service)
        ipvs.edit_destination(service, self._destination(service, addr, port), how)

    def _delete_server(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = self._service_of(ipvs, "Service not defined")
        addr, port, _ = self._server(service)
        ipvs.delete_destination(service, self._destination(service, addr, port), now)

    def _destination(self, service: Service, addr: int, port: int) -> Destination:
        for dest in service.destinations:
            if dest.addr == addr and dest.port == port:
                return dest
        raise Refused("No such destination", status=KERNEL, text=self.given["real-server"])

    def _zero(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        ipvs.zero(self._service_of(ipvs, "No such service") if "service-address" in self.given else None)

    def _set(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        if len(self.rest) != 3:
            raise Refused("--set option requires 3 timeout values", status=ILLEGAL)
        values = []
        for word in self.rest:
            if not (word.isascii() and word.isdigit() and int(word) <= LONGEST):
                raise Refused(f"invalid timeout value `{word}' specified", status=ILLEGAL, text=word)
            values.append(int(word))
        ipvs.set_timeouts(*values)

    def _list(self, ipvs: Ipvs, now: int, stdin: str) -> str:
        given = self.given
        shows = {"stats", "rate", "thresholds", "persistent-conn", "tun-info"} & set(given)
        for name in ("connection", "timeout", "daemon"):
            if name not in given:
                continue
            for other in ("service-address", "connection", "timeout", "daemon"):
                if other in given and other != name:
                    first, second = (other, name) if name == "connection" else (name, other)
                    raise Refused(
                        f"The option '{first}' conflicts with the '{second}' option in the 'list' command",
                        status=ILLEGAL,
                    )
            if shows - {"tun-info"}:
                raise Refused("options conflicts in the list command", status=ILLEGAL)
        if "timeout" in given:
            return f"Timeout (tcp tcpfin udp): {ipvs.timeouts[ES]} {ipvs.timeouts[FW]} {ipvs.udp_timeout}\n"
        if "daemon" in given:
            return ""
        self._numeric()
        if "connection" in given:
            return ipvs.connections(now)
        if "rate" in given and "stats" not in given:
            raise Unsupported("--rate: the kernel's two-second estimator is not modelled", hint="--stats is exact")
        chosen = [self._service_of(ipvs, "No such service", 1)] if "service-address" in given else None
        what = next((w for w in ("stats", "thresholds", "persistent-conn", "tun-info") if w in given), "")
        return ipvs.list(services=chosen, what=what, exact="exact" in given, sort="nosort" not in given)

    def _start_daemon(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        raise Unsupported("connection synchronisation between directors")

    def _stop_daemon(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        raise Refused("No such process", status=KERNEL)

    def _help(self, ipvs: Ipvs, now: int, stdin: str) -> str:
        return "ipvsadm v1.31, as netemu reads it: see man ipvsadm\n"
