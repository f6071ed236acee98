"""The laws that hold for every node and all traffic: chunking is invisible, and NAT keeps its promises."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from craft import ends, icmp, sums_right, tcp, udp
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, as_capture, play, replayed, worlds

from netemu import Journey, Node, read_capture
from netemu import tcp as tracker
from netemu.ahead import Ahead
from netemu.capture import Capture
from netemu.conntrack import zone_id

DUMPS = ("iptables-save", "conntrack", "ipset-save", "ipvsadm-list", "ipvsadm-stats", "ipvsadm-connections")


def told(journey: Journey) -> tuple[object, ...]:
    """Everything that a journey says."""
    return (
        journey.fate,
        journey.reason,
        journey.state,
        journey.rules_evaluated,
        [str(s) for s in journey.steps],
        journey.out,
        [(r.field, r.old, r.new) for r in journey.rewrites],
        [told(c) for c in journey.caused],
    )


def dumps(node: Node) -> list[list[str]]:
    return [
        sorted(node.dump(what).splitlines()) if what != "iptables-save" else node.dump(what).splitlines()
        for what in DUMPS
    ]


@given(worlds())
def test_chunking_is_invisible(world: World) -> None:
    events, _ = play(world.node(), world.choices)
    one, reference = replayed(world, events, 1)
    for run_length in (2, 7, 64, None):
        node, journeys = replayed(world, events, run_length)
        for n, (a, b) in enumerate(zip(reference, journeys, strict=True)):
            assert told(a) == told(b), f"packet {n + 1}, run length {run_length}"
        assert dumps(one) == dumps(node), f"run length {run_length}"
        node.check()


NODE = """
kernel = "{kernel}"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/24"]
"""
DEFAULT = '[[route]]\nto = "default"\nvia = "10.0.0.254"\ndev = "eth0"\n'
VIP, PODS, PORTS = "10.96.0.1", ("10.244.0.5", "10.244.0.6"), (40_000, 40_001, 40_002)
#: what the nat table does with a new connection: nothing, one endpoint, one of two, also with the source
NAT = (
    "",
    "-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.0.5:8080",
    "-A PREROUTING -d 10.96.0.1/32 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.244.0.5\n"
    "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.244.0.6",
    "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.244.0.5\n-A POSTROUTING -o cni0 -j MASQUERADE",
    "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.244.0.5\n"
    "-A POSTROUTING -o cni0 -j MASQUERADE --random-fully",
    "-A POSTROUTING -o cni0 -p tcp -j SNAT --to-source 10.244.0.1:50000-50002",
)
FILTER = (
    "",
    "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
    "-A FORWARD -p tcp -m tcp --sport 40001 --tcp-flags SYN,ACK SYN -j DROP",
    "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    "-A FORWARD -p tcp -m tcp --sport 40002 -j REJECT --reject-with tcp-reset",
    "-A FORWARD -p tcp -m statistic --mode random --probability 0.1 -j DROP",
    "-A FORWARD -m conntrack --ctstate NEW -m limit --limit 10/sec --limit-burst 20 -j ACCEPT\n"
    "-A FORWARD -m conntrack --ctstate NEW -j DROP",
)


def crafted(draw: random.Random, size: int) -> list[tuple[float, str | None, bytes]]:
    """Few tuples, used again and again: connections that open, talk, end in one way or another, and begin anew at once.

    They are meant against a program that takes many packets together, so everything happens to the same connections.
    """
    events: list[tuple[float, str | None, bytes]] = []
    lives: dict[tuple[str, int], list[tuple[str, bytes]]] = {}
    shape = draw.choice(["reuse", "syn", "elephant", "mixed", "mixed"])
    tuples = [(f"10.0.0.{9 + k % 2}", PORTS[k % 3]) for k in range(draw.choice([1, 2, 6]))]
    turn = 0
    while len(events) < size:
        client, port = who = draw.choice(tuples)
        if not lives.get(who):
            turn += 1
            pod = draw.choice(PODS[: draw.choice([1, 2])])
            isn, back = turn * 100_000 + 1, turn * 50_000
            server, sport = draw.choice([(pod, 8080), (pod, 80), (VIP, 80)])
            seen = (client, port) if draw.random() < 0.8 else ("10.244.0.1", draw.choice((port, 50_000, 50_001)))

            def ask(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> tuple[str, bytes]:
                return "eth0", tcp(client, port, VIP, 80, flags, seq, ack, data=data, options=b"")  # noqa: B023

            def tell(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> tuple[str, bytes]:
                return "cni0", tcp(server, sport, *seen, flags, seq, ack, data=data, options=b"")  # noqa: B023

            syn, synack = ask("S", isn), tell("SA", back, isn + 1)
            opened = [syn, synack, ask("A", isn + 1, back + 1)]
            talk = [
                some
                for k in range({"elephant": 40}.get(shape, draw.randrange(3)))
                for some in (
                    ask("PA", isn + 1 + 10 * k, back + 1 + 10 * k, b"x" * 10),
                    tell("PA", back + 1 + 10 * k, isn + 11 + 10 * k, b"y" * 10),
                )
            ]
            far = len(talk) // 2 * 10
            ends_ = [
                [ask("RA", isn + 1 + far, back + 1 + far)],
                [tell("RA", back + 1 + far, isn + 1 + far)],
                [
                    ask("FA", isn + 1 + far, back + 1 + far), tell("FA", back + 1 + far, isn + 2 + far),
                    ask("A", isn + 2 + far, back + 2 + far),
                ],
                [],
                [ask("R", isn + 5)],
            ]  # fmt: skip
            life = {
                "syn": [syn] * draw.choice([3, 50]),
                "reuse": opened + ends_[draw.choice([0, 0, 2])],
                "elephant": opened + talk + ends_[0],
            }.get(shape) or draw.choice(
                [
                    opened + talk + draw.choice(ends_),
                    [syn, syn, *draw.choice(ends_)],
                    opened[1:] + talk,
                    [syn, tell("RA", 0, isn + 1)],
                ]
            )
            if draw.random() < 0.1:
                life.append(("eth0", udp(client, port, VIP, 53)))
            lives[who] = list(life)
        link, packet = lives[who].pop(0)
        if draw.random() < 0.03:
            packet = packet[:-1] + bytes([packet[-1] ^ 1])  # a wrong checksum
        events.append((len(events) / 1000, link, packet))
    return events


@given(st.integers(0, 2**32))
def test_chunking_is_invisible_where_few_tuples_are_used_again_and_again(seed: int) -> None:
    draw = random.Random(seed)
    kernel, nat, rules = draw.choice(["6.1", "6.18"]), draw.choice(NAT), draw.choice(FILTER)
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "node.toml").write_text(NODE.format(kernel=kernel))
        save = "*filter\n{}\nCOMMIT\n*nat\n{}\nCOMMIT\n" if nat else "*filter\n{}\nCOMMIT\n"
        (Path(d) / "iptables.save").write_text(save.format(rules, nat))
        one = Node.load(d, seed=seed % 5)
        others = {n: Node.load(d, seed=seed % 5) for n in (2, 7, 64, None)}
    events = crafted(draw, 150)
    reference = one.replay(read_capture(as_capture(one, events)), 1)
    for run_length, node in others.items():
        journeys = node.replay(read_capture(as_capture(node, events)), run_length)
        for n, (a, b) in enumerate(zip(reference, journeys, strict=True)):
            assert told(a) == told(b), f"packet {n + 1}, run length {run_length}"
        assert dumps(one) == dumps(node), f"run length {run_length}"
        node.check()


#: what the nat table does with connections of pods: nothing, one address, few ports, a drawn endpoint
POD_NAT = (
    "",
    "-A POSTROUTING -o eth0 -j MASQUERADE",
    "-A POSTROUTING -o eth0 -j MASQUERADE --random-fully",
    "-A POSTROUTING -o eth0 -p udp -j SNAT --to-source 10.0.0.1:50000-50003\n"
    "-A POSTROUTING -o eth0 -p tcp -j SNAT --to-source 10.0.0.1:50000-50003",
    "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.0.0.50",
    "-A PREROUTING -d 10.96.0.1/32 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.50\n"
    "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.0.0.51\n-A POSTROUTING -o eth0 -j MASQUERADE",
    "-A PREROUTING -d 10.96.0.1/32 -p tcp -j DNAT --to-destination 10.0.0.50:8000-8003 --random\n"
    "-A POSTROUTING -o eth0 -j SNAT --to-source 10.0.0.1-10.0.0.3",
)
POD_FILTER = (
    *FILTER,
    "-A FORWARD -i cni0 -p udp -m udp --sport 40001 -j REJECT --reject-with icmp-port-unreachable",
    "-A FORWARD -i cni0 -m conntrack --ctstate NEW -m statistic --mode random --probability 0.1 -j DROP",
    "-A FORWARD -p udp -m mark --mark 0x0/0xff -j ACCEPT",
)


def short_lives(node: Node, draw: random.Random, size: int) -> list[tuple[float, str | None, bytes]]:
    """Connections of few packets, few at a time, from few ports, answered as what the node sent on asks for."""
    events: list[tuple[float, str | None, bytes]] = []
    open_: list[Iterator[None]] = []
    at, turn, wide = 0.0, 0, draw.choice([1, 1, 3, 8])
    fresh = draw.random() < 0.5  # ports are hardly ever used again

    def through(link: str, packet: bytes) -> list[bytes]:
        if draw.random() < 0.01:
            packet = packet[:-1] + bytes([packet[-1] ^ 1])  # a wrong checksum
        events.append((at, link, packet))
        return [out for _, out in node.send(packet, link, at).out]

    def talk(isn: int) -> Iterator[None]:
        client, port = f"10.244.0.{5 + draw.randrange(2)}", draw.choice(PORTS) if not fresh else 1024 + isn % 60000
        server = draw.choice(["10.96.0.1", "10.0.0.50", "10.0.0.51", "10.0.0.1" if draw.random() < 0.1 else VIP])
        kind = draw.choice(["udp", "udp", "tcp", "tcp", "icmp"])
        back: tuple[str, int, str, int] | None = None  # what an answer must look like
        seqs = [isn * 1000, isn * 7000]
        stages = {
            "udp": ["ask", "tell"] * draw.choice([1, 1, 2]),
            "icmp": ["ask", "tell"] * draw.choice([1, 2]),
            "tcp": ["S", *(["S"] if draw.random() < 0.1 else []), "sa", "A", *["PA", "pa"] * draw.randrange(3)],
        }[kind]
        if kind == "tcp":
            stages += draw.choice([["FA", "fa", "A"], ["fa", "FA", "a"], ["RA"], ["ra"], []])
        if draw.random() < 0.1:
            stages = stages[: draw.randrange(1, len(stages) + 1)] + ["ra"] * (kind == "tcp")
        for stage in stages:
            asks = stage == "ask" or stage.isupper()
            if not asks and back is None:
                return  # nobody heard of it
            src, sport, dst, dport = (client, port, server, 53) if asks else cast("tuple[str, int, str, int]", back)
            if kind == "udp":
                made = udp(src, sport, dst, dport)
            elif kind == "icmp":
                made = icmp(src, dst, 8 if asks else 0, number=sport if asks else dport)
            else:
                mine, flags = 0 if asks else 1, stage.upper()
                data = b"x" * 10 * ("P" in flags)
                made = tcp(src, sport, dst, dport, flags, seqs[mine], seqs[1 - mine] * ("A" in flags), data=data)
                seqs[mine] += len(data) + ("S" in flags and (stage != "S" or back is None)) + ("F" in flags)
            left = through("cni0" if asks else "eth0", made)
            if asks and left:
                sent = left[-1]
                _, seen, seen_port, there, there_port = ends(sent)
                if kind == "icmp":
                    seen_port = there_port = int.from_bytes(sent[24:26], "big")
                back = there, there_port, seen, seen_port
            yield

    while len(events) < size:
        while len(open_) < wide:
            turn += 1
            open_.append(talk(turn))
        which = draw.choice(open_)
        at += draw.choice([0.0001, 0.001]) if draw.random() < 0.99 else 35.0
        if next(which, 0) == 0:
            open_.remove(which)
    return events


@pytest.mark.parametrize("abreast", [1, 24])
@given(st.integers(0, 2**32))
def test_chunking_is_invisible_where_connections_are_short(abreast: int, seed: int) -> None:
    draw = random.Random(seed)
    kernel, nat, rules = draw.choice(["6.1", "6.18"]), draw.choice(POD_NAT), draw.choice(POD_FILTER)
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "node.toml").write_text(NODE.format(kernel=kernel) + DEFAULT)
        save = "*filter\n{}\nCOMMIT\n*nat\n{}\nCOMMIT\n" if nat else "*filter\n{}\nCOMMIT\n"
        (Path(d) / "iptables.save").write_text(save.format(rules, nat))
        one = Node.load(d, seed=seed % 5)
        others = {n: Node.load(d, seed=seed % 5) for n in (2, 7, 64, None)}
        events = short_lives(Node.load(d, seed=seed % 5), draw, 200)
    reference = one.replay(read_capture(as_capture(one, events)), 1)
    tracker.ABREAST, usual = abreast, tracker.ABREAST
    try:
        for run_length, node in others.items():
            journeys = node.replay(read_capture(as_capture(node, events)), run_length)
            for n, (a, b) in enumerate(zip(reference, journeys, strict=True)):
                assert told(a) == told(b), f"packet {n + 1}, run length {run_length}"
            assert dumps(one) == dumps(node), f"run length {run_length}"
            node.check()
    finally:
        tracker.ABREAST = usual


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@given(worlds())
def test_a_second_process_that_reads_ahead_is_invisible(world: World) -> None:
    events, _ = play(world.node(), world.choices)
    one, journeys = replayed(world, events, None)
    two = world.node()
    capture = cast("Capture", Ahead(read_capture(as_capture(two, events))))
    others = two.replay(capture, timeline=events.commands)
    assert [told(j) for j in others] == [told(j) for j in journeys]
    assert dumps(one) == dumps(two)


@given(worlds())
def test_a_replay_is_its_packets_sent_one_by_one(world: World) -> None:
    node = world.node()
    events, sent = play(node, world.choices)
    again, journeys = replayed(world, events, None)
    assert [told(j) for j in sent] == [told(j) for j in journeys]
    assert dumps(node) == dumps(again)


@given(worlds())
def test_checksums_of_all_that_leaves_are_right(world: World) -> None:
    events, journeys = play(world.node(), world.choices)
    for (_, _, sent), journey in zip(events, journeys, strict=True):
        if not sums_right(sent):
            continue
        for link, packet in journey.out:
            assert sums_right(packet), f"{journey} on {link}"


@given(worlds())
def test_no_two_live_connections_share_a_tuple(world: World) -> None:
    node = world.node()
    play(node, world.choices)
    ct = node.conntrack
    flows = [f for f in range(ct.capacity) if ct.stored[f] and ct.deadline[f] > node.now]
    zones = [int(ct.zone[f]) for f in flows]
    replies = [(ct.reply(f), zone_id(zone, 1)) for f, zone in zip(flows, zones, strict=True)]
    originals = [(ct.original(f), zone_id(zone, 0)) for f, zone in zip(flows, zones, strict=True)]
    assert len(set(replies)) == len(replies)
    assert len(set(originals)) == len(originals)


@given(worlds(pristine=True))
def test_answers_come_back_untranslated(world: World) -> None:
    """Whoever sent a packet that left rewritten is answered by whom it wrote to, on the port that it wrote from."""
    node = world.node()
    events, journeys = play(node, world.choices, commands=False)
    asked = [(link, ends(packet), j) for (_, link, packet), j in zip(events, journeys, strict=True)]
    tracked = {}
    for link, question, journey in asked:
        for out_link, sent in journey.own:
            proto, src, sport, dst, dport = ends(sent)
            if journey.state == "NEW" and proto in (6, 17):
                tracked[out_link, proto, dst, dport, src, sport] = (link, question)
    for link, said, journey in asked:
        proto, src, sport, dst, dport = said
        key = (link, proto, src, sport, dst, dport)
        if key not in tracked or journey.state != "ESTABLISHED" or not journey.own:
            continue
        home, (_, client, cport, target, tport) = tracked[key]
        ((back_link, back),) = journey.own
        if home is None:
            continue
        assert ends(back) == (proto, target, tport, client, cport), f"{said} came back as {ends(back)}"
        assert back_link == home


@given(worlds(pristine=True))
def test_every_packet_of_a_connection_is_translated_alike(world: World) -> None:
    node = world.node()
    events, journeys = play(node, world.choices, commands=False)
    seen: dict[tuple[object, ...], tuple[object, ...]] = {}
    for (_, link, packet), journey in zip(events, journeys, strict=True):
        if journey.state == "NEW":
            seen.pop((link, ends(packet)), None)
        if journey.state in ("NEW", "ESTABLISHED") and len(journey.own) == 1 and journey.service is None:
            _, sent = journey.own[0]
            before = seen.setdefault((link, ends(packet)), ends(sent))
            assert before == ends(sent)
