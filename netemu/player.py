"""Plays packets through the kernel that it runs on, and notes what came of them.

    player.py IN OUT N    play the plans in IN (JSON), N at a time, write what happened to OUT (JSON lines)
    player.py guard DIR COMMAND...   run a command until our standard input is closed, then end it and remove DIR
    player.py uml COMMAND...   become User Mode Linux, as it can bear it on this machine's processor
    player.py probe       can it be done here? says why not, and leaves with status 1

`lab.py` writes the plans and starts this program: as root on the running kernel, or inside User Mode Linux. It stands
alone, on Python's own library, and does everything in a network namespace made for the plan: nothing outside is
touched, and when the process goes, however it goes, everything it made goes with it.

* TAP devices are the links, without ARP: what is written to one arrives there, what is read from one has left.
* The TRACE of every packet comes from a rule of nf_tables that stands before all tables and switches tracing on, so the
  rules under test stay as they are; nfnetlink_log hands it over, for this namespace alone.
* Sinks keep the local stack silent: sockets that take whatever arrives for a port or protocol and throw it away.
* Everything that a packet causes has happened when the write that sent it returns.
* The kernel counts time in ticks, and so do some matches and all its timers. Time zero is as far into one as netemu has
  it, no packet is sent near the end of one, and gaps are never shorter than planned: so a packet's time tells its tick.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any, ClassVar

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
SENDER = "02:00:00:00:00:fe"
TCP, UDP, ICMP, UDPLITE = 6, 17, 1, 136
STATISTICS = 2.2  # seconds after which the statistics of IPVS show every packet
ERRORS = (3, 4, 5, 11, 12)  # ICMP types that quote a packet

libc = ctypes.CDLL(None, use_errno=True)


def tool(argv: list[str], stdin: str | None = None) -> str:
    """Run a tool; what it prints. Raises RuntimeError with its words when it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr.strip() or done.stdout.strip())}")
    return done.stdout


def unshare() -> None:
    """From here on in a network namespace of our own."""
    if libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"a network namespace: {os.strerror(code)}")


# ---- netlink: TRACE of everything, without touching the tables ---------------------------------------------------


def attribute(kind: int, value: bytes, nested: bool = False) -> bytes:
    return struct.pack("<HH", 4 + len(value), kind | (0x8000 if nested else 0)) + value + b"\0" * (-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">i", value))


