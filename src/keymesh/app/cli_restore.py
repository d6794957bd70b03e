"""``keymesh registry restore``: a new epoch from a backup and from the regions."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.app.admin_client import AUTHORITY_LIFETIME_MS, AdminClient, new_command_id, run_with_client
from keymesh.app.backup_files import load_recovery_key
from keymesh.app.backup_read import open_chunks, read_lines, read_marker
from keymesh.app.backup_verify import Opener, check_at_least, verify_registry
from keymesh.app.cli_common import emit, facts, stdout, table
from keymesh.app.cli_errors import BadUsage
from keymesh.app.config import RegistryConfig
from keymesh.app.config_file import load_config
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.layout import Layout, MeshPlan, registry_process, save_plan
from keymesh.app.restore_regions import Gathered, gather, highest_epoch
from keymesh.app.restore_write import Written, check_lost, check_replicas, write
from keymesh.app.signing_keys import load_signer
from keymesh.app.supervisor_client import ask_supervisor
from keymesh.app.trust_file import load_trust
from keymesh.control.backup_manifest import LOG, REGISTRY_ORIGIN
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.kinds import KINDS, OPEN_EPOCH
from keymesh.control.messages import EpochOffer
from keymesh.control.signing import DsseSuite, to_plain
from keymesh.control.trust import Pins, make_authority, quorum_for, verify_authority
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model.errors import ExitCode, KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, KeyId
from keymesh.model.time import Instant
from keymesh.registry.regrow import Regrown
from keymesh.registry.restore import Base, plan_base

START_WAIT_S: Final = 60.0


def run_restore(args: argparse.Namespace) -> int:
    """Everything is read and planned before a file is written; the new log takes its place in one step."""
    shown, is_late = run_with_client(args.dir, lambda client: restore(client, args))
    emit(args, shown, lambda: _show(shown))
    return int(ExitCode.UNAVAILABLE if is_late else ExitCode.DONE)


async def restore(client: AdminClient, args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The report; and whether a Registry that should serve by now does not yet.

    What is lost is looked at, a majority heard, and all of it planned, before anything is written.
    """
    layout = client.layout
    replicas = replicas_of(client, args.config)
    check_without(args.without, client.plan)
    await check_lost(replicas[0])
    log = backed_up(layout, replicas[0], args)
    epoch = max(log.epoch, await highest_epoch(client)) + 1
    offer = offer_for(client, epoch, [Path(f) for f in args.approve_key])
    by_backup = refusal_of(log, offer)
    processes = [] if args.config else [registry_process(one.node) for one in replicas]
    is_supervised = bool(processes) and ask_supervisor(layout, {"do": "status"}) is not None
    try:
        if is_supervised:
            await _hold(layout, processes)
        found = await gather(client, offer, without=args.without)
        check_heard(found, by_backup)
        now = Instant(_wall_ms())
        base = plan_base(log, offer=offer, words=found.words, handed=found.handed, now=now)
        written = await write(replicas, base)
        if written.log_prefix and not args.config:
            save_plan(layout, replace(client.plan, log_prefix=written.log_prefix))
    finally:
        if is_supervised:
            for name in processes:
                ask_supervisor(layout, {"do": "release", "name": name})
    is_serving = is_supervised and await comes_up(client)
    return report(base, found, written, is_serving=is_serving), is_supervised and not is_serving


def report(base: Base, found: Gathered, written: Written, *, is_serving: bool) -> dict[str, Any]:
    return {
        "ok": True,
        "epoch": base.epoch,
        "index": len(base.commits),
        "from_backup": base.from_backup,
        "from_regions": base.from_regions,
        "refused": [asdict(one) for one in (*found.refused, *base.refused)],
        "voters": len(found.words),
        "set_aside": written.set_aside,
        "log_set_aside": written.log_set_aside,
        "log_prefix": written.log_prefix,
        "serving": is_serving,
    }


def _show(shown: dict[str, Any]) -> None:
    facts("restored", {k: shown[k] for k in ("epoch", "index", "voters", "serving")} | shown["from_backup"])
    if shown["log_prefix"] and not shown["serving"]:
        stdout.print(f'log.prefix = "{shown["log_prefix"]}" goes into each replica\'s configuration', markup=False)
    rows = ((region, *got.values()) for region, got in sorted(shown["from_regions"].items()))
    table("from regions", ("region", "entries", "restrictions", "key versions"), rows)
    if shown["refused"]:
        columns = ("region", "namespace", "what", "reason")
        table("refused", columns, ([one[c] for c in columns] for one in shown["refused"]))


# --- before ----------------------------------------------------------------------------------------------------------


def replicas_of(client: AdminClient, files: list[str]) -> list[RegistryConfig]:
    """The Registry's replicas here: by their configuration files, else as the mesh's plan has them.

    Raises BadUsage where only files can tell, Refused where they are not one Registry's.
    """
    plan = client.plan
    if files:
        found: list[Any] = [load_config(Path(name), "registry").config for name in files]
    elif plan.hosts is not None:
        raise BadUsage("usage", "--config FILE, once for each of the Registry's replicas on this host", field="config")
    else:
        found = [registry_config_of(client.layout, plan, node) for node in plan.registry_nodes]
    if found[0].mesh != plan.mesh:
        raise Refused("foreign-mesh", f"the configuration is of mesh {found[0].mesh[:64]!r}", field="config")
    check_replicas(found)
    return found


