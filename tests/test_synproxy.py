"""SYNPROXY: cookies, what they remember, who gets through. What Linux did is in kernel/filter/synproxy-*.case."""

from __future__ import annotations

import struct

import pytest
from craft import sums_right, tcp

from netemu.model import AddressSpec, LinkSpec, Model, Text
from netemu.node import Journey, Node
from netemu.synproxy import SIZES, Said

CLIENT, SERVER, NODE = "198.51.100.7", "10.0.0.5", "10.0.0.1"
RULES = """*raw
-A PREROUTING -p tcp -m tcp --dport 80 --syn -j CT --notrack
COMMIT
*filter
-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --mss 1460
-A FORWARD -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
COMMIT
"""  # noqa: E501


def firewall(seed: int = 1) -> Node:
    model = Model(
        links=[LinkSpec("eth0", [AddressSpec("198.51.100.1/24")]), LinkSpec("lan0", [AddressSpec(f"{NODE}/24")])]
    )
    model.sysctl["net.netfilter.nf_conntrack_tcp_loose"] = 0
    model.texts["iptables.save"] = Text(RULES, "iptables.save")
    return Node(model, seed)


def mss(size: int) -> bytes:
    return struct.pack("!BBH", 2, 4, size)


def stamps(stamp: int, echo: int) -> bytes:
    return b"\1\1" + struct.pack("!BBII", 8, 10, stamp, echo)


def header(packet: bytes) -> tuple[int, int, int, Said]:
    """(number, acknowledgement, flags, options) of a TCP packet."""
    seq, ack, bits = struct.unpack_from("!IIH", packet, 24)
    said = Said.read(packet[20:])
    assert said is not None
    return seq, ack, bits & 0x1FF, said


def greeted(node: Node, options: bytes, at: float = 1.0, to: str = SERVER) -> tuple[int, Said]:
    """(cookie, options) of the answer to a SYN."""
    journey = node.send(tcp(CLIENT, 4000, to, 80, "S", 1000, options=options), "eth0", at)
    assert journey.fate == "rejected" and "SYNPROXY: answered with a cookie" in (journey.reason or "")
    ((link, packet),) = journey.out
    cookie, ack, flags, said = header(packet)
    assert (link, ack, flags) == ("eth0", 1001, 0x12) and sums_right(packet)
    return cookie, said


def acknowledged(node: Node, number: int, at: float = 1.1, options: bytes = b"", to: str = SERVER) -> Journey:
    return node.send(tcp(CLIENT, 4000, to, 80, "A", 1001, number, options=options), "eth0", at)


@pytest.mark.parametrize("size", [0, 535, 536, 1299, 1300, 1400, 1440, 1459, 1460, 9000])
def test_a_cookie_remembers_the_clients_segment_size(size: int) -> None:
    node = firewall()
    cookie, _ = greeted(node, mss(size) if size else b"")
    ((link, syn),) = acknowledged(node, cookie + 1).out
    seq, ack, flags, said = header(syn)
    assert (link, seq, ack, flags) == ("lan0", 1000, cookie, 2) and sums_right(syn)
    assert said.mss == max(x for x in SIZES if x <= max(size, 536)) and said.on == {"mss"}


def test_a_timestamp_remembers_the_rest() -> None:
    node = firewall()
    offered = mss(1460) + b"\4\2" + stamps(5, 0)[2:] + b"\1\3\3\x0b"
    cookie, said = greeted(node, offered)
    assert said.on == {"mss", "sack", "timestamp", "wscale"} and (said.mss, said.wscale, said.echo) == (1460, 7, 5)
    ((_, syn),) = acknowledged(node, cookie + 1, options=stamps(6, said.stamp)).out
    asked = header(syn)[3]
    assert asked.on == said.on and (asked.wscale, asked.stamp, asked.echo) == (11, 6, said.stamp)


@pytest.mark.parametrize(("later", "opens"), [(0.1, True), (59.0, True), (119.0, False), (600.0, False)])
def test_a_cookie_lasts_for_the_minute_and_the_next(later: float, opens: bool) -> None:
    node = firewall()
    cookie, _ = greeted(node, mss(1460), at=30.0)
    assert bool(acknowledged(node, cookie + 1, at=30.0 + later).out) == opens


