"""``keymesh wan``: the process that relays the links of a development mesh, and the commands that cut them.

A link is one way: who connects to whom.  Control, over a Unix socket, one JSON object a line:
``{"op": "cut" | "heal" | "delay" | "status", "src", "dst", "ms"}``; ``*`` or nothing stands for all.  Plan file:
``{"links": [{"src", "dst", "listen_port", "target_host", "target_port"}]}``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.app.lifeline import die_with_parent, say_ready, wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.app.wan_relay import LinkStatus, Wan, WanPlan
from keymesh.edge.sidecar_bind import bind_unix
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused

PLAN_MAX_BYTES: Final = 1024 * 1024
COMMAND_MAX_BYTES: Final = 4_096


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    op: str
    src: str = "*"
    dst: str = "*"
    ms: int = 0


def carry_out(wan: Wan, line: bytes) -> dict[str, Any]:
    """The answer to one control line: ``{"ok": true, "links": [...]}`` or ``{"ok": false, "error": ...}``."""
    try:
        command = strict_json.decode(line, _Command, max_bytes=COMMAND_MAX_BYTES)
        match command.op:
            case "cut":
                wan.cut(command.src, command.dst)
            case "heal":
                wan.heal(command.src, command.dst)
            case "delay":
                wan.delay(command.ms, command.src, command.dst)
            case "status":
                pass
            case _:
                raise Refused.bad_field("op", "one of cut, heal, delay, status")
    except Refused as refused:
        return {"ok": False, "error": refused.message}
    return {"ok": True, "links": wan.status()}


@asynccontextmanager
async def controlled(wan: Wan, path: Path) -> AsyncIterator[None]:
    """Serve the control socket at ``path``, for its owner alone."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                writer.write(strict_json.dumps(carry_out(wan, line.rstrip(b"\n"))) + b"\n")
                await writer.drain()
        writer.close()

    bound = bind_unix(path)
    server = await asyncio.start_unix_server(serve, sock=bound, limit=COMMAND_MAX_BYTES)
    try:
        yield
    finally:
        server.close()
        _unlink(path)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


async def ask(path: Path, op: str, *, src: str = "*", dst: str = "*", ms: int = 0) -> list[LinkStatus]:
    """One command to a running relay; every link's state after it.  Raises Refused, OSError where none runs."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=PLAN_MAX_BYTES)
    try:
        writer.write(strict_json.dumps(_Command(op=op, src=src, dst=dst, ms=ms)) + b"\n")
        answer = json.loads(await reader.readline() or b"{}")
    finally:
        writer.close()
    if answer.get("ok") is not True:
        raise Refused("wan", str(answer.get("error", "no answer")))
    return msgspec.convert(answer["links"], list[LinkStatus])


async def run(plan: WanPlan, control: Path) -> None:
    """Relay until SIGTERM or SIGINT."""
    wan = Wan(plan.links)
    await wan.start()
    try:
        async with controlled(wan, control):
            say_ready()
            await wait_for_stop()
    finally:
        await wan.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", required=True, type=Path, help="JSON file: the links")
    parser.add_argument("--control", required=True, type=Path, help="Unix socket for commands")


def main(args: argparse.Namespace) -> int:
    """The process; returns the exit code."""
    die_with_parent()
    setup_logging("wan")
    try:
        plan = strict_json.decode(args.plan.read_bytes(), WanPlan, max_bytes=PLAN_MAX_BYTES)
        asyncio.run(run(plan, args.control))
    except KeymeshError as error:
        print(f"wan: {error.message}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f"wan: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="keymesh wan", description="Relay the links of a development mesh.")
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
