"""Tokens of the Vault face: who may have one, what it allows, and when it ends.

A token is 32 random bytes that the client keeps; here stands its SHA-256.  It is of one tenant, for named services and
named rights, and lives in this process: after a restart clients log in again.  Logins are an AppRole's (role id and
secret id) or a certificate of the mesh; tokens that the operator wrote down by their hash end when the operator says.
A failed login is one answer; a caller that fails often waits.

Time is ``now``, an Instant: Unix ms that never go back.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from keymesh.access.identity import ClientIdentity, EdgeIdentity, Identity
from keymesh.compat.vault_limits import RIGHTS, TTL_DEFAULT_S, TTL_MAX_S
from keymesh.model.errors import Refused
from keymesh.model.ids import check_hex, check_label, check_service, check_tenant
from keymesh.model.time import Instant, is_live

EVERY: Final = "*"
TOKENS_MAX: Final = 10_000
TOKENS_OF_ROLE_MAX: Final = 1_000
ROLES_MAX: Final = 1_000
FAILURES_MAX: Final = 10
"""Of one caller, in a window; beyond, it waits for the window's end."""
FAILURES_WINDOW_MS: Final = 60_000
PEERS_MAX: Final = 4_096
SECRET_MAX_CHARS: Final = 512
_PREFIX: Final = "kmv."
_NOBODY: Final = hashlib.sha256(b"keymesh/vault/nobody").hexdigest()


class Grant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a role, a certificate or a written token allows: ``services`` of ``tenant`` (``*``: every one)."""

    name: str
    tenant: str
    services: tuple[str, ...]
    rights: tuple[str, ...]
    ttl_s: int = TTL_DEFAULT_S
    max_ttl_s: int = TTL_MAX_S


class AppRole(Grant, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``secret_id_sha256``: several while one takes another's place."""

    role_id: str
    secret_id_sha256: tuple[str, ...]


