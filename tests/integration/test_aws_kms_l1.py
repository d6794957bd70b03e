"""AWS KMS as a root key, against this project's own face: a no apart from silence, regions, what a Core was given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.servers.aws import ACCOUNT, AwsServer
from tests.unit.adapters.pki_world import N1, World

from keymesh.adapters.aws_kms_descriptor import AwsKmsDescriptor, open_tenants_aws
from keymesh.adapters.aws_kms_l1 import THROTTLED, AwsKmsL1
from keymesh.adapters.tls import Credentials
from keymesh.app.l1_aws import parse_aws_kms
from keymesh.compat.aws_records import Deletion, KeyRecord
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.model.errors import Integrity, Refused, Unavailable

E = bytes(range(32))
TENANT = "acme"


@pytest.fixture
async def aws(tmp_path: Path) -> AsyncIterator[AwsServer]:
    server = AwsServer(tmp_path, "root", "other")
    await server.start()
    (tmp_path / "core").mkdir()
    World().write(tmp_path / "core" / "tls.pem", N1)
    yield server
    await server.stop()


def opened(core: Path, descriptor: AwsKmsDescriptor, tenant: str = TENANT, region: str = "eu") -> AwsKmsL1:
    return open_tenants_aws(descriptor, region, Credentials(core / "tls.pem"), tenant)


async def test_every_no_is_a_no_and_all_else_is_silence(aws: AwsServer, tmp_path: Path) -> None:
    core = tmp_path / "core"
    user = aws.credential("use")
    aws.give(core, TENANT, "root", who=user)
    root = opened(core, parse_aws_kms(f"aws-kms:{aws.arn('root')}"))
    wrapped = await root.wrap(E)
    keys = aws.ring.held[ACCOUNT, "root"]

    async def said() -> str:
        try:
            assert await root.unwrap(wrapped) == E
        except (L1Denied, L1Unreachable) as no:
            return f"{type(no).__name__} {no.code}"
        return "opened"

    assert await said() == "opened"
    keys.why = Refused("restricted", "suspended")
    assert await said() == "L1Denied key-disabled"
    await aws.records.put_key(ACCOUNT, "root", KeyRecord(deletion=Deletion(at_ms=1, days=7)))
    assert await said() == "L1Denied key-state"
    keys.why = Unavailable("budget-spent", "spent")
    assert await said() == f"L1Unreachable {THROTTLED}"
    keys.why = Unavailable("expired", "no lease")
    assert await said() == "L1Unreachable kms-answer"
    keys.why = None
    aws.skew_ms = 10 * 60_000  # our clock is wrong, or theirs: nobody said no
    assert await said() == "L1Unreachable kms-answer"
    aws.skew_ms = 0
    aws.credentials[user.access_key_id] = replace(user, roles=frozenset({"admin"}))
    assert await said() == "L1Denied access-denied"
    aws.credentials[user.access_key_id] = user
    held = aws.ring.held.pop((ACCOUNT, "root"))
    assert await said() == "L1Denied no-key"
    aws.ring.held[ACCOUNT, "root"] = held
    assert await said() == "opened"
    await aws.stop()
    assert await said() == "L1Unreachable unreachable"
    await aws.start()
    assert await said() == "opened"
    await root.close()


async def test_a_wrap_is_bound_to_tenant_and_binding(aws: AwsServer, tmp_path: Path) -> None:
    core = tmp_path / "core"
    for tenant in (TENANT, "zebra"):
        aws.give(core, tenant, "root")
    descriptor = parse_aws_kms(f"aws-kms:{aws.arn('root')}")
    again = parse_aws_kms(f"aws-kms:{aws.arn('root')}")
    assert descriptor.binding != again.binding
    mine, other_binding = opened(core, descriptor), opened(core, again)
    other_tenant = opened(core, descriptor, "zebra")
    wrapped = await mine.wrap(E)
    assert await mine.unwrap(wrapped) == E
    for other in (other_binding, other_tenant):
        with pytest.raises(Integrity):
            await other.unwrap(wrapped)
    for one in (mine, other_binding, other_tenant):
        await one.close()


async def test_a_replica_opens_what_another_region_wrapped(aws: AwsServer, tmp_path: Path) -> None:
    """Each by its own ARN and endpoint; one account, one multi-region key."""
    west = AwsServer(tmp_path, region="eu-west-1", ring=aws.ring, records=aws.records)
    await west.start()
    url = f"aws-kms:eu={aws.arn('root')},us={west.arn('root')}"
    descriptor = parse_aws_kms(url)
    assert descriptor.replica_for("us") == "us"
    providers: dict[str, AwsKmsL1] = {}
    for region, server in (("eu", aws), ("us", west)):
        core = tmp_path / f"core-{region}"
        core.mkdir()
        World().write(core / "tls.pem", N1)
        file = server.give(core, TENANT, "root")
        given = json.loads(file.read_text())
        given["arns"] = [aws.arn("root"), west.arn("root")]
        file.write_text(json.dumps(given))
        providers[region] = opened(core, descriptor, region=region)
    wrapped = await providers["eu"].wrap(E)
    assert await providers["us"].unwrap(wrapped) == E
    assert await providers["eu"].unwrap(await providers["us"].wrap(E)) == E
    for one in providers.values():
        await one.close()
    await west.stop()


async def test_a_server_that_is_silent_holds_nothing_up(aws: AwsServer, tmp_path: Path) -> None:
    """It takes the connection and says nothing: the loop goes on, and the call ends."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    core, silent = tmp_path / "core", await asyncio.start_server(listen, "127.0.0.1", 0)
    aws.port = silent.sockets[0].getsockname()[1]
    aws.give(core, TENANT, "root")
    root = opened(core, parse_aws_kms(f"aws-kms:{aws.arn('root')}"))
    asking = asyncio.create_task(root.wrap(E))
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert not asking.done()
    with pytest.raises(L1Unreachable):
        await asking
    await root.close()
    silent.close()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"arns": []}, "replicas"),
        ({"chain": True}, "aws.json"),
        ({"secret_access_key": ""}, "aws.json"),
        ({"access_key_id": "", "secret_access_key": ""}, "aws.json"),
        ({"surprise": 1}, "aws.json"),
        ({"endpoint_url": "http://127.0.0.1:1"}, "aws.json: endpoint_url"),
        ({"ca_file": "../../tls.pem"}, "aws.json: ca_file"),
    ],
)
async def test_what_a_core_was_given_decides(
    aws: AwsServer, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    core = tmp_path / "core"
    file = aws.give(core, TENANT, "root")
    secret = json.loads(file.read_text())["secret_access_key"]
    descriptor = parse_aws_kms(f"aws-kms:{aws.arn('root')}")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(Refused) as refused:
        opened(core, descriptor)
    assert refused.value.field == field
    assert secret not in refused.value.message


async def test_a_new_access_key_and_a_withdrawn_pin_count_at_once(aws: AwsServer, tmp_path: Path) -> None:
    core, before = tmp_path / "core", aws.credential("use")
    file = aws.give(core, TENANT, "root", who=before)
    root = opened(core, parse_aws_kms(f"aws-kms:{aws.arn('root')}"))
    wrapped = await root.wrap(E)
    del aws.credentials[before.access_key_id]
    with pytest.raises(L1Unreachable):  # the face does not say whether the key or its secret is wrong
        await root.unwrap(wrapped)
    aws.give(core, TENANT, "root")
    assert await root.unwrap(wrapped) == E
    aws.give(core, TENANT, "other")
    for _ in range(2):
        with pytest.raises(Refused, match="only keys that this Core"):
            await root.unwrap(wrapped)
    file.unlink()
    with pytest.raises(Refused):
        await root.unwrap(wrapped)
    await root.close()


async def test_nothing_of_another_tenant_is_reached(aws: AwsServer, tmp_path: Path) -> None:
    core = tmp_path / "core"
    aws.give(core, TENANT, "root")
    descriptor = parse_aws_kms(f"aws-kms:{aws.arn('root')}")
    with pytest.raises(Refused):
        opened(core, descriptor, "zebra")
    with pytest.raises(Refused, match="only keys that this Core"):
        opened(core, parse_aws_kms(f"aws-kms:{aws.arn('other')}"))


ARN = "arn:aws:kms:eu-west-1:123456789012:key/mrk-0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "url",
    [
        "aws-kms:",
        "aws-kms:alias/root",
        "aws-kms:arn:aws:kms:eu-west-1:123456789012:alias/root",
        "aws-kms:arn:aws:s3:eu-west-1:123456789012:key/1",
        f"aws-kms:{ARN},{ARN}",
        f"aws-kms:eu={ARN},eu={ARN}",
        f"aws-kms:eu={ARN},us={ARN.replace('0123456789abcdef', 'f' * 16)}",
        f"aws-kms:eu={ARN},us={ARN.replace('123456789012', '210987654321')}",
        f"aws-kms:eu={ARN.replace('mrk-', '')},us={ARN.replace('mrk-', '').replace('eu-west-1', 'us-east-1')}",
        f"aws-kms:No Region={ARN}",
        "aws-kms:" + "x" * 9_000,
    ],
)
def test_names_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        parse_aws_kms(url)


def test_names_are_read() -> None:
    one = parse_aws_kms(f"aws-kms:{ARN}")
    assert (one.replicas, one.key) == ({"eu-west-1": ARN}, ARN.rpartition("/")[2])
    assert one.replica_for("us-east") == "eu-west-1"
