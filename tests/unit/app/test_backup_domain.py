"""A domain's line: wrapped keys and the states that name them, of that domain and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.unit.app.backup_world import World, blob_of, forge, manifest_of, raw_backup, replace_object
from tests.unit.control.world import digest, resigned

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.app.backup_domain import STATES_CODEC
from keymesh.app.backup_read import open_chunks
from keymesh.control import backup_manifest as bm
from keymesh.control.backup_chunks import Item
from keymesh.control.heads import heads_root
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()


async def both(world: World) -> None:
    """An American and a European tenant, both backed up by both of their regions, and the log."""
    world.mesh.furnished("acme")
    world.mesh.tenant("euro", ("eu-central", "eu-west"))
    world.mesh.service("euro")
    world.mesh.key_version("euro", "l2", 1, "b1")
    await world.sync()
    for region, tenant in (
        ("us-east", "acme"),
        ("us-west", "acme"),
        ("eu-central", "euro"),
        ("eu-west", "euro"),
    ):
        await world.give(region, tenant)
        await world.node(region).once()
    await world.registry().once()


def rotate(world: World) -> None:
    """A second version of the service's key."""
    world.mesh.do("acme", "key.want", {"key": "l3/pay", "version": 2})
    world.mesh.key_version("acme", "l3/pay", 2, digest("acme/l2/1")[:32])


async def test_every_wrapped_key_of_a_domain_is_in_its_store_and_verifies(world: World) -> None:
    await both(world)
    reports, _ = world.verify("us", "eu")
    assert [(r.domain, r.blobs, sorted(r.lines)) for r in reports] == [
        ("", 0, ["registry"]),
        ("us", 2, ["us-east.n1", "us-west.n1"]),
        ("eu", 1, ["eu-central.n1", "eu-west.n1"]),
    ]


async def test_a_tenant_of_another_domain_reaches_no_store_of_this_one(world: World) -> None:
    """Whatever the node holds: it was given the European's state and blob by mistake."""
    await both(world)
    await world.give("us-east", "acme", "euro")
    await world.node("us-east").once(full=True)
    opener = world.opener()
    store = world.store("us")
    found: set[bytes] = set()
    for origin in ("us-east.n1", "us-west.n1"):
        for name in store.names(bm.manifest_prefix(origin)):
            m, _ = bm.parse_manifest(store.get(name, max_bytes=bm.ENVELOPE_MAX_BYTES) or b"")
            for _, items in open_chunks(store, m, opener.private):
                found |= {part for item in items for part in item}
    assert blob_of("acme", "l2", 1) in found
    assert b"acme" in found
    assert not [part for part in found if b"euro" in part]
    world.verify("us", "eu")


async def test_a_store_of_another_domain_gets_nothing(world: World) -> None:
    await both(world)
    files = sorted((world.root / "us").rglob("*"))
    keeper = world.node("eu-west", domain="us")  # its configuration names the Americans' store
    with pytest.raises(Integrity) as failed:
        await keeper.once()
    assert failed.value.code == keeper.failing == "foreign-domain"
    keeper = world.node("eu-west", store=world.store("us"))  # its own domain, the Americans' bucket
    with pytest.raises(Integrity) as failed:
        await keeper.once()
    assert failed.value.code == "foreign-store"
    assert sorted((world.root / "us").rglob("*")) == files


async def test_it_goes_on_by_what_changed(world: World) -> None:
    await both(world)
    keeper = world.node("us-east")
    await keeper.once()  # a new life does not know what earlier ones gave: full
    assert manifest_of(world.root / "us", 2, "us-east.n1").full
    assert (await keeper.once()).manifest.seq == 2
    rotate(world)
    await world.sync()
    await world.registry().once()
    await world.give("us-east", "acme")
    await keeper.once()
    third = manifest_of(world.root / "us", 3, "us-east.n1")
    assert [(c.kind, c.items) for c in third.chunks] == [(bm.STATES, 1), (bm.BLOBS, 1)]
    assert (third.full, third.blobs, third.namespaces) == (False, 3, 2)
    del world.held["us-east"]["acme"]  # no longer allowed here
    await keeper.once()
    assert manifest_of(world.root / "us", 4, "us-east.n1").namespaces == 1
    world.verify("us", "eu")


