"""Makes entries: the next one of a namespace with the rows after it, signed; and the genesis that founds a mesh.

Decides their fields only; preconditions are ``reduce``'s, who must sign is ``trust``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from keymesh.control import reduce, trust
from keymesh.control.entry import ENTRY_PAYLOAD_TYPE, FIRST_EPOCH, Body, Entry, SignedEntry, encode_entry, entry_hash
from keymesh.control.kinds import Genesis
from keymesh.control.rows import Rows
from keymesh.control.signing import PayloadSigner, Suite, to_plain
from keymesh.control.state import NamespaceState, support_after
from keymesh.crypto.dsse import Envelope
from keymesh.ledger.maptree import root_of
from keymesh.model import strict_json
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST

GENESIS: Final = "mesh.genesis"
_NEVER: Final = 2**53 - 1


def sign_entry(entry: Entry, *signers: Suite) -> SignedEntry:
    """``entry`` in its envelope, signed by each of ``signers``.  Raises Refused past 64 KiB."""
    payload = encode_entry(entry)
    signatures = tuple(suite.sign(payload, ENTRY_PAYLOAD_TYPE) for suite in signers)
    envelope = Envelope(payload, ENTRY_PAYLOAD_TYPE, signatures)
    return SignedEntry(entry=entry, hash=entry_hash(payload), envelope=envelope)


def extend(
    held: NamespaceState | None,
    *,
    mesh: str,
    namespace: str,
    kind: str,
    args: Mapping[str, Any] | msgspec.Struct,
    mesh_seq: int,
    suite: Suite,
    command_id: str,
    authority: Iterable[Envelope] = (),
    epoch: int = FIRST_EPOCH,
    actor: str = "system",
    correlation_id: str = "",
    issued_at: int = 0,
    mesh_rows: Rows | None = None,
) -> NamespaceState:
    """``held`` with one entry more, and the support that its rows need.  Raises Refused where ``reduce`` does."""
    plain: dict[str, Any] = strict_json.loads(strict_json.dumps(args), max_bytes=reduce.STATE_MAX_BYTES)
    draft = Entry(
        mesh=mesh,
        epoch=epoch,
        namespace=namespace,
        seq=1 if held is None else held.head.entry.seq + 1,
        prev=ZERO_DIGEST if held is None else held.head.hash,
        mesh_seq=mesh_seq,
        kind=kind,
        body=Body(args=plain, authority=tuple(to_plain(envelope) for envelope in authority)),
        state=ZERO_DIGEST,
        actor=actor,
        correlation_id=correlation_id or command_id,
        command_id=command_id,
        issued_at=issued_at,
    )
    rows = reduce.apply({} if held is None else held.rows, draft, mesh_rows)
    signed = sign_entry(msgspec.structs.replace(draft, state=root_of(rows)), suite)
    return NamespaceState(signed, rows, support_after(() if held is None else held.support, signed))


def make_genesis(
    args: Genesis,
    *,
    mesh: str,
    root_signers: Iterable[PayloadSigner],
    registry: Suite,
    command_id: str = "genesis",
    correlation_id: str = "genesis",
    actor: str = "root",
    issued_at: int = 0,
) -> NamespaceState:
    """The mesh as its first entry founds it, authorised by ``root_signers``.

    Raises Refused where the arguments are not well formed or the root threshold is not met.
    """
    authority = trust.make_authority(
        mesh=mesh,
        namespace=MESH_NAMESPACE,
        command_id=command_id,
        kind=GENESIS,
        args=msgspec.to_builtins(args),
        not_after=_NEVER,
        signers=root_signers,
    )
    founded = extend(
        None,
        mesh=mesh,
        namespace=MESH_NAMESPACE,
        kind=GENESIS,
        args=args,
        mesh_seq=0,
        suite=registry,
        command_id=command_id,
        authority=(authority,),
        actor=actor,
        correlation_id=correlation_id,
        issued_at=issued_at,
    )
    trust.verify_entry(founded.head, {}, None, registry)
    return founded
