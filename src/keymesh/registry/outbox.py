"""What becomes of an outbox line when its turn comes: a task for one region, later, or nothing.

Pure.  The line only says that a region is to hear of an entry; what it hears is made from the log as this replica has
verified it.  Source: DESIGN section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from keymesh.model.ids import MESH_NAMESPACE, Namespace
from keymesh.model.states import Lane
from keymesh.orbital import tasks
from keymesh.orbital.messages import Task
from keymesh.registry import sessions, spaces
from keymesh.registry.state import RegistryState

EVERYWHERE: Final = "*"
"""In place of a region: a line for all of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: ``region`` is to hear of entry ``seq`` of ``namespace`` in ``lane``."""

    namespace: Namespace
    seq: int
    region: str
    lane: Lane
    correlation_id: str


class Turn(Enum):
    LATER = "later"
    NEVER = "never"


def task_of(state: RegistryState, line: Line, region: str) -> Task | Turn:
    """The task for ``region``, with the mesh state if any of its nodes may need it.

    LATER: this replica has not read so far, or a resume before it is not committed.  NEVER: every node has it already,
    or residency has changed and the region may not hold it any more.
    """
    space = state.spaces.get(line.namespace)
    if space is None or line.seq > space.seq:
        return Turn.LATER
    if not spaces.may_hold(space, region):
        return Turn.NEVER
    nodes = [s for _, s in sorted(state.sessions.items()) if s.region == region]
    held = [s.applied.get(line.namespace) for s in nodes]
    if nodes and all(leaf is not None and leaf.seq >= line.seq for leaf in held):
        return Turn.NEVER
    if line.seq > space.offered and not spaces.is_restriction(space.entries[line.seq - 1]):
        return Turn.LATER
    content = spaces.state_at(space, line.seq)
    known = [s.applied.get(MESH_NAMESPACE) for s in nodes]
    return tasks.make_task(
        content,
        lane=line.lane,
        correlation_id=line.correlation_id,
        mesh=sessions.mesh_for(spaces.mesh_space(state), content.head.entry.mesh_seq),
        known_mesh_seq=min((0 if leaf is None else leaf.seq for leaf in known), default=0),
    )


def heads(state: RegistryState) -> dict[str, int]:
    """The newest seq of every namespace."""
    return {name: space.seq for name, space in state.spaces.items()}
