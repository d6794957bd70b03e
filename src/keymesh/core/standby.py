"""Standby at a node: asks the voters for a lease while the Registry is silent, and counts what they grant.

It asks with each heartbeat that finds the Registry silent and a lease near its end, under a fresh nonce.  A majority
of grants to that nonce is an offer like the Registry's, which ``leases`` credits: from the moment the request was
*sent*, and to those namespaces whose highest restriction among the answers is applied here.  What is behind it is
fetched from a region that may have it.  A voter whose grant leaves out what it showed before is proved a liar: both
grants are kept, and it counts no more.  Source: DESIGN section 3, "Standby".
"""

from __future__ import annotations

from typing import Final

from keymesh.control import standby
from keymesh.control.messages import (
    StandbyGrant,
    StandbyGrantMessage,
    StandbyRefused,
    StandbyRequest,
    StandbyUsed,
    StateRequest,
)
from keymesh.control.standby import StandbyLie, lie_name
from keymesh.core import leases
from keymesh.core.state import Holding, NodeState, Out, StandbyAsk, StandbyOffer, note
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import REGISTRY, Address, Send
from keymesh.model.states import Lane
from keymesh.model.time import Instant
from keymesh.orbital.messages import Task

HAND_INS: Final = 3


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(state: NodeState, now: Instant, out: Out) -> None:
    """Ask every voter, where the Registry is silent and some lease has to be replaced; older nonces are void then."""
    voters, settings = state.mesh_view.voters, state.mesh_view.settings
    if voters is None or settings is None or not leases.is_wanting(state, now):
        state.standby_ask = None
        return
    config = state.config
    request = StandbyRequest(
        mesh=config.mesh,
        epoch=state.epoch,
        set_id=voters.set_id,
        region=config.region,
        node=config.node,
        nonce=state.draw("standby"),
        ttl_ms=settings.ttl_ms,
    )
    state.standby_ask = StandbyAsk(request, now)
    out.extend(Send(address, request) for address in voter_nodes(state))


def voter_nodes(state: NodeState) -> list[Address]:
    """Enrolled nodes of the voter regions, in order."""
    voters = state.mesh_view.voters
    seats = () if voters is None else voters.regions
    return sorted(address for address, node in state.mesh_view.nodes.items() if node.region in seats)


# --- counting --------------------------------------------------------------------------------------------------------


def on_grant(state: NodeState, now: Instant, sender: Address, message: StandbyGrantMessage, out: Out) -> None:
    """Count a grant.

    1. It comes from an enrolled node of a voter region, and is sealed by that node's key.
    2. It answers the newest request in every field; each node's first answer counts.
    3. It leaves out nothing that the same node showed before.
    4. With a majority, every lease that the answers allow is renewed; the rest stays an open offer until the apply.
    """
    asked, node, voters = state.standby_ask, state.mesh_view.nodes.get(sender), state.mesh_view.voters
    if asked is None or node is None or voters is None or node.region not in voters.regions:
        note(out, "standby-grant-refused", reason="nonce" if asked is None else "sender")
        return
    try:
        grant = state.config.suite.unseal(message.grant, StandbyGrant, node.keys)
    except KeymeshError as bad:
        note(out, "standby-grant-refused", reason=bad.code)
        return
    if grant.voter != node.region or not standby.answers(grant, asked.request) or sender in asked.grants:
        note(out, "standby-grant-refused", reason="content")
        return
    if sender in state.liars or _lies(state, sender, grant, message, out):
        return
    asked.grants[sender] = grant
    if not asked.done and standby.is_enough(granting(state, asked), voters):
        asked.done = True
        state.handing_in = HAND_INS
        state.standby_offer = StandbyOffer(
            epoch=grant.epoch,
            start=start_of(asked, now),
            ttl_ms=leases.granted_ttl(grant.ttl_ms, state.mesh_view.settings),
            heads=standby.highest(asked.grants.values()),
        )
        leases.credit_all(state, now, out)
        fetch(state, now, out)


def start_of(asked: StandbyAsk, now: Instant) -> Instant:
    """From when a standby lease counts: the sending of its request."""
    return asked.sent_at


