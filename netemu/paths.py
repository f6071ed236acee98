"""Paths: what happened to each packet, stored once for all packets it happened to.

A packet carries a path number. A path is a parent path and one more step, so that the million packets of a
settled flow share one entry, and adding a step to many packets is one look-up for each path they were on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netemu.hashing import Table
from netemu.packets import Packets

TABLES = ("raw", "mangle", "nat", "filter", "security")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. Table steps print exactly as the kernel's TRACE does.

    table    raw, mangle, nat, filter or security; None outside the tables
    text     `nat:KUBE-SERVICES:rule:2`, or `STAGE: text` with STAGE one of defrag, conntrack, routing, ipvs, nat,
             local, out
    rule     the rule as iptables-save prints it, for people ("" where there is none)
    """

    table: str | None
    text: str
    rule: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One header field (or the mark) that changed. `field` is src dst sport dport ttl tos mark mss id or inner.*"""

    step: Step
    field: str
    old: int | str
    new: int | str


#: places among those asked for, and the step that they took (or each its own)
Added = tuple[NDArray[np.intp], int | NDArray[np.integer]]
_TRAIL = np.uint64(0x9E6C63D0876A9A47)


def _word(steps: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Step numbers, well mixed."""
    x = (steps + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(31)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(29)
    return x


class Steps:
    """Steps by number. A block of numbers may be reserved for steps that are made when somebody looks at one."""

    def __init__(self) -> None:
        self._made: list[Step | None] = []
        self._starts: list[int] = []
        self._makers: list[Callable[[int], Step]] = []

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, number: int) -> Step:
        step = self._made[number]
        if step is None:
            block = bisect_right(self._starts, number) - 1
            step = self._made[number] = self._makers[block](number - self._starts[block])
        return step

    def append(self, step: Step) -> int:
        """The number of a new step."""
        self._made.append(step)
        return len(self._made) - 1

    def reserve(self, n: int, make: Callable[[int], Step]) -> int:
        """The first of `n` numbers; make(k) gives the k-th of their steps."""
        first = len(self._made)
        self._starts.append(first)
        self._makers.append(make)
        self._made.extend([None] * n)
        return first


