"""How a root key in a PKCS#11 token is named on the command line, and what a binding records of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from keymesh.adapters.l1_providers import descriptor_of
from keymesh.adapters.pkcs11_descriptor import Pkcs11Descriptor, Tokens
from keymesh.adapters.pkcs11_l1 import Pkcs11L1
from keymesh.app.l1_pkcs11 import parse_pkcs11
from keymesh.model.errors import Refused


def test_token_and_key() -> None:
    assert parse_pkcs11("pkcs11:token=customer;object=root") == Pkcs11Descriptor(
        provider="pkcs11",
        key="root",
        token="customer",
        serial="",
        replicas={"pkcs11": "pkcs11:token=customer"},
        ca_pem="",
    )


def test_percent_encoding_order_and_serial() -> None:
    made = parse_pkcs11("pkcs11:object=Root%20%3b1;serial=ce32;token=M%C3%BCnchen")
    assert (made.key, made.token, made.serial) == ("Root ;1", "München", "ce32")
    assert made.replicas == {"pkcs11": "pkcs11:token=M%C3%BCnchen;serial=ce32"}
    assert made.replica_for("anywhere") == "pkcs11"


@pytest.mark.parametrize(
    ("uri", "field"),
    [
        ("pkcs11:", "l1"),
        ("pkcs11", "l1"),
        ("pkcs11:token=a", "l1"),
        ("pkcs11:object=a", "l1"),
        ("pkcs11:token=a;object=b;token=c", "l1"),
        ("pkcs11:token=a;object=b;", "l1"),
        ("pkcs11:token=a;object=b;slot-id=1", "l1"),
        ("pkcs11:token=a;object=b?module-path=/lib.so", "l1"),
        ("pkcs11:token=a;object=b?pin-value=1234", "l1"),
        ("pkcs11:token=a;object=b;pin-value=1234", "l1"),
        ("pkcs11:token=;object=b", "l1.token"),
        ("pkcs11:token=a;object=%FF", "l1.object"),
        ("pkcs11:token=a%00;object=b", "l1.token"),
        ("pkcs11:token=a;object=b;serial=", "l1.serial"),
        (f"pkcs11:token={'a' * 33};object=b", "token"),
        (f"pkcs11:token=a;object={'b' * 101}", "key"),
        (f"pkcs11:token=a;object={'b' * 1001}", "l1"),
    ],
)
def test_bad_names_say_which_part_and_repeat_no_pin(uri: str, field: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_pkcs11(uri)
    assert refused.value.field == field
    assert "1234" not in refused.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "openbao"},
        {"replicas": {}},
        {"replicas": {"eu": "pkcs11:token=a"}},
        {"ca_pem": "x"},
        {"token": ""},
        {"key": "a\n"},
        {"serial": "s" * 33},
    ],
    ids=str,
)
def test_a_recorded_descriptor_is_checked_before_use(tmp_path: Path, change: dict[str, object]) -> None:
    good = msgspec.to_builtins(parse_pkcs11("pkcs11:token=customer;object=root"))
    tokens = Tokens(tmp_path)
    right = descriptor_of("pkcs11", good)
    assert isinstance(right, Pkcs11Descriptor)
    assert isinstance(tokens.open_tenants(right, "acme"), Pkcs11L1)
    wrong = descriptor_of("pkcs11", good | change)
    assert isinstance(wrong, Pkcs11Descriptor)
    with pytest.raises(Refused):
        tokens.open_tenants(wrong, "acme")
    for other in ({**good, "pin": "1234"}, {k: v for k, v in good.items() if k != "token"}):
        with pytest.raises(Refused):
            descriptor_of("pkcs11", other)
