"""The seals of a region's MasterKey: one key, several ways to it, any of which opens it.

Decides the record (``master.json``), what may be added to it and taken from it, in which order seals are tried, and
when a record is whole.  What a kind of seal does is ``adapters.seal_forms``'s, when it is asked is the shell's.

Each ``sealed`` binds region and kid, so no seal opens another region's MasterKey.  The list itself is bound by
``tag = HMAC-SHA256(HKDF-SHA256(MasterKey, salt empty, info "keymesh/seals/1"), "keymesh/seals/1" || lp(region) ||
record without tag as strict JSON)``: whoever does not have the MasterKey cannot put a seal into a list of today's
form, nor take one out; that an older list was put back, or one of version 1 made of a part of it, is not noticed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keymesh.crypto.aad import KID_BYTES, Level, Subject, lp
from keymesh.crypto.kid import kid_hex, kid_of
from keymesh.crypto.xaes import Octets
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import check_hex, check_label
from keymesh.model.limits import SEALS_MAX
from keymesh.model.time import Instant

RECORD_MAX_BYTES: Final = 256 * 1024
SEALED_MAX_CHARS: Final = 16 * 1024
VERSION: Final = 2
_LABEL: Final = b"keymesh/seals/1"


class Kind(StrEnum):
    """``SHAMIR`` waits for people; the others open by themselves."""

    FILE = "file"
    SHAMIR = "shamir"
    OPENBAO = "openbao"
    PKCS11 = "pkcs11"


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``sealed``: the wrapped MasterKey (hex), in the form of its ``kind``.  ``parameters``: where the key to it is;
    nothing in them is secret."""

    id: str
    kind: Kind
    sealed: str = ""
    parameters: dict[str, Any] = {}


class MasterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kid``: of the MasterKey.  ``version`` 1 is the form of earlier releases, of one seal and without ``tag``."""

    version: int
    kid: str
    seals: tuple[Seal, ...]
    tag: str = ""


class _FirstForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What releases before this one wrote."""

    kind: Kind
    kid: str
    sealed: str = ""
    threshold: int = 0


class Standing(StrEnum):
    """What the last try of a seal showed."""

    UNTRIED = "untried"
    OPENS = "opens"
    WAITS = "waits-for-shares"
    UNREACHABLE = "unreachable"
    DENIED = "denied"
    BROKEN = "broken"  # opens nothing, or is not what it says


@dataclass(frozen=True, slots=True)
class SealState:
    """``reason``: a stable word, empty where it opens.  ``at``: when it was tried."""

    standing: Standing
    reason: str = ""
    at: Instant | None = None


def master_subject(region: str, kid: bytes) -> Subject:
    """What every seal binds the MasterKey to."""
    return Subject(level=Level.MASTER, tenant=f"cluster/{region}", domain="", key="master", version=1, kid=kid)


def parse_record(raw: bytes) -> MasterRecord:
    """The record, in today's form; its tag is not verified here.  Raises Refused naming the field."""
    plain = strict_json.loads(raw, max_bytes=RECORD_MAX_BYTES)
    if isinstance(plain, dict) and "version" not in plain:
        first = strict_json.convert(plain, _FirstForm)
        parameters = {"threshold": first.threshold} if first.kind is Kind.SHAMIR else {}
        only = Seal(id=first.kind.value, kind=first.kind, sealed=first.sealed, parameters=parameters)
        return _checked(MasterRecord(version=1, kid=first.kid, seals=(only,)))
    record = strict_json.convert(plain, MasterRecord)
    if record.version != VERSION:
        raise Refused.bad_field("version", f"this release knows 1 (without a version) and {VERSION}")
    check_hex("tag", record.tag, hex_bytes=hashlib.sha256().digest_size)
    return _checked(record)


def _checked(record: MasterRecord) -> MasterRecord:
    check_hex("kid", record.kid, hex_bytes=KID_BYTES)
    if not 0 < len(record.seals) <= SEALS_MAX:
        raise Refused.bad_field("seals", f"1 to {SEALS_MAX}")
    if len({seal.id for seal in record.seals}) != len(record.seals):
        raise Refused.bad_field("seals", "each id once")
    for seal in record.seals:
        check_label("id", seal.id)
        if len(seal.sealed) > SEALED_MAX_CHARS:
            raise Refused.bad_field("sealed", f"at most {SEALED_MAX_CHARS} characters")
    return record


def new_record(region: str, master: Octets, seals: Sequence[Seal]) -> MasterRecord:
    """The record of ``master`` under these seals.  Raises Refused for none, too many, or an id twice."""
    plain = MasterRecord(version=VERSION, kid=kid_hex(kid_of(master)), seals=tuple(seals))
    return msgspec.structs.replace(_checked(plain), tag=_tag(plain, region, master))


def verify_record(record: MasterRecord, region: str, master: Octets) -> None:
    """That whoever wrote this list had the MasterKey.  Raises Integrity (opaque).

    A record of version 1 has one seal and no tag: that it opened is all there is to verify.
    """
    if record.version == VERSION and not hmac.compare_digest(_tag(record, region, master), record.tag):
        raise Integrity.opaque()


def _tag(record: MasterRecord, region: str, master: Octets) -> str:
    body = strict_json.dumps(msgspec.structs.replace(record, tag=""))
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_LABEL).derive(master)
    return hmac.new(key, _LABEL + lp(region.encode()) + body, hashlib.sha256).hexdigest()


def seal_of(record: MasterRecord, seal_id: str) -> Seal:
    """Raises Refused ``not-found``."""
    for seal in record.seals:
        if seal.id == seal_id:
            return seal
    raise Refused("not-found", "no such seal", field="seal")


def without(record: MasterRecord, seal_id: str) -> tuple[Seal, ...]:
    """The seals that are left.  Raises Refused ``not-found``, or ``last-seal`` where none would be."""
    doomed = seal_of(record, seal_id)
    left = tuple(seal for seal in record.seals if seal is not doomed)
    if not left:
        raise Refused("last-seal", "the last seal stays: without it nothing opens the MasterKey", field="seal")
    return left


def check_left(left: Sequence[Seal], opening: Collection[str]) -> None:
    """That one of the seals left is known to open: by itself just now (``opening``: ids), or by people's shares.

    Raises Refused ``no-seal-opens``.
    """
    if not any(seal.id in opening or seal.kind is Kind.SHAMIR for seal in left):
        raise Refused("no-seal-opens", "none of the other seals opens just now; remove this one later", field="seal")


def tried(record: MasterRecord, order: Sequence[str] = ()) -> tuple[Seal, ...]:
    """The seals that open by themselves, those that ``order`` names first (by id or kind), the rest as recorded."""

    def rank(seal: Seal) -> int:
        named = [n for n, word in enumerate(order) if word in (seal.id, seal.kind.value)]
        return min(named, default=len(order))

    return tuple(sorted((seal for seal in record.seals if seal.kind is not Kind.SHAMIR), key=rank))
