"""The lab: cases and recordings, what the comparison notices, and how a kernel is asked without a trace left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from craft import ends as ends_of
from craft import error, icmp, sums_right, tcp, udp

from netemu import Node, Refused, Unsupported, cli, lab, nat, player

ROOT = Path(__file__).parent.parent
KERNEL = Path(__file__).parent / "kernel"
TOML = """kernel = "6.18"
[[link]]
name = "eth0"
addresses = ["198.51.100.1/24"]
[[link]]
name = "lan0"
addresses = ["10.0.0.1/24"]
[[route]]
to = "default"
via = "198.51.100.254"
dev = "eth0"
"""
MASQUERADE = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""


def case(*events: lab.Event, **texts: str) -> lab.Case:
    files = {name.replace("_", "."): text for name, text in texts.items()}
    return lab.Case("a case", "", {"node.toml": TOML, **files}, list(events))


def recorded(name: str) -> tuple[lab.Case, lab.Recording]:
    return lab.load(KERNEL / f"{name}.case")


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_case_with_everything_in_it_reads_back_as_it_was():
    big = udp("10.0.0.5", 1, "192.0.2.7", 2, b"x" * 700)
    made = lab.Case(
        "all of it",
        "one line\nand another",
        {"node.toml": TOML, "iptables.save": MASQUERADE},
        [
            lab.Event(0.001, "lan0", big, source="02:00:00:00:00:aa", to="ff:ff:ff:ff:ff:ff"),
            lab.Event(0.002, None, icmp("198.51.100.1", "192.0.2.7")),
            lab.Event(0.25, command="iptables -t nat -F"),
            lab.Event(0.5, "eth0", udp("192.0.2.7", 2, "198.51.100.1", 1), answers=0),
        ],
    )
    happened = [
        lab.Happened(0.001, [("eth0", big), ("lan0", big[:40])], ["nat:POSTROUTING:rule:1"]),
        lab.Happened(0.002, error="EPERM"),
        lab.Happened(0.25, status=1, error="no such thing"),
        lab.Happened(0.5, sent=udp("192.0.2.7", 2, "198.51.100.1", 1024)),
    ]
    recording = lab.Recording(
        "6.18.1", happened, {"conntrack": "", "counters": "*nat\n"}, {"conntrack": 1.0, "counters": 1.5}
    )
    text = lab.as_text(made, recording)
    case_, recording_ = lab.from_text(text)
    assert case_ == made
    assert recording_.events == happened
    assert lab.as_text(case_, recording_) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("# name\nkernel 6.1\n", 1),
        ("# name\nkernel 6.1\n== events\nnonsense\n", 4),
        ("# name\nkernel 6.1\n== events\n0.1 eth0 | x\n    4500zz\n", 5),
        ("# name\nkernel 6.1\n== events\n0.1 eth0 | x\n  wrong 1\n", 5),
        ("# name\nkernel 6.1\n== events\n  path x\n", 4),
    ],
)
def test_what_is_no_case_is_refused_by_line(text, line):
    with pytest.raises(Refused) as e:
        lab.from_text(text, "x.case")
    assert e.value.problems[0].line == line


# ---- comparing -----------------------------------------------------------------------------------------------------


def test_what_the_kernel_did_differently_is_named():
    good, recording = recorded("nat/dnat-and-back-6.18")
    assert lab.compare(good, recording) == []

    def altered(k: int, **changes: object) -> list[lab.Disagreement]:
        events = list(recording.events)
        events[k] = replace(events[k], **changes)  # type: ignore[arg-type]
        return lab.compare(good, replace(recording, events=events))

    (link, packet) = recording.events[0].outs[0]
    turned = player.with_port(packet, False, 8081)
    (found,) = altered(0, outs=[(link, turned)])
    assert (found.field, found.kernel, found.netemu, found.event) == ("dport", "8081", "8080", 0)
    assert "packet 1 at" in found.place and "> 10.0.0.5:8081" in found.packets[0]
    assert any("DNAT" in step for step in found.steps)
    (found,) = altered(0, trace=recording.events[0].trace[:-1])
    assert (found.field, found.kernel) == ("path", "nothing more")
    (found,) = altered(0, outs=[])
    assert found.field.startswith("packets out on") and found.kernel == "0"
    (found,) = altered(0, outs=[(link, packet[:8] + b"\x09" + packet[9:])])
    assert found.field == "ttl"
    assert json.loads(json.dumps(found.as_dict()))["kernel"] == "9"


@pytest.mark.parametrize(
    ("name", "table", "old", "new", "place"),
    [
        ("nat/dnat-and-back-6.18", "conntrack", "sport=8080", "sport=8081", "conntrack"),
        ("nat/dnat-and-back-6.18", "counters", "[1:48] -A", "[2:96] -A", "counters"),
        ("ipset/members-and-exceptions-6.18", "ipset", "add bits 80", "add bits 81", "ipset"),
        ("clock/sets-and-recent-6.18", "ipset", "10.0.0.7 timeout 5", "10.0.0.7 timeout 4", "ipset"),
        ("ipvs/round-robin-6.1", "ipvs", "10.0.0.6:8080", "10.0.0.7:8080", "IPVS"),
        ("ipvs/round-robin-6.1", "connections", "10.0.0.6:53", "10.0.0.7:53", "IPVS connections"),
    ],
)
def test_a_table_that_differs_is_named(name, table, old, new, place):
    good, recording = recorded(name)
    assert old in recording.tables[table]
    tables = {**recording.tables, table: recording.tables[table].replace(old, new, 1)}
    found = lab.compare(good, replace(recording, tables=tables))
    assert found and {d.place for d in found} == {place}


def test_a_command_that_only_the_kernel_refused_is_named():
    good, recording = recorded("ipset/members-and-exceptions-6.18")
    k = next(k for k, e in enumerate(good.events) if e.command == "ipset add nets 10.0.0.6/32")
    events = list(recording.events)
    events[k] = replace(events[k], status=1)
    (found,) = lab.compare(good, replace(recording, events=events))
    assert found.field == "status" and "ipset add nets" in found.place


def test_ports_that_linux_drew_hold_for_answers_and_tables():
    good, recording = recorded("nat/masquerade-collides-6.18")
    drawn = [ends_of(h.outs[0][1]) for h in recording.events if h.outs][1][2]
    assert drawn != 5000  # this is what the story is about
    for length in (1, 7, None):
        assert lab.compare(good, recording, length) == []


def test_a_drawn_port_must_come_from_the_pool():
    good, recording = recorded("nat/masquerade-collides-6.18")
    k = [k for k, h in enumerate(recording.events) if h.outs][1]
    events = list(recording.events)
    link, packet = events[k].outs[0]
    events[k] = replace(events[k], outs=[(link, player.with_port(packet, True, 1023))])
    found = lab.compare(good, replace(recording, events=events))
    assert found[0].field == "sport" and found[0].kernel == "1023"


def test_a_drawn_port_may_have_come_into_a_set():
    drawn = lab.Drawn()
    sent, ours, theirs = (udp(src, port, "192.0.2.7", 53) for src, port in (
        ("10.0.0.5", 5000), ("198.51.100.1", 4001), ("198.51.100.1", 4002)
    ))  # fmt: skip
    drawn.learn(sent, theirs, ours, ["nat:POSTROUTING:rule:1"])
    assert drawn.member("add S 198.51.100.1,udp:4001 timeout ~") == "add S 198.51.100.1,udp:4002 timeout ~"
    for other in ("add S 198.51.100.1,tcp:4001", "add S 198.51.100.2,udp:4001", "add S 198.51.100.1"):
        assert drawn.member(other) == other


def test_netemu_is_told_what_the_kernel_drew():
    half = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m statistic --mode random --probability 0.5 -j DROP\nCOMMIT\n"
    packet = udp("10.0.0.5", 1, "192.0.2.7", 2)
    events = [lab.Event(k / 1000, "lan0", packet) for k in range(20)]
    made = case(*events, iptables_save=half)
    node = Node(lab.model_of(made), seed=99)  # stands for a kernel with other dice
    happened = []
    for e in events:
        j = node.send(packet, "lan0", e.at)
        happened.append(lab.Happened(e.at, list(j.out), [str(s) for s in j.steps if s.table]))
    tables = {"conntrack": "", "counters": node.dump("iptables-save")}
    recording = lab.Recording("6.18.0", happened, tables, dict.fromkeys(tables, 0.1))
    assert 0 < sum(not h.outs for h in happened) < 20
    for length in (1, 7, None):
        assert lab.compare(made, recording, length) == []


def test_an_answer_is_turned_to_the_port_that_was_drawn():
    sent = udp("198.51.100.1", 31111, "192.0.2.7", 53)
    meant = udp("192.0.2.7", 53, "198.51.100.1", 5000, b"answer")
    turned = player.answering(meant, [["eth0", sent.hex()]])
    assert ends_of(turned)[4] == 31111 and sums_right(turned)
    assert player.answering(meant, []) == meant
    quoting = error("192.0.2.7", "198.51.100.1", udp("198.51.100.1", 5000, "192.0.2.7", 53))
    turned = player.answering(quoting, [["eth0", sent.hex()]])
    assert ends_of(turned[28:])[2] == 31111 and sums_right(turned)
    ping = icmp("198.51.100.1", "192.0.2.7", number=77)
    turned = player.answering(icmp("192.0.2.7", "198.51.100.1", 0, 0, 5), [["eth0", ping.hex()]])
    assert ends_of(turned)[2] == 77 and sums_right(turned)


@pytest.mark.skipif(sys.platform != "linux", reason="asks for TCP_INFO")
def test_ticks_go_on_when_the_count_of_milliseconds_is_full(monkeypatch):
    counts = iter([2**32 - 8, 2**32 - 8, 2**32 - 4, 0, 396])
    monkeypatch.setattr(player.time, "clock_getres", lambda _: 0.004)
    monkeypatch.setattr(player.Ticks, "milliseconds", lambda _: next(counts))
    ticks = player.Ticks(0.0)
    assert ticks.zero == 1 and ticks.count() == 2 and ticks.count() == 101


@pytest.mark.parametrize(
    ("both", "one", "other", "is_one"),
    [
        ("abcd", "ac", "bd", True),
        ("abcd", "ad", "cb", False),
        ("aab", "ab", "a", True),
        ("ab", "a", "", False),
        ("", "", "", True),
    ],
)
def test_a_log_is_a_merge_of_two(both, one, other, is_one):
    assert lab.is_merge(both, one, other) is is_one


# ---- cases from captures -------------------------------------------------------------------------------------------


def test_a_case_of_a_model_and_a_trace():
    made, remarks = lab.from_traces(ROOT / "models/nat-gateway", [str(ROOT / "traces/nat-gateway.pcapng")])
    assert made.name == "nat-gateway/nat-gateway" and len(made.events) == 66
    assert max(b.at - a.at for a, b in zip(made.events, made.events[1:], strict=False)) < 2.001
    assert any("gap" in r for r in remarks)
    few, _ = lab.from_traces(
        ROOT / "models/nat-gateway",
        [str(ROOT / "traces/nat-gateway.pcapng")],
        commands=[(0.0, "ip link set eth0 down")],
        count=5,
    )
    assert [e.command is None for e in few.events].count(True) == 5
    assert few.events[0].command is None or few.events[0].at == 0


@pytest.mark.parametrize(
    "command", ["rm -rf x", "ip netns add x", "ip link set eth0 netns 1", "ip -n x link", "nft flush ruleset", ""]
)
def test_a_command_that_leaves_the_node_is_not_played(command):
    with pytest.raises(Unsupported):
        lab.plan(case(lab.Event(0.0, command=command)))


def test_a_case_that_cannot_be_played_says_why():
    with pytest.raises(Refused, match="lan7"):
        lab.plan(case(lab.Event(0.0, "lan7", udp("10.0.0.5", 1, "10.0.0.1", 2))))
    with pytest.raises(Refused, match="iptables"):
        lab.plan(case(iptables_save="*nat\n-A NOWHERE -j ACCEPT\nCOMMIT\n"))


def test_no_kernel_to_ask(monkeypatch, capsys):
    monkeypatch.setattr(lab, "available", lambda kernel: f"no {kernel} today")
    assert cli.main(["verify", str(ROOT / "models/web-dnat"), str(ROOT / "traces/web-dnat.pcapng")]) == 2
    said = capsys.readouterr().err
    assert "no host today" in said and "no uml today" in said


def test_missing_tools_are_named_with_their_packages(monkeypatch):
    monkeypatch.setattr(lab.shutil, "which", lambda name, path=None: None if name == "ipset" else name)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for kernel in ("host", "uml"):
        assert "ipset" in (lab.available(kernel) or "") and "apt-get install" in (lab.available(kernel) or "")


def test_a_kernel_that_does_not_start_says_why(monkeypatch, capsys):
    panic = """Kernel panic - not syncing: Requested init /init failed (error -2).
