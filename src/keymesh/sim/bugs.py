"""Planted bugs: one rule or one piece of state handling broken at a time, each to be found by the checkers.

A bug patches names in the product's modules while its context is open.  That every one of them is found within 200
seeds is what shows that the checkers bite; ``seeds`` is where it was last found, to look first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from keymesh.control import commit, destruction, evidence, reduce, reduce_keys, standby, view, voter
from keymesh.control.destruction import PURGED
from keymesh.control.evidence import Holder
from keymesh.control.messages import CountersignatureMessage
from keymesh.control.rows import RestrictionRow, get
from keymesh.core import apply, edges, l1_lease, l1_proof, leases, local, purging, restrictions, revoking
from keymesh.core import standby as node_standby
from keymesh.core.events import TenantPurged
from keymesh.core.records import local_name
from keymesh.edge import leaving
from keymesh.edge import machine as edge_machine
from keymesh.edge import rules as edge_rules
from keymesh.edge.snapshot import Closing
from keymesh.model.machine import Persist, Send
from keymesh.model.time import Instant
from keymesh.orbital import dispatch
from keymesh.registry import certificate, commits, spaces, waits

Patch = tuple[Any, Any, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Bug:
    """``patches`` are (module or table, name, replacement)."""

    name: str
    patches: tuple[Patch, ...]
    seeds: tuple[int, ...] = ()

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug, for as long as this is open."""
        old = [(holder, name, _get(holder, name)) for holder, name, _ in self.patches]
        try:
            for holder, name, broken in self.patches:
                _set(holder, name, broken)
            yield
        finally:
            for holder, name, whole in old:
                _set(holder, name, whole)


def _get(holder: Any, name: Any) -> Any:
    return holder[name] if isinstance(holder, dict) else getattr(holder, name)


