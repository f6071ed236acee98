"""ipvsadm: the tool's language, read and printed as ipvsadm 1.31 does.

    words --Command--> a change to Ipvs, or a text        Ipvs --save, list, connections--> text

Ipvs itself knows no words. What the tool would refuse is refused here in its own words and with its exit status: 2 for
wrong options, 255 for options that it does not know and for what the kernel refuses.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from functools import cmp_to_key
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from netemu.clock import minutes
from netemu.conntrack import dotted
from netemu.errors import REFUSED, UNSUPPORTED, Problem, Refused, Unsupported
from netemu.ipvs import (
    ASSURED,
    ES,
    FOUND,
    FW,
    MASQ,
    NAMES,
    PLAIN_TUNNEL,
    ROUTE,
    SCTP_STATES,
    STATES,
    TEMPLATE,
    TUNNEL,
    Destination,
    Encapsulation,
    Ipvs,
    Service,
    Settings,
)
from netemu.packets import SCTP, TCP, UDP
from netemu.schedulers import SCHEDULERS

METHODS = {MASQ: "Masq", TUNNEL: "Tunnel", ROUTE: "Route"}
METHOD_OPTIONS = {MASQ: "-m", TUNNEL: "-i", ROUTE: "-g"}
CONN_TAB_SIZE = 4096
DOTTED = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)")


class Ipvsadm:
    """The tool, for one node's IPVS."""

    def __init__(self, ipvs: Ipvs) -> None:
        self.ipvs = ipvs

    def restore(self, text: str, file: str, problems: list[Problem]) -> None:
        """Take `ipvsadm -Sn` text; what cannot be taken goes to `problems`. Comments are passed over."""
        lines = [(number, line, line.split()) for number, line in enumerate(text.splitlines(), 1)]
        lines = [(number, line, words) for number, line, words in lines if words and not words[0].startswith("#")]
        hosts = {word.partition(":")[0] for _, _, words in lines for option, word in pairwise(words) if option == "-r"}
        addrs = (int.from_bytes(socket.inet_aton(host), "big") for host in hosts if DOTTED.fullmatch(host))
        self.ipvs.look_at(np.fromiter(addrs, np.uint32))
        for number, line, words in lines:
            if words[0] == "ipvsadm":
                words = words[1:]
            try:
                if words and words[0] in ("-L", "-l", "-S", "-R", "--list", "--save", "--restore"):
                    raise Refused(f"`{words[0]}` changes nothing: only lines that add, edit or delete belong here")
                Command(words).run(self, 0)
            except (Refused, Unsupported) as e:
                for problem in e.problems:
                    kind = REFUSED if isinstance(e, Refused) else UNSUPPORTED
                    problems.append(
                        Problem(kind, problem.what, file, number, line, _span(line, problem.text), problem.hint)
                    )

    def run(self, argv: list[str], now: int, stdin: str = "") -> str:
        """An `ipvsadm` command (with or without that first word); what it prints. Raises Refused, Unsupported.

        Its standard input is `stdin`, or the file that `< FILE` at its end names.
        """
        words = argv[1:] if argv and argv[0].rsplit("/", 1)[-1] == "ipvsadm" else list(argv)
        for at, word in enumerate(words):
            if word.startswith("<"):
                path = word[1:] or " ".join(words[at + 1 :])
                try:
                    stdin = Path(path).read_text()
                except OSError as error:
                    raise Refused(f"cannot read {path}: {error.strerror}", status=2, text=path) from None
                del words[at:]
                break
        return Command(words).run(self, now, stdin)

    # ---- what it prints ----------------------------------------------------------------------------------------

    def _host(self, addr: int, numeric: bool) -> str:
        """An address; without -n, the name that every host has for itself, for there is no resolver to ask."""
        if numeric:
            return dotted(addr)
        if addr == LOCALHOST:
            return "localhost"
        self.ipvs.node.caveat("ipvsadm without -n: hosts are not looked up, ports have this machine's names")
        return dotted(addr)

    def _where(self, addr: int, port: int, proto: int, numeric: bool) -> str:
        """`10.96.0.10:80`, or `10.96.0.10:http`."""
        name = str(port)
        if not numeric and port:
            with contextlib.suppress(OSError):
                name = socket.getservbyport(port, NAMES.get(proto, "tcp"))
        return f"{self._host(addr, numeric)}:{name}"

    def save(self, numeric: bool = True) -> str:
        """`ipvsadm -Sn`."""
        return "".join(
            f"{line}\n" for service in self._sorted(self.ipvs.services) for line in self._save_lines(service, numeric)
        )

    def _save_lines(self, service: Service, numeric: bool) -> Iterator[str]:
        name = (
            f"-f {_signed(service.mark)}"
            if service.mark
            else f"{PROTO_OPTIONS[service.proto]} {self._where(service.addr, service.port, service.proto, numeric)}"
        )
        line = f"-A {name} -s {service.scheduler.name}"
        if service.timeout:
            line += f" -p {service.timeout}"
            if service.netmask != 0xFFFFFFFF:
                line += f" -M {dotted(service.netmask)}"
        if service.one_packet:
            line += " -o"
        if service.flags:
            line += " -b " + ",".join(service.flags)
        yield line
        for dest in _merge_sorted(service.destinations, _dest_order):
            where = self._where(dest.addr, dest.port, service.proto, numeric)
            tunnel = _tunnel_words(dest.tunnel) if dest.method == TUNNEL else ""
            yield f"-a {name} -r {where} {METHOD_OPTIONS[dest.method]} -w {dest.weight}{tunnel}"

    def _sorted(self, services: list[Service]) -> list[Service]:
        known = sorted(services, key=lambda s: s.identity)
        return _merge_sorted(known, _service_order)

    def list(
        self,
        *,
        services: list[Service] | None = None,
        what: str = "",
        exact: bool = False,
        sort: bool = True,
        numeric: bool = True,
    ) -> str:
        """`ipvsadm -Ln`; `what`: "", "stats", "rate", "thresholds", "persistent-conn" or "tun-info"."""
        ipvs = self.ipvs
        ipvs.look(ipvs.node.now)
        out = [] if services is not None else [f"IP Virtual Server version 1.2.1 (size={CONN_TAB_SIZE})"]
        out += LIST_HEADS[what]
        chosen = list(reversed(ipvs.services)) if services is None else services
        for service in self._sorted(chosen) if sort else chosen:
            name = (
                f"FWM  {_signed(service.mark)}"
                if service.mark
                else f"{NAMES[service.proto].upper():<4} "
                + self._where(service.addr, service.port, service.proto, numeric)
            )
            if what in ("stats", "rate"):
                out.append(f"{name:<33}" + self._numbers(service.stat, what, exact))
            else:
                out.append(name + self._settings(service))
            for dest in _merge_sorted(service.destinations, _dest_order) if sort else service.destinations:
                where = self._where(dest.addr, dest.port, service.proto, numeric)
                out.append(f"  -> {where:<28}" + self._dest_line(dest, what, exact))
        return "".join(f"{line}\n" for line in out)

    def _settings(self, service: Service) -> str:
        line = f" {service.scheduler.name}"
        if service.flags:
            line += f" ({','.join(service.flags)})"
        if service.timeout:
            line += f" persistent {service.timeout}"
            if service.netmask != 0xFFFFFFFF:
                line += f" mask {dotted(service.netmask)}"
        return line + (" ops" if service.one_packet else "")

    def _dest_line(self, d: Destination, what: str, exact: bool) -> str:
        if what in ("stats", "rate"):
            return self._numbers(d.stat, what, exact)
        if what == "thresholds":
            return f" {d.upper:<10d} {d.lower:<10d} {d.active:<10d} {d.inactive:<10d}"
        if what == "persistent-conn":
            return f" {d.weight:<9d} {d.persistent:<11d} {d.active:<10d} {d.inactive:<10d}"
        tunnel = f" {_tunnel_info(d):<13}" if what == "tun-info" else ""
        return f" {METHODS[d.method]:<7}{tunnel} {d.weight:<6d} {d.active:<10d} {d.inactive:<10d}"

    def _numbers(self, stat: int, what: str, exact: bool) -> str:
        numbers = self.ipvs.rates(stat) if what == "rate" else self.ipvs.counters[stat].tolist()
        return "".join(_large(n, exact) for n in numbers)

    def stats(self) -> str:
        """`ipvsadm -Ln --stats --exact`, up to the last packet (Linux shows them up to two seconds late)."""
        return self.list(what="stats", exact=True)

    def connections(self, now: int, numeric: bool = True) -> str:
        """`ipvsadm -Lnc`, oldest first (Linux: in hash order)."""
        self.ipvs.look(now)
        t = self.ipvs.conns
        out = ["IPVS connection entries", "pro expire state       source             virtual            destination"]
        live = np.flatnonzero(t.live & ((t.flags & FOUND) != 0))
        for c in live[np.argsort(t.serial[live])].tolist():
            proto, flags = int(t.proto[c]), int(t.flags[c])
            if flags & TEMPLATE:
                state = "ASSURED" if flags & ASSURED else "NONE"
            else:
                state = "UDP" if proto == UDP else (STATES if proto == TCP else SCTP_STATES)[int(t.state[c])]
            client, virtual, server = (
                self._where(int(addr[c]), int(port[c]), proto, numeric)
                for addr, port in ((t.caddr, t.cport), (t.vaddr, t.vport), (t.daddr, t.dport))
            )
            name = NAMES[proto].upper() if proto else "IP"
            out.append(f"{name:<3} {minutes(int(t.deadline[c]), now)}  {state:<11} {client:<18} {virtual:<18} {server}")
        return "".join(f"{line}\n" for line in out)


