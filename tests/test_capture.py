"""Captures: every format gives the same frames, damage is told and costs nothing before it, and links are found."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import struct
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import dpkt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netemu import ahead
from netemu import capture as module
from netemu.ahead import Ahead
from netemu.capture import (
    OUT,
    PASSED,
    Capture,
    CaptureWriter,
    Frames,
    arrivals,
    read_capture,
    split_link,
    write_pcap,
)
from netemu.errors import REFUSED, UNSUPPORTED, Refused, Unsupported
from netemu.packets import BROADCAST, COLUMNS, HOST, MULTICAST, OTHERHOST
from netemu.routing import Routing
from netemu.sysctl import Sysctl

SECOND = 10**9
A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def ipv4(k: int = 0, size: int = 40, src: str = "10.0.0.1", dst: str = "10.0.0.2") -> bytes:
    """A UDP packet that carries its number."""
    ip = dpkt.ip.IP(src=dotted(src), dst=dotted(dst), p=17, id=k & 0xFFFF, ttl=64)
    ip.data = dpkt.udp.UDP(sport=1000, dport=53, data=bytes(max(0, size - 28)), ulen=max(8, size - 20))
    ip.len = len(ip)
    return bytes(ip)


def dotted(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(packet: bytes, kind: int = 0x0800, dst: str = B, src: str = A, tags: tuple[int, ...] = ()) -> bytes:
    tagged = b"".join(struct.pack("!HH", tag, 100 + k) for k, tag in enumerate(tags))
    return mac(dst) + mac(src) + tagged + struct.pack("!H", kind) + packet


def pcap(
    records: list[tuple[int, bytes]], order: str = "<", nano: bool = True, link_type: int = 1, cut: int = 1 << 18
) -> bytes:
    out = struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, cut, link_type)
    for time, packet in records:
        fraction = time % SECOND // (1 if nano else 1000)
        out += struct.pack(order + "4I", time // SECOND, fraction, len(packet[:cut]), len(packet)) + packet[:cut]
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str = "<", name: str = "", resolution: int = 9, offset: int = 0, link_type: int = 1) -> bytes:
    options = (option(order, 2, name.encode()) if name else b"") + option(order, 9, bytes([resolution]))
    if offset:
        options += option(order, 14, struct.pack(order + "q", offset))
    return block(order, 1, struct.pack(order + "HHI", link_type, 0, 0) + options + option(order, 0, b""))


def enhanced(order: str, iface: int, ticks: int, packet: bytes, options: bytes = b"", wire: int = 0) -> bytes:
    head = struct.pack(order + "5I", iface, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), wire or len(packet))
    return block(order, 6, head + packet + bytes(-len(packet) % 4) + options)


def old(order: str, iface: int, ticks: int, packet: bytes) -> bytes:
    head = struct.pack(order + "HHIIII", iface, 7, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet))
    return block(order, 2, head + packet)


def simple(order: str, packet: bytes) -> bytes:
    return block(order, 3, struct.pack(order + "I", len(packet)) + packet)


def pcapng(records: list[tuple[int, bytes]], order: str = "<", link_type: int = 1) -> bytes:
    return (
        section(order)
        + interface(order, "eth0", link_type=link_type)
        + b"".join(enhanced(order, 0, t, p) for t, p in records)
    )


@dataclass
class Read:
    """All of a capture in plain Python."""

    capture: Capture
    chunks: list[Frames]

    def column(self, name: str) -> list[int]:
        return [int(x) for f in self.chunks for x in getattr(f, name)]

    @property
    def packets(self) -> list[bytes]:
        return [f.data[a : a + n].tobytes() for f in self.chunks for a, n in zip(f.at, f.cap, strict=True)]

    @property
    def records(self) -> list[tuple[int, bytes]]:
        return list(zip(self.column("time"), self.packets, strict=True))


def read(*captures: bytes | str | Path) -> Read:
    sources = [io.BytesIO(c) if isinstance(c, bytes) else c for c in captures]
    capture = read_capture(sources)
    return Read(capture, list(capture))


TIMES = [1_700_000_000 * SECOND + k * 1_001_000 for k in range(5)]
PACKETS = [ipv4(k, 28 + 13 * k) for k in range(5)]
PLAIN = list(zip(TIMES, PACKETS, strict=True))
FRAMES = [(t, ether(p)) for t, p in PLAIN]


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_pcap(order: str, nano: bool, zipped: bool) -> None:
    file = pcap(FRAMES, order, nano)
    got = read(gzip.compress(file) if zipped else file)
    assert got.records == PLAIN
    assert got.column("number") == [1, 2, 3, 4, 5]
    assert got.column("wire") == [len(p) for p in PACKETS]
    assert got.column("smac") == [int.from_bytes(mac(A))] * 5
    assert got.column("dmac") == [int.from_bytes(mac(B))] * 5
    assert got.capture.problem is None and not got.capture.counts


@pytest.mark.parametrize("order", "<>")
def test_pcapng(order: str) -> None:
    assert read(pcapng(FRAMES, order)).records == PLAIN


@pytest.mark.parametrize(
    ("resolution", "ticks", "nanoseconds"),
    [
        (6, 1_700_000_000_123_456, 1_700_000_000_123_456_000),
        (0, 1_700_000_000, 1_700_000_000 * SECOND),
        (9, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (12, 1_700_000_123_456_789_999, 1_700_000_123_456_789),
        (0x80 | 20, (1_700_000_000 << 20) + (1 << 19), 1_700_000_000_500_000_000),
        (0x80 | 32, (1_700_000_000 << 32) + 0xFFFFFFFF, 1_700_000_000_999_999_999),
        (0x80 | 40, (1000 << 40) + (3 << 38), 1000_750_000_000),
    ],
)
@pytest.mark.parametrize("offset", [0, -3600])
@pytest.mark.parametrize("order", "<>")
def test_pcapng_time(order: str, offset: int, resolution: int, ticks: int, nanoseconds: int) -> None:
    file = section(order) + interface(order, "eth0", resolution, offset) + enhanced(order, 0, ticks, ether(PACKETS[0]))
    assert read(file).column("time") == [nanoseconds + offset * SECOND]


@pytest.mark.parametrize("order", "<>")
def test_pcapng_old_and_simple_packets(order: str) -> None:
    file = section(order) + interface(order, "a") + interface(order, "b", 6)
    file += block(order, 4, b"names") + simple(order, ether(PACKETS[0]))
    file += old(order, 1, 5, ether(PACKETS[1])) + simple(order, ether(PACKETS[2])) + block(order, 0xBAD, b"\1\2\3\4")
    file += enhanced(order, 0, 7, ether(PACKETS[3])) + block(order, 5, bytes(12)) + simple(order, ether(PACKETS[4]))
    got = read(file)
    # simple packets are of the first interface and have the time of the packet before
    assert got.records == list(zip([0, 5000, 5000, 7, 7], PACKETS, strict=True))
    assert got.column("iface") == [0, 1, 0, 0, 0]
    assert got.column("number") == [1, 2, 3, 4, 5]


def test_sections_have_their_own_byte_order_and_interfaces() -> None:
    file = b"".join(
        section(order)
        + interface(order, name)
        + enhanced(order, 0, k, ether(PACKETS[k]))
        + interface(order, "late", link_type=101)
        + enhanced(order, 1, k, PACKETS[k])
        for k, (order, name) in enumerate([("<", "one"), (">", "two"), (">", ""), ("<", "four")])
    )
    got = read(file)
    assert got.packets == [PACKETS[k // 2] for k in range(8)]
    assert got.capture.interfaces == ["one", "late", "two", "late", None, "late", "four", "late"]
    assert got.column("iface") == list(range(8))
    assert got.column("ether") == [1, 0] * 4
    assert got.capture.problem is None


def test_pcapng_flags_tell_the_direction() -> None:
    def flags(order: str, value: int) -> bytes:
        comment = option(order, 1, b"a comment before it")
        return comment + option(order, 2, struct.pack(order + "I", value)) + option(order, 0, b"")

    for order in "<>":
        options = [b"", flags(order, 1), flags(order, 2), flags(order, 1 | 3 << 2), option(order, 1, b"only this")]
        file = section(order) + interface(order)
        file += b"".join(enhanced(order, 0, 1, ether(PACKETS[k]), o) for k, o in enumerate(options))
        got = read(file)
        assert got.packets == PACKETS
        assert got.column("incoming") == [0, 1, 0, 1, 0]
        assert got.column("outgoing") == [0, 0, 1, 0, 0]
        assert got.column("pkttype") == [HOST, HOST, HOST, BROADCAST, HOST]


def sll(packet: bytes, how: int = 0, kind: int = 0x0800, src: str = A, hardware: int = 1) -> bytes:
    return struct.pack("!HHH6s2xH", how, hardware, 6, mac(src), kind) + packet


def sll2(packet: bytes, how: int = 0, kind: int = 0x0800, src: str = A, ifindex: int = 3, hardware: int = 1) -> bytes:
    return struct.pack("!HHIHBB6s2x", kind, 0, ifindex, hardware, how, 6, mac(src)) + packet


@pytest.mark.parametrize(
    ("link_type", "header"),
    [
        (0, b"\2\0\0\0"),
        (0, b"\0\0\0\2"),
        (108, b"\0\0\0\2"),
        (12, b""),
        (14, b""),
        (101, b""),
        (228, b""),
        (113, sll(b"")),
        (276, sll2(b"")),
        (1, ether(b"")),
    ],
)
@pytest.mark.parametrize("file", [pcap, pcapng])
def test_link_types(file, link_type: int, header: bytes) -> None:  # type: ignore[no-untyped-def]
    got = read(file([(t, header + p) for t, p in PLAIN], link_type=link_type))
    assert got.records == PLAIN
    assert got.column("ether") == [link_type in (1, 113, 276)] * 5
    if link_type == 276:
        assert got.column("ifindex") == [3] * 5


def test_ipv6_is_counted_on_every_link_type() -> None:
    v6 = b"\x60" + bytes(39)
    headers = {
        0: b"\x1e\0\0\0",
        108: b"\0\0\0\x18",
        101: b"",
        229: b"",
        113: sll(b"", kind=0x86DD),
        276: sll2(b"", kind=0x86DD),
    }
    for link_type, header in headers.items():
        got = read(pcap([(1, header + v6)], link_type=link_type))
        assert not got.packets and got.capture.counts == {"IPv6": 1}, link_type


def test_cooked_packets_tell_how_they_were_addressed() -> None:
    for wrap, link_type in ((sll, 113), (sll2, 276)):
        got = read(pcap([(how, wrap(PACKETS[0], how)) for how in range(5)], link_type=link_type))
        assert got.column("pkttype") == [HOST, BROADCAST, MULTICAST, OTHERHOST, HOST]
        assert got.column("outgoing") == [0, 0, 0, 0, 1]
        assert got.column("incoming") == [1, 1, 1, 1, 0]
        assert got.column("smac") == [int.from_bytes(mac(A))] * 5
        assert read(pcap([(1, wrap(PACKETS[0], hardware=772))], link_type=link_type)).column("ether") == [0]


def test_ethernet_broadcast_and_multicast() -> None:
    frames = [ether(PACKETS[0], dst=d) for d in (B, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01")]
    assert read(pcap([(1, f) for f in frames])).column("pkttype") == [HOST, BROADCAST, MULTICAST]


@pytest.mark.parametrize("depth", range(5))
def test_vlan_tags_are_looked_through(depth: int) -> None:
    for tags in itertools.product((0x8100, 0x88A8), repeat=depth):
        got = read(pcap([(1, ether(PACKETS[1], tags=tags)), (2, ether(PACKETS[2]))]))
        assert got.packets == [PACKETS[1], PACKETS[2]]
        assert got.column("wire") == [len(PACKETS[1]), len(PACKETS[2])]
    got = read(pcap([(1, ether(b"arp", 0x0806, tags=(0x8100,) * depth))]))
    assert got.capture.counts == {"ARP": 1}


def test_what_is_not_ipv4_is_counted_by_name() -> None:
    frames = [
        ether(bytes(28), 0x0806),
        ether(PACKETS[0]),
        ether(bytes(40), 0x86DD),
        ether(bytes(40), 0x86DD),
        ether(bytes(40), 0x88CC),
        ether(bytes(40), 0x8847),
        ether(b"\x42\x42\x03" + bytes(40), 43),
        ether(b"\xaa\xaa\x03" + bytes(40), 43),
        ether(bytes(40), 0x1234),
        b"short",
        ether(PACKETS[0][:19]),
        ether(b"", 0x0806)[:12] + b"\x81\x00",
        ether(PACKETS[1]),
    ]
    got = read(pcap([(1, f) for f in frames]))
    assert got.column("number") == [2, 13]
    assert got.capture.frames == 13 and got.capture.packets == 2
    assert got.capture.counts == {
        "ARP": 1,
        "IPv6": 2,
        "LLDP": 1,
        "MPLS": 1,
        "STP": 1,
        "802.2 SNAP": 1,
        "ethertype 0x1234": 1,
        "shorter than its link header": 1,
        "IPv4 with its header cut off": 1,
        "802.1Q, cut off": 1,
    }


def test_snapped_packets_keep_their_length_on_the_wire() -> None:
    got = read(pcap(FRAMES, cut=14 + 30))
    assert got.column("cap") == [min(len(p), 30) for p in PACKETS]
    assert got.column("wire") == [len(p) for p in PACKETS]


def test_columns_feed_packets() -> None:
    (frames,) = read(pcap(FRAMES)).chunks
    pkts = frames.parse()
    assert pkts.ident.tolist() == [0, 1, 2, 3, 4]
    assert pkts.dport.tolist() == [53] * 5
    assert pkts.time.tolist() == TIMES
    assert pkts.ether.all() and (pkts.smac == int.from_bytes(mac(A))).all()
    assert [pkts.bytes(k) for k in range(5)] == PACKETS


# ---- finding records -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, pieces and chunks so small that a short capture has many."""
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch, window: int = 20_000, piece: int = 700) -> None:
    for name, value in {"WINDOW": window, "PEEK": 3000, "PIECE": piece, "REACH": 512, "STEPS": 4, "CHUNK": 50}.items():
        monkeypatch.setattr(module, name, value)


