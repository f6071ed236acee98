"""Rules that netemu cannot judge, kept as rules that might match: what `--unsupported uncertain` is made of.

    -m bpf ...  or  -j TPROXY ...   -->  UnmodelledMatch, UnmodelledTarget: they stand in the rule and print its words
    a packet comes to such a rule   -->  it goes on as if the rule had not matched, and a doubt is noted
    the packet's fate depends on it -->  its reason says so; so do those of later packets of its connection

A match that is not modelled is asked last, so a doubt arises only where everything else in the rule agrees. There is no
doubt where matching would have changed nothing: the rule only logs, or the table ends for the packet as it would have.
What other packets leave in memories (limit, recent, sets, counters) is counted as if the rule had not matched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from netemu.errors import UNSUPPORTED, Problem
from netemu.grammar import Extension, Given, RuleContext
from netemu.matches import Match
from netemu.packets import DROPPED, Mask, Rows
from netemu.targets import ACCEPT, CONTINUE, DROP, Target, Verdict
from netemu.words import quoted

if TYPE_CHECKING:
    from netemu.model import Model
    from netemu.node import Node
    from netemu.paths import Step
    from netemu.tables import Rule, Tables
    from netemu.trip import Trip

FAIL, UNCERTAIN = "fail", "uncertain"
#: targets that change neither a packet nor what becomes of it
HARMLESS = frozenset(
    ("LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "LED", "RATEEST", "IDLETIMER", "SECMARK", "CONNSECMARK")
)
VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP}
ESTABLISHED = 2


class UnmodelledMatch(Match):
    """A match that netemu does not model: it says no, and that it might have said yes."""

    unmodelled: ClassVar[bool] = True
    given: tuple[Given, ...] = ()
    what = ""
    _place: tuple[str, str, int] | None = None
    _effect: tuple[int, str] = (-1, "")

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> UnmodelledMatch:
        return cls._of(given, f"match `{cls.name}`")

    @classmethod
    def _of(cls, given: list[Given], what: str) -> UnmodelledMatch:
        one = cls()
        one.given, one.what = tuple(given), what
        return one

    def words(self) -> str:
        return _words(self.given)

    def start(self, node: Node, place: str) -> None:
        table, chain, number = place.split(":")
        self._place = (table, chain, int(number.partition(".")[0]))

    def many(self, trip: Trip, rows: Rows) -> Mask:
        tables = trip.node.tables
        if self._place is not None and len(rows):
            table, chain, number = self._place
            if self._effect[0] != tables.version:
                rule = tables.tables[table].chains[chain].rules[number - 1]
                self._effect = (tables.version, effect(tables, table, rule))
            if self._effect[1]:
                text = f"{table}:{chain}:rule:{number} might match ({self.what} is not modelled)"
                trip.open_doubts.append((rows, self._effect[1], text))
        return np.zeros(len(rows), bool)


class UnmodelledTarget(Target):
    """A target that netemu does not model: the packet goes on, and nobody knows whether it would have."""

    unmodelled: ClassVar[bool] = True
    given: tuple[Given, ...] = ()
    what = ""

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> UnmodelledTarget:
        return cls._of(given, f"target `{cls.name}`")

    @classmethod
    def _of(cls, given: list[Given], what: str) -> UnmodelledTarget:
        one = cls()
        one.given, one.what = tuple(given), what
        return one

    def words(self) -> str:
        return _words(self.given)

    def act(self, trip: Trip, rows: Rows, step: Step) -> Verdict:
        if self.name not in HARMLESS:
            trip.open_doubts.append((rows, "other", f"{step.text} does what is not modelled ({self.what})"))
        return CONTINUE


def _words(given: tuple[Given, ...]) -> str:
    out = []
    for g in given:
        out += ["!"] * g.invert + [g.option]
        out += [v if re.fullmatch(r"[^\s\"'\\]+", v) else quoted(v) for v in g.values]
    return " ".join(out)


_made: dict[tuple[type[Extension], str], type[Extension]] = {}


def _kind(base: type[Extension], name: str, tracks: bool) -> type[Extension]:
    """The class that stands for `-m NAME` or `-j NAME`."""
    if (base, name) not in _made:
        made = type(f"{base.__name__}_{name}", (base,), {"name": name, "needs_conntrack": tracks, "greedy": True})
        _made[base, name] = made
    return _made[base, name]


def unmodelled_match(name: str, tracks: bool = False) -> type[Extension]:
    """What stands for a match that netemu has no class for. It takes every option that nobody else knows."""
    return _kind(UnmodelledMatch, name, tracks)


def unmodelled_target(name: str, tracks: bool = False) -> type[Extension]:
    """The same for a target."""
    return _kind(UnmodelledTarget, name, tracks)


def stand_in(cls: type[Extension], given: list[Given], what: str) -> Extension:
    """What stands for options of a known match or target that netemu does not model; `what` names them."""
    make = unmodelled_match if issubclass(cls, Match) else unmodelled_target
    made = cast(Any, make(cls.name, cls.needs_conntrack))._of(given, what)
    assert isinstance(made, Extension)
    return made


def effect(tables: Tables, table: str, rule: Rule, depth: int = 0) -> str:
    """What it would mean if a rule matched: ACCEPT, DROP, `other`, or "" for nothing."""
    if rule.jump:
        rules = tables.tables[table].chains[rule.jump].rules
        if rule.goto or depth > 8 or len(rules) > 64:
            return "other"
        return "other" if any(effect(tables, table, inner, depth + 1) for inner in rules) else ""
    if rule.target is None or rule.target.name in HARMLESS:
        return ""
    return rule.target.name if rule.target.name in VERDICTS else "other"


def settle_walk(trip: Trip, rows: Rows, verdicts: NDArray[np.int8]) -> None:
    """A walk through a table has ended: which of the doubts that arose in it does a packet's fate depend on?"""
    for some, meant, text in trip.open_doubts:
        for row in some.tolist():
            if row in trip.doubts:
                continue
            if meant != "other" and row not in trip.moved:
                at = int(np.searchsorted(rows, row))
                said = int(verdicts[at])
                if said == VERDICTS[meant] and (said == ACCEPT or trip.pkts.fate[row] == DROPPED):
                    continue  # as it would have ended
            trip.doubts[row] = text
    trip.open_doubts.clear()
    trip.moved.clear()


