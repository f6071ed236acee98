"""How bad a trace can be made: netemu against a yardstick, the same node hard-wired in plain Python, packet by packet.

    python bench/yardstick.py [--packets 20000] [--repeat 3] [--only 'NAME;...']

The yardstick is a node in iptables mode with nothing left to choose: it parses a packet with `struct`, checks its
checksums, finds its connection in a dictionary, follows TCP with states and windows, gives new connections an
endpoint or the node's address, keeps their reply tuples apart, and counts. It has no rules to walk, no tables to
change and no paths to tell, so it is what a scalar program could at best be. Most traces are crafted against a program
that looks at many packets together; the others are what such a program finds hard in daily traffic: connections of few
packets, few at a time, whose answers are those to what netemu made of them. Time is from the loaded node to the
counts, reading the capture included; both must forward the same packets. Ratio: netemu's time over the yardstick's.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from kernel import FIRST_CLIENT, FIRST_POD, FIRST_SERVICE, HOST, PORT, TARGET_PORT, Model
from tools import ACK, FIN, PSH, RST, SYN, WATCH, Bench, Bytes, datagrams, medians, segments, timed, woven, write_raw

from netemu import Node, read_capture
from netemu.kube import Cluster, Endpoint, ServicePort, iptables_mode, write
from netemu.report import address

# ---- the yardstick -------------------------------------------------------------------------------------------------

NONE, SS, SR, ES, FW, CW, LA, TW, CL, S2, BAD = range(11)
MINUTE = 60 * 10**9
LIVES = {SS: 2 * MINUTE, SR: MINUTE, ES: 7200 * MINUTE, FW: 2 * MINUTE, CW: MINUTE, LA: MINUTE // 2, TW: 2 * MINUTE}
LIVES |= {CL: MINUTE // 6, S2: 2 * MINUTE}
#: direction -> flags class -> state -> next; where nothing stands the state stays
GRID: tuple[dict[str, dict[int, int]], ...] = (
    {
        "syn": {NONE: SS, TW: SS, CL: SS, S2: S2},
        "synack": {NONE: BAD, SS: BAD, SR: BAD},
        "fin": {NONE: BAD, SS: BAD, SR: FW, ES: FW, FW: LA, CW: LA},
        "ack": {NONE: ES, SS: BAD, SR: ES, FW: CW, LA: TW},
        "rst": {NONE: BAD, SS: CL, SR: CL, ES: CL, FW: CL, CW: CL, LA: CL, TW: CL},
        "none": dict.fromkeys(range(10), BAD),
    },
    {
        "syn": {SS: S2, TW: SS, CL: BAD},
        "synack": {SS: SR, S2: SR},
        "fin": {SS: BAD, SR: FW, ES: FW, FW: LA, CW: LA},
        "ack": {SS: BAD, FW: CW, LA: TW},
        "rst": {SS: CL, SR: CL, ES: CL, FW: CL, CW: CL, LA: CL, TW: CL, S2: CL},
        "none": dict.fromkeys(range(10), BAD),
    },
)
CLASSES = ["none"] * 64
for _flags in range(64):
    for _bit, _class in ((16, "ack"), (1, "fin"), (2, "synack" if _flags & 16 else "syn"), (4, "rst")):
        if _flags & _bit:
            CLASSES[_flags] = _class

Tuple = tuple[int, int, int, int]


class Connection:
    """One connection: its tuples, its TCP state, and what either side may send: [end, most that may come, window]."""

    __slots__ = ("answered", "deadline", "original", "reply", "sides", "state")

    def __init__(self, original: Tuple) -> None:
        self.original, self.reply = original, (original[2], original[3], original[0], original[1])
        self.state, self.deadline, self.answered = NONE, 0, False
        self.sides = ([0, 0, 0], [0, 0, 0])


class Yardstick:
    """The node."""

    def __init__(self, services: dict[tuple[int, int], list[int]], lent: list[int]) -> None:
        self.services = services
        self.lent = iter(lent)  # source ports for lookups whose own is taken, as netemu drew them
        self.connections: dict[Tuple, tuple[Connection, int]] = {}
        self.fates: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.served: Counter[tuple[int, int, int]] = Counter()
        self.bytes = 0
        self.draw = 1

    def replay(self, path: Path) -> None:
        """A nanosecond pcap of IP packets."""
        data = path.read_bytes()
        record, at, size = struct.Struct("<IIII").unpack_from, 24, len(data)
        while at < size:
            seconds, nanoseconds, held, _ = record(data, at)
            self.packet(data, at + 16, seconds * 10**9 + nanoseconds)
            at += 16 + held

    def packet(self, data: bytes, at: int, now: int) -> None:
        first, _, length, _, frag, ttl, proto, _, src, dst = struct.unpack_from("!BBHHHBBHII", data, at)
        self.bytes += length
        if first != 0x45 or proto not in (6, 17) or frag & 0x3FFF or ttl <= 1:
            self.fates["dropped"] += 1
            return
        head = memoryview(data)[at : at + length]
        if sum(head[:20].cast("H")) % 65_535 or not self.summed(head, proto):
            self.fates["dropped"] += 1
            return
        if proto == 17:
            self.datagram(src, dst, *struct.unpack_from("!HH", data, at + 20), now)
            return
        sport, dport, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", data, at + 20)
        key = (src, sport, dst, dport)
        kind = CLASSES[flags & 63]
        found = self.connections.get(key)
        if found is not None and (
            found[0].deadline <= now or (kind == "syn" and found[0].state in (TW, CL) and not found[1])
        ):
            self.forget(found[0])
            found = None
        fresh = found is None
        connection, direction = (Connection(key), 0) if found is None else found
        state = connection.state
        then = GRID[direction][kind].get(state, state)
        payload = length - 20 - (offset >> 4) * 4
        if then == BAD or not self.in_window(connection, direction, seq, ack, flags, window, payload):
            self.states["INVALID"] += 1
            self.fates["dropped"] += 1
            return
        connection.state = then
        connection.deadline = now + LIVES[then]
        if direction:
            connection.answered = True
        self.states["ESTABLISHED" if connection.answered else "NEW"] += 1
        if fresh:
            self.translate(connection)
        there = connection.original if direction else connection.reply
        if there[0] != dst or there[1] != dport:
            self.served[dst, dport, there[0]] += 1
        self.fates["forwarded"] += 1

    def datagram(self, src: int, dst: int, sport: int, dport: int, now: int) -> None:
        """A packet of a lookup."""
        key = (src, sport, dst, dport)
        found = self.connections.get(key)
        if found is not None and found[0].deadline <= now:
            self.forget(found[0])
            found = None
        connection, direction = (Connection(key), 0) if found is None else found
        if found is None:
            mine = (dst, dport, GATEWAY, sport)
            while mine in self.connections:
                mine = (dst, dport, GATEWAY, next(self.lent))
            connection.reply = mine
            self.connections[key], self.connections[mine] = (connection, 0), (connection, 1)
        connection.answered |= direction == 1
        connection.deadline = now + MINUTE // 2
        self.states["ESTABLISHED" if connection.answered else "NEW"] += 1
        self.fates["forwarded"] += 1

    @staticmethod
    def summed(packet: memoryview, proto: int) -> bool:
        """Is the checksum behind the header right? Sums in the machine's byte order: they do not mind."""
        pseudo = int.from_bytes((len(packet) - 20 + proto).to_bytes(2, "big"), sys.byteorder)
        odd = packet[-1] if len(packet) & 1 else 0
        return (sum(packet[12 : len(packet) & ~1].cast("H")) + pseudo + odd) % 65_535 == 0

    def in_window(
        self, connection: Connection, direction: int, seq: int, ack: int, flags: int, window: int, payload: int
    ) -> bool:
        """Does the segment lie where its receiver takes it? Then remember how far both sides got."""
        sender, receiver = connection.sides[direction], connection.sides[1 - direction]
        end = seq + payload + (flags & 1) + (flags >> 1 & 1)
        if not flags & 16:
            ack = receiver[0]
        if sender[2] == 0:  # its first
            sender[:] = end, end + max(receiver[2], 1), max(window, 1)
            if not receiver[2]:
                receiver[0] = receiver[1] = ack
        elif not (
            seq <= sender[1]
            and end >= sender[0] - receiver[2] - 1
            and ack <= receiver[0]
            and ack >= receiver[0] - max(sender[2], 66_000) - 1
        ):
            return False
        sender[0], sender[2] = max(sender[0], end), max(sender[2], window)
        receiver[1] = max(receiver[1], ack + max(window, 1))
        return True

    def translate(self, connection: Connection) -> None:
        """An endpoint for a service's address, and a source port that keeps reply tuples apart."""
        src, sport, dst, dport = connection.original
        pods = self.services.get((dst, dport))
        if pods is not None:
            self.draw = self.draw * 6364136223846793005 + 1442695040888963407 & 0xFFFFFFFFFFFFFFFF
            reply = (pods[(self.draw >> 33) % len(pods)], TARGET_PORT, src, sport)
            while reply in self.connections:
                self.draw = self.draw * 6364136223846793005 + 1442695040888963407 & 0xFFFFFFFFFFFFFFFF
                reply = (reply[0], TARGET_PORT, src, 1024 + (self.draw >> 33) % 64_512)
            connection.reply = reply
        self.connections[connection.original] = connection, 0
        self.connections[connection.reply] = connection, 1

    def forget(self, connection: Connection) -> None:
        del self.connections[connection.original], self.connections[connection.reply]


