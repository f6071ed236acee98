"""Who gets 10,000 connections: every scheduler in netemu, beside a real kernel.

Run `python bench/schedulers.py` to count netemu's choices, `--kernel uml` to have User Mode Linux choose too. The same
clients come in the same order; a third of them leave again, and half-way through one server's weight is changed. The
table goes to docs/ipvs.md, between its marks, and to bench/results/schedulers-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from netemu import Node
from netemu.fuzz import TCP, ip, tcp_segment
from netemu.schedulers import SCHEDULERS

ROOT = Path(__file__).parent.parent
SERVERS = {f"10.244.0.{k}": k - 1 for k in (2, 3, 4, 5)}  # address -> weight
VIPS = [f"10.96.0.{k}" for k in range(1, 17)]
CHANGE = "ipvsadm -e -f 7 -r 10.244.0.2:0 -m -w 5"
FLAGS = {"sh": "sh-port", "mh": "mh-port"}
SYN, RST = 2, 4
NODE = f"""kernel = "6.1"
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "cni0"
addresses = ["10.244.0.1/16"]
[[link]]
name = "kube-ipvs0"
kind = "dummy"
up = false
addresses = {json.dumps([f"{vip}/32" for vip in VIPS])}
[[route]]
to = "default"
via = "10.0.0.254"
dev = "eth0"
"""
TABLES = """*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 10.96.0.0/16 -j MARK --set-xmark 0x7/0xffffffff
COMMIT
"""


def service(scheduler: str) -> str:
    """A service by firewall mark, so that several virtual addresses share it, as behind a transparent cache."""
    flags = f" -b {FLAGS[scheduler]}" if scheduler in FLAGS else ""
    lines = [f"-A -f 7 -s {scheduler}{flags}"]
    lines += [f"-a -f 7 -r {server}:0 -m -w {weight}" for server, weight in SERVERS.items()]
    return "\n".join(lines) + "\n"


def events(connections: int) -> list[str | tuple[bytes, bool]]:
    """Commands, and (packet, it opens a connection)."""
    rng = random.Random(5)
    out: list[str | tuple[bytes, bool]] = []
    for k in range(connections):
        if k == connections // 2:
            out.append(CHANGE)
        client, port = f"100.64.{k // 250}.{k % 250 + 1}", 40000 + rng.randrange(64)
        vip = rng.choice(VIPS)
        ends = (client, port, vip, 80)
        out.append((ip(client, vip, TCP, tcp_segment(*ends, SYN, k, 0, 64240, b"", b"")), True))
        if rng.random() < 1 / 3:
            out.append((ip(client, vip, TCP, tcp_segment(*ends, RST, k + 1, 0, 0, b"", b"")), False))
    return out


def server_of(outs: list[tuple[str, bytes]]) -> str:
    """Where a packet was sent on to, or "nobody"."""
    for link, packet in outs:
        if link == "cni0":
            return ".".join(map(str, packet[16:20]))
    return "nobody"


def ours(scheduler: str, happened: list[str | tuple[bytes, bool]], times: list[float]) -> list[str]:
    """The server of each connection, as netemu chooses."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files(scheduler).items():
            Path(folder, name).write_text(text)
        node = Node.load(folder, seed=1)
    chosen = []
    for at, event in zip(times, happened, strict=True):
        if isinstance(event, str):
            node.run(event, at=at)
            continue
        outs = node.send(event[0], link="eth0", at=at).out
        if event[1]:
            chosen.append(server_of(outs))
    return chosen


def files(scheduler: str) -> dict[str, str]:
    return {"node.toml": NODE, "iptables.save": TABLES, "ipvsadm.save": service(scheduler)}


def recorded(
    schedulers: list[str], happened: list[str | tuple[bytes, bool]], kernel: str
) -> dict[str, tuple[list[float], list[str]]]:
    """By scheduler: when each event happened on a real kernel, and the server of each connection."""
    from netemu import lab

    made = [
        lab.Event(0.0, command=event) if isinstance(event, str) else lab.Event(0.0, "eth0", event[0])
        for event in happened
    ]
    cases = [lab.Case(name, "who gets a connection", files(name), made) for name in schedulers]
    out = {}
    played = (lab.play([case], kernel)[0] for case in cases)  # one start of the kernel each: none waits for the rest
    for name, recording in zip(schedulers, played, strict=True):
        if recording.trouble:
            print(f"{name}: {recording.trouble}", file=sys.stderr)
            continue
        served = [
            server_of(got.outs)
            for got, event in zip(recording.events, happened, strict=True)
            if not isinstance(event, str) and event[1]
        ]
        out[name] = [got.at for got in recording.events], served
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    heads = [f"{server} (weight {weight})" for server, weight in SERVERS.items()]
    lines = [
        "| scheduler | " + " | ".join(heads) + " | nobody | choices like the kernel's |",
        "|---|" + "--:|" * (len(heads) + 2),
    ]
    for row in rows:
        cells = []
        for place in [*SERVERS, "nobody"]:
            mine, real = row["netemu"].get(place, 0), row["kernel"].get(place, 0)
            cells.append(f"{mine:,}" if not row["kernel"] or mine == real else f"{mine:,} (kernel {real:,})")
        same = f"{row['same']:,} of {row['connections']:,}" if row["kernel"] else "not asked"
        lines.append(f"| {row['scheduler']} | " + " | ".join(cells) + f" | {same} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--kernel", choices=("uml", "host"), help="have this kernel choose too")
    parser.add_argument("--write", action="store_true", help="write docs/ipvs.md and bench/results")
    parser.add_argument("schedulers", nargs="*", default=[], metavar="SCHEDULER")
    args = parser.parse_args()
    schedulers = args.schedulers or sorted(set(SCHEDULERS) - {"none"})
    happened = events(args.connections)
    kernels = recorded([s for s in schedulers if s != "twos"], happened, args.kernel) if args.kernel else {}
    rows = []
    for name in schedulers:
        times, served = kernels.get(name, ([k / 1000 for k in range(len(happened))], []))
        chosen = ours(name, happened, times)
        same = sum(a == b for a, b in zip(chosen, served, strict=False))
        rows.append(
            {
                "scheduler": name,
                "connections": args.connections,
                "netemu": dict(Counter(chosen)),
                "kernel": dict(Counter(served)),
                "same": same,
            }
        )
        print(name, rows[-1]["netemu"], f"{same} of {len(served)} like the kernel", file=sys.stderr)
    text = table(rows)
    print(text)
    if args.write:
        today = datetime.date.today().isoformat()
        Path(ROOT, "bench", "results").mkdir(exist_ok=True)
        answer = {"date": today, "kernel": args.kernel, "rows": rows}
        Path(ROOT, "bench", "results", f"schedulers-{today}.json").write_text(json.dumps(answer, indent=1) + "\n")
        page = Path(ROOT, "docs", "ipvs.md")
        before, _, rest = page.read_text().partition("<!-- distribution -->\n")
        _, _, after = rest.partition("<!-- end -->\n")
        page.write_text(f"{before}<!-- distribution -->\n{text}<!-- end -->\n{after}")


if __name__ == "__main__":
    main()
