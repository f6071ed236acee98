"""The command line: what is asked for, in which order it is done, and how it ends.

    0  done      1  an expectation failed      2  bad usage, or input refused      3  something netemu does not model
    130  interrupted                           141  nobody reads the output any more

Everything heavy is imported by the command that needs it, so that `netemu --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from netemu.errors import REFUSED, NetemuError, Problem, Refused, Unsupported, raise_all

if TYPE_CHECKING:
    from netemu import lab
    from netemu.capture import Capture, Frames
    from netemu.node import Journeys, Node
    from netemu.profile import Profile
    from netemu.report import Report, Screen, Summary

DONE, FAILED, REFUSED_STATUS, UNSUPPORTED_STATUS, INTERRUPTED, NO_READER = 0, 1, 2, 3, 130, 141
FATES = ("forwarded", "delivered", "rejected", "dropped", "held")
#: --conntrack and its like -> (the dump, the command that prints it on a real node)
DUMPS = {
    "conntrack": (("conntrack", "conntrack -L -o extended"),),
    "counters": (("iptables-save", "iptables-save -c"),),
    "ipset": (("ipset-save", "ipset save"),),
    "ipvs": (("ipvsadm-list", "ipvsadm -Ln"), ("ipvsadm-connections", "ipvsadm -Lnc")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads for algebra, of which there is none
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would flush standard output once more on its way out, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        return INTERRUPTED
    except NetemuError as e:
        _complain(e)
        return UNSUPPORTED_STATUS if isinstance(e, Unsupported) else REFUSED_STATUS
    except MemoryError:
        print("netemu: out of memory", file=sys.stderr)
        return REFUSED_STATUS
    except OSError as e:
        what = e.strerror or str(e)
        print(f"netemu: {f'{e.filename}: ' if e.filename else ''}{what}", file=sys.stderr)
        return REFUSED_STATUS


def _run(words: list[str]) -> int:
    top, commands = _parsers(words)
    if not words or words[0] not in commands:
        top.parse_args(words)
        top.print_help()
        return REFUSED_STATUS
    # intermixed, so that options may stand between the captures
    args = commands[words[0]].parse_intermixed_args(words[1:])
    status: int = args.run(args)
    return status


def _complain(error: NetemuError) -> None:
    screen_red = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for problem in error.problems:
        head, newline, rest = str(problem).partition("\n")
        print(f"\x1b[31m{head}\x1b[0m{newline}{rest}" if screen_red else str(problem), file=sys.stderr)
    if len(error.problems) > 1:
        print(f"{len(error.problems)} problems", file=sys.stderr)


# ---- what can be asked for -----------------------------------------------------------------------------------------


class _Version(argparse.Action):
    """--version, in our words."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="say which netemu this is, and leave")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from netemu import __version__

        print(f"netemu {__version__}")
        parser.exit()


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with our line breaks, as wide as the terminal up to 100 columns."""

    def __init__(self, prog: str) -> None:
        import shutil

        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns, 100))


def _parsers(words: list[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole, and one for each command."""
    top = argparse.ArgumentParser(
        prog="netemu",
        description="What would this Linux node do with these packets? Tables, conntrack, NAT, ipset, IPVS, offline.",
        epilog="`netemu COMMAND --help` tells more. Exit status: 0 done, 1 an expectation failed,\n"
        "2 bad usage or input refused, 3 something that netemu does not model.",
        formatter_class=_Help,
    )
    top.add_argument("--version", action=_Version)
    sub = top.add_subparsers(metavar="COMMAND", title="commands")
    made: dict[str, argparse.ArgumentParser] = {}

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help: str, epilog: str = ""
    ) -> argparse.ArgumentParser:
        p = made[name] = sub.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=_Help)
        p.set_defaults(run=run)
        return p

    _replay_options(
        command(
            "replay",
            _replay,
            "Replay captures through a node: a line per packet, or a summary.",
            "examples:\n"
            "  netemu replay models/kube-ipvs traces/kube-ipvs.pcapng --summary\n"
            "  netemu replay models/nat-gateway trace.pcap --at 5 'ip link set eth0 down' --conntrack\n"
            "  tcpdump -w - | netemu replay MODEL - -o report.jsonl",
        )
    )
    _explain_options(
        command(
            "explain",
            _explain,
            "Follow one packet: every rule it met, every rewrite, and why it ended as it did.",
            "a packet is written as\n"
            "  tcp|udp SRC:PORT > DST:PORT [S|SA|A|PA|FA|R ...] [ttl N] [tos N] [len N]\n"
            "  icmp SRC > DST [echo|echo-reply] [id N] [ttl N] [tos N] [len N]\n\n"
            "examples:\n"
            "  netemu explain models/kube-ipvs 'tcp 10.0.0.5:4000 > 10.96.0.1:443 S'\n"
            "  netemu explain models/kube-ipvs --packet 17 trace.pcap",
        )
    )
    show = command(
        "show",
        _show,
        "Tell what was loaded from a model directory, in words and counts; or what is odd about it.",
        "--lint ends with status 1 when there is a warning; notes alone are no reason.\n\n"
        "examples:\n"
        "  netemu show models/kube-ipvs\n"
        "  netemu show models/kube-ipvs --lint",
    )
    show.add_argument("model", metavar="MODEL", help="a model directory")
    show.add_argument("--lint", action="store_true", help="dead and shadowed rules, sets, chains and links in vain")
    show.add_argument("--json", action="store_true", help="with --lint: print what was found as JSON")
    _unsupported(show)
    _color(show)
    _diff_options(
        command(
            "diff",
            _diff,
            "Replay captures through two nodes: packets whose fate, way out or headers differ, by what decided.",
            "ends with status 0 when all packets fare the same, 1 when some do not, 2 when something is wrong\n\n"
            "examples:\n"
            "  netemu diff models/kube-ipvs models/kube-iptables traces/kube-ipvs.pcapng\n"
            "  netemu diff before after trace.pcap --json",
        )
    )
    _snapshot_options(
        command(
            "snapshot",
            _snapshot,
            "Collect this Linux node's own dumps into a model directory (best as root).",
            "examples:\n"
            "  netemu snapshot DIR\n"
            "  netemu snapshot --print-script > snapshot.sh        # then, elsewhere: sh snapshot.sh DIR",
        )
    )
    _flows_options(
        command(
            "flows",
            _flows,
            "Make synthetic flows: TCP conversations, UDP questions, pings, as a capture.",
            "examples:\n"
            "  netemu flows --to tcp/10.96.0.1:443 --to udp/10.96.0.10:53 --count 1000 -w trace.pcap\n"
            "  netemu flows --to tcp/10.96.0.1:443 -w - | netemu replay MODEL - --summary",
        )
    )
    _verify_options(
        command(
            "verify",
            _verify,
            "Play captures through a real kernel too, and say where netemu differs from it.",
            "The node is built in a network namespace (root), or in User Mode Linux (any user; IPVS too); nothing of\n"
            "this machine is touched. Compared are path, bytes, connections, counters, sets and virtual servers.\n"
            "Exit status: 0 all agree, 1 something differs, 2 no kernel can be asked, or it refuses the model.\n\n"
            "examples:\n"
            "  netemu verify models/web-dnat traces/web-dnat.pcapng\n"
            "  netemu verify MODEL eth0=trace.pcap --kernel uml --shrink -o small.case",
        )
    )
    _record_options(
        command(
            "record",
            _record,
            "Play captures through a real kernel and keep what it did as a case: a text file to compare with for ever.",
            "examples:\n  netemu record models/web-dnat traces/web-dnat.pcapng -o web-dnat.case",
        )
    )
    _fuzz_options(
        command(
            "fuzz",
            _fuzz,
            "Play made-up nodes and traffic on a real kernel and look for packets on which netemu differs.",
            "example:\n  netemu fuzz --minutes 30 --kernel both --seed 7 -o found",
        )
    )
    bench = command("bench", _bench, "Measure how rules scale: ipvs mode against iptables mode.")
    if words[:1] == ["bench"]:
        from netemu import scaling

        scaling.configure(bench)
    return top, made