def check_without(regions: list[str], plan: MeshPlan) -> None:
    """Raises Refused for one that is no region of this mesh."""
    for region in regions:
        if region not in plan.regions:
            raise Refused("unknown-region", f"{region[:64]!r} is not in this mesh's plan", field="without")


def backed_up(layout: Layout, registry: RegistryConfig, args: argparse.Namespace) -> Regrown:
    """The log in the store ``--from``, opened and verified whole; nothing of a store that does not hold is used."""
    trust = load_trust(Path(registry.identity.trust_file))
    pins = Pins(trust.mesh, {KeyId(k): v for k, v in trust.root.keys.items()}, trust.root.threshold)
    private = load_recovery_key(Path(args.key) if args.key else layout.recovery_key)
    suite = DsseSuite(load_signer(Path(registry.identity.signing_key_file)).signer)
    opener = Opener(pins, suite, private, _wall_ms())
    store = DirectoryStore(Path(args.source).absolute())
    try:
        _, replayed = verify_registry(store, opener)
        check_at_least(replayed, args.at_least)
        log = Regrown(pins, suite)
        for _, group in groupby(_entries(store, opener), key=lambda item: item[0]):
            log.take([signed for _, signed in group])
    finally:
        store.close()
    return log


def _entries(store: DirectoryStore, opener: Opener) -> list[tuple[int, SignedEntry]]:
    """(index, entry) of the newest set of the Registry's line, in order."""
    lines = read_lines(store, read_marker(store, mesh=opener.pins.mesh), now_ms=opener.now_ms, newest=True)
    return [
        (int.from_bytes(item[0], "big"), parse_entry(envelope_from_json(item[1])))
        for stored in lines[REGISTRY_ORIGIN]
        for kind, items in open_chunks(store, stored.manifest, opener.private)
        if kind == LOG
        for item in items
    ]


def offer_for(client: AdminClient, epoch: int, approve: list[Path]) -> EpochOffer:
    """The recovery officers' word for ``epoch``, good for ten minutes."""
    if not approve:
        raise BadUsage(
            "usage",
            "--approve-key FILE, once for each recovery officer of the threshold "
            f"(here: {client.layout.keys / 'officer-1.pem'} and another)",
            field="approve-key",
        )
    command_id = f"epoch-{epoch}-{new_command_id()}"
    envelope = make_authority(
        mesh=client.plan.mesh,
        namespace=MESH_NAMESPACE,
        command_id=command_id,
        kind=OPEN_EPOCH,
        args={"epoch": epoch},
        not_after=_wall_ms() + AUTHORITY_LIFETIME_MS,
        signers=[load_signer(path).signer for path in approve],
    )
    return EpochOffer(mesh=client.plan.mesh, epoch=epoch, command_id=command_id, authority=(to_plain(envelope),))


def refusal_of(log: Regrown, offer: EpochOffer) -> Refused | None:
    """Why the officers that the backup knows have not signed ``offer``; regions may know others since."""
    args, kind = {"epoch": offer.epoch}, KINDS[OPEN_EPOCH]
    try:
        officers = quorum_for(kind, args, mesh_rows=log.mesh.rows, tenant_signers=None)
        assert officers is not None
        verify_authority(
            mesh=offer.mesh,
            namespace=MESH_NAMESPACE,
            command_id=offer.command_id,
            kind=OPEN_EPOCH,
            args=args,
            authority=offer.authority,
            quorum=officers,
            suite=log.suite,
        )
    except Refused as refused:
        return refused
    return None


def check_heard(found: Gathered, by_backup: Refused | None) -> None:
    """Somebody took the officers' word: a region by those that it knows, or the backup by its own; and who answers has
    given all.  Raises Refused, Unavailable."""
    if found.incomplete:
        names = ", ".join(sorted(found.incomplete))
        hint = "repeat, or leave it out by --without REGION"
        raise Unavailable("incomplete", f"{names} did not hand in all that it holds: {hint}")
    if found.handed:
        return
    if by_backup is not None:
        raise by_backup
    if any(one.reason == "not-signed" for one in found.refused):
        raise Refused(
            "not-signed",
            "regions judge by other officers than the backup's: their keys were rotated",
            field="approve-key",
        )


async def _hold(layout: Layout, processes: list[str]) -> None:
    """End the Registry's ``processes`` until they are released.  Raises Unavailable where one does not end."""
    for name in processes:
        ask_supervisor(layout, {"do": "hold", "name": name})
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline:
        children = (ask_supervisor(layout, {"do": "status"}) or {"children": {}})["children"]
        if all(children.get(name, {}).get("pid") is None for name in processes):
            return
        await asyncio.sleep(0.1)
    raise Unavailable("still-running", "the Registry's process did not end")


async def comes_up(client: AdminClient) -> bool:
    """Whether the Registry serves before long: a large log takes a while to be read and verified."""
    try:
        await client.until(lambda: _serves(client), what="the Registry serving", timeout_s=START_WAIT_S)
    except KeymeshError:
        return False
    return True


async def _serves(client: AdminClient) -> bool | None:
    with suppress(Unavailable, Refused):
        await client.call("GET", "/v1/status", timeout_s=5.0)
        return True
    return None


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
