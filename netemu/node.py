"""A node: links, routes, rules, sets and services, the traffic that goes through it, and what came of each packet.

`Node` owns every room and keeps its state between calls; `journey.Road` drives the packets. What became of them comes
back as `Journeys`, columns by batch, out of which one `Journey` at a time can be looked at.
"""

from __future__ import annotations

import gc
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from netemu import clock
from netemu.conntrack import STATE_NAMES, Conntrack, dotted
from netemu.conntracktool import ConntrackTool
from netemu.doubt import FAIL, UNCERTAIN, Doubts, put_aside, remarks
from netemu.errors import NetemuError, Problem, Refused, Unsupported, raise_all
from netemu.hashing import siphash13
from netemu.helpers import Helpers
from netemu.ipset import Sets
from netemu.ipvs import Ipvs
from netemu.ipvsadm import Ipvsadm
from netemu.journey import CHUNK, Road
from netemu.matches.rates import Account, read_accounts
from netemu.model import Model, read_model
from netemu.nat import Nat, Range
from netemu.packets import DCCP, FATES, HOST, I16, I64, OTHERHOST, Mask, Packets, Rows, keep_memory, padded
from netemu.paths import Paths, Rewrite, Step
from netemu.routing import Routing
from netemu.settled import Settled
from netemu.shown import Shown
from netemu.synproxy import Synproxy
from netemu.sysctl import Sysctl
from netemu.tables import PROGRAMS, Tables
from netemu.targets import Netmap, Translation
from netemu.trip import Trip

if TYPE_CHECKING:
    from netemu.capture import Capture, Frames

SECOND = clock.SECOND
keep_memory()
EPOCH_TIMES = 10 * 365 * 86400 * SECOND  # timestamps beyond this are wall-clock times


# ---- what came of it ------------------------------------------------------------------------------------------------


class Journey:
    """What became of one packet.

    fate      forwarded, delivered, rejected, dropped, held      reason   why it died, or None
    out       [(link, bytes from the IP header on)] in the order they left
    steps     what happened, first to last                       rewrites [Rewrite(step, field, old, new)]
    caused    journeys of packets that the node made because of this one
    """

    def __init__(self, part: Journeys, row: int) -> None:
        self._part, self._row = part, row

    @property
    def fate(self) -> str:
        return FATES[int(self._part.pkts.fate[self._row])]

    @property
    def reason(self) -> str | None:
        return self._part.paths.texts[int(self._part.pkts.reason[self._row])]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._part.paths.unfold(int(self._part.pkts.path[self._row]))

    @property
    def rewrites(self) -> list[Rewrite]:
        return self._part.rewrites(self._row)

    @property
    def caused(self) -> list[Journey]:
        return [Journey(part, row) for part, row in self._part.caused_by(self._row)]

    @property
    def own(self) -> list[tuple[str, bytes]]:
        """What the packet itself left as, without what it caused."""
        return self._part.left_as(self._row)

    @property
    def out(self) -> list[tuple[str, bytes]]:
        return [o for c in self.caused for o in c.out] + self.own

    @property
    def packet(self) -> int:
        """Its number in the capture, 1 first."""
        return int(self._part.numbers[self._row])

    @property
    def time(self) -> float:
        """Seconds on the node's clock."""
        return int(self._part.pkts.time[self._row]) / SECOND

    @property
    def link(self) -> str | None:
        """The link it came in on; None: the node sent it."""
        k = int(self._part.pkts.arrived[self._row])
        return None if k < 0 else self._part.links[k]

    @property
    def uncertain(self) -> str | None:
        """Why netemu cannot be sure of it: a rule that it cannot judge (see `Node.load`, unsupported)."""
        return self._part.trip.doubts.get(self._row)

    @property
    def state(self) -> str | None:
        """Connection state as tracking found it, None when it was not asked."""
        return STATE_NAMES.get(int(self._part.state[self._row]))

    @property
    def service(self) -> str | None:
        """The virtual service that IPVS saw it for."""
        return self._part.paths.texts[int(self._part.service[self._row])]

    @property
    def rules_evaluated(self) -> int:
        """Explicit rules that Linux would have looked at for it."""
        return int(self._part.pkts.evaluated[self._row])

    def __repr__(self) -> str:
        return f"<Journey {self.fate}{f' ({self.reason})' if self.reason else ''} out={[link for link, _ in self.out]}>"


