"""How the CLI names a root key in OpenBao.

    openbao:https://HOST:PORT[,https://HOST:PORT...]/MOUNT/KEY?ca=FILE&cert=NAME
    openbao:https://HOST:PORT[,https://HOST:PORT...]/MOUNT/KEY?ca=FILE&approle=NAME

``FILE`` holds the CA certificates of the server, on this machine.  See ``adapters.openbao_descriptor`` for the logins.
Does not ask OpenBao: its credentials are the Cores'.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from keymesh.adapters.openbao import check_mount, check_name
from keymesh.adapters.openbao_descriptor import LOGINS, OpenBaoDescriptor
from keymesh.adapters.pki import parse_certificates
from keymesh.core.l1 import CA_PEM_MAX_CHARS, OPENBAO, check_l1_url
from keymesh.model.errors import Refused

SCHEME: Final = "openbao:"
FORM: Final = "openbao:https://HOST:PORT[,https://HOST:PORT...]/MOUNT/KEY?ca=FILE&cert=NAME (or approle=NAME)"
REPLICA: Final = "openbao"  # one cluster, whatever the region
_PLACE: Final = re.compile(r"openbao:(https://[^/?#]{1,2000})/([^?#]{1,600})/([^/?#]{1,100})\?([^?#]{1,5000})")


def parse_openbao(url: str) -> OpenBaoDescriptor:
    """What a tenant's L1 binding records.  Raises Refused naming ``l1`` or its part: ``l1.ca``, ``l1.key``, ..."""
    # Between endpoints only a comma: the slashes of "https://" must not end the first.
    match = _PLACE.fullmatch(url.replace(",https://", ","))
    if match is None:
        raise Refused.bad_field("l1", FORM)
    hosts, mount, key, query = match.groups()
    first, *others = hosts.split(",")
    endpoints = [first, *(f"https://{host}" for host in others)]
    for endpoint in endpoints:
        check_l1_url("l1.endpoint", endpoint)
    login, ca = _query(query)
    made = OpenBaoDescriptor(
        provider=OPENBAO,
        key=check_name("l1.key", key),
        mount=check_mount("l1.mount", mount),
        replicas={REPLICA: ",".join(endpoints)},
        ca_pem=_ca_pem(Path(ca)),
        login=login,
    )
    made.check()
    return made


def _query(text: str) -> tuple[str, str]:
    """(login, CA file)."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=4)
    except ValueError:
        raise Refused.bad_field("l1", FORM) from None
    given = dict(pairs)
    unknown = sorted(given.keys() - {"ca", *LOGINS})
    if unknown or len(given) != len(pairs):
        raise Refused.bad_field("l1", f"ca, {' and '.join(LOGINS)} are known, each once")
    if not given.get("ca"):
        raise Refused.bad_field("l1.ca", "the file of the server's CA certificates")
    named = [kind for kind in LOGINS if kind in given]
    if len(named) != 1:
        raise Refused.bad_field("l1", "one of cert=NAME and approle=NAME")
    name = check_name(f"l1.{named[0]}", given[named[0]])
    return f"{named[0]}:{name}", given["ca"]


def _ca_pem(file: Path) -> str:
    try:
        pem = file.read_bytes()
    except OSError as bad:
        raise Refused("not-found", f"l1.ca: {file} cannot be read: {bad.strerror}", field="l1.ca") from bad
    if len(pem) > CA_PEM_MAX_CHARS or not pem.isascii():
        raise Refused.bad_field("l1.ca", f"at most {CA_PEM_MAX_CHARS} ASCII characters")
    try:
        parse_certificates(pem)
    except Refused as bad:
        raise Refused.bad_field("l1.ca", "not PEM certificates") from bad
    return pem.decode("ascii")
