"""How the CLI names a customer's root key: ``kms:DIR#KEY``, a replica's ``https://HOST:PORT/keys/KEY``,
``openbao:...`` (``app.l1_openbao``), ``pkcs11:...`` (``app.l1_pkcs11``) or ``aws-kms:...`` (``app.l1_aws``).

``DIR`` is the directory of a ``keymesh customer-kms``; the https form finds it among those this machine knows (the
mesh's own development KMS, and $KEYMESH_L1_CREDENTIALS), since an address alone does not say whom to trust.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.customer_kms import OwnerClient, read_info
from keymesh.app import l1_aws, l1_openbao, l1_pkcs11
from keymesh.app.admin_client import AdminClient
from keymesh.core.l1 import KEYMESH_KMS, ProviderDescriptor
from keymesh.model.errors import Refused
from keymesh.model.ids import check_label

CREDENTIALS_ENV: Final = "KEYMESH_L1_CREDENTIALS"
_NOT_IN_A_LABEL: Final = re.compile(r"[^a-z0-9]+")
_HTTPS: Final = re.compile(r"(https://[^/#?]{1,300})/keys/([^/#?]{1,63})")
_FOREIGN: Final[dict[str, Callable[[str], ProviderDescriptor]]] = {
    l1_aws.SCHEME: l1_aws.parse_aws_kms,
    l1_openbao.SCHEME: l1_openbao.parse_openbao,
    l1_pkcs11.SCHEME: l1_pkcs11.parse_pkcs11,
}


@dataclass(frozen=True, slots=True)
class L1Name:
    """A key in the KMS of ``directory``."""

    directory: Path
    key: str


@dataclass(frozen=True, slots=True)
class ResolvedBinding:
    binding_id: str
    provider: str
    descriptor: dict[str, Any]


def parse_l1(url: str, known: Sequence[Path]) -> L1Name:
    """Raises Refused naming ``l1`` and the accepted forms, or that no known KMS has that address."""
    if url.startswith("kms:"):
        where, hash_, key = url.removeprefix("kms:").partition("#")
        if where and hash_:
            return L1Name(Path(where), check_label("l1", key))
    match = _HTTPS.fullmatch(url)
    if match is None:
        raise Refused.bad_field(
            "l1", "kms:DIR#KEY, https://HOST:PORT/keys/KEY, for a tenant also openbao:..., pkcs11:... or aws-kms:..."
        )
    for directory in known:
        try:
            info = read_info(directory)
        except Refused:
            continue
        if match[1] in info.replicas.values():
            return L1Name(directory, check_label("l1", match[2]))
    raise Refused("not-found", f"no KMS directory known here serves {match[1]}; name it as kms:DIR#KEY", field="l1")


def known_kms(own: Path, given: str | None = None) -> list[Path]:
    """Directories to look in: the one given, the environment's, the mesh's own."""
    named = [given, os.environ.get(CREDENTIALS_ENV)]
    return [*(Path(name) for name in named if name), own]


def _parse_foreign(url: str) -> ProviderDescriptor | None:
    """What a URL of a provider that is not ours records; None for our own forms.  Raises Refused."""
    for scheme, parse in _FOREIGN.items():
        if url.startswith(scheme):
            return parse(url)
    return None


async def resolve_l1(
    client: AdminClient, url: str | None, *, default_key: str, regions: Sequence[str]
) -> ResolvedBinding:
    """The binding to record for ``url``; without one, a key of that name in the mesh's development KMS, made here.

    Replicas outside ``regions`` are left out where one inside them exists.
    """
    made = None if url is None else _parse_foreign(url)
    if made is not None:
        label = _NOT_IN_A_LABEL.sub("-", made.key.lower()).strip("-")[:40].rstrip("-") or made.provider
        binding_id = f"{label}-{os.urandom(4).hex()}"
        return ResolvedBinding(binding_id=binding_id, provider=made.provider, descriptor=msgspec.to_builtins(made))
    own = client.layout.customer_kms
    name = L1Name(own, default_key) if url is None else parse_l1(url, known_kms(own))
    async with OwnerClient.open(name.directory) as owner:
        if url is None:
            await _make_own(client, owner, name.key)
        await owner.status(name.key)
        descriptor = owner.descriptor(name.key)
    inside = {region: at for region, at in descriptor.replicas.items() if region in regions}
    kept = ProviderDescriptor(
        provider=KEYMESH_KMS, key=descriptor.key, replicas=inside or descriptor.replicas, ca_pem=descriptor.ca_pem
    )
    return ResolvedBinding(
        binding_id=f"{name.key}-{os.urandom(4).hex()}",
        provider=KEYMESH_KMS,
        descriptor=msgspec.to_builtins(kept),
    )


async def _make_own(client: AdminClient, owner: OwnerClient, key: str) -> None:
    try:
        await owner.create(key)
    except Refused as exists:
        if exists.code != "conflict":
            raise
    await owner.allow_ca(client.layout.ca.read_text(encoding="ascii"), kinds=("core",))
