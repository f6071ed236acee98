"""The stories of tests/kernel, and how they are recorded on real kernels.

usage: tests/kernel/record.py [WORD...]      (root, for the running kernel; only stories whose name has a WORD)

Each story is a small node and a conversation through it. The far ends answer what really left. The recordings are the
.case files beside this program: a line or two of story, the node, each packet with the path that the kernel's TRACE
logged and what left, and the tables afterwards. Recording again changes times, and ports that Linux draws at random.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from craft import answer, checksum, chunk, dccp, error, icmp, ip, sctp, tcp, udp  # noqa: E402

from netemu import Node, lab  # noqa: E402

LINKS = """
[[link]]
name = "eth0"
mac = "02:00:00:00:00:01"
addresses = ["198.51.100.1/24", "198.51.100.9/24"]
[[link]]
name = "lan0"
mac = "02:00:00:00:00:02"
addresses = ["10.0.0.1/24"]
[[route]]
to = "default"
via = "198.51.100.254"
dev = "eth0"
"""
OUT, SRV, SRV2 = "192.0.2.7", "10.0.0.5", "10.0.0.6"
NODE = "198.51.100.1"


@dataclass
class Story:
    """A node and a conversation with it, made while netemu goes through it, so that the far ends can answer."""

    name: str
    kernel: str  # 6.1 or 6.18
    story: str = ""
    links: str = LINKS
    sysctl: dict[str, int] = field(default_factory=dict)
    iptables: str = ""
    ipset: str = ""
    ipvs: str = ""
    now: float = 0.0
    events: list[lab.Event] = field(default_factory=list)
    left: list[list[tuple[str, bytes]]] = field(default_factory=list)
    node: Node | None = None
    serial: int = 0
    nfacct: str = ""

    def texts(self) -> dict[str, str]:
        knobs = {f"net.ipv4.conf.{n}.send_redirects": 0 for n in ("all", "default", "eth0", "lan0")} | self.sysctl
        toml = f'kernel = "{self.kernel}"\n{self.links.strip()}\n[sysctl]\n'
        toml += "".join(f'"{k}" = {v}\n' for k, v in knobs.items())
        texts = {"node.toml": toml, "iptables.save": tables(self.iptables)}
        texts |= {"ipset.save": trimmed(self.ipset)} if self.ipset else {}
        texts |= {"nfacct.list": trimmed(self.nfacct)} if self.nfacct else {}
        texts |= {"ipvsadm.save": trimmed(self.ipvs)} if self.ipvs else {}
        return texts

    def case(self) -> lab.Case:
        return lab.Case(f"{self.name} on {self.kernel}", trimmed(self.story), self.texts(), self.events, self.now)

    def _do(self, event: lab.Event) -> int:
        if self.node is None:
            self.node = Node(lab.model_of(self.case()), seed=1)
        self.events.append(event)
        if event.command is not None:
            with contextlib.suppress(lab.Refused):  # some stories tell of a refusal
                self.node.run(event.command, at=event.at)
            self.left.append([])
        else:
            self.left.append(list(self.node.send(event.packet or b"", event.link, event.at).out))
        return len(self.events) - 1

    def sends(self, link: str | None, packet: bytes, answers: int | None = None) -> int:
        """A packet comes in on `link` (None: the node sends it); its number."""
        self.now = round(self.now + 0.001, 6)
        return self._do(lab.Event(self.now, link, packet, answers=answers))

    def runs(self, command: str) -> int:
        self.now = round(self.now + 0.001, 6)
        return self._do(lab.Event(self.now, command=command))

    def waits(self, seconds: float) -> None:
        self.now = round(self.now + seconds, 6)

    def answered(self, k: int, make: Callable[[bytes], bytes | None] = answer, which: int = -1) -> int:
        """The far end answers what left because of packet `k`."""
        link, packet = self.left[k][which]
        back = make(packet)
        assert back is not None
        return self.sends(link, back, answers=k)

    def handshake(self, link: str, src: str, sport: int, dst: str, dport: int) -> tuple[int, int]:
        """SYN, SYN-ACK, ACK; the numbers of the SYN and of the ACK."""
        syn = self.sends(link, tcp(src, sport, dst, dport, "S", 1000))
        self.answered(syn)
        ack = self.sends(link, tcp(src, sport, dst, dport, "A", 1001, 8013346))
        return syn, ack


def trimmed(text: str) -> str:
    return "".join(f"{line.strip()}\n" for line in text.strip().splitlines())


BUILT_IN = {
    "raw": "PREROUTING OUTPUT",
    "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    "filter": "INPUT FORWARD OUTPUT",
}


def tables(text: str) -> str:
    """iptables-save's text of lines like `nat PREROUTING -p tcp -j DNAT ...` and `filter FORWARD policy DROP`."""
    rules: dict[str, list[str]] = {}
    chains: dict[str, dict[str, str]] = {}
    for line in trimmed(text).splitlines():
        table, chain, rule = line.split(" ", 2)
        known = chains.setdefault(table, dict.fromkeys(BUILT_IN[table].split(), "ACCEPT"))
        if rule.startswith("policy "):
            known[chain] = rule.split()[1]
            continue
        known.setdefault(chain, "-")
        rules.setdefault(table, []).append(f"-A {chain} {rule}")
    out = []
    for table, known in chains.items():
        out += [f"*{table}", *(f":{chain} {policy} [0:0]" for chain, policy in known.items())]
        out += [*rules.get(table, []), "COMMIT"]
    return "\n".join(out) + "\n" if out else ""


STORIES: list[Callable[[str], Story]] = []
KERNELS: dict[str, tuple[str, ...]] = {}


def story(*kernels: str) -> Callable[[Callable[[str], Story]], Callable[[str], Story]]:
    """Tell this story on these kernels (default: both)."""

    def told(make: Callable[[str], Story]) -> Callable[[str], Story]:
        STORIES.append(make)
        KERNELS[make.__name__] = kernels or ("6.1", "6.18")
        return make

    return told


# ---- nat -----------------------------------------------------------------------------------------------------------


@story()
def nat_dnat_and_back(kernel: str) -> Story:
    s = Story(
        "nat/dnat-and-back",
        kernel,
        """A published port leads to an inner server, and the server's answers come back from the published address.
        An ICMP error about the inner packet is translated back, header and quotation.""",
        iptables="nat PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080",
    )
    syn, _ = s.handshake("eth0", OUT, 4000, NODE, 80)
    s.answered(syn, lambda sent: error(SRV, OUT, sent))
    s.sends("eth0", tcp(OUT, 4000, NODE, 80, "FA", 1001, 1))
    s.sends("eth0", icmp(OUT, NODE))
    return s


@story()
def nat_masquerade_collides(kernel: str) -> Story:
    s = Story(
        "nat/masquerade-collides",
        kernel,
        """Two inner hosts use the same source port towards the same server: the second gets another port,
        drawn at random; its answers find the way back.""",
        iptables="nat POSTROUTING -o eth0 -j MASQUERADE",
    )
    first = s.sends("lan0", udp(SRV, 5000, OUT, 53))
    second = s.sends("lan0", udp(SRV2, 5000, OUT, 53))
    s.answered(first)
    s.answered(second)
    ping = s.sends("lan0", icmp(SRV, OUT, number=7))
    s.answered(s.sends("lan0", icmp(SRV2, OUT, number=7)))
    s.answered(ping)
    return s


@story()
def nat_snat_range(kernel: str) -> Story:
    s = Story(
        "nat/snat-range",
        kernel,
        """Which address of a range a client gets follows from source and destination; --persistent: from the
        source alone.""",
        iptables="""nat POSTROUTING -p udp -o eth0 -j SNAT --to-source 198.51.100.20-198.51.100.27
            nat POSTROUTING -p tcp -o eth0 -j SNAT --to-source 198.51.100.20-198.51.100.27 --persistent""",
    )
    for k in range(6):
        s.sends("lan0", udp(f"10.0.0.{50 + k}", 5000, OUT, 53))
        s.sends("lan0", udp("10.0.0.50", 5000, f"192.0.2.{k + 20}", 53))
        s.sends("lan0", tcp("10.0.0.50", 5000, f"192.0.2.{k + 20}", 80))
        s.sends("lan0", tcp(f"10.0.0.{50 + k}", 5001, OUT, 80))
    return s


@story()
def nat_port_range_exhausted(kernel: str) -> Story:
    s = Story(
        "nat/port-range-exhausted",
        kernel,
        """Three ports for four clients of one server: the fourth finds none and its packet is dropped.""",
        iptables="nat POSTROUTING -p udp -o eth0 -j SNAT --to-source 198.51.100.9:6000-6002",
    )
    for k in range(4):
        s.sends("lan0", udp(f"10.0.0.{50 + k}", 6000 + k % 3, OUT, 53))
    return s


@story()
def nat_netmap_and_redirect(kernel: str) -> Story:
    s = Story(
        "nat/netmap-and-redirect",
        kernel,
        """A whole net maps one to one; a port is taken by the node itself; what the node sends can
        be sent elsewhere too.""",
        iptables="""nat PREROUTING -d 203.0.113.0/24 -j NETMAP --to 10.0.0.0/24
            nat PREROUTING -i lan0 -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353
            nat OUTPUT -d 203.0.113.5/32 -p tcp -j DNAT --to-destination 10.0.0.5:8080""",
    )
    s.answered(s.sends("eth0", udp(OUT, 5000, "203.0.113.5", 99)))
    s.sends("lan0", udp(SRV, 5000, "8.8.8.8", 53))
    s.sends(None, udp("10.0.0.1", 5353, SRV, 5000, b"answer"))
    s.answered(s.sends(None, tcp(NODE, 4000, "203.0.113.5", 80)))
    return s


@story()
def nat_hairpin(kernel: str) -> Story:
    s = Story(
        "nat/hairpin",
        kernel,
        """An inner client reaches an inner server by its outer address: translated on both sides, there and back.""",
        iptables="""nat PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080
            nat POSTROUTING -s 10.0.0.0/24 -d 10.0.0.5/32 -p tcp -j MASQUERADE""",
    )
    s.handshake("lan0", SRV2, 4000, NODE, 80)
    return s


# ---- filter, conntrack, tcp ----------------------------------------------------------------------------------------


@story()
def filter_chains(kernel: str) -> Story:
    s = Story(
        "filter/chains",
        kernel,
        """Jumps, gotos, RETURN and the ends of chains: the end of a chain that was gone to leads back
        to where the last jump was.""",
        iptables="""filter FORWARD -p udp -j ONE
            filter FORWARD -p tcp -g TWO
            filter FORWARD -p icmp -j DROP
            filter FORWARD policy DROP
            filter ONE -p udp -m udp --dport 1 -j RETURN
            filter ONE -p udp -m udp --dport 2 -g TWO
            filter ONE -p udp -m udp --dport 3 -j TWO
            filter ONE -p udp -m udp --dport 5 -j REJECT --reject-with icmp-admin-prohibited
            filter ONE -m mark --mark 0x1 -j ACCEPT
            filter TWO -j MARK --set-xmark 0x1/0xffffffff
            filter TWO -p udp -m multiport --dports 4,80:90 -j ACCEPT""",
    )
    for port in (1, 2, 3, 4, 5, 80):
        s.sends("lan0", udp(SRV, 5000, OUT, port))
        s.sends("lan0", tcp(SRV, 5000, OUT, port))
    s.sends("lan0", icmp(SRV, OUT))
    return s


