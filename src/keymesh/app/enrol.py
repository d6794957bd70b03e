"""Giving a region's Edge process an identity for one service: its own key, a certificate from that region's Core.

The private key never leaves the Edge process; the CLI carries the request and the certificate, and its operator's
certificate is what the Core admits.
"""

from __future__ import annotations

import contextlib
from typing import Any

from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable

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
    await enrol_elsewhere(client, sidecar, tenant, service)
    return True


async def enrol_elsewhere(client: AdminClient, sidecar: PeerClient, tenant: str, service: str) -> list[str]:
    """Enrol that Edge in every other region that it knows and the tenant allows; in which it now is.

    A region that does not answer, or has not heard of the tenant yet, is left out: nobody waits for it here.
    """
    known = await _json(sidecar, "GET", "/v1/identities")
    mine = next(i for i in known["identities"] if (i["tenant"], i["service"]) == (tenant, service))
    if not mine["elsewhere"]:
        return []
    allowed = (await client.call("GET", f"/v1/tenants/{tenant}"))["regions"]
    done = [other for other, is_there in mine["elsewhere"].items() if is_there]
    for other in allowed:
        if mine["elsewhere"].get(other) is not False:
            continue
        asked = await _json(sidecar, "POST", "/v1/identities", {"tenant": tenant, "service": service, "region": other})
        body = {"tenant": tenant, "service": service, "instance": asked["instance"], "csr": asked["csr"]}
        with contextlib.suppress(Refused, Unavailable):
            answer = await client.call("POST", "/v1/certificates", body, target=other)
            chain = {"chain": answer["chain"], "region": other}
            await _json(sidecar, "PUT", f"/v1/identities/{tenant}/{service}", chain)
            done.append(other)
    return done


async def _json(sidecar: PeerClient, method: str, path: str, body: Any = None) -> Any:
    raw = None if body is None else strict_json.dumps(body)
    _, answer = await sidecar.request(method, path, raw)
    return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES) if answer else None
