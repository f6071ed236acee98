"""Connections: what belongs together, when it is forgotten, what is not tracked at all, and how it prints."""

from __future__ import annotations

import struct
from typing import ClassVar

import numpy as np
import pytest
from craft import checksum, chunk, dccp, error, icmp, ip, sctp, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st
from talk import TRACKING, node, says, table

from netemu import Node, Refused
from netemu.conntrack import SIDES, zone_id
from netemu.packets import UDP

OPEN = """
    0.0  eth0 in   192.0.2.9:4000 > 10.0.0.2:80     S   seq=1000
         eth1 out  192.0.2.9:4000 > 10.0.0.2:80     S
         NEW
    0.1  eth1 in   10.0.0.2:80    > 192.0.2.9:4000  S.  seq=5000 ack=1001
         eth0 out  10.0.0.2:80    > 192.0.2.9:4000  S.
         ESTABLISHED
    0.2  eth0 in   192.0.2.9:4000 > 10.0.0.2:80     .   seq=1001 ack=5001
         eth1 out  192.0.2.9:4000 > 10.0.0.2:80     .
         ESTABLISHED
"""


def seconds(n: Node) -> list[int]:
    return [int(line.split()[2]) for line in table(n)]


def test_a_handshake_as_conntrack_lists_it() -> None:
    n = node()
    says(n, OPEN)
    assert table(n) == [
        "tcp      6 432000 ESTABLISHED src=192.0.2.9 dst=10.0.0.2 sport=4000 dport=80 "
        "src=10.0.0.2 dst=192.0.2.9 sport=80 dport=4000 [ASSURED] mark=0 use=1"
    ]


def test_what_nobody_answered_is_unreplied() -> None:
    n = node()
    says(n, "0 eth0 in 192.0.2.9:4000 > 10.0.0.2:53 udp\n eth1 out 192.0.2.9:4000 > 10.0.0.2:53 udp")
    assert table(n) == [
        "udp      17 30 src=192.0.2.9 dst=10.0.0.2 sport=4000 dport=53 [UNREPLIED] "
        "src=10.0.0.2 dst=192.0.2.9 sport=53 dport=4000 mark=0 use=1"
    ]


def test_icmp_prints_type_code_and_id() -> None:
    n = node()
    n.send(icmp("192.0.2.9", "10.0.0.2", number=99), "eth0", 0)
    assert table(n) == [
        "icmp     1 30 src=192.0.2.9 dst=10.0.0.2 type=8 code=0 id=99 [UNREPLIED] "
        "src=10.0.0.2 dst=192.0.2.9 type=0 code=0 id=99 mark=0 use=1"
    ]


def test_unknown_protocols_have_addresses_only() -> None:
    n = node()
    n.send(ip("192.0.2.9", "10.0.0.2", 99, b"12345678"), "eth0", 0)
    assert table(n) == [
        "unknown  99 600 src=192.0.2.9 dst=10.0.0.2 [UNREPLIED] src=10.0.0.2 dst=192.0.2.9 mark=0 use=1"
    ]


def test_dccp_has_ports_until_linux_forgot_it() -> None:
    request = dccp("192.0.2.9", 4000, "10.0.0.2", 80, "request")
    for kernel, ports in (("6.1", "sport=4000 dport=80 "), ("6.18", "sport=0 dport=0 ")):
        n = node(kernel=kernel)
        n.send(request, "eth0", 0)
        assert f"src=192.0.2.9 dst=10.0.0.2 {ports}[UNREPLIED]" in table(n)[0]


