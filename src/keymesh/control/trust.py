"""Who must have signed an entry, and whether they did (DESIGN section 2, after TUF).

The Registry's online key signs every entry; kinds that reach further carry, inside the signed body, the word of
root keys, officers or the tenant's own signers over that one command.  Decides nothing about order or content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from keymesh.control.checks import EVERY_KIND, namespace_fits
from keymesh.control.entry import AUTHORITY_PAYLOAD_TYPE, Authority, SignedEntry
from keymesh.control.kinds import KINDS, AuthorityBy, Genesis, Kind, RotateTrust, TenantCreate
from keymesh.control.rows import DelegationRow, RootRow, Rows, SignersRow, get
from keymesh.control.signing import PayloadSigner, Suite, from_plain
from keymesh.crypto.dsse import Envelope
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, Digest, KeyId
from keymesh.model.limits import ENTRY_MAX_BYTES, SIGNATURES_MAX
from keymesh.model.scope import parse_scope

REGISTRY_ROLE: Final = "registry"
OFFICERS_ROLE: Final = "officers"
_REGISTRY_ROW: Final = f"delegation/{REGISTRY_ROLE}"


@dataclass(frozen=True, slots=True)
class Pins:
    """What a holder is born with: the mesh's name and its root keys.

    ``version``: of the trust set that they are of.  Of a later one than the genesis's, the chain of rotations must lead
    to it (``succession``, which alone may be given such pins).
    """

    mesh: str
    root_keys: Mapping[KeyId, str]
    threshold: int
    version: int = 1


@dataclass(frozen=True, slots=True)
class Quorum:
    """Keys of which ``threshold`` must have signed."""

    keys: Mapping[KeyId, str]
    threshold: int


# --- the word of a signer --------------------------------------------------------------------------------------------


def args_digest(args: Mapping[str, Any]) -> Digest:
    """Of the arguments exactly as the entry carries them."""
    return Digest(hashlib.sha256(strict_json.dumps(args)).hexdigest())


def authority_payload(
    *, mesh: str, namespace: str, command_id: str, kind: str, args: Mapping[str, Any], not_after: int
) -> bytes:
    """The bytes that an officer or tenant signer signs, with payload type ``AUTHORITY_PAYLOAD_TYPE``."""
    return strict_json.dumps(
        Authority(
            mesh=mesh,
            namespace=namespace,
            command_id=command_id,
            kind=kind,
            args_sha256=args_digest(args),
            not_after=not_after,
        )
    )


def make_authority(
    *,
    mesh: str,
    namespace: str,
    command_id: str,
    kind: str,
    args: Mapping[str, Any],
    not_after: int,
    signers: Iterable[PayloadSigner],
) -> Envelope:
    """The command, whole, signed by each of ``signers``; ``not_after`` is Unix time in ms."""
    payload = authority_payload(
        mesh=mesh, namespace=namespace, command_id=command_id, kind=kind, args=args, not_after=not_after
    )
    signatures = tuple(signer.signature(payload, AUTHORITY_PAYLOAD_TYPE) for signer in signers)
    return Envelope(payload, AUTHORITY_PAYLOAD_TYPE, signatures)


def parse_authority(envelope: Envelope) -> Authority:
    """What ``envelope`` approves.  Raises Integrity for another payload type or form, Refused where malformed."""
    if envelope.payload_type != AUTHORITY_PAYLOAD_TYPE:
        raise Integrity("payload-type", "not an authority", field="payloadType")
    authority = strict_json.decode(envelope.payload, Authority, max_bytes=ENTRY_MAX_BYTES)
    if strict_json.dumps(authority) != envelope.payload:
        raise Integrity("not-canonical", "the authority is not in its one form", field="payload")
    return authority


def verify_authority(
    *,
    mesh: str,
    namespace: str,
    command_id: str,
    kind: str,
    args: Mapping[str, Any],
    authority: tuple[dict[str, Any], ...],
    quorum: Quorum,
    suite: Suite,
    now: int | None = None,
) -> None:
    """A quorum signed this very command.

    1. At most 16 envelopes.  2. Each names this mesh, namespace, command, kind and the digest of these arguments;
    where ``now`` (Unix ms) is given it has not expired; one that fails counts for nothing.
    3. Distinct keys of the quorum over all of them reach the threshold.
    Raises Refused ``below-threshold``.
    """
    if len(authority) > SIGNATURES_MAX:
        raise Refused.bad_field("authority", f"at most {SIGNATURES_MAX} envelopes")
    digest = args_digest(args)
    vouching: set[KeyId] = set()
    for plain in authority:
        try:
            envelope = from_plain(plain)
            word = parse_authority(envelope)
        except KeymeshError:
            continue
        same = (word.mesh, word.namespace, word.command_id, word.kind, word.args_sha256)
        if same != (mesh, namespace, command_id, kind, digest) or (now is not None and word.not_after <= now):
            continue
        vouching |= suite.signers(envelope, quorum.keys)
    if quorum.threshold < 1 or len(vouching) < quorum.threshold:
        raise Refused(
            "below-threshold", f"{kind} needs {quorum.threshold} signatures, got {len(vouching)}", field="authority"
        )


# --- whose word a command needs --------------------------------------------------------------------------------------


def quorum_for(
    kind: Kind,
    args: Mapping[str, Any],
    *,
    mesh_rows: Rows,
    tenant_signers: SignersRow | None,
    pins: Pins | None = None,
) -> Quorum | None:
    """Who must authorise a command beyond the Registry; None where nobody need.

    Genesis is the pinned root's (its own root's where nothing is pinned: who writes a log's first entry pins by
    writing it).  A rotation is the old root's here; ``incoming`` says who else's.  ``tenant.create`` is the new
    tenant's own signers'.  Raises Refused where those needed do not exist.
    """
    match kind.authority:
        case AuthorityBy.NONE:
            return None
        case AuthorityBy.ROOT:
            return _root_quorum(kind, args, mesh_rows, pins)
        case AuthorityBy.OFFICERS:
            return _officers(kind, mesh_rows)
        case AuthorityBy.FOUR_EYES_IF_WIDE:
            wide = parse_scope(str(args.get("scope", ""))).needs_four_eyes
            return _officers(kind, mesh_rows) if wide else None
        case AuthorityBy.SIGNERS:
            return _signers(kind, args, tenant_signers)


def incoming(kind: Kind, args: Mapping[str, Any]) -> tuple[Quorum, ...]:
    """Whose word a rotation needs beside the old root's: those who come into force prove that they have their keys."""
    if kind.args is not RotateTrust:
        return ()
    new = strict_json.convert(dict(args), RotateTrust)
    return tuple(Quorum(_ids(row.keys), row.threshold) for row in (new.root, new.officers))


