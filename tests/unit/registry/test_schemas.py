"""When a region's key store may be migrated: everybody in the mesh understands it, and the region can."""

from __future__ import annotations

from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Received
from keymesh.orbital.messages import KeyStoreReport
from tests.unit.registry.harness import REGIONS as BY_NAME
from tests.unit.registry.harness import Bench, mesh_up, node

REGIONS = sorted(BY_NAME)
HERE = REGIONS[0]


def report(bench: Bench, region: str, schema: int = 1, newest: int = 2, *, sender: str | None = None) -> None:
    said = KeyStoreReport(region=region, node="n1", schema=schema, newest=newest)
    bench.feed(Received(sender=node(sender or region), message=said))


def migrate(bench: Bench, schema: int, command_id: str = "m1", region: str = HERE) -> str:
    """The code of the refusal, "" where it was recorded."""
    args = {"region": region, "schema": schema}
    done = bench.submit(bench.command("region.migrate-keystore", args, namespace="mesh", command_id=command_id))
    assert done is not None
    return done.error.code if isinstance(done.error, KeymeshError) else ""


def test_while_any_node_has_not_said_so_nothing_is_asked_of_any() -> None:
    bench = mesh_up()
    assert migrate(bench, 2) == "older-release"
    for region in REGIONS[:-1]:
        report(bench, region)
    assert migrate(bench, 2) == "older-release"
    report(bench, REGIONS[-1], sender=HERE)  # another's word counts for nothing
    assert migrate(bench, 2) == "older-release"
    report(bench, REGIONS[-1])
    assert migrate(bench, 2) == ""
    assert migrate(bench, 2) == ""  # the same command again
    assert migrate(bench, 2, "m2") == "conflict"


def test_a_schema_that_the_region_does_not_know_is_refused() -> None:
    bench = mesh_up()
    for region in REGIONS:
        report(bench, region, newest=2 if region == HERE else 7)
    assert migrate(bench, 3) == "schema-unknown"
    assert migrate(bench, 2, region="mars") == "schema-unknown"
    report(bench, HERE, newest=3)
    assert migrate(bench, 3) == ""


def test_malformed_arguments_are_refused_as_such() -> None:
    bench = mesh_up()
    for args in ({}, {"region": HERE}, {"region": HERE, "schema": "2"}, {"region": HERE, "schema": 2, "more": 1}):
        done = bench.submit(bench.command("region.migrate-keystore", args, namespace="mesh", command_id="x"))
        assert done is not None
        assert isinstance(done.error, KeymeshError)
        assert done.error.code == "bad-field"
