"""Settled traffic: packets that fare as one before them did are not asked again.

    tracked --> which connection, which way, what does it look like? --> seen before --> as that one fared
                                                                    '--> not seen --> the road; remember how it fared

Most packets of most traffic belong to connections that everything has been decided about. What befalls such a packet
behind the tracking stop is the same for all that look alike (`looks`) and belong to one direction of one connection:
the rules that it meets, its route, the translation, the way out, the counters that grow. So what befell one of them is
remembered as its *fare*: a number by connection and direction (`Conntrack.fares`), and under it, in columns here, what
to write. Fares are few, since nothing in them is of one connection alone: translated addresses are read from the
connection, as `nat` does.

Why it is exact. A packet is given a fare only if all of this holds, and then every stop would do to it what it did to
the one whose fare it is:

* It is an ESTABLISHED TCP or UDP packet of a confirmed connection, addressed to the node on the link, with a plain IP
  header, no fragment, without a mark; its header is right (`Road._sane` stands before). It came by the same steps to
  the tracking stop, on the same link, with the same TOS and TTL, its connection has the same status bits, and of its
  TCP flags those are the same that any rule looks at. It is no longer than the way out takes.
* What the one before it met was steadfast: each match and target *declares* (`Extension.steadfast`) that to packets
  that look alike in this sense it says and does the same, whenever they come. A packet that met anything else, or that
  drew lots, caused an ICMP error or a reset, or was told of a better way, is fickle (`Trip.waver`) and leaves no fare.
* Nothing has changed since: the rules, the routes, addresses and links, the settings, or whatever a command may have
  touched (`Settled._stamped`). All fares are forgotten then.
* The connection is the same: one that begins has no fares, whoever had its number before.

A run of one packet goes the whole road: it is the meaning that longer runs must equal, fares and all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netemu.conntrack import CONFIRMED, DYING, SEQ_ADJUST
from netemu.hashing import Table
from netemu.packets import (
    DONT_FRAGMENT,
    ESTABLISHED,
    HELD,
    HOST,
    I32,
    TCP,
    TRAVELLING,
    U64,
    UDP,
    Mask,
    Packets,
    Rows,
)
from netemu.paths import Step

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.tables import Chain, Rule
    from netemu.trip import Trip

At = Rows | slice
#: fields that are the connection's: bit, the column, where the connection has it for packets of either direction
_TUPLE = (
    (1, "dst", "rsrc", "osrc"),
    (2, "dport", "rsport", "osport"),
    (4, "src", "rdst", "odst"),
    (8, "sport", "rdport", "odport"),
)
_OWN = {"src": ("osrc", "rsrc"), "dst": ("odst", "rdst"), "sport": ("osport", "rsport"), "dport": ("odport", "rdport")}
#: columns by fare, as `_Fares` has them
_COLUMNS = {
    "looks": "u8", "trail": "u8", "path": "i4", "via": "u4", "mark": "u4", "mtu": "i4", "evaluated": "i4",
    "reason": "i4", "fate": "u1", "ttl": "u1", "tos": "u1", "kind": "i1", "left": "i2", "link_out": "i2", "link": "i2",
    "moved": "u1", "changes": "i4",
}  # fmt: skip
_NOBODY = np.iinfo(np.uint64).max  # what no packet looks like
_NO_ROWS: Rows = np.zeros(0, np.intp)
_TWICE = np.iinfo(np.int32).min
_MOST = 1 << 18  # more fares than this are forgotten all together
_KNOWN_STATE = "conntrack: ESTABLISHED"
#: one change of a header field: by whom, which, from what to what; None: what stands in the packet
_Change = tuple[Step, str, int | None, int | None]


class _Fares:
    """What befell packets, in columns by number; number 0 is nothing.

    looks, trail   what a packet looks like (`looks`), and the steps that it took before it was tracked (`Trip.trail`)
    path           all its steps          evaluated  how many rules it was asked by behind the tracking stop
    via            the gateway, 0: its destination is on the link     kind, link   the rest of the route
    mtu            of the way out: the longest packet that fares so
    moved          which of _TUPLE were translated     mark, tos, ttl, fate, reason, left, link_out   as they stood last
    changes        number of what is told of its rewriting
    """

    looks: U64
    trail: U64
    path: I32
    via: NDArray[np.uint32]
    mark: NDArray[np.uint32]
    mtu: I32
    evaluated: I32
    reason: I32
    fate: NDArray[np.uint8]
    ttl: NDArray[np.uint8]
    tos: NDArray[np.uint8]
    kind: NDArray[np.int8]
    left: NDArray[np.int16]
    link_out: NDArray[np.int16]
    link: NDArray[np.int16]
    moved: NDArray[np.uint8]
    changes: I32

    def __init__(self) -> None:
        self.numbers = Table(7)
        self.n = 1
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(64, dtype))
        self.looks[0] = _NOBODY
        self.tightest = 1 << 16  # least of all mtus
        self.counters: list[tuple[Rule | Chain, ...]] = [()]
        self.told: list[tuple[_Change, ...]] = []  # by number of changes

    def reserve(self, n: int) -> None:
        """Room for numbers below `n`."""
        size = len(self.looks)
        if n > size:
            for name in _COLUMNS:
                setattr(self, name, np.resize(getattr(self, name), max(n, 2 * size)))


class _Seen:
    """Packets of a run that go the road and may leave a fare, as they stand at the tracking stop.

    ids       intp[n]  2 * connection + direction         looks, trail   as in _Fares
    changes   how many rewrites the trip had noted before
    """

    def __init__(self, rows: Rows, ids: NDArray[np.intp], looks: U64, trail: U64, evaluated: I32, changes: int) -> None:
        self.rows, self.ids, self.looks, self.trail = rows, ids, looks, trail
        self.evaluated, self.changes = evaluated, changes


class Settled:
    """The fares of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.changes = 0  # how often something may have been changed from outside
        self.era = 0  # how often all was forgotten
        self._stamp: tuple[object, ...] = ()
        self._fares = _Fares()
        self._seen: _Seen | None = None
        self._passed: At = _NO_ROWS
        self._of_path: dict[int, tuple[Rule | Chain, ...]] = {}
        self._change_numbers: dict[tuple[_Change, ...], int] = {}
        self._flags = np.uint8(0)  # those that rules look at

    @property
    def on(self) -> bool:
        """Fares are kept: connections are tracked, IPVS serves nobody, no rule is in doubt."""
        node = self.node
        return node.conntrack.on and not node.ipvs.active and node.doubts is None

    def _stamped(self, trip: Trip) -> tuple[object, ...]:
        """Another one: what was remembered holds no more."""
        node = self.node
        return self.changes, node.tables.version, node.routing.version, node.sysctl.version, trip.remember

    def forget(self) -> None:
        """Nothing is known of any connection."""
        self.era += 1
        self.node.conntrack.fares[:] = 0
        self._fares = _Fares()
        self._of_path.clear()
        self._change_numbers.clear()
        self._flags = np.uint8(self.node.tables.flags_asked)

    # ---- the stop behind tracking --------------------------------------------------------------------------------

    def pass_by(self, trip: Trip, rows: Rows) -> Rows:
        """Packets of a run that just were tracked: those whose fare is known are through. The others go on.

        Cost: for those that go on some 10 ns each; for those that do not, all that befalls them, some 40 ns.
        """
        p, ct = trip.pkts, self.node.conntrack
        at: At = slice(rows.item(0), rows.item(-1) + 1) if rows.item(-1) - rows.item(0) + 1 == len(rows) else rows
        fit = p.state[at] == ESTABLISHED
        if not fit.any():
            return rows
        stamp = self._stamped(trip)
        if stamp != self._stamp or self._fares.n > _MOST:
            self.forget()
            self._stamp = stamp
        fares = self._fares
        flows = p.ct[at].astype(np.intp)
        reply = p.reply[at]
        ids = flows << 1
        ids |= reply
        self._restrict(trip, at, rows, flows, fit)
        looks = self._looks(p, at, ct.status.take(flows, mode="wrap"))
        trail = trip.trail(at)
        which = ct.fares.take(ids, mode="wrap")
        hit = fares.looks.take(which, mode="clip") == looks
        hit &= fit
        first = trail[0]
        if (trail == first).all():
            same = fares.trail[: fares.n] == first
            if not same.all():
                hit &= same.take(which, mode="clip")
        else:
            hit &= fares.trail.take(which, mode="clip") == trail
        if int(p.length[at].max()) > fares.tightest:
            hit &= fares.mtu.take(which, mode="clip") >= p.length[at]
        through = int(np.count_nonzero(hit))
        if through == len(rows):
            self._passed = at
            self._carry(trip, at, which, flows, reply)
            return _NO_ROWS
        strangers = np.flatnonzero(fit & ~hit if through else fit)
        if len(strangers):
            trip.heed()
            some = rows.take(strangers)
            self._seen = _Seen(
                some, ids.take(strangers), looks.take(strangers), trail.take(strangers), p.evaluated.take(some),
                len(trip.changes),
            )  # fmt: skip
        if not through:
            return rows
        known = np.flatnonzero(hit)
        self._passed = rows.take(known)
        self._carry(trip, self._passed, which.take(known), flows.take(known), reply.take(known))
        return rows.compress(~hit)

    def _restrict(self, trip: Trip, at: At, rows: Rows, flows: NDArray[np.intp], fit: Mask) -> None:
        """Take out of `fit` what does not belong to settled traffic, whatever it looks like."""
        p, node = trip.pkts, self.node
        for column, plain in ((p.pkttype[at], HOST), (p.ihl[at], 20), (p.mark[at], 0), (p.path[at], 0)):
            odd = column != plain
            if odd.any():
                fit &= ~odd
        proto = p.proto[at]
        other = proto != TCP
        if other.any():
            fit &= ~other | (proto == UDP)
        pieces = (p.frag[at] & ~np.uint16(DONT_FRAGMENT)) != 0
        if pieces.any():
            fit &= ~pieces
        if trip.whole or p.rebuilt:
            fit &= ~np.isin(rows, [*trip.whole, *p.rebuilt])
        if node.helpers.attended:
            fit &= node.conntrack.helper.take(flows, mode="wrap") == 0

    def _looks(self, p: Packets, at: At, status: NDArray[np.uint16]) -> U64:
        """uint64[n]: all that steadfast rules see of packets, apart from their connection and their direction."""
        out = np.zeros(len(status), np.uint64)
        octets, words = out.view(np.uint8).reshape(-1, 8), out.view(np.uint16).reshape(-1, 4)
        octets[:, 0], octets[:, 1] = p.tos[at], p.ttl[at]
        if self._flags:
            octets[:, 2] = p.flags[at] & self._flags
        words[:, 2], words[:, 3] = p.arrived[at].view(np.uint16), status
        return out

    # ---- as those before them ------------------------------------------------------------------------------------

    def _carry(self, trip: Trip, at: At, which: I32, flows: NDArray[np.intp], reply: Mask) -> None:
        """These packets fare as it stands in `which`."""
        p, fares = trip.pkts, self._fares
        counts = np.bincount(which, minlength=fares.n)
        there = np.flatnonzero(counts)
        sizes = np.bincount(which, p.length[at], minlength=fares.n)
        for k in there.tolist():
            packets, size = counts.item(k), int(sizes.item(k))
            for counter in fares.counters[k]:
                counter.packets += packets
                counter.bytes += size

        def values(name: str) -> Any:
            of_all = getattr(fares, name)
            some = of_all.take(there)
            return some[0] if (some == some[0]).all() else of_all.take(which)

        moved = fares.moved.take(there)
        before: dict[str, NDArray[Any]] = {}
        if trip.remember:
            before = {field: getattr(p, field)[at].copy() for _, field, _, _ in _TUPLE}
        if moved.any():
            self._translate(p, at, which, flows, reply, moved)
        via = values("via")
        if np.ndim(via):
            trip.nexthop[at] = np.where(via, via, p.dst[at])
        else:
            trip.nexthop[at] = via if via else p.dst[at]
        for column, name in (
            (p.path, "path"), (p.fate, "fate"), (p.reason, "reason"), (p.ttl, "ttl"), (p.tos, "tos"), (p.mark, "mark"),
            (p.link_out, "link_out"), (trip.left, "left"), (trip.route_kind, "kind"), (trip.route_link, "link"),
            (trip.mtu, "mtu"),
        ):  # fmt: skip
            column[at] = values(name)
        p.evaluated[at] += values("evaluated")
        trip.arrive(at)
        if trip.remember:
            self._tell(trip, at, which, before)

    def _translate(
        self, p: Packets, at: At, which: I32, flows: NDArray[np.intp], reply: Mask, moved: NDArray[np.uint8]
    ) -> None:
        """Write the addresses and ports of the connection's other direction.

        moved   which fields, of the fares that occur
        """
        ct = self.node.conntrack
        last = None
        for bit, field, there, back in _TUPLE:
            mine = moved & bit != 0
            if not mine.any():
                continue
            if last is None or (mine != last).any():
                last = mine
                if mine.all():
                    rows, f, r = at, flows, reply
                else:
                    some = np.flatnonzero((self._fares.moved & bit != 0).take(which))
                    rows = at.start + some if isinstance(at, slice) else at.take(some)
                    f, r = flows.take(some), reply.take(some)
                backwards, forwards = bool(r.all()), not r.any()
            if backwards or forwards:
                getattr(p, field)[rows] = getattr(ct, back if backwards else there).take(f)
            else:
                getattr(p, field)[rows] = np.where(r, getattr(ct, back).take(f), getattr(ct, there).take(f))

    def _tell(self, trip: Trip, at: At, which: I32, before: dict[str, NDArray[Any]]) -> None:
        """Note what was rewritten, in the order in which the road would have."""
        fares = self._fares
        numbers = fares.changes.take(which)
        rows = np.arange(at.start, at.stop) if isinstance(at, slice) else at
        for k in np.flatnonzero(np.bincount(numbers)).tolist():
            some = np.flatnonzero(numbers == k)
            mine = rows.take(some)
            for by, field, old, new in fares.told[k]:
                column = getattr(trip.pkts, field)
                was = before[field].take(some) if old is None else np.full(len(some), old, column.dtype)
                now = column.take(mine) if new is None else np.full(len(some), new, column.dtype)
                trip.changes.append((by, field, mine, was, now))

    # ---- learning ------------------------------------------------------------------------------------------------

    def through(self, rows: Rows) -> Rows:
        """Those of a run's rows that went the road."""
        passed, self._passed = self._passed, _NO_ROWS
        if isinstance(passed, slice):
            if passed.stop - passed.start == len(rows):
                return _NO_ROWS
            passed = np.arange(passed.start, passed.stop)
        if not len(passed):
            return rows
        on = np.ones(len(rows), bool)
        on[passed - rows[0]] = False
        return rows[on]

    def learn(self, trip: Trip) -> None:
        """The run is over: remember how those fared who went the road.

        Only of connections that are heard a second time in one direction: most are short.
        """
        seen, self._seen = self._seen, None
        if seen is None or trip.fickle is None:
            return
        p, ct = trip.pkts, self.node.conntrack
        rows = seen.rows
        fit = ~trip.fickle.take(rows)
        fate = p.fate.take(rows)
        fit &= (fate != TRAVELLING) & (fate != HELD) & (p.link_in.take(rows) == p.arrived.take(rows))
        k = np.flatnonzero(fit)
        if not len(k):
            return
        ids = seen.ids.take(k)
        # of each direction the last packet, if one came before it
        known = ct.fares.take(ids) != 0
        places = np.arange(-1, -1 - len(k), -1, dtype=np.int32)
        ct.fares[ids] = places
        last = ct.fares.take(ids) == places
        ct.fares[ids[~last]] = _TWICE
        twice = ct.fares.take(ids) == _TWICE
        ct.fares[ids[twice]] = -1
        k = k[last & (known | twice)]
        if len(k):
            self._remember(trip, seen, k)

    def _remember(self, trip: Trip, seen: _Seen, k: NDArray[np.intp]) -> None:
        """Give their connections the fares of the packets that are `k`-th among those seen."""
        p, ct, fares = trip.pkts, self.node.conntrack, self._fares
        rows, ids, looks = seen.rows.take(k), seen.ids.take(k), seen.looks.take(k)
        flows, reply = ids >> 1, (ids & 1).astype(bool)
        status = ct.status.take(flows)
        good = (p.ct.take(rows) == flows) & (p.length.take(rows) <= trip.mtu.take(rows))
        good &= status == (looks >> np.uint64(48)).astype(np.uint16)
        good &= (status & (CONFIRMED | DYING | SEQ_ADJUST)) == CONFIRMED
        moved = np.zeros(len(k), np.uint8)
        for bit, field, there, back in _TUPLE:
            now = getattr(p, field).take(rows)
            own = np.where(reply, getattr(ct, _OWN[field][1]).take(flows), getattr(ct, _OWN[field][0]).take(flows))
            other = np.where(reply, getattr(ct, back).take(flows), getattr(ct, there).take(flows))
            moved |= np.where(now != own, np.uint8(bit), np.uint8(0))
            good &= (now == own) | (now == other)
        if not good.all():
            k, rows, ids, looks, moved = k[good], rows[good], ids[good], looks[good], moved[good]
            if not len(k):
                return
        columns = self._columns(trip, seen, k, rows, looks, moved)
        got = fares.numbers.add(_words(columns)).astype(np.int32) + 1
        fresh = np.flatnonzero(got >= fares.n)
        if len(fresh):
            numbers, first = np.unique(got[fresh], return_index=True)
            fares.reserve(int(numbers[-1]) + 1)
            first = fresh[first]
            for name, column in columns.items():
                getattr(fares, name)[numbers] = column[first]
            fares.n = int(numbers[-1]) + 1
            fares.tightest = min(fares.tightest, int(fares.mtu[numbers].min()))
            fares.counters += [self._counters(path) for path in columns["path"][first].tolist()]
            if trip.remember:
                fares.changes[numbers] = self._changes(trip, seen, rows[first])
        ct.fares[ids] = got

    def _columns(
        self, trip: Trip, seen: _Seen, k: NDArray[np.intp], rows: Rows, looks: U64, moved: NDArray[np.uint8]
    ) -> dict[str, NDArray[Any]]:
        """The columns of `_Fares` (but `changes`), as these packets fared."""
        p = trip.pkts
        hops = trip.nexthop.take(rows)
        return {
            "looks": looks,
            "trail": seen.trail.take(k),
            "path": p.path.take(rows),
            "via": np.where(hops == p.dst.take(rows), np.uint32(0), hops),
            "mark": p.mark.take(rows),
            "mtu": trip.mtu.take(rows),
            "evaluated": p.evaluated.take(rows) - seen.evaluated.take(k),
            "reason": p.reason.take(rows),
            "fate": p.fate.take(rows),
            "ttl": p.ttl.take(rows),
            "tos": p.tos.take(rows),
            "kind": trip.route_kind.take(rows),
            "left": trip.left.take(rows),
            "link_out": p.link_out.take(rows),
            "link": trip.route_link.take(rows),
            "moved": moved,
        }

    def _counters(self, path: int) -> tuple[Rule | Chain, ...]:
        """The rules and policies that counted a packet behind the tracking stop: its path names them."""
        got = self._of_path.get(path)
        if got is None:
            steps = self.node.paths.unfold(path)
            begin = max(n for n, step in enumerate(steps) if step.text == _KNOWN_STATE)
            found = (self.node.tables.counter(step) for step in steps[begin:] if step.table)
            got = self._of_path[path] = tuple(counter for counter in found if counter is not None)
        return got

    def _changes(self, trip: Trip, seen: _Seen, rows: Rows) -> list[int]:
        """Numbers of what was rewritten in `rows`."""
        told: list[list[_Change]] = [[] for _ in rows]
        place = np.full(trip.pkts.n, -1, np.intp)
        of_connection = {field for _, field, _, _ in _TUPLE}
        for by, field, whose, old, new in trip.changes[seen.changes :]:
            place[whose] = np.arange(len(whose))
            for k, n in enumerate(place.take(rows).tolist()):
                if n < 0:
                    continue
                step = by if isinstance(by, Step) else trip.paths.steps[int(by[n])]
                free = field in of_connection
                told[k].append((step, field, None if free else int(old[n]), None if free else int(new[n])))
            place[whose] = -1
        out = []
        for changes in map(tuple, told):
            number = self._change_numbers.get(changes)
            if number is None:
                number = self._change_numbers[changes] = len(self._fares.told)
                self._fares.told.append(changes)
            out.append(number)
        return out


def _words(c: dict[str, NDArray[Any]]) -> tuple[U64, ...]:
    """What tells fares apart, in seven words."""

    def word(*parts: tuple[str, int]) -> U64:
        out = np.zeros(len(c["looks"]), np.uint64)
        for name, bits in parts:
            out <<= np.uint64(bits)
            out |= c[name].astype(np.uint64) & np.uint64((1 << bits) - 1)
        return out

    return (
        c["looks"],
        c["trail"],
        word(("path", 32), ("via", 32)),
        word(("mtu", 32), ("mark", 32)),
        word(("evaluated", 32), ("reason", 32)),
        word(("fate", 8), ("ttl", 8), ("tos", 8), ("kind", 8), ("moved", 8)),
        word(("left", 16), ("link_out", 16), ("link", 16)),
    )
