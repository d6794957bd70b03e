"""``docs/deploy.md`` has a row for every field that a configuration may have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from keymesh.app.config import ROLES
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_env import variable_of
from keymesh.app.config_shape import fields_of, struct_of, without_none

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "deploy.md").read_text()
NAMES = {"registry": "Registry", "core": "Core", "edge": "Edge"}


def tables() -> dict[str, dict[str, str]]:
    """Heading -> field -> the roles that have it, as the document says."""
    found: dict[str, dict[str, str]] = {}
    for heading, body in re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL):
        rows = re.findall(r"^\| (`.+?`) \| ([^|]+) \|", body, re.MULTILINE)
        found[heading] = {name: of for names, of in rows for name in re.findall(r"`([^`]+)`", names)}
    return found


def sections(shape: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(heading, Struct) of a configuration and of everything in it."""
    yield ("An endpoint" if shape is Endpoint else path or "Top level"), shape
    for field, inner in fields_of(shape).items():
        plain = without_none(inner)
        listed = get_origin(plain) in (tuple, list)
        struct = struct_of(get_args(plain)[0] if listed else plain)
        if struct is not None:
            step = f"{path.strip('`[]')}.{field}".lstrip(".")
            yield from sections(struct, f"`[[{step}]]`" if listed else f"`[{step}]`")


@pytest.mark.parametrize("role", ROLES)
def test_every_field_has_a_row_under_its_sections_heading(role: str) -> None:
    documented = tables()
    missing = [
        f"{heading} {field}"
        for heading, shape in sections(ROLES[role])
        for field in shape.__struct_fields__
        if documented.get(heading, {}).get(field, "") != "all"
        and NAMES[role] not in documented.get(heading, {}).get(field, "")
    ]
    assert not missing, f"no row for a {role} in docs/deploy.md: {', '.join(missing)}"


def test_variables_that_the_document_sets_are_fields() -> None:
    shown = re.findall(r"export (KEYMESH_\w+)=", TEXT)
    assert shown == [variable_of("core", field) for field in ("listen.port", "registries[0]", "peers.us-west")]


def test_defaults_that_the_document_tells_are_the_codes() -> None:
    documented = dict(re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| `?([a-z0-9]+)`? \|", TEXT, re.MULTILINE))
    for shape in {shape for role in ROLES.values() for _, shape in sections(role)}:
        defaults = dict(zip(reversed(shape.__struct_fields__), reversed(shape.__struct_defaults__), strict=False))
        for field, default in defaults.items():
            if isinstance(default, int) and field in documented and list(tables_with(field)) == [1]:
                assert documented[field] == str(default).lower(), (shape.__name__, field)


def tables_with(field: str) -> Iterator[int]:
    """How many tables have that field; only where it is one can a row be told for whom it is."""
    yield sum(field in rows for rows in tables().values())
