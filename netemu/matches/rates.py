"""Matches with a clock or a counter: limits, quotas, turns and chance, time of day. And notes, which ask nothing."""

from __future__ import annotations

import datetime
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.clock import SECOND, jiffies
from netemu.grammar import Bad, Given, RuleContext
from netemu.matches.base import NONE, Match, Memory, Option, drop_at_once, turned
from netemu.packets import OFFSET_MASK, PORTED, Mask, Rows
from netemu.words import M32, M64, bang, dotted, integer, quoted, read_host, read_number

if TYPE_CHECKING:
    from netemu.node import Node
    from netemu.trip import Trip

# ---- notes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comment(Match, name="comment"):
    """--comment TEXT: for people; every packet matches."""

    SPEC: ClassVar = {"--comment": Option()}
    NEEDED = ("--comment",)
    always = True
    comment: str

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        text = o["--comment"].value
        if len(text.encode("utf-8", "surrogateescape")) > 255:
            raise Bad("COMMENT must be shorter than 256 characters", "--comment")
        return cls(text)

    def words(self) -> str:
        return f"--comment {quoted(self.comment)}"

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.ones(len(rows), bool)

    def says(self, trip: Trip, row: int) -> bool:
        return True


# ---- chance and rate ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leads:
    """Where rules that share out new connections send them: address << 16 | port.

    own   this rule       later   those behind it in its chain
    """

    own: int
    later: frozenset[int]


def as_shown(trip: Trip, rows: Rows, drawn: Mask, leads: list[Leads | None], which: NDArray[np.intp]) -> Mask:
    """bool[len(rows)]: what was drawn, but for connections of which the capture shows where they went.

    leads, which   whither the rules lead, and which of them each row stands before
    """
    shown = trip.node.nat.shown
    if shown is None or shown.pkts is not trip.pkts:
        return drawn
    ends = shown.ends(rows)
    for k in np.flatnonzero(ends >= 0).tolist():
        lead, end = leads[which[k]], int(ends[k])
        if lead is not None and (end == lead.own) != (end in lead.later):
            drawn[k] = end == lead.own
    return drawn


@dataclass(eq=False)
class Statistic(Memory, name="statistic"):
    """--mode random --probability P, or --mode nth --every N --packet K.

    nth: packets K+1, K+1+N, ... that come to this rule, each rule counting for itself. random: a draw for each packet
    that depends on the node's seed and on where the match stands; a packet that comes by twice draws the same twice.

    leads   where the rule and those behind it in its chain send new connections, if the capture may show which one was
            drawn: see `Leads` and shown.py
    """

    SPEC: ClassVar = {
        "--mode": Option(),
        "--probability": Option(invert=True, alone=("--every", "--packet")),
        "--every": Option(invert=True, alone=("--probability",)),
        "--packet": Option(alone=("--probability",)),
    }
    mode: str
    threshold: int = 0  # of 2**31
    every: int = 1
    packet: int = 0
    invert: bool = False
    salt: int = field(default=0, init=False)
    count: int = field(default=0, init=False)
    leads: Leads | None = field(default=None, init=False)

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",)) if self.mode == "nth" else NONE

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        threshold = packet = 0
        every = 1
        if "--every" in o:
            every = read_number(cls.name, "--every", o["--every"].value, M32, 1)
            if "--packet" not in o:
                raise Bad('statistic: option "--every" also requires "--packet".')
        if "--packet" in o:
            packet = read_number(cls.name, "--packet", o["--packet"].value, M32)
            if packet >= every:
                raise Bad("the --packet p must be 0 <= p <= n-1", o["--packet"].value)
        if "--probability" in o:
            text = o["--probability"].value
            p = float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else -1.0
            if not 0 <= p <= 1:
                raise Bad('statistic: bad value for option "--probability", or out of range (0-1).', text)
            threshold = int(p * 2**31 + 0.5)
        mode = o["--mode"].value if "--mode" in o else ""
        if mode and mode not in ("random", "nth"):
            raise Bad(f'Bad mode "{mode}"', mode, "random or nth")
        if mode == "random" and "--probability" not in o:
            raise Bad("--probability must be specified when using random mode")
        if mode == "nth" and "--every" not in o:
            raise Bad("--every and --packet must be specified when using nth mode")
        if not mode:
            raise Bad('statistic: option "--mode" must be specified')
        g = o["--probability" if mode == "random" else "--every"]
        match = cls(mode, threshold, every, packet, g.invert)
        match._place = f"{rule.table}:{rule.chain}"
        return match

    def words(self) -> str:
        if self.mode == "random":
            return f"--mode random {bang(self.invert)}--probability {self.threshold / 2**31:.11f}"
        return f"--mode nth {bang(self.invert)}--every {self.every} --packet {self.packet}"

    def reset(self, node: Node) -> None:
        self.count = self.every - 1 - self.packet
        self.salt = zlib.crc32(f"{self._place} {self.words()}".encode())

    def many(self, trip: Trip, rows: Rows) -> Mask:
        if not self._running:  # it stands in no table
            self.start(trip.node, self._place)
        n = len(rows)
        if self.mode == "random":
            drawn = turned((trip.random(rows, self.salt) >> np.uint64(33)) < self.threshold, self.invert)
            return as_shown(trip, rows, drawn, [self.leads], np.zeros(n, np.intp)) if self.leads else drawn
        # the counter counts up to every - 1 and a packet matches when it comes back to 0
        hit = (self.count + 1 + np.arange(n)) % self.every == 0
        self.count = (self.count + n) % self.every
        return turned(hit, self.invert)

    def ask(self, trip: Trip, row: int) -> bool:
        if self.mode == "random":
            return bool(self.many(trip, np.array([row]))[0])
        self.count = 0 if self.count == self.every - 1 else self.count + 1
        return (self.count == 0) != self.invert