# ---- the traces ----------------------------------------------------------------------------------------------------

SERVICES = 1000


def cluster(endpoints: int, *, shared: bool = False) -> Cluster:
    """Services with so many endpoints each, or with the same ones for all."""
    made = []
    for i in range(SERVICES):
        pods = tuple(Endpoint(address(pod), TARGET_PORT, "node-1") for pod in pods_of(i, endpoints, shared))
        made.append(ServicePort("bench", f"svc-{i}", address(FIRST_SERVICE + i), PORT, pods, "http"))
    return Cluster(tuple(made))


def pods_of(service: int, endpoints: int, shared: bool) -> list[int]:
    return [FIRST_POD + (0 if shared else service * endpoints) + k for k in range(endpoints)]


def reused(packets: int, tuples: int) -> Bytes:
    """Connections that open and end in four packets, and whose ports are then used again, at once."""
    n = packets // 4
    k = np.arange(n)
    who, turn = k % tuples, k // tuples
    client, port = FIRST_CLIENT + who % 200, 40_000 + who // 200
    service = who % SERVICES
    vip, pod = FIRST_SERVICE + service, FIRST_POD + service
    isn = turn * 100_000 + 1
    there = (client, port, vip, PORT + 0 * k)
    back = (pod, TARGET_PORT + 0 * k, client, port)
    parts = [
        segments(*there, SYN, isn, 0),
        segments(*back, SYN | ACK, isn + 500, isn + 1),
        segments(*there, ACK, isn + 1, isn + 501),
        segments(*there, RST | ACK, isn + 1, isn + 501),
    ]
    # all tuples side by side: packet by packet of each, so that neighbours belong to different ones
    rows = woven(*parts).reshape(n, 4, -1)
    whole = n // tuples * tuples
    ordered: Bytes = rows[:whole].reshape(-1, tuples, 4, rows.shape[2]).transpose(0, 2, 1, 3).reshape(-1, rows.shape[2])
    return np.ascontiguousarray(ordered)