def _color(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours (auto: on a terminal, and as NO_COLOR and FORCE_COLOR say)",
    )


def _unsupported(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--unsupported",
        choices=("fail", "uncertain"),
        default="fail",
        help="rules with a match or target that netemu does not model: fail (default), or keep them as rules that\n"
        "might match, and say which packets' fate depends on that",
    )


def _diff_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model_a", metavar="MODEL_A", help="a model directory")
    p.add_argument("model_b", metavar="MODEL_B", help="another")
    p.add_argument("traces", metavar="TRACE", nargs="+", help="as for replay; `-` is standard input")
    p.add_argument("-i", "--link", default="auto", metavar="auto|NAME", help="as for replay")
    p.add_argument("-c", "--count", type=_positive, metavar="N", help="stop after N packets")
    p.add_argument("-a", "--all", action="store_true", help="every kind of difference, not only the 20 commonest")
    p.add_argument("--json", action="store_true", help="print it all as JSON")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of everything that Linux draws at random (default 0)"
    )
    _unsupported(p)
    _color(p)


def _snapshot_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="DIR", nargs="?", help="where the model directory goes")
    p.add_argument("--force", action="store_true", help="replace a model that is there")
    p.add_argument("--print-script", action="store_true", help="print a shell script that does the same without netemu")


