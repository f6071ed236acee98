"""Fragments: putting them together before tracking, cutting packets for the way out.

With connection tracking on, nothing behind the first stop of PREROUTING and OUTPUT ever sees a fragment: the pieces wait
until the packet is whole, travel as one, and leave cut again to at most the size of the largest piece that came in.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netemu.packets import DONT_FRAGMENT, MORE_FRAGMENTS, OFFSET_MASK, checksum


@dataclass
class Assembly:
    """Fragments of one packet that waits to be whole."""

    since: int
    largest: int = 0
    broken: str = ""

    def __post_init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.header = b""
        self.total = -1
        self.df = False

    def add(self, packet: bytes) -> bytes | None:
        """Take one more fragment; the whole packet once nothing is missing."""
        ihl = (packet[0] & 15) * 4
        (word,) = struct.unpack_from("!H", packet, 6)
        offset, more = (word & OFFSET_MASK) * 8, bool(word & MORE_FRAGMENTS)
        body = packet[ihl:]
        if more:
            body = body[: len(body) & ~7]
        last = offset + len(body)
        if not more:
            if (self.total >= 0 and self.total != last) or any(k + len(b) > last for k, b in self.parts.items()):
                self.broken = "overlapping fragments"
                return None
            self.total = last
        elif 0 <= self.total < last:
            self.broken = "overlapping fragments"
            return None
        if offset in self.parts and len(self.parts[offset]) == len(body):
            return None  # the same again
        if any(offset < k + len(b) and k < last for k, b in self.parts.items()):
            self.broken = "overlapping fragments"
            return None
        self.parts[offset] = body
        self.largest = max(self.largest, len(packet))
        if word & DONT_FRAGMENT:
            self.df = True
        if offset == 0:
            self.header = packet[:ihl]
        if self.total < 0 or not self.header or sum(map(len, self.parts.values())) != self.total:
            return None
        data = b"".join(self.parts[k] for k in sorted(self.parts))
        head = bytearray(self.header)
        struct.pack_into("!H", head, 2, len(head) + len(data))
        struct.pack_into("!H", head, 6, DONT_FRAGMENT if self.df else 0)
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, checksum(bytes(head)))
        return bytes(head) + data


def cut(packet: bytes, limit: int) -> list[bytes]:
    """The fragments of a packet, each at most `limit` bytes long (options are repeated as they stand)."""
    ihl = (packet[0] & 15) * 4
    (word,) = struct.unpack_from("!H", packet, 6)
    start, more = word & OFFSET_MASK, word & MORE_FRAGMENTS
    body = packet[ihl:]
    size = (limit - ihl) & ~7
    out = []
    for k in range(0, len(body), size):
        piece = body[k : k + size]
        head = bytearray(packet[:ihl])
        last = k + size >= len(body)
        struct.pack_into("!H", head, 2, ihl + len(piece))
        struct.pack_into("!H", head, 6, (start + k // 8) | (more if last else MORE_FRAGMENTS))
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, checksum(bytes(head)))
        out.append(bytes(head) + piece)
    return out


def ip_packet(src: int, dst: int, proto: int, body: bytes, *, tos: int = 0, ttl: int = 64, flags: int = 0) -> bytes:
    """An IPv4 packet that the node makes: no options, id 0."""
    head = bytearray(struct.pack("!BBHHHBBHII", 0x45, tos, 20 + len(body), 0, flags, ttl, proto, 0, src, dst))
    struct.pack_into("!H", head, 10, checksum(bytes(head)))
    return bytes(head) + body
