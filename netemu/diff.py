"""What a change of a node would change for its traffic: the same packets through two models, and where they part.

    capture --+--> node A --> journeys --+--> fate, links, headers compared in columns --> groups, by what differs
              '--> node B --> journeys --'                                                 and by the rules that decided

Reasons and paths may differ freely: only what becomes of a packet counts, and what it looks like when it leaves.
Which rule decided is told of each group: the last rule of the table in which the two paths part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netemu.node import Journey, Journeys, Node
from netemu.packets import Mask
from netemu.paths import Step

if TYPE_CHECKING:
    from netemu.capture import Capture, Frames

SAME, DIFFERENT, TROUBLE = 0, 1, 2
#: what of a packet may be rewritten, in the order in which differences are named
FIELDS = ("dst", "dport", "src", "sport", "ttl", "tos", "mark", "icmp_id")
ADDRESSES = ("src", "dst")
TRANSLATED = frozenset(("src", "sport", "dst", "dport"))
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
#: packets of a group that are named one by one
MOST_NAMED = 100


@dataclass(frozen=True)
class Decision:
    """What decided on one side: a step and, for a rule, its words."""

    step: str = ""
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.step}  {self.rule}".rstrip() or "nothing"


@dataclass(frozen=True)
class Change:
    """One thing that differs. For the fate and the link out, both values; for a header field its name alone."""

    what: str
    a: str = ""
    b: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.a} -> {self.b}" if self.a or self.b else self.what


@dataclass
class Group:
    """Packets in which the same things differ, for the same rules.

    packets  the numbers of the first of them       count  how many there are in all
    example  what the first looked like, and what it was on either side
    """

    changes: tuple[Change, ...]
    a: Decision
    b: Decision
    count: int = 0
    packets: list[int] = field(default_factory=list)
    example: str = ""
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "count": self.count,
            "differs": [c.what for c in self.changes],
            "a": {
                **{c.what: c.a for c in self.changes if c.a},
                "step": self.a.step or None,
                "rule": self.a.rule or None,
            },
            "b": {
                **{c.what: c.b for c in self.changes if c.b},
                "step": self.b.step or None,
                "rule": self.b.rule or None,
            },
            "packets": self.packets,
            "example": {"packet": self.packets[0], "text": self.example, "values": self.values},
        }


class Difference:
    """Two nodes, and how the packets of a capture fare in each."""

    def __init__(self, a: Node, b: Node) -> None:
        self.a, self.b = a, b
        self.packets = self.different = 0
        self.groups: dict[tuple[tuple[Change, ...], Decision, Decision], Group] = {}
        self.flows: dict[tuple[Any, ...], tuple[Decision, Decision]] = {}

    def replay(self, capture: Capture, link: str | None = None, count: int | None = None) -> None:
        """Send a capture through both. Cost: that of two replays; differing packets are looked at one by one."""
        left = count
        for frames in capture:
            some = frames if left is None else frames.take(slice(0, left))
            if left is not None:
                left -= len(some)
            if len(some):
                chunk = _Chunk(capture, some)
                sides = [list(node.stream(chunk, link=link)) for node in (self.a, self.b)]  # type: ignore[arg-type]
                self._compare(*(side[0] if side else None for side in sides))
            if left == 0:
                break

    def _compare(self, a: Journeys | None, b: Journeys | None) -> None:
        """Compare what came of one chunk: None where a node took no packet of it for its own."""
        in_a, in_b = (np.zeros(0, np.int64) if part is None else part.numbers for part in (a, b))
        both, rows_a, rows_b = np.intersect1d(in_a, in_b, assume_unique=True, return_indices=True)
        self.packets += len(in_a) + len(in_b) - len(both)
        if a is not None and b is not None:
            for k in np.flatnonzero(self._differ(a, rows_a, b, rows_b)).tolist():
                self._enter(a, int(rows_a[k]), b, int(rows_b[k]))
        for part, own, other in ((a, in_a, in_b), (b, in_b, in_a)):
            if part is not None:
                for row in np.flatnonzero(~np.isin(own, other)).tolist():
                    self._alone(part, row, part is a)

    @staticmethod
    def _differ(a: Journeys, rows_a: NDArray[np.intp], b: Journeys, rows_b: NDArray[np.intp]) -> Mask:
        """bool[n]: what became of each packet is not the same."""
        names = dict.fromkeys([*a.links, *b.links])
        number = {name: k for k, name in enumerate(names)}
        left = []
        for part, rows in ((a, rows_a), (b, rows_b)):
            table = np.array([*(number[name] for name in part.links), -1])
            left.append(table[part.left[rows]])
        differ: Mask = (a.pkts.fate[rows_a] != b.pkts.fate[rows_b]) | (left[0] != left[1])
        for name in FIELDS:
            differ |= getattr(a.pkts, name)[rows_a] != getattr(b.pkts, name)[rows_b]
        odd = _odd(a)[rows_a] | _odd(b)[rows_b]
        for k in np.flatnonzero(odd & ~differ).tolist():
            differ[k] = a[int(rows_a[k])].out != b[int(rows_b[k])].out
        return differ

    def _enter(self, a: Journeys, row_a: int, b: Journeys, row_b: int) -> None:
        one, other = a[row_a], b[row_b]
        changes: list[Change] = []
        values: dict[str, tuple[Any, Any]] = {}
        if one.fate != other.fate:
            changes.append(Change("fate", one.fate, other.fate))
        outs = [", ".join(dict.fromkeys(link for link, _ in j.out)) for j in (one, other)]
        if outs[0] != outs[1]:
            changes.append(Change("out", outs[0] or "none", outs[1] or "none"))
        fields = [name for name in FIELDS if getattr(a.pkts, name)[row_a] != getattr(b.pkts, name)[row_b]]
        for name in fields:
            pair = tuple(int(getattr(part.pkts, name)[row]) for part, row in ((a, row_a), (b, row_b)))
            said = "id" if name == "icmp_id" else name
            values[said] = (_address(pair[0]), _address(pair[1])) if name in ADDRESSES else (pair[0], pair[1])
            changes.append(Change(said))
        if not changes:
            changes.append(Change("bytes"))
        keys = [_flow(a.before, row_a), _flow(_after(a), row_a), _flow(_after(b), row_b)]
        what = {c.what for c in changes}
        known = next((self.flows[key] for key in keys if key in self.flows), None)
        if what & TRANSLATED and known and not any(_chosen(j, kind) for j in (one, other) for kind in (TO, FROM)):
            found: tuple[Decision, Decision] | None = known  # it follows what was chosen for the connection
        else:
            found = decisions(one, other, what)
        if found is None:
            found = known or (_last(one), _last(other))
        else:
            for key in keys:
                self.flows.setdefault(key, found)
        self._add(tuple(changes), *found, one, a, row_a, values)

    def _alone(self, part: Journeys, row: int, is_a: bool) -> None:
        """A packet that only one of the nodes takes for its own: it has the link or the address, the other has not."""
        journey = part[row]
        change = Change("seen", *((journey.fate, "passed over") if is_a else ("passed over", journey.fate)))
        last = _last(journey)
        pair = (last, Decision()) if is_a else (Decision(), last)
        self._add((change,), *pair, journey, part, row, {})

    def _add(
        self,
        changes: tuple[Change, ...],
        a: Decision,
        b: Decision,
        journey: Journey,
        part: Journeys,
        row: int,
        values: dict[str, tuple[Any, Any]],
    ) -> None:
        self.different += 1
        group = self.groups.get((changes, a, b))
        if group is None:
            group = self.groups[changes, a, b] = Group(changes, a, b, values=values, example=_text(part, row))
        group.count += 1
        if len(group.packets) < MOST_NAMED:
            group.packets.append(journey.packet)

    @property
    def status(self) -> int:
        return DIFFERENT if self.different else SAME

    def most(self) -> list[Group]:
        """Groups, the largest first, ties by their first packet."""
        return sorted(self.groups.values(), key=lambda g: (-g.count, g.packets[0]))

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "a": self.a.model.path,
            "b": self.b.model.path,
            "packets": self.packets,
            "different": self.different,
            "groups": [group.told() for group in self.most()],
        }

    def lines(self, most: int | None = None) -> Iterator[tuple[str, str]]:
        """(text, how it is meant: head, a, b, dim) of each line, for people."""
        groups = self.most()
        for group in groups[:most]:
            what = ", ".join(map(str, group.changes))
            yield f"{group.count:,} packet{'s' if group.count != 1 else ''}: {what}", "head"
            yield f"  A  {group.a}", "a"
            yield f"  B  {group.b}", "b"
            shown = "; ".join(f"{name} {a} in A, {b} in B" for name, (a, b) in group.values.items())
            yield f"  as packet {group.packets[0]}: {group.example}{f': {shown}' if shown else ''}", "dim"
            yield "", ""
        if most is not None and len(groups) > most:
            yield f"… and {len(groups) - most:,} more kinds of difference", "dim"
        if self.different:
            yield f"{self.packets:,} packets, {self.different:,} fare differently", "head"
        else:
            yield f"{self.packets:,} packets, all fare the same", "head"


class _Chunk:
    """One chunk of a capture, to be streamed by itself."""

    def __init__(self, capture: Capture, frames: Frames) -> None:
        self.capture, self.frames = capture, frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self.capture, name)

    def __iter__(self) -> Iterator[Frames]:
        yield self.frames


def _odd(part: Journeys) -> Mask:
    """bool[n]: packets of which the columns do not say all that left."""
    mask = np.zeros(len(part), bool)
    mask[[*part.trip.outs, *part.pkts.rebuilt]] = True
    for child in part.trip.children:
        mask[child.parent_rows] = True
    return mask


# ---- which rule decided --------------------------------------------------------------------------------------------


def decisions(one: Journey, other: Journey, what: set[str]) -> tuple[Decision, Decision] | None:
    """What decided on either side; None when an earlier packet of the connection decided it.

    A path falls into stretches: one table at one hook, or one thing that is no table. The stretches of both paths are
    laid side by side; what decides one is its last step that has a say. A packet that died in a table on one side
    only is decided there; otherwise by the first stretch that ends differently.
    """
    a, b = _stretches(one), _stretches(other)
    if not what - {"mark", "ttl", "tos"}:
        rewritten = [[r.step for r in j.rewrites if r.field in what and r.step.table] for j in (one, other)]
        if any(rewritten):
            said = [
                Decision(steps[-1].text, steps[-1].rule) if steps else Decision("left as it is") for steps in rewritten
            ]
            return said[0], said[1]
    for fields, kind in (({"dst", "dport"}, TO), ({"src", "sport"}, FROM)):
        chosen = [_chosen(journey, kind) for journey in (one, other)] if what & fields else []
        if any(chosen) and (not all(chosen) or chosen[0] != chosen[1]):
            first, second = (step or Decision("not translated") for step in chosen)
            return first, second
    keys = [*a, *(key for key in b if key not in a)]
    if "fate" in what and not what & TRANSLATED:
        died = [
            [key for key in side if key[0]][-1:] if journey.fate in ("dropped", "rejected") and journey.reason else []
            for side, journey in ((a, one), (b, other))
        ]
        ends = [*died[0], *died[1]]
        keys = [key for key in ends if a.get(key) != b.get(key)] + keys
    for key in keys:
        in_a, in_b = a.get(key), b.get(key)
        if in_a is None or in_b is None:
            if key[0]:
                continue  # a table that one side has not: what it did shows elsewhere, or stands in the last resort
        elif _same(in_a, in_b):
            continue
        if key[:2] == ("", "conntrack"):
            return None
        return _decision(in_a, one), _decision(in_b, other)
    for key in keys:
        if key[0] and (key in a) != (key in b) and _says(a.get(key, b.get(key, []))):
            return _decision(a.get(key), one), _decision(b.get(key), other)
    for key in keys:
        pairs = zip_longest(a.get(key, ()), b.get(key, ()))
        found = next(((x, y) for x, y in pairs if x is None or y is None or _say(x) != _say(y)), None)
        if found is not None and key in a and key in b:
            first, second = (Decision(step.text, step.rule) if step else Decision() for step in found)
            return first, second
    return None


TO, FROM = r" -j (DNAT|REDIRECT|NETMAP)\b", r" -j (SNAT|MASQUERADE|NETMAP)\b"


def _chosen(journey: Journey, kind: str) -> Decision | None:
    """The rule that translated a connection's first packet, or what IPVS chose."""
    for step in journey.steps:
        if step.text.startswith("ipvs: ") and kind is TO and not re.search(r" (known|answer) -> ", step.text):
            return Decision(step.text)
        if step.table == "nat" and re.search(kind, step.rule):
            return Decision(step.text, step.rule)
    return None


