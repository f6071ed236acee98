"""Lines of text made from columns: a report's rows are put together piece by piece, all rows at once.

Most of what a row says was said before: a path, a link's name, a port. So each text is written out once and known by
a number; a column of numbers becomes a column of texts by copying:

    pieces    `{"packet": `  4711   `, "in": `  "eth0"   `, "path": `  ["nat:PREROUTING:rule:1", ...]
              the same       Texts  the same    Texts    the same      Pool

First the sizes of all pieces say where each row begins, then each piece is copied for all rows. `Texts` are short and
stand in cells of one width: the whole cell is copied and what comes behind it written over the rest. A `Pool`'s texts
are of any length and copied exactly, all of one length at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from netemu.packets import I64, U8

Ids = NDArray[np.integer]
Sizes = NDArray[np.integer]
#: what makes the texts of some numbers: bytes, where each text starts in them, how long each is
Maker = Callable[[I64], tuple[U8, I64, I64]]

TEMPORARY = 1 << 18  # bytes gathered before they are scattered: as much as stays in the cache
MARGIN = 64  # bytes behind the last line that may be written to


class Texts:
    """Short texts by number, each at the beginning of a cell of the same width.

    cells  void[m]   of 1, 2, 4, ... bytes         sizes  uint8[m]  how many of them count
    """

    def __init__(self, cells: NDArray[np.void], sizes: U8) -> None:
        self.cells, self.sizes = cells, sizes
        self.width = cells.dtype.itemsize
        self.least = int(sizes.min(initial=255))

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Texts | Pool:
        """The texts 0, 1, 2, ... A Pool, where one is too long for a cell."""
        longest = max(map(len, texts), default=1)
        if longest > 255:
            return Pool(each(texts.__getitem__))
        width = 1 << max(longest - 1, 0).bit_length()
        cells = np.array(texts or [b""], f"S{width}").view(f"V{width}")
        return cls(cells, np.array(list(map(len, texts)), np.uint8))


class Pool:
    """Texts of any length by number (0, 1, 2, ... without large holes), made when first asked for.

    data    uint8[used]  all texts, one after the other        starts, sizes  int64[m], -1: not made yet
    """

    def __init__(self, make: Maker, most: int = 1 << 26) -> None:
        self._make, self._most = make, most
        self.data = np.empty(1 << 12, np.uint8)
        self.used = 0
        self.starts: I64 = np.full(64, -1, np.int64)
        self.sizes: I64 = np.zeros(64, np.int64)

    def learn(self, ids: Ids) -> None:
        """Make the texts of `ids` that are not there yet."""
        top = int(ids.max(initial=0)) + 1
        if top > len(self.starts):
            more = max(top, 2 * len(self.starts)) - len(self.starts)
            self.starts = np.concatenate([self.starts, np.full(more, -1, np.int64)])
            self.sizes = np.concatenate([self.sizes, np.zeros(more, np.int64)])
        new = ids[self.starts.take(ids) < 0]
        if not len(new):
            return
        wanted = np.unique(new).astype(np.int64)
        data, starts, sizes = self._make(wanted)
        end = self.used + len(data)
        if end > len(self.data):
            self.data = np.concatenate(
                [self.data[: self.used], np.empty(max(end, 2 * self.used) - self.used, np.uint8)]
            )
        self.data[self.used : end] = data
        self.starts[wanted], self.sizes[wanted] = self.used + starts, sizes
        self.used = end

    def trim(self) -> None:
        """Forget everything, once it has become much."""
        if self.used > self._most:
            self.starts.fill(-1)
            self.used = 0


def each(make: Callable[[int], bytes]) -> Maker:
    """Texts that are made one by one."""

    def made(ids: I64) -> tuple[U8, I64, I64]:
        texts = [make(k) for k in ids.tolist()]
        sizes = np.array(list(map(len, texts)), np.int64)
        return np.frombuffer(b"".join(texts), np.uint8), np.cumsum(sizes) - sizes, sizes

    return made


def chains(links: Pool, unrolled: Callable[[I64], tuple[I64, I64]], between: bytes) -> Maker:
    """Texts that are chains of others.

    links     those texts, each with `between` behind it
    unrolled  numbers -> (which links they are made of, one after the other; how many links each has)
    """

    def made(ids: I64) -> tuple[U8, I64, I64]:
        which, counts = unrolled(ids)
        lines = Lines(len(which))
        lines.put(links, which)
        text, starts, _ = joined([(lines, np.arange(len(which)))])
        places = np.append(starts, len(text))
        ends = np.cumsum(counts)
        begins = places.take(ends - counts)
        return text, begins, places.take(ends) - begins - len(between) * (counts > 0)

    return made


class Lines:
    """n lines under construction: pieces are added for all of them, left to right.

    >>> lines = Lines(3)
    >>> lines.add(b"port ")
    >>> lines.put(numbers(), np.array([80, 443, 8080]))
    >>> lines.add(b"; ")
    >>> joined([(lines, np.arange(3))])[0].tobytes()
    b'port 80; port 443; port 8080; '
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.sizes: I64 = np.zeros(n, np.int64)
        self._pieces: list[tuple[bytes | Texts | U8, Ids, Sizes, int]] = []  # text, which or where, size, least size
        self._same = b""  # what was added since the last piece that differs

    def add(self, text: bytes) -> None:
        """The same text in all lines."""
        self._same += text

    def put(self, texts: Texts | Pool, ids: Ids) -> None:
        """In each line the text of that number."""
        if isinstance(texts, Pool):
            texts.learn(ids)
            self.copy(texts.data, texts.starts.take(ids), texts.sizes.take(ids))
            return
        self.end()
        sizes = texts.sizes.take(ids)
        self.sizes += sizes
        self._pieces.append((texts, ids, sizes, texts.least))

    def copy(self, data: U8, starts: I64, sizes: I64) -> None:
        """In each line a stretch of `data`."""
        self.end()
        self.sizes += sizes
        self._pieces.append((data, starts, sizes, int(sizes.min()) if len(sizes) else 0))

    def cells(self, cells: NDArray[np.void]) -> None:
        """In each line the cell of its own."""
        self.put(Texts(cells, np.full(len(cells), cells.dtype.itemsize, np.uint8)), np.arange(len(cells)))

    def extend(self, other: Lines) -> None:
        """In each line all that `other` has in it."""
        self.end()
        other.end()
        self.sizes += other.sizes
        self._pieces += other._pieces

    def end(self) -> None:
        """Nothing comes behind what was added."""
        if self._same:
            size = len(self._same)
            self.sizes += size
            self._pieces.append((self._same, _NONE, _NONE, size))
            self._same = b""

    def write(self, out: U8, at: I64) -> None:
        """Write each line to its place in `out`, which reaches MARGIN beyond the last."""
        rest = sum(least for *_, least in self._pieces)  # at least so much comes from here on, in every line
        here = at.copy()
        for what, ids, sizes, least in self._pieces:
            if isinstance(what, bytes):
                _view(out, least)[here] = np.void(what)
                here += least
            else:
                if isinstance(what, np.ndarray):
                    _copy(what, ids, out, here, sizes)
                elif what.width <= rest:
                    _view(out, what.width)[here] = what.cells.take(ids)
                else:  # a whole cell would spoil the next line
                    _copy(what.cells.view(np.uint8), ids.astype(np.int64) * what.width, out, here, sizes)
                here += sizes
            rest -= least