CPU: 0 PID: 1 Comm: swapper Not tainted 6.1.176 #1
Stack:
 606944ba 607e7fcd 7e48be40 6067bb96
Call Trace:
 [<606944ba>] ? _printk+0x0/0x94"""
    monkeypatch.setattr(lab, "available", lambda _: None)
    monkeypatch.setattr(lab, "_booting", lambda *_: ["printf", panic])
    trace = str(ROOT / "traces/web-dnat.pcapng")
    for kernel in ("uml", "auto"):
        model = ROOT / "models" / ("web-dnat" if kernel == "uml" else "kube-ipvs")
        assert cli.main(["verify", str(model), trace, "--kernel", kernel]) == 2
        said = capsys.readouterr().err
        assert "did not play to the end" in said and "Requested init /init failed" in said
        assert "Call Trace" not in said and "--kernel host" in said


@pytest.mark.parametrize(
    ("flags", "wide"),
    [("fpu vme avx512f amx_bf16 avx amx_tile amx_int8", True), ("fpu apx", True), ("fpu vme avx512f avx2", False)],
)
def test_processors_whose_registers_do_not_fit_are_known(flags, wide):
    assert player.too_wide(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_tile\n") is wide


@pytest.mark.skipif(
    os.uname().machine != "x86_64" or sys.platform != "linux", reason="the filter is for Linux on x86-64"
)
def test_register_sets_are_refused_and_nothing_else():
    program = """import ctypes, sys