@pytest.mark.parametrize("by", [2, 1 << 24, -(1 << 24), 12345])
def test_another_number_opens_nothing(by: int) -> None:
    node = firewall()
    cookie, _ = greeted(node, mss(1460))
    journey = acknowledged(node, (cookie + by) & 0xFFFFFFFF)
    assert journey.fate == "dropped" and not journey.out
    assert journey.reason == "filter:FORWARD:rule:1 SYNPROXY: not a cookie of this node"
    assert node.dump("conntrack") == ""


def test_cookies_are_the_seeds() -> None:
    first, again, other = (greeted(firewall(seed), mss(1460))[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_connection_of_its_own_to_the_server() -> None:
    node = firewall()
    cookie, _ = greeted(node, mss(1460))
    assert node.dump("conntrack") == ""
    acknowledged(node, cookie + 1)
    assert "SYN_SENT" in node.dump("conntrack")
    told = node.send(tcp(SERVER, 80, CLIENT, 4000, "SA", 70_000, 1001, options=mss(1460)), "lan0", 1.2)
    assert [(link, header(b)[:3]) for link, b in sorted(told.out)] == [
        ("eth0", (cookie + 1, 1001, 16)), ("lan0", (1001, 70_001, 16)),
    ]  # fmt: skip
    asked = node.send(tcp(CLIENT, 4000, SERVER, 80, "PA", 1001, cookie + 1, data=b"GET"), "eth0", 1.3)
    assert header(asked.out[0][1])[:2] == (1001, 70_001) and sums_right(asked.out[0][1])
    back = node.send(tcp(SERVER, 80, CLIENT, 4000, "PA", 70_001, 1004, data=b"OK"), "lan0", 1.4)
    assert header(back.out[0][1])[:2] == (cookie + 1, 1004) and sums_right(back.out[0][1])
    assert "[ASSURED]" in node.dump("conntrack")
    node.check()


def test_the_node_itself_is_the_server() -> None:
    node = firewall()
    cookie, _ = greeted(node, mss(1460), to=NODE)
    journey = acknowledged(node, cookie + 1, to=NODE)
    (syn,) = journey.caused
    assert syn.fate == "delivered" and [str(s) for s in syn.steps][-1] == "local: delivered"
    told = node.send(tcp(NODE, 80, CLIENT, 4000, "SA", 70_000, 1001, options=mss(1460)), None, 1.2)
    assert [(link, header(b)[:3]) for link, b in told.out] == [("eth0", (cookie + 1, 1001, 16))]
    assert [c.fate for c in told.caused] == ["delivered", "forwarded"]


def test_damaged_segments_die() -> None:
    node = firewall()
    broken = bytearray(tcp(CLIENT, 4000, SERVER, 80, "S", 1000))
    broken[36] ^= 1
    journey = node.send(bytes(broken), "eth0", 1.0)
    assert journey.fate == "dropped" and journey.reason == "filter:FORWARD:rule:1 SYNPROXY: damaged"
    assert node.send(tcp(CLIENT, 4000, SERVER, 80, "R", 1000), "eth0", 1.0).fate == "forwarded"


@pytest.mark.parametrize(
    ("options", "on"),
    [
        (b"", set()),
        (b"\2\4\5\xb4\1\3\3\x0f", {"mss", "wscale"}),
        (b"\2\3\5\xb4", set()),
        (b"\0\0\0\0\2\4\5\xb4", set()),
        (b"\1\1\4\2" + stamps(1, 2), {"sack", "timestamp"}),
        (b"\x1e\x0a\0\0", set()),
    ],
)
def test_options_are_read_as_linux_reads_them(options: bytes, on: set[str]) -> None:
    segment = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, (20 + len(options)) << 2, 2, 0, 0, 0) + options
    said = Said.read(segment)
    assert said is not None and said.on == on and said.wscale <= 14
    assert Said.read(segment[:-1]) is None
