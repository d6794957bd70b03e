"""Vault's transit engine over a service's Edge: encrypt, decrypt, rewrap, data keys, random bytes.

What is encrypted goes into a parcel under a data key of its own; ``vault:v<version>:<base64 of the parcel>`` is what
the client keeps.  The kid in the parcel says which version it is; the number in the text is for people, and a
ciphertext whose number is another than its kid's does not open.  ``context`` and ``associated_data`` are bound to the
data key.  Source: Vault's API for ``transit``; what OpenBao answers is in tests/integration/mesh/test_vault.py.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from keymesh.compat.ring import Ring
from keymesh.compat.vault_form import Fields, VaultError, from_base64, refusal, to_base64
from keymesh.crypto.blob import blob_kid
from keymesh.crypto.parcel import PARCEL_NONCE_BYTES, open_parcel, parcel_blob, seal_parcel
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

BATCH_MAX: Final = 1_000
BOUND_MAX_BYTES: Final = 2 * 1024
RANDOM_MAX_BYTES: Final = 128 * 1024
REFERENCE_MAX_CHARS: Final = 256
DATA_KEY_BITS: Final = (128, 256, 512)
_TEXT: Final = re.compile(r"vault:v([1-9][0-9]{0,9}):(.*)", re.DOTALL)
_NO_CIPHERTEXT: Final = "missing ciphertext to decrypt"
_FACE: Final = "vault-transit"
"""Bound to every key that is made here: nobody else's blob opens here, and none of these elsewhere by mistake."""


