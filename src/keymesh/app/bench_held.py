"""``keymesh bench held``: batches of 100 under core-held custody, through a running mesh's sidecar and Core.

Beside it the same work in this process alone: a bare loop over the functions that make and open a data key.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_budget import scope_of
from keymesh.app.cli_common import emit, facts
from keymesh.app.enrol import ensure_identity, sidecar_client
from keymesh.crypto.blob import L4_BYTES, open_l4, seal_l4
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable

BATCH: Final = 100
BARE: Final = 2_000
SECONDS_MAX: Final = 300.0
ANSWER_MAX_BYTES: Final = 1024 * 1024


async def _rate(seconds: float, one: Callable[[], Awaitable[Any]]) -> tuple[int, float]:
    """(keys a second, median ms of a batch)."""
    took: list[float] = []
    started = time.perf_counter()
    while not took or time.perf_counter() - started < seconds:
        began = time.perf_counter()
        await one()
        took.append(time.perf_counter() - began)
    return round(BATCH * len(took) / sum(took)), round(sorted(took)[len(took) // 2] * 1_000, 2)


def _bare() -> dict[str, int]:
    key = XaesKey(os.urandom(32))
    kid = kid_of(os.urandom(32))
    began = time.perf_counter()
    blobs = [seal_l4(key, kid, "t", {}, os.urandom(L4_BYTES), os.urandom(24)) for _ in range(BARE)]
    sealed = time.perf_counter()
    for blob in blobs:
        open_l4(key, kid, "t", {}, blob)
    opened = time.perf_counter()
    return {
        "bare_create_keys_per_s": round(BARE / (sealed - began)),
        "bare_open_keys_per_s": round(BARE / (opened - sealed)),
    }


def run_bench(args: argparse.Namespace) -> int:
    """Half of ``--seconds`` each way; what is made counts in the service's budget."""
    tenant, service = scope_of(args.scope)
    if not service:
        raise Refused.bad_field("service", "name it as T/S")
    seconds = min(max(args.seconds, 0.2), SECONDS_MAX) / 2

    async def work(client: AdminClient) -> dict[str, Any]:
        held = await client.call("GET", f"/v1/tenants/{tenant}/services/{service}")
        if held["custody"] != "core-held":
            raise Refused("leased", f"{args.scope} is under {held['custody']} custody", field="service")
        region = args.region or (await client.call("GET", f"/v1/tenants/{tenant}"))["home"]
        sidecar = sidecar_client(client, region)
        try:
            await ensure_identity(client, sidecar, region, tenant, service)

            async def ask(operation: str, body: dict[str, Any]) -> Any:
                path = f"/v1/{tenant}/{service}/{operation}"
                _, answer = await sidecar.request("POST", path, strict_json.dumps(body))
                return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES)

            async def made() -> Any:
                try:
                    return await ask("create-keys", {"count": BATCH, "plaintext": True})
                except Unavailable as early:
                    if early.code == "budget-spent":
                        raise
                    return None

            first = await client.until(made, what=f"{args.scope} being served at {region}")
            blobs = [key["blob"] for key in first["keys"]]
            create = await _rate(seconds, lambda: ask("create-keys", {"count": BATCH, "plaintext": True}))
            opening = await _rate(seconds, lambda: ask("decrypt-keys", {"blobs": blobs}))
        finally:
            await sidecar.close()
        return {
            "region": region,
            "batch": BATCH,
            "create_keys_per_s": create[0],
            "create_p50_ms": create[1],
            "open_keys_per_s": opening[0],
            "open_p50_ms": opening[1],
            **_bare(),
        }

    figures = run_with_client(args.dir, work)
    emit(args, figures, lambda: facts("core-held custody, one client", figures))
    return 0
