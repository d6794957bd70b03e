"""What a rotation of root and officer keys makes of the mesh's rows (DESIGN section 2, after TUF).

Decides whether the new trust set follows the one that is there.  Not whether a threshold of the old root, of the new
one and of the new officers signed it (``trust``), nor which set an earlier entry is judged by (``succession``).
"""

from __future__ import annotations

import hashlib
from typing import Final

from keymesh.control import checks
from keymesh.control.draft import Draft
from keymesh.control.kinds import KINDS, RotateTrust
from keymesh.control.rows import DelegationRow, RootRow, Row
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import Digest, check_hex

OFFICERS_ROW: Final = "delegation/officers"


def set_digest(root: RootRow, officers: RootRow | DelegationRow | None) -> Digest:
    """What a rotation names as the set that it ends: SHA-256 of the one form of ``{"officers": ..., "root": ...}``.

    Each is ``{"keys": ..., "threshold": ...}``, the root's with its ``version``; officers null where there are none.
    """
    who = None if officers is None else {"keys": officers.keys, "threshold": officers.threshold}
    return Digest(hashlib.sha256(strict_json.dumps({"officers": who, "root": root})).hexdigest())


def rotate(draft: Draft, args: RotateTrust) -> None:
    """Version n + 1 and no other, of exactly the set in force; whole sets only."""
    root, officers = draft.get("root", RootRow), draft.get(OFFICERS_ROW, DelegationRow)
    if root is None or args.root.version != root.version + 1:
        now = "none" if root is None else str(root.version)
        raise Refused(
            "conflict", f"the trust set in force is version {now}: the next is above it", field="root.version"
        )
    if args.replaces != set_digest(root, officers):
        raise Refused("conflict", "signed to end another trust set than the one in force", field="replaces")
    check_set(args.root, args.officers)
    check_hex("genesis", args.genesis, hex_bytes=32)
    if (args.root.keys, args.root.threshold, args.officers) == (root.keys, root.threshold, officers):
        raise Refused("already", "these keys are in force", field="root")
    for name, row in given_by(args).items():
        draft.put(name, row)


def check_set(root: RootRow, officers: DelegationRow) -> None:
    """Well formed: ids that are their keys', thresholds that can be met, kinds that are known.  Raises Refused."""
    checks.root(root)
    checks.keys("officers", officers.keys, officers.threshold)
    if officers.scope != "mesh":
        raise Refused.bad_field("officers.scope", "mesh")
    if not set(officers.kinds) <= set(KINDS) or len(set(officers.kinds)) != len(officers.kinds):
        raise Refused.bad_field("officers.kinds", "known kinds, each once")


def given_by(args: RotateTrust) -> dict[str, Row]:
    """The rows that a rotation gives."""
    return {"root": args.root, OFFICERS_ROW: args.officers}
