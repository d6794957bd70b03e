"""``trust.json``: the mesh's name, root keys and genesis hash, which every process and every stranger pins."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.control.rows import RootRow
from keymesh.model import strict_json

_MAX_BYTES = 64 * 1024


class TrustFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``root``: keys and threshold; ``genesis``: hash of the mesh's first entry."""

    mesh: str
    root: RootRow
    genesis: str


def load_trust(path: Path) -> TrustFile:
    """Raises Refused naming the field for a malformed file."""
    return strict_json.decode(path.read_bytes(), TrustFile, max_bytes=_MAX_BYTES)


def save_trust(path: Path, trust: TrustFile) -> None:
    write_file(path, strict_json.dumps(trust), mode=PUBLIC_MODE)
