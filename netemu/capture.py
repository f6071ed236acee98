"""Captures: pcap and pcapng in and out, and which link a packet came in on.

    file, gzip, pipe --> windows of bytes --> where records start --> link header --> Frames, up to 65,536 at a time

A capture is a chain of records, each saying how long it is, so where the thousandth one starts is known only after the
999 before it. `_chained` walks it from many places at once: cut the window into pieces, guess a record start in each,
follow all chains together, column by column. A guess is believed only when the chain before it, which starts at a true
record, lands on it exactly; so the answer is the one a loop would give. A stretch of records of one size, which is
what small packets and cut-off captures look like, is settled by one comparison.

Memory is a window or two, whatever the length of the capture. IPv4 goes on; everything else is counted by name.
dpkt packs the headers that netemu writes; no packet goes through it.
"""

from __future__ import annotations

import io
import mmap
import os
import select
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from netemu.errors import REFUSED, UNSUPPORTED, Problem, Refused, Unsupported, raise_all
from netemu.packets import BROADCAST, HOST, I16, I32, I64, MULTICAST, U8, U32, U64, Mask, Packets, Rows, stretch

if TYPE_CHECKING:
    from netemu.routing import Routing

CHUNK = 65_536  # frames that travel together
BLOCK = (
    8192  # frames whose headers are looked at together, from the record's to the transport's: they stay in the cache
)
WINDOW = 8 << 20  # bytes looked at together
PEEK = 64 << 10  # bytes read to see what a file is
SETTLED = 2.0  # seconds without a write after which a file's pages are used as they are
PAD = 128  # bytes behind a window that may be read: the headers of a record that ends there, and more
NEAR = 80  # bytes from the link header on that are fetched with the record's header: it, the network's, the transport's
LONGEST_PACKET = 262_144  # libpcap's MAXIMUM_SNAPLEN: a longer record is damage
LONGEST_BLOCK = 16 << 20  # as libpcap: a longer pcapng block is damage
PIECE = 32 << 10  # bytes of one chain of a parallel walk, at least
CHAINS = 256  # that go in parallel, at most
REACH = 2048  # bytes searched for a record start behind the edge of a piece
GUESSES = 4  # places behind each edge that are looked at more closely
WORTH_SHARING = 1024  # packets that are asked about together, where answers are shared
STEPS = 32  # hops between two looks at which chains have arrived

OUT, PASSED = -1, -2  # what arrivals says besides a link: the node sent it; it is not an arrival at all

SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
BYTE_ORDER_MAGIC = 0x1A2B3C4D

NULL, ETHERNET, RAW_BSD, RAW_OPENBSD, RAW = 0, 1, 12, 14, 101
LOOP, SLL, IPV4_ONLY, IPV6_ONLY, SLL2 = 108, 113, 228, 229, 276

#: link types that are read
LINK_TYPES = {
    NULL: "NULL (BSD loopback)",
    ETHERNET: "Ethernet",
    RAW_BSD: "raw IP",
    RAW_OPENBSD: "raw IP",
    RAW: "raw IP",
    LOOP: "LOOP (OpenBSD loopback)",
    SLL: "Linux cooked (SLL)",
    IPV4_ONLY: "raw IPv4",
    IPV6_ONLY: "raw IPv6",
    SLL2: "Linux cooked v2 (SLL2)",
}
#: link types that are not, by name
OTHER_LINK_TYPES = {
    3: "AX.25",
    6: "Token Ring",
    7: "ARCNET",
    8: "SLIP",
    9: "PPP",
    10: "FDDI",
    50: "PPP in HDLC framing",
    51: "PPPoE",
    104: "Cisco HDLC",
    105: "IEEE 802.11",
    107: "Frame Relay",
    117: "OpenBSD pflog",
    119: "IEEE 802.11 with Prism header",
    127: "IEEE 802.11 with radiotap header",
    163: "IEEE 802.11 with AVS header",
    187: "Bluetooth HCI",
    189: "Linux USB",
    192: "PPI",
    195: "IEEE 802.15.4",
    201: "Bluetooth HCI with direction",
    220: "Linux USB, padded",
    227: "CAN",
    239: "NFLOG",
    249: "USBPcap",
    252: "Wireshark upper PDU",
    253: "Linux netlink",
    258: "Apple PKTAP",
}

IPV4, IPV6 = 0x0800, 0x86DD
VLAN_TAGS = (0x8100, 0x88A8, 0x9100)
# kinds that are not ethertypes; ethertypes below 0x600 are lengths, so the numbers are free from 0x10000 on
SHORT, CUT, LLC, STP, ISIS, SNAP, NOT_IP, NETLINK, FOREIGN = range(0x10000, 0x10009)

#: what a frame that is not IPv4 is called in `Capture.counts`
KINDS = {
    IPV4: "IPv4",
    0x0806: "ARP",
    0x0842: "Wake-on-LAN",
    0x22F0: "AVTP",
    0x4305: "B.A.T.M.A.N.",
    0x6558: "Ethernet bridging",
    0x8035: "RARP",
    0x809B: "AppleTalk",
    0x80F3: "AppleTalk ARP",
    0x8137: "IPX",
    IPV6: "IPv6",
    0x8808: "Ethernet pause",
    0x8809: "LACP",
    0x8847: "MPLS",
    0x8848: "MPLS multicast",
    0x8863: "PPPoE discovery",
    0x8864: "PPPoE",
    0x888E: "802.1X",
    0x8892: "PROFINET",
    0x88A2: "ATA over Ethernet",
    0x88A4: "EtherCAT",
    0x88B8: "GOOSE",
    0x88CC: "LLDP",
    0x88E1: "HomePlug",
    0x88E5: "MACsec",
    0x88F7: "PTP",
    0x8902: "CFM",
    0x8906: "FCoE",
    0x8914: "FCoE initialisation",
    0x894F: "NSH",
    0x9000: "Ethernet loopback test",
    SHORT: "shorter than its link header",
    CUT: "IPv4 with its header cut off",
    LLC: "802.2 LLC",
    STP: "STP",
    ISIS: "IS-IS",
    SNAP: "802.2 SNAP",
    NOT_IP: "not IP",
    NETLINK: "netlink",
}

#: first bytes of things that people pass for captures
LOOKS_LIKE: tuple[tuple[bytes, str, str], ...] = (
    (b"\xa1\xb2\xcd\x34", "a pcap with Kuznetzov's longer records", "convert it: `editcap -F pcap IN OUT`"),
    (b"\x34\xcd\xb2\xa1", "a pcap with Kuznetzov's longer records", "convert it: `editcap -F pcap IN OUT`"),
    (b"snoop\0\0\0", "a Solaris snoop capture", "convert it: `editcap -F pcapng IN OUT`"),
    (b"GMBU", "a Microsoft Network Monitor capture", "convert it: `editcap -F pcapng IN OUT`"),
    (b"RTSS", "a Microsoft Network Monitor capture", "convert it: `editcap -F pcapng IN OUT`"),
    (b"XCP\0", "a Network Associates Sniffer capture", "convert it: `editcap -F pcapng IN OUT`"),
    (b"\x28\xb5\x2f\xfd", "zstd compressed", "unpack it: `zstd -d FILE`, or pipe it: `zstdcat FILE | netemu ... -`"),
    (b"\xfd7zXZ\0", "xz compressed", "unpack it: `xz -d FILE`, or pipe it: `xzcat FILE | netemu ... -`"),
    (b"BZh", "bzip2 compressed", "unpack it: `bzip2 -d FILE`, or pipe it: `bzcat FILE | netemu ... -`"),
    (b"\x04\x22\x4d\x18", "lz4 compressed", "unpack it: `lz4 -d FILE`"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"\x7fELF", "a program (ELF)", ""),
    (b"PAR1", "a Parquet file", ""),
    (b"\x89PNG", "a PNG picture", ""),
    (b"%PDF", "a PDF document", ""),
    (b"# Generated by iptables", "rules as iptables-save prints them", "rules belong in a model directory"),
    (b"# Generated by ip6tables", "rules as ip6tables-save prints them", "rules belong in a model directory"),
    (b"*nat\n", "rules as iptables-save prints them", "rules belong in a model directory"),
    (b"*filter\n", "rules as iptables-save prints them", "rules belong in a model directory"),
    (b"<?xml", "XML", "`tshark -T pdml` output cannot be read back: pass the capture itself"),
    (b"{", "JSON", "`tshark -T json` output cannot be read back: pass the capture itself"),
    (b"[", "JSON", "`tshark -T json` output cannot be read back: pass the capture itself"),
)


# ---- what comes out --------------------------------------------------------------------------------------------------


@dataclass
class Frames:
    """Up to 65,536 IPv4 frames as columns, in the order of the capture (of time, when several are merged).

    data      uint8[m]   bytes; reaches 64 beyond the last header's start
    at        int64[n]   where the IP header starts in data
    cap       int32[n]   bytes captured from there on
    wire      int32[n]   bytes that there were on the wire from there on, padding included
    time      int64[n]   nanoseconds
    number    int64[n]   1-based number of the frame in its own file, all frames counted
    source    int16[n]   the file: index into `Capture.names`
    iface     int32[n]   interface: index into `Capture.interfaces`
    ifindex   int32[n]   interface number of the recording machine (SLL2), 0 unknown
    smac dmac uint64[n]  link addresses, 0 unknown; `ether` bool[n]: smac is a known Ethernet address
    pkttype   uint8[n]   how it was addressed on its link: HOST, BROADCAST, MULTICAST, OTHERHOST
    outgoing  bool[n]    the capture says that the recording machine sent it
    incoming  bool[n]    the capture says that the recording machine received it
    """

    data: U8
    at: I64
    cap: I32
    wire: I32
    time: I64
    number: I64
    source: I16
    iface: I32
    ifindex: I32
    smac: U64
    dmac: U64
    ether: Mask
    pkttype: U8
    outgoing: Mask
    incoming: Mask
    parsed: Packets | None = field(default=None, init=False)  # what `parse` will give, where that was worked out

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: Rows | slice) -> Frames:
        """Some of the frames, over the same bytes."""
        some = Frames(self.data, *(getattr(self, name)[rows] for name in _COLUMNS))
        some.parsed = self.parsed.take(rows) if self.parsed else None
        return some

    def parse(self) -> Packets:
        """Header columns of the frames, with their times, lengths and link addresses. Yours to change."""
        p, self.parsed = self.parsed, None
        if p is None:
            p = Packets.parse(self.data, self.at, self.cap)
        p.wire, p.time, p.pkttype = self.wire.copy(), self.time.copy(), self.pkttype.copy()
        p.smac, p.ether = self.smac, self.ether  # nobody changes these
        return p

    @classmethod
    def room(cls, n: int, data: U8) -> Frames:
        """n frames to be filled in; of their links nothing is known yet: no address, no direction."""
        return cls(data, *(np.empty(n, dtype) for dtype in _MEASURED), *(np.zeros(n, dtype) for dtype in _HEARD))

    @staticmethod
    def columns() -> tuple[str, ...]:
        """The names of the columns, `data` left out, in order."""
        return _COLUMNS