def _set(holder: Any, name: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


# --- leases ----------------------------------------------------------------------------------------------------------

_credit_all = leases.credit_all
_closing = leaving.on_closing
_on_answer = leases.on_answer


def _credit_from_receipt(state: Any, now: Any, out: Any) -> None:
    if state.offer is not None:
        state.offer = replace(state.offer, start=now)
    _credit_all(state, now, out)


def _any_answer(outstanding: Any, nonce: str) -> bool:
    return outstanding is not None


def _one_is_enough(granted: Any, voters: Any) -> bool:
    return bool(set(granted) & set(voters.regions))


def _void_nothing(state: Any, now: Any, out: Any) -> None:
    return None


# --- Edges -----------------------------------------------------------------------------------------------------------


def _uncapped(service_ttl_ms: int, now: Any, own_until: Any) -> int:
    return service_ttl_ms


def _forget(state: Any, record: Any, now: Any) -> None:
    return None


def _settle_all(state: Any, sender: Any, message: Any, out: Any) -> Any:
    """One acknowledgement is taken for all of the Edge's leases."""
    last = None
    for lease in [x for x in state.edge_leases.values() if x.edge == sender]:
        last = state.edge_leases.pop(lease.lease_id)
    return last


def _return_and_go_on(state: Any, now: Any, event: Any) -> list[Any]:
    """Gives the leases back, and goes on using them."""
    effects = _closing(copy(state), now, event)
    return [e for e in effects if type(e) is Send]


# --- tasks -----------------------------------------------------------------------------------------------------------

_order = view._order
_release = local.release
_restriction_acks = restrictions.restriction_acks
_persist_apply = apply._take


def _apply_older(held: Any, state: Any, *, force: bool) -> Any:
    found = _order(held, state, force=force)
    return None if isinstance(found, view.Stale) and held.head.hash != state.head.hash else found


def _wait_for_gap(held: Any, state: Any, *, force: bool) -> Any:
    found = _order(held, state, force=force)
    gap = held is not None and found is None and state.head.entry.seq > held.head.entry.seq + 1
    return view.Stale() if gap and not force else found


def _release_on_resume(state: Any, now: Any, out: Any) -> None:
    """A resume of the same scope ends a local suspension, whatever was ordered first."""
    _release(state, now, out)
    done = []
    for key, held in state.locals.items():
        holding = state.holding(held.scope.namespace)
        rows = {} if holding is None or holding.applied is None else holding.applied.rows
        row = get(rows, f"restriction/{held.record.scope}", RestrictionRow)
        if row is not None and row.state == "none":
            done.append(key)
    if done:
        names = tuple(local_name(*key) for key in done)
        state.persist("local-release", local.ReleasePending(tuple(done)), (), names, out)


def _ack_by_head(state: Any, now: Any, holding: Any) -> Any:
    """Acknowledges by the head's seq, not by the entry that set the restriction."""
    found = _restriction_acks(state, now, holding)
    return tuple(msgspec.structs.replace(r, seq=holding.leaf.seq, entry_hash=None) for r in found)


def _ack_first(state: Any, now: Any, taken: Any, corr: str, out: Any, *left: Any) -> None:
    """Takes what is accepted as applied, and says so, before it is recorded."""
    mine: list[Any] = []
    _persist_apply(state, now, taken, corr, mine, *left)
    for new in taken:
        holding = state.holding_or_new(new.head.entry.namespace)
        apply.install(state, now, holding, new)
        restrictions.acknowledge(state, now, holding.namespace, out, correlation_id=corr)
    out.extend(mine)


# --- the Registry ----------------------------------------------------------------------------------------------------

_offer_urgent = dispatch.offer_urgent
_holders_evidence = certificate.holders_evidence
_purge_evidence = certificate.purge_evidence
_purge_reconcile = purging.reconcile
_create = reduce_keys.create
_asked = voter._asked


def _young_alone(queue: Any) -> Instant:
    youngest = max((u.offered_at for u in queue.urgent.values()), default=-dispatch.GATE_MS)
    return Instant(youngest + dispatch.GATE_MS)


def _swallow_repeated(queue: Any, item: Any, now: Any) -> None:
    """A scope that was restricted once is not told again."""
    seen = queue.tries.setdefault(("swallowed", item.scope), 0)
    if seen and not item.force:
        return
    queue.tries["swallowed", item.scope] = 1
    _offer_urgent(queue, item, now)


def _only_connected(record: Any, words: Any) -> Any:
    return tuple(h for h in _holders_evidence(record, words) if h.node in words)


def _no_slack(committed_at: int, ttl_ms: int) -> int:
    return committed_at + evidence.stretched(ttl_ms)


def _no_wait(committed_at: int, ttl_ms: int) -> int:
    return committed_at + ttl_ms // 2


def _create_again(draft: Any, args: Any) -> None:
    """The last minter wins: no compare on (tenant, key, version)."""
    draft.rows.pop(f"key/{args.key}/{args.version}", None)
    _create(draft, args)


def _sign_unrecorded(state: Any, sender: Any, asked: Any) -> list[Any]:
    """A voter without a disk."""
    found = _asked(state, sender, asked)
    for effect in found:
        if type(effect) is Persist:
            state.waiting.pop(effect.token, None)
            sealed = state.config.suite.seal(commit.vote_for(asked, state.config.region))
            return [Send(sender, CountersignatureMessage(countersignature=sealed))]
    return found


def _said_before_wiped(state: Any, now: Any, holding: Any, out: Any) -> None:
    """Takes the wipe for done once it is asked for."""
    _purge_reconcile(state, now, holding, out)
    held = state.purges.get(holding.namespace)
    if held is not None and held.running:
        purging.on_purged(state, now, TenantPurged(holding.namespace, ()), out)


def _by_silence(node: str, receipt: Any) -> Any:
    """Who does not answer has nothing."""
    return _purge_evidence(node, receipt) if receipt is not None else Holder(node=node, evidence=PURGED, t=0)


def _any_receipt(receipt: Any, *, order: Any, entry_hash: str, admitted: int, keys: Any) -> bool:
    """Whatever purge and admission it was of."""
    return set(keys) <= set(receipt.keys)


def _yes(*args: Any, **kwargs: Any) -> bool:
    return True


def _no(*args: Any, **kwargs: Any) -> bool:
    return False


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


BUGS: Final[tuple[Bug, ...]] = (
    Bug("lease-from-receipt", ((leases, "credit_all", _credit_from_receipt),)),
    Bug("poll-age-ignored", ((leases, "lease_start", lambda sent_at, poll_age_ms: sent_at),)),
    Bug("tenant-ttl-ignored", ((leases, "lease_end", lambda start, ttl_ms, policy_ttl_ms: Instant(start + ttl_ms)),)),
    Bug("renewed-without-apply", ((leases, "has_applied", _yes),), seeds=(3,)),
    Bug("replayed-answer", ((leases, "answers", _any_answer),)),
    Bug("clock-back-ignored", ((leases, "void_all", _void_nothing),)),
    Bug("l1-denied-ignored", ((l1_lease, "deny", _nothing),), seeds=(1,)),
    Bug("l1-lease-too-long", ((l1_proof, "l1_end", lambda started_at, ttl_ms: Instant(started_at + 2 * ttl_ms)),)),
    Bug("edge-lease-uncapped", ((edges, "edge_ttl", _uncapped),)),
    Bug(
        "edge-lease-from-receipt",
        ((edge_rules, "lease_deadline", lambda sent, received, ttl: Instant(received + ttl)),),
        seeds=(1,),
    ),
    Bug("edge-keeps-revoked-lease", ((edge_rules, "names_lease", _no),)),
    Bug("edge-uses-what-it-gave-back", ((edge_machine._EVENTS, Closing, _return_and_go_on),), seeds=(43,)),
    Bug("edge-leases-forgotten", ((edges, "restore", _forget),), seeds=(5,)),
    Bug("one-ack-settles-all", ((revoking, "on_edge_ack", _settle_all),), seeds=(12,)),
    Bug("older-entry-applied", ((view, "_order", _apply_older),)),
    Bug("gap-blocks-lane-0", ((view, "_order", _wait_for_gap),)),
    Bug("ack-before-record", ((apply, "_take", _ack_first),)),
    Bug("ack-by-another-entry", ((restrictions, "restriction_acks", _ack_by_head),)),
    Bug("local-overtaken", ((local, "release", _release_on_resume),)),
    Bug("restriction-not-enforced", ((restrictions, "enforce", _nothing),)),
    Bug("duplicate-revoke-swallowed", ((dispatch, "offer_urgent", _swallow_repeated),)),
    Bug("lower-lane-first", ((dispatch, "gate_opens_at", lambda queue: Instant(0)),)),
    Bug("who-comes-back-finds-the-gate-open", ((dispatch, "gate_opens_at", _young_alone),), seeds=(56,)),
    Bug("certificate-of-the-connected", ((certificate, "holders_evidence", _only_connected),)),
    Bug("bound-without-slack", ((evidence, "bound_end", _no_slack),)),
    Bug("bound-too-short", ((evidence, "bound_end", _no_wait),)),
    Bug("standby-from-one-voter", ((standby, "is_enough", _one_is_enough),)),
    Bug("standby-heads-not-applied", ((leases, "may_stand_by", _yes),), seeds=(3,)),
    Bug("standby-from-receipt", ((node_standby, "start_of", lambda asked, now: now),)),
    Bug("standby-denied-and-taken", ((leases, "allows_standby", _yes),)),
    Bug("voter-grants-while-registry-answers", ((voter, "has_missed", _yes),)),
    Bug("voter-forgot-and-grants", ((voter, "needs_memory", _no),), seeds=(23,)),
    Bug("commit-by-one-voter", ((commit, "majority", lambda n: 1),)),
    Bug("commit-without-voters", ((commits, "enough", _yes),)),
    Bug("voter-with-amnesia", ((voter, "_asked", _sign_unrecorded),)),
    Bug("mint-without-compare", ((reduce._HANDLERS, "key.create", _create_again),), seeds=(39,)),
    Bug("purge-said-before-wiped", ((purging, "reconcile", _said_before_wiped),)),
    Bug("purge-by-silence", ((certificate, "purge_evidence", _by_silence),)),
    Bug("receipt-of-an-earlier-admission", ((destruction, "covers", _any_receipt),)),
    Bug("waits-by-the-wall-clock", ((waits, "clock_ahead", _nothing),), seeds=(3,)),
    Bug("residency-leak", ((spaces, "may_hold", _yes),)),
)
