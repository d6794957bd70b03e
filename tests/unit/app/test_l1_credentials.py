"""A customer's credential goes to that customer's servers, for that customer's tenant, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
from tests.servers.catcher import Catcher, catching
from tests.servers.openbao import CustomerCa, give_l1

from keymesh.adapters.l1_credentials import CA_FILE, ENDPOINTS_FILE, allowed_trust, l1_directory
from keymesh.adapters.l1_providers import descriptor_of, open_l1, open_seal_key
from keymesh.adapters.openbao_descriptor import OpenBaoDescriptor
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import L1Provider, L1Unreachable, ProviderDescriptor
from keymesh.model.errors import KeymeshError, Refused

CA: Final = CustomerCa.make("customer")
OTHER_CA: Final = CustomerCa.make("another")
A, B = "acme", "globex"


class Core:
    """Its directory: A's credentials under ``l1``, a seal's beside the identity, and a server that B has put up."""

    def __init__(self, directory: Path, catcher: Catcher) -> None:
        self.directory, self.catcher = directory, catcher
        self.credentials = Credentials(CA.issue(directory / "tls.pem", "core"))
        for where, name in ((give_l1(directory, A, CA.pem, catcher.url), "acme"), (directory, "seal")):
            write_ids(where / f"openbao-{name}.json", name)
            CA.issue(where / f"openbao-{name}.pem", name)

    def descriptor(self, login: str, **change: object) -> ProviderDescriptor:
        made = OpenBaoDescriptor(
            provider="openbao",
            key="root",
            mount="transit",
            replicas={"openbao": self.catcher.url},
            ca_pem=CA.pem,
            login=login,
        )
        return descriptor_of("openbao", msgspec.to_builtins(made) | change)

    def open(self, tenant: str, descriptor: ProviderDescriptor) -> L1Provider:
        return open_l1(descriptor, "eu", self.credentials, Tokens(self.directory), tenant=tenant)

    async def tried(self, tenant: str, login: str) -> str:
        """The code of the failure, which the catcher's answers make certain."""
        with pytest.raises(KeymeshError) as caught:
            provider = self.open(tenant, self.descriptor(login))
            try:
                await provider.wrap(b"e")
            finally:
                await provider.close()
        return caught.value.code


def write_ids(file: Path, name: str) -> None:
    file.touch(mode=0o600)
    file.write_text(json.dumps({"role_id": f"role-of-{name}", "secret_id": f"secret-of-{name}"}))


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    (tmp_path / "server").mkdir()
    async with catching(tmp_path / "server", CA) as catcher:
        (tmp_path / "core").mkdir()
        yield Core(tmp_path / "core", catcher)


@pytest.mark.parametrize("login", ["approle:acme", "approle:seal", "cert:acme", "cert:seal"])
@pytest.mark.parametrize("allowed", [False, True])
async def test_a_tenant_that_names_a_credential_of_somebody_elses_has_nothing_sent(
    core: Core, login: str, allowed: bool
) -> None:
    if allowed:  # B's own server is where B's own credentials may go, and still
        give_l1(core.directory, B, CA.pem, core.catcher.url)
    await core.tried(B, login)
    assert (core.catcher.connections, core.catcher.caught) == (0, b"")


async def test_the_owners_own_credential_is_sent(core: Core) -> None:
    await core.tried(A, "approle:acme")
    assert b"secret-of-acme" in core.catcher.caught  # so the catcher does catch what is sent
    assert b"seal" not in core.catcher.caught
    provider = open_seal_key(core.descriptor("approle:seal"), "eu", core.credentials, Tokens(core.directory))
    with pytest.raises(KeymeshError):
        await provider.wrap(b"e")
    await provider.close()
    assert b"secret-of-seal" in core.catcher.caught


@pytest.mark.parametrize("tenant", ["..", ".", "", "../acme", "acme/", "a\0b", "mesh", "Acme"])
async def test_a_name_that_is_no_tenants_opens_nothing(core: Core, tenant: str) -> None:
    with pytest.raises(Refused) as refused:
        core.open(tenant, core.descriptor("approle:acme"))
    assert refused.value.field == "tenant"
    with pytest.raises(Refused):
        l1_directory(core.directory, tenant)


