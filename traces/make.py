#!/usr/bin/env python3
"""Make the traces: what a capture at the links of each model's node would hold.

usage: traces/make.py [DIRECTORY]     (default: where this file is)

A trace holds the packets that came in on each link, and those that the node itself sent; what the node passed on is
left away, since that is what netemu works out. The far ends answer what they would have seen: the translated packets.
Every byte follows from this program, so running it again changes nothing.
"""

import struct
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
START = 1_768_478_400 * 10**9  # 2026-01-15 12:00:00 UTC, ns
MS = 10**6


# ---- packets ------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """The Internet checksum."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def raw(address: str) -> bytes:
    return ip_address(address).packed


def ipv4(src: str, dst: str, proto: int, body: bytes, ttl: int, ident: int, dont_fragment: bool = True) -> bytes:
    flags = 0x4000 if dont_fragment else 0
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), ident, flags, ttl, proto, 0) + raw(src) + raw(dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def with_checksum(src: str, dst: str, proto: int, segment: bytes, at: int) -> bytes:
    pseudo = raw(src) + raw(dst) + struct.pack("!BBH", 0, proto, len(segment))
    value = checksum(pseudo + segment)
    if proto == 17 and value == 0:
        value = 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


# ---- the trace ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a party stands: the link its packets come in on, its MAC address there, and the TTL they arrive with."""

    link: str
    mac: str
    ttl: int = 64


@dataclass
class Trace:
    """Frames on the links of one node. `links` is name -> MAC, in the order of the capture's interfaces."""

    links: dict[str, str]
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    ident: int = 0x1000
    now: int = 0  # ns since START

    def at(self, ms: float) -> None:
        """Go to a moment, milliseconds after the start."""
        self.now = round(ms * MS)

    def wait(self, ms: float) -> None:
        self.now += round(ms * MS)

    def send(self, place: Place, src: str, dst: str, proto: int, body: bytes, ttl: int = 0) -> bytes:
        """One packet comes in from `place`. Returns the packet."""
        self.ident = self.ident + 1 & 0xFFFF
        packet = ipv4(src, dst, proto, body, ttl or place.ttl, self.ident, dont_fragment=proto != 17)
        own = self.links[place.link]
        # a packet of the node itself carries the link's own address as its source
        macs = (own, place.mac) if place.mac != own else ("02:00:00:00:00:fe", own)
        frame = b"".join(bytes.fromhex(m.replace(":", "")) for m in macs) + b"\x08\x00" + packet
        self.frames.append((self.now, list(self.links).index(place.link), frame.ljust(60, b"\0")))
        return packet

    def tcp(
        self,
        place: Place,
        src: tuple[str, int],
        dst: tuple[str, int],
        flags: int,
        seq: int,
        ack: int = 0,
        data: bytes = b"",
        ttl: int = 0,
    ) -> bytes:
        options = b"\x02\x04\x05\xb4\x01\x03\x03\x07" if flags & SYN else b""
        offset = (5 + len(options) // 4) << 4
        seg = struct.pack("!HHIIBBHHH", src[1], dst[1], seq, ack, offset, flags, 64240, 0, 0) + options + data
        return self.send(place, src[0], dst[0], 6, with_checksum(src[0], dst[0], 6, seg, 16), ttl)

    def udp(self, place: Place, src: tuple[str, int], dst: tuple[str, int], data: bytes, ttl: int = 0) -> bytes:
        seg = struct.pack("!HHHH", src[1], dst[1], 8 + len(data), 0) + data
        return self.send(place, src[0], dst[0], 17, with_checksum(src[0], dst[0], 17, seg, 6), ttl)

    def ping(self, place: Place, src: str, dst: str, ident: int, seq: int = 1, reply: bool = False) -> bytes:
        seg = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, ident, seq) + bytes(range(32))
        return self.send(place, src, dst, 1, seg[:2] + struct.pack("!H", checksum(seg)) + seg[4:])

    def error(self, place: Place, src: str, dst: str, kind: tuple[int, int], about: bytes, rest: int = 0) -> bytes:
        """An ICMP error of `kind` (type, code) about a packet, of which it quotes the header and 64 bytes."""
        seg = struct.pack("!BBHI", *kind, 0, rest) + about[: 20 + 64]
        return self.send(place, src, dst, 1, seg[:2] + struct.pack("!H", checksum(seg)) + seg[4:])

    def pcapng(self) -> bytes:
        """The capture: one Ethernet interface a link, nanoseconds."""

        def block(kind: int, body: bytes) -> bytes:
            body += b"\0" * (-len(body) % 4)
            return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

        def option(code: int, value: bytes) -> bytes:
            return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)

        out = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
        for name in self.links:
            body = struct.pack("<HHI", 1, 0, 0) + option(2, name.encode()) + option(9, b"\x09") + option(0, b"")
            out.append(block(1, body))
        for when, link, frame in sorted(self.frames, key=lambda f: f[0]):
            stamp = START + when
            head = struct.pack("<IIIII", link, stamp >> 32, stamp & 0xFFFFFFFF, len(frame), len(frame))
            out.append(block(6, head + frame))
        return b"".join(out)


