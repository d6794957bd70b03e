"""One contract for the read model on every database: forward only, once for each commit, by one writer at a time,
never behind what it says, and silent where it does not follow from the log.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.servers.postgres import Postgres
from tests.unit.registry.harness import MESH, Bench, run, with_tenant

from keymesh.adapters import sql_migrate, sql_projection
from keymesh.adapters.sql_engine import Database
from keymesh.adapters.sql_migrate import migrate
from keymesh.adapters.sql_projection import SqlProjection
from keymesh.adapters.sql_schema import META
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.registry import killswitch
from keymesh.registry.projection import Fenced

Open = Callable[[], SqlProjection]


@pytest.fixture
def bench() -> Bench:
    bench = with_tenant()
    bench.tenant("globex", regions=("eu-central", "eu-west"), home="eu-central")
    bench.ok(bench.label("acme", 7))
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s1"))
    return bench


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database at this release's schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'projection.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    server.ask("postgres", "DROP SCHEMA public CASCADE")
    server.ask("postgres", "CREATE SCHEMA public")
    url = server.url("postgres")
    migrate([url])
    return url


@pytest.fixture
def opened(url: str) -> Iterator[Open]:
    """Replicas of the Registry, each with the writer's place as it opens."""
    made: list[SqlProjection] = []

    def replica() -> SqlProjection:
        made.append(SqlProjection(url, mesh=MESH))
        made[-1].take_place()
        return made[-1]

    yield replica
    for projection in made:
        projection.close()


@pytest.fixture
def brought(bench: Bench, opened: Open) -> Open:
    """Replicas at the log's index."""

    def replica() -> SqlProjection:
        projection = opened()
        projection.catch_up(run(bench.log.read(projection.index())))
        return projection

    return replica


def damage(url: str, statement: str, **values: Any) -> None:
    """Somebody, or something, writes into the database."""
    database = Database([url])
    with database.writing() as db:
        assert db.execute(sa.text(statement), values).rowcount
    database.close()


def contents(url: str) -> dict[str, list[Any]]:
    """Every table but the place."""
    database = Database([url])
    with database.reading() as db:
        found = {
            table.name: [tuple(row) for row in db.execute(sa.select(table).order_by(*table.primary_key.columns))]
            for table in META.sorted_tables
            if table.name != "projection_index"
        }
    database.close()
    return found


def test_rows_are_what_the_log_says(bench: Bench, brought: Open, opened: Open) -> None:
    projection = brought()
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


def test_the_outbox_names_the_regions_that_are_to_hear_of_it(bench: Bench, brought: Open, opened: Open) -> None:
    projection = brought()
    regions = {(r["namespace"], r["region"]) for r in projection.read("outbox").rows}
    assert regions == {
        ("mesh", "*"),
        ("acme", "us-east"),
        ("acme", "us-west"),
        ("globex", "eu-central"),
        ("globex", "eu-west"),
    }
    oldest = {(r["region"], r["namespace"]): r["seq"] for r in reversed(projection.read("outbox").rows)}
    assert {(region, namespace): seq for region, namespace, seq in projection.undelivered()} == oldest
    projection.delivered("us-east", "acme", 99)
    assert not projection.read("outbox", region="us-east").rows
    assert ("us-east", "acme") not in {(region, namespace) for region, namespace, _ in projection.undelivered()}
    assert projection.read("outbox", region="us-west").rows


def test_a_commit_taken_twice_changes_nothing(bench: Bench, brought: Open, opened: Open) -> None:
    projection = brought()
    before = projection.read("entries")
    projection.catch_up(run(bench.log.read(0)))
    assert projection.read("entries") == before


def test_after_a_crash_it_is_brought_forward_from_where_it_is(bench: Bench, brought: Open, opened: Open) -> None:
    _, entries = run(bench.log.read(0))
    first = opened()
    first.catch_up((3, entries[:3]))
    first.close()
    again = brought()
    assert again.read("rows") == brought().read("rows")
    assert again.index() == bench.state.index


