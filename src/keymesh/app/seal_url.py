"""How a seal's key is named: ``file``, ``openbao:...`` (``app.l1_openbao``) or ``pkcs11:...`` (``app.l1_pkcs11``)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from keymesh.app import l1_openbao, l1_pkcs11
from keymesh.core.seals import Kind
from keymesh.model.errors import Refused

FORMS: Final = f"file, {l1_openbao.FORM}, or {l1_pkcs11.FORM}"
_SCHEMES: Final = {Kind.OPENBAO: l1_openbao.SCHEME, Kind.PKCS11: l1_pkcs11.SCHEME}


def check_seal_url(field: str, text: str) -> Kind:
    """The kind that ``text`` names; nothing is read.  Raises Refused naming ``field``."""
    if text == Kind.FILE.value:
        return Kind.FILE
    for kind, scheme in _SCHEMES.items():
        if text.startswith(scheme):
            return kind
    raise Refused.bad_field(field, FORMS)


def parse_seal_url(field: str, text: str) -> tuple[Kind, dict[str, Any]]:
    """What the record keeps of it.  Raises Refused naming ``field`` or its part."""
    kind = check_seal_url(field, text)
    try:
        match kind:
            case Kind.OPENBAO:
                return kind, dict(msgspec.to_builtins(l1_openbao.parse_openbao(text)))
            case Kind.PKCS11:
                return kind, dict(msgspec.to_builtins(l1_pkcs11.parse_pkcs11(text)))
            case _:
                return kind, {}
    except Refused as bad:
        part = (bad.field or "").removeprefix("l1").removeprefix(".")
        raise Refused(bad.code, bad.message, field=f"{field}.{part}" if part else field) from bad
