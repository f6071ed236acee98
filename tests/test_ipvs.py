"""IPVS: services and their commands, connections and their states, forwarding, persistence, conntrack, ICMP."""

from __future__ import annotations

import io
import random
import re
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from craft import checksum, error, ip, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st

from netemu import Node, Refused, Unsupported, read_capture
from netemu.capture import CaptureWriter
from netemu.ipvs import (
    CL,
    ES,
    EVENT,
    FW,
    SCTP_CHUNKS,
    SCTP_DATA,
    SCTP_SHORT,
    SCTP_TRANSITIONS,
    SR,
    SS,
    TRANSITIONS,
    Choice,
    Destination,
    Index,
    Servers,
    Service,
)
from netemu.ipvsadm import _dest_order, _merge_sorted
from netemu.node import Journey
from netemu.schedulers import SCHEDULERS

NODE = """
kernel = "6.1"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/24"]
mtu = 1400
[[link]]
name = "kube-ipvs0"
kind = "dummy"
up = false
addresses = ["10.96.0.10/32", "10.96.0.11/32"]
[[route]]
to = "default"
via = "10.0.0.254"
dev = "eth0"
[sysctl]
"""
MASQUERADE = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o cni0 -j MASQUERADE
COMMIT
"""
CLIENT, VIP, ONE, TWO = "198.51.100.7", "10.96.0.10", "10.244.0.5", "10.244.0.6"
WEB = f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {ONE}:8080 -m\n"


class World:
    """A node, and packets as clients and servers send them, a millisecond apart."""

    def __init__(self, folder: Path, ipvs: str = WEB, iptables: str = "", **knobs: int) -> None:
        sysctl = "".join(f'"net.ipv4.vs.{name}" = {value}\n' for name, value in knobs.items())
        (folder / "node.toml").write_text(NODE + sysctl)
        (folder / "ipvsadm.save").write_text(ipvs)
        if iptables:
            (folder / "iptables.save").write_text(iptables)
        self.node = Node.load(folder)
        self.at = 0.0

    def send(self, packet: bytes, link: str | None = "eth0", wait: float = 0.001) -> Journey:
        self.at += wait
        journey = self.node.send(packet, link=link, at=self.at)
        self.node.ipvs.check()
        return journey

    def ask(self, flags: str = "S", sport: int = 4000, client: str = CLIENT, port: int = 80, **kw: int) -> Journey:
        return self.send(tcp(client, sport, VIP, port, flags, **kw))

    def answer(self, flags: str, sport: int = 4000, server: str = ONE, port: int = 8080) -> Journey:
        return self.send(tcp(server, port, CLIENT, sport, flags), "cni0")

    def run(self, command: str) -> str:
        return self.node.run(f"ipvsadm {command}", at=self.at) or ""

    def states(self) -> list[tuple[str, str]]:
        """(state, client) of each connection."""
        lines = self.node.dump("ipvsadm-connections").splitlines()[2:]
        return [(line.split()[2], line.split()[3]) for line in lines]

    def counts(self) -> dict[str, tuple[int, int]]:
        """server -> (active, inactive)."""
        lines = [line.split() for line in self.node.dump("ipvsadm-list").splitlines() if line.startswith("  -> 1")]
        return {w[1]: (int(w[4]), int(w[5])) for w in lines}


def went(journey: Journey) -> tuple[str, str, str]:
    """(link, source, destination) of the one packet that left."""
    ((link, b),) = journey.out
    source, target = socket.inet_ntoa(b[12:16]), socket.inet_ntoa(b[16:20])
    sport, dport = struct.unpack_from("!HH", b, (b[0] & 15) * 4)
    return link, f"{source}:{sport}", f"{target}:{dport}"


# ---- a conversation ---------------------------------------------------------------------------------------------


def test_a_conversation_is_translated_both_ways(tmp_path: Path) -> None:
    world = World(tmp_path)
    j = world.ask("S")
    assert went(j) == ("cni0", f"{CLIENT}:4000", f"{ONE}:8080")
    assert f"ipvs: {VIP}:80/tcp rr -> {ONE}:8080" in map(str, j.steps)
    assert [(r.field, r.old, r.new) for r in j.rewrites][-1] == ("ttl", 64, 63)
    assert world.states() == [("SYN_RECV", f"{CLIENT}:4000")]
    assert went(world.answer("SA")) == ("eth0", f"{VIP}:80", f"{CLIENT}:4000")
    assert world.counts() == {f"{ONE}:8080": (1, 0)}
    j = world.ask("A")
    assert f"ipvs: {VIP}:80/tcp known -> {ONE}:8080" in map(str, j.steps)
    assert world.states() == [("ESTABLISHED", f"{CLIENT}:4000")]
    world.answer("FA")
    assert world.counts() == {f"{ONE}:8080": (0, 1)}
    world.ask("FA")
    assert world.states() == [("TIME_WAIT", f"{CLIENT}:4000")]
    world.node.advance(at=126)  # timers ring up to a granule of the wheel late
    assert world.states() == []
    assert world.counts() == {f"{ONE}:8080": (0, 0)}


def test_stats_count_what_passed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask("S")
    world.answer("SA")
    service, server = world.node.dump("ipvsadm-stats").splitlines()[3:]
    assert service.split()[2:] == server.split()[2:] == ["1", "1", "1", "48", "48"]
    assert service[:33] == f"{'TCP  ' + VIP + ':80':<33}"
    world.run("-Z")
    assert world.node.dump("ipvsadm-stats").splitlines()[3].split()[2:] == ["0"] * 5


def test_timeouts_can_be_set(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask("S")
    world.ask("A")
    world.run("--set 10 0 20")
    assert world.run("-Ln --timeout") == "Timeout (tcp tcpfin udp): 10 120 20\n"
    packets = tcp(CLIENT, 4000, VIP, 80, "A"), tcp(ONE, 8080, CLIENT, 4000, "A")
    file = io.BytesIO()
    with CaptureWriter(file, world.node.routing.names) as writer:
        for k in range(40):
            writer.write(("eth0", "cni0")[k & 1], 10**9 + k, packets[k & 1])
    world.node.replay(read_capture(io.BytesIO(file.getvalue())))
    world.node.ipvs.check()
    world.node.advance(at=10.9)
    assert len(world.states()) == 1
    world.node.advance(at=11.8)
    assert world.states() == []


def test_what_is_not_a_beginning_is_not_scheduled(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert [world.ask(flags).fate for flags in ("A", "R", "FA", "RA")] == ["delivered"] * 4
    assert world.ask("SA").fate == "forwarded"
    assert World(tmp_path, sloppy_tcp=1).ask("A").fate == "forwarded"


def test_no_server_is_told_to_the_client(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:80 -s rr\n")
    j = world.ask()
    assert (j.fate, j.reason) == ("rejected", f"ipvs: {VIP}:80/tcp has no real server")
    link, b = j.out[0]
    assert link == "eth0" and b[20:22] == b"\x03\x03" and socket.inet_ntoa(b[12:16]) == VIP


def test_ttl_mtu_and_route_are_asked_before_translation(tmp_path: Path) -> None:
    world = World(tmp_path, WEB + f"-A -t {VIP}:81 -s rr\n-a -t {VIP}:81 -r 10.250.0.1:81 -m\n")
    j = world.ask(ttl=1)
    assert j.out[0][1][20:22] == b"\x0b\x00" and j.fate == "rejected"
    j = world.send(tcp(CLIENT, 4001, VIP, 80, "S", data=b"x" * 1380))
    assert j.out[0][1][20:22] == b"\x03\x04" and struct.unpack_from("!H", j.out[0][1], 26) == (1400,)
    world.node.run("ip route add unreachable 10.250.0.0/16", at=1)
    world.at = 1
    j = world.ask(port=81)
    assert j.out[0][1][20:22] == b"\x03\x01" and j.reason == "ipvs: no route to the real server"


# ---- servers that come and go -------------------------------------------------------------------------------------


@pytest.mark.parametrize("expire", [0, 1])
def test_a_deleted_server_takes_its_connections_along_or_not(tmp_path: Path, expire: int) -> None:
    world = World(tmp_path, expire_nodest_conn=expire)
    world.ask("S")
    world.run(f"-d -t {VIP}:80 -r {ONE}:8080")
    if expire:
        assert world.states() == []
        assert world.ask("A").fate == "delivered"
        return
    assert world.states() == [("SYN_RECV", f"{CLIENT}:4000")]
    assert world.ask("A").reason == "ipvs: the real server is gone"
    world.run(f"-a -t {VIP}:80 -r {ONE}:8080 -m -w 3")  # it comes back as it was
    assert world.counts() == {f"{ONE}:8080": (1, 0)}
    assert went(world.ask("A"))[2] == f"{ONE}:8080"


def test_thresholds_keep_new_connections_away(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {ONE}:80 -m -x 2 -y 1\n")
    assert [world.ask(sport=n).fate for n in (1, 2, 3)] == ["forwarded", "forwarded", "rejected"]
    world.ask("R", sport=1)
    assert world.ask(sport=4).fate == "rejected"
    world.node.advance(at=30)  # the first went: one is left, which is not below the lower threshold
    world.at = 30
    assert world.ask(sport=5).fate == "rejected"
    world.node.advance(at=70)
    world.at = 70
    assert world.ask(sport=6).fate == "forwarded"


def test_a_syn_on_a_worn_out_connection_schedules_anew(tmp_path: Path) -> None:
    text = WEB + f"-a -t {VIP}:80 -r {TWO}:8080 -m\n"
    for mode, expected in ((1, ONE), (0, TWO)):
        world = World(tmp_path, text, conn_reuse_mode=mode)
        assert went(world.ask())[2] == f"{TWO}:8080"
        world.answer("FA", server=TWO)
        world.ask("FA")
        assert went(world.ask())[2] == f"{expected}:8080"


# ---- persistence ------------------------------------------------------------------------------------------------


def test_clients_of_a_net_share_a_template(tmp_path: Path) -> None:
    text = f"-A -t {VIP}:80 -s rr -p 60 -M 255.255.255.0\n" + "".join(
        f"-a -t {VIP}:80 -r {server}:80 -m\n" for server in (ONE, TWO)
    )
    world = World(tmp_path, text)
    first = went(world.ask(sport=1))[2]
    assert went(world.ask(sport=2, client="198.51.100.200"))[2] == first
    assert went(world.ask(sport=3, client="198.51.101.1"))[2] != first
    assert ("NONE", "198.51.100.0:0") in world.states()
    world.run(f"-e -t {VIP}:80 -r {first} -m -w 0")  # what is bound stays bound
    assert went(world.ask(sport=4))[2] == first
    world.node.run("sysctl -w net.ipv4.vs.expire_quiescent_template=1", at=world.at)
    assert went(world.ask(sport=5))[2] != first


def test_a_template_lives_as_long_as_it_controls(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:80 -s rr -p 5\n-a -t {VIP}:80 -r {ONE}:80 -m\n")
    world.ask("S")
    world.send(tcp(ONE, 80, CLIENT, 4000, "SA"), "cni0")
    world.ask("A")
    assert ("ASSURED", f"{CLIENT}:0") in world.states()
    world.node.advance(at=890)
    assert len(world.states()) == 2
    world.node.advance(at=1000)
    assert world.states() == []


# ---- other ways to a server ---------------------------------------------------------------------------------------


def test_direct_routing_leaves_the_packet_alone(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {ONE} -g\n")
    assert went(world.ask()) == ("cni0", f"{CLIENT}:4000", f"{VIP}:80")
    world.ask("A")
    assert world.states() == [("ESTABLISHED", f"{CLIENT}:4000")]
    world.ask("FA")
    assert world.states() == [("FIN_WAIT", f"{CLIENT}:4000")]  # answers do not pass here


def test_a_tunnel_wraps_the_packet(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {ONE} -i\n")
    ((link, b),) = world.ask().out
    assert (link, b[9], b[8], b[28]) == ("cni0", 4, 63, 63)
    assert socket.inet_ntoa(b[12:16]) == "10.244.0.1" and socket.inet_ntoa(b[16:20]) == ONE
    assert socket.inet_ntoa(b[36:40]) == VIP and checksum(b[:20]) == 0


def test_a_server_on_the_node_itself(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r 10.0.0.1:8080 -m\n")
    j = world.ask()
    assert j.fate == "delivered"
    assert ("dport", 80, 8080) in [(r.field, r.old, r.new) for r in j.rewrites]
    reply = world.send(tcp("10.0.0.1", 8080, CLIENT, 4000, "SA"), None)
    assert went(reply) == ("eth0", f"{VIP}:80", f"{CLIENT}:4000")


def test_a_firewall_mark_service(tmp_path: Path) -> None:
    mark = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.96.0.11/32 -j MARK --set-mark 7\nCOMMIT\n"
    world = World(tmp_path, f"-A -f 7 -s rr -p 60\n-a -f 7 -r {ONE}:0 -m\n", mark)
    assert went(world.send(tcp(CLIENT, 4000, "10.96.0.11", 81, "S")))[2] == f"{ONE}:81"
    assert went(world.send(udp(CLIENT, 4000, "10.96.0.11", 53)))[2] == f"{ONE}:53"
    template = next(line for line in world.node.dump("ipvsadm-connections").splitlines() if line.startswith("IP "))
    assert template.split()[2:] == ["NONE", f"{CLIENT}:0", "0.0.0.7:0", f"{ONE}:0"]


def test_one_packet_scheduling_remembers_nothing(tmp_path: Path) -> None:
    text = f"-A -u {VIP}:53 -s rr -o\n" + "".join(f"-a -u {VIP}:53 -r {s}:53 -m\n" for s in (ONE, TWO))
    world = World(tmp_path, text)
    packet = udp(CLIENT, 4000, VIP, 53)
    assert [went(world.send(packet))[2] for _ in range(3)] == [f"{TWO}:53", f"{ONE}:53", f"{TWO}:53"]
    assert world.states() == [] and set(world.counts().values()) == {(0, 0)}


def sctp(src: str, sport: int, dst: str, dport: int, chunk: int) -> bytes:
    return ip(src, dst, 132, struct.pack("!HHIIBBH", sport, dport, 7, 0, chunk, 0, 4))


def test_sctp_begins_with_init(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A --sctp-service {VIP}:9 -s rr\n-a --sctp-service {VIP}:9 -r {ONE}:9 -m\n")
    assert world.send(sctp(CLIENT, 5, VIP, 9, 0)).fate == "delivered"
    for from_client, chunk, state in ((1, 1, "INIT1"), (0, 2, "C-SENT"), (1, 10, "C-REPLIED"), (0, 11, "ESTABLISHED")):
        ends = (CLIENT, 5, VIP, 9) if from_client else (ONE, 9, CLIENT, 5)
        assert world.send(sctp(*ends, chunk), "eth0" if from_client else "cni0").fate == "forwarded"
        assert world.states() == [(state, f"{CLIENT}:5")]
    assert world.counts() == {f"{ONE}:9": (1, 0)}


# ---- conntrack, ICMP ----------------------------------------------------------------------------------------------


def test_with_vs_conntrack_the_flow_knows_the_server_and_goes_with_the_connection(tmp_path: Path) -> None:
    world = World(tmp_path, iptables=MASQUERADE, conntrack=1)
    assert went(world.ask()) == ("cni0", "10.244.0.1:4000", f"{ONE}:8080")
    flow = world.node.dump("conntrack")
    assert f"src={CLIENT} dst={VIP} sport=4000 dport=80 [UNREPLIED] src={ONE} dst=10.244.0.1 sport=8080" in flow
    back = world.send(tcp(ONE, 8080, "10.244.0.1", 4000, "SA"), "cni0")
    assert went(back) == ("eth0", f"{VIP}:80", f"{CLIENT}:4000")
    world.node.advance(at=66)
    assert world.states() == [] and world.node.dump("conntrack") == ""


def test_without_vs_conntrack_the_packet_leaves_untracked(tmp_path: Path) -> None:
    world = World(tmp_path, iptables=MASQUERADE)
    assert went(world.ask()) == ("cni0", f"{CLIENT}:4000", f"{ONE}:8080")
    assert world.node.dump("conntrack") == ""


def test_icmp_errors_are_translated_both_ways(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask()
    j = world.send(error("10.244.0.99", CLIENT, tcp(CLIENT, 4000, ONE, 8080, "S")), "cni0")
    ((link, b),) = j.out
    assert link == "eth0" and socket.inet_ntoa(b[12:16]) == VIP  # even from a router on the way
    assert socket.inet_ntoa(b[44:48]) == VIP and struct.unpack_from("!H", b, 50) == (80,)
    assert checksum(b[20:]) == checksum(b[28:48]) == 0
    j = world.send(error("192.0.2.1", VIP, tcp(VIP, 80, CLIENT, 4000, "SA"), 3, 1))
    ((link, b),) = j.out
    assert link == "cni0" and socket.inet_ntoa(b[16:20]) == ONE and b[8] == 63
    assert socket.inet_ntoa(b[40:44]) == ONE and struct.unpack_from("!H", b, 48) == (8080,)
    assert {r.field for r in j.rewrites} >= {"dst", "inner.src", "inner.sport", "ttl"}


def test_nat_icmp_send(tmp_path: Path) -> None:
    assert World(tmp_path).answer("A").fate == "forwarded"
    j = World(tmp_path, nat_icmp_send=1).answer("A")
    assert j.fate == "rejected" and j.out[0][0] == "cni0" and j.out[0][1][20:22] == b"\x03\x03"


def test_schedule_icmp_asks_a_scheduler_about_the_quoted_packet(tmp_path: Path) -> None:
    text = f"-A -u {VIP}:53 -s rr -o\n-a -u {VIP}:53 -r {ONE}:53 -m\n"
    quoted = error("192.0.2.1", VIP, udp(VIP, 53, CLIENT, 4000), 3, 3)
    assert World(tmp_path, text).send(quoted).fate == "delivered"
    world = World(tmp_path, text, schedule_icmp=1)
    assert world.send(quoted).fate == "forwarded"
    assert set(world.counts().values()) == {(0, 0)}


# ---- many at once -------------------------------------------------------------------------------------------------


CLIENTS = [CLIENT, "198.51.100.8", "198.51.100.9"]
MARKED = """*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 10.96.0.11/32 -j MARK --set-mark 7
COMMIT
"""


@settings(max_examples=20)
@given(data=st.data(), quick=st.booleans())
def test_many_packets_are_one_packet_repeated(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, quick: bool
) -> None:
    """Services of every scheduler and kind side by side; `quick`: however few the packets are, they go in columns."""
    folder = tmp_path_factory.mktemp("node")
    names = sorted(SCHEDULERS)
    text, last = "", 0  # the port of TWO in the first service
    for name, kinds in (
        (f"-t {VIP}:80", ["", "", " -p 60", " -p 60 -M 255.255.255.0"]),
        (f"-u {VIP}:80", ["", "", " -p 60", " -o", " -o -p 60"]),
        (f"-t {VIP}:82", ["", " -p 1"]),
        ("-f 7", ["", "", " -p 60", " -p 60 -M 255.255.255.0"]),
        (f"-t {VIP}:0", [" -p 60", " -p 2 -M 255.255.255.0"]),
        (f"-t {VIP}:81", [""]),
    ):
        text += f"-A {name} -s {data.draw(st.sampled_from(names))}{data.draw(st.sampled_from(kinds))}\n"
        for server in (ONE, TWO) if not name.endswith("81") else ():
            port = "0" if name.endswith((" 7", ":0")) else "8080"
            how = data.draw(st.sampled_from(["-m", "-m", "-m", "-g", "-i"]))
            more = data.draw(st.sampled_from(["", "", " -x 3 -y 1"]))
            last = last or (8080 if server == TWO and how == "-m" else 80 * (server == TWO))
            text += f"-a {name} -r {server}:{port} {how} -w {data.draw(st.integers(0, 3))}{more}\n"
    client, port = st.sampled_from(CLIENTS), st.sampled_from([4000, 4001, 4002])
    flags = st.sampled_from(["S", "S", "S", "A", "A", "PA", "FA", "R", "SA"])
    vip = st.sampled_from([VIP, VIP, "10.96.0.11"])
    packet = st.one_of(
        st.builds(
            lambda c, s, v, p, f, t: ("eth0", tcp(c, s, v, p, f, ttl=t)),
            client, port, vip, st.sampled_from([80, 80, 82, 81, 8080]), flags, st.sampled_from([64, 64, 64, 64, 1]),
        ),
        st.builds(lambda c, s, v: ("eth0", udp(c, s, v, 80)), client, port, vip),
        st.builds(lambda c, s, r, f: ("cni0", tcp(r, 8080, c, s, f)), client, port, st.sampled_from([ONE, TWO]), flags),
        st.builds(lambda c, s, r: ("cni0", udp(r, 8080, c, s)), client, port, st.sampled_from([ONE, TWO])),
    )  # fmt: skip
    packets = data.draw(st.lists(packet, min_size=2, max_size=60))
    knobs = {
        name: data.draw(st.sampled_from([0, 0, 1]))
        for name in (
            "conn_reuse_mode",
            "sloppy_tcp",
            "nat_icmp_send",
            "conntrack",
            "expire_nodest_conn",
            "expire_quiescent_template",
        )
    }
    knobs["secure_tcp"] = data.draw(st.sampled_from([0, 3]))
    gap = data.draw(st.sampled_from([1_000_000, 1_000_000, 700_000_000]))
    tables = MARKED + data.draw(st.sampled_from(["", MASQUERADE]))

    def world() -> World:
        made = World(folder, text, tables, **knobs)
        if delete:  # its connections wait
            made.run(delete)
        return made

    delete = data.draw(st.sampled_from(["", "", f"-d -t {VIP}:80 -r {TWO}:{last}"]))
    one = world()
    wanted = [one.send(b, link, wait=gap / 1e9) for link, b in packets]
    for run_length in (None, 7):
        many = world().node
        file = io.BytesIO()
        with CaptureWriter(file, many.routing.names) as writer:
            for k, (link, b) in enumerate(packets, 1):
                writer.write(link, k * gap, b)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("netemu.ipvs.FEW", 0 if quick else 6)
            got = many.replay(read_capture(io.BytesIO(file.getvalue())), run_length)
        many.ipvs.check()
        for k, want in enumerate(wanted):
            assert (got[k].fate, got[k].out) == (want.fate, want.out), k
            assert list(map(str, got[k].steps)) == list(map(str, want.steps)), k
        for dump in ("ipvsadm-list", "ipvsadm-stats", "ipvsadm-connections", "conntrack"):
            assert sorted(many.dump(dump).splitlines()) == sorted(one.node.dump(dump).splitlines())


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("threshold", ["", " -x 40 -y 10"])
def test_a_crowd_of_persistent_clients_is_one_after_the_other(tmp_path: Path, scheduler: str, threshold: str) -> None:
    """Hundreds of connections of a few dozen clients: who makes a template, and who only comes under it."""
    text = ""
    for name, how in (
        (f"-t {VIP}:80", "-p 60"),
        (f"-t {VIP}:81", "-p 2 -M 255.255.255.240"),
        (f"-t {VIP}:82", ""),
        (f"-t {VIP}:0", "-p 60"),
        ("-f 7", "-p 60 -M 255.255.255.240"),
        (f"-u {VIP}:80", "-p 1"),
    ):
        text += f"-A {name} -s {scheduler} {how}\n"
        for k in range(4):
            port = "0" if name.endswith((" 7", ":0")) else "8080"
            text += f"-a {name} -r 10.244.0.{5 + k}:{port} {'-g' if k == 2 else '-m'} -w {k}{threshold}\n"
    rng = random.Random(scheduler + threshold)
    packets = []
    for _ in range(900):
        client, port = f"198.51.100.{rng.randrange(30)}", rng.randrange(1024, 4096)
        vip = rng.choice([VIP, VIP, "10.96.0.11"])
        if rng.random() < 0.2:
            packets.append(udp(client, port, vip, 80))
        else:
            packets.append(tcp(client, port, vip, rng.choice([80, 80, 81, 82, 443]), rng.choice(["S", "S", "S", "A"])))
    told = []
    for run_length in (1, 100, None):
        node = World(tmp_path, text, MARKED, sloppy_tcp=1, conntrack=1).node
        file = io.BytesIO()
        with CaptureWriter(file, node.routing.names) as writer:
            for k, packet in enumerate(packets, 1):
                writer.write("eth0", k * 9_000_000, packet)
        got = node.replay(read_capture(io.BytesIO(file.getvalue())), run_length)
        node.ipvs.check()
        dumps = [sorted(node.dump(f"ipvsadm-{what}").splitlines()) for what in ("list", "stats", "connections")]
        told.append(([(j.fate, j.out, list(map(str, j.steps))) for j in got], dumps))
    assert told[0] == told[1]
    assert told[0] == told[2]


# ---- ipvsadm ----------------------------------------------------------------------------------------------------

SAVED = """\
-A -t 10.96.0.1:80 -s wlc
-a -t 10.96.0.1:80 -r 10.0.0.5:80 -g -w 1
-a -t 10.96.0.1:80 -r 10.0.0.6:8080 -m -w 1
-a -t 10.96.0.1:80 -r 10.0.0.11:80 -i -w 0 --tun-type ipip
-A -t 10.96.0.9:0 -s rr -p 360
-A -u 10.96.0.9:53 -s mh -o -b mh-port
-A -u 10.96.0.9:54 -s rr -b flag-1,flag-3
-A --sctp-service 10.96.0.2:53 -s wrr -p 360
-A -f 3 -s sh -b sh-fallback,sh-port
-A -f 7 -s wlc -p 60 -M 255.255.255.0
-a -f 7 -r 10.0.0.5:8080 -m -w 1
"""
LISTED = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.1:80 wlc
  -> 10.0.0.5:80                  Route   1      0          0         
  -> 10.0.0.6:8080                Masq    1      0          0         
  -> 10.0.0.11:80                 Tunnel  0      0          0         
TCP  10.96.0.9:0 rr persistent 360
UDP  10.96.0.9:53 mh (mh-port) ops
UDP  10.96.0.9:54 rr (flag-1,flag-3)
SCTP 10.96.0.2:53 wrr persistent 360
FWM  3 sh (sh-fallback,sh-port)
FWM  7 wlc persistent 60 mask 255.255.255.0
  -> 10.0.0.5:8080                Masq    1      0          0         
"""  # noqa: W291


