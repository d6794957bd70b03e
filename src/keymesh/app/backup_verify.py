"""``backup verify``: everything in a mesh's backup stores opened and judged by nothing but the pinned root.

The Registry's store:
1. The store is this mesh's.  2. Every manifest follows the one before, from a full one on.  3. Every chunk is what its
manifest names, and opens.  4. Every entry continues its chain, is signed by all who had to, and has the state that it
attests; later sets tell the same history as earlier ones.  5. Each manifest holds what it says, and is signed by the
Registry that the mesh had then.  6. Kill-switch records are about entries of the log and their certificates hold;
receipts chain.

A domain's stores: 1 to 3 as above.  4. States are what a node that knows only the root would accept, of this domain.
5. Each manifest is signed by its node, of a region of this domain.  6. Every blob is what its digest says, and named by
its tenant's state; none is missing over all lines and stores.  7. No state is of another history than the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from keymesh.app.backup_domain import STATES_CODEC, wanted_blobs
from keymesh.app.backup_read import Stored, open_chunks, read_lines, read_marker
from keymesh.control import backup_manifest as bm
from keymesh.control import view
from keymesh.control.backup_chunks import Item
from keymesh.control.backup_log import ReplayedLog
from keymesh.control.backup_manifest import Manifest
from keymesh.control.backup_store import BackupStore
from keymesh.control.evidence import verify_certificate
from keymesh.control.heads import heads_root
from keymesh.control.rows import KeyRow, NodeRow, PolicyRow, RegionRow, RootRow, get
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState
from keymesh.control.trust import Pins
from keymesh.control.view import Accepted, Offered, RefusedTask
from keymesh.crypto.dsse import envelope_from_json, key_id, verify_envelope
from keymesh.crypto.wrap import digest as digest_of
from keymesh.ledger.receipts import Chain
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import MESH_NAMESPACE, KeyId
from keymesh.model.limits import TASK_MAX_BYTES
from keymesh.orbital.wire import Codec
from keymesh.registry.records import RECORD_TYPES, KillRecord, kill_name

RECORD_MAX_BYTES: Final = 4 * 1024 * 1024
_RECORDS: Final = Codec(RECORD_TYPES)


@dataclass(frozen=True, slots=True)
class Opener:
    """What a verification starts from: the pinned root, the recovery key, the verifier's clock (Unix ms).

    ``newest``: only the newest set of each line is read.
    """

    pins: Pins
    suite: Suite
    private: X25519PrivateKey
    now_ms: int
    newest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A store that holds."""

    store: str
    domain: str
    lines: dict[str, Manifest]  # the newest of each
    manifests: int
    chunks: int
    blobs: int


# --- the Registry's store --------------------------------------------------------------------------------------------


def verify_registry(store: BackupStore, opener: Opener) -> tuple[Report, ReplayedLog]:
    """The log in ``store``, all of it.  Raises Integrity naming what does not hold; Refused where there is none."""
    marker = read_marker(store, mesh=opener.pins.mesh)
    if marker.domain:
        raise Refused("no-backup", f"{store.address} is the store of domain {marker.domain!r}", field="store")
    lines = read_lines(store, marker, now_ms=opener.now_ms, newest=opener.newest)
    if set(lines) != {bm.REGISTRY_ORIGIN}:
        raise Integrity("foreign-object", "not exactly the Registry's line in its store", field="origin")
    replayed = ReplayedLog(opener.pins, opener.suite)
    beside = _Beside(replayed, opener)
    line = lines[bm.REGISTRY_ORIGIN]
    for stored in line:
        if stored.manifest.full:
            replayed.rewind()
            beside.rewind()
        for kind, items in _opened(store, stored, opener, bm.LOG, bm.RECORDS, bm.RECEIPTS):
            for item in items:
                beside.take(kind, item) if kind != bm.LOG else replayed.take(int.from_bytes(item[0], "big"), item[1])
        replayed.finish(stored.manifest)
        bm.check_signed_by(stored.envelope, replayed.registry_keys())
    return _report(store, "", lines, blobs=0), replayed


