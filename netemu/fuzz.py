"""Nodes and traffic made by chance, to be played on a real kernel too: a standing search for disagreement with Linux.

A case is a whole node (links, routes, policy rules, rules in every table, sets, virtual services) and traffic that is
likely to hit it: conversations, answers to what left, ICMP errors about it, fragments, odd flags and windows,
retransmissions, packets of the node itself, commands in between and small jumps in time. Everything is drawn from one
`random.Random`, so a case is its number and seed, and hypothesis can drive the same code (`cases`).

Every match, target, set type and scheduler is tried because it is registered: each name has a maker here, `unmade`
names those that have none (a test wants it empty), and case number k features the k-th of each. A case also has a
theme, what it is mostly about, so that states deep in one room are reached; and rules that only look on, so that many
matches see traffic that no rule has stopped yet.

Answers must fit what left. They are made from what netemu sent, and name the event that they answer, so that the lab
can turn them to the port that Linux drew.
"""

from __future__ import annotations

import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from netemu.errors import NetemuError, Refused
from netemu.ipset import SETS
from netemu.lab import SENDER, Case, Disagreement, Event, Recording, available, compare_both, play, save, shrink
from netemu.matches import MATCHES
from netemu.node import Journey, Node
from netemu.schedulers import SCHEDULERS
from netemu.targets import TARGETS

if TYPE_CHECKING:
    import argparse

    from hypothesis.strategies import SearchStrategy

HOOKS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
IN_HOOKS, OUT_HOOKS = {"PREROUTING", "INPUT", "FORWARD"}, {"FORWARD", "OUTPUT", "POSTROUTING"}
#: what a kernel was built without
ABSENT = {
    "6.18": frozenset(
        ("hash:mac", "hash:ip,mac", "hash:ip,mark", "hash:net,net", "hash:net,port,net", "match:ipvs", "dummy")
    ),
    "6.1": frozenset(("twos",)),
}
LINKS = ("eth0", "eth1", "cni0")
OWN = {"eth0": ["10.0.0.1", "10.0.0.9"], "eth1": ["192.168.7.1"], "cni0": ["10.244.0.1"]}
NEAR = {
    "eth0": ["10.0.0.50", "10.0.0.51", "192.0.2.7", "203.0.113.5"],
    "eth1": ["192.168.7.20", "192.168.7.21"],
    "cni0": ["10.244.0.5", "10.244.0.6", "10.244.0.7"],
}
VIPS = ["10.96.0.10", "10.96.0.11"]
FAR = [a for near in NEAR.values() for a in near]
MINE = [a for own in OWN.values() for a in own]
ADDRESSES = FAR + MINE + VIPS
NETS = [
    "10.0.0.0/24",
    "10.0.0.48/30",
    "10.244.0.0/16",
    "10.244.0.4/31",
    "10.0.0.0/8",
    "192.168.7.0/24",
    "192.0.2.0/25",
    "10.96.0.0/24",
    "0.0.0.0/1",
]
PORTS = [80, 53, 443, 22, 99, 8080, 5000]
CLIENT_PORTS = [40000, 40001, 41000, 777, 53]
BROADCASTS = ["10.0.0.255", "255.255.255.255", "224.0.0.9"]
MARKS = [1, 2, 7, 0x100]
TCP, UDP, ICMP, GRE, DCCP, SCTP, UDPLITE = 6, 17, 1, 47, 33, 132, 136


