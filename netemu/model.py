"""A model directory: what is in it, what is wrong with it, and the links, routes, rules and sysctls that come of it.

    node.toml                                   links, routes, policy rules, sysctls, the kernel
    ip-addr.json ip-route.json ip-rule.json     `ip -j addr`, `ip -j route show table all`, `ip -j rule`:
                                                where node.toml is silent
    sysctl.conf                                 `sysctl -a`: name by name where node.toml is silent
    iptables.save ip6tables.save ipset.save     the tools' own dumps, handed on as text
    ipvsadm.save conntrack.list nfacct.list

Reading gathers problems, each with file and line, and goes on; `Model.build` makes the links and routes of a node.
What node.toml says is done as the commands would do it (a gateway must be reachable, a device up). What a dump says
was there already, so it is taken as it stands.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netemu.errors import REFUSED, UNSUPPORTED, NetemuError, Problem, Refused
from netemu.routing import (
    ROUTE_KEYS,
    RULE_KEYS,
    Routing,
    bad_link_name,
    format_mac,
    parse_mac,
    parse_prefix,
    read_rule,
    route_words,
    table_id,
)
from netemu.sockets import Socket, read_socket, socket_toml
from netemu.sysctl import canonical, fault, not_modelled, read_sysctl_text
from netemu.timeouts import PROTOCOLS, Policy, made

#: what a model directory may hold
FILES: dict[str, str] = {
    "node.toml": "links, routes, policy rules, sysctls",
    "ip-addr.json": "ip -j addr",
    "ip-route.json": "ip -j route show table all",
    "ip-rule.json": "ip -j rule",
    "sysctl.conf": "sysctl -a",
    "iptables.save": "iptables-save -c",
    "ip6tables.save": "ip6tables-save",
    "ipset.save": "ipset save",
    "ipvsadm.save": "ipvsadm -Sn",
    "conntrack.list": "conntrack -L -o extended",
    "nfacct.list": "nfacct list",
}
TEXTS = ("iptables.save", "ip6tables.save", "ipset.save", "ipvsadm.save", "conntrack.list", "nfacct.list")
KERNELS = ("6.1", "6.18")
DEFAULT_KERNEL = "6.18"


@dataclass(frozen=True)
class Place:
    """Where something was said: for the problems that it leads to."""

    file: str = ""
    line: int = 0
    text: str = ""

    def problem(self, kind: str, what: str, hint: str = "") -> Problem:
        return Problem(kind, what, self.file, self.line, self.text, hint=hint)

    def problems(self, error: NetemuError) -> list[Problem]:
        """The same problems, at this place."""
        return [self.problem(p.kind, p.what, p.hint) for p in error.problems]


@dataclass(frozen=True)
class Text:
    """A dump as it was read, and the name of its file."""

    text: str
    file: str


@dataclass
class AddressSpec:
    """An address of a link: `10.0.0.1/24`, and the rarer things that `ip addr` may say of it."""

    address: str
    broadcast: int | None = None
    scope: str = "global"
    peer: int = -1
    connected: bool = True
    metric: int = 0
    label: str = ""
    place: Place = field(default_factory=Place, compare=False)


@dataclass
class LinkSpec:
    name: str
    addresses: list[AddressSpec] = field(default_factory=list)
    mac: str | None = None
    mtu: int | None = None
    up: bool = True
    kind: str = ""
    place: Place = field(default_factory=Place, compare=False)
    group: int = 0


@dataclass
class RouteSpec:
    """A route in the words of `ip route add`; `dumped`: it comes from `ip route show`."""

    words: list[str]
    dumped: bool = False
    place: Place = field(default_factory=Place, compare=False)


@dataclass
class RuleSpec:
    """A policy rule in the words of `ip rule add`."""

    words: list[str]
    dumped: bool = False
    place: Place = field(default_factory=Place, compare=False)


@dataclass
class PolicySpec:
    """A timeout policy."""

    policy: Policy
    place: Place = field(default_factory=Place, compare=False)


@dataclass
class Model:
    """A node as a model directory describes it.

    texts  name of a dump (iptables.save, ...) -> its text
    sockets  of local processes (see sockets.py)      cpu  the processor that `-m cpu` shall see
    modules  of MODULES, that Linux does not load by itself      policies  of timeouts, for `-j CT --timeout`
    notes  remarks for people: files that look like a misspelt dump, things kept aside
    """

    kernel: str = DEFAULT_KERNEL
    links: list[LinkSpec] = field(default_factory=list)
    routes: list[RouteSpec] = field(default_factory=list)
    rules: list[RuleSpec] = field(default_factory=list)
    sysctl: dict[str, int | str] = field(default_factory=dict)
    texts: dict[str, Text] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    path: str = ""
    sockets: list[Socket] = field(default_factory=list)
    cpu: int | None = None
    modules: list[str] = field(default_factory=list)
    policies: list[PolicySpec] = field(default_factory=list)

    def build(self, routing: Routing, problems: list[Problem]) -> None:
        """Make links, routes and rules; what Linux would refuse, or netemu lacks, is appended to `problems`."""
        for link in self.links:
            try:
                mtu = link.mtu if link.mtu is not None else 65536 if link.name == "lo" else 1500
                at = routing.add_link(link.name, (), link.mac, mtu, link.up, link.kind)
                routing.links[at].group = link.group
            except NetemuError as error:
                problems += link.place.problems(error)
                continue
            for a in link.addresses:
                if link.name == "lo" and a.address.startswith("127.0.0.1/"):
                    continue  # lo has it from the start
                try:
                    routing.add_address(
                        at,
                        a.address,
                        broadcast=a.broadcast,
                        scope=a.scope,
                        peer=a.peer,
                        connected=a.connected,
                        metric=a.metric,
                        label=a.label,
                    )
                except NetemuError as error:
                    problems += a.place.problems(error)
        self._build_routes(routing, problems)
        dumped = [r for r in self.rules if r.dumped]
        if dumped:
            rules = []
            for rule in dumped:
                try:
                    rules.append(read_rule(rule.words))
                except NetemuError as error:
                    problems += rule.place.problems(error)
            routing.set_rules(rules)
        for rule in self.rules:
            if not rule.dumped:
                try:
                    routing.add_rule(rule.words)
                except NetemuError as error:
                    problems += rule.place.problems(error)

    def _build_routes(self, routing: Routing, problems: list[Problem]) -> None:
        dumped = [r for r in self.routes if r.dumped]
        seen: set[int | str] = {254} if dumped else set()
        for route in dumped:  # the tables that the dump shows are what it shows, and nothing else
            if "table" in route.words:
                seen.add(table_id(route.words[route.words.index("table") + 1]))
        for table in seen:
            routing.clear_table(table)
        for route in dumped:
            try:
                routing.restore_route(route.words)
            except NetemuError as error:
                problems += route.place.problems(error)
        # a route may lean on one that stands further down: go round until nothing moves
        waiting = [r for r in self.routes if not r.dumped]
        while waiting:
            left: list[tuple[RouteSpec, NetemuError]] = []
            for route in waiting:
                try:
                    routing.add_route(route.words)
                except NetemuError as error:
                    left.append((route, error))
            if len(left) == len(waiting):
                for route, why in left:
                    problems += route.place.problems(why)
                return
            waiting = [route for route, _ in left]


# ---- reading ---------------------------------------------------------------------------------------------------


def read_model(path: str | Path, problems: list[Problem]) -> Model:
    """The model that a directory holds. What is wrong in its files is appended to `problems`.

    Raises  Refused  when there is no such directory, or nothing in it that netemu knows; the message says what a model
                     directory may hold and which names come close
    """
    folder = Path(path)
    names = _listing(folder)
    model = Model(path=str(path))
    model.notes += [f"{near} is not read: did you mean {name}?" for near, name in _near_misses(names, names)]
    texts: dict[str, Text] = {}
    for name in FILES:
        if name in names:
            try:
                texts[name] = Text((folder / name).read_text(encoding="utf-8"), str(folder / name))
            except UnicodeDecodeError as garbled:
                problems.append(Problem(REFUSED, f"not UTF-8 text (byte {garbled.start})", str(folder / name)))
            except OSError as lost:
                problems.append(Problem(REFUSED, f"cannot be read: {lost.strerror}", str(folder / name)))
    if "node.toml" in texts:
        _read_toml(texts["node.toml"], model, problems)
    for name, silent, reader in (
        ("ip-addr.json", not model.links, _read_addresses),
        ("ip-route.json", not model.routes, _read_routes),
        ("ip-rule.json", not model.rules, _read_rules),
    ):
        if name in texts and silent:
            reader(texts[name], model, problems)
    if "sysctl.conf" in texts:
        _read_sysctls(texts["sysctl.conf"], model, problems)
    if "ip6tables.save" in texts:
        _read_ip6tables(texts["ip6tables.save"], problems)
    model.texts = {name: texts[name] for name in TEXTS if name in texts}
    return model


def _listing(folder: Path) -> set[str]:
    """Names in the directory; Refused with a way out when it is no model directory."""
    holds = "a model directory may hold " + ", ".join(FILES)
    if not folder.is_dir():
        if folder.is_file():
            raise Refused(f"{folder} is a file, not a model directory", hint=holds)
        here = folder.parent if folder.parent.is_dir() else Path(".")
        others = sorted(p.name for p in here.iterdir() if p.is_dir() and any((p / name).exists() for name in FILES))
        near = difflib.get_close_matches(folder.name, others, n=3, cutoff=0.5)
        where = "" if here == Path(".") else f"{here}/"
        if near:
            hint = "did you mean " + " or ".join(f"{where}{n}" for n in near) + "?"
        elif others:
            hint = f"model directories in {here}: {', '.join(others[:12])}"
        else:
            hint = holds
        raise Refused(f"no model directory {folder}", hint=hint)
    names = {p.name for p in folder.iterdir()}
    if not names & set(FILES):
        near_files = [f"{near} -> {name}" for near, name in _near_misses(names, set())]
        hint = holds + ("; rename " + ", ".join(near_files) if near_files else "")
        what = "is empty" if not names else "holds nothing that netemu knows"
        raise Refused(f"{folder} {what}", hint=hint)
    return names


_ALIASES = {
    "iptables-save": "iptables.save",
    "iptables.rules": "iptables.save",
    "iptables.txt": "iptables.save",
    "iptables": "iptables.save",
    "rules.v4": "iptables.save",
    "rules.v6": "ip6tables.save",
    "ip6tables-save": "ip6tables.save",
    "ipset": "ipset.save",
    "ipset.conf": "ipset.save",
    "ipset-save": "ipset.save",
    "ipvsadm": "ipvsadm.save",
    "ipvsadm.rules": "ipvsadm.save",
    "ipvs.save": "ipvsadm.save",
    "conntrack.txt": "conntrack.list",
    "conntrack": "conntrack.list",
    "sysctl.txt": "sysctl.conf",
    "sysctl": "sysctl.conf",
    "node.yaml": "node.toml",
    "node.yml": "node.toml",
    "node.json": "node.toml",
    "addr.json": "ip-addr.json",
    "route.json": "ip-route.json",
    "rule.json": "ip-rule.json",
}


def _near_misses(names: Iterable[str], present: set[str]) -> list[tuple[str, str]]:
    """(file, what it was probably meant to be called), for those that are missing."""
    out = []
    for name in sorted(names):
        if name in FILES:
            continue
        close = _ALIASES.get(name.lower()) or next(
            iter(difflib.get_close_matches(name.lower(), FILES, n=1, cutoff=0.85)), ""
        )
        if close and close not in present:
            out.append((name, close))
    return out


# ---- node.toml -------------------------------------------------------------------------------------------------

_HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.\"' -]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*("(?:[^"\\]|\\.)*"|'[^']*'|[\w.-]+)\s*=""")


