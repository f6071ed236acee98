"""What real kernels did, against what netemu does: every recorded case, however the packets are taken together.

The cases and the program that records them are in tests/kernel. Where a kernel can be asked, it goes through them once
more: nothing in a recording may hold by chance.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from netemu import lab

FOLDER = Path(__file__).parent / "kernel"
CASES = sorted(FOLDER.glob("**/*.case"))


@cache
def loaded(path: Path) -> tuple[lab.Case, lab.Recording]:
    return lab.load(path)


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


@pytest.mark.parametrize("run_length", [1, 7, None])
@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_netemu_agrees(path: Path, run_length: int | None) -> None:
    found = lab.compare(*loaded(path), run_length)
    assert not found, "\n".join(map(str, found[:3]))


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_a_case_tells_its_story(path: Path) -> None:
    case, recording = loaded(path)
    assert case.story and case.events and recording.tables
    assert lab.as_text(case, recording) == path.read_text(), "the file is not as `save` writes it"


def played_again(kernel: str, version: str) -> None:
    """A busy machine's timers ring late: a case that disagrees is played again by itself, and may agree then."""
    cases = {name_of(path): loaded(path)[0] for path in CASES if loaded(path)[1].kernel == version}
    problems: dict[str, list[str]] = {name: [] for name in cases}
    for together in (None, 1, 1):
        some = [cases[name] for name in problems]
        played = zip(problems, some, lab.play(some, kernel, together), strict=True)
        found = {name: _told(case, recording) for name, case, recording in played}
        problems = {name: told for name, told in found.items() if told}
        if not problems:
            return
    raise AssertionError("\n".join(told for all_ in problems.values() for told in all_[:2]))


def _told(case: lab.Case, recording: lab.Recording) -> list[str]:
    return [recording.trouble] if recording.trouble else [str(d) for d in lab.compare(case, recording)]


@pytest.mark.kernel
def test_this_machine_says_so_again(host_kernel: None) -> None:
    played_again("host", "6.18")


@pytest.mark.kernel
def test_user_mode_linux_says_so_again(uml_kernel: None) -> None:
    played_again("uml", "6.1")
