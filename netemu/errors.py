"""What netemu says when it cannot go on: two kinds, because they mean different things to the user.

`Refused` - the real tool would refuse this too. `Unsupported` - Linux would take it, netemu cannot yet.
Both name the place, the thing and the way out. A load gathers every `Problem` it meets and reports them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

REFUSED, UNSUPPORTED = "Refused", "Unsupported"


@dataclass(frozen=True)
class Problem:
    """One thing that cannot be taken, and where it stands.

    kind    REFUSED or UNSUPPORTED
    what    one line: what is wrong
    file    the file it stands in ("" for a command)
    line    1-based line, 0 when there is none
    text    the offending line as written
    span    (start, end) columns in `text` to underline, or None
    hint    the way out
    """

    kind: str
    what: str
    file: str = ""
    line: int = 0
    text: str = ""
    span: tuple[int, int] | None = None
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        out = [f"{place}{self.kind}: {self.what}"]
        if self.text:
            out.append(f"    {self.text}")
            if self.span:
                out.append("    " + " " * self.span[0] + "^" * max(1, self.span[1] - self.span[0]))
        if self.hint:
            out.append(f"    {self.hint}")
        return "\n".join(out)


class NetemuError(Exception):
    """Base of everything netemu raises on purpose. `problems` lists each cause; `status` is the exit status."""

    kind = REFUSED
    status = 2

    def __init__(
        self,
        what: str | Iterable[Problem],
        *,
        file: str = "",
        line: int = 0,
        text: str = "",
        span: tuple[int, int] | None = None,
        hint: str = "",
        status: int | None = None,
    ) -> None:
        if isinstance(what, str):
            self.problems = [Problem(self.kind, what, file, line, text, span, hint)]
        else:
            self.problems = list(what)
        if status is not None:
            self.status = status
        super().__init__("\n".join(map(str, self.problems)))


class Refused(NetemuError):
    """The real tool would refuse this too. `status` is the exit status that the tool gives (2 from a load)."""


class Unsupported(NetemuError):
    """Linux would take this; netemu does not model it yet."""

    kind = UNSUPPORTED
    status = 3


def raise_all(problems: list[Problem]) -> None:
    """Raise one error that names every problem; nothing happens when there are none.

    Refused wins over Unsupported: a file that Linux refuses never loads, whatever netemu learns.
    """
    if any(p.kind == REFUSED for p in problems):
        raise Refused(problems)
    if problems:
        raise Unsupported(problems)