def test_states_of_rarer_protocols_come_from_a_dump() -> None:
    said = (
        "sctp     132 209 ESTABLISHED src=192.0.2.9 dst=10.0.0.2 sport=4000 dport=80 src=10.0.0.2 dst=192.0.2.9 "
        "sport=80 dport=4000 [ASSURED] mark=0 use=1",
        "gre      47 29 src=192.0.2.9 dst=10.0.0.2 srckey=0x0 dstkey=0x4d [UNREPLIED] src=10.0.0.2 dst=192.0.2.9 "
        "srckey=0x4d dstkey=0x0 mark=0 use=1",
        "dccp     33 239 REQUEST src=192.0.2.9 dst=10.0.0.2 sport=5000 dport=80 [UNREPLIED] src=10.0.0.2 dst=192.0.2.9 "
        "sport=80 dport=5000 mark=0 use=1",
    )
    n = node(kernel="6.1", conntrack_list="\n".join(said))
    assert sorted(table(n)) == sorted(said)
    to, back = ("192.0.2.9", 4000, "10.0.0.2", 80), ("10.0.0.2", 80, "192.0.2.9", 4000)
    states = [
        n.send(packet, link, 0.1).state
        for packet, link in (
            (sctp(*to, 7, chunk("data")), "eth0"),  # no dump tells the tags: what comes first is right
            (sctp(*to, 8, chunk("data")), "eth0"),
            (sctp(*back, 9, chunk("abort", flags=1)), "eth1"),
            (sctp(*back, 5, chunk("data")), "eth1"),
            (sctp(*to, 7, chunk("abort")), "eth0"),
            (dccp("10.0.0.2", 80, "192.0.2.9", 5000, "response"), "eth1"),
        )
    ]
    assert states == ["ESTABLISHED", "INVALID", "INVALID", "ESTABLISHED", "ESTABLISHED", "ESTABLISHED"]


class TestTimers:
    def test_udp_lives_30_seconds_and_120_once_both_have_talked_for_two(self) -> None:
        n = node()
        to, back = udp("192.0.2.9", 4000, "10.0.0.2", 53), udp("10.0.0.2", 53, "192.0.2.9", 4000)
        n.send(to, "eth0", 0)
        n.send(back, "eth1", 1)  # the first answer still counts as not answered
        assert seconds(n) == [30]
        n.send(to, "eth0", 2)  # not yet two seconds over
        assert seconds(n) == [30] and "ASSURED" not in table(n)[0]
        n.send(to, "eth0", 2.1)
        assert seconds(n) == [120] and "ASSURED" in table(n)[0]

    def test_icmp_lives_30_seconds_after_each_query(self) -> None:
        n = node()
        for at in (0, 10):
            n.send(icmp("192.0.2.9", "10.0.0.2"), "eth0", at)
        assert seconds(n) == [30]
        n.advance(39.5)
        assert seconds(n) == [0]
        n.advance(40)
        assert table(n) == []

    def test_gre_lives_30_and_180_once_answered(self) -> None:
        n = node()
        to, back = ip("192.0.2.9", "10.0.0.2", 47, bytes(8)), ip("10.0.0.2", "192.0.2.9", 47, bytes(8))
        n.send(to, "eth0", 0)
        n.send(back, "eth1", 0)
        assert seconds(n) == [30]
        n.send(to, "eth0", 0)
        assert seconds(n) == [180] and "srckey=0x0 dstkey=0x0" in table(n)[0]

    def test_an_answer_after_the_deadline_begins_anew(self) -> None:
        says(node(), """
            0   eth0 in   192.0.2.9:4000 > 10.0.0.2:53 udp
                eth1 out  192.0.2.9:4000 > 10.0.0.2:53 udp
            29.9 eth1 in  10.0.0.2:53 > 192.0.2.9:4000 udp
                eth0 out  10.0.0.2:53 > 192.0.2.9:4000 udp
                ESTABLISHED
            59.9 eth1 in  10.0.0.2:53 > 192.0.2.9:4000 udp
                eth0 out  10.0.0.2:53 > 192.0.2.9:4000 udp
                NEW
        """)  # fmt: skip

    def test_a_changed_sysctl_holds_from_the_next_packet_on(self) -> None:
        n = node()
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        n.run("sysctl -w net.netfilter.nf_conntrack_udp_timeout=5")
        assert seconds(n) == [30]
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        assert seconds(n) == [5]

    def test_what_has_expired_is_swept_away(self) -> None:
        n = node()
        for port in range(100):
            n.send(udp("192.0.2.9", 4000 + port, "10.0.0.2", 53), "eth0", 0)
        n.send(udp("192.0.2.9", 3999, "10.0.0.2", 53), "eth0", 31)
        assert len(n.conntrack) == 1
        n.check()


