"""A model directory out of a live Linux node: each of its own tools is asked once, what it prints is kept as it is.

    iptables-save -c --> iptables.save      ip -j addr  --> ip-addr.json       uname -r --> node.toml: kernel
    ipset save       --> ipset.save         ip -j route --> ip-route.json      ...

The same list of commands makes the plain shell script that `--print-script` prints, for nodes without netemu.
A tool that is missing, or refuses, is named and passed over: the model is then silent about its part.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netemu.errors import Refused
from netemu.model import FILES, KERNELS

#: where tools of an administrator lie, when PATH does not say
ADMIN = "/usr/local/sbin:/usr/sbin:/sbin"
#: settings that a model reads
SYSCTLS = (
    r"^net\.(netfilter\.nf_conntrack_|nf_conntrack_max|bridge\.|"
    r"ipv4\.(conf\.|ip_|ipfrag_|icmp_|route\.|vs\.|fwmark_|fib_multipath_|tcp_fwmark_accept))"
)
#: a tool that says nothing for so long is given up, in seconds
PATIENCE = 60.0


@dataclass(frozen=True)
class Source:
    """One file of a model and the commands that print it: the first that prints something is taken.

    keep    only lines that match this regular expression
    """

    file: str
    commands: tuple[tuple[str, ...], ...]
    keep: str = ""


SOURCES = (
    Source("ip-addr.json", (("ip", "-j", "-d", "addr"), ("ip", "-j", "addr"))),
    Source("ip-route.json", (("ip", "-j", "route", "show", "table", "all"),)),
    Source("ip-rule.json", (("ip", "-j", "rule"),)),
    Source("sysctl.conf", (("sysctl", "-a"),), SYSCTLS),
    Source("iptables.save", (("iptables-save", "-c"), ("iptables-legacy-save", "-c"))),
    Source("ip6tables.save", (("ip6tables-save",), ("ip6tables-legacy-save",))),
    Source("ipset.save", (("ipset", "save"),)),
    Source("ipvsadm.save", (("ipvsadm", "-Sn"),)),
    Source("conntrack.list", (("conntrack", "-L", "-o", "extended"),)),
)

#: runs a command: (exit status, standard output, first line of complaint); None when there is no such tool
Runner = Callable[[Sequence[str]], tuple[int, str, str] | None]


def run_tool(words: Sequence[str]) -> tuple[int, str, str] | None:
    """Run one of the node's tools."""
    path = f"{os.environ.get('PATH', os.defpath)}:{ADMIN}"
    tool = shutil.which(words[0], path=path)
    if tool is None:
        return None
    environment = {**os.environ, "PATH": path, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [tool, *words[1:]], capture_output=True, env=environment, timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"said nothing for {PATIENCE:g} seconds"
    except OSError as lost:
        return 126, "", lost.strerror or str(lost)
    complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, done.stdout.decode("utf-8", "replace"), complaint[0] if complaint else ""


@dataclass
class Taken:
    """What a snapshot holds: texts by file name, and what was passed over (file -> why)."""

    texts: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def take(run: Runner = run_tool) -> Taken:
    """Ask every tool once. Raises Refused when this is no Linux node."""
    kernel = run(("uname", "-sr"))
    system, _, release = (kernel[1].strip() if kernel else "").partition(" ")
    if system != "Linux":
        raise Refused(
            f"this is no Linux node, but {system or 'something unknown'}",
            hint="run it on the node, or there: `netemu snapshot --print-script`",
        )
    taken = Taken()
    taken.texts["node.toml"] = node_toml(release)
    for source in SOURCES:
        text, why, complaint = _ask(source, run)
        if text is None:
            taken.passed[source.file] = why
        else:
            taken.texts[source.file] = text
            if "is incompatible, use 'nft' tool" in text:
                taken.remarks.append(f"{source.file}: this node has nftables rules beside those of iptables: left out")
            if "legacy tables present" in complaint:
                taken.remarks.append(f"{source.file}: this node has legacy tables beside those of nftables: left out")
    return taken


def _ask(source: Source, run: Runner) -> tuple[str | None, str, str]:
    """(text or None, why there is none, what the tool complained of). An empty answer counts when no other command has
    more to say."""
    why: list[str] = []
    empty: str | None = None
    for words in source.commands:
        said = run(words)
        if said is None:
            why.append(f"no {words[0]} here")
            continue
        status, text, complaint = said
        if status and not text:
            why.append(f"`{' '.join(words)}` failed ({complaint or f'status {status}'})")
            continue
        if source.keep:
            text = "".join(line for line in text.splitlines(True) if re.search(source.keep, line))
        if text.strip():
            return text, "", complaint
        empty = text
    return empty, "; ".join(dict.fromkeys(why)), ""


def model_kernel(release: str) -> str:
    """Which of the kernels that netemu models behaves most like a release.

    >>> model_kernel("6.1.0-18-amd64"), model_kernel("5.15.0-91-generic"), model_kernel("6.12.9"), model_kernel("?")
    ('6.1', '6.1', '6.18', '6.18')
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    if not found:
        return KERNELS[-1]
    return KERNELS[0] if (int(found[1]), int(found[2])) < (6, SPLIT) else KERNELS[-1]


#: releases from 6.SPLIT on are nearer to 6.18 than to 6.1
SPLIT = 10


def node_toml(release: str) -> str:
    """The part of a model that no tool prints: the kernel."""
    return f'# taken from a node with Linux {release}\nkernel = "{model_kernel(release)}"\n'


def snapshot(folder: str | Path, *, force: bool = False, run: Runner = run_tool) -> Taken:
    """Write this node's model directory.

    force   replace a model that is there; files of it that cannot be taken now are removed
    Raises  Refused when the directory holds a model already, or this is no Linux node
    """
    folder = Path(folder)
    there = sorted(name for name in FILES if (folder / name).exists())
    if there and not force:
        raise Refused(f"{folder} holds a model already ({', '.join(there)})", hint="name another directory, or --force")
    taken = take(run)
    folder.mkdir(parents=True, exist_ok=True)
    for name in there:
        if name not in taken.texts:
            (folder / name).unlink()
    for name, text in taken.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return taken


# ---- for nodes without netemu --------------------------------------------------------------------------------------


def script() -> str:
    """A POSIX shell script that does the same: `sh snapshot.sh DIR`."""
    lines = [
        "#!/bin/sh",
        "# Collects what this Linux node's own tools say into a directory that netemu reads.",
        "# usage: sh snapshot.sh DIR        best as root",
        "set -u",
        "dir=${1:?usage: sh snapshot.sh DIR}",
        f'PATH="$PATH:{ADMIN}" LC_ALL=C',
        "export PATH LC_ALL",
        'if [ "$(uname -s)" != Linux ]; then echo "this is no Linux node" >&2; exit 2; fi',
        'mkdir -p "$dir" || exit 2',
        f"for file in {' '.join(FILES)}; do",
        '    if [ -e "$dir/$file" ]; then echo "$dir holds a model already ($file)" >&2; exit 2; fi',
        "done",
        "",
        "# take FILE PATTERN COMMAND...: keep what a command prints, lines that match PATTERN",
        "take() {",
        "    file=$1 pattern=$2",
        "    shift 2",
        '    if [ -s "$dir/$file" ]; then return; fi',
        '    if ! command -v "$1" >/dev/null 2>&1; then',
        '        echo "$file: no $1 here" >&2',
        "        return",
        "    fi",
        '    "$@" >"$dir/.all" 2>"$dir/.complaint" </dev/null',
        "    status=$?",
        '    if [ "$status" -ne 0 ] && ! [ -s "$dir/.all" ]; then',
        '        echo "$file: \\`$*\' failed ($(head -n 1 "$dir/.complaint"))" >&2',
        "    else",
        '        grep -E -e "$pattern" "$dir/.all" >"$dir/$file"',
        '        echo "$file: $*"',
        "    fi",
        '    rm -f "$dir/.all" "$dir/.complaint"',
        "}",
        "",
        "release=$(uname -r)",
        "major=${release%%.*} minor=${release#*.}",
        "minor=${minor%%[!0-9]*}",
        f'if [ "$major" -lt 6 ] || {{ [ "$major" -eq 6 ] && [ "$minor" -lt {SPLIT} ]; }}; then',
        f"    kernel={KERNELS[0]}",
        "else",
        f"    kernel={KERNELS[-1]}",
        "fi",
        'printf \'# taken from a node with Linux %s\\nkernel = "%s"\\n\' "$release" "$kernel" >"$dir/node.toml"',
    ]
    for source in SOURCES:
        for words in source.commands:
            lines.append(f"take {source.file} {shlex.quote(source.keep or '^')} {shlex.join(words)}")
    return "\n".join(lines) + "\n"
