"""The lab: the same packets on a real kernel, and the comparison.

A `Case` is a node (the files of a model directory) and what happens to it: packets and commands, each at its time.
`play` has a real kernel go through it and writes down what happened, a `Recording`; `compare` has netemu go through the
same and lists every `Disagreement`. A case and its recording are kept in one text file (`save`, `load`), so that it can
be compared for ever after without a kernel.

    Case --play--> Recording --compare--> [Disagreement]
      |                |
      '----- save -----'

Two kernels can be asked: the running one ("host", needs root, a network namespace for each case) and User Mode Linux
("uml", needs no root, has IPVS). `player.py` is what runs there, and says how nothing is touched or left behind.

What is masked, because it is arbitrary or drawn at random in Linux: the IP id of packets that the node made; the port
that NAT drew (the pair is remembered and holds for later packets and the tables); what `statistic --mode random` drew
(netemu is told); timers up to two seconds; the order of listings that follow a hash. The limits on ICMP
errors are off on both sides, and the kernel's local stack is kept from answering, since netemu has none.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from netemu import clock, player, trip
from netemu.capture import arrivals, read_capture
from netemu.conntrack import ASSURED, PROTOCOLS, SEEN_REPLY, dotted, inverse
from netemu.errors import NetemuError, Problem, Refused, Unsupported, raise_all
from netemu.matches.rates import Statistic
from netemu.model import FILES, KERNELS, Model, read_model
from netemu.node import EPOCH_TIMES, Journey, Node
from netemu.packets import U64, Rows
from netemu.player import ERRORS, ICMP, TCP, UDP, Cookies, port_places, with_port
from netemu.routing import format_mac, parse_mac
from netemu.synproxy import INTRODUCED
from netemu.sysctl import canonical
from netemu.tcp import STATES

PACKAGES = "iptables ipset conntrack iproute2"
NOT_RESTORED = ("ip6tables.save", "conntrack.list", "nfacct.list")
TOOLS = ("iptables", "iptables-legacy", "ipset", "ipvsadm", "conntrack", "sysctl", "ip", "nfct")
SENDER = player.SENDER
#: limits on ICMP errors: Linux counts in ticks and draws on top. Off on both sides, unless the model speaks of them
LIMITS = ("net.ipv4.icmp_ratemask", "net.ipv4.icmp_ratelimit", "net.ipv4.icmp_msgs_per_sec", "net.ipv4.icmp_msgs_burst")
#: knobs of links that a new namespace takes over from the machine's own, and that decide about packets
INHERITED = [
    "forwarding",
    "rp_filter",
    "accept_local",
    "route_localnet",
    "send_redirects",
    "accept_redirects",
    "shared_media",
    "src_valid_mark",
    "accept_source_route",
    "bc_forwarding",
    "promote_secondaries",
    "ignore_routes_with_linkdown",
]


# ---- what is played, and what came of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A packet or a command.

    at       seconds after the start              link     where it comes in; None: the node itself sends it
    packet   bytes from the IP header on          command  one of the node's own tools (then there is no packet)
    source   MAC address of the sender            to       MAC address it is sent to ("": the link's)
    answers  number of the event whose output this packet answers: if the kernel drew another port there, the packet
             is sent to that one
    """

    at: float
    link: str | None = None
    packet: bytes | None = None
    command: str | None = None
    source: str = SENDER
    to: str = ""
    answers: int | None = None


@dataclass
class Case:
    """A node and what happens to it.

    texts  the files of a model directory (node.toml, iptables.save, ...)
    end    the tables are read not before that many seconds after the start
    """

    name: str
    story: str
    texts: dict[str, str]
    events: list[Event]
    end: float = 0.0


