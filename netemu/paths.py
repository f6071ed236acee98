"""Paths: what happened to each packet, stored once for all packets it happened to.

A packet carries a path number. A path is a parent path and one more step, so that the million packets of a
settled flow share one entry, and adding a step to many packets is one look-up for each path they were on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


class Paths:
    """Interned paths and texts. Path 0 is the empty path, text 0 is no text."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._step_ids: dict[Step, int] = {}
        self._children: dict[tuple[int, int], int] = {}
        self._parent: list[int] = [0]
        self._last: list[int] = [-1]
        self._unfolded: dict[int, tuple[Step, ...]] = {0: ()}
        self.texts: list[str | None] = [None]
        self._text_ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def step_id(self, step: Step) -> int:
        """Number of `step`, the same for equal steps."""
        n = self._step_ids.get(step)
        if n is None:
            n = self._step_ids[step] = len(self.steps)
            self.steps.append(step)
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

        Cost: one dict look-up for each distinct path (and step) among them, a sort where there are several.
        """
        if not len(rows):
            return
        if isinstance(step, np.ndarray):
            if len(rows) == 1:
                row = rows[0]
                pkts.path[row] = self._child(int(pkts.path[row]), int(step[0]))
                return
            pairs, back = np.unique(pkts.path[rows].astype(np.int64) << 32 | step, return_inverse=True)
            child = [self._child(pair >> 32, pair & 0xFFFFFFFF) for pair in pairs.tolist()]
            pkts.path[rows] = np.array(child, pkts.path.dtype)[back]
            return
        sid = self.step_id(step)
        if len(rows) == 1:
            row = rows[0]
            pkts.path[row] = self._child(int(pkts.path[row]), sid)
            return
        old = pkts.path[rows]
        first = int(old[0])
        if (old == first).all():
            pkts.path[rows] = self._child(first, sid)
            return
        seen, back = np.unique(old, return_inverse=True)
        pkts.path[rows] = np.array([self._child(int(p), sid) for p in seen], pkts.path.dtype)[back]

    def _child(self, parent: int, sid: int) -> int:
        key = (parent, sid)
        n = self._children.get(key)
        if n is None:
            n = self._children[key] = len(self._parent)
            self._parent.append(parent)
            self._last.append(sid)
        return n

    def unfold(self, path: int) -> tuple[Step, ...]:
        """The steps of a path, first to last."""
        got = self._unfolded.get(path)
        if got is None:
            chain: list[Step] = []
            p = path
            while p:
                chain.append(self.steps[self._last[p]])
                p = self._parent[p]
            got = self._unfolded[path] = tuple(reversed(chain))
        return got
