"""Routing against what real kernels were seen to do, and, where there is a kernel to ask, against that kernel."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netemu import routing as R
from netemu.errors import Refused, Unsupported
from netemu.routing import Routing, format_ip, parse_ip
from netemu.sysctl import Sysctl


def router(**sysctls: int) -> Routing:
    """e0 10.0.0.1/24, e1 192.168.7.1/24, e2 without an address; default via 10.0.0.254."""
    r = Routing(Sysctl({f"net.ipv4.conf.all.{k}": v for k, v in sysctls.items()}))
    r.add_link("e0", ["10.0.0.1/24"])
    r.add_link("e1", ["192.168.7.1/24"])
    r.add_link("e2")
    r.add_route("default via 10.0.0.254")
    return r


def came(r: Routing, src: str, dst: str, link: str = "e0", mark: int = 0, tos: int = 0) -> tuple[int, str, str]:
    """(kind, link, next hop) of one packet that came in."""
    one = [np.array([parse_ip(x)], np.uint32) for x in (src, dst)]
    at = np.array([r.index(link)], np.int16)
    way = r.input(*one, at, np.array([mark], np.uint32), np.array([tos], np.uint8))
    k = int(way.link[0])
    return int(way.kind[0]), r.names[k] if k >= 0 else "", format_ip(int(way.nexthop[0]))


def sent(
    r: Routing, dst: str, src: str = "0.0.0.0", mark: int = 0, tos: int = 0, oif: str = ""
) -> tuple[int, str, str]:
    """(kind, link, preferred source) of one packet that the node sends."""
    one = [np.array([parse_ip(x)], np.uint32) for x in (dst, src)]
    out = r.index(oif) if oif else None
    way = r.output(*one, np.array([mark], np.uint32), np.array([tos], np.uint8), out)
    k = int(way.link[0])
    return int(way.kind[0]), r.names[k] if k >= 0 else "", format_ip(int(way.source[0]))


def run(r: Routing, text: str) -> str:
    return r.run(text.split())


def refused(r: Routing, text: str) -> tuple[str, int]:
    with pytest.raises(Refused) as e:
        run(r, text)
    return e.value.problems[0].what, e.value.status


# ---- input: the order of the checks (seen on 6.18 with `ip route get DST from SRC iif DEV`) ------------------------


@pytest.mark.parametrize(
    ("src", "dst", "kind"),
    [
        ("10.0.0.5", "192.168.7.5", R.UNICAST),
        ("224.0.0.1", "192.168.7.5", R.MARTIAN_SOURCE),
        ("255.255.255.255", "192.168.7.5", R.MARTIAN_SOURCE),
        ("10.0.0.5", "255.255.255.255", R.BROADCAST),
        ("0.0.0.0", "255.255.255.255", R.BROADCAST),
        ("0.0.0.0", "192.168.7.5", R.MARTIAN_SOURCE),
        ("10.0.0.5", "0.0.0.0", R.MARTIAN_DESTINATION),
        ("10.0.0.5", "127.0.0.1", R.MARTIAN_DESTINATION),
        ("127.0.0.1", "10.0.0.1", R.MARTIAN_SOURCE),
        ("10.0.0.5", "0.0.0.1", R.UNICAST),  # 0/8 is ordinary, but for 0.0.0.0 itself
        ("0.0.0.1", "8.8.8.8", R.UNICAST),
        ("10.0.0.5", "240.0.0.1", R.UNICAST),
        ("10.0.0.5", "10.0.0.255", R.BROADCAST),
        ("10.0.0.5", "192.168.7.255", R.BROADCAST),  # another link's broadcast too
        ("10.0.0.5", "10.0.0.0", R.UNICAST),  # the lowest address is no broadcast any more
        ("10.0.0.5", "10.0.0.1", R.LOCAL),
        ("10.0.0.5", "192.168.7.1", R.LOCAL),
        ("10.0.0.1", "8.8.8.8", R.MARTIAN_SOURCE),
        ("10.0.0.1", "10.0.0.1", R.MARTIAN_SOURCE),
        ("192.168.7.1", "8.8.8.8", R.MARTIAN_SOURCE),
        ("10.0.0.5", "224.0.0.1", R.MULTICAST),
        ("10.0.0.5", "224.0.0.9", R.NOT_JOINED),
        ("10.0.0.5", "239.1.1.1", R.NOT_JOINED),
    ],
)
def test_what_comes_in(src: str, dst: str, kind: int) -> None:
    assert came(router(), src, dst)[0] == kind


def test_a_broadcast_address_as_source_is_only_noticed_by_a_full_check() -> None:
    r = router()
    assert came(r, "192.168.7.255", "10.0.0.9", "e1")[0] == R.UNICAST
    r.sysctl.set("net.ipv4.conf.all.rp_filter", 2)
    assert came(r, "192.168.7.255", "10.0.0.9", "e1")[0] == R.MARTIAN_SOURCE


def test_route_localnet_lets_loopback_addresses_in() -> None:
    r = router()
    r.sysctl.set("net.ipv4.conf.e0.route_localnet", 1)
    assert came(r, "10.0.0.5", "127.0.0.1")[0] == R.LOCAL
    assert came(r, "192.168.7.5", "127.0.0.1", "e1")[0] == R.MARTIAN_DESTINATION


def test_accept_local_takes_packets_from_the_nodes_own_addresses() -> None:
    assert came(router(accept_local=1), "10.0.0.1", "8.8.8.8")[0] == R.UNICAST


def test_forwarding_is_asked_of_the_input_link() -> None:
    r = router()
    r.sysctl.set("net.ipv4.conf.e0.forwarding", 0)
    assert came(r, "10.0.0.5", "192.168.7.9")[0] == R.NOT_FORWARDING
    assert came(r, "192.168.7.9", "10.0.0.5", "e1")[0] == R.UNICAST
    assert came(r, "10.0.0.5", "10.0.0.1")[0] == R.LOCAL
    r.sysctl.set("net.ipv4.ip_forward", 0)
    run(r, "ip route del default")
    assert came(r, "192.168.7.9", "8.8.8.8", "e1")[0] == R.NOT_FORWARDING


def test_reverse_path_filter() -> None:
    r = router()
    r.sysctl.set("net.ipv4.conf.e0.rp_filter", 1)
    assert came(r, "192.168.7.3", "192.168.7.9")[0] == R.REVERSE_PATH
    assert came(r, "10.0.0.5", "192.168.7.9")[0] == R.UNICAST
    assert came(r, "8.8.8.8", "10.0.0.1")[0] == R.LOCAL  # the default route leaves by e0
    r.sysctl.set("net.ipv4.conf.all.rp_filter", 2)  # the larger counts: loose
    assert came(r, "192.168.7.3", "192.168.7.9")[0] == R.UNICAST
    run(r, "ip route del default")
    assert came(r, "8.8.8.8", "10.0.0.1")[0] == R.REVERSE_PATH
    assert came(r, "10.0.0.5", "10.0.0.1", "e2")[0] == R.REVERSE_PATH  # e2 has no address


def test_no_route_and_the_kinds_of_routes_that_say_no() -> None:
    r = router()
    for words in ("unreachable 7.7.0.0/16", "prohibit 7.8.0.0/16", "blackhole 7.9.0.0/16", "throw 7.6.0.0/16"):
        r.add_route(words)
    kinds = [came(r, "10.0.0.5", f"7.{n}.0.1")[0] for n in (7, 8, 9, 6)]
    assert kinds == [R.UNREACHABLE, R.PROHIBIT, R.BLACKHOLE, R.NO_ROUTE]
    assert all(k in R.REASONS for k in kinds)


def test_an_icmp_redirect_is_due_when_the_way_leads_back_to_a_neighbours_link() -> None:
    r = router()
    one = [np.array([parse_ip(x)], np.uint32) for x in ("10.0.0.5", "8.8.8.8")]
    rest = np.array([1], np.int16), np.zeros(1, np.uint32), np.zeros(1, np.uint8)
    assert r.input(*one, *rest).redirect.tolist() == [True]
    for link in ("all", "e0"):  # without shared media only where the gateway is a neighbour of the sender
        r.sysctl.set(f"net.ipv4.conf.{link}.shared_media", 0)
    assert r.input(*one, *rest).redirect.tolist() == [True]
    run(r, "ip route replace default via 99.9.9.9 dev e0 onlink")
    assert r.input(*one, *rest).redirect.tolist() == [False]
    r = router()
    r.sysctl.set("net.ipv4.conf.all.send_redirects", 0)
    r.sysctl.set("net.ipv4.conf.e0.send_redirects", 0)
    assert r.input(*one, *rest).redirect.tolist() == [False]


# ---- output ----------------------------------------------------------------------------------------------------


def test_what_the_node_sends() -> None:
    r = router()
    assert sent(r, "8.8.8.8") == (R.UNICAST, "e0", "10.0.0.1")
    assert sent(r, "192.168.7.9") == (R.UNICAST, "e1", "192.168.7.1")
    assert sent(r, "10.0.0.1") == (R.LOCAL, "lo", "10.0.0.1")
    assert sent(r, "127.3.4.5") == (R.LOCAL, "lo", "127.0.0.1")
    assert sent(r, "10.0.0.255") == (R.BROADCAST, "e0", "10.0.0.1")
    assert sent(r, "255.255.255.255") == (R.BROADCAST, "e0", "10.0.0.1")
    assert sent(r, "224.0.0.1") == (R.MULTICAST, "e0", "10.0.0.1")
    assert sent(r, "224.0.0.1", "192.168.7.1")[:2] == (R.MULTICAST, "e1")
    assert sent(r, "0.0.0.0") == (R.LOCAL, "lo", "127.0.0.1")
    assert sent(r, "8.8.8.8", "127.0.0.1")[0] == R.BAD_SOURCE
    assert sent(r, "8.8.8.8", oif="e1") == (R.UNICAST, "e1", "192.168.7.1")  # nothing leads there: so it is on the link
    run(r, "ip route del default")
    assert sent(r, "8.8.8.8")[0] == R.NO_ROUTE


def test_a_routes_own_source_wins() -> None:
    r = router()
    run(r, "ip route add 8.0.0.0/8 via 10.0.0.9 src 192.168.7.1")
    assert sent(r, "8.8.8.8") == (R.UNICAST, "e0", "192.168.7.1")


def test_mtu_is_the_routes_else_the_links() -> None:
    r = router()
    run(r, "ip route add 8.0.0.0/8 via 10.0.0.9 mtu 1400")
    zero = np.zeros(2, np.uint32)
    way = r.output(np.array([parse_ip("8.8.8.8"), parse_ip("9.9.9.9")], np.uint32), zero, zero, zero.astype(np.uint8))
    assert way.mtu.tolist() == [1400, 1500]
    run(r, "ip link set e0 mtu 9000")
    assert r.output(way.nexthop, zero, zero, zero.astype(np.uint8)).mtu.tolist() == [9000, 9000]


# ---- one trie, until somebody touches the rules (6.18) ---------------------------------------------------------------


def test_local_and_main_are_one_trie_until_a_rule_is_made() -> None:
    r = router()
    for words in (
        "local 9.9.0.0/16 dev lo",
        "9.9.9.0/24 via 10.0.0.7",
        "unreachable 9.9.8.0/24",
        "127.1.0.0/16 dev e1",
    ):
        r.add_route(words)
    assert came(r, "10.0.0.5", "9.9.1.1")[0] == R.LOCAL
    assert came(r, "10.0.0.5", "9.9.9.9") == (R.UNICAST, "e0", "10.0.0.7")
    assert came(r, "10.0.0.5", "9.9.8.8")[0] == R.UNREACHABLE
    assert sent(r, "127.1.0.1")[1] == "e1"
    run(r, "ip rule add pref 100 fwmark 99 lookup 99")
    assert came(r, "10.0.0.5", "9.9.9.9")[0] == R.LOCAL
    assert came(r, "10.0.0.5", "9.9.8.8")[0] == R.LOCAL
    run(r, "ip rule del pref 100")
    assert came(r, "10.0.0.5", "9.9.9.9")[0] == R.LOCAL  # for good


# ---- rules -----------------------------------------------------------------------------------------------------


def test_rules_in_the_words_of_ip() -> None:
    r = router()
    run(r, "ip rule add fwmark 1 lookup 100")
    run(r, "ip rule add from 10.0.0.0/24 lookup 101")
    run(r, "ip rule add pref 50 to 5.0.0.0/8 unreachable")
    run(r, "ip rule add pref 60 iif nope lookup 7")
    run(r, "ip rule add not fwmark 0x5/0xf iif e0 tos 0x10 lookup main suppress_prefixlength 0")
    assert run(r, "ip rule").splitlines() == [
        "0:\tfrom all lookup local",
        "49:\tnot from all tos 0x10 fwmark 0x5/0xf iif e0 lookup main suppress_prefixlength 0",
        "50:\tfrom all to 5.0.0.0/8 unreachable",
        "60:\tfrom all iif nope lookup 7",
        "32764:\tfrom 10.0.0.0/24 lookup 101",
        "32765:\tfrom all fwmark 0x1 lookup 100",
        "32766:\tfrom all lookup main",
        "32767:\tfrom all lookup default",
    ]
    assert refused(r, "ip rule del pref 99") == ("RTNETLINK answers: No such file or directory", 2)
    assert refused(r, "ip rule add tos 3 lookup 5") == ("Invalid dsfield (tos): ECN bits must be 0.", 2)
    run(r, "ip rule del lookup 101")
    assert "101" not in run(r, "ip rule")


def test_policy_routing_by_mark_source_and_device() -> None:
    r = router()
    r.add_route("default via 192.168.7.254 table 100")
    r.add_route("8.8.8.8 via 192.168.7.253 table 100")
    run(r, "ip rule add pref 10 fwmark 0x1/0x1 lookup 100")
    run(r, "ip rule add pref 11 from 10.0.0.77 iif e0 prohibit")
    run(r, "ip rule add pref 12 to 9.9.9.9 unreachable")
    run(r, "ip rule add pref 13 iif lo to 9.9.9.8 blackhole")
    assert came(r, "10.0.0.5", "8.8.8.8", mark=3) == (R.UNICAST, "e1", "192.168.7.253")
    assert came(r, "10.0.0.5", "8.8.4.4", mark=3) == (R.UNICAST, "e1", "192.168.7.254")
    assert came(r, "10.0.0.5", "8.8.4.4", mark=2) == (R.UNICAST, "e0", "10.0.0.254")
    assert came(r, "10.0.0.77", "8.8.4.4")[0] == R.PROHIBIT
    assert came(r, "10.0.0.5", "9.9.9.9")[0] == R.NO_ROUTE  # a rule's unreachable is "network unreachable"
    assert sent(r, "9.9.9.8")[0] == R.BLACKHOLE
    assert came(r, "10.0.0.5", "9.9.9.8")[0] == R.UNICAST


def test_suppressed_default_route_goes_on_to_the_next_rule() -> None:
    r = router()
    r.add_route("default dev e1 table 51820")
    run(r, "ip rule add pref 100 not fwmark 0xca6c lookup 51820")
    run(r, "ip rule add pref 99 lookup main suppress_prefixlength 0")
    assert sent(r, "8.8.8.8")[1] == "e1"
    assert sent(r, "10.0.0.9")[1] == "e0"
    assert sent(r, "8.8.8.8", mark=0xCA6C)[1] == "e0"


def test_tos_routes_and_rules_look_at_three_bits() -> None:
    r = router()
    r.add_route("8.0.0.0/8 tos 0x10 via 192.168.7.254")
    assert sent(r, "8.8.8.8", tos=0x10)[1] == "e1"
    assert sent(r, "8.8.8.8", tos=0xF1)[1] == "e1"
    assert sent(r, "8.8.8.8", tos=0x08)[1] == "e0"


def test_metric_and_age_decide_among_equal_prefixes() -> None:
    r = router()
    r.add_route("8.0.0.0/8 via 10.0.0.2 metric 20")
    r.add_route("8.0.0.0/8 via 192.168.7.2 metric 10")
    assert sent(r, "8.8.8.8")[1] == "e1"
    r.add_route("8.0.0.0/8 via 10.0.0.3")
    assert sent(r, "8.8.8.8")[1] == "e0"


# ---- routes as `ip route` makes them (messages and statuses of iproute2 6.1 on 6.18) ---------------------------------


@pytest.mark.parametrize(
    ("words", "what", "status"),
    [
        ("8.0.0.0/8 via 11.0.0.1 table 254", "RTNETLINK", 0),  # the default route does not lead to gateways
        ("8.0.0.0/8 via 10.0.0.2 dev e1", "Nexthop has invalid gateway.", 2),
        ("8.0.0.1/8 via 10.0.0.2", "Invalid prefix for given prefix length.", 2),
        ("8.0.0.0/8 via 10.0.0.2 src 5.5.5.5", "Invalid prefsrc address.", 2),
        ("9.1.0.0/16 via 10.0.0.255", "Nexthop has invalid gateway.", 2),
        ("9.1.0.0/16 dev nope", 'Cannot find device "nope"', 1),
        ("9.0.0.0/8", "RTNETLINK answers: No such device", 2),
        ("blackhole 9.4.0.0/16 dev e0", "Gateway, device and multipath can not be specified for this route type.", 2),
        ("9.5.0.0/16 via 10.0.0.9 scope link", "Nexthop has invalid gateway.", 2),
        ("local 9.6.0.0/16 dev e0 scope link", "Invalid scope.", 2),
        ("default via 10.0.0.9", "RTNETLINK answers: File exists", 2),
    ],
)
def test_routes_that_linux_refuses(words: str, what: str, status: int) -> None:
    if status:
        assert refused(router(), f"ip route add {words}") == (what, status)
    else:
        assert refused(router(), f"ip route add {words}") == ("Nexthop has invalid gateway.", 2)


def test_routes_append_prepend_replace_delete() -> None:
    r = router()
    for verb, gateway in (("add", 1), ("append", 3), ("prepend", 4), ("replace", 5)):
        run(r, f"ip route {verb} 8.0.0.0/8 via 10.0.0.{gateway}")
    run(r, "ip route add 8.0.0.0/8 via 10.0.0.2 metric 5")
    shown = [line for line in run(r, "ip route").splitlines() if line.startswith("8.")]
    assert [line.split()[2][-1] for line in shown] == ["5", "1", "3", "2"]
    assert refused(r, "ip route del 8.0.0.0/8 via 10.0.0.99") == ("RTNETLINK answers: No such process", 2)
    run(r, "ip route del 8.0.0.0/8 metric 5")
    run(r, "ip route del 8.0.0.0/8")
    shown = [line for line in run(r, "ip route").splitlines() if line.startswith("8.")]
    assert shown == ["8.0.0.0/8 via 10.0.0.1 dev e0 ", "8.0.0.0/8 via 10.0.0.3 dev e0 "]


def test_a_gateway_may_lie_behind_an_on_link_route_and_onlink_asks_nothing() -> None:
    r = router()
    run(r, "ip route add 169.254.1.1 dev e2")
    run(r, "ip route add 8.0.0.0/8 via 169.254.1.1 dev e2")
    run(r, "ip route add 9.0.0.0/8 via 99.9.9.9 dev e2 onlink")
    assert came(r, "10.0.0.5", "8.1.1.1") == (R.UNICAST, "e2", "169.254.1.1")
    assert came(r, "10.0.0.5", "9.1.1.1") == (R.UNICAST, "e2", "99.9.9.9")


@pytest.mark.parametrize(
    "words",
    [
        "ip route add 8.0.0.0/8 nexthop via 10.0.0.2 encap mpls 100 nexthop via 10.0.0.3",
        "ip route add 8.0.0.0/8 nhid 7",
        "ip route add multicast 239.0.0.0/8 dev e0",
        "ip route add 8.0.0.0/8 via inet6 fe80::1 dev e0",
        "ip route add 8.0.0.0/8 encap mpls 100 via 10.0.0.2",
        "ip rule add l3mdev",
        "ip rule add uidrange 0-0 lookup 7",
        "ip rule add ipproto tcp lookup 7",
        "ip neigh",
        "ip -6 route",
    ],
)
def test_what_is_not_modelled_is_named(words: str) -> None:
    with pytest.raises(Unsupported) as e:
        run(router(), words)
    assert any(
        w in str(e.value)
        for w in ("nexthop", "nhid", "multicast", "IPv", "encap", "l3mdev", "uidrange", "ipproto", "neigh")
    )


# ---- routes of several ways (seen on 6.18) ---------------------------------------------------------------------------


def forked(kernel: str = "6.18") -> Routing:
    """A default route of three ways, and a seed that the kernel was given too."""
    sysctl = Sysctl({"net.ipv4.fib_multipath_hash_seed": 12345})
    r = Routing(sysctl)
    r.kernel = kernel
    for k, name in enumerate(("lan", "eth1", "eth2", "eth3")):
        r.add_link(name, [f"10.0.{k}.1/24"])
    run(r, "ip route add default nexthop via 10.0.1.254 dev eth1 weight 2 nexthop via 10.0.2.254 nexthop dev eth3")
    return r


def ways(r: Routing, words: str) -> str:
    """By which link 24 flows go, as digits."""
    return "".join(
        run(r, f"ip route get 8.8.{k}.8 {words.format(k + 1)}").partition("dev eth")[2][0] for k in range(1, 25)
    )


@pytest.mark.parametrize(
    ("words", "kernel", "went"),
    [
        ("from 10.0.0.{} iif lan", "6.18", "231121132113132222211213"),
        ("from 10.0.0.1", "6.18", "121132133323211211132113"),
        ("from 10.0.2.1", "6.18", "222222222222222222222222"),
        ("", "6.18", "213313121133312231213113"),
    ],
)
def test_flows_are_spread_over_the_ways(words: str, kernel: str, went: str) -> None:
    assert ways(forked(kernel), words) == went


def test_both_directions_of_a_flow_go_the_same_way() -> None:
    r = forked()
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 1 << 32, 500).astype(np.uint32) for _ in range(2))
    c, d = (rng.integers(0, 1 << 16, 500).astype(np.uint16) for _ in range(2))
    for policy in (0, 1):
        r.sysctl.set("net.ipv4.fib_multipath_hash_policy", policy)
        there, back = r.flow(a, b, 6, c, d), r.flow(b, a, 6, d, c)
        assert (there == back).all() and (there < 1 << 31).all()
        assert (r.flow(a, b, 6, c, d + np.uint16(1)) != there).any() == bool(policy)
        one = [int(r.flow(a[k : k + 1], b[k : k + 1], 6, c[k : k + 1], d[k : k + 1])[0]) for k in range(50)]
        assert one == there[:50].tolist()
    r.sysctl.set("net.ipv4.fib_multipath_hash_policy", 3)
    assert (r.flow(a, b, 6, c, d) == r.flow(a, b, 6, d, c)).all()
    assert (r.flow(a, b, 6) != r.flow(a, b, 17)).any()


def test_shares_follow_the_weights() -> None:
    r = forked()
    n = 40_000
    src, dst = (
        np.full(n, parse_ip("10.0.0.9"), np.uint32),
        np.arange(n, dtype=np.uint32) + np.uint32(parse_ip("9.0.0.0")),
    )
    zero = np.zeros(n, np.uint32)
    way = r.input(src, dst, np.full(n, r.index("lan"), np.int16), zero, np.zeros(n, np.uint8))
    shares = [(way.link == r.index(name)).mean() for name in ("eth1", "eth2", "eth3")]
    assert np.allclose(shares, (0.5, 0.25, 0.25), atol=0.02)
    assert set(way.nexthop[way.link == r.index("eth2")].tolist()) == {parse_ip("10.0.2.254")}


def test_ways_die_and_come_back() -> None:
    r = forked()
    whole = run(r, "ip route show default")
    assert whole == (
        "default \n\tnexthop via 10.0.1.254 dev eth1 weight 2 \n\tnexthop via 10.0.2.254 dev eth2 weight 1 "
        "\n\tnexthop dev eth3 weight 1 \n"
    )
    run(r, "ip link set eth2 down")
    assert "dev eth2 weight 1 dead linkdown \n" in run(r, "ip route show default")
    assert "2" not in ways(r, "from 10.0.0.{} iif lan")
    run(r, "ip link set eth2 up")
    assert run(r, "ip route show default") == whole
    run(r, "ip addr del 10.0.3.1/24 dev eth3")
    assert "3" not in ways(r, "from 10.0.0.{} iif lan")
    run(r, "ip addr add 10.0.3.1/24 dev eth3")
    assert run(r, "ip route show default") == whole
    for name in ("eth1", "eth2"):
        run(r, f"ip link set {name} down")
    assert ways(r, "from 10.0.0.{} iif lan") == "3" * 24
    run(r, "ip link set eth3 down")
    assert run(r, "ip route show default") == ""  # without any way the route goes
    r = forked()
    run(r, "ip link del eth3")
    assert run(r, "ip route show default") == ""


@pytest.mark.parametrize(
    ("words", "says", "status"),
    [
        ("default nexthop via 10.0.1.254 weight 0", 'argument "0" is wrong: "weight" is invalid', 255),
        ("default nexthop via 10.0.1.254 weight 257", 'argument "257" is wrong: "weight" value is invalid', 255),
        ("default nexthop via 10.9.1.254 nexthop dev eth1", "Nexthop has invalid gateway.", 2),
        ("default nexthop via 10.0.1.254 bogus", '"nexthop" or end of line is expected', 255),
        ("blackhole 9.0.0.0/8 nexthop via 10.0.1.254 nexthop dev eth1",
         "Gateway, device and multipath can not be specified for this route type.", 2),
        ("default nexthop via 10.0.1.254 dev eth1 weight 2 nexthop via 10.0.2.254 nexthop dev eth3",
         "RTNETLINK answers: File exists", 2),
    ],
)  # fmt: skip
def test_ways_that_are_refused(words: str, says: str, status: int) -> None:
    assert refused(forked(), f"ip route add {words}") == (says, status)


def test_routes_of_several_ways_are_found_again() -> None:
    r = forked()
    run(r, "ip route add 9.0.0.0/8 nexthop via 10.0.1.9 nexthop via 10.0.2.9")
    run(r, "ip route add 9.9.0.0/16 nexthop via 10.0.1.9")  # one way: a plain route
    assert run(r, "ip route show 9.9.0.0/16") == "9.9.0.0/16 via 10.0.1.9 dev eth1 \n"
    assert refused(r, "ip route del 9.0.0.0/8 nexthop via 10.0.1.9 nexthop via 10.0.2.8")[1] == 2
    run(r, "ip route replace 9.0.0.0/8 nexthop via 10.0.1.9 nexthop dev eth3 weight 3")
    assert "nexthop dev eth3 weight 3" in run(r, "ip route show dev eth3")
    run(r, "ip route del 9.0.0.0/8 nexthop via 10.0.1.9 nexthop dev eth3 weight 3")
    assert run(r, "ip route show 9.0.0.0/8") == ""


# ---- links and addresses come and go (seen on 6.18) -----------------------------------------------------------------


def test_addresses_make_routes() -> None:
    r = Routing(Sysctl())
    r.add_link("e2", ["172.16.0.1/32", "172.17.0.0/31"])
    run(r, "ip addr add 172.18.0.1/30 brd + dev e2")
    run(r, "ip addr add 172.19.0.1 peer 172.19.5.0/24 dev e2")
    run(r, "ip addr add 10.6.0.1/24 dev e2 noprefixroute")
    run(r, "ip addr add 10.7.0.1/24 dev e2 metric 50")
    run(r, "ip addr add 10.8.0.1/24 brd 10.8.0.200 dev e2")
    assert run(r, "ip route").splitlines() == [
        "10.7.0.0/24 dev e2 proto kernel scope link src 10.7.0.1 metric 50 ",
        "10.8.0.0/24 dev e2 proto kernel scope link src 10.8.0.1 ",
        "172.19.5.0/24 dev e2 proto kernel scope link src 172.19.0.1 ",
        "172.18.0.0/30 dev e2 proto kernel scope link src 172.18.0.1 ",
        "172.17.0.0/31 dev e2 proto kernel scope link src 172.17.0.0 ",
    ]
    brd = ["10.6.0.255", "10.7.0.255", "10.8.0.200", "10.8.0.255", "127.255.255.255", "172.18.0.3", "172.19.5.255"]
    assert [line.split()[1] for line in r.show_routes(["table", "local", "type", "broadcast"]).splitlines()] == brd
    types = r.addr_type(
        np.array([parse_ip(x) for x in ("172.19.0.1", "172.19.5.1", "10.8.0.200", "127.9.9.9")], np.uint32)
    )
    assert types.tolist() == [R.LOCAL, R.UNICAST, R.BROADCAST, R.LOCAL]


def test_secondaries() -> None:
    r = Routing(Sysctl())
    r.add_link("e0", ["10.0.0.1/24", "10.0.0.2/24", "10.9.0.3/24", "10.0.0.9/32", "10.0.0.10/24"])
    held = [(format_ip(a.ip), a.secondary) for a in r.links[1].addresses]
    assert held == [
        ("10.0.0.1", False), ("10.9.0.3", False), ("10.0.0.9", False), ("10.0.0.2", True), ("10.0.0.10", True),
    ]  # fmt: skip
    assert format_ip(r.source_for(parse_ip("10.0.0.2"))) == "10.0.0.1"
    assert r.first_address(1) == parse_ip("10.0.0.1")
    gone: list[str] = []
    r.on_address_removed.append(lambda link, ip: gone.append(f"{r.names[link]} {format_ip(ip)}"))
    run(r, "ip addr del 10.0.0.1/24 dev e0")
    assert [format_ip(a.ip) for a in r.links[1].addresses] == ["10.9.0.3", "10.0.0.9"]
    assert gone == ["e0 10.0.0.2", "e0 10.0.0.10", "e0 10.0.0.1"]
    assert refused(r, "ip addr del 10.0.0.1/24 dev e0") == ("ipv4: Address not found.", 2)
    assert refused(r, "ip addr add 10.9.0.3/24 dev e0") == ("ipv4: Address already assigned.", 2)
    assert refused(r, "ip addr add 10.0.0.1/33 dev e0") == (
        'any valid prefix is expected rather than "10.0.0.1/33".',
        1,
    )


def test_promoted_secondaries_and_routes_that_name_a_lost_source() -> None:
    r = Routing(Sysctl({"net.ipv4.conf.e0.promote_secondaries": 1}))
    r.add_link("e0", ["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "10.9.0.3/24"])
    r.add_link("e1", ["10.0.0.4/32"])
    r.add_route("8.0.0.0/8 via 10.0.0.254")
    r.add_route("8.1.0.0/16 via 10.0.0.254 src 10.0.0.2")
    r.add_route("8.2.0.0/16 via 10.9.0.254 src 10.0.0.1")
    r.add_route("8.3.0.0/16 dev e1 src 10.0.0.1")
    r.add_route("local 7.7.7.7 dev e0")
    run(r, "ip addr del 10.0.0.1/24 dev e0")
    assert [(format_ip(a.ip), a.secondary) for a in r.links[1].addresses] == [
        ("10.9.0.3", False), ("10.0.0.2", False), ("10.0.0.3", True),
    ]  # fmt: skip
    assert run(r, "ip route").splitlines() == [
        "8.0.0.0/8 via 10.0.0.254 dev e0 ",
        "8.1.0.0/16 via 10.0.0.254 dev e0 src 10.0.0.2 ",
        "10.0.0.0/24 dev e0 proto kernel scope link src 10.0.0.2 ",
        "10.9.0.0/24 dev e0 proto kernel scope link src 10.9.0.3 ",
    ]
    assert "local 10.0.0.3 dev e0 table local proto kernel scope host src 10.0.0.2 " in r.show_routes(["table", "all"])
    r.sysctl.set("net.ipv4.conf.e0.promote_secondaries", 0)
    run(r, "ip addr del 10.0.0.2/24 dev e0")
    assert run(r, "ip route").splitlines()[0] == "8.0.0.0/8 via 10.0.0.254 dev e0 "
    assert "7.7.7.7" in r.show_routes(["table", "local"])
    run(r, "ip addr del 10.9.0.3/24 dev e0")  # the last one: nothing of the link is left
    assert run(r, "ip route") == ""
    assert "e0" not in r.show_routes(["table", "all"])


def test_link_down_takes_all_routes_but_the_local_ones_and_up_brings_back_connected_ones_only() -> None:
    r = router()
    r.add_link("e3", ["10.0.0.1/24"])
    for words in ("5.5.0.0/16 dev e0 scope link", "local 9.9.8.0/24 dev e0", "blackhole 6.6.0.0/16"):
        r.add_route(words)
    down: list[int] = []
    r.on_link_down.append(down.append)
    run(r, "ip link set e0 down")
    assert down == [1]
    left = r.show_routes(["table", "all", "dev", "e0"]).splitlines()
    assert [line.split()[:2] for line in left] == [["local", "9.9.8.0/24"], ["local", "10.0.0.1"]]
    assert came(r, "192.168.7.5", "10.0.0.1", "e1")[0] == R.LOCAL
    assert came(r, "192.168.7.5", "8.8.8.8", "e1")[0] == R.NO_ROUTE
    run(r, "ip link set e0 up")
    assert run(r, "ip route").splitlines() == [
        "blackhole 6.6.0.0/16 ",
        "10.0.0.0/24 dev e3 proto kernel scope link src 10.0.0.1 ",  # now the older one
        "10.0.0.0/24 dev e0 proto kernel scope link src 10.0.0.1 ",
        "192.168.7.0/24 dev e1 proto kernel scope link src 192.168.7.1 ",
    ]
    assert refused(r, "ip link set nope up") == ('Cannot find device "nope"', 1)
    assert refused(r, "ip link set e0 mtu 10") == ("mtu less than device minimum.", 2)


def test_addresses_of_a_link_that_was_never_up_are_local() -> None:
    r = router()
    r.add_link("kube-ipvs0", ["10.96.0.1/32", "10.97.0.1/24"], up=False, kind="dummy")
    assert came(r, "10.0.0.5", "10.96.0.1")[0] == R.LOCAL
    assert sent(r, "10.96.0.1") == (R.LOCAL, "lo", "10.96.0.1")
    assert sent(r, "10.97.0.9")[1] == "e0"
    assert r.is_local(np.array([parse_ip("10.97.0.1"), parse_ip("10.97.0.255")], np.uint32)).tolist() == [True, False]
    assert refused(r, "ip route add 9.9.0.0/16 dev kube-ipvs0") == ("Device for nexthop is not up.", 2)


def test_a_link_can_be_added_and_deleted() -> None:
    r = router()
    run(r, "ip link add kube-ipvs0 type dummy")
    run(r, "ip addr add 10.96.0.1/32 dev kube-ipvs0")
    assert came(r, "10.0.0.5", "10.96.0.1")[0] == R.LOCAL
    run(r, "ip link del kube-ipvs0")
    assert r.index("kube-ipvs0") == -1
    assert came(r, "10.0.0.5", "10.96.0.1")[0] == R.UNICAST


def test_masquerade_address() -> None:
    r = Routing(Sysctl())
    r.add_link("e0", ["10.0.0.1/24", "10.0.0.2/24", "10.9.0.1/24"])
    r.add_link("e1")
    r.add_link("e2", up=False)
    address = lambda link, to: format_ip(r.masquerade_address(r.index(link), parse_ip(to)) or 0)  # noqa: E731
    assert address("e0", "10.9.0.77") == "10.9.0.1"
    assert address("e0", "8.8.8.8") == "10.0.0.1"
    assert address("e1", "8.8.8.8") == "10.0.0.1"
    run(r, "ip addr add 10.10.10.10/32 dev lo")
    assert address("e1", "8.8.8.8") == "10.10.10.10"
    run(r, "ip addr add 169.254.0.1/16 scope link dev e2")
    assert address("e2", "169.254.0.9") == "10.10.10.10"
    alone = Routing(Sysctl())
    alone.add_link("e0")
    assert alone.masquerade_address(1, 0x08080808) is None
    assert alone.first_address(1) is None


# ---- columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 5000])
def test_columns_of_any_length(n: int) -> None:
    r = router()
    addrs = np.full(n, parse_ip("8.8.8.8"), np.uint32)
    zero = np.zeros(n, np.uint32)
    for way in (
        r.input(addrs, addrs, np.ones(n, np.int16), zero, zero.astype(np.uint8)),
        r.output(addrs, zero, zero, zero.astype(np.uint8)),
    ):
        shapes = {name: (getattr(way, name).dtype.name, len(getattr(way, name))) for name in R.Route.__slots__}
        assert shapes == {
            "kind": ("int8", n), "link": ("int16", n), "nexthop": ("uint32", n), "mtu": ("int32", n),
            "source": ("uint32", n), "redirect": ("bool", n),
        }  # fmt: skip
    assert len(r.addr_type(addrs)) == n


SPOTS = (
    "0.0.0.0 0.0.0.1 255.255.255.255 127.0.0.1 127.1.0.1 10.0.0.1 10.0.0.5 10.0.0.255 10.0.0.0 192.168.7.1 192.168.7.9 "
    "192.168.7.255 8.8.8.8 9.9.9.9 9.9.1.1 224.0.0.1 224.0.0.5 239.1.2.3 7.7.7.7 240.0.0.1"
)
ADDRESSES = st.sampled_from(SPOTS.split()).map(parse_ip)
PACKET = st.tuples(ADDRESSES, ADDRESSES, st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, 0x10, 0xFF]))
WORDS = st.sampled_from(
    [
        "ip route add 9.9.0.0/16 via 192.168.7.2",
        "ip route add unreachable 9.9.9.0/24",
        "ip route add local 9.9.1.0/24 dev lo",
        "ip route add 8.0.0.0/8 tos 0x10 via 192.168.7.3",
        "ip route add throw 7.7.0.0/16",
        "ip route add default via 192.168.7.4 table 100",
        "ip route add 127.1.0.0/16 dev e1",
        "ip rule add pref 5 fwmark 1 lookup 100",
        "ip rule add pref 6 not from 10.0.0.0/8 to 8.0.0.0/8 prohibit",
        "ip rule add pref 7 iif e1 tos 0x10 goto 32766",
        "ip rule add pref 4 lookup main suppress_prefixlength 8",
        "ip link set e0 down",
        "ip addr add 9.9.9.9/32 dev e2",
        "sysctl net.ipv4.conf.all.rp_filter=1",
        "sysctl net.ipv4.conf.all.rp_filter=2",
        "sysctl net.ipv4.conf.e0.accept_local=1",
        "sysctl net.ipv4.conf.e1.route_localnet=1",
        "sysctl net.ipv4.conf.e1.forwarding=0",
        "sysctl net.ipv4.conf.all.src_valid_mark=1",
    ]
)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=8, unique=True), st.lists(PACKET, min_size=1, max_size=30))
def test_many_is_one_repeated(commands: list[str], packets: list[tuple[int, int, int, int, int]]) -> None:
    r = router()
    for words in commands:
        try:
            (r.sysctl.run if words.startswith("sysctl") else r.run)(words.split())
        except Refused:
            continue
    src, dst, link, mark, tos = (
        np.array(c, t) for c, t in zip(zip(*packets, strict=True), ("u4", "u4", "i2", "u4", "u1"), strict=True)
    )
    for ask in (
        lambda k: r.input(src[k], dst[k], link[k], mark[k], tos[k]),
        lambda k: r.output(dst[k], src[k], mark[k], tos[k]),
        lambda k: r.output(dst[k], src[k], mark[k], tos[k], 2),
    ):
        whole = ask(slice(None))
        ones = [ask(slice(k, k + 1)) for k in range(len(packets))]
        for name in R.Route.__slots__:
            assert getattr(whole, name).tolist() == [x for one in ones for x in getattr(one, name).tolist()], name
    for k in range(len(packets)):  # the routes are those that a plain walk over rules and tables finds
        e = r._route(int(dst[k]), int(src[k]), int(mark[k]), int(tos[k]))
        c = r._compile()
        found = int(
            r._lookup(c, dst[k : k + 1], src[k : k + 1], mark[k : k + 1], tos[k : k + 1], np.zeros(1, np.int16))[0]
        )
        assert (e.kind if e else R.NO_ROUTE) == (int(c.kind[found]) if found not in (1, 2) else R.NO_ROUTE)


def test_ten_thousand_addresses_and_routes_load_in_no_time() -> None:
    r = router()
    r.add_link("kube-ipvs0", [f"10.96.{k >> 8}.{k & 255}/32" for k in range(10_000)], up=False, kind="dummy")
    for k in range(2000):
        r.add_route(f"10.{100 + (k >> 8)}.{k & 255}.0/24 via 10.0.0.{k % 200 + 2}")
    dst = np.array([parse_ip("10.96.3.7"), parse_ip("10.101.5.9"), parse_ip("10.96.200.1")], np.uint32)
    zero = np.zeros(3, np.uint32)
    way = r.input(
        np.full(3, parse_ip("192.168.7.9"), np.uint32), dst, np.full(3, 2, np.int16), zero, zero.astype(np.uint8)
    )
    assert way.kind.tolist() == [R.LOCAL, R.UNICAST, R.UNICAST]


# ---- a real kernel ---------------------------------------------------------------------------------------------


def _no_kernel() -> str:
    if os.geteuid() != 0:
        return "asks a real kernel: needs root"
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "asks a real kernel: needs unshare and ip"
    made = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"], capture_output=True
    )
    return "" if made.returncode == 0 else "asks a real kernel: network namespaces or veth are missing"


ERRORS = {
    "Network is unreachable": {R.NO_ROUTE},
    "No route to host": {R.UNREACHABLE, R.NOT_FORWARDING},
    "Permission denied": {R.PROHIBIT},
    # EINVAL also stands for EXDEV (reverse path): 6.18 does not tell them apart
    "Invalid argument": {
        R.MARTIAN_SOURCE,
        R.MARTIAN_DESTINATION,
        R.REVERSE_PATH,
        R.NOT_JOINED,
        R.BLACKHOLE,
        R.BAD_SOURCE,
    },
    "Invalid cross-device link": {R.REVERSE_PATH},
}


def _scene(rng: random.Random) -> tuple[list[str], list[str]]:
    """(set-up commands that both sides run, questions)."""
    nets = ["10.0.0", "10.0.1", "192.168.7", "172.16.5", "9.9.9"]
    some = lambda: f"{rng.choice(nets)}.{rng.choice([0, 1, 2, 5, 77, 127, 128, 254, 255])}"  # noqa: E731
    links = ["e0", "e1", "e2"]
    todo = []
    for _ in range(rng.randrange(2, 7)):
        todo.append(f"ip addr add {some()}/{rng.choice([24, 24, 25, 30, 31, 32, 16])} dev {rng.choice(links)}")
    for _ in range(rng.randrange(8)):
        to = rng.choice(
            [
                "default",
                f"{rng.choice(nets)}.0/24",
                f"{some()}/32",
                "9.0.0.0/8",
                "10.0.0.0/8",
                "127.5.0.0/16",
                "8.8.0.0/16",
            ]
        )
        how = rng.choice([f"via {some()}", f"dev {rng.choice(links)}", f"via {some()} dev {rng.choice(links)} onlink"])
        kind = rng.choice(["", "", "", "", "unreachable", "prohibit", "blackhole", "throw", "local"])
        if kind and kind != "local":
            how = ""
        if kind == "local":
            how = f"dev {rng.choice(['lo', *links])}"
        more = rng.choice(
            [
                "",
                "",
                f" metric {rng.randrange(3)}",
                " tos 0x10",
                f" src {some()}" if how else "",
                " table 100",
                " table 253",
            ]
        )
        todo.append(f"ip route {rng.choice(['add', 'add', 'append', 'replace', 'prepend'])} {kind} {to} {how}{more}")
    if rng.random() < 0.6:
        for _ in range(rng.randrange(1, 4)):
            select = rng.choice(
                [
                    f"from {some()}",
                    f"to {rng.choice(nets)}.0/24",
                    "fwmark 1",
                    "fwmark 0x2/0x3",
                    "iif e0",
                    "iif lo",
                    "oif e1",
                    "tos 0x10",
                    "not fwmark 1",
                    "from all",
                ]
            )
            act = rng.choice(
                [
                    "lookup 100",
                    "lookup main suppress_prefixlength 0",
                    "lookup main",
                    "unreachable",
                    "prohibit",
                    "blackhole",
                    "lookup 100",
                ]
            )
            todo.append(f"ip rule add pref {rng.randrange(1, 200)} {select} {act}")
    for _ in range(rng.randrange(3)):
        todo.append(
            rng.choice(
                [
                    f"sysctl -w net.ipv4.conf.{rng.choice(['all', *links])}.rp_filter={rng.randrange(3)}",
                    f"sysctl -w net.ipv4.conf.{rng.choice(links)}.accept_local=1",
                    f"sysctl -w net.ipv4.conf.{rng.choice(links)}.route_localnet=1",
                    f"sysctl -w net.ipv4.conf.{rng.choice(links)}.forwarding=0",
                    f"sysctl -w net.ipv4.conf.{rng.choice(links)}.promote_secondaries=1",
                    "sysctl -w net.ipv4.conf.all.src_valid_mark=1",
                    "sysctl -w net.ipv4.conf.all.send_redirects=0",
                ]
            )
        )
    for _ in range(rng.randrange(4)):
        todo.append(
            rng.choice(
                [
                    f"ip link set {rng.choice(links)} down",
                    f"ip link set {rng.choice(links)} up",
                    f"ip addr del {some()}/24 dev {rng.choice(links)}",
                    f"ip addr flush dev {rng.choice(links)}",
                    f"ip addr add {some()}/24 dev {rng.choice(links)}",
                    f"ip route del {rng.choice(nets)}.0/24",
                    "ip route del default",
                ]
            )
        )
    asked = []
    odd = [
        "8.8.8.8",
        "8.8.4.4",
        "127.0.0.1",
        "127.5.0.1",
        "255.255.255.255",
        "224.0.0.1",
        "239.1.1.1",
        "9.1.1.1",
        "10.9.9.9",
    ]
    for _ in range(40):
        dst = some() if rng.random() < 0.75 else rng.choice(odd)
        src = some() if rng.random() < 0.85 else rng.choice(odd)
        mark = rng.choice(["", "", " mark 1", " mark 2"])
        tos = rng.choice(["", "", " tos 0x10"])
        asked.append(
            f"{dst} from {src} iif {rng.choice(links)}{mark}{tos}" if rng.random() < 0.6 else f"{dst}{mark}{tos}"
        )
    return todo, asked


@pytest.mark.skipif(bool(_no_kernel()), reason=_no_kernel() or "-")
def test_the_running_kernel_answers_the_same() -> None:
    rng = random.Random(int(os.environ.get("NETEMU_ROUTE_SEED", "1")))
    scenes = [_scene(rng) for _ in range(int(os.environ.get("NETEMU_ROUTE_SCENES", "12")))]
    wrong = []
    for todo, asked in scenes:
        script = ["exec 2>&1", "sysctl -qw net.ipv4.ip_forward=1", "ip link set lo up"]
        for e in ("e0", "e1", "e2"):
            script += [f"ip link add {e} type veth peer name p{e}", f"ip link set p{e} up", f"ip link set {e} up"]
        for line in todo:
            script += [f"{line} >/dev/null 2>&1; echo rc $?"]
        script += ["echo ROUTES", "ip -4 route show table all", "echo END"]
        script += [f"ip route get {q}; echo ASKED" for q in asked]
        out = subprocess.run(["unshare", "-n", "sh", "-c", "\n".join(script)], capture_output=True, text=True).stdout
        head, _, rest = out.partition("ROUTES\n")
        table, _, answers = rest.partition("END\n")
        codes = [int(x) for x in re.findall(r"^rc (\d+)$", head, re.M)]
        r = Routing(Sysctl())
        for e in ("e0", "e1", "e2"):
            r.add_link(e)
        for line, code in zip(todo, codes, strict=True):
            try:
                (r.sysctl.run if line.startswith("sysctl") else r.run)(line.split())
                ours = 0
            except Refused as e:
                ours = e.status
            if ours != code:
                wrong.append((todo, f"{line}: kernel {code}, netemu {ours}"))
        ours_table = sorted(r.show_routes(["table", "all"]).splitlines())
        theirs = sorted(re.sub(r" (linkdown|dead)", "", line) for line in table.splitlines())
        if ours_table != theirs:
            wrong.append(
                (todo, f"kernel only: {set(theirs) - set(ours_table)}, netemu only: {set(ours_table) - set(theirs)}")
            )
        for question, answer in zip(asked, answers.split("ASKED\n"), strict=False):
            if (got := _differs(r, question, answer)) is not None:
                wrong.append((todo, f"{question}: kernel {answer!r}, netemu {got}"))
    assert not wrong, "\n\n".join("\n".join([*todo, what]) for todo, what in wrong[:6]) + f"\n{len(wrong)} in all"


def _differs(r: Routing, question: str, answer: str) -> str | None:
    words = question.split()
    given = dict(zip(words[1::2], words[2::2], strict=True))
    mark, tos = int(given.get("mark", "0")), int(given.get("tos", "0"), 0)
    coming = "iif" in given
    if coming:
        kind, link, hop = came(r, given["from"], words[0], given["iif"], mark, tos)
        src = ""
    else:
        kind, link, src = sent(r, words[0], mark=mark, tos=tos)
        hop = ""
    ours = f"{kind} {link} {hop} {src}"
    if coming and not r.links[r.index(given["iif"])].up:
        return None  # nothing comes in there
    for text, kinds in ERRORS.items():
        if f"RTNETLINK answers: {text}" in answer:
            return None if kind in kinds else ours
    first = answer.split()
    want = {"local": R.LOCAL, "broadcast": R.BROADCAST, "multicast": R.MULTICAST}.get(first[0], R.UNICAST)
    told = dict(re.findall(r"\b(via|dev|src) (\S+)", answer))
    same = kind == want and told.get("dev") == link
    if coming and want == R.UNICAST:
        same &= told.get("via", words[0]) == hop
    if not coming and "src" in told:
        same &= told["src"] == src
    return None if same else ours
