"""Tables: chains of rules, the walk of packets through them, and the text of iptables-save.

    iptables-save text --read--> Table{Chain[Rule]} --compiled on first use--> _Code[_Line, _Stretch] --walk--> verdicts
                       <--save--

A walk takes a batch through one table at one hook, rule by rule: each rule is asked of all rows that stand before it,
in arrival order, so that a rule with memory sees its packets as they came. Rows that jump come back to the next rule,
rows that are decided leave. A long run of rules that ask for addresses and ports is not asked rule by rule: an index
(`_Stretch`) names, for each row, the next rule that can match it; the answers are those of the linear walk.
"""

from __future__ import annotations

import heapq
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netemu import rare  # noqa: F401 (its matches enter the registry)
from netemu.doubt import HARMLESS, VERDICTS, settle_walk, stand_in, unmodelled_match, unmodelled_target
from netemu.errors import REFUSED, UNSUPPORTED, Problem, Refused, Unsupported
from netemu.grammar import Bad, Extension, Failed, Given, NotModelled, RuleContext
from netemu.hashing import Table as HashTable
from netemu.matches import ALL_HOOKS, MATCHES, OTHER_MATCHES, Match, Tcp, Udp
from netemu.packets import OFFSET_MASK, TCP, UDP, Mask, Packets, Rows
from netemu.paths import Step
from netemu.targets import (
    ACCEPT,
    CONTINUE,
    DROP,
    NAT_IS_NO_FILTER,
    OTHER_TARGETS,
    RETURN,
    STOLEN,
    TARGETS,
    Target,
    dotted,
    integer,
)

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

HOOKS: dict[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}

_PROTOCOLS = (
    "0:ip 1:icmp 2:igmp 3:ggp 4:ipencap 5:st 6:tcp 8:egp 9:igp 12:pup 17:udp 20:hmp 22:xns-idp 27:rdp 29:iso-tp4 "
    "33:dccp 36:xtp 37:ddp 38:idpr-cmtp 41:ipv6 43:ipv6-route 44:ipv6-frag 45:idrp 46:rsvp 47:gre 50:esp 51:ah 57:skip "
    "58:ipv6-icmp 59:ipv6-nonxt 60:ipv6-opts 73:rspf 81:vmtp 88:eigrp 89:ospf 93:ax.25 94:ipip 97:etherip 98:encap "
    "103:pim 108:ipcomp 112:vrrp 115:l2tp 124:isis 132:sctp 133:fc 135:mobility-header 136:udplite 137:mpls-in-ip "
    "138:manet 139:hip 140:shim6 141:wesp 142:rohc 143:ethernet"
)
PROTOCOL_NAMES: dict[int, str] = {int(n): name for n, name in (word.split(":") for word in _PROTOCOLS.split())}
PROTOCOLS: dict[str, int] = {name: n for n, name in PROTOCOL_NAMES.items()} | {
    "all": 0,
    "icmpv6": 58,
    "ipv6-mh": 135,
    "mh": 135,
    "ospfigp": 89,
}

NO_ROWS: Rows = np.zeros(0, np.intp)
_ONE_ACCEPTED = np.ones(1, np.int8)
_ONE_ACCEPTED.flags.writeable = False
_VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP}
_MOVES_NOTHING = HARMLESS | {*VERDICTS, "RETURN"}
_POLICY_NAMES = {ACCEPT: "ACCEPT", DROP: "DROP"}

#: a stretch of keyable rules shorter than this is walked rule by rule
INDEX_FROM = 24
#: an index of more kinds of rule than this costs more probes than it saves
MOST_KINDS = 12


# ---- rules ----------------------------------------------------------------------------------------------------------


class Rule:
    """One rule: what a packet must look like, and what happens to one that does.

    src, dst            (address, mask, inverted) or None
    link_in, link_out   (name, inverted) or None; a name may end in `+`
    proto               (number, inverted) or None
    fragment            True for `-f`, False for `! -f`, None
    matches             the extensions, in the order in which they are asked
    target              what to do, None: nothing, or a jump
    jump, goto          name of the user chain to go to; goto: without coming back here
    packets, bytes      how many matched
    origin              where it was written
    """

    __slots__ = (
        "_text",
        "bytes",
        "dst",
        "fragment",
        "goto",
        "jump",
        "link_in",
        "link_out",
        "matches",
        "origin",
        "packets",
        "proto",
        "src",
        "target",
    )

    def __init__(self) -> None:
        self.src: tuple[int, int, bool] | None = None
        self.dst: tuple[int, int, bool] | None = None
        self.link_in: tuple[str, bool] | None = None
        self.link_out: tuple[str, bool] | None = None
        self.proto: tuple[int, bool] | None = None
        self.fragment: bool | None = None
        self.matches: tuple[Match, ...] = ()
        self.target: Target | None = None
        self.jump = ""
        self.goto = False
        self.packets = 0
        self.bytes = 0
        self.origin: Origin = NOWHERE
        self._text: str | None = None

    def copy(self) -> Rule:
        """The same rule with counters of its own."""
        new = Rule.__new__(Rule)
        for name in Rule.__slots__:
            setattr(new, name, getattr(self, name))
        return new

    @property
    def text(self) -> str:
        """What follows `-A CHAIN` in iptables-save; "" for a rule that says nothing."""
        if self._text is None:
            self._text = " ".join([*self.criteria(), *self.action()])
        return self._text

    def forget_text(self) -> None:
        """A chain that it names has another name now."""
        self._text = None

    def criteria(self) -> list[str]:
        """The conditions, one text each, as iptables-save prints them."""
        out = []
        for flag, net in (("-s", self.src), ("-d", self.dst)):
            if net and (net[1] or net[0] or net[2]):
                out.append(f"{'! ' if net[2] else ''}{flag} {dotted(net[0])}/{_mask_text(net[1])}")
        for flag, link in (("-i", self.link_in), ("-o", self.link_out)):
            if link and link[0] != "+":
                out.append(f"{'! ' if link[1] else ''}{flag} {link[0]}")
        if self.proto:
            number, inverted = self.proto
            out.append(f"{'! ' if inverted else ''}-p {PROTOCOL_NAMES.get(number, number)}")
        if self.fragment is not None:
            out.append("-f" if self.fragment else "! -f")
        for match in self.matches:
            words = match.words()
            out.append(f"-m {match.name} {words}" if words else f"-m {match.name}")
        return out

    def action(self) -> list[str]:
        """The `-j` or `-g` part, or nothing."""
        if self.jump:
            return [f"{'-g' if self.goto else '-j'} {self.jump}"]
        if self.target is None:
            return []
        words = self.target.words()
        return [f"-j {self.target.name} {words}" if words else f"-j {self.target.name}"]

    @property
    def bare(self) -> bool:
        """It asks for nothing at all."""
        return not (
            self.matches
            or self.link_in
            or self.link_out
            or self.proto
            or self.fragment is not None
            or (self.src and any(self.src))
            or (self.dst and any(self.dst))
        )

    @property
    def extensions(self) -> Iterator[Extension]:
        yield from self.matches
        if self.target is not None:
            yield self.target

    @property
    def sets(self) -> Iterator[str]:
        """Names of the ipsets that it uses, once for each use."""
        for extension in self.extensions:
            yield from getattr(extension, "sets", ())


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule was written: file ("" for a command), 1-based line, the text."""

    file: str = ""
    line: int = 0
    text: str = ""


NOWHERE = Origin()


class Chain:
    """A list of rules. A built-in chain has a policy (ACCEPT or DROP) and counts what reaches it."""

    def __init__(self, name: str, policy: int | None = None) -> None:
        self.name = name
        self.policy = policy
        self.packets = 0
        self.bytes = 0
        self.rules: list[Rule] = []
        self.code: _Code | None = None

    def copy(self) -> Chain:
        """Another chain with the same rules in it."""
        new = Chain(self.name, self.policy)
        new.packets, new.bytes = self.packets, self.bytes
        new.rules = self.rules[:]
        return new


class Table:
    """The chains of one table, by name; built-in chains first, in the order of their hooks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.chains = {hook: Chain(hook, ACCEPT) for hook in HOOKS[name]}

    def copy(self) -> Table:
        """A draft to change: chains of its own, the same rules in them."""
        new = Table(self.name)
        new.chains = {name: chain.copy() for name, chain in self.chains.items()}
        return new

    def in_order(self) -> list[Chain]:
        """Chains as they are printed: built-in ones, then the others by name."""
        own = [chain for chain in self.chains.values() if chain.policy is not None]
        return own + sorted((c for c in self.chains.values() if c.policy is None), key=lambda c: c.name.encode())


def _mask_text(mask: int) -> str:
    holes = (~mask + 1) & ~mask & 0xFFFFFFFF
    return dotted(mask) if holes else str(mask.bit_count())


