"""Tables: chains of rules, the commands that change them, and the text of iptables-save.

    iptables-save text --read--> Table{Chain[Rule]} --compiled on first use--> walk.Code --> verdicts
                       <--save--

How packets are taken through them stands in walk.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from netemu import listing
from netemu.doubt import stand_in, unmodelled_match, unmodelled_target
from netemu.errors import REFUSED, UNSUPPORTED, Problem, Refused, Unsupported
from netemu.grammar import Bad, Extension, Failed, Given, NotModelled, RuleContext
from netemu.matches import ALL_HOOKS, MATCHES, OTHER_MATCHES, Match
from netemu.matches.rates import Leads, Statistic
from netemu.sockets import all_owned, sockets_of
from netemu.targets import (
    ACCEPT,
    DROP,
    NAT_IS_NO_FILTER,
    OTHER_TARGETS,
    TARGETS,
    Ct,
    Target,
    Translation,
)
from netemu.walk import POLICY_NAMES, Code, Walk
from netemu.words import PROTOCOL_NAMES, PROTOCOLS, dotted, integer

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.paths import Step

HOOKS: dict[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}

_VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP}
#: targets that judge or mark a packet and do nothing else
_PLAIN = {*_VERDICTS, "RETURN", "CT", "NOTRACK", "MARK", "LOG", "NFLOG", "TRACE", "AUDIT"}


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


class Origin(NamedTuple):
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
        self.code: Code | None = None

    def copy(self) -> Chain:
        """Another chain with the same rules in it."""
        new = Chain(self.name, self.policy)
        new.packets, new.bytes = self.packets, self.bytes
        new.rules = self.rules[:]
        return new


#: for each chain that a packet can reach: the hooks it is reached from, and in how many ways (2: more than one)
Reached = tuple[dict[str, frozenset[str]], dict[str, int]]


class Table:
    """The chains of one table, by name; built-in chains first, in the order of their hooks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.chains = {hook: Chain(hook, ACCEPT) for hook in HOOKS[name]}
        self.reached: Reached | None = None  # see _reach; of a table in force, which is not changed any more
        self.ordered: list[Chain] = []  # and its chains in order

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
        self.walk = Walk(self, self._pure)
        self.uncertain = False  # keep what is not modelled as what might match
        self._needed: tuple[int, bool] = (-1, False)
        self._defrag: tuple[int, bool] = (-1, False)
        self._steady = (-1, False)
        self._flags = (-1, 0)
        self._memories: tuple[int, tuple[Memory, ...]] = (-1, ())
        self._written: tuple[int, frozenset[str]] = (-1, frozenset())

    # ---- what there is -----------------------------------------------------------------------------------------

    def has(self, table: str, hook: str) -> bool:
        """The table was touched, and stands at this hook."""
        return table in self.tables and hook in HOOKS[table]

    def rules(self) -> Iterator[tuple[str, Chain, int, Rule]]:
        """(table, chain, number from 1, rule) of every rule, as printed."""
        self.walk.settle()
        for name in self.order:
            for chain in self._in_order(name):
                for number, rule in enumerate(chain.rules, 1):
                    yield name, chain, number, rule

    def _in_order(self, name: str) -> list[Chain]:
        table = self.tables[name]
        if not table.ordered:
            table.ordered = table.in_order()
        return table.ordered

    def _reached(self, name: str) -> Reached:
        table = self.tables[name]
        if table.reached is None:
            table.reached = _reach(table)
        return table.reached

    def _needs(self, what: str) -> bool:
        """Does an extension of some rule say so of itself?"""
        asked = set[int]()  # rules share extensions
        for *_, rule in self.rules():
            for extension in (*rule.matches, rule.target):
                if extension is not None and id(extension) not in asked:
                    asked.add(id(extension))
                    if getattr(extension, what):
                        return True
        return False

    @property
    def conntrack_needed(self) -> bool:
        """Some rule needs connection tracking: it is on."""
        if self._needed[0] != self.version:
            self._needed = (self.version, self._needs("needs_conntrack"))
        return self._needed[1]

    @property
    def defrag_needed(self) -> bool:
        """Some rule needs whole packets: fragments are put together even without connection tracking."""
        if self._defrag[0] != self.version:
            self._defrag = (self.version, self._needs("needs_defrag"))
        return self._defrag[1]

    @property
    def memories(self) -> tuple[Memory, ...]:
        """Every rule with memory that a packet can reach (see Memory). A set that nothing changes is no memory."""
        return tuple(m for m in self._all_memories() if m.touch[:4] != "set:" or self.written(m.touch[4:]))

    def _all_memories(self) -> tuple[Memory, ...]:
        """The same, with those of sets that nothing changes."""
        if self._memories[0] != self.version:
            self._memories = (self.version, tuple(self._find_memories()))
        return self._memories[1]

    def _find_memories(self) -> Iterator[Memory]:
        for name in self.order:
            hooks, ways = self._reached(name)
            for chain in self._in_order(name):
                if chain.name not in ways:
                    continue
                for number, rule in enumerate(chain.rules, 1):
                    for extension in (*rule.matches, rule.target):
                        if extension is None or not extension.touches:
                            continue
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

    def wishing(self) -> tuple[frozenset[str], bool]:
        """(built-in chains whose packets may come to a CT rule, whether it can be told ahead what rules of raw do).

        It can (Walk.foresee) when no rule there remembers anything, or does more than to judge and mark the packet.
        """
        table = self.tables.get("raw")
        if table is None:
            return frozenset(), True
        hooks, _ = self._reached("raw")
        met = [(hooks[c.name], r.target) for c in table.in_order() if c.name in hooks for r in c.rules if r.target]
        wish: frozenset[str] = frozenset().union(*(at for at, t in met if isinstance(t, Ct) and not t.notrack))
        plain = {target.name for _, target in met} <= _PLAIN
        return wish, plain and not any(m.table == "raw" for m in self.memories)

    def timeouts_used(self) -> set[str]:
        """Names of the timeout policies that rules give to connections."""
        templates = (getattr(rule.target, "template", None) for *_, rule in self.rules())
        return {template.timeout for template in templates if template is not None}

    @property
    def steady(self) -> bool:
        """Do rules see nothing of a packet that begins a connection but its headers (see conntrack.looks), where it
        came in, and draws? No memory, no clock, no set, no bytes, nothing of the connection but its state."""
        if self._steady[0] != self.version:
            self._steady = (self.version, not self._all_memories() and self._all_steady())
        return self._steady[1]

    def _all_steady(self) -> bool:
        asked = set[tuple[bool, int]]()  # rules share extensions
        for table, *_, rule in self.rules():
            early = table not in ("filter", "security")
            for match in rule.matches:
                if (early, id(match)) not in asked:
                    asked.add((early, id(match)))
                    if not _is_steady(match, early):
                        return False
            if rule.target is not None and rule.target.name not in _STEADY_TARGETS:
                return False
        return True

    @property
    def flags_asked(self) -> int:
        """Which of the TCP flags matter to any rule that established connections may come to."""
        if self._flags[0] != self.version:
            bits = 0
            for table, *_, rule in self.rules():
                for match in rule.matches if table != "nat" else ():
                    bits |= match.tcp_flags
            self._flags = (self.version, bits)
        return self._flags[1]

    def counter(self, step: Step) -> Rule | Chain | None:
        """What counted a packet that took this step in a table: the rule, or the chain whose policy it was."""
        table, _, rest = step.text.partition(":")
        name, _, number = rest.rsplit(":", 2)
        chain, n = self.tables[table].chains[name], int(number)
        if n <= len(chain.rules):
            return chain.rules[n - 1]
        return None if chain.policy is None else chain

    def _pure(self, match: Match) -> bool:
        """What it says depends on nothing that another packet does, so it may be asked ahead of its turn."""
        touches = match.touches
        return not touches or all(touch[:4] == "set:" and not self.written(touch[4:]) for touch in touches)

    def written(self, name: str) -> bool:
        """Packets change this set: a rule writes to it (or to a member of it), or it keeps counters."""
        if self._written[0] != self.version:
            targets = (rule.target for *_, rule in self.rules() if rule.target is not None)
            self._written = (self.version, frozenset(touch for target in targets for touch in target.touches))
        found = self.node.sets.get(name)
        inside = getattr(found, "named", {}).values()  # sets in a list:set
        written = self._written[1]
        return any(f"set:{one}" in written for one in (name, *inside)) or (found is not None and found.remembers)

    # ---- text --------------------------------------------------------------------------------------------------

    def save(self, counters: bool = True, table: str | None = None) -> str:
        """iptables-save text: the table touched last first, counters of rules only when asked for."""
        self.walk.settle()
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
                    out.append(f":{chain.name} {POLICY_NAMES[chain.policy]} [{chain.packets}:{chain.bytes}]")
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

        options  -n (--noflush), -c (--counters: take those of the text), -T TABLE, -t (--test), -v, -w, and the name of
                 a file that holds the text instead
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
            elif word in ("-M", "--modprobe", "-W", "--wait-interval") and words:
                words.pop(0)
            elif word in ("-w", "--wait"):
                words = words[1:] if words and words[0].isdecimal() else words
            elif not word.startswith("-") and not reading.file:
                reading.file = word
                try:
                    text = Path(word).read_text(encoding="utf-8", errors="surrogateescape")
                except OSError as lost:
                    raise Refused(f"Can't open {word}: {lost.strerror}", status=1) from None
            elif word not in ("-v", "--verbose", "-4", "--ipv4"):
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
        hooks, _ = draft.reached = _reach(draft)
        fine = set[tuple[int, frozenset[str]]]()  # rules share extensions
        for chain in draft.chains.values():
            from_hooks = hooks.get(chain.name, frozenset())
            met = _met(chain.rules)
            for number, rule in enumerate(chain.rules):
                if number == met:
                    from_hooks = frozenset()
                for extension in (*rule.matches, rule.target):
                    if extension is None or (id(extension), from_hooks) in fine:
                        continue
                    why = _misplaced(extension, draft.name, from_hooks)
                    if why:
                        return rule, why
                    fine.add((id(extension), from_hooks))
        return None

    def commit(self, draft: Table) -> None:
        """Put a draft in force. Every memory of a rule starts anew, those kept by name live on."""
        self.walk.settle()
        old = self.tables[draft.name]
        if draft.name == "nat":
            _tell_leads(draft)
        # what is new comes before what is old goes, so that nothing both use is ever without a user
        used = set()
        for chain in draft.chains.values():
            for number, rule in enumerate(chain.rules, 1):
                for place, match in enumerate(rule.matches, 1):
                    if not match.always:
                        used.add(id(match))
                        match.start(self.node, f"{draft.name}:{chain.name}:{number}.{place}")
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

    def run(self, argv: list[str], now: int, text: str = "") -> str:
        """Run an `iptables` command, `iptables-save [-c] [-t TABLE]` or `iptables-restore [FILE]`; what it prints.

        text     what iptables-restore finds on its standard input
        Raises   Refused with the tool's words and exit status; Unsupported
        """
        self.walk.settle()
        words = list(argv)
        if words and words[0].rsplit("/", 1)[-1] in PROGRAMS:
            program = words.pop(0).rsplit("/", 1)[-1]
            if program.endswith("-save"):
                return self._run_save(words)
            if program.endswith("-restore"):
                self.restore(text, words)
                return ""
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


