"""A customer's root key in each technology, in the hands of a contract: used, withdrawn, out of reach, and back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tests.servers.aws import ACCOUNT, AwsServer
from tests.servers.openbao import OpenBaoServer, give_l1
from tests.servers.softhsm import by_hand, make_key, named, write_tokens
from tests.unit.adapters.pki_world import N1, World

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.adapters.l1_providers import descriptor_of, open_l1
from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.pkcs11_process import REST_S
from keymesh.adapters.tls import Credentials
from keymesh.app import customer_kms
from keymesh.app.l1_aws import parse_aws_kms
from keymesh.app.l1_openbao import parse_openbao
from keymesh.app.servers.softhsm import SoftHsm
from keymesh.core.l1 import L1Provider, ProviderDescriptor

KEYS = ("root", "other")
TENANT = "acme"


class Customer(Protocol):
    """``core``: directory of the Core that uses the keys ``root`` and ``other``."""

    core: Path
    tokens: Tokens
    rest_s: float

    def descriptor(self, key: str) -> ProviderDescriptor: ...

    async def withdraw(self, key: str) -> None: ...

    async def give_back(self, key: str) -> None: ...

    async def away(self) -> None: ...

    async def back(self) -> None: ...


def provider_of(customer: Customer, key: str = "root") -> L1Provider:
    """By its recorded form, as a Core opens it."""
    plain = msgspec.to_builtins(customer.descriptor(key))
    descriptor = descriptor_of(plain["provider"], plain)
    where = descriptor.replica_for("eu")
    return open_l1(descriptor, where, Credentials(customer.core / "tls.pem"), customer.tokens, tenant=TENANT)


class KmsCustomer:
    """The development KMS, serving in this process."""

    rest_s = 0.0

    def __init__(self, directory: Path) -> None:
        self.core, self._directory = directory / "core", directory / "kms"
        self.core.mkdir()
        world = World()
        world.write(self.core / "tls.pem", N1)
        self._allow = (world.root_pem.decode(),)
        self.tokens = Tokens(self.core)
        self._running: Any = None
        self.owner: Any = None

    def descriptor(self, key: str) -> ProviderDescriptor:
        made: ProviderDescriptor = self.owner.descriptor(key)
        return made

    async def withdraw(self, key: str) -> None:
        await self.owner.disable(key)

    async def give_back(self, key: str) -> None:
        await self.owner.enable(key)

    async def away(self) -> None:
        await self.owner.close()
        await self._running.__aexit__(None, None, None)

    async def back(self) -> None:
        self._running = customer_kms.running(self._directory, {"eu": 0}, allow_ca=self._allow)
        await self._running.__aenter__()
        self.owner = OwnerClient.open(self._directory)
        await self.owner.__aenter__()


class BaoCustomer:
    """A real OpenBao; a role for this Core alone."""

    rest_s = 0.0

    def __init__(self, directory: Path, server: OpenBaoServer, *, seals: bool) -> None:
        self.core, self._server = directory / "core", server
        self.core.mkdir()
        server.ca.issue(self.core / "tls.pem", "core")
        name = f"core-{os.urandom(4).hex()}"
        self._name = name
        self._allow(*KEYS)
        given = self.core if seals else give_l1(self.core, TENANT, server.ca.pem, server.url)
        server.app_role_file(name, name).rename(given / f"openbao-{name}.json")
        self.tokens = Tokens(self.core)

    def _allow(self, *keys: str) -> None:
        able = {"encrypt": ["update"], "decrypt": ["update"], "keys": ["read"]}
        self._server.policy(self._name, {f"transit/{verb}/{key}": able[verb] for key in keys for verb in able})

    def descriptor(self, key: str) -> ProviderDescriptor:
        ca = self._server.directory / "ca.pem"
        return parse_openbao(f"openbao:{self._server.url}/transit/{key}?ca={ca}&approle={self._name}")

    async def withdraw(self, key: str) -> None:
        self._allow(*(k for k in KEYS if k != key))

    async def give_back(self, key: str) -> None:
        self._allow(*KEYS)

    async def away(self) -> None:
        self._server.kill()

    async def back(self) -> None:
        self._server.start()


class TokenCustomer:
    """A SoftHSM2 token of this Core's own; ``use``: what its keys may do."""

    rest_s = REST_S + 0.05

    def __init__(self, directory: Path, use: str, *, seals: bool) -> None:
        self.core, self._use = directory / "core", use
        self.core.mkdir()
        World().write(self.core / "tls.pem", N1)
        self.soft = SoftHsm(directory / "hsm")
        self.soft.directory.mkdir()
        self.config = self.soft.init_token("customer", tenant="" if seals else TENANT)
        for key in KEYS:
            make_key(self.config, key, use=use)
        write_tokens(self.core, self.config)
        self.tokens = Tokens(self.core)

    def descriptor(self, key: str) -> ProviderDescriptor:
        return named(self.config, key)

    def _set(self, key: str, value: bool) -> None:
        changes = "".join(f"k[Attribute.{verb}] = {value}\n" for verb in self._use.split())
        by_hand(self.config, f"k, = keys({key!r})\n{changes}")

    async def withdraw(self, key: str) -> None:
        self._set(key, False)

    async def give_back(self, key: str) -> None:
        self._set(key, True)

    async def away(self) -> None:
        self.soft.tokens.rename(self.soft.directory / "away")

    async def back(self) -> None:
        (self.soft.directory / "away").rename(self.soft.tokens)


class AwsCustomer:
    """AWS KMS as this project's face serves it."""

    rest_s = 0.0

    def __init__(self, directory: Path) -> None:
        self.core, self.server = directory / "core", AwsServer(directory, *KEYS)
        self.core.mkdir()
        World().write(self.core / "tls.pem", N1)
        self.tokens = Tokens(self.core)
        self._descriptors = {key: parse_aws_kms(f"aws-kms:{self.server.arn(key)}") for key in KEYS}

    def descriptor(self, key: str) -> ProviderDescriptor:
        return self._descriptors[key]

    async def withdraw(self, key: str) -> None:
        await self.server.ring.suspend(ACCOUNT, key, "DisableKey")

    async def give_back(self, key: str) -> None:
        await self.server.ring.resume(ACCOUNT, key, "EnableKey")

    async def away(self) -> None:
        await self.server.stop()

    async def back(self) -> None:
        await self.server.start()


@asynccontextmanager
async def customer_of(kind: str, directory: Path, bao: Any, *, seals: bool = False) -> AsyncIterator[Customer]:
    """``bao``: gives the server that the openbao customers share.  ``seals``: the keys are for the region's own seals,
    not for a tenant."""
    directory.mkdir(exist_ok=True)
    match kind:
        case "kms":
            kms = KmsCustomer(directory)
            await kms.back()
            for key in KEYS:
                await kms.owner.create(key)
            yield kms
            await kms.away()
        case "aws-kms":
            aws = AwsCustomer(directory)
            await aws.back()
            aws.server.give(aws.core, TENANT, *KEYS)
            yield aws
            await aws.away()
        case "openbao":
            yield BaoCustomer(directory, bao(), seals=seals)
        case _:
            token = TokenCustomer(directory, "WRAP UNWRAP" if kind == "pkcs11-wrap" else "ENCRYPT DECRYPT", seals=seals)
            yield token
            await token.tokens.close()
