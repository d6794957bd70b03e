"""The demo's two ways to end every use: the operator's kill switch, and the customer's own L1."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app.demo_files import edge_keys, open_file
from keymesh.app.demo_reader import Reader, reading
from keymesh.app.demo_steps import open_sealed
from keymesh.app.demo_world import ACME, GLOBEX, TIMING, Customer, Failed, Figures, World, ms_since, need
from keymesh.app.trust_file import load_trust
from keymesh.control.evidence import VerifiedCertificate, verify_certificate
from keymesh.control.kinds import ScopeArgs
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused

CERTIFICATE_MAX_BYTES: Final = 16 * 1024 * 1024
CERTIFICATE_WAIT_MS: Final = 20_000
QUIET_S: Final = 0.5
"""How long readers go on after the last refusal, to see that it was one."""


async def _all_refused(readers: dict[str, Reader], timeout_s: float) -> None:
    """Until every reader is refused, and for a while after.  Raises Failed where one is served again."""
    for reader in readers.values():
        await reader.wait_refused(timeout_s)
    await asyncio.sleep(QUIET_S)
    for region, reader in readers.items():
        need(reader.seen.successes_after_refusal == 0, f"{region} served again after it had refused")
        need(reader.seen.lost == 0, f"the Edge of {region} did not answer")


async def _served_again(readers: dict[str, Reader], since_ns: int) -> int:
    """Milliseconds from ``since_ns`` until the last of the readers was served."""
    return ms_since(since_ns, max([await reader.wait_served() for reader in readers.values()]))


# --- the kill switch -----------------------------------------------------------------------------------------------


async def kill_switch(world: World) -> Figures:
    """Suspend ACME under full use; the certificate must hold offline, and no copy that was tampered with."""
    async with reading(world, ACME, ACME.regions) as readers:
        for reader in readers.values():
            reader.mark()
        command_id = await _command(world, "suspend")
        await _all_refused(readers, 30)
        seen = {region: reader.seen for region, reader in readers.items()}
    await _stays_shut(world, ACME)
    path = f"/v1/certificates/{command_id}?wait_ms={CERTIFICATE_WAIT_MS}"
    shown = await world.client.call("GET", path, timeout_s=CERTIFICATE_WAIT_MS / 1_000 + 5)
    need("certificate" in shown, f"no certificate: {shown['status']}")
    began_ns = shown["append_started_ns"]
    figures: Figures = {
        "kill_switch_ms": max(ms_since(began_ns, one.ended_ns) for one in seen.values()),
        **{f"{region}_ms": ms_since(began_ns, one.ended_ns) for region, one in seen.items()},
        "refused_as": ", ".join(sorted({one.code for one in seen.values()})),
    }
    verified, tampered = _verify(world, strict_json.dumps(shown["certificate"]))
    for region, one in seen.items():
        late = one.last_success_started_ns // 1_000_000 > verified.t
        need(not late, f"{region} was used after the certificate's T")
    return figures | {
        "t": f"commit + {verified.t - verified.statement.committed_at} ms",
        "holders": ", ".join(
            [*(f"{node} (its word)" for node in verified.by_ack), *(f"{node} (bound)" for node in verified.by_bound)]
        ),
        "voters": ", ".join(verified.voters),
        "certificate": str(_certificate(world)),
        "certificate_verified": True,
        "tampered_refused": f"{tampered} of {tampered}",
    }


def _certificate(world: World) -> Path:
    return world.root / "acme.cert.json"


async def _command(world: World, action: str) -> str:
    scope = f"tenant:{ACME.tenant}"
    body = msgspec.to_builtins(ScopeArgs(scope=scope, reason="demo"))
    return str((await world.client.command(ACME.tenant, action, body))["command_id"])


async def _stays_shut(world: World, customer: Customer) -> None:
    """The customer's sealed files do not open, in any region."""

    def attempt(region: str) -> str | None:
        with edge_keys(world.layout, region) as keys:
            try:
                open_file(keys, next(p for p in sorted(world.sealed_dir(customer).rglob("*")) if p.is_file()))
            except KeymeshError as shut:
                return shut.code
        return None

    for region in customer.regions:
        need(await asyncio.to_thread(attempt, region) is not None, f"a sealed file opened in {region}")


