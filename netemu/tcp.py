"""The TCP tracker: the drawn table of states, and the window arithmetic. Everything that changes a TCP state is here.

A connection is watched from the middle of the road: each segment moves it through the table below, unless its sequence
and acknowledgement numbers say that it does not belong. What Linux remembers of each end (the furthest byte sent, the
furthest byte allowed, the largest window) stands in columns of conntrack's flows.

The one-packet form (`Tracker.one`) is the meaning. The column form (`Tracker.follow`) takes all segments of a
run: plain acknowledgements of established connections together, nearly all that there are, and the others one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.hashing import span
from netemu.packets import ACK, ESTABLISHED, FIN, I64, INVALID, NEW, RST, SYN, U8, U32, Mask, Packets, Rows

if TYPE_CHECKING:
    from netemu.conntrack import Conntrack
    from netemu.helpers import Shift

Flows = NDArray[np.intp]
I8 = NDArray[np.int8]
Segment = tuple[int, int, int, int, int, int, int, int]
T = TypeVar("T", bound=np.generic)

STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
NO, SS, SR, ES, FW, CW, LA, TW, CL, S2 = range(10)
IV, IG = 10, 11  # invalid, ignored
_NAMES = {name: n for n, name in enumerate(["NO", "SS", "SR", "ES", "FW", "CW", "LA", "TW", "CL", "S2", "IV", "IG"])}
I_SYN, I_SYNACK, I_FIN, I_ACK, I_RST, I_NONE = range(6)


def grid(drawing: str) -> NDArray[np.int8]:
    """A drawn transition table as int8[kind, state]; refuses a drawing whose columns are not the states in order."""
    head, *lines = [line.split() for line in drawing.strip().splitlines()]
    assert [_NAMES[w] for w in head[1:]] == list(range(10)), "columns must be the states in order"
    assert [line[0] for line in lines] == ["syn", "synack", "fin", "ack", "rst", "none"], (
        "rows must be the kinds in order"
    )
    return np.array([[_NAMES[w] for w in line[1:]] for line in lines], np.int8)


# state the connection is in when the segment arrives, across; IV: invalid, IG: passes and changes nothing
ORIGINAL = grid("""
    seen    NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
    syn     SS  SS  IG  IG  IG  IG  IG  SS  SS  S2
    synack  IV  IV  SR  IV  IV  IV  IV  IV  IV  SR
    fin     IV  IV  FW  FW  LA  LA  LA  TW  CL  IV
    ack     ES  IV  ES  ES  CW  CW  TW  TW  CL  IV
    rst     IV  CL  CL  CL  CL  CL  CL  CL  CL  CL
    none    IV  IV  IV  IV  IV  IV  IV  IV  IV  IV
""")
REPLY = grid("""
    seen    NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
    syn     IV  S2  IV  IV  IV  IV  IV  SS  IV  S2
    synack  IV  SR  IG  IG  IG  IG  IG  IG  IG  SR
    fin     IV  IV  FW  FW  LA  LA  LA  TW  CL  IV
    ack     IV  IG  SR  ES  CW  CW  TW  TW  CL  IG
    rst     IV  CL  CL  CL  CL  CL  CL  CL  CL  CL
    none    IV  IV  IV  IV  IV  IV  IV  IV  IV  IV
