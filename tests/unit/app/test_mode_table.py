"""The mode table of ``docs/resilience.md``: made by asking ``may``, and up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from keymesh.app.mode_table import BEGIN, END, main, put_into, tables
from keymesh.model.states import Mode

PAGE = Path(__file__).parents[3] / "docs" / "resilience.md"
# decrypt, encrypt and mint, Edge leases, export, grants, restrictions
MATRIX = {
    "SYNCED": "yyyyyy",
    "AUTONOMOUS": "yyyyny",
    "STANDBY": "yyyyny",
    "CLOSED": "nnnnny",
    "SEALED": "nnnnny",
}


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables().splitlines() if "|" in line]


def test_the_page_has_the_table_as_it_is_now() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert put_into(page) == page, "run: python -m keymesh.app.mode_table docs/resilience.md"


def test_every_mode_is_there_and_allows_what_the_design_says() -> None:
    found = {row[0]: "".join(cell[0] for cell in row[2:]) for row in rows() if row[0] in MATRIX}
    assert found == MATRIX
    assert set(found) == {mode.name for mode in Mode}


def test_each_single_thing_has_its_own_refusal() -> None:
    single = [row for row in rows() if row[0] not in MATRIX and row[0] not in ("mode", "what", "---")]
    assert len({row[2] for row in single}) >= 13
    assert all(row[-1] == "yes" for row in single), "a restriction is taken in every mode"
    assert all("no" in row[3:] for row in single)


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_its_markers_is_left_alone(tmp_path: Path, page: str) -> None:
    file = tmp_path / "page.md"
    file.write_text(page)
    with pytest.raises(ValueError, match="needs the lines"):
        main([str(file)])
    assert file.read_text() == page


def test_what_was_there_before_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n")
    assert main([str(file)]) == 0
    assert file.read_text() == f"a\n{BEGIN}\n\n{tables()}\n\n{END}\nb\n"
    assert main([]) == 0
    assert capsys.readouterr().out == tables() + "\n"
