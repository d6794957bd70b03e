"""The rules that every log obeys, on what a store holds."""

from __future__ import annotations

import pytest
from tests.unit.control.world import MESH, Mesh

from keymesh.control import log
from keymesh.control.entry import SignedEntry
from keymesh.model.errors import Integrity

Stored = list[tuple[int, SignedEntry]]


def stored() -> Stored:
    mesh = Mesh()
    mesh.furnished()
    found = [(1, mesh.mesh.head)]
    return found + [(n, s.head) for n, s in enumerate(mesh.history["acme"], 2)]


def test_a_sound_log_gives_its_index_and_heads() -> None:
    rows = stored()
    index, heads = log.check_stored(rows, mesh=MESH)
    assert index == len(rows)
    assert {n: h.seq for n, h in heads.items()} == {"mesh": 1, "acme": len(rows) - 1}
    assert log.check_stored([], mesh=MESH) == (0, {})
    one_commit = [rows[0], *((2, s) for _, s in rows[1:])]
    assert log.check_stored(one_commit, mesh=MESH)[0] == 2


@pytest.mark.parametrize("damage", ["cut", "swapped", "skipped index", "falling index", "zero", "repeated"])
def test_a_damaged_log_is_refused(damage: str) -> None:
    rows = stored()
    broken = {
        "cut": rows[:2] + rows[3:],
        "swapped": [rows[0], (2, rows[2][1]), (3, rows[1][1]), *rows[3:]],
        "skipped index": [*rows[:2], *((n + 1, s) for n, s in rows[2:])],
        "falling index": [*rows[:3], (1, rows[3][1])],
        "zero": [(0, rows[0][1])],
        "repeated": [*rows, (len(rows) + 1, rows[-1][1])],
    }[damage]
    with pytest.raises(Integrity) as caught:
        log.check_stored(broken, mesh=MESH)
    assert caught.value.code == "broken-log"


def test_the_log_of_another_mesh_is_refused() -> None:
    with pytest.raises(Integrity) as caught:
        log.check_stored(stored(), mesh="m2")
    assert caught.value.code == "foreign-mesh"


def test_commits_are_taken_whole() -> None:
    (_, a), (_, b), (_, c) = stored()[:3]
    rows = [(1, a), (2, b), (2, c), (3, a)]
    assert log.take(rows, None) == rows
    assert log.take(rows, 1) == rows[:1]
    assert log.take(rows, 2) == rows[:3]
    assert log.take(rows, 0) == rows[:1]
    assert log.take([], 5) == []
