"""A run in two sweeps: the first packets of new connections, then all that belongs to connections.

An answer to a packet of the same run cannot be told from a stranger before that packet went its way: only the nat table
says what the answer looks like. So the packets that are taken for first ones go first, on trial (`Trial`); then every
other one must be found in a connection that was begun before it, and no first one may turn out to be an answer. Where
that is so, the others follow, and the run is what it would have been one by one: a packet of a connection changes
nothing that the beginning of another one could see (`Road._flows_end` says what must not be there). Where it is not,
the first sweep is taken back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from netemu.conntrack import FOREVER
from netemu.hashing import repeats
from netemu.packets import ACK, COLUMNS, ICMP, RST, SYN, TCP, Mask, Packets, Rows

if TYPE_CHECKING:
    from netemu.node import Rewritten
    from netemu.trip import Trip

_QUERY = np.isin(np.arange(256), (8, 13, 15, 17))
#: column of a trip -> what it holds for a packet that has not come to it yet
_FRESH = {"route_kind": 0, "route_link": -1, "nexthop": 0, "mtu": 1500, "found": 255, "service": 0, "left": -1}
MOST_REMEMBERED = 1000  # receivers of ICMP errors, or senders told of a shorter way: more are not copied for a trial


def likely_answers(p: Packets, rows: Rows, rewrites: Rewritten) -> Mask:
    """bool[len(rows)]: packets that no connection knows, and that probably belong to what one before them begins.

    The same tuple as before, either way round, is sure. An answer may look otherwise: it comes from where somebody was
    asked, or from where rules send those who ask, and it goes to where somebody asked from, or to an address that rules
    give to those who ask. It is a guess: whoever acts upon it looks later whether it was right.
    """
    proto = p.proto[rows]
    icmp = proto == ICMP
    head = proto.astype(np.uint64) << np.uint64(48)
    a = head | p.src[rows].astype(np.uint64) << np.uint64(16) | np.where(icmp, p.icmp_id[rows], p.sport[rows])
    b = head | p.dst[rows].astype(np.uint64) << np.uint64(16) | np.where(icmp, p.icmp_id[rows], p.dport[rows])
    n = len(rows)
    out: Mask = np.zeros(n, bool)
    out[repeats((np.minimum(a, b), np.maximum(a, b)))] = True
    begins = (proto == TCP) & (p.flags[rows] & np.uint8(SYN | ACK | RST) == SYN) | icmp & _QUERY[p.icmp_type[rows]]
    if rewrites.none or begins.all():
        return out
    ends, number = np.unique(np.concatenate([a, b]), return_inverse=True)
    number = number.reshape(2, n)
    place = np.arange(n)
    spoke, heard = np.full(len(ends), n), np.full(len(ends), n)  # when each end did so first
    spoke[number[0, ::-1]] = heard[number[1, ::-1]] = place[::-1]
    asked = heard.take(number[0]) < spoke.take(number[0])
    asks = spoke.take(number[1]) < heard.take(number[1])
    asked |= rewrites.destination(p.src[rows])
    asks |= rewrites.source(p.dst[rows])
    out |= asked & asks & ~begins
    return out


class Trial:
    """Packets go through the node, and it may be taken back.

    What is remembered: their columns, connections begun and ended, and what rules counted. Rules that remember, helpers
    and IPVS are not: where those are no trial begins.
    """

    @staticmethod
    def possible(trip: Trip) -> bool:
        """Is there little enough to remember?"""
        answers = trip.node.road.answers
        return max(len(answers.limits.accounts), len(answers.redirected)) <= MOST_REMEMBERED

    def __init__(self, trip: Trip, rows: Rows) -> None:
        self.trip, self.rows = trip, rows
        self.packets = trip.pkts.take(rows)  # as they were
        self._rebuilt = dict(trip.pkts.rebuilt)
        self._lengths = [(part, len(part)) for part in (trip.changes, trip.children, trip.owed, trip.silent)]
        node = trip.node
        self._begun, self._ended = len(node.conntrack._fresh), len(node.conntrack._ended)
        node.conntrack.killed = []
        node.conntrack.too_early = FOREVER
        node.tables.walk.draft()
        answers = node.road.answers
        self._limits = dict(answers.limits.accounts), answers.limits.credit, answers.limits.stamp
        self._redirected = dict(answers.redirected)

    def in_order(self) -> bool:
        """Nothing happened that hangs on what all packets before did."""
        answers = self.trip.node.road.answers
        limits = answers.limits
        paid = (limits.accounts, limits.credit, limits.stamp) != self._limits
        return not (paid or answers.redirected != self._redirected)

    def keep(self) -> None:
        """It stands."""
        self.trip.node.conntrack.killed = None
        self.trip.node.tables.walk.decide(keep=True)

    def undo(self) -> None:
        """It never was."""
        trip, rows = self.trip, self.rows
        p, node, ct = trip.pkts, trip.node, trip.node.conntrack
        for name in COLUMNS:
            getattr(p, name)[rows] = getattr(self.packets, name)
        p.rebuilt.clear()
        p.rebuilt.update(self._rebuilt)
        for name, value in _FRESH.items():
            getattr(trip, name)[rows] = value
        for part, length in self._lengths:
            del part[length:]
        for row in set(trip.outs).intersection(rows.tolist()):
            del trip.outs[row]
        trip.forget_steps(rows)
        node.tables.walk.decide(keep=False)
        killed, ct.killed = ct.killed, None
        ct.take_back(self._begun, self._ended, killed or [])
        answers = node.road.answers
        answers.limits.accounts, answers.limits.credit, answers.limits.stamp = self._limits
        answers.redirected = self._redirected
