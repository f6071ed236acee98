"""Fragments: put together before tracking, cut again on the way out."""

from __future__ import annotations

import struct

import pytest
from craft import checksum, ends, ip, sums_right, udp
from talk import LINKS, node

from netemu.fragments import Assembly, cut

WHOLE = udp("192.0.2.9", 4000, "10.0.0.2", 53, bytes(range(250)) * 8, frag=0)


def piece(
    start: int, end: int, *, last: bool | None = None, df: bool = False, tos: int = 0, of: bytes = WHOLE
) -> bytes:
    body = of[20:]
    more = end < len(body) if last is None else not last
    word = (0x4000 if df else 0) | (0x2000 if more else 0) | start // 8
    src, dst = (".".join(map(str, of[k : k + 4])) for k in (12, 16))
    return ip(src, dst, 17, body[start:end], ident=77, frag=word, tos=tos)


def pieces(*sizes: int, df: bool = False, of: bytes = WHOLE) -> list[bytes]:
    ends_ = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [piece(a, b, df=df, of=of) for a, b in zip([0, *ends_], ends_, strict=False)]


def shape(packet: bytes) -> tuple[int, int, bool]:
    """(offset, length, more) of a fragment."""
    (word,) = struct.unpack_from("!H", packet, 6)
    return (word & 0x1FFF) * 8, len(packet), bool(word & 0x2000)


def travel(parts: list[bytes], links: str = LINKS) -> tuple[list[str], list[bytes]]:
    """The fates of fragments that come in on eth0, and what left."""
    n = node(links=links)
    journeys = [n.send(p, "eth0", 0) for p in parts]
    return [j.fate for j in journeys], [b for j in journeys for _, b in j.out]


