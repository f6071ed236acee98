"""What a condition found in the packet that it turned away: the half of `netemu explain` that the rule does not say.

    -m tcp --dport 22   -->   the port is 80
    -m set --match-set KUBE-CLUSTER-IP dst,dst   -->   10.0.0.9,tcp:80 is not in it

One entry a match in VALUES. A match that has none is explained by its own words alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from netemu.conntrack import STATE_NAMES
from netemu.matches.headers import options_of
from netemu.packets import OFFSET_MASK
from netemu.routing import ADDR_TYPES
from netemu.sockets import sockets_of
from netemu.words import PROTOCOL_NAMES, dotted

if TYPE_CHECKING:
    from netemu.matches import Match
    from netemu.node import Node
    from netemu.trip import Trip

#: name of a match -> what it sees in a row of a trip
Value = Callable[[Any, "Trip", int], str]
VALUES: dict[str, Value] = {}


def found(match: Match, trip: Trip, row: int) -> str:
    """What `match` found in the packet, "" where there is nothing to add to its own words."""
    if match.unmodelled:
        return "not modelled: it might have matched"
    told = VALUES.get(match.name)
    return told(match, trip, row) if told is not None else ""


def of(*names: str) -> Callable[[Value], Value]:
    """Enter a function for the matches of these names."""

    def enter(function: Value) -> Value:
        for name in names:
            VALUES[name] = function
        return function

    return enter


def protocol(number: int) -> str:
    """A protocol in words."""
    return PROTOCOL_NAMES.get(number, f"protocol {number}")


@of("tcp", "udp", "sctp", "dccp", "multiport")
def _ports(match: Any, trip: Trip, row: int) -> str:
    p, words = trip.pkts, match.words()
    if p.frag[row] & OFFSET_MASK:
        return "it is a later fragment, without ports"
    out = []
    if "--sport" in words or "--ports" in words:
        out.append(f"the source port is {p.sport[row]}")
    if "--dport" in words or "--ports" in words:
        out.append(f"the destination port is {p.dport[row]}")
    if "--tcp-flags" in words:
        flags = int(p.flags[row])
        names = [name for bit, name in enumerate(("FIN", "SYN", "RST", "PSH", "ACK", "URG")) if flags >> bit & 1]
        out.append(f"the flags are {','.join(names) or 'NONE'}")
    return ", ".join(out)


@of("icmp")
def _icmp(match: Any, trip: Trip, row: int) -> str:
    return f"it is {trip.pkts.icmp_type[row]}/{trip.pkts.icmp_code[row]}"


@of("mark")
def _mark(match: Any, trip: Trip, row: int) -> str:
    return f"the mark is {int(trip.pkts.mark[row]):#x}"


@of("connmark")
def _connmark(match: Any, trip: Trip, row: int) -> str:
    flow = int(trip.pkts.ct[row])
    if flow < 0:
        return "it has no connection"
    return f"the connection's mark is {int(trip.node.conntrack.mark[flow]):#x} now"


@of("state", "conntrack")
def _state(match: Any, trip: Trip, row: int) -> str:
    p, flows = trip.pkts, trip.node.conntrack
    out = [f"the state is {STATE_NAMES.get(int(p.state[row]), '?')}"]
    flow = int(p.ct[row])
    words = match.words()
    if flow >= 0 and "--ctdir" in words:
        out.append(f"the direction is {'REPLY' if p.reply[row] else 'ORIGINAL'}")
    if flow >= 0 and ("--ctorig" in words or "--ctrepl" in words):
        ends = [dotted(int(column[flow])) for column in (flows.osrc, flows.odst, flows.rsrc, flows.rdst)]
        ports = [int(column[flow]) for column in (flows.osport, flows.odport, flows.rsport, flows.rdport)]
        told = [f"{end}:{port}" for end, port in zip(ends, ports, strict=True)]
        out.append(f"the connection is {told[0]} > {told[1]}, answers {told[2]} > {told[3]}")
    if flow >= 0 and ("--ctstatus" in words or "NAT" in words):
        out.append(f"the status is {int(flows.status[flow]):#x} now")
    return ", ".join(out)


@of("set")
def _set(match: Any, trip: Trip, row: int) -> str:
    p = trip.pkts
    members = trip.node.sets.get(match.set)
    parts = list(members.parts) if members is not None else []
    out = []
    for way, part in zip(match.dirs, parts, strict=False):
        if part in ("ip", "net", "plain"):
            out.append(dotted(int(getattr(p, way)[row])))
        elif part == "port":
            port = int(p.sport[row] if way == "src" else p.dport[row])
            out.append(f"{protocol(int(p.proto[row]))}:{port}")
        elif part == "mac":
            out.append(_mac_text(int(p.smac[row])))
        elif part == "mark":
            out.append(f"{int(p.mark[row]):#x}")
        elif part == "iface":
            k = int(p.link_in[row] if way == "src" else p.link_out[row])
            out.append(trip.node.routing.names[k] if k >= 0 else "no link")
    element = ",".join(out) or "it"
    if match.packets or match.bytes:
        return f"{element} is not in it, or its counters say no"
    return f"{element} is {'' if match.invert else 'not '}in it"


@of("addrtype")
def _addrtype(match: Any, trip: Trip, row: int) -> str:
    names = {code: name for name, code in ADDR_TYPES.items()}
    out = []
    for side, said in (("src", "source"), ("dst", "destination")):
        if getattr(match, side):
            address = getattr(trip.pkts, side)[np.array([row])]
            link = {"in": trip.pkts.link_in, "out": trip.pkts.link_out}.get(match.limit)
            kind = trip.node.routing.addr_type(address, None if link is None else link[np.array([row])])
            out.append(f"the {said} {dotted(int(address[0]))} is {names.get(int(kind[0]), '?')}")
    return ", ".join(out)


@of("iprange")
def _iprange(match: Any, trip: Trip, row: int) -> str:
    out = []
    for side, said in (("src", "source"), ("dst", "destination")):
        if getattr(match, side):
            out.append(f"the {said} is {dotted(int(getattr(trip.pkts, side)[row]))}")
    return ", ".join(out)


@of("ttl")
def _ttl(match: Any, trip: Trip, row: int) -> str:
    return f"it is {trip.pkts.ttl[row]}"


@of("tos")
def _tos(match: Any, trip: Trip, row: int) -> str:
    return f"it is {int(trip.pkts.tos[row]):#04x}"


@of("dscp")
def _dscp(match: Any, trip: Trip, row: int) -> str:
    return f"it is {int(trip.pkts.tos[row]) >> 2:#04x}"


@of("ecn")
def _ecn(match: Any, trip: Trip, row: int) -> str:
    return f"ECT is {int(trip.pkts.tos[row]) & 3}, the TCP flags are {int(trip.pkts.flags[row]):#04x}"


@of("length")
def _length(match: Any, trip: Trip, row: int) -> str:
    return f"it is {trip.pkts.length[row]}"


@of("mac")
def _mac(match: Any, trip: Trip, row: int) -> str:
    if not trip.pkts.ether[row]:
        return "the capture tells no MAC address"
    return f"it is {_mac_text(int(trip.pkts.smac[row]))}"


def _mac_text(mac: int) -> str:
    return ":".join(f"{byte:02x}" for byte in mac.to_bytes(6, "big"))


@of("pkttype")
def _pkttype(match: Any, trip: Trip, row: int) -> str:
    kind = int(trip.pkts.pkttype[row])
    return f"it is {dict(enumerate(('unicast', 'broadcast', 'multicast', 'to another host'))).get(kind, kind)}"


@of("physdev")
def _physdev(match: Any, trip: Trip, row: int) -> str:
    return "it did not come by a bridge's port"


@of("owner")
def _owner(match: Any, trip: Trip, row: int) -> str:
    if not trip.pkts.socket[row]:
        return "it has no socket"
    who = match.holder(trip, row)
    if who is None:
        return "its socket is nobody's"
    return f"its socket is user {who.uid}'s, of the groups {','.join(map(str, (who.gid, *who.groups)))}"


@of("cpu")
def _cpu(match: Any, trip: Trip, row: int) -> str:
    return f"it is {trip.node.cpu}"


@of("rpfilter")
def _rpfilter(match: Any, trip: Trip, row: int) -> str:
    k = int(trip.pkts.link_in[row])
    link = trip.node.routing.names[k] if k >= 0 else "no link"
    return f"{dotted(int(trip.pkts.src[row]))} came in on {link}"


@of("time")
def _time(match: Any, trip: Trip, row: int) -> str:
    import datetime

    epoch = trip.node.epoch or 0
    at = datetime.datetime.fromtimestamp((epoch + int(trip.pkts.time[row])) // 10**9, datetime.UTC)
    return f"it is {at:%a %Y-%m-%d %H:%M:%S} UTC"


@of("ah", "esp", "ipcomp")
def _spi(match: Any, trip: Trip, row: int) -> str:
    if trip.pkts.frag[row] & OFFSET_MASK:
        return "it is a later fragment, without that header"
    kind = "compression" if match.name == "ipcomp" else "security"
    return f"the {kind} parameter index is {match.found(trip.pkts.payload(row))}"


@of("tcpmss")
def _tcpmss(match: Any, trip: Trip, row: int) -> str:
    mss = match.found(options_of(trip, row) or b"")
    return "it has no MSS option" if mss is None else f"the MSS is {mss}"


@of("string")
def _string(match: Any, trip: Trip, row: int) -> str:
    at = match.place(trip, row)
    if at < 0:
        return f"it is in none of its {trip.pkts.length[row]} bytes"
    return f"it is at byte {at}"


@of("u32")
def _u32(match: Any, trip: Trip, row: int) -> str:
    numbers = match.found(trip, row)
    return "the tests see " + ", ".join("the packet's end" if n is None else f"{n:#x}" for n in numbers)


@of("bpf")
def _bpf(match: Any, trip: Trip, row: int) -> str:
    return f"the program returned {match.run(trip, row)}"


@of("connlabel")
def _connlabel(match: Any, trip: Trip, row: int) -> str:
    flow = int(trip.pkts.ct[row])
    if flow < 0:
        return "it has no connection"
    bits = match.labels(trip.node.conntrack).of(trip.node.conntrack, flow)
    return f"the connection's labels are {','.join(str(n) for n in range(128) if bits >> n & 1) or 'none'} now"


@of("helper")
def _helper(match: Any, trip: Trip, row: int) -> str:
    flow = int(trip.pkts.ct[row])
    if flow < 0:
        return "it has no connection"
    name = match.of_flow(trip.node.conntrack, flow)
    return f"a connection of the helper {name} expected it" if name else "no helper expected its connection"


@of("cluster")
def _cluster(match: Any, trip: Trip, row: int) -> str:
    flow = trip.pkts.ct[row : row + 1]
    if flow[0] < 0:
        return "it has no connection"
    return f"it is for node {int(match.whose(trip.node.conntrack, flow)[0]) + 1}"


@of("devgroup")
def _devgroup(match: Any, trip: Trip, row: int) -> str:
    groups, told = match.groups(trip), {"link_in": "input", "link_out": "output"}
    return ", ".join(
        f"the {told[c]} device's group is {groups[getattr(trip.pkts, c)[row]]:#x}" for c, *_ in match.sides
    )


@of("policy")
def _policy(match: Any, trip: Trip, row: int) -> str:
    return "the node has no IPsec: no policy applies to it"


@of("realm")
def _realm(match: Any, trip: Trip, row: int) -> str:
    return "routes have the realm 0"


@of("socket")
def _socket(match: Any, trip: Trip, row: int) -> str:
    return "no socket that the model declares is its own" if sockets_of(trip.node) else "the model declares no socket"


@of("ipvs")
def _ipvs(match: Any, trip: Trip, row: int) -> str:
    if not trip.pkts.ipvs[row]:
        return "IPVS had no part in it"
    known = int(trip.node.ipvs.lookup_request(trip, np.array([row]))[0])
    if known < 0:
        return "IPVS had a part in it, and not as a request"
    conns = trip.node.ipvs.conns
    service = f"{dotted(int(conns.vaddr[known]))}:{conns.vport[known]}"
    return f"it went to {service} ({protocol(int(trip.pkts.proto[row]))})"


#: matches that remember: what they saw then cannot be asked again
REMEMBERED = {
    "limit": "more came than the limit allows",
    "hashlimit": "the rate is not on that side of the limit",
    "quota": "the quota is used up",
    "statistic": "it was not this packet's turn",
    "connlimit": "the number of connections is not on that side of the limit",
    "connbytes": "the connection had not carried that much, or had carried more",
    "recent": "the address was not seen like that",
}


def steady(match: Match, node: Node) -> bool:
    """What it says of a packet now is what it said then."""
    written = {touch for *_, rule in node.tables.rules() if rule.target for touch in rule.target.touches}
    for touch in match.touches:
        members = node.sets.get(touch[4:]) if touch.startswith("set:") else None
        if members is None or members.remembers or getattr(members, "named", None) or touch in written:
            return False
    return True


def at_the_time(match: Match, trip: Trip, row: int) -> str:
    """What a match that is not steady found, as far as that can still be said."""
    told = REMEMBERED.get(match.name)
    if told is None:
        told = found(match, trip, row)
        told = told.replace(" is not in it", " was not in it then").replace(" is in it", " was in it then")
    return told