#: the programs of iptables, by both of their names
PROGRAMS = tuple(f"iptables{kind}{job}" for kind in ("", "-legacy") for job in ("", "-save", "-restore"))


# ---- what the kernel checks -----------------------------------------------------------------------------------------


#: matches and targets that ask nothing of a packet but what `Tables.steady` allows; two of them depending on options
_STEADY_MATCHES = frozenset(
    ("comment", "tcp", "udp", "icmp", "multiport", "mark", "state", "conntrack", "addrtype", "iprange", "statistic",
     "pkttype", "length", "ttl", "tos", "dscp")
)  # fmt: skip
_STEADY_TARGETS = frozenset(
    ("ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "LOG", "NFLOG", "TTL", "TOS", "DSCP", "DNAT", "SNAT", "MASQUERADE",
     "REDIRECT", "NETMAP")
)  # fmt: skip


def _is_steady(match: Match, early: bool) -> bool:
    """early: it may be asked before it is decided where the connection goes (DNAT)"""
    if match.unmodelled or match.name not in _STEADY_MATCHES:
        return False
    if match.name == "tcp":
        return "--tcp-option" not in match.words()
    if match.name == "conntrack":
        words = [word for word in match.words().split() if word != "!"]
        return words[:1] == ["--ctstate"] and len(words) == 2 and not (early and "NAT" in words[1])
    return True


