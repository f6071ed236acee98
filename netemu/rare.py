"""Matches that few rule sets use: tunnels and policies, programs, labels, clusters, groups of links, sockets.

The rest are in matches.py; all stand in its registry. What the node cannot know is asked of what its model declares
(sockets), or of nothing (no IPsec, no labels of foreign making), and says so in its class.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from netemu.grammar import Bad, Failed, Given, NotModelled, RuleContext
from netemu.hashing import jhash2
from netemu.matches import Match, Option, drop_at_once, integer, quoted
from netemu.packets import (
    ESTABLISHED,
    HOST,
    ICMP,
    ICMP_ERRORS,
    MULTICAST,
    OFFSET_MASK,
    RELATED,
    TCP,
    UDP,
    Mask,
    Rows,
)
from netemu.sockets import Socket, connected, listening, sockets_of

if TYPE_CHECKING:
    from netemu.conntrack import Conntrack
    from netemu.trip import Trip

M32 = 0xFFFFFFFF
ESP, AH, IPCOMP = 50, 51, 108
EMPTY = '""'


def _number(match: str, option: str, text: str, high: int, low: int = 0) -> int:
    n = integer(text)
    if n is None or not low <= n <= high:
        raise Bad(f'{match}: bad value for option "{option}", or out of range ({low}-{high}).', text)
    return n


def _not(inverted: bool) -> str:
    return "! " if inverted else ""


# ---- IPsec headers ---------------------------------------------------------------------------------------------------


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
        return f"{_not(self.invert)}{self.OPTION} {shown}"

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if p.frag.item(row) & OFFSET_MASK:
            return False
        at, size, need = self.PLACE
        header = p.payload(row)
        if len(header) < need:
            drop_at_once(trip, np.array([row]))
            return False
        return (self.first <= int.from_bytes(header[at : at + size], "big") <= self.last) != self.invert


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


# ---- IPsec policies --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy(Match, name="policy"):
    """--dir in|out --pol none|ipsec [--strict], and for each transformation --reqid, --spi, --proto, --mode, ...

    The emulated node has no IPsec, so no packet comes from, or goes to, a policy: `none` is always true, `ipsec` never.
    elements   what each transformation of the policy must be, as printed
    """

    SPEC: ClassVar = {
        "--dir": Option(),
        "--pol": Option(),
        "--strict": Option(0),
        "--reqid": Option(invert=True, often=True),
        "--spi": Option(invert=True, often=True),
        "--tunnel-src": Option(invert=True, often=True),
        "--tunnel-dst": Option(invert=True, often=True),
        "--proto": Option(invert=True, often=True),
        "--mode": Option(invert=True, often=True),
        "--next": Option(0, often=True),
    }
    PROTOCOLS: ClassVar[dict[str, str]] = {
        "esp": "esp",
        "ah": "ah",
        "ipcomp": "ipcomp",
        "50": "esp",
        "51": "ah",
        "108": "ipcomp",
    }
    ELEMENT: ClassVar[tuple[str, ...]] = ("--reqid", "--spi", "--proto", "--mode", "--tunnel-dst", "--tunnel-src")
    out: bool
    none: bool
    strict: bool = False
    elements: tuple[str, ...] = ()

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        cls._sorted_out(given)
        o = {g.option: g for g in given}
        if "--dir" not in o:
            raise Bad("policy match: neither --dir in nor --dir out specified")
        where, pol = o["--dir"].value, o["--pol"].value if "--pol" in o else "ipsec"
        if where not in ("in", "out"):
            raise Bad(f'policy_match: invalid dir "{where}"', where)
        if pol not in ("none", "ipsec"):
            raise Bad(f'policy match: invalid policy "{pol}"', pol)
        elements: list[dict[str, str]] = [{}]
        for g in given:
            if g.option == "--next":
                elements.append({})
            elif g.option in cls.ELEMENT:
                if g.option in elements[-1]:
                    raise Bad(f"policy match: double {g.option} option", g.option)
                elements[-1][g.option] = f"{_not(g.invert)}{g.option} {cls._value(g)}"
        if len(elements) > 1 and "--strict" not in o:
            raise Bad('policy: option "--next" also requires "--strict".', "--next")
        if len(elements) > 4:
            raise Bad("policy match: maximum policy depth reached", "--next")
        for k, e in enumerate(elements):
            if "--strict" in o and not e:
                raise Bad(
                    f"policy match: empty policy element {k}. --strict is in effect, but at least one of reqid, spi, "
                    "tunnel-src, tunnel-dst, proto or mode is required."
                )
            if ("--tunnel-src" in e or "--tunnel-dst" in e) and e.get("--mode") != "--mode tunnel":
                raise Bad("policy match: --tunnel-src/--tunnel-dst is only valid in tunnel mode")
        shown = [" ".join(e[option] for option in cls.ELEMENT if option in e) for e in elements]
        none = pol == "none"
        one = cls(where == "out", none, "--strict" in o and not none, () if none else tuple(filter(None, shown)))
        why = one.check(rule)
        if why:
            raise Failed(f"Invalid argument: {why}")
        return one

    @classmethod
    def _value(cls, g: Given) -> str:
        text = g.value
        if g.option == "--reqid":
            return str(_number("policy", g.option, text, M32))
        if g.option == "--spi":
            return f"{_number('policy', g.option, text, M32):#x}"
        if g.option == "--mode":
            if text not in ("tunnel", "transport"):
                raise Bad(f'policy match: invalid mode "{text}"', text)
            return text
        if g.option == "--proto":
            if text not in cls.PROTOCOLS:
                raise Bad(f'unknown protocol "{text}" specified', text)
            return cls.PROTOCOLS[text]
        address, _, plen = text.partition("/")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", address) or (plen and not re.fullmatch(r"\d\d?", plen)):
            raise Bad(f'Bad IP address "{text}"', text)
        return address if plen in ("", "32") else f"{address}/{plen}"

    @property
    def hooks(self) -> frozenset[str]:
        """A policy inwards is known once the packet is in, one outwards as long as it is not out."""
        return frozenset(("FORWARD", *(("OUTPUT", "POSTROUTING") if self.out else ("PREROUTING", "INPUT"))))

    def words(self) -> str:
        out = [f"--dir {'out' if self.out else 'in'} --pol {'none' if self.none else 'ipsec'}"]
        return " ".join([*out, *(["--strict"] if self.strict else []), " --next ".join(self.elements)]).rstrip()

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), self.none)


# ---- programs --------------------------------------------------------------------------------------------------------

_ALU: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b & M32,
    0x10: lambda a, b: a - b & M32,
    0x20: lambda a, b: a * b & M32,
    0x30: lambda a, b: a // b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 31) & M32,
    0x70: lambda a, b: a >> (b & 31),
    0x90: lambda a, b: a % b,
    0xA0: lambda a, b: a ^ b,
}
_JUMPS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: a & b != 0,
}
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
_LOADS = {*(0x20, 0x28, 0x30), *(0x40, 0x48, 0x50), 0x00, 0x01, 0x60, 0x61, 0x80, 0x81, 0xB1, 0x02, 0x03}
_ANCILLARY, _NETWORK = 0xFFFFF000, 0xFFF00000  # offsets from here on: facts about the packet; its network header
_PROTOCOL, _PKTTYPE, _MARK = 0, 4, 20
Instruction = tuple[int, int, int, int]


@dataclass(frozen=True)
class Bpf(Match, name="bpf"):
    """--bytecode "N,CODE JT JF K,...": a classic BPF program over the packet from its IP header on; not 0 is yes.

    Source   the BSD Packet Filter (McCanne and Jacobson, 1993): an accumulator, an index register, 16 words of memory,
             jumps forward only. A load from beyond the packet and a division by 0 end it with 0.
    Not modelled: facts about the packet other than protocol, type and mark (interface, queue, processor, random, ...).
    """

    SPEC: ClassVar = {
        "--bytecode": Option(alone=("--object-pinned",)),
        "--object-pinned": Option(alone=("--bytecode",)),
    }
    program: tuple[Instruction, ...]

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if "--object-pinned" in o:
            raise NotModelled("match `bpf` with --object-pinned", "--object-pinned", "give the program as --bytecode")
        if "--bytecode" not in o:
            raise Bad("bpf: one of --bytecode or --pinned is required")
        return cls(tuple(_program(o["--bytecode"].value)))

    def check(self, rule: RuleContext) -> str:
        return super().check(rule) or _flaw(self.program)

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        one = super().read(given, rule)
        for code, _, _, k in one.program:
            if code & 7 in (0, 1) and code & 0xE0 in (0x20, 0x40) and k >= 0x80000000:
                known = k in (_ANCILLARY + _PROTOCOL, _ANCILLARY + _PKTTYPE, _ANCILLARY + _MARK)
                if not known and not _NETWORK <= k < _ANCILLARY:
                    raise NotModelled(f"match `bpf` that loads from {k - (1 << 32)}", "--bytecode")
        return one

    def words(self) -> str:
        shown = ",".join(" ".join(map(str, instruction)) for instruction in self.program)
        return f'--bytecode "{len(self.program)},{shown}"'

    def says(self, trip: Trip, row: int) -> bool:
        return self.run(trip, row) != 0

    def run(self, trip: Trip, row: int) -> int:
        """What the program returns for a packet."""
        data = trip.pkts.bytes(row)
        a = x = at = 0
        memory = [0] * 16
        while True:
            code, jt, jf, k = self.program[at]
            at += 1
            kind = code & 7
            if kind in (0, 1):  # load the accumulator or the index register
                mode = code & 0xE0
                value: int | None
                if mode == 0x00:
                    value = k
                elif mode == 0x60:
                    value = memory[k]
                elif mode == 0x80:
                    value = len(data)
                elif mode == 0xA0:
                    value = None if k >= len(data) else (data[k] & 15) * 4
                else:
                    value = self._load(trip, row, data, k if mode == 0x20 else k + x & M32, _SIZES[code & 0x18])
                if value is None:
                    return 0
                if kind == 0:
                    a = value
                else:
                    x = value
            elif kind == 2:
                memory[k] = a
            elif kind == 3:
                memory[k] = x
            elif kind == 4:
                operation, operand = code & 0xF0, x if code & 8 else k
                if operation == 0x80:
                    a = -a & M32
                elif operand == 0 and operation in (0x30, 0x90):
                    return 0
                else:
                    a = _ALU[operation](a, operand)
            elif kind == 5:
                if code & 0xF0 == 0:
                    at += k
                else:
                    at += jt if _JUMPS[code & 0xF0](a, x if code & 8 else k) else jf
            elif kind == 6:
                return a if code & 0x18 == 0x10 else k
            elif code & 0xF8:
                a = x
            else:
                x = a

    @staticmethod
    def _load(trip: Trip, row: int, data: bytes, at: int, size: int) -> int | None:
        if at >= 0x80000000:
            if at == _ANCILLARY + _PROTOCOL:
                return 0x0800
            if at == _ANCILLARY + _PKTTYPE:
                return int(trip.pkts.pkttype[row])
            if at == _ANCILLARY + _MARK:
                return int(trip.pkts.mark[row])
            at -= _NETWORK
        return int.from_bytes(data[at : at + size], "big") if 0 <= at <= len(data) - size else None


def _program(text: str) -> Iterable[Instruction]:
    """The instructions of `N,CODE JT JF K,...`."""
    count, comma, rest = text.partition(",")
    if not re.fullmatch(r"\s*\d+", count) or not comma:
        raise Bad("bpf: error parsing program length", text)
    if int(count) > 64:
        raise Bad("bpf: number of instructions exceeds maximum", text)
    if not int(count):
        raise Bad("bpf: illegal zero length program", text)
    parts = rest.split(",")
    for n in range(int(count)):
        m = re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", parts[n]) if n < len(parts) else None
        if n >= len(parts) or (not m and n == len(parts) - 1 and not parts[n].strip()):
            raise Bad("bpf: parsed program length is less than the encoded length parameter", text)
        if not m:
            raise Bad(f"bpf: error at instr {n}", parts[n])
        yield int(m[1]) & 0xFFFF, int(m[2]) & 255, int(m[3]) & 255, int(m[4]) & M32
    if any(part.strip() for part in parts[int(count) :]):
        raise Bad("bpf: parsed program length exceeds the encoded length parameter", text)


def _flaw(program: tuple[Instruction, ...]) -> str:
    """Why Linux would not run it: the checks of its loader."""
    n = len(program)
    for at, (code, jt, jf, k) in enumerate(program):
        kind, operation = code & 7, code & 0xF0
        if kind in (0, 1, 2, 3):
            known = code in _LOADS
            known &= not (kind in (2, 3) or code & 0xE0 == 0x60) or k < 16
        elif kind == 4:
            known = (operation in _ALU and code & ~0xF8 == 4) or code == 0x84
            known &= not (not code & 8 and operation in (0x30, 0x90) and k == 0)
            known &= not (not code & 8 and operation in (0x60, 0x70) and k >= 32)
        elif kind == 5:
            known = (code == 0x05 and k < n - at - 1) or (
                operation in _JUMPS and code & ~0xF8 == 5 and max(jt, jf) + at + 1 < n
            )
        elif kind == 6:
            known = code in (0x06, 0x16)
        else:
            known = code in (0x07, 0x87)
        if not known:
            return f"bpf instruction {at} is not one"
    if program[-1][0] not in (0x06, 0x16):
        return "bpf program without an end"
    return _unwritten(program)


def _unwritten(program: tuple[Instruction, ...]) -> str:
    """A word of memory must be written on every way to where it is read."""
    ways = [0xFFFF] * len(program)
    valid = 0
    for at, (code, jt, jf, k) in enumerate(program):
        valid &= ways[at]
        if code & 7 in (2, 3):
            valid |= 1 << k
        elif code in (0x60, 0x61) and not valid >> k & 1:
            return f"bpf instruction {at} reads memory that nothing wrote"
        elif code == 0x05:
            ways[at + 1 + k] &= valid
            valid = 0xFFFF
        elif code & 7 == 5:
            for jump in (jt, jf):
                ways[at + 1 + jump] &= valid
            valid = 0xFFFF
    return ""


# ---- connections -----------------------------------------------------------------------------------------------------

#: 128 labels of each connection, by the node's connection table: flow -> (serial number of its first packet, bits)
_LABELS: WeakKeyDictionary[Conntrack, dict[int, tuple[int, int]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Connlabel(Match, name="connlabel"):
    """--label N [--set]: the connection carries label N; with --set, it gets it.

    A packet without a connection has no label. Names of labels come from a file that no dump holds: numbers only.
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
        return f'{_not(self.invert)}--label "{self.label}"{" --set" if self.set else ""}'

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        if flow < 0:
            return self.invert
        ct = trip.node.conntrack
        labels = _LABELS.setdefault(ct, {})
        born, bits = labels.get(flow, (-1, 0))
        if born != int(ct.born[flow]):
            born, bits = int(ct.born[flow]), 0
        if bits >> self.label & 1:
            return not self.invert
        if not self.set:
            return self.invert
        labels[flow] = born, bits | 1 << self.label
        return not self.invert


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
        return f"{_not(self.invert)}--helper {quoted(self.helper) or EMPTY}"

    def says(self, trip: Trip, row: int) -> bool:
        flow = trip.pkts.ct.item(row)
        name_of: Callable[[int], str] | None = getattr(trip.node.conntrack, "helper_of_master", None)
        name = name_of(flow) if flow >= 0 and name_of is not None else ""
        return (bool(name) and self.helper.startswith(name) if self.helper else bool(name)) != self.invert


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
            total = _number("cluster", "--cluster-total-nodes", o["--cluster-total-nodes"].value, 32, 1)
        g = o.get("--cluster-local-node") or o.get("--cluster-local-nodemask")
        if g is None:
            raise Bad("cluster match: `--cluster-local-node' or`--cluster-local-nodemask' is missing")
        if g.option == "--cluster-local-node":
            node = _number("cluster", g.option, g.value, 32, 1)
            nodes = 1 << (node - 1)
        else:
            nodes = _number("cluster", g.option, g.value, M32)
        for option in ("--cluster-total-nodes", "--cluster-hash-seed"):
            if option not in o:
                raise Bad(f'cluster: option "{option}" must be specified')
        seed = _number("cluster", "--cluster-hash-seed", o["--cluster-hash-seed"].value, M32)
        if nodes >> total:
            if g.option == "--cluster-local-node":
                raise Bad("cluster match: `--cluster-local-node' must be <= `--cluster-total-nodes'", g.value)
            raise Bad("cluster match: `--cluster-local-nodemask' too big for `--cluster-total-nodes'", g.value)
        return cls(total, nodes, seed, g.invert)

    def words(self) -> str:
        return (
            f"{_not(self.invert)}--cluster-local-nodemask 0x{self.nodes:08x} "
            f"--cluster-total-nodes {self.total} --cluster-hash-seed 0x{self.seed:08x}"
        )

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        framed = rows[(p.pkttype[rows] == MULTICAST) & (p.dst[rows] >> 28 != 14)]
        p.pkttype[framed] = HOST
        flows = p.ct[rows]
        sources = trip.node.conntrack.osrc[np.maximum(flows, 0)].byteswap()  # hashed as it stands in memory
        share = np.asarray(jhash2((sources.astype(np.uint32),), self.seed)).astype(np.uint64) * np.uint64(self.total)
        mine = (np.uint64(self.nodes) >> (share >> np.uint64(32))) & np.uint64(1) != 0
        answer: Mask = (flows >= 0) & (mine != self.invert)
        return answer


