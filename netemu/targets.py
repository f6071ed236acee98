"""Targets: every `-j`. A target decides (ACCEPT, DROP) or rewrites, and says where it is allowed.

One class each, one registry, TARGETS. The target names the wish, the room that owns the thing does the deed: NAT
chooses addresses, the trip makes ICMP errors, ipset changes sets.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from netemu.grammar import Bad, Extension, Given, NotModelled, RuleContext
from netemu.nat import Range
from netemu.packets import OFFSET_MASK, REJECTED, TCP, UNTRACKED, Rows, patched
from netemu.paths import Step

if TYPE_CHECKING:
    from netemu.trip import Trip

#: what a target may answer: go on to the next rule, or end the table, or go back to the caller
CONTINUE, DROP, ACCEPT, STOLEN, RETURN = -1, 0, 1, 2, 3
Verdict = int | NDArray[np.int8]

TARGETS: dict[str, type[Target]] = {}

#: targets that iptables has and netemu does not model
OTHER_TARGETS = frozenset(
    (
        *("CLUSTERIP", "CONNSECMARK", "HMARK", "IDLETIMER", "LED", "NFQUEUE", "QUEUE", "RATEEST", "SECMARK"),
        *("SYNPROXY", "TCPOPTSTRIP", "TEE", "TPROXY", "ULOG"),
    )
)

ALL_HOOKS = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))


class Target(Extension):
    """One `-j NAME`.

    tables   tables that it may stand in; empty: any
    hooks    built-in chains from which it may be reached
    sets     names of the ipsets that it uses
    """

    tables: ClassVar[frozenset[str]] = frozenset()
    hooks: ClassVar[frozenset[str]] = ALL_HOOKS

    def __init_subclass__(
        cls, *, name: str = "", tables: tuple[str, ...] = (), hooks: tuple[str, ...] = (), **more: object
    ) -> None:
        super().__init_subclass__(**more)
        if tables:
            cls.tables = frozenset(tables)
        if hooks:
            cls.hooks = frozenset(hooks)
        if name:
            cls.name = name
            TARGETS[name] = cls

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


def integer(text: str) -> int | None:
    """A number as the tools read it: decimal, 0x hexadecimal or 0 octal, no sign; None for anything else.

    >>> integer("0x4000"), integer("077"), integer("12"), integer("-1"), integer("08")
    (16384, 63, 12, None, None)
    """
    if text.isdecimal() and text.isascii() and (text[0] != "0" or text == "0"):
        return int(text)
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    return int(text, 8) if re.fullmatch(r"0[0-7]+", text) else None


def _number(name: str, option: str, text: str, high: int, low: int = 0) -> int:
    n = integer(text)
    if n is None or not low <= n <= high:
        raise Bad(f'{name}: bad value for option "{option}", or out of range ({low}-{high}).', text)
    return n


def _masked(name: str, option: str, text: str) -> tuple[int, int]:
    """`value[/mask]` of 32 bits."""
    value, slash, mask = text.partition("/")
    v, m = integer(value), integer(mask) if slash else 0xFFFFFFFF
    if v is None or m is None or v > 0xFFFFFFFF or m > 0xFFFFFFFF:
        raise Bad(f'{name}: bad integer value for option "{option}", or out of range.', text)
    return v, m


def quoted(text: str) -> str:
    """A string as iptables-save prints it: bare when it is only letters, digits, `_` and `-`.

    >>> print(quoted("a-b"), quoted("it's"))
    a-b "it\\'s"
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text
    return '"' + re.sub(r"([\"\\'])", r"\\\1", text) + '"'


def _address(text: str) -> int:
    """A dotted quad."""
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", text) or any(int(o) > 255 for o in text.split(".")):
        raise Bad(f'Bad IP address "{text}"', text)
    return int.from_bytes(bytes(map(int, text.split("."))), "big")


def dotted(address: int) -> str:
    """An address in print."""
    return ".".join(map(str, address.to_bytes(4, "big")))


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

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return ACCEPT


@dataclass(frozen=True)
class Drop(Target, name="DROP"):
    """The packet dies in silence. Never in the nat table, which sees only the first packet of a connection."""

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
            if low and (kind.startswith(low) or short.startswith(low)):
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
            trip.cause_icmp(rows, 3, code)
        trip.end(rows, f"{step.text} REJECT", REJECTED)
        return DROP