class TestWhatDies:
    def test_a_connection_whose_first_packet_died_never_was(self) -> None:
        says(node("filter FORWARD -m conntrack --ctstate NEW -j DROP"), """
            0  eth0 in  192.0.2.9:4000 > 10.0.0.2:80 S
               NEW
            0  eth0 in  192.0.2.9:4000 > 10.0.0.2:80 S
               NEW
            0  eth1 in  10.0.0.2:80 > 192.0.2.9:4000 S.
               INVALID
               eth0 out 10.0.0.2:80 > 192.0.2.9:4000 S.
        """)  # fmt: skip

    def test_untracked_packets_leave_no_trace(self) -> None:
        n = node("raw PREROUTING -j CT --notrack\nfilter FORWARD -m conntrack --ctstate UNTRACKED")
        journey = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        assert journey.fate == "forwarded" and table(n) == []
        assert "[1:36] -A FORWARD" in n.dump("iptables-save")

    def test_without_a_rule_that_asks_nothing_is_tracked(self) -> None:
        n = node("filter FORWARD -j ACCEPT")
        assert n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0).state is None
        assert table(n) == []
        n.run("iptables -A FORWARD -m state --state NEW")
        assert n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0).state == "NEW"


def broken(packet: bytes, at: int) -> bytes:
    out = bytearray(packet)
    out[at] ^= 0x55
    return bytes(out)


class TestInvalid:
    SHORT_UDP = ip("192.0.2.9", "10.0.0.2", 17, struct.pack("!HHHH", 4000, 53, 4, 0))
    LONG_UDP = ip("192.0.2.9", "10.0.0.2", 17, struct.pack("!HHHH", 4000, 53, 99, 0))
    CUT_TCP = ip("192.0.2.9", "10.0.0.2", 6, struct.pack("!HHII", 4000, 80, 1, 0))

    @pytest.mark.parametrize(
        "packet",
        [
            broken(tcp("192.0.2.9", 4000, "10.0.0.2", 80), 36),
            broken(udp("192.0.2.9", 4000, "10.0.0.2", 53), 30),
            broken(icmp("192.0.2.9", "10.0.0.2"), 30),
            SHORT_UDP,
            LONG_UDP,
            CUT_TCP,
            tcp("192.0.2.9", 4000, "10.0.0.2", 80, "SF"),
            tcp("192.0.2.9", 4000, "10.0.0.2", 80, ""),
            tcp("192.0.2.9", 4000, "10.0.0.2", 80, "SA"),
            tcp("192.0.2.9", 4000, "10.0.0.2", 80, "R"),
            icmp("192.0.2.9", "10.0.0.2", 0),
            icmp("192.0.2.9", "10.0.0.2", 14),
            icmp("192.0.2.9", "10.0.0.2", 9),
            icmp("192.0.2.9", "10.0.0.2", 40),
            error("192.0.2.9", "10.0.0.2", udp("10.0.0.2", 1, "192.0.2.9", 2)),
        ],
        ids=[
            "tcp checksum", "udp checksum", "icmp checksum", "udp too short", "udp too long", "tcp cut",
            "syn fin", "no flags", "syn ack first", "rst first", "echo reply first", "timestamp reply first",
            "advertisement",
            "icmp type 40", "error about nothing",
        ],
    )  # fmt: skip
    def test_goes_on_without_a_connection(self, packet: bytes) -> None:
        n = node()
        journey = n.send(packet, "eth0", 0)
        assert (journey.state, journey.fate) == ("INVALID", "forwarded")
        assert table(n) == []
        assert "[1:" in n.dump("iptables-save").split("--ctstate INVALID")[0].splitlines()[-1]

    def test_the_checksum_of_the_nodes_own_packets_is_not_looked_at(self) -> None:
        n = node("filter OUTPUT -m conntrack --ctstate INVALID -j DROP")
        assert n.send(broken(udp("10.0.0.1", 4000, "10.0.0.2", 53), 30), None, 0).fate == "forwarded"

    def test_nor_any_with_the_sysctl_off(self) -> None:
        n = node(sysctl={"net.netfilter.nf_conntrack_checksum": 0})
        assert n.send(broken(udp("192.0.2.9", 4000, "10.0.0.2", 53), 30), "eth0", 0).state == "NEW"

    def test_udp_without_a_checksum_is_fine(self) -> None:
        packet = bytearray(udp("192.0.2.9", 4000, "10.0.0.2", 53))
        packet[26:28] = b"\0\0"
        assert node().send(bytes(packet), "eth0", 0).state == "NEW"

    def test_udp_lite_may_cover_all_by_saying_nothing(self) -> None:
        lite = ip("192.0.2.9", "10.0.0.2", 136, struct.pack("!HHHH", 4000, 53, 0, 1) + b"12345678")
        n = node(sysctl={"net.netfilter.nf_conntrack_checksum": 0})
        assert n.send(lite, "eth0", 0).state == "NEW"
        assert n.send(lite[:24] + b"\0\7" + lite[26:], "eth0", 0).state == "INVALID"


