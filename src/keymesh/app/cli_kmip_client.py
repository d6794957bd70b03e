"""``keymesh kmip client``: naming a tenant's clients, giving them certificates, and ending them.

The private key is made here and goes nowhere else than into the client's directory; the Core signs a request.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.access.identity import ClientIdentity
from keymesh.adapters import key_files, pki
from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.kmip_listener import KMIP_PORT
from keymesh.app.admin_client import AdminClient, named_conflict, run_with_client
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.cli_killswitch import run_kill
from keymesh.app.config_parts import check_host, check_port
from keymesh.control.kinds import SetClient
from keymesh.control.rows import ClientRow
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, RegionId, TenantId, check_label, check_region, check_service, check_tenant

CLIENTS_PATH: Final = "/v1/clients/certificates"
KEY, CERTIFICATE, CA, CONFIG = "client.key", "client.pem", "ca.pem", "pykmip.conf"


def run_add(args: argparse.Namespace) -> int:
    """Name the client unless it is, then a certificate of the region's Core into ``--out``."""
    tenant, service = check_tenant(args.tenant), check_service(args.service)
    name = check_label("client", args.client)
    where: Path = args.out or Path(name)
    for field, check in (("host", check_host), ("port", check_port)):
        if (value := getattr(args, field)) is not None:
            check(field, value)
    if where.exists() and not where.is_dir():
        raise Refused.bad_field("out", f"{where} is no directory")

    async def work(client: AdminClient) -> Any:
        known = await client.call("GET", f"/v1/tenants/{tenant}")
        region = check_region(args.region or known["home"])
        if region not in known["regions"]:
            raise Refused.bad_field("region", f"one that {tenant} allows: {', '.join(known['regions'])}")
        await _name(client, tenant, name, service)
        identity = ClientIdentity(
            mesh=MeshName(client.plan.mesh), region=RegionId(region), tenant=TenantId(tenant), name=name
        )
        key = pki.new_tls_key()
        body = {"tenant": tenant, "client": name, "csr": pki.make_csr(key, identity).decode("ascii")}

        async def issued() -> Any:
            try:
                return await client.call("POST", CLIENTS_PATH, body, target=region)
            except Refused as refused:
                if refused.code == "not-found":  # the region has not heard of it yet
                    return None
                raise

        answer = await client.until(issued, what=f"a certificate of {region}'s Core")
        planned = client.plan.regions.get(region)
        port = args.port or (None if planned is None else planned.kmip_port) or KMIP_PORT
        host = args.host or (client.plan.hosts or {}).get(region, "127.0.0.1")
        _write(where, key, answer["chain"], client.layout.ca.read_bytes(), host=host, port=port)
        return {
            "tenant": tenant,
            "client": name,
            "service": service,
            "region": region,
            "identity": str(identity),
            "host": host,
            "port": port,
            "directory": str(where),
            "files": [KEY, CERTIFICATE, CA, CONFIG],
            "not_after": pki.describe(answer["chain"].encode())[0]["not_after"],
        }

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: facts(f"client {tenant}/{name}", {k: v for k, v in shown.items() if k != "client"}))
    return 0


async def _name(client: AdminClient, tenant: str, name: str, service: str) -> None:
    """Raises Refused where the name is another service's, or was revoked: neither is changed unseen."""
    for each in (await client.call("GET", f"/v1/tenants/{tenant}/clients"))["clients"]:
        if each["client"] != name:
            continue
        if each["state"] == "revoked":
            raise Refused("revoked", f"client {tenant}/{name} was revoked: take another name", field="client")
        if each["service"] != service:
            raise Refused("conflict", f"client {tenant}/{name} is of service {each['service']}", field="service")
        return
    args = SetClient(client=name, row=ClientRow(version=1, service=service))
    with named_conflict(f"client {tenant}/{name} was named by another just now: look, and repeat"):
        await client.command(tenant, "client.set", msgspec.to_builtins(args))


def _write(where: Path, key: Any, chain: str, ca: bytes, *, host: str, port: int) -> None:
    """Raises Refused where the directory can't be written."""
    lines = [
        "[client]",
        f"host={host}",
        f"port={port}",
        f"keyfile={where.absolute() / KEY}",
        f"certfile={where.absolute() / CERTIFICATE}",
        f"ca_certs={where.absolute() / CA}",
        "cert_reqs=CERT_REQUIRED",
        "ssl_version=PROTOCOL_SSLv23",
        "",
    ]
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(where / KEY, key_files.key_pem(key))
        write_file(where / CERTIFICATE, chain.encode("ascii"), mode=PUBLIC_MODE)
        write_file(where / CA, ca, mode=PUBLIC_MODE)
        write_file(where / CONFIG, "\n".join(lines).encode(), mode=PUBLIC_MODE)
    except OSError as bad:
        raise Refused("not-written", f"{where}: {bad.strerror}; repeat with another --out", field="out") from bad


def run_list(args: argparse.Namespace) -> int:
    """Every client of a tenant, ended ones too."""
    tenant = check_tenant(args.tenant)
    shown = run_with_client(args.dir, lambda c: c.call("GET", f"/v1/tenants/{tenant}/clients"))
    columns = ("tenant", "client", "service", "state")
    emit(args, shown, lambda: table("clients", columns, ([c[k] for k in columns] for c in shown["clients"])))
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """As ``keymesh revoke client:T/NAME``."""
    args.scope = f"client:{check_tenant(args.tenant)}/{check_label('client', args.client)}"
    args.action, args.approve_key, args.abandon_children = "revoke", [], False
    return run_kill(args)
