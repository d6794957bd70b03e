"""The Vault face: tokens and logins, rights, keys, health; what a stranger and another tenant see."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.access.identity import AdminIdentity
from keymesh.compat import vault_tokens
from keymesh.compat.vault_auth import span_ms
from keymesh.compat.vault_form import VaultError
from keymesh.compat.vault_tokens import FAILURES_MAX, FAILURES_WINDOW_MS, PEERS_MAX, VaultLogins, check_logins
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import RegionId
from tests.unit.compat.vault_world import (
    CLIENT,
    EDGE,
    MESH,
    OTHER_ROOT,
    READER,
    REGION,
    ROLE_ID,
    ROOT,
    SECRET_ID,
    START,
    World,
    logins,
    sha,
)

DENIED = (403, "permission denied")
NOT_ALLOWED = (403, "1 error occurred:\n\t* permission denied\n\n")
LOGIN = {"role_id": ROLE_ID, "secret_id": SECRET_ID}


async def login(world: World, **options: Any) -> Any:
    status, answer = await world.ask("POST", "auth/approle/login", LOGIN, token=None, **options)
    assert status == 200, answer
    return answer["auth"]


# --- tokens --------------------------------------------------------------------------------------------------------


async def test_without_a_token_or_with_another_everything_is_one_answer() -> None:
    world = World()
    paths = [
        "transit/keys/orders",
        "transit/encrypt/orders",
        "transit/keys/none",
        "sys/mounts",
        "auth/token/lookup-self",
    ]
    for token in (None, "", "wrong", "x" * 100_000, sha(ROOT)):
        for path in [*paths, "nosuch/x", "transit/nosuch"]:
            assert await world.error("GET", path, token=token) == DENIED, (token, path)
            assert await world.error("POST", path, {}, token=token) == DENIED, (token, path)


async def test_a_body_is_read_for_who_has_a_token_and_little_of_it_for_a_login() -> None:
    world = World()
    for body in (b"{bad", b"[" * 100_000):
        assert (await world.raw("POST", "transit/encrypt/orders", body, token="wrong"))[0] == 403
    long = json.dumps({**LOGIN, "more": "x" * 10_000}).encode()
    status, answer = await world.raw("POST", "auth/approle/login", long, token=None)
    assert status == 400 and "at most 8192 bytes" in answer["errors"][0]


async def test_a_token_comes_in_either_header_and_once() -> None:
    world = World()
    bearer = (("authorization", f"Bearer {ROOT}"),)
    assert (await world.ask("GET", "transit/keys/orders", token=None, headers=bearer))[0] == 200
    twice = (("x-vault-token", ROOT),)
    assert await world.error("GET", "transit/keys/orders", headers=twice) == (400, "x-vault-token: given twice")


async def test_a_token_that_is_restricted_may_what_it_says_and_no_more() -> None:
    world = World()
    sealed = await world.encrypt(b"x")
    assert await world.decrypt(sealed, token=READER) == b"x"
    assert (await world.data("GET", "transit/keys/orders", token=READER))["name"] == "orders"
    assert (await world.data("LIST", "transit/keys", token=READER))["keys"] == ["orders"]
    for method, path in (
        ("POST", "transit/encrypt/orders"),
        ("POST", "transit/datakey/plaintext/orders"),
        ("POST", "transit/rewrap/orders"),
        ("POST", "transit/decrypt/mail"),
        ("POST", "transit/decrypt/none"),
        ("GET", "transit/keys/mail"),
        ("POST", "transit/keys/orders"),
        ("DELETE", "transit/keys/orders"),
        ("POST", "transit/keys/orders/rotate"),
        ("POST", "transit/keys/orders/config"),
    ):
        assert await world.error(method, path, {}, token=READER) == NOT_ALLOWED, path
    world.later(60_000)
    assert await world.error("GET", "transit/keys/orders", token=READER) == DENIED


async def test_another_tenant_s_keys_look_absent() -> None:
    world = World()
    assert (await world.data("LIST", "transit/keys", token=OTHER_ROOT))["keys"] == ["orders"]

    async def seen(name: str) -> list[Any]:
        paths = (("GET", f"keys/{name}"), ("POST", f"encrypt/{name}"), ("POST", f"keys/{name}/rotate"))
        return [await world.ask(m, f"transit/{p}", {"plaintext": ""}, token=OTHER_ROOT) for m, p in paths]

    assert await seen("mail") == await seen("nosuch")
    assert [status for status, _ in await seen("mail")] == [404, 400, 400]
    assert len(world.ring.held["acme", "mail"].kids) == 1


# --- logins --------------------------------------------------------------------------------------------------------


async def test_an_approle_s_token_lives_its_ttl_is_renewed_and_never_beyond_its_longest_life() -> None:
    world = World()
    auth = await login(world)
    token = auth["client_token"]
    assert (auth["lease_duration"], auth["renewable"], auth["token_type"]) == (600, True, "service")
    shown = await world.data("GET", "auth/token/lookup-self", token=token)
    assert (shown["ttl"], shown["id"], shown["policies"]) == (600, token, ["orders"])
    assert shown["expire_time"] == "2026-11-28T07:13:52.000Z"
    assert await world.encrypt(b"x", token=token)
    assert await world.error("GET", "transit/keys/orders", token=token) == NOT_ALLOWED
    renewed = []
    for _ in range(6):
        world.later(590_000)
        _, answer = await world.ask("POST", "auth/token/renew-self", {}, token=token)
        renewed.append(answer["auth"]["lease_duration"])
    assert renewed == [600, 600, 600, 600, 600, 60]  # 59 minutes of an hour are over
    _, answer = await world.ask("POST", "auth/token/renew-self", {"increment": "5s"}, token=token)
    assert answer["auth"]["lease_duration"] == 5
    world.later(4_999)
    assert (await world.data("GET", "auth/token/lookup-self", token=token))["ttl"] == 0
    world.later(1)
    assert await world.error("GET", "auth/token/lookup-self", token=token) == DENIED


async def test_a_revoked_token_is_gone_at_once_and_a_written_one_is_the_operator_s() -> None:
    world = World()
    token = (await login(world))["client_token"]
    assert await world.ask("POST", "auth/token/revoke-self", token=token) == (204, None)
    for method, path in (("GET", "auth/token/lookup-self"), ("POST", "transit/encrypt/orders")):
        assert await world.error(method, path, {"plaintext": ""}, token=token) == DENIED
    assert (await world.error("POST", "auth/token/revoke-self"))[0] == 400
    assert await world.error("POST", "auth/token/renew-self", {}) == (400, "lease is not renewable")
    assert (await world.ask("GET", "transit/keys/orders"))[0] == 200


async def test_no_secret_of_a_token_is_kept() -> None:
    world = World()
    token = (await login(world))["client_token"]
    assert len(base64.urlsafe_b64decode(token.removeprefix("kmv.") + "=")) == 32
    assert token not in repr(world.tokens) and sha(token) in repr(world.tokens)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"role_id": ROLE_ID},
        {"role_id": ROLE_ID, "secret_id": ""},
        {"role_id": ROLE_ID, "secret_id": "other"},
        {"role_id": ROLE_ID, "secret_id": sha(SECRET_ID)},
        {"role_id": "other", "secret_id": SECRET_ID},
        {"role_id": "", "secret_id": SECRET_ID},
        {"role_id": ROLE_ID, "secret_id": None},
    ],
)
async def test_a_failed_login_is_one_answer(given: dict[str, str]) -> None:
    said = await World().error("POST", "auth/approle/login", given, token=None)
    assert said == (400, "invalid role or secret ID")


async def test_who_fails_often_waits_and_nobody_else_does() -> None:
    world = World()
    wrong = {"role_id": ROLE_ID, "secret_id": "wrong"}
    for _ in range(FAILURES_MAX):
        assert (await world.error("POST", "auth/approle/login", wrong, token=None))[0] == 400
    for either in (wrong, LOGIN):
        assert (await world.error("POST", "auth/approle/login", either, token=None))[0] == 429
    assert (await world.error("POST", "auth/cert/login", {}, token=None))[0] == 429
    assert await login(world, peer="192.0.2.2")
    world.later(FAILURES_WINDOW_MS - 1)
    assert (await world.error("POST", "auth/approle/login", LOGIN, token=None))[0] == 429
    world.later(1)
    assert await login(world)


async def test_failures_are_remembered_of_so_many_callers_and_no_more() -> None:
    world = World()
    for n in range(PEERS_MAX + 10):
        await world.ask("POST", "auth/approle/login", {"role_id": "x", "secret_id": "x"}, token=None, peer=str(n))
    assert len(world.tokens._failures) == PEERS_MAX


async def test_tokens_of_a_role_are_limited_and_the_dead_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_tokens, "TOKENS_OF_ROLE_MAX", 3)
    world = World()
    for _ in range(3):
        await login(world)
    assert (await world.error("POST", "auth/approle/login", LOGIN, token=None))[0] == 429
    world.later(600_000)
    assert await login(world)
    monkeypatch.setattr(vault_tokens, "TOKENS_MAX", 1)
    assert (await world.error("POST", "auth/approle/login", LOGIN, token=None))[0] == 429


async def test_a_role_that_is_taken_out_or_changed_takes_its_tokens_along() -> None:
    world = World()
    token = (await login(world))["client_token"]
    world.logins = logins()
    assert (await world.ask("GET", "auth/token/lookup-self", token=token))[0] == 200
    (role,) = logins().approles
    narrower = msgspec.structs.replace(role, rights=("decrypt",))
    world.logins = msgspec.structs.replace(logins(), approles=(narrower,))
    assert await world.error("GET", "auth/token/lookup-self", token=token) == DENIED
    token = (await login(world))["client_token"]
    assert await world.error("POST", "transit/encrypt/orders", {"plaintext": ""}, token=token) == NOT_ALLOWED
    world.logins = VaultLogins()
    for gone in (token, ROOT):
        assert await world.error("GET", "auth/token/lookup-self", token=gone) == DENIED


async def test_a_certificate_logs_in_to_the_role_it_fits_and_the_token_ends_with_it() -> None:
    world = World()
    until = START + 120_000
    world.certificates |= {
        b"edge": (EDGE, until),
        b"client": (CLIENT, until),
        b"foreign": (replace(EDGE, region=RegionId("eu-west")), until),
        b"other": (replace(EDGE, service="mail"), until),  # type: ignore[arg-type]
        b"zebra": (replace(EDGE, tenant="zebra"), until),  # type: ignore[arg-type]
        b"admin": (AdminIdentity(mesh=MESH, name="orders"), until),
        b"over": (EDGE, START),
    }
    assert EDGE.region == REGION
    _, answer = await world.ask("POST", "auth/cert/login", {}, token=None, certificate=b"edge")
    token = answer["auth"]["client_token"]
    assert answer["auth"]["lease_duration"] == 120
    assert await world.encrypt(b"x", token=token)
    _, answer = await world.ask("POST", "auth/cert/login", {"name": "client"}, token=None, certificate=b"client")
    assert (await world.data("LIST", "transit/keys", token=answer["auth"]["client_token"]))["keys"] == [
        "mail",
        "orders",
    ]
    for shown, name in (
        (None, ""), (b"unknown", ""), (b"foreign", ""), (b"other", ""), (b"zebra", ""), (b"admin", ""), (b"over", ""),
        (b"edge", "client"), (b"client", "edge"), (b"edge", "nosuch"),
    ):  # fmt: skip
        body = {"name": name}
        said = await world.error("POST", "auth/cert/login", body, token=None, certificate=shown, peer=f"{shown!r}")
        assert said == (400, "invalid certificate or no client certificate supplied"), (shown, name)
    world.later(119_000)
    _, answer = await world.ask("POST", "auth/token/renew-self", {"increment": 3_600}, token=token)
    assert answer["auth"]["lease_duration"] == 1
    world.later(1_000)
    assert await world.error("POST", "transit/encrypt/orders", {"plaintext": ""}, token=token) == DENIED


@pytest.mark.parametrize(("text", "ms"), [("90", 90_000), (90, 90_000), ("5m", 300_000), ("1h30m5s", 5_405_000)])
def test_an_increment_is_seconds_or_a_duration(text: object, ms: int) -> None:
    assert span_ms(text) == ms


@pytest.mark.parametrize("text", ["x", "-5", "5d", "", "9" * 30, 0, 2**40, 1.5, None, True, [], "m"])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(VaultError):
        span_ms(text)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tenant": "mesh"}, "tenant"),
        ({"services": ()}, "approles.orders"),
        ({"services": ("UP",)}, "service"),
        ({"rights": ("sudo",)}, "approles.orders.rights"),
        ({"ttl_s": 0}, "approles.orders.ttl_s"),
        ({"ttl_s": 7_200}, "approles.orders.ttl_s"),
        ({"role_id": "short"}, "approles.orders.role_id"),
        ({"secret_id_sha256": ()}, "approles.orders.secret_id_sha256"),
        ({"secret_id_sha256": ("plain",)}, "approles.orders.secret_id_sha256"),
        ({"name": ""}, "approles.name"),
    ],
)
def test_a_role_that_is_not_right_is_refused_by_its_field(change: dict[str, Any], field: str) -> None:
    (role,) = logins().approles
    with pytest.raises(Refused) as refused:
        check_logins(VaultLogins(approles=(msgspec.structs.replace(role, **change),)))
    assert refused.value.field == field


def test_names_and_role_ids_are_there_once() -> None:
    (role,) = logins().approles
    for other in ({}, {"name": "another"}):
        with pytest.raises(Refused, match="each once"):
            check_logins(VaultLogins(approles=(role, msgspec.structs.replace(role, **other))))


def test_a_certificate_role_is_of_one_kind() -> None:
    (edge, _) = logins().certificates
    for names in ({"edge": None}, {"client": "x"}):
        with pytest.raises(Refused, match="either edge or client"):
            check_logins(VaultLogins(certificates=(msgspec.structs.replace(edge, **names),)))


# --- namespaces, methods, paths ------------------------------------------------------------------------------------


async def test_a_namespace_may_be_the_token_s_tenant_and_nothing_else() -> None:
    world = World()
    for named, status in (("", 200), ("acme", 200), ("/acme/", 200), ("root", 200), ("zebra", 404), ("acme/x", 404)):
        given = (("x-vault-namespace", named),)
        assert (await world.ask("GET", "transit/keys/orders", headers=given))[0] == status, named
        logged_in, answer = await world.ask("POST", "auth/approle/login", LOGIN, token=None, headers=given)
        assert logged_in == status and (status == 200) == ("auth" in answer)
    assert len(world.tokens._issued) == 4


async def test_answers_are_not_wrapped() -> None:
    asked = (("x-vault-wrap-ttl", "60s"),)
    said = await World().error("GET", "transit/keys/orders", headers=asked)
    assert said == (400, "X-Vault-Wrap-TTL: answers are not wrapped here")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "transit/encrypt/orders", 405),
        ("DELETE", "transit/decrypt/orders", 405),
        ("LIST", "transit/random", 405),
        ("POST", "transit/keys", 405),
        ("GET", "transit/keys/orders/rotate", 405),
        ("GET", "transit", 404),
        ("GET", "transit/nosuch", 404),
        ("POST", "transit/encrypt", 404),
        ("POST", "transit/encrypt/orders/more", 404),
        ("POST", "transit/random/a/b/c", 404),
        ("POST", "transit/random/platform/x", 404),
        ("POST", "transit/sign/orders", 404),
        ("GET", "transit/export/encryption-key/orders", 404),
        ("GET", "secret/data/x", 404),
        ("POST", "auth/token/create", 403),
        ("POST", "sys/seal", 403),
        ("GET", "", 404),
        ("GET", "%ff", 400),
        ("GET", "x?" + "&".join("a=b" for _ in range(40)), 400),
    ],
)
async def test_what_is_not_served_is_refused(method: str, path: str, status: int) -> None:
    assert (await World().error(method, path))[0] == status


# --- keys --------------------------------------------------------------------------------------------------------


async def test_a_key_is_made_once_read_listed_and_rotated() -> None:
    world = World()
    made = await world.data("POST", "transit/keys/new-key", {"type": "aes256-gcm96", "derived": False})
    assert made["name"] == "new-key" and made["latest_version"] == 1 and made["keys"] == {"1": 0}
    assert await world.data("PUT", "transit/keys/new-key", {}) == made
    assert await world.data("GET", "transit/keys/new-key") == made
    for method, path in (("LIST", "transit/keys"), ("GET", "transit/keys?list=true"), ("LIST", "transit/keys/")):
        assert (await world.data(method, path))["keys"] == ["mail", "new-key", "orders"]
    rotated = await world.data("POST", "transit/keys/new-key/rotate")
    assert (rotated["latest_version"], rotated["min_decryption_version"]) == (2, 1)
    assert (await world.encrypt(b"x", key="new-key")).startswith("vault:v2:")
    assert await world.ask("GET", "transit/keys/none") == (404, {"errors": []})
    del world.ring.held["zebra", "orders"]
    assert await world.ask("LIST", "transit/keys", token=OTHER_ROOT) == (404, {"errors": []})


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("keys/new", {"type": "rsa-2048"}, "unknown key type rsa-2048"),
        ("keys/new", {"type": 5}, "type: text"),
        ("keys/new", {"derived": True}, "derived: "),
        ("keys/new", {"exportable": "true"}, "exportable: keys are not exported"),
        ("keys/new", {"convergent_encryption": True}, "convergent_encryption: "),
        ("keys/new", {"allow_plaintext_backup": 1}, "allow_plaintext_backup: "),
        ("keys/new", {"auto_rotate_period": "1h"}, "auto_rotate_period: "),
        ("keys/NEW", {}, "service: lower-case letters"),
        ("keys/" + "n" * 64, {}, "service: at most 63 characters"),
        ("keys/none/rotate", {}, "key not found"),
        ("keys/none/config", {}, "no existing key named none could be found"),
        ("keys/orders/config", {"min_decryption_version": 9}, "cannot set min decryption version of 9, latest"),
        ("keys/orders/config", {"min_decryption_version": 2}, "min_decryption_version: not a setting here"),
        ("keys/orders/config", {"min_encryption_version": 2}, "min_encryption_version: not a setting here"),
        ("keys/orders/config", {"deletion_allowed": True}, "deletion_allowed: keys are not deleted by a path"),
        ("keys/orders/config", {"exportable": True}, "exportable: keys are not exported"),
    ],
)
async def test_what_a_mesh_does_otherwise_is_refused_by_name(path: str, body: dict[str, Any], said: str) -> None:
    world = World()
    world.ring.held["acme", "orders"].rotate()
    status, words = await world.error("POST", f"transit/{path}", body)
    assert (status, words[: len(said)]) == (400, said)
    assert world.ring.services("acme") == ("mail", "orders")


async def test_a_configuration_of_what_is_so_anyway_is_taken_and_nothing_is_deleted() -> None:
    world = World()
    so = {
        "min_decryption_version": 1,
        "min_encryption_version": 0,
        "deletion_allowed": False,
        "auto_rotate_period": "0",
    }
    assert await world.data("POST", "transit/keys/orders/config", so)
    status, said = await world.error("DELETE", "transit/keys/orders")
    assert status == 400 and "deletion is not allowed for this key" in said
    assert "orders" in world.ring.services("acme")


async def test_a_suspended_key_is_read_by_what_the_registry_says() -> None:
    world = World()
    await world.ring.suspend("acme", "orders", "test")
    assert (await world.data("GET", "transit/keys/orders"))["latest_version"] == 1


# --- sys -----------------------------------------------------------------------------------------------------------


async def test_health_is_what_may_be_used_now() -> None:
    world = World()
    status, shown = await world.ask("GET", "sys/health", token=None)
    assert (status, shown["sealed"], shown["standby"], shown["initialized"]) == (200, False, False, True)
    for keys in world.ring.held.values():
        keys.why = Unavailable("expired", "no lease")
    assert [(await world.ask(m, "sys/health", token=None))[0] for m in ("GET", "HEAD")] == [503, 503]
    assert (await world.ask("GET", "sys/health?sealedcode=200", token=None))[0] == 200
    assert (await world.ask("GET", "sys/seal-status", token=None))[1]["sealed"] is True
    world.ring.held["zebra", "orders"].why = None
    assert (await world.ask("GET", "sys/health?activecode=299", token=None))[0] == 299
    world.ring.held.clear()
    assert (await world.ask("GET", "sys/health", token=None))[0] == 429
    assert (await world.ask("GET", "sys/health?standbyok=true", token=None))[0] == 200
    assert (await world.ask("GET", "sys/health?standbycode=473", token=None))[0] == 473
    for bad in ("x", "99", "600", "-200"):
        assert (await world.ask("GET", f"sys/health?standbycode={bad}", token=None))[0] == 400
    assert (await world.ask("GET", "sys/init", token=None))[1] == {"initialized": True}


async def test_the_mount_is_shown_to_who_has_a_token() -> None:
    world = World()
    _, shown = await world.ask("GET", "sys/mounts")
    assert shown["transit/"]["type"] == shown["data"]["transit/"]["type"] == "transit"
    assert (await world.data("GET", "sys/internal/ui/mounts"))["secret"]["transit/"]["type"] == "transit"
    assert (await world.data("GET", "sys/internal/ui/mounts/transit"))["path"] == "transit/"


# --- whatever comes ------------------------------------------------------------------------------------------------

words = st.sampled_from([
    "transit", "keys", "orders", "mail", "encrypt", "decrypt", "rewrap", "datakey", "plaintext", "random", "sys",
    "health", "auth", "approle", "cert", "login", "token", "lookup-self", "renew-self", "rotate", "config", "", "..",
    "%00", "mounts", "internal", "ui", "x" * 70,
])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from([
    "plaintext", "ciphertext", "context", "associated_data", "batch_input", "key_version", "bits", "bytes", "format",
    "nonce", "type", "derived", "increment", "name", "role_id", "secret_id", "reference", "min_decryption_version",
    "partial_failure_response_code",
])  # fmt: skip


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "LIST", "DELETE", "HEAD", "PATCH", "X"]),
    path=st.lists(words, max_size=5),
    query=st.sampled_from(["", "?list=true", "?standbyok", "?a=%ff", "?sealedcode=1"]),
    body=st.dictionaries(names, values | st.lists(st.dictionaries(names, values, max_size=3), max_size=3), max_size=4),
    token=st.sampled_from([None, ROOT, READER, "x"]),
)
def test_whatever_is_asked_is_answered_in_the_one_form(
    method: str, path: list[str], query: str, body: dict[str, Any], token: str | None
) -> None:
    async def asked() -> None:
        status, answer = await World().raw(
            method, "/".join(path) + query, json.dumps(body).encode(), token=token, certificate=b"?"
        )
        assert status in (200, 204, 400, 403, 404, 405, 429, 503) or (200 <= status <= 599 and "batch_input" in body)
        assert status != 500
        if status not in (200, 204) and "data" not in (answer or {}):
            assert "errors" in answer or "sealed" in answer

    asyncio.run(asked())
