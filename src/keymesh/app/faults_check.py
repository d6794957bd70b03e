"""Whether what a client was told is still so: its commands in their places, its blobs open to their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keymesh.app.admin_client import AdminClient
from keymesh.app.faults_load import Door
from keymesh.app.faults_record import Done, Record, sample
from keymesh.model.errors import Refused

BLOBS_CHECKED: Final = 20


async def check_record(client: AdminClient, record: Record, doors: Sequence[Door]) -> None:
    """Look up every command acknowledged since the last time, and open a sample of all blobs at every door."""
    for done in record.unchecked():
        await _look_up(client, record, done)
    record.checked = len(record.commands)
    for (tenant, service), kept in sorted(record.minted.items()):
        for door in doors:
            if (door.tenant, door.service) == (tenant, service):
                for blob, key in sample(kept, BLOBS_CHECKED):
                    if await door.open(blob) != key:
                        record.violations.append(f"{door.region} opened a blob of {tenant} to another key")


async def _look_up(client: AdminClient, record: Record, done: Done) -> None:
    try:
        found = await client.call("GET", f"/v1/commands/{done.namespace}/{done.command_id}", timeout_s=5)
    except Refused as no:
        record.violations.append(f"{done.command_id} was acknowledged and is {no.code}")
        return
    if found["seq"] != done.seq:
        record.violations.append(f"{done.command_id} was acknowledged at {done.seq} and stands at {found['seq']}")
