"""How the CLI names a root key in a PKCS#11 token: a part of RFC 7512.

    pkcs11:token=LABEL;object=KEY[;serial=SERIAL]

Values are percent-encoded.  Which library reaches the token and with which PIN is each Core's own (``pkcs11.json`` in
its directory), never recorded: a ``module-path`` or ``pin-value`` here is refused.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

from keymesh.adapters.pkcs11_config import TOKENS_FILE
from keymesh.adapters.pkcs11_descriptor import Pkcs11Descriptor
from keymesh.core.l1 import PKCS11
from keymesh.model.errors import Refused

SCHEME: Final = "pkcs11:"
FORM: Final = "pkcs11:token=LABEL;object=KEY[;serial=SERIAL]"
_MAX_CHARS: Final = 1_000
_FIELDS: Final = {"token": "l1.token", "object": "l1.object", "serial": "l1.serial"}


def parse_pkcs11(uri: str) -> Pkcs11Descriptor:
    """What a binding records.  Raises Refused naming ``l1`` or its part: ``l1.token``, ``l1.object``, ``l1.serial``."""
    if not uri.startswith(SCHEME) or len(uri) > _MAX_CHARS:
        raise Refused.bad_field("l1", FORM)
    path, question, _ = uri.removeprefix(SCHEME).partition("?")
    if question:
        raise Refused.bad_field("l1", f"{FORM}; library and PIN belong in each Core's own {TOKENS_FILE}")
    given: dict[str, str] = {}
    for attribute in path.split(";"):
        name, equals, value = attribute.partition("=")
        if not equals or name not in _FIELDS or name in given:
            raise Refused.bad_field("l1", f"{FORM}, each part once")
        given[name] = _plain(_FIELDS[name], value)
    if "token" not in given or "object" not in given:
        raise Refused.bad_field("l1", FORM)
    made = Pkcs11Descriptor(
        provider=PKCS11,
        key=given["object"],
        token=given["token"],
        serial=given.get("serial", ""),
        replicas={PKCS11: token_uri(given["token"], given.get("serial", ""))},
        ca_pem="",
    )
    made.check()
    return made


def token_uri(token: str, serial: str) -> str:
    """The token, as RFC 7512 names it."""
    return f"{SCHEME}token={quote(token, safe='')}" + (f";serial={quote(serial, safe='')}" if serial else "")


def _plain(field: str, value: str) -> str:
    try:
        plain = unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise Refused.bad_field(field, "UTF-8, percent-encoded") from None
    if not plain or not plain.isprintable():
        raise Refused.bad_field(field, "printable text")
    return plain
