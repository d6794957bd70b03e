"""Backups into buckets with Object Lock, on moto's S3 server over TLS: written, verified, attacked.  It is not AWS."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.servers.s3 import S3Server, s3_server
from tests.unit.app.backup_world import OFFICER, World
from tests.unit.app.test_backup_cli import write_key

from keymesh.adapters.backup_s3 import S3Endpoint, S3Store
from keymesh.app import cli
from keymesh.app.backup_files import public_of
from keymesh.app.backup_verify import verify_domain, verify_registry
from keymesh.app.trust_file import TrustFile, save_trust
from keymesh.control import backup_manifest as bm
from keymesh.control.rows import RootRow
from keymesh.model.errors import Integrity


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class Bucketed(World):
    """A world whose stores are buckets, one for each domain."""

    def __init__(self, root: Path, server: S3Server, name: str) -> None:
        super().__init__(root)
        self.server, self.name = server, name
        self.secret = root / "secret"
        self.secret.write_text("secret")
        self.secret.chmod(0o600)
        for domain in ("registry", "us"):
            server.bucket(f"{name}-{domain}")

    def bucket(self, domain: str) -> S3Store:
        return S3Store(
            [S3Endpoint(self.server.url, self.server.ca_file, "writer", self.secret)],
            bucket=f"{self.name}-{domain or 'registry'}",
            prefix="backups/",
            region="us-east-1",
            retention_days=7,
            timeout_s=10,
            now=lambda: dt.datetime.now(dt.UTC),
        )

    def config(self, domain: str) -> Path:
        """As a role has it."""
        path = self.root / f"{domain or 'registry'}.toml"
        path.write_text(
            f"""
            [backup]
            recipients = ["{public_of(OFFICER)}"]
            domain = "{domain}"
            [backup.s3]
            bucket = "{self.name}-{domain or "registry"}"
            prefix = "backups/"
            retention_days = 7
            [[backup.s3.endpoints]]
            url = "{self.server.url}"
            ca_file = "{self.server.ca_file}"
            username = "auditor"
            password_file = "secret"
            """
        )
        return path


@pytest.fixture
async def world(tmp_path: Path, s3: S3Server, request: pytest.FixtureRequest) -> AsyncIterator[Bucketed]:
    made = Bucketed(tmp_path, s3, f"b{abs(hash(request.node.name)) % 10**8}")
    made.now = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    made.mesh.furnished()
    await made.sync()
    await made.give("us-east", "acme")
    yield made
    await made.close()


def object_of(world: Bucketed, domain: str, name: str) -> dict[str, str]:
    return {"Bucket": f"{world.name}-{domain or 'registry'}", "Key": f"backups/{name}"}


async def test_a_mesh_is_backed_up_into_buckets_and_verified_from_them(
    world: Bucketed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (world.registry(world.bucket(""), memory=name, call_max_s=60) for name in ("one", "two"))
    await asyncio.gather(one.once(), two.once())
    world.mesh.restrict("suspend", "tenant:acme")
    index = await world.sync()
    await asyncio.gather(one.once(), two.once())
    await world.node("us-east", store=world.bucket("us")).once()
    root = RootRow(version=1, keys={str(k): v for k, v in world.mesh.pins.root_keys.items()}, threshold=2)
    trust = TrustFile(mesh="m1", root=root, genesis=world.mesh.mesh.head.hash)
    save_trust(world.root / "trust.json", trust)
    write_key(world.root / "officer.pem", OFFICER)
    monkeypatch.chdir(world.root)
    words = ["backup", "verify", "--root", "trust.json", "--key", "officer.pem", "--at-least", str(index), "--json"]
    assert cli.main([*words, "--config", str(world.config("us")), "--config", str(world.config(""))]) == 0
    shown: Any = json.loads(capsys.readouterr().out)
    assert (shown["ok"], shown["index"], shown["blobs"]) == (True, index, 2)
    assert shown["manifests"] == 2 + 1 or shown["manifests"] == 3 + 1  # two raced for the first one


async def test_what_an_administrator_does_to_a_bucket_shows_and_costs_no_byte(world: Bucketed) -> None:
    keeper = world.registry(world.bucket(""))
    await keeper.once()
    await world.node("us-east", store=world.bucket("us")).once()
    admin = world.server.admin()
    first = object_of(world, "", bm.manifest_name("registry", 1))
    whole = admin.get_object(**first)["Body"].read()
    _, replayed = verify_registry(world.bucket(""), world.opener())
    admin.delete_object(**first)
    with pytest.raises(Integrity) as failed:
        verify_registry(world.bucket(""), world.opener())
    assert failed.value.code == "changed-object"
    with pytest.raises(Integrity):
        await world.registry(world.bucket("")).once()
    versions = admin.list_object_versions(Bucket=first["Bucket"], Prefix=first["Key"])["Versions"]
    assert len(versions) == 1
    assert admin.get_object(**first, VersionId=versions[0]["VersionId"])["Body"].read() == whole
    chunk = next(
        line["Key"]
        for line in admin.list_objects_v2(Bucket=f"{world.name}-us")["Contents"]
        if "/chunks/" in line["Key"]
    )
    admin.put_object(Bucket=f"{world.name}-us", Key=chunk, Body=b"forged")
    with pytest.raises(Integrity) as failed:
        verify_domain([world.bucket("us")], world.opener(), replayed)
    assert failed.value.code == "changed-object"
