"""The demo's first half: a mesh, two customers, real files across regions, residency, rotation."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import msgspec

from keymesh.access.identity import CoreIdentity
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.admin_client import wait_for_key
from keymesh.app.cli_keys import rewrap, rotate_ivk, want_next
from keymesh.app.cli_tenant import create_tenant
from keymesh.app.demo_bao import opened_store
from keymesh.app.demo_files import edge_keys as keys_of_edge
from keymesh.app.demo_files import files_of, open_tree, seal_file, seal_tree
from keymesh.app.demo_search import search
from keymesh.app.demo_world import ACME, CUSTOMERS, GLOBEX, TIMING, Customer, Failed, Figures, World, need
from keymesh.app.enrol import ensure_identity
from keymesh.app.seal_files import SUFFIX
from keymesh.control.kinds import SetService
from keymesh.control.rows import L2_NAME, ServiceRow
from keymesh.crypto.blob import blob_kid
from keymesh.crypto.stream import read_header
from keymesh.edge.sidecar_identities import IdentityStore
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MeshName
from keymesh.model.scope import parse_scope
from keymesh.model.states import Custody

FOREIGN = "us-west"
"""Where GLOBEX may not be."""


async def mesh_up(world: World) -> Figures:
    shown = await world.start()
    return {"processes": shown["processes"], "regions": ", ".join(shown["regions"])}


async def customer_kms(world: World) -> Figures:
    await asyncio.gather(*(world.start_kms(customer) for customer in CUSTOMERS))
    return {"processes": len(world.kms), "keys": ", ".join(c.key for c in CUSTOMERS)}


async def onboard(world: World) -> Figures:
    figures: Figures = {}
    for customer in CUSTOMERS:
        began = time.monotonic()
        client, tenant = world.client, customer.tenant
        l1 = f"kms:{world.kms_dir(customer)}#{customer.key}"
        created = await create_tenant(client, tenant, home=customer.home, regions=",".join(customer.regions), l1=l1)
        await wait_for_key(client, tenant, L2_NAME)
        row = ServiceRow(version=1, custody=Custody.LEASED.value, edge_ttl_ms=TIMING.edge_ttl_ms)
        served = await client.command(
            tenant, "service.set", msgspec.to_builtins(SetService(service=customer.service, row=row))
        )
        await wait_for_key(client, tenant, f"l3/{customer.service}")
        for region in customer.regions:
            await ensure_identity(client, world.sidecars[region], region, tenant, customer.service)
        world.said[tenant] = [one[name] for one in (created, served) for name in ("command_id", "correlation_id")]
        figures[f"{tenant}_ms"] = round((time.monotonic() - began) * 1_000)
    return figures


async def mesh_down(world: World) -> Figures:
    """No role was restarted but those that the demo killed; then every process ends."""
    expected = Counter(world.killed)
    unexpected = {name: n for name, n in world.restarts().items() if n != expected[name]}
    need(not unexpected, f"restarted, and not by the demo: {unexpected}")
    return await world.stop()


# --- files ---------------------------------------------------------------------------------------------------------


async def seal_files(world: World) -> Figures:
    figures: Figures = {"path": str(world.source)}
    for customer in CUSTOMERS:
        tree = await asyncio.to_thread(
            seal_tree,
            world.layout,
            customer.home,
            customer.tenant,
            customer.service,
            world.source,
            world.sealed_dir(customer),
        )
        world.digests[customer.tenant] = tree.digests
        figures |= {"files": len(tree.digests), "bytes": tree.n_bytes, f"in_{customer.home}_ms": tree.ms}
    return figures


async def open_elsewhere(world: World) -> Figures:
    figures: Figures = {}
    for customer in CUSTOMERS:
        tree = await open_sealed(world, customer, customer.other)
        figures |= {"files_equal": len(tree.digests), f"in_{customer.other}_ms": tree.ms}
    return figures


async def open_sealed(world: World, customer: Customer, region: str) -> Any:
    """All that the customer sealed, opened in ``region``.  Raises Failed where a digest differs."""
    tree = await asyncio.to_thread(open_tree, world.layout, region, world.sealed_dir(customer))
    need(tree.digests == world.digests[customer.tenant], f"files of {customer.tenant} differ when opened in {region}")
    return tree


# --- residency -----------------------------------------------------------------------------------------------------


async def residency(world: World) -> Figures:
    """GLOBEX asked for in a region that it is not allowed: three refusals, and no trace in that region's files.

    The same search must find every kind of identifier in the home region, or it proves nothing.
    """
    keys = await world.keys(GLOBEX)
    fetched, blobs = await _fetch_abroad(world, keys)
    refusals = [await _enrol_abroad(world), fetched, await _open_abroad(world)]
    shown = await world.client.call("GET", f"/v1/tenants/{GLOBEX.tenant}")
    needles = {
        "tenant": [GLOBEX.tenant],
        "service": [GLOBEX.service],
        "key ids": [key["kid"] for key in keys],
        "digests": [key["digest"] for key in keys],
        "wrapped keys": [blob.hex() for blob in blobs],
        "entries": world.said[GLOBEX.tenant],
        "L1": [GLOBEX.key, *(b["id"] for b in shown["bindings"]), *(u for b in shown["bindings"] for u in _urls(b))],
    }
    kept = [await asyncio.to_thread(_kept_by, world, region) for region in (FOREIGN, GLOBEX.home)]
    abroad, at_home = [await asyncio.to_thread(search, places, needles) for places in kept]
    missed = sorted(needles.keys() - at_home.kinds())
    need(not missed, f"the search is blind: {', '.join(missed)} not found in {GLOBEX.home} either")
    need(not abroad.hits, f"found in {FOREIGN}: {abroad.hits[:5]}")
    return {
        "refused_by": ", ".join(refusals),
        "identifiers": sum(len(some) for some in needles.values()),
        f"searched_{FOREIGN}": f"{abroad.files} files, {abroad.n_bytes} bytes",
        f"found_{FOREIGN}": len(abroad.hits),
        f"found_{GLOBEX.home}": len(at_home.hits),
    }


def _urls(binding: Any) -> list[str]:
    return [url.rpartition("/keys/")[0] for url in binding["replicas"].values()]


def _kept_by(world: World, region: str) -> list[Any]:
    """Its files, and where its key store is a server, what that holds."""
    layout = world.layout
    opened = opened_store(layout, world.client.plan, region, world.root / "opened")
    return [layout.core(region).parent, *opened, *(layout.logs / f"{role}-{region}.log" for role in ("core", "edge"))]


async def _refusal(attempt: Any, what: str) -> str:
    try:
        await attempt
    except KeymeshError as refused:
        return refused.code
    raise Failed(what)


async def _enrol_abroad(world: World) -> str:
    """No identity for the tenant's service from the foreign region's Core, though the operator asks."""
    store = IdentityStore(world.root / "abroad", mesh=world.client.plan.mesh, region=FOREIGN, ca_file=world.layout.ca)
    body = {
        "tenant": GLOBEX.tenant,
        "service": GLOBEX.service,
        "instance": store.instance,
        "csr": store.request(GLOBEX.tenant, GLOBEX.service),
    }
    asked = world.client.call("POST", "/v1/certificates", body, target=FOREIGN)
    return "enrolment " + await _refusal(asked, f"{FOREIGN} issued an identity for {GLOBEX.tenant}")


async def _fetch_abroad(world: World, keys: list[Any]) -> tuple[str, list[bytes]]:
    """No key blob from the foreign region, though a Core that may hold the tenant asks; its home answers it."""
    layout, plan = world.layout, world.client.plan
    credentials = Credentials(layout.core(GLOBEX.other) / "tls.pem")
    tls = MeshTls(credentials, MeshName(plan.mesh), layout.ca.read_bytes())

    async def fetch(region: str, digest: str) -> bytes:
        context = tls.client(lambda i: isinstance(i, CoreIdentity) and i.region == region)
        async with PeerClient(f"https://127.0.0.1:{plan.regions[region].port}", context) as peer:
            return (await peer.request("GET", f"/v1/blobs/{GLOBEX.tenant}/{digest}"))[1]

    digests = [key["digest"] for key in keys]
    blobs = [await fetch(GLOBEX.home, digest) for digest in digests]
    codes = {await _refusal(fetch(FOREIGN, d), f"{FOREIGN} gave out a key of {GLOBEX.tenant}") for d in digests}
    return f"blob store {', '.join(sorted(codes))}", blobs


async def _open_abroad(world: World) -> str:
    """Another tenant's Edge in the foreign region does not open what is sealed for this one."""
    made = await world.edge(GLOBEX.home, GLOBEX, "create-key", {})
    asked = world.edge(FOREIGN, ACME, "decrypt-key", {"blob": made["blob"]})
    return "Edge " + await _refusal(asked, f"{FOREIGN} opened a key of {GLOBEX.tenant}")


