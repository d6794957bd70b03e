"""Vault's transit API with clients that nobody here wrote: hvac and OpenBao's command line, over TLS on a live mesh.

A real OpenBao is the oracle: one script of calls comes to the same errors and the same shape of answers at both.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import pytest
from hvac import exceptions
from tests.integration.mesh.live import EU, FILES, MAIL, US, LiveMesh, keymesh
from tests.integration.mesh.vault import REGION, Face, face_process, patiently, until_raises
from tests.servers.openbao import openbao

from keymesh.app.layout import Layout
from keymesh.app.servers.binaries import BAO

RECORD = b"attack at dawn"
USES = ("encrypt", "decrypt", "rewrap", "datakey", "read")


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.fixture(scope="module")
def face(mesh_layout: Layout) -> Iterator[Face]:
    where = Path(tempfile.mkdtemp(prefix="kmv", dir="/tmp"))
    try:
        with face_process(mesh_layout, where) as face:
            yield face
    finally:
        shutil.rmtree(where, ignore_errors=True)


@pytest.fixture(scope="module")
def root(face: Face) -> Any:
    """A client with every right over one tenant's keys; the face has heard of it, and holds the keys."""
    client = face.client(face.login("token", "root", US)["token"])
    patiently(lambda: client.secrets.transit.create_key(FILES), exceptions.Forbidden, exceptions.VaultDown)
    return client


def encrypt(client: Any, plain: bytes, key: str = FILES, **more: Any) -> str:
    return str(client.secrets.transit.encrypt_data(key, plaintext=b64(plain), **more)["data"]["ciphertext"])


def decrypt(client: Any, ciphertext: str, key: str = FILES, **more: Any) -> bytes:
    return base64.b64decode(
        client.secrets.transit.decrypt_data(key, ciphertext=ciphertext, **more)["data"]["plaintext"]
    )


async def test_every_operation(mesh: LiveMesh, root: Any) -> None:
    transit = root.secrets.transit
    bound = {"context": b64(b"c"), "associated_data": b64(b"a")}
    sealed = encrypt(root, RECORD, **bound)
    assert decrypt(root, sealed, **bound) == RECORD
    for spoilt in ({}, {"context": b64(b"c")}, {**bound, "associated_data": b64(b"b")}):
        with pytest.raises(exceptions.InvalidRequest, match="message authentication failed"):
            decrypt(root, sealed, **spoilt)
    plain = encrypt(root, RECORD)
    raw = bytearray(base64.b64decode(plain.rpartition(":")[2]))
    raw[-1] ^= 1
    version = plain.split(":")[1]
    for changed in (f"vault:{version}:{b64(bytes(raw))}", f"vault:v{int(version[1:]) + 1}:{plain.rpartition(':')[2]}"):
        with pytest.raises(exceptions.InvalidRequest, match="message authentication failed"):
            decrypt(root, changed)
    with pytest.raises(exceptions.InvalidRequest) as some:
        transit.encrypt_data(
            FILES, batch_input=[{"plaintext": b64(b"1")}, {"plaintext": "*"}, {"plaintext": b64(b"2")}]
        )
    first, second, third = some.value.json["data"]["batch_results"]
    assert second["error"] and "ciphertext" not in second
    opened = transit.decrypt_data(FILES, batch_input=[{"ciphertext": each["ciphertext"]} for each in (first, third)])
    assert [base64.b64decode(each["plaintext"]) for each in opened["data"]["batch_results"]] == [b"1", b"2"]
    key = transit.generate_data_key(FILES, "plaintext", bits=512)["data"]
    assert decrypt(root, key["ciphertext"]) == base64.b64decode(key["plaintext"])
    assert "plaintext" not in transit.generate_data_key(FILES, "wrapped")["data"]
    assert len(base64.b64decode(transit.generate_random_bytes(n_bytes=24)["data"]["random_bytes"])) == 24
    assert decrypt(root, transit.rewrap_data(FILES, ciphertext=plain)["data"]["ciphertext"]) == RECORD
    assert {FILES, MAIL} <= set(transit.list_keys()["data"]["keys"])
    assert transit.read_key(FILES)["data"]["type"] == "aes256-gcm96"
    with pytest.raises(exceptions.InvalidRequest, match="deletion is not allowed"):
        transit.delete_key(FILES)
    assert root.sys.read_health_status().status_code == 200 and root.sys.is_sealed() is False


