"""Settled traffic fares as the road would have it, and whatever changes that ends what is known of it."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from craft import ends, error, tcp, udp
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from talk import LINKS, node
from test_laws import dumps, told
from worlds import Events, as_capture, pieces

from netemu import Journey, Node, Refused, read_capture
from netemu.grammar import Given, RuleContext
from netemu.packets import COLUMNS, Packets
from netemu.paths import Step
from netemu.targets import TARGETS
from netemu.trip import Trip

NODE = """
kernel = "{kernel}"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24", "10.0.0.9/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/24"]
mtu = 1400
[[link]]
name = "eth1"
addresses = ["10.1.0.1/24"]
[[route]]
to = "default"
via = "10.0.0.254"
dev = "eth0"
{more}
[sysctl]
"net.netfilter.nf_conntrack_acct" = {acct}
"net.ipv4.conf.all.rp_filter" = {rp_filter}
"""
BY_MARK = """[[route]]
to = "default"
via = "10.1.0.254"
dev = "eth1"
table = "100"
[[rule]]
priority = 100
fwmark = "0x7/0x7"
table = "100"
"""
SETS = """create some hash:ip
create pairs hash:ip,port
create brief hash:ip timeout 1
create counted hash:ip counters
create all list:set
add some 192.0.2.7
add brief 192.0.2.8
add counted 192.0.2.7
add pairs 10.244.0.5,tcp:80
add all some
"""
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
RULES = {
    "raw": {
        "PREROUTING": ["-p udp -m udp --dport 5000 -j CT --notrack", "-s 192.0.2.8/32 -j MARK --set-xmark 0x1/0x1", ""],
    },
    "mangle": {
        "PREROUTING": [
            "-i cni0 -j MARK --set-xmark 0x7/0x7",
            "-p tcp -m tcp --tcp-flags PSH PSH -j TOS --set-tos 0x10/0xff",
            "-m length --length 100:65535 -j MARK --set-xmark 0x7/0x7",
            "-p udp -m ttl --ttl-lt 64 -j DROP",
            "-m tos --tos 0x08/0xff -j TTL --ttl-set 9",
            "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "-p tcp -m statistic --mode random --probability 0.3 -j MARK --set-xmark 0x7/0x7",
            "-p tcp -m u32 --u32 0x0>>0x16&0x3c@0x4=0x3ea:0x3ee -j TTL --ttl-set 99",
        ],
        "FORWARD": [
            "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
            "-j TTL --ttl-dec 3",
            "-m dscp --dscp 0x04 -j DSCP --set-dscp 0x08",
            "-p tcp -m ecn --ecn-tcp-ece -j DROP",
        ],
        "POSTROUTING": [
            "-m mark --mark 0x7 -j TOS --set-tos 0x04/0xff",
            "-o eth0 -p tcp -j CONNMARK --set-xmark 0x5/0xffffffff",
            "-j MARK --set-xmark 0x0/0xffffffff",
        ],
        "INPUT": ["-p udp -j TOS --set-tos 0x10/0xff"],
    },
    "nat": {
        "PREROUTING": [
            "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.0.5:8080",
            "-d 10.96.0.1/32 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.244.0.6",
            "-d 10.96.0.1/32 -j DNAT --to-destination 10.244.0.5",
            "-d 10.96.0.2/32 -j REDIRECT",
        ],
        "POSTROUTING": ["-o cni0 -j MASQUERADE", "-o eth0 -j MASQUERADE --random", "-p udp -j SNAT --to 10.0.0.9"],
    },
    "filter": {
        "INPUT": [ESTABLISHED, "-p udp -m limit --limit 5/sec -j DROP", "-j U"],
        "FORWARD": [
            ESTABLISHED,
            "-m conntrack --ctstate INVALID -j DROP",
            "-p tcp -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j U",
            "-m conntrack --ctstatus ASSURED -j U",
            "-m conntrack --ctstate DNAT -j ACCEPT",
            "-m set --match-set some src -j ACCEPT",
            "-m set --match-set pairs dst,dst -j U",
            "-m set --match-set brief src -j DROP",
            "-m set --match-set counted src -j ACCEPT",
            "-m set --match-set all src -j U",
            "-p udp -j SET --add-set some src",
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK ACK -j ACCEPT",
            "-m limit --limit 20/sec --limit-burst 5 -j LOG",
            "-m connbytes --connbytes 5:9 --connbytes-mode packets --connbytes-dir both -j DROP",
            "-m connmark --mark 0x5 -j U",
            "-m hashlimit --hashlimit-above 30/sec --hashlimit-burst 9 --hashlimit-name h -j DROP",
            "-m time --timestart 00:00 --timestop 00:01 -j ACCEPT",
            "-p tcp -m multiport --dports 80,8080 -j U",
            "-m addrtype --dst-type UNICAST -j U",
        ],
        "U": [
            "-p tcp -m statistic --mode nth --every 5 --packet 0 -j RETURN",
            "-p tcp -m tcp --dport 40001 -j REJECT --reject-with tcp-reset",
            "-m length --length 60:70 -j ACCEPT",
            "-s 192.0.2.8/32 -j RETURN",
            "-p udp -j REJECT --reject-with icmp-port-unreachable",
            "-j ACCEPT",
            "-j DROP",
        ],
    },
}  # fmt: skip
#: words in rules that make runs short: what remembers keeps packets apart
WILD = "CONNMARK", "connmark", "SET", "limit", "connbytes", "ctstatus", "nth", "counted"
COMMANDS = [
    "iptables -I FORWARD -p tcp --sport 40001 -j DROP",
    "iptables -F FORWARD",
    "iptables -Z",
    "iptables -P FORWARD DROP",
    "iptables -t mangle -A PREROUTING -j MARK --set-mark 7",
    "ip route replace default via 10.0.0.253 dev eth0",
    "ip route replace default via 10.1.0.254 dev eth1",
    "ip route add blackhole 192.0.2.7/32",
    "ip link set cni0 down",
    "ip link set cni0 up",
    "ip addr add 10.244.0.5/32 dev eth1",
    "sysctl -w net.ipv4.ip_forward=0",
    "sysctl -w net.ipv4.ip_forward=1",
    "sysctl -w net.ipv4.conf.all.rp_filter=1",
    "ipset del some 192.0.2.7",
    "ipset add some 192.0.2.8 -exist",
    "ipset flush pairs",
    "conntrack -F",
    "conntrack -U -p tcp --mark 5",
    "conntrack -D -p tcp --orig-port-src 40000",
    "conntrack -U -p udp --mark 1",
]
MIB = "10.96.0.1", "10.96.0.2", "10.244.0.5", "10.0.0.1"


def save(draw: random.Random) -> str:
    """A rule set: few rules each, so that established packets get past most of them."""
    out = []
    wild = () if draw.random() < 0.2 else WILD
    for table, chains in RULES.items():
        tame = {c: [line for line in lines if not any(w in line for w in wild)] for c, lines in chains.items()}
        chosen = {c: draw.sample(lines, draw.randrange(min(len(lines), 3) + 1)) for c, lines in tame.items()}
        if not any(chosen.values()):
            continue
        out.append(f"*{table}")
        out += [":U - [0:0]"] if table == "filter" else []
        order = RULES[table]
        for chain, lines in chosen.items():
            out += [f"-A {chain} {line}" for line in sorted(lines, key=order[chain].index) if line]
        out.append("COMMIT")
    return "\n".join(out) + "\n"


def nodes(seed: int) -> Callable[[], Node]:
    draw = random.Random(seed)
    toml = NODE.format(
        kernel=draw.choice(["6.1", "6.18"]),
        acct=draw.randrange(2),
        rp_filter=draw.choice([0, 0, 1, 2]),
        more=draw.choice(["", "", BY_MARK]),
    )
    rules = save(draw)

    def made() -> Node:
        with tempfile.TemporaryDirectory() as d:
            (Path(d) / "node.toml").write_text(toml)
            (Path(d) / "iptables.save").write_text(rules)
            (Path(d) / "ipset.save").write_text(SETS)
            return Node.load(d, seed=seed % 5)

    return made


def conversation(draw: random.Random, number: int) -> Iterator[tuple[str, bytes]]:
    """One connection, packet by packet: send it the packet that left last, or None."""
    client = f"192.0.2.{7 + number % 2}"
    sport, server = 40_000 + number // 2, draw.choice(MIB)
    proto = draw.choice([tcp, tcp, udp])
    look = {"tos": draw.choice([0, 0, 8, 16]), "ttl": draw.choice([64, 64, 64, 63, 9, 2, 1])}
    away = "cni0", (server, 80, client, sport)
    seq = {True: 1000, False: 5000}
    sent = 0

    def one(asks: bool, flags: str, data: bytes) -> tuple[str, bytes]:
        link, (a, b, c, d) = ("eth0", (client, sport, server, 80)) if asks else away
        how = dict(look) if draw.random() < 0.97 else {"tos": draw.choice([0, 4, 8]), "ttl": draw.choice([64, 5])}
        if draw.random() < 0.03:
            how["frag"] = 0
        if proto is udp:
            return link, udp(a, b, c, d, data, **how)
        packet = tcp(a, b, c, d, flags, seq[asks], seq[not asks] if "A" in flags else 0, data=data, **how)
        seq[asks] += len(data) + ("S" in flags) + ("F" in flags)
        return link, packet

    for flags, asks in (("S", True), ("SA", False), ("A", True)):
        left = yield one(asks, flags, b"" if proto is tcp else b"question")
        if asks and left is not None:
            link, packet = left
            _, a, b, c, d = ends(packet)
            away = link, (c, d, a, b)
    while True:
        sent += 1
        asks = draw.random() < 0.5
        flags = draw.choice(["A"] * 60 + ["PA"] * 30 + ["FA", "RA", "SA", "S"] if sent > 25 else ["A", "PA"])
        size = draw.choice([0, 1, 8, 30, 30, 30, 100, 1370])
        yield one(asks, flags, bytes(size))


def talked(node: Node, seed: int, size: int) -> Events:
    """What was said, command lines in between."""
    draw = random.Random(seed)
    events = Events()
    talks = [conversation(draw, k) for k in range(draw.choice([1, 3, 8]))]
    given: list[tuple[str, bytes] | None] = [None] * len(talks)
    begun = [False] * len(talks)
    at = 1.0
    while len(events) < size:
        at = round(at + draw.choice([0.0001, 0.0001, 0.001, 0.02]), 5)
        if draw.random() < 0.006:
            command = draw.choice(COMMANDS)
            try:
                node.run(command, at)
            except Refused:  # there is no such connection, member or route just now
                continue
            events.commands.append((at, command))
        k = draw.randrange(len(talks))
        link, packet = talks[k].send(given[k]) if begun[k] else next(talks[k])
        begun[k] = True
        some = pieces(packet, 496, len(events)) if draw.random() < 0.01 else [packet]
        if draw.random() < 0.01:
            some.append(error("10.0.0.254", ends(packet)[1], packet, 3, 1))
        if draw.random() < 0.01:
            some.insert(0, packet[:-1] + bytes([packet[-1] ^ 1]))
        given[k] = None
        for piece in some:
            journey = node.send(piece, link, at)
            events.append((at, link, piece))
            given[k] = journey.own[0] if journey.own else given[k]
        if draw.random() < 0.002:
            talks[k], begun[k] = conversation(draw, k), False
    return events


@given(st.integers(0, 2**32))
def test_what_is_known_is_what_the_road_would_have_done(seed: int) -> None:
    made = nodes(seed)
    events = talked(made(), seed, 260)
    one = made()
    reference = one.replay(read_capture(as_capture(one, events)), 1, timeline=events.commands)
    for run_length in (2, 7, 64, None):
        node = made()
        journeys = node.replay(read_capture(as_capture(node, events)), run_length, timeline=events.commands)
        for n, (a, b) in enumerate(zip(reference, journeys, strict=True)):
            assert told(a) == told(b), f"packet {n + 1}, run length {run_length}"
        for name in ("ttl", "tos", "mark", "src", "dst", "sport", "dport", "link_in", "link_out", "fate", "evaluated"):
            for x, y in zip(reference.parts, journeys.parts, strict=True):
                assert (getattr(x.pkts, name) == getattr(y.pkts, name)).all(), name
        assert dumps(one) == dumps(node), f"run length {run_length}"
        node.check()
    node = made()
    parts = list(node.stream(read_capture(as_capture(node, events)), timeline=events.commands, remember=False))
    for x, y in zip(reference.parts, parts, strict=True):
        assert (x.left == y.left).all() and (x.pkts.fate == y.pkts.fate).all() and (x.state == y.state).all()
        assert (x.pkts.evaluated == y.pkts.evaluated).all() and (x.pkts.src == y.pkts.src).all()
        assert [x.paths.unfold(n) for n in x.pkts.path.tolist()] == [y.paths.unfold(n) for n in y.pkts.path.tolist()]
    assert dumps(one) == dumps(node)


# ---- what ends what is known ----------------------------------------------------------------------------------------

FORWARD = """filter FORWARD -m set --match-set bad src -j DROP
filter FORWARD -m connmark --mark 0x5 -j DROP
filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
nat PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080
"""


class Talk:
    """A connection from 192.0.2.9 to a pod, through a service's address, that goes on and on."""

    def __init__(self, rules: str = FORWARD, **files: str) -> None:
        self.node = node(rules, ipset_save="create bad hash:ip\n", **files)
        self.at, self.said, self.known = 1.0, 1, 0
        carry = self.node.settled._carry

        def counted(trip: Trip, at: Any, which: NDArray[np.int32], *rest: Any) -> None:
            self.known += len(which)
            carry(trip, at, which, *rest)

        vars(self.node.settled)["_carry"] = counted
        self.begin()
        for _ in range(3):
            self.talk()
        assert self.known == 16 and all(j.fate == "forwarded" for j in self.talk()) and self.known == 24

    def begin(self, isn: int = 1000, server: str = "10.0.0.2", port: int = 8080) -> None:
        self.said = isn + 1
        self.at += 0.01
        self.node.send(tcp("192.0.2.9", 4000, "198.51.100.1", 80, "S", isn), "eth0", self.at)
        self.node.send(tcp(server, port, "192.0.2.9", 4000, "SA", 7000, isn + 1), "eth1", self.at)

    def talk(self, n: int = 8, **look: int) -> list[Journey]:
        """The next segments, all at once."""
        events = []
        for _ in range(n):
            self.at = round(self.at + 0.0001, 4)
            packet = tcp("192.0.2.9", 4000, "198.51.100.1", 80, "PA", self.said, 7001, data=b"abc", **look)
            events.append((self.at, "eth0", packet))
            self.said += 3
        self.known = getattr(self, "known", 0)
        return list(self.node.replay(read_capture(as_capture(self.node, events))))


