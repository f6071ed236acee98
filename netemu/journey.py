"""The road a packet takes.

        in                                     local process
        |                                         ^     |
    PREROUTING --> routing --for us--> INPUT -----'   OUTPUT <--.
                      |                  |              |       |
                      |                  '----IPVS------|-------'
                      |                               routing
                      '-----> FORWARD ------------.     |
                                                  v     v
                                               POSTROUTING --> out

An IPVS packet leaves INPUT at stop 99 and comes back in at OUTPUT, marked so that IPVS does not see it twice; it is
untracked unless the conntrack sysctl is on. A packet over `lo` runs OUTPUT, POSTROUTING, PREROUTING, INPUT.

`Road` drives packets along it, a run at a time. Packets go through one at a time, in order: that is the meaning. A run
is a stretch of packets that may be asked the same question together because none of them can see what another one
changes; `Road.run_end` says where a run must end, and why. With runs of one packet this is the reference that longer
runs must equal.

ICMP errors that a run causes leave when it is over (`answers.py`).
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from netemu import clock
from netemu import routing as R
from netemu.answers import Answers
from netemu.conntrack import (
    CONFIRMED,
    DST_NAT,
    DST_NAT_DONE,
    SEEN_REPLY,
    SEQ_ADJUST,
    SRC_NAT,
    SRC_NAT_DONE,
    dotted,
    grouped,
)
from netemu.fragments import Assembly, cut
from netemu.hashing import among, repeats
from netemu.ipvs import WATCHED
from netemu.packets import (
    ACK,
    DELIVERED,
    DONT_FRAGMENT,
    DROPPED,
    FIN,
    FORWARDED,
    HELD,
    HOST,
    I16,
    ICMP,
    ICMP_ERRORS,
    INVALID,
    MORE_FRAGMENTS,
    OFFSET_MASK,
    OTHERHOST,
    PORTED,
    REJECTED,
    RST,
    SYN,
    TCP,
    U32,
    Mask,
    Packets,
    Rows,
    distinct,
    noted,
    options,
    stretch,
    with_address,
)
from netemu.paths import Step
from netemu.routing import REASONS
from netemu.sweeps import Trial, likely_answers
from netemu.tcp import CL, FW
from netemu.trip import Trip

if TYPE_CHECKING:
    from netemu.node import Node

LAST = 1 << 31
STOPS: dict[str, list[tuple[int, str]]] = {  # hook -> what happens there, in kernel priority order
    "PREROUTING": [(-400, "defrag"), (-300, "raw"), (-200, "track"), (-150, "mangle"), (-100, "nat")],
    "INPUT": [(-150, "mangle"), (0, "filter"), (50, "security"), (98, "ipvs_reply"), (99, "ipvs_request"), (100, "nat"),
              (LAST - 1, "synproxy"), (LAST, "confirm")],
    "FORWARD": [(-150, "mangle"), (0, "filter"), (50, "security"), (99, "ipvs_icmp"), (100, "ipvs_reply")],
    "OUTPUT": [(-400, "defrag"), (-300, "raw"), (-200, "track"), (-150, "mangle"), (-100, "nat"), (-99, "ipvs_reply"),
               (-98, "ipvs_request"), (0, "filter"), (50, "security")],
    "POSTROUTING": [(-150, "mangle"), (100, "nat"), (LAST - 1, "synproxy"), (LAST, "confirm")],
}  # the same in Linux 6.1 and 6.18  # fmt: skip

CHUNK = 65536
SECOND = clock.SECOND
LO = 0
_DECIDED = SRC_NAT_DONE | DST_NAT_DONE
_ORDERLY = {"PREROUTING", "INPUT", "FORWARD"}  # a run from links comes here all together, in order
Stop = Callable[[Trip, Rows], Rows]
_ERROR_TYPE = np.isin(np.arange(256), ICMP_ERRORS)
_DELIVERED = Step(None, "local: delivered")
_FOR_US = Step(None, "routing: for this node")
_HELD = Step(None, "defrag: waits for the rest")
_GIVEN_UP = Step(None, "defrag: the rest did not come in time")
_WHOLE = Step(None, "defrag: reassembled")


class Road:
    """What drives packets through a node: the hooks, what stands at each, and where a run ends."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.stops: dict[str, list[Stop]] = {}
        self._out_steps: dict[tuple[str, int, int], Step] = {}
        self.fragments: OrderedDict[tuple[int, int, int, int, str], Assembly] = OrderedDict()  # oldest first
        self.next_expiry = clock.NEVER  # no fragments are given up before
        self.heard: dict[int, int] = {}  # sender -> fragments that came from it
        self.defrag = False
        self.tracked = 0  # how many stops of PREROUTING there are up to tracking
        self.answers = Answers(node)
        self.window = 64
        self.alone_in = self.alone_out = self.one_a_flow = self.one_asking = False  # see _memories
        self.wishing = False  # packets from links may come to a CT rule
        self.dares = False  # nothing that the node remembers keeps answers from joining the run of what they answer
        self.wary = self.failed = 0  # for how many runs they do not, and how often in a row that was in vain
        self.joining: Mask | None = None  # of the next run: which packets go in a second sweep
        self.resets = 0  # see _find_resets
        self._resets_of = -1  # version of the rules that they were found in
        self.moved = False  # see _find_movers
        self.routes = -1  # version of the routes when it was last asked
        self.up = np.zeros(0, bool)

    # ---- stops -------------------------------------------------------------------------------------------------

    def compile(self) -> None:
        """Find out what stands at each hook now: touched tables, tracking if a rule needs it, IPVS if it serves."""
        node = self.node
        self.defrag = node.conntrack.on or node.tables.defrag_needed
        for hook, stops in STOPS.items():
            line: list[Stop] = []
            for _, name in stops:
                if name in ("raw", "mangle", "filter", "security"):
                    if node.tables.has(name, hook):
                        line.append(self._mangle_output if (name, hook) == ("mangle", "OUTPUT") else self._table(name))
                elif name == "nat":
                    if node.tables.has("nat", hook):
                        line.append(self._nat_output if hook == "OUTPUT" else node.nat.hook)
                elif name == "track" and node.conntrack.on:
                    line.append(node.conntrack.track)
                    if hook == "PREROUTING":
                        self.tracked = len(line)
                elif name == "synproxy" and any(m.touch == "synproxy" for m in node.tables.memories):
                    line.append(node.synproxy.follow)
                elif name == "confirm" and node.conntrack.on:
                    line.append(node.conntrack.confirm)
                elif name == "defrag" and self.defrag:
                    line.append(self._defrag)
                elif name.startswith("ipvs") and node.ipvs.active:
                    line.append(
                        {
                            "ipvs_reply": self._ipvs_reply,
                            "ipvs_request": self._ipvs_request,
                            "ipvs_icmp": self._ipvs_icmp,
                        }[name]
                    )
            self.stops[hook] = line
        self._memories()
        if self._resets_of != node.tables.version:
            self.resets, self._resets_of = self._find_resets(), node.tables.version
        self.moved = self._find_movers()
        node.conntrack.foretell(self._steady())
        bound = node.tables.memories and any(m.touch != "flow" for m in node.tables.memories)
        other = node.ipvs.active or self.resets > 1 or self.moved or self.wishing or node.doubts is not None
        self.dares = node.conntrack.on and not (bound or other or self.one_a_flow)
        self.answers.read_sysctls()
        self.up = np.array([link.up for link in node.routing.links])
        get = node.sysctl.int
        self.fragment_time = get("net.ipv4.ipfrag_time") * SECOND
        self.distance = get("net.ipv4.ipfrag_max_dist")
        self.nat_on = node.conntrack.on and any(node.tables.has("nat", hook) for hook in STOPS)

    def _memories(self) -> None:
        """What the rules remember, as far as it limits runs.

        A run comes to a rule in arrival order if there is one way to it, from one hook that packets of a run reach all
        together. Everything else that remembers must see packets one at a time: `alone_in` for packets from links,
        `alone_out` for the node's own. Memory kept per connection only parts packets of one connection: `one_a_flow`.
        Only connections that are not decided yet come to the nat table: what it remembers parts those: `one_asking`.
        """
        memories = self.node.tables.memories
        shared = Counter(m.touch for m in memories if m.touch not in ("rule", "flow"))
        # the connection's mark alone is harmless while nobody writes it
        self.one_a_flow = any(m.touch == "flow" and (m.target or m.extension.name != "connmark") for m in memories)
        own = [m for m in memories if m.touch != "flow"]
        self.alone_out = bool(own)
        disorderly = [
            m
            for m in own
            if not m.one_way
            or m.touch == "flows"
            or len(m.hooks) != 1
            or not m.hooks <= _ORDERLY
            or (m.touch != "rule" and (shared[m.touch] > 1 or m.target))
        ]
        elsewhere = {m.touch for m in own if m.table != "nat"}
        self.alone_in = any(m.table != "nat" or m.touch in elsewhere - {"rule"} for m in disorderly)
        self.one_asking = bool(disorderly)
        # which connection a packet belongs to hangs on what CT rules wish for it: that must be known beforehand
        hooks, known = self.node.tables.wishing()
        self.wishing = "PREROUTING" in hooks
        self.alone_in |= (self.wishing and not known) or ("OUTPUT" in hooks and self.node.ipvs.active)
        self.alone_out |= "OUTPUT" in hooks

    def _steady(self) -> bool:
        """Does what becomes of a new connection depend on nothing but what its first packet looks like, and draws?

        Then a connection whose ports are used again at once can begin, live and end within a run, any number of times:
        all that befell the one before it befalls it, too (`Conntrack.told`).
        """
        node = self.node
        other = node.ipvs.active or self.resets or self.moved or self.wishing or node.doubts is not None
        return not other and not node.rewritten.draws and node.tables.steady

    def _find_resets(self) -> int:
        """Which packets a rule may answer with a TCP reset, that closes their connection behind the back of later ones.

        0   none: there is no such rule
        1   only those of connections that nobody answered yet: rules before it take all ESTABLISHED and INVALID ones
        2   any
        """
        worst = 0
        left: dict[str, set[str]] = {}  # built-in chain -> states of the packets that come as far as this rule
        for table, chain, _, rule in self.node.tables.rules():
            if table != "filter" or rule.target is None:
                continue
            states = left.setdefault(chain.name, {"ESTABLISHED", "INVALID"})
            if getattr(rule.target, "kind", "") == "tcp-reset":
                worst = max(worst, 1 if chain.name in STOPS and not states else 2)
            elif rule.target.name in ("ACCEPT", "DROP"):
                states -= _all_of(" ".join(rule.criteria()))
        return worst

    def _find_movers(self) -> bool:
        """May packets of a masqueraded connection leave by another link than its first one did? That is its end."""
        routing = self.node.routing
        before, self.routes = self.routes, routing.version
        alive = bool((self.node.conntrack.masq[self.node.conntrack.stored] >= 0).any())
        by_more = any(r.tos or r.fwmask or r.iif or r.oif for r in routing.rules) or any(
            e.tos for table in routing.tables.values() for e in table.all()
        )
        return by_more or (alive and (self.moved or before != routing.version))

    def _table(self, table: str) -> Stop:
        walk = self.node.tables.walk

        def stop(trip: Trip, rows: Rows) -> Rows:
            verdict = walk(trip, table, rows)
            return rows if verdict.all() and not (verdict == 2).any() else rows[verdict == 1]

        return stop

    def _mangle_output(self, trip: Trip, rows: Rows) -> Rows:
        """mangle OUTPUT, and a new way out where it changed what routing looks at."""
        p = trip.pkts
        before = [column[rows].copy() for column in (p.src, p.dst, p.mark, p.tos)]
        verdict = self.node.tables.walk(trip, "mangle", rows)
        changed = np.zeros(len(rows), bool)
        for old, now in zip(before, (p.src[rows], p.dst[rows], p.mark[rows], p.tos[rows]), strict=True):
            changed |= old != now
        on = verdict == 1
        again = rows[on & changed]
        if len(again):
            lost = again[~self.route_out(trip, again)]
            if len(lost):
                trip.end(lost, "no route")
        return trip.travelling(rows[on])

    def _nat_output(self, trip: Trip, rows: Rows) -> Rows:
        """nat OUTPUT, and a new way out for every packet whose flow has another destination than it was sent to."""
        rows = self.node.nat.hook(trip, rows)
        p, ct = trip.pkts, self.node.conntrack
        tracked = rows[p.ct[rows] >= 0]
        if not len(tracked):
            return rows
        flows, reply = p.ct[tracked], p.reply[tracked]
        there = np.where(reply, ct.rdst[flows], ct.odst[flows])
        back = np.where(reply, ct.osrc[flows], ct.rsrc[flows])
        again = tracked[there != back]
        if len(again):
            lost = again[~self.route_out(trip, again)]
            if len(lost):
                trip.end(lost, "no route")
                return trip.travelling(rows)
        return rows

    def _whole_for_ipvs(self, trip: Trip, rows: Rows) -> Rows:
        """IPVS sees no fragment either of what it could serve, nor of ICMP: it puts them together itself."""
        p = trip.pkts
        pieces = ((p.frag[rows] & (OFFSET_MASK | MORE_FRAGMENTS)) != 0) & WATCHED[p.proto[rows]] & ~p.ipvs[rows]
        if not pieces.any():
            return rows
        for row in rows[pieces].tolist():
            self._gather(trip, row, f"ipvs {trip.hook}")
        return trip.travelling(rows)

    def _ipvs_reply(self, trip: Trip, rows: Rows) -> Rows:
        rows = self._whole_for_ipvs(trip, rows)
        self.node.ipvs.reply(trip, rows)
        return trip.travelling(rows)

    def _ipvs_request(self, trip: Trip, rows: Rows) -> Rows:
        on, sent = self.node.ipvs.request(trip, rows)
        if len(sent):
            self._reinject(trip, sent)
        return on

    def _ipvs_icmp(self, trip: Trip, rows: Rows) -> Rows:
        rows = self._whole_for_ipvs(trip, rows)
        on, sent = self.node.ipvs.forward_icmp(trip, rows)
        if len(sent):
            self._reinject(trip, sent)
        return on

    def _reinject(self, trip: Trip, rows: Rows) -> None:
        """IPVS sends on what it translated: through the whole of OUTPUT, as if the node had made it."""
        p, hook = trip.pkts, trip.hook
        # what comes without a connection (an invalid segment, a tunnel header) may begin one that the next belongs to
        fresh = (p.ct[rows] < 0) & (p.state[rows] == INVALID) & self.node.conntrack.on
        for some in np.split(rows, np.flatnonzero(fresh)[1:]) if fresh.any() else (rows,):
            self._output(trip, some)
        trip.hook = hook

    def hook(self, trip: Trip, name: str, rows: Rows, first: int = 0, last: int | None = None) -> Rows:
        """Send `rows` past everything that stands at a hook; the rows that come out on the other side.

        first, last   only past the stops from `first` on, and before `last`
        """
        trip.hook = name
        for stop in self.stops[name][first:last]:
            if not len(rows):
                break
            rows = stop(trip, rows)
        return rows

    # ---- the road ----------------------------------------------------------------------------------------------

    def receive(self, trip: Trip, rows: Rows) -> None:
        """Packets that came in on a link."""
        p = trip.pkts
        if not self.up.all():
            down = ~self.up[p.arrived[rows]]
            if down.any():
                trip.end(rows[down], "the link is down")
                rows = rows[~down]
                if not len(rows):
                    return
        rows = self._sane(trip, rows)
        if not len(rows):
            return
        at = stretch(rows)
        p.link_in[at], p.link_out[at] = p.arrived[at], -1
        if len(rows) > 1 and self.node.settled.on:
            rows = self.hook(trip, "PREROUTING", rows, 0, self.tracked)
            if len(rows):
                rows = self.node.settled.pass_by(trip, rows)
            rows = self.hook(trip, "PREROUTING", rows, self.tracked)
        else:
            rows = self.hook(trip, "PREROUTING", rows)
        if not len(rows):
            return
        flow = self._flow(p, rows, forwarded=True)
        way = self.node.routing.input(p.src[rows], p.dst[rows], p.link_in[rows], p.mark[rows], p.tos[rows], flow)
        self._attach(trip, rows, way)
        kind, redirect = way.kind, way.redirect
        if (p.ihl[rows] > 20).any():
            self._options(trip, rows, kind)
            on = p.fate[rows] == 0
            rows, kind, redirect = rows[on], kind[on], redirect[on]
        local = (kind == R.LOCAL) | (kind == R.BROADCAST) | (kind == R.MULTICAST)
        unicast = kind == R.UNICAST
        if local.any():
            self._deliver(trip, rows[local])
        if unicast.any():
            self._forward(trip, rows[unicast], redirect[unicast])
        other = ~local & ~unicast
        if other.any():
            self._unroutable(trip, rows[other], kind[other])

    def _sane(self, trip: Trip, rows: Rows) -> Rows:
        """Drop what the IP layer does not even look at."""
        p = trip.pkts
        good = p.pkttype[stretch(rows)] != OTHERHOST
        if not good.all():
            trip.end(rows[~good], "addressed to another host on the link")
            rows = rows[good]
            if not len(rows):
                return rows
        at = stretch(rows)
        ihl, length = p.ihl[at], p.length[at]
        short = p.data.take(p.at[at]) >> 4 != 4
        short |= ihl < 20
        short |= length < ihl.astype(np.int32)
        short |= p.wire[at] < length
        if short.any():
            trip.end(rows[short], "malformed IP header")
            rows = rows[~short]
            if not len(rows):
                return rows
        summed = p.ip_checksum_ok(rows)
        if not summed.all():
            trip.end(rows[~summed], "wrong IP header checksum")
            rows = rows[summed]
        return rows

    def _options(self, trip: Trip, rows: Rows, kind: NDArray[np.int8]) -> None:
        """IP options: source routes are not taken, nonsense is answered, records of the way are filled in."""
        p, node = trip.pkts, self.node
        fine = np.isin(kind, (*R.DELIVERED_KINDS, R.UNICAST, R.NOT_FORWARDING, R.BLACKHOLE, *R.ICMP_ERROR))
        for row in rows[fine & (p.ihl[rows] > 20)].tolist():
            one = np.array([row])
            bad, kinds = options(p.original(row)[: int(p.ihl[row])])
            if bad is not None:
                trip.step(one, Step(None, "routing: bad IP options"))
                trip.cause_icmp(one, 12, 0, bad << 24)
                trip.end(one, "bad IP options", REJECTED)
            elif kinds & {131, 137}:
                if node.sysctl.link_int(node.routing.names[int(p.arrived[row])], "accept_source_route"):
                    node.caveat("source routes are accepted on this node, and not followed: such packets are dropped")
                trip.end(one, "source routes are not accepted")
            elif kinds & {7, 68}:
                self._note(trip, row)

    def _note(self, trip: Trip, row: int) -> None:
        """The node writes itself into record-route and timestamp options; the time is the packet's own."""
        p, node = trip.pkts, self.node
        ihl = int(p.ihl[row])
        here = int(p.dst[row]) if trip.route_kind[row] == R.LOCAL else node.routing.source_for(int(p.src[row]))
        ms = node.milliseconds(int(p.time[row]))
        packet = p.bytes(row)
        header, places = noted(
            packet[:ihl], here, ms, lambda address: bool(node.routing.is_local(np.array([address], np.uint32))[0])
        )
        p.rebuild(row, header + packet[ihl:])
        trip.signed[row] = places

    def _sign(self, trip: Trip, rows: Rows) -> None:
        """On the way out the address in the options is that of the way out."""
        p = trip.pkts
        for row in rows[np.isin(rows, list(trip.signed))].tolist():
            one = np.array([row])
            way = self.node.routing.output(
                p.dst[one], np.zeros(1, np.uint32), p.mark[one], p.tos[one], int(trip.route_link[row])
            )
            packet, ihl = p.bytes(row), int(p.ihl[row])
            header = with_address(packet[:ihl], trip.signed[row], int(way.source[0]))
            p.rebuild(row, header + packet[ihl:])

    def _attach(self, trip: Trip, rows: Rows, way: R.Route) -> None:
        trip.route_kind[rows] = way.kind
        trip.route_link[rows] = way.link
        trip.nexthop[rows] = way.nexthop
        trip.mtu[rows] = way.mtu

    def route_out(self, trip: Trip, rows: Rows, *, first: bool = False) -> Mask:
        """Attach the way out for what `rows` say now; False where there is none (the old way stays).

        first  a socket asks, and tells the ports; who asks again tells the addresses alone
        """
        p = trip.pkts
        flow = self._flow(p, rows, forwarded=False) if first else None
        way = self.node.routing.output(p.dst[rows], p.src[rows], p.mark[rows], p.tos[rows], flow=flow)
        ok: Mask = np.isin(way.kind, (R.LOCAL, R.UNICAST, R.BROADCAST, R.MULTICAST))
        if ok.all():
            self._attach(trip, rows, way)
        else:
            good = rows[ok]
            trip.route_kind[good], trip.route_link[good] = way.kind[ok], way.link[ok]
            trip.nexthop[good], trip.mtu[good] = way.nexthop[ok], way.mtu[ok]
        return ok

    def _flow(self, p: Packets, rows: Rows, forwarded: bool) -> U32 | None:
        """What multipath routes choose by: of packets that came in, or (forwarded=False) that a socket sends."""
        routing = self.node.routing
        if not routing.spreads:
            return None
        src, dst, proto, kind = p.src[rows], p.dst[rows], p.proto[rows], p.icmp_type[rows]
        ported = np.isin(proto, PORTED) & ((p.frag[rows] & (OFFSET_MASK | MORE_FRAGMENTS)) == 0)
        sport, dport = np.where(ported, p.sport[rows], 0), np.where(ported, p.dport[rows], 0)
        pings = proto == ICMP
        if not forwarded:  # Linux has type and code of what it sends where others have their port
            dport = np.where(pings, kind.astype(np.uint16) << 8 | p.icmp_code[rows], dport)
        elif not self.node.sysctl.int("net.ipv4.fib_multipath_hash_policy"):  # errors go by what they are about
            whole = (p.frag[rows] & OFFSET_MASK) == 0
            for k in np.flatnonzero(pings & _ERROR_TYPE[kind] & whole).tolist():
                inner = p.bytes(int(rows[k]))[int(p.ihl[rows[k]]) + 8 :]
                if len(inner) >= 20:
                    src[k], dst[k] = struct.unpack_from("!II", inner, 12)
        return routing.flow(src, dst, proto, sport, dport, forwarded=forwarded)

    def _unroutable(self, trip: Trip, rows: Rows, kind: NDArray[np.int8]) -> None:
        """No way on: some kinds tell the sender, some do not."""
        for k in distinct(kind):
            some = rows[kind == k]
            trip.step(some, Step(None, f"routing: {REASONS[k]}"))
            error = R.ICMP_ERROR.get(k)
            if error is not None:
                trip.cause_icmp(some, *error, routeless=True)
            trip.end(some, REASONS[k], DROPPED if error is None else REJECTED)

    def _deliver(self, trip: Trip, rows: Rows) -> None:
        """To a local process, through INPUT."""
        trip.step(rows, _FOR_US)
        if not self.defrag:
            rows = self._defrag(trip, rows)
        rows = self.hook(trip, "INPUT", rows)
        if len(rows):
            trip.step(rows, _DELIVERED)
            trip.end(rows, None, DELIVERED)

    def _forward(self, trip: Trip, rows: Rows, redirect: Mask) -> None:
        p = trip.pkts
        shortcut = rows[redirect]
        stray = p.pkttype[rows] != HOST
        if stray.any():
            trip.end(rows[stray], "not addressed to this node on the link, and not for it")
            rows = rows[~stray]
        old = p.ttl[rows] <= 1
        if old.any():
            trip.step(rows[old], Step(None, "routing: ttl exceeded"))
            trip.cause_icmp(rows[old], 11, 0)
            trip.end(rows[old], "ttl exceeded", REJECTED)
            rows = rows[~old]
        rows = self._fits(trip, rows)
        if not len(rows):
            return
        self._say_way(trip, rows)
        trip.rewrite(rows, "ttl", p.ttl[rows] - 1, Step(None, "routing: forwarded"))
        if len(shortcut):
            trip.waver(shortcut)
            self.answers.redirect(trip, trip.travelling(shortcut))
        p.link_out[rows] = trip.route_link[rows]
        rows = self.hook(trip, "FORWARD", rows)
        if trip.signed:
            self._sign(trip, rows)
        self._leave(trip, rows)

    def _fits(self, trip: Trip, rows: Rows) -> Rows:
        """Too long for the way out and not to be cut: tell the sender."""
        p = trip.pkts
        long = (p.length[rows] > trip.mtu[rows]) & ((p.frag[rows] & DONT_FRAGMENT) != 0)
        if long.any():
            for k in np.flatnonzero(long) if trip.whole else ():
                parts = trip.whole.get(int(rows[k]))  # it is the fragments that must fit
                long[k] = parts is None or parts.largest > trip.mtu[rows[k]]
            for row in rows[long]:
                one = np.array([row])
                trip.step(one, Step(None, f"routing: does not fit the mtu {trip.mtu[row]}"))
                trip.cause_icmp(one, 3, 4, int(trip.mtu[row]))
            trip.end(rows[long], "fragmentation needed", REJECTED)
            rows = rows[~long]
        return rows

    def _groups(self, trip: Trip, rows: Rows) -> list[tuple[int, Rows]]:
        links = trip.route_link[rows]
        first = int(links[0])
        if len(rows) == 1 or (links == first).all():
            return [(first, rows)]
        return [(k, rows[links == k]) for k in distinct(links)]

    def _say_way(self, trip: Trip, rows: Rows) -> None:
        """The routing step: the device, and the gateway where there is one."""
        hops = trip.nexthop[rows]
        via = np.where(hops != trip.pkts.dst[rows], hops, 0).astype(np.int64)
        ways = via << 16 | trip.route_link[rows]
        first = int(ways[0])
        for way in (first,) if (ways == first).all() else distinct(ways):
            key = ("way", way, 0)
            step = self._out_steps.get(key)
            if step is None:
                name, gateway = self.node.routing.names[way & 0xFFFF], way >> 16
                text = f"routing: via {dotted(gateway)} dev {name}" if gateway else f"routing: dev {name}"
                step = self._out_steps[key] = Step(None, text)
            trip.step(rows[ways == way], step)

    def _leave(self, trip: Trip, rows: Rows) -> None:
        """POSTROUTING, and out; what goes to `lo` comes back in."""
        if not len(rows):
            return
        p = trip.pkts
        p.link_out[rows] = trip.route_link[rows]
        p.link_in[rows] = p.arrived[rows]
        rows = self.hook(trip, "POSTROUTING", rows)
        if not len(rows):
            return
        back = trip.route_link[rows] == LO
        if back.any():
            self._loop(trip, rows[back])
            rows = rows[~back]
            if not len(rows):
                return
        p.link_out[rows] = trip.route_link[rows]
        up = self.up[p.link_out[rows]]
        if not up.all():
            trip.end(rows[~up], "the link is down")
            rows = rows[up]
            if not len(rows):
                return
        big = p.length[rows] > trip.mtu[rows]
        if trip.whole:
            big |= np.isin(rows, list(trip.whole))
        for row in rows[big].tolist():
            self._fragment(trip, row)
        rows = trip.travelling(rows)
        if not len(rows):
            return
        for link, some in self._groups(trip, rows):
            trip.step(some, self._out_step(link))
        trip.left[rows] = trip.route_link[rows]
        trip.end(rows, None, FORWARDED)

    def _out_step(self, link: int) -> Step:
        step = self._out_steps.get(("out", link, 0))
        if step is None:
            step = self._out_steps["out", link, 0] = Step(None, f"out: {self.node.routing.names[link]}")
        return step

    def _loop(self, trip: Trip, rows: Rows) -> None:
        """Over `lo`: the packet keeps its connection, and its route is not looked up again."""
        p = trip.pkts
        p.link_in[rows], p.link_out[rows] = LO, -1
        rows = self.hook(trip, "PREROUTING", rows)
        if not len(rows):
            return
        p.link_out[rows] = -1
        self._deliver(trip, rows)

    def send(self, trip: Trip, rows: Rows) -> None:
        """Packets that the node itself sends."""
        if not len(rows):
            return
        p = trip.pkts
        p.local[rows] = True
        p.arrived[rows] = -1
        ok = self.route_out(trip, rows, first=True)
        if not ok.all():
            trip.step(rows[~ok], Step(None, "routing: no route"))
            trip.end(rows[~ok], "no route")
            rows = rows[ok]
            if not len(rows):
                return
        self._say_way(trip, rows)
        self._output(trip, rows)

    def launch(self, child: Trip, *, routed: bool = False) -> None:
        """Packets that the node makes while others are under way leave at once, with all that they cause in turn.

        child   their trip; it has the trip and the rows that caused it as `parent` and `parent_rows`
        routed  the way out is attached already
        """
        assert child.parent is not None
        child.parent.children.append(child)
        rows = np.arange(child.pkts.n)
        if routed:
            self._say_way(child, rows)
            self._output(child, rows)
        else:
            self.send(child, rows)
        self.answers.pay(child)

    def _output(self, trip: Trip, rows: Rows) -> None:
        p = trip.pkts
        p.link_in[rows] = -1
        p.link_out[rows] = trip.route_link[rows]
        rows = self.hook(trip, "OUTPUT", rows)
        if not len(rows):
            return
        self._leave(trip, rows)

    # ---- fragments ---------------------------------------------------------------------------------------------

    def _defrag(self, trip: Trip, rows: Rows) -> Rows:
        """With tracking on nobody behind this stop sees a fragment: hold them until the packet is whole."""
        p = trip.pkts
        pieces = (p.frag[stretch(rows)] & np.uint16(OFFSET_MASK | MORE_FRAGMENTS)) != 0
        if not pieces.any():
            return rows
        for row in rows[pieces].tolist():
            self._gather(trip, row, trip.hook if self.defrag else "")
        return trip.travelling(rows)

    def _gather(self, trip: Trip, row: int, where: str) -> None:
        """A fragment waits, or makes its packet whole. Everybody who puts fragments together has those of his own."""
        p = trip.pkts
        one = np.array([row])
        name = (int(p.src[row]), int(p.dst[row]), int(p.ident[row]), int(p.proto[row]), where)
        now = int(p.time[row])
        held = self.fragments.get(name)
        if not self.fragments:
            self.heard.clear()
        told = self.heard[name[0]] = self.heard.get(name[0], 0) + 1
        if held and held.parts and self.distance and told - held.told > self.distance:
            del self.fragments[name]  # too many others from there in between
            held = None
        if held is None:
            held = self.fragments[name] = Assembly(now + self.fragment_time)
            self.next_expiry = min(self.next_expiry, held.until)
        held.told = told
        before = len(held.parts)
        whole = held.add(p.bytes(row))
        if not p.frag[row] & OFFSET_MASK and len(held.parts) > before:
            held.first, held.link = p.bytes(row), int(p.arrived[row])
            held.pkttype, held.mark = int(p.pkttype[row]), int(p.mark[row])
        if whole is None:
            if held.broken:
                trip.end(one, held.broken)
                del self.fragments[name]
            elif len(held.parts) == before:
                trip.end(one, "a fragment that came before")
            else:
                trip.step(one, _HELD)
                trip.end(one, "waits for the other fragments", HELD)
            return
        del self.fragments[name]
        p.rebuild(row, whole)
        trip.whole[row] = held
        trip.step(one, _WHOLE)

    def _give_up(self, trip: Trip, row: int, now: int) -> None:
        """Fragments whose time is over. The sender of a first one is told, if the packet was for this node.

        row   the packet that came next: the message comes out with it
        """
        told: list[Assembly] = []
        while self.fragments:
            name, held = next(iter(self.fragments.items()))
            if held.until > now:
                break
            del self.fragments[name]
            if held.first and held.link >= 0:
                told.append(held)
        self.next_expiry = next((a.until for a in self.fragments.values()), clock.NEVER)
        if not told:
            return
        pkts = Packets.from_bytes([held.first for held in told])
        pkts.time[:] = [held.until for held in told]
        pkts.serial[:] = trip.pkts.serial[row] + (1 << 42)
        for column in ("pkttype", "mark"):
            getattr(pkts, column)[:] = [getattr(held, column) for held in told]
        pkts.arrived[:] = pkts.link_in[:] = [held.link for held in told]
        child, rows = Trip(self.node, pkts, parent=trip, parent_rows=np.full(len(told), row)), np.arange(len(told))
        trip.children.append(child)
        way = self.node.routing.input(pkts.src, pkts.dst, pkts.link_in, pkts.mark, pkts.tos)
        self._attach(child, rows, way)
        child.step(rows, _GIVEN_UP)
        child.end(rows, "the other fragments did not come")
        ours = rows[way.kind == R.LOCAL]
        child.end(ours, None, REJECTED)
        child.cause_icmp(ours, 11, 1)
        self.answers.pay(child)

    def _fragment(self, trip: Trip, row: int) -> None:
        """Cut a packet to the mtu, or where it was put together."""
        p = trip.pkts
        limit = int(trip.mtu[row])
        parts = trip.whole.get(row)
        packet = p.bytes(row)
        if p.frag[row] & DONT_FRAGMENT and (parts is None or parts.largest > limit):
            one = np.array([row])
            if not p.local[row]:
                trip.cause_icmp(one, 3, 4, limit)
            trip.end(one, "fragmentation needed", DROPPED if p.local[row] else REJECTED)
        elif parts is not None:
            # who receives TCP wants its whole header in one place: where the first piece has less, the pieces are lost
            received = p.arrived[row] >= 0 and trip.parent is None
            if p.proto[row] == TCP and received:
                parts.pull(20)
            trip.outs[row] = cut(packet, min(limit, parts.largest), [] if parts.pulled else parts.sizes)
        elif len(packet) > limit:
            trip.outs[row] = cut(packet, limit)

    # ---- runs --------------------------------------------------------------------------------------------------

    def run(self, trip: Trip, rows: Rows) -> int:
        """One run: packets that all came in on links, or that the node all sent itself. How many of them went."""
        p, node = trip.pkts, self.node
        now = int(p.time[rows[0]])
        if node.ipvs.next_due <= now:
            node.ipvs.advance(now)
        if now >= node.conntrack.next_sweep:
            node.conntrack.sweep(now)
        if self.next_expiry <= now:
            self._give_up(trip, int(rows[0]), now)
        before = node.now
        node.now = max(before, int(p.time[rows[-1]]))
        if len(rows) > 1:
            trip.write_later()
        if p.arrived[rows[0]] < 0:
            self.send(trip, rows)
        elif self.joining is not None:
            rows = rows[: self._in_two_sweeps(trip, rows, self.joining)]
            node.now = max(before, int(p.time[rows[-1]]))
        else:
            self.receive(trip, rows)
        self.joining = None
        if trip.owed or trip.silent:
            self.answers.pay(trip)
        trip.write(node.settled.through(rows))
        node.settled.learn(trip)
        node.conntrack.end_run()
        return len(rows)

    def _in_two_sweeps(self, trip: Trip, rows: Rows, joining: Mask) -> int:
        """First packets of new connections, and then those that join theirs (`joining`); how many of `rows` went."""
        p = trip.pkts
        wanted = len(rows)
        first = np.zeros(wanted, bool)  # what a trial showed not to join anything
        for attempt in range(4):
            if joining.all() or not joining.any() or not Trial.possible(trip):
                break
            trial = Trial(trip, rows[~joining])
            self.receive(trip, rows[~joining])
            right, alone = self._as_guessed(trial, rows, joining)
            if right == len(rows):
                trial.keep()
                self.receive(trip, rows[joining])
                self.failed = 0 if 4 * right >= wanted else self.failed
                return right
            trial.undo()
            if attempt < 2 and len(alone):  # then these are first ones themselves
                first[alone] = True
                rows = rows[: self._flows_end(p, rows, daring=True, first=first[: len(rows)])]
                if self.joining is None:
                    break
                joining = self.joining
            else:  # what comes before the first wrong guess was guessed right
                rows, joining = rows[: max(right, 1)], joining[: max(right, 1)]
        self.failed = min(self.failed + 1, 6)
        self.wary = 1 << self.failed
        self.window = max(self.window // 2, 16)
        right = max(self._flows_end(p, rows, daring=False), 1)
        self.receive(trip, rows[:right])
        return right

    def _as_guessed(self, trial: Trial, rows: Rows, joining: Mask) -> tuple[int, NDArray[np.intp]]:
        """Of how many of `rows` is all as it was guessed, now that the first sweep is over?

        And the places of those that should join connections, and are in none.
        """
        ct, p = self.node.conntrack, trial.trip.pkts
        others = np.flatnonzero(joining)
        if not trial.in_order():
            return int(others[0]), others[:0]
        end = min(len(rows), int(np.searchsorted(p.serial[rows], ct.too_early)))
        opening = trial.packets
        ids = ct.look_up(opening, np.arange(opening.n))
        end = _first_at(np.flatnonzero(~joining)[(ids >= 0) & (ct.born[ids >> 1] < opening.serial)], end)
        ids = ct.look_up(p, rows[others])
        theirs = ids >> 1
        wrong = (ids < 0) | (ct.born[theirs] >= p.serial[rows[others]]) | ((ct.status[theirs] & CONFIRMED) == 0)
        end = _first_at(others[wrong], end)
        if end == len(rows):
            last = int(rows[~joining][-1])
            end = _first_at(others[self._flows_end(p, rows[others], daring=False, beside=last) :][:1], end)
            ct.forget_ahead()
        return end, others[ids < 0]

    def run_end(self, p: Packets, start: int, limit: int) -> int:
        """Where the run that begins at row `start` must end: before the first packet that could see another's doing.

        Reasons, in order: two ways in (links and the node itself); a timer that falls due; things with memory that can
        be reached by more than one way; a fragment or an ICMP error (they touch what they quote); a packet of a flow
        that this run begins, closes or may rewrite; a packet that could be the answer to a flow this run begins; a
        flow whose place or port depends on what the run before it frees (`_choices_end`).
        """
        node = self.node
        self.joining = None
        stop = min(p.n, start + min(limit, self.window))
        if stop - start <= 1 or (self.alone_out if p.arrived[start] < 0 else self.alone_in):
            return start + 1
        size = end = stop - start
        at = slice(start, stop)
        local = p.arrived[at] < 0
        end = _first(local != local[0], end)
        t0 = int(p.time[start])
        if node.ipvs.next_due <= t0:  # what rings now may set alarms within the run
            node.ipvs.advance(t0)
        dues = (due for due in (node.ipvs.next_due, self.next_expiry) if due > t0)
        until = min([t0 + node.shortest_timeout, *dues])
        end = min(end, int(np.searchsorted(p.time[at], until)))
        end = _first((p.frag[at] & np.uint16(OFFSET_MASK | MORE_FRAGMENTS)) != 0, end)
        icmp = p.proto[at] == ICMP
        if icmp.any():
            end = _first(icmp & _ERROR_TYPE[p.icmp_type[at]], end)
        if end == 0:
            return start + 1
        if node.conntrack.on or node.ipvs.active:
            daring = self.dares and not local[0] and not self.wary
            self.wary -= self.wary > 0
            end = self._flows_end(p, np.arange(start, start + end), daring=daring)
        if end == size and self.window < CHUNK:
            self.window *= 2
        elif end * 4 < size and self.window > 16:
            self.window //= 2
        return start + max(end, 1)

    def _flows_end(self, p: Packets, rows: Rows, *, daring: bool, first: Mask | None = None, beside: int = -1) -> int:
        """How many of `rows` may go together, as far as connections are concerned.

        daring   answers may join the run of what they answer, in a second sweep: `joining` says which do
        first    bool[len(rows)]  packets that are known not to
        beside   of the second sweep: the last row of the first one
        """
        node = self.node
        ct = node.conntrack
        self.joining = None
        end = len(rows)
        wishes = self._wishes(p, rows)
        ids = ct.look_ahead(p, rows, wishes) if ct.on else np.full(len(rows), -1, np.int32)
        if ct.on and not self.parting and self._all_goes_on(p, rows, ids):
            if node.ipvs.active:
                end = node.ipvs.run_end(*self._translated(p, rows, ids), ids >> 1)
            return end
        known = ids >= 0
        flows = np.where(known, ids >> 1, -1)
        if node.helpers.attended or wishes is not None:
            end = min(end, max(_first(self._attended(p, rows, flows, wishes), end), 1))
        ending = np.zeros(len(rows), bool)  # packets that may end their connection
        if known.any():
            where = np.flatnonzero(known)
            f = flows[where]
            order = grouped(f)
            follows = np.zeros(len(f), bool)
            follows[order[1:]] = f[order[1:]] == f[order[:-1]]
            if self.one_a_flow:
                end = _first_at(where[follows], end)
            if self.resets:  # a rule may close the connection
                closing = p.proto[rows[where]] == TCP
                if self.resets == 1:
                    closing &= (ct.status[f] & SEEN_REPLY) == 0
                end = _first_at(where[follows & closing], end)
            if self.moved:  # its route may end the connection
                masqueraded = where[ct.masq[f] >= 0]
                end = min(end, max(_first_at(masqueraded, end), 1))
            late = ct.deadline[f] <= p.time[rows[where]]
            alone = bool(known.all() and not late.any()) and beside < 0
            sharp = self._sharp(p, rows[where], f, (ids[where] & 1) != 0, order, strangers=not alone)
            if ct.abrupt:
                sharp |= np.isin(ct.proto[f], list(ct.abrupt))
            if sharp.any() or late.any():  # what follows in the flow must wait
                starts = np.flatnonzero(~follows.take(order))
                event = np.where((sharp | late).take(order), np.arange(len(f)), len(f))
                first = np.minimum.reduceat(event, starts)
                stops = np.append(starts[1:], len(f))
                some = np.flatnonzero(first < stops)
                waits = np.where(late.take(order.take(first[some])), starts[some], first[some]) + 1
                end = _first_at(where[order[waits[waits < stops[some]]]], end)
                ending[where[sharp]] = True
                end = _first_at(where[sharp & (rows[where] < beside)], end)  # it would free what others chose among
            daring &= not sharp.any() and bool((ct.deadline[f] > p.time[rows[-1]]).all())
            known[where[late]] = False  # what it belonged to is over: it begins anew
        if self.one_asking:
            status = np.where(known, ct.status[np.maximum(flows, 0)], 0)
            asking = np.flatnonzero((status & _DECIDED) != _DECIDED)
            end = _first_at(asking[1:], end)
        if ct.on:
            strangers = np.flatnonzero(~known[:end])
            room = max(ct.places, 0)
            if len(strangers) > room:  # the table fills: one at a time, and somebody has to go
                end = min(end, max(int(strangers[room]), 1))
            joins = np.zeros(len(strangers), bool)
            if daring and len(strangers) > 1 and not node.helpers.attended and not node.helpers.expected:
                joins = likely_answers(p, rows[strangers], node.rewritten)
                if first is not None:
                    joins &= ~first[strangers]
                if joins.any() and (p.ihl[rows] > 20).any():  # options are written into
                    joins[:] = False
            joining, strangers = strangers[joins], strangers[~joins]
            # a SYN that opens a connection anew begins one, too, and maybe with somebody else
            begins = ending & ((p.flags[rows] & SYN) != 0)
            begins[strangers] = True
            strangers = np.flatnonzero(begins[:end])
            if len(strangers) and self.nat_on:
                flows = np.where(known, flows, -1)
                end = min(end, self._choices_end(p, rows, strangers, flows, ending, end))
            if len(joining) and joining[0] < end:
                self.joining = known[:end].copy()
                self.joining[joining[joining < end]] = True
                return end
            strangers = strangers[strangers < end]
            if len(strangers) > 1:
                end = min(end, self._strangers_end(p, rows, strangers, end))
        if node.ipvs.active:
            flows = np.where(known, ids >> 1, -1)[:end]
            end = min(end, node.ipvs.run_end(*self._translated(p, rows[:end], ids[:end]), flows))
        return end

    @property
    def parting(self) -> bool:
        """Rules, helpers or routes may part packets that only go on with their connections."""
        node = self.node
        parted = self.one_a_flow or self.one_asking or self.resets or self.moved or self.wishing
        return bool(parted or node.helpers.attended or node.conntrack.abrupt)

    def _all_goes_on(self, p: Packets, rows: Rows, ids: NDArray[np.int32]) -> bool:
        """All packets belong to connections that we know, none of which is over, and none of them says that it may be.

        This is said of most runs of settled traffic, and then nothing else need be asked.
        """
        at = stretch(rows)
        if int(ids.min()) < 0 or (p.flags[at] & np.uint8(SYN | RST)).any():
            return False
        ends = self.node.conntrack.deadline.take(ids >> 1)
        return int(ends.min()) > p.time.item(rows[-1])

    def _translated(self, p: Packets, rows: Rows, ids: NDArray[np.int32]) -> tuple[Packets, Rows]:
        """The packets as they come to IPVS: sent to where NAT has their connections go, or their answers."""
        ct = self.node.conntrack
        flows, reply = ids >> 1, (ids & 1).astype(bool)
        moved = (ids >= 0) & ((ct.status[flows] & np.where(reply, SRC_NAT, DST_NAT)) != 0)
        if not moved.any():
            return p, rows
        p = p.take(rows)
        flows, reply = flows[moved], reply[moved]
        p.dst[moved] = np.where(reply, ct.osrc[flows], ct.rsrc[flows])
        p.dport[moved] = np.where(reply, ct.osport[flows], ct.rsport[flows])
        return p, np.arange(p.n)

    def _attended(self, p: Packets, rows: Rows, flows: NDArray[np.integer], wishes: I16 | None) -> Mask:
        """bool[len(rows)]: helpers look into the packet, or expect it. They see the others' doing: it goes alone."""
        ct, helpers = self.node.conntrack, self.node.helpers
        out: Mask = (flows >= 0) & ((ct.helper[flows] != 0) | ((ct.status[flows] & SEQ_ADJUST) != 0))
        if helpers.expected:
            out |= ((flows < 0) | (ct.deadline[flows] <= p.time[rows])) & helpers.wanted(p, rows)
        if wishes is not None:
            looking = [k for k, template in enumerate(ct.templates, 1) if template.helper]
            out |= np.isin(wishes, looking) & (p.proto[rows] != TCP)  # of TCP the first packet says nothing
        return out

    def _wishes(self, p: Packets, rows: Rows) -> I16 | None:
        """What CT rules will wish for packets from links, as numbers of templates; None: nothing."""
        if not self.wishing or p.arrived[rows[0]] < 0:
            return None
        ghosts = Trip(self.node, p.take(rows))
        ghosts.hook, ghosts.remember = "PREROUTING", False
        ghosts.pkts.link_in[:] = ghosts.pkts.arrived
        self.node.tables.walk.foresee(ghosts, "raw")
        return ghosts.template

    def _sharp(
        self, p: Packets, rows: Rows, flows: NDArray[np.intp], reply: Mask, order: NDArray[np.intp], *, strangers: bool
    ) -> Mask:
        """bool[len(rows)]: packets that may end their connection, or begin it anew.

        A reset deletes a connection that nobody answered; a SYN begins one anew that is over, or may be by then: there
        was a FIN or a reset. Any other SYN changes no more than data does.
        flows  intp[n] the connection of each packet, all known      order  puts those of one side by side (`grouped`)
        reply  bool[n] it goes the other way           strangers  there are packets in the run that no connection knows
        """
        ct = self.node.conntrack
        tcp = p.proto.take(rows) == TCP
        flags = p.flags.take(rows)
        sharp: Mask = tcp & ((flags & (SYN | RST)) != 0)
        if not sharp.any() or self.node.ipvs.active:
            return sharp
        reset = (flags & RST) != 0
        opens = (flags & (SYN | ACK | RST)) == SYN
        in_order = flows.take(order)
        closing = np.concatenate(([0], np.cumsum(((flags & (FIN | RST)) != 0).take(order))))
        starts = np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))
        over = np.empty(len(flows), bool)
        over[order] = closing[:-1] > np.repeat(closing.take(starts), np.diff(starts, append=len(flows)))
        state = ct.tcp.misc[flows, 9]
        over |= (state >= FW) & (state <= CL)
        unanswered = (ct.status[flows] & SEEN_REPLY) == 0
        if not ct.steady:
            sharp &= (reset & unanswered) | (opens & over)
            return sharp
        told = tcp & opens & over & ct.told(p, rows, flows, reply)
        # a connection that began within the run may be unanswered when its reset comes
        opened = np.concatenate(([0], np.cumsum(opens.take(order))))
        unanswered[order] |= opened[:-1] > np.repeat(opened.take(starts), np.diff(starts, append=len(flows)))
        gone = reset & unanswered
        if not strangers:  # nobody takes the ports between the reset and the SYN that follows it
            follows = np.append(in_order[1:] == in_order[:-1], False) & np.append(told.take(order)[1:], False)
            gone[order] &= ~follows
        sharp &= gone | (opens & over & ~told)
        return sharp

    def _choices_end(
        self, p: Packets, rows: Rows, strangers: NDArray[np.intp], flows: NDArray[np.intp], ends: Mask, end: int
    ) -> int:
        """New connections are given ports that no other one uses: none may be freed or taken out of turn meanwhile.

        strangers  places of packets that begin a connection      flows  the connection of every packet, -1: none
        ends       which packets may end their connection
        """
        ct, rewrites = self.node.conntrack, self.node.rewritten
        r = rows[strangers]
        tcp = p.proto[rows] == TCP
        # a destination's port, or an ICMP id with it, is chosen long before the flow is in the table
        drawing = np.arange(len(r)) if rewrites.draws else np.flatnonzero((p.proto[r] == ICMP) & rewrites.dnat)
        if len(drawing) > 1:
            d = r[drawing]
            ports = np.where(p.proto[d] == ICMP, 0, p.sport[d]).astype(np.uint64)
            client = (
                (p.proto[d].astype(np.uint64) << np.uint64(48)) | (p.src[d].astype(np.uint64) << np.uint64(16)) | ports
            )
            _, first = np.unique(client, return_index=True)
            again = np.ones(len(d), bool)
            again[first] = False
            again[1:] |= rewrites.source(p.src[d[1:]])
            end = _first_at(strangers[drawing[again]], end)
        # what may end a connection, which frees its tuple, comes before the choices of those that it overtook
        ending = np.flatnonzero((flows >= 0) & ends)
        ending = ending[ending > strangers[0]]
        if len(ending):
            if not rewrites.narrow:  # then a choice may fall on what another one uses, or once used, of the same ports
                f, own = flows[ending], p.sport[r]
                mapped = ((ct.status[f] & SRC_NAT) != 0) & np.isin(ct.osport[f], own)
                ending = ending[np.isin(ct.rdport[f], own) | np.isin(ct.odport[f], own) | mapped]
            end = _first_at(ending, end)
        if rewrites.narrow and self.node.kernel != "6.1":  # a new SYN may take the place of a closing connection
            opening = strangers[tcp[strangers] & ((p.flags[r] & SYN) != 0)]
            older = np.flatnonzero((flows >= 0) & tcp & ((ct.status[flows] & SRC_NAT) != 0))
            if len(opening) and len(older):
                end = min(end, max(int(opening[0]), int(older[0])))
        if self.node.ipvs.active and len(r) > 1:  # IPVS's packets leave while the others still stand before FORWARD
            served = self.node.ipvs._may_serve(p, r)
            direct = ~served & (rewrites.dnat | np.isin(p.dst[r].astype(np.uint64), rewrites.servers))
            if served.any() and direct.any():
                end = min(end, max(int(strangers[served.argmax()]), int(strangers[direct.argmax()])))
        return end

    def _strangers_end(self, p: Packets, rows: Rows, strangers: NDArray[np.intp], end: int) -> int:
        """Packets that no connection knows: none may be of a flow, or the answer to a flow, that another one begins."""
        r = rows[strangers]
        src, dst, proto = p.src.take(r), p.dst.take(r), p.proto.take(r)
        sport, dport = p.sport.take(r), p.dport.take(r)
        icmp = proto == ICMP
        if icmp.any():
            ports = p.icmp_id.take(r)
            sport, dport = np.where(icmp, ports, sport), np.where(icmp, ports, dport)
        a = src.astype(np.uint64) << np.uint64(16) | sport
        b = dst.astype(np.uint64) << np.uint64(16) | dport
        kind = proto.astype(np.uint64) << np.uint64(48)
        end = _first_at(strangers[repeats((np.minimum(a, b) | kind, np.maximum(a, b)))], end)
        rewrites = self.node.rewritten
        if rewrites.none:
            return end
        to = np.flatnonzero(among(dst, src) | rewrites.source(dst))
        source = src.take(to)
        answer = to.compress(among(source, dst) | rewrites.destination(source))
        answer = answer[answer > 0]
        return _first_at(strangers[answer], end)


def _all_of(criteria: str) -> set[str]:
    """The connection states all of whose packets meet these criteria, as iptables-save prints them.

    >>> sorted(_all_of("-m conntrack --ctstate RELATED,ESTABLISHED")), _all_of("-i eth0 -m state --state INVALID")
    (['ESTABLISHED', 'RELATED'], set())
    """
    words = criteria.split()
    plain = words[:-1] in (["-m", "conntrack", "--ctstate"], ["-m", "state", "--state"])
    return set(words[-1].split(",")) if plain else set()


def _first(mask: Mask, end: int) -> int:
    """Position of the first True, or `end`."""
    k = int(mask.argmax()) if len(mask) else 0
    return min(end, k) if len(mask) and mask[k] else end


def _first_at(places: NDArray[np.intp], end: int) -> int:
    return min(end, int(places.min())) if len(places) else end
