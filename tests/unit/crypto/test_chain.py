"""The exported chain: opens with L1 alone, and refuses whatever is missing, foreign or changed."""

from __future__ import annotations

import os
from typing import Any

import pytest
from msgspec.structs import replace

from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.chain import (
    Chain,
    ChainBinding,
    ChainL2,
    ChainL3,
    chain_from_json,
    chain_to_json,
    open_path,
    path_to,
)
from keymesh.crypto.kid import kid_of
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.wrap import seal_binding, seal_key
from keymesh.crypto.xaes import XaesKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import BindingId

PAGES = KeyPages(allow_unlocked=True)
E, L2, L3 = (bytes([n]) * 32 for n in (1, 2, 3))


def make(tenant: str = "acme") -> Chain:
    l2_kid, l3_kid = kid_of(L2), kid_of(L3)
    above = Subject(Level.L2, tenant, "eu", "l2", 1, l2_kid)
    below = Subject(Level.L3, tenant, "eu", "files", 4, l3_kid)
    binding = seal_binding(XaesKey(E), BindingId("b1"), b"wrapped-e", above, PAGES.put(bytearray(L2)), os.urandom(24))
    wrapped = seal_key(XaesKey(L2), l2_kid, below, PAGES.put(bytearray(L3)), os.urandom(24))
    return Chain(
        mesh="dev",
        tenant=tenant,
        domain="eu",
        bindings=(ChainBinding(id="b1", provider="keymesh-kms", descriptor={"key": "acme"}),),
        l2=(ChainL2(kid=l2_kid.hex(), version=1, binding_id="b1", blob=binding),),
        l3=(ChainL3(kid=l3_kid.hex(), version=4, service="files", parent_kid=l2_kid.hex(), blob=wrapped),),
    )


def test_a_chain_opens_with_l1_alone() -> None:
    chain = chain_from_json(chain_to_json(make()))
    path = path_to(chain, kid_of(L3).hex())
    assert path.wrapped_e == b"wrapped-e"
    with open_path(chain, path, E, PAGES) as opened:
        assert bytes(opened.reveal()) == L3


def test_nothing_of_a_key_is_in_the_file() -> None:
    raw = chain_to_json(make())
    for key in (E, L2, L3):
        assert key not in raw
        assert key.hex().encode() not in raw


@pytest.mark.parametrize("one_time", [b"", b"\1" * 31, b"\2" * 32])
def test_another_l1_opens_nothing(one_time: bytes) -> None:
    chain = make()
    with pytest.raises(Integrity):
        open_path(chain, path_to(chain, kid_of(L3).hex()), one_time, PAGES)


def test_wraps_of_another_tenant_domain_or_version_do_not_open() -> None:
    chain = make()
    for changed in (
        replace(chain, tenant="other"),
        replace(chain, domain="us"),
        replace(chain, l2=(replace(chain.l2[0], version=2),)),
        replace(chain, l3=(replace(chain.l3[0], version=5),)),
        replace(chain, l3=(replace(chain.l3[0], service="other"),)),
    ):
        with pytest.raises(Integrity):
            open_path(changed, path_to(changed, kid_of(L3).hex()), E, PAGES)


def test_a_missing_link_is_named() -> None:
    chain = make()
    with pytest.raises(Unavailable):
        path_to(chain, "0" * 32)
    for changed in (replace(chain, l2=()), replace(chain, bindings=())):
        with pytest.raises(Integrity) as caught:
            path_to(changed, kid_of(L3).hex())
        assert caught.value.code == "chain-link"


def plain() -> dict[str, Any]:
    value: dict[str, Any] = strict_json.loads(chain_to_json(make()), max_bytes=10**6)
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"format": "keymesh/chain/2"},
        {"tenant": "ACME"},
        {"tenant": "mesh"},
        {"domain": ""},
        {"more": 1},
        {"l2": [{"kid": "x"}]},
        {"l2": plain()["l2"] * 2},
        {"l3": [plain()["l3"][0] | {"kid": plain()["l2"][0]["kid"]}]},
        {"l3": [plain()["l3"][0] | {"kid": "zz"}]},
        {"l3": [plain()["l3"][0] | {"parent_kid": "zz"}]},
        {"l3": [plain()["l3"][0] | {"blob": "*"}]},
        {"bindings": [{"id": "", "provider": "p", "descriptor": {}}]},
    ],
)
def test_a_malformed_chain_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        chain_from_json(strict_json.dumps(plain() | change))


def test_junk_is_refused() -> None:
    for raw in (b"", b"[]", b"{}", b"\xff", chain_to_json(make())[:-1], chain_to_json(make()) + b"x"):
        with pytest.raises(KeymeshError):
            chain_from_json(raw)
