"""``keymesh config check | show | init``: a role's configuration file, read as the role itself would, or made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from keymesh.app.bootstrap import DEFAULT_REGIONS, parse_regions
from keymesh.app.cli_common import emit, facts, stderr, stdout, table
from keymesh.app.cli_mesh import timing_of
from keymesh.app.config_env import variable_of
from keymesh.app.config_faults import BadConfig, Fault
from keymesh.app.config_file import Loaded, role_in_file
from keymesh.app.config_identity import load_checked
from keymesh.app.config_init import Shared, init_hosts, parse_hosts, spread_plan
from keymesh.app.layout import registry_process
from keymesh.model.errors import ExitCode


def _load(args: argparse.Namespace) -> Loaded:
    path = Path(args.file)
    return load_checked(path, args.role or role_in_file(path))


def run_check(args: argparse.Namespace) -> int:
    """Exit code 1 where there is any fault."""
    faults: tuple[Fault, ...] = ()
    role = args.role
    try:
        role = _load(args).config.role
    except BadConfig as bad:
        faults = bad.faults
    shown = {"ok": not faults, "file": args.file, "role": role, "errors": [_plain(fault) for fault in faults]}

    def human() -> None:
        for fault in faults:
            stderr.print(f"{args.file}: {fault}", markup=False)
        if not faults:
            stdout.print(f"{args.file}: this {role} can run", markup=False)

    emit(args, shown, human)
    return int(ExitCode.REFUSED if faults else ExitCode.DONE)


def run_show(args: argparse.Namespace) -> int:
    """The effective configuration; of a file with faults, these."""
    try:
        loaded = _load(args)
    except BadConfig:
        return run_check(args)
    role = loaded.config.role
    fields = [
        {
            "field": field,
            "value": value,
            "source": origin.source,
            "line": origin.line,
            "variable": origin.variable or variable_of(role, field),
        }
        for field, value, origin in loaded.fields
    ]
    shown = {"ok": True, "file": args.file, "role": role, "fields": fields}
    rows = [(field, _shown(value), str(origin)) for field, value, origin in loaded.fields]
    emit(args, shown, lambda: table(f"{role} of {args.file}", ("field", "value", "from"), rows))
    return int(ExitCode.DONE)


def _plain(fault: Fault) -> dict[str, Any]:
    return {"field": fault.field, "line": fault.line, "reason": fault.reason}


def _shown(value: Any) -> Any:
    """Nothing as a dash, an empty list or table as such."""
    return "-" if value is None else json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def run_init(args: argparse.Namespace) -> int:
    """A development mesh for hosts of their own."""
    regions = parse_regions(args.regions or ",".join(DEFAULT_REGIONS))
    shared = Shared(etcd=_listed(args.etcd), postgresql=_listed(args.postgresql))
    shared.check(args.replicas)
    plan = spread_plan(
        regions,
        parse_hosts(args.host, regions, n_replicas=args.replicas),
        args.first_port,
        timing_of(args),
        allow_unlocked_memory=args.allow_unlocked_memory,
        n_replicas=args.replicas,
    )
    output = Path(args.out)
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = init_hosts(output, plan, shared)
    registries = dict(zip(map(registry_process, plan.registry_nodes), plan.registry_addresses, strict=True))
    addresses = registries | {region: plan.address(region) for region in plan.regions}
    names = [path.name for path in made]
    shown = {"ok": True, "out": str(output), "directories": names, "addresses": addresses}

    def human() -> None:
        facts("made", {"in": output, "directories": ", ".join(names), **addresses})
        stdout.print("[yellow]Development keys, unencrypted; ceremony/ is nobody's on the network.[/yellow]")
        stdout.print("next: docs/deploy.md", markup=False)

    emit(args, shown, human)
    return int(ExitCode.DONE)
