"""Generated nodes and the traffic that is likely to hit them: what the laws are tried on."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from craft import answer, ends, error, icmp, tcp, udp
from hypothesis import strategies as st

from netemu import Node, read_capture
from netemu.capture import CaptureWriter
from netemu.node import Journey, Replay

NODE = """
kernel = "{kernel}"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24", "10.0.0.9/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/24"]
[[link]]
name = "kube-ipvs0"
kind = "dummy"
up = false
addresses = ["10.96.0.10/32"]
[[route]]
to = "default"
via = "10.0.0.254"
dev = "eth0"
[sysctl]
"net.ipv4.vs.conntrack" = {vs_conntrack}
"net.ipv4.vs.expire_nodest_conn" = {nodest}
"""

NAT = {
    "PREROUTING": [
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.0.5:8080",
        "-i eth0 -p udp -m udp --dport 53 -j DNAT --to-destination 10.244.0.6",
        "-d 10.0.0.9/32 -p tcp -j DNAT --to-destination 10.244.0.5-10.244.0.7",
        "-p tcp -m tcp --dport 443 -j DNAT --to-destination 10.244.0.6:8000-8002",
        "-p tcp -m tcp --dport 22 -j REDIRECT --to-ports 2222",
        "-d 10.9.0.0/24 -j NETMAP --to 10.244.0.0/24",
        "-s 10.244.0.6/32 -j RETURN",
    ],
    "POSTROUTING": [
        "-o eth0 -j MASQUERADE",
        "-s 10.244.0.0/24 -o eth0 -j SNAT --to-source 10.0.0.9",
        "-s 10.244.0.0/24 -p tcp -j SNAT --to-source 10.0.0.9:1024-1030",
        "-p udp -j SNAT --to-source 10.0.0.20-10.0.0.22",
        "-p tcp -j MASQUERADE --random",
    ],
    "OUTPUT": ["-d 10.96.0.99/32 -p tcp -j DNAT --to-destination 10.244.0.5:8080"],
    "INPUT": ["-p tcp -m tcp --dport 22 -j SNAT --to-source 10.0.0.77"],
}
FILTER = {
    "INPUT": [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-p udp -m udp --dport 99 -j REJECT --reject-with icmp-port-unreachable",
        "-p tcp -m tcp --dport 99 -j REJECT --reject-with tcp-reset",
        "-p icmp -m limit --limit 2/sec --limit-burst 3 -j ACCEPT",
        "-p icmp -j DROP",
        "-j U",
    ],
    "FORWARD": [
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-p tcp -m statistic --mode nth --every 3 --packet 1 -j DROP",
        "-p tcp -m tcp --dport 99 -j REJECT --reject-with tcp-reset",
        "-m mark --mark 0x7 -j REJECT --reject-with icmp-host-prohibited",
        "-p udp -m statistic --mode random --probability 0.5 -j DROP",
        "-j U",
        "-m connmark --mark 0x5 -j U",
        "-m recent --update --seconds 1 --hitcount 3 --name r --mask 255.255.255.255 --rsource -j DROP",
        "-m recent --set --name r --mask 255.255.255.255 --rsource",
    ],
    "OUTPUT": [
        "-p icmp -m limit --limit 3/sec --limit-burst 2 -j ACCEPT",
        "-p tcp -m tcp --dport 8080 -m mark --mark 0x7 -j DROP",
        "-j U",
    ],
    "U": [
        "-p tcp -m limit --limit 5/sec --limit-burst 2 -j RETURN",
        "-p udp -m statistic --mode nth --every 2 --packet 0 -j ACCEPT",
        "-s 10.244.0.7/32 -j DROP",
        "-j RETURN",
    ],
}
MANGLE = {
    "PREROUTING": [
        "-i cni0 -j MARK --set-xmark 0x7/0xffffffff",
        "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    ],
    "FORWARD": ["-p tcp -m tcp --dport 8080 -j CONNMARK --set-xmark 0x5/0xffffffff", "-j TTL --ttl-set 9"],
    "POSTROUTING": ["-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"],
    "INPUT": ["-p udp -j TOS --set-tos 0x10/0xff"],
    "OUTPUT": ["-p tcp -j MARK --set-xmark 0x7/0xffffffff"],
}
RAW = {
    "PREROUTING": ["-p udp -m udp --dport 5000 -j CT --notrack", "-p tcp -m tcp --sport 8080 -j CT --notrack"],
    "OUTPUT": [],
}
BUILT_IN = {
    "raw": ["PREROUTING", "OUTPUT"],
    "mangle": ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    "nat": ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
    "filter": ["INPUT", "FORWARD", "OUTPUT"],
}
SERVICES = ["-t 10.96.0.10:80", "-u 10.96.0.10:53"]
SCHEDULERS = ["rr", "wrr", "lc", "wlc", "sh", "sed", "nq", "dh"]


@dataclass
class World:
    """A node as texts, and what happens to it."""

    kernel: str
    iptables: str
    ipvs: str
    vs_conntrack: int
    nodest: int
    choices: list[int] = field(default_factory=list)

    def node(self) -> Node:
        with tempfile.TemporaryDirectory() as d:
            toml = NODE.format(kernel=self.kernel, vs_conntrack=self.vs_conntrack, nodest=self.nodest)
            Path(d, "node.toml").write_text(toml)
            Path(d, "iptables.save").write_text(self.iptables)
            if self.ipvs:
                Path(d, "ipvsadm.save").write_text(self.ipvs)
            return Node.load(d, seed=3)


@st.composite
def tables(draw: st.DrawFn) -> str:
    out = []
    for table, rules in (("raw", RAW), ("mangle", MANGLE), ("nat", NAT), ("filter", FILTER)):
        chosen = {
            chain: draw(st.lists(st.sampled_from(lines), unique=True, max_size=4)) if lines else []
            for chain, lines in rules.items()
        }
        if not any(chosen.values()) and table != "filter":
            continue
        out.append(f"*{table}")
        out += [f":{chain} ACCEPT [0:0]" for chain in BUILT_IN[table]]
        out += [":U - [0:0]"] if table == "filter" else []
        out += [f"-A {chain} {line}" for chain, lines in chosen.items() for line in lines]
        out.append("COMMIT")
    return "\n".join(out) + "\n"


@st.composite
def services(draw: st.DrawFn) -> str:
    out = []
    for service in draw(st.lists(st.sampled_from(SERVICES), unique=True, max_size=2)):
        persistent = " -p 60" if draw(st.booleans()) else ""
        out.append(f"-A {service} -s {draw(st.sampled_from(SCHEDULERS))}{persistent}")
        for real in draw(
            st.lists(st.sampled_from(["10.244.0.5", "10.244.0.6", "10.244.0.7"]), unique=True, min_size=1)
        ):
            out.append(f"-a {service} -r {real}:8080 -m -w {draw(st.integers(0, 3))}")
    return "\n".join(out) + "\n" if out else ""


@st.composite
def worlds(draw: st.DrawFn, events: int = 40) -> World:
    return World(
        draw(st.sampled_from(["6.1", "6.18"])),
        draw(tables()),
        draw(services()),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
        draw(st.lists(st.integers(0, 2**20), min_size=2, max_size=events)),
    )


CLIENTS = [
    ("eth0", "192.0.2.7"),
    ("eth0", "10.0.0.50"),
    ("cni0", "10.244.0.5"),
    ("cni0", "10.244.0.6"),
    ("cni0", "10.244.0.7"),
]
TARGETS = ["10.96.0.10", "10.0.0.1", "10.0.0.9", "10.244.0.5", "203.0.113.7", "10.9.0.6", "10.244.0.6"]
PORTS = [80, 53, 443, 22, 99, 8080, 5000]
Event = tuple[float, str | None, bytes]


def play(node: Node, choices: list[int]) -> tuple[list[Event], list[Journey]]:
    """Turn choices into traffic, packet by packet, with answers to what left; the events and their journeys."""
    events: list[Event] = []
    journeys: list[Journey] = []
    left: list[tuple[str, bytes]] = []
    at = 0.0
    for c in choices:
        kind, c = c % 8, c // 8
        at += (0.001, 0.01, 0.2, 5.0, 40.0)[(0, 0, 0, 0, 1, 1, 2, 3, 4)[c % 9]]
        c //= 9
        link: str | None
        link, src = CLIENTS[c % 5]
        dst, port, sport = TARGETS[c // 5 % 7], PORTS[c // 35 % 7], 40000 + c // 245 % 3
        if kind == 0:
            packet = tcp(src, sport, dst, port, "S", 1000 + c % 1000)
        elif kind == 1:
            packet = udp(src, sport, dst, port)
        elif kind == 2:
            packet = icmp(src, dst, number=sport % 7)
        elif kind in (3, 4) and left:
            link, sent = left[-1 - c % min(len(left), 4)]
            made = answer(sent)
            packet = made if made is not None else tcp(src, sport, dst, port, "R", 1)
        elif kind == 5 and events:
            _, link, packet = events[-1 - c % min(len(events), 6)]
        elif kind == 6 and left:
            link, sent = left[-1 - c % min(len(left), 4)]
            packet = error(ends(sent)[3], ends(sent)[1], sent)
        elif kind == 7 and c % 3 == 0:
            link, packet = (
                None,
                tcp("10.0.0.1", sport, dst, port, "S") if c % 2 else udp("10.244.0.1", sport, dst, port),
            )
        else:
            packet = tcp(
                src, sport, dst, port, ("A", "PA", "FA", "R", "SA", "")[c % 6], 1001, 2000, data=b"x" * (c % 5)
            )
        journey = node.send(packet, link, at)
        events.append((at, link, packet))
        journeys.append(journey)
        left += journey.own
    return events, journeys


def as_capture(node: Node, events: list[Event]) -> io.BytesIO:
    """The events as a pcapng with one interface a link."""
    out = io.BytesIO()
    writer = CaptureWriter(out, node.routing.names)
    for at, link, packet in events:
        writer.write(link or "lo", round(at * 1e9), packet)
    writer.close()
    out.seek(0)
    return out


def replayed(world: World, events: list[Event], run_length: int | None) -> tuple[Node, Replay]:
    node = world.node()
    return node, node.replay(read_capture(as_capture(node, events)), run_length)
