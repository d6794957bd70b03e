"""The Edge host as a process: killed at any time it comes back by itself, stopped it goes quietly."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.edge_core import MESH, Pki, TestCore, now
from tests.integration.test_edge_sidecar import Client

from keymesh.access.identity import parse_identity
from keymesh.adapters import pki
from keymesh.edge.sidecar_identities import IdentityStore, write_private
from keymesh.model import strict_json

PROGRAM = """
import argparse, sys
from keymesh.edge import sidecar
parser = argparse.ArgumentParser()
sidecar.add_arguments(parser)
sys.exit(sidecar.main(parser.parse_args(), on_ready=lambda: print("ready", flush=True)))
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

    async def start(self) -> asyncio.subprocess.Process:
        """Returns once it serves."""
        words = ["--dir", str(self.directory), "--socket", str(self.socket), "--region", "eu", "--mesh", MESH]
        words += ["--core-url", self.core.url, "--ca", str(self.ca), "--allow-unlocked-memory"]
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