def _stretches(journey: Journey) -> dict[tuple[str, str, int], list[Step]]:
    """(table, hook, how often it was there) -> its steps; ("", stage, n) for what is no table."""
    out: dict[tuple[str, str, int], list[Step]] = {}
    seen: dict[tuple[str, str], int] = {}
    key: tuple[str, str, int] | None = None
    hook = ""
    for step in journey.steps:
        name = step.text.split(":")[1] if step.table else step.text.split(":")[0]
        fresh = step.table is None or key is None or key[0] != step.table or (name in BUILT_IN and name != key[1])
        if step.table and name in BUILT_IN:
            hook = name
        if fresh:
            pair = (step.table, _hook_of(journey, step, hook)) if step.table else ("", name)
            seen[pair] = seen.get(pair, 0) + 1
            key = (*pair, seen[pair])
            out[key] = []
        assert key is not None
        out[key].append(step)
    return out


def _hook_of(journey: Journey, step: Step, hook: str) -> str:
    """The built-in chain that a walk began in: its first step names it, for a jump is a step of the chain it leaves."""
    name = step.text.split(":")[1]
    return name if name in BUILT_IN else hook


def _say(step: Step) -> str:
    """A step without its number, which a rule before it would change."""
    if step.table is None:
        return step.text
    table, chain, kind = step.text.split(":")[:3]
    return f"{table}:{chain}:{kind if kind == 'return' and not step.rule else ''}:{step.rule}"


