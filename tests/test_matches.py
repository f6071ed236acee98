"""Matches: what they read and print, that asking many is asking one repeatedly, and what those with memory remember.

matches.t holds what the real tool makes of each option. The numbers of the connlimit and hashlimit tests were read
from real kernels, 6.1 and 6.18.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from craft import icmp, ip, tcp, udp
from hypothesis import given
from hypothesis import strategies as st

from netemu.errors import UNSUPPORTED, Problem
from netemu.grammar import Bad, Given, RuleContext
from netemu.matches import MATCHES, OTHER_MATCHES, Match, Memory
from netemu.matches.rates import Limit, RecentTable, hash_tables, recent_tables
from netemu.model import Model, Text
from netemu.node import Node
from netemu.packets import Packets
from netemu.sockets import Socket
from netemu.trip import Trip

SETS = """create s1 hash:ip counters
add s1 10.0.0.5
add s1 10.244.0.7
create s2 hash:ip,port
add s2 10.0.0.5,tcp:80
create s3 hash:net
add s3 10.0.0.0/8
add s3 10.0.0.0/24 nomatch
"""
DIMENSIONS = {"s1": 1, "s2": 2, "s3": 1}
SECOND = 1_000_000_000


def given_of(name: str, text: str) -> list[Given]:
    """Options as the rule reader hands them over."""
    words = [w.replace("_", " ") if w.startswith('"') else w for w in re.findall(r'"[^"]*"|\S+', text)]
    words = [w.strip('"') for w in words]
    out, k, invert = [], 0, False
    while k < len(words):
        if words[k] == "!":
            invert, k = True, k + 1
            continue
        count = MATCHES[name].OPTIONS[words[k]]
        out.append(Given(words[k], invert, tuple(words[k + 1 : k + 1 + count])))
        k, invert = k + 1 + count, False
    return out


def read(name: str, text: str, **rule: object) -> Match:
    cls = MATCHES[name]
    protocols = {"multiport": 6, "ecn": 6}
    proto = cls.protocols[0] if cls.protocols else protocols.get(name, 0)
    chain = {"owner": "OUTPUT", "rpfilter": "PREROUTING", "socket": "PREROUTING"}.get(name, "FORWARD")
    context = {"table": "mangle", "chain": chain, "proto": proto, "sets": DIMENSIONS, "owners": True, "cpu": 0, **rule}
    return cls.read(given_of(name, text), RuleContext(**context))  # type: ignore[arg-type]


# ---- the registry --------------------------------------------------------------------------------------------------


def test_a_match_must_answer() -> None:
    with pytest.raises(TypeError, match="neither of one packet nor of many"):

        class Silent(Match, name="silent"):
            pass


def test_a_match_with_memory_must_say_what_it_touches() -> None:
    with pytest.raises(TypeError, match="does not say what it touches"):

        class Forgetful(Memory, name="forgetful"):
            def ask(self, trip: Trip, row: int) -> bool:
                return True


def test_what_is_not_modelled_has_no_class() -> None:
    assert not set(OTHER_MATCHES) & set(MATCHES)


# ---- text ----------------------------------------------------------------------------------------------------------

LINES = [
    line.split(" ; ", 1)
    for line in Path(__file__).with_name("matches.t").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(scope="module")
def plain_node() -> Node:
    node = Node(Model(sockets=[Socket(0, uid=0)], cpu=0))
    node.sets.restore(SETS, "ipset.save", [])
    return node


def families() -> dict[str, list[list[str]]]:
    out: dict[str, list[list[str]]] = {}
    for rule, saved in LINES:
        names = re.findall(r"-m (\w+)", rule) or re.findall(r"-p (\w+)", rule)
        out.setdefault(names[-1], []).append([rule, saved])
    return out


@pytest.mark.parametrize(("name", "lines"), families().items(), ids=families())
def test_text_is_the_tools(name: str, lines: list[list[str]], plain_node: Node) -> None:
    wrong = []
    for rule, saved in lines:
        table, chain = "filter", "INPUT"
        if place := re.match(r"\[(\w+) (\w+)\] ", rule):
            table, chain, rule = place[1], place[2], rule[place.end() :]
        problems: list[object] = []
        plain_node.tables.read(f"*{table}\n-A {chain} {rule}\nCOMMIT\n", "rules", problems)  # type: ignore[arg-type]
        got = "FAIL"
        if not problems:
            text = plain_node.tables.save(False, table)
            got = next(line for line in text.splitlines() if line.startswith("-A ")).removeprefix(f"-A {chain} ")
        want = rule.strip() if saved == "=" else saved
        if got.strip() != want.strip():
            wrong.append((rule, want, got, [str(p) for p in problems]))
    assert not wrong


def test_what_no_capture_tells_must_be_declared() -> None:
    for rule, way_out in (("owner --uid-owner 5", r"\[\[socket\]\]"), ("cpu --cpu 1", "cpu = 0")):
        problems: list[Problem] = []
        Node(Model()).tables.read(f"*filter\n-A OUTPUT -m {rule} -j ACCEPT\nCOMMIT\n", "rules", problems)
        assert [p.kind for p in problems] == [UNSUPPORTED] and re.search(way_out, problems[0].hint)
    with pytest.raises(Bad, match="not valid in the chain FORWARD"):
        read("owner", "--uid-owner 5", chain="FORWARD")


def test_the_owner_of_what_the_node_sends(tmp_path: Path) -> None:
    rules = ["--uid-owner 0", "! --uid-owner 0", "--uid-owner 100-101 --socket-exists", "--gid-owner 27 --suppl-groups"]
    lines = [f"-A OUTPUT -m owner {rule}" for rule in rules]
    (tmp_path / "iptables.save").write_text("\n".join(["*filter", *lines, "COMMIT", ""]))
    (tmp_path / "node.toml").write_text("""
        [[socket]]
        uid = 0
        [[socket]]
        proto = "udp"
        port = 53
        uid = 101
        gid = 5
        groups = [4, 27]
        """)
    node = Node.load(tmp_path)
    for sport, hits in ((53, [1, 2, 3]), (5353, [0])):
        before = [rule.packets for *_, rule in node.tables.rules()]
        node.send(udp("127.0.0.1", sport, "127.0.0.1", 9), None)
        after = [rule.packets for *_, rule in node.tables.rules()]
        assert [k for k in range(4) if after[k] > before[k]] == hits


@given(n=st.integers(2, 5000))
def test_probabilities_print_as_multiples_of_two_to_the_minus_31(n: int) -> None:
    written = f"{1 / n:.10f}"
    match = read("statistic", f"--mode random --probability {written}")
    assert match.words() == f"--mode random --probability {int(float(written) * 2**31 + 0.5) / 2**31:.11f}"


def test_a_recent_table_counts_to_255_in_one_kernel_and_further_in_the_other() -> None:
    with pytest.raises(Bad, match="larger than allowed maximum"):
        read("recent", "--rcheck --hitcount 256", kernel="6.1")
    assert read("recent", "--rcheck --hitcount 256", kernel="6.18")


# ---- many is one repeated ------------------------------------------------------------------------------------------

NOT = st.sampled_from(["", "! "])
PORTS = st.sampled_from(["80", "53", "1:1024", "1024:", "0", "65535", "0:65535", "4000:4001"])


def joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda words: " ".join(filter(None, words)))


def maybe(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(st.just(""), part)


def option(name: str, *values: str) -> st.SearchStrategy[str]:
    """An option that can be inverted."""
    return st.tuples(NOT, st.sampled_from(values or ("",))).map(lambda x: f"{x[0]}{name} {x[1]}".rstrip())


def plain(name: str, *values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values or ("",)).map(lambda value: f"{name} {value}".rstrip())


def ports(name: str) -> st.SearchStrategy[str]:
    return st.tuples(NOT, PORTS).map(lambda x: f"{x[0]}{name} {x[1]}")


RATES = ("1/s", "3/s", "7/min", "90/min", "20/hour")
CONFIGURED: dict[str, st.SearchStrategy[str]] = {
    "tcp": joined(
        maybe(ports("--sport")),
        maybe(ports("--dport")),
        maybe(option("--tcp-flags", "ALL NONE", "SYN,ACK SYN", "FIN,URG,PSH FIN", "NONE SYN", "NONE NONE")),
        maybe(option("--tcp-option", "2", "3", "8")),
    ),
    "udp": joined(maybe(ports("--sport")), maybe(ports("--dport"))),
    "icmp": option("--icmp-type", "any", "8", "3/1", "echo-reply", "3/0:4", "255/3"),
    "multiport": st.one_of(
        *(option(o, "80,443", "1:1024,4000", "0,65535", "53,80:90") for o in ("--sports", "--dports", "--ports"))
    ),
    "mark": option("--mark", "1", "0/0", "0x4000/0x4000", "0x1ff/0xff", "0"),
    "connmark": option("--mark", "1", "0/0", "0x10/0xf0", "0"),
    "comment": plain("--comment", "hello", '"two_words"'),
    "state": option("--state", "NEW", "RELATED,ESTABLISHED", "INVALID,UNTRACKED"),
    "conntrack": st.one_of(
        option("--ctstate", "NEW", "INVALID", "RELATED,ESTABLISHED,DNAT", "SNAT", "UNTRACKED"),
        joined(
            maybe(option("--ctstate", "NEW,ESTABLISHED", "INVALID")),
            maybe(option("--ctproto", "tcp", "17")),
            maybe(option("--ctorigsrc", "10.0.0.0/24", "10.0.0.5")),
            maybe(option("--ctrepldst", "10.0.0.5", "0.0.0.0/0")),
            maybe(ports("--ctorigdstport")),
            maybe(option("--ctstatus", "NONE", "CONFIRMED", "SEEN_REPLY,ASSURED")),
            maybe(option("--ctexpire", "0", "1:200", "100:")),
            plain("--ctdir", "ORIGINAL", "REPLY"),
        ),
    ),
    "connbytes": joined(
        option("--connbytes", "1", "2:3", "40:90"),
        plain("--connbytes-dir", "original", "reply", "both"),
        plain("--connbytes-mode", "packets", "bytes", "avgpkt"),
    ),
    "connlimit": joined(
        st.one_of(option("--connlimit-above", "0", "1", "2"), option("--connlimit-upto", "1", "2")),
        maybe(plain("--connlimit-mask", "0", "8", "24")),
        maybe(st.sampled_from(["--connlimit-saddr", "--connlimit-daddr"])),
    ),
    "set": joined(
        option("--match-set", "s1 src", "s1 dst", "s2 src,dst", "s2 src", "s3 src", "s3 dst"),
        maybe(st.just("--return-nomatch")),
        maybe(st.sampled_from(["! --update-counters", "--packets-gt 2", "! --packets-eq 1", "--bytes-lt 90"])),
    ),
    "addrtype": joined(
        option("--dst-type", "LOCAL", "UNICAST,BROADCAST", "MULTICAST"),
        maybe(option("--src-type", "LOCAL", "UNICAST")),
        maybe(st.just("--limit-iface-out")),
    ),
    "physdev": joined(option("--physdev-in", "eth0", "eth+"), maybe(option("--physdev-is-in"))),
    "iprange": joined(
        option("--src-range", "10.0.0.1-10.0.0.7", "10.0.0.9-10.0.0.1"),
        maybe(option("--dst-range", "10.0.0.0-10.244.0.6")),
    ),
    "owner": st.one_of(option("--socket-exists"), option("--uid-owner", "0", "5-9"), option("--gid-owner", "0", "7")),
    "cpu": option("--cpu", "0", "1"),
    "mac": option("--mac-source", "02:00:00:00:00:fe", "2:0:0:0:0:1"),
    "pkttype": option("--pkt-type", "unicast", "broadcast", "mcast", "otherhost"),
    "length": option("--length", "40", "28:50", "60:", "100:40"),
    "ttl": st.one_of(option("--ttl-eq", "64", "1"), plain("--ttl-lt", "64", "2"), plain("--ttl-gt", "1", "63")),
    "tos": option("--tos", "0x10", "0x10/0x3f", "Minimize-Cost", "0/0"),
    "dscp": st.one_of(option("--dscp", "0", "10"), option("--dscp-class", "EF", "CS1")),
    "ecn": joined(option("--ecn-ip-ect", "0", "3"), maybe(option("--ecn-tcp-cwr")), maybe(option("--ecn-tcp-ece"))),
    "realm": option("--realm", "0", "1", "0x10/0x10"),
    "statistic": st.one_of(
        joined(st.just("--mode random"), option("--probability", "0.5", "0.1", "0", "1")),
        joined(st.just("--mode nth"), option("--every", "3", "5"), plain("--packet", "0", "2")),
        st.just("--mode nth --every 1 --packet 0"),
    ),
    "limit": joined(plain("--limit", *RATES), maybe(plain("--limit-burst", "1", "2", "7"))),
    "quota": option("--quota", "0", "100", "400"),
    "recent": st.one_of(
        option("--set"),
        joined(option("--remove"), maybe(st.just("--rdest"))),
        joined(
            st.one_of(option("--rcheck"), option("--update")),
            maybe(st.sampled_from(["--seconds 1", "--seconds 2 --reap", "--hitcount 2", "--seconds 3 --hitcount 3"])),
            maybe(st.just("--rttl")),
            maybe(plain("--mask", "255.255.255.0")),
        ),
    ),
    "hashlimit": joined(
        st.one_of(
            plain("--hashlimit-upto", *RATES, "100b/s", "1kb/s"),
            plain("--hashlimit-above", *RATES, "100b/s"),
            plain("--hashlimit-upto 5/s --hashlimit-rate-match --hashlimit-rate-interval", "1", "2"),
        ),
        maybe(plain("--hashlimit-mode", "srcip", "srcip,dstport", "dstip,srcport")),
        maybe(st.sampled_from(["--hashlimit-srcmask 24", "--hashlimit-htable-size 2 --hashlimit-htable-max 2"])),
        st.just("--hashlimit-name t"),
    ),
    "string": joined(
        option("--string", "GET", "zz", "get"),
        plain("--algo", "bm", "kmp"),
        maybe(st.just("--icase")),
        maybe(st.sampled_from(["--from 28", "--to 43", "--from 29 --to 60"])),
    ),
    "u32": option("--u32", '"6&0xff=6"', '"0>>22&0x3c@0>>16=80,4000:4001"', '"60=0:9"', '"0&0xffff=40"'),
    "tcpmss": option("--mss", "1460", "1:1000"),
    "sctp": joined(
        maybe(ports("--dport")),
        option("--chunk-types", "any INIT", "all DATA,INIT", "only DATA:Be", "any NONE", "only ALL"),
    ),
    "dccp": joined(
        maybe(ports("--dport")), maybe(option("--dccp-types", "REQUEST", "DATA,ACK")), option("--dccp-option", "32")
    ),
    "time": joined(
        maybe(plain("--timestart", "00:00:10", "23:00")),
        maybe(plain("--timestop", "00:00:15", "01:00")),
        maybe(option("--weekdays", "Thu", "Fri,Sa")),
        maybe(option("--monthdays", "1", "2,3")),
    ),
    "rpfilter": st.sampled_from(["", "--loose", "--invert", "--validmark --accept-local"]),
    "ipvs": st.one_of(
        option("--ipvs"),
        joined(
            option("--vaddr", "10.96.0.1", "10.0.0.0/8"),
            maybe(option("--vport", "80", "443")),
            maybe(option("--vproto", "tcp", "udp")),
            maybe(option("--vmethod", "MASQ", "GATE")),
            maybe(option("--vportctl", "21")),
            maybe(plain("--vdir", "ORIGINAL", "REPLY")),
        ),
    ),
    "nfacct": plain("--nfacct-name", "counted"),
    "esp": option("--espspi", "5", "0:4000000", "9:"),
    "ah": option("--ahspi", "5", "0:4000000"),
    "ipcomp": joined(maybe(option("--ipcompspi", "0:9", "80")), maybe(st.just("--compres"))),
    "policy": joined(plain("--dir", "in", "out"), plain("--pol", "none", "ipsec")),
    "bpf": st.sampled_from([f'--bytecode "{p}"' for p in (
        "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0", "6,177 0 0 0,72 0 0 2,21 0 2 80,6 0 0 1,6 0 0 0,6 0 0 0",
        "2,32 0 0 60,22 0 0 0", "5,32 0 0 4294963220,2 0 0 3,97 0 0 3,135 0 0 0,22 0 0 0",
    )]),
    "connlabel": joined(option("--label", "1", "2", "127"), maybe(st.just("--set"))),
    "helper": option("--helper", "ftp", '""'),
    "cluster": joined(
        st.just("--cluster-total-nodes 3"), option("--cluster-local-nodemask", "6"), st.just("--cluster-hash-seed 7")
    ),
    "devgroup": st.one_of(option("--src-group", "0", "1/1"), option("--dst-group", "0", "5")),
    "socket": st.sampled_from(["", "--transparent", "--nowildcard --restore-skmark"]),
}  # fmt: skip


def sctp(chunks: bytes, dport: int = 80) -> bytes:
    return ip("10.0.0.5", "10.244.0.7", 132, b"\0\0" + dport.to_bytes(2, "big") + bytes(8) + chunks)


BYTES = [
    tcp("10.0.0.5", 4000, "10.244.0.7", 80),
    tcp("10.0.0.5", 4000, "10.244.0.7", 80, "A", data=b"GET zz"),
    tcp("10.0.0.6", 4001, "10.244.0.6", 443, "FPU", ttl=1, tos=0x10),
    tcp("10.244.0.7", 80, "10.0.0.5", 4000, "SA", tos=3),
    tcp("10.0.0.7", 65535, "10.0.0.1", 0, "R", options=b"\x00\x02\x04\x05\xb4\x01\x01\x01"),
    tcp("10.0.0.5", 4000, "10.244.0.7", 80)[:30],
    udp("10.0.0.5", 5353, "10.244.0.7", 53),
    udp("10.0.0.6", 53, "224.0.0.5", 4001, data=b"xxGETzz", tos=0xB8),
    ip("10.0.0.5", "10.244.0.7", 17, b"\0\x35\0"),
    icmp("10.0.0.5", "10.0.0.1"),
    icmp("10.0.0.6", "10.244.0.255", 3, 1, ttl=63),
    ip("10.0.0.5", "10.244.0.7", 6, b"frag" * 8, frag=0x2001),
    ip("10.0.0.5", "10.244.0.7", 6, b"\0\x50\0\x50" * 9, frag=0x0007),
    ip("10.0.0.6", "10.244.0.7", 47, b"\0\0\x08\0data"),
    sctp(b"\x01\0\0\x04\0\x03\0\x05x\0\0\0"),
    sctp(b"\0\x0b\0\x04\x01\0\0\0", 1024),
    sctp(b"\x06"),
    ip("10.0.0.5", "10.244.0.7", 33, bytes.fromhex("0fa00050060000000500000000000000200301000101") + b"\0\0"),
    ip("10.0.0.5", "10.244.0.7", 33, bytes.fromhex("0fa0005003000000050000000000")),
]
LENGTHS = [int.from_bytes(b[2:4], "big") for b in BYTES]

RULES = "*filter\n-A FORWARD -m conntrack --ctstate NEW\nCOMMIT\n"


def world() -> Node:
    """A node with links, sets, a virtual service and a few flows."""
    node = Node(Model(kernel="6.1"), seed=5)
    for name, address in (("eth0", "10.0.0.1/24"), ("cni0", "10.244.0.1/24")):
        node.routing.add_link(name, (address,))
    node.sysctl.set("net.ipv4.ip_forward", 1)
    node.sysctl.set("net.netfilter.nf_conntrack_acct", 1)
    node.sets.restore(SETS, "ipset.save", [])
    node.tables.read(RULES, "iptables.save", [])
    node.refresh()
    node.run("ip addr add 10.96.0.1/32 dev cni0")
    node.run("ipvsadm -A -t 10.96.0.1:80 -s rr")
    node.run("ipvsadm -a -t 10.96.0.1:80 -r 10.244.0.7:80 -m")
    for k, (link, packet) in enumerate(
        (
            ("eth0", tcp("10.0.0.5", 4000, "10.96.0.1", 80)),
            ("eth0", tcp("10.0.0.5", 4000, "10.244.0.7", 80)),
            ("cni0", tcp("10.244.0.7", 80, "10.0.0.5", 4000, "SA", seq=5000, ack=1001)),
            ("eth0", tcp("10.0.0.5", 4000, "10.244.0.7", 80, "A", seq=1001, ack=5001)),
            ("eth0", udp("10.0.0.5", 5353, "10.244.0.7", 53)),
            ("eth0", icmp("10.0.0.6", "10.244.0.6")),
        )
    ):
        node.send(packet, link=link, at=1 + k * 0.01)
    return node


@cache
def settled_world() -> Node:
    """One for all questions that leave it as it is."""
    return world()


WORLD_FLOWS = 4


@st.composite
def traffic(draw: st.DrawFn) -> list[dict[str, int]]:
    """Packets as choices: which bytes, and what the road would have written on them."""
    at = 2 * SECOND
    out = []
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0, 1_000_000, 40_000_000, 700_000_000, 3 * SECOND]))
        out.append(
            {
                "bytes": draw(st.integers(0, len(BYTES) - 1)),
                "time": at,
                "ct": draw(st.integers(-1, WORLD_FLOWS - 1)),
                "reply": draw(st.integers(0, 1)),
                "nothing": draw(st.sampled_from([0, 4])),  # INVALID or UNTRACKED
                "state": draw(st.integers(1, 3)),
                "mark": draw(st.sampled_from([0, 1, 0x4000, 0x101])),
                "pkttype": draw(st.integers(0, 3)),
                "socket": draw(st.integers(0, 1)),
                "ipvs": draw(st.integers(0, 1)),
                "ether": draw(st.integers(0, 1)),
                "link_in": draw(st.integers(-1, 2)),
                "link_out": draw(st.integers(-1, 2)),
            }
        )
    return out


CHOICES = (
    "bytes",
    "time",
    "reply",
    "nothing",
    "state",
    "mark",
    "pkttype",
    "socket",
    "ipvs",
    "ether",
    "link_in",
    "link_out",
)


def trip_of(node: Node, choices: list[dict[str, int]]) -> Trip:
    p = Packets.from_bytes([BYTES[c["bytes"]] for c in choices])
    for k, c in enumerate(choices):
        p.length[k] = len(BYTES[c["bytes"]])  # a packet cut short is shorter for the kernel, too
        for name in ("time", "ct", "mark", "pkttype", "socket", "ipvs", "ether", "link_in", "link_out"):
            getattr(p, name)[k] = c[name]
        p.serial[k] = k
        p.smac[k] = 0x0200000000FE
        p.state[k] = c["state"] if c["ct"] >= 0 else c["nothing"]
        p.reply[k] = c["ct"] >= 0 and c["reply"]
    trip = Trip(node, p)
    trip.hook = "FORWARD"
    return trip


def rows_of(hot: np.ndarray | None) -> list[int]:
    return sorted(set(hot.tolist())) if hot is not None else []


def test_every_match_has_a_strategy() -> None:
    assert set(CONFIGURED) == set(MATCHES)


@pytest.mark.parametrize("name", MATCHES)
@given(data=st.data())
def test_many_is_one_repeated(name: str, data: st.DataObject) -> None:
    text = data.draw(CONFIGURED[name])
    choices = data.draw(traffic())
    match, twin = read(name, text, kernel="6.1"), read(name, text, kernel="6.1")
    shared = not any(":" in touch for touch in match.touches)  # nothing that the node keeps is changed
    many = trip_of(settled_world() if shared else world(), choices)
    one = trip_of(settled_world() if shared else world(), choices)
    rows = np.arange(len(choices))
    if data.draw(st.booleans()):  # in two goes
        cut = data.draw(st.integers(0, len(rows)))
        answer = [*match.mask(many, rows[:cut]).tolist(), *match.mask(many, rows[cut:]).tolist()]
    else:
        answer = match.mask(many, rows).tolist()
    assert answer == [twin.says(one, k) for k in rows.tolist()]
    assert rows_of(many.hot) == rows_of(one.hot)
    assert not set(rows_of(many.hot)) & set(np.flatnonzero(answer).tolist())
    if not match.touches:
        assert match.mask(many, rows).tolist() == answer
    assert read(name, match.words(), kernel="6.1").words() == match.words() or name == "comment"


@st.composite
def alike(draw: st.DrawFn, protocols: list[int], flags: int) -> Trip:
    """Packets of one direction of an established connection; of TCP's flags those that are in `flags` are the same."""
    proto, tos, ttl, said = (draw(st.sampled_from(some)) for some in (protocols, (0, 0x1B), (1, 64), range(256)))
    packets = []
    for _ in range(6):
        data, how = bytes(draw(st.sampled_from((0, 1, 700)))), {"tos": tos, "ttl": ttl, "frag": 0x4000}
        if proto == 17:
            packet = udp("10.0.0.5", 40_000, "10.244.0.7", 80, data, **how)
        else:
            options = draw(st.sampled_from((b"", b"\x02\x04\x05\xb4")))
            seq = draw(st.integers(0, 2**32 - 1))
            packet = tcp("10.0.0.5", 40_000, "10.244.0.7", 80, "A", seq, 7, data=data, options=options, **how)
            loose = draw(st.integers(0, 255))
            packet = packet[:33] + bytes([(said & flags) | (loose & ~flags & 255)]) + packet[34:]
        packets.append(packet)
    p = Packets.from_bytes(packets)
    p.serial[:] = np.arange(6)
    p.time[:] = np.cumsum([draw(st.sampled_from((0, 1_000_000, 3 * SECOND))) for _ in packets]) + 2 * SECOND
    p.ct[:], p.state[:], p.reply[:] = draw(st.integers(0, WORLD_FLOWS - 1)), 2, draw(st.booleans())
    p.link_in[:], p.link_out[:], p.mark[:] = 1, draw(st.integers(-1, 2)), draw(st.sampled_from((0, 1)))
    trip = Trip(settled_world(), p)
    trip.hook = "FORWARD"
    return trip


