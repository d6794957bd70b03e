"""A tenant whose root key is in AWS KMS, as this project serves it: used by two regions, then disabled by its owner."""

from __future__ import annotations

from pathlib import Path

from tests.integration.mesh.live import FILES, TIMING, LiveMesh, until
from tests.servers.aws import ACCOUNT, AwsServer

TENANT = "awsrooted"
REGIONS = ("us-east", "us-west")
PULL_BOUND_S = TIMING.l1_probe_ms / 1000 + 10


async def test_disabled_at_aws_and_the_tenant_closes(mesh: LiveMesh, tmp_path: Path) -> None:
    """The owner disables the key and tells nobody: every region closes; enabled again, what was sealed opens."""
    aws = AwsServer(tmp_path, "root")
    await aws.start()
    try:
        for region in REGIONS:
            aws.give(mesh.layout.core(region), TENANT, "root")
        await mesh.cli(
            "tenant", "create", TENANT, "--home", REGIONS[0], "--regions", ",".join(REGIONS),
            "--l1", f"aws-kms:{aws.arn('root')}",
        )  # fmt: skip
        shown = await mesh.cli("tenant", "show", TENANT)
        assert (shown["bindings"][0]["provider"], shown["bindings"][0]["url"]) == ("aws-kms", aws.arn("root"))
        await mesh.cli("service", "create", f"{TENANT}/{FILES}")
        door = await mesh.door(REGIONS[0], TENANT)
        blob, key = await door.minted()

        await aws.ring.suspend(ACCOUNT, "root", "DisableKey")
        for region in REGIONS:
            await mesh.reaches(region, TENANT, "closed", within_s=PULL_BOUND_S)
        assert await door.refusal(blob) != ""
        assert (await mesh.status(REGIONS[0]))["tenants"][TENANT]["loaded"] == 0

        await aws.ring.resume(ACCOUNT, "root", "EnableKey")

        async def serves() -> bool:
            return not await door.refusal(blob)

        await until(serves, "the tenant serving again")
        assert await door.opened(blob) == key
    finally:
        await mesh.cli("suspend", f"tenant:{TENANT}", "-o", tmp_path / "cert.json")
        await aws.stop()