def _met(rules: Sequence[Rule]) -> int:
    """How many rules of a chain are met: those up to the first that decides about every packet. The kernel does not
    look behind it."""
    return next((n for n, rule in enumerate(rules, 1) if _decides(rule)), len(rules))


def _decides(rule: Rule) -> bool:
    """It decides about every packet."""
    return rule.target is not None and rule.target.name in _STANDARD and rule.bare


def _jumps(table: Table) -> dict[str, list[Rule]]:
    """The rules of each chain that lead to another one, as far as they are met."""
    out = {}
    for chain in table.chains.values():
        jumps = out[chain.name] = list[Rule]()
        for rule in chain.rules:
            if rule.jump:
                jumps.append(rule)
            elif _decides(rule):
                break
    return out


def _reach(table: Table) -> Reached:
    """What of a table packets can reach (see Reached). It must be free of loops."""
    order: list[str] = []
    seen: set[str] = set()
    jumps = {name: [rule.jump for rule in rules] for name, rules in _jumps(table).items()}
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
    from_ = {hook: 1 << k for k, hook in enumerate(HOOKS[table.name])}  # hooks as bits
    ways = dict.fromkeys(HOOKS[table.name], 1)
    for name in reversed(order):
        bits, n = from_[name], ways[name]
        for jump in jumps[name]:
            from_[jump] = from_.get(jump, 0) | bits
            ways[jump] = n if jump not in ways else 2
    sets = {
        bits: frozenset(hook for k, hook in enumerate(HOOKS[table.name]) if bits >> k & 1)
        for bits in set(from_.values())
    }
    return {name: sets[bits] for name, bits in from_.items()}, ways


