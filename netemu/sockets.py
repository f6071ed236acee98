"""Sockets of local processes, as far as rules can see them: what a model declares, and the ways to find one.

A capture shows no sockets, so a node has those that its model declares, and none when it says nothing. TPROXY and
`-m socket` ask for them, `-m owner` for who holds them.

    [[socket]]                    # in node.toml
    proto = "udp"                 # tcp or udp; left out: whatever the node sends and no other entry tells of
    address = "10.0.0.1"          # where it is bound, left out: any
    port = 53
    peer = "10.0.0.9:4000"        # the other end of a conversation
    transparent = true
    mark = 1
    uid = 101                     # the user and group of its process, and the groups that this is in besides
    gid = 101
    groups = [4, 27]
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Sockets = tuple["Socket", ...]


@dataclass(frozen=True)
class Socket:
    """A socket of a local process.

    proto           protocol number: 6 or 17; 0: any packet that the node sends and that no other socket would have
    address, port   where it is bound; address 0: any
    peer, peer_port the other end; peer None: it waits for anybody (a listener, or a UDP socket that is not connected)
    transparent     it may take packets for foreign addresses
    mark            its own mark (SO_MARK)
    uid, gid, groups  of the process that holds it; uid None: not told
    """

    proto: int
    address: int = 0
    port: int = 0
    peer: int | None = None
    peer_port: int = 0
    transparent: bool = False
    mark: int = 0
    uid: int | None = None
    gid: int = 0
    groups: tuple[int, ...] = ()


def read_socket(table: Mapping[str, Any]) -> Socket:
    """A [[socket]] of node.toml. Raises ValueError, whose second argument is the key to look at.

    >>> read_socket({"proto": "udp", "port": 53, "uid": 101})
    Socket(proto=17, address=0, port=53, peer=None, peer_port=0, transparent=False, mark=0, uid=101, gid=0, groups=())
    """
    given = dict(table)

    def take(key: str, kind: type[Any], usual: Any) -> Any:
        value = given.pop(key, usual)
        sound = isinstance(value, kind) and (kind is not int or (value is not True and value >= 0))
        if value is not usual and not sound:
            names = {int: "a number", str: "text", bool: "true or false", list: "a list of numbers"}
            raise ValueError(f"{key} must be {names[kind]}", key)
        return value

    def address(text: str, key: str) -> int:
        try:
            return int(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError(f'not an address: "{text}"', key) from None

    protocols = {"tcp": 6, "udp": 17, "": 0}
    proto = take("proto", str, "")
    if proto not in protocols:
        raise ValueError(f'proto = "{proto}": tcp or udp', "proto")
    peer, colon, port = take("peer", str, "").rpartition(":")
    if colon and not port.isdecimal():
        raise ValueError("peer must be an address and a port, as 10.0.0.9:4000", "peer")
    groups = take("groups", list, [])
    if not all(isinstance(n, int) for n in groups):
        raise ValueError("groups must be a list of numbers", "groups")
    socket = Socket(
        protocols[proto],
        address(take("address", str, "0.0.0.0"), "address"),
        take("port", int, 0),
        address(peer, "peer") if colon else None,
        int(port) if colon else 0,
        take("transparent", bool, False),
        take("mark", int, 0),
        take("uid", int, None),
        take("gid", int, 0),
        tuple(groups),
    )
    if given:
        keys = "proto, address, port, peer, transparent, mark, uid, gid, groups"
        raise ValueError(f'unknown key "{next(iter(given))}" in [[socket]] (netemu knows {keys})', next(iter(given)))
    return socket


def socket_toml(s: Socket) -> list[str]:
    """The lines of its [[socket]] in node.toml.

    >>> socket_toml(Socket(6, 0x0A000001, 80, uid=33))
    ['proto = "tcp"', 'address = "10.0.0.1"', 'port = 80', 'uid = 33']
    """
    shown = {
        "proto": f'"{"tcp" if s.proto == 6 else "udp"}"' if s.proto else "",
        "address": f'"{ipaddress.IPv4Address(s.address)}"' if s.address else "",
        "port": s.port or "",
        "peer": f'"{ipaddress.IPv4Address(s.peer)}:{s.peer_port}"' if s.peer is not None else "",
        "transparent": "true" if s.transparent else "",
        "mark": s.mark or "",
        "uid": "" if s.uid is None else s.uid,
        "gid": s.gid or "",
        "groups": list(s.groups) if s.groups else "",
    }
    return [f"{key} = {value}" for key, value in shown.items() if value != ""]


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


def sending(sockets: Sockets, proto: int, src: int, sport: int, dst: int, dport: int) -> Socket | None:
    """The socket that a packet of the node's own came from, of those that tell whose they are; the closest entry.

    >>> sending((Socket(0, uid=0), Socket(17, port=53, uid=101)), 17, 0x0A000001, 53, 0x0A000002, 4000).uid
    101
    """

    def fits(s: Socket) -> bool:
        return (
            s.uid is not None
            and s.proto in (0, proto)
            and s.address in (0, src)
            and s.port in (0, sport)
            and (s.peer is None or (s.peer, s.peer_port) == (dst, dport))
        )

    def closeness(s: Socket) -> tuple[bool, ...]:
        return s.peer is not None, s.port != 0, s.address != 0, s.proto != 0

    return max(filter(fits, sockets), key=closeness, default=None)


def all_owned(sockets: Sockets) -> bool:
    """Some entry tells whose everything else is that the node sends."""
    return any(s.uid is not None and not (s.proto or s.address or s.port) and s.peer is None for s in sockets)
