"""A tenant purged at a node: refused at once, wiped, recorded, and only then said; in every life anew."""

from __future__ import annotations

from typing import Any

from keymesh.control.purge_messages import BackupLine, PurgeNoted, PurgeReceipt, PurgeReceiptMessage
from keymesh.core.events import DropKeys, LocalRestrict, PurgeTenant, ReplyLocal, TenantPurged
from keymesh.core.records import PurgeRecord
from keymesh.model.ids import Digest
from keymesh.model.machine import Address
from tests.unit.core.bench import SERVICE, TENANT, Bench, Edge

SCOPE = f"destruction:{TENANT}"
LINE = BackupLine(store="s3", origin="us-east.n1", first=1, last=7, digest=Digest("d" * 64), kept_until=9)


def served() -> Bench:
    bench = Bench().up()
    assert bench.memory
    return bench


def destroying(bench: Bench) -> Any:
    return bench.mesh.do(TENANT, "tenant.destroy", {"scope": SCOPE, "wait_ms": 1_000})


def purge(bench: Bench) -> Any:
    seq = destroying(bench).head.entry.seq
    return bench.mesh.do(TENANT, "tenant.purge", {"scope": SCOPE, "destroy_seq": seq})


def receipts(bench: Bench) -> list[PurgeReceipt]:
    return [message.receipt.message for message in bench.sent(PurgeReceiptMessage)]


def wiped(bench: Bench, *digests: str, backups: tuple[BackupLine, ...] = ()) -> None:
    bench.feed(TenantPurged(TENANT, digests, backups))


def test_from_the_destruction_on_nothing_is_used_and_a_cancellation_opens_again() -> None:
    bench = served()
    bench.give(destroying(bench))
    assert not bench.memory and not bench.may().allowed
    assert [a.restrictions[0].scope for a in bench.acks()] == [SCOPE]
    assert not bench.effects(PurgeTenant)
    bench.give(bench.mesh.do(TENANT, "tenant.cancel-destroy", {"scope": SCOPE}))
    bench.renew()
    assert bench.memory and bench.may().allowed


def test_a_cancellation_that_no_voter_saw_lifts_nothing() -> None:
    bench = served()
    bench.give(destroying(bench))
    bench.give(bench.mesh.do(TENANT, "tenant.cancel-destroy", {"scope": SCOPE}, committed=False))
    assert not bench.memory and not bench.may().allowed
    assert bench.acks()[-1].reason == "unproven-lift"


def test_a_purge_is_said_only_once_the_wipe_and_its_record_are_durable() -> None:
    bench = served()
    bench.give(purge(bench))
    assert not bench.memory and bench.effects(DropKeys)
    assert [e.namespace for e in bench.effects(PurgeTenant)] == [TENANT]
    bench.advance(60_000)
    assert not receipts(bench)
    bench.disk_works = False
    wiped(bench)
    assert not receipts(bench)
    bench.disk_works = True
    bench.take()
    bench.advance(10_000)  # wiped again, since nothing says that it was
    assert [e.namespace for e in bench.effects(PurgeTenant)] == [TENANT]
    wiped(bench, "e" * 64, backups=(LINE,))
    (said,) = receipts(bench)
    assert {(k.key, k.version) for k in said.keys} == {("l2", 1), (f"l3/{SERVICE}", 1)}
    assert (said.others, said.backups) == (("e" * 64,), (LINE,))
    head = bench.mesh.states[TENANT].head
    assert (said.seq, said.entry_hash, said.admitted_seq) == (head.entry.seq, head.hash, 1)


def test_a_crash_before_the_record_wipes_again() -> None:
    bench = served()
    bench.give(purge(bench))
    bench.crash_at_persist = True
    wiped(bench)
    bench.crash_at_persist = False
    assert not receipts(bench)
    bench.take()
    bench.reboot()
    assert [e.namespace for e in bench.effects(PurgeTenant)] == [TENANT]
    assert not receipts(bench)
    wiped(bench)
    assert len(receipts(bench)) == 1


def test_every_life_wipes_anew_before_it_says_so_again_and_forgets_no_digest() -> None:
    bench = served()
    bench.give(purge(bench))
    wiped(bench, "e" * 64)
    bench.take()
    bench.reboot()
    assert bench.effects(PurgeTenant) and not receipts(bench)
    bench.advance(20_000)
    assert not receipts(bench)
    wiped(bench, "f" * 64)
    assert receipts(bench)[-1].others == ("e" * 64, "f" * 64)
    record = bench.disk[f"purge/{TENANT}"]
    assert isinstance(record, PurgeRecord) and record.others == ("e" * 64, "f" * 64)


def test_it_is_repeated_often_until_the_registry_has_it_and_then_ever_more_rarely() -> None:
    bench = served()
    state = purge(bench)
    bench.give(state)
    wiped(bench)
    seq = state.head.entry.seq
    bench.advance(11_000)
    assert len(receipts(bench)) == 3
    bench.receive(PurgeNoted(namespace=TENANT, epoch=1, seq=seq), sender=Address("node:us-west/n1"))
    bench.receive(PurgeNoted(namespace=TENANT, epoch=1, seq=seq - 1))
    bench.receive(PurgeNoted(namespace="globex", epoch=1, seq=seq))
    bench.advance(5_000)
    assert len(receipts(bench)) == 4
    bench.receive(PurgeNoted(namespace=TENANT, epoch=1, seq=seq))
    bench.advance(59_000)
    assert len(receipts(bench)) == 5, "the repetition that was under way"
    bench.advance(10 * 60_000)
    assert len(receipts(bench)) == 8, "ever more rarely: another replica may have been away"


def test_a_wipe_that_nobody_asked_for_says_nothing() -> None:
    bench = served()
    wiped(bench)
    bench.give(destroying(bench))
    wiped(bench)
    bench.feed(TenantPurged("nobody", ()))
    assert not receipts(bench) and f"purge/{TENANT}" not in bench.disk


def test_a_purge_given_twice_is_wiped_once() -> None:
    bench = served()
    state = purge(bench)
    bench.give(state)
    bench.give(state)
    bench.give(state, force=True)
    assert len(bench.effects(PurgeTenant)) == 1
    wiped(bench)
    wiped(bench)
    bench.give(bench.mesh.do(TENANT, "suspend", {"scope": f"tenant:{TENANT}"}))
    assert len(bench.effects(PurgeTenant)) == 1 and len(receipts(bench)) == 1


def test_an_open_edge_lease_is_in_the_receipt() -> None:
    bench = served()
    edge = Edge()
    bench.lease(edge)
    bench.give(purge(bench))
    wiped(bench)
    said = receipts(bench)[-1]
    assert said.open_edge_leases == 1 and said.edge_leases_end_in_ms > 0
    bench.advance(said.edge_leases_end_in_ms + 6_000)
    assert receipts(bench)[-1].open_edge_leases == 0


def test_nothing_is_loaded_or_minted_for_a_purged_tenant_again() -> None:
    bench = served()
    bench.give(purge(bench))
    wiped(bench)
    bench.renew()
    bench.advance(120_000)
    bench.reboot()
    bench.renew()
    assert not bench.memory and not bench.may().allowed


def test_nobody_restricts_a_destruction_locally() -> None:
    bench = served()
    bench.feed(LocalRestrict("l1", SCOPE, "suspend", "ann", "c", ()))
    assert [(r.recorded, r.reason) for r in bench.effects(ReplyLocal)] == [(False, "bad-field")]
