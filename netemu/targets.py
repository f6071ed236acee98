"""Targets: every `-j`. A target decides (ACCEPT, DROP) or rewrites, and says where it is allowed.

One class each, one registry, TARGETS. The target names the wish, the room that owns the thing does the deed: NAT
chooses addresses, the trip makes ICMP errors, ipset changes sets.
"""

from __future__ import annotations

import math
import re
import socket
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from netemu.conntrack import Template
from netemu.grammar import Bad, Extension, Given, NotModelled, RuleContext
from netemu.hashing import jhash2
from netemu.helpers import UNMODELLED, protocols_of
from netemu.matches.headers import Tcp
from netemu.nat import Range
from netemu.packets import (
    ICMP,
    ICMP_ERRORS,
    MORE_FRAGMENTS,
    OFFSET_MASK,
    PORTED,
    REJECTED,
    SYN,
    TCP,
    UDP,
    UNTRACKED,
    Mask,
    Packets,
    Rows,
    checksum,
    patched,
)
from netemu.paths import Step
from netemu.routing import BROADCAST, LOCAL, MULTICAST, UNICAST
from netemu.sockets import connected, listening, sockets_of
from netemu.synproxy import EXPLICIT, MSS, SACK, STAMPS, WSCALE, Said
from netemu.timeouts import SEEN
from netemu.trip import Trip
from netemu.words import dotted, integer, quoted, read_host, read_loose_port, read_masked, read_number

#: what a target may answer: go on to the next rule, or end the table, or go back to the caller
CONTINUE, DROP, ACCEPT, STOLEN, RETURN = -1, 0, 1, 2, 3
Verdict = int | NDArray[np.int8]

TARGETS: dict[str, type[Target]] = {}

#: targets that iptables has and netemu does not model: one needs a cluster, the other went out of Linux in 2014
OTHER_TARGETS = frozenset(("CLUSTERIP", "ULOG"))

ALL_HOOKS = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))


class Target(Extension):
    """One `-j NAME`.

    tables   tables that it may stand in; empty: any
    where    built-in chains from which it may be reached; `hooks`: the same, with these options
    sets     names of the ipsets that it uses
    """

    tables: ClassVar[frozenset[str]] = frozenset()
    where: ClassVar[frozenset[str]] = ALL_HOOKS

    def __init_subclass__(
        cls, *, name: str = "", tables: tuple[str, ...] = (), hooks: tuple[str, ...] = (), **more: object
    ) -> None:
        super().__init_subclass__(**more)
        if tables:
            cls.tables = frozenset(tables)
        if hooks:
            cls.where = frozenset(hooks)
        if name:
            cls.name = name
            TARGETS[name] = cls

    @property
    def hooks(self) -> frozenset[str]:
        return self.where

    @property
    def sets(self) -> tuple[str, ...]:
        return ()

    def check(self, rule: RuleContext) -> str:
        """Why the kernel would not take it in this rule ("" when it would). The reader has no say in these."""
        return ""

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        """Do it to `rows`: one verdict for all, or int8[len(rows)]. Rows that get DROP may be ended here."""
        raise NotImplementedError

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        return cls()

    def words(self) -> str:
        return ""


# ---- reading options -----------------------------------------------------------------------------------------------


def _options(name: str, given: list[Given], *exclusive: str, needs: str = "") -> dict[str, str]:
    """option -> its value. Each at most once, none inverted, at most one of `exclusive`, `needs` must be there."""
    out: dict[str, str] = {}
    for g in given:
        if g.invert:
            raise Bad(f'{name}: option "{g.option}" cannot be inverted.', g.option)
        if g.option in out:
            raise Bad(f'{name}: option "{g.option}" can only be used once.', g.option)
        out[g.option] = g.values[0] if g.values else ""
    among = [option for option in out if option in exclusive]
    if len(among) > 1:
        a, b = sorted(among, key=exclusive.index)[:2]
        raise Bad(f'{name}: option "{a}" cannot be used together with "{b}".', among[1])
    if needs and needs not in out:
        raise Bad(f'{name}: option "{needs}" must be specified')
    return out


def _address(text: str) -> int:
    """A dotted quad."""
    quad = _QUAD.fullmatch(text)
    a, b, c, d = (int(part) for part in quad.groups()) if quad else (256, 0, 0, 0)
    if max(a, b, c, d) > 255:
        raise Bad(f'Bad IP address "{text}"', text)
    return a << 24 | b << 16 | c << 8 | d


_QUAD = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})")


def _port(text: str, whole: str) -> int:
    n = integer(text)
    if n is None and text:
        try:
            n = socket.getservbyname(text)
        except OSError:
            n = None
    if n is None or n > 0xFFFF:
        raise Bad(f"Port `{text}' not valid", whole)
    return n


# ---- verdicts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accept(Target, name="ACCEPT"):
    """The packet leaves this table unharmed."""

    alike = True

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return ACCEPT


@dataclass(frozen=True)
class Drop(Target, name="DROP"):
    """The packet dies in silence. Never in the nat table, which sees only the first packet of a connection."""

    alike = True

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        if rule.table == "nat":
            raise Bad(NAT_IS_NO_FILTER, "DROP", "drop it in the filter, mangle or raw table")
        return cls()

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return DROP


NAT_IS_NO_FILTER = 'The "nat" table is not intended for filtering, the use of DROP is therefore inhibited.'


@dataclass(frozen=True)
class Return(Target, name="RETURN"):
    """Back to the rule after the jump; in a built-in chain, to the policy."""

    alike = True

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return RETURN


REJECTS = {  # in the order in which an abbreviation finds them: (long name, short name, ICMP type, code)
    "icmp-net-unreachable": ("net-unreach", 0),
    "icmp-host-unreachable": ("host-unreach", 1),
    "icmp-proto-unreachable": ("proto-unreach", 2),
    "icmp-port-unreachable": ("port-unreach", 3),
    "icmp-net-prohibited": ("net-prohib", 9),
    "icmp-host-prohibited": ("host-prohib", 10),
    "tcp-reset": ("tcp-rst", -1),
    "icmp-admin-prohibited": ("admin-prohib", 13),
}


@dataclass(frozen=True)
class Reject(Target, name="REJECT", tables=("filter",), hooks=("INPUT", "FORWARD", "OUTPUT")):
    """--reject-with TYPE: the packet dies and its sender is told, by an ICMP error or a TCP reset."""

    OPTIONS: ClassVar[dict[str, int]] = {"--reject-with": 1}
    kind: str = "icmp-port-unreachable"

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        text = _options(cls.name, given).get("--reject-with", cls.kind)
        low = text.lower()
        for kind, (short, _) in REJECTS.items():
            if kind.startswith(low) or short.startswith(low):
                return cls(kind)
        raise Bad(f'unknown reject type "{text}"', text, "one of " + ", ".join(REJECTS))

    def check(self, rule: RuleContext) -> str:
        if self.kind == "tcp-reset" and (rule.proto != TCP or rule.proto_inverted):
            return "REJECT --reject-with tcp-reset needs -p tcp"
        return ""

    def words(self) -> str:
        return f"--reject-with {self.kind}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        code = REJECTS[self.kind][1]
        if code < 0:
            trip.cause_reset(rows)
        else:
            trip.cause_icmp(rows, 3, code, verify=True)
        trip.end(rows, f"{step.text} REJECT", REJECTED)
        return DROP


# ---- marks and header fields ---------------------------------------------------------------------------------------


XMARKS = ("--set-xmark", "--set-mark", "--and-mark", "--or-mark", "--xor-mark")