LOCALHOST = 127 << 24 | 1


def _tunnel_words(tunnel: Encapsulation) -> str:
    """How `ipvsadm -S` says what packets travel in."""
    port = f" --tun-port {tunnel.port}" if tunnel.kind == "gue" else ""
    check = f" --tun-{tunnel.checksum}" if tunnel.kind != "ipip" else ""
    return f" --tun-type {tunnel.kind}{port}{check}"


def _tunnel_info(dest: Destination) -> str:
    """How `ipvsadm -L --tun-info` does."""
    tunnel = dest.tunnel
    if dest.method != TUNNEL or tunnel.kind == "ipip":
        return "ipip" if dest.method == TUNNEL else "n/a"
    port = f":{tunnel.port}" if tunnel.kind == "gue" else ""
    return f"{tunnel.kind}{port}:{ {'nocsum': '-c', 'csum': '+c', 'remcsum': 'r+c'}[tunnel.checksum] }"


PROTO_OPTIONS = {TCP: "-t", UDP: "-u", SCTP: "--sctp-service"}
_STATS_HEAD = "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes"
LIST_HEADS = {
    "": [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ],
    "stats": [_STATS_HEAD, "  -> RemoteAddress:Port"],
    "rate": [
        "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS",
        "  -> RemoteAddress:Port",
    ],
    "thresholds": [
        "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ],
    "persistent-conn": [
        "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ],
    "tun-info": [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn",
    ],
}


def _large(n: int, exact: bool) -> str:
    """A counter in nine columns, as ipvsadm abbreviates it.

    >>> _large(99999999, False), _large(123456789, False), _large(5 * 10**12, False), _large(123456789, True)
    (' 99999999', '  123456K', '    5000G', ' 123456789')
    """
    if exact:
        return f"{n:>9d}" if n < 10**8 else f" {n:d}"
    if n < 10**8:
        return f"{n:>9d}"
    for limit, unit, letter in ((10**9, 10**3, "K"), (10**11, 10**6, "M"), (10**14, 10**9, "G")):
        if n < limit:
            return f"{n // unit:>8d}{letter}"
    return f"{n // 10**12:>8d}T"


def _signed(word: int) -> int:
    """A 32-bit word as a signed int.

    >>> _signed(7), _signed(0xFFFFFFFF)
    (7, -1)
    """
    return word - (1 << 32) if word & 0x80000000 else word


def _service_order(a: Service, b: Service) -> int:
    """As ipvsadm sorts: it subtracts, so addresses more than half the space apart compare the other way round."""
    return (
        _signed((a.mark - b.mark) & 0xFFFFFFFF)
        or a.proto - b.proto
        or _signed((a.addr - b.addr) & 0xFFFFFFFF)
        or a.port - b.port
    )


def _dest_order(a: Destination, b: Destination) -> int:
    return _signed((a.addr - b.addr) & 0xFFFFFFFF) or a.port - b.port


def _merge_sorted(items: list[Any], order: Callable[[Any, Any], int]) -> list[Any]:
    """A merge sort, spelt out: with an order that is not transitive (see _service_order) the method shows.

    >>> _merge_sorted([3, 1, 2], lambda a, b: a - b)
    [1, 2, 3]
    """
    if len(items) < 2:
        return list(items)
    if len(items) > 16 and all(getattr(x, "addr", 0) < 1 << 31 for x in items):
        return sorted(items, key=cmp_to_key(order))  # all in one half: an order like any other
    half = len(items) // 2
    left, right = _merge_sorted(items[:half], order), _merge_sorted(items[half:], order)
    out, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if order(left[i], right[j]) <= 0:
            out.append(left[i])
            i += 1
        else:
            out.append(right[j])
            j += 1
    return out + left[i:] + right[j:]


def _span(line: str, word: str) -> tuple[int, int] | None:
    at = line.find(word) if word else -1
    return None if at < 0 else (at, at + len(word))


# ---- commands ---------------------------------------------------------------------------------------------------

ILLEGAL, USAGE, KERNEL = 2, 255, 255  # exit statuses: wrong options, unknown options, what the kernel refused
LONGEST = 31 * 24 * 3600

_VERBS = {
    "add-service": "A", "edit-service": "E", "delete-service": "D", "clear": "C", "restore": "R", "save": "S",
    "add-server": "a", "edit-server": "e", "delete-server": "d", "list": "Ll", "zero": "Z", "set": "",
    "start-daemon": "", "stop-daemon": "", "help": "h",
}  # fmt: skip
#: long name -> (letter, how many words follow: 0, 1, or -1 for "one, perhaps")
_OPTIONS = {
    "tcp-service": ("t", 1), "udp-service": ("u", 1), "sctp-service": ("", 1), "fwmark-service": ("f", 1),
    "scheduler": ("s", 1), "persistent": ("p", -1), "netmask": ("M", 1), "real-server": ("r", 1),
    "masquerading": ("m", 0), "ipip": ("i", 0), "gatewaying": ("g", 0), "weight": ("w", 1), "u-threshold": ("x", 1),
    "l-threshold": ("y", 1), "numeric": ("n", 0), "connection": ("c", 0), "timeout": ("", 0), "daemon": ("", 0),
    "stats": ("", 0), "rate": ("", 0), "thresholds": ("", 0), "persistent-conn": ("", 0), "nosort": ("", 0),
    "sort": ("", 0), "exact": ("", 0), "ipv6": ("6", 0), "ops": ("o", 0), "pe": ("", 1), "sched-flags": ("b", 1),
    "tun-info": ("", 0), "tun-type": ("", 1), "tun-port": ("", 1), "tun-nocsum": ("", 0), "tun-csum": ("", 0),
    "tun-remcsum": ("", 0), "syncid": ("", 1), "mcast-interface": ("", 1), "sync-maxlen": ("", 1),
}  # fmt: skip
_LETTERS = {letter: (name, words) for name, (letter, words) in _OPTIONS.items() if letter}
_SHORT = {f"-{letter}": option for letter, option in _LETTERS.items()}
_VERB_LETTERS = {letter: name for name, letters in _VERBS.items() for letter in letters}
_GROUPS = {
    **dict.fromkeys(("tcp-service", "udp-service", "sctp-service", "fwmark-service"), "service-address"),
    **dict.fromkeys(("masquerading", "ipip", "gatewaying"), "forwarding-method"),
}
_TUNNEL = {"tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"}
_SERVICE = {"scheduler", "persistent", "netmask", "ops", "pe", "sched-flags", "ipv6"}
_SERVER = {"forwarding-method", "weight", "u-threshold", "l-threshold", "ipv6"} | _TUNNEL
_LIST = {
    "service-address", "numeric", "connection", "timeout", "daemon", "stats", "rate", "thresholds", "persistent-conn",
    "nosort", "sort", "exact", "ipv6", "tun-info",
}  # fmt: skip
_ADDRESS, _BOTH = {"service-address"}, {"service-address", "real-server"}
#: verb -> (options that it needs, options that it takes)
_TAKES: dict[str, tuple[set[str], set[str]]] = {
    "add-service": (_ADDRESS, _SERVICE), "edit-service": (_ADDRESS, _SERVICE), "delete-service": (_ADDRESS, {"ipv6"}),
    "clear": (set(), set()), "restore": (set(), set()), "save": (set(), {"numeric"}),
    "add-server": (_BOTH, _SERVER), "edit-server": (_BOTH, _SERVER), "delete-server": (_BOTH, {"ipv6"}),
    "list": (set(), _LIST), "zero": (set(), {"service-address", "ipv6"}), "set": (set(), set()),
    "start-daemon": (set(), {"syncid", "mcast-interface", "sync-maxlen"}), "stop-daemon": (set(), {"syncid"}),
    "help": (set(), set(_OPTIONS)),
}  # fmt: skip
_METHODS = {"masquerading": MASQ, "ipip": TUNNEL, "gatewaying": ROUTE}
_PROTOS = {"tcp-service": TCP, "udp-service": UDP, "sctp-service": SCTP}
_FLAG_NAMES = {"flag-1": 0, "flag-2": 1, "flag-3": 2, "sh-fallback": 0, "sh-port": 1, "mh-fallback": 0, "mh-port": 1}
_TELLING = ("restore", "save", "list")  # verbs that need the tool, not IPVS alone
_TRY = "Try `ipvsadm -h' or 'ipvsadm --help' for more information."


class Command:
    """One `ipvsadm` command line. Raises Refused in the tool's own words and with its exit status."""

    def __init__(self, words: list[str]) -> None:
        self.verb = ""
        self.given: dict[str, str] = {}  # option (or the group it belongs to) -> its word
        self.chosen: dict[str, str] = {}  # group -> which of its options
        self.rest: list[str] = []
        if not words:
            self.verb = "list"
        self._read(words)
        if not self.verb:
            raise Refused(_TRY, status=USAGE)
        if self.rest and self.verb != "set":
            raise Refused(f"unexpected argument {self.rest[0]}", status=ILLEGAL, text=self.rest[0])
        self._allowed()

    def _read(self, words: list[str]) -> None:
        todo = list(words)
        while todo:
            word = todo.pop(0)
            if word == "--":
                self.rest += todo
                break
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                if name in _VERBS:
                    self._take_verb(name, word)
                elif name in _OPTIONS:
                    self._take(name, _OPTIONS[name][1], value if equals else None, todo, word)
                else:
                    raise Refused(f"{word}: unknown option", status=USAGE, text=word)
            elif word.startswith("-") and len(word) > 1:
                self._read_letters(word, todo)
            else:
                self.rest.append(word)

    def _read_letters(self, word: str, todo: list[str]) -> None:
        if word in _SHORT:  # as nearly all are
            name, words = _SHORT[word]
            self._take(name, words, None, todo, word)
            return
        at = 1
        while at < len(word):
            letter = word[at]
            at += 1
            if letter in _VERB_LETTERS:
                self._take_verb(_VERB_LETTERS[letter], f"-{letter}")
            elif letter in _LETTERS:
                name, words = _LETTERS[letter]
                joined = word[at:].removeprefix("=") or None
                self._take(name, words, joined if words else None, todo, word)
                if words and joined is not None:
                    return
            else:
                raise Refused(f"{word}: unknown option", status=USAGE, text=word)

    def _take_verb(self, name: str, word: str) -> None:
        if self.verb:
            raise Refused(f"invalid option `{word}'", status=ILLEGAL, text=word)
        self.verb = name

    def _take(self, name: str, words: int, value: str | None, todo: list[str], word: str) -> None:
        if not self.verb:  # the command comes first
            raise Refused(_TRY, status=USAGE)
        if words == 1 and value is None:
            if not todo:
                raise Refused(f"{word}: missing argument", status=USAGE, text=word)
            value = todo.pop(0)
        elif words < 0 and value is None and todo and not todo[0].startswith("-"):
            value = todo.pop(0)
        group = _GROUPS.get(name, name)
        if group in self.given:
            raise Refused(f"multiple '{group}' options specified", status=ILLEGAL, text=word)
        self.given[group], self.chosen[group] = value or "", name

    def _allowed(self) -> None:
        needs, takes = _TAKES[self.verb]
        shown = {"clear": "flush"}.get(self.verb, self.verb)
        for name in sorted(needs - set(self.given), reverse=True):
            raise Refused(f"You need to supply the '{name}' option for the '{shown}' command", status=ILLEGAL)
        for name in self.given:
            if name not in needs | takes:
                raise Refused(f"Illegal '{name}' option with the '{shown}' command", status=ILLEGAL)

    # ---- words ---------------------------------------------------------------------------------------------------

    def _number(self, name: str, lowest: int, highest: int, message: str) -> int:
        word = self.given[name]
        if not (word.isascii() and word.isdigit() and lowest <= int(word) <= highest):
            raise Refused(message.format(word), status=ILLEGAL, text=word)
        return int(word)

    def _endpoint(self, word: str, proto: int, message: str) -> tuple[int, int | None]:
        """(address, port or None) of `addr[:port]`."""
        if word.startswith("[") or word.count(":") > 1:
            raise Unsupported(f"IPv6 address {word}", text=word, hint="IPVS is modelled for IPv4 only")
        host, colon, name = word.partition(":")
        port: int | None = None
        try:
            if host != host.strip():
                raise OSError
            addr = int.from_bytes(socket.inet_aton(host), "big")
            if colon:
                port = (
                    int(name)
                    if name.isascii() and name.isdigit()
                    else socket.getservbyname(name, NAMES.get(proto, "tcp"))
                )
                if port > 0xFFFF:
                    raise OSError
        except (OSError, ValueError):
            raise Refused(message, status=ILLEGAL, text=word) from None
        return addr, port

    def _identity(self) -> tuple[int, int, int, int]:
        option, word = self.chosen["service-address"], self.given["service-address"]
        if "ipv6" in self.given:
            raise Unsupported("-6: IPVS is modelled for IPv4 only", text="-6")
        if option == "fwmark-service":
            return 0, 0, 0, self._number("service-address", 1, 0xFFFFFFFF, "invalid fwmark value `{}' specified")
        proto = _PROTOS[option]
        addr, port = self._endpoint(word, proto, "illegal virtual server address[:port] specified")
        return proto, addr, port or 0, 0

    def _service_of(self, ipvs: Ipvs, message: str, status: int = KERNEL) -> Service:
        service = ipvs.named(self._identity())
        if service is None:
            raise Refused(message, status=status, text=self.given["service-address"])
        return service

    # ---- deeds -----------------------------------------------------------------------------------------------------

    def run(self, tool: Ipvsadm, now: int, stdin: str = "") -> str:
        """Do it; returns what it prints."""
        deed = getattr(self, "_" + self.verb.replace("-", "_"))
        out: str | None = deed(tool.ipvs, now, stdin) if self.verb not in _TELLING else deed(tool, now, stdin)
        return out or ""

    def _add_service(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = Service(*self._identity())
        scheduler = self._settings(service)
        ipvs.add_service(service, scheduler)

    def _edit_service(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        wish = Service(*self._identity())
        scheduler = self._settings(wish)
        service = self._service_of(ipvs, "No such service")
        ipvs.set_scheduler(service, scheduler)
        service.flags, service.timeout, service.netmask = wish.flags, wish.timeout, wish.netmask
        service.one_packet = wish.one_packet
        ipvs.changed(service)

    def _settings(self, service: Service) -> str:
        """Read the options of a service into it; the scheduler's name."""
        scheduler = self.given.get("scheduler") or "wlc"
        if "pe" in self.given:
            if self.given["pe"] != "sip":
                raise Refused("Scheduler or persistence engine not found", status=KERNEL, text=self.given["pe"])
            raise Unsupported("persistence engine `sip'", text="--pe")
        if "persistent" in self.given:
            service.timeout = 360
            if self.given["persistent"]:
                service.timeout = self._number("persistent", 1, LONGEST, "invalid timeout value `{}' specified")
        if "netmask" in self.given:
            try:
                service.netmask = int.from_bytes(socket.inet_aton(self.given["netmask"]), "big")
            except OSError:
                raise Refused(
                    "illegal virtual server persistent mask specified", status=ILLEGAL, text=self.given["netmask"]
                ) from None
        if "ops" in self.given:
            if service.proto not in (UDP, 0):
                raise Refused("One-Packet Scheduling is only for UDP virtual services", status=ILLEGAL)
            service.one_packet = True
        if not service.mark and not service.port and not service.timeout:
            raise Refused(
                "Zero port specified for non-persistent service", status=ILLEGAL, text=self.given["service-address"]
            )
        service.flags = self._flags(scheduler)
        return scheduler

    def _flags(self, scheduler: str) -> tuple[str, ...]:
        bits = set()
        for word in filter(None, self.given.get("sched-flags", "").split(",")):
            if word not in _FLAG_NAMES:
                raise Refused(f"invalid scheduler flag `{word}'", status=ILLEGAL, text=word)
            if not word.startswith(("flag-", f"{scheduler}-")):
                raise Refused(f"incompatible scheduler flag `{word}'", status=ILLEGAL, text=word)
            bits.add(_FLAG_NAMES[word])
        own = SCHEDULERS[scheduler].FLAGS if scheduler in SCHEDULERS else ()
        return tuple(own[bit] if bit < len(own) else f"flag-{bit + 1}" for bit in sorted(bits))

    def _delete_service(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        ipvs.delete_service(self._service_of(ipvs, "No such service"), now)

    def _clear(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        ipvs.flush(now)

    def _restore(self, tool: Ipvsadm, now: int, stdin: str) -> str:
        told = []
        for line in stdin.splitlines():
            words = line.split()
            if not words:
                continue
            try:
                told.append(Command(words[1:] if words[0] == "ipvsadm" else words).run(tool, now))
            except Refused as e:
                if e.status != KERNEL or e.problems[0].what == _TRY:
                    raise  # what only the kernel refuses is told, and the next line is read
        return "".join(told)

    def _save(self, tool: Ipvsadm, now: int, stdin: str) -> str:
        return tool.save("numeric" in self.given)

    def _server(self, service: Service) -> tuple[int, int, Settings]:
        """(address, port, settings) of `-r`."""
        method = _METHODS[self.chosen["forwarding-method"]] if "forwarding-method" in self.given else ROUTE
        addr, port = self._endpoint(
            self.given["real-server"], service.proto, "illegal real server address[:port] specified"
        )
        numbers = {"weight": 1, "u-threshold": 0, "l-threshold": 0}
        for name in numbers:
            if name in self.given:
                numbers[name] = self._number(name, 0, 0x7FFFFFFF, f"illegal {name.replace('-', '_')} specified")
        how = Settings(method, numbers["weight"], numbers["u-threshold"], numbers["l-threshold"], self._tunnel(method))
        if port is None:
            port = service.port
        if method != MASQ and not service.mark and self.verb != "delete-server":
            port = service.port  # no translation, so no other port
        return addr, port, how

    def _tunnel(self, method: int) -> Encapsulation:
        if not _TUNNEL & set(self.given):
            return PLAIN_TUNNEL
        kind = self.given.get("tun-type", "ipip")
        if kind not in ("ipip", "gue", "gre"):
            raise Refused("illegal tunnel type specified", status=ILLEGAL, text=kind)
        port = 0
        if "tun-port" in self.given:
            port = self._number("tun-port", 1, 0xFFFF, "illegal tunnel port specified")
        if method != TUNNEL:
            raise Refused("Tunnel options conflict with forward method", status=ILLEGAL)
        if kind == "gue" and not port:
            raise Refused("You need to supply the 'tun-port' option for the 'gue' tunnel type", status=ILLEGAL)
        fits = {"ipip": (), "gre": ("tun-nocsum", "tun-csum")}.get(kind, tuple(_TUNNEL))
        for name in ("tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"):
            if name in self.given and name not in fits:
                raise Refused(f"Illegal '{name}' option with the '{kind}' tunnel type", status=ILLEGAL)
        sums = [name for name in ("tun-csum", "tun-nocsum", "tun-remcsum") if name in self.given]
        if len(sums) > 1:
            raise Refused(
                f"The option '{sums[0]}' conflicts with the '{sums[1]}' option in the '{kind}' tunnel type",
                status=ILLEGAL,
            )
        return Encapsulation(kind, port, sums[0].removeprefix("tun-") if sums else "nocsum")

    def _add_server(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = self._service_of(ipvs, "Service not defined")
        ipvs.add_destination(service, *self._server(service))

    def _edit_server(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = self._service_of(ipvs, "Service not defined")
        addr, port, how = self._server(service)
        ipvs.edit_destination(service, self._destination(service, addr, port), how)

    def _delete_server(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        service = self._service_of(ipvs, "Service not defined")
        addr, port, _ = self._server(service)
        ipvs.delete_destination(service, self._destination(service, addr, port), now)

    def _destination(self, service: Service, addr: int, port: int) -> Destination:
        for dest in service.destinations:
            if dest.addr == addr and dest.port == port:
                return dest
        raise Refused("No such destination", status=KERNEL, text=self.given["real-server"])

    def _zero(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        ipvs.zero(self._service_of(ipvs, "No such service") if "service-address" in self.given else None)

    def _set(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        if len(self.rest) != 3:
            raise Refused("--set option requires 3 timeout values", status=ILLEGAL)
        values = []
        for word in self.rest:
            if not (word.isascii() and word.isdigit() and int(word) <= LONGEST):
                raise Refused(f"invalid timeout value `{word}' specified", status=ILLEGAL, text=word)
            values.append(int(word))
        ipvs.set_timeouts(*values)

    def _list(self, tool: Ipvsadm, now: int, stdin: str) -> str:
        given, ipvs, numeric = self.given, tool.ipvs, "numeric" in self.given
        shows = {"stats", "rate", "thresholds", "persistent-conn", "tun-info"} & set(given)
        for name in ("connection", "timeout", "daemon"):
            if name not in given:
                continue
            for other in ("service-address", "connection", "timeout", "daemon"):
                if other in given and other != name:
                    first, second = (other, name) if name == "connection" else (name, other)
                    raise Refused(
                        f"The option '{first}' conflicts with the '{second}' option in the 'list' command",
                        status=ILLEGAL,
                    )
            if shows - {"tun-info"}:
                raise Refused("options conflicts in the list command", status=ILLEGAL)
        if "timeout" in given:
            return f"Timeout (tcp tcpfin udp): {ipvs.timeouts[ES]} {ipvs.timeouts[FW]} {ipvs.udp_timeout}\n"
        if "daemon" in given:
            return ""
        if "connection" in given:
            return tool.connections(now, numeric)
        chosen = [self._service_of(ipvs, "No such service", 1)] if "service-address" in given else None
        what = next((w for w in ("stats", "rate", "thresholds", "persistent-conn", "tun-info") if w in given), "")
        return tool.list(
            services=chosen, what=what, exact="exact" in given, sort="nosort" not in given, numeric=numeric
        )

    def _start_daemon(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        raise Unsupported("connection synchronisation between directors")

    def _stop_daemon(self, ipvs: Ipvs, now: int, stdin: str) -> None:
        raise Refused("No daemon is running", status=KERNEL)

    def _help(self, ipvs: Ipvs, now: int, stdin: str) -> str:
        return "ipvsadm v1.31, as netemu reads it: see man ipvsadm\n"
