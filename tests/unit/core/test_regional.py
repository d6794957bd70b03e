"""The key store's schema as the mesh wants it: reported, migrated once, only upwards, only to what is known."""

from __future__ import annotations

from keymesh.core.events import MigrateStore, StoreSeen
from keymesh.core.regional import MIGRATION_TIMEOUT_MS
from keymesh.model.machine import REGISTRY, Received
from keymesh.orbital.messages import KeyStoreReport
from tests.unit.core.bench import REGION, Bench, furnished


def wanting(schema: int) -> Bench:
    """A node whose mesh wants ``schema``; it has not looked at its store yet."""
    mesh = furnished()
    bench = Bench(mesh).up()
    bench.give(mesh.do("mesh", "region.migrate-keystore", {"region": REGION, "schema": schema}))
    bench.renew()
    return bench


def asked(bench: Bench) -> list[MigrateStore]:
    return bench.effects(MigrateStore)


def test_the_registry_hears_what_the_store_is_and_of_every_change() -> None:
    bench = Bench().up()
    assert bench.sent(KeyStoreReport) == []  # nothing was looked at
    bench.take()
    for schema, heard in ((1, True), (1, False), (2, True)):
        bench.feed(StoreSeen(schema, 2))
        expected = [KeyStoreReport(region=REGION, node="n1", schema=schema, newest=2)] if heard else []
        assert bench.sent(KeyStoreReport) == expected
        bench.take()
    bench.feed(Received(sender=REGISTRY, message=KeyStoreReport(region=REGION, node="n1", schema=9, newest=9)))
    assert bench.state.store_schema == 2  # not the Registry's to say


def test_a_wanted_schema_is_asked_for_once_the_store_was_seen() -> None:
    bench = wanting(2)
    assert asked(bench) == []
    bench.feed(StoreSeen(1, 2))
    assert asked(bench) == [MigrateStore(2)]
    bench.take()
    bench.feed(StoreSeen(2, 2))
    assert asked(bench) == []


def test_one_migration_at_a_time_and_again_after_one_that_failed() -> None:
    bench = wanting(2)
    bench.feed(StoreSeen(1, 2))
    bench.take()
    bench.give_all()
    assert asked(bench) == []
    bench.feed(StoreSeen(1, 2))  # the next look: it is as it was
    assert asked(bench) == [MigrateStore(2)]
    bench.take()
    bench.advance(MIGRATION_TIMEOUT_MS - 1_000)
    assert asked(bench) == []


def test_nothing_goes_back_or_beyond_what_this_release_knows() -> None:
    for wanted, there, newest in ((2, 2, 2), (2, 3, 3), (3, 1, 2), (3, 2, 2)):
        bench = wanting(wanted)
        bench.feed(StoreSeen(there, newest))
        assert asked(bench) == [], (wanted, there, newest)


def test_a_store_that_no_schema_is_wanted_of_stays_as_it_is() -> None:
    bench = Bench().up()
    bench.feed(StoreSeen(1, 2))
    assert asked(bench) == []


def test_only_the_regions_minter_migrates() -> None:
    mesh = furnished()
    bench = Bench(mesh, minter=False).up()
    bench.give(mesh.do("mesh", "region.migrate-keystore", {"region": REGION, "schema": 2}))
    bench.feed(StoreSeen(1, 2))
    assert asked(bench) == []
