"""The Edge host as a process: killed at any time it comes back by itself, stopped it goes quietly."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tests.integration.edge_core import MESH, Pki, TestCore, eventually, now
from tests.integration.test_edge_sidecar import Client, certify

from keymesh.access.identity import parse_identity
from keymesh.adapters import pki
from keymesh.edge.sidecar_identities import IdentityStore, write_private
from keymesh.model import strict_json

PROGRAM = """
import argparse, sys
from keymesh.edge import sidecar_process
parser = argparse.ArgumentParser()
sidecar_process.add_arguments(parser)
worker = (sys.executable, "-P", "-m", "keymesh.app.edge_worker")
say = lambda: print("ready", flush=True)
sys.exit(sidecar_process.main(parser.parse_args(), on_ready=say, worker=worker))
"""


class Host:
    """Its directory, enrolled for acme/files, and the process when it runs."""

    def __init__(self, root: Path, core: TestCore) -> None:
        self.socket = root / "s"
        self.directory = root / "edge"
        self.directory.mkdir()
        self.ca = core.mesh.ca_file(root)
        self.core = core
        write_private(self.directory / "trust.json", strict_json.dumps(core.trust))
        store = IdentityStore(self.directory, mesh=MESH, region="eu", ca_file=self.ca)
        csr = store.request("acme", "files")
        identity = parse_identity(store.uri("acme", "files"), MESH)
        authority = core.mesh.regions["eu"]
        leaf = pki.issue_from_csr(authority, csr.encode(), identity=identity, now=now())
        chain = pki.certificates_pem([leaf, authority.certificate]).decode()
        store.install("acme", "files", chain, now_ms=now())

    async def start(self, *more: str) -> asyncio.subprocess.Process:
        """Returns once it serves."""
        words = ["--dir", str(self.directory), "--socket", str(self.socket), "--region", "eu", "--mesh", MESH]
        words += ["--core-url", self.core.url, "--ca", str(self.ca), "--allow-unlocked-memory", *more]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            line = await process.stdout.readline()
        if line != b"ready\n":
            _, err = await process.communicate()
            raise AssertionError(err.decode())
        return process

    async def use(self, blob: str | None = None) -> dict[str, str]:
        """Mint a key, or open one."""
        client = Client(self.socket)
        try:
            if blob is None:
                status, answer = await client("POST", "/v1/acme/files/create-key", {"plaintext": True})
            else:
                status, answer = await client("POST", "/v1/acme/files/decrypt-key", {"blob": blob})
        finally:
            await client.session.close()
        assert status == 200, answer
        result: dict[str, str] = answer
        return result


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    core = TestCore(tmp_path, Pki())
    await core.start()
    yield Host(tmp_path, core)
    await core.stop()


async def test_killed_it_comes_back_by_itself_and_loses_no_blob(host: Host) -> None:
    process = await host.start()
    made = await host.use()
    process.kill()
    await process.communicate()
    assert host.socket.exists(), "what a dead process leaves behind"
    process = await host.start()
    try:
        assert (await host.use(made["blob"]))["plaintext"] == made["plaintext"]
        keys = {request.signing_key for request in host.core.leases.values()}
        assert len(keys) == 2, "each life has a signing key of its own"
        host.core.revoke("lease-1", "lease-2")
        await host.core.until_acked("lease-2")
        await asyncio.sleep(0.2)
        assert ("lease-1", "r1") not in host.core.acks, "a later life settles no lease of an earlier one"
    finally:
        process.terminate()
        await process.communicate()


async def test_sigterm_is_a_quiet_end_with_a_last_report(host: Host) -> None:
    process = await host.start()
    await host.use()
    process.terminate()
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert not host.socket.exists()
    assert sum(report.minted for report in host.core.usage.values()) == 1
    assert host.core.returned == set(host.core.leases) == {"lease-1"}


async def test_sigterm_with_the_core_gone_is_quiet_and_soon(host: Host) -> None:
    process = await host.start()
    await host.use()
    await host.core.stop()
    begun = time.monotonic()
    process.terminate()
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert time.monotonic() - begun < 5


async def test_a_pause_longer_than_the_lease_ends_it(host: Host) -> None:
    host.core.ttl_ms = 1_500
    process = await host.start()
    client = Client(host.socket)
    try:
        await host.use()
        os.kill(process.pid, signal.SIGSTOP)
        host.core.refuse = "closed"
        await asyncio.sleep(1.8)
        asking = asyncio.create_task(client("POST", "/v1/acme/files/create-key", {}))
        await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGCONT)
        status, problem = await asking
        assert (status, problem["error"]["code"]) in ((503, "expired"), (503, "closed"))
    finally:
        await client.session.close()
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        await process.communicate()


async def test_two_hosts_on_one_socket(host: Host) -> None:
    process = await host.start()
    try:
        with pytest.raises(AssertionError, match="another process listens"):
            await host.start()
        await host.use()
    finally:
        process.terminate()
        await process.communicate()


async def test_without_trust_it_does_not_start(host: Host) -> None:
    (host.directory / "trust.json").unlink()
    with pytest.raises(AssertionError, match=r"trust\.json"):
        await host.start()


# --- several workers -------------------------------------------------------------------------------------------------


def workers_of(process: asyncio.subprocess.Process) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_worker_that_dies_is_missed_by_nobody_for_long(host: Host) -> None:
    process = await host.start("--workers", "2")
    try:
        first = workers_of(process)
        assert len(first) == 2
        made = await host.use()
        await eventually(lambda: len({request.signing_key for request in host.core.leases.values()}) == 2)
        os.kill(min(first), signal.SIGKILL)
        await eventually(lambda: len(workers_of(process) - first) == 1, within_s=15)
        for _ in range(8):
            assert (await host.use(made["blob"]))["plaintext"] == made["plaintext"]
    finally:
        process.terminate()
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert not host.socket.exists()
    assert not any(map(is_alive, first))


async def test_workers_end_with_their_parent(host: Host) -> None:
    process = await host.start("--workers", "2")
    workers = workers_of(process)
    process.kill()
    await process.communicate()
    await eventually(lambda: not any(map(is_alive, workers)), within_s=10)


async def test_an_identity_is_every_workers(host: Host) -> None:
    shutil.rmtree(host.directory / "identities")
    process = await host.start("--workers", "3")
    try:
        client = Client(host.socket)
        status, asked = await client("POST", "/v1/identities", {"tenant": "acme", "service": "files"})
        assert status == 200
        chain = certify(host.core, asked["csr"], asked["uri"])
        assert (await client("PUT", "/v1/identities/acme/files", {"chain": chain}))[0] == 200
        await client.session.close()
        for _ in range(20):
            fresh = Client(host.socket)
            status, answer = await fresh("POST", "/v1/acme/files/create-key", {})
            assert status == 200, answer
            status, listed = await fresh("GET", "/v1/identities")
            assert [row["service"] for row in listed["identities"]] == ["files"]
            await fresh.session.close()
    finally:
        process.terminate()
        await process.communicate()


async def test_a_worker_that_cannot_start_ends_the_host(host: Host) -> None:
    (host.directory / "trust.json").unlink()
    with pytest.raises(AssertionError, match=r"trust\.json"):
        await host.start("--workers", "2")
    assert not host.socket.exists()


# --- callers ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
    return port


def shown_by(identity: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    context.load_cert_chain(identity)
    return context


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_over_tcp_a_service_uses_its_own_keys_alone(host: Host, tmp_path: Path, workers: str) -> None:
    port, mesh = free_port(), host.core.mesh
    process = await host.start("--tcp", f"127.0.0.1:{port}", "--workers", workers)
    url = f"https://127.0.0.1:{port}"

    async def ask(identity: Path, method: str, path: str) -> int:
        connector = aiohttp.TCPConnector(ssl=shown_by(identity, host.ca))
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.request(method, url + path, json={}) as answer:
                await answer.read()
                return answer.status

    try:
        own = mesh.edge_file(tmp_path)
        other = mesh.edge_file(tmp_path, service="other")
        elsewhere = mesh.edge_file(tmp_path, tenant="globex")
        core = mesh.identity_file(tmp_path / "n9.pem", f"spiffe://eu.{MESH}/core/n9")
        stranger = Pki().edge_file(tmp_path, service="stranger")
        assert await ask(own, "POST", "/v1/acme/files/create-key") == 200
        assert await ask(own, "GET", "/healthz") == 200
        for identity in (other, elsewhere):
            assert await ask(identity, "POST", "/v1/acme/files/create-key") == 403
        for method, path in (
            ("GET", "/v1/identities"),
            ("POST", "/v1/identities"),
            ("PUT", "/v1/identities/acme/files"),
            ("GET", "/metrics"),
        ):
            assert await ask(own, method, path) == 403
        abroad = mesh.edge_file(tmp_path, region="us")  # its CA may not hold acme, and names it all the same
        for refused in (core, stranger, abroad):
            with pytest.raises(aiohttp.ClientError):
                await ask(refused, "POST", "/v1/acme/files/create-key")
        bare = ssl.create_default_context(cafile=str(host.ca))
        bare.check_hostname = False
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=bare)) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(url + "/healthz")
    finally:
        process.terminate()
        await process.communicate()


ASK = """
import http.client, os, socket, sys
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
for method, path in (("POST", "/v1/acme/files/create-key"), ("POST", "/v1/acme/other/create-key"),
                     ("GET", "/v1/identities"), ("GET", "/healthz")):
    asking = Unix("edge")
    try:
        asking.request(method, path, b"{}", {"Content-Type": "application/json"})
        print(asking.getresponse().status)
    except OSError as refused:
        print(type(refused).__name__)
