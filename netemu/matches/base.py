"""What every match has: its options, how it is asked, and how it is entered in the one registry, MATCHES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from netemu.grammar import Bad, Extension, Failed, Given, RuleContext
from netemu.packets import OFFSET_MASK, Mask, Rows
from netemu.words import PROTOCOL_NAMES

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

MATCHES: dict[str, type[Match]] = {}
#: matches that iptables has and netemu does not model, and why
OTHER_MATCHES = {
    "cgroup": "packets do not say which process sent them",
    "osf": "the fingerprints are no part of a node's dumps",
    "rateest": "the estimator's timer runs on the kernel's own clock",
}
ALL_HOOKS = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))
NONE: frozenset[str] = frozenset()


def _constant(answer: bool) -> Mask:
    one = np.array([answer])
    one.flags.writeable = False
    return one


YES, NO = _constant(True), _constant(False)


@dataclass(frozen=True)
class Option:
    """What iptables allows of an option: words after it, `!` before it, older spellings, and what excludes it."""

    words: int = 1
    invert: bool = False
    old: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    often: bool = False


class Match(Extension):
    """One `-m NAME`.

    SPEC      the options, in the order in which they exclude each other
    NEEDED    options that must be there
    protocols `-p` must say one of these; empty: any
    tables    tables that it may stand in; empty: any
    hooks     built-in chains from which it may be reached
    sets      names of the ipsets that it uses
    always    it says yes to every packet
    unmodelled  it stands for a match that netemu does not model (see doubt.py)
    """

    SPEC: ClassVar[dict[str, Option]] = {}
    NEEDED: ClassVar[tuple[str, ...]] = ()
    protocols: ClassVar[tuple[int, ...]] = ()
    tables: ClassVar[frozenset[str]] = NONE
    always: ClassVar[bool] = False
    unmodelled: ClassVar[bool] = False
    _spellings: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, *, name: str = "", **more: object) -> None:
        super().__init_subclass__(**more)
        cls.OPTIONS = {}
        cls._spellings = {}
        for option, spec in cls.SPEC.items():
            for spelling in (option, *spec.old):
                cls.OPTIONS[spelling] = spec.words
                cls._spellings[spelling] = option
        if name:
            if cls.says is Match.says and cls.many is Match.many:
                raise TypeError(f"match {name} answers neither of one packet nor of many")
            if issubclass(cls, Memory) and (cls.touches is Memory.touches or cls.ask is Memory.ask):
                raise TypeError(f"match {name} has memory and does not say what it touches, or does not answer")
            cls.name = name
            MATCHES[name] = cls

    @property
    def hooks(self) -> frozenset[str]:
        return ALL_HOOKS

    @property
    def sets(self) -> tuple[str, ...]:
        return ()

    @property
    def text(self) -> str:
        """`-m NAME` and its options, as iptables-save prints them."""
        return f"-m {self.name} {self.words()}".rstrip()

    # ---- asking ------------------------------------------------------------------------------------------------

    def mask(self, trip: Trip, rows: Rows) -> Mask:
        """bool[len(rows)]: the answer for each row. Not to be written to. Cost: `says` for a single row."""
        if len(rows) == 1:
            return YES if self.says(trip, rows.item()) else NO
        return self.many(trip, rows)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        """The same of many rows, in their order."""
        says = self.says
        return np.fromiter((says(trip, row) for row in rows.tolist()), bool, len(rows))

    def says(self, trip: Trip, row: int) -> bool:
        """The same of one packet."""
        return bool(self.many(trip, np.array([row]))[0])

    # ---- life --------------------------------------------------------------------------------------------------

    def start(self, node: Node, place: str) -> None:
        """The table was put in place with this rule in it, here at `place` (filter:INPUT:3.1): memory begins anew.

        Linux replaces a whole table at every change, so each change starts every rule of the table again.
        """

    def stop(self, node: Node) -> None:
        """The rule is gone. Called after `start` of those that take its place, so shared tables survive."""

    # ---- reading -----------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        """The match that these options make. Raises Bad where the tool or the kernel would refuse."""
        match = cls.build(cls._sorted_out(given), rule)
        why = match.check(rule)
        if why:
            raise Failed(f"Invalid argument: {why}")
        return match

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        """The match of options that are allowed together, by their newest name."""
        raise NotImplementedError

    def check(self, rule: RuleContext) -> str:
        """Why the kernel would not take it in this rule ("" when it would)."""
        if self.protocols and (rule.proto not in self.protocols or rule.proto_inverted):
            names = " or ".join(f"`-p {PROTOCOL_NAMES.get(p, p)}'" for p in self.protocols)
            return f"match `{self.name}' needs {names}"
        if self.tables and rule.table not in self.tables:
            return f"match `{self.name}' is only valid in the tables {', '.join(sorted(self.tables))}"
        if rule.chain in ALL_HOOKS and rule.chain not in self.hooks:
            return f"match `{self.name}' with these options is not valid in the chain {rule.chain}"
        return ""

    @classmethod
    def _sorted_out(cls, given: list[Given]) -> dict[str, Given]:
        out: dict[str, Given] = {}
        for g in given:
            option = cls._spellings.get(g.option)
            if option is None:
                raise Bad(f'unknown option "{g.option}"', g.option)
            spec = cls.SPEC[option]
            if option in out and not spec.often:
                raise Bad(f'{cls.name}: option "{option}" can only be used once.', g.option)
            if g.invert and not spec.invert:
                raise Bad(f'{cls.name}: option "{option}" cannot be inverted.', g.option)
            for other in spec.alone:
                if other in out:
                    raise Bad(f'{cls.name}: option "{option}" cannot be used together with "{other}".', g.option)
            out[option] = g
        for option in cls.NEEDED:
            if option not in out:
                raise Bad(f'{cls.name}: option "{option}" must be specified')
        return out


class Memory(Match):
    """A match that remembers: `ask` it of one packet after the other, in arrival order."""

    _place = ""
    _running = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",))

    def ask(self, trip: Trip, row: int) -> bool:
        """The answer for one packet; what it changes is remembered."""
        raise NotImplementedError

    def says(self, trip: Trip, row: int) -> bool:
        if not self._running:  # it stands in no table
            self.start(trip.node, self._place)
        return self.ask(trip, row)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        if not self._running:  # it stands in no table
            self.start(trip.node, self._place)
        ask = self.ask
        return np.fromiter((ask(trip, row) for row in rows.tolist()), bool, len(rows))

    def start(self, node: Node, place: str) -> None:
        self._running, self._place = True, place
        self.reset(node)

    def stop(self, node: Node) -> None:
        self._running = False

    def reset(self, node: Node) -> None:
        """Back to what the rule says."""
        raise NotImplementedError


def turned(answers: Mask, invert: bool) -> Mask:
    """The answers after `!`."""
    return ~answers if invert else answers


def drop_at_once(trip: Trip, rows: Rows) -> None:
    """Ask the walk to drop these rows here and now."""
    if len(rows):
        trip.waver(rows)
        trip.hot = rows if trip.hot is None else np.concatenate((trip.hot, rows))


def whole_header(trip: Trip, rows: Rows, need: int) -> Mask:
    """bool[len(rows)]: the row holds the `need` bytes of its transport header. Later fragments do not.

    A packet that claims to and does not is dropped, and so is a TCP fragment that would overwrite the flags.
    """
    p = trip.pkts
    offset = p.frag[rows] & OFFSET_MASK
    first = offset == 0
    whole: Mask = first & (p.length[rows] - p.ihl[rows] >= need)
    if not whole.all():
        hot = first & ~whole
        if need == 20:
            hot |= offset == 1
        drop_at_once(trip, rows[hot])
    return whole


def has_whole_header(trip: Trip, row: int, need: int) -> bool:
    p = trip.pkts
    offset = p.frag.item(row) & OFFSET_MASK
    if not offset and p.length.item(row) - p.ihl.item(row) >= need:
        return True
    if not offset or (offset == 1 and need == 20):
        drop_at_once(trip, np.array([row]))
    return False
