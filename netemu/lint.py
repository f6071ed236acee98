"""What is odd about a node's rules: those that can never match, those that stand behind others, names of nothing.

    Box      the packets that conditions ask for, as far as they can be compared: networks, protocol, ports, links,
             connection states; every other condition stands in it as its text
    Rules    each chain with the boxes in which packets come to it
    CHECKS   name -> check; each yields its findings

A check that says that no packet comes somewhere is right about every packet: conditions it cannot compare count as
if they might hold. The other direction is not promised, a dead rule may go unnoticed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netemu.matches import Match
from netemu.matches.connections import ConntrackMatch, State
from netemu.matches.headers import Multiport, Ports, Tcp, Udp
from netemu.matches.places import SetMatch
from netemu.model import Model, Text
from netemu.node import Node
from netemu.tables import HOOKS, Chain, Rule, Table, split_words
from netemu.targets import Ct, Masquerade, Notrack, SetTarget, Snat
from netemu.words import dotted

if TYPE_CHECKING:
    from netemu.targets import Target

WARNING, NOTE = "warning", "note"
#: more ways than these to a chain are taken together
MOST_WAYS = 8
STATES = ("INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED")
ALL_STATES = (1 << len(STATES)) - 1
ALL_PROTOCOLS = (1 << 256) - 1
#: targets behind which a packet does not come to the next rule
ENDS = frozenset(("ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"))
#: conditions on what a rule may change while a packet is under way in a table, and the targets that do
CHANGED_BY = {
    "mark": {"MARK", "CONNMARK", "SET"},
    "connmark": {"CONNMARK"},
    "tos": {"TOS", "DSCP", "ECN"},
    "dscp": {"TOS", "DSCP"},
    "ecn": {"TOS", "ECN", "DSCP"},
    "ttl": {"TTL"},
    "length": {"TCPOPTSTRIP"},
    "tcpmss": {"TCPMSS"},
}


@dataclass(frozen=True)
class Finding:
    """Something odd.

    check   the name of the check         level  warning, or note: often meant so
    what    one line                      place  `filter:INPUT:rule:3`, "" where it is no rule
    file, line, text                      where it was written       more  lines that say more
    """

    check: str
    level: str
    what: str
    place: str = ""
    file: str = ""
    line: int = 0
    text: str = ""
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        head = f"{where}{self.check}: {f'{self.place} ' if self.place else ''}{self.what}"
        return "\n".join([head, *(f"    {line}" for line in (self.text, *self.more) if line)])


# ---- what conditions ask for ---------------------------------------------------------------------------------------

Net = tuple[int, int]  # value, mask
Ranges = tuple[tuple[int, int], ...]  # ascending, apart
ANYWHERE: Net = (0, 0)
ANY_PORTS: Ranges = ((0, 0xFFFF),)


def _inside(a: Net, b: Net) -> bool:
    """All of `a` lies in `b`."""
    return b[1] & ~a[1] == 0 and a[0] & b[1] == b[0]


def _apart(a: Net, b: Net) -> bool:
    return bool((a[0] ^ b[0]) & a[1] & b[1])


def _both(a: Ranges, b: Ranges) -> Ranges:
    """What is in `a` and in `b`.

    >>> _both(((0, 9), (20, 30)), ((5, 25),))
    ((5, 9), (20, 25))
    """
    out = []
    for lo, hi in a:
        for low, high in b:
            if max(lo, low) <= min(hi, high):
                out.append((max(lo, low), min(hi, high)))
    return tuple(sorted(out))


def _ranges(parts: Iterable[tuple[int, int]], invert: bool) -> Ranges:
    """Ports in or, inverted, outside of some ranges.

    >>> _ranges([(5, 9), (8, 12)], False), _ranges([(0, 79), (81, 65535)], True)
    (((5, 12),), ((80, 80),))
    """
    merged: list[list[int]] = []
    for lo, hi in sorted(parts):
        if merged and lo <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], hi)
        else:
            merged.append([lo, hi])
    if not invert:
        return tuple((lo, hi) for lo, hi in merged)
    edges = [(-1, -1), *((lo, hi) for lo, hi in merged), (0x10000, 0x10000)]
    return tuple((a[1] + 1, b[0] - 1) for a, b in pairwise(edges) if a[1] + 1 <= b[0] - 1)


_BITS = {"proto": "protocol", "link_in": "link in", "link_out": "link out", "states": "state"}


@dataclass(frozen=True)
class Box:
    """Packets that some conditions let through.

    src, dst            inside of this network             src_not, dst_not   and outside of all these
    proto               bits by protocol number            states             bits by connection state
    link_in, link_out   bits by link, bit 0: none          sport, dport       ranges of ports
    rest                conditions that are compared by their text alone
    memory              one of them depends on more than the packet: what it says cannot be foretold
    """

    src: Net = ANYWHERE
    dst: Net = ANYWHERE
    src_not: tuple[Net, ...] = ()
    dst_not: tuple[Net, ...] = ()
    proto: int = ALL_PROTOCOLS
    link_in: int = -1
    link_out: int = -1
    sport: Ranges = ANY_PORTS
    dport: Ranges = ANY_PORTS
    states: int = ALL_STATES
    rest: frozenset[str] = frozenset()
    memory: bool = False

    def meet(self, other: Box) -> Box | None:
        """What both let through; None: nothing."""
        proto, states = self.proto & other.proto, self.states & other.states
        link_in, link_out = self.link_in & other.link_in, self.link_out & other.link_out
        if (
            not (proto and states and link_in and link_out)
            or _apart(self.src, other.src)
            or _apart(self.dst, other.dst)
        ):
            return None
        one = Box(
            (self.src[0] | other.src[0], self.src[1] | other.src[1]),
            (self.dst[0] | other.dst[0], self.dst[1] | other.dst[1]),
            tuple(dict.fromkeys(self.src_not + other.src_not)) if other.src_not else self.src_not,
            tuple(dict.fromkeys(self.dst_not + other.dst_not)) if other.dst_not else self.dst_not,
            proto,
            link_in,
            link_out,
            self.sport if other.sport is ANY_PORTS else _both(self.sport, other.sport),
            self.dport if other.dport is ANY_PORTS else _both(self.dport, other.dport),
            states,
            self.rest | other.rest if other.rest else self.rest,
            self.memory or other.memory,
        )
        return None if one.empty else one

    def conflict(self, other: Box) -> str:
        """In which respect the two have nothing in common; "" where no single one parts them."""
        for name in ("src", "dst"):
            a, b = getattr(self, name), getattr(other, name)
            nots = getattr(self, f"{name}_not") + getattr(other, f"{name}_not")
            if _apart(a, b) or any(_inside((a[0] | b[0], a[1] | b[1]), no) for no in nots):
                return "source" if name == "src" else "destination"
        for name, said in _BITS.items():
            if not getattr(self, name) & getattr(other, name):
                return said
        for a, b, said in ((self.sport, other.sport, "source port"), (self.dport, other.dport, "destination port")):
            if a is not ANY_PORTS and b is not ANY_PORTS and not _both(a, b):
                return said
        return ""

    @cached_property
    def empty(self) -> bool:
        """No packet gets through."""
        return bool(
            not (self.proto and self.link_in and self.link_out and self.sport and self.dport and self.states)
            or any(_inside(self.src, no) for no in self.src_not)
            or any(_inside(self.dst, no) for no in self.dst_not)
        )

    def covers(self, other: Box) -> bool:
        """It lets through whatever `other` does."""
        return (
            not self.memory
            and _inside(other.src, self.src)
            and _inside(other.dst, self.dst)
            and all(_kept_out(no, other.src, other.src_not) for no in self.src_not)
            and all(_kept_out(no, other.dst, other.dst_not) for no in self.dst_not)
            and other.proto & ~self.proto == 0
            and other.link_in & ~self.link_in == 0
            and other.link_out & ~self.link_out == 0
            and other.states & ~self.states == 0
            and (self.sport is ANY_PORTS or _both(other.sport, self.sport) == other.sport)
            and (self.dport is ANY_PORTS or _both(other.dport, self.dport) == other.dport)
            and self.rest <= other.rest
        )


def _kept_out(no: Net, net: Net, nots: Iterable[Net]) -> bool:
    return _apart(net, no) or any(_inside(no, other) for other in nots)


ANYTHING = Box()


class Links:
    """Links as bits: bit 0 is `none`. Names that only rules know have bits of their own."""

    def __init__(self, node: Node) -> None:
        self.names = list(node.routing.names)
        for _, _, _, rule in node.tables.rules():
            for link in (rule.link_in, rule.link_out):
                name = link[0].rstrip("+") if link else ""
                if name and name not in self.names:
                    self.names.append(name)
        self.all = (1 << (len(self.names) + 1)) - 1

    def bits(self, link: tuple[str, bool] | None) -> int:
        if link is None or link[0] == "+":
            return self.all
        name, invert = link
        if name.endswith("+"):
            bits = sum(2 << k for k, known in enumerate(self.names) if known.startswith(name[:-1]))
        else:
            bits = 2 << self.names.index(name)
        return self.all & ~bits if invert else bits

    def at_hook(self, hook: str) -> Box:
        """What comes to a built-in chain."""
        some = self.all & ~1
        came = some if hook in ("PREROUTING", "INPUT", "FORWARD") else 1 if hook == "OUTPUT" else self.all
        return Box(link_in=came, link_out=1 if hook in ("PREROUTING", "INPUT") else some)


def _state_bits(names: frozenset[str], invert: bool) -> int:
    bits = sum(1 << k for k, name in enumerate(STATES) if name in names)
    return ALL_STATES & ~bits if invert else bits


def _of_ports(ports: Ports) -> Ranges:
    return ANY_PORTS if ports.any else _ranges([(ports.lo, ports.hi)], ports.invert)


def box_of(rule: Rule, links: Links, volatile: frozenset[str], unsteady: Callable[[Match], bool]) -> Box:
    """The packets that match a rule. `volatile`: names of matches whose answer may change from rule to rule;
    `unsteady`: does a match depend on more than the packet?"""
    rest: set[str] = set()
    memory = False
    sport = dport = ANY_PORTS
    states = ALL_STATES
    for match in rule.matches:
        if match.always:
            continue
        ranges: dict[str, Ranges] = {}
        if isinstance(match, Tcp | Udp):
            rest |= {"whole header", "ports"}
            ranges = {"sport": _of_ports(match.sport), "dport": _of_ports(match.dport)}
            if isinstance(match, Tcp) and match.exact_ports() is None:
                bare = replace(match, sport=Ports(), dport=Ports()).words()
                rest |= {f"-m tcp {bare}"} if bare else set()
        elif isinstance(match, Multiport) and match.side != "--ports":
            rest.add("ports")
            ranges = {match.side[2:-1]: _ranges(match.ranges, match.invert)}
        elif isinstance(match, State):
            states &= _state_bits(match.states, match.invert)
        elif (
            isinstance(match, ConntrackMatch)
            and match.states is not None
            and match.states <= set(STATES)
            and match == ConntrackMatch(states=match.states, states_invert=match.states_invert)
        ):
            states &= _state_bits(match.states, match.states_invert)
        else:
            rest.add(match.text)
            memory = memory or unsteady(match) or match.name in volatile
        if "sport" in ranges:
            sport = _both(sport, ranges["sport"]) if sport is not ANY_PORTS else ranges["sport"]
        if "dport" in ranges:
            dport = _both(dport, ranges["dport"]) if dport is not ANY_PORTS else ranges["dport"]
    if rule.fragment is not None:
        rest.add("-f" if rule.fragment else "! -f")
    nets: list[tuple[Net, tuple[Net, ...]]] = []
    for net in (rule.src, rule.dst):
        if net is None:
            nets.append((ANYWHERE, ()))
        else:
            nets.append((ANYWHERE, (net[:2],)) if net[2] else (net[:2], ()))
    proto = ALL_PROTOCOLS
    if rule.proto:
        proto = ALL_PROTOCOLS & ~(1 << rule.proto[0]) if rule.proto[1] else 1 << rule.proto[0]
    return Box(
        nets[0][0],
        nets[1][0],
        nets[0][1],
        nets[1][1],
        proto,
        links.bits(rule.link_in),
        links.bits(rule.link_out),
        sport,
        dport,
        states,
        frozenset(rest),
        memory,
    )


# ---- the rules, looked at as a whole -------------------------------------------------------------------------------


@dataclass(eq=False)
class Place:
    """A rule, where it stands, and what it asks for."""

    table: str
    chain: Chain
    number: int
    rule: Rule
    box: Box

    def __str__(self) -> str:
        return f"{self.table}:{self.chain.name}:rule:{self.number}"

    @property
    def told(self) -> str:
        """The rule in words, and where it was written."""
        line = f"line {self.rule.origin.line}: " if self.rule.origin.line else ""
        return f"rule {self.number}: {line}-A {self.chain.name} {self.rule.text}"

    def finding(self, check: str, level: str, what: str, *more: str) -> Finding:
        at = self.rule.origin
        text = at.text or f"-A {self.chain.name} {self.rule.text}"
        return Finding(check, level, what, str(self), at.file, at.line, text, more)


class Rules:
    """All rules of a node with their boxes, and in which boxes packets come to each chain.

    ways    (table, chain) -> [(hook, box)], empty when nothing leads there
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.links = Links(node)
        self.places: dict[tuple[str, str], list[Place]] = {}
        self.ways: dict[tuple[str, str], list[tuple[str, Box]]] = {}
        self.leads: dict[tuple[str, str], list[Place]] = {}
        self.writes_sets = any(isinstance(rule.target, SetTarget) for *_, rule in node.tables.rules())
        for name in node.tables.order:
            self._read(name, node.tables.tables[name])

    def _unsteady(self, match: Match) -> bool:
        if getattr(match, "unmodelled", False):
            return True
        for touch in match.touches:
            found = self.node.sets.get(touch[4:]) if touch.startswith("set:") else None
            if found is None or found.remembers or self.writes_sets:
                return touch != "flow"  # what a connection remembers is the same for one packet, see CHANGED_BY
        return False

    def _read(self, name: str, table: Table) -> None:
        targets = {rule.target.name for chain in table.chains.values() for rule in chain.rules if rule.target}
        volatile = frozenset(match for match, by in CHANGED_BY.items() if by & targets)
        for chain in table.chains.values():
            places = self.places[name, chain.name] = []
            for number, rule in enumerate(chain.rules, 1):
                box = box_of(rule, self.links, volatile, self._unsteady)
                if name == "raw" and box.states != ALL_STATES:
                    box = replace(box, memory=True)  # CT changes it under way
                places.append(Place(name, chain, number, rule, box))
                if rule.jump:
                    self.leads.setdefault((name, rule.jump), []).append(places[-1])
        hooks: dict[str, set[str]] = {hook: {hook} for hook in HOOKS[name]}
        order = self._order(table)
        for chain_name in order:
            for rule in table.chains[chain_name].rules:
                if rule.jump:
                    hooks.setdefault(rule.jump, set()).update(hooks[chain_name])
        states = ALL_STATES
        if name == "nat":  # only the first packet of a connection comes here
            states = _state_bits(frozenset(("NEW", "RELATED")), False)
        begin = {hook: replace(self.links.at_hook(hook), states=states) for hook in HOOKS[name]}
        for hook in HOOKS[name]:
            self.ways[name, hook] = [(hook, begin[hook])]
        for chain_name in order:
            for place in self.places[name, chain_name]:
                jump = place.rule.jump
                if not jump:
                    continue
                ways = self.ways.setdefault((name, jump), [])
                for hook, way in self.ways.get((name, chain_name), ()):
                    both = way.meet(place.box)
                    if both is not None and (hook, both) not in ways:
                        ways.append((hook, both))
                if len(ways) > MOST_WAYS:
                    ways[:] = [(hook, begin[hook]) for hook in sorted(hooks[jump])]

    @staticmethod
    def _order(table: Table) -> list[str]:
        """Chains that can be reached, each behind those that lead to it."""
        out: list[str] = []
        seen: set[str] = set()
        for hook in reversed(HOOKS[table.name]):
            stack = [(hook, False)]
            while stack:
                name, done = stack.pop()
                if done:
                    out.append(name)
                elif name not in seen:
                    seen.add(name)
                    stack.append((name, True))
                    stack += [(rule.jump, False) for rule in table.chains[name].rules if rule.jump]
        return out[::-1]

    def all(self) -> Iterator[Place]:
        for places in self.places.values():
            yield from places

    def user_chains(self) -> Iterator[tuple[str, Chain]]:
        for name in self.node.tables.order:
            for chain in self.node.tables.tables[name].in_order():
                if chain.policy is None:
                    yield name, chain

    def closed(self, table: str, name: str, above: frozenset[str] = frozenset()) -> bool:
        """No packet comes back from this chain."""
        key = (table, name)
        known = self._closed.get(key)
        if known is None and name not in above:
            known = self._closed[key] = self._find_closed(table, name, above | {name})
        return bool(known)

    @cached_property
    def _closed(self) -> dict[tuple[str, str], bool]:
        return {}

    def _find_closed(self, table: str, name: str, above: frozenset[str]) -> bool:
        for place in self.places[table, name]:
            rule = place.rule
            if rule.target is not None and rule.target.name == "RETURN":
                return False
            closed = bool(rule.jump) and self.closed(table, rule.jump, above)
            if rule.goto and not closed:
                return False
            if place.box == Box(link_in=self.links.all, link_out=self.links.all) and (
                closed or (rule.target is not None and rule.target.name in ENDS)
            ):
                return True
        return False

    def decides(self, place: Place) -> bool:
        """No packet that matches comes to the next rule of the chain."""
        rule = place.rule
        if rule.jump:
            return rule.goto or self.closed(place.table, rule.jump)
        return rule.target is not None and rule.target.name in ENDS


