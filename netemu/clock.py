"""Where time is: packets carry it, people write it in seconds, the kernel counts it in jiffies.

A tick is when the kernel looks at its clock, and where between two ticks a capture began nothing tells. netemu has to
settle it: time zero is 7/16 of a tick in. (No recorded case speaks against that; some do against 0 and 1/2.) The lab
counts the times that it measures on a real kernel from such a moment, so that both agree to the tick.

Nothing in netemu reads a clock of the machine. Time is int64 nanoseconds from the model's time zero; a `Clock` holds
the present of one node and only ever moves forward.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

SECOND = 1_000_000_000
#: "no timer": later than any packet
NEVER = 1 << 62
#: ticks a second of the kernels that netemu was checked against
HZ = {"6.1": 100, "6.18": 250}
#: how far into a tick time zero is, in nanoseconds of a clock that ticks once a second
BEGUN = SECOND * 7 // 16


def nanoseconds(seconds: float | int | str) -> int:
    """Seconds as people write them, in nanoseconds. Text and floats count as the decimal number that they show.

    >>> nanoseconds("0.1"), nanoseconds(2), nanoseconds(1e-9)
    (100000000, 2000000000, 1)
    """
    if isinstance(seconds, int):
        return seconds * SECOND
    return int((Decimal(str(seconds)) * SECOND).to_integral_value(ROUND_HALF_EVEN))


def seconds(ns: int) -> float:
    """Nanoseconds in seconds.

    >>> seconds(1_500_000_000)
    1.5
    """
    return ns / SECOND


def jiffies(ns: int, hz: int) -> int:
    """The tick that is current at `ns`.

    >>> jiffies(0, 100), jiffies(5_624_999, 100), jiffies(5_625_000, 100), jiffies(1_000_000_000, 250)
    (0, 0, 1, 250)
    """
    return (ns * hz + BEGUN) // SECOND


def at_jiffy(tick: int, hz: int) -> int:
    """When a tick begins, in nanoseconds: the first `ns` for which jiffies(ns, hz) == tick.

    >>> at_jiffy(1, 250), at_jiffy(0, 250), jiffies(at_jiffy(7, 300), 300)
    (2250000, -1750000, 7)
    """
    return -((BEGUN - tick * SECOND) // hz)


def remaining(deadline: int, now: int) -> int:
    """Whole seconds until `deadline`, rounded down, never negative: what `conntrack -L` and `ipset save` print.

    >>> remaining(5_900_000_000, 1_000_000_000), remaining(0, 7)
    (4, 0)
    """
    return max(0, deadline - now) // SECOND


def minutes(deadline: int, now: int) -> str:
    """What is left until `deadline` as `ipvsadm -Lnc` prints it.

    >>> minutes(125 * SECOND, 0)
    '02:05'
    """
    left = remaining(deadline, now)
    return f"{left // 60:02d}:{left % 60:02d}"


class Clock:
    """The present of one node, in nanoseconds. It never goes back.

    now    int   the present
    early  int   how many times something came with an earlier time, and counted as now
    """

    def __init__(self, now: int = 0) -> None:
        self.now = now
        self.early = 0

    def reach(self, at: float | int | str | None) -> int:
        """Move on to `at` seconds (None: stay) and return the present; an earlier `at` counts as now.

        >>> clock = Clock(); clock.reach(2.5), clock.reach(1), clock.reach(None), clock.early
        (2500000000, 2500000000, 2500000000, 1)
        """
        return self.now if at is None else self.reach_ns(nanoseconds(at))

    def reach_ns(self, ns: int) -> int:
        """The same for a time in nanoseconds."""
        if ns < self.now:
            self.early += 1
        else:
            self.now = ns
        return self.now