def _loop(table: Table) -> tuple[Rule, str] | None:
    """A jump that closes a circle which a packet can reach, if there is one."""
    jumps = _jumps(table)
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
                failed = isinstance(bad, Failed)
                self.status = self.status or (1 if failed else 2)
                self.problem(f"line {number} failed: {bad.what}" if failed else bad.what, at, bad.word, bad.hint)
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
_ALONE = frozenset("fvnx46")  # short options that nothing belongs to
_SHORT = frozenset("ACDRILSMFZNXEPopsdjiwWtmcg") | _ALONE
_NAMING = frozenset(("-m", "-j", "-g", "-p", "-i", "-o"))
_INVERTIBLE = frozenset(("-s", "-d", "-p", "-i", "-o", "-f"))
_WITH_RULE = frozenset("ACDIR")

_STANDARD = frozenset(("ACCEPT", "DROP", "RETURN", "QUEUE"))  # targets that are no extensions
#: protocols whose match needs no `-m`: the first option that only it knows brings it in
_IMPLICIT = frozenset(("tcp", "udp", "icmp", "sctp", "dccp", "esp", "ah", "ipcomp"))


@dataclass
class _Done:
    """What a command did."""

    changed: bool
    output: str = ""


_ADDED = _Done(True)


@dataclass
class _Loaded:
    """An extension that the words of a rule have brought in, the options it was given, and where their values stood."""

    cls: type[Extension]
    given: list[Given] = field(default_factory=list)
    at: list[slice] = field(default_factory=list)


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
    at: dict[str, int] = field(default_factory=dict)  # common option -> where its value stands
    names: list[int] = field(default_factory=list)  # where names of matches, targets, protocols and links stand
    spelled_out: bool = True  # every word is an option, or stands behind the one that it belongs to


