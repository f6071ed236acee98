"""What the bench scripts share: TCP packets in columns, captures of them, dated results that say whence they are."""

from __future__ import annotations

import json
import os
import platform
import statistics
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
RAW = 101
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

Bytes = NDArray[np.uint8]
Column = NDArray[np.int64]


def segments(
    src: Column, sport: Column, dst: Column, dport: Column, flags: Any, seq: Any, ack: Any, payload: int = 0
) -> Bytes:
    """uint8[n, 40 + payload]: TCP packets with right checksums. flags, seq, ack: columns or a value. payload: even."""
    n = len(src)
    words = np.zeros((n, 20 + payload // 2), np.int64)
    size = 2 * words.shape[1]
    words[:, 0], words[:, 1], words[:, 3], words[:, 4] = 0x4500, size, 0x4000, 64 << 8 | 6
    for at, wide in ((6, src), (8, dst), (12, seq), (14, ack)):
        wide = np.asarray(wide, np.int64) & 0xFFFFFFFF
        words[:, at], words[:, at + 1] = wide >> 16, wide & 0xFFFF
    words[:, 10], words[:, 11] = sport, dport
    words[:, 16], words[:, 17], words[:, 20:] = np.asarray(flags) | 5 << 12, 64_240, 0x7878
    words[:, 5] = _checksum(words[:, :10].sum(1))
    words[:, 18] = _checksum(words[:, 6:].sum(1) + 6 + size - 20)
    return words.astype(">u2").view(np.uint8).reshape(n, size)


def datagrams(src: Column, sport: Column, dst: Column, dport: Column, payload: int = 32) -> Bytes:
    """uint8[n, 28 + payload]: UDP packets with right checksums. payload: even."""
    n = len(src)
    words = np.zeros((n, 14 + payload // 2), np.int64)
    size = 2 * words.shape[1]
    words[:, 0], words[:, 1], words[:, 3], words[:, 4] = 0x4500, size, 0x4000, 64 << 8 | 17
    for at, wide in ((6, src), (8, dst)):
        words[:, at], words[:, at + 1] = wide >> 16, wide & 0xFFFF
    words[:, 10], words[:, 11], words[:, 12], words[:, 14:] = sport, dport, size - 20, 0x7878
    words[:, 5] = _checksum(words[:, :10].sum(1))
    words[:, 13] = _checksum(words[:, 6:].sum(1) + 17 + size - 20)
    return words.astype(">u2").view(np.uint8).reshape(n, size)


def _checksum(total: Column) -> Column:
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def woven(*parts: Bytes) -> Bytes:
    """The first of each part, the second of each, ..."""
    both: Bytes = np.stack(parts, axis=1).reshape(-1, parts[0].shape[1])
    return both


def write_raw(path: Path, packets: Bytes, tick: int = 1_000, start: int = 0) -> None:
    """A capture (nanosecond pcap, IP from the header on) of packets of one size, `tick` ns apart from `start` on."""
    n, size = packets.shape
    when = start + tick * np.arange(n, dtype=np.int64)
    records = np.empty((n, 16 + size), np.uint8)
    head = np.empty((n, 4), "<u4")
    head[:, 0], head[:, 1], head[:, 2:] = when // 10**9, when % 10**9, size
    records[:, :16], records[:, 16:] = head.view(np.uint8), packets
    with open(path, "wb") as f:
        f.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, RAW))
        records.tofile(f)


class Watch:
    """The clock that all times are taken with: "wall", or "cpu", this process's own time, user and system.

    On a busy machine CPU time tells more. What the kernel does on behalf of a process that sends is in it, too.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.perf_counter

    def use(self, kind: str) -> None:
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[kind]


WATCH = Watch()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = WATCH.now()
    work()
    return WATCH.now() - start


def medians(works: dict[str, Callable[[], float]], times: int) -> dict[str, dict[str, Any]]:
    """Each work (which says itself how many seconds it took) `times` times, in turn: what else the machine does then
    falls on all alike. Returns the median and all values by name."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            taken[name].append(work())
    return {name: {"seconds": statistics.median(all_), "all": all_} for name, all_ in taken.items()}


class Bench:
    """One run of a script: remembers how busy the machine was before, and writes the results."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.load_before = os.getloadavg()

    def write(self, answer: dict[str, Any], path: Path | None = None) -> Path:
        """bench/results/NAME-DATE.json, or `path`."""
        now = datetime.now(UTC)
        out = path or RESULTS / f"{self.name}-{now:%Y-%m-%d}.json"
        out.parent.mkdir(exist_ok=True)
        about = {
            "date": now.isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_before": self.load_before,
            "load_after": os.getloadavg(),
            "busy": self.load_before[0] > 1,
        }
        out.write_text(json.dumps({"about": about, **answer}, indent=1) + "\n")
        if self.load_before[0] > 1:
            print(
                f"the machine was busy (load {self.load_before[0]:.1f} before the run): take the numbers as preliminary"
            )
        print(f"written to {out}")
        return out