# ---- marks and header fields ---------------------------------------------------------------------------------------


XMARKS = ("--set-xmark", "--set-mark", "--and-mark", "--or-mark", "--xor-mark")


@dataclass(frozen=True)
class SetMark(Target, name="MARK"):
    """--set-xmark VALUE/MASK: mark = (mark without the bits of MASK) XOR VALUE. The other options are spellings."""

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
        value, mask = _masked(name, option, text)
        return value, mask | value if option == "--set-mark" else mask
    n = _number(name, option, text, 0xFFFFFFFF)
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
        masks = {o: _number(cls.name, o, got[o], 0xFFFFFFFF) for o in ("--mask", "--nfmask", "--ctmask") if o in got}
        shift = 0
        for option, sign in (("--left-shift-mark", 1), ("--right-shift-mark", -1)):
            if option in got:
                shift = sign * _number(cls.name, option, got[option], 32)
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

    OPTIONS: ClassVar[dict[str, int]] = {"--ttl-set": 1, "--ttl-inc": 1, "--ttl-dec": 1}
    mode: str
    value: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--ttl-set", "--ttl-inc", "--ttl-dec")
        if not got:
            raise Bad("TTL: You must specify an action")
        option, text = next(iter(got.items()))
        return cls(option[6:], _number(cls.name, option, text, 255, 0 if option == "--ttl-set" else 1))

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
        n = _number(cls.name, option, text, 255)
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

    OPTIONS: ClassVar[dict[str, int]] = {"--set-dscp": 1, "--set-dscp-class": 1}
    value: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--set-dscp", "--set-dscp-class")
        if not got:
            raise Bad("DSCP target: Parameter --set-dscp is required")
        option, text = next(iter(got.items()))
        if option == "--set-dscp":
            return cls(_number(cls.name, option, text, 63))
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
    """--ecn-tcp-remove: clear the ECE and CWR flags of TCP segments."""

    OPTIONS: ClassVar[dict[str, int]] = {
        "--ecn-tcp-remove": 0,
        "--ecn-tcp-cwr": 1,
        "--ecn-tcp-ece": 1,
        "--ecn-ip-ect": 1,
    }

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        for option in got:
            if option != "--ecn-tcp-remove":
                raise NotModelled(f"ECN {option}", option, "netemu knows ECN --ecn-tcp-remove")
        if not got:
            raise Bad("ECN target: An operation is required")
        return cls()

    def check(self, rule: RuleContext) -> str:
        return "" if rule.proto == TCP and not rule.proto_inverted else "ECN --ecn-tcp-remove needs -p tcp"

    def words(self) -> str:
        return "--ecn-tcp-remove"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        pkts = trip.pkts
        for row in rows[(pkts.flags[rows] & 0xC0) != 0].tolist():
            packet = bytearray(pkts.bytes(row))
            at = int(pkts.ihl[row]) + 12
            if len(packet) < at + 8:
                continue
            (old,) = struct.unpack_from("!H", packet, at)
            new = old & ~0xC0
            (check,) = struct.unpack_from("!H", packet, at + 4)
            struct.pack_into("!H", packet, at, new)
            struct.pack_into("!H", packet, at + 4, patched(check, (old,), (new,)))
            pkts.rebuild(row, bytes(packet))
        return CONTINUE


@dataclass(frozen=True)
class TcpMss(Target, name="TCPMSS", hooks=("FORWARD", "OUTPUT", "POSTROUTING")):
    """--set-mss N, --clamp-mss-to-pmtu: bound the largest segment that a SYN announces.

    An announced size is only lowered. A SYN that announces none and carries no data gets the option, at most 536,
    in front of its other options, and grows by four bytes.
    """

    OPTIONS: ClassVar[dict[str, int]] = {"--set-mss": 1, "--clamp-mss-to-pmtu": 0}
    value: int = 0  # 0: clamp to the path's MTU

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given, "--set-mss", "--clamp-mss-to-pmtu")
        if not got:
            raise Bad("TCPMSS target: At least one parameter is required")
        if "--set-mss" in got:
            return cls(_number(cls.name, "--set-mss", got["--set-mss"], 65495))
        return cls()

    def check(self, rule: RuleContext) -> str:
        return "" if rule.proto == TCP and not rule.proto_inverted else "TCPMSS needs -p tcp --syn"

    def words(self) -> str:
        return f"--set-mss {self.value}" if self.value else "--clamp-mss-to-pmtu"

    def _limits(self, trip: Trip, rows: Rows) -> NDArray[np.int64]:
        if self.value:
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
            packet, old, new = _with_mss(pkts.bytes(row), int(pkts.ihl[row]), limit)
            if packet is None:
                verdict[k] = DROP
            elif new != old:
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


