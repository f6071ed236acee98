"""The tables in the documents that are printed from the registries say what the registries say."""

from __future__ import annotations

from pathlib import Path

import pytest

from netemu import ipset, schedulers

DOCS = Path(__file__).parent.parent / "docs"


def between(page: str, mark: str) -> str:
    """What stands between the marks of a page."""
    _, _, rest = (DOCS / page).read_text().partition(f"<!-- {mark} -->\n")
    return rest.partition("<!-- end -->")[0]


@pytest.mark.parametrize(
    ("page", "mark", "table"),
    [("sets.md", "types", ipset.catalogue()), ("ipvs.md", "schedulers", schedulers.catalogue())],
)
def test_a_table_of_the_documents_is_what_the_registry_prints(page: str, mark: str, table: str) -> None:
    assert between(page, mark) == table, f"write it anew: python -m tests.test_catalogue (or paste) into docs/{page}"


def test_every_scheduler_stands_in_the_distribution() -> None:
    table = between("ipvs.md", "distribution")
    missing = [name for name in schedulers.SCHEDULERS if name != "none" and f"| {name} |" not in table]
    assert not missing


if __name__ == "__main__":
    for page, mark, table in (
        ("sets.md", "types", ipset.catalogue()),
        ("ipvs.md", "schedulers", schedulers.catalogue()),
    ):
        path = DOCS / page
        before, _, rest = path.read_text().partition(f"<!-- {mark} -->\n")
        path.write_text(f"{before}<!-- {mark} -->\n{table}<!-- end -->{rest.partition('<!-- end -->')[2]}")
