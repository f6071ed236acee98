"""A trip: one run of packets on its way through the node, and what the rooms may ask of it.

Every room (a table, a match, a target, conntrack, IPVS) is handed the trip and the rows that stand before it. The trip
carries the columns, says at which hook they are, and is the one place that writes down what happened to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from netemu.packets import DROPPED, I16, I32, I64, U8, U32, U64, Mask, Packets, Rows
from netemu.paths import Noted, Paths, Step

if TYPE_CHECKING:
    from netemu.fragments import Assembly
    from netemu.ipvs import Choice
    from netemu.node import Node

#: rewrites of one run: (step, or the number of each row's own; field, rows, old values, new values)
Change = tuple[Step | I32, str, Rows, NDArray[np.generic], NDArray[np.generic]]


class Trip:
    """Packets under way.

    pkts        the columns               hook   PREROUTING, INPUT, FORWARD, OUTPUT or POSTROUTING
    node        all rooms of the node     hot    rows that a match wants dropped at once (the walk reads it)
    route_kind  int8[n]   what routing last said of the packet (routing.LOCAL, ...)
    route_link  int16[n]  the way out, whatever device the hook of the moment shows
    nexthop     uint32[n] gateway, or the destination itself      mtu   int32[n] of the way out
    found       uint8[n]  connection state as conntrack first found it, 255: not asked
    service     int32[n]  virtual service that IPVS saw it for (Paths.texts), 0 none
    left        int16[n]  link that it left on, -1: it did not
    outs        what left, for the rows where that is not simply one packet on `left`
    """

    def __init__(
        self, node: Node, pkts: Packets, *, parent: Trip | None = None, parent_rows: Rows | None = None
    ) -> None:
        self.node = node
        self.pkts = pkts
        self.paths: Paths = node.paths
        self.hook = ""
        self.hot: Rows | None = None
        self.changes: list[Change] = []
        self.children: list[Trip] = []
        self.parent = parent
        self.parent_rows = parent_rows  # for each packet of this trip, the row of `parent` that caused it
        n = pkts.n
        self.route_kind: NDArray[np.int8] = np.zeros(n, np.int8)
        self.route_link: I16 = np.full(n, -1, np.int16)
        self.nexthop: U32 = np.zeros(n, np.uint32)
        self.mtu: I32 = np.full(n, 1500, np.int32)
        self.found: U8 = np.full(n, 255, np.uint8)
        self.service: I32 = np.zeros(n, np.int32)
        self.left: I16 = np.full(n, -1, np.int16)
        self.outs: dict[int, list[bytes]] = {}
        self.template: I16 | None = (
            None  # what CT rules wish for (number in Conntrack.templates, 0 nothing); None: none
        )
        self.whole: dict[int, Assembly] = {}  # packets that were put together, and from what
        self.signed: dict[int, list[int]] = {}  # where in its options a packet carries the node's address
        self.owed: list[tuple[int, bytes, int, int, bool]] = []  # errors to be sent: see Answers.icmp
        self.silent: list[int] = []  # rows whose sender is not told after all
        self.choices: dict[int, Choice] = {}  # how IPVS found the server of a row, while Ipvs.tell is on
        self.drew: Mask | None = None  # packets that something was drawn for
        self.fickle: Mask | None = None  # packets that did not only meet what is steadfast (settled.py); None: unheeded
        self.remember: bool = parent is None or parent.remember  # keep each rewrite for the report
        # what depends on rules that netemu cannot judge (see doubt.py): row -> why; those of the walk under way, and
        # the rows that a rule behind the doubtful one has changed
        self.doubts: dict[int, str] = {}
        self.open_doubts: list[tuple[Rows, str, str]] = []
        self.moved: set[int] = set()
        self._log: list[tuple[Rows, int | NDArray[np.integer]]] | None = None  # steps noted: see write_later
        self._trail: U64 = np.zeros(0, np.uint64)

    def step(self, rows: Rows, step: Step | I32) -> None:
        """Write `step` on the path of `rows` (an array: each row's own, by number)."""
        if self._log is None:
            self.paths.extend(self.pkts, rows, step)
        elif len(rows):
            self._note(rows, self.paths.step_id(step) if isinstance(step, Step) else step)

    def steps(self, rows: Rows, steps: I32, words: U64) -> None:
        """`step`, each row's own.   words  what `Paths.words` made of the steps, once and for all"""
        if self._log is None:
            self.paths.extend(self.pkts, rows, steps)
        elif len(rows):
            self._log.append((rows, steps))
            trail = self._trail.take(rows)
            self.paths.mix(trail, words)
            self._trail[rows] = trail

    def _note(self, rows: Rows, step: int | NDArray[np.integer]) -> None:
        assert self._log is not None
        self._log.append((rows, step))
        first, n = rows.item(0), len(rows)
        if isinstance(step, int) and rows.item(-1) - first + 1 == n:  # ascending, so these are all that lie between
            self.paths.trail(self._trail[first : first + n], step)
        else:
            trail = self._trail.take(rows)
            self.paths.trail(trail, step)
            self._trail[rows] = trail

    def write_later(self) -> None:
        """From here on steps are only noted, until `write` finds the paths of many rows together."""
        self._log = []
        if len(self._trail) < self.pkts.n:
            self._trail = np.zeros(self.pkts.n, np.uint64)

    def forget_steps(self, rows: Rows) -> None:
        """Nothing was noted: it was of `rows` only."""
        self._log = []
        self._trail[rows] = 0

    def write(self, rows: Rows) -> None:
        """Put on the paths of `rows` what was noted. It is all of the rows that steps were noted of."""
        if self._log is None:
            return
        trail = self._trail.take(rows)
        self._trail[rows] = 0
        log, self._log = self._log, None
        moved = np.flatnonzero(trail)
        if len(moved) < len(rows):
            rows, trail = rows[moved], trail[moved]

        def again(places: NDArray[np.intp]) -> Noted:
            where = np.full(self.pkts.n, -1, np.int32)
            where[rows[places]] = np.arange(len(places), dtype=np.int32)
            whose, steps = [], []
            for noted, step in log:
                at = where.take(noted)
                some = np.flatnonzero(at >= 0)
                if len(some):
                    whose.append(at.take(some).astype(np.uint16))
                    if isinstance(step, np.ndarray):
                        steps.append(step.take(some).astype(np.int32))
                    else:
                        steps.append(np.full(len(some), step, np.int32))
            return np.concatenate(whose), np.concatenate(steps)

        if len(rows):
            self.pkts.path[rows] = self.paths.walked(self.pkts.path[rows], trail, again)

    def trail(self, rows: Rows | slice) -> U64:
        """uint64[n]: what `Paths.trail` made of the steps that these rows took in this run. For `write_later` only."""
        return self._trail[rows]

    def arrive(self, rows: Rows | slice) -> None:
        """Their paths are written: forget the steps that were noted of them."""
        self._trail[rows] = 0

    def heed(self) -> None:
        """From here on heed who wavers."""
        if self.fickle is None:
            self.fickle = np.zeros(self.pkts.n, bool)

    def waver(self, rows: Rows) -> None:
        """Something befalls these rows that need not befall another packet that looks like them."""
        if self.fickle is not None:
            self.fickle[rows] = True

    def rewrite(self, rows: Rows, field: str, new: NDArray[np.generic] | int, step: Step | I32) -> None:
        """Set a header column (src dst sport dport ttl tos mark icmp_id) of `rows`, and remember what it was."""
        column = getattr(self.pkts, field)
        old = column[rows]
        values = np.broadcast_to(np.asarray(new).astype(column.dtype), old.shape)
        moved = old != values
        if moved.any():
            column[rows] = values
            if not self.remember:
                return
            by = step if isinstance(step, Step) else step[moved]
            self.changes.append((by, "id" if field == "icmp_id" else field, rows[moved], old[moved], values[moved]))

    def end(self, rows: Rows, reason: str | None, fate: int = DROPPED) -> None:
        """These rows travel no further."""
        self.pkts.fate[rows] = fate
        if reason is not None:
            self.pkts.reason[rows] = self.paths.text_id(reason)

    def travelling(self, rows: Rows) -> Rows:
        """Those of `rows` that are still under way."""
        still: Rows = rows[self.pkts.fate[rows] == 0]
        return still

    def random(self, rows: Rows, salt: int | U64) -> U64:
        """uint64[len(rows)]: a draw for each packet, by the seed, the packet's serial number and `salt` only (one for
        all, or an array: each row's own).

        So the same seed gives the same answer, however a replay is cut into runs (splitmix64's finaliser).
        """
        if self.drew is None:
            self.drew = np.zeros(self.pkts.n, bool)
        self.drew[rows] = True
        self.waver(rows)
        return draws(self.node.seed, self.pkts.serial[rows], salt)

    def route_out(self, rows: Rows) -> Mask:
        """Look up the way out for the addresses, mark and TOS of `rows` as they are, and attach it; False: none."""
        return self.node.road.route_out(self, rows)

    def cause_icmp(
        self, rows: Rows, kind: int, code: int, info: int = 0, *, verify: bool = False, routeless: bool = False
    ) -> None:
        """Make the ICMP error about each of `rows` (which go on existing: end them yourself); it leaves after the run.

        verify     only about packets whose TCP, UDP or ICMP checksum is right
        routeless  there is no route: these have a limit of their own
        """
        self.waver(rows)
        self.node.road.answers.icmp(self, rows, kind, code, info, verify=verify, routeless=routeless)

    def cause_reset(self, rows: Rows) -> None:
        """Make and send the TCP reset that answers each of `rows`."""
        self.waver(rows)
        self.node.road.answers.reset(self, rows)


def draws(seed: int, serials: I64, salt: int | U64) -> U64:
    """uint64[n]: the draw of each packet with one of these serial numbers (see `Trip.random`)."""
    mixed: np.uint64 | U64
    if isinstance(salt, int):
        mixed = np.uint64((seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF)
    else:
        mixed = salt * np.uint64(0xD1B54A32D192ED03) + np.uint64((seed * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    x = serials.view(np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + mixed
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def split(rows: Rows, mask: Mask) -> tuple[Rows, Rows]:
    """(rows where mask, rows where not)."""
    return rows[mask], rows[~mask]
