"""What ``/readyz`` says to whom: a caller hears of its own services, and for the others only that not all is well."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

import pytest

from keymesh.access.callers import Names
from keymesh.edge.http1 import Request
from keymesh.edge.http_answers import Heads
from keymesh.edge.sidecar_callers import OWNER, Caller
from keymesh.edge.sidecar_routes import Routes

WAITING: dict[Names, str] = {("acme", "pay"): "expired", ("globex", "hr"): "closed"}


class Hosts:
    def not_ready(self) -> dict[Names, str]:
        return WAITING


async def there(work: Coroutine[Any, Any, Any]) -> Any:
    return await work


@pytest.mark.parametrize(
    ("caller", "reasons"),
    [
        (OWNER, ["acme/pay: expired", "globex/hr: closed"]),
        (Caller(frozenset({("acme", "pay")})), ["acme/pay: expired"]),
        (Caller(frozenset()), []),
    ],
)
async def test_a_caller_hears_of_its_own_services_alone(caller: Caller, reasons: list[str]) -> None:
    routes = Routes(Hosts(), Heads(), there=there)  # type: ignore[arg-type]
    answered = routes.handle(Request(b"GET", b"/readyz", b"", b"", b"", caller))
    raw: bytes = answered if isinstance(answered, bytes) else await answered
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body) == {"ready": False, "reasons": reasons}
