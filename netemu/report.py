"""What happened, told: to a person at a terminal, to Wireshark, to a script.

Journeys come in chunks and leave as lines; nothing here keeps them, so a report of any length fits in memory.

    Journeys --+--> Table        a line per packet, for people
               +--> JsonLines    one object per packet        +
               +--> Csv          the same, flat               |  reports: write(journeys, rows), close()
               +--> Parquet      the same, flat, in columns   |
               +--> Left         what left, as a capture      +
               '--> Summary      fates, reasons, services, paths, chains and sets: counted by columns
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu import lines as columns
from netemu.errors import Refused
from netemu.hashing import Table as Keys
from netemu.lines import MARGIN, Lines, Maker, Pool, Texts, chains, distinct, each, joined, numbers
from netemu.packets import (
    FATES,
    I64,
    ICMP,
    ICMP_QUERIES,
    NEW,
    OFFSET_MASK,
    PORTED,
    REJECTED,
    RELATED,
    TCP,
    U8,
    Packets,
    Rows,
)
from netemu.paths import Paths, Rewrite, Step

if TYPE_CHECKING:
    from rich.console import Console

    from netemu.ipvs import Choice
    from netemu.node import Journeys, Node
    from netemu.tables import Rule

PROTOCOLS = {
    1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 51: "ah", 89: "ospf", 132: "sctp",
    136: "udplite",
}  # fmt: skip
STATES = ("INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED")
ICMP_NAMES = {
    0: "echo-reply", 3: "unreachable", 4: "source-quench", 5: "redirect", 8: "echo", 9: "router-advertisement",
    10: "router-solicitation", 11: "time-exceeded", 12: "parameter-problem", 13: "timestamp", 14: "timestamp-reply",
}  # fmt: skip
#: header columns that a node may change, in the order in which reports name them
REWRITABLE = ("dst", "dport", "src", "sport", "ttl", "tos", "mark", "icmp_id")
#: columns of the flat reports (.csv, .parquet)
FLAT = (
    "packet", "time", "in", "proto", "src", "sport", "dst", "dport", "type", "code", "id", "fate", "reason", "out",
    "state", "service", "rules_evaluated", "rewrites", "path",
)  # fmt: skip


def address(ip: int) -> str:
    """An address as people write it.

    >>> address(0x0A600001)
    '10.96.0.1'
    """
    return f"{ip >> 24}.{ip >> 16 & 255}.{ip >> 8 & 255}.{ip & 255}"


def seconds(ns: int) -> str:
    """Nanoseconds as seconds in decimals, exact and as short as that allows.

    >>> seconds(0), seconds(1_700_000_000_123_456_789), seconds(-500_000_000)
    ('0.0', '1700000000.123456789', '-0.5')
    """
    whole, part = divmod(abs(ns), 1_000_000_000)
    return f"{'-' * (ns < 0)}{whole}.{f'{part:09d}'.rstrip('0') or '0'}"


def flags_text(flags: int) -> str:
    """TCP flags in the letters that tools use: `S`, `SA`, `FA`, `PA`, `R`; `-` for none.

    >>> flags_text(0x12), flags_text(0x11), flags_text(0)
    ('SA', 'FA', '-')
    """
    return (
        "".join(letter for bit, letter in zip((2, 1, 4, 8, 32, 64, 128, 16), "SFRPUEWA", strict=True) if flags & bit)
        or "-"
    )


K = TypeVar("K", str, tuple[int, int])


class Report(Protocol):
    """Something that packets' journeys are written to."""

    def write(self, journeys: Journeys, rows: Rows) -> None: ...

    def close(self) -> None: ...


# ---- one line of facts a packet ------------------------------------------------------------------------------------


class Facts:
    """Columns of one chunk as Python values, for reports that write a line per packet.

    Each attribute is a list with one element for each of `rows`. `rewrites` maps field -> (first, last), where they
    differ. Cost: a few list conversions, then dictionary look-ups; nearly nothing is done per packet.
    """

    def __init__(self, journeys: Journeys, rows: Rows) -> None:
        pkts, before, paths = journeys.pkts, journeys.before, journeys.paths
        self.journeys, self.rows, self.paths = journeys, rows, paths
        self.number: list[int] = np.asarray(journeys.numbers)[rows].tolist()
        self.time: list[int] = pkts.time[rows].tolist()
        self.arrived: list[int] = pkts.arrived[rows].tolist()
        self.left: list[int] = journeys.left[rows].tolist()
        self.proto: list[int] = before["proto"][rows].tolist()
        self.first_fragment: list[bool] = ((pkts.frag[rows] & OFFSET_MASK) == 0).tolist()
        self.flags: list[int] = pkts.flags[rows].tolist()
        self.fate: list[int] = pkts.fate[rows].tolist()
        self.reason: list[int] = pkts.reason[rows].tolist()
        self.path: list[int] = pkts.path[rows].tolist()
        self.evaluated: list[int] = pkts.evaluated[rows].tolist()
        self.state: list[int] = journeys.state[rows].tolist()
        self.service: list[int] = journeys.service[rows].tolist()
        self.icmp_type: list[int] = pkts.icmp_type[rows].tolist()
        self.icmp_code: list[int] = pkts.icmp_code[rows].tolist()
        was: dict[str, list[int]] = {}
        now: dict[str, list[int]] = {}
        for name in REWRITABLE:
            after = getattr(pkts, name)[rows]
            earlier = before[name][rows] if name in before else np.zeros(len(rows), after.dtype)
            was[name], now[name] = earlier.tolist(), after.tolist()
        self.was, self.now = was, now
        self.odd: list[bool] = odd(journeys)[rows].tolist()
        self.rebuilt: list[bool] = (
            _marked(len(pkts), pkts.rebuilt)[rows].tolist() if pkts.rebuilt else [False] * len(rows)
        )

    def __len__(self) -> int:
        return len(self.number)

    def rewrites(self, i: int) -> dict[str, tuple[int | str, int | str]]:
        """field -> (first value, last value) of packet `i`; addresses in words."""
        if self.rebuilt[i]:
            return first_and_last(self.journeys[int(self.rows[i])].rewrites)
        out: dict[str, tuple[int | str, int | str]] = {}
        for name in REWRITABLE:
            old, new = self.was[name][i], self.now[name][i]
            if old != new:
                if name in ("src", "dst"):
                    out[name] = (address(old), address(new))
                else:
                    out["id" if name == "icmp_id" else name] = (old, new)
        return out

    def out(self, i: int) -> list[str]:
        """The links on which packets left because of packet `i`, in order."""
        if self.odd[i]:
            return [link for link, _ in self.journeys[int(self.rows[i])].out]
        return [self.journeys.links[self.left[i]]] if self.left[i] >= 0 else []

    def packet(self, i: int, *, changed: bool = False) -> str:
        """`tcp 10.0.0.5:4000 > 10.96.0.1:443 S`, as it arrived or as it was at the end."""
        v = self.now if changed else self.was
        return packet_text(
            self.proto[i],
            *(v[name][i] for name in ("src", "sport", "dst", "dport")),
            flags=self.flags[i],
            icmp=(self.icmp_type[i], self.icmp_code[i], v["icmp_id"][i]),
            fragment=not self.first_fragment[i],
        )


def odd(journeys: Journeys) -> NDArray[np.bool_]:
    """bool[n]: packets of which the columns do not say all that left, because they were cut up or caused others."""
    trip = journeys.trip
    mask = _marked(len(journeys), trip.outs)
    for child in trip.children:
        mask[child.parent_rows] = True
    return mask


def _marked(n: int, rows: Iterable[int]) -> NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[list(rows)] = True
    return mask


def packet_text(
    proto: int, src: int, sport: int, dst: int, dport: int, *, flags: int = 0, icmp: tuple[int, int, int] = (0, 0, 0),
    fragment: bool = False,
) -> str:  # fmt: skip
    """One packet in a line.

    >>> packet_text(6, 0x0A000005, 4000, 0x0A600001, 443, flags=2)
    'tcp 10.0.0.5:4000 > 10.96.0.1:443 S'
    >>> packet_text(1, 0x0A000005, 0, 0x0A600001, 0, icmp=(8, 0, 7))
    'icmp 10.0.0.5 > 10.96.0.1 echo id 7'
    """
    name = PROTOCOLS.get(proto, f"proto-{proto}")
    if fragment:
        return f"{name} {address(src)} > {address(dst)} fragment"
    if proto in PORTED:
        tail = f" {flags_text(flags)}" if proto == TCP else ""
        return f"{name} {address(src)}:{sport} > {address(dst)}:{dport}{tail}"
    if proto == ICMP:
        kind, code, ident = icmp
        what = ICMP_NAMES.get(kind, f"type {kind}")
        tail = f" id {ident}" if kind in ICMP_QUERIES else f" code {code}"
        return f"icmp {address(src)} > {address(dst)} {what}{tail}"
    return f"{name} {address(src)} > {address(dst)}"


def first_and_last(rewrites: Iterable[Rewrite]) -> dict[str, tuple[int | str, int | str]]:
    """field -> (value before the first rewrite, value after the last), left out where the two are the same."""
    out: dict[str, tuple[int | str, int | str]] = {}
    for r in rewrites:
        old = out[r.field][0] if r.field in out else _worded(r.field, r.old)
        out[r.field] = (old, _worded(r.field, r.new))
    rank = {("id" if name == "icmp_id" else name): k for k, name in enumerate(REWRITABLE)}
    return {f: v for f, v in sorted(out.items(), key=lambda item: rank.get(item[0], 99)) if v[0] != v[1]}


def _worded(field: str, value: int | str) -> int | str:
    return address(value) if isinstance(value, int) and field.rpartition(".")[2] in ("src", "dst") else value


class _Known(dict[int, str]):
    """A dictionary that works out what it does not hold, and forgets all of it before it grows large."""

    def __init__(self, make: Callable[[int], str], limit: int = 1 << 18) -> None:
        super().__init__()
        self.make, self.limit = make, limit

    def __missing__(self, key: int) -> str:
        if len(self) >= self.limit:
            self.clear()
        value = self[key] = self.make(key)
        return value


# ---- reports for scripts -------------------------------------------------------------------------------------------

BLOCK = 1 << 15  # packets whose lines are put together at once
_ENDS, _ASKS, _ODD, _REBUILT = 8, 10, 11, 12  # bits of a Shape, behind those of the REWRITABLE fields
_PORTED, _ICMP, _NEITHER = range(3)


