"""A Core's calls to its tenants' L1s: by replica, within the budget of each account (``core.l1_budget``).

Decides nothing about leases: it keeps a no apart from silence, and throttling is silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from keymesh.adapters.l1_providers import descriptor_of, open_l1
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.tls import Credentials
from keymesh.control.rows import BindingRow
from keymesh.core.l1 import L1Provider, L1Unreachable, ProviderDescriptor
from keymesh.core.l1_budget import Budget
from keymesh.model.errors import Refused
from keymesh.model.time import Instant

log = logging.getLogger("keymesh.core.keys")

THROTTLED: Final = "throttled"
BUDGET: Final = "l1-budget"


class CoreL1:
    """``bindings_of(tenant)``: its applied bindings, by id."""

    def __init__(
        self,
        *,
        region: str,
        credentials: Credentials,
        tokens: Tokens,
        now: Callable[[], Instant],
        bindings_of: Callable[[str], Mapping[str, BindingRow]],
    ) -> None:
        self._region, self._credentials, self._tokens = region, credentials, tokens
        self._now, self._bindings_of = now, bindings_of
        self.budget: Final = Budget()
        self.providers: dict[tuple[str, str, str], L1Provider] = {}

    async def wrap(self, namespace: str, binding_id: str, e: bytes) -> bytes:
        """By the replica near here.  Raises as ``L1Provider.wrap``."""
        near = self.descriptor(namespace, binding_id).replica_for(self._region)
        return await self._within_budget(namespace, binding_id, near, lambda provider: provider.wrap(e), urgent=True)

    async def close(self) -> None:
        for provider in self.providers.values():
            await provider.close()

    def descriptor(self, namespace: str, binding_id: str) -> ProviderDescriptor:
        row = self._bindings_of(namespace).get(binding_id)
        if row is None:
            raise Refused("unknown-binding", "that binding is not in the applied state")
        return descriptor_of(row.provider, row.descriptor)

    def _provider(self, namespace: str, binding_id: str, replica: str) -> L1Provider:
        descriptor = self.descriptor(namespace, binding_id)
        key = (namespace, binding_id, replica)
        if key not in self.providers:
            try:
                opened = open_l1(descriptor, replica, self._credentials, self._tokens, tenant=namespace)
            except Refused as bad:  # often this machine's own files: their names are in the message, no more of them
                log.warning("L1 not opened", extra={"fields": {"tenant": namespace, "reason": bad.message}})
                raise
            self.providers[key] = opened
        return self.providers[key]

    async def unwrap(self, namespace: str, binding_id: str, blob: bytes, replica: str) -> bytearray:
        """By one replica, within its account's budget, which a probe does not use up."""
        return bytearray(
            await self._within_budget(
                namespace, binding_id, replica, lambda provider: provider.unwrap(blob), urgent=False
            )
        )

    async def unwrap_somewhere(self, namespace: str, binding_id: str, blob: bytes) -> bytearray:
        """By the replica near here, else by the others: one that is silent keeps nothing closed that another opens.

        One that denies is believed.  Raises L1Denied, L1Unreachable as the first said, Integrity.
        """
        descriptor = self.descriptor(namespace, binding_id)
        near = descriptor.replica_for(self._region)
        silent: L1Unreachable | None = None
        for replica in (near, *sorted(r for r in descriptor.replicas if r != near)):
            try:
                return bytearray(
                    await self._within_budget(
                        namespace, binding_id, replica, lambda provider: provider.unwrap(blob), urgent=True
                    )
                )
            except L1Unreachable as away:
                silent = silent or away
        assert silent is not None
        raise silent

    async def _within_budget(
        self,
        namespace: str,
        binding_id: str,
        replica: str,
        call: Callable[[L1Provider], Awaitable[bytes]],
        *,
        urgent: bool,
    ) -> bytes:
        """Raises L1Unreachable also where the account's budget is spent for now: throttling is silence, never a no."""
        descriptor = self.descriptor(namespace, binding_id)
        account = f"{descriptor.provider} {descriptor.replicas[replica]}"
        wait_ms = self.budget.take(account, self._now(), urgent=urgent)
        if wait_ms is None:
            raise L1Unreachable(BUDGET, "too many calls to this L1 wait already")
        if wait_ms:
            await asyncio.sleep(wait_ms / 1_000)
        try:
            return await call(self._provider(namespace, binding_id, replica))
        except L1Unreachable as away:
            if away.code == THROTTLED:
                self.budget.throttled(account, self._now())
            raise
