"""The offline ceremony: signing keys of roots and officers, one file each, and what is public of them in one more.

Nothing here speaks to anybody.  Each file goes to one person; ``ceremony.json`` goes to whoever founds the mesh.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import Struct

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.app.signing_keys import SigningKey, load_signer, new_signer
from keymesh.control import checks
from keymesh.control.kinds import OPEN_EPOCH
from keymesh.control.rows import RootRow
from keymesh.control.signing import DsseSuite, VerifyOnly, to_plain
from keymesh.control.trust import Quorum, make_authority, verify_authority
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import MESH_NAMESPACE, KeyId
from keymesh.model.limits import SIGNATURES_MAX

FILE: Final = "ceremony.json"
FILE_MAX_BYTES: Final = 64 * 1024
REHEARSAL: Final = "rehearsal"
_NEVER: Final = 2**53 - 1


class Ceremony(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is public of it; ``officers`` has no version of its own.  ``names``: key id -> the file that it was made in,
    so that one that is lost can be named."""

    root: RootRow
    officers: RootRow
    names: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Whether ``role`` can still sign without the key in ``lost``; ``left`` of its keys are at hand then."""

    role: str
    lost: str
    left: int
    threshold: int
    signs: bool


def parse_quorum(field: str, text: str) -> tuple[int, int]:
    """``2/3`` to (threshold, keys).  With as many keys as the threshold, the loss of one is the loss of all."""
    threshold, slash, count = text.partition("/")
    if not slash or not threshold.isdigit() or not count.isdigit() or not 1 <= int(threshold) <= int(count):
        raise Refused.bad_field(field, "M/N with 1 <= M <= N, as in 2/3")
    if int(count) > SIGNATURES_MAX:
        raise Refused.bad_field(field, f"at most {SIGNATURES_MAX} keys")
    return int(threshold), int(count)


def make(directory: Path, *, roots: tuple[int, int], officers: tuple[int, int]) -> Ceremony:
    """Keys in ``directory``, which must be empty or absent; the public file comes last."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise Refused("exists", f"{directory} is not empty; a ceremony never overwrites a key", field="directory")
    made = ceremony_of(
        {role: new_keys(directory, role, count) for role, (_, count) in (("root", roots), ("officer", officers))},
        thresholds={"root": roots[0], "officer": officers[0]},
    )
    save(directory, made)
    return made


def new_keys(directory: Path, name: str, count: int) -> dict[str, SigningKey]:
    """File name -> key, made in ``directory``."""
    return {path.name: new_signer(path) for path in (directory / f"{name}-{n}.pem" for n in range(1, count + 1))}


def ceremony_of(keys: Mapping[str, Mapping[str, SigningKey]], *, thresholds: Mapping[str, int]) -> Ceremony:
    """Of ``keys`` (``root`` or ``officer`` -> file name -> key)."""
    rows = {
        role: RootRow(version=1, keys={k.key_id: k.public_hex for k in of.values()}, threshold=thresholds[role])
        for role, of in keys.items()
    }
    names = {key.key_id: name for of in keys.values() for name, key in of.items()}
    return Ceremony(root=rows["root"], officers=rows["officer"], names=names)


def save(directory: Path, made: Ceremony) -> None:
    """The public file; it comes last."""
    write_file(directory / FILE, strict_json.dumps(made), mode=PUBLIC_MODE)


def load(directory: Path) -> Ceremony:
    """Raises Refused where there is none, or it is not well formed."""
    try:
        raw = (directory / FILE).read_bytes()
    except OSError as bad:
        raise Refused("not-found", f"no ceremony in {directory}: {bad.strerror}", field="directory") from bad
    found = strict_json.decode(raw, Ceremony, max_bytes=FILE_MAX_BYTES)
    checks.root(found.root)
    checks.root(found.officers)
    return found


def keys_in(directory: Path, others: Iterable[Path] = ()) -> dict[Path, SigningKey]:
    """Private keys at hand: those in ``directory`` that are named as this makes them, and ``others`` that their holders
    brought."""
    own = sorted(path for role in ("root", "officer") for path in directory.glob(f"{role}-*.pem"))
    return {path: load_signer(path) for path in (*own, *others)}


def of_role(row: RootRow, keys: Mapping[Path, SigningKey]) -> dict[Path, SigningKey]:
    """Those of ``keys`` that are the role's; each key once."""
    found: dict[str, Path] = {}
    for path, key in keys.items():
        if key.key_id in row.keys:
            found.setdefault(key.key_id, path)
    return {path: keys[path] for path in found.values()}


def rehearse(ceremony: Ceremony, keys: Mapping[Path, SigningKey], lost: Iterable[str] = ()) -> list[Rehearsed]:
    """Each role signs something, and is verified, without each of its keys in turn; or without those named ``lost``,
    all at once."""
    gone = frozenset(lost)
    if unknown := sorted(gone - {path.name for path in keys}):
        raise Refused.bad_field("lost", f"no key file {unknown[0]!r} here")
    found = []
    for role, row in (("root", ceremony.root), ("officers", ceremony.officers)):
        own = of_role(row, keys)
        for names in [gone] if gone else [frozenset({path.name}) for path in own] or [frozenset[str]()]:
            left = [key for path, key in own.items() if path.name not in names]
            said = ", ".join(sorted(names & {path.name for path in own}))
            found.append(Rehearsed(role, said, len(left), row.threshold, signs(row, left)))
    return found


def signs(row: RootRow, keys: Iterable[SigningKey]) -> bool:
    """Whether ``keys`` are enough to open an epoch of a mesh that nobody has: really signed, really verified."""
    command_id, args = f"{REHEARSAL}-{os.urandom(8).hex()}", {"epoch": 2}
    signers = [key.signer for key in keys]
    envelopes = () if not signers else (
        make_authority(
            mesh=REHEARSAL, namespace=MESH_NAMESPACE, command_id=command_id, kind=OPEN_EPOCH, args=args,
            not_after=_NEVER, signers=signers,
        ),
    )  # fmt: skip
    try:
        verify_authority(
            mesh=REHEARSAL,
            namespace=MESH_NAMESPACE,
            command_id=command_id,
            kind=OPEN_EPOCH,
            args=args,
            authority=tuple(to_plain(envelope) for envelope in envelopes),
            quorum=Quorum({KeyId(k): v for k, v in row.keys.items()}, row.threshold),
            suite=DsseSuite(VerifyOnly()),
        )
    except Refused:
        return False
    return True