def test_save_and_list_are_the_tools_own_text(tmp_path: Path) -> None:
    world = World(tmp_path, "# Warning: a comment\n\n" + SAVED)
    assert world.node.dump("ipvsadm-save") == SAVED == world.run("-Sn")
    assert world.node.dump("ipvsadm-list") == LISTED == world.run("-L -n")
    assert world.run("-Ln --timeout") == "Timeout (tcp tcpfin udp): 900 120 300\n"


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("-A -t 10.96.0.10:80", 255, "Service already exists"),
        ("-A -t 10.96.0.10:81 -s foo", 255, "Scheduler or persistence engine not found"),
        ("-A -t 10.96.0.10", 2, "Zero port specified for non-persistent service"),
        ("-A -t 10.96.0.10:99999", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 10.96.0.10:82 -o", 2, "One-Packet Scheduling is only for UDP virtual services"),
        ("-A -t 10.96.0.10:82 -p 0", 2, "invalid timeout value `0' specified"),
        ("-A -f 0", 2, "invalid fwmark value `0' specified"),
        ("-A -t 10.96.0.10:82 -s sh -b mh-port", 2, "incompatible scheduler flag `mh-port'"),
        ("-A -t 10.96.0.10:82 -b xx", 2, "invalid scheduler flag `xx'"),
        ("-A -t 10.96.0.10:82 -t 10.96.0.10:83", 2, "multiple 'service-address' options specified"),
        ("-A", 2, "You need to supply the 'service-address' option for the 'add-service' command"),
        ("-A -t 10.96.0.10:82 -w 5", 2, "Illegal 'weight' option with the 'add-service' command"),
        ("-A -t 10.96.0.10:82 extra", 2, "unexpected argument extra"),
        ("-A -D", 2, "invalid option `-D'"),
        ("-E -t 10.96.0.10:82", 255, "No such service"),
        ("-D -t 10.96.0.10:82", 255, "No such service"),
        ("-Ln -t 10.96.0.10:82", 1, "No such service"),
        ("-a -t 10.96.0.10:82 -r 10.0.0.5", 255, "Service not defined"),
        ("-a -t 10.96.0.10:80 -r 10.244.0.5:8080 -m", 255, "Destination already exists"),
        ("-a -t 10.96.0.10:80 -r 10.0.0.5 -x 3 -y 10", 255, "Numerical result out of range"),
        ("-a -t 10.96.0.10:80 -r 10.0.0.5 -w -1", 2, "illegal weight specified"),
        ("-a -t 10.96.0.10:80 -r 224.0.0.1:80 -m", 255, "Invalid operation."),
        ("-e -t 10.96.0.10:80 -r 10.0.0.99 -m", 255, "No such destination"),
        ("-d -t 10.96.0.10:80 -r 10.0.0.99", 255, "No such destination"),
        ("--set 1 2", 2, "--set option requires 3 timeout values"),
        ("-t 10.96.0.10:80", 255, "Try `ipvsadm -h'"),
        ("-Lnz", 255, "-Lnz: unknown option"),
        ("-C -n", 2, "Illegal 'numeric' option with the 'flush' command"),
        ("-Lnc --stats", 2, "options conflicts in the list command"),
    ],
)
def test_refusals_are_the_tools_own_words(tmp_path: Path, command: str, status: int, words: str) -> None:
    with pytest.raises(Refused) as e:
        World(tmp_path).run(command)
    assert e.value.problems[0].what.startswith(words)
    assert e.value.status == status


