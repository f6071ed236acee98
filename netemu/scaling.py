"""Rule scaling: the same services in ipvs mode and in iptables mode, and what each costs as they grow in number.

For N services with E endpoints, a node is written (kube.py), loaded, and given connections: first a SYN each, all new;
then, the connections being open, data both ways. The far ends answer as the endpoints that were chosen. Reported are
the rules that Linux would have looked at for a packet, and how fast this process replays. Linux's own cost grows with
the former; the latter says how long a replay takes, and nothing about a kernel.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from netemu.capture import read_capture
from netemu.errors import Refused
from netemu.kube import Cluster, Endpoint, Host, HostLink, ServicePort, iptables_mode, ipvs_mode, write
from netemu.node import Node, Replay
from netemu.packets import ACK, I64, PSH, SYN, TCP, U8

MODES: dict[str, Callable[[Cluster, Host], dict[str, str]]] = {"ipvs": ipvs_mode, "iptables": iptables_mode}
SERVICES = (10, 100, 1000, 10_000)
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 101)  # nanoseconds, RAW packets
T = TypeVar("T")
TICK = 10_000  # ns between two packets

# every node has a /16 of pods: this one 10.128.0.0/16, the others by the router; services are in 10.64.0.0/12
HOST = Host(
    name="node-0",
    ip="10.0.0.1",
    links=(
        HostLink("eth0", ("10.0.0.1/24",), "02:00:00:00:00:01"),
        HostLink("cni0", ("10.128.0.1/16",), "02:00:00:00:00:02"),
    ),
    routes=({"to": "default", "via": "10.0.0.254", "dev": "eth0"},),
    detect_local="10.128.0.0/9",
    # two pods on one link: with redirects on, the node would tell them so with every packet
    sysctl={f"net.ipv4.conf.{name}.send_redirects": 0 for name in ("all", "default", "eth0", "cni0")},
)
FIRST_SERVICE, FIRST_POD, FIRST_CLIENT = 0x0A400001, 0x0A800010, 0x0A80FC00
MOST_PODS = 64_000
CLIENTS, FIRST_PORT, PORTS = 1000, 32_768, 28_000


def cluster(services: int, endpoints: int) -> Cluster:
    """N ClusterIP services, TCP port 80, with E endpoints each, which stand on three nodes in turn."""
    if services * ((endpoints + 2) // 3) > MOST_PODS:
        raise Refused(
            f"{services:,} services with {endpoints} endpoints each need more than {MOST_PODS:,} pods on a node",
            hint="ask for fewer services or endpoints",
        )
    made = []
    for i in range(services):
        backends = []
        for k in range(endpoints):
            node, number = k % 3, i * ((endpoints + 2) // 3) + k // 3
            backends.append(Endpoint(_dotted(FIRST_POD + (node << 16) + number), 8080, f"node-{node}"))
        made.append(ServicePort("bench", f"svc-{i}", _dotted(FIRST_SERVICE + i), 80, tuple(backends), "http"))
    return Cluster(tuple(made))


def _dotted(address: int) -> str:
    return ".".join(str(b) for b in address.to_bytes(4, "big"))


@dataclass(frozen=True)
class Result:
    """What one mode costs with so many services. Times are medians over the repeats.

    rules_new, rules_established   (mean, median, most) explicit rules that Linux would have evaluated for a packet
    """

    mode: str
    services: int
    endpoints: int
    rules: int
    generate_seconds: float
    load_seconds: float
    new_packets: int
    new_ns: float
    new_rate: float
    rules_new: tuple[float, float, int]
    established_packets: int
    established_ns: float
    established_rate: float
    rules_established: tuple[float, float, int]


def measure(mode: str, services: int, endpoints: int, flows: int, rounds: int, repeats: int, seed: int = 0) -> Result:
    """Generate, load and replay, `repeats` times.

    flows    connections opened, spread evenly over the services
    rounds   data packets that each side then says in each connection
    Raises   whatever the node raises
    """
    made, generated = _timed(lambda: MODES[mode](cluster(services, endpoints), HOST))
    load, new, established = [], [], []
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as directory:
        write(made, directory)
        for _ in range(repeats):
            node, seconds = _timed(lambda: Node.load(directory, seed=seed))
            load.append(seconds)
            talk = _Talk(node, services, flows, seed)
            opened, seconds = _timed(talk.syn)
            new.append(seconds)
            talk.accept(opened)
            spoken, seconds = _timed(talk.data(rounds))
            established.append(seconds)
    new_ns = median(new) / flows * 1e9
    total = 2 * flows * rounds
    established_ns = median(established) / total * 1e9
    return Result(
        mode,
        services,
        endpoints,
        made["iptables.save"].count("\n-A "),
        generated,
        median(load),
        flows,
        new_ns,
        1e9 / new_ns,
        _spread(opened),
        total,
        established_ns,
        1e9 / established_ns,
        _spread(spoken),
    )


def _timed(do: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    done = do()
    return done, time.perf_counter() - begin


def _spread(replay: Replay) -> tuple[float, float, int]:
    looked = _column(replay, "evaluated")
    return float(looked.mean()), float(np.median(looked)), int(looked.max())


def _column(replay: Replay, name: str) -> NDArray[np.int64]:
    """A column of the packets as they stood at the end."""
    return np.concatenate([getattr(part.pkts, name) for part in replay.parts]).astype(np.int64)


class _Talk:
    """Connections of pods on this node with services: what each side says, in columns."""

    def __init__(self, node: Node, services: int, flows: int, seed: int) -> None:
        self.node = node
        self.now = 0
        k = np.arange(flows)
        # a fixed stride over the services: every one is used, neighbours in time are not neighbours in the rules
        stride = next(p for p in (7919, 7927, 7933) if services % p)
        self.vip = FIRST_SERVICE + (k * stride + seed) % services
        self.client = FIRST_CLIENT + k % CLIENTS
        self.port = FIRST_PORT + k // CLIENTS % PORTS
        self.web = np.full(flows, 80)

    def _replay(self, packets: list[U8]) -> Replay:
        """Each array holds whole packets, one a row; they go in one after the other, a tick apart."""
        n = sum(len(p) for p in packets)
        times = self.now + TICK * np.arange(n, dtype=np.int64)
        self.now += TICK * n
        out, at = [PCAP_HEADER], 0
        for p in packets:
            out.append(_records(p, times[at : at + len(p)]))
            at += len(p)
        return self.node.replay(read_capture(io.BytesIO(b"".join(out))))

    def syn(self) -> Replay:
        return self._replay([_tcp(self.client, self.port, self.vip, self.web, SYN, 1000, 0)])

    def accept(self, opened: Replay) -> None:
        """The chosen endpoints answer whom they see, and the clients take it."""
        self.server, self.server_port = _column(opened, "dst"), _column(opened, "dport")
        self.seen, self.seen_port = _column(opened, "src"), _column(opened, "sport")
        if (self.server == self.vip).any():
            raise Refused("a connection was not given an endpoint")
        self._replay([self._answer(SYN | ACK, 5000, 1001), self._question(ACK, 1001, 5001)])

    def data(self, rounds: int) -> Callable[[], Replay]:
        """Replays `rounds` questions and answers of every connection; the packets are made beforehand."""
        packets = []
        for k in range(rounds):
            packets.append(self._question(PSH | ACK, 1001 + 8 * k, 5001 + 8 * k, b"question"))
            packets.append(self._answer(PSH | ACK, 5001 + 8 * k, 1009 + 8 * k, b"answered"))
        return lambda: self._replay(packets)

    def _question(self, flags: int, seq: int, ack: int, data: bytes = b"") -> U8:
        return _tcp(self.client, self.port, self.vip, self.web, flags, seq, ack, data)

    def _answer(self, flags: int, seq: int, ack: int, data: bytes = b"") -> U8:
        return _tcp(self.server, self.server_port, self.seen, self.seen_port, flags, seq, ack, data)


def _tcp(src: I64, sport: I64, dst: I64, dport: I64, flags: int, seq: int, ack: int, data: bytes = b"") -> U8:
    """uint8[n, 40 + len(data)]: TCP packets, checksums right. `data` has an even length."""
    words = 20 + len(data) // 2
    p = np.zeros((len(src), words), np.int64)
    size = 2 * words
    p[:, 0], p[:, 1], p[:, 3], p[:, 4] = 0x4500, size, 0x4000, 64 << 8 | TCP
    for at, column in ((6, src), (8, dst)):
        p[:, at], p[:, at + 1] = column >> 16, column & 0xFFFF
    p[:, 10], p[:, 11] = sport, dport
    for at, number in ((12, seq), (14, ack)):
        p[:, at], p[:, at + 1] = number >> 16, number & 0xFFFF
    p[:, 16], p[:, 17] = 5 << 12 | flags, 64_240
    p[:, 20:] = np.frombuffer(data, ">u2")
    p[:, 5] = _checksum(p[:, :10].sum(1))
    p[:, 18] = _checksum(p[:, 6:].sum(1) + TCP + size - 20)
    return p.astype(">u2").view(np.uint8).reshape(len(src), size)


def _checksum(total: I64) -> I64:
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _records(packets: U8, times: I64) -> bytes:
    """Packets of one size as pcap records."""
    n, size = packets.shape
    head = np.empty((n, 4), "<u4")
    head[:, 0], head[:, 1] = times // 10**9, times % 10**9
    head[:, 2:] = size
    return np.hstack([head.view(np.uint8), packets]).tobytes()


# ---- the command --------------------------------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of `netemu bench`."""
    parser.add_argument("--services", type=_numbers, default=SERVICES, metavar="N,...", help="how many services")
    parser.add_argument("--endpoints", type=_number, default=3, metavar="E", help="endpoints of each (default 3)")
    parser.add_argument("--modes", type=_modes, default=tuple(MODES), metavar="MODE,...", help="ipvs, iptables")
    parser.add_argument("--flows", type=_number, default=10_000, metavar="N", help="connections (default 10000)")
    parser.add_argument("--rounds", type=_number, default=5, metavar="N", help="data packets a side and connection")
    parser.add_argument("--repeats", type=_number, default=3, metavar="N", help="times each is measured (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of what Linux draws at random")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON; `-` for stdout, instead of a table")


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(word) for word in text.split(","))


