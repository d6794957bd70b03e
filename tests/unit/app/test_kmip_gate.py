"""The gate of a Core and its records: every operation is judged, what is released is on record first, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from keymesh.app.core_kmip_gate import NEEDS, RECORDED
from keymesh.app.core_kmip_records import OTHERS, SUMS_MAX, KmipRecords
from keymesh.kmip.engine import OPERATIONS
from keymesh.kmip.enums import Operation
from keymesh.kmip.ports import Caller, Scope
from keymesh.ledger.receipts import Receipt, check_receipt
from keymesh.model.errors import Unavailable
from keymesh.model.states import Operation as Use

APP = Caller("app", Scope("acme", "files"))


@dataclass
class Log:
    """A receipt log that is slow on demand, and can fail."""

    lamport: int = 0
    batches: list[list[Receipt]] = field(default_factory=list)
    fails: bool = False

    def append_all(self, receipts: Sequence[Receipt]) -> None:
        if self.fails:
            raise Unavailable("receipt-log", "the disk is full")
        self.batches.append([check_receipt(receipt) for receipt in receipts])


def records(log: Log) -> KmipRecords:
    tasks = set()

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.add(asyncio.get_running_loop().create_task(work))

    core: Any = SimpleNamespace(receipts=log, shell=SimpleNamespace(now=lambda: 7), spawn=spawn)
    return KmipRecords(core)


def test_every_operation_that_is_served_is_judged_and_no_other() -> None:
    assert NEEDS.keys() == OPERATIONS.keys()
    assert {operation for operation, use in NEEDS.items() if use is Use.EXPORT} == {Operation.Get}
    assert NEEDS.keys() > RECORDED
    assert Operation.Interop not in NEEDS


async def test_what_comes_at_once_is_recorded_at_once() -> None:
    log = Log()
    kept = records(log)
    await asyncio.gather(*(kept.keep(APP, "kmip-get", f"files/u{n}") for n in range(50)))
    assert [len(batch) for batch in log.batches] == [50]
    assert {receipt.actor for receipt in log.batches[0]} == {"client:acme/app"}
    await kept.keep(APP, "kmip-get", "files/u0")
    assert len(log.batches) == 2


async def test_what_is_not_recorded_is_not_released() -> None:
    log = Log(fails=True)
    kept = records(log)
    answers = await asyncio.gather(*(kept.keep(APP, "kmip-get", "files/u") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    log.fails = False
    await kept.keep(APP, "kmip-get", "files/u")


async def test_who_gives_up_waiting_harms_nobody() -> None:
    log = Log()
    kept = records(log)
    gone = asyncio.create_task(kept.keep(APP, "kmip-get", "files/gone"))
    stays = asyncio.create_task(kept.keep(APP, "kmip-get", "files/stays"))
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_clients_message_is_kept_as_far_as_it_can_be_printed() -> None:
    log = Log()
    await records(log).note(APP, "a\nline\0" + "x" * 5_000)
    (receipt,) = log.batches[0]
    assert receipt.reason.startswith("a?line?xxx")
    assert receipt.digest is not None


def test_sums_are_recorded_by_client_and_bounded_and_kept_where_they_cannot_be() -> None:
    log = Log(fails=True)
    kept = records(log)
    for _ in range(3):
        kept.count(APP, "Encrypt")
    kept.deny("acme", "app", "restricted-tenant", "Get")
    kept.flush()
    assert log.batches == []
    log.fails = False
    kept.flush()
    kept.flush()
    found = {(r.actor, r.action, r.subject, r.outcome.value) for batch in log.batches for r in batch}
    assert found == {
        ("client:acme/app", "kmip-use", "files:Encrypt:3", "done"),
        ("client:acme/app", "kmip-denied", "restricted-tenant:Get:1", "refused"),
    }
    for n in range(SUMS_MAX + 10):
        kept.deny("acme", f"c{n}", "unknown-client", "Get")
    kept.flush()
    last = log.batches[-1]
    assert len(last) == SUMS_MAX + 1
    assert [r.subject for r in last if r.actor.endswith(OTHERS)] == [f"{OTHERS}:10"]
