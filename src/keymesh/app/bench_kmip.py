"""``keymesh bench kmip``: Encrypt and Get over one mutually authenticated TLS connection, beside PyKMIP's server.

The load is the same for both: bytes of requests built before, sent on a raw TLS socket one at a time, with the
same protocol and cipher (TLS 1.2, which is what PyKMIP's server speaks).  Each server is a process of its own on one
core, the load is on the other.  Rounds are short and alternate, and of each operation and server the best one counts:
what else the machine does only ever slows, and finds both alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keymesh.app.bench_kmip_server import CA_FILE, SERVER_FILE
from keymesh.app.bench_sidecar import started_on
from keymesh.app.cli_common import emit, facts
from keymesh.app.kmip_loopback import CALLER
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.kmip.enums import CryptographicUsageMask, ObjectType, Operation, ResultStatus
from keymesh.kmip.enums_crypto import BlockCipherMode, CryptographicAlgorithm, PaddingMethod
from keymesh.kmip.items import children_of, make, struct
from keymesh.kmip.tables import ATTRIBUTE_NAME
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import HEADER_BYTES, Item, decode, encode, message_bytes
from keymesh.model.errors import ExitCode, Refused, Unavailable

ROUNDS: Final = 20
SHORT_S: Final = 10.0
"""A shorter run has one round: it shows that everything works, and measures little."""
SECONDS_MAX: Final = 300.0
RATIO: Final = 5.0
START_S: Final = 60.0
ANSWER_S: Final = 30.0
VERSION: Final = (1, 2)  # the first with Encrypt
CIPHER: Final = "ECDHE-ECDSA-AES128-GCM-SHA256"
DATA: Final = bytes(64)
_PYTHON: Final = (sys.executable, "-P", "-m")


def find_pykmip() -> None:
    """Raises Refused with the line that installs it."""
    if importlib.util.find_spec("kmip") is None:
        raise Refused(
            "not-found",
            "PyKMIP, whose server is the reference, is missing; install it: pip install pykmip",
            field="kmip",
        )


# --- requests --------------------------------------------------------------------------------------------------------


def request(operation: Operation, *payload: Item) -> bytes:
    """One request of one item."""
    version = (make(Tag.ProtocolVersionMajor, VERSION[0]), make(Tag.ProtocolVersionMinor, VERSION[1]))
    header = struct(Tag.RequestHeader, struct(Tag.ProtocolVersion, *version), make(Tag.BatchCount, 1))
    item = struct(Tag.BatchItem, make(Tag.Operation, operation), struct(Tag.RequestPayload, *payload))
    return encode(struct(Tag.RequestMessage, header, item))


def create() -> bytes:
    """An AES-256 key that may encrypt."""
    attributes = (
        make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.AES),
        make(Tag.CryptographicLength, 256),
        make(Tag.CryptographicUsageMask, CryptographicUsageMask.Encrypt | CryptographicUsageMask.Decrypt),
    )
    named = (
        struct(
            Tag.Attribute,
            make(Tag.AttributeName, ATTRIBUTE_NAME[Tag(each.tag)]),
            Item(Tag.AttributeValue, each.type, each.value),
        )
        for each in attributes
    )
    template = struct(Tag.TemplateAttribute, *named)
    return request(Operation.Create, make(Tag.ObjectType, ObjectType.SymmetricKey), template)


def encrypt(uid: str) -> bytes:
    """64 bytes in AES-CBC with PKCS5 padding, as PyKMIP's server wants to be told."""
    parameters = struct(
        Tag.CryptographicParameters,
        make(Tag.BlockCipherMode, BlockCipherMode.CBC),
        make(Tag.PaddingMethod, PaddingMethod.PKCS5),
        make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.AES),
    )
    which, data, iv = make(Tag.UniqueIdentifier, uid), make(Tag.Data, DATA), make(Tag.IVCounterNonce, bytes(16))
    return request(Operation.Encrypt, which, parameters, data, iv)


def named(operation: Operation, uid: str) -> bytes:
    return request(operation, make(Tag.UniqueIdentifier, uid))


# --- servers ---------------------------------------------------------------------------------------------------------


