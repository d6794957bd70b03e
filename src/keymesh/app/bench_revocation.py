"""A revocation under full load: how long opens still succeed, and what callers are told then.

``wrk`` keeps the worker as busy as it gets with opens; beside it one caller opens the same key again and again, and
notes each answer.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from keymesh.model.errors import Unavailable

LEAD_S: Final = 1.0
AFTER_S: Final = 2.0
DOCUMENTED: Final = frozenset({"restricted", "revoked"})
"""What callers of a suspended or revoked service are told (docs/sidecar.md)."""

Answers = list[tuple[int, int, str]]
"""When it came (monotonic, ns), its status, the error's code."""


class Caller:
    """One connection over the Unix socket ``path``."""

    def __init__(self, path: str) -> None:
        self._http = http.client.HTTPConnection("edge")
        self._http.sock = socket.socket(socket.AF_UNIX)
        self._http.sock.connect(path)

    def ask(self, target: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer."""
        self._http.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self._http.close()


def revoke_under_load(
    worker: subprocess.Popen[str], path: str, load: Callable[[Path], subprocess.Popen[str]], script: Path, *, names: str
) -> dict[str, Any]:
    """Last successful open after the event, in ms (0: none), and the codes of all refusals.

    ``worker`` revokes at SIGUSR1; ``load`` starts ``wrk`` with a script; ``names``: tenant/service.  Raises
    Unavailable where the load did not run, or nothing was refused.
    """
    asking = Caller(path)
    status, made = asking.ask(f"/v1/{names}/create-key", {})
    if status != 200:
        raise Unavailable("bench", f"the worker answered {status}")
    opening = f"/v1/{names}/decrypt-key"
    body = {"blob": made["blob"]}
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = [[{json.dumps(body)}]]\nwrk.headers["Content-Type"] = "application/json"\n'
    )
    answers: Answers = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            status, said = asking.ask(opening, body)
            answers.append((time.monotonic_ns(), status, said.get("error", said).get("code", "")))

    loading, watching = load(script), threading.Thread(target=watch)
    watching.start()
    time.sleep(LEAD_S)
    event = time.monotonic_ns()
    worker.send_signal(signal.SIGUSR1)
    time.sleep(AFTER_S)
    stop.set()
    watching.join(AFTER_S)
    out, err = loading.communicate(timeout=30)
    asking.close()
    if loading.returncode or "Non-2xx" not in out:
        raise Unavailable("bench", f"the load failed: {(err or out).strip()[-300:]}")
    return judged(answers, event)


def judged(answers: Answers, event: int) -> dict[str, Any]:
    """Raises Unavailable unless answers were good before the event and refused after it."""
    good = [at for at, status, _ in answers if status == 200]
    codes = sorted({code for _, status, code in answers if status != 200})
    if not good or good[0] >= event or not codes:
        raise Unavailable("bench", "the revocation was not seen")
    return {
        "revoke_last_open_ms": round(max(0, good[-1] - event) / 1e6, 1),
        "revoke_opens_before": sum(at < event for at in good),
        "revoke_refusals": codes,
    }