@pytest.mark.parametrize("name", MATCHES)
@given(data=st.data())
def test_a_steadfast_match_says_the_same_of_all_that_look_alike(name: str, data: st.DataObject) -> None:
    match = read(name, data.draw(CONFIGURED[name]), kernel="6.1")
    protocols = [p for p in (6, 17) if p in match.protocols or not match.protocols]
    if match.tcp_flags:  # no rule asks others for them
        protocols = [6]
    if protocols and match.steadfast(settled_world()):
        trip = data.draw(alike(protocols, match.tcp_flags))
        assert len(set(match.mask(trip, np.arange(6)).tolist())) == 1
        assert trip.hot is None


# ---- memory --------------------------------------------------------------------------------------------------------


def at_times(node: Node, times: list[float], packet: bytes = BYTES[0]) -> Trip:
    p = Packets.from_bytes([packet] * len(times))
    p.time[:] = [round(t * SECOND) for t in times]
    p.serial[:] = np.arange(len(times))
    return Trip(node, p)


def asked(match: Match, node: Node, times: list[float], packet: bytes = BYTES[0]) -> str:
    trip = at_times(node, times, packet)
    return "".join("X" if yes else "." for yes in match.mask(trip, np.arange(len(times))))


def test_nth_matches_the_packet_it_names_and_every_so_many_later() -> None:
    node = Node(Model())
    assert asked(read("statistic", "--mode nth --every 3 --packet 1"), node, [0.0] * 8) == ".X..X..X"
    assert asked(read("statistic", "--mode nth ! --every 3 --packet 0"), node, [0.0] * 6) == ".XX.XX"


