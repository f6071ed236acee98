"""Conversations: what is sent to a node and what comes out, as a text that can be read aloud.

    0.0  eth0 in    192.0.2.9:4000 > 198.51.100.1:80   S
         eth1 out   192.0.2.9:4000 > 10.0.0.2:8080     S
    $ iptables -t nat -F

A line with a time is a packet that comes in on a link (`self in`: the node sends it); the `out` lines behind it are
all that leaves because of it, `INVALID` or another state what tracking says of it, `dropped` or another fate what
becomes of it. `$` is a command. Flags are those of tcpdump (`S`, `S.`, `.`, `P.`, `F.`, `R`, `R.`, `none`), `udp`,
`icmp TYPE/CODE`; then seq= ack= win= len= ttl= opt=HEX as needed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from craft import ends, icmp, tcp, udp

from netemu import Journey, Node

FATES = ("forwarded", "delivered", "dropped", "rejected", "held")
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
LINKS = """
[[link]]
name = "eth0"
addresses = ["198.51.100.1/24"]
[[link]]
name = "eth1"
addresses = ["10.0.0.1/24", "10.0.0.3/24"]
[[route]]
to = "default"
via = "198.51.100.254"
dev = "eth0"
"""
TRACKING = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j ACCEPT\nCOMMIT\n"


def node(
    rules: str = TRACKING, *, kernel: str = "6.18", sysctl: dict[str, int] | None = None, links: str = LINKS,
    seed: int = 1, **files: str,
) -> Node:  # fmt: skip
    """A node with eth0 (198.51.100.1/24, the world behind it) and eth1 (10.0.0.1/24), tracking connections.

    rules    `iptables-save` text, or lines `TABLE CHAIN rule`      files   other files, `_` for `.` in their names
    """
    if not rules.lstrip().startswith("*"):
        tables: dict[str, list[str]] = {}
        for line in rules.strip().splitlines():
            table, rest = line.strip().split(" ", 1)
            tables.setdefault(table, []).append(f"-A {rest}")
        rules = "".join("\n".join([f"*{table}", *lines, "COMMIT\n"]) for table, lines in tables.items())
    with tempfile.TemporaryDirectory() as d:
        knobs = "\n".join(f'"{name}" = {value}' for name, value in (sysctl or {}).items())
        Path(d, "node.toml").write_text(f'kernel = "{kernel}"\n{links}\n[sysctl]\n{knobs}\n')
        Path(d, "iptables.save").write_text(rules)
        for name, text in files.items():
            Path(d, name.replace("_", ".")).write_text(text)
        return Node.load(d, seed=seed)


def _flags(bits: int) -> str:
    return "".join(c for c, bit in zip("FSRPU", (1, 2, 4, 8, 32), strict=True) if bits & bit) + (
        "." if bits & 16 else ""
    )


def shown(packet: bytes) -> str:
    """A packet as `out` lines say it."""
    proto, src, sport, dst, dport = ends(packet)
    at = (packet[0] & 15) * 4
    if proto == 6:
        return f"{src}:{sport} > {dst}:{dport} {_flags(packet[at + 13]) or 'none'}"
    if proto == 17:
        return f"{src}:{sport} > {dst}:{dport} udp"
    return f"{src} > {dst} icmp {packet[at]}/{packet[at + 1]}" if proto == 1 else f"{src} > {dst} {proto}"


def made(text: str) -> bytes:
    """The packet that a line describes."""
    src, _, dst, what, *rest = text.split()
    more = dict(word.split("=") for word in rest if "=" in word)
    header = {k: int(v) for k, v in more.items() if k in ("ttl", "tos", "frag", "ident")}
    data = bytes(int(more.get("len", 0)))
    if what == "icmp":
        kind, code = map(int, rest[0].split("/"))
        return icmp(src, dst, kind, code, int(more.get("id", 7)), data or b"abcdefgh", **header)
    (a, sport), (b, dport) = src.split(":"), dst.split(":")
    if what == "udp":
        return udp(a, int(sport), b, int(dport), data or b"question", **header)
    numbers = {k: int(more.get(k, default)) for k, default in (("seq", 1000), ("ack", 0), ("win", 64240))}
    flags = "" if what == "none" else what.replace(".", "A")
    options = bytes.fromhex(more["opt"]) if "opt" in more else None
    return tcp(a, int(sport), b, int(dport), flags, **numbers, data=data, options=options, **header)


def says(node: Node, text: str) -> list[Journey]:
    """Have a conversation with `node`; every difference from the text is an error. The journeys."""
    journeys: list[Journey] = []
    expected: list[tuple[str, str]] = []

    def settle() -> None:
        if journeys:
            got = [(link, shown(p)) for link, p in journeys[-1].out]
            assert got == expected, f"{said}: {got}, not {expected}: {[str(s) for s in journeys[-1].steps]}"
        expected.clear()

    said = ""
    for line in text.strip().splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0] == "$":
            node.run(line.split("$", 1)[1].strip())
        elif words[1:2] == ["out"]:
            expected.append((words[0], " ".join(words[2:])))
        elif words[0] in FATES:
            assert journeys[-1].fate == words[0], (
                f"{said}: {journeys[-1].fate} ({journeys[-1].reason}), not {line.strip()}"
            )
            assert len(words) == 1 or journeys[-1].reason == " ".join(words[1:]), f"{said}: {journeys[-1].reason}"
        elif words[0] in STATES:
            assert journeys[-1].state == words[0], f"{said}: {journeys[-1].state}, not {words[0]}"
        else:
            settle()
            said = line.strip()
            link = None if words[1] == "self" else words[1]
            journeys.append(node.send(made(" ".join(words[3:])), link, float(words[0])))
    settle()
    return journeys


def table(node: Node) -> list[str]:
    """The lines of `conntrack -L`, sorted."""
    return sorted(line.removeprefix("ipv4     2 ") for line in node.dump("conntrack").splitlines())