@dataclass
class Happened:
    """What the kernel did with an event.

    at      seconds, as measured          outs    [(link, bytes from the IP header on)]
    trace   `table:chain:kind:number` of each rule that the packet, and what it caused, met
    status  of a command                  error   its complaint, or why a packet could not be sent
    sent    the packet, when it was not the case's own (see Event.answers)
    """

    at: float
    outs: list[tuple[str, bytes]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    status: int | None = None
    error: str = ""
    sent: bytes | None = None


@dataclass
class Recording:
    """What a kernel did with a case. `trouble`: it could not be played, and why.

    tables   conntrack, counters, and where the case has them expect, ipset, ipvs, connections, stats: as the tools
             print them
    read     when each table was read, in seconds after the start
    """

    release: str
    events: list[Happened] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    read: dict[str, float] = field(default_factory=dict)
    trouble: str = ""

    @property
    def end(self) -> float:
        """When all was over."""
        return max(self.read.values(), default=0.0)

    @property
    def kernel(self) -> str:
        """Which of the kernels that netemu knows comes nearest."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        version = (int(found[1]), int(found[2])) if found else (6, 18)
        return KERNELS[0] if version <= (6, 6) else KERNELS[-1]


@dataclass(frozen=True)
class Disagreement:
    """One thing that netemu and the kernel see differently. Prints as a place, a field, both packets, and our steps.

    place    `packet 17 at 0.481 s`, `conntrack`, ...         event   number of the event, None for tables
    field    what differs: path, dport, link, status, ...
    kernel, netemu   the two values             packets   (kernel's, netemu's) in words
    steps    ours        trace   the kernel's
    """

    case: str
    place: str
    field: str
    kernel: str
    netemu: str
    event: int | None = None
    packets: tuple[str, str] = ("", "")
    steps: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.event is None:
            return f"{self.case}, {self.place}: {self.field}\n  kernel  {self.kernel}\n  netemu  {self.netemu}"
        out = [f"{self.case}, {self.place}: field {self.field}: kernel {self.kernel}, netemu {self.netemu}"]
        if any(self.packets):
            out += [f"  kernel  {self.packets[0]}", f"  netemu  {self.packets[1]}"]
        out += [f"    {step}" for step in self.steps]
        if self.trace:
            out.append("  kernel's trace")
            out += [f"    {step}" for step in self.trace]
        return "\n".join(out)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "case": self.case,
            "place": self.place,
            "event": self.event,
            "field": self.field,
            "kernel": self.kernel,
            "netemu": self.netemu,
            "packets": {"kernel": self.packets[0], "netemu": self.packets[1]},
            "steps": list(self.steps),
            "trace": list(self.trace),
        }


# ---- which kernel can be asked --------------------------------------------------------------------------------------


def _missing(tools: Sequence[str]) -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
    return [name for name in tools if shutil.which(name, path=path) is None]


def available(kernel: str) -> str | None:
    """Why `kernel` ("host" or "uml") cannot be asked and what to do about it, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "real kernels can be asked on Linux only"
    base = ("ip", "iptables-legacy", "iptables-legacy-restore", "ipset", "conntrack")
    if kernel == "uml":
        if missing := _missing((*base, "linux.uml", "ipvsadm", "modprobe")):
            return f"no {', '.join(missing)}: apt-get install user-mode-linux kmod ipvsadm {PACKAGES}"
        return None
    if kernel != "host":
        return f"no kernel {kernel!r}: there are host and uml"
    if os.geteuid() != 0:
        return "a network namespace needs root: run as root, or ask User Mode Linux (--kernel uml)"
    if missing := _missing(base):
        return f"no {', '.join(missing)}: apt-get install {PACKAGES}"
    done = subprocess.run([sys.executable, "-I", player.__file__, "probe"], capture_output=True, text=True)
    if done.returncode:
        return f"this kernel cannot be asked: {(done.stdout or done.stderr).strip()}"
    return None


# ---- playing --------------------------------------------------------------------------------------------------------


def model_of(case: Case) -> Model:
    """The case's model, every link with a MAC address."""
    problems: list[Problem] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in case.texts.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        model = read_model(folder, problems)
    problems = [replace(p, file=os.path.basename(p.file)) for p in problems]
    raise_all(problems)
    if not any(canonical(name) in LIMITS for name in model.sysctl):
        model.sysctl[LIMITS[0]] = 0
    for name, held in model.texts.items():
        model.texts[name] = replace(held, file=name)
    taken = {parse_mac(link.mac) for link in model.links if link.mac}
    fresh = 0x0200_0000_FD00
    for link in model.links:
        if link.mac is None and link.name != "lo":
            while fresh in taken:
                fresh += 1
            link.mac = format_mac(fresh)
            taken.add(fresh)
    return model


def _commands(model: Model) -> list[list[str]]:
    """The `ip` commands that make the model's links, addresses, routes and rules."""
    out: list[list[str]] = []
    for link in model.links:
        if link.name != "lo" and link.up:
            out.append(["ip", "link", "set", link.name, "up"])
        if link.group:
            out.append(["ip", "link", "set", link.name, "group", str(link.group)])
        for a in link.addresses:
            if ":" in a.address or (link.name == "lo" and a.address.startswith("127.0.0.1/")):
                continue
            words = ["ip", "addr", "add", a.address]
            if a.peer >= 0:
                ip, plen = a.address.split("/")
                words = ["ip", "addr", "add", ip, "peer", f"{_dotted(a.peer)}/{plen}"]
            if a.broadcast is not None:
                words += ["broadcast", _dotted(a.broadcast)]
            if a.scope != "global":
                words += ["scope", a.scope]
            if a.label:
                words += ["label", a.label]
            words += ["dev", link.name]
            if a.metric:
                words += ["metric", str(a.metric)]
            if not a.connected:
                words.append("noprefixroute")
            out.append(words)
    dumped = [r.words for r in model.routes if r.dumped]
    for table in {w[w.index("table") + 1] if "table" in w else "main" for w in dumped}:
        out.append(["ip", "route", "flush", "table", table])
    for route in model.routes:
        words = list(route.words)
        if "type" in words:
            at = words.index("type")
            kind = words[at + 1]
            del words[at : at + 2]
            words = [kind, *(words[1:] if words[0] == "to" else words)]
        out.append(["ip", "route", "add", *words])
    if any(r.dumped for r in model.rules):
        out += [["ip", "rule", "del", "priority", p] for p in ("32766", "32767")]
    for rule in model.rules:
        words = rule.words
        if not (rule.dumped and "priority" in words and words[words.index("priority") + 1] == "0"):
            out.append(["ip", "rule", "add", *words])
    return out


def _accounts(node: Node) -> list[list[str]]:
    """The `nfacct` commands that make the model's accounting objects. What they counted before cannot be told."""
    out = []
    for name, account in (node.accounts or {}).items():
        if account.quota is not None and (account.packets or account.bytes):
            raise Unsupported(f"the accounting object {name}, which has counted already, on a real kernel")
        quota = [] if account.quota is None else ["byte" if account.by_bytes else "packet", str(account.quota)]
        out.append(["nfacct", "add", name, *quota])
    return out


def _sysctls(model: Model, node: Node) -> list[tuple[str, str, bool]]:
    """(name, value, whether the model asks), forwarding first: what is asked for, and what a new namespace inherits."""
    asked = {canonical(name) for name in model.sysctl}
    values = {
        name: str(value)
        for name, value in node.sysctl.all().items()
        if name in asked or (name.startswith("net.ipv4.conf.") and name.rpartition(".")[2] in INHERITED)
    }
    values["net.ipv4.ip_forward"] = str(node.sysctl.get("net.ipv4.ip_forward"))
    values["net.ipv4.icmp_echo_ignore_all"] = "1"
    if node.routing.spreads:  # what the kernel would draw (6.1 knows no such sysctl)
        values["net.ipv4.fib_multipath_hash_seed"] = str(node.routing.seed)
    order = sorted(values, key=lambda n: (not n.endswith(".forwarding"), n))
    return [(name, values[name], name in asked) for name in order]


def _checked_command(line: str) -> None:
    """Only the node's own tools, and only inside its namespace."""
    argv = shlex.split(line)
    name = os.path.basename(argv[0]) if argv else ""
    if name not in TOOLS:
        raise Unsupported(f"command {name!r}", text=line, hint="the lab runs " + ", ".join(TOOLS))
    if name == "ip" and any(w.startswith(("netns", "-n", "-b", "-force")) for w in argv[1:]):
        raise Unsupported("an `ip` command that leaves the node", text=line)


def plan(case: Case) -> dict[str, Any]:
    """What the player needs to know of a case. Raises Refused or Unsupported as loading the model does."""
    model = model_of(case)
    node = Node(model, seed=1)
    names = {link.name for link in model.links}
    events: list[dict[str, Any]] = []
    for e in case.events:
        if e.command is not None:
            _checked_command(e.command)
            events.append({"at": e.at, "command": e.command})
            continue
        if e.link is not None and (e.link not in names or e.link == "lo"):
            raise Refused(f"no packet can come in on {e.link!r}", hint="links: " + ", ".join(sorted(names)))
        made: dict[str, Any] = {"at": e.at, "link": e.link, "packet": (e.packet or b"").hex()}
        if e.link is not None:
            made["source"], made["to"] = e.source, e.to
        if e.answers is not None:
            made["answers"] = e.answers
        events.append(made)
    ports = {22, 53, 80, 443, 8080}
    for text in (*case.texts.values(), *(e.command or "" for e in case.events)):
        for lo, hi in re.findall(r"(?:--to-ports |--to-destination \S+?:|:)(\d+)(?:-(\d+))?", text):
            ports.update(range(int(lo), min(int(hi or lo), int(lo) + 64) + 1))
    return {
        "links": [
            {"name": k.name, "mac": k.mac, "mtu": k.mtu if k.mtu is not None else 1500}
            for k in model.links
            if k.name != "lo"
        ],
        "sysctl": _sysctls(model, node),
        "commands": _commands(model),
        "objects": [
            *(["nfct", "add", "timeout", *str(spec.policy).split()] for spec in model.policies),
            *_accounts(node),
        ],
        "texts": {name: t.text for name, t in model.texts.items() if t.text.strip() and name not in NOT_RESTORED},
        "connections": _connections(node) if "conntrack.list" in model.texts else "",
        "sets": "ipset.save" in model.texts or any(e.command and "ipset" in e.command for e in case.events),
        "raw": "*raw" in case.texts.get("iptables.save", "")
        or any(e.command and " raw " in e.command for e in case.events),
        "renew": _renewing(case.texts.get("ipset.save", "")),
        "ports": sorted(p for p in ports if 0 < p < 65536),
        "events": events,
        "modules": model.modules,
        "end": case.end,
        "begun": clock.BEGUN // node.hz,
    }


def _connections(node: Node) -> str:
    """The connection table as `conntrack -R` takes it: what was translated is told as what it was translated to."""
    ct = node.conntrack
    out = []
    for flow in ct.stored.nonzero()[0].tolist():
        if ct.helper[flow] or ct.parent[flow] or ct.zone[flow]:
            raise Unsupported("connections of helpers or zones at time zero (conntrack.list) on a real kernel")
        there, back = ct.original(flow), ct.reply(flow)
        plain = inverse(there)
        proto = there[4]
        if proto not in (TCP, UDP, ICMP):
            raise Unsupported("connections of other protocols than TCP, UDP and ICMP at time zero on a real kernel")
        status = int(ct.status[flow])
        named = [name for name, bit in (("SEEN_REPLY", SEEN_REPLY), ("ASSURED", ASSURED)) if status & bit]
        left = max(int(ct.deadline[flow]) - node.now, 0) // clock.SECOND
        words = [f"-A -t {left} -u {','.join(named) or 'UNSET'} -m {int(ct.mark[flow])} -p {PROTOCOLS[proto]}"]
        words.append(f"-s {dotted(there[0])} -d {dotted(there[1])} -r {dotted(plain[0])} -q {dotted(plain[1])}")
        ported = proto != ICMP
        if ported:
            words.append(f"--sport {there[2]} --dport {there[3]}")
            words.append(f"--reply-port-src {plain[2]} --reply-port-dst {plain[3]}")
        else:
            words.append(f"--icmp-type {there[3] >> 8} --icmp-code {there[3] & 255} --icmp-id {there[2]}")
        if proto == TCP:
            words.append(f"--state {STATES[int(ct.tcp.misc[flow, 9])]}")
        for option, k, port in (("--src-nat", 1, 3), ("--dst-nat", 0, 2)):
            if back[k] != plain[k] or (ported and back[port] != plain[port]):
                words.append(f"{option} {dotted(back[k])}" + (f":{back[port]}" if ported else ""))
        out.append(" ".join(words))
    return "".join(line + "\n" for line in out)


def _renewing(text: str) -> str:
    """The `add` lines of sets whose members have a time to live."""
    lines = [line for line in text.splitlines() if line.strip()]
    lasting = {w[1] for w in map(str.split, lines) if w[0] in ("create", "-N") and "timeout" in w}
    return "".join(f"{line}\n" for line in lines if line.split()[0] == "add" and line.split()[1] in lasting)


def play(cases: Sequence[Case], kernel: str, together: int | None = None, stats: bool = False) -> list[Recording]:
    """Have a real kernel go through the cases; one Recording for each, in order. One start of the kernel serves all.

    kernel    "host" or "uml"           together  how many cases may run at a time, each in a namespace of its own
    stats     read the statistics of IPVS too, which the kernel brings up to date every two seconds: takes as long
    Raises    Refused   when that kernel cannot be asked, or did not come to an end
    Cost      as long as the cases last, plus some 0.1 s a case, and 4 s to start User Mode Linux
    """
    if why := available(kernel):
        raise Refused(f"the {kernel} kernel cannot be asked: {why}")
    plans: list[dict[str, Any]] = []
    out: list[Recording] = [Recording("") for _ in cases]
    for k, case in enumerate(cases):
        try:
            plans.append({**plan(case), "case": k, "stats": stats})
        except NetemuError as e:
            out[k].trouble = str(e)
    if not plans:
        return out
    if len({tuple(p["modules"]) for p in plans}) > 1:  # a module is there for all cases of one start, or for none
        for names in sorted({tuple(p["modules"]) for p in plans}):
            some = [p["case"] for p in plans if tuple(p["modules"]) == names]
            for k, recording in zip(some, play([cases[k] for k in some], kernel, together, stats), strict=True):
                out[k] = recording
        return out
    at_a_time = together or (4 if kernel == "host" else 2)
    try:
        lines = _played(plans, kernel, at_a_time)
    except _StoodStill:  # User Mode Linux loses an interrupt now and then, and sleeps for ever
        try:
            lines = _played(plans, kernel, at_a_time)
        except _StoodStill as e:
            raise Refused(f"the {kernel} kernel stood still twice, {e} s each time") from None
    for made, line in zip(plans, lines, strict=True):
        out[made["case"]] = _recording(json.loads(line))
    return out


class _StoodStill(Exception):
    """Nothing came of a kernel for so many seconds."""


def _played(plans: list[dict[str, Any]], kernel: str, at_a_time: int) -> list[str]:
    """What happened, a line of JSON a plan. Raises Refused and _StoodStill."""
    lasting = [max(p["end"], p["events"][-1]["at"] if p["events"] else 0.0) for p in plans]
    with tempfile.TemporaryDirectory(prefix="netemu-", ignore_cleanup_errors=True) as folder:
        source, target = os.path.join(folder, "plans.json"), os.path.join(folder, "played.jsonl")
        Path(source).write_text(json.dumps(plans))
        words = [sys.executable, "-I", player.__file__, source, target, str(at_a_time)]
        if kernel == "uml":
            words = _booting(folder, words, plans[0]["modules"])
        limit, patience = 120 + 20 * len(plans) + 5 * sum(lasting), 120 + 5 * max(lasting)
        with _guarded(words, folder, limit, patience) as said:
            if not os.path.exists(target):
                other = "host" if kernel == "uml" else "uml"
                hint = f"--kernel {other} asks another one" if available(other) is None else ""
                raise Refused(f"the {kernel} kernel did not play to the end", text=last_words(said), hint=hint)
            return Path(target).read_text().splitlines()


#: what User Mode Linux says of itself, and the state of the machine that Linux prints behind a complaint
_BESIDE = re.compile(r"\s*(\[<|[0-9a-f]{8} |(CPU|Stack|Call Trace|Modules linked in):)")


def last_words(said: str) -> str:
    """What a kernel that came to no good end complained of.

    >>> last_words("Kernel panic - not syncing: no init\\nCPU: 0 PID: 1\\nStack:\\n 606944ba 607\\n [<606944ba>] panic")
    'Kernel panic - not syncing: no init'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip() and not _BESIDE.match(line)]
    telling = [line for line in lines if not line.startswith("Warning: tempdir")]
    return "\n".join(telling[-12:])[-2000:] or "it ended without a word"


def _recording(got: dict[str, Any]) -> Recording:
    if "error" in got:
        return Recording("", trouble=got["error"])
    events = [
        Happened(
            e["at"],
            [(link, bytes.fromhex(h)) for link, h in e["outs"]],
            e["trace"],
            e.get("status"),
            e.get("error", ""),
            bytes.fromhex(e["sent"]) if "sent" in e else None,
        )
        for e in got["events"]
    ]
    tables = got["tables"]
    texts, times = ({name: entry[k] for name, entry in tables.items()} for k in (1, 0))
    return Recording(got["release"], events, texts, times)


#: no vector registers beyond SSE's for programs inside: see `player.uml`
_TUNED = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX,-RTM "


def _booting(folder: str, words: list[str], modules: Sequence[str] = ()) -> list[str]:
    """The command that starts User Mode Linux, on this machine's own files, and has it run `words`."""
    init = Path(folder, "init")
    init.write_text(f"""#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /run/m/lib/modules; ln -s /usr/lib/uml/modules/$(uname -r) /run/m/lib/modules/
printf '#!/bin/sh\\n{_TUNED}exec /sbin/modprobe -d /run/m "$@"\\n' > /run/modprobe; chmod +x /run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe
for m in tun nf_tables nfnetlink_log nf_log_syslog nf_conntrack_netlink ip_vs \\
  nf_nat_ftp nf_nat_tftp nf_nat_irc nf_nat_sip {" ".join(modules)}; do /run/modprobe $m; done
ip link set lo up
{shlex.join(words)}
sync; poweroff -f
""")
    init.chmod(0o755)
    return [
        sys.executable, "-I", player.__file__, "uml",
        "linux.uml", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"uml_dir={folder}/", f"init={init}",
        "mem=1G", "con=null", "con0=fd:0,fd:1", "quiet", "loglevel=1",
        _TUNED.strip(),
    ]  # fmt: skip


def _touched(folder: str) -> float:
    """When a file of the folder changed last."""
    newest = os.stat(folder).st_mtime
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            newest = max(newest, entry.stat().st_mtime)
    return newest


@contextmanager
def _guarded(words: list[str], folder: str, limit: float, patience: float) -> Iterator[str]:
    """Run a command to its end, and give what it said. Its guard ends whatever is left of it, and removes the folder,
    when this context is left or this process dies.

    limit, patience   seconds until it must have ended, and in which a file of the folder must change
    """
    env = {**os.environ, "HOME": folder, "TMPDIR": folder}
    env["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
    guard = [sys.executable, "-I", player.__file__, "guard", folder, *words]
    with subprocess.Popen(
        guard, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, start_new_session=True
    ) as running:
        assert running.stdin is not None and running.stdout is not None
        try:
            said, until = b"", time.monotonic() + limit
            while True:
                ready, _, _ = select.select(
                    [running.stdout], [], [], max(0.0, min(5.0, patience, until - time.monotonic()))
                )
                if not ready:
                    if time.monotonic() >= until:
                        raise Refused(f"the kernel was still playing after {limit:.0f} s")
                    if time.time() - _touched(folder) > patience:
                        raise _StoodStill(round(patience))
                    continue
                more = os.read(running.stdout.fileno(), 65536)
                if not more:
                    break
                said += more
            yield said.decode("utf-8", "replace")
        finally:
            running.stdin.close()
            running.wait()


# ---- comparing ------------------------------------------------------------------------------------------------------


def _dotted(address: int) -> str:
    return socket.inet_ntoa(address.to_bytes(4, "big"))


def _own_id_gone(packet: bytes, sent: bytes) -> bytes:
    """Blank the IP id and header checksum of a packet that the node made itself."""
    if packet[4:6] == sent[4:6]:
        return packet
    return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]


End = tuple[int, bytes, int, bytes, int]


def ends(packet: bytes) -> End | None:
    """(protocol, source, source port, destination, destination port), None where there are no ports.

    An ICMP query has its id on the asking side.
    """
    places = port_places(packet)
    if places is None:
        return None
    s, d = (int.from_bytes(packet[k : k + 2], "big") for k in places[:2])
    if packet[9] == ICMP:
        s, d = (s, 0) if packet[(packet[0] & 15) * 4] == 8 else (0, d)
    return packet[9], packet[12:16], s, packet[16:20], d


class Drawn:
    """Ports that Linux drew at random, and netemu otherwise: which of ours stands for which of the kernel's.

    Likewise the cookies of SYNPROXY.
    """

    def __init__(self) -> None:
        self.ours: dict[End, End] = {}
        self.kernels: dict[End, End] = {}
        self.cookies = Cookies()

    @staticmethod
    def _find(pairs: dict[End, End], key: End) -> End | None:
        # IPVS sends one connection's packets to several servers one by one: then the far end differs
        return pairs.get(key) or next((v for k, v in pairs.items() if k[:3] == key[:3]), None)

    def learn(self, sent: bytes, kernel: bytes, ours: bytes, trace: Sequence[str]) -> None:
        """Remember that the source ports differ, if a draw explains it: a new flow asked nat, both are of one pool."""
        if Cookies.greets(kernel) and Cookies.greets(ours) and Cookies.ends(kernel) == Cookies.ends(ours):
            self._learn_cookie(sent, kernel, ours)
            return
        was, e, g = ends(sent), ends(kernel), ends(ours)
        if not (was and e and g) or e[:2] + e[3:] != g[:2] + g[3:] or e[2] == g[2]:
            return
        if (
            e in self.ours
            or g in self.kernels
            or not any(t.startswith(("nat:POSTROUTING", "nat:INPUT")) for t in trace)
        ):
            return
        if was[0] != e[0] or was[2] in (e[2], g[2]):
            return
        low, high = (0, 65535) if e[0] == ICMP else _pool(was[2])
        if low <= e[2] <= high and low <= g[2] <= high:
            self.ours[e], self.kernels[g] = g, e

    def _learn_cookie(self, sent: bytes, kernel: bytes, ours: bytes) -> None:
        """Remember how far a cookie is from ours, and a timestamp up to what it must tell: its lowest six bits."""
        key, stamps = Cookies.ends(sent), player.stamps_at(ours)
        (theirs,), (own,) = (struct.unpack_from("!I", x, (x[0] & 15) * 4 + 4) for x in (kernel, ours))
        stamp = 0
        if stamps and stamps == player.stamps_at(kernel):
            stamp = struct.unpack_from("!I", ours, stamps)[0] - struct.unpack_from("!I", kernel, stamps)[0]
        if key is not None and not stamp & 0x3F:
            self.cookies.learn(key, own - theirs, stamp)

    def outward(self, packet: bytes, introduces: bool = False) -> bytes:
        """What the kernel sent, as we should send it.   introduces: see Cookies"""
        packet = self.cookies.outward(packet, introduces)
        e = ends(packet)
        if e is None:
            return self._quoted(packet)
        pair = self._find(self.ours, e)
        # an answer that nobody translates back leaves for the port that was drawn
        return with_port(packet, True, pair[2]) if pair else self._to_our_port(packet)

    def inward(self, packet: bytes) -> bytes:
        """An answer to the kernel's port, as the answer to ours."""
        return self._to_our_port(self.cookies.inward(packet))

    def _to_our_port(self, packet: bytes) -> bytes:
        e = ends(packet)
        if e is None:
            return self._quoted(packet)
        pair = self._find(self.ours, (e[0], e[3], e[4], e[1], e[2]))
        return with_port(packet, False, pair[2]) if pair else packet

    def _quoted(self, packet: bytes) -> bytes:
        """ICMP errors carry the beginning of what they are about."""
        at = (packet[0] & 15) * 4
        if packet[9] != ICMP or len(packet) < at + 36 or packet[at] not in ERRORS:
            return packet
        inner = packet[at + 8 :]
        e = ends(inner)
        pair = self._find(self.ours, e) if e else None
        source = pair is not None
        if e and pair is None:  # about an answer to such a port
            pair = self._find(self.ours, (e[0], e[3], e[4], e[1], e[2]))
        if pair is None:
            return packet
        head = packet[at : at + 2] + b"\0\0" + packet[at + 4 : at + 8]
        body = head + with_port(inner, source, pair[2])
        return packet[:at] + body[:2] + _checksum(body).to_bytes(2, "big") + body[4:]

    def text(self, proto: str, src: str, sport: str, dst: str, dport: str) -> str:
        """A port of our tables, as the kernel's tables have it."""
        try:
            number = {"icmp": ICMP, "tcp": TCP, "udp": UDP}[proto.lower()]
            key = (number, socket.inet_aton(src), int(sport), socket.inet_aton(dst), int(dport))
        except (KeyError, OSError, ValueError):
            return sport
        pair = self._find(self.kernels, key)
        return str(pair[2]) if pair else sport

    def member(self, text: str) -> str:
        """A member of a set of ours, as the kernel's set has it: answers to a drawn port may have put that there."""

        def turned(found: re.Match[str]) -> str:
            return f"{found[1]},{found[2]}:{self.text(found[2], found[1], found[3], '0.0.0.0', '0')}"

        return re.sub(r"\b(\d+\.\d+\.\d+\.\d+),(tcp|udp):(\d+)\b", turned, text) if self.kernels else text


def _pool(port: int) -> tuple[int, int]:
    """The ports that Linux draws from when no range is given."""
    return (1, 511) if port < 512 else (600, 1023) if port < 1024 else (1024, 65535)


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


class Dice:
    """What `statistic --mode random` is to draw: what the kernel drew, read from its trace.

    A rule that stands in the trace matched, so its draw was a hit; one that does not, did not. Draws that no trace can
    tell are netemu's own.
    """

    def __init__(self, node: Node) -> None:
        self.rules: list[tuple[str, Statistic]] = []
        self.by_salt: dict[int, list[tuple[str, Statistic]]] = {}
        self.by_serial: dict[int, tuple[set[str], Counter[int]]] = {}
        self.node = node
        self.read_rules()

    def read_rules(self) -> None:
        """Find the rules that draw (again, after a command)."""
        self.rules = [
            (f"{table}:{chain.name}:rule:{number}", match)
            for table, chain, number, rule in self.node.tables.rules()
            for match in rule.matches
            if isinstance(match, Statistic) and match.mode == "random"
        ]
        self.by_salt.clear()

    def drawing(self, salt: int) -> list[tuple[str, Statistic]]:
        """The rules that draw with this salt."""
        if salt not in self.by_salt:  # a rule has its salt only once it was met
            self.by_salt[salt] = [(step, match) for step, match in self.rules if match.salt == salt]
        return self.by_salt[salt]

    def expect(self, serial: int, trace: Sequence[str]) -> None:
        """The packet with this serial number met these rules."""
        if self.rules:
            self.by_serial[serial] = (set(trace), Counter())

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Within, draws come out as expected."""
        if not self.rules:
            yield
            return
        fair = trip.Trip.random

        def random(journey: trip.Trip, rows: Rows, salt: int) -> U64:
            drawn = fair(journey, rows, salt)
            known = self.drawing(salt)
            if not known or journey.node is not self.node:
                return drawn
            for k, serial in enumerate(journey.pkts.serial[rows].tolist()):
                if serial in self.by_serial:
                    trace, asked = self.by_serial[serial]
                    step, match = known[min(asked[salt], len(known) - 1)]
                    asked[salt] += 1
                    hit = (step in trace) != match.invert
                    drawn[k] = (0 if hit else min(match.threshold, 2**31 - 1)) << 33
            return drawn

        trip.Trip.random = random  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            trip.Trip.random = fair  # type: ignore[method-assign]


def _all_caused(journey: Journey) -> list[Journey]:
    return [c for j in journey.caused for c in (j, *_all_caused(j))]


def _table_steps(journey: Journey) -> list[str]:
    return [str(s) for s in journey.steps if s.table]


def is_merge(log: Sequence[str], *streams: Sequence[str]) -> bool:
    """Whether `log` holds the steps of all streams, each in its order: the kernel logs what several packets do in one.

    >>> is_merge("abxcy", "abc", "xy"), is_merge("abyxc", "abc", "xy")
    (True, False)
    """
    if len(log) != sum(map(len, streams)):
        return False
    reach = {(0,) * len(streams)}  # how far each stream may have come
    for step in log:
        reach = {
            (*at[:k], at[k] + 1, *at[k + 1 :])
            for at in reach
            for k, stream in enumerate(streams)
            if at[k] < len(stream) and stream[at[k]] == step
        }
    return bool(reach)


class Comparison:
    """One case gone through by netemu beside a recording."""

    def __init__(self, case: Case, recording: Recording, seed: int = 1) -> None:
        self.case, self.recording = case, recording
        model = model_of(case)
        model.kernel = recording.kernel
        self.macs = {link.name: link.mac for link in model.links if link.mac}
        self.model, self.seed = model, seed
        self.drawn = Drawn()
        self.found: list[Disagreement] = []

    def one_by_one(self) -> list[bytes]:
        """Each packet by itself; the packets as they were sent, answers turned to our ports."""
        node = Node(self.model, self.seed)
        dice = Dice(node)
        sent: list[bytes] = []
        for k, (event, happened) in enumerate(zip(self.case.events, self.recording.events, strict=True)):
            if event.command is not None:
                self._run(node, k)
                dice.read_rules()
                sent.append(b"")
                continue
            packet = self.drawn.inward(happened.sent or event.packet or b"")
            sent.append(packet)
            if not self.arrived(k):
                continue
            dice.expect(node.serial, happened.trace)
            with dice.loaded():
                journey = self._send(node, event, packet, happened.at)
            self._judge(k, packet, journey)
        self._tables(node)
        return sent

    def arrived(self, k: int) -> bool:
        """Whether the kernel could be made to take packet `k` in: a link that is down takes none."""
        return self.case.events[k].link is None or not self.recording.events[k].error

    def in_batches(self, sent: Sequence[bytes], run_length: int | None) -> None:
        """Stretches of packets between commands, as captures."""
        node = Node(self.model, self.seed)
        dice = Dice(node)
        batch: list[int] = []

        def flush() -> None:
            if not batch:
                return
            for n, k in enumerate(batch):
                dice.expect(node.serial + n, self.recording.events[k].trace)
            with dice.loaded():
                journeys = node.replay(read_capture(self._capture(batch, sent)), run_length)
            for n, k in enumerate(batch):
                self._judge(k, sent[k], journeys[n])
            batch.clear()

        for k, (event, happened) in enumerate(zip(self.case.events, self.recording.events, strict=True)):
            if event.command is not None:
                flush()
                self._run(node, k)
                dice.read_rules()
            elif not self.arrived(k):
                continue
            elif event.link is None:
                flush()
                dice.expect(node.serial, happened.trace)
                with dice.loaded():
                    self._judge(k, sent[k], self._send(node, event, sent[k], happened.at))
            else:
                batch.append(k)
        flush()
        self._tables(node)

    def _run(self, node: Node, k: int) -> None:
        event, happened = self.case.events[k], self.recording.events[k]
        assert event.command is not None
        status, said = 0, ""
        try:
            node.run(event.command, at=happened.at)
        except Refused as e:
            status, said = e.status, str(e)
        if (status != 0) != (happened.status != 0):
            self.found.append(
                Disagreement(
                    self.case.name,
                    f"command `{event.command}` at {happened.at:.3f} s",
                    "status",
                    f"{happened.status} {happened.error}".strip(),
                    f"{status} {said}".strip(),
                    k,
                )
            )

    def _frame(self, event: Event, packet: bytes) -> bytes:
        assert event.link is not None
        to = event.to or self.macs[event.link] or ""
        return bytes.fromhex(to.replace(":", "")) + bytes.fromhex(event.source.replace(":", "")) + b"\x08\x00" + packet

    def _send(self, node: Node, event: Event, packet: bytes, at: float) -> Journey:
        if event.link is None:
            return node.send(packet, None, at)
        return node.send(self._frame(event, packet), event.link, at, ethernet=True)

    def _capture(self, batch: Sequence[int], sent: Sequence[bytes]) -> BytesIO:
        """A pcapng of these packets: an interface a link, Ethernet, nanoseconds."""
        names = list(self.macs)
        out = BytesIO()

        def block(kind: int, body: bytes) -> None:
            body += b"\0" * (-len(body) % 4)
            size = struct.pack("<I", len(body) + 12)
            out.write(struct.pack("<I", kind) + size + body + size)

        def option(code: int, value: bytes) -> bytes:
            return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)

        block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
        for name in names:
            block(1, struct.pack("<HHI", 1, 0, 0) + option(2, name.encode()) + option(9, b"\x09") + option(0, b""))
        for k in batch:
            event = self.case.events[k]
            assert event.link is not None
            frame, at = self._frame(event, sent[k]), round(self.recording.events[k].at * 1e9)
            inbound = option(2, struct.pack("<I", 1)) + option(0, b"")
            head = struct.pack("<IIIII", names.index(event.link), at >> 32, at & 0xFFFFFFFF, len(frame), len(frame))
            block(6, head + frame + b"\0" * (-len(frame) % 4) + inbound)
        out.seek(0)
        return out

    # ---- judging ----

    def _judge(self, k: int, packet: bytes, journey: Journey) -> None:
        happened = self.recording.events[k]
        ours = [(link, bytes(b)) for link, b in journey.out]
        introduces = journey.reason == INTRODUCED
        for (link, b), (other, theirs) in zip(
            sorted(ours, key=lambda o: o[0]), sorted(happened.outs, key=lambda o: o[0]), strict=False
        ):
            if link == other and b != self.drawn.outward(theirs, introduces):
                self.drawn.learn(packet, theirs, b, happened.trace)
        kernels = [(link, self.drawn.outward(b, introduces)) for link, b in happened.outs]
        mine = _table_steps(journey)
        caused = [_table_steps(c) for c in _all_caused(journey)]

        def say(what: str, kernel: str, netemu: str, packets: tuple[str, str] = ("", "")) -> None:
            place = f"packet {k + 1} at {happened.at:.3f} s"
            steps = tuple(f"{s}  {s.rule}".rstrip() for s in journey.steps)
            steps += tuple(f"caused: {s}" for c in _all_caused(journey) for s in c.steps)
            self.found.append(
                Disagreement(self.case.name, place, what, kernel, netemu, k, packets, steps, tuple(happened.trace))
            )

        if not is_merge(happened.trace, mine, *caused):
            both = [*mine, *(step for steps in caused for step in steps)]
            at = next((n for n, (a, b) in enumerate(zip(happened.trace, both, strict=False)) if a != b), None)
            at = min(len(happened.trace), len(both)) if at is None else at
            theirs_step = happened.trace[at] if at < len(happened.trace) else "nothing more"
            our_step = both[at] if at < len(both) else "nothing more"
            say("path", theirs_step, our_step, (words(packet), words(packet)))
        links = sorted({link for link, _ in (*ours, *kernels)})
        for name in links:
            they_left = [_own_id_gone(b, packet) for link, b in kernels if link == name]
            we_left = [_own_id_gone(b, packet) for link, b in ours if link == name]
            if len(they_left) != len(we_left):
                they_said, we_said = ("; ".join(map(words, side)) or "nothing" for side in (they_left, we_left))
                say(f"packets out on {name}", str(len(they_left)), str(len(we_left)), (they_said, we_said))
                continue
            for theirs, own in zip(they_left, we_left, strict=True):
                if theirs != own:
                    what, kernel, netemu = first_difference(theirs, own)
                    say(what, kernel, netemu, (f"{name} {words(theirs)}", f"{name} {words(own)}"))
                    break

    def _tables(self, node: Node) -> None:
        """Each table at the time when the kernel's was read."""
        recording, drawn = self.recording, self.drawn
        for name in sorted(recording.tables, key=lambda n: recording.read.get(n, 0.0)):
            node.advance(at=recording.read.get(name, 0.0))
            theirs = recording.tables[name]
            if name == "conntrack":
                self._rows(name, conntrack_rows(theirs, Drawn()), conntrack_rows(node.dump(name), drawn))
            elif name == "expect":
                self._rows("expectations", expect_rows(theirs), expect_rows(node.dump("expectations")))
            elif name == "ipset":
                ours = [(drawn.member(text), left) for text, left in ipset_rows(node.dump("ipset-save"))]
                self._rows(name, ipset_rows(theirs), ours)
            elif name == "connections":
                ours = connection_rows(node.dump("ipvsadm-connections"))
                self._rows("IPVS connections", connection_rows(theirs), ours)
            elif name == "counters":
                self._lines(name, counter_lines(theirs), counter_lines(node.dump("iptables-save")))
            elif name == "ipvs":
                self._lines("IPVS", list_lines(theirs), list_lines(node.dump("ipvsadm-list")))
            elif name == "stats":
                self._lines("IPVS statistics", list_lines(theirs), list_lines(node.dump("ipvsadm-stats")))

    def _rows(self, name: str, theirs: list[Row], ours: list[Row]) -> None:
        a, b = sorted(text for text, _ in theirs), sorted(text for text, _ in ours)
        if a != b:
            self._lines(name, a, b)
            return
        times: dict[str, list[int | None]] = {}
        for text, left in sorted(theirs, key=str):
            times.setdefault(text, []).append(left)
        for text, left in sorted(ours, key=str):
            at = times[text].pop(0)
            if (at is None) != (left is None) or (at is not None and left is not None and abs(at - left) > SLACK):
                self._table(name, f"timer of {text}", f"{at} s", f"{left} s")

    def _lines(self, name: str, theirs: list[str], ours: list[str]) -> None:
        if theirs == ours:
            return
        only_theirs = list((Counter(theirs) - Counter(ours)).elements())
        only_ours = list((Counter(ours) - Counter(theirs)).elements())
        if not only_theirs and not only_ours:
            at = next(n for n, (x, y) in enumerate(zip(theirs, ours, strict=True)) if x != y)
            self._table(name, "order of lines", theirs[at], ours[at])
        for n in range(max(len(only_theirs), len(only_ours))):
            self._table(
                name,
                "line",
                only_theirs[n] if n < len(only_theirs) else "(no such line)",
                only_ours[n] if n < len(only_ours) else "(no such line)",
            )

    def _table(self, place: str, what: str, kernel: str, netemu: str) -> None:
        self.found.append(Disagreement(self.case.name, place, what, kernel, netemu))


SLACK = 2  # seconds that two timers may differ by
Row = tuple[str, int | None]


def conntrack_rows(text: str, drawn: Drawn) -> list[Row]:
    """(entry, seconds left) of each line of `conntrack -L -o extended`; drawn ports as the kernel's."""
    out: list[Row] = []
    for line in text.splitlines():
        found = re.match(r"ipv4\s+\d+\s+(\w+)\s+(\d+) (.*)", line.strip())
        if not found:
            continue
        parts = [w for w in found[3].split() if not w.startswith("use=")]
        left = int(parts.pop(0)) if parts and parts[0].isdigit() else None
        for first in [i for i, w in enumerate(parts) if w.startswith("src=")]:
            at = {w.partition("=")[0]: i for i, w in reversed(list(enumerate(parts))[first : first + 6])}
            value = {key: parts[i].partition("=")[2] for key, i in at.items()}
            if "sport" in value:
                src, dst = (value["src"], value["sport"]), (value["dst"], value["dport"])
                parts[at["sport"]] = "sport=" + drawn.text(found[1], *src, *dst)
                parts[at["dport"]] = "dport=" + drawn.text(found[1], *dst, *src)
            elif "id" in value and first:
                parts[at["id"]] = "id=" + drawn.text(found[1], value["dst"], value["id"], value["src"], "0")
        out.append((" ".join([found[1], found[2], *parts]), left))
    return out


def expect_rows(text: str) -> list[Row]:
    """(entry, seconds left) of each line of `conntrack -L expect`."""
    parts = (line.strip().partition(" ") for line in text.splitlines())
    return [(rest, int(left)) for left, _, rest in parts if left.isdigit()]


def ipset_rows(text: str) -> list[Row]:
    """(line, seconds left) of `ipset save`, without what follows the hash."""
    out: list[Row] = []
    for raw in text.splitlines():
        line = re.sub(r" (hashsize|bucketsize|initval) \S+", "", raw.strip())
        left = None
        found = re.search(r" timeout (\d+)", line) if line.startswith("add") else None
        if found and int(found[1]):
            left, line = int(found[1]), line.replace(found[0], " timeout ~", 1)
        if line:
            out.append((line, left))
    return out


def connection_rows(text: str) -> list[Row]:
    """(entry, seconds left) of each line of `ipvsadm -Lnc`."""
    out: list[Row] = []
    for line in text.splitlines()[2:]:
        parts = line.split()
        if len(parts) >= 6:
            minutes, seconds = parts[1].split(":")
            out.append((" ".join([parts[0], *parts[2:]]), int(minutes) * 60 + int(seconds)))
    return out


def counter_lines(text: str) -> list[str]:
    """Lines of `iptables-save -c`, without remarks."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def list_lines(text: str) -> list[str]:
    """Lines of `ipvsadm -Ln`, without the heading."""
    heading = ("IP Virtual", "Prot ", "-> Remote")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(heading)]


def compare(case: Case, recording: Recording, run_length: int | None = 1) -> list[Disagreement]:
    """Where netemu, going through the case, differs from what the kernel did.

    run_length  how many packets may go together (1: each by itself, the reference)
    Raises      Refused      the recording has trouble: there is nothing to compare with
                Unsupported  netemu cannot load the case
    """
    if recording.trouble:
        raise Refused(f"{case.name} was not played: {recording.trouble}")
    reference = Comparison(case, recording)
    sent = reference.one_by_one()
    return reference.found if run_length == 1 else _batched(case, recording, sent, run_length)


def compare_both(case: Case, recording: Recording) -> list[Disagreement]:
    """The same of each packet by itself, or else of runs as long as can be."""
    if recording.trouble:
        raise Refused(f"{case.name} was not played: {recording.trouble}")
    reference = Comparison(case, recording)
    sent = reference.one_by_one()
    return reference.found or _batched(case, recording, sent, None)


def _batched(case: Case, recording: Recording, sent: Sequence[bytes], run_length: int | None) -> list[Disagreement]:
    batched = Comparison(case, recording)
    batched.in_batches(sent, run_length)
    return batched.found


# ---- in words -------------------------------------------------------------------------------------------------------

FLAGS = "FSRPAUEC"


def words(packet: bytes) -> str:
    """A packet on one line.

    >>> words(bytes.fromhex("4500001c000000004001000a0a0000010a0000020800f7f700070001"))
    'icmp 10.0.0.1 > 10.0.0.2 type 8 code 0 id 7 ttl 64 len 28'
    """
    if len(packet) < 20:
        return packet.hex()
    at = (packet[0] & 15) * 4
    src, dst = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    (fragment,) = struct.unpack_from("!H", packet, 6)
    tail = f" ttl {packet[8]}" + (f" tos {packet[1]:#x}" if packet[1] else "") + f" len {len(packet)}"
    if fragment & 0x3FFF:
        tail += f" fragment {(fragment & 0x1FFF) * 8}{'+' if fragment & 0x2000 else ''}"
    body, proto = packet[at:], packet[9]
    name = {TCP: "tcp", UDP: "udp", ICMP: "icmp"}.get(proto, f"protocol {proto}")
    if fragment & 0x1FFF or len(body) < 8:
        return f"{name} {src} > {dst}{tail}"
    if proto in (TCP, UDP):
        sport, dport = struct.unpack_from("!HH", body)
        flags = "".join(f for k, f in enumerate(FLAGS) if proto == TCP and len(body) > 13 and body[13] >> k & 1)
        return f"{name} {src}:{sport} > {dst}:{dport}{f' {flags}' if flags else ''}{tail}"
    if proto == ICMP:
        about = f" ({words(body[8:])})" if body[0] in ERRORS and len(body) >= 28 else f" id {body[4] << 8 | body[5]}"
        return f"icmp {src} > {dst} type {body[0]} code {body[1]}{about}{tail}"
    return f"{name} {src} > {dst}{tail}"


def first_difference(kernel: bytes, netemu: bytes) -> tuple[str, str, str]:
    """(field, kernel's value, netemu's value) of the first header field that differs; checksums come last."""
    if len(kernel) != len(netemu):
        return "length", str(len(kernel)), str(len(netemu))
    at = (kernel[0] & 15) * 4
    fields: list[tuple[str, int, int]] = [("src", 12, 4), ("dst", 16, 4), ("protocol", 9, 1)]
    if kernel[9] in (TCP, UDP):
        fields += [("sport", at, 2), ("dport", at + 2, 2)]
    if kernel[9] == TCP:
        fields += [("seq", at + 4, 4), ("ack", at + 8, 4), ("flags", at + 13, 1), ("window", at + 14, 2)]
    if kernel[9] == ICMP:
        fields += [("type", at, 1), ("code", at + 1, 1), ("rest of header", at + 4, 4)]
    fields += [("ttl", 8, 1), ("tos", 1, 1), ("id", 4, 2), ("fragment", 6, 2), ("total length", 2, 2)]
    checks = {TCP: at + 16, UDP: at + 6, ICMP: at + 2}
    tail = [("checksum", checks.get(kernel[9], 10), 2), ("header checksum", 10, 2)]
    body = next((k for k in range(at, len(kernel)) if kernel[k] != netemu[k]), None)
    known = {k for _, start, size in (*fields, *tail) for k in range(start, start + size)}
    for name, start, size in fields:
        a, b = kernel[start : start + size], netemu[start : start + size]
        if a != b:
            if size == 4 and name in ("src", "dst"):
                return name, socket.inet_ntoa(a), socket.inet_ntoa(b)
            return name, str(int.from_bytes(a, "big")), str(int.from_bytes(b, "big"))
    if body is not None and body not in known:
        return f"byte {body}", f"{kernel[body]:#04x}", f"{netemu[body]:#04x}"
    for name, start, size in tail:
        a, b = kernel[start : start + size], netemu[start : start + size]
        if a != b:
            return name, a.hex(), b.hex()
    k = next(k for k in range(len(kernel)) if kernel[k] != netemu[k])
    return f"byte {k}", f"{kernel[k]:#04x}", f"{netemu[k]:#04x}"


# ---- cases from models and captures ---------------------------------------------------------------------------------


def texts_of(folder: str | Path) -> dict[str, str]:
    """The files of a model directory that netemu reads, by name."""
    read_model(folder, [])  # says what is wrong with the directory
    return {name: (Path(folder) / name).read_text(encoding="utf-8") for name in FILES if (Path(folder) / name).exists()}


def from_traces(
    folder: str | Path,
    traces: Sequence[str],
    *,
    link: str | None = None,
    commands: Sequence[tuple[float, str]] = (),
    longest: float = 2.0,
    count: int | None = None,
) -> tuple[Case, list[str]]:
    """A case of a model directory and captures, and remarks on what it leaves out.

    link      as `--link`                       commands  [(seconds, command)]
    longest   a gap between two events that is longer is cut to this many seconds: the kernel's clock cannot be turned
    count     this many packets at most
    Raises    Refused or Unsupported, as loading the model and reading the captures do
    """
    case = Case(Path(folder).resolve().name, "", texts_of(folder), [])
    node = Node(model_of(case), seed=1)
    capture = read_capture(list(traces))
    macs: dict[str | None, int | None] = {link.name: link.mac for link in node.routing.links}
    events: list[Event] = []
    remarks: list[str] = []
    cut_short = off_lo = 0
    zero: int | None = None
    for frames in capture:
        if zero is None and len(frames):
            zero = int(frames.time[0]) if int(frames.time[0]) > EPOCH_TIMES else 0
        where = arrivals(frames, capture, node.routing, link)
        for k in range(len(frames)):
            if where[k] < -1:
                continue
            start, cap = int(frames.at[k]), int(frames.cap[k])
            total = int.from_bytes(frames.data[start + 2 : start + 4].tobytes(), "big")
            whole = int(frames.wire[k]) <= cap or total <= cap
            name = node.routing.names[where[k]] if where[k] >= 0 else None
            if not whole or name == "lo":
                cut_short += not whole
                off_lo += whole
                continue
            packet = frames.data[start : start + (total if 20 <= total <= cap else cap)].tobytes()
            at, to = (int(frames.time[k]) - (zero or 0)) / 1e9, int(frames.dmac[k])
            ether = bool(frames.ether[k]) and name is not None
            events.append(
                Event(
                    at,
                    name,
                    packet,
                    source=format_mac(int(frames.smac[k])) if ether else SENDER,
                    to=format_mac(to) if ether and to not in (0, macs.get(name)) else "",
                )
            )
            if len(events) == count:
                break
        if len(events) == count:
            break
    if capture.problem is not None and (count is None or len(events) < count):
        raise_all(list(capture.problems))
    events += [Event(at, command=text) for at, text in commands]
    events = sorted(events, key=lambda e: (e.at, e.command is None))
    events, cuts, seconds = _paced(events, longest)
    if cuts:
        remarks.append(
            f"{cuts} gap{'s' * (cuts > 1)} longer than {longest:g} s cut, {seconds:.1f} s in all: "
            "timeouts in them were not tried (--longest-gap)"
        )
    if cut_short:
        remarks.append(f"{cut_short} packets left out: the capture holds only a part of them")
    if off_lo:
        remarks.append(f"{off_lo} packets left out: no packet can be made to come in on lo")
    remarks += [f"{n} {kind} frames left out" for kind, n in capture.counts.items()]
    case.events = events
    case.name = f"{case.name}/{Path(traces[0].rpartition('=')[2]).name.partition('.')[0]}"
    return case, remarks


def _paced(events: list[Event], longest: float) -> tuple[list[Event], int, float]:
    """The events with no gap longer than `longest`: (events, gaps cut, seconds cut)."""
    out: list[Event] = []
    cuts, saved, before = 0, 0.0, 0.0
    for e in events:
        at = max(e.at, before)
        if at - before > longest:
            cuts += 1
            saved += at - before - longest
        before = at
        out.append(replace(e, at=round(at - saved, 9)))
    return out, cuts, saved


def choose(kernel: str, case: Case) -> str:
    """Which kernel to ask: "auto" prefers the one that the model speaks of. Raises Refused when there is none."""
    if kernel != "auto":
        if why := available(kernel):
            raise Refused(f"the {kernel} kernel cannot be asked: {why}")
        return kernel
    ipvs = bool(case.texts.get("ipvsadm.save", "").strip())
    order = ("uml", "host") if ipvs or model_of(case).kernel == KERNELS[0] else ("host", "uml")
    reasons = {name: available(name) for name in order}
    for name, why in reasons.items():
        if why is None:
            return name
    raise Refused("no kernel can be asked", hint="; ".join(f"{name}: {why}" for name, why in reasons.items()))


# ---- a case and its recording as a file -----------------------------------------------------------------------------

#: table of a recording -> the command that prints it
PRINTED = {
    "conntrack": "conntrack -L -o extended",
    "counters": "iptables-save -c",
    "expect": "conntrack -L expect",
    "ipset": "ipset save",
    "ipvs": "ipvsadm -Ln",
    "connections": "ipvsadm -Lnc",
    "stats": "ipvsadm -Ln --stats --exact",
}


def save(case: Case, recording: Recording, path: str | Path) -> None:
    """Write a case and what the kernel did with it: a text file that `load` reads back, and that a person can read."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(as_text(case, recording), encoding="utf-8")


def as_text(case: Case, recording: Recording) -> str:
    """A case and its recording in one text.

    # name
    # the story, a few lines
    kernel 6.18.44
    end 0.012
    == node.toml                     the model's files, as they are
    == events
    0.000110 eth0 | tcp ...          when, where it came in (- the node sent it); words are for people
        4500003000014000...
      path nat:PREROUTING:rule:1     TRACE
      out eth1 | tcp ...             what left
        45000030...
    0.500000 $ ipset add ...         a command
      status 0
    == conntrack -L -o extended      the tables after all
    """
    out = [f"# {case.name}", *(f"# {line}".rstrip() for line in case.story.strip().splitlines() if case.story.strip())]
    out.append(f"kernel {recording.release.partition('-')[0]}")
    for name, text in case.texts.items():
        out += [f"== {name}", *text.rstrip("\n").split("\n")]
    out.append("== events")
    for event, happened in zip(case.events, recording.events, strict=True):
        if event.command is not None:
            out += [f"{happened.at:.6f} $ {event.command}", f"  status {happened.status}"]
        else:
            packet = event.packet or b""
            out += [f"{happened.at:.6f} {event.link or '-'} | {words(packet)}", *_hex(packet)]
            out += [f"  from {event.source}"] if event.source != SENDER else []
            out += [f"  to {event.to}"] if event.to else []
            out += [f"  answers {event.answers}"] if event.answers is not None else []
            out += [f"  sent | {words(happened.sent)}", *_hex(happened.sent)] if happened.sent else []
        out += [f"  error {' '.join(happened.error.split())}"] if happened.error else []
        out += [f"  path {' '.join(happened.trace)}"] if happened.trace else []
        for link, left in happened.outs:
            out += [f"  out {link} | {words(left)}", *_hex(left)]
    for name, command in PRINTED.items():
        if name in recording.tables:
            lines = recording.tables[name].rstrip("\n").split("\n")
            out.append(f"== at {recording.read[name]:.6f} $ {command}")
            out += [line.rstrip() for line in lines if not line.startswith("# ")]
    return "\n".join(out) + "\n"


def _hex(packet: bytes) -> list[str]:
    text = packet.hex()
    return [f"    {text[k : k + 112]}" for k in range(0, len(text), 112)] or ["    "]


def load(path: str | Path) -> tuple[Case, Recording]:
    """A case and its recording, as `save` wrote them. Raises Refused, naming the line, for anything else."""
    return from_text(Path(path).read_text(encoding="utf-8"), str(path))


def from_text(text: str, file: str = "") -> tuple[Case, Recording]:
    """As `load`, from the text itself."""
    head: list[str] = []
    sections: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] | None = None
    values: dict[str, str] = {}
    read: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("== "):
            when, dollar, command = line[3:].partition(" $ ")
            current = sections.setdefault(command or when, [])
            if dollar:
                read[command] = float(when.removeprefix("at "))
        elif current is not None:
            current.append((number, line))
        elif line.startswith("#"):
            head.append(line[1:].strip())
        elif line.strip():
            word, _, value = line.partition(" ")
            values[word] = value
    if not head or "kernel" not in values or "events" not in sections:
        hint = "a recorded case begins with `# name` and has a kernel and events: see `netemu record`"
        raise Refused("not a recorded case", file=file, line=1, hint=hint)
    texts = {
        name: "".join(f"{line}\n" for _, line in sections[name]) for name in (*FILES, "node.toml") if name in sections
    }
    case = Case(head[0], "\n".join(head[1:]), {name: texts[name] for name in sections if name in texts}, [])
    recording = Recording(values["kernel"])
    for name, command in PRINTED.items():
        if command in sections:
            recording.tables[name] = "".join(f"{line}\n" for _, line in sections[command])
            recording.read[name] = read.get(command, 0.0)
    for number, line in sections["events"]:
        try:
            _read_event(line, case, recording)
        except (ValueError, IndexError) as e:
            raise Refused(f"cannot be read: {e}", file=file, line=number, text=line) from None
    return case, recording


