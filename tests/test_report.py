"""Reports say what the journeys say, exactly, in every form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, play, replayed, worlds

from netemu import report
from netemu.capture import CaptureWriter, read_capture, write_pcap
from netemu.errors import Refused
from netemu.node import Journeys, Node
from netemu.packets import Packets
from netemu.paths import Rewrite, Step

NODE = """
kernel = "6.18"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "eth1"
addresses = ["192.168.0.1/24"]
"""
RULES = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:WEB - [0:0]
-A PREROUTING -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j WEB
-A WEB -p tcp -j DNAT --to-destination 192.168.0.2:8080
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -p tcp -m tcp --dport 23 -j DROP
-A FORWARD -p tcp -m tcp --dport 25 -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""
PACKETS = (
    "tcp 10.0.0.5:4000 > 10.0.0.1:80 S",
    "tcp 10.0.0.5:4001 > 192.168.0.2:23 S",
    "tcp 10.0.0.5:4002 > 192.168.0.2:25 S",
    "udp 192.168.0.2:5000 > 10.0.0.9:53",
    "icmp 10.0.0.5 > 10.0.0.1 echo id 7",
    "tcp 192.168.0.2:8080 > 10.0.0.5:4000 SA",
    "udp 10.0.0.5:1 > 192.168.0.2:2 ttl 1",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "node.toml").write_text(NODE)
    (path / "iptables.save").write_text(RULES)
    return path


@pytest.fixture
def node(model: Path) -> Node:
    return Node.load(model)


def trace(packets: tuple[str, ...] = PACKETS, gap: int = 500_000_000) -> io.BytesIO:
    file = io.BytesIO()
    write_pcap(file, [k * gap for k in range(len(packets))], [report.read_packet(p) for p in packets])
    file.seek(0)
    return file


@pytest.fixture
def journeys(node: Node) -> Iterator[Journeys]:
    (part,) = node.stream(read_capture(trace()))
    yield part


def every(journeys: Journeys) -> np.ndarray:
    return np.arange(len(journeys))


def objects(journeys: Journeys) -> list[dict[str, object]]:
    file = io.BytesIO()
    report.JsonLines(file).write(journeys, every(journeys))
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_a_json_line_has_the_promised_keys_in_the_promised_order(journeys: Journeys) -> None:
    first, *rest = objects(journeys)
    assert list(first) == [
        *("packet", "time", "in", "proto", "src", "sport", "dst", "dport", "fate", "reason", "out", "state", "service"),
        *("rules_evaluated", "rewrites", "path"),
    ]
    assert first["packet"] == 1 and first["time"] == 0.0 and first["in"] == "eth0"
    assert (first["fate"], first["reason"], first["out"], first["state"]) == ("forwarded", None, "eth1", "NEW")
    assert first["rewrites"] == {"dst": ["10.0.0.1", "192.168.0.2"], "dport": [80, 8080], "ttl": [64, 63]}
    assert "nat:PREROUTING:rule:1" in first["path"] and "nat:WEB:rule:1" in first["path"]
    assert rest[0]["time"] == 0.5


def test_fates_reasons_and_answers(journeys: Journeys) -> None:
    lines = objects(journeys)
    assert [line["fate"] for line in lines] == [
        *("forwarded", "dropped", "rejected", "forwarded", "delivered", "forwarded", "rejected"),
    ]
    assert lines[1]["out"] is None and "filter:FORWARD:rule:1" in str(lines[1]["reason"])
    assert lines[2]["out"] == "eth0"  # the ICMP error that went back
    assert lines[4]["proto"] == "icmp" and lines[4]["id"] == 7 and "sport" not in lines[4]
    assert lines[5]["rewrites"]["src"] == ["192.168.0.2", "10.0.0.1"]  # type: ignore[index]
    assert lines[6]["reason"] == "ttl exceeded"


def test_json_agrees_with_the_journeys(journeys: Journeys) -> None:
    for line, journey in zip(objects(journeys), journeys, strict=True):
        links = [link for link, _ in journey.out]
        assert line["out"] == (links[0] if len(links) == 1 else links or None)
        assert line["path"] == [str(step) for step in journey.steps]
        assert line["rewrites"] == {k: list(v) for k, v in report.first_and_last(journey.rewrites).items()}
        assert line["rules_evaluated"] == journey.rules_evaluated
        assert (line["fate"], line["reason"], line["state"]) == (journey.fate, journey.reason, journey.state)


def test_csv_says_the_same(journeys: Journeys) -> None:
    file = io.BytesIO()
    report.Csv(file).write(journeys, every(journeys))
    for row, line in zip(csv.DictReader(io.StringIO(file.getvalue().decode())), objects(journeys), strict=True):
        assert tuple(row) == report.FLAT
        assert int(row["packet"]) == line["packet"]
        assert row["fate"] == line["fate"]
        assert row["path"].split(" | ") == line["path"]
        assert row["out"] == (line["out"] or "")


def record(part: Journeys, row: int) -> dict[str, object]:
    """What is told of one packet, found out packet by packet."""
    journey, before, pkts = part[row], {k: int(v[row]) for k, v in part.before.items()}, part.pkts
    proto, kind = before["proto"], int(pkts.icmp_type[row])
    ends: dict[str, object] = {"src": report.address(before["src"]), "dst": report.address(before["dst"])}
    if proto in report.PORTED:
        ends = {"src": ends["src"], "sport": before["sport"], "dst": ends["dst"], "dport": before["dport"]}
    elif proto == 1:
        asked = before["icmp_id"] if kind in report.ICMP_QUERIES else None
        ends |= {"type": kind, "code": int(pkts.icmp_code[row]), "id": asked}
    links = [link for link, _ in journey.out]
    return {
        "packet": journey.packet,
        "time": report.seconds(int(pkts.time[row])),
        "in": journey.link,
        "proto": report.PROTOCOLS.get(proto, str(proto)),
        **ends,
        "fate": journey.fate,
        "reason": journey.reason,
        "out": links[0] if len(links) == 1 else links or None,
        "state": journey.state,
        "service": journey.service,
        "rules_evaluated": journey.rules_evaluated,
        "rewrites": {k: list(v) for k, v in report.first_and_last(journey.rewrites).items()},
        "path": [str(step) for step in journey.steps],
    }


def flat(record: dict[str, object]) -> dict[str, object]:
    """The same in cells of text or numbers, None for nothing."""
    out, rewrites = record["out"], record["rewrites"]
    assert isinstance(rewrites, dict) and isinstance(record["path"], list)
    return {name: record.get(name) for name in report.FLAT} | {
        "out": " ".join(out) if isinstance(out, list) else out,
        "rewrites": " ".join(f"{k}={old}->{new}" for k, (old, new) in rewrites.items()) or None,
        "path": " | ".join(record["path"]),
    }


@given(worlds())
def test_every_report_says_what_the_journeys_say(world: World) -> None:
    events, _ = play(world.node(), world.choices)
    _, journeys = replayed(world, events, None)
    records = [record(part, row) for part in journeys.parts for row in range(len(part))]
    json_lines, table = io.BytesIO(), io.BytesIO()
    for writer in (report.JsonLines(json_lines), report.Csv(table)):
        for part in journeys.parts:
            some = len(part) // 3
            writer.write(part, np.arange(some))
            writer.write(part, np.arange(some, len(part)))
        writer.close()
    lines = json_lines.getvalue().decode().splitlines()
    assert [json.loads(line, parse_float=str) for line in lines] == records
    assert lines == [json.dumps(json.loads(line)) for line in lines]
    rows = csv.DictReader(io.StringIO(table.getvalue().decode()))
    assert list(rows) == [{k: "" if v is None else str(v) for k, v in flat(r).items()} for r in records]
    try:
        import pyarrow.parquet
    except ImportError:
        return
    file = io.BytesIO()
    parquet = report.Parquet(file)
    for part in journeys.parts:
        parquet.write(part, every(part))
    parquet.close()
    file.seek(0)
    assert pyarrow.parquet.read_table(file).to_pylist() == [flat(r) | {"time": float(str(r["time"]))} for r in records]


@pytest.mark.parametrize("size", [1, 2, 3, 100, 9_000])
def test_lines_of_many_packets_are_those_of_each(node: Node, size: int) -> None:
    """However many there are, and however alike."""
    rng = np.random.default_rng(size)
    ends = rng.integers(1, 60, (size, 2)) if size % 2 else rng.integers(1, 250, (size, 2))
    kinds = (
        "tcp 10.0.0.{}:4000 > 10.0.0.1:{} S",
        "udp 192.168.0.{}:53 > 10.0.0.9:{}",
        "icmp 10.0.0.{} > 10.0.0.1 id {}",
    )
    packets = tuple(kinds[k % 3].format(a + 1, b) for k, (a, b) in enumerate(ends.tolist()))
    parts = list(node.stream(read_capture(trace(packets, (1, 1_000, 10**6, 10**9, 7)[size % 5]))))
    for kind in (report.JsonLines, report.Csv):
        together, alone = io.BytesIO(), io.BytesIO()
        many, one = kind(together), kind(alone)
        for part in parts:
            many.write(part, every(part))
            for row in range(0, len(part), 1 + size // 300):
                one.write(part, np.array([row]))
        assert set(alone.getvalue().splitlines()) <= set(together.getvalue().splitlines())
        assert together.getvalue().count(b"\n") == size + (kind is report.Csv)


def test_parquet_says_the_same_or_tells_what_it_needs(journeys: Journeys, tmp_path: Path) -> None:
    path = str(tmp_path / "out.parquet")
    try:
        import pyarrow.parquet
    except ImportError:
        with pytest.raises(Refused, match="pyarrow"):
            report.open_report(path)
        return
    writer = report.open_report(path)
    writer.write(journeys, every(journeys))
    writer.close()
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["fate"] for row in rows] == [line["fate"] for line in objects(journeys)]


def test_what_left_can_be_read_back(node: Node, journeys: Journeys) -> None:
    file = io.BytesIO()
    left = report.Left(file, node)
    left.write(journeys, every(journeys))
    left.close()
    file.seek(0)
    capture = read_capture(file)
    (frames,) = capture
    got = []
    for k in range(len(frames)):
        data = frames.data[frames.at[k] : frames.at[k] + frames.cap[k]].tobytes()
        got.append((capture.interfaces[frames.iface[k]], data))
    assert got == [out for journey in journeys for out in journey.out]
    assert b"nat:WEB:rule:1" in file.getvalue()


@given(worlds())
def test_what_left_is_written_as_packet_by_packet(world: World) -> None:
    events, _ = play(world.node(), world.choices)
    node, journeys = replayed(world, events, None)
    together, one_by_one = io.BytesIO(), io.BytesIO()
    left, writer = report.Left(together, node), CaptureWriter(one_by_one, node.routing.names)
    for part in journeys.parts:
        left.write(part, every(part))
        for row, journey in enumerate(part):
            comment = "\n".join((f"packet {journey.packet}", *map(str, journey.steps)))
            for link, packet in journey.out:
                writer.write(link, int(part.pkts.time[row]), packet, comment)
    left.close()
    writer.close()
    assert together.getvalue() == one_by_one.getvalue()


def test_chunks_do_not_show_in_any_report(model: Path) -> None:
    texts = []
    for run_length in (1, None):
        summary, file, told = report.Summary(), io.StringIO(), io.BytesIO()
        lines, table = report.JsonLines(told), report.Table(report.Screen(file))
        for part in Node.load(model).stream(read_capture(trace()), run_length):
            lines.write(part, every(part))
            table.write(part, every(part))
            summary.add(part)
        summary.show(report.Screen(file))
        texts.append(file.getvalue() + told.getvalue().decode())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_nothing_is_wider_than_the_screen(journeys: Journeys, width: int) -> None:
    file = io.StringIO()
    screen = report.Screen(file, width)
    report.Table(screen).write(journeys, every(journeys))
    summary = report.Summary()
    summary.add(journeys)
    summary.show(screen)
    for row in range(len(journeys)):
        report.explain(journeys, row, screen)
    assert max(map(len, file.getvalue().splitlines())) <= width


def test_a_piped_table_has_one_line_a_packet_and_nothing_cut_off(journeys: Journeys) -> None:
    file = io.StringIO()
    report.Table(report.Screen(file)).write(journeys, every(journeys))
    head, *lines = file.getvalue().splitlines()
    assert len(lines) == len(PACKETS) and "…" not in file.getvalue() and "\x1b" not in file.getvalue()
    assert "dst 192.168.0.2:8080" in lines[0] and "tcp 10.0.0.5:4000 > 10.0.0.1:80 S" in lines[0]
    assert head.split()[:3] == ["packet", "time", "in"]


def test_the_summary_counts(journeys: Journeys) -> None:
    summary = report.Summary()
    summary.add(journeys)
    summary.add(journeys)
    assert summary.packets == 2 * len(PACKETS)
    assert {report.FATES[k]: n for k, n in summary.fates.most()} == {
        "forwarded": 6,
        "rejected": 4,
        "dropped": 2,
        "delivered": 2,
    }
    key = (6, 0x0A000001, 80)
    target = summary.translated()[key]
    assert (target.packets, target.new, target.servers) == (2, 2, {(0xC0A80002, 8080): 2})
    assert summary.destinations == len(summary.translated()) and list(summary.translated(1)) == [key]
    assert summary.ways[(1, 2)] == 2
    chains, sets = summary.touched()
    assert chains["nat:WEB"] == 2 and not sets
    file = io.StringIO()
    summary.show(report.Screen(file))
    for word in ("14 packets", "forwarded", "ttl exceeded", "nat:WEB", "10.0.0.1:80/tcp", "192.168.0.2:8080"):
        assert word in file.getvalue()


def test_explaining_names_each_rule_and_rewrite(journeys: Journeys) -> None:
    file = io.StringIO()
    report.explain(journeys, 0, report.Screen(file))
    text = file.getvalue()
    assert "-A WEB -p tcp -j DNAT --to-destination 192.168.0.2:8080" in text
    assert "dst 10.0.0.1 → 192.168.0.2" in text and "dport 80 → 8080" in text
    assert text.index("nat:PREROUTING:rule:1") < text.index("nat:WEB:rule:1") < text.index("dst 10.0.0.1 →")
    report.explain(journeys, 2, report.Screen(file))
    assert "filter:FORWARD:rule:1 no: -m tcp --dport 23" in file.getvalue()
    report.explain(journeys, 3, report.Screen(file))
    assert "nat:PREROUTING:rule:1 no: -d 10.0.0.1/32" in file.getvalue()
    assert "because of it the node sent" in file.getvalue()


def test_describing_a_model(node: Node) -> None:
    file = io.StringIO()
    report.describe(node, "model", report.Screen(file))
    text = file.getvalue()
    for word in ("eth0", "10.0.0.1/24", "nat", "3 rules", "WEB"):
        assert word in text


def test_first_and_last_values() -> None:
    step = Step("nat", "nat:X:rule:1")
    rewrites = [
        Rewrite(step, "mark", 0, 0x4000),
        Rewrite(step, "ttl", 64, 63),
        Rewrite(step, "dst", "1.1.1.1", "2.2.2.2"),
        Rewrite(step, "dst", "2.2.2.2", "3.3.3.3"),
        Rewrite(step, "mark", 0x4000, 0),
    ]
    assert list(report.first_and_last(rewrites).items()) == [("dst", ("1.1.1.1", "3.3.3.3")), ("ttl", (64, 63))]


@given(st.integers(-(10**18), 10**19))
def test_seconds_are_exact(ns: int) -> None:
    text = report.seconds(ns)
    whole, _, part = text.lstrip("-").partition(".")
    assert (int(whole) * 10**9 + int(part.ljust(9, "0"))) * (-1 if text.startswith("-") else 1) == ns
    json.loads(text)


addresses = st.integers(0, 2**32 - 1).map(report.address)
ports = st.integers(0, 65535)
lines = st.one_of(
    st.builds(
        "tcp {}:{} > {}:{} {}".format,
        addresses,
        ports,
        addresses,
        ports,
        st.sampled_from(["S", "SA", "FA", "PA", "RA", "A"]),
    ),
    st.builds("udp {}:{} > {}:{}".format, addresses, ports, addresses, ports),
    st.builds("icmp {} > {} {} id {}".format, addresses, addresses, st.sampled_from(["echo", "echo-reply"]), ports),
)


@given(lines, st.integers(1, 255), st.integers(40, 1500))
def test_a_packet_in_words_becomes_that_packet(line: str, ttl: int, length: int) -> None:
    packet = report.read_packet(f"{line} ttl {ttl} len {length}")
    assert report.bytes_text(packet) == f"{line}, ttl {ttl}, {length} bytes"
    p = Packets.from_bytes([packet])
    assert p.ip_checksum_ok(np.arange(1)).all() and p.l4_checksum_ok(np.arange(1)).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp",
        "tcp 1.2.3.4:5 < 1.2.3.4:6",
        "gre 1.2.3.4 > 1.2.3.5",
        "tcp 1.2.3.4:x > 1.2.3.5:6",
        "tcp 1.2.3.400:5 > 1.2.3.5:6",
        "tcp 1.2.3.4:5 > 1.2.3.5:6 QQ",
        "tcp 1.2.3.4:5 > 1.2.3.5:6 ttl 256",
        "tcp 1.2.3.4:5 > 1.2.3.5:6 ttl",
        "udp 1.2.3.4:5 > 1.2.3.5:6 len 20",
        "icmp 1.2.3.4:5 > 1.2.3.5",
    ],
)
def test_a_packet_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        report.read_packet(text)


def test_colour_follows_the_habits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert report.Screen.of(Terminal()).colour and not report.Screen.of(io.StringIO()).colour
    assert report.Screen.of(io.StringIO()).width is None
    assert report.Screen.of(io.StringIO(), "always").colour and not report.Screen.of(Terminal(), "never").colour
    monkeypatch.setenv("TERM", "dumb")
    assert not report.Screen.of(Terminal()).colour
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert report.Screen.of(io.StringIO()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not report.Screen.of(Terminal()).colour
