"""What a Core's snapshot is taken of: the rows that its records really hold, tenant by tenant."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core")


async def take_snapshot(core: CoreProcess) -> None:
    """Answer the machine's ``TakeSnapshot``; it asks again where nothing came."""
    await asyncio.sleep(0)
    states = []
    for namespace, holding in core.shell.state.tenants.items():
        if holding.applied is not None:
            states.append((namespace, _recorded_rows(core, namespace)))
    states.append((MESH_NAMESPACE, _recorded_rows(core, MESH_NAMESPACE)))
    try:
        taken = await core.keys.cascades.snapshot(states)
    except KeymeshError as failed:  # sealed, or a store that does not answer
        log.warning("snapshot not taken", extra={"fields": {"reason": failed.code}})
        return
    core.shell.feed(taken)


def _recorded_rows(core: CoreProcess, namespace: str) -> dict[str, bytes]:
    try:
        record = core.records.read(f"ns/{namespace}")
    except (Refused, Integrity):  # damaged: an empty state shows as drift
        return {}
    return {} if record is None else dict(record.rows)
