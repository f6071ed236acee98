"""The conntrack command: what it prints and refuses. Its statuses are compared with the real one in kernel/."""

from __future__ import annotations

import pytest
from craft import icmp, tcp, udp
from talk import node

from netemu import Node, Refused, Unsupported

A, B = "10.0.0.1", "10.0.0.2"


def run(n: Node, command: str) -> list[str]:
    return sorted(n.run(f"conntrack {command}").splitlines())


def some() -> Node:
    """A node with connections made by hand."""
    n = node()
    for words in (
        "-p udp --sport 1 --dport 2 -t 30",
        "-p udp --sport 3 --dport 2 -t 30 -n 5.5.5.5",
        "-p udp --sport 4 --dport 2 -t 30 -g 6.6.6.6:99",
        "-p udp --sport 6 --dport 2 -t 30 -r 10.0.0.2 -q 8.8.8.8 --reply-port-src 2 --reply-port-dst 77",
        "-p tcp --sport 8 --dport 2 -t 30 --state SYN_SENT -u SEEN_REPLY,ASSURED",
        "-p icmp --icmp-type 8 --icmp-code 0 --icmp-id 4 -t 30",
        "-p udp --sport 10 --dport 9 -t 5 -m 0x10",
        "-p udp --sport 12 --dport 9 -t 500000 -u SEEN_REPLY -w 7",
        "-p udp --sport 13 --dport 9 -t 50 --orig-zone 6",
        "-p 50 -t 30",
    ):
        assert n.run(f"conntrack -I -s {A} -d {B} {words}", at=0) == ""
    n.check()
    return n


ONE = "udp      17 30 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 mark=0 use=1"  # noqa: E501
SNAT = "udp      17 30 src=10.0.0.1 dst=10.0.0.2 sport=3 dport=2 [UNREPLIED] src=10.0.0.2 dst=5.5.5.5 sport=2 dport=3 mark=0 use=1"  # noqa: E501
DNAT = "udp      17 30 src=10.0.0.1 dst=10.0.0.2 sport=4 dport=2 [UNREPLIED] src=6.6.6.6 dst=10.0.0.1 sport=99 dport=4 mark=0 use=1"  # noqa: E501
MARKED = "udp      17 5 src=10.0.0.1 dst=10.0.0.2 sport=10 dport=9 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=9 dport=10 mark=16 use=1"  # noqa: E501
TCP = "tcp      6 30 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=8 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=8 [ASSURED] mark=0 use=1"  # noqa: E501
ECHO = "icmp     1 30 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=4 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=4 mark=0 use=1"  # noqa: E501
ZONED = "udp      17 500000 src=10.0.0.1 dst=10.0.0.2 sport=12 dport=9 src=10.0.0.2 dst=10.0.0.1 sport=9 dport=12 mark=0 zone=7 use=1"  # noqa: E501
HALF = "udp      17 50 src=10.0.0.1 dst=10.0.0.2 sport=13 dport=9 zone-orig=6 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=9 dport=13 mark=0 use=1"  # noqa: E501


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("-L -p udp -s 10.0.0.1 --sport 3", [SNAT]),
        ("-L -n", [SNAT]), ("-L -g", [DNAT]), ("-L -j", [SNAT, DNAT]), ("-L -n 5.5.5.5", [SNAT]), ("-L -n 5.5.5.6", []),
        ("-L -d 10.0.0.0/24 -m 16/16", [MARKED]), ("-L -m 0x10", [MARKED]), ("-L -p tcp --state SYN_SENT", [TCP]),
        ("-L -p tcp --state ESTABLISHED", []), ("-L -u ASSURED", [TCP]), ("-L -u SEEN_REPLY", [TCP, ZONED]),
        ("-L -w 7", [ZONED]), ("-L --orig-zone 6", [HALF]), ("-L --reply-zone 6", []), ("-L -f ipv6", []),
        ("-L -p icmp --icmp-type 8", [ECHO]), ("-L -r 7.7.7.7", []), ("-L dying", []), ("-L expect", []),
        ("-L conntrack --proto=udp --sport=1", [ONE]), ("-C", ["10"]), ("-C expect", ["0"]),
        ("-G -s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2", [ONE.replace("use=1", "use=2")]),
        ("-L -p udp --sport 1 -o extended", [f"ipv4     2 {ONE}"]),
    ],
)  # fmt: skip
def test_listings(words: str, lines: list[str]) -> None:
    assert run(some(), words) == sorted(lines)