_NONE = np.zeros(0, np.int64)


def joined(parts: Iterable[tuple[Lines, NDArray[np.intp]]], room: U8 | None = None) -> tuple[U8, I64, I64]:
    """All lines, one after the other: (lines, the number of each among all). Written to `room` when that is enough.

    returns  uint8[m] the text; int64[n] where each line starts in it; int64[n] how long it is
    """
    parts = list(parts)
    for lines, _ in parts:
        lines.end()
    sizes = np.zeros(sum(lines.n for lines, _ in parts), np.int64)
    for lines, rows in parts:
        sizes[rows] = lines.sizes
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    out = room if room is not None and len(room) >= total + MARGIN else np.empty(total + MARGIN, np.uint8)
    starts = ends - sizes
    for lines, rows in parts:
        lines.write(out, starts[rows])
    return out[:total], starts, sizes


def _view(data: U8, width: int) -> NDArray[np.void]:
    """Every stretch of `width` bytes, by where it begins."""
    return np.ndarray((len(data) - width + 1,), f"V{width}", data.data, strides=(1,))


def _copy(data: U8, starts: Ids, out: U8, at: I64, sizes: Sizes) -> None:
    """Copy stretches of bytes. Cost: two copies a byte, a sort by length, and some microseconds a distinct length."""
    if int(sizes.max(initial=0)) < 1 << 16:
        order = np.argsort(sizes.astype(np.uint16), kind="stable")  # a radix sort
    else:
        order = np.argsort(sizes, kind="stable")
    starts, at, sizes = starts.take(order), at.take(order), sizes.take(order)
    cuts = [0, *(np.flatnonzero(sizes[1:] != sizes[:-1]) + 1).tolist(), len(sizes)]
    for lo, hi in pairwise(cuts):
        size = int(sizes[lo]) if hi > lo else 0
        if not size:
            continue
        source, target = _view(data, size), _view(out, size)
        step = max(TEMPORARY // size, 1)
        for k in range(lo, hi, step):
            target[at[k : min(k + step, hi)]] = source[starts[k : min(k + step, hi)]]


# ---- tables that every report needs ----------------------------------------------------------------------------------


@cache
def numbers() -> Texts:
    """0 to 65535 in decimals.

    >>> numbers().cells[443].tobytes()[: numbers().sizes[443]]
    b'443'
    """
    k = np.arange(1 << 16)
    digits = (k[:, None] // np.array([10_000, 1_000, 100, 10, 1]) % 10 + 48).astype(np.uint8)
    sizes = (1 + (k >= 10) + (k >= 100) + (k >= 1_000) + (k >= 10_000)).astype(np.uint8)
    cells = np.zeros((1 << 16, 8), np.uint8)
    for lo, hi, size in ((0, 10, 1), (10, 100, 2), (100, 1_000, 3), (1_000, 10_000, 4), (10_000, 1 << 16, 5)):
        cells[lo:hi, :size] = digits[lo:hi, 5 - size :]
    return Texts(cells.view("V8")[:, 0], sizes)


@cache
def halves() -> tuple[Texts, Texts]:
    """The upper and the lower half of an address in words: `10.96.` and `0.1`."""
    k = np.arange(1 << 16)
    octets = Texts.of([b"%d" % octet for octet in range(256)])
    made = []
    for tail in (b".", b""):
        lines = Lines(1 << 16)
        lines.put(octets, k >> 8)
        lines.add(b".")
        lines.put(octets, k & 255)
        lines.add(tail)
        lines.end()
        cells = np.empty((1 << 16) * 8 + MARGIN, np.uint8)
        lines.write(cells, k * 8)
        made.append(Texts(cells[: (1 << 16) * 8].view("V8"), lines.sizes.astype(np.uint8)))
    return made[0], made[1]


@cache
def _thousandths() -> tuple[Texts, Texts]:
    """Three decimals, 0 to 999 all of them and 1000 to 1999 without the zeros at the end; the second never empty."""
    full = [b"%03d" % k for k in range(1000)]
    short = [text.rstrip(b"0") for text in full]
    return (
        Texts.of(full + short),  # type: ignore[return-value]
        Texts.of([*full, short[0] or b"0", *short[1:]]),
    )


@cache
def _myriads() -> Texts:
    """Four digits, 0 to 9999 as they are and 10000 to 19999 with the zeros before them."""
    made = Texts.of([b"%d" % k for k in range(10_000)] + [b"%04d" % k for k in range(10_000)])
    assert isinstance(made, Texts)
    return made


def addresses(lines: Lines, ip: NDArray[np.uint32]) -> None:
    """IPv4 addresses."""
    upper, lower = halves()
    lines.put(upper, ip >> np.uint32(16))
    lines.put(lower, ip & np.uint32(0xFFFF))


def serial_numbers(lines: Lines, values: I64) -> None:
    """Numbers that do not differ much within a chunk, such as those of packets."""
    upper = values // 10_000
    lower = values - upper * 10_000
    if int(upper.max(initial=0)):
        distinct(lines, upper, lambda k: b"%d" % k if k else b"")
        lower += (upper > 0) * 10_000
    lines.put(_myriads(), lower)


def times(lines: Lines, ns: I64) -> None:
    """Nanoseconds, not negative, as seconds in decimals, as `report.seconds` writes them one by one."""
    whole = ns // 1_000_000_000
    part = (ns - whole * 1_000_000_000).astype(np.uint32)
    distinct(lines, whole, lambda k: b"%d." % k)
    micro = part // np.uint32(1000)
    nano = part - micro * np.uint32(1000)
    milli = micro // np.uint32(1000)
    micro -= milli * np.uint32(1000)
    any_table, first_table = _thousandths()
    more = (micro | nano) != 0
    lines.put(first_table, milli + ~more * np.uint32(1000))
    if more.any():
        lines.put(any_table, micro + (nano == 0) * np.uint32(1000))
        if nano.any():
            lines.put(any_table, nano + np.uint32(1000))


def distinct(lines: Lines, values: Ids, make: Callable[[int], bytes]) -> None:
    """Values of which few are different, or which lie close together."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    if len(values):
        least = int(values.min())
    if most - least <= 1024 + len(values):
        lines.put(Texts.of([make(k) for k in range(least, most + 1)]), values - least)
    else:
        found, ids = np.unique(values, return_inverse=True)
        lines.put(Texts.of([make(k) for k in found.tolist()]), ids)
