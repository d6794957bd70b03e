"""What entries make of key versions: wanted, created once, activated, wrapped anew (DESIGN section 1)."""

from __future__ import annotations

from keymesh.control import checks
from keymesh.control.draft import Draft, is_live, refuse_revoked
from keymesh.control.kinds import ActivateKey, CreateKey, Rewrapped, WantKey, WantRewrap
from keymesh.control.rows import (
    L2_NAME,
    BindingRow,
    KeyRow,
    RestrictionRow,
    RewrapRow,
    Rows,
    WantRow,
    WrappingRow,
    key_row_name,
)
from keymesh.model.errors import Refused
from keymesh.model.ids import check_hex
from keymesh.model.states import KeyState


def service_of(rows: Rows, key: str) -> str | None:
    """The service of ``key``, None for L2.  Raises Refused for a key that the tenant cannot have."""
    if key == L2_NAME:
        return None
    head, slash, service = key.partition("/")
    if head != "l3" or not slash or f"service/{service}" not in rows:
        raise Refused("unknown-service", f"no service behind key {key[:80]!r}", field="key")
    return service


def _check_parent(draft: Draft, key: str, parent: str) -> None:
    """L2 hangs from a binding that still opens, L3 from an L2 version that still opens."""
    if key == L2_NAME:
        binding = draft.get(f"binding/{parent}", BindingRow)
        fits = binding is not None and binding.state in ("active", "retiring")
    else:
        fits = any(row.kid == parent and is_live(row) for row in draft.key_rows(L2_NAME).values())
    if not fits:
        raise Refused("unknown-parent", f"{key} cannot be wrapped under {parent[:80]!r}", field="parent")


def want(draft: Draft, args: WantKey) -> None:
    """One version more; the home region's minter makes it."""
    refuse_revoked(draft, service_of(draft.rows, args.key))
    old = draft.get(f"want/{args.key}", WantRow)
    expected = 1 if old is None else old.version + 1
    if args.version != expected:
        raise Refused("conflict", f"the next version of {args.key} is {expected}", field="version")
    draft.put(f"want/{args.key}", WantRow(version=args.version))


def want_rewrap(draft: Draft, args: WantRewrap) -> None:
    """All live versions under ``parent``; the minter moves them one by one."""
    refuse_revoked(draft, service_of(draft.rows, args.key))
    _check_parent(draft, args.key, args.parent)
    if args.key == L2_NAME:
        binding = draft.get(f"binding/{args.parent}", BindingRow)
        if binding is None or binding.state != "active":
            raise Refused("unknown-parent", "new wraps of L2 go under the active binding only", field="parent")
    draft.put(f"rewrap/{args.key}", RewrapRow(parent=args.parent))


def create(draft: Draft, args: CreateKey) -> None:
    """The compare on (tenant, key, version) that makes one minter's version the version."""
    service = service_of(draft.rows, args.key)
    check_hex("kid", args.kid, hex_bytes=16)
    check_hex("digest", args.digest, hex_bytes=32)
    versions = draft.key_rows(args.key)
    old = versions.get(args.version)
    if old is not None:
        raise Refused(
            "already" if old.kid == args.kid else "conflict",
            f"{args.key} version {args.version} exists",
            field="version",
        )
    want = draft.get(f"want/{args.key}", WantRow)
    if want is None or args.version > want.version or args.version != max(versions, default=0) + 1:
        raise Refused("unwanted", f"{args.key} version {args.version} is not the next that is wanted", field="version")
    refuse_revoked(draft, service)
    _check_parent(draft, args.key, args.parent)
    if any(n.startswith("key/") and _kid_at(draft, n) == args.kid for n in draft.rows):
        raise Refused("conflict", "that kid names another version", field="kid")
    state = KeyState.COMPROMISED if _version_revoked(draft, service, args.version) else KeyState.PRE_ACTIVE
    row = KeyRow(kid=args.kid, revision=1, state=state.value, digest=args.digest, parent=args.parent)
    draft.put(key_row_name(args.key, args.version), row)


def _kid_at(draft: Draft, name: str) -> str:
    row = draft.get(name, KeyRow)
    return "" if row is None else row.kid


def _version_revoked(draft: Draft, service: str | None, version: int) -> bool:
    """A version may have been revoked before it was made: the number stays taken, and dead."""
    if service is None:
        return False
    row = draft.get(f"restriction/key:{draft.namespace}/{service}@{version}", RestrictionRow)
    return row is not None and row.state == "revoked"


def activate(draft: Draft, args: ActivateKey) -> None:
    """Pre-active becomes active, and may take over the wrapping, which never goes back to an older version."""
    refuse_revoked(draft, service_of(draft.rows, args.key))
    row = _existing(draft, args.key, args.version)
    activates = row.state == KeyState.PRE_ACTIVE.value
    if not activates and row.state != KeyState.ACTIVE.value:
        raise Refused("revoked" if not is_live(row) else "conflict", f"the version is {row.state}", field="version")
    if not activates and not args.wrapping:
        raise Refused("already", "the version is active", field="version")
    if args.wrapping:
        wrapping = draft.get(f"wrapping/{args.key}", WrappingRow)
        if wrapping is not None and args.version <= wrapping.version:
            code = "already" if args.version == wrapping.version else "conflict"
            raise Refused(code, f"version {wrapping.version} wraps", field="version")
        draft.put(f"wrapping/{args.key}", WrappingRow(version=args.version))
    if activates:
        draft.put(key_row_name(args.key, args.version), checks.changed(row, state=KeyState.ACTIVE.value))


def _existing(draft: Draft, key: str, version: int) -> KeyRow:
    row = draft.get(key_row_name(key, version), KeyRow)
    if row is None:
        raise Refused("unknown-version", f"no version {version} of {key}", field="version")
    return row


def rewrapped(draft: Draft, args: Rewrapped) -> None:
    """The compare on the revision: the same material, wrapped anew."""
    service_of(draft.rows, args.key)
    check_hex("digest", args.digest, hex_bytes=32)
    row = _existing(draft, args.key, args.version)
    if not is_live(row):
        raise Refused("revoked", f"the version is {row.state}", field="version")
    if args.revision != row.revision + 1:
        same = args.revision == row.revision and args.digest == row.digest
        code = "already" if same else "conflict"
        raise Refused(code, f"the next revision is {row.revision + 1}", field="revision")
    _check_parent(draft, args.key, args.parent)
    moved = checks.changed(row, revision=args.revision, digest=args.digest, parent=args.parent)
    draft.put(key_row_name(args.key, args.version), moved)