# ---- links -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Devgroup(Match, name="devgroup"):
    """--src-group N[/MASK], --dst-group N[/MASK]: the group of the input, of the output device; 0 unless given.

    sides   (input or output, group as written, value, mask, inverted)
    """

    SPEC: ClassVar = {"--src-group": Option(invert=True), "--dst-group": Option(invert=True)}
    sides: tuple[tuple[str, str, int, int, bool], ...]

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("devgroup match: You must specify either '--src-group' or '--dst-group'")
        sides = []
        for option, column in (("--src-group", "link_in"), ("--dst-group", "link_out")):
            if option in o:
                text = o[option].value
                value, slash, mask = text.partition("/")
                v, m = 0 if text == "default" else integer(value), integer(mask) if slash else M32
                if v is None or v > M32 or m is None or m > M32:
                    raise Bad(f'devgroup: could not map name {text} to an integer value for option "{option}".', text)
                shown = f"{v:#x}/{m:#x}" if m != M32 else "default" if v == 0 else f"{v:#x}"
                sides.append((column, f"{option} {shown}", v, m, o[option].invert))
        return cls(tuple(sides))

    @property
    def hooks(self) -> frozenset[str]:
        """Where there is such a device."""
        named = {side[0] for side in self.sides}
        hooks = {"PREROUTING", "INPUT", "FORWARD"} if "link_in" in named else set(super().hooks)
        return frozenset(hooks & {"FORWARD", "OUTPUT", "POSTROUTING"} if "link_out" in named else hooks)

    def words(self) -> str:
        return " ".join(f"{_not(invert)}{shown}" for _, shown, _, _, invert in self.sides)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        groups = np.array([*(getattr(link, "group", 0) for link in trip.node.routing.links), 0], np.uint32)
        answer = np.ones(len(rows), bool)
        for column, _, value, mask, invert in self.sides:
            links: NDArray[np.int16] = getattr(trip.pkts, column)[rows]
            answer &= (((groups[links] ^ np.uint32(value)) & np.uint32(mask)) == 0) != invert
        return answer


