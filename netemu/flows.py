"""Synthetic flows: conversations that nobody had, as a capture to replay.

A flow is one conversation: TCP with handshake, data and close, UDP question and answer, or pings. Flow number i has its
own random draws, made from the seed and i alone, so the same seed gives the same trace however many flows come
before it or with it. Everything is made in columns: a conversation is a small template (who speaks, flags, how much
was said before), and a block of flows is the template laid out once a flow, sorted by time, and written as bytes.

        client  SYN .   ACK  data .    data .    FIN .        ACK         --gap apart; `.` is where the server
        server      S/A          ACK+data  ACK+data  FIN/ACK              answers, with answers switched on
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from netemu.errors import Refused
from netemu.packets import ACK, DONT_FRAGMENT, FIN, I32, I64, ICMP, PSH, RST, SYN, TCP, U8, U64, UDP

#: pcap, little-endian, nanoseconds, one RAW packet (IP from the header on) a record
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 101)
RECORD = 16  # bytes of a pcap record's own header
PROTOCOLS = {"tcp": TCP, "udp": UDP, "ping": ICMP}
FIRST_PORT, PORTS = 32768, 28232  # Linux's own range of local ports
BLOCK = 65_536  # packets made at a time, about
CLOSES = {"fin": FIN, "rst": RST, "none": 0}


@dataclass(frozen=True, slots=True)
class Target:
    """Who is spoken to: protocol number, address, port (0 for a ping)."""

    proto: int
    address: int
    port: int = 0

    @classmethod
    def read(cls, text: str) -> Target:
        """`tcp/10.96.0.1:443`, `udp/10.96.0.10:53` or `ping/10.0.0.1`. Raises Refused.

        >>> Target.read("tcp/10.96.0.1:443")
        Target(proto=6, address=174063617, port=443)
        """
        name, slash, rest = text.partition("/")
        proto = PROTOCOLS.get("ping" if name == "icmp" else name)
        if not slash or proto is None:
            raise Refused(f"`{text}` is no target", hint="write tcp/ADDRESS:PORT, udp/ADDRESS:PORT or ping/ADDRESS")
        if proto == ICMP:
            return cls(proto, address(rest))
        host, colon, port = rest.rpartition(":")
        if not colon or not port.isdigit() or not 0 < int(port) < 65536:
            raise Refused(f"`{text}` names no port", hint=f"write {name}/ADDRESS:PORT, with a port from 1 to 65535")
        return cls(proto, address(host), int(port))


@dataclass(frozen=True)
class FlowSpec:
    """What to make.

    targets   who is spoken to; each flow draws one      sources   (network, prefix length) that clients come from
    count     conversations                              rate      new conversations a second
    packets   data packets a side says in each           data      bytes of payload in each of them
    gap       seconds between the packets of one flow    arrival   "even" or "poisson"
    answers   the servers' packets too, as they would come back if nothing were translated
    handshake, close ("fin", "rst", "none")   how a TCP conversation begins and ends
    start     seconds at which the first flow begins     ttl       of every packet
    """

    targets: tuple[Target, ...]
    sources: tuple[tuple[int, int], ...] = field(default_factory=lambda: ((0x0AF40000, 24),))
    count: int = 100
    rate: float = 1000.0
    seed: int = 0
    packets: int = 1
    data: int = 32
    gap: float = 0.001
    arrival: str = "even"
    answers: bool = False
    handshake: bool = True
    close: str = "fin"
    start: float = 0.0
    ttl: int = 64

    def __post_init__(self) -> None:
        limits = (
            (bool(self.targets), "nobody to speak to", "name a target, such as tcp/10.96.0.1:443"),
            (bool(self.sources), "nobody speaks", "name a network that clients come from, such as 10.244.0.0/24"),
            (self.count >= 0, f"a count of {self.count}", "count from 0"),
            (self.rate > 0 and math.isfinite(self.rate), f"a rate of {self.rate:g}", "more than 0 flows a second"),
            (0 <= self.packets <= 100_000, f"{self.packets} data packets a flow", "0 to 100000"),
            (0 <= self.data <= 65_000, f"{self.data} bytes of data", "0 to 65000"),
            (self.gap >= 0 and math.isfinite(self.gap), f"a gap of {self.gap:g} s", "0 or more"),
            (self.start >= 0 and math.isfinite(self.start), f"a start at {self.start:g} s", "0 or more"),
            (self.arrival in ("even", "poisson"), f"arrival `{self.arrival}`", "even or poisson"),
            (self.close in CLOSES, f"close `{self.close}`", "fin, rst or none"),
            (0 < self.ttl < 256, f"a TTL of {self.ttl}", "1 to 255"),
        )
        for good, what, hint in limits:
            if not good:
                raise Refused(f"flows: {what}", hint=hint)


@dataclass(frozen=True)
class Trace:
    """Packets in order of time, laid out as the body of a pcap file.

    times  int64[n]   nanoseconds, ascending
    data   uint8[m]   record header and packet after packet
    at     int64[n]   where each packet's IP header starts in `data`
    size   int32[n]   bytes of each packet
    flow   int64[n]   number of the conversation it belongs to
    """

    times: I64
    data: U8
    at: I64
    size: I32
    flow: I64

    def __len__(self) -> int:
        return len(self.times)

    def packet(self, i: int) -> bytes:
        """Packet `i`, from the IP header on."""
        return self.data[self.at[i] : self.at[i] + self.size[i]].tobytes()


@dataclass(frozen=True, slots=True)
class _Line:
    """One packet of a conversation's template."""

    answer: bool
    kind: int  # TCP flags, or the ICMP type
    said: int  # payload bytes that the speaker said before (TCP sequence), or the ping's number
    heard: int  # payload bytes that the speaker heard before (TCP acknowledgement)
    payload: int