def _read_event(line: str, case: Case, recording: Recording) -> None:
    """Take in one line of the events."""
    if not line.startswith(" "):
        when, _, rest = line.partition(" ")
        happened = Happened(float(when))
        if rest.startswith("$ "):
            event = Event(happened.at, command=rest[2:])
        else:
            link = rest.partition(" | ")[0]
            event = Event(happened.at, None if link == "-" else link, b"")
        case.events.append(event)
        recording.events.append(happened)
        return
    event, happened = case.events[-1], recording.events[-1]
    if line.startswith("    "):
        more = bytes.fromhex(line.strip())
        if happened.outs:
            link, before = happened.outs[-1]
            happened.outs[-1] = (link, before + more)
        elif happened.sent is not None:
            happened.sent += more
        else:
            case.events[-1] = replace(event, packet=(event.packet or b"") + more)
        return
    word, _, value = line.strip().partition(" ")
    if word == "out":
        happened.outs.append((value.partition(" | ")[0], b""))
    elif word == "path":
        happened.trace = value.split()
    elif word == "status":
        happened.status = int(value)
    elif word == "error":
        happened.error = value
    elif word == "sent":
        happened.sent = b""
    elif word == "from":
        case.events[-1] = replace(event, source=value)
    elif word == "to":
        case.events[-1] = replace(event, to=value)
    elif word == "answers":
        case.events[-1] = replace(event, answers=int(value))
    else:
        raise ValueError(f"`{word}` says nothing")


