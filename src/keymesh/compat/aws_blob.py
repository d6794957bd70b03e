"""A ``CiphertextBlob``: which key, and a parcel under a data key of its own.

====== ====================================
offset
====== ====================================
0      0x01, the format
1      the key's name, 16 bytes
17     a parcel (``crypto.parcel``)
====== ====================================

The key's name and the caller's encryption context are bound to the data key's own blob, so that neither can be changed,
and nothing that another face made opens here, nor the other way round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from keymesh.compat.aws_errors import bad_ciphertext
from keymesh.compat.aws_names import KEY_ID_BYTES
from keymesh.compat.ring import Keys
from keymesh.crypto.aad import encode_context
from keymesh.crypto.parcel import OVERHEAD_BYTES, PARCEL_NONCE_BYTES, open_parcel, parcel_blob, seal_parcel
from keymesh.model.errors import Integrity, Refused

FORMAT: Final = 0x01
_PARCEL_AT: Final = 1 + KEY_ID_BYTES
BLOB_OVERHEAD: Final = _PARCEL_AT + OVERHEAD_BYTES
BLOB_MAX: Final = 6_144


def key_named(blob: bytes) -> bytes:
    """The 16 bytes that name a blob's key.  Raises AwsError, the one for all that does not open."""
    if not BLOB_OVERHEAD <= len(blob) <= BLOB_MAX or blob[0] != FORMAT:
        raise bad_ciphertext()
    return blob[1:_PARCEL_AT]


def bound_context(key: bytes, context: Mapping[str, str]) -> dict[str, str]:
    """What the data key is bound to.  The caller's pairs go in as one hash: any number of characters may be theirs.

    Raises Refused for pairs beyond the limits.
    """
    pairs = hashlib.sha256(encode_context(context)).hexdigest()
    return {"keymesh": "aws-kms", "key": key.hex(), "context": pairs}


async def seal(
    keys: Keys, key: bytes, context: Mapping[str, str], plaintext: bytes, random: Callable[[int], bytes]
) -> bytes:
    """Raises Refused (context, restricted), Unavailable."""
    made = await keys.create_key(bound_context(key, context), plaintext=True)
    if made.plaintext is None:
        raise Integrity.opaque()
    return bytes((FORMAT,)) + key + seal_parcel(made.blob, made.plaintext, plaintext, random(PARCEL_NONCE_BYTES))


async def open_(keys: Keys, key: bytes, context: Mapping[str, str], blob: bytes) -> bytes:
    """Raises AwsError (does not open), Refused (restricted), Unavailable.

    A key version that is not here is unavailable, not malformed: a blob that was changed at its kid cannot be told
    from one of a version to come (DESIGN section 1).
    """
    parcel = blob[_PARCEL_AT:]
    try:
        data_key = await keys.decrypt_key(parcel_blob(parcel), bound_context(key, context))
        return open_parcel(data_key, parcel)
    except Refused as no:
        if no.code != "bad-field":
            raise
        raise bad_ciphertext() from None
    except Integrity:
        raise bad_ciphertext() from None