@pytest.mark.parametrize(
    ("command", "fate", "why"),
    [
        ("iptables -I FORWARD -j DROP", "dropped", "filter:FORWARD:policy:1 DROP"),
        ("iptables -t mangle -A PREROUTING -j DROP", "dropped", "mangle:PREROUTING:policy:1 DROP"),
        ("ipset add bad 192.0.2.9", "dropped", "filter:FORWARD:rule:1 DROP"),
        ("conntrack -U -p tcp --src 192.0.2.9 --mark 5", "dropped", "filter:FORWARD:rule:2 DROP"),
        ("ip route add blackhole 10.0.0.2/32", "dropped", "blackhole route"),
        ("ip route add 192.0.2.9/32 dev eth1", "forwarded", None),
        ("sysctl -w net.ipv4.ip_forward=0", "dropped", "not forwarding"),
        ("sysctl -w net.ipv4.conf.all.rp_filter=1", "forwarded", None),
        ("ip link set eth0 down", "dropped", "the link is down"),
        ("ip addr add 10.0.0.2/32 dev eth1", "delivered", None),
        ("iptables -Z", "forwarded", None),
    ],
)
def test_a_command_ends_what_is_known(command: str, fate: str, why: str | None) -> None:
    talk = Talk()
    before = talk.node.conntrack.fares.max()
    assert before > 0
    talk.node.run(command)
    known = talk.known
    journeys = talk.talk()
    assert talk.known == known, "nothing was known after the command"
    assert {(j.fate, j.reason) for j in journeys} == {(fate, why)}
    if fate == "forwarded":
        talk.talk()
        assert talk.known > known


