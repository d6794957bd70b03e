"""What people are shown of a kill switch while it runs, and once it is certified."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from tests.unit.registry.harness import OFFICERS, TTL_MS, Bench, with_tenant

from keymesh.app.registry_views import show_kill

BOUND_MS = TTL_MS + TTL_MS // 1_000 + 2_000


def shown(bench: Bench, namespace: str) -> Any:
    kill = bench.state.kills[(namespace, "s1")]
    return show_kill(bench.state, kill, bench.now, append_started_ns=None, appended_ns=None)


def test_the_last_to_close_comes_first_and_the_certificate_ends_it() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack("us-east", "acme", 3, e_ms=5_000, open_leases=1)
    view = shown(bench, "acme")
    assert [(h.node, h.evidence) for h in view.open] == [("node:us-west/n1", "bound"), ("node:us-east/n1", "ack")]
    assert view.closes_at == view.open[0].closes_at == bench.now + BOUND_MS
    assert (view.status, view.accounted, view.certificate, view.t) == ("revoking", 1, UNSET, UNSET)
    bench.advance(BOUND_MS)
    view = shown(bench, "acme")
    assert (view.status, view.open, view.closes_at) == ("certified", UNSET, UNSET)
    assert view.certificate is not UNSET and view.t <= bench.now


def test_before_the_commit_no_bound_is_claimed() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    view = shown(bench, "acme")
    assert (view.status, view.holders, view.open, view.closes_at) == ("pending", 0, UNSET, UNSET)


def test_the_word_of_a_node_that_is_no_holder_counts_for_nothing() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2]))
    seq = bench.state.kills[("mesh", "s1")].record.seq
    bench.ack("us-east", "mesh", seq)
    bench.ack("eu-west", "mesh", seq)
    view = shown(bench, "mesh")
    assert (view.holders, view.accounted, [h.node for h in view.open]) == (1, 0, ["node:us-west/n1"])
