"""Orbital's task and the pull that fetches it (DESIGN section 4): one task type serves all lanes."""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control.messages import Message
from keymesh.control.state import NamespaceState as NamespaceState
from keymesh.control.state import Supported as Supported
from keymesh.model.states import Lane


@dataclass(frozen=True, slots=True)
class Task:
    """Self-contained: applies when it verifies and is newer, whatever came or did not come before it.

    ``mesh`` comes along when the entry rests on a newer mesh head than the node has reported.
    ``task_id`` is ``<namespace>:<epoch>:<seq>:<first 16 of entry hash>``: versioned and unique.
    """

    task_id: str
    lane: Lane
    namespace: str
    state: NamespaceState
    correlation_id: str
    mesh: NamespaceState | None = None
    force: bool = False


class Hello(Message):
    """Node to Registry after a (re)connection: send what I miss."""

    region: str
    node: str
    boot_id: str
