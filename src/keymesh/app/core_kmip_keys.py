"""KMIP objects under this Core's L3s: sealing and opening with whatever version may be used now, and names' tokens.

Which versions may be used the machine says, at each use; ``used`` notes what one request opened or sealed with, so that
the gate asks again right before its answer.  A name's tokens are made under the service's oldest and newest versions
that may be used, and looked for under every one: two objects of one name meet in the store whatever was rotated in
between, and an object whose own L3 is gone can't be opened either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from keymesh.control.rows import KeyRow, l3_name
from keymesh.core import context
from keymesh.core.keyring import HeldKey
from keymesh.core.may import Verdict
from keymesh.crypto.kid import kid_bytes
from keymesh.kmip import sealed as form
from keymesh.kmip.ports import Chance, Scope
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.states import Operation

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

Use = tuple[str, str, int]
"""(tenant, service, version of its key)"""

used: Final[ContextVar[set[Use] | None]] = ContextVar("used", default=None)
"""Of the request in hand; None outside of one."""


class ServiceKeys:
    """The L3s of services, as KMIP objects need them; the engine's ``Sealer``."""

    def __init__(self, core: CoreProcess, chance: Chance) -> None:
        self._core = core
        self._chance = chance

    # --- the engine's port -----------------------------------------------------------------------------------------

    async def seal(self, scope: Scope, uid: str, material: bytes) -> bytes:
        """Raises Unavailable where the service has no key in use here."""
        return form.seal_material(self.newest(scope), scope, uid, material, self._chance)

    async def open(self, scope: Scope, uid: str, sealed: bytes) -> bytes:
        """Raises as ``of``, and Integrity where it does not open."""
        return form.open_material(self.of(scope, form.kid_in(sealed)), scope, uid, sealed)

    # --- versions --------------------------------------------------------------------------------------------------

    def newest(self, scope: Scope) -> form.Wrapping:
        """The version that protects new data.  Raises Unavailable."""
        view = self._core.view(scope.tenant)
        version = view.wrapping.get(l3_name(scope.service))
        if version is None:
            raise Unavailable("not-loaded", "the service has no active key yet")
        self._check((scope.tenant, scope.service, version), Operation.WRAP)
        return self._wrapping(view.keys[(l3_name(scope.service), version)].kid)

    def of(self, scope: Scope, kid: bytes) -> form.Wrapping:
        """The version that ``kid`` names.

        Raises Integrity (opaque) where the service has none of that kid, Unavailable where it may not be used now or is
        not in memory.
        """
        for version, row in self._versions(scope):
            if row.kid == kid.hex():
                self._check((scope.tenant, scope.service, version), Operation.UNWRAP)
                return self._wrapping(row.kid)
        raise Integrity.opaque()

    def may_still(self, uses: set[Use]) -> bool:
        """Whether what every one of ``uses`` was about may be opened at this moment: a version that has been rotated
        away since it sealed something may."""
        return all(self._verdict(use, Operation.UNWRAP).allowed for use in uses)

    def _versions(self, scope: Scope) -> Iterator[tuple[int, KeyRow]]:
        """All of the service, the oldest first."""
        for (key, version), row in sorted(self._core.view(scope.tenant).keys.items()):
            if key == l3_name(scope.service):
                yield version, row

    def _verdict(self, use: Use, operation: Operation) -> Verdict:
        return context.may_use(self._core.shell.state, self._core.shell.now(), *use, operation)

    def _check(self, use: Use, operation: Operation) -> None:
        verdict = self._verdict(use, operation)
        if not verdict.allowed:
            raise Unavailable(verdict.reason, "this key may not be used here now")
        if (uses := used.get()) is not None:
            uses.add(use)

    def _wrapping(self, kid: str) -> form.Wrapping:
        held = self._core.keyring.need(kid)
        return form.Wrapping(held.cipher, kid_bytes(held.kid))

    # --- names -----------------------------------------------------------------------------------------------------

    def tokens_to_find(self, scope: Scope, name: str) -> list[bytes]:
        """One for each version of the service that may be used now.

        Raises Unavailable where one of them is not in memory: what is not found might be under it.
        """
        return [form.name_token(key.secret.reveal(), scope, name) for key in self._usable(scope)]

    def tokens_to_store(self, scope: Scope, names: tuple[str, ...]) -> tuple[bytes, ...]:
        """Of the oldest version that may be used and of the newest; a name given twice once.  Raises Unavailable."""
        if not names:
            return ()
        usable = self._usable(scope)
        keys = {key.kid: key.secret.reveal() for key in (usable[0], usable[-1])}.values()
        return tuple(dict.fromkeys(form.name_token(key, scope, name) for name in names for key in keys))

    def _usable(self, scope: Scope) -> list[HeldKey]:
        """At least one, the oldest first."""
        found = [
            self._core.keyring.need(row.kid)
            for version, row in self._versions(scope)
            if self._verdict((scope.tenant, scope.service, version), Operation.UNWRAP).allowed
        ]
        if not found:
            raise Unavailable("not-usable", "no key of the service may be used here now")
        return found
