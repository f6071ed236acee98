"""IPVS: virtual services, the real servers behind them, and the connections between clients and servers.

    INPUT, OUTPUT   request:  known connection? --> its server
                              else a service's? --> the scheduler chooses --> a new connection
                              --> translated, routed to the server, and back in at OUTPUT
    INPUT, FORWARD, OUTPUT    reply: of a known connection? --> source is the virtual address again

Services and servers are objects: there are few, and people change them; what packets change of servers stands in
columns, which these objects show. Connections stand in columns, found by hash tables under two keys: how the client's
packets look, and how the server's do. Packets are dealt with as columns, as far as their order does not matter; the
rest goes one by one, in arrival order, since schedulers read what they write. What Linux does here is the same in 6.1
and 6.18.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from netemu import ipvsftp, routing
from netemu.clock import SECOND, at_jiffy, jiffies, minutes
from netemu.conntrack import CONFIRMED, DST_NAT, SEQ_ADJUST, SRC_NAT, dotted
from netemu.errors import Refused
from netemu.hashing import Table, repeats, siphash13, span
from netemu.helpers import Attended, with_sums
from netemu.packets import (
    ACK,
    DONT_FRAGMENT,
    FIN,
    GRE,
    HOST,
    I32,
    I64,
    ICMP,
    INVALID,
    MORE_FRAGMENTS,
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
from netemu.schedulers import SCHEDULERS, AddressCache, Asked, RoundRobin, Scheduler, Turns

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

Keys = tuple[NDArray[np.uint64], NDArray[np.uint64]]  # two words for each packet
NEVER = 1 << 62
ESP, AH = 50, 51
NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
SERVED = np.isin(np.arange(256), list(NAMES))
WATCHED = SERVED | (np.arange(256) == ICMP)  # what no fragment of may pass its hooks
HANDLED = np.isin(np.arange(256), [*NAMES, ESP, AH])  # IPVS looks for connections of the last two, and finds none
ERROR = np.isin(np.arange(256), (3, 4, 11))  # ICMP errors that it looks into
FTP, FTP_DATA = 21, 20
FTP_MODULE = "ip_vs_ftp"
IPIP = 4
GUE_IPIP = 4 << 16  # the GUE header of a packet without options: version 0, and what protocol it holds
NO_FTP = (
    "the FTP helper of IPVS (ip_vs_ftp) is taken as not loaded: PORT and 227 lines are not translated"
    ' (modules = ["ip_vs_ftp"] in node.toml loads it)'
)
PORT_RANGE = "net.ipv4.ip_local_port_range"

MASQ, TUNNEL, ROUTE, BYPASS = 0, 2, 3, 4  # how packets reach the server

# flags of a connection
TEMPLATE, INACTIVE, NO_OUTPUT, ONE_PACKET, TRACKED, FOUND, ASSURED = 1, 2, 4, 8, 16, 32, 64
OPEN, READ = 128, 256  # the client's port is still to be told; the FTP helper reads it

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
IS_ACTIVE = np.isin(np.arange(len(STATES)), ACTIVE)
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


# SCTP, by the first chunk of a packet ("data": DATA and all that is not named). Found by sending every chunk to Linux
# 6.1 in every state that can be reached; the first column by sending it as the first packet of all, with sloppy_sctp.
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
SCTP_DATA = 9
SCTP_TRANSITIONS = grid(
    """
    seen         NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    in  init     I1 IN IN .  .  .  .  .  .  .  .  .  IN IN
    in  initack  CW CW CW .  .  CO .  .  .  .  .  .  .  .
    in  abort    CL CL CL CL CL RJ CL CL CL CL CL CL CL CL
    in  shutdown SR .  .  .  .  .  .  .  SR .  .  .  .  .
    in  shutack  CL IN .  .  .  .  .  .  .  CL .  CL .  .
    in  error    CL .  .  .  .  .  .  CL .  .  .  .  .  .
    in  cookie   CR IN .  CR .  .  .  .  .  .  .  .  .  .
    in  cookack  ES .  .  .  .  .  .  ES .  .  .  .  .  .
    in  done     CL CL CL .  .  .  .  .  .  .  .  CL .  .
    in  data     ES .  .  .  .  .  .  .  .  .  .  .  .  .
    out init     CW CW CW CW CW CW CW CW .  CW CW CW CW CW
    out initack  CS CS CS .  .  .  .  .  .  .  .  .  .  .
    out abort    RJ RJ CL CL CL CL CL CL CL CL CL CL CL CL
    out shutdown SS SS SS SS SS SS SS SS SS SS .  .  .  .
    out shutack  SA SA SA SA SA .  .  .  .  SA SA SA .  .
    out error    CL CL CL CL CL .  .  .  .  .  .  .  .  .
    out cookie   CE CE CE CE CE CE CE CE .  .  .  .  .  .
    out cookack  ES ES ES ES ES ES ES ES ES .  .  .  .  .
    out done     .  .  .  .  .  .  .  .  .  .  .  .  .  .
    out data     .  .  .  .  .  .  .  .  .  .  .  .  .  .
    one init     I1 IN IN .  .  .  .  .  .  .  .  .  IN IN
    one initack  CE CE CE .  .  .  .  .  .  .  .  .  .  .
    one abort    CL CL CL CL CL CL CL CL CL CL CL CL CL CL
    one shutdown SR .  .  .  .  .  .  .  SR .  .  .  .  .
    one shutack  CL IN IN .  .  .  .  .  CL .  .  .  .  .
    one error    CL .  .  .  .  .  .  .  .  .  .  .  .  .
    one cookie   ES ES ES .  .  .  .  .  .  .  .  .  .  .
    one cookack  ES .  .  .  .  .  .  ES .  .  .  .  .  .
    one done     CL CL CL .  .  .  .  .  .  .  CL .  .  .
    one data     ES .  .  .  .  .  .  .  .  .  .  .  .  .
""",
    SCTP_SHORT,
).reshape(3, SCTP_DATA + 1, len(SCTP_STATES))


# ---- services and servers ---------------------------------------------------------------------------------------


class Encapsulation(NamedTuple):
    """What packets to a tunnelled server travel in: ipip, gre or gue; port of gue; checksum: nocsum, csum, remcsum."""

    kind: str = "ipip"
    port: int = 0
    checksum: str = "nocsum"

    @property
    def size(self) -> int:
        """Bytes between the outer IP header and the packet."""
        return {"ipip": 0, "gre": 4 if self.checksum == "nocsum" else 8, "gue": 12}[self.kind]


PLAIN_TUNNEL = Encapsulation()


class Settings(NamedTuple):
    """What `ipvsadm -a` and `-e` say of a server."""

    method: int = ROUTE
    weight: int = 1
    upper: int = 0
    lower: int = 0
    tunnel: Encapsulation = PLAIN_TUNNEL


class Servers:
    """What packets change, or ask, of real servers, in columns by number.

    up           it is in its service's list; else it was deleted, and waits for its connections to end, or to come back
    active, inactive   connections it has               persistent  templates that point to it
    upper, lower       thresholds, 0: none              overloaded  from upper on, until the number falls below lower
    stat, service_stat  places in Ipvs.counters of its own counts, and of its service's
    addr, port, method      how packets come to it
    asked        version of the routes by which the way there was looked up: kind, link, next hop, mtu
    chosen, known, answer, bound   numbers of the steps of a new connection, a known one, an answer, and a new one that
                 a template brings; -1: not yet made    usual   the port that they tell of
    """

    COLUMNS: ClassVar[dict[str, tuple[str, int]]] = {  # type, fresh value
        "up": ("?", 0), "active": ("i8", 0), "inactive": ("i8", 0), "persistent": ("i8", 0), "upper": ("i8", 0),
        "lower": ("i8", 0), "overloaded": ("?", 0), "stat": ("i4", 0), "service_stat": ("i4", 0), "addr": ("u4", 0),
        "port": ("u2", 0), "method": ("u1", 0), "asked": ("i8", -1), "kind": ("i1", 0), "link": ("i2", 0),
        "nexthop": ("u4", 0), "mtu": ("i4", 0), "chosen": ("i4", -1), "known": ("i4", -1), "answer": ("i4", -1),
        "bound": ("i4", -1), "usual": ("i4", -1),
    }  # fmt: skip

    up: Mask
    active: I64
    inactive: I64
    persistent: I64
    upper: I64
    lower: I64
    overloaded: Mask
    stat: I32
    service_stat: I32
    addr: NDArray[np.uint32]
    port: NDArray[np.uint16]
    method: NDArray[np.uint8]
    asked: I64
    kind: NDArray[np.int8]
    link: NDArray[np.int16]
    nexthop: NDArray[np.uint32]
    mtu: I32
    chosen: I32
    known: I32
    answer: I32
    bound: I32
    usual: I32

    def __init__(self) -> None:
        for name, (dtype, _) in self.COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype))

    def hold(self, number: int) -> None:
        """Make room for a server of this number."""
        old = len(self.up)
        if number < old:
            return
        more = max(64, old, number + 1 - old)
        for name, (dtype, fresh) in self.COLUMNS.items():
            setattr(self, name, np.concatenate([getattr(self, name), np.full(more, fresh, dtype)]))

    def came(self, numbers: I32, active: Mask) -> None:
        """A new connection at each of these servers (they may repeat), active or not; maybe one too many."""
        np.add.at(self.active, numbers[active], 1)
        np.add.at(self.inactive, numbers[~active], 1)
        some = numbers[self.upper[numbers] > 0]
        self.overloaded[some] |= self.active[some] + self.inactive[some] >= self.upper[some]

    def went(self, numbers: I32, active: Mask) -> None:
        """A connection of each of these servers ended."""
        np.subtract.at(self.active, numbers[active], 1)
        np.subtract.at(self.inactive, numbers[~active], 1)
        some = numbers[self.overloaded[numbers]]
        total, upper, lower = self.active[some] + self.inactive[some], self.upper[some], self.lower[some]
        self.overloaded[some] = np.where(lower > 0, total >= lower, (upper > 0) & (total * 4 >= upper * 3))

    def shifted(self, numbers: I32, active: Mask) -> None:
        """A connection of each of these servers became active, or inactive."""
        change = np.where(active, 1, -1)
        np.add.at(self.active, numbers, change)
        np.subtract.at(self.inactive, numbers, change)


def _column(name: str) -> Any:
    """An attribute of a Destination that stands in a column of Servers."""

    def get(self: Destination) -> Any:
        return getattr(self.columns, name).item(self.number)

    def put(self: Destination, value: int) -> None:
        getattr(self.columns, name)[self.number] = value

    return property(get, put)


class Destination:
    """A real server of one service.

    columns, number   where what packets change of it stands: up, active, inactive, persistent, overloaded
    last_weight       the latest weight above 0 (0 if it was added with 0)
    upper, lower      thresholds, 0: none
    """

    available: bool = _column("up")
    active: int = _column("active")
    inactive: int = _column("inactive")
    persistent: int = _column("persistent")
    overloaded: bool = _column("overloaded")

    def __init__(self, columns: Servers, number: int, service: Service, addr: int, port: int) -> None:
        columns.hold(number)
        self.columns, self.number, self.stat = columns, number, 0
        self.service = service
        self.home = service.identity
        self.addr, self.port = addr, port
        self.text = f"{dotted(addr)}:{port}"
        self.method = ROUTE
        self.tunnel = PLAIN_TUNNEL
        self.weight = self.last_weight = 1
        self.upper = self.lower = 0
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
    "live": "?", "requests": "u4",
}  # fmt: skip


class Connections:
    """Connections in columns, by connection number.

    proto caddr cport vaddr vport   as the client's packets are; a template: caddr masked, cport 0
    daddr dport method              the server's address and port, how packets reach it
    dest      number of the Destination, -1: none        parent    the template that controls it, -1: none
    children  connections that it controls               state     of STATES
    flags     TEMPLATE .. READ                           service   text number of the service it was made for
    timeout   ns that its state gives it                 deadline  when it goes, ns
    known, answer   step numbers: packets to the server, to the client
    requests  packets to the server, counted while drop_entry is on (in columns) or they go one by one
    queued    time under which the timer knows it, NEVER: not at all
    serial    order in which they were made: twice the packet's serial number, and 1 but for templates
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
    live: Mask
    requests: NDArray[np.uint32]

    def __init__(self, seed: int) -> None:
        self.capacity = 0
        self._free: I32 = np.zeros(0, np.int32)  # numbers to be given out are its first ones, the last of them next
        self._left = 0  # how many these are
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype))
        self.client = Index(seed)
        self.server = Index(seed)
        self._grow(64)

    def _grow(self, n: int) -> None:
        """Room for n more, at least. What is not given out has no parent, and waits for no time."""
        old = self.capacity
        self.capacity = max(64, old * 2, old + n)
        for name in _COLUMNS:
            column = getattr(self, name)
            fresh = {"parent": -1, "queued": NEVER}.get(name, 0)
            setattr(self, name, np.concatenate([column, np.full(self.capacity - old, fresh, column.dtype)]))
        more = np.arange(self.capacity - 1, old - 1, -1, dtype=np.int32)
        self._free = np.concatenate([more, self._free[: self._left], np.zeros(old - self._left, np.int32)])
        self._left += len(more)
        self._noted = np.zeros(self.capacity, bool)
        self.client.hold(self.capacity)
        self.server.hold(self.capacity)

    def allocate(self, serial: int) -> int:
        """A number for a new connection."""
        if not self._left:
            self._grow(1)
        self._left -= 1
        c = self._free.item(self._left)
        self.serial[c] = serial
        self.live[c] = True
        return c

    def allocate_many(self, serials: I64) -> I32:
        """int32[n]: a number for each of n new connections."""
        n = len(serials)
        if self._left < n:
            self._grow(n - self._left)
        self._left -= n
        c: I32 = self._free[self._left : self._left + n][::-1].copy()
        some = span(c)
        self.serial[some] = serials
        self.live[some] = True
        return c

    def release(self, conns: I32) -> None:
        """Nobody refers to these numbers any more."""
        self.queued[conns] = NEVER
        self._free[self._left : self._left + len(conns)] = conns
        self._left += len(conns)
        if len(conns) > SORTED:  # neighbours are quicker to fill
            self._free[: self._left] = np.sort(self._free[: self._left])[::-1]

    def among(self, conns: I32, some: I32) -> Mask:
        """bool[n]: this connection is one of `some`."""
        noted = self._noted
        noted[some] = True
        out: Mask = noted[conns]
        noted[some] = False
        return out

    def __len__(self) -> int:
        return int(self.live.sum())

    def find_client(self, proto: int, caddr: int, cport: int, vaddr: int, vport: int) -> int:
        """The connection of a packet to a virtual address (or a template: cport 0), or -1."""
        return self.client.find_one(caddr << 32 | vaddr, proto << 32 | cport << 16 | vport)

    def find_open(self, proto: int, caddr: int, vaddr: int, vport: int) -> int:
        """The connection, of this client whatever its port, that was told to come, or -1."""
        return self.client.find_one(caddr << 32 | vaddr, ANY_PORT | proto << 32 | vport)

    def find_server(self, proto: int, caddr: int, cport: int, addr: int, port: int) -> int:
        """The connection of a packet that comes from addr:port and goes to the client, or -1."""
        return self.server.find_one(caddr << 32 | addr, proto << 32 | cport << 16 | port)

    def enlist(self, c: int) -> None:
        """Make it findable. Client port 0 marks a template, so such a client never finds its connection again."""
        self.flags[c] |= FOUND
        proto, caddr, cport = int(self.proto[c]) << 32, int(self.caddr[c]) << 32, int(self.cport[c]) << 16
        template = bool(self.flags[c] & TEMPLATE)
        if cport or template or self.flags[c] & OPEN:
            key = caddr | int(self.vaddr[c]), proto | cport | int(self.vport[c])
            if self.flags[c] & OPEN:
                key = key[0], key[1] | ANY_PORT
            self.client.push(key, c)
        if not template:
            masq = self.method[c] == MASQ
            addr, port = (self.daddr[c], self.dport[c]) if masq else (self.vaddr[c], self.vport[c])
            self.server.push((caddr | int(addr), proto | cport | int(port)), c)

    def enlist_many(self, c: I32, keys: Keys) -> None:
        """Make many findable, none of which is a template or has client port 0. `keys`: as their clients' packets are.

        What is theirs already: FOUND among their flags.
        """
        some = span(c)
        masq = self.method[some] == MASQ
        addr, port = self.daddr[some], self.dport[some]
        if not masq.all():
            addr, port = np.where(masq, addr, self.vaddr[some]), np.where(masq, port, self.vport[some])
        self.client.push_many(*keys, c)
        self.server.push_many(*_words(self.proto[some], self.caddr[some], self.cport[some], addr, port), c)

    def delist_many(self, c: I32) -> None:
        """Make many unfindable."""
        self.client.pull_many(c)
        self.server.pull_many(c)
        self.flags[c] &= ~FOUND

    def delist(self, c: int) -> None:
        """Make it unfindable; an older connection of the same key shows again."""
        self.client.pull(c)
        self.server.pull(c)
        self.flags[c] &= ~FOUND


