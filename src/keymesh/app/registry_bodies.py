"""What the Registry's API takes: one command, or up to 32 of them."""

from __future__ import annotations

from typing import Any

import msgspec


class CommandBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``args`` by ``kind``; ``authority``: DSSE envelopes over the command, where the kind asks for them."""

    namespace: str
    kind: str
    args: dict[str, Any]
    authority: tuple[dict[str, Any], ...] = ()


class BatchItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    command_id: str
    namespace: str
    kind: str
    args: dict[str, Any]
    authority: tuple[dict[str, Any], ...] = ()


class BatchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most 32 commands; each stands for itself."""

    commands: tuple[BatchItem, ...]
