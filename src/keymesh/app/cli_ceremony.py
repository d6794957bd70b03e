"""``keymesh ceremony``: keys of roots and officers, made, rehearsed and rotated offline; and the mesh told of it."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from keymesh.app import ceremony_rotate
from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.ceremony import FILE, keys_in, load, make, parse_quorum, rehearse
from keymesh.app.cli_common import emit, facts, table
from keymesh.app.trust_file import load_trust
from keymesh.app.voter_word import PATH
from keymesh.control.kinds import ROTATE_TRUST
from keymesh.model.errors import ExitCode, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE

DAYS_MAX: Final = 365
DAY_MS: Final = 86_400_000
ASK_TIMEOUT_S: Final = 5.0
COMMIT_WAIT_S: Final = 60.0
APPLY_WAIT_S: Final = 30.0


def run_make(args: argparse.Namespace) -> int:
    """Key files, and the public file that founds a mesh."""
    directory = Path(args.directory)
    made = make(directory, roots=parse_quorum("roots", args.roots), officers=parse_quorum("officers", args.officers))
    shown = {
        "ok": True,
        "public": str(directory / FILE),
        "files": sorted(path.name for path in directory.glob("*.pem")),
        "root": {"keys": sorted(made.root.keys), "threshold": made.root.threshold},
        "officers": {"keys": sorted(made.officers.keys), "threshold": made.officers.threshold},
    }
    told = {"public": shown["public"], "files": shown["files"]}
    emit(args, shown, lambda: facts("ceremony: give each file to one person, and keep none", told))
    return 0


def run_rehearse(args: argparse.Namespace) -> int:
    """Exit code 1 where a role could not sign any more."""
    directory = Path(args.directory)
    done = rehearse(load(directory), keys_in(directory, [Path(f) for f in args.key]), args.lost)
    ok = all(one.signs for one in done)
    emit(
        args,
        {"ok": ok, "rehearsed": [asdict(one) for one in done]},
        lambda: table(
            "rehearsal",
            ("role", "without", "keys left", "threshold", "still signs"),
            ((one.role, one.lost, one.left, one.threshold, one.signs) for one in done),
        ),
    )
    return int(ExitCode.DONE if ok else ExitCode.REFUSED)


def run_rotate(args: argparse.Namespace) -> int:
    """New key files beside the old ones, and the public file that the mesh is told by."""
    if not 1 <= args.days <= DAYS_MAX:
        raise Refused.bad_field("days", f"1 to {DAYS_MAX}")
    directory, out = Path(args.directory), Path(args.out)
    wanted = ceremony_rotate.Wanted(
        lost=tuple(args.lost),
        roots=None if args.roots is None else parse_quorum("roots", args.roots),
        officers=None if args.officers is None else parse_quorum("officers", args.officers),
        not_after=time.time_ns() // 1_000_000 + args.days * DAY_MS,
    )
    keys = keys_in(directory, [Path(f) for f in args.key])
    done = ceremony_rotate.rotate(load(directory), keys, _trust(Path(args.trust)), out, wanted)
    shown = {
        "ok": True,
        "mesh": done.rotation.mesh,
        "version": done.ceremony.root.version,
        "rotation": str(out / ceremony_rotate.FILE),
        "public": str(out / FILE),
        "trust": str(out / ceremony_rotate.TRUST),
        "files": list(done.made),
        "kept": list(done.kept),
        "gone": list(done.gone),
        "not_after": wanted.not_after,
    }
    told = {name: shown[name] for name in ("version", "rotation", "files", "kept", "gone")}
    emit(args, shown, lambda: facts("rotation: give each new file to one person, then tell the mesh", told))
    return 0


def _trust(path: Path) -> Any:
    try:
        return load_trust(path)
    except OSError as bad:
        raise Refused("not-found", f"{path} cannot be read: {bad.strerror}", field="trust") from bad


def run_submit(args: argparse.Namespace) -> int:
    """Safe to repeat.  Exit code 3 where the voters have not committed it in time: it may still come into force."""
    rotation = ceremony_rotate.load(Path(args.file))
    shown = run_with_client(args.dir, lambda client: submit(client, rotation))
    told = {name: shown[name] for name in ("version", "applied", "behind")}
    emit(args, shown, lambda: facts("the trust set in force", told))
    return 0


async def submit(client: AdminClient, rotation: ceremony_rotate.Rotation) -> dict[str, Any]:
    """1. The Registry takes the entry.  2. A majority of voters commits it.  3. Which regions have applied it."""
    if rotation.mesh != client.plan.mesh:
        raise Refused("foreign-mesh", f"a rotation of mesh {rotation.mesh[:64]!r}", field="file")
    version, command_id = int(rotation.args["root"]["version"]), rotation.command_id
    body = {
        "namespace": MESH_NAMESPACE,
        "kind": ROTATE_TRUST,
        "args": rotation.args,
        "authority": list(rotation.authority),
    }
    done = await client.call("POST", "/v1/commands", body, command_id=command_id)

    async def committed() -> bool | None:
        status = await client.call("GET", f"/v1/commands/{MESH_NAMESPACE}/{command_id}")
        return True if status["committed"] else None

    await client.until(committed, what="a majority of the voters committing it", timeout_s=COMMIT_WAIT_S)
    deadline = time.monotonic() + APPLY_WAIT_S
    while True:
        held = await _held(client)
        behind = sorted(region for region, has in held.items() if has is None or has < version)
        if not behind or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    return {
        "ok": True,
        "version": version,
        "command_id": command_id,
        "seq": done["seq"],
        "applied": sorted(held.keys() - set(behind)),
        "behind": behind,
    }


async def _held(client: AdminClient) -> dict[str, int | None]:
    """Region -> version of the trust set that it applied; None where it does not answer."""

    async def ask(region: str) -> int | None:
        try:
            word = await client.call("GET", PATH, target=region, timeout_s=ASK_TIMEOUT_S)
        except KeymeshError:
            return None
        version = word.get("trust_version")  # an older release knows none
        return None if version is None else int(version)

    regions = sorted(client.plan.regions)
    return dict(zip(regions, await asyncio.gather(*(ask(region) for region in regions)), strict=True))