async def test_a_missing_blob_is_fetched_from_the_tenants_other_regions_and_else_named(world: World) -> None:
    await both(world)
    asked: list[tuple[str, str]] = []
    rotate(world)
    await world.sync()
    await world.registry().once()
    await world.give("us-east", "acme", blobs=False)

    async def fetch(tenant: str, wanted: str) -> bytes:
        asked.append((tenant, wanted))
        if len(asked) == 1:
            raise Unavailable("no-blob", "not yet")
        if len(asked) == 2:
            raise Refused("not-found", "no such tenant here")
        return blob_of("acme", "l3/pay", 2)

    keeper = world.node("us-east", fetch=fetch)
    for _ in range(2):
        assert (await keeper.once()).manifest.missing == 1
        with pytest.raises(Integrity) as failed:
            world.verify("us", "eu")
        assert failed.value.code == "incomplete"
    assert (await keeper.once()).manifest.missing == 0
    assert asked == [("acme", digest("blob acme/l3/pay/2"))] * 3
    world.verify("us", "eu")


async def test_a_damaged_blob_of_this_node_is_not_backed_up(world: World) -> None:
    await both(world)
    await world.keep("us-east", "acme", digest("blob acme/l2/1"), b"rotten")

    async def fetch(tenant: str, wanted: str) -> bytes:
        return blob_of("acme", "l2", 1)

    assert (await world.node("us-east", fetch=fetch).once(full=True)).manifest.missing == 0
    world.verify("us", "eu")


async def test_before_the_mesh_is_known_there_is_nothing_to_back_up(world: World) -> None:
    keeper = world.node("us-east")
    with pytest.raises(Unavailable):
        await keeper.once()
    assert keeper.failing == "booting"
    await world.give("us-east")
    await keeper.once()
    assert keeper.failing == ""


async def test_a_revoked_version_need_not_be_there_any_more(world: World) -> None:
    await both(world)
    world.mesh.restrict("revoke", "key:acme/pay@1")
    await world.sync()
    await world.registry().once()
    for region in ("us-east", "us-west"):
        await world.keystore(region).drop_blob("acme", digest("blob acme/l3/pay/1"))
        await world.give(region, "acme", blobs=False)
        await world.node(region).once(full=True)
    world.verify("us", "eu")


# --- what a store may not be -----------------------------------------------------------------------------------------

Edit = Callable[[World, list[Item], list[Item]], object]


async def lie(world: World, edit: Edit, *, signer: str = "node-us-east", origin: str = "us-east.n1") -> None:
    """A whole backup of edited states and blobs, signed by the node, true to what it holds."""
    states = [(name.encode(), STATES_CODEC.encode(s)) for name, s in world.held["us-east"].items()]
    blobs = [(b"acme", digest(f"blob acme/{key}/1").encode(), blob_of("acme", key, 1)) for key in ("l2", "l3/pay")]
    items: tuple[list[Item], list[Item]] = ([*states], [*blobs])
    edit(world, *items)
    found = {}
    for item in items[0]:
        state = STATES_CODEC.decode(item[1], max_bytes=2**22)
        found[item[0].decode()] = state.leaf
    totals = {
        "epoch": 1,
        "index": 0,
        "entries": 0,
        "namespaces": len(found),
        "blobs": len({i[:2] for i in items[1]}),
        "missing": 0,
        "heads_root": heads_root(found),
    }
    chunks = [(kind, i) for kind, i in zip((bm.STATES, bm.BLOBS), items, strict=True) if i]
    writer = world.writer(world.store("us"), origin=origin, domain="us", signer=signer, memory="liar")
    await raw_backup(writer, chunks, totals)


def _swap_tenant(world: World, states: list[Item], blobs: list[Item]) -> None:
    blobs[0] = (b"mesh", *blobs[0][1:])


def _swap_blobs(world: World, states: list[Item], blobs: list[Item]) -> None:
    blobs[0], blobs[1] = (*blobs[0][:2], blobs[1][2]), (*blobs[1][:2], blobs[0][2])


