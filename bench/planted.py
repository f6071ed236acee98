"""Errors planted on purpose in netemu: does the fuzz that every test run makes find each of them?

    sudo python bench/planted.py [--recordings FOLDER] [WORD...]      (only errors whose file or story has a WORD)

The kernels play the budget of tests/test_fuzz.py once, and what they did is kept (in FOLDER, for the next time). Then
each error is put into a copy of the package, by replacing one piece of its text, and the copy is compared with the
kernels as the test does: packet by packet, and in runs. The table that is printed stands in docs/how-we-know.md.
Ends with status 1 when an error goes unnoticed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import netemu
from netemu import fuzz, lab

PACKAGE = Path(netemu.__file__).parent


@dataclass(frozen=True)
class Planted:
    """An error: where, what it does wrong, and the text that it replaces (which stands there once)."""

    file: str
    story: str
    old: str
    new: str


ERRORS = (
    Planted(
        "nat.py",
        "SNAT to a range: --persistent is not heeded",
        "0 if wish.persistent else dst ^ zone & 0xFFFF",
        "dst ^ zone & 0xFFFF",
    ),
    Planted(
        "nat.py",
        "a source that was mapped before is not mapped the same way again",
        "for other in ct.mapped.of(current, int(ct.zone[flow])):",
        "for other in list[int]():",
    ),
    Planted(
        "nat.py",
        "the packet quoted in an ICMP error about an answer is not translated",
        "if not status & (others if reply else mine):",
        "if not status & mine:",
    ),
    Planted(
        "nat.py",
        "the packets of a masqueraded connection go on when it leaves on another link",
        "elsewhere &= (ct.masq[flows] >= 0) &",
        "elsewhere &= (ct.masq[flows] < 0) &",
    ),
    Planted("nat.py", "NETMAP keeps the wrong bits", "(here & ~wish.mask & 0xFFFFFFFF)", "(here & wish.mask)"),
    Planted(
        "tcp.py",
        "old acknowledgements are not within the window's slack",
        "slack = max(66000, s_maxwin)",
        "slack = 0",
    ),
    Planted(
        "tcp.py",
        "a reset before what was acknowledged is believed",
        "elif before(seq, furthest) and not self.ignore_invalid_rst:",
        "elif False:",
    ),
    Planted("tcp.py", "windows are not scaled", "            win <<= misc[me]\n", "            win <<= 0\n"),
    Planted(
        "tcp.py",
        "one retransmission too few counts against max_retrans",
        "if misc[8] >= self.max_retrans and",
        "if misc[8] > self.max_retrans and",
    ),
    Planted(
        "tcp.py",
        "a SYN that comes again renews the timer",
        "return UNTOUCHED  # a SYN again: the first one's timer goes on",
        "pass",
    ),
    Planted(
        "ipvs.py",
        "one-packet scheduling applies to TCP too",
        "        if ask.proto != UDP:\n            flags &= ~ONE_PACKET\n",
        "",
    ),
    Planted(
        "ipvs.py",
        "persistence is by address, whatever its mask",
        "net = ask.caddr & service.netmask",
        "net = ask.caddr",
    ),
    Planted(
        "ipvs.py",
        "a server takes one connection more than its upper threshold",
        "if self.upper and self.active + self.inactive >= self.upper:",
        "if self.upper and self.active + self.inactive > self.upper:",
    ),
    Planted(
        "ipvs.py",
        "a SYN on a closed connection does not begin a new one",
        "return state in (TW, CL) or",
        "return state in (TW,) or",
    ),
    Planted(
        "ipvs.py",
        "TCP to servers whose answers pass the node by follows the states of both directions",
        "            direction = 2\n",
        "            direction = 0\n",
    ),
    Planted(
        "ipset.py",
        "nomatch is not heeded, packet by packet",
        "return -1 if self.nomatch is not None and self.nomatch[number] else 1",
        "return 1",
    ),
    Planted("ipset.py", "nomatch is not heeded in runs", "found = np.where(says_no, -2 - found, found)", "pass"),
    Planted(
        "ipset.py",
        "a packet puts the widest network into a set, not the narrowest",
        "la = max((pair[0] for pair in self.lengths), default=32)",
        "la = min((pair[0] for pair in self.lengths), default=32)",
    ),
    Planted(
        "ipset.py",
        "what is added again keeps its time to live",
        "            self._extend(number, extra, now, fresh=False)\n            return\n        if number < 0:",
        "            return\n        if number < 0:",
    ),
    Planted(
        "walk.py",
        "after -g the walk goes on behind the rule, as after -j",
        "        if line.kind == GOTO:\n            if len(back):\n                home.append(back)\n"
        "            return NO_ROWS\n",
        "",
    ),
    Planted("walk.py", "-f is turned round", "(FRAG, -1, 0, not rule.fragment)", "(FRAG, -1, 0, rule.fragment)"),
    Planted(
        "tables.py",
        "a change leaves the counters of the policies",
        "                    chain.packets = chain.bytes = 0\n            self.commit",
        "                    pass\n            self.commit",
    ),
    Planted("tables.py", "-Z leaves the counters of rules", "[_zeroed(rule) for rule in chain.rules]", "chain.rules"),
    Planted(
        "tables.py", "-D N takes the rule behind", "del chain.rules[at - 1]", "del chain.rules[at % len(chain.rules)]"
    ),
    Planted(
        "conntrack.py",
        "UDP that was answered is a stream at once, not after two seconds",
        "stream = seen & (now > self.created[flows] + 2 * SECOND)",
        "stream = seen",
    ),
    Planted(
        "conntrack.py",
        "what is RELATED to an answer counts as of the original direction",
        "p.state[row], p.reply[row] = flow, RELATED, bool(direction)",
        "p.state[row], p.reply[row] = flow, RELATED, False",
    ),
    Planted(
        "targets.py", "REJECT says host-prohibited for admin-prohibited", '("admin-prohib", 13)', '("admin-prohib", 10)'
    ),
    Planted(
        "targets.py",
        "--restore-mark with masks does not keep the packet's other bits",
        "(pkts.mark[rows] & (~self.nfmask & 0xFFFFFFFF)) ^ ct",
        "ct",
    ),
    Planted(
        "answers.py",
        "a reset does not acknowledge the data of what it refuses",
        " + bool(flags & 1) + payload)",
        " + bool(flags & 1))",
    ),
    Planted(
        "routing.py",
        "MASQUERADE takes the link's first address, whichever belongs to the next hop",
        "self._select(link, nexthop, 0) or None",
        "self.first_address(link)",
    ),
    Planted(
        "schedulers.py",
        "wrr goes on where it was when a weight has changed",
        "    def _changed(self) -> None:\n        self.last = None\n",
        "    def _changed(self) -> None:\n",
    ),
    Planted(
        "schedulers.py", "wlc counts an inactive connection as an active one", "dest.active * 256 +", "dest.active +"
    ),
    Planted(
        "ipset.py",
        "list:set asks its sets from the back",
        "for number in self.order:\n            inside",
        "for number in self.order[::-1]:\n            inside",
    ),
    Planted(
        "ipset.py",
        "hash:net,iface looks at the way out for src",
        '(trip.pkts.link_in if way == "src" else trip.pkts.link_out)[row])\n        if link < 0:\n            return',
        '(trip.pkts.link_out if way == "src" else trip.pkts.link_in)[row])\n        if link < 0:\n            return',
    ),
    Planted(
        "matches/rates.py",
        "recent wants one hit too many",
        "if hits >= max(self.hitcount, 1):",
        "if hits > max(self.hitcount, 1):",
    ),
    Planted(
        "matches/rates.py",
        "limit has a burst of one less",
        "self.credit, self.at = self._cap, None",
        "self.credit, self.at = self._cap - self._cost, None",
    ),
    Planted(
        "matches/rates.py",
        "hashlimit by bytes rounds chunks down",
        "((length >> _CHUNK_SHIFT) + 1) * b.cost",
        "(length >> _CHUNK_SHIFT) * b.cost",
    ),
    Planted(
        "routing.py",
        "a rule by mark heeds all bits, whatever its mask",
        "(mark[rows] & r.fwmask) == r.fwmark & r.fwmask",
        "mark[rows] == r.fwmark",
    ),
    Planted(
        "routing.py",
        "strict rp_filter is a loose one",
        "verdict[loose & (rp == 1)] = -2",
        "verdict[loose & (rp == 3)] = -2",
    ),
    Planted(
        "fragments.py", "a fragment that comes twice spoils the whole", "if end <= before[1]:", "if end < before[0]:"
    ),
    Planted(
        "fragments.py",
        "the whole may not be cut when any piece may not",
        "DONT_FRAGMENT if self.largest_df == self.largest",
        "DONT_FRAGMENT if self.largest_df",
    ),
)


def recorded(folder: Path) -> list[Path]:
    """The budget's cases as the kernels played them: recorded now, if they are not in `folder` yet."""
    for kernel, themes in fuzz.BUDGET.items():
        made = [
            fuzz.numbered(kernel, fuzz.BUDGET_SEED, number, about=about)
            for about, numbers in themes.items()
            for number in numbers
        ]
        names = [folder / f"{one.name}.case" for one in made]
        if all(path.exists() for path in names):
            continue
        todo = list(zip(made, names, strict=True))
        for _ in range(1 + fuzz.AGAIN):  # a busy machine plays late: what does not agree is played again
            played = zip(todo, lab.play([one for one, _ in todo], kernel), strict=True)
            todo = []
            for (one, path), recording in played:
                if not recording.trouble:
                    lab.save(one, recording, path)
                    todo += [(one, path)] * bool(lab.compare_both(one, recording))
    return sorted(folder.glob("*.case"))


