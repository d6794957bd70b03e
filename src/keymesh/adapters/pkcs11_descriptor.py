"""Where a root key is in a PKCS#11 token, as its binding or seal records it, and how this machine reaches that token.

The record names token and key, by label; it holds no PIN and no library, which are each region's own
(``pkcs11_config``): in ``pkcs11.json`` in the Core's directory, or in its configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from keymesh.adapters.pkcs11_config import TOKEN_MAX_BYTES, TOKENS_FILE, TokenConfig, TokensFile, check_text
from keymesh.adapters.pkcs11_l1 import Pkcs11L1
from keymesh.adapters.pkcs11_messages import LABEL_MAX_CHARS
from keymesh.adapters.pkcs11_process import TokenAccess, TokenProcess
from keymesh.core.l1 import PKCS11, L1Unreachable, ProviderDescriptor
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import check_tenant

_MAX_BYTES: Final = 64 * 1024


class Pkcs11Descriptor(ProviderDescriptor, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``key``: its label.  ``replicas`` has the one entry ``{"pkcs11": "pkcs11:token=..."}``; ``ca_pem`` is empty."""

    token: str
    serial: str = ""

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.provider != PKCS11:
            raise Refused.bad_field("provider", PKCS11)
        check_text("key", self.key, max_bytes=LABEL_MAX_CHARS)
        check_text("token", self.token, max_bytes=TOKEN_MAX_BYTES)
        check_text("serial", self.serial, max_bytes=TOKEN_MAX_BYTES, least=0)
        if list(self.replicas) != [PKCS11] or self.ca_pem:
            raise Refused.bad_field("replicas", f"{PKCS11} alone, and no ca_pem")


class Tokens:
    """The tokens of one Core, a process each, started when first asked.  ``configured`` None: by ``pkcs11.json``."""

    def __init__(self, directory: Path, configured: tuple[TokenConfig, ...] | None = None) -> None:
        self._directory: Final = directory
        self._configured: Final = configured
        self._open: dict[bytes, TokenProcess] = {}

    def open_tenants(self, descriptor: Pkcs11Descriptor, tenant: str) -> Pkcs11L1:
        """A key in a token of ``tenant``'s.  The token is looked up for each call, so that a file put right later
        counts.  Raises Refused.
        """
        descriptor.check()
        owner = check_tenant(tenant)
        return Pkcs11L1(lambda: self._find(descriptor, owner), descriptor.key)

    def open_seals(self, descriptor: Pkcs11Descriptor) -> Pkcs11L1:
        """The same in a token for seals."""
        descriptor.check()
        return Pkcs11L1(lambda: self._find(descriptor, None), descriptor.key)

    def _find(self, descriptor: Pkcs11Descriptor, tenant: str | None) -> TokenProcess:
        """None: for seals.  Raises L1Unreachable for a token that is not known here, or is somebody else's."""
        known = self._configured if self._configured is not None else self._read()
        for config in known:
            if not config.is_for(tenant):
                continue
            if config.token == descriptor.token and descriptor.serial in ("", config.serial):
                return self._process(config)
        raise L1Unreachable("pkcs11-not-configured", "that token is not configured here")

    def _process(self, config: TokenConfig) -> TokenProcess:
        key = strict_json.dumps(config)
        if key not in self._open:
            config.check()
            access = TokenAccess(
                module=Path(config.module),
                token=config.token,
                serial=config.serial,
                pin_file=self._directory / config.pin_file,
                marks=self._directory,
                env=config.env,
                deadline_s=config.deadline_ms / 1000,
            )
            self._open[key] = TokenProcess(access)
        return self._open[key]

    def _read(self) -> tuple[TokenConfig, ...]:
        path = self._directory / TOKENS_FILE
        try:
            raw = path.read_bytes()
        except OSError as missing:
            raise L1Unreachable("pkcs11-not-configured", f"no {TOKENS_FILE} here") from missing
        try:
            read = strict_json.decode(raw, TokensFile, max_bytes=_MAX_BYTES)
            read.check()
        except Refused as bad:
            raise L1Unreachable("pkcs11-not-configured", f"{TOKENS_FILE}: {bad.message}") from bad
        return read.tokens

    async def close(self) -> None:
        """End every worker."""
        for process in self._open.values():
            await process.close()
