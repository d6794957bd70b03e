"""A key store of release 0.1 in a running mesh: it works as it is, and a task migrates it, whatever dies meanwhile."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from tests.integration.mesh.live import FILES, US, LiveMesh, until, using

from keymesh.model.errors import KeymeshError

REGION = "us-east"


def laid_out_as_by_release_0_1(path: Path) -> None:
    """Schema 2 back to schema 1, by hand."""
    db = sqlite3.connect(path)
    db.executescript(
        """
        DROP VIEW keys;
        CREATE TABLE keys (
          kid TEXT PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
          revision INTEGER NOT NULL, digest TEXT NOT NULL, ivk_kid TEXT NOT NULL, blob BLOB NOT NULL
        ) STRICT;
        INSERT INTO keys (kid, namespace, key, version, revision, digest, ivk_kid, blob)
          SELECT kid, namespace, key, version, revision, digest, ivk_kid, blob FROM key_versions;
        CREATE INDEX keys_of ON keys (namespace, key, version);
        DROP TABLE key_versions;
        DROP TABLE store;
        """
    )
    db.close()


async def test_an_old_key_store_is_migrated_under_use_and_kill_9(mesh: LiveMesh) -> None:
    here, away = await mesh.door(REGION, US, FILES), await mesh.door("us-west", US, FILES)
    blob, key = await here.mint()
    directory = mesh.layout.core(REGION)
    await mesh.hold(f"core-{REGION}")
    laid_out_as_by_release_0_1(directory / "keystore.db")
    (directory / "keystore.json").unlink()
    mesh.release(f"core-{REGION}")
    await mesh.settled()
    assert (await mesh.status(REGION))["keystore"] == {"code": "ok", "schema": 1}
    here = await mesh.door(REGION, US, FILES)
    assert await here.open(blob) == key
    assert (await mesh.cli("region", "show", REGION))["keystore_newest"] == 2

    async with using(here, away) as uses:
        await mesh.cli("region", "migrate-keystore", REGION, "--no-wait")
        mesh.kill(f"core-{REGION}")

        async def migrated() -> bool:
            try:
                shown: dict[str, Any] = (await mesh.status(REGION))["keystore"]
            except KeymeshError:
                return False
            return shown == {"code": "ok", "schema": 2}

        await until(migrated, "the migration after a kill -9")
        await mesh.settled()
    assert [use.wrong for use in uses] == [[], []]
    here = await mesh.door(REGION, US, FILES)
    assert await here.open(blob) == key
    shown = await mesh.cli("region", "show", REGION)
    assert (shown["keystore_schema"], shown["keystore_wanted"]) == (2, 2)
    await mesh.cli("key", "rotate", f"service:{US}/{FILES}")