# ---- making a disagreement small ------------------------------------------------------------------------------------

_RULE = re.compile(r":\S+ -\s|(\[\d+:\d+\]\s*)?-[AaI]\s|add\s|create\s|\"?net\.")
_AT_ONCE = 24


def shrink(case: Case, kernel: str, say: Callable[[str], None] = lambda _: None) -> Case:
    """The smallest case found that still disagrees: events go first, then rules, members and servers.

    Candidates are played many at a time, in one start of the kernel. A case that does not disagree comes back as it is.
    say  told of each step
    """

    def disagreement(candidates: Sequence[Case]) -> int | None:
        """The first candidate that disagrees as the whole did."""
        loaded = [c for c in candidates if _loads(c)]
        for start in range(0, len(loaded), _AT_ONCE):
            some = loaded[start : start + _AT_ONCE]
            for candidate, recording in zip(some, play(some, kernel), strict=True):
                if _fields(candidate, recording) & wanted:
                    return next(k for k, c in enumerate(candidates) if c is candidate)
        return None

    (first,) = play([case], kernel)
    found = [] if first.trouble else compare(case, first)
    wanted = {(d.event is None, d.field) for d in found}
    if not wanted:
        return case
    last = max((d.event for d in found if d.event is not None), default=len(case.events) - 1)
    firstly = min((d.event for d in found if d.event is not None), default=last)
    for upto in (firstly, last):
        shorter = _with_events(case, list(range(upto + 1)))
        if len(shorter.events) < len(case.events) and disagreement([shorter]) is not None:
            case = shorter
            break
    while True:
        before = _size(case)
        case = _reduced(case, len(case.events), _without_events, disagreement, say, "events")
        case = _reduced(case, len(_rule_lines(case)), _without_lines, disagreement, say, "lines")
        if _size(case) == before:
            break
    return replace(case, name=f"{case.name}, shrunk")


