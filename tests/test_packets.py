"""Packets as columns: reading headers, writing them back with right checksums, judging checksums."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from craft import checksum as reference
from craft import icmp, ip, sums_right, tcp, udp
from hypothesis import given
from hypothesis import strategies as st

from netemu.packets import COLUMNS, Packets, checksum, crc32c, options, padded, patched

addresses = st.integers(0, 2**32 - 1).map(lambda a: ".".join(map(str, a.to_bytes(4, "big"))))
ports = st.integers(0, 65535)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """A TCP, UDP or ICMP packet with right checksums."""
    a, b, data = draw(addresses), draw(addresses), draw(st.binary(max_size=40))
    kind = draw(st.integers(0, 2))
    header = {"ttl": draw(st.integers(0, 255)), "tos": draw(st.integers(0, 255)), "ident": draw(ports)}
    if kind == 0:
        numbers = draw(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), ports))
        return tcp(a, draw(ports), b, draw(ports), draw(st.sampled_from(["S", "A", "FA"])), *numbers, data, **header)
    if kind == 1:
        return udp(a, draw(ports), b, draw(ports), data, **header)
    return icmp(a, b, draw(st.sampled_from([0, 8, 13])), 0, draw(ports), data, **header)


@given(st.lists(packets(), min_size=1, max_size=8))
def test_bytes_that_nobody_changed_are_the_bytes_that_came(some: list[bytes]) -> None:
    p = Packets.from_bytes(some)
    assert [p.bytes(k) for k in range(len(some))] == some


@given(st.lists(packets(), min_size=1, max_size=8), st.data())
def test_many_headers_are_one_header_repeated(some: list[bytes], data: st.DataObject) -> None:
    cut_off = [data.draw(st.integers(0, len(b))) for b in some]
    some = [b[: max(20, len(b) - c)] for b, c in zip(some, cut_off, strict=True)]
    many = Packets.from_bytes(some)
    for k, b in enumerate(some):
        one = Packets.from_bytes([b])
        for name in COLUMNS:
            if name != "at":
                assert getattr(many, name)[k] == getattr(one, name)[0], name


@given(packets(), addresses, ports, st.integers(0, 255), st.integers(0, 255))
def test_rewritten_headers_keep_their_checksums_right(
    packet: bytes, address: str, port: int, ttl: int, tos: int
) -> None:
    p = Packets.from_bytes([packet])
    number = int.from_bytes(bytes(map(int, address.split("."))), "big")
    p.src[0], p.dst[0], p.ttl[0], p.tos[0] = number, number ^ 1, ttl, tos
    p.sport[0] = p.dport[0] = p.icmp_id[0] = port
    out = p.bytes(0)
    assert sums_right(out) and len(out) == len(packet)
    again = Packets.from_bytes([out])
    for name in ("src", "dst", "ttl", "tos") + (("sport", "dport") if packet[9] != 1 else ("icmp_id",)):
        assert getattr(again, name)[0] == getattr(p, name)[0]
    assert out[packet[0] % 16 * 4 + 20 :] == packet[packet[0] % 16 * 4 + 20 :]


@given(packets(), st.integers(1, 0xFFFF))
def test_a_wrong_checksum_stays_exactly_as_wrong(packet: bytes, off: int) -> None:
    at = 20 + {6: 16, 17: 6, 1: 2}[packet[9]]
    (c,) = struct.unpack_from("!H", packet, at)
    wrong = packet[:at] + struct.pack("!H", (c + off) % 0x10000 or 1) + packet[at + 2 :]
    p = Packets.from_bytes([wrong])
    was = bool(p.l4_checksum_ok(np.arange(1))[0])
    assert was == sums_right(wrong)
    p.src[0] ^= 0x01020304
    assert sums_right(p.bytes(0)) == was


def test_udp_without_a_checksum_gets_none() -> None:
    packet = bytearray(udp("10.0.0.1", 1, "10.0.0.2", 2))
    packet[26:28] = b"\0\0"
    p = Packets.from_bytes([bytes(packet)])
    p.src[0] += 1
    assert p.bytes(0)[26:28] == b"\0\0"


def test_a_udp_checksum_that_comes_out_as_zero_is_written_as_ones() -> None:
    packet = udp("10.0.0.1", 1, "10.0.0.2", 2)
    (was,) = struct.unpack_from("!H", packet, 26)
    p = Packets.from_bytes([packet])
    p.sport[0] = next(port for port in range(65536) if patched(was, (1,), (port,)) == 0)
    assert p.bytes(0)[26:28] == b"\xff\xff" and sums_right(p.bytes(0))


def test_a_later_fragment_has_no_ports_to_rewrite() -> None:
    packet = ip("10.0.0.1", "10.0.0.2", 17, b"\1\2\3\4" * 4, frag=5)
    p = Packets.from_bytes([packet])
    assert (p.sport[0], p.dport[0]) == (0, 0)
    p.sport[0] = 99
    p.src[0] += 1
    assert p.bytes(0)[20:] == packet[20:]


def test_sctp_gets_its_own_checksum() -> None:
    chunk = struct.pack("!HHI", 4000, 80, 7)
    body = chunk + struct.pack("<I", crc32c(chunk + bytes(4) + b"chunk.." + b"\0")) + b"chunk.." + b"\0"
    p = Packets.from_bytes([ip("10.0.0.1", "10.0.0.2", 132, body)])
    p.sport[0] = 4001
    out = p.bytes(0)[20:]
    assert struct.unpack_from("<I", out, 8)[0] == crc32c(out[:8] + bytes(4) + out[12:])


@pytest.mark.parametrize("gone", [0, 1, 7, 8, 20, 21])
def test_what_was_not_captured_reads_as_zero(gone: int) -> None:
    packet = tcp("10.0.0.1", 4000, "10.0.0.2", 80)
    short = packet[: 20 + gone]
    p = Packets.from_bytes([short])
    assert p.length[0] == len(packet) and p.cap[0] == len(short)
    assert p.sport[0] == (4000 if gone >= 2 else 4000 & 0xFF00 if gone else 0)
    assert p.l4_checksum_ok(np.arange(1))[0], "cannot be judged"


def test_rebuilding_reads_the_headers_again() -> None:
    p = Packets.from_bytes([udp("10.0.0.1", 1, "10.0.0.2", 2)] * 2)
    p.mark[1], p.link_in[1] = 7, 3
    p.rebuild(1, tcp("10.0.0.3", 4000, "10.0.0.4", 80))
    assert (p.proto[1], p.sport[1], p.mark[1], p.link_in[1]) == (6, 4000, 7, 3)
    assert p.bytes(1) == tcp("10.0.0.3", 4000, "10.0.0.4", 80) and p.proto[0] == 17
    assert p.take(np.array([1])).bytes(0) == p.bytes(1)


@given(st.binary(max_size=50))
def test_checksum(data: bytes) -> None:
    assert checksum(data) == reference(data)


@given(st.lists(ports, min_size=1, max_size=6), st.data())
def test_a_patched_checksum_is_the_checksum_of_what_is_there_now(words: list[int], data: st.DataObject) -> None:
    new = [data.draw(ports) for _ in words]
    old_sum, new_sum = (checksum(struct.pack(f"!{len(w)}H", *w) + b"\1\2") for w in (words, new))
    assert patched(old_sum, tuple(words), tuple(new)) == new_sum


class TestOptions:
    @pytest.mark.parametrize(
        "text, bad",
        [
            ([1, 1, 0, 9], None),
            ([7, 7, 4, 0, 0, 0, 0, 0], None),
            ([7, 1, 4, 0], 20),
            ([7, 7, 3, 0, 0, 0, 0, 0], 22),
            ([7, 5, 4, 0, 0, 0, 0, 0], 22),
            ([7, 3, 4, 7, 3, 4, 0, 0], 23),
            ([131, 2, 0, 0], 21),
            ([131, 3, 3, 0], 22),
            ([131, 3, 4, 137, 3, 4, 0, 0], 23),
            ([68, 3, 5, 0], 21),
            ([68, 4, 4, 0], 22),
            ([68, 4, 5, 0, 68, 4, 5, 0], 24),
            ([148, 3, 0, 0], 21),
            ([1, 130], 21),
            ([200, 4, 9, 9], None),
        ],
    )
    def test_where_the_first_bad_one_is(self, text: list[int], bad: int | None) -> None:
        assert options(bytes(20) + bytes(text))[0] == bad


def test_padding_lets_headers_be_read_at_the_end() -> None:
    assert len(padded(b"abc")) == 67 and not padded(b"abc")[3:].any()
    assert [len(rows) for rows in Packets.from_bytes([udp("10.0.0.1", 1, "10.0.0.2", 2)] * 5).slices(2)] == [2, 2, 1]
