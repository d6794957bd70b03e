"""A small mesh whose root and officers are rotated."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.unit.control.world import VOTERS, Key, Mesh, row_keys, row_of

from keymesh.control.kinds import OFFICER_KINDS
from keymesh.control.reduce_trust import OFFICERS_ROW, set_digest
from keymesh.control.rows import DelegationRow, RootRow, Rows
from keymesh.control.state import NamespaceState

ROTATE = "trust.rotate"


def keys_of(mesh: Mesh, name: str) -> list[Key]:
    return [mesh.key(f"{name}-{i}") for i in range(3)]


class Rotating(Mesh):
    """``roots`` and ``officers`` are those in force; ``sets`` all that were, with the present one."""

    def __init__(self, *, real: bool = False, voters: tuple[str, ...] = VOTERS) -> None:
        super().__init__(real=real, voters=voters)
        self.sets = [(self.roots, self.officers)]
        self.founded = self.mesh

    def genesis(self, voters: tuple[str, ...] = VOTERS) -> Any:
        made = super().genesis(voters)
        officers = msgspec.structs.replace(made.delegations["officers"], kinds=OFFICER_KINDS)
        return msgspec.structs.replace(made, delegations={**made.delegations, "officers": officers})

    def rotation(self, roots: list[Key], officers: list[Key], *, rows: Rows | None = None, **fields: Any) -> Any:
        """Arguments; ``fields`` replace some."""
        rows = self.mesh.rows if rows is None else rows
        root, old = row_of(rows, "root", RootRow), row_of(rows, OFFICERS_ROW, DelegationRow)
        made: dict[str, Any] = {
            "root": RootRow(version=root.version + 1, keys=row_keys(*roots), threshold=2),
            "officers": DelegationRow(keys=row_keys(*officers), threshold=2, kinds=OFFICER_KINDS, scope="mesh"),
            "replaces": set_digest(root, old),
            "genesis": self.history["mesh"][0].head.hash,
        }
        return msgspec.to_builtins(made | fields)

    def rotated(self, n: int, *, held: NamespaceState | None = None, **fields: Any) -> NamespaceState:
        """The state after a rotation to the ``n``-th set of new keys, kept nowhere."""
        roots, officers = keys_of(self, f"root{n}"), keys_of(self, f"officer{n}")
        args = self.rotation(roots, officers, rows=None if held is None else held.rows, **fields)
        signers = [*self.roots[:2], *roots[1:], *officers[:2]]
        return self.plan("mesh", ROTATE, args, held=held, signers=signers)

    def rotate(self, n: int, *, committed: bool = True) -> NamespaceState:
        """To the ``n``-th set, whose keys sign from then on."""
        made = self.rotated(n)
        state = self._keep("mesh", self.commit(made) if committed else made)
        self.roots, self.officers = keys_of(self, f"root{n}"), keys_of(self, f"officer{n}")
        self.sets.append((self.roots, self.officers))
        return state
