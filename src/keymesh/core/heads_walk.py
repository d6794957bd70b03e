"""A node walks the heads tree that an answer named, where it is too large to come along (DESIGN section 4).

The walk starts from this node's own manifest, or goes on from what an unfinished one knew, and ends in the leaves that
the answer offers.  The Registry is then told by what the manifest differs: it walks nobody's.  Decides no lease.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from keymesh.control.heads import parse_leaf
from keymesh.core.state import HeadsWalk, NodeState, Offer, Out, Outstanding, note
from keymesh.ledger.maptree import Change, diff
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import Digest
from keymesh.model.limits import WALK_DIFFERENCES_MAX
from keymesh.model.machine import REGISTRY, Send
from keymesh.model.time import Instant
from keymesh.orbital import walk
from keymesh.orbital.messages import ManifestAsk, ManifestDiffers, ManifestTell

ASK_AGAIN_MS: Final = 2_000
ASKED_INTERVALS: Final = 3


def begin(state: NodeState, root: Digest, answered: Outstanding, *, start: Instant, ttl_ms: int) -> None:
    """In place of one that is under way, whose finds are kept."""
    known = answered.manifest if state.walk is None else state.walk.walk.known
    state.walk = HeadsWalk(walk.begin(known, root), answered, start, ttl_ms)


def take(state: NodeState, message: ManifestTell, out: Out) -> bool:
    """Whether that was a round of the walk.  An answer that its root does not vouch for ends it."""
    under_way = state.walk
    if under_way is None:
        return False
    rounds = under_way.walk.rounds
    try:
        walk.take(under_way.walk, message)
    except KeymeshError as bad:
        state.walk = None
        note(out, "manifest-refused", reason=bad.code)
        return False
    return under_way.walk.rounds > rounds


def on_timer(state: NodeState, now: Instant, what: str, out: Out) -> None:
    """The same question again, where it is still out: it or its answer was lost.  Not for ever: the next heartbeat's
    answer goes on from here."""
    under_way = state.walk
    if under_way is not None and what == _round_of(under_way):
        if now < under_way.answered.sent_at + ASKED_INTERVALS * state.interval_ms:
            go_on(state, now, out)


def _round_of(under_way: HeadsWalk) -> str:
    return f"{under_way.answered.nonce}/{under_way.walk.rounds}"


def go_on(state: NodeState, now: Instant, out: Out) -> Offer | None:
    """Ask further; at the end report what this node lacks, and give what it was offered."""
    under_way, config = state.walk, state.config
    assert under_way is not None
    if not under_way.walk.is_done:
        prefixes = tuple(walk.question(under_way.walk))
        ask = ManifestAsk(region=config.region, node=config.node, root=under_way.walk.root, prefixes=prefixes)
        out.append(Send(REGISTRY, ask))
        state.at(Instant(now + ASK_AGAIN_MS), "walk", _round_of(under_way))
        return None
    state.walk = None
    answered = under_way.answered
    changes = list(diff(answered.manifest, under_way.walk.known))
    out.append(Send(REGISTRY, report(state, under_way, changes)))
    leaves = dict(answered.leaves)
    for change in changes:
        if change.new is None:
            leaves.pop(change.key, None)
        else:
            leaves[change.key] = parse_leaf(change.new)
    return Offer(under_way.start, under_way.ttl_ms, leaves)


def report(state: NodeState, under_way: HeadsWalk, changes: list[Change]) -> ManifestDiffers:
    """The differences, as many as one message takes; what they lead to makes room for the rest."""
    first = islice(changes, WALK_DIFFERENCES_MAX)
    return ManifestDiffers(
        region=state.config.region,
        node=state.config.node,
        root=under_way.walk.root,
        manifest_root=under_way.answered.manifest_root,
        held={c.key: None if c.old is None else parse_leaf(c.old) for c in first},
        more=len(changes) > WALK_DIFFERENCES_MAX,
    )
