"""``sim ask``: figures of small known worlds, reckoned here by hand; and bounds that a planted fault breaks."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from keymesh.control.messages import AnswerMessage, HeartbeatMessage
from keymesh.core import leases
from keymesh.edge import rules as edge_rules
from keymesh.model.machine import Address, edge_address, node_address
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import LeaseGrant, LeaseRequest
from keymesh.sim.ask.figures import rank, report, spread
from keymesh.sim.ask.question import AT_ONCE, LASTING, WARM_MS, Question, Rate, stretched
from keymesh.sim.ask.run import AskRun, ask_seeds
from keymesh.sim.ask.seen import Seen
from keymesh.sim.ask.strikes import strikes
from keymesh.sim.bugs import BUGS, Bug
from keymesh.sim.options import NODE, TenantSpec
from keymesh.sim.plan import Item
from keymesh.sim.world import Violation

EAST, WEST, EUROPE = "us-east", "us-west", "eu-central"
REGIONS = (EUROPE, EAST, WEST)
ACME = TenantSpec("acme", EAST, (EAST, WEST), ("db",), None)
SOLO = TenantSpec("solo", EUROPE, (EUROPE,), ("db",), None)
DELAYS = {frozenset((EAST, WEST)): 32, frozenset((EAST, EUROPE)): 45, frozenset((WEST, EUROPE)): 75}
QUIET = Question(
    regions=REGIONS,
    registry_regions=(EAST,),
    voters=REGIONS,
    delays=DELAYS,
    edges=dict.fromkeys(REGIONS, 1),
    tenants=(ACME,),
    ttl_ms=60_000,
    heartbeat_ms=10_000,
    edge_ttl_ms=30_000,
    l1_probe_ms=20_000,
    l1_ttl_ms=60_000,
    snapshot_ms=300_000,
    kill_switches_per_hour=0,
    writes_per_hour=0,
    hours=0.15,
)
WEST_NODE = node_address(WEST, NODE)
WEST_EDGE = edge_address(WEST, "acme", "db", "e1")
AT = 400_000


def scripted(question: Question, *items: Item) -> AskRun:
    return AskRun(question, 1, items)


def suspend(run: AskRun, at: int, scope: str = "tenant:acme") -> None:
    """Somebody uses the kill switch at ``at``."""
    tenant = next(t for t in run.question.tenants if t.name == scope.split(":")[1])
    run.mesh.world.at(at, run.people.suspend, tenant, scope)


def test_without_faults_everything_is_served_and_what_was_not_seen_is_null() -> None:
    seen = scripted(QUIET).execute()
    answer = report(QUIET, [seen])
    operations = seen.operations
    assert seen.violation is None and answer["ok"]
    assert operations["encrypt"].asked == 2 * 540 == operations["encrypt"].served  # two regions' users, each second
    assert operations["decrypt"].asked == operations["decrypt"].served == 2 * 540 - 2  # none before the first record
    assert answer["figures"]["availability"]["decrypt"]["fraction"] == 1.0
    for name in ("revocation_lag", "edge_lag", "root_lag", "time_to_closed", "rto", "proof", "commit_lag"):
        figure = answer["figures"][name]
        assert (figure["samples"], figure["p50"], figure["p99"], figure["worst"]) == (0, None, None, None)
    assert answer["figures"]["rpo"]["entries"] == {"p50": None, "p99": None, "worst": None}
    assert answer["figures"]["rpo"]["lossless"] is None


def test_a_region_that_is_cut_off_closes_a_ttl_after_its_last_answered_heartbeat_was_sent() -> None:
    run = scripted(QUIET, Item(AT, "cut", ("registry", WEST, 300_000)))
    world = run.mesh.world
    sent: dict[str, int] = {}
    starts: list[int] = []

    def beat(m: Any, to: Address, message: HeartbeatMessage) -> None:
        if m.address == WEST_NODE:
            sent[message.heartbeat.message.nonce] = world.t

    def heard(m: Any, event: Any) -> None:
        if m.address == WEST_NODE:
            answer = event.message.answer.message
            starts.append(sent[answer.nonce] - answer.poll_age_ms)

    world.on_send.setdefault(HeartbeatMessage, []).append(beat)
    world.after.setdefault(AnswerMessage, []).append(heard)
    seen = run.execute()
    (sample,) = seen.samples["time_to_closed"]
    last = max(start for start in starts if start < AT)
    assert (sample.at_ms, sample.value_ms) == (AT, last + QUIET.ttl_ms - AT)
    assert sample.bound_ms == stretched(60_000) == 60_060
    assert not sample.exceeds


def test_a_cut_that_heals_first_is_no_sample() -> None:
    seen = scripted(QUIET, Item(AT, "cut", ("registry", WEST, 30_000))).execute()
    assert seen.samples["time_to_closed"] == []
    assert seen.unseen["time_to_closed"] == Counter({"healed-first": 1})


def test_where_voters_stand_in_for_a_dead_registry_nothing_closes() -> None:
    seen = scripted(QUIET, Item(AT, "registry-death", (200_000,))).execute()
    assert seen.samples["time_to_closed"] == []
    assert seen.unseen["time_to_closed"] == Counter({"standby-took-over": 2})  # acme in two regions


def test_a_deaf_edge_obeys_when_the_lease_that_it_asked_for_last_is_over() -> None:
    edge = f"edge:{WEST}/acme/db/e1"
    run = scripted(QUIET, Item(AT, "cut", (WEST, edge, 120_000)))
    world = run.mesh.world
    asked: list[int] = []
    ttls: list[int] = []

    def request(m: Any, to: Address, message: LeaseRequest) -> None:
        if m.address == WEST_EDGE and world.t < AT:
            asked.append(world.t)

    def grant(m: Any, to: Address, message: LeaseGrant) -> None:
        if to == WEST_EDGE and world.t < AT:
            ttls.append(message.ttl_ms)

    world.on_send.setdefault(LeaseRequest, []).append(request)
    world.on_send.setdefault(LeaseGrant, []).append(grant)
    suspend(run, AT + 1_000)
    seen = run.execute()
    (sample,) = seen.samples["revocation_lag"]
    logged = next(f for f in world.ledger.facts["acme"] if f.kind == "suspend").logged_at
    committed = next(f for f in world.ledger.facts["acme"] if f.kind == "suspend").committed_at
    assert committed is not None
    assert sample.value_ms == asked[-1] + ttls[-1] - logged
    assert sample.counted_ms == asked[-1] + ttls[-1] - committed
    assert sample.bound_ms == 60_060 + 2_000
    of_west = next(s for s in seen.samples["edge_lag"] if WEST in s.what)
    assert 0 < of_west.counted_ms <= ttls[-1] < (of_west.bound_ms or 0)
    (proof,) = seen.samples["proof"]
    assert not proof.exceeds and proof.value_ms >= sample.value_ms


def test_users_of_a_dead_region_are_served_by_the_next_one_after_one_timeout() -> None:
    at = AT + 250
    seen = scripted(QUIET, Item(at, "region-death", (EAST, 60_000))).execute()
    (sample,) = seen.samples["rto"]
    next_question = WARM_MS + -(-(at - WARM_MS) // 1_000) * 1_000  # the home's users ask at whole seconds
    assert sample.value_ms == next_question - at + QUIET.timeout_ms + 2 * DELAYS[frozenset((EAST, WEST))] == 1_814
    assert sample.what == f"acme from {EAST} to {WEST}"
    assert seen.operations["decrypt"].elsewhere >= 60
    assert seen.operations["decrypt"].served == seen.operations["decrypt"].asked


def test_a_tenant_of_one_region_has_no_other_and_is_not_served_meanwhile() -> None:
    question = replace(QUIET, tenants=(SOLO,))
    seen = scripted(question, Item(AT + 250, "region-death", (EUROPE, 60_000))).execute()
    assert seen.samples["rto"] == []
    assert seen.unseen["rto"] == Counter({"no-other-region": 1})
    encrypt = seen.operations["encrypt"]
    assert 60 <= encrypt.asked - encrypt.served <= 70
    assert report(question, [seen])["figures"]["availability"]["encrypt"]["fraction"] == round(
        encrypt.served / encrypt.asked, 6
    )


def test_the_last_copy_of_a_key_goes_with_its_disk() -> None:
    question = replace(QUIET, tenants=(ACME, SOLO))
    run = scripted(question, Item(AT, "wipe", (EUROPE, 5_000)), Item(AT + 60_000, "wipe", (WEST, 5_000)))
    seen = run.execute()
    made = [fact.logged_at for fact in run.mesh.world.ledger.facts["solo"] if fact.kind == "key.create"]
    first, second = seen.losses
    assert (first.entries, first.age_ms) == (2, AT - min(made)) and len(made) == 2  # L2 and L3
    assert (second.entries, second.age_ms) == (0, 0)
    rpo = report(question, [seen])["figures"]["rpo"]
    assert rpo["entries"] == {"p50": 0, "p99": 2, "worst": 2}
    assert rpo["seconds"]["worst"] == round((AT - min(made)) / 1_000, 3)
    assert rpo["lossless"] == 1


def test_a_restriction_that_only_a_lost_disk_had_is_lost() -> None:
    run = scripted(
        QUIET,
        Item(AT, "registry-death", (100_000,)),
        Item(AT + 30_000, "wipe", (EAST, 5_000)),
    )
    suspend(run, AT + 5_000)  # nobody answers: after ten seconds the tenant's home is asked
    seen = run.execute()
    (loss,) = seen.losses
    assert (loss.entries, loss.age_ms) == (1, 15_000)


def test_a_disabled_root_key_is_obeyed_and_is_no_fault_of_the_mesh() -> None:
    run = scripted(QUIET, Item(AT, "l1-disabled", ("acme", 90_000)))
    seen = run.execute()
    (sample,) = seen.samples["root_lag"]
    assert 0 < sample.value_ms <= QUIET.l1_probe_ms + 10_000 + 2_000  # a probe, and the others' re-probe
    assert sample.bound_ms == 60_060 + 2_000
    decrypt = seen.operations["decrypt"]
    assert decrypt.by_order == 2 * 90
    assert decrypt.asked - decrypt.served <= 2 * 10  # until it is loaded again


def _planted(bug: str) -> AbstractContextManager[Any]:
    return next(b for b in BUGS if b.name == bug).planted()


def _lazy_edge(sent: int, received: int, ttl_ms: int) -> Instant:
    return Instant(sent + 2 * ttl_ms)


def _long_lease(start: int, ttl_ms: int, policy_ttl_ms: int | None) -> Instant:
    return Instant(start + 2 * ttl_ms)


SLOW_EDGE = Bug("edge-uses-twice-its-lease", ((edge_rules, "lease_deadline", _lazy_edge),))
SLOW_NODE = Bug("node-keeps-twice-its-lease", ((leases, "lease_end", _long_lease),))
CUT = Item(AT, "cut", ("registry", WEST, 300_000))
DEAF = Item(AT, "cut", (WEST, f"edge:{WEST}/acme/db/e1", 120_000))


@pytest.mark.parametrize(
    ("bug", "items", "figure"),
    [
        (SLOW_EDGE.planted(), (DEAF,), "edge_lag"),
        (SLOW_EDGE.planted(), (DEAF,), "proof"),
        (SLOW_NODE.planted(), (CUT,), "time_to_closed"),
        (SLOW_NODE.planted(), (CUT,), "revocation_lag"),
        (
            _planted("l1-lease-too-long"),
            (CUT, Item(AT, "l1-unreachable", ("acme", WEST, 300_000)), Item(AT + 10, "l1-disabled", ("acme", 300_000))),
            "root_lag",
        ),
    ],
)
def test_a_slow_revocation_is_found_beyond_its_bound(
    bug: AbstractContextManager[Any], items: tuple[Item, ...], figure: str
) -> None:
    question = QUIET if figure != "root_lag" else replace(QUIET, ttl_ms=300_000)

    def execute() -> dict[str, Any]:
        run = scripted(question, *items)
        if figure != "root_lag":
            suspend(run, AT + 1_000)
        if figure == "edge_lag":
            run.orders.on_certificate.clear()  # nobody resumes: a certificate is not all that is judged by
        return report(question, [run.execute()])

    with bug:
        answer = execute()
    assert not answer["ok"]
    assert answer["figures"][figure]["bound"]["exceeded"] >= 1
    found = next(one for one in answer["exceeded"] if one["figure"] == figure)
    assert found["ms"] > found["bound_ms"] and found["seed"] == 1
    assert execute()["ok"]


def test_what_breaks_the_world_is_told_with_its_seed() -> None:
    run = scripted(QUIET)

    def breaks(a: Any, b: Any) -> None:
        raise Violation("I2", run.mesh.world.t, "a command is gone")

    run.mesh.world.at(AT, breaks)
    answer = report(QUIET, [run.execute()])
    assert not answer["ok"]
    assert answer["violations"] == [f"seed 1: I2 at {AT} ms: a command is gone"]


STORMY = replace(
    QUIET,
    tenants=(ACME, SOLO),
    kill_switches_per_hour=20,
    writes_per_hour=10,
    drift_ppm=400,
    hours=0.5,
    rates={kind: Rate(3.0, 60_000) for kind in (*LASTING, *AT_ONCE)},
    shares={"loss": 0.01, "duplicate": 0.01, "reorder": 0.01, "corrupt": 0.005, "replay": 0.005},
)


def test_equal_seeds_give_equal_answers_on_any_number_of_processes() -> None:
    """The other processes hash strings otherwise."""
    alone: list[Seen] = list(ask_seeds(STORMY, range(2), 1))
    together = list(ask_seeds(STORMY, range(2), 2))
    assert report(STORMY, alone) == report(STORMY, together)
    assert alone == together


def test_every_kind_of_fault_can_be_asked_for_and_every_bound_holds() -> None:
    answer = report(STORMY, list(ask_seeds(STORMY, range(4), 1)))
    assert answer["violations"] == [] and answer["exceeded"] == []
    happened = {kind for kind, n in answer["faults"].items() if n}
    assert happened >= {*LASTING, *AT_ONCE, *STORMY.shares} - {"torn-write"}


def test_another_rate_of_one_kind_leaves_the_others_where_they_were() -> None:
    edges = AskRun(QUIET, 1).mesh.options.edges
    before = strikes(STORMY, edges, 3)
    after = strikes(replace(STORMY, rates={**STORMY.rates, "cut": Rate(9.0, 1_000)}), edges, 3)
    assert [i for i in before if i.what != "cut"] == [i for i in after if i.what != "cut"]
    assert [i for i in before if i.what == "cut"] != [i for i in after if i.what == "cut"]


def test_percentiles_are_values_that_were_seen() -> None:
    assert spread([]) == {"p50": None, "p99": None, "worst": None}
    assert spread([7]) == {"p50": 7, "p99": 7, "worst": 7}
    assert spread(range(1, 201)) == {"p50": 100, "p99": 198, "worst": 200}
    assert [rank([1, 2, 3, 4], p) for p in (1, 25, 26, 50, 99, 100)] == [1, 1, 2, 2, 4, 4]
