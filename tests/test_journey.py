"""The road: what stands at the hooks, loopback, errors that the node sends and how many of them, and where runs end."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from craft import checksum, ends, error, icmp, ip, sums_right, tcp, udp
from talk import LINKS, node, says
from worlds import Events, as_capture

from netemu import Journey, Node, read_capture
from netemu.journey import STOPS
from netemu.packets import Rows
from netemu.trip import Trip

ALL = "".join(
    f"*{table}\n"
    + "".join(f":{hook} ACCEPT [0:0]\n" for hook, line in STOPS.items() if table in [s for _, s in line])
    + "COMMIT\n"
    for table in ("raw", "mangle", "nat", "filter", "security")
).replace("*nat\n", "*nat\n-A PREROUTING -p sctp -j DNAT --to-destination 10.0.0.9\n")  # fmt: skip


def hooks(journey: Journey) -> list[str]:
    return [":".join(str(s).split(":")[:2]) for s in journey.steps if s.table]


def told(journey: Journey) -> list[tuple[int, int]]:
    """(type, code) of the ICMP errors that it caused."""
    return [(b[20], b[21]) for j in journey.caused for _, b in j.own if b[9] == 1]


class TestTheHooks:
    def test_forwarded(self) -> None:
        n = node(ALL)
        first = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        assert hooks(first) == [
            "raw:PREROUTING", "mangle:PREROUTING", "nat:PREROUTING", "mangle:FORWARD", "filter:FORWARD",
            "security:FORWARD", "mangle:POSTROUTING", "nat:POSTROUTING",
        ]  # fmt: skip
        again = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        assert hooks(again) == [h for h in hooks(first) if not h.startswith("nat")]

    def test_delivered(self) -> None:
        journey = node(ALL).send(udp("192.0.2.9", 4000, "198.51.100.1", 53), "eth0", 0)
        assert hooks(journey)[3:] == ["mangle:INPUT", "filter:INPUT", "security:INPUT", "nat:INPUT"]
        assert journey.fate == "delivered" and journey.out == []

    def test_over_loopback_everything_is_passed_once(self) -> None:
        journey = node(ALL).send(udp("10.0.0.1", 4000, "10.0.0.3", 53), None, 0)
        assert hooks(journey) == [
            "raw:OUTPUT", "mangle:OUTPUT", "nat:OUTPUT", "filter:OUTPUT", "security:OUTPUT", "mangle:POSTROUTING",
            "nat:POSTROUTING", "raw:PREROUTING", "mangle:PREROUTING", "mangle:INPUT", "filter:INPUT", "security:INPUT",
        ]  # fmt: skip
        assert journey.fate == "delivered"

    def test_the_nodes_own(self) -> None:
        journey = node(ALL).send(udp("10.0.0.1", 4000, "10.0.0.2", 53), None, 0)
        assert hooks(journey)[-2:] == ["mangle:POSTROUTING", "nat:POSTROUTING"]
        assert journey.link is None and journey.out[0][0] == "eth1"

    def test_a_mark_in_mangle_output_finds_another_way(self) -> None:
        links = LINKS + '[[route]]\nto = "192.0.2.0/24"\nvia = "10.0.0.254"\ndev = "eth1"\ntable = "9"\n'
        links += '[[rule]]\npriority = 9\nfwmark = "1"\ntable = "9"\n'
        rules = "mangle OUTPUT -p udp -j MARK --set-mark 1\nfilter OUTPUT -o eth0 -p udp -j ACCEPT"
        n = node(rules, links=links)
        assert n.send(udp("198.51.100.1", 4000, "192.0.2.9", 53), None, 0).out[0][0] == "eth1"
        assert "[1:36] -A OUTPUT -o eth0 -p udp" in n.dump("iptables-save"), "filter still sees the old device"

    def test_nat_output_too(self) -> None:
        n = node("nat OUTPUT -p udp --dport 53 -j DNAT --to-destination 10.0.0.2")
        for _ in range(2):
            assert n.send(udp("198.51.100.1", 4000, "192.0.2.9", 53), None, 0).out[0][0] == "eth1"


class TestDying:
    @pytest.mark.parametrize(
        "change, reason",
        [
            ({0: 0x44}, "malformed IP header"),
            ({3: 200}, "malformed IP header"),
            ({2: 0, 3: 19}, "malformed IP header"),
            ({10: 0xFF}, "wrong IP header checksum"),
        ],
    )
    def test_bad_headers(self, change: dict[int, int], reason: str) -> None:
        packet = bytearray(udp("192.0.2.9", 4000, "10.0.0.2", 53))
        for at, value in change.items():
            packet[at] = value
        journey = node(ALL).send(bytes(packet), "eth0", 0)
        assert (journey.fate, journey.reason, journey.steps) == ("dropped", reason, ())

    def test_a_link_that_is_down_hears_nothing(self) -> None:
        n = node(ALL)
        n.run("ip link set eth0 down")
        journey = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0)
        assert (journey.fate, journey.reason, journey.steps) == ("dropped", "the link is down", ())

    @pytest.mark.parametrize(
        "src, dst, reason",
        [
            ("224.0.0.1", "10.0.0.2", "martian source"),
            ("127.0.0.1", "10.0.0.2", "martian source"),
            ("10.0.0.1", "10.0.0.2", "martian source"),
            ("192.0.2.9", "127.0.0.1", "martian destination"),
        ],
    )
    def test_martians(self, src: str, dst: str, reason: str) -> None:
        journey = node(ALL).send(udp(src, 4000, dst, 53), "eth0", 0)
        assert (journey.fate, journey.out) == ("dropped", [])
        assert reason in str(journey.reason)
        assert hooks(journey)[:2] == ["raw:PREROUTING", "mangle:PREROUTING"]

    def test_padding_is_cut_off(self) -> None:
        packet = udp("192.0.2.9", 4000, "10.0.0.2", 53)
        assert node().send(packet + bytes(9), "eth0", 0).out[0][1][20:] == packet[20:]


class TestErrors:
    def test_time_to_live(self) -> None:
        n = node(ALL)
        journey = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53, ttl=1), "eth0", 0)
        assert (journey.fate, journey.reason, told(journey)) == ("rejected", "ttl exceeded", [(11, 0)])
        assert not [h for h in hooks(journey) if "FORWARD" in h]
        ((link, out),) = journey.out
        assert link == "eth0" and ends(out)[1:4:2] == ("198.51.100.1", "192.0.2.9")
        assert out[8] == 64 and out[1] == 0xC0 and out[28:] == udp("192.0.2.9", 4000, "10.0.0.2", 53, ttl=1)
        assert n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53, ttl=2), "eth0", 0).out[0][1][8] == 1

    def test_too_big(self) -> None:
        small = LINKS.replace('name = "eth1"', 'name = "eth1"\nmtu = 600')
        journey = node(links=small).send(udp("192.0.2.9", 4000, "10.0.0.2", 53, bytes(600)), "eth0", 0)
        ((_, out),) = journey.out
        assert (told(journey), struct.unpack_from("!H", out, 26)[0], len(out)) == ([(3, 4)], 600, 576)
        assert journey.reason == "fragmentation needed"

    @pytest.mark.parametrize(
        "route, codes, fate",
        [("unreachable", [(3, 1)], "rejected"), ("prohibit", [(3, 13)], "rejected"), ("blackhole", [], "dropped")],
    )
    def test_routes_that_lead_nowhere(self, route: str, codes: list[tuple[int, int]], fate: str) -> None:
        links = LINKS + f'[[route]]\ntype = "{route}"\nto = "203.0.113.0/24"\n'
        journey = node(links=links).send(udp("192.0.2.9", 4000, "203.0.113.7", 53), "eth0", 0)
        assert (told(journey), journey.fate) == (codes, fate)

    def test_no_route(self) -> None:
        links = LINKS.split("[[route]]")[0] + '[[route]]\nto = "192.0.2.0/24"\nvia = "198.51.100.254"\ndev = "eth0"\n'
        assert told(node(links=links).send(udp("192.0.2.9", 4000, "203.0.113.7", 53), "eth0", 0)) == [(3, 0)]

    def test_a_shorter_way(self) -> None:
        n = node("nat POSTROUTING -o eth1 -j MASQUERADE")
        own = udp("198.51.100.7", 4000, "192.0.2.9", 53)
        first = n.send(own, "eth0", 0)
        assert (first.fate, first.out[-1][0]) == ("forwarded", "eth0")
        assert [b for _, b in first.out if b[9] == 1] == [], "the first one dies in nat OUTPUT"
        plain = node()
        journeys = [plain.send(own, "eth0", at) for at in (0, 0.01, 0.05, 0.06, 0.2)]
        assert [told(j) for j in journeys] == [[(5, 1)], [], [(5, 1)], [], [(5, 1)]]
        assert journeys[0].out[0][1][24:28] == bytes([198, 51, 100, 254])

    def test_reject_quotes_what_the_rule_saw(self) -> None:
        rules = "nat PREROUTING -p udp -j DNAT --to-destination 10.0.0.2:5353\nfilter FORWARD -p udp -j REJECT"
        journey = node(rules).send(udp("192.0.2.9", 4000, "198.51.100.1", 53), "eth0", 0)
        ((_, out),) = journey.out
        assert ends(out[28:]) == (17, "192.0.2.9", 4000, "198.51.100.1", 53), "and it is translated back on its way"
        assert ends(out)[1] == "198.51.100.1" and checksum(out[20:]) == 0

    def test_reset(self) -> None:
        rules = "filter FORWARD -p tcp -j REJECT --reject-with tcp-reset"
        for flags, seq, ack, bits in (("S", 0, 1001, 20), ("A", 7, 0, 4), ("FA", 7, 0, 4)):
            ((_, out),) = node(rules).send(tcp("192.0.2.9", 4000, "10.0.0.2", 80, flags, 1000, 7), "eth0", 0).out
            assert ends(out) == (6, "10.0.0.2", 80, "192.0.2.9", 4000) and sums_right(out) and len(out) == 40
            assert (*struct.unpack_from("!II", out, 24), out[33]) == (seq, ack, bits)

    def test_a_reset_after_translation(self) -> None:
        rules = "nat PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080\n"
        rules += "filter FORWARD -p tcp --dport 8080 -j REJECT --reject-with tcp-reset"
        ((_, out),) = node(rules).send(tcp("192.0.2.9", 4000, "198.51.100.1", 80), "eth0", 0).out
        assert ends(out) == (6, "198.51.100.1", 80, "192.0.2.9", 4000)

    @pytest.mark.parametrize(
        "packet",
        [
            tcp("192.0.2.9", 4000, "10.0.0.2", 80, "R"),
            tcp("192.0.2.9", 4000, "10.0.0.2", 80)[:-1] + b"\1",
            udp("192.0.2.9", 4000, "10.0.0.2", 53)[:-1] + b"\1",
            error("192.0.2.9", "10.0.0.2", udp("10.0.0.2", 1, "192.0.2.9", 2)),
            icmp("192.0.2.9", "10.0.0.2", 40),
            ip("192.0.2.9", "10.0.0.2", 17, bytes(16), frag=5),
        ],
        ids=[
            "a reset",
            "a wrong tcp checksum",
            "a wrong udp checksum",
            "an error",
            "an unknown icmp",
            "a later fragment",
        ],
    )
    def test_silence_about(self, packet: bytes) -> None:
        rules = "filter FORWARD -p tcp -j REJECT --reject-with tcp-reset\nfilter FORWARD -j REJECT"
        journey = node(rules).send(packet, "eth0", 0)
        assert (journey.fate, journey.out) == ("dropped", [])

    def test_a_confirmed_connection_is_closed_by_a_reset(self) -> None:
        n = node("filter FORWARD -p tcp -m conntrack --ctstate ESTABLISHED -j REJECT --reject-with tcp-reset")
        n.send(tcp("192.0.2.9", 4000, "10.0.0.2", 80), "eth0", 0)
        n.send(tcp("10.0.0.2", 80, "192.0.2.9", 4000, "SA", 1, 1001), "eth1", 0)
        assert " 10 CLOSE " in n.dump("conntrack")

    def test_marks_are_reflected_when_asked_to(self) -> None:
        rules = "mangle PREROUTING -j MARK --set-mark 7\nfilter FORWARD -j REJECT\nmangle OUTPUT -m mark --mark 7"
        for on in (0, 1):
            n = node(rules, sysctl={"net.ipv4.fwmark_reflect": on, "net.ipv4.ip_default_ttl": 9})
            ((_, out),) = n.send(udp("192.0.2.9", 4000, "10.0.0.2", 53), "eth0", 0).out
            assert out[8] == 9
            assert (f"[{on}:{64 * on}] -A OUTPUT" in n.dump("iptables-save")) is True


class TestOptions:
    @staticmethod
    def packet(options: bytes) -> bytes:
        plain = udp("192.0.2.9", 4000, "10.0.0.2", 53)
        options += bytes(-len(options) % 4)
        head = bytearray(plain[:10] + b"\0\0" + plain[12:20] + options)
        head[0] = 0x45 + len(options) // 4
        struct.pack_into("!H", head, 2, len(plain) + len(options))
        struct.pack_into("!H", head, 10, checksum(bytes(head)))
        return bytes(head) + plain[20:]

    def test_harmless_ones_pass(self) -> None:
        assert node().send(self.packet(b"\1\1\1\1"), "eth0", 0).fate == "forwarded"
        assert node().send(self.packet(bytes([148, 4, 0, 0])), "eth0", 0).fate == "forwarded"

    @pytest.mark.parametrize("kind", [131, 137])
    def test_source_routes_are_not_taken(self, kind: int) -> None:
        journey = node().send(self.packet(bytes([kind, 7, 4, 10, 0, 0, 9])), "eth0", 0)
        assert (journey.fate, journey.out) == ("dropped", [])

    def test_nonsense_is_answered(self) -> None:
        journey = node().send(self.packet(bytes([7, 40, 4, 0])), "eth0", 0)
        assert told(journey) == [(12, 0)] and journey.out[0][1][24] == 20

    def test_a_timestamp_is_the_packets_own(self) -> None:
        n = node()
        stamps = bytes([68, 12, 5, 1]) + bytes(8)
        for at, options in ((3.5, stamps), (4.25, bytes([68, 8, 5, 0]) + bytes(4))):
            ((_, out),) = n.send(self.packet(options), "eth0", at).out
            assert checksum(out[: (out[0] & 15) * 4]) == 0
            assert struct.unpack_from("!I", out, 20 + len(options) - 4)[0] == at * 1000
            assert out[22] == len(options) + 1
        assert n.send(self.packet(stamps), "eth0", 5).out[0][1][24:28] == bytes([10, 0, 0, 1])

    def test_a_timestamp_that_waits_for_another_router_is_left_alone(self) -> None:
        options = bytes([68, 12, 5, 3, 192, 0, 2, 77]) + bytes(4)
        assert node().send(self.packet(options), "eth0", 1).out[0][1][20:32] == options


class TestHowManyErrors:
    """As recorded on both kernels, ten packets at once and five more in half a second's distance."""

    TIMES = (0,) * 10 + (0.5, 1.1, 1.6, 2.2, 2.7)
    LINKS = LINKS + '[[route]]\ntype = "unreachable"\nto = "203.0.113.0/24"\n'

    def heard(self, n: Node, dst: str) -> str:
        packets = (udp("192.0.2.9", 4000 + k, dst, 99) for k in range(99))
        return "".join("1" if n.send(next(packets), "eth0", at).out else "." for at in self.TIMES)

    @pytest.mark.parametrize(
        "kernel, limit, rejected, routeless",
        [
            ("6.18", 1000, "111111.....1.1.", "11............."),
            ("6.18", 200, "111111....11111", "1111.......1.1."),
            ("6.18", 0, "111111111111111", "11111......1.1."),
            ("6.1", 1000, "111111.....1.1.", "11............."),
            ("6.1", 200, "111111....11111", "1............1."),
            ("6.1", 0, "111111111111111", "1..........1.1."),
        ],
    )
    def test_to_one_sender(self, kernel: str, limit: int, rejected: str, routeless: str) -> None:
        for dst, want in (("10.0.0.2", rejected), ("203.0.113.7", routeless)):
            n = node(
                "filter FORWARD -p udp -j REJECT",
                kernel=kernel,
                sysctl={"net.ipv4.icmp_ratelimit": limit},
                links=self.LINKS,
            )
            assert self.heard(n, dst) == want

    def test_types_out_of_the_mask_are_not_counted(self) -> None:
        n = node("filter FORWARD -p udp -j REJECT", sysctl={"net.ipv4.icmp_ratemask": 0})
        assert self.heard(n, "10.0.0.2") == "1" * 15

    def test_to_all_senders(self) -> None:
        n = node("filter FORWARD -p udp -j REJECT")
        sent = [bool(n.send(udp(f"192.0.2.{k}", 1, "10.0.0.2", 2), "eth0", 0).out) for k in range(1, 61)]
        assert sent == [True] * 50 + [False] * 10
        sent = [bool(n.send(udp(f"192.0.2.{k}", 1, "10.0.0.2", 2), "eth0", 0.03).out) for k in range(61, 101)]
        assert 25 <= sum(sent) <= 30 and sent == sorted(sent, reverse=True)

    def test_a_silent_reject_is_a_drop(self) -> None:
        n = node("filter FORWARD -p udp -j REJECT")
        fates = [n.send(udp("192.0.2.9", 1, "10.0.0.2", 2), "eth0", 0).fate for _ in range(7)]
        assert fates == ["rejected"] * 6 + ["dropped"]

    def test_packets_too_big_are_always_told(self) -> None:
        small = LINKS.replace('name = "eth1"', 'name = "eth1"\nmtu = 600')
        n = node(links=small)
        assert all(n.send(udp("192.0.2.9", k, "10.0.0.2", 53, bytes(600)), "eth0", 0).out for k in range(1, 99))


