"""How fast a set says which packets are in it: against a Python dictionary, and against the memory reads alone.

Run `python bench/sets.py`: prints a table (medians of 5) and writes it as bench/results/sets-DATE.json. 65,536 packets
ask together, as a rule does; half of them are in the set. The dictionary is given the same columns, as ready integers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from hashing import BATCH, median

from netemu.ipset import Sets
from netemu.packets import Packets

FIRST = 10 << 24
KINDS = {"hash:ip": "", "hash:net": "/{length}", "hash:ip,port": ",tcp:{port}", "hash:net,port": "/{length},tcp:{port}"}
DIRECTIONS = {"hash:ip": ("src",), "hash:net": ("src",)}


def packets(addresses: np.ndarray, ports: np.ndarray) -> Any:
    """A trip of TCP packets from these addresses to these ports, as far as a set looks at it."""
    pkts = Packets(len(addresses), np.zeros(64, np.uint8))
    pkts.src[:], pkts.dport[:] = addresses, ports
    pkts.proto[:], pkts.length[:] = 6, 60
    return SimpleNamespace(pkts=pkts, node=None)


def members(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(address, prefix length, port) of each: no two in one /29, so that networks do not overlap."""
    k = np.arange(count)
    return (FIRST + k * 8).astype(np.uint32), 29 + k % 4, 1 + k % 60000


def measured(kind: str, count: int) -> dict[str, Any]:
    """One kind of set with so many members."""
    addresses, lengths, ports = members(count)
    tail = KINDS[kind]
    lines = [
        f"add S {a >> 24}.{a >> 16 & 255}.{a >> 8 & 255}.{a & 255}{tail.format(length=length, port=port)}"
        for a, length, port in zip(addresses.tolist(), lengths.tolist(), ports.tolist(), strict=True)
    ]
    text = f"create S {kind} maxelem {2 * count}\n" + "\n".join(lines) + "\n"
    sets = Sets(seed=1)
    start = time.perf_counter()
    sets.restore(text, "ipset.save", [])
    loading = time.perf_counter() - start
    one = sets.get("S")
    assert one is not None
    asked = np.random.default_rng(count).integers(0, count, BATCH)
    there = np.arange(BATCH) % 2 == 0
    source = np.where(there, addresses[asked], addresses[asked] + np.uint32(1 << 30))
    trip, rows = packets(source, ports[asked]), np.arange(BATCH)
    ways = DIRECTIONS.get(kind, ("src", "dst"))
    assert (one.match(trip, rows, ways) == there).all()
    known = set(zip(addresses.tolist(), ports.tolist(), strict=True)) if "port" in kind else set(addresses.tolist())

    def by_dict() -> int:
        keys = source.tolist()
        if "port" in kind:
            keys = zip(keys, ports[asked].tolist(), strict=True)
        return sum(key in known for key in keys)

    slots = np.random.default_rng(1).integers(0, 1 << max(count * 4 - 1, 1).bit_length(), BATCH)
    table = np.zeros(int(slots.max()) + 1, np.uint64)
    keys = np.zeros(count, np.uint64)

    def bare() -> None:
        table.take(slots)
        keys.take(asked)

    took = {
        "match": median(lambda: one.match(trip, rows, ways)) / BATCH * 1e9,
        "dict": median(by_dict) / BATCH * 1e9,
        "gathers": median(bare) / BATCH * 1e9,
    }
    return {
        "type": kind,
        "members": count,
        "load_seconds": loading,
        "ns": took,
        "match_per_second": 1e9 / took["match"],
        "dict_over_match": took["dict"] / took["match"],
        "match_over_gathers": took["match"] / took["gathers"],
    }


def table(found: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| type | members | loaded in | look-ups a second | of a dictionary's | of the bare reads' time |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for f in found:
        lines.append(
            f"| `{f['type']}` | {f['members']:,} | {f['load_seconds']:.2f} s | {f['match_per_second'] / 1e6:.1f} M "
            f"| {f['dict_over_match']:.1f}x | {f['match_over_gathers']:.1f}x |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    args = parser.parse_args()
    found = [measured(kind, count) for kind in KINDS for count in args.members]
    print(table(found))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    answer = {"date": today, "machine": machine, "sets": found}
    (results / f"sets-{today}.json").write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