def _modes(text: str) -> tuple[str, ...]:
    modes = tuple(text.split(","))
    for mode in modes:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"`{mode}` is no mode: {', '.join(MODES)}")
    return modes


def run(args: argparse.Namespace) -> int:
    """Measure, print, return the exit status."""
    results = []
    errors = Console(stderr=True)
    for services in args.services:
        for mode in args.modes:
            if errors.is_terminal:
                errors.print(f"{mode}, {services:,} services ...", style="dim")
            results.append(measure(mode, services, args.endpoints, args.flows, args.rounds, args.repeats, args.seed))
    if args.json:
        text = json.dumps(document(results, vars(args)), indent=1) + "\n"
        if args.json == "-":
            sys.stdout.write(text)
        else:
            Path(args.json).write_text(text)
    if args.json != "-":
        console = Console()
        console.print(table(results))
        console.print(
            "\nFirst packets of new connections, and packets of known ones: the rules that Linux would look at for one "
            "(mean, and the most), and how many a second this process replays (median of "
            f"{args.repeats}; it says nothing about how fast a kernel is).",
            style="dim",
        )
    return 0


def document(results: list[Result], options: Mapping[str, object]) -> dict[str, object]:
    """The results as JSON takes them, with what they were measured on."""
    kept = ("services", "endpoints", "modes", "flows", "rounds", "repeats", "seed")
    return {
        "what": "replay of new and established TCP connections to Kubernetes services; rates are this process's",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "options": {name: options[name] for name in kept if name in options},
        "results": [asdict(r) for r in results],
    }


def _mean(spread: tuple[float, float, int]) -> str:
    return f"{spread[0]:,.1f}" if spread[0] < 1000 else f"{spread[0]:,.0f}"


def table(results: list[Result]) -> Table:
    """For people: a line for each mode and number of services."""
    t = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("\nservices", "\nmode", "\nrules", "load\ns"):
        t.add_column(heading, justify="left" if "mode" in heading else "right", no_wrap=True)
    for kind, what in (("new:", "rules"), ("", "most"), ("", "per s"), ("known:", "rules"), ("", "per s")):
        t.add_column(f"{kind}\n{what}", justify="right", no_wrap=True)
    last = 0
    for r in results:
        t.add_row(
            f"{r.services:,}" if r.services != last else "",
            r.mode,
            f"{r.rules:,}",
            f"{r.load_seconds:.2f}",
            _mean(r.rules_new),
            f"{r.rules_new[2]:,}",
            f"{r.new_rate:,.0f}",
            _mean(r.rules_established),
            f"{r.established_rate:,.0f}",
        )
        last = r.services
    return t