@dataclass(frozen=True)
class _Columns:
    """Packets before they are bytes. `line` counts within the conversation: it orders packets of one instant."""

    time: I64
    flow: I64
    line: I64
    proto: I64
    src: U64
    dst: U64
    sport: U64
    dport: U64
    kind: U64
    seq: U64
    ack: U64
    ident: U64
    payload: I64

    def pick(self, rows: NDArray[np.intp]) -> _Columns:
        return _Columns(**{name: column[rows] for name, column in vars(self).items()})

    @classmethod
    def joined(cls, parts: list[_Columns]) -> _Columns:
        return cls(**{name: np.concatenate([vars(p)[name] for p in parts]) for name in vars(parts[0])})


def make(spec: FlowSpec) -> Trace:
    """All packets of `spec` at once. Cost: some 100 bytes and a microsecond a packet.

    >>> t = make(FlowSpec((Target.read("udp/10.96.0.10:53"),), count=2, rate=1, data=3))
    >>> t.times, t.packet(0)[-3:]
    (array([         0, 1000000000]), b'net')
    """
    parts = list(stream(spec))
    base = np.cumsum([0, *(len(p.data) for p in parts)])
    return Trace(
        np.concatenate([p.times for p in parts]),
        np.concatenate([p.data for p in parts]),
        np.concatenate([p.at + b for p, b in zip(parts, base, strict=False)]),
        np.concatenate([p.size for p in parts]),
        np.concatenate([p.flow for p in parts]),
    )


