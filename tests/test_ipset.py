"""Sets: what they say of packets, of one and of many; the command's language; files of a million lines."""

from __future__ import annotations

import ipaddress
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from craft import udp
from hypothesis import given, settings
from hypothesis import strategies as st

from netemu import Node
from netemu.errors import Problem, Refused, Unsupported
from netemu.ipset import SETS, SetOptions, Sets
from netemu.packets import Packets

LINKS = ["lo", "eth0", "eth1", "cni0"]
ADDRESSES = ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.77", "10.0.1.1", "10.1.0.1", "192.168.7.1", "0.0.0.0"]
PREFIXES = ["/8", "/16", "/24", "/25", "/30", "/31", ""]
MACS = ["02:00:00:00:00:01", "02:00:00:00:00:02"]
CREATE = {"bitmap:ip": " range 10.0.0.0/16", "bitmap:ip,mac": " range 10.0.0.0/16", "bitmap:port": " range 0-1000"}


def number(address: str) -> int:
    return int(ipaddress.ip_address(address))


def loaded(text: str, kernel: str = "6.18") -> Sets:
    sets, problems = Sets(kernel), []
    sets.restore(text, "ipset.save", problems)
    assert not problems, "\n".join(map(str, problems))
    return sets


def trip_of(packets: list[dict[str, Any]]) -> Any:
    """A trip that holds packets given as columns, and as much of a node as sets look at."""
    pkts = Packets(len(packets), np.zeros(64, np.uint8))
    pkts.length[:] = 60
    for row, packet in enumerate(packets):
        for name, value in packet.items():
            getattr(pkts, name)[row] = value
    links = [SimpleNamespace(name=name, mac=number + 0x020000000001) for number, name in enumerate(LINKS)]
    return SimpleNamespace(pkts=pkts, node=SimpleNamespace(routing=SimpleNamespace(names=LINKS, links=links)))


def masked(text: str) -> str:
    return re.sub(r"initval 0x[0-9a-f]{8}", "initval 0x", text)


# ---- packets and members, drawn ------------------------------------------------------------------------------------

address = st.sampled_from(ADDRESSES)
network = st.tuples(address, st.sampled_from(PREFIXES)).map("".join)
port = st.sampled_from(["tcp:80", "tcp:443", "udp:53", "udp:80", "icmp:echo-request", "icmp:3/1", "gre:0", "sctp:80"])
PART = {
    "ip": address,
    "plain": address,
    "net": network,
    "port": port,
    "mark": st.sampled_from(["0x00000001", "0x00000002", "0x00000005"]),
    "mac": st.sampled_from(MACS),
    "iface": st.sampled_from(["eth0", "eth1", "cni0", "physdev:eth0"]),
}


def element(kind: str) -> st.SearchStrategy[str]:
    if kind == "bitmap:port":
        return st.sampled_from(["80", "443", "53", "7"])
    if kind == "bitmap:ip,mac":
        return st.tuples(address, st.sampled_from(MACS)).map(",".join)
    return st.tuples(*[PART[part] for part in SETS[kind].parts]).map(",".join)


packet = st.fixed_dictionaries(
    {
        "src": address.map(number),
        "dst": address.map(number),
        "proto": st.sampled_from([6, 17, 1, 47, 132, 50]),
        "sport": st.sampled_from([80, 443, 53, 7]),
        "dport": st.sampled_from([80, 443, 53, 7]),
        "icmp_type": st.sampled_from([8, 3]),
        "icmp_code": st.sampled_from([0, 1]),
        "frag": st.sampled_from([0, 0, 0, 0x2000, 0x2001, 100]),
        "length": st.sampled_from([60, 60, 60, 1500, 24]),
        "mark": st.sampled_from([0, 1, 2, 5]),
        "link_in": st.sampled_from([-1, 1, 2, 3]),
        "link_out": st.sampled_from([-1, 1, 2, 3]),
        "arrived": st.sampled_from([1, 2]),
        "ether": st.booleans(),
        "smac": st.sampled_from([0x020000000001, 0x020000000002]),
        "time": st.sampled_from([0, 1_000_000_000, 5_500_000_000]),
    }
)
KINDS = sorted(set(SETS) - {"list:set"})


