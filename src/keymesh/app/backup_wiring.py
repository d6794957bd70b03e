"""What the backups of a Registry and of a Core share: keeper, task, routes, metrics.

Which line, and of what, is said in ``backup_registry`` and ``backup_domain``: neither process carries the other's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from keymesh.access.admit import Action, admit
from keymesh.adapters.http_messages import Request, Response, Route, json_response
from keymesh.adapters.system import SystemEntropy
from keymesh.app.backup_files import open_store
from keymesh.app.backup_keeper import BackupKeeper, BackupView, Source
from keymesh.app.backup_writer import BackupWriter
from keymesh.app.config_backup import BackupConfig
from keymesh.app.layout import ASSIGNED
from keymesh.crypto.dsse import Ed25519Signer, PublicKey
from keymesh.crypto.recipients import parse_recipient
from keymesh.model.errors import Refused
from keymesh.model.ids import KeyId

MEMORY_FILE: Final = "backup.json"


class BackupBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``full``: a full backup, whenever the last one was."""

    full: bool = False


def make_keeper(
    config: BackupConfig,
    source: Source,
    *,
    mesh: str,
    origin: str,
    signer: Ed25519Signer,
    keys: Callable[[], Mapping[KeyId, PublicKey]],
    directory: Path,
) -> BackupKeeper:
    """``keys``: whose signature on the line's manifests counts; ``directory``: where the process keeps its own."""
    writer = BackupWriter(
        open_store(config),
        mesh=mesh,
        origin=origin,
        domain=config.domain,
        recipients=[parse_recipient(text) for text in config.recipients],
        signer=signer,
        keys=keys,
        entropy=SystemEntropy(),
        now_ms=_wall_ms,
        memory=directory / MEMORY_FILE,
    )
    return BackupKeeper(writer, source, interval_s=config.interval_s, full_every_s=config.full_every_s, now_ms=_wall_ms)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def start_backups(
    keeper: BackupKeeper | None, metrics: CollectorRegistry, on_end: Callable[[asyncio.Task[None]], None]
) -> list[asyncio.Task[None]]:
    """The schedule, as a task that the process cancels at its end; nothing where there are no backups."""
    if keeper is None:
        return []
    metrics.register(BackupCollector(keeper))
    task = asyncio.create_task(keeper.run())
    task.add_done_callback(on_end)
    return [task]


# --- what is asked of it ---------------------------------------------------------------------------------------------


def backup_routes(keeper: BackupKeeper | None) -> list[Route]:
    """``POST /v1/backups``: one now.  ``GET /v1/backups``: where they stand.  For operators."""

    def is_operator(request: Request) -> bool:
        return admit(None, Action.MESH_READ, identity=request.identity, assigned=ASSIGNED).allowed

    def configured() -> BackupKeeper:
        if keeper is None:
            raise Refused("not-configured", "this process has no backup section", field="backup")
        return keeper

    async def create(request: Request) -> Response:
        body = request.json(BackupBody)
        await configured().once(full=body.full)
        return json_response(configured().view())

    async def show(request: Request) -> Response:
        return json_response(configured().view())

    return [
        Route(method="POST", path="/v1/backups", handler=create, allow=is_operator),
        Route(method="GET", path="/v1/backups", handler=show, allow=is_operator),
    ]


def backup_view(keeper: BackupKeeper | None) -> BackupView | None:
    """For status answers."""
    return None if keeper is None else keeper.view()


def backup_warnings(keeper: BackupKeeper | None) -> list[str]:
    """For /readyz: a process whose backups fail serves all the same."""
    return [] if keeper is None or not keeper.failing else [f"backups fail: {keeper.failing}"]


class BackupCollector(Collector):
    """Age, failures and position of one process's backups."""

    def __init__(self, keeper: BackupKeeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        view = self._keeper.view()
        age = "Age of the newest state that is known to be in the backup store."
        yield GaugeMetricFamily("keymesh_backup_age_seconds", age, self._keeper.age_s)
        failing = "1 where the last backup could not be made or the store is not what was written."
        yield GaugeMetricFamily("keymesh_backup_failing", failing, int(bool(view.failing)))
        yield GaugeMetricFamily("keymesh_backup_index", "Log index of the newest backup.", view.index)
        yield GaugeMetricFamily("keymesh_backup_missing_blobs", "Wrapped keys nobody could give.", view.missing)
        family = CounterMetricFamily("keymesh_backup_failures", "Failed turns by code.", labels=["code"])
        for code, count in sorted(self._keeper.failures.items()):
            family.add_metric([code], count)
        yield family