def test_random_draws_differ_between_rules_and_not_between_runs() -> None:
    node = Node(Model(), seed=3)
    first, second = (read("statistic", "--mode random --probability 0.5") for _ in range(2))
    first.start(node, "nat:KUBE-SVC-X:1")
    second.start(node, "nat:KUBE-SVC-X:2")
    times = [0.0] * 200
    a, b = asked(first, node, times), asked(second, node, times)
    assert a != b
    first.start(node, "nat:KUBE-SVC-X:1")
    assert asked(first, node, times) == a
    assert 60 < a.count("X") < 140


def test_every_match_of_a_rule_draws_for_itself() -> None:
    half = "-m statistic --mode random --probability 0.5"
    rules = [f"-A INPUT {half}", f"-A INPUT {half}", f"-A INPUT {half} {half}"]
    save = Text("\n".join(["*filter", *rules, "COMMIT", ""]), "iptables.save")
    node = Node(Model(texts={"iptables.save": save}), seed=1)
    for n in range(400):
        node.send(udp("127.0.0.1", 1000 + n, "127.0.0.1", 53), None)
    once, again, both = (rule.packets for *_, rule in node.tables.rules())
    assert 150 < once < 250 and 150 < again < 250 and 60 < both < 140


def test_limit_is_a_bucket_that_fills_with_the_ticks() -> None:
    node = Node(Model())
    limit = read("limit", "--limit 2/s --limit-burst 3")
    assert asked(limit, node, [0, 0, 0, 0, 0.4, 0.5, 0.5, 1.0, 9, 9, 9, 9]) == "XXX..X.XXXX."
    limit.start(node, "filter:INPUT:1")  # any change of the table
    assert asked(limit, node, [9, 9, 9, 9]) == "XXX."


