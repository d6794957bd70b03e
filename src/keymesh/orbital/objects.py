"""Sealed KMIP objects as regions hold and exchange them: what one is, whose word counts, what may be committed.

An object travels whole, with its version; its bytes are opaque here.  One region at a time may change it, so two
objects of one version and other bytes are a fault that somebody must look at: what is held stays, the other is kept
as evidence.  Destroyed is for good.  Source: DESIGN sections 4 and 7.

On disk and on the wire: ``"keymesh/object/1" || lp(namespace) || lp(service) || lp(uid) || lp(home) || u64be(version)
|| u8(gone) || u32be(n) || n x lp(name) || lp(sealed)``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from keymesh.control.rows import PolicyRow
from keymesh.crypto.aad import lp
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import check_region, check_service, check_tenant, check_token
from keymesh.model.limits import (
    OBJECT_COMMIT_MAX,
    OBJECT_COMMIT_MAX_BYTES,
    OBJECT_NAME_MAX_BYTES,
    OBJECT_NAMES_MAX,
    OBJECT_SEALED_MAX_BYTES,
)

MAGIC: Final = b"keymesh/object/1"
VERSION_MAX: Final = 2**53
_LENGTH: Final = struct.Struct(">I")
_NUMBERS: Final = struct.Struct(">QBI")  # version, gone, count of names


@dataclass(frozen=True, slots=True)
class SealedObject:
    """One object in one version.

    ``namespace``: the tenant.  ``home``: the region that may change it.  ``version`` counts from 1.  ``names``: blinded
    tokens of its names.  ``gone``: destroyed, so its names are free.
    """

    namespace: str
    service: str
    uid: str
    home: str
    version: int
    names: tuple[bytes, ...]
    gone: bool
    sealed: bytes = field(repr=False)


class Verdict(Enum):
    """What a holder makes of an object that it is offered."""

    STORE = "store"
    SAME = "same"
    STALE = "stale"
    FORK = "fork"


class Conflict(Refused):
    """Somebody else changed the object first (``version-conflict``), or another has the name (``name-taken``):
    nothing of the commit was done."""

    @classmethod
    def of_version(cls, uid: str) -> Conflict:
        return cls("version-conflict", "the object is another version", field=uid)

    @classmethod
    def of_name(cls) -> Conflict:
        return cls("name-taken", "the name is another object's", field="names")

    @property
    def name_taken(self) -> bool:
        return self.code == "name-taken"


Changes = Sequence[tuple[int, SealedObject]]
"""(expected version, 0 for a new object; the object as it shall be)"""


def judge(held: SealedObject | None, offered: SealedObject) -> Verdict:
    """Whether ``offered`` takes the place of ``held``.

    Depends on nothing but the two, so that order, loss and repetition do not matter.
    """
    if held is None:
        return Verdict.STORE
    if place(held) != place(offered):
        raise ValueError("two objects, not one")
    if offered.version == held.version:
        return Verdict.SAME if offered == held else Verdict.FORK
    if offered.version < held.version:
        return Verdict.STALE
    return Verdict.FORK if held.gone and not offered.gone else Verdict.STORE


def writer(held: SealedObject, policy: PolicyRow) -> str:
    """The region that may change ``held``: its home while the tenant is allowed there, else the tenant's home."""
    return held.home if held.home in policy.regions else policy.home


def place(one: SealedObject) -> tuple[str, str, str]:
    """What an object is known by, everywhere and in all its versions."""
    return one.namespace, one.service, one.uid


# --- a commit ------------------------------------------------------------------------------------------------------


def check_changes(namespace: str, service: str, changes: Changes) -> None:
    """Raises Refused where they are no commit of that service: too many, too large, one twice, a version left out."""
    if not 0 < len(changes) <= OBJECT_COMMIT_MAX:
        raise Refused.bad_field("changes", f"1 to {OBJECT_COMMIT_MAX}")
    if sum(len(after.sealed) for _, after in changes) > OBJECT_COMMIT_MAX_BYTES:
        raise Refused.bad_field("changes", f"at most {OBJECT_COMMIT_MAX_BYTES} bytes together")
    for expected, after in changes:
        check_object(after)
        if (after.namespace, after.service) != (namespace, service):
            raise Refused.bad_field("changes", "of one tenant and service")
        if after.version != expected + 1:
            raise Refused.bad_field("version", "the next after the expected one")
    if len({after.uid for _, after in changes}) < len(changes):
        raise Refused.bad_field("changes", "an object twice")
    wanted = [name for _, after in changes if not after.gone for name in after.names]
    if len(set(wanted)) < len(wanted):
        raise Conflict.of_name()


