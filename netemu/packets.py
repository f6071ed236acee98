"""Packets: a batch of IPv4 packets as columns, and the bytes they came from.

One array a header field, one element a packet. Rooms read and write the columns; the bytes that arrived stay
untouched in `data`, and `bytes(row)` lays the columns over them, checksums patched as Linux patches them
(RFC 1624, incrementally), when somebody asks. A few packets are rebuilt wholesale (an ICMP error whose inner header
is translated, an option inserted): those keep their own bytes in `rebuilt`.

Addresses are uint32 in host order. Time is int64 nanoseconds. `rows` everywhere are row numbers, ascending.
"""

from __future__ import annotations

import builtins
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

ICMP, TCP, UDP, DCCP, GRE, SCTP, UDPLITE = 1, 6, 17, 33, 47, 132, 136
PORTED = (TCP, UDP, UDPLITE, SCTP, DCCP)  # protocols whose first four bytes are two ports
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

# connection state of a packet (ctstate); INVALID is "no connection and tracked"
INVALID, NEW, ESTABLISHED, RELATED, UNTRACKED = 0, 1, 2, 3, 4
# how the packet was addressed on its link
HOST, BROADCAST, MULTICAST, OTHERHOST = 0, 1, 2, 3
# fates; 0 is still travelling
TRAVELLING, FORWARDED, DELIVERED, REJECTED, DROPPED, HELD = 0, 1, 2, 3, 4, 5
FATES = ("travelling", "forwarded", "delivered", "rejected", "dropped", "held")

_SUMMED = 1 << 19  # bytes summed up together
_READ = 40  # bytes of a header row that are ever looked at
ANSWERS = 1 << 40  # what a packet that the node makes because of another has added to that one's serial number
OFFSET_MASK, MORE_FRAGMENTS, DONT_FRAGMENT = 0x1FFF, 0x2000, 0x4000
ICMP_QUERIES = (0, 8, 13, 14, 15, 16, 17, 18)  # the types that carry an id
ICMP_ERRORS = (3, 4, 5, 11, 12)

#: column -> (dtype, value of a fresh row)
COLUMNS: dict[str, tuple[str, int]] = {
    "time": ("i8", 0),  # ns
    "serial": ("i8", 0),  # how many packets the node had seen before this one: what random draws are made from
    "at": ("i8", 0),  # where the IP header starts in data
    "cap": ("i4", 0),  # bytes that we have from there on
    "wire": ("i4", 0),  # bytes that there were on the wire from there on
    "arrived": ("i2", -1),  # link it came in on; -1: the node sent it
    "link_in": ("i2", -1),  # input device as the hook of the moment shows it
    "link_out": ("i2", -1),  # output device as the hook of the moment shows it
    "src": ("u4", 0),
    "dst": ("u4", 0),
    "proto": ("u1", 0),
    "tos": ("u1", 0),
    "ttl": ("u1", 0),
    "ident": ("u2", 0),
    "frag": ("u2", 0),  # the flags-and-offset word
    "ihl": ("u1", 20),  # bytes
    "length": ("i4", 0),  # IP total length
    "ip_ok": ("?", 0),  # the checksum of an IP header without options is right
    "sport": ("u2", 0),  # 0 where the protocol has no ports, or for a later fragment
    "dport": ("u2", 0),
    "seq": ("u4", 0),
    "ack": ("u4", 0),
    "flags": ("u1", 0),
    "win": ("u2", 0),
    "doff": ("u1", 0),  # bytes
    "icmp_type": ("u1", 0),
    "icmp_code": ("u1", 0),
    "icmp_id": ("u2", 0),
    "mark": ("u4", 0),
    "ct": ("i4", -1),  # connection (row of the conntrack table)
    "state": ("u1", INVALID),
    "reply": ("?", 0),  # it travels against the connection's first packet
    "pkttype": ("u1", HOST),
    "local": ("?", 0),  # the node made it
    "socket": ("?", 0),  # a local socket owns it
    "ipvs": ("?", 0),  # IPVS has dealt with it
    "ether": ("?", 0),  # smac is known
    "smac": ("u8", 0),
    "fate": ("u1", TRAVELLING),
    "reason": ("i4", 0),  # Paths.texts
    "path": ("i4", 0),  # Paths
    "evaluated": ("i4", 0),  # explicit rules looked at
}