@dataclass(frozen=True)
class SetMark(Target, name="MARK"):
    """--set-xmark VALUE/MASK: mark = (mark without the bits of MASK) XOR VALUE. The other options are spellings."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = dict.fromkeys(XMARKS, 1)
    value: int
    mask: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, *cls.OPTIONS)
        if not got:
            raise Bad("MARK: One of the --set-xmark, --{and,or,xor,set}-mark options is required")
        return cls(*_xmark(cls.name, *next(iter(got.items()))))

    def words(self) -> str:
        return f"--set-xmark 0x{self.value:x}/0x{self.mask:x}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        trip.rewrite(rows, "mark", (trip.pkts.mark[rows] & (~self.mask & 0xFFFFFFFF)) ^ self.value, step)
        return CONTINUE


def _xmark(name: str, option: str, text: str) -> tuple[int, int]:
    """(value, mask) of the raw form that any of the mark options means."""
    if option in ("--set-xmark", "--set-mark"):
        value, mask = read_masked(name, option, text)
        return value, mask | value if option == "--set-mark" else mask
    n = read_number(name, option, text, 0xFFFFFFFF)
    return {"--and-mark": (0, ~n & 0xFFFFFFFF), "--or-mark": (n, n), "--xor-mark": (n, 0)}[option]


@dataclass(frozen=True)
class Connmark(Target, name="CONNMARK"):
    """The connection's mark: set it, save the packet's mark to it, or restore the packet's mark from it.

    value, ctmask      set:      ct = (ct without the bits of ctmask) XOR value
    nfmask, ctmask     save:     ct = (ct without the bits of ctmask) XOR (mark AND nfmask)
                       restore:  mark = (mark without the bits of nfmask) XOR (ct AND ctmask)
    shift              bits by which the new value is moved left (negative: right) before it is written

    Nothing happens to a packet without a connection.
    """

    OPTIONS: ClassVar[dict[str, int]] = {
        **dict.fromkeys(XMARKS, 1),
        "--save-mark": 0,
        "--restore-mark": 0,
        "--mask": 1,
        "--nfmask": 1,
        "--ctmask": 1,
        "--left-shift-mark": 1,
        "--right-shift-mark": 1,
    }
    needs_conntrack = True
    mode: str
    value: int = 0
    ctmask: int = 0xFFFFFFFF
    nfmask: int = 0xFFFFFFFF
    shift: int = 0

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("flow",))

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        modes = (*XMARKS, "--save-mark", "--restore-mark")
        got = _options(cls.name, given, *modes)
        mode = next((m for m in modes if m in got), "")
        if not mode:
            raise Bad("CONNMARK target: No operation specified")
        masks = {
            o: read_number(cls.name, o, got[o], 0xFFFFFFFF) for o in ("--mask", "--nfmask", "--ctmask") if o in got
        }
        shift = 0
        for option, sign in (("--left-shift-mark", 1), ("--right-shift-mark", -1)):
            if option in got:
                shift = sign * read_number(cls.name, option, got[option], 32)
        if mode not in ("--save-mark", "--restore-mark"):
            value, mask = _xmark(cls.name, mode, got[mode])
            if mode == "--set-mark" and "/" not in got[mode] and "--mask" in masks:
                mask = masks["--mask"]
            return cls("set", value, mask, 0, shift)
        both = masks.get("--mask", 0xFFFFFFFF)
        return cls(mode[2:-5], 0, masks.get("--ctmask", both), masks.get("--nfmask", both), shift)

    def words(self) -> str:
        if self.mode == "set":
            out = f"--set-xmark 0x{self.value:x}/0x{self.ctmask:x}"
        else:
            out = f"--{self.mode}-mark --nfmask 0x{self.nfmask:x} --ctmask 0x{self.ctmask:x}"
        if self.shift:
            out += f" --{'left' if self.shift > 0 else 'right'}-shift-mark {abs(self.shift)}"
        return out

    def _shifted(self, n: int) -> int:
        return (n << self.shift) & 0xFFFFFFFF if self.shift >= 0 else n >> -self.shift

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        pkts = trip.pkts
        rows = rows[pkts.ct[rows] >= 0]
        marks = trip.node.conntrack.mark
        if self.mode == "restore":
            ct = marks[pkts.ct[rows]] & self.ctmask
            if self.shift:
                ct = np.array([self._shifted(int(n)) for n in ct], np.uint32)
            trip.rewrite(rows, "mark", (pkts.mark[rows] & (~self.nfmask & 0xFFFFFFFF)) ^ ct, step)
            return CONTINUE
        # one by one: two packets of one connection in the same run write in the order in which they came
        keep = ~self.ctmask & 0xFFFFFFFF
        for row, flow in zip(rows.tolist(), pkts.ct[rows].tolist(), strict=True):
            new = self.value if self.mode == "set" else int(pkts.mark[row]) & self.nfmask
            if self.mode == "set":
                marks[flow] = self._shifted((int(marks[flow]) & keep) ^ new)
            else:
                marks[flow] = (int(marks[flow]) & keep) ^ self._shifted(new)
        return CONTINUE


@dataclass(frozen=True)
class Ttl(Target, name="TTL", tables=("mangle",)):
    """--ttl-set N, --ttl-inc N, --ttl-dec N: the time to live, kept within 0..255."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--ttl-set": 1, "--ttl-inc": 1, "--ttl-dec": 1}
    mode: str
    value: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--ttl-set", "--ttl-inc", "--ttl-dec")
        if not got:
            raise Bad("TTL: You must specify an action")
        option, text = next(iter(got.items()))
        return cls(option[6:], read_number(cls.name, option, text, 255, 0 if option == "--ttl-set" else 1))

    def words(self) -> str:
        return f"--ttl-{self.mode} {self.value}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        old = trip.pkts.ttl[rows].astype(np.int32)
        new = {"set": old * 0 + self.value, "inc": old + self.value, "dec": old - self.value}[self.mode]
        trip.rewrite(rows, "ttl", np.clip(new, 0, 255), step)
        return CONTINUE


TOS_NAMES = {
    "minimize-delay": 0x10,
    "maximize-throughput": 0x08,
    "maximize-reliability": 0x04,
    "minimize-cost": 0x02,
    "normal-service": 0x00,
}


@dataclass(frozen=True)
class Tos(Target, name="TOS", tables=("mangle",)):
    """--set-tos VALUE[/MASK]: tos = (tos without the bits of MASK) XOR VALUE."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--set-tos": 1, "--and-tos": 1, "--or-tos": 1, "--xor-tos": 1}
    value: int
    mask: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, *cls.OPTIONS)
        if not got:
            raise Bad("TOS: An action is required")
        option, text = next(iter(got.items()))
        if option == "--set-tos":
            if text.lower() in TOS_NAMES:
                return cls(TOS_NAMES[text.lower()], 0x3F)
            value, slash, mask = text.partition("/")
            v, m = integer(value), integer(mask) if slash else 0xFF
            if v is None or m is None or v > 255 or m > 255:
                raise Bad(f'Symbolic name "{text}" is unknown', text, "a number, or one of " + ", ".join(TOS_NAMES))
            return cls(v, m)
        n = read_number(cls.name, option, text, 255)
        return cls(*{"--and-tos": (0, ~n & 0xFF), "--or-tos": (n, n), "--xor-tos": (n, 0)}[option])

    def words(self) -> str:
        return f"--set-tos 0x{self.value:02x}/0x{self.mask:02x}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        trip.rewrite(rows, "tos", (trip.pkts.tos[rows] & (~self.mask & 0xFF)) ^ self.value, step)
        return CONTINUE


DSCP_CLASSES = {"EF": 46, "BE": 0} | {f"CS{n}": n * 8 for n in range(8)}
DSCP_CLASSES |= {f"AF{c}{d}": c * 8 + d * 2 for c in range(1, 5) for d in range(1, 4)}


@dataclass(frozen=True)
class Dscp(Target, name="DSCP", tables=("mangle",)):
    """--set-dscp N: the upper six bits of the TOS byte; the ECN bits stay."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--set-dscp": 1, "--set-dscp-class": 1}
    value: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--set-dscp", "--set-dscp-class")
        if not got:
            raise Bad("DSCP target: Parameter --set-dscp is required")
        option, text = next(iter(got.items()))
        if option == "--set-dscp":
            return cls(read_number(cls.name, option, text, 63))
        if text.upper() not in DSCP_CLASSES:
            raise Bad(f"Invalid DSCP value `{text}'", text, "one of " + ", ".join(DSCP_CLASSES))
        return cls(DSCP_CLASSES[text.upper()])

    def words(self) -> str:
        return f"--set-dscp 0x{self.value:02x}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        trip.rewrite(rows, "tos", (trip.pkts.tos[rows] & 3) | (self.value << 2), step)
        return CONTINUE


@dataclass(frozen=True)
class Ecn(Target, name="ECN", tables=("mangle",)):
    """--ecn-tcp-remove: clear the ECE and CWR flags of TCP segments; or set them, and the lower two bits of TOS.

    ece, cwr   the flag's new value, None: as it is       ect   the new ECN field of the IP header, None: as it is
    """

    OPTIONS: ClassVar[dict[str, int]] = {
        "--ecn-tcp-remove": 0,
        "--ecn-tcp-cwr": 1,
        "--ecn-tcp-ece": 1,
        "--ecn-ip-ect": 1,
    }
    ece: int | None = None
    cwr: int | None = None
    ect: int | None = None

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        if not got:
            raise Bad("ECN target: An operation is required")
        remove = "--ecn-tcp-remove" in got
        for other in ("--ecn-tcp-cwr", "--ecn-tcp-ece"):
            if remove and other in got:
                raise Bad(f'ECN: option "--ecn-tcp-remove" cannot be used together with "{other}".', other)
        value = {
            option: read_number(cls.name, option, got[option], high)
            for option, high in (("--ecn-tcp-ece", 1), ("--ecn-tcp-cwr", 1), ("--ecn-ip-ect", 3))
            if option in got
        }
        cleared = 0 if remove else None
        return cls(value.get("--ecn-tcp-ece", cleared), value.get("--ecn-tcp-cwr", cleared), value.get("--ecn-ip-ect"))

    def check(self, rule: RuleContext) -> str:
        if (self.ece is None and self.cwr is None) or (rule.proto == TCP and not rule.proto_inverted):
            return ""
        return "ECN with the flags of TCP needs -p tcp"

    def words(self) -> str:
        if (self.ece, self.cwr, self.ect) == (0, 0, None):
            return "--ecn-tcp-remove"
        named = (("--ecn-tcp-ece", self.ece), ("--ecn-tcp-cwr", self.cwr), ("--ecn-ip-ect", self.ect))
        return " ".join(f"{option} {value}" for option, value in named if value is not None)

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        pkts = trip.pkts
        if self.ect is not None:
            trip.rewrite(rows, "tos", (pkts.tos[rows] & 0xFC) | self.ect, step)
        keep, put = 0xFFFF, 0
        for value, bit in ((self.ece, 0x40), (self.cwr, 0x80)):
            if value is not None:
                keep, put = keep & ~bit, put | (bit if value else 0)
        if keep == 0xFFFF:
            return CONTINUE
        verdict = np.full(len(rows), CONTINUE, np.int8)
        for k, row in enumerate(rows.tolist()):
            packet = bytearray(pkts.bytes(row))
            at = int(pkts.ihl[row]) + 12
            if len(packet) < at + 8:
                verdict[k] = DROP
                continue
            (old,) = struct.unpack_from("!H", packet, at)
            new = old & keep | put
            if new == old:
                continue
            (check,) = struct.unpack_from("!H", packet, at + 4)
            struct.pack_into("!H", packet, at, new)
            struct.pack_into("!H", packet, at + 4, patched(check, (old,), (new,)))
            pkts.rebuild(row, bytes(packet))
        return verdict if (verdict == DROP).any() else CONTINUE


