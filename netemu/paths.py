"""Paths: what happened to each packet, stored once for all packets it happened to.

A packet carries a path number. A path is a parent path and one more step, so that the million packets of a
settled flow share one entry, and adding a step to many packets is one look-up for each path they were on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.hashing import Table
from netemu.packets import I32, U64, Packets

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


#: places of packets among those asked for (no more than 65,536), and a step that each of them took
Noted = tuple[NDArray[np.uint16], NDArray[np.int32]]
T = TypeVar("T", bound=np.generic)
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
    """Interned paths and texts. Path 0 is the empty path, text 0 is no text.

    A path is another path and what came after it: one step (`_child`), or all the steps of a run (`walked`).
    """

    def __init__(self) -> None:
        self.steps = Steps()
        self._step_ids: dict[Step, int] = {}
        self._children: dict[int, int] = {}  # parent << 32 | step -> path
        self._trails = Table(2)  # (trail, path before it) -> its number among the trails
        self._path_of = np.zeros(64, np.int32)  # by trail
        self._words: dict[int, np.uint64] = {}
        # by path: the one before it, and where its steps begin in `_walked`; they end where those of the next begin
        self._parent, self._begin = np.zeros(64, np.int32), np.zeros(65, np.int64)
        self._walked = np.zeros(256, np.int32)
        self._count = 1
        self._unfolded: dict[int, tuple[Step, ...]] = {0: ()}
        self.texts: list[str | None] = [None]
        self._text_ids: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

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

        Cost: one dict look-up for each distinct path and step. For many rows, `trail` and `walked` are the way.
        """
        if not len(rows):
            return
        if len(rows) == 1:
            row = rows.item()
            sid = int(step[0]) if isinstance(step, np.ndarray) else self.step_id(step)
            pkts.path[row] = self._child(pkts.path.item(row), sid)
            return
        steps = step if isinstance(step, np.ndarray) else np.int64(self.step_id(step))
        keys, back = np.unique(pkts.path[rows].astype(np.int64) << 32 | steps, return_inverse=True)
        child = [self._child(key >> 32, key & 0xFFFFFFFF) for key in keys.tolist()]
        pkts.path[rows] = np.array(child, np.int32)[back]

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

    def words(self, steps: I32) -> U64:
        """What `trail` mixes in for each of these steps, for those who take them often."""
        return _word(steps.astype(np.uint64))

    def mix(self, trail: U64, words: U64) -> None:
        """`trail`, each word's step given by `words` of it."""
        trail *= _TRAIL
        trail += words

    def walked(
        self, before: NDArray[np.int32], trail: NDArray[np.uint64], log: Callable[[NDArray[np.intp]], Noted]
    ) -> NDArray[np.int32]:
        """The paths that packets have come.

        before   int32[n]  the path of each when its trail began      trail  uint64[n]  what `trail` made of its steps
        log      says again what steps some of them (by place) took, in the order in which they took them
        Cost     one hash look-up each; a trail that nobody came before is walked again, step by step
        """
        known = len(self._trails)
        ids = self._trails.add((trail, before.view(np.uint32).astype(np.uint64)))
        new = np.flatnonzero(ids >= known)
        if len(new):
            # of those that came the same new way the first; ids were given in arrival order
            first = np.zeros(len(self._trails) - known, np.intp)
            first[ids[new[::-1]] - known] = new[::-1]
            places, steps = log(first)
            order = np.argsort(places, kind="stable")  # by packet, and each packet's in the order in which they came
            if len(self._trails) > len(self._path_of):
                self._path_of = _longer(self._path_of, len(self._trails))
            self._path_of[known : known + len(first)] = self._add(
                before[first], steps[order], np.bincount(places, minlength=len(first))
            )
        paths: NDArray[np.int32] = self._path_of[ids]
        return paths

    def _child(self, parent: int, sid: int) -> int:
        key = parent << 32 | sid
        n = self._children.get(key)
        if n is None:
            n = self._children[key] = self._count
            self._add(np.array([parent], np.int32), np.array([sid], np.int32), np.ones(1, np.intp))
        return n

    def _add(self, parents: NDArray[np.int32], steps: NDArray[np.int32], counts: NDArray[np.intp]) -> NDArray[np.int32]:
        """New paths: as many steps after each parent as `counts` says."""
        first, n = self._count, len(parents)
        self._count += n
        if self._count >= len(self._parent):
            self._parent, self._begin = _longer(self._parent, self._count + 1), _longer(self._begin, self._count + 2)
        begin = self._begin.item(first)
        end = begin + len(steps)
        if end > len(self._walked):
            self._walked = _longer(self._walked, end)
        self._walked[begin:end] = steps
        self._parent[first : self._count] = parents
        self._begin[first + 1 : self._count + 1] = begin + np.cumsum(counts)
        return np.arange(first, self._count, dtype=np.int32)

    def unrolled(self, paths: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The steps of many paths: (numbers of all steps, path after path, first to last; how many each path has)."""
        here, at = paths.astype(np.int64), np.arange(len(paths))
        sizes = np.zeros(len(here), np.int64)
        levels = []  # from the end: whose, where its steps begin in _walked, how many
        while len(here):
            begin = self._begin.take(here)
            count = self._begin.take(here + 1) - begin
            levels.append((at, begin, count))
            sizes[at] += count
            here = self._parent.take(here).astype(np.int64)
            going = np.flatnonzero(here)
            at, here = at.take(going), here.take(going)
        place = np.cumsum(sizes)
        out = np.empty(int(place[-1]) if len(place) else 0, np.int64)
        for at, begin, count in levels:
            place[at] -= count
            nth = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            out[np.repeat(place.take(at), count) + nth] = self._walked.take(np.repeat(begin, count) + nth)
        return out, sizes

    def unfold(self, path: int) -> tuple[Step, ...]:
        """The steps of a path, first to last."""
        got = self._unfolded.get(path)
        if got is None:
            chain: list[Step] = []
            p = path
            while p:
                own = self._walked[self._begin.item(p) : self._begin.item(p + 1)].tolist()
                chain[:0] = [self.steps[n] for n in own]
                p = self._parent.item(p)
            got = self._unfolded[path] = tuple(chain)
        return got


def _longer(column: NDArray[T], n: int) -> NDArray[T]:
    """The same with room for at least `n`."""
    out = np.zeros(max(n, 2 * len(column)), column.dtype)
    out[: len(column)] = column
    return out
