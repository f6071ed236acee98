"""Matches that ask for a field of a header: ports, flags, types, lengths, security parameters.

A later fragment has no transport header: it never matches, `!` or not. A header that is too short drops the packet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from netemu.grammar import Bad, Given, RuleContext
from netemu.matches.base import Match, Option, drop_at_once, has_whole_header, turned, whole_header
from netemu.packets import DCCP, ICMP, OFFSET_MASK, PORTED, SCTP, TCP, UDP, Mask, Rows
from netemu.words import M32, bang, integer, read_loose_port, read_number, read_port, read_range, span

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

# ---- ports, flags, types --------------------------------------------------------------------------------------------


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
            return turned(column == self.lo, self.invert)
        return turned((column >= self.lo) & (column <= self.hi), self.invert)

    def holds(self, port: int) -> bool:
        return (self.lo <= port <= self.hi) != self.invert

    def words(self, option: str, whole_too: bool = False) -> str:
        if self.lo == 0 and self.hi == 0xFFFF and not (whole_too and self.invert):
            return ""
        return f"{bang(self.invert)}{option} {span(self.lo, self.hi)}"

    @classmethod
    def read(cls, g: Given | None) -> Ports:
        if g is None:
            return ANY_PORT
        first, colon, last = g.value.partition(":")
        if not colon:
            lo = hi = read_port(first)
        else:
            lo, hi = read_port(first) if first else 0, read_port(last) if last else 0xFFFF
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
            return cls(read_loose_port(parts[0]), read_loose_port(parts[0]), g.invert)
        return cls(read_loose_port(parts[0]), read_loose_port(parts[1]) if parts[1] else 0xFFFF, g.invert)


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


def options_of(trip: Trip, row: int) -> bytes | None:
    """The TCP options as bytes; None where there is no whole header. What stands where a header would, is one."""
    segment = trip.pkts.payload(row)
    if len(segment) < 20:
        return None
    end = (segment[12] >> 4) * 4
    return segment[20:end] if 20 <= end <= len(segment) else None


def kinds(options: bytes) -> Iterable[tuple[int, int]]:
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
            out.append(f"{bang(self.option_invert)}--tcp-option {self.option}")
        if self.flag_mask or self.flag_invert:
            both = f"{_flag_words(self.flag_mask)} {_flag_words(self.flag_set)}"
            out.append(f"{bang(self.flag_invert)}--tcp-flags {both}")
        return " ".join(filter(None, out))

    @cached_property
    def _flags_matter(self) -> bool:
        return bool(self.flag_mask or self.flag_set or self.flag_invert)

    @property
    def tcp_flags(self) -> int:
        return self.flag_mask

    def steadfast(self, node: Node) -> bool:
        return not self.option

    def exact_ports(self) -> tuple[int, int] | None:
        """(source port, destination port), -1 for any, when it asks for nothing else; None otherwise."""
        return None if self._flags_matter or self.option else _exact(self.sport, self.dport)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = whole_header(trip, rows, 20)
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
        if not has_whole_header(trip, row, 20):
            return False
        if not (self.sport.holds(p.sport.item(row)) and self.dport.holds(p.dport.item(row))):
            return False
        if self._flags_matter and ((p.flags.item(row) & self.flag_mask) == self.flag_set) == self.flag_invert:
            return False
        return not self.option or self._has_option(trip, row)

    def _has_option(self, trip: Trip, row: int) -> bool:
        options = options_of(trip, row)
        if options is None:
            drop_at_once(trip, np.array([row]))
            return False
        return any(kind == self.option for kind, _ in kinds(options)) != self.option_invert


@dataclass(frozen=True)
class Udp(Match, name="udp"):
    """--sport, --dport."""

    alike = True
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
        yes = whole_header(trip, rows, 8)
        if not self.sport.any:
            yes &= self.sport.of(p.sport[rows])
        if not self.dport.any:
            yes &= self.dport.of(p.dport[rows])
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        return (
            has_whole_header(trip, row, 8)
            and self.sport.holds(p.sport.item(row))
            and self.dport.holds(p.dport.item(row))
        )


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
        return f"{bang(self.invert)}--icmp-type {'any' if self.type == 255 else f'{self.type}{code}'}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = whole_header(trip, rows, 8)
        if self.type == 255:
            return yes if not self.invert else yes & False
        code = p.icmp_code[rows]
        hit = (p.icmp_type[rows] == self.type) & (code >= self.low) & (code <= self.high)
        return yes & turned(hit, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        if not has_whole_header(trip, row, 8):
            return False
        p = trip.pkts
        hit = p.icmp_type.item(row) == self.type and self.low <= p.icmp_code.item(row) <= self.high
        return (self.type == 255 or hit) != self.invert


@dataclass(frozen=True)
class Multiport(Match, name="multiport"):
    """--dports 22,8000:8100 (--sports, --ports): the port lies in one of up to 15 ports or ranges, ends included.

    --ports: either port does. A range counts as two of the fifteen.
    """

    alike = True
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
            lo = read_port(first)
            hi = read_port(last) if colon else lo
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
        return f"{bang(self.invert)}{self.side} {','.join(span(lo, hi) for lo, hi in self.ranges)}"

    @cached_property
    def table(self) -> Mask:
        """bool[65536], the inversion included unless either port may do."""
        table = np.zeros(1 << 16, bool)
        for lo, hi in self.ranges:
            table[lo : hi + 1] = True
        return ~table if self.invert and self.side != "--ports" else table

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = whole_header(trip, rows, 4)
        if self.side == "--dports":
            return yes & self.table[p.dport[rows]]
        if self.side == "--sports":
            return yes & self.table[p.sport[rows]]
        return yes & turned(self.table[p.dport[rows]] | self.table[p.sport[rows]], self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        if not has_whole_header(trip, row, 4):
            return False
        p, has = trip.pkts, self.table.item
        if self.side == "--dports":
            return has(p.dport.item(row))
        if self.side == "--sports":
            return has(p.sport.item(row))
        return (has(p.sport.item(row)) or has(p.dport.item(row))) != self.invert


# ---- lengths and bits of the IP header ------------------------------------------------------------------------------


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
        return cls(*read_range(cls.name, "--length", g.value, 0xFFFF), g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--length {span(self.low, self.high)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        length = trip.pkts.length[rows]
        return turned((length >= self.low) & (length <= self.high), self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return (self.low <= trip.pkts.length.item(row) <= self.high) != self.invert


@dataclass(frozen=True)
class Ttl(Match, name="ttl"):
    """--ttl-eq N, --ttl-lt N, --ttl-gt N."""

    alike = True
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
            return cls(option, read_number(cls.name, option, g.value, 255), g.invert)
        raise Bad("TTL match: You must specify one of `--ttl-eq', `--ttl-lt', `--ttl-gt")

    def words(self) -> str:
        return f"{bang(self.invert)}{self.how} {self.ttl}"

    @cached_property
    def _answers(self) -> Mask:
        ttl = np.arange(256)
        if self.how == "--ttl-eq":
            return turned(ttl == self.ttl, self.invert)
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

    alike = True
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
        return f"{bang(self.invert)}--tos 0x{self.value:02x}/0x{self.wild:02x}"

    @cached_property
    def _answers(self) -> Mask:
        return turned((np.arange(256) & self.wild) == self.value, self.invert)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[trip.pkts.tos[rows]]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(trip.pkts.tos.item(row))


DSCP_CLASSES = {f"CS{n}": 8 * n for n in range(8)} | {"BE": 0}
DSCP_CLASSES |= {f"AF{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)} | {"EF": 46}


@dataclass(frozen=True)
class Dscp(Match, name="dscp"):
    """--dscp VALUE or --dscp-class NAME: the upper six bits of the TOS byte."""

    alike = True
    SPEC: ClassVar = {
        "--dscp": Option(invert=True, alone=("--dscp-class",)),
        "--dscp-class": Option(invert=True, alone=("--dscp",)),
    }
    dscp: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if "--dscp" in o:
            return cls(read_number(cls.name, "--dscp", o["--dscp"].value, 63), o["--dscp"].invert)
        if "--dscp-class" not in o:
            raise Bad("DSCP match: Parameter --dscp is required")
        g = o["--dscp-class"]
        if g.value.upper() not in DSCP_CLASSES:
            raise Bad(f"Invalid DSCP value `{g.value}'", g.value, "one of " + ", ".join(DSCP_CLASSES))
        return cls(DSCP_CLASSES[g.value.upper()], g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--dscp 0x{self.dscp:02x}"

    @cached_property
    def _answers(self) -> Mask:
        return turned((np.arange(256) >> 2) == self.dscp, self.invert)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return self._answers[trip.pkts.tos[rows]]

    def says(self, trip: Trip, row: int) -> bool:
        return self._answers.item(trip.pkts.tos.item(row))


@dataclass(frozen=True)
class Ecn(Match, name="ecn"):
    """--ecn-tcp-cwr, --ecn-tcp-ece (TCP flags), --ecn-ip-ect N (the lower two bits of the TOS byte)."""

    alike = True
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
        ect = None if g is None else (read_number(cls.name, "--ecn-ip-ect", g.value, 3), g.invert)
        return cls(ece, cwr, ect)

    @property
    def tcp_flags(self) -> int:
        return (0x40 if self.ece is not None else 0) | (0x80 if self.cwr is not None else 0)

    def check(self, rule: RuleContext) -> str:
        if (self.ece is not None or self.cwr is not None) and (rule.proto != TCP or rule.proto_inverted):
            return "cannot match TCP bits for non-tcp packets"
        return ""

    def words(self) -> str:
        out = []
        if self.ece is not None:
            out.append(f"{bang(not self.ece)}--ecn-tcp-ece")
        if self.cwr is not None:
            out.append(f"{bang(not self.cwr)}--ecn-tcp-cwr")
        if self.ect:
            out.append(f"{bang(self.ect[1])}--ecn-ip-ect {self.ect[0]}")
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


# ---- what few protocols have ----------------------------------------------------------------------------------------


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
        low, high = read_range(cls.name, "--mss", g.value, 0xFFFF)
        if low > high:
            raise Bad("tcpmss: invalid range given", g.value)
        return cls(low, high, g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--mss {span(self.low, self.high)}"

    def says(self, trip: Trip, row: int) -> bool:
        options = options_of(trip, row)
        if options is None:
            drop_at_once(trip, np.array([row]))
            return False
        mss = self.found(options)
        return (mss is not None and self.low <= mss <= self.high) != self.invert

    @staticmethod
    def found(options: bytes) -> int | None:
        """The MSS that TCP options tell; None when they do not."""
        for kind, at in kinds(options):
            if kind == 2 and len(options) - at >= 4 and options[at + 1] == 4:
                return int.from_bytes(options[at + 2 : at + 4], "big")
        return None


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
            out.append(f"{bang(self.invert)}--chunk-types {self.how} {self._chunk_words()}")
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
        if not has_whole_header(trip, row, 12):
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
            option = (read_number(cls.name, "--dccp-option", g.value, 255, 1), g.invert)
        return cls(sport, dport, types, option)

    def words(self) -> str:
        out = []
        for name, ports in (("--sport", self.sport), ("--dport", self.dport)):
            if ports:
                out.append(f"{bang(ports.invert)}{name} {span(ports.lo, ports.hi)}")
        if self.types:
            names = (t for k, t in enumerate(DCCP_TYPES) if self.types[0] >> k & 1)
            out.append(f"{bang(self.types[1])}--dccp-types {','.join(names)}")
        if self.option:
            out.append(f"{bang(self.option[1])}--dccp-option {self.option[0]}")
        return " ".join(out)

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if not has_whole_header(trip, row, 12):
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
            return any(k == self.option[0] for k, _ in kinds(body[header:end])) != self.option[1]
        return True


# ---- IPsec headers --------------------------------------------------------------------------------------------------

ESP, AH, IPCOMP = 50, 51, 108


@dataclass(frozen=True)
class _Spi(Match):
    """A number in a header: what esp, ah and ipcomp share.

    first, last   the range, ends included; a range that ends before it begins holds nothing
    """

    OPTION: ClassVar[str] = ""
    HIGH: ClassVar[int] = M32
    PLACE: ClassVar[tuple[int, int, int]] = (0, 4, 8)  # where the number stands, its size, and the header's
    first: int = 0
    last: int = M32
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o.get(cls.OPTION)
        return cls() if g is None else cls(*cls._range(g.value), g.invert)

    @classmethod
    def _range(cls, text: str) -> tuple[int, int]:
        ends: list[int] = []
        parts = text.split(":")
        if len(parts) > 2:
            raise Bad(f'{cls.name}: bad value for option "{cls.OPTION}"', text)
        for part, default in zip(parts, (0, M32), strict=False):
            n = default if part == "" and len(parts) == 2 else integer(part)
            if n is None or n > M32:
                raise Bad(
                    f'{cls.name}: bad value for option "{cls.OPTION}" near "{part}", or out of range (0-{M32}).', text
                )
            ends.append(n)
        return ends[0], ends[-1]

    def words(self) -> str:
        if (self.first, self.last) == (0, M32):
            return ""
        shown = f"{self.first}" if self.first == self.last else f"{self.first}:{self.last}"
        return f"{bang(self.invert)}{self.OPTION} {shown}"

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if p.frag.item(row) & OFFSET_MASK:
            return False
        index = self.found(p.payload(row))
        if index is None:
            drop_at_once(trip, np.array([row]))
            return False
        return (self.first <= index <= self.last) != self.invert

    def found(self, header: bytes) -> int | None:
        """The number in a header; None when that is cut short."""
        at, size, need = self.PLACE
        return int.from_bytes(header[at : at + size], "big") if len(header) >= need else None


class Esp(_Spi, name="esp"):
    """--espspi A[:B]: the security parameter index of an ESP packet."""

    OPTION = "--espspi"
    SPEC: ClassVar = {"--espspi": Option(invert=True)}
    protocols = (ESP,)


class Ah(_Spi, name="ah"):
    """--ahspi A[:B]: the security parameter index of an AH packet."""

    OPTION = "--ahspi"
    SPEC: ClassVar = {"--ahspi": Option(invert=True)}
    PLACE = (4, 4, 12)
    protocols = (AH,)


@dataclass(frozen=True)
class Ipcomp(_Spi, name="ipcomp"):
    """--ipcompspi A[:B]: the compression parameter index of an IPComp packet. Without the option it is 0 that is meant.

    --compres is printed and asks nothing.
    """

    OPTION = "--ipcompspi"
    SPEC: ClassVar = {"--ipcompspi": Option(invert=True), "--compres": Option(0)}
    PLACE = (2, 2, 4)
    protocols = (IPCOMP,)
    last: int = 0
    compres: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o.get(cls.OPTION)
        ends = cls._range(g.value) if g else (0, 0)
        return cls(*ends, bool(g and g.invert), "--compres" in o)

    def words(self) -> str:
        return " ".join(filter(None, (super().words(), "--compres" * self.compres)))