# --- rotation ------------------------------------------------------------------------------------------------------


async def rotation(world: World) -> Figures:
    client, figures = world.client, {}
    for what, scope in (("l2", f"tenant:{ACME.tenant}"), ("l3", ACME.scope)):
        began = time.monotonic()
        name, version, _ = await want_next(client, parse_scope(scope))
        await wait_for_key(client, ACME.tenant, name, version=version)
        figures[f"{what}_ms"] = round((time.monotonic() - began) * 1_000)
    began = time.monotonic()
    rewrapped = await rewrap(client, parse_scope(f"tenant:{ACME.tenant}"), wait=True)
    figures["rewrap_ms"] = round((time.monotonic() - began) * 1_000)
    began = time.monotonic()
    ivks = [await rotate_ivk(client, region, wait=True) for region in ACME.regions]
    figures["ivk_ms"] = round((time.monotonic() - began) * 1_000)
    figures |= {"versions_rewrapped": len(rewrapped["keys"]), "ivk_generation": ivks[0]["ivk_generation"]}
    new = next(k["kid"] for k in await world.keys(ACME) if k["key"] == f"l3/{ACME.service}" and k["wrapping"])
    await _sealed_under(world, new)
    for region in ACME.regions:
        tree = await open_sealed(world, ACME, region)
        figures["old_files_open"] = figures.get("old_files_open", 0) + len(tree.digests)
    return figures


async def _sealed_under(world: World, kid: str) -> None:
    """A file that is sealed now, once the Edge has the new version, is sealed under ``kid``, and opens."""
    inner = next(files_of(world.source))

    def seal(attempt: int) -> str:
        target = world.root / f"after-rotation-{attempt}{SUFFIX}"
        with keys_of_edge(world.layout, ACME.home) as keys:
            seal_file(keys, ACME.tenant, ACME.service, world.source / inner, target, name=inner.as_posix())
        with target.open("rb") as file:
            return blob_kid(read_header(file).l4_blob).hex()

    attempts = iter(range(1_000))

    async def sealed() -> bool | None:
        return True if await asyncio.to_thread(seal, next(attempts)) == kid else None

    await world.until(sealed, what="new data under the new version", timeout_s=15, pause_s=0.2)
