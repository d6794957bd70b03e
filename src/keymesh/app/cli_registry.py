"""``keymesh registry init|migrate``."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from keymesh.adapters.sql_migrate import migrate
from keymesh.app.cli_common import emit, stdout
from keymesh.app.config import RegistryConfig
from keymesh.app.config_database import database_urls
from keymesh.app.config_file import load_config
from keymesh.app.control_logs import found, make_log
from keymesh.app.genesis_file import load_genesis
from keymesh.app.trust_file import load_trust
from keymesh.model.errors import Integrity, Refused


def run_migrate(args: argparse.Namespace) -> int:
    """Bring the database to this release's schema; a newer one is refused and left alone."""
    done = migrate(args.database or _urls_of(args.config))
    shown = {
        "ok": True,
        "database": done.database,
        "before": done.before,
        "after": done.after,
        "applied": list(done.applied),
    }
    steps = ", ".join(done.applied) or "nothing to do"
    emit(args, shown, lambda: stdout.print(f"{done.database}: schema {done.after} ({steps})", markup=False))
    return 0


def run_init(args: argparse.Namespace) -> int:
    """Begin the log with the mesh's first entry; one that has begun with it already stays as it is."""
    config = _config(args.config)
    genesis = load_genesis(Path(args.genesis))
    trust = load_trust(Path(config.identity.trust_file))
    if (genesis.entry.mesh, genesis.hash) != (config.mesh, trust.genesis):
        raise Integrity("foreign-mesh", "the first entry of another mesh than the trust file's", field="genesis")

    directory = Path(config.data_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def begin() -> tuple[bool, int]:
        log = make_log(config.log, mesh=config.mesh, directory=directory, may_found=True)
        try:
            return await found(log, genesis), (await log.heads())[0]
        finally:
            await log.close()

    made, index = asyncio.run(begin())
    shown = {"ok": True, "mesh": config.mesh, "founded": made, "index": index}
    said = "founded" if made else "has been founded before"
    emit(args, shown, lambda: stdout.print(f"{config.mesh}: the log {said}, index {index}", markup=False))
    return 0


def _urls_of(path: str) -> tuple[str, ...]:
    config = _config(path)
    if config.database is None:
        raise Refused.bad_field("database", "this Registry keeps its projection in its own file, and migrates that")
    return database_urls(config.database, Path(config.data_dir))


def _config(path: str) -> RegistryConfig:
    config = load_config(Path(path), "registry").config
    assert isinstance(config, RegistryConfig)
    return config