@st.composite
def situations(
    draw: st.DrawFn, kinds: list[str] = KINDS
) -> tuple[str, list[dict[str, Any]], tuple[str, ...], SetOptions]:
    """(ipset text of set S, packets, directions, options)"""
    kind = draw(st.sampled_from(kinds))
    extensions = draw(st.sets(st.sampled_from(["counters", "timeout", "comment"])))
    text = f"create S {kind}{CREATE.get(kind, '')}"
    text += "".join(" timeout 3" if word == "timeout" else f" {word}" for word in sorted(extensions)) + "\n"
    zero = kind == "hash:ip" or kind == "hash:ip,port"
    for one in draw(st.lists(element(kind), max_size=12, unique=True)):
        if (zero and one.startswith("0.0.0.0")) or (kind.startswith("bitmap:ip") and not one.startswith("10.0.")):
            continue
        text += f"add S {one} -exist"
        if "timeout" in extensions and draw(st.booleans()):
            text += f" timeout {draw(st.sampled_from([0, 1, 5]))}"
        if SETS[kind].nomatch_capable and draw(st.integers(0, 3)) == 0:
            text += " nomatch"
        text += "\n"
    dirs = tuple(draw(st.lists(st.sampled_from(["src", "dst"]), min_size=1, max_size=3)))
    options = SetOptions(
        return_nomatch=draw(st.booleans()),
        update_counters=draw(st.booleans()),
        packets_op=draw(st.sampled_from(["", "", "gt", "lt", "eq", "ne"])),
        packets=draw(st.integers(0, 4)),
        bytes_op=draw(st.sampled_from(["", "", "gt", "lt"])),
        bytes=draw(st.sampled_from([60, 200])),
    )
    return text, draw(st.lists(packet, min_size=1, max_size=40)), dirs, options


@settings(max_examples=250, deadline=None)
@given(situations())
def test_many_is_one_repeated(situation: Any) -> None:
    text, packets, dirs, options = situation
    trip, rows = trip_of(packets), np.arange(len(packets))
    together, apart = loaded(text), loaded(text)
    many = together.by_name["S"].match(trip, np.concatenate([rows, rows, rows]), dirs, options)
    one = [apart.by_name["S"].matches(trip, row, dirs, options) for row in [*rows.tolist()] * 3]
    assert many.tolist() == one
    assert together.save() == apart.save()
    together.check()


def holds(line: str, kind: str, shown: dict[str, Any], dirs: tuple[str, ...]) -> tuple[int, ...] | None:
    """What the man page says of one member and one packet: None, or the prefix lengths with which it holds it."""
    lengths = []
    for part, word, way in zip(SETS[kind].parts, line.split(","), dirs, strict=False):
        ip = ipaddress.ip_address(int(shown[way]))
        if part in ("ip", "plain", "net"):
            net = ipaddress.ip_network(word, strict=False)
            if ip not in net:
                return None
            lengths.append(net.prefixlen)
        elif part == "port":
            protocols = {"tcp": 6, "udp": 17, "icmp": 1, "gre": 47, "sctp": 132}
            proto, _, low = word.partition(":") if ":" in word else ("", "", word)
            later = bool(shown["frag"] & 0x1FFF)
            least = {6: 20, 17: 8, 1: 8, 132: 12}.get(shown["proto"], 0)
            if least and (later or shown["length"] - 20 < least):
                return None
            if not proto:
                if shown["proto"] not in (6, 17) or shown["sport" if way == "src" else "dport"] != int(low):
                    return None
                continue
            if shown["proto"] != protocols[proto]:
                return None
            if proto == "icmp":
                types = {"echo-request": (8, 0), "host-unreachable": (3, 1)}
                if (shown["icmp_type"], shown["icmp_code"]) != types[low]:
                    return None
            elif proto != "gre" and shown["sport" if way == "src" else "dport"] != int(low):
                return None
        elif part == "mark":
            if shown["mark"] != int(word, 16):
                return None
        elif part == "mac":
            mac = shown["smac"] if way == "src" else 0x020000000001 + shown["arrived"]
            if not shown["ether"] or mac != int(word.replace(":", ""), 16):
                return None
        elif part == "iface":
            link = shown["link_in" if way == "src" else "link_out"]
            if link < 0 or LINKS[link] != word:
                return None
    return tuple(lengths)