@given(rate=st.integers(1, 10000), unit=st.sampled_from(["s", "min", "hour", "day"]), burst=st.integers(1, 10000))
def test_limit_prints_what_it_reads_back(rate: int, unit: str, burst: int) -> None:
    try:
        match = read("limit", f"--limit {rate}/{unit} --limit-burst {burst}")
    except Bad:
        return
    assert isinstance(match, Limit)
    text = match.words()
    again = read("limit", text)
    assert again.words() == text or match.interval < 10  # very fast rates lose digits, in the tool too


def test_quota_ends_for_good_with_the_first_packet_that_does_not_fit() -> None:
    node = Node(Model())
    small, large = udp("10.0.0.5", 1, "10.0.0.6", 2, b""), udp("10.0.0.5", 1, "10.0.0.6", 2, b"x" * 50)
    quota = read("quota", "--quota 100")
    p = Packets.from_bytes([small, small, large, small])
    assert quota.mask(Trip(node, p), np.arange(4)).tolist() == [True, True, False, False]


def test_recent_counts_what_was_set_on_the_same_way() -> None:
    node = Node(Model())
    see, check = read("recent", "--set --name R"), read("recent", "--rcheck --seconds 5 --hitcount 3 --name R")
    for number, match in enumerate((see, check), 1):
        match.start(node, f"filter:INPUT:{number}")
    trip = at_times(node, [0, 1, 2, 9])
    assert [(see.says(trip, k), check.says(trip, k)) for k in range(4)] == [
        (True, False),
        (True, False),
        (True, True),
        (True, False),
    ]