def test_a_new_gateway_is_taken_at_once() -> None:
    talk = Talk()
    talk.node.run("ip route add 10.0.0.2/32 via 10.0.0.77")
    assert {j.steps[-3].text for j in talk.talk()} == {j.steps[-3].text for j in talk.talk()}
    assert "routing: via 10.0.0.77 dev eth1" in {step.text for j in talk.talk() for step in j.steps}


def test_a_connection_that_is_deleted_takes_what_is_known_with_it() -> None:
    talk = Talk()
    talk.node.run("conntrack -D -p tcp")
    assert [j.state for j in talk.talk()][:2] == ["NEW", "NEW"]


def test_a_connection_that_begins_anew_in_the_place_of_another_is_not_the_other() -> None:
    talk = Talk()
    ct = talk.node.conntrack
    talk.node.run("iptables -t nat -R PREROUTING 1 -p tcp -j DNAT --to-destination 10.0.0.4:8081")
    talk.talk()
    assert {ends(j.own[0][1])[3:] for j in talk.talk()} == {("10.0.0.2", 8080)} and ct.fares.max() > 0
    talk.node.send(tcp("192.0.2.9", 4000, "198.51.100.1", 80, "R", talk.said), "eth0", talk.at)
    talk.begin(900_000, "10.0.0.4", 8081)
    (number,) = np.flatnonzero(ct.stored).tolist()
    assert not ct.fares[2 * number : 2 * number + 2].any()
    known = talk.known
    assert {ends(j.own[0][1])[3:] for j in talk.talk()} == {("10.0.0.4", 8081)}
    assert talk.known == known


