"""Parsing a capture into columns, against a bare dpkt loop over the same file.

    python bench/parse.py [--packets 1000000] [--repeat 5] [--only NAME,...] [--clock cpu]

netemu: `read_capture` and `Frames.parse`, every header column filled. dpkt: `Reader`, `Ethernet`, and the five-tuple
in a variable. Each file is read from the page cache; medians; rates differ from machine to machine, so look at the
ratios. dpkt is timed on the first packets of the file, since it takes about 10 us for each, whatever their number.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import shutil
import statistics
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dpkt
import numpy as np
from tools import WATCH, Bench

from netemu.capture import CHUNK, read_capture, write_pcap

SIZES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "64 B": lambda rng, n: np.full(n, 64),
    "IMIX": lambda rng, n: rng.choice([64, 594, 1518], n, p=[7 / 12, 4 / 12, 1 / 12]),
    "uniform 60-1514 B": lambda rng, n: rng.integers(60, 1515, n),
}


def packets(sizes: np.ndarray, rng: np.random.Generator) -> list[bytes]:
    """Ethernet frames with TCP, of 100,000 flows of which some are far busier than others; random payload."""
    n = len(sizes)
    flow = np.minimum(rng.zipf(1.2, n), 100_000)
    noise = rng.bytes(4096)
    out = []
    ether = bytes.fromhex("020000000001020000000002") + b"\x08\x00"
    ipv4, tcp = struct.Struct("!BBHHHBBHII"), struct.Struct("!HHIIBBHHH")
    for k, (size, who) in enumerate(zip(sizes.tolist(), flow.tolist(), strict=True)):
        head = ipv4.pack(0x45, 0, size - 14, k & 0xFFFF, 0, 64, 6, 0, 0x0A000000 + who, 0x0A600001 + who % 10_000)
        head += tcp.pack(1024 + who % 60_000, 443, k, k, 0x50, 0x10, 65_535, 0, 0)
        start = k % 2048
        out.append((ether + head + noise[start : start + size - 54]).ljust(size, b"\0"))
    return out


def write_pcapng(path: Path, times: np.ndarray, frames: list[bytes]) -> None:
    """One Ethernet interface, nanoseconds."""
    with open(path, "wb") as f:
        f.write(struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28))
        f.write(struct.pack("<IIHHIHHB3xHHI", 1, 32, 1, 0, 0, 9, 1, 9, 0, 0, 32))
        for t, frame in zip(times.tolist(), frames, strict=True):
            n, fill = len(frame), -len(frame) % 4
            size = 32 + n + fill
            f.write(
                struct.pack("<7I", 6, size, 0, t >> 32, t & 0xFFFFFFFF, n, n)
                + frame
                + bytes(fill)
                + struct.pack("<I", size)
            )


def with_netemu(path: Path) -> int:
    n = 0
    for frames in read_capture(path):
        n += len(frames.parse())
    return n


def with_dpkt(path: Path, most: int) -> int:
    n = 0
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
        for _, raw in dpkt.pcapng.Reader(f) if ".pcapng" in path.suffixes else dpkt.pcap.Reader(f):
            frame = dpkt.ethernet.Ethernet(raw)
            ip = frame.data
            _five = (ip.src, ip.dst, ip.p, ip.data.sport, ip.data.dport)
            n += 1
            if n == most:
                break
    return n


def rates(works: list[Callable[[], int]], repeat: int) -> list[float]:
    """Packets a second of each work, medians; taken in turn, so that what else the machine does falls on all alike."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(repeat):
        for work, taken in zip(works, found, strict=True):
            start = WATCH.now()
            n = work()
            taken.append(n / (WATCH.now() - start))
    return [statistics.median(taken) for taken in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--peer-packets", type=int, default=100_000, help="packets that dpkt is timed on")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", help="names of mixes, with commas")
    parser.add_argument("--json", type=Path, help="where the results go (default bench/results/parse-DATE.json)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    args = parser.parse_args()
    bench = Bench("parse")
    WATCH.use(args.clock)
    rng = np.random.default_rng(1)
    folder = Path(tempfile.mkdtemp(prefix="netemu-parse-"))
    results = []
    print(f"{'':32} {'netemu':>12} {'dpkt':>12} {'ratio':>7}")
    try:
        for name, sizes in SIZES.items():
            if args.only and name not in args.only.split(","):
                continue
            frames = packets(sizes(rng, args.packets), rng)
            times = 1_700_000_000_000_000_000 + np.arange(len(frames)) * 1_000
            files = [folder / "trace.pcap", folder / "trace.pcapng", folder / "trace.pcap.gz"]
            write_pcap(files[0], times, frames, 1)
            write_pcapng(files[1], times, frames)
            with open(files[0], "rb") as plain, gzip.open(files[2], "wb", compresslevel=1) as packed:
                shutil.copyfileobj(plain, packed)
            del frames
            for path in files:
                ours, theirs = rates(
                    [partial(with_netemu, path), partial(with_dpkt, path, args.peer_packets)], args.repeat
                )
                kind = "".join(path.suffixes)[1:]
                print(
                    f"{name + ', ' + kind:32} {ours / 1e6:7.2f} Mpps {theirs / 1e6:7.3f} Mpps {ours / theirs:6.0f}x",
                    flush=True,
                )
                results.append(
                    {
                        "mix": name,
                        "format": kind,
                        "bytes": path.stat().st_size,
                        "netemu_pps": round(ours),
                        "dpkt_pps": round(theirs),
                        "ratio": round(ours / theirs, 1),
                    }
                )
                path.unlink()
    finally:
        shutil.rmtree(folder)
    answer = {
        "dpkt": dpkt.__version__,
        "packets": args.packets,
        "dpkt_packets": args.peer_packets,
        "repeat": args.repeat,
        "clock": args.clock,
        "chunk": CHUNK,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "results": results,
    }
    bench.write(answer, args.json)


if __name__ == "__main__":
    main()
