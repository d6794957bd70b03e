"""``keymesh region seals | add-seal | remove-seal | unseal | seal``: each asks that region's Core."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.files import check_writable, write_file
from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.bootstrap import parse_shares
from keymesh.app.cli_common import emit, facts, stdout, table
from keymesh.app.seal_url import parse_seal_url
from keymesh.core.seals import Kind
from keymesh.model.errors import Refused
from keymesh.model.ids import check_region

TIMEOUT_S: Final = 60.0


def run_unseal(args: argparse.Namespace) -> int:
    """Hand the shares to that region's Core; without any, have it try its other seals now."""
    shares = [_read_share(Path(file)) for file in args.share]
    shown = _ask(args, "POST", "/v1/unseal", {"shares": shares})
    emit(args, shown, lambda: facts(f"region {args.region}", {"sealed": shown["sealed"]}))
    return 0


def run_seal(args: argparse.Namespace) -> int:
    """Have that region's Core forget its keys."""
    shown = _ask(args, "POST", "/v1/seal", {})
    emit(args, shown, lambda: facts(f"region {args.region}", {"sealed": shown["sealed"]}))
    return 0


def run_seals(args: argparse.Namespace) -> int:
    shown = _ask(args, "GET", "/v1/seals")
    emit(args, shown, lambda: _show(shown))
    return 0


def run_add(args: argparse.Namespace) -> int:
    """Add a seal; of shares, write them out, read them back, and have the Core count them only then."""
    kind = Kind(args.kind)
    if kind is Kind.SHAMIR:
        return _add_shares(args)
    if args.shares or args.out:
        raise Refused.bad_field("shares", "--shares and --out are of the kind shamir")
    if (args.key is None) is not (kind is Kind.FILE):
        raise Refused.bad_field("key", "needed for openbao and pkcs11, and for them alone")
    named, parameters = parse_seal_url("key", args.key or kind.value)
    if named is not kind:
        raise Refused.bad_field("key", f"names {named.value}, not {kind.value}")
    body = {"kind": kind.value, "parameters": parameters, "make_key": args.make_key}
    shown = _ask(args, "POST", "/v1/seals", body)
    emit(args, shown, lambda: _show(shown))
    return 0


def _add_shares(args: argparse.Namespace) -> int:
    if args.key or args.make_key:
        raise Refused.bad_field("key", "none for shares")
    if not args.shares or not args.out:
        raise Refused.bad_field("shares", "--shares M/N and --out DIR are needed for shamir")
    threshold, count = parse_shares(args.shares)
    out = Path(args.out)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = [out / f"share-{n}.txt" for n in range(1, count + 1)]
    for file in files:
        if file.exists():
            raise Refused("exists", f"{file} exists; name another directory", field="out")
        check_writable(file)

    async def work(client: AdminClient) -> Any:
        region = _region(client, args.region)
        body = {"kind": Kind.SHAMIR.value, "threshold": threshold, "shares": count}
        made = await client.call("POST", "/v1/seals", body, target=region, timeout_s=TIMEOUT_S)
        for file, share in zip(files, made["shares"], strict=True):
            write_file(file, share.encode("ascii") + b"\n")
        back = [_read_share(file) for file in files]
        confirm = {"seal": made["seal"], "shares": back}
        return await client.call("POST", "/v1/seals/confirm", confirm, target=region, timeout_s=TIMEOUT_S)

    shown = {**run_with_client(args.dir, work), "files": [str(file) for file in files]}
    emit(args, shown, lambda: _show(shown))
    return 0


def run_remove(args: argparse.Namespace) -> int:
    shown = _ask(args, "POST", "/v1/seals/remove", {"seal": args.seal})
    emit(args, shown, lambda: _show(shown))
    return 0


def _region(client: AdminClient, name: str) -> str:
    if check_region(name) not in client.plan.regions:
        raise Refused("not-found", "no such region", field="region")
    return name


def _ask(args: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    async def work(client: AdminClient) -> Any:
        target = _region(client, args.region)
        return await client.call(method, path, body, target=target, timeout_s=TIMEOUT_S)

    return run_with_client(args.dir, work)


def _read_share(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError as bad:
        raise Refused.bad_field("share", f"{file} is no share") from bad


def in_words(seals: Sequence[dict[str, Any]] | None) -> str:
    """One line for people; "?" where nobody said."""
    if seals is None:
        return "?"
    return ", ".join(f"{seal['id']} {seal['state']}" for seal in seals)


def _show(shown: dict[str, Any]) -> None:
    columns = ("id", "kind", "state", "reason", "key")
    table(f"seals of {shown['region']}", columns, ([seal[c] for c in columns] for seal in shown["seals"]))
    if shown["sealed"]:
        stdout.print("the region is sealed", style="yellow")
    for file in shown.get("files", ()):
        stdout.print(f"share: {file}", markup=False)
