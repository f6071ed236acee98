"""Targets: what is printed for what was written, what is refused, and what becomes of packets."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from craft import icmp, sums_right, tcp, udp
from test_tables import ip, packets, refusal, room, rule_text, table

from netemu.model import AddressSpec, LinkSpec, Model, Text
from netemu.nat import Range
from netemu.node import Node
from netemu.packets import REJECTED, UNTRACKED, Packets, Rows
from netemu.sockets import Socket
from netemu.trip import Trip

SETS = "create s1 hash:ip\ncreate s2 hash:ip,port timeout 10\ncreate s3 hash:ip skbinfo\n"


@pytest.mark.parametrize(
    ("where", "written", "printed"),
    [
        ("filter", "REJECT", "REJECT --reject-with icmp-port-unreachable"),
        ("filter", "REJECT --reject-with host-unreach", "REJECT --reject-with icmp-host-unreachable"),
        ("filter", "REJECT --rej icmp-net", "REJECT --reject-with icmp-net-unreachable"),
        ("filter", "REJECT --reject-with icmp-p", "REJECT --reject-with icmp-proto-unreachable"),
        ("filter", "REJECT --reject-with admin-prohib", "REJECT --reject-with icmp-admin-prohibited"),
        ("filter", "REJECT --reject-with tcp-rst", "REJECT --reject-with tcp-reset"),
        ("mangle", "MARK --set-mark 1", "MARK --set-xmark 0x1/0xffffffff"),
        ("mangle", "MARK --set-mark 0x100/0xff", "MARK --set-xmark 0x100/0x1ff"),
        ("mangle", "MARK --set-xmark 5", "MARK --set-xmark 0x5/0xffffffff"),
        ("mangle", "MARK --or-mark 0x004000", "MARK --set-xmark 0x4000/0x4000"),
        ("mangle", "MARK --and-mark 0xff", "MARK --set-xmark 0x0/0xffffff00"),
        ("mangle", "MARK --xor-mark 077", "MARK --set-xmark 0x3f/0x0"),
        ("mangle", "CONNMARK --set-mark 1/0xff", "CONNMARK --set-xmark 0x1/0xff"),
        ("mangle", "CONNMARK --set-mark 1 --mask 2", "CONNMARK --set-xmark 0x1/0x2"),
        ("mangle", "CONNMARK --save-mark", "CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
        ("mangle", "CONNMARK --restore-mark --mask 0xff", "CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff"),
        ("mangle", "CONNMARK --left-shift-mark 2 --save-mark",
         "CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff --left-shift-mark 2"),
        ("mangle", "TTL --ttl-inc 5", "TTL --ttl-inc 5"),
        ("mangle", "TOS --set-tos 0x10", "TOS --set-tos 0x10/0xff"),
        ("mangle", "TOS --set-tos minimize-cost", "TOS --set-tos 0x02/0x3f"),
        ("mangle", "TOS --and-tos 0xf", "TOS --set-tos 0x00/0xf0"),
        ("mangle", "DSCP --set-dscp-class af11", "DSCP --set-dscp 0x0a"),
        ("mangle", "CLASSIFY --set-class a:ffff", "CLASSIFY --set-class 000a:ffff"),
        ("mangle", "CHECKSUM --checksum-fill", "CHECKSUM --checksum-fill"),
        ("mangle", "ECN --ecn-tcp-remove", "ECN --ecn-tcp-remove"),
        ("filter", "AUDIT --type drop", "AUDIT --type drop"),
        ("filter", 'LOG --log-prefix "foo bar: " --log-level debug', 'LOG --log-prefix "foo bar: " --log-level 7'),
        ("filter", "LOG --log-uid --log-level warning --log-tcp-options", "LOG --log-tcp-options --log-uid"),
        ("filter", "LOG --log-prefix " + "a" * 40, "LOG --log-prefix " + "a" * 29),
        ("filter", "NFLOG --nflog-size 5 --nflog-group 3 --nflog-prefix x",
         "NFLOG --nflog-prefix x --nflog-group 3 --nflog-size 5"),
        ("raw", "TRACE", "TRACE"),
        ("raw", "NOTRACK", "NOTRACK"),
        ("filter", "SYNPROXY --mss 1460 --ecn --sack-perm --wscale 0x107 --timestamp",
         "SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460 --ecn"),
        ("raw", "CT --notrack", "CT --notrack"),
        ("raw", "CT", "CT"),
        ("raw", "CT --zone 0", "CT"),
        ("raw", "CT --expevents new --ctevents destroy,new", "CT --ctevents new,destroy --expevents new"),
        ("raw", "CT --timeout a --notrack --helper nope --zone 5", "CT --notrack --helper nope --timeout a --zone 5"),
        ("raw", "CT --zone-orig 5 --notrack --zone-reply 7", "CT --notrack --zone 7"),
        ("raw", "CT --notrack --zone mark --zone-reply 4", "CT --notrack --zone-reply mark"),
        ("mangle", "ECN --ecn-ip-ect 1 --ecn-tcp-remove", "ECN --ecn-tcp-ece 0 --ecn-tcp-cwr 0 --ecn-ip-ect 1"),
        ("mangle", "ECN --ecn-tcp-cwr 1 --ecn-tcp-ece 0", "ECN --ecn-tcp-ece 0 --ecn-tcp-cwr 1"),
        ("mangle", "TEE --oif eth0 --gateway 10.1", "TEE --gateway 10.0.0.1 --oif eth0"),
        ("mangle/PREROUTING", "TPROXY --on-port http", "TPROXY --on-port 80 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0"),
        ("mangle/PREROUTING", "TPROXY --on-port 70000 --tproxy-mark 7/3 --on-ip 127.0.0.1",
         "TPROXY --on-port 4464 --on-ip 127.0.0.1 --tproxy-mark 0x7/0x3"),
        ("filter", "QUEUE", "QUEUE"),
        ("filter", "NFQUEUE --queue-bypass", "NFQUEUE --queue-num 0 --queue-bypass"),
        ("filter", "NFQUEUE --queue-cpu-fanout --queue-bypass --queue-balance :2",
         "NFQUEUE --queue-balance 0:2 --queue-bypass --queue-cpu-fanout"),
        ("mangle", "HMARK --hmark-tuple ct,src,dst,proto --hmark-offset 10000 --hmark-mod 10 --hmark-rnd 0xfeed",
         "HMARK --hmark-src-prefix 32 --hmark-dst-prefix 32 --hmark-proto-mask 0xffff --hmark-rnd 0x0000feed "
         "--hmark-mod 10 --hmark-offset 10000 --hmark-tuple ct"),
        ("mangle", "HMARK --hmark-src-prefix 255.255.0.0 --hmark-dst-prefix 300 --hmark-sport 80 --hmark-rnd 1 "
         "--hmark-mod 2 --hmark-proto-mask 3",
         "HMARK --hmark-src-prefix 16 --hmark-dst-prefix 32 --hmark-sport 0x0050 --hmark-proto-mask 0x03 "
         "--hmark-rnd 0x00000001 --hmark-mod 2"),
        ("mangle", "HMARK --hmark-tuple src,spi --hmark-rnd 1 --hmark-mod 2",
         "HMARK --hmark-src-prefix 32 --hmark-spi-mask 0xffffffff --hmark-rnd 0x00000001 --hmark-mod 2"),
        ("mangle", "TCPOPTSTRIP", "TCPOPTSTRIP"),
        ("mangle", "TCPOPTSTRIP --strip-options timestamp,mss,200", "TCPOPTSTRIP --strip-options 2,8,200"),
        ("filter", "IDLETIMER --label y --timeout 0x10 --alarm", "IDLETIMER --timeout 16 --label y --alarm"),
        ("filter", "RATEEST --rateest-name x --rateest-interval 0.1s --rateest-ewmalog 16s",
         "RATEEST --rateest-name x --rateest-interval 250.0ms --rateest-ewmalog 32.0s"),
        ("filter", "RATEEST --rateest-name x --rateest-interval 4s --rateest-ewmalog 100s",
         "RATEEST --rateest-name x --rateest-interval 4.0s --rateest-ewmalog 64.0s"),
        ("filter", "LED --led-delay 5 --led-trigger-id ssh", 'LED --led-trigger-id "ssh" --led-delay 5'),
        ("security", "CONNSECMARK --restore", "CONNSECMARK --restore"),
        ("mangle", "SECMARK --selctx system_u:object_r:dns_t:s0", "SECMARK --selctx system_u:object_r:dns_t:s0"),
        ("filter", "CLASSIFY --set-class 12345:2x", "CLASSIFY --set-class 2345:0002"),
        ("mangle", "SET ! --add-set s1 src --timeout 4294967294", "SET --add-set s1 src --timeout 4294967294"),
        ("nat", "DNAT --to 1.1.1.1", "DNAT --to-destination 1.1.1.1"),
        ("nat", "DNAT --to 1.1.1.1-1.1.1.5:80-90/3000 --persistent --random",
         "DNAT --to-destination 1.1.1.1-1.1.1.5:80-90/3000 --random --persistent"),
        ("nat", "DNAT --to :80", "DNAT --to-destination :80"),
        ("nat", "DNAT --to 1.1.1.1-1.1.1.1:80-80", "DNAT --to-destination 1.1.1.1:80"),
        ("nat/POSTROUTING", "SNAT --to 1.1.1.1 --random-fully --random --persistent",
         "SNAT --to-source 1.1.1.1 --random --random-fully --persistent"),
        ("nat/POSTROUTING", "MASQUERADE", "MASQUERADE"),
        ("nat/POSTROUTING", "MASQUERADE --random --to-ports 5-6", "MASQUERADE --to-ports 5-6 --random"),
        ("nat", "REDIRECT --to 80", "REDIRECT --to-ports 80"),
        ("nat", "NETMAP --to 10.1.2.3/255.255.255.0", "NETMAP --to 10.1.2.0/24"),
        ("mangle", "SET --add-set s2 src,dst --timeout 5 --exist", "SET --add-set s2 src,dst --exist --timeout 5"),
        ("mangle", "SET --del-set s1 src --add-set s1 dst", "SET --add-set s1 dst --del-set s1 src"),
        ("mangle", "SET --map-set s3 src --map-mark", "SET --map-set s3 src --map-mark"),
    ],
)  # fmt: skip
def test_written_and_printed(where: str, written: str, printed: str) -> None:
    name, _, chain = where.partition("/")
    chain = chain or ("FORWARD" if name in ("filter", "mangle", "security") else "PREROUTING")
    assert rule_text(f"-p tcp -j {written}", name, chain, SETS) == f"-p tcp -j {printed}"


@pytest.mark.parametrize(
    ("where", "written", "says"),
    [
        ("filter", "-j REJECT --reject-with foo", 'unknown reject type "foo"'),
        ("filter", "-p udp -j REJECT --reject-with tcp-reset", "needs -p tcp"),
        ("filter", "-j REJECT ! --reject-with tcp-reset", 'option "--reject-with" cannot be inverted.'),
        ("filter", "-j REJECT --reject-with tcp-rst --reject-with tcp-rst", "can only be used once"),
        ("raw", "-j REJECT", "only for the filter table"),
        ("nat", "-j DROP", "not intended for filtering"),
        ("mangle", "-j MARK", "options is required"),
        ("mangle", "-j MARK --set-mark -1", "out of range"),
        ("mangle", "-j MARK --set-mark 0xfffffffff", "out of range"),
        ("mangle", "-j MARK --or-mark 1/2", "out of range (0-4294967295)"),
        ("mangle", "-j MARK --set-mark 1 --or-mark 2", 'cannot be used together with "--or-mark"'),
        ("mangle", "-j CONNMARK --nfmask 2", "No operation specified"),
        ("mangle", "-j TTL", "You must specify an action"),
        ("mangle", "-j TTL --ttl-inc 0", "out of range (1-255)"),
        ("filter", "-j TTL --ttl-set 5", "only for the mangle table"),
        ("mangle", "-j TOS --set-tos 300", 'Symbolic name "300" is unknown'),
        ("mangle", "-j DSCP --set-dscp 64", "out of range (0-63)"),
        ("mangle", "-j CLASSIFY --set-class 1", 'Bad class value "1"'),
        ("mangle", "-p udp -j TCPMSS --set-mss 5", "TCPMSS needs -p tcp"),
        ("mangle", "-p tcp -j TCPMSS --set-mss 5", "TCPMSS needs -p tcp --syn"),
        ("mangle", "-p tcp ! --syn -j TCPMSS --set-mss 5", "TCPMSS needs -p tcp --syn"),
        ("mangle", "-p tcp --tcp-flags SYN,FIN FIN -j TCPMSS --set-mss 5", "TCPMSS needs -p tcp --syn"),
        ("mangle", "-p tcp --syn -j TCPMSS --set-mss 65516", "out of range (0-65515)"),
        ("mangle", "-p tcp -j ECN --ecn-tcp-remove --ecn-tcp-cwr 1", "cannot be used together"),
        ("mangle", "-p udp -j ECN --ecn-tcp-cwr 1", "needs -p tcp"),
        ("mangle", "-j ECN --ecn-ip-ect 4", "out of range (0-3)"),
        ("mangle", "-j TEE", 'option "--gateway" must be specified'),
        ("mangle", "-j TEE --gateway 0.0.0.0", "TEE --gateway 0.0.0.0"),
        ("mangle", "-j TEE --gateway 10.0.0.1/24", "getaddrinfo: Name or service not known"),
        ("mangle", "-p tcp -j TPROXY --on-port 1", "cannot be reached from FORWARD"),
        ("mangle", "-p icmp -j TPROXY --on-port 1", "needs -p tcp or -p udp"),
        ("mangle", "-p tcp -j TPROXY --on-port 0x50", 'Port "0x50" does not resolve to anything.'),
        ("mangle", "-p tcp -j TPROXY --on-port 1 --tproxy-mark x", 'bad integer value for option "--tproxy-mark"'),
        ("filter", "-j NFQUEUE --queue-balance 3", 'Bad range "3"'),
        ("filter", "-j NFQUEUE --queue-balance 3:3", "3 should be less than 3"),
        ("filter", "-j NFQUEUE --queue-balance 0:65535", "over all queues"),
        ("filter", "-j NFQUEUE --queue-cpu-fanout", 'also requires "--queue-balance"'),
        ("raw", "-j CT --zone 65536", "Cannot parse 65536 as a zone ID"),
        ("raw", "-j CT --helper ftp", "no helper `ftp'"),
        ("raw", "-p udp -j CT --helper ftp", "no helper `ftp' for protocol 17"),
        ("raw", "-j CT --ctevents NEW", 'Unknown event type "NEW"'),
        ("raw", "-j CT --timeout foo", "CT --timeout needs -p"),
        ("filter", "-j CT --notrack", "only for the raw table"),
        ("mangle", "-j HMARK", "--hmark-mod is mandatory"),
        ("mangle", "-j HMARK --hmark-mod 1", "--hmark-rnd is mandatory"),
        ("mangle", "-j HMARK --hmark-mod 1 --hmark-rnd 1", "you have to specify --hmark-tuple at least"),
        ("mangle", "-j HMARK --hmark-mod 1 --hmark-rnd 1 --hmark-tuple foo", 'Bad type "foo"'),
        ("mangle", "-j HMARK --hmark-mod 1 --hmark-rnd 1 --hmark-tuple spi,sport", "you cannot use --hmark-spi-mask"),
        ("mangle", "-j HMARK --hmark-mod 1 --hmark-rnd 1 --hmark-tuple src --hmark-src-prefix 8", "only be used once"),
        ("mangle", "-p tcp -j TCPOPTSTRIP --strip-options 1", "Option value may not be 0 or 1"),
        ("mangle", "-p tcp -j TCPOPTSTRIP --strip-options mss,2", 'Option "2" already specified'),
        ("mangle", "-p tcp -j TCPOPTSTRIP --strip-options 256", 'Bad TCP option value "256"'),
        ("mangle", "-j TCPOPTSTRIP --strip-options mss", "TCPOPTSTRIP needs -p tcp"),
        ("filter", "-j IDLETIMER --label x", 'option "--timeout" must be specified'),
        ("filter", "-j IDLETIMER --timeout 0 --label x", "1 to 2147483 seconds"),
        ("filter", "-j IDLETIMER --timeout 1 --label a/b", "cannot name a file"),
        (
            "filter",
            "-j RATEEST --rateest-name x --rateest-interval 9s --rateest-ewmalog 16s",
            "interval value is too large",
        ),
        ("filter", "-j RATEEST --rateest-name x --rateest-interval 1s", "ewmalog value is out of range"),
        ("filter", "-j CONNSECMARK --save", "only for the mangle and security table"),
        ("mangle", "-j CONNSECMARK --save --restore", "cannot be used together"),
        ("raw", "-j CLASSIFY --set-class 1:2", "cannot be reached from PREROUTING"),
        ("filter", "-j SYNPROXY", "SYNPROXY needs -p tcp"),
        ("mangle", "-j SET --add-set s1 src --add-set s1 dst", "--add-set can be specified only once"),
        ("mangle", "-j SET --add-set s1 src --map-mark", "Flag `--map-mark' can be used with `--map-set' only"),
        ("mangle", "-j SET --add-set s1 src --timeout 4294967295", "out of range 0-4294967294"),
        ("filter", "-j LOG --log-level warn", 'log level "warn" unknown'),
        ("filter", "-j LOG --log-prefix", 'option "--log-prefix" requires an argument'),
        ("nat", "-j DNAT", 'option "--to-destination" must be specified'),
        ("nat", "-j DNAT --to 1.1.1.1:80", "Need TCP, UDP, SCTP or DCCP with port specification"),
        ("nat", "-p tcp -j DNAT --to 1.1.1.1:90-80", "Port range `80' funky"),
        ("nat", "-p tcp -j DNAT --to 1.1.1.1:70000", "Port `70000' not valid"),
        ("nat", "-j DNAT --to 1.1.1.1/24", 'Bad IP address "1.1.1.1/24"'),
        ("nat", "-j DNAT --to 1.1.1.1 --random-fully", 'unknown option "--random-fully"'),
        ("nat", "-j SNAT --to 1.1.1.1", "cannot be reached from PREROUTING, only from INPUT, POSTROUTING"),
        ("filter", "-j MASQUERADE", "only for the nat table"),
        ("mangle", "-j SET --add-set nope src", "Set nope doesn't exist."),
        ("mangle", "-j SET --add-set s1 foo", "'src' or 'dst'"),
        ("mangle", "-j SET --exist", "You must specify either"),
        ("mangle", "-j SET --map-set s3 src", "You must specify flags"),
    ],
)
def test_refused(where: str, written: str, says: str) -> None:
    assert says in refusal(written, where, "FORWARD" if where in ("filter", "mangle") else "PREROUTING", SETS)


@pytest.mark.parametrize(
    ("where", "written", "says"),
    [
        ("raw PREROUTING", "CT --timeout slow", "timeout policy `slow' of CT --timeout: no dump tells what it says"),
        ("raw PREROUTING", "CT --helper pptp", "target `CT` with --helper pptp"),
        ("filter INPUT", "CLUSTERIP --new", "target `CLUSTERIP`"),
        ("nat PREROUTING", "NFQUEUE --queue-bypass", "in the nat table"),
        ("nat PREROUTING", "NETMAP --to 10.0.0.0/255.0.255.0", "a mask without holes"),
    ],
)
def test_not_modelled_is_said(where: str, written: str, says: str) -> None:
    name, chain = where.split()
    assert says in refusal(f"-p tcp -j {written}", name, chain, kind="Unsupported")


def test_options_of_what_is_not_modelled_are_its_own() -> None:
    """`--new` of CLUSTERIP is not the beginning of `--new-chain`."""
    model = Model()
    rule = "-A INPUT -d 10.0.0.1/32 -j CLUSTERIP --new --hashmode sourceip --total-nodes 2"
    model.texts["iptables.save"] = Text(f"*filter\n{rule}\nCOMMIT\n", "iptables.save")
    assert "target `CLUSTERIP`" in Node(model, unsupported="uncertain").doubtful_rules()[0]


@pytest.mark.parametrize(
    ("written", "printed"),
    [("--set-mss 1000", "--set-mss 1000"), ("--clamp", "--clamp-mss-to-pmtu"), ("--clamp --set-mss 0", "--set-mss 0")],
)
def test_mss_written_and_printed(written: str, printed: str) -> None:
    flags = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
    assert rule_text(f"-p tcp --syn -j TCPMSS {written}", "mangle", "FORWARD") == f"{flags} -j TCPMSS {printed}"


@pytest.mark.parametrize(
    ("rule", "on"),
    [("NOTRACK", False), ("CT --notrack", False), ("CT --ctevents new", True), ("CT", True)],
)
def test_what_switches_tracking_on(rule: str, on: bool) -> None:
    assert room(table(f"-A PREROUTING -j {rule}", "raw")).tables.conntrack_needed is on


def test_tproxy_has_fragments_put_together() -> None:
    assert room(table("-A PREROUTING -p udp -j TPROXY --on-port 1", "mangle")).tables.defrag_needed
    assert not room(table("-A PREROUTING -p udp -j MARK --set-mark 1", "mangle")).tables.defrag_needed


# ---- deeds ---------------------------------------------------------------------------------------------------------


def done(written: str, p: Packets, name: str = "mangle", chain: str = "FORWARD", node: Any = None) -> tuple[Any, Trip]:
    """Walk all packets through one rule; (verdicts, trip)."""
    node = node or room(table(f"-A {chain} -j {written}", name), SETS)
    trip = Trip(node, p)
    trip.hook = chain
    return node.tables.walk(trip, name, np.arange(len(p))).tolist(), trip


@pytest.mark.parametrize(
    ("written", "old", "new"),
    [
        ("MARK --set-mark 1/0xf", 0xFF, 0xF1), ("MARK --xor-mark 3", 1, 2), ("MARK --and-mark 6", 3, 2),
        ("MARK --or-mark 6", 1, 7), ("MARK --set-xmark 3/1", 2, 1),
    ],
)  # fmt: skip
def test_mark(written: str, old: int, new: int) -> None:
    p = packets([{"mark": old}, {"mark": old}])
    _, trip = done(written, p)
    assert p.mark.tolist() == [new, new]
    ((step, field, rows, before, after),) = trip.changes
    assert (str(step), field, rows.tolist(), before[0], after[0]) == ("mangle:FORWARD:rule:1", "mark", [0, 1], old, new)


@pytest.mark.parametrize(
    ("written", "column", "old", "new"),
    [
        ("TTL --ttl-dec 5", "ttl", [64, 5, 3], [59, 0, 0]),
        ("TTL --ttl-inc 5", "ttl", [64, 253, 255], [69, 255, 255]),
        ("TTL --ttl-set 9", "ttl", [64, 9], [9, 9]),
        ("TOS --set-tos 0x10/0x3f", "tos", [0xC0, 0xFF], [0xD0, 0xD0]),
        ("DSCP --set-dscp 1", "tos", [0x03, 0xFC], [0x07, 0x04]),
    ],
)
def test_header_fields(written: str, column: str, old: list[int], new: list[int]) -> None:
    p = packets([{column: value} for value in old])
    assert done(written, p)[0] == [1] * len(old)
    assert getattr(p, column).tolist() == new


def test_connmark_in_arrival_order() -> None:
    node = room(table("-A FORWARD -j CONNMARK --save-mark --nfmask 0xf --ctmask 0xff", "mangle"))
    node.conntrack.mark[:] = 0xABC0
    done("", packets([{"ct": 1, "mark": 0x11}, {"ct": 2, "mark": 3}, {"ct": 1, "mark": 0x25}, {"mark": 9}]), node=node)
    assert [hex(m) for m in node.conntrack.mark[:3]] == ["0xabc0", "0xab05", "0xab03"]

    node = room(table("-A FORWARD -j CONNMARK --restore-mark --ctmask 0xff", "mangle"))
    node.conntrack.mark[:] = 0x1234
    p = packets([{"ct": 1, "mark": 1}, {"mark": 2}])
    done("", p, node=node)
    assert p.mark.tolist() == [0x34, 2]  # nothing happens without a connection

    node = room(table("-A FORWARD -j CONNMARK --xor-mark 1", "mangle"))
    done("", packets([{"ct": 1}] * 3), node=node)
    assert node.conntrack.mark[1] == 1


def test_notrack_leaves_a_connection_alone() -> None:
    for written in ("CT --notrack", "NOTRACK"):
        p = packets([{}, {"ct": 3, "state": 2}])
        done(written, p, "raw", "PREROUTING")
        assert p.state.tolist() == [UNTRACKED, 2]


def test_set_puts_packets_in() -> None:
    node = room(table("-A FORWARD -j SET --add-set s1 src\n-A FORWARD -j SET --del-set s1 dst", "mangle"), SETS)
    done("", packets([{"src": ip("10.0.0.1"), "dst": 1}, {"src": ip("10.0.0.2"), "dst": ip("10.0.0.1")}]), node=node)
    assert "add s1 10.0.0.2\n" in node.sets.save(0) and "10.0.0.1" not in node.sets.save(0)


def test_map_set_takes_the_mark_of_the_element() -> None:
    node = room(
        table("-A FORWARD -j SET --map-set s3 src --map-mark", "mangle"), SETS + "add s3 10.0.0.1 skbmark 0x5/0xf\n"
    )
    p = packets([{"src": ip("10.0.0.1"), "mark": 0xFF}, {"src": 9, "mark": 0xFF}])
    done("", p, node=node)
    assert p.mark.tolist() == [0xF5, 0xFF]


class Caused(Trip):
    """A trip that only notes which messages it was asked for."""

    def cause_icmp(self, rows: Rows, kind: int, code: int, info: int = 0, *, verify: bool = False) -> None:
        self.asked = ("icmp", rows.tolist(), kind, code)

    def cause_reset(self, rows: Rows) -> None:
        self.asked = ("reset", rows.tolist())


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("icmp-port-unreachable", ("icmp", [0, 2], 3, 3)),
        ("icmp-admin-prohibited", ("icmp", [0, 2], 3, 13)),
        ("tcp-reset", ("reset", [0, 2])),
    ],
)
def test_reject_tells_the_sender(kind: str, asked: tuple[object, ...]) -> None:
    node = room(table(f"-A FORWARD -s 10.0.0.1 -p tcp -j REJECT --reject-with {kind}"))
    p = packets([{"src": ip("10.0.0.1")}, {}, {"src": ip("10.0.0.1")}])
    trip = Caused(node, p)
    trip.hook = "FORWARD"
    assert node.tables.walk(trip, "filter", np.arange(3)).tolist() == [0, 1, 0]
    assert trip.asked == asked
    assert p.fate.tolist() == [REJECTED, 0, REJECTED]
    assert node.paths.texts[p.reason[0]] == "filter:FORWARD:rule:1 REJECT"


@pytest.mark.parametrize(
    ("chain", "written", "manip", "wish"),
    [
        ("PREROUTING", "DNAT --to 10.0.0.1-10.0.0.3:80-90/8000 --persistent", "dst",
         Range(lo=ip("10.0.0.1"), hi=ip("10.0.0.3"), port_lo=80, port_hi=90, base=8000, persistent=True)),
        ("POSTROUTING", "SNAT --to 10.0.0.1 --random-fully", "src",
         Range(lo=ip("10.0.0.1"), hi=ip("10.0.0.1"), random=True)),
        ("POSTROUTING", "MASQUERADE --to-ports 1024-2000", "src",
         Range(kind="masquerade", port_lo=1024, port_hi=2000)),
        ("OUTPUT", "REDIRECT", "dst", Range(kind="redirect")),
        ("OUTPUT", "NETMAP --to 10.9.0.0/16", "dst", Range(kind="netmap", net=ip("10.9.0.0"), mask=0xFFFF0000)),
        ("INPUT", "NETMAP --to 10.9.0.0/16", "src", Range(kind="netmap", net=ip("10.9.0.0"), mask=0xFFFF0000)),
    ],
)  # fmt: skip
def test_nat_targets_say_the_wish(chain: str, written: str, manip: str, wish: Range) -> None:
    node = room(table(f"-A {chain} -p tcp -j {written}", "nat"))
    seen = []

    def choose(trip: Trip, rows: Rows, *args: object) -> np.ndarray[Any, Any]:
        seen.append((rows.tolist(), *args[:2], str(args[2])))
        trip.end(rows[1:2], "no free port")
        return np.array([1, 0, 1], np.int8)

    node.nat = SimpleNamespace(choose=choose)
    p = packets([{}, {"proto": 17}, {}, {}])
    verdicts, _ = done("", p, "nat", chain, node)
    assert seen == [([0, 2, 3], manip, wish, f"nat:{chain}:rule:1")]
    assert verdicts == [1, 1, 0, 1]
    assert node.paths.texts[p.reason[2]] == "no free port"


def mss_of(packet: bytes) -> int | None:
    """The announced segment size."""
    ihl = (packet[0] & 15) * 4
    options = packet[ihl + 20 : ihl + (packet[ihl + 12] >> 4) * 4]
    at = 0
    while at < len(options):
        if options[at] == 2:
            return int(struct.unpack_from("!H", options, at + 2)[0])
        at += 1 if options[at] < 2 else options[at + 1]
    return None


@pytest.mark.parametrize(
    ("options", "data", "limit", "mss", "grows"),
    [
        (b"\x02\x04\x05\xb4\x01\x03\x03\x07", b"", 1000, 1000, 0),
        (b"\x01\x02\x04\x05\xb4\x01\x01\x00", b"", 1000, 1000, 0),  # at an odd place
        (b"\x02\x04\x05\xb4", b"", 1460, 1460, 0),
        (b"\x02\x04\x02\x00", b"", 1000, 512, 0),  # never raised
        (b"", b"", 1000, 536, 4),
        (b"\x04\x02\x01\x01", b"", 500, 500, 4),
        (b"", b"data", 500, None, 0),
    ],
)
def test_mss(options: bytes, data: bytes, limit: int, mss: int | None, grows: int) -> None:
    packet = tcp("10.0.0.1", 1000, "10.0.0.2", 80, "S", options=options, data=data)
    p = Packets.from_bytes([packet])
    node = room(table(f"-A FORWARD -p tcp --syn -j TCPMSS --set-mss {limit}", "mangle"))
    _, trip = done("", p, node=node)
    after = p.bytes(0)
    assert mss_of(after) == mss and len(after) == len(packet) + grows and sums_right(after)
    assert int(p.length[0]) == len(after)
    if mss is not None and (mss != mss_of(packet)):
        assert [(c[1], c[3][0], c[4][0]) for c in trip.changes] == [("mss", mss_of(packet) or 0, mss)]


def test_ecn_flags_are_cleared() -> None:
    packet = bytearray(tcp("10.0.0.1", 1000, "10.0.0.2", 80, "S"))
    old = packet[33]
    packet[33] |= 0xC0
    check = struct.unpack_from("!H", packet, 36)[0]
    total = (~check & 0xFFFF) + (packet[33] - old)
    struct.pack_into("!H", packet, 36, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    assert sums_right(bytes(packet))
    p = Packets.from_bytes([bytes(packet)])
    done("", p, node=room(table("-A FORWARD -p tcp -j ECN --ecn-tcp-remove", "mangle")))
    assert p.bytes(0)[33] == old and sums_right(p.bytes(0))


@pytest.mark.parametrize(
    "written", ["LOG", "NFLOG", "AUDIT --type accept", "CLASSIFY --set-class 1:2", "CHECKSUM --checksum"]
)
def test_some_targets_change_nothing(written: str) -> None:
    p = packets([{}])
    before = {name: getattr(p, name).tolist() for name in ("src", "dst", "tos", "ttl", "mark", "length")}
    verdicts, trip = done(written, p)
    assert verdicts == [1] and not trip.changes
    assert before == {name: getattr(p, name).tolist() for name in before}


# ---- what was computed by a real kernel ------------------------------------------------------------------------------


def marks(written: str, packets_: list[bytes]) -> list[int]:
    p = Packets.from_bytes(packets_)
    done("", p, node=room(table(f"-A FORWARD -j HMARK {written} --hmark-rnd 0xfeedcafe --hmark-mod 65521", "mangle")))
    return p.mark.tolist()


def test_hash_mark_is_the_same_both_ways() -> None:
    there, back = tcp("10.0.0.1", 1000, "10.0.0.2", 80, "S"), tcp("10.0.0.2", 80, "10.0.0.1", 1000, "SA")
    for written in ("--hmark-tuple src,dst", "--hmark-tuple src,dst,sport,dport,proto"):
        assert len(set(marks(written, [there, back]))) == 1
    a, b = marks("--hmark-tuple src", [there, back])
    assert a != b
    near = tcp("10.0.0.9", 1000, "10.0.0.2", 80, "S")
    assert len(set(marks("--hmark-src-prefix 24 --hmark-dst-prefix 24", [there, near]))) == 1
    assert marks("--hmark-tuple src --hmark-offset 7", [there])[0] == a + 7


def test_hash_mark_of_an_error_is_that_of_the_packet_it_is_about() -> None:
    there = udp("10.0.0.1", 1000, "10.0.0.2", 80, b"x" * 20)
    error = icmp("10.0.0.77", "10.0.0.1", 3, 3, data=there)
    assert len(set(marks("--hmark-tuple src,dst,sport,dport,proto", [there, error]))) == 1


def test_hash_mark_wants_a_connection_in_ct_mode() -> None:
    node = room(
        table("-A FORWARD -j HMARK --hmark-tuple ct,src --hmark-rnd 1 --hmark-mod 9 --hmark-offset 5", "mangle")
    )
    p = packets([{"mark": 3}])
    done("", p, node=node)
    assert p.mark.tolist() == [3]


@pytest.mark.parametrize(
    ("kinds", "before", "after"),
    [
        ("mss", "020405b4010303070402080a0000000100000000", "01010101010303070402080a0000000100000000"),
        ("wscale,timestamp", "020405b4010303070402080a0000000100000000", "020405b4010101010402" + "01" * 10),
        ("mss", "020005b4", "010105b4"),  # a length of 0 counts as 1, and so does the next byte
        ("3", "030905b4", "030905b4"),  # it ends beyond the header
    ],
)
def test_options_are_stripped(kinds: str, before: str, after: str) -> None:
    p = Packets.from_bytes([tcp("10.0.0.1", 1, "10.0.0.2", 80, "S", options=bytes.fromhex(before))])
    done("", p, node=room(table(f"-A FORWARD -p tcp -j TCPOPTSTRIP --strip-options {kinds}", "mangle")))
    out = p.bytes(0)
    assert sums_right(out)
    if kinds != "mss" or before[:4] != "0200":
        assert out[40:].hex() == after


def test_ecn_bits_are_set() -> None:
    node = room(table("-A FORWARD -p tcp -j ECN --ecn-tcp-ece 1 --ecn-tcp-cwr 1 --ecn-ip-ect 2", "mangle"))
    p = Packets.from_bytes([tcp("10.0.0.1", 1, "10.0.0.2", 80, "S")])
    done("", p, node=node)
    out = p.bytes(0)
    assert (out[1], out[33]) == (2, 0xC2) and sums_right(out)


def whole_node(rules: str) -> Node:
    links = [LinkSpec(f"eth{k}", addresses=[AddressSpec(f"10.{k}.0.1/24")]) for k in range(3)]
    model = Model(links=links, texts={"iptables.save": Text(rules, "iptables.save")})
    model.sysctl["net.ipv4.ip_forward"] = 1
    return Node(model)


DATAGRAM = udp("10.0.0.5", 1, "10.1.0.6", 2, b"hello")


def test_a_copy_goes_to_the_gateway() -> None:
    node = whole_node(table("-A PREROUTING -j TEE --gateway 10.2.0.9\n-A OUTPUT -j LOG", "mangle"))
    (copy,) = node.send(DATAGRAM, "eth0").caused
    ((link, sent),) = copy.out
    assert (link, sent[8], sent[6] & 0x40) == ("eth2", 63, 0x40) and sums_right(sent)
    steps = ["mangle:OUTPUT:rule:1", "mangle:OUTPUT:policy:2", "mangle:POSTROUTING:policy:1"]
    assert [s.text for s in copy.steps if s.table] == steps


def test_a_copy_is_not_copied() -> None:
    node = whole_node(table("-A POSTROUTING -j TEE --gateway 10.2.0.9\n-A OUTPUT -j TEE --gateway 10.2.0.9", "mangle"))
    (copy,) = node.send(DATAGRAM, "eth0").caused
    assert [link for link, _ in copy.out] == ["eth2"] and not copy.caused


@pytest.mark.parametrize(
    ("more", "ways"), [("", []), ("--oif eth2", ["eth2"]), ("--oif gone", [])], ids=["no route", "bound", "no device"]
)
def test_no_way_no_copy(more: str, ways: list[str]) -> None:
    node = whole_node(table(f"-A PREROUTING -j TEE --gateway 203.0.113.1 {more}", "mangle"))
    caused = node.send(DATAGRAM, "eth0").caused
    assert [link for copy in caused for link, _ in copy.out] == ways


def test_a_queue_without_a_listener_drops() -> None:
    node = room(
        table(
            "-A FORWARD -s 10.0.0.1 -j NFQUEUE --queue-num 5\n-A FORWARD -j NFQUEUE --queue-bypass\n-A FORWARD -j DROP"
        )
    )
    p = packets([{"src": ip("10.0.0.1")}, {}])
    assert done("", p, "filter", "FORWARD", node)[0] == [0, 1]
    assert node.paths.texts[p.reason[0]] == "filter:FORWARD:rule:1 NFQUEUE: nobody listens on queue 5"


def test_tproxy_looks_for_a_transparent_socket() -> None:
    node = room(table("-A PREROUTING -p tcp -j TPROXY --on-port 99 --on-ip 10.0.0.1 --tproxy-mark 5/7", "mangle"))
    p = packets([{"mark": 9, "dport": 80}])
    assert done("", p, "mangle", "PREROUTING", node)[0] == [0]
    assert (
        node.paths.texts[p.reason[0]] == "mangle:PREROUTING:rule:1 TPROXY: no transparent socket on port 99 of 10.0.0.1"
    )
    for socket, takes in (
        (Socket(6, 0, 99, transparent=True), True),
        (Socket(6, 0, 99), False),
        (Socket(17, 0, 99, transparent=True), False),
        (Socket(6, ip("10.0.0.2"), 99, transparent=True), False),
    ):
        node.sockets = (socket,)
        p = packets([{"mark": 9}])
        assert done("", p, "mangle", "PREROUTING", node)[0] == [int(takes)]
        assert p.mark.tolist() == [(9 & ~7) ^ 5 if takes else 9]
