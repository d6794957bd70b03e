"""The KMS v2 plugin as a process, and a gRPC client made from the service's published interface."""

from __future__ import annotations

import asyncio
import importlib
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.edge_core import MESH, Pki, TestCore
from tests.unit.app.founded import short_dir

from keymesh.edge.sidecar_identities import write_private
from keymesh.model import strict_json

PROTO = """
syntax = "proto3";
package v2;
service KeyManagementService {
  rpc Status(StatusRequest) returns (StatusResponse) {}
  rpc Decrypt(DecryptRequest) returns (DecryptResponse) {}
  rpc Encrypt(EncryptRequest) returns (EncryptResponse) {}
}
message StatusRequest {}
message StatusResponse { string version = 1; string healthz = 2; string key_id = 3; }
message DecryptRequest { bytes ciphertext = 1; string uid = 2; string key_id = 3; map<string, bytes> annotations = 4; }
message DecryptResponse { bytes plaintext = 1; }
message EncryptRequest { bytes plaintext = 1; string uid = 2; }
message EncryptResponse { bytes ciphertext = 1; string key_id = 2; map<string, bytes> annotations = 3; }
"""
SEED = bytes(range(32))
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What protoc makes of the interface."""
    where = tmp_path_factory.mktemp("kms_v2")
    (where / "kms_v2_client.proto").write_text(PROTO)
    words = ["-m", "grpc_tools.protoc", f"-I{where}", f"--python_out={where}", f"--grpc_python_out={where}"]
    subprocess.run([sys.executable, *words, "kms_v2_client.proto"], check=True, cwd=where, timeout=PATIENCE_S)
    sys.path.insert(0, str(where))
    try:
        messages = importlib.import_module("kms_v2_client_pb2")
        calls = importlib.import_module("kms_v2_client_pb2_grpc")
    finally:
        sys.path.remove(str(where))
    return messages, calls


@asynccontextmanager
async def running_core(root: Path) -> AsyncIterator[TestCore]:
    core = TestCore(root, Pki())
    await core.start()
    try:
        yield core
    finally:
        await core.stop()


@asynccontextmanager
async def plugin(core: TestCore, root: Path) -> AsyncIterator[Path]:
    """The command a user starts, on the files that ``pki enrol`` makes; yields its socket once it serves."""
    given, path = root / "id", root / "kms.sock"
    given.mkdir(mode=0o700, exist_ok=True)
    core.mesh.identity_file(given / "edge.pem", f"spiffe://eu.{MESH}/tenant/acme/edge/files/e1")
    core.mesh.ca_file(given).rename(given / "ca.pem")
    write_private(given / "trust.json", strict_json.dumps(core.trust))
    words = ["--uds", str(path), "--identity", str(given), "--core", core.url, "--allow-unlocked-memory"]
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "keymesh"), "edge", "k8s-kms", *words, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        said = b""
        async with asyncio.timeout(PATIENCE_S):
            while b"serving" not in said:
                line = await process.stderr.readline()
                assert line, said
                said += line
        yield path
        process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
        assert not path.exists()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def healthy(calls: Any, messages: Any) -> Any:
    """The status, once it is well: the first lease may be on its way."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = await calls.Status(messages.StatusRequest())
            if status.healthz == "ok":
                return status
            await asyncio.sleep(0.1)


async def test_an_api_servers_calls(api: Any) -> None:
    messages, stubs = api
    with short_dir() as root:
        async with running_core(root) as core, plugin(core, root) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                calls = stubs.KeyManagementServiceStub(channel)
                status = await healthy(calls, messages)
                assert status.version == "v2" and 0 < len(status.key_id) < 1_024
                sealed = await calls.Encrypt(messages.EncryptRequest(plaintext=SEED, uid="1"))
                assert sealed.key_id == status.key_id and len(sealed.ciphertext) < 1_024 and not sealed.annotations
                asked = messages.DecryptRequest(ciphertext=sealed.ciphertext, uid="2", key_id=sealed.key_id)
                assert (await calls.Decrypt(asked)).plaintext == SEED
                many = await asyncio.gather(*(calls.Decrypt(asked) for _ in range(50)))
                assert {answer.plaintext for answer in many} == {SEED}
                for bad, code in (
                    (messages.DecryptRequest(ciphertext=b"", key_id=sealed.key_id), grpc.StatusCode.INVALID_ARGUMENT),
                    (messages.DecryptRequest(ciphertext=sealed.ciphertext), grpc.StatusCode.INVALID_ARGUMENT),
                    (
                        messages.DecryptRequest(
                            ciphertext=sealed.ciphertext[:-1] + bytes((sealed.ciphertext[-1] ^ 1,)),
                            key_id=sealed.key_id,
                        ),
                        grpc.StatusCode.INVALID_ARGUMENT,
                    ),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await calls.Decrypt(bad)
                    assert refused.value.code() is code
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await calls.Encrypt(messages.EncryptRequest(plaintext=bytes(1_000), uid="3"))
                assert "plaintext: at most" in refused.value.details()


async def test_a_second_plugin_does_not_take_the_socket_and_a_dead_ones_is_replaced(api: Any) -> None:
    with short_dir() as root:
        async with running_core(root) as core:
            async with plugin(core, root) as path:
                given = ["--identity", str(root / "id"), "--core", core.url, "--allow-unlocked-memory"]
                second = await asyncio.create_subprocess_exec(
                    str(Path(sys.executable).parent / "keymesh"), "edge", "k8s-kms", "--uds", str(path), *given,
                    stderr=asyncio.subprocess.PIPE,
                )  # fmt: skip
                _, said = await second.communicate()
                assert second.returncode == 1 and b"address-in-use" in said
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
            assert path.is_socket()
            async with plugin(core, root):
                pass
