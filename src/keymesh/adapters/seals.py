"""Seals of a region's MasterKey: a key file for development, or Shamir shares held by people.

Decides how the MasterKey is kept at rest and brought back; what it wraps is ``core.keyring``'s.  In the directory:
``master.json`` names the kind of seal and the MasterKey's kid, so that a wrong key is noticed before it opens
anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.crypto import shamir, wrap
from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.kid import check_kid, kid_bytes, kid_hex, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import XaesKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused

MASTER_FILE: Final = "master.json"
FILE_SEAL_KEY: Final = "seal.key"
_MAX_BYTES: Final = 64 * 1024


class MasterRecord(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``sealed``: the wrapped MasterKey (hex), in the form of its ``kind``; empty for ``shamir``."""

    kind: str
    kid: str
    sealed: str = ""
    threshold: int = 0


def master_subject(region: str, kid: bytes) -> Subject:
    """What every seal binds the MasterKey to."""
    return Subject(level=Level.MASTER, tenant=f"cluster/{region}", domain="", key="master", version=1, kid=kid)


def load_record(directory: Path) -> MasterRecord | None:
    """How this region is sealed, or None where it has no MasterKey yet."""
    path = directory / MASTER_FILE
    return strict_json.decode(path.read_bytes(), MasterRecord, max_bytes=_MAX_BYTES) if path.exists() else None


def create_file_seal(directory: Path, region: str, pages: KeyPages) -> SecretBytes:
    """A new MasterKey under a new key file beside it: for development only, since both lie in one place."""
    with pages.put(os.urandom(32)) as seal_key:
        master = pages.put(os.urandom(32))
        kid = kid_of(master.reveal())
        parent_kid = kid_of(seal_key.reveal())
        sealed = wrap.seal_key(
            XaesKey(seal_key.reveal()), parent_kid, master_subject(region, kid), master, os.urandom(24)
        )
        write_file(directory / FILE_SEAL_KEY, bytes(seal_key.reveal()))
    write_file(
        directory / MASTER_FILE,
        strict_json.dumps(MasterRecord(kind="file", kid=kid_hex(kid), sealed=sealed.hex())),
    )
    return master


def open_file_seal(directory: Path, region: str, record: MasterRecord, pages: KeyPages) -> SecretBytes:
    """The MasterKey.  Raises Integrity (opaque) where key file and record do not belong together."""
    with pages.put(read_private(directory / FILE_SEAL_KEY)) as seal_key:
        try:
            blob = bytes.fromhex(record.sealed)
        except ValueError as bad:
            raise Integrity.opaque() from bad
        subject = master_subject(region, kid_bytes(record.kid))
        return wrap.open_key(XaesKey(seal_key.reveal()), kid_of(seal_key.reveal()), subject, blob, pages)


def create_shamir_seal(
    directory: Path, pages: KeyPages, *, threshold: int, n_shares: int
) -> tuple[SecretBytes, tuple[str, ...]]:
    """A new MasterKey and the text of its shares, which exist nowhere else afterwards."""
    master = pages.put(os.urandom(32))
    shares = shamir.split(master.reveal(), threshold, n_shares, os.urandom)
    record = MasterRecord(kind="shamir", kid=kid_hex(kid_of(master.reveal())), threshold=threshold)
    write_file(directory / MASTER_FILE, strict_json.dumps(record))
    return master, tuple(share.to_text() for share in shares)


def open_shamir_seal(record: MasterRecord, shares: Sequence[str], pages: KeyPages) -> SecretBytes:
    """The MasterKey from ``threshold`` shares.  Raises Refused (too few, mixed) or Integrity (not this MasterKey)."""
    if record.kind != "shamir":
        raise Refused("wrong-seal", "this region is not sealed by shares", field="shares")
    combined = shamir.combine([shamir.share_from_text(text) for text in shares])
    try:
        master = pages.put(combined)
    finally:
        combined[:] = bytes(len(combined))
    try:
        check_kid(master.reveal(), kid_bytes(record.kid))
    except KeymeshError:
        master.wipe()
        raise
    return master