class _Shape:
    """What rules of one shape have in common: the same options in the same order, of the same matches and target.

    kube-proxy writes tens of thousands of rules of a dozen shapes. The first of a shape is read word by word; of the
    others only the values are looked at. Whatever those have that the first one had not (a chain that is not there, a
    value that nobody takes) is found by reading word by word after all.

    fixed    (place, word) of words that are no options and must be the same: names of matches, protocols, links
    nets     (place, inverted, "src" or "dst") of networks       jump_at   place of the chain that it leads to, 0 none
    """

    def __init__(self, command: _Command, p: _Parsed, rule: Rule, words: list[str]) -> None:
        self.command = command
        self.chain_at = p.at["-A"]
        self.jump_at = p.at["-g" if p.goto else "-j"] if p.jump else 0
        self.fixed = tuple((place, words[place]) for place in p.names if place != self.jump_at)
        self.nets = [(p.at[option], p.base[option][1], name)
                     for option, name in (("-s", "src"), ("-d", "dst")) if option in p.base]  # fmt: skip
        self.rule = rule
        self.matches = [_Reader(loaded) for loaded in p.matches]
        self.target = _Reader(p.target) if p.target else None
        self.context = command.context(p, rule)

    @staticmethod
    def key(words: list[str]) -> tuple[str, ...]:
        """The options of a line, each in its place."""
        return tuple([word if word[:1] in "-!" else "" for word in words])

    @staticmethod
    def fits(p: _Parsed) -> bool:
        """Can others be read as this one was?"""
        plain = p.spelled_out and p.command == "A" and not (p.flags or p.other_family or "-c" in p.at)
        several = any("," in p.base[option][0] for option in ("-s", "-d") if option in p.base)
        return plain and not several and p.operands[0] not in ALL_HOOKS

    def read(self, words: list[str], origin: Origin) -> Rule | None:
        """The rule that these words mean. None: they are to be read word by word, and that says what is wrong."""
        for place, word in self.fixed:
            if words[place] != word:
                return None
        chain = self.command.draft.chains.get(words[self.chain_at])
        if chain is None or chain.policy is not None:
            return None
        try:
            return self._read(words, origin)
        except (Bad, NotModelled):
            return None

    def _read(self, words: list[str], origin: Origin) -> Rule | None:
        chains, first = self.command.draft.chains, self.rule
        rule = Rule.__new__(Rule)
        rule.src = rule.dst = rule._text = None
        rule.link_in, rule.link_out, rule.proto = first.link_in, first.link_out, first.proto
        rule.fragment = first.fragment
        rule.packets = rule.bytes = 0
        rule.origin, rule.goto, rule.jump, rule.target = origin, first.goto, "", None
        if self.jump_at:
            rule.jump = words[self.jump_at]
            to = chains.get(rule.jump)
            if to is None or to.policy is not None:
                return None
        for place, inverted, name in self.nets:
            text = words[place]
            if "," in text:
                return None
            address, mask = _network(text)
            setattr(rule, name, (address, mask, inverted) if mask or inverted else None)
        context = self.context
        context.chain = words[self.chain_at]
        rule.matches = tuple([reader.read(words, context) for reader in self.matches])  # type: ignore[misc]
        if self.target is not None:
            rule.target = target = self.target.read(words, context)  # type: ignore[assignment]
            context.matches = rule.matches
            if target.check(context):  # type: ignore[attr-defined]
                return None
        return rule


class _Reader:
    """Reads one extension of the rules of a shape. One that keeps nothing of its own is made once for equal words."""

    def __init__(self, loaded: _Loaded) -> None:
        self.cls = loaded.cls
        self.options = [(g.option, g.invert, at) for g, at in zip(loaded.given, loaded.at, strict=True)]
        self.made: dict[tuple[str, ...], Extension] = {}
        places = [place for at in loaded.at for place in range(at.start, at.stop)]
        self.one = places[0] if len(places) == 1 else 0
        self.values = itemgetter(*places) if len(places) > 1 else None

    def read(self, words: list[str], context: RuleContext) -> Extension:
        key = (words[self.one],) if self.one else self.values(words) if self.values else ()
        made = self.made.get(key)
        if made is None:
            made = self.cls.read([Given(o, invert, tuple(words[at])) for o, invert, at in self.options], context)
            if _alike(made):
                self.made[key] = made
        return made


