"""``keymesh edge request | install`` and ``keymesh pki issue``: how an Edge that nobody reaches gets its certificate.

Three steps, two files, carried by hand: the request holds no secret, nor does the certificate.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from keymesh.adapters.files import PUBLIC_MODE, write_file
from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_common import check_output, emit, facts, show_utc
from keymesh.app.config import EdgeConfig
from keymesh.app.config_file import load_config
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import check_label, check_region, check_service, check_tenant

FILE_MAX_BYTES: Final = 64 * 1024


class EdgeRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``csr``: PEM, for the identity that the other fields name."""

    mesh: str
    region: str
    tenant: str
    service: str
    instance: str
    csr: str


class EdgeCertificate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``chain``: PEM, leaf and intermediate."""

    tenant: str
    service: str
    chain: str


def run_request(args: argparse.Namespace) -> int:
    """Ask the running Edge for a request, and write it down."""
    tenant, slash, service = args.service.partition("/")
    if not slash:
        raise Refused.bad_field("service", "T/S")
    check_tenant(tenant), check_service(service)
    output = Path(args.output)
    check_output(output, "the request", otherwise="name another file")
    config = _edge_config(args.config)
    asked = _ask_edge(config, "POST", "/v1/identities", {"tenant": tenant, "service": service})
    request = EdgeRequest(
        mesh=config.mesh,
        region=config.region,
        tenant=tenant,
        service=service,
        instance=asked["instance"],
        csr=asked["csr"],
    )
    write_file(output, strict_json.dumps(request), mode=PUBLIC_MODE)
    shown = {"ok": True, "request": str(output), "uri": asked["uri"]}
    emit(args, shown, lambda: facts("requested; give this to `keymesh pki issue`", shown))
    return 0


def run_issue(args: argparse.Namespace) -> int:
    """Have the region's Core sign a request."""
    request = strict_json.decode(Path(args.request).read_bytes(), EdgeRequest, max_bytes=FILE_MAX_BYTES)
    tenant, service = check_tenant(request.tenant), check_service(request.service)
    region, instance = check_region(request.region), check_label("instance", request.instance)
    output = Path(args.output)
    check_output(output, "the certificate", otherwise="name another file")

    async def work(client: AdminClient) -> Any:
        if request.mesh != client.plan.mesh or region not in client.plan.regions:
            raise Refused.bad_field("request", "from another mesh")
        body = {"tenant": tenant, "service": service, "instance": instance, "csr": request.csr}
        return await client.call("POST", "/v1/certificates", body, target=region)

    chain = run_with_client(args.dir, work)["chain"]
    certificate = EdgeCertificate(tenant=tenant, service=service, chain=chain)
    write_file(output, strict_json.dumps(certificate), mode=PUBLIC_MODE)
    shown = {"ok": True, "certificate": str(output), "tenant": tenant, "service": service, "region": region}
    emit(args, shown, lambda: facts("issued; give this to `keymesh edge install`", shown))
    return 0


def run_install(args: argparse.Namespace) -> int:
    """Hand a certificate to the running Edge."""
    given = strict_json.decode(Path(args.certificate).read_bytes(), EdgeCertificate, max_bytes=FILE_MAX_BYTES)
    path = f"/v1/identities/{check_tenant(given.tenant)}/{check_service(given.service)}"
    done = _ask_edge(_edge_config(args.config), "PUT", path, {"chain": given.chain})
    shown = {"ok": True, "tenant": given.tenant, "service": given.service, **done}
    until = show_utc(done["certificate_not_after"])
    emit(args, shown, lambda: facts("installed", {"service": f"{given.tenant}/{given.service}", "until": until}))
    return 0


def _edge_config(file: str) -> EdgeConfig:
    config = load_config(Path(file), "edge").config
    assert isinstance(config, EdgeConfig)
    return config


def _ask_edge(config: EdgeConfig, method: str, path: str, body: Any) -> Any:
    async def ask() -> Any:
        async with PeerClient("http://edge", unix_socket=Path(config.listen_socket)) as edge:
            _, answer = await edge.request(method, path, strict_json.dumps(body))
            return strict_json.loads(answer, max_bytes=FILE_MAX_BYTES)

    return asyncio.run(ask())