@story()
def filter_rejects(kernel: str) -> Story:
    s = Story(
        "filter/rejects",
        kernel,
        """Every way to say no, forwarded, delivered and sent; no errors about errors, no resets
        about resets.""",
        iptables="""filter FORWARD -p tcp -j REJECT --reject-with tcp-reset
            filter FORWARD -p udp -m udp --dport 1 -j REJECT --reject-with icmp-net-unreachable
            filter FORWARD -p udp -m udp --dport 2 -j REJECT --reject-with icmp-host-prohibited
            filter FORWARD -j REJECT --reject-with icmp-port-unreachable
            filter INPUT -p tcp -m tcp --dport 22 -j REJECT --reject-with tcp-reset
            filter OUTPUT -p udp -m udp --dport 9 -j REJECT --reject-with icmp-proto-unreachable""",
    )
    for flags in ("S", "A", "R", "FA"):
        s.sends("lan0", tcp(SRV, 5000, OUT, 80, flags, 77, 99, data=b"abc" if flags == "A" else b""))
    for port in (1, 2, 3):
        s.sends("lan0", udp(SRV, 5000, OUT, port))
    s.sends("lan0", icmp(SRV, OUT))
    s.sends("lan0", error(SRV, OUT, udp(OUT, 1, SRV, 2)))
    s.sends("eth0", tcp(OUT, 5000, NODE, 22))
    s.sends(None, udp(NODE, 5000, OUT, 9))
    return s


