"""What the etcd log makes of a store: damaged, foreign, rolled back, compacted, full, long, or founded by many."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.servers import etcd
from tests.unit.control.world import MESH, Mesh, resigned

from keymesh.adapters.etcd_layout import Layout
from keymesh.adapters.etcd_log import PAGE_ENTRIES, TAIL_ENTRIES, EtcdControlLog
from keymesh.adapters.etcd_wire import KeyValue
from keymesh.control import build
from keymesh.control.entry import SignedEntry, leaf_of
from keymesh.control.heads import leaf_bytes
from keymesh.control.log import Conflict
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.limits import COMMIT_MAX_BYTES

PREFIXES = (f"store-{n}/" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.EtcdCluster]:
    with etcd.running(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


class Store:
    """One prefix of the server, and logs on it."""

    def __init__(self, server: etcd.EtcdCluster) -> None:
        self.server = server
        self.prefix = next(PREFIXES)
        self.keys = Layout(self.prefix, MESH)
        self.logs: list[EtcdControlLog] = []

    def log(self, mesh: str = MESH) -> EtcdControlLog:
        self.logs.append(EtcdControlLog(self.server.client(timeout_s=10.0), mesh=mesh, prefix=self.prefix))
        return self.logs[-1]

    def dump(self) -> list[dict[str, str]]:
        """Every key under the prefix, with its revisions."""
        where = {"key": etcd.b64(self.keys.prefix), "range_end": etcd.b64(self.keys.end)}
        found: list[dict[str, str]] = self.server.call(0, "/v3/kv/range", where).get("kvs", [])
        return found

    def put(self, key: bytes, value: bytes) -> None:
        self.server.put(key.decode(), value)

    def get(self, key: bytes) -> bytes:
        found = self.server.get(key.decode())
        assert found is not None
        return found

    def delete(self, key: bytes) -> None:
        assert self.server.delete(key.decode()) == 1


@pytest.fixture
async def store(server: etcd.EtcdCluster) -> AsyncIterator[Store]:
    made = Store(server)
    yield made
    for log in made.logs:
        await log.close()


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(real=True)


def chain(mesh: Mesh, count: int, tenant: str = "acme") -> list[SignedEntry]:
    """The next entries of a tenant."""
    held, made = mesh.states[tenant], []
    for _ in range(count):
        held = mesh.plan(tenant, "tenant.labels", {"labels": {}}, held=held)
        made.append(held.head)
    return made


async def filled(store: Store, mesh: Mesh) -> list[SignedEntry]:
    mesh.furnished()
    entries = [mesh.mesh.head, *(s.head for s in mesh.history["acme"])]
    log = store.log()
    for signed in entries:
        await log.append([signed])
    return entries


Damage = Callable[[Store, list[SignedEntry], Mesh], None]


def altered(store: Store, entries: list[SignedEntry], mesh: Mesh) -> None:
    other = build.sign_entry(msgspec.structs.replace(entries[2].entry, actor="mallory"), mesh.registry)
    store.put(store.keys.entry("acme", 2), envelope_to_json(other.envelope))


def added(store: Store, entries: list[SignedEntry], mesh: Mesh) -> None:
    new = chain(mesh, 1)[0]
    store.put(store.keys.entry("acme", new.entry.seq), envelope_to_json(new.envelope))
    store.put(store.keys.command("acme", new.entry.command_id), b"%d" % new.entry.seq)
    store.put(store.keys.head("acme"), leaf_bytes(leaf_of(new)))


def first_head_again(store: Store, entries: list[SignedEntry], mesh: Mesh) -> None:
    store.put(store.keys.head("acme"), leaf_bytes(leaf_of(entries[1])))


def expiring(store: Store, entries: list[SignedEntry], mesh: Mesh) -> None:
    key, value = store.keys.entry("mesh", 1), envelope_to_json(entries[0].envelope)
    lease = store.server.call(0, "/v3/lease/grant", {"TTL": "3600"})["ID"]
    store.delete(key)
    store.server.call(0, "/v3/kv/put", {"key": etcd.b64(key), "value": etcd.b64(value), "lease": lease})


def counter_anew(store: Store, entries: list[SignedEntry], mesh: Mesh) -> None:
    store.delete(store.keys.index)
    for _ in entries:
        store.put(store.keys.index, b"")


DAMAGE: dict[str, Damage] = {
    "an entry gone": lambda s, e, m: s.delete(s.keys.entry("acme", 2)),
    "the newest gone": lambda s, e, m: s.delete(s.keys.entry("acme", len(e) - 1)),
    "the oldest trimmed": lambda s, e, m: s.delete(s.keys.entry("mesh", 1)),
    "an entry put again": lambda s, e, m: s.put(s.keys.entry("acme", 2), s.get(s.keys.entry("acme", 2))),
    "an entry altered": altered,
    "an entry that expires": expiring,
    "another entry in its place": lambda s, e, m: s.put(s.keys.entry("acme", 2), s.get(s.keys.entry("acme", 3))),
    "no entry": lambda s, e, m: s.put(s.keys.entry("acme", 2), b"\xff"),
    "a second writer that keeps no index": added,
    "an entry elsewhere": lambda s, e, m: s.put(s.keys.entry("acme", 99), s.get(s.keys.entry("acme", 2))),
    "an entry at no place": lambda s, e, m: s.put(s.keys.log + b"acme/1", s.get(s.keys.entry("acme", 1))),
    "a head back": first_head_again,
    "a head gone": lambda s, e, m: s.delete(s.keys.head("mesh")),
    "a head of nothing": lambda s, e, m: s.put(s.keys.head("zeta"), s.get(s.keys.head("acme"))),
    "no head": lambda s, e, m: s.put(s.keys.head("acme"), b"{}"),
    "a command gone": lambda s, e, m: s.delete(s.keys.command("acme", e[2].entry.command_id)),
    "a command moved": lambda s, e, m: s.put(s.keys.command("acme", e[2].entry.command_id), b"1"),
    "a command more": lambda s, e, m: s.put(s.keys.command("acme", "unheard"), b"1"),
    "the counter on": lambda s, e, m: s.put(s.keys.index, b""),
    "the counter gone": lambda s, e, m: s.delete(s.keys.index),
    "the counter anew": counter_anew,
    "junk before": lambda s, e, m: s.put(s.keys.prefix + b"a", b"junk"),
    "junk among": lambda s, e, m: s.put(s.keys.prefix + b"lo", b"junk"),
    "junk after": lambda s, e, m: s.put(s.keys.prefix + b"zzz", b"junk"),
    "the description gone": lambda s, e, m: s.delete(s.keys.meta),
    "the description junk": lambda s, e, m: s.put(s.keys.meta, b"\xff"),
    "another format": lambda s, e, m: s.put(s.keys.meta, b'{"format":"9","mesh":"m1"}'),
    "another mesh's": lambda s, e, m: s.put(s.keys.meta, b'{"format":"1","mesh":"m2"}'),
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_found_before_anything_is_changed(store: Store, mesh: Mesh, what: str) -> None:
    entries = await filled(store, mesh)
    DAMAGE[what](store, entries, mesh)
    before = store.dump()
    log = store.log()
    for _ in range(2):  # it does not get used to it
        with pytest.raises(Integrity):
            await log.append(chain(mesh, 1))
        with pytest.raises(Integrity):
            await log.read(0)
        with pytest.raises(Integrity):
            await log.find("acme", entries[2].entry.command_id)
        with pytest.raises(Integrity):
            await log.heads()
    assert store.dump() == before


async def test_the_log_of_another_mesh_is_refused(store: Store, mesh: Mesh) -> None:
    await filled(store, mesh)
    before = store.dump()
    with pytest.raises(Integrity) as caught:
        await store.log("m2").append([Mesh(real=True, name="m2").mesh.head])
    assert caught.value.code == "foreign-mesh"
    assert store.dump() == before


async def test_a_place_with_something_else_in_it_is_not_founded(store: Store, mesh: Mesh) -> None:
    store.put(store.keys.prefix + b"somebody/else", b"1")
    before = store.dump()
    with pytest.raises(Integrity):
        await store.log().append([mesh.mesh.head])
    assert store.dump() == before


async def test_prefixes_beside_it_are_not_looked_at(store: Store, mesh: Mesh) -> None:
    store.put(store.keys.prefix[:-1] + b".", b"1")
    store.put(store.keys.prefix[:-1] + b"0", b"1")
    entries = await filled(store, mesh)
    assert (await store.log().read(0))[0] == len(entries)


async def test_founded_by_many_at_once(store: Store, mesh: Mesh) -> None:
    logs = [store.log() for _ in range(6)]
    await asyncio.gather(*(log.open() for log in logs))
    results = await asyncio.gather(*(log.append([mesh.mesh.head]) for log in logs), return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Conflict"] * 5 + ["int"]
    assert [await log.read(0) for log in logs] == [(1, [(1, mesh.mesh.head)])] * 6


async def test_a_log_that_vanishes_under_a_writer_is_not_begun_anew(store: Store, mesh: Mesh) -> None:
    await filled(store, mesh)
    log = store.logs[0]
    store.server.delete(store.prefix, all_under=True)
    for _ in range(2):
        with pytest.raises(Integrity):
            await log.append(chain(mesh, 1))
        with pytest.raises(Integrity):
            await log.read(0)
    assert store.dump() == []


async def test_a_first_entry_goes_into_no_other_meshs_log(store: Store, mesh: Mesh) -> None:
    log = store.log()
    await log.open()
    store.put(store.keys.meta, b'{"format":"1","mesh":"m2"}')
    before = store.dump()
    with pytest.raises(Integrity):
        await log.append([mesh.mesh.head])
    assert store.dump() == before


@pytest.mark.parametrize("read", [True, False])
async def test_a_log_that_went_back_is_refused_by_who_saw_more(store: Store, mesh: Mesh, read: bool) -> None:
    entries = await filled(store, mesh)
    log = store.logs[0]
    assert not read or (await log.read(0))[0] == len(entries)
    store.server.delete(store.prefix, all_under=True)
    again = store.log()
    for signed in entries[:3]:
        await again.append([signed])
    before = store.dump()
    for call in (log.append(chain(mesh, 1)), log.read(0), log.heads(), log.find("acme", "x")):
        with pytest.raises(Integrity) as caught:
            await call
        assert caught.value.code == "rolled-back"
    assert store.dump() == before


async def test_a_log_that_was_replaced_by_one_as_long_is_refused(store: Store, mesh: Mesh) -> None:
    entries = await filled(store, mesh)
    log = store.logs[0]
    await log.read(0)
    store.server.delete(store.prefix, all_under=True)
    again = store.log()
    for signed in entries:
        await again.append([signed])
    for call in (log.heads(), log.read(len(entries)), log.read(0)):
        with pytest.raises(Integrity):
            await call
    assert (await store.log().read(0))[0] == len(entries)


@pytest.mark.parametrize("then", [0, 1])
async def test_a_counter_that_somebody_else_moved_is_found_by_a_running_log(
    store: Store, mesh: Mesh, then: int
) -> None:
    entries = await filled(store, mesh)
    log, other = store.logs[0], store.log()
    await log.read(0)
    await other.open()
    store.put(store.keys.index, b"")
    for signed in chain(mesh, then):
        assert await other.append([signed]) == len(entries) + 2, "which no reader takes for the next"
    for _ in range(2):
        with pytest.raises(Integrity):
            await log.read(0)


async def test_a_head_that_is_not_its_entrys_is_found_by_a_running_log(store: Store, mesh: Mesh) -> None:
    await filled(store, mesh)
    log, other, new = store.logs[0], store.log(), chain(mesh, 1)
    await log.read(0)
    await other.append(new)
    wrong = msgspec.structs.replace(leaf_of(new[0]), state="11" * 32)
    store.put(store.keys.head("acme"), leaf_bytes(wrong))
    with pytest.raises(Integrity):
        await log.read(0)


def test_an_entry_is_written_once_and_for_good(mesh: Mesh) -> None:
    keys, signed = Layout("k/", MESH), mesh.mesh.head
    good = KeyValue(
        key=keys.entry("mesh", 1),
        value=envelope_to_json(signed.envelope),
        create_revision=5,
        mod_revision=5,
        version=1,
    )
    assert keys.read_entry(good) == signed
    for fields in ({"version": 2}, {"mod_revision": 6}, {"lease": 1}, {"key": keys.entry("mesh", 2)}):
        with pytest.raises(Integrity):
            keys.read_entry(msgspec.structs.replace(good, **fields))


async def test_something_where_the_next_entry_belongs_is_not_overwritten(store: Store, mesh: Mesh) -> None:
    entries = await filled(store, mesh)
    log, new = store.logs[0], chain(mesh, 1)
    store.put(store.keys.entry("acme", new[0].entry.seq), b"junk")
    before = store.dump()
    with pytest.raises(Integrity):
        await log.append(new)
    assert store.dump() == before
    assert (await log.read(0))[1] == list(enumerate(entries, 1))


async def test_an_entry_altered_behind_a_reader_is_not_given_out(store: Store, mesh: Mesh) -> None:
    entries = await filled(store, mesh)
    log = store.log()
    await log.open()
    place, command = store.keys.entry("acme", 2), entries[2].entry.command_id
    value = store.get(place)
    store.delete(place)
    store.put(place, value)
    with pytest.raises(Integrity):
        await log.find("acme", command)
    altered(store, entries, mesh)
    with pytest.raises(Integrity):
        await log.find("acme", command)
    store.put(store.keys.command("acme", command), b"many")
    with pytest.raises(Integrity):
        await log.find("acme", command)


async def test_two_writers_see_each_other_at_once(store: Store, mesh: Mesh) -> None:
    entries = await filled(store, mesh)
    one, two = store.logs[0], store.log()
    await two.open()
    left, right = chain(mesh, 1), chain(mesh, 1)
    index = await one.append(left)
    assert await two.read(len(entries)) == (index, [(index, left[0])])
    with pytest.raises(Conflict):
        await two.append(right)
    assert await two.find("acme", left[0].entry.command_id) == (index, left[0])


async def test_a_writer_with_an_old_picture_appends_what_follows_the_new_one(store: Store, mesh: Mesh) -> None:
    await filled(store, mesh)
    one, two = store.logs[0], store.log()
    await two.open()
    steps = chain(mesh, 6)
    for n, signed in enumerate(steps):
        assert await (one, two)[n % 2].append([signed]) == 1 + len(mesh.history["acme"]) + n + 1


async def test_a_long_log_is_read_in_pages_and_after_compaction(store: Store, mesh: Mesh) -> None:
    entries = await filled(store, mesh)
    log = store.logs[0]
    many = chain(mesh, 2 * max(PAGE_ENTRIES, TAIL_ENTRIES) + 7)
    expected = list(enumerate(entries, 1))
    for at in range(0, len(many), 32):
        group = many[at : at + 32]
        index = await log.append(group)
        expected += [(index, signed) for signed in group]
    assert await log.read(0) == (expected[-1][0], expected), "caught up in pages"
    revision = max(int(kv["mod_revision"]) for kv in store.dump())
    store.server.call(0, "/v3/kv/compaction", {"revision": str(revision), "physical": True})
    fresh = store.log()
    assert await fresh.read(0) == (expected[-1][0], expected)
    for limit in (1, 40, 1_000):
        seen: list[tuple[int, SignedEntry]] = []
        while not seen or seen[-1][0] != expected[-1][0]:
            _, rows = await fresh.read(seen[-1][0] if seen else 0, limit)
            assert rows
            seen += rows
        assert seen == expected
    for index, signed in (expected[0], expected[7], expected[-1]):
        assert await fresh.find(signed.entry.namespace, signed.entry.command_id) == (index, signed)


async def test_a_full_group_of_many_bytes_goes_in_at_once(store: Store, mesh: Mesh) -> None:
    entries = await filled(store, mesh)
    held, heavy = mesh.states["acme"], []
    for _ in range(32):
        made = mesh.plan("acme", "tenant.labels", {"labels": {}}, held=held)
        room = COMMIT_MAX_BYTES // 32 - len(made.head.envelope.payload) - 20
        body = msgspec.structs.replace(made.head.entry.body, args={"labels": {}, "pad": "y" * room})
        held = resigned(made, mesh.registry, body=body)
        heavy.append(held.head)
    size = sum(len(s.envelope.payload) for s in heavy)
    assert COMMIT_MAX_BYTES - 1_024 < size <= COMMIT_MAX_BYTES
    log = store.logs[0]
    index = await log.append(heavy)
    assert await log.read(len(entries)) == (index, [(index, s) for s in heavy])
    assert (await store.log().read(len(entries)))[1] == [(index, s) for s in heavy]


async def test_a_full_group_of_many_namespaces_goes_in_at_once(store: Store, mesh: Mesh) -> None:
    log = store.log()
    await log.append([mesh.mesh.head])
    group = [mesh.tenant(f"t{n:02}").head for n in range(32)]
    assert await log.append(group) == 2
    assert (await log.read(1))[1] == [(2, s) for s in group]
    assert len((await log.heads())[1]) == 33


async def test_names_that_are_no_keys_are_refused(store: Store, mesh: Mesh) -> None:
    await filled(store, mesh)
    new = mesh.plan("acme", "tenant.labels", {"labels": {}})
    for fields in ({"command_id": "a/b"}, {"command_id": ""}, {"namespace": "ac/me"}, {"namespace": ""}):
        with pytest.raises(Refused):
            await store.logs[0].append([resigned(new, mesh.registry, **fields).head])
    assert await store.logs[0].find("acme", "a/../b") is None


async def test_a_store_without_space_refuses_and_reads_on(tmp_path: Path, mesh: Mesh) -> None:
    with etcd.running(tmp_path, flags=("--quota-backend-bytes", "2000000")) as cluster:
        log = EtcdControlLog(cluster.client(timeout_s=10.0), mesh=MESH)
        await log.append([mesh.mesh.head])
        mesh.furnished()
        tenant = [s.head for s in mesh.history["acme"]]
        await log.append(tenant)
        for _ in range(15):
            cluster.put("other", bytes(100_000))
        before = await log.read(0)
        with pytest.raises(Unavailable) as caught:
            for n in range(200):
                await log.append([mesh.tenant(f"t{n}").head])
        assert caught.value.code == "disk-full"
        index, rows = await log.read(0)
        assert index >= before[0] and rows[: len(before[1])] == before[1]
        await log.close()


def test_without_etcd_the_tests_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="apt-get install -y etcd-server"):
        etcd.EtcdCluster(tmp_path)
