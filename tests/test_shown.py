"""Ports that Linux drew, and that a capture shows: netemu draws the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from craft import ends, error, icmp, tcp, udp
from hypothesis import given
from hypothesis import strategies as st
from talk import node
from worlds import Event, as_capture

from netemu import Journey, Node, read_capture

FULLY = "nat POSTROUTING -o eth0 -j MASQUERADE --random-fully"
PLAIN = "nat POSTROUTING -o eth0 -j MASQUERADE"
FAR, NEAR, A, B = "192.0.2.9", "198.51.100.1", "10.0.0.2", "10.0.0.4"


def played(n: Node, *packets: tuple[str, bytes], run_length: int | None = None) -> Sequence[Journey]:
    """The packets as one capture, a millisecond apart."""
    events: list[Event] = [(k / 1000, link, packet) for k, (link, packet) in enumerate(packets)]
    return n.replay(read_capture(as_capture(n, events)), run_length)


def came(journey: Journey) -> tuple[int, str, int, str, int]:
    ((_, packet),) = journey.out
    return ends(packet)


@pytest.mark.parametrize("many", [1, 40])
def test_the_answer_tells_the_port(many: int) -> None:
    asked = [("eth1", udp(A, 4000 + k, FAR, 53)) for k in range(many)]
    said = [("eth0", udp(FAR, 53, NEAR, 20_000 + k)) for k in range(many)]
    journeys = played(node(FULLY), *asked, *said)
    assert [came(j)[2] for j in journeys[:many]] == [20_000 + k for k in range(many)]
    assert [came(j) for j in journeys[many:]] == [(17, FAR, 53, A, 4000 + k) for k in range(many)]


def test_two_that_want_one_port() -> None:
    journeys = played(
        node(PLAIN),
        ("eth1", tcp(A, 700, FAR, 80, "S", 5)), ("eth1", tcp(B, 700, FAR, 80, "S", 9)),
        ("eth0", tcp(FAR, 80, NEAR, 1014, "SA", 1, 10)), ("eth0", tcp(FAR, 80, NEAR, 700, "SA", 1, 6)),
    )  # fmt: skip
    assert [came(j)[2] for j in journeys[:2]] == [700, 1014]
    assert [came(j)[3:] for j in journeys[2:]] == [(B, 700), (A, 700)]


def test_an_answer_to_a_syn_acknowledges_it() -> None:
    journeys = played(
        node(FULLY),
        ("eth1", tcp(A, 4000, FAR, 80, "S", 100)), ("eth1", tcp(B, 4000, FAR, 80, "S", 200)),
        ("eth0", tcp(FAR, 80, NEAR, 30_001, "SA", 1, 201)), ("eth0", tcp(FAR, 80, NEAR, 30_000, "SA", 1, 101)),
    )  # fmt: skip
    assert [came(j)[2] for j in journeys[:2]] == [30_000, 30_001]


def test_an_error_quotes_the_packet_and_its_id_tells_whose_it_was() -> None:
    asked = [udp(a, 4000, FAR, 53, ident=77 + k) for k, a in enumerate((A, B))]
    told = error("192.0.2.1", NEAR, udp(NEAR, 30_000, FAR, 53, ident=78, ttl=63), 3, 1)
    journeys = played(node(FULLY), ("eth1", asked[0]), ("eth1", asked[1]), ("eth0", told))
    assert came(journeys[0])[2] != 30_000 and came(journeys[1])[2] == 30_000
    assert journeys[2].out[0][1][16:20] == bytes([10, 0, 0, 4])


def test_ids_of_pings() -> None:
    journeys = played(
        node(PLAIN),
        ("eth1", icmp(A, FAR, 8, 0, 300)), ("eth1", icmp(B, FAR, 8, 0, 300)),
        ("eth0", icmp(FAR, NEAR, 0, 0, 300)), ("eth0", icmp(FAR, NEAR, 0, 0, 4711)),
    )  # fmt: skip
    assert [j.out[0][1][16:20] for j in journeys[2:]] == [bytes([10, 0, 0, 2]), bytes([10, 0, 0, 4])]


def test_a_destination_port() -> None:
    rule = "nat PREROUTING -p udp --dport 53 -j DNAT --to-destination 10.0.0.2:5000-5999 --random"
    journeys = played(node(rule, kernel="6.1"), ("eth0", udp(FAR, 4000, NEAR, 53)), ("eth1", udp(A, 5321, FAR, 4000)))
    assert came(journeys[0]) == (17, FAR, 4000, A, 5321)
    assert came(journeys[1]) == (17, NEAR, 53, FAR, 4000)


POOL = """*nat
:SVC - [0:0]
:SEP-A - [0:0]
:SEP-B - [0:0]
:SEP-C - [0:0]
-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j SVC
-A SVC -m statistic --mode random --probability 0.33333333349 -j SEP-A
-A SVC -m statistic --mode random --probability 0.50000000000 -j SEP-B
-A SVC -j SEP-C
-A SEP-A -p tcp -j DNAT --to-destination 10.0.0.21:8080
-A SEP-B -p tcp -j DNAT --to-destination 10.0.0.22:8080
-A SEP-C -p tcp -j DNAT --to-destination 10.0.0.23:8080
COMMIT
"""


@pytest.mark.parametrize("many", [1, 40])
def test_the_answer_tells_the_endpoint(many: int) -> None:
    pods = [f"10.0.0.{21 + k % 3}" for k in range(many)]
    asked = [("eth0", tcp(FAR, 4000 + k, "10.96.0.1", 80, "S", k)) for k in range(many)]
    said = [("eth1", tcp(pod, 8080, FAR, 4000 + k, "SA", 1, k + 1)) for k, pod in enumerate(pods)]
    journeys = played(node(POOL), *asked, *said)
    assert [came(j)[3] for j in journeys[:many]] == pods
    assert [came(j)[1] for j in journeys[many:]] == ["10.96.0.1"] * many


def test_who_is_no_endpoint_tells_nothing() -> None:
    asked = ("eth0", tcp(FAR, 4000, "10.96.0.1", 80, "S", 5))
    others = tcp("10.0.0.99", 8080, FAR, 4000, "SA", 1, 6), tcp("10.0.0.23", 8080, FAR, 4000, "SA", 1, 99)
    drawn = came(node(POOL).send(asked[1], "eth0"))
    assert all(came(played(node(POOL), asked, ("eth1", other))[0]) == drawn for other in others)


def test_nothing_outside_the_pool_is_taken() -> None:
    rule = "nat POSTROUTING -o eth0 -p udp -j MASQUERADE --to-ports 40000-49999 --random"
    journeys = played(node(rule), ("eth1", udp(A, 4000, FAR, 53)), ("eth0", udp(FAR, 53, NEAR, 30_000)))
    assert 40_000 <= came(journeys[0])[2] <= 49_999


def test_who_keeps_that_port_is_not_robbed_of_it() -> None:
    journeys = played(
        node(PLAIN),
        ("eth1", udp(A, 4000, FAR, 53)), ("eth1", udp(B, 4000, FAR, 53)),
        ("eth1", udp(B, 4711, FAR, 53)), ("eth0", udp(FAR, 53, NEAR, 4711)),
    )  # fmt: skip
    assert came(journeys[2])[2] == 4711 and came(journeys[3])[3:] == (B, 4711)


@given(st.integers(0, 1000), st.integers(2, 30), st.data())
def test_what_netemu_drew_itself_is_drawn_again(seed: int, many: int, data: st.DataObject) -> None:
    """Who answers is drawn, too: an unanswered connection does not take another one's port."""
    one, again = node(FULLY, seed=seed), node(FULLY, seed=seed)
    asked = [udp(A, 4000 + k, FAR, 53) for k in range(many)]
    ports = [came(one.send(packet, "eth1", k / 1000))[2] for k, packet in enumerate(asked)]
    answered = data.draw(st.lists(st.sampled_from(range(many)), unique=True))
    said = [("eth0", udp(FAR, 53, NEAR, ports[k])) for k in answered]
    journeys = played(again, *(("eth1", packet) for packet in asked), *said)
    assert [came(j)[2] for j in journeys[:many]] == ports
    assert [came(j)[4] for j in journeys[many:]] == [4000 + k for k in answered]


@given(st.lists(st.tuples(st.sampled_from("AaBbEe"), st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_runs_make_no_difference(events: list[tuple[str, int, int]]) -> None:
    packets = []
    for what, k, port in events:
        client = A if what in "Aa" else B
        if what in "AB":
            packets.append(("eth1", udp(client, 700 + k, FAR, 53, ident=port)))
        elif what in "ab":
            packets.append(("eth0", udp(FAR, 53, NEAR, 700 + port)))
        else:
            packets.append(("eth0", error(FAR, NEAR, udp(NEAR, 1000 + port, FAR, 53, ident=port), 3, 1)))
    first = None
    for run_length in (1, 2, 7, None):
        n = node(PLAIN if len(events) % 2 else FULLY)
        told = [(j.fate, j.out) for j in played(n, *packets, run_length=run_length)], n.dump("conntrack")
        first = first or told
        assert told == first