class Index:
    """Keys of two words -> the newest connection that has the key.

    older, younger   int32[capacity]  its neighbours among those of one key: -1 none, OUT: it has no key here
    """

    def __init__(self, seed: int) -> None:
        self.table = Table(2, seed=seed)  # key -> the newest connection's own number
        self.older: I32 = np.zeros(0, np.int32)
        self.younger: I32 = np.zeros(0, np.int32)

    def hold(self, capacity: int) -> None:
        """Make room for connections below `capacity`."""
        more = np.full(capacity - len(self.younger), OUT, np.int32)
        self.older, self.younger = np.concatenate([self.older, more]), np.concatenate([self.younger, more])

    def find(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> I32:
        """int32[n]: connection numbers, -1 for none."""
        return self.table.find((first, second))

    def find_one(self, first: int, second: int) -> int:
        return self.table.find_one(first, second)

    def push(self, key: tuple[int, int], c: int) -> None:
        """A new connection of this key."""
        older = self.table.find_one(*key)
        if older >= 0:
            self.table.remove_one(older)
            self.younger[older] = c
        self.table.add_one(*key, number=c)
        self.older[c], self.younger[c] = older, -1

    def push_many(self, first: NDArray[np.uint64], second: NDArray[np.uint64], conns: I32) -> None:
        """`push` for one after the other."""
        some = span(conns)
        self.older[some] = self.younger[some] = -1
        again = np.flatnonzero(self.table.add((first, second), conns) != conns)
        for k in again.tolist():
            self.push((int(first[k]), int(second[k])), int(conns[k]))

    def pull_many(self, conns: I32) -> None:
        """`pull` for many."""
        conns = conns[self.younger[conns] != OUT]
        alone = (self.younger[conns] == -1) & (self.older[conns] == -1)
        self.table.remove(conns[alone])
        self.younger[conns[alone]] = OUT
        for c in conns[~alone].tolist():
            self.pull(c)

    def pull(self, c: int) -> None:
        """Forget a connection, if it has a key here; the one before it shows again."""
        older, younger = self.older.item(c), self.younger.item(c)
        if younger == OUT:
            return
        self.younger[c] = OUT
        if younger >= 0:
            self.older[younger] = older
        else:
            key = self.table.key(c)
            self.table.remove_one(c)
            if older >= 0:
                self.table.add_one(*key, number=older)
        if older >= 0:
            self.younger[older] = younger

    def check(self) -> None:
        """Assert that the table holds the newest of each key, and links go both ways."""
        self.table.check()
        assert self.table.ids().tolist() == np.flatnonzero(self.younger == -1).tolist(), "the newest of each key"
        has = np.flatnonzero((self.younger != OUT) & (self.older >= 0))
        assert (self.younger[self.older[has]] == has).all(), "links between connections of one key"


OUT = -2
SORTED = 256  # so many numbers given back at once are worth sorting
ANY_PORT = 1 << 48  # in a key: the client's port is not known


class Recall:
    """What a table said of the packets of a run, for who asks again: the same keys of the same table.

    One of the rooms asks of a run before it goes, others of its packets on their way, as long as nothing changed.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._pkts: Packets | None = None
        self._first = self._version = 0
        self._keys: tuple[NDArray[np.uint64], ...] = ()
        self._found: I32 = np.zeros(0, np.int32)

    def find(self, p: Packets, rows: Rows, keys: tuple[NDArray[np.uint64], ...]) -> I32:
        """int32[n], not to be written to: `Table.find` of the keys, which are those of these packets (ascending)."""
        n = len(rows)
        if n <= FEW:
            return self._table.find(keys)
        first, last = rows.item(0), rows.item(-1)
        if self._pkts is p and self._version == self._table.version:
            lo, hi = first - self._first, last - self._first
            if lo >= 0 and hi < len(self._found):
                at = slice(lo, hi + 1) if hi - lo + 1 == n else rows - self._first
                if all((known[at] == key).all() for known, key in zip(self._keys, keys, strict=True)):
                    return self._found[at]
        found = self._table.find(keys)
        if last - first + 1 == n:
            self._pkts, self._first, self._version = p, first, self._table.version
            self._keys, self._found = keys, found
        return found


class Bonds(NamedTuple):
    """How new connections stand to templates, in columns.

    template  its number, -1: none yet, BROKEN: it is no good      sticks   the service is persistent at all
    group     the same for those that share one, -1 where it does not stick
    follows   one before it is of the same group                   own      it came to the service's own port
    keys      uint64[n, 2]  the words of the template's key        ends     uint32[n, 5]  its protocol, client, virtual
                                                                            address and port, mark
    """

    template: I32
    sticks: Mask
    group: I32
    follows: Mask
    own: Mask
    keys: NDArray[np.uint64]
    ends: NDArray[np.uint32]

    def of(self, which: NDArray[np.intp] | Mask) -> Bonds:
        """Those of some packets only."""
        columns: list[Any] = [column[which] for column in self]
        return Bonds(*columns)


BROKEN = -2


class Ask(NamedTuple):
    """Who wants a connection, as ints in host order; quoted: an ICMP error about its answer does."""

    proto: int
    caddr: int
    cport: int
    vaddr: int
    vport: int
    mark: int
    quoted: bool = False


class Candidate(NamedTuple):
    """A server as it stood when one was chosen: connections without the new one."""

    server: str
    weight: int
    active: int
    inactive: int
    full: bool
    chosen: bool


class Choice(NamedTuple):
    """How a packet came to its server.

    kind  "new": the scheduler was asked; "template": the client's template decided; "existing": its connection did;
          "none": nobody takes it
    """

    kind: str
    service: str
    scheduler: str
    why: str
    candidates: tuple[Candidate, ...] = ()


# what becomes of a packet at the in-hook
GO_ON, SENT, ENDED = 0, 1, 2
COUNTED = CONNS, IN_PACKETS, OUT_PACKETS, IN_BYTES, OUT_BYTES = range(5)
_NO_ROWS = np.zeros(0, np.intp)
_NO_CONNS = np.zeros(0, np.int32)
FEW = 6  # so many packets are quicker one by one
ROUNDS = 16  # of a connection, so many changes at once
TWOS_SALT = 0x1B5


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
        # what `ipvsadm --rate` shows: counters when they were last read, and the averages as Linux keeps them
        self._read_last: I64 = np.zeros((64, 5), np.int64)
        self._averages: I64 = np.zeros((64, 5), np.int64)
        self._rating = False  # there is something to average: the counters are read every ROUND
        self._by_address: dict[tuple[int, int, int], Service] = {}
        self._by_mark: dict[int, Service] = {}
        self._service_table = Table(1, seed=node.seed)
        self._stat_of_key: I32 = np.zeros(64, np.int32)
        self._wildcards = 0  # services that a packet may meet without carrying their port
        self._ftp = 0
        self._dests: list[Destination] = []
        self.servers = Servers()
        self._trash: list[Destination] = []
        self._server_uses: dict[int, int] = {}  # address -> how many services it serves
        self._addresses = Table(1, seed=node.seed)  # these, but for
        self._arrived: list[int] = []  # addresses that are still to be put there
        self._kinds: tuple[int, dict[int, str]] = -1, {}  # of addresses, by routes of this version
        # times at which something falls due, and what: connections, and SPECIAL numbers below 0. Of two connections
        # set for one moment the younger rings first, as in Linux's timer wheel: one goes before the template that
        # controls it, which may then go too
        self._timers: list[int] = []
        self._due: dict[int, list[I32]] = {}
        # services in columns, by their place in `counters`: the choice heeds how many connections servers have; what
        # many packets at once may ask of them (see _plan), and when that was found out
        self._by_stat: dict[int, Service] = {}
        self._heeds: Mask = np.zeros(64, bool)
        self._in_turn: Mask = np.zeros(64, bool)  # plain round robin: see Turns
        self._turns = Turns()
        self._room: I32 = np.zeros(64, np.int32)
        self._texts: I32 = np.zeros(64, np.int32)
        self._lasting: I64 = np.zeros(64, np.int64)  # persistence, ns
        self._ports, self._marks, self._masks = (np.zeros(64, np.uint32) for _ in range(3))
        self._planned: NDArray[np.int64] = np.full((64, 2), -1, np.int64)
        self._version = 0  # counts changes to services and servers
        # what the tables said of the packets of this run, for who asks again
        self._clients, self._answers = Recall(self.conns.client.table), Recall(self.conns.server.table)
        self._served = Recall(self._service_table)
        self._spent: list[I32] = []  # numbers of connections that went
        self._depth = 0  # calls of the in-hook under way: what it sends passes the hooks too
        self._drop_counter = 0
        self._todrop = [0] * (SHORT_TALK + 1)  # of connections with so many packets, how many more drop_entry spares
        self._defending = False
        self.ftp = FTP_MODULE in node.model.modules
        self._read: dict[int, str] = {}  # control connections of FTP, and the mode that the client asked for
        self._awaited = 0  # connections of which the client's port is still to be told
        self._times: I64 | None = None
        self._briefest = -1, 0  # version, shortest timeout then
        # a run in which no packet changes a connection's state: its packets, rows from and to, what was known then
        self._calm: tuple[Packets | None, int, int, tuple[int, int]] = None, 0, 0, (0, 0)
        self.tell = False  # write down in Trip.choices how each packet came to its server

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
        if not self._rating:
            self._begin_rating(int(p.time[rows[0]]))
        mine = ~p.ipvs[rows]
        if trip.hook != "OUTPUT":
            mine &= p.pkttype[rows] == HOST
        proto = p.proto[rows]
        icmp = (proto == ICMP) & mine
        if self._on("ignore_tunneled"):  # of what IPVS does not serve, only a tunnel could hold what it does
            p.ipvs[rows[mine & ~HANDLED[proto] & ~(icmp & ERROR[p.icmp_type[rows]])]] = True
        mine &= SERVED[proto] & ((p.frag[rows] & OFFSET_MASK) == 0)
        fates = np.zeros(len(rows), np.uint8)
        picked = np.full(len(rows), -1, np.int32)  # connection of each packet that is to be translated
        steps = np.zeros(len(rows), np.int32)
        self._depth += 1
        left = np.flatnonzero(mine)
        if len(left) > FEW and not self.tell and not self._read and not self._awaited:
            left = self._request_many(trip, rows, left, fates, picked, steps)
        for k in left.tolist():
            fates[k], picked[k], steps[k] = self._request_one(trip, int(rows[k]))
        if icmp.any():
            for k in np.flatnonzero(icmp).tolist():
                fates[k] = self._icmp_request(trip, int(rows[k]))
        self._transmit(trip, rows, picked, steps, fates == SENT)
        self._depth -= 1
        self._over()
        return rows[fates == GO_ON], rows[fates == SENT]

    def _next_states(self, p: Packets, rows: Rows, conns: I32, reply: bool) -> NDArray[np.uint8]:
        """uint8[n]: the state that each TCP packet would bring its connection to from where that is now."""
        t = self.conns
        table = SECURE_TRANSITIONS if self._on("secure_tcp") == 3 else TRANSITIONS
        where = EVENT.take(p.flags.take(rows)).astype(np.intp)
        if reply:
            where += table.shape[1]
        else:
            where += ((t.flags.take(conns) & NO_OUTPUT) != 0) * (2 * table.shape[1])
        where *= len(STATES)
        where += t.state.take(conns)
        return table.take(where, mode="clip")  # the state of others than TCP means nothing here

    def _same_state(self, p: Packets, rows: Rows, conns: I32, reply: bool) -> Mask:
        """bool[n]: this packet leaves its connection in the state that it is in."""
        t = self.conns
        tcp = p.proto[rows] == TCP
        out: Mask = self._next_states(p, rows, conns, reply) == t.state[conns]
        if reply:
            out &= (t.flags[conns] & NO_OUTPUT) == 0
        if not tcp.all():
            calm = p.proto[rows] == UDP
            if reply:
                parent = t.parent[conns]
                calm &= (parent < 0) | ((t.flags[parent] & ASSURED) != 0)
            out = np.where(tcp, out, calm)
        return out

    # ---- many requests -----------------------------------------------------------------------------------------

    def _request_many(
        self, trip: Trip, rows: Rows, left: NDArray[np.intp], fates: NDArray[np.uint8], picked: I32, steps: I32
    ) -> NDArray[np.intp]:
        """Deal with packets as columns, as far as their order does not matter; the places that are left over.

        It does not between packets of different connections, but that a choice by load must come after what changed
        the load before it, and one in turn after the choices before it. A packet of a connection that one before it
        begins has to wait for the next round.
        """
        p = trip.pkts
        while len(left) > FEW:
            before = len(left)
            r = rows[span(left)]
            keys = _keys(p, r, False)
            found = self._clients.find(p, r, keys)
            hit = found >= 0
            if hit.any():
                known = np.flatnonzero(hit)
                done = self._known_many(trip, r[known], found[known], ~hit)
                sent = left[known[done]]
                fates[sent], picked[sent] = SENT, found[known[done]]
                steps[sent] = self.conns.known[picked[sent]]
                on = np.ones(len(left), bool)
                on[known[done]] = False
                left, found, hit = left[on], found[on], hit[on]
                keys = keys[0][on], keys[1][on]
            if not hit.all():
                left = self._fresh_many(trip, rows, left, keys, found, fates, picked, steps)
            if len(left) == before:
                break
        return left

    def _calm_run(self, p: Packets, rows: Rows) -> bool:
        """These packets' connections were there when the run began, and no packet of it brings one to another state."""
        who, begin, end, versions = self._calm
        return who is p and begin <= rows.item(0) and rows.item(-1) < end and versions == self._versions

    @property
    def _versions(self) -> tuple[int, int]:
        return self.conns.client.table.version, self.conns.server.table.version

    def _known_many(self, trip: Trip, r: Rows, c: I32, fresh: Mask) -> NDArray[np.intp]:
        """Requests of known connections: which were dealt with. `fresh`: of all packets, those that may be new."""
        p, t = trip.pkts, self.conns
        dest = t.dest[c]
        fine = (dest >= 0) & (p.proto[r] != SCTP) & ((p.proto[r] != TCP) | ((p.flags[r] & SYN) == 0))
        fine &= self.servers.up[dest]  # -1 reads the last one, masked before
        if fine.any():
            self._refresh_ways(dest[fine])
            fine &= (self.servers.kind[dest] == routing.FORWARD) & (p.ttl[r] > 1) & (p.src[r] >> 24 != 127)
            fine &= t.method[c] != TUNNEL
            fine &= (p.length[r] <= self.servers.mtu[dest]) | ((p.frag[r] & DONT_FRAGMENT) == 0)
        moves = fine & False if self._calm_run(p, r) else ~self._same_state(p, r, c, False) & fine
        if moves.any() and fresh.any():  # what changes a load keeps its place among choices by load
            fine &= ~(moves & self._heeds[self.servers.service_stat[dest]])
        if not fine.all():
            fine = ~t.among(c, c[~fine])
        if not fine.any():
            return _NO_ROWS
        moving = fine & t.among(c, c[moves]) if moves.any() else moves
        calm = fine & ~moving
        if calm.any():
            self._touch(c[calm], p.time[r[calm]])
        done = fine
        if moving.any():
            some = np.flatnonzero(moving)
            done = calm
            done[some[self._move_many(p, r[some], c[some], False)]] = True
        k = np.flatnonzero(done)
        self._count(c[k], p.length[r[k]], IN_PACKETS, IN_BYTES)
        if self._defending:
            np.add.at(t.requests, c[k], 1)
        return k

    def _move_many(self, p: Packets, rows: Rows, conns: I32, reply: bool) -> NDArray[np.intp]:
        """What TCP and UDP packets do to their connections' states and timers: the k-th of each, for k after k.

        Returns the places of those dealt with: whoever has very many packets here is left for later from some on.
        """
        t = self.conns
        rank = _ranks(conns)
        moved: list[NDArray[np.intp]] = []
        timeouts = self._state_times
        for k in range(min(int(rank.max()) + 1, ROUNDS)):
            some = np.flatnonzero(rank == k)
            moved.append(some)
            c, r = conns[some], rows[some]
            now = p.time[r]
            tcp = t.proto[c] == TCP
            if reply:
                t.flags[c[tcp]] &= ~NO_OUTPUT
            new = np.where(tcp, self._next_states(p, r, c, reply), t.state[c])
            other = np.flatnonzero(new != t.state[c])
            if len(other):
                oc, on = c[other], new[other]
                active = IS_ACTIVE[on]
                swap = active == ((t.flags[oc] & INACTIVE) != 0)
                self.servers.shifted(t.dest[oc[swap]], active[swap])
                t.flags[oc[swap]] ^= INACTIVE
                self._assure_many(oc[on == ES])
                t.state[oc] = on
            if reply and not tcp.all():
                self._assure_many(c[~tcp])
            timeout = timeouts[np.where(tcp, new, len(STATES))]
            t.timeout[c] = timeout
            t.deadline[c] = now + timeout
        done = np.concatenate(moved)
        first = conns[moved[0]]
        self._alarm_many(first, self._rings(first))
        return done

    def _assure_many(self, conns: I32) -> None:
        parents = self.conns.parent[conns]
        parents = parents[parents >= 0]
        parents = parents[(self.conns.flags[parents] & TEMPLATE) != 0]
        self.conns.flags[parents] |= ASSURED

    def _service_numbers(self, p: Packets, rows: Rows) -> I32:
        """int32[n]: the service that each packet belongs to, by its place in `counters`; 0 for none."""
        found = self._served.find(p, rows, (_service_keys(p, rows),))
        out = np.where(found < 0, 0, self._stat_of_key[found]).astype(np.int32)
        if self._wildcards:
            marked = (p.mark[rows] != 0) if self._by_mark else np.zeros(len(rows), bool)
            for k in np.flatnonzero(marked | (found < 0)).tolist():
                row = int(rows[k])
                service = self.find_service(int(p.proto[row]), int(p.dst[row]), int(p.dport[row]), int(p.mark[row]))
                out[k] = service.stat if service is not None else 0
        return out

    def _plan(self, numbers: NDArray[np.intp]) -> None:
        """Find out which services choose for many at once: `_room` is how long packets may be, 0 for one by one."""
        stamp = self._version * 2 + bool(self._on("cache_bypass")), self.node.routing.version
        stale = numbers[(self._planned[numbers] != stamp).any(axis=1)].tolist()
        if not stale:
            return
        services = [self._by_stat[number] for number in stale]
        listed = [[d.number for d in service.destinations] for service in services]
        self._refresh_ways(np.array([number for one in listed for number in one], np.int32))
        s = self.servers
        usable = (s.kind == routing.FORWARD) & ((s.method == MASQ) | (s.method == ROUTE))
        room = np.where(usable, s.mtu, 0).tolist()
        bypass = bool(self._on("cache_bypass"))
        for number, service, servers in zip(stale, services, listed, strict=True):
            self._planned[number] = stamp
            self._texts[number] = self.node.paths.text_id(service.text)
            alone = service.one_packet or service.port == FTP or (service.mark and bypass)
            alone = alone or not (service.port or service.mark or service.timeout)
            self._lasting[number], self._masks[number] = service.timeout * SECOND, service.netmask
            self._ports[number], self._marks[number] = service.port, service.mark
            self._room[number] = 0 if alone else min((room[k] for k in servers), default=1 << 16)

    def _fresh_many(
        self,
        trip: Trip,
        rows: Rows,
        left: NDArray[np.intp],
        keys: Keys,
        found: I32,
        fates: NDArray[np.uint8],
        picked: I32,
        steps: I32,
    ) -> NDArray[np.intp]:
        """New connections of services whose choice is not disturbed by anything else here; the places left over.

        keys, found  of each of `left`: the words of its connection, and the connection that there is, -1: none
        """
        p = trip.pkts
        if any(self._on(name) == 3 for name in ("drop_packet", "drop_entry")):
            return left
        r = rows[span(left)]
        at = span(r)
        new = found < 0
        proto, flags, dport = p.proto[at], p.flags[at], p.dport[at]
        tcp = proto == TCP
        opens = ((flags & RST) == 0) if self._on("sloppy_tcp") else ((flags & (SYN | RST)) == SYN)
        number = self._service_numbers(p, r)
        again = np.zeros(len(r), bool)  # another new one before it has the same addresses
        if not self._apart(p, r):
            where = np.flatnonzero(new)
            again[where[repeats((keys[0][where], keys[1][where]))]] = True
        first = new & ~again
        # without a connection and without a service, or beginning nothing, it is none of ours
        on: Mask = ~(first & ((number == 0) | (tcp & ~opens)))
        fit = first & on & (proto != SCTP) & (p.ttl[at] > 1) & (p.src[at] >> 24 != 127) & (p.sport[at] != 0)
        fit &= (p.sport[at] != FTP_DATA) & (p.link_in[at] > 0) & ((dport != FTP) | ~tcp)
        asked = np.flatnonzero(np.bincount(number[fit], minlength=1))
        self._plan(asked)
        room = self._room[number]
        fit &= (room > 0) & ((p.length[at] <= room) | ((p.frag[at] & DONT_FRAGMENT) == 0))
        bonds = None
        if self._lasting[asked].any():
            bonds = self._bonds(p, r, number, fit & (self._lasting[number] > 0))
            fit &= bonds.template != BROKEN
        rest = on & ~fit
        if rest.any():
            known = np.flatnonzero(~new)
            home = number.copy()
            home[known] = np.where(
                self.conns.dest[found[known]] >= 0, self.servers.service_stat[self.conns.dest[found[known]]], 0
            )
            # what stays for later disturbs choices by load, and others if it may lead to a choice itself
            odd = np.zeros(self._stats_used, bool)
            odd[home[rest]] = self._heeds[home[rest]]
            bold = rest.copy()
            bold[known] &= (tcp[known] & ((flags[known] & SYN) != 0)) | (proto[known] == SCTP)
            bold[known] |= rest[known] & ~self.servers.up[self.conns.dest[found[known]]]
            if again.any():  # one that only follows another's opening finds its connection
                bold[again] = ~self._led(p, r, again, fit)
            odd[number[bold]] = True
            odd[0] = False
            fit &= ~odd[number]
            if (bold & new).any() and np.isin(_ends(p, r[bold & new]), _ends(p, r[fit])).any():
                return left[on]  # by what server two connections of one client end come, their order tells
        if bonds is not None:  # who waits for the template of one before it finds it in the next round
            fit &= (bonds.template >= 0) | ~bonds.follows | self._heeds[number]
        places = np.flatnonzero(fit)
        if not len(places):
            return left[on]
        some = span(places)
        numbers = number[some]
        bonds = None if bonds is None else bonds.of(places)
        dests = self._choose_many(trip, r[some], numbers, bonds)
        served = dests >= 0
        if not served.all():
            for k in places[~served].tolist():
                row, service = int(r[k]), self._by_stat[int(number[k])]
                self._no_server(trip, row, service, _ask(p, row))
                fates[left[k]] = ENDED
            numbers, dests, bonds = numbers[served], dests[served], None if bonds is None else bonds.of(served)
            some = places[served]
        if len(dests):
            to = span(left[some])
            theirs = keys[0][some], keys[1][some]
            picked[to], steps[to] = self._connect_many(trip, r[some], numbers, dests, theirs, bonds)
            fates[to] = SENT
        on[places] = False
        return left[on]

    def _apart(self, p: Packets, rows: Rows) -> bool:
        """Tracking says already that no two of these packets have the same addresses: each has a flow of its own."""
        flows, ct = p.ct[rows], self.node.conntrack
        if (flows < 0).any() or p.reply[rows].any() or ct.until_repeated(flows) < len(flows):
            return False
        return not ((ct.status[flows] & (SRC_NAT | DST_NAT)).any() or (ct.zone[flows] != ct.zone[flows[0]]).any())

    def _bonds(self, p: Packets, rows: Rows, numbers: I32, mask: Mask) -> Bonds:
        """The templates that packets of persistent services (`mask`) come under. Those that are no good are BROKEN."""
        t, s = self.conns, self.servers
        n = len(rows)
        some = np.flatnonzero(mask)
        r, stat = rows[some], numbers[some]
        own = p.dport[r] == self._ports[stat]  # not one of the many ports of a service without
        mark = self._marks[stat]
        proto = np.where(~own & (mark != 0), 0, p.proto[r])
        vaddr = np.where(~own & (mark != 0), mark, p.dst[r])
        net = p.src[r] & self._masks[stat]
        vport = np.where(own, p.dport[r], 0)
        keys = _words(proto, net, np.uint64(0), vaddr, vport)
        template = t.client.find(*keys)
        has = np.flatnonzero(template >= 0)
        dest = t.dest[template[has]]
        good = s.up[dest]
        if self._on("expire_quiescent_template"):
            good &= np.array([self._dests[number].weight != 0 for number in dest.tolist()], bool)
        template[has[~good]] = BROKEN
        out = Bonds(
            np.full(n, -1, np.int32), np.zeros(n, bool), np.full(n, -1, np.int32), np.zeros(n, bool), np.zeros(n, bool),
            np.zeros((n, 2), np.uint64), np.zeros((n, 5), np.uint32),
        )  # fmt: skip
        out.template[some], out.sticks[some], out.own[some] = template, True, own
        group = Table(2).add(keys)
        out.group[some] = group
        out.follows[some] = np.diff(np.maximum.accumulate(group), prepend=-1) <= 0
        out.keys[some] = np.stack(keys, 1)
        out.ends[some] = np.stack([proto, net, vaddr, vport, p.mark[r]], 1)
        return out

    def _led(self, p: Packets, rows: Rows, again: Mask, fit: Mask) -> Mask:
        """bool[k]: for packets that are not the first of their kind: the first one opens their connection here."""
        opened = set(zip(*[column.tolist() for column in _keys(p, rows[fit], False)], strict=True))
        keys = zip(*[column.tolist() for column in _keys(p, rows[again], False)], strict=True)
        return np.array([key in opened for key in keys], bool)

    def _choose_many(self, trip: Trip, rows: Rows, numbers: I32, bonds: Bonds | None) -> I32:
        """int32[n]: the server of each new connection, -1 for none: service after service, in order of arrival."""
        in_turn = self._in_turn[numbers]
        if bonds is None and in_turn.all():
            return self._turns.choose(numbers, self._by_stat)
        out = np.full(len(rows), -1, np.int32)
        rest = ~in_turn
        if bonds is not None:
            bound = (bonds.template >= 0) & ~self._heeds[numbers]
            out[bound] = self.conns.dest[bonds.template[bound]]
            in_turn &= ~bound
            rest &= ~bound
        some = np.flatnonzero(in_turn)
        if len(some):
            out[some] = self._turns.choose(numbers[some], self._by_stat)
        some = np.flatnonzero(rest)
        if len(some):
            out[some] = self._choose_by_service(trip, rows[some], numbers[some], bonds and bonds.of(some))
        return out

    def _choose_by_service(self, trip: Trip, rows: Rows, numbers: I32, bonds: Bonds | None) -> I32:
        p = trip.pkts
        out = np.full(len(rows), -1, np.int32)
        order = np.argsort(numbers.astype(np.uint16) if self._stats_used <= 1 << 16 else numbers, kind="stable")
        ordered = numbers[order]
        edges = np.flatnonzero(np.diff(ordered)) + 1
        src, sport, dst, dport = (c[rows[order]].tolist() for c in (p.src, p.sport, p.dst, p.dport))
        times = p.time[rows[order]].tolist()
        active = self._begins_active(p, rows[order]).tolist()
        chosen: list[int] = []
        heeds, which = self._heeds[ordered].tolist(), ordered.tolist()
        template = group = [-1] * len(rows)
        if bonds is not None:
            template, group = bonds.template[order].tolist(), bonds.group[order].tolist()
        bound: dict[int, Destination] = {}  # by group: to whom the template will point that is made here
        begin = 0
        for end in [*edges.tolist(), len(rows)]:
            service = self._by_stat[which[begin]]
            scheduler = service.scheduler
            if isinstance(scheduler, AddressCache):
                scheduler.expiration = self._on(f"{scheduler.name}_expiration") * SECOND
            if end - begin > FEW and scheduler.MANY and not heeds[begin]:
                some = rows[order[begin:end]]
                places = scheduler.choose_many(p.src[some], p.sport[some], p.dst[some])
                listed = np.array([*(d.number for d in service.destinations), -1], np.int32)
                chosen += listed[places].tolist()
                begin = end
                continue
            draws = trip.random(rows[order[begin:end]], TWOS_SALT).tolist() if scheduler.name == "twos" else None
            for k in range(begin, end):
                dest: Destination | None
                if template[k] >= 0:
                    dest = self._dests[self.conns.dest.item(template[k])]
                else:
                    dest = bound.get(group[k])
                    if dest is None:
                        draw = 0 if draws is None else draws[k - begin]
                        dest = scheduler.choose(Asked(src[k], sport[k], dst[k], dport[k], times[k], draw))
                        if dest is not None and group[k] >= 0:
                            bound[group[k]] = dest
                if dest is None:
                    chosen.append(-1)
                    continue
                chosen.append(dest.number)
                if heeds[begin]:  # the next one wants to know; the others are counted together
                    if active[k]:
                        dest.active += 1
                    else:
                        dest.inactive += 1
                    dest.crowded()
            begin = end
        out[order] = chosen
        return out

    def _begins_active(self, p: Packets, rows: Rows) -> Mask:
        """bool[n]: a connection that begins with this packet counts as active after it."""
        table = SECURE_TRANSITIONS if self._on("secure_tcp") == 3 else TRANSITIONS
        # whether answers pass here or not: both columns of NONE end in states of one kind
        return np.asarray((p.proto[rows] == TCP) & IS_ACTIVE[table[0, EVENT[p.flags[rows]], NO]])

    def _connect_many(
        self, trip: Trip, rows: Rows, numbers: I32, dests: I32, keys: Keys, bonds: Bonds | None
    ) -> tuple[I32, I32]:
        """(connection, step number) of each: `_connect`, and what a first packet does to state, counters and timer."""
        p, t, s = trip.pkts, self.conns, self.servers
        at = span(rows)
        proto, dport, times = p.proto[at], p.dport[at], p.time[at]
        self._plan_steps(dests)
        port, method, step = s.port[dests], s.method[dests], s.chosen[dests]
        has = port != 0
        if bonds is not None:  # those of a service without a port keep theirs
            has &= bonds.own | ~bonds.sticks
        port = np.where(has, port, dport)
        parents, makers = self._templates(p, rows, numbers, dests, bonds)
        if bonds is not None:
            step = np.where(bonds.sticks & ~makers, s.bound[dests], step)
        c = t.allocate_many(p.serial[at] * 2 + 1)
        to = span(c)
        blind = method != MASQ
        flags = FOUND | (TRACKED if self._on("conntrack") else 0)
        tcp = proto == TCP
        table = SECURE_TRANSITIONS if self._on("secure_tcp") == 3 else TRANSITIONS
        state = np.where(tcp, table[blind * 2, EVENT[p.flags[at]], NO], NO)
        active = tcp & IS_ACTIVE[state]
        t.flags[to] = flags + blind * NO_OUTPUT + ~active * INACTIVE
        t.proto[to], t.mark[to] = proto, p.mark[at]
        t.caddr[to], t.cport[to], t.vaddr[to], t.vport[to] = p.src[at], p.sport[at], p.dst[at], dport
        t.dest[to], t.daddr[to], t.dport[to], t.method[to] = dests, s.addr[dests], port, method
        t.state[to], t.requests[to], t.service[to] = state, 1, self._texts[numbers]
        t.known[to], t.answer[to] = s.known[dests], s.answer[dests]
        for k in np.flatnonzero((step < 0) | (port != s.usual[dests])).tolist():  # each port has its own steps
            dest = self._dests[int(dests[k])]
            how = "persistent" if bonds is not None and bonds.sticks[k] and not makers[k] else ""
            step[k], t.known[c[k]], t.answer[c[k]] = self._steps_to(dest, int(port[k]), how)
        t.enlist_many(c, keys)
        timeout = self._state_times[np.where(tcp, state, len(STATES))]
        t.timeout[to], t.deadline[to] = timeout, times + timeout
        self._alarm_many(c, self._rings(c))
        if bonds is not None:
            self._bind(c, parents, times)
            self._assure_many(c[state == ES])
        uncounted = ~self._heeds[numbers]
        if uncounted.all():
            s.came(dests, active)
        else:
            s.came(dests[uncounted], active[uncounted])
        self._tally(dests, numbers, p.length[at], (CONNS, IN_PACKETS), IN_BYTES)
        return c, step

    def _templates(self, p: Packets, rows: Rows, numbers: I32, dests: I32, bonds: Bonds | None) -> tuple[I32, Mask]:
        """(the template of each new connection, -1: none; those for which it was made just now)."""
        makers = np.zeros(len(rows), bool)
        if bonds is None:
            return _NO_CONNS, makers
        t, s = self.conns, self.servers
        template = bonds.template.copy()
        bare = np.flatnonzero(bonds.sticks & (template < 0))
        if not len(bare):
            return template, makers
        _, leaders, back = np.unique(bonds.group[bare], return_index=True, return_inverse=True)
        some = bare[leaders]
        makers[some] = True
        dest, number = dests[some], numbers[some]
        c = t.allocate_many(p.serial[rows[some]] * 2)
        ends = bonds.ends[some]
        t.proto[c], t.caddr[c], t.cport[c] = ends[:, 0], ends[:, 1], 0
        t.vaddr[c], t.vport[c], t.mark[c] = ends[:, 2], ends[:, 3], ends[:, 4]
        t.dest[c], t.daddr[c], t.method[c] = dest, s.addr[dest], s.method[dest]
        t.dport[c] = np.where(bonds.own[some], s.port[dest], 0)
        flags = TEMPLATE | INACTIVE | FOUND | (TRACKED if self._on("conntrack") else 0)
        t.flags[c] = flags + (s.method[dest] != MASQ) * NO_OUTPUT
        t.state[c], t.requests[c], t.service[c] = NO, 0, self._texts[number]
        t.known[c] = t.answer[c] = 0
        t.timeout[c], t.deadline[c] = self._lasting[number], 0
        t.client.push_many(bonds.keys[some, 0], bonds.keys[some, 1], c)
        np.add.at(s.persistent, dest, 1)
        template[bare] = c[back]
        return template, makers

    def _bind(self, conns: I32, parents: I32, times: I64) -> None:
        """New connections come under their templates (-1: they have none), whose timers start anew."""
        t = self.conns
        some = np.flatnonzero(parents >= 0)
        c, parents = conns[some], parents[some]
        t.parent[c] = parents
        np.add.at(t.children, parents, 1)
        np.maximum.at(t.deadline, parents, times[some] + t.timeout[parents])
        once = np.unique(parents)
        self._alarm_many(once, self._rings(once))

    def _may_serve(self, p: Packets, rows: Rows) -> Mask:
        """bool[n]: some service could want this packet."""
        if self._wildcards:
            return np.ones(len(rows), bool)
        out: Mask = self._served.find(p, rows, (_service_keys(p, rows),)) >= 0
        return out

    def _touch(self, conns: I32, times: I64) -> None:
        """Connections whose state stays: their timers start anew at their latest packet.

        Answers come after requests here, whatever their times, so of deadlines by one timeout the latest counts.
        """
        t = self.conns
        which = t.state.take(conns).astype(np.intp)
        which[t.proto.take(conns) == UDP] = len(STATES)
        timeout = self._state_times.take(which)
        other = np.unique(conns[t.timeout.take(conns) != timeout])
        if len(other):
            t.deadline[other] = 0  # set by another timeout, maybe a longer one
            t.timeout[conns] = timeout
        np.maximum.at(t.deadline, conns, times + timeout)
        if len(other):  # `ipvsadm --set` may have made the timeout shorter meanwhile
            self._alarm_many(other, self._rings(other))

    @property
    def _shortest(self) -> int:
        """ns that the shortest of all timers may run."""
        if self._briefest[0] != self._version:
            persistence = (service.timeout for service in self.services if service.timeout)
            briefest = min(*self.timeouts.values(), self.udp_timeout, FIRST_TIMEOUT, *persistence)
            self._briefest = self._version, briefest * SECOND
        return self._briefest[1]

    @property
    def _state_times(self) -> I64:
        """Timeouts in ns by TCP state, UDP's behind them."""
        if self._times is None:
            self._times = np.array([*(self.timeouts[s] for s in range(len(STATES))), self.udp_timeout]) * SECOND
        return self._times

    def _count(self, conns: I32, lengths: I32, packets: int, size: int) -> None:
        """Add packets to the counters of server, service and everything; a deleted server's do not count."""
        dest = self.conns.dest[conns]
        ok = dest >= 0
        ok &= self.servers.up[dest]
        if not ok.all():
            dest, lengths = dest[ok], lengths[ok]
        if len(dest):
            self._tally(dest, self.servers.service_stat[dest], lengths, (packets,), size)

    def _tally(self, dests: I32, services: I32, lengths: I32, ones: tuple[int, ...], size: int) -> None:
        """Count one for each packet in columns `ones` of the counters, and its length in column `size`."""
        tally, lengths = self.counters.reshape(-1), lengths.astype(np.int64)
        for numbers in (self.servers.stat[dests], services):
            where = numbers.astype(np.intp)
            where *= len(COUNTED)
            for column in ones:
                np.add.at(tally[column:], where, 1)
            np.add.at(tally[size:], where, lengths)
        for column in ones:
            self.counters[0, column] += len(dests)
        self.counters[0, size] += int(lengths.sum())

    def _count_one(self, c: int, length: int, packets: int, size: int) -> None:
        number = int(self.conns.dest[c])
        if number >= 0 and self.servers.up[number]:
            for where in (int(self.servers.stat[number]), int(self.servers.service_stat[number]), 0):
                self.counters[where, packets] += 1
                self.counters[where, size] += length

    # ---- one request -------------------------------------------------------------------------------------------

    def _request_one(self, trip: Trip, row: int) -> tuple[int, int, int]:
        """(what becomes of it, its connection or -1, step number): the in-hook for one TCP, UDP or SCTP packet."""
        p, t = trip.pkts, self.conns
        proto, now = int(p.proto[row]), int(p.time[row])
        ask = _ask(p, row)
        c = t.find_client(*ask[:5]) if ask.cport else -1
        if c < 0 and self._awaited:
            c = t.find_open(ask.proto, ask.caddr, ask.vaddr, ask.vport)
        if c >= 0 and self._opens(p, row):
            gone = self._reopened(trip, row, c, now)
            if gone is None:
                self._die(trip, row, "ipvs: the old connection is still tracked")
                return ENDED, -1, 0
            if gone:
                c = -1
        if c >= 0 and t.dest[c] >= 0 and not self.servers.up[t.dest[c]]:
            if not self._on("expire_nodest_conn"):
                self._die(trip, row, "ipvs: the real server is gone")
                return ENDED, -1, 0
            tracked = self._holds_old_flow(trip, row)
            if not tracked:
                t.flags[c] &= ~TRACKED
            self._expire_now(c, now)
            if tracked:
                self._die(trip, row, "ipvs: the real server is gone")
                return ENDED, -1, 0
            c = -1
        if c >= 0:
            step = int(t.known[c])
            if self.tell:
                trip.choices[row] = self._told_existing(c, now)
        else:
            made = self._try_schedule(trip, row, ask)
            if made is None:
                return GO_ON, -1, 0
            c, step = made
            if c < 0:
                return ENDED, -1, 0
        self._count_one(c, int(p.length[row]), IN_PACKETS, IN_BYTES)
        t.requests[c] += 1
        self._next_state(c, proto, p, row, False)
        fate = self._send_one(trip, row, c)
        if fate != ENDED and t.flags[c] & (OPEN | READ) and t.method[c] == MASQ:
            self._read_request(trip, row, c, ask.cport)
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
    def _sctp_chunk(p: Packets, row: int, first: bool = False) -> int:
        """Type of the chunk that counts: an ABORT behind a cookie, else (or if so wished) the first."""
        body = p.payload(row)
        if len(body) < 16:
            return -1
        kind, size = body[12], struct.unpack_from("!H", body, 14)[0]
        behind = 12 + (size + 3 & ~3)
        if not first and kind in (10, 11) and size >= 4 and len(body) > behind + 3 and body[behind] == SCTP_ABORT:
            return SCTP_ABORT
        return kind

    def _holds_old_flow(self, trip: Trip, row: int) -> bool:
        """The packet belongs to a flow that is tracked since before (whether IPVS told tracking of servers or not)."""
        flow = int(trip.pkts.ct[row])
        return flow >= 0 and bool(self.node.conntrack.status[flow] & CONFIRMED)

    def _reopened(self, trip: Trip, row: int, c: int, now: int) -> bool | None:
        """A SYN on a connection that exists: False keep it, True forget it and schedule anew, None drop the packet."""
        t = self.conns
        dest = int(t.dest[c])
        mode = self._on("conn_reuse_mode")
        if dest >= 0 and self._dests[dest].weight == 0 and self._on("expire_nodest_conn"):
            tracked = self._holds_old_flow(trip, row)
        elif mode and t.parent[c] < 0 and self._worn_out(c, mode):
            tracked = self._holds_old_flow(trip, row)
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
            chunk = self._sctp_chunk(p, row, first=True)
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
                flags = ONE_PACKET if service.one_packet else 0
                c = self._connect(ask, dest, dest.port or ask.vport, service, flags, now, 2 * int(p.serial[row]) + 1)
                made = c, service.step(service.scheduler.name, f"{dotted(dest.addr)}:{t.dport[c]}")
        if made is not None:
            c, step = made
            dest = self._dests[int(t.dest[c])]
            for where in (dest.stat, service.stat, 0):
                self.counters[where, CONNS] += 1
            return c, trip.paths.step_id(step)
        return self._no_server(trip, row, service, ask)

    def _choose(self, trip: Trip, row: int, service: Service, ask: Ask) -> Destination | None:
        scheduler = service.scheduler
        draw = int(trip.random(np.array([row]), TWOS_SALT)[0]) if scheduler.name == "twos" else 0
        target = ask.caddr if ask.quoted else ask.vaddr  # the quoted packet goes to the client
        asked = Asked(ask.caddr, ask.cport, target, ask.vport, int(trip.pkts.time[row]), draw)
        if isinstance(scheduler, AddressCache):
            scheduler.expiration = self._on(f"{scheduler.name}_expiration") * SECOND
        dest = scheduler.choose(asked)
        if self.tell:
            why = "no server takes new connections" if dest is None else scheduler.why(asked, dest)
            trip.choices[row] = self._told("none" if dest is None else "new", service, why, dest)
        return dest

    @staticmethod
    def _told(kind: str, service: Service, why: str, chosen: Destination | None) -> Choice:
        servers = tuple(
            Candidate(d.text, d.weight, d.active, d.inactive, d.overloaded, d is chosen) for d in service.destinations
        )
        return Choice(kind, service.text, service.scheduler.name, why, servers)

    def _told_existing(self, c: int, now: int) -> Choice:
        t = self.conns
        proto, left = int(t.proto[c]), minutes(int(t.deadline[c]), now)
        state = {TCP: STATES, SCTP: SCTP_STATES}.get(proto, ("UDP",))[int(t.state[c])]
        why = f"its connection exists, state {state}, {left} left"
        number = int(t.dest[c])
        dest = self._dests[number] if number >= 0 else None
        if dest is not None and not dest.available:
            why += "; the server was deleted meanwhile"
        name = dest.service.scheduler.name if dest is not None else "none"
        return Choice("existing", self.node.paths.texts[int(t.service[c])] or "", name, why)

    def _no_server(self, trip: Trip, row: int, service: Service, ask: Ask) -> tuple[int, int] | None:
        """Nobody can take it."""
        p = trip.pkts
        if service.mark and not ask.quoted and self._on("cache_bypass") and self._elsewhere(ask.vaddr):
            c = self._bypass(ask, service, int(p.time[row]), 2 * int(p.serial[row]) + 1)
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
        if self._kinds[0] != self.node.routing.version or addr not in self._kinds[1]:
            self.look_at(np.array([addr], np.uint32))
        return self._kinds[1][addr]

    def look_at(self, addrs: NDArray[np.uint32]) -> None:
        """Somebody will ask of what kind these addresses are: find it out for all together."""
        version = self.node.routing.version
        if self._kinds[0] != version:
            self._kinds = version, {}
        names = {value: name for name, value in routing.ADDR_TYPES.items()}
        codes = self.node.routing.addr_type(addrs).tolist()
        self._kinds[1].update(zip(addrs.tolist(), map(names.__getitem__, codes), strict=True))

    def _from_servers(self, addrs: NDArray[np.uint32]) -> Mask:
        """bool[n]: some server has this address."""
        self._settle_addresses()
        out: Mask = self._addresses.find((addrs.astype(np.uint64),)) >= 0
        return out

    def _settle_addresses(self) -> None:
        if self._arrived:
            self._addresses.add((np.array(self._arrived, np.uint64),))
            self._arrived.clear()

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
            template = self._connect(key, dest, port, service, TEMPLATE, now, 2 * int(trip.pkts.serial[row]))
            t.timeout[template] = service.timeout * SECOND
        else:
            dest = self._dests[int(t.dest[template])]
            if self.tell:
                left = minutes(int(t.deadline[template]), now)
                why = (
                    f"the template of {dotted(net)} binds it to {dest.text} ({left} left); the scheduler was not asked"
                )
                trip.choices[row] = self._told("template", service, why, dest)
        port = dest.port if ask.vport == service.port and dest.port else ask.vport
        flags = ONE_PACKET if service.one_packet else 0
        c = self._connect(ask, dest, port, service, flags, now, 2 * int(trip.pkts.serial[row]) + 1)
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

    def _connect(
        self,
        ask: Ask,
        dest: Destination,
        dport: int,
        service: Service,
        flags: int,
        now: int,
        serial: int,
        addr: int | None = None,
    ) -> int:
        """A new connection, bound to its server (or to `addr` in its name) and findable, but for one-packet ones."""
        t = self.conns
        c = t.allocate(serial)
        t.proto[c], t.caddr[c], t.cport[c], t.vaddr[c], t.vport[c] = ask[:5]
        t.mark[c], t.dport[c], t.method[c] = ask.mark, dport, dest.method
        t.daddr[c] = dest.addr if addr is None else addr
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
        _, t.known[c], t.answer[c] = self._steps_to(dest, dport)
        if flags & TEMPLATE:
            dest.persistent += 1
        else:
            dest.inactive += 1
        dest.crowded()
        if ask.proto == TCP and ask.vport == FTP and dest.method == MASQ and not flags & TEMPLATE:
            if self.ftp:
                t.flags[c] |= READ | TRACKED
                self._read[c] = ""
            else:
                self.node.caveat(NO_FTP)
        if not flags & ONE_PACKET:
            t.enlist(c)
        t.requests[c] = 0
        if not self._defending and self._on("drop_entry") == 3:
            self._defending = True
            self._enqueue(now // SECOND * SECOND + SECOND, -3)
        return c

    def _steps_to(self, dest: Destination, port: int, how: str = "") -> tuple[int, int, int]:
        """Numbers of the steps to a server, of a new connection (`how`: not by the scheduler) and a known one, and of
        its answers."""
        service = dest.service
        if port == (dest.port or service.port) and not how:
            s, n = self.servers, dest.number
            if s.chosen[n] < 0:
                self._plan_steps(np.array([n], np.int32))
            return s.chosen.item(n), s.known.item(n), s.answer.item(n)
        where, number = f"{dotted(dest.addr)}:{port}", self.node.paths.step_id
        return (
            number(service.step(how or service.scheduler.name, where)),
            number(service.step("known", where)),
            number(service.step("answer", where)),
        )

    def _plan_steps(self, dests: I32) -> None:
        """Number the steps to servers that always have the same port. The texts are made when somebody looks."""
        missing = np.unique(dests[self.servers.chosen[dests] < 0])
        told: list[tuple[Destination, Service, str]] = []
        for number in missing.tolist():
            dest = self._dests[number]
            if dest.port or dest.service.port:
                told.append((dest, dest.service, dest.service.scheduler.name))

        def make(k: int) -> Step:
            dest, service, name = told[k // 4]
            where = f"{dotted(dest.addr)}:{dest.port or service.port}"
            return service.step((name, "known", "answer", "persistent")[k % 4], where)

        if told:
            s = self.servers
            first = self.node.paths.steps.reserve(4 * len(told), make)
            numbers = [dest.number for dest, _, _ in told]
            s.usual[numbers] = [dest.port or service.port for dest, service, _ in told]
            for k, column in enumerate((s.chosen, s.known, s.answer, s.bound)):
                column[numbers] = first + k + np.arange(0, 4 * len(told), 4)

    def _bypass(self, ask: Ask, service: Service, now: int, serial: int) -> int:
        t = self.conns
        c = t.allocate(serial)
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
            chunk = self._sctp_chunk(p, row)
            new = old if chunk < 0 else int(SCTP_TRANSITIONS[direction, SCTP_CHUNKS.get(chunk, SCTP_DATA), old])
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
        s, version = self.servers, self.node.routing.version
        stale = dests[s.asked[dests] != version]
        if not len(stale):
            return
        stale = np.unique(stale)
        addrs = s.addr[stale]
        zero = np.zeros(len(addrs), np.uint32)
        way = self.node.routing.output(addrs, zero, zero, np.zeros(len(addrs), np.uint8))
        s.asked[stale] = version
        s.kind[stale], s.link[stale], s.nexthop[stale], s.mtu[stale] = way.kind, way.link, way.nexthop, way.mtu

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
        s = self.servers
        if s.asked[number] != self.node.routing.version:
            self._refresh_ways(np.array([number], np.int32))
        return s.kind.item(number), s.link.item(number), s.nexthop.item(number), s.mtu.item(number)

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
            mtu -= 20 + self._dests[int(t.dest[c])].tunnel.size
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
        self._sum_up(p, some)
        if out.any():
            trip.rewrite(r[out], "ttl", p.ttl[r[out]] - 1, s[out])
        p.ipvs[r] = True
        if out.any():
            self._attach(trip, r[out], c[out])
            tunnel = out & (t.method[c] == TUNNEL)
            for row, conn in zip(r[tunnel].tolist(), c[tunnel].tolist(), strict=True):
                self._wrap(trip, row, conn)

    @staticmethod
    def _sum_up(p: Packets, rows: Rows) -> None:
        """A UDP packet without a checksum that IPVS translates gets one."""
        udp = rows[(p.proto[rows] == UDP) & (p.cap[rows] >= p.length[rows]) & (p.length[rows] >= p.ihl[rows] + 8)]
        if not len(udp):
            return
        place = p.at[udp] + p.ihl[udp] + 6
        bare = (p.data[place] == 0) & (p.data[place + 1] == 0)
        if p.rebuilt:
            bare |= np.isin(udp, list(p.rebuilt))
        for row in udp[bare].tolist():
            packet = p.bytes(row)
            at = int(p.ihl[row])
            if packet[at + 6 : at + 8] != b"\0\0" or p.frag[row] & (OFFSET_MASK | MORE_FRAGMENTS):
                continue
            pseudo = packet[12:20] + struct.pack("!BBH", 0, UDP, len(packet) - at)
            right = checksum(pseudo + packet[at:]) or 0xFFFF
            p.rebuild(row, packet[: at + 6] + struct.pack("!H", right) + packet[at + 8 :])

    def _attach(self, trip: Trip, rows: Rows, conns: I32) -> None:
        dest = self.conns.dest[conns]
        if (dest < 0).any():
            for row, c in zip(rows.tolist(), conns.tolist(), strict=True):
                kind, link, hop, mtu = self._way_of(trip, row, c)
                trip.route_kind[row], trip.route_link[row], trip.nexthop[row], trip.mtu[row] = kind, link, hop, mtu
            return
        s = self.servers
        trip.route_kind[rows], trip.route_link[rows] = s.kind[dest], s.link[dest]
        trip.nexthop[rows], trip.mtu[rows] = s.nexthop[dest], s.mtu[dest]

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
        if not reply:
            on &= t.method[conns] == MASQ
        on &= (t.flags[conns] & ONE_PACKET) == 0
        c = conns[on]
        if reply:
            ct.alter_replies(flows[on], "dst", t.vaddr[c], t.vport[c])
        else:
            ct.alter_replies(flows[on], "src", t.daddr[c], t.dport[c])

    def _wrap(self, trip: Trip, row: int, c: int) -> None:
        """Put a packet into an outer IP header (and GRE's, or UDP's and GUE's), as a new packet of the node's."""
        p = trip.pkts
        inner = p.bytes(row)
        dest = self._dests[int(self.conns.dest[c])]
        source = self.node.routing.source_for(dest.addr) or 0
        tos = inner[1]
        if tos & 3 == 3:  # "congestion experienced" stays inside; outside it says "capable"
            tos = (tos & 0xFC) | 2
        keep = struct.unpack_from("!H", inner, 6)[0] & DONT_FRAGMENT if self._on("pmtu_disc") else 0
        proto, body = self._encapsulated(dest, source, inner)
        head = struct.pack("!BBHHHBBHII", 0x45, tos, 20 + len(body), 0, keep, inner[8], proto, 0, source, dest.addr)
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        if p.ct[row] >= 0 and self.conns.flags[c] & TRACKED:
            self.node.conntrack.confirm(trip, np.array([row]))
            if p.fate[row]:
                return
        p.rebuild(row, head + body)
        p.ct[row], p.state[row], p.reply[row] = -1, INVALID, False

    def _encapsulated(self, dest: Destination, source: int, inner: bytes) -> tuple[int, bytes]:
        """(protocol, bytes behind the outer IP header)."""
        kind, port, check = dest.tunnel
        if kind == "ipip":
            return IPIP, inner
        if kind == "gre":
            if check == "nocsum":
                return GRE, struct.pack("!HH", 0, 0x0800) + inner
            whole = struct.pack("!HHI", 0x8000, 0x0800, 0) + inner
            return GRE, whole[:4] + struct.pack("!H", checksum(whole)) + whole[6:]
        # the source port tells flows apart: Linux hashes them with a key of its own, netemu with its seed
        flow = int.from_bytes(inner[9:10] + inner[12:20] + inner[(inner[0] & 15) * 4 :][:4], "big")
        low, high = (int(word) for word in str(self.node.sysctl.get(PORT_RANGE) or "32768 60999").split())
        drawn = siphash13(flow & 0xFFFFFFFF ^ flow >> 32 & 0xFFFFFFFF ^ flow >> 64, self.node.seed)
        size = 12 + len(inner)
        whole = struct.pack("!HHHHI", low + (drawn * (high - low) >> 32), port, size, 0, GUE_IPIP) + inner
        if check != "nocsum":
            pseudo = struct.pack("!IIBBH", source, dest.addr, 0, UDP, size)
            whole = whole[:6] + struct.pack("!H", checksum(pseudo + whole) or 0xFFFF) + whole[8:]
        return UDP, whole

    # ---- the out-hook ------------------------------------------------------------------------------------------

    def reply(self, trip: Trip, rows: Rows) -> None:
        """The out-hook: packets from real servers to clients (INPUT 98, FORWARD 100, OUTPUT -99)."""
        p, t = trip.pkts, self.conns
        if not self._rating:
            self._begin_rating(int(p.time[rows[0]]))
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
            found = self._answers.find(p, r, _keys(p, r, True))
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
        if self._read:
            r, c = self._read_answers(trip, r, c)
        left = np.arange(len(r))
        if len(r) > FEW:
            moves = np.zeros(len(r), bool)
            if not self._calm_run(p, r):
                moves = t.among(c, c[~self._same_state(p, r, c, True)])
            if not moves.all():
                calm = span(np.flatnonzero(~moves))
                self._touch(c[calm], p.time[r[calm]])
            left = np.flatnonzero(moves)
            some = left[p.proto[r[left]] != SCTP]
            if len(some):
                moves[some[self._move_many(p, r[some], c[some], True)]] = False
                left = np.flatnonzero(moves)
        for k in left.tolist():
            row, conn = int(r[k]), int(c[k])
            before, so_far = t.timeout[conn], int(t.deadline[conn])
            self._next_state(conn, int(p.proto[row]), p, row, True)
            until = int(p.time[row]) + int(t.timeout[conn])
            # a later request was maybe here before it: see _touch
            self._set_timer(conn, max(until, so_far) if before == t.timeout[conn] else until)
        answers = t.answer[c]
        trip.service[r] = t.service[c]
        trip.step(r, answers)
        trip.rewrite(r, "src", t.vaddr[c], answers)
        trip.rewrite(r, "sport", t.vport[c], answers)
        self._sum_up(p, r)
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

    # ---- FTP ---------------------------------------------------------------------------------------------------

    def _text(self, trip: Trip, row: int) -> tuple[int, bytes]:
        """(where a segment's data begins, the data)."""
        p = trip.pkts
        at = int(p.ihl[row]) + int(p.doff[row])
        if p.cap[row] < p.length[row] and row not in p.rebuilt:
            self.node.caveat("the FTP helper of IPVS cannot read segments that were not captured whole")
        return at, p.bytes(row)[at:]

    def _read_request(self, trip: Trip, row: int, c: int, port: int) -> None:
        """What a client says in a control connection; and the port of one that was told to come."""
        t = self.conns
        if t.flags[c] & OPEN:
            t.delist(c)
            t.flags[c] &= ~OPEN
            t.cport[c] = port
            t.enlist(c)
            self._awaited -= 1
        if not t.flags[c] & READ or t.state[c] != ES:
            return
        _, data = self._text(trip, row)
        mode = ipvsftp.wish(data)
        if mode:
            self._read[c] = mode
        said = None if mode is not None else ipvsftp.listens(data)
        if said is None:
            return
        self._read[c] = ""
        client = int(t.caddr[c]) if said.addr < 0 else said.addr
        key = Ask(TCP, client, said.port, int(t.vaddr[c]), int(t.vport[c]) - 1, int(trip.pkts.mark[row]))
        self._expect(trip, row, c, t.find_client(*key[:5]), key, int(t.daddr[c]), int(t.dport[c]) - 1, 0)

    def _read_answers(self, trip: Trip, rows: Rows, conns: I32) -> tuple[Rows, I32]:
        """What servers say in control connections; those that go on."""
        p, t = trip.pkts, self.conns
        for k in np.flatnonzero((t.flags[conns] & READ) != 0).tolist():
            row, c = int(rows[k]), int(conns[k])
            mode = self._read[c]
            if t.state[c] != ES or not mode:
                continue
            at, data = self._text(trip, row)
            said = ipvsftp.offers(data, mode)
            if said is None:
                continue
            server = int(t.daddr[c]) if said.addr < 0 else said.addr
            client, virtual = int(t.caddr[c]), int(t.vaddr[c])
            known = t.find_server(TCP, client, 0, server, said.port)
            key = Ask(TCP, client, 0, virtual, said.port, int(p.mark[row]))
            to = self._expect(trip, row, c, known, key, server, said.port, OPEN)
            self._read[c] = ""
            text = ipvsftp.told(int(t.vaddr[to]), int(t.vport[to]), mode)
            if p.ct[row] < 0:
                self._die(trip, row, "ipvs: the text cannot be rewritten without a tracked connection")
                continue
            self._rewrite_text(trip, row, at + said.start, said.end - said.start, text)
        on = p.fate[rows] == 0
        return rows[on], conns[on]

    def _expect(
        self, trip: Trip, row: int, control: int, known: int, key: Ask, addr: int, port: int, flags: int
    ) -> int:
        """A connection that was told to come, and waits in state LISTEN under its control connection."""
        t, now = self.conns, int(trip.pkts.time[row])
        c = known
        if c < 0:
            dest = self._dests[int(t.dest[control])]
            c = self._connect(key, dest, port, dest.service, TRACKED | flags, now, 2 * int(trip.pkts.serial[row]), addr)
            self._awaited += bool(flags & OPEN)
            t.parent[c] = control
            t.children[control] += 1
            told = f"{dotted(key.caddr)}:{key.cport or '*'} > {dotted(key.vaddr)}:{key.vport}"
            trip.step(np.array([row]), Step(None, f"ipvs: ftp expects {told}"))
        t.state[c] = LI
        t.timeout[c] = self.timeouts[LI] * SECOND
        self._set_timer(c, now + int(t.timeout[c]))
        return c

    def _rewrite_text(self, trip: Trip, row: int, at: int, size: int, text: bytes) -> None:
        """Put another text into a segment. Connection tracking moves the numbers of those that follow."""
        p, flow = trip.pkts, int(trip.pkts.ct[row])
        packet = bytearray(p.bytes(row))
        was = bytes(packet[at : at + size])
        packet[at : at + size] = text
        p.rebuild(row, with_sums(packet, int(p.ihl[row]), True))
        if len(text) != size:
            attended = self.node.helpers.attended.setdefault(flow, Attended(None))
            attended.shifts[int(p.reply[row])].longer(int(p.seq[row]), len(text) - size)
            self.node.conntrack.status[flow] |= SEQ_ADJUST
        if was != text and trip.remember:
            old, new = (np.array([trip.paths.text_id(one.decode("latin-1"))]) for one in (was, text))
            trip.changes.append((Step(None, "ipvs: ftp text rewritten"), "text", np.array([row]), old, new))

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
        if trip.hook == "INPUT" and (fate := self._tunnel_error(trip, row)) is not None:
            return fate
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
            if self._drops_by_rate():
                self._die(trip, row, "ipvs: drop_packet")
                return ENDED
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

    def _tunnel_error(self, trip: Trip, row: int) -> int | None:
        """An error about what went to a server in a tunnel: its client is told so of its request. None: it is not."""
        p, t = trip.pkts, self.conns
        ihl = int(p.ihl[row])
        if p.frag[row] & OFFSET_MASK or p.icmp_type[row] not in (3, 4, 11):
            return None
        b = p.bytes(row)
        at = self._tunnelled(b, ihl + 8)
        if at is None:
            return None
        ports = at + (b[at] & 15) * 4
        if b[at + 9] not in NAMES or struct.unpack_from("!H", b, at + 6)[0] & OFFSET_MASK or len(b) < ports + 4:
            return GO_ON
        src, dst = struct.unpack_from("!II", b, at + 12)
        sport, dport = struct.unpack_from("!HH", b, ports)
        c = t.find_client(b[at + 9], src, sport, dst, dport)
        if c < 0:
            return GO_ON
        one = np.array([row])
        if checksum(b[ihl:]):
            self._die(trip, row, "ipvs: wrong ICMP checksum")
            return ENDED
        kind, code, _, info = struct.unpack_from("!BBHI", b, ihl)
        trip.step(one, trip.paths.steps[int(t.answer[c])])
        trip.service[row] = t.service[c]
        if (kind, code) == (3, 4):
            if not struct.unpack_from("!H", b, at + 6)[0] & DONT_FRAGMENT:
                self._die(trip, row, "ipvs: the client does not ask for sizes of packets")
                return ENDED
            size = self._way_of(trip, row, c)[3] if t.dest[c] >= 0 else info & 0xFFFF
            info = size - 20 * (size > 88)
        p.rebuild(row, b[at:])
        self._count_one(c, len(b) - at, OUT_PACKETS, OUT_BYTES)
        trip.cause_icmp(one, kind, code, info)
        self._die(trip, row, "ipvs: its client is told")
        return ENDED

    def _tunnelled(self, b: bytes, at: int) -> int | None:
        """Where the packet begins that went to a server within the one that begins at `at`; None: in no tunnel."""
        if len(b) < at + 20:
            return None
        inside, proto = at + (b[at] & 15) * 4, b[at + 9]
        kinds = {IPIP: "ipip", GRE: "gre", UDP: "gue"}
        if proto not in kinds or (proto != IPIP and struct.unpack_from("!H", b, at + 6)[0] & OFFSET_MASK):
            return None
        port = 0
        if proto == GRE and len(b) >= inside + 4:
            flags, what = struct.unpack_from("!HH", b, inside)
            inside += 4 + 4 * (flags >> 15) + 4 * (flags >> 13 & 1) + 4 * (flags >> 12 & 1)
            if what != 0x0800:
                return None
        elif proto == UDP and len(b) >= inside + 12:
            port = struct.unpack_from("!H", b, inside + 2)[0]
            first, what = b[inside + 8 : inside + 10]
            inside += 12 + 4 * (first & 31)
            if first & 0xE0 or what != IPIP:
                return None
        elif proto != IPIP:
            return None  # cut short
        wanted = (struct.unpack_from("!I", b, at + 16)[0], TUNNEL, kinds[proto], port)
        known = any((d.addr, d.method, d.tunnel.kind, d.tunnel.port) == wanted for d in self._dests if d.available)
        return inside if known and len(b) >= inside + 20 else None

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
        step = trip.paths.steps[int(t.answer[c])]
        if t.method[c] == MASQ:  # to other servers the request went as it was
            if checksum(bytes(b[int(p.ihl[row]) :])):
                trip.end(one, "ipvs: wrong ICMP checksum")
                return
            self._rewrite_error(trip, row, b, at, step, int(t.vaddr[c]), int(t.vport[c]), to_server=False)
            if not self._rerouted(trip, one)[0]:
                return
        trip.step(one, step)
        trip.service[row] = t.service[c]
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
        before a new connection after a reply that changed a server's load, and the other way round, where the choice
        is by load; before what may be the answer to a new connection; after a SYN on a connection that exists; at the
        first timeout that the run itself may begin; and where the counters are read for `ipvsadm --rate`.
        """
        t = self.conns
        end = len(rows)
        if end < 2:
            return end
        proto = p.proto[rows]
        served = SERVED[proto]
        if not served.any():
            return end
        first = int(p.time[rows[0]])
        end = int(np.searchsorted(p.time[rows], min(first + self._shortest, (first // ROUND + 1) * ROUND)))
        to = self._clients.find(p, rows, _keys(p, rows, False))
        back = self._answers.find(p, rows, _keys(p, rows, True))
        if not served.all():
            to = np.where(served, to, -1)
        double = bool(((to >= 0) & (back >= 0)).any())
        back = np.where(served & (to < 0), back, -1)
        if self._read or self._awaited:  # who speaks FTP goes alone, and who may have been told to come
            alone = ((t.flags[np.maximum(to, back)] & (OPEN | READ)) != 0) & (np.maximum(to, back) >= 0)
            alone |= (proto == TCP) & (to < 0) & (back < 0) & bool(self._awaited)
            if alone.any():
                end = max(min(end, int(alone.argmax())), 1)
        asked, answered = np.flatnonzero(to >= 0), np.flatnonzero(back >= 0)
        sharp = np.zeros(len(rows), bool)
        if len(asked):
            syn = (proto[asked] == TCP) & ((p.flags[rows[asked]] & SYN) != 0)
            sharp[asked] = syn | ~self._same_state(p, rows[asked], to[asked], False)
            if syn.any():
                end = min(end, int(asked[syn][0]) + 1)
        if len(answered):
            sharp[answered] = ~self._same_state(p, rows[answered], back[answered], True)
        moving = sharp.any()
        self._calm = None if moving or double else p, rows.item(0), rows.item(-1) + 1, self._versions
        if moving and len(asked) and len(answered):
            edgy = np.maximum(to, back)[sharp]
            there, here = asked[t.among(to[asked], edgy)], answered[t.among(back[answered], edgy)]
            met, one, other = np.intersect1d(to[there], back[here], return_indices=True)  # the first of each
            if len(met):
                end = min(end, int(np.maximum(there[one], here[other]).min()))
        new = np.flatnonzero(served & (to < 0) & (back < 0))
        if not len(new):
            return end
        wanted = self._may_serve(p, rows[new])
        fresh = new[wanted]
        if len(fresh):
            moved = answered[sharp[answered]]
            moved = moved[self._heeds[self.servers.service_stat[t.dest[back[moved]]]]]
            if len(moved):  # the later of the first two that meet
                end = min(end, _meeting(fresh, moved))
            rest = new[self._from_servers(p.src[rows[new]])]
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
        return self._timers[0] if self._timers else NEVER

    def _enqueue(self, at: int, what: int) -> None:
        self._enqueue_many(at, np.array([what], np.int32))

    def _enqueue_many(self, at: int, what: I32) -> None:
        due = self._due.get(at)
        if due is None:
            self._due[at] = [what]
            heapq.heappush(self._timers, at)
        else:
            due.append(what)

    def _granule(self, timeout: int) -> int:
        """ns that a timer of this length is rounded up to.

        Linux's timer wheel (Documentation/timers, 4.8 and later) has eight levels, each eight times as coarse as the
        one before: a timer of 60 s may ring 5 s late at 100 ticks a second. That matters here, since timers that ring
        together ring youngest first. Where the wheel stood at time zero no dump tells: netemu says at a full turn.
        """
        tick = SECOND // self.node.hz
        span, granule = 63 * tick, tick
        while timeout >= span:
            span, granule = span * 8, granule * 8
        return granule

    def _ring(self, c: int) -> int:
        """When the alarm of a connection goes off, by its deadline and timeout."""
        granule = self._granule(int(self.conns.timeout[c]))
        return (int(self.conns.deadline[c]) // granule + 1) * granule

    def _set_timer(self, c: int, deadline: int) -> None:
        """Connections live until `deadline`. Later ones cost nothing: the old alarm rings, and is set anew."""
        self.conns.deadline[c] = deadline
        self._alarm(c, self._ring(c))

    def _alarm(self, c: int, at: int) -> None:
        if at < self.conns.queued[c]:
            self.conns.queued[c] = at
            self._enqueue(at, c)

    def _rings(self, conns: I32) -> I64:
        """int64[n]: `_ring` of many."""
        t = self.conns
        timeout = t.timeout[conns]
        if len(conns) and (timeout == timeout[0]).all():
            granule = self._granule(int(timeout[0]))
            return (t.deadline[conns] // granule + 1) * granule
        tick = SECOND // self.node.hz
        granules = tick * 8 ** np.searchsorted(63 * tick * (8 ** np.arange(9)), timeout, side="right")
        return np.asarray((t.deadline[conns] // granules + 1) * granules)

    def _alarm_many(self, conns: I32, at: I64) -> None:
        """`_alarm` for many, each of them once."""
        sooner = at < self.conns.queued[conns]
        if not sooner.all():
            conns, at = conns[sooner], at[sooner]
        self.conns.queued[conns] = at
        edges = np.flatnonzero(at[1:] != at[:-1]) + 1
        if len(edges) > FEW:  # granules are coarse: there are few times, but they come in any order
            order = np.argsort(at, kind="stable")
            conns, at = conns[order], at[order]
            edges = np.flatnonzero(at[1:] != at[:-1]) + 1
        begin = 0
        for end in [*edges.tolist(), len(at)] if len(at) else ():
            self._enqueue_many(int(at[begin]), conns[begin:end])
            begin = end

    def advance(self, now: int) -> None:
        """Let every timer ring that falls due until `now`, in order of time."""
        t, timers = self.conns, self._timers
        while timers and timers[0] <= now:
            at = heapq.heappop(timers)
            due = np.concatenate(self._due.pop(at))
            conns = due[due >= 0]
            conns = np.unique(conns[t.live[conns] & (t.queued[conns] == at)])
            if len(conns):
                t.queued[conns] = NEVER
                rings = self._rings(conns)
                late = (rings > at) & (t.timeout[conns] > 0)
                if late.any():
                    self._alarm_many(conns[late], rings[late])
                self._expire_many(conns[~late], at)
                self._over()
            for special in np.sort(due[due < 0]).tolist():
                SPECIAL[special](self, at)

    def _expire_many(self, conns: I32, now: int) -> None:
        """`_expire` for all of these, youngest first."""
        t = self.conns
        conns = conns[np.argsort(-t.serial[conns], kind="stable")]
        if len(conns) > FEW:  # those that control others go after those
            plain = (t.children[conns] == 0) & ((t.flags[conns] & (TEMPLATE | ONE_PACKET | OPEN | READ)) == 0)
            plain &= t.dest[conns] >= 0
            tracked = plain & ((t.flags[conns] & TRACKED) != 0) & (t.cport[conns] != 0)
            if self.node.conntrack.split:
                plain &= ~tracked
            elif tracked.any():
                self._forget_flows(conns[tracked])
            c = conns[plain]
            conns = conns[~plain]
            t.delist_many(c)
            t.live[c] = False
            parents = t.parent[c]
            np.subtract.at(t.children, parents[parents >= 0], 1)
            t.parent[c] = -1
            self.servers.went(t.dest[c], (t.flags[c] & INACTIVE) == 0)
            self._spent.append(c)
        for c in conns.tolist():
            self._expire(c, now)

    def _expire_now(self, c: int, now: int) -> None:
        """It goes with the next tick of the timer."""
        self.conns.timeout[c], self.conns.deadline[c] = 0, now
        self._alarm(c, self._tick_after(now))

    def look(self, now: int) -> None:
        """Somebody looks at the tables, which takes longer than a tick: what was told to go has gone by then."""
        self.advance(now)
        soon = self._tick_after(now)
        if self._timers and self._timers[0] <= soon:
            t = self.conns
            self._expire_many(np.flatnonzero(t.live & (t.deadline <= now) & (t.queued <= soon)).astype(np.int32), now)
            self._over()

    def _tick_after(self, now: int) -> int:
        hz = self.node.hz
        return at_jiffy(jiffies(now, hz) + 1, hz)

    def _expire(self, c: int, now: int, *, deleted: bool = False) -> None:
        """Its time is over. What controls others stays, a minute at a time."""
        t = self.conns
        if t.children[c]:
            t.timeout[c] = CONTROL_LIFE * SECOND
            self._set_timer(c, now + CONTROL_LIFE * SECOND)
            return
        t.delist(c)
        t.live[c] = False
        parent = int(t.parent[c])
        if parent >= 0:
            t.parent[c] = -1
            t.children[parent] -= 1
            if deleted and not t.children[parent] and not t.flags[parent] & ASSURED:
                self._expire(parent, now, deleted=True)
        flags = int(t.flags[c])
        self._read.pop(c, None)
        self._awaited -= bool(flags & OPEN)
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
        self._spent.append(np.array([c], np.int32))

    def _over(self) -> None:
        """Numbers of connections that went may be given out again, once nobody under way holds them."""
        if self._depth or not self._spent:
            return
        self.conns.release(np.concatenate(self._spent))
        self._spent.clear()

    def _forget_flow(self, c: int, now: int) -> None:
        """The tracked flow of a connection goes with it."""
        t, ct = self.conns, self.node.conntrack
        holder = ct.holder((int(t.caddr[c]), int(t.vaddr[c]), int(t.cport[c]), int(t.vport[c]), int(t.proto[c])), now)
        if holder >= 0:
            ct.kill(holder >> 1)

    def _forget_flows(self, conns: I32) -> None:
        """`_forget_flow` of many, where no zone is one direction's alone."""
        t, ct = self.conns, self.node.conntrack
        ports = t.cport[conns].astype(np.uint64) << np.uint64(48) | t.vport[conns].astype(np.uint64) << np.uint64(32)
        ends = t.caddr[conns].astype(np.uint64) << np.uint64(32) | t.vaddr[conns]
        found = ct.table.find((ends, ports | t.proto[conns].astype(np.uint64) << np.uint64(16)))
        which = np.zeros(ct.capacity, bool)
        which[found[found >= 0] >> 1] = True
        ct.kill_where(which)

    def _flush_orphans(self, now: int) -> None:
        """expire_nodest_conn: connections of deleted servers go, and templates that then control nothing."""
        t = self.conns
        for c in self._by_age(t.live):
            dest = int(t.dest[c])
            if not t.live[c] or dest < 0 or self.servers.up[dest] or t.children[c]:
                continue
            parent = int(t.parent[c])
            self._expire(c, now, deleted=True)
            if parent >= 0 and t.live[parent] and not t.children[parent]:
                self._expire(parent, now, deleted=True)
        self._over()

    def _by_age(self, which: Mask) -> list[int]:
        """Numbers of connections, the oldest first."""
        conns = np.flatnonzero(which)
        return list(conns[np.argsort(self.conns.serial[conns], kind="stable")].tolist())

    def _drop_entries(self, now: int) -> None:
        """drop_entry = 3: every second, of a 32nd of all connections, those go that are not open yet, some that idle.

        Which are looked at, Linux draws at random and netemu from its seed.
        """
        t = self.conns
        self._defending = self._on("drop_entry") == 3
        if not self._defending:
            return
        self._enqueue(now + SECOND, -3)
        for c in self._by_age(t.live & ((t.flags & TEMPLATE) == 0)):
            mixed = (int(t.serial[c]) * 0x9E3779B1 ^ now // SECOND) & 0xFFFFFFFF
            if siphash13(mixed, self.node.seed ^ 0xD2) & 31 == 0 and t.live[c] and not t.children[c]:
                proto, state = int(t.proto[c]), int(t.state[c])
                opening = OPENING.get(proto, ())
                settled = proto == UDP or state == (ES if proto == TCP else SCTP_ES)
                if state in opening or (settled and self._idle_enough(c, now)):
                    self._expire(c, now, deleted=True)
        self._over()

    def _idle_enough(self, c: int, now: int) -> bool:
        """It was quiet for a minute after a short talk, and it is its turn: one of as many as it had packets."""
        t = self.conns
        talk = int(t.requests[c])
        if int(t.deadline[c]) - int(t.timeout[c]) + MINUTE > now or not 0 < talk <= SHORT_TALK:
            return False
        self._todrop[talk] -= 1
        if self._todrop[talk] > 0:
            return False
        self._todrop[talk] = talk
        return True

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
            self._enqueue(now + TRASH_LIFE // 2, -2)

    # ---- changes -----------------------------------------------------------------------------------------------

    # ---- rates -------------------------------------------------------------------------------------------------

    def _begin_rating(self, now: int) -> None:
        self._rating = True
        self._enqueue((now // ROUND + 1) * ROUND, -4)

    def _read_counters(self, now: int) -> None:
        """Every two seconds: the averages move a quarter of the way to what these two seconds were.

        Linux keeps them as integers, connections and packets in 1/1024, bytes in 1/32 a second.
        """
        if not self._on("run_estimation"):
            self._enqueue(now + ROUND, -4)
            return
        n = self._stats_used
        rates = (self.counters[:n] - self._read_last[:n]) << RATE_SHIFT
        self._read_last[:n] = self.counters[:n]
        self._averages[:n] += (rates - self._averages[:n]) >> 2
        self._rating = bool(rates.any() or self._averages[:n].any())
        if self._rating:
            self._enqueue(now + ROUND, -4)

    def rates(self, stat: int) -> list[int]:
        """Connections, packets in and out, bytes in and out, all a second, as `ipvsadm --rate` has them."""
        average = self._averages[stat].tolist()
        return [n + 0x1FF >> 10 for n in average[:3]] + [n + 0xF >> 5 for n in average[3:]]

    def _new_stat(self) -> int:
        if self._stats_used == len(self.counters):
            for name in (
                "counters", "_averages", "_read_last", "_heeds", "_in_turn", "_room", "_texts", "_lasting", "_ports",
                "_marks", "_masks",
            ):  # fmt: skip
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
            self._planned = np.concatenate([self._planned, np.full_like(self._planned, -1)])
        self._stats_used += 1
        return self._stats_used - 1

    def add_service(self, service: Service, scheduler: str) -> None:
        """Raises Refused when there is one already, or no such scheduler."""
        if self.named(service.identity) is not None:
            raise Refused("Service already exists", status=255)
        self.set_scheduler(service, scheduler)
        service.stat = self._new_stat()
        self.services.append(service)
        self._by_stat[service.stat] = service
        self.changed(service)
        if service.mark:
            self._by_mark[service.mark] = service
        else:
            self._by_address[service.proto, service.addr, service.port] = service
            number = self._service_table.add_one(_service_key(service))
            if number >= len(self._stat_of_key):
                self._stat_of_key = np.concatenate([self._stat_of_key, np.zeros(number + 64, np.int32)])
            self._stat_of_key[number] = service.stat
        if service.mark or service.port in (0, FTP):
            self._wildcards += 1
            self._ftp += service.port == FTP

    def changed(self, service: Service) -> None:
        """Its settings or its servers are others than they were."""
        self._version += 1
        self._heeds[service.stat] = service.scheduler.LOADS or any(d.upper for d in service.destinations)
        self._in_turn[service.stat] = type(service.scheduler) is RoundRobin and not self._heeds[service.stat]
        if isinstance(service.scheduler, RoundRobin):
            service.scheduler.come_home()

    def set_scheduler(self, service: Service, name: str) -> None:
        """Let another scheduler choose. It begins afresh, unless it is the one that the service has."""
        if name not in SCHEDULERS:
            raise Refused("Scheduler or persistence engine not found", status=255)
        if service.scheduler.name != name:
            service.scheduler = SCHEDULERS[name](service)
            service.scheduler.began = self.node.now
            self.servers.chosen[[dest.number for dest in service.destinations]] = -1

    def named(self, identity: tuple[int, int, int, int]) -> Service | None:
        proto, addr, port, mark = identity
        return self._by_mark.get(mark) if mark else self._by_address.get((proto, addr, port))

    def delete_service(self, service: Service, now: int) -> None:
        """Its servers are deleted with it; connections stay."""
        self.services.remove(service)
        del self._by_stat[service.stat]
        self._version += 1
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

    def add_destination(self, service: Service, addr: int, port: int, how: Settings) -> None:
        """A deleted server of the same service comes back as it was."""
        self._check_thresholds(how)
        if any(d.addr == addr and d.port == port for d in service.destinations):
            raise Refused("Destination already exists", status=255)
        dest = next((d for d in self._trash if (d.home, d.addr, d.port) == (service.identity, addr, port)), None)
        if dest is None:
            if self._address_kind(addr) not in ("UNICAST", "LOCAL"):
                raise Refused("Invalid operation.  Possibly wrong module version, address not unicast, ...", status=255)
            dest = Destination(self.servers, len(self._dests), service, addr, port)
            self._dests.append(dest)
            dest.stat = self.servers.stat[dest.number] = self._new_stat()
        else:
            self._trash.remove(dest)
            if dest.service is not service:
                dest.service = service
                self.counters[dest.stat] = 0
        uses = self._server_uses.get(addr, 0)
        self._server_uses[addr] = uses + 1
        if not uses:
            self._arrived.append(addr)
        dest.idle = -1
        dest.last_weight = how.weight
        self._set_up(dest, service, how)
        service.destinations.insert(0, dest)
        service.scheduler.added(dest)
        self.changed(service)

    def _set_up(self, dest: Destination, service: Service, how: Settings) -> None:
        dest.available = True
        self.servers.service_stat[dest.number] = service.stat
        dest.method, dest.weight, dest.tunnel = how.method, how.weight, how.tunnel
        service.tracks |= dest.method == MASQ and service.port == FTP
        if how.weight:
            dest.last_weight = how.weight
        if how.upper == 0 or how.upper > dest.upper:
            dest.overloaded = False
        dest.upper, dest.lower = how.upper, how.lower
        s, n = self.servers, dest.number
        s.upper[n], s.lower[n], s.chosen[n] = how.upper, how.lower, -1
        s.addr[n], s.port[n], s.method[n] = dest.addr, dest.port, dest.method

    @staticmethod
    def _check_thresholds(how: Settings) -> None:
        if how.lower > how.upper:
            raise Refused("Numerical result out of range", status=255)

    def edit_destination(self, service: Service, dest: Destination, how: Settings) -> None:
        """New settings; its place in the list and its connections stay."""
        self._check_thresholds(how)
        self._set_up(dest, service, how)
        service.scheduler.edited(dest)
        self.changed(service)

    def set_timeouts(self, tcp: int, tcp_fin: int, udp: int) -> None:
        """`ipvsadm --set`, in seconds; 0 keeps what is."""
        self.timeouts[ES] = tcp or self.timeouts[ES]
        self.timeouts[FW] = tcp_fin or self.timeouts[FW]
        self.udp_timeout = udp or self.udp_timeout
        self._times = None
        self._version += 1

    def _bin(self, dest: Destination, now: int) -> None:
        dest.available = False
        dest.idle = -1
        if not self._trash:
            self._enqueue(now + TRASH_LIFE // 2, -2)
        self._trash.append(dest)
        self._server_uses[dest.addr] -= 1
        if not self._server_uses[dest.addr]:
            del self._server_uses[dest.addr]
            self._settle_addresses()
            self._addresses.remove_one(self._addresses.find_one(dest.addr))
        if self._on("expire_nodest_conn"):
            self._enqueue(now, -1)

    def delete_destination(self, service: Service, dest: Destination, now: int) -> None:
        """Connections that it has stay, and wait for it (or go, with expire_nodest_conn)."""
        place = service.destinations.index(dest)
        del service.destinations[place]
        dest.available = False
        service.scheduler.deleted(dest, place)
        self.changed(service)
        self._bin(dest, now)

    def flush(self, now: int) -> None:
        """`ipvsadm -C`: no service any more."""
        for service in list(self.services):
            self.delete_service(service, now)

    def zero(self, service: Service | None) -> None:
        """`ipvsadm -Z`: counters of one service and its servers, or all."""
        which = slice(None) if service is None else [service.stat, *(d.stat for d in service.destinations)]
        for columns in (self.counters, self._averages, self._read_last):
            columns[which] = 0

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
        for c in live.tolist():
            assert t.children[c] == int((t.parent[live] == c).sum()), "children of a template"
            assert t.queued[c] <= self._ring(c) or not t.timeout[c], "a timer that rings too late"
        t.client.check()
        t.server.check()


TRASH_LIFE = 120 * SECOND
ROUND = 2 * SECOND  # how often Linux reads the counters for its averages
RATE_SHIFT = np.array([9, 9, 9, 4, 4])
MINUTE = 60 * SECOND
SHORT_TALK = 8  # packets: who had more is spared by drop_entry
#: states that drop_entry ends, by protocol
OPENING = {TCP: (SR, SA), SCTP: (SCTP_SHORT.index("I1"), SCTP_SHORT.index("IN"))}
SPECIAL: dict[int, Callable[[Ipvs, int], None]] = {
    -1: Ipvs._flush_orphans,
    -2: Ipvs._empty_trash,
    -3: Ipvs._drop_entries,
    -4: Ipvs._read_counters,
}


def _ask(p: Packets, row: int) -> Ask:
    """Who sent this packet, and to whom."""
    return Ask(
        int(p.proto[row]), int(p.src[row]), int(p.sport[row]), int(p.dst[row]), int(p.dport[row]), int(p.mark[row])
    )


def _ends(p: Packets, rows: Rows) -> NDArray[np.uint64]:
    """uint64[n]: protocol, address and port of each packet's sender."""
    port = p.sport[rows].astype(np.uint64) | p.proto[rows].astype(np.uint64) << np.uint64(16)
    return np.asarray(p.src[rows].astype(np.uint64) << np.uint64(32) | port)


def _ranks(numbers: I32) -> NDArray[np.intp]:
    """intp[n]: how many of the same number stand before each."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    at = np.arange(len(order))
    first = np.ones(len(order), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    out = np.empty(len(order), np.intp)
    out[order] = at - np.maximum.accumulate(np.where(first, at, 0))
    return out


def _meeting(a: Rows, b: Rows) -> int:
    """First place by which there was one of both (ascending places, none empty)."""
    return max(int(a[0]), int(b[0]))


def _keys(p: Packets, rows: Rows, reply: bool) -> Keys:
    """The two key words under which each packet's connection would stand."""
    some = span(rows)
    src, dst, sport, dport = p.src[some], p.dst[some], p.sport[some], p.dport[some]
    if reply:
        src, dst, sport, dport = dst, src, dport, sport
    return _words(p.proto[some], src, sport, dst, dport)


def _words(proto: Any, caddr: Any, cport: Any, addr: Any, port: Any) -> Keys:
    """The two key words of many: protocol, the client's end and the other one."""
    first = caddr.astype(np.uint64)
    first <<= np.uint64(32)
    first |= addr
    second = proto.astype(np.uint64)
    second <<= np.uint64(16)
    second |= cport
    second <<= np.uint64(16)
    second |= port
    return first, second


def _service_keys(p: Packets, rows: Rows) -> NDArray[np.uint64]:
    """uint64[n]: what the service that each packet is addressed to would be known by."""
    some = span(rows)
    key = p.proto[some].astype(np.uint64)
    key <<= np.uint64(32)
    key |= p.dst[some]
    key <<= np.uint64(16)
    key |= p.dport[some]
    return np.asarray(key)


def _service_key(service: Service) -> int:
    return service.proto << 48 | service.addr << 16 | service.port
