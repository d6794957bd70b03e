"""One HTTPS request to a server of ours: what readiness and administration need, blocking, with a deadline."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any, Final

from keymesh.app.servers.plan import READY_TRY_S

ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024


def client_tls(ca: Path, identity: Path) -> ssl.SSLContext:
    """Trusts ``ca`` alone and shows ``identity``."""
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(identity)
    return context


def ask_json(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    tls: ssl.SSLContext,
    headers: dict[str, str] | None = None,
    timeout_s: float = READY_TRY_S,
) -> tuple[int, Any]:
    """(status, answer).  Raises OSError where there is none."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout_s, context=tls)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers or {})
        answer = connection.getresponse()
        content = answer.read(ANSWER_MAX_BYTES)
        return answer.status, json.loads(content) if content else None
    except (http.client.HTTPException, ValueError) as broken:
        raise OSError(f"no HTTP answer: {broken}") from broken
    finally:
        connection.close()
