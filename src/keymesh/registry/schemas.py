"""Schemas of the regions' key stores: what nodes report, and when a migration may be asked for.

A row that names a schema is understood by this release and later ones alone; a region that does not understand ``mesh``
takes no new lease.  So a migration is refused while any node of the mesh has not reported, which older ones never do.
Nothing migrates by itself: until an operator says so, the release before can be gone back to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from keymesh.control.kinds import MigrateKeystore
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.machine import Address, Note
from keymesh.model.time import Instant
from keymesh.orbital.messages import KeyStoreReport
from keymesh.registry.events import Command
from keymesh.registry.state import RegistryState, Session

MIGRATE: Final = "region.migrate-keystore"
NAMED_MAX: Final = 8


def on_report(state: RegistryState, now: Instant, sender: Address, report: KeyStoreReport, out: list[Any]) -> None:
    """A node's word about its own store."""
    session = state.sessions.get(sender)
    if session is None or (report.region, report.node) != (session.region, session.node):
        out.append(Note("report-refused", "keystore", (("sender", str(sender)),)))
        return
    session.store_schema, session.store_newest = report.schema, report.newest


def refusal(state: RegistryState, command: Command) -> KeymeshError | None:
    """Why ``command`` may not be given now; None for every other kind."""
    if command.kind != MIGRATE:
        return None
    try:
        args = strict_json.convert(command.args, MigrateKeystore)
    except Refused as bad:
        return bad
    return may_migrate(state.sessions.values(), args)


def may_migrate(sessions: Iterable[Session], args: MigrateKeystore) -> KeymeshError | None:
    """None where every node of the mesh has reported, and all of the region know the schema."""
    silent = sorted(f"{s.region}/{s.node}" for s in sessions if s.store_newest == 0)
    if silent:
        named = ", ".join(silent[:NAMED_MAX])
        return Unavailable("older-release", f"not known to run a release that understands this: {named}")
    known = min((s.store_newest for s in sessions if s.region == args.region), default=0)
    if args.schema > known:
        return Refused("schema-unknown", f"{args.region} knows schemas up to {known}", field="schema")
    return None
