"""What must be found nowhere: plaintext key bytes in any file of the mesh, a European tenant in American ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

from tests.integration.mesh.live import EU, FILES, HOME, OTHER, US, LiveMesh

from keymesh.adapters import seals
from keymesh.adapters.customer_kms import OwnerClient
from keymesh.adapters.seal_forms import open_file_seal
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.app.layout import Layout
from keymesh.core.keyring import Keyring
from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.chain import Chain, chain_from_json, open_path, path_to
from keymesh.crypto.kid import kid_bytes, kid_of
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.wrap import open_binding, parse_binding
from keymesh.crypto.xaes import XaesKey
from keymesh.model.ids import BindingId


def spellings(secret: bytes) -> set[bytes]:
    """Raw, hex in both cases, base64 in its two alphabets at each of its three alignments."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for lead in range(3):
        text = base64.b64encode(bytes(lead) + secret)[4 if lead else 0 : -4]
        found |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def files_under(*roots: Path) -> Iterable[Path]:
    return (path for root in roots for path in sorted(root.rglob("*")) if path.is_file())


def finds(needles: Iterable[bytes], files: Iterable[Path]) -> list[str]:
    """Files that hold one of ``needles`` anywhere."""
    wanted = list(needles)
    return [str(path) for path in files if any(needle in path.read_bytes() for needle in wanted)]


async def keys_of(chain: Chain, owner: OwnerClient, key: str) -> dict[str, bytes]:
    """E, L2 and L3 of an exported chain, as the customer can open it."""
    pages = KeyPages(allow_unlocked=True)
    found = {}
    for l2 in chain.l2:
        e = await owner.unwrap(key, parse_binding(l2.blob).provider_blob)
        found[f"E of {l2.kid}"] = e
        subject = Subject(Level.L2, chain.tenant, chain.domain, "l2", l2.version, kid_bytes(l2.kid))
        with open_binding(XaesKey(e), BindingId(l2.binding_id), subject, l2.blob, pages) as secret:
            found[f"L2 {l2.kid}"] = bytes(secret.reveal())
    for l3 in chain.l3:
        path = path_to(chain, l3.kid)
        with open_path(chain, path, await owner.unwrap(key, path.wrapped_e), pages) as secret:
            found[f"L3 {l3.kid}"] = bytes(secret.reveal())
            assert kid_of(secret.reveal()).hex() == l3.kid
    return found


async def internal_keys(layout: Layout, region: str) -> dict[str, bytes]:
    """MasterKey and IVKs of a region with a development seal."""
    directory = layout.core(region)
    pages = KeyPages(allow_unlocked=True)
    record = seals.load_record(directory)
    assert record is not None
    (seal,) = record.seals
    master = open_file_seal(directory, region, record.kid, seal, pages)
    found = {f"MasterKey of {region}": bytes(master.reveal())}
    keyring = Keyring(region, pages, None)  # type: ignore[arg-type]
    keyring.unseal(master)
    store = SqliteKeyStore(directory / "keystore.db")
    for ivk in await store.ivks():
        found[f"IVK {ivk.generation} of {region}"] = bytes(keyring.open_ivk(ivk).secret.reveal())
    await store.close()
    return found


async def test_no_plaintext_key_byte_lies_in_any_file_of_the_mesh(mesh: LiveMesh, tmp_path: Path) -> None:
    canaries: dict[str, bytes] = {}
    for tenant in (US, EU):
        for door in await mesh.doors(tenant):
            blob, key = await door.mint()
            assert await door.open(blob) == key
            canaries[f"L4 of {tenant} at {door.region}"] = base64.b64decode(key)
            assert await door.refusal(blob[:-4] + "AAAA") != ""  # errors are logged too
        await mesh.cli("tenant", "export", tenant, "-o", tmp_path / f"{tenant}.chain")
        chain = chain_from_json((tmp_path / f"{tenant}.chain").read_bytes())
        async with mesh.owner() as owner:
            canaries |= await keys_of(chain, owner, tenant)
    for region in mesh.plan.regions:
        canaries |= await internal_keys(mesh.layout, region)
    assert len([name for name in canaries if name.startswith("L3")]) >= 4
    kms = mesh.layout.customer_kms
    everything = [p for p in files_under(mesh.layout.root, tmp_path) if kms not in p.parents]
    assert sum(path.stat().st_size for path in everything) > 1_000_000
    for name, secret in canaries.items():
        assert not finds(spellings(secret), everything), name
    roots = json.loads((kms / "keys.json").read_bytes())
    for secret in strings_like_keys(roots):
        assert not finds(spellings(secret), everything), "L1"
        assert not finds(spellings(secret), [kms / "kms.json", kms / "clients.json"]), "L1"
    (tmp_path / "planted").write_bytes(b"x" + base64.b64encode(b"yz" + secret))  # the search itself works
    assert finds(spellings(secret), files_under(tmp_path)) == [str(tmp_path / "planted")]


def strings_like_keys(value: object) -> list[bytes]:
    """Every 32-byte secret in the customer's own key file."""
    if isinstance(value, dict):
        return [found for inner in value.values() for found in strings_like_keys(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in strings_like_keys(inner)]
    if not isinstance(value, str):
        return []
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True)):
        try:
            if len(raw := decode(value)) == 32:
                return [raw]
        except ValueError:
            continue
    return []


async def test_nothing_of_a_european_tenant_lies_in_american_regions(mesh: LiveMesh) -> None:
    """Neither its name, nor its services', nor a kid, nor a wrapped key; only the Registry's own log may name it."""
    doors = await mesh.doors(EU)
    blob, _ = await doors[0].mint()
    keys = (await mesh.client.call("GET", f"/v1/tenants/{EU}/keys"))["keys"]
    bindings = (await mesh.client.call("GET", f"/v1/tenants/{EU}"))["bindings"]
    needles = {EU.encode(), base64.b64decode(blob)[:18], *(b["id"].encode() for b in bindings)}
    needles |= {base64.b64encode(bytes(lead) + EU.encode())[4 if lead else 0 : -4] for lead in range(3)}
    for key in keys:
        needles |= {
            key["kid"].encode(),
            bytes.fromhex(key["kid"]),
            key["digest"].encode(),
            bytes.fromhex(key["digest"]),
        }
    layout = mesh.layout
    american = [
        path
        for region in (HOME[US], OTHER[US])
        for path in [
            *files_under(layout.core(region), layout.edge(region)),
            layout.logs / f"core-{region}.log",
            layout.logs / f"edge-{region}.log",
        ]
    ]
    assert len(american) > 10
    assert not finds(needles, american)
    european = list(files_under(layout.core(HOME[EU])))
    assert finds({EU.encode()}, european) and finds({keys[0]["kid"].encode()}, european)  # the search itself works
    for region in (HOME[US], OTHER[US]):
        assert EU not in await mesh.modes(region)
        enrol = {"tenant": EU, "service": FILES, "instance": "i1", "csr": "x"}
        for method, path, body in (
            ("GET", f"/v1/tenants/{EU}/chain", None),
            ("POST", "/v1/certificates", enrol),
        ):
            assert await refusal(mesh, method, path, body, region) == "not-found"
    assert not finds(needles, american)  # nor did the questions leave a trace


async def refusal(mesh: LiveMesh, method: str, path: str, body: object, region: str) -> str:
    from keymesh.model.errors import Refused

    try:
        await mesh.client.call(method, path, body, target=region)
    except Refused as no:
        return no.code
    return ""
