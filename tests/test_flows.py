"""Synthetic flows: right checksums, right order, the same whatever way they are cut."""

from __future__ import annotations

import io
from dataclasses import replace

import dpkt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netemu import flows
from netemu.errors import Refused
from netemu.flows import FlowSpec, Target
from netemu.packets import ACK, FIN, ICMP, PSH, SYN, TCP, UDP, Packets, padded

EVERY = tuple(map(Target.read, ("tcp/10.96.0.1:443", "udp/10.96.0.10:53", "ping/10.0.0.1")))


def parsed(trace: flows.Trace) -> Packets:
    return Packets.parse(padded(trace.data.tobytes()), trace.at, trace.size, time=trace.times)


specs = st.builds(
    FlowSpec,
    targets=st.lists(st.sampled_from(EVERY), min_size=1, max_size=3).map(tuple),
    count=st.integers(0, 30),
    rate=st.sampled_from([0.5, 1000.0, 1e6]),
    seed=st.integers(-5, 5),
    packets=st.integers(0, 3),
    data=st.sampled_from([0, 1, 2, 7, 100, 1461]),
    gap=st.sampled_from([0.0, 0.001, 2.0]),
    arrival=st.sampled_from(["even", "poisson"]),
    answers=st.booleans(),
    handshake=st.booleans(),
    close=st.sampled_from(["fin", "rst", "none"]),
)


@given(specs)
def test_checksums_are_right_and_time_goes_forward(spec: FlowSpec) -> None:
    trace = flows.make(spec)
    pkts = parsed(trace)
    rows = np.arange(len(pkts))
    assert pkts.ip_checksum_ok(rows).all()
    assert pkts.l4_checksum_ok(rows).all()
    assert (np.diff(trace.times) >= 0).all()
    assert (pkts.length == trace.size).all()


@given(specs, st.integers(1, 9))
def test_blocks_do_not_show(spec: FlowSpec, block: int) -> None:
    whole = flows.make(spec)
    usual = flows.BLOCK
    flows.BLOCK = block
    try:
        cut = flows.make(spec)
    finally:
        flows.BLOCK = usual
    assert whole.data.tobytes() == cut.data.tobytes()
    assert (whole.at == cut.at).all() and (whole.flow == cut.flow).all()


def test_a_tcp_conversation_holds_together() -> None:
    pkts = parsed(flows.make(FlowSpec(EVERY[:1], count=1, packets=2, data=10, answers=True)))
    assert pkts.flags.tolist() == [
        *(SYN, SYN | ACK, ACK),
        *(PSH | ACK,) * 4,
        *(FIN | ACK, FIN | ACK, ACK),
    ]
    heard = {}
    for row in range(len(pkts)):
        end = int(pkts.src[row])
        said = int(pkts.length[row]) - 40 + bool(pkts.flags[row] & (SYN | FIN))
        if end in heard:
            assert pkts.seq[row] == heard[end][0]
        other = next((v for k, v in heard.items() if k != end), None)
        if other is not None:
            assert pkts.ack[row] == other[0]
        heard[end] = ((int(pkts.seq[row]) + said) % 2**32,)


def test_questions_get_answers_from_whom_they_asked() -> None:
    pkts = parsed(flows.make(FlowSpec(EVERY[1:], count=20, rate=1, answers=True)))
    ask, answer = slice(0, None, 2), slice(1, None, 2)
    assert (pkts.src[ask] == pkts.dst[answer]).all() and (pkts.dport[ask] == pkts.sport[answer]).all()
    pings = pkts.proto == ICMP
    assert set(pkts.icmp_type[ask][pings[ask]]) == {8} and set(pkts.icmp_type[answer][pings[answer]]) == {0}
    assert (pkts.icmp_id[ask] == pkts.icmp_id[answer]).all()
    assert set(pkts.proto.tolist()) == {UDP, ICMP}


def test_clients_are_all_different_and_from_the_given_networks() -> None:
    spec = FlowSpec(EVERY[:1], sources=(flows.network("10.1.0.0/30"), flows.network("10.2.0.7")), count=80_000)
    pkts = parsed(flows.make(replace(spec, packets=0, handshake=False, close="rst")))
    assert set(pkts.src.tolist()) == {*map(flows.address, ("10.1.0.1", "10.1.0.2", "10.2.0.7"))}
    assert len(np.unique(pkts.src.astype(np.uint64) << np.uint64(16) | pkts.sport)) == 80_000
    assert pkts.proto[0] == TCP and pkts.sport.min() >= flows.FIRST_PORT


def test_a_flow_does_not_depend_on_how_many_others_there_are() -> None:
    few, many = (flows.make(FlowSpec(EVERY, count=n, arrival="poisson")) for n in (5, 50))
    assert few.packet(0) == many.packet(0)
    assert few.data.tobytes() != flows.make(FlowSpec(EVERY, count=5, arrival="poisson", seed=1)).data.tobytes()


def test_dpkt_reads_what_is_written() -> None:
    file = io.BytesIO()
    assert flows.write_pcap(FlowSpec(EVERY, count=9, rate=2, start=1.5), file) > 9
    file.seek(0)
    reader = dpkt.pcap.Reader(file)
    assert reader.datalink() == 101
    records = list(reader)
    assert float(records[0][0]) == 1.5
    assert dpkt.ip.IP(records[0][1]).ttl == 64


@pytest.mark.parametrize(
    "text", ["", "tcp", "tcp/1.2.3.4", "tcp/1.2.3.4:0", "tcp/1.2.3:80", "sctp/1.2.3.4:5", "ping/x"]
)
def test_nonsense_targets_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        Target.read(text)


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0},
        {"rate": float("nan")},
        {"count": -1},
        {"data": 70_000},
        {"gap": -1},
        {"ttl": 0},
        {"close": "x"},
        {"targets": ()},
    ],
)
def test_nonsense_specifications_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(Refused):
        replace(FlowSpec(EVERY), **change)  # type: ignore[arg-type]
