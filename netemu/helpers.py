"""Connection helpers: what a protocol says, on one connection, of connections to come.

    a packet leaves --> Helper.look --> Expectation: a connection like this belongs to that one
                            |                 ^
                            |                 '-- a new connection that fits is RELATED, and goes where its master goes
                            '--> the text, where NAT made it untrue: another address and port. Where that is longer or
                                 shorter, the numbers of all later segments are moved by the difference (`Shift`)

A helper looks into a connection when a rule said so (`-j CT --helper ftp`). It stands where packets leave or are
delivered, just before their connection is confirmed. Connections with a helper go through one packet at a time; the
others do not notice.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from netemu.clock import SECOND
from netemu.conntrack import CONFIRMED, DST_NAT, DYING, EXPECTED, SEQ_ADJUST, SRC_NAT, Tuple, dotted
from netemu.errors import Unsupported
from netemu.packets import ACK, ESTABLISHED, ICMP, TCP, UDP, Mask, Packets, Rows, checksum, patched
from netemu.paths import Step
from netemu.tcp import after, before

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

M32 = 0xFFFFFFFF
ORIGINAL, REPLY = 0, 1
ANY = -1  # a part of an expected tuple that may be anything
_MOVED = Step(None, "conntrack: numbers moved")

#: helpers that Linux has and netemu does not look with: name -> protocols
UNMODELLED: dict[str, tuple[int, ...]] = {
    "amanda": (UDP,),
    "netbios-ns": (UDP,),
    "snmp": (UDP,),
    "sip": (TCP,),
    "pptp": (TCP,),
    "RAS": (UDP,),
    "Q.931": (TCP,),
}
HELPERS: dict[str, Helper] = {}
NAMES: list[str] = [""]  # by the number that stands in conntrack's columns; 0 is no helper


# ---- what is expected ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Expectation:
    """A connection to come.

    shape      what its first packet will look like, as a tuple; ANY where that is open (source address, source port)
    master     the connection that told of it      zone  the master's
    helper     who expects it                      kind  class of expectation: each has its own limit and time
    deadline   until when, ns                      permanent  it may come any number of times
    gives      helper that looks into the new connection too ("" none)
    direction  in which direction of the master's the new connection goes; None: NAT leaves it alone
    saved      address and port that were really meant, before NAT (address ANY: the master's)
    inactive   it is not confirmed yet, and nothing fulfils it
    paired     its source may be what another expectation of the master means: then it is rewritten as that one is
    """

    shape: Tuple
    master: int
    zone: int
    helper: str
    kind: int = 0
    deadline: int = 0
    permanent: bool = False
    gives: str = ""
    direction: int | None = None
    saved: tuple[int, int] = (ANY, 0)
    inactive: bool = False
    paired: bool = False

    @property
    def mask(self) -> Tuple:
        """Which bits of the tuple count."""
        src, _, sport, _, _ = self.shape
        return 0 if src == ANY else M32, M32, 0 if sport == ANY else 0xFFFF, 0xFFFF, 0xFF

    def fits(self, t: Tuple) -> bool:
        """May this tuple be of the connection?"""
        return all(mine in (ANY, theirs) for mine, theirs in zip(self.shape, t, strict=True))

    def clashes(self, other: Expectation) -> bool:
        """Some connection would fit both."""
        pairs = zip(self.shape, other.shape, strict=True)
        return self.zone == other.zone and all(a == b or ANY in (a, b) for a, b in pairs)

    def text(self, now: int, original: Tuple) -> str:
        """As `conntrack -L expect` prints it.   original: the master's tuple"""
        src, dst, sport, dport, proto = (max(part, 0) for part in self.shape)
        masks = self.mask
        words = [f"{max(self.deadline - now, 0) // SECOND} proto={proto} src={dotted(src)} dst={dotted(dst)}"]
        words.append(f"sport={sport} dport={dport} mask-src={dotted(masks[0])} mask-dst={dotted(masks[1])}")
        words.append(f"sport={masks[2]} dport={masks[3]}")
        words.append(f"master-src={dotted(original[0])} master-dst={dotted(original[1])}")
        words.append(f"sport={original[2]} dport={original[3]}")
        flags = [name for name, on in (("PERMANENT", self.permanent), ("INACTIVE", self.inactive)) if on]
        if flags:
            words.append(",".join(flags))
        if self.zone:
            words.append(f"zone={self.zone & 0xFFFF}")
        return " ".join([*words, f"class={self.kind} helper={self.helper}"])


@dataclass
class Shift:
    """How far the bytes of one direction were moved: before `position`, and after it."""

    position: int = 0
    before: int = 0
    after: int = 0

    def of(self, seq: int) -> int:
        """How far the byte with this number, as its sender counts, is moved."""
        return self.after if after(seq, self.position) else self.before

    def back(self, seq: int) -> int:
        """The same for a number as the receiver counts."""
        return self.of((seq - self.before) & M32)

    def longer(self, seq: int, by: int) -> None:
        """The text of the segment that begins at `seq` has grown by so much. Told again, nothing changes."""
        if self.before == self.after or before(self.position, seq):
            self.position, self.before, self.after = seq, self.after, self.after + by


@dataclass
class Attended:
    """What is remembered of a connection that a helper looks into.

    notes   the helper's own, for each direction       shifts  for each direction
    said    the helper's own: numbers of what was asked last
    """

    helper: Helper | None  # None: only its numbers are moved (IPVS changed a text)
    notes: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    learning: list[bool] = field(default_factory=lambda: [False, False])
    shifts: tuple[Shift, Shift] = field(default_factory=lambda: (Shift(), Shift()))
    said: dict[bytes, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The helper's, "" where there is none."""
        return self.helper.name if self.helper is not None else ""


# ---- looking ---------------------------------------------------------------------------------------------------------


class Look:
    """One packet, as a helper sees it: its text, its connection, and what may be done.

    data   the bytes behind the transport header      way  0 original direction, 1 reply
    """

    def __init__(self, helpers: Helpers, trip: Trip, row: int, flow: int, attended: Attended) -> None:
        self.helpers, self.trip, self.row, self.flow, self.attended = helpers, trip, row, flow, attended
        self.node = helpers.node
        p = trip.pkts
        self.way = int(p.reply[row])
        self.seq = int(p.seq[row])
        self.now = int(p.time[row])
        self.established = p.state[row] == ESTABLISHED
        self.start = int(p.ihl[row]) + (int(p.doff[row]) if p.proto[row] == TCP else 8)
        self.data = p.bytes(row)[self.start :]

    @property
    def tuples(self) -> tuple[Tuple, Tuple]:
        """The connection's original and reply tuples."""
        ct = self.node.conntrack
        return ct.original(self.flow), ct.reply(self.flow)

    @property
    def translated(self) -> bool:
        """NAT rewrites this connection."""
        return bool(self.node.conntrack.status[self.flow] & (SRC_NAT | DST_NAT))

    def expectation(self, src: int, dst: int, dport: int, proto: int, kind: int = 0) -> Expectation:
        """One that is not registered yet; any source port."""
        zone = int(self.node.conntrack.zone[self.flow])
        return Expectation((src, dst, ANY, dport, proto), self.flow, zone, self.attended.name, kind)

    def expect(self, e: Expectation) -> bool:
        """Register it; False when there is no room for it or another one stands in its way."""
        return self.helpers.expect(e, self) == ""

    def expect_at_free_port(self, e: Expectation) -> int:
        """Register it at its own port or, where another one has that, at one drawn above; the port, 0: none."""
        src, dst, sport, first, proto = e.shape
        port, tries = first, min(0xFFFF - first, 128)
        while True:
            e.shape = src, dst, sport, port, proto
            why = self.helpers.expect(e, self)
            if not why:
                return port
            tries -= 1
            if why != "busy" or tries < 0:
                return 0
            if self.node.kernel == "6.1":
                port += 1
            else:
                draw = int(self.trip.random(np.array([self.row]), 0x4558 + tries)[0])
                port = first + draw % (0xFFFF - first)

    def mangle(self, at: int, size: int, text: bytes) -> None:
        """Put `text` in the place of `size` bytes of data; lengths, checksums and later numbers follow."""
        p, row, was = self.trip.pkts, self.row, self.data[at : at + size]
        packet = bytearray(p.bytes(row))
        place = self.start + at
        packet[place : place + size] = text
        ihl, udp = int(p.ihl[row]), p.proto[row] == UDP
        summed = not udp or packet[ihl + 6 : ihl + 8] != b"\0\0"
        if udp:
            struct.pack_into("!H", packet, ihl + 4, len(packet) - ihl)
        p.rebuild(row, with_sums(packet, ihl, summed))
        self.data = self.data[:at] + text + self.data[at + size :]
        if len(text) != size and not udp:
            self.node.conntrack.status[self.flow] |= SEQ_ADJUST
            self.attended.shifts[self.way].longer(self.seq, len(text) - size)
        if was != text and self.trip.remember:
            texts = [self.trip.paths.text_id(part.decode("latin-1")) for part in (was, text)]
            old, new = (np.array([number]) for number in texts)
            step = Step(None, f"conntrack: {self.attended.name} text rewritten")
            self.trip.changes.append((step, "text", np.array([row]), old, new))


def with_sums(packet: bytearray, ihl: int, summed: bool) -> bytes:
    """The packet with its length and checksums made right; summed: the transport one too."""
    struct.pack_into("!H", packet, 2, len(packet))
    packet[10:12] = b"\0\0"
    struct.pack_into("!H", packet, 10, checksum(bytes(packet[:ihl])))
    if summed:
        place = ihl + (16 if packet[9] == TCP else 6)
        packet[place : place + 2] = b"\0\0"
        pseudo = bytes(packet[12:20]) + struct.pack("!BBH", 0, packet[9], len(packet) - ihl)
        total = checksum(pseudo + bytes(packet[ihl:]))
        struct.pack_into("!H", packet, place, total or (0xFFFF if packet[9] == UDP else 0))
    return bytes(packet)


def _move_sack(packet: bytearray, at: int, doff: int, shift: Shift) -> None:
    """Move the edges of SACK blocks in the TCP header at `at`, as acknowledgements are."""
    k, end = at + 20, at + doff
    while k < end and packet[k]:
        if packet[k] == 1:
            k += 1
            continue
        size = packet[k + 1] if k + 1 < end else 0
        if size < 2 or k + size > end:
            return
        if packet[k] == 5 and size % 8 == 2:
            for place in range(k + 2, k + size, 4):
                (edge,) = struct.unpack_from("!I", packet, place)
                struct.pack_into("!I", packet, place, (edge - shift.back(edge)) & M32)
        k += size


class Helper:
    """One helper. `look` says of one packet whether it may go on.

    protocols  of the connections that it can look into
    limits     for each class of expectation: how many of one connection (0: any number), and for how many seconds
    """

    name: ClassVar[str]
    protocols: ClassVar[tuple[int, ...]] = (TCP,)
    limits: ClassVar[tuple[tuple[int, int], ...]] = ((1, 300),)

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        HELPERS[name] = cls()
        NAMES.append(name)

    def look(self, at: Look) -> bool:
        """False: the packet is dropped."""
        raise NotImplementedError


class Ftp(Helper, name="ftp"):
    """FTP: PORT and EPRT of the client, 227 and 229 of the server, at the beginning of a line.

    That a segment begins a line is known when the one before it ended one, so the first of each direction is not read.
    """

    CLIENT: ClassVar = (b"PORT", b"EPRT")
    SERVER: ClassVar = (b"227 ", b"229 ")
    NUMBERS: ClassVar = re.compile(rb"(\d*),(\d*),(\d*),(\d*),(\d*),(\d*)")

    def look(self, at: Look) -> bool:
        if not at.established or not at.data:
            return True
        lines, learning = at.attended.notes[at.way], at.attended.learning
        ends_line = at.data.endswith(b"\n")
        follows = (at.seq + len(at.data)) & M32
        begins_line = at.seq in lines
        if not begins_line and learning[at.way]:
            begins_line, learning[at.way] = True, False
        go = True
        if begins_line:
            found = self._search(at.data, at.way)
            if found is not None:
                if not found[0]:
                    return False
                go = self._expect(at, *found)
        if ends_line and follows not in lines:
            if len(lines) < 2:
                lines.append(follows)
            else:
                lines[0 if before(lines[0], lines[1]) else 1] = follows
        return go

    def _search(self, data: bytes, way: int) -> tuple[bytes, int, int, int, int] | None:
        """(command, where its argument stands, its length, address or ANY, port), or None. No command: half of one."""
        half = b"", 0, 0, 0, 0
        for command in self.SERVER if way else self.CLIENT:
            size = len(command)
            if len(data) <= size:
                if command.upper().startswith(data.upper()):
                    return half
                continue
            if data[:size].upper() != command:
                continue
            argument = self._argument(command, data)
            return half if argument is None else (command, *argument)
        return None

    def _argument(self, command: bytes, data: bytes) -> tuple[int, int, int, int] | None:
        size = len(command)
        if command == b"227 ":
            digit = re.search(rb"\d", data[size:])
            start = size + digit.start() if digit else -1
        else:
            start = data.find(b"(" if command == b"229 " else b" ", size, len(data) - 1) + 1 or -1
        if start < 0:
            return None
        if command in (b"PORT", b"227 "):
            m = self.NUMBERS.match(data, start)
            end = m.end() if m else len(data)
            if not m or end >= len(data) or (data[end : end + 1] in b"," if command != b"PORT" else data[end] != 13):
                return None
            n = [int(part or b"0") & M32 for part in m.groups()]
            address = (n[0] << 24 | n[1] << 16 | n[2] << 8 | n[3]) & M32
            return start, end - start, address, (n[4] << 8 | n[5]) & 0xFFFF
        mark = data[start : start + 1]
        if not mark or mark.isdigit() or not 33 <= mark[0] <= 126:
            return None
        d = re.escape(mark)
        pattern = d + d + d if command == b"229 " else d + b"1" + d + rb"(\d*)\.(\d*)\.(\d*)\.(\d*)" + d
        m = re.compile(pattern + rb"(\d+)" + d).match(data, start)
        port = int(m.groups()[-1]) & 0xFFFF if m else 0
        if m is None or not port:
            return None
        n = [int(part or b"0") & M32 for part in m.groups()[:-1]]
        address = (n[0] << 24 | n[1] << 16 | n[2] << 8 | n[3]) & M32 if n else ANY
        return start, m.end() - start, address, port

    def _expect(self, at: Look, command: bytes, start: int, size: int, address: int, port: int) -> bool:
        tuples = at.tuples
        mine, theirs = tuples[at.way], tuples[1 - at.way]
        if address not in (ANY, mine[0]):
            return True  # another host's address: whoever means that is on its own
        e = at.expectation(theirs[0], theirs[1], port, TCP)
        if not at.translated:
            return at.expect(e)
        e.saved, e.direction = (ANY, port), 1 - at.way
        port = at.expect_at_free_port(e)
        if not port:
            return False
        new = theirs[1]
        if command in (b"PORT", b"227 "):
            text = ",".join(map(str, (*new.to_bytes(4, "big"), port >> 8, port & 255)))
        else:
            text = f"|||{port}|" if command == b"229 " else f"|1|{dotted(new)}|{port}|"
        at.mangle(start, size, text.encode())
        return True


class Tftp(Helper, name="tftp"):
    """TFTP: the answer to a request to read or write comes from a port of its own."""

    protocols = (UDP,)

    def look(self, at: Look) -> bool:
        if at.data[:2] not in (b"\0\1", b"\0\2"):
            return True
        original, reply = at.tuples
        e = at.expectation(reply[0], reply[1], reply[3], UDP)
        if at.translated:
            e.saved, e.direction = (ANY, original[2]), REPLY
        return at.expect(e)


class Irc(Helper, name="irc"):
    """IRC: `DCC SEND`, `CHAT` and the like of a client tell where it listens."""

    limits = ((8, 300),)
    WORDS: ClassVar = (b"SEND ", b"CHAT ", b"MOVE ", b"TSEND ", b"SCHAT ")
    OFFER: ClassVar = re.compile(rb"(\d*) *(\d*)")

    def look(self, at: Look) -> bool:
        if at.way == REPLY or not at.established or not at.data:
            return True
        data, k = at.data, 0
        end = len(data)
        while k < end - 10 and data[k] in b" \r\n":
            k += 1
        if k < end - 10:
            if data[k : k + 8].upper() != b"PRIVMSG ":
                return True
            k += 8
        while k < end - 26:
            k = data.find(b" :", k, end - 25) + 2
            if k < 2 or data[k : k + 5] != b"\1DCC ":
                return True
            k += 5
            for word in self.WORDS:
                if not data.startswith(word, k):
                    continue
                k += len(word)
                offer = self._offer(data, k)
                if offer is not None:
                    start, size, address, port = offer
                    if port and address in (at.tuples[ORIGINAL][0], at.tuples[REPLY][1]):
                        return self._expect(at, start, size, port)
        return True

    def _offer(self, data: bytes, k: int) -> tuple[int, int, int, int] | None:
        """(where address and port stand, their length, address, port) of the offer whose first word begins at `k`."""
        start = data.find(b" ", k) + 1
        if not start or (start - 1 > k and start - 1 > len(data) - 12) or b"\n" not in data[start:]:
            return None
        m = self.OFFER.match(data, start)
        assert m is not None
        return start, m.end() - start, int(m[1] or b"0") & M32, int(m[2] or b"0") & 0xFFFF

    def _expect(self, at: Look, start: int, size: int, port: int) -> bool:
        here = at.tuples[REPLY][1]
        e = at.expectation(ANY, here, port, TCP)
        if not at.translated:
            return at.expect(e)
        e.saved, e.direction = (ANY, port), REPLY
        port = at.expect_at_free_port(e)
        if port:
            at.mangle(start, size, f"{here} {port}".encode())
        return bool(port)


class Sane(Helper, name="sane"):
    """SANE: a scanner's answer to "start" says on which port the picture waits. NAT does not rewrite it."""

    START: ClassVar = b"\0\0\0\7"

    def look(self, at: Look) -> bool:
        if not at.established or not at.data:
            return True
        said = at.attended.said
        if at.way == ORIGINAL:
            if len(at.data) == 8:
                said[self.START] = int(at.data[:4] == self.START)
            return True
        if not said.pop(self.START, 0) or len(at.data) < 8 or at.data[:6] != bytes(6):
            return True
        original = at.tuples[ORIGINAL]
        return at.expect(at.expectation(original[0], original[1], int.from_bytes(at.data[6:8], "big"), TCP))


class Sip(Helper, name="sip"):
    """SIP over UDP: who registers may be called, and what a session description offers may be sent there.

    Only from the other end of the signalling, as Linux has it by default (sip_direct_media, sip_direct_signalling).
    With NAT: addresses of the connection itself in the request line, Via, Contact, From and To; those of media in the
    description, its ports, and the length that it is said to have.

    Classes of expectations: 0 signalling, 1 audio, 2 video, 3 image.
    """

    protocols = (UDP,)
    limits = ((1, 180), (4, 180), (4, 180), (2, 180))
    TIMEOUT: ClassVar = 3600 * SECOND
    MEDIA: ClassVar = {b"audio ": 1, b"video ": 2, b"image ": 3}
    ADDRESS: ClassVar = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])")
    BAD: ClassVar = -1  # the port of a URI that names none to which SIP can be sent
    METHODS: ClassVar = (b"INVITE", b"UPDATE", b"ACK", b"PRACK", b"BYE", b"REGISTER")

    def look(self, at: Look) -> bool:
        if not at.data:
            return True
        at.node.conntrack.deadline[at.flow] = at.now + self.TIMEOUT
        if len(at.data) < 11:
            return True
        response = at.data[:8].upper() == b"SIP/2.0 "
        if not (self._response(at) if response else self._request(at)):
            return False
        return not at.translated or self._translate(at, response)

    # ---- words

    @staticmethod
    def _header(data: bytes, name: bytes, short: bytes = b"", start: int = 0) -> int:
        """Where the value of a header begins, -1: there is none."""
        names = name + (b"|" + short + rb"(?![A-Za-z])" if short else b"")
        m = re.compile(rb"[\r\n](?:" + names + rb")[ \t]*:[ \t]*", re.IGNORECASE).search(data, start)
        return m.end() if m else -1

    def _number(self, data: bytes, name: bytes, short: bytes = b"") -> tuple[int, int, int] | None:
        """(value, where it stands, its length) of a header that is a number."""
        at = self._header(data, name, short)
        m = re.compile(rb"\d+").match(data, at) if at >= 0 else None
        return (int(m[0]), at, len(m[0])) if m else None

    def _uri(self, data: bytes, start: int, before: bytes) -> tuple[int, int, int, int] | None:
        """(where address and port stand, their length, address, port) of the URI behind `before` in this line."""
        m = re.compile(rb"[^\r\n]*?" + re.escape(before), re.IGNORECASE).match(data, start)
        if m is None:
            return None
        user = re.compile(rb"[^@\r\n]*@").match(data, m.end()) if before == b"sip:" else None
        return self._place(data, user.end() if user else m.end())

    def _place(self, data: bytes, at: int) -> tuple[int, int, int, int] | None:
        m = self.ADDRESS.match(data, at)
        if m is None or any(int(part) > 255 for part in m[0].split(b".")):
            return None
        port, end = 5060, m.end()
        given = re.compile(rb":(\d*)").match(data, end)
        if given:
            port, end = int(given[1] or b"0"), given.end()
            if not 1024 <= port <= 0xFFFF:
                port = self.BAD
        return at, end - at, int.from_bytes(bytes(map(int, m[0].split(b"."))), "big"), port

    def _contacts(self, data: bytes, start: int) -> tuple[int, int, int, int] | None:
        """The first Contact URI that begins at `start` or behind it."""
        at = self._header(data, b"Contact", b"m")
        while at >= 0:
            line = re.compile(rb"[^\r\n]*").match(data, at)
            assert line is not None
            for part in re.compile(rb"[^,]+").finditer(data, at, line.end()):
                found = self._uri(data, part.start(), b"sip:")
                if found is not None and found[0] < part.end() and found[0] >= start:
                    return found
            at = self._header(data, b"Contact", b"m", line.end())
        return None

    # ---- messages

    def _sequence(self, data: bytes) -> tuple[int, int] | None:
        """(number, where the method stands) of CSeq."""
        found = self._number(data, b"CSeq")
        return (found[0], found[1] + found[2] + 1) if found else None

    def _request(self, at: Look) -> bool:
        line = self._header(at.data, b"Via", b"v")
        via = self._uri(at.data, line, b"UDP ") if line >= 0 else None
        mine = at.tuples[at.way]
        if via is not None and via[2] == mine[0] and via[3] != mine[2]:
            at.node.caveat("SIP: a telephone waits for answers on another port than it sends from (not turned there)")
        method = next((m for m in self.METHODS if re.match(m + rb" [A-Za-z]", at.data, re.IGNORECASE)), None)
        if method is None:
            return True
        sequence = self._sequence(at.data)
        if sequence is None:
            return False
        said = at.attended.said
        if method == b"REGISTER":
            return self._register(at, sequence[0])
        if method in (b"INVITE", b"BYE"):
            self._flush(at, media=True)
        if method != b"BYE" and not self._describe(at):
            return False
        if method not in (b"BYE", b"ACK"):
            said[method] = sequence[0]
        return True

    def _response(self, at: Look) -> bool:
        m = re.compile(rb"\d+").match(at.data, 8)
        sequence = self._sequence(at.data)
        if m is None or not int(m[0]) or sequence is None:
            return False
        number, place = sequence
        code = int(m[0])
        method = next((m for m in self.METHODS if at.data[place : place + len(m)].upper() == m), b"")
        if method == b"REGISTER":
            return self._registered(at, number, code)
        if method in (b"INVITE", b"UPDATE", b"PRACK"):
            if 100 <= code <= 299:
                return self._describe(at)
            if at.attended.said.get(method) == number:
                self._flush(at, media=True)
        return True

    def _flush(self, at: Look, *, media: bool) -> None:
        keep = at.helpers.expected
        at.helpers.expected = [e for e in keep if e.master != at.flow or (e.kind != 0) != media]

    # ---- registrations

    def _register(self, at: Look, number: int) -> bool:
        if at.node.conntrack.status[at.flow] & EXPECTED:
            return True
        expires = (self._number(at.data, b"Expires") or (0,))[0]
        found = self._contacts(at.data, 0)
        if found is None:
            return True
        start, size, address, port = found
        if port == self.BAD:
            return False
        tuples = at.tuples
        mine, theirs = tuples[at.way], tuples[1 - at.way]
        if address != mine[0] or self._over_tcp(at.data, start + size):
            return True
        expires = self._parameter(at.data, start + size, b"expires", expires)
        if expires:
            e = at.expectation(theirs[0], address, port, UDP)
            e.permanent = e.inactive = True
            e.gives = self.name
            if at.translated:
                e.saved, e.direction = (address, port), 1 - at.way
                new = address if mine[0] == theirs[1] else theirs[1]
                wanted = theirs[3] if port == mine[2] else port
                e.shape = e.shape[0], new, ANY, wanted, UDP
                wanted = at.expect_at_free_port(e)
                if not wanted:
                    return False
                if (new, wanted) != e.saved:
                    at.mangle(start, size, f"{dotted(new)}:{wanted}".encode())
            elif not at.expect(e):
                return False
        at.attended.said[b"REGISTER"] = number
        return True

    def _over_tcp(self, data: bytes, at: int) -> bool:
        m = re.compile(rb"[^\r\n,]*?transport=(\w+)", re.IGNORECASE).match(data, at)
        return m is not None and m[1].upper() != b"UDP"

    def _parameter(self, data: bytes, at: int, name: bytes, default: int) -> int:
        m = re.compile(rb"[^\r\n,]*?;" + name + rb"=(\d+)", re.IGNORECASE).match(data, at)
        return int(m[1]) if m else default

    def _registered(self, at: Look, number: int, code: int) -> bool:
        if at.attended.said.get(b"REGISTER") != number or 100 <= code <= 199:
            return True
        expires = (self._number(at.data, b"Expires") or (0,))[0]
        place = 0
        while 200 <= code <= 299:
            found = self._contacts(at.data, place)
            if found is None:
                break
            start, size, address, port = found
            place = start + size
            if port == self.BAD:
                return False
            if address != at.tuples[at.way][1] or self._over_tcp(at.data, place):
                continue
            lasts = self._parameter(at.data, place, b"expires", expires)
            if not lasts:
                break
            for e in at.helpers.live(at.now):
                if e.master == at.flow and e.kind == 0 and (e.shape[1], e.shape[3], e.shape[4]) == (address, port, UDP):
                    e.inactive, e.deadline = False, at.now + lasts * SECOND
                    return True
        self._flush(at, media=False)
        return True

    # ---- session descriptions

    @staticmethod
    def _line(data: bytes, start: int, kind: bytes, until: bytes = b"") -> int:
        """Where the line `kind` of a description goes on, the first behind `start` and before a line `until`; -1."""
        m = re.compile(rb"(?:\r\n|\r|\n)(" + kind + (b"|" + until if until else b"") + b")").search(data, start)
        return m.end() if m and m[1] == kind else -1

    def _connected(self, data: bytes, start: int, kind: bytes) -> tuple[int, int, int] | None:
        """(where it stands, its length, address) in a line c= or o= before the next m=."""
        at = self._line(data, start, kind, b"m=")
        m = re.compile(rb"[^\r\n]*?IN IP4 ").match(data, at) if at >= 0 else None
        found = self.ADDRESS.match(data, m.end()) if m else None
        if found is None:
            return None
        return found.start(), len(found[0]), int.from_bytes(bytes(int(n) & 255 for n in found[0].split(b".")), "big")

    def _describe(self, at: Look) -> bool:
        begins = self._line(at.data, 0, b"v=")
        if begins < 0:
            return True
        session = self._connected(at.data, begins, b"c=")
        place, done, new = begins, 0, None
        while done < 3:
            media = self._line(at.data, place, b"m=")
            if media < 0:
                break
            place = media
            kind = next((k for k in self.MEDIA if at.data[media : media + 6].lower() == k), None)
            if kind is None:
                continue
            place = media + 6
            digits = re.compile(rb"\d*").match(at.data, place)
            assert digits is not None
            port = int(digits[0] or b"0")
            if not port:
                continue
            if not 1024 <= port <= 0xFFFF:
                return False
            own = self._connected(at.data, place, b"c=")
            used = own or session
            if used is None:
                return False
            new = self._offer(at, used[2], port, self.MEDIA[kind], place, len(digits[0]))
            if new is None:
                return False
            if own is not None and at.translated and not self._rewrite(at, place, b"c=", new):
                return False
            done += 1
        if at.translated and new is not None:
            for kind in (b"o=", b"c="):
                self._put(at, begins, kind, new)
            return self._measure(at)
        return True

    def _offer(self, at: Look, address: int, port: int, kind: int, place: int, size: int) -> int | None:
        """Expect what is sent to an address and port of a description; the address that it shall name, None: drop."""
        tuples = at.tuples
        mine, theirs = tuples[at.way], tuples[1 - at.way]
        if address != mine[0]:
            return address
        direct = skip = False
        while True:
            t = (theirs[0], address, 0, port, UDP)
            e = next((e for e in at.helpers.live(at.now) if e.fits(t)), None)
            if e is None or e.master == at.flow or e.helper != self.name or e.kind != kind:
                break
            moved = e.direction is not None and e.saved != (e.shape[1], e.shape[3])
            if direct or not moved or not at.translated:
                skip = True
                break
            (address, port), direct = e.saved, True
        port &= ~1
        if direct:
            at.mangle(place, size, str(port).encode())
        if skip:
            return address
        pair = [at.expectation(theirs[0], address, port + k, UDP, kind) for k in (0, 1)]
        if not at.translated or direct:
            first = at.helpers.expect(pair[0], at, anybody=True)
            second = at.helpers.expect(pair[1], at, anybody=True) if first in ("", "already") else first
            if second not in ("", "already") and not first:
                at.helpers.expected.remove(pair[0])
            return address if second in ("", "already") else None
        new = address if mine[0] == theirs[1] else theirs[1]
        for e in pair:
            e.saved, e.direction, e.paired = (address, e.shape[3]), 1 - at.way, True
        for chosen in range(port, 0x10000, 2):
            for k, e in enumerate(pair):
                e.shape = e.shape[0], new, ANY, chosen + k, UDP
            first = at.helpers.expect(pair[0], at, anybody=True)
            if first == "busy":
                continue
            if first:
                return None
            second = at.helpers.expect(pair[1], at, anybody=True)
            if not second:
                if chosen != port:
                    at.mangle(place, size, str(chosen).encode())
                    if not self._measure(at):
                        return None
                return new
            at.helpers.expected.remove(pair[0])
            if second != "busy":
                return None
        return None

    def _put(self, at: Look, start: int, kind: bytes, address: int) -> bool:
        found = self._connected(at.data, start, kind)
        if found is None:
            return False
        at.mangle(found[0], found[1], dotted(address).encode())
        return True

    def _rewrite(self, at: Look, start: int, kind: bytes, address: int) -> bool:
        return self._put(at, start, kind, address) and self._measure(at)

    def _measure(self, at: Look) -> bool:
        """Say the length that the description has now."""
        begins, said = self._line(at.data, 0, b"v="), self._number(at.data, b"Content-Length", b"l")
        if begins < 0 or said is None:
            return False
        at.mangle(said[1], said[2], str(len(at.data) - begins + 2).encode())
        return True

    # ---- headers, with NAT

    def _map(self, at: Look, found: tuple[int, int, int, int] | None) -> int:
        """Rewrite an address and port if they are an end of this connection; by how much the text grew."""
        if found is None:
            return 0
        start, size, *end = found
        tuples = at.tuples
        mine, theirs = tuples[at.way], tuples[1 - at.way]
        if end == [mine[0], mine[2]]:
            new = [theirs[1], theirs[3]]
        elif end == [mine[1], mine[3]]:
            new = [theirs[0], theirs[2]]
        else:
            return 0
        if new == end:
            return 0
        text = f"{dotted(new[0])}:{new[1]}".encode()
        at.mangle(start, size, text)
        return len(text) - size

    def _translate(self, at: Look, response: bool) -> bool:
        if not response:
            method = re.compile(rb"[A-Za-z]+ ").match(at.data)
            self._map(at, self._uri(at.data, method.end(), b"sip:") if method else None)
        tuples = at.tuples
        mine, theirs = tuples[at.way], tuples[1 - at.way]
        at_via = self._header(at.data, b"Via", b"v")
        via = self._uri(at.data, at_via, b"UDP ") if at_via >= 0 else None
        if via is not None and list(via[2:]) == ([mine[1], mine[3]] if response else [mine[0], mine[2]]):
            end = via[0] + via[1] + self._map(at, via)
            self._via(at, end, b"maddr", mine[0], theirs[1])
            self._via(at, end, b"received", mine[1], theirs[0])
            m = re.compile(rb"[^\r\n,]*?;rport=(\d+)", re.IGNORECASE).match(at.data, end)
            if m and int(m[1]) == mine[3] != theirs[2]:
                at.mangle(m.start(1), len(m[1]), str(theirs[2]).encode())
        place = 0
        while (found := self._contacts(at.data, place)) is not None:
            place = found[0] + found[1] + self._map(at, found)
        for name, short in (b"From", b"f"), (b"To", b"t"):
            line = self._header(at.data, name, short)
            self._map(at, self._uri(at.data, line, b"sip:") if line >= 0 else None)
        return True

    def _via(self, at: Look, end: int, name: bytes, was: int, new: int) -> None:
        m = re.compile(rb"[^\r\n,]*?;" + name + rb"=([\d.]+)", re.IGNORECASE).match(at.data, end)
        if m and m[1].decode() == dotted(was) and was != new:
            at.mangle(m.start(1), len(m[1]), dotted(new).encode())