def test_a_recent_table_lives_while_a_rule_refers_to_it() -> None:
    node = Node(Model())
    old, heir = (read("recent", "--set --name R") for _ in range(2))
    old.start(node, "filter:INPUT:1")
    assert asked(old, node, [0.0]) == "X"
    heir.start(node, "filter:INPUT:1")
    old.stop(node)
    assert asked(read("recent", "--rcheck --name R"), node, [1.0]) == "X"
    heir.stop(node)
    assert len(recent_tables(node).tables) == 1  # the --rcheck of a line above refers to it still


def test_a_rule_that_counts_further_empties_a_recent_table() -> None:
    table = RecentTable(0xFFFFFFFF, 4)
    node = Node(Model())
    few, many = read("recent", "--set --name R"), read("recent", "--rcheck --hitcount 40 --name R")
    few.start(node, "filter:INPUT:1")
    assert asked(few, node, [0.0, 0.0]) == "XX"
    many.start(node, "filter:INPUT:2")
    assert not recent_tables(node).tables["R"].entries
    table.widen(2)
    assert table.ring == 4


def test_the_oldest_of_a_hundred_addresses_makes_room() -> None:
    node = Node(Model())
    see = read("recent", "--set --name R")
    packets = [udp(f"10.0.1.{n}", 1, "10.0.0.6", 2) for n in range(101)]
    assert see.mask(Trip(node, Packets.from_bytes(packets)), np.arange(101)).all()
    assert next(iter(recent_tables(node).tables["R"].entries)) == 0x0A000101


