"""``keymesh bench sidecar``: one worker on one core, the load on another, a handler that answers a constant beside it.

Phases are interleaved in rounds, so that what else the machine does falls on all of them alike; a ratio is the median
over the rounds.  OpenBao's transit ``datakey`` is measured in its turn on the same core, with the same connections and
the same load tool.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keymesh.app.bench_lease import SERVICE, TENANT
from keymesh.app.bench_revocation import AFTER_S, DOCUMENTED, LEAD_S, revoke_under_load
from keymesh.app.bench_sidecar_server import make_identity
from keymesh.app.cli_common import emit, facts
from keymesh.app.servers.binaries import BAO
from keymesh.app.servers.ports import free_ports
from keymesh.model.errors import ExitCode, Refused, Unavailable

CONNECTIONS: Final = 16
RATE: Final = 10_000
BATCH: Final = 100
BEST_OF: Final = 3
SHORT_S: Final = 20.0
"""A shorter run has one round: it shows that everything works, and measures little."""
START_S: Final = 30.0
SECONDS_MAX: Final = 600.0
TOKEN: Final = "bench"  # noqa: S105  (of a server that lives for a few seconds on loopback)
CREATE: Final = f"/v1/{TENANT}/{SERVICE}/create-key"
CREATE_MANY: Final = f"/v1/{TENANT}/{SERVICE}/create-keys"
OPEN: Final = f"/v1/{TENANT}/{SERVICE}/decrypt-key"
CONSTANT: Final = "/constant"
WITH_PLAINTEXT: Final = '{"plaintext":true}'
_PYTHON: Final = (sys.executable, "-P", "-m")


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core serves, and which loads."""

    serve: int
    load: int


def cores() -> Cores:
    """Two that this process may use.  Raises Refused where there is one alone."""
    able = sorted(os.sched_getaffinity(0))
    if len(able) < 2:
        raise Refused("unsupported", "bench sidecar needs two cores: one serves, the other loads", field="cores")
    return Cores(able[0], able[1])


@contextmanager
def started_on(core: int) -> Iterator[None]:
    """What is started meanwhile runs on that core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def find_wrk() -> str:
    """Raises Refused with the line that installs it."""
    found = shutil.which("wrk")
    if found is None:
        raise Refused("not-found", "wrk, the load tool, is missing; install it: apt-get install wrk", field="wrk")
    return found


# --- the worker ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Worker:
    process: subprocess.Popen[str]
    socket: str
    tls_address: str
    url: str
    cold_start_ms: float

    def rss_mb(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return round(int(found[1]) / 1024, 1)


@contextmanager
def worker(directory: Path, at: Cores) -> Iterator[Worker]:
    """The sidecar's worker, once it has answered its first key."""
    make_identity(directory)
    began = time.monotonic()
    command = [*_PYTHON, "keymesh.app.bench_sidecar_server", "--dir", str(directory), "--cpu", str(at.serve)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            plain, _, tls = process.stdout.readline().strip().partition(" ")
            if not tls:
                raise Unavailable("bench", "the worker did not start")
            path = str(directory / "s")
            _first_key(path)
            cold_ms = round((time.monotonic() - began) * 1_000, 1)
            yield Worker(process, path, f"127.0.0.1:{tls}", f"http://127.0.0.1:{plain}", cold_ms)
        finally:
            process.terminate()


def _first_key(path: str) -> None:
    asking = http.client.HTTPConnection("edge")
    asking.sock = socket.socket(socket.AF_UNIX)
    asking.sock.connect(path)
    asking.request("POST", CREATE, b"{}", {"Content-Type": "application/json"})
    answer = asking.getresponse()
    if answer.status != 200:
        raise Unavailable("bench", f"the worker answered {answer.status}")
    answer.read()
    asking.close()


# --- loads -----------------------------------------------------------------------------------------------------------


def wrk(
    program: str, at: Cores, directory: Path, url: str, *, body: str, seconds: float, header: str = ""
) -> dict[str, float]:
    """Requests a second and p99 ms.  Raises Unavailable where an answer was no 2xx or a connection failed."""
    script = directory / "load.lua"
    lines = ['wrk.method = "POST"', f"wrk.body = [[{body}]]", 'wrk.headers["Content-Type"] = "application/json"']
    if header:
        name, _, value = header.partition(": ")
        lines.append(f'wrk.headers["{name}"] = "{value}"')
    script.write_text("\n".join(lines))
    loading = start_wrk(program, at, url, script, seconds=seconds)
    out, err = loading.communicate(timeout=seconds + 30)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    if loading.returncode or rate is None or p99 is None or "Non-2xx" in out or "Socket errors" in out:
        raise Unavailable("bench", f"the load failed: {(err or out).strip()[-300:]}")
    return {"per_s": float(rate[1]), "p99_ms": float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1_000}[p99[2]]}


