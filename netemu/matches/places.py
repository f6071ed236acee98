"""Matches that ask where a packet comes from and goes to: sets, kinds of address, links, sockets, policies.

What the node cannot know is asked of what its model declares (sockets, groups of links), or of nothing (no IPsec).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from netemu.grammar import Bad, Failed, Given, NotModelled, RuleContext
from netemu.ipset import SetOptions
from netemu.matches.base import ALL_HOOKS, NONE, Match, Option, turned
from netemu.packets import ESTABLISHED, ICMP, ICMP_ERRORS, MULTICAST, OFFSET_MASK, RELATED, TCP, UDP, Mask, Rows
from netemu.routing import ADDR_TYPES, LOCAL, UNICAST
from netemu.sockets import Socket, connected, listening, sending, sockets_of
from netemu.words import M32, M64, bang, dotted, hex_masked, integer, read_names, read_number, read_quad, zeros_follow

if TYPE_CHECKING:
    from netemu.ipset import Set
    from netemu.node import Node
    from netemu.trip import Trip

# ---- sets and addresses ---------------------------------------------------------------------------------------------

_COUNTER_OPTIONS = {
    "packets": ("--packets-eq", "--packets-lt", "--packets-gt"),
    "bytes": ("--bytes-eq", "--bytes-lt", "--bytes-gt"),
}


@dataclass(frozen=True)
class SetMatch(Match, name="set"):
    """--match-set NAME DIRS [--return-nomatch] [! --update-counters] [--packets-eq N] ...

    The set itself knows everything (ipset.Set.match); `!` turns its whole answer round.
    """

    SPEC: ClassVar = {
        "--match-set": Option(2, invert=True, old=("--set",), often=True),
        "--return-nomatch": Option(0, invert=True, often=True),
        "--update-counters": Option(0, invert=True, often=True),
        "--update-subcounters": Option(0, invert=True, often=True),
        **{x: Option(invert=True, often=True) for group in _COUNTER_OPTIONS.values() for x in group},
    }
    set: str
    dirs: tuple[str, ...]
    invert: bool = False
    return_nomatch: bool = False
    update_counters: bool = True
    update_subcounters: bool = True
    packets: tuple[str, int, bool] | None = None  # eq, lt or gt; value; invert
    bytes: tuple[str, int, bool] | None = None

    @property
    def touches(self) -> frozenset[str]:
        """A set that nobody writes to and that keeps no counters is no memory: ask its `remembers`."""
        return frozenset((f"set:{self.set}",))

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.set,)

    def steadfast(self, node: Node) -> bool:
        found = node.sets.get(self.set)
        return found is not None and found.steadfast and not node.tables.written(self.set)

    @classmethod
    def _sorted_out(cls, given: list[Given]) -> dict[str, Given]:
        if sum(cls._spellings.get(g.option) == "--match-set" for g in given) > 1:
            raise Bad("--match-set can be specified only once", "--match-set")
        for kind, group in _COUNTER_OPTIONS.items():
            if sum(g.option in group for g in given) > 1:
                raise Bad(f"only one of the --{kind}-[eq|lt|gt] is allowed", group[0])
        out = super()._sorted_out(given)
        for g in given:  # a flag once given with `!` stays so
            if g.invert and g.option.startswith("--update"):
                out[g.option] = g
        return out

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if "--match-set" not in o:
            raise Bad("You must specify `--match-set' with proper arguments")
        g = o["--match-set"]
        name, dirs = g.values[0], tuple(g.values[1].split(","))
        if len(name.encode("utf-8", "surrogateescape")) > 31:
            raise Bad(f"setname `{name}' too long, max 31 characters.", name)
        if name not in rule.sets:
            raise Bad(f"Set {name} doesn't exist.", name, "create it first (ipset.save)")
        if len(dirs) > 6:
            raise Bad("Can't be more src/dst options than 6.", g.values[1])
        if any(d not in ("src", "dst") for d in dirs):
            raise Bad("You must spefify (the comma separated list of) 'src' or 'dst'.", g.values[1])
        if "--return-nomatch" in o and o["--return-nomatch"].invert:
            raise Bad("--return-nomatch flag cannot be inverted", "--return-nomatch")
        conditions: dict[str, tuple[str, int, bool] | None] = {}
        for kind, group in _COUNTER_OPTIONS.items():
            conditions[kind] = None
            for option in group:
                if option in o:
                    how = option[-2:]
                    value = integer(o[option].value)
                    if value is None or value > M64:
                        raise Bad(f"Cannot parse {o[option].value} as a counter value", o[option].value)
                    if o[option].invert and how != "eq":
                        raise Bad(f"{option} option cannot be inverted", option)
                    conditions[kind] = (how, value, o[option].invert)
        return cls(
            name,
            dirs,
            g.invert,
            "--return-nomatch" in o,
            "--update-counters" not in o or not o["--update-counters"].invert,
            "--update-subcounters" not in o or not o["--update-subcounters"].invert,
            conditions["packets"],
            conditions["bytes"],
        )

    def words(self) -> str:
        out = [f"{bang(self.invert)}--match-set {self.set} {','.join(self.dirs)}"]
        if self.return_nomatch:
            out.append("--return-nomatch")
        if not self.update_counters:
            out.append("! --update-counters")
        if not self.update_subcounters:
            out.append("! --update-subcounters")
        for kind, condition in (("packets", self.packets), ("bytes", self.bytes)):
            if condition:
                out.append(f"{bang(condition[2])}--{kind}-{condition[0]} {condition[1]}")
        return " ".join(out)

    @cached_property
    def _options(self) -> SetOptions:
        def how(condition: tuple[str, int, bool] | None) -> tuple[str, int]:
            if condition is None:
                return "", 0
            return "ne" if condition[2] else condition[0], condition[1]

        flags = self.return_nomatch, self.update_counters, self.update_subcounters
        return SetOptions(*flags, *how(self.packets), *how(self.bytes))

    def _members(self, trip: Trip) -> Set:
        members = trip.node.sets.get(self.set)
        assert members is not None  # rules hold a reference: a set that they use cannot be destroyed
        return members

    def many(self, trip: Trip, rows: Rows) -> Mask:
        hit = self._members(trip).match(trip, rows, self.dirs, self._options)
        return turned(hit, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return self._members(trip).matches(trip, row, self.dirs, self._options) != self.invert


@dataclass(frozen=True)
class Addrtype(Match, name="addrtype"):
    """--src-type LIST, --dst-type LIST [--limit-iface-in | --limit-iface-out]: what kind of address routing sees.

    With a limit an address is LOCAL (or BROADCAST) only on the link that has it, elsewhere UNICAST.
    """

    alike = True
    SPEC: ClassVar = {
        "--src-type": Option(invert=True),
        "--dst-type": Option(invert=True),
        "--limit-iface-in": Option(0, alone=("--limit-iface-out",)),
        "--limit-iface-out": Option(0, alone=("--limit-iface-in",)),
    }
    src: tuple[frozenset[str], bool] | None = None
    dst: tuple[frozenset[str], bool] | None = None
    limit: str = ""  # in, out

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        sides: list[tuple[frozenset[str], bool] | None] = []
        for option in ("--src-type", "--dst-type"):
            g = o.get(option)
            sides.append(None if g is None else (read_names(g.value, ADDR_TYPES, "addrtype: bad type"), g.invert))
        if sides == [None, None]:
            raise Bad("addrtype: you must specify --src-type or --dst-type")
        limit = "in" if "--limit-iface-in" in o else "out" if "--limit-iface-out" in o else ""
        return cls(sides[0], sides[1], limit)

    @property
    def hooks(self) -> frozenset[str]:
        if self.limit == "in":
            return ALL_HOOKS - {"OUTPUT", "POSTROUTING"}
        return ALL_HOOKS - {"PREROUTING", "INPUT"} if self.limit else ALL_HOOKS

    def words(self) -> str:
        out = []
        for option, side in (("--src-type", self.src), ("--dst-type", self.dst)):
            if side:
                out.append(f"{bang(side[1])}{option} {','.join(t for t in ADDR_TYPES if t in side[0])}")
        if self.limit:
            out.append(f"--limit-iface-{self.limit}")
        return " ".join(out)

    @cached_property
    def _answers(self) -> dict[str, Mask]:
        """bool[256] by the code of the type, the inversion included."""
        out = {}
        for name, side in (("src", self.src), ("dst", self.dst)):
            if side:
                table = np.zeros(256, bool)
                table[[ADDR_TYPES[t] for t in side[0]]] = True
                out[name] = table != side[1]
        return out

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes: Mask | None = None
        for column, answers in self._answers.items():
            links = None if not self.limit else (p.link_in if self.limit == "in" else p.link_out)[rows]
            said = answers[trip.node.routing.addr_type(getattr(p, column)[rows], links)]
            yes = said if yes is None else yes & said
        assert yes is not None
        return yes

    @cached_property
    def _known(self) -> dict[tuple[str, int, int], bool]:
        """Answers for single packets by (column, address, link), of the routing that `_routing` names."""
        return {}

    @cached_property
    def _routing(self) -> list[object]:
        return [None, -1]

    def says(self, trip: Trip, row: int) -> bool:
        p, routing, known = trip.pkts, trip.node.routing, self._known
        if self._routing[0] is not routing or self._routing[1] != routing.version or len(known) > 1 << 16:
            known.clear()
            self._routing[:] = [routing, routing.version]
        link = (p.link_in if self.limit == "in" else p.link_out).item(row) if self.limit else -1
        for column, answers in self._answers.items():
            addresses: NDArray[np.uint32] = getattr(p, column)
            key = (column, addresses.item(row), link)
            yes = known.get(key)
            if yes is None:
                links = np.array([link], np.int16) if self.limit else None
                yes = known[key] = bool(answers[routing.addr_type(addresses[row : row + 1], links)][0])
            if not yes:
                return False
        return True


# ---- links and frames -----------------------------------------------------------------------------------------------


def _link_pattern(name: str) -> str:
    if len(name) > 15:
        raise Bad(f"interface name `{name}' must be shorter than IFNAMSIZ (15)", name)
    return name


@dataclass(frozen=True)
class Physdev(Match, name="physdev"):
    """--physdev-in NAME, --physdev-out NAME, --physdev-is-in, --physdev-is-out, --physdev-is-bridged.

    netemu has no bridges' ports: such a packet matches only if everything that is asked is inverted.
    """

    alike = True
    SPEC: ClassVar = {
        "--physdev-in": Option(invert=True),
        "--physdev-out": Option(invert=True),
        "--physdev-is-in": Option(0, invert=True),
        "--physdev-is-out": Option(0, invert=True),
        "--physdev-is-bridged": Option(0, invert=True),
    }
    asked: tuple[tuple[str, str, bool], ...]  # option, name, invert

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("PHYSDEV: no physdev option specified")
        order = ("--physdev-is-in", "--physdev-in", "--physdev-is-out", "--physdev-out", "--physdev-is-bridged")
        out = []
        for option in order:
            if option in o:
                name = _link_pattern(o[option].value) if o[option].values else ""
                out.append((option, name, o[option].invert))
        return cls(tuple(out))

    @property
    def hooks(self) -> frozenset[str]:
        out = {option for option, _, _ in self.asked} & {"--physdev-out", "--physdev-is-out"}
        bridged = ("--physdev-is-bridged", "", False) in self.asked
        return ALL_HOOKS - {"OUTPUT"} if out and not bridged else ALL_HOOKS

    def words(self) -> str:
        return " ".join(
            f"{bang(invert)}{option}" + (f" {name}" if self.SPEC[option].words else "")
            for option, name, invert in self.asked
        )

    @cached_property
    def _answer(self) -> bool:
        return all(invert for _, _, invert in self.asked)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), self._answer)

    def says(self, trip: Trip, row: int) -> bool:
        return self._answer


@dataclass(frozen=True)
class Iprange(Match, name="iprange"):
    """--src-range A-B, --dst-range A-B, ends included."""

    alike = True
    SPEC: ClassVar = {"--src-range": Option(invert=True), "--dst-range": Option(invert=True)}
    src: tuple[int, int, bool] | None = None
    dst: tuple[int, int, bool] | None = None

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("iprange match: You must specify `--src-range' or `--dst-range'")
        sides: list[tuple[int, int, bool] | None] = []
        for option in ("--src-range", "--dst-range"):
            g = o.get(option)
            if g is None:
                sides.append(None)
                continue
            first, dash, last = g.value.partition("-")
            ends = []
            for text in (first, last if dash else first):
                n = read_quad(text, zeros_follow) if text else None
                if n is None:
                    raise Bad(f'iprange: Bad value for "{option}" option: "{text}"', g.value)
                ends.append(n)
            sides.append((ends[0], ends[1], g.invert))
        return cls(*sides)

    def words(self) -> str:
        return " ".join(
            f"{bang(side[2])}{option} {dotted(side[0])}-{dotted(side[1])}"
            for option, side in (("--src-range", self.src), ("--dst-range", self.dst))
            if side
        )

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts
        yes = np.ones(len(rows), bool)
        for column, side in ((p.src, self.src), (p.dst, self.dst)):
            if side:
                address = column[rows]
                yes &= ((address >= side[0]) & (address <= side[1])) != side[2]
        return yes

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        for column, side in ((p.src, self.src), (p.dst, self.dst)):
            if side and (side[0] <= column.item(row) <= side[1]) == side[2]:
                return False
        return True


@dataclass(frozen=True)
class Owner(Match, name="owner"):
    """--uid-owner A[-B], --gid-owner A[-B] [--suppl-groups], --socket-exists: whose socket the packet was sent from.

    A packet that the node sent has a socket, and so has an ICMP error, which is nobody's: neither user nor group fits.
    Who holds a socket no capture tells: [[socket]] of node.toml does. Without a socket all must be inverted.
    """

    SPEC: ClassVar = {
        "--uid-owner": Option(invert=True),
        "--gid-owner": Option(invert=True),
        "--socket-exists": Option(0, invert=True),
        "--suppl-groups": Option(0),
    }
    _hooks: ClassVar[frozenset[str]] = frozenset(("OUTPUT", "POSTROUTING"))
    exists: bool | None = None  # what --socket-exists wants
    uid: tuple[int, int, bool] | None = None
    gid: tuple[int, int, bool] | None = None
    supplementary: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("owner: At least one of --uid-owner, --gid-owner or --socket-exists is required")
        if "--suppl-groups" in o and "--gid-owner" not in list(o)[: list(o).index("--suppl-groups")]:
            raise Bad('owner: Bad value for "--suppl-groups" option: "you need to use --gid-owner first"')
        exists = not o["--socket-exists"].invert if "--socket-exists" in o else None
        uid, gid = (cls._range(o[option]) if option in o else None for option in ("--uid-owner", "--gid-owner"))
        if rule.chain in ALL_HOOKS - cls._hooks:
            raise Failed(f"Invalid argument: match `owner' is not valid in the chain {rule.chain}")
        if any(ends and ends[0] > ends[1] for ends in (uid, gid)):
            raise Failed("Invalid argument: a range of owners that ends before it begins")
        if (uid or gid) and not rule.owners:
            option = "--uid-owner" if uid else "--gid-owner"
            raise NotModelled(
                f"`owner {option}': packets of a capture do not say who sent them",
                option,
                "say it in node.toml: [[socket]] with uid and gid alone is for all, with proto and port for some",
            )
        return cls(exists, uid, gid, "--suppl-groups" in o)

    @staticmethod
    def _range(g: Given) -> tuple[int, int, bool]:
        low, _, high = g.value.replace(":", "-").partition("-")
        first = 0 if g.value == "root" else integer(low)
        last = first if low == g.value else integer(high)
        if first is None or last is None or first >= M32 or last >= M32:
            hint = "names of users and groups are not looked up: write the number"
            raise Bad(f'owner: Bad value for "{g.option}" option: "{g.value}"', g.value, hint)
        return first, last, g.invert

    @property
    def hooks(self) -> frozenset[str]:
        return self._hooks

    def words(self) -> str:
        out = [] if self.exists is None else [f"{bang(not self.exists)}--socket-exists"]
        for option, ends in (("--uid-owner", self.uid), ("--gid-owner", self.gid)):
            if ends:
                out.append(f"{bang(ends[2])}{option} {ends[0]}" + f"-{ends[1]}" * (ends[0] != ends[1]))
        return " ".join([*out, *["--suppl-groups"] * self.supplementary])

    def says(self, trip: Trip, row: int) -> bool:
        if not trip.pkts.socket.item(row):  # then nothing inverts --suppl-groups
            return (
                not self.exists
                and not self.supplementary
                and all(ends is None or ends[2] for ends in (self.uid, self.gid))
            )
        if self.exists is False:
            return False
        who = self.holder(trip, row)
        if who is None:
            return all(ends is None or ends[2] for ends in (self.uid, self.gid))
        groups = (who.gid, *who.groups) if self.supplementary else (who.gid,)
        return self._holds(self.uid, (who.uid or 0,)) and self._holds(self.gid, groups)

    @staticmethod
    def _holds(wanted: tuple[int, int, bool] | None, numbers: tuple[int, ...]) -> bool:
        return wanted is None or any(wanted[0] <= n <= wanted[1] for n in numbers) != wanted[2]

    @staticmethod
    def holder(trip: Trip, row: int) -> Socket | None:
        """The socket that a packet was sent from, with its owner; None for what the kernel itself sent."""
        p = trip.pkts
        if trip.parent is not None:
            return None
        ends = p.src.item(row), p.sport.item(row), p.dst.item(row), p.dport.item(row)
        return sending(sockets_of(trip.node), p.proto.item(row), *ends)


@dataclass(frozen=True)
class Cpu(Match, name="cpu"):
    """--cpu N: the processor that handles the packet, which node.toml must name (cpu = 0)."""

    SPEC: ClassVar = {"--cpu": Option(invert=True)}
    NEEDED = ("--cpu",)
    cpu: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--cpu"]
        cpu = read_number(cls.name, "--cpu", g.value, M32)
        if rule.cpu is None:
            raise NotModelled(
                "`cpu': which processor handles a packet is chance", "--cpu", "name one: cpu = 0 in node.toml"
            )
        return cls(cpu, g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--cpu {self.cpu}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), (trip.node.cpu == self.cpu) != self.invert)


@dataclass(frozen=True)
class Mac(Match, name="mac"):
    """--mac-source XX:XX:XX:XX:XX:XX: the Ethernet source. Without an Ethernet header (as on lo) never, `!` or not."""

    SPEC: ClassVar = {"--mac-source": Option(invert=True)}
    NEEDED = ("--mac-source",)
    mac: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--mac-source"]
        octets = g.value.split(":")
        if len(octets) != 6 or not all(re.fullmatch("[0-9a-fA-F]{0,2}", x) for x in octets) or "" in octets[:-1]:
            raise Bad("Invalid MAC address specified.", g.value)
        return cls(int.from_bytes(bytes(int(x or "0", 16) for x in octets), "big"), g.invert)

    @property
    def hooks(self) -> frozenset[str]:
        return frozenset(("PREROUTING", "INPUT", "FORWARD"))

    def words(self) -> str:
        return f"{bang(self.invert)}--mac-source {self.mac.to_bytes(6, 'big').hex(':')}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p = trip.pkts  # link 0 is lo
        said: Mask = p.ether[rows] & (p.link_in[rows] != 0) & turned(p.smac[rows] == self.mac, self.invert)
        return said

    def says(self, trip: Trip, row: int) -> bool:
        p = trip.pkts
        return p.ether.item(row) and p.link_in.item(row) != 0 and (p.smac.item(row) == self.mac) != self.invert


_PACKET_TYPES = {
    "unicast": 0, "host": 0, "broadcast": 1, "bcast": 1, "multicast": MULTICAST, "mcast": MULTICAST, "otherhost": 3
}  # fmt: skip


@dataclass(frozen=True)
class Pkttype(Match, name="pkttype"):
    """--pkt-type unicast|broadcast|multicast|otherhost: how the frame was addressed."""

    alike = True
    SPEC: ClassVar = {"--pkt-type": Option(invert=True)}
    NEEDED = ("--pkt-type",)
    type: int
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--pkt-type"]
        if g.value.lower() not in _PACKET_TYPES:
            raise Bad(f"Bad packet type '{g.value}'", g.value, "one of " + ", ".join(_PACKET_TYPES))
        return cls(_PACKET_TYPES[g.value.lower()], g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--pkt-type {next(n for n, t in _PACKET_TYPES.items() if t == self.type)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return turned(trip.pkts.pkttype[rows] == self.type, self.invert)

    def says(self, trip: Trip, row: int) -> bool:
        return (trip.pkts.pkttype.item(row) == self.type) != self.invert


@dataclass(frozen=True)
class Realm(Match, name="realm"):
    """--realm VALUE[/MASK]: the realm of the route. No route of a model has one, so the realm is 0."""

    alike = True
    SPEC: ClassVar = {"--realm": Option(invert=True)}
    NEEDED = ("--realm",)
    value: int
    wild: int = M32
    invert: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--realm"]
        value, slash, mask = g.value.partition("/")
        v = 0 if value == "cosmos" else integer(value)
        if v is None or v > M32:
            raise Bad(f'realm: could not map name {value} to an integer value for option "--realm".', g.value)
        m = integer(mask) if slash else M32
        if m is None or m > M32:
            raise Bad('realm: bad integer value for option "--realm", or out of range.', g.value)
        return cls(v, m, g.invert)

    @property
    def hooks(self) -> frozenset[str]:
        return ALL_HOOKS - {"PREROUTING"}

    def words(self) -> str:
        if self.wild == M32 and not self.value:
            return f"{bang(self.invert)}--realm cosmos"
        return f"{bang(self.invert)}--realm {hex_masked(self.value, self.wild)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), (self.value == 0) != self.invert)


# ---- routes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rpfilter(Match, name="rpfilter"):
    """[--loose] [--validmark] [--accept-local] [--invert]: would an answer to the source leave by the input device?"""

    alike = True
    SPEC: ClassVar = {
        "--loose": Option(0),
        "--validmark": Option(0),
        "--accept-local": Option(0),
        "--invert": Option(0),
    }
    tables = frozenset(("raw", "mangle"))
    flags: frozenset[str] = NONE

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        return cls(frozenset(o))

    @property
    def hooks(self) -> frozenset[str]:
        return frozenset(("PREROUTING",))

    def words(self) -> str:
        return " ".join(option for option in self.SPEC if option in self.flags)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        p, routing = trip.pkts, trip.node.routing
        src, dst, link = p.src[rows], p.dst[rows], p.link_in[rows]
        mark = p.mark[rows] if "--validmark" in self.flags else np.zeros(len(rows), np.uint32)
        multicast = dst >> 28 == 14
        # the answer would come from the destination, if that can be a source
        source = np.where(multicast | (dst == M32) | (dst >> 24 == 0), np.uint32(0), dst)
        back = routing.output(src, source, mark, p.tos[rows])
        yes = back.kind == UNICAST
        if "--loose" not in self.flags:
            yes &= back.link == link
        if "--accept-local" in self.flags:
            here = None if "--loose" in self.flags else link
            yes |= (back.kind == LOCAL) & (routing.addr_type(src, here) == LOCAL)
        yes |= link == 0
        special = multicast & (src >> 24 == 0)
        yes = np.where(special & (link != 0), dst >> 8 == 0xE00000, yes)
        return turned(yes, "--invert" in self.flags)


# ---- IPsec policies -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy(Match, name="policy"):
    """--dir in|out --pol none|ipsec [--strict], and for each transformation --reqid, --spi, --proto, --mode, ...

    The emulated node has no IPsec, so no packet comes from, or goes to, a policy: `none` is always true, `ipsec` never.
    elements   what each transformation of the policy must be, as printed
    """

    alike = True
    SPEC: ClassVar = {
        "--dir": Option(),
        "--pol": Option(),
        "--strict": Option(0),
        "--reqid": Option(invert=True, often=True),
        "--spi": Option(invert=True, often=True),
        "--tunnel-src": Option(invert=True, often=True),
        "--tunnel-dst": Option(invert=True, often=True),
        "--proto": Option(invert=True, often=True),
        "--mode": Option(invert=True, often=True),
        "--next": Option(0, often=True),
    }
    PROTOCOLS: ClassVar[dict[str, str]] = {
        "esp": "esp",
        "ah": "ah",
        "ipcomp": "ipcomp",
        "50": "esp",
        "51": "ah",
        "108": "ipcomp",
    }
    ELEMENT: ClassVar[tuple[str, ...]] = ("--reqid", "--spi", "--proto", "--mode", "--tunnel-dst", "--tunnel-src")
    out: bool
    none: bool
    strict: bool = False
    elements: tuple[str, ...] = ()

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        cls._sorted_out(given)
        o = {g.option: g for g in given}
        if "--dir" not in o:
            raise Bad("policy match: neither --dir in nor --dir out specified")
        where, pol = o["--dir"].value, o["--pol"].value if "--pol" in o else "ipsec"
        if where not in ("in", "out"):
            raise Bad(f'policy_match: invalid dir "{where}"', where)
        if pol not in ("none", "ipsec"):
            raise Bad(f'policy match: invalid policy "{pol}"', pol)
        elements: list[dict[str, str]] = [{}]
        for g in given:
            if g.option == "--next":
                elements.append({})
            elif g.option in cls.ELEMENT:
                if g.option in elements[-1]:
                    raise Bad(f"policy match: double {g.option} option", g.option)
                elements[-1][g.option] = f"{bang(g.invert)}{g.option} {cls._value(g)}"
        if len(elements) > 1 and "--strict" not in o:
            raise Bad('policy: option "--next" also requires "--strict".', "--next")
        if len(elements) > 4:
            raise Bad("policy match: maximum policy depth reached", "--next")
        for k, e in enumerate(elements):
            if "--strict" in o and not e:
                raise Bad(
                    f"policy match: empty policy element {k}. --strict is in effect, but at least one of reqid, spi, "
                    "tunnel-src, tunnel-dst, proto or mode is required."
                )
            if ("--tunnel-src" in e or "--tunnel-dst" in e) and e.get("--mode") != "--mode tunnel":
                raise Bad("policy match: --tunnel-src/--tunnel-dst is only valid in tunnel mode")
        shown = [" ".join(e[option] for option in cls.ELEMENT if option in e) for e in elements]
        none = pol == "none"
        one = cls(where == "out", none, "--strict" in o and not none, () if none else tuple(filter(None, shown)))
        why = one.check(rule)
        if why:
            raise Failed(f"Invalid argument: {why}")
        return one

    @classmethod
    def _value(cls, g: Given) -> str:
        text = g.value
        if g.option == "--reqid":
            return str(read_number("policy", g.option, text, M32))
        if g.option == "--spi":
            return f"{read_number('policy', g.option, text, M32):#x}"
        if g.option == "--mode":
            if text not in ("tunnel", "transport"):
                raise Bad(f'policy match: invalid mode "{text}"', text)
            return text
        if g.option == "--proto":
            if text not in cls.PROTOCOLS:
                raise Bad(f'unknown protocol "{text}" specified', text)
            return cls.PROTOCOLS[text]
        address, _, plen = text.partition("/")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", address) or (plen and not re.fullmatch(r"\d\d?", plen)):
            raise Bad(f'Bad IP address "{text}"', text)
        return address if plen in ("", "32") else f"{address}/{plen}"

    @property
    def hooks(self) -> frozenset[str]:
        """A policy inwards is known once the packet is in, one outwards as long as it is not out."""
        return frozenset(("FORWARD", *(("OUTPUT", "POSTROUTING") if self.out else ("PREROUTING", "INPUT"))))

    def words(self) -> str:
        out = [f"--dir {'out' if self.out else 'in'} --pol {'none' if self.none else 'ipsec'}"]
        return " ".join([*out, *(["--strict"] if self.strict else []), " --next ".join(self.elements)]).rstrip()

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.full(len(rows), self.none)


@dataclass(frozen=True)
class Devgroup(Match, name="devgroup"):
    """--src-group N[/MASK], --dst-group N[/MASK]: the group of the input, of the output device; 0 unless given.

    sides   (input or output, group as written, value, mask, inverted)
    """

    alike = True
    SPEC: ClassVar = {"--src-group": Option(invert=True), "--dst-group": Option(invert=True)}
    sides: tuple[tuple[str, str, int, int, bool], ...]

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        if not o:
            raise Bad("devgroup match: You must specify either '--src-group' or '--dst-group'")
        sides = []
        for option, column in (("--src-group", "link_in"), ("--dst-group", "link_out")):
            if option in o:
                text = o[option].value
                value, slash, mask = text.partition("/")
                v, m = 0 if text == "default" else integer(value), integer(mask) if slash else M32
                if v is None or v > M32 or m is None or m > M32:
                    raise Bad(f'devgroup: could not map name {text} to an integer value for option "{option}".', text)
                shown = f"{v:#x}/{m:#x}" if m != M32 else "default" if v == 0 else f"{v:#x}"
                sides.append((column, f"{option} {shown}", v, m, o[option].invert))
        return cls(tuple(sides))

    @property
    def hooks(self) -> frozenset[str]:
        """Where there is such a device."""
        named = {side[0] for side in self.sides}
        hooks = {"PREROUTING", "INPUT", "FORWARD"} if "link_in" in named else set(super().hooks)
        return frozenset(hooks & {"FORWARD", "OUTPUT", "POSTROUTING"} if "link_out" in named else hooks)

    def words(self) -> str:
        return " ".join(f"{bang(invert)}{shown}" for _, shown, _, _, invert in self.sides)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        groups = self.groups(trip)
        answer = np.ones(len(rows), bool)
        for column, _, value, mask, invert in self.sides:
            links: NDArray[np.int16] = getattr(trip.pkts, column)[rows]
            answer &= (((groups[links] ^ np.uint32(value)) & np.uint32(mask)) == 0) != invert
        return answer

    @staticmethod
    def groups(trip: Trip) -> NDArray[np.uint32]:
        """The group of each link; that of no link, the last, is 0."""
        return np.array([*(link.group for link in trip.node.routing.links), 0], np.uint32)


# ---- sockets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SocketMatch(Match, name="socket"):
    """A local socket waits for the packet: one of its own conversation, or a listener bound to its very destination.

    --nowildcard: listeners on any address count too. --transparent: only transparent sockets. --restore-skmark: the
    packet takes the socket's mark. Sockets are those that the model declares; without any nothing ever matches.
    """

    SPEC: ClassVar = {"--transparent": Option(0), "--nowildcard": Option(0), "--restore-skmark": Option(0)}
    needs_defrag = True
    transparent: bool = False
    nowildcard: bool = False
    restore: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        return cls("--transparent" in o, "--nowildcard" in o, "--restore-skmark" in o)

    @property
    def hooks(self) -> frozenset[str]:
        return frozenset(("PREROUTING", "INPUT"))

    def words(self) -> str:
        on = (
            ("--transparent", self.transparent),
            ("--nowildcard", self.nowildcard),
            ("--restore-skmark", self.restore),
        )
        return " ".join(word for word, flag in on if flag)

    def many(self, trip: Trip, rows: Rows) -> Mask:
        sockets = sockets_of(trip.node)
        if not sockets:
            return np.zeros(len(rows), bool)
        return np.fromiter((self._one(trip, row, sockets) for row in rows.tolist()), bool, len(rows))

    def _one(self, trip: Trip, row: int, sockets: tuple[Socket, ...]) -> bool:
        p = trip.pkts
        ends = self._ends(trip, row)
        if ends is None:
            return False
        proto, src, sport, dst, dport = ends
        s = connected(sockets, proto, src, sport, dst, dport) or listening(sockets, proto, dst, dport)
        if s is None or (not self.nowildcard and s.address == 0) or (self.transparent and not s.transparent):
            return False
        if self.restore:
            p.mark[row] = s.mark
        return True

    @staticmethod
    def _ends(trip: Trip, row: int) -> tuple[int, int, int, int, int] | None:
        """(protocol, source, its port, destination, its port) as the socket would have them."""
        p = trip.pkts
        proto, state, flow = int(p.proto[row]), int(p.state[row]), int(p.ct[row])
        if p.frag[row] & OFFSET_MASK:
            return None
        if proto in (TCP, UDP):
            ends = (proto, int(p.src[row]), int(p.sport[row]), int(p.dst[row]), int(p.dport[row]))
            answer = state == ESTABLISHED
        elif proto == ICMP and p.icmp_type[row] in ICMP_ERRORS:
            inner = p.payload(row)[8:]
            ihl = (inner[0] & 15) * 4 if len(inner) >= 20 else 0
            if ihl < 20 or len(inner) < ihl + 4 or inner[9] not in (TCP, UDP):
                return None
            sport, dport = struct.unpack_from("!HH", inner, ihl)
            src, dst = struct.unpack_from("!II", inner, 12)
            ends = (inner[9], dst, dport, src, sport)  # the packet that it is about went out
            answer = state == RELATED
        else:
            return None
        ct = trip.node.conntrack
        if flow >= 0 and answer and p.reply[row] and ct.status[flow] & 128:  # source translation undone
            return ends[0], ends[1], ends[2], int(ct.osrc[flow]), int(ct.osport[flow])
        return ends