HASHLIMITS = [  # 40 packets in fours: 20 ms apart, then 300 ms; then 20 with gaps of 2.3 s, 20 ms, 1.1 s
    ("1/s --hashlimit-rate-match", "XXXXXX" + "." * 37 + "XX.XX.XX.XX.XX.XX"),
    ("30/min --hashlimit-rate-match", "X" * 35 + "." * 25),
    ("7/hour --hashlimit-rate-match", "X" * 12 + "." * 48),
    ("2/s --hashlimit-rate-match", "X" * 7 + "." * 33 + "X" * 20),
    ("100b/s --hashlimit-rate-match", "XX" + "." * 38 + "X" * 20),
    ("100b/s --hashlimit-rate-interval 2 --hashlimit-rate-match", "XX" + "." * 41 + "XX.XX.XX.XX.XX.XX"),
    ("100b/s --hashlimit-burst 300 --hashlimit-rate-match", "X" * 8 + "." * 32 + "X" * 20),
]


@pytest.mark.parametrize(("text", "seen"), HASHLIMITS, ids=[text for text, _ in HASHLIMITS])
def test_hashlimit_by_rate_counts_as_recorded(text: str, seen: str) -> None:
    node, at, times = Node(Model()), 0.0, []
    for k in range(60):
        at += (0.02, 0.02, 0.02, 0.3)[k % 4] if k < 40 else (1.1, 2.3, 0.02)[k % 3]
        times.append(at)
    match = read("hashlimit", f"--hashlimit-upto {text} --hashlimit-name q --hashlimit-htable-expire 90000")
    assert asked(match, node, times, udp("10.0.0.5", 5353, "10.244.0.7", 53, b"y" * 20)) == seen


