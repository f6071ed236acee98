"""Timeout policies: what nfct makes and prints (seen on 6.18), and how long connections last by them.

What Linux did with packets is in kernel/clock/timeout-policies-*.case.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from craft import tcp, udp

from netemu.errors import Refused, Unsupported
from netemu.model import AddressSpec, LinkSpec, Model, node_toml, read_model
from netemu.node import Node


def router(kernel: str = "6.18") -> Node:
    return Node(Model(kernel, [LinkSpec("eth0", [AddressSpec("10.0.0.1/24")])]))


def test_what_is_not_said_is_what_the_sysctls_say() -> None:
    node = router()
    node.run("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_fin_wait=7")
    node.run("nfct add timeout t1 inet tcp established 100 CLOSE 5")
    node.run("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_fin_wait=8")
    node.run("nfct timeout add t2 inet udp unreplied 5")
    assert node.run("nfct get timeout t1") == (
        ".t1 = {\n\t.l3proto = 2,\n\t.l4proto = 6,\n\t.policy = {\n\t\t.SYN_SENT = 120,\n\t\t.SYN_RECV = 60,\n"
        "\t\t.ESTABLISHED = 100,\n\t\t.FIN_WAIT = 7,\n\t\t.CLOSE_WAIT = 60,\n\t\t.LAST_ACK = 30,\n"
        "\t\t.TIME_WAIT = 120,\n"
        "\t\t.CLOSE = 5,\n\t\t.SYN_SENT2 = 120,\n\t\t.RETRANS = 300,\n\t\t.UNACKNOWLEDGED = 300,\n\t},\n};\n"
    )
    assert node.run("nfct list timeout").endswith("\t\t.UNREPLIED = 5,\n\t\t.REPLIED = 120,\n\t},\n};\n")


@pytest.mark.parametrize(
    ("words", "says", "kind"),
    [
        ("add timeout t1 inet udp unreplied 1", "Device or resource busy", Refused),
        ("add timeout t2 inet tcp bogus 1", "Wrong state name: `bogus' for protocol `tcp'", Refused),
        ("add timeout t2 inet tcp close x", "not a number of seconds", Refused),
        ("add timeout t2 inet nope close 1", "unsupported protocol", Refused),
        ("add timeout t2 inet6 tcp close 1", "IPv6", Unsupported),
        ("add timeout t2 inet dccp open 1", "Operation not supported", Refused),
        ("delete timeout t2", "No such file or directory", Refused),
        ("delete timeout t1", "Device or resource busy", Refused),
        ("get timeout t2", "No such file or directory", Refused),
        ("add helper x", "nfct add helper", Unsupported),
        ("default-get timeout inet tcp", "nfct default-get timeout", Unsupported),
    ],
)
def test_refused(words: str, says: str, kind: type[Exception]) -> None:
    node = router()
    node.run("nfct add timeout t1 inet tcp close 1")
    node.run("iptables -t raw -A PREROUTING -p tcp -j CT --timeout t1")
    with pytest.raises(kind) as told:
        node.run(f"nfct {words}")
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("-p tcp -j CT --timeout none", "say it in node.toml: [[timeout]]"),
        ("-p udp -j CT --timeout t1", "can only be used by protocol tcp"),
        ("-p tcp -j CT --timeout any", "can only be used by protocol generic"),
        ("-j CT --timeout t1", "CT --timeout needs -p"),
    ],
)
def test_rules_that_are_refused(rule: str, says: str) -> None:
    node = router()
    node.run("nfct add timeout t1 inet tcp close 1")
    node.run("nfct add timeout any inet generic timeout 1")
    with pytest.raises((Refused, Unsupported)) as told:
        node.run(f"iptables -t raw -A PREROUTING {rule}")
    assert says in str(told.value)


def test_a_dump_shows_four_letters_of_a_name() -> None:
    node = router()
    node.run("nfct add timeout patience inet tcp established 9")
    node.run("iptables -t raw -A PREROUTING -p tcp -j CT --timeout patience")
    assert "-j CT --timeout pati\n" in node.dump("iptables-save")
    node.run("iptables-restore", text=node.dump("iptables-save"))
    node.run("nfct add timeout patient inet tcp established 8")
    with pytest.raises(Unsupported):  # which of the two?
        node.run("iptables -t raw -A OUTPUT -p tcp -j CT --timeout pati")


def test_a_connection_keeps_its_policy() -> None:
    node = router()
    node.run("nfct add timeout fast inet udp unreplied 2 replied 3")
    node.run("iptables -t raw -A PREROUTING -p udp --dport 53 -j CT --timeout fast")
    for port in (53, 54):
        node.send(udp("10.0.0.9", 4000, "10.0.0.1", port), "eth0", 1.0)
    assert [line.split()[4] for line in node.dump("conntrack").splitlines()] == ["2", "30"]
    node.run("iptables -t raw -F")
    node.run("iptables -A INPUT -m conntrack --ctstate NEW")
    node.send(udp("10.0.0.1", 53, "10.0.0.9", 4000), None, 2.0)
    node.send(udp("10.0.0.9", 4000, "10.0.0.1", 53), "eth0", 2.5)
    assert [line.split()[4] for line in node.dump("conntrack").splitlines()] == ["2", "28"]
    node.send(tcp("10.0.0.9", 4000, "10.0.0.1", 80), "eth0", 6.0)
    assert len(node.dump("conntrack").splitlines()) == 2


def test_policies_of_a_model(tmp_path: Path) -> None:
    text = '[[timeout]]\nname = "web"\nproto = "tcp"\nestablished = 100\n'
    text += '[[timeout]]\nname = "bad"\nproto = "tcp"\nnope = 1\n'
    text += '[[timeout]]\nname = "bad"\nproto = "nope"\n[[timeout]]\nname = "bad"\nproto = "udp"\nreplied = "1"\n'
    (tmp_path / "node.toml").write_text(text)
    problems: list[object] = []
    model = read_model(tmp_path, problems)  # type: ignore[arg-type]
    assert [(p.line, p.what.split(":")[0]) for p in problems] == [  # type: ignore[attr-defined]
        (6, "nfct"),
        (10, "a [[timeout]] needs `name` and `proto`"),
        (15, "replied must be a number of seconds, not text"),
    ]
    (tmp_path / "node.toml").write_text(node_toml(model))
    again = read_model(tmp_path, [])
    assert [str(spec.policy) for spec in again.policies] == ["web inet tcp established 100"]