# ---- memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """A rule whose answer or deed depends on earlier packets.

    touch    what it touches: "rule", "flow", "set:NAME", "recent:NAME", ...
    hooks    built-in chains from which it can be reached
    one_way  it can be reached in exactly one way, so that a run of packets comes to it in arrival order
    target   it is the rule's target that touches it (which is done only to packets that match), not a match
    extension  the match or target itself
    """

    touch: str
    table: str
    chain: str
    number: int
    rule: Rule
    hooks: frozenset[str]
    one_way: bool
    target: bool
    extension: Extension


# ---- the compiled form ----------------------------------------------------------------------------------------------

SRC, DST, PROTO, FRAG, IN, OUT = range(6)
_NONE, _JUMP, _GOTO, _ACT = range(4)


class _Look:
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
            got = (getattr(self.pkts, _COLUMN_NAMES[which]))[self.rows]
            if which == FRAG:
                got = got & OFFSET_MASK
            self.columns[which] = got
        return got


_COLUMN_NAMES = ("src", "dst", "proto", "frag", "link_in", "link_out")


class _Line:
    """A rule, ready to be asked.

    tests   (column, mask, value, want): ((column & mask) == value) is want; mask -1: all of it
    links   (column, bool[links + 1], the same as a list): indexed by link + 1
    asks    extensions that can say no, in order
    """

    __slots__ = ("_step", "act", "asks", "chain", "kind", "links", "number", "rule", "says", "sub", "table", "tests")

    def __init__(self, table: str, chain: Chain, number: int, rule: Rule, names: list[str]) -> None:
        self.rule = rule
        self.number = number
        self.tests, self.links = _base_tests(rule, names)
        asks = [m for m in rule.matches if not m.always]
        asks.sort(key=lambda m: m.unmodelled)  # what netemu cannot judge is asked last
        self.asks = tuple(asks)
        self.says = tuple(m.says if type(m).says is not Match.says else None for m in self.asks)
        self.table, self.chain = table, chain
        self._step: Step | None = None
        self.sub = rule.jump
        self.act = rule.target.act if rule.target is not None else None
        self.kind = (_GOTO if rule.goto else _JUMP) if rule.jump else _NONE if rule.target is None else _ACT

    @property
    def step(self) -> Step:
        """What is written on the path of a packet that matches. Made when first needed: most rules never are."""
        if self._step is None:
            rule, table, chain = self.rule, self.table, self.chain
            kind = "rule"
            if rule.bare and rule.target is not None and rule.target.name in ("ACCEPT", "DROP", "RETURN", "QUEUE"):
                kind = "return" if chain.policy is None else "policy"  # the kernel takes it for the end of the chain
            text = f"{table}:{chain.name}:{kind}:{self.number}"
            self._step = Step(table, text, f"-A {chain.name} {rule.text}".rstrip())
        return self._step

    @property
    def reason(self) -> str:
        """Why a packet died here."""
        return f"{self.step.text} {self.rule.target.name if self.rule.target else ''}"

    def hits(self, trip: Trip, rows: Rows, look: _Look) -> tuple[Rows, Mask | None]:
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
        for match in self.asks:
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
        for match, says in zip(self.asks, self.says, strict=True):
            if says is not None:
                if not says(trip, rows.item()):
                    return NO_ROWS, None
            elif not match.mask(trip, rows)[0]:
                return NO_ROWS, None
        return rows, None


Tests = tuple[tuple[int, int, int, bool], ...]
Links = tuple[tuple[int, Mask, list[bool]], ...]


def _base_tests(rule: Rule, names: list[str]) -> tuple[Tests, Links]:
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


def _asked(look: _Look, tests: Tests, links: Links) -> Mask | None:
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


class _Code:
    """A chain, ready to be walked: its lines, its hidden last rule, and the stretches that have an index."""

    __slots__ = ("chain", "last", "lines", "reason", "stretches")

    def __init__(
        self, table: str, chain: Chain, names: list[str], index_from: int, pure: Callable[[Match], bool]
    ) -> None:
        self.chain = chain
        self.lines = [_Line(table, chain, n, rule, names) for n, rule in enumerate(chain.rules, 1)]
        kind = "return" if chain.policy is None else "policy"
        text = "" if chain.policy is None else f"-P {chain.name} {_POLICY_NAMES[chain.policy]}"
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
        mask = _asked(_Look(trip.pkts, rows), self.tests, self.links) if self.tests or self.links else None
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


def _keyed(line: _Line, pure: Callable[[Match], bool]) -> _Keyed | None:
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


def _stretches(lines: list[_Line], index_from: int, pure: Callable[[Match], bool]) -> dict[int, _Stretch]:
    """First line -> stretch. Lines are numbered from 0 here."""
    out: dict[int, _Stretch] = {}
    if len(lines) < index_from:
        return out
    run: list[_Keyed] = []
    kinds: set[Kind] = set()

    def close(end: int) -> None:
        if len(run) >= index_from:
            out[end - len(run)] = _Stretch(end - len(run), end, lines, run[:])
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


class _Stretch:
    """An index over consecutive lines start..end-1: which is the next that matches?

    One hash table for each kind of rule, from key to the ascending lines that have it. A line's rest (inverted
    conditions, marks, sets, states) is asked only of rows that have its key.
    Cost: one probe for each kind, whatever the number of rules.
    """

    def __init__(self, start: int, end: int, lines: list[_Line], keyed: list[_Keyed]) -> None:
        self.start, self.end, self.lines, self.keyed = start, end, lines, keyed
        self.plain = np.array([k.plain for k in keyed] + [True])
        self.all_plain = bool(self.plain.all())
        by_kind: dict[Kind, dict[Key, list[int]]] = {}
        for at, k in enumerate(keyed, start):
            by_kind.setdefault(k.kind, {}).setdefault(k.key, []).append(at)
        self.kinds = list(by_kind.items())
        self.ports = any(kind[3] or kind[4] for kind, _ in self.kinds)
        self._tables: list[_KindTable] | None = None

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

    def next_many(self, trip: Trip, rows: Rows, at: int) -> NDArray[np.int64]:
        """int64[len(rows)]: the first line from `at` on that matches each row, or end. Not for odd rows."""
        if self._tables is None:
            self._tables = [_KindTable(kind, lines, self.end) for kind, lines in self.kinds]
        places = []
        best = np.full(len(rows), self.end, np.int64)
        words: dict[Kind, Any] = {}
        for table in self._tables:
            place = table.find(trip.pkts, rows, at, words)
            places.append(place)
            np.minimum(best, table.lines[place], out=best)
        if self.all_plain:
            return best
        open_ = np.flatnonzero(~self.plain[best - self.start])
        while len(open_):
            failed = []
            for line, which in _groups(best[open_], open_):
                said = self.keyed[line - self.start].rest(trip, rows[which])
                if not said.all():
                    failed.append(which[~said])
            if not failed:
                break
            again = np.concatenate(failed)
            now = best[again]
            best[again] = self.end
            for table, place in zip(self._tables, places, strict=True):
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
        ids = self.table.add(_key_words(*keys.T))
        self.first = np.zeros(int(ids.max()) + 1, np.int64)
        flat: list[int] = [end]  # place 0: no line
        starts = []
        for lines in by_key.values():
            starts.append(len(flat))
            flat += lines
            flat.append(end)
        self.first[ids] = starts
        self.lines = np.array(flat, np.int64)

    def find(self, pkts: Packets, rows: Rows, at: int, words: dict[Kind, Any]) -> NDArray[np.int64]:
        """int64[len(rows)]: places in `lines` of the first line from `at` on."""
        smask, dmask, p, s, d, i, o = self.kind
        zero = np.zeros(len(rows), np.int64)
        ids = self.table.find(
            _key_words(
                pkts.src[rows] & smask if smask else zero,
                pkts.dst[rows] & dmask if dmask else zero,
                pkts.proto[rows] if p else zero,
                pkts.sport[rows] if s else zero,
                pkts.dport[rows] if d else zero,
                pkts.link_in[rows] if i else zero,
                pkts.link_out[rows] if o else zero,
            )
        )
        place = np.where(ids >= 0, self.first[ids], 0)
        behind = np.flatnonzero(self.lines[place] < at)
        while len(behind):
            place[behind] += 1
            behind = behind[self.lines[place[behind]] < at]
        return place


def _key_words(
    src: NDArray[Any],
    dst: NDArray[Any],
    proto: NDArray[Any],
    sport: NDArray[Any],
    dport: NDArray[Any],
    link_in: NDArray[Any],
    link_out: NDArray[Any],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The key in two words. Links take 12 bits each (-1, no link, is 4095)."""
    u = np.uint64
    addresses = (src.astype(u) << u(32)) | dst.astype(u)
    links = ((link_in.astype(np.int64) & 4095) << 12) | (link_out.astype(np.int64) & 4095)
    rest = (links.astype(u) << u(40)) | (proto.astype(u) << u(32)) | (sport.astype(u) << u(16)) | dport.astype(u)
    return addresses, rest


