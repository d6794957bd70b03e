"""``genesis.json``: the mesh's first entry as its founders signed it.  Public; ``trust.json`` names its hash."""

from __future__ import annotations

from pathlib import Path

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.crypto.dsse import envelope_from_json, envelope_to_json
from keymesh.model.errors import Refused


def save_genesis(path: Path, genesis: SignedEntry) -> None:
    write_file(path, envelope_to_json(genesis.envelope), mode=PUBLIC_MODE)


def load_genesis(path: Path) -> SignedEntry:
    """Raises Refused where it is absent or malformed, Integrity where it is not what it says."""
    try:
        raw = path.read_bytes()
    except OSError as missing:
        raise Refused("not-found", f"{path} cannot be read: {missing.strerror}", field="genesis") from missing
    return parse_entry(envelope_from_json(raw))
