"""Certificates live a day and are renewed at half their life, without a restart.

A process that has its issuing CA's key renews its own certificate; the key stays the same kind but is new, the identity
is the one that the certificate had.  For one that has not, somebody else replaces the file, and it re-reads that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from keymesh.adapters import key_files, pki
from keymesh.adapters.key_files import read_private
from keymesh.adapters.pki import parse_certificates
from keymesh.adapters.tls import Credentials
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant

log = logging.getLogger("keymesh.renewal")

CHECK_S = 60.0


def renew(credentials: Credentials, authority_file: Path, mesh: str) -> None:
    """A fresh key and certificate for the same identity, shown from the next handshake on."""
    authority = key_files.load_authority(authority_file, mesh=MeshName(mesh))
    identity = pki.identity_of(credentials.certificate, MeshName(mesh))
    key = pki.new_tls_key()
    now = Instant(time.time_ns() // 1_000_000)
    leaf = pki.issue_leaf(authority, identity=identity, public_key=key.public_key(), now=now)
    key_files.write_identity(credentials.identity_file, key, [leaf, authority.certificate])
    credentials.reload()
    log.info("certificate renewed", extra={"fields": {"identity": str(identity)}})


def renew_if_due(credentials: Credentials, authority_file: Path, mesh: str) -> bool:
    due = pki.needs_renewal(credentials.certificate, Instant(time.time_ns() // 1_000_000))
    if due:
        renew(credentials, authority_file, mesh)
    return due


def reload_if_replaced(credentials: Credentials, mesh: str) -> bool:
    """Show the certificate that now lies in the file.

    Raises Refused, and goes on with the one at hand, where it is somebody else's, or no key and certificate.
    """
    found = parse_certificates(read_private(credentials.identity_file))[0]
    if found == credentials.certificate:
        return False
    name = MeshName(mesh)
    if pki.identity_of(found, name) != pki.identity_of(credentials.certificate, name):
        raise Refused.bad_field("tls_file", "now holds another identity's certificate")
    credentials.reload()
    log.info("certificate re-read", extra={"fields": {"identity": str(pki.identity_of(found, name))}})
    return True


async def keep_certificate_fresh(credentials: Credentials, authority_file: Path | None, mesh: str) -> None:
    """For ever; a failure is logged and tried again, since the certificate has half its life left.

    Without an ``authority_file`` it is renewed by somebody else.
    """
    while True:
        try:
            if authority_file is None:
                reload_if_replaced(credentials, mesh)
            else:
                renew_if_due(credentials, authority_file, mesh)
        except Exception:
            log.exception("certificate not renewed")
        await asyncio.sleep(CHECK_S)