_COLUMNS = tuple(f.name for f in fields(Frames) if f.name not in ("data", "parsed"))
_MEASURED = ("i8", "i4", "i4", "i8", "i8", "i2", "i4")  # what is known of every frame: at to iface
_HEARD = ("i4", "u8", "u8", "?", "u1", "?", "?")  # what a link header may tell: ifindex to incoming


class Capture:
    """Frames of one or more captures, a chunk at a time; see `read_capture`.

    What is known grows as it is read, and starts again when it is read again:

    counts      how many frames were passed over, by kind ("ARP", "IPv6", ...)
    frames      how many frames were seen; `packets` how many of them were IPv4 and handed on
    problems    what is wrong with the files; `problem` is the first of them, or None
    interfaces  name of each interface as the capture tells it, or None
    links       the same, but the name given on the command line (`eth0=trace.pcap`) wins
    names       the files
    """

    def __init__(self, targets: Sequence[tuple[str | None, str | Path | BinaryIO]]) -> None:
        self._targets = targets
        self.names = [_name(target) for _, target in targets]
        self._fresh: list[_Reader] | None = None
        self._begin()
        self._fresh = self._open()

    def _begin(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.interfaces: list[str | None] = []
        self.links: list[str | None] = []
        self.frames = self.packets = 0

    def _open(self) -> list[_Reader]:
        readers: list[_Reader] = []
        problems: list[Problem] = []
        for number, (link, target) in enumerate(self._targets):
            try:
                readers.append(_reader(self, number, link, target))
            except (Refused, Unsupported) as e:
                problems += e.problems
        raise_all(problems)
        self._sources = [r.source for r in readers]
        return readers

    @property
    def problem(self) -> Problem | None:
        return self.problems[0] if self.problems else None

    @property
    def size(self) -> int | None:
        """Bytes of all files together, None when that is not known (a pipe)."""
        sizes = [s.size for s in self._sources]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    @property
    def position(self) -> int:
        """Bytes read so far of `size`."""
        return sum(s.position for s in self._sources)

    def __iter__(self) -> Iterator[Frames]:
        readers, self._fresh = self._fresh, None
        if readers is None:  # read again, from the start
            self._begin()
            readers = self._open()
        chunks = [r.chunks() for r in readers]
        for frames in chunks[0] if len(chunks) == 1 else _merged(chunks):
            self.packets += len(frames)
            yield frames


def read_capture(source: str | Path | BinaryIO | Sequence[str | Path | BinaryIO]) -> Capture:
    """A capture to iterate over: Frames, at most 65,536 at a time, never more than a window of the file in memory.

    source   a path, `-` for standard input, a binary file object, or several of them, which are merged by time (where
             times are equal in the order given; a packet older than the one before it in its own file stays behind
             that one). `eth0=trace.pcap` says on which link a capture was taken.
    Reads    pcap and pcapng, either byte order, micro- and nanoseconds, gzipped or not
    Raises   Refused       no such file, or not a capture: all files' problems together
             Unsupported   a link type that netemu does not read
    Damage   is not raised: everything before it is delivered, then `capture.problems` tells where and what

    >>> import io
    >>> f = io.BytesIO()
    >>> write_pcap(f, [1_000_000_000], [bytes.fromhex("4500001c00000000401100000a0000010a000002") + bytes(8)])
    >>> capture = read_capture(io.BytesIO(f.getvalue()))
    >>> [(len(frames), int(frames.time[0]), int(frames.wire[0])) for frames in capture], capture.problem
    ([(1, 1000000000, 28)], None)
    """
    many = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    targets = [split_link(s) if isinstance(s, str) else (None, s) for s in many]
    if not targets:
        raise Refused("no capture given", hint="name a pcap or pcapng file, or - for standard input")
    if sum(target == "-" for _, target in targets) > 1:
        raise Refused("standard input can be read once only", hint="name `-` once")
    return Capture(targets)


def split_link(argument: str) -> tuple[str | None, str]:
    """(link, path) of `LINK=PATH`, (None, argument) of a plain path. A file of that very name wins.

    >>> split_link("eth0=trace.pcap"), split_link("a/b=c.pcap"), split_link("-")
    (('eth0', 'trace.pcap'), (None, 'a/b=c.pcap'), (None, '-'))
    """
    link, equals, path = argument.partition("=")
    # 15 is what IFNAMSIZ leaves; a link's name has neither slash nor white space
    if not equals or not path or not 0 < len(link) <= 15 or "/" in link or any(c.isspace() for c in link):
        return None, argument
    return (None, argument) if os.path.exists(argument) else (link, path)


def _merged(chunks: list[Iterator[Frames]]) -> Iterator[Frames]:
    """Several streams as one, by time, stable.

    Each stream is ordered by the latest time seen in it so far, so that a packet that is out of order in its own file
    keeps its neighbours. All that is older than the end of the chunk that ends first can go.
    """
    latest = [-(2**63)] * len(chunks)
    heads: dict[int, tuple[Frames, I64]] = {}

    def advance(who: int) -> None:
        frames = next(chunks[who], None)
        if frames is None:
            heads.pop(who, None)
            return
        key = np.maximum.accumulate(np.maximum(frames.time, latest[who]))
        latest[who] = int(key[-1])
        heads[who] = (frames, key)

    for who in range(len(chunks)):
        advance(who)
    while heads:
        horizon, slowest = min((latest[who], who) for who in heads)
        parts: list[Frames] = []
        keys: list[I64] = []
        for who in sorted(heads):
            frames, key = heads[who]
            # of packets at the horizon itself, those of a later stream must wait for what the slowest still has
            ready = int(np.searchsorted(key, horizon, "right" if who <= slowest else "left"))
            if ready:
                parts.append(frames.take(slice(0, ready)))
                keys.append(key[:ready])
            if ready < len(key):
                heads[who] = (frames.take(slice(ready, None)), key[ready:])
            else:
                advance(who)
        whole = _joined(parts)
        if len(parts) > 1:
            whole = whole.take(np.argsort(np.concatenate(keys), kind="stable"))
        for lo, hi in _slices(len(whole)):
            yield whole if hi - lo == len(whole) else whole.take(slice(lo, hi))


def _joined(parts: list[Frames]) -> Frames:
    """One Frames of several: the bytes are copied, once, and only the stretch that is in use."""
    if len(parts) == 1:
        return parts[0]
    spans = [(int(f.at[0]), int((f.at + f.cap).max())) for f in parts]
    data = np.zeros(sum(hi - lo for lo, hi in spans) + PAD, np.uint8)
    columns: dict[str, list[Any]] = {name: [getattr(f, name) for f in parts] for name in _COLUMNS}
    base = 0
    for k, (f, (lo, hi)) in enumerate(zip(parts, spans, strict=True)):
        data[base : base + hi - lo] = f.data[lo:hi]
        columns["at"][k] = f.at + (base - lo)
        base += hi - lo
    return Frames(data, *(np.concatenate(columns[name]) for name in _COLUMNS))


def _slices(n: int) -> Iterator[tuple[int, int]]:
    """Cut n rows into as few stretches of at most CHUNK as there must be, of about one size."""
    pieces = -(-n // CHUNK)
    for k in range(pieces):
        yield n * k // pieces, n * (k + 1) // pieces


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _name(target: str | Path | BinaryIO) -> str:
    if isinstance(target, str | Path):
        return "standard input" if str(target) == "-" else str(target)
    name = getattr(target, "name", None)
    return name if isinstance(name, str) else "capture"


class _Source:
    """The bytes of one capture, a window at a time; gzip is taken off on the way.

    base       where the window's first byte stands in the (unpacked) stream
    damage     what is wrong with the bytes themselves, once reading came to it
    position   bytes taken from the file, of `size` (None: not known)
    """

    def __init__(self, target: str | Path | BinaryIO) -> None:
        self.name = _name(target)
        self.base = 0
        self.damage = ""
        self.position = 0
        self.size: int | None = None
        if isinstance(target, str | Path):
            self._file = self._opened(str(target))
        else:
            self._file = target
            if target.seekable() and self._again(target):
                target.seek(0)
        self._into: Callable[[memoryview], int | None] = getattr(self._file, "readinto1", None) or self._file.readinto  # type: ignore[attr-defined]
        self._read = self._raw
        self._live = self._is_live()
        self.data, self.end = np.zeros(PAD, np.uint8), 0
        while self.end < 28 and self.more(0, PEEK):  # a pipe may hand over its first bytes one by one
            pass
        if self.data[:2].tobytes() == b"\x1f\x8b":
            unpack = _Gunzip(self._raw, self.data[: self.end].tobytes())
            self._read, self._gunzip = unpack.read, unpack
            self.end = self.base = 0
            self.zipped = True
            while self.end < 28 and self.more(0, PEEK):
                pass

    zipped = False
    _gunzip: _Gunzip | None = None

    @staticmethod
    def _again(target: BinaryIO) -> bool:
        """A file object that was read to its end before starts again; one handed over in mid-file goes on there."""
        here = target.tell()
        end = target.seek(0, os.SEEK_END)
        target.seek(here)
        return here == end

    def _opened(self, path: str) -> BinaryIO:
        if path == "-":
            if sys.stdin.isatty():
                raise Refused(
                    "nothing is piped into standard input",
                    file=self.name,
                    hint="for example: `tcpdump -w - | netemu replay MODEL -`",
                )
            return sys.stdin.buffer
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
            status = os.fstat(file.fileno())
            if os.path.isfile(path):
                self.size = status.st_size
            return file
        except FileNotFoundError:
            raise Refused("no such capture", file=path, hint="look at the path; `-` reads standard input") from None
        except IsADirectoryError:
            raise Refused("is a directory, not a capture", file=path, hint="name the files in it") from None
        except OSError as e:
            raise Refused(f"cannot be read: {e.strerror or e}", file=path) from None

    def _is_live(self) -> bool:
        if self.size is not None:
            return False
        try:
            self._file.fileno()
        except (OSError, AttributeError, ValueError):
            return False
        return True

    def _waiting(self) -> bool:
        """Is there more to read right now? What came through a pipe is handed on, not kept until a window is full."""
        try:
            return bool(select.select([self._file.fileno()], [], [], 0)[0])
        except (OSError, ValueError):  # not a thing to ask this of (a pipe on Windows)
            return False

    def _raw(self, view: memoryview) -> int:
        try:
            got = self._into(view) or 0
        except OSError as e:
            self.damage = f"reading fails: {e.strerror or e}"
            return 0
        self.position += got
        return got

    def more(self, used: int, size: int = 0) -> bool:
        """A new window: what was not used of the old one and what can be had beyond it. False: that is nothing.

        Each window is memory of its own: packets keep theirs alive for as long as somebody holds them.
        """
        rest = self.end - used
        room = max(size or WINDOW, 2 * rest)
        if self.size is not None and not self.zipped and not size and self._mapped(self.base + used, 2 * room):
            self.base += used
            return True
        if self.size is not None and not self.zipped:
            room = min(room, rest + max(self.size - self.position, 0) + 1)
        data = np.empty(room + PAD, np.uint8)
        data[:rest] = self.data[used : self.end]
        view = data.data
        end = rest
        while end < room:
            got = self._read(view[end:room])
            if not got:
                break
            end += got
            if self._live and not self._waiting():
                break
        data[end : end + PAD] = 0
        if self._gunzip and self._gunzip.damage:
            self.damage = self._gunzip.damage
        self.base += used
        self.data, self.end = data, end
        return end > rest

    def _mapped(self, at: int, room: int) -> bool:
        """Have the file's own pages as the window, where it goes on behind them: of long packets few are looked at.

        A file that was written to a moment ago is read: it may be cut short, and then its pages are gone.
        """
        file = self._file.fileno()
        status = os.fstat(file)
        if status.st_size < at + room + PAD or status.st_mtime > time.time() - SETTLED:
            return False
        start = at - at % mmap.ALLOCATIONGRANULARITY
        try:
            pages = mmap.mmap(file, at + room + PAD - start, access=mmap.ACCESS_READ, offset=start)
        except OSError:  # some file systems have none
            return False
        self.data, self.end = np.frombuffer(pages, np.uint8)[at - start :], room
        self.position = at + room
        self._file.seek(self.position)
        return True

    def close(self) -> None:
        if isinstance(self._file, io.FileIO):
            self._file.close()


class _Gunzip:
    """Takes gzip off as it is read, member after member."""

    def __init__(self, raw: Callable[[memoryview], int], head: bytes) -> None:
        self._raw = raw
        self._held = head
        self._buffer = memoryview(bytearray(1 << 18))
        self._z = zlib.decompressobj(31)
        self._fresh = True  # nothing came out of this member yet
        self._first = True
        self._over = False
        self.damage = ""

    def read(self, view: memoryview) -> int:
        while not self._over:
            if self._z.eof:
                self._next_member()
                continue
            if not self._held and not self._refill():
                self.damage = "the gzip stream ends before its end mark"
                self._over = True
                break
            try:
                out = self._z.decompress(self._held, min(len(view), 1 << 20))
            except zlib.error as e:
                self._over = True
                self.damage = f"the gzip stream is damaged ({e})"
                break
            self._held = self._z.unconsumed_tail
            if out:
                view[: len(out)] = out
                return len(out)
        return 0

    def _refill(self) -> bool:
        got = self._raw(self._buffer)
        self._held = bytes(self._buffer[:got])
        return got > 0

    def _next_member(self) -> None:
        # zeros behind a member are padding, anything else that is not a member is passed over, as gzip does
        self._held = self._z.unused_data.lstrip(b"\0")
        while not self._held and self._refill():
            self._held = self._held.lstrip(b"\0")
        if len(self._held) == 1:
            one = self._held
            self._refill()
            self._held = one + self._held
        self._over = not self._held.startswith(b"\x1f\x8b")
        self._z = zlib.decompressobj(31)


# ---- where records start ---------------------------------------------------------------------------------------------


class _Chain(Protocol):
    """A chain of records in one window. Places are in units of the chain's own: bytes for pcap, words for pcapng."""

    end: int

    def hop(self, places: I64, out: I64) -> None:
        """out = where the record after the one at each place starts; always further on, also for nonsense."""

    def guess(self, edges: I64) -> I64:
        """A probable record start behind each edge, where there is one."""

    def one_by_one(self, place: int, upto: int) -> tuple[list[int], int]:
        """Whole records from `place` on that start before `upto`, and where the next one would start."""


def _chained(chain: _Chain, first: int, pieces: int) -> tuple[I64, int]:
    """Places of the whole records of a window from `first` on, a true start, and the place behind the last one.

    Exact: chain 0 starts at a true record, and the guess that chain j+1 started from is believed only if a true chain
    lands on it. Where a guess was wrong, a plain loop bridges the gap. Records may still be nonsense: the caller looks.
    Cost    three array operations for one hop of all chains: 25 ns a packet, with some hundred chains
    """
    end = chain.end
    edges = first + (end - first) * np.arange(1, pieces, dtype=np.int64) // pieces
    guesses = chain.guess(edges)
    starts = np.unique(np.concatenate([[first], guesses]))
    limits = np.append(starts[1:], end)
    lands = np.empty(len(starts), np.int64)
    counts = np.zeros(len(starts), np.int64)
    blocks: list[tuple[Rows, I64]] = []
    alive, here = np.arange(len(starts)), starts
    while len(alive):
        block = np.empty((STEPS + 1, len(alive)), np.int64)
        block[0] = here
        for step in range(STEPS):
            chain.hop(block[step], block[step + 1])
        blocks.append((alive, block))
        taken = np.count_nonzero(block[:STEPS] < limits[alive], axis=0)
        counts[alive] += taken
        lands[alive] = block[taken, np.arange(len(alive))]
        go = np.flatnonzero(lands[alive] < limits[alive])
        alive, here = alive.take(go), block[STEPS].take(go)
        if 0 < len(alive) < 8 and (limits[alive] - here).max() > PIECE:
            break  # few guesses, far apart: the loop below is quicker
    # chain after chain: step s of chain j goes to base[j] + s
    table = np.empty((len(starts), STEPS * len(blocks)), np.int64)
    for k, (who, block) in enumerate(blocks):
        table[who, STEPS * k : STEPS * (k + 1)] = block[:STEPS].T
    used = np.arange(table.shape[1]) < counts[:, None]
    if lands[-1] >= end and (lands[:-1] == starts[1:]).all():
        places = np.compress(used.ravel(), table.ravel())
        last = int(lands[-1])
    else:
        parts: list[I64] = []
        last = first
        for j in range(len(starts)):
            if last < starts[j]:
                bridge, last = chain.one_by_one(last, int(starts[j]))
                parts.append(np.array(bridge, np.int64))
                if last < starts[j]:
                    return np.concatenate(parts), last  # stuck: a record that cannot be
            if last == starts[j]:
                parts.append(table[j, : counts[j]])
                last = int(lands[j])
        if last < end:
            bridge, last = chain.one_by_one(last, end)
            return np.concatenate([*parts, np.array(bridge, np.int64)]), last
        places = np.concatenate(parts)
    if last > end and len(places):  # the last record goes on beyond the window
        last = int(places[-1])
        places = places[:-1]
    return places, last


def _rows(data: U8, at: I64, width: int) -> U8:
    """uint8[n, width]: the bytes at each place. One gather of whole rows is far cheaper than one of each byte."""
    overlapping = np.ndarray((len(data) - width + 1,), f"V{width}", data.data, strides=(1,))
    # not take(): that would first make a plain copy of what overlaps
    return overlapping[at].view(np.uint8).reshape(-1, width)


def _nearest(edges: I64, look: Callable[[I64, int], tuple[Rows, I64]]) -> I64:
    """A place behind each edge, where there is one: look(edges, how far) tells which edges have one, and the place.

    Most records are short: so first a quarter of the way, and all of it only where nothing was found.
    """
    which, place = look(edges, REACH // 4)
    return np.concatenate([place, look(np.delete(edges, which), REACH)[1]])


def _spots(data: U8, edges: I64, align: int, mark: np.uint16 | np.uint32, reach: int) -> tuple[Rows, I64]:
    """(which edge, how far behind it) of each place up to `reach` behind it where `mark` stands, by edge and distance.

    Compared as whole aligned numbers, once for each way they can lie; `align`: only every 1st or 4th byte counts.
    """
    size = mark.dtype.itemsize
    which: list[Rows] = []
    offset: list[I64] = []
    for shift in range(0, size, align):
        near = _rows(data, edges + shift, reach).view(mark.dtype)
        edge, k = np.divmod(np.flatnonzero(near == mark), near.shape[1])
        which.append(edge)
        offset.append(k * size + shift)
    all_which, all_offset = np.concatenate(which), np.concatenate(offset)
    order = np.argsort(all_which * reach + all_offset)
    all_which, all_offset = all_which[order], all_offset[order]
    first = np.searchsorted(all_which, all_which)  # of its edge
    few = np.flatnonzero(np.arange(len(first)) - first < GUESSES)
    return all_which[few], all_offset[few]


def _first_spots(edges: I64, which: Rows, offset: I64) -> tuple[Rows, I64]:
    first = np.flatnonzero(np.diff(which, prepend=-1))
    return which[first], edges[which[first]] + offset[first]


_HIGH_BYTE = np.arange(256, dtype=np.int64) * 256 + 16  # what the upper byte of a length and the header add up to


class _PcapChain:
    """pcap records in a window: 16 bytes of header, of which bytes 8 to 11 are the captured length."""

    def __init__(self, data: U8, first: int, end: int, order: str, long: bool) -> None:
        self.first, self.end = first, end
        self._data = data
        self._memory = data.data
        self._order = order
        self._length = struct.Struct(order + "I")
        # the captured length, as if a record started at every byte; and its lower half in bytes, since those are
        # gathered twice as fast as words that are not aligned. `first_long` finds the records that are longer.
        self._lengths = np.ndarray((len(data) - 11,), order + "u4", data.data, offset=8, strides=(1,))
        self._bytes = [data[8 + k :] for k in ((0, 1, 2, 3) if order == "<" else (3, 2, 1, 0))]
        self.long = long
        self._scratch = np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, np.int64)

    def hop(self, places: I64, out: I64) -> None:
        if self.long:
            np.add(self._lengths[np.minimum(places, self.end)], places, out=out)
            np.add(out, 16, out=out)
            return
        n = len(places)
        if n != len(self._scratch[0]):
            self._scratch = np.empty(n, np.uint8), np.empty(n, np.uint8), np.empty(n, np.int64)
        low, high, size = self._scratch
        self._bytes[0].take(places, out=low, mode="clip")
        self._bytes[1].take(places, out=high, mode="clip")
        _HIGH_BYTE.take(high, out=size, mode="clip")
        np.add(places, size, out=out)
        np.add(out, low, out=out)

    def first_long(self, places: I64) -> int:
        """Which of `places` is the first record of 64 KiB or more; -1: none."""
        if self.long:
            return -1
        found = np.flatnonzero(self._bytes[2].take(places) | self._bytes[3].take(places))
        return int(found[0]) if len(found) else -1

    def guess(self, edges: I64) -> I64:
        edges = edges[edges < self.end - REACH - PAD]
        # most bytes are not the start of a record of the same day: two bytes of its seconds tell, at every place
        part = 2 if self._order == "<" else 0
        mark = np.frombuffer(self._memory[self.first + part : self.first + part + 2], np.uint16)[0]

        def look(edges: I64, reach: int) -> tuple[Rows, I64]:
            which, offset = _spots(self._data, edges + part, 1, mark, reach)
            place = edges[which] + offset
            for _ in range(3):  # the record there and the two behind it look like records
                good, after = self._plausible(place)
                keep = np.flatnonzero(good)
                which, offset, place = which[keep], offset[keep], after[keep]
            return _first_spots(edges, which, offset)

        return _nearest(edges, look)

    def _plausible(self, place: I64) -> tuple[Mask, I64]:
        """Does a record header stand there, and where would the next one be? Beyond the window all is well."""
        inside = place < self.end - 16
        head = _rows(self._data, np.minimum(place, self.end - 16), 16).view(self._order + "u4").astype(np.int64)
        captured, wire = head[:, 2], head[:, 3]
        good = (captured >= 14) & (captured <= 65_535) & (wire >= captured) & (wire <= 65_549) & (head[:, 1] < 10**9)
        return good | ~inside, np.where(inside, place + 16 + captured, place)

    def one_by_one(self, place: int, upto: int) -> tuple[list[int], int]:
        out: list[int] = []
        memory, length, end = self._memory, self._length.unpack_from, self.end
        while place < upto and place + 16 <= end:
            (n,) = length(memory, place + 8)
            if n > LONGEST_PACKET or place + 16 + n > end:
                break
            out.append(place)
            place += 16 + n
        return out, place


class _PcapngChain:
    """pcapng blocks in a window, as native 32-bit words: type, length in bytes, body, length again."""

    def __init__(self, words: U32, first: int, end: int) -> None:
        self.first, self.end = first, end
        self._words = words
        self._lengths = words[1:]
        self._memory = words.data

    def hop(self, places: I64, out: I64) -> None:
        lengths = self._lengths.take(places, mode="clip") >> np.uint32(2)
        np.add(np.maximum(lengths, 3), places, out=out)

    def guess(self, edges: I64) -> I64:
        edges = edges[edges < self.end - (REACH + PAD) // 4]

        def look(edges: I64, reach: int) -> tuple[Rows, I64]:
            which, offset = _spots(self._words.view(np.uint8), edges * 4, 4, np.uint32(ENHANCED_PACKET), reach)
            offset >>= 2
            place = edges[which] + offset
            length = self._lengths.take(place, mode="clip")
            behind = place + (length >> np.uint32(2))
            # the length stands at the end of the block too
            good = (length >= 32) & (length < LONGEST_PACKET) & (length & 3 == 0) & (behind <= self.end)
            good &= self._words.take(behind - 1, mode="clip") == length
            keep = np.flatnonzero(good)
            return _first_spots(edges, which[keep], offset[keep])

        return _nearest(edges, look)

    def one_by_one(self, place: int, upto: int) -> tuple[list[int], int]:
        out: list[int] = []
        memory, end = self._memory, self.end
        while place < upto and place + 3 <= end:
            n = memory[place + 1]
            after = place + (n >> 2)
            if n & 3 or n < 12 or after > end or memory[after - 1] != n or memory[place] == SECTION:
                break
            out.append(place)
            place = after
        return out, place


# ---- records to frames -----------------------------------------------------------------------------------------------


#: records of one chunk: where they start, and in pcapng what kind of block each is
_Stretch = tuple[I64, U32 | None]


class _Damage(Exception):
    """The rest of the file cannot be read: (byte in the window, what is wrong). `record`: which of those looked at."""

    record = 0

    def __init__(self, place: int, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.place, self.what, self.hint = place, what, hint


class _Reader:
    """One capture being read."""

    def __init__(self, capture: Capture, number: int, link: str | None, source: _Source) -> None:
        self.capture, self.number, self.link, self.source = capture, number, link, source
        self.alone = len(capture.names) == 1  # nobody will merge the frames with others'
        self.frames = 0  # seen so far
        self.base = len(capture.interfaces)  # where the interfaces of the section start among all
        self.link_types: list[int] = []  # of the section's interfaces
        self.used = 0  # bytes of the window that are done with
        self.refused: set[int] = set()  # link types already complained about

    def records(self) -> Iterator[_Stretch]:
        """What the window holds, at most CHUNK at a time; leaves `used` behind it. Raises _Damage."""
        raise NotImplementedError

    def read(self, stretch: _Stretch, into: Frames) -> tuple[U8 | None, U32 | None, _Damage | None]:
        """What the headers of these records say: at, cap and wire (of the link header on), time, iface.

        returns  the first NEAR bytes from the link headers on; epb_flags, 0 where there are none, None when there are
                 none at all; and what is wrong with the record behind those that are filled in
        """
        raise NotImplementedError

    def left_over(self, rest: int) -> str:
        """What is wrong when the file ends with `rest` bytes of a record or block that is longer."""
        raise NotImplementedError

    def interface(self, name: str | None, link_type: int) -> None:
        self.link_types.append(link_type)
        self.capture.interfaces.append(name)
        self.capture.links.append(self.link or name)

    def chunks(self) -> Iterator[Frames]:
        source = self.source
        try:
            while True:
                for stretch in self.records():
                    frames, wrong = self.decoded(*stretch)
                    if len(frames):
                        yield frames
                    if wrong:
                        raise wrong
                grown = source.more(self.used)
                self.used = 0
                if not grown:
                    break
            rest = source.end - self.used
            if source.damage:
                raise _Damage(source.end, source.damage, "fetch or record it again; the packets before are whole")
            if rest:
                raise _Damage(self.used, self.left_over(rest))
        except _Damage as damage:
            place = source.base + damage.place
            unpacked = " of the unpacked capture" if source.zipped else ""
            self.capture.problems.append(
                Problem(
                    REFUSED,
                    f"damaged at packet {self.frames + 1}, byte {place}{unpacked}: {damage.what}",
                    source.name,
                    hint=f"{_count(self.frames, 'packet')} before it {'was' if self.frames == 1 else 'were'} read; "
                    + (
                        damage.hint or "`editcap IN OUT` cuts the damage off, and `tcpdump -U` leaves none when stopped"
                    ),
                )
            )
        finally:
            source.close()

    def decoded(self, places: I64, kinds: U32 | None) -> tuple[Frames, _Damage | None]:
        """Look behind the link headers; keep the IPv4 frames, parsed, and count the others by name.

        A block of frames at a time, from the record to the transport header, so that nothing is fetched twice.
        """
        n, data = len(places), self.source.data
        frames, parsed = Frames.room(n, data), Packets.room(n, data)
        parsed.at = frames.at
        kind = np.empty(n, np.int32)
        wrong: _Damage | None = None
        for lo in range(0, n, BLOCK):
            block = slice(lo, min(lo + BLOCK, n))
            part = frames.take(block)
            head, flags, wrong = self.read((places[block], None if kinds is None else kinds[block]), part)
            if wrong:
                block = slice(lo, lo + wrong.record)
                part, head = part.take(slice(0, wrong.record)), None if head is None else head[: wrong.record]
                n = block.stop
            if len(part):
                starts = part.at.copy()
                self.link_header(part, head, kind[block])
                if flags is not None:
                    _direction(part, flags)
                if self.base:
                    part.iface += np.int32(self.base)
                if self.alone:
                    parsed.cap[block] = part.cap
                    parsed.read(block, _behind(head, part.at - starts))
            if wrong:
                frames, parsed, kind = frames.take(slice(0, n)), parsed.take(slice(0, n)), kind[:n]
                break
        frames.number[:] = np.arange(self.frames + 1, self.frames + n + 1)
        frames.source[:] = self.number
        frames.parsed = parsed if self.alone else None
        self.frames += n
        self.capture.frames += n
        kind[(kind == IPV4) & (frames.cap < 20)] = CUT
        good = kind == IPV4
        if not good.all():
            self.count(kind, frames.iface - np.int32(self.base))
            frames = frames.take(np.flatnonzero(good))
        return frames, wrong

    def link_header(self, part: Frames, head: U8 | None, kind: I32) -> None:
        """Step over the link headers, which may be of several types. Fills in `kind`, too."""
        if len(set(self.link_types)) == 1:
            kind[:] = _link(part, self.link_types[0], head)
            return
        of_row = np.array(self.link_types, np.int32)[part.iface]
        for link_type in dict.fromkeys(self.link_types):
            rows = np.flatnonzero(of_row == link_type)
            if len(rows):
                some = part.take(rows)
                kind[rows] = _link(some, link_type, None if head is None else head[rows])
                for name in _COLUMNS:
                    getattr(part, name)[rows] = getattr(some, name)

    def count(self, kind: I32, iface: I32) -> None:
        """Name what is not IPv4. Frames of a link type that is not read are a problem, not a kind."""
        numbers = np.bincount(kind)
        for k in np.flatnonzero(numbers):
            if k == FOREIGN:
                continue
            if k != IPV4:
                self.capture.counts[_kind_name(int(k))] += int(numbers[k])
        if len(numbers) > FOREIGN:
            for i in np.flatnonzero(np.bincount(iface[kind == FOREIGN])):
                link_type = self.link_types[i]
                self.capture.counts[_link_type_name(link_type)] += int(np.count_nonzero(iface == i))
                if link_type not in self.refused:
                    self.refused.add(link_type)
                    self.capture.problems.append(_foreign(self.source.name, link_type))


def _count(n: int, noun: str) -> str:
    return f"the {noun}" if n == 1 else f"the {n:,} {noun}s" if n else f"no {noun}s"


def _kind_name(kind: int) -> str:
    return KINDS.get(kind) or ("802.1Q, cut off" if kind in VLAN_TAGS else f"ethertype 0x{kind:04x}")


def _link_type_name(number: int) -> str:
    name = OTHER_LINK_TYPES.get(number)
    return f"link type {number} ({name})" if name else f"link type {number}"


def _foreign(file: str, link_type: int) -> Problem:
    known = ", ".join(
        f"{name} {'/'.join(str(n) for n, m in LINK_TYPES.items() if m == name)}"
        for name in dict.fromkeys(LINK_TYPES.values())
    )
    return Problem(
        UNSUPPORTED,
        f"{_link_type_name(link_type)} is not read",
        file,
        hint=f"netemu reads {known}; record on an Ethernet link, or with `tcpdump -i any`",
    )


def _behind(head: U8 | None, skipped: I64) -> U8 | None:
    """The IP headers, out of the bytes from the link headers on, where all of those are of one length."""
    first = int(skipped[0])
    if head is None or not 0 <= first <= head.shape[1] - 64 or not (skipped == first).all():
        return None
    return head[:, first : first + 64]


def _link(f: Frames, link_type: int, head: U8 | None) -> I32:
    """Step over link headers of one type, which start at `f.at`; their first bytes may be given.

    Fills in what they say, and returns the kind of each frame: an ethertype, or one of ours.
    """
    n, data = len(f), f.data
    header = 0
    if link_type == ETHERNET:
        head = _rows(data, f.at, 16) if head is None else head
        header = 14
        np.right_shift(head[:, :8].view(">u8")[:, 0], np.uint64(16), out=f.dmac)
        np.right_shift(head[:, 6:14].view(">u8")[:, 0], np.uint64(16), out=f.smac)
        kind = head[:, 12:14].view(">u2")[:, 0].astype(np.int32)
        np.greater_equal(f.cap, header, out=f.ether)
        group = head[:, 0] & 1
        if group.any():
            f.pkttype[:] = group * np.where(f.dmac == 0xFFFF_FFFF_FFFF, BROADCAST, MULTICAST)
    elif link_type in (SLL, SLL2):
        two = link_type == SLL2
        header = 20 if two else 16
        head = _rows(data, f.at, 32)
        wide = head.view(">u2")
        kind = wide[:, 0 if two else 7].astype(np.int32)
        hardware = wide[:, 4 if two else 1]
        how, addr_len = (head[:, 10], head[:, 11]) if two else (head[:, 1], head[:, 5])
        addr = 6 if two else 3  # in 16-bit words
        f.ether[:] = (hardware == 1) & (addr_len == 6) & (f.cap >= header)
        f.smac[:] = (
            (wide[:, addr].astype(np.uint64) << np.uint64(32))
            | (wide[:, addr + 1].astype(np.uint64) << np.uint64(16))
            | wide[:, addr + 2]
        ) * f.ether
        if two:
            f.ifindex[:] = head.view(">i4")[:, 1]
        f.outgoing[:] = how == 4
        f.incoming[:] = how != 4
        f.pkttype[:] = np.where(how < 4, how, HOST)
        kind[hardware == 824] = NETLINK
    elif link_type == IPV4_ONLY:
        kind = np.full(n, IPV4, np.int32)
    elif link_type == IPV6_ONLY:
        kind = np.full(n, IPV6, np.int32)
    elif link_type in (NULL, LOOP):
        header = 4
        head = _rows(data, f.at, 4) if head is None else head
        family = head[:, :4].view(">u4")[:, 0].astype(np.int64)
        # NULL is written in the byte order of the machine: a family is a small number
        family = np.where(family > 0xFFFF, head[:, :4].view("<u4")[:, 0], family)
        kind = np.where(family == 2, IPV4, np.where(np.isin(family, (10, 24, 28, 30)), IPV6, NOT_IP)).astype(np.int32)
    elif link_type in LINK_TYPES:
        version = (data[f.at] if head is None else head[:, 0]) >> 4
        kind = np.where(version == 4, np.int32(IPV4), np.where(version == 6, np.int32(IPV6), np.int32(NOT_IP)))
    else:
        kind = np.full(n, FOREIGN, np.int32)
    if not header:
        return kind
    f.at += header
    f.cap -= np.int32(header)
    f.wire -= np.int32(header)
    if link_type in (ETHERNET, SLL, SLL2):
        odd = kind != IPV4
        if odd.any():
            _look_through_tags(data, f.at, f.cap, f.wire, kind)
            lengths = np.flatnonzero(kind < 0x600)
            if len(lengths):
                kind[lengths] = _llc(data, f.at[lengths])
    if int(f.cap.min(initial=0)) < 0:
        kind[f.cap < 0] = SHORT
    return kind


def _look_through_tags(data: U8, at: I64, cap: I32, wire: I32, kind: I32) -> None:
    """Step over 802.1Q and 802.1ad tags, however many. In place."""
    rows = np.flatnonzero((kind == VLAN_TAGS[0]) | (kind == VLAN_TAGS[1]) | (kind == VLAN_TAGS[2]))
    while len(rows):
        rows = rows[cap[rows] >= 4]
        where = at[rows]
        kind[rows] = (data[where + 2].astype(np.int32) << 8) | data[where + 3]
        at[rows] += 4
        cap[rows] -= 4
        wire[rows] -= 4
        rows = rows[np.isin(kind[rows], VLAN_TAGS)]


def _llc(data: U8, at: I64) -> I32:
    """Kinds of frames that carry a length, by their 802.2 header. Linux takes no IPv4 that is wrapped like this."""
    service = (data[at].astype(np.int32) << 8) | data[at + 1]
    return np.select([service == 0x4242, service == 0xFEFE, service == 0xAAAA], [STP, ISIS, SNAP], LLC).astype(np.int32)


def _direction(frames: Frames, flags: U32) -> None:
    """What epb_flags tells: bits 0-1 inbound or outbound, bits 2-4 how it was received."""
    frames.incoming |= flags & 3 == 1
    frames.outgoing |= flags & 3 == 2
    how = (flags >> 2) & 7  # unicast, multicast, broadcast, promiscuous; 0 says nothing
    frames.pkttype[:] = np.where(how > 0, np.array([0, 0, 2, 1, 3, 0, 0, 0], np.uint8)[how], frames.pkttype)


# ---- pcap ------------------------------------------------------------------------------------------------------------


class _Pcap(_Reader):
    """Classic pcap: a file header of 24 bytes, then records of 16 and the packet."""

    def __init__(self, capture: Capture, number: int, link: str | None, source: _Source) -> None:
        super().__init__(capture, number, link, source)
        magic = source.data[:4].tobytes()
        self.order = "<" if magic in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
        nano = magic in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d")
        self.unit = 10**9 if nano else 10**6
        if source.end < 24:
            raise Refused(
                f"the file header is cut off: {source.end} of 24 bytes", file=source.name, hint="record it again"
            )
        major, minor, _, _, _, network = struct.unpack_from(self.order + "HHiIII", source.data.data, 4)
        if major != 2:
            raise Unsupported(
                f"pcap version {major}.{minor} is not read", file=source.name, hint="netemu reads version 2"
            )
        link_type = network & 0xFFFF  # the rest says how long the check sequence behind each frame is
        if link_type not in LINK_TYPES:
            raise Unsupported([_foreign(source.name, link_type)])
        self.interface(None, link_type)
        self.long = False  # there are records of 64 KiB and more
        self.used = 24

    def left_over(self, rest: int) -> str:
        if rest < 16:
            return f"the file ends inside a record header ({rest} of 16 bytes are there)"
        (captured,) = struct.unpack_from(self.order + "I", self.source.data.data, self.used + 8)
        return f"the file ends inside the packet ({rest - 16} of {captured} bytes are there)"

    def records(self) -> Iterator[_Stretch]:
        source = self.source
        for places in self.places():
            for lo, hi in _slices(len(places)):
                yield places[lo:hi], None
        if source.end - self.used >= 16:
            (captured,) = struct.unpack_from(self.order + "I", source.data.data, self.used + 8)
            if captured > LONGEST_PACKET:
                raise self.too_long(self.used, captured)

    def too_long(self, place: int, captured: int) -> _Damage:
        return _Damage(
            place, f"the record says {captured:,} bytes were captured, and none is longer than {LONGEST_PACKET:,}"
        )

    def read(self, stretch: _Stretch, into: Frames) -> tuple[U8 | None, U32 | None, _Damage | None]:
        """The records at these places, up to the first that nobody can have written."""
        places = stretch[0]
        rows = _rows(self.source.data, places, 16 + NEAR)
        head = rows[:, :16].view(self.order + "u4")
        captured, wire = head[:, 2].astype(np.uint32), head[:, 3].astype(np.uint32)
        damage = None
        whole = bool((captured == wire).all())
        if not whole or not captured.min() or captured.max() > LONGEST_PACKET:
            for k in np.flatnonzero((wire < np.maximum(captured, 1)) | (captured > LONGEST_PACKET)).tolist():
                if captured[k] > LONGEST_PACKET:
                    damage = self.too_long(int(places[k]), int(captured[k]))
                elif not head[k].any():
                    damage = _Damage(int(places[k]), "the record header is all zeros")
                elif wire[k] and head[k, 1] >= self.unit:
                    what = "the record header makes no sense (neither its lengths nor its time)"
                    damage = _Damage(int(places[k]), what)
                if damage:
                    damage.record = k
                    break
        np.add(places, 16, out=into.at)
        into.cap[:] = captured
        into.wire[:] = captured if whole else np.maximum(np.minimum(wire, 0x7FFF_FFFF), captured)
        into.iface[:] = 0
        into.time[:] = head[:, 0]
        into.time *= 10**9
        part = head[:, 1].astype(np.int64)
        if self.unit != 10**9:
            part *= 10**9 // self.unit
        into.time += part
        return rows[:, 16:], None, damage

    def places(self) -> Iterator[I64]:
        """Where the whole records of the window start; moves `used` behind them."""
        data, end = self.source.data, self.source.end
        same = self.same_size(data, end)
        if len(same):
            yield same
        if end - self.used < 16:
            return
        chain = _PcapChain(data, self.used, end, self.order, self.long)
        pieces = min((end - self.used) // PIECE, CHAINS)
        if pieces >= 8:
            places, after = _chained(chain, self.used, pieces)
            wrong = chain.first_long(places)
            if wrong >= 0:  # a capture of loopback or of a card that puts packets together
                chain.long = self.long = True
                places, after = _chained(chain, self.used, pieces)
            self.used = after
            if len(places):
                yield places
        rest, self.used = chain.one_by_one(self.used, end)
        if rest:
            yield np.array(rest, np.int64)

    def same_size(self, data: U8, end: int) -> I64:
        """Starts of the first records of the window for as long as all are of one size; none if those are few."""
        none = np.zeros(0, np.int64)
        if end - self.used < 16:
            return none
        (length,) = struct.unpack_from(self.order + "I", data.data, self.used + 8)
        stride = 16 + length
        n = (end - self.used) // stride
        if length > LONGEST_PACKET or n < 64:
            return none
        lengths = np.ndarray((n,), self.order + "u4", data.data, offset=self.used + 8, strides=(stride,))
        if not (lengths[:64] == length).all():
            return none
        other = np.flatnonzero(lengths != length)
        if len(other):
            n = int(other[0])
        places: I64 = self.used + stride * np.arange(n, dtype=np.int64)
        self.used += stride * n
        return places


# ---- pcapng ----------------------------------------------------------------------------------------------------------


@dataclass
class _Clock:
    """How an interface counts time: `per_second` ticks (a power of `base`), from `offset` seconds on."""

    base: int = 10
    power: int = 6
    offset: int = 0

    def nanoseconds(self, ticks: U64) -> I64:
        """int64[n]: exact, rounded down."""
        ns: I64
        if self.base == 10:
            if self.power <= 9:
                ns = ticks.astype(np.int64) * 10 ** (9 - self.power)
            else:
                ns = (ticks // np.uint64(10 ** min(self.power - 9, 19))).astype(np.int64)
        elif self.power <= 34:  # a fraction times 10**9 fits 64 bits
            shift = np.uint64(self.power)
            fraction = ticks & np.uint64((1 << self.power) - 1)
            ns = (ticks >> shift).astype(np.int64) * 10**9 + ((fraction * np.uint64(10**9)) >> shift).astype(np.int64)
        else:
            ns = np.array([int(t) * 10**9 >> self.power for t in ticks], np.int64)
        ns += self.offset * 10**9
        return ns


class _Pcapng(_Reader):
    """pcapng: sections of blocks; a section names its interfaces before their packets."""

    def __init__(self, capture: Capture, number: int, link: str | None, source: _Source) -> None:
        super().__init__(capture, number, link, source)
        self.order = "<"
        self.clocks: list[_Clock] = []
        self.snaplens: list[int] = []
        self.last_time = 0
        self.window: U32 = np.zeros(0, np.uint32)  # what `words` gave
        self.native = True  # they are the very bytes of the capture
        self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        """Complain at once about a capture whose interfaces are all of link types that are not read."""
        data, end, place = self.source.data, self.source.end, 0
        link_types: list[int] = []
        order = "<" if data[8:12].tobytes() == b"\x4d\x3c\x2b\x1a" else ">"
        while place + 12 <= end:
            kind, length = struct.unpack_from(order + "II", data.data, place)
            if length < 12 or place + length > end or kind not in (SECTION, INTERFACE):
                break
            if kind == INTERFACE:
                link_types.append(struct.unpack_from(order + "H", data.data, place + 8)[0])
            place += length
        if link_types and not any(t in LINK_TYPES for t in link_types):
            raise Unsupported([_foreign(self.source.name, t) for t in dict.fromkeys(link_types)])

    def left_over(self, rest: int) -> str:
        if rest < 12:
            return f"the file ends inside a block header ({rest} of 12 bytes are there)"
        (length,) = struct.unpack_from(self.order + "I", self.source.data.data, self.used + 4)
        return f"the file ends inside a block ({rest} of {length} bytes are there)"

    def words(self) -> U32:
        """The window as native words."""
        data = self.source.data
        words = data[: len(data) & ~3].view(self.order + "u4")
        self.native = words.dtype.isnative
        return words if self.native else words.astype(np.uint32)

    def records(self) -> Iterator[_Stretch]:
        source = self.source
        words = self.words()
        begins = True
        while source.end - self.used >= 12:
            place = self.used // 4
            if words[place] == SECTION:
                if not self.section():
                    return
                words = self.words()
                continue
            chain = _PcapngChain(words, place, source.end // 4)
            places = np.zeros(0, np.int64)
            if begins:  # once a window: on short stretches of one size it would look at all the rest in vain
                places = self.same_size(words, place, chain.end)
                begins = False
            if not len(places) and source.end - self.used >= 8 * PIECE:
                pieces = min((source.end - self.used) // PIECE, CHAINS)
                places = self.sound(words, _chained(chain, place, pieces)[0])
            if not len(places):
                places = np.array(chain.one_by_one(place, chain.end)[0], np.int64)
            if not len(places):
                self.stuck(words, place)
                return
            last = int(places[-1])
            self.used = 4 * last + int(words[last + 1])
            yield from self.blocks(words, places)

    def same_size(self, words: U32, place: int, end: int) -> I64:
        """Places of the first blocks for as long as all are packets in blocks of one size; none if those are few."""
        length = int(words[place + 1])
        stride = length >> 2
        n = (end - place) // stride if stride else 0
        if length & 3 or n < 64:
            return np.zeros(0, np.int64)
        table = words[place : place + n * stride].reshape(n, stride)
        good = (table[:, 0] == ENHANCED_PACKET) & (table[:, 1] == length) & (table[:, -1] == length)
        n = n if good.all() else int(np.argmin(good))
        return place + stride * np.arange(n if n >= 64 else 0, dtype=np.int64)

    def sound(self, words: U32, places: I64) -> I64:
        """`places` up to the first that is no block, or opens another section."""
        length = words.take(places + 1)
        bad = (length & 3 != 0) | (length < 12) | (words.take(places) == SECTION)
        bad |= words.take(places + (length >> np.uint32(2)) - 1, mode="clip") != length
        return places[: np.argmax(bad)] if bad.any() else places

    def stuck(self, words: U32, place: int) -> None:
        """No whole block stands here: because the window ends, or because it is damaged?"""
        kind, length = int(words[place]), int(words[place + 1])
        at = 4 * place
        if length & 3 or length < 12 or length > LONGEST_BLOCK:
            raise _Damage(at, f"a block (type {kind:#x}) says it is {length:,} bytes long, which no block can be")
        if at + length <= self.source.end:
            again = int(words[place + length // 4 - 1])
            raise _Damage(at, f"a block says it is {length:,} bytes long at its start and {again:,} at its end")

    def section(self) -> bool:
        """Start the section whose header is next; False when the window does not hold all of it."""
        data, place = self.source.data, self.used
        magic = data[place + 8 : place + 12].tobytes()
        for order in "<>":
            if magic == struct.pack(order + "I", BYTE_ORDER_MAGIC):
                self.order = order
                break
        else:
            raise _Damage(place, f"a section header has the byte order mark {magic.hex()}, which is none")
        length, _, major, minor = struct.unpack_from(self.order + "IIHH", data.data, place + 4)
        if length & 3 or not 28 <= length <= LONGEST_BLOCK:
            raise _Damage(place, f"a section header says it is {length:,} bytes long, which none can be")
        if place + length > self.source.end:
            return False
        if major != 1:
            raise _Damage(place, f"a section of pcapng version {major}.{minor}", "netemu reads version 1")
        self.base = len(self.capture.interfaces)
        self.link_types, self.clocks, self.snaplens = [], [], []
        self.used += length
        return True

    def blocks(self, words: U32, places: I64) -> Iterator[_Stretch]:
        """Packets of whole blocks of one section, each after the interfaces that stand before it."""
        kinds = words.take(places)
        done = 0
        for k in [*np.flatnonzero(kinds == INTERFACE), len(places)]:
            part, kind = places[done:k], kinds[done:k]
            if not (kind == ENHANCED_PACKET).all():
                packets = (kind == ENHANCED_PACKET) | (kind == SIMPLE_PACKET) | (kind == OLD_PACKET)
                part, kind = part[packets], kind[packets]
            self.window = words
            for lo, hi in _slices(len(part)):
                yield part[lo:hi], kind[lo:hi]
            if k < len(places):
                self.describe(int(places[k]))
            done = k + 1

    def describe(self, place: int) -> None:
        """An interface description block."""
        data, at, order = self.source.data, 4 * place, self.order
        length, link_type, _, snaplen = struct.unpack_from(order + "IHHI", data.data, at + 4)
        if length < 20:
            raise _Damage(at, f"an interface description of {length} bytes")
        name: str | None = None
        clock = _Clock()
        option, stop = at + 16, at + length - 4
        while option + 4 <= stop:
            code, size = struct.unpack_from(order + "HH", data.data, option)
            value = data[option + 4 : min(option + 4 + size, stop)].tobytes()
            if code == 0:
                break
            if code == 2:
                name = value.rstrip(b"\0").decode("utf-8", "replace")
            elif code == 9 and value:
                clock.base, clock.power = (2 if value[0] & 0x80 else 10), value[0] & 0x7F
            elif code == 14 and len(value) == 8:
                (clock.offset,) = struct.unpack(order + "q", value)
            option += 4 + (size + 3 & ~3)
        self.interface(name, link_type)
        self.clocks.append(clock)
        self.snaplens.append(snaplen or 0xFFFF_FFFF)

    def read(self, stretch: _Stretch, into: Frames) -> tuple[U8 | None, U32 | None, _Damage | None]:
        places, kind = stretch
        assert kind is not None
        words, n = self.window, len(places)
        rows = _rows(words.view(np.uint8), places * 4, 28 + NEAR)
        head = rows[:, :32].view(np.uint32)
        length, iface, high, low, cap, wire = (head[:, k].astype(np.uint32) for k in range(1, 7))
        at = places * 4 + 28
        room = length.astype(np.int64) - 32
        link: U8 | None = rows[:, 28:] if self.native else None
        simple = np.zeros(0, np.intp)
        if not (kind == ENHANCED_PACKET).all():
            link = None  # it stands elsewhere in the older kinds
            old = np.flatnonzero(kind == OLD_PACKET)
            iface[old] = iface[old] & 0xFFFF if self.order == "<" else iface[old] >> np.uint32(16)
            simple = np.flatnonzero(kind == SIMPLE_PACKET)
            if len(simple):
                at[simple] -= 16
                room[simple] += 16
                wire[simple] = head[simple, 2]
                cap[simple] = np.minimum(
                    np.minimum(wire[simple], self.snaplens[0] if self.snaplens else 0), room[simple]
                )
                iface[simple] = 0
        bad = cap > room
        bad |= cap > LONGEST_PACKET
        bad |= iface >= len(self.link_types)
        damage = None
        if bad.any():
            n = int(np.argmax(bad))
            damage = self.nonsense(int(places[n]), int(cap[n]), int(room[n]), int(iface[n]))
            damage.record = n
            simple = simple[simple < n]
        if not n:
            return link, None, damage
        part = into.take(slice(0, n))
        part.at[:], part.cap[:], part.iface[:] = at[:n], cap[:n], iface[:n]
        ticks = high[:n].astype(np.uint64)
        ticks <<= np.uint64(32)
        ticks |= low[:n]
        time = self.times(ticks, part.iface)
        if len(simple):  # these have no time: that of the packet before
            timed = np.ones(n, bool)
            timed[simple] = False
            latest = np.maximum.accumulate(np.where(timed, np.arange(n), -1))
            time = np.where(latest >= 0, time[latest], self.last_time)
        self.last_time = int(time[-1])
        part.time[:] = time
        np.maximum(np.minimum(wire[:n], 0x7FFF_FFFF), cap[:n], out=part.wire, casting="unsafe")
        flags = self.flags(words, places[:n], part.cap, room[:n], kind[:n])
        return link, flags, damage

    def nonsense(self, place: int, cap: int, room: int, iface: int) -> _Damage:
        if iface >= len(self.link_types):
            known = len(self.link_types)
            return _Damage(
                4 * place, f"the packet is of interface {iface}, and the file has described {known} before it"
            )
        return _Damage(
            4 * place, f"the packet says that {cap:,} bytes were captured, and its block has room for {room:,}"
        )

    def times(self, ticks: U64, iface: I32) -> I64:
        first = self.clocks[0]
        if all(clock == first for clock in self.clocks):
            return first.nanoseconds(ticks)
        time = np.empty(len(ticks), np.int64)
        for number, clock in enumerate(self.clocks):
            rows = np.flatnonzero(iface == number)
            if len(rows):
                time[rows] = clock.nanoseconds(ticks[rows])
        return time

    def flags(self, words: U32, places: I64, cap: I32, room: I64, kind: U32) -> U32 | None:
        """uint32[n]: epb_flags of each packet, None when no packet has options. One round an option of the longest."""
        filled = (cap + 3) & ~3
        rows = np.flatnonzero((room > filled) & (kind != SIMPLE_PACKET))
        if not len(rows):
            return None
        out = np.zeros(len(places), np.uint32)
        here = places[rows] + 7 + (filled[rows] >> 2)
        stop = places[rows] + ((room[rows] + 32) >> 2) - 1
        while len(rows):
            word = words[here]
            low, high = word & np.uint32(0xFFFF), word >> np.uint32(16)
            code, size = (low, high) if self.order == "<" else (high, low)
            found = (code == 2) & (size == 4)
            if found.any():
                out[rows[found]] = words[here[found] + 1]
            here = here + 1 + ((size.astype(np.int64) + 3) >> 2)
            go = np.flatnonzero((code != 0) & ~found & (here < stop))
            rows, here, stop = rows[go], here[go], stop[go]
        return out


# ---- what is it ------------------------------------------------------------------------------------------------------

PCAP_MAGICS = (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d")


def _reader(capture: Capture, number: int, link: str | None, target: str | Path | BinaryIO) -> _Reader:
    """The reader for what the file holds."""
    source = _Source(target)
    head = source.data[: source.end].tobytes()[:64]
    try:
        if head[:4] in PCAP_MAGICS:
            return _Pcap(capture, number, link, source)
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            if source.end < 28:
                raise Refused(
                    f"the file header is cut off: {source.end} of 28 bytes", file=source.name, hint="record it again"
                )
            return _Pcapng(capture, number, link, source)
        inside = "unpacked, it " if source.zipped else ""
        if source.damage:
            raise Refused(source.damage, file=source.name, hint="fetch or record it again")
        if not head:
            hint = "a capture without packets still has a header: record it again"
            raise Refused(f"{inside}is empty (0 bytes)", file=source.name, hint=hint)
        what, hint = _looks_like(head)
        raise Refused(
            f"{inside}is not a capture: it looks like {what}",
            file=source.name,
            hint=hint or "netemu reads pcap and pcapng, gzipped or not",
        )
    except BaseException:
        source.close()
        raise


def _looks_like(head: bytes) -> tuple[str, str]:
    for start, what, hint in LOOKS_LIKE:
        if head.startswith(start):
            return what, hint
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    line = text.splitlines()[0] if text.strip() else ""
    if line and all(c.isprintable() or c.isspace() for c in text):
        return f"text ({line[:40]!r})", "`tcpdump -w FILE` writes what netemu reads; without -w it prints text"
    return f"something else (it begins with {head[:8].hex(' ')})", ""


# ---- which link ------------------------------------------------------------------------------------------------------


def arrivals(
    frames: Frames, capture: Capture, routing: Routing, link: str | None = None, src: U32 | None = None
) -> I16:
    """On which link of the node each frame came in.

    src      the IP source addresses, by somebody who has read them already
    link     every frame came in here, save those that carry the proof that the node sent them (`--link`); None or
             "auto": as the capture tells
    returns  int16[n]: a link's index; OUT (-1): the node itself sent it; PASSED (-2): no arrival, to be passed over
             (the copy of a packet that left the node, which follows from its arrival)
    Raises   Refused, when the node has no such link

    A frame was sent by the node when the capture says so (SLL, SLL2, epb_flags), when its source MAC is one of the
    node's, or, for want of both, when its source address is the node's own. Of these, packets from the node's own
    addresses count as sent by a local process, the others as copies.
    What came in came in on the link that the command line names for the file, else the interface that the file names,
    else the interface number (SLL2; the node's links count from 1, lo first), else the link that has the destination
    MAC, else the link by which the node would answer.
    """
    n, known = len(frames), src
    auto = link is None or link == "auto"
    where = np.full(n, -3, np.int16)  # not known yet
    if not auto:
        assert link is not None
        where[:] = _index(routing, link)
    else:
        forced = [
            name if name != recorded else None for name, recorded in zip(capture.links, capture.interfaces, strict=True)
        ]
        for name in dict.fromkeys(f for f in forced if f):
            _index(routing, name)  # complains
        of_iface = np.array(
            [-3 if name is None or routing.index(name) < 0 else routing.index(name) for name in capture.links], np.int16
        )
        where = of_iface.take(frames.iface)
        if frames.ifindex.any():
            numbered = np.flatnonzero((where == -3) & (frames.ifindex > 0) & (frames.ifindex <= len(routing.links)))
            where[numbered] = frames.ifindex[numbered] - 1
    macs: dict[int, int] = {}
    for k, one in enumerate(routing.links):
        if one.mac:
            macs[one.mac] = k if one.mac not in macs else -3  # several links share it: it does not tell which
    if auto and macs and frames.dmac.any():
        unknown = np.flatnonzero((where == -3) & (frames.dmac != 0))
        if len(unknown):
            where[unknown] = _looked_up(frames.dmac[unknown], macs)
    sent = frames.outgoing
    # nothing on the link tells who sent these: loopback, and captures without link header
    silent = ~sent
    if frames.ether.any():
        if macs:
            sent = sent | (frames.ether & ~frames.incoming & (_looked_up(frames.smac, dict.fromkeys(macs, 0)) == 0))
        silent = (~frames.ether | ((frames.smac | frames.dmac) == 0)) & ~sent
    ask = np.flatnonzero(sent | silent if auto else sent)
    if len(ask):
        some = stretch(ask)
        src = _sources(frames, ask) if known is None else known[some]
        own = _by_source(src, lambda src: routing.is_local(src) | (src == 0))
        if own.any():
            here = ask[own]
            # a packet that the node heard from itself (lo in a capture of all links) was seen when it left
            where[here] = np.where(frames.incoming[here], PASSED, OUT)
        copies = sent[some] & ~own
        if copies.any():
            where[ask[copies]] = PASSED
    lost = np.flatnonzero(where == -3)
    if len(lost):
        src = _sources(frames, lost) if known is None else known[stretch(lost)]
        back = _by_source(src, lambda src: _way_back(routing, src))
        # a source that is the node's own, or that it has no route to: the first link that is not lo
        where[lost] = np.where(back > 0, back, np.int16(1 if len(routing.links) > 1 else 0))
    return where


def _index(routing: Routing, name: str) -> int:
    found: int = routing.index(name)
    if found < 0:
        raise Refused(f"the node has no link {name}", hint=f"its links are {', '.join(routing.names)}")
    return found


def _looked_up(macs: U64, table: dict[int, int]) -> I16:
    """int16[n]: what `table` says of each address, -3 where it is silent."""
    keys = np.array(sorted(table), np.uint64)
    values = np.array([table[int(k)] for k in keys], np.int16)
    if len(keys) <= 4:  # comparing a few times is cheaper than a search
        out = np.full(len(macs), -3, np.int16)
        for key, value in zip(keys, values, strict=True):
            out[macs == key] = value
        return out
    place = np.minimum(np.searchsorted(keys, macs), len(keys) - 1)
    return np.where(keys[place] == macs, values[place], np.int16(-3)).astype(np.int16)


def _way_back(routing: Routing, src: U32) -> I16:
    """By which link the node would answer these addresses."""
    none = np.zeros(len(src), np.uint32)
    return routing.output(src, none, none, none.astype(np.uint8)).link


def _by_source(src: U32, question: Callable[[U32], NDArray[Any]]) -> NDArray[Any]:
    """What `question` says of each address. It is asked once about those that come often, which nearly all do.

    Cost: five passes; an address that shares its place in a small table with a later one is asked about each time.
    """
    if len(src) < WORTH_SHARING:
        return question(src)
    place = _place(src)
    latest = np.zeros(len(_PLACES), np.uint32)
    latest[place] = src
    asked = np.flatnonzero(_place(latest) == _PLACES)  # where nobody came by there is 0, whose place is the first
    said = question(latest.take(asked))
    answers = np.zeros(len(_PLACES), said.dtype)
    answers[asked] = said
    out = answers.take(place)
    other = np.flatnonzero(latest.take(place) != src)
    if len(other):
        out[other] = question(src.take(other))
    return out


def _place(addresses: U32) -> Rows:
    return ((addresses * np.uint32(0x9E3779B1)) >> np.uint32(18)).astype(np.intp)


_PLACES = np.arange(1 << 14)


def _sources(frames: Frames, rows: Rows) -> U32:
    """uint32[len(rows)]: IP source addresses."""
    return _rows(frames.data, frames.at[rows] + 12, 4).view(">u4")[:, 0].astype(np.uint32)


# ---- writing ---------------------------------------------------------------------------------------------------------


class CaptureWriter:
    """Writes pcapng: raw IP packets, each on its link, each with a comment that Wireshark shows.

    target       a path, `-` for standard output, or a binary file object (left open)
    links        one interface a link, named after it
    nanoseconds  False: microseconds

    >>> import io
    >>> f = io.BytesIO()
    >>> with CaptureWriter(f, ["lo", "eth0"]) as out:
    ...     out.write("eth0", 5, bytes.fromhex("4500001400000000400000000a0000010a000002"), "filter:FORWARD:policy:1")
    >>> capture = read_capture(io.BytesIO(f.getvalue()))
    >>> [(capture.interfaces[frames.iface[0]], int(frames.time[0])) for frames in capture]
    [('eth0', 5)]
    """

    def __init__(self, target: str | Path | BinaryIO, links: Sequence[str], nanoseconds: bool = True) -> None:
        self._file, self._ours = _writable(target)
        self._index = {name: k for k, name in enumerate(links)}
        self._per_tick = 1 if nanoseconds else 1000
        self._options: dict[str, bytes] = {"": b""}
        self._buffer: list[bytes] = []
        self._held = 0
        self._put(
            _block(SECTION, struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1) + _option(4, b"netemu") + _option(0))
        )
        for name in links:
            options = _option(2, name.encode()) + _option(9, b"\x09" if nanoseconds else b"\x06") + _option(0)
            self._put(_block(INTERFACE, struct.pack("<HHI", RAW, 0, 0) + options))

    def write(self, link: str | int, time: int, packet: bytes, comment: str = "", wire: int | None = None) -> None:
        """One packet, from its IP header on.

        link  name or index in `links`       time  nanoseconds       wire  its length on the wire, if not all is here
        Cost  2 us; a comment that was written before costs no more
        """
        self._put(self.block(link, time, packet, comment, wire))

    def block(self, link: str | int, time: int, packet: bytes, comment: str = "", wire: int | None = None) -> bytes:
        """The block that `write` writes."""
        options = self._options.get(comment)
        if options is None:
            if len(self._options) > 10_000:  # comments that name each packet would fill the memory
                self._options = {"": b""}
            # a comment's length has 16 bits, and the cut may fall inside a character
            text = comment.encode()[:LONGEST_COMMENT].decode("utf-8", "ignore").encode()
            options = self._options[comment] = _option(1, text) + _option(0)
        number = link if isinstance(link, int) else self._index[link]
        ticks = max(time, 0) // self._per_tick
        n = len(packet)
        fill = -n % 4
        length = 32 + n + fill + len(options)
        head = _ENHANCED.pack(
            ENHANCED_PACKET, length, number, ticks >> 32, ticks & 0xFFFF_FFFF, n, n if wire is None else max(wire, n)
        )
        return b"".join((head, packet, bytes(fill), options, length.to_bytes(4, "little")))

    def blocks(
        self, links: I16, times: I64, sizes: I64, comments: I64
    ) -> tuple[NDArray[np.void], NDArray[np.void], NDArray[np.void]]:
        """`block` of many packets, in columns: what stands before the packets, between them and their comments, and
        behind those. Packet and comment are each to be filled with zeros up to a multiple of 4.

        links  index into `links`        times  nanoseconds        sizes, comments  bytes, at most LONGEST_COMMENT
        """
        n = len(links)
        before = np.zeros((n, 7), "<u4")
        behind = np.zeros((n, 2), "<u2")
        tail = np.zeros((n, 2), "<u4")
        ticks = times // self._per_tick
        length = 32 + sizes + (-sizes & 3) + 4 + comments + (-comments & 3) + 4
        for k, column in enumerate((ENHANCED_PACKET, length, links, ticks >> 32, ticks & 0xFFFF_FFFF, sizes, sizes)):
            before[:, k] = column
        behind[:, 0], behind[:, 1] = 1, comments
        tail[:, 1] = length
        return before.view("V28")[:, 0], behind.view("V4")[:, 0], tail.view("V8")[:, 0]

    def put(self, blocks: U8) -> None:
        """Write whole blocks."""
        self.flush()
        self._file.write(blocks.data)

    def _put(self, block: bytes) -> None:
        self._buffer.append(block)
        self._held += len(block)
        if self._held > 1 << 18:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held back."""
        self._file.write(b"".join(self._buffer))
        self._buffer.clear()
        self._held = 0
        self._file.flush()

    def close(self) -> None:
        self.flush()
        if self._ours:
            self._file.close()

    def __enter__(self) -> CaptureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ENHANCED = struct.Struct("<7I")
LONGEST_COMMENT = 65_500  # bytes


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _option(code: int, value: bytes = b"") -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _writable(target: str | Path | BinaryIO) -> tuple[BinaryIO, bool]:
    """(file, is it ours to close)"""
    if not isinstance(target, str | Path):
        return target, False
    if str(target) == "-":
        return sys.stdout.buffer, False
    try:
        return open(target, "wb"), True
    except OSError as e:
        raise Refused(f"cannot be written: {e.strerror or e}", file=str(target)) from None


def write_pcap(
    target: str | Path | BinaryIO,
    times: Sequence[int] | I64,
    packets: Sequence[bytes],
    link_type: int = RAW,
    *,
    nanoseconds: bool = True,
    snaplen: int = LONGEST_PACKET,
) -> None:
    """Write packets as classic pcap.

    times    nanoseconds, one a packet      packets  from the link header on, as `link_type` has it
    snaplen  longer packets are cut to this
    """
    import dpkt  # here, because it is slow to import and few need it

    magic = dpkt.pcap.TCPDUMP_MAGIC_NANO if nanoseconds else dpkt.pcap.TCPDUMP_MAGIC
    unit, per_tick = (10**9, 1) if nanoseconds else (10**6, 1000)
    pack = struct.Struct("<4I").pack
    file, ours = _writable(target)
    try:
        file.write(bytes(dpkt.pcap.LEFileHdr(magic=magic, snaplen=snaplen, linktype=link_type)))
        for lo in range(0, len(packets), 4096):
            out: list[bytes] = []
            for time, packet in zip(times[lo : lo + 4096], packets[lo : lo + 4096], strict=True):
                second, tick = divmod(int(time) // per_tick, unit)
                cut = packet[:snaplen]
                out += (pack(second, tick, len(cut), len(packet)), cut)
            file.write(b"".join(out))
    finally:
        if ours:
            file.close()