def test_who_looks_different_is_not_taken_for_the_others() -> None:
    talk = Talk()
    known = talk.known
    assert {j.own[0][1][8] for j in talk.talk(ttl=40)} == {39}
    assert {j.reason for j in talk.talk(ttl=1)} == {"ttl exceeded"}
    assert {j.own[0][1][1] for j in talk.talk(tos=8)} == {8}
    assert talk.known == known
    assert {j.own[0][1][1] for j in talk.talk(tos=8)} == {8}
    assert talk.known == known + 8


def test_what_is_too_long_for_the_way_out_goes_the_road() -> None:
    talk = Talk(links=LINKS.replace('name = "eth1"', 'name = "eth1"\nmtu = 600'))
    big = tcp("192.0.2.9", 4000, "198.51.100.1", 80, "A", talk.said, 7001, data=bytes(700))
    events = [(talk.at + 1, "eth0", big), (talk.at + 2, "eth0", big)]
    known = talk.known
    journeys = talk.node.replay(read_capture(as_capture(talk.node, events)))
    assert [j.reason for j in journeys] == ["fragmentation needed"] * 2 and talk.known == known


@pytest.mark.parametrize(
    "rule",
    [
        "-m limit --limit 1/sec -j LOG",
        "-m statistic --mode random --probability 0.5 -j LOG",
        "-m time --timestart 00:00 --timestop 12:00 -j LOG",
        "-m length --length 0:1000 -j LOG",
        "-p tcp -m string --string abc --algo bm -j LOG",
        "-m connbytes --connbytes 1:9 --connbytes-mode packets --connbytes-dir both -j LOG",
        "-j CONNMARK --set-mark 1",
        "-j SET --add-set bad src",
        "-j TEE --gateway 10.0.0.9",
    ],
)
def test_a_rule_that_is_not_steadfast_is_asked_each_time(rule: str) -> None:
    talk = Talk()
    table = "mangle" if "TEE" in rule else "filter"
    talk.node.run(f"iptables -t {table} -I FORWARD {rule}")
    known = talk.known
    for _ in range(4):
        talk.talk()
    assert talk.known == known