def _alike(extension: Extension) -> bool:
    """Two rules may hold the same one: it remembers nothing, and nothing befalls it when a rule comes or goes."""
    if extension.touches or getattr(extension, "sets", None):
        return False
    if isinstance(extension, Match):
        return type(extension).start is Match.start and type(extension).stop is Match.stop
    return is_dataclass(extension) and extension.__dataclass_params__.frozen


def _split(word: str) -> list[str]:
    """Short options that were written together, the last one maybe with its argument.

    The tool takes the whole word for the argument of some: `-ptcp` is a protocol that there is not.

    >>> _split("-nvL"), _split("-AINPUT"), _split("-w5"), _split("-ptcp")
    (['-n', '-v', '-L'], ['-A', 'INPUT'], ['-w', '5'], ['-p', '-ptcp'])
    """
    out = []
    for at, letter in enumerate(word[1:], 1):
        out.append(f"-{letter}")
        if letter not in _ALONE:
            if word[at + 1 :]:
                out.append(word if letter in "sdpjiog" else word[at + 1 :])
            break
    return out


class _Command:
    """Reads iptables commands and does them to a draft of a table."""

    def __init__(self, tables: Tables, draft: Table, restoring: bool) -> None:
        self.tables, self.draft, self.restoring = tables, draft, restoring
        self.opened = False  # the table was looked into while the words were read
        self.shapes: dict[tuple[str, ...], list[_Shape]] = {}  # of the rules that were read so far, by their options
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
            if word == "--":  # here the options end
                if at < end:
                    raise Bad("unknown arguments found on commandline", words[at])
                p.spelled_out = False
                break
            if len(word) > 2 and word[1] != "-" and word[1] in _SHORT:  # -nvL, -AINPUT
                p.spelled_out = False
                words = [*words[: at - 1], *_split(word), *words[at:]]
                at, end = at - 1, len(words)
                continue
            name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            name, loaded, count = self.resolve(name, p)
            values = [value] if equals else []
            if equals and count == 0 and name not in _COMMANDS:
                raise Bad(f'unknown option "{word}"', word, f"{name} takes no value")
            if equals:
                p.spelled_out = False
            if name in _COMMANDS:
                if invert:
                    raise Bad(f"unexpected ! flag before {_COMMANDS[name]}", word)
                p.at[name] = at
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
                loaded.at.append(slice(at - len(values), at))
            else:
                p.at[name] = at - len(values)
                if name in _NAMING:
                    p.names.append(at - 1)
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
            greedy = next((loaded for loaded in brought if getattr(loaded.cls, "greedy", False)), None)
            if greedy is not None and not self.of_protocol(name, p):
                return name, greedy, -1
            if name.startswith("--"):
                found = self.abbreviated(name, brought)
                if found is not None:
                    return found
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
            context = self.context(p, rule)
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

    def context(self, p: _Parsed, rule: Rule) -> RuleContext:
        """What the extensions of a rule may know of it."""
        return RuleContext(
            self.draft.name,
            p.operands[0],
            rule.proto[0] if rule.proto else 0,
            bool(rule.proto and rule.proto[1]),
            self.tables.node.kernel,
            bool(rule.fragment),
            self.sets,
            owners=all_owned(sockets_of(self.tables.node)),
            met=lambda: not any(_decides(other) for other in self.before(p)),
            cpu=getattr(self.tables.node, "cpu", None),
            policies=getattr(getattr(self.tables.node, "conntrack", None), "policies", None),
            accounts=getattr(self.tables.node, "accounts", None),
        )

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

    def before(self, p: _Parsed) -> list[Rule]:
        """The rules that stand before the one that a command means."""
        chain = self.draft.chains.get(p.operands[0])
        at = integer(p.operands[1]) if len(p.operands) > 1 else 1
        return chain.rules[: None if p.command == "A" else (at or 1) - 1] if chain else []

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
        shape = _Shape.key(words) if self.restoring else ()
        alike = self.shapes.get(shape, ())
        for known in alike:
            rule = known.read(words, origin)
            if rule is not None:
                if counters is not None:
                    rule.packets, rule.bytes = counters
                self.draft.chains[words[known.chain_at]].rules.append(rule)
                return _ADDED
        p = self.parse(words)
        if p.other_family:
            if not self.restoring:
                raise Bad("Try `iptables -h' or 'iptables --help' for more information.", hint="-6 is of ip6tables")
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
        learn = self.restoring and len(alike) < 16 and _Shape.fits(p)
        done = getattr(self, f"do_{p.command}")(p, origin)
        assert isinstance(done, _Done)
        if self.restoring:
            done.output = ""
        if learn:
            shapes = self.shapes.setdefault(shape, [])
            shapes.append(_Shape(self, p, self.draft.chains[p.operands[0]].rules[-1], words))
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
        for rule in rules:
            chain, at = self.find(p.operands[0], rule)
            del chain.rules[at]
        return _Done(True)

    def do_C(self, p: _Parsed, origin: Origin) -> _Done:
        for rule in self.rules(p, origin):
            self.find(p.operands[0], rule)
        return _Done(False)

    def find(self, name: str, rule: Rule) -> tuple[Chain, int]:
        """The chain, and where such a rule stands in it."""
        chain = self.draft.chains.get(name)
        for at, other in enumerate(chain.rules if chain else ()):
            if other.text == rule.text:
                assert chain is not None
                return chain, at
        extension = rule.target is not None and rule.target.name not in _STANDARD
        if chain is not None and (extension or rule.jump):
            raise Failed("No chain/target/match by that name.", hint="there is no such rule in that chain")
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
            raise Failed("No chain/target/match by that name.", old, f"{old} is a built-in chain")
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
        wrong = None  # the tool goes on with the others, and tells of the last
        for chain in chains:
            if chain.name in used:
                wrong = Failed("Too many links.", chain.name)
            elif chain.rules:
                wrong = Failed("Directory not empty.", chain.name)
            else:
                del self.draft.chains[chain.name]
        if wrong:
            raise wrong
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
        for chain in self.some(p):  # (the policies' counters begin anew with any change: see `run`)
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
                head.append(f"-P {chain.name} {POLICY_NAMES[chain.policy]}{counts}")
            for number, rule in enumerate(chain.rules, 1):
                if only and number != only:
                    continue
                counts = f" -c {rule.packets} {rule.bytes}" if counted else ""
                words = [f"-A {chain.name}", *rule.criteria()]
                out.append(" ".join(words) + counts + "".join(f" {word}" for word in rule.action()))
        return self.listed(p, [*([] if only else head), *out])

    def do_L(self, p: _Parsed, origin: Origin) -> _Done:
        """As `iptables -L` prints it. Names of hosts, networks and services are not looked up, with or without -n."""
        out: list[str] = []
        counted, numbered, exact = "-v" in p.flags, "--line-numbers" in p.flags, "-x" in p.flags
        uses = [rule.jump for chain in self.draft.chains.values() for rule in chain.rules if rule.jump]
        for chain in self.some(p):
            if out:
                out.append("")
            if chain.policy is None:
                out.append(f"Chain {chain.name} ({uses.count(chain.name)} references)")
            else:
                counts = [_count(n, exact).strip() for n in (chain.packets, chain.bytes)]
                told = f" {counts[0]} packets, {counts[1]} bytes" if counted else ""
                out.append(f"Chain {chain.name} (policy {POLICY_NAMES[chain.policy]}{told})")
            num = "num  " if numbered else ""
            head = "target     prot opt "
            if counted:
                sizes = f"{'pkts':>8s} {'bytes':>10s} " if exact else f"{'pkts':>5s} {'bytes':>5s} "
                head = f"{sizes}{head}{'in':<6s} {'out':<6s}  "
            out.append(f"{num}{head}{'source':<19s}  {'destination':<19s} ")
            for number, rule in enumerate(chain.rules, 1):
                num = f"{number:<4d} " if numbered else ""
                out.append(num + self.row(rule, p.flags))
        return self.listed(p, out)

    def row(self, rule: Rule, flags: set[str]) -> str:
        numeric = "-n" in flags
        name = rule.jump or (rule.target.name if rule.target else "")
        number, inverted = rule.proto or (0, False)
        proto = str(number) if numeric else ("all" if number == 0 else PROTOCOL_NAMES.get(number, str(number)))
        fragment = {None: "--", True: "-f", False: "!f"}[rule.fragment]
        anywhere = "0.0.0.0/0" if numeric else "anywhere"
        nets = [(_turned(net is not None and net[2]), _net_text(net) or anywhere) for net in (rule.src, rule.dst)]
        row = f"{name:<9s} {_turned(inverted)}{proto:<4s} {fragment} "
        if "-v" in flags:
            counts = "".join(_count(n, "-x" in flags) for n in (rule.packets, rule.bytes))
            any_link = "*" if numeric else "any"
            links = [f"{'!' * link[1]}{link[0]}" if link else any_link for link in (rule.link_in, rule.link_out)]
            row = f"{counts}{row} {links[0]:<6s} {links[1]:<6s} "
        row += "".join(f"{bang}{net:<19s} " for bang, net in nets) + "[goto] " * rule.goto
        more = [listing.listed(extension) for extension in (*rule.matches, *([rule.target] if rule.target else []))]
        return row + "".join(f" {text}" for text in more if text)

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