def _same(a: list[Step], b: list[Step]) -> bool:
    return _say(_final(a)) == _say(_final(b))


def _final(steps: list[Step]) -> Step:
    """The step that ended a stretch."""
    return steps[-1]


def _says(steps: list[Step]) -> bool:
    """It did more than let the packet pass by policy."""
    return any(not step.rule.startswith("-P ") and step.rule for step in steps)


def _decision(steps: list[Step] | None, journey: Journey) -> Decision:
    if steps is None:
        return _last(journey)
    final = _final(steps)
    return Decision(final.text, final.rule)


def _last(journey: Journey) -> Decision:
    """How a journey ended."""
    if journey.reason:
        last = next((s for s in reversed(journey.steps) if s.table and journey.reason.startswith(s.text)), None)
        return Decision(last.text, last.rule) if last else Decision(journey.reason)
    steps = [step for step in journey.steps if step.table is None]
    return Decision(steps[-1].text) if steps else Decision(journey.fate)


# ---- in words ------------------------------------------------------------------------------------------------------


def _after(part: Journeys) -> dict[str, NDArray[Any]]:
    """The columns as they were at the end."""
    return {name: getattr(part.pkts, name) for name in ("proto", "src", "dst", "sport", "dport", "icmp_id")}


def _flow(b: dict[str, NDArray[Any]], row: int) -> tuple[Any, ...]:
    """Both ends of a packet, in one order."""
    proto = int(b["proto"][row])
    ports = [int(b[name][row]) for name in (("icmp_id", "icmp_id") if proto == 1 else ("sport", "dport"))]
    ends = sorted(((int(b["src"][row]), ports[0]), (int(b["dst"][row]), ports[1])))
    return (proto, *ends)


def _address(ip: int) -> str:
    return ".".join(map(str, ip.to_bytes(4, "big")))


def _text(part: Journeys, row: int) -> str:
    """The packet as it arrived, in words."""
    b = part.before
    proto = int(b["proto"][row])
    src, dst = _address(int(b["src"][row])), _address(int(b["dst"][row]))
    name = {1: "icmp", 6: "tcp", 17: "udp"}.get(proto, f"proto {proto}")
    if proto in (6, 17, 33, 132, 136):
        src, dst = f"{src}:{int(b['sport'][row])}", f"{dst}:{int(b['dport'][row])}"
    return f"{name} {src} > {dst}"