@dataclass(frozen=True)
class TcpMss(Target, name="TCPMSS"):
    """--set-mss N, --clamp-mss-to-pmtu: bound the largest segment that a SYN announces.

    An announced size is only lowered. A SYN that announces none and carries no data gets the option, at most 536,
    in front of its other options, and grows by four bytes.
    """

    OPTIONS: ClassVar[dict[str, int]] = {"--set-mss": 1, "--clamp-mss-to-pmtu": 0}
    value: int | None = None  # None: clamp to the path's MTU

    @property
    def hooks(self) -> frozenset[str]:
        """Where the way out is not known yet, nothing can be clamped to it."""
        return ALL_HOOKS if self.value is not None else frozenset(("FORWARD", "OUTPUT", "POSTROUTING"))

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        if not got:
            raise Bad("TCPMSS target: At least one parameter is required")
        value = read_number(cls.name, "--set-mss", got["--set-mss"], 65515) if "--set-mss" in got else None
        return cls(value if list(got)[-1] == "--set-mss" else None)  # the last word counts

    def check(self, rule: RuleContext) -> str:
        if (
            rule.proto == TCP
            and not rule.proto_inverted
            and any(isinstance(m, Tcp) and m.flag_set & SYN and not m.flag_invert for m in rule.matches)
        ):
            return ""
        return "TCPMSS needs -p tcp --syn"

    def words(self) -> str:
        return f"--set-mss {self.value}" if self.value is not None else "--clamp-mss-to-pmtu"

    def _limits(self, trip: Trip, rows: Rows) -> NDArray[np.int64]:
        if self.value is not None:
            return np.full(len(rows), self.value, np.int64)
        there: NDArray[np.int32] = trip.mtu[rows]
        zero = np.zeros(len(rows), np.uint32)
        back = trip.node.routing.output(trip.pkts.src[rows], zero, zero, zero.astype(np.uint8))
        home = np.where(back.mtu > 0, back.mtu, there)
        return np.minimum(there, home).astype(np.int64) - 40

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        pkts = trip.pkts
        verdict = np.full(len(rows), CONTINUE, np.int8)
        for k, (row, limit) in enumerate(zip(rows.tolist(), self._limits(trip, rows).tolist(), strict=True)):
            if pkts.frag[row] & OFFSET_MASK:
                continue
            before = pkts.bytes(row)
            if row in trip.whole:
                trip.whole[row].pull(len(before))
            packet, old, new = _with_mss(before, int(pkts.ihl[row]), limit)
            if packet is None:
                verdict[k] = DROP
            elif packet != before:
                pkts.rebuild(row, packet)
                one = np.array([row])
                trip.changes.append((step, "mss", one, np.array([old]), np.array([new])))
        return verdict if (verdict == DROP).any() else CONTINUE


