"""NAT: which address and port a new flow gets, and how every later packet is rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from craft import ends, error, icmp, sums_right, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st
from talk import node, says, table

from netemu import Node, read_capture
from netemu.capture import write_pcap
from netemu.hashing import jhash2
from netemu.packets import checksum

MASQ = "nat POSTROUTING -o eth0 -j MASQUERADE"


def left(n: Node, packet: bytes, link: str | None = "eth1", at: float = 0) -> tuple[int, str, int, str, int]:
    """How a packet left."""
    ((_, out),) = n.send(packet, link, at).out
    assert sums_right(out)
    return ends(out)


class TestConversations:
    def test_masquerade_and_back(self) -> None:
        n = node(MASQ)
        says(n, """
            0 eth1 in   10.0.0.2:4000 > 192.0.2.9:80       S
              eth0 out  198.51.100.1:4000 > 192.0.2.9:80   S
            0 eth0 in   192.0.2.9:80 > 198.51.100.1:4000   S. seq=1 ack=1001
              eth1 out  192.0.2.9:80 > 10.0.0.2:4000       S.
        """)  # fmt: skip
        assert "src=192.0.2.9 dst=198.51.100.1 sport=80 dport=4000" in table(n)[0]

    def test_a_dnat_reply_comes_from_where_it_was_asked(self) -> None:
        says(node("nat PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080"), """
            0 eth0 in   192.0.2.9:4000 > 198.51.100.1:80   S
              eth1 out  192.0.2.9:4000 > 10.0.0.2:8080     S
            0 eth1 in   10.0.0.2:8080 > 192.0.2.9:4000     S. seq=1 ack=1001
              eth0 out  198.51.100.1:80 > 192.0.2.9:4000   S.
        """)  # fmt: skip

    def test_only_the_first_packet_is_asked(self) -> None:
        n = node("nat PREROUTING -p udp --dport 53 -j DNAT --to-destination 10.0.0.2\nnat POSTROUTING -j ACCEPT")
        one = udp("192.0.2.9", 4000, "198.51.100.1", 53)
        paths = [[str(s) for s in n.send(one, "eth0", 0).steps if s.table == "nat"] for _ in range(2)]
        assert paths == [["nat:PREROUTING:rule:1", "nat:POSTROUTING:policy:1"], []]

    def test_redirect_goes_to_the_first_address_of_the_link(self) -> None:
        n = node("nat PREROUTING -p tcp --dport 22 -j REDIRECT --to-ports 2222")
        journey = n.send(tcp("192.0.2.9", 4000, "203.0.113.7", 22), "eth0", 0)
        assert journey.fate == "delivered"
        assert [(r.field, r.new) for r in journey.rewrites] == [("dst", "198.51.100.1"), ("dport", 2222)]

    def test_redirect_of_the_nodes_own_goes_to_loopback(self) -> None:
        n = node("nat OUTPUT -p tcp --dport 22 -j REDIRECT --to-ports 2222")
        journey = n.send(tcp("10.0.0.1", 4000, "10.0.0.2", 22), None, 0)
        assert journey.fate == "delivered"
        assert ("dst", "127.0.0.1") in [(r.field, r.new) for r in journey.rewrites]

    def test_netmap_keeps_the_host_bits(self) -> None:
        n = node("nat PREROUTING -d 203.0.113.0/24 -j NETMAP --to 10.0.0.0/24")
        assert left(n, udp("192.0.2.9", 4000, "203.0.113.77", 53), "eth0") == (17, "192.0.2.9", 4000, "10.0.0.77", 53)

    def test_nat_input_changes_who_a_local_process_sees(self) -> None:
        n = node("nat INPUT -p udp -j SNAT --to-source 10.9.9.9")
        journey = n.send(udp("192.0.2.9", 4000, "198.51.100.1", 53), "eth0", 0)
        assert journey.fate == "delivered" and ("src", "10.9.9.9") in [(r.field, r.new) for r in journey.rewrites]

    def test_masquerade_without_an_address_drops(self) -> None:
        links = '[[link]]\nname = "eth0"\n[[link]]\nname = "eth1"\n[[route]]\nto = "default"\ndev = "eth0"\n'
        n = node(MASQ, links=links)
        journey = n.send(udp("10.0.0.2", 4000, "192.0.2.9", 53), "eth1", 0)
        assert (journey.fate, journey.out) == ("dropped", [])


class TestPorts:
    @pytest.mark.parametrize("port, lo, hi", [(300, 1, 511), (700, 600, 1023), (5000, 1024, 65535)])
    def test_a_clash_draws_from_the_pool_of_its_port(self, port: int, lo: int, hi: int) -> None:
        n = node(MASQ)
        assert left(n, udp("10.0.0.2", port, "192.0.2.9", 53))[2] == port
        drawn = left(n, udp("10.0.0.4", port, "192.0.2.9", 53))[2]
        assert lo <= drawn <= hi and drawn != port
        assert left(n, udp("10.0.0.4", port, "192.0.2.9", 53))[2] == drawn

    def test_the_same_seed_draws_the_same(self) -> None:
        def drawn(seed: int) -> int:
            n = node(MASQ, seed=seed)
            left(n, udp("10.0.0.2", 5000, "192.0.2.9", 53))
            return left(n, udp("10.0.0.4", 5000, "192.0.2.9", 53))[2]

        assert drawn(1) == drawn(1) != drawn(2)

    def test_no_clash_with_another_far_end(self) -> None:
        n = node(MASQ)
        assert left(n, udp("10.0.0.2", 5000, "192.0.2.9", 53))[2] == 5000
        assert left(n, udp("10.0.0.4", 5000, "192.0.2.10", 53))[2] == 5000

    def test_a_source_is_mapped_alike_towards_all(self) -> None:
        n = node("nat POSTROUTING -p udp -j SNAT --to-source 198.51.100.1:7000-7999")
        first = left(n, udp("10.0.0.2", 5000, "192.0.2.9", 53))[2]
        assert 7000 <= first <= 7999
        assert left(n, udp("10.0.0.2", 5000, "192.0.2.10", 53))[2] == first

    def test_a_port_in_the_range_is_kept(self) -> None:
        n = node("nat POSTROUTING -p udp -j SNAT --to-source 198.51.100.1:7000-7999")
        assert left(n, udp("10.0.0.2", 7345, "192.0.2.9", 53))[2] == 7345

    def test_icmp_ids_are_kept_apart(self) -> None:
        n = node(MASQ)
        assert left(n, icmp("10.0.0.2", "192.0.2.9", number=7))[2] == 7
        other = left(n, icmp("10.0.0.4", "192.0.2.9", number=7))[2]
        assert other != 7
        ((link, back),) = n.send(icmp("192.0.2.9", "198.51.100.1", 0, 0, other), "eth0", 0).out
        assert (link, ends(back)[2:4]) == ("eth1", (7, "10.0.0.4"))

    def test_dnat_takes_the_ports_in_turn_since_6_18(self) -> None:
        rules = "nat PREROUTING -p udp -j DNAT --to-destination 10.0.0.2:8000-8002"
        n = node(rules)
        assert [left(n, udp("192.0.2.9", 4000, f"198.51.100.{k}", 53), "eth0")[4] for k in (1, 2, 3)] == [
            8000,
            8001,
            8002,
        ]
        old = node(rules, kernel="6.1")
        drawn = [left(old, udp("192.0.2.9", 4000, f"198.51.100.{k}", 53), "eth0")[4] for k in (1, 2, 3)]
        assert sorted(drawn) == [8000, 8001, 8002]

    def test_dnat_keeps_a_port_that_is_in_the_range(self) -> None:
        n = node("nat PREROUTING -p udp -j DNAT --to-destination 10.0.0.2:8000-8002")
        assert left(n, udp("192.0.2.9", 4000, "198.51.100.1", 8002), "eth0")[4] == 8002

    def test_the_last_one_of_an_exhausted_range_dies(self) -> None:
        n = node("nat POSTROUTING -p tcp -j SNAT --to-source 198.51.100.1:7000-7001")
        fates = [n.send(tcp(f"10.0.0.{k}", 5000, "192.0.2.9", 80), "eth1", 0) for k in (2, 4, 5)]
        assert [j.fate for j in fates] == ["forwarded", "forwarded", "dropped"]
        assert fates[-1].reason == "conntrack: another connection holds the tuple"

    def test_a_closing_connection_gives_way_to_a_newer_syn_since_6_18(self) -> None:
        for kernel, fate in (("6.18", "forwarded"), ("6.1", "dropped")):
            n = node("nat POSTROUTING -p tcp -j SNAT --to-source 198.51.100.1:7000-7000", kernel=kernel)
            says(n, """
                0 eth1 in  10.0.0.2:5000 > 192.0.2.9:80 S seq=1000
                  eth0 out 198.51.100.1:7000 > 192.0.2.9:80 S
                0 eth0 in  192.0.2.9:80 > 198.51.100.1:7000 S. seq=1 ack=1001
                  eth1 out 192.0.2.9:80 > 10.0.0.2:5000 S.
                0 eth0 in  192.0.2.9:80 > 198.51.100.1:7000 R. seq=2 ack=1001
                  eth1 out 192.0.2.9:80 > 10.0.0.2:5000 R.
            """)  # fmt: skip
            assert n.send(tcp("10.0.0.4", 6000, "192.0.2.9", 80, "S", 5000), "eth1", 1).fate == fate

    def test_a_null_binding_moves_the_port_too_where_answers_would_clash(self) -> None:
        n = node("nat PREROUTING -p udp --dport 53 -j DNAT --to-destination 10.0.0.2:5353")
        assert left(n, udp("192.0.2.9", 4000, "10.0.0.2", 5353), "eth0")[2] == 4000
        assert left(n, udp("192.0.2.9", 4000, "198.51.100.1", 53), "eth0")[2] != 4000


class TestAddresses:
    @pytest.mark.parametrize("persistent", [False, True])
    def test_a_range_is_hashed(self, persistent: bool) -> None:
        option = " --persistent" if persistent else ""
        n = node(f"nat POSTROUTING -p udp -j SNAT --to-source 198.51.100.10-198.51.100.19{option}")
        seen = set()
        for k in range(2, 30):
            raw = [int.from_bytes(bytes(map(int, a.split("."))), "little") for a in (f"10.0.0.{k}", "192.0.2.9")]
            h = int(jhash2((raw[0], 0, 0, 0), 0 if persistent else raw[1]))
            want = f"198.51.100.{10 + (h * 10 >> 32)}"
            if k not in (3,):  # the node's own
                assert left(n, udp(f"10.0.0.{k}", 4000, "192.0.2.9", 53))[1] == want
            seen.add(want)
        assert len(seen) > 5

    def test_an_address_in_the_range_is_kept(self) -> None:
        n = node("nat POSTROUTING -p udp -j SNAT --to-source 10.0.0.0-10.0.0.9")
        assert left(n, udp("10.0.0.5", 4000, "192.0.2.9", 53))[1] == "10.0.0.5"

    def test_a_masqueraded_connection_dies_with_its_way(self) -> None:
        links = """
            [[link]]
            name = "eth0"
            addresses = ["198.51.100.1/24"]
            [[link]]
            name = "eth2"
            addresses = ["203.0.113.1/24"]
            [[link]]
            name = "eth1"
            addresses = ["10.0.0.1/24"]
            [[route]]
            to = "default"
            via = "198.51.100.254"
            dev = "eth0"
        """
        n = node("nat POSTROUTING -j MASQUERADE", links=links)
        says(n, """
            0 eth1 in  10.0.0.2:4000 > 192.0.2.9:53 udp
              eth0 out 198.51.100.1:4000 > 192.0.2.9:53 udp
            $ ip route replace default via 203.0.113.254 dev eth2
            1 eth1 in  10.0.0.2:4000 > 192.0.2.9:53 udp
              dropped  nat: the flow was masqueraded for another link
            1 eth1 in  10.0.0.2:4000 > 192.0.2.9:53 udp
              NEW
              eth2 out 203.0.113.1:4000 > 192.0.2.9:53 udp
        """)  # fmt: skip
        n.run("ip link set eth2 down")
        assert table(n) == []

    def test_tuples_are_given_out_in_arrival_order_whatever_rule_matches(self) -> None:
        """The second packet comes to its rule before the first one does."""
        from worlds import Events, as_capture

        from netemu import read_capture

        rules = "nat POSTROUTING -s 10.0.0.4 -p udp -j SNAT --to-source 198.51.100.1\n"
        rules += "nat POSTROUTING -s 10.0.0.2 -p udp -j SNAT --to-source 198.51.100.1"
        events = Events()
        events += [(0.0, "eth1", udp(f"10.0.0.{k}", 5000, "192.0.2.9", 53)) for k in (2, 4)]
        for length in (1, None):
            n = node(rules)
            journeys = n.replay(read_capture(as_capture(n, events)), length)
            ports = [ends(j.out[0][1])[2] for j in journeys]
            assert ports[0] == 5000 != ports[1]


class TestErrors:
    """An error is translated as the packets are, and so is the packet that it quotes."""

    def quoted(self, out: bytes) -> tuple[int, str, int, str, int]:
        assert checksum(out[20:]) == 0
        inner = out[28:48]
        assert checksum(inner) == 0
        return ends(out[28:])

    def test_about_a_masqueraded_flow(self) -> None:
        n = node(MASQ)
        ((_, out),) = n.send(udp("10.0.0.2", 4000, "192.0.2.9", 53), "eth1", 0).out
        ((link, told),) = n.send(error("203.0.113.66", "198.51.100.1", out), "eth0", 0).out
        assert link == "eth1"
        assert ends(told)[1:4:2] == ("203.0.113.66", "10.0.0.2")
        assert self.quoted(told) == (17, "10.0.0.2", 4000, "192.0.2.9", 53)

    def test_about_a_redirected_flow_comes_from_whom_it_was_for(self) -> None:
        n = node("nat PREROUTING -p udp --dport 53 -j DNAT --to-destination 10.0.0.2:5353")
        ((_, out),) = n.send(udp("192.0.2.9", 4000, "198.51.100.1", 53), "eth0", 0).out
        ((link, told),) = n.send(error("10.0.0.66", "192.0.2.9", out), "eth1", 0).out
        assert link == "eth0"
        assert ends(told)[1:4:2] == ("198.51.100.1", "192.0.2.9")  # the router behind is not shown
        assert self.quoted(told) == (17, "192.0.2.9", 4000, "198.51.100.1", 53)

    def test_about_an_answer(self) -> None:
        n = node(MASQ)
        n.send(udp("10.0.0.2", 4000, "192.0.2.9", 53), "eth1", 0)
        ((_, back),) = n.send(udp("192.0.2.9", 53, "198.51.100.1", 4000), "eth0", 0).out
        ((link, told),) = n.send(error("10.0.0.2", "192.0.2.9", back), "eth1", 0).out
        assert link == "eth0"
        assert ends(told)[1:4:2] == ("198.51.100.1", "192.0.2.9")
        assert self.quoted(told) == (17, "192.0.2.9", 53, "198.51.100.1", 4000)

    def test_about_a_ping(self) -> None:
        n = node(MASQ)
        n.send(icmp("10.0.0.4", "192.0.2.9", number=7), "eth1", 0)
        ((_, out),) = n.send(icmp("10.0.0.2", "192.0.2.9", number=7), "eth1", 0).out
        assert ends(out)[2] != 7
        ((_, told),) = n.send(error("203.0.113.66", "198.51.100.1", out), "eth0", 0).out
        assert self.quoted(told)[1:4] == ("10.0.0.2", 7, "192.0.2.9")

    def test_with_a_wrong_checksum_is_no_ones(self) -> None:
        n = node(MASQ)
        ((_, out),) = n.send(udp("10.0.0.2", 4000, "192.0.2.9", 53), "eth1", 0).out
        wrong = bytearray(error("203.0.113.66", "198.51.100.1", out))
        wrong[-1] ^= 1
        assert n.send(bytes(wrong), "eth0", 0).state == "INVALID"
        n.run("sysctl -w net.netfilter.nf_conntrack_checksum=0")
        assert n.send(bytes(wrong), "eth0", 0).reason == "nat: ICMP error with a wrong checksum"

    def test_a_redirect_does_not_pass(self) -> None:
        n = node(MASQ)
        ((_, out),) = n.send(udp("10.0.0.2", 4000, "192.0.2.9", 53), "eth1", 0).out
        assert n.send(error("203.0.113.66", "198.51.100.1", out, 5, 1), "eth0", 0).fate == "dropped"

    def test_a_reset_of_an_unconfirmed_flow_walks_nat_postrouting(self) -> None:
        rules = "nat POSTROUTING -p udp -j MASQUERADE\nfilter INPUT -p tcp -j REJECT --reject-with tcp-reset"
        journey = node(rules).send(tcp("192.0.2.9", 4000, "198.51.100.1", 80), "eth0", 0)
        (reset,) = journey.caused
        assert "nat:POSTROUTING:policy:2" in map(str, reset.steps)
        assert not any(str(s).startswith("nat:OUTPUT") for s in reset.steps)


CHOICES = (
    "nat POSTROUTING -o eth0 -j MASQUERADE",
    "nat POSTROUTING -o eth0 -j MASQUERADE --random",
    "nat POSTROUTING -o eth0 -p udp -j MASQUERADE --to-ports 4000-4007",
    "nat POSTROUTING -o eth0 -j SNAT --to-source 198.51.100.1-198.51.100.3",
    "nat POSTROUTING -o eth0 -p tcp -j SNAT --to-source 198.51.100.9:4001-4004 --persistent",
    "nat POSTROUTING -o eth0 -j NETMAP --to 198.51.100.128/30",
    "nat PREROUTING -i eth1 -p tcp -j DNAT --to-destination 192.0.2.1-192.0.2.2:80-90",
    "nat PREROUTING -i eth1 -p udp -j DNAT --to-destination 192.0.2.1:5000-5100/4000",
    "nat PREROUTING -i eth1 -p icmp -j DNAT --to-destination 192.0.2.1",
    "nat PREROUTING -i eth1 -p udp --dport 53 -j REDIRECT --to-ports 5353",
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "t.pcap"


@settings(deadline=None)
@given(
    rules=st.lists(st.sampled_from(CHOICES), min_size=1, max_size=3, unique=True),
    kernel=st.sampled_from(["6.1", "6.18"]),
    packets=st.lists(
        st.tuples(
            st.sampled_from(["tcp", "udp", "icmp", "ack"]), st.integers(2, 4), st.integers(4000, 4003),
            st.integers(1, 3), st.sampled_from([53, 80, 4001]),
        ),
        min_size=40, max_size=90,
    ),
)  # fmt: skip
def test_many_choose_as_one_by_one(
    trace: Path, rules: list[str], kernel: str, packets: list[tuple[str, int, int, int, int]]
) -> None:
    """Few sources, few ports and hardly any room: the tuples that are tried first are mostly taken."""
    made = []
    for proto, client, sport, server, dport in packets:
        src, dst = f"10.0.0.{client}", f"192.0.2.{server}"
        if proto == "icmp":
            made.append(icmp(src, dst, number=sport))
        elif proto == "udp":
            made.append(udp(src, sport, dst, dport))
        else:
            made.append(tcp(src, sport, dst, dport, "S" if proto == "tcp" else "A", ack=1000))
    write_pcap(trace, list(range(len(made))), made)
    results = []
    for length in (1, 16, None):
        n = node("\n".join(rules), kernel=kernel)
        journeys = n.replay(read_capture(trace), length, link="eth1")
        told = [(j.fate, j.reason, [b for _, b in j.out], [str(s) for s in j.steps]) for j in journeys]
        results.append((told, sorted(table(n)), n.dump("iptables-save")))
        n.check()
    assert results[0] == results[1] == results[2]