"""


async def test_another_user_uses_what_was_given_to_it(host: Host, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o711)
        host.socket = Path(shared) / "s"

        async def ask(uid: int) -> list[str]:
            command = (sys.executable, "-c", ASK, str(host.socket), str(uid))
            asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            return (await asking.communicate())[0].decode().split()

        if os.getuid() != 0:  # nobody else can ask as another user: that we are not locked out is all there is to see
            process = await host.start("--caller", "65533=acme/files")
            assert await ask(os.getuid()) == ["200", "404", "200", "200"]
            process.terminate()
            await process.communicate()
            return
        process = await host.start()
        assert await ask(65_533) == ["PermissionError"] * 4
        process.terminate()
        await process.communicate()
        process = await host.start("--caller", "65533=acme/files")
        try:
            assert await ask(65_533) == ["200", "403", "403", "200"]
            assert set(await ask(65_534)) <= {"403", "BrokenPipeError", "ConnectionResetError"}
            assert await ask(0) == ["200", "404", "200", "200"]
        finally:
            process.terminate()
            await process.communicate()


# --- edge serve ------------------------------------------------------------------------------------------------


async def test_edge_serve_needs_nothing_but_what_enrolment_made(host: Host, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    host.core.mesh.edge_file(given).rename(given / "edge.pem")
    (given / "ca.pem").write_bytes(host.ca.read_bytes())
    (given / "trust.json").write_bytes((host.directory / "trust.json").read_bytes())
    words = [
        sys.executable,
        "-m",
        "keymesh.app.cli",
        "edge",
        "serve",
        "--uds",
        str(host.socket),
        "--identity",
        str(given),
    ]
    words += ["--core", host.core.url, "--workers", "2", "--allow-unlocked-memory"]

    async def serving() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"serving acme/files" not in (line := await process.stderr.readline()):
                assert line, "it ended"
        return process

    process = await serving()
    made = await host.use()
    process.terminate()
    await process.communicate()
    kept = given / "serve" / "identities" / "acme" / "files" / "identity.pem"
    renewed = kept.read_bytes() + b"\n"
    kept.write_bytes(renewed)
    process = await serving()
    try:
        assert (await host.use(made["blob"]))["plaintext"] == made["plaintext"]
        assert kept.read_bytes() == renewed, "what was renewed is not put back"
        assert stat.S_IMODE((given / "serve").stat().st_mode) == 0o700
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
    host.core.mesh.identity_file(given / "edge.pem", f"spiffe://eu.{MESH}/tenant/acme/edge/files/other")
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"is another Edge's" in err and b"Traceback" not in err