def _with_mss(packet: bytes, ihl: int, limit: int) -> tuple[bytes | None, int, int]:
    """(the SYN with its MSS bounded, old MSS or 0, new MSS). None: the segment is malformed."""
    b = bytearray(packet)
    if len(b) < ihl + 20:
        return None, 0, 0
    doff = (b[ihl + 12] >> 4) * 4
    if doff < 20 or len(b) < ihl + doff:
        return None, 0, 0
    at = ihl + 20
    while at < ihl + doff - 3:
        kind, size = b[at], b[at + 1]
        if kind == 2 and size == 4:
            (old,) = struct.unpack_from("!H", b, at + 2)
            if old <= limit:
                return packet, old, old
            before = bytes(b[ihl : ihl + doff])
            struct.pack_into("!H", b, at + 2, limit)
            _repair(b, ihl, before, bytes(b[ihl : ihl + doff]))
            return bytes(b), old, limit
        at += 1 if kind <= 1 else max(size, 1)
    if len(b) > ihl + doff or doff > 56:
        return packet, 0, 0
    new = min(limit, 536)
    option = struct.pack("!BBH", 2, 4, new)
    before = bytes(b[ihl : ihl + doff])
    b[ihl + 20 : ihl + 20] = option
    b[ihl + 12] = (((doff + 4) // 4) << 4) | (b[ihl + 12] & 15)
    (length,) = struct.unpack_from("!H", b, 2)
    struct.pack_into("!H", b, 2, length + 4)
    (check,) = struct.unpack_from("!H", b, 10)
    struct.pack_into("!H", b, 10, patched(check, (length,), (length + 4,)))
    # the pseudo header holds the segment's length, which grew too
    _repair(b, ihl, before + b"\0\0\0\0", bytes(b[ihl : ihl + doff + 4]), (doff,), (doff + 4,))
    return bytes(b), 0, new


def _repair(
    b: bytearray, ihl: int, before: bytes, after: bytes, old: tuple[int, ...] = (), new: tuple[int, ...] = ()
) -> None:
    """Patch the TCP checksum in place for a header that was `before` and is `after`."""
    words = f"!{len(after) // 2}H"
    check = struct.unpack_from("!H", b, ihl + 16)[0]
    was, now = list(struct.unpack(words, before)), list(struct.unpack(words, after))
    was[8] = now[8] = 0
    struct.pack_into("!H", b, ihl + 16, patched(check, (*was, *old), (*now, *new)))


TCP_OPTIONS = {"wscale": 3, "mss": 2, "sack-permitted": 4, "sack": 5, "timestamp": 8, "md5": 19}


@dataclass(frozen=True)
class TcpOptStrip(Target, name="TCPOPTSTRIP", tables=("mangle",)):
    """--strip-options LIST: overwrite these TCP options with no-operations."""

    OPTIONS: ClassVar[dict[str, int]] = {"--strip-options": 1}
    kinds: tuple[int, ...] = ()

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        kinds: set[int] = set()
        for word in got["--strip-options"].split(",") if "--strip-options" in got else ():
            kind = TCP_OPTIONS.get(word, integer(word))
            if kind is None or kind > 255:
                raise Bad(f'Bad TCP option value "{word}"', word, "a number, or one of " + ", ".join(TCP_OPTIONS))
            if kind < 2:
                raise Bad("Option value may not be 0 or 1", word)
            if kind in kinds:
                raise Bad(f'Option "{word}" already specified', word)
            kinds.add(kind)
        return cls(tuple(sorted(kinds)))

    def check(self, rule: RuleContext) -> str:
        return "" if rule.proto == TCP and not rule.proto_inverted else "TCPOPTSTRIP needs -p tcp"

    def words(self) -> str:
        return f"--strip-options {','.join(map(str, self.kinds))}" if self.kinds else ""

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        pkts = trip.pkts
        verdict = np.full(len(rows), CONTINUE, np.int8)
        for k, row in enumerate(rows.tolist()):
            if pkts.frag[row] & OFFSET_MASK:
                continue
            packet, ihl = pkts.bytes(row), int(pkts.ihl[row])
            doff = (packet[ihl + 12] >> 4) * 4 if len(packet) >= ihl + 20 else 0
            if doff < 20 or len(packet) < ihl + doff:
                verdict[k] = DROP
                continue
            if row in trip.whole:
                trip.whole[row].pull(doff)
            header = bytearray(packet[ihl : ihl + doff])
            at = 20
            while at < doff - 1:
                size = 1 if header[at] <= 1 or not header[at + 1] else header[at + 1]
                if at + size > doff:
                    break
                if header[at] in self.kinds:
                    header[at : at + size] = b"\x01" * size
                at += size
            if header != packet[ihl : ihl + doff]:
                new = bytearray(packet[:ihl] + header + packet[ihl + doff :])
                _repair(new, ihl, packet[ihl : ihl + doff], bytes(header))
                pkts.rebuild(row, bytes(new))
        return verdict if (verdict == DROP).any() else CONTINUE


@dataclass(frozen=True)
class Hmark(Target, name="HMARK"):
    """A mark computed from addresses, ports and protocol, the same for both directions of a connection.

    --hmark-tuple LIST (src dst sport dport spi proto ct), or masks one by one; mark = offset + hash scaled to mod.

    src, dst         prefix lengths (0: the address has no say)
    ports, put       masks of source and destination port (or of the SPI, as one word), and bits set in them
    proto            mask of the protocol number
    ct               take the addresses and ports of the connection: its first source, and where answers come from
    """

    OPTIONS: ClassVar[dict[str, int]] = {
        "--hmark-tuple": 1,
        "--hmark-src-prefix": 1,
        "--hmark-dst-prefix": 1,
        "--hmark-sport-mask": 1,
        "--hmark-dport-mask": 1,
        "--hmark-spi-mask": 1,
        "--hmark-sport": 1,
        "--hmark-dport": 1,
        "--hmark-spi": 1,
        "--hmark-proto-mask": 1,
        "--hmark-rnd": 1,
        "--hmark-mod": 1,
        "--hmark-offset": 1,
    }
    PREFIXES: ClassVar[tuple[str, ...]] = ("--hmark-src-prefix", "--hmark-dst-prefix")
    PORTS: ClassVar[tuple[str, ...]] = ("--hmark-sport-mask", "--hmark-dport-mask", "--hmark-sport", "--hmark-dport")
    SPIS: ClassVar[tuple[str, ...]] = ("--hmark-spi-mask", "--hmark-spi")
    options: tuple[tuple[str, int], ...]
    ct: bool
    seed: int
    mod: int
    offset: int | None = None

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        values: dict[str, int] = {}
        ct = False
        for option, text in got.items():
            if option == "--hmark-tuple":
                for word in text.split(","):
                    named = f"--hmark-{word}-prefix" if word in ("src", "dst") else f"--hmark-{word}-mask"
                    if word == "ct":
                        ct = True
                    elif word not in ("src", "dst", "sport", "dport", "spi", "proto"):
                        raise Bad(f'Bad type "{word}"', text, "of src, dst, sport, dport, spi, proto, ct")
                    elif named in got:
                        raise Bad(f'HMARK: option "{named}" can only be used once.', named)
                    else:
                        values[named] = 32 if word in ("src", "dst") else 0xFFFFFFFF if word == "spi" else 0xFFFF
            elif option in cls.PREFIXES:
                values[option] = _prefix_length(text)
            elif option in cls.PORTS or option == "--hmark-proto-mask":
                values[option] = read_number(cls.name, option, text, 0xFFFF)
            else:
                values[option] = read_number(cls.name, option, text, 0xFFFFFFFF, int(option == "--hmark-mod"))
        for option in ("--hmark-mod", "--hmark-rnd"):
            if option not in values:
                raise Bad(f"{option} is mandatory")
        masks = {*cls.PREFIXES, *cls.PORTS, *cls.SPIS, "--hmark-proto-mask"} & set(values)
        if not masks and not ct:
            raise Bad("you have to specify --hmark-tuple at least")
        if "--hmark-spi-mask" in values and {"--hmark-sport-mask", "--hmark-dport-mask"} & set(values):
            raise Bad("you cannot use --hmark-spi-mask and --hmark-?port-mask,at the same time", "--hmark-spi-mask")
        order = [o for o in cls.OPTIONS if o in masks]
        return cls(
            tuple((option, values[option]) for option in order),
            ct,
            values["--hmark-rnd"],
            values["--hmark-mod"],
            values.get("--hmark-offset"),
        )

    def words(self) -> str:
        out = []
        for option, value in self.options:
            shown = str(value) if option in self.PREFIXES else f"0x{value:08x}" if option in self.SPIS else ""
            out.append(f"{option} {shown or f'0x{value:04x}'}")
            if option == "--hmark-proto-mask":
                out[-1] = f"{option} 0x{value:02x}"
        out += [f"--hmark-rnd 0x{self.seed:08x}", f"--hmark-mod {self.mod}"]
        if self.offset is not None:
            out.append(f"--hmark-offset {self.offset}")
        return " ".join([*out, *(["--hmark-tuple ct"] if self.ct else [])])

    @cached_property
    def _masks(self) -> dict[str, int]:
        o = dict(self.options)
        spi_mask, spi = o.get("--hmark-spi-mask", 0), o.get("--hmark-spi", 0)
        return {
            "src": _mask(o.get("--hmark-src-prefix", 0)),
            "dst": _mask(o.get("--hmark-dst-prefix", 0)),
            "ports": o.get("--hmark-sport-mask", 0) << 16 | o.get("--hmark-dport-mask", 0) | spi_mask,
            "put": o.get("--hmark-sport", 0) << 16 | o.get("--hmark-dport", 0) | spi,
            "proto": o.get("--hmark-proto-mask", 0),
        }

    @cached_property
    def _ports(self) -> bool:
        return any(option in (*self.PORTS, *self.SPIS) for option, _ in self.options)

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        pkts = trip.pkts
        if self.ct:
            rows = rows[pkts.ct[rows] >= 0]
            if not len(rows):
                return CONTINUE
            ct, flows = trip.node.conntrack, pkts.ct[rows]
            src, dst, proto = ct.osrc[flows], ct.rsrc[flows], ct.proto[flows]
            both = ct.osport[flows].astype(np.uint32) << 16 | ct.rsport[flows]
            ported = np.isin(proto, PORTED)
        else:
            rows, src, dst, proto, both, ported = self._headers(trip, rows)
        m = self._masks
        a, b = src & np.uint32(m["src"]), dst & np.uint32(m["dst"])
        low, high = np.minimum(a, b), np.maximum(a, b)
        words = both & np.uint32(m["ports"]) | np.uint32(m["put"])
        first, second = words >> 16, words & 0xFFFF
        ports = np.where(ported & self._ports, np.maximum(first, second) << 16 | np.minimum(first, second), 0)
        hashed = np.asarray(jhash2((low, high, ports.astype(np.uint32)), self.seed)).astype(np.uint32)
        hashed ^= proto.astype(np.uint32) & np.uint32(m["proto"])
        scaled = (hashed.astype(np.uint64) * np.uint64(self.mod)) >> np.uint64(32)
        trip.rewrite(rows, "mark", (scaled + np.uint64(self.offset or 0)) & np.uint64(0xFFFFFFFF), step)
        return CONTINUE

    def _headers(self, trip: Trip, rows: Rows) -> tuple[NDArray[Any], ...]:
        """(row, source, destination, protocol, both ports as one word, whether there are ports) of each row.

        An error whose quotation has no whole header is left out: it gets no mark.
        """
        pkts = trip.pkts
        src, dst, proto = pkts.src[rows].copy(), pkts.dst[rows].copy(), pkts.proto[rows].copy()
        both = np.zeros(len(rows), np.uint32)
        ported, told = np.zeros(len(rows), bool), np.ones(len(rows), bool)
        plain = ((pkts.frag[rows] & (OFFSET_MASK | MORE_FRAGMENTS)) == 0) & np.isin(proto, PORTED)
        both[plain] = pkts.sport[rows[plain]].astype(np.uint32) << 16 | pkts.dport[rows[plain]]
        ported |= plain
        odd = np.flatnonzero(np.isin(proto, (50, 51)) | ((proto == ICMP) & np.isin(pkts.icmp_type[rows], ICMP_ERRORS)))
        for k in odd.tolist():
            packet = pkts.bytes(int(rows[k]))
            if proto[k] == ICMP:  # an error counts as the packet that it is about
                packet = packet[int(pkts.ihl[rows[k]]) + 8 :]
                if len(packet) < 20:
                    told[k] = False
                    continue
                src[k], dst[k] = struct.unpack_from("!II", packet, 12)
                proto[k] = packet[9]
            at = (packet[0] & 15) * 4 + (4 if proto[k] == 51 else 0)
            (frag,) = struct.unpack_from("!H", packet, 6)
            if int(proto[k]) in (*PORTED, 50, 51) and not frag & 0x3FFF and len(packet) >= at + 4:
                (both[k],) = struct.unpack_from("!I", packet, at)
                ported[k] = True
        return tuple(column[told] for column in (rows, src, dst, proto, both, ported))


def _mask(plen: int) -> int:
    return (0xFFFFFFFF << (32 - plen)) & 0xFFFFFFFF


def _prefix_length(text: str) -> int:
    """`24` or `255.255.255.0`; too large a number means 32."""
    plen = integer(text)
    if plen is not None:
        return min(plen, 32)
    mask = _address(text)
    if (~mask + 1) & ~mask & 0xFFFFFFFF:
        raise NotModelled(f"target `HMARK` with the mask {text}", text, "a mask without holes")
    return mask.bit_count()


# ---- things that leave no trace on the packet ------------------------------------------------------------------------


@dataclass(frozen=True)
class Log(Target, name="LOG"):
    """Write a line to the kernel's log; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {
        "--log-prefix": 1,
        "--log-level": 1,
        "--log-tcp-sequence": 0,
        "--log-tcp-options": 0,
        "--log-ip-options": 0,
        "--log-uid": 0,
        "--log-macdecode": 0,
    }
    prefix: str = ""
    level: int = 4
    flags: tuple[str, ...] = ()

    LEVELS: ClassVar[dict[str, int]] = {
        "emerg": 0,
        "panic": 0,
        "alert": 1,
        "crit": 2,
        "err": 3,
        "error": 3,
        "warning": 4,
        "notice": 5,
        "info": 6,
        "debug": 7,
    }

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        if "--log-prefix" in got and not got["--log-prefix"]:
            raise Bad("Argument must have a minimum length of 1 characters", "--log-prefix")
        text = got.get("--log-level", "4")
        level = cls.LEVELS.get(text.lower(), integer(text))
        if level is None or level > 7:
            raise Bad(f'log level "{text}" unknown', text)
        return cls(got.get("--log-prefix", "")[:29], level, tuple(o for o in list(cls.OPTIONS)[2:] if o in got))

    def words(self) -> str:
        out = [f"--log-prefix {quoted(self.prefix)}"] if self.prefix else []
        if self.level != 4:
            out.append(f"--log-level {self.level}")
        return " ".join([*out, *self.flags])

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Nflog(Target, name="NFLOG"):
    """Hand a copy to a listener in user space; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {
        "--nflog-prefix": 1,
        "--nflog-group": 1,
        "--nflog-range": 1,
        "--nflog-size": 1,
        "--nflog-threshold": 1,
    }
    prefix: str = ""
    numbers: tuple[tuple[str, int], ...] = ()

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--nflog-range", "--nflog-size")
        numbers = []
        for option in list(cls.OPTIONS)[1:]:
            if option in got:
                high = 0xFFFFFFFF if option in ("--nflog-range", "--nflog-size") else 0xFFFF
                n = read_number(cls.name, option, got[option], high)
                if n or option == "--nflog-size":
                    numbers.append((option, n))
        return cls(got.get("--nflog-prefix", "")[:63], tuple(numbers))

    def words(self) -> str:
        out = [f"--nflog-prefix {quoted(self.prefix)}"] if self.prefix else []
        return " ".join(out + [f"{option} {n}" for option, n in self.numbers])

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Trace(Target, name="TRACE", tables=("raw",)):
    """Log every rule from here on. netemu writes down the path of every packet, with or without it."""

    alike = True

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Audit(Target, name="AUDIT"):
    """--type accept|drop|reject: a record for the audit system; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--type": 1}
    kind: str

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        kind = _options(cls.name, given, needs="--type")["--type"].lower()
        if kind not in ("accept", "drop", "reject"):
            raise Bad(f'Bad action type value "{kind}"', kind, "accept, drop or reject")
        return cls(kind)

    def words(self) -> str:
        return f"--type {self.kind}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Classify(Target, name="CLASSIFY", hooks=("FORWARD", "OUTPUT", "POSTROUTING")):
    """--set-class MAJOR:MINOR: the queueing class. It changes nothing that netemu shows."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--set-class": 1}
    major: int
    minor: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        text = _options(cls.name, given, needs="--set-class")["--set-class"]
        m = re.match(r"([0-9a-fA-F]+):([0-9a-fA-F]+)", text)  # what follows is not looked at
        if not m:
            raise Bad(f'Bad class value "{text}"', text, "two hexadecimal numbers, as 1:2")
        return cls(int(m[1], 16) & 0xFFFF, int(m[2], 16) & 0xFFFF)

    def words(self) -> str:
        return f"--set-class {self.major:04x}:{self.minor:04x}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Checksum(Target, name="CHECKSUM", tables=("mangle",)):
    """--checksum-fill: complete a checksum that was left to the device. Captures hold complete ones."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--checksum-fill": 0}

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        _options(cls.name, given, needs="--checksum-fill")
        return cls()

    def words(self) -> str:
        return "--checksum-fill"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class IdleTimer(Target, name="IDLETIMER"):
    """--timeout SECONDS --label NAME: tell user space when nothing has come for so long; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--timeout": 1, "--label": 1, "--alarm": 0}
    timeout: int
    label: str
    alarm: bool = False

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, needs="--timeout")
        timeout = read_number(cls.name, "--timeout", got["--timeout"], 0xFFFFFFFF)
        if "--label" not in got:
            raise Bad('IDLETIMER: option "--label" must be specified')
        return cls(timeout, got["--label"][:27], "--alarm" in got)

    def check(self, rule: RuleContext) -> str:
        if not 0 < self.timeout <= 2147483:
            return "IDLETIMER --timeout is 1 to 2147483 seconds"
        if not self.label or "/" in self.label or self.label in ("power", "subsystem", "uevent"):
            return f"IDLETIMER --label {self.label!r} cannot name a file"
        return ""

    def words(self) -> str:
        return f"--timeout {self.timeout} --label {self.label}{' --alarm' if self.alarm else ''}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class RateEst(Target, name="RATEEST"):
    """--rateest-name NAME --rateest-interval I --rateest-ewmalog T: feed a rate estimator; the packet goes on.

    interval   the measuring interval is 2 ** (interval + 2) / 16 s: -2..3
    ewma       the average's time constant is 2 ** ewma intervals
    """

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--rateest-name": 1, "--rateest-interval": 1, "--rateest-ewmalog": 1}
    of: str
    interval: int
    ewma: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        wanted, average = (_microseconds(got.get(option)) for option in ("--rateest-interval", "--rateest-ewmalog"))
        interval = next((k for k in range(6) if wanted <= 250_000 << k), None)
        if interval is None:
            raise Bad("RATEEST: interval value is too large", got["--rateest-interval"])
        # the average forgets by a factor of 1 - 2 ** -ewma in each interval
        ewma = next((k for k in range(1, 32) if wanted / -math.log1p(-(0.5**k)) > average), 32) - 1
        if not 0 < ewma < 31:
            raise Bad("RATEEST: ewmalog value is out of range", got.get("--rateest-ewmalog", ""))
        if "--rateest-name" not in got:
            raise Bad('RATEEST: option "--rateest-name" must be specified')
        return cls(got["--rateest-name"][:15], interval - 2, ewma)

    def words(self) -> str:
        unit = 250_000 << (self.interval + 2)
        return f"--rateest-name {self.of} --rateest-interval {_span(unit)} --rateest-ewmalog {_span(unit << self.ewma)}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


