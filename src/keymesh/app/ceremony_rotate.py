"""The offline half of a rotation: new keys for root and officers, and one public file by which the mesh takes them.

Nothing here speaks to anybody, and no key file is overwritten or removed.  ``rotation.json`` holds what the old root,
the new root and the new officers signed; whoever carries it to the mesh (``keymesh ceremony submit``) need hold no key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app import ceremony
from keymesh.app.ceremony import Ceremony
from keymesh.app.signing_keys import SigningKey
from keymesh.app.trust_file import TrustFile, save_trust
from keymesh.control import trust
from keymesh.control.kinds import KINDS, OFFICER_KINDS, ROTATE_TRUST, RotateTrust
from keymesh.control.reduce_trust import check_set, set_digest
from keymesh.control.rows import DelegationRow, RootRow
from keymesh.control.signing import DsseSuite, VerifyOnly, from_plain, to_plain
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, KeyId
from keymesh.model.limits import ENTRY_MAX_BYTES, SIGNATURES_MAX

FILE: Final = "rotation.json"
TRUST: Final = "trust.json"


class Rotation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``authority``: envelopes, as JSON, over the command ``trust.rotate`` of that id with ``args``."""

    mesh: str
    command_id: str
    args: dict[str, Any]
    authority: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to change: ``lost`` keys by file name or key id (none: every key is replaced); (threshold, keys) of a
    role, None: as they are.  ``not_after``: Unix ms, until when the mesh may be told."""

    lost: tuple[str, ...]
    roots: tuple[int, int] | None
    officers: tuple[int, int] | None
    not_after: int

    def size(self, role: str) -> tuple[int, int] | None:
        return self.roots if role == "root" else self.officers


@dataclass(frozen=True, slots=True)
class Rotated:
    """``made``: new key files by name; ``kept`` and ``gone``: names of the others."""

    ceremony: Ceremony
    rotation: Rotation
    made: tuple[str, ...]
    kept: tuple[str, ...]
    gone: tuple[str, ...]


def rotate(old: Ceremony, keys: Mapping[Path, SigningKey], of: TrustFile, directory: Path, wanted: Wanted) -> Rotated:
    """New keys in ``directory``, which must be empty or absent; the public files, ``trust.json`` of the new set among
    them, come last.

    1. ``old`` is of the mesh of ``of``.  2. Who is lost is known by name.  3. A threshold of the old root is at hand,
    the lost ones left out.  4. New keys are made, signed with, and the whole verified as the mesh will.
    Raises Refused before a file is written.
    """
    _check_mesh(old, of)
    lost = _lost(old, wanted.lost)
    hand = {key.key_id: key for key in keys.values()}
    signing = [key for key_id, key in hand.items() if key_id in old.root.keys and key_id not in lost]
    if len(signing) < old.root.threshold:
        raise Refused(
            "below-threshold",
            f"{old.root.threshold} root keys end a trust set, {len(signing)} that are not lost are at hand: "
            "bring the others with --key",
            field="key",
        )
    rows = {"root": old.root, "officer": old.officers}
    sizes = {role: wanted.size(role) or (row.threshold, len(row.keys)) for role, row in rows.items()}
    keeping = {role: _kept(row, lost, replace_all=not wanted.lost) for role, row in rows.items()}
    _check_sizes(keeping, sizes, hand)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise Refused("exists", f"{directory} is not empty; a ceremony never overwrites a key", field="out")
    version = old.root.version + 1
    made = {
        role: ceremony.new_keys(directory, f"{role}-v{version}", sizes[role][1] - len(keeping[role])) for role in rows
    }
    new = _ceremony(old, version, keeping, made, sizes)
    fresh = [key for of_role in made.values() for key in of_role.values()]
    rotation = _signed(old, new, of, [*signing, *fresh, *_at_hand(hand, keeping)], wanted.not_after)
    check(rotation, old)
    ceremony.save(directory, new)
    save_trust(directory / TRUST, TrustFile(mesh=of.mesh, root=new.root, genesis=of.genesis))
    write_file(directory / FILE, strict_json.dumps(rotation), mode=PUBLIC_MODE)
    kept_ids = {key_id for ids in keeping.values() for key_id in ids}
    ids = [*old.root.keys, *old.officers.keys]
    return Rotated(
        new,
        rotation,
        tuple(sorted(name for of_role in made.values() for name in of_role)),
        tuple(sorted(name_of(old, key_id) for key_id in ids if key_id in kept_ids)),
        tuple(sorted(name_of(old, key_id) for key_id in ids if key_id not in kept_ids)),
    )


def name_of(made: Ceremony, key_id: str) -> str:
    """The file that a key was made in; where nobody wrote that down, its id."""
    return made.names.get(key_id, key_id)


def _check_mesh(old: Ceremony, of: TrustFile) -> None:
    """``of`` pins an earlier set, or this one."""
    mine, pinned = old.root, of.root
    if pinned.version > mine.version or (pinned.version == mine.version and pinned != mine):
        raise Refused("foreign-root", f"{ceremony.FILE} is not of the mesh {of.mesh}", field="trust")


def _lost(old: Ceremony, named: Iterable[str]) -> frozenset[str]:
    """Ids of keys; each named by its file, as it was made, or by its id."""
    ids = [*old.root.keys, *old.officers.keys]
    found = set()
    for name in named:
        match = [key_id for key_id in ids if name in (key_id, old.names.get(key_id))]
        if not match:
            known = ", ".join(sorted(name_of(old, key_id) for key_id in ids))
            raise Refused.bad_field("lost", f"no key {name[:80]!r}; there are {known}")
        found.update(match)
    return frozenset(found)


def _kept(row: RootRow, lost: frozenset[str], *, replace_all: bool) -> list[str]:
    return [] if replace_all else [key_id for key_id in row.keys if key_id not in lost]


def _check_sizes(
    keeping: Mapping[str, Sequence[str]], sizes: Mapping[str, tuple[int, int]], hand: Mapping[str, SigningKey]
) -> None:
    """Keys that stay fit into the new set, and with the new ones enough are at hand to sign for it."""
    for role, kept in keeping.items():
        threshold, count = sizes[role]
        if count < len(kept):
            field = "roots" if role == "root" else "officers"
            raise Refused.bad_field(field, f"at least {len(kept)} keys, which are not lost")
        present = count - len(kept) + sum(key_id in hand for key_id in kept)
        if present < threshold:
            raise Refused(
                "below-threshold",
                f"{threshold} {role} keys of the new set sign for it, {present} are at hand: bring others with --key",
                field="key",
            )


def _ceremony(
    old: Ceremony,
    version: int,
    keeping: Mapping[str, Sequence[str]],
    made: Mapping[str, Mapping[str, SigningKey]],
    sizes: Mapping[str, tuple[int, int]],
) -> Ceremony:
    rows: dict[str, RootRow] = {}
    names: dict[str, str] = {}
    for role, row in (("root", old.root), ("officer", old.officers)):
        kept = {key_id: row.keys[key_id] for key_id in keeping[role]}
        fresh = {key.key_id: key.public_hex for key in made[role].values()}
        rows[role] = RootRow(version=version, keys=kept | fresh, threshold=sizes[role][0])
        names |= {key_id: old.names[key_id] for key_id in kept if key_id in old.names}
        names |= {key.key_id: name for name, key in made[role].items()}
    return Ceremony(root=rows["root"], officers=rows["officer"], names=names)


def _at_hand(hand: Mapping[str, SigningKey], keeping: Mapping[str, Sequence[str]]) -> list[SigningKey]:
    return [hand[key_id] for ids in keeping.values() for key_id in ids if key_id in hand]


def _signed(old: Ceremony, new: Ceremony, of: TrustFile, signers: list[SigningKey], not_after: int) -> Rotation:
    officers = DelegationRow(
        keys=new.officers.keys, threshold=new.officers.threshold, kinds=OFFICER_KINDS, scope="mesh"
    )
    check_set(new.root, officers)
    args = RotateTrust(
        root=new.root, officers=officers, replaces=set_digest(old.root, old.officers), genesis=of.genesis
    )
    plain = strict_json.loads(strict_json.dumps(msgspec.to_builtins(args)), max_bytes=ENTRY_MAX_BYTES)
    command_id = f"rotate-{new.root.version}-{os.urandom(8).hex()}"
    each = list({key.key_id: key for key in signers}.values())
    authority = [
        trust.make_authority(
            mesh=of.mesh, namespace=MESH_NAMESPACE, command_id=command_id, kind=ROTATE_TRUST, args=plain,
            not_after=not_after, signers=[key.signer for key in each[n : n + SIGNATURES_MAX]],
        )
        for n in range(0, len(each), SIGNATURES_MAX)
    ]  # fmt: skip
    return Rotation(
        mesh=of.mesh, command_id=command_id, args=plain, authority=tuple(to_plain(one) for one in authority)
    )


def check(rotation: Rotation, old: Ceremony) -> None:
    """All who must sign it did, as far as that can be told offline: of the old set, and of the one that it brings.

    Raises Refused ``below-threshold``: with keys that stay elsewhere a role may lack its threshold here.
    """
    kind = KINDS[ROTATE_TRUST]
    ending = trust.Quorum({KeyId(k): v for k, v in old.root.keys.items()}, old.root.threshold)
    for quorum in (ending, *trust.incoming(kind, rotation.args)):
        trust.verify_authority(
            mesh=rotation.mesh,
            namespace=MESH_NAMESPACE,
            command_id=rotation.command_id,
            kind=ROTATE_TRUST,
            args=rotation.args,
            authority=rotation.authority,
            quorum=quorum,
            suite=DsseSuite(VerifyOnly()),
        )


def load(path: Path) -> Rotation:
    """Raises Refused where it is absent, or not well formed."""
    try:
        raw = path.read_bytes()
    except OSError as bad:
        raise Refused("not-found", f"{path} cannot be read: {bad.strerror}", field="file") from bad
    found = strict_json.decode(raw, Rotation, max_bytes=2 * ENTRY_MAX_BYTES)
    strict_json.convert(found.args, RotateTrust)
    try:
        for plain in found.authority:
            trust.parse_authority(from_plain(plain))
    except KeymeshError as bad:
        raise Refused.bad_field("authority", f"signed words over one command: {bad.message[:120]}") from bad
    return found