def plan_writer(changes: Changes, held: Mapping[str, SealedObject], policy: PolicyRow, *, here: str) -> str:
    """The region that must do these changes: ``here`` where all are new.  ``held``: by uid, what is held here.

    Raises Conflict where an object that is to be changed is not held, Refused ``several-writers`` where no one region
    may change them all.
    """
    writers = set()
    for expected, after in changes:
        if expected == 0:
            continue
        if after.uid not in held:
            raise Conflict.of_version(after.uid)
        writers.add(writer(held[after.uid], policy))
    if len(writers) > 1:
        raise Refused(
            "several-writers", f"these objects are changed in different regions: {', '.join(sorted(writers))}"
        )
    return writers.pop() if writers else here


def at_home(changes: Changes, region: str) -> list[tuple[int, SealedObject]]:
    """The same changes as ``region`` does them: it is the home of what it made or changed."""
    return [(expected, replace(after, home=region)) for expected, after in changes]


def check_change(held: SealedObject | None, expected: int, after: SealedObject) -> None:
    """Raises Conflict where ``held`` is not the expected version, Refused where a destroyed object would come back."""
    if (0 if held is None else held.version) != expected:
        raise Conflict.of_version(after.uid)
    if held is not None and held.gone and not after.gone:
        raise Refused("gone", "a destroyed object stays destroyed", field=after.uid)


# --- bytes -----------------------------------------------------------------------------------------------------------


def check_object(one: SealedObject) -> None:
    """Raises Refused naming the field and its limit."""
    check_tenant(one.namespace)
    check_service(one.service)
    check_token("uid", one.uid)
    check_region(one.home)
    if not 1 <= one.version <= VERSION_MAX:
        raise Refused.bad_field("version", f"1 to {VERSION_MAX}")
    if len(one.names) > OBJECT_NAMES_MAX:
        raise Refused.bad_field("names", f"at most {OBJECT_NAMES_MAX}")
    if len(set(one.names)) < len(one.names):
        raise Refused.bad_field("names", "one twice")
    if not all(1 <= len(name) <= OBJECT_NAME_MAX_BYTES for name in one.names):
        raise Refused.bad_field("names", f"tokens of 1 to {OBJECT_NAME_MAX_BYTES} bytes")
    if not 1 <= len(one.sealed) <= OBJECT_SEALED_MAX_BYTES:
        raise Refused.bad_field("sealed", f"1 to {OBJECT_SEALED_MAX_BYTES} bytes")


def object_to_bytes(one: SealedObject) -> bytes:
    """Its one form.  Raises Refused for what is no object."""
    check_object(one)
    texts = (one.namespace, one.service, one.uid, one.home)
    return b"".join(
        (
            MAGIC,
            *(lp(text.encode()) for text in texts),
            one.version.to_bytes(8, "big"),
            bytes((one.gone,)),
            len(one.names).to_bytes(4, "big"),
            *(lp(name) for name in one.names),
            lp(one.sealed),
        )
    )


def object_from_bytes(raw: bytes) -> SealedObject:
    """Raises Integrity where ``raw`` is not the one form of an object within the limits."""
    one = object_as_written(raw)
    try:
        check_object(one)
    except Refused as bad:
        raise Integrity("object", "a field beyond its limit") from bad
    return one


def object_as_written(raw: bytes) -> SealedObject:
    """As ``object_from_bytes``, of bytes that are known to be those that ``object_to_bytes`` made: each field is taken
    for what it says."""
    if not raw.startswith(MAGIC):
        raise Integrity("object", "no object")
    at = len(MAGIC)
    try:
        texts = []
        for _ in range(4):
            field_, at = _field(raw, at)
            texts.append(field_.decode("ascii"))
        version, gone, count = _NUMBERS.unpack_from(raw, at)
        at += _NUMBERS.size
        names = []
        for _ in range(min(count, OBJECT_NAMES_MAX + 1)):
            field_, at = _field(raw, at)
            names.append(field_)
        sealed, at = _field(raw, at)
    except (struct.error, UnicodeDecodeError) as bad:
        raise Integrity("object", "cut short") from bad
    if at != len(raw) or gone > 1:
        raise Integrity("object", "bytes that mean nothing")
    namespace, service, uid, home = texts
    return SealedObject(namespace, service, uid, home, version, tuple(names), bool(gone), sealed)


def _field(raw: bytes, at: int) -> tuple[bytes, int]:
    """(the field at ``at``, where the next one begins)."""
    (length,) = _LENGTH.unpack_from(raw, at)
    end = at + 4 + length
    if end > len(raw):
        raise Integrity("object", "cut short")
    return raw[at + 4 : end], end


def object_digest(raw: bytes) -> bytes:
    """SHA-256 of an object's one form."""
    return hashlib.sha256(raw).digest()