def noisy(rng: random.Random, n: int) -> list[tuple[int, bytes]]:
    """Frames of several sizes; some payloads hold captures themselves, to lead the search for records astray."""
    base = rng.choice([0, 1_700_000_000]) * SECOND
    jumps = rng.random() < 0.3  # times all over the place, which the search for records takes for noise
    trap = pcap([(base + k, ether(ipv4(k, 60))) for k in range(8)])[24:]
    trap_ng = pcapng([(base + k, ether(ipv4(k, 60))) for k in range(8)])[60:]
    out = []
    for k in range(n):
        size = rng.choice([20, 50, 50, 50, 200, 400])
        body = rng.choice([bytes(size), rng.randbytes(size), trap, trap_ng, trap[5:]])
        ip = bytearray(ipv4(k, 28))
        struct.pack_into("!H", ip, 2, 28 + len(body))
        out.append((rng.randrange(1 << 32) * SECOND if jumps else base + k * 1000, ether(bytes(ip) + body)))
    return out


def test_records_of_64_kib_and_more_among_small_ones() -> None:
    """As loopback has them. Their length does not fit the two bytes that a walk looks at first."""
    rng = random.Random(3)
    sizes = [rng.choice([60, 200, 1500, 65_520, 65_535, 66_000, 140_000]) for _ in range(120)] + [90] * 9000 + [66_000]
    packets = [ipv4(k, 40) + bytes([k & 255]) * (size - 40) for k, size in enumerate(sizes)]
    f = io.BytesIO()
    write_pcap(f, [k * 1000 for k in range(len(packets))], packets)
    capture = read_capture(io.BytesIO(f.getvalue()))
    assert [int(x) for frames in capture for x in frames.cap] == sizes and not capture.problems


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("file", [pcap, pcapng])
def test_many_chains_find_what_a_loop_finds(file, order: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for seed in range(12):
        rng = random.Random(seed)
        shrink(monkeypatch, rng.choice([9_000, 20_000, 200_000]), rng.choice([300, 700, 2000]))
        records = noisy(rng, 400)
        got = read(file(records, order=order))
        assert got.records == [(t, f[14:]) for t, f in records]
        assert got.column("number") == list(range(1, 401))
        assert got.capture.problem is None
        assert all(0 < len(c) <= 50 for c in got.chunks)


def test_one_size_then_others(small: None) -> None:
    sizes = [64] * 300 + [65] * 200 + [40, 300] * 50 + [64] * 100
    records = [(k, ether(ipv4(k, size))) for k, size in enumerate(sizes)]
    assert read(pcap(records)).records == [(t, f[14:]) for t, f in records]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([28, 29, 30, 31, 60, 400, 1500, 9000]), min_size=1, max_size=120),
    seed=st.integers(0, 99),
)
def test_any_sizes_in_any_windows(sizes: list[int], seed: int) -> None:
    records = [(k * 1000, ether(ipv4(k, size))) for k, size in enumerate(sizes)]
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, rng.choice([3000, 20_000]), rng.choice([100, 700]))
        for file in (pcap(records), pcapng(records), gzip.compress(pcap(records), 1)):
            assert read(file).records == [(t, f[14:]) for t, f in records]


