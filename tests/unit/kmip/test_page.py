"""The page about KMIP says what is served: operations by version, algorithms, limits."""

from __future__ import annotations

import re
from pathlib import Path

from keymesh.kmip.attributes import ATTRIBUTES_MAX
from keymesh.kmip.engine import ATTEMPTS, OPERATIONS
from keymesh.kmip.faults import VERSIONS
from keymesh.kmip.forms import FILTERS_MAX
from keymesh.kmip.items import BYTES_MAX, TEXT_MAX_CHARS
from keymesh.kmip.keyblocks import KEY_MAX_BYTES, MADE_BITS
from keymesh.kmip.ops_find import LOCATED_MAX
from keymesh.kmip.ops_server import RANDOM_MAX_BYTES
from keymesh.kmip.streams import IDLE_S, STREAMS_MAX, STREAMS_OF_ONE_MAX
from keymesh.model.limits import KMIP_BATCH_MAX, KMIP_DEPTH_MAX, KMIP_ITEMS_MAX, KMIP_MESSAGE_MAX_BYTES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "kmip-engine.md").read_text()


def test_every_operation_stands_in_its_version() -> None:
    rows = dict(re.findall(r"^\| (\d\.\d) \| (.*) \|$", PAGE, re.MULTILINE))
    for operation, served in OPERATIONS.items():
        version = f"{served.since[0]}.{served.since[1]}"
        assert operation.name in re.findall(r"\w+", rows[version]), operation
    named = {word for row in rows.values() for word in re.findall(r"\b[A-Z]\w+", row)}
    assert named == {operation.name for operation in OPERATIONS} | {"Interop"}


def test_versions_and_algorithms() -> None:
    assert all(f"{major}.{minor}" in PAGE for major, minor in VERSIONS)
    assert [each.name for each in MADE_BITS if not each.name.startswith("HMAC_") and each.name not in PAGE] == []


def test_limits() -> None:
    spaced = f"{KMIP_ITEMS_MAX:,}".replace(",", " ")
    for said in (
        f"{KMIP_DEPTH_MAX}, {spaced}",
        f"{TEXT_MAX_CHARS:,} characters, {BYTES_MAX // 1024} KiB, {KEY_MAX_BYTES // 1024} KiB".replace(",", " ", 1),
        f"| a message, an answer | {KMIP_MESSAGE_MAX_BYTES // 2**20} MiB |",
        f"| attribute values of an object | {ATTRIBUTES_MAX} |",
        f"| attributes that a Locate asks for | {FILTERS_MAX} |",
        f"{LOCATED_MAX:,}; the newest".replace(",", " "),
        f"{STREAMS_OF_ONE_MAX} of one client, {STREAMS_MAX} in all, {IDLE_S} s",
        f"| random bytes | {RANDOM_MAX_BYTES // 1024} KiB |",
        f"Up to {KMIP_BATCH_MAX} items",
    ):
        assert said in PAGE, said
    assert ATTEMPTS == 4