@settings(max_examples=250, deadline=None)
@given(situations([kind for kind in KINDS if kind != "hash:net,iface"]))
def test_the_man_page_says_the_same(situation: Any) -> None:
    text, packets, dirs, _ = situation
    one = loaded(text).by_name["S"]
    members = [m.split(" ") for m in one.members(0)]
    trip, rows = trip_of(packets), np.arange(len(packets))
    answers = one.match(trip, rows, dirs)
    inverted = one.match(trip, rows, dirs, SetOptions(return_nomatch=True))
    for shown, answer, other in zip(packets, answers, inverted, strict=True):
        best: tuple[tuple[int, ...], bool] | None = None
        for words in members:
            lengths = holds(words[0], one.TYPE, shown, dirs) if len(dirs) >= one.dimension else None
            if lengths is None:
                continue
            if "timeout" in words and 0 < int(words[words.index("timeout") + 1]) * 1_000_000_000 < shown["time"]:
                continue
            if best is None or lengths > best[0]:
                best = (lengths, "nomatch" in words)
        assert answer == (best is not None and not best[1])
        assert other == (best is not None and (best[1] or not one.nomatch_capable))


# ---- stories -------------------------------------------------------------------------------------------------------


def asked(sets: Sets, name: str, dirs: str, *packets: dict[str, Any], **options: Any) -> list[bool]:
    trip = trip_of([{k: number(v) if k in ("src", "dst") else v for k, v in p.items()} for p in packets])
    one = sets.by_name[name]
    return one.match(trip, np.arange(len(packets)), tuple(dirs.split(",")), SetOptions(**options)).tolist()


def test_fewer_directions_than_dimensions_never_match() -> None:
    sets = loaded("create S hash:ip,port\nadd S 10.0.0.1,tcp:80\n")
    packet = {"dst": "10.0.0.1", "proto": 6, "dport": 80}
    assert asked(sets, "S", "dst", packet) == [False]
    assert asked(sets, "S", "dst,dst", packet) == [True]
    assert asked(sets, "S", "dst,dst,src", packet) == [True]


def test_a_list_passes_over_members_that_need_more_directions() -> None:
    sets = loaded(
        "create S hash:ip,port\nadd S 10.0.0.1,tcp:80\ncreate I hash:ip\nadd I 10.0.0.1\ncreate L list:set\nadd L S\n"
    )
    packet = {"dst": "10.0.0.1", "proto": 6, "dport": 80}
    assert asked(sets, "L", "dst", packet) == [False]
    sets.run(["add", "L", "I"])
    assert asked(sets, "L", "dst", packet) == [True]


def test_the_most_specific_network_of_a_net_iface_set_ends_the_search() -> None:
    sets = loaded("create S hash:net,iface\nadd S 10.1.0.0/16,eth0\nadd S 10.0.0.0/8,eth1\n")
    packets = [{"src": "10.1.0.1", "link_in": 2}, {"src": "10.2.0.1", "link_in": 2}, {"src": "10.1.0.1", "link_in": 1}]
    assert asked(sets, "S", "src,src", *packets) == [False, True, True]
    assert asked(sets, "S", "src,src", *packets * 5) == [False, True, True] * 5


def test_wildcards_hold_every_interface_that_begins_so() -> None:
    sets = loaded("create S hash:net,iface\nadd S 10.0.0.0/8,eth wildcard\nadd S 10.0.0.0/8,cni\n")
    packets = [{"src": "10.1.0.1", "link_in": link} for link in (-1, 1, 2, 3)]
    assert asked(sets, "S", "src,src", *packets) == [False, True, True, False]
    assert asked(sets, "S", "src,src", *packets * 5) == [False, True, True, False] * 5
    with pytest.raises(Refused, match="already added"):
        sets.run(["add", "S", "10.0.0.0/8,eth7"])


def test_counters_count_before_they_are_compared() -> None:
    text = "create S hash:net counters\nadd S 10.0.0.0/8\nadd S 10.0.0.0/16 nomatch\nadd S 10.0.0.0/24\n"
    for copies in (3, 30):
        sets = loaded(text)
        packets = [{"src": "10.0.0.1", "length": 100}] * copies
        # the /24 counts first; only from its third packet on does it hold them, until then the /16 says no
        assert asked(sets, "S", "src", *packets, packets_op="gt", packets=2)[:4] == [False, False, True, True][:copies]
        members = dict(m.split(" ", 1) for m in sets.by_name["S"].members(0))
        assert members["10.0.0.0/24"] == f"packets {copies} bytes {copies * 100}"


