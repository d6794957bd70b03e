"""Whether a rotation of root and officer keys is of this very mesh: what the rows alone do not tell.

Which set it ends, and who signed it, is judged with every entry (``control/reduce_trust.py``, ``trust.py``).  Pure.
"""

from __future__ import annotations

from typing import Final

from keymesh.control.kinds import CHANGE_VOTERS, ROTATE_TRUST
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.limits import TASK_MAX_BYTES
from keymesh.registry import spaces
from keymesh.registry.events import Command
from keymesh.registry.state import RegistryState

SUPPORT_MAX_BYTES: Final = TASK_MAX_BYTES * 3 // 8
"""Rows of grants take a half of a task; an eighth is left to restrictions."""


def refusal(state: RegistryState, command: Command) -> KeymeshError | None:
    """Why ``command`` may not be given now; None for other kinds than a rotation and a change of voters.

    A holder would take no set of another genesis, and none that was committed by voters who sat down after it: the mesh
    would stand still.  So would it by a state that no task carries: every rotation travels with it for good.
    """
    space = spaces.mesh_space(state)
    if command.kind == CHANGE_VOTERS:
        waiting = [seq for seq in space.uncommitted if space.entries[seq - 1].entry.kind == ROTATE_TRUST]
        return (
            Unavailable("rotation-uncommitted", "a rotation of keys waits for the voters in force") if waiting else None
        )
    if command.kind != ROTATE_TRUST:
        return None
    if space.entries and command.args.get("genesis") != space.entries[0].hash:
        return Refused("foreign-genesis", "signed for a mesh with another first entry", field="genesis")
    own = len(strict_json.dumps({"args": command.args, "authority": command.authority}))
    if sum(len(item.signed.envelope.payload) for item in space.support) + own > SUPPORT_MAX_BYTES:
        return Refused(
            "too-large", f"what the mesh's state rests on would pass {SUPPORT_MAX_BYTES} bytes", field="args"
        )
    return None
