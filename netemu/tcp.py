"""The TCP tracker: the drawn table of states, and the window arithmetic. Everything that changes a TCP state is here.

A connection is watched from the middle of the road: each segment moves it through the table below, unless its sequence
and acknowledgement numbers say that it does not belong. What Linux remembers of each end (the furthest byte sent, the
furthest byte allowed, the largest window) stands in columns of conntrack's flows.

The one-packet form (`Tracker.one`) is the meaning. The column form (`Tracker.settled`) takes the plain acknowledgements
of established connections, which are nearly all segments there are, and leaves every other one to `one`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from netemu.packets import ACK, FIN, I64, RST, SYN, Mask, Packets, Rows

if TYPE_CHECKING:
    from netemu.conntrack import Conntrack

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
    S2: ("syn_sent", 120),
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

# what `one` says of a segment
ACCEPTED, INVALID_SEGMENT, UNTOUCHED, REOPENED, GONE = range(5)

M32 = 0xFFFFFFFF


def before(a: int, b: int) -> bool:
    """a comes before b in sequence space (mod 2^32)."""
    return ((a - b) & M32) >= 0x80000000


def after(a: int, b: int) -> bool:
    """a comes after b in sequence space."""
    return ((b - a) & M32) >= 0x80000000


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
            self.timeouts[state] = get("tcp_timeout_" + name, default) * SECOND
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
        seq, payload = int(pkts.seq[row]), _payload(pkts, row)
        flags = int(pkts.flags[row])
        end = (seq + payload + bool(flags & SYN) + bool(flags & FIN)) & M32
        win = int(pkts.win[row])
        td = [[0, 0, 0, 0], [0, 0, 0, 0]]
        if new == SS:
            td[0] = [end, end, win or 1, 0]
            misc[0], misc[2] = _options(pkts, row)
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

    # ---- one segment -------------------------------------------------------------------------------------------

    def one(self, ct: Conntrack, flow: int, pkts: Packets, row: int, reply: bool) -> int:
        """What a segment does to its connection: ACCEPTED, INVALID_SEGMENT, UNTOUCHED (passes, nothing refreshed),
        REOPENED (the flow is dead, begin a new one with this segment), GONE (accepted, and the flow is deleted).

        Changes the flow's columns, deadline and status in place. Source: KERNEL 3.4, 3.5 and recorded cases.
        """
        me, other = (1, 0) if reply else (0, 1)
        flags = int(pkts.flags[row])
        kind = _KIND[flags]
        now = int(pkts.time[row])
        misc: list[int] = self.misc[flow].tolist()
        td: list[list[int]] = self.td[flow].tolist()
        last: list[int] = self.last[flow].tolist()
        old = misc[9]
        new = _TABLE[me][kind][old]
        seq, ack, win = int(pkts.seq[row]), int(pkts.ack[row]), int(pkts.win[row])
        end = (seq + _payload(pkts, row) + bool(flags & SYN) + bool(flags & FIN)) & M32
        status = int(ct.status[flow])
        assured, seen_reply = bool(status & 4), bool(status & 2)

        if new == SS and old >= TW:
            if (misc[2] | misc[3]) & CLOSE_INIT or (misc[5] == I_RST and misc[4] == me):
                return REOPENED
            new = IG
        if new == IG:
            if kind == I_SYNACK and misc[5] == I_SYN and misc[4] == other and ack == last[2]:
                # the SYN that we ignored was answered: both ends opened anew, so learn the connection again from it
                old, new = SS, SR
                misc[7] &= ~CHALLENGE
                td[other] = [last[2], last[2], last[3] or 1, 0]
                misc[other], misc[2 + other] = misc[6], misc[7]
                td[me] = [0, 0, 0, 0]
                misc[2 + me] = 0
            else:
                misc[5], misc[4] = kind, me
                last[0], last[2], last[3] = seq, end, win
                if kind == I_SYN and not reply:
                    misc[6], misc[7] = _options(pkts, row)
                    if old == LA:
                        misc[7] |= CHALLENGE
                if kind == I_ACK and old == SS and reply:
                    last[1] = ack
                self.misc[flow], self.last[flow] = misc, last
                return UNTOUCHED
        if new == IV:
            return INVALID_SEGMENT
        if new == TW and kind == I_ACK and old == LA and misc[7] & CHALLENGE and misc[5] == I_SYN and misc[4] == other:
            misc[7] &= ~CHALLENGE
            self.misc[flow] = misc
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
                    if seq == 0 and not settled:
                        sure = True
                    elif before(seq, td[other][3]) and not self.ignore_invalid_rst:
                        return INVALID_SEGMENT
                    elif not settled or seq == td[other][3] or (misc[5] == I_ACK and misc[4] == me and seq == last[2]):
                        sure = True
                    else:
                        new = old  # the far end may challenge it: wait and see
                if not sure:
                    let_by = seen_reply and misc[5] == I_SYN and misc[4] == other
                    let_by |= not assured and misc[5] == I_ACK
                    challenged = old == SS and misc[5] == I_ACK and misc[4] == other and seq == last[1]
                    in_window = not ((let_by and ack == last[2]) or challenged)
        if in_window:
            verdict = self._window(td, misc, last, pkts, row, me, kind, seq, ack, end, win, flags)
            if verdict != ACCEPTED:
                self.td[flow], self.misc[flow], self.last[flow] = td, misc, last
                if verdict == INVALID_SEGMENT and assured and kind in (I_FIN, I_RST):
                    if misc[4] != me and misc[5] in (I_FIN, I_RST):
                        # both ends try to close, and we do not believe either: do not keep it for days
                        left = int(ct.deadline[flow]) - now
                        if left >= 120 * SECOND and left > self.unacked_timeout:
                            ct.deadline[flow] = now + self.unacked_timeout
                    else:
                        self.misc[flow, 4], self.misc[flow, 5] = me, kind
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
        self.td[flow], self.misc[flow], self.last[flow] = td, misc, last
        if not seen_reply:
            if kind == I_RST:
                return GONE
            if kind == I_SYN and old == SS:
                return UNTOUCHED  # a SYN again: the first one's timer goes on
            if new == ES and timeout > self.unacked_timeout:
                timeout = self.unacked_timeout
        elif not assured and old in (SR, ES) and new == ES:
            ct.status[flow] |= 4
        ct.deadline[flow] = now + timeout
        return ACCEPTED

    def _window(
        self, td: list[list[int]], misc: list[int], last: list[int], pkts: Packets, row: int, me: int, kind: int,
        seq: int, ack: int, end: int, win: int, flags: int,
    ) -> int:  # fmt: skip
        """Do the numbers fit? ACCEPTED (windows updated), UNTOUCHED (out of window, harmless) or INVALID_SEGMENT."""
        other = 1 - me
        s, r = td[me], td[other]
        raw_win = win
        sack = ack
        if misc[2 + other] & SACK_PERM and int(pkts.doff[row]) > 20:
            sack = _sack(pkts, row, ack)
        if s[2] == 0:
            if flags & SYN:
                self._learn(s, misc, pkts, row, me, end, win)
                if not flags & ACK:
                    return ACCEPTED
            else:
                s[0] = end
                scaled = win << misc[me]
                s[2] = scaled or 1
                s[1] = (end + s[2]) & M32
                if r[2] == 0:
                    r[0] = r[1] = sack
                elif sack == (r[0] + 1) & M32:
                    r[0] = sack
        elif flags & SYN and after(end, s[0]) and misc[9] in (SS, SR):
            self._learn(s, misc, pkts, row, me, end, win)
            if me == 1 and not flags & ACK:
                return ACCEPTED
        if not flags & ACK or (flags & RST and ack == 0):
            ack = sack = r[0]
        if flags & RST and seq == 0 and misc[9] == SS:
            seq = end = s[0]

        slack = max(66000, s[2])
        liberal = self.liberal or bool(misc[2 + me] & LIBERAL)
        if not before(seq, s[1] + 1):
            over = (end - s[1] + 1) & M32
            fits = r[2] != 0 and after(end, s[0] - r[2] - 1)
            if fits and after(sack, r[0] - slack - 1) and over <= r[2] and before(sack, r[0] + 1):
                s[0] = end
                misc[2 + me] |= UNACKED
                return ACCEPTED if liberal else UNTOUCHED
            return ACCEPTED if liberal else INVALID_SEGMENT
        if not before(sack, r[0] + 1):
            return ACCEPTED if liberal else INVALID_SEGMENT
        if r[2] and not after(end, s[0] - r[2] - 1):
            return ACCEPTED if liberal else UNTOUCHED
        if not after(sack, r[0] - slack - 1):
            return ACCEPTED if liberal else UNTOUCHED

        if not flags & SYN:
            win <<= misc[me]
        s[2] = max(s[2], (win + ((sack - ack) & M32)) & M32)
        if after(end, s[0]):
            s[0] = end
            misc[2 + me] |= UNACKED
        if flags & ACK:
            if not misc[2 + me] & MAXACK:
                s[3] = ack
                misc[2 + me] |= MAXACK
            elif after(ack, s[3]):
                s[3] = ack
        if r[2] and after(end, s[1]):
            r[2] = (r[2] + ((end - s[1]) & M32)) & M32
        if after(sack + win, r[1] - 1):
            r[1] = (sack + win + (win == 0)) & M32
        if ack == r[0]:
            misc[2 + other] &= ~UNACKED
        if kind == I_ACK:
            if misc[4] == me and last == [seq, ack, end, raw_win]:
                misc[8] = min(misc[8] + 1, 255)
            else:
                misc[4] = me
                last[:] = [seq, ack, end, raw_win]
                misc[8] = 0
        return ACCEPTED

    def _learn(self, s: list[int], misc: list[int], pkts: Packets, row: int, me: int, end: int, win: int) -> None:
        """The first word of an end: its numbers and its options."""
        s[0] = s[1] = end
        s[2] = win or 1
        misc[me], offered = _options(pkts, row)
        misc[2 + me] = offered | (misc[2 + me] & LIBERAL)
        if me == 1 and not (misc[2] & misc[3] & WSCALE):
            misc[0] = misc[1] = 0

    def impossible(self, flows: NDArray[np.intp], pkts: Packets, rows: Rows, reply: Mask) -> Mask:
        """bool[k]: segments that the table calls invalid in the state their connection is in (nothing changes)."""
        said = TRANSITIONS[reply.astype(np.intp), KIND[pkts.flags[rows]], self.misc[flows, 9]]
        return np.asarray(said == IV)

    # ---- many segments -----------------------------------------------------------------------------------------

    def settled(self, ct: Conntrack, flows: NDArray[np.intp], pkts: Packets, rows: Rows, reply: Mask) -> Mask:
        """Take the plain acknowledgements of established connections, in columns; True where taken.

        Those are the ones inside the window, and those outside it where the sender is trusted all the same (in a
        connection that was picked up in the middle): they keep it alive and teach nothing.

        flows  intp[k], each at most once    reply  bool[k]
        What is taken is changed exactly as `one` would; the rest is untouched. Cost: about sixty column operations.
        """
        misc = self.misc[flows]
        flags = pkts.flags[rows]
        me = reply.astype(np.intp)
        lane = np.arange(len(flows))
        mine, theirs = misc[lane, 2 + me], misc[lane, 3 - me]
        good: Mask = (KIND[flags] == I_ACK) & (misc[:, 9] == ES)
        seen_reply = (ct.status[flows] & 2) != 0
        doff = pkts.doff[rows].astype(np.int64)
        with_options = (theirs & SACK_PERM).astype(bool) & (doff > 20)
        if with_options.any():
            good &= ~with_options | _only_timestamp(pkts, rows, doff)
        td = self.td[flows]
        s, r = td[lane, me], td[lane, 1 - me]
        seq, ack = pkts.seq[rows], pkts.ack[rows]
        payload = np.maximum(pkts.length[rows] - pkts.ihl[rows] - doff, 0).astype(np.uint32)
        end = seq + payload
        one = np.uint32(1)
        zero = np.uint32(0x80000000)
        s_end, s_maxend, s_maxwin, s_maxack = s[:, 0], s[:, 1], s[:, 2], s[:, 3]
        r_end, r_maxend, r_maxwin = r[:, 0], r[:, 1], r[:, 2]
        good &= s_maxwin != 0
        good &= (seq - (s_maxend + one)) >= zero
        fits = (ack - (r_end + one)) >= zero
        fits &= (r_maxwin == 0) | ((s_end - r_maxwin - one - end) >= zero)
        fits &= (r_end - np.maximum(s_maxwin, np.uint32(66000)) - one - ack) >= zero
        if not self.liberal:
            good &= fits | ((mine & LIBERAL) != 0)
        if not good.any():
            return good
        win = pkts.win[rows].astype(np.uint32) << misc[lane, me]
        s_new = np.empty_like(s)
        s_new[:, 2] = np.maximum(s_maxwin, win)
        further = (s_end - end) >= zero
        s_new[:, 0] = np.where(further, end, s_end)
        s_new[:, 1] = s_maxend
        had = (mine & MAXACK) != 0
        s_new[:, 3] = np.where(~had | ((s_maxack - ack) >= zero), ack, s_maxack)
        r_new = r.copy()
        over = (r_maxwin != 0) & ((s_maxend - end) >= zero)
        r_new[:, 2] = np.where(over, r_maxwin + (end - s_maxend), r_maxwin)
        edge = ack + win
        wider = (r_maxend - one - edge) >= zero
        r_new[:, 1] = np.where(wider, edge + (win == 0), r_maxend)
        mine_new = mine | MAXACK | np.where(further, np.uint8(UNACKED), np.uint8(0))
        theirs_new = np.where(ack == r_end, theirs & np.uint8(255 - UNACKED), theirs)
        last = self.last[flows]
        said = np.stack([seq, ack, end, pkts.win[rows].astype(np.uint32)], 1)
        again = (misc[:, 4] == me) & (last == said).all(1)
        retrans = np.where(again, np.minimum(misc[:, 8].astype(np.int64) + 1, 255), 0).astype(np.uint8)
        if not fits.all():
            astray = ~fits
            s_new[astray], r_new[astray], said[astray] = s[astray], r[astray], last[astray]
            mine_new[astray], theirs_new[astray], retrans[astray] = mine[astray], theirs[astray], misc[astray, 8]
        both = mine_new | theirs_new
        full = self.timeouts[ES]
        timeout = np.full(len(flows), full, np.int64)
        if full > self.max_retrans_timeout:
            timeout[said[:, 3] == 0] = self.max_retrans_timeout
        if full > self.unacked_timeout:
            timeout[(both & UNACKED) != 0] = self.unacked_timeout
        if full > self.max_retrans_timeout:
            timeout[retrans >= self.max_retrans] = self.max_retrans_timeout
        if full > self.unacked_timeout:
            unheard = ~seen_reply & (timeout > self.unacked_timeout)
            timeout[unheard] = self.unacked_timeout

        misc[lane, 2 + me], misc[lane, 3 - me] = mine_new, theirs_new
        misc[:, 4], misc[:, 5], misc[:, 8] = me, I_ACK, retrans
        td[lane, me], td[lane, 1 - me] = s_new, r_new
        took = flows[good]
        self.misc[took], self.td[took], self.last[took] = misc[good], td[good], said[good]
        ct.status[flows[good & seen_reply]] |= 4
        ct.deadline[took] = pkts.time[rows[good]] + timeout[good]
        return good


def _payload(pkts: Packets, row: int) -> int:
    return max(int(pkts.length[row]) - int(pkts.ihl[row]) - int(pkts.doff[row]), 0)


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


def _options(pkts: Packets, row: int) -> tuple[int, int]:
    """(window scale, flags) that a SYN offers."""
    scale = offered = 0
    if int(pkts.doff[row]) > 20:
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