def _root_quorum(kind: Kind, args: Mapping[str, Any], mesh_rows: Rows, pins: Pins | None) -> Quorum:
    if kind.args is Genesis:
        own = strict_json.convert(dict(args), Genesis).root
        if pins is None or own.version < pins.version:
            return Quorum(_ids(own.keys), own.threshold)
        if own.keys != dict(pins.root_keys) or own.threshold != pins.threshold:
            raise Integrity("foreign-root", "the genesis is of another root than the pinned one", field="root")
        return Quorum(pins.root_keys, pins.threshold)
    root = get(mesh_rows, "root", RootRow)
    if root is None:
        raise Refused("no-root", "the mesh has no root yet", field="root")
    return Quorum(_ids(root.keys), root.threshold)


def _officers(kind: Kind, mesh_rows: Rows) -> Quorum:
    row = get(mesh_rows, f"delegation/{OFFICERS_ROLE}", DelegationRow)
    if row is None or not _delegates(row, kind.name):
        raise Refused("no-officers", f"nobody may authorise {kind.name} here", field="authority")
    return Quorum(_ids(row.keys), row.threshold)


def _signers(kind: Kind, args: Mapping[str, Any], held: SignersRow | None) -> Quorum:
    signers = strict_json.convert(dict(args), TenantCreate).signers if kind.args is TenantCreate else held
    if signers is None:
        raise Refused("no-signers", "the tenant has no signers", field="authority")
    return Quorum(_ids(signers.keys), signers.threshold)


