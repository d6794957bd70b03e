"""The one verifier of evidence: the certificate of a kill switch or of a destruction, and its check, offline.

A certificate says: after T no component of this mesh mints, opens or exports under this scope (of a suspension: until a
later committed resume).  It rests on arithmetic, not on who was connected: every Core node of every region that the
scope's tenant was ever allowed is accounted for, by its own signed word (applied this entry; my last open Edge lease
ends by E) or by the bound (commit + ttl x 1.001 + 2 s).  Nothing is believed that the certificate does not carry or the
root keys do not vouch for.  A destruction's says in addition that every holder has nothing left: each by its receipt
(``destruction``), and none by a bound.  The instants in it are the Registry's, under the assumption on clock rates that
it names.
``docs/certificate.md`` specifies the same for strangers, and ``docs/verify_bundle.py`` is written from it.
Source: DESIGN section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

from msgspec import UNSET, Struct, UnsetType

from keymesh.control import commit, destruction, succession, trust, view
from keymesh.control.destruction import DESTROY as DESTROY
from keymesh.control.destruction import PURGE_KIND
from keymesh.control.destruction import PURGED as PURGED
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.kinds import TenantCreate
from keymesh.control.messages import Ack, RestrictionAck, Sealed
from keymesh.control.purge_messages import PurgeReceipt
from keymesh.control.reckoning import CLOCK_SLACK_MS as CLOCK_SLACK_MS
from keymesh.control.reckoning import ack_end as ack_end
from keymesh.control.reckoning import ack_word as ack_word
from keymesh.control.reckoning import bound_end as bound_end
from keymesh.control.reckoning import certain_end as certain_end
from keymesh.control.reckoning import holders_of as holders_of
from keymesh.control.reckoning import longest_ttl_ms as longest_ttl_ms
from keymesh.control.reckoning import stretched as stretched
from keymesh.control.rows import DelegationRow, NodeRow, PolicyRow, RootRow, Rows, SettingsRow, encode, get
from keymesh.control.signing import DsseSuite, Suite, VerifyOnly
from keymesh.control.state import NamespaceState, Supported
from keymesh.control.succession import TrustSet
from keymesh.crypto.dsse import Envelope, key_id
from keymesh.ledger.maptree import Proof, verify_proof
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, Digest, KeyId
from keymesh.model.scope import Scope, parse_scope

CERTIFICATE_MAX_BYTES: Final = 4 * 1024 * 1024
ACK: Final = "ack"
BOUND: Final = "bound"
ACTIONS: Final = {"suspend": "suspend", "revoke": "revoke", DESTROY: PURGE_KIND}
"""Of a certificate: the kind of entry that it is about."""


def action_of(kind: str) -> str | None:
    """The action of the certificate that an entry of ``kind`` leads to, None where to none."""
    return next((action for action, of in ACTIONS.items() if of == kind), None)


NOT_COVERED: Final = (
    "data keys that applications hold in the clear since before T",
    "backups of wrapped keys: they open only with the customer's own root key",
    "clocks: rates within 0.1 % of each other are assumed, and that elapsed time counts suspends",
)

NOT_DESTROYED: Final = (
    "data keys that applications hold in the clear since before T, and data that they opened",
    "backups of wrapped keys, named in the receipts: until they end they can be read by recovery officers, and open "
    "only with the customer's own root key; destroy that key, and they are shredded too",
    "the log and receipts: they keep names, key ids and digests, never key bytes",
    "storage media: blocks that a file system or a device has let go of",
    NOT_COVERED[-1],
)


# --- the certificate -------------------------------------------------------------------------------------------------


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the certificate and its parts."""


class Holder(Part, frozen=True):
    """One node: ``evidence`` is ``ack`` (then ``ack`` and ``received_at`` are there) or ``bound``; dead by ``t``.
    Of a destruction it is ``purged``, and ``ack`` the node's receipt."""

    node: str
    evidence: str
    t: int
    ack: Sealed = None
    received_at: int = 0


class Support(Part, frozen=True):
    entry: Envelope
    countersignatures: tuple[Sealed, ...] = ()


class MeshState(Part, frozen=True):
    """The mesh as it was read after the commit: its newest entry, its rows, and what they rest on."""

    head: Envelope
    rows: dict[str, bytes]
    support: tuple[Support, ...]