def granting(state: NodeState, asked: StandbyAsk) -> list[str]:
    """Regions whose every enrolled node has granted: which of them stored an entry, nobody else can tell."""
    nodes = state.mesh_view.nodes
    silent = {node.region for address, node in nodes.items() if address not in asked.grants}
    return sorted({nodes[address].region for address in asked.grants} - silent)


def _lies(state: NodeState, sender: Address, grant: StandbyGrant, message: StandbyGrantMessage, out: Out) -> bool:
    before = state.standby_said.get(sender)
    blind = None if before is None else standby.contradicts(grant, before[0])
    if before is None or blind is None:
        state.standby_said[sender] = (grant, message.grant)
        return False
    state.liars.add(sender)
    lie = StandbyLie(voter=str(sender), blind=blind, grant=message.grant, earlier=before[1])
    note(out, "standby-lie", voter=sender, blind=blind)
    state.persist("standby-lie", None, ((lie_name(sender), lie),), (), out)
    return True


def hand_in(state: NodeState, now: Instant, out: Out) -> None:
    """The Registry is back: what voters granted meanwhile goes to it, a few times over, to be held against what they
    countersigned."""
    if state.handing_in and not leases.is_silent(state, now):
        state.handing_in -= 1
        grants = tuple([sealed for _, (_, sealed) in sorted(state.standby_said.items())])
        out.append(Send(REGISTRY, StandbyUsed(grants=grants)))


def on_refused(state: NodeState, now: Instant, sender: Address, message: StandbyRefused, out: Out) -> None:
    """Kept for people to read."""
    asked, node = state.standby_ask, state.mesh_view.nodes.get(sender)
    if asked is not None and node is not None and message.nonce == asked.request.nonce:
        asked.refusals[node.region] = message.reason[:64]


# --- what is behind a head -------------------------------------------------------------------------------------------


def fetch(state: NodeState, now: Instant, out: Out) -> None:
    """Ask the regions that may have it for each namespace that is behind what voters have stored."""
    offer = state.standby_offer
    if offer is None:
        return
    for holding in (state.mesh, *[state.tenants[name] for name in sorted(state.tenants)]):
        head = leases.stored_head(state, holding, offer)
        if head is None or leases.has_applied(holding.leaf, head):
            state.fetching.discard(holding.namespace)
            continue
        state.fetching.add(holding.namespace)
        request = StateRequest(namespace=holding.namespace, epoch=head.epoch, seq=head.seq)
        out.extend(Send(address, request) for address in _sources(state, holding))


def _sources(state: NodeState, holding: Holding) -> list[Address]:
    """Nodes of the other regions that may hold the namespace."""
    own = state.config.region
    return sorted(
        address
        for address, node in state.mesh_view.nodes.items()
        if node.region != own and _may_hold(holding, node.region)
    )


def _may_hold(holding: Holding, region: str) -> bool:
    if holding.namespace == MESH_NAMESPACE:
        return True
    policy = holding.view.policy
    return policy is not None and region in policy.regions


def on_state_request(state: NodeState, now: Instant, sender: Address, asked: StateRequest, out: Out) -> None:
    """Send a namespace as applied here to an enrolled node of a region that may hold it, if it is new enough."""
    holding, node = state.holding(asked.namespace), state.mesh_view.nodes.get(sender)
    if holding is None or holding.applied is None or node is None or not _may_hold(holding, node.region):
        return
    if not _may_hold(holding, state.config.region) or holding.leaf.order < (asked.epoch, asked.seq):
        return
    leaf = holding.leaf
    task = Task(
        task_id=f"{asked.namespace}:{leaf.epoch}:{leaf.seq}:{leaf.entry_hash[:16]}",
        lane=Lane.RESTRICTION,
        namespace=asked.namespace,
        state=holding.applied,
        correlation_id=holding.applied.head.entry.correlation_id,
        mesh=None if holding is state.mesh else state.mesh.applied,
    )
    out.append(Send(sender, task))


def is_asked_for(state: NodeState, sender: Address, task: Task) -> bool:
    """Whether a task that does not come from the Registry is what this node asks other regions for."""
    return sender in state.mesh_view.nodes and task.namespace in state.fetching and not task.force
