"""Our side of OpenBao against the real server: logins, tokens, seals, kills, what is a no and what is silence."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hostile_bao import TOKEN, answer, hostile
from tests.servers.openbao import KV_RULES, TRANSIT_RULES, CustomerCa, OpenBaoServer, openbao

from keymesh.adapters.openbao import BaoRefused, OpenBao, Why
from keymesh.adapters.openbao_keystore import OpenBaoKeyStore
from keymesh.adapters.openbao_l1 import OpenBaoL1
from keymesh.adapters.openbao_login import AppRoleLogin, CertLogin, Login, Secret
from keymesh.core.keystore import NEWEST_SCHEMA, StoredIvk, StoredKey, StoreIdentity
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

E = bytes(range(32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    with openbao(tmp_path_factory.mktemp("openbao")) as made:
        made.mount("transit", "transit")
        made.mount("kv", "kv", {"version": "2"})
        made.transit_key("transit", "root")
        made.policy("l1", TRANSIT_RULES)
        made.policy("store", KV_RULES)
        made.app_role_file("l1", "l1")
        made.app_role_file("store", "store")
        made.cert_role("l1", made.ca.pem, "l1")
        yield made


def app_role(server: OpenBaoServer, name: str = "l1") -> AppRoleLogin:
    return AppRoleLogin(server.directory / f"{name}.json")


def l1(server: OpenBaoServer, login: Login | None = None, key: str = "root") -> OpenBaoL1:
    return OpenBaoL1(server.client(login or app_role(server)), mount="transit", key=key)


async def store(server: OpenBaoServer, prefix: str) -> OpenBaoKeyStore:
    made = OpenBaoKeyStore(server.client(app_role(server, "store")), mount="kv", prefix=prefix)
    await made.found(StoreIdentity(store_id="5" * 32, region="eu", schema=NEWEST_SCHEMA))
    return made


def stored(n: int) -> StoredKey:
    return StoredKey(
        namespace="acme",
        key="l2",
        version=n,
        revision=1,
        kid=Kid(f"{n:032x}"),
        digest=Digest(f"{n:064x}"),
        ivk_kid="7" * 32,
        blob=b"blob%d" % n,
    )


def everything_said(caught: KeymeshError, *more: object) -> str:
    """All that a log, a page or a debugger could show of an error."""
    chain: list[str] = []
    one: BaseException | None = caught
    while one is not None:
        chain += [repr(one), str(one), repr(one.args)]
        one = one.__cause__ or one.__context__
    return "".join([*chain, *traceback.format_exception(caught), *map(repr, more)])


# --- logins and tokens -----------------------------------------------------------------------------------------------


async def test_both_logins_wrap_and_unwrap(server: OpenBaoServer) -> None:
    by_role, by_certificate = l1(server), l1(server, CertLogin("l1"))
    for provider, other in ((by_role, by_certificate), (by_certificate, by_role)):
        wrapped = await provider.wrap(E)
        assert len(wrapped) <= 256
        assert E not in wrapped
        assert await other.unwrap(wrapped) == E
        assert await other.unwrap(await provider.wrap(bytes(64))) == bytes(64)
    await by_role.close()
    await by_certificate.close()


async def test_a_short_lived_token_is_renewed_and_at_its_greatest_age_replaced(server: OpenBaoServer) -> None:
    login = AppRoleLogin(server.app_role_file("short", "l1", token_ttl="2s", token_max_ttl="5s"))
    provider = l1(server, login)
    wrapped = await provider.wrap(E)
    seen: dict[str, list[float]] = {}
    start = time.monotonic()
    while time.monotonic() - start < 7:
        assert await provider.unwrap(wrapped) == E
        token = provider._bao._token
        assert token is not None
        seen.setdefault(token.secret.reveal(), []).append(time.monotonic())
        await asyncio.sleep(0.2)
    assert max(used[-1] - used[0] for used in seen.values()) > 2.2  # longer than its first life
    assert 2 <= len(seen) <= 4
    await asyncio.sleep(2.5)  # idle past its end
    assert await provider.unwrap(wrapped) == E
    await provider.close()


async def test_a_token_that_is_gone_is_replaced_within_the_call(server: OpenBaoServer) -> None:
    provider = l1(server)
    wrapped = await provider.wrap(E)
    token = provider._bao._token
    assert token is not None
    server.admin("POST", "/v1/auth/token/revoke", {"token": token.secret.reveal()})
    answers = await asyncio.gather(*(provider.unwrap(wrapped) for _ in range(8)))
    assert answers == [E] * 8
    await provider.close()
    gone = server.ask("GET", "/v1/auth/token/lookup-self", token=token.secret.reveal())
    assert gone[0] == 403


async def test_a_new_secret_id_needs_no_restart(server: OpenBaoServer) -> None:
    file = server.app_role_file("rolled", "l1", secret_id_num_uses=1)
    provider = l1(server, AppRoleLogin(file))
    wrapped = await provider.wrap(E)
    token = provider._bao._token
    assert token is not None
    server.admin("POST", "/v1/auth/token/revoke", {"token": token.secret.reveal()})
    with pytest.raises(L1Denied):
        await provider.unwrap(wrapped)
    fresh = server.admin("POST", "/v1/auth/approle/role/rolled/secret-id", {})["data"]["secret_id"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "secret_id": fresh}))
    assert await provider.unwrap(wrapped) == E
    await provider.close()


async def test_wrong_credentials_are_a_no_and_are_not_repeated_in_the_error(
    server: OpenBaoServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    right = json.loads((server.directory / "l1.json").read_text())
    for change in ({"role_id": "canary-wrong-role"}, {"secret_id": "canary-wrong-secret"}):
        file = tmp_path / "wrong.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(right | change))
        provider = l1(server, AppRoleLogin(file))
        with pytest.raises(L1Denied) as denied:
            await provider.wrap(E)
        assert denied.value.code == "login-refused"
        said = everything_said(denied.value, provider._bao, provider._bao._login) + caplog.text
        assert "canary" not in said
        assert right["role_id"] not in said and right["secret_id"] not in said
        await provider.close()
    server.cert_role("strangers", CustomerCa.make("another CA").pem, "l1")
    for role in ("strangers", "absent"):
        provider = l1(server, CertLogin(role))
        with pytest.raises(L1Denied):
            await provider.wrap(E)
        await provider.close()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"role_id":"canary"}', '{"role_id":"canary","secret_id":""}', "x" * 9000]
)
async def test_an_unreadable_credential_file_is_named_and_not_quoted(
    server: OpenBaoServer, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "role.json"
    file.touch(mode=0o600)
    file.write_text(content)
    provider = l1(server, AppRoleLogin(file))
    with pytest.raises(L1Unreachable) as silent:  # our own fault is not the customer's no
        await provider.wrap(E)
    assert "role.json" in silent.value.message
    assert "canary" not in everything_said(silent.value)
    file.chmod(0o644)
    with pytest.raises(L1Unreachable, match="0600"):
        await provider.wrap(E)
    await provider.close()


# --- who is trusted --------------------------------------------------------------------------------------------------


async def test_another_ca_or_host_name_is_unreachable_whatever_the_environment_says(
    server: OpenBaoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text(server.ca.pem)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    wrong = server.credentials().foreign_context(trust_pem=CustomerCa.make("another").pem.encode())
    right = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
    for url, context in ((server.url, wrong), (f"https://localhost:{server.port}", right)):
        provider = OpenBaoL1(OpenBao([url], context, app_role(server)), mount="transit", key="root")
        with pytest.raises(L1Unreachable) as silent:
            await provider.wrap(E)
        assert silent.value.code == "unreachable"
        await provider.close()
    with pytest.raises(Refused, match="ca_pem"):
        server.credentials().foreign_context(trust_pem=b"no certificate")


async def test_a_client_that_the_listener_does_not_know_is_unreachable(server: OpenBaoServer, tmp_path: Path) -> None:
    from keymesh.adapters.tls import Credentials

    stranger = Credentials(CustomerCa.make("strangers").issue(tmp_path / "stranger.pem", "stranger"))
    context = stranger.foreign_context(trust_pem=server.ca.pem.encode())
    provider = OpenBaoL1(OpenBao([server.url], context, app_role(server)), mount="transit", key="root")
    with pytest.raises(L1Unreachable):
        await provider.wrap(E)
    await provider.close()


# --- a no, and silence -----------------------------------------------------------------------------------------------


async def test_a_revoked_policy_is_a_no_until_it_is_granted_again(server: OpenBaoServer) -> None:
    provider = l1(server)
    wrapped = await provider.wrap(E)
    server.policy("l1", {"transit/keys/none": ["read"]})
    try:
        for _ in range(3):
            with pytest.raises(L1Denied) as denied:
                await provider.unwrap(wrapped)
            assert denied.value.code == "denied"
        before = len(server.admin("LIST", "/v1/auth/token/accessors")["data"]["keys"])
        for _ in range(5):
            with pytest.raises(L1Denied):
                await provider.wrap(E)
        after = len(server.admin("LIST", "/v1/auth/token/accessors")["data"]["keys"])
        assert after == before  # a client that is told no leaves no tokens behind
    finally:
        server.policy("l1", TRANSIT_RULES)
    assert await provider.unwrap(wrapped) == E
    await provider.close()


async def test_deleted_soft_deleted_and_withdrawn_keys_are_a_no(server: OpenBaoServer) -> None:
    server.policy(
        "all-keys", {f"transit/{verb}/*": ["create", "read", "update"] for verb in ("encrypt", "decrypt", "keys")}
    )
    login = AppRoleLogin(server.app_role_file("all-keys", "all-keys"))
    for key, withdraw, code in (
        ("gone", lambda: server.delete_key("transit", "gone"), "no-such-key"),
        ("soft", lambda: server.admin("DELETE", "/v1/transit/keys/soft/soft-delete"), "key-deleted"),
        ("old", lambda: withdraw_first_version(server, "old"), "key-version-withdrawn"),
    ):
        server.transit_key("transit", key)
        provider = l1(server, login, key)
        wrapped = await provider.wrap(E)
        withdraw()
        with pytest.raises(L1Denied) as denied:
            await provider.unwrap(wrapped)
        assert denied.value.code == code
        if key != "old":
            with pytest.raises(L1Denied):
                await provider.wrap(E)
        await provider.close()
    assert server.ask("GET", "/v1/transit/keys/gone")[0] == 404  # not made anew, although the policy would let us


def withdraw_first_version(server: OpenBaoServer, key: str) -> None:
    server.admin("POST", f"/v1/transit/keys/{key}/rotate")
    server.admin("POST", f"/v1/transit/keys/{key}/config", {"min_decryption_version": 2})


async def test_a_mount_that_is_gone_is_a_no(server: OpenBaoServer) -> None:
    server.mount("team/transit", "transit")
    server.transit_key("team/transit", "root")
    server.policy("team", {"team/transit/*": ["read", "update"]})
    client = server.client(AppRoleLogin(server.app_role_file("team", "team")))
    provider = OpenBaoL1(client, mount="team/transit", key="root")
    wrapped = await provider.wrap(E)
    assert await provider.unwrap(wrapped) == E
    server.admin("DELETE", "/v1/sys/mounts/team/transit")
    with pytest.raises(L1Denied):
        await provider.unwrap(wrapped)
    await provider.close()


async def test_what_another_key_wrapped_or_someone_changed_does_not_open(server: OpenBaoServer) -> None:
    server.transit_key("transit", "second")
    server.policy("second", {f"transit/{verb}/second": ["read", "update"] for verb in ("encrypt", "decrypt", "keys")})
    provider = l1(server)
    second = l1(server, AppRoleLogin(server.app_role_file("second", "second")), "second")
    wrapped, foreign = await provider.wrap(E), await second.wrap(E)
    renamed = wrapped[:17] + foreign[17:]  # the head of one, the ciphertext of the other
    changed = bytearray(wrapped)
    changed[-3] ^= 1 if changed[-3] not in b"@A`a" else 3
    for bad in (foreign, renamed, bytes(changed), wrapped[:-4], wrapped[:17], b"", b"\0", wrapped + b"\n", wrapped * 3):
        with pytest.raises(Integrity):
            await provider.unwrap(bad)
    plain = server.admin("POST", "/v1/transit/encrypt/root", {"plaintext": "AAAA"})["data"]["ciphertext"].encode()
    with pytest.raises(Integrity):  # of the same key, made for something else
        await provider.unwrap(wrapped[:17] + plain)
    server.delete_key("transit", "second")
    server.transit_key("transit", "second")
    with pytest.raises(Integrity):  # another key of that name
        await second.unwrap(foreign)
    await provider.close()
    await second.close()


@pytest.mark.parametrize("kind", ["rsa-2048", "ed25519"])
async def test_a_key_that_binds_no_context_is_refused(server: OpenBaoServer, kind: str) -> None:
    server.transit_key("transit", kind, kind)
    server.policy(kind, {f"transit/{verb}/{kind}": ["read", "update"] for verb in ("encrypt", "decrypt", "keys")})
    provider = l1(server, AppRoleLogin(server.app_role_file(kind, kind)), kind)
    with pytest.raises(Refused) as refused:
        await provider.wrap(E)
    assert refused.value.field == "key"
    assert not isinstance(refused.value, L1Denied)
    await provider.close()


async def test_throttled_is_silence(server: OpenBaoServer) -> None:
    provider = l1(server)
    wrapped = await provider.wrap(E)
    server.admin("POST", "/v1/sys/quotas/rate-limit/l1", {"rate": 1, "interval": "30s", "path": "transit/"})
    try:
        with pytest.raises(L1Unreachable) as silent:
            for _ in range(5):
                await provider.unwrap(wrapped)
        assert silent.value.code == "throttled"
        assert silent.value.retry_after_ms > 1_000
    finally:
        server.admin("DELETE", "/v1/sys/quotas/rate-limit/l1")
    assert await provider.unwrap(wrapped) == E
    await provider.close()


async def test_sealed_in_the_middle_is_silence_and_ends_with_the_unseal(server: OpenBaoServer) -> None:
    provider, keys, fresh = l1(server), await store(server, "sealed"), l1(server)
    wrapped = await provider.wrap(E)
    assert await keys.put_key(stored(1), over=None)
    server.seal()
    try:
        for one in (provider, fresh):  # with a token, and before any login
            with pytest.raises(L1Unreachable) as silent:
                await one.unwrap(wrapped)
            assert silent.value.code == "sealed"
        for call in (
            keys.get_key("acme", stored(1).kid),
            keys.put_key(stored(2), over=None),
            keys.ivks(),
            keys.stored_keys(),
            keys.count_blobs("acme"),
        ):
            with pytest.raises(Unavailable) as away:
                await call
            assert away.value.code == "sealed"
    finally:
        server.unseal()
    assert await provider.unwrap(wrapped) == E
    assert await fresh.unwrap(wrapped) == E
    assert await keys.stored_keys() == (stored(1),)
    await keys.close()
    await provider.close()
    await fresh.close()


# --- kill -9 ---------------------------------------------------------------------------------------------------------


async def test_nothing_acknowledged_is_lost_by_kill_9(server: OpenBaoServer) -> None:
    provider = l1(server)
    wrapped = await provider.wrap(E)
    keys = await store(server, "killed")
    await keys.put_ivk(
        StoredIvk(generation=1, kid=Kid("1" * 32), state=IvkState.ACTIVE, created_at=Instant(1), wraps=0, blob=b"i")
    )
    acknowledged: list[int] = []
    counted = 0

    async def write() -> None:
        nonlocal counted
        for n in range(1, 2_000):
            try:
                if await keys.put_key(stored(n), over=None):
                    acknowledged.append(n)
                await keys.put_blob("acme", f"{n:064x}", b"b%d" % n)
                await keys.count_wraps("1" * 32, 1)
                counted += 1
            except Unavailable:
                return

    for _ in range(2):
        acknowledged_before = len(acknowledged)
        writer = asyncio.create_task(write())
        await asyncio.sleep(0.7)
        server.kill()
        await asyncio.wait_for(writer, 30)
        with pytest.raises(L1Unreachable):
            await provider.unwrap(wrapped)
        server.start()
        assert len(acknowledged) >= acknowledged_before
    assert acknowledged
    there = {key.version: key for key in await keys.stored_keys("acme")}
    assert [n for n in acknowledged if there.get(n) != stored(n)] == []
    assert len(there) <= len(acknowledged) + 2  # at most what was under way when it died
    assert (await keys.ivks())[0].wraps >= counted
    for n in acknowledged[:-2]:
        assert await keys.get_blob("acme", f"{n:064x}") == b"b%d" % n
    assert await provider.unwrap(wrapped) == E  # the same client, a token from before
    await keys.close()
    await provider.close()


# --- races -----------------------------------------------------------------------------------------------------------


async def test_of_two_writers_over_one_version_exactly_one_wins(server: OpenBaoServer) -> None:
    one, two = (server.client(app_role(server, "store")) for _ in range(2))

    async def write(bao: OpenBao, round_: int, name: str) -> bool:
        body = {"data": {"by": name}, "options": {"cas": round_}}
        try:
            await bao.call("POST", "kv/data/race/one", body, repeatable=False)
        except BaoRefused as lost:
            assert lost.why is Why.CHANGED
            return False
        return True

    for round_ in range(15):
        assert sorted(await asyncio.gather(write(one, round_, "one"), write(two, round_, "two"))) == [False, True]
    await one.close()
    await two.close()


async def test_what_nobody_wrote_so_is_an_integrity_error(server: OpenBaoServer) -> None:
    keys = await store(server, "damaged")
    row = {"generation": 1, "kid": "1" * 32, "state": "active", "created_at": 1, "wraps": 0, "blob": "aWs="}
    for change in ({"state": "deleted"}, {"generation": 2}, {"blob": "%%"}, {"more": 1}, {"wraps": "0"}):
        server.admin("POST", "/v1/kv/data/damaged/ivks/1", {"data": {**row, **change}})
        with pytest.raises(Integrity):
            await keys.ivks()
    assert await keys.put_key(stored(1), over=None)
    raw = server.admin("GET", f"/v1/kv/data/damaged/namespaces/acme/{stored(1).kid}")["data"]["data"]
    server.admin(
        "POST", f"/v1/kv/data/damaged/namespaces/acme/{stored(2).kid}", {"data": raw}
    )  # a key under another's name
    with pytest.raises(Integrity):
        await keys.get_key("acme", stored(2).kid)
    await keys.close()


async def test_a_dropped_key_leaves_no_bytes(server: OpenBaoServer) -> None:
    keys = await store(server, "dropped")
    assert await keys.put_key(stored(1), over=None)
    newer = replace(stored(1), revision=2, blob=b"newer")
    assert await keys.put_key(newer, over=stored(1))
    await keys.drop_key(newer)
    for version in (1, 2):
        status, left = server.ask("GET", f"/v1/kv/data/dropped/namespaces/acme/{stored(1).kid}?version={version}")
        assert status == 404
        assert left["data"]["metadata"]["destroyed"] is True
    await keys.close()


@pytest.mark.parametrize("role", ["l1", "absent"], ids=["denied", "no credentials"])
async def test_a_store_that_may_not_be_written_is_unavailable(server: OpenBaoServer, role: str) -> None:
    keys = OpenBaoKeyStore(server.client(app_role(server, role)), mount="kv", prefix="denied")
    for call in (keys.identity(), keys.ivks(), keys.drop_blob("acme", "ab"), keys.put_blob("acme", "ab", b"x")):
        with pytest.raises(Unavailable) as refused:
            await call
        assert refused.value.code == ("store-denied" if role == "l1" else "credentials")
    await keys.close()


# --- several endpoints, hostile answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        answer(503, {"errors": ["Vault is sealed"]}),
        answer(429, {"initialized": True, "sealed": False, "standby": True}),
        answer(473, {"initialized": True, "sealed": False, "standby": True}),
        answer(307, b"", "Location: https://127.0.0.1:1/v1/kv/data/x"),
    ],
    ids=["sealed", "standby", "performance standby", "redirects"],
)
async def test_an_endpoint_that_does_nothing_is_passed_over(server: OpenBaoServer, first: bytes) -> None:
    for n, said in enumerate(({"health": first}, {"says": first, "login": first})):
        async with hostile(server, **said) as passive:
            context = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
            urls = ["https://127.0.0.1:1", passive.url, server.url]
            async with OpenBao(urls, context, app_role(server, "store")) as bao:
                body = {"data": {"a": "1"}, "options": {"cas": 0}}
                path = f"kv/data/passed/{first.split()[1].decode()}-{n}"
                assert (await bao.call("POST", path, body, repeatable=False))["version"] == 1
            assert passive.asked


HOSTILE: dict[str, dict[str, Any]] = {
    "nothing": {"says": b""},
    "garbage": {"says": b"\x00\xff\x16\x03 nonsense\r\n\r\n"},
    "no JSON": {"says": answer(200, b"<html>200</html>")},
    "no JSON, forbidden": {"says": answer(403, b"<html>forbidden</html>")},
    "another shape": {"says": answer(200, {"data": {"ciphertext": 7, "plaintext": [TOKEN]}})},
    "a list": {"says": answer(200, [1])},
    "no data": {"says": answer(204, b"")},
    "errors with a 200": {"says": answer(200, {"errors": ["permission denied"], "data": {}})},
    "errors of another type": {"says": answer(403, {"errors": {"permission": "denied"}})},
    "forbidden without errors": {"says": answer(403, {"data": None})},
    "token in the error": {"says": answer(400, {"errors": [f"your token is {TOKEN}"]})},
    "token in the status line": {"says": b"HTTP/1.1 2x0 " + TOKEN.encode() + b"\r\n\r\n"},
    "deep": {"says": answer(200, b"[" * 100_000)},
    "truncated": {"says": answer(200, {"data": {"plaintext": "AAAA"}})[:-9]},
    "truncated head": {"says": b"HTTP/1.1 200 OK\r\nContent-Le"},
    "too long": {"says": answer(200, b'"' + b"x" * (3 * 1024 * 1024) + b'"')},
    "without end": {"says": b"HTTP/1.1 200 OK\r\n\r\n", "endless": True},
    "heads without end": {"says": b"HTTP/1.1 200 OK\r\nA: ", "endless": True},
    "silence": {"silent": True},
    "server error": {"says": answer(500, {"errors": ["internal"]})},
    "redirect": {"says": answer(302, b"", "Location: https://127.0.0.1:1/")},
    "lying length": {"says": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}"},
    "compressed": {"says": answer(200, b"\x1f\x8b" + bytes(90), "Content-Encoding: gzip")},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_whatever_a_hostile_server_answers_is_silence_and_bounded(
    server: OpenBaoServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrapped = await sample(server)
    async with hostile(server, **HOSTILE[name]) as bad:
        context = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
        provider = OpenBaoL1(OpenBao([bad.url], context, CertLogin("l1"), timeout_s=1.0), mount="transit", key="root")
        start = time.monotonic()
        for call in (provider.unwrap(wrapped), provider.wrap(E)):
            with pytest.raises(L1Unreachable) as silent:
                await call
            said = everything_said(silent.value, provider, provider._bao, provider._bao._token)
            assert TOKEN not in said
        assert time.monotonic() - start < 6
        assert bad.sent_bytes < 64 * 1024 * 1024
        await provider.close()
    assert TOKEN not in caplog.text


_sample: list[bytes] = []


async def sample(server: OpenBaoServer) -> bytes:
    """Something that the real key wrapped."""
    if not _sample:
        provider = l1(server)
        _sample.append(await provider.wrap(E))
        await provider.close()
    return _sample[0]


@pytest.mark.parametrize(
    "login",
    [
        answer(200, {"auth": None}),
        answer(200, {"auth": {"client_token": 7, "lease_duration": 1, "renewable": True}}),
        answer(200, {"auth": {"client_token": "a\r\nX-Evil: 1", "lease_duration": 60, "renewable": True}}),
        answer(200, {"auth": {"client_token": "a\n", "lease_duration": 60, "renewable": True}}),
        answer(200, {"auth": {"client_token": "a", "lease_duration": 10**40, "renewable": True}}),
        answer(200, {"auth": {"client_token": "", "lease_duration": 60, "renewable": True}}),
        answer(400, {"errors": ["something else is wrong"]}),
        b"",
    ],
    ids=["none", "type", "line ends", "line end", "long life", "empty", "unknown refusal", "nothing"],
)
async def test_a_senseless_login_answer_is_silence(server: OpenBaoServer, login: bytes) -> None:
    wrapped = await sample(server)
    async with hostile(server, login=login, says=b"") as bad:
        context = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
        provider = OpenBaoL1(OpenBao([bad.url], context, CertLogin("l1"), timeout_s=1.0), mount="transit", key="root")
        with pytest.raises(L1Unreachable):
            await provider.unwrap(wrapped)
        assert all(b"/login " in line or b"/sys/health " in line for line in bad.asked)
        await provider.close()


async def test_a_write_whose_answer_was_lost_is_not_sent_again(server: OpenBaoServer) -> None:
    async with hostile(server, says=b"") as one, hostile(server, says=b"") as two:
        context = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
        async with OpenBao([one.url, two.url], context, CertLogin("l1"), timeout_s=1.0) as bao:
            with pytest.raises(Unavailable):
                await bao.call("POST", "kv/data/x", {"data": {}, "options": {"cas": 0}}, repeatable=False)
            writes = [line for line in one.asked + two.asked if b"kv/data" in line]
            assert len(writes) == 1
            with pytest.raises(Unavailable):
                await bao.call("POST", "transit/decrypt/x", {})
            assert any(b"decrypt" in line for line in two.asked)


@pytest.mark.parametrize("health", [b"", answer(200, b"x" * 3_000_000), answer(404, {}), answer(500, {}), b"garbage"])
async def test_a_senseless_health_answer_is_silence(server: OpenBaoServer, health: bytes) -> None:
    async with hostile(server, health=health) as bad:
        context = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
        async with OpenBao([bad.url], context, CertLogin("l1"), timeout_s=1.0) as bao:
            with pytest.raises(Unavailable):
                await bao.call("POST", "transit/decrypt/x", {})
        assert all(b"/sys/health " in line for line in bad.asked)


async def eventually(provider: OpenBaoL1, wrapped: bytes) -> bytes:
    """What it unwraps once the nodes have settled who leads."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await provider.unwrap(wrapped)
            except L1Unreachable:
                await asyncio.sleep(0.2)


