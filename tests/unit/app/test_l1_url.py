"""How a customer's root key is named on the command line, and what becomes of the name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.app.founded import founded

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.app import customer_kms
from keymesh.app.admin_client import AdminClient
from keymesh.app.enrol import sidecar_client
from keymesh.app.l1_url import CREDENTIALS_ENV, known_kms, parse_l1, resolve_l1
from keymesh.core.l1 import ProviderDescriptor
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable

pytestmark = pytest.mark.usefixtures("template")


def test_a_directory_and_a_key() -> None:
    name = parse_l1("kms:/some/where#root", ())
    assert (name.directory, name.key) == (Path("/some/where"), "root")
    assert parse_l1("kms:rel#k", ()).directory == Path("rel")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kms:",
        "kms:dir",
        "kms:#key",
        "kms:dir#",
        "kms:dir#Key",
        "kms:dir#a#b",
        "kms:dir#../x",
        "root",
        "http://h:1/keys/k",
        "https://h:1",
        "https://h:1/keys/",
        "https://h:1/keys/k/x",
        "https://h:1/keys/k?x=1",
        "https://h:1/keys/k#f",
        "https://h:1/other/k",
        "aws-kms://x",
    ],
)
def test_other_forms_are_refused(url: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_l1(url, ())
    assert refused.value.field == "l1"


def test_an_address_alone_needs_a_directory_that_knows_it(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        parse_l1("https://h:1/keys/k", [tmp_path, tmp_path / "absent"])
    assert refused.value.code == "not-found"


def test_where_a_kms_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CREDENTIALS_ENV, raising=False)
    own = tmp_path / "own"
    assert known_kms(own) == [own]
    monkeypatch.setenv(CREDENTIALS_ENV, str(tmp_path / "env"))
    assert known_kms(own, str(tmp_path / "given")) == [tmp_path / "given", tmp_path / "env", own]


@asynccontextmanager
async def mesh_and_kms() -> AsyncIterator[AdminClient]:
    """The mesh's own development KMS serves; nothing else does."""
    with founded() as (layout, plan):
        async with customer_kms.running(layout.customer_kms, dict.fromkeys(plan.regions, 0)):
            async with AdminClient(layout, plan) as client:
                yield client


async def test_without_a_name_a_key_is_made_in_the_meshs_own_kms() -> None:
    async with mesh_and_kms() as client:
        made = await resolve_l1(client, None, default_key="acme", regions=["us-east"])
        found = await resolve_l1(client, None, default_key="acme", regions=["us-east"])  # made once, then found
        for one in (made, found):
            descriptor = strict_json.convert(one.descriptor, ProviderDescriptor)
            descriptor.check()
            assert (descriptor.key, list(descriptor.replicas)) == ("acme", ["us-east"])
            assert one.binding_id.startswith("acme-")
        elsewhere = await resolve_l1(client, None, default_key="acme", regions=["mars"])
        assert sorted(elsewhere.descriptor["replicas"]) == ["eu-central", "us-east", "us-west"]
        assert len({made.binding_id, found.binding_id, elsewhere.binding_id}) == 3


async def test_a_named_key_must_exist_and_may_be_named_by_its_address() -> None:
    async with mesh_and_kms() as client:
        directory = client.layout.customer_kms
        with pytest.raises(Refused) as refused:
            await resolve_l1(client, f"kms:{directory}#absent", default_key="x", regions=[])
        assert refused.value.code == "no-such-key"
        async with OwnerClient.open(directory) as owner:
            await owner.create("root")
            url = f"{owner.replicas['us-west']}/keys/root"
        by_address = await resolve_l1(client, url, default_key="x", regions=["us-west"])
        by_name = await resolve_l1(client, f"kms:{directory}#root", default_key="x", regions=["us-west"])
        assert by_address.descriptor == by_name.descriptor
        with pytest.raises(Refused):
            await resolve_l1(client, f"kms:{directory}/absent#root", default_key="x", regions=[])


async def test_a_mesh_that_does_not_run_is_unavailable_and_its_regions_are_named() -> None:
    with founded() as (layout, plan):
        async with AdminClient(layout, plan) as client:
            for target in ("registry", "us-east"):
                with pytest.raises(Unavailable):
                    await client.call("GET", "/v1/status", target=target, timeout_s=2)
            with pytest.raises(Refused, match="eu-central, us-east, us-west"):
                sidecar_client(client, "mars")
            with pytest.raises(Unavailable):
                await sidecar_client(client, "us-east").request("GET", "/v1/identities")
