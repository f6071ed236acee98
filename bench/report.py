"""A JSON line for every packet, against `json.dumps` of the same records in a loop.

    python bench/report.py [--packets 200000] [--repeat 5]

The packets are replayed first, and their journeys kept. netemu: what `-o report.jsonl` does with them, into a file.
The loop: the same records as dictionaries, ready made, `json.dumps` and a write for each; that the lines say the same
is checked. Also `-o report.csv`. Medians, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from replay import trace
from tools import ROOT, WATCH, Bench, medians, timed

from netemu import Node, read_capture
from netemu.report import open_report


def main() -> None:
    """Measure, print, and write a dated JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", default="models/kube-ipvs")
    parser.add_argument("--json", type=Path, help="where the results go (default bench/results/report-DATE.json)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    args = parser.parse_args()
    bench = Bench("report")
    WATCH.use(args.clock)
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as d:
        capture = Path(d, "trace.pcapng")
        trace(capture, args.packets, args.model)
        parts = list(Node.load(ROOT / args.model, seed=1).stream(read_capture(capture)))

        def ours(name: str) -> None:
            report = open_report(str(Path(d, name)))
            for journeys in parts:
                report.write(journeys, np.arange(len(journeys)))
            report.close()

        ours("ours.jsonl")
        records = [json.loads(line) for line in Path(d, "ours.jsonl").read_text().splitlines()]

        def loop() -> None:
            with open(Path(d, "loop.jsonl"), "w", encoding="utf-8") as f:
                for record in records:
                    f.write(json.dumps(record) + "\n")

        loop()
        with open(Path(d, "ours.jsonl")) as a, open(Path(d, "loop.jsonl")) as b:
            same = sum(json.loads(x) == json.loads(y) for x, y in zip(a, b, strict=True))
        assert same == args.packets, f"only {same} of {args.packets} records are the same"
        size = Path(d, "ours.jsonl").stat().st_size / args.packets
        works = {
            "json.dumps loop": lambda: timed(loop),
            "netemu .jsonl": lambda: timed(lambda: ours("ours.jsonl")),
            "netemu .csv": lambda: timed(lambda: ours("ours.csv")),
        }
        found = medians(works, args.repeat)
    print(f"{args.packets:,} records of {size:.0f} bytes on average, medians of {args.repeat}")
    base = found["json.dumps loop"]["seconds"]
    for name, values in found.items():
        values["ratio"] = base / values["seconds"]
        print(f"  {name:18} {args.packets / values['seconds']:>12,.0f} records/s {values['ratio']:6.1f} x the loop")
    bench.write(
        {"packets": args.packets, "bytes_a_record": size, "repeat": args.repeat, "clock": args.clock, "results": found},
        args.json,
    )


if __name__ == "__main__":
    main()
