"""Bearer tokens checked: the rules of ``access.tokens`` over key sets that are kept fresh in the background.

One answer for whatever is wrong with a token; why is in the log.  An issuer that does not answer costs its people
their access once ``max_age`` has passed, and nobody else anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.access import token_nodes
from keymesh.access.identity import CoreIdentity, Identity, RegistryIdentity
from keymesh.access.token_keys import IssuerKeys
from keymesh.access.token_people import SPENT_MAX, PeopleRules, person_of, spenders
from keymesh.access.token_spent import Party, SpentTokens
from keymesh.access.tokens import (
    CERTIFICATE,
    Channel,
    Sound,
    TokenRules,
    check_claims,
    check_header,
    issuer_of,
    refusal,
)
from keymesh.adapters.jwk import VerifyKey, parse_jwks
from keymesh.adapters.jwks_source import FileSource, KeySource, UrlSource
from keymesh.app.config_tokens import IssuerSection
from keymesh.control.rows import Rows
from keymesh.crypto.jws import Jws, parse_jws
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import MeshName, TenantId
from keymesh.model.time import Instant, is_live

log = logging.getLogger("keymesh.tokens")

RETRY_S: Final = 10.0


@dataclass(slots=True)
class Issuer:
    """One issuer of people's tokens, where its keys are, and the ones that it has."""

    rules: PeopleRules
    source: KeySource
    keys: IssuerKeys[VerifyKey]
    refresh_s: float
    asking: asyncio.Task[bool] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AcceptedToken:
    """``dead_at``: with leeway.  ``issuer`` is None of a node's own; ``key`` is what it was verified with."""

    identity: Identity
    dead_at: Instant
    issuer: Issuer | None
    kid: str
    key: object


@dataclass(frozen=True, slots=True)
class Nodes:
    """Cores that show tokens of their own.  ``rows``: of the mesh, None while they are still being read."""

    registry: RegistryIdentity
    rows: Callable[[], Rows | None]


