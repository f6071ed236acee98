"""The kernel replaying packets, against `netemu replay --summary` of the same packets on the same machine.

    sudo python bench/kernel.py [--services 10000] [--established 400000] [--new 50000] [--repeat 5]

The kernel half: three network namespaces of this process, sender -> node -> sink over veth, the node with the rules
of the model's own iptables.save (kube-proxy's, N services with 3 endpoints each on other nodes). Frames go out of
AF_PACKET sockets by sendmmsg, past the queueing disciplines; sender, node and sink share one CPU, as netemu has one.
What counts as delivered is what the far veth received, and a run that loses packets is no run. The namespaces have no
name: when the process ends, however it ends, they and all that is in them are gone; nothing outside is touched.

A kernel's rate includes real delivery, which netemu does not do, and the cost of sending: it is a replay rate.

established   a thousand connections, opened before (not timed), data from either side in turn. The kernel chose their
              endpoints at random; netemu gets the kernel's own connections (conntrack -L) as conntrack.list, and then
              the same packets.
new           every packet is the SYN of a new connection, to services all over the rules; at most as many as half of
              nf_conntrack_max, and the table is empty before each run.
ipvs          without a kernel: the same new connections through netemu in ipvs mode and in iptables mode.
services      without a kernel: new connections at the most and at the fewest services, loading not counted.

netemu's time is from the loaded node to the finished summary: reading and parsing the capture, the engine, the counts.
Medians of the runs, taken in turn. Without root or veth the kernel half is skipped, and says so.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tools import ACK, PSH, SYN, WATCH, Bench, Bytes, Column, medians, segments, timed, write_raw

from netemu import Node, read_capture
from netemu.kube import Cluster, Endpoint, Host, HostLink, ServicePort, iptables_mode, ipvs_mode, write
from netemu.report import Summary, address

CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
ETH_P_IP = 0x0800
POD_LINK, OUT_LINK = "cni0", "eth0"
MACS = {"sender": "02:00:00:00:01:01", POD_LINK: "02:00:00:00:01:02", OUT_LINK: "02:00:00:00:02:01"}
NOBODY = "02:00:00:00:ff:ff"  # the next hop of both sides: a frame to it is received, counted and thrown away
FIRST_SERVICE, FIRST_POD, FIRST_CLIENT = 0x0A400001, 0x0A810010, 0x0A80FC01
CLIENTS, PORT, TARGET_PORT = 200, 80, 8080
FLOWS = 1000  # established connections
BATCH = 500  # frames a system call
HOUR = 3600 * 10**9

HOST = Host(
    name="node-0",
    ip="10.0.0.1",
    links=(
        HostLink(OUT_LINK, ("10.0.0.1/24",), MACS[OUT_LINK]),
        HostLink(POD_LINK, ("10.128.0.1/16",), MACS[POD_LINK]),
    ),
    routes=({"to": "default", "via": "10.0.0.254", "dev": OUT_LINK},),
    detect_local="10.128.0.0/9",
)
libc = ctypes.CDLL(None, use_errno=True)


# ---- traffic -------------------------------------------------------------------------------------------------------


def cluster(services: int, endpoints: int = 3) -> Cluster:
    """ClusterIP services with endpoints on other nodes."""
    made = []
    for i in range(services):
        pods = tuple(
            Endpoint(address(FIRST_POD + i * endpoints + k), TARGET_PORT, f"node-{1 + k}") for k in range(endpoints)
        )
        made.append(ServicePort("bench", f"svc-{i}", address(FIRST_SERVICE + i), PORT, pods, "http"))
    return Cluster(tuple(made))


class Flows:
    """Connections of pods on the node with services, spread over all of them."""

    def __init__(self, n: int, services: int) -> None:
        k = np.arange(n, dtype=np.int64)
        stride = next(p for p in (7919, 7927, 7933) if services % p)
        self.vip = FIRST_SERVICE + k * stride % services
        self.client = FIRST_CLIENT + k % CLIENTS
        self.port = 32_768 + k // CLIENTS % 28_000
        self.isn = k * 1_000_003 & 0x7FFFFFFF
        self.server = self.vip  # until somebody said which endpoint it is

    def ask(self, flags: int, said: int, heard: int, payload: int = 0) -> Bytes:
        """One packet of each client. said, heard: how far either side's numbers got."""
        ack = self.isn + 7 + heard if flags & ACK else self.isn * 0
        return segments(self.client, self.port, self.vip, PORT + self.vip * 0, flags, self.isn + said, ack, payload)

    def answer(self, flags: int, said: int, heard: int, payload: int = 0) -> Bytes:
        """One packet of each endpoint."""
        return segments(
            self.server,
            TARGET_PORT + self.vip * 0,
            self.client,
            self.port,
            flags,
            self.isn + 7 + said,
            self.isn + heard,
            payload,
        )

    def rounds(self, n: int, payload: int = 10) -> list[tuple[Bytes, Bytes]]:
        """Data from the client and data from the endpoint, n times, in sequence."""
        out = []
        for k in range(n):
            ask = self.ask(ACK | PSH, 1 + k * payload, 1 + k * payload, payload)
            out.append((ask, self.answer(ACK | PSH, 1 + k * payload, 1 + (k + 1) * payload, payload)))
        return out


