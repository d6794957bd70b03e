"""The customer's KMS and both its clients, over real mutual TLS: who may, what a no is, and what survives."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.adapters.pki_world import N1, REGISTRY, US, World

from keymesh.adapters import pki
from keymesh.adapters.customer_kms import KeymeshKms, OwnerClient, b64, open_provider, open_replicas, unb64
from keymesh.adapters.files import write_file
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.tls import Credentials
from keymesh.app import customer_kms
from keymesh.app.customer_kms_store import KmsStore
from keymesh.core.l1 import L1Denied, L1Unreachable, ProviderDescriptor
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

E = bytes(range(32))
REPLICAS = {"eu": 0, "us": 0}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@asynccontextmanager
async def kms(directory: Path, world: World | None = None) -> AsyncIterator[OwnerClient]:
    allow = () if world is None else (world.root_pem.decode(),)
    async with customer_kms.running(directory, REPLICAS, allow_ca=allow):
        async with OwnerClient.open(directory) as owner:
            yield owner


def provider(owner: OwnerClient, world: World, path: Path, uri: str = N1, *, region: str = "eu") -> KeymeshKms:
    return open_provider(owner.descriptor("root"), region, Credentials(world.write(path, uri)))


async def test_wrap_and_unwrap_at_any_replica(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        status = await owner.create("root")
        assert (status.version, status.enabled) == (1, True)
        eu, us = provider(owner, world, tmp_path / "a"), provider(owner, world, tmp_path / "b", US, region="us")
        first, second = await eu.wrap(E), await eu.wrap(E)
        assert first != second
        assert len(first) <= 256
        assert E not in first
        assert await us.unwrap(first) == E
        assert await owner.unwrap("root", second) == E
        assert await eu.unwrap(await owner.wrap("root", E)) == E
        for one in (eu, us):
            await one.close()
        replicas = open_replicas(owner.descriptor("root"), Credentials(tmp_path / "a"))
        assert {name: await one.unwrap(first) for name, one in replicas.items()} == {"eu": E, "us": E}
        for one in replicas.values():
            await one.close()


async def test_disabling_is_a_clear_no_at_once_everywhere_or_at_one_replica(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        await owner.create("root")
        eu, us = provider(owner, world, tmp_path / "a"), provider(owner, world, tmp_path / "a", region="us")
        wrapped = await eu.wrap(E)
        await owner.disable("root")
        for one in (eu, us):
            with pytest.raises(L1Denied) as denied:
                await one.unwrap(wrapped)
            assert denied.value.code == "disabled"
            with pytest.raises(L1Denied):
                await one.wrap(E)
        with pytest.raises(Refused):
            await owner.unwrap("root", wrapped)
        assert (await owner.enable("root")).enabled
        await owner.disable("root", replica="us")
        assert (await owner.status("root")).disabled_replicas == ["us"]
        assert await eu.unwrap(wrapped) == E
        with pytest.raises(L1Denied):
            await us.unwrap(wrapped)
        await owner.enable("root", replica="us")
        assert await us.unwrap(wrapped) == E
        with pytest.raises(Refused, match="replica"):
            await owner.disable("root", replica="mars")
        await eu.close()
        await us.close()


async def test_keys_and_their_state_survive_a_restart_on_the_same_ports(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        await owner.create("root")
        eu = provider(owner, world, tmp_path / "a")
        wrapped = await eu.wrap(E)
        await owner.disable("root", replica="us")
    with pytest.raises(L1Unreachable):
        await eu.unwrap(wrapped)
    async with kms(tmp_path / "kms") as owner:
        assert await eu.unwrap(wrapped) == E
        assert (await owner.status("root")).disabled_replicas == ["us"]
        with pytest.raises(Refused) as taken:
            await owner.create("root")
        assert taken.value.code == "conflict"
    await eu.close()


async def test_what_is_not_this_keys_is_one_opaque_answer(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        await owner.create("root")
        await owner.create("other")
        eu = provider(owner, world, tmp_path / "a")
        wrapped = bytearray(await eu.wrap(E))
        others = await owner.wrap("other", E)
        wrapped[-1] ^= 1
        for bad in (bytes(wrapped), others, bytes(wrapped[:-1]), b"", b"x", b"x" * 256, b"x" * 257):
            with pytest.raises(Integrity, match="could not be opened"):
                await eu.unwrap(bad)
        await eu.close()


async def test_every_single_bit_counts(tmp_path: Path) -> None:
    store = KmsStore(tmp_path / "keys.json")
    store.create("root")
    wrapped = store.wrap("root", "eu", E, b"aad")
    assert store.unwrap("root", "eu", wrapped, b"aad") == E
    for aad in (b"", b"aae"):
        with pytest.raises(Integrity):
            store.unwrap("root", "eu", wrapped, aad)
    for bit in range(len(wrapped) * 8):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Integrity):
            store.unwrap("root", "eu", bytes(changed), b"aad")


async def test_an_unknown_key_is_a_clear_no(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        eu = provider(owner, world, tmp_path / "a")
        with pytest.raises(L1Denied) as denied:
            await eu.wrap(E)
        assert denied.value.code == "no-such-key"
        with pytest.raises(Refused):
            await owner.status("root")
        await eu.close()


async def test_only_cores_of_an_allowed_mesh_use_keys(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        await owner.create("root")
        for uri in (REGISTRY, "spiffe://eu.test-dev/tenant/acme/client/alice", "spiffe://test-dev/admin/root"):
            other = provider(owner, world, tmp_path / "x", uri)
            with pytest.raises(L1Denied) as denied:
                await other.wrap(E)
            assert denied.value.code == "denied"
            await other.close()
        stranger = provider(owner, World(), tmp_path / "y")
        with pytest.raises(L1Unreachable):  # the handshake fails: nobody has said no
            await stranger.wrap(E)
        await stranger.close()


async def test_the_owner_allows_and_denies_a_mesh_while_it_runs(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms") as owner:
        await owner.create("root")
        eu = provider(owner, world, tmp_path / "a")
        with pytest.raises(L1Unreachable):
            await eu.wrap(E)
        pem = world.root_pem.decode()
        await owner.allow_ca(pem.strip(), uri_prefixes=("spiffe://eu.",))
        await eu.wrap(E)
        us = provider(owner, world, tmp_path / "b", US)
        with pytest.raises(L1Denied):
            await us.wrap(E)
        await owner.allow_ca(pem, denied=True)
        with pytest.raises(L1Denied):
            await eu.wrap(E)
        for bad in ("", "junk", "\u00e9", pem + pem, world_intermediate(world)):
            with pytest.raises(Refused):
                await owner.allow_ca(bad)
        with pytest.raises(Refused):
            await owner.allow_ca(pem, kinds=("root",))
        await eu.close()
        await us.close()
    async with kms(tmp_path / "kms") as owner:
        eu = provider(owner, world, tmp_path / "a")
        with pytest.raises(L1Denied):
            await eu.wrap(E)
        await eu.close()


def world_intermediate(world: World) -> str:
    return pki.certificates_pem([world.cas["eu.test-dev"].certificate]).decode()


async def test_a_core_is_not_the_owner(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        await owner.create("root")
        core_file = world.write(tmp_path / "a", N1)
        impostor = OwnerClient(name=owner.name, replicas=owner.replicas, ca_pem=owner.ca_pem, owner_file=core_file)
        for call in (
            impostor.create("mine"),
            impostor.disable("root"),
            impostor.enable("root"),
            impostor.status("root"),
        ):
            with pytest.raises(Refused) as denied:
                await call
            assert denied.value.code == "denied"
        with pytest.raises(Refused):
            await impostor.allow_ca(world.root_pem.decode())
        await impostor.close()
        server = OwnerClient(
            name=owner.name, replicas=owner.replicas, ca_pem=owner.ca_pem, owner_file=tmp_path / "kms" / "server.pem"
        )
        with pytest.raises(Unavailable):
            await server.status("root")
        await server.close()


async def test_the_kms_is_known_by_its_own_ca_alone(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner, kms(tmp_path / "other", world) as other:
        await owner.create("root")
        mixed = ProviderDescriptor(provider="keymesh-kms", key="root", replicas=owner.replicas, ca_pem=other.ca_pem)
        wrong = open_provider(mixed, "eu", Credentials(world.write(tmp_path / "a", N1)))
        with pytest.raises(L1Unreachable):
            await wrong.wrap(E)
        await wrong.close()
        owners_url = owner.descriptor("root")
        liar = ProviderDescriptor(provider="keymesh-kms", key="root", replicas=owners_url.replicas, ca_pem="junk")
        with pytest.raises(Refused):
            open_provider(liar, "eu", Credentials(tmp_path / "a"))


async def test_silence_is_never_denied(world: World, tmp_path: Path) -> None:
    """A listener that hangs up, one that says nothing, one that is not there."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    credentials = Credentials(world.write(tmp_path / "a", N1))
    async with kms(tmp_path / "kms", world) as owner:
        descriptor = ProviderDescriptor(
            provider="keymesh-kms", key="root", replicas={"eu": f"https://127.0.0.1:{port}"}, ca_pem=owner.ca_pem
        )
        eu = open_provider(descriptor, "us", credentials)
        with pytest.raises(L1Unreachable):
            await eu.wrap(E)
        listener.close()
        await listener.wait_closed()
        with pytest.raises(L1Unreachable):
            await eu.unwrap(b"x")
        await eu.close()


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "aws"},
        {"key": "../x"},
        {"replicas": {}},
        {"replicas": {"EU": "https://h:1"}},
        {"replicas": {"eu": "http://h:1"}},
        {"replicas": {"eu": "file:///etc/passwd"}},
        {"replicas": {"eu": "https://h:1/path"}},
        {"replicas": {"eu": "https://u@h:1"}},
        {"replicas": {"eu": "https://h"}},
        {"replicas": {f"r{n}": "https://h:1" for n in range(40)}},
        {"ca_pem": "é"},
        {"ca_pem": "x" * 100_000},
    ],
)
def test_malformed_descriptors_are_refused(change: dict[str, object]) -> None:
    good: dict[str, object] = {"provider": "keymesh-kms", "key": "k", "replicas": {"eu": "https://h:1"}, "ca_pem": "x"}
    ProviderDescriptor(**good).check()  # type: ignore[arg-type]
    with pytest.raises(Refused):
        ProviderDescriptor(**(good | change)).check()  # type: ignore[arg-type]