def _count(n: int, exact: bool) -> str:
    """A counter as `-L -v` prints it, whole with -x.

    >>> _count(99999, False), _count(100_000, False), _count(100_000, True), _count(12_345_678, False)
    ('99999 ', ' 100K ', '  100000 ', '  12M ')
    """
    if exact:
        return f"{n:>8d} "
    unit, units = "", iter("KMGT")
    limit = 99_999
    while n > limit and unit != "T":
        n, unit, limit = (n + 500) // 1000, next(units), 9_999
    return f"{n:>{5 - len(unit)}d}{unit} "


def _turned(inverted: bool) -> str:
    """What stands before a column of `-L`."""
    return "!" if inverted else " "


def _net_text(net: tuple[int, int, bool] | None) -> str:
    if net is None or not net[1]:
        return ""
    return dotted(net[0]) + (f"/{_mask_text(net[1])}" if net[1] != 0xFFFFFFFF else "")


def _knows(registry: dict[str, Any]) -> str:
    return "netemu knows: " + ", ".join(sorted(registry))


_PLAIN_NETWORK = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(?:/(0|[1-9][0-9]?))?")


def _network(text: str) -> tuple[int, int]:
    """(address, mask) of `10.0.0.1`, `10.8.0.0/16`, `10.8/16` or `10.8.0.0/255.255.0.0`; host bits cleared.

    >>> _network("10.8.1.1/255.255.0.0") == (0x0A080000, 0xFFFF0000)
    True
    """
    plain = _PLAIN_NETWORK.fullmatch(text)
    if plain is not None:
        a, b, c, d, length = (int(part) for part in plain.groups("32"))
        if max(a, b, c, d) < 256 and length <= 32:
            mask = 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
            return (a << 24 | b << 16 | c << 8 | d) & mask, mask
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