# ---- the checks ----------------------------------------------------------------------------------------------------

Check = Callable[[Rules], Iterator[Finding]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Enter a check; its name is the function's, its docstring tells people what it finds."""
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


@check
def never_matches(rules: Rules) -> Iterator[Finding]:
    """Rules that can match no packet: conditions that exclude each other, or what leads to their chain."""
    for (table, name), places in rules.places.items():
        ways = rules.ways.get((table, name), [])
        for place in places:
            if place.box.empty:
                yield place.finding("never-matches", WARNING, "can never match: its conditions exclude each other")
            elif ways and all(way.meet(place.box) is None for _, way in ways):
                part = next(filter(None, (way.conflict(place.box) for _, way in ways)), "")
                why = "its conditions and the way here exclude each other" + (f" ({part})" if part else "")
                if table == "nat" and part == "state":
                    why = "only the first packet of a connection, which is NEW or RELATED, comes to the nat table"
                led = rules.leads.get((table, name), [])
                more = [f"{name} is reached from {_listed(map(str, led))}"] if led else []
                yield place.finding("never-matches", WARNING, f"can never match: {why}", *more)


@check
def shadowed(rules: Rules) -> Iterator[Finding]:
    """Rules to which no packet comes, because earlier ones of the same chain take all that they ask for."""
    for (table, name), places in rules.places.items():
        ways = [way for _, way in rules.ways.get((table, name), [])] or [ANYTHING]
        earlier = _Deciding()
        for place in places:
            boxes = [box for box in (way.meet(place.box) for way in ways) if box is not None]
            if boxes and not place.box.empty:
                found = [earlier.covering(box) for box in boxes]
                by = {one.number: one for one in found if one is not None}
                if all(one is not None for one in found):
                    who = f"rule {next(iter(by))} takes" if len(by) == 1 else f"rules {_listed(map(str, by))} take"
                    what = f"never sees a packet: {who} all that it asks for"
                    yield place.finding("shadowed", WARNING, what, *(one.told for one in list(by.values())[:3]))
                    continue
            if rules.decides(place) and not place.box.memory and not place.box.empty:
                earlier.add(place)


class _Deciding:
    """Rules that let nothing through to the next, findable by what they cover.

    Kept by kind: which masks they use, whether they name one protocol and one port. Cost of a question: one look-up
    for each kind, whatever the number of rules.
    """

    def __init__(self) -> None:
        self.kinds: dict[tuple[int, int, bool, bool], dict[tuple[int, int, int, int], list[Place]]] = {}

    def add(self, place: Place) -> None:
        box = place.box
        proto, port = _one_bit(box.proto), _one_port(box.dport)
        kind = (box.src[1], box.dst[1], proto, port)
        key = (box.src[0], box.dst[0], box.proto if proto else 0, box.dport[0][0] if port else 0)
        self.kinds.setdefault(kind, {}).setdefault(key, []).append(place)

    def covering(self, box: Box) -> Place | None:
        first: Place | None = None
        for (smask, dmask, proto, port), places in self.kinds.items():
            if smask & ~box.src[1] or dmask & ~box.dst[1]:
                continue
            if (proto and not _one_bit(box.proto)) or (port and not _one_port(box.dport)):
                continue
            dport = box.dport[0][0] if port else 0
            key = (box.src[0] & smask, box.dst[0] & dmask, box.proto if proto else 0, dport)
            for place in places.get(key, ()):
                if first is not None and place.number >= first.number:
                    break
                if place.box.covers(box):
                    first = place
                    break
        return first


def _one_bit(bits: int) -> bool:
    return bits != 0 and bits & (bits - 1) == 0


def _one_port(ports: Ranges) -> bool:
    return len(ports) == 1 and ports[0][0] == ports[0][1]


@check
def empty_chain(rules: Rules) -> Iterator[Finding]:
    """Jumps to chains that hold no rule."""
    for table, chain in rules.user_chains():
        leads = rules.leads.get((table, chain.name), [])
        if leads and not chain.rules:
            goes = [place for place in leads if place.rule.goto]
            first = (goes or leads)[0]
            what = f"leads to {chain.name}, which is empty"
            if goes:
                what += ": packets skip the rest of this chain"
            others = len(leads) - 1
            more = [f"and so {'does' if others == 1 else 'do'} {others} more"] if others else []
            yield first.finding("empty-chain", WARNING if goes else NOTE, what, *more)


@check
def unreachable_chain(rules: Rules) -> Iterator[Finding]:
    """Chains of one's own to which no rule leads from a built-in chain."""
    for table, chain in rules.user_chains():
        if (table, chain.name) in rules.ways:
            continue
        leads = rules.leads.get((table, chain.name), [])
        what = f"{chain.name} in table {table} cannot be reached: "
        if leads:
            what += f"only {_listed(map(str, leads))} {'leads' if len(leads) == 1 else 'lead'} there"
        else:
            what += "no rule leads there"
        first = chain.rules[0].origin if chain.rules else None
        file = first.file if first else _file(rules, "iptables.save")
        size = len(chain.rules)
        more = (f"{size} rule{'s' if size != 1 else ''} in vain",) if size else ()
        yield Finding("unreachable-chain", WARNING if size else NOTE, what, file=file, more=more)


@check
def unused_set(rules: Rules) -> Iterator[Finding]:
    """Sets that no rule uses, nor a set that is used."""
    sets = rules.node.sets
    used = {name for _, _, _, rule in rules.node.tables.rules() for name in rule.sets}
    members = {name: set(getattr(found, "named", {}).values()) for name, found in sets.by_name.items()}
    more = set(used)
    while more:
        more = {inner for name in more for inner in members.get(name, ())} - used
        used |= more
    file = _file(rules, "ipset.save")
    for name, found in sets.by_name.items():
        if name not in used:
            yield Finding("unused-set", NOTE, f"set {name} ({found.TYPE}) is used by no rule", file=file)


@check
def empty_set(rules: Rules) -> Iterator[Finding]:
    """Rules that ask for an element of a set which is empty, and which no rule fills."""
    filled = {
        target.add[0]
        for target in (rule.target for _, _, _, rule in rules.node.tables.rules())
        if isinstance(target, SetTarget) and target.add
    }
    asked: dict[str, list[Place]] = {}
    for place in rules.all():
        for match in place.rule.matches:
            if isinstance(match, SetMatch) and not match.invert and match.set not in filled:
                asked.setdefault(match.set, []).append(place)
    for name, places in asked.items():
        found = rules.node.sets.get(name)
        if found is not None and not found.count(rules.node.now):
            others = f"and {len(places) - 1} more that ask for it" if len(places) > 1 else ""
            yield places[0].finding("empty-set", NOTE, f"cannot match while set {name} is empty", others)


@check
def unknown_link(rules: Rules) -> Iterator[Finding]:
    """Links that rules name and the node does not have."""
    names = rules.node.routing.names
    asked: dict[str, list[Place]] = {}
    for place in rules.all():
        for link in (place.rule.link_in, place.rule.link_out):
            if link is None or link[0] == "+":
                continue
            if link is place.rule.link_out and _masquerades_to(place, link) and not link[0].endswith("+"):
                continue  # see masquerade
            known = any(n.startswith(link[0][:-1]) for n in names) if link[0].endswith("+") else link[0] in names
            if not known and place not in asked.setdefault(link[0], []):
                asked[link[0]].append(place)
    for name, places in asked.items():
        if places:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the node has {_listed(names, 8)}"
            others = f"and {len(places) - 1} more rules that name it" if len(places) > 1 else ""
            level = NOTE if name.endswith("+") else WARNING
            what = f"names {name}, which is no link of the node"
            yield places[0].finding("unknown-link", level, what, hint, others)


def _masquerades_to(place: Place, link: tuple[str, bool]) -> bool:
    return isinstance(place.rule.target, Masquerade) and not link[1]


@check
def masquerade(rules: Rules) -> Iterator[Finding]:
    """MASQUERADE on links that do not exist, or have no address to masquerade with."""
    routing = rules.node.routing
    for place in rules.all():
        link = place.rule.link_out
        if link is None or not _masquerades_to(place, link) or link[0].endswith("+"):
            continue
        at = routing.index(link[0])
        if at < 0:
            near = difflib.get_close_matches(link[0], routing.names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the node has {_listed(routing.names, 8)}"
            what = f"masquerades what leaves by {link[0]}, which is no link of the node"
            yield place.finding("masquerade", WARNING, what, hint)
            continue
        if not any(a.scope in ("global", "site") for a in routing.links[at].addresses):
            other = routing.masquerade_address(at, 0)
            then = f"Linux takes {dotted(other)} of another link" if other is not None else "the packets die"
            what = f"masquerades what leaves by {link[0]}, which has no address: {then}"
            yield place.finding("masquerade", WARNING, what)


@check
def nat_untracked(rules: Rules) -> Iterator[Finding]:
    """NAT for packets that the raw table takes out of connection tracking, or that IPVS keeps out of it."""
    untracked: list[tuple[str, Box, Place]] = []
    for (table, name), places in rules.places.items():
        for place in places if table == "raw" else ():
            if _notrack(place.rule.target) and not place.box.memory:
                for hook, way in rules.ways.get((table, name), ()):
                    both = way.meet(place.box)
                    if both is not None:
                        untracked.append((hook, both, place))
    for (table, name), places in rules.places.items():
        if table != "nat" or not untracked:
            continue
        for place in places:
            if place.rule.target is None or place.rule.target.name not in ENDS - {"ACCEPT", "RETURN"}:
                continue
            by: list[Place | None] = []
            for hook, way in rules.ways.get((table, name), ()):
                box = way.meet(place.box)
                if box is not None:
                    by.append(_untracked_by(hook, box, untracked, rules.links.all))
            if by and all(by):
                what = "translates nothing: connection tracking never sees these packets"
                more = [f"{one.table} {one.told}" for one in dict.fromkeys(filter(None, by))]
                yield place.finding("nat-untracked", WARNING, what, *more[:3])
    yield from _ipvs_untracked(rules)


def _notrack(target: Target | None) -> bool:
    return isinstance(target, Notrack) or (isinstance(target, Ct) and target.notrack)


#: what is no longer as it was in PREROUTING later on the way: the rest of a packet mostly is
_LATER: dict[str, Any] = {"states": ALL_STATES, "link_in": -1, "link_out": -1}


def _untracked_by(hook: str, box: Box, untracked: list[tuple[str, Box, Place]], every: int) -> Place | None:
    """The rule that keeps all of `box` out of connection tracking."""
    for at, raw, place in untracked:
        if hook in ("PREROUTING", "OUTPUT"):
            if at == hook and replace(raw, states=ALL_STATES).covers(box):
                return place
        elif at == "PREROUTING" and raw.link_in == every & ~1 and replace(raw, **_LATER).covers(box):
            return place
    return None


def _ipvs_untracked(rules: Rules) -> Iterator[Finding]:
    node = rules.node
    if not node.ipvs.active or node.sysctl.int("net.ipv4.vs.conntrack"):
        return
    for place in rules.all():
        ways = rules.ways.get((place.table, place.chain.name), ()) if place.table == "nat" else ()
        if isinstance(place.rule.target, Masquerade | Snat) and any(hook == "POSTROUTING" for hook, _ in ways):
            what = "does not see what IPVS sends on: net.ipv4.vs.conntrack is 0"
            yield place.finding("nat-untracked", NOTE, what, "set it to 1 to translate the source of such packets")
            return


def _listed(words: Iterable[str], most: int = 3) -> str:
    """`a, b and 4 more`."""
    all_words = list(words)
    if len(all_words) <= most:
        return ", ".join(all_words)
    return f"{', '.join(all_words[:most])} and {len(all_words) - most} more"


def _file(rules: Rules, name: str) -> str:
    found = rules.node.model.texts.get(name)
    return found.file if found else ""


# ---- all of it -----------------------------------------------------------------------------------------------------


def lint(node: Node) -> list[Finding]:
    """All findings of all checks, in the order of the lines that they speak of."""
    rules = Rules(node)
    found = [finding for function in CHECKS.values() for finding in function(rules)]
    return sorted(found, key=lambda f: (f.file, f.line))


def lint_model(path: str | Path, seed: int = 0, unsupported: str = "fail") -> tuple[Node, list[Finding]]:
    """Load a model directory and lint it.

    A set that rules name and nobody made is a finding here, where a load would refuse the model; an empty one stands
    in for it.
    Raises  Refused, Unsupported  for everything else that keeps the model from being loaded
    """
    missing: list[Finding] = []

    def prepare(model: Model) -> None:
        missing.extend(missing_sets(model))

    node = Node.load(path, seed=seed, unsupported=unsupported, prepare=prepare)
    return node, sorted(missing + lint(node), key=lambda f: (f.file, f.line))


_SET_OPTIONS = ("--match-set", "--add-set", "--del-set", "--map-set")
_STAND_INS = {1: "hash:ip", 2: "hash:ip,port", 3: "hash:ip,port,ip"}


def missing_sets(model: Model) -> Iterator[Finding]:
    """Sets that rules name and the model does not make; each is then made, empty, in the model's text."""
    rules = model.texts.get("iptables.save")
    if rules is None:
        return
    made = model.texts.get("ipset.save", Text("", ""))
    names = set()
    for line in made.text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in ("create", "-N", "--create"):
            names.add(words[1])
    for number, line in enumerate(rules.text.splitlines(), 1):
        if "-set " not in line or line.lstrip().startswith("#"):
            continue
        words = split_words(line)
        for at, word in enumerate(words[:-2]):
            if word in _SET_OPTIONS and words[at + 1] not in names:
                name, dirs = words[at + 1 : at + 3]
                names.add(name)
                kind = _STAND_INS.get(dirs.count(",") + 1, "hash:ip")
                made = Text(f"{made.text.rstrip()}\ncreate {name} {kind}\n".lstrip(), made.file or "ipset.save")
                what = f"there is no set {name}: iptables-restore refuses this"
                hint = f"create it in ipset.save: create {name} {kind}"
                yield Finding("missing-set", WARNING, what, "", rules.file, number, line.strip(), (hint,))
    if made.text:
        model.texts["ipset.save"] = made