async def test_a_standby_is_not_asked_though_it_would_answer(server: OpenBaoServer, tmp_path: Path) -> None:
    """It decrypts from what it last heard, also after its owner said no to a leader that it cannot hear."""
    with openbao(tmp_path / "one") as leader:
        leader.mount("transit", "transit")
        leader.transit_key("transit", "root")
        leader.policy("l1", TRANSIT_RULES)
        login = AppRoleLogin(leader.app_role_file("l1", "l1"))
        with openbao(tmp_path / "two", leader=leader) as standby:
            assert standby.ask("GET", "/v1/sys/health")[0] == 429
            context = leader.credentials().foreign_context(trust_pem=leader.ca.pem.encode())
            both = OpenBaoL1(OpenBao([standby.url, leader.url], context, login), mount="transit", key="root")
            alone = OpenBaoL1(OpenBao([standby.url], context, login), mount="transit", key="root")
            wrapped = await both.wrap(E)
            assert await both.unwrap(wrapped) == E
            leader.kill()
            body = {"plaintext": "AAAA"}
            assert standby.ask("POST", "/v1/transit/encrypt/root", body)[0] == 200
            await asyncio.sleep(1.1)
            with pytest.raises(L1Unreachable):
                await both.unwrap(wrapped)
            with pytest.raises(L1Unreachable) as silent:
                await alone.unwrap(wrapped)
            assert silent.value.code == "standby"
            leader.start()
            assert await eventually(both, wrapped) == E
            await both.close()
            await alone.close()


async def test_a_list_without_end_is_not_followed(server: OpenBaoServer) -> None:
    page = {"data": {"keys": [f"{n:032x}" for n in range(1_000)]}}
    async with hostile(server, says=answer(200, page, "Connection: close")) as bad:
        context = server.credentials().foreign_context(trust_pem=server.ca.pem.encode())
        keys = OpenBaoKeyStore(OpenBao([bad.url], context, CertLogin("x")), mount="kv", prefix="x")
        with pytest.raises(Unavailable, match="no end"):
            await keys.count_blobs("acme")
        await keys.close()


def test_a_secret_has_no_other_form() -> None:
    secret = Secret("canary")
    assert "canary" not in f"{secret} {secret!r} {[secret]}"
    for misuse in (
        lambda: secret == secret,
        lambda: hash(secret),
        lambda: json.dumps(secret),
        lambda: secret.__reduce__(),
    ):
        with pytest.raises(TypeError):
            misuse()