def test_a_list_counts_for_itself_and_for_its_members() -> None:
    text = "create S hash:ip counters\nadd S 10.0.0.1\ncreate L list:set counters\nadd L S\n"
    sets = loaded(text)
    packets = [{"src": "10.0.0.1", "length": 50}] * 20
    assert asked(sets, "L", "src", *packets, packets_op="gt", packets=5) == [False] * 5 + [True] * 15
    assert asked(sets, "L", "src", *packets, update_subcounters=False) == [True] * 20
    assert "add S 10.0.0.1 packets 20 bytes 1000\n" in sets.save()
    assert "add L S packets 40 bytes 2000\n" in sets.save()


def test_a_bitmap_ip_mac_member_takes_the_first_mac_that_comes() -> None:
    sets = loaded("create S bitmap:ip,mac range 10.0.0.0/24 timeout 7\nadd S 10.0.0.1\nadd S 10.0.0.2 timeout 3\n")
    assert sets.by_name["S"].remembers
    first, second = 0x020000000001, 0x020000000002
    packets = [{"src": "10.0.0.1", "ether": True, "smac": mac} for mac in (second, first, second)]
    assert asked(sets, "S", "src,src", {"src": "10.0.0.1"}, *packets) == [False, True, False, True]
    assert sets.save().splitlines()[1:] == ["add S 10.0.0.1,02:00:00:00:00:02 timeout 7", "add S 10.0.0.2 timeout 3"]


def test_packets_add_and_remove_elements() -> None:
    sets = loaded(
        "create S hash:ip,port timeout 100 counters\ncreate N hash:net\nadd N 10.0.0.0/8\nadd N 11.0.0.0/24\n"
    )
    trip = trip_of([{"src": number("10.9.0.1"), "proto": 17, "dport": 53, "length": 50 + k} for k in range(3)])
    rows = np.arange(3)
    one, nets = sets.by_name["S"], sets.by_name["N"]
    one.add_from_packet(trip, rows, ("src", "dst"))
    assert list(one.members(0)) == ["10.9.0.1,udp:53 timeout 100 packets 1 bytes 50"]
    one.add_from_packet(trip, rows, ("src", "dst"), timeout=7, exist=True)
    assert list(one.members(0)) == ["10.9.0.1,udp:53 timeout 7 packets 1 bytes 52"]
    one.add_from_packet(trip, rows, ("src",))
    one.del_from_packet(trip, rows, ("src", "dst"))
    assert one.count(0) == 0
    nets.add_from_packet(trip, rows[:1], ("src",))  # as wide as the most specific network there is
    assert sorted(nets.members(0)) == ["10.0.0.0/8", "10.9.0.0/24", "11.0.0.0/24"]


def test_members_die_in_their_time() -> None:
    sets = loaded("create S hash:ip timeout 2 maxelem 2\nadd S 10.0.0.1\nadd S 10.0.0.2 timeout 0\n")
    times = [0, 2_000_000_000, 2_000_000_001, 3_000_000_000]
    assert asked(sets, "S", "src", *[{"src": "10.0.0.1", "time": t} for t in times]) == [True, True, False, False]
    assert [line for line in sets.save(1_500_000_000).splitlines() if "10.0.0.1" in line] == [
        "add S 10.0.0.1 timeout 1"
    ]
    with pytest.raises(Refused, match="Hash is full"):
        sets.run(["add", "S", "10.0.0.3"], 1_000_000_000)
    sets.run(["add", "S", "10.0.0.3"], 3_000_000_000)  # room is made of the dead
    assert sorted(sets.by_name["S"].members(3_000_000_000)) == ["10.0.0.2 timeout 0", "10.0.0.3 timeout 2"]


# ---- the command ---------------------------------------------------------------------------------------------------