# ---- packets by hand ---------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """The Internet checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(
    src: str,
    dst: str,
    proto: int,
    body: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 1,
    frag: int = 0x4000,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet; `frag` is the whole 16-bit word of flags and offset."""
    ihl = 20 + len(options)
    addresses = socket.inet_aton(src) + socket.inet_aton(dst)
    head = struct.pack("!BBHHHBBH", 0x40 | ihl // 4, tos, ihl + len(body), ident, frag, ttl, proto, 0) + addresses
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def summed(src: str, dst: str, proto: int, segment: bytes, at: int) -> bytes:
    """The segment with its checksum (over the pseudo header too) written at byte `at`."""
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, proto, len(segment))
    return segment[:at] + struct.pack("!H", checksum(pseudo + segment) or 0xFFFF) + segment[at + 2 :]


def tcp_segment(
    src: str, sport: int, dst: str, dport: int, flags: int, seq: int, ack: int, win: int, options: bytes, data: bytes
) -> bytes:
    options += b"\x01" * (-len(options) % 4)
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, (5 + len(options) // 4) << 4, flags, win, 0, 0
    )
    return summed(src, dst, TCP, head + options + data, 16)


def udp_segment(src: str, sport: int, dst: str, dport: int, data: bytes, proto: int = UDP) -> bytes:
    return summed(src, dst, proto, struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data, 6)


def icmp_segment(kind: int, code: int, rest: int, data: bytes) -> bytes:
    segment = struct.pack("!BBHI", kind, code, 0, rest & 0xFFFFFFFF) + data
    return segment[:2] + struct.pack("!H", checksum(segment)) + segment[4:]


def ends(packet: bytes) -> tuple[int, str, int, str, int]:
    """(protocol, source, source port or ICMP id, destination, destination port)."""
    at = (packet[0] & 15) * 4
    src, dst = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    proto = packet[9]
    if proto == ICMP:
        return proto, src, int.from_bytes(packet[at + 4 : at + 6], "big"), dst, 0
    sport, dport = int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")
    return proto, src, sport, dst, dport


def fragments(packet: bytes, size: int) -> list[bytes]:
    """The packet cut into pieces of `size` (a multiple of 8) bytes behind the header."""
    ihl = (packet[0] & 15) * 4
    body, out = packet[ihl:], []
    for at in range(0, len(body), size):
        more = 0x2000 if at + size < len(body) else 0
        piece = body[at : at + size]
        head = packet[:2] + struct.pack("!HHH", ihl + len(piece), 0, more | at // 8) + packet[8:10] + b"\0\0"
        head = head[:4] + packet[4:6] + head[6:] + packet[12:ihl]
        out.append(head[:10] + struct.pack("!H", checksum(head)) + head[12:] + piece)
    return out


def with_flag(packet: bytes) -> bytes:
    """The packet, not to be cut any further."""
    head = packet[:6] + bytes([packet[6] | 0x40]) + packet[7:10] + b"\0\0" + packet[12 : (packet[0] & 15) * 4]
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[len(head) :]


# ---- what a rule may say -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theme:
    """What a case is mostly about.

    protocols   how often a conversation is of each       chatty  how likely a chain has rules; of these, one is drawn
    nat         the same for the chains of nat            watch   matches that the rules which only look on ask for
    services    how likely there are virtual services     sets    how likely there are sets
    fresh       how likely a packet begins a conversation; talks: how many go on at a time
    odd         how much oftener than usual TCP is odd    errors  how likely a packet is an ICMP error
    """

    protocols: dict[int, int]
    chatty: tuple[float, ...] = (0.25, 0.5, 0.8)
    nat: float = 0.0
    watch: tuple[str, ...] = ()
    services: float = 0.5
    sets: float = 0.6
    fresh: float = 0.18
    talks: int = 5
    odd: float = 1.0
    errors: float = 0.08


#: how often a conversation is of a protocol
PROTOCOLS = {TCP: 50, UDP: 28, ICMP: 12, SCTP: 0, GRE: 2, UDPLITE: 0, DCCP: 0}
THEMES = {
    "all": Theme(PROTOCOLS),
    "tcp": Theme({TCP: 1}, (0.1, 0.25), 0.3, ("conntrack", "state", "connbytes", "connlimit"), 0.1, 0.1, 0.08, 2, 3.0),
    "nat": Theme(
        {TCP: 50, UDP: 35, ICMP: 10, GRE: 5}, (0.1, 0.2), 0.9, ("conntrack", "connmark"), 0.1, 0.1, 0.3, 4, 1.0, 0.16
    ),
    "sets": Theme({TCP: 45, UDP: 40, ICMP: 15}, (0.2, 0.4), 0.2, ("set", "set", "set", "mark"), 0.1, 1.0, 0.35),
    "ipvs": Theme({TCP: 65, UDP: 35}, (0.1, 0.25), 0.3, ("ipvs", "conntrack", "mark"), 1.0, 0.2, 0.22, 4, 1.6, 0.1),
}
#: which theme a case has, by its number; virtual services stand on 6.1 only
ORDER = {
    "6.18": ("all", "tcp", "all", "sets", "nat"),
    "6.1": ("ipvs", "all", "ipvs", "tcp", "ipvs", "sets", "ipvs", "nat"),
}


@dataclass
class Scene:
    """Where and for what something is made.

    hooks   the hooks that reach the chain (a user chain may be reached from several)
    sets    name -> type of every set        serial  how many named tables (hashlimit, rateest) were made
    calm    no rule remembers anything, so that many packets may go through together
    marked  address whose packets come to a service that asks for a mark
    steered  a policy rule asks for a mark
    """

    rng: Random
    kernel: str
    table: str = "filter"
    chain: str = "FORWARD"
    hooks: frozenset[str] = frozenset({"FORWARD"})
    sets: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    serial: int = 0
    theme: Theme = THEMES["all"]
    calm: bool = False
    marked: str = ""
    steered: bool = False

    def of(self, *what: Any) -> Any:
        """One of these."""
        return self.rng.choice(what)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    @property
    def no(self) -> str:
        """Sometimes an inversion."""
        return "! " if self.chance(0.25) else ""

    def only(self, hooks: set[str]) -> bool:
        """Is the chain reached from these hooks alone?"""
        return self.hooks <= hooks

    def ports(self) -> str:
        port = self.rng.choice(PORTS + CLIENT_PORTS)
        return str(port) if self.chance(0.7) else self.of(f"{port}:{port + 400}", f":{port}", f"{port}:")


@dataclass(frozen=True)
class Clause:
    """Words of a rule, and the protocol that they need."""

    text: str
    proto: str = ""


Maker = Callable[[Scene], "Clause | None"]
MATCH_MAKERS: dict[str, Maker] = {}
TARGET_MAKERS: dict[str, Maker] = {}


def makes(registry: dict[str, Maker], *names: str) -> Callable[[Maker], Maker]:
    def enter(maker: Maker) -> Maker:
        for name in names:
            registry[name] = maker
        return maker

    return enter


def match(*names: str) -> Callable[[Maker], Maker]:
    return makes(MATCH_MAKERS, *names)


def target(*names: str) -> Callable[[Maker], Maker]:
    return makes(TARGET_MAKERS, *names)


@match("tcp")
def _tcp(s: Scene) -> Clause:
    words = "-m tcp"
    if s.chance(0.5):
        words += f" {s.no}--dport {s.ports()}"
    if s.chance(0.3):
        words += f" {s.no}--sport {s.ports()}"
    if s.chance(0.4):
        words += f" {s.no}" + s.of(
            "--syn",
            "--tcp-flags SYN,ACK SYN",
            "--tcp-flags FIN,RST NONE",
            "--tcp-flags ALL ACK,PSH",
            "--tcp-flags RST RST",
        )
    if s.chance(0.15):
        words += f" {s.no}--tcp-option {s.of(2, 3, 4, 8)}"
    return Clause(words, "tcp")


@match("udp")
def _udp(s: Scene) -> Clause:
    return Clause(f"-m udp {s.no}{s.of('--dport', '--sport')} {s.ports()}", "udp")


@match("icmp")
def _icmp(s: Scene) -> Clause:
    return Clause(f"-m icmp {s.no}--icmp-type {s.of('8', '0', '3', '3/1', '3/3', '11', 'any', 'echo-request')}", "icmp")


@match("multiport")
def _multiport(s: Scene) -> Clause:
    ports = ",".join(s.rng.sample([str(p) for p in PORTS], s.of(1, 2, 3)) + s.of([], ["40000:41000"]))
    return Clause(f"-m multiport {s.no}{s.of('--dports', '--sports', '--ports')} {ports}", s.of("tcp", "udp", "sctp"))


@match("sctp")
def _sctp(s: Scene) -> Clause:
    words = f"-m sctp {s.no}{s.of('--dport', '--sport')} {s.ports()}"
    if s.chance(0.5):
        words += f" {s.no}--chunk-types {s.of('any INIT', 'all DATA', 'only INIT', 'any DATA:Be,COOKIE_ECHO')}"
    return Clause(words, "sctp")


@match("dccp")
def _dccp(s: Scene) -> Clause:
    words = f"-m dccp {s.no}{s.of('--dport', '--sport')} {s.ports()}"
    if s.chance(0.5):
        words += f" {s.no}--dccp-types {s.of('REQUEST', 'DATA,ACK', 'RESPONSE,INVALID')}"
    return Clause(words, "dccp")


@match("mark")
def _mark(s: Scene) -> Clause:
    return Clause(f"-m mark {s.no}--mark {s.of(0, *MARKS)}{s.of('', '/0x1', '/0x107')}")


@match("connmark")
def _connmark(s: Scene) -> Clause:
    return Clause(f"-m connmark {s.no}--mark {s.of(0, *MARKS)}{s.of('', '/0x3')}")


@match("comment")
def _comment(s: Scene) -> Clause:
    return Clause("-m comment --comment " + s.of("plain", '"two words"', '"it is: \\"so\\""'))


@match("state")
def _state(s: Scene) -> Clause:
    states = s.of("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "RELATED,ESTABLISHED", "NEW,INVALID")
    return Clause(f"-m state {s.no}--state {states}")


@match("conntrack")
def _conntrack(s: Scene) -> Clause:
    plain = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
    some = [
        f"--ctstate {s.of(*plain, 'SNAT', 'DNAT', 'RELATED,ESTABLISHED', 'DNAT,NEW')}",
        f"--ctproto {s.of('tcp', 'udp', 'icmp')}",
        f"--ctorigsrc {s.rng.choice(ADDRESSES + NETS)}",
        f"--ctorigdst {s.rng.choice(ADDRESSES + NETS)}",
        f"--ctreplsrc {s.rng.choice(ADDRESSES + NETS)}",
        f"--ctrepldst {s.rng.choice(ADDRESSES + NETS)}",
        f"--ctstatus {s.of('NONE', 'SEEN_REPLY', 'ASSURED', 'CONFIRMED', 'SEEN_REPLY,ASSURED')}",
        f"--ctexpire {s.of('0:20', '40:100', '130:500000')}",
    ]
    chosen = s.rng.sample(some, s.of(1, 1, 2))
    if any("ctexpire" in c for c in chosen):
        # before it is confirmed, what is left to a connection depends on how long the machine has been up
        chosen = [c for c in chosen if "ctexpire" in c] + ["--ctstatus CONFIRMED"]
    if s.chance(0.1):
        chosen += [f"--ctproto {s.of('tcp', 'udp')}"] if not any("ctproto" in c for c in chosen) else []
        if "--ctproto" in chosen[-1] and s.chance(0.7):
            chosen.append(f"--ct{s.of('origdst', 'origsrc', 'replsrc', 'repldst')}port {s.rng.choice(PORTS)}")
    words = [("" if c.startswith("--ctproto") or c.endswith(" CONFIRMED") else s.no) + c for c in chosen]
    if s.chance(0.2):
        words.append(f"--ctdir {s.of('ORIGINAL', 'REPLY')}")
    return Clause("-m conntrack " + " ".join(words))


@match("connbytes")
def _connbytes(s: Scene) -> Clause:
    mode = s.of("packets", "bytes", "avgpkt")
    lo = s.of(1, 2, 3) if mode == "packets" else s.of(40, 60, 100, 200)
    return Clause(
        f"-m connbytes {s.no}--connbytes {lo}:{s.of('', lo + 2, lo * 3)} --connbytes-mode {mode}"
        f" --connbytes-dir {s.of('original', 'reply', 'both')}"
    )


@match("connlimit")
def _connlimit(s: Scene) -> Clause:
    kind = s.of("--connlimit-above", "--connlimit-upto")
    return Clause(
        f"-m connlimit {kind} {s.of(0, 1, 2, 3)} --connlimit-mask {s.of(0, 24, 32)} --connlimit-{s.of('s', 'd')}addr"
    )


@match("set")
def _set(s: Scene) -> Clause | None:
    if not s.sets:
        return None
    name = s.rng.choice(sorted(s.sets))
    words = f"-m set {s.no}--match-set {name} {dirs(s, s.sets[name])}"
    if s.chance(0.4) and s.sets[name].startswith("hash:") and "net" in s.sets[name]:
        words += " --return-nomatch"
    if "counters" in s.options.get(name, "") and s.chance(0.6):
        words += " " + s.of(
            "! --update-counters",
            f"{s.no}--packets-eq {s.of(1, 2)}",
            f"--packets-gt {s.of(0, 1, 2)}",
            f"--bytes-lt {s.of(100, 200)}",
            "! --update-subcounters",
        )
    return Clause(words)


def dirs(s: Scene, kind: str) -> str:
    """`src,dst,...` for a set of this type; rarely one word too few or too many."""
    n = 1 if kind == "list:set" else kind.count(",") + 1
    if s.chance(0.12):
        n = max(1, n + s.of(-1, 1))
    return ",".join(s.of("src", "dst") for _ in range(n))


@match("addrtype")
def _addrtype(s: Scene) -> Clause:
    types = s.of("LOCAL", "UNICAST", "BROADCAST", "MULTICAST", "LOCAL,BROADCAST")
    words = f"-m addrtype {s.no}{s.of('--src-type', '--dst-type')} {types}"
    if s.chance(0.2) and s.only({"PREROUTING", "INPUT"}):
        words += " --limit-iface-in"
    elif s.chance(0.2) and s.only({"OUTPUT", "POSTROUTING"}):
        words += " --limit-iface-out"
    return Clause(words)


@match("physdev")
def _physdev(s: Scene) -> Clause | None:
    if not s.only({"FORWARD"}):
        return None
    return Clause(
        "-m physdev " + s.of(f"{s.no}--physdev-in eth0", f"{s.no}--physdev-is-bridged", f"{s.no}--physdev-is-in")
    )


@match("iprange")
def _iprange(s: Scene) -> Clause:
    a, b = s.of(("10.0.0.9", "10.0.0.50"), ("10.244.0.5", "10.244.0.6"), ("192.0.2.7", "203.0.113.5"))
    return Clause(f"-m iprange {s.no}{s.of('--src-range', '--dst-range')} {a}-{b}")


@match("owner")
def _owner(s: Scene) -> Clause | None:
    if not s.only({"OUTPUT", "POSTROUTING"}):
        return None
    who = s.of("--socket-exists", "--uid-owner 0", "--uid-owner 1-9", "--gid-owner 0-4", "--gid-owner 5 --suppl-groups")
    return Clause(f"-m owner {s.no}{who}")


@match("cpu")
def _cpu(s: Scene) -> Clause:
    return Clause(f"-m cpu {s.no}--cpu 4095")  # the one that plays may be any; it is not this


@match("mac")
def _mac(s: Scene) -> Clause | None:
    if not s.only(IN_HOOKS):
        return None
    return Clause(f"-m mac {s.no}--mac-source {s.of('02:00:00:00:00:fe', '02:00:00:00:00:01')}")


@match("pkttype")
def _pkttype(s: Scene) -> Clause:
    return Clause(f"-m pkttype {s.no}--pkt-type {s.of('unicast', 'broadcast', 'multicast')}")


@match("length")
def _length(s: Scene) -> Clause:
    return Clause(f"-m length {s.no}--length {s.of('40', '48', '36:60', '0:47', '61:2000')}")


@match("ttl")
def _ttl(s: Scene) -> Clause:
    kind = s.of("--ttl-eq", "--ttl-lt", "--ttl-gt")
    return Clause(f"-m ttl {s.no if kind == '--ttl-eq' else ''}{kind} {s.of(1, 2, 63, 64)}")


@match("tos")
def _tos(s: Scene) -> Clause:
    return Clause(f"-m tos {s.no}--tos {s.of('0x10/0xff', '0x28/0x3f', '0x00/0xff', '0xc0/0xe0')}")


@match("dscp")
def _dscp(s: Scene) -> Clause:
    return Clause(f"-m dscp {s.no}{s.of('--dscp 0', '--dscp 0x0a', '--dscp 46', '--dscp-class cs1')}")


@match("ecn")
def _ecn(s: Scene) -> Clause:
    if s.chance(0.5):
        return Clause(f"-m ecn {s.no}--ecn-ip-ect {s.of(0, 1, 2, 3)}")
    return Clause(f"-m ecn {s.no}{s.of('--ecn-tcp-cwr', '--ecn-tcp-ece')}", "tcp")


@match("realm")
def _realm(s: Scene) -> Clause | None:
    if not s.only({"INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}):
        return None
    return Clause(f"-m realm {s.no}--realm {s.of(0, 3, '0x3/0xf')}")


@match("statistic")
def _statistic(s: Scene) -> Clause:
    if s.chance(0.15):
        return Clause(f"-m statistic --mode random {s.no}--probability {s.of('0', '1')}")
    every = s.of(2, 3, 4)
    return Clause(f"-m statistic --mode nth {s.no}--every {every} --packet {s.rng.randrange(every)}")


@match("limit")
def _limit(s: Scene) -> Clause:
    return Clause(f"-m limit --limit {s.of('4/min', '20/hour', '1/sec', '6/hour')} --limit-burst {s.of(1, 2, 4)}")


@match("quota")
def _quota(s: Scene) -> Clause:
    return Clause(f"-m quota {s.no}--quota {s.of(100, 200, 500)}")


@match("recent")
def _recent(s: Scene) -> Clause:
    words = f"-m recent {s.no}" + s.of("--set", "--rcheck", "--update", "--remove")
    if "--rcheck" in words or "--update" in words:
        words += s.of(
            "",
            f" --hitcount {s.of(1, 2, 3)}",
            f" --seconds {s.of(30, 60)}",
            f" --seconds 60 --hitcount {s.of(2, 4)}",
            " --rttl",
        )
    return Clause(f"{words} --name r{s.of(0, 1)} --mask 255.255.255.{s.of(255, 255, 0)} {s.of('--rsource', '--rdest')}")


@match("hashlimit")
def _hashlimit(s: Scene) -> Clause:
    s.serial += 1
    words = f"-m hashlimit {s.of('--hashlimit-upto', '--hashlimit-above')} "
    mode = s.of("packets", "packets", "bytes")
    words += (
        f"{s.of('4/min', '20/hour', '1/sec')} --hashlimit-burst {s.of(1, 2, 3)}"
        if mode == "packets"
        else f"{s.of('200b/s', '1kb/s')}"
    )
    if s.chance(0.8):
        key = s.of("srcip", "dstip", "srcip,dstport", "dstip,dstport", "srcip,srcport,dstip,dstport")
        words += f" --hashlimit-mode {key}"
    if s.chance(0.2) and "srcip" in words:
        words += " --hashlimit-srcmask 24"
    return Clause(f"{words} --hashlimit-name h{s.serial}")


@match("string")
def _string(s: Scene) -> Clause:
    what = s.of('--string "abc"', '--string "xx"', '--string "GET"', '--hex-string "|7878|"', '--string "ABC" --icase')
    return Clause(
        f"-m string {s.no}{what} --algo {s.of('bm', 'kmp')}{s.of('', ' --from 28', ' --to 60', ' --from 20 --to 44')}"
    )


@match("u32")
def _u32(s: Scene) -> Clause:
    tests = (
        "0x6&0xff=0x6,0x11", "0x0>>0x16&0x3c@0x0>>0x10=0x50:0x1bb,0x9c40", "0x8>>0x18=0x40", "0x4&0x3fff=0x0",
        "0x0&0xffff=0x28:0x40&&0x6&0xff=0x11", "0x3e8=0x1",
    )  # fmt: skip
    return Clause(f'-m u32 {s.no}--u32 "{s.of(*tests)}"')


@match("tcpmss")
def _tcpmss(s: Scene) -> Clause:
    return Clause(f"-m tcp --tcp-flags SYN,RST SYN -m tcpmss {s.no}--mss {s.of('1460', '500:1400', '0:536')}", "tcp")


@match("time")
def _time(s: Scene) -> Clause:
    return Clause(
        "-m time "
        + s.of(
            "--timestart 00:00:00 --timestop 23:59:59",
            "--weekdays Mon,Tue,Wed,Thu,Fri,Sat,Sun",
            "! --weekdays Mon,Tue,Wed,Thu,Fri,Sat,Sun",
            "--datestop 2037-12-31T00:00:00",
        )
    )


@match("rpfilter")
def _rpfilter(s: Scene) -> Clause | None:
    if s.table not in ("raw", "mangle") or not s.only({"PREROUTING"}):
        return None
    return Clause(
        "-m rpfilter"
        + "".join(w for w in (" --loose", " --validmark", " --accept-local", " --invert") if s.chance(0.3))
    )


@match("ipvs")
def _ipvs(s: Scene) -> Clause | None:
    if "match:ipvs" in ABSENT[s.kernel]:
        return None
    return Clause(
        "-m ipvs "
        + s.of(
            f"{s.no}--ipvs",
            f"--vaddr {s.rng.choice(VIPS)}/32",
            f"--vport {s.rng.choice(PORTS)}",
            f"--vproto {s.of(6, 17)}",
            f"{s.no}--vmethod {s.of('MASQ', 'GATE', 'IPIP')}",
            "--vdir ORIGINAL --vproto 6",
        )
    )


@match("esp", "ah", "ipcomp")
def _spi(s: Scene) -> Clause:
    name = s.of("esp", "ah", "ipcomp")
    return Clause(f"-m {name} {s.no}--{name}spi {s.of('5', '0:300', '1:5')}", name)


@match("policy")
def _policy(s: Scene) -> Clause | None:
    ways = [d for d, hooks in (("in", IN_HOOKS), ("out", OUT_HOOKS)) if s.only(hooks)]
    return Clause(f"-m policy --dir {s.rng.choice(ways)} --pol {s.of('none', 'ipsec')}") if ways else None


@match("bpf")
def _bpf(s: Scene) -> Clause:
    programs = (
        "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0",
        "2,48 0 0 8,22 0 0 0",
        "6,177 0 0 0,72 0 0 2,21 0 2 80,6 0 0 1,6 0 0 0,6 0 0 0",
        "4,128 0 0 0,37 0 1 60,6 0 0 1,6 0 0 0",
    )
    return Clause(f'-m bpf --bytecode "{s.rng.choice(programs)}"')


@match("connlabel")
def _connlabel(s: Scene) -> Clause:
    return Clause(f"-m connlabel {s.no}--label {s.of(1, 2)}{s.of('', ' --set')}")


@match("helper")
def _helper(s: Scene) -> Clause:
    return Clause(f"-m helper {s.no}--helper {s.of('ftp', 'sip')}")


@match("cluster")
def _cluster(s: Scene) -> Clause:
    who = f"{s.no}--cluster-local-node {s.of(1, 2)}"
    return Clause(f"-m cluster --cluster-total-nodes 2 {who} --cluster-hash-seed {s.of(1, 0xDEADBEEF)}")


@match("devgroup")
def _devgroup(s: Scene) -> Clause | None:
    sides = [side for side, hooks in (("src", IN_HOOKS), ("dst", OUT_HOOKS)) if s.only(hooks)]
    return Clause(f"-m devgroup {s.no}--{s.rng.choice(sides)}-group {s.of(0, 1, '0x10/0xf')}") if sides else None


@match("socket")
def _socket(s: Scene) -> Clause | None:
    return Clause(f"-m socket{s.of('', ' --transparent')}") if s.only({"PREROUTING", "INPUT"}) else None


@match("nfacct")
def _nfacct(s: Scene) -> None:
    """Needs an object that only the nfacct tool makes: no dump of a node holds it."""


# ---- targets


def to_ports(s: Scene) -> str:
    """A destination port, or several where the kernel's choice can be known."""
    port = s.rng.choice(PORTS)
    if s.chance(0.7):
        return str(port)
    if s.kernel == "6.1":
        return f"8000-8010/{port}"
    return f"{port}-{port + 3}"