class TokenDoor:
    """``accept`` and ``still_accepts`` of ``http_bearer.TokenCheck``; ``keep`` runs beside the server."""

    def __init__(
        self, mesh: MeshName, issuers: Sequence[Issuer], *, now: Callable[[], Instant], nodes: Nodes | None = None
    ) -> None:
        self._mesh = mesh
        self._issuers = {issuer.rules.tokens.issuer: issuer for issuer in issuers}
        self._now = now
        self._nodes = nodes
        started = now()
        self._spent = {name: SpentTokens(since=started, most=SPENT_MAX) for name in self._issuers}
        # theirs are bound to a connection, so none is older
        self._spent_by_nodes = SpentTokens(since=Instant(0), most=token_nodes.SPENT_MAX)

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def accept(self, token: str, channel: Channel) -> AcceptedToken:
        """Who shows ``token`` on the connection that is ``channel``.

        1. It is a token, of an issuer that is configured, or of a node.  2. Its header agrees with the configuration.
        3. The key of its id verifies it.  4. Its claims are in order.  5. Its subject is somebody.
        6. Where it may serve once, it has not, and its party's share of the book has room.
        Raises Refused, the one answer; Unavailable while nodes are not known yet.
        """
        name = ""
        try:
            jws = parse_jws(token)
            issuer = self._issuers.get(issuer_of(jws))
            if issuer is not None:
                name = issuer.rules.issuer
                return await self._accept_person(issuer, jws, channel)
            return self._accept_node(jws, channel)
        except Refused as wrong:
            fields = {"issuer": name, "field": wrong.field or "", "reason": wrong.message}
            log.warning("token refused", extra={"fields": fields})
            raise refusal() from None

    async def _accept_person(self, issuer: Issuer, jws: Jws, channel: Channel) -> AcceptedToken:
        rules = issuer.rules
        kid = check_header(rules.tokens, jws)
        key = issuer.keys.find(kid, self._now())
        if key is None:
            await self._ask_for_unknown(issuer)
            key = issuer.keys.find(kid, self._now())
        if key is None:
            raise Refused.bad_field("kid", "no key of that id counts")
        if not key.verifies(jws.signed, jws.signature):
            raise Refused.bad_field("signature", "does not verify")
        now = self._now()
        sound = check_claims(rules.tokens, jws.claims, channel=channel, now=now)
        identity = person_of(rules, jws.claims, sound, mesh=self._mesh)
        accepted = AcceptedToken(identity, _dead_at(rules.tokens, sound), issuer, kid, key)
        # the issuer's clock may be ahead by its leeway: what it stamped before our start may look younger
        issued_at = Instant(sound.issued_at - rules.tokens.leeway_ms)
        if rules.tokens.once:
            book = self._spent[rules.tokens.issuer]
            self._spend(book, spenders(rules, sound, identity), sound, issued_at, accepted)
        return accepted

    def _accept_node(self, jws: Jws, channel: Channel) -> AcceptedToken:
        if self._nodes is None:
            raise Refused.bad_field("iss", "not an issuer that is configured")
        node = token_nodes.node_of(issuer_of(jws), self._mesh)
        rules = token_nodes.node_rules(node, audience=self._nodes.registry)
        kid = check_header(rules, jws)
        key_id, public_key = self._enrolled(node)
        if kid != key_id:
            raise Refused.bad_field("kid", "not the enrolled key")
        token_nodes.check_node_signature(jws, public_key)
        sound = check_claims(rules, jws.claims, channel=channel, now=self._now())
        token_nodes.check_subject(sound.subject, node)
        accepted = AcceptedToken(node, _dead_at(rules, sound), None, kid, public_key)
        self._spend(self._spent_by_nodes, token_nodes.spenders(node), sound, sound.issued_at, accepted)
        return accepted

    def _enrolled(self, node: CoreIdentity) -> tuple[str, bytes]:
        rows = None if self._nodes is None else self._nodes.rows()
        if rows is None:
            raise Unavailable("booting", "the control log is still being read")
        return token_nodes.enrolled_key(rows, node)

    def _spend(
        self, book: SpentTokens, parties: Sequence[Party], sound: Sound, issued_at: Instant, accepted: AcceptedToken
    ) -> None:
        assert sound.token_id is not None
        book.spend(sound.token_id, parties, issued_at=issued_at, dead_at=accepted.dead_at, now=self._now())

    def still_accepts(self, accepted: Any) -> bool:
        """Whether it has not expired, and the key that verified it still counts and is still that one."""
        assert isinstance(accepted, AcceptedToken)
        now = self._now()
        if not is_live(accepted.dead_at, now):
            return False
        if accepted.issuer is not None:
            return accepted.issuer.keys.find(accepted.kid, now) == accepted.key
        assert isinstance(accepted.identity, CoreIdentity)
        try:
            return self._enrolled(accepted.identity) == (accepted.kid, accepted.key)
        except KeymeshError:
            return False

    # --- keys --------------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Fetch every issuer's keys now, and again as configured, for ever."""
        await asyncio.gather(*(self._keep(issuer) for issuer in self._issuers.values()))

    async def _keep(self, issuer: Issuer) -> None:
        while True:
            fresh = await asyncio.shield(self._asking(issuer))
            await asyncio.sleep(issuer.refresh_s if fresh else min(RETRY_S, issuer.refresh_s))

    async def _ask_for_unknown(self, issuer: Issuer) -> None:
        """Ask now, or wait for a request that is out, unless the last one was a moment ago."""
        if issuer.asking is not None or issuer.keys.may_ask(self._now()):
            await asyncio.shield(self._asking(issuer))

    def _asking(self, issuer: Issuer) -> asyncio.Task[bool]:
        """The one request that is out."""
        if issuer.asking is None:
            issuer.asking = asyncio.create_task(self._ask(issuer))
            issuer.asking.add_done_callback(lambda _: setattr(issuer, "asking", None))
        return issuer.asking

    async def _ask(self, issuer: Issuer) -> bool:
        """Whether the issuer answered with a key set, which counts from when it was asked for."""
        sent_at = self._now()
        issuer.keys.asking(sent_at)
        try:
            keys = parse_jwks(await issuer.source.load(), issuer.rules.tokens.algorithm)
        except KeymeshError as failed:
            fields = {"issuer": issuer.rules.issuer, "reason": failed.message}
            log.warning("key set not refreshed", extra={"fields": fields})
            return False
        issuer.keys.answered(keys, sent_at=sent_at)
        return True


def _dead_at(rules: TokenRules, sound: Sound) -> Instant:
    return Instant(sound.expires_at + rules.leeway_ms)


def issuer_from(section: IssuerSection) -> Issuer:
    """As configured.  Raises Refused where a file that is named cannot be used."""
    rules = PeopleRules(
        issuer=section.name,
        tokens=TokenRules(
            issuer=section.issuer,
            audience=section.audience,
            algorithm=section.algorithm,
            typ=section.typ,
            leeway_ms=section.leeway_s * 1_000,
            lifetime_max_ms=section.lifetime_max_s * 1_000,
            once=section.once,
            confirm=CERTIFICATE if section.bound else None,
        ),
        name_claim=section.name_claim,
        names=section.names,
        roles_claim=section.roles_claim,
        roles=section.held_roles(),
        tenant=None if section.tenant is None else TenantId(section.tenant),
        tenant_claim=section.tenant_claim,
    )
    keys: IssuerKeys[VerifyKey] = IssuerKeys(max_age_ms=section.max_age_s * 1_000)
    return Issuer(rules, key_source(section), keys, section.refresh_s)


def key_source(section: IssuerSection) -> KeySource:
    """Raises Refused where a file that is named cannot be used."""
    if section.jwks_file is not None:
        return FileSource(Path(section.jwks_file))
    assert section.jwks_url is not None
    assert section.ca_file is not None
    try:
        ca_pem = Path(section.ca_file).read_bytes()
    except OSError as missing:
        raise Refused.bad_field("ca_file", f"cannot be read: {missing.strerror}") from missing
    identity = None
    if section.cert_file is not None:
        identity = (Path(section.cert_file), None if section.key_file is None else Path(section.key_file))
    return UrlSource(section.jwks_url, ca_pem=ca_pem, identity=identity)
