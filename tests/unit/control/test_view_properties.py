"""Whatever commands come: a holder at any earlier state reaches the newest in one jump, and none goes back."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.control.world import Mesh, digest

from keymesh.control import reduce
from keymesh.control.rows import ServiceRow, get
from keymesh.control.transition import restrictions_in
from keymesh.control.view import Accepted, Fork, RefusedTask, Stale, accept
from keymesh.ledger.maptree import root_of
from keymesh.model.errors import Refused
from keymesh.model.states import Lane
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES

SCOPES = ("tenant:acme", "service:acme/pay", "key:acme/pay@1", "key:acme/pay@2")
STEP = st.one_of(
    st.tuples(st.sampled_from(["suspend", "resume", "revoke"]), st.sampled_from(SCOPES)),
    st.tuples(st.sampled_from(["service", "labels", "want", "make", "switch", "move"]), st.just("")),
)


def run(mesh: Mesh, steps: list[tuple[str, str]]) -> None:
    """As many of ``steps`` as their preconditions allow."""
    for n, (what, scope) in enumerate(steps):
        try:
            _run(mesh, what, scope, n)
        except Refused:
            continue


def _run(mesh: Mesh, what: str, scope: str, n: int) -> None:
    rows = mesh.states["acme"].rows
    versions = reduce.key_rows(rows, "l3/pay")
    match what:
        case "service":
            row = get(rows, "service/pay", ServiceRow)
            assert row is not None
            mesh.service(version=row.version + 1)
        case "labels":
            mesh.do("acme", "tenant.labels", {"labels": {"n": str(n)}})
        case "want":
            mesh.do("acme", "key.want", {"key": "l3/pay", "version": max(versions) + 1})
        case "make":
            mesh.key_version("acme", "l3/pay", max(versions) + 1, digest("acme/l2/1")[:32])
        case "switch":
            mesh.do("acme", "l1.switch", {"binding_id": f"b{n + 2}", "provider": "dev", "descriptor": {}})
        case "move":
            version, row2 = next(iter(versions.items()))
            args = {"key": "l3/pay", "version": version, "revision": row2.revision + 1, "digest": digest(str(n)),
                    "parent": row2.parent}  # fmt: skip
            mesh.do("acme", "key.rewrapped", args)
        case _:
            mesh.restrict(what, scope)


@settings(max_examples=30)
@given(st.lists(STEP, min_size=1, max_size=14))
def test_every_holder_reaches_the_newest_state_from_wherever_it_is(steps: list[tuple[str, str]]) -> None:
    mesh = Mesh()
    mesh.furnished()
    run(mesh, steps)
    newest = mesh.states["acme"]
    assert root_of(newest.rows) == newest.head.entry.state
    history = mesh.history["acme"]
    for held in [None, *history]:
        outcome = mesh.offer(held, newest)
        if held is newest:
            assert isinstance(outcome, Stale)
            continue
        assert isinstance(outcome, Accepted), outcome
        before = {} if held is None else restrictions_in(held.rows)
        after = restrictions_in(newest.rows)
        assert set(outcome.restricts) == {s for s in after if before.get(s) != after[s]}
        assert set(outcome.lifts) == set(before) - set(after)
    for older in history[:-1]:
        assert isinstance(mesh.offer(newest, older), Stale)


@settings(max_examples=30)
@given(st.lists(STEP, min_size=1, max_size=10), st.integers(0, 2**32))
def test_any_order_and_any_repeats_end_in_the_same_state(steps: list[tuple[str, str]], seed: int) -> None:
    mesh = Mesh()
    mesh.furnished()
    run(mesh, steps)
    offers = mesh.history["acme"] * 2
    random.Random(seed).shuffle(offers)
    held = None
    for state in offers:
        outcome = mesh.offer(held, state)
        assert not isinstance(outcome, Fork)
        if isinstance(outcome, Accepted):
            assert held is None or outcome.state.leaf.order > held.leaf.order
            held = outcome.state
        else:
            assert isinstance(outcome, Stale)
    assert held is mesh.states["acme"]


@settings(max_examples=30)
@given(st.lists(STEP, min_size=1, max_size=8), st.data())
def test_a_state_changed_anywhere_is_refused(steps: list[tuple[str, str]], data: st.DataObject) -> None:
    mesh = Mesh()
    mesh.furnished()
    run(mesh, steps)
    newest = mesh.states["acme"]
    name = data.draw(st.sampled_from(sorted(newest.rows)))
    raw = bytearray(newest.rows[name])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    torn = replace(newest, rows={**newest.rows, name: bytes(raw)})
    assert isinstance(mesh.offer(None, torn), RefusedTask)
    payload = bytearray(newest.head.envelope.payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    envelope = msgspec.structs.replace(newest.head.envelope, payload=bytes(payload))
    head = type(newest.head)(entry=newest.head.entry, hash=newest.head.hash, envelope=envelope)
    outcome = mesh.offer(None, replace(newest, head=head))
    assert isinstance(outcome, RefusedTask)


def test_reducing_the_log_again_gives_the_same_rows() -> None:
    mesh = Mesh()
    mesh.furnished()
    run(mesh, [("suspend", SCOPES[0]), ("make", ""), ("resume", SCOPES[0]), ("revoke", SCOPES[2]), ("switch", "")])
    for namespace, states in mesh.history.items():
        rows: dict[str, bytes] = {}
        for state in states:
            rows = reduce.apply(rows, state.head.entry)
            assert rows == state.rows
            assert root_of(rows) == state.head.entry.state, namespace


def test_the_view_takes_what_the_transport_carries() -> None:
    mesh = Mesh(real=True)
    mesh.furnished()
    mesh.restrict("suspend", "tenant:acme")
    state = mesh.restrict("resume", "tenant:acme")
    task = Task(task_id="acme:1:1:0", lane=Lane.ONBOARDING, namespace="acme", state=state, correlation_id="c")
    received = MESSAGES.decode(MESSAGES.encode(task), max_bytes=2**20)
    held = mesh.history["acme"][-2]
    outcome = accept(held, received, mesh.mesh, mesh.registry, pins=mesh.pins, epoch=1)
    assert isinstance(outcome, Accepted)
    assert outcome.state.rows == state.rows