def _microseconds(text: str | None) -> int:
    """`250ms`, `1.5s`, `500` (microseconds)."""
    if text is None:
        return 0
    m = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(s|secs?|ms|msecs?|us|usecs?)?", text.lower())
    if not m:
        raise Bad(f'RATEEST: bad value "{text}"', text, "as 250ms or 1s")
    return int(float(m[1]) * {"s": 1e6, "m": 1e3, "u": 1.0}[(m[2] or "us")[0]]) & 0xFFFFFFFF


def _span(microseconds: int) -> str:
    """
    >>> _span(250_000), _span(2_000_000)
    ('250.0ms', '2.0s')
    """
    return f"{microseconds / 1e6:.1f}s" if microseconds >= 1_000_000 else f"{microseconds / 1e3:.1f}ms"


@dataclass(frozen=True)
class Led(Target, name="LED"):
    """--led-trigger-id NAME [--led-delay MS | inf] [--led-always-blink]: blink; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--led-trigger-id": 1, "--led-delay": 1, "--led-always-blink": 0}
    trigger: str
    delay: str = ""
    always: bool = False

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, needs="--led-trigger-id")
        delay = got.get("--led-delay", "")
        if delay and delay.lower() != "inf":
            number = read_number(cls.name, "--led-delay", delay, 0xFFFFFFFF)
            delay = str(number) if number else ""
        return cls(got["--led-trigger-id"], delay.lower(), "--led-always-blink" in got)

    def words(self) -> str:
        delay = f" --led-delay {self.delay}" if self.delay else ""
        return f'--led-trigger-id "{self.trigger}"{delay}{" --led-always-blink" if self.always else ""}'

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class SecMark(Target, name="SECMARK", tables=("mangle", "security")):
    """--selctx CONTEXT: a label for a security module, which netemu's node does not have; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--selctx": 1}
    context: str

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        return cls(_options(cls.name, given, needs="--selctx")["--selctx"])

    def words(self) -> str:
        return f"--selctx {self.context}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class ConnSecMark(Target, name="CONNSECMARK", tables=("mangle", "security")):
    """--save, --restore: the label of SECMARK to the connection and back; the packet goes on."""

    alike = True
    OPTIONS: ClassVar[dict[str, int]] = {"--save": 0, "--restore": 0}
    needs_conntrack = True
    mode: str

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--save", "--restore")
        if not got:
            raise Bad("CONNSECMARK target: parameter required")
        return cls(next(iter(got)))

    def words(self) -> str:
        return self.mode

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


# ---- connection tracking -------------------------------------------------------------------------------------------


def _untrack(trip: Trip, rows: Rows) -> None:
    """No tracking for the rest of the way. A packet that has a connection already (over loopback) keeps it, and so does
    one for which an earlier rule wished something."""
    bare = rows[trip.pkts.ct[rows] < 0]
    if trip.template is not None:
        bare = bare[trip.template[bare] == 0]
    trip.pkts.state[bare] = UNTRACKED


@dataclass(frozen=True)
class Notrack(Target, name="NOTRACK", tables=("raw",), hooks=("PREROUTING", "OUTPUT")):
    """The old name of CT --notrack. Alone it does not switch connection tracking on."""

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        _untrack(trip, rows)
        return CONTINUE


