"""Draws the pictures of real output that the README shows: runs netemu and writes what it printed as SVG.

usage: python docs/picture.py        (writes docs/*.svg beside this file)
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
PICTURES = {
    "replay.svg": (150, "replay models/kube-ipvs traces/kube-ipvs.pcapng -c 24"),
    "explain.svg": (132, "explain models/web-dnat 'tcp 192.0.2.7:4000 > 198.51.100.10:80 S' --link eth0"),
}


def draw(name: str, width: int, arguments: str) -> None:
    """Run one command and save its output as a terminal picture."""
    env = {**os.environ, "COLUMNS": str(width), "FORCE_COLOR": "1"}
    command = [sys.executable, "-m", "netemu", *shlex.split(arguments), "--color", "always"]
    done = subprocess.run(command, cwd=HERE.parent, env=env, capture_output=True, text=True, check=True)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(Text(f"$ netemu {arguments}"))
    console.print(Text.from_ansi(done.stdout.rstrip()), soft_wrap=False)
    (HERE / name).write_text(console.export_svg(title="netemu", unique_id="netemu"))


if __name__ == "__main__":
    for picture, (columns, words) in PICTURES.items():
        draw(picture, columns, words)