@target("ACCEPT")
def _accept(s: Scene) -> Clause:
    return Clause("ACCEPT")


@target("RETURN")
def _return(s: Scene) -> Clause:
    return Clause("RETURN")


@target("DROP")
def _drop(s: Scene) -> Clause | None:
    return None if s.table == "nat" else Clause("DROP")


@target("REJECT")
def _reject(s: Scene) -> Clause | None:
    if s.table != "filter" or not s.only(set(HOOKS["filter"])):
        return None
    if s.chance(0.4):
        return Clause("REJECT --reject-with tcp-reset", "tcp")
    kind = s.of("net-unreachable", "host-unreachable", "proto-unreachable", "admin-prohibited", "host-prohibited")
    return Clause(s.of("REJECT", f"REJECT --reject-with icmp-{kind}"))


@target("MARK")
def _set_mark(s: Scene) -> Clause:
    kind = s.of("--set-mark", "--set-xmark", "--or-mark", "--and-mark", "--xor-mark")
    return Clause(f"MARK {kind} {s.rng.choice(MARKS)}{'/0x3' if 'set' in kind and s.chance(0.3) else ''}")


@target("CONNMARK")
def _set_connmark(s: Scene) -> Clause:
    return Clause(
        "CONNMARK "
        + s.of(
            f"--set-mark {s.rng.choice(MARKS)}",
            f"--set-xmark {s.rng.choice(MARKS)}/0x3",
            "--save-mark",
            "--restore-mark",
            "--save-mark --nfmask 0xff --ctmask 0x3",
            "--restore-mark --nfmask 0x3 --ctmask 0xff",
            "--restore-mark --mask 0x7",
        )
    )


@target("TTL")
def _set_ttl(s: Scene) -> Clause | None:
    return (
        Clause(f"TTL {s.of('--ttl-set 2', '--ttl-inc 1', '--ttl-dec 1', '--ttl-set 64', '--ttl-dec 62')}")
        if s.table == "mangle"
        else None
    )


@target("TOS")
def _set_tos(s: Scene) -> Clause | None:
    return (
        Clause(f"TOS {s.of('--set-tos 0x10/0x3f', '--set-tos 0x28', '--or-tos 0x2', '--and-tos 0xfc')}")
        if s.table == "mangle"
        else None
    )


@target("DSCP")
def _set_dscp(s: Scene) -> Clause | None:
    return Clause(f"DSCP {s.of('--set-dscp 10', '--set-dscp-class ef')}") if s.table == "mangle" else None


@target("ECN")
def _set_ecn(s: Scene) -> Clause | None:
    if s.table != "mangle":
        return None
    return Clause("ECN --ecn-tcp-remove", "tcp")


@target("TCPMSS")
def _set_mss(s: Scene) -> Clause | None:
    if s.table != "mangle" or not s.only(OUT_HOOKS):
        return None
    return Clause(f"TCPMSS {s.of('--set-mss 1000', '--set-mss 300', '--clamp-mss-to-pmtu')}", "tcp --syn")


@target("LOG")
def _log(s: Scene) -> Clause:
    return Clause("LOG --log-prefix x")


@target("NFLOG")
def _nflog(s: Scene) -> Clause:
    return Clause("NFLOG --nflog-group 3")


@target("AUDIT")
def _audit(s: Scene) -> Clause:
    return Clause("AUDIT --type accept")


@target("CLASSIFY")
def _classify(s: Scene) -> Clause | None:
    return Clause("CLASSIFY --set-class 1:2") if s.table == "mangle" and s.only(OUT_HOOKS) else None


@target("CHECKSUM")
def _checksum(s: Scene) -> Clause | None:
    return Clause("CHECKSUM --checksum-fill") if s.table == "mangle" and s.only({"POSTROUTING"}) else None


@target("TRACE")
def _trace(s: Scene) -> Clause | None:
    return Clause("TRACE") if s.table == "raw" else None


@target("NOTRACK")
def _notrack(s: Scene) -> Clause | None:
    return Clause("NOTRACK") if s.table == "raw" else None


@target("CT")
def _track_so(s: Scene) -> Clause | None:
    if s.table != "raw":
        return None
    if s.chance(0.3) and s.kernel != "6.1":
        return Clause(f"CT {s.of('--zone', '--zone-orig', '--zone-reply')} {s.of(1, 2, 'mark')}")
    if s.chance(0.2):
        return Clause(*s.of(("CT --helper ftp", "tcp"), ("CT --helper tftp", "udp"), ("CT --helper sip", "udp")))
    return Clause(s.of("CT --notrack", "CT --notrack", "CT", "CT --ctevents new"))


@target("DNAT")
def _dnat(s: Scene) -> Clause | None:
    if s.table != "nat" or not s.only({"PREROUTING", "OUTPUT"}):
        return None
    to = s.of(*NEAR["cni0"], *NEAR["eth1"], "10.244.0.5-10.244.0.7", "10.0.0.50", "10.0.0.1", "10.244.0.6")
    if s.chance(0.4):
        return Clause(f"DNAT --to-destination {to}{s.of('', ' --persistent')}")
    return Clause(f"DNAT --to-destination {to}:{to_ports(s)}{s.of('', ' --persistent')}", s.of("tcp", "udp"))


@target("SNAT")
def _snat(s: Scene) -> Clause | None:
    if s.table != "nat" or not s.only({"POSTROUTING", "INPUT"}):
        return None
    to = s.of("10.0.0.9", "192.168.7.1", "10.0.0.20-10.0.0.22", "10.0.0.20-10.0.0.40", "10.0.0.1", "10.0.0.77")
    if s.chance(0.7):
        return Clause(f"SNAT --to-source {to}{s.of('', '', '', ' --persistent', ' --random', ' --random-fully')}")
    return Clause(f"SNAT --to-source {to}:{s.of('2000', '40000-40003', '1024-65535')}", s.of("tcp", "udp"))


@target("MASQUERADE")
def _masquerade(s: Scene) -> Clause | None:
    if s.table != "nat" or not s.only({"POSTROUTING"}):
        return None
    return Clause(s.of("MASQUERADE", "MASQUERADE", "MASQUERADE", "MASQUERADE --random", "MASQUERADE --random-fully"))


