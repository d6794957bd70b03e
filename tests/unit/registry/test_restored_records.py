"""A log that was restored from an older backup, beside records of the history that is lost: only what is about exactly
an entry of this log counts."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from msgspec.structs import replace

from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.control import evidence
from keymesh.control.evidence import verify_certificate
from keymesh.control.purge_messages import PurgeNoted
from keymesh.control.rows import RootRow
from keymesh.model.time import Instant
from keymesh.registry import killswitch, waits
from keymesh.registry.records import EvidenceRecord, KillRecord, WaitRecord
from keymesh.registry.state import Kill
from tests.unit.registry.harness import MESH, ROOT, Bench, keys_of, node, purged, run, with_tenant

ROOT_ROW = RootRow(version=1, keys=keys_of(*ROOT), threshold=2)
HOLDERS = ("us-east", "us-west")
WAIT_MS = 10_000


def restored(bench: Bench, index: int, *, later_ms: int = 5_000) -> None:
    """The log as it was at ``index``; records as they are, because nobody cleared them."""
    entries = run(bench.log.read(0))[1]
    bench.log = MemoryControlLog(MESH)
    for at, group in groupby(entries, key=lambda item: item[0]):
        if at <= index:
            run(bench.log.append([signed for _, signed in group]))
    restart(bench, later_ms=later_ms)


def restart(bench: Bench, *, later_ms: int = 10) -> None:
    bench.now = Instant(bench.now + later_ms)
    bench.sent.clear()
    bench.boot()
    bench.settle()


def index_of(bench: Bench) -> int:
    return run(bench.log.read(0))[0]


def suspension(bench: Bench, n: int = 1) -> Any:
    return bench.scope_command("suspend", "tenant:acme", "s1", correlation_id=f"try-{n}")


def kill_of(bench: Bench, command_id: str = "s1") -> Any:
    return bench.state.kills["acme", command_id]


def lost(acknowledged: tuple[str, ...], *, moved_on: bool) -> Bench:
    """Suspended, and acknowledged by some; the log lost; and the same command again, in another entry."""
    bench = with_tenant()
    backup = index_of(bench)
    bench.ok(suspension(bench))
    for region in acknowledged:
        bench.ack(region, "acme", 3)
    restored(bench, backup)
    bench.certificates.clear()
    if moved_on:
        bench.ok(bench.label("acme", 1))
    bench.ok(suspension(bench, 2))
    return bench


@pytest.mark.parametrize("moved_on", [False, True], ids=["same-seq", "later-seq"])
@pytest.mark.parametrize("acknowledged", [HOLDERS[:1], HOLDERS], ids=["one", "both"])
@pytest.mark.parametrize("reboots", [False, True])
def test_an_acknowledgement_of_a_lost_entry_is_no_word_about_another(
    acknowledged: tuple[str, ...], moved_on: bool, reboots: bool
) -> None:
    bench = lost(acknowledged, moved_on=moved_on)
    if reboots:
        restart(bench)
    seq = 3 + moved_on
    kill = kill_of(bench)
    assert (kill.record.seq, kill.record.status, dict(kill.evidence)) == (seq, killswitch.REVOKING, {})
    assert [h.evidence for h, _ in killswitch.open_holders(bench.state, kill, bench.now)] == [evidence.BOUND] * 2
    assert not bench.certificates
    for region in HOLDERS:
        assert kill_of(bench).record.status == killswitch.REVOKING
        bench.ack(region, "acme", seq)
    assert kill_of(bench).record.status == killswitch.CERTIFIED
    made = bench.certificates[0].certificate
    shown = verify_certificate(evidence.encode_certificate(made), root=ROOT_ROW, mesh="example")
    assert shown.by_ack == tuple(node(region) for region in HOLDERS)
    assert kill_of(bench).record.t == bench.now


def test_a_real_acknowledgement_takes_the_lost_ones_place_for_good() -> None:
    bench = lost(HOLDERS, moved_on=True)
    bench.ack("us-east", "acme", 4)
    restart(bench)
    assert set(kill_of(bench).evidence) == {node("us-east")}
    bench.ack("us-west", "acme", 4)
    assert kill_of(bench).record.status == killswitch.CERTIFIED


def test_an_acknowledgement_of_which_nobody_knows_the_entry_counts_for_nothing() -> None:
    """As records of before were written: the bound stands in."""
    bench = with_tenant()
    bench.ok(suspension(bench))
    bench.ack("us-east", "acme", 3)
    for name, record in bench.records.items():
        if isinstance(record, EvidenceRecord):
            bench.records[name] = replace(record, entry_hash="")
    restart(bench)
    assert dict(kill_of(bench).evidence) == {}
    bench.ack("us-west", "acme", 3)
    assert kill_of(bench).record.status == killswitch.REVOKING


def test_a_receipt_of_a_lost_purge_is_no_receipt_of_another() -> None:
    bench = with_tenant()
    backup = index_of(bench)
    args = {"scope": "destruction:acme", "wait_ms": WAIT_MS}
    bench.ok(bench.command("tenant.destroy", args, namespace="acme", command_id="d1"))
    bench.advance(WAIT_MS + 100)
    for region in HOLDERS:
        bench.receipt(region)
    assert kill_of(bench, "purge:d1").record.status == killswitch.CERTIFIED
    restored(bench, backup)
    bench.certificates.clear()
    bench.ok(bench.label("acme", 1))
    bench.ok(bench.command("tenant.destroy", args, namespace="acme", command_id="d1"))
    bench.advance(WAIT_MS + 100)
    assert kill_of(bench, "purge:d1").record.status == killswitch.REVOKING
    bench.advance(1_000_000)
    assert not bench.certificates
    bench.sent.clear()
    for region in HOLDERS:
        bench.receipt(region)
    assert kill_of(bench, "purge:d1").record.status == killswitch.CERTIFIED
    assert [m.seq for _, m in bench.sent if isinstance(m, PurgeNoted)] == [5, 5]
    made = bench.certificates[0].certificate
    verify_certificate(evidence.encode_certificate(made), root=ROOT_ROW, mesh="example")


# --- the wait of a destruction ---------------------------------------------------------------------------------------


def destroy(bench: Bench, n: int = 1) -> Any:
    args = {"scope": "destruction:acme", "wait_ms": WAIT_MS}
    made = bench.command("tenant.destroy", args, namespace="acme", command_id="d1", correlation_id=f"try-{n}")
    return bench.ok(made)


@pytest.mark.parametrize("reboots", [False, True])
def test_a_destruction_at_the_same_place_of_another_history_waits_from_the_beginning(reboots: bool) -> None:
    bench = with_tenant()
    backup = index_of(bench)
    first = destroy(bench)
    bench.advance(WAIT_MS - 1_000)
    restored(bench, backup)
    assert destroy(bench, 2).seq == first.seq
    if reboots:
        restart(bench)
    assert waits.due_at(bench.state.waits["acme"]) == bench.now + WAIT_MS


def test_a_wait_of_which_nobody_knows_the_entry_begins_anew() -> None:
    bench = with_tenant()
    destroy(bench)
    bench.advance(WAIT_MS - 1_000)
    ((name, record),) = ((n, r) for n, r in bench.records.items() if isinstance(r, WaitRecord))
    bench.records[name] = replace(record, entry_hash="")
    restart(bench)
    assert waits.due_at(bench.state.waits["acme"]) == bench.now + WAIT_MS


def test_a_second_destruction_goes_on_from_its_own_record_after_a_restart() -> None:
    """The first, cancelled one comes by in the log before it, and leaves its record alone."""
    bench = with_tenant()
    destroy(bench)
    bench.ok(bench.command("tenant.cancel-destroy", {"scope": "destruction:acme"}, namespace="acme", command_id="c1"))
    args = {"scope": "destruction:acme", "wait_ms": WAIT_MS}
    bench.ok(bench.command("tenant.destroy", args, namespace="acme", command_id="d2"))
    bench.advance(WAIT_MS // 2)
    restart(bench)
    left = waits.due_at(bench.state.waits["acme"]) - bench.now
    assert WAIT_MS // 2 <= left <= WAIT_MS // 2 + waits.save_every_ms(WAIT_MS)


def test_a_cancelled_wait_leaves_no_record_anywhere() -> None:
    bench = with_tenant()
    backup = index_of(bench)
    destroy(bench)
    bench.advance(WAIT_MS // 2)
    restored(bench, backup)
    destroy(bench, 2)
    assert "acme" in bench.state.wait_records
    bench.ok(bench.command("tenant.cancel-destroy", {"scope": "destruction:acme"}, namespace="acme", command_id="c1"))
    assert not bench.state.wait_records
    assert not [r for r in bench.records.values() if isinstance(r, WaitRecord)]


def test_a_kill_record_of_a_lost_entry_is_made_anew() -> None:
    bench = lost(HOLDERS, moved_on=True)
    records = [r for r in bench.records.values() if isinstance(r, KillRecord)]
    assert [(r.seq, r.status) for r in records] == [(4, killswitch.REVOKING)]


def test_a_receipt_is_kept_for_no_kill_record_of_a_lost_entry() -> None:
    """A purge that a restore took over has no kill record of its own; an earlier life's has the same command id."""
    bench = purged()
    kill = kill_of(bench, "purge:d1")
    lost_record = replace(kill.record, entry_hash="0" * 64, seq=99)
    bench.state.kills["acme", "purge:d1"] = Kill(lost_record, {})
    bench.receipt("us-east")
    assert kill_of(bench, "purge:d1").evidence == {}
    assert not [r for r in bench.records.values() if isinstance(r, EvidenceRecord)]
    assert [to for to, m in bench.sent if isinstance(m, PurgeNoted)] == [node("us-east")]