class Tracer:
    """The TRACE lines of this namespace, as if nothing had been added to the rules.

    The nf_tables rule `meta nftrace set 1` at PREROUTING and OUTPUT, priority -350 (after defragmentation, before raw),
    has the legacy tables log each rule that a packet meets. A kernel without nf_tables for IPv4 gets `-j TRACE` before
    all other rules of raw instead; then steps are counted without these, commands do not see them, and they are gone
    before the counters are read. ICMP timestamp replies, which no socket can keep the local stack from sending, are
    dropped there too.

    raw  whether the case itself has a raw table
    """

    NETLINK_NETFILTER = 12
    BATCH_BEGIN, BATCH_END = 0x10, 0x11
    NFTABLES, ULOG = 10 << 8, 4 << 8
    LINE = re.compile(r"TRACE: (\w+):([^:]+):(\w+):(\d+)")
    ADDED: ClassVar[dict[str, list[str]]] = {
        "PREROUTING": ["-j TRACE"],
        # the local stack's socket has no file, and so no owner
        "OUTPUT": ["-j TRACE", "-p icmp --icmp-type 14 -m owner ! --uid-owner 0-4294967294 -j DROP"],
    }

    def __init__(self, raw: bool) -> None:
        self.raw = raw
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self.NETLINK_NETFILTER)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self.socket.bind((0, 0))
        try:
            self.switch_on()
            self.added = False
        except OSError:
            self.added = True
            self.add()
        for body in (attribute(1, b"\x04"), attribute(1, b"\x03")):  # unbind and bind the family
            self.ask(self.ULOG | 1, socket.AF_INET, 0, body)
        self.ask(self.ULOG | 1, 0, 0, attribute(1, b"\x01"))  # bind group 0
        copy = attribute(2, struct.pack(">IBB", 128, 2, 0)) + attribute(5, struct.pack(">I", 1))
        self.ask(self.ULOG | 1, 0, 0, copy)  # 128 bytes of each, none held back
        with open(f"/proc/sys/net/netfilter/nf_log/{int(socket.AF_INET)}", "w") as f:
            f.write("nfnetlink_log")
        self.socket.setblocking(False)

    @staticmethod
    def message(kind: int, flags: int, serial: int, family: int, resource: int, body: bytes) -> bytes:
        head = struct.pack(">BBH", family, 0, resource)
        return struct.pack("<IHHII", 20 + len(body), kind, flags, serial, 0) + head + body

    def ask(self, kind: int, family: int, resource: int, body: bytes) -> None:
        self.socket.send(self.message(kind, 5, 0, family, resource, body))
        code = struct.unpack("<i", self.socket.recv(4096)[16:20])[0]
        if code:
            raise OSError(-code, f"nfnetlink_log: {os.strerror(-code)}")

    def switch_on(self) -> None:
        """`nft` would say: chain in { type filter hook prerouting priority -350; meta nftrace set 1; }, and so on."""
        ip, name = socket.AF_INET, text(1, "netemu")
        create, last = 1 | 0x400, 1 | 0x400 | 4
        parts = [self.message(self.BATCH_BEGIN, 1, 0, 0, 10, b""), self.message(self.NFTABLES, create, 1, ip, 0, name)]
        for chain, hook in (("in", 0), ("out", 3)):
            place = attribute(4, number(1, hook) + number(2, -350), nested=True)
            parts.append(
                self.message(self.NFTABLES | 3, create, 2, ip, 0, name + text(3, chain) + place + text(7, "filter"))
            )
        trace = self.immediate(1, b"\1") + self.expression("meta", number(2, 12) + number(3, 1))
        hush = (
            self.expression("meta", number(2, 16) + number(1, 1))  # layer 4 protocol
            + self.compare(1, bytes([ICMP]))
            + self.expression("payload", number(1, 1) + number(2, 2) + number(3, 0) + number(4, 1))
            + self.compare(1, b"\x0e")
            + self.immediate(0, None)
        )
        rules = [("in", trace), ("out", trace), ("out", hush)]
        for k, (chain, what) in enumerate(rules):
            body = name + text(2, chain) + attribute(4, what, nested=True)
            parts.append(
                self.message(self.NFTABLES | 6, last if k == len(rules) - 1 else create | 0x800, 3, ip, 0, body)
            )
        parts.append(self.message(self.BATCH_END, 1, 4, 0, 10, b""))
        # a socket of its own: a kernel that cannot do it answers every part
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self.NETLINK_NETFILTER) as s:
            s.bind((0, 0))
            s.send(b"".join(parts))
            code = struct.unpack("<i", s.recv(4096)[16:20])[0]
        if code:
            raise OSError(-code, f"nf_tables: {os.strerror(-code)}")

    def add(self) -> None:
        """Rules of ours, before all others of raw."""
        lines = [f"-I {chain} {rule}" for chain, rules in self.ADDED.items() for rule in rules]
        tool(["iptables-legacy-restore", "--noflush"], "\n".join(["*raw", *lines, "COMMIT", ""]))

    def remove(self) -> None:
        """Take them out again."""
        for chain, rules in self.ADDED.items():
            for rule in rules:
                with contextlib.suppress(RuntimeError):  # the case may have flushed the chain
                    tool(["iptables-legacy", "-t", "raw", "-D", chain, *rule.split()])

    def step(self, table: str, chain: str, kind: str, place: int) -> list[str]:
        """A step as it would be without rules of ours; none for those themselves."""
        if self.added and table == "raw":
            place -= len(self.ADDED.get(chain, ()))
            if not self.raw or place < 1:
                return []
        return [f"{table}:{chain}:{kind}:{place}"]

    def counters(self) -> str:
        """`iptables-save -c` without rules of ours."""
        saved = tool(["iptables-legacy-save", "-c"])
        if self.added and not self.raw:
            return re.sub(r"^(#.*\n)?\*raw\n[\s\S]*?^COMMIT\n(#.*\n)?", "", saved, flags=re.M)
        if self.added:
            for ours in (r"PREROUTING -j TRACE", r"OUTPUT -p icmp .*--icmp-type 14 .*-j DROP", r"OUTPUT -j TRACE"):
                saved = re.sub(rf"^\[\d+:\d+\] -A {ours}\n", "", saved, count=1, flags=re.M)
        return saved

    @staticmethod
    def expression(name: str, data: bytes) -> bytes:
        return attribute(1, text(1, name) + attribute(2, data, nested=True), nested=True)

    @classmethod
    def compare(cls, register: int, value: bytes) -> bytes:
        return cls.expression(
            "cmp", number(1, register) + number(2, 0) + attribute(3, attribute(1, value), nested=True)
        )

    @classmethod
    def immediate(cls, register: int, value: bytes | None) -> bytes:
        """Load a value; None: the verdict DROP."""
        data = attribute(1, value) if value is not None else attribute(2, number(1, 0), nested=True)
        return cls.expression("immediate", number(1, register) + attribute(2, data, nested=True))

    def drain(self) -> list[str]:
        """`table:chain:kind:number` of each rule met since the last call."""
        out: list[str] = []
        while True:
            try:
                data = self.socket.recv(1 << 17)
            except BlockingIOError:
                return out
            at = 0
            while at < len(data):
                size, kind = struct.unpack_from("<IH", data, at)
                if kind == self.ULOG:
                    found = self.LINE.match(self.prefix(data[at + 20 : at + size]))
                    if found:
                        out += self.step(found[1], found[2], found[3], int(found[4]))
                at += size + (-size % 4)

    @staticmethod
    def prefix(message: bytes) -> str:
        at = 0
        while at + 4 <= len(message):
            size, kind = struct.unpack_from("<HH", message, at)
            if kind & 0x3FFF == 10:
                return message[at + 4 : at + size].rstrip(b"\0").decode("ascii", "replace")
            at += size + (-size % 4)
        return ""


