"""Sets: named collections that rules ask about packets, and the `ipset` command's language.

    packet --parts--> key words --hashing.Table--> member --extensions--> yes, no, or "nomatch: no, and stop"

A set type is a layout of parts (`("ip", "port", "net")`) and, where one is needed, a question of its own. Members are
kept in columns: the key in a `Table`, then one column for each extension that the set was created with. One question
is asked of many packets at once (`Set.match`) or of one, as the man page says it (`Set.matches`); they always agree.

A set of networks knows the prefix lengths in use, and asks for each of them, most specific first, until a member
decides.

Not Linux's: the order in which a hash set lists its members (insertion here, chance there); the initval that nobody
gave (drawn from the seed); the exact moment at which a hash set doubles its hashsize.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.errors import REFUSED, UNSUPPORTED, NetemuError, Problem, Refused, Unsupported
from netemu.hashing import M64, Columns, Table, jhash2
from netemu.packets import BROADCAST, HOST, I32, I64, ICMP, OFFSET_MASK, SCTP, TCP, U64, UDP, UDPLITE, Mask, Rows

if TYPE_CHECKING:
    from netemu.packets import Packets
    from netemu.trip import Trip

SETS: dict[str, type[Set]] = {}

Column = TypeVar("Column", I64, U64, Mask)

NEVER = 1 << 62  # a deadline that does not come
SECOND = 1_000_000_000
_FEW = 8  # packets up to which asking one by one is quicker
_BLOCK = 1 << 16  # lines of a restore that are read together
_NO_MAC = 1 << 63
_LONG_AGO = -1  # deadline of a member that a re-adding has ended (see BitmapIpMac.insert)
_AS_IS = 1  # in the place of a prefix length: an address that the set's mask does not touch

ADDED = "Element cannot be added to the set: it's already added"
NOT_ADDED = "Element cannot be deleted from the set: it's not added"
NO_SET = "The set with the given name does not exist"
IN_USE = "Set cannot be destroyed: it is in use by a kernel component"
FULL = "Hash is full, cannot add more elements"
NULL = "Null-valued element, cannot be stored in a hash type of set"
RANGE = "Element is out of the range of the set"
NOT_NEXT = "The set to which you referred with 'before' or 'after' is not added to the set."
BAD_CIDR = "The value of the CIDR parameter of the IP address is invalid"
SEE_HELP = "\nTry `ipset help' for more information."

#: protocol names as /etc/protocols has them, which is what ipset prints
PROTOCOLS = {
    1: "icmp", 2: "igmp", 3: "ggp", 4: "ipencap", 5: "st", 6: "tcp", 8: "egp", 9: "igp", 12: "pup", 17: "udp",
    20: "hmp", 22: "xns-idp", 27: "rdp", 29: "iso-tp4", 33: "dccp", 36: "xtp", 37: "ddp", 38: "idpr-cmtp", 41: "ipv6",
    43: "ipv6-route", 44: "ipv6-frag", 45: "idrp", 46: "rsvp", 47: "gre", 50: "esp", 51: "ah", 57: "skip",
    58: "ipv6-icmp", 59: "ipv6-nonxt", 60: "ipv6-opts", 73: "rspf", 81: "vmtp", 88: "eigrp", 89: "ospf", 93: "ax.25",
    94: "ipip", 97: "etherip", 98: "encap", 103: "pim", 108: "ipcomp", 112: "vrrp", 115: "l2tp", 124: "isis",
    132: "sctp", 133: "fc", 135: "mobility-header", 136: "udplite", 137: "mpls-in-ip", 138: "manet", 139: "hip",
    140: "shim6", 141: "wesp", 142: "rohc", 143: "ethernet",
}  # fmt: skip
_PROTO_NUMBERS = {name: number for number, name in PROTOCOLS.items()} | {"icmpv6": 58}

#: ICMP type and code -> the name that ipset prints
ICMP_NAMES = {
    (0, 0): "echo-reply", (3, 0): "network-unreachable", (3, 1): "host-unreachable", (3, 2): "protocol-unreachable",
    (3, 3): "port-unreachable", (3, 4): "fragmentation-needed", (3, 5): "source-route-failed",
    (3, 6): "network-unknown", (3, 7): "host-unknown", (3, 9): "network-prohibited", (3, 10): "host-prohibited",
    (3, 11): "TOS-network-unreachable", (3, 12): "TOS-host-unreachable", (3, 13): "communication-prohibited",
    (3, 14): "host-precedence-violation", (3, 15): "precedence-cutoff", (4, 0): "source-quench",
    (5, 0): "network-redirect", (5, 1): "host-redirect", (5, 2): "TOS-network-redirect", (5, 3): "TOS-host-redirect",
    (8, 0): "echo-request", (9, 0): "router-advertisement", (10, 0): "router-solicitation",
    (11, 0): "ttl-zero-during-transit", (11, 1): "ttl-zero-during-reassembly", (12, 0): "ip-header-bad",
    (12, 1): "required-option-missing", (13, 0): "timestamp-request", (14, 0): "timestamp-reply",
    (17, 0): "address-mask-request", (18, 0): "address-mask-reply",
}  # fmt: skip
ICMPV6_NAMES = {
    (1, 0): "no-route", (1, 1): "communication-prohibited", (1, 3): "address-unreachable", (1, 4): "port-unreachable",
    (2, 0): "packet-too-big", (3, 0): "ttl-zero-during-transit", (3, 1): "ttl-zero-during-reassembly",
    (4, 0): "bad-header", (4, 1): "unknown-header-type", (4, 2): "unknown-option", (128, 0): "echo-request",
    (129, 0): "echo-reply", (133, 0): "router-solicitation", (134, 0): "router-advertisement",
    (135, 0): "neighbour-solicitation", (136, 0): "neighbour-advertisement", (137, 0): "redirect",
}  # fmt: skip
_ICMP_NUMBERS = {name: tc for tc, name in ICMP_NAMES.items()} | {"ping": (8, 0), "pong": (0, 0)}
_ICMPV6_NUMBERS = {name: tc for tc, name in ICMPV6_NAMES.items()}

# bytes of transport header that a packet must have before its port (or type and code) can be read; protocol 0 never can
_NEED = np.zeros(256, np.int32)
_NEED[[TCP, UDP, UDPLITE, SCTP, ICMP]] = 20, 8, 8, 12, 8
_NEED[0] = 1 << 30
_HAS_PORT = np.zeros(256, np.uint64)
_HAS_PORT[[TCP, UDP, UDPLITE, SCTP]] = 1
_NEED_ONE, _HAS_PORT_ONE = tuple(_NEED.tolist()), tuple(_HAS_PORT.tolist())

_PREFIX = tuple((0xFFFFFFFF << (32 - n)) & 0xFFFFFFFF for n in range(33))
_H32, _H16, _H8 = np.uint64(32), np.uint64(16), np.uint64(8)


@dataclass(frozen=True)
class SetOptions:
    """What a `-m set` says beside name and directions. `packets_op`, `bytes_op`: "", eq, ne, lt or gt."""

    return_nomatch: bool = False
    update_counters: bool = True
    update_subcounters: bool = True
    packets_op: str = ""
    packets: int = 0
    bytes_op: str = ""
    bytes: int = 0

    @property
    def conditions(self) -> bool:
        """It compares counters: then the answer to one packet depends on the packets before it."""
        return bool(self.packets_op or self.bytes_op)


PLAIN = SetOptions()

#: a member's key: first address and its prefix length, protocol<<16|port, second address and length, and the rest
#: (mark, MAC or interface). What a type does not have is 0.
Key = tuple[int, int, int, int, int, int]


@dataclass
class Extra:
    """What stands behind the element of an `add`. None: not given."""

    timeout: int | None = None
    packets: int | None = None
    bytes: int | None = None
    comment: str | None = None
    nomatch: bool = False
    skb: tuple[int, int, int, int] = (0, 0, 0, 0)  # mark, mask, priority, queue
    wildcard: bool = False
    before: str = ""
    after: str = ""
    from_packet: bool = False


def _no(what: str, status: int = 1) -> Refused:
    return Refused(what, status=status)


# ---- reading the parts of an element ---------------------------------------------------------------------------------


def _number(text: str, lo: int, hi: int) -> int:
    """A number as C's strtoull with base 0 reads it."""
    word = text.strip()
    try:
        if len(word) > 1 and word[0] == "0" and word[1:].isdigit():
            value = int(word, 8)
        else:
            value = int(word, 0) if "_" not in word else -1 << 99
    except ValueError:
        raise _no(f"Syntax error: '{text}' is invalid as number") from None
    if value == -1 << 99:
        raise _no(f"Syntax error: '{text}' is invalid as number")
    if not lo <= value <= hi:
        raise _no(f"Syntax error: '{text}' is out of range {lo}-{hi}")
    return value


def _address(text: str, family: str) -> int:
    """An address as a number. Host names are not asked of anybody."""
    try:
        if family == "inet6":
            return int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
        if not text or not text[0].isdigit() or any(c not in "0123456789." for c in text):
            raise OSError
        return int.from_bytes(socket.inet_aton(text), "big")
    except (OSError, UnicodeError):
        v = "6" if family == "inet6" else "4"
        raise _no(f"Syntax error: cannot parse {text}: resolving to IPv{v} address failed") from None


def _show_address(ip: int, family: str) -> str:
    if family == "inet6":
        return socket.inet_ntop(socket.AF_INET6, ip.to_bytes(16, "big"))
    return f"{ip >> 24}.{ip >> 16 & 255}.{ip >> 8 & 255}.{ip & 255}"


def _bits(family: str) -> int:
    return 128 if family == "inet6" else 32


def _mask(length: int, bits: int) -> int:
    return ((1 << length) - 1) << (bits - length)


def _ip_range(text: str, family: str) -> tuple[int, int, str]:
    """(first, last, as ipset prints it) of `IP`, `IP/LEN` or `IP-IP`."""
    bits = _bits(family)
    if "/" in text:
        word, _, tail = text.partition("/")
        length = _number(tail, 0, bits)
        first = _address(word, family) & _mask(length, bits)
        shown = _show_address(_address(word, family), family) + (f"/{length}" if length < bits else "")
        return first, first | ((1 << (bits - length)) - 1), shown
    if "-" in text and family == "inet":
        lo, hi = (_address(word, family) for word in text.split("-", 1))
        shown = f"{_show_address(lo, family)}-{_show_address(hi, family)}"
        return min(lo, hi), max(lo, hi), shown
    ip = _address(text, family)
    return ip, ip, _show_address(ip, family)


def _cover(lo: int, hi: int) -> Iterator[tuple[int, int]]:
    """The fewest networks that make up lo..hi, ascending."""
    while lo <= hi:
        size = (lo & -lo) if lo else 1 << 32
        while lo + size - 1 > hi:
            size >>= 1
        yield lo, 33 - size.bit_length()
        lo += size


def _nets(text: str, family: str) -> tuple[list[tuple[int, int]], str]:
    """([(address, prefix length)], as ipset prints it) of `IP[/LEN]` or `IP-IP`."""
    bits = _bits(family)
    if "/" in text:
        word, _, tail = text.partition("/")
        ip, length = _address(word, family), _number(tail, 0, bits)
        shown = _show_address(ip, family)
        return [(ip & _mask(length, bits), length)], shown if length == bits else f"{shown}/{length}"
    if "-" in text:
        if family == "inet6":
            raise _no(f"Syntax error: IP address or IP/cidr must be specified: {text}")
        lo, hi, shown = _ip_range(text, family)
        if hi - lo == 0xFFFFFFFF:
            raise _no("Invalid range, covers the whole address space")
        return list(_cover(lo, hi)), shown
    ip = _address(text, family)
    return [(ip, bits)], _show_address(ip, family)


@lru_cache(65536)
def _ports(text: str, family: str) -> tuple[range, str]:
    """(protocol<<16|port of each port, as ipset prints it) of `[PROTO:]PORT[-PORT]`."""
    name, colon, tail = text.partition(":")
    if not colon:
        name, tail = "tcp", text
    if name.isdigit():
        proto = _number(name, 0, 255)
    else:
        proto = _PROTO_NUMBERS.get(name.lower(), -1)
        if proto < 0:
            raise _no(f"Syntax error: cannot parse '{name}' as a protocol")
    if proto == 0:
        raise _no("Invalid protocol specified")
    shown = PROTOCOLS.get(proto, str(proto))
    if proto in (ICMP, 58):
        return _icmp(tail, proto, shown, family)
    if proto not in (TCP, UDP, UDPLITE, SCTP):
        if tail != "0":
            raise _no(f"Syntax error: Protocol {name} can be used with pseudo port value 0 only.")
        return range(proto << 16, (proto << 16) + 1), f"{shown}:0"
    lo = hi = _port(tail, shown) if "-" not in tail else -1
    if lo < 0:
        with contextlib.suppress(Refused):
            lo = hi = _port(tail, shown)
    if lo < 0:
        second, first = (_port(word, shown) for word in reversed(tail.split("-", 1)))
        lo, hi = min(first, second), max(first, second)
    numbers = f"{lo}" if lo == hi else f"{lo}-{hi}"
    return range((proto << 16) + lo, (proto << 16) + hi + 1), f"{shown}:{numbers}"


def _port(word: str, proto: str) -> int:
    try:
        return _number(word, 0, 0xFFFF)
    except Refused as bad:
        with contextlib.suppress(OSError):
            return socket.getservbyname(word, proto)
        first = bad.problems[0].what
        raise _no(
            f"{first}\nSyntax error: '{proto}' is invalid as number\ncannot parse '{word}' as a {proto} port"
        ) from None


def _icmp(tail: str, proto: int, shown: str, family: str) -> tuple[range, str]:
    v6 = proto == 58
    if v6 != (family == "inet6"):
        kind, only = ("ICMPv6", "inet6") if v6 else ("ICMP", "inet")
        raise _no(
            f"Syntax error: Protocol {kind} can be used with family {only} only\nInvalid add command: missing setname"
        )
    numbers, names = (_ICMPV6_NUMBERS, ICMPV6_NAMES) if v6 else (_ICMP_NUMBERS, ICMP_NAMES)
    got = numbers.get(tail)
    if got is None:
        t, slash, c = tail.partition("/")
        if not (slash and t.isdigit() and c.isdigit() and int(t) < 256 and int(c) < 256):
            raise _no(f"Cannot parse {tail} as an ICMP{'v6' if v6 else ''} type/code.")
        got = int(t), int(c)
    port = got[0] << 8 | got[1]
    return range((proto << 16) + port, (proto << 16) + port + 1), f"{shown}:{names.get(got, f'{got[0]}/{got[1]}')}"


