"""``keymesh pki``: the mesh's certificates, and their renewal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.access.identity import EdgeIdentity
from keymesh.adapters import key_files, pki
from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.tls import Credentials
from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.layout import FIRST_REGISTRY, Layout, load_plan, resolve_dir
from keymesh.app.renewal import renew
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, RegionId, TenantId, check_label, check_service, check_tenant


def _identity_files(layout: Layout) -> dict[str, tuple[Path, Path]]:
    """Role -> (its identity file, the CA file that issues it)."""
    plan = load_plan(layout)
    mesh_ca = layout.pki / "mesh-ca.pem"
    files = {
        "operator": (layout.admin / "operator.pem", mesh_ca),
    }
    for node in plan.registry_nodes:
        name = "registry" if node == FIRST_REGISTRY else f"registry-{node}"
        files[name] = (layout.registry_of(node) / "tls.pem", mesh_ca)
    for region in plan.regions:
        directory = layout.core(region)
        files[f"core-{region}"] = (directory / "tls.pem", directory / "region-ca.pem")
    return files


def _certificates_only(path: Path) -> bytes:
    """The certificates of a PEM file that may hold a key too."""
    return pki.certificates_pem(pki.parse_certificates(path.read_bytes()))


def run_show(args: argparse.Namespace) -> int:
    """Certificates of the mesh, or of one file."""
    if args.file:
        files = {args.file: Path(args.file)}
    else:
        layout = Layout(resolve_dir(args.dir))
        here = {role: pair[0] for role, pair in _identity_files(layout).items()}
        is_spread = load_plan(layout).hosts is not None
        files = {"root": layout.ca} | {role: path for role, path in here.items() if path.exists() or not is_spread}
    shown = {
        "certificates": [
            {"role": role, **description}
            for role, path in files.items()
            for description in pki.describe(_certificates_only(path))[: 1 if not args.file else None]
        ]
    }

    def human() -> None:
        table(
            "certificates",
            ("role", "identity", "not after (UTC)", "sha256"),
            (
                (c["role"], " ".join(c["uris"]) or c["subject"], c["not_after"][:16], c["sha256"])
                for c in shown["certificates"]
            ),
        )

    emit(args, shown, human)
    return 0


def run_enrol(args: argparse.Namespace) -> int:
    """A fresh key here, a certificate from that region's Core, and the trust files beside them."""
    tenant, slash, service = args.service.partition("/")
    if not slash:
        raise Refused.bad_field("service", "T/S")
    output = Path(args.output)
    output.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def work(client: AdminClient) -> Any:
        shown = await client.call("GET", f"/v1/tenants/{check_tenant(tenant)}")
        region = args.region or shown["home"]
        if region not in client.plan.regions:
            raise Refused.bad_field("region", f"one of {', '.join(client.plan.regions)}")
        identity = EdgeIdentity(
            mesh=MeshName(client.plan.mesh),
            region=RegionId(region),
            tenant=TenantId(tenant),
            service=check_service(service),
            instance=check_label("instance", args.instance),
        )
        key = pki.new_tls_key()
        body = {
            "tenant": tenant,
            "service": service,
            "instance": args.instance,
            "csr": pki.make_csr(key, identity).decode("ascii"),
        }
        chain = (await client.call("POST", "/v1/certificates", body, target=region))["chain"]
        key_files.write_identity(output / "edge.pem", key, pki.parse_certificates(chain.encode()))
        write_file(output / "ca.pem", client.layout.ca.read_bytes(), mode=PUBLIC_MODE)
        trust = (client.layout.edge(region) / "trust.json").read_bytes()
        write_file(output / "trust.json", trust, mode=PUBLIC_MODE)
        return {
            "identity": str(output / "edge.pem"),
            "ca": str(output / "ca.pem"),
            "trust": str(output / "trust.json"),
            "cores": [client.plan.address(region)],
            "uri": str(identity),
        }

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: facts("enrolled; give these to Edge.connect", shown))
    return 0


def run_renew(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    files = _identity_files(layout)
    if args.role not in files:
        raise Refused.bad_field("role", f"one of {', '.join(files)}")
    identity_file, authority_file = files[args.role]
    credentials = Credentials(identity_file)
    renew(credentials, authority_file, load_plan(layout).mesh)
    shown = {"ok": True, "role": args.role, "fingerprint": pki.fingerprint(credentials.certificate)}
    emit(args, shown, lambda: facts(f"renewed {args.role}", {"fingerprint": shown["fingerprint"]}))
    return 0
