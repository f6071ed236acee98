"""The laws that hold for every node and all traffic: chunking is invisible, and NAT keeps its promises."""

from __future__ import annotations

from craft import ends, sums_right
from hypothesis import given
from worlds import World, play, replayed, worlds

from netemu import Journey, Node
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