TALK = """
$ create a hash:ip
$ add a 10.0.0.1
$ add a 10.0.0.1
! 1 ipset v7.17: Element cannot be added to the set: it's already added
$ add a 10.0.0.1 -exist
$ -! add a 10.0.0.1
$ add a 10.0.0.0/30
! 1 ipset v7.17: Element cannot be added to the set: it's already added
$ add a 0.0.0.0
! 1 ipset v7.17: Null-valued element, cannot be stored in a hash type of set
$ add a 10.0.1.5,80
! 1 ipset v7.17: Syntax error: Elem separator in 10.0.1.5,80, but settype hash:ip supports none.
$ add a bogus.invalid
! 1 ipset v7.17: Syntax error: cannot parse bogus.invalid: resolving to IPv4 address failed
$ add a 10.0.2.1/33
! 1 ipset v7.17: Syntax error: '33' is out of range 0-32
$ add a 1.2.3.4 timeout 5
! 1 ipset v7.17: Timeout cannot be used: set was created without timeout support
$ add a 1.2.3.4 nomatch
! 2 ipset v7.17: Unknown argument: `nomatch' Try `ipset help' for more information.
$ add nosuch 1.2.3.4
! 1 ipset v7.17: The set with the given name does not exist
$ del a 9.9.9.9
! 1 ipset v7.17: Element cannot be deleted from the set: it's not added
$ del a 9.9.9.9 -exist
$ test a 10.0.0.1
  Warning: 10.0.0.1 is in set a.
$ test a 10.0.0.9
! 1 10.0.0.9 is NOT in set a.
$ -q test a 10.0.0.9
! 1
$ create a hash:ip
! 1 ipset v7.17: Set cannot be created: set with the same name already exists
$ create a hash:ip hashsize 4096 -exist
$ create a hash:ip timeout 5 -exist
! 1 ipset v7.17: Set cannot be created: set with the same name already exists
$ create x nosuch
! 1 ipset v7.17: Syntax error: typename 'nosuch' is unknown
$ create x hash:ip foo
! 2 ipset v7.17: Unknown argument: `foo' Try `ipset help' for more information.
$ create x bitmap:port
! 2 ipset v7.17: Mandatory option `range' is missing Try `ipset help' for more information.
$ create m hash:ip maxelem 2
$ add m 1.1.1.1-1.1.1.3
! 1 ipset v7.17: Hash is full, cannot add more elements
$ create n hash:net comment
$ add n 10.1.0.0-10.1.0.5
$ add n 0.0.0.0/0
! 1 ipset v7.17: The value of the CIDR parameter of the IP address is invalid
$ add n 10.5.1.1/16 nomatch comment "not these"
$ test n 10.5.1.1
! 1 10.5.1.1 is NOT in set n.
$ test n 10.5.1.1 nomatch
  Warning: 10.5.1.1 is in set n.
$ save n
  create n hash:net family inet hashsize 1024 maxelem 65536 comment bucketsize 12 initval 0x
  add n 10.1.0.0/30
  add n 10.1.0.4/31
  add n 10.5.0.0/16 nomatch comment "not these"
$ create p hash:ip,port counters timeout 100 skbinfo
$ add p 10.0.0.1,80 timeout 50 packets 3 bytes 7 skbmark 0x5/0xff skbprio 1:2 skbqueue 4
$ add p 10.0.0.1,UDP:53
$ add p 10.0.0.1,icmp:ping
$ add p 10.0.0.1,icmp:77/1
$ add p 10.0.0.1,47:0
$ add p 10.0.0.1,47:5
! 1 ipset v7.17: Syntax error: Protocol 47 can be used with pseudo port value 0 only.
$ add p 10.0.0.1,0:0
! 1 ipset v7.17: Invalid protocol specified
$ add p 10.0.0.1
! 1 ipset v7.17: Syntax error: Second element is missing from 10.0.0.1.
$ save p
  create p hash:ip,port family inet hashsize 1024 maxelem 65536 timeout 100 counters skbinfo bucketsize 12 initval 0x
  add p 10.0.0.1,tcp:80 timeout 50 packets 3 bytes 7 skbmark 0x5/0xff skbprio 1:2 skbqueue 4
  add p 10.0.0.1,udp:53 timeout 100 packets 0 bytes 0
  add p 10.0.0.1,icmp:echo-request timeout 100 packets 0 bytes 0
  add p 10.0.0.1,icmp:77/1 timeout 100 packets 0 bytes 0
  add p 10.0.0.1,gre:0 timeout 100 packets 0 bytes 0
$ create b bitmap:port range 10-2000
$ add b tcp:80-82
$ add b 1999-2003
! 1 ipset v7.17: Element is out of the range of the set
$ save b
  create b bitmap:port range 10-2000
  add b 80
  add b 81
  add b 82
$ create l list:set size 3
$ add l b
$ add l a before b
$ add l n before zz
! 1 ipset v7.17: The set to which you referred with 'before' or 'after' does not exist.
$ add l l
! 1 ipset v7.17: Sets with list:set type cannot be added to the set.
$ save l
  create l list:set size 4
  add l a
  add l b
$ destroy b
! 1 ipset v7.17: Set cannot be destroyed: it is in use by a kernel component
$ rename b c
! 1 ipset v7.17: Set cannot be renamed: it is in use by another system
$ rename p n
! 1 ipset v7.17: Set cannot be renamed: a set with the new name already exists
$ swap a n
! 1 ipset v7.17: The sets cannot be swapped: their type does not match
$ swap a m
$ save a
  create a hash:ip family inet hashsize 1024 maxelem 2 bucketsize 12 initval 0x
  add a 1.1.1.1
  add a 1.1.1.2
$ list l
  Name: l
  Type: list:set
  Revision: 3
  Header: size 4
  Size in memory: 328
  References: 0
  Number of entries: 2
  Members:
  a
  b
$ destroy l
$ destroy b
$ create z hash:ip family inet6
$ add z fe80::1
$ add z 10.0.0.1
! 1 ipset v7.17: Syntax error: cannot parse 10.0.0.1: resolving to IPv6 address failed
$ list -n
  a
  m
  n
  p
  z
$ destroy
$ save
$ frobnicate
! 2 ipset v7.17: No command specified: unknown argument frobnicate Try `ipset help' for more information.
"""


