"""The house in order: imports go one way, and every module says what it is for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "netemu"
FLOORS = [  # a module may import from floors above its own line, and from earlier ones on it
    "errors packets hashing paths trip grammar words clock sysctl fragments sockets",
    "routing ipset tcp protocols conntrack helpers conntracktool shown nat schedulers answers ipvsftp ipvs ipvsadm",
    "matches.base matches.headers matches.content matches.connections matches.places matches.rates",
    "matches targets listing doubt lanes walk tables",
    "model capture ahead settled sweeps journey node",
    "flows kube scaling lint diff snapshot values profile player lab fuzz",
    "lines report cli __main__",
]
ORDER = {name: n for n, name in enumerate(" ".join(FLOORS).split())}


def name_of(path: Path) -> str:
    """A module's name within the package: `tables`, `matches.base`; a folder's own is `matches`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules of the package that `path` imports when it runs (imports for type checking alone do not count)."""
    found: set[str] = set()

    def add(module: str, names: list[str]) -> None:
        inside = {f"{module}.{name}".removeprefix("netemu.") for name in names} & ORDER.keys()
        found.update(inside or {module.removeprefix("netemu.")})

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "netemu":
                add(node.module, [a.name for a in node.names])
            elif isinstance(node, ast.Import):
                found.update(a.name.removeprefix("netemu.") for a in node.names if a.name.startswith("netemu."))

    visit(ast.parse(path.read_text()).body)
    return found


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    name = name_of(path)
    assert name in ORDER, f"{name} has no place in the house: add it to FLOORS"
    upward = sorted(m for m in imports(path) if m in ORDER and ORDER[m] >= ORDER[name])
    assert not upward, f"{name} imports from above: {upward}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc and len(doc.splitlines()[0]) > 15
