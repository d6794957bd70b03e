"""The read model: forward only, once for each commit, never behind what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keymesh.adapters.sql_projection import SqlProjection
from keymesh.model.errors import Integrity, Unavailable
from keymesh.registry import killswitch
from tests.unit.registry.harness import Bench, run, with_tenant


@pytest.fixture
def bench() -> Bench:
    bench = with_tenant()
    bench.tenant("globex", regions=("eu-central", "eu-west"), home="eu-central")
    bench.ok(bench.label("acme", 7))
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s1"))
    return bench


def opened(path: Path) -> SqlProjection:
    return SqlProjection(f"sqlite:///{path / 'projection.db'}")


def brought(bench: Bench, path: Path) -> SqlProjection:
    projection = opened(path)
    projection.catch_up(run(bench.log.read(projection.index())))
    return projection


def test_rows_are_what_the_log_says(bench: Bench, tmp_path: Path) -> None:
    projection = brought(bench, tmp_path)
    assert projection.index() == bench.state.index
    tenants = {r["tenant"]: r for r in projection.read("tenants").rows}
    assert set(tenants) == {"acme", "globex"}
    assert tenants["acme"]["home"] == "us-east"
    assert json.loads(tenants["acme"]["regions"]) == ["us-east", "us-west"]
    assert json.loads(tenants["acme"]["labels"]) == {"n": "7"}
    assert [r["service"] for r in projection.read("services", tenant="acme").rows] == ["pay"]
    (restriction,) = projection.read("restrictions").rows
    assert (restriction["scope"], restriction["state"]) == ("service:acme/pay", "suspended")
    assert len(projection.read("regions").rows) == 4
    assert len(projection.read("nodes").rows) == 4
    for name, space in bench.state.spaces.items():
        rows = {r["name"]: r["value"] for r in projection.read("rows", namespace=name).rows}
        assert rows == space.rows


def test_the_outbox_names_the_regions_that_are_to_hear_of_it(bench: Bench, tmp_path: Path) -> None:
    projection = brought(bench, tmp_path)
    regions = {(r["namespace"], r["region"]) for r in projection.read("outbox").rows}
    assert regions == {
        ("mesh", "*"),
        ("acme", "us-east"),
        ("acme", "us-west"),
        ("globex", "eu-central"),
        ("globex", "eu-west"),
    }
    projection.delivered("us-east", "acme", 99)
    assert not projection.read("outbox", region="us-east").rows
    assert projection.read("outbox", region="us-west").rows


def test_a_commit_taken_twice_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    projection = brought(bench, tmp_path)
    before = projection.read("entries")
    projection.catch_up(run(bench.log.read(0)))
    assert projection.read("entries") == before


def test_after_a_crash_it_is_brought_forward_from_where_it_is(bench: Bench, tmp_path: Path) -> None:
    _, entries = run(bench.log.read(0))
    first = opened(tmp_path)
    first.catch_up((3, entries[:3]))
    first.close()
    again = brought(bench, tmp_path)
    assert again.read("rows") == brought(bench, tmp_path / ".." / tmp_path.name).read("rows")
    assert again.index() == bench.state.index


def test_it_refuses_to_skip_or_to_be_rewritten(bench: Bench, tmp_path: Path) -> None:
    _, entries = run(bench.log.read(0))
    projection = opened(tmp_path)
    with pytest.raises(Integrity) as refused:
        projection.apply(2, [entries[1][1]])
    assert refused.value.code == "projection-skip"
    projection.apply(1, [entries[0][1]])
    with pytest.raises(Integrity) as refused:
        projection.apply(1, [entries[1][1]])
    assert refused.value.code == "projection-rewrite"
    with pytest.raises(Integrity) as refused:
        projection.apply(2, [entries[2][1]])
    assert refused.value.code == "projection-chain"
    assert projection.index() == 1


def test_a_commit_is_taken_whole_or_not_at_all(bench: Bench, tmp_path: Path) -> None:
    _, entries = run(bench.log.read(0))
    projection = opened(tmp_path)
    projection.apply(1, [entries[0][1]])
    with pytest.raises(Integrity):
        projection.apply(2, [entries[1][1], entries[4][1]])
    assert projection.index() == 1
    assert not projection.read("tenants").rows
    projection.apply(2, [entries[1][1]])
    assert [r["tenant"] for r in projection.read("tenants").rows] == ["acme"]


def test_reads_say_their_index_and_refuse_to_be_behind(bench: Bench, tmp_path: Path) -> None:
    projection = brought(bench, tmp_path)
    index = bench.state.index
    assert projection.read("tenants", at_least=index).index == index
    with pytest.raises(Unavailable):
        projection.read("tenants", at_least=index + 1)


def test_pages_follow_each_other(bench: Bench, tmp_path: Path) -> None:
    projection = brought(bench, tmp_path)
    whole = projection.read("entries").rows
    found: list[dict[str, Any]] = []
    while page := projection.read("entries", limit=2, after=found[-1] if found else None).rows:
        found.extend(page)
    assert tuple(found) == whole


def test_kill_switch_records_are_shown_as_they_stand(bench: Bench, tmp_path: Path) -> None:
    projection = brought(bench, tmp_path)
    for expected in ("revoking", "certified"):
        record = killswitch.record_of(bench.state, "acme", "s1")
        assert record is not None
        projection.put_kill(record)
        (row,) = projection.read("kill_records").rows
        assert row["status"] == expected
        bench.ack_tasks("us-east")
        bench.ack_tasks("us-west")


def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        SqlProjection(f"sqlite:///{tmp_path / 'missing' / 'projection.db'}")
