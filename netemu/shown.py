"""What a capture shows of ports that Linux drew.

Where Linux draws a port (`--random`, `--random-fully`, two connections that want the same one), netemu draws from a
seeded generator, and nearly always another one. But who replays a capture of a real node often has the answers before
his eyes: they come to the port that Linux drew, and would be strangers to a node that drew otherwise.

    row 3    10.244.0.5:5353 > 10.0.0.53:53       MASQUERADE draws a port of 10.0.0.1
    row 9    10.0.0.53:53 > 10.0.0.1:28332        an answer: it was 28332

So a draw first looks at what comes later in the same batch. It takes the first port inside its pool to which the far
end sends, and which nobody holds, if the packet can be the answer: one to a SYN acknowledges it. Errors that quote the
translated packet tell more: its id, which no router changes, says who had sent it. What another packet's own draw
explains is not taken for an answer, so traffic made by netemu itself is replayed with the ports that it had. Where
nothing is shown, the generator decides alone.

So it is with endpoints among which `statistic --mode random` draws: the next packet to the sender's port tells which
it was.

It is a draw all the same: nothing but a port that Linux, too, could have drawn is ever taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netemu.packets import (
    ACK,
    I64,
    ICMP,
    ICMP_ERRORS,
    OFFSET_MASK,
    RST,
    SCTP,
    SYN,
    TCP,
    U32,
    U64,
    UDP,
    UDPLITE,
    Mask,
    Packets,
    Rows,
)
from netemu.trip import draws

MOST = 2048  # packets that are looked at for one draw
NEAR = 4096  # packets after the one that draws whose own draws may explain a port
FEW = 4  # answers up to this many are looked at one by one
SMALL = 64  # in a pool of no more ports, anybody else who asks may have drawn any of them
PORT_SALT = 0x4E41  # of the draw of a port
_SHOWING = np.isin(np.arange(256), (TCP, UDP, UDPLITE, SCTP))
_ICMP_ANSWER = np.isin(np.arange(256), (0, 14, 16, 18))
_ERROR = np.isin(np.arange(256), ICMP_ERRORS)
_OPENING = np.uint8(SYN | ACK | RST)
_BATCH = np.uint64(24)  # bits: a batch has fewer packets than that


@dataclass
class _Answers:
    """Packets that could be answers, one of a kind, in the order in which they first come.

    far, near  uint32[n] their source and destination    fixed  uint16[n]  the port that was not drawn (ICMP: 0)
    port       uint16[n] the port that may have been     row    int64[n]   where it stands in the batch
    ack        int64[n]  what it acknowledges, -1: nothing (no TCP, or quoted)     key  uint64[n], ascending
    asker      int64[n]  who sent the packet that is quoted: address << 16 | port, -1: nobody knows
    """

    key: U64
    far: U32
    near: U32
    proto: NDArray[np.uint8]
    fixed: NDArray[np.uint16]
    port: NDArray[np.uint16]
    row: I64
    ack: I64
    asker: I64

    def of(self, far: int, near: int, proto: int, fixed: int, after: int) -> Rows:
        """Those to one end, behind row `after`; at most MOST."""
        key = _key(*(np.array([v], np.uint64) for v in (far, near, proto, fixed)))
        lo, hi = self.key.searchsorted(key[0]), self.key.searchsorted(key[0], "right")
        lo += self.row[lo:hi].searchsorted(after, "right")
        some = np.arange(lo, min(hi, lo + MOST))
        same = (self.far[some] == far) & (self.near[some] == near)
        same &= (self.proto[some] == proto) & (self.fixed[some] == fixed)
        out: Rows = some[same]
        return out


class Shown:
    """What the packets of one batch show to the draws that are made for them.

    pkts     the batch: its serial numbers, and what is never rewritten
    arrived  columns as they arrived (node.BEFORE)
    Cost     nothing until the first draw; then some 150 ns a packet of the batch, once, and some 50 us a draw
    """

    def __init__(self, seed: int, pkts: Packets, arrived: dict[str, NDArray[Any]]) -> None:
        self.seed, self.pkts, self._arrived = seed, pkts, arrived

    @cached_property
    def _of_sources(self) -> _Answers:
        return self._answers(source=True)

    @cached_property
    def _of_destinations(self) -> _Answers:
        return self._answers(source=False)

    def _answers(self, *, source: bool) -> _Answers:
        p, was = self.pkts, self._arrived
        whole = (p.frag & OFFSET_MASK) == 0
        begins = (was["proto"] == TCP) & ((was["flags"] & _OPENING) == SYN)
        plain = _SHOWING[was["proto"]] & ~begins
        echo = (was["proto"] == ICMP) & _ICMP_ANSWER[was["icmp_type"]]
        rows = np.flatnonzero((plain | echo) & whole)
        icmp = echo[rows]
        acks = (was["proto"][rows] == TCP) & ((was["flags"][rows] & ACK) != 0)
        fixed, port = was["sport"][rows], was["dport"][rows]
        if not source:
            fixed, port = port, fixed
        columns = [
            was["src"][rows],
            was["dst"][rows],
            was["proto"][rows],
            np.where(icmp, 0, fixed),
            np.where(icmp, was["icmp_id"][rows], port),
            rows,
            np.where(acks, p.ack[rows].astype(np.int64), -1),
            np.full(len(rows), -1, np.int64),
        ]
        quoted = self._quoted(source=source)
        if len(quoted[0]):
            columns = [np.concatenate(pair) for pair in zip(columns, quoted, strict=True)]
            order = np.argsort(columns[5], kind="stable")
            columns = [column[order] for column in columns]
        far, near, proto, fixed, port, _, _, asker = columns
        key = _key(far, near, proto, fixed)
        kind = (key * np.uint64(0x9E3779B97F4A7C15) + port) * np.uint64(0xD1B54A32D192ED03) + asker.view(np.uint64)
        _, first = np.unique(kind, return_index=True)
        first.sort()
        order = first[np.argsort(key[first], kind="stable")]
        return _Answers(key[order], *(column[order] for column in columns))

    def _quoted(self, *, source: bool) -> list[NDArray[Any]]:
        """The same columns, of the answers to packets that ICMP errors quote."""
        p, was = self.pkts, self._arrived
        error = (was["proto"] == ICMP) & _ERROR[was["icmp_type"]] & (p.ihl == 20) & (p.cap >= 56)
        rows = np.flatnonzero(error)
        inner = p.data[(p.at[rows] + 28)[:, None] + np.arange(28)] if len(rows) else np.zeros((0, 28), np.uint8)
        words = np.ascontiguousarray(inner).view(">u4").reshape(-1, 7)
        ports = np.ascontiguousarray(inner).view(">u2").reshape(-1, 14)
        proto = inner[:, 9]
        icmp = (proto == ICMP) & (inner[:, 20] == 8)
        fits = (inner[:, 0] == 0x45) & ((ports[:, 3] & OFFSET_MASK) == 0) & (_SHOWING[proto] | icmp)
        fixed, port = (ports[:, 11], ports[:, 10]) if source else (ports[:, 10], ports[:, 11])
        columns = [
            words[:, 4].astype(np.uint32),
            words[:, 3].astype(np.uint32),
            proto,
            np.where(icmp, 0, fixed),
            np.where(icmp, ports[:, 12], port),
            rows,
            np.full(len(rows), -1, np.int64),
            self._senders(rows, proto, ports[:, 2], ports[:, 1]),
        ]
        return [column[fits] for column in columns]

    def _senders(self, rows: Rows, proto: NDArray[np.uint8], ident: NDArray[Any], length: NDArray[Any]) -> I64:
        """int64[n]: who sent the packets that are quoted in `rows` (see _Answers.asker)."""
        p, was = self.pkts, self._arrived
        named = p.ident.astype(np.int64) << 32 | was["length"].astype(np.int64) << 8 | was["proto"]
        order = np.argsort(named, kind="stable")
        wanted = ident.astype(np.int64) << 32 | length.astype(np.int64) << 8 | proto
        lo, hi = (named[order].searchsorted(wanted, side) for side in ("left", "right"))
        out = np.full(len(rows), -1, np.int64)
        for k in np.flatnonzero((lo < hi) & (ident != 0)).tolist():
            before = order[lo[k] : hi[k]]
            before = before[before < rows[k]]
            if len(before):
                out[k] = self._asker(before.item(-1))
        return out

    def _asker(self, row: int) -> int:
        was = self._arrived
        port = was["icmp_id"] if was["proto"][row] == ICMP else was["sport"]
        return int(was["src"][row]) << 16 | int(port[row])

    def some(self, far: U32, near: U32, proto: NDArray[np.uint8], fixed: NDArray[np.uint16], *, source: bool) -> Mask:
        """bool[n]: is there anything to look at (`ports`) for draws towards these ends?"""
        answers = self._of_sources if source else self._of_destinations
        key = _key(far, near, proto, fixed)
        at = answers.key.searchsorted(key)
        return at < answers.key.searchsorted(key, "right")

    def as_drawn(
        self, rows: Rows, far: U32, near: U32, proto: NDArray[np.uint8], fixed: NDArray[np.uint16], drawn: I64
    ) -> Mask:
        """bool[n]: the source port that was drawn for each packet is shown, so `ports` has nothing to say.

        Where it says no, `ports` may all the same have nothing to say. It is there for many draws of netemu's own.
        """
        answers = self._of_sources
        if not len(rows) or not len(answers.key):
            return np.zeros(len(rows), bool)
        kinds, order, where = self._kinds
        key = _key(far, near, proto, fixed)
        found = order[np.minimum(kinds.searchsorted(_kind(key, drawn)), len(kinds) - 1)]
        p = self.pkts
        opens = (proto == TCP) & ((self._arrived["flags"][rows] & _OPENING) == SYN)
        after = p.seq[rows].astype(np.int64) + 1 + p.length[rows] - p.ihl[rows] - p.doff[rows]
        ack = answers.ack[found]
        out: Mask = (answers.key[found] == key) & (answers.port[found] == drawn) & (answers.row[found] > rows)
        out &= (answers.far[found] == far) & (answers.near[found] == near) & (answers.proto[found] == proto)
        out &= (answers.fixed[found] == fixed) & (~opens | (ack < 0) | (ack == after & 0xFFFFFFFF))
        return out & (found < where.searchsorted(where[found] >> 32 << 32 | rows, "right") + MOST)

    @cached_property
    def _kinds(self) -> tuple[U64, Rows, I64]:
        """Of the answers to sources: a hash of end and port, ascending, and which answer it is of; and of each answer
        number of the end << 32 | row, which ascend."""
        key = self._of_sources.key
        ends = np.cumsum(np.append(False, key[1:] != key[:-1])) << 32
        kinds = _kind(self._of_sources.key, self._of_sources.port)
        order = np.argsort(kinds, kind="stable")
        return kinds[order], order, ends | self._of_sources.row

    def ports(
        self, row: int, far: int, near: int, proto: int, fixed: int, lo: int, size: int, drawn: int, *, source: bool
    ) -> Iterator[int]:
        """Ports that may have been drawn for the packet of `row`, the likeliest first; none: as the generator says.

        far, near   the end that will answer, and the end that it will answer to
        fixed       the port that was not drawn (source: the far end's), 0 for ICMP
        lo, size    the pool     drawn  what the generator says     source  it is the near end's port that is drawn
        """
        answers = self._of_sources if source else self._of_destinations
        found = answers.of(far, near, proto, fixed, row)
        port, ack = answers.port[found].astype(np.int64), answers.ack[found]
        fits = (port >= lo) & (port < lo + size)
        p = self.pkts
        if proto == TCP and self._arrived["flags"][row] & _OPENING == SYN:
            payload = int(p.length[row]) - int(p.ihl[row]) - int(p.doff[row])
            fits &= (ack < 0) | (ack == (int(p.seq[row]) + 1 + payload) & 0xFFFFFFFF)
        found, port, ack = found[fits], port[fits], ack[fits]
        if not len(found) or (port == drawn).any():
            return
        asker = answers.asker[found]
        mine = asker == self._asker(row)
        yield from port[mine].tolist()
        others = set(port[~mine & (asker >= 0)].tolist())
        unknown = np.flatnonzero(asker < 0)
        if len(unknown) > FEW:
            until = np.minimum(answers.row[found[unknown]], row + NEAR)
            explained = self._explainers(row, proto, lo, size).take(port[unknown]) < until
            unknown = unknown[~explained | (ack[unknown] >= 0)]
        for k in unknown.tolist():
            x, last = int(port[k]), int(answers.row[found[k]])
            if x not in others and not self._explained(row, last, proto, x, int(ack[k]), lo, size):
                yield x

    def _explainers(self, row: int, proto: int, lo: int, size: int) -> I64:
        """int64[65536]: the row of the first packet that `_explained` finds for each port, but for what TCP says."""
        was = self._arrived
        rows = np.flatnonzero(was["proto"][row + 1 : row + NEAR] == proto)[::-1] + row + 1
        own = (was["icmp_id"] if proto == ICMP else was["sport"])[rows]
        first = np.full((2, 1 << 16), row + NEAR)
        first[0, own], first[1, lo + self._drawn[rows] % size] = rows, rows
        if size <= SMALL and len(rows):
            first[:] = rows[-1]
        out: I64 = first.min(0)
        return out

    def _explained(self, row: int, until: int, proto: int, port: int, ack: int, lo: int, size: int) -> bool:
        """A packet between `row` and the answer, in `until`, has that port, or would draw it itself."""
        p, was = self.pkts, self._arrived
        some = slice(row + 1, min(until, row + NEAR))
        own = was["icmp_id"] if proto == ICMP else was["sport"]
        said = (own[some] == port) | (self._drawn[some] % size == port - lo) | (size <= SMALL)
        said &= was["proto"][some] == proto
        if proto == TCP and ack >= 0:
            opens = (was["flags"][some] & _OPENING) == SYN
            said &= ~opens | (p.seq[some] + np.uint32(1) == ack)
        return bool(said.any())

    @cached_property
    def _drawn(self) -> I64:
        """int64[n]: where in its pool each packet's own draw would begin."""
        return (draws(self.seed, self.pkts.serial, PORT_SALT) & np.uint64(0xFFFF)).astype(np.int64)

    @cached_property
    def _comers(self) -> tuple[U64, I64, I64]:
        """(key, end, ack) of all packets with ports. key: whom it is sent to, and its row; ascending."""
        p, was = self.pkts, self._arrived
        begins = (was["proto"] == TCP) & ((was["flags"] & _OPENING) == SYN)
        rows = np.flatnonzero(_SHOWING[was["proto"]] & ~begins & ((p.frag & OFFSET_MASK) == 0))
        key = _placed(was["dst"][rows], was["proto"][rows], was["dport"][rows], rows)
        order = np.argsort(key)
        rows = rows[order]
        ends = was["src"][rows].astype(np.int64) << 16 | was["sport"][rows]
        acks = (was["proto"][rows] == TCP) & ((was["flags"][rows] & ACK) != 0)
        return key[order], ends, np.where(acks, p.ack[rows].astype(np.int64), -1)

    def ends(self, rows: Rows) -> I64:
        """int64[len(rows)]: who answers these packets, address << 16 | port; -1: it is not shown.

        What comes next to the sender's port counts, if it can be an answer: one to a SYN acknowledges it.
        """
        p, was = self.pkts, self._arrived
        key, ends, acks = self._comers
        out = np.full(len(rows), -1, np.int64)
        if not len(key):
            return out
        wanted = _placed(was["src"][rows], was["proto"][rows], was["sport"][rows], rows)
        at = np.minimum(key.searchsorted(wanted, "right"), len(key) - 1)
        fits = (key[at] >> _BATCH == wanted >> _BATCH) & (key[at] > wanted) & _SHOWING[was["proto"][rows]]
        opens = (was["proto"][rows] == TCP) & ((was["flags"][rows] & _OPENING) == SYN)
        after = p.seq[rows].astype(np.int64) + 1 + p.length[rows] - p.ihl[rows] - p.doff[rows]
        fits &= ~opens | (acks[at] < 0) | (acks[at] == after & 0xFFFFFFFF)
        return np.where(fits, ends[at], -1)


def _kind(key: U64, port: NDArray[Any]) -> U64:
    return (key + port.astype(np.uint64)) * np.uint64(0xD1B54A32D192ED03)


def _placed(address: NDArray[Any], proto: NDArray[Any], port: NDArray[Any], rows: Rows) -> U64:
    """uint64[n]: a hash of one end, and in the lowest bits the row."""
    end = _key(address, address, proto, port)
    return end >> _BATCH << _BATCH | rows.astype(np.uint64)


def _key(far: NDArray[Any], near: NDArray[Any], proto: NDArray[Any], fixed: NDArray[Any]) -> U64:
    """uint64[n]: a hash of an end to end."""
    u = np.uint64
    key = (far.astype(u) << u(32) | near.astype(u)) * u(0xBF58476D1CE4E5B9)
    key ^= key >> u(29)
    key += (proto.astype(u) << u(16) | fixed.astype(u)) * u(0x94D049BB133111EB)
    key *= u(0x9E3779B97F4A7C15)
    return key ^ key >> u(32)