def test_rates_are_averages_of_two_seconds_each(tmp_path: Path) -> None:
    """As Linux 6.1 shows them for 75, 100, 100 and 25 packets of 128 bytes in two seconds each, and none after."""
    world = World(tmp_path, f"-A -u {VIP}:53 -s rr\n-a -u {VIP}:53 -r {ONE}:53 -m\n")
    seen = []
    for count in (75, 100, 100, 25, 0, 0):
        for _ in range(count):
            world.send(udp(CLIENT, 4000, VIP, 53, b"x" * 100), wait=0.0)
        world.at += 2
        seen.append(world.run("-Ln --rate").splitlines()[-1].split()[2:])
    numbers = [[int(word) for word in line] for line in seen]
    assert [(n[1], n[3]) for n in numbers] == [(9, 1200), (20, 2500), (27, 3475), (23, 3006), (18, 2255), (13, 1691)]
    assert not any(n[0] or n[2] or n[4] for n in numbers)
    world.run("-Z")
    assert world.run("-Ln --rate").splitlines()[-1].split()[2:] == ["0"] * 5


@pytest.mark.parametrize("command", ["-A -t [fd00::1]:80", "-A -u 10.0.0.1:5060 -p 60 --pe sip"])
def test_what_is_not_modelled_is_named(tmp_path: Path, command: str) -> None:
    with pytest.raises(Unsupported):
        World(tmp_path).run(command)