class Doubts:
    """Which connections have a packet in doubt: what becomes of their other packets depends on it too."""

    def __init__(self) -> None:
        self.flows: dict[tuple[int, int, int, int, int], str] = {}

    def settle(self, trip: Trip, rows: Rows, before: dict[str, NDArray[Any]]) -> None:
        """A run has ended: hand doubts on along connections, and say them in the packets' reasons."""
        if not trip.doubts and not self.flows:
            return
        p, node = trip.pkts, trip.node
        for row in rows.tolist():
            came = _flow(before, row)
            text = trip.doubts.get(row)
            if text is None and node.conntrack.on:
                handed = self.flows.get(came)
                if handed is not None:
                    text = trip.doubts[row] = f"its connection depends on it: {handed}"
            elif text is not None and node.conntrack.on and (trip.found[row] != ESTABLISHED or text[:7] != "filter:"):
                # what happens in filter to a packet of a connection that is under way concerns that packet alone
                left = {name: getattr(p, name) for name in _ENDS}
                for flow in (came, _flow(left, row)):
                    self.flows.setdefault(flow, text)
            if text is not None:
                self._say(trip, row, text)

    def settle_children(self, trip: Trip) -> None:
        """The same of packets that the node made."""
        for child in trip.children:
            for row, text in child.doubts.items():
                if not (child.paths.texts[int(child.pkts.reason[row])] or "").endswith(text):
                    self._say(child, row, text)
            self.settle_children(child)

    @staticmethod
    def _say(trip: Trip, row: int, text: str) -> None:
        died = trip.paths.texts[int(trip.pkts.reason[row])]
        said = f"uncertain: {text}"
        trip.pkts.reason[row] = trip.paths.text_id(f"{died}; {said}" if died else said)
        trip.node.caveats[text.rpartition("depends on it: ")[2]] += 1


_ENDS = ("src", "dst", "sport", "dport", "icmp_id", "proto")


def _flow(columns: dict[str, NDArray[Any]], row: int) -> tuple[int, int, int, int, int]:
    """Both ends of a packet in one order, whichever way it goes."""
    src, dst, sport, dport, number, proto = (int(columns[name][row]) for name in _ENDS)
    if proto == 1:
        sport = dport = number
    one, other = sorted(((src, sport), (dst, dport)))
    return (*one, *other, proto)


def remarks(tables: Tables) -> Iterator[str]:
    """Every rule that netemu cannot judge, by file and line."""
    for table, chain, number, rule in tables.rules():
        for extension in rule.extensions:
            if isinstance(extension, UnmodelledMatch | UnmodelledTarget):
                at = rule.origin
                place = f"{at.file}:{at.line}: " if at.line else ""
                kept = "might match" if isinstance(extension, UnmodelledMatch) else "may do anything"
                yield f"{place}{table}:{chain.name}:rule:{number} {kept}: {extension.what} is not modelled"


def put_aside(model: Model, problems: list[Problem]) -> list[Problem]:
    """`problems` without those that concern IPv6 rules alone: they become remarks, since no IPv4 packet meets them."""
    kept = []
    for p in problems:
        if p.kind == UNSUPPORTED and p.file.endswith("ip6tables.save"):
            model.notes.append(f"{p.file}:{p.line}: {p.what}: IPv6 is not modelled, the rules are left out")
        else:
            kept.append(p)
    return kept