def test_a_rule_that_only_others_come_to_does_no_harm() -> None:
    talk = Talk()
    talk.node.run("iptables -A FORWARD -m limit --limit 1/sec -j LOG")
    talk.node.run("iptables -I FORWARD -p udp -m limit --limit 1/sec -j LOG")
    talk.node.run("iptables -I FORWARD -m conntrack --ctstate NEW -m limit --limit 1/sec -j LOG")
    known = talk.known
    for _ in range(3):
        talk.talk()
    assert talk.known == known + 16


def test_what_was_learned_without_rewrites_is_learned_again_with_them() -> None:
    talk = Talk()
    for remember in (False, True):
        vars(talk.node)["stream"] = partial(type(talk.node).stream, talk.node, remember=remember)
        for _ in range(3):
            journeys = talk.talk()
        assert [r.field for r in journeys[0].rewrites] == (["dst", "dport", "ttl"] if remember else [])


# ---- who is steadfast -----------------------------------------------------------------------------------------------

STEADFAST = {
    "ACCEPT": "", "DROP": "", "RETURN": "", "MARK": "--set-mark 5", "TTL": "--ttl-dec 1", "TOS": "--set-tos 4",
    "DSCP": "--set-dscp 4", "LOG": "--log-prefix x", "NFLOG": "", "TRACE": "", "AUDIT": "--type drop",
    "CLASSIFY": "--set-class 1:2", "CHECKSUM": "--checksum-fill", "IDLETIMER": "--timeout 5 --label x",
    "RATEEST": "--rateest-name x --rateest-interval 1s --rateest-ewmalog 2s", "LED": "--led-trigger-id x",
    "SECMARK": "--selctx x", "CONNSECMARK": "--save",
}  # fmt: skip


