"""Replaying established traffic, and parsing alone, against a bare dpkt loop over the same file.

    python bench/replay.py [--packets 1000000] [--repeat 5] [--model models/kube-ipvs] [--json FILE]

The trace: a thousand TCP connections to services of the model, opened and then busy: 50-byte packets from either side
in turn, every packet acknowledging the last. netemu: all that `netemu replay MODEL TRACE --summary` does between start
and printing (parse, every stop of the road, the summary), and `Frames.parse` alone. dpkt: `Reader`, `IP`, and the
five-tuple in a variable, which is far less work. Medians of the runs; rates differ from machine to machine, so look at
the ratios. Peak memory is measured in processes of their own, for traces of growing length.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dpkt
import numpy as np

from netemu import Node, read_capture
from netemu.capture import CaptureWriter
from netemu.report import Summary

ROOT = Path(__file__).resolve().parent.parent


def segments(ends: np.ndarray, flags: int, seq: np.ndarray, ack: np.ndarray, payload: int) -> np.ndarray:
    """uint8[n, 40 + payload]: TCP segments with right checksums. ends uint32[n, 4]: source, port, destination, port."""
    n = len(ends)
    out = np.zeros((n, 40 + payload), np.uint8)
    out[:, 0], out[:, 8], out[:, 9], out[:, 6] = 0x45, 64, 6, 0x40
    out[:, 32], out[:, 33], out[:, 40:] = 0x50, flags, 0x78
    out[:, 2:4] = np.frombuffer((40 + payload).to_bytes(2, "big"), np.uint8)
    wide = out[:, :40].view(">u4")
    wide[:, 3], wide[:, 4], wide[:, 6], wide[:, 7] = ends[:, 0], ends[:, 2], seq, ack
    short = out.view(">u2") if payload % 2 == 0 else out[:, :40].view(">u2")
    short[:, 10], short[:, 11], short[:, 17] = ends[:, 1], ends[:, 3], 64240

    def folded(total: np.ndarray) -> np.ndarray:
        total = (total & 0xFFFF) + (total >> 16)
        return (~((total & 0xFFFF) + (total >> 16))) & 0xFFFF

    short[:, 5] = folded(short[:, :10].sum(1, dtype=np.uint32))
    short[:, 18] = folded(short[:, 6:].sum(1, dtype=np.uint32) + 6 + 20 + payload)
    return out


def trace(path: Path, packets: int, model: str) -> None:
    """A capture of `packets` packets: connections through the model's services, both directions, data all the way.

    The servers' answers are made from what the model sends out for the clients' SYNs.
    """
    rng = np.random.default_rng(1)
    flows = min(1000, packets // 4)
    services = [(0x0A600014, 80), (0x0A600032, 443)]
    client = np.zeros((flows, 4), np.uint32)
    client[:, 0] = 0x0AF40040 + rng.integers(0, 64, flows)
    client[:, 1] = 20000 + np.arange(flows)
    client[:, 2:] = np.array(services)[np.arange(flows) % 2]
    start = rng.integers(0, 1 << 31, flows)
    node = Node.load(ROOT / model, seed=1)
    syns = segments(client, 2, start, start * 0, 0)
    server, back = np.zeros_like(client), []
    for k in range(flows):
        ((link, sent),) = node.send(syns[k].tobytes(), link="cni0", at=k * 1e-6).out
        src, dst, sport, dport = struct.unpack_from("!IIHH", sent, 12)
        server[k] = dst, dport, src, sport
        back.append(link)
    links = ["cni0", "eth0"]
    away = np.array([links.index(b) for b in back])
    reply = start + 777
    rounds = [
        (0, syns),
        (1, segments(server, 18, reply, start + 1, 0)),
        (0, segments(client, 16, start + 1, reply + 1, 0)),
    ]
    said = [1, 1]
    writer = CaptureWriter(str(path), links)
    n = at = side = 0
    while n < packets:
        if rounds:
            side, rows = rounds.pop(0)
        else:
            side = 1 - side
            ends, mine, theirs = (server, reply, start) if side else (client, start, reply)
            rows = segments(ends, 24, mine + said[side], theirs + said[1 - side], 10)
            said[side] += 10
        for f in range(min(flows, packets - n)):
            writer.write(links[away[f]] if side else "cni0", at, rows[f].tobytes())
            at += 2000
            n += 1
    writer.close()


def with_dpkt(path: Path, limit: int) -> int:
    """Reader, IP, five-tuple."""
    n = 0
    with open(path, "rb") as f:
        for _, data in dpkt.pcapng.Reader(f):
            ip = dpkt.ip.IP(data)
            _five = (ip.src, ip.dst, ip.p, ip.data.sport, ip.data.dport)
            n += 1
            if n == limit:
                break
    return n


def parsed(path: Path) -> int:
    """Every header column of every packet."""
    return sum(len(frames.parse()) for frames in read_capture(path))


def replayed(path: Path, model: str) -> int:
    """What `netemu replay --summary` does between loading the model and printing."""
    node = Node.load(ROOT / model, seed=1)
    summary = Summary()
    n = 0
    for journeys in node.stream(read_capture(path), remember=False):
        summary.add(journeys)
        n += len(journeys)
    return n


def rate(work: Callable[[], int], repeat: int) -> tuple[float, list[float]]:
    """(median packets a second, all of them)."""
    rates = []
    for _ in range(repeat):
        start = time.perf_counter()
        n = work()
        rates.append(n / (time.perf_counter() - start))
    return statistics.median(rates), rates


def peak_memory(path: Path, model: str) -> float:
    """MiB that the whole command needed at most."""
    code = (
        "import resource, sys; from netemu.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    words = ["replay", str(ROOT / model), str(path), "--summary"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]) / 1024


def main() -> None:
    """Measure, print, and write a dated JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--peer-packets", type=int, default=100_000, help="dpkt is timed on the first of them")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", default="models/kube-ipvs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        path = Path(d, "established.pcapng")
        trace(path, args.packets, args.model)
        peer, peers = rate(lambda: with_dpkt(path, args.peer_packets), args.repeat)
        parse, parses = rate(lambda: parsed(path), args.repeat)
        replay, replays = rate(lambda: replayed(path, args.model), args.repeat)
        memory = {}
        for n in (args.packets // 4, args.packets, args.packets * 2):
            trace(path, n, args.model)
            memory[n] = round(peak_memory(path, args.model))
    print(f"{args.packets:,} packets, {args.model}, Python {platform.python_version()}, medians of {args.repeat}")
    print(f"  dpkt loop    {peer:>12,.0f} packets/s")
    print(f"  parse        {parse:>12,.0f} packets/s   {parse / peer:6.1f} x dpkt")
    print(f"  replay       {replay:>12,.0f} packets/s   {replay / peer:6.1f} x dpkt")
    print("  peak memory  " + ", ".join(f"{n:,} packets: {mib} MiB" for n, mib in memory.items()))
    result = {
        "packets": args.packets,
        "model": args.model,
        "python": platform.python_version(),
        "rates": {"dpkt": peers, "parse": parses, "replay": replays},
        "over_dpkt": {"parse": parse / peer, "replay": replay / peer},
        "peak_memory_mib": memory,
    }
    out = args.json or ROOT / "bench" / "results" / f"replay-{datetime.now(UTC):%Y-%m-%d}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
