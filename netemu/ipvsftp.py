"""What the FTP helper of IPVS (module ip_vs_ftp) reads in the control connection of a service on port 21.

    client: PASV, EPSV      --> the answer is waited for
    server: 227, 229        --> a connection of that client to that port of the virtual address will come; the text says
                                the virtual address
    client: PORT, EPRT      --> one from the server's port 20 to that port of the client will come

It reads the beginning of a segment's data only, and only while the connection is established. `ipvs.py` makes the
connections and rewrites the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PASSIVE, EXTENDED = "PASV", "EPSV"

_SIX = rb"(\d*),(\d*),(\d*),(\d*),(\d*),(\d*)(?=\D)"
_PORT = re.compile(rb"PORT[^ \d]* *" + _SIX, re.IGNORECASE | re.DOTALL)
_ENTERING = re.compile(rb"227 [^(\d]*\(*" + _SIX, re.IGNORECASE | re.DOTALL)
_QUAD = rb"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})"
_EPRT = re.compile(rb"EPRT[^ ]* +(([!-~])1\2" + _QUAD + rb"\2(\d+)\2)", re.IGNORECASE | re.DOTALL)
_EXTENDED = re.compile(rb"229 [^(]*\(+(([!-~])(?:\2|1\2" + _QUAD + rb")\2(\d+)\2)", re.IGNORECASE | re.DOTALL)


class Said(NamedTuple):
    """An address and port that somebody told; `start` to `end`: where the text stands. addr -1: none was told."""

    addr: int
    port: int
    start: int
    end: int


def wish(data: bytes) -> str | None:
    """What a client asks for: PASSIVE, EXTENDED; "" what is no mode that it may have; None: neither.

    >>> wish(b"PASV\\r\\n"), wish(b"epsv 1\\r\\n"), wish(b"EPSV 2\\r\\n"), wish(b"LIST\\r\\n")
    ('PASV', 'EPSV', '', None)
    """
    for at in range(len(data) - 5):
        word = data[at : at + 4].upper()
        if word == b"PASV":
            return PASSIVE
        if word == b"EPSV" and data[at + 4] in b" \r":
            if data[at + 4] == 13:
                return EXTENDED
            rest = data[at + 5 : at + 7]
            return EXTENDED if rest == b"1\r" else ""
    return None


def listens(data: bytes) -> Said | None:
    """Where a client listens, by PORT or EPRT.

    >>> listens(b"PORT 10,0,0,9,4,1\\r\\n")
    Said(addr=167772169, port=1025, start=5, end=17)
    >>> listens(b"EPRT |1|10.0.0.9|1025|\\r\\n").port
    1025
    """
    m = _PORT.match(data)
    if m:
        return _six(m)
    m = _EPRT.match(data)
    return _extended(m) if m else None


def offers(data: bytes, mode: str) -> Said | None:
    """Where a server listens, by 227 (after PASV) or 229 (after EPSV).

    >>> offers(b"227 Entering Passive Mode (10,0,0,5,4,1).\\r\\n", PASSIVE).port
    1025
    >>> offers(b"229 Entering Extended Passive Mode (|||1025|)\\r\\n", EXTENDED)
    Said(addr=-1, port=1025, start=36, end=44)
    """
    m = (_ENTERING if mode == PASSIVE else _EXTENDED).match(data)
    if m is None:
        return None
    return _six(m) if mode == PASSIVE else _extended(m)


def told(addr: int, port: int, mode: str) -> bytes:
    """The text that a client is given instead.

    >>> told(0x0A600001, 1025, PASSIVE), told(0x0A600001, 1025, EXTENDED)
    (b'10,96,0,1,4,1', b'|||1025|')
    """
    if mode == EXTENDED:
        return b"|||%d|" % port
    return b"%d,%d,%d,%d,%d,%d" % (*addr.to_bytes(4, "big"), port >> 8, port & 255)


def _six(m: re.Match[bytes]) -> Said:
    a, b, c, d, high, low = (int(word or b"0") & 255 for word in m.groups())
    return Said(a << 24 | b << 16 | c << 8 | d, high << 8 | low, m.start(1), m.end(6))


def _extended(m: re.Match[bytes]) -> Said | None:
    *quad, port = m.groups()[2:]
    if not int(port) & 0xFFFF or any(int(part or b"0") > 255 for part in quad):
        return None
    addr = -1 if quad[0] is None else int.from_bytes(bytes(int(part) for part in quad), "big")
    return Said(addr, int(port) & 0xFFFF, m.start(1), m.end(1))
