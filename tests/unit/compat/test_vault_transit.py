"""Vault's transit over a service's keys: there and back, batches, what is bound, what is refused and how."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.compat.vault_transit import BATCH_MAX, BOUND_MAX_BYTES, RANDOM_MAX_BYTES
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from tests.unit.compat.vault_world import OTHER_ROOT, World, b64

NOT_OPENED = (400, "cipher: message authentication failed")


@given(plain=st.binary(max_size=500), context=st.binary(max_size=64), bound=st.binary(max_size=64))
def test_what_was_encrypted_decrypts_under_what_it_was_bound_to(plain: bytes, context: bytes, bound: bytes) -> None:
    async def there_and_back() -> None:
        world, more = World(), {"context": b64(context), "associated_data": b64(bound)}
        sealed = await world.encrypt(plain, **more)
        assert sealed.startswith("vault:v1:")
        assert await world.decrypt(sealed, **more) == plain
        for name in more:
            if more[name]:
                other = {**more, name: b64(b"other than " + base64.b64decode(more[name]))}
                body = {"ciphertext": sealed, **other}
                assert await world.error("POST", "transit/decrypt/orders", body) == NOT_OPENED

    asyncio.run(there_and_back())


@given(st.data())
def test_a_ciphertext_that_was_changed_anywhere_does_not_open(data: st.DataObject) -> None:
    async def changed() -> None:
        world = World()
        raw = bytearray(base64.b64decode((await world.encrypt(b"a record"))[9:]))
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
        status, answer = await world.ask(
            "POST", "transit/decrypt/orders", {"ciphertext": "vault:v1:" + b64(bytes(raw))}
        )
        assert status == 400 and list(answer) == ["errors"]
        if at >= 20:  # behind formats and kid everything is one answer
            assert (status, answer["errors"][0]) == NOT_OPENED

    asyncio.run(changed())


async def test_the_number_in_the_text_is_the_kid_s_or_nothing_opens() -> None:
    world = World()
    first = await world.encrypt(b"x")
    world.ring.held["acme", "orders"].rotate()
    second = await world.encrypt(b"x")
    assert (first[:9], second[:9]) == ("vault:v1:", "vault:v2:")
    for lie in ("vault:v2:" + first[9:], "vault:v1:" + second[9:], "vault:v3:" + second[9:], "vault:v999999999:AAAA"):
        status, _ = await world.error("POST", "transit/decrypt/orders", {"ciphertext": lie})
        assert status == 400
    assert await world.error("POST", "transit/decrypt/orders", {"ciphertext": "vault:v2:" + first[9:]}) == NOT_OPENED
    assert await world.decrypt(first) == await world.decrypt(second) == b"x"


async def test_another_key_s_and_another_tenant_s_ciphertexts_do_not_open() -> None:
    world = World()
    for token, key in ((OTHER_ROOT, "orders"), ("root-of-acme", "mail")):
        sealed = await world.encrypt(b"theirs", key=key, token=token)
        status, said = await world.error("POST", "transit/decrypt/orders", {"ciphertext": sealed})
        assert (status, said) == (400, "no version of this key that is held here opens this ciphertext")


async def test_a_data_key_decrypts_to_what_was_given_in_the_clear() -> None:
    world = World()
    for bits in (128, 256, "512", None):
        body = {} if bits is None else {"bits": bits}
        made = await world.data("POST", "transit/datakey/plaintext/orders", body)
        assert set(made) == {"ciphertext", "key_version", "plaintext"}
        key = base64.b64decode(made["plaintext"])
        assert len(key) * 8 == int(bits or 256)
        assert await world.decrypt(made["ciphertext"]) == key
    assert set(await world.data("POST", "transit/datakey/wrapped/orders")) == {"ciphertext", "key_version"}
    bound = {"context": b64(b"c")}
    wrapped = (await world.data("POST", "transit/datakey/wrapped/orders", bound))["ciphertext"]
    assert len(await world.decrypt(wrapped, **bound)) == 32
    assert await world.error("POST", "transit/decrypt/orders", {"ciphertext": wrapped}) == NOT_OPENED


async def test_a_rewrap_is_under_the_version_in_use_and_keeps_what_is_bound() -> None:
    world, bound = World(), {"context": b64(b"c")}
    sealed = await world.encrypt(b"x", **bound)
    world.ring.held["acme", "orders"].rotate()
    made = await world.data("POST", "transit/rewrap/orders", {"ciphertext": sealed, "plaintext": None, **bound})
    assert set(made) == {"ciphertext", "key_version"} and made["key_version"] == 2
    assert await world.decrypt(made["ciphertext"], **bound) == b"x"
    assert await world.error("POST", "transit/rewrap/orders", {"ciphertext": sealed}) == NOT_OPENED


async def test_a_batch_tells_of_each_item_in_its_place() -> None:
    world = World()
    items = [{"plaintext": b64(b"a"), "reference": "r"}, {"plaintext": "*"}, {}, 7, {"plaintext": "", "key_version": 9}]
    status, answer = await world.ask("POST", "transit/encrypt/orders", {"plaintext": None, "batch_input": items})
    assert status == 400 and answer["warnings"] is None
    good, *bad = answer["data"]["batch_results"]
    assert good["reference"] == "r" and await world.decrypt(good["ciphertext"]) == b"a"
    assert [item["error"] for item in bad] == [
        "plaintext: not base64",
        "missing plaintext to encrypt",
        "not an object",
        "requested version for encryption is higher than the latest key version",
    ]
    assert not any("ciphertext" in item for item in bad)
    opened = {"batch_input": [{"ciphertext": good["ciphertext"]}, {"ciphertext": "x"}], "ciphertext": None}
    for code, status in ((None, 400), (207, 207), ("207", 207), (99, 400)):
        given_code = {} if code is None else {"partial_failure_response_code": code}
        said, answer = await world.ask("POST", "transit/decrypt/orders", opened | given_code)
        assert said == status
        assert [set(item) for item in answer["data"]["batch_results"]] == [
            {"plaintext", "reference"},
            {"error", "plaintext", "reference"},
        ]
    said, answer = await world.ask("POST", "transit/rewrap/orders", opened)
    assert said == 200 and [set(item) for item in answer["data"]["batch_results"]] == [
        {"ciphertext", "key_version", "reference"},
        {"error", "reference"},
    ]
    all_bad = {"batch_input": [{"ciphertext": "x"}], "partial_failure_response_code": 207}
    assert (await world.ask("POST", "transit/decrypt/orders", all_bad))[0] == 400


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("encrypt/orders", {}, "missing plaintext to encrypt"),
        ("encrypt/orders", {"plaintext": None}, "missing plaintext to encrypt"),
        ("encrypt/orders", {"plaintext": "*"}, "plaintext: not base64"),
        ("encrypt/orders", {"plaintext": "QQ"}, "plaintext: not base64"),
        ("encrypt/orders", {"plaintext": "\u00e9"}, "plaintext: not base64"),
        ("encrypt/orders", {"plaintext": 5}, "plaintext: text"),
        ("encrypt/orders", {"plaintext": "", "nonce": "AAAA"}, "nonce: is drawn here, never given"),
        (
            "encrypt/orders",
            {"plaintext": "", "convergent_encryption": True},
            "convergent_encryption: equal plaintexts never give equal ciphertexts here",
        ),
        ("encrypt/orders", {"plaintext": "", "key_version": -1}, "key_version: not below 0"),
        ("encrypt/orders", {"plaintext": "", "key_version": "x"}, "key_version: a whole number"),
        ("encrypt/orders", {"plaintext": "", "key_version": True}, "key_version: a whole number"),
        (
            "encrypt/orders",
            {"plaintext": "", "context": b64(bytes(BOUND_MAX_BYTES + 1))},
            f"context: at most {BOUND_MAX_BYTES} bytes, got {BOUND_MAX_BYTES + 1}",
        ),
        ("encrypt/orders", {"batch_input": []}, "missing batch input to process"),
        ("encrypt/orders", {"batch_input": "x"}, "failed to parse batch input: batch_input: a list"),
        (
            "encrypt/orders",
            {"batch_input": [{}] * (BATCH_MAX + 1)},
            f"batch_input: at most {BATCH_MAX} items, got {BATCH_MAX + 1}",
        ),
        ("encrypt/none", {"plaintext": ""}, "encryption key not found"),
        ("encrypt/..", {"plaintext": ""}, "encryption key not found"),
        ("encrypt/ORDERS", {"plaintext": ""}, "encryption key not found"),
        ("decrypt/orders", {}, "missing ciphertext to decrypt"),
        ("decrypt/orders", {"ciphertext": ""}, "missing ciphertext to decrypt"),
        ("decrypt/orders", {"ciphertext": "junk"}, "invalid ciphertext: no prefix"),
        ("decrypt/orders", {"ciphertext": "vault:v0:AAAA"}, "invalid ciphertext: no prefix"),
        ("decrypt/orders", {"ciphertext": "vault:v1:*"}, "invalid ciphertext: not base64"),
        ("decrypt/orders", {"ciphertext": "vault:v1:AAAA"}, "invalid ciphertext: not one of this mesh"),
        ("rewrap/orders", {"ciphertext": "vault:v1:" + b64(bytes(200))}, "invalid ciphertext: not one of this mesh"),
        ("datakey/wrapped/orders", {"bits": 100}, "invalid bit length: one of 128, 256, 512"),
        ("datakey/other/orders", {}, "Invalid path, must be 'plaintext' or 'wrapped'"),
        ("random", {"format": "x"}, 'unsupported encoding format; must be "hex" or "base64"'),
        ("random/0", {}, "'bytes' cannot be less than 1"),
        ("random", {"bytes": RANDOM_MAX_BYTES + 1}, f"'bytes' should be less than {RANDOM_MAX_BYTES}"),
        ("random/seal/8", {}, "source: only platform is served"),
    ],
)
async def test_bad_input_is_refused_by_name(path: str, body: dict[str, Any], said: str) -> None:
    assert await World().error("POST", f"transit/{path}", body) == (400, said)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{bad", "not well-formed UTF-8 JSON"),
        (b"[]", "not an object"),
        (b'{"plaintext": "", "plaintext": ""}', "duplicate keys"),
        (b"\xff", "not well-formed"),
        (b'{"x": 1.5}', "only integers"),
        (b"[" * 1_000, "nested deeper"),
        (b'{"plaintext": "\\ud800"}', "not well-formed"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    status, answer = await World().raw("POST", "transit/encrypt/orders", body)
    assert status == 400 and said in answer["errors"][0], answer


async def test_a_field_that_nobody_knows_is_ignored_and_named() -> None:
    body = {"plaintext": b64(b"x"), "nosuch": {"a": [1]}, "more": 2}
    status, answer = await World().ask("POST", "transit/encrypt/orders", body)
    assert status == 200
    assert answer["warnings"] == ["Endpoint ignored these unrecognized parameters: [more nosuch]"]


@pytest.mark.parametrize(
    ("why", "status"),
    [
        (Refused("restricted", "this service is suspended or revoked"), 403),
        (Unavailable("expired", "the lease has run out"), 503),
        (Unavailable("budget-spent", "spent"), 429),
    ],
)
async def test_while_keys_may_not_be_used_every_operation_says_so(why: KeymeshError, status: int) -> None:
    world = World()
    sealed = await world.encrypt(b"x")
    world.ring.held["acme", "orders"].why = why
    asked: list[tuple[str, dict[str, Any]]] = [
        ("encrypt/orders", {"plaintext": ""}),
        ("encrypt/orders", {"batch_input": [{"plaintext": ""}]}),
        ("decrypt/orders", {"ciphertext": sealed}),
        ("decrypt/orders", {"batch_input": [{"ciphertext": sealed}, {"ciphertext": "x"}]}),
        ("rewrap/orders", {"ciphertext": sealed}),
        ("datakey/plaintext/orders", {}),
    ]
    for path, body in asked:
        said, words = await world.error("POST", f"transit/{path}", body)
        assert said == status and why.message in words, path
    assert await world.encrypt(b"y", key="mail")
    world.ring.held["acme", "orders"].why = None
    assert await world.decrypt(sealed) == b"x"


async def test_random_bytes_in_both_forms_and_by_both_ways_to_ask() -> None:
    world = World()
    for path, body, size in (("random", None, 32), ("random/16", {}, 16), ("random", {"bytes": "8"}, 8)):
        drawn = (await world.data("POST", f"transit/{path}", body))["random_bytes"]
        assert len(base64.b64decode(drawn)) == size
    assert len((await world.data("PUT", "transit/random/platform/4", {"format": "hex"}))["random_bytes"]) == 8