def protocols_of(name: str) -> tuple[int, ...]:
    """The protocols that the helper of this name looks into; none where Linux has no such helper."""
    return (HELPERS[name].protocols if name in HELPERS else ()) + UNMODELLED.get(name, ())


# ---- all of them -----------------------------------------------------------------------------------------------------


class Helpers:
    """The connections that helpers look into, and what they expect.

    attended   connection -> what is remembered of it
    expected   newest first
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.attended: dict[int, Attended] = {}
        self.expected: list[Expectation] = []

    def attach(self, flow: int, name: str, *, learning: bool = False) -> None:
        """A helper looks into this connection from now on.   learning: it is under way already

        Raises Unsupported for a helper that is not modelled
        """
        if name not in HELPERS:
            raise Unsupported(f"helper {name}", hint="netemu knows " + ", ".join(HELPERS))
        self.node.conntrack.helper[flow] = NAMES.index(name)
        self.attended[flow] = Attended(HELPERS[name], learning=[learning, learning])

    def forget(self, flow: int) -> None:
        """The connection is gone, and what it told of is not expected any more."""
        if self.attended.pop(flow, None) is not None:
            self.expected = [e for e in self.expected if e.master != flow]

    @staticmethod
    def name(number: int) -> str:
        """Of the helper with this number in conntrack's columns; "" for 0."""
        return NAMES[number]

    def shifts(self, flow: int) -> tuple[Shift, Shift] | None:
        """How far the numbers of a connection were moved."""
        attended = self.attended.get(flow)
        return attended.shifts if attended else None

    # ---- packets that leave

    def attend(self, trip: Trip, rows: Rows) -> Rows:
        """Look into the packets of attended connections before those are confirmed; the rows that go on."""
        p, ct = trip.pkts, self.node.conntrack
        flows = p.ct[rows]
        mine = (flows >= 0) & (p.proto[rows] != ICMP)
        mine &= (ct.helper[flows] != 0) | ((ct.status[flows] & SEQ_ADJUST) != 0)
        mine &= (ct.status[flows] & DYING) == 0  # a reset ended it unanswered: no helper would read that
        died = False
        for row in rows[mine].tolist():
            died |= not self._look(trip, row)
        return trip.travelling(rows) if died else rows

    def _look(self, trip: Trip, row: int) -> bool:
        p, ct = trip.pkts, self.node.conntrack
        flow = int(p.ct[row])
        attended = self.attended[flow]
        looped = trip.hook == "INPUT" and p.link_in[row] == 0
        moved = ct.status[flow] & SEQ_ADJUST and not looped
        helper = attended.helper
        if helper is None:
            pass
        elif p.cap[row] < p.length[row] and row not in p.rebuilt:
            trip.node.caveat(f"helper {helper.name} cannot read packets that were not captured whole")
        elif not helper.look(Look(self, trip, row, flow, attended)):
            trip.end(np.array([row]), f"conntrack: helper {helper.name} drops it")
            return False
        if moved and p.proto[row] == TCP:
            self._move(trip, row, attended.shifts)
        return True

    def _move(self, trip: Trip, row: int, shifts: tuple[Shift, Shift]) -> None:
        """Move the numbers of a segment by what was added to the texts before it, or taken away."""
        p = trip.pkts
        way = int(p.reply[row])
        mine, theirs = shifts[way], shifts[1 - way]
        seq, ack = int(p.seq[row]), int(p.ack[row])
        by = mine.of(seq)
        back = theirs.back(ack) if p.flags[row] & ACK else 0
        packet = bytearray(p.bytes(row))
        at = int(p.ihl[row])
        old = struct.unpack_from(f"!{int(p.doff[row]) // 2}H", packet, at)
        struct.pack_into("!II", packet, at + 4, (seq + by) & M32, (ack - back) & M32)
        if p.flags[row] & ACK:
            _move_sack(packet, at, int(p.doff[row]), theirs)
        new = list(struct.unpack_from(f"!{len(old)}H", packet, at))
        if tuple(new) == old:
            return
        struct.pack_into("!H", packet, at + 16, patched(old[8], old, tuple(new)))
        p.rebuild(row, bytes(packet))
        if trip.remember:
            one = np.array([row])
            for name, was in ("seq", seq), ("ack", ack):
                now = getattr(p, name)[one]
                if int(now[0]) != was:
                    trip.changes.append((_MOVED, name, one, np.array([was], np.uint32), now))

    # ---- what is expected

    def live(self, now: int) -> list[Expectation]:
        """What is expected at `now`, newest first."""
        self.expected = [e for e in self.expected if e.deadline > now]
        return self.expected

    def dump(self, now: int) -> str:
        """The expectations as `conntrack -L expect` prints them."""
        original = self.node.conntrack.original
        return "".join(e.text(now, original(e.master)) + "\n" for e in self.live(now))

    def read_line(self, line: str, now: int) -> None:
        """Take over a line of `conntrack -L expect`. Raises ValueError, KeyError; Unsupported behind NAT."""
        ct = self.node.conntrack
        said: dict[str, list[str]] = {}
        for word in line.split():
            name, _, value = word.partition("=")
            said.setdefault(name, []).append(value)
        proto, zone = int(said["proto"][0]), int(said.get("zone", ["0"])[0])

        def number(name: str, k: int = 0) -> int:
            return int(ipaddress.IPv4Address(said[name][k])) if "." in said[name][k] else int(said[name][k])

        master = (number("master-src"), number("master-dst"), number("sport", -1), number("dport", -1), 0)
        flows = [f for f in np.flatnonzero(ct.stored).tolist() if ct.original(f)[:4] == master[:4]]
        flows = [f for f in flows if int(ct.zone[f]) == zone and ct.helper[f]]
        if not flows:
            raise ValueError("there is no such master")
        if ct.status[flows[0]] & (SRC_NAT | DST_NAT):
            raise Unsupported("an expectation of a translated connection (it does not say what was meant)")
        src = number("src") if number("mask-src") else ANY
        sport = number("sport") if number("sport", 1) else ANY
        shape = (src, number("dst"), sport, number("dport"), proto)
        left = int(line.split()[0]) * SECOND
        flags = {"PERMANENT", "INACTIVE"} & set(re.split(r"[ ,]", line))
        e = Expectation(shape, flows[0], zone, said["helper"][0], number("class"), now + left, "PERMANENT" in flags)
        e.inactive = "INACTIVE" in flags
        self.expected.append(e)

    def expect(self, e: Expectation, at: Look, *, anybody: bool = False) -> str:
        """Register an expectation; what stands in its way: "" nothing, "busy" another one, "full", "already".

        anybody   the same one of another master is not another one, but "already" there
        """
        now = at.now
        for other in self.live(now):
            if (anybody or other.master == e.master) and other.shape == e.shape and other.zone == e.zone:
                if other.kind != e.kind or other.master != e.master:
                    return "already"
                self.expected.remove(other)
                break
            if other.clashes(e):
                return "busy"
        most, seconds = HELPERS[e.helper].limits[e.kind]
        same = [x for x in self.expected if x.master == e.master and x.kind == e.kind]
        if most and len(same) >= most:
            self.expected.remove(same[-1])
        if len(self.expected) >= self.node.sysctl.int("net.netfilter.nf_conntrack_expect_max"):
            return "full"
        e.deadline = now + seconds * SECOND
        self.expected.insert(0, e)
        whom = "anyone" if e.shape[0] == ANY else dotted(e.shape[0])
        text = f"conntrack: {e.helper} expects {whom} > {dotted(e.shape[1])}:{e.shape[3]}"
        at.trip.step(np.array([at.row]), Step(None, text))
        return ""

    def match(self, t: Tuple, zone: int, now: int) -> Expectation | None:
        """The expectation that a new connection fulfils. Unless it is a permanent one, that is its end."""
        ct = self.node.conntrack
        for e in self.live(now):
            if e.zone == zone and e.fits(t):
                if e.inactive or not ct.status[e.master] & CONFIRMED or ct.status[e.master] & DYING:
                    return None
                if not e.permanent:
                    self.expected.remove(e)
                return e
        return None

    def wanted(self, p: Packets, rows: Rows) -> Mask:
        """bool[len(rows)]: what these packets begin may be expected (by destination and port)."""
        to = {e.shape[1] << 16 | e.shape[3] for e in self.expected}
        keys = (p.dst[rows].astype(np.uint64) << np.uint64(16)) | p.dport[rows]
        return np.isin(keys, np.array(sorted(to), np.uint64))

    def begin(self, trip: Trip, row: int, flow: int, e: Expectation) -> None:
        """An expected connection begins: it has its master's mark, and goes the way that its master's packets go."""
        ct = self.node.conntrack
        ct.status[flow] |= EXPECTED
        ct.parent[flow] = ct.helper[e.master]
        ct.mark[flow] = ct.mark[e.master]
        ct.related = True
        gives = e.gives or (e.helper if self.node.kernel == "6.1" else "")  # 6.1.176 has the master's look into it too
        if gives:
            self.attach(flow, gives)
        if e.direction is not None:
            self.node.nat.follow(trip, row, flow, e)