@target("REDIRECT")
def _redirect(s: Scene) -> Clause | None:
    if s.table != "nat" or not s.only({"PREROUTING", "OUTPUT"}):
        return None
    return Clause(
        f"REDIRECT --to-ports {to_ports(s).split('/')[0] if s.kernel != '6.1' else s.rng.choice(PORTS)}",
        s.of("tcp", "udp"),
    )


@target("NETMAP")
def _netmap(s: Scene) -> Clause | None:
    if s.table != "nat":
        return None
    return Clause(f"NETMAP --to {s.of('10.244.0.0/24', '10.0.0.0/24', '192.168.7.0/28')}")


@target("SET")
def _put_in_set(s: Scene) -> Clause | None:
    if not s.sets:
        return None
    name = s.rng.choice(sorted(s.sets))
    if s.table == "mangle" and "skbinfo" in s.options[name] and s.chance(0.7):
        return Clause(f"SET --map-set {name} {dirs(s, s.sets[name])} --map-mark")
    if s.chance(0.3):
        return Clause(f"SET --del-set {name} {dirs(s, s.sets[name])}")
    more = s.of("", " --exist", *([" --exist --timeout 50", " --timeout 20"] if "timeout" in s.options[name] else []))
    return Clause(f"SET --add-set {name} {dirs(s, s.sets[name])}{more}")


@target("TCPOPTSTRIP")
def _strip_options(s: Scene) -> Clause | None:
    return (
        Clause(f"TCPOPTSTRIP --strip-options {s.of('mss', 'wscale,sack-permitted', '8,3', 'timestamp')}", "tcp")
        if s.table == "mangle"
        else None
    )


@target("HMARK")
def _hash_mark(s: Scene) -> Clause | None:
    if s.table != "mangle":
        return None
    tuple_ = s.of("src,dst", "src,dst,sport,dport,proto", "ct,src,dst,sport,dport", "ct,src", "sport,dport,proto")
    return Clause(
        f"HMARK --hmark-tuple {tuple_} --hmark-mod {s.of(2, 7, 100)} --hmark-offset {s.of(1, 100)}"
        f" --hmark-rnd {s.of('0x1', '0xfeedcafe')}"
    )


@target("RATEEST")
def _rate_estimator(s: Scene) -> Clause:
    s.serial += 1
    return Clause(f"RATEEST --rateest-name e{s.serial} --rateest-interval 250ms --rateest-ewmalog 500ms")


@target("TEE")
def _tee(s: Scene) -> Clause | None:
    if not s.only({"PREROUTING", "FORWARD"}):
        return None  # copies of copies: what mangle OUTPUT does to a copy of a broadcast is not modelled
    if any("mac" in kind for kind in s.sets.values()):
        return None  # a copy's MAC addresses are whatever was in that memory before
    return Clause(f"TEE --gateway {s.rng.choice(FAR)}{s.of('', '', ' --oif eth1')}") if s.table == "mangle" else None


@target("TPROXY")
def _tproxy(s: Scene) -> Clause | None:
    if s.table != "mangle" or not s.only({"PREROUTING"}):
        return None
    return Clause(f"TPROXY --on-port {s.of(0, 8080)} --tproxy-mark {s.of('0x1/0x1', '0x7')}", s.of("tcp", "udp"))


@target("NFQUEUE")
def _queue(s: Scene) -> Clause:
    bypass = " --queue-bypass" if s.table != "nat" and s.chance(0.7) else ""
    return Clause(f"NFQUEUE --queue-num {s.of(0, 9)}{bypass}")


@target("QUEUE")
def _old_queue(s: Scene) -> Clause:
    return Clause("QUEUE")


@target("LED", "IDLETIMER", "SECMARK", "CONNSECMARK", "SYNPROXY")
def _never(s: Scene) -> None:
    """Left out: LED and IDLETIMER show in /sys of the whole machine, the marks need a security module that namespaces
    have not, and SYNPROXY's cookies cannot be foreseen."""


# ---- sets --------------------------------------------------------------------------------------------------------


def _address(s: Scene) -> str:
    return str(s.rng.choice(ADDRESSES))


def _net(s: Scene) -> str:
    return str(s.rng.choice(NETS[:-1])) if s.chance(0.6) else _address(s)


def _port(s: Scene) -> str:
    if s.chance(0.1):
        return str(s.of("icmp:8/0", "icmp:0/0", "sctp:80", "47:0"))
    return f"{s.of('tcp', 'udp')}:{s.rng.choice(PORTS + CLIENT_PORTS)}"


def _mac_address(s: Scene) -> str:
    return str(s.of("02:00:00:00:00:fe", "02:00:00:00:00:33"))


def _bitmap_address(s: Scene) -> str:
    return f"10.0.0.{s.of(1, 9, 50, 51, 77)}"


#: type -> (words of `create` to choose from, parts of an element)
SET_MAKERS: dict[str, tuple[list[str], list[Callable[[Scene], str]]]] = {
    "bitmap:ip": (["range 10.0.0.0/24", "range 10.0.0.0-10.0.0.100"], [_bitmap_address]),
    "bitmap:ip,mac": (["range 10.0.0.0/24"], [_bitmap_address, _mac_address]),
    "bitmap:port": (["range 1-50000"], [lambda s: str(s.rng.choice(PORTS + CLIENT_PORTS))]),
    "hash:ip": (["", "netmask 24", "maxelem 8"], [_address]),
    "hash:mac": ([""], [_mac_address]),
    "hash:ip,mac": ([""], [_address, _mac_address]),
    "hash:ip,mark": (["", "markmask 0x3"], [_address, lambda s: hex(s.rng.choice(MARKS))]),
    "hash:ip,port": ([""], [_address, _port]),
    "hash:ip,port,ip": ([""], [_address, _port, _address]),
    "hash:ip,port,net": ([""], [_address, _port, _net]),
    "hash:net": (["", "maxelem 8"], [_net]),
    "hash:net,net": ([""], [_net, _net]),
    "hash:net,port": ([""], [_net, _port]),
    "hash:net,port,net": ([""], [_net, _port, _net]),
    "hash:net,iface": ([""], [_net, lambda s: str(s.rng.choice(LINKS))]),
    "list:set": (["", "size 4"], []),
}


def element(s: Scene, kind: str, options: str) -> str:
    """An element for such a set, with the words that its extensions allow."""
    out = ",".join(part(s) for part in SET_MAKERS[kind][1])
    if "timeout" in options and s.chance(0.4):
        out += f" timeout {s.of(0, 30, 300)}"
    if "net" in kind and "maxelem" not in options and s.chance(0.3):
        out += " nomatch"
    if "skbinfo" in options:
        out += f" skbmark {hex(s.rng.choice(MARKS))}/0xff"
    return out


def make_sets(s: Scene, featured: str) -> str:
    """A few sets (names S0, S1, ...), one of them of the featured type; the words for `ipset restore`."""
    kinds = [k for k in SETS if k not in ABSENT[s.kernel] and k in SET_MAKERS]
    plain = [k for k in kinds if k != "list:set"]
    chosen = s.rng.sample(plain, s.of(0, 1, 2))
    if featured in plain:
        chosen.append(featured)
    out = []
    for n, kind in enumerate(chosen):
        name = f"S{n}"
        options = s.rng.choice(SET_MAKERS[kind][0])
        for word in ("timeout 100", "counters", "comment", "skbinfo"):
            if s.chance(0.2):
                options += f" {word}"
        s.sets[name], s.options[name] = kind, options
        out.append(f"create {name} {kind} {options}".rstrip())
        for what in dict.fromkeys(
            element(s, kind, options)
            for _ in range(s.rng.randrange(12 if "net" in kind and "maxelem" not in options else 7))
        ):
            out.append(f"add {name} {what} -exist")
    if chosen and (featured == "list:set" or s.chance(0.3)):
        options = s.rng.choice(SET_MAKERS["list:set"][0]) + s.of("", " counters", " counters", " timeout 100")
        members = s.rng.sample(sorted(s.sets), min(len(s.sets), s.of(1, 2, 3)))
        s.sets["L"], s.options["L"] = "list:set", options
        out.append(f"create L list:set {options}".rstrip())
        out += [f"add L {m}" for m in members]
    return "".join(line + "\n" for line in out)


# ---- virtual services --------------------------------------------------------------------------------------------