def test_a_load_names_every_line_that_it_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(Refused) as e:
        World(tmp_path, WEB + "-A -t 10.96.0.10:80 -s rr\n-A -t [fd00::1]:80\n-a -t 1.2.3.4:5 -r 1.2.3.4\n")
    assert [(p.line, p.kind) for p in e.value.problems] == [(3, "Refused"), (4, "Unsupported"), (5, "Refused")]


def test_ipvsadm_sorts_by_subtraction() -> None:
    service = Service(6, 0, 80, 0)
    names = ["1.0.0.1", "128.0.0.1", "192.168.1.1", "10.0.0.1"]  # as recorded
    addrs = [int.from_bytes(socket.inet_aton(name), "big") for name in names]
    columns = Servers()
    dests = [Destination(columns, k, service, addr, 80) for k, addr in enumerate(addrs)]
    assert [d.text for d in _merge_sorted(dests, _dest_order)] == [
        "192.168.1.1:80",
        "1.0.0.1:80",
        "10.0.0.1:80",
        "128.0.0.1:80",
    ]


# ---- columns ----------------------------------------------------------------------------------------------------


def test_states_are_an_index() -> None:
    fin, syn, rst, ack = EVENT[[1, 2, 4, 16]]
    assert (TRANSITIONS[0, syn, 0], TRANSITIONS[1, syn, SR], TRANSITIONS[0, ack, SR]) == (SR, SR, ES)
    assert (TRANSITIONS[2, fin, ES], TRANSITIONS[0, rst, ES], TRANSITIONS[1, rst, SS]) == (FW, CL, SS)
    assert EVENT[2 | 16] == syn and EVENT[1 | 16] == fin and EVENT[4 | 2] == rst
    assert (TRANSITIONS[:, EVENT[8]] == CL).all()
    assert SCTP_TRANSITIONS.shape == (3, SCTP_DATA + 1, len(SCTP_SHORT))
    first = {
        t: SCTP_SHORT[SCTP_TRANSITIONS[0, SCTP_CHUNKS.get(t, SCTP_DATA), 0]] for t in (0, 1, 2, 7, 8, 9, 10, 11, 14)
    }
    assert list(first.values()) == ["ES", "I1", "CW", "SR", "CL", "CL", "CR", "ES", "CL"]  # as recorded


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=40))
def test_an_index_shows_the_newest_of_those_with_one_key(events: list[tuple[bool, int]]) -> None:
    index = Index(1)
    index.hold(64)
    held: dict[int, list[int]] = {}
    for c, (add, key) in enumerate(events):
        if add:
            index.push((key, 1), c)
            held.setdefault(key, []).append(c)
        elif held.get(key):
            index.pull(held[key].pop(c % len(held[key])))
        index.check()
        for k in range(4):
            assert index.find_one(k, 1) == (held[k][-1] if held.get(k) else -1)
    keys = np.arange(20, dtype=np.uint64) % np.uint64(4)
    assert index.find(keys, np.ones(20, np.uint64)).tolist() == [index.find_one(int(k), 1) for k in keys]


