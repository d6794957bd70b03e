"""Which other users of a host may use which services of its Edge, as a configuration or a command line says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keymesh.model.errors import Refused
from keymesh.model.ids import check_service, check_tenant

UID_MAX: Final = 2**32 - 2
CALLERS_MAX: Final = 1_024

Names = tuple[str, str]
"""(tenant, service)"""


def parse_callers(words: Sequence[str]) -> dict[int, frozenset[Names]]:
    """``UID=TENANT/SERVICE[,...]`` each.  Raises Refused naming ``caller``."""
    found: dict[int, frozenset[Names]] = {}
    if len(words) > CALLERS_MAX:
        raise Refused.bad_field("caller", f"at most {CALLERS_MAX}")
    for word in words:
        uid, equals, services = word.partition("=")
        if not equals or not uid.isascii() or not uid.isdigit() or int(uid) > UID_MAX:
            raise Refused.bad_field("caller", "UID=TENANT/SERVICE[,TENANT/SERVICE...], the uid a number")
        if int(uid) in found:
            raise Refused.bad_field("caller", f"uid {uid} twice")
        found[int(uid)] = frozenset(parse_names("caller", name) for name in services.split(","))
    return found


def parse_names(field: str, text: str) -> Names:
    """TENANT/SERVICE.  Raises Refused naming ``field``."""
    tenant, slash, service = text.partition("/")
    if not slash:
        raise Refused.bad_field(field, "TENANT/SERVICE")
    return check_tenant(tenant), check_service(service)
