"""Model directories: what is read, what is complained of and where, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netemu import routing as R
from netemu.errors import REFUSED, UNSUPPORTED, Problem, Refused
from netemu.model import AddressSpec, LinkSpec, Model, RouteSpec, RuleSpec, Text, read_model, write_model
from netemu.routing import Routing
from netemu.sysctl import Sysctl


def directory(tmp_path: Path, **files: str) -> Path:
    """A model directory; `node_toml` stands for node.toml, `ip_addr_json` for ip-addr.json."""
    for name, text in files.items():
        stem, _, end = name.rpartition("_")
        (tmp_path / f"{stem.replace('_', '-')}.{end}").write_text(text)
    return tmp_path


def read(folder: Path) -> tuple[Model, Routing, list[Problem]]:
    problems: list[Problem] = []
    model = read_model(folder, problems)
    routing = Routing(Sysctl(model.sysctl))
    model.build(routing, problems)
    return model, routing, problems


def route(words: str) -> RouteSpec:
    return RouteSpec(words.split())


def rule(words: str) -> RuleSpec:
    return RuleSpec(words.split())


def told(problems: list[Problem]) -> list[tuple[int, str]]:
    return [(p.line, p.what) for p in problems]


NODE = """\
kernel = "6.1"
[[link]]
name = "eth0"
mac = "02:00:00:00:00:01"
addresses = ["10.0.0.1/24", "fd00::1/64"]
[[link]]
name = "kube-ipvs0"
addresses = ["10.96.0.1/32"]
up = false
kind = "dummy"
[[link]]
name = "lo"
addresses = ["10.9.9.9/32"]
[[route]]               # leans on the one below
to = "8.0.0.0/8"
via = "169.254.1.1"
dev = "eth0"
[[route]]
to = "169.254.1.1"
dev = "eth0"
[[route]]
type = "unreachable"
to = "7.0.0.0/8"
metric = 5
[[route]]
to = "default"
via = "10.0.0.254"
table = "100"
[[rule]]
priority = 100
fwmark = "0x1/0x1"
table = "100"
[sysctl]
"net.ipv4.ip_forward" = 1
net.ipv4.vs.conntrack = true
"""


def test_node_toml(tmp_path: Path) -> None:
    model, r, problems = read(directory(tmp_path, node_toml=NODE, iptables_save="*filter\nCOMMIT\n"))
    assert not problems
    assert model.kernel == "6.1"
    assert r.names == ["lo", "eth0", "kube-ipvs0"]
    assert r.links[1].addresses6 == ["fd00::1/64"]
    assert r.links[1].mac == 0x020000000001
    assert (r.links[2].up, r.links[2].kind) == (False, "dummy")
    assert [str(a) for a in r.links[0].addresses] == ["127.0.0.1/8", "10.9.9.9/32"]
    assert r.run(["route"]).splitlines() == [
        "unreachable 7.0.0.0/8 metric 5 ",
        "8.0.0.0/8 via 169.254.1.1 dev eth0 ",
        "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1 ",
        "169.254.1.1 dev eth0 scope link ",
    ]
    assert str(r.rules[1]) == "100:\tfrom all fwmark 0x1/0x1 lookup 100"
    assert model.sysctl == {"net.ipv4.ip_forward": 1, "net.ipv4.vs.conntrack": 1}
    assert model.texts["iptables.save"].text.startswith("*filter")
    assert model.texts["iptables.save"].file.endswith("iptables.save")


def test_every_problem_is_named_with_its_line(tmp_path: Path) -> None:
    text = """\