def _foreign_blob(world: World, states: list[Item], blobs: list[Item]) -> None:
    blobs.append((b"acme", digest("else").encode(), b"else"))


def _european(world: World, states: list[Item], blobs: list[Item]) -> None:
    states.append((b"euro", STATES_CODEC.encode(world.mesh.states["euro"])))


def _lifted(world: World, states: list[Item], blobs: list[Item]) -> None:
    """The suspension is left out of the rows."""
    state = world.mesh.restrict("suspend", "tenant:acme")
    rows = {name: raw for name, raw in state.rows.items() if not name.startswith("restriction/")}
    states[1] = (b"acme", STATES_CODEC.encode(type(state)(state.head, rows, state.support)))


def _other_history(world: World, states: list[Item], blobs: list[Item]) -> None:
    """The Registry signed two entries of one place."""
    forked = resigned(world.mesh.states["acme"], world.mesh.registry, issued_at=5)
    states[1] = (b"acme", STATES_CODEC.encode(forked))


def _renamed(world: World, states: list[Item], blobs: list[Item]) -> None:
    states[1] = (b"beta", states[1][1])


LIES: dict[str, tuple[Edit, str]] = {
    "the truth": (lambda w, s, b: None, ""),
    "a swapped tenant": (_swap_tenant, "foreign-blob"),
    "swapped blobs": (_swap_blobs, "blob-digest"),
    "a blob that no state names": (_foreign_blob, "foreign-blob"),
    "a blob twice": (lambda w, s, b: b.append(b[0]), "duplicate-id"),
    "a state twice": (lambda w, s, b: s.append(s[1]), "duplicate-id"),
    "a state under another name": (_renamed, "namespace-mismatch"),
    "a European": (_european, "foreign-domain"),
    "a missing restriction": (_lifted, "state-mismatch"),
    "another history": (_other_history, "fork"),
    "no mesh": (lambda w, s, b: s.pop(0), "broken-backup"),
}


@pytest.mark.parametrize("name", LIES)
async def test_lies_of_a_node_are_found(world: World, name: str) -> None:
    await both(world)
    edit, code = LIES[name]
    await lie(world, edit)
    if not code:
        world.verify("us", "eu")
        return
    with pytest.raises(Integrity) as failed:
        world.verify("us", "eu")
    assert failed.value.code == code, failed.value.message


@pytest.mark.parametrize(("signer", "origin"), [("node-us-west", "us-east.n1"), ("registry", "us-east.n1")])
async def test_only_the_node_itself_signs_its_line(world: World, signer: str, origin: str) -> None:
    await both(world)
    store = world.root / "us"
    forge(store, 1, signer=signer, origin=origin)
    with pytest.raises(Integrity) as failed:
        world.verify("us", "eu")
    assert failed.value.code == "bad-signature"


async def test_a_line_of_no_node_or_of_another_domains_is_refused(world: World) -> None:
    await both(world)
    await lie(world, lambda w, s, b: None, signer="node-eu-west", origin="eu-west.n1")
    with pytest.raises(Integrity) as failed:
        world.verify("us", "eu")
    assert failed.value.code == "foreign-domain"


async def test_a_blob_that_is_in_no_line_is_missed(world: World) -> None:
    await both(world)
    for region in ("us-east", "us-west"):
        store = world.root / "us"
        m = manifest_of(store, 1, f"{region}.n1")
        forge(
            store,
            1,
            signer=f"node-{region}",
            origin=f"{region}.n1",
            chunks=tuple(c for c in m.chunks if c.kind != bm.BLOBS),
            blobs=0,
        )
    with pytest.raises(Integrity) as failed:
        world.verify("us", "eu")
    assert failed.value.code == "incomplete"


async def test_each_store_is_taken_for_what_it_is(world: World) -> None:
    from keymesh.app.backup_verify import verify_domain, verify_registry

    await both(world)
    _, replayed = world.verify()
    with pytest.raises(Refused):
        verify_registry(world.store("us"), world.opener())
    with pytest.raises(Refused):
        verify_domain([world.store()], world.opener(), replayed)
    with pytest.raises(Refused):
        verify_domain([world.store("us"), world.store("eu")], world.opener(), replayed)
    replace_object(world.root / "us" / bm.MARKER_NAME, b'{"domain":"eu","format":"keymesh/backup/1","mesh":"m1"}')
    with pytest.raises(Integrity) as failed:
        world.verify("us")
    assert failed.value.code == "foreign-mesh"