async def test_a_key_is_made_rotated_and_rewrapped(mesh: LiveMesh, root: Any) -> None:
    transit = root.secrets.transit
    assert transit.create_key("vaultkeys")["data"]["latest_version"] == 1
    old = encrypt(root, RECORD, "vaultkeys")
    assert transit.rotate_key("vaultkeys")["data"]["latest_version"] == 2
    new = transit.rewrap_data("vaultkeys", ciphertext=old)["data"]
    assert new["key_version"] == 2 and new["ciphertext"].startswith("vault:v2:")
    assert decrypt(root, old, "vaultkeys") == decrypt(root, new["ciphertext"], "vaultkeys") == RECORD
    with pytest.raises(exceptions.InvalidRequest, match="key_version"):
        encrypt(root, RECORD, "vaultkeys", key_version=1)


async def test_another_tenant_sees_nothing(mesh: LiveMesh, face: Face, root: Any) -> None:
    other = face.client(face.login("token", "other", EU)["token"])
    patiently(other.auth.token.lookup_self, exceptions.Forbidden)
    sealed = encrypt(root, RECORD)
    for key in (MAIL, "nosuch"):
        with pytest.raises(exceptions.InvalidPath):
            other.secrets.transit.read_key(key)
        with pytest.raises(exceptions.InvalidRequest, match="encryption key not found"):
            decrypt(other, sealed, key)


async def test_a_suspension_ends_it_in_mid_use_and_a_resume_brings_it_back(
    mesh: LiveMesh, root: Any, tmp_path: Path
) -> None:
    sealed = encrypt(root, RECORD, MAIL)
    await mesh.cli("suspend", f"service:{US}/{MAIL}", "-o", tmp_path / "cert.json")
    for use in (lambda: decrypt(root, sealed, MAIL), lambda: encrypt(root, RECORD, MAIL)):
        until_raises(use, exceptions.Forbidden)
    assert decrypt(root, encrypt(root, RECORD)) == RECORD
    await mesh.resume(f"service:{US}/{MAIL}", US)
    assert patiently(lambda: decrypt(root, sealed, MAIL), exceptions.Forbidden, exceptions.VaultDown) == RECORD


async def test_approle_tokens_live_are_renewed_and_end(mesh: LiveMesh, face: Face, root: Any) -> None:
    made = face.login("approle", "files-only", US, "--service", FILES, "--ttl-s", "60", rights=("encrypt",))
    client = face.client()
    with pytest.raises(exceptions.InvalidRequest, match="invalid role or secret ID"):
        client.auth.approle.login(made["role_id"], "wrong")
    patiently(lambda: client.auth.approle.login(made["role_id"], made["secret_id"]), exceptions.InvalidRequest)
    assert client.is_authenticated()
    assert encrypt(client, RECORD).startswith("vault:v")
    for use in (lambda: decrypt(client, encrypt(client, RECORD)), lambda: encrypt(client, RECORD, MAIL)):
        with pytest.raises(exceptions.Forbidden):
            use()
    assert client.auth.token.renew_self(increment="30s")["auth"]["lease_duration"] <= 30
    token = client.token
    client.auth.token.revoke_self()
    with pytest.raises(exceptions.Forbidden):
        encrypt(face.client(token), RECORD)
    short = face.login("approle", "short", US, "--ttl-s", "2", "--max-ttl-s", "2")
    client = face.client()
    patiently(lambda: client.auth.approle.login(short["role_id"], short["secret_id"]), exceptions.InvalidRequest)
    until_raises(client.auth.token.lookup_self, exceptions.Forbidden)
    assert not client.is_authenticated()


