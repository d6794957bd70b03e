"""What every provider of a customer's root key promises: ``core.l1.L1Provider``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.l1_customers import Customer, customer_of, provider_of

from keymesh.core.l1 import PLAIN_MAX_BYTES, WRAPPED_MAX_BYTES, L1Denied, L1Unreachable
from keymesh.model.errors import Integrity, Refused

LIVE = pytest.mark.integration
E = bytes(range(32))


@pytest.fixture(
    params=["kms", "aws-kms", *(pytest.param(kind, marks=LIVE) for kind in ("openbao", "pkcs11", "pkcs11-wrap"))]
)
async def customer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Customer]:
    async with customer_of(request.param, tmp_path / "c", lambda: request.getfixturevalue("transit_server")) as made:
        yield made


async def test_what_is_wrapped_is_unwrapped_by_the_same_key_alone(customer: Customer) -> None:
    root, again, other = (provider_of(customer, key) for key in ("root", "root", "other"))
    for plain in (E, b"x", bytes(PLAIN_MAX_BYTES)):
        wrapped = await root.wrap(plain)
        assert len(wrapped) <= WRAPPED_MAX_BYTES
        assert plain not in wrapped or plain == b"x"
        assert await again.unwrap(wrapped) == plain
    for plain in (b"", bytes(PLAIN_MAX_BYTES + 1)):
        with pytest.raises(Refused):
            await root.wrap(plain)
    wrapped = await root.wrap(E)
    said = set()
    for bad in (
        await other.wrap(E),
        b"",
        wrapped[:-1],
        wrapped + b"\0",
        bytes(len(wrapped)),
        bytes(WRAPPED_MAX_BYTES + 1),
        wrapped[:-1] + bytes((wrapped[-1] ^ 1,)),
        bytes((wrapped[0] ^ 1,)) + wrapped[1:],
    ):
        with pytest.raises(Integrity) as caught:
            await root.unwrap(bad)
        said.add((caught.value.code, caught.value.message, caught.value.field))
    assert said == {("integrity", "could not be opened", None)}
    for one in (root, again, other):
        await one.close()


async def test_a_key_that_is_withdrawn_is_a_no_and_another_is_not_touched(customer: Customer) -> None:
    root, other = provider_of(customer), provider_of(customer, "other")
    wrapped, others = await root.wrap(E), await other.wrap(E)
    await customer.withdraw("root")
    for _ in range(2):
        with pytest.raises(L1Denied):
            await root.unwrap(wrapped)
    with pytest.raises(L1Denied):
        await root.wrap(E)
    assert await other.unwrap(others) == E
    await customer.give_back("root")
    assert await root.unwrap(wrapped) == E
    for one in (root, other):
        await one.close()


async def test_out_of_reach_is_silence_and_no_more(customer: Customer) -> None:
    root = provider_of(customer)
    wrapped = await root.wrap(E)
    await customer.away()
    try:
        with pytest.raises(L1Unreachable):
            await root.unwrap(wrapped)
        with pytest.raises(L1Unreachable):
            await root.wrap(E)
    finally:
        await customer.back()
    await asyncio.sleep(customer.rest_s)
    assert await root.unwrap(wrapped) == E
    await root.close()


async def test_many_at_once_get_each_their_own(customer: Customer) -> None:
    root = provider_of(customer)
    blobs = await asyncio.gather(*(root.wrap(bytes((n,)) * 32) for n in range(12)))
    plains = await asyncio.gather(*map(root.unwrap, blobs))
    assert plains == [bytes((n,)) * 32 for n in range(12)]
    await root.close()
