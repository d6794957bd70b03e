"""A region sealed by shares: nothing works before enough of its own shares came, everything after; sealed again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Cli:
    """The command line on one mesh directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *words: str) -> tuple[int, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "keymesh.app.cli", *words, "--dir", str(self.directory), "--json"],
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def cli() -> Iterator[Cli]:
    directory = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    cli = Cli(directory / "m")
    try:
        timing = ("--heartbeat", "300ms", "--ttl", "30s")
        code, _ = cli("up", "--regions", "us-east,us-west", "--shares", "2/3", *timing, "--allow-unlocked-memory")
        assert code == 0
        yield cli
    finally:
        cli("down")
        shutil.rmtree(directory)


def test_shares_open_a_region_and_nothing_less_does(cli: Cli) -> None:
    def share(region: str, n: int) -> tuple[str, str]:
        return "--share", str(cli.directory / "keys" / "shares" / region / f"share-{n}.txt")

    def sealed() -> dict[str, bool]:
        return {name: region["sealed"] for name, region in cli("status")[1]["regions"].items()}

    assert sealed() == {"us-east": True, "us-west": True}
    assert cli("region", "unseal", "us-east", *share("us-east", 1))[0] == 1
    assert cli("region", "unseal", "us-east", *share("us-east", 1), *share("us-west", 2))[0] == 1
    assert cli("region", "unseal", "us-east", *share("us-west", 1), *share("us-west", 2))[0] == 4
    assert sealed()["us-east"]
    for region in ("us-east", "us-west"):
        assert cli("region", "unseal", region, *share(region, 3), *share(region, 1))[0] == 0
    assert sealed() == {"us-east": False, "us-west": False}
    assert cli("region", "unseal", "us-east", *share("us-east", 1), *share("us-east", 2))[0] == 1
    assert cli("tenant", "create", "acme", "--home", "us-east")[0] == 0

    assert cli("region", "seal", "us-east")[0] == 0
    regions = cli("status")[1]["regions"]
    assert regions["us-east"]["sealed"]
    assert regions["us-east"]["tenants"]["acme"]["mode"] == "sealed"
    assert regions["us-east"]["keys_in_memory"] == 0
    assert cli("region", "unseal", "us-east", *share("us-east", 2), *share("us-east", 3))[0] == 0
    assert not sealed()["us-east"]