def _played_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a model directory")
    p.add_argument("traces", metavar="[LINK=]TRACE", nargs="+", help="as for replay")
    p.add_argument("-i", "--link", default="auto", metavar="auto|NAME", help="as for replay")
    p.add_argument("-c", "--count", type=_positive, metavar="N", help="the first N packets only")
    p.add_argument("--at", nargs=2, action="append", default=[], metavar=("T", "COMMAND"), help="as for replay")
    p.add_argument("--timeline", metavar="FILE", help="as for replay")
    p.add_argument(
        "--kernel",
        choices=("auto", "host", "uml"),
        default="auto",
        help="this machine's (host), User Mode Linux (uml), or what suits the model (auto)",
    )
    p.add_argument(
        "--longest-gap",
        type=_positive,
        default=2,
        metavar="S",
        help="cut longer gaps between packets to S seconds, since the kernel's clock is a real one (default 2)",
    )


def _verify_options(p: argparse.ArgumentParser) -> None:
    _played_options(p)
    p.add_argument("--json", action="store_true", help="print the verdict as JSON")
    p.add_argument("--shrink", action="store_true", help="on a difference: find the smallest case that still shows it")
    p.add_argument("-o", dest="output", metavar="CASE", help="where --shrink writes that case (default MODEL.case)")


def _record_options(p: argparse.ArgumentParser) -> None:
    _played_options(p)
    p.add_argument("-o", dest="output", metavar="CASE", required=True, help="the file to write; `-` is standard output")
    p.add_argument("--name", help="the case's name (default: of the model and the trace)")
    p.add_argument("--story", default="", help="a line or two: what it shows")


def _fuzz_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--minutes", type=float, default=5.0, metavar="N", help="how long to look (default 5)")
    themes = ("all", "tcp", "nat", "sets", "ipvs")
    p.add_argument("--about", choices=themes, help="only nodes with this theme (default: each in turn)")
    p.add_argument("--kernel", choices=("host", "uml", "both"), default="uml", help="which kernel to ask (default uml)")
    p.add_argument("--events", type=int, default=80, metavar="N", help="packets and commands of a case (default 80)")
    p.add_argument("--seed", default="0", metavar="S", help="another seed makes other nodes and traffic (default 0)")
    p.add_argument("-o", dest="output", metavar="DIR", help="shrink each disagreement to a small case and keep it here")


def _state_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--conntrack", action="store_true", help="then print the connections (conntrack -L -o extended)")
    p.add_argument("--counters", action="store_true", help="then print the rules with counters (iptables-save -c)")
    p.add_argument("--ipset", action="store_true", help="then print the sets (ipset save)")
    p.add_argument("--ipvs", action="store_true", help="then print services and connections (ipvsadm -Ln, -Lnc)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of everything that Linux draws at random (default 0)"
    )
    _unsupported(p)
    _color(p)


def _replay_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a model directory: the node's own dumps")
    p.add_argument(
        "traces",
        metavar="[LINK=]TRACE",
        nargs="+",
        help="pcap or pcapng, gzipped or not; `-` is standard input; several are merged by time",
    )
    p.add_argument(
        "-i",
        "--link",
        default="auto",
        metavar="auto|NAME",
        help="the link that packets come in on (default auto: what the capture tells)",
    )
    p.add_argument(
        "-w", dest="write", metavar="OUT.pcapng", help="write what left the node, each packet commented with its path"
    )
    p.add_argument(
        "-o",
        dest="report",
        action="append",
        default=[],
        metavar="REPORT",
        help="a fact line per packet: .jsonl, .csv or .parquet; `-` is JSON lines on standard output",
    )
    p.add_argument(
        "--only", type=_fates, metavar="FATE,...", help=f"only packets that were {', '.join(FATES[:-1])} or {FATES[-1]}"
    )
    p.add_argument("-c", "--count", type=_positive, metavar="N", help="stop after N packets")
    p.add_argument(
        "--at",
        nargs=2,
        action="append",
        default=[],
        metavar=("T", "COMMAND"),
        help="run a command on the node, T seconds into the capture; repeatable",
    )
    p.add_argument("--timeline", metavar="FILE", help="many of them: lines of `T COMMAND`; `#` begins a comment")
    p.add_argument("--summary", action="store_true", help="no line per packet: counts, reasons, services, paths")
    p.add_argument(
        "--run-length",
        type=_positive,
        metavar="N",
        help="most packets looked at together (1: one by one; the answer is the same)",
    )
    p.add_argument(
        "--jobs",
        type=_positive,
        default=1,
        metavar="N",
        help="2: a second process reads and parses the capture beside the engine, where that helps (the answer is the\n"
        "same)",
    )
    p.add_argument("--profile", action="store_true", help="then tell where the time went, in ns a packet")
    _state_options(p)


