"""``keymesh backup create | list | verify | keygen``."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.backup_files import load_backup_config, load_recovery_key, new_recovery_key, open_store
from keymesh.app.backup_read import read_lines, read_marker
from keymesh.app.backup_verify import Opener, Report, check_at_least, verify_domain, verify_registry
from keymesh.app.cli_common import emit, facts, show_utc, stdout, table
from keymesh.app.cli_errors import BadUsage, plain_error
from keymesh.app.layout import Layout, load_plan, resolve_dir
from keymesh.app.trust_file import load_trust
from keymesh.control.backup_store import BackupStore
from keymesh.control.signing import DsseSuite, VerifyOnly
from keymesh.control.trust import Pins
from keymesh.model.errors import ExitCode, KeymeshError, Refused
from keymesh.model.ids import KeyId

CREATE_TIMEOUT_S = 120.0


def run_keygen(args: argparse.Namespace) -> int:
    """A recovery officer's key."""
    public = new_recovery_key(Path(args.file))
    shown = {"ok": True, "recipient": public, "file": args.file}
    emit(args, shown, lambda: stdout.print(f"recipient {public}", markup=False))
    return 0


# --- create ----------------------------------------------------------------------------------------------------------


def run_create(args: argparse.Namespace) -> int:
    """Registry first, then the Cores: so every wrapped key that the one knows of is in the others' backups."""

    async def create(client: AdminClient) -> dict[str, Any]:
        async def ask(target: str) -> Any:
            try:
                body = {"full": bool(args.full)}
                answer = await client.call("POST", "/v1/backups", body, target=target, timeout_s=CREATE_TIMEOUT_S)
                return {"ok": True, **answer}
            except KeymeshError as failed:
                return {"ok": False, "error": plain_error(failed), "exit_code": int(failed.exit_code)}

        registry = await ask("registry")
        regions = sorted(client.plan.regions)
        answers = await asyncio.gather(*(ask(region) for region in regions))
        return {"registry": registry, "regions": dict(zip(regions, answers, strict=True))}

    made = run_with_client(args.dir, create)
    all_of = [made["registry"], *made["regions"].values()]
    codes = [one.pop("exit_code") for one in all_of if not one["ok"]]
    shown = {"ok": not codes, "epoch": made["registry"].get("epoch"), "index": made["registry"].get("index"), **made}
    emit(args, shown, lambda: _show_created(made))
    return max(codes, default=int(ExitCode.DONE))


def _show_created(made: dict[str, Any]) -> None:
    lines = {"registry": made["registry"], **made["regions"]}
    table(
        "backups",
        ("of", "number", "index", "entries", "blobs", "missing", "store", "why not"),
        (
            (
                name,
                *(one.get(field) for field in ("seq", "index", "entries", "blobs", "missing", "store")),
                "" if one["ok"] else one["error"]["message"],
            )
            for name, one in lines.items()
        ),
    )


# --- list, verify ----------------------------------------------------------------------------------------------------


def run_list(args: argparse.Namespace) -> int:
    """What the manifests say of themselves; who signed them is ``verify``'s to tell."""
    shown = []
    mesh = load_trust(_root_file(args)).mesh
    with _stores(args) as stores:
        for store in stores:
            marker = read_marker(store, mesh=mesh)
            lines = read_lines(store, marker, now_ms=_wall_ms())
            for origin, line in lines.items():
                for stored in line:
                    m = stored.manifest
                    shown.append(
                        {
                            "store": store.address,
                            "domain": m.domain,
                            "origin": origin,
                            "seq": m.seq,
                            "full": m.full,
                            "epoch": m.epoch,
                            "index": m.index,
                            "entries": m.entries,
                            "namespaces": m.namespaces,
                            "blobs": m.blobs,
                            "missing": m.missing,
                            "created_at": m.created_at,
                            "chunks": len(m.chunks),
                            "bytes": sum(chunk.n_bytes for chunk in m.chunks),
                        }
                    )
    emit(args, {"ok": True, "backups": shown}, lambda: _show_list(shown))
    return 0


def _show_list(shown: list[dict[str, Any]]) -> None:
    columns = ("origin", "domain", "seq", "full", "epoch", "index", "entries", "blobs", "bytes")
    rows = ((*(one[c] for c in columns), show_utc(one["created_at"])) for one in shown)
    table("backups", (*columns, "made"), rows)


def run_verify(args: argparse.Namespace) -> int:
    """Everything opened: log, kill-switch records, wrapped keys."""
    trust = load_trust(_root_file(args))
    pins = Pins(
        mesh=trust.mesh,
        root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
        threshold=trust.root.threshold,
    )
    opener = Opener(pins, DsseSuite(VerifyOnly()), load_recovery_key(_key_file(args)), _wall_ms(), args.newest)
    with _stores(args) as stores:
        reports, replayed = _verify(stores, opener)
    check_at_least(replayed, args.at_least)
    newest = reports[0].lines["registry"]
    shown = {
        "ok": True,
        "epoch": newest.epoch,
        "index": newest.index,
        "entries": newest.entries,
        "namespaces": newest.namespaces,
        "blobs": sum(report.blobs for report in reports),
        "manifests": sum(report.manifests for report in reports),
        "chunks": sum(report.chunks for report in reports),
        "created_at": newest.created_at,
        "stores": [{"store": r.store, "domain": r.domain, "manifests": r.manifests, "blobs": r.blobs} for r in reports],
    }
    emit(args, shown, lambda: facts("backups verified", {k: v for k, v in shown.items() if k not in ("ok", "stores")}))
    return int(ExitCode.DONE)


def _verify(stores: list[BackupStore], opener: Opener) -> tuple[list[Report], Any]:
    """The Registry's store first, whatever the order given: the others are held against its log."""
    markers = [(store, read_marker(store, mesh=opener.pins.mesh)) for store in stores]
    logs = [store for store, marker in markers if not marker.domain]
    if len(logs) != 1:
        raise Refused.bad_field("store", f"exactly one store of a Registry, got {len(logs)}")
    report, replayed = verify_registry(logs[0], opener)
    reports = [report]
    for domain in sorted({marker.domain for _, marker in markers if marker.domain}):
        reports += verify_domain([store for store, marker in markers if marker.domain == domain], opener, replayed)
    return reports, replayed


# --- what the arguments name -----------------------------------------------------------------------------------------


@contextmanager
def _stores(args: argparse.Namespace) -> Iterator[list[BackupStore]]:
    """Those named; else all of the mesh in the directory."""
    stores: list[BackupStore] = [DirectoryStore(Path(path).absolute()) for path in args.store]
    stores += [open_store(load_backup_config(Path(path))) for path in args.config]
    if not stores:
        layout = Layout(resolve_dir(args.dir))
        plan = load_plan(layout)
        domains = sorted({region.domain for region in plan.regions.values()})
        stores = [DirectoryStore(layout.backups(domain)) for domain in ("", *domains)]
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


def _root_file(args: argparse.Namespace) -> Path:
    given = getattr(args, "root", None)
    return Path(given) if given else Layout(resolve_dir(args.dir)).trust


def _key_file(args: argparse.Namespace) -> Path:
    if args.key:
        return Path(args.key)
    own = Layout(resolve_dir(args.dir)).recovery_key
    if not own.exists():
        raise BadUsage("usage", "--key FILE: the private key of a recovery officer", field="key")
    return own


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