#: columns that are filled for every packet when it is parsed
_ALWAYS = (
    "at", "cap", "src", "dst", "proto", "tos", "ttl", "ident", "frag", "ihl", "length", "ip_ok", "sport", "dport",
    "seq", "ack", "doff", "flags", "win",
)  # fmt: skip
_BLOCK = 8192  # packets whose headers are looked at together: the copy stays in the cache
_HAS_PORTS = np.isin(np.arange(256), PORTED)
_HAS_CHECKSUM = np.isin(np.arange(256), (TCP, UDP, ICMP))
_BELOW = np.array([(1 << 8 * k) - 1 for k in range(9)], np.uint64)  # the first k bytes of a word
#: which bits of the k-th 32-bit word belong to a packet of some length up to 64
_ENDS = np.array([[(1 << 8 * min(max(n - 4 * k, 0), 4)) - 1 for k in range(16)] for n in range(65)], np.uint32)


class Packets:
    """n packets as columns (see COLUMNS for names, dtypes and units). One that nobody asked for yet takes no memory."""

    time: I64
    serial: I64
    at: I64
    cap: I32
    wire: I32
    arrived: I16
    link_in: I16
    link_out: I16
    src: U32
    dst: U32
    proto: U8
    tos: U8
    ttl: U8
    ident: U16
    frag: U16
    ihl: U8
    length: I32
    ip_ok: Mask
    sport: U16
    dport: U16
    seq: U32
    ack: U32
    flags: U8
    win: U16
    doff: U8
    icmp_type: U8
    icmp_code: U8
    icmp_id: U16
    mark: U32
    ct: I32
    state: U8
    reply: Mask
    pkttype: U8
    local: Mask
    socket: Mask
    ipvs: Mask
    ether: Mask
    smac: U64
    fate: U8
    reason: I32
    path: I32
    evaluated: I32
    sums_dccp = True  # the checksum of DCCP is patched with the addresses (Linux 6.1: later ones do not know it)

    def __init__(self, n: int, data: U8) -> None:
        self.n = n
        self.data = data
        self.rebuilt: dict[int, builtins.bytes] = {}

    def __getattr__(self, name: str) -> NDArray[Any]:
        """A column that is asked for the first time: of fresh rows."""
        if name not in COLUMNS:
            raise AttributeError(name)
        dtype, fresh = COLUMNS[name]
        column = np.full(self.n, fresh, dtype) if fresh else np.zeros(self.n, dtype)
        vars(self)[name] = column
        return column

    def __len__(self) -> int:
        return self.n

    @classmethod
    def room(cls, n: int, data: U8) -> Packets:
        """n fresh rows, for `read` to fill once it is known where the packets are (at, cap)."""
        p = cls(n, data)
        for name in _ALWAYS:
            setattr(p, name, np.empty(n, COLUMNS[name][0]))
        return p

    @classmethod
    def parse(cls, data: U8, at: I64, cap: I32, wire: I32 | None = None, time: I64 | None = None) -> Packets:
        """Columns of the IPv4 packets whose headers start at `at` in `data`.

        data   uint8[m]   must reach 64 bytes beyond the last packet's start (see `padded`)
        at     int64[n]   cap int32[n] bytes captured from there; wire int32[n] bytes on the wire (default cap)
        time   int64[n]   nanoseconds
        Cost   two row gathers a packet and a strided read a column. Fields that were not captured are 0.
        """
        p = cls.room(len(at), data)
        p.at[:] = at
        p.cap[:] = cap
        p.wire[:] = cap if wire is None else wire
        if time is not None:
            p.time[:] = time
        for lo in range(0, p.n, _BLOCK):
            p.read(slice(lo, min(lo + _BLOCK, p.n)))
        return p

    @classmethod
    def from_bytes(cls, packets: list[builtins.bytes], time: int = 0) -> Packets:
        """Columns of packets given as bytes from the IP header on, all at one time."""
        lens = np.array([len(b) for b in packets], np.int64)
        at = np.zeros(len(packets), np.int64)
        np.cumsum(lens[:-1], out=at[1:])
        p = cls.parse(padded(b"".join(packets)), at, lens.astype(np.int32))
        p.time[:] = time
        return p

    def read(self, block: slice, head: U8 | None = None) -> None:
        """Fill the header columns of a block of rows from `data`: a copy of the headers, then a column at a time.

        head  uint8[n, 64]: what stands at the beginning of each, by somebody who has fetched it
        Columns that few protocols have are zero, and written only where there is something.
        """
        at, cap = self.at[block], self.cap[block]
        if head is None or int(cap.min()) < _READ:
            head = _gather(self.data, at, cap)
        words, wide = head.view(">u2"), head.view(">u4")
        ihl = head[:, 0].copy()
        ihl &= 15
        ihl <<= 2
        frag, proto = words[:, 3].astype(np.uint16), head[:, 9].copy()
        self.ihl[block], self.frag[block], self.proto[block] = ihl, frag, proto
        self.tos[block], self.ttl[block] = head[:, 1], head[:, 8]
        self.length[block], self.ident[block] = words[:, 1], words[:, 2]
        self.src[block], self.dst[block] = wide[:, 3], wide[:, 4]
        lie = head.view(np.uint32)  # the order of the bytes does not matter to whether a checksum is right
        total = lie[:, 0].astype(np.uint64)
        for k in range(1, 5):
            total += lie[:, k]
        self.ip_ok[block] = _sound(total)
        first = 20
        if int(ihl.min()) != 20 or int(ihl.max()) != 20:
            first = 0
            head = _gather(self.data, at + ihl, np.maximum(cap - ihl, 0).astype(np.int32))
            words, wide = head.view(">u2"), head.view(">u4")
        w, d = first // 2, first // 4
        later = (frag & OFFSET_MASK) != 0
        tcp, ported = proto == TCP, _HAS_PORTS.take(proto)
        if later.any():
            tcp &= ~later
            ported &= ~later
        self.sport[block], self.dport[block] = words[:, w], words[:, w + 1]
        if not ported.all():
            self.sport[block] *= ported
            self.dport[block] *= ported
        some = int(np.count_nonzero(tcp))
        if some:
            self.seq[block], self.ack[block] = wide[:, d + 1], wide[:, d + 2]
            self.doff[block] = head[:, first + 12]
            self.doff[block] >>= 4
            self.doff[block] <<= 2
            self.flags[block], self.win[block] = head[:, first + 13], words[:, w + 7]
            if some == len(tcp):
                return
        for column in (self.seq, self.ack, self.doff, self.flags, self.win):
            if some:
                column[block] *= tcp
            else:
                column[block] = 0
        icmp = np.flatnonzero((proto == ICMP) & ~later)
        if len(icmp):
            rows = icmp + block.start
            kind = head[icmp, first]
            self.icmp_type[rows], self.icmp_code[rows] = kind, head[icmp, first + 1]
            self.icmp_id[rows] = words[icmp, w + 2] * np.isin(kind, ICMP_QUERIES)

    # ---- bytes -------------------------------------------------------------------------------------------------

    def original(self, row: int) -> builtins.bytes:
        """The bytes of a packet as they arrived (or as last rebuilt), link padding cut off, from the IP header on."""
        got = self.rebuilt.get(row)
        if got is not None:
            return got
        start = int(self.at[row])
        return self.data[start : start + int(self.cap[row])].tobytes()[: max(int(self.length[row]), 20)]

    def bytes(self, row: int) -> builtins.bytes:
        """The packet as its columns stand: header fields laid over the original bytes, checksums patched."""
        b = bytearray(self.original(row))
        if len(b) < 20:
            return builtins.bytes(b)
        (length,) = struct.unpack_from("!H", b, 2)
        old_ip = struct.unpack_from("!10H", b)
        b[1] = int(self.tos[row])
        b[8] = int(self.ttl[row])
        struct.pack_into("!II", b, 12, int(self.src[row]), int(self.dst[row]))
        new_ip = struct.unpack_from("!10H", b)
        if new_ip != old_ip:
            struct.pack_into("!H", b, 10, patched(old_ip[5], old_ip, new_ip))
        ihl = int(self.ihl[row])
        if self.frag[row] & OFFSET_MASK or length < ihl:
            return builtins.bytes(b)
        proto = int(self.proto[row])
        if proto == ICMP:
            if len(b) >= ihl + 8 and b[ihl] in ICMP_QUERIES:
                (old_id,) = struct.unpack_from("!H", b, ihl + 4)
                new_id = int(self.icmp_id[row])
                if new_id != old_id:
                    struct.pack_into("!H", b, ihl + 4, new_id)
                    (c,) = struct.unpack_from("!H", b, ihl + 2)
                    struct.pack_into("!H", b, ihl + 2, patched(c, (old_id,), (new_id,)))
        elif proto in PORTED and len(b) >= ihl + 4:
            old_ports = struct.unpack_from("!HH", b, ihl)
            new_ports = (int(self.sport[row]), int(self.dport[row]))
            old, new = old_ip[6:10] + old_ports, new_ip[6:10] + new_ports
            if old != new:
                struct.pack_into("!HH", b, ihl, *new_ports)
                place = {TCP: 16, UDP: 6, UDPLITE: 6, DCCP: 6 if self.sums_dccp else None}.get(proto)
                if place is not None and len(b) >= ihl + place + 2:
                    (c,) = struct.unpack_from("!H", b, ihl + place)
                    if c or proto != UDP:  # a UDP checksum of 0 means none, and stays
                        c = patched(c, old, new)
                        if proto in (UDP, UDPLITE) and c == 0:
                            c = 0xFFFF
                        struct.pack_into("!H", b, ihl + place, c)
                # NAT makes it anew whatever it was, IPVS only where the ports changed
                anew = proto == SCTP and (old_ports != new_ports or not self.ipvs[row])
                if anew and len(b) >= max(ihl + 12, length):
                    struct.pack_into("<I", b, ihl + 8, 0)
                    struct.pack_into("<I", b, ihl + 8, crc32c(b[ihl:length]))
        return builtins.bytes(b)

    def sizes(self, rows: Rows) -> I64:
        """int64[len(rows)]: how long `original` is, of rows that were not rebuilt."""
        return np.minimum(self.cap[rows], np.maximum(self.length[rows], 20)).astype(np.int64)

    def simple(self, rows: Rows) -> Mask:
        """bool[len(rows)]: rows that `lay` can do: not rebuilt, a whole IP header, no checksum over all their bytes."""
        mask: Mask = (self.proto[rows] != SCTP) & (self.cap[rows] >= 20)
        if self.rebuilt:
            mask &= ~np.isin(rows, list(self.rebuilt))
        return mask

    def lay(self, rows: Rows, out: U8, at: I64) -> None:
        """`bytes` of many `simple` rows: their original bytes stand at `at` in `out`; lay the columns over them.

        Cost: a gather of the headers, some 50 passes over columns, six scatters.
        """
        for lo in range(0, len(rows), _BLOCK):
            self._lay(rows[lo : lo + _BLOCK], out, at[lo : lo + _BLOCK])

    def _lay(self, rows: Rows, out: U8, at: I64) -> None:
        size = self.sizes(rows)
        head = _gather(out, at, size.astype(np.int32))
        old = [head.view(">u2")[:, k].astype(np.int64) for k in range(10)]
        src, dst = self.src[rows].astype(np.int64), self.dst[rows].astype(np.int64)
        tos, ttl = self.tos[rows], self.ttl[rows]
        new = {0: old[0] & 0xFF00 | tos, 4: old[4] & 0xFF | ttl.astype(np.int64) << 8}
        ends = {6: src >> 16, 7: src & 0xFFFF, 8: dst >> 16, 9: dst & 0xFFFF}
        moved = _moved([old[k] for k in ends], list(ends.values()))
        check = _patched(old[5], _moved([old[k] for k in new], list(new.values())) + moved)
        out[at + 1], out[at + 8] = tos, ttl
        _put16(out, at + 10, check)
        pair = np.empty((len(rows), 2), ">u4")
        pair[:, 0], pair[:, 1] = src, dst
        np.ndarray((len(out) - 7,), "V8", out.data, strides=(1,))[at + 12] = pair.view("V8")[:, 0]

        ihl, proto = self.ihl[rows].astype(np.int64), self.proto[rows]
        first = ((self.frag[rows] & OFFSET_MASK) == 0) & (old[1] >= ihl)
        body = at + ihl
        k = np.flatnonzero(first & _HAS_PORTS[proto] & (size >= ihl + 4))
        if len(k):
            there, kind = body[k], proto[k]
            ports = (self.sport[rows[k]].astype(np.int64), self.dport[rows[k]].astype(np.int64))
            more = moved[k] + _moved([_get16(out, there), _get16(out, there + 2)], list(ports))
            _put16(out, there, ports[0])
            _put16(out, there + 2, ports[1])
            place = np.where(kind == TCP, 16, 6)
            whole = np.flatnonzero(size[k] >= ihl[k] + place + 2)
            there, kind, more = (there + place)[whole], kind[whole], more[whole]
            before = _get16(out, there)
            after = _patched(before, more)
            udp = (kind == UDP) | (kind == UDPLITE)
            after[udp & (after == 0) & (more > 0)] = 0xFFFF
            none = (kind == UDP) & (before == 0)  # a UDP checksum of 0 means none, and stays
            _put16(out, there, np.where(none, 0, after))
        k = np.flatnonzero(first & (proto == ICMP) & (size >= ihl + 8))
        if len(k):
            k = k[np.isin(out[body[k]], ICMP_QUERIES)]
            there, ident = body[k], self.icmp_id[rows[k]].astype(np.int64)
            more = _moved([_get16(out, there + 4)], [ident])
            _put16(out, there + 4, ident)
            _put16(out, there + 2, _patched(_get16(out, there + 2), more))

    def rebuild(self, row: int, packet: builtins.bytes) -> None:
        """Give a row other bytes; its header columns are read again from them (mark, links and the rest stay)."""
        self.rebuilt[row] = packet
        one = Packets.from_bytes([packet])
        for name in [
            "src",
            "dst",
            "proto",
            "tos",
            "ttl",
            "ident",
            "frag",
            "ihl",
            "length",
            "sport",
            "dport",
            "seq",
            "ack",
            "flags",
            "win",
            "doff",
            "icmp_type",
            "icmp_code",
            "icmp_id",
            "cap",
            "wire",
        ]:
            getattr(self, name)[row] = getattr(one, name)[0]

    def payload(self, row: int) -> builtins.bytes:
        """Bytes from the transport header on."""
        return self.bytes(row)[int(self.ihl[row]) :]

    def take(self, rows: Rows | slice) -> Packets:
        """A copy of some rows, over the same bytes; of a slice (without step) the rows themselves."""
        p = Packets(len(self.at[rows]), self.data)
        p.sums_dccp = self.sums_dccp
        for name, column in vars(self).items():
            if name in COLUMNS:
                setattr(p, name, column[rows])
        if self.rebuilt:
            at = np.arange(self.n)[rows].tolist()
            p.rebuilt = {new: self.rebuilt[old] for new, old in enumerate(at) if old in self.rebuilt}
        return p

    def slices(self, size: int) -> Iterator[Rows]:
        """All rows, `size` at a time."""
        for start in range(0, self.n, size):
            yield np.arange(start, min(start + size, self.n))

    # ---- checksums ---------------------------------------------------------------------------------------------

    def ip_checksum_ok(self, rows: Rows) -> Mask:
        """bool[len(rows)]: the IP header's checksum is right. Headers with options go one by one."""
        part = stretch(rows)
        ok, ihl = self.ip_ok[part], self.ihl[part]
        odd = np.flatnonzero(ihl != 20)
        if len(odd):
            ok = ok.copy()
        for at in odd.tolist():
            row = int(rows[at])
            ok[at] = checksum(self.original(row)[: int(ihl[at])]) == 0
        return ok

    def l4_checksum_ok(self, rows: Rows) -> Mask:
        """bool[len(rows)]: the TCP, UDP or ICMP checksum is right, or cannot be checked (0 in UDP, bytes not captured).

        Other protocols and fragments count as right. Only for bytes as they arrived. Cost: one pass over the bytes.
        """
        ok = np.empty(len(rows), bool)
        for lo in range(0, len(rows), _BLOCK):
            ok[lo : lo + _BLOCK] = self._l4_checksum_ok(rows[lo : lo + _BLOCK])
        return ok

    def _l4_checksum_ok(self, rows: Rows) -> Mask:
        part = stretch(rows)
        at, proto, length, ihl = self.at[part], self.proto[part], self.length[part], self.ihl[part]
        body: I32 = length - ihl
        know = _HAS_CHECKSUM.take(proto)
        know &= self.cap[part] >= length
        know &= (self.frag[part] & (OFFSET_MASK | MORE_FRAGMENTS)) == 0
        know &= body >= 8
        ok = ~know
        if self.rebuilt:
            for place in np.flatnonzero(know & np.isin(rows, list(self.rebuilt))).tolist():
                ok[place] = segment_ok(self.original(int(rows[place])))
                know[place] = False
        short = know & (length <= 64)
        short &= ihl == 20
        if short.all():
            return _short_ok(self.data, at, proto, length)
        few = np.flatnonzero(short)
        if len(few):
            ok[few] = _short_ok(self.data, at[few], proto[few], length[few])
        k = np.flatnonzero(know & ~short)
        if len(k):
            start, kind, size = at[k] + ihl[k], proto[k], body[k].astype(np.int64)
            # of an address only its value counts, modulo 65,535; and ICMP has no pseudo header
            pseudo = self.src[rows[k]].astype(np.uint64) + self.dst[rows[k]] + kind + size.astype(np.uint64)
            good = _sound(_sum16(self.data, start, size) + pseudo * (kind != ICMP))
            udp = kind == UDP
            if udp.any():  # 0 stands for no checksum
                good |= udp & ((self.data[start + 6] | self.data[start + 7]) == 0)
            ok[k] = good
        return ok