#: header columns that are kept as they arrived
BEFORE = (
    "src", "dst", "proto", "sport", "dport", "ttl", "tos", "length", "icmp_type", "icmp_code", "icmp_id", "flags",
    "mark",
)  # fmt: skip


class Journeys(Sequence[Journey]):
    """The journeys of a batch of packets, in columns.

    pkts     Packets      the columns as they stood at the end
    before   dict[str, array]  header columns as they arrived (see BEFORE)
    numbers  int64[n]     number in the capture            state    uint8[n]  as tracking found it (255: not asked)
    left     int16[n]     link it left on, -1 none         service  int32[n]  into paths.texts
    links    list[str]    names of the node's links        paths    Paths
    late     how many packets came with a time before the clock's and counted as now
    """

    def __init__(self, trip: Trip, before: dict[str, NDArray[Any]], numbers: I64, late: int = 0) -> None:
        self.trip = trip
        self.pkts, self.paths = trip.pkts, trip.paths
        self.before, self.numbers, self.late = before, numbers, late
        self.state, self.left, self.service = trip.found, trip.left, trip.service
        self.links = trip.node.routing.names

    def __len__(self) -> int:
        return self.pkts.n

    @overload
    def __getitem__(self, k: int) -> Journey: ...
    @overload
    def __getitem__(self, k: slice) -> list[Journey]: ...
    def __getitem__(self, k: int | slice) -> Journey | list[Journey]:
        if isinstance(k, slice):
            return [Journey(self, i) for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        return Journey(self, k % len(self))

    def left_as(self, row: int) -> list[tuple[str, bytes]]:
        """[(link, bytes)] of the packet itself."""
        k = int(self.left[row])
        if k < 0:
            return []
        name = self.links[k]
        pieces = self.trip.outs.get(row)
        return [(name, b) for b in pieces] if pieces is not None else [(name, self.pkts.bytes(row))]

    @cached_property
    def _children(self) -> dict[int, list[tuple[Journeys, int]]]:
        out: dict[int, list[tuple[Journeys, int]]] = {}
        for child in self.trip.children:
            part = Journeys(child, arrived_columns(child.pkts), np.zeros(child.pkts.n, np.int64))
            assert child.parent_rows is not None
            for k, row in enumerate(child.parent_rows.tolist()):
                out.setdefault(row, []).append((part, k))
        return out

    def caused_by(self, row: int) -> list[tuple[Journeys, int]]:
        """(journeys, row) of each packet that the node made because of `row`."""
        return self._children.get(row, []) if self.trip.children else []

    @cached_property
    def _changes(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        changes = self.trip.changes
        if not changes:
            none = np.zeros(0, np.intp)
            return none, none, none
        rows = np.concatenate([c[2] for c in changes])
        which = np.repeat(np.arange(len(changes)), [len(c[2]) for c in changes])
        place = np.concatenate([np.arange(len(c[2])) for c in changes])
        order = np.argsort(rows, kind="stable")
        return rows[order], which[order], place[order]

    def rewrites(self, row: int) -> list[Rewrite]:
        """What was rewritten in packet `row`, in order."""
        rows, which, place = self._changes
        lo, hi = np.searchsorted(rows, [row, row + 1])
        out = []
        for k in range(int(lo), int(hi)):
            step, field, _, old, new = self.trip.changes[which[k]]
            a, b = int(old[place[k]]), int(new[place[k]])
            if not isinstance(step, Step):
                step = self.paths.steps[int(step[place[k]])]
            if field == "text":
                out.append(Rewrite(step, field, self.paths.texts[a] or "", self.paths.texts[b] or ""))
            elif field.endswith(("src", "dst")):
                out.append(Rewrite(step, field, dotted(a), dotted(b)))
            else:
                out.append(Rewrite(step, field, a, b))
        return out


class Replay(Sequence[Journey]):
    """All journeys of a replay: a sequence over its batches (`parts`). `late` as in Journeys."""

    def __init__(self, parts: list[Journeys], capture: object = None) -> None:
        self.parts = parts
        self.capture = capture
        self._starts = np.concatenate(([0], np.cumsum([len(part) for part in parts]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def late(self) -> int:
        return sum(part.late for part in self.parts)

    @overload
    def __getitem__(self, k: int) -> Journey: ...
    @overload
    def __getitem__(self, k: slice) -> list[Journey]: ...
    def __getitem__(self, k: int | slice) -> Journey | list[Journey]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        k %= len(self)
        part = int(np.searchsorted(self._starts, k, side="right")) - 1
        return self.parts[part][k - int(self._starts[part])]


def arrived_columns(p: Packets) -> dict[str, NDArray[Any]]:
    """Copies of the header columns, before anything is rewritten."""
    return {name: getattr(p, name).copy() for name in BEFORE}


@contextmanager
def _without_collection() -> Iterator[None]:
    """A node is made of a million things of which none is garbage: nobody is to look through them again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


# ---- the node -------------------------------------------------------------------------------------------------------


def wishes(tables: Tables) -> Iterator[tuple[Range, str]]:
    """What the NAT targets of all rules may choose from, with "dst" or "src"."""
    for _, _, _, rule in tables.rules():
        target = rule.target
        if isinstance(target, Translation):
            yield target.choice, target.manip
        elif isinstance(target, Netmap):
            for manip in ("dst", "src"):
                yield target.choice, manip


class Rewritten:
    """Which addresses rules and services may rewrite to: what the answer to a new flow can look like.

    none     nothing is rewritten             servers  uint64, the real servers of IPVS
    draws    a rule chooses among ports for destinations   narrow  ... for sources, or draws one for each
    """

    def __init__(self, node: Node) -> None:
        self.destinations: list[tuple[int, int]] = []
        self.sources: list[tuple[int, int]] = []
        self.draws = self.narrow = wished = False
        self.of = self.depends(node)
        _, own, servers = self.of
        for wish, manip in wishes(node.tables):
            wished = True
            if manip == "dst":
                self.draws |= wish.port_lo != wish.port_hi
            else:
                self.narrow |= wish.port_lo is not None or wish.random
            side = self.destinations if manip == "dst" else self.sources
            if wish.kind == "range" and wish.lo is not None:
                side.append((wish.lo, wish.lo if wish.hi is None else wish.hi))
            elif wish.kind == "netmap":
                side.append((wish.net & wish.mask, wish.net | (~wish.mask & 0xFFFFFFFF)))
            elif wish.kind in ("masquerade", "redirect"):
                side.extend((a, a) for a in own)
                if wish.kind == "redirect":
                    side.append((0x7F000001, 0x7F000001))
        self.dnat = bool(self.destinations)
        self.destinations.extend((a, a) for a in servers)
        self.servers = np.array(servers, np.uint64)
        self.none = not wished and not servers
        self._tables = [self._merged(self.destinations), self._merged(self.sources)]

    @staticmethod
    def depends(node: Node) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """All that it follows from: the version of the rules, the node's own addresses, the real servers of IPVS."""
        own = {a.ip for link in node.routing.links for a in link.addresses}
        servers = {d.addr for service in node.ipvs.services for d in service.destinations}
        return node.tables.version, tuple(sorted(own)), tuple(sorted(servers))

    @staticmethod
    def _merged(ranges: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        out: list[list[int]] = []
        for lo, hi in sorted(ranges):
            if out and lo <= out[-1][1] + 1:
                out[-1][1] = max(out[-1][1], hi)
            else:
                out.append([lo, hi])
        return np.array([lo for lo, _ in out], np.int64), np.array([hi for _, hi in out], np.int64)

    def _inside(self, side: int, addresses: NDArray[np.uint32]) -> Mask:
        lo, hi = self._tables[side]
        if not len(lo):
            return np.zeros(len(addresses), bool)
        k = np.searchsorted(lo, addresses, side="right") - 1
        return (k >= 0) & (addresses <= hi[np.maximum(k, 0)])

    def destination(self, addresses: NDArray[np.uint32]) -> Mask:
        """May a new flow's destination become this address?"""
        return self._inside(0, addresses)

    def source(self, addresses: NDArray[np.uint32]) -> Mask:
        """May a new flow's source become this address?"""
        return self._inside(1, addresses)


class Node:
    """A machine: links, routes, rules, sets, services, and the state that traffic leaves in them.

    >>> node = Node(Model())
    >>> node.run("ip addr add 127.0.0.2/8 dev lo")
    ''
    """

    def __init__(self, model: Model, seed: int = 0, unsupported: str = FAIL) -> None:
        self.model = model
        self.seed = seed
        self.kernel = model.kernel
        self.hz = clock.HZ[model.kernel]
        self.now = 0
        self.epoch: int | None = None  # wall-clock time of the node's time zero, once a capture told it
        self.serial = 0
        self.caveats: Counter[str] = Counter()
        self.paths = Paths()
        self.sysctl = Sysctl(model.sysctl)
        self.routing = Routing(self.sysctl)
        self.routing.kernel = self.kernel
        self.routing.drawn = siphash13(seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFFFFFFFFFF) | 1
        self.sockets = tuple(model.sockets)
        self.cpu = model.cpu
        self.accounts: dict[str, Account] | None = None
        self.sets = Sets(self.kernel, seed)
        self.conntrack = Conntrack(self)
        self.helpers = Helpers(self)
        self.synproxy = Synproxy(self)
        self.nat = Nat(self)
        self.ipvs = Ipvs(self)
        self.ipvsadm = Ipvsadm(self.ipvs)
        self.tables = Tables(self)
        self.tables.uncertain = unsupported == UNCERTAIN
        self.doubts = Doubts() if unsupported == UNCERTAIN else None
        self.settled = Settled(self)
        self.road = Road(self)
        self.shortest_timeout = SECOND
        self.rewritten = Rewritten(self)
        self.routing.on_link_down.append(self._link_down)
        self.routing.on_address_removed.append(self._address_removed)
        problems: list[Problem] = []
        self._fill(model, problems)
        raise_all(problems)
        self.refresh()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        seed: int = 0,
        unsupported: str = FAIL,
        prepare: Callable[[Model], None] | None = None,
    ) -> Node:
        """The node that a model directory describes.

        unsupported  "fail", or "uncertain": a rule with a match or target that netemu does not model is kept as one
                     that might match, and packets whose fate depends on it say so (see doubt.py)
        prepare      called with the model before a node is made of it
        Raises  Refused (the real tools would refuse it too) or Unsupported (netemu cannot yet), naming every problem
        Cost    linear in the text; long chains are compiled, everything else when the first packet comes to it
        """
        problems: list[Problem] = []
        model = read_model(path, problems)
        if prepare is not None:
            prepare(model)
        if unsupported == UNCERTAIN:
            problems = put_aside(model, problems)
        node: Node | None = None
        with _without_collection():
            try:
                node = cls(model, seed, unsupported)
            except (Refused, Unsupported) as error:
                problems.extend(error.problems)
            raise_all(problems)
            assert node is not None
            node.tables.walk.prepare(node.paths, node.routing.names)
        return node

    def _fill(self, model: Model, problems: list[Problem]) -> None:
        model.build(self.routing, problems)
        for spec in model.policies:
            try:
                self.conntrack.policies.add(spec.policy)
            except NetemuError as error:
                problems += spec.place.problems(error)
        listed = model.texts.get("nfacct.list")
        if listed is not None:
            self.accounts = read_accounts(listed.text, listed.file, problems)
        for name, reader in (
            ("ipset.save", self.sets.restore),
            ("ipvsadm.save", self.ipvsadm.restore),
            ("iptables.save", self.tables.read),
            ("conntrack.list", self.conntrack.read),
        ):
            found = model.texts.get(name)
            if found is not None:
                reader(found.text, found.file, problems)

    def refresh(self) -> None:
        """Something was changed from outside: find out again what stands where."""
        self.conntrack.read_sysctls()
        self.conntrack.switch(self.tables.conntrack_needed or self.ipvs.conntrack_needed)
        self.shortest_timeout = min(SECOND, self.conntrack.shortest_timeout())
        if self.rewritten.of != Rewritten.depends(self):
            self.rewritten = Rewritten(self)
        self.settled.changes += 1
        self.road.compile()

    def milliseconds(self, now: int) -> int:
        """Milliseconds since midnight UT at a time of the node's clock: what an IP timestamp says."""
        return ((self.epoch or 0) + now) // 1_000_000 % 86_400_000

    def caveat(self, text: str) -> None:
        """Say once, and count, that something passed which is not modelled to the letter."""
        self.caveats[text] += 1

    def _link_down(self, link: int) -> None:
        self.conntrack.kill_where(self.conntrack.masq == link)

    def _address_removed(self, link: int, address: int) -> None:
        ct = self.conntrack
        ct.kill_where((ct.masq == link) & (ct.rdst == address))

    # ---- traffic -----------------------------------------------------------------------------------------------

    def send(
        self, packet: bytes, link: str | None = None, at: float | None = None, *, ethernet: bool = False
    ) -> Journey:
        """Send one packet; link=None: the node itself sends it.

        packet    bytes from the IP header on, or a whole Ethernet frame with ethernet=True
        at        seconds on the node's clock; earlier than now counts as now
        Raises    Refused for a link that the node does not have or a frame that holds no IPv4 packet
        """
        smac = dmac = None
        if ethernet:
            if len(packet) < 14 or packet[12:14] != b"\x08\x00":
                raise Refused(
                    "not an Ethernet frame with an IPv4 packet in it",
                    hint="pass the bytes from the IP header on, without ethernet=True",
                )
            dmac, smac = int.from_bytes(packet[:6], "big"), int.from_bytes(packet[6:12], "big")
            packet = packet[14:]
        if len(packet) < 20 or packet[0] >> 4 != 4:
            raise Refused("not an IPv4 packet", hint="netemu models IPv4; give the bytes from the IP header on")
        p = Packets.parse(padded(packet), np.zeros(1, np.int64), np.array([len(packet)], np.int32))
        if link is not None:
            k = self.routing.index(link)
            if k < 0:
                raise Refused(f"no link {link!r}", hint="links: " + ", ".join(self.routing.names))
            p.arrived[0] = k
            if ethernet and smac is not None and dmac is not None:
                p.ether[0], p.smac[0] = True, smac
                own = self.routing.links[k].mac
                if dmac == (1 << 48) - 1:
                    p.pkttype[0] = 1
                elif dmac >> 40 & 1:
                    p.pkttype[0] = 2
                elif own is not None and dmac != own:
                    p.pkttype[0] = OTHERHOST
        else:
            p.socket[0] = True
        now = self.now if at is None else clock.nanoseconds(at)
        p.time[0] = max(now, self.now)
        return self._go(p, np.ones(1, np.int64), 1)[0]

    def _go(self, p: Packets, numbers: I64, limit: int, *, remember: bool = True, late: int = 0) -> Journeys:
        """Take a batch through, cut into runs."""
        p.serial = np.arange(self.serial, self.serial + p.n)
        self.serial += p.n
        p.sums_dccp = bool(self.conntrack.ported[DCCP])
        before = arrived_columns(p)
        trip = Trip(self, p)
        trip.remember = remember
        self.nat.shown = Shown(self.seed, p, before) if p.n > 1 else None
        start = 0
        while start < p.n:
            end = start + 1 if limit == 1 else self.road.run_end(p, start, limit)
            rows = np.arange(start, end)
            rows = rows[: self.road.run(trip, rows)]
            if self.doubts is not None:
                self.doubts.settle(trip, rows, before)
            start += len(rows)
        self.nat.shown = None
        if self.doubts is not None:
            self.doubts.settle_children(trip)
        return Journeys(trip, before, numbers, late)

    def replay(
        self,
        capture: Capture,
        run_length: int | None = None,
        *,
        link: str | None = None,
        timeline: Sequence[tuple[float, str]] = (),
    ) -> Replay:
        """Replay a capture; the node keeps its state between calls.

        run_length  how many packets may go together at most (1: the reference); answers do not depend on it
        link        every packet came in on this link (default: found out, see capture.arrivals)
        timeline    [(seconds on the node's clock, command)], carried out in between
        Cost        memory for all journeys; use `stream` for long captures
        """
        return Replay(list(self.stream(capture, run_length, link=link, timeline=timeline)), capture)

    def stream(
        self,
        capture: Capture,
        run_length: int | None = None,
        *,
        link: str | None = None,
        timeline: Sequence[tuple[float, str]] = (),
        remember: bool = True,
    ) -> Iterator[Journeys]:
        """As `replay`, a batch at a time: memory does not grow with the capture. remember=False: no rewrites kept.

        Timestamps of real captures (wall-clock) count from the capture's first packet; a capture whose timestamps lie
        in the first ten years of Unix time is taken to be on the node's own clock.
        """
        from netemu.capture import OUT, arrivals

        limit = CHUNK if run_length is None else run_length
        todo = sorted(((clock.nanoseconds(at), text) for at, text in timeline), key=lambda e: e[0])
        zero: int | None = None
        for frames in capture:
            if not len(frames.at):
                continue
            if zero is None:
                zero = 0
                first = int(frames.time[0])
                if first > EPOCH_TIMES:
                    if self.epoch is None:
                        self.epoch = first - self.now
                    zero = self.epoch
            time = frames.time - zero if zero else frames.time
            p = frames.parse()
            where = arrivals(frames, capture, self.routing, link, p.src)
            keep = np.flatnonzero(where >= OUT)
            cuts = [0]
            for at, _ in todo:
                cuts.append(int(np.searchsorted(np.maximum.accumulate(time[keep]), at)))
            cuts.append(len(keep))
            for k, (lo, hi) in enumerate(pairwise(cuts)):
                if hi > lo:
                    some = slice(lo, hi) if len(keep) == len(where) else keep[lo:hi]
                    yield self._frames(frames, p, some, where, time, limit, remember, link not in (None, "auto"))
                if k < len(todo) and hi < len(keep):
                    self.run(todo[k][1], at=todo[k][0] / SECOND)
            done = sum(1 for c in cuts[1:-1] if c < len(keep))
            todo = todo[done:]
        for at, text in todo:
            self.run(text, at=at / SECOND)

    def _frames(
        self,
        frames: Frames,
        parsed: Packets,
        keep: Rows | slice,
        where: I16,
        time: I64,
        limit: int,
        remember: bool,
        forced: bool,
    ) -> Journeys:
        p = parsed.take(keep)
        p.arrived = where[keep]
        p.socket = p.arrived < 0
        if p.socket.any():
            p.pkttype[p.socket] = HOST
        if not forced and p.ether.any():
            self._strangers_on_link(p, frames.dmac[keep])
        t, late = time[keep], 0
        if int(t[0]) >= self.now and bool((t[1:] >= t[:-1]).all()):
            p.time = t.copy()
        else:
            p.time = np.maximum.accumulate(np.maximum(t, self.now))
            late = int(np.count_nonzero(p.time != t))
        return self._go(p, frames.number[keep], limit, remember=remember, late=late)

    def _strangers_on_link(self, p: Packets, dmac: NDArray[np.uint64]) -> None:
        """Frames to another station's address on a link whose own address is known are not for this node."""
        for k, link in enumerate(self.routing.links):
            if link.mac is None:
                continue
            mine = (p.arrived == k) & p.ether
            other = mine & (dmac != 0) & (dmac != link.mac) & ((dmac >> np.uint64(40)) & np.uint64(1) == 0)
            p.pkttype[other] = OTHERHOST

    # ---- changes and questions ---------------------------------------------------------------------------------

    def advance(self, at: float | None = None) -> None:
        """Let time pass until `at` seconds; timers fire. The clock never goes back. None: what is due now fires."""
        now = self.now if at is None else max(self.now, clock.nanoseconds(at))
        if self.ipvs.next_due <= now:
            self.ipvs.advance(now)
        self.now = now

    def run(self, command: str, at: float | None = None, text: str = "") -> str:
        """Run a command of the node's own tools: iptables, iptables-save, iptables-restore, ipset, ipvsadm, conntrack,
        sysctl, ip.

        text    what iptables-restore finds on its standard input, unless the command names a file
        Returns what the tool prints. Raises Refused (with the tool's exit status) or Unsupported.
        """
        self.advance(at)
        try:
            argv = shlex.split(command)
        except ValueError as error:
            raise Refused(f"cannot read the command: {error}", text=command) from None
        if not argv:
            return ""
        tool = Path(argv[0]).name
        tools: dict[str, Callable[[list[str]], str]] = {
            **dict.fromkeys(PROGRAMS, lambda a: self.tables.run(a, self.now, text)),
            "ipset": lambda a: self.sets.run(a, self.now),
            "ipvsadm": lambda a: self.ipvsadm.run(a, self.now),
            "conntrack": lambda a: ConntrackTool(self).run(a, self.now),
            "sysctl": self.sysctl.run,
            "nfct": lambda a: self.conntrack.policies.run(a, self.tables.timeouts_used()),
            "ip": self.routing.run,
        }
        if tool in ("ip6tables", "ip6tables-legacy"):
            raise Unsupported(
                "ip6tables: IPv6 is not modelled yet", text=command, hint="only IPv4 rules can be changed"
            )
        if tool not in tools:
            raise Unsupported(f"command {tool!r}", text=command, hint="netemu knows " + ", ".join(sorted(tools)))
        out = tools[tool](argv)
        self.refresh()
        return out

    def doubtful_rules(self) -> list[str]:
        """Rules that netemu cannot judge and keeps as rules that might match, one line each."""
        return list(remarks(self.tables)) if self.doubts is not None else []

    def dump(self, what: str) -> str:
        """A table as its tool prints it, at the time of the last event.

        iptables-save (with counters), ip6tables-save, ipset-save, conntrack (-L -o extended),
        expectations (-L expect), ipvsadm-save (-Sn), ipvsadm-list (-Ln), ipvsadm-stats, ipvsadm-connections (-Lnc)
        """
        dumps: dict[str, Callable[[], str]] = {
            "iptables-save": self.tables.save,
            "ip6tables-save": lambda: "",
            "ipset-save": lambda: self.sets.save(self.now),
            "conntrack": lambda: self.conntrack.dump(self.now),
            "expectations": lambda: self.helpers.dump(self.now),
            "ipvsadm-save": self.ipvsadm.save,
            "ipvsadm-list": self.ipvsadm.list,
            "ipvsadm-stats": self.ipvsadm.stats,
            "ipvsadm-connections": lambda: self.ipvsadm.connections(self.now),
        }
        if what not in dumps:
            raise Refused(f"no dump {what!r}", hint="dumps: " + ", ".join(dumps))
        return dumps[what]()

    def check(self) -> None:
        """Does every structure agree with itself? (for tests)"""
        self.conntrack.check()