""")
TRANSITIONS = np.stack([ORIGINAL, REPLY])
_TABLE: list[list[list[int]]] = TRANSITIONS.tolist()

# what an end of a connection is known to do
WSCALE, SACK_PERM, CLOSE_INIT, LIBERAL, UNACKED, MAXACK, CHALLENGE, SIMULTANEOUS = 1, 2, 4, 8, 16, 32, 64, 128
SECOND = 1_000_000_000

TIMEOUTS = {  # state -> (sysctl behind net.netfilter.nf_conntrack_tcp_timeout_, seconds)
    SS: ("syn_sent", 120),
    SR: ("syn_recv", 60),
    ES: ("established", 432000),
    FW: ("fin_wait", 120),
    CW: ("close_wait", 60),
    LA: ("last_ack", 30),
    TW: ("time_wait", 120),
    CL: ("close", 10),
    S2: ("", 120),  # no sysctl has it
}
# flags that may stand together, push, ECE and CWR left out
_GOOD = {SYN, SYN | 32, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | 32, ACK, ACK | 32}
GOOD_FLAGS = np.array([(f & 0x37) in _GOOD for f in range(256)])
KIND = np.array(
    [
        I_RST
        if f & RST
        else (I_SYNACK if f & ACK else I_SYN)
        if f & SYN
        else I_FIN
        if f & FIN
        else I_ACK
        if f & ACK
        else I_NONE
        for f in range(256)
    ],
    np.int8,
)
_KIND: list[int] = KIND.tolist()
_FIRST = ORIGINAL[:, NO]  # by kind: the state after a connection's first segment
_ALSO = np.array([(f >> 1 & 1) + (f & 1) for f in range(256)], np.uint32)  # SYN and FIN take a number each
_TURNS = SYN | FIN | RST | ACK  # flags that say what kind of segment it is: of a plain one ACK alone
_TAME = (TRANSITIONS < IV) & (TRANSITIONS != S2) & (np.arange(10) != S2)  # what `_step` judges
_TAME &= (TRANSITIONS != SS) | (np.arange(10) <= SS)
_NOWHERE = np.zeros(0, np.intp)
_TRANSLATED = 16 | 32  # bits of conntrack's status: how a connection's packets are rewritten
_NEAR, _WIDE, _SHIFT, _FAR = 1 << 28, 1 << 30, 1 << 30, 1 << 40  # of numbers relative to each other: see `_plain`
WORTH = 128  # so many segments at least are worth columns
ABREAST = 24  # so many connections at least are worth going side by side

# what `one` says of a segment
ACCEPTED, INVALID_SEGMENT, UNTOUCHED, REOPENED, GONE = range(5)

M32 = 0xFFFFFFFF


def _before(a: U32, b: U32) -> Mask:
    """`before` in columns."""
    out: Mask = (a - b).view(np.int32) < 0
    return out


def before(a: int, b: int) -> bool:
    """a comes before b in sequence space (mod 2^32)."""
    return ((a - b) & M32) >= 0x80000000


def after(a: int, b: int) -> bool:
    """a comes after b in sequence space."""
    return ((b - a) & M32) >= 0x80000000


class Watched:
    """One connection taken out of the columns, as plain numbers. td: eight, those of the original direction first."""

    __slots__ = ("deadline", "flow", "last", "misc", "proxied", "shifts", "status", "td")

    def __init__(self, flow: int, td: list[int], misc: list[int], last: list[int], status: int, deadline: int) -> None:
        self.flow, self.td, self.misc, self.last, self.status, self.deadline = flow, td, misc, last, status, deadline
        self.shifts: tuple[Shift, Shift] | None = None
        self.proxied = False  # SYNPROXY opened it


@dataclass(frozen=True, slots=True)
class Life:
    """A connection that begins within a run, in the place of one that is over.

    watched  how it stands at the end of the run      root  the flow that held its tuples before the run
    row      the SYN that begins it
    """

    watched: Watched
    root: int
    row: int


@dataclass(slots=True)
class _Lanes:
    """Connections taken out of the columns, in columns of their own: as `Tracker`'s, one after the other.

    td  uint32[2 * k, 4]     misc  uint8[k * 10]     last  uint32[k, 4]     status, deadline  [k]
    gone  bool[k]  the last segment deleted it
    """

    td: U32
    misc: U8
    last: U32
    status: NDArray[np.uint16]
    deadline: I64
    gone: Mask

    def watched(self, k: int, flow: int) -> Watched:
        """One of them, as plain numbers."""
        return Watched(
            flow, self.td[2 * k : 2 * k + 2].ravel().tolist(), self.misc[10 * k : 10 * k + 10].tolist(),
            self.last[k].tolist(), int(self.status[k]), int(self.deadline[k]),
        )  # fmt: skip


class _Segments:
    """What the segments of a run say, in columns.

    plain_to  where the plain acknowledgements that begin at each place end
    odd       bool[n]  what is acknowledged may stand in the options     scale, offers  what a SYN's options say
    """

    def __init__(self, pkts: Packets, rows: Rows, reply: Mask) -> None:
        self.flags, self.side = pkts.flags.take(rows), reply.astype(np.intp)
        self.kind = KIND.take(self.flags)
        self.seq, self.ack = pkts.seq.take(rows), pkts.ack.take(rows)
        self.win, self.now = pkts.win.take(rows).astype(np.uint32), pkts.time.take(rows)
        doff = pkts.doff.take(rows).astype(np.int64)
        self.payload = np.maximum(pkts.length.take(rows) - pkts.ihl.take(rows) - doff, 0).astype(np.uint32)
        syn, fin = (self.flags & SYN) != 0, (self.flags & FIN) != 0
        self.end = self.seq + self.payload + syn + fin
        self.scale, self.offers = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.uint8)
        opens = np.flatnonzero(syn)
        self.scale[opens], self.offers[opens] = _offers(pkts, rows.take(opens), doff.take(opens))
        self.odd = (doff > 20) & ~syn
        some = np.flatnonzero(self.odd)
        self.odd[some] = ~_only_timestamp(pkts, rows.take(some), doff.take(some))
        place = np.where(self.kind == I_ACK, len(rows), np.arange(len(rows)))
        self.plain_to = np.minimum.accumulate(place[::-1])[::-1]


class Tracker:
    """The TCP columns of conntrack's flows, and what segments do to them.

    td     uint32[capacity, 2, 4]  for each direction: end, maxend, maxwin, maxack
    last   uint32[capacity, 4]     seq, ack, end, win of the segment last remembered
    misc   uint8[capacity, 10]     scale (2), flags (2), last direction, last kind, remembered scale, remembered flags,
                                   retrans, state
    """

    def __init__(self, capacity: int) -> None:
        self.td = np.zeros((capacity, 2, 4), np.uint32)
        self.last = np.zeros((capacity, 4), np.uint32)
        self.misc = np.zeros((capacity, 10), np.uint8)
        self.timeouts: list[int] = [0] * 10
        self.limits(lambda name, default: default)

    def limits(self, get: Callable[[str, int], int]) -> None:
        """Read the sysctls again; `get(name, default)` gives the value of net.netfilter.nf_conntrack_`name`."""
        for state, (name, default) in TIMEOUTS.items():
            self.timeouts[state] = (get("tcp_timeout_" + name, default) if name else default) * SECOND
        self.max_retrans_timeout = get("tcp_timeout_max_retrans", 300) * SECOND
        self.unacked_timeout = get("tcp_timeout_unacknowledged", 300) * SECOND
        self.max_retrans = get("tcp_max_retrans", 3)
        self.loose = bool(get("tcp_loose", 1))
        self.liberal = bool(get("tcp_be_liberal", 0))
        self.ignore_invalid_rst = bool(get("tcp_ignore_invalid_rst", 0))

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` flows."""
        for name in ("td", "last", "misc"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def forget_windows(self, flows: NDArray[np.integer]) -> None:
        """Tracking was off for a while: what was known of the windows of these flows is not true any more."""
        self.td[flows, :, 2] = 0

    # ---- a connection begins -----------------------------------------------------------------------------------

    def opens(self, flow: int, pkts: Packets, row: int) -> bool:
        """May this segment begin a connection? If so, fill the flow's columns (state NONE until `one` sees it)."""
        kind = _KIND[int(pkts.flags[row])]
        new = _TABLE[0][kind][NO]
        if new not in (SS, ES) or (new == ES and not self.loose):
            return False
        misc = [0] * 10
        misc[5] = I_NONE
        ((_, _, flags, seq, _, win, payload, doff),) = _said(pkts, np.array([row]))
        end = (seq + payload + bool(flags & SYN) + bool(flags & FIN)) & M32
        td = [[0, 0, 0, 0], [0, 0, 0, 0]]
        if new == SS:
            td[0] = [end, end, win or 1, 0]
            misc[0], misc[2] = _options(pkts, row, doff)
            self.misc[flow] = misc
        else:
            td[0] = [end, (end + win) & M32, win or 1, 0]
            if win == 0:
                td[0][1] = (end + 1) & M32
            # picked up in the middle: both ends may do what they like until more is known
            misc[2] = misc[3] = SACK_PERM | LIBERAL
            self.misc[flow] = misc
        self.td[flow] = td
        self.last[flow] = 0
        return True

    def begin(self, ct: Conntrack, flows: Flows, pkts: Packets, rows: Rows) -> tuple[Mask, Mask]:
        """The same of many, each with a fresh flow of its own; where nearly all are alike, their first step, too.

        returns  bool[n] may the segment begin a connection? and bool[n]: it was followed, as `one` would have

        What a fresh connection makes of its first segment is always the same: a SYN tells how far one end got and what
        it wants; one picked up in the middle, whose numbers are far from those of an unknown partner (0), nothing.
        """
        at, f = span(rows), span(flows)
        flags = pkts.flags[at]
        kind = KIND.take(flags)
        new = _FIRST.take(kind)
        syn = new == SS
        whole = bool(syn.all())  # then what is said of others need not be asked
        may: Mask = syn | (new == ES) if self.loose and not whole else syn
        doff, win = pkts.doff[at].astype(np.int32), np.maximum(pkts.win[at], 1).astype(np.uint32)
        payload = np.maximum(pkts.length[at] - pkts.ihl[at] - doff, 0).astype(np.uint32)
        end = pkts.seq[at] + payload
        end += _ALSO.take(flags)
        td = np.zeros((len(rows), 2, 4), np.uint32) if f is flows else self.td[f]
        misc = np.empty((len(rows), 10), np.uint8) if f is flows else self.misc[f]
        td[:] = 0
        td[:, 0, 0] = td[:, 0, 1] = end
        td[:, 0, 2] = win
        misc[:] = (0, 0, SACK_PERM | LIBERAL, SACK_PERM | LIBERAL, 0, I_NONE, 0, 0, 0, 0)
        first: Any = slice(None) if whole else np.flatnonzero(syn)
        misc[first, 2:4] = 0
        opted = np.flatnonzero(syn & (doff > 20))
        if len(opted):
            misc[opted, 0], misc[opted, 2] = _offers(pkts, rows.take(opted), doff.take(opted).astype(np.int64))
        followed = syn
        if not whole:
            td[:, 0, 1] += np.where(syn, np.uint32(0), win)
            slack = np.maximum(win, 66000) + np.uint32(1)
            ack = pkts.ack[at]
            followed = syn | (may & (ack != 0) & (ack < -slack) & (payload < 1 << 16))
            opted = np.flatnonzero(followed & ~syn & (doff > 20))
            followed[opted] = _only_timestamp(pkts, rows[opted], doff[opted].astype(np.int64))
        td[first, 1, 1] = win[first]
        known: Any = slice(None) if whole else np.flatnonzero(followed)
        misc[known, 5], misc[known, 9] = kind[known], new[known]
        self.last[f] = 0
        if f is flows:
            self.td[flows], self.misc[flows] = td, misc
        # nothing was heard of the partner yet, not even a window
        opened, picked = (
            min(self.timeouts[state], self.max_retrans_timeout, *more)
            for state, more in ((SS, ()), (ES, (self.unacked_timeout,)))
        )
        where = f if whole else flows[known]
        ct.deadline[where] = pkts.time[at][known] + (opened if whole else np.where(syn[known], opened, picked))
        return may, followed

    def adopt(self, flow: int, state: int) -> None:
        """A connection that is known from elsewhere, in this state; nothing is known of its windows."""
        self.misc[flow] = self.td[flow] = self.last[flow] = 0
        self.misc[flow, 5], self.misc[flow, 9] = I_NONE, state

    # ---- one segment -------------------------------------------------------------------------------------------

    def one(self, ct: Conntrack, flow: int, pkts: Packets, row: int, reply: bool) -> int:
        """What a segment does to its connection: ACCEPTED, INVALID_SEGMENT, UNTOUCHED (passes, nothing refreshed),
        REOPENED (the flow is dead, begin a new one with this segment), GONE (accepted, and the flow is deleted).

        Changes the flow's columns, deadline and status in place. Source: KERNEL 3.4, 3.5 and recorded cases.
        """
        (watched,) = self._watch(ct, np.array([flow]))
        verdict = self._one(watched, _said(pkts, np.array([row]))[0], reply, pkts)
        self._keep(ct, [watched])
        return verdict

    def _watch(self, ct: Conntrack, flows: Flows) -> list[Watched]:
        """Connections taken out of the columns, to be followed segment by segment; `_keep` puts them back."""
        columns = (
            flows, self.td[flows].reshape(-1, 8), self.misc[flows], self.last[flows], ct.status[flows],
            ct.deadline[flows],
        )  # fmt: skip
        out = [Watched(*one) for one in zip(*[c.tolist() for c in columns], strict=True)]
        if ct.node.helpers.attended:
            for one in out:
                one.shifts = ct.node.helpers.shifts(one.flow)
                one.proxied = one.flow in ct.node.synproxy.proxied
        return out

    def _keep(self, ct: Conntrack, watched: list[Watched]) -> None:
        """Put connections back into the columns."""
        flows = [one.flow for one in watched]
        self.td.reshape(-1, 8)[flows] = [one.td for one in watched]
        self.misc[flows], self.last[flows] = [one.misc for one in watched], [one.last for one in watched]
        ct.status[flows], ct.deadline[flows] = [one.status for one in watched], [one.deadline for one in watched]

    def _one(self, watched: Watched, segment: Segment, reply: bool, pkts: Packets) -> int:
        """`one`, of a connection taken out of the columns and a segment given as numbers (see `_said`)."""
        row, now, flags, seq, ack, win, payload, doff = segment
        me, other = (1, 0) if reply else (0, 1)
        kind = _KIND[flags]
        td, misc, last = watched.td, watched.misc, watched.last
        old = misc[9]
        new = _TABLE[me][kind][old]
        end = (seq + payload + (flags >> 1 & 1) + (flags & 1)) & M32
        assured, seen_reply = watched.status & 4, watched.status & 2

        if new == SS and old >= TW:
            if (misc[2] | misc[3]) & CLOSE_INIT or (misc[5] == I_RST and misc[4] == me):
                return REOPENED
            new = IG
        if new == IG:
            if kind == I_SYNACK and misc[5] == I_SYN and misc[4] == other and ack == last[2]:
                # the SYN that we ignored was answered: both ends opened anew, so learn the connection again from it
                old, new = SS, SR
                misc[7] &= ~CHALLENGE
                td[4 * other : 4 * other + 4] = last[2], last[2], last[3] or 1, 0
                misc[other], misc[2 + other] = misc[6], misc[7]
                td[4 * me : 4 * me + 4] = 0, 0, 0, 0
                misc[2 + me] &= LIBERAL  # who answers stays trusted, if picked up: found/picked-up-and-opened-anew
            else:
                misc[5], misc[4] = kind, me
                last[0], last[2], last[3] = seq, end, win
                if kind == I_SYN and not reply:
                    misc[6], misc[7] = _options(pkts, row, doff)
                    if old == LA:
                        misc[7] |= CHALLENGE
                if kind == I_ACK and old == SS and reply:
                    last[1] = ack
                return UNTOUCHED
        if new == IV:
            # SYNPROXY's client asks whether we are there still, while the server has not answered
            alive = watched.proxied and (old, kind, me, misc[4]) == (SS, I_ACK, 0, 0) and seq == (td[0] - 1) & M32
            return UNTOUCHED if alive else INVALID_SEGMENT
        if new == TW and kind == I_ACK and old == LA and misc[7] & CHALLENGE and misc[5] == I_SYN and misc[4] == other:
            misc[7] &= ~CHALLENGE
            return UNTOUCHED
        if new == S2:
            misc[7] |= SIMULTANEOUS
        elif new == SR and kind == I_ACK and reply and misc[7] & SIMULTANEOUS:
            new = ES

        in_window = True  # whether the window has a say
        if new == CL and kind == I_RST:
            if old in (FW, CW, LA, TW, CL):
                in_window = False
            else:
                settled = old == ES and assured
                sure = False  # nothing more to ask: the numbers decide
                if misc[2 + other] & MAXACK and misc[5] != I_SYN:
                    furthest = td[4 * other + 3]
                    if seq == 0 and not settled:
                        sure = True
                    elif before(seq, furthest) and not self.ignore_invalid_rst:
                        return INVALID_SEGMENT
                    elif not settled or seq == furthest or (misc[5] == I_ACK and misc[4] == me and seq == last[2]):
                        sure = True
                    else:
                        new = old  # the far end may challenge it: wait and see
                if not sure:
                    let_by = seen_reply and misc[5] == I_SYN and misc[4] == other
                    let_by = let_by or (not assured and misc[5] == I_ACK)
                    challenged = old == SS and misc[5] == I_ACK and misc[4] == other and seq == last[1]
                    in_window = not ((let_by and ack == last[2]) or challenged)
        if in_window:
            verdict = self._window(watched, pkts, row, me, kind, seq, ack, end, win, flags, doff)
            if verdict != ACCEPTED:
                if verdict == INVALID_SEGMENT and assured and kind in (I_FIN, I_RST):
                    if misc[4] != me and misc[5] in (I_FIN, I_RST):
                        # both ends try to close, and we do not believe either: do not keep it for days
                        left = watched.deadline - now
                        if left >= 120 * SECOND and left > self.unacked_timeout:
                            watched.deadline = now + self.unacked_timeout
                    else:
                        misc[4], misc[5] = me, kind
                return verdict

        misc[5], misc[4] = kind, me
        if new != old and new == FW:
            misc[2 + me] |= CLOSE_INIT
        misc[9] = new
        timeout = self.timeouts[new]
        if misc[8] >= self.max_retrans and timeout > self.max_retrans_timeout:
            timeout = self.max_retrans_timeout
        elif kind == I_RST:
            timeout = self.timeouts[CL]
        elif (misc[2] | misc[3]) & UNACKED and timeout > self.unacked_timeout:
            timeout = self.unacked_timeout
        elif last[3] == 0 and timeout > self.max_retrans_timeout:
            timeout = self.max_retrans_timeout
        if not seen_reply:
            if kind == I_RST:
                return GONE
            if kind == I_SYN and old == SS:
                return UNTOUCHED  # a SYN again: the first one's timer goes on
            if new == ES and timeout > self.unacked_timeout:
                timeout = self.unacked_timeout
        elif not assured and new == ES and old in (SR, ES):
            watched.status |= 4
        watched.deadline = now + timeout
        return ACCEPTED

    def _window(
        self, watched: Watched, pkts: Packets, row: int, me: int, kind: int, seq: int, ack: int, end: int, win: int,
        flags: int, doff: int,
    ) -> int:  # fmt: skip
        """Do the numbers fit? ACCEPTED (windows updated), UNTOUCHED (out of window, harmless) or INVALID_SEGMENT."""
        td, misc = watched.td, watched.misc
        s, r = (4, 0) if me else (0, 4)  # where the sender's and the receiver's numbers begin: end, maxend, win, ack
        mine, theirs = 2 + me, 3 - me
        raw_win = win
        sack = ack
        if doff > 20 and misc[theirs] & SACK_PERM:
            sack = _sack(pkts, row, ack)
        if watched.shifts is not None:  # a helper's changes come behind us: count as the sender of those bytes does
            by = watched.shifts[1 - me].of((ack - 1) & M32)
            ack, sack = (ack - by) & M32, (sack - by) & M32
        if td[s + 2] == 0:
            if flags & SYN:
                self._learn(watched, pkts, row, me, end, win, doff)
                if not flags & ACK:
                    return ACCEPTED
            else:
                td[s] = end
                td[s + 2] = win << misc[me] or 1
                td[s + 1] = (end + td[s + 2]) & M32
                if td[r + 2] == 0:
                    td[r] = td[r + 1] = sack
                elif sack == (td[r] + 1) & M32:
                    td[r] = sack
        elif flags & SYN and after(end, td[s]) and misc[9] in (SS, SR):
            self._learn(watched, pkts, row, me, end, win, doff)
            if me == 1 and not flags & ACK:
                return ACCEPTED
        r_end, r_maxend, r_maxwin, _ = td[r : r + 4]
        if not flags & ACK or (flags & RST and ack == 0):
            ack = sack = r_end
        if flags & RST and seq == 0 and misc[9] == SS:
            seq = end = td[s]
        s_end, s_maxend, s_maxwin, s_maxack = td[s : s + 4]

        slack = max(66000, s_maxwin)
        liberal = self.liberal or misc[mine] & LIBERAL
        if not before(seq, s_maxend + 1):
            over = (end - s_maxend + 1) & M32
            fits = r_maxwin != 0 and after(end, s_end - r_maxwin - 1)
            if fits and after(sack, r_end - slack - 1) and over <= r_maxwin and before(sack, r_end + 1):
                td[s] = end
                misc[mine] |= UNACKED
                return ACCEPTED if liberal else UNTOUCHED
            return ACCEPTED if liberal else INVALID_SEGMENT
        if not before(sack, r_end + 1):
            return ACCEPTED if liberal else INVALID_SEGMENT
        if r_maxwin and not after(end, s_end - r_maxwin - 1):
            return ACCEPTED if liberal else UNTOUCHED
        if not after(sack, r_end - slack - 1):
            return ACCEPTED if liberal else UNTOUCHED

        if not flags & SYN:
            win <<= misc[me]
        widest = (win + ((sack - ack) & M32)) & M32
        if widest > s_maxwin:
            td[s + 2] = widest
        if after(end, s_end):
            td[s] = end
            misc[mine] |= UNACKED
        if flags & ACK:
            if not misc[mine] & MAXACK:
                td[s + 3] = ack
                misc[mine] |= MAXACK
            elif after(ack, s_maxack):
                td[s + 3] = ack
        if r_maxwin and after(end, s_maxend):
            td[r + 2] = (r_maxwin + ((end - s_maxend) & M32)) & M32
        if after(sack + win, r_maxend - 1):
            td[r + 1] = (sack + win + (win == 0)) & M32
        if ack == r_end:
            misc[theirs] &= ~UNACKED
        if kind == I_ACK:
            said = [seq, ack, end, raw_win]
            if misc[4] == me and watched.last == said:
                misc[8] = min(misc[8] + 1, 255)
            else:
                misc[4] = me
                watched.last[:] = said
                misc[8] = 0
        return ACCEPTED

    def _learn(self, watched: Watched, pkts: Packets, row: int, me: int, end: int, win: int, doff: int) -> None:
        """The first word of an end: its numbers and its options."""
        misc = watched.misc
        watched.td[4 * me : 4 * me + 3] = end, end, win or 1
        if doff > 20:  # a SYN again without any option leaves what the one before it offered
            misc[me], offered = _options(pkts, row, doff)
            misc[2 + me] = offered | (misc[2 + me] & LIBERAL)
        if me == 1 and not (misc[2] & misc[3] & WSCALE):
            misc[0] = misc[1] = 0

    # ---- many segments -----------------------------------------------------------------------------------------

    def follow(
        self, ct: Conntrack, flows: Flows, counts: Flows, pkts: Packets, rows: Rows, reply: Mask,
        reopen: Callable[[int, int], int], told: Mask | None = None, lives: list[Life] | None = None,
    ) -> tuple[I8, U8, Flows]:  # fmt: skip
        """Segments of many connections, as `one` would take them one after the other.

        flows    intp[k], distinct       counts  intp[k]  how many segments each has, 1 or more
        rows     intp[n]  the segments of the first connection in arrival order, then those of the second, ...
        reply    bool[n]  which go the other way
        reopen   called with (flow, row) where a SYN opens a finished connection anew: the new flow, or -1
        told     bool[n]  SYNs of which we know what becomes of a connection that they open anew: those do it here, and
                 what comes after them belongs to the new connection. `lives` gets each, and the n-th is flow -1 - n
        returns  what `one` says of each; the state of each packet (INVALID, NEW or ESTABLISHED); the flow of each

        Plain acknowledgements go in columns (`_plain`), up to the first segment of their connection that is something
        else or does not fit. What many connections say then goes side by side (`_side_by_side`), what is left alone;
        and then columns are tried again: less and less often, so that a trace made of exceptions costs what it would
        one by one.
        """
        n = len(rows)
        verdicts, states, of = np.zeros(n, np.int8), np.empty(n, np.uint8), np.repeat(flows, counts)
        stop = np.cumsum(counts)
        at = stop - counts
        todo = np.arange(len(flows))
        births = _births(pkts, rows, self.misc[flows, 9], at, counts, told) if told is not None else _NOWHERE
        segments: _Segments | None = None
        carried: dict[int, tuple[Watched, bool]] = {}  # connections that began here, by number of the one before them
        patience = 1
        while True:
            left = stop.take(todo) - at.take(todo)
            if patience == 1 and n >= WORTH:  # all of them
                at, states = self._plain(ct, flows, at, counts, pkts, rows, reply)
                todo = todo.compress(at < stop)
            elif int(left.sum()) >= WORTH:
                begin = np.cumsum(left) - left
                some = np.repeat(at.take(todo) - begin, left) + np.arange(int(left.sum()))
                came, said = self._plain(ct, flows.take(todo), begin, left, pkts, rows.take(some), reply.take(some))
                states[some] = said
                at[todo] += came - begin
                todo = todo.compress(at.take(todo) < stop.take(todo))
            else:
                patience = n
            if not len(todo):
                return verdicts, states, of
            if len(todo) + len(births) >= ABREAST and not ct.node.helpers.attended:
                if segments is None:
                    segments = _Segments(pkts, rows, reply)
                self._side_by_side(
                    ct, todo, flows, at, stop, births, patience, pkts, rows, segments, verdicts, states, of, lives,
                    carried,
                )  # fmt: skip
                todo = todo.compress(at.take(todo) < stop.take(todo))
            if len(todo):
                self._alone(
                    ct, todo, flows, at, stop, patience, pkts, rows, reply, reopen, verdicts, states, of, told, lives,
                    carried,
                )  # fmt: skip
                todo = todo.compress(at.take(todo) < stop.take(todo))
            if not len(todo):
                return verdicts, states, of
            births = _NOWHERE
            patience *= 4

    def _side_by_side(
        self, ct: Conntrack, todo: Flows, flows: Flows, at: Flows, stop: Flows, births: Flows, patience: int,
        pkts: Packets, rows: Rows, segments: _Segments, verdicts: I8, states: U8, of: Flows, lives: list[Life] | None,
        carried: dict[int, tuple[Watched, bool]],
    ) -> None:  # fmt: skip
        """The next segments of the connections `todo`, the k-th of all together, as far as `_step` can judge them.

        births   intp[m]  places of SYNs that may begin connections in the place of others. It is taken for granted
                 that they do, so all lives of a tuple go side by side, too; where one of them turns out to begin
                 while the one before it is not over, it and those behind it are as if they had not been looked at.

        Changes at, verdicts, states, of, lives and carried in place.
        """
        starts = at.take(todo)
        if len(births):
            whose = np.searchsorted(stop, births, "right")  # all are in `todo`: nothing of their connection was taken
            starts = np.concatenate([starts, births])
            which = np.concatenate([todo, whose])
            order = np.lexsort((np.arange(len(which)), starts))
            starts, which = starts[order], which[order]
            born = order >= len(todo)
        else:
            which, born = todo, np.zeros(len(todo), bool)
        stops = stop.take(which)
        stops[:-1] = np.where(which[1:] == which[:-1], starts[1:], stops[:-1])
        places = starts.copy()
        roots = flows.take(which)
        lanes = _Lanes(
            self.td.take(roots, axis=0).reshape(-1, 4), self.misc.take(roots, axis=0).ravel(),
            self.last.take(roots, axis=0), ct.status.take(roots), ct.deadline.take(roots), np.zeros(len(roots), bool),
        )  # fmt: skip
        new = np.flatnonzero(born)
        if len(new):  # as `_born` has it
            lanes.td.reshape(-1, 8)[new] = lanes.misc.reshape(-1, 10)[new] = lanes.last[new] = 0
            syn = starts.take(new)
            end = segments.end.take(syn)
            lanes.td[2 * new, 0] = lanes.td[2 * new, 1] = end
            lanes.td[2 * new, 2] = np.maximum(segments.win.take(syn), 1)
            lanes.misc[10 * new], lanes.misc[10 * new + 2] = segments.scale.take(syn), segments.offers.take(syn)
            lanes.misc[10 * new + 5] = I_NONE
            lanes.status[new] &= _TRANSLATED
            lanes.deadline[new] = 1 << 62
        going = np.flatnonzero(places < stops)
        while len(going) >= max(ABREAST, 1):
            going = self._step(lanes, going, places.take(going), stops, segments, verdicts, states)
            places[going] += 1
            going = going.compress(places.take(going) < stops.take(going))
            if len(going):  # what goes better in columns of one connection
                here = places.take(going)
                plain = np.minimum(segments.plain_to.take(here), stops.take(going)) - here
                dull = (plain >= 8 * patience) & (lanes.misc.take(10 * going + 9) == ES)
                going = going.compress(~dull)

        good = np.ones(len(which), bool)
        if len(new):  # did each begin when the one before it was over?
            state, closing = lanes.misc[9::10], lanes.misc[2::10] | lanes.misc[3::10]
            reset = (lanes.misc[5::10] == I_RST) & (lanes.misc[4::10] == 0)
            over = (state >= TW) & (state <= CL) & (((closing & CLOSE_INIT) != 0) | reset)
            good[new] = ((places == stops) & (lanes.gone | over))[new - 1]
            first = np.flatnonzero(~born)
            wrong = np.cumsum(~good)
            good = wrong == np.repeat(wrong[first], np.diff(first, append=len(which)))
        old = np.flatnonzero(~born)
        self.td[roots[old]] = lanes.td.reshape(-1, 2, 4)[old]
        self.misc[roots[old]], self.last[roots[old]] = lanes.misc.reshape(-1, 10)[old], lanes.last[old]
        ct.status[roots[old]], ct.deadline[roots[old]] = lanes.status[old], lanes.deadline[old]
        kept = np.flatnonzero(good)
        at[which[kept]] = places[kept]  # of several the last one counts
        for k in kept[born[kept]].tolist():
            assert lives is not None
            of[starts[k] : stops[k]] = flow = -1 - len(lives)
            one = lanes.watched(k, flow)
            lives.append(Life(one, int(roots[k]), int(rows[starts[k]])))
            carried[int(which[k])] = one, bool(lanes.gone[k])
        for k in old[lanes.gone[old] & (at.take(which[old]) == places[old])].tolist():
            carried[int(which[k])] = self._watch(ct, roots[k : k + 1])[0], True

    def _step(
        self, lanes: _Lanes, going: Flows, places: Flows, stops: Flows, segments: _Segments, verdicts: I8, states: U8
    ) -> Flows:
        """One segment each of the connections `going`, as `_one` takes them. Those that it is not sure of wait.

        places   intp[len(going)]  which segments            stops  intp[k]  where those of each lane end
        returns  those of `going` that took theirs
        """
        side = segments.side.take(places)
        own = 2 * going + side
        far = own ^ 1
        mine, theirs, base = 10 * going + 2 + side, 10 * going + 3 - side, 10 * going
        misc = lanes.misc
        flags, kind = segments.flags.take(places), segments.kind.take(places)
        seq, ack, end = segments.seq.take(places), segments.ack.take(places), segments.end.take(places)
        raw_win = segments.win.take(places)
        status, last = lanes.status.take(going), lanes.last.take(going, axis=0)
        seen, assured = (status & 2) != 0, (status & 4) != 0
        old = misc.take(base + 9)
        new = TRANSITIONS[side, kind, old]
        my_traits, their_traits = misc.take(mine), misc.take(theirs)
        kind_before, side_before = misc.take(base + 5), misc.take(base + 4)
        s_end, s_edge, s_win, s_ack = np.ascontiguousarray(lanes.td.take(own, axis=0).T)
        r_end, r_edge, r_win, r_ack = np.ascontiguousarray(lanes.td.take(far, axis=0).T)
        syn, acks, reset = (flags & SYN) != 0, (flags & ACK) != 0, kind == I_RST

        sure = _TAME[side, kind, old] & ((misc.take(base + 7) & (CHALLENGE | SIMULTANEOUS)) == 0)
        sure &= ~(segments.odd.take(places) & ((their_traits & SACK_PERM) != 0))
        closing = reset & (old >= FW) & (old <= CL)
        if reset.any():
            settled = (old == ES) & assured
            known = ((their_traits & MAXACK) != 0) & (kind_before != I_SYN)
            exact = ~settled | (seq == r_ack)
            exact |= (kind_before == I_ACK) & (side_before == side) & (seq == last[:, 2])
            exact &= self.ignore_invalid_rst | ~_before(seq, r_ack)
            fresh = ~known & (kind_before == I_SYN) & ~(seen & (side_before != side))
            sure &= ~reset | closing | fresh | (known & ((seq == 0) & ~settled | exact))
            sure &= ~reset | seen | (places + 1 == stops.take(going))  # who is deleted hears no more
        unseen = s_win == 0
        some_unseen = bool(unseen.any())
        sure &= ~(syn & np.where(unseen, ~acks, _before(s_end, end) & ((old == SS) | (old == SR))))
        learns = unseen & syn
        if some_unseen:
            speaks = unseen & ~syn
            s_end = np.where(unseen, end, s_end)
            s_win = np.where(
                unseen, np.maximum(raw_win << np.where(syn, 0, misc.take(base + side)).astype(np.uint32), 1), s_win
            )
            s_edge = np.where(unseen, np.where(syn, end, end + s_win), s_edge)
            strange = speaks & (r_win == 0)
            r_edge = np.where(strange, ack, r_edge)
            r_end = np.where(strange | (speaks & (ack == r_end + np.uint32(1))), ack, r_end)
            my_traits = np.where(learns, segments.offers.take(places) | (my_traits & LIBERAL), my_traits)
        quiet = ~acks | (reset & (ack == 0))
        ack = np.where(quiet, r_end, ack)
        if reset.any():
            nowhere = reset & (seq == 0) & (old == SS)
            seq, end = np.where(nowhere, s_end, seq), np.where(nowhere, s_end, end)
        one = np.uint32(1)
        fits = _before(seq, s_edge + one) & _before(ack, r_end + one)
        fits &= (r_win == 0) | _before(s_end - r_win - one, end)
        fits &= _before(r_end - np.maximum(s_win, 66000) - one, ack)
        sure &= fits | closing
        if not sure.all():
            yes = np.flatnonzero(sure)
            if not len(yes):
                return going[:0]
            return self._step(lanes, going.take(yes), places.take(yes), stops, segments, verdicts, states)

        scale = misc.take(base + side)
        win = np.where(syn, raw_win, raw_win << scale.astype(np.uint32))
        grew = _before(s_end, end)
        beyond = (r_win != 0) & _before(s_edge, end)
        further = _before(r_edge - one, ack + win)
        r_win = np.where(beyond, r_win + (end - s_edge), r_win)
        r_edge = np.where(further, ack + win + (win == 0), r_edge)
        s_ack = np.where(acks & (((my_traits & MAXACK) == 0) | _before(s_ack, ack)), ack, s_ack)
        caught_up = ack == r_end
        td = np.stack([np.where(grew, end, s_end), s_edge, np.maximum(s_win, win), s_ack], 1)
        far_td = np.stack([r_end, r_edge, r_win, r_ack], 1)
        my_traits = my_traits | (grew * np.uint8(UNACKED)) | (acks * np.uint8(MAXACK))
        their_traits = np.where(caught_up, their_traits & np.uint8(255 - UNACKED), their_traits)
        if closing.any():
            judged = np.flatnonzero(~closing)
            my_traits[closing], their_traits[closing] = misc.take(mine[closing]), misc.take(theirs[closing])
            lanes.td[own[judged]], lanes.td[far[judged]] = td[judged], far_td[judged]
        else:
            lanes.td[own], lanes.td[far] = td, far_td
        my_traits = my_traits | ((new != old) & (new == FW)) * np.uint8(CLOSE_INIT)
        misc[mine], misc[theirs] = my_traits, their_traits
        if learns.any():
            where = np.flatnonzero(learns)
            misc[(base + side)[where]] = segments.scale.take(places.take(where))
            alone = where[(side[where] == 1) & ((my_traits & their_traits & WSCALE) == 0)[where]]
            misc[base[alone]] = misc[base[alone] + 1] = 0
        plain = kind == I_ACK
        again = misc.take(base + 8)
        if plain.any():
            said = np.stack([seq, ack, end, raw_win], 1)
            same = (side_before == side) & (last == said).all(1)
            again = np.where(plain, np.where(same, np.minimum(again.astype(np.int64) + 1, 255), 0), again)
            misc[base + 8] = again
            last = np.where(plain[:, None], said, last)
            lanes.last[going] = last
        misc[base + 5], misc[base + 4], misc[base + 9] = kind, side, new

        longest = np.array(self.timeouts, np.int64).take(new)
        pending = ((my_traits | their_traits) & UNACKED) != 0
        timeout = np.where((last[:, 3] == 0) & (longest > self.max_retrans_timeout), self.max_retrans_timeout, longest)
        timeout = np.where(pending & (longest > self.unacked_timeout), self.unacked_timeout, timeout)
        timeout = np.where(reset, self.timeouts[CL], timeout)
        tired = (again >= self.max_retrans) & (longest > self.max_retrans_timeout)
        timeout = np.where(tired, self.max_retrans_timeout, timeout)
        timeout = np.where(~seen & (new == ES), np.minimum(timeout, self.unacked_timeout), timeout)
        verdict = np.where(~seen & (kind == I_SYN) & (old == SS), np.int8(UNTOUCHED), np.int8(ACCEPTED))
        verdict = np.where(~seen & reset, np.int8(GONE), verdict)
        lanes.gone[going] = verdict == GONE
        settles = seen & ~assured & (new == ES) & ((old == SR) | (old == ES))
        lanes.status[going] = status | settles * np.uint16(4) | (side == 1) * np.uint16(2)
        taken = verdict == ACCEPTED
        lanes.deadline[going] = np.where(taken, segments.now.take(places) + timeout, lanes.deadline.take(going))
        verdicts[places] = verdict
        states[places] = np.where((side == 1) | seen, np.uint8(ESTABLISHED), np.uint8(NEW))
        return going

    def _alone(
        self, ct: Conntrack, todo: Flows, flows: Flows, at: Flows, stop: Flows, patience: int, pkts: Packets,
        rows: Rows, reply: Mask, reopen: Callable[[int, int], int], verdicts: I8, states: U8, of: Flows,
        told: Mask | None, lives: list[Life] | None, carried: dict[int, tuple[Watched, bool]],
    ) -> None:  # fmt: skip
        """Segments of the connections `todo` one by one, until `patience` of each went and the next may be a plain one.

        carried  those that stand otherwise than in the columns, and whether they are deleted

        Changes at, flows, verdicts, states, of and lives in place.
        """
        many = np.minimum(stop.take(todo) - at.take(todo), 2 * patience + 14)
        begin = np.cumsum(many) - many
        some = np.repeat(at.take(todo) - begin, many) + np.arange(int(many.sum()))
        all_segments, all_answers = _said(pkts, rows.take(some)), reply.take(some).tolist()
        knows = [False] * len(some) if told is None else told.take(some).tolist()
        watched = self._watch(ct, flows.take(todo))
        went: list[int] = []
        gone: list[tuple[int, int, int]] = []
        for k, (which, lo, size) in enumerate(zip(todo.tolist(), begin.tolist(), many.tolist(), strict=True)):
            one, over = carried.get(which, (watched[k], False))  # over: it is deleted
            segments, answers, known = all_segments[lo : lo + size], all_answers[lo : lo + size], knows[lo : lo + size]
            j = 0
            while j < len(segments):
                segment, answer = segments[j], answers[j]
                plain = one.misc[9] == ES and _KIND[segment[2]] == I_ACK
                if j >= patience and plain and one.flow >= 0 and not over:
                    break
                state = ESTABLISHED if answer or one.status & 2 else NEW
                verdict = REOPENED if over else self._one(one, segment, answer, pkts)
                if verdict == REOPENED and known[j]:
                    assert lives is not None
                    one = self._born(one, -1 - len(lives), segment, pkts)
                    lives.append(Life(one, watched[k].flow, segment[0]))
                    state, verdict, over = NEW, self._one(one, segment, False, pkts), False
                elif verdict == REOPENED:
                    flow = reopen(one.flow, segment[0])
                    if flow < 0:
                        verdict = INVALID_SEGMENT
                    else:
                        flows[which] = flow
                        watched[k] = one = self._watch(ct, np.array([flow]))[0]
                        answer, state, over = False, NEW, False
                        verdict = self._one(one, segment, False, pkts)
                if verdict == INVALID_SEGMENT:
                    state = INVALID
                elif answer:
                    one.status |= 2
                gone.append((verdict, state, one.flow))
                over |= verdict == GONE
                j += 1
                if told is not None and (over or one.flow < 0) and at[which] + len(segments) < stop[which]:
                    rest = slice(int(at[which]) + len(segments), int(stop[which]))  # all of a new life is taken here
                    segments = segments + _said(pkts, rows[rest])
                    answers, known = answers + reply[rest].tolist(), known + told[rest].tolist()
            went.append(j)
        self._keep(ct, watched)
        size_ = np.array(went)
        done = np.repeat(at.take(todo) - (np.cumsum(size_) - size_), size_) + np.arange(len(gone))
        at[todo] += size_
        verdicts[done], states[done], of[done] = zip(*gone, strict=True)

    @staticmethod
    def _born(before: Watched, flow: int, segment: Segment, pkts: Packets) -> Watched:
        """What a SYN begins in the place of a connection that is over; it is translated like that one."""
        row, _, _, seq, _, win, payload, doff = segment
        end = (seq + payload + 1) & M32
        scale, offered = _options(pkts, row, doff)
        misc = [scale, 0, offered, 0, 0, I_NONE, 0, 0, 0, NO]
        return Watched(flow, [end, end, win or 1, 0, 0, 0, 0, 0], misc, [0] * 4, before.status & _TRANSLATED, 1 << 62)

    def _plain(
        self, ct: Conntrack, flows: Flows, starts: Flows, counts: Flows, pkts: Packets, rows: Rows, reply: Mask
    ) -> tuple[Flows, U8]:
        """Take plain acknowledgements of established connections, in columns. Arguments as `follow`'s.

        starts   intp[k]  where each connection's segments begin in `rows`
        returns  intp[k]  how far each connection came: all segments before that place are taken, exactly as `one`
                 would; and uint8[n], the states of those

        While all segments fit, everything a window is made of is a running maximum: how far each end got, and what the
        other one allows it. So assume that they fit, take the maxima, and look which do not: what lies before the
        first misfit of its connection was judged by right numbers. A misfit whose sender is trusted all the same (in a
        connection picked up in the middle) keeps the connection alive and teaches nothing: leave those out of the
        maxima and look again, until that says the same twice.
        Cost: about a hundred column operations.
        """
        n, k = len(rows), len(flows)
        place = np.arange(n)
        whose = np.repeat(np.arange(k), counts)
        own = whose << 1  # the sender's number among the ends of all connections; the receiver's is the other of two
        own |= reply

        # the ends, two a connection: how far it got, how far it may go, its window, what it last acknowledged
        td = self.td.take(flows, axis=0).reshape(-1, 4)
        misc = self.misc.take(flows, axis=0)
        end0, window = td[:, 0], td[:, 2].astype(np.int64)
        other0, partner = _swapped(end0), _swapped(window)
        edge0 = (td[:, 1] - end0).view(np.int32).astype(np.int64)
        heard0 = (td[:, 3] - other0).view(np.int32).astype(np.int64)
        traits = misc[:, 2:4].ravel()
        unseen = partner == 0
        trusted = (traits & LIBERAL) != 0 if not self.liberal else np.ones(2 * k, bool)
        fit = (window > 0) & (window < _WIDE) & (partner < _WIDE) & ((traits & MAXACK) != 0)
        fit &= (edge0 < _WIDE) & (edge0 > -_NEAR) & (np.abs(heard0) < _NEAR) & np.repeat(misc[:, 9] == ES, 2)
        reach = np.where(unseen, _FAR, partner)  # how far behind its end it may begin again
        slack = np.maximum(window, 66000)  # how far behind what the other one sent it may acknowledge

        # the segments, relative to where the ends were
        seq, ack, raw_win = pkts.seq.take(rows), pkts.ack.take(rows), pkts.win.take(rows)
        doff = pkts.doff.take(rows)
        payload = pkts.length.take(rows)
        payload -= pkts.ihl.take(rows)
        payload -= doff
        np.maximum(payload, 0, out=payload)
        end = seq + payload.view(np.uint32)
        came = (end - end0.take(own)).view(np.int32)
        heeds = (ack - other0.take(own)).view(np.int32)
        win = raw_win.astype(np.int32)
        if misc[:, :2].any():
            win <<= misc[:, :2].ravel().take(own)
        edge = np.add(heeds, win, dtype=np.int64)
        edge += win == 0
        edge += _SHIFT
        good = (pkts.flags.take(rows) & _TURNS) == ACK
        if not fit.all():
            good &= fit.take(own)
        # what is ahead of all that was sent is a misfit
        if int(came.max()) >= _NEAR or int(came.min()) <= -_NEAR or int(heeds.min()) <= -_NEAR:
            good &= (came < _NEAR) & (came > -_NEAR) & (heeds > -_NEAR)
        optional = np.flatnonzero(doff > 20)
        if len(optional):
            optional = optional.compress((traits.take(own.take(optional) ^ 1) & SACK_PERM) != 0)
            good[optional] &= _only_timestamp(pkts, rows.take(optional), doff.take(optional).astype(np.int64))

        segment = whose << 32
        edges0 = np.maximum(edge0 + _SHIFT, 0).reshape(-1, 2).T
        tail = came  # what must lie in the window: the end where we know who sends the window, else the beginning
        if unseen.any():
            tail = came - payload * unseen.take(own)
        teaches: Mask | None = None  # which count in the maxima; None: all
        for attempt in range(4):
            reached = np.maximum(came, 0)
            got = _two(reached if teaches is None else reached * teaches, reply, np.int64)
            may = _two(edge if teaches is None else edge * teaches, reply, np.int64)[::-1]
            may[:, starts] = np.maximum(may[:, starts], edges0)
            for rows_of_two in (got, may):  # running maxima of each connection
                rows_of_two += segment
                np.maximum.accumulate(rows_of_two, axis=1, out=rows_of_two)
                rows_of_two -= segment
            lead = (got[1] - got[0]) * reply
            my_end, their_end = got[0] + lead, got[1] - lead
            inside = tail <= may[0] + (may[1] - may[0]) * reply - _SHIFT
            fits = inside & (heeds <= their_end)
            fits &= _within(my_end - came, reach, own)
            fits &= _within(their_end - heeds, slack, own)
            if teaches is None and fits.all():
                break
            guess = fits | ~trusted.take(own)
            if attempt == 3 or (guess.all() if teaches is None else bool((guess == teaches).all())):
                break
            teaches = guess
        good &= fits if teaches is None else fits == teaches
        if teaches is not None:  # windows may have grown since: what only they make a misfit is none for sure
            good &= fits | ~inside | (heeds > their_end)
        if not inside.all():
            good &= inside | unseen.take(own)

        stop = starts + counts
        bad = np.flatnonzero(~good)
        if len(bad):
            belongs = whose.take(bad)
            first = np.flatnonzero(np.concatenate(([True], belongs[1:] != belongs[:-1])))
            stop[belongs.take(first)] = bad.take(first)
            if (stop == starts).all():
                return stop, np.empty(n, np.uint8)
            within = place < stop.take(whose)
            teaches = within if teaches is None else teaches & within
        last = np.maximum(stop - 1, starts)
        sent = reply.take(last)

        # who was answered, and when
        status = ct.status.take(flows)
        states, answered, settled = heard((status & 2) != 0, reply, starts, stop)

        # what the ends are now
        grew, caught_up = np.empty((2, n), bool), heeds == their_end
        np.greater(got[:, 1:], got[:, :-1], out=grew[:, 1:])
        grew[:, starts] = got[:, starts] > 0
        if teaches is None:
            lesson, lessons = last, place
            heard_of = heeds + np.int32(_SHIFT)
        else:
            lesson = np.maximum.reduceat(np.where(teaches, place, -1), starts)
            lessons = np.flatnonzero(teaches)
            win *= teaches
            heard_of = (heeds + np.int32(_SHIFT)) * teaches
            grew &= teaches
            caught_up &= teaches
        new = np.empty_like(td)
        new[:, 0] = end0 + got[:, last].T.ravel().astype(np.uint32)
        new[:, 1] = end0 + (may[:, last].T.ravel() - _SHIFT).astype(np.uint32)
        new[:, 2] = np.maximum(window, _most(_two(win, reply), starts))
        new[:, 3] = other0 + np.maximum(_most(_two(heard_of, reply), starts) - _SHIFT, heard0).astype(np.uint32)
        # what last happened to UNACKED of each end: odd numbers set it
        when = np.arange(2, 2 * n + 2, 2, dtype=np.int32)
        events = grew * (when + np.int32(1)) + _two(caught_up * when, reply)[::-1]
        event = _most(events, starts)
        traits = np.where(event > 0, traits & (255 - UNACKED) | (event & 1).astype(np.uint8) * UNACKED, traits)
        misc[:, 2:4] = traits.reshape(-1, 2)

        # the last word of each, and how often it was said
        def said(where: Flows) -> U32:
            return np.stack([seq.take(where), ack.take(where), end.take(where), raw_win.take(where)])

        remembered = self.last.take(flows, axis=0)
        misc[:, 8] = self._again(misc, remembered, said, reply, lesson, lessons, starts)
        taught = lesson >= 0
        remembered = np.where(taught[:, None], said(np.maximum(lesson, 0)).T, remembered)
        misc[:, 4], misc[:, 5] = sent, I_ACK

        timeout = np.full(k, self.timeouts[ES], np.int64)
        np.minimum(timeout, self.max_retrans_timeout, out=timeout, where=remembered[:, 3] == 0)
        unacked = ((traits.reshape(-1, 2)[:, 0] | traits.reshape(-1, 2)[:, 1]) & UNACKED) != 0
        if self.timeouts[ES] > self.unacked_timeout:
            timeout[unacked] = self.unacked_timeout
        if self.timeouts[ES] > self.max_retrans_timeout:
            timeout[misc[:, 8] >= self.max_retrans] = self.max_retrans_timeout
        np.minimum(timeout, self.unacked_timeout, out=timeout, where=~settled)

        status |= answered.astype(np.uint16) * np.uint16(2) | settled.astype(np.uint16) * np.uint16(4)
        deadline = pkts.time.take(rows.take(last)) + timeout
        if len(bad):
            came_on = np.flatnonzero(stop > starts)
            flows, misc, remembered = flows[came_on], misc[came_on], remembered[came_on]
            status, deadline, new = status[came_on], deadline[came_on], new.reshape(-1, 8)[came_on]
        self.td[flows], self.misc[flows], self.last[flows] = new.reshape(-1, 2, 4), misc, remembered
        ct.status[flows], ct.deadline[flows] = status, deadline
        return stop, states

    @staticmethod
    def _again(
        misc: U8,
        remembered: U32,
        said: Callable[[Flows], U32],
        reply: Mask,
        lesson: Flows,
        lessons: Flows,
        starts: Flows,
    ) -> NDArray[np.integer]:
        """How often each connection has said the same again by now.

        said     uint32[4, m] what these segments say
        lesson   intp[k] the last segment that counts of each connection, or -1
        lessons  intp[m] all that count, ascending       reply  bool[n]
        """
        if not len(lessons):
            return misc[:, 8]
        came = np.searchsorted(lessons, lesson)
        earlier = lessons.take(came - 1, mode="clip")
        known = (came > 0) & (earlier >= starts) & (lesson >= 0)
        at = np.maximum(lesson, 0)
        before = np.where(known, said(earlier), remembered.T)
        direction = np.where(at > starts, reply.take(at - 1), misc[:, 4])
        same = (said(at) == before).all(0) & (direction == reply.take(at))
        again = np.where(lesson < 0, misc[:, 8], 0).astype(np.int64)
        for k in np.flatnonzero(same & (lesson >= 0)).tolist():
            start, times, j = int(starts[k]), 0, int(came[k])
            while times < 255:
                this = int(lessons[j])
                if (reply[this - 1] if this > start else misc[k, 4]) != reply[this]:
                    break
                words = said(lessons[max(j - 1, 0) : j + 1])
                if j == 0 or lessons[j - 1] < start:
                    times += 1 + int(misc[k, 8]) if (remembered[k] == words[:, -1]).all() else 0
                    break
                if (words[:, 0] != words[:, 1]).any():
                    break
                times, j = times + 1, j - 1
            again[k] = min(times, 255)
        return again


def _births(pkts: Packets, rows: Rows, state: U8, starts: Flows, counts: Flows, told: Mask) -> Flows:
    """Places of SYNs that probably begin connections anew: there was a FIN or a reset before them, or the connection
    was about to end (`state`, of each)."""
    closing = np.concatenate(([0], np.cumsum((pkts.flags.take(rows) & (FIN | RST)) != 0)))
    over = closing[:-1] > np.repeat(closing.take(starts), counts)
    over |= np.repeat((state >= FW) & (state <= CL), counts)
    return np.flatnonzero(told & over)


def heard(seen: Mask, reply: Mask, starts: Flows, stop: Flows) -> tuple[U8, Mask, Mask]:
    """What answers make of packets that are grouped by connection.

    seen     bool[k]  was it answered before?      starts, stop  intp[k]  where its packets begin, and end to be taken
    reply    bool[n]  which packets are answers
    returns  uint8[n] NEW or ESTABLISHED; bool[k] is it answered now, and was it before its last packet?
    """
    if seen.all():
        return np.full(len(reply), ESTABLISHED, np.uint8), seen, seen
    place = np.arange(len(reply))
    first = np.minimum.reduceat(np.where(reply, place, len(reply)), starts)
    size = np.diff(starts, append=len(reply))
    known = reply | (place > np.repeat(np.where(seen, -1, first), size))
    states = np.where(known, np.uint8(ESTABLISHED), np.uint8(NEW))
    return states, seen | (first < stop), seen | (first < stop - 1)


def _said(pkts: Packets, rows: Rows) -> list[Segment]:
    """Of each segment its row, time, flags, seq, ack, window, bytes of payload, and length of its header."""
    columns = [column.take(rows) for column in (pkts.time, pkts.flags, pkts.seq, pkts.ack, pkts.win, pkts.doff)]
    doff = columns.pop()
    payload = np.maximum(pkts.length.take(rows) - pkts.ihl.take(rows) - doff, 0)
    return list(zip(*[c.tolist() for c in (rows, *columns, payload, doff)], strict=True))


def _swapped(ends: NDArray[T]) -> NDArray[T]:
    """The same with the two ends of each connection exchanged."""
    return ends.reshape(-1, 2)[:, ::-1].ravel()


def _two(values: NDArray[np.integer], reply: Mask, dtype: type[np.integer] = np.int32) -> NDArray[np.integer]:
    """[2, n]: what the original direction says, and what the reply direction says; 0 where the other one speaks."""
    two = np.empty((2, len(values)), dtype)
    np.multiply(values, reply, out=two[1])
    np.subtract(values, two[1], out=two[0])
    return two


def _most(two: NDArray[np.integer], starts: Flows) -> I64:
    """int64[2 * k]: the largest of each connection's two rows, end by end."""
    return np.maximum.reduceat(two, starts, axis=1).T.ravel().astype(np.int64)


def _within(distance: I64, most: I64, own: Flows) -> Mask:
    """bool[n]: distances are at most what is allowed to the sender, whose number among the ends is `own`."""
    fine: Mask = distance <= most.min()
    return fine if fine.all() else distance <= most.take(own)


def _option_bytes(pkts: Packets, row: int) -> bytes:
    ihl = int(pkts.ihl[row])
    return pkts.original(row)[ihl + 20 : ihl + int(pkts.doff[row])]


def _walk_options(b: bytes) -> list[tuple[int, bytes]]:
    out, k = [], 0
    while k < len(b):
        kind = b[k]
        if kind == 0:
            break
        if kind == 1:
            k += 1
            continue
        if k + 1 >= len(b) or b[k + 1] < 2 or k + b[k + 1] > len(b):
            break
        out.append((kind, b[k + 2 : k + b[k + 1]]))
        k += b[k + 1]
    return out


def _offers(pkts: Packets, rows: Rows, doff: I64) -> tuple[U8, U8]:
    """(window scale, flags) that each SYN offers: `_options` of many."""
    scale, offered = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.uint8)
    opted = doff > 20
    whole = opted & (pkts.cap[rows] >= pkts.ihl[rows] + doff)
    if pkts.rebuilt:
        whole &= ~np.isin(rows, list(pkts.rebuilt))
    for k in np.flatnonzero(opted & ~whole).tolist():
        scale[k], offered[k] = _options(pkts, int(rows[k]), int(doff[k]))
    who = np.flatnonzero(whole)
    at = (pkts.at[rows] + pkts.ihl[rows] + 20)[who]
    stop = at + doff[who] - 20
    while len(who):
        kind = pkts.data[at]
        single = kind == 1
        more = ~single & (at + 1 < stop)
        size = np.where(more, pkts.data[np.minimum(at + 1, stop - 1)], 1).astype(np.int64)
        going = (kind != 0) & (single | (more & (size >= 2) & (at + size <= stop)))
        sack = going & (kind == 4) & (size == 2)
        offered[who[sack]] |= SACK_PERM
        scaled = going & (kind == 3) & (size == 3)
        scale[who[scaled]] = np.minimum(pkts.data[at[scaled] + 2], 14)
        offered[who[scaled]] |= WSCALE
        at = at + size
        going &= at < stop
        who, at, stop = who[going], at[going], stop[going]
    return scale, offered


