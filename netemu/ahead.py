"""Reading ahead: a second process parses the capture while this one sends packets through the node.

    child    read, find records, parse headers --+                      +--> columns of this process's own --> engine
                                                 '--> a slot, of few --'
    pipe     "slot 2 holds 65,536 frames; these columns stand there" -->        <-- "slot 2 is free"

Parsing asks nothing of the node, so the frames are the same, chunk by chunk, whoever parses them: every answer is as
without a second process, also what is said of a damaged file. The child never runs further ahead than there are slots.
It ends with its capture, and with this process, however that ends: it is killed, or finds the pipe closed.
"""

from __future__ import annotations

import mmap
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netemu.capture import PAD, Capture, Frames
from netemu.packets import COLUMNS, Packets

SLOTS = 3  # one being read, one waiting, one being filled
SLOT = 24 << 20  # bytes: a chunk's columns and as much of a window as it uses
WORTH = 8 << 20  # bytes of captures below which a second process costs more than it brings
_STATE = ("counts", "problems", "interfaces", "links", "frames", "packets")
#: columns that are read from the packets; the others of a fresh row are the same for all, or stand in the frames
_PARSED = tuple(name for name in COLUMNS if name not in ("time", "at", "cap", "wire", "ether", "smac", "pkttype"))


def worth_it(capture: Capture) -> bool:
    """Can there be a second process here, and is there enough for it to do?"""
    if not hasattr(os, "fork") or not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return False
    return capture.size is None or capture.size >= WORTH


class Ahead:
    """A capture that is read by a second process while its frames are dealt with; otherwise as the capture itself."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def __getattr__(self, name: str) -> Any:
        return getattr(self.capture, name)

    def __iter__(self) -> Iterator[Frames]:
        slots = [mmap.mmap(-1, SLOT) for _ in range(SLOTS)]
        here, there = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy's idle threads: the child needs none of them
            pid = os.fork()
        if not pid:
            here.close()
            _child(self.capture, there, slots)
        there.close()
        try:
            while True:
                try:
                    what, state, *rest = here.recv()
                except EOFError:
                    raise RuntimeError("the process that reads the capture is gone") from None
                self._take_over(state)
                if what == "end":
                    return
                if what == "error":
                    raise rest[0]
                if what == "frames":
                    (frames,) = rest
                else:
                    slot, layout = rest
                    frames = _unpacked(slots[slot], layout)
                    with suppress(OSError):  # it may have come to the end, and gone
                        here.send(slot)
                yield frames
        finally:
            here.close()
            os.kill(pid, signal.SIGKILL)  # it may wait for a pipe that says nothing any more
            os.waitpid(pid, 0)

    def _take_over(self, state: dict[str, Any]) -> None:
        """What is known of the capture so far."""
        for source, position in zip(self.capture._sources, state.pop("positions"), strict=True):
            source.position = position
        vars(self.capture).update(state)


def _child(capture: Capture, pipe: Connection, slots: list[mmap.mmap]) -> None:
    """Read, parse, hand over; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
        free = list(range(SLOTS))
        try:
            for frames in capture:
                while not free or pipe.poll():
                    free.append(pipe.recv())
                slot = free.pop(0)
                layout = _packed(frames, slots[slot])
                if layout is None:  # larger than a slot
                    free.append(slot)
                    pipe.send(("frames", _state(capture), frames))
                else:
                    pipe.send(("slot", _state(capture), slot, layout))
            pipe.send(("end", _state(capture)))
        except (EOFError, OSError):
            pass
        except Exception as error:
            pipe.send(("error", _state(capture), error))
    finally:
        os._exit(0)


def _state(capture: Capture) -> dict[str, Any]:
    state = {name: getattr(capture, name) for name in _STATE}
    return {**state, "positions": [source.position for source in capture._sources]}


Layout = list[tuple[str, str, int, int]]  # (column, dtype, where, how many)


def _packed(frames: Frames, slot: mmap.mmap) -> Layout | None:
    """Write frames and what they parse to into a slot; None where they do not fit."""
    p = frames.parse()
    lo, hi = int(frames.at.min()), int((frames.at + frames.cap).max()) + PAD
    columns: dict[str, NDArray[Any]] = {name: getattr(frames, name) for name in frames.columns()}
    columns |= {"data": frames.data[lo:hi], "at": frames.at - lo}
    columns |= {f"p.{name}": vars(p)[name] for name in _PARSED if name in vars(p)}
    layout: Layout = []
    end = 0
    for name, column in columns.items():
        layout.append((name, column.dtype.str, end, len(column)))
        end += -(-column.nbytes // 64) * 64
    if end > len(slot):
        return None
    for (_, dtype, at, n), column in zip(layout, columns.values(), strict=True):
        np.ndarray((n,), dtype, slot, at)[:] = column
    return layout


def _unpacked(slot: mmap.mmap, layout: Layout) -> Frames:
    """The frames in a slot, in memory of their own."""
    got = {name: np.ndarray((n,), dtype, slot, at).copy() for name, dtype, at, n in layout}
    frames = Frames(got["data"], *(got[name] for name in Frames.columns()))
    p = Packets(len(frames), frames.data)
    for name in _PARSED:
        if f"p.{name}" in got:
            setattr(p, name, got[f"p.{name}"])
    p.at, p.cap = frames.at, frames.cap.copy()
    frames.parsed = p
    return frames