CT_EVENTS = ("new", "related", "destroy", "reply", "assured", "protoinfo", "helper", "mark", "natseqinfo", "secmark")


@dataclass(frozen=True)
class Ct(Target, name="CT", tables=("raw",), hooks=("PREROUTING", "OUTPUT")):
    """How the packet's connection is to be tracked: not at all (--notrack), in which zone, with which helper.

    A packet that has a connection already (over loopback) or is not to be tracked is left as it is. The events of
    --ctevents and --expevents are for listeners in user space and change no packet. Any CT but --notrack switches
    connection tracking on.
    """

    OPTIONS: ClassVar[dict[str, int]] = {
        "--notrack": 0,
        "--helper": 1,
        "--timeout": 1,
        "--ctevents": 1,
        "--expevents": 1,
        "--zone": 1,
        "--zone-orig": 1,
        "--zone-reply": 1,
    }
    notrack: bool = False
    template: Template = field(default_factory=Template)
    events: tuple[str, ...] = ()
    expevents: tuple[str, ...] = ()

    @property
    def needs_conntrack(self) -> bool:  # type: ignore[override]
        return not self.notrack

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        zone, of_mark = 0, False
        for option in [o for o in got if o.startswith("--zone")]:
            if got[option] == "mark":
                of_mark = True
                continue
            n = integer(got[option])
            if n is None or n > 0xFFFF:
                raise Bad(f"Cannot parse {got[option]} as a zone ID", got[option])
            zone = n
        sides = [side for side in ("orig", "reply") if f"--zone-{side}" in got]
        template = Template(
            0 if of_mark else zone,
            of_mark,
            sides[0] if len(sides) == 1 else "both",
            got.get("--helper", "")[:15],
            got.get("--timeout", "")[:31],
        )
        events = _events(got.get("--ctevents"), CT_EVENTS)
        one = cls("--notrack" in got, template, events, _events(got.get("--expevents"), ("new",)))
        if not one.notrack and not one.check(rule):
            one.modelled(rule)
        return one

    def unknown(self, rule: RuleContext) -> str:
        """Why Linux does not find the helper or the timeout policy."""
        helper, proto = self.template.helper, 0 if rule.proto_inverted else rule.proto
        if helper and proto not in protocols_of(helper):
            return f"no helper `{helper}' for protocol {proto or 'any'}"
        name = self.template.timeout
        if name and not proto:
            return "CT --timeout needs -p"
        if name and rule.policies is not None and rule.policies.find(name):
            return rule.policies.why_not(name, proto)
        return ""

    def modelled(self, rule: RuleContext) -> None:
        """Raises NotModelled for what the connection table does not know."""
        t = self.template
        if t.timeout and (rule.policies is None or not rule.policies.find(t.timeout)):
            raise NotModelled(
                f"timeout policy `{t.timeout}' of CT --timeout: no dump tells what it says",
                "--timeout",
                f'say it in node.toml: [[timeout]] with name = "{t.timeout}", proto = "..." and its timeouts',
            )
        if t.helper in UNMODELLED and rule.proto in UNMODELLED[t.helper]:
            raise NotModelled(f"target `CT` with --helper {t.helper}", t.helper)

    def check(self, rule: RuleContext) -> str:
        if rule.kernel == "6.1" and (self.template.zone or self.template.of_mark):
            return "this kernel was built without connection tracking zones"
        return "" if self.notrack else self.unknown(rule)

    def words(self) -> str:
        t = self.template
        out = ["--notrack"] if self.notrack else []
        if t.helper:
            out.append(f"--helper {t.helper}")
        if t.timeout:
            out.append(f"--timeout {t.timeout[:SEEN]}")
        if self.events:
            out.append(f"--ctevents {','.join(self.events)}")
        if self.expevents:
            out.append(f"--expevents {','.join(self.expevents)}")
        if t.zone or t.of_mark:
            option = "--zone" if t.direction == "both" else f"--zone-{t.direction}"
            out.append(f"{option} {'mark' if t.of_mark else t.zone}")
        return " ".join(out)

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        if self.notrack:
            _untrack(trip, rows)
        else:
            trip.node.conntrack.wish(trip, rows, self.template)
        return CONTINUE


def _events(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return ()
    words = text.split(",")
    for word in words:
        if word not in known:
            raise Bad(f'Unknown event type "{word}"', text)
    return tuple(name for name in known if name in words)


# ---- other ways to go ------------------------------------------------------------------------------------------------


class Copies(Trip):
    """Copies of packets, on their own way. What is copied is not copied again."""


def _is_copy(trip: Trip) -> bool:
    """The packets are copies on their way out, or caused by such. What came back over `lo` counts as fresh again."""
    above: Trip | None = trip
    depth = 0
    while above is not None and depth < 16:  # copies to the node itself go round and round: there they end
        if isinstance(above, Copies):
            if above.hook not in ("PREROUTING", "INPUT"):
                return True
            depth += 1
        above = above.parent
    return above is not None


@dataclass(frozen=True)
class Tee(Target, name="TEE"):
    """--gateway ADDRESS [--oif NAME]: send a copy to the gateway; the packet itself goes on.

    The copy is not tracked, keeps the mark, may not be fragmented (the bit is set), and passes OUTPUT and POSTROUTING
    as if the node had made it; a copy made on the way in has a time to live less by one. Without a route to the gateway
    there is no copy.
    """

    OPTIONS: ClassVar[dict[str, int]] = {"--gateway": 1, "--oif": 1}
    gateway: int
    oif: str = ""

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, needs="--gateway")
        return cls(read_host(got["--gateway"]), got.get("--oif", "")[:15])

    def check(self, rule: RuleContext) -> str:
        return "" if self.gateway else "TEE --gateway 0.0.0.0"

    def words(self) -> str:
        return f"--gateway {dotted(self.gateway)}{f' --oif {self.oif}' if self.oif else ''}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        if _is_copy(trip):
            return CONTINUE
        node, pkts = trip.node, trip.pkts
        link = node.routing.index(self.oif) if self.oif else -1
        oif = link if link >= 0 else None  # a device that is not there binds nothing
        n = len(rows)
        zero = np.zeros(n, np.uint32)
        way = node.routing.output(zero + np.uint32(self.gateway), zero, zero, pkts.tos[rows], oif)
        found = np.isin(way.kind, (LOCAL, UNICAST, BROADCAST, MULTICAST))
        if not found.all():
            rows = rows[found]
            if not len(rows):
                return CONTINUE
        copies = Packets.from_bytes([self._copy(pkts.bytes(row), trip.hook) for row in rows.tolist()])
        for name in ("time", "mark", "pkttype", "ipvs", "ether", "smac"):
            getattr(copies, name)[:] = getattr(pkts, name)[rows]
        copies.serial[:] = pkts.serial[rows] + (1 << 41)
        copies.state[:] = UNTRACKED
        copies.arrived[:] = way.link[found]  # POSTROUTING shows the way out as the way in, too
        child = Copies(node, copies, parent=trip, parent_rows=rows)
        if trip.whole:  # what was put together is cut again in the same places
            child.whole.update((k, trip.whole[row]) for k, row in enumerate(rows.tolist()) if row in trip.whole)
        for name in ("kind", "link"):
            getattr(child, f"route_{name}")[:] = getattr(way, name)[found]
        child.nexthop[:], child.mtu[:] = way.nexthop[found], way.mtu[found]
        node.road.launch(child, routed=True)
        return CONTINUE

    @staticmethod
    def _copy(packet: bytes, hook: str) -> bytes:
        b = bytearray(packet)
        b[6] |= 0x40
        if hook in ("PREROUTING", "INPUT"):
            b[8] = (b[8] - 1) & 255
        ihl = (b[0] & 15) * 4
        b[10:12] = b"\0\0"
        struct.pack_into("!H", b, 10, checksum(bytes(b[:ihl])))
        return bytes(b)


