"""The pages of ``docs/clients``: their commands, run as they stand, on a running mesh."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import grpc
from tests.integration.mesh.aws import free_port
from tests.integration.mesh.live import US, LiveMesh

from keymesh.adapters.grpc_kms_v2 import MESSAGES, SERVICE
from keymesh.app.layout import load_plan

PAGES = Path(__file__).resolve().parents[3] / "docs" / "clients"
PATIENCE_S = 60.0


def commands(page: str) -> list[list[str]]:
    """Of the page's first block of commands."""
    found = re.search(r"```sh\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    assert found is not None
    return [shlex.split(line, comments=True) for line in found[1].splitlines()]


async def start(mesh: LiveMesh, words: list[str], where: Path) -> asyncio.subprocess.Process:
    """One command of a page on this mesh: its tenant and its Core's address are put in."""
    core = f"https://127.0.0.1:{load_plan(mesh.layout).regions['us-east'].port}"
    words = [word.replace("acme", US).replace("https://10.0.0.2:7601", core) for word in words]
    assert words[0] == "keymesh"
    words[0] = str(Path(sys.executable).parent / "keymesh")
    if words[1:3] in (["edge", "k8s-kms"], ["edge", "aws-kms"]):
        words.append("--allow-unlocked-memory")
    environment = {**os.environ, "KEYMESH_DIR": str(mesh.layout.root)}
    return await asyncio.create_subprocess_exec(
        *words, cwd=where, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def test_kubernetes(mesh: LiveMesh) -> None:
    """Secrets are sealed and opened; the kill switch ends it, and a resume brings it back."""
    *before, serve = commands("kubernetes.md")
    where = mesh.layout.root.parent / "k8s"
    where.mkdir()
    for words in before:
        process = await start(mesh, words, where)
        _, said = await process.communicate()
        assert process.returncode == 0, (words, said)
    plugin = await start(mesh, serve, where)
    try:
        async with asyncio.timeout(PATIENCE_S), grpc.aio.insecure_channel(f"unix:{where}/kms.sock") as channel:
            call = {name: _call(channel, name) for name in ("Status", "Encrypt", "Decrypt")}
            status = await _status(call["Status"], healthy=True)
            sealed = await call["Encrypt"](MESSAGES["EncryptRequest"](plaintext=b"a seed", uid="1"))
            assert sealed.key_id == status.key_id
            asked = MESSAGES["DecryptRequest"](ciphertext=sealed.ciphertext, uid="2", key_id=sealed.key_id)
            assert (await call["Decrypt"](asked)).plaintext == b"a seed"
            await mesh.cli("suspend", f"service:{US}/kubernetes", "-o", where / "cert.json")
            told = await _status(call["Status"], healthy=False)
            assert told.key_id == status.key_id
            try:
                await call["Decrypt"](asked)
                raise AssertionError("opened though it is suspended")
            except grpc.aio.AioRpcError as refused:
                assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
            await mesh.cli("resume", f"service:{US}/kubernetes")
            await _status(call["Status"], healthy=True)
            assert (await call["Decrypt"](asked)).plaintext == b"a seed"
    finally:
        plugin.terminate()
        await plugin.communicate()
    assert plugin.returncode == 0


async def test_pykmip(mesh: LiveMesh) -> None:
    """The page's commands, then its program, as they stand."""
    where = mesh.layout.root.parent / "pykmip"
    where.mkdir()
    for words in commands("pykmip.md"):
        process = await start(mesh, words, where)
        _, said = await process.communicate()
        assert process.returncode == 0, (words, said)
    program = re.search(r"```python\n(.*?)```", (PAGES / "pykmip.md").read_text(), re.DOTALL)
    assert program is not None
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program[1], cwd=where, stderr=asyncio.subprocess.PIPE
    )
    _, said = await running.communicate()
    assert running.returncode == 0, said


async def test_aws_kms(mesh: LiveMesh) -> None:
    """The page's own program, in the page's own environment."""
    *before, serve = commands("aws-kms.md")
    where = mesh.layout.root.parent / "aws-page"
    where.mkdir()
    said = b""
    for words in before:
        process = await start(mesh, words, where)
        said, why = await process.communicate()
        assert process.returncode == 0, (words, why)
    port = free_port()
    face = await start(mesh, [word.replace("8443", str(port)) for word in serve], where)
    assert face.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"serving aws-kms" not in await face.stderr.readline():
                assert face.returncode is None
        page = (PAGES / "aws-kms.md").read_text()
        exports = re.findall(r"([A-Z_]+)=(\S+)", "\n".join(re.findall(r"^export .*", page, re.MULTILINE)))
        made = json.loads(said)
        environment = {**os.environ, **{name: value.replace("8443", str(port)) for name, value in exports}}
        environment |= {"AWS_ACCESS_KEY_ID": made["access_key_id"], "AWS_SECRET_ACCESS_KEY": made["secret_access_key"]}
        program = re.search(r"```python\n(.*?)```", page, re.DOTALL)
        assert program is not None
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program[1], cwd=where, env=environment, stderr=asyncio.subprocess.PIPE
        )
        _, why = await client.communicate()
        assert client.returncode == 0, why
    finally:
        face.terminate()
        await face.communicate()
    assert face.returncode == 0


def _call(channel: grpc.aio.Channel, name: str) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=MESSAGES[f"{name}Request"].SerializeToString,
        response_deserializer=MESSAGES[f"{name}Response"].FromString,
    )


async def _status(call: grpc.aio.UnaryUnaryMultiCallable, *, healthy: bool) -> Any:
    """The first status that is as asked; the plugin may be starting."""
    while True:
        try:
            status = await call(MESSAGES["StatusRequest"](), wait_for_ready=True)
            if (status.healthz == "ok") is healthy:
                return status
        except grpc.aio.AioRpcError as away:
            assert away.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.sleep(0.1)