async def test_bad_bodies_are_refused(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        await owner.create("main")
        context = Credentials(world.write(tmp_path / "a", N1)).client_context(
            trust_pem=owner.ca_pem.encode(), check=lambda leaf, root: None
        )
        async with PeerClient(owner.replicas["eu"], context) as client:
            for body in (
                b"",
                b"{}",
                b'{"plaintext":"*"}',
                b'{"plaintext":""}',
                b'{"plaintext":"AA"}',
                b'{"plaintext":"AB=="}',
                json.dumps({"plaintext": b64(b"x" * 65)}).encode(),
                json.dumps({"plaintext": b64(E), "aad": b64(b"x" * 1_025)}).encode(),
                json.dumps({"plaintext": b64(E), "more": 1}).encode(),
            ):
                with pytest.raises(Refused):
                    await client.request("POST", "/keys/main/wrap", body)


async def test_one_process_for_a_directory_and_a_taken_port(world: World, tmp_path: Path) -> None:
    async with kms(tmp_path / "kms", world) as owner:
        with pytest.raises(Refused) as second:
            async with kms(tmp_path / "kms"):
                pass
        assert second.value.code == "already-running"
        port = int(owner.replicas["eu"].rpartition(":")[2])
        with pytest.raises(Refused) as taken:
            async with customer_kms.running(tmp_path / "other", {"eu": port}):
                pass
        assert taken.value.code == "address-in-use"
    assert oct((tmp_path / "kms").stat().st_mode & 0o777) == "0o700"
    for name in ("keys.json", "ca.pem", "owner.pem", "server.pem", "clients.json"):
        path = tmp_path / "kms" / name
        assert not path.exists() or path.stat().st_mode & 0o077 == 0, name


def test_a_disabling_that_cannot_be_recorded_acts_and_an_enabling_does_not(tmp_path: Path) -> None:
    home = tmp_path / "d"
    home.mkdir()
    store = KmsStore(home / "keys.json")
    store.create("root")
    wrapped = store.wrap("root", "eu", E, b"")
    os.rename(home, tmp_path / "gone")
    with pytest.raises(Unavailable):
        store.disable("root", None)
    with pytest.raises(Refused, match="disabled"):
        store.unwrap("root", "eu", wrapped, b"")
    with pytest.raises(Unavailable):
        store.enable("root", None)
    with pytest.raises(Refused, match="disabled"):
        store.unwrap("root", "eu", wrapped, b"")
    with pytest.raises(Unavailable):
        store.create("more")
    with pytest.raises(Refused):
        store.status("more")


def test_a_damaged_key_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"{}", b'{"keys":{"a":{}}}', b"\x00"):
        write_file(tmp_path / "keys.json", content)
        with pytest.raises(Refused):
            KmsStore(tmp_path / "keys.json")


def test_nothing_prints_key_material(tmp_path: Path) -> None:
    store = KmsStore(tmp_path / "keys.json")
    store.create("root")
    material = json.loads((tmp_path / "keys.json").read_bytes())["keys"]["root"]["material"]
    assert material not in repr(vars(store)) + str(store.status("root"))


@given(st.binary(max_size=80), st.integers(0, 80))
def test_base64_is_canonical_or_refused(data: bytes, limit: int) -> None:
    try:
        assert unb64("f", b64(data), max_bytes=limit) == data
        assert len(data) <= limit
    except KeymeshError:
        assert len(data) > limit


@pytest.mark.parametrize("text", ["", "a,", "a,a", "a=x", "a=70000", "A", "a=", "a=-1"])
def test_bad_replica_lists_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        customer_kms.parse_replicas(text)
    assert customer_kms.parse_replicas("eu,us=9") == {"eu": 0, "us": 9}
