"""One picture of the latest results: how far each ratio is from what it has to be.

    python bench/plot.py [--out docs/speed.svg]

Reads the newest bench/results/NAME-DATE.json of each script, draws a bar for each ratio against its goals, and prints
the same as a table. A result that is not there, or was never measured, is left out. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tools import RESULTS, ROOT

Found = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A ratio that a script finds. `least` and `aim` are what it has to be and what would be fine; `down`: smaller is
    better."""

    what: str
    script: str
    ratio: Callable[[Found], float]
    least: float
    aim: float
    unit: str = "x"
    down: bool = False

    def reached(self, value: float, goal: float) -> float:
        """1: the goal; above: better than that."""
        return goal / value if self.down else value / goal


def parsing(mix: str) -> Callable[[Found], float]:
    return lambda d: float(next(r["ratio"] for r in d["results"] if r["mix"] == mix and r["format"] == "pcap"))


def look_up(d: Found) -> float:
    row = next(r for r in d["look-ups"] if r["entries"] == 1_000_000)
    return float(row["find"] / row["bare gathers"])


def itself(what: str) -> Callable[[Found], float]:
    return lambda d: float(d["netemu"][what]["ratio"])


def worst(d: Found) -> float:
    return float(max(r["ratio"] for r in d["results"].values()))


def whole_command(d: Found) -> float:
    return float(d["cpu_seconds"]["netemu replay"])


GOALS = (
    Goal("parsing 64 B frames, dpkt loop", "parse", parsing("64 B"), 100, 175),
    Goal("parsing IMIX, dpkt loop", "parse", parsing("IMIX"), 60, 120),
    Goal("established traffic, kernel's replay rate", "kernel", lambda d: d["kernel"]["established"]["ratio"], 10, 20),
    Goal("new connections, kernel's replay rate", "kernel", lambda d: d["kernel"]["new"]["ratio"], 25, 60),
    Goal("new connections, ipvs over iptables mode", "kernel", itself("modes"), 1.2, 1.0, "", down=True),
    Goal("new connections, 50,000 over 100 services", "kernel", itself("services"), 1.5, 1.1, "", down=True),
    Goal("JSON line a packet, json.dumps loop", "report", lambda d: d["results"]["netemu .jsonl"]["ratio"], 10, 20),
    Goal("CSV row a packet, json.dumps loop", "report", lambda d: d["results"]["netemu .csv"]["ratio"], 10, 20),
    Goal("look-up in 1,000,000 entries over bare reads", "hashing", look_up, 4, 3, "", down=True),
    Goal("worst crafted trace over the scalar yardstick", "yardstick", worst, 2, 1, "", down=True),
    Goal("replay of 100 packets, CPU seconds", "startup", whole_command, 0.5, 0.25, " s", down=True),
)

ROW, LEFT, WIDE = 30, 330, 420
TICKS = (1 / 100, 1 / 10, 1, 10)


def latest(script: str) -> tuple[Found, str] | None:
    """The newest results of a script, and their date."""
    files = sorted(RESULTS.glob(f"{script}-????-??-??.json"))
    return (json.loads(files[-1].read_text()), files[-1].stem[-10:]) if files else None


def measured() -> list[tuple[Goal, float, str]]:
    """(goal, ratio found, when) of those that were measured."""
    out = []
    for goal in GOALS:
        found = latest(goal.script)
        if found:
            try:
                out.append((goal, goal.ratio(found[0]), found[1]))
            except (KeyError, StopIteration, TypeError):
                continue
    return out


def place(reached: float) -> float:
    """How far to the right, on a logarithmic scale from the first tick to the last."""
    lo, hi = math.log10(TICKS[0]), math.log10(TICKS[-1])
    return LEFT + WIDE * (min(max(math.log10(max(reached, 1e-9)), lo), hi) - lo) / (hi - lo)


def picture(rows: list[tuple[Goal, float, str]]) -> str:
    """SVG, for light and dark pages."""
    height = ROW * len(rows) + 76
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDE + 130} {height}" role="img" '
        'font-family="ui-sans-serif, system-ui, sans-serif" font-size="13">',
        "<title>Measured ratios against their goals</title>",
        "<style>text{fill:#1f2328}.dim{fill:#656d76}.line{stroke:#8c959f}.good{fill:#2da44e}.near{fill:#bf8700}"
        ".far{fill:#cf222e}.aim{stroke:#0969da;stroke-width:3}@media(prefers-color-scheme:dark){text{fill:#e6edf3}"
        ".dim{fill:#8d96a0}}</style>",
        '<text x="12" y="22" font-weight="600">Measured, as a part of the goal (1 = reached; log scale)</text>',
    ]
    bottom = ROW * len(rows) + 44
    for tick in TICKS:
        x = place(tick)
        out.append(f'<line class="line" x1="{x:.0f}" y1="34" x2="{x:.0f}" y2="{bottom}" stroke-dasharray="2 4"/>')
        out.append(f'<text class="dim" x="{x:.0f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for k, (goal, value, _) in enumerate(rows):
        y = 44 + ROW * k
        share = goal.reached(value, goal.least)
        kind = "good" if share >= 1 else "near" if share >= 0.5 else "far"
        aim = place(goal.reached(goal.aim, goal.least))
        out.append(f'<text x="{LEFT - 12}" y="{y + 15}" text-anchor="end">{escape(goal.what)}</text>')
        out.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(place(share) - LEFT, 2):.0f}" height="18" rx="3"/>'
        )
        out.append(f'<line class="aim" x1="{aim:.0f}" y1="{y - 2}" x2="{aim:.0f}" y2="{y + 20}"/>')
        out.append(f'<text x="{LEFT + WIDE + 10}" y="{y + 15}">{value:,.3g}{goal.unit} (of {goal.least:g})</text>')
    out.append(f'<text class="dim" x="12" y="{height - 8}">blue: what is aimed at</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    """Print the table, write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "speed.svg")
    args = parser.parse_args()
    rows = measured()
    print(f"{'':50} {'found':>9} {'at least':>9} {'aim':>6}")
    for goal, value, when in rows:
        mark = "" if goal.reached(value, goal.least) >= 1 else "  not reached"
        sign = "<=" if goal.down else ">="
        print(f"{goal.what:50} {value:>9,.3g} {sign:>3}{goal.least:>6g} {goal.aim:>6g}  {when}{mark}")
    args.out.write_text(picture(rows), encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
