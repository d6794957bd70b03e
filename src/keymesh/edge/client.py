"""``Edge``: data keys for an application, minted and opened in its own memory under a short lease (ADR-602).

    edge = await Edge.connect(identity="edge.pem", ca="ca.pem", cores=["https://core:8443"], trust="trust.json")
    async with edge:
        created = await edge.create_key({"table": "orders"}, plaintext=True)
        key = await edge.decrypt_key(created.blob, {"table": "orders"})

Tenant and service are what the certificate says.  Under ``core-held`` custody the same calls go to the Core.  Holds
its own I/O (with ``client_*``; ``client_sync`` is the synchronous face); decides nothing about leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from keymesh.access.identity import EdgeIdentity, address_of
from keymesh.control.signing import DsseSuite
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.kat import run_known_answer_tests
from keymesh.crypto.pages import KeyPages
from keymesh.edge.client_elsewhere import Elsewhere, ManyTransports, credentials_there
from keymesh.edge.client_shell import EdgeShell, addresses
from keymesh.edge.client_tls import EdgeCredentials
from keymesh.edge.client_transport import CoreTransport, first_answer
from keymesh.edge.hot import HotPath, check_batch
from keymesh.edge.hot_lease import FINAL_REASONS, BudgetSpent, CoreHeld, CreatedKey, Octets, UnknownKid, refusal
from keymesh.edge.policy import policy_verifier
from keymesh.edge.snapshot import EdgeConfig
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import KeyId
from keymesh.model.machine import Address

CONNECT_TIMEOUT_S: Final = 15.0
FETCH_TIMEOUT_S: Final = 5.0
BUDGET_TIMEOUT_S: Final = 2.0
BUDGET_LOOK_S: Final = 0.25
TRUST_MAX_BYTES: Final = 64 * 1024
GONE: Final = frozenset({"edge-closed", "forked"})


T = TypeVar("T")


class EdgeTrust(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose word on policies counts: the mesh, and the Registry's signing keys (key id -> raw public key, hex)."""

    mesh: str
    registry_keys: dict[KeyId, str]


