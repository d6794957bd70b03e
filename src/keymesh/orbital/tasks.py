"""What a task carries and how it is named: the newest state that an item stands for, in its lane, self-contained.

Decides the lane of a task and whether the mesh state travels along; not when it is sent (``dispatch``).
Source: DESIGN section 4.
"""

from __future__ import annotations

from collections.abc import Iterable

from keymesh.control.entry import SignedEntry
from keymesh.model.ids import MESH_NAMESPACE, Namespace
from keymesh.model.states import Lane
from keymesh.orbital.messages import NamespaceState, Task


def task_id(namespace: Namespace, head: SignedEntry) -> str:
    """``<namespace>:<epoch>:<seq>:<first 16 of entry hash>``: the same content has the same id, always."""
    return f"{namespace}:{head.entry.epoch}:{head.entry.seq}:{head.hash[:16]}"


def lane_of(lanes: Iterable[Lane]) -> Lane:
    """The lane of a task that carries entries of these lanes: the most urgent one."""
    return min(lanes, default=Lane.ROUTINE)


def needs_mesh(state: NamespaceState, known_mesh_seq: int) -> bool:
    """Whether the holder can't yet check ``state``'s signature: the entry rests on a newer mesh head."""
    return state.head.entry.namespace != MESH_NAMESPACE and state.head.entry.mesh_seq > known_mesh_seq


def make_task(
    state: NamespaceState,
    *,
    lane: Lane,
    correlation_id: str,
    mesh: NamespaceState | None,
    known_mesh_seq: int,
    force: bool = False,
) -> Task:
    """The task for ``state``; ``mesh`` goes along only where the holder needs it."""
    namespace = Namespace(state.head.entry.namespace)
    return Task(
        task_id=task_id(namespace, state.head),
        lane=lane,
        namespace=namespace,
        state=state,
        correlation_id=correlation_id,
        mesh=mesh if needs_mesh(state, known_mesh_seq) else None,
        force=force,
    )