def chunked(n: Node, events: Events, length: int | None) -> list[tuple[object, ...]]:
    return [
        (j.fate, j.reason, j.state, j.out, list(map(str, j.steps)))
        for j in n.replay(read_capture(as_capture(n, events)), length)
    ]


def alike(rules: str, packets: list[tuple[float, str, bytes]], **more: object) -> list[tuple[object, ...]]:
    """The journeys of packets, which must not depend on how they are cut into runs."""
    events = Events()
    events += packets
    reference = chunked(node(rules, **more), events, 1)  # type: ignore[arg-type]
    for length in (2, 7, None):
        assert chunked(node(rules, **more), events, length) == reference  # type: ignore[arg-type]
    return reference


class TestRuns:
    """Each of these was once, or would be, another story in one run than one by one."""

    def test_the_limits_count_in_arrival_order(self) -> None:
        late = [(0.0, "eth0", udp("192.0.2.9", k, "10.0.0.2", 99, ttl=1 if k % 2 else 64)) for k in range(1, 13)]
        told_ = [bool(j[3]) for j in alike("filter FORWARD -j REJECT", late)]
        assert told_ == [True] * 6 + [False] * 6

    def test_dnat_ports_of_one_client(self) -> None:
        rules = "nat PREROUTING -p udp -j DNAT --to-destination 10.0.0.2:8000-8002"
        packets = [(0.0, "eth0", udp("192.0.2.9", 4000, f"198.51.100.{k}", 53)) for k in (1, 2, 3)]
        assert [ends(j[3][0][1])[4] for j in alike(rules, packets)] == [8000, 8001, 8002]  # type: ignore[index]

    def test_a_reset_frees_a_tuple_only_for_those_behind_it(self) -> None:
        rules = "nat POSTROUTING -o eth0 -j MASQUERADE"
        first = tcp("10.0.0.2", 5000, "192.0.2.9", 80)
        packets = [
            (0.0, "eth1", first),
            (0.1, "eth1", tcp("10.0.0.4", 5000, "192.0.2.9", 80)),
            (0.1, "eth0", tcp("192.0.2.9", 80, "198.51.100.1", 5000, "RA", 0, 1001)),
            (0.1, "eth1", tcp("10.0.0.5", 5000, "192.0.2.9", 80)),
        ]
        ports = [ends(j[3][0][1])[2] for j in alike(rules, packets)]  # type: ignore[index]
        assert ports[1] != 5000 == ports[3]

    def test_a_rule_that_resets_closes_for_the_next(self) -> None:
        rules = "filter FORWARD -p tcp -m tcp --dport 80 -m length --length 45 -j REJECT --reject-with tcp-reset"
        rules += "\nfilter FORWARD -m conntrack --ctstate INVALID -j DROP"
        a, b = ("192.0.2.9", 4000), ("10.0.0.2", 80)
        packets = [
            (0.0, "eth0", tcp(*a, *b, "S", 1000)),
            (0.1, "eth1", tcp(*b, *a, "SA", 5000, 1001)),
            (0.2, "eth0", tcp(*a, *b, "A", 1001, 5001)),
            (0.3, "eth0", tcp(*a, *b, "PA", 1001, 5001, data=b"12345")),
            (0.3, "eth0", tcp(*a, *b, "FA", 1001, 5001)),
            (0.3, "eth1", tcp(*b, *a, "A", 5001, 1001)),
        ]
        alike(rules, packets)

    def test_the_table_fills_in_arrival_order(self) -> None:
        packets = [(k / 1000, "eth0", udp("192.0.2.9", 4000 + k % 9, "10.0.0.2", 53)) for k in range(40)]
        alike("filter FORWARD -m conntrack --ctstate NEW", packets, sysctl={"net.netfilter.nf_conntrack_max": 4})

    def test_a_table_that_became_too_small(self) -> None:
        n = node()
        events = Events()
        events += [(k / 1000, "eth0", udp("192.0.2.9", 4000 + k, "10.0.0.2", 53)) for k in range(9)] * 2
        timeline = [(0.008, "sysctl -w net.netfilter.nf_conntrack_max=2")]
        journeys = n.replay(read_capture(as_capture(n, events)), timeline=timeline)
        assert [j.fate for j in journeys].count("forwarded") == 18

    def test_timeouts_of_no_time(self) -> None:
        packets = [(k / 1000, "eth0", udp("192.0.2.9", 4000, "10.0.0.2", 53)) for k in range(6)]
        states = alike(
            "filter FORWARD -m conntrack --ctstate NEW", packets, sysctl={"net.netfilter.nf_conntrack_udp_timeout": 0}
        )
        assert [s[2] for s in states] == ["NEW"] * 6

    def test_a_way_that_changes_with_the_mark(self) -> None:
        links = LINKS + '[[link]]\nname = "eth2"\naddresses = ["203.0.113.1/24"]\n'
        links += '[[route]]\nto = "default"\nvia = "203.0.113.254"\ndev = "eth2"\ntable = "9"\n'
        links += '[[rule]]\npriority = 9\nfwmark = "1"\ntable = "9"\n'
        rules = "mangle PREROUTING -m statistic --mode nth --every 3 --packet 1 -j MARK --set-mark 1\n"
        rules += "nat POSTROUTING -j MASQUERADE"
        packets = [(k / 1000, "eth1", udp("10.0.0.2", 4000, "192.0.2.9", 53)) for k in range(9)]
        journeys = alike(rules, packets, links=links)
        assert [j[0] for j in journeys].count("dropped") > 1