_QUOTED = re.compile(r"""\"[^\"]*\"|'[^']*'""")


class _Lines:
    """Where in a TOML text each table and key stands."""

    def __init__(self, text: Text) -> None:
        self.file = text.file
        self.lines = text.text.splitlines()
        self.where: dict[tuple[str, int, str], int] = {}
        self.ends: dict[tuple[str, int], int] = {}
        self._shown: dict[tuple[str, int], dict[str, list[int]]] = {}  # quoted value -> lines, made when asked
        counts: dict[str, int] = {}
        table, index = "", 0
        for number, line in enumerate(self.lines, 1):
            header = _HEADER.match(line)
            if header:
                table = header[2].strip("\"'")
                index = counts.get(table, 0)
                counts[table] = index + 1
                self.where.setdefault((table, index, ""), number)
                continue
            key = _KEY.match(line)
            if key:
                self.where.setdefault((table, index, key[1].strip("\"'")), number)
            self.ends[table, index] = number

    def place(self, table: str = "", index: int = 0, key: str = "", value: object = None) -> Place:
        """The line of a key; or, from there on, the first that shows a value; or the table's header."""
        number = self.where.get((table, index, key), self.where.get((table, index, ""), 0))
        if value is not None and number:
            end = self.ends.get((table, index), number)
            shown = self._shown.get((table, index))
            if shown is None:
                shown = self._shown[table, index] = {}
                for at in range(self.where.get((table, index, ""), number), end + 1):
                    for quoted in _QUOTED.findall(self.lines[at - 1]):
                        shown.setdefault(quoted[1:-1], []).append(at)
            number = next((at for at in shown.get(str(value), ()) if at >= number), number)
        return Place(self.file, number, self.lines[number - 1].strip() if number else "")