def test_a_full_hashlimit_table_drops_new_keys() -> None:
    node = Node(Model())
    match = read(
        "hashlimit",
        "--hashlimit-upto 9/s --hashlimit-mode srcip --hashlimit-name h "
        "--hashlimit-htable-size 2 --hashlimit-htable-max 2",
    )
    p = Packets.from_bytes([udp(f"10.0.0.{n}", 1, "10.0.0.9", 2) for n in (1, 2, 3, 1)])
    trip = Trip(node, p)
    assert match.mask(trip, np.arange(4)).tolist() == [True, True, False, True]
    assert rows_of(trip.hot) == [2]
    assert len(hash_tables(node).tables["h"].buckets) == 2


# who sends what, and how many connections (of all, of the same source) the kernel counts then; 0 drops the packet
CONNLIMITS = [
    ("6.18", "a.S a.SA a.A a.FA a.rFA a.A a.A b.S a.A b.SA", "11 11 11 11 11 00 00 11 10 11"),
    ("6.1", "a.S a.SA a.A a.FA a.rFA a.A a.A b.S a.A b.SA", "11 11 11 11 11 00 00 11 10 10"),
    ("6.18", "a.S b.S a.R b.S b.S a.S b.R b.SA", "11 21 21 21 21 21 21 21"),
    ("6.1", "a.S b.S a.R b.S b.S a.S b.R b.SA", "11 21 10 11 11 21 10 21"),
    ("6.18", "a.S b.S c.S a.SA b.SA c.SA a.SA a.A", "11 21 32 31 32 33 33 31"),
    ("6.1", "a.S b.S c.S a.SA b.SA c.SA a.SA a.A", "11 21 32 31 31 31 31 31"),
    ("6.18", "a.A b.SA b.SA a.SA c.SA a.S c.SA b.R", "11 21 21 21 22 21 22 21"),
    ("6.18", "a.S a.SA a.A b.SA a.A", "11 11 11 22 11"),
    ("6.18", "a.S a.SA b.SA a.S", "11 11 22 21"),
    ("6.1", "a.S a.SA b.SA a.S", "11 11 22 11"),
]
ENDS = {"a": ("10.0.0.5", 4000), "b": ("203.0.113.7", 4001), "c": ("203.0.113.7", 4002)}
SEGMENTS = {
    "S": (0, "S", 1000, 0),
    "SA": (1, "SA", 5000, 1001),
    "A": (0, "A", 1001, 5001),
    "R": (0, "R", 1001, 0),
    "FA": (0, "FA", 1001, 5001),
    "rFA": (1, "FA", 5001, 1002),
}


