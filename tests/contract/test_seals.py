"""What every kind of seal promises: the same MasterKey comes back, to its own region, by its own key, whole or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from tests.contract.l1_customers import Customer, customer_of

from keymesh.adapters.seal_forms import make_shamir_seal, open_shamir_seal
from keymesh.adapters.seals import SealTools
from keymesh.adapters.tls import Credentials
from keymesh.core.seals import Kind, Seal
from keymesh.crypto.kid import kid_hex, kid_of
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.strict_json import dumps

LIVE = pytest.mark.integration


class Sealing:
    """One kind at one region.  ``lose``: its key is gone; shares are held here."""

    def __init__(self, kind: Kind, customer: Customer) -> None:
        self.kind, self._customer = kind, customer
        self.pages = KeyPages(allow_unlocked=True)
        self.master = self.pages.put(bytearray(range(32)))
        self.kid = kid_hex(kid_of(self.master.reveal()))
        self._shares: dict[str, tuple[str, ...]] = {}

    def _tools(self, region: str) -> SealTools:
        core = self._customer.core
        return SealTools(core, region, Credentials(core / "tls.pem"), self._customer.tokens, self.pages)

    async def make(self, master: SecretBytes | None = None) -> Seal:
        master = self.master if master is None else master
        if self.kind is Kind.SHAMIR:
            seal, shares = make_shamir_seal("eu", master, self.pages, threshold=2, n_shares=3)
            self._shares[seal.id] = shares
            return seal
        own = {} if self.kind is Kind.FILE else msgspec.to_builtins(self._customer.descriptor("root"))
        return await self._tools("eu").make(self.kind, own, master)

    async def open(self, seal: Seal, *, region: str = "eu", kid: str | None = None) -> SecretBytes:
        kid = self.kid if kid is None else kid
        if self.kind is Kind.SHAMIR:
            return open_shamir_seal(region, kid, seal, self._shares[seal.id][1:], self.pages)
        return await self._tools(region).open(kid, seal)

    async def lose(self, seal: Seal) -> None:
        if self.kind is Kind.SHAMIR:
            self._shares[seal.id] = self._shares[seal.id][:2]
        elif self.kind is Kind.FILE:
            (self._customer.core / seal.parameters["key_file"]).unlink()
        else:
            await self._customer.withdraw("root")


@pytest.fixture(params=[Kind.FILE, Kind.SHAMIR, *(pytest.param(k, marks=LIVE) for k in (Kind.OPENBAO, Kind.PKCS11))])
async def sealing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sealing]:
    kind = request.param if request.param in (Kind.OPENBAO, Kind.PKCS11) else "kms"
    async with customer_of(
        kind, tmp_path / "c", lambda: request.getfixturevalue("transit_server"), seals=True
    ) as customer:
        yield Sealing(request.param, customer)


async def test_the_same_key_comes_back_and_the_record_does_not_hold_it(sealing: Sealing) -> None:
    one, two = await sealing.make(), await sealing.make()
    assert one.id != two.id
    assert sealing.pages.slots_in_use == 1
    for seal in (one, two):
        with await sealing.open(seal) as again:
            assert again.same_as(sealing.master)
        plain = bytes(sealing.master.reveal())
        assert plain not in bytes.fromhex(seal.sealed)
        assert plain.hex() not in dumps(seal).decode()
    assert sealing.pages.slots_in_use == 1


async def answer(opening: Callable[[], Awaitable[object]]) -> tuple[object, ...]:
    with pytest.raises(Integrity) as caught:
        await opening()
    return caught.value.code, caught.value.message, caught.value.field


async def test_another_region_key_or_bit_is_one_answer(sealing: Sealing) -> None:
    seal, change = await sealing.make(), msgspec.structs.replace
    with sealing.pages.put(bytearray(32)) as strange_master:
        stranger = await sealing.make(strange_master)
        strange_kid = kid_hex(kid_of(strange_master.reveal()))
    raw = bytes.fromhex(seal.sealed)
    said = {
        await answer(lambda: sealing.open(seal, region="us")),
        await answer(lambda: sealing.open(seal, kid=strange_kid)),
        await answer(lambda: sealing.open(stranger)),
        await answer(lambda: sealing.open(change(seal, sealed=stranger.sealed), kid=strange_kid + ""))
        if sealing.kind in (Kind.FILE, Kind.SHAMIR)
        else ("integrity", "could not be opened", None),
    }
    for at in (0, 1, 3, 4, 25, len(raw) - 60, len(raw) - 1):
        changed = (raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]).hex()
        said.add(await answer(lambda changed=changed: sealing.open(change(seal, sealed=changed))))  # type: ignore[misc]
    bad = ["zz", "00000000", seal.sealed[:20], seal.sealed + "00"] + ([""] if sealing.kind is not Kind.SHAMIR else [])
    for sealed in bad:
        said.add(await answer(lambda sealed=sealed: sealing.open(change(seal, sealed=sealed))))  # type: ignore[misc]
    assert said == {("integrity", "could not be opened", None)}
    assert sealing.pages.slots_in_use == 1


async def test_without_its_key_a_seal_opens_nothing(sealing: Sealing) -> None:
    seal = await sealing.make()
    await sealing.lose(seal)
    with pytest.raises((Refused, Unavailable)):
        await sealing.open(seal)
    if sealing.kind in (Kind.OPENBAO, Kind.PKCS11):
        with pytest.raises(KeymeshError):
            await sealing.make()
    assert sealing.pages.slots_in_use == 1


@pytest.mark.parametrize(
    "parameters", [{}, {"key": "root"}, {"provider": "keymesh-kms"}, {"provider": "pkcs11", "x": 1}]
)
async def test_a_seal_that_names_nothing_is_refused_when_made_and_opens_nothing(
    sealing: Sealing, parameters: dict[str, object]
) -> None:
    if sealing.kind not in (Kind.OPENBAO, Kind.PKCS11):
        with pytest.raises(Refused if sealing.kind is Kind.SHAMIR else Integrity):
            bare = Seal(id="s", kind=sealing.kind, sealed="00", parameters={"key_file": "../x"} | parameters)
            await sealing._tools("eu").open(sealing.kid, bare)
        return
    with pytest.raises(Refused):
        await sealing._tools("eu").make(sealing.kind, parameters, sealing.master)
    seal = msgspec.structs.replace(await sealing.make(), parameters=parameters)
    with pytest.raises(Integrity):
        await sealing.open(seal)
