"""What ``keymesh doctor`` observes of an issuer of tokens: its key set, had as a role has it; the certificate there.

Its clock is not judged: a cache before it may answer with the time at which it was filled.  Needs the package that
verifies tokens, so it is imported only where an issuer is configured.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from keymesh.adapters.jwk import parse_jwks
from keymesh.adapters.jwks_source import FileSource
from keymesh.app.config_tokens import IssuerSection
from keymesh.app.doctor_remote import Seen, see_tls
from keymesh.app.token_door import key_source
from keymesh.model.errors import KeymeshError


async def see_issuer(section: IssuerSection, url: str, tls: ssl.SSLContext) -> Seen:
    """Of ``jwks_url``.  Raises what the network does; an answer that is of no use is ``trouble``."""
    source = key_source(section)
    parts = urlsplit(url)
    seen = await see_tls(parts.hostname or "", parts.port or 443, tls)
    try:
        _judge_keys(seen, await source.load(), section.algorithm)
    except KeymeshError as failed:
        seen.trouble = f"no key set: {failed.message}"
    return seen


def see_key_file(path: Path, algorithm: str) -> Seen:
    """Of ``jwks_file``."""
    seen = Seen()
    try:
        _judge_keys(seen, FileSource(path).read(), algorithm)
    except KeymeshError as failed:
        seen.trouble = f"no key set: {failed.message}"
    return seen


def _judge_keys(seen: Seen, raw: bytes, algorithm: str) -> None:
    """An issuer none of whose keys can verify what it signs lets nobody in.  Raises Refused: it is no key set."""
    keys = parse_jwks(raw, algorithm)
    if keys:
        seen.notes.append(f"{len(keys)} key{'s' * (len(keys) > 1)} for {algorithm}")
    else:
        seen.trouble = f"its key set has no key for {algorithm}"