def test_the_command_talks_as_ipset_does() -> None:
    """What ipset 7.17 said on Linux 6.18, line by line (initval masked, hash members in the order of their adding)."""
    sets = Sets("6.18")
    turns = re.split(r"^\$ ", TALK, flags=re.M)[1:]
    for turn in turns:
        command, *answer = turn.splitlines()
        try:
            said = ["  " + line for line in masked(sets.run(shlex.split(command))).splitlines()]
        except Refused as refused:
            said = [f"! {refused.status} {' '.join(refused.problems[0].what.split())}".rstrip()]
        assert said == [line.rstrip() for line in answer], command
        sets.check()


def test_what_6_1_does_not_know() -> None:
    with pytest.raises(Refused, match="starting from the revision 6"):
        Sets("6.1").run(["create", "S", "hash:ip", "bitmask", "255.0.255.0"])
    sets = loaded("create S hash:ip bitmask 255.0.255.0\nadd S 10.1.2.3\n")
    assert asked(sets, "S", "src", {"src": "10.77.2.99"}, {"src": "10.1.3.3"}) == [True, False]


def test_networks_under_a_bitmask() -> None:
    """Both networks are masked, those of a range are not; and what packets show is."""
    with pytest.raises(Refused, match="starting from the revision 4"):
        Sets("6.1").run(["create", "S", "hash:net,net", "netmask", "24"])
    text = (
        "create S hash:net,net bitmask 255.0.255.0\nadd S 10.1.2.3,10.2.3.4/28\nadd S 10.9.3.0-10.9.3.1,10.2.0.0/16\n"
    )
    sets = loaded(text)
    members = [line for line in sets.save().splitlines() if line.startswith("add")]
    assert members == ["add S 10.0.2.0,10.0.3.0/28", "add S 10.9.3.0/31,10.2.0.0/16"]
    assert sets.save().splitlines()[0].endswith(" bitmask 255.0.255.0")
    quick = loaded(
        "create S hash:net,net netmask 24\n" + "".join(f"add S 10.1.{k}.9,10.2.{k}.0/28\n" for k in range(99))
    )
    assert "add S 10.1.7.0,10.2.7.0/28" in quick.save().splitlines()
    sets.run(["test", "S", "10.77.2.9,10.88.3.9"])
    with pytest.raises(Refused, match="NOT in set"):
        sets.run(["test", "S", "10.77.4.9,10.88.3.9"])
    shown = [("10.5.2.200", "10.6.3.1"), ("10.9.3.0", "10.2.0.1"), ("10.5.2.200", "10.6.4.1")]
    assert asked(sets, "S", "src,dst", *({"src": a, "dst": b} for a, b in shown)) == [True, False, False]


def test_netmask_and_markmask() -> None:
    sets = loaded(
        "create S hash:ip netmask 24\nadd S 10.0.0.5\ncreate M hash:ip,mark markmask 0xf\nadd M 10.0.0.5,0x13\n"
    )
    assert asked(sets, "S", "src", {"src": "10.0.0.200"}, {"src": "10.0.1.5"}) == [True, False]
    assert asked(sets, "M", "src,src", {"src": "10.0.0.5", "mark": 0xF3}, {"src": "10.0.0.5", "mark": 4}) == [
        True,
        False,
    ]
    assert "add M 10.0.0.5,0x00000003\n" in sets.save()