class _Beside:
    """What lies beside the log."""

    def __init__(self, replayed: ReplayedLog, opener: Opener) -> None:
        self._log, self._opener = replayed, opener
        self._lines: dict[tuple[str, int], bytes] = {}
        self.rewind()

    def rewind(self) -> None:
        self._chains: dict[str, Chain] = {}

    def take(self, kind: str, item: Item) -> None:
        if kind == bm.RECORDS:
            self._record(_text(item[0]), item[1])
        else:
            self._receipt(_text(item[0]), item[1])

    def _record(self, name: str, raw: bytes) -> None:
        try:
            record = _RECORDS.decode(raw, max_bytes=RECORD_MAX_BYTES)
        except Refused as bad:
            raise Integrity("broken-backup", f"record {name[:160]!r}: {bad.message}", field="records") from bad
        if not isinstance(record, KillRecord) or kill_name(record.command_id, record.namespace) != name:
            raise Integrity("broken-backup", f"record {name[:160]!r} is not what it is named", field="records")
        if self._log.hash_at(record.namespace, record.seq) != record.entry_hash:
            raise Integrity("not-in-log", f"record {name[:160]!r} is about no entry of the log", field="records")
        if record.certificate is not None:
            pins = self._opener.pins
            root = RootRow(version=1, keys={str(k): v for k, v in pins.root_keys.items()}, threshold=pins.threshold)
            certificate = strict_json.dumps(record.certificate)
            try:
                verify_certificate(certificate, root=root, mesh=pins.mesh, suite=self._opener.suite)
            except Refused as bad:
                raise Integrity("broken-backup", f"record {name[:160]!r}: {bad.message}", field="records") from bad

    def _receipt(self, origin: str, raw: bytes) -> None:
        """The same ones may come again from their beginning, where a writer did not know how far it was."""
        try:
            envelope = envelope_from_json(raw)
            begins = strict_json.loads(envelope.payload, max_bytes=TASK_MAX_BYTES).get("seq") == 1
        except (Refused, AttributeError) as bad:
            raise Integrity("broken-backup", f"what {origin[:160]!r} has is no receipt", field="receipts") from bad
        chain = self._chains.get(origin)
        if chain is None or begins:
            chain = self._chains[origin] = Chain(origin)
        record = chain.accept(envelope)
        if self._lines.setdefault((origin, record.seq), raw) != raw:
            raise Integrity("fork", f"receipt {record.seq} of {origin} was another before", field="receipts")
        if not verify_envelope(envelope, self._log.registry_keys()):
            raise Integrity("bad-signature", f"receipt {record.seq} of {origin} is signed by nobody who may")


# --- a domain's store ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    """One node's set as far as it was read."""

    states: dict[str, NamespaceState] = field(default_factory=dict)
    named: set[tuple[str, str]] = field(default_factory=set)
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)


def verify_domain(stores: Sequence[BackupStore], opener: Opener, replayed: ReplayedLog) -> list[Report]:
    """The wrapped keys in all ``stores`` of one domain, held against the log.  Raises as ``verify_registry``.

    Nodes may write into stores of their own; what one of them lacks another may have.
    """
    markers = [read_marker(store, mesh=opener.pins.mesh) for store in stores]
    domain = markers[0].domain
    if not domain or any(marker.domain != domain for marker in markers):
        raise Refused("no-backup", "not all of one residency domain", field="store")
    lines = [
        read_lines(store, marker, now_ms=opener.now_ms, newest=opener.newest)
        for store, marker in zip(stores, markers, strict=True)
    ]
    newest: dict[str, _Line] = {}
    for store, of_store in zip(stores, lines, strict=True):
        for origin, line in of_store.items():
            if origin in newest:
                raise Integrity("duplicate-id", f"the line of {origin} is in two stores", field="origin")
            newest[origin] = _read_line(store, line, opener, domain=domain)
            for state in newest[origin].states.values():
                _check_in_log(state, replayed)
    _check_complete(newest)
    blobs = [{blob for origin in of_store for blob in newest[origin].blobs} for of_store in lines]
    return [
        _report(store, domain, of_store, blobs=len(held))
        for store, of_store, held in zip(stores, lines, blobs, strict=True)
    ]


def _check_complete(newest: dict[str, _Line]) -> None:
    """Step 6: what any line's newest states name is in some line's newest set."""
    held = {blob for read in newest.values() for blob in read.blobs}
    for read in newest.values():
        for tenant, state in read.states.items():
            lost = [] if tenant == MESH_NAMESPACE else sorted({(tenant, d) for d in wanted_blobs(state.rows)} - held)
            if lost:
                raise Integrity("incomplete", f"{len(lost)} wrapped keys of {tenant} are in no backup", field="blobs")


def _read_line(store: BackupStore, line: list[Stored], opener: Opener, *, domain: str) -> _Line:
    read = _Line()
    for stored in line:
        m = stored.manifest
        if m.full:
            read = _Line()
        seen: set[tuple[str, ...]] = set()
        for kind, items in _opened(store, stored, opener, bm.STATES, bm.BLOBS):
            for item in items:
                once = (kind, *map(_text, item[:-1]))
                if once in seen:
                    raise Integrity("duplicate-id", f"{m.origin}: {m.seq} has {once[:2]} twice", field=kind)
                seen.add(once)
                if kind == bm.STATES:
                    _take_state(read, once[1], item[1], opener, domain=domain)
                else:
                    _take_blob(read, (once[1], once[2]), item[2])
        _check_line(read, stored, domain=domain)
    return read


