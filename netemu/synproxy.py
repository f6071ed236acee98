"""SYNPROXY: handshakes in a server's name.

    client                    node                       server
      | SYN ------------------> |                           |      nothing is remembered: all that must be known
      | <------ SYN+ACK, cookie |                           |      again is in the answer's number and timestamp
      | ACK of the cookie ----> | SYN --------------------> |      the connection begins, in the client's name
      |                         | <---------------- SYN+ACK |
      | <------------------ ACK | ACK --------------------> |      the window opens
      | <----- numbers and timestamps of the server moved ----> |

Linux makes the cookie with secret keys and from its uptime; here the keys come from the node's seed and the time is the
node's own. So an acknowledgement in a capture, which is of another kernel's cookie, opens nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from netemu import clock
from netemu.conntrack import SEQ_ADJUST, Template
from netemu.fragments import ip_packet
from netemu.hashing import siphash24
from netemu.helpers import ORIGINAL, REPLY, Attended, Shift
from netemu.packets import (
    ACK,
    ANSWERS,
    DONT_FRAGMENT,
    ESTABLISHED,
    FIN,
    REJECTED,
    RST,
    SYN,
    TCP,
    Packets,
    Rows,
    checksum,
    patched,
    segment_ok,
)
from netemu.paths import Step
from netemu.tcp import CL, SR, SS
from netemu.trip import Trip

if TYPE_CHECKING:
    from netemu.node import Node

M32 = 0xFFFFFFFF
ECE, CWR = 0x40, 0x80
MINUTE = 60 * clock.SECOND
MSS, WSCALE, SACK, STAMPS, EXPLICIT = "mss", "wscale", "sack", "timestamp", "ecn"
SIZES = (536, 1300, 1440, 1460)  # what a cookie can remember of the client's mss
PROXIED = Template(proxied=True)
NO_SCALE = 15
INTRODUCED = "SYNPROXY: the server is there, both ends are told"


@dataclass
class Said:
    """The options of a TCP header. `on` says which there are."""

    on: set[str] = field(default_factory=set)
    mss: int = 0
    wscale: int = 0
    stamp: int = 0
    echo: int = 0

    @classmethod
    def read(cls, header: bytes) -> Said | None:
        """Of a header from its first byte on; None: it is not all there."""
        size = (header[12] >> 4) * 4
        if size < 20 or len(header) < size:
            return None
        said, rest = cls(), header[20:size]
        while rest and rest[0]:
            if rest[0] == 1:
                rest = rest[1:]
                continue
            if len(rest) < 2 or not 2 <= rest[1] <= len(rest):
                break
            kind, body, rest = rest[0], rest[2 : rest[1]], rest[rest[1] :]
            if kind == 2 and len(body) == 2:
                said.mss = int.from_bytes(body, "big")
                said.on.add(MSS)
            elif kind == 3 and len(body) == 1:
                said.wscale = min(body[0], 14)
                said.on.add(WSCALE)
            elif kind == 8 and len(body) == 8:
                said.stamp, said.echo = struct.unpack("!II", body)
                said.on.add(STAMPS)
            elif kind == 4 and not body:
                said.on.add(SACK)
        return said

    def written(self) -> bytes:
        """As Linux writes them."""
        out = struct.pack("!BBH", 2, 4, self.mss) if MSS in self.on else b""
        if STAMPS in self.on:
            out += (b"\4\2" if SACK in self.on else b"\1\1") + struct.pack("!BBII", 8, 10, self.stamp, self.echo)
        elif SACK in self.on:
            out += b"\1\1\4\2"
        return out + (struct.pack("!BBBB", 1, 3, 3, self.wscale) if WSCALE in self.on else b"")

    def turned(self) -> Said:
        """With the two timestamps changed for each other."""
        return Said(self.on, self.mss, self.wscale, self.echo, self.stamp)


@dataclass
class Proxied:
    """What is remembered of a connection that was opened so.

    isn    the number that the client was given in the server's place      its   the timestamp, likewise
    moved  how far the server's timestamps are from those
    """

    isn: int = 0
    its: int = 0
    moved: int = 0


class Synproxy:
    """Answers clients, opens connections to servers, and moves numbers between the two."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.proxied: dict[int, Proxied] = {}  # connection -> what is remembered of it

    def begin(self, flow: int) -> None:
        """A connection to a server begins, in its client's name."""
        self.proxied[flow] = Proxied()
        self.node.helpers.attended[flow] = Attended(None)
        self.node.conntrack.status[flow] |= SEQ_ADJUST

    # ---- the target

    def answer(self, trip: Trip, row: int, wishes: Said, step: Step) -> bool:
        """A packet from a client: a SYN is answered, the acknowledgement of a cookie has the server asked.

        wishes   the rule's options          returns False: neither, the packet goes on
        What is answered ends here, and so does what is damaged.
        """
        p, one = trip.pkts, np.array([row])
        packet, flags = p.bytes(row), int(p.flags[row])
        segment = packet[int(p.ihl[row]) :]
        said = Said.read(segment) if len(segment) >= 20 else None
        if said is None or (p.cap[row] >= p.length[row] and not p.local[row] and not segment_ok(packet)):
            trip.end(one, f"{step.text} SYNPROXY: damaged")
            return True
        kind = flags & (SYN | ACK | FIN | RST)
        if kind == SYN:
            self._greet(trip, row, said, wishes)
            trip.end(one, f"{step.text} SYNPROXY: answered with a cookie", REJECTED)
        elif kind == ACK:
            if self._open(trip, row, said, int(p.seq[row])):
                trip.end(one, f"{step.text} SYNPROXY: the cookie is right, the server is asked", REJECTED)
            else:
                trip.end(one, f"{step.text} SYNPROXY: not a cookie of this node")
        return bool(kind in (SYN, ACK))

    def _greet(self, trip: Trip, row: int, said: Said, wishes: Said) -> None:
        p = trip.pkts
        if p.flags[row] & (ECE | CWR) == ECE | CWR:
            said.on.add(EXPLICIT)
        size = next((k for k in (3, 2, 1) if said.mss >= SIZES[k]), 0)
        out = Said(said.on & wishes.on, wishes.mss)
        if STAMPS in out.on:
            out.echo = said.stamp
            out.stamp = int(p.time[row]) // 1_000_000 & M32 & ~0x3F
            out.stamp |= (SACK in out.on) << 4 | (EXPLICIT in out.on) << 5
            out.stamp |= said.wscale if WSCALE in out.on else NO_SCALE
            out.wscale = wishes.wscale
        else:  # nothing else can be remembered
            out.on -= {WSCALE, SACK, EXPLICIT}
        cookie = self._cookie(p, row, int(p.seq[row]), size, int(p.time[row]) // MINUTE)
        flags = SYN | ACK | (ECE if EXPLICIT in out.on else 0)
        made = self._segment(p, row, cookie, int(p.seq[row]) + 1, flags, 0, out, back=True)
        self._send(trip, row, made, int(p.ct[row]))

    def _open(self, trip: Trip, row: int, said: Said, seq: int) -> bool:
        """Ask the server, if this is the acknowledgement of a cookie.   seq: what the client's first byte has"""
        p = trip.pkts
        size = self._remembered(p, row)
        if size is None:
            return False
        said.mss = SIZES[size]
        said.on.add(MSS)
        if STAMPS in said.on:
            said.wscale = said.echo & 15
            said.on |= {WSCALE} if said.wscale != NO_SCALE else set()
            said.on |= ({SACK} if said.echo & 16 else set()) | ({EXPLICIT} if said.echo & 32 else set())
        flags = SYN | (ECE | CWR if EXPLICIT in said.on else 0)
        made = self._segment(p, row, seq - 1, int(p.ack[row]) - 1, flags, int(p.win[row]), said, back=False)
        self._send(trip, row, made, -1, PROXIED)
        return True

    # ---- cookies

    def _hash(self, p: Packets, row: int, count: int, which: int) -> int:
        words = (
            int(p.src[row]) << 32 | int(p.dst[row]),
            int(p.sport[row]) << 48 | int(p.dport[row]) << 32 | count & M32,
        )
        return int(siphash24(words, self.node.seed & 0xFFFFFFFFFFFFFFFF, which)) & M32

    def _cookie(self, p: Packets, row: int, seq: int, size: int, count: int) -> int:
        low = (self._hash(p, row, count, 1) + size) & 0xFFFFFF
        return (self._hash(p, row, 0, 0) + seq + (count << 24) + low) & M32

    def _remembered(self, p: Packets, row: int) -> int | None:
        """What the acknowledged cookie says of the client's mss (an index); None: it is none, or too old."""
        said = (int(p.ack[row]) - 1 - self._hash(p, row, 0, 0) - (int(p.seq[row]) - 1)) & M32
        now = int(p.time[row]) // MINUTE
        age = (now - (said >> 24)) & 0xFF
        if age >= 2:
            return None
        size = (said - self._hash(p, row, now - age, 1)) & 0xFFFFFF
        return size if size < len(SIZES) else None

    # ---- packets of its own

    def _segment(
        self, p: Packets, row: int, seq: int, ack: int, flags: int, win: int, said: Said, *, back: bool
    ) -> bytes:
        """A segment between the two ends of packet `row`; back: to where it came from."""
        ends = [(int(p.src[row]), int(p.sport[row])), (int(p.dst[row]), int(p.dport[row]))]
        (src, sport), (dst, dport) = reversed(ends) if back else ends
        options = said.written()
        length = 20 + len(options)
        segment = bytearray(
            struct.pack("!HHIIBBHHH", sport, dport, seq & M32, ack & M32, length << 2, flags, win, 0, 0) + options
        )
        struct.pack_into("!H", segment, 16, checksum(struct.pack("!IIBBH", src, dst, 0, TCP, length) + segment))
        return ip_packet(src, dst, TCP, bytes(segment), ttl=self.node.road.answers.default_ttl, flags=DONT_FRAGMENT)

    def _send(self, trip: Trip, row: int, packet: bytes, flow: int, template: Template | None = None) -> None:
        """Let a packet go its way, as an answer within connection `flow` (-1: it is tracked like any other)."""
        pkts = Packets.from_bytes([packet], int(trip.pkts.time[row]))
        pkts.serial[:] = trip.pkts.serial[row] + ANSWERS
        if flow >= 0:
            pkts.ct[:], pkts.state[:], pkts.reply[:] = flow, ESTABLISHED, True
        rows = np.array([row])
        child = Trip(self.node, pkts, parent=trip, parent_rows=rows)
        if template is not None:
            self.node.conntrack.wish(child, np.zeros(1, np.intp), template)
        self.node.road.launch(child)

    # ---- the stop before the connection is confirmed

    def follow(self, trip: Trip, rows: Rows) -> Rows:
        """Packets of connections that were opened so: the server's answer is taken, timestamps are moved."""
        p = trip.pkts
        mine = [row for row in rows[p.ct[rows] >= 0].tolist() if int(p.ct[row]) in self.proxied]
        for row in mine:
            if not (trip.hook == "INPUT" and p.link_in[row] == 0) and p.proto[row] == TCP:
                self._step(trip, row)
        return trip.travelling(rows) if mine else rows

    def _step(self, trip: Trip, row: int) -> None:
        p, ct, one = trip.pkts, self.node.conntrack, np.array([row])
        flow, way, flags = int(p.ct[row]), int(p.reply[row]), int(p.flags[row])
        proxied, state = self.proxied[flow], int(ct.tcp.misc[flow, 9])
        shifts = self.node.helpers.of(flow).shifts
        seq, ack = int(p.seq[row]), int(p.ack[row])
        said = Said.read(p.bytes(row)[int(p.ihl[row]) :])
        opens = flags & (SYN | ACK) == SYN and way == ORIGINAL
        if state == CL and flags & RST and way == REPLY:
            _moved(shifts[REPLY], proxied.isn - seq + 1)
        elif state == SS or (state == CL and opens):
            if state == CL:  # opened anew
                _moved(shifts[way], 0)
                proxied.moved = 0
            if said is None:
                trip.end(one, "SYNPROXY: damaged")
                return
            if not flags & SYN and flags & ACK and way == ORIGINAL:  # the client asks whether we are there still
                if self._open(trip, row, said, seq + 1):
                    trip.end(one, "SYNPROXY: the server is asked once more", REJECTED)
                else:
                    trip.end(one, "SYNPROXY: not a cookie of this node")
                return
            proxied.isn = ack
            if STAMPS in said.on:
                proxied.its = said.echo
        elif state == SR and flags & (SYN | ACK) == SYN | ACK:
            if said is None:
                trip.end(one, "SYNPROXY: damaged")
                return
            self._introduce(trip, row, said, proxied, shifts)
            trip.end(one, INTRODUCED, REJECTED)
            return
        self._move(trip, row, proxied)

    def _introduce(self, trip: Trip, row: int, said: Said, proxied: Proxied, shifts: Sequence[Shift]) -> None:
        """The server took the SYN: it gets its acknowledgement, and the client an open window."""
        p, ct = trip.pkts, self.node.conntrack
        flow, seq, ack = int(p.ct[row]), int(p.seq[row]), int(p.ack[row])
        if STAMPS in said.on:
            proxied.moved = (said.stamp - proxied.its) & M32
        said.on -= {MSS, WSCALE, SACK}
        window = int(ct.tcp.td[flow, ORIGINAL, 2]) & 0xFFFF
        self._send(trip, row, self._segment(p, row, ack, seq + 1, ACK, window, said.turned(), back=True), -1)
        _moved(shifts[int(p.reply[row])], proxied.isn - seq)
        window = int(p.win[row]) >> said.wscale
        self._send(trip, row, self._segment(p, row, seq + 1, ack, ACK, window, said, back=False), flow)

    def _move(self, trip: Trip, row: int, proxied: Proxied) -> None:
        """Timestamps of the server are moved, and those that the client gives back to it."""
        p = trip.pkts
        if not proxied.moved:
            return
        packet = bytearray(p.bytes(row))
        at = int(p.ihl[row])
        k, end = at + 20, at + int(p.doff[row])
        while k < end and packet[k]:
            if packet[k] == 1:
                k += 1
                continue
            if k + 1 == end or k + packet[k + 1] > end or packet[k + 1] < 2:
                return
            if packet[k] == 8 and packet[k + 1] == 10:
                by, place = (-proxied.moved, k + 2) if p.reply[row] else (proxied.moved, k + 6)
                old = bytes(packet[place : place + 4])
                struct.pack_into("!I", packet, place, (int.from_bytes(old, "big") + by) & M32)
                words = struct.unpack("!HH", old), struct.unpack_from("!HH", packet, place)
                (check,) = struct.unpack_from("!H", packet, at + 16)
                struct.pack_into("!H", packet, at + 16, patched(check, *words))
                p.rebuild(row, bytes(packet))
                return
            k += packet[k + 1]


def _moved(shift: Shift, by: int) -> None:
    """From here on the bytes of this direction are moved so far, whatever was before."""
    shift.before = shift.after = by