def test_inet6_sets_are_kept_and_hold_no_ipv4_packet() -> None:
    text = "create S hash:net family inet6 hashsize 1024 maxelem 65536 bucketsize 12 initval 0x00000007\n"
    text += "add S fe80::/10\nadd S ::ffff:1.2.3.4\nadd S 2001:db8::1\n"
    sets = loaded(text)
    assert sets.save() == text
    assert asked(sets, "S", "src", {"src": "1.2.3.4"}) == [False]
    assert sets.run(["test", "S", "fe80::77"]) == "Warning: fe80::77 is in set S.\n"


# ---- files ---------------------------------------------------------------------------------------------------------

FILE = """# a comment
create S hash:net family inet hashsize 1024 maxelem 65536 timeout 0 counters comment bucketsize 12 initval 0x0000000a
add S 10.0.0.0/8 timeout 0 packets 1 bytes 2 comment "a b"
add S 10.1.0.0/16 timeout 5 nomatch packets 0 bytes 0
create B bitmap:port range 0-65535
add B 80

COMMIT
"""


def test_a_saved_file_comes_back_as_it_was() -> None:
    sets = loaded(FILE)
    kept = [line for line in FILE.splitlines() if line.startswith(("create", "add"))]
    assert sets.save().splitlines() == kept


def test_every_problem_of_a_file_is_named_with_its_line() -> None:
    problems: list[Problem] = []
    text = "create S hash:ip\nadd S 1.1.1.1\nadd S 1.1.1.1\nadd T 1.1.1.1\ncreate U hash:what\nadd U 1\nadd S 1.1.1.x\n"
    Sets().restore(text, "ipset.save", problems)
    assert [(p.file, p.line) for p in problems] == [("ipset.save", n) for n in (3, 4, 5, 7)]
    assert problems[0].text == "add S 1.1.1.1" and "already added" in problems[0].what
    assert str(problems[2]).startswith("ipset.save:5: Refused: Syntax error: typename 'hash:what' is unknown")