class Transit:
    """The operations on one service's key.  ``random``: fresh bytes.  All raise VaultError or a KeymeshError."""

    def __init__(self, ring: Ring, tenant: str, service: str, random: Callable[[int], bytes]) -> None:
        """Raises Refused ``not-found`` where it is not hosted here."""
        self._ring = ring
        self._names = tenant, service
        self._keys = ring.keys(tenant, service)
        self._random = random

    async def encrypt(self, asked: Fields) -> tuple[int, dict[str, Any]]:
        """(status, data) of one or of a batch."""
        asked.refuse(**_NOT_SERVED)
        asked.take("type")  # of the key, were it made by this call
        return await _each(asked, "plaintext", "missing plaintext to encrypt", self._encrypt)

    async def decrypt(self, asked: Fields) -> tuple[int, dict[str, Any]]:
        """Likewise; a ``plaintext`` of null beside it is what some clients send, and means nothing."""
        _ignore_null(asked, "plaintext")
        return await _each(
            asked, "ciphertext", "missing ciphertext to decrypt", self._decrypt, failed={"plaintext": ""}
        )

    async def rewrap(self, asked: Fields) -> tuple[int, dict[str, Any]]:
        """Likewise: opened, and encrypted under the version in use."""
        _ignore_null(asked, "plaintext")
        status, data = await _each(asked, "ciphertext", _NO_CIPHERTEXT, self._rewrap)
        return 200 if "batch_results" in data else status, data  # of a batch the items alone tell

    async def data_key(self, asked: Fields, *, plaintext: bool) -> dict[str, Any]:
        """A fresh key, encrypted; in the clear beside it where that is asked for."""
        bits = asked.number("bits", 256)
        if bits not in DATA_KEY_BITS:
            raise VaultError(400, f"invalid bit length: one of {', '.join(map(str, DATA_KEY_BITS))}")
        key = self._random(bits // 8)
        made = await self._seal(key, _context(asked), _version_asked(asked))
        return {**made, "plaintext": to_base64(key)} if plaintext else made

    # --- one item --------------------------------------------------------------------------------------------------

    async def _encrypt(self, item: Fields) -> dict[str, Any]:
        context, version = _context(item), _version_asked(item)
        return await self._seal(item.raw("plaintext"), context, version)

    async def _decrypt(self, item: Fields) -> dict[str, Any]:
        return {"plaintext": to_base64(await self._open(item.text("ciphertext"), _context(item)))}

    async def _rewrap(self, item: Fields) -> dict[str, Any]:
        context, version = _context(item), _version_asked(item)
        return await self._seal(await self._open(item.text("ciphertext"), context), context, version)

    async def _seal(self, payload: bytes, context: Mapping[str, str], version: int) -> dict[str, Any]:
        made = await self._keys.create_key(context, plaintext=True)
        number = self._known(blob_kid(made.blob))
        if made.plaintext is None:
            raise Integrity.opaque()
        if version > number:
            raise VaultError(400, "requested version for encryption is higher than the latest key version")
        if version not in (0, number):
            raise VaultError(400, f"key_version: new data is protected by the version in use alone, which is {number}")
        sealed = seal_parcel(made.blob, made.plaintext, payload, self._random(PARCEL_NONCE_BYTES))
        return {"ciphertext": f"vault:v{number}:{to_base64(sealed)}", "key_version": number}

    async def _open(self, text: str, context: Mapping[str, str]) -> bytes:
        number, parcel = read_text(text)
        try:
            blob = parcel_blob(parcel)
        except Refused:
            raise VaultError(400, "invalid ciphertext: not one of this mesh") from None
        known = self._number(blob_kid(blob))
        if known is not None and known != number:
            raise Integrity.opaque()
        key = await self._keys.decrypt_key(blob, context)
        if known is None and self._known(blob_kid(blob)) != number:  # it came with the lease that opening waited for
            raise Integrity.opaque()
        return open_parcel(key, parcel)

    def _number(self, kid: bytes) -> int | None:
        return self._ring.version_of(*self._names, kid)

    def _known(self, kid: bytes) -> int:
        number = self._number(kid)
        if number is None:  # the lease that used it was replaced just now by one that does not name it
            raise Unavailable("no-lease", "the key version went away under the request")
        return number


_NOT_SERVED: Final = {
    "convergent_encryption": "equal plaintexts never give equal ciphertexts here",
    "nonce": "is drawn here, never given",
}


def read_text(text: str) -> tuple[int, bytes]:
    """(version, parcel) of a ciphertext.  Raises VaultError."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise VaultError(400, "invalid ciphertext: no prefix")
    return int(found[1]), from_base64(found[2], "invalid ciphertext")


def random_bytes(asked: Fields, count: str | None, source: str | None, random: Callable[[int], bytes]) -> str:
    """Raises VaultError."""
    if (source or asked.text("source") or "platform") != "platform":
        raise VaultError(400, "source: only platform is served")
    if count is not None:
        asked = Fields({"bytes": count, "format": asked.take("format")})
    number, form = asked.number("bytes", 32), asked.text("format") or "base64"
    if number < 1:
        raise VaultError(400, "'bytes' cannot be less than 1")
    if number > RANDOM_MAX_BYTES:
        raise VaultError(400, f"'bytes' should be less than {RANDOM_MAX_BYTES}")
    if form not in ("hex", "base64"):
        raise VaultError(400, 'unsupported encoding format; must be "hex" or "base64"')
    drawn = random(number)
    return drawn.hex() if form == "hex" else to_base64(drawn)


# --- batches -----------------------------------------------------------------------------------------------------


async def _each(
    asked: Fields,
    needed: str,
    missing: str,
    work: Callable[[Fields], Awaitable[dict[str, Any]]],
    *,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, dict[str, Any]]:
    """One item, or each of ``batch_input``: a bad one is told in its place, and costs the others nothing.

    ``failed``: what stands beside the error, as Vault has it.
    """
    batch = asked.take("batch_input")
    partial = asked.number("partial_failure_response_code", 0)
    if batch is None:
        _need(asked, needed, missing)
        return 200, await work(asked)
    for name in ("plaintext", "ciphertext", "context", "associated_data", "key_version"):
        asked.take(name)  # of a batch, each item has its own
    if not isinstance(batch, list):
        raise VaultError(400, "failed to parse batch input: batch_input: a list")
    if not batch:
        raise VaultError(400, "missing batch input to process")
    if len(batch) > BATCH_MAX:
        raise VaultError(400, f"batch_input: at most {BATCH_MAX} items, got {len(batch)}")
    results = [await _one_of(item, needed, missing, work) for item in batch]
    results = [{**failed, **result} if "error" in result else result for result in results]
    bad = sum("error" in result for result in results)
    status = 400 if bad else 200
    if bad and bad < len(results) and 200 <= partial <= 599:
        status = partial
    return status, {"batch_results": results}


async def _one_of(
    item: Any, needed: str, missing: str, work: Callable[[Fields], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """An item's result or what is wrong with it.  What concerns the key, and not the item, is raised."""
    if not isinstance(item, dict):
        return {"error": "not an object", "reference": ""}
    fields, reference = Fields(item), ""
    try:
        reference = fields.text("reference", max_chars=REFERENCE_MAX_CHARS)
        _need(fields, needed, missing)
        fields.refuse(**_NOT_SERVED)
        return {**await work(fields), "reference": reference}
    except VaultError as bad:
        told = bad.errors[0]
    except KeymeshError as bad:
        said = refusal(bad)
        if said.status != 400 or said.body is None:
            raise
        told = said.body["errors"][0]
    return {"error": told, "reference": reference}


def _need(fields: Fields, name: str, missing: str) -> None:
    """Nothing is no plaintext; an empty one is.  Raises VaultError."""
    value = fields.peek(name)
    if value is None or (value == "" and name == "ciphertext"):
        raise VaultError(400, missing)


def _ignore_null(asked: Fields, name: str) -> None:
    if asked.peek(name) is None:
        asked.take(name)


def _version_asked(item: Fields) -> int:
    version = item.number("key_version", 0)
    if version < 0:
        raise VaultError(400, "key_version: not below 0")
    return version


def _context(item: Fields) -> dict[str, str]:
    """What the data key is bound to: this face, and what the client says.  Raises VaultError."""
    item.refuse(nonce=_NOT_SERVED["nonce"])
    bound = {"keymesh": _FACE}
    for field in ("context", "associated_data"):
        value = item.raw(field, max_bytes=BOUND_MAX_BYTES)
        if value:
            bound[field] = to_base64(value)
    return bound