def test_listings_that_can_be_loaded_again() -> None:
    n = some()
    saved = run(n, "-L -o save")
    assert (
        "-A -t 30 -u SEEN_REPLY,ASSURED -s 10.0.0.1 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.1 -p tcp --sport 8 --dport 2 "
        "--reply-port-src 2 --reply-port-dst 8 --state SYN_SENT"
    ) in saved
    again = node()
    for line in saved:
        again.run(f"conntrack {line}")
    assert sorted(again.dump("conntrack").splitlines()) == sorted(n.dump("conntrack").splitlines())
    assert len({line.split("id=")[1] for line in run(n, "-L -o id")}) == 10


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("-I -s 1.1.1.1 -d 2.2.2.2 -p udp --sport 9 -t 30", 2, "you have to specify `--sport' and `--dport'"),
        ("-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 9 --dport 9 -t 3", 2, "You need to supply the `--state' option"),
        ("-I -s 1.1.1.1 -d 2.2.2.2 -p udp --sport 9 --dport 9", 2, "You need to supply the `--timeout' option"),
        ("-I -s 1.1.1.1 -p udp --sport 9 --dport 9 -t 5", 2, "you have to specify `--src' and `--dst'"),
        ("-I -s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2 -t 5", 1, "Such conntrack exists, try -U to update"),
        ("-I -s 1.1.1.1 -d 2.2.2.2 -p gre -t 5", 2, "you have to specify `--srckey' and `--dstkey'"),
        ("-L -p foo", 2, "`foo' unsupported protocol"), ("-L -s bar", 2, "Invalid IP address `bar'"),
        ("-L -o foo", 2, "Bad parameter `foo'"), ("-L --dport 2", 2, "unknown option `--dport'"),
        ("-L foo", 2, "unknown type `foo'"), ("-L -s", 2, "option `-s' requires an argument"),
        ("-D -s 10.9.9.9", 1, "0 flow entries have been deleted."), ("-L -D", 2, "Invalid commands combination"),
        ("-U -s 10.9.9.9 -m 1", 1, "0 flow entries have been updated."), ("-D -z", 2, "Illegal option `--zero'"),
        ("-G -s 1.1.1.1", 2, "You need to supply the `--protonum' option"), ("-L -z -s 1.1.1.1", 2, "Can't use -z"),
        ("-G -s 1.1.1.1 -d 2.2.2.2 -p udp --sport 1 --dport 2", 1, "such conntrack doesn't exist"),
        ("-U -p udp -m 3", 1, "Operation not supported"), ("-L -o save,id", 1, "cannot combine save output"),
    ],
)  # fmt: skip
def test_refusals(words: str, status: int, says: str) -> None:
    with pytest.raises(Refused) as caught:
        run(some(), words)
    assert says in str(caught.value) and caught.value.status == status


@pytest.mark.parametrize("words", ["-E", "-S", "-R file", "-L -l web", "-L -o xml", "-D expect", "-U -s 1.1.1.1 -c x"])
def test_what_is_not_modelled_is_named(words: str) -> None:
    with pytest.raises(Unsupported, match="conntrack"):
        run(some(), words)


def test_changes() -> None:
    n = some()
    (line,) = run(n, "-U -s 10.0.0.1 -p udp --sport 10 -m 2/3 -t 99")
    assert " 99 " in line and " mark=18 " in line
    assert "[ASSURED]" in run(n, "-U -s 10.0.0.1 -p udp --sport 10 -u ASSURED,SEEN_REPLY")[0]
    assert "ESTABLISHED" in run(n, "-U -s 10.0.0.1 -p tcp --state ESTABLISHED")[0]
    assert len(run(n, "-D")) == 10
    assert run(n, "-L") == []
    n.check()


def test_packets_of_connections_that_were_made_by_hand() -> None:
    n = node("nat POSTROUTING -o eth0 -j MASQUERADE")
    n.run("conntrack -I -s 10.0.0.5 -d 192.0.2.7 -p tcp --sport 1 --dport 80 -t 9 --state ESTABLISHED -u SEEN_REPLY "
          "-n 198.51.100.77:99")  # fmt: skip
    journey = n.send(tcp("10.0.0.5", 1, "192.0.2.7", 80, "A", 5, 6), "eth1")
    assert journey.state == "ESTABLISHED"
    assert [(r.field, r.new) for r in journey.rewrites if "port" in r.field or "src" in r.field] == [
        ("src", "198.51.100.77"),
        ("sport", 99),
    ]
    assert n.send(udp("10.0.0.5", 1, "192.0.2.7", 53), "eth1").state == "NEW"
    n.run("conntrack -F")
    assert n.send(icmp("10.0.0.5", "192.0.2.7"), "eth1").state == "NEW"


def test_counters_and_times() -> None:
    n = node(sysctl={"net.netfilter.nf_conntrack_acct": 1, "net.netfilter.nf_conntrack_timestamp": 1})
    n.send(udp("10.0.0.5", 1, "192.0.2.7", 53), "eth1", at=1)
    assert "packets=1 bytes=36" in run(n, "-L")[0]
    assert "packets=1 bytes=36" in run(n, "-L -z")[0]
    n.advance(at=4)
    (line,) = run(n, "-L -o ktimestamp")
    assert "packets=0 bytes=0" in line and line.endswith("mark=0 delta-time=3 [start=Thu Jan  1 00:00:01 1970] use=1")
