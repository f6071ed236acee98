"""Matches: every `-m`. A match is a question about packets: `mask` asks it of many, `says` of one.

One class each, one registry, MATCHES. A pure question is a column expression (`many`), with a few plain integers for a
single packet (`says`) where it is asked so often that an array of one is too dear. A question with memory (`limit`,
`recent`, `statistic nth`, ...) is written for one packet and asked in arrival order; it says what it `touches`.

    p = Dport(80)            mask(trip, rows)  -->  bool[len(rows)]   never written to by the caller
                             says(trip, row)   -->  bool

Where a packet must be dropped at once (a header too short to look at), `trip.hot` gets its row and the answer is no.
"""

from __future__ import annotations

import datetime
import re
import socket
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.clock import SECOND, jiffies
from netemu.grammar import Bad, Extension, Failed, Given, NotModelled, RuleContext
from netemu.ipset import SetOptions
from netemu.ipvs import MASQ, ROUTE, TUNNEL
from netemu.packets import (
    DCCP,
    ICMP,
    MULTICAST,
    OFFSET_MASK,
    PORTED,
    SCTP,
    TCP,
    UDP,
    Mask,
    Rows,
)
from netemu.routing import ADDR_TYPES, LOCAL, UNICAST

if TYPE_CHECKING:
    from netemu.ipset import Set
    from netemu.node import Node
    from netemu.trip import Trip

MATCHES: dict[str, type[Match]] = {}

#: matches that iptables has and netemu does not model, and why
OTHER_MATCHES = {
    "cgroup": "packets do not say which process sent them",
    "cpu": "which processor handles a packet is chance",
    "osf": "the fingerprints are no part of a node's dumps",
    "rateest": "the estimator's timer runs on the kernel's own clock",
}

ALL_HOOKS = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))
NONE: frozenset[str] = frozenset()
M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF


def _constant(answer: bool) -> Mask:
    one = np.array([answer])
    one.flags.writeable = False
    return one


YES, NO = _constant(True), _constant(False)


@dataclass(frozen=True)
class Option:
    """What iptables allows of an option: words after it, `!` before it, older spellings, and what excludes it."""

    words: int = 1
    invert: bool = False
    old: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    often: bool = False


class Match(Extension):
    """One `-m NAME`.

    SPEC      the options, in the order in which they exclude each other
    NEEDED    options that must be there
    protocols `-p` must say one of these; empty: any
    tables    tables that it may stand in; empty: any
    hooks     built-in chains from which it may be reached
    sets      names of the ipsets that it uses
    always    it says yes to every packet
    unmodelled  it stands for a match that netemu does not model (see doubt.py)
    """

    SPEC: ClassVar[dict[str, Option]] = {}
    NEEDED: ClassVar[tuple[str, ...]] = ()
    protocols: ClassVar[tuple[int, ...]] = ()
    tables: ClassVar[frozenset[str]] = NONE
    always: ClassVar[bool] = False
    unmodelled: ClassVar[bool] = False
    _spellings: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, *, name: str = "", **more: object) -> None:
        super().__init_subclass__(**more)
        cls.OPTIONS = {}
        cls._spellings = {}
        for option, spec in cls.SPEC.items():
            for spelling in (option, *spec.old):
                cls.OPTIONS[spelling] = spec.words
                cls._spellings[spelling] = option
        if name:
            if cls.says is Match.says and cls.many is Match.many:
                raise TypeError(f"match {name} answers neither of one packet nor of many")
            if issubclass(cls, Memory) and (cls.touches is Memory.touches or cls.ask is Memory.ask):
                raise TypeError(f"match {name} has memory and does not say what it touches, or does not answer")
            cls.name = name
            MATCHES[name] = cls

    @property
    def hooks(self) -> frozenset[str]:
        return ALL_HOOKS

    @property
    def sets(self) -> tuple[str, ...]:
        return ()

    @property
    def text(self) -> str:
        """`-m NAME` and its options, as iptables-save prints them."""
        return f"-m {self.name} {self.words()}".rstrip()

    # ---- asking ------------------------------------------------------------------------------------------------

    def mask(self, trip: Trip, rows: Rows) -> Mask:
        """bool[len(rows)]: the answer for each row. Not to be written to. Cost: `says` for a single row."""
        if len(rows) == 1:
            return YES if self.says(trip, rows.item()) else NO
        return self.many(trip, rows)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        """The same of many rows, in their order."""
        says = self.says
        return np.fromiter((says(trip, row) for row in rows.tolist()), bool, len(rows))

    def says(self, trip: Trip, row: int) -> bool:
        """The same of one packet."""
        return bool(self.many(trip, np.array([row]))[0])

    # ---- life --------------------------------------------------------------------------------------------------

    def start(self, node: Node, place: str) -> None:
        """The table was put in place with this rule in it, at `place` ("filter:INPUT:3"): memory begins anew.

        Linux replaces a whole table at every change, so each change starts every rule of the table again.
        """

    def stop(self, node: Node) -> None:
        """The rule is gone. Called after `start` of those that take its place, so shared tables survive."""

    # ---- reading -----------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        """The match that these options make. Raises Bad where the tool or the kernel would refuse."""
        match = cls.build(cls._sorted_out(given), rule)
        why = match.check(rule)
        if why:
            raise Failed(f"Invalid argument: {why}")
        return match

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        """The match of options that are allowed together, by their newest name."""
        raise NotImplementedError

    def check(self, rule: RuleContext) -> str:
        """Why the kernel would not take it in this rule ("" when it would)."""
        if self.protocols and (rule.proto not in self.protocols or rule.proto_inverted):
            names = " or ".join(f"`-p {PROTOCOL_NAMES.get(p, p)}'" for p in self.protocols)
            return f"match `{self.name}' needs {names}"
        if self.tables and rule.table not in self.tables:
            return f"match `{self.name}' is only valid in the tables {', '.join(sorted(self.tables))}"
        if rule.chain in ALL_HOOKS and rule.chain not in self.hooks:
            return f"match `{self.name}' with these options is not valid in the chain {rule.chain}"
        return ""

    @classmethod
    def _sorted_out(cls, given: list[Given]) -> dict[str, Given]:
        out: dict[str, Given] = {}
        for g in given:
            option = cls._spellings.get(g.option)
            if option is None:
                raise Bad(f'unknown option "{g.option}"', g.option)
            spec = cls.SPEC[option]
            if option in out and not spec.often:
                raise Bad(f'{cls.name}: option "{option}" can only be used once.', g.option)
            if g.invert and not spec.invert:
                raise Bad(f'{cls.name}: option "{option}" cannot be inverted.', g.option)
            for other in spec.alone:
                if other in out:
                    raise Bad(f'{cls.name}: option "{option}" cannot be used together with "{other}".', g.option)
            out[option] = g
        for option in cls.NEEDED:
            if option not in out:
                raise Bad(f'{cls.name}: option "{option}" must be specified')
        return out


class Memory(Match):
    """A match that remembers: `ask` it of one packet after the other, in arrival order."""

    _place = ""
    _running = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",))

    def ask(self, trip: Trip, row: int) -> bool:
        """The answer for one packet; what it changes is remembered."""
        raise NotImplementedError

    def says(self, trip: Trip, row: int) -> bool:
        if not self._running:  # it stands in no table
            self.start(trip.node, self._place)
        return self.ask(trip, row)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        if not self._running:  # it stands in no table
            self.start(trip.node, self._place)
        ask = self.ask
        return np.fromiter((ask(trip, row) for row in rows.tolist()), bool, len(rows))

    def start(self, node: Node, place: str) -> None:
        self._running, self._place = True, place
        self.reset(node)

    def stop(self, node: Node) -> None:
        self._running = False

    def reset(self, node: Node) -> None:
        """Back to what the rule says."""
        raise NotImplementedError


# ---- reading and printing words ------------------------------------------------------------------------------------

PROTOCOL_NAMES = {
    1: "icmp", 2: "igmp", 4: "ipencap", 6: "tcp", 17: "udp", 33: "dccp", 41: "ipv6", 47: "gre", 50: "esp", 51: "ah",
    58: "ipv6-icmp", 89: "ospf", 94: "ipip", 103: "pim", 112: "vrrp", 115: "l2tp", 132: "sctp", 135: "mobility-header",
    136: "udplite",
}  # fmt: skip
PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()} | {"all": 0, "icmpv6": 58, "ipip": 4}

#: services that rule sets name; others are asked of the system
SERVICES = {
    "ftp-data": 20, "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "bootps": 67, "bootpc": 68,
    "tftp": 69, "http": 80, "www": 80, "kerberos": 88, "pop3": 110, "sunrpc": 111, "ntp": 123, "netbios-ns": 137,
    "netbios-dgm": 138, "netbios-ssn": 139, "imap2": 143, "imap": 143, "snmp": 161, "bgp": 179, "ldap": 389,
    "https": 443, "microsoft-ds": 445, "isakmp": 500, "syslog": 514, "submission": 587, "ldaps": 636, "imaps": 993,
    "pop3s": 995, "openvpn": 1194, "nfs": 2049, "mysql": 3306, "sip": 5060, "postgresql": 5432,
}  # fmt: skip


def integer(text: str) -> int | None:
    """A number as C reads it: decimal, 0x hexadecimal or 0 octal; None for anything else.

    >>> integer("0x4000"), integer("077"), integer(" +12"), integer("-1"), integer("08")
    (16384, 63, 12, None, None)
    """
    text = text.lstrip().removeprefix("+")
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"0[0-7]+", text):
        return int(text, 8)
    return int(text) if re.fullmatch(r"0|[1-9][0-9]*", text) else None