#: scheduler -> flags to choose from
SCHEDULER_MAKERS: dict[str, list[str]] = {
    **{
        name: [""]
        for name in ("rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "lblc", "lblcr", "dh", "twos", "none")
    },
    "sh": ["", "-b sh-port", "-b sh-fallback", "-b sh-fallback,sh-port"],
    "mh": ["", "-b mh-port", "-b mh-fallback"],
}
SERVICE_KINDS = [
    "-t 10.96.0.10:80",
    "-u 10.96.0.10:53",
    "-t 10.96.0.11:443",
    "-f 7",
    "-u 10.96.0.11:5000",
    "-t 10.0.0.9:99",
]
SERVERS = [*NEAR["cni0"], "192.168.7.20", "10.0.0.51"]


def server(s: Scene, where: str, only: str = "") -> str:
    # (nothing travels in GUE: Linux draws its source port)
    method = s.of("-m", "-m", "-m", "-g", s.of("-i", "-i", "-i --tun-type gre", "-i --tun-type gre --tun-csum"))
    port = where.rpartition(":")[2] if method != "-m" or "-f" in where else s.of("8080", "80", "5000")
    address = only or s.rng.choice(SERVERS)
    to = address if "-f" in where else f"{address}:{port}"
    limits = f" -x {s.of(1, 2, 3)} -y {s.of(0, 1)}" if s.chance(0.25) else ""
    return f"{where} -r {to} {method} -w {s.of(0, 1, 1, 2, 3)}{limits}"


def make_services(s: Scene, featured: str) -> str:
    """Virtual services, one with the featured scheduler; the words for `ipvsadm -R`."""
    out = []
    for n, where in enumerate(s.rng.sample(SERVICE_KINDS, s.of(1, 2, 3))):
        known = [*sorted(set(SCHEDULER_MAKERS) - ABSENT[s.kernel]), "wrr", "wlc", "sed"]  # these remember most
        scheduler = featured if n == 0 and featured in known else s.rng.choice(known)
        flags = s.rng.choice(SCHEDULER_MAKERS[scheduler])
        once = "-o" if "-t" not in where else ""
        more = s.of("", once, "-p 60", "-p 60", "-p 300 -M 255.255.255.0", once)
        out.append(" ".join(f"-A {where} -s {scheduler} {flags} {more}".split()))
        servers = s.rng.sample(SERVERS, 1 if scheduler == "twos" else s.of(1, 2, 3))
        out += [f"-a {server(s, where, only)}" for only in servers]
    return "".join(line + "\n" for line in out)


def unmade() -> list[str]:
    """What is registered, and has no maker here."""
    pairs: list[tuple[Any, Any]] = [
        (MATCHES, MATCH_MAKERS),
        (TARGETS, TARGET_MAKERS),
        (SETS, SET_MAKERS),
        (SCHEDULERS, SCHEDULER_MAKERS),
    ]
    return [name for registry, makers in pairs for name in registry if name not in makers]


# ---- whole nodes -------------------------------------------------------------------------------------------------


TRANSLATIONS = ["DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"]
DEADLY = {"DROP", "REJECT", "QUEUE", "NFQUEUE"}
#: what sees the packets before it, so that none may go beside another
REMEMBERING = {"limit", "hashlimit", "recent", "quota", "statistic", "connlimit", "connbytes", "SET", "RATEEST"}


def names_of(s: Scene, makers: dict[str, Maker]) -> list[str]:
    """The names in a registry that may be chosen here."""
    return sorted(set(makers) - REMEMBERING) if s.calm else sorted(makers)


def make_rule(s: Scene, jumps: Sequence[str] = (), match: str = "", target: str = "") -> str:
    """One rule (without `-A CHAIN`) that may stand at this place, with these extensions if they may."""
    clauses: list[Clause] = []
    names = [match] if match else []
    names += ["set"] * (bool(s.sets) and s.chance(0.2))
    names += [s.rng.choice(names_of(s, MATCH_MAKERS)) for _ in range(s.of(0, 1, 1, 2))]
    proto = ""
    for name in dict.fromkeys(n for n in names if n in MATCHES):
        made = MATCH_MAKERS[name](s) if name in MATCH_MAKERS else None
        if made and (not made.proto or not proto or made.proto == proto):
            clauses.append(made)
            proto = proto or made.proto
    deed = ""
    common = TRANSLATIONS if s.table == "nat" and s.chance(0.6) else names_of(s, TARGET_MAKERS)
    for name in [target] * bool(target) + [s.rng.choice(common) for _ in range(4)]:
        if name in DEADLY and name != target and s.chance(0.35 if name == "REJECT" else 0.6):
            continue  # what is stopped early meets nothing more
        made = TARGET_MAKERS[name](s) if name in TARGETS and name in TARGET_MAKERS else None
        needs = made.proto.split()[0] if made and made.proto else ""
        if (
            made
            and (not needs or not proto or proto == needs)
            and not (needs and "-m tcp " in str(clauses) and "--syn" in made.proto)
        ):
            deed = f"-j {made.text}"
            if needs:
                proto = needs
                if "--syn" in made.proto:
                    clauses.append(Clause("-m tcp --syn"))
            if (
                made.text in ("ACCEPT", "DROP", "RETURN", "CT", "NOTRACK", "CT --notrack")
                and s.chance(0.5)
                and name != target
            ):
                continue
            break
    if jumps and s.chance(0.45) and not target:
        deed = f"{s.of('-j', '-j', '-g')} {s.rng.choice(jumps)}"
    elif s.chance(0.05) and not target:
        deed = ""
    words = []
    if s.chance(0.2):
        words.append(f"{s.no}-s {s.rng.choice(NETS + ADDRESSES)}")
    if s.chance(0.2):
        words.append(f"{s.no}-d {s.rng.choice(NETS + ADDRESSES)}")
    if s.chance(0.15) and s.only(IN_HOOKS):
        words.append(f"{s.no}-i {s.of(*LINKS, 'eth+', 'lo')}")
    if s.chance(0.15) and s.only(OUT_HOOKS):
        words.append(f"{s.no}-o {s.of(*LINKS, 'eth+', 'lo')}")
    if not proto and s.chance(0.35):
        proto = s.of("tcp", "udp", "icmp", "! tcp", "! udp", "47")
        if deed.startswith("-j REJECT --reject-with tcp"):
            proto = "tcp"
    if proto:
        words.append(f"! -p {proto[2:]}" if proto.startswith("! ") else f"-p {proto}")
    if not words and not clauses and s.chance(0.8):
        words.append(f"-p {s.of('tcp', 'udp', 'icmp')}")  # few rules take everything
    if s.chance(0.03):
        words.append(f"{s.no}-f")
    return " ".join([*words, *(c.text for c in clauses), deed]).strip()


def watcher(s: Scene, match: str) -> str:
    """A rule that counts what this match finds, and asks nothing else where the match may stand here."""
    made = MATCH_MAKERS[match](s) if match in MATCH_MAKERS else None
    return f"{f'-p {made.proto} ' if made.proto else ''}{made.text}" if made else "-p icmp"


def steering(s: Scene) -> list[str]:
    """Rules of mangle that mark what services and policy rules ask for."""
    out = [f"-d {s.marked}/32 -j MARK --set-xmark 0x7"] if s.marked else []
    if s.steered:
        what = s.of("-p tcp", "-p udp", "-m statistic --mode nth --every 2 --packet 0" if not s.calm else "-p udp")
        out.append(f"{what} -j MARK --set-xmark {s.of('0x7', '0x1', '0x3/0x3', '0x101')}")
    if s.chance(0.25):  # a mark that is part the packet's, part the connection's
        out += [
            f"{s.of('-p tcp', '-p udp', '! -p icmp')} -j MARK --set-xmark {s.of('0x105', '0x2')}",
            "-j CONNMARK "
            + s.of(
                "--restore-mark --nfmask 0x3 --ctmask 0xff",
                "--restore-mark --mask 0x7",
                "--save-mark --nfmask 0xff --ctmask 0x3",
            ),
        ]
    return out


def watching(s: Scene) -> list[str]:
    """Rules for this chain that stop nothing: they count what they match, mark it, or put it into a set."""
    out = []
    for _ in range(s.of(0, 1, 2, 3)):
        name = s.rng.choice(s.theme.watch if s.theme.watch and s.chance(0.75) else sorted(MATCH_MAKERS))
        made = MATCH_MAKERS[name](s) if name in MATCHES and not (s.calm and name in REMEMBERING) else None
        if made is None:
            continue
        deed = None
        if s.chance(0.35):
            name = s.of("MARK", "CONNMARK", "SET") if s.sets and not s.calm else s.of("MARK", "CONNMARK")
            deed = TARGET_MAKERS[name](s)
        out.append(f"{f'-p {made.proto} ' if made.proto else ''}{made.text}{f' -j {deed.text}' if deed else ''}")
    return out


def make_tables(s: Scene, features: Sequence[tuple[str, str]]) -> str:
    """All tables (one may be missing), as iptables-restore reads them.   features: matches and targets that must be"""
    chatty = s.rng.choice(s.theme.chatty)
    out = []
    places = [featured_place(s, match, target) for match, target in features]
    for table, hooks in HOOKS.items():
        wanted = any(where is not None and where[0] == table for where in places)
        if table == "security" and not wanted and s.chance(0.7):
            continue
        user = [f"{table[0].upper()}{n}" for n in range(s.of(0, 1, 2))]
        reach = {u: frozenset(s.rng.sample(hooks, s.of(1, min(2, len(hooks))))) for u in user}
        out.append(f"*{table}")
        out += [f":{hook} ACCEPT [0:0]" for hook in hooks]
        out += [f":{u} - [0:0]" for u in user]
        s.table = table
        rules = []
        for n, chain in enumerate([*hooks, *user]):
            s.chain = chain
            s.hooks = reach.get(chain, frozenset({chain}))
            jumps = [u for k, u in enumerate(user) if s.hooks <= reach[u] and (chain in hooks or k > n - len(hooks))]
            talkative = max(chatty, s.theme.nat * (table == "nat"), 0.6 * (chain in user))
            count = s.rng.choice([0, 1, 2, 3, 5]) if s.chance(talkative) else 0
            mine = [make_rule(s, jumps) for _ in range(count)]
            if table in ("raw", "mangle") and chain in hooks:
                mine = watching(s) + mine
            if table == "mangle" and chain in ("PREROUTING", "OUTPUT"):
                mine = steering(s) + mine
            if table == "mangle" and chain in ("INPUT", "POSTROUTING") and s.chance(0.6):
                mine += [f"-m mark --mark {bit}/{bit}" for bit in ("0x1", "0x2", "0x4", "0x100")]  # what became of it?
            for place, (match, target) in zip(places, features, strict=True):
                if place == (table, chain):
                    mine.insert(s.rng.randrange(len(mine) + 1), make_rule(s, jumps, match, target))
                    mine.insert(s.rng.randrange(len(mine) + 1), make_rule(s, jumps, match))
                    mine.insert(s.rng.randrange(len(mine) + 1), watcher(s, match))
            rules += [f"-A {chain} {r}" for r in mine]
        out += [*rules, "COMMIT"]
    if any("-m recent" in line and "--set" not in line for line in out):  # somebody must have been seen
        at = out.index("COMMIT")  # of raw
        out[at:at] = [f"-A PREROUTING -m recent --set --name r{n} --mask 255.255.255.255 --rsource" for n in (0, 1)]
    return "".join(line + "\n" for line in out)


def featured_place(s: Scene, match: str, target: str) -> tuple[str, str] | None:
    """A table and built-in chain where the featured target (or else the match) may stand."""
    places = [(t, h) for t, hooks in HOOKS.items() for h in hooks]
    s.rng.shuffle(places)
    places.sort(key=lambda p: p[0] == "security")
    best = None
    for table, hook in places:
        s.table, s.chain, s.hooks = table, hook, frozenset({hook})
        can = [bool(made(s)) for made in (TARGET_MAKERS.get(target), MATCH_MAKERS.get(match)) if made]
        if all(can):
            return table, hook
        best = best or ((table, hook) if any(can) else None)
    return best


SYSCTLS: list[tuple[str, list[int]]] = [
    ("net.netfilter.nf_conntrack_acct", [1]),
    ("net.netfilter.nf_conntrack_tcp_loose", [0]),
    ("net.netfilter.nf_conntrack_tcp_be_liberal", [1]),
    ("net.netfilter.nf_conntrack_tcp_max_retrans", [1, 2]),
    ("net.netfilter.nf_conntrack_checksum", [0]),
    ("net.netfilter.nf_conntrack_udp_timeout", [1, 2]),
    ("net.netfilter.nf_conntrack_icmp_timeout", [1]),
    ("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", [1]),
    ("net.netfilter.nf_conntrack_tcp_timeout_close", [1]),
    ("net.netfilter.nf_conntrack_tcp_timeout_time_wait", [1]),
    ("net.ipv4.conf.all.rp_filter", [1, 2]),
    ("net.ipv4.conf.eth1.rp_filter", [1]),
    ("net.ipv4.conf.all.route_localnet", [1]),
    ("net.ipv4.conf.all.accept_local", [1]),
    ("net.ipv4.conf.cni0.forwarding", [0]),
    ("net.ipv4.ip_default_ttl", [33]),
]
VS_SYSCTLS: list[tuple[str, list[int]]] = [
    ("net.ipv4.vs.conntrack", [1]),
    ("net.ipv4.vs.conn_reuse_mode", [0]),
    ("net.ipv4.vs.expire_nodest_conn", [1]),
    ("net.ipv4.vs.expire_quiescent_template", [1]),
    ("net.ipv4.vs.nat_icmp_send", [1]),
    ("net.ipv4.vs.sloppy_tcp", [1]),
    ("net.ipv4.vs.schedule_icmp", [1]),
    ("net.ipv4.vs.snat_reroute", [0]),
]


def make_links(s: Scene, services: bool) -> str:
    """node.toml."""
    out = [f'kernel = "{s.kernel}"', "cpu = 0"]
    for n, name in enumerate(LINKS):
        plens = [f'"{a}/24"' for a in OWN[name]]
        if s.chance(0.5 if s.theme.nat > 0.5 else 0.15):
            plens.insert(s.of(0, 1), f'"172.20.{n}.1/24"')  # another network on the link: who masquerades as whom?
        out += ["[[link]]", f'name = "{name}"', f'mac = "02:00:00:00:00:0{n + 1}"', f"addresses = [{', '.join(plens)}]"]
        if s.chance(0.15):
            out.append(f"mtu = {s.of(576, 1000, 1400)}")
        if s.chance(0.1):
            out.append("group = 1")
    vips = ", ".join(f'"{v}/32"' for v in VIPS)
    out += [
        "[[link]]",
        'name = "vip0"',
        *['kind = "dummy"'] * ("dummy" not in ABSENT[s.kernel]),
        f"up = {s.of('false', 'true')}",
        f"addresses = [{vips}]",
    ]
    out += ["[[socket]]", "uid = 0"]  # the player is root
    out += ["[[route]]", 'to = "default"', 'via = "10.0.0.254"', 'dev = "eth0"']
    # (nothing is unreachable or prohibited: the limit on saying so runs on the real clock)
    for route in (
        'to = "172.16.0.0/16"\nvia = "192.168.7.254"\ndev = "eth1"',
        'type = "blackhole"\nto = "192.0.2.0/25"',
        'to = "192.0.2.0/24"\nvia = "192.168.7.254"\ndev = "eth1"\nsrc = "192.168.7.1"',
    ):
        if s.chance(0.1):
            out += ["[[route]]", route]
    if s.chance(0.35):
        out += ["[[route]]", 'to = "default"', 'via = "192.168.7.254"', 'dev = "eth1"', 'table = "100"']
        what = s.of('fwmark = "0x1/0x1"', 'fwmark = "0x1/0x5"', 'iif = "cni0"', 'to = "192.0.2.0/24"', 'fwmark = "0x7"')
        s.steered = "fwmark" in what
        out += ["[[rule]]", "priority = 100", what, 'table = "100"']
    out.append("[sysctl]")
    # limits on ICMP errors and redirects run on the real clock
    out += [
        '"net.ipv4.icmp_ratelimit" = 0',
        '"net.ipv4.icmp_msgs_per_sec" = 100000',
        '"net.ipv4.icmp_msgs_burst" = 10000',
    ]
    out += [f'"net.ipv4.conf.{name}.send_redirects" = 0' for name in ("all", "default", *LINKS, "vip0")]
    choose = SYSCTLS + (VS_SYSCTLS if services else [])
    some = s.rng.sample(choose, s.of(0, 1, 2))
    if s.chance(0.12):
        some.append(("net.ipv4.conf.all.rp_filter", [1, 1, 2]))
    if services and s.chance(0.5):
        some.append(VS_SYSCTLS[0])
    out += [f'"{name}" = {s.rng.choice(values)}' for name, values in dict(some).items()]
    return "\n".join(out) + "\n"


# ---- traffic -----------------------------------------------------------------------------------------------------

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


@dataclass
class Talk:
    """A conversation: how the client sees it, and how it arrived at the far end.

    link, there   where each side's packets enter the node; None: the node itself; there_ends None: nothing arrived yet
    seq           next sequence number of client and server        sent, heard  how often each has spoken
    scaled        each side said by how much it scales its windows
    """

    proto: int
    link: str | None
    src: str
    sport: int
    dst: str
    dport: int
    there: str | None = None
    there_ends: tuple[int, str, int, str, int] | None = None
    told: int | None = None  # number of the event that arrived there last
    seq: list[int] = field(default_factory=lambda: [1000, 50000])
    sent: int = 0
    heard: int = 0
    scaled: list[bool] = field(default_factory=lambda: [False, False])


class Traffic:
    """Makes the events of a case, one by one, and takes each through a node, so that answers fit."""

    def __init__(self, s: Scene, node: Node, count: int, services: bool) -> None:
        self.s, self.node, self.count, self.services = s, node, count, services
        self.events: list[Event] = []
        self.talks: list[Talk] = []
        self.left: list[tuple[str, bytes, int]] = []
        self.at = 0.0
        self.drew = self.drawn = self.spoilt = False
        # some connections are short-lived: whether `conntrack -D` still meets them is a matter of ticks
        self.brief = any("_timeout" in name for name in node.model.sysctl)
        self.ranged = any("--to-source" in r.text and r.text.count(":") for _, _, _, r in node.tables.rules())
        self.ident = s.rng.randrange(1, 30000)
        self.patience = s.of(0.0, 0.0, 0.0, 2.4)  # seconds that may pass in jumps
        # what connlimit counts depends on the kernel's clock ticks: a packet a tick
        self.pace = 0.012 if any("connlimit" in rule.text for _, _, _, rule in node.tables.rules()) else 0.002
        self._watch_draws()

    def _watch_draws(self) -> None:
        """Notice when Linux would draw a port: the pieces of what is cut cannot be matched then."""
        nat = self.node.nat
        search = nat._free_port

        def noticed(*args: Any) -> Any:
            self.drew = True
            return search(*args)

        setattr(nat, "_free_port", noticed)  # noqa: B010

    def make(self) -> list[Event]:
        while len(self.events) < self.count and not self.spoilt:
            self.at += self.pace
            if self.patience > 0 and self.s.chance(0.06):
                jump = min(self.patience, self.s.of(0.15, 0.6, 1.2))
                self.patience -= jump
                self.at += jump
            self.step()
        return self.events

    def step(self) -> None:
        s = self.s
        r = s.rng.random()
        often = 0.09 if s.theme.services == 1 else 0.06 if self.services else 0.04
        if r < often and len(self.events) > 5:
            return self.command()
        r -= often
        if r < s.theme.fresh or not self.talks:
            self.talks.append(self.new_talk())
            return self.speak(self.talks[-1], 0)
        r -= s.theme.fresh
        if r < s.theme.errors:
            return self.error()
        r -= s.theme.errors
        if s.chance(0.02 * s.theme.odd):
            return self.life()
        if r < 0.02 + 0.05 * s.calm:
            return self.burst()
        if r < 0.05 + 0.05 * s.calm:
            return self.again()
        if r < 0.1 + 0.05 * s.calm:
            return self.stray()
        talk = s.rng.choice(self.talks[-s.theme.talks :])
        if r < 0.13 + 0.05 * s.calm and talk.proto == TCP and talk.sent > 1:  # the same ports once more
            talk.sent = talk.heard = 0
            talk.seq[0] = (talk.seq[0] + s.of(70000, 1, -5000, 2**31)) & 0xFFFFFFFF
            return self.speak(talk, 0)
        return self.speak(
            talk, 1 if talk.there_ends is not None and s.chance(0.55 if talk.heard < talk.sent else 0.35) else 0
        )

    def again(self) -> None:
        """Something that was sent comes once more, or several times."""
        events = [e for e in self.events[-30:] if e.packet is not None]
        if events:
            one = events[-1] if self.s.chance(0.5) else self.s.rng.choice(events)
            assert one.packet is not None
            for _ in range(self.s.of(1, 1, 2, 3)):
                self.send(one.link, one.packet, one.answers)
                if self.spoilt:
                    return
                self.at += self.pace

    def life(self) -> None:
        """A TCP connection that opens, talks and ends, and one or two more behind it that use the same ports."""
        s = self.s
        talk = self.new_talk()
        self.talks.append(talk)
        if talk.proto != TCP:
            return self.speak(talk, 0)
        for _ in range(s.of(2, 2, 3)):
            acts = [(0, SYN), (1, SYN | ACK), (0, ACK), (0, ACK | PSH), (1, ACK | PSH)][: s.of(1, 3, 5, 5)]
            acts += s.of([(0, FIN | ACK), (1, FIN | ACK), (0, ACK)], [(0, RST | ACK)], [(1, RST)], [(0, FIN | ACK)], [])
            for side, flags in acts:
                if self.spoilt or (side and talk.there_ends is None):
                    break
                self.speak(talk, side, flags)
                self.at += self.pace
            talk.seq[0] = (talk.seq[0] + 100_000) & 0xFFFFFFFF

    def burst(self) -> None:
        """Many that have nothing to do with each other, one behind the other: they may go through together."""
        s = self.s
        link = s.rng.choice(LINKS)
        proto = TCP if s.chance(0.3) else UDP
        far = [a for a in FAR + VIPS + OWN[link] if a not in NEAR[link]]
        for port in range(first := s.rng.randrange(42000, 60000), first + s.of(10, 14, 20)):
            src, dst, to = s.rng.choice(NEAR[link]), s.rng.choice(far), s.rng.choice(PORTS)
            if proto == TCP:
                body = tcp_segment(src, port, dst, to, SYN, 1000, 0, 64240, b"\x02\x04\x05\xb4", b"")
            else:
                body = udp_segment(src, port, dst, to, b"one of many")
            self.send(link, self.wrap(src, dst, proto, body))
            if self.spoilt:
                return
            self.at += self.pace

    def new_talk(self) -> Talk:
        s = self.s
        proto = s.rng.choices(list(s.theme.protocols), list(s.theme.protocols.values()))[0]
        link: str | None = s.rng.choice(LINKS)
        if s.chance(0.2) and proto in (TCP, UDP, ICMP):
            link = None
        src = s.rng.choice(MINE if link is None else NEAR[link] if s.chance(0.94) else FAR)  # or a stranger there
        there = [a for a in FAR if link is None or a not in NEAR[link]] + NEAR["cni0"]
        dst = s.rng.choice(there)
        if self.talks and s.chance(0.15):  # a client that has another conversation, from the same port
            old = s.rng.choice(self.talks)
            return Talk(old.proto, old.link, old.src, old.sport, dst, s.rng.choice(PORTS))
        if proto in (TCP, UDP, ICMP) and s.chance(0.3):
            dst = s.rng.choice(MINE)
        if proto in (TCP, UDP) and s.marked and s.chance(0.3):
            return Talk(proto, link, src, s.rng.choice(CLIENT_PORTS), s.marked, s.rng.choice(PORTS))
        if proto in (TCP, UDP) and self.services and s.chance(0.6):
            where = s.rng.choice([w for w in SERVICE_KINDS if w[1] == ("t" if proto == TCP else "u")]).split()[1]
            dst, port = where.split(":")
            return Talk(proto, link, src, s.rng.choice(CLIENT_PORTS), dst, int(port))
        if s.chance(0.1):
            dst = s.of("172.16.3.3", *VIPS, "203.0.113.77")
        if link is not None and proto == UDP and s.chance(0.03):
            dst = s.rng.choice(BROADCASTS)
        return Talk(
            proto,
            link,
            src,
            s.rng.choice(CLIENT_PORTS),
            dst,
            s.rng.choice(PORTS),
            seq=[s.rng.choice([1000, 2**32 - 5, 70000]), s.rng.choice([50000, 2**31 - 3])],
        )

    # ---- one side says something

    def speak(self, talk: Talk, side: int, flags: int | None = None) -> None:
        """A packet of the conversation.   flags: of TCP, where they are not left to chance"""
        s = self.s
        if side == 0:
            link, (proto, src, sport, dst, dport) = talk.link, (talk.proto, talk.src, talk.sport, talk.dst, talk.dport)
        else:
            assert talk.there_ends is not None
            link = talk.there
            proto, dst, dport, src, sport = talk.there_ends
        little = s.chance(0.97 if s.theme.odd <= 1 else 0.7) or link is None
        data = s.of(b"", b"", b"abc", b"GET /", b"x" * 30) if little else b"x" * s.of(700, 1300)
        if proto == TCP:
            body = self._tcp(talk, side, (src, sport, dst, dport), data, flags)
        elif proto in (UDP, UDPLITE):
            body = udp_segment(src, sport, dst, dport, data or b"q", proto)
            if proto == UDP and s.chance(0.05):
                body = body[:6] + b"\0\0" + body[8:]
        elif proto == ICMP:
            body = icmp_segment(0 if side else 8, 0, (sport if not side else dport) << 16 | 1, data or b"ping")
        elif proto == SCTP:
            body = self._sctp(side, sport, dport)
        elif proto == DCCP:
            body = struct.pack("!HHBBHBBH", sport, dport, 4, 0, 0, s.of(0, 2, 4) << 1 | 1, 0, 0) + struct.pack(
                "!III", 1, 0, 2
            )
            body = summed(src, dst, DCCP, body, 6)
        else:
            body = b"\0\0\x08\0" + data
        talk.sent += side == 0
        talk.heard += side == 1
        packet = self.wrap(src, dst, proto, body)
        journey = self.whole_or_cut(link, packet, talk.told if side else None)
        if journey is not None:
            self.learn(talk, side, journey)

    def _tcp(
        self, talk: Talk, side: int, between: tuple[str, int, str, int], data: bytes, so: int | None = None
    ) -> bytes:
        s = self.s
        first = talk.sent == 0 if side == 0 else talk.heard == 0
        window = s.of(64240, 64240, 64240, 65535, 8192, 500, 0)
        mine, other = talk.seq[side], talk.seq[1 - side]
        options = b""
        if so is not None:
            flags, data = so, data or b"x" if so & PSH else b""
        elif first and s.chance(0.9):
            flags = SYN | ACK if side else SYN
            data = b"early" if s.chance(0.12) else b""
        else:
            flags = s.rng.choices([ACK, ACK | PSH, FIN | ACK, RST, RST | ACK], [45, 25, 15, 6, 3])[0]
            if flags == ACK and s.chance(0.7):
                data = b""
        odd = s.theme.odd if so is None else 0.0
        if all(talk.scaled) and not first and s.chance(0.15):  # far on, but within a window that is scaled
            mine = talk.seq[side] = (mine + s.of(30_000, 70_000, 300_000, 1 << 22)) & 0xFFFFFFFF
        if s.chance(0.06 * odd):
            flags = s.of(SYN, SYN | ACK, FIN, 0, URG | ACK, FIN | ACK | URG, SYN | FIN, PSH, RST, ACK, 0x3F, SYN | 0xC0)
        if s.chance(0.4 if flags & RST and so is None else 0.05 * odd):
            mine += s.of(1, -1, -1, 100, -100, 70000, -70000, 2**31)
        if s.chance(0.05 * odd):
            other += s.of(1, -1, 500, -500, 70000, -70000)
        if flags & SYN:
            options = s.of(
                b"",
                b"\x02\x04\x05\xb4",
                b"\x02\x04\x05\xb4\x01\x03\x03\x07",
                b"\x02\x04\x05\xb4\x04\x02\x01\x03\x03\x02",
                b"\x02\x04\x05\xb4\x04\x02\x08\x0a\0\0\0\1\0\0\0\0\x01\x03\x03\x0e",
            )
            talk.scaled[side] = b"\x03\x03" in options
        elif s.chance(0.1):
            edge = (other + 100) & 0xFFFFFFFF
            options = s.of(
                b"\x01\x01\x05\x0a" + struct.pack("!II", edge, (edge + 50) & 0xFFFFFFFF),
                b"\x01\x01\x08\x0a\0\0\0\1\0\0\0\0",
            )
        ack = other if flags & ACK else 0
        segment = tcp_segment(*between, flags, mine, ack, window, options, data)
        if mine == talk.seq[side] and s.chance(0.9):
            talk.seq[side] = (mine + len(data) + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF
        return segment

    def _sctp(self, side: int, sport: int, dport: int) -> bytes:
        s = self.s
        kind = s.of(1, 1, 2, 10, 11, 0, 3, 4, 7, 14, 6)
        chunk = struct.pack("!BBHIIHHI", kind, 0, 20, 7 + side, 1500, 1, 1, 1)
        head = struct.pack("!HHII", sport, dport, 0 if kind == 1 else 8 - side, 0)
        return head[:8] + struct.pack("<I", crc32c(head + chunk)) + chunk

    def wrap(self, src: str, dst: str, proto: int, body: bytes) -> bytes:
        s = self.s
        self.ident = (self.ident + 1) & 0x7FFF or 1
        ttl = 64 if s.chance(0.9) else s.of(1, 2, 3, 255)
        tos = 0 if s.chance(0.85) else s.of(0x10, 0x28, 0xB8, 0x03, 0x01)
        options = b"\x01\x01\x01\x00" if s.chance(0.01) else b""
        frag = 0x4000 if len(body) < 1200 and s.chance(0.9) else 0
        return ip(src, dst, proto, body, ttl=ttl, tos=tos, ident=self.ident, frag=frag, options=options)

    def whole_or_cut(self, link: str | None, packet: bytes, answers: int | None) -> Journey | None:
        """Send it, now and then in fragments; the journey that shows what became of it."""
        s = self.s
        if link is None or self.drawn or not s.chance(0.06):
            return self.send(link, packet, answers)
        ihl = (packet[0] & 15) * 4
        head = packet[:6] + b"\0\0" + packet[8:10] + b"\0\0" + packet[12:ihl]
        packet = head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[ihl:]
        size = s.of(8, 16, 24)
        pieces = fragments(packet, size if len(packet) <= 8 * size else 512)
        if s.chance(0.2):
            k = s.rng.randrange(len(pieces))
            pieces[k:] = [with_flag(piece) for piece in pieces[k:]]
        if s.chance(0.3):
            pieces.reverse()
        elif s.chance(0.2):
            s.rng.shuffle(pieces)
        if s.chance(0.1):
            pieces.pop(s.rng.randrange(len(pieces)))
        elif s.chance(0.2):
            pieces.insert(s.rng.randrange(len(pieces)), s.rng.choice(pieces))
        shown: Journey | None = None
        start = len(self.events)
        for piece in pieces:
            journey = self.send(link, piece, None)
            if self.drew:
                self.spoilt = True
                del self.events[start:]
                return None
            if journey.fate in ("forwarded", "delivered"):
                shown = journey
        return shown

    def send(self, link: str | None, packet: bytes, answers: int | None = None) -> Journey:
        self.drew = False
        number = len(self.events)
        self.events.append(Event(round(self.at, 4), link, packet, answers=answers))
        if link is None:
            journey = self.node.send(packet, None, self.at)
        else:
            mac = self.node.routing.links[self.node.routing.index(link)].mac or 0
            frame = mac.to_bytes(6, "big") + bytes.fromhex(SENDER.replace(":", "")) + b"\x08\0" + packet
            journey = self.node.send(frame, link, self.at, ethernet=True)
        self.drawn |= self.drew
        if self.drew and (journey.fate != "forwarded" or (self.ranged and ends(packet)[2] < 1024)):
            self.spoilt = True  # nobody sees which port was drawn, or the lab would not take it for drawn
            self.events.pop()
        self.left += [(out, sent, number) for out, sent in journey.own]
        return journey

    def learn(self, talk: Talk, side: int, journey: Journey) -> None:
        """Remember how the client's packet looked where it arrived."""
        if side or talk.dst in BROADCASTS:
            return
        if journey.fate == "forwarded" and journey.own:
            link, sent = journey.own[-1]
            if sent[9] in (4, GRE) and len(sent) >= 48 and talk.proto in (TCP, UDP):
                sent = sent[20 if sent[9] == 4 else 24 + 4 * (sent[20] >> 7) :]  # the server takes it out of its tunnel
            if sent[9] == talk.proto and len(sent) >= 28 and link in LINKS:
                talk.there, talk.there_ends, talk.told = link, ends(sent), len(self.events) - 1
        elif journey.fate == "delivered":
            sent = journey._part.pkts.bytes(journey._row)
            if sent[9] == talk.proto and len(sent) >= 28:
                talk.there, talk.there_ends, talk.told = None, ends(sent), len(self.events) - 1

    # ---- the rest

    def error(self) -> None:
        """An ICMP error about something that left."""
        s = self.s
        # (the id of an echo reply may be a drawn one)
        some = [(o, sent, n) for o, sent, n in self.left[-12:] if o in LINKS and (sent[9] != ICMP or sent[20] == 8)]
        if not some:
            return
        link, sent, number = s.rng.choice(some)
        _, src, _, dst, _ = ends(sent)
        kind, code, rest = s.of(
            (3, 1, 0), (3, 3, 0), (11, 0, 0), (3, 4, 1200), (12, 0, 0), (4, 0, 0), (5, 1, 0x0A0000FD)
        )
        if (kind, code) == (3, 4) or kind == 5:
            kind, code, rest = 3, 0, 0  # the node's own stack would believe these, and change its routes
        quote = sent[: s.of(28, 36, 36, 64, 24)]
        if len(quote) == 24 and ends(sent)[2] not in PORTS + CLIENT_PORTS:
            quote = sent[:36]  # a port that may have been drawn: the lab finds it in whole quotes only
        whence = dst if s.chance(0.6) else s.rng.choice(NEAR[link])
        packet = self.wrap(whence, src, ICMP, icmp_segment(kind, code, rest, quote))
        self.send(link, packet, number)

    def stray(self) -> None:
        """Something that belongs to no conversation, or is broken."""
        s = self.s
        link = s.rng.choice(LINKS)
        src, dst = s.rng.choice(ADDRESSES if s.chance(0.3) else NEAR[link]), s.rng.choice(FAR)
        kind = s.rng.randrange(7)
        if kind == 0:
            body = tcp_segment(
                src,
                s.rng.choice(CLIENT_PORTS),
                dst,
                s.rng.choice(PORTS),
                s.rng.randrange(64),
                s.rng.randrange(2**32),
                s.rng.randrange(2**32),
                1000,
                b"",
                b"",
            )
            packet = self.wrap(src, dst, TCP, body)
        elif kind == 1:  # a checksum that is wrong
            body = udp_segment(src, s.rng.choice(CLIENT_PORTS), dst, s.rng.choice(PORTS), b"wrong")
            packet = self.wrap(src, dst, UDP, body[:-1] + b"?")
        elif kind == 2:  # a header that is cut short
            body = tcp_segment(src, 40000, dst, s.rng.choice(PORTS), SYN, 1, 0, 1000, b"", b"")
            packet = self.wrap(src, dst, s.of(TCP, UDP), body[: s.of(0, 4, 7, 8, 12, 19)])
        elif kind == 3:
            packet = self.wrap(src, dst, ICMP, icmp_segment(s.of(0, 8, 3, 11, 30, 9), s.of(0, 1), 7 << 16, b"abcd"))
        elif kind == 4:
            packet = self.wrap(src, dst, s.of(50, 51, 4, 103), b"some bytes of it")
        elif kind == 5:
            whole = bytearray(self.wrap(src, dst, UDP, udp_segment(src, 53, dst, 53, b"x")))
            whole[10] ^= 1
            packet = bytes(whole)
        else:
            body = tcp_segment(
                src,
                40000,
                dst,
                s.rng.choice(PORTS),
                s.of(SYN, ACK, RST),
                1,
                5,
                1000,
                s.of(b"", b"\x03", b"\x02\x01\0\0", b"\x05\x03\0", b"\0\0\0\0"),
                b"",
            )
            packet = self.wrap(src, dst, TCP, body)
        self.send(link, packet)

    def command(self) -> None:
        """A change from outside, as an administrator or a program makes it."""
        made = self.change()
        if made is None:
            return
        self.events.append(Event(round(self.at, 4), command=made))
        with suppress(Refused):
            self.node.run(made, self.at)

    def change(self) -> str | None:
        s = self.s
        kinds = ["iptables"] * 4 + ["ipset"] * 3 * bool(s.sets) + ["ipvsadm"] * 8 * self.services
        kinds += ["conntrack"] * (not self.brief) + ["sysctl", "ip"]
        kind = s.rng.choice(kinds)
        if kind == "iptables":
            s.table = s.of("mangle", "nat", "filter", "filter")
            s.chain = s.rng.choice(HOOKS[s.table])
            s.hooks = frozenset({s.chain})
            what = s.of("-A", "-A", "-I", "-I", "-D", "-Z", "-P", "-R")
            rule = make_rule(s)
            if what in ("-A", "-I"):
                return f"iptables -t {s.table} {what} {s.chain} {rule}"
            if what == "-R":
                return f"iptables -t {s.table} -R {s.chain} 1 {rule}"
            if what == "-D":
                return f"iptables -t {s.table} -D {s.chain} {s.of(1, 1, 2)}"
            if what == "-P":
                return (
                    f"iptables -t {s.table} -P {s.chain} {s.of('ACCEPT', 'DROP') if s.table == 'filter' else 'ACCEPT'}"
                )
            return f"iptables -t {s.table} -Z{s.of('', ' ' + s.chain)}"
        if kind == "ipset":
            name = s.rng.choice(sorted(s.sets))
            if s.sets[name] == "list:set":
                return f"ipset {s.of('add', 'del', 'test')} {name} {s.rng.choice(sorted(s.sets))}"
            verb = s.of("add", "add", "del", "del", "test", "flush")
            if verb == "flush":
                return f"ipset flush {name}"
            what = element(s, s.sets[name], s.options[name])
            if verb != "add":
                what = what.split()[0]
            return f"ipset {verb} {name} {what}{' -exist' if verb == 'add' and s.chance(0.3) else ''}"
        if kind == "ipvsadm":
            services = [
                line.split(" -s ")[0][3:]
                for line in self.node.dump("ipvsadm-save").splitlines()
                if line.startswith("-A ")
            ]
            if not services:
                return None
            where = s.rng.choice(services)
            servers = [line for line in self.node.dump("ipvsadm-save").splitlines() if line.startswith(f"-a {where} ")]
            if not servers or s.chance(0.3):
                if any("twos" in line for line in self.node.dump("ipvsadm-save").splitlines()):
                    return None
                return f"ipvsadm -a {server(s, where)}"
            old = s.rng.choice(servers).split(" -r ")[1].split()
            if s.chance(0.4):
                return f"ipvsadm -d {where} -r {old[0]}"
            return f"ipvsadm -e {where} -r {old[0]} {' '.join(old[1 : old.index('-w')])} -w {s.of(0, 1, 2, 5)}"
        if kind == "conntrack":
            return str(
                s.of(
                    "conntrack -F",
                    f"conntrack -D -p tcp --dport {s.rng.choice(PORTS)}",
                    f"conntrack -D -s {s.rng.choice(FAR)}",
                    f"conntrack -D -p udp --orig-port-dst {s.rng.choice(PORTS)}",
                )
            )
        if kind == "sysctl":
            name, values = s.rng.choice(SYSCTLS[:10])
            return f"sysctl -w {name}={s.rng.choice(values)}"
        return str(
            s.of(
                "ip addr add 10.0.0.77/24 dev eth0",
                "ip addr del 10.0.0.9/24 dev eth0",
                "ip addr add 192.168.7.9/24 dev eth1",
                "ip route add 172.16.0.0/16 via 192.168.7.254 dev eth1",
                "ip route del 172.16.0.0/16",
                "ip route add blackhole 203.0.113.0/24",
                "ip link set vip0 up",
                "ip link set vip0 down",
                "ip route replace default via 192.168.7.254 dev eth1",
            )
        )


_CRC: list[int] = []


def crc32c(data: bytes) -> int:
    """SCTP's checksum (Castagnoli)."""
    if not _CRC:
        for n in range(256):
            for _ in range(8):
                n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
            _CRC.append(n)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# ---- cases -------------------------------------------------------------------------------------------------------


def case(rng: Random, kernel: str, number: int = 0, events: int = 80, about: str = "") -> Case:
    """A node and its traffic. `number` decides what is featured; everything else comes from `rng`.

    about   the name of a theme; else the number decides that too

    Traffic ends early where Linux draws what cannot be followed; then others are tried, and the longest is taken.

    Raises  NetemuError when netemu does not load what the makers made: a defect of one of them
    """
    best = one_case(rng, kernel, number, events, about)
    for _ in range(4):
        if len(best.events) > 0.7 * events:
            break
        best = max(best, one_case(rng, kernel, number, events, about), key=lambda made: len(made.events))
    return best


def one_case(rng: Random, kernel: str, number: int, events: int, about: str = "") -> Case:
    """The same, at the first try."""

    def nth(registry: Sequence[str], k: int) -> str:
        return sorted(registry)[k % len(registry)]

    s = Scene(rng, kernel, theme=THEMES[about or ORDER[kernel][number % len(ORDER[kernel])]])
    features = [(nth(list(MATCHES), k), nth(list(TARGETS), k)) for k in (2 * number, 2 * number + 1)]
    kind, scheduler = nth(list(SETS), number), nth(list(SCHEDULERS), number)
    names = {name for pair in features for name in pair}
    may = "match:ipvs" not in ABSENT[kernel]
    services = may and (rng.random() < s.theme.services or number < len(SCHEDULERS) or "ipvs" in names)
    texts = {"node.toml": make_links(s, services)}
    if {"set", "SET"} & names or number < len(SETS) or rng.random() < s.theme.sets:
        texts["ipset.save"] = make_sets(s, kind)
    s.calm = not REMEMBERING & names and s.chance(0.5)
    if services:
        texts["ipvsadm.save"] = make_services(s, scheduler)
        s.marked = VIPS[1] if "-A -f 7 " in texts["ipvsadm.save"] and s.chance(0.8) else ""
    texts["iptables.save"] = make_tables(s, features)
    texts = {name: text for name, text in texts.items() if text}
    story = "features " + ", ".join(f"-m {match} -j {target}" for match, target in features)
    story += f", {kind}" + f", {scheduler}" * services
    made = Case(f"fuzz-{kernel}-{number}", story, texts, [])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            Path(folder, name).write_text(text)
        node = Node.load(folder, seed=1)
    made.events.extend(Traffic(s, node, events, services).make())
    if made.events and "_timeout" in texts["node.toml"]:
        made.end = made.events[-1].at + 2.5  # what was to end soon has ended, on every clock
    return made


def cases(kernel: str, events: int = 40) -> SearchStrategy[Case]:
    """The same as a hypothesis strategy: it shrinks by making simpler draws."""
    from hypothesis import strategies as st

    def made(rng: Random, number: int) -> Case:
        return case(rng, kernel, number, events)

    return st.builds(made, st.randoms(use_true_random=False), st.integers(0, 1000))


# ---- the hunt ----------------------------------------------------------------------------------------------------

KERNELS = {"host": "6.18", "uml": "6.1"}


@dataclass
class Bag:
    """What a hunt found.

    cases, packets, commands   how much was played and compared
    refused                    case -> why a kernel would not play it (or netemu not load it)
    found                      (case, recording, disagreements): in every recording of the case
    unsteady                   cases of which the kernel's own recordings differ, some of them agreeing with netemu:
                               a tick of its clock fell just before a packet, or just behind it
    """

    cases: int = 0
    packets: int = 0
    commands: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    found: list[tuple[Case, Recording, list[Disagreement]]] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)

    def add(self, other: Bag) -> None:
        self.cases += other.cases
        self.packets += other.packets
        self.commands += other.commands
        self.refused |= other.refused
        self.found += other.found
        self.unsteady += other.unsteady

    def __str__(self) -> str:
        return (
            f"{self.packets} packets and {self.commands} commands in {self.cases} cases: "
            f"{len(self.found)} disagree, with {len(self.unsteady)} the kernel does not agree with itself, "
            f"{len(self.refused)} could not be played"
        )


def numbered(kernel: str, seed: str, number: int, events: int = 80, about: str = "") -> Case:
    """Case `number` of a seed: the same ever after, as long as the makers stay as they are."""
    return case(Random(f"{seed}/{kernel}/{number}"), KERNELS[kernel], number, events, about)


#: what every test run plays: so many cases of each kernel, of this seed (`netemu fuzz` goes on as long as it is told)
BUDGET, BUDGET_SEED = {"host": 30, "uml": 16}, "ci"
AGAIN = 2  # more recordings of a case that disagrees


def batch(kernel: str, seed: str, numbers: Sequence[int], events: int = 80, about: str = "") -> Bag:
    """Play these cases in one start of the kernel and compare.

    What disagrees is played again, to know whether the kernel does the same every time. A disagreement counts where no
    recording of the case agrees with netemu.

    kernel  "host" or "uml"
    """
    bag, made = Bag(), []
    for number in numbers:
        try:
            made.append(numbered(kernel, seed, number, events, about))
        except NetemuError as e:
            bag.refused[f"fuzz-{KERNELS[kernel]}-{number}"] = f"netemu: {e}"
    suspects: list[tuple[Case, Recording, list[Disagreement]]] = []
    for one, recording in zip(made, play(made, kernel), strict=True):
        if recording.trouble:
            bag.refused[one.name] = recording.trouble
            continue
        bag.cases += 1
        bag.packets += sum(e.command is None for e in one.events)
        bag.commands += sum(e.command is not None for e in one.events)
        if what := compare_both(one, recording):
            suspects.append((one, recording, what))
    for _ in range(AGAIN):
        for recording in play([one for one, _, _ in suspects], kernel):
            one, first, what = suspects.pop(0)
            if still := what if recording.trouble else common(what, compare_both(one, recording)):
                suspects.append((one, first, still))
            else:
                bag.unsteady.append(one.name)
    bag.found = suspects
    return bag


def common(some: list[Disagreement], others: list[Disagreement]) -> list[Disagreement]:
    """Those of `some` that are about the same as one of the others: the same packet and field, or table."""
    about = {(d.event, d.place if d.event is None else d.field) for d in others}
    return [d for d in some if (d.event, d.place if d.event is None else d.field) in about]


def hunt(
    kernels: Sequence[str],
    seed: str,
    minutes: float,
    folder: Path | None,
    say: Callable[[str], None] = print,
    about: str = "",
    events: int = 80,
) -> Bag:
    """Batch after batch on each kernel until the time is over; each disagreement is shrunk and kept in `folder`."""
    bag, start, number = Bag(), time.monotonic(), 0
    size = 24
    while time.monotonic() - start < 60 * minutes:
        for kernel in kernels:
            one = batch(kernel, seed, range(number, number + size), events, about)
            bag.add(one)
            say(f"{kernel} {number}-{number + size - 1}: {one}")
            for name, why in one.refused.items():
                say(f"  {name}: {why}")
            for found, recording, what in one.found:
                say("  " + str(what[0]).replace("\n", "\n  "))
                if folder is not None:
                    small = shrink(found, kernel)
                    (again,) = play([small], kernel)
                    save(small, again if not again.trouble else recording, folder / f"{found.name}-seed-{seed}.case")
        number += size
    return bag


def run(args: argparse.Namespace) -> int:
    """`netemu fuzz`: 1 when a kernel disagreed."""
    wanted = list(KERNELS) if args.kernel == "both" else [args.kernel]
    for kernel in wanted:
        if why := available(kernel):
            raise Refused(f"the {kernel} kernel cannot be asked: {why}")
    folder = Path(args.output) if args.output else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    bag = hunt(wanted, str(args.seed), args.minutes, folder, say, args.about or "", args.events)
    print(bag)
    return 1 if bag.found else 0