def alike(journeys: Journeys, rows: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """Packets of which the same is told, save number and time: (rows, where in them each of `rows` finds its like).

    Candidates are found by a hash, and believed when all columns that are told agree. Cost: 100 ns a packet.
    """
    pkts, before = journeys.pkts, journeys.before
    n = len(rows)
    contiguous = n and int(rows[-1]) - int(rows[0]) == n - 1
    where = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
    told = [before[name][where] for name in ("src", "dst", "sport", "dport", "proto", "ttl")]
    told += [getattr(pkts, name)[where] for name in ("path", "evaluated", *REWRITABLE, "arrived", "fate", "reason")]
    told += [column[where] for column in (journeys.left, journeys.state, journeys.service)]
    told += [before[name][where] for name in ("tos", "mark", "icmp_id")]
    told += [pkts.icmp_type[where], pkts.icmp_code[where]]
    mixed = np.zeros(n, np.uint64)
    for column in (*told[:8], told[-6]):
        mixed += column.astype(np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
    spot = (mixed >> np.uint64(64 - 17)).astype(np.intp)
    first = np.full(1 << 17, n, np.int32)
    np.minimum.at(first, spot, np.arange(n, dtype=np.int32))
    like = first.take(spot).astype(np.intp)
    same = np.ones(n, bool)
    for column in told:
        if column.any():
            same &= column == column.take(like)
    trip = journeys.trip
    if trip.outs or trip.children:
        same &= ~odd(journeys)[where]
    if pkts.rebuilt:
        same &= ~_marked(len(pkts), pkts.rebuilt)[where]
    like[~same] = np.flatnonzero(~same)
    unique = np.flatnonzero(like == np.arange(n))
    place = np.zeros(n, np.intp)
    place[unique] = np.arange(len(unique))
    return rows[unique], place.take(like)


class Shape:
    """Packets of one chunk about which the same facts are told, so that their lines have the same pieces.

    changed   fields of REWRITABLE that were rewritten        ends  _PORTED, _ICMP or _NEITHER
    asks      the ICMP message has an id                      odd, rebuilt  as in Facts: those are asked one by one
    """

    def __init__(self, journeys: Journeys, rows: Rows, code: int) -> None:
        self.journeys, self.rows = journeys, rows
        self.changed = [name for k, name in enumerate(REWRITABLE) if code >> k & 1]
        self.ends = code >> _ENDS & 3
        self.asks, self.odd, self.rebuilt = (bool(code >> bit & 1) for bit in (_ASKS, _ODD, _REBUILT))

    @classmethod
    def sorted(cls, journeys: Journeys, rows: Rows) -> list[tuple[Shape, Rows]]:
        """The packets at `rows` by shape, each with their places in `rows`."""
        pkts, before = journeys.pkts, journeys.before
        proto = before["proto"][rows]
        code = np.full(len(rows), _NEITHER << _ENDS, np.uint16)
        code[_IS_PORTED[proto]] = _PORTED << _ENDS
        icmp = np.flatnonzero(proto == ICMP)
        if len(icmp):
            asks = np.isin(pkts.icmp_type[rows[icmp]], ICMP_QUERIES)
            code[icmp] = _ICMP << _ENDS | asks.astype(np.uint16) << _ASKS
        for k, name in enumerate(REWRITABLE):
            code |= (before[name][rows] != getattr(pkts, name)[rows]).astype(np.uint16) << k
        trip = journeys.trip
        if trip.outs or trip.children:
            code |= odd(journeys)[rows].astype(np.uint16) << _ODD
        if pkts.rebuilt:
            rebuilt = np.flatnonzero(_marked(len(pkts), pkts.rebuilt)[rows])
            code[rebuilt] = code[rebuilt] >> len(REWRITABLE) << len(REWRITABLE) | 1 << _REBUILT
        found = np.flatnonzero(np.bincount(code))
        if len(found) == 1:
            return [(cls(journeys, rows, int(found[0])), np.arange(len(rows)))]
        parts = [(int(k), np.flatnonzero(code == k)) for k in found]
        return [(cls(journeys, rows[places], k), places) for k, places in parts]

    def __len__(self) -> int:
        return len(self.rows)

    def before(self, name: str) -> NDArray[Any]:
        return self.journeys.before[name][self.rows]

    def now(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = getattr(self.journeys.pkts, name)[self.rows]
        return column

    @property
    def numbers(self) -> I64:
        return np.asarray(self.journeys.numbers)[self.rows]

    def left(self) -> list[list[str]]:
        """The links on which packets left because of each packet, of odd ones."""
        return [[link for link, _ in self.journeys[row].out] for row in self.rows.tolist()]

    def rewrites(self) -> list[dict[str, tuple[int | str, int | str]]]:
        """first_and_last of each packet, of rebuilt ones."""
        return [first_and_last(self.journeys[row].rewrites) for row in self.rows.tolist()]


_IS_PORTED = np.isin(np.arange(256), PORTED)


class _Rowwise:
    """A report with a line a packet, put together in columns."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.room: U8 = np.empty(0, np.uint8)
        self._of: Paths | None = None
        self._links: list[str] = []

    def write(self, journeys: Journeys, rows: Rows) -> None:
        if self._of is not journeys.paths or self._links != journeys.links:
            self._of, self._links = journeys.paths, list(journeys.links)
            self.learn(journeys.paths, self._links)
        for lo in range(0, len(rows), BLOCK):
            some = rows[lo : lo + BLOCK]
            rare, of = alike(journeys, some)
            if len(rare) > len(some) // 2:
                self.put(self.lines(journeys, some, numbered=True))
            else:
                text, starts, sizes = joined(self.lines(journeys, rare))
                lines = Lines(len(some))
                self.number(lines, np.asarray(journeys.numbers)[some], journeys.pkts.time[some])
                lines.copy(text, starts.take(of), sizes.take(of))
                self.put([(lines, np.arange(len(some)))])
        for pool in self.pools:
            pool.trim()
        self.file.flush()  # somebody may be reading along

    def lines(self, journeys: Journeys, rows: Rows, numbered: bool = False) -> list[tuple[Lines, Rows]]:
        """What there is to say about the packets at `rows`, each with its place in `rows`."""
        parts = []
        for shape, places in Shape.sorted(journeys, rows):
            lines = Lines(len(shape))
            if numbered:
                self.number(lines, shape.numbers, shape.now("time"))
            self.tell(lines, shape)
            parts.append((lines, places))
        return parts

    def put(self, parts: list[tuple[Lines, Rows]]) -> None:
        text, _, _ = joined(parts, self.room)
        if len(text) > len(self.room):
            self.room = np.empty(len(text) * 5 // 4 + MARGIN, np.uint8)
        self.file.write(text.data)

    pools: tuple[Pool, ...] = ()

    def learn(self, paths: Paths, links: list[str]) -> None:
        """The node, whose paths and links these are, is new: make the texts that they need."""
        raise NotImplementedError

    def number(self, lines: Lines, numbers: I64, times: I64) -> None:
        """Begin the lines with the number and the time of each packet."""
        raise NotImplementedError

    def tell(self, lines: Lines, of: Shape) -> None:
        """Add all the rest."""
        raise NotImplementedError

    def close(self) -> None:
        self.file.flush()


class JsonLines(_Rowwise):
    """One JSON object a packet and line."""

    def learn(self, paths: Paths, links: list[str]) -> None:
        def named(before: str, names: Iterable[str | None], after: str) -> Texts | Pool:
            return Texts.of([f"{before}{json.dumps(name)}{after}".encode() for name in names])

        steps = Pool(each(lambda k: json.dumps(str(paths.steps[k])).encode() + b", "))
        self.texts = Pool(each(lambda k: json.dumps(paths.texts[k]).encode()))
        self.paths = Pool(chains(steps, paths.unrolled, b", "))
        self.values = Pool(each(lambda k: b"%d" % k))
        self.pools = (steps, self.texts, self.paths, self.values)
        self.came = named(', "in": ', [None, *links], ', "proto": ')
        self.went = named(', "out": ', [None, *links], ', "state": ')
        self.protos = named("", (PROTOCOLS.get(k, str(k)) for k in range(256)), ', "src": "')
        self.fates = named(', "fate": ', FATES, ', "reason": ')
        self.states = named("", [*STATES, *[None] * (256 - len(STATES))], ', "service": ')

    def number(self, lines: Lines, numbers: I64, times: I64) -> None:
        lines.add(b'{"packet": ')
        columns.serial_numbers(lines, numbers)
        lines.add(b', "time": ')
        columns.times(lines, times)

    def tell(self, lines: Lines, of: Shape) -> None:
        add, put = lines.add, lines.put
        put(self.came, of.now("arrived") + 1)
        put(self.protos, of.before("proto"))
        columns.addresses(lines, of.before("src"))
        if of.ends == _PORTED:
            add(b'", "sport": ')
            put(numbers(), of.before("sport"))
            add(b', "dst": "')
            columns.addresses(lines, of.before("dst"))
            add(b'", "dport": ')
            put(numbers(), of.before("dport"))
        else:
            add(b'", "dst": "')
            columns.addresses(lines, of.before("dst"))
            add(b'"')
            if of.ends == _ICMP:
                add(b', "type": ')
                put(numbers(), of.now("icmp_type"))
                add(b', "code": ')
                put(numbers(), of.now("icmp_code"))
                add(b', "id": ')
                if of.asks:
                    put(numbers(), of.before("icmp_id"))
                else:
                    add(b"null")
        put(self.fates, of.now("fate"))
        put(self.texts, of.now("reason"))
        if of.odd:
            left = (json.dumps(links[0] if len(links) == 1 else links or None) for links in of.left())
            _one_by_one(lines, (f', "out": {text}, "state": ' for text in left))
        else:
            put(self.went, of.journeys.left[of.rows] + 1)
        put(self.states, of.journeys.state[of.rows])
        put(self.texts, of.journeys.service[of.rows])
        add(b', "rules_evaluated": ')
        put(self.values, of.now("evaluated"))
        add(b', "rewrites": ')
        if of.rebuilt:
            _one_by_one(lines, map(json.dumps, of.rewrites()))
        else:
            add(b"{")
            for k, name in enumerate(of.changed):
                quote = b'"' * (name in ("src", "dst"))
                add(b'%s"%s": [%s' % (b", " if k else b"", _NAMES.get(name, name).encode(), quote))
                _value(lines, name, of.before(name))
                add(b"%s, %s" % (quote, quote))
                _value(lines, name, of.now(name))
                add(b"%s]" % quote)
            add(b"}")
        add(b', "path": [')
        put(self.paths, of.now("path"))
        add(b"]}\n")


_NAMES = {"icmp_id": "id"}


def _value(lines: Lines, name: str, values: NDArray[Any]) -> None:
    if name in ("src", "dst"):
        columns.addresses(lines, values)
    elif name == "mark":
        distinct(lines, values, lambda k: b"%d" % k)
    else:
        lines.put(numbers(), values)


def _one_by_one(lines: Lines, texts: Iterable[str]) -> None:
    made = [text.encode() for text in texts]
    lines.put(Texts.of(made), np.arange(len(made)))


class Csv(_Rowwise):
    """A row a packet: the facts of a JSON line, rewrites as `dst=10.96.0.1->10.244.2.6`, the path joined by ` | `."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        file.write(",".join(FLAT).encode() + b"\n")

    def learn(self, paths: Paths, links: list[str]) -> None:
        def named(names: Iterable[str | None]) -> Texts | Pool:
            return Texts.of([b"%s," % _cell(name or "") for name in names])

        steps = Pool(each(lambda k: f"{paths.steps[k]} | ".encode()))
        self.texts = Pool(each(lambda k: _cell(paths.texts[k] or "")))
        self.paths = Pool(_cells(chains(steps, paths.unrolled, b" | ")))
        self.values = Pool(each(lambda k: b"%d," % k))
        self.pools = (steps, self.texts, self.paths, self.values)
        self.links = named([None, *links])
        self.protos = named(PROTOCOLS.get(k, str(k)) for k in range(256))
        self.fates = named(FATES)
        self.states = named([*STATES, *[None] * (256 - len(STATES))])

    def number(self, lines: Lines, numbers: I64, times: I64) -> None:
        columns.serial_numbers(lines, numbers)
        lines.add(b",")
        columns.times(lines, times)
        lines.add(b",")

    def tell(self, lines: Lines, of: Shape) -> None:
        add, put = lines.add, lines.put
        put(self.links, of.now("arrived") + 1)
        put(self.protos, of.before("proto"))
        for end, port in (("src", "sport"), ("dst", "dport")):
            columns.addresses(lines, of.before(end))
            add(b",")
            if of.ends == _PORTED:
                put(numbers(), of.before(port))
            add(b",")
        if of.ends == _ICMP:
            put(numbers(), of.now("icmp_type"))
            add(b",")
            put(numbers(), of.now("icmp_code"))
            add(b",")
            if of.asks:
                put(numbers(), of.before("icmp_id"))
            add(b",")
        else:
            add(b",,,")
        put(self.fates, of.now("fate"))
        put(self.texts, of.now("reason"))
        add(b",")
        if of.odd:
            _one_by_one(lines, (f"{' '.join(links)}," for links in of.left()))
        else:
            put(self.links, of.journeys.left[of.rows] + 1)
        put(self.states, of.journeys.state[of.rows])
        put(self.texts, of.journeys.service[of.rows])
        add(b",")
        put(self.values, of.now("evaluated"))
        flat_rewrites(lines, of)
        add(b",")
        put(self.paths, of.now("path"))
        add(b"\n")


def flat_rewrites(lines: Lines, of: Shape) -> None:
    """`dst=10.96.0.1->10.244.2.6 dport=443->6443`"""
    if of.rebuilt:
        _one_by_one(lines, (" ".join(f"{k}={old}->{new}" for k, (old, new) in r.items()) for r in of.rewrites()))
        return
    for k, name in enumerate(of.changed):
        lines.add(b"%s%s=" % (b" " * bool(k), _NAMES.get(name, name).encode()))
        _value(lines, name, of.before(name))
        lines.add(b"->")
        _value(lines, name, of.now(name))


def _cell(text: str) -> bytes:
    """A cell of a CSV file, quoted where it must be."""
    if any(c in text for c in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text.encode()


def _cells(make: Maker) -> Maker:
    """What `make` makes, quoted where it must be."""

    def made(ids: I64) -> tuple[U8, I64, I64]:
        data, starts, sizes = make(ids)
        special = np.isin(data, np.frombuffer(b',"\r\n', np.uint8)).any()
        if not special:
            return data, starts, sizes
        texts = [data[at : at + size].tobytes().decode() for at, size in zip(starts, sizes, strict=True)]
        return each(lambda k: _cell(texts[k]))(np.arange(len(ids)))

    return made


class Parquet:
    """The columns of the CSV report in Parquet, with time in seconds as a number. Needs pyarrow."""

    def __init__(self, file: str | BinaryIO) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise Refused(
                "a .parquet report needs pyarrow", hint="pip install 'netemu[parquet]', or write .csv or .jsonl"
            ) from None
        number = {"packet": pyarrow.int64(), "time": pyarrow.float64(), "rules_evaluated": pyarrow.int32()}
        small = {name: pyarrow.int32() for name in ("sport", "dport", "type", "code", "id")}
        text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        self.arrow = pyarrow
        self.schema = pyarrow.schema([(name, {**number, **small}.get(name, text)) for name in FLAT])
        self.writer = pyarrow.parquet.ParquetWriter(file, self.schema)

    def write(self, journeys: Journeys, rows: Rows) -> None:
        if not len(rows):
            return
        pkts, before, paths = journeys.pkts, journeys.before, journeys.paths
        shapes = Shape.sorted(journeys, rows)
        proto = before["proto"][rows]
        kind = pkts.icmp_type[rows]
        links: list[str | None] = [None, *journeys.links]
        no_ports, no_icmp = ~_IS_PORTED[proto], proto != ICMP
        rewrites = self.texts(shapes, flat_rewrites, len(rows))
        made: dict[str, Any] = {
            "packet": np.asarray(journeys.numbers)[rows],
            "time": pkts.time[rows] / 1e9,
            "in": self.named(pkts.arrived[rows] + 1, links),
            "proto": self.named(proto, [PROTOCOLS.get(k, str(k)) for k in range(256)]),
            "src": self.addresses(before["src"][rows]),
            "sport": self.numbers(before["sport"][rows], no_ports),
            "dst": self.addresses(before["dst"][rows]),
            "dport": self.numbers(before["dport"][rows], no_ports),
            "type": self.numbers(kind, no_icmp),
            "code": self.numbers(pkts.icmp_code[rows], no_icmp),
            "id": self.numbers(before["icmp_id"][rows], no_icmp | ~np.isin(kind, ICMP_QUERIES)),
            "fate": self.named(pkts.fate[rows], FATES),
            "reason": self.interned(pkts.reason[rows], paths.texts.__getitem__),
            "out": self.out(journeys, rows, shapes, links),
            "state": self.named(journeys.state[rows], [*STATES, *[None] * (256 - len(STATES))]),
            "service": self.interned(journeys.service[rows], paths.texts.__getitem__),
            "rules_evaluated": pkts.evaluated[rows],
            "rewrites": rewrites,
            "path": self.interned(pkts.path[rows], lambda k: " | ".join(map(str, paths.unfold(k)))),
        }
        arrays = [self.arrow.array(made[field.name]).cast(field.type) for field in self.schema]
        self.writer.write_table(self.arrow.Table.from_arrays(arrays, schema=self.schema))

    def numbers(self, values: NDArray[Any], absent: NDArray[np.bool_]) -> Any:
        return self.arrow.array(values.astype(np.int32), mask=absent)

    def named(self, ids: NDArray[Any], names: Sequence[str | None]) -> Any:
        """Each row's name, a dictionary column."""
        known = [k for k, name in enumerate(names) if name is not None]
        place = np.zeros(len(names), np.int32)
        place[known] = np.arange(len(known))
        absent = np.ones(len(names), bool)
        absent[known] = False
        indices = self.arrow.array(place.take(ids), mask=absent.take(ids))
        return self.arrow.DictionaryArray.from_arrays(indices, self.arrow.array([names[k] for k in known], "string"))

    def interned(self, ids: NDArray[Any], text: Callable[[int], str | None]) -> Any:
        """The text of each row's number, of which few are in use."""
        found = np.flatnonzero(np.bincount(ids))
        place = np.zeros(int(found[-1]) + 1, np.int32)
        place[found] = np.arange(len(found))
        return self.named(place.take(ids), [text(k) for k in found.tolist()])

    def addresses(self, ips: NDArray[Any]) -> Any:
        coded = self.arrow.array(ips).dictionary_encode()
        names = self.arrow.array([address(ip) for ip in coded.dictionary.to_pylist()], "string")
        return self.arrow.DictionaryArray.from_arrays(coded.indices, names)

    def texts(self, shapes: list[tuple[Shape, Rows]], tell: Callable[[Lines, Shape], None], n: int) -> Any:
        """The text that `tell` makes of each row, absent where it makes none."""
        parts = []
        sizes = np.zeros(n, np.int64)
        for shape, places in shapes:
            lines = Lines(len(shape))
            tell(lines, shape)
            lines.end()
            sizes[places] = lines.sizes
            parts.append((lines, places))
        ends = np.concatenate([[0], np.cumsum(sizes)])
        buffers = [None, self.arrow.py_buffer(ends), self.arrow.py_buffer(joined(parts)[0])]
        whole = self.arrow.LargeStringArray.from_buffers(n, buffers[1], buffers[2])
        coded = whole.cast("string").dictionary_encode()
        return self.arrow.DictionaryArray.from_arrays(
            self.arrow.array(coded.indices.to_numpy(zero_copy_only=False), mask=sizes == 0), coded.dictionary
        )

    def out(self, journeys: Journeys, rows: Rows, shapes: list[tuple[Shape, Rows]], links: list[str | None]) -> Any:
        ids = (journeys.left[rows] + 1).astype(np.int32)
        names = list(links)
        for shape, places in shapes:
            if shape.odd:
                told = [" ".join(left) or None for left in shape.left()]
                ids[places] = len(names) + np.arange(len(told))
                names += told
        return self.interned(ids, names.__getitem__)

    def close(self) -> None:
        self.writer.close()


class Left:
    """What left the node, as a pcapng with one interface a link; each packet's comment is its path.

    Packets that left as one, as most do, are written in columns; those that were cut up, rebuilt or caused others, one
    by one.
    """

    def __init__(self, file: str | BinaryIO, node: Node) -> None:
        from netemu.capture import CaptureWriter

        paths = node.paths
        self.node = node
        self.writer = CaptureWriter(file, node.routing.names)
        self.steps = Pool(each(lambda k: f"{paths.steps[k]}\n".encode()))
        self.paths = Pool(chains(self.steps, paths.unrolled, b"\n"))

    def write(self, journeys: Journeys, rows: Rows) -> None:
        special = odd(journeys)
        rows = rows[special[rows] | (journeys.left[rows] >= 0)]
        for lo in range(0, len(rows), BLOCK // 4):
            self._write(journeys, rows[lo : lo + BLOCK // 4], special)
        self.steps.trim()
        self.paths.trim()

    def _write(self, journeys: Journeys, rows: Rows, special: NDArray[np.bool_]) -> None:
        from netemu.capture import LONGEST_COMMENT

        pkts = journeys.pkts
        self.paths.learn(pkts.path[rows])
        plain = ~special[rows] & pkts.simple(rows) & (self.paths.sizes[pkts.path[rows]] < LONGEST_COMMENT - 64)
        zero = self.node.epoch or 0  # back to the clock of the capture
        numbers = np.asarray(journeys.numbers)
        many, few = np.flatnonzero(plain), np.flatnonzero(~plain)
        blocks = []
        for row in rows[few].tolist():
            comment = "\n".join((f"packet {numbers[row]}", *map(str, journeys.paths.unfold(int(pkts.path[row])))))
            blocks.append(
                b"".join(
                    self.writer.block(link, zero + int(pkts.time[row]), packet, comment)
                    for link, packet in (journeys[row].out if special[row] else journeys.left_as(row))
                )
            )
        one_by_one = Lines(len(few))
        one_by_one.put(Texts.of(blocks), np.arange(len(few)))

        some = rows[many]
        remarks = Lines(len(some))
        remarks.add(b"packet ")
        columns.serial_numbers(remarks, numbers[some])
        remarks.add(b"\n")
        remarks.put(self.paths, pkts.path[some])
        remarks.end()
        sizes = pkts.sizes(some)
        before, behind, tail = self.writer.blocks(
            journeys.left[some], np.maximum(pkts.time[some] + zero, 0), sizes, remarks.sizes
        )
        lines = Lines(len(some))
        lines.cells(before)
        lines.copy(pkts.data, pkts.at[some], sizes)
        lines.put(FILL, -sizes & 3)
        lines.cells(behind)
        lines.extend(remarks)
        lines.put(FILL, -remarks.sizes & 3)
        lines.cells(tail)
        out, starts, _ = joined([(lines, many), (one_by_one, few)])
        pkts.lay(some, out, starts[many] + before.dtype.itemsize)
        self.writer.put(out)

    def close(self) -> None:
        self.writer.close()


FILL = Texts.of([bytes(k) for k in range(4)])


def open_report(path: str) -> Report:
    """The report that a file name asks for: .jsonl, .csv, .parquet, or `-` for JSON lines on standard output."""
    kind = Path(path).suffix
    if path == "-":
        return JsonLines(sys.stdout.buffer)
    if kind == ".parquet":
        return Parquet(path)
    if kind not in (".jsonl", ".json", ".ndjson", ".csv"):
        raise Refused(
            f"`{path}`: no report is called `{kind}`", hint="netemu writes .jsonl, .csv and .parquet; `-` is JSON lines"
        )
    file = open(path, "wb")  # noqa: SIM115 - closed with the report
    return _Closing(Csv(file) if kind == ".csv" else JsonLines(file), file)


class _Closing:
    """A report that owns its file."""

    def __init__(self, report: Report, file: IO[Any]) -> None:
        self.report, self.file = report, file

    def write(self, journeys: Journeys, rows: Rows) -> None:
        self.report.write(journeys, rows)

    def close(self) -> None:
        self.report.close()
        self.file.close()


# ---- for people ----------------------------------------------------------------------------------------------------

STYLES = {
    "forwarded": "32",
    "delivered": "36",
    "rejected": "33",
    "dropped": "31",
    "held": "35",
    "dim": "2",
    "bold": "1",
}
COMMENT = re.compile(r'--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
TRANSLATORS = re.compile(r"-j (DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP)\b")


@dataclass(frozen=True)
class Screen:
    """Where people read: how wide (None: as wide as need be) and in colour or not."""

    file: TextIO
    width: int | None = None
    colour: bool = False

    @classmethod
    def of(cls, file: TextIO, color: str = "auto") -> Screen:
        """The screen behind `file`, by habit: --color first, then NO_COLOR, FORCE_COLOR, TERM=dumb, and a terminal."""
        terminal = file.isatty()
        env = os.environ
        if color == "auto":
            forced = any(env.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE"))
            colour = not env.get("NO_COLOR") and (forced or (terminal and env.get("TERM") != "dumb"))
        else:
            colour = color == "always"
        asked = env.get("COLUMNS", "").isdigit()
        width = max(40, shutil.get_terminal_size((100, 24)).columns) if terminal or asked else None
        return cls(file, width, colour)

    def paint(self, style: str, text: str) -> str:
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self.colour and text else text

    def crop(self, text: str, room: int | None) -> str:
        """`text` in `room` columns."""
        return text if room is None or len(text) <= room else text[: max(room - 1, 0)] + "…"

    def console(self) -> Console:
        """rich, set the same way. Piped text is laid out for 160 columns: rich wants to know."""
        from rich.console import Console

        return Console(
            file=self.file,
            width=self.width or 160,
            force_terminal=self.colour,
            color_system="standard" if self.colour else None,
            highlight=False,
            emoji=False,
            legacy_windows=False,
        )


class Table:
    """A line a packet where there is room for it, else two: what came, and what became of it."""

    HEAD = ("packet", "time", "in", "what came", "state", "fate", "out", "what became of it", "why")

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.widths: list[int] | None = None
        self.why: dict[tuple[int, int, int], str] = {}

    def write(self, journeys: Journeys, rows: Rows) -> None:
        if not len(rows):
            return
        f = Facts(journeys, rows)
        cells = [self._cells(f, i) for i in range(len(f))]
        if self.widths is None:
            self._begin(cells)
        assert self.widths is not None
        lines = [self._line(c) for c in cells]
        self.screen.file.write("".join(lines))

    def _begin(self, cells: list[list[str]]) -> None:
        self.widths = [max(len(h), *(len(c[k]) for c in cells[:2000])) for k, h in enumerate(self.HEAD)]
        usual = (0, 0, 0, 40, 11, 9, 0, 0, 0)
        self.widths = [max(pair) for pair in zip(self.widths, usual, strict=True)]
        room = self.screen.width
        self.wide = room is None or sum(self.widths[:8]) + 8 * 2 + 10 <= room
        w = self.widths
        if self.wide:
            head = "  ".join(
                f"{h:>{n}}" if k < 2 else f"{h:<{n}}" for k, (h, n) in enumerate(zip(self.HEAD, w, strict=True))
            )
            self.screen.file.write(self.screen.paint("bold", self.screen.crop(head.rstrip(), room)) + "\n")

    def _cells(self, f: Facts, i: int) -> list[str]:
        journeys = f.journeys
        rewrites = f.rewrites(i)
        became = []
        for end, port in (("dst", "dport"), ("src", "sport")):
            if end in rewrites or port in rewrites:
                colon = f":{f.now[port][i]}" if f.proto[i] in PORTED and f.first_fragment[i] else ""
                became.append(f"{end} {address(f.now[end][i])}{colon}")
        for name, (old, new) in rewrites.items():
            if name in ("src", "dst", "sport", "dport") or (name == "ttl" and new == int(old) - 1):
                continue  # one hop less is what every router does
            became.append(f"{name} {new:#x}" if name in ("mark", "tos") else f"{name} {new}")
        return [
            str(f.number[i]),
            f"{f.time[i] / 1e9:.6f}",
            journeys.links[f.arrived[i]] if f.arrived[i] >= 0 else "-",
            f.packet(i),
            STATES[f.state[i]] if f.state[i] < len(STATES) else "-",
            FATES[f.fate[i]],
            ",".join(dict.fromkeys(f.out(i))) or "-",
            ", ".join(became),
            self._why(f, i),
        ]

    def _why(self, f: Facts, i: int) -> str:
        key = (f.path[i], f.reason[i], f.service[i])
        text = self.why.get(key)
        if text is None:
            if len(self.why) > 1 << 16:
                self.why.clear()
            text = self.why[key] = why(f.paths, *key)
        return text

    def _line(self, cells: list[str]) -> str:
        s, w = self.screen, self.widths
        assert w is not None
        number, time, came_in, what, state, fate, out, became, because = cells
        if self.wide:
            lead = f"{number:>{w[0]}}  {time:>{w[1]}}  {came_in:<{w[2]}}  {what:<{w[3]}}  {state:<{w[4]}}  "
            rest = f"  {out:<{w[6]}}  {became:<{w[7]}}  {because}"
            used = len(lead) + max(w[5], len(fate))
            rest = s.crop(rest.rstrip(), None if s.width is None else s.width - used)
            return f"{lead}{s.paint(fate, f'{fate:<{w[5]}}')}{rest}".rstrip() + "\n"
        first = s.crop(f"{number:>{w[0]}}  {time:>{w[1]}}  {came_in:<{w[2]}}  {what}", s.width)
        indent = " " * (w[0] + 2)
        to = f" {out}" if out != "-" else ""
        facts = filter(None, (state if state != "-" else "", became, because.removeprefix("service ")))
        rest = to + "".join(f"  {fact}" for fact in facts)
        rest = s.crop(rest, None if s.width is None else s.width - len(indent) - 2 - len(fate))
        return f"{first}\n{indent}→ {s.paint(fate, fate)}{rest}\n"

    def close(self) -> None:
        self.screen.file.flush()


def why(paths: Paths, path: int, reason: int, service: int) -> str:
    """Why a packet came to its fate: the reason, the virtual service, or the rules that translated it."""
    if paths.texts[reason]:
        return str(paths.texts[reason])
    if paths.texts[service]:
        return f"service {paths.texts[service]}"
    nat = []
    for step in paths.unfold(path):
        found = TRANSLATORS.search(step.rule) if step.table == "nat" else None
        if found:
            comment = COMMENT.search(step.rule)
            nat.append(f"{step} {found[1]}" + (f" ({comment[1] or comment[2]})" if comment else ""))
    return ", ".join(nat)


# ---- the summary ---------------------------------------------------------------------------------------------------


class Counts:
    """How often each small number was seen: int64 counts that grow with the numbers."""

    def __init__(self) -> None:
        self.n: I64 = np.zeros(64, np.int64)

    def add(self, values: NDArray[Any], weights: NDArray[Any] | None = None) -> None:
        """Count `values`, each as often as its weight says; of a chunk, whose weights fit 53 bits together."""
        if not len(values):
            return
        top = int(values.max()) + 1
        self.reach(top)
        if weights is None and int(values.min()) == top - 1:  # all alike
            self.n[top - 1] += len(values)
        elif top <= 4 * len(values) + 1024:
            more = np.bincount(values, weights)
            self.n[:top] += more if weights is None else more.astype(np.int64)
        else:
            np.add.at(self.n, values, 1 if weights is None else weights)

    def reach(self, top: int) -> None:
        """Have room for numbers below `top`."""
        if top > len(self.n):
            self.n = np.concatenate([self.n, np.zeros(max(top, 2 * len(self.n)) - len(self.n), np.int64)])

    def seen(self) -> tuple[Rows, I64]:
        """The numbers that were seen, and how often each."""
        seen = np.flatnonzero(self.n)
        return seen, self.n[seen]

    def most(self) -> list[tuple[int, int]]:
        """(number, how often), the most frequent first, ties by number."""
        seen = np.flatnonzero(self.n)
        return [(int(k), int(self.n[k])) for k in seen[np.argsort(-self.n[seen], kind="stable")]]

    def __getitem__(self, k: int) -> int:
        return int(self.n[k]) if k < len(self.n) else 0


@dataclass
class Translated:
    """Packets that went to one address and port and were sent on elsewhere: how many, to which server how many."""

    packets: int
    bytes: int
    new: int
    served: bool  # by a virtual service
    servers: Counter[tuple[int, int]]


#: a step that IPVS writes: the service, how its server was found, the server
_IPVS_STEP = re.compile(r"ipvs: (?P<service>fwmark \d+|\S+) (?P<how>\w+) -> (?P<server>\S+)")


@dataclass
class Chosen:
    """Packets of one virtual service: of new connections that the scheduler or a template placed, of existing ones."""

    scheduler: str = ""
    new: int = 0
    template: int = 0
    existing: int = 0
    answers: int = 0
    servers: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.new + self.template + self.existing + self.answers

    def add(self, how: str, server: str, packets: int) -> None:
        """`how` is known, answer, persistent, or the scheduler's name."""
        if how == "known":
            self.existing += packets
        elif how == "answer":
            self.answers += packets
        else:
            self.servers[server] += packets
            if how == "persistent":
                self.template += packets
            else:
                self.scheduler = how
                self.new += packets


class Summary:
    """Counts of everything, fed chunk by chunk by columns. Memory: as many entries as distinct paths and services."""

    MOST_KEYS = 1 << 18  # pairs of a destination and its server that are counted one by one; the rest only together

    def __init__(self) -> None:
        self.packets = self.bytes = self.evaluated = self.most_evaluated = self.rewritten = self.own = 0
        self.first: int | None = None
        self.last = 0
        self.fates, self.reasons, self.path_counts = Counts(), Counts(), Counts()
        self.states, self.protos = Counts(), Counts()
        self.ways: Counter[tuple[int, int]] = Counter()
        # (destination, port, proto; server, port) of packets that were sent on elsewhere, and counts of each
        self._pairs = Keys(2)
        self._latest: NDArray[np.int32] = np.full(1 << 14, -1, np.int32)  # by connection, some bits of its number
        self._sent, self._sizes, self._news, self._served = Counts(), Counts(), Counts(), Counts()
        self.others = self.late = 0
        self.paths: Paths | None = None
        self.links: list[str] = []

    def add(self, journeys: Journeys) -> None:
        """Count one chunk. Cost: some thirty passes over columns, a hash look-up for what was sent on elsewhere."""
        pkts, before = journeys.pkts, journeys.before
        n = len(pkts)
        self.paths, self.links = journeys.paths, list(journeys.links)
        if not n:
            return
        self.packets += n
        self.late += journeys.late
        self.bytes += int(pkts.length.sum(dtype=np.int64))
        first = int(pkts.time.min())
        self.first = first if self.first is None else min(self.first, first)
        self.last = max(self.last, int(pkts.time.max()))
        self.fates.add(pkts.fate)
        self.protos.add(before["proto"])
        self.states.add(journeys.state)
        self.path_counts.add(pkts.path)
        if int(pkts.fate.max()) >= REJECTED:
            self.reasons.add(pkts.reason[pkts.fate >= REJECTED])
        self.evaluated += int(pkts.evaluated.sum(dtype=np.int64))
        self.most_evaluated = max(self.most_evaluated, int(pkts.evaluated.max()))
        self.own += int(np.count_nonzero(pkts.arrived < 0))
        width = len(self.links) + 1
        way = np.multiply(pkts.arrived, width, dtype=np.intp)
        way += journeys.left
        way += width + 1
        counts = np.bincount(way)
        for k in np.flatnonzero(counts).tolist():
            self.ways[(k // width - 1, k % width - 1)] += int(counts[k])
        turned = (pkts.dst != before["dst"]) | (pkts.dport != before["dport"])
        changed = turned | (pkts.src != before["src"]) | (pkts.sport != before["sport"])
        self.rewritten += int(np.count_nonzero(changed))
        # an answer, or an error about one, goes back to whom it was translated for: that is no service
        turned |= journeys.service != 0
        turned &= ~pkts.reply
        turned &= journeys.state != RELATED
        self._count_pairs(journeys, np.flatnonzero(turned))

    def _pairs_of(self, ct: NDArray[np.int32], was: NDArray[np.uint64], now: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Numbers of pairs, -1 where there is none yet: what a packet of the same connection had is tried first."""
        slot = ct & np.int32(len(self._latest) - 1)
        pair = self._latest.take(slot)
        other = self._pairs.column(0, pair) != was
        other |= self._pairs.column(1, pair) != now
        miss = np.flatnonzero(other | (pair < 0))
        if len(miss):
            words = was.take(miss), now.take(miss)
            few = len(self._pairs) < self.MOST_KEYS
            pair[miss] = found = self._pairs.add(words) if few else self._pairs.find(words)
            self._latest[slot.take(miss)] = found
        return pair

    def _count_pairs(self, journeys: Journeys, rows: Rows) -> None:
        if not len(rows):
            return
        pkts, before = journeys.pkts, journeys.before
        was = before["dst"].take(rows).astype(np.uint64) << np.uint64(24)
        was |= before["dport"].take(rows).astype(np.uint64) << np.uint64(8)
        was |= before["proto"].take(rows)
        now = pkts.dst.take(rows).astype(np.uint64) << np.uint64(16)
        now |= pkts.dport.take(rows)
        pair = self._pairs_of(pkts.ct.take(rows), was, now)
        known = np.flatnonzero(pair >= 0)
        if len(known) < len(rows):
            self.others += len(rows) - len(known)
            pair, rows = pair.take(known), rows.take(known)
        self._sent.add(pair)
        self._sizes.add(pair, pkts.length.take(rows))
        self._news.add(pair[journeys.state.take(rows) == NEW])
        self._served.add(pair[journeys.service.take(rows) != 0])

    # ---- what was touched, worked out once at the end ----

    def translated(self, most: int | None = None) -> dict[tuple[int, int, int], Translated]:
        """What packets to each (proto, address, port) became, those with the most packets first; and `most` of them."""
        n = len(self._pairs)
        for counts in (self._sent, self._sizes, self._news, self._served):
            counts.reach(n)
        sent, sizes, news, served = (c.n[:n] for c in (self._sent, self._sizes, self._news, self._served))
        keys, of = np.unique(self._pairs.column(0, np.arange(n)), return_inverse=True)
        total = np.bincount(of, sent, len(keys)).astype(np.int64)
        key_columns = (keys >> np.uint64(8) & np.uint64(0xFFFF), keys >> np.uint64(24), keys & np.uint64(0xFF))
        order = np.lexsort((*key_columns, -total))[:most]
        rank = np.full(len(keys), len(order))
        rank[order] = np.arange(len(order))
        pairs = np.flatnonzero(rank[of] < len(order))
        pairs = pairs[np.argsort(rank[of[pairs]], kind="stable")]
        ends = np.searchsorted(rank[of[pairs]], np.arange(len(order) + 1))
        out: dict[tuple[int, int, int], Translated] = {}
        for which, (lo, hi) in zip(order.tolist(), pairwise(ends.tolist()), strict=True):
            own = pairs[lo:hi]
            key = (int(keys[which]) & 0xFF, int(keys[which]) >> 24, int(keys[which]) >> 8 & 0xFFFF)
            servers = Counter({
                (now >> 16, now & 0xFFFF): count
                for now, count in zip(self._pairs.column(1, own).tolist(), sent[own].tolist(), strict=True)
                if (now >> 16, now & 0xFFFF) != key[1:]
            })  # fmt: skip
            packets, size, new = (int(column[own].sum()) for column in (sent, sizes, news))
            out[key] = Translated(packets, size, new, bool(served[own].any()), servers)
        return out

    @property
    def destinations(self) -> int:
        """How many addresses and ports were sent on elsewhere."""
        return len(np.unique(self._pairs.column(0, np.arange(len(self._pairs)))))

    def _steps(self) -> tuple[list[Step], Rows, Rows, I64]:
        """(distinct steps; which of them, and on which path, each step of each distinct path; packets on each path)."""
        paths = self.paths or Paths()
        seen, counts = self.path_counts.seen()
        numbers, sizes = paths.unrolled(seen)
        distinct = np.flatnonzero(np.bincount(numbers)) if len(numbers) else numbers
        place = np.zeros(int(distinct[-1]) + 1 if len(distinct) else 0, np.intp)
        place[distinct] = np.arange(len(distinct))
        steps = [paths.steps[k] for k in distinct.tolist()]
        return steps, place[numbers], np.repeat(np.arange(len(seen)), sizes), counts

    def choices(self) -> dict[str, Chosen]:
        """By virtual service: how its packets came to their servers. Cost: the distinct paths."""
        out: dict[str, Chosen] = {}
        steps, which, path, counts = self._steps()
        packets = np.bincount(which, counts[path], len(steps)).astype(np.int64).tolist()
        for step, count in zip(steps, packets, strict=True):
            found = _IPVS_STEP.fullmatch(step.text) if step.table is None else None
            if found:
                out.setdefault(found["service"], Chosen()).add(found["how"], found["server"], count)
        return out

    def touched(self) -> tuple[Counter[str], Counter[str]]:
        """How many packets took a decision in each chain (or family of chains), and through a rule that names each set.

        Cost: the steps of each distinct path, in columns.
        """
        steps, which, path, counts = self._steps()
        chains = [":".join(s.text.split(":")[:2]) if s.table else "" for s in steps]
        family = families(filter(None, chains))
        sets = [list(dict.fromkeys(SET_NAMES.findall(s.rule))) if s.table and s.rule else [] for s in steps]

        def packets(names: list[list[str]]) -> Counter[str]:
            """Packets by name, each packet once, given the names that belong to each step."""
            numbers = {name: k for k, name in enumerate(dict.fromkeys(name for some in names for name in some))}
            sizes = np.array(list(map(len, names)), np.int64)
            flat = np.array([numbers[name] for some in names for name in some], np.int64)
            named = sizes[which]
            starts = (np.cumsum(sizes) - sizes)[which]
            within = np.arange(int(named.sum())) - np.repeat(np.cumsum(named) - named, named)
            pairs = np.unique(flat[np.repeat(starts, named) + within] * len(counts) + np.repeat(path, named))
            sums = np.bincount(pairs // max(len(counts), 1), counts[pairs % max(len(counts), 1)], len(numbers))
            return Counter(dict(zip(numbers, sums.astype(np.int64).tolist(), strict=True)))

        return packets([[family[chain]] if chain else [] for chain in chains]), packets(sets)

    def show(self, screen: Screen, most: int = 10) -> None:
        """Print it, `most` rows of each list."""
        from rich.table import Table as Grid
        from rich.text import Text

        console = screen.console()
        printed = io.StringIO()
        console.file = printed
        paths = self.paths or Paths()

        def grid(*columns: str, title: str) -> Grid:
            g = Grid(
                title=title,
                title_justify="left",
                title_style="bold",
                box=None,
                pad_edge=False,
                header_style="dim",
                padding=(0, 2, 0, 0),
            )
            for name in columns:
                right = name in ("packets", "share", "new", "template", "existing", "answers", "bytes")
                g.add_column(
                    name,
                    justify="right" if right else "left",
                    no_wrap=name != "path",
                    overflow="ellipsis" if name != "path" else "fold",
                )
            return g

        def put(g: Grid, left_out: int = 0) -> None:
            if g.row_count:
                console.print()
                console.print(g)
                if left_out > 0:
                    console.print(f"… and {left_out:,} more", style="dim")

        span = (self.last - (self.first or 0)) / 1e9 if self.packets else 0.0
        mean = self.evaluated / self.packets if self.packets else 0.0
        console.print(
            Text.assemble(
                (f"{self.packets:,} packets", "bold"), f", {self.bytes:,} bytes, {span:,.3f} s of traffic; "
                f"{self.rewritten:,} rewritten; "
                f"{mean:.1f} rules looked at for a packet, {self.most_evaluated:,} at most",
            ),
            soft_wrap=screen.width is None,
        )  # fmt: skip
        g = grid("fate", "packets", "share", "", title="What became of them")
        bar = 24
        for fate, count in self.fates.most():
            name, share = FATES[fate], count / self.packets
            g.add_row(
                Text(name, _RICH[name]),
                f"{count:,}",
                f"{share:.1%}",
                Text("█" * max(1, round(share * bar)), _RICH[name]),
            )
        put(g)

        g = grid("packets", "reason", title="Why packets went no further")
        reasons = _ranked((paths.texts[text] or "no reason given", count) for text, count in self.reasons.most())
        for reason, count in reasons[:most]:
            g.add_row(f"{count:,}", Text(reason))
        put(g, len(reasons) - most)

        g = grid("from", "to", "packets", title="Ways through the node")
        ways = _ranked(self.ways.items())
        for (came, went), count in ways[:most]:
            g.add_row(self._link(came, "the node itself"), self._link(went, "-"), f"{count:,}")
        put(g, len(ways) - most)

        g = grid("proto", "packets", "connection", "packets", title="Protocols and connection states")
        protos = [(PROTOCOLS.get(p, str(p)), f"{c:,}") for p, c in self.protos.most()]
        states = [(STATES[s] if s < len(STATES) else "not looked at", f"{c:,}") for s, c in self.states.most()]
        for k in range(max(len(protos), len(states))):
            g.add_row(*(protos[k] if k < len(protos) else ("", "")), *(states[k] if k < len(states) else ("", "")))
        put(g)

        g = grid("service", "packets", "new", "bytes", "sent on to", title="Services and translated destinations")
        targets = self.translated(most)
        for key, t in targets.items():
            servers = _ranked(t.servers.items())
            to = ", ".join(f"{_end(key[0], *server)} {count:,}" for server, count in servers[:4])
            more = f", … {len(servers) - 4} more" if len(servers) > 4 else ""
            mark = "" if t.served else " (NAT)"
            g.add_row(
                f"{_end(key[0], *key[1:])}/{PROTOCOLS.get(key[0], key[0])}{mark}",
                f"{t.packets:,}",
                f"{t.new:,}",
                f"{t.bytes:,}",
                f"{to}{more}",
            )
        put(g, self.destinations - len(targets))
        if self.others:
            console.print(
                f"{self.others:,} more packets went to servers beyond the first {self.MOST_KEYS:,}", style="dim"
            )

        columns = ("service", "scheduler", "new", "template", "existing", "answers", "chosen")
        g = grid(*columns, title="Servers chosen (IPVS)")
        chosen = sorted(self.choices().items(), key=lambda kv: (-kv[1].total, kv[0]))
        for name, c in chosen[:most]:
            ranked = _ranked(c.servers.items())
            to = ", ".join(f"{server} {count:,}" for server, count in ranked[:4])
            more = f", … {len(ranked) - 4} more" if len(ranked) > 4 else ""
            numbers = (f"{n:,}" for n in (c.new, c.template, c.existing, c.answers))
            g.add_row(name, c.scheduler or "-", *numbers, f"{to}{more}")
        put(g, len(chosen) - most)

        chains, sets = self.touched()
        g = grid("packets", "path", title="Paths")
        counted = self.path_counts.most()
        told: Counter[str] = Counter()
        for path, count in counted[:MOST_PATHS]:  # paths that differ only in what they fell through are told as one
            told[short_path(paths.unfold(path)) or "(nothing was asked)"] += count
        for text, count in _ranked(told.items())[:most]:
            g.add_row(f"{count:,}", Text(text))
        put(g, len(told) - most + max(len(counted) - MOST_PATHS, 0))
        if chains:
            self._names(console, "Chains that decided, and packets", chains)
        if sets:
            self._names(console, "Sets that rules matched, and packets", sets)

        screen.file.write("".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines()))

    def tally(self, screen: Screen) -> None:
        """All of it in one line, for the end of a table."""
        fates = ", ".join(f"{count:,} {screen.paint(FATES[fate], FATES[fate])}" for fate, count in self.fates.most())
        screen.file.write(f"{_many(self.packets, 'packet')}{': ' if fates else ''}{fates}\n")

    def _link(self, k: int, none: str) -> str:
        return self.links[k] if 0 <= k < len(self.links) else none

    def _names(self, console: Console, title: str, names: Counter[str]) -> None:
        console.print()
        console.print(title, style="bold")
        told = sorted(names.items())
        if len(told) > MOST_NAMES:
            told = sorted(_ranked(told)[:MOST_NAMES])
        console.print("  ".join(f"{name} {count:,}".replace(" ", "\u00a0") for name, count in told))
        if len(names) > len(told):
            console.print(f"… and {len(names) - len(told):,} more", style="dim")


_RICH = {
    "travelling": "",
    "forwarded": "green",
    "delivered": "cyan",
    "rejected": "yellow",
    "dropped": "red",
    "held": "magenta",
}
MOST_PATHS = 2_000  # distinct paths that a summary puts into words
MOST_NAMES = 60  # chains, and sets, that it names
FAMILY = 8  # chains whose names differ only behind the last `-` are told as one, if there are more than so many
JUMP = re.compile(r" -[jg] (\S+)$")
SET_NAMES = re.compile(r"--(?:match-set|add-set|del-set|map-set) (\S+)")


def _ranked(counts: Iterable[tuple[K, int]]) -> list[tuple[K, int]]:
    """The most frequent first; ties in the order of what is counted, so that no accident of the replay shows."""
    return sorted(counts, key=lambda item: (-item[1], item[0]))


def families(names: Iterable[str]) -> dict[str, str]:
    """What each chain is told as: many of one kind, such as kube-proxy's for each service, are one family.

    >>> families(["nat:INPUT", *(f"nat:KUBE-SVC-{k}" for k in range(9))])["nat:KUBE-SVC-3"]
    'nat:KUBE-SVC-… (9 chains)'
    """
    stems = {name: name.rpartition("-")[0] or name for name in dict.fromkeys(names)}
    sizes = Counter(stems.values())
    return {
        name: f"{stem}-… ({sizes[stem]:,} chains)" if sizes[stem] > FAMILY else name for name, stem in stems.items()
    }


def _end(proto: int, ip: int, port: int) -> str:
    return f"{address(ip)}:{port}" if proto in PORTED else address(ip)


def short_path(steps: Iterable[Step]) -> str:
    """A path without what led to nothing: policies it fell through, jumps to chains that are named anyway, returns."""
    steps = tuple(steps)
    chains = {s.text.split(":")[1] for s in steps if s.table}
    kept = []
    for k, step in enumerate(steps):
        last = k == len(steps) - 1
        if step.table and not last:
            jump = JUMP.search(step.rule)
            if step.text.split(":")[2:3] != ["rule"] or (jump and (jump[1] in chains or jump[1] == "RETURN")):
                continue
        kept.append(step.text)
    return " · ".join(kept)


# ---- one packet, step by step --------------------------------------------------------------------------------------


def explain(journeys: Journeys, row: int, screen: Screen, title: str = "", most: int | None = 12) -> None:
    """Every step of one packet: the rules that it met and why others let it pass, what was rewritten, and the result;
    then the same of the packets that it caused. `most`: rules told of each stretch that did not match (None: all).
    """
    f = Facts(journeys, np.array([row]))
    came = f"came in on {journeys.links[f.arrived[0]]}" if f.arrived[0] >= 0 else "sent by the node itself"
    facts = [came, f"at {seconds(f.time[0])} s"]
    if f.state[0] < len(STATES):
        facts.append(f"connection state {STATES[f.state[0]]}")
    if f.paths.texts[f.service[0]]:
        facts.append(f"service {f.paths.texts[f.service[0]]}")
    facts.append(f"{_many(f.evaluated[0], 'rule')} looked at")
    screen.file.write(f"{screen.paint('bold', f'{title}{f.packet(0)}')}\n")
    screen.file.write("".join(f"{line}\n" for line in _folded(", ".join(facts), (screen.width or 200) - 1)))
    _explain(journeys, row, screen, 0, most)
    screen.file.flush()


def _explain(journeys: Journeys, row: int, screen: Screen, depth: int, most: int | None) -> None:
    pad = "    " * depth
    room = None if screen.width is None else screen.width - len(pad)
    journey = journeys[row]

    def say(text: str, style: str = "") -> None:
        shown = screen.crop(text, room)
        screen.file.write(f"{pad}{screen.paint(style, shown) if style else shown}\n")

    steps = list(journey.steps)
    changes = _placed(steps, journey.rewrites)
    passed = Passed(journeys, row)
    choice = journeys.trip.choices.get(row)
    wide = min(max((len(s.text) + 2 * _depth(s) for s in steps if s.rule), default=0), 44) + 4
    for k, step in enumerate(steps):
        indent = "  " * (_depth(step) + 1)
        skipped = passed.before(step)
        for number, condition in skipped[:most]:
            say(f"{indent}{step.text.rsplit(':', 2)[0]}:rule:{number} no: {condition()}", "dim")
        if most is not None and len(skipped) > most:
            say(f"{indent}… and {len(skipped) - most:,} more that do not match", "dim")
        text = f"{indent}{step.text}"
        if step.rule and (room is None or wide + len(step.rule) <= room):
            text = f"{text:<{wide}}"
            screen.file.write(f"{pad}{text}{screen.paint('bold', step.rule)}\n")
        else:
            say(text)
            for line in _folded(step.rule, (room or 0) - len(indent) - 6) if step.rule else ():
                say(f"{indent}      {line}", "bold")
        if choice is not None and step.text.startswith("ipvs: "):
            for line in _chosen(choice):
                say(f"{indent}      {line}", "dim")
            choice = None
        for r in changes.get(k, ()):
            beside = r.step != step and step.table != "nat"  # the connection's or the route's doing, not this rule's
            say(f"  {r.step.text}, {_change(r)}" if beside else f"{indent}      {_change(r)}", "rejected")
            passed.apply(r)
    left = journeys.left_as(row)
    links = dict.fromkeys(link for link, _ in left)
    tail = f" on {', '.join(links)}" if links else ""
    because = f": {journey.reason}" if journey.reason else ""
    fate = screen.paint(journey.fate, journey.fate)
    screen.file.write(f"{pad}  {fate}{screen.crop(tail + because, room and room - 2 - len(journey.fate))}\n")
    for link, packet in left:
        say(f"    {link}: {bytes_text(packet)}")
    for part, child in journeys.caused_by(row):
        screen.file.write("\n")
        screen.file.write(f"{pad}    {screen.paint('bold', 'because of it the node sent:')}\n")
        _explain(part, child, screen, depth + 1, most)


CHOICES = {
    "new": "a new connection: the scheduler chose",
    "template": "a new connection of a known client",
    "existing": "an existing connection",
    "none": "a new connection that nobody takes",
}


def _chosen(choice: Choice, most: int = 12) -> Iterable[str]:
    """How IPVS found the server: what it knew, why, and the servers that were there to choose from."""
    yield f"{CHOICES[choice.kind]} ({choice.scheduler}): {choice.why}"
    told = [c for k, c in enumerate(choice.candidates) if k < most or c.chosen]
    wide = max((len(c.server) for c in told), default=0)
    for c in told:
        mark = "->" if c.chosen else "  "
        no = ", full (threshold)" if c.full else ", takes no new ones" if c.weight == 0 else ""
        yield f"{mark} {c.server:<{wide}}  weight {c.weight}, {c.active} active, {c.inactive} inactive{no}"
    if len(told) < len(choice.candidates):
        yield f"   … and {len(choice.candidates) - len(told):,} more servers"


class Passed:
    """Which rules a packet passed by between two steps of its path, the first condition that each found wanting, and
    what it found.

    The packet is put together again as it was at each step. Conditions that remember (limit, recent, ...) are not asked
    a second time: where nothing else says no, it is they.
    """

    def __init__(self, journeys: Journeys, row: int) -> None:
        from netemu.trip import Trip

        node = journeys.trip.node
        self.tables, self.names = node.tables.tables, ["", *journeys.links]
        self.pkts = journeys.pkts.take(np.array([row]))
        self.trip = Trip(node, self.pkts)
        self.way = (int(self.pkts.arrived[0]), max(int(journeys.left[row]), int(self.pkts.link_out[0])))
        for name, column in journeys.before.items():
            getattr(self.pkts, name)[0] = column[row]
        self.stack: list[tuple[str, str, int]] = []  # (table, chain, rules done)

    def apply(self, r: Rewrite) -> None:
        """The packet was rewritten."""
        from netemu.flows import address as number

        name = "icmp_id" if r.field == "id" else r.field
        if name in REWRITABLE:
            getattr(self.pkts, name)[0] = number(r.new) if isinstance(r.new, str) else r.new

    def before(self, step: Step) -> list[tuple[int, Callable[[], str]]]:
        """(rule number, what says why it did not match) for each rule passed by on the way to a step."""
        if not step.table:
            return []
        _, name, kind, last = step.text.split(":")[:4]
        chain = self.tables[step.table].chains.get(name)
        if chain is None:
            return []
        if chain.policy is not None:
            self.trip.hook = name
            came, went = self.way
            self.pkts.link_in[0] = came if name in ("PREROUTING", "INPUT", "FORWARD") else -1
            self.pkts.link_out[0] = went if name in ("FORWARD", "OUTPUT", "POSTROUTING") else -1
        number = int(last)
        known = [
            k
            for k, (table, other, done) in enumerate(self.stack)
            if (table, other) == (step.table, name) and done < number
        ]
        done = 0
        if known:
            done = self.stack[known[-1]][2]
            del self.stack[known[-1] :]
        elif chain.policy is not None:
            self.stack.clear()
        if kind == "rule":
            self.stack.append((step.table, name, number))
        return [(k + 1, partial(self._why, chain.rules[k])) for k in range(done, min(number - 1, len(chain.rules)))]

    def _why(self, rule: Rule) -> str:
        from netemu import values

        p, texts = self.pkts, rule.criteria()
        asked = len(texts) - len(rule.matches)
        link_in, link_out = (self.names[int(k) + 1] for k in (p.link_in[0], p.link_out[0]))
        answers = [
            ((int(a[0]) & net[1] == net[0]) != net[2], address(int(a[0])))
            for a, net in ((p.src, rule.src), (p.dst, rule.dst))
            if net and any(net)
        ]
        answers += [
            ((name.startswith(wish[0][:-1]) if wish[0].endswith("+") else name == wish[0]) != wish[1], name or "none")
            for name, wish in ((link_in, rule.link_in), (link_out, rule.link_out))
            if wish and wish[0] != "+"
        ]
        if rule.proto:
            proto = int(p.proto[0])
            answers.append(((proto == rule.proto[0]) != rule.proto[1], values.protocol(proto)))
        if rule.fragment is not None:
            later = bool(p.frag[0] & OFFSET_MASK)
            answers.append((later == rule.fragment, "a later fragment" if later else "whole, or a first fragment"))
        for text, (yes, value) in zip(texts[:asked], answers, strict=False):
            if not yes:
                return f"{text} (it is {value})"
        remembers = ""
        for match, text in sorted(zip(rule.matches, texts[asked:], strict=True), key=lambda m: m[0].unmodelled):
            if not values.steady(match, self.trip.node):
                why = values.at_the_time(match, self.trip, 0)
                remembers = remembers or text + f" ({why})" * bool(why)
            elif not match.mask(self.trip, np.arange(1))[0]:
                value = values.found(match, self.trip, 0)
                return text + f" ({value})" * bool(value)
        return remembers or rule.text


def _placed(steps: list[Step], rewrites: Iterable[Rewrite]) -> dict[int, list[Rewrite]]:
    """Each rewrite behind the step that it belongs to: step index -> rewrites.

    A translation is the work of the connection and no step of its own: the destination changes where PREROUTING and
    OUTPUT end, the source where POSTROUTING and INPUT do.
    """
    out: dict[int, list[Rewrite]] = {}
    at = 0

    def first(wanted: Callable[[Step], bool], otherwise: int) -> int:
        return next((k for k in range(at, len(steps)) if wanted(steps[k])), otherwise)

    def behind_nat(hooks: tuple[str, ...], before: tuple[str, ...]) -> int:
        begin = first(lambda s: s.table == "nat" and s.text.split(":")[1] in hooks, -1)
        if begin < 0:
            return max(first(lambda s: s.text.startswith(before), len(steps)) - 1, at)
        end = begin
        while end + 1 < len(steps) and steps[end + 1].table == "nat":
            end += 1
        return end

    for r in rewrites:
        own = first(lambda s, r=r: s == r.step, -1)  # type: ignore[misc]
        field = r.field.rpartition(".")[2]
        if own >= 0:
            at = own
        elif r.field == "ttl":
            at = first(lambda s: s.text.startswith("routing:"), at)
        elif field == r.field and field in ("dst", "dport"):
            at = behind_nat(("PREROUTING", "OUTPUT"), ("routing:", "local:", "out:"))
        elif field == r.field:
            at = behind_nat(("POSTROUTING", "INPUT"), ("local:", "out:"))
        out.setdefault(at, []).append(r)
    return out


def _depth(step: Step) -> int:
    """How far a step is set in: rules of the node's own chains stand below the built-in ones."""
    if not step.table:
        return 0
    return 1 if step.text.split(":")[1] in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING") else 2


def _change(r: Rewrite) -> str:
    old, new = (_worded(r.field, v) for v in (r.old, r.new))
    if r.field in ("mark", "tos") and isinstance(old, int) and isinstance(new, int):
        return f"{r.field} {old:#x} → {new:#x}"
    return f"{r.field} {old} → {new}"


def _folded(text: str, room: int) -> list[str]:
    """`text` in lines of at most `room` columns, cut at spaces where it can be."""
    import textwrap

    return textwrap.wrap(text, max(room, 20), break_long_words=False, break_on_hyphens=False)


def bytes_text(packet: bytes) -> str:
    """A packet given as bytes, in a line.

    >>> bytes_text(bytes.fromhex("4500001c0000000040010000" "0a000005" "0a600001" "0800000000070001"))
    'icmp 10.0.0.5 > 10.96.0.1 echo id 7, ttl 64, 28 bytes'
    """
    p = Packets.from_bytes([packet])
    line = packet_text(
        int(p.proto[0]), int(p.src[0]), int(p.sport[0]), int(p.dst[0]), int(p.dport[0]), flags=int(p.flags[0]),
        icmp=(int(p.icmp_type[0]), int(p.icmp_code[0]), int(p.icmp_id[0])), fragment=bool(p.frag[0] & OFFSET_MASK),
    )  # fmt: skip
    tos = f", tos {int(p.tos[0]):#x}" if p.tos[0] else ""
    return f"{line}, ttl {int(p.ttl[0])}{tos}, {len(packet)} bytes"


GRAMMAR = "write `tcp 10.0.0.5:4000 > 10.96.0.1:443 S`, `udp A:P > B:P`, or `icmp A > B echo id 7`"
FLAG_LETTERS = dict(zip("FSRPAUEW.", (1, 2, 4, 8, 16, 32, 64, 128, 16), strict=True))


def read_packet(text: str) -> bytes:
    """The packet that a line describes, checksums right. Raises Refused.

    >>> bytes_text(read_packet("tcp 10.0.0.5:4000 > 10.96.0.1:443 S ttl 3"))
    'tcp 10.0.0.5:4000 > 10.96.0.1:443 S, ttl 3, 40 bytes'
    >>> bytes_text(read_packet("icmp 10.0.0.5 > 10.0.0.1 echo-reply id 7 len 60"))
    'icmp 10.0.0.5 > 10.0.0.1 echo-reply id 7, ttl 64, 60 bytes'
    """
    import struct

    from netemu.flows import address as number
    from netemu.packets import UDP, checksum

    def no(what: str) -> Refused:
        return Refused(what, text=text, hint=GRAMMAR)

    words = text.replace(">", " > ").replace("→", " > ").split()
    if len(words) < 4 or words[2] != ">":
        raise no("this is no packet")
    name, source, _, target, *rest = words
    proto = {"tcp": TCP, "udp": UDP, "icmp": ICMP}.get(name.lower())
    if proto is None:
        raise no(f"protocol `{name}` cannot be written here: tcp, udp or icmp")

    def end(word: str, port: int) -> tuple[int, int]:
        host, colon, given = word.partition(":")
        if colon and (proto == ICMP or not given.isdigit() or int(given) > 65535):
            raise no(f"`{word}` is no end of {name}")
        return number(host), int(given) if colon else port

    (src, sport), (dst, dport) = end(source, 40000), end(target, 80)
    options = {"ttl": 64, "tos": 0, "len": 0, "id": 1, "seq": 1, "ack": 0, "win": 64240, "code": 0}
    most = {
        "ttl": 255,
        "tos": 255,
        "len": 65535,
        "id": 65535,
        "seq": 2**32 - 1,
        "ack": 2**32 - 1,
        "win": 65535,
        "code": 255,
    }
    flags, kind = 0, 8
    kinds = {v: k for k, v in ICMP_NAMES.items()}
    words_left = iter(rest)
    for word in words_left:
        if word in options:
            value = next(words_left, "")
            try:
                options[word] = int(value, 0)
            except ValueError:
                raise no(f"`{word} {value}`: a number belongs there") from None
            if not 0 <= options[word] <= most[word]:
                raise no(f"`{word} {value}`: 0 to {most[word]}")
        elif proto == ICMP and word in kinds:
            kind = kinds[word]
        elif proto == ICMP and word == "type":
            value = next(words_left, "")
            if not value.isdigit() or int(value) > 255:
                raise no(f"`type {value}`: 0 to 255")
            kind = int(value)
        elif proto == TCP and word != "-" and all(c in FLAG_LETTERS for c in word.strip("[]")):
            for c in word.strip("[]"):
                flags |= FLAG_LETTERS[c]
        else:
            raise no(f"`{word}` is not understood")
    if proto == TCP:
        if not flags:
            flags = 2
        seq, ack = options["seq"], options["ack"]
        body = bytearray(struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, flags, options["win"], 0, 0))
    elif proto == UDP:
        body = bytearray(struct.pack("!HHHH", sport, dport, 8, 0))
    else:
        body = bytearray(struct.pack("!BBHHH", kind, options["code"], 0, options["id"], options["seq"] & 0xFFFF))
    least = 20 + len(body)
    total = options["len"] or least
    if total < least:
        raise no(f"len {total} is too short: such a packet has {least} bytes at least")
    body += bytes(total - least)
    place = {TCP: 16, UDP: 6, ICMP: 2}[proto]
    if proto == UDP:
        struct.pack_into("!H", body, 4, len(body))
    pseudo = b"" if proto == ICMP else struct.pack("!IIBBH", src, dst, 0, proto, len(body))
    check = checksum(pseudo + bytes(body))
    struct.pack_into("!H", body, place, check or (0xFFFF if proto == UDP else 0))
    head = bytearray(
        struct.pack("!BBHHHBBHII", 0x45, options["tos"], total, 0, 0x4000, options["ttl"], proto, 0, src, dst)
    )
    struct.pack_into("!H", head, 10, checksum(bytes(head)))
    return bytes(head + body)


# ---- what a model holds --------------------------------------------------------------------------------------------


def describe(node: Node, name: str, screen: Screen) -> None:
    """What was loaded, in words and counts. Reads the node's own dumps, so it cannot say other than they do."""
    say = screen.file.write
    say(f"{screen.paint('bold', name)}, as Linux {node.kernel} would run it\n")

    def part(title: str, lines: Iterable[str]) -> None:
        lines = list(lines)
        if lines:
            say(f"\n{screen.paint('bold', title)}\n")
            for line in lines:
                say(screen.crop(f"  {line}", screen.width) + "\n")

    part("links", _links(node))
    part("routes", _routes(node))
    rules = [str(rule) for rule in node.routing.rules]
    part("policy rules", [rule.replace("\t", " ") for rule in rules] if node.routing.split else [])
    part("rules", _rules(node.dump("iptables-save")))
    part("sets", _sets(node.dump("ipset-save")))
    part("virtual services", _services(node.dump("ipvsadm-save")))
    connections = len(node.dump("conntrack").splitlines())
    part("connections", [_many(connections, "connection")] if connections else [])
    part("sysctls that are not Linux's defaults", _sysctls(node))
    part("remarks", node.model.notes)
    screen.file.flush()


def _many(n: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "es" if what.endswith(("s", "x")) else what + "s"
    return f"{n:,} {what if n == 1 else plural}"


def _links(node: Node) -> Iterable[str]:
    links = node.routing.links
    width = max(len(link.name) for link in links)
    for link in links:
        addresses = [f"{address(a.ip)}/{a.plen}" for a in link.addresses]
        shown = ", ".join(addresses[:6]) + (f", … {len(addresses) - 6} more" if len(addresses) > 6 else "")
        facts = [f"mtu {link.mtu}", link.kind or "", "" if link.up else "down"]
        yield f"{link.name:<{width}}  {', '.join(filter(None, facts))}  {shown or 'no address'}"


def _routes(node: Node) -> Iterable[str]:
    routes = node.model.routes
    for route in routes[:12]:
        yield " ".join(route.words)
    if len(routes) > 12:
        yield f"… and {len(routes) - 12:,} more"


def _rules(text: str) -> Iterable[str]:
    """`nat  38 rules in 12 chains: PREROUTING 1 (ACCEPT), ...` for each table of an iptables-save text."""
    table = ""
    chains: dict[str, tuple[int, str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            chains = {}
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = (0, policy)
        elif line.startswith(("-A ", "[")):
            chain = re.search(r"-A (\S+)", line)
            if chain:
                count, policy = chains[chain[1]]
                chains[chain[1]] = (count + 1, policy)
        elif line.strip() == "COMMIT":
            total = sum(count for count, _ in chains.values())
            own = [(n, c) for n, (c, policy) in chains.items() if policy == "-"]
            built = ", ".join(f"{n} {c} ({policy})" for n, (c, policy) in chains.items() if policy != "-")
            longest = max(own, key=lambda item: item[1], default=None)
            tail = (
                f"; {_many(len(own), 'own chain')}, the longest {longest[0]} with {_many(longest[1], 'rule')}"
                if longest
                else ""
            )
            yield f"{table:<8}  {_many(total, 'rule')}: {built}{tail}"


def _sets(text: str) -> Iterable[str]:
    types: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["create"]:
            types[words[1]] = words[2]
        elif words[:1] == ["add"]:
            sizes[words[1]] += 1
    width = max(map(len, types), default=0)
    kinds = max(map(len, types.values()), default=0)
    for name, kind in types.items():
        yield f"{name:<{width}}  {kind:<{kinds}}  {_many(sizes[name], 'entry')}"


def _services(text: str) -> Iterable[str]:
    servers: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["-A"]:
            options = dict(zip(words[3::2], words[4::2], strict=False))
            persistent = f", persistent {options['-p']} s" if "-p" in options else ""
            servers[" ".join(words[1:3])] = [f"{options.get('-s', '')}{persistent}"]
        elif words[:1] == ["-a"]:
            options = dict(zip(words[3::2], words[4::2], strict=False))
            servers.setdefault(" ".join(words[1:3]), [""]).append(options.get("-r", ""))
    names = {"-t": "tcp", "-u": "udp", "-f": "mark", "--sctp-service": "sctp"}
    width = max(map(len, servers), default=0)
    for number, (service, (scheduler, *real)) in enumerate(servers.items()):
        if number == 20:
            yield f"… and {len(servers) - number:,} more services"
            return
        proto, _, end = service.partition(" ")
        shown = ", ".join(real[:4]) + (f", … {len(real) - 4} more" if len(real) > 4 else "")
        yield f"{f'{names.get(proto, proto)} {end}':<{width + 3}}  {scheduler}  -> {shown or 'no server'}"


def _sysctls(node: Node) -> Iterable[str]:
    from netemu.sysctl import Sysctl

    usual = Sysctl()
    for link in node.routing.links:
        usual.add_link(link.name)
    defaults = usual.all()
    for name, value in sorted(node.sysctl.all().items()):
        if defaults.get(name) != value:
            yield f"{name} = {value}"
