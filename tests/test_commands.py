"""The commands of `iptables`, the same on a real kernel: exit status, complaint, and the tables that come of them.

Sequences are drawn by chance from a small vocabulary in which much goes wrong: chains that are not there, numbers out
of range, rules that no longer stand where they stood.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from random import Random

import pytest

from netemu.errors import NetemuError
from netemu.model import Model
from netemu.node import Node

PLAYER = """
import json, shlex, subprocess, sys
out = []
for line in json.load(sys.stdin):
    argv, text = shlex.split(line[0]), line[1]
    argv[0] = argv[0].replace("iptables", "iptables-legacy")
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    saved = subprocess.run(["iptables-legacy-save"], capture_output=True, text=True).stdout
    out.append((done.returncode, done.stdout, done.stderr, saved))
print(json.dumps(out))
"""
TABLES = ["filter", "nat", "mangle", "raw"]
CHAINS = ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING", "A", "B", "C", "D"]
RULES = [
    "-j ACCEPT", "-s 10.0.0.0/8 -j DROP", "-p tcp --dport 80 -j RETURN", "-j A", "-g B", "-j C", "-j D",
    "-p udp -m multiport --ports 1,2 -j B", "-m mark --mark 1", "-j MARK --set-mark 1", "-j NOPE", "-m no",
    "--dport 5", "-p tcp -j REJECT --reject-with tcp-reset", "-i eth0 -j ACCEPT", "-o eth0 ! -d 10.0.0.1",
    "-s 10.0.0.1,10.0.0.2 -j C", "! -p tcp ! -i eth1 ! -s 10.0.0.0/8", "-p tcp ! -d 1.2.3.4 -m limit --limit 3/min",
    "-m comment --comment x -m conntrack --ctstate NEW",
    "-p icmp --icmp-type 8 -c 5 500 -j ACCEPT", "-j ACCEPT -j DROP", "-s 300.0.0.1", "-p 300", "-j TTL --ttl-set 0",
    "-w5 -j DROP", "--wait -4 -s10.1/16", "-6 -j DROP", "-s host.invalid", "-ptcp --syn -jDROP", "-s ! 10.0.0.1",
    "-p ! tcp", "-p tcp -m mac --mac-source 00:11:22:33:44:55", "-j DROP --", "-p tcp -j SYNPROXY --mss 5",
    "! ! -p udp", "-ieth0 -j DROP",
    "-s 10.0.0.1,10.0.0.2 -d 1.1.1.1,2.2.2.2 -j ACCEPT", "-fjACCEPT", "-m multiport --dports 80", "-p udp --dport ''",
]  # fmt: skip


def command(rng: Random) -> tuple[str, str]:
    """A command, and what it is fed."""
    table = rng.choice(["", "", "-t nat ", "-t mangle ", "-t raw ", "--table filter "])
    chain, rule = rng.choice(CHAINS), rng.choice(RULES)
    kind = rng.choice("AAAAAAIIIDDRCNNNXXEPPFZSZL*")
    number = rng.choice(["1", "2", "3", "0", "9"])
    if number == "0":
        rule = "-j ACCEPT"  # one thing wrong is enough
    word = {
        "A": f"{rng.choice(['-A', '--append'])} {chain} {rule}",
        "I": f"{rng.choice(['-I', '--insert'])} {chain} {rng.choice(['', number])} {rule}",
        "D": f"{rng.choice(['-D', '--delete'])} {chain} {rng.choice([number, rule, rule])}",
        "R": f"{rng.choice(['-R', '--replace'])} {chain} {number} {rule.replace('10.0.0.1,', '')}",
        "C": f"{rng.choice(['-C', '--check'])} {chain} {rule}",
        "N": f"{rng.choice(['-N', '--new-chain'])} {chain}",
        "X": f"{rng.choice(['-X', '--delete-chain'])} {rng.choice([chain, chain, ''])}",
        "E": f"{rng.choice(['-E', '--rename-chain'])} {chain} {rng.choice(CHAINS)}",
        "P": f"{rng.choice(['-P', '--policy'])} {chain} {rng.choice(['ACCEPT', 'DROP', 'RETURN', 'A'])}",
        "F": f"{rng.choice(['-F', '--flush'])} {rng.choice([chain, chain, ''])}",
        "Z": f"{rng.choice(['-Z', '--zero'])} {rng.choice([chain, '', chain + ' ' + number])}",
        "S": f"{rng.choice(['-S', '--list-rules', '-v -S'])} {rng.choice([chain, '', chain + ' ' + number])}",
        "L": f"-n {rng.choice(['', '-v ', '-v -x ', '--line-numbers '])}{rng.choice(['-L', '--list'])} {chain}",
    }
    if kind != "*":
        return f"iptables {table}{word[kind]}".strip(), ""
    if rng.random() < 0.3:
        return f"iptables-save {rng.choice(['', '-c ', '--counters '])}{rng.choice(['', '-t nat', '--table raw'])}", ""
    body = [f":{rng.choice('AB')} - [0:0]"] + [
        f"{rng.choice(['', '', '[3:180] '])}-A {rng.choice(['FORWARD', 'A', 'B'])} {rng.choice(RULES[:9])}"
        for _ in range(2)
    ]
    options = rng.choice(["--noflush", "-n", "", "-c", "-n --counters", "--test", "-n -T filter", "-n -T nat"])
    return f"iptables-restore {options}".strip(), "\n".join(["*filter", *body, "COMMIT", ""])


def plain(saved: str) -> dict[str, list[str]]:
    """table -> its lines, without counters of policies and chains."""
    out: dict[str, list[str]] = {}
    for block in saved.split("\n*")[0 if saved.startswith("*") else 1 :]:
        name, *lines = block.lstrip("*").splitlines()
        out[name] = [re.sub(r" \[\d+:\d+\]", "", line) for line in lines if line[:1] in "-:"]
    return out


def gist(complaint: str) -> str:
    """What is said, without who says it and where help is."""
    line = next((x for x in complaint.splitlines() if x.strip() and not x.startswith("Warning")), "")
    line = re.sub(r"^ip\S+( v[\d.]+ \(legacy\))?: ", "", line)
    return line.split(". Run `dmesg'")[0].strip()


def real(commands: list[tuple[str, str]]) -> list[tuple[int, str, str, str]]:
    """(status, output, complaint, tables after it) of each command, one after the other in a namespace of its own."""
    words = ["unshare", "-n", sys.executable, "-c", PLAYER]
    done = subprocess.run(words, input=json.dumps(commands), capture_output=True, text=True, check=True)
    return [(status, out, err, saved) for status, out, err, saved in json.loads(done.stdout)]


def ours(node: Node, line: str, text: str) -> tuple[int, str, str]:
    """The same of netemu: (status, output, complaint)."""
    try:
        return 0, node.run(line, text=text), ""
    except NetemuError as error:
        return error.status, "", str(error)


@pytest.mark.kernel
@pytest.mark.parametrize("seed", range(4))
def test_commands_do_the_same(seed: int, host_kernel: None) -> None:
    rng = Random(seed)
    commands = [command(rng) for _ in range(120)]
    node = Node(Model())
    for (line, text), (status, out, err, saved) in zip(commands, real(commands), strict=True):
        our_status, said, complaint = ours(node, line, text)
        assert our_status == status, (line, text, err, complaint)
        assert plain(node.tables.save(False)) == plain(saved), (line, text)
        if re.search(r" (-S|--list-rules|-L|--list)\b", line):
            assert said == out, line
        elif line.startswith("iptables-save"):
            assert uncommented(said) == uncommented(out), line


def uncommented(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


FAULTS = [
    "-A NOPE -j DROP", "-A INPUT -j NOPE", "-A INPUT -g NOPE", "-A INPUT -m nope", "-A INPUT --nope", "-A INPUT foo",
    "-A INPUT -s 1.2.3.4/33", "-A INPUT -p nope", "-A INPUT ! ! -p tcp", "-A INPUT -o eth0", "-A OUTPUT -i eth0",
    "-A INPUT -i abcdefghijklmnop", "-A INPUT -p tcp --dport 70000", "-A INPUT -p tcp --dport 9:8", "-A INPUT",
    "-A INPUT -j ACCEPT -j DROP", "-A INPUT -j ACCEPT -g A", "-A", "-I INPUT 0", "-I INPUT 9 -j DROP", "-D INPUT 9",
    "-D INPUT 0", "-D INPUT -j DROP", "-R INPUT 9 -j DROP", "-R INPUT 1", "-C INPUT -j DROP", "-N INPUT", "-N ACCEPT",
    "-N -x", "-N " + "x" * 29, "-X INPUT", "-X NOPE", "-E NOPE B", "-E A A", "-P INPUT NOPE", "-P A DROP", "-F NOPE",
    "-Z NOPE", "-Z INPUT 9", "-S NOPE", "-L NOPE", "-A INPUT -Z", "", "-t nat -P OUTPUT DROP", "-I A -j A", "-A A -j A",
    "-A INPUT -j REJECT --reject-with nope", "-A INPUT -j MARK", "-t nat -A OUTPUT -j REJECT", "-A INPUT -m mark",
    "-A INPUT -m tcp --dport 5", "-A INPUT -m socket --nope", "-A FORWARD -m socket",
    "-t mangle -A FORWARD -p tcp -j TCPMSS --set-mss 5",
    "-A INPUT -m policy --pol none", "-A INPUT -m bpf --bytecode 1,99", "-t raw -A OUTPUT -j CT --zone 70000",
]  # fmt: skip


@pytest.mark.kernel
def test_complaints_are_the_tools(host_kernel: None) -> None:
    before = ["-N A", "-A INPUT -j A", "-A A -p tcp -j RETURN"]
    lines = [f"iptables {words}" for words in (*before, *FAULTS)]
    node, wrong = Node(Model()), []
    for line, (status, _, err, _) in zip(lines, real([(line, "") for line in lines]), strict=True):
        our_status, _, complaint = ours(node, line, "")
        if our_status != status or gist(err) not in complaint:
            wrong.append((line, status, gist(err), our_status, complaint))
    assert not wrong


def test_plain_keeps_rules_only() -> None:
    assert plain("*raw\n:PREROUTING ACCEPT [1:2]\n-A PREROUTING -j CT\nCOMMIT\n") == {
        "raw": [":PREROUTING ACCEPT", "-A PREROUTING -j CT"]
    }
    assert shlex.split(command(Random(1))[0])[0].startswith("iptables")