def test_an_index_takes_many_as_one_after_the_other() -> None:
    rng = np.random.default_rng(5)
    one, many = Index(1), Index(1)
    for index in (one, many):
        index.hold(2000)
    for begin in range(0, 2000, 100):
        conns = np.arange(begin, begin + 100, dtype=np.int32)
        keys = rng.integers(0, 150, 100).astype(np.uint64)
        for c, key in zip(conns.tolist(), keys.tolist(), strict=True):
            one.push((key, 7), c)
        many.push_many(keys, np.full(100, 7, np.uint64), conns)
        gone = np.flatnonzero(rng.random(begin + 100) < 0.1).astype(np.int32)
        for c in gone.tolist():
            one.pull(c)
        many.pull_many(gone)
        for index in (one, many):
            index.check()
        assert (one.older == many.older).all() and (one.younger == many.younger).all()


# ---- what else it does --------------------------------------------------------------------------------------------

TUNNELS = {  # what Linux 6.1 made of a UDP packet; of GUE, source port and checksum (of a drawn port) are left out
    "--tun-type ipip": "45000033000040003b0429da0af400010af40005",
    "--tun-type gre": "45000037000040003b2f29ab0af400010af4000500000800",
    "--tun-type gre --tun-csum": "4500003b000040003b2f29a70af400010af4000580000800acc20000",
    "--tun-type gue --tun-port 6080": "4500003f000040003b1129c10af400010af40005....17c0002b000000040000",
    "--tun-type gue --tun-port 6080 --tun-csum": "4500003f000040003b1129c10af400010af40005....17c0002b....00040000",
}