@pytest.mark.parametrize(("kernel", "words", "counts"), CONNLIMITS)
def test_connlimit_counts_as_recorded(kernel: str, words: str, counts: str) -> None:
    node = Node(Model(kernel=kernel))
    for name, address in (("eth0", "10.0.0.1/24"), ("cni0", "10.244.0.1/24")):
        node.routing.add_link(name, (address,))
    node.run("ip route add default via 10.0.0.254 dev eth0")
    node.sysctl.set("net.ipv4.ip_forward", 1)
    limits = [(mask, n) for mask in (0, 32) for n in range(4)]
    rules = "".join(f"-A FORWARD -m connlimit --connlimit-above {n} --connlimit-mask {m}\n" for m, n in limits)
    node.tables.read(f"*mangle\n{rules}COMMIT\n", "rules", [])
    node.refresh()
    seen = []
    for k, word in enumerate(words.split()):
        who, what = word.split(".")
        back, flags, seq, ack = SEGMENTS[what]
        (src, sport), dst, dport = ENDS[who], "10.244.0.7", 80
        if back:
            src, sport, dst, dport = dst, dport, src, sport
        packet = tcp(src, sport, dst, dport, flags, seq, ack, win=1000, options=b"")
        journey = node.send(packet, link="cni0" if back else "eth0", at=(k + 1) * 0.05)
        steps = {str(s) for s in journey.steps}
        count = [0, 0]
        for number, (mask, _) in enumerate(limits, 1):
            count[mask == 32] += f"mangle:FORWARD:rule:{number}" in steps
        seen.append(f"{count[0]}{count[1]}")
        assert (journey.fate == "dropped") == ("0" in seen[-1])
    assert " ".join(seen) == counts


def test_connbytes_switches_accounting_on() -> None:
    node = Node(Model())
    rule = "-A FORWARD -m connbytes --connbytes 1 --connbytes-dir both --connbytes-mode packets"
    node.tables.read(f"*filter\n{rule}\nCOMMIT\n", "rules", [])
    assert node.sysctl.int("net.netfilter.nf_conntrack_acct") == 1


# ---- header tables -------------------------------------------------------------------------------------------------


@given(text=CONFIGURED["multiport"], sport=st.integers(0, 65535), dport=st.integers(0, 65535))
def test_multiport_reads_like_the_man_page(text: str, sport: int, dport: int) -> None:
    match = read("multiport", text)
    node = Node(Model())
    trip = Trip(node, Packets.from_bytes([udp("10.0.0.5", sport, "10.0.0.6", dport)] * 2))
    spans = [list(map(int, (word.split(":") * 2)[:2])) for word in text.split()[-1].split(",")]
    looked_at = {"--sports": [sport], "--dports": [dport], "--ports": [sport, dport]}
    within = any(lo <= port <= hi for port in looked_at[text.split()[-2]] for lo, hi in spans)
    assert match.mask(trip, np.arange(2)).tolist() == [within != text.startswith("!")] * 2


def test_what_can_be_keyed_says_its_ports() -> None:
    assert read("tcp", "--dport 443").exact_ports() == (-1, 443)  # type: ignore[attr-defined]
    assert read("udp", "--sport 53 --dport 53").exact_ports() == (53, 53)  # type: ignore[attr-defined]
    for text in ("--dport 1:2", "! --dport 3", "--dport 3 --syn", "--tcp-option 2"):
        assert read("tcp", text).exact_ports() is None  # type: ignore[attr-defined]


def test_a_match_without_a_connection_stands_by_its_state_alone() -> None:
    node = world()
    choice = {**dict.fromkeys(CHOICES, 0), "ct": -1}
    trip = trip_of(node, [choice])
    assert read("conntrack", "--ctstate INVALID --ctproto udp").says(trip, 0)
    assert not read("conntrack", "! --ctproto udp").says(trip, 0)
    assert not read("connmark", "! --mark 5").says(trip, 0)