class TestErrors:
    def test_an_error_belongs_to_what_it_is_about(self) -> None:
        n = node()
        to, back = udp("192.0.2.9", 4000, "10.0.0.2", 53), udp("10.0.0.2", 53, "192.0.2.9", 4000)
        n.send(to, "eth0", 0)
        n.send(back, "eth1", 0)
        deadline = n.dump("conntrack")
        assert n.send(error("10.0.0.77", "192.0.2.9", to), "eth1", 0).state == "RELATED"
        assert n.send(error("203.0.113.9", "10.0.0.2", back), "eth0", 0).state == "RELATED"
        assert n.dump("conntrack") == deadline  # it does not keep it alive

    def test_an_error_to_somebody_else_does_not(self) -> None:
        n = node()
        to = udp("192.0.2.9", 4000, "10.0.0.2", 53)
        n.send(to, "eth0", 0)
        assert n.send(error("10.0.0.77", "192.0.2.10", to), "eth1", 0).state == "INVALID"

    def test_it_must_quote_the_ports(self) -> None:
        n = node()
        to = udp("192.0.2.9", 4000, "10.0.0.2", 53)
        n.send(to, "eth0", 0)
        assert n.send(error("10.0.0.77", "192.0.2.9", to[:23]), "eth1", 0).state == "INVALID"
        assert n.send(error("10.0.0.77", "192.0.2.9", to[:24]), "eth1", 0).state == "RELATED"


class TestTheTableIsFull:
    KNOB: ClassVar = {"net.netfilter.nf_conntrack_max": 3}

    def test_somebody_unsure_goes(self) -> None:
        n = node(sysctl=self.KNOB)
        for port in range(6):
            assert n.send(udp("192.0.2.9", 4000 + port, "10.0.0.2", 53), "eth0", 0).fate == "forwarded"
        assert len(table(n)) == 3
        assert any("sport=4005" in line for line in table(n))

    def test_nobody_goes_where_all_are_assured(self) -> None:
        n = node(sysctl=self.KNOB)
        for port in range(3):
            at = f"192.0.2.9:{4000 + port} > 10.0.0.2:80"
            back = f"10.0.0.2:80 > 192.0.2.9:{4000 + port}"
            says(n, f"""
                0 eth0 in {at} S
                  eth1 out {at} S
                0 eth1 in {back} S. seq=5000 ack=1001
                  eth0 out {back} S.
                0 eth0 in {at} . seq=1001 ack=5001
                  eth1 out {at} .
            """)  # fmt: skip
        journey = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 1)
        assert (journey.fate, journey.reason) == ("dropped", "conntrack: table full")
        assert str(journey.steps[-1]) == "conntrack: table full"
        n.check()

    def test_what_has_expired_makes_room(self) -> None:
        n = node(sysctl=self.KNOB)
        for port in range(3):
            n.send(udp("192.0.2.9", 4000 + port, "10.0.0.2", 53), "eth0", 0)
        n.send(udp("192.0.2.9", 5000, "10.0.0.2", 53), "eth0", 31)
        assert len(n.conntrack) == 1

    def test_zero_is_no_limit(self) -> None:
        n = node(sysctl={"net.netfilter.nf_conntrack_max": 0})
        for port in range(9):
            n.send(udp("192.0.2.9", 4000 + port, "10.0.0.2", 53), "eth0", 0)
        assert len(table(n)) == 9