def test_conversation_with_everything() -> None:
    says(node("nat POSTROUTING -o eth0 -j MASQUERADE\nfilter FORWARD -p udp --dport 99 -j REJECT"), """
        0.0 eth1 in   10.0.0.2:4000 > 192.0.2.9:99   udp
            NEW
            eth1 out  10.0.0.1 > 10.0.0.2 icmp 3/3
            rejected  filter:FORWARD:rule:1 REJECT
        0.1 eth1 in   10.0.0.2:4000 > 192.0.2.9:53   udp ttl=1
            eth1 out  10.0.0.1 > 10.0.0.2 icmp 11/0
            rejected  ttl exceeded
        0.2 self in   198.51.100.1:4000 > 192.0.2.9:53 udp
            eth0 out  198.51.100.1:4000 > 192.0.2.9:53 udp
    """)  # fmt: skip


def test_ports_used_again_at_once_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        '[[link]]\nname = "eth0"\naddresses = ["10.0.0.1/24"]\n[[link]]\nname = "cni0"\naddresses = ["10.244.0.1/24"]\n'
    )
    (tmp_path / "iptables.save").write_text(
        "*nat\n-A PREROUTING -d 10.96.0.1 -p tcp --dport 80 -j DNAT --to-destination 10.244.0.5:8080\nCOMMIT\n"
        "*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
    )
    client, vip, pod = ("10.0.0.9", 40_000), ("10.96.0.1", 80), ("10.244.0.5", 8080)
    events = []
    for life in range(40):
        n = 1 + 100_000 * life
        said = [("eth0", tcp(*client, *vip, "S", n)), ("cni0", tcp(*pod, *client, "SA", 7 * n, n + 1))]
        said += [("eth0", tcp(*client, *vip, flags, n + 1, 7 * n + 1)) for flags in ("A", "RA")]
        events += [(len(events) / 1e3 + k / 1e4, *one) for k, one in enumerate(said)]
    nodes = {length: Node.load(tmp_path) for length in (1, None)}
    runs: list[int] = []
    road = nodes[None].road
    run = road.run

    def counted(trip: Trip, rows: Rows) -> int:
        runs.append(run(trip, rows))
        return runs[-1]

    vars(road)["run"] = counted
    replays = {length: n.replay(read_capture(as_capture(n, events)), length) for length, n in nodes.items()}
    for a, b in zip(replays[1], replays[None], strict=True):
        assert (a.fate, a.state, a.out, [str(s) for s in a.steps]) == (
            b.fate,
            b.state,
            b.out,
            [str(s) for s in b.steps],
        )
        assert a.fate == "forwarded"
    assert {n.dump("conntrack") for n in nodes.values()} == {nodes[1].dump("conntrack")}
    assert len(runs) < 8, runs  # while the window grows
    nodes[None].run("iptables -A FORWARD -m limit --limit 1/s -j ACCEPT")  # rules with memory foretell nothing
    runs.clear()
    nodes[None].replay(read_capture(as_capture(nodes[None], events)))
    assert len(runs) >= 40
