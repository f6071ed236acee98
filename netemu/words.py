"""How iptables reads and prints words: numbers, addresses, ports, names. What matches, targets and rules share.

read_number("ttl", "--ttl-eq", "64", 255)   -->   64, or Bad in the words of the tool
quoted("it's")                              -->   "it\\'s"
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable

from netemu.grammar import Bad

M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF
_PROTOCOLS = (
    "0:ip 1:icmp 2:igmp 3:ggp 4:ipencap 5:st 6:tcp 8:egp 9:igp 12:pup 17:udp 20:hmp 22:xns-idp 27:rdp 29:iso-tp4 "
    "33:dccp 36:xtp 37:ddp 38:idpr-cmtp 41:ipv6 43:ipv6-route 44:ipv6-frag 45:idrp 46:rsvp 47:gre 50:esp 51:ah 57:skip "
    "58:ipv6-icmp 59:ipv6-nonxt 60:ipv6-opts 73:rspf 81:vmtp 88:eigrp 89:ospf 93:ax.25 94:ipip 97:etherip 98:encap "
    "103:pim 108:ipcomp 112:vrrp 115:l2tp 124:isis 132:sctp 133:fc 135:mobility-header 136:udplite 137:mpls-in-ip "
    "138:manet 139:hip 140:shim6 141:wesp 142:rohc 143:ethernet"
)
PROTOCOL_NAMES: dict[int, str] = {int(n): name for n, name in (word.split(":") for word in _PROTOCOLS.split())}
PROTOCOLS: dict[str, int] = {name: n for n, name in PROTOCOL_NAMES.items()} | {
    "all": 0,
    "icmpv6": 58,
    "ipv6-mh": 135,
    "mh": 135,
    "ospfigp": 89,
}

#: services that rule sets name; others are asked of the system
SERVICES = {
    "ftp-data": 20, "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "bootps": 67, "bootpc": 68,
    "tftp": 69, "http": 80, "www": 80, "kerberos": 88, "pop3": 110, "sunrpc": 111, "ntp": 123, "netbios-ns": 137,
    "netbios-dgm": 138, "netbios-ssn": 139, "imap2": 143, "imap": 143, "snmp": 161, "bgp": 179, "ldap": 389,
    "https": 443, "microsoft-ds": 445, "isakmp": 500, "syslog": 514, "submission": 587, "ldaps": 636, "imaps": 993,
    "pop3s": 995, "openvpn": 1194, "nfs": 2049, "mysql": 3306, "sip": 5060, "postgresql": 5432,
}  # fmt: skip


def integer(text: str) -> int | None:
    """A number as C reads it: decimal, 0x hexadecimal or 0 octal; None for anything else.

    >>> integer("0x4000"), integer("077"), integer(" +12"), integer("-1"), integer("08")
    (16384, 63, 12, None, None)
    """
    if text.isascii() and text.isdigit() and text[0] != "0":
        return int(text)
    text = text.lstrip().removeprefix("+")
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"0[0-7]+", text):
        return int(text, 8)
    return int(text) if re.fullmatch(r"0|[1-9][0-9]*", text) else None


def quoted(text: str) -> str:
    """A string as iptables-save prints it: bare when it is only letters, digits, `_` and `-`.

    >>> print(quoted("a_b-c"), quoted("ns/svc"), quoted('it\\'s "it"'), quoted(""))
    a_b-c "ns/svc" "it\\'s \\"it\\"" ""
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text
    return '"' + re.sub(r"([\"\\'])", r"\\\1", text) + '"'


def dotted(address: int) -> str:
    """An address in print."""
    return ".".join(map(str, address.to_bytes(4, "big")))


def bang(invert: bool) -> str:
    """What `!` looks like before an option."""
    return "! " if invert else ""


def service(text: str) -> int | None:
    if text in SERVICES:
        return SERVICES[text]
    try:
        return socket.getservbyname(text)
    except OSError:
        return None


def read_port(text: str) -> int:
    """A port number or service, as the older matches read it."""
    n = integer(text)
    if n is None:
        n = service(text.strip()) if text else None
    if n is None or n > 0xFFFF:
        raise Bad(f"invalid port/service `{text}' specified", text)
    return n


def read_loose_port(text: str) -> int:
    """A port as the newer matches read it: decimal or a service; too large a number loses its upper bits."""
    number = re.fullmatch(r"\s*([+-]?\d+)|", text)
    if number and int(number[1] or 0) & 0x80000000 == 0:
        return int(number[1] or 0) & 0xFFFF
    n = service(text)
    if n is None:
        raise Bad(f'Port "{text}" does not resolve to anything.', text)
    return n


def read_number(name: str, option: str, text: str, high: int, low: int = 0, near: bool = False) -> int:
    n = integer(text)
    if n is None or not low <= n <= high:
        where = f' near "{text}"' if near else ""
        raise Bad(f'{name}: bad value for option "{option}"{where}, or out of range ({low}-{high}).', text)
    return n


def read_range(name: str, option: str, text: str, high: int) -> tuple[int, int]:
    """`a`, `a:b`, `a:` or `:b`."""
    parts = text.split(":")
    if len(parts) > 2:
        raise Bad(f'{name}: Too many components for option "{option}" (max: 2)', text)
    if len(parts) == 1:
        n = read_number(name, option, text, high, near=True) if text else 0
        return n, n
    lo = read_number(name, option, parts[0], high, near=True) if parts[0] else 0
    return lo, read_number(name, option, parts[1], high, near=True) if parts[1] else high


def span(lo: int, hi: int) -> str:
    return str(lo) if lo == hi else f"{lo}:{hi}"


def read_masked(name: str, option: str, text: str) -> tuple[int, int]:
    """`value[/mask]` of 32 bits."""
    value, slash, mask = text.partition("/")
    v, m = integer(value), integer(mask) if slash else M32
    if v is None or m is None or v > M32 or m > M32:
        raise Bad(f'{name}: bad integer value for option "{option}", or out of range.', text)
    return v, m


def hex_masked(value: int, mask: int) -> str:
    return f"{value:#x}" if mask == M32 else f"{value:#x}/{mask:#x}"


def read_quad(text: str, filled: Callable[[list[int]], int]) -> int | None:
    parts = text.split(".")
    numbers = [integer(part) for part in parts]
    if not 1 <= len(parts) <= 4 or None in numbers:
        return None
    known = [n for n in numbers if n is not None]
    if any(n > 255 for n in known):
        return None
    return filled(known)


def last_fills(octets: list[int]) -> int:
    return int.from_bytes(bytes([*octets[:-1], *[0] * (4 - len(octets)), octets[-1]]), "big")


def zeros_follow(octets: list[int]) -> int:
    return int.from_bytes(bytes([*octets, *[0] * (4 - len(octets))]), "big")


def read_host(text: str) -> int:
    """An address; names are never looked up. `10.1` is 10.0.0.1, as inet_aton has it."""
    parts = text.split(".")
    if len(parts) <= 4 and all(re.fullmatch(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*", part) for part in parts):
        *first, last = [int(part, 8 if re.fullmatch("0[0-7]+", part) else 0) for part in parts]
        if all(n < 256 for n in first) and last < 1 << 8 * (4 - len(first)):
            return int.from_bytes(bytes([*first, *last.to_bytes(4 - len(first), "big")]), "big")
    raise Bad("getaddrinfo: Name or service not known", text, "netemu looks up no names: write the address")


def read_network(name: str, option: str, text: str) -> tuple[int, int]:
    """`address[/mask]`: (address as written, mask)."""
    address, slash, width = text.partition("/")
    host = read_host(address)
    return host, read_netmask(name, option, width) if slash else M32


def read_netmask(name: str, option: str, text: str) -> int:
    n = integer(text)
    if n is not None:
        return M32 << (32 - min(n, 32)) & M32
    mask = read_quad(text, last_fills) if "." in text else None
    if mask is None:
        raise Bad(f'{name}: bad value for option "{option}", neither a valid network mask nor valid CIDR (0-32).', text)
    return mask


def prefix_length(mask: int) -> int | None:
    bits = f"{mask:032b}".rstrip("0")
    return len(bits) if "0" not in bits else None


def address_and_width(address: int, mask: int) -> str:
    width = prefix_length(mask)
    return dotted(address) if width in (None, 32) else f"{dotted(address)}/{width}"


def read_protocol(text: str) -> int:
    n = integer(text)
    if n is None:
        n = PROTOCOLS.get(text.lower())
    if n is None or n > 255:
        raise Bad(f'unknown protocol "{text}" specified', text)
    return n


def read_names(text: str, names: Iterable[str], complaint: str) -> frozenset[str]:
    """Names out of a list with commas; a beginning of a name will do, the first that fits is meant."""
    out = set()
    for word in text.split(","):
        hit = next((name for name in names if word and name.startswith(word.upper())), None)
        if hit is None:
            raise Bad(f'{complaint} "{word}"', word or text, "one of " + ", ".join(names))
        out.add(hit)
    return frozenset(out)
