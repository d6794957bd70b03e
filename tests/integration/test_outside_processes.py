"""The customer's KMS and the relay as real processes: signals, kills, bad arguments."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.adapters.pki_world import N1, World

from keymesh.adapters.customer_kms import OwnerClient, open_provider, read_info
from keymesh.adapters.tls import Credentials
from keymesh.app import wan
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.model.errors import Refused, Unavailable

E = bytes(range(32))


@asynccontextmanager
async def process(module: str, *args: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The module as a process of its own; ended with the block if it has not ended itself."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *map(str, args),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def kms_up(directory: Path, child: asyncio.subprocess.Process) -> OwnerClient:
    async with asyncio.timeout(15):
        while True:
            assert child.returncode is None
            try:
                if read_info(directory).pid == child.pid:
                    return OwnerClient.open(directory)
            except Refused:
                pass
            await asyncio.sleep(0.05)


async def test_the_kms_survives_kill_9_with_its_keys_and_what_was_acknowledged(tmp_path: Path) -> None:
    world, home = World(), tmp_path / "kms"
    (tmp_path / "root.pem").write_bytes(world.root_pem)
    args = ("--dir", home, "--replicas", "eu,us", "--allow-ca", tmp_path / "root.pem")
    async with process("keymesh.app.customer_kms", *args) as child:
        owner = await kms_up(home, child)
        await owner.create("root")
        core = open_provider(owner.descriptor("root"), "eu", Credentials(world.write(tmp_path / "n1", N1)))
        wrapped = await core.wrap(E)
        assert await core.unwrap(wrapped) == E
        await owner.disable("root")
        child.kill()
        await child.wait()
        with pytest.raises(L1Unreachable):
            await core.unwrap(wrapped)
        with pytest.raises(Unavailable):
            await owner.enable("root")
        await owner.close()
    async with process("keymesh.app.customer_kms", "--dir", home, "--replicas", "eu,us") as child:
        owner = await kms_up(home, child)
        with pytest.raises(L1Denied):
            await core.unwrap(wrapped)
        await owner.enable("root")
        assert await core.unwrap(wrapped) == E
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 10) == 0
        await owner.close()
    await core.close()


async def test_bad_arguments_are_one_line_and_a_code(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for args in (
        ("keymesh.app.customer_kms", "--dir", tmp_path / "a", "--replicas", "A!"),
        ("keymesh.app.customer_kms", "--dir", tmp_path / "b", "--allow-ca", tmp_path / "junk.pem"),
        ("keymesh.app.customer_kms", "--dir", tmp_path / "c", "--allow-ca", tmp_path / "none.pem"),
        ("keymesh.app.wan", "--plan", tmp_path / "none.json", "--control", tmp_path / "s"),
        ("keymesh.app.wan", "--plan", tmp_path / "junk.pem", "--control", tmp_path / "s"),
    ):
        async with process(str(args[0]), *args[1:]) as child:
            assert child.stderr is not None
            said = await asyncio.wait_for(child.stderr.read(), 15)
            assert await child.wait() == 1
            assert said.count(b"\n") == 1
            assert b"Traceback" not in said


async def test_the_relay_process_obeys_its_control_socket(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    target = await asyncio.start_server(greet, "127.0.0.1", 0)
    port, control = target.sockets[0].getsockname()[1], tmp_path / "wan.sock"
    plan = {"links": [{"src": "eu", "dst": "registry", "target_host": "127.0.0.1", "target_port": port}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    async with process("keymesh.app.wan", "--plan", tmp_path / "plan.json", "--control", control) as child:
        async with asyncio.timeout(15):
            while True:
                assert child.returncode is None
                try:
                    await wan.ask(control, "status")
                    break
                except (FileNotFoundError, ConnectionRefusedError):  # the socket has its name before it listens
                    await asyncio.sleep(0.05)
        (link,) = await wan.ask(control, "status")
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        assert await reader.read() == b"hello"
        writer.close()
        (link,) = await wan.ask(control, "cut", src="eu")
        assert link.cut
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        with pytest.raises(ConnectionError):
            if not await reader.read():
                raise ConnectionResetError
        writer.close()
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 10) == 0
        assert not control.exists()
    target.close()