def _show_port(low: int) -> str:
    proto, port = low >> 16, low & 0xFFFF
    shown = PROTOCOLS.get(proto, str(proto))
    if proto in (ICMP, 58):
        names = ICMPV6_NAMES if proto == 58 else ICMP_NAMES
        t, c = port >> 8, port & 255
        return f"{shown}:{names.get((t, c), f'{t}/{c}')}"
    return f"{shown}:{port}"


def _mac(text: str) -> int:
    words = text.split(":")
    try:
        if len(words) != 6 or not all(1 <= len(w) <= 2 for w in words):
            raise ValueError
        return int.from_bytes(bytes(int(w, 16) for w in words), "big")
    except ValueError:
        raise _no(f"Syntax error: cannot parse '{text}' as ethernet address") from None


def _show_mac(mac: int) -> str:
    return ":".join(f"{b:02X}" for b in mac.to_bytes(6, "big"))


# ---- a set -----------------------------------------------------------------------------------------------------------


class Dense:
    """Table's little sister for bitmap sets: the keys are numbers in a short range, and a number is its own place.

    first, shift, count: key k has number (k - first) >> shift, below `count`.
    """

    def __init__(self, first: int, shift: int, count: int) -> None:
        self.first, self.shift, self.count = first, shift, count
        self.there = np.zeros(count, bool)
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def find(self, columns: Columns) -> I32:
        place = (columns[0] - np.uint64(self.first)) >> np.uint64(self.shift)
        inside = place < self.count
        inside &= self.there.take(place.view(np.int64), mode="clip")
        return np.where(inside, place.astype(np.int32), np.int32(-1))

    def find_one(self, *key: int) -> int:
        place = (key[0] - self.first) >> self.shift
        return place if 0 <= place < self.count and self.there[place] else -1

    def add(self, columns: Columns) -> I32:
        place = ((columns[0] - np.uint64(self.first)) >> np.uint64(self.shift)).astype(np.int32)
        self.there[place] = True
        self._live = int(np.count_nonzero(self.there))
        return place

    def add_one(self, *key: int) -> int:
        place = (key[0] - self.first) >> self.shift
        self._live += not self.there[place]
        self.there[place] = True
        return place

    def remove_one(self, number: int) -> None:
        self._live -= bool(self.there[number])
        self.there[number] = False

    def remove(self, ids: NDArray[np.integer]) -> None:
        self.there[ids] = False
        self._live = int(np.count_nonzero(self.there))

    def ids(self) -> I32:
        return np.flatnonzero(self.there).astype(np.int32)

    def key(self, number: int) -> tuple[int, ...]:
        return (self.first + (number << self.shift),)

    def clear(self) -> None:
        self.there[:] = False
        self._live = 0

    def check(self) -> None:
        assert self._live == np.count_nonzero(self.there)