def quoted(text: str) -> str:
    """A string as iptables-save prints it: bare when it is only letters, digits, `_` and `-`.

    >>> print(quoted("a_b-c"), quoted("ns/svc"), quoted('it\\'s "it"'), quoted(""))
    a_b-c "ns/svc" "it\\'s \\"it\\"" ""
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text
    return '"' + re.sub(r"([\"\\'])", r"\\\1", text) + '"'


def dotted(address: int) -> str:
    """An address in print."""
    return ".".join(map(str, address.to_bytes(4, "big")))


def _turned(answers: Mask, invert: bool) -> Mask:
    """The answers after `!`."""
    return ~answers if invert else answers


def _not(invert: bool) -> str:
    return "! " if invert else ""


def _service(text: str) -> int | None:
    if text in SERVICES:
        return SERVICES[text]
    try:
        return socket.getservbyname(text)
    except OSError:
        return None


def _port(text: str) -> int:
    """A port number or service, as the older matches read it."""
    n = integer(text)
    if n is None:
        n = _service(text.strip()) if text else None
    if n is None or n > 0xFFFF:
        raise Bad(f"invalid port/service `{text}' specified", text)
    return n


def _loose_port(text: str) -> int:
    """A port as the newer matches read it: decimal or a service; too large a number loses its upper bits."""
    if re.fullmatch(r"[0-9]*", text):
        return int(text or "0") & 0xFFFF
    n = _service(text)
    if n is None:
        raise Bad(f'Port "{text}" does not resolve to anything.', text)
    return n


def _number(name: str, option: str, text: str, high: int, low: int = 0, near: bool = False) -> int:
    n = integer(text)
    if n is None or not low <= n <= high:
        where = f' near "{text}"' if near else ""
        raise Bad(f'{name}: bad value for option "{option}"{where}, or out of range ({low}-{high}).', text)
    return n


def _range(name: str, option: str, text: str, high: int) -> tuple[int, int]:
    """`a`, `a:b`, `a:` or `:b`."""
    parts = text.split(":")
    if len(parts) > 2:
        raise Bad(f'{name}: Too many components for option "{option}" (max: 2)', text)
    if len(parts) == 1:
        n = _number(name, option, text, high, near=True) if text else 0
        return n, n
    lo = _number(name, option, parts[0], high, near=True) if parts[0] else 0
    return lo, _number(name, option, parts[1], high, near=True) if parts[1] else high


def _span(lo: int, hi: int) -> str:
    return str(lo) if lo == hi else f"{lo}:{hi}"


def _masked(name: str, option: str, text: str) -> tuple[int, int]:
    """`value[/mask]` of 32 bits."""
    value, slash, mask = text.partition("/")
    v, m = integer(value), integer(mask) if slash else M32
    if v is None or m is None or v > M32 or m > M32:
        raise Bad(f'{name}: bad integer value for option "{option}", or out of range.', text)
    return v, m


def _hex_masked(value: int, mask: int) -> str:
    return f"{value:#x}" if mask == M32 else f"{value:#x}/{mask:#x}"


def _quad(text: str, filled: Callable[[list[int]], int]) -> int | None:
    parts = text.split(".")
    numbers = [integer(part) for part in parts]
    if not 1 <= len(parts) <= 4 or None in numbers:
        return None
    known = [n for n in numbers if n is not None]
    if any(n > 255 for n in known):
        return None
    return filled(known)


def _last_fills(octets: list[int]) -> int:
    return int.from_bytes(bytes([*octets[:-1], *[0] * (4 - len(octets)), octets[-1]]), "big")


def _zeros_follow(octets: list[int]) -> int:
    return int.from_bytes(bytes([*octets, *[0] * (4 - len(octets))]), "big")


def _host(text: str) -> int:
    """An address; names are never looked up. `10.1` is 10.0.0.1, as inet_aton has it."""
    n = _quad(text, _last_fills)
    if n is None:
        raise Bad(f"`{text}' is not an address", text, "netemu does not look names up: write the address")
    return n


def _network(name: str, option: str, text: str) -> tuple[int, int]:
    """`address[/mask]`: (address as written, mask)."""
    address, slash, width = text.partition("/")
    host = _host(address)
    return host, _netmask(name, option, width) if slash else M32


def _netmask(name: str, option: str, text: str) -> int:
    n = integer(text)
    if n is not None:
        return M32 << (32 - min(n, 32)) & M32
    mask = _quad(text, _last_fills) if "." in text else None
    if mask is None:
        raise Bad(f'{name}: bad value for option "{option}", neither a valid network mask nor valid CIDR (0-32).', text)
    return mask


def _prefix_length(mask: int) -> int | None:
    bits = f"{mask:032b}".rstrip("0")
    return len(bits) if "0" not in bits else None


def _address_and_width(address: int, mask: int) -> str:
    width = _prefix_length(mask)
    return dotted(address) if width in (None, 32) else f"{dotted(address)}/{width}"


def _protocol(text: str) -> int:
    n = integer(text)
    if n is None:
        n = PROTOCOL_NUMBERS.get(text.lower())
    if n is None or n > 255:
        raise Bad(f'unknown protocol "{text}" specified', text)
    return n


def _named_bits(text: str, names: Iterable[str], complaint: str) -> frozenset[str]:
    """Names out of a list with commas; a beginning of a name will do, the first that fits is meant."""
    out = set()
    for word in text.split(","):
        hit = next((name for name in names if word and name.startswith(word.upper())), None)
        if hit is None:
            raise Bad(f'{complaint} "{word}"', word or text, "one of " + ", ".join(names))
        out.add(hit)
    return frozenset(out)


# ---- headers -------------------------------------------------------------------------------------------------------


def drop_at_once(trip: Trip, rows: Rows) -> None:
    """Ask the walk to drop these rows here and now."""
    if len(rows):
        trip.hot = rows if trip.hot is None else np.concatenate((trip.hot, rows))


def _whole(trip: Trip, rows: Rows, need: int) -> Mask:
    """bool[len(rows)]: the row holds the `need` bytes of its transport header. Later fragments do not.

    A packet that claims to and does not is dropped, and so is a TCP fragment that would overwrite the flags.
    """
    p = trip.pkts
    offset = p.frag[rows] & OFFSET_MASK
    first = offset == 0
    whole: Mask = first & (p.length[rows] - p.ihl[rows] >= need)
    if not whole.all():
        hot = first & ~whole
        if need == 20:
            hot |= offset == 1
        drop_at_once(trip, rows[hot])
    return whole


def _whole_one(trip: Trip, row: int, need: int) -> bool:
    p = trip.pkts
    offset = p.frag.item(row) & OFFSET_MASK
    if not offset and p.length.item(row) - p.ihl.item(row) >= need:
        return True
    if not offset or (offset == 1 and need == 20):
        drop_at_once(trip, np.array([row]))
    return False


@dataclass(frozen=True)
class Ports:
    """A range of ports, ends included. `single` is the port when it is exactly one, not inverted."""

    lo: int = 0
    hi: int = 0xFFFF
    invert: bool = False

    @property
    def any(self) -> bool:
        return self.lo == 0 and self.hi == 0xFFFF and not self.invert

    @property
    def single(self) -> int | None:
        return self.lo if self.lo == self.hi and not self.invert else None

    def of(self, column: NDArray[np.uint16]) -> Mask:
        if self.lo == self.hi:
            return _turned(column == self.lo, self.invert)
        return _turned((column >= self.lo) & (column <= self.hi), self.invert)

    def holds(self, port: int) -> bool:
        return (self.lo <= port <= self.hi) != self.invert

    def words(self, option: str, whole_too: bool = False) -> str:
        if self.lo == 0 and self.hi == 0xFFFF and not (whole_too and self.invert):
            return ""
        return f"{_not(self.invert)}{option} {_span(self.lo, self.hi)}"

    @classmethod
    def read(cls, g: Given | None) -> Ports:
        if g is None:
            return ANY_PORT
        first, colon, last = g.value.partition(":")
        if not colon:
            lo = hi = _port(first)
        else:
            lo, hi = _port(first) if first else 0, _port(last) if last else 0xFFFF
            if lo > hi:
                raise Bad("invalid portrange (min > max)", g.value)
        return cls(lo, hi, g.invert)

    @classmethod
    def read_loosely(cls, name: str, option: str, g: Given | None) -> Ports:
        if g is None:
            return ANY_PORT
        parts = g.value.split(":")
        if len(parts) > 2:
            raise Bad(f'{name}: Too many components for option "{option}" (max: 2)', g.value)
        if len(parts) == 1:
            return cls(_loose_port(parts[0]), _loose_port(parts[0]), g.invert)
        return cls(_loose_port(parts[0]), _loose_port(parts[1]) if parts[1] else 0xFFFF, g.invert)


ANY_PORT = Ports()
_PORT_OPTIONS = {
    "--sport": Option(invert=True, old=("--source-port",)),
    "--dport": Option(invert=True, old=("--destination-port",)),
}


def _exact(sport: Ports, dport: Ports) -> tuple[int, int] | None:
    source = -1 if sport.any else sport.single
    dest = -1 if dport.any else dport.single
    return None if source is None or dest is None else (source, dest)


FLAG_NAMES = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}


def _flags(text: str) -> int:
    out = 0
    for word in text.split(","):
        if not word:
            continue
        if word.upper() not in FLAG_NAMES:
            raise Bad(f"Unknown TCP flag `{word}'", word)
        out |= FLAG_NAMES[word.upper()]
    return out


def _flag_words(bits: int) -> str:
    names = [name for name, bit in FLAG_NAMES.items() if bit and bit != 63 and bits & bit]
    return ",".join(names) or "NONE"


def _options_of(trip: Trip, row: int) -> bytes | None:
    """The TCP options as bytes; None where there is no whole header. What stands where a header would, is one."""
    segment = trip.pkts.payload(row)
    if len(segment) < 20:
        return None
    end = (segment[12] >> 4) * 4
    return segment[20:end] if 20 <= end <= len(segment) else None


def _kinds(options: bytes) -> Iterable[tuple[int, int]]:
    """(kind, place) of each option as the kernel steps through them: kind 0 does not end the list."""
    i = 0
    while i < len(options):
        yield options[i], i
        if options[i] < 2:
            i += 1
        else:
            i += (options[i + 1] if i + 1 < len(options) else 0) or 1


@dataclass(frozen=True)
class Tcp(Match, name="tcp"):
    """--sport, --dport, --tcp-flags MASK SET (--syn), --tcp-option KIND.

    A later fragment has no ports: it never matches, not even `! --dport 80`.
    """

    SPEC: ClassVar = {
        **_PORT_OPTIONS,
        "--tcp-flags": Option(2, invert=True, alone=("--syn",)),
        "--syn": Option(0, invert=True, alone=("--tcp-flags",)),
        "--tcp-option": Option(invert=True),
    }
    protocols = (TCP,)
    sport: Ports = ANY_PORT
    dport: Ports = ANY_PORT
    flag_mask: int = 0
    flag_set: int = 0
    flag_invert: bool = False
    option: int = 0
    option_invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        mask = flags = option = 0
        invert = option_invert = False
        if "--syn" in o:
            mask, flags, invert = 0x17, 2, o["--syn"].invert
        elif "--tcp-flags" in o:
            g = o["--tcp-flags"]
            mask, flags, invert = _flags(g.values[0]), _flags(g.values[1]), g.invert
        if "--tcp-option" in o:
            g = o["--tcp-option"]
            kind = integer(g.value)
            if kind is None or not 1 <= kind <= 255:
                raise Bad(f'Bad TCP option "{g.value}"', g.value)
            option, option_invert = kind, g.invert
        sport, dport = Ports.read(o.get("--sport")), Ports.read(o.get("--dport"))
        return cls(sport, dport, mask, flags, invert, option, option_invert)

    def words(self) -> str:
        out = [self.sport.words("--sport"), self.dport.words("--dport")]
        if self.option:
            out.append(f"{_not(self.option_invert)}--tcp-option {self.option}")
        if self.flag_mask or self.flag_invert:
            both = f"{_flag_words(self.flag_mask)} {_flag_words(self.flag_set)}"
            out.append(f"{_not(self.flag_invert)}--tcp-flags {both}")
        return " ".join(filter(None, out))

    @cached_property
    def _flags_matter(self) -> bool:
        return bool(self.flag_mask or self.flag_set or self.flag_invert)

    def exact_ports(self) -> tuple[int, int] | None:
        """(source port, destination port), -1 for any, when it asks for nothing else; None otherwise."""
        return None if self._flags_matter or self.option else _exact(self.sport, self.dport)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = _whole(trip, rows, 20)
        if not self.sport.any:
            yes &= self.sport.of(p.sport[rows])
        if not self.dport.any:
            yes &= self.dport.of(p.dport[rows])
        if self._flags_matter:
            yes &= ((p.flags[rows] & self.flag_mask) == self.flag_set) != self.flag_invert
        if self.option:
            for k in np.flatnonzero(yes).tolist():
                yes[k] = self._has_option(trip, int(rows[k]))
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if not _whole_one(trip, row, 20):
            return False
        if not (self.sport.holds(p.sport.item(row)) and self.dport.holds(p.dport.item(row))):
            return False
        if self._flags_matter and ((p.flags.item(row) & self.flag_mask) == self.flag_set) == self.flag_invert:
            return False
        return not self.option or self._has_option(trip, row)

    def _has_option(self, trip: Trip, row: int) -> bool:
        options = _options_of(trip, row)
        if options is None:
            drop_at_once(trip, np.array([row]))
            return False
        return any(kind == self.option for kind, _ in _kinds(options)) != self.option_invert


@dataclass(frozen=True)
class Udp(Match, name="udp"):
    """--sport, --dport."""

    SPEC: ClassVar = _PORT_OPTIONS
    protocols = (UDP,)
    sport: Ports = ANY_PORT
    dport: Ports = ANY_PORT

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        sport = Ports.read_loosely("udp", "--source-port", o.get("--sport"))
        return cls(sport, Ports.read_loosely("udp", "--destination-port", o.get("--dport")))

    def words(self) -> str:
        return " ".join(filter(None, (self.sport.words("--sport"), self.dport.words("--dport"))))

    def exact_ports(self) -> tuple[int, int] | None:
        """(source port, destination port), -1 for any, when it asks for nothing else; None otherwise."""
        return _exact(self.sport, self.dport)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = _whole(trip, rows, 8)
        if not self.sport.any:
            yes &= self.sport.of(p.sport[rows])
        if not self.dport.any:
            yes &= self.dport.of(p.dport[rows])
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        return _whole_one(trip, row, 8) and self.sport.holds(p.sport.item(row)) and self.dport.holds(p.dport.item(row))


#: name of an ICMP type -> (type, code or None for all), in the order in which an abbreviation is looked for
ICMP_NAMES: dict[str, tuple[int, int | None]] = {
    "any": (255, None),
    "echo-reply": (0, None), "pong": (0, None),
    "destination-unreachable": (3, None),
    "network-unreachable": (3, 0), "host-unreachable": (3, 1), "protocol-unreachable": (3, 2),
    "port-unreachable": (3, 3), "fragmentation-needed": (3, 4), "source-route-failed": (3, 5),
    "network-unknown": (3, 6), "host-unknown": (3, 7), "network-prohibited": (3, 9), "host-prohibited": (3, 10),
    "TOS-network-unreachable": (3, 11), "TOS-host-unreachable": (3, 12), "communication-prohibited": (3, 13),
    "host-precedence-violation": (3, 14), "precedence-cutoff": (3, 15),
    "source-quench": (4, None),
    "redirect": (5, None),
    "network-redirect": (5, 0), "host-redirect": (5, 1), "TOS-network-redirect": (5, 2), "TOS-host-redirect": (5, 3),
    "echo-request": (8, None), "ping": (8, None),
    "router-advertisement": (9, None), "router-solicitation": (10, None),
    "time-exceeded": (11, None), "ttl-exceeded": (11, None),
    "ttl-zero-during-transit": (11, 0), "ttl-zero-during-reassembly": (11, 1),
    "parameter-problem": (12, None), "ip-header-bad": (12, 0), "required-option-missing": (12, 1),
    "timestamp-request": (13, None), "timestamp-reply": (14, None),
    "address-mask-request": (17, None), "address-mask-reply": (18, None),
}  # fmt: skip


@dataclass(frozen=True)
class Icmp(Match, name="icmp"):
    """--icmp-type NAME | TYPE[/CODE]; type 255 is any."""

    SPEC: ClassVar = {"--icmp-type": Option(invert=True)}
    NEEDED = ("--icmp-type",)
    protocols = (ICMP,)
    type: int
    low: int
    high: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--icmp-type"]
        text = g.value
        fits = [name for name in ICMP_NAMES if name.lower().startswith(text.lower())]
        exact = next((name for name in fits if name.lower() == text.lower()), None)
        if exact or len(fits) == 1:
            kind, code = ICMP_NAMES[exact or fits[0]]
            return cls(kind, *((0, 255) if code is None else (code, code)), g.invert)
        if fits:
            raise Bad(f"Ambiguous ICMP type `{text}': `{fits[0]}' or `{fits[1]}'?", text)
        number, slash, codes = text.partition("/")
        n = integer(number)
        if n is None or n > 255:
            raise Bad(f"Unknown ICMP type `{text}'", text, "a number, number/code, or one of " + ", ".join(ICMP_NAMES))
        if not slash:
            return cls(n, 0, 255, g.invert)
        first, colon, last = codes.partition(":")
        low = integer(first)
        high = integer(last) if colon else low
        if low is None or high is None or low > 255 or high > 255:
            raise Bad(f"Unknown ICMP code `{text}'", text)
        return cls(n, low, high, g.invert)

    def words(self) -> str:
        code = "" if (self.low, self.high) == (0, 255) else f"/{self.low}"
        return f"{_not(self.invert)}--icmp-type {'any' if self.type == 255 else f'{self.type}{code}'}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = _whole(trip, rows, 8)
        if self.type == 255:
            return yes if not self.invert else yes & False
        code = p.icmp_code[rows]
        hit = (p.icmp_type[rows] == self.type) & (code >= self.low) & (code <= self.high)
        return yes & _turned(hit, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        if not _whole_one(trip, row, 8):
            return False
        p = trip.pkts
        hit = p.icmp_type.item(row) == self.type and self.low <= p.icmp_code.item(row) <= self.high
        return (self.type == 255 or hit) != self.invert


@dataclass(frozen=True)
class Multiport(Match, name="multiport"):
    """--dports 22,8000:8100 (--sports, --ports): the port lies in one of up to 15 ports or ranges, ends included.

    --ports: either port does. A range counts as two of the fifteen.
    """

    SPEC: ClassVar = {
        "--sports": Option(invert=True, old=("--source-ports",), alone=("--dports", "--ports")),
        "--dports": Option(invert=True, old=("--destination-ports",), alone=("--sports", "--ports")),
        "--ports": Option(invert=True, alone=("--sports", "--dports")),
    }
    protocols = PORTED
    side: str
    ranges: tuple[tuple[int, int], ...]
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("multiport expection an option", hint="--dports, --sports or --ports")
        (option, g), *_ = o.items()
        ranges = []
        for word in g.value.split(","):
            first, colon, last = word.partition(":")
            lo = _port(first)
            hi = _port(last) if colon else lo
            if colon and lo >= hi:
                raise Bad("invalid portrange specified", word)
            ranges.append((lo, hi))
        if sum(1 + (lo != hi) for lo, hi in ranges) > 15:
            raise Bad("too many ports specified", g.value, "at most 15, a range counts as two: split the rule")
        return cls(option, tuple(ranges), g.invert)

    def check(self, rule: RuleContext) -> str:
        if not rule.proto:
            return "multiport needs `-p tcp', `-p udp', `-p udplite', `-p sctp' or `-p dccp'"
        if rule.proto_inverted or rule.proto not in PORTED:
            return "multiport only works with TCP, UDP, UDPLITE, SCTP and DCCP"
        return ""

    def words(self) -> str:
        return f"{_not(self.invert)}{self.side} {','.join(_span(lo, hi) for lo, hi in self.ranges)}"

    @cached_property
    def table(self) -> Mask:
        """bool[65536], the inversion included unless either port may do."""
        table = np.zeros(1 << 16, bool)
        for lo, hi in self.ranges:
            table[lo : hi + 1] = True
        return ~table if self.invert and self.side != "--ports" else table

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = _whole(trip, rows, 4)
        if self.side == "--dports":
            return yes & self.table[p.dport[rows]]
        if self.side == "--sports":
            return yes & self.table[p.sport[rows]]
        return yes & _turned(self.table[p.dport[rows]] | self.table[p.sport[rows]], self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        if not _whole_one(trip, row, 4):
            return False
        p, has = trip.pkts, self.table.item
        if self.side == "--dports":
            return has(p.dport.item(row))
        if self.side == "--sports":
            return has(p.sport.item(row))
        return (has(p.sport.item(row)) or has(p.dport.item(row))) != self.invert


# ---- marks and comments --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark(Match, name="mark"):
    """--mark VALUE[/MASK]: the packet's mark, masked, equals VALUE."""

    SPEC: ClassVar = {"--mark": Option(invert=True)}
    NEEDED = ("--mark",)
    value: int
    wild: int = M32
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mark"]
        return cls(*_masked(cls.name, "--mark", g.value), g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--mark {_hex_masked(self.value, self.wild)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return _turned((trip.pkts.mark[rows] & np.uint32(self.wild)) == self.value, self.invert)

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

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mark"]
        return cls(*_masked(cls.name, "--mark", g.value), g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--mark {_hex_masked(self.value, self.wild)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        flow = trip.pkts.ct[rows]
        hit = (trip.node.conntrack.mark[flow] & np.uint32(self.wild)) == self.value
        return (flow >= 0) & _turned(hit, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        return flow >= 0 and ((trip.node.conntrack.mark.item(flow) & self.wild) == self.value) != self.invert


@dataclass(frozen=True)
class Comment(Match, name="comment"):
    """--comment TEXT: for people; every packet matches."""

    SPEC: ClassVar = {"--comment": Option()}
    NEEDED = ("--comment",)
    always = True
    comment: str

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        text = o["--comment"].value
        if len(text.encode("utf-8", "surrogateescape")) > 255:
            raise Bad("COMMENT must be shorter than 256 characters", "--comment")
        return cls(text)

    def words(self) -> str:
        return f"--comment {quoted(self.comment)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.ones(len(rows), bool)

    def says(self, trip: Trip, row: int) -> bool:
        return True


# ---- connections ---------------------------------------------------------------------------------------------------

STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")  # as iptables-save orders them
#: packets.INVALID .. packets.UNTRACKED -> name
_STATE_OF_CODE = ("INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED")
STATUSES = {"EXPECTED": 1, "SEEN_REPLY": 2, "ASSURED": 4, "CONFIRMED": 8}
ASSURED, CONFIRMED, SRC_NAT, DST_NAT = 4, 8, 16, 32


@dataclass(frozen=True)
class State(Match, name="state"):
    """--state LIST: the older spelling of `conntrack --ctstate`, without SNAT and DNAT."""

    SPEC: ClassVar = {"--state": Option(invert=True)}
    NEEDED = ("--state",)
    needs_conntrack = True
    states: frozenset[str]
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--state"]
        return cls(_named_bits(g.value, STATES, "Bad state"), g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--state {','.join(s for s in STATES if s in self.states)}"

    @cached_property
    def _answers(self) -> Mask:
        return np.array([(name in self.states) != self.invert for name in _STATE_OF_CODE])

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[trip.pkts.state[rows]]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(trip.pkts.state.item(row))


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

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("conntrack: At least one option is required")
        states, states_invert, proto, status, expire, direction = None, False, None, None, None, ""
        if "--ctstate" in o:
            g = o["--ctstate"]
            states = _named_bits(g.value, (*STATES, "SNAT", "DNAT"), "Bad ctstate")
            states_invert = g.invert
        if "--ctproto" in o:
            proto = (_protocol(o["--ctproto"].value), o["--ctproto"].invert)
        addresses = []
        for option in _TUPLE_ADDRESSES:
            if option in o:
                address, mask = _network(cls.name, option, o[option].value)
                addresses.append((option, address, mask, o[option].invert))
        ports = [(x, Ports.read_loosely(cls.name, x, o[x])) for x in _TUPLE_PORTS if x in o]
        if "--ctstatus" in o:
            g = o["--ctstatus"]
            names = _named_bits(g.value, ("NONE", *STATUSES), "Bad ctstatus")
            status = (sum(STATUSES.get(name, 0) for name in names), g.invert)
        if "--ctexpire" in o:
            g = o["--ctexpire"]
            expire = (*_range(cls.name, "--ctexpire", g.value, M32), g.invert)
        if "--ctdir" in o:
            direction = o["--ctdir"].value.upper()
            if direction not in ("ORIGINAL", "REPLY"):
                raise Bad(f'conntrack: Bad value for "--ctdir" option: "{o["--ctdir"].value}"', o["--ctdir"].value)
        return cls(states, states_invert, proto, tuple(addresses), tuple(ports), status, expire, direction)

    def words(self) -> str:
        out = []
        if self.states is not None:
            names = (s for s in (*STATES, "SNAT", "DNAT") if s in self.states)
            out.append(f"{_not(self.states_invert)}--ctstate {','.join(names)}")
        if self.proto:
            out.append(f"{_not(self.proto[1])}--ctproto {self.proto[0]}")
        for option, address, mask, invert in self.addresses:
            out.append(f"{_not(invert)}{option} {_address_and_width(address, mask)}")
        for option, ports in self.ports:
            out.append(f"{_not(ports.invert)}{option} {_span(ports.lo, ports.hi)}")
        if self.status:
            names = (s for s, bit in STATUSES.items() if bit & self.status[0])
            out.append(f"{_not(self.status[1])}--ctstatus {','.join(names) or 'NONE'}")
        if self.expire:
            out.append(f"{_not(self.expire[2])}--ctexpire {_span(*self.expire[:2])}")
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
            yes = self._answers[p.state[rows]]
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
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        flow = p.ct.item(row)
        if self.states is not None:
            yes = self._answers.item(p.state.item(row))
            if self._nat_bits and not yes and flow >= 0:
                yes = bool(trip.node.conntrack.status.item(flow) & self._nat_bits)
            if yes == self.states_invert:
                return False
            if flow < 0:
                return True
        elif flow < 0:
            return False
        return not self._asks_more or bool(self._of_flows(trip, np.array([row]))[0])

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
        low, high = _range(cls.name, "--connbytes", g.value, M64)
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
            f"{_not(self.invert)}--connbytes {self.low}{high} --connbytes-mode {self.mode} "
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
        limit = _number(cls.name, option, g.value, M32)
        width = 32
        if "--connlimit-mask" in o:
            text = o["--connlimit-mask"].value
            width = _prefix_length(_netmask(cls.name, "--connlimit-mask", text)) or 0
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
        if flow >= 0:
            this = flows.original(flow)
        zone = flows.zone.item(flow) if flow >= 0 else 0
        status = flows.status.item(flow) if flow >= 0 else 0
        known = self._lists.get((address, zone))
        if known is None:
            self._lists[address, zone] = ConnectionList((*this, zone), jiffies(now, trip.node.hz))
            count = 1
        elif status & (CONFIRMED if trip.node.kernel == "6.1" else ASSURED):
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


# ---- sets, addresses, links ----------------------------------------------------------------------------------------

_COUNTER_OPTIONS = {
    "packets": ("--packets-eq", "--packets-lt", "--packets-gt"),
    "bytes": ("--bytes-eq", "--bytes-lt", "--bytes-gt"),
}


@dataclass(frozen=True)
class SetMatch(Match, name="set"):
    """--match-set NAME DIRS [--return-nomatch] [! --update-counters] [--packets-eq N] ...

    The set itself knows everything (ipset.Set.match); `!` turns its whole answer round.
    """

    SPEC: ClassVar = {
        "--match-set": Option(2, invert=True, old=("--set",), often=True),
        "--return-nomatch": Option(0, invert=True, often=True),
        "--update-counters": Option(0, invert=True, often=True),
        "--update-subcounters": Option(0, invert=True, often=True),
        **{x: Option(invert=True, often=True) for group in _COUNTER_OPTIONS.values() for x in group},
    }
    set: str
    dirs: tuple[str, ...]
    invert: bool = False
    return_nomatch: bool = False
    update_counters: bool = True
    update_subcounters: bool = True
    packets: tuple[str, int, bool] | None = None  # eq, lt or gt; value; invert
    bytes: tuple[str, int, bool] | None = None

    @property
    def touches(self) -> frozenset[str]:
        """A set that nobody writes to and that keeps no counters is no memory: ask its `remembers`."""
        return frozenset((f"set:{self.set}",))

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.set,)

    @classmethod
    def _sorted_out(cls, given: list[Given]) -> dict[str, Given]:
        if sum(cls._spellings.get(g.option) == "--match-set" for g in given) > 1:
            raise Bad("--match-set can be specified only once", "--match-set")
        for kind, group in _COUNTER_OPTIONS.items():
            if sum(g.option in group for g in given) > 1:
                raise Bad(f"only one of the --{kind}-[eq|lt|gt] is allowed", group[0])
        out = super()._sorted_out(given)
        for g in given:  # a flag once given with `!` stays so
            if g.invert and g.option.startswith("--update"):
                out[g.option] = g
        return out

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if "--match-set" not in o:
            raise Bad("You must specify `--match-set' with proper arguments")
        g = o["--match-set"]
        name, dirs = g.values[0], tuple(g.values[1].split(","))
        if len(name.encode("utf-8", "surrogateescape")) > 31:
            raise Bad(f"setname `{name}' too long, max 31 characters.", name)
        if name not in rule.sets:
            raise Bad(f"Set {name} doesn't exist.", name, "create it first (ipset.save)")
        if len(dirs) > 6:
            raise Bad("Can't be more src/dst options than 6.", g.values[1])
        if any(d not in ("src", "dst") for d in dirs):
            raise Bad("You must spefify (the comma separated list of) 'src' or 'dst'.", g.values[1])
        if "--return-nomatch" in o and o["--return-nomatch"].invert:
            raise Bad("--return-nomatch flag cannot be inverted", "--return-nomatch")
        conditions: dict[str, tuple[str, int, bool] | None] = {}
        for kind, group in _COUNTER_OPTIONS.items():
            conditions[kind] = None
            for option in group:
                if option in o:
                    how = option[-2:]
                    value = integer(o[option].value)
                    if value is None or value > M64:
                        raise Bad(f"Cannot parse {o[option].value} as a counter value", o[option].value)
                    if o[option].invert and how != "eq":
                        raise Bad(f"{option} option cannot be inverted", option)
                    conditions[kind] = (how, value, o[option].invert)
        return cls(
            name,
            dirs,
            g.invert,
            "--return-nomatch" in o,
            "--update-counters" not in o or not o["--update-counters"].invert,
            "--update-subcounters" not in o or not o["--update-subcounters"].invert,
            conditions["packets"],
            conditions["bytes"],
        )

    def words(self) -> str:
        out = [f"{_not(self.invert)}--match-set {self.set} {','.join(self.dirs)}"]
        if self.return_nomatch:
            out.append("--return-nomatch")
        if not self.update_counters:
            out.append("! --update-counters")
        if not self.update_subcounters:
            out.append("! --update-subcounters")
        for kind, condition in (("packets", self.packets), ("bytes", self.bytes)):
            if condition:
                out.append(f"{_not(condition[2])}--{kind}-{condition[0]} {condition[1]}")
        return " ".join(out)

    @cached_property
    def _options(self) -> SetOptions:
        def how(condition: tuple[str, int, bool] | None) -> tuple[str, int]:
            if condition is None:
                return "", 0
            return "ne" if condition[2] else condition[0], condition[1]

        flags = self.return_nomatch, self.update_counters, self.update_subcounters
        return SetOptions(*flags, *how(self.packets), *how(self.bytes))

    def _members(self, trip: Trip) -> Set:
        members = trip.node.sets.get(self.set)
        assert members is not None  # rules hold a reference: a set that they use cannot be destroyed
        return members

    def many(self, trip: Trip, rows: Rows) -> Mask:
        hit = self._members(trip).match(trip, rows, self.dirs, self._options)
        return _turned(hit, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return self._members(trip).matches(trip, row, self.dirs, self._options) != self.invert


@dataclass(frozen=True)
class Addrtype(Match, name="addrtype"):
    """--src-type LIST, --dst-type LIST [--limit-iface-in | --limit-iface-out]: what kind of address routing sees.

    With a limit an address is LOCAL (or BROADCAST) only on the link that has it, elsewhere UNICAST.
    """

    SPEC: ClassVar = {
        "--src-type": Option(invert=True),
        "--dst-type": Option(invert=True),
        "--limit-iface-in": Option(0, alone=("--limit-iface-out",)),
        "--limit-iface-out": Option(0, alone=("--limit-iface-in",)),
    }
    src: tuple[frozenset[str], bool] | None = None
    dst: tuple[frozenset[str], bool] | None = None
    limit: str = ""  # in, out

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        sides: list[tuple[frozenset[str], bool] | None] = []
        for option in ("--src-type", "--dst-type"):
            g = o.get(option)
            sides.append(None if g is None else (_named_bits(g.value, ADDR_TYPES, "addrtype: bad type"), g.invert))
        if sides == [None, None]:
            raise Bad("addrtype: you must specify --src-type or --dst-type")
        limit = "in" if "--limit-iface-in" in o else "out" if "--limit-iface-out" in o else ""
        return cls(sides[0], sides[1], limit)

    @property
    def hooks(self) -> frozenset[str]:
        if self.limit == "in":
            return ALL_HOOKS - {"OUTPUT", "POSTROUTING"}
        return ALL_HOOKS - {"PREROUTING", "INPUT"} if self.limit else ALL_HOOKS

    def words(self) -> str:
        out = []
        for option, side in (("--src-type", self.src), ("--dst-type", self.dst)):
            if side:
                out.append(f"{_not(side[1])}{option} {','.join(t for t in ADDR_TYPES if t in side[0])}")
        if self.limit:
            out.append(f"--limit-iface-{self.limit}")
        return " ".join(out)

    @cached_property
    def _answers(self) -> dict[str, Mask]:
        """bool[256] by the code of the type, the inversion included."""
        out = {}
        for name, side in (("src", self.src), ("dst", self.dst)):
            if side:
                table = np.zeros(256, bool)
                table[[ADDR_TYPES[t] for t in side[0]]] = True
                out[name] = table != side[1]
        return out

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes: Mask | None = None
        for column, answers in self._answers.items():
            links = None if not self.limit else (p.link_in if self.limit == "in" else p.link_out)[rows]
            said = answers[trip.node.routing.addr_type(getattr(p, column)[rows], links)]
            yes = said if yes is None else yes & said
        assert yes is not None
        return yes

    @cached_property
    def _known(self) -> dict[tuple[str, int, int], bool]:
        """Answers for single packets by (column, address, link), of the routing that `_routing` names."""
        return {}

    @cached_property
    def _routing(self) -> list[object]:
        return [None, -1]

    def says(self, trip: Trip, row: int) -> bool:
        p, routing, known = trip.pkts, trip.node.routing, self._known
        if self._routing[0] is not routing or self._routing[1] != routing.version or len(known) > 1 << 16:
            known.clear()
            self._routing[:] = [routing, routing.version]
        link = (p.link_in if self.limit == "in" else p.link_out).item(row) if self.limit else -1
        for column, answers in self._answers.items():
            addresses: NDArray[np.uint32] = getattr(p, column)
            key = (column, addresses.item(row), link)
            yes = known.get(key)
            if yes is None:
                links = np.array([link], np.int16) if self.limit else None
                yes = known[key] = bool(answers[routing.addr_type(addresses[row : row + 1], links)][0])
            if not yes:
                return False
        return True


def _link_pattern(name: str) -> str:
    if len(name) > 15:
        raise Bad(f"interface name `{name}' must be shorter than IFNAMSIZ (15)", name)
    return name


@dataclass(frozen=True)
class Physdev(Match, name="physdev"):
    """--physdev-in NAME, --physdev-out NAME, --physdev-is-in, --physdev-is-out, --physdev-is-bridged.

    netemu has no bridges' ports: such a packet matches only if everything that is asked is inverted.
    """

    SPEC: ClassVar = {
        "--physdev-in": Option(invert=True),
        "--physdev-out": Option(invert=True),
        "--physdev-is-in": Option(0, invert=True),
        "--physdev-is-out": Option(0, invert=True),
        "--physdev-is-bridged": Option(0, invert=True),
    }
    asked: tuple[tuple[str, str, bool], ...]  # option, name, invert

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("PHYSDEV: no physdev option specified")
        order = ("--physdev-is-in", "--physdev-in", "--physdev-is-out", "--physdev-out", "--physdev-is-bridged")
        out = []
        for option in order:
            if option in o:
                name = _link_pattern(o[option].value) if o[option].values else ""
                out.append((option, name, o[option].invert))
        return cls(tuple(out))

    @property
    def hooks(self) -> frozenset[str]:
        out = {option for option, _, _ in self.asked} & {"--physdev-out", "--physdev-is-out"}
        bridged = ("--physdev-is-bridged", "", False) in self.asked
        return ALL_HOOKS - {"OUTPUT"} if out and not bridged else ALL_HOOKS

    def words(self) -> str:
        return " ".join(
            f"{_not(invert)}{option}" + (f" {name}" if self.SPEC[option].words else "")
            for option, name, invert in self.asked
        )

    @cached_property
    def _answer(self) -> bool:
        return all(invert for _, _, invert in self.asked)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), self._answer)

    def says(self, trip: Trip, row: int) -> bool:
        return self._answer


@dataclass(frozen=True)
class Iprange(Match, name="iprange"):
    """--src-range A-B, --dst-range A-B, ends included."""

    SPEC: ClassVar = {"--src-range": Option(invert=True), "--dst-range": Option(invert=True)}
    src: tuple[int, int, bool] | None = None
    dst: tuple[int, int, bool] | None = None

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("iprange match: You must specify `--src-range' or `--dst-range'")
        sides: list[tuple[int, int, bool] | None] = []
        for option in ("--src-range", "--dst-range"):
            g = o.get(option)
            if g is None:
                sides.append(None)
                continue
            first, dash, last = g.value.partition("-")
            ends = []
            for text in (first, last if dash else first):
                n = _quad(text, _zeros_follow) if text else None
                if n is None:
                    raise Bad(f'iprange: Bad value for "{option}" option: "{text}"', g.value)
                ends.append(n)
            sides.append((ends[0], ends[1], g.invert))
        return cls(*sides)

    def words(self) -> str:
        return " ".join(
            f"{_not(side[2])}{option} {dotted(side[0])}-{dotted(side[1])}"
            for option, side in (("--src-range", self.src), ("--dst-range", self.dst))
            if side
        )

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = np.ones(len(rows), bool)
        for column, side in ((p.src, self.src), (p.dst, self.dst)):
            if side:
                address = column[rows]
                yes &= ((address >= side[0]) & (address <= side[1])) != side[2]
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        for column, side in ((p.src, self.src), (p.dst, self.dst)):
            if side and (side[0] <= column.item(row) <= side[1]) == side[2]:
                return False
        return True


@dataclass(frozen=True)
class Owner(Match, name="owner"):
    """--socket-exists: the packet has a socket on this node (it was sent by a process, or is an ICMP error).

    Who owns the socket no capture can tell: --uid-owner, --gid-owner and --suppl-groups are not modelled.
    """

    SPEC: ClassVar = {
        "--uid-owner": Option(invert=True),
        "--gid-owner": Option(invert=True),
        "--socket-exists": Option(0, invert=True),
        "--suppl-groups": Option(0),
    }
    _hooks: ClassVar[frozenset[str]] = frozenset(("OUTPUT", "POSTROUTING"))
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("owner: At least one of --uid-owner, --gid-owner or --socket-exists is required")
        if "--suppl-groups" in o and "--gid-owner" not in o:
            raise Bad('owner: Bad value for "--suppl-groups" option: "you need to use --gid-owner first"')
        if rule.chain in ALL_HOOKS - cls._hooks:
            raise Failed(f"Invalid argument: match `owner' is not valid in the chain {rule.chain}")
        for option in ("--uid-owner", "--gid-owner"):
            if option in o:
                text = o[option].value
                low, dash, high = text.partition("-")
                ends = integer(low), integer(high if dash else low)
                if text[:1].isdigit() and not 0 <= (ends[0] or 0) <= (-1 if ends[1] is None else ends[1]) < M32:
                    raise Bad(f'owner: Bad value for "{option}" option: "{text}"', text)
                raise NotModelled(
                    f"`owner {option}': packets of a capture do not say which user sent them",
                    option,
                    "netemu knows --socket-exists",
                )
        return cls(o["--socket-exists"].invert)

    @property
    def hooks(self) -> frozenset[str]:
        return self._hooks

    def words(self) -> str:
        return f"{_not(self.invert)}--socket-exists"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return _turned(trip.pkts.socket[rows], self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return trip.pkts.socket.item(row) != self.invert


@dataclass(frozen=True)
class Mac(Match, name="mac"):
    """--mac-source XX:XX:XX:XX:XX:XX: the Ethernet source. Without an Ethernet header never, `!` or not."""

    SPEC: ClassVar = {"--mac-source": Option(invert=True)}
    NEEDED = ("--mac-source",)
    mac: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mac-source"]
        octets = g.value.split(":")
        if len(octets) != 6 or not all(re.fullmatch("[0-9a-fA-F]{0,2}", x) for x in octets) or "" in octets[:-1]:
            raise Bad("Invalid MAC address specified.", g.value)
        return cls(int.from_bytes(bytes(int(x or "0", 16) for x in octets), "big"), g.invert)

    @property
    def hooks(self) -> frozenset[str]:
        return frozenset(("PREROUTING", "INPUT", "FORWARD"))

    def words(self) -> str:
        return f"{_not(self.invert)}--mac-source {self.mac.to_bytes(6, 'big').hex(':')}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        return p.ether[rows] & _turned(p.smac[rows] == self.mac, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        return p.ether.item(row) and (p.smac.item(row) == self.mac) != self.invert


_PACKET_TYPES = {
    "unicast": 0, "host": 0, "broadcast": 1, "bcast": 1, "multicast": MULTICAST, "mcast": MULTICAST, "otherhost": 3
}  # fmt: skip


@dataclass(frozen=True)
class Pkttype(Match, name="pkttype"):
    """--pkt-type unicast|broadcast|multicast|otherhost: how the frame was addressed."""

    SPEC: ClassVar = {"--pkt-type": Option(invert=True)}
    NEEDED = ("--pkt-type",)
    type: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--pkt-type"]
        if g.value.lower() not in _PACKET_TYPES:
            raise Bad(f"Bad packet type '{g.value}'", g.value, "one of " + ", ".join(_PACKET_TYPES))
        return cls(_PACKET_TYPES[g.value.lower()], g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--pkt-type {next(n for n, t in _PACKET_TYPES.items() if t == self.type)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return _turned(trip.pkts.pkttype[rows] == self.type, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return (trip.pkts.pkttype.item(row) == self.type) != self.invert


# ---- header fields -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Length(Match, name="length"):
    """--length N[:M]: total length of the IP packet."""

    SPEC: ClassVar = {"--length": Option(invert=True)}
    NEEDED = ("--length",)
    low: int
    high: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--length"]
        return cls(*_range(cls.name, "--length", g.value, 0xFFFF), g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--length {_span(self.low, self.high)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        length = trip.pkts.length[rows]
        return _turned((length >= self.low) & (length <= self.high), self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return (self.low <= trip.pkts.length.item(row) <= self.high) != self.invert


@dataclass(frozen=True)
class Ttl(Match, name="ttl"):
    """--ttl-eq N, --ttl-lt N, --ttl-gt N."""

    SPEC: ClassVar = {
        "--ttl-lt": Option(alone=("--ttl-eq", "--ttl-gt")),
        "--ttl-gt": Option(alone=("--ttl-eq", "--ttl-lt")),
        "--ttl-eq": Option(invert=True, old=("--ttl",), alone=("--ttl-lt", "--ttl-gt")),
    }
    how: str
    ttl: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        for option, g in o.items():
            return cls(option, _number(cls.name, option, g.value, 255), g.invert)
        raise Bad("TTL match: You must specify one of `--ttl-eq', `--ttl-lt', `--ttl-gt")

    def words(self) -> str:
        return f"{_not(self.invert)}{self.how} {self.ttl}"

    @cached_property
    def _answers(self) -> Mask:
        ttl = np.arange(256)
        if self.how == "--ttl-eq":
            return _turned(ttl == self.ttl, self.invert)
        return ttl < self.ttl if self.how == "--ttl-lt" else ttl > self.ttl

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[trip.pkts.ttl[rows]]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(trip.pkts.ttl.item(row))


TOS_NAMES = {
    "Minimize-Delay": 0x10,
    "Maximize-Throughput": 0x08,
    "Maximize-Reliability": 0x04,
    "Minimize-Cost": 0x02,
    "Normal-Service": 0x00,
}


@dataclass(frozen=True)
class Tos(Match, name="tos"):
    """--tos VALUE[/MASK] or a name: (tos & MASK) == VALUE."""

    SPEC: ClassVar = {"--tos": Option(invert=True)}
    NEEDED = ("--tos",)
    value: int
    wild: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--tos"]
        value, slash, mask = g.value.partition("/")
        named = {name.lower(): bits for name, bits in TOS_NAMES.items()}.get(g.value.lower())
        if named is not None:
            return cls(named, 0x3F, g.invert)
        v, m = integer(value), integer(mask) if slash else 0xFF
        if v is None or v > 255:
            raise Bad(f'Symbolic name "{g.value}" is unknown', g.value, "one of " + ", ".join(TOS_NAMES))
        if m is None or m > 255:
            raise Bad(f'Illegal value: "{g.value}"', g.value)
        return cls(v, m, g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--tos 0x{self.value:02x}/0x{self.wild:02x}"

    @cached_property
    def _answers(self) -> Mask:
        return _turned((np.arange(256) & self.wild) == self.value, self.invert)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[trip.pkts.tos[rows]]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(trip.pkts.tos.item(row))


DSCP_CLASSES = {f"CS{n}": 8 * n for n in range(8)} | {"BE": 0}
DSCP_CLASSES |= {f"AF{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)} | {"EF": 46}


@dataclass(frozen=True)
class Dscp(Match, name="dscp"):
    """--dscp VALUE or --dscp-class NAME: the upper six bits of the TOS byte."""

    SPEC: ClassVar = {
        "--dscp": Option(invert=True, alone=("--dscp-class",)),
        "--dscp-class": Option(invert=True, alone=("--dscp",)),
    }
    dscp: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if "--dscp" in o:
            return cls(_number(cls.name, "--dscp", o["--dscp"].value, 63), o["--dscp"].invert)
        if "--dscp-class" not in o:
            raise Bad("DSCP match: Parameter --dscp is required")
        g = o["--dscp-class"]
        if g.value.upper() not in DSCP_CLASSES:
            raise Bad(f"Invalid DSCP value `{g.value}'", g.value, "one of " + ", ".join(DSCP_CLASSES))
        return cls(DSCP_CLASSES[g.value.upper()], g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--dscp 0x{self.dscp:02x}"

    @cached_property
    def _answers(self) -> Mask:
        return _turned((np.arange(256) >> 2) == self.dscp, self.invert)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[trip.pkts.tos[rows]]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(trip.pkts.tos.item(row))


@dataclass(frozen=True)
class Ecn(Match, name="ecn"):
    """--ecn-tcp-cwr, --ecn-tcp-ece (TCP flags), --ecn-ip-ect N (the lower two bits of the TOS byte)."""

    SPEC: ClassVar = {
        "--ecn-tcp-cwr": Option(0, invert=True),
        "--ecn-tcp-ece": Option(0, invert=True),
        "--ecn-ip-ect": Option(invert=True),
    }
    ece: bool | None = None  # what the flag must be
    cwr: bool | None = None
    ect: tuple[int, bool] | None = None

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("ECN match: some option required")
        ece = not o["--ecn-tcp-ece"].invert if "--ecn-tcp-ece" in o else None
        cwr = not o["--ecn-tcp-cwr"].invert if "--ecn-tcp-cwr" in o else None
        g = o.get("--ecn-ip-ect")
        ect = None if g is None else (_number(cls.name, "--ecn-ip-ect", g.value, 3), g.invert)
        return cls(ece, cwr, ect)

    def check(self, rule: RuleContext) -> str:
        if (self.ece is not None or self.cwr is not None) and (rule.proto != TCP or rule.proto_inverted):
            return "cannot match TCP bits for non-tcp packets"
        return ""

    def words(self) -> str:
        out = []
        if self.ece is not None:
            out.append(f"{_not(not self.ece)}--ecn-tcp-ece")
        if self.cwr is not None:
            out.append(f"{_not(not self.cwr)}--ecn-tcp-cwr")
        if self.ect:
            out.append(f"{_not(self.ect[1])}--ecn-ip-ect {self.ect[0]}")
        return " ".join(out)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = np.ones(len(rows), bool)
        if self.ect:
            yes &= ((p.tos[rows] & 3) == self.ect[0]) != self.ect[1]
        if self.ece is not None or self.cwr is not None:
            flags = p.flags[rows]
            later = np.flatnonzero((p.frag[rows] & OFFSET_MASK) != 0)
            for k in later.tolist():  # the kernel takes what stands there for a header
                flags[k] = (p.payload(int(rows[k]))[13:14] or b"\0")[0]
            yes &= p.length[rows] - p.ihl[rows] >= 20
            if self.ece is not None:
                yes &= ((flags & 0x40) != 0) == self.ece
            if self.cwr is not None:
                yes &= ((flags & 0x80) != 0) == self.cwr
        return yes


@dataclass(frozen=True)
class Realm(Match, name="realm"):
    """--realm VALUE[/MASK]: the realm of the route. No route of a model has one, so the realm is 0."""

    SPEC: ClassVar = {"--realm": Option(invert=True)}
    NEEDED = ("--realm",)
    value: int
    wild: int = M32
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--realm"]
        value, slash, mask = g.value.partition("/")
        v = 0 if value == "cosmos" else integer(value)
        if v is None or v > M32:
            raise Bad(f'realm: could not map name {value} to an integer value for option "--realm".', g.value)
        m = integer(mask) if slash else M32
        if m is None or m > M32:
            raise Bad('realm: bad integer value for option "--realm", or out of range.', g.value)
        return cls(v, m, g.invert)

    @property
    def hooks(self) -> frozenset[str]:
        return ALL_HOOKS - {"PREROUTING"}

    def words(self) -> str:
        if self.wild == M32 and not self.value:
            return f"{_not(self.invert)}--realm cosmos"
        return f"{_not(self.invert)}--realm {_hex_masked(self.value, self.wild)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), (self.value == 0) != self.invert)


# ---- chance and rate -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Statistic(Memory, name="statistic"):
    """--mode random --probability P, or --mode nth --every N --packet K.

    nth: packets K+1, K+1+N, ... that come to this rule, each rule counting for itself. random: a draw for each packet
    that depends on the node's seed and on where the rule stands.
    """

    SPEC: ClassVar = {
        "--mode": Option(),
        "--probability": Option(invert=True, alone=("--every", "--packet")),
        "--every": Option(invert=True, alone=("--probability",)),
        "--packet": Option(alone=("--probability",)),
    }
    mode: str
    threshold: int = 0  # of 2**31
    every: int = 1
    packet: int = 0
    invert: bool = False
    salt: int = field(default=0, init=False)
    count: int = field(default=0, init=False)

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",)) if self.mode == "nth" else NONE

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        threshold = packet = 0
        every = 1
        if "--every" in o:
            every = _number(cls.name, "--every", o["--every"].value, M32, 1)
            if "--packet" not in o:
                raise Bad('statistic: option "--every" also requires "--packet".')
        if "--packet" in o:
            packet = _number(cls.name, "--packet", o["--packet"].value, M32)
            if packet >= every:
                raise Bad("the --packet p must be 0 <= p <= n-1", o["--packet"].value)
        if "--probability" in o:
            text = o["--probability"].value
            p = float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else -1.0
            if not 0 <= p <= 1:
                raise Bad('statistic: bad value for option "--probability", or out of range (0-1).', text)
            threshold = int(p * 2**31 + 0.5)
        mode = o["--mode"].value if "--mode" in o else ""
        if mode and mode not in ("random", "nth"):
            raise Bad(f'Bad mode "{mode}"', mode, "random or nth")
        if mode == "random" and "--probability" not in o:
            raise Bad("--probability must be specified when using random mode")
        if mode == "nth" and "--every" not in o:
            raise Bad("--every and --packet must be specified when using nth mode")
        if not mode:
            raise Bad('statistic: option "--mode" must be specified')
        g = o["--probability" if mode == "random" else "--every"]
        match = cls(mode, threshold, every, packet, g.invert)
        match._place = f"{rule.table}:{rule.chain}"
        return match

    def words(self) -> str:
        if self.mode == "random":
            return f"--mode random {_not(self.invert)}--probability {self.threshold / 2**31:.11f}"
        return f"--mode nth {_not(self.invert)}--every {self.every} --packet {self.packet}"

    def reset(self, node: Node) -> None:
        self.count = self.every - 1 - self.packet
        self.salt = zlib.crc32(f"{self._place} {self.words()}".encode())

    def many(self, trip: Trip, rows: Rows) -> Mask:
        if not self._running:  # it stands in no table
            self.start(trip.node, self._place)
        n = len(rows)
        if self.mode == "random":
            return _turned((trip.random(rows, self.salt) >> np.uint64(33)) < self.threshold, self.invert)
        # the counter counts up to every - 1 and a packet matches when it comes back to 0
        hit = (self.count + 1 + np.arange(n)) % self.every == 0
        self.count = (self.count + n) % self.every
        return _turned(hit, self.invert)

    def ask(self, trip: Trip, row: int) -> bool:
        if self.mode == "random":
            return bool((trip.random(np.array([row]), self.salt)[0] >> np.uint64(33)) < self.threshold) != self.invert
        self.count = 0 if self.count == self.every - 1 else self.count + 1
        return (self.count == 0) != self.invert


_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_PRINTED_UNITS = (("day", 86400), ("hour", 3600), ("min", 60), ("sec", 1))


def _leading_int(text: str) -> int:
    found = re.match(r"\s*[+-]?\d+", text)
    return int(found.group()) if found else 0


def _unit(text: str) -> int | None:
    """Seconds of `/s`, `/min`, `/hour`, ...: any beginning of the unit will do."""
    for name, length in _UNITS.items():
        if text and name.startswith(text.lower()):
            return length
    return None


def _interval(rate: str, scale: int) -> tuple[int, int] | None:
    """(time between packets in 1/scale seconds, seconds of the unit) of `5/min`; None when it makes no sense.

    >>> _interval("5/min", 10000), _interval("3/hour", 10000), _interval("7", 10000), _interval("x/s", 10000)
    ((120000, 60), (12000000, 3600), (1428, 1), None)
    """
    number, slash, unit = rate.partition("/")
    length = _unit(unit) if slash else 1
    n = _leading_int(number)
    if length is None or n == 0:
        return None
    if n < 0 or n > scale * length:
        return 0, length
    return scale * length // n, length


def _rate_words(interval: int, scale: int) -> tuple[str, int]:
    """A rate as it prints, and the seconds of its unit: the largest unit that loses nothing to speak of.

    >>> _rate_words(120000, 10000), _rate_words(3, 10000)
    (('5/min', 60), ('3333/sec', 1))
    """
    if not interval:
        return f"{M32}/sec", 1
    name, length = _PRINTED_UNITS[0]
    for finer, finer_length in _PRINTED_UNITS[1:]:
        long = finer_length * scale
        if interval > long or long // interval < long % interval:
            break
        name, length = finer, finer_length
    return f"{length * scale // interval}/{name}", length


def _power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)


@dataclass(eq=False)
class Limit(Memory, name="limit"):
    """--limit N/UNIT [--limit-burst B]: a bucket of B tokens, one more every UNIT/N, time counted in jiffies.

    Linux counts credit in 32 bits, with the largest power of two a jiffy that keeps a day below 2**32.
    """

    SPEC: ClassVar = {"--limit": Option(), "--limit-burst": Option()}
    SCALE: ClassVar[int] = 10000
    interval: int  # 1/10000 s
    burst: int
    credit: int = field(default=0, init=False)
    at: int | None = field(default=None, init=False)  # jiffy of the last look

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        interval = cls.SCALE * 3600 // 3
        if "--limit" in o:
            text = o["--limit"].value
            read = _interval(text, cls.SCALE)
            if read is None:
                raise Bad(f'bad rate "{text}"\'', text, "for example 5/second, 10/min, 3/hour, 1/day")
            if read[0] == 0:
                raise Bad(f'Rate too fast "{text}"', text)
            interval = read[0]
        burst = 5
        if "--limit-burst" in o:
            burst = _number(cls.name, "--limit-burst", o["--limit-burst"].value, 10000)
        return cls(interval, burst)

    def check(self, rule: RuleContext) -> str:
        hz = {"6.1": 100}.get(rule.kernel, 250)
        if self.burst == 0 or self._credits(self.interval * self.burst & M32, hz) < self._credits(self.interval, hz):
            return f"limit: Overflow, try lower: {self.interval}/{self.burst}"
        return ""

    def words(self) -> str:
        burst = "" if self.burst == 5 else f" --limit-burst {self.burst}"
        return f"--limit {_rate_words(self.interval, self.SCALE)[0]}{burst}"

    @staticmethod
    def _per_jiffy(hz: int) -> int:
        return _power_of_two_below(M32 // (hz * 86400))

    @classmethod
    def _credits(cls, amount: int, hz: int) -> int:
        unit = hz * cls._per_jiffy(hz)
        if amount > M32 // unit:
            return amount // cls.SCALE * unit & M32
        return amount * unit // cls.SCALE

    def reset(self, node: Node) -> None:
        self._rate = self._per_jiffy(node.hz)
        self._hz = node.hz
        self._cap = self._credits(self.interval * self.burst & M32, node.hz)
        self._cost = self._credits(self.interval, node.hz)
        self.credit, self.at = self._cap, None

    def ask(self, trip: Trip, row: int) -> bool:
        now = jiffies(trip.pkts.time.item(row), self._hz)
        if self.at is not None:
            self.credit = min(self.credit + (now - self.at) * self._rate, self._cap)
        self.at = now
        if self.credit >= self._cost:
            self.credit -= self._cost
            return True
        return False


@dataclass(eq=False)
class Quota(Memory, name="quota"):
    """--quota BYTES: matches until so many bytes have come; the packet that would pass the end ends it for good."""

    SPEC: ClassVar = {"--quota": Option(invert=True)}
    NEEDED = ("--quota",)
    quota: int
    invert: bool = False
    left: int = field(default=0, init=False)

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--quota"]
        return cls(_number(cls.name, "--quota", g.value, M64), g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--quota {self.quota}"

    def reset(self, node: Node) -> None:
        self.left = self.quota

    def ask(self, trip: Trip, row: int) -> bool:
        length = trip.pkts.length.item(row)
        if self.left >= length:
            self.left -= length
            return not self.invert
        self.left = 0
        return self.invert


# ---- tables shared by name -----------------------------------------------------------------------------------------

T = TypeVar("T")


class ByName(Generic[T]):
    """Tables that rules share by name. A table lives while some rule refers to it."""

    def __init__(self) -> None:
        self.tables: dict[str, T] = {}
        self._users: dict[str, set[int]] = {}

    def enter(self, name: str, user: object, make: Callable[[], T]) -> T:
        """The table `name` (made if there is none), with `user` as one who refers to it."""
        self._users.setdefault(name, set()).add(id(user))
        if name not in self.tables:
            self.tables[name] = make()
        return self.tables[name]

    def leave(self, name: str, user: object) -> None:
        """`user` refers to it no more; the last one takes the table along."""
        users = self._users.get(name, set())
        users.discard(id(user))
        if not users:
            self.tables.pop(name, None)
            self._users.pop(name, None)


class RecentTables(ByName["RecentTable"]):
    """The tables of `-m recent` on one node, by name."""


class HashTables(ByName["HashTable"]):
    """The tables of `-m hashlimit` on one node, by name."""


def recent_tables(node: Node) -> RecentTables:
    """The node's `recent` tables."""
    tables: RecentTables = node.__dict__.setdefault("recent_tables", RecentTables())
    return tables


def hash_tables(node: Node) -> HashTables:
    """The node's `hashlimit` tables."""
    tables: HashTables = node.__dict__.setdefault("hash_tables", HashTables())
    return tables


class RecentEntry:
    """When an address was seen: a ring of ticks."""

    def __init__(self, now: int, ttl: int) -> None:
        self.stamps = [now]
        self.index = 1  # where the next one goes
        self.ttl = ttl


class RecentTable:
    """Addresses seen lately, the one not seen for longest first. At most 100, the oldest makes room."""

    MOST = 100

    def __init__(self, mask: int, ring: int) -> None:
        self.mask = mask
        self.ring = ring  # stamps an address
        self.entries: OrderedDict[int, RecentEntry] = OrderedDict()

    def widen(self, ring: int) -> None:
        """A rule that counts further than the ring reaches empties the table."""
        if ring > self.ring:
            self.entries.clear()
            self.ring = ring

    def add(self, address: int, entry: RecentEntry) -> None:
        if len(self.entries) >= self.MOST:
            self.entries.popitem(last=False)
        self.entries[address] = entry

    def stamp(self, address: int, now: int) -> None:
        """Seen again."""
        entry = self.entries[address]
        entry.index &= self.ring - 1
        if entry.index < len(entry.stamps):
            entry.stamps[entry.index] = now
        else:
            entry.stamps.append(now)
        entry.index += 1
        self.entries.move_to_end(address)


@dataclass(eq=False)
class Recent(Memory, name="recent"):
    """--set | --rcheck | --update | --remove, [--seconds S [--reap]] [--hitcount N] [--rttl] [--name NAME] ...

    A table of addresses by name, with the times when they were seen. --set: remember, always true. --rcheck and
    --update: was it seen (N times, within S seconds)? --update adds this time when the final answer is yes.
    """

    SPEC: ClassVar = {
        "--set": Option(0, invert=True, alone=("--rcheck", "--update", "--remove", "--rttl")),
        "--rcheck": Option(0, invert=True, alone=("--set", "--update", "--remove")),
        "--update": Option(0, invert=True, alone=("--set", "--rcheck", "--remove")),
        "--remove": Option(0, invert=True, alone=("--set", "--rcheck", "--update", "--rttl")),
        "--seconds": Option(),
        "--reap": Option(0),
        "--hitcount": Option(),
        "--rttl": Option(0, alone=("--set", "--remove")),
        "--name": Option(),
        "--rsource": Option(0),
        "--rdest": Option(0),
        "--mask": Option(),
    }
    what: str
    seconds: int = 0
    hitcount: int = 0
    rttl: bool = False
    reap: bool = False
    table: str = "DEFAULT"
    mask_bits: int = M32
    side: str = "rsource"
    invert: bool = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset((f"recent:{self.table}",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        what = next((x for x in ("--set", "--rcheck", "--update", "--remove") if x in o), None)
        if what is None:
            raise Bad("recent: you must specify one of `--set', `--rcheck' `--update' or `--remove'")
        seconds = _number(cls.name, "--seconds", o["--seconds"].value, M32, 1) if "--seconds" in o else 0
        hitcount = _number(cls.name, "--hitcount", o["--hitcount"].value, M32) if "--hitcount" in o else 0
        if "--reap" in o and not seconds:
            raise Bad('recent: option "--reap" also requires "--seconds".', "--reap")
        side = "rsource"
        for option in o:
            if option in ("--rsource", "--rdest"):
                side = option[2:]
        name = o["--name"].value[:199] if "--name" in o else "DEFAULT"
        mask = _host(o["--mask"].value) if "--mask" in o else M32
        return cls(what, seconds, hitcount, "--rttl" in o, "--reap" in o, name, mask, side, o[what].invert)

    def check(self, rule: RuleContext) -> str:
        most = 255 if rule.kernel == "6.1" else 65535
        if self.what in ("--set", "--remove") and (self.seconds or self.hitcount):
            return f"recent: --seconds and --hitcount have no meaning with {self.what}"
        if self.hitcount > most:
            return f"recent: hitcount ({self.hitcount}) is larger than allowed maximum ({most})"
        if not self.table or "/" in self.table:
            return f"recent: `{self.table}' cannot be the name of a table"
        return ""

    def words(self) -> str:
        out = [f"{_not(self.invert)}{self.what}"]
        if self.seconds:
            out.append(f"--seconds {self.seconds - (1 << 32) if self.seconds >> 31 else self.seconds}")
        if self.reap:
            out.append("--reap")
        if self.hitcount:
            out.append(f"--hitcount {self.hitcount}")
        if self.rttl:
            out.append("--rttl")
        out.append(f"--name {self.table} --mask {dotted(self.mask_bits)} --{self.side}")
        return " ".join(out)

    def reset(self, node: Node) -> None:
        # a ring of the next power of two; 32 where no rule counts
        ring = 1 << (self.hitcount - 1).bit_length() if self.hitcount else 32
        table = recent_tables(node).enter(self.table, self, lambda: RecentTable(self.mask_bits, ring))
        table.widen(ring)
        self._table = table

    def stop(self, node: Node) -> None:
        super().stop(node)
        recent_tables(node).leave(self.table, self)

    def ask(self, trip: Trip, row: int) -> bool:
        p, table, hz = trip.pkts, self._table, trip.node.hz
        address = (p.dst if self.side == "rdest" else p.src).item(row) & table.mask
        # the TTL as it was before this node forwarded it
        ttl = p.ttl.item(row) + (p.link_out.item(row) >= 0 and not p.socket.item(row))
        now = jiffies(p.time.item(row), hz)
        entry = table.entries.get(address)
        if entry and self.rttl and ttl and entry.ttl and entry.ttl != ttl:
            entry = None
        answer = self.invert
        if entry is None:
            if self.what == "--set":
                table.add(address, RecentEntry(now, ttl & 255))
                answer = not answer
            return answer
        if self.what == "--set":
            answer = not answer
        elif self.what == "--remove":
            del table.entries[address]
            return not answer
        else:
            since = now - self.seconds * hz
            hits = sum(not self.seconds or stamp >= since for stamp in entry.stamps)
            if hits >= max(self.hitcount, 1):
                answer = not answer
            if self.reap:
                oldest, its = next(iter(table.entries.items()))
                busy = oldest == address and self.what == "--update" and answer
                if not busy and its.stamps[its.index - 1] < since:
                    del table.entries[oldest]
        if self.what == "--set" or (self.what == "--update" and answer):
            if address not in table.entries:  # reaped while it was looked at
                return answer
            table.stamp(address, now)
            entry.ttl = ttl & 255
        return answer


HASH_MODES = ("srcip", "srcport", "dstip", "dstport")
_CHUNK_SHIFT = 4  # byte rates count in chunks of 16 bytes


@dataclass(frozen=True)
class HashSettings:
    """How a hashlimit table was set up, by the rule that made it."""

    bytes: bool
    amount: int  # packets: 1/1000000 s between two; bytes: 2**32 / chunks a second
    burst: int
    mode: frozenset[str]
    src_mask: int
    dst_mask: int
    size: int
    most: int
    gc: int  # ms
    expire: int  # ms
    by_rate: bool = False
    rate_interval: int = 1


class HashBucket:
    """One key's credit."""

    __slots__ = ("cap", "cost", "credit", "expires", "over", "seen", "since")

    def __init__(self, since: int, credit: int, cap: int, cost: int) -> None:
        self.since, self.credit, self.cap, self.cost = since, credit, cap, cost
        self.expires = 0
        self.seen = 0  # packets or bytes in this interval
        self.over = False  # the last interval was over the rate


class HashTable:
    """Buckets by key. Expired ones go when the collector passes, every `gc` milliseconds from the table's birth."""

    def __init__(self, settings: HashSettings, hz: int, born: int) -> None:
        self.settings, self.hz = settings, hz
        self.buckets: dict[tuple[int, int, int, int], HashBucket] = {}
        self.born = self.collected = jiffies(born, hz)
        self.gc = max(1, -(-settings.gc * hz // 1000))
        self.expire = -(-settings.expire * hz // 1000)
        self.packet_rate = _power_of_two_below(M64 // (hz * 86400))
        self.byte_rate = _power_of_two_below(M32 // hz)
        if settings.bytes:
            self.cost = settings.amount * hz * self.byte_rate >> 32
            self.cap = settings.burst
        else:
            self.cost = hash_credits(settings.amount, hz)
            self.cap = hash_credits(settings.amount * settings.burst & M64, hz)
        self.most = settings.most
        if not self.most:
            self.most = 8 * (settings.size or 8192)
        elif settings.size and self.most < settings.size:
            self.most = settings.size

    def bucket(self, key: tuple[int, int, int, int], now: int) -> HashBucket | None:
        """The bucket of `key`, filled up to `now` (a jiffy); None when the table is full."""
        passed = now - (now - self.born) % self.gc
        if passed > self.collected:
            self.collected = passed
            self.buckets = {k: b for k, b in self.buckets.items() if b.expires > passed}
        found = self.buckets.get(key)
        if found is None:
            if len(self.buckets) >= self.most:
                return None
            full = self.byte_rate * self.hz if self.settings.bytes else self.cap
            found = self.buckets[key] = HashBucket(now, full, self.cap, self.cost)
        else:
            self._fill(found, now)
        found.expires = now + self.expire
        return found

    def _fill(self, b: HashBucket, now: int) -> None:
        passed = now - b.since
        if passed <= 0:
            return
        s = self.settings
        if s.by_rate:
            interval = s.rate_interval * self.hz
            if passed < interval:
                return
            b.over = b.seen * interval > passed * self.rate
            b.seen = 0
        elif s.bytes:
            b.credit = min(b.credit + passed * self.byte_rate, self.byte_rate * self.hz)
        else:
            b.credit = min(b.credit + passed * self.packet_rate, b.cap)
        b.since = now

    @cached_property
    def rate(self) -> int:
        """Rate-match mode: packets or bytes in an interval, rounded down."""
        s = self.settings
        return _bytes_of(s.amount) if s.bytes else 1_000_000 // s.amount

    def spend(self, b: HashBucket, length: int) -> bool:
        """Is there credit for a packet of `length` bytes? Then it is spent."""
        s = self.settings
        if s.by_rate:
            b.seen += length if s.bytes else 1
            most = (s.burst or 1) * self.rate if s.bytes else s.burst + self.rate
            return not b.over and b.seen <= most
        cost = b.cost
        if s.bytes:
            whole = self.byte_rate * self.hz
            cost = min(((length >> _CHUNK_SHIFT) + 1) * b.cost, whole)
            if b.credit < cost and b.cap:
                b.cap -= 1
                b.credit = whole
        if b.credit < cost:
            return False
        b.credit -= cost
        return True


def hash_credits(amount: int, hz: int) -> int:
    """Credit of `amount` millionths of a second, in 64 bits."""
    unit = hz * _power_of_two_below(M64 // (hz * 86400))
    return amount * (unit // 1_000_000) & M64


def _bytes_of(amount: int) -> int:
    """Bytes a second of a stored byte rate."""
    return ((M32 // amount if amount else M32) - 1) << _CHUNK_SHIFT


def _amount(size: int) -> int:
    """How a rate of `size` bytes a second is stored."""
    return M32 // ((size >> _CHUNK_SHIFT) + 1)


def _fits(size: int, unit: int, amount: int) -> bool:
    """Whole units say the same rate. (The tool looks at 32 bits of it.)"""
    return _amount(size & -unit & M32) == amount


_BYTE_UNITS = (("mb", 1 << 20), ("kb", 1 << 10), ("b", 1))


def _amount_of_bytes(text: str) -> int | None:
    found = re.match(r"(\d+)([km]?)", text)
    return int(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[found[2]] if found else None


@dataclass(eq=False)
class Hashlimit(Memory, name="hashlimit"):
    """--hashlimit-upto RATE | --hashlimit-above RATE, --hashlimit-name NAME, [--hashlimit-mode srcip,...] ...

    A `limit` for each key (addresses and ports of `mode`). Rates in packets or bytes (`10kb/s`). The table is shared
    by name; the rule that makes it settles how it counts, each rule only whether it wants those below or above.
    """

    SPEC: ClassVar = {
        "--hashlimit-upto": Option(invert=True, old=("--hashlimit",), alone=("--hashlimit-above",)),
        "--hashlimit-above": Option(invert=True, alone=("--hashlimit-upto",)),
        "--hashlimit-burst": Option(),
        "--hashlimit-srcmask": Option(),
        "--hashlimit-dstmask": Option(),
        "--hashlimit-htable-size": Option(),
        "--hashlimit-htable-max": Option(),
        "--hashlimit-htable-gcinterval": Option(),
        "--hashlimit-htable-expire": Option(),
        "--hashlimit-mode": Option(),
        "--hashlimit-name": Option(),
        "--hashlimit-rate-match": Option(0),
        "--hashlimit-rate-interval": Option(),
    }
    SCALE: ClassVar[int] = 1_000_000
    table: str
    above: bool
    settings: HashSettings

    @property
    def touches(self) -> frozenset[str]:
        return frozenset((f"hashlimit:{self.table}",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        option = next((x for x in ("--hashlimit-upto", "--hashlimit-above") if x in o), None)
        if option is None:
            raise Bad("You have to specify --hashlimit")
        if "--hashlimit-name" not in o:
            raise Bad('hashlimit: option "--hashlimit-name" must be specified')
        name = o["--hashlimit-name"].value
        if not name:
            raise Bad("Argument must have a minimum length of 1 characters", "--hashlimit-name")
        rate = o[option].value
        in_bytes = "b/s" in rate
        amount, unit, burst = cls._rate(option, rate, in_bytes)
        if "--hashlimit-burst" in o:
            burst = cls._burst(o["--hashlimit-burst"].value, amount, in_bytes)
        mode = set()
        for word in filter(None, o["--hashlimit-mode"].value.split(",") if "--hashlimit-mode" in o else []):
            if word not in HASH_MODES:
                raise Bad(f'hashlimit: Bad value for "--hashlimit-mode" option: "{word}"', word)
            mode.add(word)

        def number(suffix: str, default: int, high: int = M32) -> int:
            full = f"--hashlimit-{suffix}"
            return _number(cls.name, full, o[full].value, high) if full in o else default

        by_rate = "--hashlimit-rate-match" in o
        rate_interval = number("rate-interval", unit if by_rate else 1)
        if rate_interval == 0:
            raise Bad('hashlimit: Bad value for "--hashlimit-rate-interval" option: "0"', "--hashlimit-rate-interval")
        if by_rate:
            amount //= unit  # packets in an interval, and the interval is the unit
        expire = (60 if burst else 15) if in_bytes else unit
        settings = HashSettings(
            in_bytes,
            amount,
            burst,
            frozenset(mode),
            number("srcmask", 32),
            number("dstmask", 32),
            number("htable-size", 0),
            number("htable-max", 0),
            number("htable-gcinterval", 1000),
            number("htable-expire", expire * 1000),
            by_rate,
            rate_interval,
        )
        return cls(name, (option == "--hashlimit-above") != o[option].invert, settings)

    @classmethod
    def _rate(cls, option: str, rate: str, in_bytes: bool) -> tuple[int, int, int]:
        """(amount, seconds of the unit, usual burst)."""
        bad = Bad(f'hashlimit: Bad value for "{option}" option: "{rate}"', rate)
        if in_bytes:
            size = _amount_of_bytes(rate)
            if not size:
                raise bad
            return _amount(size), 1, 0
        read = _interval(rate, cls.SCALE)
        if read is None:
            raise bad
        if read[0] == 0:
            raise Bad(f'Rate too fast "{rate}"', rate)
        return read[0], read[1], 5

    @staticmethod
    def _burst(text: str, amount: int, in_bytes: bool) -> int:
        size = _amount_of_bytes(text)
        if in_bytes and size is not None:
            step = _bytes_of(amount)
            if step == 0 or size < step:
                raise Bad(f"burst cannot be smaller than {step}b", text)
            return -(-size // step)
        if size is None or not 1 <= size <= 1_000_000:
            raise Bad('bad value for option "--hashlimit-burst", or out of range (1-1000000).', text)
        return size

    def check(self, rule: RuleContext) -> str:
        s = self.settings
        hz = {"6.1": 100}.get(rule.kernel, 250)
        if s.gc == 0 or s.expire == 0:
            return "hashlimit: neither --hashlimit-htable-gcinterval nor --hashlimit-htable-expire may be 0"
        if s.src_mask > 32 or s.dst_mask > 32:
            return "hashlimit: a mask has at most 32 bits"
        if "/" in self.table or len(self.table.encode("utf-8", "surrogateescape")) > 254:
            return f"hashlimit: `{self.table}' cannot be the name of a table"
        if s.amount == 0:
            return "hashlimit: invalid rate"
        if s.bytes or s.by_rate:
            return ""
        if hash_credits(s.amount * s.burst & M64, hz) < hash_credits(s.amount, hz):
            return f"hashlimit: overflow, try lower: {s.amount}/{s.burst}"
        return ""

    def words(self) -> str:
        s = self.settings
        out = []
        option = f"--hashlimit-{'above' if self.above else 'upto'}"
        if s.bytes:
            size = _bytes_of(s.amount)
            name, unit = next((n, u) for n, u in _BYTE_UNITS if u == 1 or (size >= u and _fits(size, u, s.amount)))
            out.append(f"{option} {size // unit}{name}/s")
            usual = 15_000
            if s.burst:
                size *= s.burst
                name, unit = next((n, u) for n, u in _BYTE_UNITS if size >= u or u == 1)
                out.append(f"--hashlimit-burst {size // unit}{name}")
                usual = 60_000
        else:
            rate, seconds = _rate_words(s.amount, self.SCALE)
            out += [f"{option} {rate}", f"--hashlimit-burst {s.burst}"]
            usual = seconds * 1000
        if s.mode:
            out.append(f"--hashlimit-mode {','.join(m for m in HASH_MODES if m in s.mode)}")
        out.append(f"--hashlimit-name {self.table}")
        for suffix, value, default in (
            ("htable-size", s.size, 0),
            ("htable-max", s.most, 0),
            ("htable-gcinterval", s.gc, 1000),
            ("htable-expire", s.expire, usual),
            ("srcmask", s.src_mask, 32),
            ("dstmask", s.dst_mask, 32),
        ):
            if value != default:
                out.append(f"--hashlimit-{suffix} {value}")
        if s.by_rate:
            out.append("--hashlimit-rate-match")
            if s.rate_interval != 1:
                out.append(f"--hashlimit-rate-interval {s.rate_interval}")
        return " ".join(out)

    def reset(self, node: Node) -> None:
        make = lambda: HashTable(self.settings, node.hz, node.now)  # noqa: E731
        self._table = hash_tables(node).enter(self.table, self, make)

    def stop(self, node: Node) -> None:
        super().stop(node)
        hash_tables(node).leave(self.table, self)

    def ask(self, trip: Trip, row: int) -> bool:
        p, table = trip.pkts, self._table
        s = table.settings
        src = sport = dst = dport = 0
        if "srcip" in s.mode:
            src = p.src.item(row) & (M32 << (32 - s.src_mask) & M32)
        if "dstip" in s.mode:
            dst = p.dst.item(row) & (M32 << (32 - s.dst_mask) & M32)
        if "srcport" in s.mode or "dstport" in s.mode:
            ports = self._ports(trip, row)
            if ports is None:
                drop_at_once(trip, np.array([row]))
                return False
            sport = ports[0] if "srcport" in s.mode else 0
            dport = ports[1] if "dstport" in s.mode else 0
        bucket = table.bucket((src, sport, dst, dport), jiffies(p.time.item(row), table.hz))
        if bucket is None:
            drop_at_once(trip, np.array([row]))
            return False
        return table.spend(bucket, p.length.item(row)) != self.above

    @staticmethod
    def _ports(trip: Trip, row: int) -> tuple[int, int] | None:
        """Both ports, 0 for protocols without; None for a packet too short. ESP and AH have their SPI there."""
        p = trip.pkts
        proto = p.proto.item(row)
        if proto not in PORTED and proto not in (50, 51):
            return 0, 0
        place = 4 if proto == 51 else 0
        if p.length.item(row) - p.ihl.item(row) < place + 4:
            return None
        if proto in PORTED and not p.frag.item(row) & OFFSET_MASK:
            return p.sport.item(row), p.dport.item(row)
        word = p.payload(row)[place : place + 4].ljust(4, b"\0")
        return int.from_bytes(word[:2], "big"), int.from_bytes(word[2:], "big")


# ---- looking into the bytes ----------------------------------------------------------------------------------------

# letters of the kernel's character table: ASCII and Latin-1
_FOLD = bytes(c - 32 if 97 <= c <= 122 or 223 <= c <= 246 or c >= 248 else c for c in range(256))


@dataclass(frozen=True)
class String(Match, name="string"):
    """--string TEXT | --hex-string TEXT, --algo bm|kmp, [--from A] [--to B] [--icase]: bytes of the packet.

    Offsets count from the IP header. The first place at or after A decides: the pattern must end by B.
    """

    SPEC: ClassVar = {
        "--from": Option(),
        "--to": Option(),
        "--algo": Option(),
        "--string": Option(invert=True, alone=("--hex-string",)),
        "--hex-string": Option(invert=True, alone=("--string",)),
        "--icase": Option(0),
    }
    NEEDED = ("--algo",)
    pattern: bytes
    algo: str
    start_at: int = 0
    end_by: int = 0xFFFF
    icase: bool = False
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o.get("--string") or o.get("--hex-string")
        if g is None:
            raise Bad("STRING match: You must specify `--string' or `--hex-string'")
        raw = g.value.encode("utf-8", "surrogateescape")
        pattern = _hex_pattern(raw) if "--hex-string" in o else raw
        if len(pattern) > 128:
            raise Bad(f'STRING too long "{g.value}"', g.value)
        start = _number(cls.name, "--from", o["--from"].value, 0xFFFF) if "--from" in o else 0
        end = _number(cls.name, "--to", o["--to"].value, 0xFFFF) if "--to" in o else 0xFFFF
        return cls(pattern, o["--algo"].value, start, end, "--icase" in o, g.invert)

    def check(self, rule: RuleContext) -> str:
        if self.algo not in ("bm", "kmp"):
            return f"string: there is no algorithm `{self.algo}' (bm or kmp)"
        if not self.pattern:
            return "string: the pattern is empty"
        return "string: --from lies behind --to" if self.start_at > self.end_by else ""

    def words(self) -> str:
        if self.pattern[-1:] == b"\\" or any(not 32 <= c < 127 for c in self.pattern):
            shown = f'--hex-string "|{self.pattern.hex()}|"'
        else:
            shown = '--string "' + re.sub(r"([\"\\])", r"\\\1", self.pattern.decode("ascii")) + '"'
        out = [f"{_not(self.invert)}{shown} --algo {self.algo}"]
        if self.start_at:
            out.append(f"--from {self.start_at}")
        if self.end_by != 0xFFFF:
            out.append(f"--to {self.end_by}")
        if self.icase:
            out.append("--icase")
        return " ".join(out)

    def says(self, trip: Trip, row: int) -> bool:
        packet, pattern = trip.pkts.bytes(row), self.pattern
        if self.icase:
            packet, pattern = packet.translate(_FOLD), pattern.translate(_FOLD)
        at = packet.find(pattern, self.start_at)
        return (at >= 0 and at + len(pattern) <= self.end_by) != self.invert


def _hex_pattern(raw: bytes) -> bytes:
    """Text in which `|de ad|` stands for bytes."""
    out, i, inside = bytearray(), 0, False
    while i < len(raw):
        c = raw[i : i + 1]
        if c == b"\\" and not inside:
            out += raw[i + 1 : i + 2]
            i += 2
        elif c == b"|":
            if inside and raw[i - 1 : i] == b"|":
                raise Bad("Invalid hex block", raw.decode("utf-8", "surrogateescape"))
            inside = not inside
            i += 1
        elif inside:
            pair = raw[i : i + 2]
            if len(pair) < 2 or pair[1:] == b"|" or i + 2 >= len(raw):
                raise Bad("Invalid hex block", raw.decode("utf-8", "surrogateescape"))
            if not re.fullmatch(rb"[0-9a-fA-F]{2}", pair):
                wrong = next(x for x in pair.decode("latin-1") if not re.fullmatch("[0-9a-fA-F]", x))
                raise Bad(f"Invalid hex char '{wrong}'", raw.decode("utf-8", "surrogateescape"))
            out.append(int(pair, 16))
            i += 3 if raw[i + 2 : i + 3] == b" " else 2
        else:
            out += c
            i += 1
    if inside:
        raise Bad("Invalid hex block", raw.decode("utf-8", "surrogateescape"))
    return bytes(out)


_U32_TOKEN = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+)|(>>|<<|&&|[&@=,:])|(.))")


@dataclass(frozen=True)
class U32(Match, name="u32"):
    """--u32 "START&MASK>>N@START=VALUE:VALUE,... && ...": 32-bit words of the packet, computed with and compared."""

    SPEC: ClassVar = {"--u32": Option(invert=True)}
    NEEDED = ("--u32",)
    #: each test: first offset, (operator, number)..., (low, high)...
    tests: tuple[tuple[int, tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]], ...]
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--u32"]
        return cls(tuple(_u32_tests(g.value)), g.invert)

    def words(self) -> str:
        shown = []
        for first, operations, values in self.tests:
            left = f"{first:#x}" + "".join(f"{how}{n:#x}" for how, n in operations)
            right = ",".join(f"{lo:#x}" if lo == hi else f"{lo:#x}:{hi:#x}" for lo, hi in values)
            shown.append(f"{left}={right}")
        return f'{_not(self.invert)}--u32 "{"&&".join(shown)}"'

    def says(self, trip: Trip, row: int) -> bool:
        packet = trip.pkts.bytes(row)
        return all(self._holds(packet, *test) for test in self.tests) != self.invert

    @staticmethod
    def _holds(
        packet: bytes, first: int, operations: tuple[tuple[str, int], ...], values: tuple[tuple[int, int], ...]
    ) -> bool:
        if first + 4 > len(packet):
            return False
        base = 0
        value = int.from_bytes(packet[first : first + 4], "big")
        for how, n in operations:
            if how == "&":
                value &= n
            elif how == "<<":
                value = value << (n & 31) & M32
            elif how == ">>":
                value >>= n & 31
            else:
                base += value
                if base + n + 4 > len(packet):
                    return False
                value = int.from_bytes(packet[base + n : base + n + 4], "big")
        return any(lo <= value <= hi for lo, hi in values)


def _u32_tests(text: str) -> Iterable[tuple[int, tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]]]:
    """Tests joined by &&; a test is numbers joined by & << >> @, then =, then values or ranges between commas."""
    at = 0

    def fail(what: str) -> NoReturn:
        raise Bad(f"u32: {what}", text)

    def token() -> tuple[str, int | str, int]:
        nonlocal at
        found = _U32_TOKEN.match(text, at)
        if not found or not text[at:].strip():
            return "end", "", len(text)
        at = found.end()
        place = found.start(found.lastindex or 0)
        if found[1]:
            n = integer(found[1])
            if n is None or n > M32:
                fail(f"at char {place}: not a number or out of range")
            return "number", n, place
        return ("operator" if found[2] else "junk"), found[2] or found[3], place

    def number() -> int:
        _, value, place = token()
        if not isinstance(value, int):
            fail(f"at char {place}: not a number or out of range")
        return value

    for count in range(1, 12):
        kind, value, place = token()
        if kind == "end":
            fail("abrupt end of input after location specifier")
        if not isinstance(value, int):
            fail(f"at char {place}: not a number or out of range")
        first = value
        operations: list[tuple[str, int]] = []
        values: list[tuple[int, int]] = []
        while True:
            kind, what, place = token()
            if kind == "end":
                fail("abrupt end of input after location specifier")
            if what == "=":
                break
            if what not in ("&", "<<", ">>", "@"):
                fail(f"at char {place}: operator expected")
            if len(operations) == 9:
                fail(f"at char {place}: too many operators")
            operations.append((str(what), number()))
        while True:
            kind, value, place = token()
            if kind == "end":
                fail("test ended with no value specified")
            if not isinstance(value, int):
                fail(f"at char {place}: not a number or out of range")
            low = high = value
            kind, what, place = token()
            if what == ":":
                high = number()
                kind, what, place = token()
            values.append((low, high))
            if what != ",":
                break
            if len(values) == 10:
                fail(f'at char {place}: too many ","s')
        yield first, tuple(operations), tuple(values)
        if kind == "end":
            return
        if what == "&":
            fail(f"at char {place}: a second '&' was expected")
        if what != "&&":
            fail(f'at char {place}: expected "," or "&&"')
        if count == 10:
            fail(f'at char {place}: too many "&&"s')


@dataclass(frozen=True)
class Tcpmss(Match, name="tcpmss"):
    """--mss N[:M]: the MSS option of the segment lies in the range. None there: no, `!` turns that round."""

    SPEC: ClassVar = {"--mss": Option(invert=True)}
    NEEDED = ("--mss",)
    protocols = (TCP,)
    low: int
    high: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mss"]
        low, high = _range(cls.name, "--mss", g.value, 0xFFFF)
        if low > high:
            raise Bad("tcpmss: invalid range given", g.value)
        return cls(low, high, g.invert)

    def words(self) -> str:
        return f"{_not(self.invert)}--mss {_span(self.low, self.high)}"

    def says(self, trip: Trip, row: int) -> bool:
        options = _options_of(trip, row)
        if options is None:
            drop_at_once(trip, np.array([row]))
            return False
        for kind, at in _kinds(options):
            if kind == 2 and len(options) - at >= 4 and options[at + 1] == 4:
                mss = int.from_bytes(options[at + 2 : at + 4], "big")
                return (self.low <= mss <= self.high) != self.invert
        return self.invert


CHUNKS = {
    "DATA": 0, "INIT": 1, "INIT_ACK": 2, "SACK": 3, "HEARTBEAT": 4, "HEARTBEAT_ACK": 5, "ABORT": 6, "SHUTDOWN": 7,
    "SHUTDOWN_ACK": 8, "ERROR": 9, "COOKIE_ECHO": 10, "COOKIE_ACK": 11, "ECN_ECNE": 12, "ECN_CWR": 13,
    "SHUTDOWN_COMPLETE": 14, "I_DATA": 64, "ASCONF_ACK": 128, "RE_CONFIG": 130, "PAD": 132, "FORWARD_TSN": 192,
    "ASCONF": 193, "I_FORWARD_TSN": 194,
}  # fmt: skip
#: letters of the flag bits of a chunk, highest bit first
CHUNK_FLAGS = {"DATA": "----IUBE", "I_DATA": "----IUBE", "ABORT": "-------T", "SHUTDOWN_COMPLETE": "-------T"}


@dataclass(frozen=True)
class Sctp(Match, name="sctp"):
    """--sport, --dport, --chunk-types all|any|only LIST: chunks of the packet, with flags (`DATA:Be`)."""

    SPEC: ClassVar = {**_PORT_OPTIONS, "--chunk-types": Option(2, invert=True)}
    protocols = (SCTP,)
    sport: Ports = ANY_PORT
    dport: Ports = ANY_PORT
    how: str = ""
    chunks: frozenset[int] = frozenset()
    flags: tuple[tuple[int, int, int], ...] = ()  # chunk type, bits looked at, bits that must be set
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        sport, dport = Ports.read(o.get("--sport")), Ports.read(o.get("--dport"))
        g = o.get("--chunk-types")
        if g is None:
            return cls(sport, dport)
        how = g.values[0].lower()
        if how not in ("all", "any", "only"):
            raise Bad('Match type has to be one of "ALL", "ANY" or "ONLY"', g.values[0])
        if g.values[1].upper() == "ALL":
            return cls(sport, dport, how, frozenset(range(256)), (), g.invert)
        chunks, flags = set(), []
        for word in filter(None, g.values[1].split(",") if g.values[1].upper() != "NONE" else []):
            name, _, letters = word.partition(":")
            kind = CHUNKS.get(name.upper())
            if kind is None:
                raise Bad(f"Unknown sctp chunk `{name}'", name, "one of " + ", ".join(CHUNKS))
            chunks.add(kind)
            known = CHUNK_FLAGS.get(name.upper(), "--------")
            seen = wanted = 0
            for letter in letters:
                bit = 7 - known.find(letter.upper()) if letter.isalpha() and letter.upper() in known else -1
                if bit < 0:
                    raise Bad(f"Invalid flags for chunk type {kind}", word)
                seen |= 1 << bit
                wanted = wanted | 1 << bit if letter.isupper() else wanted & ~(1 << bit)
            if seen:
                flags.append((kind, seen, wanted))
        return cls(sport, dport, how, frozenset(chunks), tuple(flags), g.invert)

    def words(self) -> str:
        out = [self.sport.words("--sport", True), self.dport.words("--dport", True)]
        if self.how:
            out.append(f"{_not(self.invert)}--chunk-types {self.how} {self._chunk_words()}")
        return " ".join(filter(None, out))

    def _chunk_words(self) -> str:
        if len(self.chunks) == 256:
            return "ALL"
        flags = {kind: (seen, wanted) for kind, seen, wanted in self.flags}
        names = []
        for name, kind in CHUNKS.items():
            if kind in self.chunks:
                seen, wanted = flags.get(kind, (0, 0))
                known = CHUNK_FLAGS.get(name, "--------")
                on = "".join(known[7 - b] for b in range(7, -1, -1) if seen >> b & 1 and wanted >> b & 1)
                off = "".join(known[7 - b] for b in range(7, -1, -1) if seen >> b & 1 and not wanted >> b & 1)
                letters = "".join(
                    known[7 - b] if wanted >> b & 1 else known[7 - b].lower() for b in range(7, -1, -1) if seen >> b & 1
                )
                names.append(f"{name}:{letters}" if on or off else name)
        return ",".join(names) or "NONE"

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if not _whole_one(trip, row, 12):
            return False
        if not (self.sport.holds(p.sport.item(row)) and self.dport.holds(p.dport.item(row))):
            return False
        if not self.how:
            return True
        fit = self._chunks_fit(p.payload(row))
        if fit is None:
            drop_at_once(trip, np.array([row]))
            return False
        return fit != self.invert

    def _chunks_fit(self, body: bytes) -> bool | None:
        """None for a packet that is not made of whole chunks, as far as one looks."""
        missing = set(self.chunks)
        at = 12
        while True:
            header = body[at : at + 4]
            length = int.from_bytes(header[2:4], "big")
            if len(header) < 4 or length == 0:
                return None
            at += (length + 3) & ~3
            kind = header[0]
            fits = kind in self.chunks and all(header[1] & s == w for k, s, w in self.flags if k == kind)
            if fits and self.how == "any":
                return True
            if not fits and self.how == "only":
                return False
            if fits:
                missing.discard(kind)
            if at >= len(body):
                break
        return self.how == "only" or (self.how == "all" and not missing)


DCCP_TYPES = (
    "REQUEST", "RESPONSE", "DATA", "ACK", "DATAACK", "CLOSEREQ", "CLOSE", "RESET", "SYNC", "SYNCACK", "INVALID"
)  # fmt: skip


@dataclass(frozen=True)
class Dccp(Match, name="dccp"):
    """--sport, --dport, --dccp-types LIST, --dccp-option KIND."""

    SPEC: ClassVar = {
        **_PORT_OPTIONS,
        "--dccp-types": Option(invert=True),
        "--dccp-option": Option(invert=True),
    }
    protocols = (DCCP,)
    sport: Ports | None = None
    dport: Ports | None = None
    types: tuple[int, bool] | None = None  # bits
    option: tuple[int, bool] | None = None

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        sport = Ports.read_loosely("dccp", "--source-port", o["--sport"]) if "--sport" in o else None
        dport = Ports.read_loosely("dccp", "--destination-port", o["--dport"]) if "--dport" in o else None
        types = option = None
        if "--dccp-types" in o:
            bits = 0
            for word in o["--dccp-types"].value.split(","):
                if word.upper() not in DCCP_TYPES:
                    raise Bad(f"Unknown DCCP type `{word}'", word, "one of " + ", ".join(DCCP_TYPES))
                bits |= 1 << DCCP_TYPES.index(word.upper())
            types = (bits, o["--dccp-types"].invert)
        if "--dccp-option" in o:
            g = o["--dccp-option"]
            option = (_number(cls.name, "--dccp-option", g.value, 255, 1), g.invert)
        return cls(sport, dport, types, option)

    def words(self) -> str:
        out = []
        for name, ports in (("--sport", self.sport), ("--dport", self.dport)):
            if ports:
                out.append(f"{_not(ports.invert)}{name} {_span(ports.lo, ports.hi)}")
        if self.types:
            names = (t for k, t in enumerate(DCCP_TYPES) if self.types[0] >> k & 1)
            out.append(f"{_not(self.types[1])}--dccp-types {','.join(names)}")
        if self.option:
            out.append(f"{_not(self.option[1])}--dccp-option {self.option[0]}")
        return " ".join(out)

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if not _whole_one(trip, row, 12):
            return False
        if (self.sport and not self.sport.holds(p.sport.item(row))) or (
            self.dport and not self.dport.holds(p.dport.item(row))
        ):
            return False
        body = p.payload(row)
        kind = body[8] >> 1 & 15
        if self.types and bool(self.types[0] >> min(kind, 10) & 1) == self.types[1]:
            return False
        if self.option:
            # the generic header, longer with long sequence numbers, and what belongs to the type
            header = (16 if body[8] & 1 else 12) + {0: 4, 2: 0, 3: 8, 4: 8, 5: 8, 6: 8, 8: 8, 9: 8}.get(kind, 12)
            end = body[4] * 4
            if end < header or end > len(body):
                drop_at_once(trip, np.array([row]))
                return False
            return any(k == self.option[0] for k, _ in _kinds(body[header:end])) != self.option[1]
        return True


# ---- the clock on the wall -----------------------------------------------------------------------------------------

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ALL_WEEK, _ALL_MONTH, _END_OF_TIME = 0xFE, 0xFFFFFFFE, 0x7FFFFFFF


@dataclass(frozen=True)
class Time(Match, name="time"):
    """--timestart, --timestop, --weekdays, --monthdays, --datestart, --datestop, [--contiguous] [--kerneltz].

    The packet's own time is the clock, in UTC; a node that saw no capture with dates began on 1970-01-01.
    """

    SPEC: ClassVar = {
        "--datestart": Option(),
        "--datestop": Option(),
        "--timestart": Option(),
        "--timestop": Option(),
        "--weekdays": Option(invert=True),
        "--monthdays": Option(invert=True),
        "--localtz": Option(0, alone=("--utc",), old=("--kerneltz",), often=True),
        "--utc": Option(0, alone=("--localtz",)),
        "--contiguous": Option(0),
    }
    first: int = 0  # seconds since 1970
    last: int = _END_OF_TIME
    begins: int = 0  # second of the day
    ends: int = 86399
    weekdays: int = _ALL_WEEK
    monthdays: int = _ALL_MONTH
    contiguous: bool = False
    kernel_zone: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        begins = _time_of_day(o["--timestart"].value) if "--timestart" in o else 0
        ends = _time_of_day(o["--timestop"].value) if "--timestop" in o else 86399
        if "--contiguous" in o and begins < ends:
            raise Bad("time: --contiguous only makes sense when stoptime is smaller than starttime", "--contiguous")
        weekdays, monthdays = _ALL_WEEK, _ALL_MONTH
        if "--weekdays" in o:
            weekdays = _weekdays(o["--weekdays"].value) ^ (_ALL_WEEK if o["--weekdays"].invert else 0)
        if "--monthdays" in o:
            monthdays = _monthdays(o["--monthdays"].value) ^ (_ALL_MONTH if o["--monthdays"].invert else 0)
        return cls(
            _moment(o["--datestart"].value) if "--datestart" in o else 0,
            _moment(o["--datestop"].value) if "--datestop" in o else _END_OF_TIME,
            begins,
            ends,
            weekdays,
            monthdays,
            "--contiguous" in o,
            "--localtz" in o,
        )

    def words(self) -> str:
        out = []
        if (self.begins, self.ends) != (0, 86399):
            out += [f"--timestart {_hours(self.begins)}", f"--timestop {_hours(self.ends)}"]
        if self.monthdays != _ALL_MONTH:
            out.append(f"--monthdays {','.join(str(d) for d in range(1, 32) if self.monthdays >> d & 1)}")
        if self.weekdays != _ALL_WEEK:
            out.append(f"--weekdays {','.join(d for k, d in enumerate(_DAYS, 1) if self.weekdays >> k & 1)}")
        for option, stamp, usual in (("--datestart", self.first, 0), ("--datestop", self.last, None)):
            if stamp != usual:
                moment = datetime.datetime.fromtimestamp(stamp, datetime.UTC)
                out.append(f"{option} {moment:%Y-%m-%dT%H:%M:%S}")
        if self.kernel_zone:
            out.append("--kerneltz")
        if self.contiguous:
            out.append("--contiguous")
        return " ".join(out)

    def says(self, trip: Trip, row: int) -> bool:
        stamp = ((trip.node.epoch or 0) + trip.pkts.time.item(row)) // SECOND
        if not self.first <= stamp <= self.last:
            return False
        second = stamp % 86400
        if self.begins < self.ends:
            if not self.begins <= second <= self.ends:
                return False
        else:
            if self.ends < second < self.begins:
                return False
            if self.contiguous and second <= self.ends:
                stamp -= 86400  # it belongs to the night that began yesterday
        day = stamp // 86400
        if not self.weekdays >> (day + 3) % 7 + 1 & 1:
            return False
        return bool(self.monthdays >> datetime.date.fromordinal(719163 + day).day & 1)


def _hours(second: int) -> str:
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


def _time_of_day(text: str) -> int:
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?", text)
    if not found or int(found[1]) > 23 or int(found[2]) > 59 or int(found[3] or 0) > 59:
        raise Bad(f'invalid time "{text}" specified, should be hh:mm[:ss] format and within the boundaries', text)
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)


def _moment(text: str) -> int:
    found = re.fullmatch(
        r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:T(?:(\d{1,2})(?::(\d{1,2})(?::(\d{1,2}))?)?)?)?)?)?", text
    )
    if found:
        year, month, day, hour, minute, second = (
            int(x) if x else n for x, n in zip(found.groups(), (0, 1, 1, 0, 0, 0), strict=True)
        )
        if 1970 <= year <= 2038 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60:
            # the 31st of February is the 3rd (or 2nd) of March, as mktime has it
            date = datetime.date(year, month, 1) + datetime.timedelta(day - 1)
            return (date.toordinal() - 719163) * 86400 + hour * 3600 + minute * 60 + second
    raise Bad(f'Invalid date "{text}" specified. Should be YYYY[-MM[-DD[Thh[:mm[:ss]]]]]', text)


def _weekdays(text: str) -> int:
    bits = 0
    for word in filter(None, text.split(",")):
        n = integer(word)
        if n is None and re.fullmatch(r"-\d+", word):
            n = 8
        if n is not None:
            if n == 0:
                raise Bad("No, the week does NOT begin with Sunday.", word)
            bits |= 1 << n if n <= 7 else 0
            continue
        hits = [k for k, day in enumerate(_DAYS, 1) if len(word) > 1 and word[:3] in (day, day[:2])]
        if not hits:
            raise Bad(f"{word} is not a valid day specifier", word, "Mon,Tue,... or 1,2,...")
        bits |= 1 << hits[0]
    return bits


def _monthdays(text: str) -> int:
    bits = 0
    for word in filter(None, text.split(",")):
        n = int(word[:2]) if word[:2].isdigit() else -1
        if not 0 <= n <= 31:
            raise Bad(f"{word[:2]} is not a valid day for --monthdays", word)
        bits |= 1 << n
    return bits & _ALL_MONTH


# ---- routing and load balancing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rpfilter(Match, name="rpfilter"):
    """[--loose] [--validmark] [--accept-local] [--invert]: would an answer to the source leave by the input device?"""

    SPEC: ClassVar = {
        "--loose": Option(0),
        "--validmark": Option(0),
        "--accept-local": Option(0),
        "--invert": Option(0),
    }
    tables = frozenset(("raw", "mangle"))
    flags: frozenset[str] = NONE

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        return cls(frozenset(o))

    @property
    def hooks(self) -> frozenset[str]:
        return frozenset(("PREROUTING",))

    def words(self) -> str:
        return " ".join(option for option in self.SPEC if option in self.flags)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p, routing = trip.pkts, trip.node.routing
        src, dst, link = p.src[rows], p.dst[rows], p.link_in[rows]
        mark = p.mark[rows] if "--validmark" in self.flags else np.zeros(len(rows), np.uint32)
        multicast = dst >> 28 == 14
        # the answer would come from the destination, if that can be a source
        source = np.where(multicast | (dst == M32) | (dst >> 24 == 0), np.uint32(0), dst)
        back = routing.output(src, source, mark, p.tos[rows])
        yes = back.kind == UNICAST
        if "--loose" not in self.flags:
            yes &= back.link == link
        if "--accept-local" in self.flags:
            here = None if "--loose" in self.flags else link
            yes |= (back.kind == LOCAL) & (routing.addr_type(src, here) == LOCAL)
        yes |= link == 0
        special = multicast & (src >> 24 == 0)
        yes = np.where(special & (link != 0), dst >> 8 == 0xE00000, yes)
        return _turned(yes, "--invert" in self.flags)


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
            address = (*_network(cls.name, "--vaddr", o["--vaddr"].value), o["--vaddr"].invert)
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
            return (_loose_port(o[option].value), o[option].invert) if option in o else None

        proto = (_protocol(o["--vproto"].value), o["--vproto"].invert) if "--vproto" in o else None
        return cls(None, proto, address, port("--vport"), direction, method, port("--vportctl"))

    def words(self) -> str:
        if self.handled is not None:
            return f"{_not(not self.handled)}--ipvs"
        out = []
        if self.proto:
            out.append(f"{_not(self.proto[1])}--vproto {self.proto[0]}")
        if self.address:
            out.append(f"{_not(self.address[2])}--vaddr {_address_and_width(*self.address[:2])}")
        if self.port:
            out.append(f"{_not(self.port[1])}--vport {self.port[0]}")
        if self.direction:
            out.append(f"--vdir {self.direction}")
        if self.method:
            out.append(f"{_not(self.method[1])}--vmethod {self.method[0]}")
        if self.control_port:
            out.append(f"{_not(self.control_port[1])}--vportctl {self.control_port[0]}")
        return " ".join(out)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p, ipvs = trip.pkts, trip.node.ipvs
        yes = p.ipvs[rows]
        if self.handled is not None:
            return _turned(yes, not self.handled)
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


@dataclass(frozen=True)
class Nfacct(Match, name="nfacct"):
    """--nfacct-name NAME: counts the packet in an accounting object, which netemu does not keep; always matches."""

    SPEC: ClassVar = {"--nfacct-name": Option()}
    NEEDED = ("--nfacct-name",)
    always = True
    object: str

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        name = o["--nfacct-name"].value
        if not 1 <= len(name) <= 31:
            raise Bad(f'nfacct: Argument "{name}" must have a length of 1 to 31 characters', name)
        return cls(name)

    def words(self) -> str:
        return f"--nfacct-name  {self.object}"  # two blanks, as iptables-save has them

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.ones(len(rows), bool)
