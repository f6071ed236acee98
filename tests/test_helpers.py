"""Helpers: expectations, texts that NAT rewrites, and numbers that move; whatever the length of runs."""

from __future__ import annotations

import io
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from craft import ends, tcp, udp
from hypothesis import given
from hypothesis import strategies as st
from test_laws import dumps, told
from worlds import Events, as_capture

from netemu import Journey, Node, Unsupported, read_capture
from netemu.helpers import Shift

CLIENT, SERVER, GATE = "10.0.0.5", "192.0.2.7", "198.51.100.1"
NODE = """
kernel = "{kernel}"
[[link]]
name = "eth0"
addresses = ["198.51.100.1/24"]
[[link]]
name = "lan0"
addresses = ["10.0.0.1/24"]
[[route]]
to = "default"
via = "198.51.100.254"
dev = "eth0"
[sysctl]
"net.netfilter.nf_conntrack_acct" = 1
"""
RULES = """*raw
-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp
-A PREROUTING -p udp -m udp --dport 69 -j CT --helper tftp
-A PREROUTING -p tcp -m tcp --dport 6667 -j CT --helper irc
COMMIT
*nat
-A PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.6
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m multiport --dports 21,6667 -j ACCEPT
-A FORWARD -p udp --dport 69 -j ACCEPT
COMMIT
"""


def node(kernel: str = "6.18", rules: str = RULES, conntrack: str = "") -> Node:
    with tempfile.TemporaryDirectory() as d:
        Path(d, "node.toml").write_text(NODE.format(kernel=kernel))
        Path(d, "iptables.save").write_text(rules)
        Path(d, "conntrack.list").write_text(conntrack)
        return Node.load(d, seed=5)


TEXTS = [
    b"PORT 10,0,0,5,4,1\r\n", b"EPRT |1|10.0.0.5|1025|\r\n", b"PORT 10,0,0,5,4,2\r\n", b"USER me\r\n", b"",
    b"227 Passive (192,0,2,7,7,208)\r\n", b"229 Passive (|||2000|)\r\n", b"227 Passive (10,0,0,6,7,208)\r\n",
    b"PRIVMSG you :\x01DCC CHAT chat 167772165 1025\x01\r\n", b"PO", b"200 ok\r\n", b"half a li",
]  # fmt: skip


@dataclass
class Ends:
    """One TCP conversation, as its ends count."""

    seq: int = 1000
    ack: int = 0


