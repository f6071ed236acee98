"""Lint: every check finds what it is for and nothing else, and what it calls dead never sees a packet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from worlds import play

from netemu import Node, Refused, cli
from netemu.lint import CHECKS, NOTE, Box, Finding, lint, lint_model

ROOT = Path(__file__).parent.parent
#: where the traffic of `worlds.play` comes from and goes to
NODE = """
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24", "10.0.0.9/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/24"]
[[route]]
to = "default"
via = "10.0.0.254"
dev = "eth0"
"""
HOOKS = {
    "raw": "PREROUTING OUTPUT",
    "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    "filter": "INPUT FORWARD OUTPUT",
}
Lint = Callable[..., list[Finding]]


def save(**tables: str) -> str:
    """iptables-save text: rules by table, user chains made as they are named."""
    out = []
    for table, rules in tables.items():
        lines = [line.strip() for line in rules.strip().splitlines() if line.strip()]
        own = {word for line in lines for word in line.split() if word.startswith("OWN")}
        own |= {line[1:] for line in lines if line.startswith(":")}
        out.append(f"*{table}")
        out += [f":{hook} ACCEPT [0:0]" for hook in HOOKS[table].split()] + [
            f":{chain} - [0:0]" for chain in sorted(own)
        ]
        out += [f"-A {line}" for line in lines if not line.startswith(":")] + ["COMMIT"]
    return "\n".join(out) + "\n"


def model(folder: Path, iptables: str, **files: str) -> Path:
    """A model directory."""
    folder.mkdir(exist_ok=True)
    (folder / "node.toml").write_text(NODE)
    (folder / "iptables.save").write_text(iptables)
    for name, text in files.items():
        (folder / f"{name}.save").write_text(text)
    return folder


@pytest.fixture
def odd(tmp_path: Path) -> Lint:
    def odd(sets: str = "", ipvs: str = "", **tables: str) -> list[Finding]:
        files = {name: text for name, text in (("ipset", sets), ("ipvsadm", ipvs)) if text}
        return lint_model(model(tmp_path / "m", save(**tables), **files))[1]

    return odd


def found(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.check, f.place) for f in findings]


@pytest.mark.parametrize(
    "rules",
    [
        "INPUT -p tcp -j OWN1\nOWN1 -p udp -j DROP",
        "INPUT -s 10.0.0.0/8 -j OWN1\nOWN1 -s 192.0.2.0/24 -j DROP",
        "INPUT ! -s 10.0.0.0/8 -j OWN1\nOWN1 -s 10.1.0.0/16 -j DROP",
        "INPUT -i eth0 -j OWN1\nOWN1 -i cni0 -j DROP",
        "INPUT -p tcp --dport 80 -j OWN1\nOWN1 -p tcp -m multiport --dports 81:90,443 -j DROP",
        "INPUT -m conntrack --ctstate NEW -j OWN1\nOWN1 -m state --state ESTABLISHED -j DROP",
        "INPUT -j OWN1\nOWN1 -o eth0 -j DROP",
        "OUTPUT -j OWN1\nOWN1 -i eth0 -j DROP",
    ],
)
def test_rules_that_the_way_to_them_excludes(odd: Lint, rules: str) -> None:
    assert found(odd(filter=rules)) == [("never-matches", "filter:OWN1:rule:1")]


def test_a_second_way_may_let_a_rule_live(odd: Lint) -> None:
    assert not odd(filter="INPUT -p tcp -j OWN1\nFORWARD -j OWN1\nOWN1 -p udp -j DROP")


def test_a_rule_that_excludes_itself(odd: Lint) -> None:
    rules = "INPUT -p tcp -m tcp --dport 80 -m multiport --dports 81,82 -j DROP"
    assert found(odd(filter=rules)) == [("never-matches", "filter:INPUT:rule:1")]


def test_the_nat_table_sees_only_first_packets(odd: Lint) -> None:
    (finding,) = odd(nat="PREROUTING -m conntrack --ctstate ESTABLISHED -j RETURN")
    assert finding.check == "never-matches" and "first packet of a connection" in finding.what


@pytest.mark.parametrize(
    "rules",
    [
        "INPUT -j ACCEPT\nINPUT -p tcp -j DROP",
        "INPUT -p tcp -j DROP\nINPUT -s 10.0.0.1/32 -p tcp -m tcp --dport 22 -j ACCEPT",
        "INPUT -s 10.0.0.0/8 -j REJECT\nINPUT -s 10.9.0.0/16 -i eth0 -j ACCEPT",
        "INPUT -p tcp -m multiport --dports 20:25,80 -j DROP\nINPUT -p tcp -m tcp --dport 22 -j ACCEPT",
        "INPUT ! -s 10.0.0.0/8 -j DROP\nINPUT -s 192.0.2.1/32 -j ACCEPT",
        "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nINPUT -m state --state ESTABLISHED -j LOG",
        "INPUT -m mark --mark 0x1 -j DROP\nINPUT -p tcp -m mark --mark 0x1 -j ACCEPT",
        "INPUT -p tcp -g OWN1\nINPUT -p tcp -m tcp --syn -j ACCEPT\nOWN1 -j LOG",
        "INPUT -p tcp -j OWN1\nINPUT -p tcp -m tcp --dport 1 -j ACCEPT\nOWN1 -j LOG\nOWN1 -j DROP",
        "INPUT -i eth+ -j DROP\nINPUT -i eth0 -j ACCEPT",
    ],
)
def test_rules_behind_others(odd: Lint, rules: str) -> None:
    assert found(odd(filter=rules)) == [("shadowed", "filter:INPUT:rule:2")]


@pytest.mark.parametrize(
    "rules",
    [
        "INPUT -p tcp -j LOG\nINPUT -p tcp -j DROP",
        "INPUT -p tcp -m limit --limit 1/s -j DROP\nINPUT -p tcp -j ACCEPT",
        "INPUT -p tcp -m tcp --syn -j DROP\nINPUT -p tcp -j ACCEPT",
        "INPUT -m mark --mark 0x1 -j DROP\nINPUT -m mark --mark 0x2 -j ACCEPT",
        "INPUT -j OWN1\nINPUT -p tcp -j DROP\nOWN1 -s 10.0.0.1/32 -j RETURN\nOWN1 -j DROP",
        "INPUT -s 10.0.0.0/25 -j DROP\nINPUT -s 10.0.0.0/24 -j ACCEPT",
        "INPUT -p tcp -m tcp --dport 80 -j DROP\nINPUT -p tcp -m multiport --ports 80 -j ACCEPT",
        "INPUT -m recent --rcheck --name r -j DROP\nINPUT -p tcp -m recent --rcheck --name r -j LOG",
    ],
)
def test_rules_that_something_is_left_for(odd: Lint, rules: str) -> None:
    assert not odd(filter=rules)


def test_a_mark_that_rules_change_shadows_nothing(odd: Lint) -> None:
    rules = (
        "INPUT -m mark --mark 0x1 -j ACCEPT\nINPUT -j MARK --set-mark 0x1\nINPUT -m mark --mark 0x1 -j TTL --ttl-set 9"
    )
    assert not odd(mangle=rules)


def test_shadowing_names_the_rule_and_its_line(odd: Lint) -> None:
    (finding,) = odd(filter="INPUT -p tcp -j DROP\nINPUT -p tcp -m tcp --dport 22 -j ACCEPT")
    assert finding.line == 6 and finding.text == "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"
    assert "rule 1" in finding.what and finding.more == ("rule 1: line 5: -A INPUT -p tcp -j DROP",)


def test_chains_in_vain(odd: Lint) -> None:
    findings = odd(filter="INPUT -j OWN1\n:OWN1\nOWN2 -j DROP\n:OWN3\nFORWARD -g OWN4\n:OWN4")
    assert [(f.check, f.level, f.place) for f in findings if f.place] == [
        ("empty-chain", "note", "filter:INPUT:rule:1"),
        ("empty-chain", "warning", "filter:FORWARD:rule:1"),
    ]
    assert [(f.level, f.what.split()[0]) for f in findings if f.check == "unreachable-chain"] == [
        ("warning", "OWN2"),
        ("note", "OWN3"),
    ]


def test_sets_in_vain(odd: Lint) -> None:
    sets = "create used hash:ip\nadd used 10.0.0.1\ncreate all list:set\nadd all used\n"
    sets += "create spare hash:net\ncreate none hash:ip\n"
    findings = odd(sets, filter="INPUT -m set --match-set all src -j DROP\nINPUT -m set --match-set none src -j DROP")
    assert [(f.check, f.what.split()[1] if not f.place else f.place) for f in findings] == [
        ("unused-set", "spare"),
        ("empty-set", "filter:INPUT:rule:2"),
    ]
    assert all(f.level == NOTE for f in findings)


def test_a_set_that_rules_fill_may_be_empty(odd: Lint) -> None:
    rules = "INPUT -m set --match-set seen src -j DROP\nINPUT -j SET --add-set seen src"
    assert not odd("create seen hash:ip\n", filter=rules)


def test_sets_that_nobody_made_do_not_hide_the_rest(odd: Lint) -> None:
    rules = "INPUT -m set --match-set gone src,dst -j DROP\nFORWARD -j ACCEPT\nFORWARD -j DROP"
    findings = [f for f in odd(filter=rules) if f.level != NOTE]
    assert [f.check for f in findings] == ["missing-set", "shadowed"]
    assert findings[0].line == 5 and "gone" in findings[0].what and "hash:ip,port" in findings[0].more[0]


def test_links_that_are_not_there(odd: Lint) -> None:
    findings = odd(filter="FORWARD -i eth00 -j DROP\nFORWARD -o eth00 -j DROP\nFORWARD -i ppp+ -j ACCEPT")
    assert [(f.check, f.level) for f in findings] == [("unknown-link", "warning"), ("unknown-link", "note")]
    assert "did you mean eth0?" in findings[0].more and "1 more" in findings[0].more[1]


def test_masquerade_needs_a_link_with_an_address(tmp_path: Path) -> None:
    rules = "POSTROUTING -o eth9 -j MASQUERADE\nPOSTROUTING -o bare -j MASQUERADE\nPOSTROUTING -o eth0 -j MASQUERADE"
    folder = model(tmp_path / "m", save(nat=rules))
    with (folder / "node.toml").open("a") as file:
        file.write('[[link]]\nname = "bare"\n')
    _, findings = lint_model(folder)
    assert found(findings) == [("masquerade", "nat:POSTROUTING:rule:1"), ("masquerade", "nat:POSTROUTING:rule:2")]
    assert "no link" in findings[0].what and "no address" in findings[1].what


def test_nat_of_what_is_not_tracked(odd: Lint) -> None:
    raw = "PREROUTING -p udp -m udp --dport 53 -j CT --notrack"
    nat = """PREROUTING -i eth0 -p udp -m udp --dport 53 -j DNAT --to-destination 10.244.0.5
        PREROUTING -p udp -j DNAT --to-destination 10.244.0.6
        POSTROUTING -s 10.244.0.0/24 -p udp -m udp --dport 53 -o eth0 -j MASQUERADE"""
    findings = odd(raw=raw, nat=nat)
    assert found(findings) == [("nat-untracked", "nat:PREROUTING:rule:1"), ("nat-untracked", "nat:POSTROUTING:rule:1")]
    assert "raw rule 1" in findings[0].more[0]


def test_source_nat_behind_ipvs(odd: Lint) -> None:
    services = "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.0.5:80 -m\n"
    assert not odd(nat="POSTROUTING -j MASQUERADE")
    assert [f.check for f in odd(ipvs=services, nat="POSTROUTING -j MASQUERADE")] == ["nat-untracked"]


def test_every_check_says_what_it_finds() -> None:
    assert all(function.__doc__ for function in CHECKS.values())


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in (ROOT / "models").glob("*/node.toml")), ids=lambda p: p.name
)
def test_our_own_models_have_no_warnings(folder: Path) -> None:
    assert [f for f in lint_model(folder)[1] if f.level != NOTE] == []


def test_many_rules_take_no_time_squared(tmp_path: Path) -> None:
    rules = "\n".join(
        f"FORWARD -d 10.{k >> 8}.{k & 255}.1/32 -p tcp -m tcp --dport {k % 9} -j DROP" for k in range(5000)
    )
    _, findings = lint_model(
        model(tmp_path / "m", save(filter=rules + "\nFORWARD -d 10.3.7.1/32 -p tcp --dport 1 -j LOG"))
    )
    assert [f.place for f in findings] == ["filter:FORWARD:rule:5001"]  # behind the 776th


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path / "m", save(filter="INPUT -j ACCEPT\nINPUT -j DROP\nINPUT -j OWN1\n:OWN2"))
    assert cli.main(["show", str(folder), "--lint"]) == 1
    out = capsys.readouterr().out
    assert "iptables.save:8: shadowed: filter:INPUT:rule:2" in out and "2 warnings, 2 notes" in out.splitlines()[-1]
    (folder / "iptables.save").write_text(save(filter="INPUT -j ACCEPT\n:OWN2"))
    assert cli.main(["show", str(folder), "--lint"]) == 0
    assert cli.main(["show", str(tmp_path / "nothing"), "--lint"]) == 2
    assert cli.main(["show", str(folder), "--json"]) == 2


def test_findings_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path / "m", save(filter="INPUT -p tcp -j DROP\nINPUT -p tcp -m tcp --dport 22 -j ACCEPT"))
    assert cli.main(["show", str(folder), "--lint", "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)
    assert told["check"] == "shadowed" and told["level"] == "warning" and told["place"] == "filter:INPUT:rule:2"
    assert told["file"].endswith("iptables.save") and told["line"] and "--dport 22" in told["text"]


# ---- what is called dead is dead -----------------------------------------------------------------------------------

CONDITIONS = [
    *("-s 10.244.0.0/24", "! -s 10.244.0.0/24", "-s 10.244.0.5/32", "-s 192.0.2.0/24", "-d 10.244.0.0/16"),
    *("-d 10.0.0.0/24", "! -d 10.0.0.1/32", "-d 10.9.0.0/24", "-p tcp", "-p udp", "! -p tcp", "-p icmp", "! -p icmp"),
    *("-p tcp -m tcp --dport 80", "-p tcp -m tcp ! --dport 80", "-p tcp -m multiport --dports 22,80:99"),
    *("-p udp -m udp --dport 53", "-p tcp -m tcp --syn", "-p tcp -m multiport --sports 40000,40001"),
    *("-m conntrack --ctstate NEW", "-m conntrack ! --ctstate NEW", "-m conntrack --ctstate RELATED,ESTABLISHED"),
    *(
        "-m state --state INVALID,UNTRACKED",
        "-m mark --mark 0x1",
        "-m mark ! --mark 0x1",
        "-m statistic --mode nth --every 2 --packet 0",
    ),
    *("-m addrtype --dst-type LOCAL", "-m conntrack --ctstate DNAT", "-m conntrack --ctdir ORIGINAL"),
]
LINKED = {
    "PREROUTING": ["-i eth0", "! -i eth0", "-i cni+"],
    "INPUT": ["-i eth0", "! -i eth0", "-i cni+"],
    "FORWARD": ["-i eth0", "-o cni0", "! -i cni0", "! -o eth+"],
    "OUTPUT": ["-o eth0", "! -o eth0", "-o cni+"],
    "POSTROUTING": ["-o eth0", "! -o eth0", "-o cni+"],
    "OWN1": ["-i eth0", "-o eth0", "! -i eth0", "! -o cni0"],
    "OWN2": ["-i cni0", "-o cni0", "! -i cni+", "! -o eth0"],
}
ACTIONS = {
    "raw": ["-j ACCEPT", "-j RETURN", "-j DROP", "-j CT --notrack"],
    "mangle": ["-j ACCEPT", "-j RETURN", "-j DROP", "-j MARK --set-xmark 0x1/0xffffffff", "-j TTL --ttl-set 33"],
    "nat": ["-j ACCEPT", "-j RETURN"],
    "filter": ["-j ACCEPT", "-j RETURN", "-j DROP", "-j REJECT --reject-with icmp-port-unreachable", ""],
}
TRANSLATIONS = {
    "PREROUTING": ["-p tcp -j DNAT --to-destination 10.244.0.5:8080", "-j DNAT --to-destination 10.244.0.6"],
    "OUTPUT": ["-j DNAT --to-destination 10.244.0.7"],
    "POSTROUTING": ["-j MASQUERADE", "-j SNAT --to-source 10.0.0.9"],
    "INPUT": [],
}


@st.composite
def rule_sets(draw: st.DrawFn) -> str:
    tables = {}
    for table in draw(st.lists(st.sampled_from([*HOOKS]), unique=True, min_size=1, max_size=3)):
        lines = []
        for chain in draw(st.permutations([*HOOKS[table].split(), "OWN1", "OWN2"])):
            for _ in range(draw(st.integers(0, 4))):
                words = draw(
                    st.lists(st.sampled_from(CONDITIONS), max_size=2, unique_by=lambda c: c.replace("!", "").split()[0])
                )
                if sum("-p " in w for w in words) > 1:
                    words = words[:1]
                words += draw(st.lists(st.sampled_from(LINKED[chain]), max_size=1))
                actions = list(ACTIONS[table])
                if chain != "OWN2":
                    actions += ["-j OWN2", "-g OWN2"] + (["-j OWN1", "-j OWN1"] if chain != "OWN1" else [])
                action = draw(st.sampled_from(actions))
                if table == "nat" and draw(st.booleans()) and TRANSLATIONS.get(chain):
                    action = draw(st.sampled_from(TRANSLATIONS[chain]))
                    words = [w for w in words if "-p " not in w]
                lines.append(f"{chain} {' '.join([*words, action])}".rstrip())
        tables[table] = "\n".join([*lines, ":OWN1", ":OWN2"])
    return save(**tables)


@given(rule_sets(), st.lists(st.integers(0, 2**20), min_size=20, max_size=60))
def test_what_is_called_dead_sees_no_packet(
    tmp_path_factory: pytest.TempPathFactory, rules: str, choices: list[int]
) -> None:
    folder = model(tmp_path_factory.mktemp("lint"), rules)
    try:
        node = Node.load(folder)
    except Refused:
        reject()
    dead = {f.place for f in lint(node) if f.check in ("never-matches", "shadowed")}
    play(node, choices, commands=False)
    for table, chain, number, rule in node.tables.rules():
        place = f"{table}:{chain.name}:rule:{number}"
        assert not (rule.packets and place in dead), f"{place} saw {rule.packets} packets: {rule.text}"


def test_boxes() -> None:
    assert Box().covers(Box(src=(0x0A000000, 0xFF000000)))
    assert Box(src=(0x0A000000, 0xFF000000)).meet(Box(src=(0x0B000000, 0xFF000000))) is None
    assert not Box(rest=frozenset("x")).covers(Box()) and Box().covers(Box(rest=frozenset("x")))
    assert not Box(memory=True).covers(Box())