def _verify(world: World, raw: bytes) -> tuple[VerifiedCertificate, int]:
    """From the file and ``trust.json`` alone; and how many tampered copies were refused, which is all of them."""
    write_file(_certificate(world), raw, mode=PUBLIC_MODE)
    trust = load_trust(world.layout.trust)
    verified = verify_certificate(_certificate(world).read_bytes(), root=trust.root, mesh=trust.mesh)
    need(verified.action == "suspend" and str(verified.scope) == f"tenant:{ACME.tenant}", "of another command")
    refused = 0
    for what, copy in tampered_copies(raw):
        try:
            verify_certificate(copy, root=trust.root, mesh=trust.mesh)
        except (Integrity, Refused):
            refused += 1
        else:
            raise Failed(f"a certificate with {what} was accepted")
    return verified, refused


def tampered_copies(raw: bytes) -> Iterable[tuple[str, bytes]]:
    """(what was done, the copy): an earlier T, a holder left out, another scope, another signature."""

    def statement(change: Any) -> bytes:
        copy = strict_json.loads(raw, max_bytes=CERTIFICATE_MAX_BYTES)
        sealed = copy["statement"]
        inner = strict_json.loads(base64.b64decode(sealed["payload"]), max_bytes=CERTIFICATE_MAX_BYTES)
        change(inner, sealed)
        return strict_json.dumps(copy)

    def payload(change: Any) -> bytes:
        def rewrite(inner: Any, sealed: Any) -> None:
            change(inner)
            sealed["payload"] = base64.b64encode(strict_json.dumps(inner)).decode("ascii")

        return statement(rewrite)

    def forge(inner: Any, sealed: Any) -> None:
        signature = bytearray(base64.b64decode(sealed["signatures"][0]["sig"]))
        signature[0] ^= 1
        sealed["signatures"][0]["sig"] = base64.b64encode(signature).decode("ascii")

    yield "an earlier T", payload(lambda inner: inner.update(t=inner["t"] - 1))
    yield "a holder left out", payload(lambda inner: inner["holders"].pop())
    yield "another scope", payload(lambda inner: inner.update(scope="tenant:globex"))
    yield "another signature", statement(forge)


async def resume(world: World) -> Figures:
    """End the suspension; every Edge serves again, every file opens."""
    async with reading(world, ACME, ACME.regions, served=False) as readers:
        await asyncio.sleep(QUIET_S)
        for region, reader in readers.items():
            need(reader.seen.refusals and not reader.seen.successes, f"{region} serves although it is suspended")
            reader.mark()
        began_ns = time.time_ns()
        await _command(world, "resume")
        served_ms = await _served_again(readers, began_ns)
    trees = [await open_sealed(world, ACME, region) for region in ACME.regions]
    return {"serves_after_ms": served_ms, "files_equal": sum(len(tree.digests) for tree in trees)}


# --- the customer's L1 -----------------------------------------------------------------------------------------------


async def l1_pull(world: World) -> Figures:
    """GLOBEX disables its root key in its own KMS; the mesh is told nothing."""
    async with OwnerClient.open(world.kms_dir(GLOBEX)) as owner, reading(world, GLOBEX, GLOBEX.regions) as readers:
        for reader in readers.values():
            reader.mark()
        began_ns = time.time_ns()
        await owner.disable(GLOBEX.key)
        await _all_refused(readers, 30)
        seen = {region: reader.seen for region, reader in readers.items()}
        for region, one in seen.items():
            last_use_ms = ms_since(began_ns, one.last_success_started_ns)
            need(last_use_ms <= TIMING.l1_ttl_ms, f"{region} was used {last_use_ms} ms after the key was disabled")
        pulled: Figures = {
            "l1_pull_ms": max(ms_since(began_ns, one.ended_ns) for one in seen.values()),
            **{f"{region}_ms": ms_since(began_ns, one.ended_ns) for region, one in seen.items()},
            "probe_ms": TIMING.l1_probe_ms,
            "refused_as": ", ".join(sorted({one.code for one in seen.values()})),
        }
        await _stays_shut(world, GLOBEX)
        for reader in readers.values():
            reader.mark()
        began_ns = time.time_ns()
        await owner.enable(GLOBEX.key)
        pulled["enabled_serves_ms"] = await _served_again(readers, began_ns)
    await open_sealed(world, GLOBEX, GLOBEX.other)
    return pulled
