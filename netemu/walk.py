"""The walk: packets on their way through the rules of a table.

A walk takes a batch through one table at one hook, rule by rule: each rule is asked of all rows that stand before it,
in arrival order, so that a rule with memory sees its packets as they came. Rows that jump come back to the next rule,
rows that are decided leave. A long run of rules that ask for addresses and ports is not asked rule by rule: an index
(`Stretch`) names, for each row, the next rule that can match it; the answers are those of the linear walk.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netemu.doubt import HARMLESS, VERDICTS, settle_walk
from netemu.hashing import Table as HashTable
from netemu.hashing import span
from netemu.lanes import (
    BEHIND,
    COLUMN_NAMES,
    DST,
    FRAG,
    HOME,
    IN,
    KILLED,
    OUT,
    PROTO,
    SRC,
    Links,
    Program,
    Tests,
    rule_step,
)
from netemu.matches import Match
from netemu.matches.headers import Tcp, Udp
from netemu.packets import OFFSET_MASK, TCP, UDP, Mask, Packets, Rows
from netemu.paths import Paths, Step
from netemu.targets import ACCEPT, CONTINUE, DROP, RETURN, STOLEN

if TYPE_CHECKING:
    from netemu.tables import Chain, Rule, Tables
    from netemu.trip import Trip

NO_ROWS: Rows = np.zeros(0, np.intp)
POLICY_NAMES = {ACCEPT: "ACCEPT", DROP: "DROP"}
_ONE_ACCEPTED = np.ones(1, np.int8)
_ONE_ACCEPTED.flags.writeable = False
_MOVES_NOTHING = HARMLESS | {*VERDICTS, "RETURN"}

#: a stretch of keyable rules shorter than this is walked rule by rule
INDEX_FROM = 24
#: an index of more kinds of rule than this costs more probes than it saves
MOST_KINDS = 12

# ---- the compiled form ----------------------------------------------------------------------------------------------

NONE, JUMP, GOTO, ACT = range(4)
#: fewer rows than this go through a long chain rule by rule
LANES_FROM = 12


class Look:
    """The columns that rules ask for first, of the rows that stand before a rule. Constant during a walk."""

    __slots__ = ("columns", "one", "pkts", "rows")

    def __init__(self, pkts: Packets, rows: Rows) -> None:
        self.pkts = pkts
        self.rows = rows
        self.columns: dict[int, NDArray[Any]] = {}
        self.one: list[int] | None = None
        if len(rows) == 1:
            row = rows.item()
            self.one = [
                pkts.src.item(row),
                pkts.dst.item(row),
                pkts.proto.item(row),
                pkts.frag.item(row) & OFFSET_MASK,
                pkts.link_in.item(row),
                pkts.link_out.item(row),
            ]

    def column(self, which: int) -> NDArray[Any]:
        got = self.columns.get(which)
        if got is None:
            got = (getattr(self.pkts, COLUMN_NAMES[which]))[self.rows]
            if which == FRAG:
                got = got & OFFSET_MASK
            self.columns[which] = got
        return got


class Line:
    """A rule, ready to be asked.

    tests   (column, mask, value, want): ((column & mask) == value) is want; mask -1: all of it
    links   (column, bool[links + 1], the same as a list): indexed by link + 1
    asks    extensions that can say no, in order
    """

    __slots__ = (
        "_step",
        "_wavering",
        "act",
        "asks",
        "chain",
        "kind",
        "links",
        "number",
        "rule",
        "says",
        "sub",
        "table",
        "tests",
    )

    def __init__(self, table: str, chain: Chain, number: int, rule: Rule, names: list[str]) -> None:
        self.rule = rule
        self.number = number
        self.tests, self.links = base_tests(rule, names)
        asks = [m for m in rule.matches if not m.always]
        asks.sort(key=lambda m: m.unmodelled)  # what netemu cannot judge is asked last
        self.asks = tuple(asks)
        self.says = tuple(m.says if type(m).says is not Match.says else None for m in self.asks)
        self.table, self.chain = table, chain
        self._step: Step | None = None
        self._wavering = (-1, -1)
        self.sub = rule.jump
        self.act = rule.target.act if rule.target is not None else None
        self.kind = (GOTO if rule.goto else JUMP) if rule.jump else NONE if rule.target is None else ACT

    @property
    def step(self) -> Step:
        """What is written on the path of a packet that matches. Made when first needed: most rules never are."""
        if self._step is None:
            self._step = rule_step(self.table, self.chain, self.number, self.rule)
        return self._step

    @property
    def reason(self) -> str:
        """Why a packet died here."""
        return f"{self.step.text} {self.rule.target.name if self.rule.target else ''}"

    def hits(self, trip: Trip, rows: Rows, look: Look) -> tuple[Rows, Mask | None]:
        """(rows that match, mask of them among `rows`, None: all). Rows that a match wants dead: trip.hot."""
        if look.one is not None:
            return self.hits_one(trip, rows, look.one)
        mask = _asked(look, self.tests, self.links)
        if mask is None:
            hit = rows
        elif not mask.any():
            return NO_ROWS, mask
        else:
            hit = rows[mask]
        wavering = self.wavering(trip)
        for k, match in enumerate(self.asks):
            if k == wavering:
                trip.waver(hit)
            said = match.mask(trip, hit)
            if said.all():
                continue
            narrowed = np.zeros(len(rows), bool)  # what a match says is not ours to write to
            narrowed[np.flatnonzero(mask) if mask is not None else slice(None)] = said
            mask = narrowed
            hit = hit[said]
            if not len(hit):
                break
        return hit, mask

    def hits_one(self, trip: Trip, rows: Rows, one: list[int]) -> tuple[Rows, None]:
        for column, mask, value, want in self.tests:
            if ((one[column] & mask) == value) is not want:
                return NO_ROWS, None
        for column, _, allowed in self.links:
            if not allowed[one[column] + 1]:
                return NO_ROWS, None
        wavering = self.wavering(trip)
        for k, (match, says) in enumerate(zip(self.asks, self.says, strict=True)):
            if k == wavering:
                trip.waver(rows)
            if says is not None:
                if not says(trip, rows.item()):
                    return NO_ROWS, None
            elif not match.mask(trip, rows)[0]:
                return NO_ROWS, None
        return rows, None

    def wavering(self, trip: Trip) -> int:
        """Place of the first of `asks` that is not steadfast, -1: none is there, or nobody wants to know."""
        if trip.fickle is None or not self.asks:
            return -1
        era = trip.node.settled.era
        if self._wavering[0] != era:
            places = (k for k, match in enumerate(self.asks) if not match.steadfast(trip.node))
            self._wavering = (era, next(places, -1))
        return self._wavering[1]


def base_tests(rule: Rule, names: list[str]) -> tuple[Tests, Links]:
    tests: list[tuple[int, int, int, bool]] = []
    links: list[tuple[int, Mask, list[bool]]] = []
    for column, net in ((SRC, rule.src), (DST, rule.dst)):
        if net and (net[1] or net[2]):
            tests.append((column, -1 if net[1] == 0xFFFFFFFF else net[1], net[0], not net[2]))
    for column, link in ((IN, rule.link_in), (OUT, rule.link_out)):
        if link is None:
            continue
        name, inverted = link
        if name.endswith("+"):
            allowed = np.array([n.startswith(name[:-1]) != inverted for n in ["", *names]])
            links.append((column, allowed, allowed.tolist()))
        else:
            # a device that is absent, and a name that no device has, are never equal
            tests.append((column, -1, names.index(name) if name in names else -2, not inverted))
    if rule.proto:
        tests.append((PROTO, -1, rule.proto[0], not rule.proto[1]))
    if rule.fragment is not None:
        tests.append((FRAG, -1, 0, not rule.fragment))
    return tuple(tests), tuple(links)


def _asked(look: Look, tests: Tests, links: Links) -> Mask | None:
    mask: Mask | None = None
    for column, wild, value, want in tests:
        values = look.column(column)
        if wild != -1:
            values = values & wild
        said = values == value if want else values != value
        mask = said if mask is None else mask & said
    for column, allowed, _ in links:
        said = allowed[look.column(column) + 1]
        mask = said if mask is None else mask & said
    return mask


class Code:
    """A chain, ready to be walked: its lines, its hidden last rule, and the stretches that have an index."""

    __slots__ = ("chain", "last", "lines", "reason", "stretches")

    def __init__(
        self, table: str, chain: Chain, names: list[str], index_from: int, pure: Callable[[Match], bool]
    ) -> None:
        self.chain = chain
        self.lines = [Line(table, chain, n, rule, names) for n, rule in enumerate(chain.rules, 1)]
        kind = "return" if chain.policy is None else "policy"
        text = "" if chain.policy is None else f"-P {chain.name} {POLICY_NAMES[chain.policy]}"
        self.last = Step(table, f"{table}:{chain.name}:{kind}:{len(chain.rules) + 1}", text)
        self.reason = f"{self.last.text} DROP"
        self.stretches = _stretches(self.lines, index_from, pure)


# ---- the index ------------------------------------------------------------------------------------------------------

#: what a rule asks by value: source mask, destination mask, and whether it names protocol, ports and links
Kind = tuple[int, int, bool, bool, bool, bool, bool]
#: what must be equal: source, destination, protocol, source port, destination port, link in, link out
Key = tuple[int, int, int, int, int, int, int]


class _Keyed:
    """What a rule asks by value, and the rest."""

    __slots__ = ("asks", "key", "kind", "links", "plain", "tests")

    def __init__(self, kind: Kind, key: Key, tests: Tests, links: Links, asks: tuple[Match, ...]) -> None:
        self.kind, self.key, self.tests, self.links, self.asks = kind, key, tests, links, asks
        self.plain = not (tests or links or asks)

    def rest(self, trip: Trip, rows: Rows) -> Mask:
        """bool[len(rows)]: the part that is not in the key."""
        mask = _asked(Look(trip.pkts, rows), self.tests, self.links) if self.tests or self.links else None
        if mask is None:
            mask = np.ones(len(rows), bool)
        for match in self.asks:
            left = np.flatnonzero(mask)
            if not len(left):
                break
            mask[left] = match.mask(trip, rows[left])
        return mask


def _exact_ports(match: Match, rule: Rule) -> tuple[int, int] | None:
    """(source port, destination port), -1 for any, of a match that asks for nothing else; None for others."""
    if not isinstance(match, Tcp | Udp) or rule.proto != (match.protocols[0], False):
        return None
    return match.exact_ports()


def _keyed(line: Line, pure: Callable[[Match], bool]) -> _Keyed | None:
    """The line in key form; None when it must be asked in its turn: it has memory, or names no address or port."""
    rule = line.rule
    if any(not pure(match) for match in line.asks):
        return None
    source = dest = proto = 0
    smask = dmask = 0
    link_in = link_out = -2
    named = [False] * 5  # protocol, sport, dport, in, out
    tests = []
    for test in line.tests:
        column, mask, value, want = test
        if not want or column == FRAG:
            tests.append(test)
        elif column == SRC:
            smask, source = mask & 0xFFFFFFFF, value
        elif column == DST:
            dmask, dest = mask & 0xFFFFFFFF, value
        elif column == PROTO:
            named[0], proto = True, value
        elif column == IN:
            named[3], link_in = True, value
        else:
            named[4], link_out = True, value
    sport = dport = 0
    asks = []
    for match in line.asks:
        ports = None if named[1] or named[2] else _exact_ports(match, rule)
        if ports is None or ports == (-1, -1):
            asks.append(match)
            continue
        if any(m.name in ("tcp", "udp", "multiport") for m in asks):
            return None  # one that may want a packet dead is asked before
        named[1], named[2] = ports[0] >= 0, ports[1] >= 0
        sport, dport = max(ports[0], 0), max(ports[1], 0)
    if not (smask or dmask or named[1] or named[2]) or not -2 < max(link_in, link_out, 0) < 4000:
        return None
    kind = (smask, dmask, named[0], named[1], named[2], named[3], named[4])
    key = (source, dest, proto, sport, dport, link_in if named[3] else 0, link_out if named[4] else 0)
    return _Keyed(kind, key, tuple(tests), line.links, tuple(asks))


def _stretches(lines: list[Line], index_from: int, pure: Callable[[Match], bool]) -> dict[int, Stretch]:
    """First line -> stretch. Lines are numbered from 0 here."""
    out: dict[int, Stretch] = {}
    if len(lines) < index_from:
        return out
    run: list[_Keyed] = []
    kinds: set[Kind] = set()

    def close(end: int) -> None:
        if len(run) >= index_from:
            out[end - len(run)] = Stretch(end - len(run), end, lines, run[:])
        run.clear()
        kinds.clear()

    for at, line in enumerate(lines):
        keyed = _keyed(line, pure)
        if keyed is None:
            close(at)
            continue
        if keyed.kind not in kinds and len(kinds) == MOST_KINDS:
            close(at)
        run.append(keyed)
        kinds.add(keyed.kind)
    close(len(lines))
    return out


class Stretch:
    """An index over consecutive lines start..end-1: which is the next that matches?

    One hash table for each kind of rule, from key to the ascending lines that have it. A line's rest (inverted
    conditions, marks, sets, states) is asked only of rows that have its key.
    Cost: one probe for each kind, whatever the number of rules.
    """

    def __init__(self, start: int, end: int, lines: list[Line], keyed: list[_Keyed]) -> None:
        self.start, self.end, self.lines, self.keyed = start, end, lines, keyed
        self.plain = np.array([k.plain for k in keyed] + [True])
        self.all_plain = bool(self.plain.all())
        by_kind: dict[Kind, dict[Key, list[int]]] = {}
        for at, k in enumerate(keyed, start):
            by_kind.setdefault(k.kind, {}).setdefault(k.key, []).append(at)
        self.kinds = list(by_kind.items())
        self.ports = any(kind[3] or kind[4] for kind, _ in self.kinds)
        self._tables: list[_KindTable] | None = None
        self.program: Program | None = None
        self._wavers = ((-1, False), False)

    def wavers(self, trip: Trip) -> bool:
        """Something here is not steadfast: in the lines, or in the chains that go by lanes."""
        state = trip.node.settled.era, self.program is not None
        if self._wavers[0] != state:
            asked = (match for k in self.keyed if not k.plain for match in k.asks)
            inside = () if self.program is None else self.program.matches
            self._wavers = (state, not all(match.steadfast(trip.node) for match in (*asked, *inside)))
        return self._wavers[1]

    # ---- one packet

    def next_one(self, trip: Trip, rows: Rows, one: list[int], at: int) -> int:
        """The first line from `at` on that matches the one row, or end. Not for odd rows."""
        src, dst, proto, _, link_in, link_out = one
        pkts, row = trip.pkts, rows[0]
        sport, dport = (int(pkts.sport[row]), int(pkts.dport[row])) if self.ports else (0, 0)
        lists = []
        for (smask, dmask, p, s, d, i, o), lines in self.kinds:
            found = lines.get(
                (
                    src & smask,
                    dst & dmask,
                    proto if p else 0,
                    sport if s else 0,
                    dport if d else 0,
                    link_in if i else 0,
                    link_out if o else 0,
                )
            )
            if found is not None and found[-1] >= at:
                lists.append(found if found[0] >= at else found[bisect_left(found, at) :])
        for line in lists[0] if len(lists) == 1 else heapq.merge(*lists):
            keyed = self.keyed[line - self.start]
            if keyed.plain or keyed.rest(trip, rows)[0]:
                return line
        return self.end

    # ---- many

    def prepare(self) -> list[_KindTable]:
        """The hash tables, one for each kind of rule."""
        if self._tables is None:
            self._tables = [_KindTable(kind, lines, self.end) for kind, lines in self.kinds]
        return self._tables

    def next_many(self, trip: Trip, rows: Rows, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[len(rows)]: the first line from each row's `at` on that matches it, or end. Not for odd rows."""
        tables = self.prepare()
        places = []
        best = np.full(len(rows), self.end, np.int64)
        for table in tables:
            place = table.find(trip.pkts, rows, at)
            places.append(place)
            np.minimum(best, table.lines[place], out=best)
        if self.all_plain:
            return best
        open_ = np.flatnonzero(~self.plain[best - self.start])
        while len(open_):
            failed = []
            for line, which in groups(best[open_], open_):
                said = self.keyed[line - self.start].rest(trip, rows[which])
                if not said.all():
                    failed.append(which[~said])
            if not failed:
                break
            again = np.concatenate(failed)
            now = best[again]
            best[again] = self.end
            for table, place in zip(tables, places, strict=True):
                mine = table.lines[place[again]] == now
                place[again[mine]] += 1
                best[again] = np.minimum(best[again], table.lines[place[again]])
            open_ = again[~self.plain[best[again] - self.start]]
        return best


