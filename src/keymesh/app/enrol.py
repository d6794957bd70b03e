"""Giving a region's Edge process an identity for one service: its own key, a certificate from that region's Core.

The private key never leaves the Edge process; the CLI carries the request and the certificate, and its operator's
certificate is what the Core admits.
"""

from __future__ import annotations

from typing import Any

from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient
from keymesh.model import strict_json
from keymesh.model.errors import Refused

ANSWER_MAX_BYTES = 1024 * 1024


def sidecar_client(client: AdminClient, region: str) -> PeerClient:
    """The sidecar of ``region`` over its Unix socket.  Raises Refused for a region that this mesh does not have."""
    if region not in client.plan.regions:
        raise Refused.bad_field("region", f"one of {', '.join(client.plan.regions)}")
    return PeerClient("http://edge", unix_socket=client.layout.edge_socket(region))


async def ensure_identity(client: AdminClient, sidecar: PeerClient, region: str, tenant: str, service: str) -> bool:
    """Enrol the Edge of ``region`` for that service unless it is; True where it was enrolled now."""
    known = await _json(sidecar, "GET", "/v1/identities")
    if any(i["tenant"] == tenant and i["service"] == service and i["ready"] for i in known["identities"]):
        return False
    asked = await _json(sidecar, "POST", "/v1/identities", {"tenant": tenant, "service": service})
    answer = await client.call(
        "POST",
        "/v1/certificates",
        {"tenant": tenant, "service": service, "instance": asked["instance"], "csr": asked["csr"]},
        target=region,
    )
    await _json(sidecar, "PUT", f"/v1/identities/{tenant}/{service}", {"chain": answer["chain"]})
    return True


async def _json(sidecar: PeerClient, method: str, path: str, body: Any = None) -> Any:
    raw = None if body is None else strict_json.dumps(body)
    _, answer = await sidecar.request(method, path, raw)
    return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES) if answer else None