# ---- things that leave no trace on the packet ------------------------------------------------------------------------


@dataclass(frozen=True)
class Log(Target, name="LOG"):
    """Write a line to the kernel's log; the packet goes on."""

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
                n = _number(cls.name, option, got[option], high)
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

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Audit(Target, name="AUDIT"):
    """--type accept|drop|reject: a record for the audit system; the packet goes on."""

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
class Classify(
    Target, name="CLASSIFY", tables=("mangle", "filter"), hooks=("INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
):
    """--set-class MAJOR:MINOR: the queueing class. It changes nothing that netemu shows."""

    OPTIONS: ClassVar[dict[str, int]] = {"--set-class": 1}
    major: int
    minor: int

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        text = _options(cls.name, given, needs="--set-class")["--set-class"]
        m = re.fullmatch(r"([0-9a-fA-F]{1,4}):([0-9a-fA-F]{1,4})", text)
        if not m:
            raise Bad(f'Bad class value "{text}"', text, "two hexadecimal numbers, as 1:2")
        return cls(int(m[1], 16), int(m[2], 16))

    def check(self, rule: RuleContext) -> str:
        return "" if rule.table == "mangle" else "CLASSIFY belongs in the mangle table"

    def words(self) -> str:
        return f"--set-class {self.major:04x}:{self.minor:04x}"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


@dataclass(frozen=True)
class Checksum(Target, name="CHECKSUM", tables=("mangle",)):
    """--checksum-fill: complete a checksum that was left to the device. Captures hold complete ones."""

    OPTIONS: ClassVar[dict[str, int]] = {"--checksum-fill": 0}

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        _options(cls.name, given, needs="--checksum-fill")
        return cls()

    def words(self) -> str:
        return "--checksum-fill"

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        return CONTINUE


# ---- connection tracking -------------------------------------------------------------------------------------------


def _untrack(trip: Trip, rows: Rows) -> None:
    """No tracking for the rest of the way. A packet that has a connection already (over loopback) keeps it."""
    bare = rows[trip.pkts.ct[rows] < 0]
    trip.pkts.state[bare] = UNTRACKED


@dataclass(frozen=True)
class Notrack(Target, name="NOTRACK", tables=("raw",), hooks=("PREROUTING", "OUTPUT")):
    """The old name of CT --notrack."""

    needs_conntrack = True

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        _untrack(trip, rows)
        return CONTINUE


@dataclass(frozen=True)
class Ct(Target, name="CT", tables=("raw",), hooks=("PREROUTING", "OUTPUT")):
    """--notrack: no connection tracking for this packet. Bare CT asks for nothing special."""

    OPTIONS: ClassVar[dict[str, int]] = {
        "--notrack": 0,
        "--helper": 1,
        "--ctevents": 1,
        "--expevents": 1,
        "--zone": 1,
        "--zone-orig": 1,
        "--zone-reply": 1,
        "--timeout": 1,
    }
    needs_conntrack = True
    notrack: bool = False

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        for option in got:
            if option not in ("--notrack", "--ctevents", "--expevents"):
                raise NotModelled(f"target `CT` with {option}", option, "netemu knows CT --notrack")
            if option != "--notrack":
                raise NotModelled(f"target `CT` with {option}", option, "leave it out: it changes no packet")
        return cls("--notrack" in got)

    def words(self) -> str:
        return "--notrack" if self.notrack else ""

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        if self.notrack:
            _untrack(trip, rows)
        return CONTINUE


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
                m = _address(mask)
                if (~m + 1) & ~m & 0xFFFFFFFF:
                    raise NotModelled(f"target `NETMAP` with the mask {mask}", text, "a mask without holes")
        return cls(_address(address) & m, m)

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

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        got = _options(cls.name, given)
        which: dict[str, tuple[str, tuple[str, ...]]] = {}
        for g in given:
            if len(g.values) == 2:
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
        timeout = _number(cls.name, "--timeout", got["--timeout"], 2147483) if "--timeout" in got else None
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
