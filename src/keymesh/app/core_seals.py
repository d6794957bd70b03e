"""A Core's seals at work: which are tried when, and what each last showed; ``core_seal_changes`` has how they change.

At the start, and again while the region is sealed by no one's wish, the seals that open by themselves are tried in
order, each within its deadline; the first that opens will do.  While it is open each is tried now and then, so that a
seal that has died is known before it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from keymesh.adapters.seal_forms import open_shamir_seal
from keymesh.adapters.seals import SealTools, load_record, save_record
from keymesh.app.config_seals import SealsConfig
from keymesh.app.core_seal_changes import SealChanges, forget_files, made_again, write_receipt
from keymesh.app.seal_url import parse_seal_url
from keymesh.core.l1 import L1Denied
from keymesh.core.seals import Kind, MasterRecord, Seal, SealState, Standing, new_record, tried, verify_record
from keymesh.crypto.pages import SecretBytes
from keymesh.crypto.xaes import KEY_BYTES
from keymesh.ledger.receipts import Outcome
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core.seals")

RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 5.0


class RegionSeals:
    """``held``: sealed by the operator, and so until they say otherwise or the process starts anew."""

    def __init__(self, core: CoreProcess, config: SealsConfig) -> None:
        self._core = core
        self._config = config
        self._tools = SealTools(core.directory, core.region, core.credentials, core.tokens, core.pages)
        self.lock = asyncio.Lock()
        self.changes = SealChanges(core, self, self._tools)
        self.record: MasterRecord | None = None
        self.states: dict[str, SealState] = {}
        self.held = False
        self._sealings = 0

    @property
    def _is_sealed(self) -> bool:
        return not self._core.keyring.has_master

    # --- opening -----------------------------------------------------------------------------------------------------

    async def start(self, *, asked: bool = False) -> bool:
        """Try every seal that opens by itself; True where the region is open now.

        Does nothing where the operator has sealed the region, unless it is they who ask.

        A record that is not what it must be leaves the region sealed, and the process up: restrictions are still taken.
        """
        async with self.lock:
            if self.held and not asked:
                return False
            try:
                return await self._open()
            except KeymeshError as failed:
                fields = {"code": failed.code, "reason": failed.message}
                log.error("sealed: the record of the seals, or what it opens, is refused", extra={"fields": fields})
                return False

    async def _open(self) -> bool:
        if not self._is_sealed:
            return True
        record = self.record = load_record(self._tools.directory)
        if record is None:
            return await self._found()
        sealings = self._sealings
        for seal in tried(record, self._config.order):
            master = await self.attempt(record, seal)
            if master is None:
                continue
            if not self._is_sealed:  # people's shares were quicker
                master.wipe()
                return True
            if sealings != self._sealings:  # the operator has sealed it since: that stands
                master.wipe()
                return False
            self._take(record, master)
            log.info("unsealed", extra={"fields": {"seal": seal.id, "kind": seal.kind.value}})
            if seal.kind is Kind.FILE:
                log.warning("development seal: the MasterKey's key lies in a file beside it")
            return True
        log.warning("sealed: no seal opens by itself", extra={"fields": {"seals": len(record.seals)}})
        return False

    def _take(self, record: MasterRecord, master: SecretBytes) -> None:
        try:
            verify_record(record, self._core.region, master.reveal())
        except Integrity:
            master.wipe()
            raise
        self._core.unseal(master)

    async def _found(self) -> bool:
        """A first MasterKey under the configured seals, all of them; without them there is none."""
        sealings = self._sealings
        await self._core.region_store.check()
        if self._core.region_store.generation:
            raise Integrity("master-lost", "the key store holds internal keys, but there is no master.json")
        with self._core.pages.put(os.urandom(KEY_BYTES)) as master:
            made: list[Seal] = []
            try:
                for n, url in enumerate(self._config.initial):
                    kind, parameters = parse_seal_url(f"seals.initial[{n}]", url)
                    async with asyncio.timeout(self._config.deadline_ms / 1000):
                        made.append(await made_again(self._tools, kind, parameters, master))
            except (KeymeshError, TimeoutError) as failed:
                reason = failed.code if isinstance(failed, KeymeshError) else "deadline"
                log.error("no MasterKey made: a first seal cannot be had", extra={"fields": {"reason": reason}})
                forget_files(self._tools, made)
                return False
            if sealings != self._sealings:
                forget_files(self._tools, made)
                return False
            record = new_record(self._core.region, master.reveal(), made)
            save_record(self._tools.directory, record)
            self.record = record
            for seal in made:
                self.note(seal, Standing.OPENS)
            if any(seal.kind is Kind.FILE for seal in made):
                log.warning("development seal: the MasterKey's key lies in a file beside it")
            self._core.unseal(self._core.pages.put(bytearray(master.reveal())))
        return True

    async def attempt(self, record: MasterRecord, seal: Seal) -> SecretBytes | None:
        """The MasterKey by this seal, or None; what happened is noted."""
        try:
            async with asyncio.timeout(self._config.deadline_ms / 1000):
                master = await self._tools.open(record.kid, seal)
        except TimeoutError:
            self.note(seal, Standing.UNREACHABLE, "deadline")
        except L1Denied as denied:
            self.note(seal, Standing.DENIED, denied.code)
        except Integrity as broken:
            self.note(seal, Standing.BROKEN, broken.code)
        except KeymeshError as silent:
            self.note(seal, Standing.UNREACHABLE, silent.code)
        except OSError:
            self.note(seal, Standing.UNREACHABLE, "file")
        else:
            self.note(seal, Standing.OPENS)
            return master
        return None

    def note(self, seal: Seal, standing: Standing, reason: str = "") -> None:
        """What a try of ``seal`` showed; logged where it has changed for the worse."""
        before = self.states.get(seal.id)
        self.states[seal.id] = SealState(standing, reason, self._core.shell.now())
        if standing is not Standing.OPENS and (before is None or before.standing is not standing):
            fields = {"seal": seal.id, "kind": seal.kind.value, "state": standing.value, "reason": reason}
            log.warning("seal does not open", extra={"fields": fields})

    async def keep(self) -> None:
        """For ever: open the region where it was not sealed on purpose; look after the seals while it is open."""
        retry_s = RETRY_MIN_S
        while True:
            waits = self._is_sealed and not self.held
            await asyncio.sleep(retry_s if waits else self._config.check_every_ms / 1000)
            retry_s = min(RETRY_MAX_S, retry_s * 2) if waits else RETRY_MIN_S
            if not self._is_sealed:
                await self.check()
            elif not self.held:
                await self.start()

    async def check(self) -> None:
        """Try every seal that opens by itself, and throw away what it opens."""
        async with self.lock:
            if self.record is not None:
                for seal in tried(self.record):
                    if master := await self.attempt(self.record, seal):
                        master.wipe()

    def seal(self, *, actor: str, cause: str) -> None:
        """The operator's: every key is forgotten, and that is so whether or not it can be recorded."""
        self.held, self.changes.pending = True, None
        self._sealings += 1
        self._core.seal()
        write_receipt(self._core, "region.seal", None, Outcome.DONE, actor=actor, cause=cause)

    async def unseal(self, shares: tuple[str, ...], *, actor: str, cause: str) -> None:
        """By people's shares, or, where none are given, by the seals that open by themselves.

        Raises Refused, Integrity (opaque), or Unavailable where none of those opens or no receipt can be written.
        """
        record = load_record(self._tools.directory)
        if record is None or not self._is_sealed:
            raise Refused("not-sealed", "this region is not sealed")
        if not shares:
            if not tried(record):
                raise Refused("needs-shares", "this region opens with people's shares only", field="shares")
            write_receipt(self._core, "region.unseal", None, Outcome.PENDING, actor=actor, cause=cause)
            if not await self.start(asked=True):
                raise Unavailable("no-seal-opens", "none of the seals opens just now")
        else:
            master = self._by_shares(record, shares)
            try:
                verify_record(record, self._core.region, master.reveal())
                write_receipt(self._core, "region.unseal", None, Outcome.DONE, actor=actor, cause=cause)
            except KeymeshError:
                master.wipe()
                raise
            self._core.unseal(master)
            self.record = record
        self.held = False

    def _by_shares(self, record: MasterRecord, shares: tuple[str, ...]) -> SecretBytes:
        """The first of the record's sets of shares that these belong to."""
        sets = [seal for seal in record.seals if seal.kind is Kind.SHAMIR]
        if not sets:
            raise Refused("wrong-seal", "this region is not sealed by shares", field="shares")
        for seal in sets:
            with contextlib.suppress(Integrity):
                return open_shamir_seal(self._core.region, record.kid, seal, shares, self._core.pages)
        raise Integrity.opaque()

    # --- showing -----------------------------------------------------------------------------------------------------

    def show(self) -> list[dict[str, Any]]:
        """Each seal in the order of trying, shares last: what it is, and what its last try showed."""
        if self.record is None:
            return []
        waiting = [seal for seal in self.record.seals if seal.kind is Kind.SHAMIR]
        return [self._shown(seal) for seal in (*tried(self.record, self._config.order), *waiting)]

    def _shown(self, seal: Seal) -> dict[str, Any]:
        default = Standing.WAITS if seal.kind is Kind.SHAMIR else Standing.UNTRIED
        state = self.states.get(seal.id, SealState(default))
        return {
            "id": seal.id,
            "kind": seal.kind.value,
            "state": state.standing.value,
            "reason": state.reason,
            "checked_at": state.at,
            "key": _place(seal),
        }


def _place(seal: Seal) -> str:
    """Where a seal's key is, in words."""
    said = seal.parameters
    where, key = next(iter(said.get("replicas", {}).values()), ""), said.get("key", "")
    match seal.kind:
        case Kind.FILE:
            return str(said.get("key_file", "seal.key"))
        case Kind.SHAMIR:
            return f"{said.get('threshold', '?')} of {said.get('shares', '?')} shares"
        case Kind.PKCS11:
            return f"{where};object={key}"
        case Kind.OPENBAO:
            return f"{where}/{said.get('mount', '')}/keys/{key}"
