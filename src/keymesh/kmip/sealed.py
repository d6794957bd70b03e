"""The form in which a KMIP object lies at rest: a parcel under a service's L3, and blinded names.

Two parcels, each under a fresh L4 (``crypto.parcel``): one of the key bytes (``material``), which is opened only where
they are used, and one of the whole object with that parcel in it.  Context of the L4s, bound with tenant and kid:

* material: ``keymesh`` = ``kmip-material/1``, ``service``, ``uid``
* object:   ``keymesh`` = ``kmip-object/1``, ``service``, ``uid``, ``version``

The payload of an object's parcel is ``0x01 || TTLV of objects.packed``.  A name's token is HMAC-SHA256, under a key
that HKDF derives from an L3, of ``lp(tenant) || lp(service) || lp(name)``: who has no L3 learns of a name neither what
it is nor, between services, that it is the same.  Pure; which L3 is which version, and may be used, others decide.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keymesh.crypto.aad import lp
from keymesh.crypto.blob import L4_BYTES, blob_kid, open_l4, seal_l4
from keymesh.crypto.parcel import PARCEL_NONCE_BYTES, open_parcel, parcel_blob, seal_parcel
from keymesh.crypto.xaes import NONCE_BYTES, Octets, XaesKey
from keymesh.kmip.faults import bad_field
from keymesh.kmip.objects import ManagedObject, packed, unpacked
from keymesh.kmip.ports import Chance, Scope
from keymesh.kmip.ttlv import Limits, decode, encode
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import KMIP_DEPTH_MAX, KMIP_ITEMS_MAX, KMIP_NAMES_MAX, KMIP_OBJECT_MAX_BYTES

FORM: Final = b"\x01"
_NAMES: Final = b"keymesh/kmip-names/1"
_LIMITS: Final = Limits(KMIP_OBJECT_MAX_BYTES, KMIP_DEPTH_MAX, KMIP_ITEMS_MAX)


@dataclass(frozen=True, slots=True, eq=False)
class Wrapping:
    """One L3 in memory, as it is used here: ``cipher`` seals L4s, ``kid`` names it."""

    cipher: XaesKey
    kid: bytes


def kid_in(sealed: bytes) -> bytes:
    """The kid of the L3 that ``sealed`` says it lies under.  Raises Integrity where it is no parcel."""
    try:
        return blob_kid(parcel_blob(sealed))
    except Refused:
        raise Integrity.opaque() from None


def seal_material(under: Wrapping, scope: Scope, uid: str, material: bytes, chance: Chance) -> bytes:
    """Key bytes of an object."""
    return _seal(under, scope.tenant, _material_context(scope, uid), material, chance)


def open_material(under: Wrapping, scope: Scope, uid: str, sealed: bytes) -> bytes:
    """Raises Integrity (opaque) where it is another object's, was changed, or lies under another L3."""
    return _open(under, scope.tenant, _material_context(scope, uid), sealed)


def seal_object(under: Wrapping, scope: Scope, held: ManagedObject, version: int, chance: Chance) -> bytes:
    """The object as its ``version``.  Raises Fault where it is larger than an object may be."""
    payload = FORM + encode(packed(held))
    if len(payload) > KMIP_OBJECT_MAX_BYTES:
        raise bad_field(f"the object: at most {KMIP_OBJECT_MAX_BYTES} bytes with all its attributes")
    if len(held.names()) > KMIP_NAMES_MAX:
        raise bad_field(f"Name: at most {KMIP_NAMES_MAX}")
    return _seal(under, scope.tenant, _object_context(scope, held.uid, version), payload, chance)


def open_object(under: Wrapping, scope: Scope, uid: str, version: int, sealed: bytes) -> ManagedObject:
    """Raises Integrity (opaque) as ``open_material``, and where what was sealed is no object of this form."""
    payload = _open(under, scope.tenant, _object_context(scope, uid, version), sealed)
    if payload[:1] != FORM:
        raise Integrity("kmip-object", "an object of a form that this release does not know")
    try:
        held = unpacked(decode(payload[1:], limits=_LIMITS), version)
    except (Refused, KeyError, ValueError, AssertionError):
        raise Integrity.opaque() from None
    if held.uid != uid:
        raise Integrity.opaque()
    return held


def name_token(l3: Octets, scope: Scope, name: str) -> bytes:
    """What stands for a name under one L3; 32 bytes."""
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_NAMES).derive(l3)
    said = b"".join(lp(part.encode()) for part in (scope.tenant, scope.service, name))
    return hmac.digest(key, said, hashlib.sha256)


def _material_context(scope: Scope, uid: str) -> Mapping[str, str]:
    return {"keymesh": "kmip-material/1", "service": scope.service, "uid": uid}


def _object_context(scope: Scope, uid: str, version: int) -> Mapping[str, str]:
    return {"keymesh": "kmip-object/1", "service": scope.service, "uid": uid, "version": str(version)}


def _seal(under: Wrapping, tenant: str, context: Mapping[str, str], payload: bytes, chance: Chance) -> bytes:
    l4 = chance.token(L4_BYTES)
    blob = seal_l4(under.cipher, under.kid, tenant, context, l4, chance.token(NONCE_BYTES))
    return seal_parcel(blob, l4, payload, chance.token(PARCEL_NONCE_BYTES))


def _open(under: Wrapping, tenant: str, context: Mapping[str, str], sealed: bytes) -> bytes:
    try:
        l4 = open_l4(under.cipher, under.kid, tenant, context, parcel_blob(sealed))
        return open_parcel(l4, sealed)
    except Refused:  # no parcel: nobody is told what it is instead
        raise Integrity.opaque() from None