class _KindTable:
    """The lines of one kind: key -> where its lines stand in `lines`, each key's lines followed by `end`."""

    def __init__(self, kind: Kind, by_key: dict[Key, list[int]], end: int) -> None:
        self.kind = kind
        keys = np.array(list(by_key), np.int64).reshape(-1, 7)
        self.table = HashTable(2, capacity=max(64, 2 * len(keys)))
        ids = self.table.add(_key_words(len(keys), *keys.T))
        self.first = np.zeros(int(ids.max()) + 2, np.int64)  # by number and one more; of no number, place 0
        flat: list[int] = [end]  # place 0: no line
        starts = []
        for lines in by_key.values():
            starts.append(len(flat))
            flat += lines
            flat.append(end)
        self.first[ids + 1] = starts
        self.lines = np.array(flat, np.int64)

    def find(self, pkts: Packets, rows: Rows, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[len(rows)]: places in `lines` of the first line from each row's `at` on."""
        smask, dmask, p, s, d, i, o = self.kind
        some = span(rows)
        ids = self.table.find(
            _key_words(
                len(rows),
                pkts.src[some] & np.uint32(smask) if smask else None,
                pkts.dst[some] & np.uint32(dmask) if dmask else None,
                pkts.proto[some] if p else None,
                pkts.sport[some] if s else None,
                pkts.dport[some] if d else None,
                pkts.link_in[some] if i else None,
                pkts.link_out[some] if o else None,
            )
        )
        place = self.first.take(ids + 1)
        behind = np.flatnonzero(self.lines.take(place) < at)
        while len(behind):
            place[behind] += 1
            behind = behind[self.lines[place[behind]] < at[behind]]
        return place


def _key_words(n: int, *parts: NDArray[Any] | None) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The keys in two words.   parts  as in Key, None: 0. Links take 12 bits each (-1, no link, is 4095)."""
    u = np.uint64
    words = np.zeros(n, u), np.zeros(n, u)
    for part, (word, shift) in zip(parts, _PLACES, strict=True):
        if part is None:
            continue
        wide = (part.astype(np.int64) & 4095).astype(u) if shift >= 40 else part.astype(u)
        if shift:
            wide <<= u(shift)
        words[word][:] |= wide
    return words


#: where each part of a key stands: in which word, and how far to the left
_PLACES = ((0, 32), (0, 0), (1, 32), (1, 16), (1, 0), (1, 52), (1, 40))


def groups(values: NDArray[np.int64], rows: Rows) -> Iterator[tuple[int, Rows]]:
    """(value, rows that have it), values ascending, rows in the order given."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    starts = [0, *cuts.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        if stop > start:
            yield int(ordered[start]), rows[order[start:stop]]


def odd_rows(pkts: Packets, rows: Rows) -> Mask:
    """bool[len(rows)]: later fragments, TCP and UDP packets without a whole header. Matches judge those themselves."""
    some = span(rows)
    proto = pkts.proto[some]
    have = np.minimum(pkts.length[some], pkts.cap[some]) - pkts.ihl[some]
    odd: Mask = (pkts.frag[some] & OFFSET_MASK) != 0
    odd |= have < _WHOLE.take(proto)
    return odd


#: by protocol: bytes of a whole header, where matches look into it
_WHOLE = np.full(256, -1 << 31, np.int64).astype(np.int32)
_WHOLE[TCP], _WHOLE[UDP] = 20, 8


def odd_row(pkts: Packets, row: int) -> bool:
    """The same of one packet."""
    proto = pkts.proto.item(row)
    have = min(pkts.length.item(row), pkts.cap.item(row)) - pkts.ihl.item(row)
    return bool(pkts.frag.item(row) & OFFSET_MASK) or (proto == TCP and have < 20) or (proto == UDP and have < 8)


# ---- the walk -------------------------------------------------------------------------------------------------------


class Walk:
    """What takes packets through the tables of a node. Chains are compiled when a packet first comes to them.

    index_from   a chain of fewer rules than this is walked rule by rule
    """

    def __init__(self, tables: Tables, pure: Callable[[Match], bool]) -> None:
        self.all = tables
        self.pure = pure
        self.index_from = INDEX_FROM
        self._links: list[str] = []
        self._programs: list[Program] = []
        self._counted: list[tuple[Chain | Rule, int, int]] | None = None  # see `draft`

    def __call__(self, trip: Trip, table: str, rows: Rows) -> NDArray[np.int8]:
        """Send `rows` through `table` at trip.hook.

        rows      ascending: arrival order is part of the meaning
        returns   int8[len(rows)]: ACCEPT 1, DROP 0 (those were ended), STOLEN 2
        Cost      for one row some microseconds a rule; for many a few array operations a rule
        """
        if not len(rows):
            return np.ones(0, np.int8)
        if len(trip.node.routing.names) != len(self._links):
            self._recompile(trip.node.routing.names)
        code = self._code(table, trip.hook)
        ends: list[tuple[Rows, int]] = []
        left = self._through(trip, table, code, rows, Look(trip.pkts, rows), ends)
        if len(left):
            chain = code.chain
            self._count(chain, len(left), _bytes(trip.pkts, left))
            trip.step(left, code.last)
            if chain.policy == DROP:
                trip.end(left, code.reason)
                ends.append((left, DROP))
        if not ends and len(rows) == 1 and not trip.open_doubts:
            return _ONE_ACCEPTED
        out = np.ones(len(rows), np.int8)
        for which, verdict in ends:
            if len(which) == len(rows):
                out[:] = verdict
            else:
                out[np.searchsorted(rows, which)] = verdict
        if trip.open_doubts:
            settle_walk(trip, rows, out)
        return out

    def _count(self, what: Chain | Rule, packets: int, size: int) -> None:
        what.packets += packets
        what.bytes += size
        if self._counted is not None:
            self._counted.append((what, packets, size))

    def draft(self) -> None:
        """What is counted from here on may be forgotten again (`decide`)."""
        self._counted = []
        for program in self._programs:
            program.draft()

    def decide(self, *, keep: bool) -> None:
        """It stands, or is forgotten."""
        counted, self._counted = self._counted, None
        for program in self._programs:
            program.decide(keep=keep)
        for what, packets, size in counted or () if not keep else ():
            what.packets -= packets
            what.bytes -= size

    def foresee(self, trip: Trip, table: str) -> None:
        """Take copies of packets through a table, to see what it will do. Nothing is counted."""
        chains = self.all.tables[table].in_order()
        of: list[Chain | Rule] = [*chains, *(rule for chain in chains for rule in chain.rules)]
        counted = [(x.packets, x.bytes) for x in of]
        self(trip, table, np.arange(trip.pkts.n))
        for x, (packets, size) in zip(of, counted, strict=True):
            x.packets, x.bytes = packets, size

    def _code(self, table: str, name: str) -> Code:
        chain = self.all.tables[table].chains[name]
        if chain.code is None:
            chain.code = Code(table, chain, self._links, self.index_from, self.pure)
        return chain.code

    def _recompile(self, links: list[str]) -> None:
        self.settle()
        self._programs.clear()
        self._links = list(links)
        for table in self.all.tables.values():
            for chain in table.chains.values():
                chain.code = None

    def _through(
        self, trip: Trip, table: str, code: Code, rows: Rows, look: Look, ends: list[tuple[Rows, int]]
    ) -> Rows:
        """Rows that come back from a chain: those that fell off its end and those that said RETURN."""
        evaluated = trip.pkts.evaluated
        lines, stretches = code.lines, code.stretches
        entered = rows
        home: list[Rows] = []  # rows that said RETURN, or went to another chain for good and came back from there
        odd = bool(stretches) and look.one is not None and odd_row(trip.pkts, rows.item())
        stretch: Stretch | None = None
        at = since = 0  # rows that are here have looked at the lines since..at
        end = len(lines)
        while at < end:
            hit: Rows
            mask: Mask | None = None
            if stretches and not odd:
                if at in stretches:
                    stretch = stretches[at]
                if stretch is not None:
                    if trip.fickle is not None and table != "nat" and stretch.wavers(trip):
                        trip.waver(rows)
                    if look.one is None:
                        evaluated[rows] += at - since
                        rows = self._spread(trip, table, stretch, rows, ends, home)
                        at = since = stretch.end
                        stretch = None
                        if not len(rows):
                            break
                        look = Look(trip.pkts, rows)
                        continue
                    at = stretch.next_one(trip, rows, look.one, at)
                    if at == stretch.end:
                        stretch = None
                        continue
                    hit = rows
                    line = lines[at]
                else:
                    line = lines[at]
                    hit, mask = line.hits(trip, rows, look)
            else:
                line = lines[at]
                hit, mask = line.hits(trip, rows, look)
            at += 1
            if trip.hot is not None:
                hot, mask = self._hotdrop(trip, line, rows, mask, ends)
                _add(evaluated, hot, at - since)
                rows = _without(rows, hot)
                if not len(rows):
                    break
                look = Look(trip.pkts, rows)
            if not len(hit):
                continue
            back = self._hit(trip, table, line, hit, look if len(hit) == len(rows) else None, ends, home)
            if len(back) == len(hit):
                continue
            gone = hit if not len(back) else _without(hit, back)
            _add(evaluated, gone, at - since)
            if len(gone) == len(rows):
                rows = NO_ROWS
                break
            rows = rows[~mask] if mask is not None and gone is hit else _without(rows, gone)
            look = Look(trip.pkts, rows)
        if len(rows):
            _add(evaluated, rows, end - since)
            if code.chain.policy is None:
                trip.step(rows, code.last)
        return _merged(entered, rows, home)

    def _hit(
        self,
        trip: Trip,
        table: str,
        line: Line,
        hit: Rows,
        look: Look | None,
        ends: list[tuple[Rows, int]],
        home: list[Rows],
    ) -> Rows:
        """Count the rows that match a line, do what it says, return those that go on to the next line."""
        rule = line.rule
        self._count(rule, len(hit), _bytes(trip.pkts, hit))
        trip.step(hit, line.step)
        if line.act is not None:
            if trip.fickle is not None and rule.target is not None and not rule.target.steadfast(trip.node):
                trip.waver(hit)
            if trip.open_doubts and rule.target is not None and rule.target.name not in _MOVES_NOTHING:
                trip.moved.update(hit.tolist())
            verdict = line.act(trip, hit, line.step)
            if isinstance(verdict, int):
                return self._decided(trip, line, hit, verdict, ends, home)
            first = int(verdict[0])
            if len(hit) == 1 or (verdict == first).all():
                return self._decided(trip, line, hit, first, ends, home)
            for value in (DROP, ACCEPT, STOLEN, RETURN):
                some = hit[verdict == value]
                if len(some):
                    self._decided(trip, line, some, value, ends, home)
            going: Rows = hit[verdict == CONTINUE]
            return going
        if line.kind == NONE:
            return hit
        back = self._through(trip, table, self._code(table, line.sub), hit, look or Look(trip.pkts, hit), ends)
        if line.kind == GOTO:
            if len(back):
                home.append(back)
            return NO_ROWS
        return back

    def _decided(
        self, trip: Trip, line: Line, hit: Rows, verdict: int, ends: list[tuple[Rows, int]], home: list[Rows]
    ) -> Rows:
        if verdict == CONTINUE:
            return hit
        if verdict == RETURN:
            home.append(hit)
        elif verdict != ACCEPT:
            ends.append((hit, verdict))
            if verdict == DROP:
                alive = trip.travelling(hit)  # a target may have ended them itself, and said more about it
                if len(alive):
                    trip.end(alive, line.reason)
        return NO_ROWS

    def _hotdrop(
        self, trip: Trip, line: Line, rows: Rows, mask: Mask | None, ends: list[tuple[Rows, int]]
    ) -> tuple[Rows, Mask | None]:
        """(rows that a match wants dead, mask over the rows that stay): malformed packets, uncounted."""
        assert trip.hot is not None
        hot = np.unique(trip.hot) if len(trip.hot) > 1 else trip.hot
        trip.hot = None
        trip.end(hot, f"{line.step.text} malformed packet")
        ends.append((hot, DROP))
        if mask is not None:
            keep = np.ones(len(rows), bool)
            keep[np.searchsorted(rows, hot)] = False
            mask = mask[keep]
        return hot, mask

    def _spread(
        self, trip: Trip, table: str, stretch: Stretch, rows: Rows, ends: list[tuple[Rows, int]], home: list[Rows]
    ) -> Rows:
        """Take many rows through an indexed stretch; returns those that go on behind it.

        What remembers nothing goes by lanes, all rows together. The other lines are dealt with in ascending order,
        each once, with all rows that come to it: as in the linear walk.
        """
        waiting: dict[int, list[Rows]] = {}
        todo: list[int] = []
        out: list[Rows] = []
        end = stretch.end
        program = None
        if len(rows) >= LANES_FROM and not trip.open_doubts:
            program = self._program(trip.paths, table, stretch)
            if trip.fickle is not None and table != "nat" and stretch.wavers(trip):
                trip.waver(rows)

        def send(some: Rows, at: NDArray[np.int64]) -> None:
            while len(some):
                nxt = self._next(trip, stretch, some, at, ends)
                gone = nxt < 0
                if gone.any():
                    some, nxt, at = some[~gone], nxt[~gone], at[~gone]
                trip.pkts.evaluated[some] += (np.minimum(nxt + 1, end) - at).astype(np.int32)
                back = NO_ROWS
                if program is not None:
                    by_lane = program.in_lane[nxt - stretch.start]
                    if by_lane.any():
                        lanes, places = some[by_lane], nxt[by_lane]
                        fate = program.run(trip, lanes, places - stretch.start)
                        if (fate == KILLED).any():
                            ends.append((lanes[fate == KILLED], DROP))
                        if (fate == HOME).any():
                            home.append(lanes[fate == HOME])
                        back, at = lanes[fate == BEHIND], places[fate == BEHIND] + 1
                        some, nxt = some[~by_lane], nxt[~by_lane]
                for line, which in groups(nxt, some):
                    if line == end:
                        out.append(which)
                    elif line in waiting:
                        waiting[line].append(which)
                    else:
                        waiting[line] = [which]
                        heapq.heappush(todo, line)
                some = back

        send(rows, np.full(len(rows), stretch.start, np.int64))
        while todo:
            line = heapq.heappop(todo)
            parts = waiting.pop(line)
            hit = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
            back = self._hit(trip, table, stretch.lines[line], hit, None, ends, home)
            if len(back):
                send(back, np.full(len(back), line + 1, np.int64))
        if not out:
            return NO_ROWS
        return out[0] if len(out) == 1 else np.sort(np.concatenate(out))

    def prepare(self, paths: Paths, links: list[str]) -> None:
        """Compile the long chains ahead of the first packet; the others are compiled when one comes to them."""
        self._recompile(links)
        for name, table in self.all.tables.items():
            for chain in table.chains.values():
                if len(chain.rules) >= self.index_from:
                    for stretch in self._code(name, chain.name).stretches.values():
                        stretch.prepare()
                        self._program(paths, name, stretch)

    def _program(self, paths: Paths, table: str, stretch: Stretch) -> Program:
        if stretch.program is None:
            whole = self.all.tables[table]
            chain = stretch.lines[stretch.start].chain
            stretch.program = Program(
                paths, whole, chain, stretch.start, stretch.end, self.pure, lambda rule: base_tests(rule, self._links)
            )
            if self._counted is not None:
                stretch.program.draft()
            self._programs.append(stretch.program)
        return stretch.program

    def settle(self) -> None:
        """Write down in the rules what the lanes counted; forget the lanes of tables that are no more."""
        for program in self._programs:
            program.settle()
        self._programs = [p for p in self._programs if self.all.tables.get(p.table.name) is p.table]

    def _next(
        self, trip: Trip, stretch: Stretch, rows: Rows, at: NDArray[np.int64], ends: list[tuple[Rows, int]]
    ) -> NDArray[np.int64]:
        """int64[len(rows)]: the next line that matches, stretch.end, or -1 for rows that died on the way."""
        odd = odd_rows(trip.pkts, rows)
        if not odd.any():
            return stretch.next_many(trip, rows, at)
        nxt = np.full(len(rows), stretch.end, np.int64)
        even = np.flatnonzero(~odd)
        if len(even):
            nxt[even] = stretch.next_many(trip, rows[even], at[even])
        who = np.flatnonzero(odd)
        for line in range(int(at[who].min()), stretch.end):
            asked = who[at[who] <= line]
            some = rows[asked]
            hit, _ = stretch.lines[line].hits(trip, some, Look(trip.pkts, some))
            if trip.hot is not None:
                hot, _ = self._hotdrop(trip, stretch.lines[line], some, None, ends)
                dead = np.searchsorted(rows, hot)
                trip.pkts.evaluated[hot] += (line + 1 - at[dead]).astype(np.int32)
                nxt[dead] = -1
            nxt[np.searchsorted(rows, hit)] = line
            who = who[nxt[who] == stretch.end]
            if not len(who):
                break
        return nxt


def _bytes(pkts: Packets, rows: Rows) -> int:
    return pkts.length.item(rows.item()) if len(rows) == 1 else int(pkts.length[rows].sum())


def _add(column: NDArray[np.int32], rows: Rows, n: int) -> None:
    if len(rows) == 1:
        column[rows.item()] += n
    else:
        column[rows] += n


def _without(rows: Rows, gone: Rows) -> Rows:
    """`rows` less `gone`, which is some of them; both ascending."""
    if len(gone) == len(rows):
        return NO_ROWS
    keep = np.ones(len(rows), bool)
    keep[np.searchsorted(rows, gone)] = False
    return rows[keep]


def _merged(entered: Rows, rows: Rows, home: list[Rows]) -> Rows:
    """Those of `entered` that are in `rows` or in one of `home`, ascending."""
    if not home:
        return rows
    if len(entered) == 1:
        return entered
    if len(home) == 1 and not len(rows):
        return home[0]
    keep = np.zeros(len(entered), bool)
    for some in (rows, *home):
        keep[np.searchsorted(entered, some)] = True
    return entered[keep]
