"""What a small replay costs: CPU time of the whole command, for a hundred packets.

    python bench/startup.py [--packets 100] [--repeat 9]

Every command is a process of its own; user and system time of the process, medians. Python's byte code is compiled
before, as it is where netemu is installed, by a first run that does not count. A replay that prints a line for
each packet, one with `--summary`, and beside them what Python and numpy alone take to start.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tools import ROOT, SYN, Bench, segments, write_raw


def cpu_seconds(words: list[str], cache: Path) -> float:
    """User and system time of one command; byte code is kept in `cache`."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(cache)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measure, print, and write a dated JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where the results go (default bench/results/startup-DATE.json)")
    args = parser.parse_args()
    bench = Bench("startup")
    python = sys.executable
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as d:
        trace = Path(d, "trace.pcap")
        k = np.arange(args.packets)
        # pods of models/kube-ipvs and its service web: every packet a new connection
        write_raw(
            trace, segments(0x0AF40040 + k % 50, 20_000 + k, np.full(len(k), 0x0A600014), 80 + k * 0, SYN, k, 0), 10**6
        )
        replay = [python, "-m", "netemu", "replay", str(ROOT / "models/kube-ipvs"), str(trace)]
        commands = {
            "python": [python, "-c", "pass"],
            "python, numpy": [python, "-c", "import numpy"],
            "netemu --version": [python, "-m", "netemu", "--version"],
            "netemu replay --summary": [*replay, "--summary"],
            "netemu replay": replay,
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for words in commands.values():
            cpu_seconds(words, Path(d, "bytecode"))
        for _ in range(args.repeat):
            for name, words in commands.items():
                taken[name].append(cpu_seconds(words, Path(d, "bytecode")))
    found = {name: statistics.median(values) for name, values in taken.items()}
    print(f"CPU seconds of the whole command, {args.packets} packets, medians of {args.repeat}")
    for name, seconds in found.items():
        print(f"  {name:24} {seconds:6.3f}")
    bench.write({"packets": args.packets, "repeat": args.repeat, "cpu_seconds": found, "all": taken}, args.json)


if __name__ == "__main__":
    main()
