"""KMIP by a live Core, with PyKMIP's client: keys made and used, and what ends it: another tenant, the kill switch, a
revoked client, a sealed region; what outlives a crash and a rotation; no key byte in any file."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from kmip import enums
from kmip.pie import objects as pie
from kmip.pie.client import ProxyKmipClient
from tests.integration.mesh.kmip_user import HUNG_UP, USES, KmipUser, enrol, make, named, new, opened, sealed
from tests.integration.mesh.live import EU, FILES, HOME, MAIL, OTHER, US, VAULT, LiveMesh, until
from tests.integration.mesh.test_secrets import files_under, finds, spellings

from keymesh.adapters import key_files, pki
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant

VERIFY_BUNDLE = Path(__file__).resolve().parents[3] / "docs" / "verify_bundle.py"
IV = bytes(range(16))
TEXT = b"a line of text, and more than a block of it"


async def patiently(user: KmipUser, work: Callable[[ProxyKmipClient], object], wanted: str) -> None:
    """Until ``work`` ends as ``wanted``."""

    async def so() -> bool:
        return await user.refusal(work) == wanted

    await until(so, f"KMIP answering {wanted or 'as asked'!r}")


@pytest.mark.parametrize("service", [FILES, VAULT], ids=["leased", "core-held"])
async def test_a_key_is_made_used_and_ended(mesh: LiveMesh, tmp_path: Path, service: str) -> None:
    user = await enrol(mesh, f"whole-{service}", US, service, tmp_path)

    def work(client: ProxyKmipClient) -> None:
        name = os.urandom(8).hex()
        uid, key = make(client, name)
        assert named(client, name) == [uid]
        secret = sealed(client, uid, TEXT, IV)
        pad = PKCS7(128).unpadder()
        plain = Cipher(algorithms.AES(key), modes.CBC(IV)).decryptor().update(secret)
        assert pad.update(plain) + pad.finalize() == TEXT == opened(client, uid, secret, IV)
        client.revoke(enums.RevocationReasonCode.CESSATION_OF_OPERATION, uid)
        assert opened(client, uid, secret, IV) == TEXT  # deactivated: old data opens, nothing new is sealed
        with pytest.raises(Exception, match=r"(?i)state|active"):
            sealed(client, uid, TEXT, IV)
        client.destroy(uid)
        with pytest.raises(Exception, match=r"(?i)destroyed"):
            client.get(uid)
        assert new(client, name)[0] != uid  # the name is free again

    await user.do(work)


async def test_another_tenants_and_services_objects_look_like_none(mesh: LiveMesh, tmp_path: Path) -> None:
    owner = await enrol(mesh, "owner", US, FILES, tmp_path)
    colleague = await enrol(mesh, "colleague", US, FILES, tmp_path)
    strangers = [
        await enrol(mesh, "stranger", US, MAIL, tmp_path),
        await enrol(mesh, "stranger", EU, FILES, tmp_path),
    ]
    uid, key = await owner.do(lambda client: make(client, "ours"))
    assert (await colleague.do(lambda client: client.get(uid))).value == key
    for other in strangers:
        nobody = "ITEM_NOT_FOUND: no such object"
        await patiently(other, lambda client: client.get("0" * len(uid)), nobody)
        for ask in (
            lambda client: client.get(uid),
            lambda client: client.destroy(uid),
            lambda client: client.activate(uid),
            lambda client: client.rekey(uid),
            lambda client: client.get_attributes(uid),
            lambda client: opened(client, uid, bytes(32), IV),
            lambda client: client.revoke(enums.RevocationReasonCode.KEY_COMPROMISE, uid),
        ):
            await patiently(other, ask, nobody)
        assert await other.do(lambda client: named(client, "ours")) == []
        assert uid not in await other.do(lambda client: client.locate())
        await other.do(lambda client: make(client, "ours"))  # names are each service's own
    assert (await owner.do(lambda client: client.get(uid))).value == key


@pytest.mark.parametrize("scope", [f"service:{US}/{FILES}", f"tenant:{US}"])
async def test_a_suspension_ends_every_get_and_a_resume_brings_it_back(
    mesh: LiveMesh, tmp_path: Path, scope: str
) -> None:
    user = await enrol(mesh, "switched", US, FILES, tmp_path)
    uid, key = await user.do(make)
    served: list[float] = []
    stop = threading.Event()

    def gets() -> None:
        """One connection after the other, without end."""
        while not stop.is_set():
            try:
                with user.connected() as client:
                    while not stop.is_set():
                        assert client.get(uid).value == key
                        served.append(time.time())
            except AssertionError:
                raise
            except Exception:
                time.sleep(0.02)

    running = asyncio.create_task(asyncio.to_thread(gets))
    try:

        async def busy() -> bool:
            return len(served) > 3

        await until(busy, "gets under way")
        cert = await mesh.cli("suspend", scope, "-o", tmp_path / "cert.json")
        assert cert["status"] == "certified"
        assert served[-1] * 1000 <= cert["t"]
        for ask in (lambda c: c.get(uid), lambda c: c.locate(), make, lambda c: c.destroy(uid)):
            assert (await user.refusal(ask)).startswith("PERMISSION_DENIED")
        before = len(served)
        await mesh.resume(scope, US)

        async def again() -> bool:
            return len(served) > before + 3

        await until(again, "gets after the resume")
    finally:
        stop.set()
        await running


async def test_a_revoked_client_is_nobody_for_good_and_its_colleague_stays(mesh: LiveMesh, tmp_path: Path) -> None:
    lost = await enrol(mesh, "lost", US, FILES, tmp_path)
    kept = await enrol(mesh, "kept", US, FILES, tmp_path)
    uid, key = await lost.do(make)
    with lost.connected():
        await mesh.cli("suspend", f"client:{US}/lost", "-o", tmp_path / "s.json")
        assert await lost.refusal(lambda client: client.get(uid)) == HUNG_UP
        again = ("kmip", "client", "add", "lost", "--tenant", US, "--service", FILES, "--out", tmp_path / "y")
        assert (await mesh.cli(*again, code=1))["error"]["code"] == "restricted"
        assert (await mesh.cli(*again, "--region", HOME[EU], code=1))["error"]["field"] == "region"
        await mesh.resume(f"client:{US}/lost", US)
        await patiently(lost, lambda client: client.get(uid), "")
    await patiently(lost, lambda client: client.get(uid), "")
    with lost.connected() as open_before:
        open_before.locate()
        gone = await mesh.cli("kmip", "client", "remove", "lost", "--tenant", US, "-o", tmp_path / "r.json")
        assert (gone["status"], gone["scope"]) == ("certified", f"client:{US}/lost")
        with pytest.raises(Exception, match=r"."):
            await asyncio.to_thread(open_before.get, uid)
    assert await lost.refusal(lambda client: client.get(uid)) == HUNG_UP
    assert (await kept.do(lambda client: client.get(uid))).value == key
    await mesh.cli("verify", tmp_path / "r.json")
    stranger = [sys.executable, VERIFY_BUNDLE, "--root", mesh.layout.trust, tmp_path / "r.json"]
    ran = await asyncio.to_thread(subprocess.run, [str(word) for word in stranger], capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    await mesh.cli("kmip", "client", "add", "lost", "--tenant", US, "--service", FILES, "--out", tmp_path / "x", code=1)
    shown = await mesh.cli("kmip", "client", "list", "--tenant", US)
    assert {c["client"]: c["state"] for c in shown["clients"] if c["client"] in ("lost", "kept")} == {
        "lost": "revoked",
        "kept": "active",
    }


async def test_a_client_is_ended_where_the_registry_is_away(mesh: LiveMesh, tmp_path: Path) -> None:
    user = await enrol(mesh, "cutoff", US, FILES, tmp_path)
    uid, _ = await user.do(make)
    await mesh.isolate(HOME[US])
    await mesh.reaches(HOME[US], US, "autonomous")
    made, key = await user.do(make)  # creating works in a cut-off region
    assert (await user.do(lambda client: client.get(made))).value == key
    body = {"scope": f"client:{US}/cutoff", "action": "suspend"}
    await mesh.client.call("POST", "/v1/restrict", body, target=HOME[US], command_id="kmip-cutoff")
    assert await user.refusal(lambda client: client.get(uid)) == HUNG_UP
    await mesh.restore()  # which lifts what is left suspended: it has become an entry
    await patiently(user, lambda client: client.get(made), "")


async def test_who_is_no_client_of_this_region_is_not_let_in(mesh: LiveMesh, tmp_path: Path) -> None:
    """Certificates of the same mesh: of the other region, of an Edge, of an administrator, of a client that the tenant
    does not name, of this region's client by another region's CA; and none."""
    home, far = HOME[US], OTHER[US]
    user = await enrol(mesh, "both", US, FILES, tmp_path)
    abroad = await enrol(mesh, "both", US, FILES, tmp_path / "far", "--region", far)
    uid, key = await user.do(make)
    await patiently(abroad, lambda client: client.locate(), "")
    client = f"tenant/{US}/client"
    identities = [
        leaf(mesh, tmp_path, home, f"spiffe://{far}.dev/{client}/both", signed_in=far),
        leaf(mesh, tmp_path, home, f"spiffe://{home}.dev/tenant/{US}/edge/{FILES}/i1"),
        leaf(mesh, tmp_path, home, f"spiffe://{home}.dev/core/n1"),
        leaf(mesh, tmp_path, home, f"spiffe://{home}.dev/{client}/unnamed"),
        leaf(mesh, tmp_path, home, f"spiffe://{home}.dev/tenant/{EU}/client/both"),
        leaf(mesh, tmp_path, home, f"spiffe://{home}.dev/{client}/both", signed_in=far),
        mesh.layout.admin / "operator.pem",
        None,
    ]
    for identity in identities:
        assert await answer(mesh, home, identity) == b"", identity
    honest = leaf(mesh, tmp_path, home, f"spiffe://{home}.dev/{client}/both")
    assert (await answer(mesh, home, honest))[:3] == bytes.fromhex("42007b")  # and the search itself works
    assert (await user.do(lambda client: client.get(uid))).value == key


def leaf(mesh: LiveMesh, where: Path, region: str, uri: str, *, signed_in: str | None = None) -> Path:
    """A certificate for ``uri``, by the CA of ``signed_in``."""
    issuer = mesh.layout.core(signed_in or region) / "region-ca.pem"
    authority = key_files.load_authority(issuer, mesh=MeshName("dev"))
    key, now = pki.new_tls_key(), Instant(time.time_ns() // 1_000_000)
    made = pki.sign_leaf(authority, uri, key.public_key(), now=now, lifetime_ms=600_000)
    path = where / f"{hashlib.sha256(f'{uri}{signed_in}'.encode()).hexdigest()}.pem"
    key_files.write_identity(path, key, [made, authority.certificate])
    return path


async def answer(mesh: LiveMesh, region: str, identity: Path | None) -> bytes:
    """The first bytes that a KMIP port says to a request; none where it hangs up."""
    context = ssl.create_default_context(cafile=str(mesh.layout.ca))
    context.check_hostname = False
    if identity is not None:
        context.load_cert_chain(identity)
    async with asyncio.timeout(20):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", mesh.plan.regions[region].kmip_port, ssl=context
            )
            writer.write(bytes.fromhex("4200780100000000"))
            found = await reader.read(8)
            writer.close()
        except OSError:
            return b""
    return found


async def test_objects_outlive_a_crash_and_a_rotation_and_names_stay_unique(mesh: LiveMesh, tmp_path: Path) -> None:
    user = await enrol(mesh, "lasting", US, FILES, tmp_path)
    uid, key = await user.do(lambda client: make(client, "lasting one"))
    before = mesh.pid(f"core-{HOME[US]}")
    mesh.kill(f"core-{HOME[US]}")

    async def anew() -> bool:
        return mesh.child(f"core-{HOME[US]}")["pid"] not in (None, before)

    await until(anew, "the Core starting again")
    await mesh.settled()
    await patiently(user, lambda client: client.get(uid), "")
    assert (await user.do(lambda client: client.get(uid))).value == key
    path = f"/v1/tenants/{US}/services/{FILES}"
    wrapping = (await mesh.client.call("GET", path))["wrapping"]
    await mesh.cli("key", "rotate", f"service:{US}/{FILES}")

    async def rotated() -> bool:
        return bool((await mesh.client.call("GET", path))["wrapping"] > wrapping)

    await until(rotated, "the new version protecting new data")
    await mesh.settled()
    assert (await user.do(lambda client: client.get(uid))).value == key
    assert await user.do(lambda client: named(client, "lasting one")) == [uid]
    taken = "ILLEGAL_OPERATION: Name: another object has it"
    await patiently(user, lambda client: new(client, "lasting one"), taken)
    newer, _ = await user.do(lambda client: make(client, "a newer one"))
    secret = await user.do(lambda client: sealed(client, newer, TEXT, IV))
    assert await user.do(lambda client: opened(client, newer, secret, IV)) == TEXT


async def test_another_region_has_the_same_keys_and_goes_on_where_the_home_is_dead(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    home, far = HOME[US], OTHER[US]
    here = await enrol(mesh, "moving", US, FILES, tmp_path)
    there = await enrol(mesh, "moving", US, FILES, tmp_path / "far", "--region", far)
    uid, key = await here.do(lambda client: make(client, "moving one"))
    secret = await here.do(lambda client: sealed(client, uid, TEXT, IV))
    await patiently(there, lambda client: client.get(uid), "")
    assert (await there.do(lambda client: client.get(uid))).value == key
    assert await there.do(lambda client: named(client, "moving one")) == [uid]
    await mesh.hold(f"core-{home}")
    try:
        assert (await there.do(lambda client: client.get(uid))).value == key
        assert await there.do(lambda client: opened(client, uid, secret, IV)) == TEXT
        made, drawn = await there.do(lambda client: make(client, "made meanwhile"))
        assert (await there.do(lambda client: client.get(made))).value == drawn
        why = enums.RevocationReasonCode.CESSATION_OF_OPERATION
        refused = await there.refusal(lambda client: client.revoke(why, uid))  # its writer is away
        assert refused.startswith("GENERAL_FAILURE"), refused
        await mesh.cli("suspend", f"client:{US}/moving", "--no-wait")

        async def ended() -> bool:
            return await there.refusal(lambda client: client.get(uid)) == HUNG_UP

        await until(ended, "the client's end reaching the other region")
        await mesh.resume(f"client:{US}/moving", US)
    finally:
        mesh.release(f"core-{home}")
    await mesh.settled()
    await patiently(here, lambda client: client.get(made), "")
    assert (await here.do(lambda client: client.get(made))).value == drawn


async def test_a_sealed_region_serves_nothing(mesh: LiveMesh, tmp_path: Path) -> None:
    user = await enrol(mesh, "locked", US, FILES, tmp_path)
    uid, _ = await user.do(make)
    await mesh.cli("region", "seal", HOME[US])
    try:
        for ask in (lambda c: c.get(uid), lambda c: c.locate(), make):
            assert (await user.refusal(ask)).startswith("PERMISSION_DENIED")
    finally:
        await mesh.cli("region", "unseal", HOME[US])
    await patiently(user, lambda client: client.get(uid), "")


async def test_no_key_byte_and_no_name_of_an_object_lies_in_any_file(mesh: LiveMesh, tmp_path: Path) -> None:
    user = await enrol(mesh, "canary", US, FILES, tmp_path)
    canary, password, name = bytes(range(7, 39)), b"correct horse battery staple 4711", "a name found by nobody"

    def work(client: ProxyKmipClient) -> str:
        uid = str(
            client.register(pie.SymmetricKey(enums.CryptographicAlgorithm.AES, 256, canary, masks=USES, name=name))
        )
        client.register(pie.SecretData(password, enums.SecretDataType.PASSWORD))
        client.activate(uid)
        assert client.get(uid).value == canary
        sealed(client, uid, TEXT, IV)
        return uid

    uid = await user.do(work)
    drawn = (await user.do(make))[1]
    await user.refusal(lambda client: opened(client, uid, b"not a whole block", IV))
    files = list(files_under(mesh.layout.root, tmp_path))
    assert finds({uid.encode()}, files)  # the search itself works: identifiers are no secrets
    for what, secret in (("registered", canary), ("drawn", drawn), ("password", password), ("name", name.encode())):
        assert not finds(spellings(secret), files), what