def _explain_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a model directory")
    p.add_argument(
        "packet_or_trace",
        metavar="PACKET|TRACE",
        nargs="+",
        help="a packet in words, or the captures that --packet counts in",
    )
    p.add_argument(
        "--packet", type=_positive, metavar="N", help="frame N of the capture, those before it replayed first"
    )
    p.add_argument("-i", "--link", default="auto", metavar="auto|NAME", help="the link it comes in on (default auto)")
    p.add_argument(
        "-a", "--all", action="store_true", help="name every rule that did not match, however many there are"
    )
    _state_options(p)


def _flows_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="PROTO/ADDR:PORT",
        help="tcp/10.96.0.1:443 or udp/10.96.0.10:53; repeatable, each flow draws one",
    )
    p.add_argument("--ping", action="append", default=[], metavar="ADDR", help="an address to ping; repeatable")
    p.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="NET",
        help="where clients live (default 10.244.0.0/24); repeatable",
    )
    p.add_argument("--count", type=int, default=100, metavar="N", help="conversations (default 100)")
    p.add_argument("--rate", type=float, default=1000.0, metavar="R", help="new conversations a second (default 1000)")
    p.add_argument(
        "--arrival", choices=("even", "poisson"), default="even", help="how their beginnings are spread (default even)"
    )
    p.add_argument(
        "--packets", type=int, default=1, metavar="K", help="data packets, questions or pings in each (default 1)"
    )
    p.add_argument("--data", type=int, default=32, metavar="BYTES", help="payload of each of them (default 32)")
    p.add_argument(
        "--gap",
        type=float,
        default=0.001,
        metavar="S",
        help="seconds between the packets of a conversation (default 0.001)",
    )
    p.add_argument(
        "--answers",
        action="store_true",
        help="the servers' packets too, as they would come back if nothing were translated",
    )
    p.add_argument("--no-handshake", action="store_true", help="TCP conversations are under way already")
    p.add_argument(
        "--close", choices=("fin", "rst", "none"), default="fin", help="how TCP conversations end (default fin)"
    )
    p.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="time of the first packet in seconds (default 0)"
    )
    p.add_argument("--ttl", type=int, default=64, metavar="N", help="time to live (default 64)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default 0)")
    p.add_argument(
        "-w", dest="write", required=True, metavar="OUT.pcap", help="where the capture goes; `-` is standard output"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1")
    return int(text)


def _fates(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in FATES:
            raise argparse.ArgumentTypeError(f"`{name}` is no fate (there are {', '.join(FATES)})")
    return names


# ---- replay --------------------------------------------------------------------------------------------------------


def _loaded(args: argparse.Namespace, traces: Sequence[str]) -> tuple[Node, Capture]:
    """The node and the capture; everything that is wrong with either is said at once."""
    from netemu.capture import read_capture
    from netemu.node import Node

    problems: list[Problem] = []
    node = capture = None
    try:
        node = Node.load(args.model, seed=args.seed, unsupported=args.unsupported)
    except NetemuError as e:
        problems += e.problems
    try:
        capture = read_capture(list(traces))
    except NetemuError as e:
        problems += e.problems
    if node is not None:
        problems += _unknown_links(node, [args.link] if args.link != "auto" else [])
    raise_all(problems)
    assert node is not None and capture is not None
    _say_doubts(node)
    return node, capture


def _say_doubts(node: Node) -> None:
    """Name the rules that netemu cannot judge."""
    for remark in node.doubtful_rules():
        print(remark, file=sys.stderr)


def _unknown_links(node: Node, names: Sequence[str]) -> list[Problem]:
    known = node.routing.names
    hint = f"the node has {', '.join(known)}"
    return [Problem(REFUSED, f"the node has no link `{name}`", hint=hint) for name in names if name not in known]


def _timeline(args: argparse.Namespace) -> list[tuple[float, str]]:
    """(seconds, command), by time; those of one time in the order given. Raises Refused, naming every bad line."""
    problems: list[Problem] = []
    found: list[tuple[float, str]] = []

    def add(when: str, command: str, **place: Any) -> None:
        try:
            at = float(when)
            if not 0 <= at < 1e11:
                raise ValueError
        except ValueError:
            problems.append(
                Problem(REFUSED, f"`{when}` is no time", hint="seconds into the capture, such as 3.5", **place)
            )
            return
        try:
            empty = not shlex.split(command)
        except ValueError as e:
            problems.append(Problem(REFUSED, f"`{command}`: {e}", hint="close the quotes", **place))
            return
        if empty:
            problems.append(
                Problem(
                    REFUSED, "no command", hint="write a time, then a command: `3.5 ip link set eth0 down`", **place
                )
            )
            return
        found.append((at, command))

    if args.timeline:
        text = (
            sys.stdin.read()
            if args.timeline == "-"
            else Path(args.timeline).read_text(encoding="utf-8", errors="replace")
        )
        for number, line in enumerate(text.splitlines(), 1):
            words = line.strip()
            if words and not words.startswith("#"):
                when, _, command = words.partition(" ")
                add(when, command.strip(), file=args.timeline, line=number, text=line)
    for when, command in args.at:
        add(when, command, file="--at", text=f"{when} {command}")
    raise_all(problems)
    return sorted(found, key=lambda item: item[0])


class Paced:
    """A capture cut where commands are due, and ended where no more packets are wanted.

    The commands run while the capture is read: a chunk is handed out only when what came before it was dealt with.
    They are due in seconds of the node's clock, which starts with a capture that is stamped with dates.
    """

    def __init__(
        self,
        capture: Capture,
        commands: Sequence[tuple[float, str]],
        run: Callable[[float, str], None],
        count: int | None,
    ) -> None:
        self.capture, self.commands, self.run, self.count = capture, list(commands), run, count
        self.handed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.capture, name)

    def __iter__(self) -> Iterator[Frames]:
        import numpy as np

        from netemu.node import EPOCH_TIMES

        zero: int | None = None
        latest = -(2**62)
        for frames in self.capture:
            if self.count is not None:
                frames = frames.take(slice(0, self.count - self.handed))
            if len(frames):
                self.handed += len(frames)
                if zero is None:
                    zero = int(frames.time[0]) if frames.time[0] > EPOCH_TIMES else 0
                times = np.maximum.accumulate(np.maximum(frames.time - zero, latest))
                latest = int(times[-1])
                done = 0
                while self.commands and round(self.commands[0][0] * 1e9) <= latest:
                    upto = int(np.searchsorted(times, round(self.commands[0][0] * 1e9)))
                    if upto > done:
                        yield frames.take(slice(done, upto))
                        done = upto
                    self.run(*self.commands.pop(0))
                yield frames.take(slice(done, None)) if done else frames
            if self.handed == self.count:
                break
        while self.commands:
            self.run(*self.commands.pop(0))


class _Progress:
    """How far it is, on standard error, when that is a terminal that shows nothing else."""

    def __init__(self, capture: Capture, wanted: bool) -> None:
        import time

        self.capture, self.clock = capture, time.monotonic
        self.begun = self.said = self.clock()
        self.on = wanted and sys.stderr.isatty()
        self.packets = 0

    def add(self, packets: int) -> None:
        self.packets += packets
        now = self.clock()
        if self.on and now - self.said > 0.3:
            self.said = now
            size = self.capture.size
            part = f"  {min(self.capture.position / size, 1):4.0%}" if size else ""
            rate = self.packets / (now - self.begun)
            print(f"\r{self.packets:,} packets{part}  {rate:,.0f} a second\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _replay(args: argparse.Namespace) -> int:
    from netemu import report

    commands = _timeline(args)
    _check_outputs(args)
    node, capture = _loaded(args, args.traces)
    from netemu.capture import split_link

    links = [link for link, _ in map(split_link, args.traces) if link]
    raise_all(_unknown_links(node, links))

    taken = "-" in (args.write, *args.report)  # standard output belongs to a report: people read standard error
    people = sys.stderr if taken else sys.stdout
    screen = report.Screen.of(people, args.color)
    writers: list[Report] = [report.open_report(path) for path in args.report]
    if args.write:
        writers.append(report.Left(sys.stdout.buffer if args.write == "-" else args.write, node))
    if not args.summary and not taken:
        writers.append(report.Table(screen))

    summary = report.Summary()
    status = DONE
    profile = _profile(node, writers, summary) if args.profile else None

    def change(at: float, command: str) -> None:
        nonlocal status
        try:
            said = node.run(command, at=at)
        except Refused as e:  # as on the node itself: the tool complains, nothing changes, traffic goes on
            where = f"at {at:g} s: {command}"
            for p in e.problems:
                print(f"{where}: {p}", file=sys.stderr)
            status = max(status, REFUSED_STATUS)
        else:
            if said and not taken and not args.summary:
                screen.file.write(said if said.endswith("\n") else said + "\n")

    paced = Paced(_read_ahead(capture) if args.jobs > 1 else capture, commands, change, args.count)
    progress = _Progress(capture, wanted=args.summary or taken or not sys.stdout.isatty())
    interrupted = False
    try:
        for journeys in _stream(node, profile.reading(paced) if profile else paced, args):
            rows = _wanted(journeys, args.only)
            for writer in writers:
                writer.write(journeys, rows)
            summary.add(journeys)
            progress.add(len(journeys))
    except KeyboardInterrupt:
        interrupted = True
    except Unsupported as e:
        progress.end()
        _complain(e)
        status = UNSUPPORTED_STATUS
    progress.end()
    for writer in writers:
        writer.close()
    if profile:
        profile.stop()

    notes = _notes(node, capture, 0 if interrupted else paced.handed - summary.packets, summary)
    if args.summary:
        summary.show(screen)
    else:
        summary.tally(screen)
    for note in notes:
        print(screen.paint("rejected", note), file=people)
    for line in ["", *profile.lines(summary.packets)] if profile else ():
        print(line, file=people)
    _dumps(node, args, screen)
    for p in capture.problems:
        print(p, file=sys.stderr)
        status = max(status, REFUSED_STATUS if p.kind == REFUSED else UNSUPPORTED_STATUS)
    return INTERRUPTED if interrupted else status


def _read_ahead(capture: Capture) -> Capture:
    """The capture read by a second process, where that helps."""
    from netemu.ahead import Ahead, worth_it

    return cast("Capture", Ahead(capture)) if worth_it(capture) else capture


def _profile(node: Node, writers: Sequence[Report], summary: Summary) -> Profile:
    """A running profile of all that a replay does."""
    from netemu.profile import Profile

    profile = Profile(node)
    for writer in writers:
        profile.watch(writer, "write", "writing reports")
    profile.watch(summary, "add", "summary")
    profile.start()
    return profile


def _notes(node: Node, capture: Capture, copies: int, summary: Summary) -> list[str]:
    """What a reader must know besides: what was passed over, what was not taken to the letter."""
    notes = []
    if capture.counts:
        kinds = sorted(capture.counts.items(), key=lambda item: -item[1])
        notes.append(f"passed over, not IPv4: {', '.join(f'{count:,} {kind}' for kind, count in kinds)}")
    if copies > 0:
        notes.append(f"passed over, copies of packets that had left the node: {copies:,}")
    if summary.late:
        notes.append(f"stamped earlier than the packet before, taken as of the same time: {summary.late:,}")
    notes += [f"not modelled to the letter: {text} ({count:,})" for text, count in node.caveats.items()]
    return notes


def _stream(node: Node, capture: Paced, args: argparse.Namespace) -> Iterator[Journeys]:
    link = None if args.link == "auto" else args.link
    told = not getattr(args, "summary", False) or bool(args.write or args.report)
    return node.stream(capture, getattr(args, "run_length", None), link=link, remember=told)  # type: ignore[arg-type]


def _wanted(journeys: Journeys, only: Sequence[str] | None) -> Any:
    import numpy as np

    from netemu.packets import FATES as ALL

    if only is None:
        return np.arange(len(journeys))
    return np.flatnonzero(np.isin(journeys.pkts.fate, [ALL.index(name) for name in only]))


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that would destroy an input, or that nobody could read."""
    outputs = [path for path in (args.write, *args.report) if path]
    if outputs.count("-") > 1:
        raise Refused("two outputs cannot both be standard output", hint="name a file for one of them")
    if args.write == "-" and sys.stdout.isatty():
        raise Refused("a capture on the terminal is not readable", hint="name a file, or pipe it: `-w - | tshark -r -`")
    for path in outputs:
        for trace in args.traces:
            for name in (trace, trace.partition("=")[2]):
                if (
                    path != "-"
                    and name
                    and os.path.exists(path)
                    and os.path.exists(name)
                    and os.path.samefile(path, name)
                ):
                    raise Refused(f"{path} is the capture that is to be replayed", hint="write to another file")


def _dumps(node: Node, args: argparse.Namespace, screen: Screen) -> None:
    for option, dumps in DUMPS.items():
        if getattr(args, option):
            for name, command in dumps:
                text = node.dump(name)
                print(f"\n{screen.paint('bold', f'# {command}')}", file=screen.file)
                screen.file.write(text if text.endswith("\n") or not text else text + "\n")


# ---- explain -------------------------------------------------------------------------------------------------------


def _explain(args: argparse.Namespace) -> int:
    import io

    from netemu import capture as captures
    from netemu import report

    screen = report.Screen.of(sys.stdout, args.color)
    if args.packet is None:
        packet = report.read_packet(" ".join(args.packet_or_trace))
        file = io.BytesIO()
        captures.write_pcap(file, [0], [packet])
        from netemu.node import Node

        node = Node.load(args.model, seed=args.seed, unsupported=args.unsupported)
        _say_doubts(node)
        raise_all(_unknown_links(node, [args.link] if args.link != "auto" else []))
        capture = captures.read_capture(io.BytesIO(file.getvalue()))
        number = 1
        title = ""
    else:
        node, capture = _loaded(args, args.packet_or_trace)
        number = args.packet
        title = f"packet {number}: "
    node.ipvs.tell = True
    for journeys in _stream(node, Paced(capture, [], lambda at, command: None, None), args):
        found = [row for row, n in enumerate(journeys.numbers) if n == number]
        if found:
            report.explain(journeys, found[0], screen, title, None if args.all else 12)
            _dumps(node, args, screen)
            return DONE
    for p in capture.problems:
        print(p, file=sys.stderr)
    if number > capture.frames:
        raise Refused(f"the capture has {capture.frames} frames, and none is number {number}")
    raise Refused(
        f"frame {number} is not IPv4",
        hint=f"passed over: {', '.join(f'{n} {what}' for what, n in capture.counts.items())}",
    )


# ---- the rest ------------------------------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    from netemu import report
    from netemu.node import Node

    screen = report.Screen.of(sys.stdout, args.color)
    if args.lint:
        return _lint(args, screen)
    if args.json:
        raise Refused("--json goes with --lint", hint="a node's own dumps are what other programs read")
    node = Node.load(args.model, unsupported=args.unsupported)
    report.describe(node, args.model, screen)
    _say_doubts(node)
    return DONE


def _lint(args: argparse.Namespace, screen: Screen) -> int:
    import dataclasses
    import json

    from netemu import lint

    node, findings = lint.lint_model(args.model, unsupported=args.unsupported)
    warnings = sum(finding.level == lint.WARNING for finding in findings)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
        _say_doubts(node)
        return FAILED if warnings else DONE
    for finding in findings:
        head, newline, rest = str(finding).partition("\n")
        print(screen.paint("rejected" if finding.level == lint.WARNING else "dim", head) + newline + rest)
    _say_doubts(node)
    notes = len(findings) - warnings
    counts = [f"{n} {what}{'s' if n != 1 else ''}" for n, what in ((warnings, "warning"), (notes, "note")) if n]
    print(screen.paint("bold", f"{args.model}: {', '.join(counts) or 'nothing odd'}"))
    return FAILED if warnings else DONE


# ---- diff ----------------------------------------------------------------------------------------------------------


def _diff(args: argparse.Namespace) -> int:
    try:
        return _differences(args)
    except Unsupported as e:  # as diff does: 2 is trouble, whatever its kind
        _complain(e)
        return REFUSED_STATUS


def _differences(args: argparse.Namespace) -> int:
    import json

    from netemu import diff, report

    problems: list[Problem] = []
    nodes: list[Node] = []
    from netemu.node import Node as Loader

    for path in (args.model_a, args.model_b):
        try:
            nodes.append(Loader.load(path, seed=args.seed, unsupported=args.unsupported))
        except NetemuError as e:
            problems += e.problems
    from netemu.capture import read_capture, split_link

    capture = None
    try:
        capture = read_capture(list(args.traces))
    except NetemuError as e:
        problems += e.problems
    links = [args.link] if args.link != "auto" else []
    links += [link for link, _ in map(split_link, args.traces) if link]
    for node in nodes:
        problems += _unknown_links(node, links)
    raise_all(problems)
    assert capture is not None
    found = diff.Difference(*nodes)
    found.replay(capture, None if args.link == "auto" else args.link, args.count)
    if args.json:
        print(json.dumps(found.told(), indent=2))
    else:
        screen = report.Screen.of(sys.stdout, args.color)
        styles = {"head": "bold", "a": "rejected", "b": "forwarded", "dim": "dim"}
        for text, style in found.lines(None if args.all else 20):
            print(screen.paint(styles[style], text) if style else text)
    for p in capture.problems:
        print(p, file=sys.stderr)
    return REFUSED_STATUS if capture.problems else found.status


# ---- snapshot ------------------------------------------------------------------------------------------------------


def _snapshot(args: argparse.Namespace) -> int:
    from netemu import snapshot
    from netemu.node import Node

    if args.print_script:
        sys.stdout.write(snapshot.script())
        return DONE
    if not args.folder:
        raise Refused("which directory?", hint="netemu snapshot DIR, or netemu snapshot --print-script")
    taken = snapshot.snapshot(args.folder, force=args.force)
    for name in taken.texts:
        print(f"{args.folder}/{name}")
    for name, why in taken.passed.items():
        print(f"{name} passed over: {why}", file=sys.stderr)
    for remark in taken.remarks:
        print(remark, file=sys.stderr)
    try:
        Node.load(args.folder)
    except NetemuError as e:
        many = f"{len(e.problems)} problem{'s' if len(e.problems) != 1 else ''}"
        print(f"taken, but it does not load: {many}, which `netemu show {args.folder}` names", file=sys.stderr)
    return DONE


def _flows(args: argparse.Namespace) -> int:
    from netemu import flows

    targets = [flows.Target.read(text) for text in args.to] + [flows.Target.read(f"ping/{text}") for text in args.ping]
    spec = flows.FlowSpec(
        targets=tuple(targets),
        sources=tuple(map(flows.network, args.sources or ["10.244.0.0/24"])),
        count=args.count,
        rate=args.rate,
        seed=args.seed,
        packets=args.packets,
        data=args.data,
        gap=args.gap,
        arrival=args.arrival,
        answers=args.answers,
        handshake=not args.no_handshake,
        close=args.close,
        start=args.start,
        ttl=args.ttl,
    )
    if args.write == "-" and sys.stdout.isatty():
        raise Refused(
            "a capture on the terminal is not readable", hint="name a file, or pipe it: `-w - | netemu replay MODEL -`"
        )
    made = flows.write_pcap(spec, args.write)
    if args.write != "-":
        print(f"{args.write}: {args.count:,} flows, {made:,} packets")
    return DONE


# ---- verify, record ------------------------------------------------------------------------------------------------


def _case(args: argparse.Namespace) -> tuple[lab.Case, list[str]]:
    """What the arguments ask to play, and remarks on what is left out."""
    from netemu import lab

    return lab.from_traces(
        args.model,
        args.traces,
        link=None if args.link == "auto" else args.link,
        commands=_timeline(args),
        longest=args.longest_gap,
        count=args.count,
    )


def _verify(args: argparse.Namespace) -> int:
    import json

    from netemu import lab

    case, remarks = _case(args)
    verdict = lab.verify(case, args.kernel, remarks)
    print(json.dumps(verdict.as_dict(), indent=1) if args.json else verdict)
    if verdict.disagreements and args.shrink:
        small = lab.shrink(case, verdict.kernel, say=lambda text: print(f"shrinking: {text}", file=sys.stderr))
        (recording,) = lab.play([small], verdict.kernel)
        path = args.output or f"{Path(args.model).resolve().name}.case"
        lab.save(small, recording, path)
        print(f"the smallest case found is in {path}", file=sys.stderr)
    return FAILED if verdict.disagreements else DONE


def _record(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from netemu import lab

    case, remarks = _case(args)
    case = replace(case, name=args.name or case.name, story=args.story)
    kernel = lab.choose(args.kernel, case)
    (recording,) = lab.play([case], kernel, stats=True)
    if recording.trouble:
        raise Refused(f"the {kernel} kernel could not play {case.name}: {recording.trouble}")
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    if args.output == "-":
        print(lab.as_text(case, recording), end="")
    else:
        lab.save(case, recording, args.output)
    return DONE


def _fuzz(args: argparse.Namespace) -> int:
    from netemu import fuzz

    return fuzz.run(args)


def _bench(args: argparse.Namespace) -> int:
    from netemu import scaling

    status: int | None = scaling.run(args)
    return status or DONE
