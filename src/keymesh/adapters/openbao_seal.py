"""A region's MasterKey sealed by a transit key of OpenBao, or of any root key that ``core.l1`` can reach.

As a tenant's L1 does it: a one-time key E goes through the provider, the MasterKey is wrapped under E with its region
bound, and ``master.json`` keeps ``lp(provider.wrap(E)) || wrap``.  So the provider never sees the MasterKey, and
neither the file nor the provider alone opens it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from keymesh.adapters.files import write_file
from keymesh.adapters.seals import MASTER_FILE, MasterRecord, master_subject
from keymesh.core.l1 import WRAPPED_MAX_BYTES, L1Provider
from keymesh.crypto import wrap
from keymesh.crypto.aad import lp
from keymesh.crypto.kid import kid_bytes, kid_hex, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import KEY_BYTES, XaesKey
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused

KIND: Final = "openbao"


async def create_openbao_seal(directory: Path, region: str, provider: L1Provider, pages: KeyPages) -> SecretBytes:
    """A new MasterKey, sealed; the record is written only after the provider has opened E again.

    Raises L1Denied, L1Unreachable; then there is no record.
    """
    master = pages.put(os.urandom(KEY_BYTES))
    try:
        with pages.put(os.urandom(KEY_BYTES)) as one_time:
            wrapped_e = await provider.wrap(bytes(one_time.reveal()))
            kid = kid_of(master.reveal())
            e_kid = kid_of(one_time.reveal())
            subject = master_subject(region, kid)
            sealed = wrap.seal_key(XaesKey(one_time.reveal()), e_kid, subject, master, os.urandom(24))
        record = MasterRecord(kind=KIND, kid=kid_hex(kid), sealed=(lp(wrapped_e) + sealed).hex())
        (await open_openbao_seal(region, record, provider, pages)).wipe()
        write_file(directory / MASTER_FILE, strict_json.dumps(record))
    except BaseException:
        master.wipe()
        raise
    return master


async def open_openbao_seal(region: str, record: MasterRecord, provider: L1Provider, pages: KeyPages) -> SecretBytes:
    """The MasterKey.  Raises Refused for another kind of seal, Integrity (opaque), L1Denied, L1Unreachable."""
    if record.kind != KIND:
        raise Refused("wrong-seal", f"this region is sealed by {record.kind}", field="kind")
    wrapped_e, sealed = _parted(record.sealed)
    plain = bytearray(await provider.unwrap(wrapped_e))
    try:
        if len(plain) != KEY_BYTES:
            raise Integrity.opaque()
        with pages.put(plain) as one_time:
            subject = master_subject(region, kid_bytes(record.kid))
            return wrap.open_key(XaesKey(one_time.reveal()), kid_of(one_time.reveal()), subject, sealed, pages)
    finally:
        plain[:] = bytes(len(plain))


def _parted(text: str) -> tuple[bytes, bytes]:
    try:
        blob = bytes.fromhex(text)
    except ValueError as bad:
        raise Integrity.opaque() from bad
    length = int.from_bytes(blob[:4], "big")
    if not 0 < length <= WRAPPED_MAX_BYTES or len(blob) <= 4 + length:
        raise Integrity.opaque()
    return blob[4 : 4 + length], blob[4 + length :]