async def test_nodes_of_a_domain_may_have_stores_of_their_own(world: World) -> None:
    """What one of them lacks another may have; but each line is in one store."""
    from keymesh.app.backup_verify import verify_domain

    world.mesh.furnished("acme")
    await world.sync()
    await world.registry().once()
    _, replayed = world.verify()
    stores = {region: DirectoryStore(world.root / region) for region in ("us-east", "us-west")}
    for region, store in stores.items():
        await world.give(region, "acme")
        if region == "us-west":
            await world.keystore(region).drop_blob("acme", digest("blob acme/l2/1"))
        await world.node(region, store=store).once()
    reports = verify_domain(list(stores.values()), world.opener(), replayed)
    assert [report.blobs for report in reports] == [2, 1]
    with pytest.raises(Integrity) as failed:
        verify_domain([stores["us-west"]], world.opener(), replayed)
    assert failed.value.code == "incomplete"
    await world.node("us-west", store=stores["us-east"]).once(full=True)
    with pytest.raises(Integrity) as failed:
        verify_domain(list(stores.values()), world.opener(), replayed)
    assert failed.value.code == "duplicate-id"


async def test_a_state_may_be_newer_than_the_backup_of_the_log(world: World) -> None:
    await both(world)
    world.mesh.service("acme", "mail")
    await world.give("us-east", "acme")
    await world.node("us-east").once()
    world.verify("us", "eu")


async def test_no_chunk_and_no_manifest_in_a_store_names_a_tenant(world: World) -> None:
    await both(world)
    for path in (world.root / "us").rglob("*"):
        assert not path.is_file() or b"acme" not in path.read_bytes()


async def test_a_set_that_says_a_namespace_left_that_was_never_there_is_refused(world: World) -> None:
    await both(world)
    writer = world.writer(world.store("us"), origin="us-east.n1", domain="us", signer="node-us-east", memory="liar")
    mesh = world.mesh.mesh
    totals = {
        "epoch": 1,
        "index": 0,
        "entries": 0,
        "namespaces": 1,
        "blobs": 0,
        "missing": 0,
        "heads_root": heads_root({MESH_NAMESPACE: mesh.leaf}),
    }
    items: list[Item] = [(b"mesh", STATES_CODEC.encode(mesh)), (b"beta", b"")]
    await raw_backup(writer, [(bm.STATES, items)], totals)
    with pytest.raises(Integrity) as failed:
        world.verify("us", "eu")
    assert failed.value.code == "broken-backup"


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (bm.STATES, [(b"mesh", b"{}")]),
        (bm.STATES, [(b"mesh", b"\xff")]),
        (bm.STATES, [(b"\xff", b"{}")]),
        (bm.LOG, [(b"\0" * 8, b"{}")]),
        (bm.BLOBS, [(b"acme", b"00", b"blob")]),
    ],
)
async def test_chunks_of_rubbish_are_refused(world: World, kind: str, items: list[Item]) -> None:
    await both(world)
    writer = world.writer(world.store("us"), origin="us-east.n1", domain="us", signer="node-us-east", memory="liar")
    totals: dict[str, Any] = dict.fromkeys(("index", "entries", "namespaces", "blobs", "missing"), 0)
    await raw_backup(writer, [(kind, items)], {**totals, "epoch": 1, "heads_root": "00" * 32})
    with pytest.raises(Integrity):
        world.verify("us", "eu")


async def test_two_domains_at_once_keep_apart(world: World) -> None:
    await both(world)
    keepers = [world.node(region) for region in ("us-east", "us-west", "eu-central", "eu-west")]
    await asyncio.gather(*(keeper.once(full=True) for keeper in keepers))
    world.verify("us", "eu")
    assert structs.asdict(keepers[0].view())["failing"] == ""
