"""Receipts that are waited for: one write for all of a turn, none acknowledged that is not durable."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keymesh.adapters.receipt_file import FileReceiptLog
from keymesh.app.receipt_group import ReceiptGroup
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.model.errors import Unavailable
from keymesh.model.time import Instant


def log_at(path: Path) -> FileReceiptLog:
    signer = Ed25519Signer(Ed25519PrivateKey.generate())
    return FileReceiptLog(path, origin="dev/us-east/n1", signer=signer, keys={signer.key_id: signer.public_key})


async def test_all_of_one_turn_are_durable_by_one_sync_and_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    real = os.fsync

    def sync(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    with log_at(tmp_path / "r.jsonl") as log:
        monkeypatch.setattr(os, "fsync", sync)
        group = ReceiptGroup(log, lambda: Instant(7))
        await asyncio.gather(*(group.append("edge", "core-held-open", "acme", f"pay:{n}") for n in range(20)))
        assert len(syncs) == 1
        await group.append("edge", "core-held-open", "acme", "pay:last")
        group.append_now("edge", "key-use", "acme", "pay:now")
        found = [record.receipt for record in log.records()]
    assert [receipt.subject for receipt in found] == [*(f"pay:{n}" for n in range(20)), "pay:last", "pay:now"]
    assert [receipt.lamport for receipt in found] == list(range(1, 23))


async def test_where_it_cannot_be_recorded_everybody_hears_so(tmp_path: Path) -> None:
    log = log_at(tmp_path / "r.jsonl")
    log.close()
    group = ReceiptGroup(log, lambda: Instant(7))
    said = await asyncio.gather(*(group.append("edge", "a", "acme", "s") for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in said] == [Unavailable] * 3


async def test_who_went_away_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    with log_at(tmp_path / "r.jsonl") as log:
        group = ReceiptGroup(log, lambda: Instant(7))
        gone = asyncio.create_task(group.append("edge", "a", "acme", "gone"))
        stays = asyncio.create_task(group.append("edge", "a", "acme", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        assert log.seq >= 1
