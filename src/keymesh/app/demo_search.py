"""The search for a tenant where it must not be: every file, every spelling of every identifier.

Decides which byte patterns betray an identifier: itself, in hex, in base64 at each of the three alignments; what is
written in hex is also looked for as the bytes that it stands for.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATTERN_MIN_BYTES: Final = 6
"""A shorter one would be found by chance."""
_WINDOW_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """``hits``: (file, what) of every identifier that a file holds, once each."""

    files: int
    n_bytes: int
    hits: tuple[tuple[str, str], ...]

    def kinds(self) -> set[str]:
        return {what for _, what in self.hits}


def patterns(identifier: str) -> tuple[bytes, ...]:
    """What to look for, for one identifier."""
    texts = [identifier.encode()]
    spelled = [*texts, identifier.upper().encode()]
    try:
        texts.append(bytes.fromhex(identifier))
        spelled.append(texts[-1])
    except ValueError:
        pass
    for raw in texts:
        spelled += [raw.hex().encode(), raw.hex().upper().encode()]
        for alphabet in (b"+/", b"-_"):
            spelled += [_inside_base64(raw, shift, alphabet) for shift in range(3)]
    return tuple(sorted({one for one in spelled if len(one) >= PATTERN_MIN_BYTES}))


def _inside_base64(raw: bytes, shift: int, alphabet: bytes) -> bytes:
    """The characters that ``raw`` alone decides, where ``shift`` other bytes stand before it in a group of three."""
    text = base64.b64encode(bytes(shift) + raw, altchars=alphabet)
    return text[-(-8 * shift // 6) : 8 * (shift + len(raw)) // 6]


def search(roots: Iterable[Path], needles: Mapping[str, Iterable[str]]) -> Found:
    """Look for ``needles`` (identifiers by what they are) in every file under ``roots``, and in the files' names."""
    wanted = {what: tuple(p for one in identifiers for p in patterns(one)) for what, identifiers in needles.items()}
    files = n_bytes = 0
    hits: list[tuple[str, str]] = []
    paths = [(root, path) for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    for start, path in paths:
        name = str(path.relative_to(start)).encode()
        within = {what for what, some in wanted.items() if any(one in name for one in some)}
        if path.is_file():
            files += 1
            n_bytes += _search_file(path, wanted, within)
        hits += [(str(path), what) for what in sorted(within)]
    return Found(files, n_bytes, tuple(hits))


def _search_file(path: Path, wanted: Mapping[str, tuple[bytes, ...]], within: set[str]) -> int:
    """Adds to ``within``; returns the file's bytes.  Windows overlap, so that nothing hides on a border."""
    overlap = max((len(p) for some in wanted.values() for p in some), default=1)
    n_bytes, rest = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_WINDOW_BYTES):
            n_bytes += len(chunk)
            window = rest + chunk
            within |= {what for what, some in wanted.items() if any(one in window for one in some)}
            rest = window[-overlap:]
    return n_bytes
