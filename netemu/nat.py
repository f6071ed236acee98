"""NAT: choosing an address and port for a new flow, and applying the choice to every later packet of it.

The nat table is asked once for a flow and direction of rewriting: its destination at PREROUTING or OUTPUT, its source
at INPUT or POSTROUTING. A target says the wish (`Range`); `Nat` finds a tuple whose answers nobody else expects, and
writes it as the flow's reply tuple. From then on rewriting is reading the other direction's tuple.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.conntrack import (
    CONFIRMED,
    DST_NAT,
    DST_NAT_DONE,
    DYING,
    FIXED_TIMEOUT,
    PAIRED,
    SRC_NAT,
    SRC_NAT_DONE,
    Tuple,
    inverse,
    key_words,
    quoted_tuple,
)
from netemu.hashing import jhash2, repeats, span
from netemu.packets import (
    DCCP,
    GRE,
    I64,
    ICMP,
    ICMP_ERRORS,
    NEW,
    RELATED,
    SCTP,
    SYN,
    TCP,
    U16,
    U32,
    U64,
    UDP,
    UDPLITE,
    Mask,
    Rows,
    checksum,
    crc32c,
    patched,
)
from netemu.paths import Step
from netemu.shown import PORT_SALT, Shown
from netemu.tcp import CL, TW, before
from netemu.trip import Trip

if TYPE_CHECKING:
    from netemu.conntrack import Conntrack
    from netemu.helpers import Expectation
    from netemu.node import Node

T = TypeVar("T", bound=np.generic)

ACCEPT, DROP = 1, 0
DESTINATION, SOURCE = "dst", "src"
_BITS = {DESTINATION: (DST_NAT, DST_NAT_DONE), SOURCE: (SRC_NAT, SRC_NAT_DONE)}
_TRANSLATED = Step(None, "nat: translated")
_ERROR = np.isin(np.arange(256), ICMP_ERRORS)
LOOPBACK = 0x7F000001
MANY = 12  # fewer rows than this are asked one by one


@dataclass(frozen=True)
class Range:
    """What a target wishes for.

    kind      "range" (lo..hi), "masquerade" (the output link's address), "redirect" (this node), "netmap" (net/mask)
    lo, hi    addresses, None: keep         port_lo, port_hi   ports (ICMP: ids), None: keep if free
    base      DNAT a:p-q/base: port = p + (dport - base) modulo the size
    random    --random, --random-fully      persistent   --persistent
    """

    kind: str = "range"
    lo: int | None = None
    hi: int | None = None
    port_lo: int | None = None
    port_hi: int | None = None
    base: int | None = None
    random: bool = False
    persistent: bool = False
    net: int = 0
    mask: int = 0


class Wishes:
    """Wishes in columns, by number: kind (its place in KINDS), and what `Range` says; -1 for None.

    plain   all name one address (or leave it to be found), and one port or none: nothing is to be chosen
    """

    KINDS = ("range", "masquerade", "redirect", "netmap")

    def __init__(self, ranges: Sequence[Range]) -> None:
        def column(name: str) -> I64:
            values = (getattr(r, name) for r in ranges)
            return np.array([-1 if v is None else int(v) for v in values], np.int64)

        self.ranges = ranges
        self.kind = np.array([self.KINDS.index(r.kind) for r in ranges], np.int8)
        self.lo, self.hi = column("lo"), column("hi")
        self.hi = np.where(self.hi < 0, self.lo, self.hi)
        self.port_lo, self.port_hi, self.base = column("port_lo"), column("port_hi"), column("base")
        self.random, self.persistent = column("random") > 0, column("persistent") > 0
        self.net, self.mask = column("net"), column("mask")
        one = (self.port_lo == self.port_hi) & (self.base < 0) & ~self.random
        one &= (self.kind != 0) | ((self.lo == self.hi) & (self.lo >= 0))
        self.plain, self.named = bool(one.all()), not self.kind.any()
        self.address, self.port = self.lo.astype(np.uint32), self.port_lo.astype(np.uint16)
        self.has_port = self.port_lo >= 0

    @classmethod
    def joined(cls, several: Sequence[Wishes]) -> Wishes:
        """One after the other."""
        return several[0] if len(several) == 1 else cls([r for wishes in several for r in wishes.ranges])


class _Asked:
    """What was wished for during one walk, by row of the run.

    number   int32[n]   which wish, of all that rules had; -1: no target wished for anything
    address  uint32[n]  what takes the place of the address that the wish does not name; None: all name one
    """

    def __init__(self, n: int) -> None:
        self.number = np.full(n, -1, np.int32)
        self.address: U32 | None = None
        self._several: list[Wishes] = []
        self._starts: dict[int, int] = {}
        self._n = 0

    def put(self, rows: Rows, wishes: Wishes, which: NDArray[np.intp]) -> None:
        start = self._starts.get(id(wishes))
        if start is None:
            start = self._starts[id(wishes)] = self._n
            self._several.append(wishes)
            self._n += len(wishes.ranges)
        self.number[rows] = which + start if start else which

    def found(self, rows: Rows, address: NDArray[np.integer]) -> None:
        """What the addresses are that the wishes of these rows do not name."""
        if self.address is None:
            self.address = np.zeros(len(self.number), np.uint32)
        self.address[rows] = address

    @cached_property
    def wishes(self) -> Wishes:
        """All wishes, by number: to be asked for when the walk is over."""
        return Wishes.joined(self._several)

    def columns(self, rows: Rows) -> tuple[I64, I64, I64, I64, I64, Mask, Mask]:
        """What these rows wish for: lo, hi, port_lo, port_hi (the lesser port first), base; -1 for nothing; random,
        persistent."""
        number = self.number.take(rows).astype(np.intp)
        given = number >= 0
        wishes, of = self.wishes, np.where(given, number, 0)
        if not given.any():
            none, no = np.full(len(rows), -1, np.int64), np.zeros(len(rows), bool)
            return none, none, none, none, none, no, no
        lo, hi = wishes.lo[of], wishes.hi[of]
        if self.address is not None:
            unnamed = wishes.kind[of] != 0
            lo = np.where(unnamed, self.address[rows], lo)
            hi = np.where(unnamed, lo, hi)
        a, b = wishes.port_lo[of], wishes.port_hi[of]
        lo, hi, a, b, base = (
            np.where(given, c, -1) for c in (lo, hi, np.minimum(a, b), np.maximum(a, b), wishes.base[of])
        )
        return lo, hi, a, b, base, wishes.random[of] & given, wishes.persistent[of] & given

    def of(self, row: int) -> Range | None:
        """The wish of a row, its address filled in."""
        number = self.number.item(row)
        if number < 0:
            return None
        wish = self.wishes.ranges[number]
        if wish.kind == "range":
            return wish
        assert self.address is not None
        address = self.address.item(row)
        return replace(wish, kind="range", lo=address, hi=address)


class Nat:
    """The nat hooks of a node. Stateless itself: what was chosen stands in conntrack's flows."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._wished: dict[int, Range] = {}  # row -> what its rule wishes for, during a walk
        self._asked: _Asked | None = None  # the same of a walk of many rows
        self._alone: dict[Range, Wishes] = {}
        self.shown: Shown | None = None  # what the batch under way shows of ports that were drawn

    # ---- at the four hooks -------------------------------------------------------------------------------------

    def hook(self, trip: Trip, rows: Rows) -> Rows:
        """The nat stop: ask the table for flows that are not decided, then translate. Returns the rows that go on."""
        p, ct = trip.pkts, self.node.conntrack
        manip = DESTINATION if trip.hook in ("PREROUTING", "OUTPUT") else SOURCE
        done = _BITS[manip][1]
        tracked = p.ct[span(rows)] >= 0
        with_flow = rows if tracked.all() else rows[tracked]
        if not len(with_flow):
            return rows
        at = span(with_flow)
        flows = span(p.ct[at])
        state = p.state[at]
        related = state == RELATED
        errors = related & (p.proto[at] == ICMP)
        asking = ((state == NEW) | (related & ~errors)) & ((ct.status[flows] & done) == 0)
        died = False
        if asking.any():
            died = self._ask(trip, with_flow[asking], manip)
        if manip == SOURCE and trip.hook == "POSTROUTING":
            elsewhere = ~asking & ~errors & ~p.reply[at]
            elsewhere &= (ct.masq[flows] >= 0) & (ct.masq[flows] != p.link_out[at])
            if elsewhere.any():
                died = True
                trip.waver(with_flow[elsewhere])
                for row in with_flow[elsewhere].tolist():
                    ct.kill(int(p.ct[row]))
                trip.end(with_flow[elsewhere], "nat: the flow was masqueraded for another link")
        if errors.any():
            for row in with_flow[errors].tolist():
                died |= not self._translate_error(trip, row, manip)
        plain = trip.travelling(with_flow[~errors] if errors.any() else with_flow)
        if len(plain):
            died |= self._translate(trip, plain, manip)
        return trip.travelling(rows) if died else rows

    def _ask(self, trip: Trip, rows: Rows, manip: str) -> bool:
        """Walk the nat chain for these rows; a flow that no target decides gets a null binding. True if one died."""
        p, ct = trip.pkts, self.node.conntrack
        if len(rows) > 1 and ct.until_repeated(p.ct[rows]) < len(rows):
            # the second packet of an undecided flow sees what the first one decided
            died = False
            for row in rows:
                if not ct.status[p.ct[row]] & _BITS[manip][1]:
                    died |= self._ask(trip, np.array([row]), manip)
            return died
        outer = self._wished, self._asked  # a packet that a rule sends may ask in its turn
        self._wished, self._asked = {}, _Asked(p.n) if len(rows) >= MANY else None
        verdict = self.node.tables.walk(trip, "nat", rows)
        on = trip.travelling(rows[verdict == ACCEPT])
        flows = p.ct.take(on)  # a connection that began in another one's place is decided as that one was
        there = span(flows)
        decided = ((ct.status[there] & DYING) != 0) | ct.stored[there]
        died = len(on) < len(rows)
        if decided.any():
            ct.status[flows[decided]] |= _BITS[manip][1]
            on = on[~decided]
        (wished, asked), (self._wished, self._asked) = (self._wished, self._asked), outer
        # rows come to different rules at different times, but tuples are given out in arrival order
        if asked is not None:
            self._set_up_many(trip, on, manip, asked)
        else:
            for row in on.tolist():
                self._set_up(trip, row, manip, wished.get(row))
        return died

    def choose(self, trip: Trip, rows: Rows, manip: str, wish: Range, step: Step) -> NDArray[np.int8]:
        """A target's wish for new flows: int8[len(rows)] of ACCEPT or DROP (there is no address to be had).

        Runs once for a flow. What is chosen for it becomes its reply tuple, when the walk is over and in arrival order.
        """
        if self._asked is not None:
            wishes = self._alone.get(wish)
            if wishes is None:
                wishes = self._alone[wish] = Wishes([wish])
            return self.wish(trip, rows, manip, wishes, np.zeros(len(rows), np.intp))
        out = np.full(len(rows), ACCEPT, np.int8)
        for k, row in enumerate(rows.tolist()):
            flow = int(trip.pkts.ct[row])
            if flow < 0:
                continue
            concrete = self._concrete(trip, row, flow, manip, wish)
            if concrete is None:
                out[k] = DROP
                trip.end(rows[k : k + 1], f"nat: {wish.kind} found no address")
            elif concrete.kind != "nothing":
                self._wished[row] = concrete
        return out

    def wish(self, trip: Trip, rows: Rows, manip: str, wishes: Wishes, which: NDArray[np.intp]) -> NDArray[np.int8]:
        """The same, each row with the wish that has its number."""
        asked = self._asked
        out = np.full(len(rows), ACCEPT, np.int8)
        if asked is None:
            for n in np.flatnonzero(np.bincount(which)).tolist():
                some = np.flatnonzero(which == n)
                out[some] = self.choose(trip, rows[some], manip, wishes.ranges[n], _TRANSLATED)
            return out
        p = trip.pkts
        wanted = p.ct.take(rows) >= 0
        if wishes.named:
            if wanted.all():
                asked.put(rows, wishes, which)
            else:
                asked.put(rows[wanted], wishes, which[wanted])
            return out
        kind = wishes.kind[which]
        masquerade = kind == 1
        if masquerade.any():
            wanted &= ~masquerade | (p.src[rows] != 0)
        if not wanted.all():
            rows, which, kind, where = rows[wanted], which[wanted], kind[wanted], np.flatnonzero(wanted)
        else:
            where = np.arange(len(rows))
        asked.put(rows, wishes, which)
        if not kind.any():
            return out
        for k in range(1, len(Wishes.KINDS)):
            mine = np.flatnonzero(kind == k)
            if len(mine):
                found, address = self._addresses(trip, rows[mine], k, manip, wishes, which[mine])
                asked.found(rows[mine], address)
                if not found.all():
                    lost = mine[~found]
                    trip.end(rows[lost], f"nat: {Wishes.KINDS[k]} found no address")
                    out[where[lost]] = DROP
        return out

    def _addresses(
        self, trip: Trip, rows: Rows, kind: int, manip: str, wishes: Wishes, which: NDArray[np.intp]
    ) -> tuple[Mask, I64]:
        """(there is one, address) of wishes that do not name it."""
        p, routing = trip.pkts, self.node.routing
        if Wishes.KINDS[kind] == "netmap":
            here = (p.src[rows] if manip == SOURCE else p.dst[rows]).astype(np.int64)
            net, mask = wishes.net[which], wishes.mask[which]
            return np.ones(len(rows), bool), (net & mask) | (here & ~mask & 0xFFFFFFFF)
        masquerade = Wishes.KINDS[kind] == "masquerade"
        if masquerade:
            ways = trip.nexthop[rows].astype(np.int64) << 16 | (p.link_out[rows].astype(np.int64) & 0xFFFF)
        else:
            ways = p.link_in[rows].astype(np.int64)
        found, address = np.ones(len(rows), bool), np.zeros(len(rows), np.int64)
        for way in np.unique(ways).tolist():
            some = ways == way
            if masquerade:
                got = routing.masquerade_address(way & 0xFFFF, way >> 16)
            else:
                got = LOOPBACK if trip.hook == "OUTPUT" else routing.first_address(way)
            if got is None:
                found[some] = False
            else:
                address[some] = got
        if masquerade:
            self.node.conntrack.masq[p.ct[rows[found]]] = p.link_out[rows[found]]
        return found, address

    def _concrete(self, trip: Trip, row: int, flow: int, manip: str, wish: Range) -> Range | None:
        """The wish with its addresses filled in; kind "nothing": let it pass undecided; None: there is no address."""
        if wish.kind == "range":
            return wish
        p, routing = trip.pkts, self.node.routing
        address: int | None
        if wish.kind == "masquerade":
            if not p.src[row]:
                return Range(kind="nothing")
            link = int(p.link_out[row])
            address = routing.masquerade_address(link, int(trip.nexthop[row]))
            if address is not None:
                self.node.conntrack.masq[flow] = link
        elif wish.kind == "redirect":
            address = LOOPBACK if trip.hook == "OUTPUT" else routing.first_address(int(p.link_in[row]))
        else:
            here = int(p.src[row] if manip == SOURCE else p.dst[row])
            address = (wish.net & wish.mask) | (here & ~wish.mask & 0xFFFFFFFF)
        if address is None:
            return None
        return Range("range", address, address, wish.port_lo, wish.port_hi, wish.base, wish.random, wish.persistent)

    # ---- the choice --------------------------------------------------------------------------------------------

    def _set_up(self, trip: Trip, row: int, manip: str, wish: Range | None) -> None:
        ct = self.node.conntrack
        flow = int(trip.pkts.ct[row])
        bit, done = _BITS[manip]
        if int(ct.status[flow]) & (CONFIRMED | DYING):
            return
        current = inverse(ct.reply(flow))
        if wish is None:
            # no target wanted this flow: keep the address, and the port unless somebody else's answers would clash
            address = current[0] if manip == SOURCE else current[1]
            wish = Range(lo=address, hi=address)
        chosen = self._unique(trip, row, flow, current, manip, wish)
        if chosen != current:
            ct.alter_reply(flow, inverse(chosen))
            ct.status[flow] |= bit
        ct.status[flow] |= done
        if manip == DESTINATION:
            return
        # at the last hooks nothing but the confirmation follows, so the tuple is taken from now on, or the flow is lost
        last = trip.hook in ("POSTROUTING", "INPUT")
        if (not last or ct.store(flow, int(trip.pkts.time[row]))) and chosen != current:
            ct.remember_sources(np.array([flow]))

    def follow(self, trip: Trip, row: int, flow: int, e: Expectation) -> None:
        """A new connection that a helper expected goes the way of its master's packets, both ends rewritten."""
        ct = self.node.conntrack
        assert e.direction is not None
        src, dst, *_ = ct.original(e.master) if e.direction else ct.reply(e.master)
        address, port = e.saved
        address = src if address < 0 else address
        trip.pkts.ct[row] = flow  # until tracking says that the packet may begin it
        to = Range(lo=address, hi=address, port_lo=port, port_hi=port)
        if e.saved[0] < 0:
            self._set_up(trip, row, SOURCE, Range(lo=dst, hi=dst))
            self._set_up(trip, row, DESTINATION, to)
        else:
            self._set_up(trip, row, DESTINATION, to)
            by = self._source_of_paired(flow, e, dst)
            if by is not None:
                self._set_up(trip, row, SOURCE, by)
        trip.pkts.ct[row] = -1

    def _source_of_paired(self, flow: int, e: Expectation, dst: int) -> Range | None:
        """What the source of an expected connection becomes, where it may not come from the master's other end."""
        ct = self.node.conntrack
        here = ct.original(flow)
        if e.paired:
            for other in self.node.helpers.expected:
                if other.master == e.master and other.shape[4] == here[4] and other.saved == (here[0], here[2]):
                    address, port = other.shape[1], other.shape[3]
                    return Range(lo=address, hi=address, port_lo=port, port_hi=port)
        assert e.direction is not None
        same = (ct.reply(e.master) if e.direction else ct.original(e.master))[0]
        return Range(lo=dst, hi=dst) if here[0] == same else None

    # ---- many choices ------------------------------------------------------------------------------------------

    def _set_up_many(self, trip: Trip, rows: Rows, manip: str, asked: _Asked) -> None:
        """`_set_up` for many rows, in arrival order.

        The first tuple that each flow would try is nearly always free. So a stretch of rows is given these, up to the
        first row whose try is taken, be it by a flow of old or by one of this stretch; that one chooses by itself.
        """
        ct = self.node.conntrack
        open_ = (ct.status[span(trip.pkts.ct.take(rows))] & (CONFIRMED | DYING)) == 0
        rows = rows if open_.all() else rows[open_]
        lo, width, alone, broad = 0, len(rows), 1, 256
        zone = ct.zone[span(trip.pkts.ct.take(rows))]
        if ct.split or (zone >> 16).any():  # tuples that only one direction keeps from others
            for row in rows.tolist():
                self._set_up(trip, row, manip, asked.of(row))
            return
        while lo < len(rows):
            some = rows[lo : lo + width]
            settled = self._first_tries(trip, some, manip, asked)
            lo += settled
            if settled == len(some):
                width *= 2
                continue
            width = max(64, 2 * settled)
            some = rows[lo : lo + broad] if manip == SOURCE and len(rows) - lo >= MANY else rows[:0]
            contested = self._in_turn(trip, some, asked) if len(some) else 0
            lo += contested
            if 0 < contested == len(some):
                broad *= 2
                continue
            broad = max(64, 2 * contested)
            alone = 1 if settled + contested > 16 else 2 * alone  # where this keeps failing, more choose by themselves
            for row in rows[lo : lo + alone].tolist():
                self._set_up(trip, row, manip, asked.of(row))
            lo += alone

    def _first_tries(self, trip: Trip, rows: Rows, manip: str, asked: _Asked) -> int:
        """Give rows the tuple that they try first, until one of them finds it taken; how many got theirs."""
        ct = self.node.conntrack
        flows = span(trip.pkts.ct.take(rows))
        now = _current(ct, flows)
        address, port, wishing = self._tries(trip, rows, flows, now, manip, asked)
        changed = (address != now.address(manip)) | (port != now.port(manip))
        tried = now.with_side(manip, address, port)
        back = tried.answer()
        if manip == SOURCE:
            clash = ct.stored[flows].copy()
            if wishing.any():
                clash[self._mapped_before(now, ct.zone[flows], wishing)] = True
        else:
            clash = ct.table.find(back.keys(ct.zone[flows])) >= 0
        n = int(clash.argmax()) if clash.any() else len(rows)
        return self._give(trip.pkts.ct.take(rows[:n]), manip, now, back, changed)

    def _give(self, flows: NDArray[np.integer], manip: str, now: _Tuples, back: _Tuples, changed: Mask) -> int:
        """Answers to these flows will come as `back` where that is something else; how many got theirs.

        now, back, changed  columns as long as `flows` or longer
        """
        ct, n = self.node.conntrack, len(flows)
        bit, done = _BITS[manip]
        numbers = flows
        before = now.answer().upto(n).copy() if manip == SOURCE else None
        moved = np.flatnonzero(changed[:n])
        if len(moved) == n:
            self._write(span(numbers), back.upto(n))
        else:
            self._write(numbers[moved], back.take(moved))
        if manip == SOURCE and n:
            # nothing but the confirmation follows, so the tuples are taken from now on
            stored = ct.store_many(numbers)
            if stored < n:
                assert before is not None
                undone = moved[moved >= stored]
                self._write(numbers[undone], before.take(undone))
                n, moved, numbers = stored, moved[moved < stored], numbers[:stored]
            ct.remember_sources(numbers[moved])
        if len(moved) == n:
            ct.status[span(numbers)] |= bit | done
        else:
            ct.status[numbers[moved]] |= bit
            ct.status[span(numbers)] |= done
        return n

    def _in_turn(self, trip: Trip, rows: Rows, asked: _Asked) -> int:
        """`_set_up` for the sources of many rows that contend for tuples; how many of them were settled.

        Each row has tuples that it would try, one after the other. In every round all rows that have none try their
        next one: it is taken if the table has it, or if a row that came earlier holds it. A later row that holds it
        must give it up and try on, so in the end every row has the first one of its own that no earlier row took, as
        one by one. Up to the first row that is not so simple: then that one chooses by itself.
        """
        p, ct = trip.pkts, self.node.conntrack
        flows = p.ct[rows]
        now = _current(ct, flows)
        own = _originals(ct, flows)
        zone, time, born = ct.zone[flows], p.time[rows], ct.born[flows]
        n = len(rows)
        here, port = now.src.astype(np.int64), now.sport.astype(np.int64)
        lo, hi, port_lo, port_hi, _, random, persistent = asked.columns(rows)
        lo, hi = np.where(lo >= 0, lo, here), np.where(lo >= 0, hi, here)
        ranged, portable = port_lo >= 0, _PORTABLE[now.proto]
        fits = ~ranged | ((port_lo <= port) & (port <= port_hi))
        inside = (lo <= here) & (here <= hi) & (fits | ~portable)
        address = self._spread_over(trip, rows, now, lo, hi, persistent)
        simple = ~random & self._maps_alike(now, flows, zone, time, lo, hi, port_lo, port_hi) | random
        low, high = _port_range(now.proto, port)
        low, high = np.where(ranged, port_lo, low), np.where(ranged, port_hi, high)
        most = np.minimum(high - low + 1, 128) - (0 if self.node.kernel == "6.1" else 32)  # then closing ones may go
        # what each row tries: the tuple as it is, the same with the wish's address, and then drawn ports
        kept, addressed, drawn = range(3)
        stage = np.where(random | (ranged & ~fits), drawn, addressed)
        stage[inside & ~random] = kept
        tries, offset = np.zeros(n, np.int64), np.full(n, -1, np.int64)
        hints = dict[int, Iterator[int]]()  # ports that the capture shows for a row: they are tried first
        bad = (stage > kept) & (~simple | (ranged & ~portable)) | (stage == drawn) & (~portable | (most <= 0))
        chosen, source = port.copy(), here.copy()
        key0, key1 = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        originals = np.sort(_mixed(*own.keys(zone)))
        settled, open_ = np.zeros(n, bool), np.arange(n)
        while True:
            limit = int(bad.argmax()) if bad.any() else n
            open_ = open_[open_ < limit]
            if not len(open_):
                break
            at = stage[open_]
            fresh = open_[(at == drawn) & (offset[open_] < 0)]
            if len(fresh):
                offset[fresh] = (trip.random(rows[fresh], PORT_SALT) & np.uint64(0xFFFF)).view(np.int64)
                for k in self._maybe_shown(trip, rows, fresh, now, address, low, high, offset):
                    t = (int(address[k]), now.dst.item(k), now.sport.item(k), now.dport.item(k), now.proto.item(k))
                    size = int(high[k] - low[k]) + 1
                    hints[k] = self._shown(trip, int(rows[k]), t, SOURCE, int(low[k]), size, int(offset[k]))
            ports = low[open_] + (offset[open_] + tries[open_]) % (high - low + 1)[open_]
            hinted = np.isin(open_, list(hints)) & (at == drawn)
            for j in np.flatnonzero(hinted).tolist():
                k = int(open_[j])
                port_shown = next(hints[k], None)
                if port_shown is None:
                    del hints[k]
                else:
                    ports[j], tries[k] = port_shown, -1  # the drawn one comes after it
            chosen[open_] = np.where(at == drawn, ports, port[open_])
            source[open_] = np.where(at == kept, here[open_], address[open_])
            back = now.take(open_).with_side(
                SOURCE, source[open_].astype(np.uint32), chosen[open_].astype(np.uint16)
            ).answer()  # fmt: skip
            key0[open_], key1[open_] = back.keys(zone[open_])
            found = ct.table.find((key0[open_], key1[open_]))
            taken = found >= 0
            if taken.any():
                by, whose = found[taken] >> 1, open_[taken]
                alike = (ct.osrc[by] == own.src[whose]) & (ct.odst[by] == own.dst[whose])
                alike &= (ct.osport[by] == own.sport[whose]) & (ct.odport[by] == own.dport[whose])
                bad[whose] |= alike | (ct.deadline[by] <= time[whose]) | (ct.born[by] > born[whose])
            free = open_[~taken]
            mixed = _mixed(key0[free], key1[free])
            bad[free] |= originals[np.minimum(np.searchsorted(originals, mixed), n - 1)] == mixed
            settled[free] = True
            have = np.flatnonzero(settled)
            mixed = _mixed(key0[have], key1[have])
            order = np.argsort(mixed, kind="stable")
            lost = have[order[1:][mixed[order[1:]] == mixed[order[:-1]]]]  # an earlier row has it
            settled[lost] = False
            open_ = np.sort(np.append(open_[taken], lost))
            # on to the next try
            at = stage[open_]
            bad[open_] |= ~(portable & simple)[open_]
            bad[open_] |= (at < drawn) & (low == high)[open_]
            tries[open_] += at == drawn
            stage[open_] = np.where(
                (at == kept) & fits[open_] & (address[open_] != here[open_]), addressed, drawn
            )  # fmt: skip
            bad[open_] |= (stage[open_] == drawn) & (tries[open_] >= most[open_])
        n = limit
        changed = (source != here) | (chosen != port)
        back = now.with_side(SOURCE, source.astype(np.uint32), chosen.astype(np.uint16)).answer()
        return self._give(flows[:n], SOURCE, now, back, changed) if n else 0

    def _maybe_shown(
        self, trip: Trip, rows: Rows, which: NDArray[np.intp], now: _Tuples, address: I64, low: I64, high: I64,
        offset: I64,
    ) -> list[int]:  # fmt: skip
        """Those of `which` for whose source the capture may show another port than the drawn one."""
        if self.shown is None or trip.pkts is not self.shown.pkts:
            return []
        which = which[low[which] < high[which]]
        ends = _Tuples(
            address[which].astype(np.uint32), now.dst[which], now.sport[which], now.dport[which], now.proto[which]
        )
        first = low[which] + offset[which] % (high - low + 1)[which]
        out: list[int] = which[self._undecided(self.shown, rows[which], ends, first, SOURCE)].tolist()
        return out

    def _maps_alike(
        self, now: _Tuples, flows: NDArray[np.integer], zone: NDArray[np.uint32], time: I64, lo: I64, hi: I64,
        port_lo: I64, port_hi: I64,
    ) -> Mask:  # fmt: skip
        """bool[n]: rows whose source, if it was mapped before, was so for the same other end: that tuple is taken.

        Of rows with one source all must ask the same, for whichever of them is mapped last is the one to look at.
        """
        ct = self.node.conntrack
        source = now.proto.astype(np.int64) << 48 | now.src.astype(np.int64) << 16 | now.sport
        _, first, group = np.unique(source, return_index=True, return_inverse=True)
        out: Mask = zone == 0
        for column in (now.dst, now.dport, lo, hi, port_lo, port_hi):
            out &= column == column[first][group]
        odd = np.bincount(group, ~out) > 0
        for k, row in enumerate(first.tolist()) if ct.mapped else ():
            t = now.src.item(row), 0, now.sport.item(row), 0, now.proto.item(row)
            flow = -1 if odd[k] else next(ct.mapped.of(t, 0), -1)
            if flow >= 0:
                was = ct.reply(flow)
                alike = was[0] == now.dst[row] and was[2] == now.dport[row] and lo[row] <= was[1] <= hi[row]
                alike &= port_lo[row] < 0 or port_lo[row] <= was[3] <= port_hi[row]
                odd[k] = not alike or now.proto[row] == ICMP or ct.deadline[flow] <= time[first[k] :].max()
        return out & ~odd[group]

    def _write(self, flows: NDArray[np.integer] | slice, back: _Tuples) -> None:
        """Answers to these flows will come as `back`."""
        ct = self.node.conntrack
        ct.rsrc[flows], ct.rdst[flows], ct.rsport[flows], ct.rdport[flows] = back.src, back.dst, back.sport, back.dport

    def _tries(
        self, trip: Trip, rows: Rows, flows: NDArray[np.integer] | slice, now: _Tuples, manip: str, asked: _Asked
    ) -> tuple[U32, U16, Mask]:
        """(address, port, bool: the wish is not met yet) that each row tries first: what `_unique` begins with."""
        number = asked.number.take(rows)
        given = number >= 0
        if not given.any():
            return now.address(manip), now.port(manip), np.zeros(len(rows), bool)
        wishes, of = asked.wishes, number.astype(np.intp)
        if wishes.plain:
            return self._plain_tries(rows, of, given, now, manip, asked)
        here, port = now.address(manip).astype(np.int64), now.port(manip).astype(np.int64)
        lo, hi, port_lo, port_hi, base, random, persistent = asked.columns(rows)
        lo, hi = np.where(lo >= 0, lo, here), np.where(lo >= 0, hi, here)
        has_ports = given & (port_lo >= 0)
        portable = _PORTABLE[now.proto]
        fits = ~has_ports | ((port_lo <= port) & (port <= port_hi))
        wishing = given
        if manip == SOURCE:
            wishing = given & (random | ~((lo <= here) & (here <= hi) & (fits | ~portable)))
        address = np.where(wishing, self._spread_over(trip, rows, now, lo, hi, persistent), here)
        search = wishing & portable & (random | (has_ports & ((base >= 0) | ~fits)))
        if manip == DESTINATION:
            search &= has_ports | (now.proto == ICMP)
        where = np.flatnonzero(search)
        if len(where):
            port = port.copy()
            to = now.take(where).with_side(manip, address[where].astype(np.uint32), now.port(manip)[where])
            port[where] = self._first_port(trip, rows[where], to, manip, random[where],
                                           port_lo[where], port_hi[where], base[where])  # fmt: skip
        if manip == SOURCE:
            wishing = wishing & ~random
        return address.astype(np.uint32), port.astype(np.uint16), wishing

    def _spread_over(self, trip: Trip, rows: Rows, now: _Tuples, lo: I64, hi: I64, persistent: Mask) -> I64:
        """The address of lo..hi that is each row's."""
        address = lo.copy()
        spread = np.flatnonzero(lo != hi)
        if len(spread):
            src, dst = now.src[spread].byteswap(), now.dst[spread].byteswap()
            zero = np.zeros(len(spread), np.uint32)
            dst ^= self.node.conntrack.zone[trip.pkts.ct[rows[spread]]] & np.uint32(0xFFFF)
            h = jhash2((src, zero, zero, zero), np.where(persistent[spread], zero, dst)).astype(np.int64)
            address[spread] += (h * (hi[spread] - lo[spread] + 1)) >> 32
        return address

    def _plain_tries(
        self, rows: Rows, of: NDArray[np.intp], given: Mask, now: _Tuples, manip: str, asked: _Asked
    ) -> tuple[U32, U16, Mask]:
        """`_tries`, where no wish leaves anything to be chosen.   of  intp[n]: which wish"""
        wishes, here, own = asked.wishes, now.address(manip), now.port(manip)
        address = wishes.address.take(of, mode="clip")
        if asked.address is not None:
            address = np.where(wishes.kind.take(of, mode="clip") != 0, asked.address.take(rows), address)
        port, named = own, wishes.has_port.take(of, mode="clip")
        if named.any():
            named &= _PORTABLE.take(now.proto)
            port = wishes.port.take(of, mode="clip")
            if not named.all():
                port = np.where(named, port, own)
        wishing = given
        if not given.all():
            address, port = np.where(given, address, here), np.where(given, port, own)
        if manip == SOURCE:
            wishing = given & ((address != here) | (port != own))
        return address, port, wishing

    def _first_port(
        self, trip: Trip, rows: Rows, to: _Tuples, manip: str, random: Mask, lo: I64, hi: I64, base: I64
    ) -> I64:
        """The port with which `_free_port` begins. to: the tuples, but for it"""
        proto, port = to.proto, to.port(manip).astype(np.int64)
        own = lo >= 0
        low, high = _port_range(proto, port)
        lo, hi = np.where(own, lo, low), np.where(own, hi, high)
        size = hi - lo + 1
        offset = np.zeros(len(rows), np.int64)
        draw = lo != hi
        if manip == DESTINATION and self.node.kernel != "6.1":
            draw &= random
        drawn = np.flatnonzero(draw & (base < 0))
        offset[drawn] = (trip.random(rows[drawn], PORT_SALT) & np.uint64(0xFFFF)).view(np.int64)
        offset = np.where(base >= 0, (port - base) & 0xFFFF, offset)
        first: I64 = lo + offset % size
        if self.shown is not None and trip.pkts is self.shown.pkts and len(drawn):
            some = self._undecided(self.shown, rows[drawn], to.take(drawn), first[drawn], manip)
            ct, given = self.node.conntrack, set()  # these come before: their tuples will be taken
            for k in drawn[some].tolist():
                row = int(rows[k])
                flow, now = int(trip.pkts.ct[row]), int(trip.pkts.time[row])
                t = (to.src.item(k), to.dst.item(k), to.sport.item(k), to.dport.item(k), to.proto.item(k))
                for shown in self._shown(trip, row, t, manip, int(lo[k]), int(size[k]), int(offset[k])):
                    back = inverse(_with_port(t, manip, shown))
                    if back not in given and not ct.taken(back, flow, now):
                        first[k] = shown
                        given.add(back)
                        break
        return first

    @staticmethod
    def _undecided(shown: Shown, rows: Rows, to: _Tuples, first: I64, manip: str) -> Mask:
        """bool[n]: the capture may show another port than the one that was drawn first for a tuple."""
        fixed = np.where(to.proto == ICMP, 0, to.dport if manip == SOURCE else to.sport)
        out: Mask = shown.some(to.dst, to.src, to.proto, fixed, source=manip == SOURCE)
        if manip == SOURCE and out.any():
            out &= ~shown.as_drawn(rows, to.dst, to.src, to.proto, fixed, first)
        return out

    def _mapped_before(self, now: _Tuples, zone: NDArray[np.uint32], wishing: Mask) -> NDArray[np.intp]:
        """Those of the rows whose wish is not met whose source was mapped before: they may be given the same again."""
        where = np.flatnonzero(wishing)
        src, sport, proto, zone = now.src[where], now.sport[where], now.proto[where], zone[where]
        again = self.node.conntrack.mapped.known(src, sport, proto, zone)
        u = np.uint64
        again[repeats((src.astype(u) << u(32) | sport.astype(u) << u(16) | proto, zone.astype(u)))] = True
        return where[again]

    # ---- one choice --------------------------------------------------------------------------------------------

    def _unique(self, trip: Trip, row: int, flow: int, current: Tuple, manip: str, wish: Range) -> Tuple:
        """A tuple inside the wish whose answers no other flow expects (or the last one tried)."""
        ct = self.node.conntrack
        now = int(trip.pkts.time[row])
        proto = current[4]
        if manip == SOURCE and not wish.random:
            if _inside(current, manip, wish) and not ct.taken(inverse(current), flow, now):
                return current
            for other in ct.mapped.of(current, int(ct.zone[flow])):
                if int(ct.deadline[other]) <= now or other == flow:
                    continue
                was = inverse(ct.reply(other))
                again = (was[0], current[1], was[2], current[3], proto)
                if _inside(again, manip, wish):
                    if not ct.taken(inverse(again), flow, now):
                        return again
                    break
        tuple_ = _with_address(current, manip, self._address(current, manip, wish, int(ct.zone[flow])))
        if not wish.random:
            if wish.port_lo is not None and wish.port_hi is not None:
                lo, hi = sorted((wish.port_lo, wish.port_hi))
                port = _port(tuple_, manip)
                if wish.base is None and lo <= port <= hi and (lo == hi or not ct.taken(inverse(tuple_), flow, now)):
                    return tuple_
            elif not ct.taken(inverse(tuple_), flow, now):
                return tuple_
        return self._free_port(trip, row, flow, tuple_, manip, wish)

    def _address(self, t: Tuple, manip: str, wish: Range, zone: int) -> int:
        here = t[0] if manip == SOURCE else t[1]
        if wish.lo is None:
            return here
        hi = wish.lo if wish.hi is None else wish.hi
        if wish.lo == hi:
            return wish.lo
        src, dst = (int.from_bytes(a.to_bytes(4, "big"), "little") for a in (t[0], t[1]))
        h = int(jhash2((src, 0, 0, 0), 0 if wish.persistent else dst ^ zone & 0xFFFF))
        return wish.lo + ((h * (hi - wish.lo + 1)) >> 32)

    def _free_port(self, trip: Trip, row: int, flow: int, t: Tuple, manip: str, wish: Range) -> Tuple:
        """Search the pool of ports (ICMP: ids) from a drawn start: 128 tries, then fewer from elsewhere, as Linux."""
        ct = self.node.conntrack
        now = int(trip.pkts.time[row])
        proto = t[4]
        port = _port(t, manip)
        if proto not in (TCP, UDP, UDPLITE, SCTP, ICMP):
            return t
        if wish.port_lo is not None and wish.port_hi is not None:
            lo, hi = sorted((wish.port_lo, wish.port_hi))
        elif proto == ICMP:
            lo, hi = 0, 65535
        elif manip == DESTINATION:
            return t
        elif port < 512:
            lo, hi = 1, 511
        elif port < 1024:
            lo, hi = 600, 1023
        else:
            lo, hi = 1024, 65535
        size = hi - lo + 1
        draw = 0
        one = np.array([row])
        if wish.base is not None:
            offset = (port - wish.base) & 0xFFFF
        elif (manip == DESTINATION and not wish.random and self.node.kernel != "6.1") or size == 1:
            offset = 0
        else:
            offset = int(trip.random(one, PORT_SALT)[0]) & 0xFFFF
            for shown in self._shown(trip, row, t, manip, lo, size, offset):
                candidate = _with_port(t, manip, shown)
                if not ct.taken(inverse(candidate), flow, now):
                    return candidate
        attempts = min(size, 128)
        while True:
            for k in range(attempts):
                candidate = _with_port(t, manip, lo + (offset + k) % size)
                back = inverse(candidate)
                if not ct.taken(back, flow, now):
                    return candidate
                if self.node.kernel != "6.1" and attempts - k <= 32 and self._recycle(trip, row, flow, back, now):
                    return candidate
            if attempts >= size or attempts < 16:
                return candidate
            attempts //= 2
            draw += 1
            offset = int(trip.random(one, PORT_SALT + draw)[0]) & 0xFFFF

    def _shown(self, trip: Trip, row: int, t: Tuple, manip: str, lo: int, size: int, offset: int) -> Iterator[int]:
        """Ports that the capture shows, instead of the one that was drawn (see shown.py)."""
        if self.shown is not None and trip.pkts is self.shown.pkts:
            fixed = 0 if t[4] == ICMP else t[3] if manip == SOURCE else t[2]
            drawn = lo + offset % size
            yield from self.shown.ports(row, t[1], t[0], t[4], fixed, lo, size, drawn, source=manip == SOURCE)

    def _recycle(self, trip: Trip, row: int, flow: int, back: Tuple, now: int) -> bool:
        """A closing connection holds the tuple, and this SYN is newer: delete it and take its place."""
        p, ct = trip.pkts, self.node.conntrack
        if back[4] != TCP or not int(p.flags[row]) & SYN:
            return False
        ct.too_early = min(ct.too_early, int(ct.born[flow]))  # it looks at states, which may be of later
        found = ct.clash(back, now, int(ct.zone[flow]), 1)
        if found < 0:
            return True
        other = found >> 1
        if not ct.status[other] & SRC_NAT or ct.status[other] & FIXED_TIMEOUT:
            return False
        if int(ct.tcp.misc[other, 9]) not in (TW, CL):
            return False
        if not before(int(ct.tcp.td[other, 0, 0]), int(ct.tcp.td[flow, 0, 0])):
            return False
        ct.kill(other)
        return True

    # ---- every packet ------------------------------------------------------------------------------------------

    def _translate(self, trip: Trip, rows: Rows, manip: str) -> bool:
        """Write the other direction's addresses into packets whose flow is rewritten there. True if one died."""
        p, ct = trip.pkts, self.node.conntrack
        at = span(rows)
        flows = span(p.ct[at])
        reply = p.reply[at]
        status = ct.status[flows]
        mine, others = (DST_NAT, SRC_NAT) if manip == DESTINATION else (SRC_NAT, DST_NAT)
        moved = np.where(reply, (status & others) != 0, (status & mine) != 0) if reply.any() else (status & mine) != 0
        if not moved.any():
            return False
        if not moved.all():
            rows, reply = rows[moved], reply[moved]
            at = rows
            flows = span(p.ct.take(rows))
        proto = p.proto[at]
        short = (proto == GRE) & (p.length[at] < p.ihl[at] + 8)
        if short.any():
            flows = p.ct.take(rows)
            trip.end(rows[short], "nat: a GRE header too short to be rewritten")
            rows, flows, reply, proto = rows[~short], flows[~short], reply[~short], proto[~short]
        answers = bool(reply.any())

        def said(original: NDArray[T], answer: NDArray[T]) -> NDArray[T]:
            """What the tuple of the other direction has to say."""
            out: NDArray[T] = np.where(reply, original[flows], answer[flows]) if answers else answer[flows]
            return out

        if manip == DESTINATION:
            port = said(ct.osport, ct.rsport)
            trip.rewrite(rows, "dst", said(ct.osrc, ct.rsrc), _TRANSLATED)
            column = "dport"
        else:
            port = said(ct.odport, ct.rdport)
            trip.rewrite(rows, "src", said(ct.odst, ct.rdst), _TRANSLATED)
            column = "sport"
        icmp = proto == ICMP
        if icmp.any():
            ids = said(ct.osport, ct.rsport)
            trip.rewrite(rows[icmp], "icmp_id", ids[icmp], _TRANSLATED)
        ported = ct.ported.take(proto)
        if ported.all():
            trip.rewrite(rows, column, port, _TRANSLATED)
        elif ported.any():
            trip.rewrite(rows[ported], column, port[ported], _TRANSLATED)
        return bool(short.any())

    def _translate_error(self, trip: Trip, row: int, manip: str) -> bool:
        """Translate an ICMP error: the packet it quotes, then the error itself. False when it had to be dropped."""
        p, ct = trip.pkts, self.node.conntrack
        one = np.array([row])
        flow = int(p.ct[row])
        status = int(ct.status[flow])
        packet = p.bytes(row)
        ihl = int(p.ihl[row])
        if not p.local[row] and checksum(packet[ihl:]) != 0:
            trip.end(one, "nat: ICMP error with a wrong checksum")
            return False
        if packet[ihl] == 5:
            decided = SRC_NAT_DONE | DST_NAT_DONE
            if status & decided != decided or status & (SRC_NAT | DST_NAT):
                trip.end(one, "nat: a redirect does not hold behind NAT")
                return False
        reply = bool(p.reply[row])
        mine, others = (DST_NAT, SRC_NAT) if manip == DESTINATION else (SRC_NAT, DST_NAT)
        if not status & (others if reply else mine):
            return True
        target = inverse(ct.original(flow) if reply else ct.reply(flow))  # how the error itself travels
        inner = inverse(target)  # how the quoted packet travelled
        quote = packet[ihl + 8 :]
        if quote[9] in (TCP, UDP, UDPLITE, SCTP, ICMP, GRE) and len(quote) < (quote[0] & 15) * 4 + 8:
            trip.end(one, "nat: an ICMP error quotes too little to be rewritten")
            return False
        # the side of the quoted packet that answers the side of the error which this hook rewrites
        quoted_side = SOURCE if manip == DESTINATION else DESTINATION
        body = bytearray(packet[ihl:])
        _rewrite_quoted(trip, row, body, quoted_side, inner)
        body[2:4] = b"\0\0"
        struct.pack_into("!H", body, 2, checksum(bytes(body)))
        p.rebuild(row, packet[:ihl] + bytes(body))
        if manip == DESTINATION:
            trip.rewrite(one, "dst", target[1], _TRANSLATED)
        else:
            trip.rewrite(one, "src", target[0], _TRANSLATED)
        return True


def _rewrite_quoted(trip: Trip, row: int, body: bytearray, side: str, t: Tuple) -> None:
    """Set one side (address and port) of the packet quoted in an ICMP error's body."""
    at = 8
    inner = bytes(body[at:])
    was = quoted_tuple(inner)
    ihl = (inner[0] & 15) * 4
    place, port_place = (12, 0) if side == SOURCE else (16, 2)
    address, port = (t[0], t[2]) if side == SOURCE else (t[1], t[3])
    (old_address,) = struct.unpack_from("!I", inner, place)
    (check,) = struct.unpack_from("!H", inner, 10)
    halves = (old_address >> 16, old_address & 0xFFFF), (address >> 16, address & 0xFFFF)
    struct.pack_into("!H", body, at + 10, patched(check, *halves))
    struct.pack_into("!I", body, at + place, address)
    log = trip.changes
    one = np.array([row])
    if old_address != address:
        name = "inner.src" if side == SOURCE else "inner.dst"
        log.append((_TRANSLATED, name, one, np.array([old_address], np.uint32), np.array([address], np.uint32)))
    proto = inner[9]
    if was is None:
        return
    if proto == ICMP:
        (old,) = struct.unpack_from("!H", inner, ihl + 4)
        new, where, check_at, name = t[2], ihl + 4, ihl + 2, "inner.id"
        old_words: tuple[int, ...] = (old,)
        new_words: tuple[int, ...] = (new,)
    elif trip.node.conntrack.ported[proto]:
        (old,) = struct.unpack_from("!H", inner, ihl + port_place)
        new, where, name = port, ihl + port_place, "inner.sport" if side == SOURCE else "inner.dport"
        check_at = {TCP: ihl + 16, UDP: ihl + 6, UDPLITE: ihl + 6}.get(proto, 1 << 20)
        if proto == DCCP and len(inner) >= ihl + 12:
            check_at = ihl + 6
        old_words, new_words = (*halves[0], old), (*halves[1], new)
    else:
        return
    if len(inner) >= check_at + 2:
        (check,) = struct.unpack_from("!H", inner, check_at)
        if check or proto != UDP:
            struct.pack_into(
                "!H", body, at + check_at, patched(check, old_words, new_words) or (0xFFFF if proto == UDP else 0)
            )
    struct.pack_into("!H", body, at + where, new)
    if proto == SCTP and len(inner) >= ihl + 12:  # made anew from what is quoted
        struct.pack_into("<I", body, at + ihl + 8, 0)
        struct.pack_into("<I", body, at + ihl + 8, crc32c(body[at + ihl :]))
    if old != new:
        log.append((_TRANSLATED, name, one, np.array([old], np.uint16), np.array([new], np.uint16)))


@dataclass
class _Tuples:
    """Tuples in columns; ICMP: sport is the id, dport is type << 8 | code."""

    src: NDArray[np.uint32]
    dst: NDArray[np.uint32]
    sport: NDArray[np.uint16]
    dport: NDArray[np.uint16]
    proto: NDArray[np.uint8]

    def address(self, manip: str) -> NDArray[np.uint32]:
        return self.src if manip == SOURCE else self.dst

    def port(self, manip: str) -> NDArray[np.uint16]:
        if manip == SOURCE:
            return self.sport
        icmp = self.proto == ICMP
        return np.where(icmp, self.sport, self.dport) if icmp.any() else self.dport

    def with_side(self, manip: str, address: NDArray[np.uint32], port: NDArray[np.uint16]) -> _Tuples:
        if manip == SOURCE:
            return _Tuples(address, self.dst, port, self.dport, self.proto)
        icmp = self.proto == ICMP
        return _Tuples(
            self.src, address, np.where(icmp, port, self.sport), np.where(icmp, self.dport, port), self.proto
        )

    def upto(self, n: int) -> _Tuples:
        """The first n."""
        return _Tuples(self.src[:n], self.dst[:n], self.sport[:n], self.dport[:n], self.proto[:n])

    def copy(self) -> _Tuples:
        """Of columns of their own."""
        return _Tuples(self.src.copy(), self.dst.copy(), self.sport.copy(), self.dport.copy(), self.proto)

    def take(self, which: NDArray[np.intp]) -> _Tuples:
        return _Tuples(self.src[which], self.dst[which], self.sport[which], self.dport[which], self.proto[which])

    def answer(self) -> _Tuples:
        """The tuples of the answers: `inverse` of each."""
        icmp = self.proto == ICMP
        if not icmp.any():
            return _Tuples(self.dst, self.src, self.dport, self.sport, self.proto)
        paired = _PAIR[self.dport >> 8] << 8 | (self.dport & 255)
        return _Tuples(
            self.dst, self.src, np.where(icmp, self.sport, self.dport), np.where(icmp, paired, self.sport), self.proto
        )

    def keys(self, zone: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The two words under which conntrack keeps them."""
        words = key_words(self.src, self.dst, self.sport, self.dport, self.proto)
        if zone.any():
            np.bitwise_or(words[1], zone, out=words[1])
        return words


def _port_range(proto: NDArray[np.uint8], port: I64) -> tuple[I64, I64]:
    """Among which ports one is drawn where no range is wished for."""
    low = np.where(proto == ICMP, 0, np.where(port < 512, 1, np.where(port < 1024, 600, 1024)))
    high = np.where(proto == ICMP, 65535, np.where(port < 512, 511, np.where(port < 1024, 1023, 65535)))
    return low, high


def _mixed(a: U64, b: U64) -> U64:
    """One word for the two of a key: the same for the same, and hardly ever for others."""
    x = (a ^ (a >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + b
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
    out: U64 = x ^ (x >> np.uint64(30))
    return out


def _originals(ct: Conntrack, flows: NDArray[np.integer]) -> _Tuples:
    """The original tuples."""
    return _Tuples(ct.osrc[flows], ct.odst[flows], ct.osport[flows], ct.odport[flows], ct.proto[flows])


def _current(ct: Conntrack, flows: NDArray[np.integer] | slice) -> _Tuples:
    """What packets of the original direction look like now: the inverse of the reply tuple."""
    return _Tuples(ct.rsrc[flows], ct.rdst[flows], ct.rsport[flows], ct.rdport[flows], ct.proto[flows]).answer()


_PAIR = np.array([PAIRED.get(k, 0) for k in range(256)], np.uint16)
_PORTABLE = np.isin(np.arange(256), (TCP, UDP, UDPLITE, SCTP, ICMP))


def _port(t: Tuple, manip: str) -> int:
    return t[2] if manip == SOURCE or t[4] == ICMP else t[3]


def _with_port(t: Tuple, manip: str, port: int) -> Tuple:
    if manip == SOURCE or t[4] == ICMP:
        return t[0], t[1], port, t[3], t[4]
    return t[0], t[1], t[2], port, t[4]


def _with_address(t: Tuple, manip: str, address: int) -> Tuple:
    if manip == SOURCE:
        return address, t[1], t[2], t[3], t[4]
    return t[0], address, t[2], t[3], t[4]


def _inside(t: Tuple, manip: str, wish: Range) -> bool:
    """Is the tuple what the wish asks for already?"""
    address = t[0] if manip == SOURCE else t[1]
    if wish.lo is not None and not wish.lo <= address <= (wish.lo if wish.hi is None else wish.hi):
        return False
    if wish.port_lo is None or wish.port_hi is None or t[4] not in (TCP, UDP, UDPLITE, SCTP, ICMP):
        return True
    lo, hi = sorted((wish.port_lo, wish.port_hi))
    return lo <= _port(t, manip) <= hi
