"""The development ceremony behind ``keymesh up``: keys, CAs, the genesis entry and one directory for each process.

In production root and officer keys are made offline and never meet; here they are written side by side, with a
warning, so that one command gives a working mesh.  Such a mesh has a development trust domain, which production mode
refuses.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from msgspec import structs

from keymesh.access.identity import AdminIdentity, CoreIdentity, Identity, RegistryIdentity
from keymesh.adapters import key_files, pki
from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.seals import found_by_shares
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.app import ceremony
from keymesh.app.backup_files import load_recovery_key, new_recovery_key, public_of
from keymesh.app.ceremony import Ceremony
from keymesh.app.control_logs import found
from keymesh.app.customer_kms_files import prepare as prepare_kms
from keymesh.app.full_plan import BROKER, broker_port, make_full_plan
from keymesh.app.genesis_file import save_genesis
from keymesh.app.layout import (
    FIRST_REGISTRY,
    SECOND_REGISTRY,
    Layout,
    MeshPlan,
    RegionPlan,
    TimingPlan,
    registry_process,
    save_plan,
)
from keymesh.app.servers.ports import free_ports
from keymesh.app.signing_keys import SigningKey, new_signer
from keymesh.app.trust_file import TrustFile, save_trust
from keymesh.app.wan_relay import Link, WanPlan
from keymesh.control.build import make_genesis
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import OFFICER_KINDS, Genesis
from keymesh.control.rows import DelegationRow, NodeRow, RegionRow, SettingsRow, VotersRow
from keymesh.control.signing import DsseSuite
from keymesh.crypto.pages import KeyPages
from keymesh.edge.client import EdgeTrust
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import KeyId, MeshName, NodeId, RegionId, check_label, check_region
from keymesh.model.time import Instant

DEV_MESH: Final = "dev"
DEFAULT_REGIONS: Final = ("us-east", "us-west", "eu-central", "eu-west")
UNIX_PATH_MAX: Final = 100
WARNING: Final = """\
DEVELOPMENT KEYS.  This directory holds every key of one development mesh side by side: root, officer, tenant-admin,
recovery, CA and seal keys, unencrypted.  Whoever reads it owns the mesh.  Never put real data under it.
"""


def parse_regions(text: str) -> dict[str, str]:
    """``us-east,eu-west`` or ``a=us,b=eu`` to region -> residency domain (default: up to the first hyphen)."""
    out: dict[str, str] = {}
    for item in text.split(","):
        name, equals, domain = item.strip().partition("=")
        region = check_region(name)
        if region in out:
            raise Refused.bad_field("regions", f"{region!r} is named twice")
        if region.partition("-")[0] == "registry":
            raise Refused.bad_field("regions", "'registry' is reserved")
        out[region] = check_label("domain", domain if equals else region.partition("-")[0])
    if not 1 <= len(out) <= 16:
        raise Refused.bad_field("regions", f"1 to 16 regions, got {len(out)}")
    return out


def voters_of(regions: dict[str, str]) -> tuple[str, ...]:
    """Three of the regions (all different failure domains here); with fewer than three there is no voter quorum."""
    names = sorted(regions)
    return tuple(names[:3]) if len(names) >= 3 else tuple(names[:1])


def make_plan(
    regions: dict[str, str],
    timing: TimingPlan,
    *,
    links: bool,
    allow_unlocked_memory: bool,
    kms: bool = True,
    full: bool = False,
) -> MeshPlan:
    """A plan with ports of its own; the Registry lives in the first region named.  ``full``: on real servers."""
    names = list(regions)
    replicas = [SECOND_REGISTRY] if full else []
    targets = [*names, *map(registry_process, (FIRST_REGISTRY, *replicas))]
    targets += [BROKER] if full else []
    pairs = [f"{src} {dst}" for src in names for dst in targets if dst != src] if links else []
    ports = iter(free_ports(2 + len(names) + len(pairs) + 2 * len(names)))
    return MeshPlan(
        version=1,
        mesh=DEV_MESH,
        registry_region=names[0],
        registry_port=next(ports),
        regions={
            name: RegionPlan(domain=domain, failure_domain=name, port=next(ports), kmip_port=next(ports))
            for name, domain in regions.items()
        },
        timing=timing,
        allow_unlocked_memory=allow_unlocked_memory,
        links={pair: next(ports) for pair in pairs} or None,
        kms_ports={name: next(ports) for name in names} if kms else None,
        full=make_full_plan(names) if full else None,
        replicas={node: next(ports) for node in replicas} or None,
    )


def parse_shares(text: str) -> tuple[int, int]:
    """``2/3`` to (threshold, shares)."""
    threshold, slash, count = text.partition("/")
    if not slash or not threshold.isdigit() or not count.isdigit() or not 2 <= int(threshold) <= int(count) <= 16:
        raise Refused.bad_field("shares", "M/N with 2 <= M <= N <= 16, as in 2/3")
    return int(threshold), int(count)


def _seal_by_shares(layout: Layout, region: str, shares: tuple[int, int], *, allow_unlocked: bool) -> None:
    """A MasterKey that nobody keeps, and its shares, one file each, for as many people."""
    directory = layout.shares(region)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pages = KeyPages(allow_unlocked=allow_unlocked)
    texts = found_by_shares(layout.core(region), region, pages, threshold=shares[0], n_shares=shares[1])
    for n, text in enumerate(texts, start=1):
        write_file(directory / f"share-{n}.txt", text.encode() + b"\n")


def _root_and_officers(layout: Layout, directory: Path | None) -> tuple[Ceremony, list[SigningKey]]:
    """What is public of them, and root keys enough to found; of a ceremony elsewhere no private key is copied."""
    if directory is None:
        keys = {role: ceremony.new_keys(layout.keys, role, 3) for role in ("root", "officer")}
        founded = ceremony.ceremony_of(keys, thresholds={"root": 2, "officer": 2})
        ceremony.save(layout.keys, founded)
        return founded, list(keys["root"].values())[:2]
    made = ceremony.load(directory)
    signers = list(ceremony.of_role(made.root, ceremony.keys_in(directory)).values())
    if len(signers) < made.root.threshold:
        raise Refused(
            "below-threshold",
            f"{made.root.threshold} root keys found a mesh, {len(signers)} are in {directory}",
            field="ceremony",
        )
    return made, signers


def bootstrap(
    layout: Layout, plan: MeshPlan, *, shares: tuple[int, int] | None = None, keys_from: Path | None = None
) -> SignedEntry:
    """Make keys, certificates and directories for ``plan``; returns the genesis entry, for ``finish``.

    ``keys_from``: the directory of a ceremony, whose root founds the mesh.
    ``shares``: seal every region by that many shares instead of by a key file; it then starts sealed.

    The plan is written last, so a directory without one was never finished and is made again from scratch.
    """
    has_sockets = plan.hosts is None  # else the Edges' are elsewhere
    if has_sockets and len(os.fsencode(str(layout.edge_socket(max(plan.regions, key=len))))) > UNIX_PATH_MAX:
        raise Refused.bad_field("dir", f"its path is too long for Unix sockets (at most {UNIX_PATH_MAX} bytes in all)")
    for left_over in ("log.db", "log.db-wal", "log.db-shm"):
        (layout.registry / left_over).unlink(missing_ok=True)
    now = Instant(_wall_ms())
    mesh = MeshName(plan.mesh)
    regional = [d for region in plan.regions for d in (layout.core(region), layout.edge(region))]
    registries = [layout.registry_of(node) for node in plan.registry_nodes]
    for directory in (
        layout.root,
        layout.keys,
        layout.pki,
        layout.admin,
        *registries,
        layout.logs,
        layout.backups("").parent,
        *regional,
    ):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(layout.keys / "DEVELOPMENT-KEYS.txt", WARNING.encode())

    public, roots = _root_and_officers(layout, keys_from)
    root_row = public.root
    new_signer(layout.keys / "tenant-admin.pem")
    layout.recovery_key.unlink(missing_ok=True)
    new_recovery_key(layout.recovery_key)
    registry_keys = [new_signer(layout.registry_of(node) / "signing.pem") for node in plan.registry_nodes]

    root_ca = pki.create_root(mesh, now=now)
    mesh_ca = pki.create_intermediate(root_ca, None, now=now)
    key_files.write_authority(layout.pki / "root-ca.pem", root_ca)
    key_files.write_authority(layout.pki / "mesh-ca.pem", mesh_ca)
    write_file(layout.ca, pki.certificates_pem([root_ca.certificate]), mode=PUBLIC_MODE)
    for node in plan.registry_nodes:
        issue(mesh_ca, layout.registry_of(node) / "tls.pem", RegistryIdentity(mesh=mesh, node=NodeId(node)), now=now)
    issue(mesh_ca, layout.admin / "operator.pem", AdminIdentity(mesh=mesh, name="operator"), now=now)

    if plan.kms_ports is not None:
        root_pem = pki.certificates_pem([root_ca.certificate]).decode("ascii")
        prepare_kms(layout.customer_kms, allow_ca=(root_pem,))
    if plan.links is not None:
        write_file(layout.wan_plan, strict_json.dumps(_wan_plan(plan)))

    edge_trust = EdgeTrust(mesh=plan.mesh, registry_keys={KeyId(k.key_id): k.public_hex for k in registry_keys})
    for region in plan.regions:
        write_file(layout.edge(region) / "trust.json", strict_json.dumps(edge_trust))

    rows: dict[str, RegionRow] = {}
    nodes: dict[str, NodeRow] = {}
    for region, region_plan in plan.regions.items():
        directory = layout.core(region)
        authority = pki.create_intermediate(root_ca, region, now=now)
        key_files.write_authority(directory / "region-ca.pem", authority)
        identity = CoreIdentity(mesh=mesh, region=RegionId(region), node=NodeId(region_plan.node))
        issue(authority, directory / "tls.pem", identity, now=now)
        if shares is not None:
            _seal_by_shares(layout, region, shares, allow_unlocked=plan.allow_unlocked_memory)
        nodes[f"{region}/{region_plan.node}"] = NodeRow(signing_key=new_signer(directory / "signing.pem").public_hex)
        rows[region] = RegionRow(
            domain=region_plan.domain,
            failure_domain=region_plan.failure_domain,
            ca_fingerprint=pki.fingerprint(authority.certificate),
        )
    genesis = Genesis(
        root=root_row,
        delegations={
            "registry": DelegationRow(
                keys={k.key_id: k.public_hex for k in registry_keys}, threshold=1, kinds=("*",), scope="any"
            ),
            "officers": DelegationRow(
                keys=public.officers.keys,
                threshold=public.officers.threshold,
                kinds=OFFICER_KINDS,
                scope="mesh",
            ),
        },
        settings=SettingsRow(
            ttl_ms=plan.timing.ttl_ms,
            heartbeat_ms=plan.timing.heartbeat_ms,
            l1_probe_ms=plan.timing.l1_probe_ms,
            l1_ttl_ms=plan.timing.l1_ttl_ms,
            snapshot_ms=plan.timing.snapshot_ms,
            salt=os.urandom(32).hex(),
            development=True,
        ),
        regions=rows,
        nodes=nodes,
        voters=VotersRow(set_id=1, regions=voters_of({r: p.domain for r, p in plan.regions.items()})),
    )
    founded = make_genesis(
        genesis,
        mesh=plan.mesh,
        root_signers=[k.signer for k in roots],
        registry=DsseSuite(registry_keys[0].signer),
        issued_at=now,
    )
    signed = founded.head
    save_genesis(layout.genesis, signed)
    save_trust(layout.trust, TrustFile(mesh=plan.mesh, root=root_row, genesis=signed.hash))
    return signed


def _wan_plan(plan: MeshPlan) -> WanPlan:
    links = []
    ports = {registry_process(node): port for node, port in plan.registry_nodes.items()}
    ports |= {region: planned.port for region, planned in plan.regions.items()}
    for pair, port in sorted((plan.links or {}).items()):
        src, dst = pair.split(" ")
        target = broker_port(plan.full, src) if plan.full is not None and dst == BROKER else ports[dst]
        links.append(Link(src=src, dst=dst, listen_port=port, target_port=target))
    return WanPlan(links=tuple(links))


async def _found(layout: Layout, plan: MeshPlan, genesis: SignedEntry) -> None:
    log = SqliteControlLog(layout.registry / "log.db", mesh=plan.mesh)
    await found(log, genesis)
    await log.close()


def finish(layout: Layout, plan: MeshPlan, genesis: SignedEntry) -> None:
    """Put the genesis entry into the Registry's log, then write the plan, which completes the directory.

    A full mesh's log is founded once its servers run (``full_setup``).
    """
    if plan.full is None:
        asyncio.run(_found(layout, plan, genesis))
    recovery_keys = (public_of(load_recovery_key(layout.recovery_key)),)
    save_plan(layout, structs.replace(plan, recovery_keys=recovery_keys))


def issue(authority: pki.Authority, path: Path, identity: Identity, *, now: Instant) -> None:
    """A fresh TLS key and a certificate for ``identity``, in one file with the issuing CA's certificate."""
    key = pki.new_tls_key()
    leaf = pki.issue_leaf(authority, identity=identity, public_key=key.public_key(), now=now)
    key_files.write_identity(path, key, [leaf, authority.certificate])


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