EXTENSIONS = [
    "",
    " timeout 9",
    " timeout 9 packets 3 bytes 4",
    ' comment "x y"',
    " nomatch",
    " nomatch packets 5 bytes 6",
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_quick_way_to_load_is_the_slow_way(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    words = data.draw(st.sampled_from(["", " timeout 100 counters comment"]))
    tails = [t for t in EXTENSIONS if words or not t]
    tails = [t for t in tails if "nomatch" not in t or SETS[kind].nomatch_capable]
    head = f"create S {kind}{CREATE.get(kind, '')}{words}\n"
    odd = st.sampled_from(["", "", "", "", "10.0.0.x", "0.0.0.0/0", "1.1.1.1,2,3,4"])
    lines = data.draw(st.lists(st.tuples(element(kind), st.sampled_from(tails)), min_size=40, max_size=80))
    if data.draw(st.booleans()):
        lines = list({text: (text, tail) for text, tail in lines}.values())
    texts = [f"add S {text}{tail}" for text, tail in lines]
    if bad := data.draw(odd):
        texts.insert(data.draw(st.integers(0, len(texts))), f"add S {bad}")
    quick, slow = Sets(), Sets()
    found: list[Problem] = []
    known: list[Problem] = []
    quick.restore(head + "\n".join(texts), "f", found)
    slow.restore(head, "f", known)
    for k, text in enumerate(texts):  # one line a file: never quick
        one: list[Problem] = []
        slow.restore("\n" * (k + 1) + text, "f", one)
        known += one
    assert [str(p) for p in found] == [str(p) for p in known]
    assert sorted(quick.save().splitlines()) == sorted(slow.save().splitlines())
    quick.check()


def test_a_hundred_thousand_lines_take_the_quick_way() -> None:
    lines = [f"add S 10.{k >> 16}.{k >> 8 & 255}.{k & 255},tcp:{k % 1000 + 1}\n" for k in range(100_000)]
    sets = loaded("create S hash:ip,port maxelem 200000 initval 0x1\n" + "".join(lines))
    saved = sets.save().splitlines(keepends=True)
    assert saved[1:] == lines
    assert " hashsize 65536 " in saved[0]  # it grew as its buckets filled up
    sets.check()


def test_damage_among_many_lines_is_found() -> None:
    lines = [f"add S 10.0.{k >> 8}.{k & 255}\n" for k in range(5000)]
    lines[3000] = "add S 10.0.0.7\n"
    lines[4000] = "add S nonsense\n"
    problems: list[Problem] = []
    sets = Sets()
    sets.restore("create S hash:ip\n" + "".join(lines), "f", problems)
    assert [p.line for p in problems] == [3002, 4002]
    assert len(sets.by_name["S"].table) == 4998


# ---- the registry --------------------------------------------------------------------------------------------------


def test_every_type_of_set_is_here() -> None:
    assert set(SETS) == {
        "bitmap:ip", "bitmap:ip,mac", "bitmap:port", "hash:ip", "hash:mac", "hash:ip,mac", "hash:ip,mark",
        "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net", "hash:net", "hash:net,net", "hash:net,port",
        "hash:net,port,net", "hash:net,iface", "list:set",
    }  # fmt: skip
    for name, cls in SETS.items():
        assert name == cls.TYPE and cls.__doc__ and set(cls.REVISION) == {"6.1", "6.18"}


@pytest.mark.parametrize("kind", sorted(SETS))
def test_an_empty_set_of_every_type_comes_back(kind: str) -> None:
    sets = loaded(f"create S {kind}{CREATE.get(kind, '')} timeout 5 counters comment skbinfo\n")
    again = loaded(sets.save())
    assert again.save() == sets.save()
    assert sets.by_name["S"].dimension == len(SETS[kind].parts) == sets.dimensions()["S"]


def test_rules_hold_names_and_swap_moves_what_is_behind_them() -> None:
    sets = loaded("create A hash:ip\nadd A 10.0.0.1\ncreate B hash:ip\n")
    sets.refer("A")
    sets.run(["swap", "A", "B"])
    assert asked(sets, "A", "src", {"src": "10.0.0.1"}) == [False]
    with pytest.raises(Refused, match="in use"):
        sets.run(["destroy", "A"])
    sets.release("A")
    sets.run(["destroy", "A"])
    with pytest.raises(Refused, match="does not exist"):
        sets.refer("A")


def test_unsupported_is_not_refused() -> None:
    with pytest.raises(Unsupported):
        loaded("create A hash:ip\n").run(["list", "-o", "xml"])


def test_a_member_of_bitmap_ip_mac_that_is_added_again_without_its_mac_is_over() -> None:
    sets = Sets("6.18", 1)
    late = 10**12

    def members() -> list[str]:
        return [line for line in sets.run(["ipset", "save"], late).splitlines() if line.startswith("add")]

    for command in ("create b bitmap:ip,mac range 10.0.0.0/24 timeout 1000", "add b 10.0.0.1", "add b 10.0.0.1"):
        sets.run(["ipset", *command.split()], late)  # the third would be refused, had the second a MAC
    sets.run(["ipset", "add", "b", "10.0.0.2,02:00:00:00:00:01"], late)
    with pytest.raises(Refused, match="already added"):
        sets.run(["ipset", "add", "b", "10.0.0.2"], late)
    sets.run(["ipset", "-exist", "add", "b", "10.0.0.2"], late)
    assert members() == ["add b 10.0.0.1 timeout 1000"]
    sets.run(["ipset", "add", "b", "10.0.0.2,02:00:00:00:00:07"], late)  # it has kept the MAC that it had
    assert members()[1] == "add b 10.0.0.2,02:00:00:00:00:01 timeout 1000"


def test_a_member_that_says_nothing_lets_the_search_go_on(tmp_path: Path) -> None:
    """A net,iface set stops at the first network that holds the address, unless a member there held the packet too."""
    (tmp_path / "node.toml").write_text('[[link]]\nname = "eth0"\naddresses = ["10.0.0.1/24"]\n')
    (tmp_path / "ipset.save").write_text(
        "create n hash:net,iface counters\nadd n 10.0.0.0/24,eth0 packets 9\nadd n 10.0.0.0/8,eth0\n"
    )
    (tmp_path / "iptables.save").write_text(
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m set --match-set n src,src --packets-lt 5\nCOMMIT\n"
    )
    node = Node.load(tmp_path)
    for k in range(2):
        node.send(udp("10.0.0.9", 1, "10.0.0.1", 2 + k), link="eth0", at=k)
    saved = node.dump("ipset-save")
    assert "10.0.0.0/24,eth0 packets 11 " in saved and "10.0.0.0/8,eth0 packets 2 " in saved