@dataclass
class Talk:
    """A TCP conversation through the node: each side as it is, and as the other side sees it.

    client, server   (address, port) of the two        place   where their packets come from
    dialled          what the client calls the server   seen    what the server takes the client for
    """

    trace: Trace
    client: tuple[str, int]
    client_place: Place
    dialled: tuple[str, int]
    server: tuple[str, int]
    server_place: Place
    seen: tuple[str, int]
    pace: float = 2.0  # ms between packets

    def __post_init__(self) -> None:
        self.ahead = 1000 * self.client[1]  # next sequence number of the client
        self.back = 7000 * self.client[1] + 7 & 0xFFFFFFFF

    def say(self, flags: int, data: bytes = b"") -> bytes:
        """The client speaks."""
        ack = 0 if flags == SYN else self.back
        p = self.trace.tcp(self.client_place, self.client, self.dialled, flags, self.ahead, ack, data)
        self.ahead += len(data) + bool(flags & (SYN | FIN))
        self.trace.wait(self.pace)
        return p

    def answer(self, flags: int, data: bytes = b"") -> bytes:
        """The server speaks."""
        p = self.trace.tcp(self.server_place, self.server, self.seen, flags, self.back, self.ahead, data)
        self.back += len(data) + bool(flags & (SYN | FIN))
        self.trace.wait(self.pace)
        return p

    def open(self) -> "Talk":
        self.say(SYN)
        self.answer(SYN | ACK)
        self.say(ACK)
        return self

    def exchange(self, request: bytes, response: bytes) -> "Talk":
        self.say(PSH | ACK, request)
        self.answer(PSH | ACK, response)
        self.say(ACK)
        return self

    def close(self) -> "Talk":
        self.say(FIN | ACK)
        self.answer(FIN | ACK)
        self.say(ACK)
        return self

    def whole(self, request: bytes = b"GET / HTTP/1.1\r\n\r\n", response: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.open().exchange(request, response).close()


# ---- models/nat-gateway -------------------------------------------------------------------------------------------


def nat_gateway() -> Trace:
    links = {"eth0": "02:00:00:00:01:01", "eth1": "02:00:00:00:01:02", "eth2": "02:00:00:00:01:03"}
    links["wwan0"] = "02:00:00:00:01:04"
    t = Trace(links)
    office, servers = Place("eth1", "02:00:00:08:00:21"), Place("eth2", "02:00:00:09:00:31")
    outside, node = Place("eth0", "02:00:00:00:01:fe", 52), Place("eth0", links["eth0"])
    pc, box = "10.8.0.21", "10.9.0.31"
    mine, fixed = "198.51.100.2", "198.51.100.3"  # what MASQUERADE and SNAT make of them
    web, names, ssh = ("192.0.2.80", 80), ("192.0.2.53", 53), ("192.0.2.22", 22)

    # the same port on both inner networks: no clash, the addresses differ
    t.at(0)
    Talk(t, (pc, 40001), office, web, web, outside, (mine, 40001)).whole()
    t.at(100)
    Talk(t, (box, 40001), servers, web, web, outside, (fixed, 40001)).whole()
    # names
    for n, (who, place, seen) in enumerate(((pc, office, mine), (box, servers, fixed), (pc, office, mine))):
        t.at(200 + 20 * n)
        t.udp(place, (who, 50001 + n), names, b"question %d" % n)
        t.wait(8)
        t.udp(outside, names, (seen, 50001 + n), b"answer %d" % n)
    # pings: the id is translated like a port
    for who, place, seen in ((pc, office, mine), (box, servers, fixed)):
        t.wait(10)
        t.ping(place, who, "192.0.2.1", 77)
        t.wait(9)
        t.ping(outside, "192.0.2.1", seen, 77, reply=True)
    # between the inner networks nothing is translated
    t.at(350)
    t.ping(office, pc, box, 78)
    t.wait(1)
    t.ping(servers, box, pc, 78, reply=True)
    # the gateway asks for a name itself
    t.at(360)
    t.udp(node, (mine, 33000), names, b"the gateway's own question")
    t.wait(8)
    t.udp(outside, names, (mine, 33000), b"answer to the gateway")
    # a router far away says that a host cannot be reached: it quotes the translated packet
    t.at(400)
    t.udp(office, (pc, 50010), ("192.0.2.200", 4500), b"is anybody there?")
    t.wait(12)
    body = with_checksum(mine, "192.0.2.200", 17, struct.pack("!HHHH", 50010, 4500, 25, 0) + b"is anybody there?", 6)
    quoted = ipv4(mine, "192.0.2.200", 17, body, 50, 0x3001, dont_fragment=False)
    t.error(outside, "192.0.2.254", mine, (3, 1), quoted)
    # the first step of a traceroute ends here
    t.at(450)
    t.udp(office, (pc, 50020), ("192.0.2.80", 33434), b"hop 1", ttl=1)
    t.wait(1)
    t.udp(office, (pc, 50021), ("192.0.2.80", 33435), b"hop 2", ttl=2)
    # not from here: mail is reset, file sharing is refused with a message
    t.at(500)
    t.tcp(office, (pc, 40025), ("192.0.2.25", 25), SYN, 4_002_500)
    t.wait(5)
    t.udp(servers, (box, 137), ("192.0.2.99", 137), b"who has this name")
    # not from outside: neither to the inner hosts nor to the gateway; an answer that nobody asked for is INVALID
    t.at(600)
    for _ in range(2):
        t.tcp(outside, ("192.0.2.66", 41000), (pc, 22), SYN, 4_100_000)
        t.wait(200)
    t.tcp(outside, ("192.0.2.66", 41001), (mine, 23), SYN, 4_100_100)
    t.wait(5)
    t.tcp(outside, ("192.0.2.80", 80), (mine, 49999), SYN | ACK, 4_100_200, 1)
    t.wait(5)
    t.ping(outside, "192.0.2.1", mine, 79)
    t.wait(1)
    t.ping(node, mine, "192.0.2.1", 79, reply=True)
    # a server that is not there: its reset ends the connection
    t.at(1100)
    shut = Talk(t, (box, 40002), servers, ("192.0.2.80", 81), ("192.0.2.80", 81), outside, (fixed, 40002))
    shut.say(SYN)
    shut.answer(RST | ACK)
    # two long sessions, still open when the uplink goes down at 5 s
    t.at(2000)
    one = Talk(t, (pc, 40022), office, ssh, ssh, outside, (mine, 40022)).open()
    one.exchange(b"SSH-2.0-office\r\n", b"SSH-2.0-far\r\n")
    t.at(2100)
    two = Talk(t, (box, 40022), servers, ssh, ssh, outside, (fixed, 40022)).open()
    two.exchange(b"SSH-2.0-server\r\n", b"SSH-2.0-far\r\n")
    t.at(6000)
    one.exchange(b"ls\r\n", b"notes\r\n")
    t.at(6100)
    two.exchange(b"ls\r\n", b"backup\r\n")
    t.at(6200)
    t.udp(office, (pc, 50030), names, b"question 3")
    t.wait(8)
    t.udp(outside, names, (mine, 50030), b"answer 3")
    return t


# ---- models/web-dnat ----------------------------------------------------------------------------------------------


def web_dnat() -> Trace:
    links = {"eth0": "02:00:00:00:02:01", "eth1": "02:00:00:00:02:02"}
    t = Trace(links)
    outside, node = Place("eth0", "02:00:00:00:02:fe", 52), Place("eth0", links["eth0"])
    inside_node = Place("eth1", links["eth1"])
    server, dns = Place("eth1", "02:00:00:0a:00:80"), Place("eth1", "02:00:00:0a:00:53")
    desk = Place("eth1", "02:00:00:0a:00:21")
    public, visitor = "198.51.100.10", "192.0.2.7"

    # visitors: port 80 goes to 8080, port 443 to 8443; the server sees their own addresses
    Talk(t, (visitor, 40001), outside, (public, 80), ("10.0.0.80", 8080), server, (visitor, 40001)).whole()
    t.at(100)
    secure = Talk(t, (visitor, 40002), outside, (public, 443), ("10.0.0.80", 8443), server, (visitor, 40002))
    secure.whole(b"\x16\x03\x01 hello", b"\x16\x03\x03 hello")
    # the name server
    t.at(200)
    for n in range(2):
        t.udp(outside, (visitor, 50001 + n), (public, 53), b"question %d" % n)
        t.wait(3)
        t.udp(dns, ("10.0.0.53", 53), (visitor, 50001 + n), b"answer %d" % n)
        t.wait(7)
    # from inside by the public address: back out on the link it came from, so the gateway puts itself in between
    t.at(300)
    Talk(t, ("10.0.0.21", 40003), desk, (public, 80), ("10.0.0.80", 8080), server, ("10.0.0.1", 40003)).whole()
    # and from inside to the world
    t.at(400)
    far = ("192.0.2.80", 80)
    Talk(t, ("10.0.0.21", 40004), desk, far, far, outside, (public, 40004)).whole()
    # the clock of the inner hosts is the gateway's, whatever server they name
    t.at(500)
    t.udp(desk, ("10.0.0.21", 123), ("192.0.2.123", 123), b"what time is it".ljust(48, b"\0"))
    t.wait(1)
    t.udp(inside_node, ("10.0.0.1", 123), ("10.0.0.21", 123), b"time for tea".ljust(48, b"\0"))
    # pings: outside to the gateway, inside to the world
    t.at(520)
    t.ping(outside, visitor, public, 81)
    t.wait(1)
    t.ping(node, public, visitor, 81, reply=True)
    t.wait(5)
    t.ping(desk, "10.0.0.21", "192.0.2.1", 82)
    t.wait(9)
    t.ping(outside, "192.0.2.1", public, 82, reply=True)
    # a router on the way says that the answer was too big: it quotes what it saw, the server must learn of it
    t.at(600)
    big = Talk(t, (visitor, 40005), outside, (public, 80), ("10.0.0.80", 8080), server, (visitor, 40005)).open()
    big.say(PSH | ACK, b"GET /large HTTP/1.1\r\n\r\n")
    seq = big.back
    big.answer(ACK, b"x" * 1400)
    seg = struct.pack("!HHIIBBHHH", 80, 40005, seq, big.ahead, 0x50, ACK, 64240, 0, 0) + b"x" * 1400
    quoted = ipv4(public, visitor, 6, with_checksum(public, visitor, 6, seg, 16), 60, 0x3002)
    t.error(outside, "192.0.2.254", public, (3, 4), quoted, rest=1400)
    t.wait(2)
    big.back = seq
    big.answer(ACK, b"x" * 1360)
    big.say(ACK)
    big.answer(RST | ACK)
    # the name server is down for a moment: its refusal goes out as the public address's
    t.at(700)
    asked = t.udp(outside, (visitor, 50010), (public, 53), b"question 3")
    t.wait(3)
    seg = with_checksum(visitor, "10.0.0.53", 17, asked[20:26] + b"\0\0" + asked[28:], 6)
    t.error(dns, "10.0.0.53", visitor, (3, 3), ipv4(visitor, "10.0.0.53", 17, seg, 51, 0x3003, dont_fragment=False))
    # a traceroute to the web server, and what is not let in
    t.at(800)
    t.tcp(outside, (visitor, 40006), (public, 80), SYN, 4_000_600, ttl=1)
    t.wait(5)
    t.tcp(outside, ("192.0.2.66", 41000), (public, 23), SYN, 4_100_000)
    t.wait(5)
    t.udp(outside, ("192.0.2.66", 41001), (public, 161), b"public")
    t.wait(5)
    t.tcp(outside, ("203.0.113.70", 41002), (public, 80), SYN, 4_100_200)
    t.wait(5)
    t.tcp(outside, ("192.0.2.243", 41003), (public, 443), SYN, 4_100_300)
    t.wait(5)
    t.tcp(outside, ("192.0.2.66", 41004), ("10.0.0.80", 8080), SYN, 4_100_400)
    t.wait(5)
    t.tcp(outside, ("192.0.2.66", 41005), (public, 80), ACK | PSH, 4_100_500, 1, b"out of nowhere")
    return t


# ---- models/kube-ipvs and models/kube-iptables --------------------------------------------------------------------

KUBE_LINKS = {"eth0": "02:00:00:00:00:01", "cni0": "02:00:00:00:00:02"}
ROUTER, BESIDE = Place("eth0", "02:00:00:00:00:fe", 52), Place("eth0", KUBE_LINKS["eth0"])
NODE_B, NODE_C = Place("eth0", "02:00:00:00:00:0b", 63), Place("eth0", "02:00:00:00:00:0c", 63)
NODE = "10.0.0.1"


def pod_place(address: str) -> Place:
    """Where the packets of a pod come from."""
    _, _, net, host = address.split(".")
    return {"1": NODE_B, "2": NODE_C}.get(net) or Place("cni0", f"02:00:0a:f4:00:{int(host):02x}")


def call(t: Trace, client: tuple[str, int], dialled: tuple[str, int], server: tuple[str, int], seen: str = "") -> Talk:
    """A conversation with a service: by a pod when the client is one, else from outside; `seen` as what address."""
    place = pod_place(client[0]) if client[0].startswith("10.244.") else ROUTER
    far = NODE_C if server[0] == "10.0.0.12" else pod_place(server[0])
    return Talk(t, client, place, dialled, server, far, (seen or client[0], client[1]))


def kube_common(t: Trace) -> None:
    """What goes the same way in both modes: services with one endpoint that counts, and no service at all."""
    me = "10.244.0.20"
    # a pod and the API server: a conversation, and one that is refused
    t.at(2000)
    call(t, (me, 40001), ("10.96.0.1", 443), ("10.0.0.12", 6443)).whole(b"\x16\x03\x01 hello", b"\x16\x03\x03 hello")
    t.at(2100)
    shut = call(t, (me, 40002), ("10.96.0.1", 443), ("10.0.0.12", 6443))
    shut.say(SYN)
    shut.answer(RST | ACK)
    # the load balancer with source ranges: from an allowed network, and from another
    t.at(2200)
    call(t, ("198.51.100.7", 40003), ("203.0.113.30", 443), ("10.244.1.6", 8443), NODE).whole()
    t.at(2300)
    for _ in range(2):
        t.tcp(ROUTER, ("192.0.2.66", 41000), ("203.0.113.30", 443), SYN, 4_100_000)
        t.wait(150)
    # externalTrafficPolicy Local: the pod of this node answers, and sees the client's own address
    t.at(2700)
    call(t, ("198.51.100.7", 40004), ("203.0.113.40", 80), ("10.244.0.9", 8080)).whole()
    t.at(2800)
    call(t, ("198.51.100.8", 40005), (NODE, 30081), ("10.244.0.9", 8080)).whole()
    # its health check is answered by the node itself
    t.at(2900)
    probe, check = ("10.0.0.254", 45000), (NODE, 32080)
    t.tcp(ROUTER, probe, check, SYN, 4_500_000)
    t.wait(1)
    t.tcp(BESIDE, check, probe, SYN | ACK, 4_600_000, 4_500_001)
    t.wait(1)
    t.tcp(ROUTER, probe, check, ACK, 4_500_001, 4_600_001)
    # UDP by NodePort: syslog is masqueraded and says nothing, the game answers a client it can see
    t.at(3000)
    for n in range(3):
        t.udp(ROUTER, ("198.51.100.9", 50001), (NODE, 30514), b"<13>message %d" % n)
        t.wait(20)
    for n in range(2):
        t.udp(ROUTER, ("198.51.100.9", 50002), (NODE, 30777), b"move %d" % n)
        t.wait(4)
        t.udp(pod_place("10.244.0.8"), ("10.244.0.8", 7777), ("198.51.100.9", 50002), b"board %d" % n)
        t.wait(16)
    # a pod calls a service that it alone is: it meets itself, as the node's address
    t.at(3200)
    call(t, ("10.244.0.11", 40006), ("10.96.0.80", 80), ("10.244.0.11", 8080), "10.244.0.1").whole()
    # internalTrafficPolicy Local: the agent of this node
    t.at(3300)
    call(t, (me, 40007), ("10.96.0.90", 4317), ("10.244.0.12", 4317)).whole(b"\n\x03span", b"\n\x02ok")
    # a pod's refusal comes back as the service's
    t.at(3400)
    line = b"<13>nobody listens"
    t.udp(pod_place(me), (me, 50003), ("10.96.0.60", 514), line)
    t.wait(2)
    seg = with_checksum(me, "10.244.2.10", 17, struct.pack("!HHHH", 50003, 5514, 8 + len(line), 0) + line, 6)
    quoted = ipv4(me, "10.244.2.10", 17, seg, 62, 0x3004, dont_fragment=False)
    t.error(NODE_C, "10.244.2.10", me, (3, 3), quoted)
    # nobody is there: refused by address and by node port
    t.at(3500)
    t.tcp(pod_place(me), (me, 40008), ("10.96.0.99", 80), SYN, 4_000_800)
    t.wait(5)
    t.tcp(ROUTER, ("198.51.100.7", 40009), (NODE, 30099), SYN, 4_000_900)
    # a port that the service does not have, and a ping to it
    t.at(3550)
    t.tcp(pod_place(me), (me, 40010), ("10.96.0.20", 8081), SYN, 4_001_000)
    t.wait(5)
    t.ping(pod_place(me), me, "10.96.0.20", 90)
    # no service: pod to pod, and the first step of a traceroute
    t.at(3600)
    t.ping(pod_place(me), me, "10.244.1.5", 91)
    t.wait(2)
    t.ping(NODE_B, "10.244.1.5", me, 91, reply=True)
    t.wait(5)
    t.udp(pod_place(me), (me, 50004), ("192.0.2.80", 33434), b"hop 1", ttl=1)
    t.wait(5)
    # the node's own door
    t.tcp(ROUTER, ("198.51.100.7", 40011), (NODE, 22), SYN, 4_001_100)
    t.wait(1)
    t.tcp(BESIDE, (NODE, 22), ("198.51.100.7", 40011), SYN | ACK, 4_700_000, 4_001_101)


def kube_ipvs() -> Trace:
    """Round robin begins with the endpoint that was added last, so the far ends are known beforehand."""
    t = Trace(KUBE_LINKS)
    me = "10.244.0.20"
    # names: two pods answer in turn
    for n, pod in enumerate(("10.244.1.2", "10.244.0.2", "10.244.1.2")):
        t.at(20 * n)
        t.udp(pod_place(me), (me, 51001 + n), ("10.96.0.10", 53), b"question %d" % n)
        t.wait(3)
        t.udp(pod_place(pod), (pod, 53), (me, 51001 + n), b"answer %d" % n)
    # three pods in turn, on node-c, node-b and here
    for n, pod in enumerate(("10.244.2.5", "10.244.1.5", "10.244.0.5")):
        t.at(100 + 100 * n)
        call(t, (me, 42001 + n), ("10.96.0.20", 80), (pod, 8080)).whole()
    # from outside, by node port and by external address: each virtual server has its own turn, and hides the client
    t.at(500)
    call(t, ("198.51.100.7", 42010), (NODE, 30080), ("10.244.2.5", 8080), NODE).whole()
    t.at(600)
    call(t, ("198.51.100.7", 42011), ("203.0.113.80", 80), ("10.244.2.5", 8080), NODE).whole()
    # session affinity: the same client meets the same pod, another client the next one
    for n, (who, pod) in enumerate(((me, "10.244.1.7"), (me, "10.244.1.7"), ("10.244.0.21", "10.244.0.7"))):
        t.at(700 + 50 * n)
        call(t, (who, 42020 + n), ("10.96.0.50", 443), (pod, 9443)).open()
    kube_common(t)
    return t


def kube_iptables() -> Trace:
    """Linux draws the endpoint at random: where there are several, only the client's side is in the trace."""
    t = Trace(KUBE_LINKS)
    me = "10.244.0.20"
    for n in range(3):
        t.at(20 * n)
        t.udp(pod_place(me), (me, 51001 + n), ("10.96.0.10", 53), b"question %d" % n)
    for n in range(3):
        t.at(100 + 100 * n)
        t.tcp(pod_place(me), (me, 42001 + n), ("10.96.0.20", 80), SYN, 4_200_100 + n)
    t.at(500)
    t.tcp(ROUTER, ("198.51.100.7", 42010), (NODE, 30080), SYN, 4_201_000)
    t.at(600)
    t.tcp(ROUTER, ("198.51.100.7", 42011), ("203.0.113.80", 80), SYN, 4_201_100)
    for n, who in enumerate((me, me, "10.244.0.21")):
        t.at(700 + 50 * n)
        t.tcp(pod_place(who), (who, 42020 + n), ("10.96.0.50", 443), SYN, 4_202_000 + n)
    kube_common(t)
    return t


TRACES = {
    "nat-gateway": nat_gateway,
    "web-dnat": web_dnat,
    "kube-ipvs": kube_ipvs,
    "kube-iptables": kube_iptables,
}


def main() -> None:
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    where.mkdir(parents=True, exist_ok=True)
    for name, make in TRACES.items():
        (where / f"{name}.pcapng").write_bytes(make().pcapng())


if __name__ == "__main__":
    main()
