"""The TCP tracker: every cell of its table, the window rules, the timers, and its column form against the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from craft import tcp
from hypothesis import given
from hypothesis import strategies as st
from talk import node, says, table

from netemu import Node
from netemu import tcp as tracker
from netemu.conntrack import ASSURED, CONFIRMED, SEEN_REPLY
from netemu.packets import INVALID, NEW, Packets
from netemu.tcp import (
    ACCEPTED,
    ES,
    GONE,
    GOOD_FLAGS,
    IG,
    INVALID_SEGMENT,
    IV,
    KIND,
    LIBERAL,
    MAXACK,
    NO,
    ORIGINAL,
    REOPENED,
    REPLY,
    S2,
    SACK_PERM,
    SECOND,
    SR,
    SS,
    STATES,
    TIMEOUTS,
    TW,
    UNTOUCHED,
    Tracker,
    after,
    before,
    grid,
)

FLAGS = ("S", "SA", "FA", "A", "R", "")
CLIENT, SERVER = ("192.0.2.9", 4000), ("10.0.0.2", 80)


def flow_in(n: Node, state: int, *, seen: bool = True, assured: bool = False) -> int:
    """A confirmed flow CLIENT -> SERVER in `state`, both ends having said and allowed bytes around 1000 and 5000."""
    ct = n.conntrack
    (a, b) = (int.from_bytes(bytes(map(int, ip.split("."))), "big") for ip, _ in (CLIENT, SERVER))
    f = ct.begin((a, b, CLIENT[1], SERVER[1], 6), n.now)
    ct.status[f] = CONFIRMED | (SEEN_REPLY if seen else 0) | (ASSURED if assured else 0)
    ct.deadline[f] = n.now + 777 * SECOND
    assert ct.store(f, n.now)
    ct.tcp.misc[f], ct.tcp.last[f] = 0, 0
    ct.tcp.misc[f, 9], ct.tcp.misc[f, 5] = state, 5
    ct.tcp.td[f] = [[1000, 9000, 8000, 1000], [5000, 9000, 8000, 5000]]
    return f


def segment(reply: bool, flags: str, seq: int | None = None, ack: int | None = None, **more: object) -> bytes:
    (a, b) = (SERVER, CLIENT) if reply else (CLIENT, SERVER)
    seq = (5000 if reply else 1000) if seq is None else seq
    ack = (1000 if reply else 5000) if ack is None else ack
    return tcp(*a, *b, flags, seq, ack if "A" in flags else 0, **more)  # type: ignore[arg-type]


def one(n: Node, f: int, packet: bytes, reply: bool) -> int:
    p = Packets.from_bytes([packet], n.now)
    return n.conntrack.tcp.one(n.conntrack, f, p, 0, reply)


class TestTheTable:
    @pytest.mark.parametrize("reply", [False, True], ids=["original", "reply"])
    @pytest.mark.parametrize("kind", range(5), ids=FLAGS[:5])
    @pytest.mark.parametrize("state", range(SS, S2 + 1), ids=STATES[SS:])
    def test_every_cell_is_what_happens(self, state: int, kind: int, reply: bool) -> None:
        n = node()
        f = flow_in(n, state)
        said = int((REPLY if reply else ORIGINAL)[kind, state])
        verdict = one(n, f, segment(reply, FLAGS[kind]), reply)
        now = int(n.conntrack.tcp.misc[f, 9])
        left = int(n.conntrack.deadline[f] - n.now) // SECOND
        if said == IV:
            assert (verdict, now, left) == (INVALID_SEGMENT, state, 777)
        elif said == IG or (said == SS and state >= TW):
            assert (verdict, now, left) == (UNTOUCHED, state, 777)
        else:
            assert verdict == ACCEPTED
            assert now == said
            assert left == (10 if kind == 4 else min(TIMEOUTS[said][1], 300) if left == 300 else TIMEOUTS[said][1])

    @pytest.mark.parametrize("kind", range(6), ids=[f or "none" for f in FLAGS])
    def test_what_begins_a_connection(self, kind: int) -> None:
        journey = node().send(segment(False, FLAGS[kind]), "eth0", 0)
        assert (journey.state == "NEW") == (ORIGINAL[kind, NO] != IV)

    @pytest.mark.parametrize("state", range(SS, S2 + 1), ids=STATES[SS:])
    def test_no_flags_are_never_right(self, state: int) -> None:
        assert set(ORIGINAL[5]) == set(REPLY[5]) == {IV}
        assert not GOOD_FLAGS[0] and KIND[0] == 5

    def test_a_drawing_must_have_its_columns_in_order(self) -> None:
        with pytest.raises(AssertionError, match="columns"):
            grid("seen NO SR SS ES FW CW LA TW CL S2")

    def test_push_and_ecn_bits_do_not_matter(self) -> None:
        good = {f for f in range(256) if GOOD_FLAGS[f]}
        assert {f & 0x37 for f in good} == {2, 34, 18, 4, 20, 17, 49, 16, 48}
        assert all((f | 0xC8) in good for f in good)


class TestConversations:
    def test_open_talk_and_close(self) -> None:
        n = node()
        says(n, """
            0  eth0 in   192.0.2.9:4000 > 10.0.0.2:80    S  seq=1000
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80    S
        """)  # fmt: skip
        assert " 120 SYN_SENT " in table(n)[0]
        says(n, """
            0  eth1 in   10.0.0.2:80 > 192.0.2.9:4000    S. seq=5000 ack=1001
               eth0 out  10.0.0.2:80 > 192.0.2.9:4000    S.
        """)  # fmt: skip
        assert " 60 SYN_RECV " in table(n)[0] and "UNREPLIED" not in table(n)[0]
        says(n, """
            0  eth0 in   192.0.2.9:4000 > 10.0.0.2:80    .  seq=1001 ack=5001
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80    .
        """)  # fmt: skip
        assert " 432000 ESTABLISHED " in table(n)[0] and "ASSURED" in table(n)[0]
        says(n, """
            0  eth0 in   192.0.2.9:4000 > 10.0.0.2:80    P. seq=1001 ack=5001 len=10
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80    P.
        """)  # fmt: skip
        assert " 300 ESTABLISHED " in table(n)[0], "what was not acknowledged is waited for five minutes only"
        says(n, """
            0  eth1 in   10.0.0.2:80 > 192.0.2.9:4000    .  seq=5001 ack=1011
               eth0 out  10.0.0.2:80 > 192.0.2.9:4000    .
            0  eth0 in   192.0.2.9:4000 > 10.0.0.2:80    F. seq=1011 ack=5001
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80    F.
        """)  # fmt: skip
        assert " 120 FIN_WAIT " in table(n)[0]
        says(n, """
            0  eth1 in   10.0.0.2:80 > 192.0.2.9:4000    .  seq=5001 ack=1012
               eth0 out  10.0.0.2:80 > 192.0.2.9:4000    .
        """)  # fmt: skip
        assert " 60 CLOSE_WAIT " in table(n)[0]
        says(n, """
            0  eth1 in   10.0.0.2:80 > 192.0.2.9:4000    F. seq=5001 ack=1012
               eth0 out  10.0.0.2:80 > 192.0.2.9:4000    F.
        """)  # fmt: skip
        assert " 30 LAST_ACK " in table(n)[0]
        says(n, """
            0  eth0 in   192.0.2.9:4000 > 10.0.0.2:80    .  seq=1012 ack=5002
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80    .
        """)  # fmt: skip
        assert " 120 TIME_WAIT " in table(n)[0]
        says(n, """
            1  eth0 in   192.0.2.9:4000 > 10.0.0.2:80    S  seq=99000
               eth1 out  192.0.2.9:4000 > 10.0.0.2:80    S
               NEW
        """)  # fmt: skip
        assert " 120 SYN_SENT " in table(n)[0] and "UNREPLIED" in table(n)[0], "a new life"

    def test_a_syn_again_does_not_wind_the_timer_up(self) -> None:
        n = node()
        line = "eth0 in 192.0.2.9:4000 > 10.0.0.2:80 S seq=1000\n eth1 out 192.0.2.9:4000 > 10.0.0.2:80 S"
        says(n, f"0 {line}\n100 {line}")
        assert " 20 SYN_SENT " in table(n)[0]

    def test_a_refused_connection_is_forgotten_at_once(self) -> None:
        n = node()
        says(n, """
            0 eth0 in  192.0.2.9:4000 > 10.0.0.2:80 S  seq=1000
              eth1 out 192.0.2.9:4000 > 10.0.0.2:80 S
            0 eth1 in  10.0.0.2:80 > 192.0.2.9:4000 R. ack=1001
              eth0 out 10.0.0.2:80 > 192.0.2.9:4000 R.
              ESTABLISHED
        """)  # fmt: skip
        assert table(n) == []

    def test_picked_up_in_the_middle_both_may_do_what_they_like(self) -> None:
        n = node()
        says(n, """
            0 eth0 in  192.0.2.9:4000 > 10.0.0.2:80 .  seq=1000 ack=5000
              eth1 out 192.0.2.9:4000 > 10.0.0.2:80 .
              NEW
        """)  # fmt: skip
        assert " 300 ESTABLISHED " in table(n)[0]
        says(n, """
            0 eth1 in  10.0.0.2:80 > 192.0.2.9:4000 .  seq=900000 ack=700000
              eth0 out 10.0.0.2:80 > 192.0.2.9:4000 .
              ESTABLISHED
        """)  # fmt: skip

    def test_unless_told_not_to(self) -> None:
        says(node(sysctl={"net.netfilter.nf_conntrack_tcp_loose": 0}), """
            0 eth0 in  192.0.2.9:4000 > 10.0.0.2:80 .  seq=1000 ack=5000
              INVALID
              eth1 out 192.0.2.9:4000 > 10.0.0.2:80 .
        """)  # fmt: skip

    def test_a_reset_from_nowhere_is_invalid(self) -> None:
        n = node()
        flow_in(n, ES, assured=True)
        n.conntrack.tcp.misc[0, 2:4] |= 32  # both have acknowledged something
        n.conntrack.end_run()
        assert n.send(segment(True, "R", seq=100), "eth1", 0).state == "INVALID"
        n.run("sysctl -w net.netfilter.nf_conntrack_tcp_ignore_invalid_rst=1")
        assert n.send(segment(True, "R", seq=100), "eth1", 0).state == "ESTABLISHED"


class TestTheWindow:
    """CLIENT may send up to 9000 and has sent up to 1000; SERVER up to 9000 and 5000; both windows were 8000."""

    @pytest.mark.parametrize(
        "seq, ack, verdict",
        [
            (1000, 5000, ACCEPTED),
            (9000, 5000, ACCEPTED),
            (9001, 5000, UNTOUCHED),  # a byte too far, but it acknowledges what was sent: it teaches how far it went
            (17001, 5000, INVALID_SEGMENT),  # more than a window too far
            (1000, 5001, INVALID_SEGMENT),  # acknowledges what nobody sent
            (2**32 - 7000, 5000, ACCEPTED),  # just inside the receiver's last window
            (2**32 - 7001, 5000, UNTOUCHED),
            (1000, 2**32 - 61000, ACCEPTED),  # 66000 back at most
            (1000, 2**32 - 61001, UNTOUCHED),
        ],
    )
    def test_edges(self, seq: int, ack: int, verdict: int) -> None:
        n = node()
        f = flow_in(n, ES)
        packet = segment(False, "A", seq, ack)
        assert one(n, f, packet, False) == verdict

    def test_a_liberal_tracker_takes_all(self) -> None:
        n = node(sysctl={"net.netfilter.nf_conntrack_tcp_be_liberal": 1})
        assert one(n, flow_in(n, ES), segment(False, "A", 3_000_000_000, 17), False) == ACCEPTED

    def test_windows_are_scaled_when_both_offered_it(self) -> None:
        n = node()
        syn = (
            "0 eth0 in 192.0.2.9:4000 > 10.0.0.2:80 S seq=1000 opt=01030307\n eth1 out 192.0.2.9:4000 > 10.0.0.2:80 S\n"
        )
        both = "0 eth1 in 10.0.0.2:80 > 192.0.2.9:4000 S. seq=5000 ack=1001 win=100 opt={}\n"
        both += " eth0 out 10.0.0.2:80 > 192.0.2.9:4000 S."
        says(n, syn + both.format("0103030e"))
        assert n.conntrack.tcp.misc[0, :2].tolist() == [7, 14]
        m = node()
        says(m, syn + both.format("01010101"))
        assert m.conntrack.tcp.misc[0, :2].tolist() == [0, 0]

    def test_what_sack_acknowledges_counts(self) -> None:
        n = node()
        f = flow_in(n, ES)
        n.conntrack.tcp.misc[f, 3] = SACK_PERM  # SERVER can do SACK
        beyond = b"\x01\x01\x05\x0a" + (4900).to_bytes(4, "big") + (5100).to_bytes(4, "big")
        assert one(n, f, segment(False, "A", 1000, 4000, options=beyond), False) == INVALID_SEGMENT
        inside = b"\x01\x01\x05\x0a" + (4900).to_bytes(4, "big") + (5000).to_bytes(4, "big")
        assert one(n, f, segment(False, "A", 1000, 4000, options=inside), False) == ACCEPTED

    def test_repeated_acknowledgements_shorten_the_timer(self) -> None:
        n = node()
        f = flow_in(n, ES, assured=True)
        for _ in range(3):
            one(n, f, segment(False, "A"), False)
        assert (n.conntrack.deadline[f] - n.now) // SECOND == 432000
        one(n, f, segment(False, "A"), False)
        assert (n.conntrack.deadline[f] - n.now) // SECOND == 300

    def test_a_closed_window_too(self) -> None:
        n = node()
        f = flow_in(n, ES, assured=True)
        one(n, f, segment(False, "A", win=0), False)
        assert (n.conntrack.deadline[f] - n.now) // SECOND == 300


def test_sequence_numbers_go_round() -> None:
    assert before(2**32 - 1, 0) and after(0, 2**32 - 1) and not before(5, 5) and not after(5, 5)


@pytest.mark.parametrize("reply", [False, True])
def test_a_syn_reopens_what_was_closed_by_its_own_end(reply: bool) -> None:
    n = node()
    f = flow_in(n, TW)
    n.conntrack.tcp.misc[f, 2] |= 4  # CLIENT sent the first FIN
    assert one(n, f, segment(reply, "S"), reply) == REOPENED


def test_a_reset_on_an_unanswered_connection_ends_it() -> None:
    n = node()
    assert one(n, flow_in(n, SS, seen=False), segment(True, "R"), True) == GONE


def test_simultaneous_open() -> None:
    n = node()
    f = flow_in(n, SS)
    n.conntrack.tcp.td[f] = [[1001, 1001, 8000, 0], [0, 0, 0, 0]]
    assert one(n, f, segment(True, "S", 5000), True) == ACCEPTED
    assert n.conntrack.tcp.misc[f, 9] == S2
    one(n, f, segment(False, "SA", 1000, 5001), False)
    assert n.conntrack.tcp.misc[f, 9] == SR
    one(n, f, segment(True, "A", 5001, 1001), True)
    assert n.conntrack.tcp.misc[f, 9] == ES


# ---- many is one repeated -----------------------------------------------------------------------------------------

near = st.one_of(
    st.integers(-3, 3).map(lambda d: (1000 + d) % 2**32),
    st.sampled_from([5000, 9000, 9001, 17000, 17001, 2**32 - 61000, 2**32 - 7000, 0, 2**31, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
)
words = st.one_of(near, st.sampled_from([0, 1, 8000, 66000]))


Situation = tuple[list[int], list[list[int]], list[int], int, list[tuple[bytes, bool]]]


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """What is remembered of a connection, its status, and segments of it, each with the way that it goes."""
    known = [1, 2, 4, 8, 16, 32]
    misc = [draw(st.integers(0, 14)), draw(st.integers(0, 14))]
    misc += [sum(draw(st.lists(st.sampled_from(known), unique=True))) | draw(st.sampled_from([0, 32])) for _ in "ab"]
    misc += [draw(st.integers(0, 1)), draw(st.integers(0, 5)), 0, 0, draw(st.integers(0, 255))]
    misc += [draw(st.sampled_from([ES, ES, ES, *range(SS, S2 + 1)]))]
    usual = draw(st.booleans())
    td = (
        [[1000, 9000, 8000, 5000], [5000, 9000, 8000, 1000]] if usual else [[draw(words) for _ in "abcd"] for _ in "ab"]
    )
    status = CONFIRMED | draw(st.sampled_from([0, SEEN_REPLY, SEEN_REPLY | ASSURED]))
    said: list[tuple[bytes, bool]] = []
    last = [draw(near) for _ in range(4)]
    furthest = [1000, 5000]
    for _ in range(draw(st.integers(1, 9))):
        if said and draw(st.integers(0, 4)) == 0:
            said.append(said[-1])
            continue
        reply = draw(st.booleans())
        options = draw(st.sampled_from([b"", b"", b"\x01\x01\x08\x0a" + bytes(8), b"\x01\x01\x05\x0a" + bytes(8)]))
        payload = bytes(draw(st.sampled_from([0, 0, 1, 1400])))
        win = draw(st.sampled_from([0, 1, 8000, 65535]))
        if draw(st.integers(0, 3)):  # a plain conversation
            flags, seq, ack = "A", furthest[reply], furthest[not reply] - draw(st.sampled_from([0, 0, 1, 700]))
            furthest[reply] += len(payload)
        else:
            flags = draw(st.sampled_from(["A", "A", "A", "PA", "FA", "S", "SA", "R"]))
            seq, ack = draw(near), draw(near)
        if not said and draw(st.booleans()):
            last = [seq, ack, (seq + len(payload)) % 2**32, win]
        a, b = (SERVER, CLIENT) if reply else (CLIENT, SERVER)
        said.append((tcp(*a, *b, flags, seq, ack, win, payload, options=options), reply))
    return misc, td, last, status, said


@given(st.lists(situations(), min_size=1, max_size=8), st.booleans())
def test_many_segments_are_one_repeated(cases: list[Situation], liberal: bool) -> None:
    def fresh() -> Node:
        n = NODES[liberal]
        ct = n.conntrack
        ct.tcp = Tracker(ct.capacity)
        ct.tcp.liberal = liberal
        for f, (misc, td, last, status, _) in enumerate(cases):
            ct.tcp.misc[f], ct.tcp.td[f], ct.tcp.last[f], ct.status[f] = misc, td, last, status
            ct.deadline[f] = 777 * SECOND
        return n

    def state(n: Node, f: int) -> dict[str, object]:
        ct, t = n.conntrack, n.conntrack.tcp
        return {
            "misc": t.misc[f].tolist(), "td": t.td[f].tolist(), "last": t.last[f].tolist(), "status": int(ct.status[f]),
            "deadline": int(ct.deadline[f]),
        }  # fmt: skip

    packets = Packets.from_bytes([packet for *_, said in cases for packet, _ in said], 5 * SECOND)
    packets.time[:] += np.arange(packets.n)
    rows, reply = np.arange(packets.n), np.array([r for *_, said in cases for _, r in said])
    sizes = np.array([len(said) for *_, said in cases])
    n = fresh()
    tracker.WORTH, tracker.ABREAST, *usual = 0, 1, tracker.WORTH, tracker.ABREAST
    try:
        got, states, _ = n.conntrack.tcp.follow(
            n.conntrack, np.arange(len(cases)), sizes, packets, rows, reply, lambda *_: -1
        )
    finally:
        tracker.WORTH, tracker.ABREAST = usual
    left = [state(n, f) for f in range(len(cases))]
    n = fresh()
    gone: set[int] = set()  # what comes after that is not theirs any more
    for row, f in enumerate(np.repeat(np.arange(len(cases)), sizes).tolist()):
        known = reply[row] or n.conntrack.status[f] & SEEN_REPLY
        verdict = INVALID_SEGMENT if f in gone else n.conntrack.tcp.one(n.conntrack, f, packets, row, bool(reply[row]))
        if verdict == GONE:
            gone.add(f)
        if verdict == REOPENED:
            verdict = INVALID_SEGMENT
        assert (verdict, states[row]) == (got[row], INVALID if verdict == INVALID_SEGMENT else NEW + bool(known)), row
        if verdict != INVALID_SEGMENT and reply[row]:
            n.conntrack.status[f] |= SEEN_REPLY
    for f, was in enumerate(left):
        assert was == state(n, f)


NODES = {False: node(), True: node()}


@pytest.mark.parametrize("trusted", [False, True])
def test_plain_acknowledgements_go_in_columns(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n = node()
    f = flow_in(n, ES, assured=True)
    n.conntrack.tcp.misc[f, 2:4] = MAXACK | LIBERAL * trusted
    said = [segment(False, "PA", 1000 + 10 * k, data=b"x" * 10) for k in range(200)]
    said[100] = segment(False, "A", 1000, 2_000_000_000)  # acknowledges what was never sent
    p = Packets.from_bytes(said, 0)
    alone: list[int] = []
    one = Tracker._one

    def counted(*args: Any) -> int:
        alone.append(1)
        return one(*args)

    monkeypatch.setattr(Tracker, "_one", counted)
    verdicts, _, _ = n.conntrack.tcp.follow(
        n.conntrack, np.array([f]), np.array([200]), p, np.arange(200), np.zeros(200, bool), lambda *_: -1
    )
    assert np.flatnonzero(verdicts).tolist() == ([] if trusted else [100])
    assert bool(alone) != trusted and n.conntrack.tcp.td[f, 0, 0] == 3000
