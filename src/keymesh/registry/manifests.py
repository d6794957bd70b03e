"""Heads trees that nodes walk, and what they then say they lack (DESIGN section 4).

A node is shown nothing but the tree of its own last answer, and what it says of its manifest must lead to the root
that its sealed heartbeat named.  What is done about a difference is ``convergence``'s.
"""

from __future__ import annotations

from typing import Any

from keymesh.control.entry import Leaf
from keymesh.control.heads import leaf_bytes
from keymesh.model.errors import KeymeshError
from keymesh.model.limits import WALK_DIFFERENCES_MAX
from keymesh.model.machine import Address, Note, Send
from keymesh.model.time import Instant
from keymesh.orbital import diff, dispatch, walk
from keymesh.orbital.messages import ManifestAsk, ManifestDiffers
from keymesh.registry import convergence, sessions
from keymesh.registry.state import RegistryState, Session, ToldHeads


def told_to(state: RegistryState, sender: Address, message: ManifestAsk | ManifestDiffers) -> ToldHeads | None:
    """What the sender was told, where its message is about just that; a late one is passed over."""
    session = state.sessions.get(sender)
    if session is None or (message.region, message.node) != (session.region, session.node):
        return None
    told = session.told
    return told if told is not None and told.tree.root == message.root else None


def on_ask(state: RegistryState, now: Instant, sender: Address, message: ManifestAsk, out: list[Any]) -> None:
    told = told_to(state, sender, message)
    if told is None:
        return
    try:
        out.append(Send(sender, walk.tell(told.tree, message.prefixes)))
    except KeymeshError as bad:
        _refused(sender, bad.code, out)


def on_differs(state: RegistryState, now: Instant, sender: Address, message: ManifestDiffers, out: list[Any]) -> None:
    """Put right what a node lacks.

    1. It is about the tree that the node was told, and the manifest of the heartbeat before.  2. It is of a size.
    3. Told tree and differences make that manifest; where there are more, the rest will show.
    """
    told = told_to(state, sender, message)
    if told is None or message.manifest_root != told.manifest_root or not state.booted:
        return
    if len(message.held) > WALK_DIFFERENCES_MAX:
        _refused(sender, "too-many", out)
    elif not message.more and not leads_to_manifest(told, message.held):
        _refused(sender, "root", out)
    else:
        session = state.sessions[sender]
        session.told = None  # said once
        learn(session, told, message.held)
        _put_right(state, now, session, message.held, out)


def _refused(sender: Address, reason: str, out: list[Any]) -> None:
    out.append(Note("manifest-refused", "orbital", (("node", str(sender)), ("reason", reason))))


def leads_to_manifest(told: ToldHeads, held: dict[str, Leaf | None]) -> bool:
    tree = told.tree
    for name, leaf in held.items():
        tree = tree.delete(name) if leaf is None else tree.set(name, leaf_bytes(leaf))
    return tree.root == told.manifest_root


def learn(session: Session, told: ToldHeads, held: dict[str, Leaf | None]) -> None:
    merged = {**told.leaves, **held}
    session.reported = {name: leaf for name, leaf in merged.items() if leaf is not None}
    session.known, session.in_step_with = True, None


def _put_right(
    state: RegistryState, now: Instant, session: Session, held: dict[str, Leaf | None], out: list[Any]
) -> None:
    shown = state.regions[session.region]
    wanted = {name: leaf for name in held if (leaf := shown.tree.get(name)) is not None}
    actual = {name: leaf for name, leaf in held.items() if leaf is not None}
    for difference in diff.plan(wanted, actual):
        convergence.put_right(state, now, session, difference, out)
    dispatch.heard(session.queue)
    sessions.push(state, now, session, out)
