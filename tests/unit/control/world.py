"""A small mesh to test with: four regions, three voters, one tenant or more; signed by either suite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from keymesh.control import build, commit, trust
from keymesh.control.entry import Entry, SignedEntry
from keymesh.control.kinds import KINDS, AuthorityBy, Genesis
from keymesh.control.rows import (
    DelegationRow,
    NodeRow,
    PolicyRow,
    RegionRow,
    RestrictionRow,
    RootRow,
    Row,
    Rows,
    ServiceRow,
    SettingsRow,
    SignersRow,
    VotersRow,
    get,
)
from keymesh.control.signing import DsseSuite
from keymesh.control.state import NamespaceState, with_commit
from keymesh.control.view import Offered, Outcome, accept
from keymesh.crypto.dsse import Ed25519Signer, Envelope
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.scope import parse_scope
from keymesh.sim.suite import FakeSuite

MESH = "m1"
DOMAIN = {"us-east": "us", "us-west": "us", "eu-central": "eu", "eu-west": "eu"}
VOTERS = ("us-east", "us-west", "eu-central")
FAR = 2**53 - 1
Key = FakeSuite | DsseSuite
R = TypeVar("R", bound=Row)


def real_key(name: str) -> DsseSuite:
    return DsseSuite(Ed25519Signer.from_seed(hashlib.sha256(name.encode()).digest()))


def row_keys(*keys: Key) -> dict[Any, str]:
    return {k.key_id: k.public_hex for k in keys}


def row_of(rows: Rows, name: str, shape: type[R]) -> R:
    row = get(rows, name, shape)
    assert row is not None
    return row


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Mesh:
    """Every namespace's newest state, and every state before it."""

    def __init__(self, *, real: bool = False, name: str = MESH, voters: tuple[str, ...] = VOTERS) -> None:
        self.name = name
        self._new = real_key if real else FakeSuite
        self.roots = [self.key(f"root-{i}") for i in range(3)]
        self.officers = [self.key(f"officer-{i}") for i in range(3)]
        self.registry = self.key("registry")
        self.nodes = {r: self.key(f"node-{r}") for r in DOMAIN}
        self.signer = self.key("signer")
        self.pins = trust.Pins(mesh=name, root_keys=row_keys(*self.roots), threshold=2)
        self.states: dict[str, NamespaceState] = {}
        self.history: dict[str, list[NamespaceState]] = {}
        self.n_commands = 0
        founded = build.make_genesis(
            self.genesis(voters), mesh=name, root_signers=self.roots[:2], registry=self.registry
        )
        self._keep(MESH_NAMESPACE, founded)

    def key(self, name: str) -> Key:
        return self._new(name)

    def genesis(self, voters: tuple[str, ...] = VOTERS) -> Genesis:
        return Genesis(
            root=RootRow(version=1, keys=row_keys(*self.roots), threshold=2),
            delegations={
                "registry": DelegationRow(keys=row_keys(self.registry), threshold=1, kinds=("*",), scope="any"),
                "officers": DelegationRow(
                    keys=row_keys(*self.officers),
                    threshold=2,
                    kinds=("suspend", "revoke", "resume", "epoch.open"),
                    scope="mesh",
                ),
            },
            settings=SettingsRow(
                ttl_ms=60_000,
                heartbeat_ms=1_000,
                l1_probe_ms=5_000,
                l1_ttl_ms=60_000,
                snapshot_ms=10_000,
                salt="ab" * 32,
                development=True,
            ),
            regions={r: RegionRow(domain=d, failure_domain=r, ca_fingerprint="ff") for r, d in DOMAIN.items()},
            nodes={f"{r}/n1": NodeRow(signing_key=k.public_hex) for r, k in self.nodes.items()},
            voters=VotersRow(set_id=1, regions=voters),
        )

    @property
    def mesh(self) -> NamespaceState:
        return self.states[MESH_NAMESPACE]

    def _keep(self, namespace: str, state: NamespaceState) -> NamespaceState:
        self.states[namespace] = state
        self.history.setdefault(namespace, []).append(state)
        return state

    def command_id(self) -> str:
        self.n_commands += 1
        return f"c-{self.n_commands}"

    def authority(
        self, namespace: str, kind: str, args: Mapping[str, Any], command_id: str, signers: Iterable[Key] | None = None
    ) -> tuple[Envelope, ...]:
        """By those whose word the kind needs, or by ``signers``."""
        if signers is None:
            by = KINDS[kind].authority
            if by is AuthorityBy.FOUR_EYES_IF_WIDE and parse_scope(args["scope"]).needs_four_eyes:
                by = AuthorityBy.OFFICERS
            signers = {
                AuthorityBy.ROOT: self.roots[:2],
                AuthorityBy.OFFICERS: self.officers[1:],
                AuthorityBy.SIGNERS: [self.signer],
            }.get(by, [])
        signers = list(signers)
        if not signers:
            return ()
        made = trust.make_authority(
            mesh=self.name,
            namespace=namespace,
            command_id=command_id,
            kind=kind,
            args=args,
            not_after=FAR,
            signers=signers,
        )
        return (made,)

    def plan(
        self,
        namespace: str,
        kind: str,
        args: Mapping[str, Any] | msgspec.Struct,
        *,
        held: NamespaceState | None = None,
        signers: Iterable[Key] | None = None,
        by: Key | None = None,
        epoch: int = 1,
        command_id: str | None = None,
    ) -> NamespaceState:
        """The state after one command more, kept nowhere."""
        plain = msgspec.to_builtins(args)
        command_id = command_id or self.command_id()
        base = held if held is not None else self.states.get(namespace)
        seq = 0 if base is None else base.head.entry.seq
        return build.extend(
            base,
            mesh=self.name,
            namespace=namespace,
            kind=kind,
            args=plain,
            mesh_seq=seq if namespace == MESH_NAMESPACE else self.mesh.head.entry.seq,
            suite=by or self.registry,
            command_id=command_id,
            authority=self.authority(namespace, kind, plain, command_id, signers),
            epoch=epoch,
        )

    def do(
        self,
        namespace: str,
        kind: str,
        args: Mapping[str, Any] | msgspec.Struct,
        *,
        committed: bool = True,
        command_id: str | None = None,
    ) -> NamespaceState:
        """One command, taken; with its countersignatures where ``committed``."""
        state = self.plan(namespace, kind, args, command_id=command_id)
        if committed and KINDS[kind].needs_commit:
            state = self.commit(state)
        return self._keep(namespace, state)

    def countersign(self, signed: SignedEntry, *regions: str) -> tuple[Any, ...]:
        asked = commit.countersign_request(signed, self.mesh.rows)
        return tuple(self.nodes[r].seal(commit.vote_for(asked, r)) for r in regions)

    def commit(self, state: NamespaceState, *regions: str) -> NamespaceState:
        proof = self.countersign(state.head, *(regions or VOTERS[:2]))
        return replace(state, support=with_commit(state.support, state.head.hash, proof))

    def tenant(self, name: str = "acme", regions: tuple[str, ...] = ("us-east", "us-west")) -> NamespaceState:
        return self.do(name, "tenant.create", self.tenant_args(regions))

    def tenant_args(self, regions: tuple[str, ...] = ("us-east", "us-west")) -> dict[str, Any]:
        policy = PolicyRow(
            version=1, home=regions[0], domain=DOMAIN[regions[0]], regions=regions, admins=("alice",), ttl_ms=None
        )
        made: dict[str, Any] = msgspec.to_builtins(
            {
                "policy": policy,
                "signers": SignersRow(keys=row_keys(self.signer), threshold=1),
                "binding_id": "b1",
                "provider": "dev",
                "descriptor": {"url": "https://kms"},
            }
        )
        return made

    def service(self, tenant: str = "acme", name: str = "pay", version: int = 1, **fields: Any) -> NamespaceState:
        row = ServiceRow(version=version, custody="leased", edge_ttl_ms=60_000, **fields)
        return self.do(tenant, "service.set", {"service": name, "row": msgspec.to_builtins(row)})

    def key_version(self, tenant: str, key: str, version: int, parent: str) -> NamespaceState:
        made = {
            "key": key,
            "version": version,
            "kid": digest(f"{tenant}/{key}/{version}")[:32],
            "digest": digest(f"blob {tenant}/{key}/{version}"),
            "parent": parent,
        }
        self.do(tenant, "key.create", made)
        return self.do(tenant, "key.activate", {"key": key, "version": version, "wrapping": True})

    def furnished(self, tenant: str = "acme") -> NamespaceState:
        """A tenant with a service and one active version of both of its keys."""
        self.tenant(tenant)
        self.service(tenant)
        self.key_version(tenant, "l2", 1, "b1")
        return self.key_version(tenant, "l3/pay", 1, digest(f"{tenant}/l2/1")[:32])

    def restrict(self, kind: str, scope: str, *, committed: bool = True) -> NamespaceState:
        """A resume of a region or the mesh names the suspension in force, as its officers would."""
        namespace = parse_scope(scope).namespace
        args: dict[str, Any] = {"scope": scope, "reason": "", "abandon_children": False}
        row = get(self.states[namespace].rows, f"restriction/{scope}", RestrictionRow)
        if kind == "resume" and parse_scope(scope).needs_four_eyes and row is not None:
            args["upto_seq"] = row.seq
        return self.do(namespace, kind, args, committed=committed)

    def offer(
        self,
        held: NamespaceState | None,
        state: NamespaceState,
        *,
        mesh: NamespaceState | None = None,
        force: bool = False,
        epoch: int = 1,
        namespace: str | None = None,
    ) -> Outcome:
        """What a holder of ``held``, with the newest mesh, makes of ``state``."""
        offered = Offered(namespace or state.head.entry.namespace, state, force)
        return accept(held, offered, mesh or self.mesh, self.registry, pins=self.pins, epoch=epoch)


def resigned(state: NamespaceState, by: Key, /, **fields: Any) -> NamespaceState:
    """``state`` with other fields in its head entry, properly signed by ``by``."""
    entry: Entry = msgspec.structs.replace(state.head.entry, **fields)
    return replace(state, head=build.sign_entry(entry, by))