class Statement(Part, frozen=True):
    """What the Registry signs.  All instants are Unix ms by its clock."""

    mesh: str
    mesh_head: str  # entry hash of the mesh state that goes along
    scope: str
    action: str
    command_id: str
    correlation_id: str
    entry: Envelope
    committed_at: int
    countersignatures: tuple[Sealed, ...]
    ttl_ms: int
    holders: tuple[Holder, ...]
    t: int
    issued_at: int
    tenant: Envelope | None  # the entry that created the tenant, with its policy and signers
    policy: Proof | None = None  # that these very rows stand in the state that ``entry`` attests
    signers: Proof | None = None
    not_covered: tuple[str, ...] = NOT_COVERED
    rows: dict[str, bytes] | UnsetType = UNSET  # of a destruction: the tenant's state that ``entry`` attests, whole


class Certificate(Part, frozen=True):
    """The mesh state follows from the root keys by itself; the statement is signed by whom that state delegates to."""

    trust: MeshState
    statement: Sealed


@dataclass(frozen=True, slots=True)
class VerifiedCertificate:
    """A certificate that holds.  ``by_ack`` and ``by_bound`` are the holders' addresses by kind of evidence."""

    statement: Statement
    scope: Scope
    action: str
    t: int
    voters: tuple[str, ...]
    by_ack: tuple[str, ...]
    by_bound: tuple[str, ...]
    purged: tuple[PurgeReceipt, ...] = ()  # of a destruction: each holder's

    def summary(self) -> dict[str, Any]:
        """For people and ``--json``."""
        said = self.statement
        return {
            "mesh": said.mesh,
            "scope": said.scope,
            "action": said.action,
            "command_id": said.command_id,
            "correlation_id": said.correlation_id,
            "committed_at": said.committed_at,
            "t": said.t,
            "issued_at": said.issued_at,
            "voters": self.voters,
            "holders_by_ack": self.by_ack,
            "holders_by_bound": self.by_bound,
            "not_covered": said.not_covered,
            **({} if self.action != DESTROY else destruction.summary(self.purged)),
        }


def encode_certificate(certificate: Certificate) -> bytes:
    return strict_json.dumps(certificate)


def verify_certificate(raw: bytes, *, root: RootRow, mesh: str, suite: Suite | None = None) -> VerifiedCertificate:
    """The certificate in ``raw``, if it holds under the pinned ``root`` of ``mesh``.  Needs no network and no clock.

    Raises Refused where it is malformed, Integrity (with a code that names the step) where it does not hold.
    """
    value = strict_json.loads(raw, max_bytes=CERTIFICATE_MAX_BYTES)
    certificate = strict_json.convert(value, Certificate)
    if strict_json.dumps(certificate) != strict_json.dumps(value):  # base64 has several forms, fields can be left out
        raise Refused.bad_field("certificate", "every field, and base64 in its one padded form")
    keys = {KeyId(k): v for k, v in root.keys.items()}
    pins = trust.Pins(mesh=mesh, root_keys=keys, threshold=root.threshold, version=root.version)
    return check_certificate(certificate, suite=suite or DsseSuite(VerifyOnly()), pins=pins)


def check_certificate(certificate: Certificate, *, suite: Suite, pins: trust.Pins) -> VerifiedCertificate:
    """As ``verify_certificate``, of one that is parsed.

    1. The mesh state follows from the pinned root, and is of the mesh that the statement names.
    2. The Registry that this state delegates to signed the statement about this very state.
    3. The entry is a suspension or revocation of that scope by that command, and its signatures verify: of a region or
       the mesh by the officers that were in force at its place in the log.
    4. The tenant's policy and signers are those of the entry that created it, and stand in the state that the entry
       of step 3 attests: a create entry vouches for itself only, while the voters countersigned that state.
    5. A majority of the voter set countersigned exactly that entry, as a restriction.
    6. The ttl is the longest that a lease alive at the commit could carry; the commit is no earlier than the entry.
    7. The holders are exactly those that policy and mesh state give, each once.
    8. Each holder's end follows from its evidence.  Of a destruction that is its receipt, which names every key version
    of the tenant; the tenant's rows come along whole, and are those that the entry of step 3 attests.
    9. T is the latest of the commit and these ends, and the certificate was issued no earlier than T.
    """
    head, mesh_rows, sets = _mesh_state(certificate.trust, suite, pins)
    statement = _statement(certificate, head, mesh_rows, suite)
    signed, scope = _entry(statement, head, mesh_rows, sets, suite)
    policy = _policy(statement, scope, signed.entry.state, mesh_rows, suite)
    if not commit.is_committed(signed, statement.countersignatures, mesh_rows, suite):
        raise Integrity("certificate-commit", "no majority of the voters countersigned it", field="countersignatures")
    settings = get(mesh_rows, "settings", SettingsRow)
    if settings is None or statement.ttl_ms != longest_ttl_ms(settings, policy):
        raise Integrity("certificate-ttl", "not the longest that a lease could carry", field="ttl_ms")
    if statement.committed_at < signed.entry.issued_at:
        raise Integrity("certificate-commit", "committed before it was issued", field="committed_at")
    if tuple(h.node for h in statement.holders) != holders_of(scope, mesh_rows, policy):
        raise Integrity("certificate-holders", "the holders are not those of the scope", field="holders")
    purged = []
    for holder in statement.holders:
        if statement.action == DESTROY:
            purged.append(_check_purged(holder, statement, signed, mesh_rows, suite))
        else:
            _check_holder(holder, statement, signed, mesh_rows, suite)
    if statement.t != certain_end(statement.committed_at, (h.t for h in statement.holders)):
        raise Integrity("certificate-t", "T does not follow from the evidence", field="t")
    if statement.issued_at < statement.t:
        raise Integrity("certificate-t", "issued before T", field="issued_at")
    return VerifiedCertificate(
        statement=statement,
        scope=scope,
        action=statement.action,
        t=statement.t,
        voters=tuple(sorted(commit.countersigned_by(signed, statement.countersignatures, mesh_rows, suite))),
        by_ack=tuple(h.node for h in statement.holders if h.evidence == ACK),
        by_bound=tuple(h.node for h in statement.holders if h.evidence == BOUND),
        purged=tuple(purged),
    )


