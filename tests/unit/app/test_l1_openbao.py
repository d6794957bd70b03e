"""How a root key in OpenBao is named on the command line, and what a binding records of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.servers.openbao import CustomerCa, give_l1

from keymesh.adapters.l1_providers import descriptor_of, open_l1
from keymesh.adapters.openbao_descriptor import OpenBaoDescriptor
from keymesh.adapters.openbao_l1 import OpenBaoL1
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.tls import Credentials
from keymesh.app.l1_openbao import parse_openbao
from keymesh.model.errors import Refused

CA = CustomerCa.make("customer")


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_text(CA.pem)
    return path


def test_one_endpoint_and_a_certificate(ca: Path) -> None:
    made = parse_openbao(f"openbao:https://bao.example:8200/transit/root?ca={ca}&cert=cores")
    assert made == OpenBaoDescriptor(
        provider="openbao",
        key="root",
        mount="transit",
        replicas={"openbao": "https://bao.example:8200"},
        ca_pem=CA.pem,
        login="cert:cores",
    )


def test_several_endpoints_a_deep_mount_and_a_role(ca: Path) -> None:
    url = f"openbao:https://a:1,https://b:2,https://[::1]:3/team/kms/Root_1?approle=cores&ca={ca}"
    made = parse_openbao(url)
    assert made.endpoints("openbao") == ("https://a:1", "https://b:2", "https://[::1]:3")
    assert (made.mount, made.key, made.login) == ("team/kms", "Root_1", "approle:cores")
    assert made.replica_for("anywhere") == "openbao"


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("openbao:", "l1"),
        ("openbao:https://a:1", "l1"),
        ("openbao:https://a:1/transit/root", "l1"),
        ("openbao:https://a:1/root?ca=CA&cert=c", "l1"),
        ("openbao:http://a:1/transit/root?ca=CA&cert=c", "l1"),
        ("openbao:https://a:1/transit/root?ca=CA&cert=c#x", "l1"),
        ("openbao:https://a:1/transit/root?ca=CA&cert=c&token=s.x", "l1"),
        ("openbao:https://a:1/transit/root?ca=CA&cert=c&cert=d", "l1"),
        ("openbao:https://a:1/transit/root?ca=CA&cert=c&approle=d", "l1"),
        ("openbao:https://a:1/transit/root?ca=CA", "l1"),
        ("openbao:https://a:1/transit/root?ca", "l1"),
        ("openbao:https://a/transit/root?ca=CA&cert=c", "l1.endpoint"),
        ("openbao:https://u:p@a:1/transit/root?ca=CA&cert=c", "l1.endpoint"),
        ("openbao:https://a:1,/transit/root?ca=CA&cert=c", "l1.endpoint"),
        ("openbao:https://a:1,http://b:2/transit/root?ca=CA&cert=c", "l1.endpoint"),
        ("openbao:https://a:1/../root?ca=CA&cert=c", "l1.mount"),
        ("openbao:https://a:1/transit//root?ca=CA&cert=c", "l1.mount"),
        ("openbao:https://a:1/transit/..?ca=CA&cert=c", "l1.key"),
        ("openbao:https://a:1/transit/ro%2Fot?ca=CA&cert=c", "l1.key"),
        ("openbao:https://a:1/transit/root?cert=c", "l1.ca"),
        ("openbao:https://a:1/transit/root?ca=&cert=c", "l1.ca"),
        ("openbao:https://a:1/transit/root?ca=CA.absent&cert=c", "l1.ca"),
        ("openbao:https://a:1/transit/root?ca=CA&cert=", "l1.cert"),
        ("openbao:https://a:1/transit/root?ca=CA&approle=../x", "l1.approle"),
    ],
)
def test_bad_names_say_which_part(ca: Path, url: str, field: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_openbao(url.replace("CA", str(ca)))
    assert refused.value.field == field


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff" * 9, b"x" * 20_000])
def test_a_ca_file_that_is_none_is_refused(ca: Path, content: bytes) -> None:
    ca.write_bytes(content)
    with pytest.raises(Refused) as refused:
        parse_openbao(f"openbao:https://a:1/transit/root?ca={ca}&cert=c")
    assert refused.value.field == "l1.ca"


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "keymesh-kms"},
        {"replicas": {}},
        {"replicas": {"openbao": "http://a:1"}},
        {"replicas": {"openbao": ",".join(["https://a:1"] * 9)}},
        {"replicas": {"Open Bao": "https://a:1"}},
        {"ca_pem": "ä"},
        {"ca_pem": ""},
        {"mount": "../sys"},
        {"key": "a/b"},
        {"login": "root"},
        {"login": "approle:../../x"},
        {"login": "token:x"},
    ],
    ids=str,
)
async def test_a_recorded_descriptor_is_checked_before_use(ca: Path, tmp_path: Path, change: dict[str, object]) -> None:
    credentials = Credentials(CA.issue(tmp_path / "tls.pem", "core"))
    CA.issue(give_l1(tmp_path, "acme", CA.pem, "https://a:1") / "openbao-cores.pem", "core")
    good = msgspec.to_builtins(parse_openbao(f"openbao:https://a:1/transit/root?ca={ca}&cert=cores"))
    provider = open_l1(descriptor_of("openbao", good), "eu", credentials, Tokens(tmp_path), tenant="acme")
    assert isinstance(provider, OpenBaoL1)
    await provider.close()
    with pytest.raises(Refused):
        open_l1(descriptor_of("openbao", good | change), "eu", credentials, Tokens(tmp_path), tenant="acme")
    for wrong in ({**good, "token": "s.x"}, {k: v for k, v in good.items() if k != "mount"}):
        with pytest.raises(Refused):
            descriptor_of("openbao", wrong)
    with pytest.raises(Refused):
        descriptor_of("keymesh-kms", good)


async def test_a_core_without_the_customers_certificate_says_which_file(ca: Path, tmp_path: Path) -> None:
    credentials = Credentials(CA.issue(tmp_path / "tls.pem", "core"))
    give_l1(tmp_path, "acme", CA.pem, "https://a:1")
    made = parse_openbao(f"openbao:https://a:1/transit/root?ca={ca}&cert=cores")
    with pytest.raises(Refused) as refused:
        open_l1(made, "eu", credentials, Tokens(tmp_path), tenant="acme")
    assert refused.value.field == "openbao-cores.pem"
    await open_l1(
        msgspec.structs.replace(made, login="approle:cores"), "eu", credentials, Tokens(tmp_path), tenant="acme"
    ).close()  # read at the login
