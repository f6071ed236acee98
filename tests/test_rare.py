"""Rare matches: what they answer. Numbers that no reader can compute were read from real kernels, 6.1 and 6.18."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from craft import error, icmp, ip, tcp, udp
from test_matches import read

from netemu.grammar import Bad, Failed, NotModelled
from netemu.matches.content import Bpf
from netemu.model import AddressSpec, LinkSpec, Model, Text
from netemu.node import Node
from netemu.packets import HOST, MULTICAST, Packets
from netemu.sockets import Socket
from netemu.trip import Trip


def node_of(rules: str = "") -> Node:
    links = [LinkSpec(f"eth{k}", addresses=[AddressSpec(f"10.{k}.0.1/24")]) for k in range(2)]
    texts = {"iptables.save": Text(rules, "iptables.save")} if rules else {}
    model = Model(links=links, texts=texts)
    model.sysctl["net.ipv4.ip_forward"] = 1
    return Node(model)


def asked(name: str, text: str, *packets: bytes, node: Node | None = None) -> list[bool]:
    trip = Trip(node or node_of(), Packets.from_bytes(list(packets)))
    return read(name, text).mask(trip, np.arange(len(packets))).tolist()


# ---- headers ---------------------------------------------------------------------------------------------------------


def header(proto: int, number: int, **more: int) -> bytes:
    body = {50: struct.pack("!II", number, 1) + bytes(8), 51: struct.pack("!BBHII", 6, 4, 0, number, 1) + bytes(8)}
    return ip("10.0.0.5", "10.1.0.6", proto, body.get(proto, struct.pack("!BBH", 6, 0, number) + bytes(8)), **more)


@pytest.mark.parametrize(("name", "proto"), [("esp", 50), ("ah", 51), ("ipcomp", 108)])
def test_parameter_indexes(name: str, proto: int) -> None:
    packets = [header(proto, n) for n in (4, 5, 9, 10)] + [header(proto, 5, frag=1)]
    assert asked(name, f"--{name}spi 5:9", *packets) == [False, True, True, False, False]
    assert asked(name, f"! --{name}spi 5:9", *packets) == [True, False, False, True, False]
    assert not any(asked(name, f"--{name}spi 9:5", *packets))


def test_no_index_means_any_but_for_ipcomp() -> None:
    assert asked("esp", "", header(50, 7)) == [True]
    assert asked("ipcomp", "", header(108, 7), header(108, 0)) == [False, True]
    assert asked("esp", "! --espspi 0:4294967295", header(50, 7)) == [False]  # and prints as if nothing had been asked


def test_a_short_header_is_dropped() -> None:
    trip = Trip(node_of(), Packets.from_bytes([ip("10.0.0.5", "10.1.0.6", 50, b"abcdef")]))
    assert read("esp", "").mask(trip, np.arange(1)).tolist() == [False]
    assert trip.hot is not None and trip.hot.tolist() == [0]


# ---- programs --------------------------------------------------------------------------------------------------------

WEB = tcp("10.0.0.5", 4000, "10.1.0.6", 80, "S")


def run(program: str, packet: bytes = WEB, mark: int = 0) -> int:
    trip = Trip(node_of(), Packets.from_bytes([packet]))
    trip.pkts.mark[:] = mark
    match = read("bpf", f'--bytecode "{program}"')
    assert isinstance(match, Bpf)
    return match.run(trip, 0)


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("1,6 0 0 7", 7),
        ("2,48 0 0 9,22 0 0 0", 6),  # a byte
        ("2,40 0 0 2,22 0 0 0", 48),  # a half word
        ("2,32 0 0 12,22 0 0 0", 0x0A000005),  # a word
        ("2,128 0 0 0,22 0 0 0", 48),  # length
        ("3,177 0 0 0,72 0 0 2,22 0 0 0", 80),  # behind the IP header
        ("2,32 0 0 45,22 0 0 0", 0),  # beyond the packet
        ("2,32 0 0 4294963200,22 0 0 0", 0x0800),  # protocol
        ("2,32 0 0 4294963220,22 0 0 0", 0x77),  # mark
        ("2,40 0 0 4293918722,22 0 0 0", 48),  # from the network header
        ("3,0 0 0 5,132 0 0 0,22 0 0 0", 0xFFFFFFFB),  # negative
        ("3,0 0 0 4294967295,4 0 0 2,22 0 0 0", 1),
        ("3,0 0 0 7,52 0 0 2,22 0 0 0", 3),
        ("3,0 0 0 7,148 0 0 4,22 0 0 0", 3),
        ("4,0 0 0 7,1 0 0 0,60 0 0 0,22 0 0 0", 0),  # divided by 0
        ("5,0 0 0 9,2 0 0 15,0 0 0 1,96 0 0 15,22 0 0 0", 9),  # memory
        ("4,0 0 0 9,7 0 0 0,135 0 0 0,22 0 0 0", 9),
        ("4,5 0 0 1,6 0 0 1,5 0 0 0,6 0 0 2", 2),
        ("5,48 0 0 0,69 0 1 5,6 0 0 1,6 0 0 2,6 0 0 3", 1),
        ("4,48 0 0 8,37 0 1 64,6 0 0 1,6 0 0 2", 2),
    ],
)
def test_programs(program: str, result: int) -> None:
    assert run(program, mark=0x77) == result


@pytest.mark.parametrize(
    "program",
    ["1,99 0 0 0", "1,0 0 0 0", "2,21 0 5 1,6 0 0 0", "2,52 0 0 0,6 0 0 0", "2,96 0 0 3,6 0 0 0", "2,2 0 0 16,6 0 0 0",
     "2,100 0 0 32,6 0 0 0", "4,21 0 1 1,2 0 0 3,96 0 0 3,22 0 0 0"],
)  # fmt: skip
def test_programs_that_the_kernel_would_not_run(program: str) -> None:
    with pytest.raises(Failed):
        read("bpf", f'--bytecode "{program}"')


@pytest.mark.parametrize("program", ["2,6 0 0 0", "0,", "65,6 0 0 0", "foo", "1,6 0 0"])
def test_programs_that_are_none(program: str) -> None:
    with pytest.raises(Bad, match="bpf: "):
        read("bpf", f'--bytecode "{program}"')


def test_what_a_program_may_not_ask() -> None:
    with pytest.raises(NotModelled, match="-4056"):  # a random number
        read("bpf", '--bytecode "2,32 0 0 4294963240,22 0 0 0"')


# ---- connections -----------------------------------------------------------------------------------------------------


def test_labels_live_as_long_as_the_connection() -> None:
    rules = (
        "*mangle\n-A FORWARD -p tcp -m tcp --syn -m connlabel --label 3 --set\n"
        "-A FORWARD -m connlabel --label 3 -j MARK --set-mark 1\n"
        "-A FORWARD -m connlabel ! --label 3 -j MARK --set-mark 2\nCOMMIT\n"
    )
    node = node_of(rules)

    def mark(packet: bytes, link: str = "eth0") -> int:
        (rewrite,) = [r for r in node.send(packet, link).rewrites if r.field == "mark"]
        return int(rewrite.new)

    assert mark(WEB) == 1
    assert mark(tcp("10.1.0.6", 80, "10.0.0.5", 4000, "SA"), "eth1") == 1
    assert mark(udp("10.0.0.5", 4000, "10.1.0.6", 80)) == 2
    node.run("conntrack -F")
    assert mark(tcp("10.1.0.6", 80, "10.0.0.5", 4000, "A"), "eth1") == 2


def test_shares_of_a_cluster() -> None:
    seed = "--cluster-hash-seed 0xdeadbeef"
    rules = "*mangle\n" + "".join(
        f"-A FORWARD -m cluster --cluster-total-nodes 7 --cluster-local-node {k} {seed} -j MARK --set-mark {k}\n"
        for k in range(1, 8)
    )
    node = node_of(rules + "COMMIT\n")

    def share(packet: bytes, link: str) -> int:
        (rewrite,) = [r for r in node.send(packet, link).rewrites if r.field == "mark"]
        return int(rewrite.new)

    shares = [share(udp(f"10.0.0.{k}", 5, "10.1.0.6", 53), "eth0") for k in range(20, 30)]
    assert shares == SHARES
    assert share(udp("10.1.0.6", 53, "10.0.0.20", 5), "eth1") == shares[0]  # the connection's first source counts


#: of 7, for the sources 10.0.0.20 to 10.0.0.29 and the seed 0xdeadbeef
SHARES = [3, 4, 7, 4, 3, 5, 7, 2, 5, 3]


def test_a_cluster_takes_what_came_in_a_multicast_frame() -> None:
    trip = Trip(node_of(), Packets.from_bytes([WEB, udp("10.0.0.5", 1, "224.0.0.9", 2)]))
    trip.pkts.pkttype[:] = MULTICAST
    match = read("cluster", "--cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1")
    assert match.mask(trip, np.arange(2)).tolist() == [False, False]  # no connection
    assert trip.pkts.pkttype.tolist() == [HOST, MULTICAST]


def test_helper_without_expectations() -> None:
    assert asked("helper", "--helper ftp", WEB) == [False]
    assert asked("helper", "! --helper ftp", WEB) == [True]


# ---- the node's own things -------------------------------------------------------------------------------------------


def test_policies_of_a_node_without_any() -> None:
    assert asked("policy", "--dir in --pol none", WEB) == [True]
    assert asked("policy", "--dir in --pol ipsec", WEB) == [False]


def test_links_have_group_0() -> None:
    assert asked("devgroup", "--src-group 0", WEB) == [True]
    assert asked("devgroup", "! --dst-group 0", WEB) == [False]
    assert asked("devgroup", "--dst-group 5/0xf0", WEB) == [True]  # only the masked bits count


def test_sockets() -> None:
    node = node_of()
    packets = [
        udp("10.0.0.5", 4000, "10.0.0.1", 53),
        udp("10.0.0.9", 4000, "10.0.0.1", 53),
        tcp("10.0.0.5", 4000, "10.0.0.1", 53, "S"),
        error("10.0.0.9", "10.0.0.1", udp("10.0.0.1", 53, "10.0.0.5", 4000)),
        icmp("10.0.0.5", "10.0.0.1"),
    ]
    assert not any(asked("socket", "", *packets, node=node))
    own = Socket(17, 0x0A000001, 53, 0x0A000005, 4000, mark=9)
    cases: list[tuple[Socket, str, list[bool]]] = [
        (own, "", [True, False, False, True, False]),
        (own, "--transparent", [False] * 5),
        (Socket(17, 0x0A000001, 53), "", [True, True, False, True, False]),
        (Socket(17, 0, 53), "", [False] * 5),
        (Socket(17, 0, 53), "--nowildcard", [True, True, False, True, False]),
        (Socket(6, 0, 53, transparent=True), "--nowildcard --transparent", [False, False, True, False, False]),
    ]
    for socket, options, answers in cases:
        node.sockets = (socket,)  # type: ignore[attr-defined]
        assert asked("socket", options, *packets, node=node) == answers
    node.sockets = (own,)  # type: ignore[attr-defined]
    trip = Trip(node, Packets.from_bytes(packets[:2]))
    read("socket", "--restore-skmark").mask(trip, np.arange(2))
    assert trip.pkts.mark.tolist() == [9, 0]