class Paths:
    """Interned paths and texts. Path 0 is the empty path, text 0 is no text."""

    def __init__(self) -> None:
        self.steps = Steps()
        self._step_ids: dict[Step, int] = {}
        self._known = Table(1)  # parent << 32 | step -> path - 1
        self._children: dict[int, int] = {}  # the same, of those that were asked for one by one
        self._parent = np.zeros(64, np.int32)
        self._last = np.full(64, -1, np.int32)
        self._trails = Table(2)  # (trail, path before it) -> its place in _ways
        self._ways = np.zeros(64, np.int32)
        self._words: dict[int, np.uint64] = {}
        self._unfolded: dict[int, tuple[Step, ...]] = {0: ()}
        self.texts: list[str | None] = [None]
        self._text_ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._known) + 1

    def step_id(self, step: Step) -> int:
        """Number of `step`, the same for equal steps."""
        n = self._step_ids.get(step)
        if n is None:
            n = self._step_ids[step] = self.steps.append(step)
        return n

    def text_id(self, text: str) -> int:
        """Number of `text` (why a packet died), the same for equal texts."""
        n = self._text_ids.get(text)
        if n is None:
            n = self._text_ids[text] = len(self.texts)
            self.texts.append(text)
        return n

    def extend(self, pkts: Packets, rows: NDArray[np.intp], step: Step | NDArray[np.integer]) -> None:
        """Add `step` to the path of each of `rows`; or each row's own, given as an array of step numbers.

        Cost: one look-up for all that share a path; where they do not, one hash look-up each.
        """
        if not len(rows):
            return
        each = isinstance(step, np.ndarray)
        sid = int(step[0]) if isinstance(step, np.ndarray) else self.step_id(step)
        if len(rows) == 1:
            row = rows.item()
            pkts.path[row] = self._child(pkts.path.item(row), sid)
            return
        old = pkts.path[rows]
        first = old.item(0)
        if not each and (old == first).all():
            pkts.path[rows] = self._child(first, sid)
            return
        pkts.path[rows] = self.grown(old, step if isinstance(step, np.ndarray) else np.int64(sid))

    def trail(self, trail: NDArray[np.uint64], step: int | NDArray[np.integer]) -> None:
        """Mix a step into each word of `trail` (in place): the same steps in the same order give the same word."""
        trail *= _TRAIL
        if isinstance(step, np.ndarray):
            trail += _word(step.astype(np.uint64))
            return
        word = self._words.get(step)
        if word is None:
            word = self._words[step] = _word(np.array([step], np.uint64))[0]
        trail += word

    def walked(
        self, before: NDArray[np.int32], trail: NDArray[np.uint64], log: Callable[[NDArray[np.intp]], Iterator[Added]]
    ) -> NDArray[np.int32]:
        """The paths that packets have come.

        before   int32[n]  the path of each when its trail began      trail  uint64[n]  what `trail` made of its steps
        log      says again what steps some of them (by place) took: (which of those, the step or each one's own), ...
        Cost     one hash look-up each; a trail that nobody came before is walked again, step by step
        """
        known = len(self._trails)
        ids = self._trails.add((trail, before.view(np.uint32).astype(np.uint64)))
        new = np.flatnonzero(ids >= known)
        if len(new):
            _, first = np.unique(ids[new], return_index=True)
            some = new[first]
            paths = before[some]
            for which, step in log(some):
                paths[which] = self.grown(paths[which], step)
            if len(self._trails) > len(self._ways):
                more = max(len(self._trails) - len(self._ways), len(self._ways))
                self._ways = np.concatenate([self._ways, np.zeros(more, np.int32)])
            self._ways[ids[some]] = paths
        ways: NDArray[np.int32] = self._ways[ids]
        return ways

    def _child(self, parent: int, sid: int) -> int:
        key = parent << 32 | sid
        n = self._children.get(key)
        if n is None:
            before = len(self._known)
            n = self._children[key] = self._known.add_one(key) + 1
            if n > before:
                self._room(n + 1)
                self._parent[n], self._last[n] = parent, sid
        return n

    def grown(self, parents: NDArray[np.int32], steps: NDArray[np.integer] | int | np.integer) -> NDArray[np.int32]:
        """The paths that are `parents` and one step more."""
        before = len(self._known)
        keys = (parents.astype(np.int64) << 32 | steps).view(np.uint64)
        paths = self._known.add((keys,)) + np.int32(1)
        new = np.flatnonzero(paths > before)
        if len(new):
            self._room(len(self._known) + 1)
            self._parent[paths[new]] = parents[new]
            self._last[paths[new]] = np.broadcast_to(steps, len(parents))[new]
        return paths

    def _room(self, n: int) -> None:
        size = len(self._parent)
        if n > size:
            more = np.zeros(max(n - size, size), np.int32)
            self._parent, self._last = np.concatenate([self._parent, more]), np.concatenate([self._last, more])

    def unrolled(self, paths: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The steps of many paths: (numbers of all steps, path after path, first to last; how many each path has)."""
        here = paths.astype(np.int64)
        at = np.arange(len(here))
        sizes = np.zeros(len(here), np.int64)
        levels: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []
        while True:
            going = np.flatnonzero(here)
            if not len(going):
                break
            at, here = at.take(going), here.take(going)
            levels.append((at, self._last.take(here)))
            sizes[at] += 1
            here = self._parent.take(here).astype(np.int64)
        ends = np.cumsum(sizes)
        out = np.empty(int(ends[-1]) if len(ends) else 0, np.int64)
        for level, (who, steps) in enumerate(levels):
            out[ends.take(who) - 1 - level] = steps
        return out, sizes

    def unfold(self, path: int) -> tuple[Step, ...]:
        """The steps of a path, first to last."""
        got = self._unfolded.get(path)
        if got is None:
            chain: list[Step] = []
            p = path
            while p:
                chain.append(self.steps[self._last.item(p)])
                p = self._parent.item(p)
            got = self._unfolded[path] = tuple(reversed(chain))
        return got
