"""How `iptables` words become extensions, and back: what matches and targets have in common.

An extension (`-m name`, `-j NAME`) declares its options and how many words follow each; the rule reader in tables.py
collects them, `!` included, and hands them over; the extension prints itself in iptables-save's canonical text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from netemu.node import Node


class Bad(Exception):
    """An option that the real tool would refuse. `word` is the word to point at, `hint` the way out."""

    def __init__(self, what: str, word: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.word, self.hint = what, word, hint


class Failed(Bad):
    """A rule that the tool can read and the kernel would refuse: exit status 1, not 2."""


class NotModelled(Exception):
    """Linux would take this; netemu does not model it."""

    def __init__(self, what: str, word: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.word, self.hint = what, word, hint


@dataclass(frozen=True)
class Given:
    """One option as written: `! --dport 80` is Given("--dport", True, ("80",))."""

    option: str
    invert: bool
    values: tuple[str, ...]

    @property
    def value(self) -> str:
        return self.values[0]


@dataclass
class RuleContext:
    """What an extension may know of the rule it stands in, when it is read.

    proto   protocol number of `-p`, 0 for any; proto_inverted: `! -p`
    kernel  "6.1" or "6.18"
    table, chain   where the rule stands (chain may be a user chain)
    links   names of the node's links
    sets    name -> dimension of the type of each ipset (empty when unknown); missing: no such set
    matches the rule's matches, for a target's `check`
    owners  the model tells whose packets the node sends
    cpu     the processor that the model names, or None
    """

    table: str
    chain: str
    proto: int = 0
    proto_inverted: bool = False
    kernel: str = "6.18"
    fragments: bool = False
    sets: dict[str, int] = field(default_factory=dict)
    matches: tuple[Extension, ...] = ()
    owners: bool = False
    cpu: int | None = None


class Extension:
    """What Match and Target share.

    OPTIONS  long option (old spellings and `-x` forms too) -> how many words follow it
    touches  names of the memories that it reads or writes: things that make one packet's answer depend on an earlier
             packet. Empty for a pure question. "flow" is memory kept per connection (connmark); "rule" is memory of
             this very rule (limit, nth, quota); "recent:NAME", "set:NAME", "hashlimit:NAME" are shared by name.
    needs_conntrack  a rule with it switches connection tracking on
    needs_defrag     a rule with it has fragments put together before PREROUTING and OUTPUT, as tracking has
    tcp_flags        which of the TCP flags it looks at
    alike            it is `steadfast`, whatever its options
    """

    name: ClassVar[str] = ""
    OPTIONS: ClassVar[dict[str, int]] = {}
    needs_conntrack: ClassVar[bool] = False
    needs_defrag: ClassVar[bool] = False
    alike: ClassVar[bool] = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset()

    @property
    def tcp_flags(self) -> int:
        return 0

    def steadfast(self, node: Node) -> bool:
        """Does it answer, and do, the same to every packet of one direction of an established connection that came on
        the same link and has the same TOS, TTL and mark, and of its TCP flags those that are in `tcp_flags`?

        Whenever it comes, until the next command, and whatever else passes in between. It must leave nothing behind
        that anybody can see but the packet's fate, TOS, TTL and mark. Who does not know says no.
        """
        return self.alike

    @classmethod
    def read(cls, given: list[Given], rule: RuleContext) -> Self:
        """The extension that these options make. Raises Bad or NotModelled."""
        raise NotImplementedError

    def words(self) -> str:
        """Options in iptables-save's canonical text, without `-m name`/`-j NAME`; "" when there are none."""
        raise NotImplementedError