_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_PRINTED_UNITS = (("day", 86400), ("hour", 3600), ("min", 60), ("sec", 1))


def _leading_int(text: str) -> int:
    found = re.match(r"\s*[+-]?\d+", text)
    return int(found.group()) if found else 0


def _unit(text: str) -> int | None:
    """Seconds of `/s`, `/min`, `/hour`, ...: any beginning of the unit will do."""
    for name, length in _UNITS.items():
        if text and name.startswith(text.lower()):
            return length
    return None


def _interval(rate: str, scale: int) -> tuple[int, int] | None:
    """(time between packets in 1/scale seconds, seconds of the unit) of `5/min`; None when it makes no sense.

    >>> _interval("5/min", 10000), _interval("3/hour", 10000), _interval("7", 10000), _interval("x/s", 10000)
    ((120000, 60), (12000000, 3600), (1428, 1), None)
    """
    number, slash, unit = rate.partition("/")
    length = _unit(unit) if slash else 1
    n = _leading_int(number)
    if length is None or n == 0:
        return None
    if n < 0 or n > scale * length:
        return 0, length
    return scale * length // n, length


def _rate_words(interval: int, scale: int) -> tuple[str, int]:
    """A rate as it prints, and the seconds of its unit: the largest unit that loses nothing to speak of.

    >>> _rate_words(120000, 10000), _rate_words(3, 10000)
    (('5/min', 60), ('3333/sec', 1))
    """
    if not interval:
        return f"{M32}/sec", 1
    name, length = _PRINTED_UNITS[0]
    for finer, finer_length in _PRINTED_UNITS[1:]:
        long = finer_length * scale
        if interval > long or long // interval < long % interval:
            break
        name, length = finer, finer_length
    return f"{length * scale // interval}/{name}", length


def _power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)