def test_it_refuses_to_skip_or_to_be_rewritten(bench: Bench, brought: Open, opened: Open) -> None:
    _, entries = run(bench.log.read(0))
    projection = opened()
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


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_in_pieces_of_any_size_it_comes_to_the_same(
    bench: Bench, opened: Open, url: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    bench.ok(bench.scope_command("resume", "service:acme/pay", "s2"))
    for n in range(8, 14):
        bench.ok(bench.label("acme" if n % 2 else "globex", n))
    whole = run(bench.log.read(0))
    projection = opened()
    for index, signed in whole[1]:
        projection.apply(index, [signed])
    one_by_one = contents(url)
    monkeypatch.setattr(sql_projection, "COMMITS_AT_ONCE", at_once)
    monkeypatch.setattr(sql_projection, "NAMESPACES_CACHED", 1)
    projection.rebuild(whole)
    assert contents(url) == one_by_one
    projection.catch_up((whole[0], whole[1][3:]))  # all there
    assert contents(url) == one_by_one


def test_a_commit_is_taken_whole_or_not_at_all(bench: Bench, brought: Open, opened: Open) -> None:
    _, entries = run(bench.log.read(0))
    projection = opened()
    projection.apply(1, [entries[0][1]])
    with pytest.raises(Integrity):
        projection.apply(2, [entries[1][1], entries[4][1]])
    assert projection.index() == 1
    assert not projection.read("tenants").rows
    projection.apply(2, [entries[1][1]])
    assert [r["tenant"] for r in projection.read("tenants").rows] == ["acme"]


def test_reads_say_their_index_and_refuse_to_be_behind(bench: Bench, brought: Open, opened: Open) -> None:
    projection = brought()
    index = bench.state.index
    assert projection.read("tenants", at_least=index).index == index
    with pytest.raises(Unavailable):
        projection.read("tenants", at_least=index + 1)


def test_pages_follow_each_other(bench: Bench, brought: Open, opened: Open) -> None:
    projection = brought()
    whole = projection.read("entries").rows
    found: list[dict[str, Any]] = []
    while page := projection.read("entries", limit=2, after=found[-1] if found else None).rows:
        found.extend(page)
    assert tuple(found) == whole


def test_kill_switch_records_are_shown_as_they_stand(bench: Bench, brought: Open, opened: Open) -> None:
    projection = brought()
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
        SqlProjection(f"sqlite:///{tmp_path / 'missing' / 'projection.db'}", mesh=MESH).index()


# --- one writer at a time --------------------------------------------------------------------------------------------


def test_who_lost_the_place_writes_nothing(bench: Bench, opened: Open, url: str) -> None:
    _, entries = run(bench.log.read(0))
    first = opened()
    first.catch_up((2, entries[:2]))
    second = opened()
    record = killswitch.record_of(bench.state, "acme", "s1")
    assert record is not None
    before = contents(url)
    writes: list[Callable[[], None]] = [
        lambda: first.apply(3, [entries[2][1]]),
        lambda: first.put_kill(record),
        lambda: first.delivered("us-east", "acme", 99),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            write()
        assert contents(url) == before
    second.catch_up((3, entries[2:3]))
    first.apply(3, [entries[2][1]])  # the same commit, offered late: it is there
    with pytest.raises(Integrity):
        first.apply(3, [entries[3][1]])
    assert first.index() == second.index() == 3


def test_a_token_only_rises_and_two_never_hold_the_same(opened: Open, url: str) -> None:
    first, second = opened(), opened()
    assert first.take_place() == 3
    assert second.take_place() == 4
    damage(url, "UPDATE projection_index SET token = 1, holder = 'nobody'")  # as on a standby that lags
    with pytest.raises(Fenced):
        second.delivered("us-east", "acme", 1)
    assert first.take_place() == 4
    with pytest.raises(Fenced):  # token 4 was its own once, in a history that is gone
        second.delivered("us-east", "acme", 1)
    assert second.take_place() == 5


def test_a_place_taken_back_reads_what_the_other_wrote(bench: Bench, opened: Open, url: str) -> None:
    _, entries = run(bench.log.read(0))
    first = opened()
    first.catch_up((3, entries[:3]))
    second = opened()
    second.catch_up((5, entries[3:5]))
    first.take_place()
    first.catch_up(run(bench.log.read(first.index())))
    assert first.verify(run(bench.log.read(0)))


def test_outbox_lines_are_claimed_once(url: str, brought: Open) -> None:
    projection, other = brought(), SqlProjection(url, mesh=MESH)
    assert other.index()
    lanes = {r["lane"] for r in projection.read("outbox", region="us-east").rows}
    with pytest.raises(RuntimeError), projection.claimed("us-east", lane=min(lanes)) as lines:
        assert lines
        raise RuntimeError("the broker is away")
    with projection.claimed("us-east", lane=min(lanes), limit=1) as again:
        assert again == lines[:1]
        if url.startswith("postgresql"):
            with other.claimed("us-east", lane=min(lanes)) as rest:
                assert rest == lines[1:]
    with other.claimed("us-east", lane=min(lanes)) as left:
        assert left == (() if url.startswith("postgresql") else lines[1:])
    assert {r["lane"] for r in projection.read("outbox", region="us-east").rows} == lanes - {min(lanes)}
    other.close()


# --- right or wrong --------------------------------------------------------------------------------------------------

DAMAGES = {
    "a row": "UPDATE rows SET value = :v WHERE namespace = 'acme' AND name = 'labels'",
    "a row that is gone": "DELETE FROM rows WHERE namespace = 'acme' AND name = 'policy'",
    "a row too many": "INSERT INTO rows (namespace, name, value) VALUES ('acme', 'want/l3/x', :v)",
    "a namespace too many": "INSERT INTO rows (namespace, name, value) VALUES ('evil', 'policy', :v)",
    "a typed row": "UPDATE tenants SET home = 'us-west' WHERE tenant = 'acme'",
    "a typed row that is gone": "DELETE FROM restrictions WHERE namespace = 'acme'",
    "a typed row too many": "INSERT INTO services (tenant, service) VALUES ('acme', 'ghost')",
    "a typed row of nobody": "INSERT INTO services (tenant, service) VALUES ('ghost', 'ghost')",
    "a region": "UPDATE regions SET domain = 'us' WHERE region = 'eu-west'",
    "a head": "UPDATE heads SET seq = seq + 1 WHERE namespace = 'acme'",
    "a state": "UPDATE heads SET state = entry_hash WHERE namespace = 'acme'",
    "a head that is gone": "DELETE FROM heads WHERE namespace = 'globex'",
    "an actor": "UPDATE entries SET actor = 'somebody else' WHERE namespace = 'acme' AND seq = 1",
    "an entry that is gone": "DELETE FROM entries WHERE namespace = 'acme' AND seq = 1",
    "an entry too many": "INSERT INTO entries (namespace, seq, idx) VALUES ('acme', 99, 2)",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_does_not_follow_from_the_log_is_not_answered_from(
    bench: Bench, brought: Open, url: str, what: str
) -> None:
    projection, other = brought(), SqlProjection(url, mesh=MESH)
    whole = run(bench.log.read(0))
    before = contents(url)
    assert projection.verify(whole)
    statement = DAMAGES[what]
    damage(url, statement, **({"v": b'{"labels":{"n":"8"}}'} if ":v" in statement else {}))
    with pytest.raises(Integrity) as refused:
        projection.verify(whole)
    assert refused.value.code == "projection-wrong"
    for reader in (projection, other):  # no other replica answers either, nor a later life
        with pytest.raises(Unavailable) as silent:
            reader.read("tenants")
        assert silent.value.code == "doubted"
        assert reader.doubt()
    projection.rebuild(whole)
    assert projection.doubt() is None
    assert contents(url) == before
    assert projection.read("tenants").index == other.read("tenants").index == whole[0]
    other.close()


def test_a_sample_finds_it_too(bench: Bench, brought: Open, url: str) -> None:
    projection = brought()
    index, heads = run(bench.log.heads())
    assert all(projection.sample(index, heads, name) for name in heads)
    damage(url, DAMAGES["a typed row"])
    assert projection.sample(index, heads, "globex")
    with pytest.raises(Integrity):
        projection.sample(index, heads, "acme")


def test_being_late_or_early_is_not_being_wrong(bench: Bench, opened: Open) -> None:
    index, entries = run(bench.log.read(0))
    heads = run(bench.log.heads())[1]
    projection = opened()
    projection.catch_up((3, entries[:3]))
    assert projection.verify((index, entries))
    assert all(projection.sample(index, heads, name) for name in heads)
    assert not projection.verify((2, entries[:2]))
    assert not projection.sample(2, heads, "acme")
    assert projection.doubt() is None


def test_a_rebuild_that_was_cut_short_answers_nobody_until_it_is_done(bench: Bench, brought: Open, url: str) -> None:
    index, entries = run(bench.log.read(0))
    projection = brought()
    with pytest.raises(Integrity):
        projection.rebuild((index, [*entries[:3], *entries[4:]]))
    with pytest.raises(Unavailable):
        projection.read("tenants")
    assert projection.doubt()
    again = SqlProjection(url, mesh=MESH)
    again.rebuild((index, entries))
    assert again.read("tenants").index == index
    again.close()


def test_a_lost_index_is_noticed(bench: Bench, brought: Open, url: str) -> None:
    projection = brought()
    damage(url, "DELETE FROM projection_index")
    with pytest.raises(Integrity):
        projection.index()
    projection.rebuild(run(bench.log.read(0)))
    assert projection.read("tenants").index == bench.state.index


# --- the schema ------------------------------------------------------------------------------------------------------


def test_a_schema_of_a_newer_release_is_refused_and_left_alone(brought: Open, url: str) -> None:
    brought()
    before = contents(url)
    damage(url, "UPDATE alembic_version SET version_num = '9999'")
    for use in (
        lambda: SqlProjection(url, mesh=MESH).take_place(),
        lambda: migrate([url]),
        lambda: SqlProjection(url, mesh=MESH).index(),
    ):
        with pytest.raises(Refused) as refused:
            use()
        assert refused.value.code == "schema-newer"
    assert contents(url) == before


def test_another_meshs_database_is_refused(brought: Open, url: str) -> None:
    brought()
    before = contents(url)
    for use in (SqlProjection.take_place, SqlProjection.index):
        other = SqlProjection(url, mesh="another")
        with pytest.raises(Refused) as refused:
            use(other)
        assert refused.value.code == "foreign-mesh"
        other.close()
    assert contents(url) == before


def test_a_file_of_release_0_1_0_is_brought_forward_or_made_anew(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(bench.log.read(0))
    for alembic in (True, False):
        url = f"sqlite:///{tmp_path / f'{alembic}.db'}"
        projection = SqlProjection(url, mesh=MESH)
        projection.take_place()
        projection.catch_up(whole)
        projection.close()
        before = contents(url)
        with sqlite3.connect(tmp_path / f"{alembic}.db") as db:  # as it was made then
            for column in ("token", "holder", "mesh", "doubt"):
                db.execute(f"ALTER TABLE projection_index DROP COLUMN {column}")
            db.execute("DROP TABLE alembic_version")
        db.close()
        if not alembic:
            monkeypatch.setattr(sql_migrate, "find_spec", lambda name: None)
        projection = SqlProjection(url, mesh=MESH)
        assert projection.index() == (whole[0] if alembic else 0)
        projection.take_place()
        projection.catch_up(whole)
        assert projection.verify(whole)
        assert contents(url) == before
        projection.close()


def test_migrating_twice_changes_nothing(brought: Open, url: str) -> None:
    brought()
    before = contents(url)
    assert migrate([url]).applied == ()
    assert contents(url) == before