class CertificateRole(Grant, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose certificate: an Edge's of one service (``edge``), or a client's of the tenant (``client``), by name."""

    edge: str | None = None
    client: str | None = None


class WrittenToken(Grant, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``not_after``: Unix ms; None for one that ends when it is taken out."""

    token_sha256: str
    not_after: int | None = None


class VaultLogins(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everybody who may use the face."""

    approles: tuple[AppRole, ...] = ()
    certificates: tuple[CertificateRole, ...] = ()
    tokens: tuple[WrittenToken, ...] = ()


@dataclass(slots=True, kw_only=True)
class Token:
    """``until`` None: it ends when the operator takes it out.  ``not_beyond``: whatever is renewed."""

    grant: Grant
    accessor: str
    path: str
    issued: Instant
    ttl_ms: int
    until: Instant | None
    not_beyond: Instant | None
    renewable: bool

    def may(self, right: str, service: str | None) -> bool:
        """``service`` None: whichever."""
        grant = self.grant
        return right in grant.rights and (service is None or EVERY in grant.services or service in grant.services)

    def left_ms(self, now: Instant) -> int:
        return 0 if self.until is None else max(0, self.until - now)


class Denied(Exception):
    """No token, or not that one: one answer."""


class TooMany(Exception):
    """Of failures by this caller, or of tokens of this role."""


@dataclass(slots=True)
class _Failures:
    since: Instant
    count: int = 0


@dataclass(slots=True)
class Tokens:
    """All tokens of one process.  ``random``: fresh bytes; ``read``: the logins as they are now, checked.

    While they are the same, ``read`` returns the same object.  Tokens whose grant is not among them any more, or is
    another one, are gone.
    """

    random: Callable[[int], bytes]
    read: Callable[[], VaultLogins]
    _logins: VaultLogins = field(default_factory=VaultLogins)
    _issued: dict[str, Token] = field(default_factory=dict)
    _failures: OrderedDict[str, _Failures] = field(default_factory=OrderedDict)

    @property
    def logins(self) -> VaultLogins:
        """As they are now."""
        logins = self.read()
        if logins is not self._logins:
            self._logins = logins
            kept = {grant for grants in (logins.approles, logins.certificates) for grant in grants}
            self._issued = {key: token for key, token in self._issued.items() if token.grant in kept}
        return logins

    # --- logging in ------------------------------------------------------------------------------------------------

    def login_approle(self, role_id: str, secret_id: str, *, peer: str, now: Instant) -> tuple[str, Token]:
        """(token, what it is).  Raises Denied, TooMany."""
        self._check_failures(peer, now)
        given = _sha256(secret_id)
        role = next((role for role in self.logins.approles if role.role_id == role_id), None)
        secrets = (_NOBODY,) if role is None else role.secret_id_sha256
        if role is None or not any(hmac.compare_digest(secret, given) for secret in secrets):
            raise self._failed(peer, now)
        return self._issue(role, "auth/approle/login", now=now)

    def login_certificate(
        self, identity: Identity | None, not_after: int, name: str, *, region: str, peer: str, now: Instant
    ) -> tuple[str, Token]:
        """By the certificate shown, valid until ``not_after`` (Unix ms), to the role ``name`` or the first that fits.

        The token does not outlive it.  Another region's CA may name any tenant: it counts in its own region alone.
        Raises Denied, TooMany.
        """
        self._check_failures(peer, now)
        found = [role for role in self.logins.certificates if name in ("", role.name) and _fits(role, identity, region)]
        life_ms = not_after - now
        if not found or life_ms <= 0:
            raise self._failed(peer, now)
        return self._issue(found[0], "auth/cert/login", now=now, life_ms=life_ms)

    def _issue(self, grant: Grant, path: str, *, now: Instant, life_ms: int | None = None) -> tuple[str, Token]:
        self._sweep(now)
        if len(self._issued) >= TOKENS_MAX:
            raise TooMany(f"at most {TOKENS_MAX} tokens are given at a time")
        if sum(token.grant == grant for token in self._issued.values()) >= TOKENS_OF_ROLE_MAX:
            raise TooMany(f"at most {TOKENS_OF_ROLE_MAX} tokens of one role are given at a time")
        longest_ms = grant.max_ttl_s * 1_000 if life_ms is None else min(grant.max_ttl_s * 1_000, life_ms)
        ttl_ms = min(grant.ttl_s * 1_000, longest_ms)
        secret = _PREFIX + _text(self.random(32))
        token = Token(
            grant=grant,
            accessor=_text(self.random(18)),
            path=path,
            issued=now,
            ttl_ms=ttl_ms,
            until=Instant(now + ttl_ms),
            not_beyond=Instant(now + longest_ms),
            renewable=True,
        )
        self._issued[_sha256(secret)] = token
        return secret, token

    def _sweep(self, now: Instant) -> None:
        dead = [key for key, token in self._issued.items() if token.until is not None and not is_live(token.until, now)]
        for key in dead:
            del self._issued[key]

    # --- failures --------------------------------------------------------------------------------------------------

    def _check_failures(self, peer: str, now: Instant) -> None:
        seen = self._failures.get(peer)
        if seen is not None and now - seen.since < FAILURES_WINDOW_MS and seen.count >= FAILURES_MAX:
            raise TooMany("too many failed logins; wait a minute")

    def _failed(self, peer: str, now: Instant) -> Denied:
        seen = self._failures.get(peer)
        if seen is None or now - seen.since >= FAILURES_WINDOW_MS:
            seen = self._failures[peer] = _Failures(now)
        seen.count += 1
        self._failures.move_to_end(peer)
        while len(self._failures) > PEERS_MAX:
            self._failures.popitem(last=False)
        return Denied()

    # --- tokens in use ---------------------------------------------------------------------------------------------

    def find(self, secret: str, *, now: Instant) -> Token:
        """Raises Denied for one that never was, has ended, or was revoked."""
        if not secret or len(secret) > SECRET_MAX_CHARS:
            raise Denied
        key, logins = _sha256(secret), self.logins
        token = self._issued.get(key)
        if token is None:
            return self._written(logins, key, now=now)
        if token.until is not None and not is_live(token.until, now):
            del self._issued[key]
            raise Denied
        return token

    def _written(self, logins: VaultLogins, key: str, *, now: Instant) -> Token:
        one = next((one for one in logins.tokens if hmac.compare_digest(one.token_sha256, key)), None)
        if one is None or (one.not_after is not None and now >= one.not_after):
            raise Denied
        left = None if one.not_after is None else one.not_after - now
        return Token(
            grant=one,
            accessor=key[:24],
            path="auth/token/create",
            issued=now,
            ttl_ms=left or 0,
            until=None if left is None else Instant(now + left),
            not_beyond=None,
            renewable=False,
        )

    def renew(self, token: Token, increment_ms: int | None, *, now: Instant) -> None:
        """From now on for its ttl, or for ``increment_ms``; never beyond its longest life.  Raises Refused."""
        if not token.renewable or token.not_beyond is None:
            raise Refused("not-renewable", "lease is not renewable")
        wanted = token.grant.ttl_s * 1_000 if increment_ms is None else increment_ms
        token.until = Instant(min(now + wanted, token.not_beyond))
        token.ttl_ms = token.until - now

    def revoke(self, secret: str) -> None:
        """A written one ends only when it is taken out of where it was written.  Raises Refused."""
        if self._issued.pop(_sha256(secret), None) is None:
            raise Refused("not-revocable", "this token is the operator's to take out of the credentials file")


# --- what may be written ---------------------------------------------------------------------------------------------


def check_logins(logins: VaultLogins) -> None:
    """Raises Refused naming what is wrong."""
    kinds: tuple[tuple[str, Sequence[Grant]], ...] = (
        ("approles", logins.approles),
        ("certificates", logins.certificates),
        ("tokens", logins.tokens),
    )
    for kind, grants in kinds:
        if len(grants) > ROLES_MAX:
            raise Refused.bad_field(kind, f"at most {ROLES_MAX}")
        if len({grant.name for grant in grants}) != len(grants):
            raise Refused.bad_field(f"{kind}.name", "each once")
        for grant in grants:
            _check_grant(kind, grant)
    if len({role.role_id for role in logins.approles}) != len(logins.approles):
        raise Refused.bad_field("approles.role_id", "each once")
    for role in logins.approles:
        if not 8 <= len(role.role_id) <= SECRET_MAX_CHARS:
            raise Refused.bad_field(f"approles.{role.name}.role_id", f"8 to {SECRET_MAX_CHARS} characters")
        if not 1 <= len(role.secret_id_sha256) <= 8:
            raise Refused.bad_field(f"approles.{role.name}.secret_id_sha256", "1 to 8")
        for digest in role.secret_id_sha256:
            check_hex(f"approles.{role.name}.secret_id_sha256", digest, hex_bytes=32)
    for certificate in logins.certificates:
        names = [name for name in (certificate.edge, certificate.client) if name is not None]
        if len(names) != 1:
            raise Refused.bad_field(f"certificates.{certificate.name}", "either edge or client")
        check_label(f"certificates.{certificate.name}", names[0])
    for token in logins.tokens:
        check_hex(f"tokens.{token.name}.token_sha256", token.token_sha256, hex_bytes=32)


def _check_grant(kind: str, grant: Grant) -> None:
    check_label(f"{kind}.name", grant.name)
    check_tenant(grant.tenant)
    if not grant.services or not grant.rights:
        raise Refused.bad_field(f"{kind}.{grant.name}", "names services and rights")
    for service in grant.services:
        if service != EVERY:
            check_service(service)
    for right in grant.rights:
        if right not in RIGHTS:
            raise Refused.bad_field(f"{kind}.{grant.name}.rights", f"of {', '.join(RIGHTS)}")
    if not 0 < grant.ttl_s <= grant.max_ttl_s <= TTL_MAX_S:
        raise Refused.bad_field(f"{kind}.{grant.name}.ttl_s", f"1 to max_ttl_s, and that at most {TTL_MAX_S}")


def _fits(role: CertificateRole, identity: Identity | None, region: str) -> bool:
    match identity:
        case EdgeIdentity():
            is_named = identity.service == role.edge
        case ClientIdentity():
            is_named = identity.name == role.client
        case _:
            return False
    return is_named and (identity.region, identity.tenant) == (region, role.tenant)


def _b(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _sha256(text: str) -> str:
    return hashlib.sha256(_b(text)).hexdigest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
