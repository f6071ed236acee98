"""The traces of the models, as real kernels treated them.

tests/recorded/NAME.jsonl was recorded on a Linux kernel that had the model's rules, sets, virtual servers, addresses
and routes: each packet of the trace was written to its link (or sent by a local socket), and what left was read from
the links. A file is one JSON object a line:

    first   model, trace, kernel version, commands ([seconds after the start, command] run during the trace)
    then    one a packet: its number in the trace, the link it came in on (null: sent by the node), the path that the
            kernel's TRACE logged (what a packet caused to be sent is logged in the same stream), and every frame that
            left, as [link, hex from the IP header on]
    last    the tables after the last packet: conntrack (without timers), counters, virtual servers, connections

IP ids of packets that the node made are arbitrary in Linux and are not compared.
"""

import json
import re
from pathlib import Path

import pytest
from test_models import ROOT, program

from netemu import Node, read_capture

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.jsonl"))


def load(path: Path):
    head, *packets, end = (json.loads(line) for line in path.read_text().splitlines())
    return head, packets, end


def own_id_gone(packet: bytes, sent: bytes) -> bytes:
    """Blank the IP id and header checksum of a packet that the node made itself."""
    return packet if packet[4:6] == sent[4:6] else packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]


def by_link(frames, sent: bytes) -> dict[str, list[bytes]]:
    """What left on each link, in order: the order between two links cannot be recorded."""
    return {link: [own_id_gone(p, sent) for other, p in frames if other == link] for link, _ in frames}


def table_steps(journey) -> list[str]:
    return [str(s) for s in journey.steps if s.table and s.table != "raw"]


def all_caused(journey) -> list:
    return [c for j in journey.caused for c in (j, *all_caused(j))]


def is_merge(both: list[str], one: list[str], other: list[str]) -> bool:
    """`both` holds the steps of `one` and of `other`, each in its order."""
    if len(both) != len(one) + len(other):
        return False
    reach = {0}
    for n, step in enumerate(both):
        reach = {i + 1 for i in reach if i < len(one) and one[i] == step} | {
            i for i in reach if n - i < len(other) and other[n - i] == step
        }
    return len(one) in reach


def drawn_chains(model: str) -> set[str]:
    """Chains that choose at random: what comes behind them cannot be told beforehand."""
    text = (ROOT / "models" / model / "iptables.save").read_text()
    return set(re.findall(r"^-A (\S+) .*-m statistic --mode random", text, re.M))


def agree(row: dict, journey, sent: bytes, drawn: set[str]) -> None:
    kernel = row["path"].split()
    ours, caused = table_steps(journey), [s for j in all_caused(journey) for s in table_steps(j)]
    place = f"packet {row['packet']}"
    chance = next((n for n, step in enumerate(kernel) if step.split(":")[1] in drawn), None)
    if chance is not None:
        assert ours[:chance] == kernel[:chance], place
        assert ours[chance].split(":")[1] in drawn, place
        assert len(journey.out) == len(row["out"]) == 1, place
        return
    assert is_merge(kernel, ours, caused), (place, kernel, ours, caused)
    want = by_link([(link, bytes.fromhex(h)) for link, h in row["out"]], sent)
    assert by_link([(link, bytes(p)) for link, p in journey.out], sent) == want, place


def conntrack(text: str) -> list[str]:
    """Entries without what runs: the seconds left and the use count."""
    lines = (re.match(r"ipv4\s+2 (\w+)\s+\d+ (?:\d+ )?(.*?) use=\d+", line) for line in text.splitlines())
    return sorted(f"{m[1]} {' '.join(m[2].split())}" for m in lines if m)


def tables_agree(node, end: dict, drawn: set[str]) -> None:
    if drawn:  # which endpoint was drawn shows in every table
        return
    assert conntrack(node.dump("conntrack")) == end["conntrack"]
    saved = [line for line in node.dump("iptables-save").splitlines() if line and not line.startswith("#")]
    assert saved == end["counters"]
    if "ipvs" in end:
        listed = [" ".join(line.split()) for line in node.dump("ipvsadm-list").splitlines()[3:]]
        assert listed == end["ipvs"]
        rows = (line.split() for line in node.dump("ipvsadm-connections").splitlines()[2:])
        assert sorted(" ".join([w[0], *w[2:]]) for w in rows if len(w) >= 6) == end["connections"]


def frames_of(trace: str) -> list[tuple[int, str, bytes, bool]]:
    """(nanoseconds, link, frame, sent by the node itself) of each packet of a trace."""
    made = program("traces/make.py").TRACES[trace.removesuffix(".pcapng")]()
    links = list(made.links)
    own = {bytes.fromhex(mac.replace(":", "")) for mac in made.links.values()}
    return [(t, links[n], f, f[6:12] in own) for t, n, f in sorted(made.frames, key=lambda f: f[0])]


def packet_of(frame: bytes) -> bytes:
    return frame[14 : 14 + int.from_bytes(frame[16:18], "big")]


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_one_by_one(path):
    head, rows, end = load(path)
    frames = frames_of(head["trace"])
    drawn = drawn_chains(head["model"])
    node = Node.load(ROOT / "models" / head["model"], seed=1)
    commands = list(head["commands"])
    for row in rows:
        when, link, frame, own = frames[row["packet"] - 1]
        while commands and commands[0][0] * 1e9 <= when:
            at, command = commands.pop(0)
            node.run(command, at=at)
        assert row["in"] == (None if own else link)
        sent = packet_of(frame)
        if own:
            journey = node.send(sent, link=None, at=when / 1e9)
        else:
            journey = node.send(frame, link=link, at=when / 1e9, ethernet=True)
        agree(row, journey, sent, drawn)
    tables_agree(node, end, drawn)


@pytest.mark.parametrize("run_length", [1, 7, None])
@pytest.mark.parametrize("path", [p for p in RECORDED if not load(p)[0]["commands"]], ids=lambda p: p.stem)
def test_as_a_capture(path, run_length):
    head, rows, end = load(path)
    frames = frames_of(head["trace"])
    drawn = drawn_chains(head["model"])
    node = Node.load(ROOT / "models" / head["model"], seed=1)
    journeys = node.replay(read_capture(ROOT / "traces" / head["trace"]), run_length=run_length)
    for row in rows:
        agree(row, journeys[row["packet"] - 1], packet_of(frames[row["packet"] - 1][2]), drawn)
    tables_agree(node, end, drawn)