def _read_toml(text: Text, model: Model, problems: list[Problem]) -> None:
    try:
        tree = tomllib.loads(text.text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r"\(at line (\d+), column (\d+)\)", message)
        line = int(found[1]) if found else len(text.text.splitlines())
        lines = text.text.splitlines()
        shown = lines[line - 1] if 0 < line <= len(lines) else ""
        span = (int(found[2]) - 1, int(found[2])) if found and shown else None
        what = re.sub(r" \(at .*\)$", "", message)
        problems.append(Problem(REFUSED, f"not TOML: {what}", text.file, line, shown, span))
        return
    lines_ = _Lines(text)

    def wrong(place: Place, what: str, hint: str = "", kind: str = REFUSED) -> None:
        problems.append(place.problem(kind, what, hint))

    for key in tree:
        if key not in _KEYS:
            place = lines_.place("", 0, key) if ("", 0, key) in lines_.where else lines_.place(key)
            wrong(place, f'unknown key "{key}"', _suggest(key, _KEYS))
    kernel = tree.get("kernel", DEFAULT_KERNEL)
    if not isinstance(kernel, str):
        wrong(lines_.place("", 0, "kernel"), "kernel must be text", 'write kernel = "6.1" or kernel = "6.18"')
    elif kernel not in KERNELS:
        wrong(
            lines_.place("", 0, "kernel"), f"kernel {kernel} (netemu knows {' and '.join(KERNELS)})", kind=UNSUPPORTED
        )
    else:
        model.kernel = kernel
    modules = tree.get("modules", [])
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        wrong(lines_.place("", 0, "modules"), "modules must be a list of names", 'write modules = ["ip_vs_ftp"]')
        modules = []
    for name in set(modules) - set(MODULES):
        hint = "netemu asks only for " + ", ".join(MODULES)
        wrong(lines_.place("", 0, "modules"), f"module {name}", hint, kind=UNSUPPORTED)
    model.modules = modules
    cpu = tree.get("cpu")
    if cpu is None or (isinstance(cpu, int) and cpu is not True and cpu >= 0):
        model.cpu = cpu
    else:
        wrong(lines_.place("", 0, "cpu"), "cpu must be a number", "write cpu = 0")
    for index, table in _tables(tree, "timeout", lines_, problems):
        _toml_timeout(table, index, lines_, model, problems)
    for index, table in _tables(tree, "socket", lines_, problems):
        try:
            model.sockets.append(read_socket(table))
        except ValueError as error:
            wrong(lines_.place("socket", index, error.args[1]), error.args[0])
    names: set[str] = set()
    for index, table in _tables(tree, "link", lines_, problems):
        _toml_link(table, index, lines_, model, names, problems)
    known = {link.name for link in model.links} | {"lo"}
    for index, table in _tables(tree, "route", lines_, problems):
        words = _toml_words("route", table, index, lines_, ROUTE_KEYS, problems)
        place = lines_.place("route", index, "to")
        if words is None:
            continue
        dev = table.get("dev")
        if isinstance(dev, str) and dev not in known and names:
            wrong(lines_.place("route", index, "dev"), f'no link "{dev}"', f"links: {', '.join(sorted(known))}")
            continue
        try:
            route_words(words)
        except NetemuError as error:
            problems += place.problems(error)
            continue
        model.routes.append(RouteSpec(words, place=place))
    for index, table in _tables(tree, "rule", lines_, problems):
        words = _toml_words("rule", table, index, lines_, RULE_KEYS, problems)
        if words is None:
            continue
        place = lines_.place("rule", index)
        try:
            read_rule(words)
        except NetemuError as error:
            problems += place.problems(error)
            continue
        model.rules.append(RuleSpec(words, place=place))
    values = tree.get("sysctl", {})
    if not isinstance(values, dict):
        wrong(lines_.place("", 0, "sysctl"), "sysctl must be a table", "write [sysctl] and the settings below it")
        return
    for name, value in _flattened(values):
        place = lines_.place("sysctl", 0, name)
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, int | str):
            wrong(place, f"{name} must be a number or text, not {_kind_of(value)}")
            continue
        _put_sysctl(model, name, value, place, problems)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """`net.ipv4.ip_forward = 1` without quotes is a table in a table: put the name together again."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _tables(
    tree: Mapping[str, Any], name: str, lines: _Lines, problems: list[Problem]
) -> Iterable[tuple[int, dict[str, Any]]]:
    found = tree.get(name, [])
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
        problems.append(
            lines.place(name).problem(REFUSED, f"{name} must be an array of tables", f"write [[{name}]] for each")
        )
        return
    yield from enumerate(found)


def _kind_of(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}
    return kinds.get(type(value), "that")


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"keys: {', '.join(known)}"


_KEYS = ("kernel", "cpu", "modules", "link", "route", "rule", "socket", "timeout", "sysctl")
#: kernel modules that change what happens to packets and that no dump shows: somebody has to load them
MODULES = ("ip_vs_ftp",)
_LINK_KEYS: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "mac": (str, "text"),
    "addresses": (list, "a list of texts"),
    "mtu": (int, "a number"),
    "up": (bool, "true or false"),
    "kind": (str, "text"),
    "group": (int, "a number"),
}


def _toml_link(
    table: dict[str, Any], index: int, lines: _Lines, model: Model, names: set[str], problems: list[Problem]
) -> None:
    place = lines.place("link", index, "name")
    bad = len(problems)

    def wrong(key: str, what: str, hint: str = "", value: object = None) -> None:
        problems.append(lines.place("link", index, key, value).problem(REFUSED, what, hint))

    for key, value in table.items():
        if key not in _LINK_KEYS:
            wrong(key, f'unknown key "{key}" in [[link]]', _suggest(key, tuple(_LINK_KEYS)))
            continue
        kind, said = _LINK_KEYS[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            wrong(key, f"{key} must be {said}, not {_kind_of(value)}")
    name = table.get("name")
    if name is None:
        wrong("", "a [[link]] without a name", 'write name = "eth0"')
    elif isinstance(name, str):
        fault_ = bad_link_name(name)
        if fault_:
            wrong("name", fault_)
        elif name in names:
            wrong("name", f'there are two links called "{name}"')
        names.add(name)
    addresses: list[AddressSpec] = []
    listed = table.get("addresses")
    for text in listed if isinstance(listed, list) else []:
        if not isinstance(text, str):
            wrong("addresses", f"an address must be text, not {_kind_of(text)}")
        elif not _is_address(text):
            wrong("addresses", f'not an address: "{text}"', "write it as 10.0.0.1/24", value=text)
        else:
            addresses.append(AddressSpec(text, place=lines.place("link", index, "addresses", text)))
    mac = table.get("mac")
    if isinstance(mac, str):
        try:
            parse_mac(mac)
        except ValueError as error:
            wrong("mac", str(error), "write it as 02:00:00:00:00:01")
    mtu = table.get("mtu")
    if isinstance(mtu, int) and not isinstance(mtu, bool) and mtu < 68:
        wrong("mtu", f"mtu {mtu} is less than Linux's minimum, 68")
    if not isinstance(name, str) or name in (link.name for link in model.links) or bad_link_name(name):
        return
    if len(problems) == bad:
        model.links.append(LinkSpec(name, addresses, mac, mtu, table.get("up", True), table.get("kind", ""), place))
        model.links[-1].group = table.get("group", 0)
    else:  # what can be understood of it, so that what leans on it is judged too
        model.links.append(LinkSpec(name, addresses, place=place))


def _is_address(text: str) -> bool:
    if ":" in text:
        return re.fullmatch(r"[0-9a-fA-F:]+(:\d+\.\d+\.\d+\.\d+)?(/(\d|[1-9]\d|1[01]\d|12[0-8]))?", text) is not None
    try:
        parse_prefix(text)
    except ValueError:
        return False
    return text[:1].isdigit()


def _toml_timeout(table: dict[str, Any], index: int, lines: _Lines, model: Model, problems: list[Problem]) -> None:
    """A [[timeout]]: name, proto, and seconds by state."""
    place = lines.place("timeout", index, "name")
    said = dict(table)
    name, proto = said.pop("name", None), said.pop("proto", None)
    if not isinstance(name, str) or proto not in PROTOCOLS:
        hint = "proto is one of " + ", ".join(PROTOCOLS)
        problems.append(place.problem(REFUSED, "a [[timeout]] needs `name` and `proto`", hint))
        return
    for state, seconds in said.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int):
            at = lines.place("timeout", index, state)
            problems.append(at.problem(REFUSED, f"{state} must be a number of seconds, not {_kind_of(seconds)}"))
            return
    try:
        model.policies.append(PolicySpec(made(name, str(proto), said), place))
    except NetemuError as error:
        problems += place.problems(error)


_TRUTHS = ("onlink", "not")
_HOP_KEYS = ("via", "dev", "weight", "onlink")


def _toml_words(
    what: str, table: dict[str, Any], index: int, lines: _Lines, known: Sequence[str], problems: list[Problem]
) -> list[str] | None:
    """The words of `ip route add` or `ip rule add` that a table of node.toml stands for; None after a problem."""
    words: list[str] = []
    hops: list[str] = []
    bad = len(problems)
    for key, value in table.items():
        place = lines.place(what, index, key)
        if key not in known:
            problems.append(place.problem(REFUSED, f'unknown key "{key}" in [[{what}]]', _suggest(key, known)))
        elif key in _TRUTHS:
            if not isinstance(value, bool):
                problems.append(place.problem(REFUSED, f"{key} must be true or false, not {_kind_of(value)}"))
            elif value:
                words.append(key)
        elif key == "nexthop":
            tables = isinstance(value, list) and all(isinstance(one, dict) for one in value) and len(value) > 0
            wrong = [k for one in value for k in one if k not in _HOP_KEYS] if tables else [""]
            if wrong:
                hint = 'nexthop = [{ via = "10.0.0.254", dev = "eth0", weight = 2 }, ...]'
                problems.append(
                    place.problem(
                        REFUSED,
                        f'unknown key "{wrong[0]}" in nexthop' if tables else "nexthop must be a list of tables",
                        hint,
                    )
                )
            else:
                hops += [word for one in value for word in ("nexthop", *_hop_words(one, "via"))]
        elif isinstance(value, bool) or not isinstance(value, str | int):
            problems.append(place.problem(REFUSED, f"{key} must be text or a number, not {_kind_of(value)}"))
        elif key in ("type", "action"):
            words = ["type", str(value), *words]
        else:
            words += [key, str(value)]
    words += hops
    if what == "route" and "to" not in table and len(problems) == bad:
        problems.append(
            lines.place(what, index).problem(REFUSED, "a [[route]] without `to`", 'write to = "default" or a CIDR')
        )
    return None if len(problems) > bad else words


def _put_sysctl(model: Model, name: str, value: int | str, place: Place, problems: list[Problem]) -> None:
    wrong = fault(name, value)
    lacking = not_modelled(name, value)
    if wrong:
        problems.append(place.problem(REFUSED, wrong))
    elif lacking:
        problems.append(place.problem(UNSUPPORTED, lacking))
    else:
        number = isinstance(value, str) and re.fullmatch(r"-?\d+", value)
        model.sysctl[canonical(name)] = int(value) if number else value


# ---- the tools' own dumps --------------------------------------------------------------------------------------


def _read_sysctls(text: Text, model: Model, problems: list[Problem]) -> None:
    told = set(model.sysctl)
    for line, name, value, said in read_sysctl_text(text.text.splitlines()):
        place = Place(text.file, line, said)
        if not name:
            problems.append(place.problem(REFUSED, "not a setting", "a line says NAME = VALUE"))
        elif name not in told and name.startswith("net."):
            _put_sysctl(model, name, value, place, problems)


def _json(text: Text, problems: list[Problem]) -> list[dict[str, Any]]:
    try:
        found = json.loads(text.text) if text.text.strip() else []
    except json.JSONDecodeError as error:
        lines = text.text.splitlines()
        shown = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        cut = shown if len(shown) < 160 else ""
        problems.append(Problem(REFUSED, f"not JSON: {error.msg}", text.file, error.lineno, cut))
        return []
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        what = next(said for name, said in FILES.items() if text.file.endswith(name))
        problems.append(Problem(REFUSED, "not a list of objects", text.file, hint=f"it is what `{what}` prints"))
        return []
    return [x for x in found if x]  # `ip -j` prints {} for what it leaves out


def _json_place(text: Text, item: dict[str, Any]) -> Place:
    shown = json.dumps(item)
    return Place(text.file, 0, shown if len(shown) <= 200 else shown[:197] + "...")


def _read_addresses(text: Text, model: Model, problems: list[Problem]) -> None:
    for item in _json(text, problems):
        place = _json_place(text, item)
        name = item.get("ifname")
        if not isinstance(name, str):
            problems.append(place.problem(REFUSED, "a link without ifname"))
            continue
        ether = item.get("link_type") == "ether"
        info = item.get("linkinfo") or {}
        link = LinkSpec(
            name,
            mac=item.get("address") if ether else None,
            mtu=item.get("mtu"),
            up="UP" in item.get("flags", ()),
            kind=info.get("info_kind", "loopback" if item.get("link_type") == "loopback" else ""),
            place=place,
            group=int(item["group"]) if str(item.get("group", "")).isdecimal() else 0,
        )
        for a in item.get("addr_info", ()):
            if not a or "local" not in a:
                continue
            if a.get("family") == "inet6":
                link.addresses.append(AddressSpec(f"{a['local']}/{a.get('prefixlen', 128)}", place=place))
                continue
            try:
                brd = a.get("broadcast")
                link.addresses.append(
                    AddressSpec(
                        f"{a['local']}/{a.get('prefixlen', 32)}",
                        parse_prefix(brd)[0] if brd else None,
                        a.get("scope", "global"),
                        parse_prefix(a["address"])[0] if "address" in a else -1,
                        not a.get("noprefixroute", False),
                        a.get("metric", 0),
                        a.get("label", ""),
                        place,
                    )
                )
            except ValueError as error:
                problems.append(place.problem(REFUSED, str(error)))
        model.links.append(link)


def _read_routes(text: Text, model: Model, problems: list[Problem]) -> None:
    known = {link.name for link in model.links} | {"lo"}
    for item in _json(text, problems):
        place = _json_place(text, item)
        if _is_ipv6(item):
            continue
        words = ["type", item["type"]] if "type" in item else []
        words.append(str(item.get("dst", "default")))
        via = item.get("via")
        if isinstance(via, dict):
            words += ["via", str(via.get("family", "")), str(via.get("host", ""))]
        for key, word in (
            ("gateway", "via"),
            ("dev", "dev"),
            ("table", "table"),
            ("protocol", "proto"),
            ("scope", "scope"),
            ("prefsrc", "src"),
            ("metric", "metric"),
            ("tos", "tos"),
        ):
            if key in item:
                words += [word, str(item[key])]
        if "encap" in item:
            words += ["encap", str(item["encap"])]
        for metrics in item.get("metrics", ()):
            if "mtu" in metrics:
                words += ["mtu", str(metrics["mtu"])]
        if "onlink" in item.get("flags", ()):
            words.append("onlink")
        if "linkdown" in item.get("flags", ()) or "dead" in item.get("flags", ()):
            pass  # a link without a carrier keeps its routes; netemu knows no carriers
        hops = item.get("nexthops", ())
        stray = [one["dev"] for one in (item, *hops) if one.get("dev", "lo") not in known]
        if stray:
            hint = f"links: {', '.join(sorted(known))}"
            problems.append(place.problem(REFUSED, f'no link "{stray[0]}"', hint))
            continue
        if "nhid" in item and not hops and not {"gateway", "dev"} & set(item):
            words += ["nhid", str(item["nhid"])]
        for hop in hops:
            words += ["nexthop", *_hop_words(hop, "gateway")]
        try:
            route_words(words)
        except NetemuError as error:
            problems += place.problems(error)
            continue
        model.routes.append(RouteSpec(words, True, place))


def _hop_words(hop: Mapping[str, Any], gateway: str) -> list[str]:
    """The words of one `nexthop`, from a table that names its gateway `gateway`."""
    words: list[str] = []
    for key, word in ((gateway, "via"), ("dev", "dev"), ("weight", "weight")):
        if key in hop:
            words += [word, str(hop[key])]
    via = hop.get("via")
    if isinstance(via, Mapping):
        words += ["via", str(via.get("host", ""))]
    if "encap" in hop:
        words += ["encap", str(hop["encap"])]
    if hop.get("onlink") is True or "onlink" in hop.get("flags", ()):
        words.append("onlink")
    return words


def _is_ipv6(item: Mapping[str, Any]) -> bool:
    return "pref" in item or any(":" in str(item.get(key, "")) for key in ("dst", "gateway", "prefsrc", "from", "src"))


def _read_rules(text: Text, model: Model, problems: list[Problem]) -> None:
    for item in _json(text, problems):
        place = _json_place(text, item)
        if _is_ipv6(item):
            continue
        words = ["not"] if "not" in item else []
        for key, word, length in (("src", "from", "srclen"), ("dst", "to", "dstlen")):
            if key in item:
                words += [word, f"{item[key]}/{item[length]}" if length in item else str(item[key])]
        if "fwmark" in item:
            words += ["fwmark", str(item["fwmark"]) + (f"/{item['fwmask']}" if "fwmask" in item else "")]
        for key, word in (
            ("priority", "priority"),
            ("iif", "iif"),
            ("oif", "oif"),
            ("tos", "tos"),
            ("table", "table"),
            ("goto", "goto"),
            ("suppress_prefixlen", "suppress_prefixlength"),
        ):
            if key in item:
                words += [word, str(item[key])]
        if "action" in item:
            words.append(str(item["action"]))
        for key in ("l3mdev", "uid_start", "ipproto", "sport", "dport", "sport_start", "dport_start", "tun_id", "dscp"):
            if key in item:
                words += [{"uid_start": "uidrange"}.get(key, key.removesuffix("_start")), str(item[key])]
        try:
            read_rule(words)
        except NetemuError as error:
            problems += place.problems(error)
            continue
        model.rules.append(RuleSpec(words, True, place))


def _read_ip6tables(text: Text, problems: list[Problem]) -> None:
    """Only an empty set of IPv6 tables can be taken: name the first line that says more, and how many there are."""
    table = ""
    more: list[tuple[int, str, str]] = []
    for number, line in enumerate(text.text.splitlines(), 1):
        line = line.strip()
        if line.startswith("*"):
            table = line[1:].split()[0] if line[1:].split() else ""
        elif re.match(r"(\[\d+:\d+\]\s*)?-[AI]\s", line):
            more.append((number, "rule", line))
        elif line.startswith(":") or line.startswith("-P "):
            policy = line.split()[1:2] if line.startswith(":") else line.split()[2:3]
            if policy not in ([], ["ACCEPT"], ["-"]):
                more.append((number, f"policy of {table}", line))
    if more:
        number, what, line = more[0]
        rest = f" (and {len(more) - 1} more lines)" if len(more) > 1 else ""
        hint = "IPv6 is not modelled yet: leave the file out to look at IPv4 alone"
        problems.append(Problem(UNSUPPORTED, f"an IPv6 {what}{rest}", text.file, number, line, hint=hint))


# ---- writing ---------------------------------------------------------------------------------------------------


def write_model(model: Model, folder: str | Path) -> None:
    """Write a model directory: a tidy node.toml, and the texts. The directory is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "node.toml").write_text(node_toml(model), encoding="utf-8")
    for name, text in model.texts.items():
        (folder / name).write_text(text.text, encoding="utf-8")