def one_flow(packets: int) -> Bytes:
    """All packets belong to one connection: data from either side in turn."""
    one = np.zeros(1, np.int64)
    there = (one + FIRST_CLIENT, one + 40_000, one + FIRST_SERVICE, one + PORT)
    back = (one + FIRST_POD, one + TARGET_PORT, one + FIRST_CLIENT, one + 40_000)
    opening = [segments(*there, SYN, 1, 0), segments(*back, SYN | ACK, 501, 2), segments(*there, ACK, 2, 502)]
    k = np.arange((packets - 3) // 2)
    client, port, vip, web = (np.repeat(column, len(k)) for column in there)
    pod, target = (np.repeat(column, len(k)) for column in back[:2])
    ask = segments(client, port, vip, web, PSH | ACK, 2 + 10 * k, 502 + 10 * k, 10)
    answer = segments(pod, target, client, port, PSH | ACK, 502 + 10 * k, 12 + 10 * k, 10)
    # write_raw takes packets of one size: behind the first three stands padding, as on Ethernet
    padded = [np.pad(p, ((0, 0), (0, ask.shape[1] - p.shape[1]))) for p in opening]
    return np.concatenate([*padded, woven(ask, answer)])


def colliding(packets: int) -> Bytes:
    """New connections that would all be answered alike: one client and port, many services, one endpoint.

    200 clients take turns, since one client and port can have no more than SERVICES of them.
    """
    k = np.arange(packets)
    client, port = FIRST_CLIENT + k // SERVICES % 200, 40_000 + k // (SERVICES * 200)
    return segments(client, port, FIRST_SERVICE + k % SERVICES, PORT + 0 * k, SYN, k, 0)


def all_new(packets: int) -> Bytes:
    """Every packet opens a connection of its own."""
    k = np.arange(packets)
    return segments(
        FIRST_CLIENT + k % 200, 32_768 + k // 200, FIRST_SERVICE + k * 7919 % SERVICES, PORT + 0 * k, SYN, k, 0
    )


def http(packets: int) -> Bytes:
    """Connections of ten packets, four at a time: a question, an answer, and both ends close."""
    n = packets // 10
    k = np.arange(n)
    client, port, service = FIRST_CLIENT + k % 200, 32_768 + k // 200, k * 7919 % SERVICES
    there = (client, port, FIRST_SERVICE + service, PORT + 0 * k)
    back = (FIRST_POD + service, TARGET_PORT + 0 * k, client, port)
    mine, theirs = k * 1000 + 1, k * 3000 + 7
    said = [
        segments(*there, SYN, mine, 0),
        segments(*back, SYN | ACK, theirs, mine + 1),
        segments(*there, ACK, mine + 1, theirs + 1),
        segments(*there, PSH | ACK, mine + 1, theirs + 1, 100),
        segments(*back, ACK, theirs + 1, mine + 101),
        segments(*back, PSH | ACK, theirs + 1, mine + 101, 100),
        segments(*there, ACK, mine + 101, theirs + 101),
        segments(*there, FIN | ACK, mine + 101, theirs + 101),
        segments(*back, FIN | ACK, theirs + 101, mine + 102),
        segments(*there, ACK, mine + 102, theirs + 102),
    ]
    size = max(part.shape[1] for part in said)
    rows = woven(*(np.pad(part, ((0, 0), (0, size - part.shape[1]))) for part in said)).reshape(n, 10, -1)
    whole = n // 4 * 4
    return np.ascontiguousarray(rows[:whole].reshape(-1, 4, 10, size).transpose(0, 2, 1, 3).reshape(-1, size))


def lookups(packets: int, *, collide: bool) -> tuple[Bytes, list[int]]:
    """Questions to one name server behind one address, each answered at once; the ports that netemu drew for them.

    Before the answers can be made netemu must say what the questions leave as. A draw hangs on how many packets there
    were before, so meanwhile something else stands in the place of the answers.
    """
    n = packets // 2
    k = np.arange(n)
    client, port = FIRST_HOST + k % 200, 1024 + (k // 200 if collide else k)
    asked = datagrams(client, port, k * 0 + NAME_SERVER, k * 0 + 53)
    filler = datagrams(k * 0 + STRANGER, k * 0 + 9, k * 0 + GATEWAY, k * 0 + 9)
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as d:
        write(gateway(), Path(d))
        write_raw(Path(d) / "asked.pcap", woven(asked, filler))
        left = list(Node.load(d, seed=1).replay(read_capture(Path(d) / "asked.pcap")))[::2]
    seen = np.array([int.from_bytes(journey.out[0][1][20:22], "big") for journey in left])
    answers = datagrams(k * 0 + NAME_SERVER, k * 0 + 53, k * 0 + GATEWAY, seen)
    return woven(asked, answers), seen[seen != port].tolist()


FIRST_HOST, GATEWAY, NAME_SERVER, STRANGER = 0x0A080002, 0xCB007101, 0x08080808, 0xCB007107


def gateway() -> dict[str, str]:
    """A node that masquerades what comes from within."""
    links = [("eth0", GATEWAY, 24), ("eth1", FIRST_HOST - 1, 16)]
    said = [f'[[link]]\nname = "{name}"\naddresses = ["{address(at)}/{size}"]\n' for name, at, size in links]
    route = f'[[route]]\nto = "default"\nvia = "{address(GATEWAY + 253)}"\ndev = "eth0"\n'
    rules = (
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n-A FORWARD -i eth1 -j ACCEPT\nCOMMIT\n"
        "*nat\n-A POSTROUTING -s 10.8.0.0/16 -o eth0 -j MASQUERADE\nCOMMIT\n"
    )
    return {"node.toml": "".join([*said, route]), "iptables.save": rules}


def again(packets: int) -> Bytes:
    """One SYN, retransmitted for ever."""
    return np.repeat(all_new(1), packets, axis=0)


#: name -> (packets, endpoints a service, the same for all)
TRACES: dict[str, tuple[Any, int, bool]] = {
    "all packets new": (all_new, 3, False),
    "all packets one flow": (one_flow, 1, False),
    "one tuple, reused back to back": (lambda n: reused(n, 1), 1, False),
    "256 tuples, reused side by side": (lambda n: reused(n, 256), 1, False),
    "all reply tuples collide": (colliding, 1, True),
    "one SYN again and again": (again, 1, False),
    "web pages, ten packets each": (http, 1, False),
}
LOOKUPS = {"DNS lookups, masqueraded": False, "DNS lookups, all ports collide": True}


def compare(folder: Path, name: str, packets: int, repeat: int) -> dict[str, Any]:
    """Both over one trace."""
    lent: list[int] = []
    if name in LOOKUPS:
        services = {}
        model = Model(folder / name.replace(" ", "-"), gateway())
        rows, lent = lookups(packets, collide=LOOKUPS[name])
    else:
        make, endpoints, shared = TRACES[name]
        model = Model(folder / name.replace(" ", "-"), iptables_mode(cluster(endpoints, shared=shared), HOST))
        services = {(FIRST_SERVICE + i, PORT): pods_of(i, endpoints, shared) for i in range(SERVICES)}
        rows = make(packets)
    trace = model.folder / "yardstick.pcap"
    write_raw(trace, rows, tick=10_000)

    def netemu() -> float:
        model.load()
        return model.replay(rows, tick=10_000)

    def yardstick() -> float:
        node = Yardstick(services, lent)
        taken = timed(lambda: node.replay(trace))
        if node.fates != {"forwarded": len(rows)}:
            raise RuntimeError(f"{name}: the yardstick makes of it {dict(node.fates)}")
        return taken

    found = medians({"yardstick": yardstick, "netemu": netemu}, repeat)
    each = {who: values["seconds"] / len(rows) * 1e6 for who, values in found.items()}
    return {"packets": len(rows), "us_a_packet": each, "ratio": each["netemu"] / each["yardstick"], "runs": found}


def main() -> None:
    """Measure, print, and write a dated JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="names of traces, with semicolons")
    parser.add_argument("--json", type=Path, help="where the results go (default bench/results/yardstick-DATE.json)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    args = parser.parse_args()
    bench = Bench("yardstick")
    WATCH.use(args.clock)
    results = {}
    print(f"us a packet, {args.clock:4} time, medians {args.repeat} {'yardstick':>10} {'netemu':>10} {'ratio':>7}")
    with tempfile.TemporaryDirectory(prefix="netemu-bench-") as d:
        for name in args.only.split(";") if args.only else [*TRACES, *LOOKUPS]:
            found = results[name] = compare(Path(d), name, args.packets, args.repeat)
            each = found["us_a_packet"]
            print(f"  {name:33} {each['yardstick']:>8.2f} {each['netemu']:>10.2f} {found['ratio']:>7.2f}", flush=True)
    bench.write({"packets": args.packets, "repeat": args.repeat, "clock": args.clock, "results": results}, args.json)


if __name__ == "__main__":
    main()
