"""Fragments: putting them together before tracking, cutting packets for the way out.

With connection tracking on, nothing behind the first stop of PREROUTING and OUTPUT ever sees a fragment: the pieces
wait until the packet is whole, travel as one, and leave cut again: where it was cut before if every piece still fits,
otherwise to at most the size of the largest piece. Without tracking only what is delivered here is put together, before
INPUT.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass

from netemu.packets import DONT_FRAGMENT, MORE_FRAGMENTS, OFFSET_MASK, checksum

# what the ECN bits of all pieces make together: (a set of bits 1 << ECN) -> the packet's ECN, None: they cannot belong
# together. Not-ECT mixed with anything else is such a case; one CE among ECT makes the whole CE.
_NOT_ECT, _ECT1, _ECT0, _CE = 1, 2, 4, 8


def _joint_ecn(seen: int) -> int | None:
    """ECN bits to set in a packet whose pieces had the ECN values in `seen`, or None where they contradict.

    >>> _joint_ecn(_ECT0 | _CE), _joint_ecn(_NOT_ECT), _joint_ecn(_NOT_ECT | _CE)
    (3, 0, None)
    """
    if seen & _NOT_ECT and seen != _NOT_ECT:
        return None
    return 3 if seen & _CE and seen & (_ECT0 | _ECT1) else 0


@dataclass
class Assembly:
    """Fragments of one packet that waits to be whole.

    until    when they are given up, ns        largest  size of the largest one, IP header included
    told     how many fragments its sender had sent when the last piece came
    sizes    payload of each piece, first to last, once the packet is whole
    broken   why the pieces cannot be one packet: all of them are lost
    pulled   the pieces are not known any more (`pull`)
    first    the first piece, once it came, with the link it came in on, how it was addressed there, and its mark
    """

    until: int
    largest: int = 0
    broken: str = ""
    told: int = 0
    first: bytes = b""
    link: int = -1
    pkttype: int = 0
    mark: int = 0

    def __post_init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.runs: list[list[int]] = []  # [start, end] of pieces that came one behind the other
        self.header = b""
        self.end = 0  # the furthest byte that a piece reached
        self.last_in = False
        self.largest_df = 0
        self.ecn = 0
        self.sizes: list[int] = []
        self.pulled = False

    def pull(self, size: int) -> None:
        """Somebody writes to the first `size` bytes of the payload, and wants them in one place: if they do not stand
        in the first piece, the packet is no longer made of its pieces."""
        self.pulled |= self.sizes[0] < size

    def add(self, packet: bytes) -> bytes | None:
        """Take one more fragment; the whole packet once nothing is missing.

        A piece that lies wholly inside what came in one go is a duplicate and is passed over (`repeated`); any other
        overlap, an empty piece, or bytes beyond the last one, and all are lost (`broken`).
        """
        ihl = (packet[0] & 15) * 4
        (word,) = struct.unpack_from("!H", packet, 6)
        offset, more = (word & OFFSET_MASK) * 8, bool(word & MORE_FRAGMENTS)
        body = packet[ihl:]
        if more:
            body = body[: len(body) & ~7]
        end = offset + len(body)
        if (not more and (end < self.end or (self.last_in and end != self.end))) or (self.last_in and end > self.end):
            self.broken = "overlapping fragments"
        elif not body:
            self.broken = "an empty fragment"
        if self.broken:
            return None
        self.last_in |= not more
        self.end = max(self.end, end)
        if self._repeats(offset, end) or self.broken:
            return None
        self.parts[offset] = body
        self.largest = max(self.largest, ihl + len(body))
        self.ecn |= 1 << (packet[1] & 3)
        if word & DONT_FRAGMENT:
            self.largest_df = max(self.largest_df, ihl + len(body))
        if offset == 0:
            self.header = packet[:ihl]
        if not self.last_in or not self.header or sum(map(len, self.parts.values())) != self.end:
            return None
        return self._whole()

    def _repeats(self, start: int, end: int) -> bool:
        """Is it a duplicate? If not, note where it lies; `broken` when it overlaps."""
        at = bisect_right(self.runs, start, key=lambda run: run[0])
        before = self.runs[at - 1] if at else None
        if before and start < before[1]:
            if end <= before[1]:
                return True
            self.broken = "overlapping fragments"
        elif at < len(self.runs) and end > self.runs[at][0]:
            self.broken = "overlapping fragments"
        elif before and at == len(self.runs) and start == before[1]:
            before[1] = end
        else:
            self.runs.insert(at, [start, end])
        return False

    def _whole(self) -> bytes | None:
        ecn = _joint_ecn(self.ecn)
        places = sorted(self.parts)
        data = b"".join(self.parts[k] for k in places)
        if ecn is None:
            self.broken = "fragments with contradicting ECN bits"
        elif len(self.header) + len(data) > 65535:
            self.broken = "fragments of more than 65535 bytes"
        if self.broken or ecn is None:
            return None
        self.sizes = [len(self.parts[k]) for k in places]
        head = bytearray(self.header)
        head[1] |= ecn
        struct.pack_into("!H", head, 2, len(head) + len(data))
        # fragments that may not be cut further make a packet that may not, if the largest is one of them
        struct.pack_into("!H", head, 6, DONT_FRAGMENT if self.largest_df == self.largest else 0)
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, checksum(bytes(head)))
        return bytes(head) + data


def cut(packet: bytes, limit: int, sizes: list[int] | None = None) -> list[bytes]:
    """The fragments of a packet, each at most `limit` bytes long.

    sizes   payload of each piece that the packet was put together from: it is cut there again if all of them fit
            ([]: that is not known any more)
    Options that are not to be copied (bit 7 unset) become no-ops in all fragments but the first.
    """
    ihl = (packet[0] & 15) * 4
    (word,) = struct.unpack_from("!H", packet, 6)
    start, more = word & OFFSET_MASK, word & MORE_FRAGMENTS
    body = packet[ihl:]
    size = (limit - ihl) & ~7
    as_they_came = bool(sizes) and sizes is not None and sum(sizes) == len(body) and max(sizes) <= limit - ihl
    keep = word & DONT_FRAGMENT if sizes is not None and not as_they_came else 0
    out: list[bytes] = []
    at = 0
    while at < len(body):
        piece = body[at : at + (sizes[len(out)] if as_they_came and sizes is not None else size)]
        head = bytearray(packet[:ihl])
        if at:
            _blank_options(head)
        last = at + len(piece) >= len(body)
        struct.pack_into("!H", head, 2, ihl + len(piece))
        struct.pack_into("!H", head, 6, (start + at // 8) | (more if last else MORE_FRAGMENTS) | keep)
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, checksum(bytes(head)))
        out.append(bytes(head) + piece)
        at += len(piece)
    return out


def _blank_options(head: bytearray) -> None:
    k = 20
    while k < len(head) and head[k]:
        if head[k] == 1:
            k += 1
            continue
        size = head[k + 1] if k + 1 < len(head) else 0
        if size < 2 or k + size > len(head):
            return
        if not head[k] & 0x80:
            head[k : k + size] = b"\1" * size
        k += size


def ip_packet(
    src: int,
    dst: int,
    proto: int,
    body: bytes,
    *,
    tos: int = 0,
    ttl: int = 64,
    flags: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet that the node makes: its id is 0, the length of its options a multiple of 4."""
    ihl = 20 + len(options)
    head = bytearray(
        struct.pack("!BBHHHBBHII", 0x40 | ihl // 4, tos, ihl + len(body), 0, flags, ttl, proto, 0, src, dst)
    )
    head += options
    struct.pack_into("!H", head, 10, checksum(bytes(head)))
    return bytes(head) + body