def _short_ok(data: U8, at: I64, proto: U8, length: I32) -> Mask:
    """bool[n]: the checksums of whole TCP, UDP and ICMP packets of at most 64 bytes, without IP options, are right.

    All is summed as it lies in memory, addresses and ports as two numbers to the word: the order of the bytes does not
    matter to a sum's being all ones.
    """
    words = _rows(data, at, 64).view("<u4")
    least, most = int(length.min()), int(length.max())
    kinds = int(proto.min()), int(proto.max())
    same = least == most and kinds[0] == kinds[1]
    total = np.zeros(len(at), np.uint64)
    for k in range(5 if kinds == (ICMP, ICMP) else 3, (most + 3) // 4):
        if k < least // 4:
            total += words[:, k]
        else:  # some packets end in or before this word
            total += words[:, k] & (_ENDS[most, k] if least == most else _ENDS[:, k].take(length))
    if kinds != (ICMP, ICMP):
        body = length - 20
        swapped = (body & 255) << 8 | body >> 8
        if same:
            total += np.uint64(kinds[0] << 8) + np.uint64(swapped[0])
        else:
            total += proto.astype(np.uint64) << np.uint64(8)
            total += swapped.astype(np.uint64)
            icmp = np.flatnonzero(proto == ICMP)
            for part in (words[icmp, 3], words[icmp, 4], (ICMP << 8) + swapped[icmp].astype(np.uint64)):
                total[icmp] -= part
    good = _sound(total)
    if kinds[0] <= UDP <= kinds[1]:  # 0 stands for no checksum
        good |= (proto == UDP) & (words[:, 6] >> 16 == 0)
    return good


def stretch(rows: Rows) -> Rows | slice:
    """Ascending row numbers as something to index columns with: a slice where they lie side by side, which costs no
    copy."""
    n = len(rows)
    if n and rows.item(-1) - (first := rows.item(0)) + 1 == n:
        return slice(first, first + n)
    return rows


def distinct(column: NDArray[np.integer]) -> list[int]:
    """The values that occur, ascending: without sorting where they lie close together, as numbers of links do."""
    if not len(column):
        return []
    lo, hi = int(column.min()), int(column.max())
    if lo == hi:
        return [lo]
    if hi - lo < 1 << 12:
        return [lo + k for k in np.flatnonzero(np.bincount(column.astype(np.int64) - lo)).tolist()]
    values: list[int] = np.unique(column).tolist()
    return values


def keep_memory() -> None:
    """Let the C library keep freed memory of up to 32 MiB for what is allocated next, as nothing else.

    Columns of a run are allocated and freed by the hundred, and each fresh page costs more than the work on it. glibc
    learns from the largest block that was freed how much to keep; this one is never touched. Elsewhere it does nothing.
    """
    np.empty((32 << 20) - (1 << 16), np.uint8)


def padded(data: bytes | bytearray | memoryview) -> U8:
    """`data` as uint8 with 64 zero bytes behind it, which is what Packets.parse asks for."""
    out = np.zeros(len(data) + 64, np.uint8)
    if len(data):
        out[: len(data)] = np.frombuffer(data, np.uint8)
    return out


def _rows(data: U8, at: I64, width: int) -> U8:
    """uint8[n, width]: the bytes at each place, 64 at most. One gather of whole rows: each byte alone costs as much."""
    if len(data) < width:
        return np.zeros((len(at), width), np.uint8)
    # not take(): that would first make a plain copy of what overlaps
    overlapping = np.ndarray((len(data) - width + 1,), f"V{width}", data.data, strides=(1,))
    return overlapping[at].view(np.uint8).reshape(-1, width)


def _gather(data: U8, at: I64, cap: I32) -> U8:
    """uint8[n, 64]: the first 64 bytes at each place, zero beyond what was captured."""
    head = _rows(data, np.minimum(at, max(len(data) - 64, 0)), 64)
    if int(cap.min(initial=_READ)) < _READ:
        k = np.flatnonzero(cap < _READ)
        head[k] *= np.arange(64) < cap[k, None]
    return head


def _moved(old: list[I64], new: list[I64]) -> I64:
    """What changed 16-bit words add to the complement of a checksum (RFC 1624, equation 3); 0 where none did."""
    total = np.zeros(len(old[0]), np.int64)
    for o, n in zip(old, new, strict=True):
        total += (0xFFFF - o + n) * (o != n)
    return total


def _patched(check: I64, moved: I64) -> I64:
    """`patched`, of columns."""
    total: I64 = _folded((~check & 0xFFFF) + moved)
    return ~total & 0xFFFF


def _get16(data: U8, at: I64) -> I64:
    return data[at].astype(np.int64) << 8 | data[at + 1]


def _put16(data: U8, at: I64, values: I64) -> None:
    data[at], data[at + 1] = values >> 8, values & 0xFF


def _u16(head: U8, k: int) -> U16:
    return head.view(">u2")[:, k >> 1].astype(np.uint16)


def _u32(head: U8, k: int) -> U32:
    return head.view(">u4")[:, k >> 2].astype(np.uint32)


def _sound(total: U64) -> Mask:
    """bool[n]: a sum of 16-bit words, their checksum among them, is all ones; of zeros alone it never is."""
    ok: Mask = total // np.uint64(0xFFFF) * np.uint64(0xFFFF) == total
    ok &= total != 0
    return ok


def _folded(total: NDArray[Any]) -> NDArray[Any]:
    for _ in range(4):
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _sum16(data: U8, start: I64, size: I64) -> U64:
    """uint64[n]: sum of the big-endian 16-bit words of each stretch of 8 bytes or more (an odd last byte padded with
    zero), folded.

    Summed as aligned 64-bit words, whose upper 48 bits are summed once more by themselves: so nothing is lost to
    overflow, and modulo 65,535, where 65,536 is 1, the two parts count alike. Where a stretch begins at an even
    address, its bytes stand the other way round in those words, and so does its sum (RFC 1071).
    Cost: two passes over the bytes from the first stretch to the last.
    """
    n, stop = len(start), start + size
    out = np.zeros(n, np.uint64)
    skew = -data.__array_interface__["data"][0] % 8
    words = data[skew : len(data) - (len(data) - skew) % 8].view("<u8")
    a, b = start - skew, stop - skew
    order: Rows | slice = slice(None)
    if n > 1 and bool((a[1:] < a[:-1]).any()):
        order = np.argsort(a)
        a, b = a[order], b[order]
    last = int(b.max())
    if n < 4 or int(a[0]) < 0 or last // 8 >= len(words) or last - int(a[0]) > 8 * int(size.sum()) + 4096:
        pairs = zip(start.tolist(), stop.tolist(), strict=True)  # few, or far apart: each by itself
        return np.array([_sum16_one(data[i:j]) for i, j in pairs], np.uint64)
    whole, end = (a + 7) >> 3, b >> 3
    step = max(_SUMMED * n // (last - int(a[0])), 1)
    total = np.empty(n, np.uint64)
    for lo in range(0, n, step):
        hi = min(lo + step, n)
        first = int(whole[lo])
        edges = np.stack([whole[lo:hi], end[lo:hi]], 1).ravel() - first
        some = words[first : int(end[lo:hi].max()) + 1]
        upper = np.add.reduceat(some >> np.uint64(16), edges)[::2]
        total[lo:hi] = np.add.reduceat(some, edges)[::2] - (upper << np.uint64(16)) + upper
    total[whole == end] = 0
    total = _folded(total)
    total += _folded(words.take(whole - 1, mode="clip") & ~_BELOW.take(8 - (8 * whole - a)))
    total += _folded(words.take(end) & _BELOW.take(b & 7))
    total = _folded(total)
    out[order] = np.where(a & 1, total, total >> np.uint64(8) | (total & np.uint64(255)) << np.uint64(8))
    return out


def _sum16_one(stretch: U8) -> int:
    b = stretch.tobytes()
    total = int.from_bytes(b, "big") << 8 * (len(b) & 1)
    return total % 0xFFFF or 0xFFFF * bool(total)


def options(header: bytes) -> tuple[int | None, set[int]]:
    """What the options of an IP header say: where the first bad one is (None: all are good), and which kinds there are.

    >>> options(bytes(20) + bytes([7, 40, 4, 0])), options(bytes(20) + bytes([131, 7, 4, 10, 0, 0, 9, 0]))
    ((20, set()), (None, {131}))
    """
    kinds: set[int] = set()
    k, end = 20, len(header)
    while k < end and header[k]:
        kind = header[k]
        if kind == 1:
            k += 1
            continue
        size = header[k + 1] if k + 1 < end else 0
        if size < 2 or k + size > end:
            return k, kinds
        if kind in (131, 137):  # loose and strict source route
            if size < 3:
                return k + 1, kinds
            if header[k + 2] < 4:
                return k + 2, kinds
            if kinds & {131, 137}:
                return k, kinds
        elif kind == 7:  # record route
            if kinds & {7}:
                return k, kinds
            if size < 3:
                return k + 1, kinds
            if header[k + 2] < 4 or header[k + 2] <= size < header[k + 2] + 3:
                return k + 2, kinds
        elif kind == 68:  # timestamps
            if kinds & {68}:
                return k, kinds
            if size < 4:
                return k + 1, kinds
            if header[k + 2] < 5 or header[k + 2] <= size < header[k + 2] + _STAMP.get(header[k + 3] & 15, 1) - 1:
                return k + 2, kinds
            if header[k + 2] > size and header[k + 3] >> 4 == 15:
                return k + 3, kinds
        elif kind == 148 and size < 4:  # router alert
            return k + 1, kinds
        kinds.add(kind)
        k += size
    return None, kinds


_STAMP = {0: 4, 1: 8, 3: 8}  # bytes of a timestamp, by the option's flag: time, address and time, only of whom it names


def noted(header: bytes, here: int, ms: int, ours: Callable[[int], bool]) -> tuple[bytes, list[int]]:
    """An IP header after a router wrote itself into its record-route and timestamp options.

    here     its address     ms  its time, milliseconds since midnight UT     ours(address)  is it one of its own?
    returns  the header, and where in it `here` stands. Its checksum is still the old one: Linux makes it anew only
             when the packet goes on (see `with_address`)
    """
    h = bytearray(header)
    places = []
    k = 20
    while k < len(h) and h[k]:
        if h[k] == 1:
            k += 1
            continue
        size, at = h[k + 1], h[k + 2] if h[k + 1] > 2 else 0
        if h[k] == 7 and at <= size:
            places.append(k + at - 1)
            h[k + 2] += 4
        elif h[k] == 68 and at > size:
            h[k + 3] += 16  # one more that found no room
        elif h[k] == 68 and h[k + 3] & 15 in _STAMP:
            kind = h[k + 3] & 15
            if kind == 1:
                places.append(k + at - 1)
            if kind != 3 or ours(int.from_bytes(h[k + at - 1 : k + at + 3], "big")):
                struct.pack_into("!I", h, k + at - 1 + _STAMP[kind] - 4, ms)
                h[k + 2] += _STAMP[kind]
        k += size
    for place in places:
        struct.pack_into("!I", h, place, here)
    return bytes(h), places


def with_address(header: bytes, places: list[int], address: int) -> bytes:
    """An IP header with an address written to some places in it, its checksum made anew."""
    h = bytearray(header)
    for place in places:
        struct.pack_into("!I", h, place, address)
    h[10:12] = b"\0\0"
    struct.pack_into("!H", h, 10, checksum(bytes(h)))
    return bytes(h)


def checksum(data: bytes) -> int:
    """The Internet checksum of `data`; 0 when `data` holds a right one."""
    if len(data) % 2:
        data += b"\0"
    s: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while s >> 16:
        s = (s & 0xFFFF) + (s >> 16)
    return ~s & 0xFFFF


def _crc_table() -> tuple[int, ...]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes | bytearray) -> int:
    """SCTP's checksum (RFC 4960, appendix B: Castagnoli); it stands in the packet lowest byte first.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def patched(check: int, old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """A checksum after some 16-bit words changed (RFC 1624, equation 3). The checksum's own word is left out.

    >>> hex(patched(0xDD2F, (0x5555,), (0x3285,)))
    '0x0'
    """
    s = ~check & 0xFFFF
    for o, n in zip(old, new, strict=True):
        if o != n:
            s += (~o & 0xFFFF) + n
    while s >> 16:
        s = (s & 0xFFFF) + (s >> 16)
    return ~s & 0xFFFF


def segment_ok(packet: bytes) -> bool:
    """Is the TCP, UDP or ICMP checksum of a whole packet right (or absent, as UDP's may be)?"""
    ihl = (packet[0] & 15) * 4
    seg = packet[ihl:]
    if packet[9] == ICMP:
        return checksum(seg) == 0
    if packet[9] == UDP and seg[6:8] == b"\0\0":
        return True
    return checksum(packet[12:20] + struct.pack("!BBH", 0, packet[9], len(seg)) + seg) == 0
