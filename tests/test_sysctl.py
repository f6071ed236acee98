"""Sysctls: how Linux was seen to combine, propagate and refuse them."""

from __future__ import annotations

import pytest

from netemu.errors import Refused, Unsupported
from netemu.sysctl import Sysctl, fault, read_sysctl_text


def test_defaults_are_linuxs_but_for_forwarding() -> None:
    s = Sysctl()
    assert s.int("net.ipv4.ip_forward") == 1
    assert s.int("net.netfilter.nf_conntrack_tcp_timeout_established") == 432000
    assert s.int("net.ipv4.vs.conntrack") == 0
    assert (s.link_int("lo", "rp_filter"), s.link_int("lo", "send_redirects")) == (0, 1)
    assert s.int("net.no.such") == 0
    assert s.get("net.no.such") is None


def test_either_spelling_of_a_name() -> None:
    s = Sysctl({"net/ipv4/conf/eth0.100/rp_filter": 1})
    s.add_link("eth0.100")
    assert s.link_int("eth0.100", "rp_filter") == 1
    assert s.int("net.ipv4.conf.eth0/100.rp_filter") == 1
    assert s.int("/proc/sys/net/ipv4/ip_forward") == 1


@pytest.mark.parametrize(
    ("knob", "all_links", "own", "counts"),
    [
        ("rp_filter", 1, 2, 2),
        ("rp_filter", 2, 0, 2),
        ("send_redirects", 1, 0, 1),
        ("send_redirects", 0, 0, 0),
        ("accept_local", 0, 1, 1),
        ("route_localnet", 1, 0, 1),
        ("accept_source_route", 0, 1, 0),
        ("forwarding", 1, 0, 0),
        ("tag", 5, 3, 3),
    ],
)
def test_all_and_own_combine(knob: str, all_links: int, own: int, counts: int) -> None:
    s = Sysctl({f"net.ipv4.conf.all.{knob}": all_links, f"net.ipv4.conf.e0.{knob}": own})
    s.add_link("e0")
    assert s.link_int("e0", knob) == counts


def test_ip_forward_writes_every_link_and_default_forwarding_none() -> None:
    s = Sysctl()
    s.add_link("e0")
    s.add_link("e1")
    s.set("net.ipv4.conf.e0.forwarding", 0)
    s.set("net.ipv4.conf.default.forwarding", 0)
    assert [s.link_int(n, "forwarding") for n in ("lo", "e0", "e1")] == [1, 0, 1]
    assert s.int("net.ipv4.conf.all.forwarding") == s.int("net.ipv4.ip_forward") == 1
    s.set("net.ipv4.conf.all.forwarding", 0)
    assert s.int("net.ipv4.ip_forward") == 0
    assert [s.link_int(n, "forwarding") for n in ("lo", "e0", "e1")] == [0, 0, 0]
    s.set("net.ipv4.ip_forward", 1)
    s.add_link("e2")
    assert [s.link_int(n, "forwarding") for n in ("lo", "e0", "e1", "e2")] == [1, 1, 1, 1]


def test_a_dump_is_a_state_whatever_the_order_of_its_lines() -> None:
    s = Sysctl({"net.ipv4.conf.e0.forwarding": 0, "net.ipv4.conf.default.rp_filter": 2, "net.ipv4.ip_forward": 1})
    s.add_link("e0")
    s.add_link("e1")
    assert (s.link_int("e0", "forwarding"), s.link_int("e1", "forwarding")) == (0, 1)
    assert s.link_int("e1", "rp_filter") == 2


def test_default_reaches_links_that_nobody_configured() -> None:
    s = Sysctl()
    for name in ("plain", "told", "addressed"):
        s.add_link(name)
    s.set("net.ipv4.conf.told.rp_filter", 0)
    s.pin("addressed")
    s.set("net.ipv4.conf.default.rp_filter", 2)
    assert [s.link_int(n, "rp_filter") for n in ("plain", "told", "addressed")] == [2, 0, 0]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("net.netfilter.nf_conntrack_tcp_loose", [0, 1], [2, -1, "x", ""]),
        ("net.netfilter.nf_conntrack_acct", [0, 1], [2]),
        ("net.netfilter.nf_conntrack_events", [0, 1, 2], [3]),
        ("net.netfilter.nf_conntrack_tcp_max_retrans", [0, 255, "0x10"], [256, -1]),
        ("net.netfilter.nf_conntrack_udp_timeout", [-1, 0, 2147483], [9000000, 2**31]),
        ("net.netfilter.nf_conntrack_max", [0, 2**31 - 1], [-1, 2**31]),
        ("net.ipv4.ip_default_ttl", [1, 255], [0, 256]),
        ("net.ipv4.ip_forward", [0, 7, -1], ["x", 99999999999]),
        ("net.ipv4.conf.all.rp_filter", [0, 9], ["strict"]),
        ("net.core.anything", ["whatever"], []),
    ],
)
def test_values_that_the_kernel_takes_and_refuses(name: str, good: list[int | str], bad: list[int | str]) -> None:
    assert [fault(name, v) for v in good] == [None] * len(good)
    assert all(fault(name, v) for v in bad)
    for value in bad:
        with pytest.raises(Refused) as e:
            Sysctl().set(name, value)
        assert e.value.status == 1


def test_what_is_not_modelled_is_named() -> None:
    with pytest.raises(Unsupported, match="bc_forwarding"):
        Sysctl({"net.ipv4.conf.e0.bc_forwarding": 1})


def test_the_command() -> None:
    s = Sysctl()
    s.add_link("e0")
    seen: list[str] = []
    s.on_change.append(seen.append)
    before = s.version
    assert s.run(["sysctl", "-w", "net.ipv4.vs.conntrack=1"]) == "net.ipv4.vs.conntrack = 1\n"
    assert s.run(["-q", "-w", "net.ipv4.conf.e0.rp_filter=1"]) == ""
    assert s.run(["-w", "net.ipv4.conf.e0.rp_filter", "=", "2"]) == "net.ipv4.conf.e0.rp_filter = 2\n"
    assert s.run(["-n", "net/ipv4/conf/e0/rp_filter"]) == "2\n"
    assert s.run(["net.ipv4.ip_forward"]) == "net.ipv4.ip_forward = 1\n"
    assert "net.ipv4.conf.e0.rp_filter = 2\n" in s.run(["-a"])
    assert seen == ["net.ipv4.vs.conntrack", "net.ipv4.conf.e0.rp_filter", "net.ipv4.conf.e0.rp_filter"]
    assert s.version > before
    for words in (["net.ipv4.bogus"], ["-w", "net.ipv4.conf.nope.rp_filter=1"], ["-w", "net.ipv4.ip_forward"]):
        with pytest.raises(Refused) as e:
            s.run(words)
        assert e.value.status == 1
    with pytest.raises(Unsupported):
        s.run(["-p"])


def test_unknown_names_are_kept() -> None:
    s = Sysctl({"kernel.hostname": "node-1", "net.core.somaxconn": 4096})
    assert (s.get("kernel.hostname"), s.int("net.core.somaxconn")) == ("node-1", 4096)


def test_reading_a_dump() -> None:
    text = "# note\n\nnet.ipv4.ip_forward = 1\n-net.ipv4.conf.eth0/100.rp_filter=2\nsysctl: permission denied\nhuh\n"
    assert [(line, name, value) for line, name, value, _ in read_sysctl_text(text.splitlines())] == [
        (3, "net.ipv4.ip_forward", "1"),
        (4, "net.ipv4.conf.eth0/100.rp_filter", "2"),
        (6, "", ""),
    ]
