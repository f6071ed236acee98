"""Sockets of local processes, as far as rules can see them: what a model declares, and the two ways to find one.

A capture shows no sockets, so a node has those that its model declares, and none when it says nothing. TPROXY and
`-m socket` ask for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Sockets = tuple["Socket", ...]


@dataclass(frozen=True)
class Socket:
    """A socket of a local process.

    proto           protocol number: 6 or 17
    address, port   where it is bound; address 0: any
    peer, peer_port the other end; peer None: it waits for anybody (a listener, or a UDP socket that is not connected)
    transparent     it may take packets for foreign addresses
    mark            its own mark (SO_MARK)
    """

    proto: int
    address: int = 0
    port: int = 0
    peer: int | None = None
    peer_port: int = 0
    transparent: bool = False
    mark: int = 0


def sockets_of(node: object) -> Sockets:
    """The sockets that the node's model declares; () when it says nothing of sockets."""
    declared: Iterable[Socket] = getattr(node, "sockets", ())
    return tuple(declared)


def connected(sockets: Sockets, proto: int, src: int, sport: int, dst: int, dport: int) -> Socket | None:
    """The socket of exactly this conversation, for a packet from `src` to `dst`.

    >>> web = Socket(6, 0x0A000001, 80, peer=0x0A000002, peer_port=4000)
    >>> connected((web,), 6, 0x0A000002, 4000, 0x0A000001, 80) is web
    True
    """
    for s in sockets:
        if s.peer is not None and (s.proto, s.peer, s.peer_port, s.address, s.port) == (proto, src, sport, dst, dport):
            return s
    return None


def listening(sockets: Sockets, proto: int, dst: int, dport: int) -> Socket | None:
    """The socket that waits there: one bound to the very address comes before one bound to any.

    >>> listening((Socket(17, port=53), Socket(17, 0x0A000001, 53)), 17, 0x0A000001, 53).address
    167772161
    """
    there = [s for s in sockets if s.peer is None and (s.proto, s.port) == (proto, dport) and s.address in (0, dst)]
    return max(there, key=lambda s: s.address != 0, default=None)
