"""How many bytes of state a connection takes: addresses, states, timers, TCP windows, counters, two hash entries.

    python bench/memory.py [--connections 200000]

Connections are opened through a node in iptables mode, each by one SYN, by pods on the node (their destination is
rewritten) and by clients from outside (their source, too, to a port of its own). What the node holds more than before
is counted, by tracemalloc, when the packets are gone; columns grow by doubling, so there is room for more in it.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from kernel import FIRST_CLIENT, FIRST_SERVICE, HOST, PORT, Model, cluster
from tools import SYN, Bench, segments

from netemu.kube import iptables_mode

SERVICES, PART = 1000, 50_000
CLIENTS = {"from pods": FIRST_CLIENT, "from outside": 0xC0A80900}


def opened(folder: Path, first: int, connections: int) -> dict[str, Any]:
    """Bytes that so many connections take."""
    model = Model(folder, iptables_mode(cluster(SERVICES), HOST))
    model.load()
    k = np.arange(connections)
    rows = segments(first + k % 200, 32_768 + k // 200 % 28_000, FIRST_SERVICE + k * 7919 % SERVICES, PORT + 0 * k,
                    SYN, k, 0)  # fmt: skip
    model.replay(rows[:1000])  # what is compiled once is not of the connections
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for start in range(1000, connections, PART):
        model.replay(rows[start : start + PART])
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    there = model.node.conntrack
    return {"connections": len(there), "room_for": there.capacity, "bytes_a_connection": held / (len(there) - 1000)}


def main() -> None:
    """Measure, print, and write a dated JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="where the results go (default bench/results/memory-DATE.json)")
    args = parser.parse_args()
    bench = Bench("memory")
    results = {}
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as d:
        for name, first in CLIENTS.items():
            found = results[name] = opened(Path(d) / name.replace(" ", "-"), first, args.connections)
            print(
                f"{name:14} {found['connections']:>9,} connections (room for {found['room_for']:,}): "
                f"{found['bytes_a_connection']:.0f} bytes each",
                flush=True,
            )
    bench.write({"results": results}, args.json)


if __name__ == "__main__":
    main()