class TestTogether:
    def test_nobody_sees_the_pieces(self) -> None:
        n = node("raw PREROUTING -j ACCEPT\nfilter FORWARD -m conntrack --ctstate NEW -p udp --dport 53 -j ACCEPT")
        first, second, third = (n.send(p, "eth0", 0) for p in pieces(1000, 504, 504))
        assert [str(s) for s in first.steps] == ["defrag: waits for the rest"]
        assert (first.fate, second.fate, third.fate) == ("held", "held", "forwarded")
        assert "[1:2028] -A FORWARD" in n.dump("iptables-save")
        assert "defrag: reassembled" in map(str, third.steps)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
    def test_they_leave_as_they_came(self, order: tuple[int, ...]) -> None:
        parts = pieces(1000, 504, 504)
        fates, out = travel([parts[k] for k in order])
        assert fates == ["held", "held", "forwarded"]
        assert [shape(p) for p in out] == [(0, 1020, True), (1000, 524, True), (1504, 524, False)]
        assert b"".join(p[20:] for p in out) == WHOLE[20:]
        assert not any(checksum(p[:20]) for p in out)

    def test_unless_they_do_not_fit_any_more(self) -> None:
        small = LINKS.replace('name = "eth1"', 'name = "eth1"\nmtu = 800')
        _, out = travel(pieces(1000, 504, 504), small)
        assert [shape(p) for p in out] == [(0, 796, True), (776, 796, True), (1552, 476, False)]

    def test_what_must_not_be_cut_is_told(self) -> None:
        small = LINKS.replace('name = "eth1"', 'name = "eth1"\nmtu = 800')
        fates, ((told),) = travel(pieces(1000, 504, 504, df=True), small)
        assert fates[-1] == "rejected"
        assert (told[20], told[21], struct.unpack_from("!H", told, 26)[0]) == (3, 4, 800)
        fates, out = travel(pieces(504, 504, 504, 496, df=True), small)
        assert fates[-1] == "forwarded" and len(out) == 4, "every piece fits: the whole does not matter"

    def test_congestion_of_one_is_congestion_of_all(self) -> None:
        _, out = travel([piece(0, 1000, tos=2), piece(1000, 2008, tos=3)])
        assert [p[1] for p in out] == [3, 3]
        fates, out = travel([piece(0, 1000, tos=0), piece(1000, 2008, tos=3)])
        assert fates == ["held", "dropped"] and not out

    def test_a_piece_within_what_came_in_one_go_is_a_duplicate(self) -> None:
        a, b, *rest = pieces(504, 504, 504, 496)
        fates, out = travel([a, b, piece(200, 400), *rest])
        assert fates == ["held", "held", "dropped", "held", "forwarded"] and len(out) == 4
        assert travel([a, b, piece(400, 600), *rest])[0][-1] == "forwarded"

    def test_any_other_overlap_loses_all(self) -> None:
        a, b, *rest = pieces(504, 504, 504, 496)
        fates, out = travel([b, a, piece(400, 600), *rest])
        assert fates == ["held", "held", "dropped", "held", "held"] and not out

    def test_late_pieces_begin_anew(self) -> None:
        n = node(sysctl={"net.ipv4.ipfrag_time": 5})
        a, b = pieces(1000, 1008)
        assert n.send(a, "eth0", 0).fate == "held"
        assert n.send(b, "eth0", 5).fate == "held"
        assert n.send(a, "eth0", 6).fate == "forwarded"

    def test_a_ping_of_death_does_not_kill(self) -> None:
        n = node()
        n.send(ip("192.0.2.9", "10.0.0.2", 17, bytes(65504), ident=7, frag=0x2000), "eth0", 0)
        last = ip("192.0.2.9", "10.0.0.2", 17, bytes(1000), ident=7, frag=65504 // 8)
        assert n.send(last, "eth0", 0).reason == "fragments of more than 65535 bytes"

    def test_empty_pieces_are_no_pieces(self) -> None:
        assembly = Assembly(0)
        assert assembly.add(piece(0, 4, last=False)) is None and assembly.broken == "an empty fragment"

    def test_bytes_behind_the_last_one(self) -> None:
        assembly = Assembly(0)
        assembly.add(piece(1000, 1500, last=True))
        assembly.add(piece(1504, 2000))
        assert assembly.broken

    def test_what_the_node_sends_in_pieces_waits_as_well(self) -> None:
        n = node()
        own = udp("10.0.0.1", 4000, "10.0.0.2", 53, bytes(2000), frag=0)
        assert [n.send(p, None, 0).fate for p in pieces(1000, 1008, of=own)] == ["held", "forwarded"]


class TestWithoutTracking:
    def test_fragments_pass_one_by_one(self) -> None:
        n = node("filter FORWARD -p udp --dport 53 -j ACCEPT\nfilter FORWARD -f -j ACCEPT")
        assert [n.send(p, "eth0", 0).fate for p in pieces(1000, 1008)] == ["forwarded", "forwarded"]
        assert "[1:1020] -A FORWARD -p udp" in n.dump("iptables-save")

    def test_but_are_put_together_for_a_local_process(self) -> None:
        n = node("filter INPUT -p udp --dport 53 -j ACCEPT")
        mine = udp("192.0.2.9", 4000, "198.51.100.1", 53, bytes(2000), frag=0)
        assert [n.send(p, "eth0", 0).fate for p in pieces(1000, 1008, of=mine)] == ["held", "delivered"]
        assert "[1:2028] -A INPUT" in n.dump("iptables-save")

    def test_too_long_a_packet_is_cut(self) -> None:
        ((_, a), (_, b)) = node("filter FORWARD -j ACCEPT").send(WHOLE, "eth0", 0).out
        assert [shape(a), shape(b)] == [(0, 1500, True), (1480, 548, False)]


class TestCut:
    def test_each_piece_is_at_most_so_long_and_a_multiple_of_eight(self) -> None:
        out = cut(WHOLE, 333)
        assert all(len(p) <= 333 and len(p[20:]) % 8 == 0 for p in out[:-1])
        assert b"".join(p[20:] for p in out) == WHOLE[20:]
        assembly = Assembly(0)
        assert [assembly.add(p) for p in out][-1] == WHOLE

    def test_options_that_are_not_to_be_copied_become_no_ops(self) -> None:
        options = bytes([7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 0])
        head = bytearray(WHOLE[:20]) + options
        head[0] = 0x48
        struct.pack_into("!H", head, 2, len(WHOLE) + 12)
        first, *rest = cut(bytes(head) + WHOLE[20:], 1000)
        assert first[20:32] == options
        assert all(p[20:32] == b"\1" * 7 + options[7:] for p in rest)


def test_what_is_reassembled_and_translated_has_right_sums() -> None:
    n = node("nat PREROUTING -p udp --dport 53 -j DNAT --to-destination 10.0.0.2:5353")
    mine = udp("192.0.2.9", 4000, "198.51.100.1", 53, bytes(range(200)) * 10, frag=0)
    out = [b for p in pieces(1000, 1008, of=mine) for _, b in n.send(p, "eth0", 0).out]
    assembly = Assembly(0)
    whole = [assembly.add(p) for p in out][-1]
    assert whole is not None and sums_right(whole) and ends(whole)[3:] == ("10.0.0.2", 5353)