async def test_a_certificate_of_the_mesh_logs_in(mesh: LiveMesh, face: Face, root: Any, tmp_path: Path) -> None:
    face.login("certificate", "files-edge", US, "--service", FILES, "--edge", FILES, rights=USES)
    for service in (FILES, MAIL):
        words = ["--region", REGION, "--instance", "vault1", "-o", str(tmp_path / service)]
        words += ["--dir", str(mesh.layout.root)]
        done = keymesh("pki", "enrol", f"{US}/{service}", *words)
        assert done.returncode == 0, done.stderr
    pems = {service: str(tmp_path / service / "edge.pem") for service in (FILES, MAIL)}
    client = face.client(cert=(pems[FILES], pems[FILES]))
    patiently(client.auth.cert.login, exceptions.InvalidRequest)
    assert decrypt(client, encrypt(client, RECORD)) == RECORD
    for refused in (face.client(cert=(pems[MAIL], pems[MAIL])), face.client()):
        with pytest.raises(exceptions.InvalidRequest, match="invalid certificate"):
            refused.auth.cert.login(cacert=False, cert_pem=pems[MAIL], key_pem=pems[MAIL])


async def test_the_command_line_of_openbao(mesh: LiveMesh, face: Face, root: Any) -> None:
    def bao(*words: str) -> str:
        environment = {**os.environ, "BAO_ADDR": face.url, "BAO_CACERT": face.ca, "BAO_TOKEN": root.token}
        done = subprocess.run([BAO.require(), *words], capture_output=True, text=True, env=environment, timeout=90)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    sealed = bao("write", "-field=ciphertext", f"transit/encrypt/{FILES}", f"plaintext={b64(RECORD)}")
    assert bao("write", "-field=plaintext", f"transit/decrypt/{FILES}", f"ciphertext={sealed}") == b64(RECORD)
    assert len(bao("write", "-field=plaintext", "-f", f"transit/datakey/plaintext/{FILES}", "bits=128")) == 24
    assert FILES in bao("list", "transit/keys")
    assert "aes256-gcm96" in bao("read", f"transit/keys/{FILES}")
    assert "false" in bao("status")
    assert "root" in bao("token", "lookup")


# --- the oracle ----------------------------------------------------------------------------------------------------


def shape(value: Any) -> Any:
    """Keys and types; of a list, of its items, in order."""
    match value:
        case dict():
            return {key: shape(each) for key, each in sorted(value.items())}
        case list():
            return [shape(each) for each in value]
        case _:
            return type(value).__name__


def outcome(work: Callable[[], Any]) -> Any:
    """An answer's shape, or which error with which shape."""
    try:
        answer = work()
    except exceptions.VaultError as error:
        return type(error).__name__, shape((error.json or {}).get("data"))
    if not isinstance(answer, dict):
        return answer.status_code
    auth = answer.get("auth")
    if auth is not None:
        auth["metadata"] = auth["policies"] = auth["token_policies"] = None
    if "meta" in (answer.get("data") or {}):
        answer["data"]["meta"] = answer["data"]["policies"] = None
    return shape({name: answer[name] for name in ("auth", "data", "lease_duration", "renewable", "wrap_info")})


