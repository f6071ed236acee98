"""Lanes: packets that stand before different rules take their next step together.

A long chain spreads its packets: each service and each endpoint has a small chain of its own, and what one of a
thousand packets meets there no other one meets. Rule by rule that would be thousands of questions to one packet each.
Here every packet has its own place in the rules (a lane), and a round asks each of them about the rule before which it
stands: what rules ask for lies in columns by place, and a round is a few array operations for all rules of one form.

    rules of simple chains --compiled--> Program: columns by place --run--> verdicts, paths, counts

A chain is simple when nothing in it, nor in the chains that it calls, remembers anything: then it makes no difference
in which order packets come to its rules. All others are walked rule by rule (walk.py), with the same result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netemu.matches.base import Match
from netemu.matches.connections import Mark
from netemu.matches.headers import Ports, Tcp, Udp
from netemu.matches.rates import Statistic, as_shown
from netemu.nat import Wishes
from netemu.packets import I32, I64, Mask, Rows, distinct
from netemu.paths import Paths, Step
from netemu.targets import ACCEPT, Accept, Drop, Return, SetMark, Translation

if TYPE_CHECKING:
    from netemu.tables import Chain, Rule, Table
    from netemu.trip import Trip

Places = NDArray[np.intp]
#: (column, mask, value, want): ((column & mask) == value) is want; mask -1: all of it
Tests = tuple[tuple[int, int, int, bool], ...]
#: (column, bool[links + 1], the same as a list): indexed by link + 1
Links = tuple[tuple[int, Mask, list[bool]], ...]
#: asks rows, each about the match that has number `which`
Ask = Callable[["Trip", Rows, Places], Mask]

SRC, DST, PROTO, FRAG, IN, OUT = range(6)
COLUMN_NAMES = ("src", "dst", "proto", "frag", "link_in", "link_out")

# what happens to a packet that matches
NEXT, CALL, TAKE, KILL, BACK, MARK, NAT, END, WALK = range(9)
_DOES = {Accept: TAKE, Drop: KILL, Return: BACK}
# how a lane ends: decided, dead, at the rule behind the one where it began, or back where the long chain was called
TAKEN, KILLED, BEHIND, HOME = 1, 2, 3, 4

_COLUMNS = {
    "op": np.uint8, "form": np.uint16, "goes": np.intp, "a": np.uint32, "b": np.uint32,
    "src_mask": np.uint32, "src_value": np.uint32, "dst_mask": np.uint32, "dst_value": np.uint32,
    "proto_value": np.uint32, "link_in_value": np.uint32, "link_out_value": np.uint32,
    "link_in_any": np.intp, "link_out_any": np.intp,
}  # fmt: skip
_VALUE, _MASK = [name + "_value" for name in COLUMN_NAMES], [name + "_mask" for name in COLUMN_NAMES]
M32 = 0xFFFFFFFF


def rule_step(table: str, chain: Chain, number: int, rule: Rule | None) -> Step:
    """What is written on the path of a packet that matches a rule, or (None) comes to the end of a chain."""
    if rule is None:
        return Step(table, f"{table}:{chain.name}:{'policy' if chain.policy is not None else 'return'}:{number}")
    kind = "rule"
    if rule.bare and rule.target is not None and rule.target.name in ("ACCEPT", "DROP", "RETURN", "QUEUE"):
        kind = "return" if chain.policy is None else "policy"  # the kernel takes it for the end of the chain
    return Step(table, f"{table}:{chain.name}:{kind}:{number}", f"-A {chain.name} {rule.text}".rstrip())


class Program:
    """A stretch of a long chain and the simple chains behind it, laid out place by place.

    The places 0, 1, ... are the rules of the stretch, by what they do only: who matches is known there. Each chain
    that they call follows, ending with a place for its end.

    in_lane          bool: what the rule at this place of the stretch does can be done in a lane
    op, goes         what a match leads to, and where a CALL goes    form   which of `forms` says what is asked
    steps            number of its step on a path
    """

    op: NDArray[np.uint8]
    form: NDArray[np.uint16]
    goes: Places
    a: NDArray[np.uint32]
    b: NDArray[np.uint32]

    def __init__(
        self,
        paths: Paths,
        table: Table,
        chain: Chain,
        start: int,
        end: int,
        pure: Callable[[Match], bool],
        tests: Callable[[Rule], tuple[Tests, Links]],
    ) -> None:
        self.table, self._pure, self._tests = table, pure, tests
        self._simple: dict[str, bool] = {}
        self._rules: list[Rule | None] = []
        self._starts: list[int] = []  # places where chains begin,
        self._chains: list[tuple[Chain, int]] = []  # and which they are, each with the number of its first rule there
        self._values: dict[str, tuple[list[int], list[Any]]] = {name: ([], []) for name in _COLUMNS}  # where they stand
        self._asks: list[tuple[list[int], list[int]]] = []  # places, and which match is asked there first, second, ...
        self._forms: dict[tuple[Any, ...], int] = {(): 0}  # 0 is nobody's: where no rule stands, nothing is asked
        self._askers: dict[tuple[type, bool], _Asker] = {}
        self._links: dict[tuple[bool, ...], int] = {}
        self._wishes: dict[Translation, int] = {}
        ops, forms = self._lay_out(chain, start, end)
        n = len(self._rules)
        for name, dtype in _COLUMNS.items():
            places, there = self._values[name]
            column = np.zeros(n, dtype)
            column[places] = there
            setattr(self, name, column)
        self.op[:], self.form[:] = ops, forms
        self.which = []
        for places, there in self._asks:
            which = np.zeros(n, np.intp)
            which[places] = there
            self.which.append(which)
        del self._values, self._asks
        self.forms = [_Form(self, key) for key in self._forms]
        self.links = np.array(list(self._links) or [()], bool)
        self.wishes = Wishes([target.choice for target in self._wishes])
        self.manip = next(iter(self._wishes)).manip if self._wishes else ""
        for asker in self._askers.values():
            asker.compile()
        self.in_lane = self.op[: end - start + 1] != WALK
        self.steps = np.arange(n, dtype=np.int32) + np.int32(paths.steps.reserve(n, self.step))
        self.words = paths.words(self.steps)
        self._counted: list[tuple[Places, I32]] = []  # places that packets matched at, and the packets' lengths
        self._waiting = 0
        self._sums: tuple[I64, I64] | None = None  # packets and bytes by place, of those that do not wait any more
        self._draft: int | None = None  # how many of those there were when a draft began

    # ---- compiling ---------------------------------------------------------------------------------------------

    def _lay_out(self, chain: Chain, start: int, end: int) -> tuple[list[int], list[int]]:
        """Fill `_rules`, `_values` and `_asks`; what is done (op) and asked (form) at each place."""
        rules, ops, forms = self._rules, list[int](), list[int]()
        calls: list[tuple[int, str]] = []  # places, and the chains that they call

        def place(chain: Chain, first: int, some: list[Rule]) -> None:
            self._starts.append(len(rules))
            self._chains.append((chain, first))
            rules.extend(some)
            rules.append(None)

        place(chain, start + 1, chain.rules[start:end])
        for at, rule in enumerate(chain.rules[start:end]):
            ops.append(self._deed(rule, at, calls) if self._acts(rule) else WALK)
        ops.append(WALK)
        forms += [0] * len(ops)
        placed: dict[str, int] = {}
        todo = 0
        while todo < len(calls):
            name = calls[todo][1]
            todo += 1
            if name in placed:
                continue
            at = placed[name] = len(ops)
            chain = self.table.chains[name]
            place(chain, 1, chain.rules)
            for rule in chain.rules:
                ops.append(self._deed(rule, at, calls))
                forms.append(self._question(rule, at))
                at += 1
            ops.append(END)
            forms.append(0)
        self._values["goes"] = [at for at, _ in calls], [placed[name] for _, name in calls]
        return ops, forms

    def _chain_is_simple(self, name: str) -> bool:
        known = self._simple.get(name)
        if known is None:
            known = self._simple[name] = all(self._is_simple(rule) for rule in self.table.chains[name].rules)
        return known

    def _is_simple(self, rule: Rule) -> bool:
        if rule.fragment is not None or not self._acts(rule):
            return False
        return all(m.always or (not m.unmodelled and self._pure(m)) for m in rule.matches)

    def _acts(self, rule: Rule) -> bool:
        """What the rule does can be done in a lane."""
        if rule.jump:
            return not rule.goto and self._chain_is_simple(rule.jump)
        return rule.target is None or isinstance(rule.target, Accept | Drop | Return | SetMark | Translation)

    def _put(self, name: str, place: int, value: Any) -> None:
        places, there = self._values[name]
        places.append(place)
        there.append(value)

    def _deed(self, rule: Rule, place: int, calls: list[tuple[int, str]]) -> int:
        """What the rule does."""
        target = rule.target
        if rule.jump:
            calls.append((place, rule.jump))
            return CALL
        if target is None:
            return NEXT
        if isinstance(target, Translation):
            self._put("a", place, self._wishes.setdefault(target, len(self._wishes)))
            return NAT
        if isinstance(target, SetMark):
            self._put("a", place, ~target.mask & M32)
            self._put("b", place, target.value)
            return MARK
        return _DOES[type(target)]

    def _question(self, rule: Rule, place: int) -> int:
        """The number of the form of what the rule asks. That of a rule that asks for nothing is not 0 either."""
        form: list[Any] = [None]
        tests, links = self._tests(rule)
        for column, mask, value, want in tests:
            name = COLUMN_NAMES[column]
            form.append((name, mask == -1, want))
            self._put(_VALUE[column], place, value & M32)
            if mask != -1:
                self._put(_MASK[column], place, mask & M32)
        for column, _, allowed in links:
            name = COLUMN_NAMES[column]
            form.append((name, None, True))
            self._put(f"{name}_any", place, self._links.setdefault(tuple(allowed), len(self._links)))
        nth = 0
        for match in rule.matches:
            if not match.always:
                kind = type(match), _in_columns(match)
                asker = self._askers.get(kind)
                if asker is None:
                    asker = self._askers[kind] = _Asker(*kind)
                form.append(asker)
                if nth == len(self._asks):
                    self._asks.append(([], []))
                places, there = self._asks[nth]
                places.append(place)
                there.append(asker.number(match))
                nth += 1
        return self._forms.setdefault(tuple(form), len(self._forms))

    @property
    def matches(self) -> list[Match]:
        """All that is asked in lanes."""
        return [match for asker in self._askers.values() for match in asker.matches]

    def step(self, place: int) -> Step:
        """What is written on the path of a packet that matches there."""
        k = bisect_right(self._starts, place) - 1
        chain, first = self._chains[k]
        return rule_step(self.table.name, chain, first + place - self._starts[k], self._rules[place])

    def count(self, places: Places, lengths: I32) -> None:
        """Packets matched there."""
        self._counted.append((places, lengths))
        self._waiting += len(places)
        if self._waiting > max(len(self._rules), 1 << 19) and self._draft is None:
            self._add_up()

    def _add_up(self) -> None:
        places, lengths = (np.concatenate(parts) for parts in zip(*self._counted, strict=True))
        self._counted, self._waiting = [], 0
        n = len(self._rules)
        packets = np.bincount(places, minlength=n)
        first = lengths.item(0)
        size = packets * first if (lengths == first).all() else np.bincount(places, lengths, n).astype(np.int64)
        if self._sums is not None:
            packets += self._sums[0]
            size += self._sums[1]
        self._sums = packets, size

    def draft(self) -> None:
        """What is counted from here on may be forgotten again (`decide`)."""
        self._draft = len(self._counted)

    def decide(self, *, keep: bool) -> None:
        """It stands, or is forgotten."""
        if not keep:
            del self._counted[self._draft or 0 :]
            self._waiting = sum(len(places) for places, _ in self._counted)
        self._draft = None

    def settle(self) -> None:
        """Write the counts to the rules."""
        if self._counted:
            self._add_up()
        if self._sums is None:
            return
        packets, size = self._sums
        self._sums = None
        places = np.flatnonzero(packets)
        for place, n, m in zip(places.tolist(), packets[places].tolist(), size[places].tolist(), strict=True):
            rule = self._rules[place]
            if rule is not None:
                rule.packets += n
                rule.bytes += m

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self, trip: Trip, rows: Rows, places: Places) -> NDArray[np.int8]:
        """Each of `rows` matches the rule at its place: do what it says, and go on until the lane ends.

        Returns how: int8[len(rows)] of TAKEN, KILLED (those are ended), BEHIND or HOME.
        """
        return _Run(self, trip, rows).all(places)


class _Run:
    """One run of a program: columns by lane. The lanes under way, and the place of each, stand in two shorter ones.

    fate       how it ended, 0: it has not     evaluated   rules that it came to, once it has ended
    depth      how many chains it will come back from
    """

    def __init__(self, program: Program, trip: Trip, rows: Rows) -> None:
        self.program, self.trip, self.rows = program, trip, rows
        n = len(rows)
        self.length = trip.pkts.length.take(rows)
        self.evaluated = np.zeros(n, np.int32)
        self.fate = np.zeros(n, np.int8)
        self.depth = np.zeros(n, np.int8)
        self._round = 0
        self._open = n
        self._stack: list[Places] = []
        self._columns: dict[str, NDArray[np.uint32]] = {}

    def column(self, name: str, lanes: Places) -> NDArray[np.uint32]:
        """A header column of these lanes. Constant during a walk."""
        got = self._columns.get(name)
        if got is None:
            got = self._columns[name] = getattr(self.trip.pkts, name).take(self.rows).astype(np.uint32)
        return got if len(lanes) == len(got) else got.take(lanes)

    def all(self, places: Places) -> NDArray[np.int8]:
        """Each matches the rule at its place: rounds, until no lane is under way."""
        forms = self.program.form
        lanes = np.arange(len(self.rows))
        pc = self._match(lanes, places)
        lanes, pc = self._under_way(lanes, pc)
        while len(lanes):
            form = forms.take(pc)
            if not form.all():  # nothing is asked at the end of a chain
                over = np.flatnonzero(form == 0)
                pc[over] = self._end(lanes.take(over), pc.take(over))
                lanes, pc = self._under_way(lanes, pc)
                continue
            self._round += 1
            matched = self._ask(lanes, pc, form)
            if matched is None:
                pc = self._match(lanes, pc)
            else:
                hit = np.flatnonzero(matched)
                moved = self._match(lanes.take(hit), pc.take(hit)) if len(hit) else hit
                pc += 1
                pc[hit] = moved
            lanes, pc = self._under_way(lanes, pc)
        self.trip.pkts.evaluated[self.rows] += self.evaluated
        return self.fate

    def _under_way(self, lanes: Places, pc: Places) -> tuple[Places, Places]:
        """Those that have not ended."""
        if self._open == len(lanes):
            return lanes, pc
        still = np.flatnonzero(self.fate.take(lanes) == 0)
        return lanes.take(still), pc.take(still)

    def _finish(self, lanes: Places, fate: int | NDArray[np.int8]) -> None:
        self.fate[lanes], self.evaluated[lanes] = fate, self._round
        self._open -= len(lanes)

    def _ask(self, lanes: Places, pc: Places, form: NDArray[np.uint16]) -> Mask | None:
        """bool[len(lanes)]: do they match the rule before which they stand? None: all do."""
        forms = self.program.forms
        first = form.item(0)
        if (form == first).all():
            out = forms[first].ask(self, lanes, pc)
        else:
            out = np.ones(len(lanes), bool)
            for kind in np.flatnonzero(np.bincount(form)).tolist():
                some = np.flatnonzero(form == kind)
                said = forms[kind].ask(self, lanes.take(some), pc.take(some))
                if said is not None:
                    out[some] = said
        if self.trip.hot is not None:
            self._hotdrop(lanes, pc)
        return out

    def _hotdrop(self, lanes: Places, pc: Places) -> None:
        """Malformed packets that a match wants dead: uncounted. Their match said no."""
        assert self.trip.hot is not None
        hot = np.isin(self.rows[lanes], self.trip.hot)
        self.trip.hot = None
        for lane, place in zip(lanes[hot].tolist(), pc[hot].tolist(), strict=True):
            self.trip.end(self.rows[lane : lane + 1], f"{self.program.step(place).text} malformed packet")
        self._finish(lanes[hot], KILLED)

    def _step(self, lanes: Places, pc: Places) -> None:
        rows = self.rows if len(lanes) == len(self.rows) else self.rows.take(lanes)
        self.trip.steps(rows, self.program.steps.take(pc), self.program.words.take(pc))

    def _match(self, lanes: Places, pc: Places) -> Places:
        """They match: count, write the step, do what the rule says. Where each that has not ended then stands."""
        program = self.program
        program.count(pc, self.length if len(lanes) == len(self.rows) else self.length.take(lanes))
        self._step(lanes, pc)
        ops = program.op.take(pc)
        first = ops.item(0)
        if (ops == first).all():
            return self._act(first, lanes, pc)
        moved = pc.copy()
        for op in np.flatnonzero(np.bincount(ops)).tolist():
            some = np.flatnonzero(ops == op)
            moved[some] = self._act(op, lanes.take(some), pc.take(some))
        return moved

    def _act(self, op: int, lanes: Places, pc: Places) -> Places:
        program, trip = self.program, self.trip
        if op == CALL:
            self._call(lanes, pc)
            return program.goes.take(pc)
        if op == TAKE:
            self._finish(lanes, TAKEN)
        elif op == KILL:
            self._finish(lanes, KILLED)
            for place in np.unique(pc).tolist():
                trip.end(self.rows[lanes[pc == place]], f"{program.step(place).text} DROP")
        elif op == BACK:
            return self._leave(lanes)
        elif op == NAT:
            rows = self.rows if len(lanes) == len(self.rows) else self.rows.take(lanes)
            verdict = trip.node.nat.wish(trip, rows, program.manip, program.wishes, program.a.take(pc).astype(np.intp))
            self._finish(lanes, np.where(verdict == ACCEPT, np.int8(TAKEN), np.int8(KILLED)))
        else:
            if op == MARK:
                rows = self.rows[lanes]
                mark = (trip.pkts.mark[rows] & program.a[pc]) ^ program.b[pc]
                trip.rewrite(rows, "mark", mark, program.steps[pc])
            self._finish(lanes.compress(self.depth.take(lanes) == 0), BEHIND)
            return pc + 1
        return pc

    def _call(self, lanes: Places, pc: Places) -> None:
        depth = self.depth.take(lanes)
        for d in distinct(depth):
            if d == len(self._stack):
                self._stack.append(np.empty(len(self.rows), np.intp))
            some = slice(None) if len(lanes) == 1 or (depth == d).all() else depth == d
            self._stack[d][lanes[some]] = pc[some] + 1
        self.depth[lanes] = depth + 1

    def _end(self, lanes: Places, pc: Places) -> Places:
        """They came to the end of their chain."""
        self._step(lanes, pc)
        return self._leave(lanes)

    def _leave(self, lanes: Places) -> Places:
        """Back to where their chain was called: there they stand, if they have not ended."""
        depth = self.depth.take(lanes) - 1
        self.depth[lanes] = depth
        self._finish(lanes.compress(depth < 0), HOME)
        self._finish(lanes.compress(depth == 0), BEHIND)
        back = lanes.copy()
        for d in distinct(depth):
            if d > 0:
                some = depth == d
                back[some] = self._stack[d].take(lanes.compress(some))
        return back


class _Form:
    """What rules of one form ask: the same columns and the same kinds of match, with values of their own."""

    def __init__(self, program: Program, key: tuple[Any, ...]) -> None:
        self.program = program
        self.tests = [
            (name, exact, want, getattr(program, f"{name}_{'any' if exact is None else 'value'}"),
             getattr(program, f"{name}_mask") if exact is False else None)
            for name, exact, want in (part for part in key if isinstance(part, tuple))
        ]  # fmt: skip
        self.askers: list[_Asker] = [part for part in key if isinstance(part, _Asker)]

    def ask(self, run: _Run, lanes: Places, pc: Places) -> Mask | None:
        """bool[len(lanes)], or None where all match."""
        mask: Mask | None = None
        for name, exact, want, values, wild in self.tests:
            column = run.column(name, lanes)
            if exact is None:
                said = self.program.links[values.take(pc), (column + np.uint32(1)).astype(np.intp)]
            else:
                if wild is not None:
                    column = column & wild.take(pc)
                said = column == values.take(pc) if want else column != values.take(pc)
            mask = said if mask is None else mask & said
        for asker, which in zip(self.askers, self.program.which, strict=False):
            if mask is None:
                mask = asker.ask(run.trip, run.rows.take(lanes), which.take(pc))
                continue
            left = np.flatnonzero(mask)
            if len(left):
                mask[left] = asker.ask(run.trip, run.rows.take(lanes.take(left)), which.take(pc.take(left)))
        return mask


# ---- matches in columns ----------------------------------------------------------------------------------------------


class _Asker:
    """All matches of one class in a program, by number."""

    def __init__(self, cls: type[Match], in_columns: bool) -> None:
        self.cls, self.in_columns = cls, in_columns
        self.matches: list[Match] = []
        self._numbers: dict[Any, int] = {}
        self.ask: Ask = self._one_by_one

    def number(self, match: Match) -> int:
        key = id(match) if isinstance(match, Statistic) else match
        n = self._numbers.get(key)
        if n is None:
            n = self._numbers[key] = len(self.matches)
            self.matches.append(match)
        return n

    def compile(self) -> None:
        if self.in_columns:
            self.ask = _IN_COLUMNS[self.cls](self.matches)
        elif len(self.matches) == 1:
            mask = self.matches[0].mask
            self.ask = lambda trip, rows, which: mask(trip, rows)

    def _one_by_one(self, trip: Trip, rows: Rows, which: Places) -> Mask:
        out = np.empty(len(rows), bool)
        for n in np.flatnonzero(np.bincount(which)).tolist():
            some = np.flatnonzero(which == n)
            out[some] = self.matches[n].mask(trip, rows[some])
        return out


def _in_columns(match: Match) -> bool:
    """Many such matches can be asked at once."""
    if isinstance(match, Tcp):
        return not (match.flag_mask or match.flag_set or match.flag_invert or match.option)
    if isinstance(match, Statistic):
        return match.mode == "random"
    return type(match) in _IN_COLUMNS


def _ports(matches: Sequence[Tcp | Udp]) -> Ask:
    def columns(ports: list[Ports]) -> tuple[I32, I32, Mask] | None:
        if all(p.any for p in ports):
            return None
        return (
            np.array([p.lo for p in ports], np.int32),
            np.array([p.hi for p in ports], np.int32),
            np.array([p.invert for p in ports]),
        )

    sides = [("sport", columns([m.sport for m in matches])), ("dport", columns([m.dport for m in matches]))]
    exact = all(side is None or not ((side[0] != side[1]) | side[2]).any() for _, side in sides)

    def ask(trip: Trip, rows: Rows, which: Places) -> Mask:
        yes = np.ones(len(rows), bool)
        for name, side in sides:
            if side is not None:
                port = getattr(trip.pkts, name).take(rows)
                lo, hi, invert = side
                if exact:
                    yes &= port == lo.take(which)
                else:
                    yes &= ((port >= lo.take(which)) & (port <= hi.take(which))) != invert.take(which)
        return yes

    return ask


def _marks(matches: Sequence[Mark]) -> Ask:
    value = np.array([m.value for m in matches], np.int64)
    wild = np.array([m.wild for m in matches], np.int64)
    invert = np.array([m.invert for m in matches])
    return lambda trip, rows, which: ((trip.pkts.mark[rows] & wild[which]) == value[which]) != invert[which]


def _draws(matches: Sequence[Statistic]) -> Ask:
    salt = np.array([m.salt for m in matches], np.uint64)
    threshold = np.array([m.threshold for m in matches], np.uint64)
    invert = np.array([m.invert for m in matches])
    leads = [m.leads for m in matches]

    def ask(trip: Trip, rows: Rows, which: Places) -> Mask:
        drawn = trip.random(rows, salt.take(which))
        drawn >>= np.uint64(33)
        yes: Mask = (drawn < threshold.take(which)) != invert.take(which)
        return as_shown(trip, rows, yes, leads, which)

    return ask


_IN_COLUMNS: dict[type[Match], Callable[[Any], Ask]] = {Tcp: _ports, Udp: _ports, Mark: _marks, Statistic: _draws}