from netemu import player
def asked(what):
    player.libc.ptrace(what, 0x7fffffff, 1, None)
    return ctypes.get_errno()
before = asked(0x4204), asked(12)
assert player.no_register_sets()
print(before, (asked(0x4204), asked(12)))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 3) (5, 3)\n"  # no such process; an error in reading it


# ---- with a kernel -------------------------------------------------------------------------------------------------


def alive(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker in (entry / "cmdline").read_text().replace("\0", " "):
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_the_guard_ends_what_is_left_when_its_owner_goes(tmp_path):
    marker = f"sleep 1{os.getpid()}"
    folder = tmp_path / "folder"
    folder.mkdir()
    guard = [sys.executable, "-I", player.__file__, "guard", str(folder), "sh", "-c", f"{marker} & {marker}"]
    with subprocess.Popen(guard, stdin=subprocess.PIPE) as running:
        until = time.monotonic() + 10
        while len(alive(marker)) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        assert running.stdin is not None
        running.stdin.close()
        running.wait(10)
    assert not alive(marker) and not folder.exists()


@pytest.mark.kernel
def test_verify_and_record_on_this_machine(host_kernel, tmp_path, capsys):
    model, trace = str(ROOT / "models/web-dnat"), str(ROOT / "traces/web-dnat.pcapng")
    assert cli.main(["verify", model, trace, "--kernel", "host", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["agree"] and verdict["packets"] == 64 and verdict["kernel"] == "host"
    path = tmp_path / "made.case"
    assert cli.main(["record", model, trace, "-o", str(path), "--name", "made", "--story", "why"]) == 0
    made, recording = lab.load(path)
    assert (made.name, made.story) == ("made", "why") and not lab.compare(made, recording, 7)


@pytest.mark.kernel
def test_a_planted_error_is_found_and_shrunk(host_kernel, tmp_path, monkeypatch, capsys):
    fair = nat._with_address
    monkeypatch.setattr(nat, "_with_address", lambda t, manip, a: fair(t, manip, a ^ (1 if manip == nat.SOURCE else 0)))
    model, trace, path = str(ROOT / "models/web-dnat"), str(ROOT / "traces/web-dnat.pcapng"), tmp_path / "small.case"
    assert cli.main(["verify", model, trace, "--kernel", "host", "--shrink", "-o", str(path)]) == 1
    assert "field src: kernel 10.0.0.1, netemu 10.0.0.0" in capsys.readouterr().out
    small, recording = lab.load(path)
    assert len(small.events) <= 3 and len(lab._rule_lines(small)) <= 4
    assert lab.compare(small, recording)
    monkeypatch.undo()
    assert not lab.compare(small, recording)


@pytest.mark.kernel
def test_the_local_stack_is_silent_and_tables_are_as_they_were(host_kernel):
    to = "198.51.100.1"
    packets = [tcp("192.0.2.7", 9, to, 999), tcp("192.0.2.7", 9, to, 999, "A"), udp("192.0.2.7", 9, to, 999)]
    packets += [icmp("192.0.2.7", to, 8), icmp("192.0.2.7", to, 13)]
    made = case(*(lab.Event(0.0, "eth0", p) for p in packets))
    (recording,) = lab.play([made], "host")
    assert not recording.trouble
    assert [h.outs for h in recording.events] == [[]] * len(packets)
    assert recording.tables["counters"] == ""  # no table, though every packet was traced
    assert lab.compare(made, recording) == []


@pytest.mark.kernel
def test_one_case_in_trouble_does_not_spoil_the_others(host_kernel):
    good = case(lab.Event(0.0, "lan0", udp("10.0.0.5", 1, "192.0.2.7", 2)), iptables_save=MASQUERADE)
    bad = case(iptables_save="*nat\n-A NOWHERE -j ACCEPT\nCOMMIT\n")
    troubled, fine = lab.play([bad, good], "host")
    assert "NOWHERE" in troubled.trouble and not fine.trouble and fine.events[0].outs
    with pytest.raises(Refused, match="not played"):
        lab.compare(bad, troubled)


@pytest.mark.kernel
def test_a_killed_run_leaves_nothing_behind(host_kernel, tmp_path):
    program = (
        "from netemu import lab\n"
        f"case, _ = lab.from_traces({str(ROOT / 'models/web-dnat')!r}, [{str(ROOT / 'traces/web-dnat.pcapng')!r}])\n"
        "case.end = 60\n"
        "lab.play([case, case], 'host')\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], env=env) as running:
        until = time.monotonic() + 20
        while not (list(tmp_path.glob("netemu-*")) and len(alive(str(tmp_path))) >= 4) and time.monotonic() < until:
            time.sleep(0.05)
        assert alive(str(tmp_path))
        running.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while (alive(str(tmp_path)) or list(tmp_path.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(str(tmp_path)) and not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_a_kernel_that_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "played"
    folder.mkdir()
    with pytest.raises(lab._StoodStill), lab._guarded(["sleep", "60"], str(folder), 60, 0.3):
        pass
    assert not folder.exists()
