"""The Core's section ``[seals]``: how its MasterKey is opened, and which PKCS#11 tokens it reaches."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from keymesh.adapters.pkcs11_config import TokenConfig, TokensFile
from keymesh.model.errors import Refused
from keymesh.model.limits import SEALS_MAX

DEADLINE_MIN_MS: Final = 100
DEADLINE_MAX_MS: Final = 60_000
CHECK_MIN_MS: Final = 1_000
CHECK_MAX_MS: Final = 86_400_000


class SealsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``order``: seals to try first, by id or kind; the rest follow as they were added.

    ``initial``: the seals that a region without a MasterKey makes its first one under: ``file`` (development), or as
    ``region add-seal --key`` has it (``openbao:...``, ``pkcs11:...``).  ``deadline_ms``: for one try of one seal, 100
    to 60000.  ``check_every_ms``: how often each seal is tried while the region is open, 1000 to a day.  ``tokens``:
    as in ``pkcs11.json``, which is not read then.
    """

    order: tuple[str, ...] = ()
    initial: tuple[str, ...] = ("file",)
    deadline_ms: int = 5_000
    check_every_ms: int = 300_000
    tokens: tuple[TokenConfig, ...] | None = None

    def check(self) -> None:
        """Raises Refused naming the field."""
        if len(self.order) > SEALS_MAX or len(set(self.order)) != len(self.order):
            raise Refused.bad_field("order", f"at most {SEALS_MAX} ids or kinds, each once")
        if not 1 <= len(self.initial) <= SEALS_MAX:
            raise Refused.bad_field("initial", f"1 to {SEALS_MAX} seals")
        for n, url in enumerate(self.initial):
            if url != "file" and not url.startswith(("openbao:", "pkcs11:")):  # read whole when it is used
                raise Refused.bad_field(f"initial[{n}]", "file, openbao:... or pkcs11:...")
        if not DEADLINE_MIN_MS <= self.deadline_ms <= DEADLINE_MAX_MS:
            raise Refused.bad_field("deadline_ms", f"{DEADLINE_MIN_MS} to {DEADLINE_MAX_MS}")
        if not CHECK_MIN_MS <= self.check_every_ms <= CHECK_MAX_MS:
            raise Refused.bad_field("check_every_ms", f"{CHECK_MIN_MS} to {CHECK_MAX_MS}")
        if self.tokens is not None:
            TokensFile(tokens=self.tokens).check()