def _tell_leads(table: Table) -> None:
    """Let rules that share out new connections at random know where they send them, as kube-proxy's do:

    -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-B
    -A KUBE-SVC-A -j KUBE-SEP-C         and each of these has one DNAT
    """
    for chain in table.chains.values():
        ends: list[int] | None = None
        for k, rule in enumerate(chain.rules):
            for match in rule.matches:
                if isinstance(match, Statistic) and match.mode == "random" and 0 < match.threshold < 1 << 31:
                    ends = ends or [_lead(table, other) for other in chain.rules]
                    match.leads = Leads(ends[k], frozenset(ends[k + 1 :])) if ends[k] >= 0 else None


def _lead(table: Table, rule: Rule) -> int:
    """The one end (address << 16 | port) to which a rule sends new connections, -1: none or many."""
    rules = table.chains[rule.jump].rules if rule.jump else [rule]
    ways = [r.target for r in rules if isinstance(r.target, Translation) and r.target.manip == "dst"]
    if len(ways) != 1 or ways[0].lo is None or ways[0].port_lo is None:
        return -1
    way = ways[0]
    single = way.hi in (None, way.lo) and way.port_hi in (None, way.port_lo)
    return way.lo << 16 | way.port_lo if single and way.lo is not None and way.port_lo is not None else -1
