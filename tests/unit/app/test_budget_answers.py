"""What callers of every door hear of a spent budget: 429, and when to come back."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from keymesh.adapters.grpc_kms_v2 import status_code
from keymesh.adapters.http_messages import problem_response
from keymesh.edge.client_transport import raise_problem
from keymesh.edge.hot_lease import BudgetSpent
from keymesh.edge.http_answers import Heads
from keymesh.edge.sidecar_routes import Routes
from keymesh.model.errors import Unavailable

SPENT = BudgetSpent("the budget of this period is spent", retry_after_ms=90_500)


async def there(work: Any) -> Any:
    return await work


def test_at_the_sidecar() -> None:
    routes = Routes(object(), Heads(), there=there)  # type: ignore[arg-type]
    head, _, body = routes._problem(SPENT, b"c1").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429")
    assert b"Retry-After: 91" in head.split(b"\r\n")
    assert json.loads(body)["error"]["retry_after_ms"] == 90_500


def test_at_the_core_and_through_the_edge_that_asked_it() -> None:
    answer = problem_response(SPENT, "c1")
    assert (answer.status, dict(answer.headers)["Retry-After"]) == (429, "91")
    with pytest.raises(Unavailable) as heard:
        raise_problem(answer.status, bytes(answer.body))
    assert (heard.value.code, heard.value.retry_after_ms) == ("budget-spent", 90_500)


def test_at_the_kubernetes_plugin() -> None:
    assert status_code(SPENT) is grpc.StatusCode.RESOURCE_EXHAUSTED
