"""The node: sending, commands of every tool, dumps, the clock, link addresses, and errors told all at once."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from craft import udp
from talk import LINKS, node
from worlds import Events, as_capture

from netemu import Node, Refused, Unsupported, read_capture
from netemu.capture import CaptureWriter

PACKET = udp("192.0.2.9", 4000, "10.0.0.2", 53)
MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("0200000000fe")
WITH_MAC = LINKS.replace('name = "eth0"', 'name = "eth0"\nmac = "02:00:00:00:00:01"')


class TestSend:
    def test_a_link_that_is_not_there(self) -> None:
        with pytest.raises(Refused, match="no link 'eth9'") as caught:
            node().send(PACKET, "eth9", 0)
        assert "eth0, eth1" in str(caught.value)

    @pytest.mark.parametrize("packet", [b"", PACKET[:19], b"\x60" + PACKET[1:]])
    def test_not_a_packet(self, packet: bytes) -> None:
        with pytest.raises(Refused, match="not an IPv4 packet"):
            node().send(packet, "eth0", 0)

    @pytest.mark.parametrize(
        "frame", [PACKET, MAC + OTHER + b"\x86\xdd" + PACKET, MAC + OTHER + b"\x08\x06" + bytes(28)]
    )
    def test_not_a_frame(self, frame: bytes) -> None:
        with pytest.raises(Refused, match="not an Ethernet frame"):
            node().send(frame, "eth0", 0, ethernet=True)

    @pytest.mark.parametrize(
        "to, fate, reason",
        [
            (MAC, "forwarded", None),
            (OTHER, "dropped", "addressed to another host on the link"),
            (b"\xff" * 6, "dropped", "not addressed to this node on the link, and not for it"),
            (b"\x01\x00\x5e\0\0\1", "dropped", "not addressed to this node on the link, and not for it"),
        ],
    )
    def test_frames_for_others(self, to: bytes, fate: str, reason: str | None) -> None:
        journey = node(links=WITH_MAC).send(to + OTHER + b"\x08\x00" + PACKET, "eth0", 0, ethernet=True)
        assert (journey.fate, journey.reason) == (fate, reason)

    def test_a_replay_passes_over_frames_for_others_alike(self) -> None:
        out = io.BytesIO()
        writer = CaptureWriter(out, ["lo", "eth0", "eth1"])
        writer.write("eth0", 0, PACKET)
        writer.close()
        out.seek(0)
        assert node(links=WITH_MAC).replay(read_capture(out))[0].fate == "forwarded", "no address, no objection"

    def test_without_a_time_it_is_now(self) -> None:
        n = node()
        n.advance(7.5)
        assert n.send(PACKET, "eth0").time == 7.5

    def test_a_journey_tells_all(self) -> None:
        journey = node("nat PREROUTING -p udp -j DNAT --to-destination 10.0.0.7").send(PACKET, "eth0", 1)
        assert (journey.fate, journey.link, journey.time, journey.state, journey.packet) == (
            "forwarded",
            "eth0",
            1,
            "NEW",
            1,
        )
        assert [(r.field, r.old, r.new) for r in journey.rewrites] == [("dst", "10.0.0.2", "10.0.0.7"), ("ttl", 64, 63)]
        assert "forwarded" in repr(journey) and journey.rules_evaluated == 1


class TestTheClock:
    def test_never_goes_back(self) -> None:
        n = node()
        n.send(PACKET, "eth0", 5)
        assert n.send(PACKET, "eth0", 3).time == 5
        n.advance(4)
        n.run("conntrack -L", at=1)
        assert n.now == 5 * 10**9

    def test_a_replay_says_how_many_came_early(self) -> None:
        events = Events()
        events += [(at, "eth0", PACKET) for at in (1.0, 0.5, 2.0, 1.5)]
        journeys = node().replay(read_capture(as_capture(node(), events)))
        assert journeys.late == 2
        assert [j.time for j in journeys] == [1.0, 1.0, 2.0, 2.0]

    def test_a_command_without_a_time_does_not_move_it(self) -> None:
        n = node()
        n.send(PACKET, "eth0", 12345678.123456789)
        before = n.now
        n.run("conntrack -L")
        assert n.now == before

    def test_commands_fall_between_the_packets_of_a_replay(self) -> None:
        events = Events()
        events += [(float(at), "eth0", PACKET) for at in range(5)]
        timeline = [
            (2.0, "iptables -I FORWARD -j DROP"),
            (3.5, "iptables -F FORWARD"),
            (99.0, "iptables -P FORWARD DROP"),
        ]
        for length in (1, None):
            n = node()
            journeys = n.replay(read_capture(as_capture(n, events)), length, timeline=timeline)
            assert [j.fate for j in journeys] == ["forwarded", "forwarded", "dropped", "dropped", "forwarded"]
            assert n.now == 99 * 10**9 and ":FORWARD DROP" in n.dump("iptables-save")


class TestCommands:
    @pytest.mark.parametrize(
        "command, shows, dump",
        [
            ("iptables -A FORWARD -s 10.9.0.0/16 -j DROP", "-A FORWARD -s 10.9.0.0/16 -j DROP", "iptables-save"),
            ("/sbin/iptables-legacy -P FORWARD DROP", ":FORWARD DROP", "iptables-save"),
            ("ipset create s hash:ip", "create s hash:ip", "ipset-save"),
            ("ipvsadm -A -t 10.0.0.9:80 -s rr", "-A -t 10.0.0.9:80 -s rr", "ipvsadm-save"),
        ],
    )
    def test_every_tool(self, command: str, shows: str, dump: str) -> None:
        n = node()
        n.run(command)
        assert shows in n.dump(dump)

    def test_conntrack_sysctl_and_ip(self) -> None:
        n = node()
        n.send(PACKET, "eth0", 0)
        assert "dport=53" in n.run("conntrack -L")
        n.run("sysctl -w net.ipv4.ip_forward=0")
        assert n.send(PACKET, "eth0", 0).fate == "dropped"
        n.run("sysctl -w net.ipv4.ip_forward=1")
        n.run("ip route add blackhole 10.0.0.2/32")
        assert n.send(PACKET, "eth0", 0).fate == "dropped"
        n.run("ip addr add 10.0.0.2/32 dev lo")
        assert n.send(PACKET, "eth0", 0).fate == "delivered"
        n.run("ip link set eth0 down")
        assert n.send(PACKET, "eth0", 0).reason == "the link is down"

    def test_an_empty_one_does_nothing(self) -> None:
        assert node().run("  ") == ""

    def test_refusals(self) -> None:
        for command, kind in (
            ("iptables -A NOWHERE -j DROP", Refused),
            ("iptables -A FORWARD 'unclosed", Refused),
            ("ip6tables -A FORWARD -j DROP", Unsupported),
            ("nft list ruleset", Unsupported),
        ):
            with pytest.raises(kind):
                node().run(command)

    def test_a_refused_command_changes_nothing(self) -> None:
        n = node()
        before = n.dump("iptables-save")
        with pytest.raises(Refused):
            n.run("iptables -A FORWARD -m set --match-set nosuch src -j DROP")
        assert n.dump("iptables-save") == before


class TestDumps:
    def test_all_can_be_asked_of_a_bare_node(self) -> None:
        for what in (
            "iptables-save", "ip6tables-save", "ipset-save", "conntrack", "ipvsadm-save", "ipvsadm-list",
            "ipvsadm-stats", "ipvsadm-connections",
        ):  # fmt: skip
            assert isinstance(node("*filter\nCOMMIT\n").dump(what), str)

    def test_another_is_refused_with_the_names(self) -> None:
        with pytest.raises(Refused, match="no dump 'nft'") as caught:
            node().dump("nft")
        assert "ipvsadm-stats" in str(caught.value)


def test_everything_wrong_with_a_model_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[[link]]\nname = "eth0"\naddresses = ["10.0.0.300/24"]\n')
    (tmp_path / "iptables.save").write_text("*filter\n-A FORWARD -j NOSUCH\n-A FORWARD --dport 80 -j DROP\nCOMMIT\n")
    (tmp_path / "ipset.save").write_text("create s hash:nonsense\n")
    (tmp_path / "conntrack.list").write_text("not a line\n")
    with pytest.raises((Refused, Unsupported)) as caught:
        Node.load(tmp_path)
    text = str(caught.value)
    for place in ("node.toml", "iptables.save:2", "iptables.save:3", "ipset.save:1", "conntrack.list:1"):
        assert place in text


def test_caveats_are_counted() -> None:
    n = node()
    n.caveat("something")
    n.caveat("something")
    assert n.caveats["something"] == 2


def test_numbers_of_many_calls_go_on() -> None:
    n = node()
    for _ in range(3):
        n.send(PACKET, "eth0", 0)
    assert n.serial == 3


def test_slices_and_negative_places() -> None:
    events = Events()
    events += [(float(at), "eth0", PACKET) for at in range(4)]
    journeys = node().replay(read_capture(as_capture(node(), events)))
    assert [j.time for j in journeys[1:3]] == [1.0, 2.0] and journeys[-1].time == 3.0
    with pytest.raises(IndexError):
        journeys[4]
    (part,) = journeys.parts
    assert part[-1].time == 3.0 and len(part[::2]) == 2
    with pytest.raises(IndexError):
        part[-5]