# ---- the kernel ----------------------------------------------------------------------------------------------------


class Unavailable(Exception):
    """Why no kernel can be measured here."""


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", Msghdr), ("sent", ctypes.c_uint))


class Frames:
    """Frames of one size that lie ready for sendmmsg: built once, sent any number of times."""

    def __init__(self, packets: Bytes, to: str) -> None:
        n, size = packets.shape
        head = bytes.fromhex(to.replace(":", "")) + bytes.fromhex("02000000aaaa") + b"\x08\x00"
        self.data = np.empty((n, 14 + size), np.uint8)
        self.data[:, :14], self.data[:, 14:] = np.frombuffer(head, np.uint8), packets
        iov = np.zeros(n, [("base", np.uint64), ("len", np.uint64)])
        iov["base"] = self.data.ctypes.data + np.arange(n, dtype=np.uint64) * np.uint64(14 + size)
        iov["len"] = 14 + size
        self.iov = iov
        messages = np.zeros((n, ctypes.sizeof(Mmsghdr) // 8), np.uint64)
        messages[:, Msghdr.iov.offset // 8] = iov.ctypes.data + np.arange(n, dtype=np.uint64) * np.uint64(16)
        messages[:, Msghdr.iovlen.offset // 8] = 1
        self.messages = messages

    def __len__(self) -> int:
        return len(self.iov)

    def send(self, sock: socket.socket, lo: int, hi: int) -> None:
        """Frames lo to hi, all of them."""
        size = ctypes.sizeof(Mmsghdr)
        while lo < hi:
            got = libc.sendmmsg(sock.fileno(), ctypes.c_void_p(self.messages.ctypes.data + lo * size), hi - lo, 0)
            if got <= 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            lo += got


class Lab:
    """Sender, node and sink: three namespaces that only this process holds."""

    def __init__(self) -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            raise Unavailable("it needs root on Linux")
        for tool in ("ip", "iptables-legacy-restore", "conntrack"):
            if shutil.which(tool) is None:
                raise Unavailable(f"it needs `{tool}`")
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.rooms = {name: self._room() for name in ("sender", "sink", "node")}
        with self.inside("node"):
            try:
                for far, near in (("sender", POD_LINK), ("sink", OUT_LINK)):
                    room = f"/proc/{os.getpid()}/fd/{self.rooms[far]}"
                    call(f"ip link add {near} address {MACS[near]} type veth peer name far netns {room}")
            except subprocess.CalledProcessError as e:
                raise Unavailable(f"no veth: {e.stderr.strip()}") from None
            for name, value in (
                ("net/ipv4/ip_forward", 1),
                ("net/ipv4/conf/all/rp_filter", 0),
                ("net/ipv4/conf/default/rp_filter", 0),
                ("net/ipv4/conf/all/send_redirects", 0),
                ("net/ipv6/conf/all/disable_ipv6", 1),
            ):
                if Path("/proc/sys", name).exists():
                    Path("/proc/sys", name).write_text(str(value))
            for link in HOST.links:
                call(f"ip link set {link.name} up")
                for one in link.addresses:
                    call(f"ip addr add {one} dev {link.name}")
            call("ip link set lo up")
            call(f"ip route add default via 10.0.0.254 dev {OUT_LINK}")
            neighbours = [f"neigh add 10.0.0.254 lladdr {NOBODY} nud permanent dev {OUT_LINK}"]
            for k in range(CLIENTS):
                neighbours.append(f"neigh add {address(FIRST_CLIENT + k)} lladdr {NOBODY} nud permanent dev {POD_LINK}")
            call("ip -batch -", "\n".join(neighbours))
        self.sockets, self.counters = {}, {}
        for name in ("sender", "sink"):
            with self.inside(name):
                Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
                call("ip link set far up")
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                sock.bind(("far", 0))
                sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
                self.sockets[name] = sock
                self.counters[name] = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        time.sleep(0.3)  # whatever links say of themselves when they come up

    def _room(self) -> int:
        if libc.unshare(CLONE_NEWNET):
            raise Unavailable(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        room = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        libc.setns(self.home, CLONE_NEWNET)
        return room

    @contextmanager
    def inside(self, room: str) -> Iterator[None]:
        """This thread, and what it starts, stands in that namespace."""
        if libc.setns(self.rooms[room], CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(self.home, CLONE_NEWNET)

    def close(self) -> None:
        """Let go of the namespaces; with the last descriptor they are gone."""
        for sock in self.sockets.values():
            sock.close()
        for descriptor in (*self.counters.values(), *self.rooms.values(), self.home):
            os.close(descriptor)

    def received(self, name: str) -> int:
        """Packets that the far veth of that room received so far."""
        for line in os.pread(self.counters[name], 4096, 0).decode().splitlines():
            link, _, numbers = line.partition(":")
            if link.strip() == "far":
                return int(numbers.split()[1])
        raise AssertionError("no far veth")

    def replay(self, sending: list[tuple[str, Frames]]) -> float:
        """Send all of it, in order, and wait until it was received. Returns seconds.

        A batch goes out when what went before has arrived, so that no queue overflows.
        Raises   RuntimeError, when packets do not arrive
        """
        other = {"sender": "sink", "sink": "sender"}
        due = {name: self.received(name) for name in other}
        start = WATCH.now()
        for side, frames in sending:
            far = other[side]
            for lo in range(0, len(frames), BATCH):
                hi = min(lo + BATCH, len(frames))
                frames.send(self.sockets[side], lo, hi)
                due[far] += hi - lo
                if self.received(far) < due[far]:
                    self._wait(far, due[far])
        taken = WATCH.now() - start
        for name, count in due.items():
            if self.received(name) != count:
                raise RuntimeError(f"{name} received {self.received(name) - count:+} packets more than were sent to it")
        return taken

    def _wait(self, far: str, count: int) -> None:
        deadline = time.perf_counter() + 2
        while self.received(far) < count:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{count - self.received(far):,} packets were sent and not received")

    def rules(self, text: str) -> float:
        """Load rules. Returns seconds."""
        with self.inside("node"):
            start = time.perf_counter()  # it is another process that works
            call("iptables-legacy-restore", text)
            return time.perf_counter() - start

    def connections(self) -> str:
        """What `conntrack -L -o extended` says in the node."""
        with self.inside("node"):
            return call("conntrack -L -o extended")

    def forget(self) -> None:
        """Empty the connection table."""
        with self.inside("node"):
            call("conntrack -F")


def call(words: str, text: str = "") -> str:
    """A tool's output."""
    return subprocess.run(words.split(), input=text, text=True, check=True, capture_output=True).stdout


# ---- netemu --------------------------------------------------------------------------------------------------------


class Model:
    """A model directory, the node loaded from it, and how long netemu takes with packets."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder, self.files = folder, files
        write(files, folder)

    def load(self) -> None:
        """Load the node anew."""
        self.clock = 0
        start = WATCH.now()
        self.node = Node.load(self.folder, seed=1)
        self.load_seconds = WATCH.now() - start

    def rest(self) -> None:
        """Let all connections that nobody answered time out, and forget the others."""
        self.clock += HOUR
        self.node.advance(self.clock / 10**9)
        self.node.run("conntrack -F")

    def replay(self, packets: Bytes, tick: int = 1_000) -> float:
        """Seconds from the loaded node to the finished summary of a capture, all of which must be forwarded."""
        trace = self.folder / "trace.pcap"
        write_raw(trace, packets, tick, self.clock)
        self.clock += tick * len(packets)
        summary = Summary()

        def all_of_it() -> None:
            for journeys in self.node.stream(read_capture(trace), remember=False):
                summary.add(journeys)

        taken = timed(all_of_it)
        forwarded = sum(count for (_, out), count in summary.ways.items() if out > 0)
        if forwarded != len(packets):
            raise RuntimeError(f"netemu forwarded {forwarded:,} of {len(packets):,} packets")
        return taken


# ---- what is compared ----------------------------------------------------------------------------------------------


def established(lab: Lab, model: Model, packets: int, services: int, repeat: int) -> dict[str, Any]:
    """Data both ways in connections that the kernel opened. From the second run on, both see it a second time."""
    flows = Flows(FLOWS, services)
    lab.replay([("sender", Frames(flows.ask(SYN, 0, 0), MACS[POD_LINK]))])
    flows.server = endpoints(lab.connections(), flows)
    lab.replay([("sink", Frames(flows.answer(SYN | ACK, 0, 1), MACS[OUT_LINK]))])
    lab.replay([("sender", Frames(flows.ask(ACK, 1, 1), MACS[POD_LINK]))])
    (model.folder / "conntrack.list").write_text(lab.connections())
    model.load()
    said = flows.rounds(max(packets // (2 * FLOWS), 1))
    everything = np.concatenate([p for pair in said for p in pair])
    sending = []
    for ask, answer in said:
        sending += [("sender", Frames(ask, MACS[POD_LINK])), ("sink", Frames(answer, MACS[OUT_LINK]))]
    works = {"kernel": lambda: lab.replay(sending), "netemu": lambda: model.replay(everything)}
    return compared(medians(works, repeat), len(everything))


def endpoints(listing: str, flows: Flows) -> Column:
    """The endpoint of each flow, from the kernel's list of connections."""
    servers = {}
    for line in listing.splitlines():
        words = [word.partition("=")[::2] for word in line.split() if "=" in word]
        sources = [value for name, value in words if name == "src"]
        port = next(value for name, value in words if name == "sport")
        servers[sources[0], int(port)] = int.from_bytes(socket.inet_aton(sources[1]), "big")
    clients = zip(flows.client.tolist(), flows.port.tolist(), strict=True)
    return np.array([servers[address(client), port] for client, port in clients], np.int64)


def compared(found: dict[str, dict[str, Any]], packets: int) -> dict[str, Any]:
    """Rates and their ratio."""
    rates = {name: packets / values["seconds"] for name, values in found.items()}
    return {"packets": packets, "rates": rates, "ratio": rates["netemu"] / rates["kernel"], "runs": found}


def new(lab: Lab, model: Model, packets: int, services: int, repeat: int) -> dict[str, Any]:
    """Every packet a new connection."""
    rows = Flows(packets, services).ask(SYN, 0, 0)
    frames = Frames(rows, MACS[POD_LINK])

    def kernel() -> float:
        lab.forget()
        return lab.replay([("sender", frames)])

    return compared(medians({"kernel": kernel, "netemu": lambda: opened(model, rows)}, repeat), packets)


def opened(model: Model, rows: Bytes) -> float:
    """Seconds that netemu takes to open connections, none being there before."""
    model.rest()
    return model.replay(rows)


def plain(lab: Lab, repeat: int) -> dict[str, Any]:
    """Forwarding without rules and without tracking: what the road itself costs the kernel."""
    flows = Flows(50_000, 1)
    flows.vip = FIRST_POD + flows.vip * 0
    frames = Frames(flows.ask(ACK, 1, 1, 10), MACS[POD_LINK])
    found = medians({"kernel": lambda: lab.replay([("sender", frames)])}, repeat)
    return {"rates": {"kernel": len(frames) / found["kernel"]["seconds"]}, "runs": found}


def ours(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """ipvs mode against iptables mode, and many services against few, new connections all."""
    n, most, few = args.new, args.most_services, args.fewest_services
    models = {
        "iptables": Model(folder / "iptables", iptables_mode(cluster(args.services), HOST)),
        "ipvs": Model(folder / "ipvs", ipvs_mode(cluster(args.services), HOST)),
    }
    sizes = {str(k): Model(folder / f"services-{k}", iptables_mode(cluster(k), HOST)) for k in (few, most)}
    modes = side_by_side(models, dict.fromkeys(models, Flows(n, args.services).ask(SYN, 0, 0)), args.repeat)
    many = side_by_side(sizes, {k: Flows(n, int(k)).ask(SYN, 0, 0) for k in sizes}, args.repeat)
    return {
        "modes": {
            "us_a_connection": {m: found["seconds"] / n * 1e6 for m, found in modes.items()},
            "ratio": modes["ipvs"]["seconds"] / modes["iptables"]["seconds"],
            "load_seconds": {m: models[m].load_seconds for m in models},
            "runs": modes,
        },
        "services": {
            "us_a_connection": {k: found["seconds"] / n * 1e6 for k, found in many.items()},
            "ratio": many[str(most)]["seconds"] / many[str(few)]["seconds"],
            "load_seconds": {k: sizes[k].load_seconds for k in sizes},
            "runs": many,
        },
    }


def side_by_side(models: dict[str, Model], rows: dict[str, Bytes], repeat: int) -> dict[str, dict[str, Any]]:
    """The same work through several models."""
    for model in models.values():
        model.load()
    return medians({name: partial(opened, models[name], rows[name]) for name in models}, repeat)


def against_kernel(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The kernel half. Raises Unavailable."""
    lab = Lab()
    try:
        answer: dict[str, Any] = {"plain": plain(lab, args.repeat)}
        model = Model(folder / "kernel", iptables_mode(cluster(args.services), HOST))
        answer["kernel_load_seconds"] = lab.rules(model.files["iptables.save"])
        most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        n = min(args.new, most // 2)
        if n < args.new:
            print(f"new connections: {n:,}, since nf_conntrack_max is {most:,}")
        answer["established"] = established(lab, model, args.established, args.services, args.repeat)
        answer["new"] = new(lab, model, n, args.services, args.repeat)
        answer["netemu_load_seconds"] = model.load_seconds
    finally:
        lab.close()
    return answer


def show_kernel(found: dict[str, Any], args: argparse.Namespace) -> None:
    """For people: the kernel half."""
    print(
        f"replay rates, packets a second, iptables mode, {args.services:,} services, "
        f"medians of {args.repeat}, {args.clock} time"
    )
    print(f"  {'plain forwarding, no rules':28} kernel {found['plain']['rates']['kernel']:>10,.0f}")
    for name in ("established", "new"):
        rates = found[name]["rates"]
        print(
            f"  {name:28} kernel {rates['kernel']:>10,.0f}   netemu {rates['netemu']:>10,.0f}"
            f"   {found[name]['ratio']:6.1f} x"
        )
    print(f"  loading: kernel {found['kernel_load_seconds']:.2f} s, netemu {found['netemu_load_seconds']:.2f} s")


def show_ours(found: dict[str, Any], args: argparse.Namespace) -> None:
    """For people: netemu against itself."""
    for name, what in (("modes", f"{args.services:,} services"), ("services", "services, iptables mode")):
        values = found[name]
        each = ", ".join(f"{k} {us:.1f} us" for k, us in values["us_a_connection"].items())
        loads = ", ".join(f"{k} {seconds:.2f} s" for k, seconds in values["load_seconds"].items())
        print(f"new connections, {what}: {each}: ratio {values['ratio']:.2f} (loading: {loads})")


def main() -> None:
    """Measure, print, and write a dated JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--most-services", type=int, default=50_000)
    parser.add_argument("--fewest-services", type=int, default=100)
    parser.add_argument("--established", type=int, default=400_000, help="packets of established traffic")
    parser.add_argument("--new", type=int, default=50_000, help="new connections")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the results go (default bench/results/kernel-DATE.json)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    args = parser.parse_args()
    bench = Bench("kernel")
    WATCH.use(args.clock)
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed, too
    answer: dict[str, Any] = {"options": {k: v for k, v in vars(args).items() if k != "json"}}
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as d:
        folder = Path(d)
        try:
            answer["kernel"] = against_kernel(folder, args)
            show_kernel(answer["kernel"], args)
        except Unavailable as e:
            print(f"the kernel half is skipped: {e}")
            answer["kernel"], answer["skipped"] = None, str(e)
        answer["netemu"] = ours(folder, args)
        show_ours(answer["netemu"], args)
    bench.write(answer, args.json)


if __name__ == "__main__":
    main()
