"""Two models, one capture: what differs is found, grouped, and put down to the rule that decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from craft import answer
from hypothesis import given
from worlds import World, as_capture, play, worlds

from netemu import Node, cli, read_capture, report
from netemu.capture import write_pcap
from netemu.diff import Difference

NODE = """
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "eth1"
addresses = ["192.168.0.1/24"]
"""
PACKETS = [
    "tcp 10.0.0.5:4000 > 10.0.0.1:80 S",
    "tcp 10.0.0.5:4001 > 192.168.0.2:23 S",
    "tcp 10.0.0.5:4002 > 192.168.0.2:23 S",
    "udp 10.0.0.5:4 > 192.168.0.2:5",
]


def chains(table: str, *rules: str) -> str:
    hooks = {"filter": "INPUT FORWARD OUTPUT", "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING"}
    names = hooks.get(table, "PREROUTING INPUT OUTPUT POSTROUTING").split()
    lines = [f"*{table}", *(f":{name} ACCEPT [0:0]" for name in names), *(f"-A {rule}" for rule in rules), "COMMIT"]
    return "\n".join(lines) + "\n"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    write_pcap("trace.pcap", [k * 10**9 for k in range(len(PACKETS))], [report.read_packet(p) for p in PACKETS])

    def run(a: str, b: str, *words: str, toml: str = NODE) -> tuple[int, str, str]:
        for name, rules in (("a", a), ("b", b)):
            Path(name).mkdir(exist_ok=True)
            Path(name, "node.toml").write_text(toml if name == "b" else NODE)
            Path(name, "iptables.save").write_text(rules)
        status = cli.main(["diff", "a", "b", *(words or ("trace.pcap",))])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_same_is_status_0(diff: Run) -> None:
    status, out, err = diff(chains("filter"), chains("filter", "FORWARD -j LOG", "INPUT -j ACCEPT"))
    assert (status, err) == (0, "") and out == "4 packets, all fare the same\n"


def test_a_drop_is_put_down_to_its_rule(diff: Run) -> None:
    new = ("FORWARD -p udp -j LOG", "FORWARD -p tcp -m tcp --dport 23 -j DROP")
    status, out, _ = diff(chains("filter", "FORWARD -p udp -j LOG", "FORWARD -p tcp -j ACCEPT"), chains("filter", *new))
    lines = out.splitlines()
    assert status == 1
    assert lines[0] == "2 packets: fate forwarded -> dropped, out eth1 -> none"
    assert lines[1] == "  A  filter:FORWARD:rule:2  -A FORWARD -p tcp -j ACCEPT"
    assert lines[2] == "  B  filter:FORWARD:rule:2  -A FORWARD -p tcp -m tcp --dport 23 -j DROP"
    assert "packet 2: tcp 10.0.0.5:4001 > 192.168.0.2:23" in lines[3]
    assert lines[-1] == "4 packets, 2 fare differently"


def test_a_rule_put_before_others_changes_no_decision_behind_it(diff: Run) -> None:
    drop = "FORWARD -p tcp -m tcp --dport 23 -j DROP"
    assert diff(chains("filter", drop), chains("filter", "FORWARD -j LOG", drop))[0] == 0


def test_translations_as_json(diff: Run) -> None:
    rule = "PREROUTING -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.0.{}:8080"
    status, out, _ = diff(chains("nat", rule.format(2)), chains("nat", rule.format(3)), "trace.pcap", "--json")
    told = json.loads(out)
    assert status == 1 and (told["packets"], told["different"]) == (4, 1)
    (group,) = told["groups"]
    assert group["differs"] == ["dst"] and group["packets"] == [1]
    assert group["a"]["step"] == group["b"]["step"] == "nat:PREROUTING:rule:1"
    assert "192.168.0.2:8080" in group["a"]["rule"] and "192.168.0.3:8080" in group["b"]["rule"]
    assert group["example"]["values"] == {"dst": ["192.168.0.2", "192.168.0.3"]}


def test_later_packets_follow_what_was_chosen_for_the_first(diff: Run, tmp_path: Path) -> None:
    first = report.read_packet("tcp 10.0.0.5:4000 > 10.0.0.1:80 S")
    rule = "PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.0.2:8080"
    Path("a").mkdir()
    Path("a/node.toml").write_text(NODE)
    Path("a/iptables.save").write_text(chains("nat", rule))
    ((_, sent),) = Node.load("a").send(first, "eth0").own
    back = answer(sent)
    assert back is not None
    again = report.read_packet("tcp 10.0.0.5:4000 > 10.0.0.1:80 A")
    write_pcap("flow.pcap", [0, 10**6, 2 * 10**6], [first, back[1] if isinstance(back, tuple) else back, again])
    status, out, _ = diff(chains("nat", rule), chains("nat", "PREROUTING -p udp -j RETURN"), "flow.pcap", "--json")
    assert status == 1
    for group in json.loads(out)["groups"]:
        assert group["a"]["step"] == "nat:PREROUTING:rule:1", group
        assert group["b"]["step"] == "not translated"


def test_marks_are_put_down_to_who_set_them(diff: Run) -> None:
    marks = chains("mangle", "PREROUTING -p udp -j MARK --set-xmark 0x7/0xffffffff")
    _, out, _ = diff(marks, chains("mangle"), "trace.pcap", "--json")
    (group,) = json.loads(out)["groups"]
    assert group["differs"] == ["mark"] and group["a"]["step"] == "mangle:PREROUTING:rule:1"


def test_another_way_out(diff: Run) -> None:
    other = NODE.replace("192.168.0.1/24", "192.168.7.1/24") + '[[route]]\nto = "192.168.0.0/24"\nvia = "10.0.0.9"\n'
    status, out, _ = diff("", "", toml=other)
    assert status == 1 and "out eth1 -> eth0" in out and "routing: " in out


def test_trouble_is_status_2(diff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = diff("*filter\n-A INPUT -j NOSUCH\nCOMMIT\n", chains("filter"))
    assert status == 2 and "NOSUCH" in err
    monkeypatch.setattr("netemu.tables.OTHER_MATCHES", {"strange": "nobody knows it"})
    status, _, err = diff(chains("filter"), chains("filter", "INPUT -m strange -j DROP"))
    assert status == 2 and "Unsupported" in err
    assert diff("", "", "nothing.pcap")[0] == 2
    cut = (tmp_path / "trace.pcap").read_bytes()[:-5]
    (tmp_path / "cut.pcap").write_bytes(cut)
    status, out, err = diff(chains("filter"), chains("filter"), "cut.pcap")
    assert status == 2 and "all fare the same" in out and "cut.pcap" in err
    assert diff("", "", "-i", "eth7", "trace.pcap")[0] == 2


def test_count(diff: Run) -> None:
    assert "1 packets" in diff(chains("filter"), chains("filter"), "trace.pcap", "-c", "1")[1]


@given(worlds())
def test_a_node_does_not_differ_from_itself(world: World) -> None:
    events, _ = play(world.node(), world.choices, commands=False)
    found = Difference(world.node(), world.node())
    found.replay(read_capture(as_capture(world.node(), events)))
    assert found.status == 0 and found.packets


@given(worlds(), worlds())
def test_differences_are_those_of_the_journeys(one: World, other: World) -> None:
    events, _ = play(one.node(), one.choices, commands=False)
    found = Difference(one.node(), other.node())
    found.replay(read_capture(as_capture(one.node(), events)))
    sides = [list(world.node().replay(read_capture(as_capture(one.node(), events)))) for world in (one, other)]
    differ = [
        a.packet
        for a, b in zip(*sides, strict=True)
        if (a.fate, a.out) != (b.fate, b.out) or a._part.pkts.mark[a._row] != b._part.pkts.mark[b._row]
    ]
    named = sorted(n for group in found.groups.values() for n in group.packets)
    assert set(differ) <= set(named)  # what never left may have been rewritten too
    assert found.different == len(named) == sum(group.count for group in found.groups.values())