def stream(spec: FlowSpec) -> Iterator[Trace]:
    """The same packets, some ten thousand at a time: memory depends on how many flows overlap, not on their number."""
    templates = {p: _template(spec, p) for p in {t.proto for t in spec.targets}}
    per_flow = max(1, max(map(len, templates.values())))
    block = max(1, BLOCK // per_flow)
    waiting: list[_Columns] = []
    begun = 0.0
    made = False
    for first in range(0, spec.count, block):
        flows = np.arange(first, min(first + block, spec.count))
        starts, begun = _starts(spec, flows, begun)
        for proto, template in templates.items():
            waiting.append(_converse(spec, flows, starts, proto, template))
        last = int(flows[-1]) + 1 == spec.count
        every = _Columns.joined(waiting)
        order = np.lexsort((every.line, every.flow, every.time))
        if not last:  # what may still be overtaken by a flow of the next block waits
            ready = int(np.searchsorted(every.time[order], starts[-1]))
            waiting = [every.pick(order[ready:])]
            order = order[:ready]
        made = True
        yield _written(spec, every.pick(order))
    if not made:
        none = np.zeros(0, np.int64)
        yield Trace(none, np.zeros(0, np.uint8), none, none.astype(np.int32), none)


def write_pcap(spec: FlowSpec, out: str | Path | BinaryIO) -> int:
    """Write the flows as a pcap (RAW packets, nanoseconds) to a path, `-` or an open file; returns how many packets."""
    if isinstance(out, (str, Path)):
        if str(out) != "-":
            with open(out, "wb") as file:
                return write_pcap(spec, file)
        out = sys.stdout.buffer
    out.write(PCAP_HEADER)
    count = 0
    for part in stream(spec):
        out.write(part.data.data)
        count += len(part)
    out.flush()
    return count


def address(text: str) -> int:
    """An IPv4 address as a number. Raises Refused."""
    parts = text.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) <= 3 and int(p) < 256 for p in parts):
        raise Refused(f"`{text}` is no IPv4 address", hint="write four numbers from 0 to 255, such as 10.96.0.1")
    a, b, c, d = map(int, parts)
    return a << 24 | b << 16 | c << 8 | d


def network(text: str) -> tuple[int, int]:
    """(lowest address, prefix length) of `10.244.0.0/24` or of a single address. Raises Refused."""
    host, slash, plen = text.partition("/")
    bits = int(plen) if slash and plen.isascii() and plen.isdigit() else 32 if not slash else -1
    if not 0 <= bits <= 32:
        raise Refused(f"`{text}` is no network", hint="write ADDRESS/LENGTH, such as 10.244.0.0/24")
    return address(host) & (0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF), bits


def _template(spec: FlowSpec, proto: int) -> list[_Line]:
    """What is said in one conversation, in order."""
    n, size = spec.packets, spec.data
    lines: list[_Line] = []
    if proto == TCP:
        if spec.handshake:
            lines += [_Line(False, SYN, -1, -1, 0), _Line(True, SYN | ACK, -1, 0, 0), _Line(False, ACK, 0, 0, 0)]
        data = PSH | ACK if size else ACK
        for k in range(n):
            lines.append(_Line(False, data, k * size, k * size, size))
            lines.append(_Line(True, data, k * size, (k + 1) * size, size))
        said = n * size
        if spec.close == "fin":
            lines += [_Line(False, FIN | ACK, said, said, 0), _Line(True, FIN | ACK, said, said + 1, 0)]
            lines.append(_Line(False, ACK, said + 1, said + 1, 0))
        elif spec.close == "rst":
            lines.append(_Line(False, RST | ACK, said, said, 0))
    else:
        ask, answer = (8, 0) if proto == ICMP else (0, 0)
        for k in range(n):
            lines += [_Line(False, ask, k + 1, 0, size), _Line(True, answer, k + 1, 0, size)]
    return lines if spec.answers else [line for line in lines if not line.answer]