def test_a_length_that_is_impossible_but_fits_the_window() -> None:
    records = [(k, ether(ipv4(k, 60))) for k in range(100)]
    bad = pcap([(5, ether(ipv4(5, 60)) + bytes(300_000))], cut=1 << 20)[24:]
    got = read(pcap(records) + bad + pcap(records)[24:])
    assert len(got.packets) == 100
    assert got.capture.problem is not None and "packet 101" in got.capture.problem.what


def test_packets_longer_than_65535_bytes(small: None) -> None:
    frames = [(k, ether(ipv4(k, 60)) + bytes(n)) for k, n in enumerate([0] * 100 + [70_000, 0, 200_000] + [0] * 200)]
    for file in (pcap(frames), pcapng(frames)):
        got = read(file)
        assert got.column("cap") == [len(f) - 14 for _, f in frames]
        assert got.column("number") == list(range(1, 304))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("file", [pcap, pcapng])
def test_pages_of_a_file_say_what_reading_it_says(file, order: str, tmp_path: Path, small: None) -> None:  # type: ignore[no-untyped-def]
    """A file that nobody has written to for a while is not copied; one that shrinks all the same is read on."""
    whole = file(noisy(random.Random(5), 600), order=order)
    path = tmp_path / "trace"
    for content in (whole, whole[:-7], whole[:60_000] + bytes(999) + whole[60_000:]):
        path.write_bytes(content)
        os.utime(path, (0, 0))
        assert joined(read_capture(path)) == joined(read_capture(io.BytesIO(content)))
    path.write_bytes(whole)
    os.utime(path, (0, 0))
    capture = read_capture(path)
    chunks = iter(capture)
    seen = [next(chunks) for _ in range(3)]
    os.truncate(path, capture.position + 100)
    seen += list(chunks)
    rest = read_capture(io.BytesIO(whole[: path.stat().st_size]))
    assert sum(len(f) for f in seen) == sum(len(f) for f in rest)
    assert [p.what for p in capture.problems] == [p.what for p in rest.problems] != []