@story()
def tcp_life(kernel: str) -> Story:
    s = Story(
        "tcp/life",
        kernel,
        """A connection from SYN to TIME_WAIT, with a segment outside the window and a SYN that begins a new life.""",
        iptables="""filter FORWARD -m conntrack --ctstate INVALID -j DROP
            filter FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
            filter FORWARD -p tcp -m conntrack --ctstate NEW -j ACCEPT""",
    )
    a, b = (SRV, 5000), (OUT, 80)

    def right(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> None:
        s.sends("lan0", tcp(*a, *b, flags, seq, ack, data=data))

    def back(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> None:
        s.sends("eth0", tcp(*b, *a, flags, seq, ack, data=data))

    right("S", 1000)
    back("SA", 9000, 1001)
    right("A", 1001, 9001)
    right("PA", 1001, 9001, b"x" * 10)
    back("A", 9001, 1011)
    back("PA", 9001 + 500_000, 1011, b"far")
    back("R", 9001 + 500_000)
    right("FA", 1011, 9001)
    back("FA", 9001, 1012)
    right("A", 1012, 9002)
    right("S", 500_000)
    back("SA", 700_000, 500_001)
    right("R", 500_001)
    return s


@story()
def tcp_odd_beginnings(kernel: str) -> Story:
    s = Story(
        "tcp/odd-beginnings",
        kernel,
        """Picked up in the middle, SYN with RST, no flags at all, a SYN-ACK out of nowhere, both ends at once.""",
        iptables="""filter FORWARD -m conntrack --ctstate INVALID -j DROP
            filter FORWARD -m conntrack --ctstate NEW -j ACCEPT
            filter FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT""",
    )
    for k, flags in enumerate(("A", "PA", "FA", "SA", "R", "RA", "SR", "SF", "", "FPU")):
        s.sends("lan0", tcp(SRV, 6000 + k, OUT, 80, flags, 1000, 2000, data=b"x" * (k % 3)))
        s.sends("eth0", tcp(OUT, 80, SRV, 6000 + k, "A", 2000, 1001))
    s.sends("lan0", tcp(SRV, 7000, OUT, 80, "S", 100))
    s.sends("eth0", tcp(OUT, 80, SRV, 7000, "S", 900))
    s.sends("lan0", tcp(SRV, 7000, OUT, 80, "SA", 100, 901))
    s.sends("eth0", tcp(OUT, 80, SRV, 7000, "SA", 900, 101))
    return s


@story()
def picked_up_and_opened_anew(kernel: str) -> Story:
    s = Story(
        "found/picked-up-and-opened-anew",
        kernel,
        """A connection that was met in the middle begins anew, as its ends agree: whoever sent the SYN is held to its
        windows from then on, whoever answered is still believed.""",
        iptables=STATES,
    )
    for port, far in ((5000, (800_000_000, "FA")), (5001, (2_000_000, "A")), (5002, (0, "A"))):
        s.sends("lan0", tcp(SRV, port, OUT, 80, "PA", 3_000_000_000, 3_900_000_000, data=b"x"))
        s.sends("lan0", tcp(SRV, port, OUT, 80, "S", 1_000_000, win=100))
        s.sends("eth0", tcp(OUT, 80, SRV, port, "SA", 3_000_000, 1_000_001))
        s.sends("eth0", tcp(OUT, 80, SRV, port, far[1], 3_000_001 + far[0], 1_000_001))
        s.sends("lan0", tcp(SRV, port, OUT, 80, "A", 1_000_001 + far[0], 3_000_001))
    return s


@story()
def conntrack_states(kernel: str) -> Story:
    s = Story(
        "conntrack/states",
        kernel,
        """NEW, ESTABLISHED, RELATED, UNTRACKED, and what is INVALID: an answer that nobody asked
        for, a wrong checksum.""",
        iptables="""raw PREROUTING -p udp -m udp --dport 7 -j CT --notrack
            filter FORWARD -m conntrack --ctstate UNTRACKED -j ACCEPT
            filter FORWARD -m conntrack --ctstate RELATED -j ACCEPT
            filter FORWARD -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j ACCEPT
            filter FORWARD -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x5/0xffffffff
            filter FORWARD -m conntrack --ctstate INVALID -j DROP
            mangle POSTROUTING -m connmark --mark 0x5 -j TTL --ttl-set 9""",
    )
    k = s.sends("lan0", udp(SRV, 5000, OUT, 53))
    s.answered(k, lambda sent: error(OUT, SRV, sent, 3, 3))
    s.answered(k)
    s.sends("lan0", udp(SRV, 5000, OUT, 53))
    s.sends("lan0", udp(SRV, 5000, OUT, 7))
    s.sends("eth0", icmp(OUT, SRV, 0, 0, 99))
    s.sends("eth0", error(OUT, SRV, udp(SRV, 1, OUT, 2)))
    bad = bytearray(tcp(SRV, 5001, OUT, 80))
    bad[36] ^= 0xFF
    s.sends("lan0", bytes(bad))
    s.runs("conntrack -D -p udp --dport 53")
    s.answered(k)
    return s


STATES = """filter FORWARD -m conntrack --ctstate INVALID -j DROP
    filter FORWARD -m conntrack --ctstate NEW -j ACCEPT
    filter FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"""
ACCOUNTS = {"net.netfilter.nf_conntrack_acct": 1}
TAG_IN, TAG_OUT = 0xA, 0xB  # what the inner and the outer end of an association want to see
SETTLED = ("init", "<init_ack", "cookie_echo", "<cookie_ack")


def associate(s: Story, port: int, *kinds: str) -> None:
    """Chunks from the inner host, or to it (`<`), one a packet; `<abort/5` says the tag too, `abort!` has the T bit."""
    for word in kinds:
        kind, _, said = word.lstrip("<").partition("/")
        back, reflected = word.startswith("<"), kind.endswith("!")
        kind = kind.rstrip("!")
        tag = 0 if kind == "init" else TAG_IN if back != reflected else TAG_OUT
        ends = (OUT, 80, SRV, port) if back else (SRV, port, OUT, 80)
        piece = chunk(kind, TAG_OUT if back else TAG_IN, int(reflected))
        s.sends("eth0" if back else "lan0", sctp(*ends, int(said) if said else tag, piece))


@story()
def conntrack_sctp(kernel: str) -> Story:
    s = Story(
        "conntrack/sctp",
        kernel,
        """SCTP associations from the first INIT to the last chunk, given up, reset, picked up by a HEARTBEAT on another
        path, and what belongs to none: other tags, other beginnings, a wrong checksum.""",
        iptables=STATES,
        sysctl=ACCOUNTS,
    )
    port = 5000
    for kinds in (
        (*SETTLED, "data", "<data", "shutdown", "<shutdown_ack", "complete", "init", "<data"),
        (*SETTLED, "<shutdown", "shutdown_ack", "<complete!", "<init"),
        (*SETTLED, "data/99", "<data/99", "abort/77", "abort!", "data"),
        (*SETTLED, "<abort", "init", "<init_ack", "cookie_echo"),
        ("init", "init", "<error", "<init_ack", "cookie_echo", "<error"),
        ("init/5", "data", "cookie_echo", "cookie_ack", "complete", "<data"),
        ("beat", "<beat_ack", "data", "<data"),
        ("beat", "<data", "<beat", "beat/9", "<beat_ack/7", "beat/9"),
        ("shutdown_ack", "<complete!", "data"),
        ("beat_ack", "<init_ack"),
        ("init", "<init", "<init_ack", "init_ack"),
    ):
        port += 1
        associate(s, port, *kinds)
    a = (SRV, 6000, OUT, 80)
    s.sends("lan0", sctp(*a, 0, chunk("init", TAG_IN), wrong=True))
    s.sends("lan0", sctp(*a, 0, chunk("init", TAG_IN), chunk("data")))
    s.sends("lan0", sctp(*a, 0))
    s.sends("lan0", sctp(*a, TAG_OUT, chunk("beat"), chunk("cookie_echo")))
    s.sends("lan0", sctp(*a, TAG_OUT, chunk("beat"), chunk("data"), chunk("shutdown")))
    s.sends("lan0", ip(SRV, OUT, 132, b"short"))
    return s


@story()
def conntrack_sctp_tags_again(kernel: str) -> Story:
    s = Story(
        "conntrack/sctp-tags-again",
        kernel,
        """An INIT on a living association: by either end, with the tag that it has or another one, and every answer to
        it. A late INIT, which has the old tag, leaves the other end bound to what it said.""",
        iptables=STATES,
        sysctl=ACCOUNTS,
    )
    port = 5000
    for begun in (SETTLED[:2], SETTLED):
        for back in (False, True):
            for tag in (TAG_IN, TAG_OUT, 0xC):
                for offered in (TAG_IN, TAG_OUT, 0xC):
                    port += 1
                    associate(s, port, *begun)
                    there, here = (SRV, port, OUT, 80), (OUT, 80, SRV, port)
                    ends = (here, there) if back else (there, here)
                    links = ("eth0", "lan0") if back else ("lan0", "eth0")
                    s.sends(links[0], sctp(*ends[0], 0, chunk("init", tag)))
                    s.sends(links[1], sctp(*ends[1], tag, chunk("init_ack", offered)))
    return s


@story()
def nat_sctp(kernel: str) -> Story:
    s = Story(
        "nat/sctp",
        kernel,
        """Addresses and ports of SCTP packets are translated there and back, and the checksum is made anew, that of
        packets whose checksum was wrong too, if it is not looked at.""",
        iptables="""nat PREROUTING -d 198.51.100.1/32 -p sctp -m sctp --dport 80 -j DNAT --to-destination 10.0.0.5:8080
            nat POSTROUTING -o eth0 -j MASQUERADE
            filter FORWARD -m conntrack --ctstate INVALID -j DROP""",
        sysctl={"net.netfilter.nf_conntrack_checksum": 0},
    )
    s.sends("eth0", sctp(OUT, 4000, NODE, 80, 0, chunk("init", TAG_OUT)))
    s.sends("lan0", sctp(SRV, 8080, OUT, 4000, TAG_OUT, chunk("init_ack", TAG_IN)))
    s.sends("eth0", sctp(OUT, 4000, NODE, 80, TAG_IN, chunk("cookie_echo")))
    s.sends("lan0", sctp(SRV, 8080, OUT, 4000, TAG_OUT, chunk("cookie_ack")))
    s.sends("lan0", sctp(SRV, 5000, OUT, 80, 0, chunk("init", TAG_IN)))
    s.sends("eth0", sctp(OUT, 80, NODE, 5000, TAG_IN, chunk("init_ack", TAG_OUT)))
    s.sends("lan0", sctp(SRV, 5000, OUT, 80, TAG_OUT, chunk("cookie_echo"), wrong=True))
    s.sends("lan0", sctp(SRV, 5000, OUT, 80, TAG_OUT, chunk("data"), chunk("data")))
    s.sends("lan0", error(SRV, OUT, sctp(OUT, 4000, SRV, 8080, TAG_IN, chunk("cookie_echo"))))
    return s


@story()
def conntrack_dccp(kernel: str) -> Story:
    s = Story(
        "conntrack/dccp",
        kernel,
        """DCCP from request to reset: Linux 6.1 follows it, later ones track it as an unknown protocol.""",
        iptables=STATES,
        sysctl=ACCOUNTS,
    )
    opened = ("request", "<response", "ack", "<data")
    for k, kinds in enumerate((
        (*opened, "dataack", "<ack", "<closereq", "close", "<reset", "<request", "response", "<ack"),
        (*opened, "close", "<reset", "reset", "sync"),
        ("request", "request", "<data", "<response", "dataack", "ack"),
        ("request", "<reset", "<response", "request"),
        ("request", "sync", "<request", "response", "<ack", "data"),
        ("data", "response", "<request", "response"),
    )):  # fmt: skip
        for word in kinds:
            back = word.startswith("<")
            ends = (OUT, 80, SRV, 5000 + k) if back else (SRV, 5000 + k, OUT, 80)
            s.sends("eth0" if back else "lan0", dccp(*ends, word.lstrip("<")))
    wrong = bytearray(dccp(SRV, 6000, OUT, 80, "request"))
    wrong[26] ^= 1
    s.sends("lan0", bytes(wrong))
    covered = bytearray(dccp(SRV, 6001, OUT, 80, "request"))
    covered[25] = 1
    s.sends("lan0", bytes(covered))
    short = bytearray(dccp(SRV, 6002, OUT, 80, "request"))
    short[28] &= 0xFE
    s.sends("lan0", bytes(short))
    s.sends("lan0", ip(SRV, OUT, 33, b"too short"))
    return s


@story()
def conntrack_other_protocols(kernel: str) -> Story:
    s = Story(
        "conntrack/other-protocols",
        kernel,
        """UDP-Lite, whose right checksums Linux takes for wrong ones (it sums UDP's number); GRE by the key of
        version 1; protocols without ports, which two hosts have one connection of.""",
        iptables=STATES,
    )

    def lite(port: int, proto: int, covered: int = 0, said: int | None = None) -> bytes:
        body = struct.pack("!HHHH", port, 80, covered, 0) + b"abcdefgh"
        pseudo = ip(SRV, OUT, 0, b"")[12:20] + struct.pack("!BBH", 0, proto, len(body))
        total = checksum(pseudo + body[: covered or None]) if said is None else said
        return ip(SRV, OUT, 136, body[:6] + struct.pack("!H", total) + body[8:])

    for k, (proto, covered) in enumerate(((136, 0), (17, 0), (136, 8), (17, 8), (17, 7), (17, 17), (17, 16))):
        s.sends("lan0", lite(1000 + k, proto, covered))
    s.sends("lan0", lite(1010, 17, said=0))
    s.sends("lan0", ip(SRV, OUT, 136, b"short"))

    def gre(src: str, dst: str, version: int, call: int, kind: int = 0x880B) -> bytes:
        return ip(src, dst, 47, struct.pack("!HHHHI", 0x3000 | version, kind, 4, call, 1) + b"data")

    for version, call, kind in ((0, 7, 0x0800), (1, 77, 0x880B), (1, 78, 0x880B), (1, 79, 0x0800), (2, 80, 0x880B)):
        s.sends("lan0", gre(SRV, OUT, version, call, kind))
        s.sends("eth0", gre(OUT, SRV, version, call, kind))
    s.sends("lan0", ip(SRV, OUT, 47, struct.pack("!HH", 0x2001, 0x880B)))
    s.sends("lan0", ip(SRV, OUT, 47, b""))
    s.sends("eth0", error(OUT, SRV, gre(SRV, OUT, 1, 77)))
    for proto in (50, 99, 4, 0, 58, 255):
        s.sends("lan0", ip(SRV, OUT, proto, b"x" * 24))
        s.sends("eth0", ip(OUT, SRV, proto, b"x" * 24))
    s.sends("eth0", error(OUT, SRV, ip(SRV, OUT, 99, b"x" * 24)))
    return s


@story()
def routing_ends(kernel: str) -> Story:
    s = Story(
        "routing/ends",
        kernel,
        """No route, forbidden routes, the last hop, too big to go on: each with its ICMP error,
        or cut into fragments.""",
        links=LINKS
        + """
[[link]]
name = "thin0"
mac = "02:00:00:00:00:03"
mtu = 600
addresses = ["10.1.0.1/24"]
[[route]]
to = "10.66.0.0/16"
type = "unreachable"
[[route]]
to = "10.67.0.0/16"
type = "prohibit"
[[route]]
to = "10.68.0.0/16"
type = "blackhole"
[[route]]
to = "10.69.0.0/16"
dev = "thin0"
table = "69"
[[rule]]
priority = 100
fwmark = "0x69"
table = "69"
""",
        sysctl={"net.ipv4.conf.thin0.send_redirects": 0},
        iptables="mangle PREROUTING -d 10.69.0.0/16 -j MARK --set-xmark 0x69/0xffffffff",
    )
    for dst in ("10.66.0.1", "10.67.0.1", "10.68.0.1", "10.69.0.1"):
        s.sends("lan0", udp(SRV, 5000, dst, 53))
    s.sends("lan0", udp(SRV, 5000, OUT, 53, ttl=1))
    s.sends("lan0", icmp(SRV, OUT, ttl=1))
    s.sends("lan0", udp(SRV, 5000, "10.1.0.5", 53, b"x" * 1000))
    s.sends("lan0", udp(SRV, 5000, "10.1.0.5", 53, b"x" * 1000, frag=0))
    s.sends("lan0", udp(SRV, 5000, "10.0.0.255", 53))
    s.sends("lan0", udp("127.0.0.1", 5000, OUT, 53))
    s.sends("lan0", udp("255.255.255.255", 5000, OUT, 53))
    return s


def opted(packet: bytes, options: bytes) -> bytes:
    """The packet with options in its IP header."""
    options += bytes(-len(options) % 4)
    length = struct.pack("!H", len(packet) + len(options))
    head = bytes([0x45 + len(options) // 4]) + packet[1:2] + length + packet[4:10] + b"\0\0" + packet[12:20] + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[20:]


@story()
def routing_ip_options(kernel: str) -> Story:
    s = Story(
        "routing/ip-options",
        kernel,
        """A router writes its address into a record of the route, with room or without, and counts in a full list of
        timestamps; nonsense is answered. Source routes are not taken. A router alert goes on. (Timestamps themselves
        follow the clock, and are not recorded.)""",
        links=LINKS
        + """
[[route]]
to = "10.66.0.0/16"
type = "unreachable"
[[route]]
to = "10.67.0.0/16"
type = "blackhole"
""",
        iptables="""nat POSTROUTING -o eth0 -p udp -m udp --dport 99 -j MASQUERADE
            filter FORWARD -p udp -m udp --dport 7 -j REJECT""",
    )
    for options in (
        b"\x07\x0b\x04" + bytes(8),
        b"\x07\x0b\x08\1\2\3\4" + bytes(4),
        b"\x07\x0b\x0c" + bytes(8),
        b"\x07\x07\x04" + bytes(4) + b"\x94\4\0\0",
        b"\x07\x0b\x0a" + bytes(8),
        b"\x07\x0b\x03" + bytes(8),
        b"\x44\x08\x09\x00" + bytes(4),
        b"\x44\x08\x09\xe0" + bytes(4),
        b"\x44\x08\x09\xf0" + bytes(4),
        b"\x44\x0c\x05\x03" + b"\x0a\0\0\x63" + bytes(4),
        b"\x44\x08\x06\x00" + bytes(4),
        b"\x44\x08\x05\x01" + bytes(4),
        b"\x44\x0c\x05\x02" + bytes(8),
        b"\x83\x07\x04\x0a\0\0\6",
        b"\x89\x07\x08\x0a\0\0\6",
        b"\x94\4\0\0",
    ):
        s.sends("lan0", opted(udp(SRV, 5000, OUT, 53), options))
        s.sends("lan0", opted(udp(SRV, 5000, "10.0.0.1", 53), options))
    record = b"\x07\x0b\x04" + bytes(8)
    s.sends("lan0", opted(udp(SRV, 5000, OUT, 99), record))
    s.sends("eth0", opted(udp(OUT, 5000, SRV, 53), record))
    for dst in ("10.66.0.1", "10.67.0.1"):
        s.sends("lan0", opted(udp(SRV, 5000, dst, 53), record))
        s.sends("lan0", opted(udp(SRV, 5000, dst, 53), b"\x07\x0b\x03" + bytes(8)))
    s.sends("lan0", opted(udp(SRV, 5000, OUT, 7), record))
    s.sends("lan0", opted(udp(SRV, 5000, OUT, 7), b"\x01\x44\x08\x09\x10" + bytes(4) + b"\x07\x07\x08" + bytes(4)))
    s.sends("lan0", opted(udp(SRV, 5000, OUT, 53, b"x" * 900, ttl=1), record))
    s.sends("lan0", opted(udp(SRV, 5000, OUT, 53, ttl=1), record))
    s.sends("lan0", opted(udp(SRV, 5000, OUT, 53, ttl=1), b"\x94\4\0\0"))
    return s


@story()
def routing_errors_from_where_it_came(kernel: str) -> Story:
    s = Story(
        "routing/errors-from-where-it-came",
        kernel,
        """With icmp_errors_use_inbound_ifaddr an error comes from the link that the packet came in on, from its address
        next to the sender's, whatever way the error takes.""",
        links=LINKS
        + """
[[link]]
name = "far0"
mac = "02:00:00:00:00:03"
addresses = ["10.7.0.1/24", "10.8.0.1/24"]
[[link]]
name = "bare0"
mac = "02:00:00:00:00:04"
[[route]]
to = "10.66.0.0/16"
type = "unreachable"
""",
        sysctl={"net.ipv4.icmp_errors_use_inbound_ifaddr": 1}
        | {f"net.ipv4.conf.{name}.send_redirects": 0 for name in ("far0", "bare0")},
        iptables="filter FORWARD -p udp -m udp --dport 9 -j REJECT\nfilter INPUT -p udp -m udp --dport 9 -j REJECT",
    )
    for src in ("10.7.0.9", "10.8.0.9", SRV, OUT):
        for link in ("far0", "bare0"):
            s.sends(link, udp(src, 5000, "203.0.113.9", 53, ttl=1))
            s.sends(link, udp(src, 5000, "10.66.0.1", 53))
            s.sends(link, udp(src, 5000, "203.0.113.9", 9))
            s.sends(link, udp(src, 5000, "10.0.0.1", 9))
    s.sends(None, udp("10.0.0.1", 5000, OUT, 9))
    return s


@story()
def routing_changes(kernel: str) -> Story:
    s = Story(
        "routing/changes",
        kernel,
        """Addresses, links, routes and rules come and go between packets: throw goes on to the next table, a table that
        nothing fits is passed by, a link that is down takes its routes with it.""",
    )

    def all_around() -> None:
        for dst in ("10.9.0.5", "10.9.1.5", "10.0.0.77", "10.0.5.1", "198.51.100.77", OUT):
            s.sends("lan0", udp(SRV, 5000, dst, 53))
        s.sends("eth0", udp(OUT, 5000, "10.0.5.1", 53))
        s.sends(None, udp("10.0.0.1", 5000, "10.9.0.5", 53))

    for command in (
        "ip route add 10.9.0.0/16 via 10.0.0.9",
        "ip route add throw 10.9.0.0/24 table 50",
        "ip route add blackhole 10.9.1.0/24 table 50",
        "ip rule add from 10.0.0.0/24 lookup 50 priority 500",
        "ip addr add 10.0.5.1/24 dev lan0",
        "ip rule add iif lan0 to 198.51.100.0/24 prohibit priority 400",
        "ip route add unreachable default metric 5000",
        "ip addr del 10.0.5.1/24 dev lan0",
        "ip route del default via 198.51.100.254",
        "ip link set eth0 down",
        "ip link set eth0 up",
        "sysctl -w net.ipv4.conf.lan0.forwarding=0",
        "ip rule del priority 500",
    ):
        s.runs(command)
        all_around()
    return s


@story("6.18")  # 6.1 cannot be told by which number it is to choose
def routing_multipath(kernel: str) -> Story:
    s = Story(
        "routing/multipath",
        kernel,
        """A default route of three ways, one of them twice as wide. Flows keep their way, errors go the way of what
        they are about; a way whose link is down or has no address is passed over, and comes back. By the policies 0
        (the addresses) and 3 (as told, with ports).""",
        links="""
        [[link]]
        name = "lan0"
        mac = "02:00:00:00:00:02"
        addresses = ["10.0.0.1/24"]
        [[link]]
        name = "eth1"
        addresses = ["10.0.1.1/24"]
        [[link]]
        name = "eth2"
        addresses = ["10.0.2.1/24"]
        [[link]]
        name = "eth3"
        addresses = ["10.0.3.1/24"]
        [[route]]
        to = "default"
        nexthop = [{ via = "10.0.1.254", dev = "eth1", weight = 2 }, { via = "10.0.2.254" }, { dev = "eth3" }]
        """,
        sysctl={"net.ipv4.fib_multipath_hash_seed": 4711, "net.ipv4.conf.eth1.send_redirects": 1},
        iptables="""
        nat POSTROUTING -o eth1 -j MASQUERADE
        mangle PREROUTING -m rpfilter --invert -j DROP
        """,
    )

    def all_around() -> None:
        for k in range(8):
            sent = s.sends("lan0", udp(SRV, 5000 + k % 2, f"192.0.2.{k + 1}", 53))
            if any(link != "lan0" for link, _ in s.left[sent]):
                s.answered(sent)
        s.sends("lan0", error(SRV, "192.0.2.3", udp("192.0.2.3", 53, SRV, 5000)))
        s.sends("eth1", tcp(OUT, 4000, "192.0.2.99", 80))
        s.sends("eth2", udp("192.0.2.3", 53, SRV, 5000))
        s.sends("lan0", tcp(SRV, 4000, OUT, 80))

    all_around()
    for command in (
        "ip link set eth2 down",
        "ip link set eth2 up",
        "ip addr del 10.0.3.1/24 dev eth3",
        "ip addr add 10.0.3.1/24 dev eth3",
        "sysctl -w net.ipv4.fib_multipath_hash_policy=3 net.ipv4.fib_multipath_hash_fields=0x37",
        "sysctl -w net.ipv4.conf.all.rp_filter=1",
        "ip route replace default nexthop via 10.0.1.254 nexthop via 10.0.2.254 weight 5",
        "ip route add 192.0.2.0/29 src 10.0.0.1 nexthop via 10.0.3.9 nexthop via 10.0.2.9 dev eth2",
        "ip route del default nexthop via 10.0.1.254 nexthop via 10.0.2.254 weight 5",
    ):
        s.runs(command)
        all_around()
    return s


@story()
def routing_strangers(kernel: str) -> Story:
    s = Story(
        "routing/strangers",
        kernel,
        """Addresses that cannot be: of the node itself, of loopback, of nobody; ways back that do not agree (strictly
        on one link, loosely on the other), and loopback let in where a link says so.""",
        sysctl={
            "net.ipv4.conf.lan0.rp_filter": 1,
            "net.ipv4.conf.eth0.rp_filter": 2,
            "net.ipv4.conf.lan0.route_localnet": 1,
        },
        iptables="nat PREROUTING -p udp -m udp --dport 7 -j DNAT --to-destination 127.0.0.1",
    )
    sources = (SRV, OUT, "10.0.0.1", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.0.255", "0.1.2.3",
        "240.0.0.1", "198.51.100.9")  # fmt: skip
    for link in ("lan0", "eth0"):
        for src in sources:
            s.sends(link, udp(src, 5000, OUT if link == "lan0" else SRV, 53))
            s.sends(link, udp(src, 5000, NODE, 53))
            s.sends(link, udp(src, 5000, NODE, 7))
        for dst in ("0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "224.0.0.9", "240.0.0.1", "0.1.2.3"):
            s.sends(link, udp(SRV if link == "lan0" else OUT, 5000, dst, 53))
    for link in ("lan0", "eth0"):
        s.runs(f"sysctl -w net.ipv4.conf.{link}.accept_local=1")
        s.sends(link, udp("10.0.0.1", 5000, NODE, 53))
        s.sends(link, udp("198.51.100.9", 5000, OUT, 53))
    return s


def pieces(packet: bytes, size: int) -> list[bytes]:
    """A packet in fragments of `size` bytes."""
    head, body = packet[:20], packet[20:]
    out = []
    for at in range(0, len(body), size):
        part = body[at : at + size]
        word = at // 8 | (0x2000 if at + size < len(body) else 0)
        h = (
            head[:2]
            + struct.pack("!H", 20 + len(part))
            + head[4:6]
            + struct.pack("!H", word)
            + head[8:10]
            + b"\0\0"
            + head[12:]
        )
        out.append(h[:10] + struct.pack("!H", checksum(h)) + h[12:] + part)
    return out


@story()
def pieces_whose_options_are_rewritten(kernel: str) -> Story:
    s = Story(
        "fragments/whose-options-are-rewritten",
        kernel,
        """A rule rewrites TCP options that do not all stand in the first piece: the packet is cut anew, and keeps
        DF.""",
        iptables="""mangle FORWARD -p tcp -m tcp --dport 80 -j TCPOPTSTRIP --strip-options mss
            mangle FORWARD -p tcp -m tcp --dport 81 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000
            filter FORWARD -m conntrack --ctstate NEW,ESTABLISHED,INVALID -j ACCEPT""",
    )
    for port in (80, 81, 82):
        for size in (24, 32, 48):
            body = tcp(SRV, 5000, OUT, port, data=b"x" * 36)[20:]  # a header of 28 bytes
            s.serial += 1
            for at in range(0, len(body), size):
                word = at // 8 | (0x2000 if at + size < len(body) else 0) | 0x4000
                s.sends("lan0", ip(SRV, OUT, 6, body[at : at + size], ident=s.serial, frag=word))
    return s


@story()
def fragments_and_nat(kernel: str) -> Story:
    s = Story(
        "fragments/and-nat",
        kernel,
        """Fragments are put together before the rules see them, in any order, and leave again as large as they came.
        A missing piece holds the rest back for good.""",
        iptables="""nat PREROUTING -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.5:5353
            filter FORWARD -p udp -m length --length 1000:65535 -j MARK --set-xmark 0x1/0xffffffff""",
    )
    one, two, three = pieces(udp(OUT, 5000, NODE, 53, b"y" * 1200, ident=7), 480)
    for piece in (three, one, two):
        s.sends("eth0", piece)
    one, two, three = pieces(udp(OUT, 5001, NODE, 53, b"z" * 1200, ident=8), 480)
    s.sends("eth0", one)
    s.sends("eth0", three)
    return s


@story()
def fragments_that_do_not_fit(kernel: str) -> Story:
    s = Story(
        "fragments/that-do-not-fit",
        kernel,
        """Pieces that overlap, come twice, are empty, say two ends, or lie beyond the end; and pieces of one packet
        between which more than sixty-four others came from the same sender.""",
        iptables="filter FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
    )

    def piece(ident: int, at: int, size: int, more: bool, src: str = SRV) -> bytes:
        return ip(src, OUT, 99, bytes([at & 255]) * size, ident=ident, frag=at // 8 | (0x2000 if more else 0))

    def sends(ident: int, *parts: tuple[int, int, bool]) -> None:
        for at, size, more in parts:
            s.sends("lan0", piece(ident, at, size, more))

    first, middle, last = (0, 64, True), (64, 64, True), (128, 40, False)
    sends(1, first, middle, middle, first, last)
    sends(2, first, (56, 72, True), middle, last)
    sends(3, last, (128, 48, False), first, middle)
    sends(4, last, (160, 16, True), first, middle)
    sends(5, first, (64, 0, True), middle, last)
    sends(6, first, (64, 61, True), (120, 8, True), last)
    sends(7, last, (64, 48, True), (112, 16, True), first)
    sends(8, last, (0, 128, True))
    sends(9, middle, last, (32, 64, True), first)
    s.sends("lan0", piece(100, 0, 64, True))
    s.sends("lan0", piece(101, 0, 64, True, "10.0.0.6"))
    for k in range(63):
        s.sends("lan0", piece(200 + k, 0, 16, True))
    s.sends("lan0", piece(100, 64, 64, True))
    for k in range(64):
        s.sends("lan0", piece(300 + k, 0, 16, True))
    s.sends("lan0", piece(100, 128, 40, False))
    s.sends("lan0", piece(101, 64, 40, False, "10.0.0.6"))
    s.sends("lan0", piece(100, 0, 128, True))
    return s


@story()
def fragments_that_may_not_be_cut(kernel: str) -> Story:
    s = Story(
        "fragments/that-may-not-be-cut",
        kernel,
        """Pieces with DF, the largest ones or others, of one size or of several. They leave as they came, and lose DF
        on the way; but where the first has less than a TCP header, they are cut anew, and keep it.""",
        iptables="filter FORWARD -m conntrack --ctstate NEW,ESTABLISHED,INVALID -j ACCEPT",
    )
    whole = tcp(SRV, 4000, OUT, 80, "S", data=bytes(range(100)), options=b"")[20:]
    for proto, body in ((17, udp(SRV, 4000, OUT, 53, bytes(range(112)))[20:]), (6, whole)):
        for sizes in ((8, 24, 40, 48), (16, 16, 16, 72), (24, 24, 72), (40, 40, 40), (40, 80), (80, 40)):
            for marked in ((0,), (1,), range(len(sizes)), ()):
                s.serial += 1
                at = 0
                for k, size in enumerate(sizes):
                    word = at // 8 | (0x2000 if at + size < len(body) else 0) | (0x4000 if k in marked else 0)
                    s.sends("lan0", ip(SRV, OUT, proto, body[at : at + size], ident=s.serial, frag=word))
                    at += size
    return s


@story()
def clock_fragments_for_the_node(kernel: str) -> Story:
    s = Story(
        "clock/fragments-for-the-node",
        kernel,
        """The node tells the sender of a packet for itself that pieces did not come in time, if it has the first one.
        It says nothing about what it would have sent on.""",
        sysctl={"net.ipv4.ipfrag_time": 1},
        iptables="""filter FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT
            filter OUTPUT -m conntrack --ctstate RELATED -j ACCEPT""",
    )
    for ident, dst, which in ((1, "10.0.0.1", 0), (2, "10.0.0.1", 1), (3, OUT, 0), (4, "10.0.0.255", 0)):
        s.sends("lan0", pieces(udp(SRV, 5000, dst, 53, b"y" * 1200, ident=ident), 480)[which])
    s.waits(1.3)
    s.sends("lan0", icmp(SRV, OUT))
    s.sends("lan0", pieces(udp(SRV, 5000, "10.0.0.1", 53, b"y" * 1200, ident=5), 480)[1])
    s.sends("lan0", pieces(udp(SRV, 5000, "10.0.0.1", 53, b"y" * 1200, ident=5), 480)[0])
    s.waits(0.4)
    s.sends("lan0", icmp(SRV, OUT))
    s.waits(0.9)
    s.sends("lan0", icmp(SRV, OUT))
    return s


@story()
def fragments_without_tracking(kernel: str) -> Story:
    s = Story(
        "fragments/without-tracking",
        kernel,
        """Without connection tracking the rules see pieces, which nobody is told about when they are refused: the
        checksum is not that of the piece. What is for the node is put together before INPUT. A protocol whose
        checksum Linux does not know.""",
        iptables="""filter FORWARD -p udp -m udp --dport 9 -j REJECT
            filter FORWARD -d 192.0.2.8/32 -j REJECT --reject-with icmp-host-prohibited
            filter FORWARD -f -j MARK --set-xmark 0x1/0xffffffff
            filter INPUT -p udp -m udp --dport 9 -j REJECT""",
    )
    for dst in (OUT, "192.0.2.8", "10.0.0.1"):
        for port in (9, 53):
            for part in pieces(udp(SRV, 5000, dst, port, b"y" * 100, ident=port), 56):
                s.sends("lan0", part)
    for part in pieces(udp(SRV, 5000, OUT, 53, b"y" * 100, ident=77, ttl=1), 56):
        s.sends("lan0", part)
    for proto in (50, 51, 99, 47, 4, 132, 136, 33, 255, 2):
        s.sends("lan0", ip(SRV, "192.0.2.8", proto, b"x" * 24))
        s.sends("lan0", ip(SRV, "192.0.2.8", proto, b"\x80\0\x7f\xff" * 6))
        s.sends("lan0", ip(SRV, "192.0.2.8", proto, b"\x80\0\x7f\xfe" * 6))
    return s


@story()
def fragments_and_sockets(kernel: str) -> Story:
    s = Story(
        "fragments/and-sockets",
        kernel,
        """A rule that looks for sockets needs whole packets: pieces are put together before it, without tracking.""",
        iptables="mangle PREROUTING -p udp -m socket -j MARK --set-xmark 0x1/0xffffffff",
    )
    for part in pieces(udp(SRV, 5000, OUT, 53, b"y" * 100, ident=7), 56):
        s.sends("lan0", part)
    for part in pieces(udp("10.0.0.1", 5000, OUT, 53, b"y" * 100, ident=8), 56):
        s.sends(None, part)
    return s


# ---- matches that remember, sets -----------------------------------------------------------------------------------


@story()
def memory_limits(kernel: str) -> Story:
    s = Story(
        "memory/limits",
        kernel,
        """Token buckets, one and by address; the n-th packet; a quota; the last-seen list; connections by host.""",
        iptables="""filter FORWARD -p icmp -m limit --limit 1/sec --limit-burst 2 -j ACCEPT
            filter FORWARD -p icmp -j BY_HOST
            filter BY_HOST -m hashlimit --hashlimit-upto 1/sec --hashlimit-mode srcip --hashlimit-name a -j ACCEPT
            filter FORWARD -p udp -m statistic --mode nth --every 3 --packet 1 -j DROP
            filter FORWARD -p udp -m quota --quota 100 -j ACCEPT
            filter FORWARD -p tcp -m recent --update --seconds 60 --hitcount 3 --name r --rsource -j DROP
            filter FORWARD -p tcp -m recent --set --name r --rsource
            filter FORWARD -p tcp -m connlimit --connlimit-above 2 --connlimit-mask 24 -j REJECT --reject-with tcp-reset
            filter FORWARD -p tcp -j ACCEPT
            filter FORWARD policy DROP""",
    )
    for k in range(4):
        s.sends("lan0", icmp(SRV, OUT, number=k))
        s.sends("lan0", udp(SRV, 5000, OUT, 53))
        s.sends("lan0", tcp(f"10.0.0.{50 + k % 2}", 5000 + k, OUT, 80))
        s.sends("lan0", tcp("10.0.0.50", 6000 + k, OUT, 80))
    s.waits(1.1)
    s.sends("lan0", icmp(SRV, OUT, number=9))
    return s


@story("6.18")
def memory_accounts(kernel: str) -> Story:
    s = Story(
        "memory/accounts",
        kernel,
        """Accounting objects with a quota, in packets and in bytes: rules match once it is exceeded, and not before.
        Two rules may count in one object. A change of the table does not begin the count anew.""",
        nfacct="""
        { pkts = 00000000000000000002, bytes = 00000000000000000100 } = free;
        { pkts = 00000000000000000000, bytes = 00000000000000000000, quota = 00000000000000000003, mode = packet, overquota = no } = few;
        { pkts = 00000000000000000000, bytes = 00000000000000000000, quota = 00000000000000000150, mode = byte, overquota = no } = much;
        """,  # noqa: E501
        iptables="""
        filter FORWARD -m nfacct --nfacct-name free
        filter FORWARD -p udp -m nfacct --nfacct-name few -m comment --comment beyond
        filter FORWARD -m nfacct --nfacct-name much -j ACCEPT
        filter FORWARD -m nfacct --nfacct-name few -j DROP
        """,
    )
    for k in range(6):
        s.sends("lan0", udp(SRV, 4000 + k, OUT, 53, bytes(10 * k)))
        s.sends("eth0", tcp(OUT, 4000, SRV, 80 + k))
        if k == 3:
            s.runs("iptables -A FORWARD -m nfacct --nfacct-name few")
            s.runs("iptables -A FORWARD -m nfacct --nfacct-name nope")
    return s


@story()
def found_reject_of_other_protocols(kernel: str) -> Story:
    s = Story(
        "found/reject-of-other-protocols",
        kernel,
        """Linux answers with an error only where the checksum is right, and takes it for one over all bytes behind the
        IP header, whatever the protocol; a few are exempt.""",
        iptables="filter FORWARD -j REJECT",
    )
    for proto in (2, 4, 41, 47, 50, 51, 89, 132, 136, 33, 250):
        s.sends("lan0", ip(SRV, OUT, proto, b"some bytes of it"))
        s.sends("lan0", ip(SRV, OUT, proto, b"\xff\xfe\0\x01" + bytes(20)))
    s.sends("lan0", ip(SRV, OUT, 4, b""))
    s.sends("lan0", ip(SRV, OUT, 4, b"\xff\xfe\x01"))
    for proto in (6, 17, 1):  # too short for their header
        for body in (b"", b"\x9c\x40\0\x35", b"\x9c\x40\0\x35\0\0\0", b"\xff\xfe\0\x01"):
            s.sends("lan0", ip(SRV, OUT, proto, body))
    s.sends("lan0", ip(SRV, OUT, 6, b"\x9c\x40\0\x35" + bytes(12)))
    s.sends("lan0", ip(SRV, OUT, 17, b"\x10\0\0\x35\0\x0c\0\0abcd"))
    s.sends("lan0", ip(SRV, OUT, 17, b"\x10\0\0\x35\0\x0c\0\x01abcd"))
    return s


@story()
def found_udplite_is_assured_at_once(kernel: str) -> Story:
    s = Story(
        "found/udplite-is-assured-at-once",
        kernel,
        """A UDP-Lite conversation counts as one with the second packet after an answer; UDP waits two seconds.""",
        iptables="filter FORWARD -m state --state NEW",
    )

    def lite(src: str, sport: int, dst: str, dport: int) -> bytes:
        body = struct.pack("!HHHH", sport, dport, 12, 0) + b"lite"
        pseudo = ip(src, dst, 136, body)[12:20] + struct.pack("!BBH", 0, 136, len(body))
        return ip(src, dst, 136, body[:6] + struct.pack("!H", checksum(pseudo + body)) + body[8:])

    for make in (lite, udp):
        s.sends("lan0", make(SRV, 4000, OUT, 53))
        s.sends("eth0", make(OUT, 53, SRV, 4000))
        s.runs("conntrack -L")
        s.sends("eth0", make(OUT, 53, SRV, 4000))
    return s


@story()
def found_simultaneous_open_lasts(kernel: str) -> Story:
    s = Story(
        "found/simultaneous-open-lasts",
        kernel,
        """Crossed SYNs have two minutes, whatever nf_conntrack_tcp_timeout_syn_sent says of the first.""",
        iptables="filter FORWARD -m state --state NEW",
        sysctl={"net.netfilter.nf_conntrack_tcp_timeout_syn_sent": 1},
    )
    s.sends("lan0", tcp(SRV, 4000, OUT, 80, "S", 1000))
    s.sends("eth0", tcp(OUT, 80, SRV, 4000, "S", 5000))
    s.sends("lan0", tcp(SRV, 4001, OUT, 80, "S", 1000))
    s.waits(2.5)
    s.sends("lan0", tcp(SRV, 4000, OUT, 80, "S", 1000))
    return s


@story()
def found_labels_of_older_connections(kernel: str) -> Story:
    s = Story(
        "found/labels-of-older-connections",
        kernel,
        """A connection has room for labels only if some rule asked for labels when it began.""",
        iptables="mangle FORWARD -p udp -m state --state NEW,ESTABLISHED",
    )
    rule = "-m connlabel --label 2 --set -j MARK --set-mark 1"
    s.sends("lan0", udp(SRV, 4000, OUT, 53))
    s.runs(f"iptables -t mangle -A PREROUTING {rule}")
    for port in (4000, 4001, 4001):
        s.sends("lan0", udp(SRV, port, OUT, 53))
    s.runs("iptables -t mangle -D PREROUTING 1")
    s.sends("lan0", udp(SRV, 4002, OUT, 53))
    s.runs(f"iptables -t mangle -A PREROUTING {rule}")
    s.runs("iptables -t mangle -A PREROUTING -p udp -m connlabel ! --label 2")
    for port in (4000, 4001, 4002, 4003):
        s.sends("lan0", udp(SRV, port, OUT, 53))
    return s


def stamped(stamp: int, echo: int) -> bytes:
    """TCP's timestamp option."""
    return b"\1\1" + struct.pack("!BBII", 8, 10, stamp, echo)


@story()
def filter_synproxy(kernel: str) -> Story:
    s = Story(
        "filter/synproxy",
        kernel,
        """SYNPROXY answers in the server's name, and lets through who comes back with its cookie: with timestamps and
        without, with a SYN that is damaged, a wrong cookie, a server that answers late or not at all or refuses,
        ends in order and at once. Cookies and timestamps differ from kernel to kernel: they are compared up to how
        far they are from each other.""",
        sysctl={"net.netfilter.nf_conntrack_tcp_loose": 0},
        iptables="""
        raw PREROUTING -i eth0 -p tcp -m tcp --dport 80 --syn -j CT --notrack
        filter FORWARD -i eth0 -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j PROXY
        filter PROXY -p tcp -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460 --ecn
        filter FORWARD -i eth0 -p tcp -m tcp --dport 81 -m conntrack --ctstate INVALID,NEW -j SYNPROXY --mss 1300
        filter FORWARD -m conntrack --ctstate INVALID -j DROP
        filter FORWARD -j ACCEPT
        """,
    )
    scaled = b"\2\4\5\xb4\4\2" + struct.pack("!BBII", 8, 10, 4096, 0) + b"\1\3\3\t"
    plain = b"\2\4\5\x14"

    def greeted(k: int) -> tuple[int, int]:
        """(cookie, its timestamp or 0) of the answer to packet k."""
        sent = s.left[k][0][1]
        return struct.unpack_from("!I", sent, 24)[0], struct.unpack_from("!I", sent, 48)[0] if len(sent) > 52 else 0

    def opened(sport: int, dport: int, options: bytes, flags: str = "S", answered: bool = True) -> tuple[int, int]:
        syn = s.sends("eth0", tcp(OUT, sport, SRV, dport, flags, 1000, options=options))
        cookie, stamp = greeted(syn)
        more = stamped(4100, stamp) if stamp else b""
        ack = s.sends("eth0", tcp(OUT, sport, SRV, dport, "A", 1001, cookie + 1, options=more), answers=syn)
        if answered and s.left[ack]:
            theirs = b"\2\4\5\xb4\4\2" + struct.pack("!BBII", 8, 10, 77000, 4100) + b"\1\3\3\7" if stamp else plain
            s.sends("lan0", tcp(SRV, dport, OUT, sport, "SA", 500_000, 1001, win=28960, options=theirs))
        return cookie, stamp

    def talks(sport: int, dport: int, cookie: int, stamp: int) -> None:
        more = [stamped(4200, stamp + 5), stamped(77010, 4200), stamped(4201, stamp + 10)] if stamp else [b""] * 3
        s.sends("eth0", tcp(OUT, sport, SRV, dport, "PA", 1001, cookie + 1, data=b"GET /", options=more[0]))
        s.sends("lan0", tcp(SRV, dport, OUT, sport, "PA", 500_001, 1006, data=b"hello", options=more[1]))
        s.sends("eth0", tcp(OUT, sport, SRV, dport, "A", 1006, cookie + 6, options=more[2]))

    for sport, dport, options, flags in (
        (4000, 80, scaled, "S"), (4001, 80, plain, "S"), (4002, 81, scaled, "S"), (4003, 81, b"", "S"),
        (4004, 80, b"\2\4\2\x18" + stamped(9, 0), "S"),
    ):  # fmt: skip
        talks(sport, dport, *opened(sport, dport, options, flags))
    cookie, stamp = opened(4005, 80, scaled, answered=False)  # the server is slow: the client asks again
    s.sends("eth0", tcp(OUT, 4005, SRV, 80, "A", 1000, cookie + 1, options=stamped(4300, stamp)))
    s.sends("eth0", tcp(OUT, 4005, SRV, 80, "A", 1001, cookie + 1, options=stamped(4300, stamp)))
    s.sends("lan0", tcp(SRV, 80, OUT, 4005, "RA", 0, 1001))
    opened(4006, 80, plain, answered=False)  # it refuses
    s.sends("lan0", tcp(SRV, 80, OUT, 4006, "RA", 0, 1001))
    s.sends("eth0", tcp(OUT, 4007, SRV, 80, "A", 1001, 12345))  # nobody was told this
    s.sends("eth0", tcp(OUT, 4007, SRV, 80, "FA", 1001, 12345))
    s.sends("eth0", tcp(OUT, 4007, SRV, 80, "R", 1001))
    broken = bytearray(tcp(OUT, 4008, SRV, 80, "S", 1000))
    broken[36] ^= 1
    s.sends("eth0", bytes(broken))
    cookie, stamp = opened(4009, 80, scaled)  # it is closed
    talks(4009, 80, cookie, stamp)
    s.sends("lan0", tcp(SRV, 80, OUT, 4009, "FA", 500_006, 1006, options=stamped(77020, 4201)))
    s.sends("eth0", tcp(OUT, 4009, SRV, 80, "FA", 1006, cookie + 7, options=stamped(4202, stamp + 20)))
    s.sends("lan0", tcp(SRV, 80, OUT, 4009, "A", 500_007, 1007, options=stamped(77030, 4202)))
    s.sends("lan0", tcp(SRV, 80, OUT, 4000, "R", 500_006))  # the server, and a client, end it at once
    s.sends("lan0", tcp(SRV, 80, OUT, 4000, "R", 500_006))
    s.sends("eth0", tcp(OUT, 4001, SRV, 80, "R", 1006))
    s.sends("lan0", tcp(SRV, 80, OUT, 4001, "A", 500_006, 1006))
    return s


@story()
def fragments_copied(kernel: str) -> Story:
    s = Story(
        "fragments/copied",
        kernel,
        """A copy of what was put together leaves as the pieces came, though the packet itself is cut anew.""",
        iptables="mangle PREROUTING -p tcp -j TEE --gateway 198.51.100.254",
    )
    whole = tcp(OUT, 4000, SRV, 80, "S", data=bytes(range(100)), options=b"")[20:]
    for sizes in ((16, 16, 88), (8, 24, 88), (40, 80)):
        for marked in (0, 0x4000):
            s.serial += 1
            at = 0
            for size in sizes:
                word = at // 8 | (0x2000 if at + size < len(whole) else 0) | marked
                s.sends("eth0", ip(OUT, SRV, 6, whole[at : at + size], ident=s.serial, frag=word))
                at += size
    return s


@story()
def found_syn_again_without_options(kernel: str) -> Story:
    s = Story(
        "found/syn-again-without-options",
        kernel,
        """A SYN that comes again without any option leaves what the first one offered: windows are scaled. One with
        another option takes it back.""",
        iptables="filter FORWARD -m conntrack --ctstate INVALID -j DROP",
    )
    scale, size = b"\x01\x03\x03\x02", b"\x02\x04\x05\xb4"
    for port, options in ((4000, b""), (4001, size), (4002, scale)):
        s.sends("lan0", tcp(SRV, port, OUT, 80, "S", 1000, options=size + scale))
        s.sends("lan0", tcp(SRV, port, OUT, 80, "S", 101000, options=options))
        s.sends("eth0", tcp(OUT, 80, SRV, port, "SA", 50000, 101001, 1000, options=size + b"\x01\x03\x03\x07"))
        s.sends("lan0", tcp(SRV, port, OUT, 80, "A", 101001, 50001, 1000))
        s.sends("eth0", tcp(OUT, 80, SRV, port, "A", 50001, 101001, 1000))
        for far in (900, 2000, 100_000, 200_000):
            s.sends("lan0", tcp(SRV, port, OUT, 80, "A", 101001 + far, 50001, 1000, data=b"far"))
            s.sends("eth0", tcp(OUT, 80, SRV, port, "A", 50001 + far // 30, 101001, 1000, data=b"far"))
    return s


@story()
def found_hash_mark_of_a_short_error(kernel: str) -> Story:
    s = Story(
        "found/hash-mark-of-a-short-error",
        kernel,
        """HMARK takes an ICMP error for the packet that it quotes. Where that has no whole header, it sets no mark.""",
        iptables="""mangle PREROUTING -j HMARK --hmark-tuple src,dst --hmark-mod 100 --hmark-offset 1 --hmark-rnd 0x1
            mangle FORWARD -m mark ! --mark 0x0""",
    )
    about = udp(OUT, 53, SRV, 4000)
    for kind in (3, 11, 12, 8):
        for size in (0, 4, 19, 20, 28):
            s.sends("lan0", icmp(SRV, OUT, kind, 0, 7, data=about[:size]))
    return s


@story()
def filter_owners(kernel: str) -> Story:
    s = Story(
        "filter/owners",
        kernel,
        """Who sent it? The node's own packets come from a socket of root's, ICMP errors from one that is nobody's,
        resets from none.""",
        iptables="""filter OUTPUT -m owner --socket-exists
            filter OUTPUT -m owner ! --socket-exists
            filter OUTPUT -m owner --uid-owner 0 --gid-owner 0
            filter OUTPUT -m owner ! --uid-owner 0
            filter OUTPUT -m owner --uid-owner 0-100 ! --gid-owner 5-9 --suppl-groups
            filter OUTPUT -m owner --gid-owner 1 --socket-exists
            filter OUTPUT -m owner ! --gid-owner 1 ! --socket-exists
            filter FORWARD -p udp -j REJECT
            filter FORWARD -p tcp -j REJECT --reject-with tcp-reset""",
    )
    s.links += "[[socket]]\nuid = 0\n"
    s.sends(None, udp(NODE, 4000, OUT, 53))
    s.sends(None, tcp(NODE, 4000, OUT, 80))
    s.sends(None, icmp("10.0.0.1", SRV))
    s.sends("lan0", udp(SRV, 4000, OUT, 53))
    s.sends("lan0", tcp(SRV, 4000, OUT, 80))
    s.sends("lan0", udp(SRV, 4000, OUT, 9, ttl=1))
    return s


@story("6.18")  # the ticks of User Mode Linux come when they can
def memory_edge_of_a_tick(kernel: str) -> Story:
    s = Story(
        "memory/edge-of-a-tick",
        kernel,
        """A token comes every quarter of a second, counted in ticks: two packets of each host, that far apart to within
        half a tick or so either way, from all over a tick.""",
        iptables="filter FORWARD -m hashlimit --hashlimit-upto 4/sec --hashlimit-burst 1 --hashlimit-mode srcip "
        "--hashlimit-name edge -j DROP",
    )
    tick, seen = 0.004, []
    for k in range(20):
        first = 0.01 + 0.1875 * k * tick
        seen += [(first, k), (first + 0.25 + (k - 10) * 0.06 * tick, k)]
    for at, k in sorted(seen):
        s.now = round(at - 0.001, 6)
        s.sends("lan0", udp(f"10.0.0.{50 + k}", 5000, OUT, 53))
    return s


@story()
def sets_of_all_kinds(kernel: str) -> Story:
    s = Story(
        "ipset/members-and-exceptions",
        kernel,
        """The longest prefix decides, nomatch says no; ports with protocols; a list of sets; the SET target writes.""",
        ipset="""create nets hash:net family inet counters
            add nets 10.0.0.0/24
            add nets 10.0.0.4/30 nomatch
            add nets 10.0.0.5
            create ports hash:ip,port family inet
            add ports 192.0.2.7,udp:53
            add ports 192.0.2.7,icmp:echo-request
            create seen hash:ip family inet timeout 300
            create bits bitmap:port range 1-1000
            add bits 80
            create all list:set
            add all nets
            add all seen""",
        iptables="""filter FORWARD -m set --match-set ports dst,dst -j SET --add-set seen dst
            filter FORWARD -m set --match-set bits dst -j DROP
            filter FORWARD -m set --match-set nets src -j ACCEPT
            filter FORWARD -m set --match-set all dst -j REJECT --reject-with icmp-port-unreachable
            filter FORWARD policy DROP""",
    )
    for last in (4, 5, 6, 9):
        s.sends("lan0", udp(f"10.0.0.{last}", 5000, OUT, 53))
        s.sends("lan0", tcp(f"10.0.0.{last}", 5000, OUT, 80))
    s.sends("lan0", icmp("10.0.0.6", OUT))
    s.runs("ipset add nets 10.0.0.6/32")
    s.runs("ipset add nets 10.0.0.6/32")
    s.runs("ipset destroy nets")
    s.sends("lan0", udp("10.0.0.6", 5000, OUT, 53))
    s.runs("ipset test seen 192.0.2.7")
    return s


# ---- the clock -----------------------------------------------------------------------------------------------------


@story()
def clock_conntrack_timeouts(kernel: str) -> Story:
    s = Story(
        "clock/conntrack-timeouts",
        kernel,
        """Connections that nobody speaks on are forgotten: UDP after a second, longer once
        answered; a SYN after two.""",
        sysctl={
            "net.netfilter.nf_conntrack_udp_timeout": 1,
            "net.netfilter.nf_conntrack_udp_timeout_stream": 4,
            "net.netfilter.nf_conntrack_tcp_timeout_syn_sent": 2,
            "net.netfilter.nf_conntrack_icmp_timeout": 1,
        },
        iptables="""filter FORWARD -i lan0 -j ACCEPT
            filter FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
            filter FORWARD policy DROP""",
    )
    lone = s.sends("lan0", udp(SRV, 5000, OUT, 53))
    asked = s.sends("lan0", udp(SRV, 5001, OUT, 53))
    s.answered(asked)
    syn = s.sends("lan0", tcp(SRV, 5002, OUT, 80))
    ping = s.sends("lan0", icmp(SRV, OUT))
    s.waits(1.5)
    s.answered(lone)
    s.answered(asked)
    s.answered(ping)
    s.waits(1.0)
    s.answered(syn)
    s.answered(asked)
    return s


@story()
def clock_timeout_policies(kernel: str) -> Story:
    s = Story(
        "clock/timeout-policies",
        kernel,
        """Connections that a rule gives a timeout policy live by it, and by nothing else: what it does not say is what
        the sysctls said when it was made. Others live by the sysctls. A second policy is made by a command.""",
        links=LINKS
        + """
        [[timeout]]
        name = "fast"
        proto = "udp"
        unreplied = 2
        replied = 3
        [[timeout]]
        name = "web"
        proto = "tcp"
        syn_sent = 2
        established = 4
        close = 1
        [[timeout]]
        name = "ping"
        proto = "icmp"
        timeout = 1
        [[timeout]]
        name = "rest"
        proto = "generic"
        timeout = 2
        """,
        sysctl={"net.netfilter.nf_conntrack_udp_timeout": 9, "net.netfilter.nf_conntrack_tcp_timeout_fin_wait": 3},
        iptables="""
        raw PREROUTING -p udp -m udp --dport 53 -j CT --timeout fast
        raw PREROUTING -p tcp -m tcp --dport 80 -j CT --timeout web
        raw PREROUTING -p icmp -j CT --timeout ping
        raw PREROUTING -p 99 -j CT --timeout rest
        filter FORWARD -m conntrack --ctstate NEW -j ACCEPT
        filter FORWARD -m conntrack --ctstate INVALID -j ACCEPT
        """,
    )
    first = s.sends("lan0", udp(SRV, 4000, OUT, 53))
    s.sends("lan0", udp(SRV, 4000, OUT, 54))
    s.handshake("lan0", SRV, 4100, OUT, 80)
    s.handshake("lan0", SRV, 4101, OUT, 81)
    s.sends("lan0", tcp(SRV, 4102, OUT, 80))
    s.sends("lan0", icmp(SRV, OUT))
    s.sends("lan0", ip(SRV, OUT, 99, b"something"))
    refused = s.sends("lan0", tcp(SRV, 4103, OUT, 80))
    s.sends("eth0", tcp(OUT, 80, SRV, 4103, "RA", 0, 1001), answers=refused)
    s.runs("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_fin_wait=100")
    s.runs("nfct add timeout late inet udp unreplied 1")
    s.runs("nfct delete timeout fast")  # a rule has it
    s.runs("iptables -t raw -A PREROUTING -p udp -j CT --timeout late")
    s.runs("iptables -t raw -A PREROUTING -p tcp -j CT --timeout late")
    s.waits(1.5)
    s.answered(first)
    s.sends("lan0", icmp(SRV, OUT))
    s.sends("lan0", udp(SRV, 4000, OUT, 55))
    s.sends("lan0", tcp(SRV, 4100, OUT, 80, "FA", 1001, 8013346))
    s.waits(1.2)
    for port in (53, 54, 55):
        s.sends("lan0", udp(SRV, 4000, OUT, port))
    s.sends("lan0", tcp(SRV, 4102, OUT, 80))
    s.sends("lan0", ip(SRV, OUT, 99, b"something"))
    s.waits(2.2)
    s.sends("lan0", udp(SRV, 4000, OUT, 53))
    s.sends("lan0", tcp(SRV, 4100, OUT, 80, "A", 1002, 8013347))
    return s


@story()
def clock_sets_and_lists(kernel: str) -> Story:
    s = Story(
        "clock/sets-and-recent",
        kernel,
        """Members with a time to live go; a packet that is seen renews one; the recent list counts seconds.""",
        ipset="""create short hash:ip family inet timeout 2
            add short 10.0.0.5
            add short 10.0.0.6 timeout 0
            add short 10.0.0.7 timeout 60""",
        iptables="""filter FORWARD -p udp -m udp --dport 1 -j SET --add-set short src --exist --timeout 3
            filter FORWARD -p udp -m set --match-set short src -j ACCEPT
            filter FORWARD -p tcp -m recent --rcheck --seconds 1 --name r --rsource -j DROP
            filter FORWARD -p tcp -m recent --set --name r --rsource -j ACCEPT
            filter FORWARD policy DROP""",
    )
    for wait in (0.0, 1.4, 1.4):
        s.waits(wait)
        for last in (5, 6, 7, 8):
            s.sends("lan0", udp(f"10.0.0.{last}", 5000, OUT, 53))
        s.sends("lan0", udp("10.0.0.8", 5000, OUT, 1))
        s.sends("lan0", tcp(SRV, 5000, OUT, 80))
        s.sends("lan0", tcp(SRV, 5001, OUT, 80))
    return s


@story()
def clock_fragments(kernel: str) -> Story:
    s = Story(
        "clock/fragments",
        kernel,
        """The pieces of a packet wait a second for the rest, then they are given up; a late piece waits by itself.""",
        sysctl={"net.ipv4.ipfrag_time": 1},
        iptables="filter FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
    )
    one, two, three = pieces(udp(SRV, 5000, OUT, 53, b"y" * 1200, ident=7), 480)
    s.sends("lan0", two)
    s.sends("lan0", three)
    s.waits(1.6)
    s.sends("lan0", one)
    one, two, three = pieces(udp(SRV, 5000, OUT, 53, b"y" * 1200, ident=9), 480)
    s.sends("lan0", one)
    s.waits(0.5)
    s.sends("lan0", two)
    s.sends("lan0", three)
    return s


# ---- IPVS ----------------------------------------------------------------------------------------------------------

VIP = """
[[link]]
name = "vip0"
kind = "dummy"
up = false
addresses = ["10.96.0.1/32", "10.96.0.2/32"]
"""


@story("6.1")
def ipvs_round_robin(kernel: str) -> Story:
    s = Story(
        "ipvs/round-robin",
        kernel,
        """Connections go round the servers and stay; the answers leave from the virtual address.
        A server that is taken away is no longer chosen, one with weight 0 keeps what it has.""",
        links=LINKS + VIP,
        ipvs="""-A -t 10.96.0.1:80 -s rr
            -a -t 10.96.0.1:80 -r 10.0.0.5:8080 -m -w 1
            -a -t 10.96.0.1:80 -r 10.0.0.6:8080 -m -w 1
            -A -u 10.96.0.1:53 -s wlc
            -a -u 10.96.0.1:53 -r 10.0.0.5:53 -m -w 1
            -a -u 10.96.0.1:53 -r 10.0.0.6:53 -m -w 3""",
    )
    for k in range(3):
        s.handshake("eth0", OUT, 4000 + k, "10.96.0.1", 80)
        s.answered(s.sends("eth0", udp(OUT, 4000 + k, "10.96.0.1", 53)))
    s.runs("ipvsadm -d -t 10.96.0.1:80 -r 10.0.0.5:8080")
    s.sends("eth0", tcp(OUT, 4000, "10.96.0.1", 80, "A", 1001, 1))
    s.sends("eth0", tcp(OUT, 4005, "10.96.0.1", 80))
    s.runs("ipvsadm -e -t 10.96.0.1:80 -r 10.0.0.6:8080 -m -w 0")
    s.sends("eth0", tcp(OUT, 4006, "10.96.0.1", 80))
    s.sends("eth0", tcp(OUT, 4001, "10.96.0.1", 80, "A", 1001, 1))
    s.sends("eth0", tcp(OUT, 4007, "10.96.0.2", 80))
    return s


@story("6.1")
def ipvs_persistent(kernel: str) -> Story:
    s = Story(
        "ipvs/persistent",
        kernel,
        """A client stays with its server; with masquerading, both ends of the connection are tracked.""",
        links=LINKS + VIP,
        sysctl={"net.ipv4.vs.conntrack": 1},
        iptables="""nat POSTROUTING -m ipvs --ipvs -j MASQUERADE
            filter FORWARD -m conntrack --ctstate INVALID -j DROP""",
        ipvs="""-A -t 10.96.0.1:80 -s rr -p 300
            -a -t 10.96.0.1:80 -r 10.0.0.5:8080 -m -w 1
            -a -t 10.96.0.1:80 -r 10.0.0.6:8080 -m -w 1""",
    )
    for k in range(3):
        s.handshake("eth0", OUT, 4000 + k, "10.96.0.1", 80)
        s.handshake("eth0", f"192.0.2.{50 + k}", 4000, "10.96.0.1", 80)
    return s


@story("6.1")
def ipvs_fragments(kernel: str) -> Story:
    s = Story(
        "ipvs/fragments",
        kernel,
        """Without connection tracking it is IPVS that puts fragments together on their way through FORWARD and OUTPUT:
        of answers of its servers, and of everything else that it might serve. Others it lets be.""",
        links=LINKS + VIP,
        iptables="filter FORWARD policy ACCEPT",
        ipvs="""-A -u 10.96.0.1:53 -s rr
            -a -u 10.96.0.1:53 -r 10.0.0.5:53 -m -w 1""",
    )
    s.sends("eth0", udp(OUT, 4000, "10.96.0.1", 53, b"?" * 40))
    for packet in (
        udp(SRV, 53, OUT, 4000, b"!" * 100, frag=0, ident=7),
        udp(SRV, 5353, OUT, 4000, b"?" * 100, frag=0, ident=8),
        tcp(SRV, 5353, OUT, 4000, data=b"?" * 100, frag=0, ident=9),
        icmp(SRV, OUT, data=b"?" * 100, frag=0, ident=10),
        ip(SRV, OUT, 47, b"\0" * 100, frag=0, ident=11),
        ip(SRV, OUT, 132, b"\0" * 100, frag=0, ident=12),
        ip(SRV, OUT, 50, b"\0" * 100, frag=0, ident=13),
    ):
        for piece in pieces(packet, 48):
            s.sends("lan0", piece)
    first, *_ = pieces(udp(SRV, 53, OUT, 4000, b"!" * 100, frag=0, ident=20), 48)
    s.sends("lan0", first)
    for piece in pieces(udp(OUT, 4000, "10.96.0.1", 53, b"?" * 100, frag=0, ident=21), 48):
        s.sends("eth0", piece)
    s.sends(None, udp(NODE, 53, OUT, 4000, b"!" * 100, frag=0, ident=22))
    for piece in pieces(udp(NODE, 53, OUT, 4000, b"!" * 100, frag=0, ident=23), 48):
        s.sends(None, piece)
    return s


@story("6.1")
def ipvs_errors_about_direct_routing(kernel: str) -> Story:
    s = Story(
        "ipvs/errors-about-direct-routing",
        kernel,
        """ICMP errors about packets that IPVS sent on as they were, from a router behind it.""",
        links=LINKS + VIP,
        iptables="filter FORWARD policy ACCEPT",
        ipvs="""-A -t 10.96.0.1:80 -s rr
            -a -t 10.96.0.1:80 -r 10.0.0.5:80 -g -w 1
            -A -u 10.96.0.1:53 -s rr
            -a -u 10.96.0.1:53 -r 10.0.0.5:53 -i -w 1
            -A -t 10.96.0.2:80 -s rr
            -a -t 10.96.0.2:80 -r 10.0.0.5:80 -m -w 1""",
    )
    for vip, make, port in (("10.96.0.1", tcp, 80), ("10.96.0.1", udp, 53), ("10.96.0.2", tcp, 80)):
        s.sends("eth0", make(OUT, 4000, vip, port))
        for about in (make(OUT, 4000, vip, port), make(OUT, 4000, SRV, port)):
            s.sends("lan0", error(SRV2, OUT, about))
            s.sends("lan0", error(SRV2, OUT, about, 11, 0))
    return s


@story("6.1")
def ipvs_ftp(kernel: str) -> Story:
    s = Story(
        "ipvs/ftp",
        kernel,
        """With the module ip_vs_ftp loaded, a server's 227 and 229 tell the client the virtual address, and the
        connections that client and server tell each other of go where the control connection goes.""",
        links='modules = ["ip_vs_ftp"]\n' + LINKS + VIP,
        iptables="filter FORWARD policy ACCEPT",
        ipvs="""-A -t 10.96.0.1:21 -s rr
            -a -t 10.96.0.1:21 -r 10.0.0.5:21 -m -w 1
            -a -t 10.96.0.1:21 -r 10.0.0.6:2121 -m -w 1""",
    )
    vip = "10.96.0.1"

    def say(port: int, client: bool, text: bytes) -> None:
        """One side says something, the other acknowledges it."""
        nonlocal seq
        server, at = servers[port]
        a, b = seq[port]
        if client:
            s.sends("eth0", tcp(OUT, port, vip, 21, "PA", a, b + moved[port], data=text))
            seq[port] = a + len(text), b
            s.sends("lan0", tcp(server, at, OUT, port, "A", b, a + len(text)))
        else:
            k = s.sends("lan0", tcp(server, at, OUT, port, "PA", b, a, data=text))
            came = [sent for _, sent in s.left[k]]
            moved[port] += len(came[0]) - 40 - len(text) if came else 0
            seq[port] = a, b + len(text)
            s.sends("eth0", tcp(OUT, port, vip, 21, "A", a, b + len(text) + moved[port]))

    def opened(port: int, to: int) -> tuple[str, int, int]:
        """A client opens a connection; the server's address and port, and its next number."""
        syn = s.sends("eth0", tcp(OUT, port, vip, to, "S", 1000))
        back = s.left[s.answered(syn)][-1][1]
        (number,) = struct.unpack_from("!I", back, 24)
        s.sends("eth0", tcp(OUT, port, vip, to, "A", 1001, number + 1))
        left = s.left[syn][-1][1]
        return socket.inet_ntoa(left[16:20]), *struct.unpack_from("!H", left, 22), number + 1

    servers: dict[int, tuple[str, int]] = {}
    seq: dict[int, tuple[int, int]] = {}
    moved: dict[int, int] = {}
    for port in (4000, 4001):
        *ends, number = opened(port, 21)
        servers[port] = ends[0], ends[1]
        seq[port], moved[port] = (1001, number), 0
        say(port, False, b"220 welcome\r\n")
    for port, (server, at) in servers.items():
        say(port, True, b"USER anonymous\r\n")
        say(port, True, b"PASV\r\n")
        ours = server.replace(".", ",").encode()
        say(port, False, b"227 Entering Passive Mode (" + ours + b",156,64).\r\n")
        _, _, number = opened(port + 100, 40000)
        s.sends("eth0", tcp(OUT, port + 100, vip, 40000, "FA", 1001, number))
        say(port, False, b"150 here it comes\r\n")
        say(port, True, b"EPSV\r\n")
        say(port, False, b"229 Entering Extended Passive Mode (|||40001|)\r\n")
        opened(port + 200, 40001)
        say(port, True, b"PORT 192,0,2,7,195,80\r\n")
        say(port, False, b"200 fine\r\n")
        s.answered(s.sends("lan0", tcp(server, at - 1, OUT, 50000, "S", 1)))
        say(port, True, b"EPRT |1|192.0.2.7|50001|\r\n")
        s.answered(s.sends("lan0", tcp(server, at - 1, OUT, 50001, "S", 1)))
        say(port, False, b"227 Not asked for (10,0,0,5,156,66)\r\n")
        s.sends("eth0", tcp(OUT, port + 300, vip, 40002))
        say(port, True, b"PASV\r\n")
        say(port, False, b"227 without brackets 10,0,0,5,156,67 \r\n")
        s.sends("eth0", tcp(OUT, port + 400, vip, 40003))
    return s


@story("6.1")
def ipvs_ignore_tunneled(kernel: str) -> Story:
    s = Story(
        "ipvs/ignore-tunneled",
        kernel,
        """With ignore_tunneled, what IPVS does not serve counts as seen by it: `-m ipvs --ipvs` matches the node's own
        echo requests and GRE; not what it serves, and finds no service for, and not ESP.""",
        links=LINKS + VIP,
        sysctl={"net.ipv4.vs.ignore_tunneled": 1},
        iptables="""filter OUTPUT -m ipvs --ipvs
            filter INPUT -m ipvs --ipvs
            mangle POSTROUTING -m ipvs --ipvs""",
        ipvs="""-A -t 10.96.0.1:80 -s rr
            -a -t 10.96.0.1:80 -r 10.0.0.5:8080 -m -w 1""",
    )
    s.sends(None, icmp(NODE, OUT))
    for proto in (47, 50, 51, 4):
        s.sends(None, ip(NODE, OUT, proto, b"\0" * 24))
    s.sends(None, tcp(NODE, 4000, OUT, 81))
    s.sends(None, error(NODE, OUT, udp(OUT, 7, NODE, 9)))
    s.sends("eth0", icmp(OUT, NODE))
    s.handshake("eth0", OUT, 4000, "10.96.0.1", 80)
    return s


@story("6.1")
def ipvs_timeouts(kernel: str) -> Story:
    s = Story(
        "clock/ipvs-timeouts",
        kernel,
        """UDP connections to a virtual server last as long as `ipvsadm --set` says: then another server is chosen.""",
        links=LINKS + VIP,
        ipvs="""-A -u 10.96.0.1:53 -s rr
            -a -u 10.96.0.1:53 -r 10.0.0.5:53 -m -w 1
            -a -u 10.96.0.1:53 -r 10.0.0.6:53 -m -w 1""",
    )
    s.runs("ipvsadm --set 0 0 1")
    for wait in (0.0, 0.5, 1.6, 0.5):
        s.waits(wait)
        s.sends("eth0", udp(OUT, 4000, "10.96.0.1", 53))
    return s


sys.modules.setdefault("record", sys.modules[__name__])
import told_of_connections  # noqa: E402, F401 (its stories enter STORIES)

# ---- recording -----------------------------------------------------------------------------------------------------


def told(name: str) -> list[Story]:
    """Every story on each of its kernels, whose name has `name` in it."""
    out = [make(kernel) for make in STORIES for kernel in KERNELS[make.__name__]]
    return [s for s in out if name in s.name]


#: the models in the tree, with their traces: (model, kernel, commands in between)
SHIPPED: list[tuple[str, str, list[tuple[float, str]]]] = [
    ("web-dnat", "6.18", []),
    ("nat-gateway", "6.18", []),
    ("nat-gateway", "6.18", [(5.0, "ip link set eth0 down")]),
    ("kube-ipvs", "6.1", []),
    ("kube-iptables", "6.1", []),
]


def shipped(model: str, kernel: str, commands: list[tuple[float, str]]) -> tuple[str, lab.Case]:
    """A model of the tree with its trace, and what its file is called."""
    root = HERE.parent.parent
    trace = str(root / "traces" / f"{model}.pcapng")
    case, _ = lab.from_traces(root / "models" / model, [trace], commands=commands)
    case.story = "The model and the trace of that name" + (f", and `{commands[0][1]}` on the way" if commands else "")
    return f"models/{model}{'-down' if commands else ''}-{kernel}", case


def main(names: list[str]) -> int:
    wrong = 0
    for kernel, where in (("6.18", "host"), ("6.1", "uml")):
        cases = [(f"{s.name}-{kernel}", s.case()) for s in told("") if s.kernel == kernel]
        cases += [shipped(*one) for one in SHIPPED if one[1] == kernel]
        cases = [(file, case) for file, case in cases if not names or any(n in file for n in names)]
        played = lab.play([case for _, case in cases], where, stats=True)
        for (file, case), recording in zip(cases, played, strict=True):
            if recording.trouble or recording.kernel != kernel:
                print(f"{file}: {recording.trouble or f'this is Linux {recording.release}'}")
                wrong += 1
                continue
            found = lab.compare(case, recording)
            wrong += bool(found)
            for d in found:
                print(d)
            lab.save(case, recording, HERE / f"{file}.case")
            print(f"{file}: {len(case.events)} events, {len(found)} disagreements")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