def start_wrk(program: str, at: Cores, url: str, script: Path, *, seconds: float) -> subprocess.Popen[str]:
    """On the loading core, with one thread."""
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script), url]
    with started_on(at.load):
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def paced(
    at: Cores, where: str, target: str, *, seconds: float, rate: int = 0, tls: Path | None = None
) -> dict[str, float]:
    """``bench_openloop`` in a process of its own: at a constant rate, or one request at a time.

    ``where``: a Unix socket, or with ``tls``, where ``make_identity`` left its files, HOST:PORT.
    """
    command = [*_PYTHON, "keymesh.app.bench_openloop", "--to", where, "--path", target]
    command += ["--seconds", str(seconds), "--rate", str(rate), "--cpu", str(at.load)]
    if tls is not None:
        command += ["--tls", str(tls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise Unavailable("bench", f"the load failed: {done.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


# --- OpenBao beside it -----------------------------------------------------------------------------------------------


@contextmanager
def openbao(directory: Path, at: Cores) -> Iterator[str]:
    """A development server with a transit key, plaintext on loopback; the URL of its datakey."""
    (port,) = free_ports(1)
    command = [str(BAO.require()), "server", "-dev", f"-dev-listen-address=127.0.0.1:{port}"]
    command += [f"-dev-root-token-id={TOKEN}", "-dev-no-store-token", "-log-level=error"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "GOMAXPROCS": "1"}
    with started_on(at.serve):
        serving = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with serving as process:
        try:
            _until_serving(port)
            _bao(port, "/v1/sys/mounts/transit", {"type": "transit"})
            _bao(port, "/v1/transit/keys/bench", {})
            yield f"http://127.0.0.1:{port}/v1/transit/datakey/plaintext/bench"
        finally:
            process.kill()


def _until_serving(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            asking = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            asking.request("GET", "/v1/sys/health")
            if asking.getresponse().status == 200:
                return
        if time.monotonic() >= deadline:
            raise Unavailable("bench", "OpenBao did not start")
        time.sleep(0.1)


def _bao(port: int, path: str, body: dict[str, Any]) -> None:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    asking.request("POST", path, json.dumps(body), {"X-Vault-Token": TOKEN, "Content-Type": "application/json"})
    answer = asking.getresponse()
    if answer.status // 100 != 2:
        raise Unavailable("bench", f"OpenBao answered {answer.status} to {path}")
    answer.read()


# --- the bench -------------------------------------------------------------------------------------------------------


def run(seconds: float) -> dict[str, Any]:
    """Measure for about ``seconds``; the figures as ``keymesh bench sidecar --json`` prints them."""
    program, at = find_wrk(), cores()
    each = max(1.0, seconds / 23)
    times = BEST_OF if seconds >= SHORT_S else 1
    with tempfile.TemporaryDirectory(prefix="keymesh-bench-") as scratch, contextlib.ExitStack() as stack:
        directory = Path(scratch)
        serving = stack.enter_context(worker(directory, at))

        def load(path: str, body: str = "{}") -> dict[str, float]:
            return wrk(program, at, directory, serving.url + path, body=body, seconds=each)

        rounds = []
        for _ in range(times):
            rounds.append((load(CONSTANT), load(CREATE), load(CREATE_MANY, f'{{"count":{BATCH}}}')))
        single = paced(at, serving.socket, CREATE, seconds=each)
        mutual = paced(at, serving.tls_address, CREATE, seconds=each, tls=directory)
        offered = [
            (
                paced(at, serving.socket, CONSTANT, seconds=each, rate=RATE),
                paced(at, serving.socket, CREATE, seconds=each, rate=RATE),
            )
            for _ in range(times)
        ]
        rss_mb = serving.rss_mb()
        bao_url = stack.enter_context(openbao(directory, at))
        sides = [
            (
                load(CREATE, WITH_PLAINTEXT),
                wrk(program, at, directory, bao_url, body="{}", seconds=each, header=f"X-Vault-Token: {TOKEN}"),
            )
            for _ in range(max(1, times - 1))
        ]
        revoked = revoke_under_load(
            serving.process,
            serving.socket,
            lambda script: start_wrk(program, at, serving.url + OPEN, script, seconds=LEAD_S + AFTER_S),
            directory / "open.lua",
            names=f"{TENANT}/{SERVICE}",
        )
    return (
        _figures(rounds, single, offered, sides)
        | revoked
        | {
            "mtls_c1_p50_us": _us(mutual["p50_ms"]),
            "mtls_c1_p99_us": _us(mutual["p99_ms"]),
            "mtls_c1_per_s": mutual["per_s"],
            "cold_start_ms": serving.cold_start_ms,
            "rss_mb": rss_mb,
            "seconds": seconds,
        }
    )


def _figures(
    rounds: Sequence[tuple[dict[str, float], ...]],
    single: dict[str, float],
    offered: list[tuple[dict[str, float], dict[str, float]]],
    sides: list[tuple[dict[str, float], dict[str, float]]],
) -> dict[str, Any]:
    constant, mint, many = (list(column) for column in zip(*rounds, strict=True))
    best = min((_beside(*pair) for pair in offered), key=lambda one: max(one["p99_ratio"], one["p999_ratio"]))
    return {
        "tcp_c16_per_s": round(statistics.median(one["per_s"] for one in mint)),
        "tcp_c16_p99_us": _us(min(one["p99_ms"] for one in mint)),
        "constant_per_s": round(statistics.median(one["per_s"] for one in constant)),
        "ratio": round(statistics.median(m["per_s"] / c["per_s"] for m, c in zip(mint, constant, strict=True)), 3),
        "batch_keys_per_s": round(statistics.median(one["per_s"] for one in many) * BATCH),
        "uds_c1_p50_us": _us(single["p50_ms"]),
        "uds_c1_p99_us": _us(single["p99_ms"]),
        "uds_c1_per_s": single["per_s"],
        **{f"rate_10k_{name}": value for name, value in best.items()},
        "plaintext_per_s": round(statistics.median(ours["per_s"] for ours, _ in sides)),
        "openbao_per_s": round(statistics.median(bao["per_s"] for _, bao in sides)),
        "openbao_ratio": round(statistics.median(ours["per_s"] / bao["per_s"] for ours, bao in sides), 1),
    }


def _beside(constant: dict[str, float], mint: dict[str, float]) -> dict[str, float]:
    """Latency at the offered rate in microseconds, and as a multiple of the constant handler's."""
    quantiles = ("p50", "p99", "p999")
    shown = {f"{q}_us": _us(mint[f"{q}_ms"]) for q in quantiles}
    shown |= {f"constant_{q}_us": _us(constant[f"{q}_ms"]) for q in quantiles}
    return shown | {f"{q}_ratio": round(mint[f"{q}_ms"] / constant[f"{q}_ms"], 2) for q in quantiles[1:]}


def _us(ms: float) -> float:
    return round(ms * 1_000, 1)


def is_met(figures: dict[str, Any]) -> bool:
    """Whether every promised figure holds."""
    return bool(
        figures["tcp_c16_per_s"] >= 40_000
        and figures["ratio"] >= 0.35
        and figures["uds_c1_p50_us"] < 100
        and figures["uds_c1_p99_us"] < 500
        and figures["rate_10k_p50_us"] < 200
        and figures["rate_10k_p99_ratio"] <= 2
        and figures["rate_10k_p999_ratio"] <= 2
        and figures["batch_keys_per_s"] >= 150_000
        and figures["cold_start_ms"] < 1_000
        and figures["rss_mb"] < 64
        and figures["openbao_ratio"] >= 5
        and figures["revoke_last_open_ms"] < 1_000
        and DOCUMENTED.issuperset(figures["revoke_refusals"])
    )


def run_bench(args: argparse.Namespace) -> int:
    """``--seconds`` and ``--json``; exit code 1 where a figure is missed."""
    figures = run(min(max(args.seconds, 1.0), SECONDS_MAX))
    met = is_met(figures)
    emit(args, figures | {"ok": met}, lambda: facts("Edge sidecar, one worker on one core", figures | {"ok": met}))
    return int(ExitCode.DONE if met else ExitCode.REFUSED)
