"""The profile: it counts every stop of the road, its stages add up, and it changes no answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netemu import cli
from netemu.capture import read_capture
from netemu.journey import STOPS
from netemu.node import Node
from netemu.profile import REST, Profile

ROOT = Path(__file__).parent.parent
MODEL, TRACE = ROOT / "models/kube-ipvs", ROOT / "traces/kube-ipvs.pcapng"


def test_it_changes_no_answer_and_names_the_stops() -> None:
    plain, watched = Node.load(MODEL), Node.load(MODEL)
    profile = Profile(watched)
    profile.start()
    stops = {f"{hook} {name}" for hook, line in STOPS.items() for _, name in line}
    expected = [(j.fate, j.steps) for j in plain.replay(read_capture(TRACE))]
    found = watched.replay(profile.reading(read_capture(TRACE)))
    profile.stop()
    assert [(j.fate, j.steps) for j in found] == expected
    stages = {s.name: s for s in profile.stages()}
    seen = {name for name in stages if name.split(" ")[0] in STOPS}
    assert seen and seen <= stops
    assert {"PREROUTING track", "PREROUTING nat", "INPUT ipvs_request", "FORWARD filter", "routing"} <= set(stages)
    assert stages["reading the capture"].calls >= 2  # a chunk, and that there is no more
    assert all(s.ns >= 0 for s in stages.values())


def test_a_command_that_changes_the_hooks_keeps_them_timed() -> None:
    node = Node.load(MODEL)
    profile = Profile(node)
    node.run("iptables -t raw -A PREROUTING -p udp --dport 9 -j DROP")
    node.replay(read_capture(TRACE))
    assert "PREROUTING raw" in {s.name for s in profile.stages()}


def test_a_node_without_a_profile_is_left_alone() -> None:
    Profile(Node.load(MODEL))
    other = Node.load(MODEL)
    assert "run" not in vars(other) and "compile" not in vars(other.road) and "extend" not in vars(other.paths)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(MODEL), str(TRACE), "--summary", "--profile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(k for k, line in enumerate(lines) if "ns a packet" in line) + 1 :]
    assert any(line.endswith(" summary") for line in table) and table[-2].endswith(REST)
    assert re.search(r"100%\s+all: \d+ packets in [\d.]+ s$", table[-1])
    shares = [float(line.split()[1].rstrip("%")) for line in table[:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.06 * len(shares))
