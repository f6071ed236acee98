"""`explain` says which condition turned a packet away, and with which value."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from test_lint import model, save

from netemu import Node, report
from netemu.matches import MATCHES
from netemu.values import REMEMBERED, VALUES


def explained(folder: Path, rule: str, packet: str, sets: str = "", first: str = "") -> str:
    """What is said of the first rule of FORWARD."""
    files = {"ipset": sets} if sets else {}
    node = Node.load(model(folder / "m", save(filter=f"FORWARD {rule} -j DROP\nFORWARD {first} -j LOG"), **files))
    journey = node.send(report.read_packet(packet), "eth0")
    file = io.StringIO()
    report.explain(journey._part, journey._row, report.Screen(file), most=None)
    return next(line for line in file.getvalue().splitlines() if "rule:1 no: " in line).split(" no: ")[1]


TCP = "tcp 192.0.2.7:4000 > 10.244.0.5:80 S"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("-s 10.0.0.0/8", "-s 10.0.0.0/8 (it is 192.0.2.7)"),
        ("! -d 10.244.0.0/16", "! -d 10.244.0.0/16 (it is 10.244.0.5)"),
        ("-i cni0", "-i cni0 (it is eth0)"),
        ("-o eth0", "-o eth0 (it is cni0)"),
        ("-p udp", "-p udp (it is tcp)"),
        ("-f", "-f (it is whole, or a first fragment)"),
        ("-p tcp -m tcp --dport 22", "-m tcp --dport 22 (the destination port is 80)"),
        ("-p tcp -m tcp ! --syn", "-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN (the flags are SYN)"),
        ("-p tcp -m multiport --sports 1:99", "-m multiport --sports 1:99 (the source port is 4000)"),
        ("-m mark --mark 0x4", "-m mark --mark 0x4 (the mark is 0x0)"),
        ("-m conntrack --ctstate ESTABLISHED", "-m conntrack --ctstate ESTABLISHED (the state is NEW)"),
        ("-m state --state INVALID", "-m state --state INVALID (the state is NEW)"),
        ("-m addrtype --dst-type LOCAL", "-m addrtype --dst-type LOCAL (the destination 10.244.0.5 is UNICAST)"),
        ("-m ttl --ttl-lt 5", "-m ttl --ttl-lt 5 (it is 63)"),
        ("-m dscp --dscp 0x2e", "-m dscp --dscp 0x2e (it is 0x00)"),
        ("-m length --length 1500", "-m length --length 1500 (it is 40)"),
        ("-m iprange --src-range 1.0.0.0-1.0.0.9", "-m iprange --src-range 1.0.0.0-1.0.0.9 (the source is 192.0.2.7)"),
        ("-m physdev --physdev-in x", "-m physdev --physdev-in x (it did not come by a bridge's port)"),
        ("-m connmark --mark 0x3", "-m connmark --mark 0x3 (the connection's mark is 0x0 now)"),
        ("-p tcp -m tcpmss --mss 1460", "-m tcpmss --mss 1460 (it has no MSS option)"),
        ("-m u32 --u32 6&0xff=17", '-m u32 --u32 "0x6&0xff=0x11" (the tests see 0x6)'),
        ("-m u32 --u32 200=0", '-m u32 --u32 "0xc8=0x0" (the tests see the packet\'s end)'),
        ('-m bpf --bytecode "1,6 0 0 0"', '-m bpf --bytecode "1,6 0 0 0" (the program returned 0)'),
        ("-m string --algo bm --string xy", '-m string --string "xy" --algo bm (it is in none of its 40 bytes)'),
        ("-m string --algo bm --hex-string |4500| --to 1", "(it is at byte 0)"),
        ("-m connlabel --label 5", '-m connlabel --label "5" (the connection\'s labels are none now)'),
        ("-m helper --helper ftp", "-m helper --helper ftp (no helper expected its connection)"),
        ("-m devgroup --src-group 4", "-m devgroup --src-group 0x4 (the input device's group is 0x0)"),
        (
            "-m policy --dir in --pol ipsec",
            "-m policy --dir in --pol ipsec (the node has no IPsec: no policy applies to it)",
        ),
        ("-m realm --realm 4", "-m realm --realm 0x4 (routes have the realm 0)"),
        ("-m ipvs --ipvs", "-m ipvs --ipvs (IPVS had no part in it)"),
        (
            "-m cluster --cluster-total-nodes 2 --cluster-local-nodemask 0 --cluster-hash-seed 7",
            "-m cluster --cluster-local-nodemask 0x00000000 --cluster-total-nodes 2 --cluster-hash-seed 0x00000007 "
            "(it is for node 1)",
        ),
    ],
)
def test_which_condition_and_which_value(tmp_path: Path, rule: str, said: str) -> None:
    assert explained(tmp_path, rule, TCP).endswith(said)


def test_members_of_sets(tmp_path: Path) -> None:
    sets = "create s hash:ip,port\nadd s 192.0.2.7,tcp:81\ncreate t hash:net\nadd t 192.0.2.0/24\n"
    assert explained(tmp_path, "-m set --match-set s src,dst", TCP, sets).endswith("(192.0.2.7,tcp:80 is not in it)")
    assert explained(tmp_path, "-m set ! --match-set t src", TCP, sets).endswith("(192.0.2.7 is in it)")
    counted = "create c hash:ip counters\n"
    assert explained(tmp_path, "-m set --match-set c dst", TCP, counted).endswith("(10.244.0.5 was not in it then)")


def test_what_remembers_is_named_where_nothing_else_says_no(tmp_path: Path) -> None:
    rule = "-m statistic --mode nth --every 2 --packet 1"
    assert explained(tmp_path, rule, TCP).endswith("(it was not this packet's turn)")
    assert explained(tmp_path, f"-p udp {rule}", TCP) == "-p udp (it is tcp)"


def test_every_match_that_can_say_no_tells_what_it_found() -> None:
    assert {*VALUES, *REMEMBERED} == {name for name, match in MATCHES.items() if not match.always}
