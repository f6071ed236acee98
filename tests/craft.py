"""Packets made by hand, without any library: what tests send."""

from __future__ import annotations

import socket
import struct

BITS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    s = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while s >> 16:
        s = (s & 0xFFFF) + (s >> 16)
    return ~s & 0xFFFF


def ip(
    src: str, dst: str, proto: int, body: bytes, *, ttl: int = 64, tos: int = 0, ident: int = 1, frag: int = 0x4000
) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        tos,
        20 + len(body),
        ident,
        frag,
        ttl,
        proto,
        0,
        socket.inet_aton(src),
        socket.inet_aton(dst),
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def _summed(src: str, dst: str, proto: int, segment: bytes, at: int) -> bytes:
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, proto, len(segment))
    c = checksum(pseudo + segment)
    if proto == 17 and c == 0:
        c = 0xFFFF
    return segment[:at] + struct.pack("!H", c) + segment[at + 2 :]


def tcp(
    src: str, sport: int, dst: str, dport: int, flags: str = "S", seq: int = 1000, ack: int = 0, win: int = 64240,
    data: bytes = b"", options: bytes | None = None, **kw: int,
) -> bytes:  # fmt: skip
    if options is None:
        options = b"\x02\x04\x05\xb4\x01\x03\x03\x07" if "S" in flags else b""
    bits = sum(BITS[f] for f in flags)
    offset = (5 + len(options) // 4) << 4
    segment = (
        struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, offset, bits, win, 0, 0)
        + options
        + data
    )
    return ip(src, dst, 6, _summed(src, dst, 6, segment, 16), **kw)


def udp(src: str, sport: int, dst: str, dport: int, data: bytes = b"question", **kw: int) -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    return ip(src, dst, 17, _summed(src, dst, 17, segment, 6), **kw)


def icmp(
    src: str, dst: str, kind: int = 8, code: int = 0, number: int = 7, data: bytes = b"abcdefgh", **kw: int
) -> bytes:
    segment = struct.pack("!BBHHH", kind, code, 0, number, 1) + data
    return ip(src, dst, 1, segment[:2] + struct.pack("!H", checksum(segment)) + segment[4:], **kw)


def error(src: str, dst: str, quoted: bytes, kind: int = 3, code: int = 1, **kw: int) -> bytes:
    segment = struct.pack("!BBHI", kind, code, 0, 0) + quoted[:36]
    return ip(src, dst, 1, segment[:2] + struct.pack("!H", checksum(segment)) + segment[4:], **kw)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


CHUNKS = {
    "data": 0, "init": 1, "init_ack": 2, "beat": 4, "beat_ack": 5, "abort": 6, "shutdown": 7, "shutdown_ack": 8,
    "error": 9, "cookie_echo": 10, "cookie_ack": 11, "complete": 14,
}  # fmt: skip


def chunk(kind: str, tag: int = 0, flags: int = 0) -> bytes:
    """A chunk of SCTP; `tag` is what an INIT or INIT ACK offers."""
    body = struct.pack("!IIHHI", tag, 65535, 10, 10, 1) if kind in ("init", "init_ack") else b""
    body = b"abcdefghijkl" if kind in ("data", "beat", "beat_ack", "cookie_echo") else body
    return struct.pack("!BBH", CHUNKS[kind], flags, 4 + len(body)) + body


def sctp(src: str, sport: int, dst: str, dport: int, tag: int, *chunks: bytes, wrong: bool = False, **kw: int) -> bytes:
    body = struct.pack("!HHII", sport, dport, tag, 0) + b"".join(chunks)
    return ip(src, dst, 132, body[:8] + struct.pack("<I", crc32c(body) ^ wrong) + body[12:], **kw)


TYPES = ("request", "response", "data", "ack", "dataack", "closereq", "close", "reset", "sync", "syncack")


def dccp(src: str, sport: int, dst: str, dport: int, kind: str, seq: int = 1, ack: int = 1, **kw: int) -> bytes:
    behind = b"" if kind in ("request", "data") else struct.pack("!Q", ack)
    behind += b"\0\0\0\7" if kind in ("request", "response", "reset") else b""
    head = struct.pack("!HHBBHBBHI", sport, dport, 4 + len(behind) // 4, 0, 0, TYPES.index(kind) << 1 | 1, 0, 0, seq)
    return ip(src, dst, 33, _summed(src, dst, 33, head + behind, 6), **kw)


def ends(packet: bytes) -> tuple[int, str, int, str, int]:
    """(protocol, source, source port or id, destination, destination port)."""
    at = (packet[0] & 15) * 4
    proto = packet[9]
    src, dst = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    if proto in (6, 17) and len(packet) >= at + 4:
        sport, dport = struct.unpack_from("!HH", packet, at)
        return proto, src, sport, dst, dport
    if proto == 1 and len(packet) >= at + 6:
        return proto, src, struct.unpack_from("!H", packet, at + 4)[0], dst, 0
    return proto, src, 0, dst, 0


def sums_right(packet: bytes) -> bool:
    """Are all checksums of the packet right?"""
    at = (packet[0] & 15) * 4
    if checksum(packet[:at]):
        return False
    body, proto = packet[at:], packet[9]
    if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
        return True
    if proto == 1:
        return checksum(body) == 0
    if proto in (6, 17):
        if proto == 17 and body[6:8] == b"\0\0":
            return True
        return checksum(packet[12:20] + struct.pack("!BBH", 0, proto, len(body)) + body) == 0
    return True


def answer(packet: bytes) -> bytes | None:
    """What the far end would say to `packet`."""
    proto, src, sport, dst, dport = ends(packet)
    at = (packet[0] & 15) * 4
    if proto == 17:
        return udp(dst, dport, src, sport, b"answer")
    if proto == 1 and packet[at] == 8:
        return icmp(dst, src, 0, 0, sport)
    if proto == 6:
        seq, ack = struct.unpack_from("!II", packet, at + 4)
        flags = packet[at + 13]
        payload = len(packet) - at - (packet[at + 12] >> 4) * 4
        if flags & 4:
            return None
        if flags & 2 and not flags & 16:
            return tcp(dst, dport, src, sport, "SA", seq * 7 + 12345, seq + 1)
        return tcp(dst, dport, src, sport, "FA" if flags & 1 else "A", ack, seq + payload + (flags & 1))
    return None