def _take_state(read: _Line, namespace: str, raw: bytes, opener: Opener, *, domain: str) -> None:
    """Step 4.  An empty state says that the node no longer holds that namespace."""
    if not raw:
        if read.states.pop(namespace, None) is None or namespace == MESH_NAMESPACE:
            raise Integrity("broken-backup", "a namespace is gone that was not there", field="states")
        return
    try:
        state = STATES_CODEC.decode(raw, max_bytes=RECORD_MAX_BYTES)
    except Refused as bad:
        raise Integrity("broken-backup", f"the state of {namespace[:64]!r}: {bad.message}", field="states") from bad
    if namespace == MESH_NAMESPACE:
        view.check_first_mesh(state, suite=opener.suite, pins=opener.pins)
    else:
        mesh = read.states.get(MESH_NAMESPACE)
        if mesh is None:
            raise Integrity("broken-backup", "a tenant's state without the mesh's", field="states")
        epoch = max(mesh.head.entry.epoch, state.head.entry.epoch)
        offer = Offered(namespace, state)
        outcome = view.accept(None, offer, mesh, opener.suite, pins=opener.pins, epoch=epoch)
        if not isinstance(outcome, Accepted):
            code = outcome.code if isinstance(outcome, RefusedTask) else "not-accepted"
            raise Integrity(code, f"the state of {namespace[:64]!r} does not hold", field="states")
        policy = get(state.rows, "policy", PolicyRow)
        if policy is None or policy.domain != domain:
            raise Integrity("foreign-domain", "a tenant of another residency domain", field="states")
    read.states[namespace] = state
    keys = (get(state.rows, name, KeyRow) for name in state.rows if name.startswith("key/"))
    read.named |= {(namespace, row.digest) for row in keys if row is not None}


def _take_blob(read: _Line, blob: tuple[str, str], content: bytes) -> None:
    """Step 6."""
    if digest_of(content) != blob[1]:
        raise Integrity("blob-digest", f"a wrapped key of {blob[0][:64]!r} is not what its digest says", field="blobs")
    if blob not in read.named:
        raise Integrity("foreign-blob", f"{blob[0][:64]!r} has no key version of that digest", field="blobs")
    read.blobs[blob] = content


def _check_line(read: _Line, stored: Stored, *, domain: str) -> None:
    """What ``stored`` says of the set up to it, and step 5."""
    m = stored.manifest
    leaves = {name: state.leaf for name, state in read.states.items()}
    mesh = read.states.get(MESH_NAMESPACE)
    if mesh is None:
        raise Integrity("incomplete", f"{m.origin}: {m.seq} has no mesh state", field="states")
    said = (m.namespaces, m.blobs, m.heads_root, m.epoch)
    if said != (len(leaves), len(read.blobs), heads_root(leaves), mesh.head.entry.epoch):
        raise Integrity("incomplete", f"{m.origin}: {m.seq} does not hold what it says", field="states")
    region, _, node = m.origin.partition(".")
    row = get(mesh.rows, f"node/{region}/{node}", NodeRow)
    key = b"" if row is None else bytes.fromhex(row.signing_key)
    bm.check_signed_by(stored.envelope, {KeyId(key_id(key)): key} if key else {})
    of_region = get(mesh.rows, f"region/{region}", RegionRow)
    if of_region is None or of_region.domain != domain:
        raise Integrity("foreign-domain", f"{m.origin} is of no region of {domain}", field="origin")


def _check_in_log(state: NamespaceState, replayed: ReplayedLog) -> None:
    """Step 7.  A state may be newer than the backup of the log."""
    entry = state.head.entry
    found = replayed.hash_at(entry.namespace, entry.seq)
    if found is not None and found != state.head.hash:
        raise Integrity("fork", f"{entry.namespace}:{entry.seq} is another entry than in the log", field="states")


# --- both ------------------------------------------------------------------------------------------------------------


def _opened(store: BackupStore, stored: Stored, opener: Opener, *kinds: str) -> Iterator[tuple[str, list[Item]]]:
    for kind, items in open_chunks(store, stored.manifest, opener.private):
        if kind not in kinds:
            raise Integrity("broken-backup", f"{kind} has no place in this store", field="chunks")
        yield kind, items


def _report(store: BackupStore, domain: str, lines: dict[str, list[Stored]], *, blobs: int) -> Report:
    every = [s.manifest for line in lines.values() for s in line]
    return Report(
        store=store.address,
        domain=domain,
        lines={origin: line[-1].manifest for origin, line in sorted(lines.items())},
        manifests=len(every),
        chunks=sum(len(m.chunks) for m in every),
        blobs=blobs,
    )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as bad:
        raise Integrity("broken-backup", "a name that is not UTF-8", field="name") from bad


def check_at_least(replayed: ReplayedLog, index: int) -> None:
    """Raises Integrity where the backup ends before ``index``: older, or what came after was taken away."""
    if replayed.index < index:
        raise Integrity("too-old", f"the backup ends at index {replayed.index}, before {index}", field="index")
