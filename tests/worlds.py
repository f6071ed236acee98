"""Generated nodes and the traffic that is likely to hit them: what the laws are tried on."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from craft import answer, ends, error, icmp, ip, tcp, udp
from hypothesis import strategies as st

from netemu import Node, read_capture
from netemu.capture import CaptureWriter
from netemu.errors import Refused
from netemu.node import Journey, Replay

NODE = """
kernel = "{kernel}"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24", "10.0.0.9/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/24"]
mtu = 1400
[[link]]
name = "kube-ipvs0"
kind = "dummy"
up = false
addresses = ["10.96.0.10/32"]
[[route]]
to = "default"
via = "10.0.0.254"
dev = "eth0"
{routes}
[sysctl]
{sysctl}
"""
ROUTES = [
    '[[route]]\ntype = "unreachable"\nto = "203.0.113.0/28"',
    '[[route]]\nto = "203.0.113.0/24"\nvia = "10.244.0.200"\ndev = "cni0"',
    '[[route]]\nto = "default"\nvia = "10.244.0.254"\ndev = "cni0"\ntable = "100"\n'
    '[[rule]]\npriority = 100\nfwmark = "0x7/0x7"\ntable = "100"',
]
SYSCTLS = {
    "net.ipv4.vs.conntrack": (0, 1),
    "net.ipv4.vs.expire_nodest_conn": (0, 1),
    "net.ipv4.vs.expire_quiescent_template": (1,),
    "net.ipv4.vs.sloppy_tcp": (1,),
    "net.ipv4.vs.conn_reuse_mode": (0,),
    "net.ipv4.vs.nat_icmp_send": (1,),
    "net.netfilter.nf_conntrack_udp_timeout": (0, 1, 5),
    "net.netfilter.nf_conntrack_icmp_timeout": (1,),
    "net.netfilter.nf_conntrack_tcp_timeout_syn_sent": (1,),
    "net.netfilter.nf_conntrack_tcp_timeout_close": (0, 1),
    "net.netfilter.nf_conntrack_tcp_loose": (0,),
    "net.netfilter.nf_conntrack_tcp_be_liberal": (1,),
    "net.netfilter.nf_conntrack_acct": (1,),
    "net.netfilter.nf_conntrack_max": (1, 3, 6),
    "net.ipv4.icmp_ratelimit": (0, 100),
    "net.ipv4.icmp_msgs_burst": (2,),
    "net.ipv4.icmp_msgs_per_sec": (1, 50),
    "net.ipv4.fwmark_reflect": (1,),
    "net.ipv4.ip_default_ttl": (9,),
    "net.ipv4.ipfrag_time": (1,),
    "net.ipv4.conf.all.rp_filter": (1, 2),
    "net.ipv4.conf.all.send_redirects": (0,),
    "net.ipv4.conf.all.accept_local": (1,),
    "net.ipv4.conf.all.route_localnet": (1,),
}
SETS = """create seen hash:ip timeout 3
create pair hash:ip,port counters
add seen 10.0.0.50
"""
COMMANDS = [
    "iptables -I FORWARD -p udp -j DROP",
    "iptables -I FORWARD -p tcp --dport 8080 -j REJECT --reject-with tcp-reset",
    "iptables -F FORWARD",
    "iptables -t nat -A POSTROUTING -j MASQUERADE",
    "iptables -t nat -I PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.244.0.6:80-90",
    "iptables -t nat -F",
    "iptables -Z",
    "conntrack -F",
    "ipset flush seen",
    "ipset add pair 192.0.2.7,tcp:80 -exist",
    "sysctl -w net.netfilter.nf_conntrack_udp_timeout=1",
    "sysctl -w net.netfilter.nf_conntrack_max=2",
    "ip route replace default via 10.0.0.253 dev eth0",
    "ip route replace default via 10.244.0.254 dev cni0",
    "ip route replace blackhole 203.0.113.7/32",
    "ip link set cni0 down",
    "ip link set cni0 up",
]

NAT = {
    "PREROUTING": [
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.0.5:8080",
        "-i eth0 -p udp -m udp --dport 53 -j DNAT --to-destination 10.244.0.6",
        "-d 10.0.0.9/32 -p tcp -j DNAT --to-destination 10.244.0.5-10.244.0.7",
        "-p tcp -m tcp --dport 443 -j DNAT --to-destination 10.244.0.6:8000-8002",
        "-p tcp -m tcp --dport 22 -j REDIRECT --to-ports 2222",
        "-d 10.9.0.0/24 -j NETMAP --to 10.244.0.0/24",
        "-s 10.244.0.6/32 -j RETURN",
        "-p udp -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination 10.244.0.7:53-60",
    ],
    "POSTROUTING": [
        "-o eth0 -j MASQUERADE",
        "-s 10.244.0.0/24 -o eth0 -j SNAT --to-source 10.0.0.9",
        "-s 10.244.0.0/24 -p tcp -j SNAT --to-source 10.0.0.9:1024-1030",
        "-p udp -j SNAT --to-source 10.0.0.20-10.0.0.22",
        "-p tcp -j MASQUERADE --random",
        "-s 192.0.2.0/24 -p tcp -j SNAT --to-source 10.0.0.9",
        "-p icmp -j SNAT --to-source 10.0.0.9",
        "-s 10.0.0.0/24 -j SNAT --to-source 10.0.0.9",
        "-p udp -j MASQUERADE --to-ports 4000-4001",
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
        "-m set --match-set seen src -j REJECT --reject-with icmp-port-unreachable",
        "-p udp -j SET --add-set seen src --exist --timeout 2",
        "-m set --match-set pair src,dst -j ACCEPT",
        "-m conntrack --ctstatus SEEN_REPLY -j ACCEPT",
        "-m conntrack --ctexpire 0:100 -j U",
        "-m connbytes --connbytes 2:4 --connbytes-mode packets --connbytes-dir both -j DROP",
        "-p tcp -m connlimit --connlimit-above 2 -j REJECT --reject-with tcp-reset",
        "-m hashlimit --hashlimit-above 3/sec --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name h -j DROP",
        "-j REJECT --reject-with icmp-port-unreachable",
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
        "-p tcp -j REJECT --reject-with tcp-reset",
        "-p udp -j REJECT --reject-with icmp-port-unreachable",
        "-j RETURN",
    ],
}
MANGLE = {
    "PREROUTING": [
        "-i cni0 -j MARK --set-xmark 0x7/0xffffffff",
        "-p tcp -m statistic --mode nth --every 3 --packet 0 -j MARK --set-xmark 0x7/0xffffffff",
        "-p udp -j TTL --ttl-set 1",
        "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    ],
    "FORWARD": ["-p tcp -m tcp --dport 8080 -j CONNMARK --set-xmark 0x5/0xffffffff", "-j TTL --ttl-set 9"],
    "POSTROUTING": ["-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"],
    "INPUT": ["-p udp -j TOS --set-tos 0x10/0xff"],
    "OUTPUT": ["-p tcp -j MARK --set-xmark 0x7/0xffffffff"],
}
RAW = {
    "PREROUTING": [
        "-p udp -m udp --dport 5000 -j CT --notrack",
        "-p tcp -m tcp --sport 8080 -j CT --notrack",
        "-p tcp -m tcp --dport 80 -j CT --helper ftp",
        "-p udp -m udp --dport 53 -j CT --helper tftp",
    ],
    "OUTPUT": [],
}
ZONES = {  # kernel 6.18 alone has them
    "PREROUTING": [
        "-i cni0 -j CT --zone-orig 1",
        "-p tcp -j CT --zone 2",
        "-m mark --mark 0x0 -p udp -m udp --dport 53 -j CT --zone-reply 3",
        "-s 10.0.0.0/24 -j CT --zone mark",
    ],
    "OUTPUT": ["-p icmp -j CT --zone 2"],
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
    sysctl: dict[str, int]
    routes: list[str]
    choices: list[int] = field(default_factory=list)

    def node(self) -> Node:
        with tempfile.TemporaryDirectory() as d:
            sysctl = "\n".join(f'"{name}" = {value}' for name, value in self.sysctl.items())
            toml = NODE.format(kernel=self.kernel, sysctl=sysctl, routes="\n".join(self.routes))
            Path(d, "node.toml").write_text(toml)
            Path(d, "iptables.save").write_text(self.iptables)
            Path(d, "ipset.save").write_text(SETS)
            if self.ipvs:
                Path(d, "ipvsadm.save").write_text(self.ipvs)
            return Node.load(d, seed=3)


@st.composite
def tables(draw: st.DrawFn, zones: bool) -> str:
    out = []
    raw = {chain: lines + ZONES[chain] * zones for chain, lines in RAW.items()}
    for table, rules in (("raw", raw), ("mangle", MANGLE), ("nat", NAT), ("filter", FILTER)):
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
def worlds(draw: st.DrawFn, events: int = 40, pristine: bool = False) -> World:
    """pristine: connections last, and everybody answers from where he was asked."""
    unlike = ("timeout", "max", "loose", "rp_filter", "local") if pristine else ()
    names = draw(st.lists(st.sampled_from([n for n in SYSCTLS if not any(w in n for w in unlike)]), unique=True))
    kernel = draw(st.sampled_from(["6.1", "6.18"]))
    return World(
        kernel,
        draw(tables(kernel == "6.18" and not pristine)),
        draw(services()),
        {name: draw(st.sampled_from(SYSCTLS[name])) for name in sorted(names)},
        [] if pristine else draw(st.lists(st.sampled_from(ROUTES), unique=True)),
        draw(st.lists(st.integers(0, 2**22), min_size=2, max_size=events)),
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
STRANGE = [("255.255.255.255", "10.0.0.1"), ("10.0.0.50", "127.0.0.1"),
           ("10.0.0.50", "10.0.0.255"), ("10.0.0.50", "255.255.255.255"), ("10.0.0.50", "224.0.0.1"),
           ("10.0.0.50", "0.0.0.9"), ("240.0.0.1", "10.0.0.1"), ("10.0.0.50", "203.0.113.7")]  # fmt: skip
OPTIONS = [b"\x02\x04\x05\xb4\x04\x02\x01\x01", b"\x01\x03\x03\x0e", b"\x01\x01\x08\x0a" + bytes(8),
           b"\x01\x01\x05\x0a\0\0\x07\xd0\0\0\x07\xe0", b"\x03\x00\x00\x00"]  # fmt: skip
Event = tuple[float, str | None, bytes]


class Events(list[Event]):
    """Packets with their time and link, and the commands that were given in between."""

    def __init__(self) -> None:
        self.commands: list[tuple[float, str]] = []


def pieces(packet: bytes, size: int, ident: int) -> list[bytes]:
    """A packet in fragments of `size` bytes of payload."""
    body = packet[20:]
    src, dst = (".".join(map(str, packet[k : k + 4])) for k in (12, 16))
    return [
        ip(src, dst, packet[9], body[k : k + size], ident=ident, frag=(0x2000 if k + size < len(body) else 0) | k // 8)
        for k in range(0, len(body), size)
    ]


def play(node: Node, choices: list[int], commands: bool = True) -> tuple[Events, list[Journey]]:
    """Turn choices into traffic, packet by packet, with answers to what left; the events and their journeys."""
    events = Events()
    journeys: list[Journey] = []
    left: list[tuple[str, bytes]] = []
    waiting: list[tuple[str, bytes]] = []  # fragments to be sent
    at = 0.0
    for number, c in enumerate(choices):
        kind, c = c % 16, c // 16
        at = round(at + (0.001, 0.01, 0.2, 5.0, 40.0)[(0, 0, 0, 0, 1, 1, 2, 3, 4)[c % 9]], 4)
        c //= 9
        link: str | None
        link, src = CLIENTS[c % 5]
        dst, port, sport = TARGETS[c // 5 % 7], PORTS[c // 35 % 7], 40000 + c // 245 % 3
        if kind in (0, 8):
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
            packet = error(ends(sent)[3], ends(sent)[1], sent, *((3, 1), (3, 4), (11, 0), (5, 1))[c % 4])
        elif kind == 7 and c % 3 == 0:
            link, packet = (
                None,
                tcp("10.0.0.1", sport, dst, port, "S") if c % 2 else udp("10.244.0.1", sport, dst, port),
            )
        elif kind == 9 and waiting:
            link, packet = waiting.pop(c % len(waiting))
        elif kind == 9:
            (link_, first), *waiting = [(link, f) for f in pieces(udp(src, sport, dst, port, bytes(600)), 208, number)]
            link, packet = link_, first
        elif kind == 10:
            big = bytes(1420) if c % 2 else b""
            packet = udp(src, sport, dst, port, big, ttl=(1, 2, 64)[c % 3], frag=(0x4000, 0)[c // 3 % 2])
        elif kind == 11:
            link, (src, dst) = "eth0", STRANGE[c % len(STRANGE)]
            packet = udp(src, sport, dst, port) if c % 3 else tcp(src, sport, dst, port)
        elif kind == 12:
            flags, opts = ("S", "SA", "A", "FA", "PA")[c % 5], OPTIONS[c // 5 % len(OPTIONS)]
            seq, ack = (1000, 1001, 2000, 80000)[c // 25 % 4], (0, 1001, 2001, 90000)[c // 100 % 4]
            packet = tcp(src, sport, dst, port, flags, seq, ack, (0, 1, 512, 65535)[c % 4], b"x" * (c % 3), opts)
        elif kind == 13:
            broken = bytearray(tcp(src, sport, dst, port, "S"))
            broken[(8, 22, 30, 0, 2)[c % 5]] ^= 1 << c % 7
            packet = bytes(broken)
        elif kind == 14 and commands and c % 2:
            command = COMMANDS[c // 2 % len(COMMANDS)]
            with contextlib.suppress(Refused):  # a way out over a link that is down
                node.run(command, at)
                events.commands.append((at, command))
            continue
        elif kind == 15:
            packet = ip(src, dst, (132, 47, 136, 33, 2)[c % 5], bytes.fromhex("9c400050000c0000") + bytes(8), frag=0)
        else:
            flags = ("A", "PA", "FA", "R", "SA", "")[c % 6]
            packet = tcp(src, sport, dst, port, flags, 1001, 2000, data=b"x" * (c % 5))
        if packet[0] >> 4 != 4:
            continue
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


def replayed(world: World, events: Events, run_length: int | None) -> tuple[Node, Replay]:
    node = world.node()
    return node, node.replay(read_capture(as_capture(node, events)), run_length, timeline=events.commands)
