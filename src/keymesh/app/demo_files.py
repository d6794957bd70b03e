"""The demo's files: a directory sealed and opened file by file, as ``keymesh seal`` and ``keymesh open`` do."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keymesh import __file__ as package_file
from keymesh.app.layout import Layout
from keymesh.app.seal_files import SUFFIX, Job, open_source, open_target
from keymesh.app.seal_keys import KeySource, MeshKeys
from keymesh.crypto.stream import SALT_BYTES, Header, open_stream, read_header, seal_stream
from keymesh.model.errors import Refused
from keymesh.model.ids import ServiceName, TenantId


@dataclass(frozen=True, slots=True)
class Tree:
    """What was done to a directory: SHA-256 of each file's plaintext by its path in it."""

    digests: dict[str, str]
    n_bytes: int
    ms: int


def default_source() -> Path:
    """keymesh's own docs where it runs from a checkout, else its source."""
    package = Path(package_file).parent
    checkout = package.parents[1]
    docs = checkout / "docs"
    return docs if docs.is_dir() and (checkout / "pyproject.toml").is_file() else package


def check_source(path: str | None) -> Path:
    """The directory to encrypt.  Raises Refused where it is none, or has no files."""
    source = default_source() if path is None else Path(path).resolve()
    if not source.is_dir():
        raise Refused.bad_field("path", f"{source} is not a directory")
    if next(files_of(source), None) is None:
        raise Refused.bad_field("path", f"{source} has no files")
    return source


def files_of(root: Path) -> Iterator[Path]:
    """Regular files under ``root``, as paths in it, sorted; no links, nothing hidden, no caches."""
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        if path.is_file() and not path.is_symlink() and not any(p.startswith((".", "__")) for p in inner.parts[:-1]):
            yield inner


@contextmanager
def edge_keys(layout: Layout, region: str) -> Iterator[MeshKeys]:
    """Data keys from the Edge of ``region`` and no other; use it in one thread, beside no running loop."""
    keys = MeshKeys(layout, region)
    try:
        yield keys
    finally:
        keys.close()


def seal_file(keys: KeySource, tenant: str, service: str, source: Path, target: Path, *, name: str) -> int:
    """``target`` appears once it is complete and durable; returns the plaintext's bytes."""
    context = {"path": name}
    with open_source(Job(str(source), str(target))) as (reader, _, mode):
        blob, l4 = keys.mint(tenant, service, context)
        header = Header(TenantId(tenant), ServiceName(service), tuple(context.items()), blob, os.urandom(SALT_BYTES))
        with open_target(Job(str(source), str(target)), force=False, mode=mode) as writer:
            return seal_stream(reader, writer, l4=l4, header=header)


def open_file(keys: KeySource, source: Path) -> tuple[str, int]:
    """(SHA-256, bytes) of what is sealed in ``source``; all of it is verified.  Raises Integrity."""
    hasher = _Hash()
    with source.open("rb") as reader:
        header = read_header(reader)
        l4 = keys.unwrap(header.tenant, header.service, header.l4_blob, dict(header.context))
        n_bytes = open_stream(reader, hasher, l4=l4, header=header)
    return hasher.sha256.hexdigest(), n_bytes


class _Hash:
    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes, /) -> object:
        self.sha256.update(data)
        return None


def seal_tree(layout: Layout, region: str, tenant: str, service: str, source: Path, target: Path) -> Tree:
    """Every file of ``source`` sealed under ``target`` through the Edge of ``region``, each under a key of its own."""
    with edge_keys(layout, region) as keys:

        def seal(inner: Path) -> tuple[str, int]:
            with (source / inner).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            into = target / f"{inner}{SUFFIX}"
            into.parent.mkdir(parents=True, exist_ok=True)
            return digest, seal_file(keys, tenant, service, source / inner, into, name=inner.as_posix())

        return _each(list(files_of(source)), lambda inner: (inner.as_posix(), *seal(inner)))


def open_tree(layout: Layout, region: str, sealed: Path) -> Tree:
    """Every sealed file under ``sealed`` opened through the Edge of ``region``, to its digest."""
    with edge_keys(layout, region) as keys:
        return _each(
            list(files_of(sealed)),
            lambda inner: (inner.as_posix().removesuffix(SUFFIX), *open_file(keys, sealed / inner)),
        )


def _each(paths: list[Path], work: Callable[[Path], tuple[str, str, int]]) -> Tree:
    began = time.monotonic()
    done = [work(inner) for inner in paths]
    ms = round((time.monotonic() - began) * 1_000)
    return Tree({name: digest for name, digest, _ in done}, sum(n for _, _, n in done), ms)