kernal = "6.1"
[[link]]
name = "eth0"
adresses = ["10.0.0.1/24"]
addresses = [
  "10.0.0.1/24",
  "10.0.0.300/24",
]
mtu = "1500"
[[link]]
name = "eth0"
[[link]]
mac = "zz"
[[route]]
to = "default"
dev = "eth7"
[[route]]
to = "8.0.0.0/8"
via = "11.0.0.1"
[[route]]
dev = "eth0"
[[route]]
to = "8.0.0.1/8"
dev = "eth0"
[[route]]
to = "9.0.0.0/8"
nexthop = "10.0.0.2"
[[rule]]
fwmrk = 1
[[rule]]
l3mdev = 1
[[rule]]
type = "sometimes"
[sysctl]
"net.netfilter.nf_conntrack_tcp_loose" = 7
"net.ipv4.conf.eth0.rp_filter" = [1]
"""
    _, _, problems = read(directory(tmp_path, node_toml=text))
    assert sorted(told(problems)) == [
        (1, 'unknown key "kernal"'),
        (4, 'unknown key "adresses" in [[link]]'),
        (7, 'not an address: "10.0.0.300/24"'),
        (9, "mtu must be a number, not text"),
        (11, 'there are two links called "eth0"'),
        (12, "a [[link]] without a name"),
        (13, 'not a MAC address: "zz"'),
        (16, 'no link "eth7"'),
        (18, "Nexthop has invalid gateway."),
        (20, "a [[route]] without `to`"),
        (23, "Invalid prefix for given prefix length."),
        (27, "nexthop must be a list of tables"),
        (29, 'unknown key "fwmrk" in [[rule]]'),
        (30, "rule selector l3mdev"),
        (32, 'Failed to parse rule type: "sometimes"'),
        (35, 'setting key "net.netfilter.nf_conntrack_tcp_loose": Invalid argument (7 is not in 0..1)'),
        (36, "net.ipv4.conf.eth0.rp_filter must be a number or text, not a list"),
    ]
    assert {p.kind for p in problems if p.line == 30} == {UNSUPPORTED}
    assert next(p.hint for p in problems if p.line == 4) == 'did you mean "addresses"?'


def test_text_that_is_no_toml(tmp_path: Path) -> None:
    _, _, problems = read(directory(tmp_path, node_toml='kernel = "6.1"\n[[link]]\nname = eth0\n'))
    assert [(p.kind, p.line, p.text) for p in problems] == [(REFUSED, 3, "name = eth0")]


def test_another_kernel_is_unsupported_and_tables_must_be_arrays(tmp_path: Path) -> None:
    _, _, problems = read(directory(tmp_path, node_toml='kernel = "5.4"\n[link]\nname = "eth0"\n'))
    assert told(problems) == [(1, "kernel 5.4 (netemu knows 6.1 and 6.18)"), (2, "link must be an array of tables")]
    assert problems[0].kind == UNSUPPORTED


ADDR = [
    {"ifname": "lo", "flags": ["LOOPBACK", "UP"], "mtu": 65536, "link_type": "loopback", "address": "00:00:00:00:00:00",
     "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host", "label": "lo"},
                   {"family": "inet6", "local": "::1", "prefixlen": 128, "scope": "host"}]},
    {"ifname": "eth0", "flags": ["BROADCAST", "UP"], "mtu": 1450, "link_type": "ether", "address": "96:53:14:da:f3:57",
     "linkinfo": {"info_kind": "veth"},
     "addr_info": [{"family": "inet", "local": "10.0.0.1", "prefixlen": 24, "broadcast": "10.0.0.255",
                    "scope": "global"},
                   {"family": "inet", "local": "10.6.0.1", "prefixlen": 24, "scope": "global", "noprefixroute": True},
                   {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
    {"ifname": "tun0", "flags": ["POINTOPOINT"], "mtu": 1400, "link_type": "none",
     "addr_info": [{"family": "inet", "local": "10.8.0.1", "address": "10.8.0.2", "prefixlen": 32, "scope": "global"}]},
]  # fmt: skip
ROUTE = [
    {"dst": "default", "gateway": "10.0.0.254", "dev": "eth0", "protocol": "dhcp", "metric": 100, "flags": []},
    {"dst": "9.3.0.0/16", "gateway": "10.0.0.9", "dev": "eth0", "table": "100", "flags": ["onlink"]},
    {"dst": "10.0.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "10.0.0.1", "flags": []},
    {"dst": "10.6.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "10.6.0.1", "metric": 100,
     "flags": []},
    {"type": "unreachable", "dst": "7.0.0.0/8", "dev": "lo", "flags": []},
    {"dst": "fe80::/64", "dev": "eth0", "protocol": "kernel", "metric": 256, "flags": [], "pref": "medium"},
    {"type": "multicast", "dst": "ff00::/8", "dev": "eth0", "table": "local", "flags": [], "pref": "medium"},
]  # fmt: skip
RULE = [
    {"priority": 0, "src": "all", "table": "local"},
    {"priority": 49, "not": None, "src": "all", "tos": "0x10", "fwmark": "0x5", "fwmask": "0xf", "iif": "eth0",
     "table": "main", "suppress_prefixlen": 0},
    {"priority": 50, "src": "10.0.0.0", "srclen": 24, "dst": "5.0.0.0", "dstlen": 8, "action": "unreachable"},
    {"priority": 32766, "src": "all", "table": "main"},
    {"priority": 32767, "src": "all", "table": "default"},
]  # fmt: skip


def test_the_tools_own_json(tmp_path: Path) -> None:
    routes = [dict(r) for r in ROUTE]
    del routes[4]["dev"]
    folder = directory(
        tmp_path,
        ip_addr_json=json.dumps(ADDR),
        ip_route_json=json.dumps(routes),
        ip_rule_json=json.dumps(RULE),
        sysctl_conf="net.ipv4.ip_forward = 0\nnet.ipv4.conf.eth0.rp_filter = 2\nkernel.pid_max = 7\n",
    )
    model, r, problems = read(folder)
    assert not problems
    assert r.names == ["lo", "eth0", "tun0"]
    assert (r.links[1].mtu, r.links[1].kind, r.links[1].up, r.links[2].up) == (1450, "veth", True, False)
    assert r.run(["route"]).splitlines() == [
        "default via 10.0.0.254 dev eth0 proto dhcp metric 100 ",
        "unreachable 7.0.0.0/8 ",
        "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1 ",
        "10.6.0.0/24 dev eth0 proto kernel scope link src 10.6.0.1 metric 100 ",
    ]
    assert r.show_routes(["table", "100"]) == "9.3.0.0/16 via 10.0.0.9 dev eth0 onlink \n"
    assert [str(x).split("\t")[1] for x in r.rules[1:3]] == [
        "not from all tos 0x10 fwmark 0x5/0xf iif eth0 lookup main suppress_prefixlength 0",
        "from 10.0.0.0/24 to 5.0.0.0/8 unreachable",
    ]
    assert r.split
    assert model.sysctl == {"net.ipv4.ip_forward": 0, "net.ipv4.conf.eth0.rp_filter": 2}
    assert r._type_of(R.parse_ip("10.8.0.1")) == R.LOCAL


def test_a_node_nobody_gave_rules_keeps_one_trie(tmp_path: Path) -> None:
    plain = [RULE[0], *RULE[3:]]
    _, r, problems = read(directory(tmp_path, ip_addr_json=json.dumps(ADDR), ip_rule_json=json.dumps(plain)))
    assert not problems
    assert not r.split


def test_node_toml_comes_first_and_json_fills_in(tmp_path: Path) -> None:
    text = '[[link]]\nname = "eth0"\naddresses = ["10.0.0.2/24"]\n[sysctl]\n"net.ipv4.ip_forward" = 1\n'
    folder = directory(
        tmp_path,
        node_toml=text,
        ip_addr_json=json.dumps(ADDR),
        ip_route_json=json.dumps(ROUTE[:1]),
        sysctl_conf="net.ipv4.ip_forward = 0\nnet.ipv4.vs.conntrack = 1\nnonsense\n",
    )
    model, r, problems = read(folder)
    assert told(problems) == [(3, "not a setting")]
    assert [str(a) for a in r.links[1].addresses] == ["10.0.0.2/24"]
    assert r.run(["route"]).startswith("default via 10.0.0.254")
    assert model.sysctl == {"net.ipv4.ip_forward": 1, "net.ipv4.vs.conntrack": 1}


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("ip_addr_json", "{", "not JSON: Expecting property name enclosed in double quotes"),
        ("ip_route_json", '{"dst": "default"}', "not a list of objects"),
        ("ip_route_json", '[{"dst": "default", "nhid": 7}]', "route option nhid 7"),
        ("ip_route_json", '[{"dst": "default", "nexthops": [{"dev": "eth7"}]}]', 'no link "eth7"'),
        ("ip_route_json", '[{"dst": "default", "dev": "eth7"}]', 'no link "eth7"'),
        ("ip_rule_json", '[{"priority": 1000, "src": "all", "l3mdev": null}]', "rule selector l3mdev"),
    ],
)
def test_json_that_cannot_be_taken(tmp_path: Path, name: str, text: str, what: str) -> None:
    _, _, problems = read(directory(tmp_path, **{name: text}))
    assert [p.what for p in problems] == [what]


def test_ipv6_tables_without_rules_are_fine_and_with_rules_are_not(tmp_path: Path) -> None:
    empty = "# Generated\n*filter\n:INPUT ACCEPT [1:2]\n:KUBE-X - [0:0]\nCOMMIT\n"
    _, _, problems = read(directory(tmp_path, ip6tables_save=empty))
    assert not problems
    full = empty.replace("COMMIT", "[3:4] -A INPUT -j KUBE-X\n-A KUBE-X -j DROP\nCOMMIT")
    _, _, problems = read(directory(tmp_path, ip6tables_save=full))
    assert [(p.kind, p.line, p.what) for p in problems] == [(UNSUPPORTED, 5, "an IPv6 rule (and 1 more lines)")]
    _, _, problems = read(directory(tmp_path, ip6tables_save=empty.replace("INPUT ACCEPT", "INPUT DROP")))
    assert told(problems) == [(3, "an IPv6 policy of filter")]


def test_no_model_directory(tmp_path: Path) -> None:
    (tmp_path / "kube-ipvs").mkdir()
    (tmp_path / "kube-ipvs" / "node.toml").write_text("")
    with pytest.raises(Refused) as e:
        read_model(tmp_path / "kube-ipv", [])
    assert "kube-ipvs?" in str(e.value)
    assert e.value.status == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match=r"is empty[\s\S]*node.toml, ip-addr.json"):
        read_model(tmp_path / "empty", [])
    (tmp_path / "empty" / "rules.v4").write_text("")
    with pytest.raises(Refused, match=r"nothing that netemu knows[\s\S]*rules.v4 -> iptables.save"):
        read_model(tmp_path / "empty", [])
    with pytest.raises(Refused, match="is a file"):
        read_model(tmp_path / "empty" / "rules.v4", [])


def test_a_misspelt_dump_is_remarked_upon(tmp_path: Path) -> None:
    folder = directory(tmp_path, node_toml="", ipset_conf="", README_md="")
    model, _, problems = read(folder)
    assert not problems
    assert model.notes == ["ipset.conf is not read: did you mean ipset.save?"]


def test_a_written_model_reads_back(tmp_path: Path) -> None:
    model = Model(
        "6.1",
        [
            LinkSpec("eth0", [AddressSpec("10.0.0.1/24")], mac="2:0:0:0:0:1", mtu=1450),
            LinkSpec("kube-ipvs0", [AddressSpec(f"10.96.0.{k}/32") for k in range(1, 7)], up=False, kind="dummy"),
        ],
        [
            route("default via 10.0.0.254 dev eth0 metric 7"),
            route("blackhole 9.0.0.0/8"),
        ],
        [
            rule("pref 9 not fwmark 0x1/0x1 lookup 100"),
            rule("pref 10 to 5.0.0.0/8 prohibit"),
        ],
        {"net.ipv4.ip_forward": 1, "net.ipv4.ip_local_port_range": "1024 65535"},
        {"iptables.save": Text("*filter\nCOMMIT\n", "")},
    )
    write_model(model, tmp_path / "made")
    again, r, problems = read(tmp_path / "made")
    assert not problems
    assert again.links == [
        LinkSpec(**{**vars(model.links[0]), "mac": "02:00:00:00:00:01"}),
        model.links[1],
    ]
    assert r.run(["route"]).splitlines()[:2] == ["default via 10.0.0.254 dev eth0 metric 7 ", "blackhole 9.0.0.0/8 "]
    assert [str(x).split("\t")[1] for x in r.rules[1:3]] == [
        "not from all fwmark 0x1/0x1 lookup 100", "from all to 5.0.0.0/8 prohibit",
    ]  # fmt: skip
    assert again.sysctl == model.sysctl
    assert again.texts["iptables.save"].text == "*filter\nCOMMIT\n"
    write_model(again, tmp_path / "twice")
    assert (tmp_path / "twice" / "node.toml").read_text() == (tmp_path / "made" / "node.toml").read_text()
