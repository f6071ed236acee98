"""The standing search for disagreement: everything registered is tried, and a fixed budget agrees with both kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings

from netemu import fuzz, lab
from netemu.ipset import SETS
from netemu.matches import MATCHES
from netemu.schedulers import SCHEDULERS
from netemu.targets import TARGETS

KERNEL_CASES = Path(__file__).resolve().parent / "kernel"
#: registered, but not tried: their makers say why, and no kernel that can be asked has twos
LEFT_OUT = {"nfacct", "LED", "IDLETIMER", "SECMARK", "CONNSECMARK", "SYNPROXY", "twos"}


def test_everything_registered_has_a_maker() -> None:
    assert fuzz.unmade() == []


def _said(case: lab.Case) -> str:
    return "\n".join([*case.texts.values(), *(e.command or "" for e in case.events)])


def test_everything_registered_is_tried() -> None:
    rounds = max(len(MATCHES), len(TARGETS))
    text = "\n".join(_said(fuzz.numbered("uml", "all", k, 1)) for k in range(rounds))
    tried = [f"-m {name} " for name in MATCHES] + [f"-j {name}" for name in TARGETS]
    tried += [f" {name}" for name in SETS] + [f"-s {name}" for name in SCHEDULERS]
    assert [what for what in tried if what not in text and what.split()[-1] not in LEFT_OUT] == []


def test_a_case_is_its_seed_and_number() -> None:
    assert fuzz.numbered("host", "s", 3) == fuzz.numbered("host", "s", 3)


@given(fuzz.cases("6.18", events=20))
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
def test_cases_load_and_play(case: lab.Case) -> None:
    assert lab.plan(case)["events"]


def test_fragments_make_the_whole() -> None:
    packet = fuzz.ip("10.0.0.1", "10.0.0.2", 17, bytes(range(50)), frag=0)
    pieces = fuzz.fragments(packet, 16)
    assert b"".join(p[20:] for p in pieces) == packet[20:]
    assert all(fuzz.checksum(p[:20]) == 0 for p in pieces)


def test_crc32c_of_the_standard() -> None:
    assert fuzz.crc32c(b"123456789") == 0xE3069283


def test_random_is_the_only_chance() -> None:
    a, b = (fuzz.case(Random(5), "6.1", 7, 30) for _ in range(2))
    assert a == b


@pytest.mark.parametrize(("others", "found", "unsteady"), [((0, 0), 1, 0), ((0, 1), 0, 1), ((1, 0), 0, 1)])
def test_a_kernel_that_disagrees_with_itself_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, others: tuple[int, ...], found: int, unsteady: int
) -> None:
    good = lab.load(KERNEL_CASES / "nat/dnat-and-back-6.18.case")
    events = [replace(h, trace=["raw:PREROUTING:policy:9"]) for h in good[1].events]
    recordings = [replace(good[1], events=events), good[1]]  # one that netemu disagrees with, one that it agrees with
    rounds = iter((0, *others))
    monkeypatch.setattr(fuzz, "numbered", lambda *_: good[0])
    monkeypatch.setattr(fuzz, "play", lambda cases, _: [recordings[r] for _, r in zip(cases, rounds, strict=False)])
    bag = fuzz.batch("host", "", [0])
    assert (len(bag.found), len(bag.unsteady)) == (found, unsteady)


@pytest.mark.kernel
def test_the_running_kernel_agrees(host_kernel: None) -> None:
    _agree("host")


@pytest.mark.kernel
def test_user_mode_linux_agrees(uml_kernel: None) -> None:
    _agree("uml")


def _agree(kernel: str) -> None:
    bag = fuzz.Bag()
    for about, numbers in fuzz.BUDGET[kernel].items():
        bag.add(fuzz.batch(kernel, fuzz.BUDGET_SEED, numbers, about=about))
    assert not bag.refused
    assert bag.packets > 40 * bag.cases
    for case, recording, _ in bag.found:
        print(lab.as_text(case, recording))
    assert not bag.found, "\n".join(str(what[0]) for _, _, what in bag.found)