def _mesh_state(trusted: MeshState, suite: Suite, pins: trust.Pins) -> tuple[SignedEntry, Rows, tuple[TrustSet, ...]]:
    """Step 1, by the procedure of a holder that sees the mesh for the first time; with every trust set up to then."""
    state = NamespaceState(
        head=_parsed(trusted.head),
        rows=dict(trusted.rows),
        support=tuple(Supported(_parsed(s.entry), s.countersignatures) for s in trusted.support),
    )
    try:
        view.check_first_mesh(state, suite=suite, pins=pins)
    except KeymeshError as bad:
        raise Integrity("certificate-root", f"the mesh state does not hold: {bad.message}", field="trust") from bad
    return state.head, state.rows, succession.sets_of(state, suite, pins)


def _parsed(envelope: Envelope) -> SignedEntry:
    try:
        return parse_entry(envelope)
    except KeymeshError as bad:
        raise Integrity("certificate-entry", "an entry in it is malformed") from bad


def _statement(certificate: Certificate, head: SignedEntry, mesh_rows: Rows, suite: Suite) -> Statement:
    row = get(mesh_rows, "delegation/registry", DelegationRow)
    keys = {} if row is None else {KeyId(k): v for k, v in row.keys.items()}
    try:
        statement = suite.unseal(certificate.statement, Statement, keys)
    except KeymeshError as bad:
        raise Integrity("certificate-signature", "not signed by this mesh's Registry", field="statement") from bad
    if statement.mesh != head.entry.mesh or statement.mesh_head != head.hash:
        raise Integrity("certificate-root", "the statement is about another mesh state", field="mesh_head")
    return statement


def _entry(
    statement: Statement, head: SignedEntry, mesh_rows: Rows, sets: tuple[TrustSet, ...], suite: Suite
) -> tuple[SignedEntry, Scope]:
    signed = _parsed(statement.entry)
    entry = signed.entry
    said = (entry.mesh, entry.kind, entry.command_id, entry.correlation_id, entry.body.args.get("scope"))
    claimed = (
        statement.mesh,
        ACTIONS.get(statement.action),
        statement.command_id,
        statement.correlation_id,
        statement.scope,
    )
    if said != claimed:
        raise Integrity("certificate-entry", "the entry does not say what the certificate says", field="entry")
    scope = parse_scope(statement.scope)
    if entry.namespace != scope.namespace:
        raise Integrity("certificate-entry", "the scope is not of the entry's namespace", field="scope")
    if entry.mesh_seq > head.entry.seq:
        raise Integrity("certificate-root", "the mesh state is older than the entry", field="trust")
    if entry.namespace == MESH_NAMESPACE:  # whose officers may have been others when it was signed
        mesh_rows = succession.rows_at(sets, mesh_rows, entry)
    _verify(signed, mesh_rows, suite)
    return signed, scope


def _verify(signed: SignedEntry, mesh_rows: Rows, suite: Suite) -> None:
    try:
        trust.verify_entry(signed, mesh_rows, None, suite)
    except KeymeshError as bad:
        raise Integrity("certificate-entry", "an entry's signatures do not verify", field="entry") from bad