def script(client: Any, role_id: str, secret_id: str) -> dict[str, Any]:
    """What each call comes to."""
    transit, token, seen = client.secrets.transit, client.auth.token, {}
    seen["login"] = outcome(lambda: client.auth.approle.login(role_id, secret_id))
    seen["bad login"] = outcome(lambda: client.auth.approle.login(role_id, "wrong", use_token=False))
    seen["no such role"] = outcome(lambda: client.auth.approle.login("nobody-at-all", "wrong", use_token=False))
    seen["lookup-self"] = outcome(token.lookup_self)
    seen["renew-self"] = outcome(lambda: token.renew_self(increment=60))
    sealed = encrypt(client, RECORD)
    batch = [{"plaintext": b64(b"1"), "reference": "r"}, {"plaintext": "*"}]
    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: transit.read_key(FILES),
        "read none": lambda: transit.read_key("nosuch"),
        "list": lambda: {**transit.list_keys(), "data": {"keys": []}},
        "encrypt": lambda: transit.encrypt_data(FILES, plaintext=b64(RECORD)),
        "encrypt nothing": lambda: transit.encrypt_data(FILES, plaintext=""),
        "encrypt no base64": lambda: transit.encrypt_data(FILES, plaintext="*"),
        "encrypt a version to come": lambda: transit.encrypt_data(FILES, plaintext="", key_version=99),
        "encrypt a batch": lambda: transit.encrypt_data(FILES, batch_input=batch[:1]),
        "encrypt a batch with a bad item": lambda: transit.encrypt_data(FILES, batch_input=batch),
        "encrypt an empty batch": lambda: transit.encrypt_data(FILES, batch_input=[]),
        "decrypt": lambda: transit.decrypt_data(FILES, ciphertext=sealed),
        "decrypt junk": lambda: transit.decrypt_data(FILES, ciphertext="junk"),
        "decrypt no base64": lambda: transit.decrypt_data(FILES, ciphertext="vault:v1:*"),
        "decrypt what is too short": lambda: transit.decrypt_data(FILES, ciphertext="vault:v1:AAAA"),
        "decrypt what was changed": lambda: transit.decrypt_data(FILES, ciphertext=sealed[:-8] + "AAAAAAA="),
        "decrypt a version to come": lambda: transit.decrypt_data(FILES, ciphertext=re.sub(":v.", ":v9", sealed)),
        "decrypt none": lambda: transit.decrypt_data("nosuch", ciphertext=sealed),
        "decrypt a batch with a bad item": lambda: transit.decrypt_data(
            FILES, batch_input=[{"ciphertext": sealed}, {"ciphertext": "junk"}]
        ),
        "rewrap": lambda: transit.rewrap_data(FILES, ciphertext=sealed),
        "rewrap a batch with a bad item": lambda: transit.rewrap_data(
            FILES, ciphertext="", batch_input=[{"ciphertext": sealed}, {"ciphertext": "junk"}]
        ),
        "rewrap none": lambda: transit.rewrap_data("nosuch", ciphertext=sealed),
        "data key": lambda: transit.generate_data_key(FILES, "plaintext"),
        "data key, wrapped": lambda: transit.generate_data_key(FILES, "wrapped", bits=128),
        "data key of none": lambda: transit.generate_data_key("nosuch", "wrapped"),
        "random": lambda: transit.generate_random_bytes(n_bytes=8, output_format="hex"),
        "random in no form": lambda: transit.generate_random_bytes(n_bytes=8, output_format="x"),
        "configure none": lambda: transit.update_key_configuration("nosuch", min_decryption_version=1),
        "configure a version to come": lambda: transit.update_key_configuration(FILES, min_decryption_version=99),
        "rotate none": lambda: transit.rotate_key("nosuch"),
        "delete": lambda: transit.delete_key(FILES),
        "no such path": lambda: client.adapter.get("/v1/transit/nosuch"),
        "encrypt by GET": lambda: client.adapter.get(f"/v1/transit/encrypt/{FILES}"),
        "health": lambda: client.sys.read_health_status(),
        "revoke-self": token.revoke_self,
        "lookup-self afterwards": token.lookup_self,
    }
    return seen | {name: outcome(call) for name, call in calls.items()}


ORACLE_RULES = {
    **{f"transit/{path}/*": ["read", "update"] for path in ("encrypt", "decrypt", "rewrap", "datakey")},
    "transit/random": ["update"],
    "transit/nosuch": ["read"],
    "transit/keys": ["list"],
    "transit/keys/*": ["create", "read", "update", "delete"],
}


async def test_answers_have_the_shape_of_openbao_s(mesh: LiveMesh, face: Face, root: Any, tmp_path: Path) -> None:
    made = face.login("approle", "oracle", US)
    with openbao(tmp_path / "bao") as server:
        server.mount("transit", "transit")
        server.transit_key("transit", FILES)
        server.policy("oracle", ORACLE_RULES)
        role_id, secret_id = server.approle("oracle", "oracle", token_ttl="10m")
        pem = str(server.settings.admin)
        oracle = hvac.Client(server.url, verify=str(server.settings.ca), cert=(pem, pem), timeout=90)
        theirs = script(oracle, role_id, secret_id)
        ours = face.client()
        patiently(
            lambda: ours.auth.approle.login(made["role_id"], made["secret_id"], use_token=False),
            exceptions.InvalidRequest,
        )
        ours_seen = script(ours, made["role_id"], made["secret_id"])
        health = [client.sys.read_health_status(method="GET") for client in (ours, oracle)]
        status = [client.sys.read_seal_status() for client in (ours, oracle)]
    # a rotated key has more versions
    for seen in (theirs, ours_seen):
        seen["read"]["data"]["keys"] = None
    assert {name: (ours_seen[name], theirs[name]) for name in theirs if ours_seen[name] != theirs[name]} == {}
    assert shape(health[0]) == shape(health[1])
    assert shape(status[0]).items() <= shape(status[1]).items()