class TestAccounting:
    KNOB: ClassVar = {"net.netfilter.nf_conntrack_acct": 1}

    def test_both_directions_count_as_they_came(self) -> None:
        n = node(sysctl=self.KNOB)
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        n.send(udp("10.0.0.2", 53, "192.0.2.9", 4000, b"answer"), "eth1", 0)
        assert "packets=1 bytes=36 src=10.0.0.2" in table(n)[0] and "packets=1 bytes=34 mark" in table(n)[0]

    def test_a_connection_opened_anew_counts_anew(self) -> None:
        n = node(sysctl=self.KNOB)
        says(n, OPEN + """
            1  eth0 in   192.0.2.9:4000 > 10.0.0.2:80     F.  seq=1001 ack=5001
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80     F.
            1  eth1 in   10.0.0.2:80    > 192.0.2.9:4000  F.  seq=5001 ack=1002
               eth0 out  10.0.0.2:80    > 192.0.2.9:4000  F.
            1  eth0 in   192.0.2.9:4000 > 10.0.0.2:80     .   seq=1002 ack=5002
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80     .
            # the server calls back by the same ports: this is another connection, begun by it
            2  eth1 in   10.0.0.2:80    > 192.0.2.9:4000  S   seq=9000
               eth0 out  10.0.0.2:80    > 192.0.2.9:4000  S
               NEW
        """)  # fmt: skip
        assert table(n) == [
            "tcp      6 120 SYN_SENT src=10.0.0.2 dst=192.0.2.9 sport=80 dport=4000 packets=1 bytes=48 [UNREPLIED] "
            "src=192.0.2.9 dst=10.0.0.2 sport=4000 dport=80 packets=0 bytes=0 mark=0 use=1"
        ]

    def test_only_connections_begun_since_are_counted(self) -> None:
        n = node()
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        n.run("sysctl -w net.netfilter.nf_conntrack_acct=1")
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        assert "packets=" not in table(n)[0]


class TestTheTool:
    def test_a_table_is_read_back_as_it_was_written(self) -> None:
        n = node(sysctl={"net.netfilter.nf_conntrack_acct": 1})
        says(n, OPEN)
        n.send(icmp("192.0.2.9", "10.0.0.2"), "eth0", 0.2)
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0.2)
        n.send(ip("192.0.2.9", "10.0.0.2", 99, b"12345678"), "eth0", 0.2)
        text = n.dump("conntrack")
        assert table(node(conntrack_list=text)) == table(n)
        short = text.replace("ipv4     2 ", "")
        assert table(node(conntrack_list=short)) == table(n)

    def test_a_connection_that_was_read_goes_on(self) -> None:
        n = node()
        says(n, OPEN)
        again = node(conntrack_list=n.dump("conntrack"))
        says(again, """
            1 eth1 in  10.0.0.2:80 > 192.0.2.9:4000 P. seq=5001 ack=1001 len=10
              eth0 out 10.0.0.2:80 > 192.0.2.9:4000 P.
              ESTABLISHED
        """)  # fmt: skip

    def test_nonsense_and_ipv6_are_told_with_their_lines(self) -> None:
        text = "tcp 6 nonsense\nipv6     10 tcp      6 9 ESTABLISHED src=::1\n"
        with pytest.raises(Exception) as caught:
            node(conntrack_list=text)
        assert "conntrack.list:1" in str(caught.value) and "conntrack.list:2" in str(caught.value)

    def test_deleting(self) -> None:
        n = node()
        n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        n.send(icmp("192.0.2.9", "10.0.0.2"), "eth0", 0)
        assert n.run("conntrack -C") == "2\n"
        assert n.run("conntrack -L").startswith("udp      17 30")
        assert n.run("conntrack -D -p udp --dport 53").startswith("udp")
        with pytest.raises(Refused) as caught:
            n.run("conntrack -D -s 192.0.2.10")
        assert caught.value.status == 1
        n.run("conntrack -F")
        assert table(n) == []
        n.check()


