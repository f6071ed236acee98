"""SCTP and DCCP as connection tracking sees them: their drawn tables of states, and what else a packet must fulfil.

Each tracker watches from the middle of the road, one packet at a time (`one`); what it remembers of a connection it
keeps by flow number. TCP has a module of its own; UDP, ICMP, GRE and all others have no states.

SCTP: a packet is a list of chunks, each of which may move the state. Both ends chose a verification tag, which every
packet to them must carry. DCCP (Linux 6.1 only): a packet has one type; which end is the client decides what it means.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from netemu.packets import DCCP, GRE, SCTP, UDP, UDPLITE, checksum, crc32c
from netemu.tcp import ACCEPTED, GONE, INVALID_SEGMENT, UNTOUCHED

SECOND = 1_000_000_000
Memory = TypeVar("Memory")
LOST = 10  # what `one` may say besides: the packet is dropped
INVALID, IGNORED = 100, 101  # in a table: does not belong; passes and changes nothing


def grid(drawing: str, short: str, kinds: str) -> NDArray[np.int8]:
    """int8[kind, state]: a drawn table. `.` keeps the state, `!` is INVALID, `~` passes and changes nothing.

    Refuses a drawing whose columns are not the states in order (`short`), or its lines not the kinds.
    """
    head, *lines = [line.split() for line in drawing.strip().splitlines()]
    number = {name: k for k, name in enumerate(short.split())} | {"!": INVALID, "~": IGNORED}
    assert head == ["seen", *short.split()], "columns must be the states in order"
    assert [line[0] for line in lines] == kinds.split(), "lines must be the kinds in order"
    assert all(len(line) == len(head) for line in lines), "every kind in every state"
    return np.array([[k if w == "." else number[w] for k, w in enumerate(line[1:])] for line in lines], np.int8)


class StateTracker(Generic[Memory]):
    """What a protocol with states of its own has: names, timeouts, and what it remembers of each connection.

    memory  flow number -> what is known of it      timeouts  ns, by state
    """

    states: tuple[str, ...]  # as `conntrack -L` prints them
    knob: str  # sysctls are net.netfilter.nf_conntrack_<knob>_timeout_<state>
    seconds: tuple[int, ...]  # default timeouts by state
    abrupt = False  # a packet may end a connection

    def __init__(self) -> None:
        self.memory: dict[int, Memory] = {}
        self.timeouts = [s * SECOND for s in self.seconds]

    def limits(self, get: Callable[[str, int], int]) -> None:
        """Take over the sysctls."""
        for k, name in enumerate(self.states[1:], 1):
            self.timeouts[k] = get(f"{self.knob}_timeout_{name.lower()}", self.seconds[k]) * SECOND

    def state(self, flow: int) -> int:
        """The state that a connection is in."""
        raise NotImplementedError

    def restore(self, flow: int, state: str | None) -> None:
        """A connection out of a dump."""
        raise NotImplementedError

    def one(self, flow: int, segment: bytes, reply: bool, *, confirmed: bool, answered: bool) -> tuple[int, int, bool]:
        """A packet of a connection, from its transport header on.

        returns  (ACCEPTED, INVALID_SEGMENT, UNTOUCHED, GONE or LOST; the timeout from now on in ns; now it is assured)
        """
        raise NotImplementedError


# ---- SCTP ----------------------------------------------------------------------------------------------------

SCTP_STATES = (
    "NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT",
)  # fmt: skip
_SCTP_SHORT = "NO CL CW CE ES SS SR SA HS"
_SCTP_KINDS = "init init_ack abort shutdown shutdown_ack error cookie_echo cookie_ack complete beat beat_ack other"
DATA, INIT, INIT_ACK, BEAT, BEAT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK = (
    0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11,
)  # fmt: skip
COMPLETE = 14
UNKNOWN = -1
_SCTP_LINE = {
    kind: k
    for k, kind in enumerate(
        (INIT, INIT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK, COMPLETE, BEAT, BEAT_ACK)
    )
}
# Found by sending every chunk in both directions to Linux 6.1 and 6.18, in every state.
SCTP_TRANSITIONS = np.stack([
    grid("""
    seen          NO  CL  CW  CE  ES  SS  SR  SA  HS
    init          CL  .   .   .   .   CL  CL  .   CW
    init_ack      CL  .   .   .   .   .   .   .   CL
    abort         CL  .   CL  CL  CL  CL  CL  CL  CL
    shutdown      CL  .   .   .   SS  .   .   .   CL
    shutdown_ack  SA  .   .   .   .   SA  SA  .   SA
    error         CL  .   .   .   .   .   .   .   CL
    cookie_echo   CL  .   CE  .   .   .   .   .   CL
    cookie_ack    CL  .   .   ES  .   .   .   .   CL
    complete      CL  .   .   .   .   .   .   CL  CL
    beat          HS  .   .   .   .   .   .   .   .
    beat_ack      CL  .   .   .   .   .   .   .   .
    other         !   .   .   .   .   .   .   .   .
    """, _SCTP_SHORT, _SCTP_KINDS),
    grid("""
    seen          NO  CL  CW  CE  ES  SS  SR  SA  HS
    init          !   .   .   .   .   .   .   .   !
    init_ack      !   CW  .   .   .   .   .   .   !
    abort         !   .   CL  CL  CL  CL  CL  CL  !
    shutdown      !   .   .   .   SR  .   .   .   !
    shutdown_ack  !   .   .   .   .   SA  SA  .   !
    error         !   .   .   CL  .   .   .   .   !
    cookie_echo   !   .   CE  .   .   .   .   .   !
    cookie_ack    !   .   .   ES  .   .   .   .   !
    complete      !   .   .   .   .   .   .   CL  !
    beat          !   .   .   .   .   .   .   .   .
    beat_ack      !   .   .   .   .   .   .   .   ES
    other         !   .   .   .   .   .   .   .   .
    """, _SCTP_SHORT, _SCTP_KINDS),
])  # fmt: skip
_SCTP_TABLE: list[list[list[int]]] = SCTP_TRANSITIONS.tolist()
_CLOSED, _ESTABLISHED = SCTP_STATES.index("CLOSED"), SCTP_STATES.index("ESTABLISHED")
_ALONE = {INIT, INIT_ACK, COMPLETE}  # nothing may stand beside these
_FIRST = {COOKIE_ECHO, COOKIE_ACK}  # nothing may stand before these
_HOMELESS = {ABORT, COMPLETE, COOKIE_ACK}  # these begin no connection
_OWN_TAG_RULE = {INIT, COMPLETE, COOKIE_ECHO, ABORT, SHUTDOWN_ACK, BEAT, BEAT_ACK}
_REFLECTED = 1  # flag of ABORT and SHUTDOWN COMPLETE: they carry the tag of their own sender


@dataclass
class Association:
    """What is known of an SCTP connection; pairs are by direction, the tag is the one that packets that way carry.

               (UNKNOWN: no dump tells it, the first packet will)
    initiated  an INIT was seen      doubted  direction of a HEARTBEAT with another tag, -1 none
    """

    state: int = 0
    tag: list[int] = field(default_factory=lambda: [0, 0])
    initiated: list[bool] = field(default_factory=lambda: [False, False])
    doubted: int = -1


class SctpTracker(StateTracker[Association]):
    """Chunks move the state; tags say whether a packet belongs."""

    states = SCTP_STATES
    knob = "sctp"
    seconds = (10, 10, 3, 3, 210, 3, 3, 3, 30)

    def state(self, flow: int) -> int:
        return self.memory[flow].state

    def restore(self, flow: int, state: str | None) -> None:
        self.memory[flow] = Association(SCTP_STATES.index(state) if state else _ESTABLISHED, [UNKNOWN, UNKNOWN])

    def one(self, flow: int, segment: bytes, reply: bool, *, confirmed: bool, answered: bool) -> tuple[int, int, bool]:
        refused = INVALID_SEGMENT, 0, False
        chunks = _chunks(segment)
        if chunks is None:
            return refused
        kinds = {kind for kind, _, _ in chunks}
        (tag,) = struct.unpack_from("!I", segment, 4)
        if not confirmed:
            made = None if kinds & _HOMELESS else _opened(chunks, tag)
            if made is None:
                return refused
            self.memory[flow] = made
        known = self.memory[flow]
        way, back = int(reply), int(not reply)
        if UNKNOWN in known.tag and chunks[0][0] != INIT:
            learnt = back if chunks[0][0] in (ABORT, COMPLETE) and chunks[0][1] & _REFLECTED else way
            known.tag[learnt] = tag if known.tag[learnt] == UNKNOWN else known.tag[learnt]
        if not kinds & _OWN_TAG_RULE and tag != known.tag[way]:
            return refused
        assured = quiet = False
        state = 0
        for kind, flags, body in chunks:
            if kind in (BEAT, BEAT_ACK):
                seen = self._beat(known, kind, tag, way, alone=DATA not in kinds and not quiet)
                if seen == INVALID_SEGMENT:
                    return refused
                if seen == UNTOUCHED:
                    quiet = True
                    continue
            elif not _carries_right_tag(known, kind, flags, tag, way):
                return refused
            if kind == COOKIE_ACK:
                known.initiated = [False, False]
            old = known.state
            state = _SCTP_TABLE[way][_SCTP_LINE.get(kind, len(_SCTP_LINE))][old]
            if state == INVALID:
                return refused
            if kind == INIT:
                if len(body) < 16:
                    return refused
                (chosen,) = struct.unpack_from("!I", body)
                if chosen != known.tag[back] or not confirmed:  # else a late one
                    known.initiated[back] &= not known.initiated[way]
                    known.initiated[way] = True
                known.tag[back] = chosen
                # a port used again must not keep what is over alive
                quiet |= old == state == _CLOSED and confirmed
            elif kind == INIT_ACK:
                if len(body) < 16:
                    return refused
                (offered,) = struct.unpack_from("!I", body)
                expected = known.tag[back]
                if expected not in (offered, UNKNOWN) and (
                    (not known.initiated[back] and expected) or all(known.initiated)
                ):
                    return refused
                known.tag[back] = offered
            known.state = state
            assured |= state == _ESTABLISHED != old
        return (UNTOUCHED if quiet else ACCEPTED), self.timeouts[state], assured

    @staticmethod
    def _beat(known: Association, kind: int, tag: int, way: int, *, alone: bool) -> int:
        """HEARTBEAT and its answer may teach a new tag: of a path that this node has not seen the beginning of."""
        if not known.tag[way]:
            known.tag[way] = tag
        elif tag == known.tag[way]:
            known.doubted = -1
        elif not alone:
            return INVALID_SEGMENT
        elif kind == BEAT:
            known.doubted = way
            return UNTOUCHED
        elif known.doubted in (-1, way):
            return INVALID_SEGMENT
        else:
            known.doubted = -1
            known.tag[way], known.tag[1 - way] = tag, 0
        return ACCEPTED


def _chunks(segment: bytes) -> list[tuple[int, int, bytes]] | None:
    """(type, flags, all behind the chunk's header) of each chunk; None where they do not go together."""
    chunks: list[tuple[int, int, bytes]] = []
    at, alone = 12, False
    while at + 4 <= len(segment):
        kind, flags, size = struct.unpack_from("!BBH", segment, at)
        alone |= kind in _ALONE
        if (chunks and (alone or kind in _FIRST)) or not size:
            return None
        chunks.append((kind, flags, segment[at + 4 :]))
        at += size + 3 & ~3
    return chunks or None


def _opened(chunks: list[tuple[int, int, bytes]], tag: int) -> Association | None:
    """What a packet that no connection knows begins, if it may."""
    made = Association()
    for kind, _, body in chunks:
        if _SCTP_TABLE[0][_SCTP_LINE.get(kind, len(_SCTP_LINE))][0] == INVALID:
            return None
        if kind == INIT:
            if tag or len(body) < 16:
                return None
            (made.tag[1],) = struct.unpack_from("!I", body)
        elif kind == BEAT:
            made.tag[0] = tag
        elif kind == SHUTDOWN_ACK:  # a SHUTDOWN COMPLETE is to come back, and repeats the tag
            made.tag[1] = tag
    return made


def _carries_right_tag(known: Association, kind: int, flags: int, tag: int, way: int) -> bool:
    """The rules of the chunks that do not simply carry the tag of the end that they go to."""
    if kind == INIT:
        return tag == 0
    if kind in (ABORT, COMPLETE):
        return tag == known.tag[1 - way if flags & _REFLECTED else way]
    return kind != COOKIE_ECHO or tag == known.tag[way]


# ---- DCCP ----------------------------------------------------------------------------------------------------

DCCP_STATES = ("NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT")
_DCCP_SHORT = "NO RQ RS PO OP CR CG TW"
_DCCP_KINDS = "request response data ack dataack closereq close reset sync syncack"
_DCCP_HEADERS = (4, 12, 0, 8, 8, 8, 8, 12, 8, 8)  # bytes behind the common header, by type
_DCCP_SHORT_SEQUENCE = (2, 3, 4)  # types that may carry a number of 24 bits
REQUEST, RESPONSE, ACKNOWLEDGE, RESET = 0, 1, 3, 7
# Found by sending every type in both directions to Linux 6.1, in every state; by the end that is the client
DCCP_TRANSITIONS = np.stack([
    grid("""
    seen      NO  RQ  RS  PO  OP  CR  CG  TW
    request   RQ  .   .   ~   ~   ~   ~   RQ
    response  !   ~   ~   ~   ~   ~   ~   !
    data      !   !   !   !   .   .   .   !
    ack       !   !   PO  .   .   .   .   !
    dataack   !   !   PO  .   .   .   .   !
    closereq  !   !   !   !   !   !   !   !
    close     !   !   !   CG  CG  CG  !   !
    reset     !   TW  TW  TW  TW  TW  TW  ~
    sync      !   ~   ~   ~   ~   ~   ~   ~
    syncack   !   ~   ~   ~   ~   ~   ~   ~
    """, _DCCP_SHORT, _DCCP_KINDS),
    grid("""
    seen      NO  RQ  RS  PO  OP  CR  CG  TW
    request   !   ~   ~   ~   ~   ~   ~   RQ
    response  !   RS  .   ~   ~   ~   ~   !
    data      !   !   !   OP  .   !   .   !
    ack       !   !   !   OP  .   !   .   !
    dataack   !   !   !   OP  .   !   .   !
    closereq  !   !   !   CR  .   .   CR  !
    close     !   !   !   CG  CG  !   .   !
    reset     !   TW  TW  TW  TW  TW  TW  .
    sync      !   ~   ~   ~   ~   ~   ~   ~
    syncack   !   ~   ~   ~   ~   ~   ~   ~
    """, _DCCP_SHORT, _DCCP_KINDS),
])  # fmt: skip
_DCCP_TABLE: list[list[list[int]]] = DCCP_TRANSITIONS.tolist()
_REQUESTED, _RESPONDED, _PARTOPEN, _OPEN, _TIMEWAIT = 1, 2, 3, 4, 7


@dataclass
class Call:
    """What is known of a DCCP connection.

    server     direction whose packets come from the server      response  sequence number of its response
    last       (direction, type) of the packet before
    """

    state: int = 0
    server: int = 1
    response: int = 0
    last: tuple[int, int] = (0, REQUEST)


class DccpTracker(StateTracker[Call]):
    """A request opens, a response and its acknowledgement settle it."""

    states = DCCP_STATES
    knob = "dccp"
    abrupt = True
    seconds = (0, 240, 480, 480, 43200, 64, 64, 240)

    def state(self, flow: int) -> int:
        return self.memory[flow].state

    def restore(self, flow: int, state: str | None) -> None:
        self.memory[flow] = Call(DCCP_STATES.index(state) if state else _OPEN)

    def one(self, flow: int, segment: bytes, reply: bool, *, confirmed: bool, answered: bool) -> tuple[int, int, bool]:
        if _cut_off(segment):
            return LOST, 0, False
        kind = segment[8] >> 1 & 15
        way = int(reply)
        if not confirmed:
            self.memory[flow] = Call()
        known = self.memory[flow]
        old = known.state
        new = _DCCP_TABLE[int(way == known.server)][kind][old]
        if confirmed and kind == RESET and not answered:
            return GONE, 0, False
        assured = False
        if new == IGNORED and known.last == (1 - way, REQUEST) and kind == RESPONSE:
            # the request before was the beginning of another connection after all
            known.server, known.response, new = way, _sequence(segment), _RESPONDED
        elif new == _REQUESTED and old == _TIMEWAIT:
            known.server = 1 - way
        elif new == _RESPONDED and old == _REQUESTED:
            known.response = _sequence(segment)
        elif new == _PARTOPEN and old == _RESPONDED and kind == ACKNOWLEDGE:
            assured = _acknowledged(segment) == known.response
        if new == INVALID:
            return INVALID_SEGMENT, 0, False
        known.last = way, kind
        if new == IGNORED:
            return UNTOUCHED, 0, False
        known.state = new
        return ACCEPTED, self.timeouts[new], assured


def _cut_off(segment: bytes) -> bool:
    """The header is not all there."""
    if len(segment) < 12:
        return True
    kind = segment[8] >> 1 & 15
    return len(segment) < (16 if _long(segment) else 12) + (_DCCP_HEADERS[kind] if kind < len(_DCCP_HEADERS) else 12)


def _long(segment: bytes) -> bool:
    return bool(segment[8] & 1)


def _sequence(segment: bytes) -> int:
    """The sequence number: of 48 bits if the header says so, otherwise of 24."""
    if _long(segment):
        return int.from_bytes(segment[10:16], "big")
    return int.from_bytes(segment[9:12], "big")


def _acknowledged(segment: bytes) -> int:
    """The number that is acknowledged; Linux reads 48 bits whatever the header says."""
    at = 18 if _long(segment) else 14
    return int.from_bytes(segment[at : at + 6], "big")


# ---- what a packet must fulfil --------------------------------------------------------------------------------------

PPTP = 0x880B  # what GRE version 1 carries
ICMPV6 = 58


def gre_keys(segment: bytes) -> tuple[int, int] | None:
    """The keys that stand in the place of ports: of version 1 the call's number, otherwise none. None: invalid."""
    if len(segment) < 8 or segment[1] & 7 != 1:
        return 0, 0
    kind, _, call = struct.unpack_from("!HHH", segment, 2)
    return (0, call) if kind == PPTP else None


def _pseudo(packet: bytes, proto: int, size: int) -> bytes:
    return packet[12:20] + struct.pack("!BBH", 0, proto, size)


def _sctp_fit(packet: bytes, segment: bytes, verify: bool) -> bool:
    if len(segment) < 12:
        return False
    return not verify or segment[8:12] == struct.pack("<I", crc32c(segment[:8] + bytes(4) + segment[12:]))


def _udplite_fit(packet: bytes, segment: bytes, verify: bool) -> bool:
    if len(segment) < 8:
        return False
    covered, said = struct.unpack_from("!HH", segment, 4)
    if said == 0 or (covered and not 8 <= covered <= len(segment)):
        return False
    # Linux takes UDP's number into the sum, in nf_conntrack_proto_udp.c of both kernels: a right one is INVALID
    return not verify or checksum(_pseudo(packet, UDP, len(segment)) + segment[: covered or None]) == 0


def _dccp_fit(packet: bytes, segment: bytes, verify: bool) -> bool:
    if _cut_off(segment):
        return True  # these are dropped, not INVALID
    offset, covered, kind = segment[4] * 4, segment[5] & 15, segment[8] >> 1 & 15
    if not 12 <= offset <= len(segment) or kind >= len(_DCCP_HEADERS):
        return False
    if not _long(segment) and kind not in _DCCP_SHORT_SEQUENCE:
        return False
    # Linux 6.1 counts what is covered from the header's start (nf_conntrack_proto_dccp.c), not from its end
    reach = (covered - 1) * 4 if covered else len(segment)
    if reach > len(segment):
        return False
    return not verify or checksum(_pseudo(packet, DCCP, len(segment)) + segment[:reach]) == 0


#: protocols whose packets are looked at one by one -> (packet, from the transport header on, verify its checksum) -> ok
FITS: dict[int, Callable[[bytes, bytes, bool], bool]] = {
    SCTP: _sctp_fit,
    UDPLITE: _udplite_fit,
    DCCP: _dccp_fit,
    GRE: lambda packet, segment, verify: gre_keys(segment) is not None,
    ICMPV6: lambda packet, segment, verify: False,
}
#: protocol -> its tracker, by kernel
TRACKERS: dict[str, dict[int, type[SctpTracker] | type[DccpTracker]]] = {
    "6.1": {SCTP: SctpTracker, DCCP: DccpTracker},
    "6.18": {SCTP: SctpTracker},
}