# ---- the links, and what keeps the local stack silent -------------------------------------------------------------


def tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def write_sysctl(name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    with open(path) as f:
        if f.read().split() == value.split():
            return
    with open(path, "w") as f:
        f.write(value)


class Sinks:
    """Sockets that take what is delivered to a port or protocol, and throw it away."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], socket.socket | None] = {}
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for limit in (1 << 17, most):  # two sockets a port; root may have more than it was given
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, most)))
                break
        nothing = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0))  # a filter that says: keep 0 bytes
        self._program = nothing
        self._filter = struct.pack("HxxxxxxP", 1, ctypes.addressof(nothing))
        for protocol in range(1, 255):
            if protocol not in (ICMP, TCP, UDP, UDPLITE):
                self._open((protocol, 0), socket.SOCK_RAW, protocol)

    def _open(self, key: tuple[int, int], kind: int, protocol: int) -> None:
        self.held[key] = None
        try:
            s = socket.socket(socket.AF_INET, kind, protocol)
            s.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, self._filter)
            if kind != socket.SOCK_RAW:
                s.bind(("0.0.0.0", key[1]))
            if kind == socket.SOCK_STREAM:
                s.listen(1)
            self.held[key] = s
        except OSError:
            pass  # a protocol or port that this kernel does not have: then there is nobody to answer either

    def take(self, protocol: int, port: int) -> None:
        if port and (protocol, port) not in self.held and protocol in (TCP, UDP, UDPLITE):
            self._open((protocol, port), socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM, protocol)

    def prepare(self, packet: bytes) -> None:
        """Sinks for both ports of a packet: a translation may turn either into a port of ours."""
        at = (packet[0] & 15) * 4
        if len(packet) >= at + 4:
            for port in struct.unpack_from("!HH", packet, at):
                self.take(packet[9], port)


class Host:
    """The plan's node, built in this namespace."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.taps: dict[str, int] = {}
        self.macs: dict[str, bytes] = {}
        first = ["link set lo up"]
        for link in plan["links"]:
            name = link["name"]
            self.taps[name] = tap(name)
            self.macs[name] = bytes.fromhex(link["mac"].replace(":", ""))
            if os.path.isdir("/proc/sys/net/ipv6"):
                write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
            first.append(f"link set {name} address {link['mac']} arp off mtu {link['mtu']}")
        tool(["ip", "-batch", "-"], "\n".join(first))
        if "ipvsadm.save" in plan["texts"]:
            tool(["ipvsadm", "-C"])  # has the kernel load IPVS, and its sysctls with it
        for name, value, asked in plan["sysctl"]:
            try:
                write_sysctl(name, value)
            except OSError as e:
                if asked:
                    raise RuntimeError(f"sysctl {name} = {value}: {e.strerror}") from None
        self._commands(plan["commands"])
        for file, restore in (
            ("ipset.save", ["ipset", "restore"]),
            ("ipvsadm.save", ["ipvsadm", "-R"]),
            ("iptables.save", ["iptables-legacy-restore", "-c"]),
        ):
            if file in plan["texts"]:
                tool(restore, plan["texts"][file])

    @staticmethod
    def _commands(commands: list[list[str]]) -> None:
        """Each in turn; routes may lean on others further down, so those that fail are tried again after the rest."""
        waiting = commands
        while waiting:
            lines = "\n".join(" ".join(argv[1:]) for argv in waiting)
            done = subprocess.run(["ip", "-force", "-batch", "-"], input=lines, capture_output=True, text=True)
            failed = [waiting[int(n) - 1] for n in re.findall(r"^Command failed -:(\d+)$", done.stderr, re.M)]
            if len(failed) == len(waiting) or any(argv[1] != "route" for argv in failed):
                raise RuntimeError(f"{' '.join(failed[0])}: {done.stderr.strip()}")
            if done.returncode and not failed:
                raise RuntimeError(done.stderr.strip())
            waiting = failed

    def left(self) -> list[list[str]]:
        """[link, hex from the IP header on] of each IPv4 packet that left since the last call."""
        out: list[list[str]] = []
        for name, fd in self.taps.items():
            while True:
                try:
                    frame = os.read(fd, 70000)
                except BlockingIOError:
                    break
                except OSError:
                    break  # the link was taken away
                if frame[12:14] == b"\x08\x00":
                    out.append([name, frame[14:].hex()])
        return out


# ---- answers to what left ------------------------------------------------------------------------------------------


def patched(segment: bytearray, at: int, old: int, new: int) -> None:
    """The checksum at `at`, after a word turned from `old` to `new` (RFC 1624)."""
    total = (~int.from_bytes(segment[at : at + 2], "big") & 0xFFFF) + (~old & 0xFFFF) + new
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")


def port_places(packet: bytes) -> tuple[int, int, int] | None:
    """Where source port, destination port and checksum stand; an ICMP query's id is both ports."""
    at = (packet[0] & 15) * 4
    if struct.unpack_from("!H", packet, 6)[0] & 0x1FFF or len(packet) < at + 8:
        return None
    if packet[9] in (TCP, UDP):
        return at, at + 2, at + (16 if packet[9] == TCP else 6)
    if packet[9] == ICMP and packet[at] in (0, 8):
        return at + 4, at + 4, at + 2
    return None


def with_port(packet: bytes, source: bool, port: int) -> bytes:
    """The packet with another source or destination port (or ICMP id), its checksum with it."""
    places = port_places(packet)
    assert places is not None
    at, end = places[0 if source else 1], places[2]
    out = bytearray(packet)
    old = int.from_bytes(packet[at : at + 2], "big")
    if len(packet) >= end + 2 and not (packet[9] == UDP and packet[end : end + 2] == b"\0\0"):
        patched(out, end, old, port)
    out[at : at + 2] = port.to_bytes(2, "big")
    return bytes(out)


def answering(packet: bytes, outs: list[list[str]]) -> bytes:
    """`packet` as the answer to what really left: the port that it answers may have been drawn at random."""
    at = (packet[0] & 15) * 4
    if packet[9] == ICMP and len(packet) >= at + 36 and packet[at] in ERRORS:
        quoted = answering_ends(packet[at + 8 :], outs, source=True)
        out = bytearray(packet[: at + 8] + quoted)
        before, after = packet[at + 8 :], quoted
        for k in range(0, len(before) - 1, 2):
            a, b = int.from_bytes(before[k : k + 2], "big"), int.from_bytes(after[k : k + 2], "big")
            if a != b:
                body = bytearray(out[at:])
                patched(body, 2, a, b)
                out[at:] = body
        return bytes(out)
    return answering_ends(packet, outs, source=False)


def answering_ends(packet: bytes, outs: list[list[str]], source: bool) -> bytes:
    places = port_places(packet)
    if places is None:
        return packet
    near, far = (places[0], places[1]) if source else (places[1], places[0])
    us, them = (packet[12:16], packet[16:20]) if source else (packet[16:20], packet[12:16])
    for _, hexed in outs:
        sent = bytes.fromhex(hexed)
        spot = port_places(sent)
        if spot is None or (sent[9], sent[12:16], sent[16:20]) != (packet[9], us, them):
            continue
        if packet[9] != ICMP and sent[spot[1] : spot[1] + 2] != packet[far : far + 2]:
            continue
        drawn = int.from_bytes(sent[spot[0] : spot[0] + 2], "big")
        if drawn != int.from_bytes(packet[near : near + 2], "big"):
            return with_port(packet, source, drawn)
        return packet
    return packet


# ---- playing -------------------------------------------------------------------------------------------------------


def command(line: str, tracer: Tracer) -> tuple[int, str]:
    """Run one of the node's own tools: its status, and what it complained of."""
    argv = shlex.split(line)
    if tracer.added and "raw" in argv:
        tracer.remove()
        tracer.added = False
        try:
            return command(line, tracer)
        finally:
            tracer.added = True
            tracer.add()
    name = os.path.basename(argv[0])
    if name == "sysctl":
        try:
            for word in argv[1:]:
                if "=" in word:
                    key, _, value = word.partition("=")
                    write_sysctl(key.strip(), value.strip())
        except OSError as e:
            return 255, str(e.strerror)
        return 0, ""
    legacy = {"iptables": "iptables-legacy", "ip6tables": "ip6tables-legacy"}
    done = subprocess.run([legacy.get(name, name), *argv[1:]], capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


class Ticks:
    """The kernel's ticks; time zero is in one that has just begun.

    A socket that never sent says how long ago it did: that is the kernel's count of ticks, in milliseconds.

    begun  seconds of it that are over at time zero
    late   seconds that everything comes later than planned: what comes late delays all that follows
    """

    TCP_INFO, LAST_SENT = 11, 44
    SAFE = 0.75  # of a tick; behind that it is too near to its end

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.length = time.clock_getres(6)  # of CLOCK_MONOTONIC_COARSE
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.late, self.zero = 0.0, self.next()
        self.start = time.monotonic() + begun

    def count(self) -> int:
        """Ticks that were."""
        told = self.socket.getsockopt(socket.IPPROTO_TCP, self.TCP_INFO, self.LAST_SENT + 4)
        return round(int.from_bytes(told[self.LAST_SENT :], sys.byteorder) / 1000 / self.length)

    def next(self) -> int:
        """Wait for the next tick: its number."""
        before = self.count()
        while (now := self.count()) == before:
            time.sleep(0.0001)
        return now

    def now(self) -> float:
        """Seconds since time zero, in the tick that is."""
        tick, at = self.count() - self.zero, time.monotonic() - self.start
        beginning = tick * self.length - self.begun
        return min(max(at, beginning), beginning + self.length - 0.00001)

    def wait(self, at: float) -> float:
        """Until `at`, or as much later as all is, and a time that is well within a tick: the time then."""
        pause = at + self.late - (time.monotonic() - self.start)
        if pause > 0:
            time.sleep(pause)
        if (time.monotonic() - self.start + self.begun) % self.length > self.SAFE * self.length:
            self.next()
        now = self.now()
        self.late = max(self.late, now - at)
        return now


def before_others(so: bool) -> None:
    """Run as soon as there is something to do, also on a machine that has much else to do; the tools that we start do
    not. A machine that does not allow it only makes us late.
    """
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK if so else os.SCHED_OTHER
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, policy, os.sched_param(int(so)))


def settled() -> None:
    """Wait until no packet waits for being taken up: what goes over lo is, perhaps by a thread of the kernel."""
    for _ in range(100):
        with open("/proc/net/softnet_stat") as f:
            if not any(int(words[11], 16) for words in map(str.split, f) if len(words) > 11):
                return
        time.sleep(0.0005)  # the thread goes on while we sleep


def play(plan: dict[str, Any]) -> dict[str, Any]:
    """Build the node, send every packet at its time, and tell what happened."""
    host, sinks = Host(plan), Sinks()
    for port in plan["ports"]:
        for protocol in (TCP, UDP):
            sinks.take(protocol, port)
    tracer = Tracer(plan["raw"])
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    if plan["connections"]:
        with os.fdopen(os.memfd_create("connections"), "w+") as listed:  # User Mode Linux has no /dev/stdin
            print(plan["connections"], file=listed, end="", flush=True)
            tool(["conntrack", "-R", f"/proc/{os.getpid()}/fd/{listed.fileno()}"])
    if plan["renew"]:
        tool(["ipset", "-exist", "restore"], plan["renew"])  # the time that members have left counts from now
    host.left()  # what bringing the links up had them send
    tracer.drain()
    results: list[dict[str, Any]] = []
    before_others(True)
    ticks = Ticks(plan["begun"] / 1e9)
    for event in plan["events"]:
        result: dict[str, Any] = {}
        packet = b""
        if "packet" in event:
            packet = bytes.fromhex(event["packet"])
            if "answers" in event:
                meant = packet
                packet = answering(packet, results[event["answers"]]["outs"])
                if packet != meant:
                    result["sent"] = packet.hex()
            sinks.prepare(packet)
        result["at"] = round(ticks.wait(event["at"]), 6)
        if "command" in event:
            result["status"], result["error"] = command(event["command"], tracer)
        else:
            try:
                if event["link"] is None:
                    sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
                else:
                    to = bytes.fromhex(event["to"].replace(":", "")) if event.get("to") else host.macs[event["link"]]
                    source = bytes.fromhex(event.get("source", SENDER).replace(":", ""))
                    os.write(host.taps[event["link"]], to + source + b"\x08\x00" + packet)
            except OSError as e:
                result["error"] = errno.errorcode.get(e.errno or 0, str(e))
            settled()
        result["outs"], result["trace"] = host.left(), tracer.drain()
        results.append(result)
    before_others(False)
    ticks.wait(plan["end"])
    tables: dict[str, tuple[float, str]] = {}

    def read(name: str, argv: list[str]) -> None:
        text = tool(argv)
        tables[name] = (round(ticks.now(), 6), text)  # a tool takes longest to start, so this is near

    read("conntrack", ["conntrack", "-L", "-o", "extended"])
    if any("--helper" in rules for rules in plan["texts"].values()):
        read("expect", ["conntrack", "-L", "expect"])
    if plan["sets"]:
        read("ipset", ["ipset", "save"])
    if "ipvsadm.save" in plan["texts"]:
        read("ipvs", ["ipvsadm", "-Ln"])
        read("connections", ["ipvsadm", "-Lnc"])
    tables["counters"] = (round(ticks.now(), 6), tracer.counters())
    if "connections" in tables and plan["stats"]:
        time.sleep(STATISTICS)
        read("stats", ["ipvsadm", "-Ln", "--stats", "--exact"])
    return {"release": os.uname().release, "events": results, "tables": tables}


def attempt(plan: dict[str, Any]) -> dict[str, Any]:
    try:
        unshare()
        return play(plan)
    except (OSError, RuntimeError, subprocess.SubprocessError) as e:
        return {"error": str(e) or type(e).__name__}


def tied_to_parent() -> None:
    """When the parent dies, so do we: nothing is left behind."""
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def play_all(source: str, target: str, together: int) -> None:
    """Plans in, what happened out: each plan in a process and a namespace of its own, `together` of them at a time."""
    with open(source) as f:
        plans = json.load(f)
    os.environ["XTABLES_LOCKFILE"] = f"{target}.lock"  # the host's own iptables need not wait for ours
    cpus = sorted(os.sched_getaffinity(0))
    running: dict[int, int] = {}
    todo = list(range(len(plans)))[::-1]
    while todo or running:
        if todo and len(running) < together:
            k = todo.pop()
            pid = os.fork()
            if pid == 0:
                tied_to_parent()
                os.sched_setaffinity(0, {cpus[k % len(cpus)]})  # some matches remember on which CPU they counted
                os.environ["XTABLES_LOCKFILE"] = f"{target}.{k}.lock"
                with open(f"{target}.{k}", "w") as f:
                    json.dump(attempt(plans[k]), f)
                os._exit(0)
            running[pid] = k
            continue
        pid, status = os.wait()
        if pid in running:
            k = running.pop(pid)
            if status:
                with open(f"{target}.{k}", "w") as f:
                    json.dump({"error": f"the player ended with status {status}"}, f)
    with open(f"{target}.part", "w") as out:
        for k in range(len(plans)):
            with open(f"{target}.{k}") as f:
                out.write(f.read() + "\n")
    os.rename(f"{target}.part", target)


def probe() -> None:
    """Try what a plan needs, once."""
    try:
        unshare()
        os.environ["XTABLES_LOCKFILE"] = "/dev/null"
        tool(["ip", "link", "set", "lo", "up"])
        os.close(tap("probe0"))
        for table in ("raw", "mangle", "nat", "filter"):
            tool(["iptables-legacy", "-t", table, "-S"])
        tool(["ipset", "list"])
        tool(["conntrack", "-L"])
        Tracer(False)
    except (OSError, RuntimeError) as e:
        print(e)
        sys.exit(1)


def guard(folder: str, argv: list[str]) -> None:
    """Run a command for as long as our standard input stays open; then end all that is left of it.

    Whoever started us holds the other end, so this happens even when he was killed; then the folder is removed as well.
    """
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    alone = False
    while not alone and child.poll() is None:
        ready, _, _ = select.select([0], [], [], 0.02)
        alone = bool(ready) and not os.read(0, 1)
    while left := children():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    if not alone:
        os.close(1)
        os.close(2)
        alone = not os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)