def load_trust(path: str | Path) -> EdgeTrust:
    """The JSON file with an ``EdgeTrust``.  Raises Refused."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError as missing:
        raise Refused("not-found", f"no file {Path(path).name}", field="trust") from missing
    return strict_json.decode(raw, EdgeTrust, max_bytes=TRUST_MAX_BYTES)


def worth_waiting(why: CoreHeld | Unavailable) -> bool:
    """Whether the network could help: the keys are at the Core, the first lease or more of a budget is on its way, or a
    kid is new."""
    if isinstance(why, BudgetSpent):
        return why.more
    return not isinstance(why, Unavailable) or isinstance(why, UnknownKid) or why.code == "starting"


def _urls(cores: Sequence[str]) -> tuple[str, ...]:
    """Base URLs, each once.  Raises Refused naming ``cores``."""
    if not cores or any(not url.startswith("https://") for url in cores):
        raise Refused.bad_field("cores", "at least one https:// base URL")
    return tuple(dict.fromkeys(url.rstrip("/") for url in cores))


class Edge:
    """The asynchronous face.  Use it on the event loop that it was connected on; mint and open never await."""

    def __init__(
        self, shell: EdgeShell, transport: ManyTransports, identity: EdgeIdentity, cores: Sequence[str]
    ) -> None:
        """Use ``connect``, or ``start`` where nobody waits for the first lease."""
        self._shell = shell
        self._transport = transport
        self.hot: Final[HotPath] = shell.hot
        self._cores = tuple(cores)
        self.identity: Final = identity

    @classmethod
    async def connect(
        cls,
        *,
        identity: str | Path,
        ca: str | Path,
        cores: Sequence[str],
        trust: EdgeTrust | str | Path,
        elsewhere: Sequence[Elsewhere] = (),
        timeout_s: float = CONNECT_TIMEOUT_S,
        allow_unlocked_memory: bool = False,
    ) -> Self:
        """An Edge that holds its first lease.

        ``identity``: PEM with key, leaf and intermediate; ``ca``: the mesh root; ``cores``: base URLs of its region's
        Cores, the first to be asked first; ``trust``: an ``EdgeTrust`` or its file; ``elsewhere``: Cores of other
        regions, for when those here fail.  Raises Refused (files, certificate, restricted) or
        Unavailable.
        """
        edge = cls.start(
            identity=identity,
            ca=ca,
            cores=cores,
            trust=trust,
            elsewhere=elsewhere,
            allow_unlocked_memory=allow_unlocked_memory,
        )
        try:
            await edge.wait_ready(timeout_s)
        except BaseException:
            await edge.close()
            raise
        return edge

    @classmethod
    def start(
        cls,
        *,
        identity: str | Path,
        ca: str | Path,
        cores: Sequence[str],
        trust: EdgeTrust | str | Path,
        elsewhere: Sequence[Elsewhere] = (),
        allow_unlocked_memory: bool = False,
    ) -> Self:
        """As ``connect``, on the running loop, without waiting for a lease."""
        run_known_answer_tests()
        urls = _urls(cores)
        anchor = trust if isinstance(trust, EdgeTrust) else load_trust(trust)
        credentials = EdgeCredentials(Path(identity), Path(ca))
        who = credentials.identity
        if who.mesh != anchor.mesh:
            raise Refused.bad_field("trust", f"of the mesh {anchor.mesh!r}, the certificate is of {who.mesh!r}")
        signer = Ed25519Signer(Ed25519PrivateKey.generate())  # one for each life: it settles this life's leases only
        suite = DsseSuite(signer)
        pages = KeyPages(allow_unlocked=allow_unlocked_memory)
        pages.put(bytearray(32)).wipe()  # refuse now, not when the first key comes, where memory cannot be locked
        transports = dict.fromkeys(urls, CoreTransport(credentials, pages))
        known_as: dict[Address, Address] = {}
        for other in elsewhere:
            there = credentials_there(other, Path(ca), who)
            theirs = _urls(other.cores)
            if transports.keys() & set(theirs):
                raise Refused.bad_field("elsewhere", "each Core of one region alone")
            transports |= dict.fromkeys(theirs, CoreTransport(there, pages))
            as_there = address_of(there.identity)
            assert as_there is not None
            known_as |= dict.fromkeys(addresses(theirs), as_there)
        transport = ManyTransports(transports)
        by_address = addresses(tuple(transports))
        config = EdgeConfig(
            region=who.region,
            tenant=who.tenant,
            service=who.service,
            instance=who.instance,
            cores=tuple(by_address),
            suite=suite,
            signing_key=signer.public_key.hex(),
            verify_policy=policy_verifier(mesh=anchor.mesh, registry_keys=anchor.registry_keys, suite=suite),
            known_as=known_as,
        )
        shell = EdgeShell(config, transport, cores=by_address)
        shell.start()
        return cls(shell, transport, who, urls)

    async def wait_ready(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Return once a lease is held.  Raises what stands against it when ``timeout_s`` is over."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not self.hot.is_live():
            reason = self.hot.reason
            if reason in GONE or reason in FINAL_REASONS:
                raise refusal(reason)
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await self._shell.changed(left):
                raise refusal(self.hot.reason or "expired")

    async def close(self) -> None:
        """Drop the lease and its keys, give it back, send the last usage report, hang up.

        Waits at most a second for a Core that does not answer.
        """
        try:
            await self._shell.stop()
        finally:
            await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- operations ------------------------------------------------------------------------------------------------

    async def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        """A new data key: its wrapped blob (90 bytes), and with ``plaintext`` the key itself.

        ``context`` is bound to the blob: the same is needed to open it.  Raises Refused (context malformed,
        restricted), Unavailable (no lease now, budget spent).
        """
        try:
            return self.hot.create_key(context, plaintext)
        except (CoreHeld, Unavailable) as why:
            made = await self.create_slowly(why, 1, context, plaintext=plaintext)
            return made[0]

    async def decrypt_key(self, blob: Octets, context: Mapping[str, str] | None = None) -> bytes:
        """The data key (32 bytes) in ``blob``.

        Raises Refused (malformed, restricted), Integrity (changed, or another context), Unavailable (no lease now, or
        a key that is not here).
        """
        try:
            return self.hot.decrypt_key(blob, context)
        except (CoreHeld, Unavailable) as why:
            opened = await self.open_slowly(why, (blob,), context)
            return opened[0]

    async def create_keys(
        self, count: int, context: Mapping[str, str] | None = None, *, plaintext: bool = False
    ) -> list[CreatedKey]:
        """``count`` new keys under one context: all, or an error."""
        try:
            return self.hot.create_keys(count, context, plaintext)
        except (CoreHeld, Unavailable) as why:
            return await self.create_slowly(why, count, context, plaintext=plaintext)

    async def decrypt_keys(self, blobs: Sequence[Octets], context: Mapping[str, str] | None = None) -> list[bytes]:
        """The keys in ``blobs``, in their order: all, or the first error."""
        try:
            return self.hot.decrypt_keys(blobs, context)
        except (CoreHeld, Unavailable) as why:
            return await self.open_slowly(why, tuple(blobs), context)

    # --- where the network is needed ---------------------------------------------------------------------------------

    async def create_slowly(
        self, why: CoreHeld | Unavailable, count: int, context: Mapping[str, str] | None, *, plaintext: bool
    ) -> list[CreatedKey]:
        """What the hot path could not do, and ``why``: after the first lease came, or at the Core."""
        if isinstance(why, Unavailable):
            try:
                return await self._once_leased(why, lambda: self.hot.create_keys(count, context, plaintext))
            except CoreHeld:
                pass
        return await first_answer(
            self._nearest_first(), lambda core: self._transport.create(core, count, context or {}, plaintext=plaintext)
        )

    async def open_slowly(
        self, why: CoreHeld | Unavailable, blobs: Sequence[Octets], context: Mapping[str, str] | None
    ) -> list[bytes]:
        """As ``create_slowly``; for an unknown kid also after one fresh lease."""
        if isinstance(why, UnknownKid):
            try:
                return await self._open_with_fresh_lease(why, blobs, context)
            except CoreHeld:
                pass
        elif isinstance(why, Unavailable):
            try:
                return await self._once_leased(why, lambda: self.hot.decrypt_keys(blobs, context))
            except CoreHeld:
                pass
        check_batch("blobs", len(blobs))
        plain = tuple(bytes(blob) for blob in blobs)
        return await first_answer(
            self._nearest_first(), lambda core: self._transport.open_keys(core, plain, context or {})
        )

    async def _once_leased(self, why: Unavailable, use: Callable[[], T]) -> T:
        """``use`` with the first lease, or with more of a budget; otherwise the caller hears that there is none."""
        deadline = asyncio.get_running_loop().time() + BUDGET_TIMEOUT_S
        while True:
            if not worth_waiting(why):
                raise why
            if isinstance(why, BudgetSpent):
                if asyncio.get_running_loop().time() >= deadline:
                    raise why
                await self._shell.changed(BUDGET_LOOK_S)
            else:
                await self.wait_ready(FETCH_TIMEOUT_S)
            try:
                return use()
            except BudgetSpent as again:
                why = again

    async def _open_with_fresh_lease(
        self, why: UnknownKid, blobs: Sequence[Octets], context: Mapping[str, str] | None
    ) -> list[bytes]:
        """A kid that our lease does not name: ask for a fresh one once, then say unavailable (DESIGN section 1).

        An answer that was under way already may be older than the key version: it does not count as the one.
        """
        for _ in range(2):
            older = self._shell.asking
            if not self._shell.want_key():
                break
            if not await self._shell.changed(FETCH_TIMEOUT_S):  # whether there is such a key nobody has said
                raise Unavailable("no-answer", "no key here opens that blob, and the Core has not answered yet")
            try:
                return self.hot.decrypt_keys(blobs, context)
            except UnknownKid:
                if not older:
                    break
        raise why

    def _nearest_first(self) -> list[str]:
        """Every Core, the one that leases are taken from first."""
        current = self._shell.state.config.cores[self._shell.state.core_index]
        urls = self._shell.urls
        return [urls[current], *(url for core, url in urls.items() if core != current)]

    async def renew_certificate(self, csr_pem: str, cores: Sequence[str] = ()) -> str:
        """A new chain (PEM) for this Edge's own identity and key, asked for with the certificate that it has.

        ``cores``: those of another region, for the identity there.

        The caller writes it to the identity file; new connections show it from then on.
        """
        return await first_answer(cores or self._cores, lambda core: self._transport.renew(core, csr_pem))

    # --- for people ------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a use would find a lease now."""
        return self.hot.is_live()

    def want_fresh(self) -> None:
        """Ask for a new lease soon: something about its keys is known to have changed."""
        self._shell.want_key()

    def kids(self) -> dict[str, int]:
        """Kid (hex) -> version, of the keys that are leased now; none under ``core-held`` custody."""
        lease = self._shell.state.lease
        return {} if lease is None else {version.kid: version.version for version in lease.versions}

    def status(self) -> dict[str, Any]:
        """What this Edge holds, by names and counts."""
        lease = self._shell.state.lease
        return {
            "tenant": self.identity.tenant,
            "service": self.identity.service,
            "instance": self.identity.instance,
            "ready": self.ready,
            "reason": self.hot.reason,
            "custody": None if lease is None else lease.policy.custody,
            "policy_version": None if lease is None else lease.policy.version,
            "core": None if lease is None else self._shell.urls[lease.granted_by],
            "lease_id": None if lease is None else lease.lease_id,
            "lease_ms_left": None if lease is None else max(0, lease.deadline - self._shell.now()),
            "versions": [] if lease is None else [version.version for version in lease.versions],
            "used": dict(self._shell.totals),
            "budget_left": self._shell.budget.left,
        }