def caught(paths: list[str]) -> dict[str, str] | None:
    """The first disagreement of the package that is imported here."""
    for path in paths:
        case, recording = lab.load(path)
        try:
            found = lab.compare_both(case, recording)
        except Exception as e:  # an error that trips netemu up does not go unnoticed either
            return {"case": case.name, "place": "-", "field": type(e).__name__, "kernel": "", "netemu": str(e)}
        if found:
            said = found[0].as_dict()
            return {key: str(said[key]) for key in ("case", "place", "field", "kernel", "netemu")}
    return None


def judged(error: Planted | None, paths: list[Path]) -> dict[str, str] | None:
    """What the comparison says of a package with this error."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "netemu")
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if error is not None:
            text = (copy / error.file).read_text()
            if text.count(error.old) != 1:
                sys.exit(f"{error.file}: `{error.old}` stands there {text.count(error.old)} times, not once")
            (copy / error.file).write_text(text.replace(error.old, error.new))
        words = [sys.executable, __file__, "--judge", *map(str, paths)]
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": folder}, stdout=subprocess.PIPE, text=True, check=True
        )
        answer: dict[str, str] | None = json.loads(done.stdout)
        return answer


def main() -> int:
    """Judge each error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", help="keep what the kernels did here")
    parser.add_argument("--judge", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="WORD")
    args = parser.parse_args()
    if args.judge:
        print(json.dumps(caught(args.judge)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.recordings or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = recorded(folder)
        fair = judged(None, paths)
        if fair:
            sys.exit(f"without any error: {fair}")
        unnoticed = 0
        print("| planted in | what goes wrong | found in | field: kernel, netemu |\n|---|---|---|---|", flush=True)
        for error in ERRORS:
            if args.words and not any(word in error.file + " " + error.story for word in args.words):
                continue
            found = judged(error, paths)
            unnoticed += found is None
            said = {key: " ".join(text.split())[:60].replace("|", "/") for key, text in (found or {}).items()}
            where = f"{said['case']}, {said['place'].partition(' at ')[0]}" if found else "**nowhere**"
            what = f"{said['field']}: {said['kernel']}, {said['netemu']}" if found else ""
            print(f"| `{error.file}` | {error.story} | {where} | {what} |", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
