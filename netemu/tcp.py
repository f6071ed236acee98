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
_PLAIN = KIND == I_ACK
_TRANSLATED = 16 | 32  # bits of conntrack's status: how a connection's packets are rewritten
_NEAR, _WIDE, _SHIFT, _FAR = 1 << 28, 1 << 30, 1 << 30, 1 << 40  # of numbers relative to each other: see `_plain`
WORTH = 128  # so many segments at least are worth columns

# what `one` says of a segment
ACCEPTED, INVALID_SEGMENT, UNTOUCHED, REOPENED, GONE = range(5)

M32 = 0xFFFFFFFF


def before(a: int, b: int) -> bool:
    """a comes before b in sequence space (mod 2^32)."""
    return ((a - b) & M32) >= 0x80000000


def after(a: int, b: int) -> bool:
    """a comes after b in sequence space."""
    return ((b - a) & M32) >= 0x80000000


class Watched:
    """One connection taken out of the columns, as plain numbers. td: eight, those of the original direction first."""

    __slots__ = ("deadline", "flow", "last", "misc", "shifts", "status", "td")

    def __init__(self, flow: int, td: list[int], misc: list[int], last: list[int], status: int, deadline: int) -> None:
        self.flow, self.td, self.misc, self.last, self.status, self.deadline = flow, td, misc, last, status, deadline
        self.shifts: tuple[Shift, Shift] | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """A connection that begins within a run, in the place of one that is over.

    watched  how it stands at the end of the run      root  the flow that held its tuples before the run
    row      the SYN that begins it
    """

    watched: Watched
    root: int
    row: int


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
                misc[2 + me] = 0
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
            return INVALID_SEGMENT
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
        else or does not fit. That one goes alone, and then columns are tried again: less and less often, so that a
        trace made of exceptions costs what it would one by one.
        """
        n = len(rows)
        verdicts, states, of = np.zeros(n, np.int8), np.empty(n, np.uint8), np.repeat(flows, counts)
        stop = np.cumsum(counts)
        at = stop - counts
        todo = np.arange(len(flows))
        patience = 1
        while True:
            left = stop.take(todo) - at.take(todo)
            if int(left.sum()) >= WORTH:
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
            self._alone(
                ct, todo, flows, at, stop, patience, pkts, rows, reply, reopen, verdicts, states, of, told, lives
            )
            todo = todo.compress(at.take(todo) < stop.take(todo))
            if not len(todo):
                return verdicts, states, of
            patience *= 4

    def _alone(
        self, ct: Conntrack, todo: Flows, flows: Flows, at: Flows, stop: Flows, patience: int, pkts: Packets,
        rows: Rows, reply: Mask, reopen: Callable[[int, int], int], verdicts: I8, states: U8, of: Flows,
        told: Mask | None, lives: list[Life] | None,
    ) -> None:  # fmt: skip
        """Segments of the connections `todo` one by one, until `patience` of each went and the next may be a plain one.

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
            one = watched[k]
            segments, answers, known = all_segments[lo : lo + size], all_answers[lo : lo + size], knows[lo : lo + size]
            over = False  # it is deleted
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
        side = reply.astype(np.intp)  # 0: the original direction
        own = 2 * whose + side  # the sender's number among the ends of all connections; the receiver's is far
        far = own ^ 1

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
        doff = pkts.doff.take(rows).astype(np.int32)
        payload = pkts.length.take(rows)
        payload -= pkts.ihl.take(rows)
        payload -= doff
        np.maximum(payload, 0, out=payload)
        end = seq + payload.view(np.uint32)
        came = (end - end0.take(own)).view(np.int32).astype(np.int64)
        heeds = (ack - end0.take(far)).view(np.int32).astype(np.int64)
        win = raw_win.astype(np.int64)
        if misc[:, :2].any():
            win <<= misc[:, :2].ravel().take(own)
        edge = heeds + win
        edge += win == 0
        edge += _SHIFT
        good = fit.take(own)
        good &= _PLAIN.take(pkts.flags.take(rows))
        good &= (came < _NEAR) & (came > -_NEAR) & (heeds > -_NEAR)  # what is ahead of all that was sent is a misfit
        optional = np.flatnonzero(doff > 20)
        if len(optional):
            optional = optional.compress((traits.take(far.take(optional)) & SACK_PERM) != 0)
            good[optional] &= _only_timestamp(pkts, rows.take(optional), doff.take(optional).astype(np.int64))

        segment = whose << 32
        mine = side * n + place
        others = place + n - side * n
        tail = came  # what must lie in the window: the end where we know who sends the window, else the beginning
        if unseen.any():
            tail = came - payload * unseen.take(own)
        teaches: Mask | None = None  # which count in the maxima; None: all
        for attempt in range(4):
            got = _running(np.maximum(came, 0) if teaches is None else np.maximum(came, 0) * teaches, mine, segment)
            may = _running(edge if teaches is None else edge * teaches, others, segment)
            my_end, their_end = got.take(mine), got.take(others)
            inside = tail <= np.maximum(may.take(mine) - _SHIFT, edge0.take(own))
            fits = inside & (heeds <= their_end)
            fits &= came >= my_end - reach.take(own)
            fits &= heeds >= their_end - slack.take(own)
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
        if teaches is None:
            lesson, lessons = last, place
            counted_win, counted_heard = win, heeds + _SHIFT
        else:
            lesson = np.maximum.reduceat(np.where(teaches, place, -1), starts)
            lessons = np.flatnonzero(teaches)
            counted_win, counted_heard = win * teaches, (heeds + _SHIFT) * teaches
        at_last = np.stack([last, last + n], 1).ravel()
        new = np.empty_like(td)
        new[:, 0] = end0 + got.take(at_last).astype(np.uint32)
        new[:, 1] = end0 + np.maximum(may.take(at_last) - _SHIFT, edge0).astype(np.uint32)
        new[:, 2] = np.maximum(window, _most(counted_win, mine, starts))
        new[:, 3] = other0 + np.maximum(_most(counted_heard, mine, starts) - _SHIFT, heard0).astype(np.uint32)
        before_it = got.take(mine - 1)
        before_it[starts] = 0
        grew, caught_up = came > before_it, heeds == their_end
        if teaches is not None:
            grew, caught_up = grew & teaches, caught_up & teaches
        events = np.zeros(2 * n, np.int64)  # what last happened to UNACKED of each end: odd numbers set it
        events[mine] = (2 * place + 3) * grew
        events[others] = (2 * place + 2) * caught_up
        event = np.maximum.reduceat(events.reshape(2, n), starts, axis=1).T.ravel()
        traits = np.where(event > 0, traits & (255 - UNACKED) | (event & 1).astype(np.uint8) * UNACKED, traits)
        misc[:, 2:4] = traits.reshape(-1, 2)

        # the last word of each, and how often it was said
        said = np.stack([seq, ack, end, raw_win.astype(np.uint32)])
        remembered = self.last.take(flows, axis=0)
        misc[:, 8] = self._again(misc, remembered, said, side, lesson, lessons, starts)
        taught = lesson >= 0
        remembered = np.where(taught[:, None], said.take(np.maximum(lesson, 0), axis=1).T, remembered)
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
        misc: U8, remembered: U32, said: U32, side: Flows, lesson: Flows, lessons: Flows, starts: Flows
    ) -> NDArray[np.integer]:
        """How often each connection has said the same again by now.

        said     uint32[4, n] what each segment says
        lesson   intp[k] the last segment that counts of each connection, or -1
        lessons  intp[m] all that count, ascending       side  intp[n]
        """
        if not len(lessons):
            return misc[:, 8]
        came = np.searchsorted(lessons, lesson)
        earlier = lessons.take(came - 1, mode="clip")
        known = (came > 0) & (earlier >= starts) & (lesson >= 0)
        at = np.maximum(lesson, 0)
        before = np.where(known, said.take(earlier, axis=1), remembered.T)
        direction = np.where(at > starts, side.take(at - 1), misc[:, 4])
        same = (said.take(at, axis=1) == before).all(0) & (direction == side.take(at))
        again = np.where(lesson < 0, misc[:, 8], 0).astype(np.int64)
        for k in np.flatnonzero(same & (lesson >= 0)).tolist():
            start, times, j = int(starts[k]), 0, int(came[k])
            while times < 255:
                this = int(lessons[j])
                if (side[this - 1] if this > start else misc[k, 4]) != side[this]:
                    break
                if j == 0 or lessons[j - 1] < start:
                    times += 1 + int(misc[k, 8]) if (remembered[k] == said[:, this]).all() else 0
                    break
                if (said[:, lessons[j - 1]] != said[:, this]).any():
                    break
                times, j = times + 1, j - 1
            again[k] = min(times, 255)
        return again


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


def _running(values: I64, where: Flows, segment: Flows) -> I64:
    """int64[2 * n]: running maxima of two rows of n, those that count standing at `where`; 0 begins each segment.

    values  int64[n], below 1 << 32      segment  intp[n]  number of the segment << 32
    """
    both = np.zeros(2 * len(values), np.int64)
    both[where] = values
    two = both.reshape(2, -1)
    two += segment
    np.maximum.accumulate(two, axis=1, out=two)
    two -= segment
    return both


def _most(values: I64, where: Flows, starts: Flows) -> I64:
    """int64[2 * k]: the largest of each segment and row, 0 where there is none; rows as in `_running`."""
    both = np.zeros(2 * len(values), np.int64)
    both[where] = values
    most: I64 = np.maximum.reduceat(both.reshape(2, -1), starts, axis=1).T.ravel()
    return most


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