def test_many_flows_are_swept_in_one_go_as_one_by_one() -> None:
    n = node("nat POSTROUTING -o eth0 -j MASQUERADE")
    for port in range(40):
        n.send(udp("10.0.0.2", 4000 + port, "192.0.2.9", 53), "eth1", 0)
    assert n.conntrack.mapped
    assert n.conntrack.kill_where(np.ones(n.conntrack.capacity, bool)) == 40
    n.conntrack.end_run()
    assert not n.conntrack.mapped and not len(n.conntrack)
    n.check()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.lists(st.integers(0, 400), max_size=90)), max_size=12)
)
@settings(max_examples=60, deadline=None)
def test_sources_are_a_dictionary_of_lists(deeds: list[tuple[int, int, list[int]]]) -> None:
    """Few sources, so that many flows share one or a chain; lists long and short, for both ways of every deed."""
    ct = node().conntrack
    for flow in range(400):
        ct.begin((flow % 7, 1, flow % 3, 2, UDP), 0, zone=(flow % 2) * (5 | SIDES["reply"] * (flow % 4 == 1)))
    sources, model = ct.mapped, dict[tuple[int, ...], list[int]]()

    def source(flow: int) -> tuple[int, ...]:
        return int(ct.osrc[flow]), int(ct.osport[flow]), zone_id(int(ct.zone[flow]), 0)

    there = set[int]()
    for few, remove, named in deeds:
        chosen = list(dict.fromkeys(named))[: len(named) if few else 3]
        if remove == 0:
            chosen = [flow for flow in chosen if flow in there]
            sources.remove(np.array(chosen, np.intp))
            for flow in chosen:
                model[source(flow)].remove(flow)
            there -= set(chosen)
        else:
            chosen = [flow for flow in chosen if flow < 400 and flow not in there]
            sources.add(np.array(chosen, np.intp))
            for flow in chosen:
                model.setdefault(source(flow), []).append(flow)
            there |= set(chosen)
        sources.check()
    for flow in range(400):
        src, port, zone = source(flow)
        assert list(sources.of((src, 1, port, 2, UDP), zone)) == model.get(source(flow), [])[::-1]
    every = np.arange(400)
    zones = np.array([zone_id(int(z), 0) for z in ct.zone[:400]], np.uint32)
    known = sources.known(ct.osrc[every], ct.osport[every], ct.proto[every], zones)
    assert known.tolist() == [bool(model.get(source(flow))) for flow in range(400)]


def test_switching_tracking_on_again_forgets_the_windows() -> None:
    n = node(TRACKING)
    says(n, OPEN)
    n.run("iptables -F FORWARD")
    n.run("iptables -A FORWARD -m conntrack --ctstate INVALID -j ACCEPT")
    assert not n.conntrack.tcp.td[:, :, 2][n.conntrack.stored].any()
    wild = "1 eth0 in 192.0.2.9:4000 > 10.0.0.2:80 . seq=4000000000 ack=3000000000"
    says(n, wild + "\n eth1 out 192.0.2.9:4000 > 10.0.0.2:80 .\n ESTABLISHED")


def test_the_checksum_in_an_ip_header_with_options_is_whole() -> None:
    packet = bytearray(udp("192.0.2.9", 4000, "10.0.0.2", 53))
    head = bytearray(packet[:20]) + b"\1\1\1\0"
    head[0], head[10:12] = 0x46, b"\0\0"
    struct.pack_into("!H", head, 2, len(packet) + 4)
    struct.pack_into("!H", head, 10, checksum(bytes(head)))
    assert node().send(bytes(head) + bytes(packet[20:]), "eth0", 0).state == "NEW"
    head[22] = 7
    assert node().send(bytes(head) + bytes(packet[20:]), "eth0", 0).reason == "wrong IP header checksum"