def node_toml(model: Model) -> str:
    """A model's links, routes, rules and sysctls as node.toml.

    >>> print(node_toml(Model("6.1", [LinkSpec("eth0", [AddressSpec("10.0.0.1/24")])])))
    kernel = "6.1"
    <BLANKLINE>
    [[link]]
    name = "eth0"
    addresses = ["10.0.0.1/24"]
    <BLANKLINE>
    """
    out = [f"kernel = {_quoted(model.kernel)}"]
    if model.cpu is not None:
        out.append(f"cpu = {model.cpu}")
    if model.modules:
        out.append(f"modules = [{', '.join(_quoted(name) for name in model.modules)}]")
    for link in model.links:
        out += ["", "[[link]]", f"name = {_quoted(link.name)}"]
        if link.mac:
            out.append(f"mac = {_quoted(format_mac(parse_mac(link.mac)))}")
        held = [_quoted(a.address) for a in link.addresses]
        if len(held) > 4:
            out += ["addresses = [", *(f"    {a}," for a in held), "]"]
        elif held:
            out.append(f"addresses = [{', '.join(held)}]")
        if link.mtu is not None and link.mtu != (65536 if link.name == "lo" else 1500):
            out.append(f"mtu = {link.mtu}")
        if not link.up:
            out.append("up = false")
        if link.kind:
            out.append(f"kind = {_quoted(link.kind)}")
        if link.group:
            out.append(f"group = {link.group}")
    for route in model.routes:
        given = route_words(route.words)
        out += ["", "[[route]]"]
        for key in ("type", "to", "via", "dev", "src", "metric", "table", "scope", "tos", "mtu", "onlink", "proto"):
            if key == "onlink" and key in given:
                out.append("onlink = true")
            elif key in given:
                number = key in ("metric", "mtu") and given[key].isdigit()
                out.append(f"{key} = {given[key] if number else _quoted(given[key])}")
            elif key == "to":
                out.append('to = "default"')
        if "nexthop" in given:
            hops = [_hop_toml(hop.split()) for hop in given["nexthop"].split(" nexthop ")]
            out += ["nexthop = [", *(f"    {hop}," for hop in hops), "]"]
    for rule in model.rules:
        out += ["", "[[rule]]", *_rule_toml(rule.words)]
    for s in model.sockets:
        out += ["", "[[socket]]", *socket_toml(s)]
    for spec in model.policies:
        _, _, proto, *_ = str(spec.policy).split()
        out += ["", "[[timeout]]", f"name = {_quoted(spec.policy.name)}", f"proto = {_quoted(proto)}"]
        out += [f"{state} = {seconds}" for state, seconds in spec.policy.seconds]
    if model.sysctl:
        out += ["", "[sysctl]"]
        out += [f"{_quoted(k)} = {v if isinstance(v, int) else _quoted(v)}" for k, v in sorted(model.sysctl.items())]
    return "\n".join(out) + "\n"


def _hop_toml(words: list[str]) -> str:
    """
    >>> _hop_toml("via 10.0.0.254 dev eth0 weight 2 onlink".split())
    '{ via = "10.0.0.254", dev = "eth0", weight = 2, onlink = true }'
    """
    said = dict(zip(words, [*words[1:], ""], strict=True))
    out = [f"{key} = {_quoted(said[key])}" for key in ("via", "dev") if key in said]
    out += [f"weight = {said['weight']}"] * ("weight" in said) + ["onlink = true"] * ("onlink" in said)
    return "{ " + ", ".join(out) + " }"


def _rule_toml(words: Sequence[str]) -> list[str]:
    out, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word == "not":
            out.append("not = true")
        elif word in ("unreachable", "prohibit", "blackhole", "nop"):
            out.insert(0, f"type = {_quoted(word)}")
        else:
            key = {"lookup": "table", "pref": "priority"}.get(word, word)
            value = rest.pop(0)
            line = f"{key} = {value if key == 'priority' else _quoted(value)}"
            out.insert(0 if key == "type" else len(out), line)
    return out


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