def test_targets_that_say_that_they_are_steadfast_are_known() -> None:
    assert {name for name, target in TARGETS.items() if target.alike} == set(STEADFAST)


@pytest.mark.parametrize("name", STEADFAST)
def test_a_steadfast_target_does_the_same_to_all_that_look_alike(name: str) -> None:
    words, given = STEADFAST[name].split(), []
    while words:
        option = words.pop(0)
        count = TARGETS[name].OPTIONS[option]
        given.append(Given(option, False, tuple(words[:count])))
        del words[:count]
    target = TARGETS[name].read(given, RuleContext("mangle", "FORWARD", 6))
    packets = [tcp("10.0.0.5", 1, "10.0.0.6", 2, "A", k * 1000, k, data=bytes(k)) for k in range(4)]
    trip = Trip(node(), Packets.from_bytes(packets))
    trip.pkts.time[:] = np.arange(4) * 10**9
    before = {name: getattr(trip.pkts, name).copy() for name in COLUMNS}
    verdict = target.act(trip, np.arange(4), Step(None, "x"))
    assert isinstance(verdict, int)
    for column in COLUMNS:
        now = getattr(trip.pkts, column)
        if column in ("tos", "ttl", "mark"):
            assert len(set(now.tolist())) == 1
        else:
            assert (now == before[column]).all(), column
    assert not trip.children and not trip.owed and not trip.pkts.rebuilt and trip.drew is None