def _groups(values: NDArray[np.int64], rows: Rows) -> Iterator[tuple[int, Rows]]:
    """(value, rows that have it), values ascending, rows in the order given."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    starts = [0, *cuts.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        if stop > start:
            yield int(ordered[start]), rows[order[start:stop]]


def _odd(pkts: Packets, rows: Rows) -> Mask:
    """bool[len(rows)]: later fragments, TCP and UDP packets without a whole header. Matches judge those themselves."""
    proto = pkts.proto[rows]
    have = np.minimum(pkts.length[rows], pkts.cap[rows]) - pkts.ihl[rows]
    odd: Mask = (pkts.frag[rows] & OFFSET_MASK) != 0
    odd |= ((proto == TCP) & (have < 20)) | ((proto == UDP) & (have < 8))
    return odd


def _odd_one(pkts: Packets, row: int) -> bool:
    """The same of one packet."""
    proto = pkts.proto.item(row)
    have = min(pkts.length.item(row), pkts.cap.item(row)) - pkts.ihl.item(row)
    return bool(pkts.frag.item(row) & OFFSET_MASK) or (proto == TCP and have < 20) or (proto == UDP and have < 8)


# ---- all tables -----------------------------------------------------------------------------------------------------


class Tables:
    """The tables of a node: text in, text out, commands, and the walk.

    version    grows with every change
    on_change  called after every change
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.tables: dict[str, Table] = {}
        self.order: list[str] = []  # touched last comes first
        self.version = 0
        self.on_change: list[Callable[[], None]] = []
        self.index_from = INDEX_FROM
        self.uncertain = False  # keep what is not modelled as what might match
        self._links: list[str] = []
        self._needed: tuple[int, bool] = (-1, False)
        self._defrag: tuple[int, bool] = (-1, False)
        self._memories: tuple[int, tuple[Memory, ...]] = (-1, ())
        self._written: tuple[int, frozenset[str]] = (-1, frozenset())

    # ---- what there is -----------------------------------------------------------------------------------------

    def has(self, table: str, hook: str) -> bool:
        """The table was touched, and stands at this hook."""
        return table in self.tables and hook in HOOKS[table]

    def rules(self) -> Iterator[tuple[str, Chain, int, Rule]]:
        """(table, chain, number from 1, rule) of every rule, as printed."""
        for name in self.order:
            for chain in self.tables[name].in_order():
                for number, rule in enumerate(chain.rules, 1):
                    yield name, chain, number, rule

    @property
    def conntrack_needed(self) -> bool:
        """Some rule needs connection tracking: it is on."""
        if self._needed[0] != self.version:
            needed = any(ext.needs_conntrack for _, _, _, rule in self.rules() for ext in rule.extensions)
            self._needed = (self.version, needed)
        return self._needed[1]

    @property
    def defrag_needed(self) -> bool:
        """Some rule needs whole packets: fragments are put together even without connection tracking."""
        if self._defrag[0] != self.version:
            needed = any(ext.needs_defrag for _, _, _, rule in self.rules() for ext in rule.extensions)
            self._defrag = (self.version, needed)
        return self._defrag[1]

    @property
    def memories(self) -> tuple[Memory, ...]:
        """Every rule with memory that a packet can reach (see Memory). A set that nothing changes is no memory."""
        if self._memories[0] != self.version:
            self._memories = (self.version, tuple(self._find_memories()))
        return tuple(m for m in self._memories[1] if m.touch[:4] != "set:" or self._changes(m.touch[4:]))

    def _find_memories(self) -> Iterator[Memory]:
        for name in self.order:
            table = self.tables[name]
            hooks, ways = _reach(table)
            for chain in table.in_order():
                if chain.name not in ways:
                    continue
                for number, rule in enumerate(chain.rules, 1):
                    for extension in rule.extensions:
                        for touch in sorted(extension.touches):
                            yield Memory(
                                touch,
                                name,
                                chain.name,
                                number,
                                rule,
                                hooks[chain.name],
                                ways[chain.name] == 1,
                                extension is rule.target,
                                extension,
                            )

    def _pure(self, match: Match) -> bool:
        """What it says depends on nothing that another packet does, so it may be asked ahead of its turn."""
        return all(touch[:4] == "set:" and not self._changes(touch[4:]) for touch in match.touches)

    def _changes(self, name: str) -> bool:
        """Packets change this set: a rule writes to it (or to a member of it), or it keeps counters."""
        if self._written[0] != self.version:
            targets = (rule.target for *_, rule in self.rules() if rule.target is not None)
            self._written = (self.version, frozenset(touch for target in targets for touch in target.touches))
        found = self.node.sets.get(name)
        inside = getattr(found, "named", {}).values()  # sets in a list:set
        written = self._written[1]
        return any(f"set:{one}" in written for one in (name, *inside)) or (found is not None and found.remembers)

    # ---- the walk ----------------------------------------------------------------------------------------------

    def walk(self, trip: Trip, table: str, rows: Rows) -> NDArray[np.int8]:
        """Send `rows` through `table` at trip.hook.

        rows      ascending: arrival order is part of the meaning
        returns   int8[len(rows)]: ACCEPT 1, DROP 0 (those were ended), STOLEN 2
        Cost      for one row some microseconds a rule; for many a few array operations a rule
        """
        if not len(rows):
            return np.ones(0, np.int8)
        if len(self.node.routing.names) != len(self._links):
            self._recompile()
        code = self._code(table, trip.hook)
        ends: list[tuple[Rows, int]] = []
        left = self._through(trip, table, code, rows, _Look(trip.pkts, rows), ends)
        if len(left):
            chain = code.chain
            chain.packets += len(left)
            chain.bytes += _bytes(trip.pkts, left)
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

    def _code(self, table: str, name: str) -> _Code:
        chain = self.tables[table].chains[name]
        if chain.code is None:
            chain.code = _Code(table, chain, self._links, self.index_from, self._pure)
        return chain.code

    def _recompile(self) -> None:
        self._links = list(self.node.routing.names)
        for table in self.tables.values():
            for chain in table.chains.values():
                chain.code = None

    def _through(
        self, trip: Trip, table: str, code: _Code, rows: Rows, look: _Look, ends: list[tuple[Rows, int]]
    ) -> Rows:
        """Rows that come back from a chain: those that fell off its end and those that said RETURN."""
        evaluated = trip.pkts.evaluated
        lines, stretches = code.lines, code.stretches
        entered = rows
        home: list[Rows] = []  # rows that said RETURN, or went to another chain for good and came back from there
        odd = bool(stretches) and look.one is not None and _odd_one(trip.pkts, rows.item())
        stretch: _Stretch | None = None
        at = since = 0  # rows that are here have looked at the lines since..at
        end = len(lines)
        while at < end:
            hit: Rows
            mask: Mask | None = None
            if stretches and not odd:
                if at in stretches:
                    stretch = stretches[at]
                if stretch is not None:
                    if look.one is None:
                        evaluated[rows] += at - since
                        rows = self._spread(trip, table, stretch, rows, ends, home)
                        at = since = stretch.end
                        stretch = None
                        if not len(rows):
                            break
                        look = _Look(trip.pkts, rows)
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
                look = _Look(trip.pkts, rows)
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
            look = _Look(trip.pkts, rows)
        if len(rows):
            _add(evaluated, rows, end - since)
            if code.chain.policy is None:
                trip.step(rows, code.last)
        return _merged(entered, rows, home)

    def _hit(
        self,
        trip: Trip,
        table: str,
        line: _Line,
        hit: Rows,
        look: _Look | None,
        ends: list[tuple[Rows, int]],
        home: list[Rows],
    ) -> Rows:
        """Count the rows that match a line, do what it says, return those that go on to the next line."""
        rule = line.rule
        rule.packets += len(hit)
        rule.bytes += _bytes(trip.pkts, hit)
        trip.step(hit, line.step)
        if line.act is not None:
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
        if line.kind == _NONE:
            return hit
        back = self._through(trip, table, self._code(table, line.sub), hit, look or _Look(trip.pkts, hit), ends)
        if line.kind == _GOTO:
            if len(back):
                home.append(back)
            return NO_ROWS
        return back

    def _decided(
        self, trip: Trip, line: _Line, hit: Rows, verdict: int, ends: list[tuple[Rows, int]], home: list[Rows]
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
        self, trip: Trip, line: _Line, rows: Rows, mask: Mask | None, ends: list[tuple[Rows, int]]
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
        self, trip: Trip, table: str, stretch: _Stretch, rows: Rows, ends: list[tuple[Rows, int]], home: list[Rows]
    ) -> Rows:
        """Take many rows through an indexed stretch; returns those that go on behind it.

        Lines are dealt with in ascending order, each once, with all rows that come to it: as in the linear walk.
        """
        evaluated = trip.pkts.evaluated
        waiting: dict[int, list[Rows]] = {}
        todo: list[int] = []
        out: list[Rows] = []
        end = stretch.end

        def send(some: Rows, at: int) -> None:
            nxt = self._next(trip, stretch, some, at, ends)
            gone = nxt < 0
            if gone.any():
                some, nxt = some[~gone], nxt[~gone]
            evaluated[some] += np.minimum(nxt + 1, end) - at
            for line, which in _groups(nxt, some):
                if line == end:
                    out.append(which)
                elif line in waiting:
                    waiting[line].append(which)
                else:
                    waiting[line] = [which]
                    heapq.heappush(todo, line)

        send(rows, stretch.start)
        while todo:
            at = heapq.heappop(todo)
            parts = waiting.pop(at)
            hit = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
            back = self._hit(trip, table, stretch.lines[at], hit, None, ends, home)
            if len(back):
                send(back, at + 1)
        if not out:
            return NO_ROWS
        return out[0] if len(out) == 1 else np.sort(np.concatenate(out))

    def _next(
        self, trip: Trip, stretch: _Stretch, rows: Rows, at: int, ends: list[tuple[Rows, int]]
    ) -> NDArray[np.int64]:
        """int64[len(rows)]: the next line that matches, stretch.end, or -1 for rows that died on the way."""
        odd = _odd(trip.pkts, rows)
        if not odd.any():
            return stretch.next_many(trip, rows, at)
        nxt = np.full(len(rows), stretch.end, np.int64)
        even = np.flatnonzero(~odd)
        if len(even):
            nxt[even] = stretch.next_many(trip, rows[even], at)
        who = np.flatnonzero(odd)
        for line in range(at, stretch.end):
            some = rows[who]
            hit, _ = stretch.lines[line].hits(trip, some, _Look(trip.pkts, some))
            if trip.hot is not None:
                hot, _ = self._hotdrop(trip, stretch.lines[line], some, None, ends)
                trip.pkts.evaluated[hot] += line + 1 - at
                nxt[np.searchsorted(rows, hot)] = -1
            nxt[np.searchsorted(rows, hit)] = line
            who = who[nxt[who] == stretch.end]
            if not len(who):
                break
        return nxt

    # ---- text --------------------------------------------------------------------------------------------------

    def save(self, counters: bool = True, table: str | None = None) -> str:
        """iptables-save text: the table touched last first, counters of rules only when asked for."""
        now = time.asctime(time.gmtime(self.node.now // 1_000_000_000))
        out = []
        for name in self.order if table is None else [table]:
            out.append(f"# Generated by iptables-save v1.8.9 on {now}")
            out.append(f"*{name}")
            chains = self.tables[name].in_order()
            for chain in chains:
                if chain.policy is None:
                    out.append(f":{chain.name} - [0:0]")
                else:
                    out.append(f":{chain.name} {_POLICY_NAMES[chain.policy]} [{chain.packets}:{chain.bytes}]")
            for chain in chains:
                for rule in chain.rules:
                    head = f"[{rule.packets}:{rule.bytes}] " if counters else ""
                    out.append(f"{head}-A {chain.name} {rule.text}".rstrip())
            out.append("COMMIT")
            out.append(f"# Completed on {now}")
        return "".join(line + "\n" for line in out)

    def read(self, text: str, file: str, problems: list[Problem], noflush: bool = False) -> None:
        """Load iptables-save text, as iptables-restore does; every table of it that has no problem is in force then.

        Counters are taken as they stand. Every problem is appended to `problems`; nothing is raised.
        """
        _Restore(self, file, problems, noflush).read(text)

    def restore(self, text: str, options: Sequence[str] = (), file: str = "") -> None:
        """Do what `iptables-restore` does with the text: stop at the first problem; tables before it are in force.

        options  -n (--noflush), -c (--counters: take those of the text), -T TABLE, -t (--test), -v, -w
        Raises   Refused with the tool's exit status; Unsupported
        """
        problems: list[Problem] = []
        reading = _Restore(self, file, problems, False)
        reading.strict, reading.counters = True, False
        words = list(options)
        while words:
            word = words.pop(0)
            if word in ("-n", "--noflush"):
                reading.noflush = True
            elif word in ("-c", "--counters"):
                reading.counters = True
            elif word in ("-t", "--test"):
                reading.test = True
            elif word in ("-T", "--table") and words:
                reading.only = words.pop(0)
            elif word not in ("-v", "--verbose", "-w", "--wait"):
                raise Refused(f"iptables-restore: unrecognized option '{word}'", status=1)
        reading.read(text)
        if any(p.kind == REFUSED for p in problems):
            raise Refused(problems, status=reading.status)
        if problems:
            raise Unsupported(problems)

    # ---- change ------------------------------------------------------------------------------------------------

    def touch(self, name: str) -> None:
        """A table exists from its first use on."""
        if name not in self.tables:
            self.tables[name] = Table(name)
            self.order.insert(0, name)
            self._changed()

    def flaw(self, draft: Table) -> tuple[Rule | None, str] | None:
        """What the kernel would refuse in a draft: (rule, why), or None."""
        loop = _loop(draft)
        if loop:
            return loop
        hooks, _ = _reach(draft)
        for chain in draft.chains.values():
            from_hooks = hooks.get(chain.name, frozenset())
            for rule in chain.rules:
                for extension in rule.extensions:
                    why = _misplaced(extension, draft.name, from_hooks)
                    if why:
                        return rule, why
        return None

    def commit(self, draft: Table) -> None:
        """Put a draft in force. Every memory of a rule starts anew, those kept by name live on."""
        old = self.tables[draft.name]
        # what is new comes before what is old goes, so that nothing both use is ever without a user
        used = set()
        for chain in draft.chains.values():
            for number, rule in enumerate(chain.rules, 1):
                for match in rule.matches:
                    if not match.always:
                        used.add(id(match))
                        match.start(self.node, f"{draft.name}:{chain.name}:{number}")
                for name in rule.sets:
                    self.node.sets.refer(name)
        for chain in old.chains.values():
            for rule in chain.rules:
                for match in rule.matches:
                    if not match.always and id(match) not in used:
                        match.stop(self.node)
                for name in rule.sets:
                    self.node.sets.release(name)
        self.tables[draft.name] = draft
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        for hook in self.on_change:
            hook()

    # ---- commands ----------------------------------------------------------------------------------------------

    def run(self, argv: list[str], now: int) -> str:
        """Run an `iptables` command (or `iptables-save [-c] [-t TABLE]`); returns what it prints.

        Raises   Refused with the tool's words and exit status; Unsupported
        """
        words = list(argv)
        if words and words[0].rsplit("/", 1)[-1] in _PROGRAMS:
            program = words.pop(0).rsplit("/", 1)[-1]
            if program.endswith("-save"):
                return self._run_save(words)
        name = "filter"
        for at, word in enumerate(words):
            if word in ("-t", "--table") and at + 1 < len(words):
                name = words[at + 1]
            elif word.startswith("--table="):
                name = word[8:]
        if name not in HOOKS:
            raise Refused(
                f"can't initialize iptables table `{name}': Table does not exist (do you need to insmod?)", status=3
            )
        text = " ".join(["iptables", *argv] if argv[:1] and argv[0].startswith("-") else argv)
        known = name in self.tables
        draft = self.tables[name].copy() if known else Table(name)
        command = _Command(self, draft, restoring=False)
        try:
            done = command.do(words, Origin("", 0, text))
        except Bad as bad:
            status = 1 if isinstance(bad, Failed) else 2
            if status == 1 or command.opened:
                self.touch(name)  # the tool had opened the table before it was refused
            raise Refused(bad.what, text=text, span=_span(text, bad.word), hint=bad.hint, status=status) from None
        except NotModelled as gap:
            raise Unsupported(gap.what, text=text, span=_span(text, gap.word), hint=gap.hint) from None
        if done.changed:
            flaw = self.flaw(draft)
            if flaw:
                self.touch(name)
                raise Refused(flaw[1], text=text, status=1)
        self.touch(name)
        if done.changed:
            # whatever is changed, the tool gives the policies of the whole table counters of 0 (seen with 1.8.9)
            for hook in HOOKS[name] if known else ():
                chain, before = draft.chains[hook], self.tables[name].chains[hook]
                if (chain.packets, chain.bytes) == (before.packets, before.bytes):
                    chain.packets = chain.bytes = 0
            self.commit(draft)
        return done.output

    def _run_save(self, words: list[str]) -> str:
        table, counters = None, False
        while words:
            word = words.pop(0)
            if word in ("-c", "--counters"):
                counters = True
            elif word in ("-t", "--table") and words:
                table = words.pop(0)
                if table not in HOOKS:
                    raise Refused(
                        f"Cannot initialize: Table does not exist (do you need to insmod?): {table}", status=1
                    )
                self.touch(table)
            else:
                raise Refused(f"Unknown argument {word}", status=1)
        return self.save(counters, table)


_PROGRAMS = ("iptables", "iptables-legacy", "iptables-save", "iptables-legacy-save")


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


# ---- what the kernel checks -----------------------------------------------------------------------------------------


def _met(chain: Chain) -> Iterator[Rule]:
    """The rules of a chain up to the first that decides about every packet: behind it the kernel does not look."""
    for rule in chain.rules:
        yield rule
        if rule.bare and rule.target is not None and rule.target.name in ("ACCEPT", "DROP", "RETURN", "QUEUE"):
            return


def _reach(table: Table) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
    """For each chain that a packet can reach: the hooks it is reached from, and in how many ways (2: more than one).

    The table must be free of loops.
    """
    order: list[str] = []
    seen: set[str] = set()
    jumps = {name: [rule.jump for rule in _met(chain) if rule.jump] for name, chain in table.chains.items()}
    for hook in HOOKS[table.name]:
        stack: list[tuple[str, bool]] = [(hook, False)]
        while stack:
            name, done = stack.pop()
            if done:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack += [(jump, False) for jump in jumps[name]]
    hooks = {hook: frozenset((hook,)) for hook in HOOKS[table.name]}
    ways = dict.fromkeys(HOOKS[table.name], 1)
    for name in reversed(order):
        for jump in jumps[name]:
            hooks[jump] = hooks.get(jump, frozenset()) | hooks[name]
            ways[jump] = min(2, ways.get(jump, 0) + ways[name])
    return hooks, ways


def _loop(table: Table) -> tuple[Rule, str] | None:
    """A jump that closes a circle which a packet can reach, if there is one."""
    jumps = {name: [rule for rule in _met(chain) if rule.jump] for name, chain in table.chains.items()}
    done: set[str] = set()
    for hook in HOOKS[table.name]:
        stack = [(hook, iter(jumps[hook]))]
        above = {hook}
        while stack:
            name, rest = stack[-1]
            rule = next(rest, None)
            if rule is None:
                stack.pop()
                above.discard(name)
                done.add(name)
            elif rule.jump in above:
                return rule, f"Too many levels of symbolic links: chain {rule.jump} leads back to itself"
            elif rule.jump not in done:
                above.add(rule.jump)
                stack.append((rule.jump, iter(jumps[rule.jump])))
    return None


def _misplaced(extension: Extension, table: str, from_hooks: frozenset[str]) -> str:
    tables: Iterable[str] = getattr(extension, "tables", ())
    what = f"{'target' if isinstance(extension, Target) else 'match'} `{extension.name}'"
    if tables and table not in tables:
        return f"Invalid argument: {what} is only for the {' and '.join(sorted(tables))} table, not {table}"
    hooks: frozenset[str] = getattr(extension, "hooks", ALL_HOOKS)
    beyond = from_hooks - hooks
    if beyond:
        return (
            f"Invalid argument: {what} cannot be reached from {', '.join(sorted(beyond))}, "
            f"only from {', '.join(sorted(hooks))}"
        )
    return ""


# ---- reading text ---------------------------------------------------------------------------------------------------

# a word may hold a quoted part, which ends it; a backslash counts inside quotes only. The last form is a kindness:
# iptables-restore itself knows double quotes only
_WORD = re.compile(
    r"""'(?P<single>[^'"]*[ \t][^'"]*)'(?=[ \t]|$)"""
    r"""|(?P<head>[^ \t"]*)"(?P<quoted>(?:[^"\\]|\\.)*)"?"""
    r"""|(?P<bare>[^ \t"]+)"""
)


def split_words(line: str) -> list[str]:
    r"""The words of a line of iptables-save.

    >>> split_words(r'-A INPUT -m comment --comment "it\'s \"this\"" -j ACCEPT')
    ['-A', 'INPUT', '-m', 'comment', '--comment', 'it\'s "this"', '-j', 'ACCEPT']
    """
    if '"' not in line and "'" not in line:
        return line.split()
    out = []
    parts = line.split('"')
    if len(parts) % 2 and "'" not in line and "\\" not in line:
        outer, inner = parts[::2], parts[1::2]
        if all(p[-1:] == " " for p in outer[:-1]) and all(p[:1] in ("", " ") for p in outer[1:]):
            for plain, quoted in zip(outer, inner, strict=False):
                out += plain.split()
                out.append(quoted)
            return out + outer[-1].split()
    for m in _WORD.finditer(line):
        if m["bare"] is not None:
            out.append(m["bare"])
        elif m["quoted"] is not None:
            out.append(m["head"] + re.sub(r"\\(.)", r"\1", m["quoted"]))
        else:
            out.append(m["single"])
    return out


def _span(text: str, word: str) -> tuple[int, int] | None:
    """Where `word` stands in `text`, as a word of its own if it does."""
    if not word:
        return None
    m = re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text)
    at = m.start() if m else text.find(word)
    return (at, at + len(word)) if at >= 0 else None


class _SetNames(dict[str, int]):
    """The node's ipsets by name, looked up when asked: name -> dimension."""

    def __init__(self, sets: Any) -> None:
        super().__init__()
        self.sets = sets

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return self.sets.get(name) is not None

    def __getitem__(self, name: str) -> int:
        found = self.sets.get(name)
        if found is None:
            raise KeyError(name)
        return int(found.dimension)

    def get(self, name: str, default: Any = None) -> Any:
        found = self.sets.get(name)
        return default if found is None else int(found.dimension)


class _Restore:
    """One reading of iptables-restore text."""

    def __init__(self, tables: Tables, file: str, problems: list[Problem], noflush: bool) -> None:
        self.tables, self.file, self.problems, self.noflush = tables, file, problems, noflush
        self.test = False  # put nothing in force
        self.strict = False  # stop at the first problem, as the tool does
        self.counters = True  # take the counters of the text
        self.only: str | None = None  # the one table to be read
        self.status = 0  # what the tool's exit status would be
        self.draft: Table | None = None
        self.command: _Command | None = None
        self.clean = True  # the table that is being read has no problem so far
        self.skipping = False

    def problem(self, what: str, at: Origin, word: str = "", hint: str = "", kind: str = REFUSED) -> None:
        self.clean = False
        self.problems.append(Problem(kind, what, at.file, at.line, at.text, _span(at.text, word), hint))

    def read(self, text: str) -> None:
        number = 0
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            at = Origin(self.file, number, line)
            try:
                self.line(line, at)
            except Bad as bad:
                self.status = self.status or (1 if isinstance(bad, Failed) else 2)
                self.problem(bad.what, at, bad.word, bad.hint)
            except NotModelled as gap:
                self.problem(gap.what, at, gap.word, gap.hint, UNSUPPORTED)
            if self.strict and self.problems:
                return
        if self.draft is not None or (self.skipping and not self.only):
            self.status = self.status or 1
            self.problem(f"COMMIT expected at line {number}", Origin(self.file, number, ""))

    def line(self, line: str, at: Origin) -> None:
        if self.skipping:
            self.skipping = line != "COMMIT"
        elif self.draft is None or self.command is None:
            if not line.startswith("*"):
                raise Bad(
                    f"line {at.line} failed: no table", line.split()[0], "a table starts with a line as `*filter`"
                )
            name = line[1:].split()[0] if line[1:].split() else ""
            if name not in HOOKS:
                self.skipping = True
                raise Bad(f"unable to initialize table '{name}'", line, "one of " + ", ".join(HOOKS))
            if self.only not in (None, name):
                self.skipping = True
                return
            self.tables.touch(name)
            self.clean = True
            self.draft = self.tables.tables[name].copy()
            if not self.noflush:
                for chain in list(self.draft.chains.values()):
                    chain.rules = []
                    if chain.policy is None:
                        del self.draft.chains[chain.name]
            self.command = _Command(self.tables, self.draft, restoring=True)
        elif line == "COMMIT":
            self.commit(at)
        elif line.startswith(":"):
            self.chain(line, self.draft)
        else:
            counters = None
            if line.startswith("["):
                m = re.match(r"\[(\d+):(\d+)\]\s*", line)
                if not m:
                    raise Bad(f"Bad line {at.line}: need [packets:bytes]", line.split()[0])
                counters = (int(m[1]), int(m[2])) if self.counters else None
                line = line[m.end() :]
            self.command.do(split_words(line), at, counters)

    def chain(self, line: str, draft: Table) -> None:
        words = line[1:].split()
        name = words[0] if words else ""
        if len(words) < 2:
            raise Bad("policy invalid", line, "a chain is `:NAME POLICY [0:0]`, POLICY `-` for your own chains")
        if len(name) > 28:
            raise Bad(f"Invalid chain name `{name}' (28 chars max)", name)
        chain = draft.chains.get(name)
        if chain is None or (chain.policy is None and self.noflush):
            if name in ("ACCEPT", "DROP", "RETURN", "QUEUE"):
                raise Bad(f"error creating chain '{name}':File exists", name)
            chain = draft.chains[name] = Chain(name)
        elif chain.policy is None:
            raise Bad(f"error creating chain '{name}':File exists", name)
        if words[1] == "-":
            return
        if chain.policy is None:
            raise Bad(f"Can't set policy `{words[1]}' on `{name}': Bad built-in chain name", words[1])
        if words[1] not in _VERDICTS:
            raise Bad(f"Can't set policy `{words[1]}' on `{name}': Bad policy name", words[1], "ACCEPT or DROP")
        if words[1] == "DROP" and draft.name == "nat":
            raise Bad(NAT_IS_NO_FILTER, "DROP", "drop it in the filter, mangle or raw table")
        chain.policy = _VERDICTS[words[1]]
        m = re.fullmatch(r"\[(\d+):(\d+)\]", words[2]) if len(words) > 2 else None
        chain.packets, chain.bytes = (int(m[1]), int(m[2])) if m and self.counters else (0, 0)

    def commit(self, at: Origin) -> None:
        draft, self.draft, self.command = self.draft, None, None
        assert draft is not None
        if not self.clean:
            return
        flaw = self.tables.flaw(draft)
        if flaw:
            rule, why = flaw
            self.status = self.status or 1
            self.problem(why, rule.origin if rule else at)
        elif not self.test:
            self.tables.commit(draft)


# ---- commands -------------------------------------------------------------------------------------------------------

_COMMANDS = {
    "-A": "append",
    "-C": "check",
    "-D": "delete",
    "-E": "rename-chain",
    "-F": "flush",
    "-I": "insert",
    "-L": "list",
    "-N": "new-chain",
    "-P": "policy",
    "-R": "replace",
    "-S": "list-rules",
    "-X": "delete-chain",
    "-Z": "zero",
}
_LETTERS = {letter: letter for letter in _COMMANDS} | {f"--{name}": letter for letter, name in _COMMANDS.items()}
_OPTIONS = {
    "-s": ("-s", 1),
    "--source": ("-s", 1),
    "--src": ("-s", 1),
    "-d": ("-d", 1),
    "--destination": ("-d", 1),
    "--dst": ("-d", 1),
    "-p": ("-p", 1),
    "--protocol": ("-p", 1),
    "--proto": ("-p", 1),
    "-i": ("-i", 1),
    "--in-interface": ("-i", 1),
    "-o": ("-o", 1),
    "--out-interface": ("-o", 1),
    "-f": ("-f", 0),
    "--fragments": ("-f", 0),
    "-j": ("-j", 1),
    "--jump": ("-j", 1),
    "-g": ("-g", 1),
    "--goto": ("-g", 1),
    "-m": ("-m", 1),
    "--match": ("-m", 1),
    "-c": ("-c", 2),
    "--set-counters": ("-c", 2),
    "-t": ("-t", 1),
    "--table": ("-t", 1),
    "-4": ("-4", 0),
    "--ipv4": ("-4", 0),
    "-6": ("-6", 0),
    "--ipv6": ("-6", 0),
    "-n": ("-n", 0),
    "--numeric": ("-n", 0),
    "-v": ("-v", 0),
    "--verbose": ("-v", 0),
    "-x": ("-x", 0),
    "--exact": ("-x", 0),
    "--line-numbers": ("--line-numbers", 0),
    "-w": ("-w", 0),
    "--wait": ("-w", 0),
    "-W": ("-W", 1),
    "--wait-interval": ("-W", 1),
    "-M": ("-M", 1),
    "--modprobe": ("-M", 1),
}
_CLUSTER = re.compile(r"-[nvxf46]+[nvxf46LSFZX]")
_INVERTIBLE = frozenset(("-s", "-d", "-p", "-i", "-o", "-f"))
_WITH_RULE = frozenset("ACDIR")

#: protocols whose match needs no `-m`: the first option that only it knows brings it in
_IMPLICIT = frozenset(("tcp", "udp", "icmp", "sctp", "dccp", "esp", "ah", "ipcomp"))


@dataclass
class _Done:
    """What a command did."""

    changed: bool
    output: str = ""


@dataclass
class _Loaded:
    """An extension that the words of a rule have brought in, and the options it was given."""

    cls: type[Extension]
    given: list[Given] = field(default_factory=list)


@dataclass
class _Parsed:
    """The words of one command, sorted."""

    command: str = ""
    operands: list[str] = field(default_factory=list)
    base: dict[str, tuple[str, bool]] = field(default_factory=dict)
    matches: list[_Loaded] = field(default_factory=list)
    target: _Loaded | None = None
    jump: str = ""
    goto: bool = False
    counters: tuple[int, int] | None = None
    flags: set[str] = field(default_factory=set)
    other_family: bool = False


class _Command:
    """Reads iptables commands and does them to a draft of a table."""

    def __init__(self, tables: Tables, draft: Table, restoring: bool) -> None:
        self.tables, self.draft, self.restoring = tables, draft, restoring
        self.opened = False  # the table was looked into while the words were read
        self.sets = _SetNames(tables.node.sets)

    # ---- reading

    def parse(self, words: list[str]) -> _Parsed:
        p = _Parsed()
        at, invert = 0, False
        end = len(words)
        while at < end:
            word = words[at]
            at += 1
            if word == "!":
                if invert:
                    raise Bad("multiple consecutive ! not allowed", "!")
                if at == end:
                    raise Bad("nothing appropriate following !", "!")
                invert = True
                continue
            if not word.startswith("-") or word == "-":
                raise Bad(f"Bad argument `{word}'", word)
            if _CLUSTER.fullmatch(word):  # -nvL
                words = [*words[: at - 1], *(f"-{letter}" for letter in word[1:]), *words[at:]]
                at, end = at - 1, len(words)
                continue
            name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            name, loaded, count = self.resolve(name, p)
            values = [value] if equals else []
            if name in _COMMANDS:
                if invert:
                    raise Bad(f"unexpected ! flag before {_COMMANDS[name]}", word)
                at = self.operands(p, name, words, at, values)
                continue
            while count < 0 and at < end and (words[at][:1] not in ("-", "!") or re.fullmatch(r"-\d.*", words[at])):
                values.append(words[at])
                at += 1
            while len(values) < count:
                if at == end or (values and words[at][:1] in ("-", "!")):
                    some = f"{name} requires two args." if values else f'option "{word}" requires an argument'
                    raise Bad(some, word)
                values.append(words[at])
                at += 1
            if loaded is not None:
                loaded.given.append(Given(name, invert, tuple(values)))
            else:
                at = self.base(p, name, invert, values, word, words, at)
            invert = False
        return p

    def resolve(self, name: str, p: _Parsed) -> tuple[str, _Loaded | None, int]:
        """(full name, the extension it belongs to or None, how many words follow; -1: all up to the next option)."""
        for attempt in (0, 1):
            brought = [*reversed(p.matches)] if p.target is None else [p.target, *reversed(p.matches)]
            for loaded in brought:  # before the common options: `-m policy --proto esp` is not `-p esp`
                if name in loaded.cls.OPTIONS:
                    return name, loaded, loaded.cls.OPTIONS[name]
            if name in _OPTIONS:
                return (*_OPTIONS[name][:1], None, _OPTIONS[name][1])
            if name in _LETTERS:
                return _LETTERS[name], None, 0
            if name.startswith("--"):
                found = self.abbreviated(name, brought)
                if found is not None:
                    return found
            greedy = next((loaded for loaded in brought if getattr(loaded.cls, "greedy", False)), None)
            if greedy is not None and not self.of_protocol(name, p):
                return name, greedy, -1
            if attempt or not self.implicit(p):
                break
        raise Bad(f'unknown option "{name}"', name, self.near(name, p))

    def abbreviated(self, name: str, brought: list[_Loaded]) -> tuple[str, _Loaded | None, int] | None:
        """The one long option that starts with `name`, as getopt finds it."""
        found: dict[str, tuple[str, _Loaded | None, int]] = {}
        for option, (short, count) in _OPTIONS.items():
            if option.startswith(name):
                found[short] = (short, None, count)
        for option, letter in _LETTERS.items():
            if option.startswith(name):
                found[letter] = (letter, None, 0)
        for loaded in brought:
            for option, count in loaded.cls.OPTIONS.items():
                if option.startswith(name):
                    found.setdefault(option, (option, loaded, count))
        return next(iter(found.values())) if len(found) == 1 else None

    def of_protocol(self, name: str, p: _Parsed) -> bool:
        """The option belongs to the match that the rule's protocol would bring in."""
        number = self.protocol(p.base["-p"][0]) if "-p" in p.base else 0
        cls = MATCHES.get(PROTOCOL_NAMES.get(number, ""))
        return cls is not None and name in cls.OPTIONS

    def implicit(self, p: _Parsed) -> bool:
        """Bring in the match of the rule's protocol, once."""
        if "-p" not in p.base:
            return False
        name = PROTOCOL_NAMES.get(self.protocol(p.base["-p"][0]), "")
        if name not in _IMPLICIT:
            return False
        cls: type[Extension] | None = MATCHES.get(name)
        if cls is None and self.tables.uncertain:
            cls = unmodelled_match(name)
        if cls is None:
            raise NotModelled(f"match `{name}`", p.base["-p"][0], _knows(MATCHES))
        if any(loaded.cls is cls for loaded in p.matches):
            return False
        p.matches.append(_Loaded(cls))
        return True

    def near(self, name: str, p: _Parsed) -> str:
        if "-p" not in p.base and name in ("--dport", "--sport", "--dports", "--sports", "--syn", "--tcp-flags"):
            return "put `-p tcp` (or udp, udplite, sctp, dccp) before it"
        if "-p" not in p.base and name == "--icmp-type":
            return "put `-p icmp` before it"
        owners = sorted(cls.name for cls in {*MATCHES.values(), *TARGETS.values()} if name in cls.OPTIONS)
        return f"it belongs to {', '.join(owners)}" if owners else ""

    def operands(self, p: _Parsed, letter: str, words: list[str], at: int, values: list[str]) -> int:
        """The chain, the number, the new name that may follow a command."""
        if p.command and not {p.command, letter[1]} <= {"L", "Z", "S"}:
            raise Bad(f"Cannot use {letter} with -{p.command}", letter)
        p.command = letter[1] if not p.command or letter != "-Z" else p.command
        if p.command != letter[1]:
            p.flags.add("-Z")
        p.operands += values

        def more() -> bool:
            return at < len(words) and words[at][:1] not in ("-", "!")

        most = {"A": 1, "C": 1, "N": 1, "P": 2, "E": 2, "D": 2, "I": 2, "R": 2, "L": 2, "S": 2, "Z": 2, "F": 1, "X": 1}
        least = {"A": 1, "C": 1, "N": 1, "P": 2, "E": 2, "D": 1, "I": 1, "R": 2}
        while len(p.operands) < most[letter[1]] and more():
            p.operands.append(words[at])
            at += 1
        if len(p.operands) < least.get(letter[1], 0):
            if letter == "-N" and at < len(words):
                raise Bad("chain name not allowed to start with `-'", words[at])
            if len(p.operands) == 0:
                raise Bad(f'option "{letter}" requires an argument', letter)
            what = {"-P": "a chain and a policy", "-E": "old-chain-name and new-chain-name"}
            raise Bad(f"{letter} requires {what.get(letter, 'a rule number')}", letter)
        return at

    def base(self, p: _Parsed, name: str, invert: bool, values: list[str], word: str, words: list[str], at: int) -> int:
        if invert and name not in _INVERTIBLE and name != "-m":
            raise Bad(f"cannot have ! before {name}", name)
        if name == "-m":
            if invert:
                raise Bad("unexpected ! flag before --match", word)
            self.bring_match(p, values[0])
        elif name in ("-j", "-g"):
            if p.jump or p.target:
                raise Bad("multiple -j flags not allowed", word)
            self.bring_target(p, values[0], name == "-g")
        elif name == "-c":
            numbers = [int(v) for v in values if v.isdigit()]
            if len(numbers) < 2:
                raise Bad("-c packet counter not numeric", word)
            p.counters = (numbers[0], numbers[1])
        elif name == "-t":
            if self.restoring:
                raise Bad("The -t option cannot be used in iptables-restore.", word)
        elif name in ("-w", "-W"):
            if self.restoring:
                raise Bad(f"You cannot use `{name}' from iptables-restore", word)
            if name == "-w" and at < len(words) and words[at].isdigit():
                at += 1
        elif name == "-6":
            p.other_family = True
        elif name in _INVERTIBLE:
            if name in p.base:
                raise Bad(f"multiple {name} flags not allowed", word)
            p.base[name] = (values[0] if values else "", invert)
            if name == "-p" and not self.protocol(values[0]) and invert:
                raise Bad("rule would never match protocol", values[0])
        else:
            p.flags.add(name)
        return at

    def protocol(self, text: str) -> int:
        number = PROTOCOLS.get(text.lower())
        if number is None:
            number = integer(text)
        if number is None or number > 255:
            raise Bad(f'unknown protocol "{text.lower()}" specified', text)
        return number

    def bring_match(self, p: _Parsed, name: str) -> None:
        cls = MATCHES.get(name)
        if cls is None:
            if name in OTHER_MATCHES:
                if self.tables.uncertain:
                    p.matches.append(_Loaded(unmodelled_match(name)))
                    return
                raise NotModelled(f"match `{name}`", name, OTHER_MATCHES.get(name) or _knows(MATCHES))
            raise Bad(f"Couldn't load match `{name}':No such file or directory", name)
        p.matches.append(_Loaded(cls))

    def bring_target(self, p: _Parsed, name: str, goto: bool) -> None:
        chain = self.draft.chains.get(name)
        if chain is not None:
            if chain.policy is not None:
                raise Failed(f"No chain/target/match by that name: {name} is a built-in chain", name)
            p.jump, p.goto = name, goto
            return
        self.opened = name not in ("ACCEPT", "DROP", "RETURN", "QUEUE")
        if goto:
            raise Bad(f"goto '{name}' is not a chain", name)
        cls = TARGETS.get(name)
        if cls is None:
            if name in OTHER_TARGETS:
                if self.tables.uncertain:
                    p.target = _Loaded(unmodelled_target(name))
                    return
                raise NotModelled(f"target `{name}`", name, _knows(TARGETS))
            hint = "declare the chain before it is used, as `:NAME - [0:0]`" if self.restoring else ""
            raise Bad(f"Couldn't load target `{name}':No such file or directory", name, hint)
        p.target = _Loaded(cls)

    # ---- making rules

    def rules(self, p: _Parsed, origin: Origin) -> list[Rule]:
        """The rules that a command means: one for each pair of source and destination."""
        chain = p.operands[0]
        for option, where in (("-i", ("OUTPUT", "POSTROUTING")), ("-o", ("PREROUTING", "INPUT"))):
            if option in p.base and chain in where:
                raise Bad(f"Can't use {option} with {chain}", option)
        rule = Rule()
        rule.origin = origin
        base = p.base
        if "-p" in base:
            number = self.protocol(base["-p"][0])
            rule.proto = (number, base["-p"][1]) if number else None
        rule.link_in = self.link(base.get("-i"))
        rule.link_out = self.link(base.get("-o"))
        rule.fragment = None if "-f" not in base else not base["-f"][1]
        rule.jump, rule.goto = p.jump, p.goto
        if p.counters:
            rule.packets, rule.bytes = p.counters
        context: RuleContext | None = None
        if p.matches or p.target:
            context = RuleContext(
                self.draft.name,
                chain,
                rule.proto[0] if rule.proto else 0,
                bool(rule.proto and rule.proto[1]),
                self.tables.node.kernel,
                bool(rule.fragment),
                self.sets,
            )
            rule.matches = self.matches(p, context)
            if p.target:
                target = self.extension(p.target, context)
                assert isinstance(target, Target)
                rule.target = target
                context.matches = rule.matches
                why = target.check(context)
                if why:
                    raise Failed(f"Invalid argument: {why}")
        sources = self.networks(base.get("-s"))
        dests = self.networks(base.get("-d"))
        rule.src, rule.dst = sources[0], dests[0]
        out = [rule]
        for src, dst in list(product(sources, dests))[1:]:
            one = rule.copy()
            one.src, one.dst = src, dst
            one.matches = self.matches(p, context) if p.matches else ()  # each rule has a memory of its own
            out.append(one)
        return out

    def matches(self, p: _Parsed, context: RuleContext | None) -> tuple[Match, ...]:
        out = []
        for loaded in p.matches:
            assert context is not None
            match = self.extension(loaded, context)
            assert isinstance(match, Match)
            out.append(match)
        return tuple(out)

    def extension(self, loaded: _Loaded, context: RuleContext) -> Extension:
        try:
            return loaded.cls.read(loaded.given, context)
        except NotModelled as gap:
            if not self.tables.uncertain:
                raise
            return stand_in(loaded.cls, loaded.given, gap.what)

    def link(self, given: tuple[str, bool] | None) -> tuple[str, bool] | None:
        if given is None:
            return None
        name = given[0]
        if not name:
            raise Bad("Empty interface is likely to be undesired")
        if len(name) > 15:
            raise Bad(f"interface name `{name}' must be shorter than IFNAMSIZ (15)", name)
        return given

    def networks(self, given: tuple[str, bool] | None) -> list[tuple[int, int, bool] | None]:
        if given is None:
            return [None]
        text, inverted = given
        parts = text.split(",")
        if len(parts) > 1 and inverted:
            raise Bad("! not allowed with multiple source or destination IP addresses", text)
        out: list[tuple[int, int, bool] | None] = []
        for part in parts:
            address, mask = _network(part)
            out.append((address, mask, inverted) if mask or inverted else None)
        return out

    # ---- doing

    def do(self, words: list[str], origin: Origin, counters: tuple[int, int] | None = None) -> _Done:
        p = self.parse(words)
        if p.other_family:
            return _Done(False)
        if not p.command:
            raise Bad("no command specified")
        if p.command not in _WITH_RULE and (p.base or p.matches or p.target or p.jump):
            option = next(iter(p.base), "-m" if p.matches else "-j")
            raise Bad(f"Illegal option `{option}' with this command", option)
        if p.command in _WITH_RULE and p.flags & {"-n", "-x", "--line-numbers"}:
            option = min(p.flags & {"-n", "-x", "--line-numbers"})
            raise Bad(f"Illegal option `{option}' with this command", option)
        if p.command in "DC" and p.counters:
            raise Bad("Illegal option `-c' with this command", "-c")
        if counters is not None:
            p.counters = counters
        done = getattr(self, f"do_{p.command}")(p, origin)
        assert isinstance(done, _Done)
        if self.restoring:
            done.output = ""
        return done

    def chain(self, name: str) -> Chain:
        chain = self.draft.chains.get(name)
        if chain is None:
            raise Failed("No chain/target/match by that name.", name)
        return chain

    def some(self, p: _Parsed) -> list[Chain]:
        return [self.chain(p.operands[0])] if p.operands else self.draft.in_order()

    def number(self, text: str) -> int:
        n = integer(text)
        if not n:
            raise Bad(f"Invalid rule number `{text}'", text)
        return n

    def do_A(self, p: _Parsed, origin: Origin) -> _Done:
        rules = self.rules(p, origin)
        self.chain(p.operands[0]).rules += rules
        return _Done(True)

    def do_I(self, p: _Parsed, origin: Origin) -> _Done:
        at = self.number(p.operands[1]) if len(p.operands) > 1 else 1
        rules = self.rules(p, origin)
        chain = self.chain(p.operands[0])
        if at > len(chain.rules) + 1:
            raise Failed("Index of insertion too big.", p.operands[1])
        chain.rules[at - 1 : at - 1] = rules[::-1]  # each is put in at the same place, before the one put in last
        return _Done(True)

    def do_R(self, p: _Parsed, origin: Origin) -> _Done:
        at = self.number(p.operands[1])
        rules = self.rules(p, origin)
        if len(rules) > 1:
            raise Bad("Replacement rule does not specify a unique address", p.operands[1])
        chain = self.chain(p.operands[0])
        if at > len(chain.rules):
            raise Failed("Index of replacement too big.", p.operands[1])
        chain.rules[at - 1] = rules[0]
        return _Done(True)

    def do_D(self, p: _Parsed, origin: Origin) -> _Done:
        if len(p.operands) > 1:
            at = self.number(p.operands[1])
            chain = self.chain(p.operands[0])
            if at > len(chain.rules):
                raise Failed("Index of deletion too big.", p.operands[1])
            del chain.rules[at - 1]
            return _Done(True)
        rules = self.rules(p, origin)
        chain = self.chain(p.operands[0])
        for rule in rules:
            del chain.rules[self.find(chain, rule)]
        return _Done(True)

    def do_C(self, p: _Parsed, origin: Origin) -> _Done:
        rules = self.rules(p, origin)
        chain = self.chain(p.operands[0])
        for rule in rules:
            self.find(chain, rule)
        return _Done(False)

    def find(self, chain: Chain, rule: Rule) -> int:
        for at, other in enumerate(chain.rules):
            if other.text == rule.text:
                return at
        raise Failed("Bad rule (does a matching rule exist in that chain?).")

    def do_N(self, p: _Parsed, origin: Origin) -> _Done:
        name = p.operands[0]
        self.check_name(name)
        if name in self.draft.chains:
            raise Failed("Chain already exists.", name)
        self.draft.chains[name] = Chain(name)
        return _Done(True)

    def check_name(self, name: str) -> None:
        if name.startswith(("-", "!")):
            raise Bad(f"chain name not allowed to start with `{name[0]}'", name)
        if len(name) > 28:
            raise Bad(f"chain name `{name}' too long (must be under 29 chars)", name)
        if name in TARGETS or name in OTHER_TARGETS:
            raise Bad("chain name may not clash with target name", name)

    def do_E(self, p: _Parsed, origin: Origin) -> _Done:
        old, new = p.operands
        self.check_name(new)
        if new in self.draft.chains:
            raise Failed("File exists.", new)
        chain = self.chain(old)
        if chain.policy is not None:
            raise Failed(f"No chain/target/match by that name: {old} is a built-in chain", old)
        del self.draft.chains[old]
        chain.name = new
        self.draft.chains[new] = chain
        for other in self.draft.chains.values():
            for at, rule in enumerate(other.rules):
                if rule.jump == old:
                    moved = other.rules[at] = rule.copy()
                    moved.jump = new
                    moved.forget_text()
        return _Done(True)

    def do_X(self, p: _Parsed, origin: Origin) -> _Done:
        chains = [self.chain(p.operands[0])] if p.operands else [c for c in self.draft.in_order() if c.policy is None]
        if p.operands and chains[0].policy is not None:
            raise Failed("Invalid argument: can't delete built-in chain", chains[0].name)
        used = {rule.jump for chain in self.draft.chains.values() for rule in chain.rules}
        for chain in chains:
            if chain.name in used:
                raise Failed("Too many links.", chain.name)
            if chain.rules:
                raise Failed("Directory not empty.", chain.name)
            del self.draft.chains[chain.name]
        return _Done(True)

    def do_P(self, p: _Parsed, origin: Origin) -> _Done:
        name, policy = p.operands
        if policy == "DROP" and self.draft.name == "nat":
            raise Bad(NAT_IS_NO_FILTER, "DROP", "drop it in the filter, mangle or raw table")
        chain = self.draft.chains.get(name)
        if chain is None or chain.policy is None:
            raise Failed("Bad built-in chain name.", name)
        if policy not in _VERDICTS:
            raise Failed("Bad policy name.", policy)
        chain.policy = _VERDICTS[policy]
        if p.counters:
            chain.packets, chain.bytes = p.counters
        return _Done(True)

    def do_F(self, p: _Parsed, origin: Origin) -> _Done:
        for chain in self.some(p):
            chain.rules = []
        return _Done(True)

    def do_Z(self, p: _Parsed, origin: Origin) -> _Done:
        if len(p.operands) > 1:
            at = self.number(p.operands[1])
            chain = self.chain(p.operands[0])
            if at > len(chain.rules):
                raise Failed("Index of counter too big.", p.operands[1])
            chain.rules[at - 1] = _zeroed(chain.rules[at - 1])
            return _Done(True)
        for chain in self.some(p):
            chain.packets = chain.bytes = 0
            chain.rules = [_zeroed(rule) for rule in chain.rules]
        return _Done(True)

    def do_S(self, p: _Parsed, origin: Origin) -> _Done:
        counted = "-v" in p.flags
        head, out = [], []
        only = self.number(p.operands[1]) if len(p.operands) > 1 else 0
        for chain in self.some(p):
            counts = f" -c {chain.packets} {chain.bytes}" if counted else ""
            if chain.policy is None:
                head.append(f"-N {chain.name}")
            else:
                head.append(f"-P {chain.name} {_POLICY_NAMES[chain.policy]}{counts}")
            for number, rule in enumerate(chain.rules, 1):
                if only and number != only:
                    continue
                counts = f" -c {rule.packets} {rule.bytes}" if counted else ""
                words = [f"-A {chain.name}", *rule.criteria()]
                out.append(" ".join(words) + counts + "".join(f" {word}" for word in rule.action()))
        return self.listed(p, [*([] if only else head), *out])

    def do_L(self, p: _Parsed, origin: Origin) -> _Done:
        """Always numeric, conditions beyond the columns as iptables-save words."""
        out: list[str] = []
        counted, numbered = "-v" in p.flags, "--line-numbers" in p.flags
        uses = [rule.jump for chain in self.draft.chains.values() for rule in chain.rules if rule.jump]
        for chain in self.some(p):
            if out:
                out.append("")
            if chain.policy is None:
                out.append(f"Chain {chain.name} ({uses.count(chain.name)} references)")
            else:
                counts = f" {chain.packets} packets, {chain.bytes} bytes" if counted else ""
                out.append(f"Chain {chain.name} (policy {_POLICY_NAMES[chain.policy]}{counts})")
            num = "num  " if numbered else ""
            if counted:
                head = " pkts bytes target     prot opt in     out     source               destination         "
            else:
                head = "target     prot opt source               destination         "
            out.append(num + head)
            for number, rule in enumerate(chain.rules, 1):
                num = f"{number:<5d}" if numbered else ""
                out.append(num + self.row(rule, counted))
        return self.listed(p, out)

    def row(self, rule: Rule, counted: bool) -> str:
        name = rule.jump or (rule.target.name if rule.target else "")
        proto = f"{'!' if rule.proto[1] else ''}{rule.proto[0]}" if rule.proto else "0"
        fragment = {None: "--", True: "-f", False: "!f"}[rule.fragment]
        nets = [_net_text(net) for net in (rule.src, rule.dst)]
        links = [("!" if link[1] else "") + link[0] if link else "*" for link in (rule.link_in, rule.link_out)]
        row = f"{name:<9s}  {proto:<4s} {fragment} "
        if counted:
            row = f"{rule.packets:>5d} {rule.bytes:>5d} {row}{links[0]:<6s} {links[1]:<6s} "
        row += f" {nets[0]:<19s}  {nets[1]:<19s} "
        more = [match.words() for match in rule.matches]
        more += [rule.target.words()] if rule.target and rule.target.words() else []
        return row + "".join(f" {word}" for word in more if word) + ("[goto] " if rule.goto else "")

    def listed(self, p: _Parsed, lines: list[str]) -> _Done:
        changed = False
        if "-Z" in p.flags:
            self.do_Z(p, NOWHERE)
            changed = True
        return _Done(changed, "".join(line + "\n" for line in lines))


def _zeroed(rule: Rule) -> Rule:
    new = rule.copy()
    new.packets = new.bytes = 0
    return new


def _net_text(net: tuple[int, int, bool] | None) -> str:
    if net is None:
        return "0.0.0.0/0"
    address, mask, inverted = net
    plen = "" if mask == 0xFFFFFFFF else f"/{_mask_text(mask)}"
    return f"{'!' if inverted else ''}{dotted(address)}{plen}"


def _knows(registry: dict[str, Any]) -> str:
    return "netemu knows: " + ", ".join(sorted(registry))


def _network(text: str) -> tuple[int, int]:
    """(address, mask) of `10.0.0.1`, `10.8.0.0/16`, `10.8/16` or `10.8.0.0/255.255.0.0`; host bits cleared.

    >>> _network("10.8.1.1/255.255.0.0") == (0x0A080000, 0xFFFF0000)
    True
    """
    address, slash, mask_text = text.partition("/")
    mask = 0xFFFFFFFF
    if slash:
        plen = integer(mask_text)
        if plen is not None and plen <= 32:
            mask = (0xFFFFFFFF << (32 - plen)) & 0xFFFFFFFF
        else:
            dots = _dots(mask_text)
            if dots is None or mask_text.count(".") != 3:
                raise Bad(f"invalid mask `{mask_text}' specified", text)
            mask = dots
    value = _dots(address)
    if value is None:
        raise Bad(f"host/network `{address}' not found", text, "netemu looks up no names: write the address")
    return value & mask, mask


def _dots(text: str) -> int | None:
    """A dotted address; missing octets at its end are 0."""
    parts = text.split(".")
    if len(parts) > 4 or not all(part.isdigit() and len(part) <= 3 and int(part) < 256 for part in parts):
        return None
    return int.from_bytes(bytes(map(int, parts)).ljust(4, b"\0"), "big")