def _ids(keys: dict[str, str]) -> dict[KeyId, str]:
    return cast(dict[KeyId, str], keys)


def _delegates(row: DelegationRow, kind: str) -> bool:
    return kind in row.kinds or EVERY_KIND in row.kinds


# --- entries ---------------------------------------------------------------------------------------------------------


def verify_online(signed: SignedEntry, mesh_rows: Rows, suite: Suite) -> None:
    """The delegated Registry signed it.  Raises Integrity ``bad-signature`` or ``not-delegated``.

    Of an unknown kind only the signature is judged: a later release may have been delegated it.
    """
    row = get(mesh_rows, _REGISTRY_ROW, DelegationRow)
    if row is None or len(suite.signers(signed.envelope, _ids(row.keys))) < max(row.threshold, 1):
        raise Integrity("bad-signature", "not signed by a threshold of the Registry's keys", field="signatures")
    kind = signed.entry.kind
    of_mesh = signed.entry.namespace == MESH_NAMESPACE
    if row.scope != "any" and (row.scope == "mesh") is not of_mesh:
        raise Integrity("not-delegated", "those keys may not sign in this namespace", field="signatures")
    if kind in KINDS and not _delegates(row, kind):
        raise Integrity("not-delegated", f"those keys may not sign {kind}", field="signatures")


def verify_entry(
    signed: SignedEntry,
    mesh_rows: Rows,
    tenant_signers: SignersRow | None,
    suite: Suite,
    *,
    pins: Pins | None = None,
) -> None:
    """The entry is what all who had to sign it signed.

    1. Its kind is known, its arguments are of the kind's shape, its namespace of the kind's class.
    2. A threshold of the Registry's delegated keys signed it: by the delegations in ``mesh_rows``; for genesis, by
       its own, which step 3 ties to the root.
    3. A quorum of those whose word the kind needs signed the command inside it.
    Expiry is the Registry's to check when it appends; entries in the log do not expire.
    Raises Integrity (signatures of the Registry) or Refused (the rest).
    """
    entry = signed.entry
    kind = KINDS.get(entry.kind)
    if kind is None:
        raise Refused("unknown-kind", f"kind {entry.kind[:64]!r} is not known to this release", field="kind")
    namespace_fits(kind, entry.namespace)
    args = strict_json.convert(entry.body.args, kind.args)
    verify_online(signed, genesis_rows(args) if isinstance(args, Genesis) else mesh_rows, suite)
    check_command(signed, kind, mesh_rows=mesh_rows, tenant_signers=tenant_signers, suite=suite, pins=pins)


def genesis_rows(args: Genesis) -> dict[str, bytes]:
    """The delegations that a genesis entry brings."""
    return {f"delegation/{role}": strict_json.dumps(row) for role, row in args.delegations.items()}


def check_command(
    signed: SignedEntry,
    kind: Kind,
    *,
    mesh_rows: Rows,
    tenant_signers: SignersRow | None,
    suite: Suite,
    pins: Pins | None,
) -> None:
    """Step 3 of ``verify_entry`` alone."""
    entry = signed.entry
    args = entry.body.args
    quorum = quorum_for(kind, args, mesh_rows=mesh_rows, tenant_signers=tenant_signers, pins=pins)
    for needed in () if quorum is None else (quorum, *incoming(kind, args)):
        verify_authority(
            mesh=entry.mesh,
            namespace=entry.namespace,
            command_id=entry.command_id,
            kind=entry.kind,
            args=args,
            authority=entry.body.authority,
            quorum=needed,
            suite=suite,
        )
