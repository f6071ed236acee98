"""The rule scaling benchmark: small runs come out right; nothing is timed here."""

import argparse
import io
import json

import numpy as np
import pytest
from rich.console import Console

from netemu import scaling
from netemu.errors import Refused
from netemu.packets import ACK, SYN, checksum


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scaling.configure(parser)
    return parser.parse_args(words)


def test_packets_have_right_checksums():
    column = np.array([0x0A000001, 0xFFFEFDFC])
    for flags, data in ((SYN, b""), (ACK, b"question")):
        for row in scaling._tcp(column, column & 0xFFFF, column[::-1], np.array([80, 81]), flags, 2**32 - 1, 7, data):
            packet = row.tobytes()
            assert checksum(packet[:20]) == 0
            assert checksum(packet[12:20] + bytes([0, 6, 0, len(packet) - 20]) + packet[20:]) == 0


@pytest.mark.parametrize("mode", scaling.MODES)
def test_rules_are_counted(mode):
    few, more = (scaling.measure(mode, n, 3, flows=40, rounds=1, repeats=1) for n in (2, 20))
    assert few.new_packets == 40 and few.established_packets == 80
    assert few.rules_established == more.rules_established
    if mode == "ipvs":
        assert (few.rules, few.rules_new) == (more.rules, more.rules_new)
    else:
        assert more.rules == few.rules + 18 * 11  # two for a service, three for each endpoint
        assert more.rules_new[2] > few.rules_new[2]


def test_the_command(tmp_path, capsys):
    file = tmp_path / "out.json"
    words = ["--services", "2,3", "--modes", "iptables", "--flows", "10", "--repeats", "1", "--json", str(file)]
    assert scaling.run(arguments(*words)) == 0
    assert "how fast a kernel is" in " ".join(capsys.readouterr().out.split())
    written = json.loads(file.read_text())
    assert [r["services"] for r in written["results"]] == [2, 3]
    assert written["options"]["flows"] == 10
    assert scaling.run(arguments(*words[:-1], "-")) == 0
    assert json.loads(capsys.readouterr().out)["results"]


def test_the_table_fits_a_terminal():
    big = scaling.Result(
        "iptables",
        10_000,
        3,
        110_022,
        0.5,
        12.25,
        10_000,
        1e3,
        1e6,
        (5_018.7, 5e3, 10_022),
        10**5,
        1e3,
        1e6,
        (5.0, 5, 5),
    )
    console = Console(width=80, file=io.StringIO())
    console.print(scaling.table([big]))
    text = console.file.getvalue()
    assert "110,022" in text and "1,000,000" in text and "…" not in text


@pytest.mark.parametrize("words", [["--services", "0"], ["--modes", "nftables"], ["--repeats", "x"]])
def test_nonsense_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        arguments(*words)


def test_too_many_pods():
    with pytest.raises(Refused, match="pods"):
        scaling.cluster(100_000, 3)
