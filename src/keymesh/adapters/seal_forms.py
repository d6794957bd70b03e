"""The kinds of seal: how each keeps the MasterKey and gives it back.

Every kind has a *seal key* from which ``sealed`` is the wrap of the MasterKey (level ``master``, bound to region and
kid).  ``file``: it lies in a file beside the record, for development only.  ``shamir``: its shares are with people;
``sealed`` is empty in a record of an earlier release, whose shares are of the MasterKey itself.  ``openbao``,
``pkcs11``: it is a one-time key E that a provider has wrapped, ``sealed = lp(provider.wrap(E)) || wrap``; so the
provider never sees the MasterKey, and neither the record nor the provider alone opens it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.core.l1 import WRAPPED_MAX_BYTES, L1Provider
from keymesh.core.seals import Kind, Seal, master_subject
from keymesh.crypto import shamir, wrap
from keymesh.crypto.aad import lp
from keymesh.crypto.kid import check_kid, kid_bytes, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES, XaesKey
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import check_token

FILE_SEAL_KEY: Final = "seal.key"
"""Of records of earlier releases; a newer seal names its own."""


def seal_id(kind: Kind) -> str:
    """A new one."""
    return f"{kind.value}-{os.urandom(4).hex()}"


def _wrapped(seal_key: SecretBytes, region: str, master: SecretBytes) -> bytes:
    subject = master_subject(region, kid_of(master.reveal()))
    return wrap.seal_key(
        XaesKey(seal_key.reveal()), kid_of(seal_key.reveal()), subject, master, os.urandom(NONCE_BYTES)
    )


def _opened(seal_key: SecretBytes, region: str, kid: str, blob: bytes, pages: KeyPages) -> SecretBytes:
    if len(seal_key) != KEY_BYTES:
        raise Integrity.opaque()
    subject = master_subject(region, kid_bytes(kid))
    try:
        return wrap.open_key(XaesKey(seal_key.reveal()), kid_of(seal_key.reveal()), subject, blob, pages)
    except Refused as bad:  # not even the form of a wrap: one answer, whatever was changed
        raise Integrity.opaque() from bad


def _bytes(sealed: str) -> bytes:
    try:
        return bytes.fromhex(sealed)
    except ValueError as bad:
        raise Integrity.opaque() from bad


# --- a file ----------------------------------------------------------------------------------------------------------


def make_file_seal(directory: Path, region: str, master: SecretBytes, pages: KeyPages) -> Seal:
    """A seal under a new key file, which is durable when this returns."""
    name = seal_id(Kind.FILE)
    with pages.put(os.urandom(KEY_BYTES)) as seal_key:
        sealed = _wrapped(seal_key, region, master)
        write_file(directory / f"{name}.key", bytes(seal_key.reveal()))
    return Seal(id=name, kind=Kind.FILE, sealed=sealed.hex(), parameters={"key_file": f"{name}.key"})


def _key_file(directory: Path, seal: Seal) -> Path:
    name = seal.parameters.get("key_file", FILE_SEAL_KEY)
    if not isinstance(name, str) or not name.endswith(".key"):
        raise Integrity.opaque()
    try:
        return directory / check_token("key_file", name)
    except Refused as bad:
        raise Integrity.opaque() from bad


def open_file_seal(directory: Path, region: str, kid: str, seal: Seal, pages: KeyPages) -> SecretBytes:
    """The MasterKey.  Raises Refused where the file cannot be used, Integrity (opaque) where it is another's."""
    with pages.put(read_private(_key_file(directory, seal), max_bytes=KEY_BYTES)) as seal_key:
        return _opened(seal_key, region, kid, _bytes(seal.sealed), pages)


def drop_file_seal(directory: Path, seal: Seal) -> None:
    """Forget the key file of a seal that is no longer recorded."""
    _key_file(directory, seal).unlink(missing_ok=True)


# --- people's shares -------------------------------------------------------------------------------------------------


def make_shamir_seal(
    region: str, master: SecretBytes, pages: KeyPages, *, threshold: int, n_shares: int
) -> tuple[Seal, tuple[str, ...]]:
    """A seal and the text of its shares, which exist nowhere else afterwards."""
    with pages.put(os.urandom(KEY_BYTES)) as seal_key:
        shares = shamir.split(seal_key.reveal(), threshold, n_shares, os.urandom)
        sealed = _wrapped(seal_key, region, master)
    made = Seal(
        id=seal_id(Kind.SHAMIR),
        kind=Kind.SHAMIR,
        sealed=sealed.hex(),
        parameters={"threshold": threshold, "shares": n_shares},
    )
    return made, tuple(share.to_text() for share in shares)


def open_shamir_seal(region: str, kid: str, seal: Seal, shares: Sequence[str], pages: KeyPages) -> SecretBytes:
    """The MasterKey.  Raises Refused (too few, mixed) or Integrity (opaque): not this region's."""
    combined = shamir.combine([shamir.share_from_text(text) for text in shares])
    try:
        joined = pages.put(combined)
    finally:
        combined[:] = bytes(len(combined))
    if seal.sealed:
        with joined:
            return _opened(joined, region, kid, _bytes(seal.sealed), pages)
    try:
        check_kid(joined.reveal(), kid_bytes(kid))
    except KeymeshError:
        joined.wipe()
        raise
    return joined


# --- a provider ------------------------------------------------------------------------------------------------------


async def make_provider_seal(
    kind: Kind, parameters: dict[str, Any], provider: L1Provider, region: str, master: SecretBytes, pages: KeyPages
) -> Seal:
    """A seal, after the provider has opened E again.  Raises L1Denied, L1Unreachable, Refused."""
    with pages.put(os.urandom(KEY_BYTES)) as one_time:
        wrapped_e = await provider.wrap(bytes(one_time.reveal()))
        sealed = lp(wrapped_e) + _wrapped(one_time, region, master)
    return Seal(id=seal_id(kind), kind=kind, sealed=sealed.hex(), parameters=parameters)


async def open_provider_seal(provider: L1Provider, region: str, kid: str, seal: Seal, pages: KeyPages) -> SecretBytes:
    """The MasterKey.  Raises Integrity (opaque), L1Denied, L1Unreachable."""
    wrapped_e, sealed = _parted(seal.sealed)
    plain = bytearray(await provider.unwrap(wrapped_e))
    try:
        one_time = pages.put(plain)
    finally:
        plain[:] = bytes(len(plain))
    with one_time:
        return _opened(one_time, region, kid, sealed, pages)


def _parted(text: str) -> tuple[bytes, bytes]:
    blob = _bytes(text)
    length = int.from_bytes(blob[:4], "big")
    if not 0 < length <= WRAPPED_MAX_BYTES or len(blob) <= 4 + length:
        raise Integrity.opaque()
    return blob[4 : 4 + length], blob[4 + length :]
