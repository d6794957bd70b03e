"""The wrapped chain of one tenant: with the customer's own L1 alone it opens everything (no lock-in).

Decides the file's form (strict JSON, version 1, blobs in base64) and how L3 follows from L1: binding, then L2, then
L3, each checked against its kid.  Nothing in it is secret without L1.  Unwrapping E is the caller's, at the customer's
KMS; see ``wrap`` for the blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from msgspec import Struct

from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.kid import kid_bytes
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.wrap import open_binding, open_key, parse_binding
from keymesh.crypto.xaes import XaesKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import BindingId, check_label, check_service, check_tenant, check_token

FORMAT: Final = "keymesh/chain/1"
CHAIN_MAX_BYTES: Final = 16 * 1024 * 1024
CHAIN_MAX_KEYS: Final = 16_384

T = TypeVar("T")


class ChainBinding(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where L1 is; ``descriptor`` is the provider's own."""

    id: str
    provider: str
    descriptor: dict[str, Any]


class ChainL2(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``blob``: the sovereign binding, under the L1 that ``binding_id`` names."""

    kid: str
    version: int
    binding_id: str
    blob: bytes


class ChainL3(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``blob``: the wrap under the L2 that ``parent_kid`` names."""

    kid: str
    version: int
    service: str
    parent_kid: str
    blob: bytes


class Chain(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    mesh: str
    tenant: str
    domain: str
    bindings: tuple[ChainBinding, ...]
    l2: tuple[ChainL2, ...]
    l3: tuple[ChainL3, ...]
    format: str = FORMAT


def chain_to_json(chain: Chain) -> bytes:
    return strict_json.dumps(chain)


def chain_from_json(raw: bytes) -> Chain:
    """The chain in ``raw``.  Raises Refused naming the field, for another version, or for a kid given twice."""
    chain = strict_json.decode(raw, Chain, max_bytes=CHAIN_MAX_BYTES)
    if chain.format != FORMAT:
        raise Refused.bad_field("format", f"only {FORMAT!r} is known")
    check_label("mesh", chain.mesh)
    check_tenant(chain.tenant)
    check_label("domain", chain.domain)
    for binding in chain.bindings:
        check_token("bindings.id", binding.id)
    kids = [l2.kid for l2 in chain.l2] + [l3.kid for l3 in chain.l3]
    for kid in kids:
        kid_bytes(kid)
    for leaf in chain.l3:
        check_service(leaf.service)
        kid_bytes(leaf.parent_kid)
    if len(kids) > CHAIN_MAX_KEYS:
        raise Refused.bad_field("chain", f"at most {CHAIN_MAX_KEYS} keys, got {len(kids)}")
    if len(set(kids)) != len(kids):
        raise Refused.bad_field("chain", "a kid is given twice")
    return chain


class Path(Struct, frozen=True, kw_only=True):
    """How one L3 is reached: its wrap, the L2 above it, and the binding of that."""

    l3: ChainL3
    l2: ChainL2
    binding: ChainBinding

    @property
    def wrapped_e(self) -> bytes:
        """What the customer's KMS has to unwrap.  Raises Refused for a malformed binding."""
        return parse_binding(self.l2.blob).provider_blob


def path_to(chain: Chain, kid: str) -> Path:
    """The way to the L3 that ``kid`` names.

    Raises Unavailable where the chain lacks it (a newer export may have it), Integrity where a link is missing.
    """
    l3 = _find(chain.l3, lambda key: key.kid == kid)
    if l3 is None:
        raise Unavailable("unknown-key", "the chain has no key for that blob; export it anew")
    l2 = _find(chain.l2, lambda key: key.kid == l3.parent_kid)
    binding = None if l2 is None else _find(chain.bindings, lambda binding: binding.id == l2.binding_id)
    if l2 is None or binding is None:
        raise Integrity("chain-link", "the chain lacks a link to that key", field="chain")
    return Path(l3=l3, l2=l2, binding=binding)


def open_path(chain: Chain, path: Path, one_time_key: bytes, pages: KeyPages) -> SecretBytes:
    """The L3's bytes, from E as the customer's KMS unwrapped it.

    1. E opens the binding to L2, which its kid confirms.  2. L2 opens the wrap to L3, which its kid confirms.
    Raises Refused (malformed), Integrity (opaque).
    """
    l2_kid = kid_bytes(path.l2.kid)
    above = Subject(Level.L2, chain.tenant, chain.domain, "l2", path.l2.version, l2_kid)
    below = Subject(Level.L3, chain.tenant, chain.domain, path.l3.service, path.l3.version, kid_bytes(path.l3.kid))
    if len(one_time_key) != 32:
        raise Integrity.opaque()
    with open_binding(XaesKey(one_time_key), BindingId(path.binding.id), above, path.l2.blob, pages) as l2:
        return open_key(XaesKey(l2.reveal()), l2_kid, below, path.l3.blob, pages)


def _find(items: Sequence[T], wanted: Callable[[T], bool]) -> T | None:
    return next((item for item in items if wanted(item)), None)