def joined(capture: Capture) -> list[object]:
    """Everything that a capture says, apart from how it was cut into chunks."""
    columns: dict[str, list[object]] = {}
    for frames in capture:
        p = frames.parse()
        for name in COLUMNS:
            columns.setdefault(f"p.{name}", []).extend(getattr(p, name).tolist())
        for name in frames.columns():
            columns.setdefault(name, []).extend(getattr(frames, name).tolist())
        columns.setdefault("bytes", []).extend(p.original(k) for k in range(len(p)))
    del columns["at"], columns["p.at"]
    return [columns, capture.counts, [(p.what, p.hint) for p in capture.problems], capture.interfaces, capture.frames]


def test_memory_does_not_grow_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 1 << 16)
    monkeypatch.setattr(module, "CHUNK", 512)
    peaks = []
    for n in (2_000, 20_000):
        path = tmp_path / f"{n}.pcap"
        write_pcap(path, np.arange(n), [ether(ipv4(k & 1, 200 + k % 7)) for k in range(n)], 1)
        tracemalloc.start()
        assert sum(len(f) for f in read_capture(path)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("file", [pcap, pcapng])
def test_cut_off_anywhere(file, order: str) -> None:  # type: ignore[no-untyped-def]
    whole = file(FRAMES, order)
    ends = [len(file(FRAMES[:k], order)) for k in range(6)]
    for length in range(ends[0], len(whole)):
        got = read(whole[:length])
        before = sum(end <= length for end in ends) - 1
        assert got.packets == PACKETS[:before], length
        problem = got.capture.problem
        if length in ends:
            assert problem is None
        else:
            assert problem is not None and problem.kind == REFUSED
            assert f"damaged at packet {before + 1}, byte {ends[before]}: the file ends inside" in problem.what
            assert problem.hint


@pytest.mark.parametrize("file", [pcap, pcapng])
def test_cut_off_in_the_file_header(file) -> None:  # type: ignore[no-untyped-def]
    for length in range(4, 24):
        with pytest.raises(Refused, match="file header is cut off"):
            read(file(FRAMES)[:length])


def test_a_damaged_record(small: None) -> None:
    records = [(k + SECOND, ether(ipv4(k, 60 + k % 5))) for k in range(300)]
    whole = pcap(records)
    start = len(pcap(records[:200]))
    for bad, what in (
        (struct.pack("<4I", 1, 0, 3_000_000, 60), "3,000,000 bytes were captured"),
        (bytes(16), "all zeros"),
        (struct.pack("<4I", 1, 2_000_000_000, 60, 3), "makes no sense"),
    ):
        got = read(whole[:start] + bad + whole[start + 16 :])
        assert got.column("number") == list(range(1, 201))
        assert got.capture.problem is not None
        assert f"packet 201, byte {start}: " in got.capture.problem.what and what in got.capture.problem.what


def test_a_damaged_block(small: None) -> None:
    records = [(k, ether(ipv4(k, 60 + k % 5))) for k in range(300)]
    whole = pcapng(records)
    start = len(pcapng(records[:200]))
    for at, bad, what in (
        (4, struct.pack("<I", 3), "3 bytes long"),
        (4, struct.pack("<I", 4000), "at its end"),
        (4, struct.pack("<I", 1 << 30), "1,073,741,824 bytes long"),
        (8, struct.pack("<I", 9), "of interface 9"),
        (20, struct.pack("<I", 500), "room for"),
        (0, section()[:8] + b"abcd", "byte order mark"),
    ):
        got = read(whole[: start + at] + bad + whole[start + at + len(bad) :])
        assert got.column("number") == list(range(1, 201)), what
        assert got.capture.problem is not None
        assert f"packet 201, byte {start}: " in got.capture.problem.what and what in got.capture.problem.what


def test_damaged_gzip() -> None:
    records = [(k, ether(ipv4(k, 60) + random.Random(k).randbytes(500))) for k in range(500)]
    whole = gzip.compress(pcap(records))
    got = read(whole[: len(whole) // 2])
    assert 0 < len(got.packets) < 500
    assert got.packets == [f[14:] for _, f in records[: len(got.packets)]]
    assert got.capture.problem is not None and "gzip stream ends" in got.capture.problem.what
    middle = len(whole) // 2
    got = read(whole[:middle] + bytes(300) + whole[middle + 300 :])
    assert got.packets == [f[14:] for _, f in records[: len(got.packets)]]
    assert got.capture.problem is not None and "gzip stream is damaged" in got.capture.problem.what


def test_gzip_members_and_padding() -> None:
    whole = pcap(FRAMES)
    assert read(gzip.compress(whole[:50]) + gzip.compress(whole[50:]) + bytes(512)).records == PLAIN


def test_other_packets_survive_an_unknown_interface() -> None:
    file = section() + interface(link_type=1) + interface(name="wlan0", link_type=127)
    file += (
        enhanced("<", 0, 1, ether(PACKETS[0])) + enhanced("<", 1, 2, b"radio") + enhanced("<", 0, 3, ether(PACKETS[1]))
    )
    got = read(file)
    assert got.packets == PACKETS[:2]
    assert got.capture.counts == {"link type 127 (IEEE 802.11 with radiotap header)": 1}
    assert [p.kind for p in got.capture.problems] == [UNSUPPORTED]


@pytest.mark.parametrize("file", [pcap, pcapng])
def test_unknown_link_type(file) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        Unsupported, match=r"link type 105 \(IEEE 802.11\) is not read[^$]*Ethernet 1, raw IP 12/14/101"
    ):
        read(file([(1, b"x")], link_type=105))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\xfd7zXZ\0abc", "xz"),
        (b"\x28\xb5\x2f\xfd123", "zstd"),
        (b"*nat\n:PREROUTING ACCEPT [0:0]\n", "iptables-save"),
        (b"12:00:01.0 IP 10.0.0.1 > 10.0.0.2: ICMP\n", "text"),
        (b'{"a": 1}', "JSON"),
        (b"\x00\x01\x02\x03\x04", "00 01 02 03 04"),
        (gzip.compress(b"hello there\n", mtime=0), "unpacked, it is not a capture: it looks like text"),
        (gzip.compress(b"", mtime=0), "unpacked, it is empty"),
        (gzip.compress(b"x" * 99, mtime=0)[:12], "gzip stream ends"),
        (b"\x34\xcd\xb2\xa1" + bytes(20), "Kuznetzov"),
    ],
)
def test_not_a_capture(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
        read(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_all_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        read_capture([str(tmp_path), str(tmp_path / "missing.pcap"), f"eth0={tmp_path / 'other.pcap'}"])
    assert [p.what for p in caught.value.problems] == [
        "is a directory, not a capture",
        "no such capture",
        "no such capture",
    ]


def test_a_capture_without_packets() -> None:
    for file in (pcap([]), pcapng([]), section()):
        got = read(file)
        assert got.packets == [] and got.capture.problem is None


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_a_capture_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([*FRAMES, (1, ether(b"", 0x0806))]))
    for source in (path, io.BytesIO(path.read_bytes())):
        capture = read_capture(source)
        for _ in range(2):
            assert Read(capture, list(capture)).packets == PACKETS
            assert capture.counts == {"ARP": 1} and capture.frames == 6 and capture.interfaces == [None]
            assert capture.position == path.stat().st_size
        assert capture.size == (path.stat().st_size if source is path else None)


def test_a_pipe_is_followed_live() -> None:
    """Packets come out as they come in, however the pipe cuts them up."""
    out, into = os.pipe()
    seen = threading.Event()
    whole = pcap(FRAMES)

    def writer() -> None:
        half = len(pcap(FRAMES[:3])) + 5
        for k in range(0, half, 7):
            os.write(into, whole[k : min(k + 7, half)])
        assert seen.wait(30)
        os.write(into, whole[half:])
        os.close(into)

    thread = threading.Thread(target=writer)
    thread.start()
    packets: list[bytes] = []
    with open(out, "rb") as pipe:
        for frames in read_capture(pipe):
            packets += Read(None, [frames]).packets  # type: ignore[arg-type]
            if len(packets) >= 3:
                seen.set()
    thread.join()
    assert packets == PACKETS


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(gzip.compress(pcapng(FRAMES)))

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stdin", Stdin())
    got = read("-")
    assert got.records == PLAIN and got.capture.names == ["standard input"]
    with pytest.raises(Refused, match="once"):
        read_capture(["-", "-"])


def test_link_equals_path(tmp_path: Path) -> None:
    odd = tmp_path / "eth0=x"
    odd.write_bytes(pcap(FRAMES))
    assert split_link(str(odd)) == (None, str(odd))
    plain = tmp_path / "x"
    plain.write_bytes(pcapng(FRAMES))
    got = read(f"wan={plain}")
    assert got.packets == PACKETS
    assert got.capture.links == ["wan"] and got.capture.interfaces == ["eth0"]


# ---- merging ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=25), min_size=2, max_size=4))
def test_captures_are_merged_by_time(files: list[list[int]]) -> None:
    names = iter(range(1000))
    captures = [[(t, ipv4(next(names))) for t in times] for times in files]
    keyed = []
    for who, records in enumerate(captures):
        latest = -1
        for t, p in records:
            latest = max(latest, t)
            keyed.append((latest, who, t, p))
    keyed.sort(key=lambda x: x[0])  # stable: order of files, then of packets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 4)
        got = read(*(pcap(records, link_type=101) for records in captures))
    assert got.records == [(t, p) for _, _, t, p in keyed]
    assert got.column("source") == got.column("iface") == [who for _, who, _, _ in keyed]
    assert all(len(c) <= 4 for c in got.chunks)


def test_merging_keeps_damage_and_counts_of_each(tmp_path: Path) -> None:
    one = pcap([*FRAMES[:2], (1, ether(b"", 0x0806))])[:-3]
    two = pcapng([*FRAMES[2:], (1, ether(b"", 0x86DD))])
    got = read(one, two)
    assert got.packets == PACKETS
    assert got.capture.counts == {"IPv6": 1}
    assert len(got.capture.problems) == 1
    assert got.capture.interfaces == [None, "eth0"] and got.column("iface") == [0, 0, 1, 1, 1]


# ---- arrivals --------------------------------------------------------------------------------------------------------


class Node:
    """As much of a routing table as arrivals asks for."""

    @dataclass
    class Link:
        name: str
        mac: int | None

    @dataclass
    class Route:
        link: np.ndarray

    def __init__(self, **links: str | None) -> None:
        self.links = [Node.Link("lo", None)]
        self.links += [Node.Link(n, m and int.from_bytes(mac(m))) for n, m in links.items()]
        self.names = [link.name for link in self.links]
        self.own = [int.from_bytes(dotted(a)) for a in ("127.0.0.1", "10.0.0.254", "192.168.0.254")]

    def index(self, name: str) -> int:
        return self.names.index(name) if name in self.names else -1

    def is_local(self, addresses: np.ndarray) -> np.ndarray:
        return np.isin(addresses, self.own)

    def output(self, dst: np.ndarray, src: np.ndarray, mark: np.ndarray, tos: np.ndarray) -> Node.Route:
        """10/8 behind eth0, 192.168/16 behind eth1, own addresses local, nothing else known."""
        eth1 = np.where(dst >> 16 == 0xC0A8, 2, -1)
        back = np.where(dst >> 24 == 10, 1, eth1)
        return Node.Route(np.where(self.is_local(dst), 0, back).astype(np.int16))


ETH0, ETH1, PEER, OWN, FAR = "02:00:00:00:01:00", "02:00:00:00:01:01", A, "10.0.0.254", "192.168.7.7"
NODE = Node(eth0=ETH0, eth1=ETH1)


def test_the_stand_in_is_like_the_real_routing() -> None:
    real = Routing(Sysctl())
    for name, address, its_mac in (("eth0", "10.0.0.254/8", ETH0), ("eth1", "192.168.0.254/16", ETH1)):
        real.add_link(name, mac=int.from_bytes(mac(its_mac)), addresses=[address])
    packets = [ether(ipv4(src=s), dst=B) for s in ("10.1.2.3", FAR, OWN, "8.8.8.8")] + [ether(ipv4(), dst=ETH1)]
    file = pcap([(1, p) for p in packets])
    assert arrived(file) == arrived(file, node=real) == [1, 2, 1, 1, 2]  # type: ignore[arg-type]


def arrived(file: bytes, link: str | None = None, node: Node | None = None) -> list[int]:
    capture = read_capture(io.BytesIO(file))
    return [int(x) for frames in capture for x in arrivals(frames, capture, node or NODE, link)]  # type: ignore[arg-type]


def test_the_interface_of_a_pcapng_tells_the_link() -> None:
    file = section() + interface(name="eth1") + interface(name="unknown0") + interface(name="lo")
    foreign = ether(ipv4(src=FAR), dst=B)
    file += enhanced("<", 0, 1, ether(ipv4(), dst=B)) + enhanced("<", 1, 1, foreign) + enhanced("<", 0, 1, foreign)
    file += enhanced("<", 2, 1, ether(ipv4(src="127.0.0.1"), dst="00:00:00:00:00:00", src="00:00:00:00:00:00"))
    assert arrived(file) == [2, 2, 2, OUT]


def test_macs_tell_the_link_and_the_direction() -> None:
    frames = [
        ether(ipv4(), dst=ETH1, src=PEER),  # to us, on eth1
        ether(ipv4(), dst=PEER, src=ETH1),  # forwarded by us: a copy
        ether(ipv4(src=OWN), dst=PEER, src=ETH1),  # sent by us
        ether(ipv4(src=OWN), dst=ETH1, src=PEER),  # somebody borrows our address
        ether(ipv4(src="0.0.0.0"), dst="ff:ff:ff:ff:ff:ff", src=ETH0),  # we ask for an address
        ether(ipv4(src=FAR), dst="ff:ff:ff:ff:ff:ff", src=PEER),  # to all: the way back tells
        ether(ipv4(src=FAR), dst=B, src=PEER),
        ether(ipv4(src="8.8.8.8"), dst=B, src=PEER),  # no way back
    ]
    assert arrived(pcap([(1, f) for f in frames])) == [2, PASSED, OUT, 2, OUT, 2, 2, 1]
    # --link decides, except where the node's own MAC proves that it sent the frame
    assert arrived(pcap([(1, f) for f in frames]), "eth0") == [1, PASSED, OUT, 1, OUT, 1, 1, 1]


def test_without_link_addresses_the_source_tells() -> None:
    file = pcap([(1, ipv4(src=s)) for s in ("10.0.0.7", FAR, OWN, "9.9.9.9")], link_type=101)
    assert arrived(file) == [1, 2, OUT, 1]
    assert arrived(file, "auto") == [1, 2, OUT, 1]
    assert arrived(file, "eth1") == [2, 2, 2, 2]
    with pytest.raises(Refused, match="no link eth7"):
        arrived(file, "eth7")


def test_a_link_shared_mac_does_not_tell() -> None:
    file = pcap([(1, ether(ipv4(src=FAR), dst=ETH0))])
    assert arrived(file, node=Node(eth0=ETH0, eth1=ETH0)) == [2]


def test_cooked_captures_tell_by_number_and_type() -> None:
    packets = [
        sll2(ipv4(src=FAR), ifindex=2),
        sll2(ipv4(src="10.0.0.7"), ifindex=3),
        sll2(ipv4(src="10.0.0.7"), how=4, ifindex=3, src=ETH1),  # forwarded
        sll2(ipv4(src=OWN), how=4, ifindex=3, src=ETH1),  # sent
        sll2(ipv4(src="127.0.0.1"), how=4, ifindex=1, hardware=772, src="00:00:00:00:00:00"),
        sll2(ipv4(src="127.0.0.1"), how=0, ifindex=1, hardware=772, src="00:00:00:00:00:00"),  # and heard again
        sll2(ipv4(src=FAR), ifindex=77),
    ]
    assert arrived(pcap([(1, p) for p in packets], link_type=276)) == [1, 2, PASSED, OUT, OUT, PASSED, 2]
    assert arrived(pcap([(1, sll(ipv4(src=FAR))), (1, sll(ipv4(src=FAR), 4))], link_type=113)) == [2, PASSED]


def test_the_link_named_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([(1, ipv4()), (2, ipv4(src=OWN))], link_type=101))
    capture = read_capture([f"eth1={path}", str(path)])
    assert [int(x) for f in capture for x in arrivals(f, capture, NODE)] == [2, 1, OUT, OUT]  # type: ignore[arg-type]
    capture = read_capture(f"eth9={path}")
    with pytest.raises(Refused, match="no link eth9"):
        [arrivals(f, capture, NODE) for f in capture]  # type: ignore[arg-type]


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nanoseconds", [False, True])
def test_written_pcapng_is_read_back(tmp_path: Path, nanoseconds: bool) -> None:
    path = tmp_path / "out.pcapng"
    with CaptureWriter(path, ["lo", "eth0", "eth1"], nanoseconds) as out:
        for k, (time, packet) in enumerate(PLAIN):
            out.write(("eth0", 2)[k % 2], time, packet, f"path number {k}" * k)
    got = read(path)
    assert got.records == PLAIN
    assert [got.capture.interfaces[k] for k in got.column("iface")] == ["eth0", "eth1", "eth0", "eth1", "eth0"]
    with open(path, "rb") as file:  # another reader takes it, too
        assert [packet for _, packet in dpkt.pcapng.Reader(file)] == PACKETS
    assert b"path number 4" in path.read_bytes()