def _policy(statement: Statement, scope: Scope, state: Digest, mesh_rows: Rows, suite: Suite) -> PolicyRow | None:
    """Step 4."""
    if scope.tenant is None:
        return None
    if statement.tenant is None:
        raise Integrity("certificate-tenant", "the entry that created the tenant is missing", field="tenant")
    created = _parsed(statement.tenant)
    said = (created.entry.mesh, created.entry.kind, created.entry.namespace)
    if said != (statement.mesh, "tenant.create", scope.tenant):
        raise Integrity("certificate-tenant", "not the entry that created this tenant", field="tenant")
    _verify(created, mesh_rows, suite)
    args = strict_json.convert(created.entry.body.args, TenantCreate)
    for name, row, proof in (("policy", args.policy, statement.policy), ("signers", args.signers, statement.signers)):
        if proof is None or _proven(state, name, proof) != encode(row):
            raise Integrity("certificate-policy", f"the attested state has other {name}", field=name)
    return args.policy


def _proven(state: Digest, name: str, proof: Proof) -> bytes | None:
    try:
        return verify_proof(state, name, proof)
    except KeymeshError as bad:
        raise Integrity("certificate-policy", "not a row of the attested state", field=name) from bad


def _check_holder(holder: Holder, statement: Statement, signed: SignedEntry, mesh_rows: Rows, suite: Suite) -> None:
    """Step 8, of one holder."""
    if holder.evidence == BOUND:
        if holder.t != bound_end(statement.committed_at, statement.ttl_ms):
            raise Integrity("certificate-evidence", f"{holder.node}: not the bound", field="holders")
        return
    if holder.evidence != ACK:
        raise Integrity("certificate-evidence", f"{holder.node}: unknown evidence", field="holders")
    ack, entry = _own_word(holder, Ack, statement, signed, mesh_rows, suite), signed.entry
    word = ack_word(ack, statement.scope, entry.seq, entry.epoch, signed.hash)
    if word is None:
        raise Integrity("certificate-evidence", f"{holder.node}: does not name this entry", field="holders")
    _check_end(holder, word, statement, signed)


def _check_purged(
    holder: Holder, statement: Statement, signed: SignedEntry, mesh_rows: Rows, suite: Suite
) -> PurgeReceipt:
    """Step 8 of a destruction, of one holder: nothing but its own receipt for this purge counts."""
    if holder.evidence != PURGED:
        raise Integrity("certificate-evidence", f"{holder.node}: no receipt", field="holders")
    receipt, entry = _own_word(holder, PurgeReceipt, statement, signed, mesh_rows, suite), signed.entry
    assert statement.tenant is not None
    if statement.rows is UNSET or view.rows_root(statement.rows) != entry.state:
        raise Integrity("certificate-rows", "the rows are not those that the entry attests", field="rows")
    if not destruction.covers(
        receipt,
        order=(entry.epoch, entry.seq),
        entry_hash=signed.hash,
        admitted=_parsed(statement.tenant).entry.seq,
        keys=destruction.key_versions(statement.rows),
    ):
        raise Integrity("certificate-evidence", f"{holder.node}: its receipt does not cover this", field="holders")
    _check_end(holder, receipt, statement, signed)
    return receipt


W = TypeVar("W", Ack, PurgeReceipt)


def _own_word(
    holder: Holder, shape: type[W], statement: Statement, signed: SignedEntry, mesh_rows: Rows, suite: Suite
) -> W:
    region, _, node = holder.node.removeprefix("node:").partition("/")
    row = get(mesh_rows, f"node/{region}/{node}", NodeRow)
    keys = {} if row is None else {key_id(bytes.fromhex(row.signing_key)): row.signing_key}
    try:
        word = suite.unseal(holder.ack, shape, keys)
    except KeymeshError as bad:
        raise Integrity("certificate-evidence", f"{holder.node}: not its own word", field="holders") from bad
    if (word.mesh, word.region, word.node, word.namespace) != (statement.mesh, region, node, signed.entry.namespace):
        raise Integrity("certificate-evidence", f"{holder.node}: a word about something else", field="holders")
    return word


def _check_end(holder: Holder, word: RestrictionAck | PurgeReceipt, statement: Statement, signed: SignedEntry) -> None:
    if holder.t != ack_end(holder.received_at, word.edge_leases_end_in_ms, word.open_edge_leases):
        raise Integrity("certificate-evidence", f"{holder.node}: its end does not follow", field="holders")
    if holder.received_at < signed.entry.issued_at or holder.received_at > statement.issued_at:
        raise Integrity("certificate-evidence", f"{holder.node}: received at no possible time", field="holders")
