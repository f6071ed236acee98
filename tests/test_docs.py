"""What the documents tell a reader to type runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from netemu import cli

ROOT = Path(__file__).parent.parent
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("models/*/README.md")))
    if p.exists()
]
COMMANDS = tuple(cli._parsers([])[1])


def commands(page: Path) -> list[str]:
    """The `netemu ...` lines of a page's code blocks, those that a backslash continues joined."""
    found = []
    for block in re.findall(r"^```(?:sh|bash|console|shell)?\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if line.startswith("netemu "):
                found.append(line)
    return found


def expects_files(line: str) -> bool:
    """Whether it speaks of files that only its reader has (`MODEL`, `trace.pcap`), or takes too long here."""
    words = shlex.split(line, comments=True)
    named = [w.partition("=")[2] or w for w in words if re.search(r"\.(pcap|pcapng|gz)$", w) or w.startswith("models/")]
    missing = [w for w in named if not (ROOT / w).exists() and w not in _written(words)]
    return bool(missing or {"MODEL", "DIR"} & set(words) or words[1:2] == ["bench"])


def _written(words: list[str]) -> set[str]:
    return {words[k + 1] for k, w in enumerate(words[:-1]) if w in ("-w", "-o", "--json")}


EVERY = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), EVERY, ids=[f"{p.parent.name}/{p.name}:{line[:60]}" for p, line in EVERY])
def test_a_command_of_the_documents_runs(page: Path, line: str, tmp_path: Path) -> None:
    if expects_files(line):
        first = shlex.split(line, comments=True)[1]
        assert first in COMMANDS
        return
    # run where the repository's folders are, but let it write elsewhere
    for name in ("models", "traces", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = " ".join(f"{shlex.quote(sys.executable)} -m netemu" if w == "netemu" else w for w in line.split(" "))
    done = subprocess.run(
        ["sh", "-c", words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    promised = re.search(r"# status (\d+)$", line)
    assert done.returncode == (int(promised[1]) if promised else 0), done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: netemu {name}" in capsys.readouterr().out


def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "forwarded" in capsys.readouterr().out