@dataclass(frozen=True)
class Tproxy(Target, name="TPROXY", tables=("mangle",), hooks=("PREROUTING",)):
    """--on-port PORT [--on-ip ADDRESS] [--tproxy-mark VALUE/MASK]: hand the packet to a local, transparent socket.

    A socket of the packet's own connection comes first, then one that listens on that address and port (port 0: the
    packet's own; address 0.0.0.0: the first one of the device). A transparent one gets the packet, marked, and the
    mangle table ends for it; without one the packet is dropped.
    """

    OPTIONS: ClassVar[dict[str, int]] = {"--on-port": 1, "--on-ip": 1, "--tproxy-mark": 1}
    needs_defrag = True
    port: int
    address: int = 0
    value: int = 0
    mask: int = 0

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, needs="--on-port")
        port = read_loose_port(got["--on-port"])
        value, mask = read_masked(cls.name, "--tproxy-mark", got["--tproxy-mark"]) if "--tproxy-mark" in got else (0, 0)
        return cls(port, read_host(got["--on-ip"]) if "--on-ip" in got else 0, value, mask)

    def check(self, rule: RuleContext) -> str:
        return "" if rule.proto in (TCP, UDP) and not rule.proto_inverted else "TPROXY needs -p tcp or -p udp"

    def words(self) -> str:
        return f"--on-port {self.port} --on-ip {dotted(self.address)} --tproxy-mark 0x{self.value:x}/0x{self.mask:x}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        found = self._found(trip, rows)
        lost = rows[~found]
        if len(lost):
            place = f"port {self.port or 'of the packet'}" + (f" of {dotted(self.address)}" if self.address else "")
            trip.end(lost, f"{step.text} TPROXY: no transparent socket on {place}")
            if len(lost) == len(rows):
                return DROP
        taken = rows[found]
        trip.rewrite(taken, "mark", (trip.pkts.mark[taken] & np.uint32(~self.mask & 0xFFFFFFFF)) ^ self.value, step)
        return np.where(found, ACCEPT, DROP).astype(np.int8)

    def _found(self, trip: Trip, rows: Rows) -> Mask:
        pkts, sockets = trip.pkts, sockets_of(trip.node)
        if not sockets:
            return np.zeros(len(rows), bool)
        out = np.zeros(len(rows), bool)
        for k, row in enumerate(rows.tolist()):
            if pkts.frag[row] & OFFSET_MASK:
                continue
            proto, src, sport = int(pkts.proto[row]), int(pkts.src[row]), int(pkts.sport[row])
            dst, dport = int(pkts.dst[row]), int(pkts.dport[row])
            own = connected(sockets, proto, src, sport, dst, dport)
            if own is None:
                link = int(pkts.link_in[row])
                address = self.address or (trip.node.routing.first_address(link) if link >= 0 else None) or dst
                own = listening(sockets, proto, address, self.port or dport)
            out[k] = own is not None and own.transparent
        return out


@dataclass(frozen=True)
class Nfqueue(Target, name="NFQUEUE"):
    """--queue-num N, --queue-balance A:B: ask a program in user space. No program listens on an emulated node.

    So the packet is dropped; with --queue-bypass it goes on as if accepted.
    """

    OPTIONS: ClassVar[dict[str, int]] = {
        "--queue-num": 1,
        "--queue-balance": 1,
        "--queue-bypass": 0,
        "--queue-cpu-fanout": 0,
    }
    first: int = 0
    last: int = 0
    bypass: bool = False
    fanout: bool = False

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--queue-num", "--queue-balance")
        first = last = read_number(cls.name, "--queue-num", got.get("--queue-num", "0"), 0xFFFF)
        if "--queue-balance" in got:
            a, colon, b = got["--queue-balance"].partition(":")
            if not colon:
                raise Bad(f'Bad range "{a}"', a, "as 0:3")
            for part in filter(None, (a, b)):
                n = integer(part)
                if n is None or n > 0xFFFF:
                    raise Bad(
                        f'NFQUEUE: bad value for option "--queue-balance" near "{part}", or out of range (0-65535).',
                        part,
                    )
            first, last = integer(a) or 0, 0xFFFF if not b else integer(b) or 0
            if first >= last:
                raise Bad(f"{first} should be less than {last}", got["--queue-balance"])
        if "--queue-cpu-fanout" in got and "--queue-balance" not in got:
            raise Bad(
                'NFQUEUE: option "--queue-cpu-fanout" also requires "--queue-balance".',
                "--queue-cpu-fanout",
            )
        if rule.table == "nat" and "--queue-bypass" in got:
            raise NotModelled(
                "target `NFQUEUE` with --queue-bypass in the nat table",
                "--queue-bypass",
                "the connection stays undecided",
            )
        return cls(first, last, "--queue-bypass" in got, "--queue-cpu-fanout" in got)

    def check(self, rule: RuleContext) -> str:
        return "NFQUEUE --queue-balance over all queues" if self.last - self.first == 0xFFFF else ""

    def words(self) -> str:
        out = f"--queue-num {self.first}" if self.first == self.last else f"--queue-balance {self.first}:{self.last}"
        return out + " --queue-bypass" * self.bypass + " --queue-cpu-fanout" * self.fanout

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        if self.bypass:
            return ACCEPT
        queues = f"queue {self.first}" if self.first == self.last else f"queues {self.first} to {self.last}"
        trip.end(rows, f"{step.text} NFQUEUE: nobody listens on {queues}")
        return DROP


@dataclass(frozen=True)
class Queue(Target, name="QUEUE"):
    """The old name of NFQUEUE --queue-num 0."""

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        trip.end(rows, f"{step.text} QUEUE: nobody listens on queue 0")
        return DROP


@dataclass(frozen=True)
class SynproxyTarget(Target, name="SYNPROXY", hooks=("INPUT", "FORWARD")):
    """Answer SYNs in the server's name, with a cookie, and shake hands with the server once the client has proved real.

    --sack-perm, --timestamp, --wscale N, --mss N, --ecn: what the server can do, so the client is promised no more.
    """

    OPTIONS: ClassVar[dict[str, int]] = {"--sack-perm": 0, "--timestamp": 0, "--wscale": 1, "--mss": 1, "--ecn": 0}
    needs_conntrack = True
    said: tuple[tuple[str, int], ...] = ()

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("synproxy",))

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        numbers = {
            o: read_number(cls.name, o, got[o], 0xFFFFFFFF) & high for o, high in cls.HIGHEST.items() if o in got
        }
        return cls(tuple((o, numbers.get(o, 0)) for o in cls.OPTIONS if o in got))

    HIGHEST: ClassVar[dict[str, int]] = {"--wscale": 0xFF, "--mss": 0xFFFF}  # of what is kept: the rest is cut off

    def check(self, rule: RuleContext) -> str:
        return "" if rule.proto == TCP and not rule.proto_inverted else "SYNPROXY needs -p tcp"

    def words(self) -> str:
        return " ".join(f"{o} {n}" if o in self.HIGHEST else o for o, n in self.said)

    @cached_property
    def wishes(self) -> Said:
        """The same as options of TCP."""
        numbers = dict(self.said)
        names = {"--sack-perm": SACK, "--timestamp": STAMPS, "--wscale": WSCALE, "--mss": MSS, "--ecn": EXPLICIT}
        return Said({names[o] for o in numbers}, numbers.get("--mss", 0), numbers.get("--wscale", 0))

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        stolen = [trip.node.synproxy.answer(trip, row, self.wishes, step) for row in rows.tolist()]
        return np.where(stolen, DROP, CONTINUE).astype(np.int8)


# ---- address translation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Translation(Target):
    """What the NAT targets share: addresses and ports to choose from. The choice itself is nat.choose.

    lo, hi             first and last address, or None
    port_lo, port_hi   first and last port (or ICMP id), or None
    base               of `DNAT --to A:P-Q/BASE`: the port that is mapped to P
    """

    needs_conntrack = True
    OPTION: ClassVar[str] = ""
    lo: int | None = None
    hi: int | None = None
    port_lo: int | None = None
    port_hi: int | None = None
    base: int | None = None
    random: bool = False
    fully: bool = False
    persistent: bool = False

    manip: ClassVar[str] = "dst"
    kind: ClassVar[str] = "range"

    @cached_property
    def choice(self) -> Range:
        return Range(
            kind=self.kind,
            lo=self.lo,
            hi=self.hi,
            port_lo=self.port_lo,
            port_hi=self.port_hi,
            base=self.base,
            random=self.random or self.fully,
            persistent=self.persistent,
        )

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        verdict: NDArray[np.int8] = trip.node.nat.choose(trip, rows, self.manip, self.choice, step)
        return verdict

    @classmethod
    def _flags(cls, got: dict[str, str]) -> dict[str, bool]:
        return {"random": "--random" in got, "fully": "--random-fully" in got, "persistent": "--persistent" in got}

    def _ports(self) -> str:
        if self.port_lo is None:
            return ""
        out = f"{self.port_lo}" if self.port_lo == self.port_hi else f"{self.port_lo}-{self.port_hi}"
        return out if self.base is None else f"{out}/{self.base}"

    def _flag_words(self) -> str:
        on = (("--random", self.random), ("--random-fully", self.fully), ("--persistent", self.persistent))
        return "".join(f" {word}" for word, flag in on if flag)


def _ported(rule: RuleContext) -> bool:
    return rule.proto in (6, 17, 132, 33, 1)


NEEDS_PORTS = "Need TCP, UDP, SCTP or DCCP with port specification"


def _port_range(text: str, rule: RuleContext) -> tuple[int, int]:
    if not _ported(rule):
        raise Bad(NEEDS_PORTS, text, "put `-p tcp` (or udp, sctp, dccp) before it")
    first, dash, last = text.partition("-")
    lo = _port(first, text)
    hi = _port(last, text) if dash else lo
    if hi < lo:
        raise Bad(f"Port range `{last}' funky", text)
    return lo, hi