@pytest.mark.parametrize("login", ["approle:acme", "cert:acme"])
@pytest.mark.parametrize("how", ["url", "one-of-two", "another-replica", "ca", "more-ca"])
async def test_even_its_owner_cannot_have_a_credential_sent_where_the_machine_does_not_say(
    core: Core, login: str, how: str
) -> None:
    url, elsewhere = core.catcher.url, "https://127.0.0.1:1"
    changes: dict[str, dict[str, object]] = {
        "url": {"replicas": {"openbao": elsewhere}},
        "one-of-two": {"replicas": {"openbao": f"{url},{elsewhere}"}},
        "another-replica": {"replicas": {"eu": url, "us": elsewhere}},
        "ca": {"ca_pem": OTHER_CA.pem},
        "more-ca": {"ca_pem": CA.pem + OTHER_CA.pem},
    }
    with pytest.raises(Refused) as refused:
        core.open(A, core.descriptor(login, **changes[how]))
    assert refused.value.field == ("ca_pem" if how in ("ca", "more-ca") else "replicas")
    assert core.catcher.connections == 0


@pytest.mark.parametrize("file", [ENDPOINTS_FILE, CA_FILE])
@pytest.mark.parametrize("how", ["absent", "directory", "wide", "garbage", "empty", "long", "more"])
async def test_without_the_machines_word_nothing_is_sent(core: Core, file: str, how: str) -> None:
    path = l1_directory(core.directory, A) / file
    match how:
        case "absent" | "directory":
            path.unlink()
            if how == "directory":
                path.mkdir()
        case "wide":
            path.chmod(0o644)
        case "long":
            path.write_text(path.read_text() + " " * 70_000)
        case "more" if file == ENDPOINTS_FILE:
            path.write_text(json.dumps({"urls": [core.catcher.url], "any": True}))
        case _:
            path.write_text("" if how == "empty" else "x")
    with pytest.raises(Refused) as refused:
        core.open(A, core.descriptor("approle:acme"))
    assert refused.value.field == file
    assert core.catcher.connections == 0


async def test_an_endpoint_that_is_withdrawn_gets_no_further_login(core: Core) -> None:
    provider = core.open(A, core.descriptor("approle:acme"))
    give_l1(core.directory, A, CA.pem, "https://127.0.0.1:1")
    with pytest.raises(L1Unreachable) as caught:
        await provider.wrap(b"e")
    assert (caught.value.code, core.catcher.connections) == ("credentials", 0)
    give_l1(core.directory, A, CA.pem, core.catcher.url)
    with pytest.raises(KeymeshError):
        await provider.wrap(b"e")
    await provider.close()
    assert b"secret-of-acme" in core.catcher.caught


def test_what_is_trusted_is_what_was_compared(tmp_path: Path) -> None:
    """Text around the certificates, and forms that only OpenSSL reads, do not come through."""
    given = give_l1(tmp_path, A, OTHER_CA.pem + CA.pem, "https://a:1", "https://b:2")
    hidden = OTHER_CA.pem.replace("BEGIN CERTIFICATE", "BEGIN TRUSTED CERTIFICATE").replace(
        "END CERTIFICATE", "END TRUSTED CERTIFICATE"
    )
    assert allowed_trust(given, ["https://b:2"], "note\n" + CA.pem + hidden).decode() == CA.pem


def test_no_connection_is_made_by_a_descriptor_that_is_none(tmp_path: Path) -> None:
    plain = ProviderDescriptor(provider="keymesh-kms", key="root", replicas={"eu": "https://a:1"}, ca_pem="")
    credentials = Credentials(CA.issue(tmp_path / "tls.pem", "core"))
    with pytest.raises(Refused) as refused:
        open_seal_key(plain, "eu", credentials, Tokens(tmp_path))
    assert refused.value.field == "provider"