# ---- sockets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SocketMatch(Match, name="socket"):
    """A local socket waits for the packet: one of its own conversation, or a listener bound to its very destination.

    --nowildcard: listeners on any address count too. --transparent: only transparent sockets. --restore-skmark: the
    packet takes the socket's mark. Sockets are those that the model declares; without any nothing ever matches.
    """

    SPEC: ClassVar = {"--transparent": Option(0), "--nowildcard": Option(0), "--restore-skmark": Option(0)}
    needs_defrag = True
    transparent: bool = False
    nowildcard: bool = False
    restore: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        return cls("--transparent" in o, "--nowildcard" in o, "--restore-skmark" in o)

    @property
    def hooks(self) -> frozenset[str]:
        return frozenset(("PREROUTING", "INPUT"))

    def words(self) -> str:
        on = (
            ("--transparent", self.transparent),
            ("--nowildcard", self.nowildcard),
            ("--restore-skmark", self.restore),
        )
        return " ".join(word for word, flag in on if flag)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        sockets = sockets_of(trip.node)
        if not sockets:
            return np.zeros(len(rows), bool)
        return np.fromiter((self._one(trip, row, sockets) for row in rows.tolist()), bool, len(rows))

    def _one(self, trip: Trip, row: int, sockets: tuple[Socket, ...]) -> bool:
        p = trip.pkts
        ends = self._ends(trip, row)
        if ends is None:
            return False
        proto, src, sport, dst, dport = ends
        s = connected(sockets, proto, src, sport, dst, dport) or listening(sockets, proto, dst, dport)
        if s is None or (not self.nowildcard and s.address == 0) or (self.transparent and not s.transparent):
            return False
        if self.restore:
            p.mark[row] = s.mark
        return True

    @staticmethod
    def _ends(trip: Trip, row: int) -> tuple[int, int, int, int, int] | None:
        """(protocol, source, its port, destination, its port) as the socket would have them."""
        p = trip.pkts
        proto, state, flow = int(p.proto[row]), int(p.state[row]), int(p.ct[row])
        if p.frag[row] & OFFSET_MASK:
            return None
        if proto in (TCP, UDP):
            ends = (proto, int(p.src[row]), int(p.sport[row]), int(p.dst[row]), int(p.dport[row]))
            answer = state == ESTABLISHED
        elif proto == ICMP and p.icmp_type[row] in ICMP_ERRORS:
            inner = p.payload(row)[8:]
            ihl = (inner[0] & 15) * 4 if len(inner) >= 20 else 0
            if ihl < 20 or len(inner) < ihl + 4 or inner[9] not in (TCP, UDP):
                return None
            sport, dport = struct.unpack_from("!HH", inner, ihl)
            src, dst = struct.unpack_from("!II", inner, 12)
            ends = (inner[9], dst, dport, src, sport)  # the packet that it is about went out
            answer = state == RELATED
        else:
            return None
        ct = trip.node.conntrack
        if flow >= 0 and answer and p.reply[row] and ct.status[flow] & 128:  # source translation undone
            return ends[0], ends[1], ends[2], int(ct.osrc[flow]), int(ct.osport[flow])
        return ends