class _ToAddresses(Translation):
    """--to-source / --to-destination [ADDR[-ADDR]][:PORT[-PORT][/BASE]]."""

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, needs=cls.OPTION)
        text = got[cls.OPTION]
        addresses, colon, ports = text.partition(":")
        if colon and ":" in ports:
            raise Bad(f'Bad IP address "{text}"', text)
        port_lo = port_hi = base = None
        if colon:
            ports, slash, start = ports.partition("/")
            port_lo, port_hi = _port_range(ports, rule)
            if slash:
                base = _port(start, text) if cls.manip == "dst" else 0
        lo = hi = None
        if addresses or not colon:
            first, dash, last = addresses.partition("-")
            lo = _address(first)
            hi = _address(last) if dash else lo
        return cls(lo, hi, port_lo, port_hi, base, **cls._flags(got))

    def words(self) -> str:
        out = ""
        if self.lo is not None and self.hi is not None:
            out = dotted(self.lo) if self.lo == self.hi else f"{dotted(self.lo)}-{dotted(self.hi)}"
        ports = self._ports()
        return f"{self.OPTION} {out}{':' + ports if ports else ''}{self._flag_words()}"


class Dnat(_ToAddresses, name="DNAT", tables=("nat",), hooks=("PREROUTING", "OUTPUT")):
    """--to-destination [ADDR[-ADDR]][:PORT[-PORT[/BASE]]]: send new connections elsewhere."""

    OPTION = "--to-destination"
    OPTIONS: ClassVar[dict[str, int]] = {"--to-destination": 1, "--random": 0, "--persistent": 0}
    manip = "dst"


class Snat(_ToAddresses, name="SNAT", tables=("nat",), hooks=("POSTROUTING", "INPUT")):
    """--to-source [ADDR[-ADDR]][:PORT[-PORT]]: let new connections seem to come from elsewhere."""

    OPTION = "--to-source"
    OPTIONS: ClassVar[dict[str, int]] = {"--to-source": 1, "--random": 0, "--random-fully": 0, "--persistent": 0}
    manip = "src"


class _ToPorts(Translation):
    """--to-ports PORT[-PORT]: the address comes from a device."""

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        lo = hi = None
        if "--to-ports" in got:
            lo, hi = _port_range(got["--to-ports"], rule)
        return cls(None, None, lo, hi, None, **cls._flags(got))

    def words(self) -> str:
        ports = self._ports()
        return f"{'--to-ports ' + ports if ports else ''}{self._flag_words()}".strip()


class Masquerade(_ToPorts, name="MASQUERADE", tables=("nat",), hooks=("POSTROUTING",)):
    """Let new connections seem to come from the device on which they leave."""

    OPTIONS: ClassVar[dict[str, int]] = {"--to-ports": 1, "--random": 0, "--random-fully": 0}
    manip = "src"
    kind = "masquerade"


class Redirect(_ToPorts, name="REDIRECT", tables=("nat",), hooks=("PREROUTING", "OUTPUT")):
    """Send new connections to the node itself."""

    OPTIONS: ClassVar[dict[str, int]] = {"--to-ports": 1, "--random": 0}
    manip = "dst"
    kind = "redirect"


@dataclass(frozen=True)
class Netmap(Target, name="NETMAP", tables=("nat",), hooks=("PREROUTING", "OUTPUT", "POSTROUTING", "INPUT")):
    """--to NET/LEN: the network part is replaced, the host part stays. Destination before routing, source after."""

    OPTIONS: ClassVar[dict[str, int]] = {"--to": 1}
    needs_conntrack = True
    net: int = 0
    mask: int = 0xFFFFFFFF

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        text = _options(cls.name, given, needs="--to")["--to"]
        address, slash, mask = text.partition("/")
        m = 0xFFFFFFFF
        if slash:
            plen = integer(mask)
            if plen is not None and plen <= 32:
                m = (0xFFFFFFFF << (32 - plen)) & 0xFFFFFFFF
            else:
                m = read_host(mask)
                if (~m + 1) & ~m & 0xFFFFFFFF:
                    raise NotModelled(f"target `NETMAP` with the mask {mask}", text, "a mask without holes")
        return cls(read_host(address) & m, m)

    def words(self) -> str:
        return f"--to {dotted(self.net)}/{self.mask.bit_count()}"

    @cached_property
    def choice(self) -> Range:
        return Range(kind="netmap", net=self.net, mask=self.mask)

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        manip = "dst" if trip.hook in ("PREROUTING", "OUTPUT") else "src"
        verdict: NDArray[np.int8] = trip.node.nat.choose(trip, rows, manip, self.choice, step)
        return verdict


# ---- sets ------------------------------------------------------------------------------------------------------------


def directions(text: str) -> tuple[str, ...]:
    """`src,dst` as a tuple; Bad as the tool says it."""
    words = tuple(text.split(","))
    if len(words) > 6:
        raise Bad("Can't be more src/dst options than 6.", text)
    if any(word not in ("src", "dst") for word in words):
        raise Bad("You must spefify (the comma separated list of) 'src' or 'dst'.", text)
    return words


@dataclass(frozen=True)
class SetTarget(Target, name="SET"):
    """--add-set NAME DIRS, --del-set NAME DIRS: put the packet's address (port, ...) into an ipset, or take it out.

    exist     an element that is there already gets its timeout anew
    timeout   seconds, instead of the set's own; None: the set's own
    map       take the mark (priority, queue) that the packet's element carries; `carry` says which
    """

    OPTIONS: ClassVar[dict[str, int]] = {
        "--add-set": 2,
        "--del-set": 2,
        "--map-set": 2,
        "--exist": 0,
        "--timeout": 1,
        "--map-mark": 0,
        "--map-prio": 0,
        "--map-queue": 0,
    }
    add: tuple[str, tuple[str, ...]] | None = None
    delete: tuple[str, tuple[str, ...]] | None = None
    exist: bool = False
    timeout: int | None = None
    map: tuple[str, tuple[str, ...]] | None = None
    carry: tuple[str, ...] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(which[0] for which in (self.add, self.delete, self.map) if which)

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(f"set:{which[0]}" for which in (self.add, self.delete) if which)

    @property
    def hooks(self) -> frozenset[str]:
        """Priority and queue belong to a packet on its way out."""
        if {"--map-prio", "--map-queue"} & set(self.carry):
            return frozenset(("FORWARD", "OUTPUT", "POSTROUTING"))
        return ALL_HOOKS

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = {g.option: g.values[0] if g.values else "" for g in given}  # an inversion is not looked at
        which: dict[str, tuple[str, tuple[str, ...]]] = {}
        for g in given:
            if len(g.values) == 2:
                if g.option in which:
                    raise Bad(f"{g.option} can be specified only once", g.option)
                name, dirs = g.values
                if name not in rule.sets:
                    raise Bad(f"Set {name} doesn't exist.", name, f"create it in ipset.save: create {name} ...")
                which[g.option] = (name, directions(dirs))
        if not which:
            raise Bad("You must specify either `--add-set' or `--del-set' or `--map-set'")
        if "--map-set" in which and not {"--map-mark", "--map-prio", "--map-queue"} & set(got):
            raise Bad("You must specify flags `--map-mark' or '--map-prio` or `--map-queue'", "--map-set")
        if "--exist" in got and "--add-set" not in which:
            raise Bad("Flag `--exist' can be used with `--add-set' only", "--exist")
        if "--timeout" in got and "--add-set" not in which:
            raise Bad("Option `--timeout' can be used with `--add-set' only", "--timeout")
        for flag in ("--map-mark", "--map-prio", "--map-queue"):
            if flag in got and "--map-set" not in which:
                raise Bad(f"Flag `{flag}' can be used with `--map-set' only", flag)
        timeout = integer(got["--timeout"]) if "--timeout" in got else None
        if "--timeout" in got and (timeout is None or timeout > 0xFFFFFFFE):
            raise Bad("Invalid value for option --timeout or out of range 0-4294967294", got["--timeout"])
        carry = tuple(option for option in ("--map-mark", "--map-prio", "--map-queue") if option in got)
        return cls(
            which.get("--add-set"), which.get("--del-set"), "--exist" in got, timeout, which.get("--map-set"), carry
        )

    def check(self, rule: RuleContext) -> str:
        return "" if not self.map or rule.table == "mangle" else "SET --map-set belongs in the mangle table"

    def words(self) -> str:
        out = []
        if self.add:
            out.append(f"--add-set {self.add[0]} {','.join(self.add[1])}")
        if self.exist:
            out.append("--exist")
        if self.timeout is not None:
            out.append(f"--timeout {self.timeout}")
        if self.delete:
            out.append(f"--del-set {self.delete[0]} {','.join(self.delete[1])}")
        if self.map:
            out.append(f"--map-set {self.map[0]} {','.join(self.map[1])}")
        return " ".join((*out, *self.carry))

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        sets = trip.node.sets.by_name
        if self.add:
            sets[self.add[0]].add_from_packet(trip, rows, self.add[1], self.timeout, self.exist)
        if self.delete:
            sets[self.delete[0]].del_from_packet(trip, rows, self.delete[1])
        if self.map and "--map-mark" in self.carry:
            for row in rows.tolist():
                found = sets[self.map[0]].skb_of(trip, row, self.map[1])
                if found is not None:
                    one = np.array([row])
                    mark, mask = found[:2]
                    trip.rewrite(one, "mark", (trip.pkts.mark[one] & (~mask & 0xFFFFFFFF)) ^ mark, step)
        return CONTINUE