#: seccomp's answer to ptrace(PTRACE_GETREGSET, ...) of x86-64: EIO; everything else is let through
_NO_REGISTER_SETS = (
    (0x20, 0, 0, 4), (0x15, 0, 5, 0xC000003E),  # the architecture
    (0x20, 0, 0, 0), (0x15, 0, 3, 101),  # the system call: ptrace
    (0x20, 0, 0, 16), (0x15, 0, 1, 0x4204),  # what it is asked for
    (0x06, 0, 0, 0x00050000 | errno.EIO),
    (0x06, 0, 0, 0x7FFF0000),
)  # fmt: skip


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def too_wide(cpuinfo: str) -> bool:
    """Has the processor vector registers that User Mode Linux has no room for?"""
    return re.search(r"^flags\s*:.* (amx_tile|apx)", cpuinfo, re.MULTILINE) is not None


def no_register_sets() -> bool:
    """From here on, ptrace refuses us and our children to read all registers of a process at once. False: not so."""
    code = b"".join(struct.pack("HBBI", *line) for line in _NO_REGISTER_SETS)
    kept = ctypes.create_string_buffer(code, len(code))
    program = _Filter(len(_NO_REGISTER_SETS), ctypes.cast(kept, ctypes.c_void_p))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def uml(argv: list[str]) -> None:
    """Become User Mode Linux.

    It keeps the vector registers of its processes in 2,696 bytes (Linux 6.1, arch/x86/um/ptrace). Those of a processor
    with AMX or APX do not fit, so its first process dies. Where it cannot ask for all of them it does with those
    of SSE, and what programs inside hold in wider ones is lost at every page fault: `lab` tells their C library so.
    """
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        if too_wide(f.read()) and not no_register_sets():
            why = os.strerror(ctypes.get_errno())
            sys.stderr.write(f"User Mode Linux has no room for this processor's AMX registers, and seccomp: {why}\n")
    os.execvp(argv[0], argv)


def children() -> list[int]:
    """Processes that we started, or whose parents ended before them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as f:
                state = f.read().rpartition(")")[2].split()
                if int(state[1]) == os.getpid():
                    found.append(int(entry))
    return found


def main() -> None:
    if sys.argv[1:2] == ["guard"]:
        guard(sys.argv[2], sys.argv[3:])
        return
    if sys.argv[1:2] == ["uml"]:
        uml(sys.argv[2:])
    tied_to_parent()
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
    if sys.argv[1:] == ["probe"]:
        probe()
    else:
        play_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))


if __name__ == "__main__":
    main()
