"""Whether a rotation of root and officer keys is of this very mesh: what the rows alone do not tell.

Which set it ends, and who signed it, is judged with every entry (``control/reduce_trust.py``, ``trust.py``).  Pure.
"""

from __future__ import annotations

from keymesh.control.kinds import ROTATE_TRUST
from keymesh.model.errors import KeymeshError, Refused
from keymesh.registry import spaces
from keymesh.registry.events import Command
from keymesh.registry.state import RegistryState


def refusal(state: RegistryState, command: Command) -> KeymeshError | None:
    """Why ``command`` may not be given; None for every other kind.  A holder would take no set of another genesis, and
    the mesh would stand still."""
    if command.kind != ROTATE_TRUST:
        return None
    entries = spaces.mesh_space(state).entries
    if entries and command.args.get("genesis") != entries[0].hash:
        return Refused("foreign-genesis", "signed for a mesh with another first entry", field="genesis")
    return None