@dataclass(eq=False)
class Limit(Memory, name="limit"):
    """--limit N/UNIT [--limit-burst B]: a bucket of B tokens, one more every UNIT/N, time counted in jiffies.

    Linux counts credit in 32 bits, with the largest power of two a jiffy that keeps a day below 2**32.
    """

    SPEC: ClassVar = {"--limit": Option(), "--limit-burst": Option()}
    SCALE: ClassVar[int] = 10000
    interval: int  # 1/10000 s
    burst: int
    credit: int = field(default=0, init=False)
    at: int | None = field(default=None, init=False)  # jiffy of the last look

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        interval = cls.SCALE * 3600 // 3
        if "--limit" in o:
            text = o["--limit"].value
            read = _interval(text, cls.SCALE)
            if read is None:
                raise Bad(f'bad rate "{text}"\'', text, "for example 5/second, 10/min, 3/hour, 1/day")
            if read[0] == 0:
                raise Bad(f'Rate too fast "{text}"', text)
            interval = read[0]
        burst = 5
        if "--limit-burst" in o:
            burst = read_number(cls.name, "--limit-burst", o["--limit-burst"].value, 10000)
        return cls(interval, burst)

    def check(self, rule: RuleContext) -> str:
        hz = {"6.1": 100}.get(rule.kernel, 250)
        if self.burst == 0 or self._credits(self.interval * self.burst & M32, hz) < self._credits(self.interval, hz):
            return f"limit: Overflow, try lower: {self.interval}/{self.burst}"
        return ""

    def words(self) -> str:
        burst = "" if self.burst == 5 else f" --limit-burst {self.burst}"
        return f"--limit {_rate_words(self.interval, self.SCALE)[0]}{burst}"

    @staticmethod
    def _per_jiffy(hz: int) -> int:
        return _power_of_two_below(M32 // (hz * 86400))

    @classmethod
    def _credits(cls, amount: int, hz: int) -> int:
        unit = hz * cls._per_jiffy(hz)
        if amount > M32 // unit:
            return amount // cls.SCALE * unit & M32
        return amount * unit // cls.SCALE

    def reset(self, node: Node) -> None:
        self._rate = self._per_jiffy(node.hz)
        self._hz = node.hz
        self._cap = self._credits(self.interval * self.burst & M32, node.hz)
        self._cost = self._credits(self.interval, node.hz)
        self.credit, self.at = self._cap, None

    def ask(self, trip: Trip, row: int) -> bool:
        now = jiffies(trip.pkts.time.item(row), self._hz)
        if self.at is not None:
            self.credit = min(self.credit + (now - self.at) * self._rate, self._cap)
        self.at = now
        if self.credit >= self._cost:
            self.credit -= self._cost
            return True
        return False


@dataclass(eq=False)
class Quota(Memory, name="quota"):
    """--quota BYTES: matches until so many bytes have come; the packet that would pass the end ends it for good."""

    SPEC: ClassVar = {"--quota": Option(invert=True)}
    NEEDED = ("--quota",)
    quota: int
    invert: bool = False
    left: int = field(default=0, init=False)

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(("rule",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        g = o["--quota"]
        return cls(read_number(cls.name, "--quota", g.value, M64), g.invert)

    def words(self) -> str:
        return f"{bang(self.invert)}--quota {self.quota}"

    def reset(self, node: Node) -> None:
        self.left = self.quota

    def ask(self, trip: Trip, row: int) -> bool:
        length = trip.pkts.length.item(row)
        if self.left >= length:
            self.left -= length
            return not self.invert
        self.left = 0
        return self.invert


# ---- tables shared by name ------------------------------------------------------------------------------------------

T = TypeVar("T")


class ByName(Generic[T]):
    """Tables that rules share by name. A table lives while some rule refers to it."""

    def __init__(self) -> None:
        self.tables: dict[str, T] = {}
        self._users: dict[str, set[int]] = {}

    def enter(self, name: str, user: object, make: Callable[[], T]) -> T:
        """The table `name` (made if there is none), with `user` as one who refers to it."""
        self._users.setdefault(name, set()).add(id(user))
        if name not in self.tables:
            self.tables[name] = make()
        return self.tables[name]

    def leave(self, name: str, user: object) -> None:
        """`user` refers to it no more; the last one takes the table along."""
        users = self._users.get(name, set())
        users.discard(id(user))
        if not users:
            self.tables.pop(name, None)
            self._users.pop(name, None)


class RecentTables(ByName["RecentTable"]):
    """The tables of `-m recent` on one node, by name."""


class HashTables(ByName["HashTable"]):
    """The tables of `-m hashlimit` on one node, by name."""


def recent_tables(node: Node) -> RecentTables:
    """The node's `recent` tables."""
    tables: RecentTables = node.__dict__.setdefault("recent_tables", RecentTables())
    return tables


def hash_tables(node: Node) -> HashTables:
    """The node's `hashlimit` tables."""
    tables: HashTables = node.__dict__.setdefault("hash_tables", HashTables())
    return tables


class RecentEntry:
    """When an address was seen: a ring of ticks."""

    def __init__(self, now: int, ttl: int) -> None:
        self.stamps = [now]
        self.index = 1  # where the next one goes
        self.ttl = ttl


class RecentTable:
    """Addresses seen lately, the one not seen for longest first. At most 100, the oldest makes room."""

    MOST = 100

    def __init__(self, mask: int, ring: int) -> None:
        self.mask = mask
        self.ring = ring  # stamps an address
        self.entries: OrderedDict[int, RecentEntry] = OrderedDict()

    def widen(self, ring: int) -> None:
        """A rule that counts further than the ring reaches empties the table."""
        if ring > self.ring:
            self.entries.clear()
            self.ring = ring

    def add(self, address: int, entry: RecentEntry) -> None:
        if len(self.entries) >= self.MOST:
            self.entries.popitem(last=False)
        self.entries[address] = entry

    def stamp(self, address: int, now: int) -> None:
        """Seen again."""
        entry = self.entries[address]
        entry.index &= self.ring - 1
        if entry.index < len(entry.stamps):
            entry.stamps[entry.index] = now
        else:
            entry.stamps.append(now)
        entry.index += 1
        self.entries.move_to_end(address)


@dataclass(eq=False)
class Recent(Memory, name="recent"):
    """--set | --rcheck | --update | --remove, [--seconds S [--reap]] [--hitcount N] [--rttl] [--name NAME] ...

    A table of addresses by name, with the times when they were seen. --set: remember, always true. --rcheck and
    --update: was it seen (N times, within S seconds)? --update adds this time when the final answer is yes.
    """

    SPEC: ClassVar = {
        "--set": Option(0, invert=True, alone=("--rcheck", "--update", "--remove", "--rttl")),
        "--rcheck": Option(0, invert=True, alone=("--set", "--update", "--remove")),
        "--update": Option(0, invert=True, alone=("--set", "--rcheck", "--remove")),
        "--remove": Option(0, invert=True, alone=("--set", "--rcheck", "--update", "--rttl")),
        "--seconds": Option(),
        "--reap": Option(0),
        "--hitcount": Option(),
        "--rttl": Option(0, alone=("--set", "--remove")),
        "--name": Option(),
        "--rsource": Option(0),
        "--rdest": Option(0),
        "--mask": Option(),
    }
    what: str
    seconds: int = 0
    hitcount: int = 0
    rttl: bool = False
    reap: bool = False
    table: str = "DEFAULT"
    mask_bits: int = M32
    side: str = "rsource"
    invert: bool = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset((f"recent:{self.table}",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        what = next((x for x in ("--set", "--rcheck", "--update", "--remove") if x in o), None)
        if what is None:
            raise Bad("recent: you must specify one of `--set', `--rcheck' `--update' or `--remove'")
        seconds = read_number(cls.name, "--seconds", o["--seconds"].value, M32, 1) if "--seconds" in o else 0
        hitcount = read_number(cls.name, "--hitcount", o["--hitcount"].value, M32) if "--hitcount" in o else 0
        if "--reap" in o and not seconds:
            raise Bad('recent: option "--reap" also requires "--seconds".', "--reap")
        side = "rsource"
        for option in o:
            if option in ("--rsource", "--rdest"):
                side = option[2:]
        name = o["--name"].value[:199] if "--name" in o else "DEFAULT"
        mask = read_host(o["--mask"].value) if "--mask" in o else M32
        return cls(what, seconds, hitcount, "--rttl" in o, "--reap" in o, name, mask, side, o[what].invert)

    def check(self, rule: RuleContext) -> str:
        most = 255 if rule.kernel == "6.1" else 65535
        if self.what in ("--set", "--remove") and (self.seconds or self.hitcount):
            return f"recent: --seconds and --hitcount have no meaning with {self.what}"
        if self.hitcount > most:
            return f"recent: hitcount ({self.hitcount}) is larger than allowed maximum ({most})"
        if not self.table or "/" in self.table:
            return f"recent: `{self.table}' cannot be the name of a table"
        return ""

    def words(self) -> str:
        out = [f"{bang(self.invert)}{self.what}"]
        if self.seconds:
            out.append(f"--seconds {self.seconds - (1 << 32) if self.seconds >> 31 else self.seconds}")
        if self.reap:
            out.append("--reap")
        if self.hitcount:
            out.append(f"--hitcount {self.hitcount}")
        if self.rttl:
            out.append("--rttl")
        out.append(f"--name {self.table} --mask {dotted(self.mask_bits)} --{self.side}")
        return " ".join(out)

    def reset(self, node: Node) -> None:
        # a ring of the next power of two; 32 where no rule counts
        ring = 1 << (self.hitcount - 1).bit_length() if self.hitcount else 32
        table = recent_tables(node).enter(self.table, self, lambda: RecentTable(self.mask_bits, ring))
        table.widen(ring)
        self._table = table

    def stop(self, node: Node) -> None:
        super().stop(node)
        recent_tables(node).leave(self.table, self)

    def ask(self, trip: Trip, row: int) -> bool:
        p, table, hz = trip.pkts, self._table, trip.node.hz
        address = (p.dst if self.side == "rdest" else p.src).item(row) & table.mask
        # the TTL as it was before this node forwarded it
        ttl = p.ttl.item(row) + (p.link_out.item(row) >= 0 and not p.socket.item(row))
        now = jiffies(p.time.item(row), hz)
        entry = table.entries.get(address)
        if entry and self.rttl and ttl and entry.ttl and entry.ttl != ttl:
            entry = None
        answer = self.invert
        if entry is None:
            if self.what == "--set":
                table.add(address, RecentEntry(now, ttl & 255))
                answer = not answer
            return answer
        if self.what == "--set":
            answer = not answer
        elif self.what == "--remove":
            del table.entries[address]
            return not answer
        else:
            since = now - self.seconds * hz
            hits = sum(not self.seconds or stamp >= since for stamp in entry.stamps)
            if hits >= max(self.hitcount, 1):
                answer = not answer
            if self.reap:
                oldest, its = next(iter(table.entries.items()))
                busy = oldest == address and self.what == "--update" and answer
                if not busy and its.stamps[its.index - 1] < since:
                    del table.entries[oldest]
        if self.what == "--set" or (self.what == "--update" and answer):
            if address not in table.entries:  # reaped while it was looked at
                return answer
            table.stamp(address, now)
            entry.ttl = ttl & 255
        return answer


# ---- a limit for each key -------------------------------------------------------------------------------------------

HASH_MODES = ("srcip", "srcport", "dstip", "dstport")
_CHUNK_SHIFT = 4  # byte rates count in chunks of 16 bytes


@dataclass(frozen=True)
class HashSettings:
    """How a hashlimit table was set up, by the rule that made it."""

    bytes: bool
    amount: int  # packets: 1/1000000 s between two; bytes: 2**32 / chunks a second
    burst: int
    mode: frozenset[str]
    src_mask: int
    dst_mask: int
    size: int
    most: int
    gc: int  # ms
    expire: int  # ms
    by_rate: bool = False
    rate_interval: int = 1


class HashBucket:
    """One key's credit."""

    __slots__ = ("cap", "cost", "credit", "expires", "over", "seen", "since")

    def __init__(self, since: int, credit: int, cap: int, cost: int) -> None:
        self.since, self.credit, self.cap, self.cost = since, credit, cap, cost
        self.expires = 0
        self.seen = 0  # packets or bytes in this interval
        self.over = False  # the last interval was over the rate


class HashTable:
    """Buckets by key. Expired ones go when the collector passes, every `gc` milliseconds from the table's birth."""

    def __init__(self, settings: HashSettings, hz: int, born: int) -> None:
        self.settings, self.hz = settings, hz
        self.buckets: dict[tuple[int, int, int, int], HashBucket] = {}
        self.born = self.collected = jiffies(born, hz)
        self.gc = max(1, -(-settings.gc * hz // 1000))
        self.expire = -(-settings.expire * hz // 1000)
        self.packet_rate = _power_of_two_below(M64 // (hz * 86400))
        self.byte_rate = _power_of_two_below(M32 // hz)
        if settings.bytes:
            self.cost = settings.amount * hz * self.byte_rate >> 32
            self.cap = settings.burst
        else:
            self.cost = hash_credits(settings.amount, hz)
            self.cap = hash_credits(settings.amount * settings.burst & M64, hz)
        self.most = settings.most
        if not self.most:
            self.most = 8 * (settings.size or 8192)
        elif settings.size and self.most < settings.size:
            self.most = settings.size

    def bucket(self, key: tuple[int, int, int, int], now: int) -> HashBucket | None:
        """The bucket of `key`, filled up to `now` (a jiffy); None when the table is full."""
        passed = now - (now - self.born) % self.gc
        if passed > self.collected:
            self.collected = passed
            self.buckets = {k: b for k, b in self.buckets.items() if b.expires > passed}
        found = self.buckets.get(key)
        if found is None:
            if len(self.buckets) >= self.most:
                return None
            full = self.byte_rate * self.hz if self.settings.bytes else self.cap
            found = self.buckets[key] = HashBucket(now, full, self.cap, self.cost)
        else:
            self._fill(found, now)
        found.expires = now + self.expire
        return found

    def _fill(self, b: HashBucket, now: int) -> None:
        passed = now - b.since
        if passed <= 0:
            return
        s = self.settings
        if s.by_rate:
            interval = s.rate_interval * self.hz
            if passed < interval:
                return
            b.over = b.seen * interval > passed * self.rate
            b.seen = 0
        elif s.bytes:
            b.credit = min(b.credit + passed * self.byte_rate, self.byte_rate * self.hz)
        else:
            b.credit = min(b.credit + passed * self.packet_rate, b.cap)
        b.since = now

    @cached_property
    def rate(self) -> int:
        """Rate-match mode: packets or bytes in an interval, rounded down."""
        s = self.settings
        return _bytes_of(s.amount) if s.bytes else 1_000_000 // s.amount

    def spend(self, b: HashBucket, length: int) -> bool:
        """Is there credit for a packet of `length` bytes? Then it is spent."""
        s = self.settings
        if s.by_rate:
            b.seen += length if s.bytes else 1
            most = (s.burst or 1) * self.rate if s.bytes else s.burst + self.rate
            return not b.over and b.seen <= most
        cost = b.cost
        if s.bytes:
            whole = self.byte_rate * self.hz
            cost = min(((length >> _CHUNK_SHIFT) + 1) * b.cost, whole)
            if b.credit < cost and b.cap:
                b.cap -= 1
                b.credit = whole
        if b.credit < cost:
            return False
        b.credit -= cost
        return True


def hash_credits(amount: int, hz: int) -> int:
    """Credit of `amount` millionths of a second, in 64 bits."""
    unit = hz * _power_of_two_below(M64 // (hz * 86400))
    return amount * (unit // 1_000_000) & M64


def _bytes_of(amount: int) -> int:
    """Bytes a second of a stored byte rate."""
    return ((M32 // amount if amount else M32) - 1) << _CHUNK_SHIFT


def _amount(size: int) -> int:
    """How a rate of `size` bytes a second is stored."""
    return M32 // ((size >> _CHUNK_SHIFT) + 1)


def _fits(size: int, unit: int, amount: int) -> bool:
    """Whole units say the same rate. (The tool looks at 32 bits of it.)"""
    return _amount(size & -unit & M32) == amount


_BYTE_UNITS = (("mb", 1 << 20), ("kb", 1 << 10), ("b", 1))


def _amount_of_bytes(text: str) -> int | None:
    found = re.match(r"(\d+)([km]?)", text)
    return int(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[found[2]] if found else None


@dataclass(eq=False)
class Hashlimit(Memory, name="hashlimit"):
    """--hashlimit-upto RATE | --hashlimit-above RATE, --hashlimit-name NAME, [--hashlimit-mode srcip,...] ...

    A `limit` for each key (addresses and ports of `mode`). Rates in packets or bytes (`10kb/s`). The table is shared
    by name; the rule that makes it settles how it counts, each rule only whether it wants those below or above.
    """

    SPEC: ClassVar = {
        "--hashlimit-upto": Option(invert=True, old=("--hashlimit",), alone=("--hashlimit-above",)),
        "--hashlimit-above": Option(invert=True, alone=("--hashlimit-upto",)),
        "--hashlimit-burst": Option(),
        "--hashlimit-srcmask": Option(),
        "--hashlimit-dstmask": Option(),
        "--hashlimit-htable-size": Option(),
        "--hashlimit-htable-max": Option(),
        "--hashlimit-htable-gcinterval": Option(),
        "--hashlimit-htable-expire": Option(),
        "--hashlimit-mode": Option(),
        "--hashlimit-name": Option(),
        "--hashlimit-rate-match": Option(0),
        "--hashlimit-rate-interval": Option(),
    }
    SCALE: ClassVar[int] = 1_000_000
    table: str
    above: bool
    settings: HashSettings

    @property
    def touches(self) -> frozenset[str]:
        return frozenset((f"hashlimit:{self.table}",))

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        option = next((x for x in ("--hashlimit-upto", "--hashlimit-above") if x in o), None)
        if option is None:
            raise Bad("You have to specify --hashlimit")
        if "--hashlimit-name" not in o:
            raise Bad('hashlimit: option "--hashlimit-name" must be specified')
        name = o["--hashlimit-name"].value
        if not name:
            raise Bad("Argument must have a minimum length of 1 characters", "--hashlimit-name")
        rate = o[option].value
        in_bytes = "b/s" in rate
        amount, unit, burst = cls._rate(option, rate, in_bytes)
        if "--hashlimit-burst" in o:
            burst = cls._burst(o["--hashlimit-burst"].value, amount, in_bytes)
        mode = set()
        for word in filter(None, o["--hashlimit-mode"].value.split(",") if "--hashlimit-mode" in o else []):
            if word not in HASH_MODES:
                raise Bad(f'hashlimit: Bad value for "--hashlimit-mode" option: "{word}"', word)
            mode.add(word)

        def number(suffix: str, default: int, high: int = M32) -> int:
            full = f"--hashlimit-{suffix}"
            return read_number(cls.name, full, o[full].value, high) if full in o else default

        by_rate = "--hashlimit-rate-match" in o
        rate_interval = number("rate-interval", unit if by_rate else 1)
        if rate_interval == 0:
            raise Bad('hashlimit: Bad value for "--hashlimit-rate-interval" option: "0"', "--hashlimit-rate-interval")
        if by_rate:
            amount //= unit  # packets in an interval, and the interval is the unit
        expire = (60 if burst else 15) if in_bytes else unit
        settings = HashSettings(
            in_bytes,
            amount,
            burst,
            frozenset(mode),
            number("srcmask", 32),
            number("dstmask", 32),
            number("htable-size", 0),
            number("htable-max", 0),
            number("htable-gcinterval", 1000),
            number("htable-expire", expire * 1000),
            by_rate,
            rate_interval,
        )
        return cls(name, (option == "--hashlimit-above") != o[option].invert, settings)

    @classmethod
    def _rate(cls, option: str, rate: str, in_bytes: bool) -> tuple[int, int, int]:
        """(amount, seconds of the unit, usual burst)."""
        bad = Bad(f'hashlimit: Bad value for "{option}" option: "{rate}"', rate)
        if in_bytes:
            size = _amount_of_bytes(rate)
            if not size:
                raise bad
            return _amount(size), 1, 0
        read = _interval(rate, cls.SCALE)
        if read is None:
            raise bad
        if read[0] == 0:
            raise Bad(f'Rate too fast "{rate}"', rate)
        return read[0], read[1], 5

    @staticmethod
    def _burst(text: str, amount: int, in_bytes: bool) -> int:
        size = _amount_of_bytes(text)
        if in_bytes and size is not None:
            step = _bytes_of(amount)
            if step == 0 or size < step:
                raise Bad(f"burst cannot be smaller than {step}b", text)
            return -(-size // step)
        if size is None or not 1 <= size <= 1_000_000:
            raise Bad('bad value for option "--hashlimit-burst", or out of range (1-1000000).', text)
        return size

    def check(self, rule: RuleContext) -> str:
        s = self.settings
        hz = {"6.1": 100}.get(rule.kernel, 250)
        if s.gc == 0 or s.expire == 0:
            return "hashlimit: neither --hashlimit-htable-gcinterval nor --hashlimit-htable-expire may be 0"
        if s.src_mask > 32 or s.dst_mask > 32:
            return "hashlimit: a mask has at most 32 bits"
        if "/" in self.table or len(self.table.encode("utf-8", "surrogateescape")) > 254:
            return f"hashlimit: `{self.table}' cannot be the name of a table"
        if s.amount == 0:
            return "hashlimit: invalid rate"
        if s.bytes or s.by_rate:
            return ""
        if hash_credits(s.amount * s.burst & M64, hz) < hash_credits(s.amount, hz):
            return f"hashlimit: overflow, try lower: {s.amount}/{s.burst}"
        return ""

    def words(self) -> str:
        s = self.settings
        out = []
        option = f"--hashlimit-{'above' if self.above else 'upto'}"
        if s.bytes:
            size = _bytes_of(s.amount)
            name, unit = next((n, u) for n, u in _BYTE_UNITS if u == 1 or (size >= u and _fits(size, u, s.amount)))
            out.append(f"{option} {size // unit}{name}/s")
            usual = 15_000
            if s.burst:
                size *= s.burst
                name, unit = next((n, u) for n, u in _BYTE_UNITS if size >= u or u == 1)
                out.append(f"--hashlimit-burst {size // unit}{name}")
                usual = 60_000
        else:
            rate, seconds = _rate_words(s.amount, self.SCALE)
            out += [f"{option} {rate}", f"--hashlimit-burst {s.burst}"]
            usual = seconds * 1000
        if s.mode:
            out.append(f"--hashlimit-mode {','.join(m for m in HASH_MODES if m in s.mode)}")
        out.append(f"--hashlimit-name {self.table}")
        for suffix, value, default in (
            ("htable-size", s.size, 0),
            ("htable-max", s.most, 0),
            ("htable-gcinterval", s.gc, 1000),
            ("htable-expire", s.expire, usual),
            ("srcmask", s.src_mask, 32),
            ("dstmask", s.dst_mask, 32),
        ):
            if value != default:
                out.append(f"--hashlimit-{suffix} {value}")
        if s.by_rate:
            out.append("--hashlimit-rate-match")
            if s.rate_interval != 1:
                out.append(f"--hashlimit-rate-interval {s.rate_interval}")
        return " ".join(out)

    def reset(self, node: Node) -> None:
        make = lambda: HashTable(self.settings, node.hz, node.now)  # noqa: E731
        self._table = hash_tables(node).enter(self.table, self, make)

    def stop(self, node: Node) -> None:
        super().stop(node)
        hash_tables(node).leave(self.table, self)

    def ask(self, trip: Trip, row: int) -> bool:
        p, table = trip.pkts, self._table
        s = table.settings
        src = sport = dst = dport = 0
        if "srcip" in s.mode:
            src = p.src.item(row) & (M32 << (32 - s.src_mask) & M32)
        if "dstip" in s.mode:
            dst = p.dst.item(row) & (M32 << (32 - s.dst_mask) & M32)
        if "srcport" in s.mode or "dstport" in s.mode:
            ports = self._ports(trip, row)
            if ports is None:
                drop_at_once(trip, np.array([row]))
                return False
            sport = ports[0] if "srcport" in s.mode else 0
            dport = ports[1] if "dstport" in s.mode else 0
        bucket = table.bucket((src, sport, dst, dport), jiffies(p.time.item(row), table.hz))
        if bucket is None:
            drop_at_once(trip, np.array([row]))
            return False
        return table.spend(bucket, p.length.item(row)) != self.above

    @staticmethod
    def _ports(trip: Trip, row: int) -> tuple[int, int] | None:
        """Both ports, 0 for protocols without; None for a packet too short. ESP and AH have their SPI there."""
        p = trip.pkts
        proto = p.proto.item(row)
        if proto not in PORTED and proto not in (50, 51):
            return 0, 0
        place = 4 if proto == 51 else 0
        if p.length.item(row) - p.ihl.item(row) < place + 4:
            return None
        if proto in PORTED and not p.frag.item(row) & OFFSET_MASK:
            return p.sport.item(row), p.dport.item(row)
        word = p.payload(row)[place : place + 4].ljust(4, b"\0")
        return int.from_bytes(word[:2], "big"), int.from_bytes(word[2:], "big")


# ---- the clock on the wall ------------------------------------------------------------------------------------------

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ALL_WEEK, _ALL_MONTH, _END_OF_TIME = 0xFE, 0xFFFFFFFE, 0x7FFFFFFF


@dataclass(frozen=True)
class Time(Match, name="time"):
    """--timestart, --timestop, --weekdays, --monthdays, --datestart, --datestop, [--contiguous] [--kerneltz].

    The packet's own time is the clock, in UTC; a node that saw no capture with dates began on 1970-01-01.
    """

    SPEC: ClassVar = {
        "--datestart": Option(),
        "--datestop": Option(),
        "--timestart": Option(),
        "--timestop": Option(),
        "--weekdays": Option(invert=True),
        "--monthdays": Option(invert=True),
        "--localtz": Option(0, alone=("--utc",), old=("--kerneltz",), often=True),
        "--utc": Option(0, alone=("--localtz",)),
        "--contiguous": Option(0),
    }
    first: int = 0  # seconds since 1970
    last: int = _END_OF_TIME
    begins: int = 0  # second of the day
    ends: int = 86399
    weekdays: int = _ALL_WEEK
    monthdays: int = _ALL_MONTH
    contiguous: bool = False
    kernel_zone: bool = False

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        begins = _time_of_day(o["--timestart"].value) if "--timestart" in o else 0
        ends = _time_of_day(o["--timestop"].value) if "--timestop" in o else 86399
        if "--contiguous" in o and begins < ends:
            raise Bad("time: --contiguous only makes sense when stoptime is smaller than starttime", "--contiguous")
        weekdays, monthdays = _ALL_WEEK, _ALL_MONTH
        if "--weekdays" in o:
            weekdays = _weekdays(o["--weekdays"].value) ^ (_ALL_WEEK if o["--weekdays"].invert else 0)
        if "--monthdays" in o:
            monthdays = _monthdays(o["--monthdays"].value) ^ (_ALL_MONTH if o["--monthdays"].invert else 0)
        return cls(
            _moment(o["--datestart"].value) if "--datestart" in o else 0,
            _moment(o["--datestop"].value) if "--datestop" in o else _END_OF_TIME,
            begins,
            ends,
            weekdays,
            monthdays,
            "--contiguous" in o,
            "--localtz" in o,
        )

    def words(self) -> str:
        out = []
        if (self.begins, self.ends) != (0, 86399):
            out += [f"--timestart {_hours(self.begins)}", f"--timestop {_hours(self.ends)}"]
        if self.monthdays != _ALL_MONTH:
            out.append(f"--monthdays {','.join(str(d) for d in range(1, 32) if self.monthdays >> d & 1)}")
        if self.weekdays != _ALL_WEEK:
            out.append(f"--weekdays {','.join(d for k, d in enumerate(_DAYS, 1) if self.weekdays >> k & 1)}")
        for option, stamp, usual in (("--datestart", self.first, 0), ("--datestop", self.last, None)):
            if stamp != usual:
                moment = datetime.datetime.fromtimestamp(stamp, datetime.UTC)
                out.append(f"{option} {moment:%Y-%m-%dT%H:%M:%S}")
        if self.kernel_zone:
            out.append("--kerneltz")
        if self.contiguous:
            out.append("--contiguous")
        return " ".join(out)

    def says(self, trip: Trip, row: int) -> bool:
        stamp = ((trip.node.epoch or 0) + trip.pkts.time.item(row)) // SECOND
        if not self.first <= stamp <= self.last:
            return False
        second = stamp % 86400
        if self.begins < self.ends:
            if not self.begins <= second <= self.ends:
                return False
        else:
            if self.ends < second < self.begins:
                return False
            if self.contiguous and second <= self.ends:
                stamp -= 86400  # it belongs to the night that began yesterday
        day = stamp // 86400
        if not self.weekdays >> (day + 3) % 7 + 1 & 1:
            return False
        return bool(self.monthdays >> datetime.date.fromordinal(719163 + day).day & 1)


def _hours(second: int) -> str:
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


def _time_of_day(text: str) -> int:
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?", text)
    if not found or int(found[1]) > 23 or int(found[2]) > 59 or int(found[3] or 0) > 59:
        raise Bad(f'invalid time "{text}" specified, should be hh:mm[:ss] format and within the boundaries', text)
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)


def _moment(text: str) -> int:
    found = re.fullmatch(
        r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:T(?:(\d{1,2})(?::(\d{1,2})(?::(\d{1,2}))?)?)?)?)?)?", text
    )
    if found:
        year, month, day, hour, minute, second = (
            int(x) if x else n for x, n in zip(found.groups(), (0, 1, 1, 0, 0, 0), strict=True)
        )
        if 1970 <= year <= 2038 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60:
            # the 31st of February is the 3rd (or 2nd) of March, as mktime has it
            date = datetime.date(year, month, 1) + datetime.timedelta(day - 1)
            return (date.toordinal() - 719163) * 86400 + hour * 3600 + minute * 60 + second
    raise Bad(f'Invalid date "{text}" specified. Should be YYYY[-MM[-DD[Thh[:mm[:ss]]]]]', text)


def _weekdays(text: str) -> int:
    bits = 0
    for word in filter(None, text.split(",")):
        n = integer(word)
        if n is None and re.fullmatch(r"-\d+", word):
            n = 8
        if n is not None:
            if n == 0:
                raise Bad("No, the week does NOT begin with Sunday.", word)
            bits |= 1 << n if n <= 7 else 0
            continue
        hits = [k for k, day in enumerate(_DAYS, 1) if len(word) > 1 and word[:3] in (day, day[:2])]
        if not hits:
            raise Bad(f"{word} is not a valid day specifier", word, "Mon,Tue,... or 1,2,...")
        bits |= 1 << hits[0]
    return bits


def _monthdays(text: str) -> int:
    bits = 0
    for word in filter(None, text.split(",")):
        n = int(word[:2]) if word[:2].isdigit() else -1
        if not 0 <= n <= 31:
            raise Bad(f"{word[:2]} is not a valid day for --monthdays", word)
        bits |= 1 << n
    return bits & _ALL_MONTH


@dataclass(frozen=True)
class Nfacct(Match, name="nfacct"):
    """--nfacct-name NAME: counts the packet in an accounting object, which netemu does not keep; always matches."""

    SPEC: ClassVar = {"--nfacct-name": Option()}
    NEEDED = ("--nfacct-name",)
    always = True
    object: str

    @classmethod
    def build(cls, o: dict[str, Given], rule: RuleContext) -> Self:
        name = o["--nfacct-name"].value
        if not 1 <= len(name) <= 31:
            raise Bad(f'nfacct: Argument "{name}" must have a length of 1 to 31 characters', name)
        return cls(name)

    def words(self) -> str:
        return f"--nfacct-name  {self.object}"  # two blanks, as iptables-save has them

    def many(self, trip: Trip, rows: Rows) -> Mask:
        return np.ones(len(rows), bool)