def _loads(case: Case) -> bool:
    try:
        plan(case)
    except NetemuError:
        return False
    return True


def _fields(case: Case, recording: Recording) -> set[tuple[bool, str]]:
    if recording.trouble:
        return set()
    return {(d.event is None, d.field) for d in compare(case, recording)}


def _size(case: Case) -> tuple[int, int]:
    return len(case.events), len(_rule_lines(case))


def _reduced(
    case: Case,
    pieces: int,
    without: Callable[[Case, range], Case],
    disagreement: Callable[[Sequence[Case]], int | None],
    say: Callable[[str], None],
    noun: str,
) -> Case:
    """Take pieces away, in halves first, then ever smaller parts, as long as the disagreement stays."""
    size = max(1, pieces // 2)
    while pieces:
        cuts = [range(at, min(at + size, pieces)) for at in range(0, pieces, size)][::-1]
        kept = disagreement([without(case, cut) for cut in cuts])
        if kept is not None:
            case = without(case, cuts[kept])
            pieces -= len(cuts[kept])
            say(f"{pieces} {noun} left")
            size = max(1, min(size, pieces // 2))
        elif size == 1:
            break
        else:
            size = max(1, size // 2)
    return case


def _with_events(case: Case, kept: Sequence[int]) -> Case:
    place = {old: new for new, old in enumerate(kept)}
    events = [case.events[k] for k in kept]
    return replace(
        case, events=[replace(e, answers=place.get(e.answers)) if e.answers is not None else e for e in events]
    )


def _without_events(case: Case, cut: range) -> Case:
    return _with_events(case, [k for k in range(len(case.events)) if k not in cut])


def _rule_lines(case: Case) -> list[tuple[str, int]]:
    """(file, line) of everything that can be taken away by itself."""
    return [
        (name, k) for name, text in case.texts.items() for k, line in enumerate(text.splitlines()) if _RULE.match(line)
    ]


def _without_lines(case: Case, cut: range) -> Case:
    lines = _rule_lines(case)
    gone = {lines[k] for k in cut}
    return replace(
        case,
        texts={
            name: "".join(f"{line}\n" for k, line in enumerate(text.splitlines()) if (name, k) not in gone)
            for name, text in case.texts.items()
        },
    )


# ---- the commands ---------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What `verify` found. kernel: which was asked; remarks: what was left out, or compared otherwise than asked."""

    case: Case
    kernel: str
    recording: Recording
    disagreements: list[Disagreement]
    remarks: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "case": self.case.name,
            "kernel": self.kernel,
            "release": self.recording.release,
            "compared_as": self.recording.kernel,
            "packets": sum(e.command is None for e in self.case.events),
            "commands": sum(e.command is not None for e in self.case.events),
            "tables": list(self.recording.tables),
            "seconds": self.recording.end,
            "remarks": self.remarks,
            "disagreements": [d.as_dict() for d in self.disagreements],
            "agree": not self.disagreements,
        }

    def __str__(self) -> str:
        facts = self.as_dict()
        out = [f"note: {remark}" for remark in self.remarks]
        out += [str(d) for d in self.disagreements[:10]]
        if len(self.disagreements) > 10:
            out.append(f"... and {len(self.disagreements) - 10} more")
        where = "User Mode Linux" if self.kernel == "uml" else "this machine's kernel"
        commands = f" and {facts['commands']} commands" if facts["commands"] else ""
        asked = f"{self.case.name}: {facts['packets']} packets{commands} on Linux {self.recording.release} ({where})"
        n = len(self.disagreements)
        end = f"{n} disagreement{'s' * (n > 1)}" if n else f"path, bytes, {', '.join(facts['tables'])} agree"
        return "\n".join([*out, f"{asked}: {end}"])


def verify(case: Case, kernel: str = "auto", remarks: Sequence[str] = ()) -> Verdict:
    """Have a kernel and netemu go through a case, packet by packet and in runs, and say where they differ.

    Raises  Refused when no kernel can be asked, or the kernel does not take the model
    """
    asked = choose(kernel, case)
    (recording,) = play([case], asked, stats=True)
    if recording.trouble:
        raise Refused(f"the {asked} kernel could not play {case.name}: {recording.trouble}")
    found = compare_both(case, recording)
    said = list(remarks)
    refused = [h for e, h in zip(case.events, recording.events, strict=True) if e.link is not None and h.error]
    if refused:
        said.append(f"{len(refused)} packets could not be made to come in ({refused[0].error}: a link that is down?)")
    wants = model_of(case).kernel
    if wants != recording.kernel:
        said.append(
            f"the model says kernel {wants}; asked was {recording.release}, and netemu compared as {recording.kernel}"
        )
    return Verdict(case, asked, recording, found, said)