def _options(pkts: Packets, row: int, doff: int) -> tuple[int, int]:
    """(window scale, flags) that a SYN offers."""
    scale = offered = 0
    if doff > 20:
        for kind, value in _walk_options(_option_bytes(pkts, row)):
            if kind == 4 and not value:
                offered |= SACK_PERM
            elif kind == 3 and len(value) == 1:
                scale = min(value[0], 14)
                offered |= WSCALE
    return scale, offered


def _sack(pkts: Packets, row: int, ack: int) -> int:
    """The furthest right edge that the segment acknowledges, SACK blocks included."""
    sack = ack
    for kind, value in _walk_options(_option_bytes(pkts, row)):
        if kind == 5 and len(value) % 8 == 0:
            for k in range(4, len(value), 8):
                edge = int.from_bytes(value[k : k + 4], "big")
                if after(edge, sack):
                    sack = edge
    return sack


def _only_timestamp(pkts: Packets, rows: Rows, doff: I64) -> Mask:
    """bool[len(rows)]: the options are two no-ops and a timestamp, so there is no SACK among them."""
    place = pkts.at[rows] + pkts.ihl[rows] + 20
    place = np.minimum(place, len(pkts.data) - 4)
    word = np.zeros(len(rows), np.uint32)
    for k in range(4):
        word = (word << np.uint32(8)) | pkts.data[place + k]
    ok: Mask = (word == 0x0101080A) & (doff == 32)
    if pkts.rebuilt:
        ok &= ~np.isin(rows, list(pkts.rebuilt))
    return ok