def _draw(seed: int, flows: I64, salt: int) -> U64:
    """uint64[n]: a draw for each flow, from the seed, its number and `salt` only (splitmix64's finaliser)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (salt + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    x = flows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mixed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _starts(spec: FlowSpec, flows: I64, begun: float) -> tuple[I64, float]:
    """When each flow begins, in nanoseconds; and the sum of waits so far, in mean waits, for the next block."""
    first = round(spec.start * 1e9)
    if spec.arrival == "even":
        return first + np.rint(flows * (1e9 / spec.rate)).astype(np.int64), begun
    uniform = (_draw(spec.seed, flows, 0) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    waits = np.cumsum(np.concatenate([[begun], -np.log1p(-uniform)]))[1:]
    return first + np.rint(waits * (1e9 / spec.rate)).astype(np.int64), float(waits[-1])


def _clients(spec: FlowSpec, flows: I64) -> tuple[U64, U64]:
    """Source address and port of each flow: no pair comes twice before all have come once."""
    hosts = [
        ((1 << (32 - plen)) - 2, base + 1) if plen < 31 else (1 << (32 - plen), base) for base, plen in spec.sources
    ]
    sizes = np.array([min(n, 65_536) for n, _ in hosts])  # the first 65,536 hosts of a large network are clients enough
    pairs = int(sizes.sum()) * PORTS
    step = int(pairs * 0.6180339887) | 1
    while math.gcd(step, pairs) != 1:
        step += 2
    pair = (flows % pairs * step + int(_draw(spec.seed, np.zeros(1, np.int64), 1)[0]) % pairs) % pairs
    host, port = pair // PORTS, pair % PORTS
    net = np.searchsorted(np.cumsum(sizes), host, side="right")
    lowest = np.array([b for _, b in hosts])
    src = lowest[net] + host - (np.cumsum(sizes) - sizes)[net]
    return src.astype(np.uint64), (FIRST_PORT + port).astype(np.uint64)


def _converse(spec: FlowSpec, flows: I64, starts: I64, proto: int, template: list[_Line]) -> _Columns:
    """The packets of those `flows` that drew a target of this protocol."""
    which = (_draw(spec.seed, flows, 2) % np.uint64(len(spec.targets))).astype(np.intp)
    mine = np.array([t.proto == proto for t in spec.targets])[which]
    flows, starts, which = flows[mine], starts[mine], which[mine]
    m, k = len(flows), len(template)
    client, cport = _clients(spec, flows)
    server = np.array([t.address for t in spec.targets], np.uint64)[which]
    sport = np.array([t.port for t in spec.targets], np.uint64)[which]
    if proto == ICMP:  # the id stands where a port would
        cport = sport = cport & np.uint64(0xFFFF)
    begin_c, begin_s = (_draw(spec.seed, flows, salt) & np.uint64(0xFFFFFFFF) for salt in (3, 4))
    ident = _draw(spec.seed, flows, 5) & np.uint64(0xFFFF)

    answer = np.array([line.answer for line in template], bool)
    said, heard = (np.array([getattr(line, name) for line in template], np.int64) for name in ("said", "heard"))

    def per_line(values: list[int]) -> NDArray[np.int64]:
        return np.broadcast_to(np.array(values, np.int64), (m, k)).ravel()

    def either(of_answer: U64, of_question: U64) -> U64:
        return np.where(answer, of_answer[:, None], of_question[:, None]).ravel()

    if proto == TCP:  # the SYN takes the number before the first byte
        seq = (either(begin_s, begin_c).astype(np.int64) + 1 + np.tile(said, m)).astype(np.uint64)
        ack = either(begin_c, begin_s).astype(np.int64) + 1 + np.tile(heard, m)
        ack = np.where(per_line([line.kind for line in template]) & ACK, ack, 0)
    else:
        seq, ack = np.tile(said, m).astype(np.uint64), np.zeros(m * k, np.int64)
    line = per_line(list(range(k)))
    # a server counts its packets by its own id: the client's, turned round
    idents = (either(ident ^ np.uint64(0xFFFF), ident) + line.astype(np.uint64)) & np.uint64(0xFFFF)
    return _Columns(
        time=(starts[:, None] + np.arange(k) * round(spec.gap * 1e9)).ravel(),
        flow=np.repeat(flows, k),
        line=line,
        proto=np.full(m * k, proto, np.int64),
        src=either(server, client),
        dst=either(client, server),
        sport=either(sport, cport),
        dport=either(cport, sport),
        kind=per_line([line.kind for line in template]).astype(np.uint64),
        seq=seq & np.uint64(0xFFFFFFFF),
        ack=ack.astype(np.uint64) & np.uint64(0xFFFFFFFF),
        ident=idents,
        payload=per_line([line.payload for line in template]),
    )


def _written(spec: FlowSpec, c: _Columns) -> Trace:
    """The packets as bytes, checksums right."""
    head = np.select([c.proto == TCP, c.proto == UDP], [40, 28], 28)
    size = head + c.payload
    at = np.cumsum(size + RECORD) - size
    data = np.zeros(int((size + RECORD).sum()), np.uint8)
    trace = Trace(c.time, data, at, size.astype(np.int32), c.flow)
    speech = np.frombuffer((b"netemu " * (spec.data // 7 + 1))[: spec.data], np.uint8)
    even = np.concatenate([speech, np.zeros(len(speech) & 1, np.uint8)])
    speech_sum = int(even.view(">u2").sum(dtype=np.uint64))
    # packets of one shape are one matrix; there are few shapes, and where there is one only, it is a view of `data`
    shape = c.proto << 20 | size
    for one in np.unique(shape).tolist():
        rows = np.flatnonzero(shape == one)
        whole = len(rows) == len(shape)
        row_bytes = RECORD + int(size[rows[0]])
        m = data.reshape(-1, row_bytes) if whole else np.zeros((len(rows), row_bytes), np.uint8)
        _fill(m, c if whole else c.pick(rows), spec, speech, speech_sum)
        if not whole:
            flat = np.ndarray((max(len(data) - row_bytes + 1, 0),), f"V{row_bytes}", data.data, strides=(1,))
            flat[at[rows] - RECORD] = m.view(f"V{row_bytes}").ravel()
    return trace


def _fill(m: NDArray[np.uint8], c: _Columns, spec: FlowSpec, speech: U8, speech_sum: int) -> None:
    """Write packets of one protocol and size into the rows of `m`, behind their pcap record headers."""
    proto, payload = int(c.proto[0]), int(c.payload[0])
    size = m.shape[1] - RECORD

    def put16(at: int, values: NDArray[np.generic] | int) -> None:
        v = np.asarray(values).astype(np.uint64)
        m[:, RECORD + at] = (v >> np.uint64(8)).astype(np.uint8)
        m[:, RECORD + at + 1] = v.astype(np.uint8)

    def put32(at: int, values: U64) -> None:
        put16(at, values >> np.uint64(16))
        put16(at + 2, values & np.uint64(0xFFFF))

    def words(values: U64) -> U64:
        return (values >> np.uint64(16)) + (values & np.uint64(0xFFFF))

    def check(total: U64) -> U64:
        for _ in range(3):
            total = (total & np.uint64(0xFFFF)) + (total >> np.uint64(16))
        return total ^ np.uint64(0xFFFF)

    record = np.empty((len(m), 4), "<u4")
    record[:, 0] = c.time // 1_000_000_000
    record[:, 1] = c.time % 1_000_000_000
    record[:, 2:] = size
    m[:, :RECORD] = record.view(np.uint8)

    flags = DONT_FRAGMENT if proto == TCP else 0
    m[:, RECORD] = 0x45
    put16(2, size)
    put16(4, c.ident)
    put16(6, flags)
    m[:, RECORD + 8] = spec.ttl
    m[:, RECORD + 9] = proto
    put32(12, c.src)
    put32(16, c.dst)
    ends = words(c.src) + words(c.dst)
    put16(10, check(ends + c.ident + np.uint64(0x4500 + size + flags + (spec.ttl << 8 | proto))))

    body = ends + c.sport + c.dport + np.uint64(proto + size - 20 + speech_sum * bool(payload))
    if proto == TCP:
        put16(20, c.sport)
        put16(22, c.dport)
        put32(24, c.seq)
        put32(28, c.ack)
        m[:, RECORD + 32] = 0x50
        m[:, RECORD + 33] = c.kind
        put16(34, 64240)
        put16(36, check(body + words(c.seq) + words(c.ack) + np.uint64(0x5000 + 64240) + c.kind))
    elif proto == UDP:
        put16(20, c.sport)
        put16(22, c.dport)
        put16(24, size - 20)
        sum_ = check(body + np.uint64(size - 20))
        put16(26, np.where(sum_ == 0, np.uint64(0xFFFF), sum_))
    else:
        m[:, RECORD + 20] = c.kind
        put16(24, c.sport)
        put16(26, c.seq & np.uint64(0xFFFF))
        echo = np.uint64(speech_sum * bool(payload)) + (c.kind << np.uint64(8)) + c.sport + (c.seq & np.uint64(0xFFFF))
        put16(22, check(echo))
    if payload:
        m[:, m.shape[1] - payload :] = speech
