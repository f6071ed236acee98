"""Rules that netemu cannot judge: all named, kept as rules that might match, and told where a fate depends on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from craft import answer
from test_lint import model, save

from netemu import Node, Unsupported, cli, read_capture
from netemu.capture import write_pcap
from netemu.doubt import HARMLESS
from netemu.report import read_packet

#: a match that iptables has, so says the fixture below, and netemu has not
STRANGE = "-m strange --odd r --odder --oddest 1000"
Load = Callable[..., Node]


@pytest.fixture(autouse=True)
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netemu.tables.OTHER_MATCHES", {"strange": "nobody knows it"})
    monkeypatch.setattr("netemu.tables.OTHER_TARGETS", dict.fromkeys(("STRANGE", "BLINK"), ""))
    monkeypatch.setattr("netemu.doubt.HARMLESS", HARMLESS | {"BLINK"})


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(sets: str = "", **tables: str) -> Node:
        return Node.load(model(tmp_path / "m", save(**tables)), unsupported="uncertain")

    return load


def send(node: Node, text: str, link: str | None = "eth0") -> tuple[str, str | None]:
    journey = node.send(read_packet(text), link)
    return journey.fate, journey.reason


WEB = "tcp 192.0.2.7:4000 > 10.244.0.5:80 S"


def test_every_one_is_named_in_one_report(tmp_path: Path) -> None:
    rules = f"INPUT {STRANGE} -j DROP\nFORWARD -j BLINK --trigger-id r --delay 1"
    folder = model(tmp_path / "m", save(filter=rules))
    with pytest.raises(Unsupported) as error:
        Node.load(folder)
    assert [p.line for p in error.value.problems] == [5, 6]
    remarks = Node.load(folder, unsupported="uncertain").doubtful_rules()
    assert ":5: filter:INPUT:rule:1 might match: match `strange`" in remarks[0] and "target `BLINK`" in remarks[1]


def test_such_rules_keep_their_words(load: Load) -> None:
    node = load(filter="INPUT -p tcp -m strange --odd1 a ! --odd-lt --odd2 'b c' -m tcp --dport 22 -j DROP")
    rule = '-A INPUT -p tcp -m strange --odd1 a ! --odd-lt --odd2 "b c" -m tcp --dport 22 -j DROP'
    assert rule in node.dump("iptables-save")


def test_a_drop_that_might_have_been(load: Load) -> None:
    node = load(filter=f"FORWARD -p tcp -m tcp --dport 80 {STRANGE} -j DROP")
    said = "uncertain: filter:FORWARD:rule:1 might match (match `strange` is not modelled)"
    assert send(node, WEB) == ("forwarded", said)
    assert send(node, WEB.replace(":80", ":81")) == ("forwarded", None)
    assert send(node, WEB.replace("tcp", "udp").removesuffix(" S")) == ("forwarded", None)
    assert sum(node.caveats.values()) == 1


def test_other_conditions_are_asked_first(load: Load) -> None:
    node = load(filter=f"FORWARD {STRANGE} -p tcp -m tcp --dport 81 -j DROP")
    assert send(node, WEB) == ("forwarded", None)


@pytest.mark.parametrize(
    ("rules", "doubt"),
    [
        (f"FORWARD {STRANGE} -j ACCEPT", False),  # accepted either way
        (f"FORWARD {STRANGE} -j ACCEPT\nFORWARD -j DROP", True),
        (f"FORWARD {STRANGE} -j DROP\nFORWARD -j DROP", False),
        (f"FORWARD {STRANGE} -j REJECT\nFORWARD -j DROP", True),
        (f"FORWARD {STRANGE} -j LOG\nFORWARD -j DROP", False),
        (f"FORWARD {STRANGE} -j OWN1\nOWN1 -j LOG", False),
        (f"FORWARD {STRANGE} -j OWN1\nOWN1 -s 192.0.2.0/24 -j DROP", True),
        (f"FORWARD {STRANGE} -j ACCEPT\nFORWARD -j MARK --set-mark 7", True),
        (f"FORWARD -j ACCEPT\nFORWARD {STRANGE} -j DROP", False),
        ("FORWARD -j STRANGE --gateway 10.0.0.7", True),
        ("FORWARD -j BLINK --trigger-id r --delay 1", False),
    ],
)
def test_only_fates_that_depend_on_it_are_in_doubt(load: Load, rules: str, doubt: bool) -> None:
    table = "mangle" if "MARK" in rules else "filter"
    journey = load(**{table: rules}).send(read_packet(WEB), "eth0")
    assert (journey.uncertain is not None) == doubt, journey.reason


def test_doubt_follows_the_connection(load: Load) -> None:
    node = load(
        nat=f"PREROUTING -d 10.0.0.9/32 -p tcp {STRANGE} -j DNAT --to-destination 10.244.0.6\n"
        "POSTROUTING -o cni0 -j MASQUERADE"
    )
    first = node.send(read_packet(WEB.replace("10.244.0.5", "10.0.0.9")), "eth0")
    assert first.fate == "delivered" and first.uncertain
    again = node.send(read_packet("tcp 192.0.2.7:4000 > 10.0.0.9:80 A"), "eth0")
    assert again.reason is not None and "its connection depends on it: nat:PREROUTING:rule:1" in again.reason
    assert send(node, "tcp 192.0.2.7:4001 > 10.244.0.5:80 S") == ("forwarded", None)


def test_answers_are_in_doubt_too(load: Load) -> None:
    node = load(
        nat="POSTROUTING -o cni0 -j MASQUERADE",
        filter=f"FORWARD {STRANGE} -j DROP\nFORWARD -m conntrack --ctstate NEW -j LOG",
    )
    ((_, left),) = node.send(read_packet(WEB), "eth0").own
    back = answer(left)
    assert back is not None
    assert node.send(back, "cni0").uncertain


def test_uncut_and_cut_replays_agree(load: Load, tmp_path: Path) -> None:
    texts = [f"tcp 192.0.2.7:{4000 + k % 5} > 10.244.0.5:{80 + k % 2} {'SAAF'[k // 10]}" for k in range(40)]
    write_pcap(tmp_path / "t.pcap", [k * 10**6 for k in range(40)], [read_packet(t) for t in texts])
    rules = f"FORWARD -p tcp -m tcp --dport 81 --syn {STRANGE} -j DROP"
    told = []
    for length in (1, 7, None):
        node = load(filter=rules, nat="POSTROUTING -o cni0 -j MASQUERADE")
        told.append(
            [(j.fate, j.reason) for j in node.replay(read_capture(str(tmp_path / "t.pcap")), length, link="eth0")]
        )
    assert told[0] == told[1] == told[2]
    assert sum(reason is not None for _, reason in told[0]) == 20


def test_ipv6_rules_become_a_remark(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", save(filter="INPUT -j ACCEPT"))
    (folder / "ip6tables.save").write_text("*filter\n:INPUT DROP [0:0]\nCOMMIT\n")
    with pytest.raises(Unsupported):
        Node.load(folder)
    assert any("IPv6" in note for note in Node.load(folder, unsupported="uncertain").model.notes)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # lines as long as they are
    folder = str(model(tmp_path / "m", save(filter=f"FORWARD -p tcp {STRANGE} -j DROP")))
    write_pcap(tmp_path / "t.pcap", [0], [read_packet(WEB)])
    trace = str(tmp_path / "t.pcap")
    for words in (["replay", folder, trace, "-i", "eth0"], ["explain", folder, WEB, "-i", "eth0"], ["show", folder]):
        assert cli.main(words) == 3
        assert "`strange`" in capsys.readouterr().err
        assert cli.main([*words, "--unsupported", "uncertain"]) == 0
        out, err = capsys.readouterr()
        assert "filter:FORWARD:rule:1 might match" in err
        if words[0] != "show":
            assert "uncertain: filter:FORWARD:rule:1" in out
        if words[0] == "replay":
            assert "not modelled to the letter" in out
        if words[0] == "explain":
            assert "(not modelled: it might have matched)" in out