def converse(n: Node, choices: list[int]) -> tuple[Events, list[Journey]]:
    """Control connections, what they announce, and connections that come for it or without being asked."""
    events, journeys = Events(), []
    talks: dict[tuple[str, str, int, str, int], int] = {}

    def send(at: float, link: str, packet: bytes) -> Journey:
        events.append((at, link, packet))
        journeys.append(n.send(packet, link, at))
        return journeys[-1]

    left: list[bytes] = []
    for k, c in enumerate(choices):
        at, kind, c = round(0.001 * k, 3), c % 8, c // 8
        port = 5000 + c % 2
        if kind == 0:
            target, dport = ((SERVER, 21), (SERVER, 6667))[c // 2 % 2]
            journey = send(at, "lan0", tcp(CLIENT, port, target, dport, "S", 1000))
        elif kind == 1:
            journey = send(at, "eth0", tcp(SERVER, port, GATE, 21, "S", 1000))
        elif kind == 2:
            journey = send(at, "lan0", udp(CLIENT, port, SERVER, 69, b"\0\1boot\0octet\0"))
        elif kind == 3 and left:
            sent = left[-1 - c % min(len(left), 5)]
            proto, src, sport, dst, dport = ends(sent)
            link = "lan0" if dst.startswith("10.") else "eth0"
            if proto == 17:
                journey = send(at, link, udp(dst, 7000 + c % 2, src, sport, b"\0\3\0\1data"))
            else:
                flags, seq = ("SA", 5000) if sent[33] & 2 else ("A", talks.get((link, dst, dport, src, sport), 5001))
                if seq == 5000 and sent[33] & 16:
                    flags, seq = "A", 1001
                text = b"" if "S" in flags else TEXTS[c // 5 % len(TEXTS)]
                got = int.from_bytes(sent[24:28], "big") + len(sent) - 40 + (sent[33] & 2) // 2 * -7
                journey = send(at, link, tcp(dst, dport, src, sport, flags, seq, got & 0xFFFFFFFF, data=text))
                talks[link, dst, dport, src, sport] = seq + len(text) + ("S" in flags)
        elif kind == 4:
            journey = send(at, "eth0", tcp(SERVER, 20, GATE, 1025 + c % 2, "S", 9000))
        elif kind == 5:
            journey = send(at, "eth0", tcp(SERVER, 6000 + c % 2, GATE, 2000, "S", 9000))
        else:
            journey = send(at, "lan0", udp(CLIENT, 4000 + c % 3, SERVER, 53))
        left += [packet for _, packet in journey.own]
    return events, journeys


@given(st.lists(st.integers(0, 1 << 12), min_size=4, max_size=40), st.sampled_from(["6.1", "6.18"]))
def test_chunking_is_invisible_to_helpers(choices: list[int], kernel: str) -> None:
    one = node(kernel)
    events, sent = converse(one, choices)
    for run_length in (7, None):
        many = node(kernel)
        journeys = many.replay(read_capture(as_capture(many, events)), run_length)
        assert [told(j) for j in sent] == [told(j) for j in journeys]
        assert dumps(one) == dumps(many)
        assert one.dump("expectations") == many.dump("expectations")
        many.check()


def test_numbers_move_behind_the_place_only() -> None:
    shift = Shift()
    shift.longer(1000, 5)
    assert [shift.of(n) for n in (900, 1000, 1001)] == [0, 0, 5]
    shift.longer(1000, 5)  # the same segment once more
    assert shift.of(1001) == 5
    shift.longer(2000, -2)
    assert [shift.of(n) for n in (2000, 2001)] == [5, 3]
    assert [shift.back(n) for n in (2005, 2006)] == [5, 3]
    shift.longer(0xFFFFFFF0, 4)  # before the place, mod 2^32
    assert (shift.position, shift.after) == (2000, 3)


LISTED = """ipv4 2 tcp 6 300 ESTABLISHED src=10.0.0.5 dst=192.0.2.7 sport=5000 dport=21 src=192.0.2.7 dst=198.51.100.1 \
sport=21 dport=5000 [ASSURED] mark=0 helper=ftp use=1
""".replace("\\\n", "")


def test_a_connection_of_the_starting_table_is_looked_into() -> None:
    n = node(conntrack=LISTED)
    journey = n.send(tcp(CLIENT, 5000, SERVER, 21, "A", 1, 1, data=TEXTS[0]), "lan0")
    (text,) = [r for r in journey.rewrites if r.field == "text"]
    assert (text.old, text.new) == ("10,0,0,5,4,1", "198,51,100,1,4,1")
    assert n.send(tcp(SERVER, 20, GATE, 1025, "S"), "eth0").state == "RELATED"
    assert "helper=ftp" in n.dump("conntrack")


def test_a_helper_reads_no_text_that_was_not_captured() -> None:
    n = node(conntrack=LISTED)
    packet = tcp(CLIENT, 5000, SERVER, 21, "A", 1, 1, data=TEXTS[0])
    pcap = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    pcap += struct.pack("<IIII", 1, 0, 50, len(packet)) + packet[:50]
    (journey,) = n.replay(read_capture(io.BytesIO(pcap)), link="lan0")
    assert journey.fate == "forwarded" and not n.dump("expectations")
    assert any("captured whole" in caveat for caveat in n.caveats)


def test_a_table_with_expectations_goes_on() -> None:
    listed = LISTED.replace("dst=198.51.100.1", "dst=10.0.0.5")
    n = node(conntrack=listed, rules=RULES.replace("-j MASQUERADE", "-j ACCEPT"))
    n.send(tcp(CLIENT, 5000, SERVER, 21, "A", 1, 1, data=TEXTS[0]), "lan0", at=1.0)
    dumped = n.dump("conntrack") + n.dump("expectations")
    assert "class=0 helper=ftp" in dumped
    again = node(conntrack=dumped)
    assert again.dump("expectations") == n.dump("expectations")
    assert again.send(tcp(SERVER, 20, CLIENT, 1025, "S"), "eth0").state == "RELATED"
    with pytest.raises(Unsupported, match="helper pptp"):
        node(conntrack=LISTED.replace("helper=ftp", "helper=pptp"))
    with pytest.raises(Unsupported, match="translated connection"):
        node(conntrack=LISTED + dumped.splitlines()[-1] + "\n")


def test_expectations_end_with_their_time_and_their_master() -> None:
    n = node(conntrack=LISTED)
    say = tcp(CLIENT, 5000, SERVER, 21, "A", 1, 1, data=TEXTS[0])
    n.send(say, "lan0", at=1.0)
    assert n.dump("expectations").startswith("300 proto=6 src=192.0.2.7 dst=198.51.100.1 sport=0 dport=1025 ")
    n.advance(at=302.0)
    assert not n.dump("expectations")
    n = node(conntrack=LISTED)
    n.send(say, "lan0", at=1.0)
    n.run("conntrack -D -s 10.0.0.5")
    assert not n.dump("expectations")
    assert n.send(tcp(SERVER, 20, GATE, 1025, "S"), "eth0").state == "NEW"


def test_a_reset_ends_one_of_two_connections_that_are_looked_into() -> None:
    n = node()
    for port in (5000, 5001):
        n.send(tcp(CLIENT, port, SERVER, 21, "S", 1000), "lan0", 0.0)
    assert n.send(tcp(CLIENT, 5000, SERVER, 21, "R", 1001), "lan0", 0.1).fate == "forwarded"
    assert n.dump("conntrack").count("helper=ftp") == 1
