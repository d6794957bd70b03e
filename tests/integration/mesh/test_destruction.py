"""A tenant destroyed on real processes: refused at once, shredded after the wait, certified once all regions say so."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh import test_objects as objects
from tests.integration.mesh.live import HOME, OTHER, US, Door, LiveMesh, until
from tests.integration.mesh.test_secrets import files_under, finds, spellings

from keymesh.model.errors import KeymeshError

SCRIPT = Path(__file__).resolve().parents[3] / "docs" / "verify_bundle.py"
SERVICE = "archive"
CANARY = b"CANARY-of-a-departed-object"


async def made(mesh: LiveMesh, tenant: str) -> tuple[Door, Door, str]:
    """A tenant in two regions with a service that both serve, and a blob."""
    home, other = HOME[US], OTHER[US]
    await mesh.cli("tenant", "create", tenant, "--home", home, "--regions", f"{home},{other}")
    await mesh.cli("service", "create", f"{tenant}/{SERVICE}", "--edge-ttl", "1s")
    here, there = await mesh.door(home, tenant, SERVICE), await mesh.door(other, tenant, SERVICE)
    blob, key = await here.minted()
    assert await there.opened(blob) == key
    return here, there, blob


def wraps_of(mesh: LiveMesh, tenant: str) -> set[bytes]:
    """Every wrap and blob of the tenant in its regions' key stores, in every spelling: the cascades too."""
    blobs: set[bytes] = set()
    for region in (HOME[US], OTHER[US]):
        store = mesh.layout.core(region) / "keystore.db"
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
            for table, column in (("key_versions", "namespace"), ("blobs", "tenant")):
                rows = db.execute(f"SELECT blob FROM {table} WHERE {column} = ?", (tenant,)).fetchall()
                assert len(rows) == 2, table
                blobs |= {row[0] for row in rows}
    assert len(blobs) == 4  # L2's binding and a cascade of each region, L3
    return {spelling for blob in blobs for spelling in spellings(blob)}


def where_found(mesh: LiveMesh, needles: set[bytes]) -> list[str]:
    """In any file of any process of the mesh, logs among them."""
    return finds(needles, files_under(mesh.layout.root))


def by_the_stranger(mesh: LiveMesh, file: Path) -> Any:
    words = [sys.executable, SCRIPT, "--root", mesh.layout.trust, file]
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


async def state_of(mesh: LiveMesh, tenant: str) -> tuple[str, str]:
    shown = await mesh.cli("tenant", "show", tenant)
    return shown["state"], shown["destruction"]["state"]


async def code_of(mesh: LiveMesh, *words: str | Path) -> str:
    return str((await mesh.cli(*words, code=1))["error"]["code"])


async def test_a_destruction_refuses_at_once_and_can_be_taken_back(mesh: LiveMesh, tmp_path: Path) -> None:
    tenant = "hesitantbank"
    here, there, blob = await made(mesh, tenant)
    for words in (("--confirm", "somebody"), ("--confirm", tenant, "--wait", "999ms")):
        assert await code_of(mesh, "tenant", "destroy", tenant, *words) == "bad-field"
    done = await mesh.cli("tenant", "destroy", tenant, "--confirm", tenant)
    assert (done["state"], done["destruction"]["state"]) == ("destroying", "waiting")

    async def refused() -> bool:
        return bool(await here.refusal() and await there.refusal(blob))

    await until(refused, "both Edges refusing")
    assert await code_of(mesh, "tenant", "export", tenant, "-o", tmp_path / "late") == "destroying"
    assert await code_of(mesh, "tenant", "destroy", tenant, "--confirm", tenant) == "already"
    done = await mesh.cli("tenant", "cancel-destroy", tenant)
    assert (done["state"], done["destruction"]["state"]) == ("active", "cancelled")
    assert await code_of(mesh, "tenant", "cancel-destroy", tenant) == "not-destroying"

    async def serves() -> bool:
        return not await there.refusal(blob)

    await until(serves, "the other region serving again")


async def test_a_tenant_is_shredded_in_every_region_and_both_verifiers_see_it(mesh: LiveMesh, tmp_path: Path) -> None:
    """One region is cut off while the wait ends: the certificate waits for it, and says so."""
    tenant, far = "departedbank", OTHER[US]
    here, there, blob = await made(mesh, tenant)
    (sealed,) = await objects.commit(mesh, far, HOME[US], (0, objects.new(tenant, CANARY, service=SERVICE)))
    await objects.arrives(mesh, sealed, HOME[US], far)
    needles = wraps_of(mesh, tenant) | spellings(sealed.sealed)
    before = where_found(mesh, needles)
    assert all(any(f"{region}/core/" in name for name in before) for region in (HOME[US], far)), before

    await mesh.isolate(far)
    done = await mesh.cli("tenant", "destroy", tenant, "--confirm", tenant, "--wait", "1s")
    certificate_id = done["destruction"]["certificate_id"]

    async def waits_for_one() -> bool:
        if await state_of(mesh, tenant) != ("destroying", "purging"):
            return False
        shown = await mesh.cli("certificate", "show", certificate_id)
        return bool(shown["status"] == "revoking" and shown["accounted"] == 1)

    await until(waits_for_one, "the home region's receipt")
    shown = await mesh.cli("certificate", "show", certificate_id)
    assert shown["open"] == [{"node": f"node:{far}/n1", "evidence": "purged", "closes_at": None}]
    assert shown["closes_at"] is None
    left = where_found(mesh, needles)
    assert left and all(f"{far}/core/" in name for name in left), left

    await mesh.link("heal")
    certified = await mesh.certificate(certificate_id)
    assert (certified["action"], certified["accounted"]) == ("destroy", 2)
    assert where_found(mesh, needles) == []
    assert await state_of(mesh, tenant) == ("destroyed", "destroyed")
    assert await here.refusal(blob) and await there.refusal(blob)
    for me, to in ((far, HOME[US]), (HOME[US], far)):  # nor does anybody bring it back
        with pytest.raises(KeymeshError):
            await objects.commit(mesh, me, to, (0, sealed))

    file = tmp_path / "destroyed.cert.json"
    await mesh.cli("certificate", "show", done["command"]["command_id"], "-o", file)
    ours, theirs = await mesh.cli("verify", file), by_the_stranger(mesh, file)
    assert ours["purged"] == theirs["purged"] == sorted(f"node:{region}/n1" for region in (HOME[US], far))
    assert ours["destroyed"] == theirs["destroyed"] and {k["key"] for k in ours["destroyed"]} == {"l2", f"l3/{SERVICE}"}
    assert ours["backups"] == theirs["backups"] and ours["until"] == "for ever"
    assert await code_of(mesh, "tenant", "create", tenant, "--home", HOME[US]) == "conflict"
    assert await code_of(mesh, "tenant", "cancel-destroy", tenant) == "destroyed"
    assert await code_of(mesh, "ready", "--tenant", tenant) == "not-found"  # nobody will have to take it

    mesh.kill(f"core-{far}")  # and back from the dead it has not forgotten
    await mesh.settled()
    assert await there.refusal(blob) and where_found(mesh, needles) == []
