"""The command line: outputs, exit statuses, and no traceback, whatever comes in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netemu import ahead, cli, report
from netemu.capture import read_capture, write_pcap

ROOT = Path(__file__).parent.parent
NODE = """
[[link]]
name = "eth0"
addresses = ["10.0.0.1/24"]
[[link]]
name = "eth1"
addresses = ["192.168.0.1/24"]
"""
RULES = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.0.2:8080
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -p tcp -m tcp --dport 23 -j DROP
COMMIT
"""
PACKETS = (
    "tcp 10.0.0.5:4000 > 10.0.0.1:80 S",
    "tcp 10.0.0.5:4001 > 192.168.0.2:23 S",
    "udp 10.0.0.5:4 > 192.168.0.2:5",
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `model` and `trace.pcap`, a second between the packets."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/node.toml").write_text(NODE)
    (tmp_path / "model/iptables.save").write_text(RULES)
    write_pcap(tmp_path / "trace.pcap", [k * 10**9 for k in range(3)], [report.read_packet(p) for p in PACKETS])
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "CLICOLOR_FORCE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = cli.main(list(words))
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    return run


def outside(*words: str, **options: object) -> subprocess.Popen[bytes]:
    """netemu in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "netemu", *words], env=env, **options)  # type: ignore[call-overload, no-any-return]


# ---- replay --------------------------------------------------------------------------------------------------------


def test_a_line_a_packet(run: Run) -> None:
    status, out, err = run("replay", "model", "trace.pcap")
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert PACKETS[0] in lines[1] and "dst 192.168.0.2:8080" in lines[1]
    assert "dropped" in lines[2] and "filter:FORWARD:rule:1" in lines[2]
    assert lines[-1] == "3 packets: 2 forwarded, 1 dropped"


def test_json_lines_to_standard_output_and_to_a_file(run: Run, here: Path) -> None:
    status, out, err = run("replay", "model", "trace.pcap", "-o", "-")
    assert status == 0 and "3 packets" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["fate"] for line in lines] == ["forwarded", "dropped", "forwarded"]
    assert run("replay", "model", "trace.pcap", "-o", "a.jsonl", "-o", "a.csv", "--summary")[0] == 0
    assert [json.loads(line) for line in (here / "a.jsonl").read_text().splitlines()] == lines
    assert len((here / "a.csv").read_text().splitlines()) == 4


def test_what_left_is_a_capture(run: Run, here: Path) -> None:
    assert run("replay", "model", "trace.pcap", "-w", "left.pcapng", "--summary")[0] == 0
    capture = read_capture(str(here / "left.pcapng"))
    (frames,) = capture
    assert [capture.interfaces[k] for k in frames.iface] == ["eth1", "eth1"]
    assert frames.time.tolist() == [0, 2 * 10**9]


def test_only_and_count(run: Run) -> None:
    status, out, _ = run("replay", "model", "trace.pcap", "--only", "dropped,rejected", "-o", "-")
    assert status == 0 and [json.loads(line)["packet"] for line in out.splitlines()] == [2]
    status, out, _ = run("replay", "model", "trace.pcap", "-c", "2", "-o", "-")
    assert len(out.splitlines()) == 2


def test_options_may_stand_between_captures(run: Run) -> None:
    status, out, _ = run("replay", "-c", "6", "model", "trace.pcap", "--summary", "eth0=trace.pcap")
    assert status == 0 and "6 packets" in out


def test_commands_run_when_they_are_due(run: Run, here: Path) -> None:
    change = "iptables -A FORWARD -p udp -j DROP"
    for words in (("--at", "1.5", change), ("--at", "2", change)):
        status, out, _ = run("replay", "model", "trace.pcap", "-o", "-", *words)
        assert status == 0
        assert [json.loads(line)["fate"] for line in out.splitlines()] == ["forwarded", "dropped", "dropped"]
    (here / "changes").write_text(f"# what happens\n\n1.5 {change}\n3 iptables -P FORWARD DROP\n")
    status, out, _ = run("replay", "model", "trace.pcap", "--timeline", "changes", "--counters", "--summary")
    assert status == 0 and ":FORWARD DROP" in out and "-A FORWARD -p udp -j DROP" in out


def test_a_capture_stamped_with_dates_begins_at_zero(run: Run, here: Path) -> None:
    times = [1_700_000_000 * 10**9 + k * 10**9 for k in range(3)]
    write_pcap(here / "dated.pcap", times, [report.read_packet(p) for p in PACKETS])
    words = ("--at", "1.5", "iptables -A FORWARD -p udp -j DROP", "-w", "left.pcapng")
    status, out, _ = run("replay", "model", "dated.pcap", "-o", "-", *words)
    assert status == 0
    assert [json.loads(line)["fate"] for line in out.splitlines()] == ["forwarded", "dropped", "dropped"]
    (frames,) = read_capture(str(here / "left.pcapng"))
    assert frames.time.tolist() == times[:1]


def test_a_command_that_the_tool_refuses_changes_nothing_and_is_told(run: Run) -> None:
    status, out, err = run("replay", "model", "trace.pcap", "--at", "1", "iptables -D FORWARD 9", "-o", "-")
    assert status == 2 and len(out.splitlines()) == 3
    assert "at 1 s: iptables -D FORWARD 9" in err and "Refused" in err


def test_a_command_that_netemu_does_not_know_ends_the_replay(run: Run) -> None:
    status, out, err = run("replay", "model", "trace.pcap", "--at", "1", "nft list ruleset", "-o", "-")
    assert status == 3 and len(out.splitlines()) == 1 and "Unsupported" in err


def test_state_is_printed_at_the_end(run: Run) -> None:
    status, out, _ = run("replay", "model", "trace.pcap", "--summary", "--conntrack", "--counters", "--ipset", "--ipvs")
    assert status == 0
    assert "src=192.168.0.2 dst=10.0.0.5 sport=8080 dport=4000" in out
    assert "[1:40] -A FORWARD -p tcp -m tcp --dport 23 -j DROP" in out
    for command in ("# conntrack -L", "# iptables-save -c", "# ipset save", "# ipvsadm -Ln"):
        assert command in out


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("replay",),
        ("replay", "model"),
        ("replay", "model", "trace.pcap", "--only", "lost"),
        ("replay", "model", "trace.pcap", "-c", "0"),
        ("replay", "model", "trace.pcap", "--at", "soon", "iptables -F"),
        ("replay", "model", "trace.pcap", "--at", "1", "iptables 'F"),
        ("replay", "model", "trace.pcap", "--timeline", "nowhere"),
        ("replay", "model", "trace.pcap", "-o", "report.doc"),
        ("replay", "model", "trace.pcap", "-o", "nowhere/report.csv"),
        ("replay", "model", "trace.pcap", "-o", "-", "-w", "-"),
        ("replay", "model", "trace.pcap", "-w", "trace.pcap"),
        ("replay", "model", "trace.pcap", "--link", "eth9"),
        ("replay", "model", "eth9=trace.pcap"),
        ("replay", "model", "nowhere.pcap"),
        ("replay", "nowhere", "trace.pcap"),
        ("replay", "model", "model/node.toml"),
        ("explain", "model", "tcp what"),
        ("explain", "model", "tcp 10.0.0.5:1 > 10.0.0.1:80", "--link", "eth9"),
        ("explain", "model", "--packet", "4", "trace.pcap"),
        ("show", "nowhere"),
        ("flows", "-w", "x.pcap"),
        ("flows", "--to", "tcp/1.2.3.4", "-w", "x.pcap"),
        ("flows", "--to", "tcp/1.2.3.4:5", "-w", "nowhere/x.pcap"),
    ],
)
def test_bad_usage_is_status_2_and_says_why(run: Run, here: Path, words: tuple[str, ...]) -> None:
    before = (here / "trace.pcap").read_bytes()
    status, _, err = run(*words)
    assert status == 2 and (err or not words)
    assert (here / "trace.pcap").read_bytes() == before


def test_everything_that_is_wrong_is_said_at_once(run: Run, here: Path) -> None:
    rules = RULES.replace("--dport 23", "--dport 99999").replace("-j DNAT", "-m osf --genre Linux -j DNAT")
    (here / "model/iptables.save").write_text(rules)
    status, _, err = run("replay", "model", "nowhere.pcap")
    assert status == 2
    assert "iptables.save:6" in err and "iptables.save:12" in err and "nowhere.pcap" in err


def test_what_netemu_lacks_is_status_3(run: Run, here: Path) -> None:
    (here / "model/iptables.save").write_text(RULES.replace("--dport 23", "--dport 23 -m osf --genre Linux"))
    status, _, err = run("replay", "model", "trace.pcap")
    assert status == 3 and "iptables.save:12" in err and "Unsupported" in err


def test_packets_before_the_damage_are_reported(run: Run, here: Path) -> None:
    (here / "cut.pcap").write_bytes((here / "trace.pcap").read_bytes()[:-10])
    status, out, err = run("replay", "model", "cut.pcap", "-o", "-")
    assert status == 2 and len(out.splitlines()) == 2 and "cut.pcap" in err


def test_frames_that_are_passed_over_are_named(run: Run, here: Path) -> None:
    ether = bytes(12)
    frames = [
        ether + b"\x08\x06" + bytes(28),
        ether + b"\x86\xdd" + bytes(40),
        ether + b"\x08\x00" + report.read_packet(PACKETS[0]),
    ]
    write_pcap(here / "mixed.pcap", [0, 1, 2], frames, 1)
    for words in ((), ("--summary",), ("-o", "-")):
        status, out, err = run("replay", "model", "mixed.pcap", *words)
        assert status == 0 and "1 ARP" in out + err and "1 IPv6" in out + err


# ---- the outside world ---------------------------------------------------------------------------------------------


def test_a_closed_pipe_is_quiet(here: Path) -> None:
    flows = ["flows", "--to", "udp/192.168.0.2:53", "--from", "10.0.0.5", "--count", "20000", "-w", "many.pcap"]
    assert cli.main(flows) == 0
    process = outside("replay", "model", "many.pcap", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait() == cli.NO_READER and process.stderr.read() == b""
    process.stderr.close()


def test_a_second_process_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr(ahead, "WORTH", 0)
    cut = here / "cut.pcap"
    cut.write_bytes((here / "trace.pcap").read_bytes()[:-5])
    for words in (
        ["trace.pcap"],
        ["trace.pcap", "cut.pcap", "-c", "6", "--at", "0.001", "ip link set eth0 down"],
        ["cut.pcap"],
    ):
        one = run("replay", "model", *words, "-o", "-", "--conntrack")
        assert run("replay", "model", *words, "-o", "-", "--conntrack", "--jobs", "2") == one


def test_an_interrupt_tells_what_was_done_so_far(here: Path) -> None:
    read, write = os.pipe()
    process = outside(
        *("replay", "model", "-", "-o", "-"),
        **{"stdin": read, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` has it ignored
    )
    os.write(write, (here / "trace.pcap").read_bytes())
    assert process.stdout is not None and process.stdout.readline().startswith(b'{"packet": 1')  # now it waits for more
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    os.close(write)
    os.close(read)
    assert process.returncode == cli.INTERRUPTED and b"Traceback" not in err


def test_flows_straight_into_a_replay(here: Path) -> None:
    maker = outside(
        "flows", "--to", "tcp/10.0.0.1:80", "--from", "10.0.0.0/28", "--count", "50", "-w", "-", stdout=subprocess.PIPE
    )
    done = outside("replay", "model", "-", "--summary", stdin=maker.stdout, stdout=subprocess.PIPE)
    out, _ = done.communicate(timeout=60)
    assert maker.stdout is not None
    maker.stdout.close()
    assert maker.wait() == 0 and done.returncode == 0
    assert "192.168.0.2:8080" in out.decode()


def test_help_and_version_are_quick_to_import() -> None:
    code = (
        "import sys; from netemu.cli import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "assert not {'numpy', 'rich', 'dpkt'} & set(sys.modules)"
    )
    for word in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, word], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "netemu" in done.stdout


# ---- explain, show, flows ------------------------------------------------------------------------------------------


def test_explain_a_packet_in_words(run: Run) -> None:
    status, out, _ = run("explain", "model", "tcp 10.0.0.5:4000 > 10.0.0.1:80 S", "--link", "eth0")
    assert status == 0
    assert (
        "--to-destination 192.168.0.2:8080" in out
        and "dst 10.0.0.1 → 192.168.0.2" in out
        and "forwarded on eth1" in out
    )


def test_explain_a_packet_of_a_capture(run: Run) -> None:
    status, out, _ = run("explain", "model", "--packet", "2", "trace.pcap", "--conntrack")
    assert status == 0 and PACKETS[1] in out and "dropped" in out and "dport=4000" in out


def test_show_tells_what_was_loaded(run: Run) -> None:
    status, out, _ = run("show", "model")
    assert status == 0
    for word in ("eth0", "10.0.0.1/24", "nat", "filter", "1 rule"):
        assert word in out


def test_flows_say_what_they_made(run: Run, here: Path) -> None:
    status, out, _ = run(
        "flows", "--to", "udp/10.96.0.10:53", "--ping", "10.0.0.1", "--count", "10", "--packets", "2", "-w", "x.pcap"
    )
    assert status == 0 and "20 packets" in out
    assert sum(len(frames) for frames in read_capture(str(here / "x.pcap"))) == 20