def test_long_comments_are_cut_between_characters() -> None:
    file = io.BytesIO()
    with CaptureWriter(file, ["eth0"]) as out:
        out.write("eth0", 1, PACKETS[0], "ß" * 40_000)
        out.write("eth0", 2, PACKETS[1], wire=999)
    got = read(file.getvalue())
    assert got.packets == PACKETS[:2] and got.column("wire") == [28, 999] and got.capture.problem is None


@pytest.mark.parametrize("nanoseconds", [False, True])
def test_written_pcap_is_read_back(tmp_path: Path, nanoseconds: bool) -> None:
    path = tmp_path / "out.pcap"
    write_pcap(path, TIMES, PACKETS, nanoseconds=nanoseconds, snaplen=50)
    got = read(path)
    assert got.records == [(t, p[:50]) for t, p in PLAIN]
    assert got.column("wire") == [len(p) for p in PACKETS]
    with open(path, "rb") as file:
        assert [packet for _, packet in dpkt.pcap.Reader(file)] == [p[:50] for p in PACKETS]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be written"):
        CaptureWriter(tmp_path / "missing" / "out.pcapng", ["eth0"])


# ---- read ahead ------------------------------------------------------------------------------------------------------


def told(capture: Capture | Ahead) -> list[object]:
    """Everything that reading it says."""
    out: list[object] = []
    for frames in capture:
        p = frames.parse()
        out += [getattr(p, name).tolist() for name in COLUMNS if name != "at"]
        out += [getattr(frames, name).tolist() for name in frames.columns() if name != "at"]
        out += [p.original(k) for k in range(len(p))]
    problems = [(p.what, p.hint) for p in capture.problems]
    return [*out, capture.counts, problems, capture.interfaces, capture.links, capture.frames, capture.packets]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_process_reads_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CHUNK", 50)
    records = [(k * SECOND, ether(ipv4(k, 40 + k % 90), kind=0x0800 if k % 7 else 0x0806)) for k in range(400)]
    files = [
        pcap(records),
        pcapng(records),
        gzip.compress(pcap(records)),
        pcap(records)[:-9],
        pcap(records[:1]),
        pcap([]),
    ]
    for file in files:
        assert told(Ahead(read_capture(io.BytesIO(file)))) == told(read_capture(io.BytesIO(file)))
    monkeypatch.setattr(ahead, "SLOT", 4096)  # too small for any chunk
    assert told(Ahead(read_capture(io.BytesIO(files[1])))) == told(read_capture(io.BytesIO(files[1])))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_process_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 50)
    read, write = os.pipe()
    os.write(write, pcap([(k, ether(ipv4(k))) for k in range(400)]))
    with open(read, "rb") as source:
        frames = iter(Ahead(read_capture(source)))
        assert len(next(frames)) == 50
        frames.close()  # type: ignore[attr-defined]
    os.close(write)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
