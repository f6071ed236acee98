"""The conntrack command: connections listed, counted, made, changed and deleted while traffic goes on.

Words, conditions, messages and exit statuses as in conntrack-tools 1.4.7. What it prints beside a listing ("N flow
entries have been shown.") is left out; where nothing was found to delete or change, that is the error.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from netemu.clock import SECOND
from netemu.conntrack import (
    ASSURED,
    CONFIRMED,
    DST_NAT,
    DST_NAT_DONE,
    EXPECTED,
    PROTOCOLS,
    SEEN_REPLY,
    SIDES,
    SRC_NAT,
    SRC_NAT_DONE,
    Tuple,
    dotted,
    inverse,
)
from netemu.errors import Refused, Unsupported
from netemu.packets import GRE, ICMP, PORTED, TCP, Mask
from netemu.tcp import STATES

if TYPE_CHECKING:
    from netemu.node import Node

SIGNATURE = "conntrack v1.4.7 (conntrack-tools): "
HINT = "Try `conntrack -h' or 'conntrack --help' for more information."
ACTIONS = {
    "-L": "list", "--dump": "list", "-G": "get", "--get": "get", "-D": "delete", "--delete": "delete",
    "-I": "create", "--create": "create", "-A": "add", "--add": "add", "-U": "update", "--update": "update",
    "-F": "flush", "--flush": "flush", "-C": "count", "--count": "count", "-E": "event", "--event": "event",
    "-S": "stats", "--stats": "stats", "-R": "load", "--load-file": "load", "-V": "version", "--version": "version",
    "-h": "help", "--help": "help",
}  # fmt: skip
TABLES = ("conntrack", "expect", "dying", "unconfirmed")
#: option -> what it says; its value follows
OPTIONS = {
    "-s": "src", "--src": "src", "--orig-src": "src", "-d": "dst", "--dst": "dst", "--orig-dst": "dst",
    "-r": "reply-src", "--reply-src": "reply-src", "-q": "reply-dst", "--reply-dst": "reply-dst",
    "-p": "proto", "--proto": "proto", "--protonum": "proto", "-t": "timeout", "--timeout": "timeout",
    "-u": "status", "--status": "status", "-m": "mark", "--mark": "mark", "-w": "zone", "--zone": "zone",
    "--orig-zone": "orig-zone", "--reply-zone": "reply-zone", "-o": "output", "--output": "output",
    "-f": "family", "--family": "family", "-b": "buffer", "--buffer-size": "buffer",
}  # fmt: skip
#: value may be left out
NATS = {"-n": "src-nat", "--src-nat": "src-nat", "-g": "dst-nat", "--dst-nat": "dst-nat", "-j": "any-nat",
        "--any-nat": "any-nat"}  # fmt: skip
#: options that the tool has and netemu does not model
FOREIGN = {
    "-l": "labels", "--label": "labels", "--label-add": "labels", "--label-del": "labels", "-c": "secmark",
    "--secmark": "secmark", "-e": "events", "--event-mask": "events", "--tuple-src": "expectations by hand",
    "--tuple-dst": "expectations by hand", "--mask-src": "address masks", "--mask-dst": "address masks",
}  # fmt: skip
PORTS = {
    "--sport": "sport", "--orig-port-src": "sport", "--dport": "dport", "--orig-port-dst": "dport",
    "--reply-port-src": "reply-sport", "--reply-port-dst": "reply-dport",
}  # fmt: skip
ICMPS = {"--icmp-type": "type", "--icmp-code": "code", "--icmp-id": "id"}
KEYS = {"--srckey": "sport", "--dstkey": "dport", "--reply-key-src": "reply-sport", "--reply-key-dst": "reply-dport"}
STATUSES = {"ASSURED": ASSURED, "SEEN_REPLY": SEEN_REPLY, "UNSET": 0, "EXPECTED": EXPECTED}
OUTPUTS = ("xml", "extended", "timestamp", "id", "ktimestamp", "labels", "save", "userspace")


def bad(text: str) -> NoReturn:
    """The command line is wrong."""
    raise Refused(SIGNATURE + text, hint=HINT, status=2)


def failed(text: str) -> NoReturn:
    """The kernel says no, or there is nothing to be done."""
    raise Refused(SIGNATURE + text, status=1)


def address(text: str) -> tuple[int, int]:
    """(address, mask) of `A` or `A/N`."""
    try:
        net = ipaddress.IPv4Network(text, strict=False)
        return int(ipaddress.IPv4Address(text.partition("/")[0])), int(net.netmask)
    except ValueError:
        bad(f"Invalid IP address `{text}'")


def number(text: str) -> int:
    """As strtoul reads it: what does not begin with a digit is 0."""
    digits = text.strip()
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[:1] == "0" else 10
    end = 2 if base == 16 else 0
    while end < len(digits) and digits[end].isalnum() and digits[end].lower() in "0123456789abcdef"[:base]:
        end += 1
    return int(digits[:end] or "0", base) if digits[:end].lower() not in ("", "0x") else 0


@dataclass
class Given:
    """What a command line says: option -> value, and which of NATS were named (value "" where none was given)."""

    action: str = ""
    table: str = "conntrack"
    values: dict[str, str] = field(default_factory=dict)
    nats: dict[str, str] = field(default_factory=dict)
    zero: bool = False

    @property
    def proto(self) -> int | None:
        """Number of the protocol."""
        text = self.values.get("proto")
        if text is None:
            return None
        for n, name in PROTOCOLS.items():
            if text == name:
                return n
        if text.isdigit() and int(text) < 256:
            return int(text)
        bad(f"`{text}' unsupported protocol")

    def number(self, name: str) -> int | None:
        """Value of an option as a number."""
        text = self.values.get(name)
        return None if text is None else number(text)


class ConntrackTool:
    """The command, for one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def run(self, argv: list[str], now: int) -> str:
        """Carry out one command; what it prints. Raises Refused (status 1 or 2) or Unsupported."""
        given = self._parse(argv[1:])
        if given.action in ("", "help"):
            return "Command line interface for the connection tracking system. Version 1.4.7\n"
        if given.action == "version":
            return "conntrack v1.4.7 (conntrack-tools)\n"
        if given.action in ("event", "stats", "load"):
            raise Unsupported(f"conntrack {argv[1]}", hint="netemu knows -L -G -D -I -A -U -F and -C")
        if given.table == "expect":
            return self._expectations(given, now)
        if given.table != "conntrack":
            return ""
        does: dict[str, Callable[[Given, int], str]] = {
            "list": self._list, "get": self._get, "delete": self._delete, "create": self._create, "add": self._create,
            "update": self._update, "flush": self._flush, "count": self._count,
        }  # fmt: skip
        out = does[given.action](given, now)
        self.node.conntrack.end_run()
        return out

    # ---- words

    def _parse(self, words: list[str]) -> Given:
        given = Given()
        k = 0
        while k < len(words):
            word, _, inline = words[k].partition("=") if words[k].startswith("--") else (words[k], "", "")
            following = words[k + 1] if k + 1 < len(words) else None
            k += 1
            if word in ACTIONS:
                if given.action:
                    bad("Invalid commands combination")
                given.action = ACTIONS[word]
                if following is not None and not following.startswith("-") and given.action not in ("load", "stats"):
                    if following not in TABLES:
                        bad(f"unknown type `{following}'")
                    given.table = following
                    k += 1
                continue
            if word in ("-z", "--zero"):
                given.zero = True
                continue
            if word in NATS:
                value = inline or (following if following is not None and not following.startswith("-") else "")
                k += bool(value and not inline)
                given.nats[NATS[word]] = value
                continue
            if word in FOREIGN:
                raise Unsupported(f"conntrack {word} ({FOREIGN[word]})", hint="leave the option out")
            name = OPTIONS.get(word) or self._of_protocol(given).get(word)
            if name is None:
                if not word.startswith("-"):
                    continue
                bad(f"unknown option `{word}'")
            if not inline:
                if following is None:
                    bad(f"option `{word}' requires an argument")
                inline = following
                k += 1
            given.values[name] = inline
        self._check(given)
        return given

    @staticmethod
    def _of_protocol(given: Given) -> dict[str, str]:
        """Options that are there once -p named a protocol."""
        proto = given.proto
        if proto in PORTED:
            return PORTS | ({"--state": "state"} if proto in (TCP, 33, 132) else {})
        return ICMPS if proto == ICMP else KEYS if proto == GRE else {}

    def _check(self, given: Given) -> None:
        for part in given.values.get("output", "").split(","):
            if part and part not in OUTPUTS:
                bad(f"Bad parameter `{given.values['output']}'")
        self._status(given)
        state = given.values.get("state")
        if state is not None and given.proto == TCP and state not in STATES:
            bad(f"unknown TCP state `{state}'")
        if given.zero and given.action != "list":
            bad("Illegal option `--zero' with this command")
        if given.zero and (given.nats or given.values.keys() - {"output", "family"}):
            bad("Can't use -z with filtering parameters")
        for name in ("zone", "orig-zone", "reply-zone") if given.action in ("update", "get") else ():
            if name in given.values:
                bad(f"Illegal option `--{name}' with this command")

    def _status(self, given: Given) -> int:
        bits = 0
        for word in given.values.get("status", "").split(","):
            if word in ("FIXED_TIMEOUT", "OFFLOAD", "HW_OFFLOAD"):
                raise Unsupported(f"conntrack -u {word}", hint="netemu knows ASSURED, SEEN_REPLY, UNSET")
            if word in ("SRC_NAT", "DST_NAT"):
                continue  # the tool says: use --src-nat, --dst-nat
            if word and word not in STATUSES:
                bad(f"Bad parameter `{given.values['status']}'")
            bits |= STATUSES.get(word, 0)
        return bits

    def _needs(self, given: Given, *names: str) -> None:
        for name in names:
            if name not in given.values:
                bad(f"You need to supply the `--{'protonum' if name == 'proto' else name}' option for this command")

    def _tuples(self, given: Given) -> tuple[Tuple, Tuple | None]:
        """(original tuple, reply tuple where one was given)."""
        values, proto = given.values, given.proto
        assert proto is not None
        reply = ("reply-src" in values, "reply-dst" in values)
        if not {"src", "dst"} <= values.keys() and reply != (True, True):
            bad("you have to specify `--src' and `--dst'")
        if proto in PORTED and not {"sport", "dport"} <= values.keys():
            bad("you have to specify `--sport' and `--dport'")
        if proto == GRE and not {"sport", "dport"} <= values.keys():
            bad("you have to specify `--srckey' and `--dstkey'")
        if proto == ICMP and "type" not in values:
            bad("You need to supply the `--icmp-type' option for this command")
        low, high = (number(values.get(name, "0")) & 0xFFFF for name in ("sport", "dport"))
        if proto == ICMP:
            kind, code, low = (number(values.get(name, "0")) for name in ("type", "code", "id"))
            high = (kind & 255) << 8 | code & 255
        src, dst = (address(values.get(name, "0.0.0.0"))[0] for name in ("src", "dst"))
        there = (src, dst, low & 0xFFFF, high, proto)
        if reply == (False, False):
            return there, None
        if proto in PORTED and not {"reply-sport", "reply-dport"} <= values.keys():
            failed("Operation failed: invalid parameters")
        plain = inverse(there)
        back = [address(values[name])[0] if name in values else old
                for name, old in (("reply-src", plain[0]), ("reply-dst", plain[1]))]  # fmt: skip
        ports = [
            number(values.get(name, str(old))) for name, old in (("reply-sport", plain[2]), ("reply-dport", plain[3]))
        ]
        return there, (back[0], back[1], ports[0] & 0xFFFF, ports[1] & 0xFFFF, proto)

    def _zone(self, given: Given) -> int:
        zone = given.number("zone") or 0
        for side in ("orig", "reply"):
            part = given.number(f"{side}-zone")
            if part is not None:
                zone = part | (SIDES[side] if part else 0)
        return zone

    # ---- which connections

    def _chosen(self, given: Given, now: int) -> Mask:
        """bool[capacity]: connections that are there and that all conditions hold of."""
        ct, values = self.node.conntrack, given.values
        mask: Mask = ct.stored & (ct.deadline > now)
        if values.get("family", "ipv4") not in ("ipv4", "unspec"):
            return mask & False
        for name, column in (("src", ct.osrc), ("dst", ct.odst), ("reply-src", ct.rsrc), ("reply-dst", ct.rdst)):
            if name in values:
                value, bits = address(values[name])
                mask &= (column & bits) == value & bits
        for name, ports in (("sport", ct.osport), ("dport", ct.odport), ("reply-sport", ct.rsport),
                            ("reply-dport", ct.rdport), ("id", ct.osport)):  # fmt: skip
            wanted = given.number(name)
            if wanted is not None:
                mask &= ports == wanted
        for name, shift in ("type", 8), ("code", 0):
            wanted = given.number(name)
            if wanted is not None:
                mask &= (ct.odport >> shift & 255) == wanted
        if given.proto is not None:
            mask &= ct.proto == given.proto
        if "mark" in values and given.action in ("list", "delete"):
            mark, _, bits_ = values["mark"].partition("/")
            wild = number(bits_) if bits_ else 0xFFFFFFFF
            mask &= (ct.mark & np.uint32(wild & 0xFFFFFFFF)) == number(mark)
        if given.action in ("list", "delete"):
            if "state" in values and given.proto == TCP:
                mask &= ct.tcp.misc[:, 9] == STATES.index(values["state"])
            wanted = self._status(given)
            mask &= (ct.status & wanted) == wanted
        return mask & self._nats(given) & self._zones(given)

    def _nats(self, given: Given) -> Mask:
        ct = self.node.conntrack
        src, dst = (SRC_NAT, ct.rdst), (DST_NAT, ct.rsrc)
        sides = {"src-nat": [src], "dst-nat": [dst], "any-nat": [src, dst]}
        mask = np.ones(ct.capacity, bool)
        for name, value in given.nats.items():
            one = np.zeros(ct.capacity, bool)
            for bit, column in sides[name]:
                hit = (ct.status & bit) != 0
                if value:
                    wanted, bits = address(value.partition(":")[0])
                    hit &= (column & bits) == wanted & bits
                one |= hit
            mask &= one
        return mask

    def _zones(self, given: Given) -> Mask:
        ct = self.node.conntrack
        mask = np.ones(ct.capacity, bool)
        zone, side = ct.zone & 0xFFFF, ct.zone >> 16
        for name, fit in (("zone", side == 0), ("orig-zone", side == 1), ("reply-zone", side == 2)):
            wanted = given.number(name)
            if wanted is not None:
                mask &= (zone == wanted) & (fit | (wanted == 0)) if wanted or name != "zone" else mask
        return mask

    # ---- deeds

    def _lines(self, flows: np.ndarray, given: Given, now: int, use: int = 1) -> str:
        ct = self.node.conntrack
        outputs = given.values.get("output", "").split(",")
        if "xml" in outputs:
            raise Unsupported("conntrack -o xml", hint="netemu prints text: -o extended, id, ktimestamp, save")
        if "save" in outputs:
            if len(outputs) > 1:
                failed("cannot combine save output with any other output type, use -o save only")
            return "".join(self._saved(int(f), now) + "\n" for f in flows)
        out = []
        for flow in flows.tolist():
            line = ct.line(flow, now, started="ktimestamp" in outputs).replace("use=1", f"use={use}")
            if "id" in outputs:
                line += f" id={ct.identity(flow)}"
            out.append(line if "extended" in outputs else line.replace("ipv4     2 ", "", 1))
        return "".join(line + "\n" for line in out)

    def _saved(self, flow: int, now: int) -> str:
        ct = self.node.conntrack
        there, back, proto = ct.original(flow), ct.reply(flow), int(ct.proto[flow])
        status = int(ct.status[flow])
        names = [name for name, bit in (("SEEN_REPLY", SEEN_REPLY), ("ASSURED", ASSURED)) if status & bit]
        words = [f"-A -t {(int(ct.deadline[flow]) - now) // SECOND} -u {','.join(names) or 'UNSET'}"]
        zone = int(ct.zone[flow])
        if ct.mark[flow]:
            words.append(f"-m {ct.mark[flow]}")
        if zone:
            words.append(f"{('-w', '--orig-zone', '--reply-zone')[zone >> 16]} {zone & 0xFFFF}")
        words.append(f"-s {dotted(there[0])} -d {dotted(there[1])} -r {dotted(back[0])} -q {dotted(back[1])}")
        words.append(f"-p {PROTOCOLS.get(proto, proto)}")
        if proto == ICMP:
            words.append(f"--icmp-type {there[3] >> 8} --icmp-code {there[3] & 255} --icmp-id {there[2]}")
        elif proto in PORTED:
            words.append(f"--sport {there[2]} --dport {there[3]}")
            words.append(f"--reply-port-src {back[2]} --reply-port-dst {back[3]}")
        if proto == TCP:
            words.append(f"--state {STATES[int(ct.tcp.misc[flow, 9])]}")
        return " ".join(words)

    def _list(self, given: Given, now: int) -> str:
        ct = self.node.conntrack
        flows = np.flatnonzero(self._chosen(given, now))
        text = self._lines(flows, given, now)
        if given.zero:
            ct.packets[flows] = ct.bytes[flows] = 0
        return text

    def _count(self, given: Given, now: int) -> str:
        return f"{int(self._chosen(Given('count'), now).sum())}\n"

    def _flush(self, given: Given, now: int) -> str:
        ct = self.node.conntrack
        ct.kill_where(np.ones(ct.capacity, bool))
        return ""

    def _delete(self, given: Given, now: int) -> str:
        mask = self._chosen(given, now)
        text = self._lines(np.flatnonzero(mask), given, now)
        if not self.node.conntrack.kill_where(mask):
            failed("0 flow entries have been deleted.")
        return text

    def _get(self, given: Given, now: int) -> str:
        self._needs(given, "proto")
        there, _ = self._tuples(given)
        found = self.node.conntrack.holder(there, now, self._zone(given))
        if found < 0:
            failed("Operation failed: such conntrack doesn't exist")
        return self._lines(np.array([found >> 1]), given, now, 2)

    def _create(self, given: Given, now: int) -> str:
        ct = self.node.conntrack
        self._needs(given, "proto", "timeout")
        there, back = self._tuples(given)
        if there[4] == TCP:
            self._needs(given, "state")
        flow = ct.begin(there, now, self._zone(given))
        ct.status[flow] = CONFIRMED | self._status(given)
        if back is not None:
            ct.alter_reply(flow, back)
        self._translate(flow, given)
        mark = given.values.get("mark")
        ct.mark[flow] = number(mark.partition("/")[0]) & 0xFFFFFFFF if mark else 0
        seconds = given.number("timeout") or 0
        ct.deadline[flow] = now + seconds * SECOND
        ct.created[flow] = now - 2 * SECOND - 1  # so that UDP counts as a stream at once
        if there[4] == TCP:
            ct.tcp.adopt(flow, STATES.index(given.values["state"]))
        if not ct.store(flow, now):
            ct.kill(flow)
            if given.action == "add":
                return ""
            failed("Operation failed: Such conntrack exists, try -U to update")
        if ct.status[flow] & SRC_NAT:
            ct.remember_sources(np.array([flow]))
        return ""

    def _translate(self, flow: int, given: Given) -> None:
        """--src-nat and --dst-nat of a connection that is made by hand."""
        ct = self.node.conntrack
        for name, bit in ("dst-nat", DST_NAT), ("src-nat", SRC_NAT):
            value = given.nats.get(name)
            if not value:
                continue
            where, _, port = value.partition(":")
            if port and not port.isdigit():
                bad(f"Invalid port `{port}'")
            src, dst, sport, dport, proto = ct.reply(flow)
            to = address(where)[0]
            ports = port and proto in PORTED
            if bit == DST_NAT:
                ct.alter_reply(flow, (to, dst, int(port) if ports else sport, dport, proto))
            else:
                ct.alter_reply(flow, (src, to, sport, int(port) if ports else dport, proto))
            ct.status[flow] |= bit | SRC_NAT_DONE | DST_NAT_DONE

    def _update(self, given: Given, now: int) -> str:
        ct = self.node.conntrack
        flows = np.flatnonzero(self._chosen(given, now))
        if not len(flows):
            failed("0 flow entries have been updated.")
        if not {"src", "dst", "reply-src", "reply-dst"} & given.values.keys():
            failed("Operation failed: Operation not supported")
        changed = np.zeros(len(flows), bool)

        def put(column: NDArray[Any], values: NDArray[Any]) -> None:
            changed[:] |= column[flows] != values
            column[flows] = values

        put(ct.status, ct.status[flows] | self._status(given))  # no bit is ever taken back
        mark = given.values.get("mark")
        if mark:
            value, _, wild = mark.partition("/")
            keep = ~number(wild) & 0xFFFFFFFF if wild else 0
            put(ct.mark, (ct.mark[flows] & np.uint32(keep)) ^ np.uint32(number(value) & 0xFFFFFFFF))
        seconds = given.number("timeout")
        if seconds is not None:
            put(ct.deadline, np.full(len(flows), now + seconds * SECOND))
        if "state" in given.values and given.proto == TCP:
            put(ct.tcp.misc[:, 9], np.full(len(flows), STATES.index(given.values["state"])))
        if not changed.any():
            failed("0 flow entries have been updated.")
        return self._lines(flows[changed], given, now, 2)

    def _expectations(self, given: Given, now: int) -> str:
        helpers = self.node.helpers
        if given.action == "list":
            return helpers.dump(now)
        if given.action == "count":
            return f"{len(helpers.live(now))}\n"
        if given.action == "flush":
            helpers.expected.clear()
            return ""
        raise Unsupported(f"conntrack: to {given.action} expectations", hint="netemu knows -L, -C and -F expect")
