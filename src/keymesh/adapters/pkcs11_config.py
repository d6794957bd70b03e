"""How one machine reaches PKCS#11 tokens, as ``pkcs11.json`` or a configuration has it; nothing is opened here.

    {"tokens": [{"token": "customer", "tenant": "acme", "module": "/usr/lib/softhsm/libsofthsm2.so",
                 "pin_file": "customer.pin"}]}

Each token is for one tenant's L1 (``tenant``) or for the region's own seals (``"seal": true``): a tenant's binding,
which names a token and a key by label, finds the tenant's tokens alone.  A ``pin_file`` that is not absolute lies in
the Core's directory.  ``serial`` tells tokens of one label apart, ``env`` is for the library alone, ``deadline_ms``
(default 5 000) bounds each call.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from msgspec import Struct

from keymesh.model.errors import Refused
from keymesh.model.ids import check_tenant

TOKENS_FILE: Final = "pkcs11.json"
TOKENS_MAX: Final = 64
TOKEN_MAX_BYTES: Final = 32  # CK_TOKEN_INFO
DEADLINE_MIN_MS: Final = 100
DEADLINE_MAX_MS: Final = 60_000
ENV_MAX: Final = 16


class TokenConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One token as this machine reaches it; see above."""

    token: str
    module: str
    pin_file: str
    tenant: str = ""
    seal: bool = False
    serial: str = ""
    env: dict[str, str] = {}
    deadline_ms: int = 5_000

    def check(self) -> None:
        """Raises Refused naming the field."""
        check_text("token", self.token, max_bytes=TOKEN_MAX_BYTES)
        check_text("serial", self.serial, max_bytes=TOKEN_MAX_BYTES, least=0)
        if bool(self.tenant) is self.seal:
            raise Refused.bad_field("tenant", "the tenant whose token it is, or seal = true, and not both")
        if self.tenant:
            check_tenant(self.tenant)
        if not Path(self.module).is_absolute():
            raise Refused.bad_field("module", "an absolute path")
        if not self.pin_file:
            raise Refused.bad_field("pin_file", "a file that only the process can read")
        if not DEADLINE_MIN_MS <= self.deadline_ms <= DEADLINE_MAX_MS:
            raise Refused.bad_field("deadline_ms", f"{DEADLINE_MIN_MS} to {DEADLINE_MAX_MS}")
        if len(self.env) > ENV_MAX or any("\0" in name + value or "=" in name for name, value in self.env.items()):
            raise Refused.bad_field("env", f"at most {ENV_MAX} variables")

    def is_for(self, tenant: str | None) -> bool:
        """Whether it is that tenant's; None: for seals."""
        return self.seal and not self.tenant if tenant is None else self.tenant == tenant and not self.seal


class TokensFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tokens: tuple[TokenConfig, ...]

    def check(self) -> None:
        """Raises Refused naming the field."""
        if len(self.tokens) > TOKENS_MAX:
            raise Refused.bad_field("tokens", f"at most {TOKENS_MAX}")
        for config in self.tokens:
            config.check()
        if len({(config.token, config.serial) for config in self.tokens}) != len(self.tokens):
            raise Refused.bad_field("tokens", "each token once")
        labels = Counter(config.token for config in self.tokens)
        if any(labels[config.token] > 1 and not config.serial for config in self.tokens):
            raise Refused.bad_field("tokens", "a serial wherever a label comes twice")  # else one token, two owners


def check_text(field: str, value: str, *, max_bytes: int, least: int = 1) -> str:
    """Raises Refused naming ``field``."""
    if not least <= len(value.encode("utf-8", "replace")) <= max_bytes or not value.isprintable():
        raise Refused.bad_field(field, f"{least} to {max_bytes} bytes of printable text")
    return value
