"""Where a replay's time goes, by stage: a stop watch put around the engine's functions from outside.

`Profile(node)` replaces functions of one node (its hooks' stops, routing, the cutting into runs, ...) by timed ones; a
node without a profile runs the bare ones and pays nothing. Time counts for the innermost stage that is under way, so
the stages add up to the whole. The watch costs some 0.3 us a call: little for runs of thousands of packets, much for
runs of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from netemu.capture import Frames
    from netemu.node import Node

F = TypeVar("F", bound=Callable[..., Any])
REST = "everything else"
#: what functions that stand at a hook are called in reports, where it is not their own name
STOP_NAMES = {"hook": "nat"}


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage took: nanoseconds in it, but not in stages within it, and how often it was entered."""

    name: str
    ns: int
    calls: int


class Profile:
    """Times a node from now on. Put it on before the first packet; there is no taking it off.

    >>> from netemu.model import Model
    >>> from netemu.node import Node
    >>> profile = Profile(Node(Model()))
    >>> profile.timed("counting", sum)([1, 2])
    3
    >>> profile.stop()
    >>> [(s.name, s.calls) for s in profile.stages() if s.name == "counting"]
    [('counting', 1)]
    """

    def __init__(self, node: Node) -> None:
        self._taken: dict[str, list[int]] = {REST: [0, 1]}  # stage -> [ns, calls]
        self._open = [self._taken[REST]]
        self._since = time.perf_counter_ns()
        road = node.road
        table, compile_road = road._table, road.compile

        def named_table(name: str) -> Callable[..., Any]:
            stop = table(name)
            stop.__name__ = name
            return stop

        def compile_timed() -> None:
            compile_road()
            for hook, stops in road.stops.items():
                road.stops[hook] = [self.timed(f"{hook} {_name(stop)}", stop) for stop in stops]

        vars(road).update(_table=named_table, compile=compile_timed)  # on this one road, not on the class
        for owner, name, stage in (
            (node, "_frames", "columns of the headers"),
            (node, "_go", "copies of the columns"),
            (node, "run", "commands"),
            (node.paths, "extend", "paths"),
            (node.routing, "input", "routing"),
            (node.routing, "output", "routing"),
            (node.conntrack, "end_run", "end of a run"),
            (node.settled, "pass_by", "settled traffic"),
            (node.settled, "learn", "settled traffic"),
            (road, "run_end", "cutting into runs"),
            (road, "run", "the road between stops"),
        ):
            self.watch(owner, name, stage)
        road.compile()

    def timed(self, stage: str, function: F) -> F:
        """`function`, its time counted for `stage`."""
        taken = self._taken.setdefault(stage, [0, 0])
        enter, leave = self._enter, self._leave

        def run(*args: Any, **named: Any) -> Any:
            enter(taken)
            try:
                return function(*args, **named)
            finally:
                leave()

        return run  # type: ignore[return-value]

    def watch(self, owner: object, name: str, stage: str) -> None:
        """Time a method of this one object from now on."""
        vars(owner)[name] = self.timed(stage, getattr(owner, name))

    def reading(self, capture: Any) -> Any:
        """`capture`, the time it takes to hand out frames counted."""
        return _Reading(capture, self)

    def _enter(self, taken: list[int]) -> None:
        now = time.perf_counter_ns()
        self._open[-1][0] += now - self._since
        self._open.append(taken)
        taken[1] += 1
        self._since = now

    def _leave(self) -> None:
        now = time.perf_counter_ns()
        self._open.pop()[0] += now - self._since
        self._since = now

    def start(self) -> None:
        """Forget what was measured so far."""
        for taken in self._taken.values():
            taken[:] = [0, 0]
        self._since = time.perf_counter_ns()

    def stop(self) -> None:
        """Count up to now, and not further: what comes after `stages` is nobody's."""
        now = time.perf_counter_ns()
        self._open[-1][0] += now - self._since
        self._since = now

    def stages(self) -> list[Stage]:
        """What was entered, most time first, the rest last."""
        found = [Stage(name, ns, calls) for name, (ns, calls) in self._taken.items() if calls or name == REST]
        return sorted(found, key=lambda s: (s.name == REST, -s.ns))

    def lines(self, packets: int) -> list[str]:
        """A table for people: nanoseconds a packet, share and calls of each stage."""
        stages = self.stages()
        whole = sum(s.ns for s in stages)
        each = max(packets, 1)
        out = [f"{'ns a packet':>12} {'share':>6} {'calls':>10}  stage"]
        for s in stages:
            calls = f"{s.calls:,}" if s.name != REST else ""
            out.append(f"{s.ns / each:>12,.1f} {s.ns / max(whole, 1):>6.1%} {calls:>10}  {s.name}")
        out.append(f"{whole / each:>12,.1f} {1:>6.0%} {'':>10}  all: {packets:,} packets in {whole / 1e9:,.3f} s")
        return out


class _Reading:
    """A capture whose reading is timed."""

    def __init__(self, capture: Any, profile: Profile) -> None:
        self._capture = capture
        self._next = profile.timed("reading the capture", next)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)

    def __iter__(self) -> Iterator[Frames]:
        frames = iter(self._capture)
        while True:
            got = self._next(frames, None)
            if got is None:
                return
            yield got


def _name(stop: Callable[..., Any]) -> str:
    name = getattr(stop, "__name__", "?").removeprefix("_").removesuffix("_output")
    return STOP_NAMES.get(name, name)
