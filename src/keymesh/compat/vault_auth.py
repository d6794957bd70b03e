"""Vault's ``auth``: logins and what a token may ask of itself, in Vault's words."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from keymesh.access.identity import Identity
from keymesh.compat.vault_form import UNSUPPORTED_PATH, Fields, VaultError
from keymesh.compat.vault_limits import TTL_MAX_S
from keymesh.compat.vault_tokens import SECRET_MAX_CHARS, Denied, Token, Tokens
from keymesh.model.time import Instant

BAD_APPROLE: Final = "invalid role or secret ID"
BAD_CERTIFICATE: Final = "invalid certificate or no client certificate supplied"
_SPAN: Final = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,8})m)?(?:([0-9]{1,9})s?)?")

Shown = tuple[Identity, int]
"""Whose certificate was shown, and until when (Unix ms) it is valid."""
Identify = Callable[[bytes], Shown | None]
"""DER -> that; None for a certificate that names nobody of this mesh."""


class Auth:
    """Logins over ``tokens``, of a process in ``region``."""

    def __init__(self, tokens: Tokens, region: str, identify: Identify) -> None:
        self._tokens = tokens
        self._region = region
        self._identify = identify

    def login(
        self, path: tuple[str, ...], asked: Fields, *, certificate: bytes | None, peer: str, now: Instant
    ) -> tuple[dict[str, Any], Token]:
        """What stands under ``auth`` of the answer.  Raises VaultError, TooMany."""
        try:
            match path:
                case ("approle", "login"):
                    role_id = asked.text("role_id", max_chars=SECRET_MAX_CHARS)
                    secret_id = asked.text("secret_id", max_chars=SECRET_MAX_CHARS)
                    secret, token = self._tokens.login_approle(role_id, secret_id, peer=peer, now=now)
                case ("cert", "login"):
                    name = asked.text("name", max_chars=SECRET_MAX_CHARS)
                    identity, not_after = (certificate and self._identify(certificate)) or (None, 0)
                    secret, token = self._tokens.login_certificate(
                        identity, not_after, name, region=self._region, peer=peer, now=now
                    )
                case _:
                    raise VaultError(404, UNSUPPORTED_PATH)
        except Denied:
            raise VaultError(400, BAD_CERTIFICATE if path[0] == "cert" else BAD_APPROLE) from None
        return shown_auth(secret, token, now), token

    def renew(self, secret: str, token: Token, asked: Fields, now: Instant) -> dict[str, Any]:
        """Raises VaultError, Refused."""
        increment = asked.take("increment")
        self._tokens.renew(token, None if increment in (None, "", 0, "0", "0s") else span_ms(increment), now=now)
        return shown_auth(secret, token, now)

    def revoke(self, secret: str) -> None:
        """Raises Refused."""
        self._tokens.revoke(secret)


def span_ms(value: object) -> int:
    """Seconds, or a text like ``1h30m``.  Raises VaultError."""
    if type(value) is int:
        value = str(value)
    found = _SPAN.fullmatch(value) if isinstance(value, str) and value else None
    if found is None:
        raise VaultError(400, "increment: seconds, or a duration like 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    span_s = hours * 3_600 + minutes * 60 + seconds
    if not 0 < span_s <= TTL_MAX_S:
        raise VaultError(400, f"increment: 1 to {TTL_MAX_S} seconds")
    return span_s * 1_000


def shown_auth(secret: str, token: Token, now: Instant) -> dict[str, Any]:
    """A login's or a renewal's answer."""
    return {
        "client_token": secret,
        "accessor": token.accessor,
        "policies": [token.grant.name],
        "token_policies": [token.grant.name],
        "metadata": _meta(token),
        "lease_duration": token.left_ms(now) // 1_000,
        "renewable": token.renewable,
        "entity_id": "",
        "token_type": "service",
        "orphan": True,
        "mfa_requirement": None,
        "num_uses": 0,
    }


def shown_token(secret: str, token: Token, now: Instant) -> dict[str, Any]:
    """What a token is told of itself."""
    return {
        "accessor": token.accessor,
        "creation_time": token.issued // 1_000,
        "creation_ttl": token.ttl_ms // 1_000,
        "display_name": token.grant.name,
        "entity_id": "",
        "expire_time": None if token.until is None else _utc(token.until),
        "explicit_max_ttl": 0,
        "id": secret,
        "issue_time": _utc(token.issued),
        "meta": _meta(token),
        "num_uses": 0,
        "orphan": True,
        "path": token.path,
        "policies": [token.grant.name],
        "renewable": token.renewable,
        "ttl": token.left_ms(now) // 1_000,
        "type": "service",
    }


def _meta(token: Token) -> dict[str, str]:
    grant = token.grant
    return {
        "role_name": grant.name,
        "tenant": grant.tenant,
        "services": ",".join(grant.services),
        "rights": ",".join(grant.rights),
    }


def _utc(at: Instant) -> str:
    return datetime.fromtimestamp(at / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