@pytest.mark.parametrize("options", TUNNELS)
def test_a_tunnel_s_header_is_made(tmp_path: Path, options: str) -> None:
    world = World(tmp_path, f"-A -u {VIP}:53 -s rr\n-a -u {VIP}:53 -r {ONE} -i {options}\n")
    inner = udp("198.51.100.9", 1000, VIP, 53, b"xxx", ttl=60)
    ((link, out),) = world.send(inner).out
    head = TUNNELS[options]
    assert link == "cni0" and re.match(head, out.hex())
    assert out[-len(inner) :][9:] == inner[:8][8:] + inner[9:10] + out[-len(inner) :][10:12] + inner[12:]
    if out[9] == 17 and "csum" in options:
        pseudo = out[12:20] + struct.pack("!BBH", 0, 17, len(out) - 20)
        assert checksum(pseudo + out[20:]) == 0
    assert options.split()[1] in world.run("-Sn")


def test_sctp_s_checksum_is_made_anew_when_a_port_changes(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A --sctp-service {VIP}:80 -s rr\n-a --sctp-service {VIP}:80 -r {ONE}:8080 -m\n")
    segment = bytes.fromhex("0005005000000007deadbeef01000010000000000000000000000000")
    ((_, out),) = world.send(ip("198.51.100.1", VIP, 132, segment)).out
    assert out[20:].hex() == "00051f900000000745da9fca01000010000000000000000000000000"  # as recorded


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_tells_its_choice(tmp_path: Path, name: str) -> None:
    world = World(tmp_path, WEB.replace("-s rr", f"-s {name}") + f"-a -t {VIP}:80 -r {TWO}:8080 -m -w 3\n")
    world.node.ipvs.tell = True
    for k in range(3):
        journey = world.ask("S", sport=4000 + k)
        (choice,) = journey._part.trip.choices.values()
        chosen = [c.server for c in choice.candidates if c.chosen]
        assert choice.scheduler == name and choice.service == f"{VIP}:80/tcp" and choice.why
        assert {c.server: c.weight for c in choice.candidates} == {f"{TWO}:8080": 3, f"{ONE}:8080": 1}
        if name == "none":
            assert choice.kind == "none" and not chosen
        else:
            assert choice.kind == "new" and chosen == [went(journey)[2]]
        (known,) = world.ask("S", sport=4000 + k)._part.trip.choices.values()
        assert known.kind == ("none" if name == "none" else "existing")


def test_how_a_server_was_chosen_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, WEB.replace("-s rr", "-s wlc -p 60") + f"-a -t {VIP}:80 -r {TWO}:8080 -m -w 3\n")
    world.node.ipvs.tell = True

    def told(journey: Journey) -> Choice:
        (choice,) = journey._part.trip.choices.values()
        return choice

    first = told(world.ask("S"))
    assert (first.kind, first.scheduler) == ("new", "wlc") and "weight 3" in first.why
    assert [(c.server, c.weight, c.active, c.chosen) for c in first.candidates] == [
        (f"{TWO}:8080", 3, 0, True),
        (f"{ONE}:8080", 1, 0, False),
    ]
    assert told(world.ask("A")).why == "its connection exists, state SYN_RECV, 00:59 left"
    second = told(world.ask("S", sport=4001))
    assert second.kind == "template" and "the template of 198.51.100.7 binds it" in second.why
    world.run(f"-E -t {VIP}:80 -s wlc")
    for server in (ONE, TWO):
        world.run(f"-e -t {VIP}:80 -r {server}:8080 -m -w 0")
    assert told(world.ask("S", sport=4002)).kind == "none"