class Client:
    """One connection; one request at a time."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = tls.wrap_socket(raw, server_hostname="127.0.0.1")

    def ask(self, raw: bytes) -> bytes:
        """Raises Unavailable where the server hangs up."""
        self._socket.sendall(raw)
        got = self._socket.recv(65_536)
        while len(got) < HEADER_BYTES or len(got) < message_bytes(got[:HEADER_BYTES]):
            more = self._socket.recv(65_536)
            if not more:
                raise Unavailable("bench", "the server hung up")
            got += more
        return got

    def done(self, raw: bytes) -> str:
        """The identifier that an answer names.  Raises Unavailable where it is a failure."""
        item = children_of(decode(self.ask(raw)))[1]
        parts = {each.tag: each.value for each in children_of(item)}
        if parts.get(Tag.ResultStatus) != ResultStatus.Success:
            raise Unavailable("bench", f"a server refused: {parts.get(Tag.ResultMessage)!s}")
        payload = next(each for each in children_of(item) if each.tag == Tag.ResponsePayload)
        return next(str(each.value) for each in children_of(payload) if each.tag == Tag.UniqueIdentifier)

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Server:
    """A client of it, and the two requests that are measured, which have been answered once."""

    pid: int
    client: Client
    encrypt: bytes
    get: bytes

    def cpu_s(self) -> float:
        """Processor time that the process has had."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(which: str, directory: Path, tls: ssl.SSLContext, core: int | None) -> Iterator[Server]:
    """One server with one active key."""
    command = [*_PYTHON, "keymesh.app.bench_kmip_server", "--which", which, "--dir", str(directory)]
    log = directory / f"{which}.txt"
    with log.open("w") as errors, started_on(core) if core is not None else nullcontext():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if not said.isdigit():
            raise Unavailable("bench", f"the {which} server did not start: {log.read_text().strip()[-300:]}")
        client = _connected(int(said), tls)
        try:
            uid = client.done(create())
            client.done(named(Operation.Activate, uid))
            measured = Server(process.pid, client, encrypt(uid), named(Operation.Get, uid))
            client.done(measured.encrypt)
            client.done(measured.get)
            yield measured
        finally:
            client.close()
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _connected(port: int, tls: ssl.SSLContext) -> Client:
    """PyKMIP's listens a moment after it is bound."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return Client(port, tls)
        except OSError as bad:
            if time.monotonic() >= deadline:
                raise Unavailable("bench", "a server takes no connection") from bad
            time.sleep(0.1)


# --- the bench -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phase:
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Of the server's process, for one request."""


def load(of: Server, raw: bytes, seconds: float) -> Phase:
    """The same request again and again."""
    took: list[int] = []
    cpu_s = of.cpu_s()
    began = now = time.perf_counter_ns()
    end = began + int(seconds * 1e9)
    while now < end:
        of.client.ask(raw)
        then, now = now, time.perf_counter_ns()
        took.append(now - then)
    took.sort()
    middle, late = took[len(took) // 2], took[len(took) * 99 // 100]
    cpu_s = of.cpu_s() - cpu_s
    return Phase(len(took) * 1e9 / (now - began), middle / 1e6, late / 1e6, cpu_s * 1e3 / len(took))


def run(seconds: float) -> dict[str, Any]:
    """Measure for about ``seconds``; the figures as ``keymesh bench kmip --json`` prints them."""
    find_pykmip()
    able = sorted(os.sched_getaffinity(0))
    serving, loading = (able[0], able[1]) if len(able) > 1 else (None, None)
    times = ROUNDS if seconds >= SHORT_S else 1
    each = max(0.1, seconds / (times * 4))
    with tempfile.TemporaryDirectory(prefix="keymesh-bench-") as scratch, ExitStack() as stack:
        directory = Path(scratch)
        tls = _certificates(directory)
        ours = stack.enter_context(server("keymesh", directory, tls, serving))
        theirs = stack.enter_context(server("pykmip", directory, tls, serving))
        if loading is not None:
            stack.enter_context(started_on(loading))
        phases: dict[str, list[Phase]] = {}
        for _ in range(times):
            for side, of in (("", ours), ("pykmip_", theirs)):
                phases.setdefault(f"{side}encrypt", []).append(load(of, of.encrypt, each))
                phases.setdefault(f"{side}get", []).append(load(of, of.get, each))
    return figures(phases) | {"rounds": times, "pinned": serving is not None, "seconds": seconds}


def _certificates(directory: Path) -> ssl.SSLContext:
    ca = InfraCa.make("bench kmip")
    (directory / CA_FILE).write_bytes(ca.pem)
    ca.issue(directory / SERVER_FILE, "server", server=True)
    tls = ssl.create_default_context(cafile=str(directory / CA_FILE))
    tls.load_cert_chain(ca.issue(directory / "client.pem", CALLER.name))
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers(CIPHER)
    return tls


def figures(phases: Mapping[str, Sequence[Phase]]) -> dict[str, Any]:
    """Of the best rounds; ``pykmip_ratio`` is the lower of both operations' ratios."""
    found: dict[str, Any] = {}
    best = {name: max(rounds, key=lambda one: one.per_s) for name, rounds in phases.items()}
    for name, one in best.items():
        found[f"{name}_per_s"] = round(one.per_s)
        found[f"{name}_p50_ms"] = round(one.p50_ms, 3)
        found[f"{name}_p99_ms"] = round(one.p99_ms, 3)
        found[f"{name}_cpu_ms"] = round(statistics.median(each.cpu_ms for each in phases[name]), 3)
    for name in ("encrypt", "get"):
        found[f"{name}_ratio"] = round(best[name].per_s / best[f"pykmip_{name}"].per_s, 2)
        found[f"{name}_cpu_ratio"] = round(found[f"pykmip_{name}_cpu_ms"] / max(found[f"{name}_cpu_ms"], 0.001), 2)
    return found | {"pykmip_ratio": min(found["encrypt_ratio"], found["get_ratio"])}


def run_bench(args: argparse.Namespace) -> int:
    """``--seconds`` and ``--json``; exit code 1 where the ratio is missed."""
    found = run(min(max(args.seconds, 1.0), SECONDS_MAX))
    found["ok"] = found["pykmip_ratio"] >= RATIO
    emit(args, found, lambda: facts("KMIP over one mTLS connection, beside PyKMIP's server", found))
    return int(ExitCode.DONE if found["ok"] else ExitCode.REFUSED)
