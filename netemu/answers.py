"""What a node says to the senders of packets: ICMP errors, redirects and TCP resets, and how many of them leave.

    no way on, ttl, mtu, REJECT, no server --> an error is owed --run over--> limits --> OUTPUT, POSTROUTING, out
    a shorter way on the same link         --> a redirect, at once
    REJECT --reject-with tcp-reset         --> a reset, at once

Errors that a run causes leave when it is over, in the order of the packets that they are about: Linux counts them, and
sends none when there were too many (`Limits`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from netemu import clock
from netemu import routing as R
from netemu.conntrack import CONFIRMED
from netemu.fragments import ip_packet
from netemu.packets import (
    ANSWERS,
    DCCP,
    DONT_FRAGMENT,
    DROPPED,
    GRE,
    HOST,
    ICMP,
    ICMP_ERRORS,
    OFFSET_MASK,
    REJECTED,
    RELATED,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
    UDPLITE,
    Packets,
    Rows,
    checksum,
    noted,
    options,
    segment_ok,
)
from netemu.tcp import CL
from netemu.trip import Trip

if TYPE_CHECKING:
    from netemu.node import Node

SECOND = clock.SECOND
LONG_AGO = (1 << 31) * SECOND
LO = 0
#: ICMP types that Linux sends no error about: the errors, those that never were, and router advertisement, solicitation
NEVER_ANSWERED = (1, 2, *ICMP_ERRORS, 6, 7, 9, 10)

#: kernel -> protocols that are known to have no checksum over all their bytes (50 and 51: ESP and AH)
UNSUMMED = {"6.1": (DCCP, GRE, 50, 51, SCTP, UDPLITE), "6.18": (GRE, 50, 51, SCTP, UDPLITE)}


class Limits:
    """How many ICMP errors leave: so many a second in all, and so many a second to one address.

    Both are token buckets filled by the packets' own clock, in ticks. net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst
    limit all together (Linux takes 0 to 2 tokens at random for each, one on average; here it is one),
    net.ipv4.icmp_ratelimit each receiver; only the types in icmp_ratemask count. That there is no route has a price of
    its own, from the same account. What the node sends to itself is not limited.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.accounts: dict[int, tuple[int, int]] = {}  # address -> (ticks saved up, tick of the last change)
        self.credit = 0
        self.stamp = -(1 << 40)

    def read_sysctls(self) -> None:
        """Take over net.ipv4.icmp_*."""
        get, hz = self.node.sysctl.int, self.node.hz
        self.wait = -(-get("net.ipv4.icmp_ratelimit") * hz // 1000)
        self.mask = get("net.ipv4.icmp_ratemask")
        self.a_second, self.burst = get("net.ipv4.icmp_msgs_per_sec"), get("net.ipv4.icmp_msgs_burst")

    def _account(self, to: int, tick: int) -> tuple[int, int]:
        if len(self.accounts) > 1 << 16:
            self.accounts = {a: x for a, x in self.accounts.items() if tick - x[1] < 600 * self.node.hz}
        return self.accounts.get(to, (0, tick - 60 * self.node.hz))

    def routeless(self, to: int, now: int) -> bool:
        """May `to` be told that there is no route? One second saved up buys one; at most five are saved."""
        hz = self.node.hz
        tick = clock.jiffies(now, hz)
        saved, last = self._account(to, tick)
        saved = min(saved + tick - last, 5 * hz)
        yes = saved >= hz
        self.accounts[to] = saved - hz * yes, tick
        return yes

    def allow(self, kind: int, code: int, to: int, now: int, *, looped: bool) -> bool:
        """May this error leave? If so it is paid for.   looped: what it is about came in on `lo`"""
        if not self.mask >> kind & 1 or (kind, code) == (3, 4):
            return True
        hz = self.node.hz
        tick = clock.jiffies(now, hz)
        if not looped and self.credit <= 0:
            passed = min(tick - self.stamp, hz)
            more = self.a_second * passed // hz
            if passed < hz // 50 or not more:
                return False
            self.credit, self.stamp = min(self.credit + more, self.burst), tick
        if not self.node.routing.is_local(np.array([to], np.uint32))[0] and not self._pays(to, tick):
            return False
        if not looped:
            self.credit -= 1
        return True

    def _pays(self, to: int, tick: int) -> bool:
        saved, last = self._account(to, tick)
        if tick != last or self.node.kernel == "6.1":
            saved = min(saved + tick - last, 6 * self.wait)
        yes = saved >= self.wait
        self.accounts[to] = saved - self.wait * yes, tick
        return yes


class Answers:
    """Makes the packets that a node sends because of others, and lets them go their way."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.limits = Limits(node)
        self.redirected: dict[int, tuple[int, int]] = {}  # sender -> (redirects told, time of the last)

    def read_sysctls(self) -> None:
        """Take over what the answers depend on."""
        get = self.node.sysctl.int
        self.limits.read_sysctls()
        self.default_ttl = get("net.ipv4.ip_default_ttl")
        self.by_inbound = bool(get("net.ipv4.icmp_errors_use_inbound_ifaddr"))
        self.reflect = bool(get("net.ipv4.fwmark_reflect"))

    def icmp(
        self,
        trip: Trip,
        rows: Rows,
        kind: int,
        code: int,
        info: int = 0,
        *,
        verify: bool = False,
        routeless: bool = False,
    ) -> None:
        """Make the ICMP error about each of `rows`; KERNEL 1.5 says when none is made.

        They quote the packet as it is now, but leave when the run is over (`pay`), in the order of the packets. A
        redirect leaves at once: it is not limited, and goes on its way before the packet does.
        verify     not about packets with a wrong checksum
        routeless  there is no route: these have a limit of their own
        """
        now = []
        for row in rows.tolist():
            packet = self._complaint(trip, row, kind, code, info, verify)
            if packet is None:
                trip.silent.append(row)
            elif kind == 5:
                now.append((row, packet))
            else:
                trip.owed.append((row, packet, kind, code, routeless))
        self._cause(trip, [packet for _, packet in now], [row for row, _ in now], socket=True)

    def _complaint(self, trip: Trip, row: int, kind: int, code: int, info: int, verify: bool) -> bytes | None:
        p = trip.pkts
        if not self._may_complain(trip, row):
            return None
        quote = p.bytes(row)
        if verify and not p.local[row] and self._wrong_sum(p, row, quote, trip.node.kernel):
            return None
        src = int(p.dst[row]) if trip.route_kind[row] == R.LOCAL else 0
        dst = int(p.src[row])
        if not src:
            if self.by_inbound and p.arrived[row] >= 0:
                src = self.node.routing.inbound_address(int(p.arrived[row]), dst)
            src = src or self.node.routing.source_for(dst)
            if not src:
                return None
        back = self.node.routing.output(
            np.array([dst], np.uint32), np.array([src], np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint8)
        )
        said = self._echo(p, row, quote, src) if p.ihl[row] > 20 and not p.local[row] else b""
        room = min(576, int(back.mtu[0])) - 28 - len(said)
        body = bytearray(struct.pack("!BBHI", kind, code, 0, info) + quote[:room])
        struct.pack_into("!H", body, 2, checksum(bytes(body)))
        tos = (int(p.tos[row]) & 0x1E) | 0xC0
        return ip_packet(src, dst, ICMP, bytes(body), tos=tos, ttl=self.default_ttl, options=said)

    def _echo(self, p: Packets, row: int, quote: bytes, src: int) -> bytes:
        """An error repeats the record of the route and the timestamps of what it is about, and goes on with them."""
        header = quote[: int(p.ihl[row])]
        bad, kinds = options(header)
        if bad is not None or not kinds & {7, 68}:
            return b""
        found = {}
        k = 20
        while k < len(header) and header[k]:
            size = 1 if header[k] == 1 else header[k + 1]
            found[header[k]] = header[k : k + size]
            k += size
        held = found.get(7, b"") + found.get(68, b"")
        full = 68 in found and found[68][2] > found[68][1]
        begun = header[:20] + (found.get(7, b"") if full else held)
        begun, _ = noted(begun, src, self.node.milliseconds(int(p.time[row])), lambda address: False)
        held = begun[20:] + (found[68] if full else b"")
        return held + bytes(-len(held) % 4)

    @staticmethod
    def _wrong_sum(p: Packets, row: int, packet: bytes, kernel: str) -> bool:
        """The checksum of a packet is wrong. Linux takes the bytes behind any IP header to have one, but for the
        protocols of UNSUMMED. That of a first fragment is wrong: it is the sum of more than there is.
        """
        if p.cap[row] < p.length[row] or p.frag[row] & OFFSET_MASK:
            return False
        if p.proto[row] in (TCP, UDP, ICMP):
            return not segment_ok(packet)
        body = packet[int(p.ihl[row]) :]
        return int(p.proto[row]) not in UNSUMMED[kernel] and any(body) and checksum(body) != 0

    def pay(self, trip: Trip) -> None:
        """The run is over: send the ICMP errors that `trip` owes, as far as Linux's limits let them."""
        p = trip.pkts
        while trip.owed:
            owed, trip.owed = sorted(trip.owed, key=lambda o: o[0]), []
            made, parents = [], []
            for row, packet, kind, code, routeless in owed:
                to, now = int.from_bytes(packet[16:20], "big"), int(p.time[row])
                may = not routeless or self.limits.routeless(to, now)
                if may and self.limits.allow(kind, code, to, now, looped=int(p.arrived[row]) == LO):
                    made.append(packet)
                    parents.append(row)
                else:
                    trip.silent.append(row)
            self._cause(trip, made, parents, socket=True)
        if trip.silent:
            quiet = np.array(trip.silent)
            quiet = quiet[p.fate[quiet] == REJECTED]  # nobody was told
            p.fate[quiet] = DROPPED
            trip.silent.clear()

    def _may_complain(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        if p.pkttype[row] != HOST or trip.route_kind[row] in (R.BROADCAST, R.MULTICAST):
            return False
        if p.frag[row] & OFFSET_MASK:
            return False
        if p.proto[row] == ICMP:
            packet = p.original(row)
            ihl = int(p.ihl[row])
            if len(packet) <= ihl or packet[ihl] in NEVER_ANSWERED or packet[ihl] > 18:
                return False
        return True

    def reset(self, trip: Trip, rows: Rows) -> None:
        """The TCP reset that answers each of `rows`; a confirmed connection is closed by it."""
        p, ct = trip.pkts, self.node.conntrack
        made, parents = [], []
        for row in rows.tolist():
            flags = int(p.flags[row])
            if (
                (p.proto[row] != TCP or p.frag[row] & OFFSET_MASK or flags & RST or p.pkttype[row] != HOST)
                or trip.route_kind[row] in (R.BROADCAST, R.MULTICAST)
                or (not p.local[row] and self._wrong_sum(p, row, p.bytes(row), trip.node.kernel))
            ):
                trip.silent.append(row)
                continue
            payload = int(p.length[row]) - int(p.ihl[row]) - int(p.doff[row])
            if flags & 16:
                seq, ack, bits = int(p.ack[row]), 0, 4
            else:
                seq, ack, bits = 0, (int(p.seq[row]) + bool(flags & SYN) + bool(flags & 1) + payload) & 0xFFFFFFFF, 20
            src, dst = int(p.dst[row]), int(p.src[row])
            seg = bytearray(
                struct.pack("!HHIIBBHHH", int(p.dport[row]), int(p.sport[row]), seq, ack, 0x50, bits, 0, 0, 0)
            )
            pseudo = struct.pack("!IIBBH", src, dst, 0, TCP, len(seg))
            struct.pack_into("!H", seg, 16, checksum(pseudo + bytes(seg)))
            made.append(ip_packet(src, dst, TCP, bytes(seg), ttl=self.default_ttl, flags=DONT_FRAGMENT))
            parents.append(row)
        for row in parents:
            flow = int(p.ct[row])
            if flow >= 0 and ct.stored[flow] and ct.proto[flow] == TCP:
                ct.tcp.misc[flow, 9] = CL
                ct.deadline[flow] = int(p.time[row]) + ct.tcp.timeouts[CL]
        self._cause(trip, made, parents, socket=False)
        for flow in {int(p.ct[row]) for row in parents}:  # the reset went past all NAT, but nothing confirms a new flow
            if flow >= 0 and ct.stored[flow] and not ct.status[flow] & CONFIRMED:
                ct.kill(flow)

    def _cause(self, trip: Trip, made: list[bytes], parents: list[int], *, socket: bool) -> None:
        """Send packets that the node made because of others: they belong to the same connection, the other way."""
        if not made:
            return
        p = trip.pkts
        rows = np.array(parents)
        pkts = Packets.from_bytes(made)
        pkts.time[:] = p.time[rows]
        pkts.serial[:] = p.serial[rows] + ANSWERS
        pkts.socket[:] = socket
        if self.reflect:
            pkts.mark[:] = p.mark[rows]
        of = p.ct[rows] >= 0
        pkts.ct[of] = p.ct[rows[of]]
        pkts.state[of] = RELATED
        pkts.reply[of] = ~p.reply[rows[of]]
        child = Trip(self.node, pkts, parent=trip, parent_rows=rows)
        self.node.road.launch(child)

    def redirect(self, trip: Trip, rows: Rows) -> None:
        """Out where it came in: tell an on-link sender the shorter way, less and less often."""
        p = trip.pkts
        for row in rows.tolist():
            now = int(p.time[row])
            told, last = self.redirected.get(int(p.src[row]), (0, -LONG_AGO))
            if now > last + SECOND * 1024 // 50:
                told = 0
            if told >= 9:
                self.redirected[int(p.src[row])] = (told, now)
                continue
            if told == 0 or now > last + (SECOND // 50 << told):
                self.redirected[int(p.src[row])] = (told + 1, now)
                trip.cause_icmp(np.array([row]), 5, 1, int(trip.nexthop[row]))