def test_restore_reads_a_file_that_the_command_names(tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "new").write_text(f"-A -t {VIP}:443 -s rr\n-A -t {VIP}:443 -s rr\n-A -u {VIP}:53 -s sh\n")
    assert world.run(f"-R < {tmp_path / 'new'}") == ""  # what is there already is told, and the next line read
    assert f"-A -u {VIP}:53 -s sh\n" in world.node.dump("ipvsadm-save")
    assert world.run("-R") == ""
    (tmp_path / "bad").write_text("foo\n")
    with pytest.raises(Refused):
        world.run(f"-R < {tmp_path / 'bad'}")
    with pytest.raises(Refused, match="cannot read"):
        world.run("-R < nowhere")


def test_without_n_names_are_printed_and_the_report_says_which_are_missing(tmp_path: Path) -> None:
    world = World(tmp_path, WEB + f"-a -t {VIP}:80 -r 127.0.0.1:5355 -m\n")
    listed = world.run("-L")
    assert f"TCP  {VIP}:http rr\n" in listed and "  -> localhost:5355 " in listed
    assert f"-A -t {VIP}:http -s rr\n" in world.run("-S")
    assert any("ipvsadm without -n" in text for text in world.node.caveats)


def test_a_connection_and_its_template_that_end_together_both_go(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -u {VIP}:53 -s rr -p 300\n-a -u {VIP}:53 -r {ONE}:53 -m\n")
    world.send(udp(CLIENT, 4000, VIP, 53, b"x"))
    world.send(udp(CLIENT, 4000, VIP, 53, b"x"))  # its timer is the younger one, in the same granule
    world.node.advance(at=310)
    assert world.states() == []


def test_drop_entry_ends_connections_that_are_not_open(tmp_path: Path) -> None:
    world = World(tmp_path, WEB, drop_entry=3)
    for k in range(64):
        world.ask("S", sport=5000 + k)
    world.ask("S", sport=4000)
    world.answer("SA")
    world.ask("A")
    world.node.advance(at=30)
    left = world.states()
    assert ("ESTABLISHED", f"{CLIENT}:4000") in left and 0 < len(left) < 60
    world.node.ipvs.check()


def test_an_ftp_service_says_that_its_helper_is_not_there(tmp_path: Path) -> None:
    world = World(tmp_path, f"-A -t {VIP}:21 -s rr\n-a -t {VIP}:21 -r {ONE}:21 -m\n")
    world.ask("S", port=21)
    assert any("ip_vs_ftp" in text for text in world.node.caveats)


def test_an_abort_behind_a_cookie_closes_what_the_cookie_opened(tmp_path: Path) -> None:
    rules = f"-A --sctp-service {VIP}:80 -s rr\n-a --sctp-service {VIP}:80 -r {ONE}:80 -m\n"
    world = World(tmp_path, rules, sloppy_sctp=1)
    chunks = bytes.fromhex("0a000014" + "00" * 16 + "0600000c" + "01" * 8)
    world.send(ip(CLIENT, VIP, 132, struct.pack("!HHII", 4000, 80, 7, 0) + chunks))
    assert world.states() == [("CLOSED", f"{CLIENT}:4000")]  # as recorded
