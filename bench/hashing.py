"""How fast keys are found: the table against a dictionary and against the bare memory reads it cannot do without.

Run `python bench/hashing.py`: prints a table (medians of 5) and writes it as bench/results/hashing-DATE.json.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from netemu.hashing import Table
from netemu.ipset import Sets

BATCH = 1 << 16


def median(action: Callable[[], object], times: int = 5) -> float:
    """Median seconds of an action."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def look_ups(entries: int) -> dict[str, float]:
    """ns a look-up of present keys of two words, drawn at random, 65,536 together."""
    rng = np.random.default_rng(entries)
    keys = tuple(rng.integers(0, 2**63, entries, dtype=np.uint64) for _ in range(2))
    table = Table(2)
    start = time.perf_counter()
    table.add(keys)
    built = time.perf_counter() - start
    asked = rng.integers(0, entries, BATCH)
    query = tuple(column[asked] for column in keys)
    absent = tuple(column ^ np.uint64(1 << 63) for column in query)
    known = dict(zip(zip(*[column.tolist() for column in keys], strict=True), range(entries), strict=True))

    def from_dict() -> list[int]:
        return [known[key] for key in zip(*[column.tolist() for column in query], strict=True)]

    slots = rng.integers(0, len(table._slots), BATCH)

    def bare() -> None:
        table._slots.take(slots)
        for column in table._keys:
            column.take(asked)

    few = tuple(column[:1] for column in query)
    one = tuple(int(column[0]) for column in few)
    found = {
        "entries": entries,
        "find": median(lambda: table.find(query)) / BATCH * 1e9,
        "find, absent": median(lambda: table.find(absent)) / BATCH * 1e9,
        "dict": median(from_dict) / BATCH * 1e9,
        "bare gathers": median(bare) / BATCH * 1e9,
        "add, a key": built / entries * 1e9,
        "find, one row": median(lambda: [table.find(few) for _ in range(2000)]) / 2000 * 1e9,
        "find_one": median(lambda: [table.find_one(*one) for _ in range(2000)]) / 2000 * 1e9,
    }
    found["dict / find"] = found["dict"] / found["find"]
    found["find / gathers"] = found["find"] / found["bare gathers"]
    found["M find a second"] = 1e3 / found["find"]
    return found


def loading(members: int) -> dict[str, float]:
    """Seconds to read `ipset save` text of so many members, and to write it."""
    rng = np.random.default_rng(members)
    addresses = rng.choice(1 << 22, members, replace=False) + 1 << 8  # no two in one /24
    dotted = [f"{a >> 24}.{a >> 16 & 255}.{a >> 8 & 255}.{a & 255}" for a in addresses.tolist()]
    out: dict[str, float] = {"members": members}
    for kind, tails in (
        ("hash:ip", [""] * members),
        ("hash:net", [f"/{24 + k % 9}" for k in range(members)]),
        ("hash:ip,port", [f",tcp:{k % 60000 + 1}" for k in range(members)]),
    ):
        lines = dict.fromkeys(f"add S {ip}{tail}" for ip, tail in zip(dotted, tails, strict=True))
        text = f"create S {kind} maxelem {2 * members}\n" + "\n".join(lines)
        sets = Sets()
        start = time.perf_counter()
        sets.restore(text, "ipset.save", [])
        out[f"load {kind}"] = time.perf_counter() - start
        start = time.perf_counter()
        sets.save()
        out[f"save {kind}"] = time.perf_counter() - start
    return out


def main() -> None:
    found = [look_ups(entries) for entries in (1_000, 100_000, 1_000_000)]
    print("ns a key, two-word keys, 65,536 asked together")
    for name in found[0]:
        print(f"{name:>16} " + " ".join(f"{row[name]:>12,.1f}" for row in found))
    loads = loading(1_000_000)
    print("\nseconds for a million members")
    for name, seconds in loads.items():
        print(f"{name:>18} {seconds:,.2f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    answer = {"date": today, "machine": machine, "look-ups": found, "loading": loads}
    (results / f"hashing-{today}.json").write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
