"""Timeout policies: what `nfct add timeout` makes, and `-j CT --timeout NAME` gives to connections.

A policy holds every timeout of one protocol: those that it names, and for the rest what the sysctls said when it was
made. A connection that has one never asks the sysctls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netemu.clock import SECOND
from netemu.errors import Refused, Unsupported
from netemu.packets import DCCP, GRE, ICMP, SCTP, TCP, UDP, UDPLITE
from netemu.tcp import STATES
from netemu.words import integer

if TYPE_CHECKING:
    from netemu.conntrack import Conntrack

GENERIC = 255
SEEN = 4  # so many letters of a name Linux shows in rules: longer ones cannot be restored from a dump
#: name -> protocol number
PROTOCOLS = {
    "tcp": TCP, "udp": UDP, "udplite": UDPLITE, "icmp": ICMP, "sctp": SCTP, "dccp": DCCP, "gre": GRE,
    "generic": GENERIC,
}  # fmt: skip
_NAMES = {number: name for name, number in PROTOCOLS.items()}
#: the timeouts of each protocol, by the names that nfct has for them
TIMEOUTS: dict[int, tuple[str, ...]] = {
    TCP: (*(state.lower() for state in STATES[1:]), "retrans", "unacknowledged"),
    UDP: ("unreplied", "replied"),
    UDPLITE: ("unreplied", "replied"),
    GRE: ("unreplied", "replied"),
    ICMP: ("timeout",),
    GENERIC: ("timeout",),
    SCTP: (
        "closed", "cookie_wait", "cookie_echoed", "established", "shutdown_sent", "shutdown_recd", "shutdown_ack_sent",
    ),
    DCCP: ("request", "respond", "partopen", "open", "closereq", "closing", "timewait"),
}  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """One policy. seconds: by name of the timeout, those that were said."""

    name: str
    proto: int
    seconds: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """The words of `nfct add timeout` that make it."""
        return " ".join([self.name, "inet", _NAMES[self.proto], *(f"{k} {v}" for k, v in self.seconds)])


def policy(words: Sequence[str]) -> Policy:
    """`NAME inet PROTOCOL STATE SECONDS ...`, as nfct reads it. Raises Refused or Unsupported."""
    if len(words) < 3:
        raise Refused("nfct: policy name, `inet', protocol and timeouts are missing", status=1)
    name, family, proto = words[:3]
    if family == "inet6":
        raise Unsupported("a timeout policy for IPv6")
    if family != "inet":
        raise Refused(f"nfct: unsupported family `{family}'", status=1)
    if proto not in PROTOCOLS:
        raise Refused(f"nfct: unsupported protocol `{proto}'", status=1, hint="one of " + ", ".join(PROTOCOLS))
    return made(name, proto, dict(zip(words[3::2], [*words[4::2], ""], strict=False)))


def made(name: str, proto: str, given: Mapping[str, str | int]) -> Policy:
    """The policy of this name. Raises Refused."""
    number = PROTOCOLS[proto]
    if not 0 < len(name) < 32:
        raise Refused(f"nfct: a policy's name has 1 to 31 characters, not `{name}'", status=1)
    out = []
    for state, value in given.items():
        if state.lower() not in TIMEOUTS[number]:
            hint = "it has " + ", ".join(TIMEOUTS[number])
            raise Refused(f"nfct: Wrong state name: `{state}' for protocol `{proto}'", status=1, hint=hint)
        seconds = value if isinstance(value, int) else integer(value)
        if seconds is None or not 0 <= seconds <= 0xFFFFFFFF:
            raise Refused(f"nfct: not a number of seconds for `{state}': `{value}'", status=1)
        out.append((state.lower(), seconds))
    return Policy(name, number, tuple(out))


class Policies:
    """All policies of a node.

    by_name  name -> its number, from 1, and what it is      values  by number: name of each timeout -> ns
    """

    def __init__(self, conntrack: Conntrack) -> None:
        self.conntrack = conntrack
        self.by_name: dict[str, tuple[int, Policy]] = {}
        self.values: list[dict[str, int]] = [{}]
        self.protocols: list[int] = [0]

    def add(self, one: Policy) -> None:
        """Raises Refused, Unsupported."""
        if one.name in self.by_name:
            raise Refused(
                "nfct: netlink error: Device or resource busy", status=1, hint=f"there is a policy {one.name}"
            )
        if one.proto == DCCP and DCCP not in self.conntrack.trackers:
            raise Refused("nfct: netlink error: Operation not supported", status=1, hint="this kernel has no DCCP")
        if len(self.values) > 255:
            raise Unsupported("more than 255 timeout policies")
        self.by_name[one.name] = len(self.values), one
        self.values.append({**self.conntrack.timeouts(one.proto), **{k: v * SECOND for k, v in one.seconds}})
        self.protocols.append(one.proto)

    def find(self, name: str) -> int:
        """The number of the policy that a rule names, be it by its first letters; 0: there is none."""
        if name in self.by_name:
            return self.by_name[name][0]
        cut = [number for full, (number, _) in self.by_name.items() if full[:SEEN] == name]
        return cut[0] if len(cut) == 1 and len(name) == SEEN else 0

    def shortest(self) -> list[int]:
        """All timeouts that any policy has, ns."""
        return [ns for values in self.values for ns in values.values()]

    def why_not(self, name: str, proto: int) -> str:
        """Why Linux does not let connections of a protocol have this policy; "" when it does."""
        of = self.protocols[self.find(name)]
        own = {TCP, UDP, UDPLITE, GRE, ICMP, *self.conntrack.trackers}
        fits = of == proto or (of == GENERIC and proto not in own)
        return "" if fits else f"timeout policy `{name}' can only be used by protocol {_NAMES[of]}"

    def run(self, argv: list[str], used: Collection[str]) -> str:
        """`nfct add|delete|get|list timeout ...`; returns what it prints.   used: names that rules hold

        Raises Refused, Unsupported
        """
        words = argv[1:]
        if len(words) < 2:
            raise Refused("nfct: Usage: nfct command subsystem [parameters]...", status=1)
        if words[0] == "timeout" and words[1] in ("add", "delete", "get", "list", "flush"):
            words[:2] = words[1], words[0]  # the older order
        verb, subsystem, *rest = words
        if subsystem != "timeout":
            raise Unsupported(f"nfct {verb} {subsystem}", hint="netemu knows nfct add, delete, get and list timeout")
        if verb == "add":
            self.add(policy(rest))
            return ""
        if verb == "list":
            return "".join(self._text(*one) for one in self.by_name.values())
        if verb == "flush":
            for name in [name for name in self.by_name if name not in used]:
                del self.by_name[name]
            return ""
        if verb not in ("get", "delete"):
            raise Unsupported(f"nfct {verb} timeout", hint="netemu knows nfct add, delete, get and list timeout")
        if len(rest) != 1:
            raise Refused("nfct: policy name is missing", status=1)
        if rest[0] not in self.by_name:
            raise Refused("nfct: netlink error: No such file or directory", status=1)
        if verb == "get":
            return self._text(*self.by_name[rest[0]])
        if rest[0] in used:
            raise Refused("nfct: netlink error: Device or resource busy", status=1, hint="a rule names it")
        del self.by_name[rest[0]]
        return ""

    def _text(self, number: int, one: Policy) -> str:
        lines = [f".{one.name} = {{", "\t.l3proto = 2,", f"\t.l4proto = {one.proto},", "\t.policy = {"]
        values = self.values[number]
        lines += [f"\t\t.{state.upper()} = {values[state] // SECOND}," for state in TIMEOUTS[one.proto]]
        return "\n".join([*lines, "\t},", "};"]) + "\n"