class Set:
    """One named set. Subclasses are the types; `SETS` lists them by their ipset names.

    parts       what an element is made of, in order: ip, plain (an address, no range), net, port, mark, mac, iface, set
    references  rules and list:set members that hold it
    """

    TYPE: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()
    REVISION: ClassVar[dict[str, int]] = {}
    WORDS: ClassVar[tuple[str, ...]] = ("timeout", "counters", "comment", "skbinfo")
    nomatch_capable: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str = "", **rest: object) -> None:
        super().__init_subclass__(**rest)
        if name:
            cls.TYPE = name
            cls.nomatch_capable = "net" in cls.parts
            SETS[name] = cls

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        self.name = name
        self.kernel = kernel
        self.seed = seed
        self.family = options.get("family", "inet")
        self.timeout = _option(options, "timeout", 0, 2147483)
        self.counters = "counters" in options
        self.comment = "comment" in options
        self.skbinfo = "skbinfo" in options
        self.references = 0
        self._room = 0
        self.deadline: I64 | None = None
        self.packets: U64 | None = None
        self.bytes: U64 | None = None
        self.comments: dict[int, str] = {}
        self.skb: dict[int, tuple[int, int, int, int]] = {}
        self.nomatch: Mask | None = None  # a column once a member needs it
        self._reserve(64)

    @property
    def dimension(self) -> int:
        """How many direction words a rule must give."""
        return len(self.parts)

    @property
    def remembers(self) -> bool:
        """Packets leave something in it even where no rule adds to it (counters, MAC addresses that it learns)."""
        return self.counters

    @property
    def steadfast(self) -> bool:
        """What it answers hangs on nothing but the packet's tuple, links and mark, and on commands; so it leaves aside
        sets whose members go by themselves, or have MAC addresses."""
        return self.timeout is None and not self.remembers and "mac" not in self.parts

    @property
    def features(self) -> tuple[str, ...]:
        """What decides whether two sets may be swapped."""
        names = ["ip" if part in ("ip", "net", "plain") else part for part in self.parts]
        return (*sorted(names), "nomatch") if self.nomatch_capable else tuple(sorted(names))

    # ---- extensions --------------------------------------------------------------------------------------------

    def _reserve(self, n: int) -> None:
        """Make room for member numbers below n."""
        if n <= self._room:
            return
        n = max(n, self._room * 3 // 2)
        if self.timeout is not None:
            self.deadline = _longer(np.empty(0, np.int64) if self.deadline is None else self.deadline, n, NEVER)
        if self.counters:
            self.packets = _longer(np.empty(0, np.uint64) if self.packets is None else self.packets, n, 0)
            self.bytes = _longer(np.empty(0, np.uint64) if self.bytes is None else self.bytes, n, 0)
        if self.nomatch is not None:
            self.nomatch = _longer(self.nomatch, n, 0)
        self._room = n

    def _extend(self, number: int, extra: Extra, now: int, fresh: bool) -> None:
        """Write the extensions of one member. A re-added member keeps the counters that were not given anew."""
        self._reserve(number + 1)
        if self.deadline is not None:
            seconds = self.timeout if extra.timeout is None else extra.timeout
            self.deadline[number] = now + seconds * SECOND if seconds else NEVER
        if self.packets is not None and self.bytes is not None:
            if fresh or extra.packets is not None:
                self.packets[number] = extra.packets or 0
            if fresh or extra.bytes is not None:
                self.bytes[number] = extra.bytes or 0
        if extra.comment:  # what is not given anew goes, even if it is a packet that adds the member again
            self.comments[number] = extra.comment
        else:
            self.comments.pop(number, None)
        if extra.skb != (0, 0, 0, 0):
            self.skb[number] = extra.skb
        else:
            self.skb.pop(number, None)
        if extra.nomatch and self.nomatch is None:
            self.nomatch = np.zeros(self._room, bool)
        if self.nomatch is not None:
            self.nomatch[number] = extra.nomatch

    def _allowed(self, extra: Extra) -> None:
        if extra.timeout is not None and self.timeout is None:
            raise _no("Timeout cannot be used: set was created without timeout support")
        if (extra.packets is not None or extra.bytes is not None) and not self.counters:
            raise _no("Packet/byte counters cannot be used: set was created without counter support")
        if extra.comment is not None and not self.comment:
            raise _no("Comment cannot be used: set was created without comment support")
        if extra.skb != (0, 0, 0, 0) and not self.skbinfo:
            raise _no("Skbinfo mapping cannot be used: set was created without skbinfo support")

    def _alive(self, number: int, now: int) -> bool:
        return self.deadline is None or int(self.deadline[number]) >= now

    def _judge(self, pkts: Packets, rows: Rows, found: I32, options: SetOptions) -> I32:
        """What members say of the packets that hit them.

        found    int32[n]  the member that each row hit, -1 none
        returns  int32[n]  the member, if it says yes; -2 - member, if it says nomatch; -1 if nobody says anything
        """
        if self.deadline is not None:
            late = self.deadline.take(found, mode="clip") < pkts.time[rows]
            found = np.where(late, np.int32(-1), found)
        if self.packets is not None and (options.update_counters or options.conditions):
            hit = np.flatnonzero(found >= 0)
            if len(hit):
                ok = self._count(found[hit], pkts.length[rows[hit]].astype(np.uint64), options)
                if not ok.all():
                    found = found.copy()
                    found[hit[~ok]] = -1
        if self.nomatch is not None:
            says_no = self.nomatch.take(found, mode="clip") & (found >= 0)
            found = np.where(says_no, -2 - found, found)
        return found

    def _count(self, ids: I32, size: U64, options: SetOptions) -> Mask:
        """Add one packet each, in order, and say whose counters (after that) meet the conditions."""
        assert self.packets is not None and self.bytes is not None
        if options.conditions:
            order = np.argsort(ids, kind="stable")
            sorted_ids = ids[order]
            starts = np.flatnonzero(np.r_[True, sorted_ids[1:] != sorted_ids[:-1]])
            which = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(ids)]))
            packets, octets = self.packets[ids], self.bytes[ids]
            if options.update_counters:
                total = np.cumsum(size[order], dtype=np.uint64)
                before = (total - size[order])[starts][which]
                packets[order] += (np.arange(len(ids)) - starts[which] + 1).astype(np.uint64)
                octets[order] += total - before
            ok = _meets(packets, options.packets_op, options.packets)
            ok &= _meets(octets, options.bytes_op, options.bytes)
        else:
            ok = np.ones(len(ids), bool)
        if options.update_counters:
            np.add.at(self.packets, ids, np.uint64(1))
            np.add.at(self.bytes, ids, size)
        return ok

    def _judge_one(self, pkts: Packets, row: int, number: int, options: SetOptions) -> int:
        """1 yes, 0 nobody says anything, -1 nomatch."""
        if self.deadline is not None and int(self.deadline[number]) < int(pkts.time[row]):
            return 0
        if self.packets is not None and self.bytes is not None:
            if options.update_counters:
                self.packets[number] += np.uint64(1)
                self.bytes[number] += np.uint64(pkts.length[row])
            if options.conditions and not (
                _meets_one(int(self.packets[number]), options.packets_op, options.packets)
                and _meets_one(int(self.bytes[number]), options.bytes_op, options.bytes)
            ):
                return 0
        return -1 if self.nomatch is not None and self.nomatch[number] else 1

    # ---- questions ---------------------------------------------------------------------------------------------

    def match(self, trip: Trip, rows: Rows, dirs: tuple[str, ...], options: SetOptions = PLAIN) -> Mask:
        """Whether each packet is in the set, as a rule asks.

        rows     int[n]   rows of trip.pkts, ascending
        dirs     "src"/"dst" for each dimension; more are ignored, with fewer nothing matches
        returns  bool[n]
        Cost     a column look-up for each prefix length in use (one for types without networks)
        Source   recorded on Linux 6.1 and 6.18; see `matches` for one packet
        """
        n = len(rows)
        if n <= _FEW:
            return np.array([self.matches(trip, row, dirs, options) for row in rows.tolist()], bool)
        if len(dirs) < self.dimension or self.family == "inet6":
            return np.zeros(n, bool)
        hits = self._hits(trip, rows, dirs, options)
        return hits < -1 if options.return_nomatch and self.nomatch_capable else hits >= 0

    def matches(self, trip: Trip, row: int, dirs: tuple[str, ...], options: SetOptions = PLAIN) -> bool:
        """Whether one packet is in the set."""
        if len(dirs) < self.dimension or self.family == "inet6":
            return False
        hit = self._hit(trip, row, dirs, options)
        return hit < -1 if options.return_nomatch and self.nomatch_capable else hit >= 0

    def skb_of(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int, int, int] | None:
        """(mark, mask, priority, queue) that the member which one packet hits carries; None: it hits none."""
        if len(dirs) < self.dimension or self.family == "inet6":
            return None
        hit = self._hit(trip, row, dirs, PLAIN)
        return self.skb.get(hit, (0, 0, 0, 0)) if hit >= 0 else None

    def _hits(self, trip: Trip, rows: Rows, dirs: tuple[str, ...], options: SetOptions) -> I32:
        raise NotImplementedError

    def _hit(self, trip: Trip, row: int, dirs: tuple[str, ...], options: SetOptions) -> int:
        raise NotImplementedError

    # ---- packets that write ------------------------------------------------------------------------------------

    def add_from_packet(
        self, trip: Trip, rows: Rows, dirs: tuple[str, ...], timeout: int | None = None, exist: bool = False
    ) -> None:
        """SET --add-set: each packet in turn adds the element it makes. `exist` renews a member that is there."""
        for row in rows.tolist():
            self._add_packet(trip, row, dirs, timeout, exist)

    def del_from_packet(self, trip: Trip, rows: Rows, dirs: tuple[str, ...]) -> None:
        """SET --del-set: each packet in turn removes the element it makes."""
        for row in rows.tolist():
            self._del_packet(trip, row, dirs)

    def _add_packet(self, trip: Trip, row: int, dirs: tuple[str, ...], timeout: int | None, exist: bool) -> bool:
        raise NotImplementedError

    def _del_packet(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> bool:
        raise NotImplementedError

    # ---- the command's side ------------------------------------------------------------------------------------

    def add(self, element: str, extra: Extra, now: int, exist: bool) -> None:
        raise NotImplementedError

    def delete(self, element: str, extra: Extra, now: int, exist: bool) -> None:
        raise NotImplementedError

    def test(self, element: str, extra: Extra, now: int) -> tuple[bool, str]:
        """(it is in the set, the element as ipset prints it)"""
        raise NotImplementedError

    def bulk(self, rests: Sequence[str], now: int) -> bool:
        """Add many elements at once, given as the text behind `add NAME `. False: nothing was added, go one by one."""
        return False

    def flush(self) -> None:
        self.comments.clear()
        self.skb.clear()

    def members(self, now: int, order: bool = False) -> Iterator[str]:
        """Each living member with its extensions, as ipset prints it. `order`: sorted."""
        raise NotImplementedError

    def count(self, now: int) -> int:
        """How many members are alive."""
        raise NotImplementedError

    def header(self) -> str:
        """The options behind the type on a `create` line."""
        raise NotImplementedError

    def check(self) -> None:
        """Assert that every part agrees with every other."""

    def _common_words(self) -> str:
        words = f" timeout {self.timeout}" if self.timeout is not None else ""
        for name in ("counters", "comment", "skbinfo"):
            words += f" {name}" if getattr(self, name) else ""
        return words

    def _tails(self, ids: list[int], now: int) -> list[str]:
        """The extensions of some members, with a space before each."""
        out = [""] * len(ids)
        if self.deadline is not None:
            until = self.deadline[ids]
            left = np.where(until == NEVER, 0, np.maximum(1, (until - now) // SECOND)).tolist()
            out = [f" timeout {seconds}" for seconds in left]
        if self.nomatch is not None:
            out = [text + " nomatch" if no else text for text, no in zip(out, self.nomatch[ids].tolist(), strict=True)]
        out = self._flagged(ids, out)
        if self.packets is not None and self.bytes is not None:
            counts = zip(out, self.packets[ids].tolist(), self.bytes[ids].tolist(), strict=True)
            out = [f"{text} packets {packets} bytes {octets}" for text, packets, octets in counts]
        if self.comments:
            said = zip(out, map(self.comments.get, ids), strict=True)
            out = [text if comment is None else f'{text} comment "{comment}"' for text, comment in said]
        if self.skb:
            out = [text + _show_skb(self.skb.get(number)) for text, number in zip(out, ids, strict=True)]
        return out

    def _flagged(self, ids: list[int], texts: list[str]) -> list[str]:
        """The texts with the flags that only one type has."""
        return texts


def _show_skb(skb: tuple[int, int, int, int] | None) -> str:
    out = ""
    if skb:
        mark, mask, prio, queue = skb
        if mark or mask not in (0, 0xFFFFFFFF):
            out += f" skbmark 0x{mark:x}" + ("" if mask == 0xFFFFFFFF else f"/0x{mask:x}")
        if prio:
            out += f" skbprio {prio >> 16:x}:{prio & 0xFFFF:x}"
        if queue:
            out += f" skbqueue {queue}"
    return out


def _longer(column: Column, n: int, fresh: int) -> Column:
    out = np.full(n, fresh, column.dtype)
    out[: len(column)] = column
    return out


def _meets(values: U64, op: str, wanted: int) -> Mask:
    other = np.uint64(wanted)
    ok: Mask = np.ones(len(values), bool)
    if op == "eq":
        ok = values == other
    elif op == "ne":
        ok = values != other
    elif op == "lt":
        ok = values < other
    elif op == "gt":
        ok = values > other
    return ok


def _meets_one(value: int, op: str, wanted: int) -> bool:
    return not op or {"eq": value == wanted, "ne": value != wanted, "lt": value < wanted, "gt": value > wanted}[op]


def _option(options: dict[str, str], name: str, lo: int, hi: int) -> int | None:
    return _number(options[name], lo, hi) if name in options else None


# ---- sets with a key -------------------------------------------------------------------------------------------------


class KeyedSet(Set):
    """A set whose members are found by key words.

    IPv4:  word 0 = address<<32 | length<<24 | protocol<<16 | port,   word 1 = address<<32 | length<<24 | rest
    IPv6:  three words in place of each (high, low, the others); such a set is kept and printed, no IPv4 packet is in it

    `_probes` are the (mask, constant) pairs of both words that turn what a packet shows into a key to look for, in the
    order in which Linux looks: one pair for most types, one for each prefix length in use for types with networks.
    """

    zero_net: ClassVar[bool] = False  # a /0 may be stored

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        super().__init__(name, options, kernel, seed)
        self.bits = _bits(self.family)
        addresses = [k for k, part in enumerate(self.parts) if part in ("ip", "net", "plain")]
        self._a = addresses[0] if addresses else -1
        self._b = addresses[1] if len(addresses) > 1 else -1
        self._port = self.parts.index("port") if "port" in self.parts else -1
        rest = [k for k, part in enumerate(self.parts) if part in ("mark", "mac", "iface")]
        self._rest = rest[0] if rest else -1
        self._nets = tuple(k for k, part in enumerate(self.parts) if part == "net")
        self._two = self._a >= 0 and (self._b >= 0 or self._rest >= 0)
        self.netmask = self.mark_mask = 0  # set by the types that have them
        self._ip_mask = _mask(self.bits, self.bits)
        self.lengths: dict[tuple[int, int], int] = {}  # (length of the first, of the second network) -> members
        self.blocks: Table | None = None  # networks beyond which Linux does not look for wider ones (HashNetIface)
        self.table: Table | Dense = self._new_table()
        self._plan()

    def _new_table(self) -> Table | Dense:
        return Table((2 if self._two else 1) * (3 if self.family == "inet6" else 1), self.seed)

    def _plan(self) -> None:
        """(Re)make the probes."""
        second = self.mark_mask if self.mark_mask else M64
        if self.family == "inet6":
            self._probes: list[tuple[int, int, int, int]] = []
        elif not self._nets:
            first = M64 if self._a < 0 else (self._ip_mask & 0xFFFFFFFF) << 32 | 0xFFFFFFFF
            self._probes = [(first, 0, second, 0)]
        else:
            self._probes = []
            for la, lb in sorted(self.lengths, reverse=True):
                own = self._ip_mask & 0xFFFFFFFF  # all ones but in types that have `netmask` or `bitmask`
                mask_a = _PREFIX[la] & own if self._a in self._nets else 0xFFFFFFFF
                mask_b = _PREFIX[lb] & own if self._b in self._nets else 0xFFFFFFFF
                self._probes.append((mask_a << 32 | 0xFFFFFFFF, la << 24, mask_b << 32 | 0xFFFFFFFF, lb << 24))
        self._columns = [tuple(np.array([word], np.uint64) for word in probe) for probe in self._probes]

    def _pack(self, key: Key) -> tuple[int, ...]:
        a, la, low, b, lb, rest = key
        if self.family == "inet6":
            first = (a >> 64, a & M64, la << 24 | low)
            return (*first, b >> 64, b & M64, lb << 24 | rest) if self._two else first
        if self._a < 0:
            return (rest,)
        return (a << 32 | la << 24 | low, b << 32 | lb << 24 | rest) if self._two else (a << 32 | la << 24 | low,)

    def _unpack(self, words: tuple[int, ...]) -> Key:
        b = lb = rest = 0
        if self.family == "inet6":
            a, w = words[0] << 64 | words[1], words[2]
            if self._b >= 0:
                b, lb = words[3] << 64 | words[4], words[5] >> 24
            elif self._two:
                rest = words[5]
            return a, w >> 24, w & 0xFFFFFF, b, lb, rest
        if self._a < 0:
            return 0, 0, 0, 0, 0, words[0]
        if self._b >= 0:
            b, lb = words[1] >> 32, words[1] >> 24 & 255
        elif self._two:
            rest = words[1]
        return words[0] >> 32, words[0] >> 24 & 255, words[0] & 0xFFFFFF, b, lb, rest

    # ---- what packets show -------------------------------------------------------------------------------------

    def _shown(self, trip: Trip, rows: Rows, dirs: tuple[str, ...]) -> tuple[U64, U64 | None, Mask | None]:
        """(word 0, word 1, the rows that show a key at all: None for every one) before any mask."""
        pkts = trip.pkts
        valid: Mask | None = None
        word0 = _addresses(pkts, rows, dirs[self._a]) << _H32
        word1: U64 | None = None
        if self._port >= 0:
            low, valid = _port_column(pkts, rows, dirs[self._port])
            word0 |= low
        if self._b >= 0:
            word1 = _addresses(pkts, rows, dirs[self._b]) << _H32
        elif self._rest >= 0:
            word1, more = self._rest_column(trip, rows, dirs[self._rest])
            valid = more if valid is None else valid if more is None else valid & more
        return word0, word1, valid

    def _shown_one(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int] | None:
        pkts = trip.pkts
        word0 = int((pkts.src if dirs[self._a] == "src" else pkts.dst)[row]) << 32
        word1 = 0
        if self._port >= 0:
            low = _port_one(pkts, row, dirs[self._port])
            if low < 0:
                return None
            word0 |= low
        if self._b >= 0:
            word1 = int((pkts.src if dirs[self._b] == "src" else pkts.dst)[row]) << 32
        elif self._rest >= 0:
            word1 = self._rest_one(trip, row, dirs[self._rest])
            if word1 < 0:
                return None
        return word0, word1

    def _rest_column(self, trip: Trip, rows: Rows, way: str) -> tuple[U64, Mask | None]:
        raise NotImplementedError

    def _rest_one(self, trip: Trip, row: int, way: str) -> int:
        raise NotImplementedError

    # ---- questions ---------------------------------------------------------------------------------------------

    @property
    def _silent(self) -> bool:
        """Being found is all there is to being a member."""
        return self.deadline is None and self.packets is None and self.nomatch is None

    def _hits(self, trip: Trip, rows: Rows, dirs: tuple[str, ...], options: SetOptions) -> I32:
        word0, word1, valid = self._shown(trip, rows, dirs)
        silent = self._silent
        out = np.full(len(rows), -1, np.int32)
        open_: NDArray[np.intp] | None = None  # places not decided yet, None: all
        if valid is not None and not valid.all():
            open_ = np.flatnonzero(valid)
            word0, word1 = word0.take(open_), None if word1 is None else word1.take(open_)
        for mask0, const0, mask1, const1 in self._columns:
            if not len(word0):
                break
            key0 = word0 & mask0
            key0 |= const0
            columns: Columns = (key0,) if word1 is None else (key0, (word1 & mask1) | const1)
            found = self.table.find(columns)
            if not silent:
                found = self._judge(trip.pkts, rows if open_ is None else rows.take(open_), found, options)
            if open_ is None:
                out = found
            else:
                out[open_] = found
            if len(self._columns) == 1:
                break
            more = found == -1
            if self.blocks is not None:
                more &= self.blocks.find((key0,)) < 0
            on = np.flatnonzero(more)
            open_ = on if open_ is None else open_.take(on)
            word0, word1 = word0.take(on), None if word1 is None else word1.take(on)
        return out

    def _hit(self, trip: Trip, row: int, dirs: tuple[str, ...], options: SetOptions) -> int:
        shown = self._shown_one(trip, row, dirs)
        if shown is None:
            return -1
        word0, word1 = shown
        find_one, two, silent = self.table.find_one, self._two, self._silent
        for mask0, const0, mask1, const1 in self._probes:
            key0 = word0 & mask0 | const0
            number = find_one(key0, word1 & mask1 | const1) if two else find_one(key0)
            if number >= 0:
                if silent:
                    return number
                says = self._judge_one(trip.pkts, row, number, options)
                if says:
                    return number if says > 0 else -2 - number
            if self.blocks is not None and self.blocks.find_one(key0) >= 0:
                break
        return -1

    # ---- packets that write ------------------------------------------------------------------------------------

    def _packet_key(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> Key | None:
        """The key that a packet adds or removes: networks as wide as the most specific one in the set."""
        if len(dirs) < self.dimension or self.family == "inet6":
            return None
        shown = self._shown_one(trip, row, dirs)
        if shown is None:
            return None
        a, la, low, b, lb, rest = self._unpack(shown)
        if self._nets:
            if self._a in self._nets:
                la = max((pair[0] for pair in self.lengths), default=32)
                a &= _PREFIX[la]
            if self._b in self._nets:
                lb = max((pair[1] for pair in self.lengths), default=32)
                b &= _PREFIX[lb]
        return a, la, low, b, lb, rest

    def _add_packet(self, trip: Trip, row: int, dirs: tuple[str, ...], timeout: int | None, exist: bool) -> bool:
        key = self._packet_key(trip, row, dirs)
        if key is None:
            return False
        extra = Extra(timeout=timeout, packets=1, bytes=int(trip.pkts.length[row]), from_packet=True)
        try:
            self.insert(key, extra, int(trip.pkts.time[row]), exist)
        except Refused:
            return False
        return True

    def _del_packet(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> bool:
        key = self._packet_key(trip, row, dirs)
        try:
            return key is not None and self.remove(key, int(trip.pkts.time[row]))
        except Refused:  # such an element cannot be in the set
            return False

    # ---- members -----------------------------------------------------------------------------------------------

    def _same(self, key: Key) -> int:
        """Number of the member that Linux takes for the same element, or -1."""
        return self.table.find_one(*self._pack(key))

    def _fit(self, key: Key) -> Key:
        """The key as it is stored. Raises Refused when it cannot be."""
        if not self.zero_net and any(not (key[1] if k == self._a else key[4]) for k in self._nets):
            raise _no(BAD_CIDR)
        return key

    def insert(self, key: Key, extra: Extra, now: int, exist: bool) -> None:
        """Add one member. Raises Refused: it is there already, or there is no room."""
        key = self._fit(key)
        number = self._same(key)
        if number >= 0 and self._alive(number, now):
            if not exist:
                raise _no(ADDED)
            self._extend(number, extra, now, fresh=False)
            return
        if number < 0:
            number = self._place(key, now)
        self._extend(number, extra, now, fresh=self._forgets)

    _forgets: ClassVar[bool] = True  # a new member starts with counters at 0

    def _place(self, key: Key, now: int) -> int:
        words = self._pack(key)
        self._make_room(now)
        number = self.table.add_one(*words)
        if self._nets:
            self._use_length((key[1], key[4]), 1)
        return number

    def _make_room(self, now: int) -> None:
        pass

    def remove(self, key: Key, now: int) -> bool:
        """Take one member out. False: it is not there."""
        number = self._same(self._fit(key))
        if number < 0 or not self._alive(number, now):
            return False
        self._forget(number)
        return True

    def _forget(self, number: int) -> None:
        if self._nets:
            key = self._unpack(self.table.key(number))
            self._use_length((key[1], key[4]), -1)
        self.table.remove_one(number)
        self.comments.pop(number, None)
        self.skb.pop(number, None)

    def _use_length(self, pair: tuple[int, int], by: int) -> None:
        left = self.lengths.get(pair, 0) + by
        if left:
            new = pair not in self.lengths
            self.lengths[pair] = left
            if not new:
                return
        else:
            del self.lengths[pair]
        self._plan()

    def flush(self) -> None:
        super().flush()
        self.table.clear()
        self.lengths.clear()
        self._plan()

    def purge(self, now: int) -> None:
        """Forget the members whose time is over."""
        if self.deadline is not None:
            ids = self.table.ids()
            for number in ids[self.deadline[ids] < now].tolist():
                self._forget(number)

    def _living(self, now: int) -> I32:
        ids = self.table.ids()
        return ids if self.deadline is None else ids[self.deadline[ids] >= now]

    def count(self, now: int) -> int:
        return len(self.table) if self.deadline is None else len(self._living(now))

    def check(self) -> None:
        self.table.check()
        lengths: dict[tuple[int, int], int] = {}
        for number in self.table.ids().tolist():
            key = self._unpack(self.table.key(number))
            if self._nets:
                lengths[key[1], key[4]] = lengths.get((key[1], key[4]), 0) + 1
        assert lengths == self.lengths, "prefix lengths in use"
        assert self._room >= (int(self.table.ids().max()) + 1 if len(self.table) else 0), "room for extensions"

    # ---- text --------------------------------------------------------------------------------------------------

    def _read(self, element: str) -> tuple[Iterator[Key], str]:
        """(every key that an element stands for, the element as ipset prints it)"""
        words = element.split(",")
        want = len(self.parts)
        if len(words) > want:
            number = ("", "", "Two", "Three")[min(want, 3)]
            some = "supports none." if want == 1 else "supports one." if want == 2 else "supports two."
            seps = f"{number} elem separators" if want > 1 else "Elem separator"
            raise _no(f"Syntax error: {seps} in {element}, but settype {self.TYPE} {some}")
        if len(words) < want and not self._short_ok(len(words)):
            raise _no(f"Syntax error: {('', 'Second', 'Third')[len(words)]} element is missing from {element}.")
        choices: list[Iterable[tuple[int, int]]] = []
        shown = []
        for part, word in zip(self.parts, words, strict=False):
            if not word and part != "ip":
                raise _no(f"Syntax error: {('', 'Second', 'Third')[len(choices)]} element is missing from {element}.")
            values, text = self._read_part(part, word)
            choices.append(values)
            shown.append(text)
        return self._keys(choices), ",".join(shown)

    def _short_ok(self, n: int) -> bool:
        return False

    def _keys(self, choices: list[Iterable[tuple[int, int]]]) -> Iterator[Key]:
        for values in itertools.product(*choices) if len(choices) > 1 else ((v,) for v in choices[0]):
            a = la = low = b = lb = rest = 0
            for k, (value, length) in enumerate(values):
                if k == self._a:
                    a, la = value, length
                elif k == self._b:
                    b, lb = value, length
                elif k == self._port:
                    low = value
                else:
                    rest = value
            yield a, la, low, b, lb, rest

    def _read_part(self, part: str, word: str) -> tuple[Iterable[tuple[int, int]], str]:
        """(the values that a part stands for, each with a prefix length; the part as ipset prints it)"""
        if part == "plain" or (part == "ip" and self.family == "inet6"):
            if "/" in word or "-" in word:
                raise _no(f"Syntax error: plain IP address must be supplied: {word}")
            ip = _address(word, self.family)
            return ((ip, 0),), _show_address(ip, self.family)
        if part == "ip":
            lo, hi, text = _ip_range(word, self.family)
            step = 1 << (self.bits - self.netmask) if self.netmask and self.TYPE != "hash:ip,port" else 1
            if (lo == hi and "-" not in word) or isinstance(self.table, Dense):
                return ((ip, 0) for ip in range(lo, hi + 1, step)), text
            if self._ip_mask != 0xFFFFFFFF:
                # Linux masks where a range begins, and then no address on its way (seen on 6.18)
                if "-" in word:
                    first = _address(word.partition("-")[0], self.family)
                    ends = first & self._ip_mask, lo + hi - first
                else:
                    start = lo & self._ip_mask & ~(hi - lo)
                    ends = start, start | (hi - lo)
                return ((ip, _AS_IS) for ip in range(min(ends), max(ends) + 1, step)), text
            return ((ip, 0) for ip in range(lo, hi + 1)), text
        if part == "net":
            nets, text = _nets(word, self.family)
            return nets, text
        if part == "port":
            lows, text = _ports(word, self.family)
            return ((low, 0) for low in lows), text
        if part == "mark":
            mark = _number(word, 0, 0xFFFFFFFF)
            return ((mark, 0),), f"0x{mark:08x}"
        if part == "mac":
            mac = _mac(word)
            return ((mac, 0),), _show_mac(mac)
        raise AssertionError(part)

    def _show(self, key: Key) -> str:
        a, la, low, b, lb, rest = key
        out = []
        for k, part in enumerate(self.parts):
            if part in ("ip", "plain", "net"):
                ip, length = (a, la) if k == self._a else (b, lb)
                text = _show_address(ip, self.family)
                out.append(text if part != "net" or length == self.bits else f"{text}/{length}")
            elif part == "port":
                out.append(_show_port(low))
            else:
                out.append(self._show_rest(rest))
        return ",".join(out)

    def _show_rest(self, rest: int) -> str:
        return f"0x{rest:08x}" if "mark" in self.parts else _show_mac(rest)

    def members(self, now: int, order: bool = False) -> Iterator[str]:
        ids = self._living(now)
        if order:
            ids = np.array(sorted(ids.tolist(), key=lambda number: self._unpack(self.table.key(number))), np.int32)
        for start in range(0, len(ids), _BLOCK):
            part = ids[start : start + _BLOCK]
            texts = self._show_many(part)
            if not self._silent or self.comments or self.skb:
                texts = [text + tail for text, tail in zip(texts, self._tails(part.tolist(), now), strict=True)]
            yield from texts

    def _show_many(self, ids: I32) -> list[str]:
        """The elements of some members as ipset prints them."""
        if not isinstance(self.table, Table) or self.family == "inet6" or len(ids) < _FEW or self._a < 0:
            return [self._show(self._unpack(self.table.key(number))) for number in ids.tolist()]
        columns = []
        for k, part in enumerate(self.parts):
            word = self.table.column(1 if k in (self._b, self._rest) else 0, ids)
            if part in ("ip", "plain", "net"):
                raw = (word >> _H32).astype(">u4").tobytes()
                texts = [socket.inet_ntoa(raw[at : at + 4]) for at in range(0, len(raw), 4)]
                if part == "net":
                    tails = ["" if length == 32 else f"/{length}" for length in range(33)]
                    lengths = ((word >> np.uint64(24)) & np.uint64(255)).tolist()
                    texts = [text + tails[length] for text, length in zip(texts, lengths, strict=True)]
            else:
                show = _show_port if part == "port" else self._show_rest
                lows = (word & np.uint64(0xFFFFFF) if part == "port" else word).tolist()
                known = {low: show(low) for low in set(lows)}
                texts = [known[low] for low in lows]
            columns.append(texts)
        return columns[0] if len(columns) == 1 else list(map(",".join, zip(*columns, strict=True)))

    # ---- the command's side ------------------------------------------------------------------------------------

    def add(self, element: str, extra: Extra, now: int, exist: bool) -> None:
        keys, _ = self._read(element)
        self._allowed(extra)
        for key in keys:
            self.insert(key, extra, now, exist)

    def delete(self, element: str, extra: Extra, now: int, exist: bool) -> None:
        keys, _ = self._read(element)
        for key in keys:
            if not self.remove(key, now) and not exist:
                raise _no(NOT_ADDED)

    def test(self, element: str, extra: Extra, now: int) -> tuple[bool, str]:
        key, shown = self._one_key(element)
        return key is not None and self._holds(key, extra, now), shown

    def _one_key(self, element: str) -> tuple[Key | None, str]:
        """(the key to test, the element as ipset prints it); no key where none could be stored.

        Raises Refused at a range, where ipset does; elsewhere the first of it is tested.
        """
        where = f"is not allowed in command test with set type {self.TYPE} and family {self.family}"
        _, shown = self._read(element)
        words = element.split(",")
        for k, (part, word) in enumerate(zip(self.parts, words, strict=False)):
            if part == "port":
                if len(_ports(word, "inet" if self.family == "unspec" else self.family)[0]) > 1:
                    raise _no(f"FROM-TO port range {where}")
            elif part == "ip" and self.TYPE != "hash:ip":
                if "/" in word:
                    raise _no(f"IP/CIDR range {where}")
                if "-" in word:
                    raise _no(f"FROM-TO IP range {where}")
            elif part == "net" and k == 0 and "-" in word:
                raise _no(f"FROM-TO IP range {where}")
            if part in ("ip", "net", "plain"):
                words[k] = word.partition("-")[0]
            if part == "ip":
                words[k] = words[k].partition("/")[0]
        keys, first = self._read(",".join(words))
        try:
            return self._fit(next(iter(keys))), shown if self.TYPE == "hash:ip" else first.replace(",physdev:", ",")
        except Refused:
            return None, shown

    def _block(self, key: Key) -> tuple[int, ...]:
        """The network of a key, in the form that `blocks` knows (bridge ports have their own)."""
        words = self._pack((key[0], key[1], key[5] & 1, 0, 0, 0))
        return words[: len(words) // 2]

    def _holds(self, key: Key, extra: Extra, now: int) -> bool:
        """An address asks for the networks around it; a network asks for itself."""
        a, la, low, b, lb, rest = key
        pairs = [(la, lb)]
        if self._nets and all((la if k == self._a else lb) == self.bits for k in self._nets):
            pairs = sorted(self.lengths, reverse=True)
        for pair in pairs:
            masked = key
            if self._nets:
                at = a & _mask(pair[0], self.bits) if self._a in self._nets else a
                bt = b & _mask(pair[1], self.bits) if self._b in self._nets else b
                masked = (at, pair[0], low, bt, pair[1], rest)
            number = self._same(masked)
            if number >= 0 and self._alive(number, now):
                return extra.nomatch == (self.nomatch is not None and bool(self.nomatch[number]))
            if self.blocks is not None and self.blocks.find_one(*self._block(masked)) >= 0:
                break
        return False

    # ---- many at once ------------------------------------------------------------------------------------------

    def bulk(self, rests: Sequence[str], now: int) -> bool:
        """Add many plain elements (no ranges) whose lines have one shape, or shapes that can be told apart.

        Cost: about a microsecond a line. Says False, and has done nothing, at the first thing out of the ordinary: the
        slow way then finds out what it was.
        """
        if self.family == "inet6":
            return False
        # no little list a line: the collector would walk through all of them, again and again
        comments: list[str] | None = None
        heads: Sequence[str] = rests
        if self.comment and any("comment" in rest for rest in rests):
            ends = list(map(str.find, rests, itertools.repeat(" comment ")))
            heads = [rest if end < 0 else rest[:end] for rest, end in zip(rests, ends, strict=True)]
            comments = ["" if end < 0 else rest[end + 9 :] for rest, end in zip(rests, ends, strict=True)]
            if any(
                text and (len(text) < 2 or text[0] != '"' or text.find('"', 1) != len(text) - 1) for text in comments
            ):
                return False
        spaces = list(map(str.count, heads, itertools.repeat(" ")))
        shapes: list[tuple[list[list[str]], NDArray[np.int64] | None]] = []
        if max(spaces) == 0:
            elements = list(heads)
        else:
            kinds = [2 * n + (" nomatch" in head) for n, head in zip(spaces, heads, strict=True)]
            elements = [head[: head.find(" ")] if n else head for n, head in zip(spaces, heads, strict=True)]
            for kind in sorted(set(kinds)):
                some = None if kinds.count(kind) == len(kinds) else np.flatnonzero(np.array(kinds) == kind)
                lines = heads if some is None else [heads[k] for k in some.tolist()]
                words, width = " ".join(lines).split(" "), kind // 2 + 1
                shapes.append(([words[k::width] for k in range(width)], some))
        columns = self._bulk_columns(elements)
        if columns is None:
            return False
        n = len(elements)
        extras = _BulkExtras(n, self, now)
        if not all(extras.read(words, members) for words, members in shapes):
            return False
        if not self._bulk_room(n):
            return False
        if (self.table.find(columns) >= 0).any():
            return False
        before = len(self.table)
        ids = self.table.add(columns)
        if len(self.table) - before != n:
            self.table.remove(ids)
            return False
        self._reserve(int(ids.max()) + 1)
        extras.write(ids, self)
        if comments:
            self.comments.update(
                (i, text[1:-1]) for i, text in zip(ids.tolist(), comments, strict=True) if len(text) > 2
            )
        if self._nets:
            pair = (columns[0] >> np.uint64(24)) & np.uint64(255)
            pair <<= _H8
            if self._b >= 0:
                pair |= (columns[1] >> np.uint64(24)) & np.uint64(255)
            for value, times in zip(*np.unique(pair, return_counts=True), strict=True):
                at = (int(value) >> 8, int(value) & 255)
                self.lengths[at] = self.lengths.get(at, 0) + int(times)
            self._plan()
        self._bulk_done(ids)
        return True

    def _bulk_room(self, n: int) -> bool:
        return True

    def _bulk_done(self, ids: I32) -> None:
        pass

    def _bulk_columns(self, elements: list[str]) -> Columns | None:
        if len(self.parts) == 1:
            words = [elements]
        else:
            width = len(self.parts)
            if set(map(str.count, elements, itertools.repeat(","))) != {width - 1}:
                return None
            split = ",".join(elements).split(",")
            words = [split[k::width] for k in range(width)]
        key0 = np.zeros(len(elements), np.uint64)
        key1 = np.zeros(len(elements), np.uint64)
        try:
            for k, part in enumerate(self.parts):
                if part in ("ip", "plain"):
                    column = _bulk_addresses(words[k]) & np.uint64(self._ip_mask if part == "ip" else 0xFFFFFFFF)
                    if part == "ip" and self._null_ip and not column.all():
                        return None
                    (key0 if k == self._a else key1)[:] |= column << _H32
                elif part == "net":
                    halves = "/".join([word if "/" in word else word + "/32" for word in words[k]]).split("/")
                    if len(halves) != 2 * len(elements):
                        return None
                    addresses = halves[0::2]
                    length = _bulk_each(halves[1::2], lambda text: _number(text, 0, 32))
                    if not self.zero_net and not length.all():
                        return None
                    mask = np.array(_PREFIX, np.uint64)[length.astype(np.int64)] & np.uint64(self._ip_mask)
                    column = (_bulk_addresses(addresses) & mask) << _H32
                    (key0 if k == self._a else key1)[:] |= column | (length << np.uint64(24))
                elif part == "port":
                    key0 |= _bulk_each(words[k], lambda text: _only(_ports(text, self.family)[0]))
                else:
                    column = _bulk_each(words[k], lambda text: self._bulk_rest(text))
                    if self._a < 0:
                        key0 |= column
                    else:
                        key1 |= column
        except (OSError, ValueError, Refused):
            return None
        if self._a < 0 and not key0.all():
            return None
        return (key0, key1) if self._two else (key0,)

    def _bulk_rest(self, text: str) -> int:
        part = self.parts[self._rest]
        ((value, _),) = self._read_part(part, text)[0]
        return value & self.mark_mask if part == "mark" else value

    @property
    def _null_ip(self) -> bool:
        """An address of zero cannot be stored."""
        return self.TYPE == "hash:ip" or (self.TYPE == "hash:ip,port" and self.kernel != "6.1")


def _only(lows: range) -> int:
    if len(lows) != 1:
        raise ValueError("a range")
    return lows[0]


def _bulk_addresses(words: Sequence[str]) -> U64:
    """uint64[n] of dotted quads. Raises OSError at anything else."""
    raw = b"".join(map(partial(socket.inet_pton, socket.AF_INET), words))
    return np.frombuffer(raw, ">u4").astype(np.uint64)


def _bulk_each(words: Sequence[str], read: Callable[[str], int]) -> U64:
    """uint64[n]: read(word), asked once for each different word."""
    known = {word: read(word) for word in set(words)}
    return np.fromiter(map(known.__getitem__, words), np.uint64, len(words))


class _BulkExtras:
    """Extensions of many lines of a restore, in columns."""

    def __init__(self, n: int, owner: Set, now: int) -> None:
        self.now = now
        self.deadline = self.packets = self.bytes = None
        if owner.deadline is not None:
            assert owner.timeout is not None
            self.deadline = np.full(n, now + owner.timeout * SECOND if owner.timeout else NEVER, np.int64)
        if owner.counters:
            self.packets, self.bytes = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        self.nomatch: Mask | None = None
        self.n = n
        self.can_nomatch = owner.nomatch_capable

    def read(self, columns: list[list[str]], members: NDArray[np.int64] | None) -> bool:
        """Take the words behind the element of some lines, all of one shape, word by word. False: too odd."""
        where = slice(None) if members is None else members
        seen = set()
        k = 1
        while k < len(columns):
            word = columns[k][0]
            if word in seen or columns[k].count(word) != len(columns[k]):
                return False
            seen.add(word)
            if word == "nomatch":
                if not self.can_nomatch:
                    return False
                if self.nomatch is None:
                    self.nomatch = np.zeros(self.n, bool)
                self.nomatch[where] = True
                k += 1
                continue
            if k + 1 == len(columns):
                return False
            try:
                values = np.array(list(map(int, columns[k + 1])), np.uint64)
            except (ValueError, OverflowError):
                return False
            if any(text[0] == "0" and len(text) > 1 for text in columns[k + 1]):
                return False
            if word == "timeout" and self.deadline is not None and values.max(initial=0) <= 2147483:
                seconds = values.astype(np.int64)
                self.deadline[where] = np.where(seconds > 0, self.now + seconds * SECOND, NEVER)
            elif word == "packets" and self.packets is not None:
                self.packets[where] = values
            elif word == "bytes" and self.bytes is not None:
                self.bytes[where] = values
            else:
                return False
            k += 2
        return True

    def write(self, ids: I32, owner: Set) -> None:
        if owner.deadline is not None and self.deadline is not None:
            owner.deadline[ids] = self.deadline
        if owner.packets is not None and owner.bytes is not None:
            assert self.packets is not None and self.bytes is not None
            owner.packets[ids], owner.bytes[ids] = self.packets, self.bytes
        if self.nomatch is not None and owner.nomatch is None:
            owner.nomatch = np.zeros(owner._room, bool)
        if owner.nomatch is not None:
            owner.nomatch[ids] = False if self.nomatch is None else self.nomatch


def _addresses(pkts: Packets, rows: Rows, way: str) -> U64:
    return (pkts.src if way == "src" else pkts.dst)[rows].astype(np.uint64)


def _port_column(pkts: Packets, rows: Rows, way: str) -> tuple[U64, Mask]:
    """(protocol<<16 | port, rows where it can be read). ICMP's port is its type and code; other protocols have 0."""
    proto = pkts.proto[rows]
    port = (pkts.sport if way == "src" else pkts.dport)[rows].astype(np.uint64)
    need = _NEED.take(proto)
    can = (pkts.length[rows] - pkts.ihl[rows]) >= need
    later = (pkts.frag[rows] & OFFSET_MASK) != 0
    if later.any():
        can &= ~later | (need == 0)
    port *= _HAS_PORT.take(proto)
    icmp = np.flatnonzero(proto == ICMP)
    if len(icmp):
        some = rows[icmp]
        port[icmp] = (pkts.icmp_type[some].astype(np.uint64) << _H8) | pkts.icmp_code[some]
    return port | (proto.astype(np.uint64) << _H16), can


def _port_one(pkts: Packets, row: int, way: str) -> int:
    """protocol<<16 | port of one packet; -1 where it cannot be read."""
    proto = int(pkts.proto[row])
    need = _NEED_ONE[proto]
    if need:
        if int(pkts.frag[row]) & OFFSET_MASK or int(pkts.length[row]) - int(pkts.ihl[row]) < need:
            return -1
        if proto == ICMP:
            return proto << 16 | int(pkts.icmp_type[row]) << 8 | int(pkts.icmp_code[row])
    port = int((pkts.sport if way == "src" else pkts.dport)[row]) if _HAS_PORT_ONE[proto] else 0
    return proto << 16 | port


def _mac_one(trip: Trip, row: int, way: str) -> int:
    """Source or destination MAC of one packet; -1 where it has none."""
    pkts = trip.pkts
    if not pkts.ether[row]:
        return -1
    if way == "src":
        return int(pkts.smac[row])
    if pkts.pkttype[row] == BROADCAST:
        return 0xFFFFFFFFFFFF
    arrived = int(pkts.arrived[row])
    mac = trip.node.routing.links[arrived].mac if pkts.pkttype[row] == HOST and arrived >= 0 else None
    return -1 if mac is None else int(mac)


def _mac_column(trip: Trip, rows: Rows, way: str) -> tuple[U64, Mask]:
    """(MAC, rows that have one)"""
    if way == "src":
        return trip.pkts.smac[rows], trip.pkts.ether[rows]
    macs = np.array([_mac_one(trip, row, way) for row in rows.tolist()], np.int64)
    return macs.view(np.uint64), macs >= 0


# ---- hash sets -------------------------------------------------------------------------------------------------------

_HASH_WORDS = (
    "family", "hashsize", "maxelem", "timeout", "counters", "comment", "skbinfo", "forceadd", "bucketsize", "initval",
    "probes", "resize", "gc",
)  # fmt: skip


class HashSet(KeyedSet):
    """A hash:* set: at most `maxelem` members. `forceadd` is read and has no effect, which is how ipset 7.17 has it."""

    WORDS: ClassVar[tuple[str, ...]] = _HASH_WORDS

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        self.hashsize = 64
        size = _option(options, "hashsize", 0, 0xFFFFFFFF)
        while self.hashsize < (1024 if size is None else min(size, 1 << 31)):
            self.hashsize *= 2
        most = _option(options, "maxelem", 0, 0xFFFFFFFF)
        self.maxelem = 65536 if most is None else most
        bucket = _option(options, "bucketsize", 0, 255)
        self.bucketsize = 12 if bucket is None else min(max(bucket // 2 * 2, 2), 12)
        initval = _option(options, "initval", 0, 0xFFFFFFFF)
        if initval is None:
            initval = jhash2(tuple(name.encode()), seed & 0xFFFFFFFF)
        self.initval = initval
        super().__init__(name, options, kernel, seed)
        self._grown = 0  # members when hashsize was last looked at

    def _make_room(self, now: int) -> None:
        if len(self.table) >= self.maxelem:
            self.purge(now)
            if len(self.table) >= self.maxelem:
                raise _no(FULL)

    def _bulk_room(self, n: int) -> bool:
        return len(self.table) + n <= self.maxelem

    def _fit(self, key: Key) -> Key:
        a, la, low, b, lb, rest = super()._fit(key)
        if self.mark_mask:
            rest &= self.mark_mask
        if self._a >= 0 and self._a not in self._nets:
            if la != _AS_IS:
                a &= self._ip_mask
            la = 0
            if not a and self._null_ip:
                raise _no(NULL if self.TYPE == "hash:ip" else "Kernel error received: Invalid argument")
        return a, la, low, b, lb, rest

    def _resize(self) -> None:
        """Double hashsize until no bucket holds more than it may, which is when Linux doubles it."""
        if len(self.table) <= max(self._grown, self.bucketsize):
            return
        self._grown = len(self.table)
        ids = self.table.ids()
        words = []
        for k in range(self.table.words if isinstance(self.table, Table) else 0):
            assert isinstance(self.table, Table)
            column = self.table.column(k, ids)
            words += [(column >> _H32).astype(np.uint32), column.astype(np.uint32)]
        hashes = jhash2(tuple(words), self.initval)
        while np.bincount(hashes & np.uint32(self.hashsize - 1)).max() > self.bucketsize and self.hashsize < 1 << 31:
            self.hashsize *= 2

    def flush(self) -> None:
        self._resize()
        super().flush()
        self._grown = 0

    def header(self) -> str:
        self._resize()
        family = "" if self.family == "unspec" else f"family {self.family} "
        mark = f"markmask 0x{self.mark_mask:08x} " if self.mark_mask else ""
        early, late = self._mask_words()
        return (
            f"{family}{mark}hashsize {self.hashsize} maxelem {self.maxelem}{early}{self._common_words()}"
            f" bucketsize {self.bucketsize} initval 0x{self.initval:08x}{late}"
        )

    def _mask_words(self) -> tuple[str, str]:
        """The netmask or bitmask, where ipset prints it: before the extensions, or at the end."""
        return "", ""


class _Masked(HashSet):
    """Addresses are masked, when stored and when asked for."""

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        super().__init__(name, options, kernel, seed)
        self.mask_word = ""
        if "netmask" in options and "bitmask" in options:
            raise _no("Syntax error: bitmask and netmask are mutually exclusive, provide only one")
        if "netmask" in options:
            try:
                self.netmask = _number(options["netmask"], 1, self.bits)
            except Refused as bad:
                what = bad.problems[0].what
                span = f"1-{self.bits}"
                raise _no(f"{what}\nSyntax error: netmask is out of the inclusive range of {span}") from None
            self._ip_mask = _mask(self.netmask, self.bits)
            if self.netmask < self.bits:
                self.mask_word = f" netmask {self.netmask}"
        elif "bitmask" in options:
            self._ip_mask = _address(options["bitmask"], self.family)
            if not self._ip_mask:
                raise _no("The value of the netmask parameter is invalid")
            self.mask_word = f" bitmask {_show_address(self._ip_mask, self.family)}"
        self._plan()


class HashIp(_Masked, name="hash:ip"):
    """Addresses, or with `netmask`/`bitmask` what is left of them. 0.0.0.0 cannot be stored."""

    parts = ("ip",)
    REVISION: ClassVar[dict[str, int]] = {"6.1": 5, "6.18": 6}
    WORDS: ClassVar[tuple[str, ...]] = (*_HASH_WORDS, "netmask", "bitmask")

    def _mask_words(self) -> tuple[str, str]:
        return self.mask_word, ""


class HashIpPort(_Masked, name="hash:ip,port"):
    """Address and protocol:port."""

    parts = ("ip", "port")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 6, "6.18": 7}
    WORDS: ClassVar[tuple[str, ...]] = (*_HASH_WORDS, "netmask", "bitmask")

    def _mask_words(self) -> tuple[str, str]:
        return "", self.mask_word


class HashIpPortIp(HashSet, name="hash:ip,port,ip"):
    """Address, protocol:port and a second address, the third direction's."""

    parts = ("ip", "port", "plain")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 6, "6.18": 6}


class HashIpPortNet(HashSet, name="hash:ip,port,net"):
    """Address, protocol:port and a network around the third direction's address."""

    parts = ("ip", "port", "net")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 8, "6.18": 8}


class HashNet(HashSet, name="hash:net"):
    """Networks. The most specific one that holds the address decides; a `nomatch` one says no."""

    parts = ("net",)
    REVISION: ClassVar[dict[str, int]] = {"6.1": 7, "6.18": 7}


class HashNetPort(HashSet, name="hash:net,port"):
    """A network and protocol:port."""

    parts = ("net", "port")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 8, "6.18": 8}


class HashNetNet(_Masked, name="hash:net,net"):
    """Two networks: for each length of the first, longest first, every length of the second."""

    parts = ("net", "net")
    WORDS: ClassVar[tuple[str, ...]] = (*_HASH_WORDS, "netmask", "bitmask")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 3, "6.18": 4}

    def _mask_words(self) -> tuple[str, str]:
        return "", self.mask_word

    def _read(self, element: str) -> tuple[Iterator[Key], str]:
        """Networks are masked, both; those of a range are not, and then no packet finds what the mask would change."""
        keys, shown = super()._read(element)
        mask = self._ip_mask
        if "-" not in element:
            keys = ((a & mask, la, low, b & mask, lb, rest) for a, la, low, b, lb, rest in keys)
        return keys, shown

    def _packet_key(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> Key | None:
        key = super()._packet_key(trip, row, dirs)
        if key is None:
            return None
        a, la, low, b, lb, rest = key
        return a & self._ip_mask, la, low, b & self._ip_mask, lb, rest


class HashNetPortNet(HashSet, name="hash:net,port,net"):
    """Two networks and protocol:port between them."""

    parts = ("net", "port", "net")
    zero_net = True
    REVISION: ClassVar[dict[str, int]] = {"6.1": 3, "6.18": 3}


class HashIpMark(HashSet, name="hash:ip,mark"):
    """Address and packet mark; the mark is masked with `markmask`. The second direction says nothing."""

    parts = ("ip", "mark")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 3, "6.18": 3}
    WORDS: ClassVar[tuple[str, ...]] = (*_HASH_WORDS, "markmask")

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        super().__init__(name, options, kernel, seed)
        mask = _option(options, "markmask", 1, 0xFFFFFFFF)
        self.mark_mask = 0xFFFFFFFF if mask is None else mask
        self._plan()

    def _rest_column(self, trip: Trip, rows: Rows, way: str) -> tuple[U64, Mask | None]:
        return trip.pkts.mark[rows].astype(np.uint64), None

    def _rest_one(self, trip: Trip, row: int, way: str) -> int:
        return int(trip.pkts.mark[row])

    def _packet_key(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> Key | None:
        key = super()._packet_key(trip, row, dirs)
        return None if key is None else (*key[:5], key[5] & self.mark_mask)


class HashMac(HashSet, name="hash:mac"):
    """MAC addresses."""

    parts = ("mac",)
    REVISION: ClassVar[dict[str, int]] = {"6.1": 1, "6.18": 1}
    WORDS: ClassVar[tuple[str, ...]] = tuple(word for word in _HASH_WORDS if word != "family")

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        super().__init__(name, options, kernel, seed)
        self.family = "unspec"

    def _fit(self, key: Key) -> Key:
        if not key[5]:
            raise _no(NULL)
        return key

    def _shown(self, trip: Trip, rows: Rows, dirs: tuple[str, ...]) -> tuple[U64, U64 | None, Mask | None]:
        word, valid = _mac_column(trip, rows, dirs[0])
        return word, None, valid

    def _shown_one(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int] | None:
        mac = _mac_one(trip, row, dirs[0])
        return (mac, 0) if mac > 0 else None


class HashIpMac(HashSet, name="hash:ip,mac"):
    """Address and MAC address."""

    parts = ("ip", "mac")
    REVISION: ClassVar[dict[str, int]] = {"6.1": 1, "6.18": 1}

    def _rest_column(self, trip: Trip, rows: Rows, way: str) -> tuple[U64, Mask | None]:
        return _mac_column(trip, rows, way)

    def _rest_one(self, trip: Trip, row: int, way: str) -> int:
        return _mac_one(trip, row, way) or -1

    def _read_part(self, part: str, word: str) -> tuple[Iterable[tuple[int, int]], str]:
        if part == "ip" and self.family == "inet" and ("/" in word or "-" in word):
            raise _no(f"IP/CIDR range is not allowed in command add with set type {self.TYPE} and family inet")
        return super()._read_part(part, word)


class HashNetIface(HashSet, name="hash:net,iface"):
    """A network and an interface: `src` asks for the input device, `dst` for the output device.

    Interfaces are numbered as they are first named; the key's rest is number*2, plus 1 for `physdev:` (which is asked
    for by bridges only, so no packet here hits it). A `wildcard` member holds every interface whose name begins so.
    Of several members that hold a packet at one prefix length, the one added first is asked first.

    The most specific network that holds the address has the last word, whatever its members' interfaces are: with
    10.1.0.0/16,eth0 and 10.0.0.0/8,eth1 in the set, 10.1.0.1 from eth1 is not in it (Linux stops its search there).
    """

    parts = ("net", "iface")
    zero_net = True
    REVISION: ClassVar[dict[str, int]] = {"6.1": 8, "6.18": 8}

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        self.numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.wild: set[int] = set()  # members that are wildcards
        self.born: dict[int, int] = {}  # member -> when it was added; kept while there are wildcards
        self._births = 0
        super().__init__(name, options, kernel, seed)
        self.blocks = Table(3 if self.family == "inet6" else 1, seed)
        self._in_block: dict[int, int] = {}  # number of a block -> its members

    def _number_of(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = len(self.names)
            self.names.append(name)
        return self.numbers[name]

    def _read_part(self, part: str, word: str) -> tuple[Iterable[tuple[int, int]], str]:
        if part != "iface":
            return super()._read_part(part, word)
        bridge = word.startswith("physdev:")
        name = word[8:] if bridge else word
        if len(name) > 15:
            raise _no(f"Syntax error: interface name '{name}' is longer than 15 characters")
        return ((self._number_of(name) * 2 + bridge, 0),), word

    def _show_rest(self, rest: int) -> str:
        return ("physdev:" if rest & 1 else "") + self.names[rest >> 1]

    def _holders(self, rest: int) -> list[int]:
        """The rests of members that may hold an interface: its own, and wildcards that its name begins with."""
        name, bridge = self.names[rest >> 1], rest & 1
        out = [rest]
        for number in self.wild:
            other = self._unpack(self.table.key(number))[5]
            if other not in out and other & 1 == bridge and name.startswith(self.names[other >> 1]):
                out.append(other)
        return out

    def _found(self, key: Key) -> list[int]:
        """The members that hold a key's network and interface, in the order in which they were added."""
        out = []
        for rest in self._holders(key[5]):
            number = self.table.find_one(*self._pack((*key[:5], rest)))
            if number >= 0 and (rest == key[5] or number in self.wild):
                out.append(number)
        return sorted(out, key=lambda number: self.born.get(number, 0))

    def _same(self, key: Key) -> int:
        return next(iter(self._found(key)), -1)

    def _place(self, key: Key, now: int) -> int:
        number = super()._place(key, now)
        self._births += 1
        self.born[number] = self._births
        self._count_block(key, 1)
        return number

    def _count_block(self, key: Key, by: int) -> None:
        assert self.blocks is not None
        block = self.blocks.add_one(*self._block(key))
        self._in_block[block] = self._in_block.get(block, 0) + by
        if not self._in_block[block]:
            self.blocks.remove_one(block)

    def insert(self, key: Key, extra: Extra, now: int, exist: bool) -> None:
        before = len(self.table)
        super().insert(key, extra, now, exist)
        if extra.wildcard and len(self.table) > before:  # re-adding a member leaves its flag alone
            self.wild.add(self.table.find_one(*self._pack(key)))

    def _forget(self, number: int) -> None:
        self._count_block(self._unpack(self.table.key(number)), -1)
        super()._forget(number)
        self.wild.discard(number)
        self.born.pop(number, None)

    def _bulk_done(self, ids: I32) -> None:
        for number in ids.tolist():
            self._count_block(self._unpack(self.table.key(number)), 1)
        self.born.update(zip(ids.tolist(), itertools.count(self._births + 1), strict=False))
        self._births += len(ids)

    def _rest_column(self, trip: Trip, rows: Rows, way: str) -> tuple[U64, Mask | None]:
        links = (trip.pkts.link_in if way == "src" else trip.pkts.link_out)[rows]
        known = np.array([self.numbers.get(name, -1) for name in trip.node.routing.names] + [-1], np.int64)
        number = known[links]  # -1, no device, is the last
        return (number * 2).view(np.uint64), number >= 0

    def _rest_one(self, trip: Trip, row: int, way: str) -> int:
        link = int((trip.pkts.link_in if way == "src" else trip.pkts.link_out)[row])
        if link < 0:
            return -1
        name = trip.node.routing.names[link]
        return self._number_of(name) * 2 if self.wild else self.numbers.get(name, -1) * 2

    def _hits(self, trip: Trip, rows: Rows, dirs: tuple[str, ...], options: SetOptions) -> I32:
        if self._intricate(options):
            return np.array([self._hit(trip, row, dirs, options) for row in rows.tolist()], np.int32)
        return super()._hits(trip, rows, dirs, options)

    def _intricate(self, options: SetOptions) -> bool:
        """Several members may hold a packet at one length, or one that does may yet say nothing."""
        return bool(self.wild) or options.conditions or self.deadline is not None

    def _hit(self, trip: Trip, row: int, dirs: tuple[str, ...], options: SetOptions) -> int:
        if not self._intricate(options):
            return super()._hit(trip, row, dirs, options)
        shown = self._shown_one(trip, row, dirs)
        if shown is None:
            return -1
        a, _, _, _, _, rest = self._unpack(shown)
        for length, _ in sorted(self.lengths, reverse=True):
            silent = 0
            for number in self._found((a & _PREFIX[length], length, 0, 0, 0, rest)):
                says = self._judge_one(trip.pkts, row, number, options)
                if says:
                    return number if says > 0 else -2 - number
                silent = self.born[number]
            if self._last_word(a & _PREFIX[length], length, silent):
                break
        return -1

    def _last_word(self, net: int, length: int, silent: int) -> bool:
        """Is the search over at this network? A member that held the packet and yet said nothing (its counters, its
        timeout) lets it go on, unless the network has members that were added after that one.
        """
        if self.blocks is None or self.blocks.find_one(net << 32 | length << 24) < 0:
            return False
        rests = range(2 * len(self.names)) if silent else ()
        members = (self.table.find_one(*self._pack((net, length, 0, 0, 0, rest))) for rest in rests)
        return not silent or any(self.born[number] > silent for number in members if number >= 0)

    def _packet_key(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> Key | None:
        if len(dirs) > 1:
            link = int((trip.pkts.link_in if dirs[1] == "src" else trip.pkts.link_out)[row])
            if link >= 0:
                self._number_of(trip.node.routing.names[link])
        return super()._packet_key(trip, row, dirs)

    def flush(self) -> None:
        super().flush()
        self.wild.clear()
        self.born.clear()
        self._in_block.clear()
        if self.blocks is not None:
            self.blocks.clear()

    @property
    def _silent(self) -> bool:
        return not self.wild and super()._silent

    def _flagged(self, ids: list[int], texts: list[str]) -> list[str]:
        return [text + " wildcard" if number in self.wild else text for number, text in zip(ids, texts, strict=True)]


# ---- bitmap sets -----------------------------------------------------------------------------------------------------


class BitmapSet(KeyedSet):
    """A bitmap:* set: one place for each number of a range; the counters of a place outlive the member in it."""

    _forgets: ClassVar[bool] = False
    first: int
    last: int

    def _new_table(self) -> Table | Dense:
        return Dense(self.first, 0, self.last - self.first + 1)

    def _fit(self, key: Key) -> Key:
        if not self.first <= self._pack(key)[0] <= self.last:
            raise _no(RANGE)
        return key

    def _read(self, element: str) -> tuple[Iterator[Key], str]:
        keys, shown = super()._read(element)
        listed = list(itertools.islice(keys, 65537))
        if len(listed) > 1:
            self._fit(listed[0])
            self._fit(listed[-1])
        return iter(listed), shown

    def _bulk_columns(self, elements: list[str]) -> Columns | None:
        return None  # a bitmap is small

    def test(self, element: str, extra: Extra, now: int) -> tuple[bool, str]:
        key, shown = self._one_key(element)
        number = -1 if key is None else self._same(key)
        return number >= 0 and self._alive(number, now), shown


class BitmapPort(BitmapSet, name="bitmap:port"):
    """Ports, of TCP and UDP packets only."""

    parts = ("port",)
    REVISION: ClassVar[dict[str, int]] = {"6.1": 3, "6.18": 3}
    WORDS: ClassVar[tuple[str, ...]] = (*Set.WORDS, "range")

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        lows, _ = _ports(options["range"], "inet")
        self.first, self.last = lows[0] & 0xFFFF, lows[-1] & 0xFFFF
        super().__init__(name, options, kernel, seed)
        self.family = "unspec"

    def _plan(self) -> None:
        super()._plan()
        self._probes = [(M64, 0, M64, 0)]
        self._columns = [tuple(np.array([word], np.uint64) for word in probe) for probe in self._probes]

    def _pack(self, key: Key) -> tuple[int, ...]:
        return (key[2] & 0xFFFF,)

    def _unpack(self, words: tuple[int, ...]) -> Key:
        return 0, 0, words[0] & 0xFFFF, 0, 0, 0

    def _show(self, key: Key) -> str:
        return str(key[2])

    def _read_part(self, part: str, word: str) -> tuple[Iterable[tuple[int, int]], str]:
        lows, shown = _ports(word, "inet")
        if lows[0] >> 16 not in (TCP, UDP):
            raise _no("Syntax error: Only protocols TCP and UDP are valid")
        return ((low & 0xFFFF, 0) for low in lows), shown.partition(":")[2]

    def _shown(self, trip: Trip, rows: Rows, dirs: tuple[str, ...]) -> tuple[U64, U64 | None, Mask | None]:
        low, valid = _port_column(trip.pkts, rows, dirs[0])
        proto = trip.pkts.proto[rows]
        return low & np.uint64(0xFFFF), None, valid & ((proto == TCP) | (proto == UDP))

    def _shown_one(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int] | None:
        low = _port_one(trip.pkts, row, dirs[0])
        return (low & 0xFFFF, 0) if low >> 16 in (TCP, UDP) else None

    def header(self) -> str:
        return f"range {self.first}-{self.last}{self._common_words()}"


class BitmapIp(BitmapSet, name="bitmap:ip"):
    """Addresses of a range of up to 65536, or networks of one size (`netmask`)."""

    parts: ClassVar[tuple[str, ...]] = ("ip",)
    REVISION: ClassVar[dict[str, int]] = {"6.1": 3, "6.18": 3}
    WORDS: ClassVar[tuple[str, ...]] = (*Set.WORDS, "range", "netmask")

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        word = options["range"]
        if "/" not in word and "-" not in word:
            raise _no(f"Syntax error: IP/cidr or IP-IP range must be specified: {word}")
        first, last, _ = _ip_range(word, "inet")
        netmask = _option(options, "netmask", 1, 32) or 32
        self._shift = 32 - netmask
        self.first = first & _PREFIX[netmask]
        self.last = last | ((1 << self._shift) - 1)
        if (self.last - self.first + 1) >> self._shift > 65536:
            raise _no("The range you specified exceeds the size limit of the set type")
        super().__init__(name, options, kernel, seed)
        if self._shift:
            self.netmask = netmask
            self._ip_mask = _PREFIX[netmask]
        self._plan()

    def _new_table(self) -> Table | Dense:
        return Dense(self.first, self._shift, (self.last - self.first + 1) >> self._shift)

    def _plan(self) -> None:
        super()._plan()
        self._probes = [(M64, 0, M64, 0)]
        self._columns = [tuple(np.array([word], np.uint64) for word in probe) for probe in self._probes]

    def _pack(self, key: Key) -> tuple[int, ...]:
        return (key[0],)

    def _unpack(self, words: tuple[int, ...]) -> Key:
        return words[0], 0, 0, 0, 0, 0

    def _shown(self, trip: Trip, rows: Rows, dirs: tuple[str, ...]) -> tuple[U64, U64 | None, Mask | None]:
        return _addresses(trip.pkts, rows, dirs[0]), None, None

    def _shown_one(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int] | None:
        return int((trip.pkts.src if dirs[0] == "src" else trip.pkts.dst)[row]), 0

    def header(self) -> str:
        mask = f" netmask {self.netmask}" if self.netmask else ""
        return (
            f"range {_show_address(self.first, 'inet')}-{_show_address(self.last, 'inet')}{mask}{self._common_words()}"
        )


class BitmapIpMac(BitmapIp, name="bitmap:ip,mac"):
    """Addresses, each with the MAC address that it must come from.

    A member without one lets the first packet in, takes that packet's address for its own, and starts its timeout.
    """

    parts = ("ip", "mac")
    WORDS: ClassVar[tuple[str, ...]] = (*Set.WORDS, "range")

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        super().__init__(name, options, kernel, seed)
        self._two = False
        assert isinstance(self.table, Dense)
        self.mac = np.full(self.table.count, _NO_MAC, np.uint64)
        self.waiting: dict[int, int] = {}  # member without a MAC -> its seconds, once it has one

    @property
    def remembers(self) -> bool:
        return self.counters or bool((self.mac[self.table.ids()] == np.uint64(_NO_MAC)).any())

    def _read_part(self, part: str, word: str) -> tuple[Iterable[tuple[int, int]], str]:
        return super()._read_part("plain" if part == "ip" else part, word)

    def _short_ok(self, n: int) -> bool:
        return n == 1

    def _keys(self, choices: list[Iterable[tuple[int, int]]]) -> Iterator[Key]:
        without = len(choices) == 1
        for key in super()._keys(choices):
            yield (*key[:5], _NO_MAC) if without else key

    def insert(self, key: Key, extra: Extra, now: int, exist: bool) -> None:
        """Add one member. Linux keeps the seconds of a member without a MAC where others have their deadline (6.1,
        bitmap_ipmac_add_timeout). So, in a set with timeouts: such a member looks expired to whoever adds it again,
        and is not refused; and one that has its MAC and is added again without one is expired from then on.
        """
        key = self._fit(key)
        number = self._same(key)
        mac = key[5]
        filled = number >= 0 and int(self.mac[number]) != _NO_MAC
        again = filled or (number >= 0 and mac == _NO_MAC)
        if filled and mac != _NO_MAC and exist:
            self.mac[number] = mac
        if again and not exist and self._alive(number, now) and not self.waiting.get(number):
            raise _no(ADDED)
        if number < 0:
            number = self._place(key, now)
        stored = self.waiting.pop(number, None)
        if not filled:
            self.mac[number] = mac
        if self.timeout is not None:
            given = extra.timeout if extra.timeout is not None else self.timeout
            if mac == _NO_MAC:
                if not filled:
                    self.waiting[number] = given
                extra = replace(extra, timeout=0)
            elif stored is not None and not again and given == self.timeout:
                extra = replace(extra, timeout=stored)
        self._extend(number, extra, now, fresh=False)
        if filled and mac == _NO_MAC and self.deadline is not None and given:
            self.deadline[number] = _LONG_AGO

    def remove(self, key: Key, now: int) -> bool:
        """Whether it was there. One that is over by its timeout goes too, though it is said not to be there."""
        number = self._same(self._fit(key))
        if number >= 0 and not self._alive(number, now):
            self._forget(number)
        return super().remove(key, now)

    def _forget(self, number: int) -> None:
        super()._forget(number)
        self.waiting.pop(number, None)

    def flush(self) -> None:
        super().flush()
        self.waiting.clear()

    def test(self, element: str, extra: Extra, now: int) -> tuple[bool, str]:
        key, shown = self._one_key(element)
        number = -1 if key is None else self._same(key)
        if key is None or number < 0:
            return False, shown
        if not self._alive(number, now) and self.deadline is not None and self.deadline[number] != _LONG_AGO:
            return False, shown
        return key[5] == _NO_MAC or int(self.mac[number]) in (key[5], _NO_MAC), shown

    def _shown_one(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int] | None:
        mac = _mac_one(trip, row, dirs[1])
        shown = super()._shown_one(trip, row, dirs)
        return None if mac < 0 or shown is None else (shown[0], mac)

    def _packet_key(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> Key | None:
        shown = self._shown_one(trip, row, dirs) if len(dirs) > 1 else None
        return None if shown is None else (shown[0], 0, 0, 0, 0, shown[1])

    def _hit(self, trip: Trip, row: int, dirs: tuple[str, ...], options: SetOptions) -> int:
        shown = self._shown_one(trip, row, dirs)
        number = self.table.find_one(shown[0]) if shown is not None else -1
        if shown is None or number < 0:
            return -1
        mac = int(self.mac[number])
        if mac == _NO_MAC:  # learn it
            self._add_packet(trip, row, dirs, None, True)
            return number
        if mac != shown[1]:
            return -1
        return number if self._judge_one(trip.pkts, row, number, options) > 0 else -1

    def _hits(self, trip: Trip, rows: Rows, dirs: tuple[str, ...], options: SetOptions) -> I32:
        word, _, _ = self._shown(trip, rows, dirs)
        found = self.table.find((word,))
        known = self.mac.take(found, mode="clip")
        if (known[found >= 0] == np.uint64(_NO_MAC)).any():
            return np.array([self._hit(trip, row, dirs, options) for row in rows.tolist()], np.int32)
        mac, valid = _mac_column(trip, rows, dirs[1])
        found = np.where(valid & (known == mac), found, np.int32(-1))
        return found if self._silent else self._judge(trip.pkts, rows, found, options)

    def members(self, now: int, order: bool = False) -> Iterator[str]:
        ids = self._living(now).tolist()
        for number, tail in zip(ids, self._tails(ids, now), strict=True):
            text = _show_address(self.table.key(number)[0], "inet")
            mac = int(self.mac[number])
            yield text + (f",{_show_mac(mac)}" if mac != _NO_MAC else "") + tail

    def _tails(self, ids: list[int], now: int) -> list[str]:
        tails = super()._tails(ids, now)
        for k, number in enumerate(ids):
            if number in self.waiting:
                tails[k] = tails[k].replace(" timeout 0", f" timeout {self.waiting[number]}", 1)
        return tails


# ---- the set of sets -------------------------------------------------------------------------------------------------


class ListSet(Set, name="list:set"):
    """Sets in an order: a packet is in it if it is in one of them, and the first one that holds it decides.

    Members are held by name, as Linux holds them by index: after a `swap` the name's new content is asked.
    """

    parts = ("set",)
    REVISION: ClassVar[dict[str, int]] = {"6.1": 3, "6.18": 3}
    WORDS: ClassVar[tuple[str, ...]] = (*Set.WORDS, "size")
    owner: Sets

    def __init__(self, name: str, options: dict[str, str], kernel: str, seed: int) -> None:
        super().__init__(name, options, kernel, seed)
        self.family = "unspec"
        self.size = max(4, _option(options, "size", 0, 0xFFFFFFFF) or 8) if "size" in options else 8
        if "size" in options and _number(options["size"], 0, 0xFFFFFFFF) < 4:
            self.size = 4
        self.order: list[int] = []  # member numbers as they are asked
        self.named: dict[int, str] = {}

    @property
    def remembers(self) -> bool:
        return self.counters or any(self.owner.by_name[name].remembers for name in self.named.values())

    @property
    def steadfast(self) -> bool:
        return super().steadfast and all(self.owner.by_name[name].steadfast for name in self.named.values())

    def _inner(self, options: SetOptions) -> SetOptions:
        """What the members are asked: counters are compared on the list's own elements only."""
        return replace(
            options,
            packets_op="",
            bytes_op="",
            update_counters=options.update_counters and options.update_subcounters,
        )

    def _hits(self, trip: Trip, rows: Rows, dirs: tuple[str, ...], options: SetOptions) -> I32:
        inner = self._inner(options)
        out = np.full(len(rows), -1, np.int32)
        open_ = np.arange(len(rows))
        for number in self.order:
            yes = np.flatnonzero(self.owner.by_name[self.named[number]].match(trip, rows[open_], dirs, inner))
            found = np.full(len(yes), number, np.int32)
            out[open_[yes]] = self._judge(trip.pkts, rows[open_[yes]], found, options)
            open_ = open_[out[open_] < 0]
            if not len(open_):
                break
        return out

    def _hit(self, trip: Trip, row: int, dirs: tuple[str, ...], options: SetOptions) -> int:
        inner = self._inner(options)
        for number in self.order:
            inside = self.owner.by_name[self.named[number]].matches(trip, row, dirs, inner)
            if inside and self._judge_one(trip.pkts, row, number, options):
                return number
        return -1

    def skb_of(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> tuple[int, int, int, int] | None:
        hit = self._hit(trip, row, dirs, PLAIN)
        if hit < 0:
            return None
        if self.skbinfo:
            return self.skb.get(hit, (0, 0, 0, 0))
        return self.owner.by_name[self.named[hit]].skb_of(trip, row, dirs)

    def _add_packet(self, trip: Trip, row: int, dirs: tuple[str, ...], timeout: int | None, exist: bool) -> bool:
        now = int(trip.pkts.time[row])
        return any(
            self.owner.by_name[self.named[number]]._add_packet(trip, row, dirs, timeout, exist)
            for number in self.order
            if self._alive(number, now)
        )

    def _del_packet(self, trip: Trip, row: int, dirs: tuple[str, ...]) -> bool:
        now = int(trip.pkts.time[row])
        return any(
            self.owner.by_name[self.named[number]]._del_packet(trip, row, dirs)
            for number in self.order
            if self._alive(number, now)
        )

    def _living(self, now: int) -> list[int]:
        return [number for number in self.order if self._alive(number, now)]

    def _number(self, name: str, now: int) -> int:
        return next((number for number in self._living(now) if self.named[number] == name), -1)

    def _neighbour(self, extra: Extra, now: int) -> int:
        """Number of the member named by `before` or `after`; -1 when none was named."""
        name = extra.before or extra.after
        if not name:
            return -1
        if name not in self.owner.by_name:
            raise _no("The set to which you referred with 'before' or 'after' does not exist.")
        number = self._number(name, now)
        if number < 0:
            raise _no(NOT_NEXT)
        return number

    def add(self, element: str, extra: Extra, now: int, exist: bool) -> None:
        other = self.owner.by_name.get(element)
        self._allowed(extra)
        if other is None:
            raise _no("Set to be added/deleted/tested as element does not exist.")
        if isinstance(other, ListSet):
            raise _no("Sets with list:set type cannot be added to the set.")
        number = self._number(element, now)
        neighbour = self._neighbour(extra, now)
        if number >= 0:
            if number == neighbour:
                raise _no(NOT_NEXT)
            if not exist:
                raise _no(ADDED)
            self._extend(number, extra, now, fresh=False)
            return
        for old in [n for n in self.order if not self._alive(n, now)]:
            self._forget(old)
        number = next(n for n in itertools.count() if n not in self.named)
        place = len(self.order) if neighbour < 0 else self.order.index(neighbour) + bool(extra.after)
        self.order.insert(place, number)
        self.named[number] = element
        other.references += 1
        self._extend(number, extra, now, fresh=True)

    def _adjacent(self, number: int, extra: Extra, now: int) -> bool:
        """It stands right before, or right after, the member named."""
        name = extra.before or extra.after
        if not name:
            return True
        place = self.order.index(number) + (1 if extra.before else -1)
        return 0 <= place < len(self.order) and self.named[self.order[place]] == name

    def delete(self, element: str, extra: Extra, now: int, exist: bool) -> None:
        if element not in self.owner.by_name:
            raise _no("Set to be added/deleted/tested as element does not exist.")
        number = self._number(element, now)
        if number < 0:
            if not exist:
                raise _no(NOT_ADDED)
            return
        self._neighbour(extra, now)
        if not self._adjacent(number, extra, now):
            raise _no(NOT_NEXT)
        self._forget(number)

    def _forget(self, number: int) -> None:
        self.order.remove(number)
        self.owner.by_name[self.named.pop(number)].references -= 1
        self.comments.pop(number, None)
        self.skb.pop(number, None)

    def test(self, element: str, extra: Extra, now: int) -> tuple[bool, str]:
        number = self._number(element, now)
        where = f" after {extra.before or extra.after}" if extra.before or extra.after else ""
        return number >= 0 and self._adjacent(number, extra, now), element + where

    def flush(self) -> None:
        for number in list(self.order):
            self._forget(number)
        super().flush()

    def members(self, now: int, order: bool = False) -> Iterator[str]:
        ids = self._living(now)
        if order:
            ids.sort(key=self.named.__getitem__)
        for number, tail in zip(ids, self._tails(ids, now), strict=True):
            yield self.named[number] + tail

    def count(self, now: int) -> int:
        return len(self._living(now))

    def header(self) -> str:
        return f"size {self.size}{self._common_words()}"


# ---- the command -----------------------------------------------------------------------------------------------------

_COMMANDS = {
    "create": "create", "n": "create", "-N": "create", "--create": "create",
    "add": "add", "-A": "add", "--add": "add", "del": "del", "-D": "del", "--del": "del",
    "test": "test", "-T": "test", "--test": "test", "destroy": "destroy", "x": "destroy", "-X": "destroy",
    "--destroy": "destroy", "list": "list", "-L": "list", "--list": "list", "save": "save", "-S": "save",
    "--save": "save", "restore": "restore", "-R": "restore", "--restore": "restore", "flush": "flush", "-F": "flush",
    "--flush": "flush", "rename": "rename", "e": "rename", "-E": "rename", "--rename": "rename", "swap": "swap",
    "w": "swap", "-W": "swap", "--swap": "swap", "version": "version", "-v": "version", "-V": "version",
    "--version": "version", "help": "help", "-h": "help", "-H": "help", "--help": "help",
}  # fmt: skip
#: how many words each command must have
_WANTED = {"create": 2, "add": 2, "del": 2, "test": 2, "rename": 2, "swap": 2}
_OLD_TYPES = {
    "iphash": "hash:ip", "nethash": "hash:net", "ipporthash": "hash:ip,port", "ipportiphash": "hash:ip,port,ip",
    "ipportnethash": "hash:ip,port,net", "setlist": "list:set", "portmap": "bitmap:port", "ipmap": "bitmap:ip",
    "macipmap": "bitmap:ip,mac",
}  # fmt: skip
_ELEMENT_WORDS = ("timeout", "packets", "bytes", "comment", "skbmark", "skbprio", "skbqueue")
_FLAGS = ("counters", "comment", "skbinfo", "forceadd")
_FAMILIES = {"inet": "inet", "ipv4": "inet", "inet6": "inet6", "ipv6": "inet6"}
VERSION = "ipset v7.17, protocol version: 7\n"


@dataclass
class _Global:
    """Options that may stand anywhere on a command line."""

    exist: bool = False
    quiet: bool = False
    order: bool = False
    names: bool = False
    terse: bool = False
    output: str = "plain"
    file: str = ""
    words: list[str] = field(default_factory=list)


class Sets:
    """Every set of a node, and `ipset` upon them."""

    def __init__(self, kernel: str = "6.18", seed: int = 0) -> None:
        self.kernel, self.seed = kernel, seed
        self.by_name: dict[str, Set] = {}
        self._slots: list[Set | None] = []  # as Linux numbers them; a freed number is used again

    def __len__(self) -> int:
        return len(self.by_name)

    def get(self, name: str) -> Set | None:
        """The set that has this name now. A rule holds the name, not the set: `swap` changes what is behind it."""
        return self.by_name.get(name)

    def dimensions(self) -> dict[str, int]:
        """Name -> dimension of each set."""
        return {name: one.dimension for name, one in self.by_name.items()}

    def refer(self, name: str) -> None:
        """A rule holds a set. Raises Refused when there is none."""
        self._get(name).references += 1

    def release(self, name: str) -> None:
        """A rule holds it no longer."""
        self.by_name[name].references -= 1

    def check(self) -> None:
        """Assert that every part agrees with every other."""
        assert sorted(self.by_name) == sorted(one.name for one in self._slots if one)
        for name, one in self.by_name.items():
            assert one.name == name
            one.check()

    def _get(self, name: str) -> Set:
        one = self.by_name.get(name)
        if one is None:
            raise _no(NO_SET)
        return one

    def _in_order(self) -> list[Set]:
        """As `ipset save` goes through them: sets of sets last."""
        present = [one for one in self._slots if one]
        return [s for s in present if not isinstance(s, ListSet)] + [s for s in present if isinstance(s, ListSet)]

    # ---- files -------------------------------------------------------------------------------------------------

    def restore(
        self, text: str, file: str, problems: list[Problem], now: int = 0, exist: bool = False, stop: bool = False
    ) -> str:
        """Do what a file of ipset commands says, and append each line that cannot be done to `problems`.

        stop     end at the first problem, as `ipset restore` does
        returns  what the commands print
        Cost     about a microsecond a line where many like lines follow each other
        """
        lines = text.splitlines()
        out: list[str] = []
        lost: set[str] = set()  # sets that could not be created: what belongs to them needs no word of its own
        i, n = 0, len(lines)

        def one_by_one(first: int, last: int) -> None:
            for k in range(first, last):
                if stop and problems:
                    break
                self._line(lines[k], file, k + 1, problems, lost, out, now, exist)

        while i < n and not (stop and problems):
            line = lines[i]
            j = i + 1
            if line.startswith("add ") and not exist:
                prefix = line[: line.find(" ", 4) + 1]
                while j < n and j - i < _BLOCK and lines[j].startswith(prefix):
                    j += 1
                _adds(self.by_name.get(prefix[4:-1]), lines, i, j, len(prefix), now, one_by_one)
            else:
                one_by_one(i, j)
            i = j
        return "".join(out)

    def _line(
        self,
        line: str,
        file: str,
        number: int,
        problems: list[Problem],
        lost: set[str],
        out: list[str],
        now: int,
        exist: bool,
    ) -> None:
        text = line.strip()
        if not text or text[0] == "#" or text == "COMMIT":
            return
        try:
            words = _words(text)
            if len(words) > 1 and words[0] in ("add", "-A") and words[1] in lost:
                return
            if _COMMANDS.get(words[0]) == "restore":
                raise _no("Command `restore' is invalid in restore mode." + SEE_HELP, 2)
            out.append(self._run(words, now, exist))
        except NetemuError as bad:
            kind = UNSUPPORTED if isinstance(bad, Unsupported) else REFUSED
            problems.append(Problem(kind, bad.problems[0].what, file, number, line, hint=bad.problems[0].hint))
            if len(words) > 1 and words[0] in ("create", "-N"):
                lost.add(words[1])

    def save(self, now: int = 0, name: str | None = None) -> str:
        """`ipset save`, as ipset 7.17 prints it. Hash sets list their members in the order of their coming."""
        out = []
        for one in self._in_order() if name is None else [self._get(name)]:
            out.append(f"create {one.name} {one.TYPE} {one.header()}\n")
            start = f"add {one.name} "
            out.extend(f"{start}{member}\n" for member in one.members(now))
        return "".join(out)

    # ---- commands ----------------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], now: int = 0) -> str:
        """One `ipset` command; returns what it prints. Raises Refused with ipset's words and exit status."""
        words = list(argv[1:] if argv and argv[0].rpartition("/")[2] == "ipset" else argv)
        try:
            return self._run(words, now, False)
        except Refused as bad:
            quiet = any(word in ("-q", "-quiet", "--quiet") for word in words)
            what = bad.problems[0].what
            said = what if quiet or " is NOT in set " in what else f"ipset v7.17: {what}"
            raise Refused(said, status=bad.status, hint=bad.problems[0].hint) from None

    def _run(self, words: list[str], now: int, exist: bool) -> str:
        options = _globals(words, exist)
        words = options.words
        if not words:
            raise _no("No command specified." + SEE_HELP, 2)
        command = _COMMANDS.get(words[0])
        if command is None:
            raise _no(f"No command specified: unknown argument {words[0]}" + SEE_HELP, 2)
        given = len(words) - 1
        if given < _WANTED.get(command, 0):
            which = "second mandatory" if given else "mandatory"
            raise _no(f"Missing {which} argument to command {command}" + SEE_HELP, 2)
        if command in ("add", "del", "test"):
            return self._element(command, words[1], words[2], words[3:], options, now)
        if command == "create":
            self._create(words[1], words[2], words[3:], options.exist)
        elif command == "destroy":
            self._destroy(words[1] if given else None)
        elif command == "flush":
            for one in [self._get(words[1])] if given else list(self.by_name.values()):
                one.flush()
        elif command == "rename":
            self._rename(words[1], words[2])
        elif command == "swap":
            self._swap(words[1], words[2])
        elif command == "save":
            return self.save(now, words[1] if given else None)
        elif command == "list":
            return self._list(words[1] if given else None, options, now)
        elif command == "restore":
            return self._restore_file(options, now)
        else:
            return VERSION
        return ""

    def _restore_file(self, options: _Global, now: int) -> str:
        if not options.file:
            raise Unsupported("ipset restore reads its standard input here only with -file NAME")
        problems: list[Problem] = []
        with open(options.file, encoding="utf-8") as source:
            out = self.restore(source.read(), options.file, problems, now, options.exist, stop=True)
        if problems:
            raise _no(f"Error in line {problems[0].line}: {problems[0].what}")
        return out

    def _create(self, name: str, kind: str, words: list[str], exist: bool) -> None:
        if len(name) > 31:
            raise _no(f"Syntax error: setname '{name}' is longer than 31 characters")
        cls = SETS.get(_OLD_TYPES.get(kind, kind))
        if cls is None:
            raise _no(f"Syntax error: typename '{kind}' is unknown")
        options = _create_words(cls, words, self.kernel)
        one = cls(name, options, self.kernel, self.seed)
        if isinstance(one, ListSet):
            one.owner = self
        old = self.by_name.get(name)
        if old is not None:
            if exist and _alike(old, one):
                return
            raise _no("Set cannot be created: set with the same name already exists")
        self.by_name[name] = one
        for k, slot in enumerate(self._slots):
            if slot is None:
                self._slots[k] = one
                return
        self._slots.append(one)

    def _destroy(self, name: str | None) -> None:
        if name is not None:
            one = self._get(name)
            if one.references:
                raise _no(IN_USE)
            one.flush()
            del self.by_name[name]
            self._slots[self._slots.index(one)] = None
            return
        if any(one.references for one in self.by_name.values()):
            raise _no(IN_USE)
        self.by_name.clear()
        self._slots.clear()

    def _rename(self, old: str, new: str) -> None:
        one = self._get(old)
        if one.references:
            raise _no("Set cannot be renamed: it is in use by another system")
        if new in self.by_name:
            raise _no("Set cannot be renamed: a set with the new name already exists")
        if len(new) > 31:
            raise _no(f"Syntax error: setname '{new}' is longer than 31 characters")
        self.by_name = {new if name == old else name: s for name, s in self.by_name.items()}
        one.name = new

    def _swap(self, first: str, second: str) -> None:
        a = self._get(first)
        b = self.by_name.get(second)
        if b is None:
            raise _no("Sets cannot be swapped: the second set does not exist")
        if a.features != b.features or a.family != b.family:
            raise _no("The sets cannot be swapped: their type does not match")
        i, j = self._slots.index(a), self._slots.index(b)
        self._slots[i], self._slots[j] = b, a
        a.name, b.name = second, first
        a.references, b.references = b.references, a.references
        self.by_name[first], self.by_name[second] = b, a

    def _element(self, command: str, name: str, element: str, words: list[str], options: _Global, now: int) -> str:
        one = self._get(name)
        try:
            extra = _element_words(one, words)
        except Refused:
            if isinstance(one, KeyedSet):
                one._read(element)  # what is wrong with the element is said first
            raise
        if isinstance(one, ListSet) and "," in element:
            raise _no("you must specify elements as setname,[before|after],setname")
        if command == "add":
            one.add(element, extra, now, options.exist)
        elif command == "del":
            one.delete(element, extra, now, options.exist)
        else:
            inside, shown = one.test(element, extra, now)
            if not inside:
                raise _no("" if options.quiet else f"{shown} is NOT in set {name}.")
            return "" if options.quiet else f"Warning: {shown} is in set {name}.\n"
        return ""

    def _list(self, name: str | None, options: _Global, now: int) -> str:
        if options.output == "save":
            return self.save(now, name)
        if options.output != "plain":
            raise Unsupported(f"ipset list -output {options.output}", hint="use plain or save")
        chosen = self._in_order() if name is None else [self._get(name)]
        if options.names:
            return "".join(f"{one.name}\n" for one in chosen)
        out = []
        for one in chosen:
            count = one.count(now)
            text = (
                f"Name: {one.name}\nType: {one.TYPE}\nRevision: {one.REVISION[self.kernel]}\nHeader: {one.header()}\n"
                f"Size in memory: {200 + 64 * count}\nReferences: {one.references}\nNumber of entries: {count}\n"
            )
            if not options.terse:
                text += "Members:\n" + "".join(f"{member}\n" for member in one.members(now, options.order))
            out.append(text)
        return "\n".join(out)


def _adds(
    target: Set | None, lines: list[str], i: int, j: int, start: int, now: int, slow: Callable[[int, int], None]
) -> None:
    """Add lines i..j, in order, the quick way where it will go.

    A piece that the quick way does not take is cut in two, so that one odd line costs a few lines beside it.
    """
    if target is None or j - i < 32:
        slow(i, j)
    elif not target.bulk([line[start:] for line in lines[i:j]], now):
        half = (i + j) // 2
        _adds(target, lines, i, half, start, now, slow)
        _adds(target, lines, half, j, start, now, slow)


def _words(text: str) -> list[str]:
    """The words of a line. Double quotes hold words together; there are no escapes."""
    if '"' not in text:
        return text.split()
    out: list[str] = []
    pieces = text.split('"')
    for k, piece in enumerate(pieces):
        if k % 2:
            out.append(piece)
        else:
            out += piece.split()
    return out


def _globals(words: list[str], exist: bool) -> _Global:
    out = _Global(exist=exist)
    k = 0
    while k < len(words):
        word = words[k]
        if k and words[k - 1] == "comment":
            out.words.append(word)
        elif word in ("-!", "-exist", "--exist"):
            out.exist = True
        elif word in ("-q", "-quiet", "--quiet"):
            out.quiet = True
        elif word in ("-s", "-sorted", "--sorted"):
            out.order = True
        elif word in ("-n", "-name", "--name"):
            out.names = True
        elif word in ("-t", "-terse", "--terse"):
            out.terse = True
        elif word in ("-r", "-resolve", "--resolve"):
            raise Unsupported("ipset -resolve", hint="netemu asks no name server")
        elif word in ("-o", "-output", "--output", "-f", "-file", "--file") and k + 1 < len(words):
            k += 1
            if word.lstrip("-")[0] == "o":
                out.output = words[k]
            else:
                out.file = words[k]
        else:
            out.words.append(word)
        k += 1
    return out


def _create_words(cls: type[Set], words: list[str], kernel: str) -> dict[str, str]:
    """The options of a `create`, as name -> value."""
    out: dict[str, str] = {}
    k = 0
    while k < len(words):
        word = words[k].removeprefix("--") if words[k].startswith("--") else words[k]
        k += 1
        if word in ("-4", "-6"):
            words[k:k] = ["inet" if word == "-4" else "inet6"]
            word = "family"
        if word not in cls.WORDS:
            raise _no(f"Unknown argument: `{word}'" + SEE_HELP, 2)
        if word in out:
            raise _no(f"Syntax error: {word} already specified")
        if word in _FLAGS:
            out[word] = ""
            continue
        if k == len(words):
            raise _no(f"Missing mandatory argument of option `{word}'" + SEE_HELP, 2)
        value = words[k]
        k += 1
        if word == "family":
            if value not in _FAMILIES:
                raise _no(f"Syntax error: unknown inet family {value}")
            value = _FAMILIES[value]
        need = {"hash:ip": 6, "hash:ip,port": 7, "hash:net,net": 4}.get(cls.TYPE, 0)
        if kernel == "6.1" and (
            word == "bitmask" or (word == "netmask" and cls.TYPE in ("hash:ip,port", "hash:net,net"))
        ):
            raise _no(
                f"Argument `{word}' is supported in the kernel module of the set type {cls.TYPE} starting from the "
                f"revision {need} and you have installed revision {need - 1} only. Your kernel is behind your ipset "
                f"utility." + SEE_HELP,
                2,
            )
        out[word] = value
    if "range" in cls.WORDS and "range" not in out:
        raise _no("Mandatory option `range' is missing" + SEE_HELP, 2)
    return out


def _element_words(one: Set, words: list[str]) -> Extra:
    """The words behind an element."""
    out = Extra()
    if not words:
        return out
    seen: set[str] = set()
    mark = mask = prio = queue = 0
    k = 0
    while k < len(words):
        word = words[k].removeprefix("--")
        k += 1
        if word == "nomatch" and one.nomatch_capable:
            out.nomatch = True
            continue
        if word == "wildcard" and "iface" in one.parts:
            out.wildcard = True
            continue
        if word not in _ELEMENT_WORDS and not (isinstance(one, ListSet) and word in ("before", "after")):
            raise _no(f"Unknown argument: `{word}'" + SEE_HELP, 2)
        if word in seen:
            raise _no(f"Syntax error: {word} already specified")
        seen.add(word)
        if k == len(words):
            raise _no(f"Missing mandatory argument of option `{word}'" + SEE_HELP, 2)
        value = words[k]
        k += 1
        if word == "timeout":
            out.timeout = _number(value, 0, 2147483)
        elif word == "packets":
            out.packets = _number(value, 0, M64 - 1)
        elif word == "bytes":
            out.bytes = _number(value, 0, M64 - 1)
        elif word == "comment":
            if '"' in value:
                raise _no('Syntax error: " character is not permitted in comments')
            if len(value) > 255:
                raise _no("Syntax error: Comment is longer than the maximum allowed 255 characters")
            out.comment = value
        elif word == "skbmark":
            mark, mask = _pair(value, "/", 0xFFFFFFFF, "skbmark format, it should be:  MARK/MASK or MARK")
        elif word == "skbprio":
            major, minor = _pair(value, ":", -1, "skbprio format, it should be:MAJOR:MINOR")
            prio = major << 16 | minor
        elif word == "skbqueue":
            queue = _number(value, 0, 0xFFFF)
        elif word == "before":
            out.before = value
        else:
            out.after = value
    out.skb = (mark, mask, prio, queue)
    return out


def _pair(text: str, mark: str, alone: int, what: str) -> tuple[int, int]:
    """Two hexadecimal numbers; `alone` stands for the second if it may be left out (0x is then wanted)."""
    first, split, second = text.partition(mark)
    try:
        hexed = text.startswith("0x") and (not split or second.startswith("0x"))
        if (mark == "/" and not hexed) or (not split and alone < 0):
            raise ValueError
        return int(first, 16), int(second, 16) if split else alone
    except ValueError:
        raise _no(f"Syntax error: Invalid {what} (see manpage)") from None


def _alike(a: Set, b: Set) -> bool:
    """`create -exist` takes a set for the same when these agree (the size of the hash does not count)."""
    common = "TYPE family timeout counters comment skbinfo maxelem _ip_mask mark_mask netmask first last size"
    return all(getattr(a, name, None) == getattr(b, name, None) for name in common.split())


_SAID = {"ip": "address", "plain": "address", "net": "network", "port": "protocol:port", "mac": "MAC", "set": "set"}


def catalogue() -> str:
    """The registry as a Markdown table (docs/sets.md holds it, and a test that it is up to date)."""
    lines = [
        "| type | a member is | directions | options of `create` | revision 6.1, 6.18 | |",
        "|---|---|--:|---|---|---|",
    ]
    for name, kind in sorted(SETS.items()):
        member = "port" if name == "bitmap:port" else ", ".join(_SAID.get(part, part) for part in kind.parts) or "set"
        words = " ".join(word for word in kind.WORDS if word not in _IGNORED)
        meaning = (kind.__doc__ or "").split("\n\n")[0].strip()
        revision = ", ".join(str(n) for n in kind.REVISION.values())
        lines.append(f"| `{name}` | {member} | {len(kind.parts) or 1} | {words} | {revision} | {meaning} |")
    return "\n".join(lines) + "\n"


_IGNORED = ("probes", "resize", "gc")  # old words that ipset takes and that mean nothing any more
