"""MongoDB's KMIP client, libmongocrypt by way of pymongocrypt, in both of its modes, as the drivers drive it.

The state machine is libmongocrypt's; what it says to the KMS goes over TLS as a driver sends it.  The key vault, a
collection in MongoDB, is a list here.  ``docs/clients/mongodb.md`` shows the same and is run by a test below.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.binary import Binary
from pymongocrypt.errors import MongoCryptError
from pymongocrypt.mongocrypt import MongoCryptKmsContext
from pymongocrypt.options import MongoCryptOptions
from pymongocrypt.synchronous.explicit_encrypter import ExplicitEncrypter
from pymongocrypt.synchronous.state_machine import MongoCryptCallback
from tests.integration.kmip_clients.served import Served, answer
from tests.unit.kmip.support import batch_item, message, parsed

from keymesh.kmip.enums import Operation, RevocationReasonCode
from keymesh.kmip.items import make, struct
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, decode

PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients" / "mongodb.md"
ALGORITHM = "AEAD_AES_256_CBC_HMAC_SHA_512-Random"
MODES = [pytest.param({}, id="the KMS keeps the key"), pytest.param({"delegated": True}, id="delegated")]


@dataclass
class Vault(MongoCryptCallback):  # type: ignore[misc]
    """A driver's part: the network and the key vault.  ``operations`` is what the KMS was asked."""

    served: Served
    keys: list[dict[str, Any]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def kms_request(self, kms_context: MongoCryptKmsContext) -> None:
        assert kms_context.endpoint == f"{self.served.host}:{self.served.port}"
        self.operations.append(asked(kms_context.message))
        with self.served.connected() as peer:
            peer.sendall(kms_context.message)
            while kms_context.bytes_needed > 0:
                data = peer.recv(kms_context.bytes_needed)
                if not data:
                    raise OSError("the KMS hung up")
                kms_context.feed(data)

    def fetch_keys(self, filter: bytes) -> list[bytes]:
        wanted = bson.decode(filter).get("$or", [{}])[0].get("_id", {}).get("$in")  # no filter: every key
        return [bson.encode(key) for key in self.keys if wanted is None or key["_id"] in wanted]

    def insert_data_key(self, data_key: bytes) -> Any:
        self.keys.append(bson.decode(data_key))
        return self.keys[-1]["_id"]

    def bson_encode(self, doc: dict[str, Any]) -> bytes:
        return bson.encode(doc)

    def collection_info(self, database: str, filter: bytes) -> bytes:
        raise AssertionError("explicit encryption asks for no collection")

    def mark_command(self, database: str, cmd: bytes) -> bytes:
        raise AssertionError("explicit encryption marks no command")

    def close(self) -> None:
        pass


def asked(raw: bytes) -> Operation:
    items = decode(raw).value
    assert isinstance(items, tuple) and isinstance(items[1].value, tuple)
    operation = items[1].value[0].value
    assert isinstance(operation, int)
    return Operation(operation)


def encrypter(vault: Vault) -> ExplicitEncrypter:
    """As a new process of an application would make one: nothing is cached in it."""
    endpoint = f"{vault.served.host}:{vault.served.port}"
    return ExplicitEncrypter(vault, MongoCryptOptions({"kmip": {"endpoint": endpoint}}))


def sealed(client: ExplicitEncrypter, key_id: Binary, value: object) -> bytes:
    made: bytes = client.encrypt(bson.encode({"v": value}), ALGORITHM, key_id=bytes(key_id))
    return made


def opened(client: ExplicitEncrypter, value: bytes) -> object:
    return bson.decode(client.decrypt(value))["v"]


def ask(served: Served, operation: Operation, *payload: Item) -> None:
    """An administrator of the KMS."""
    with served.connected() as peer:
        peer.sendall(message((1, 4), batch_item(operation, *payload)))
        answers = parsed(answer(peer))[1]
    assert answers[0].reason is None


@pytest.mark.parametrize("mode", MODES)
def test_a_data_key_is_made_wrapped_and_opened_by_another_client(served: Served, mode: dict[str, Any]) -> None:
    vault = Vault(served)
    first = encrypter(vault)
    key_id = first.create_data_key("kmip", master_key=mode)
    value = sealed(first, key_id, "4111 1111 1111 1111")
    assert b"4111" not in value
    made = [Operation.Create, Operation.Activate, Operation.Encrypt]
    if not mode:
        made = [Operation.Register, Operation.Activate, Operation.Get]
    assert vault.operations[:3] == made

    other = Vault(served, keys=vault.keys)
    assert opened(encrypter(other), value) == "4111 1111 1111 1111"
    assert other.operations == [Operation.Decrypt if mode else Operation.Get]


@pytest.mark.parametrize("mode", MODES)
def test_a_second_data_key_under_the_same_kms_key_and_one_moved_to_a_new_one(
    served: Served, mode: dict[str, Any]
) -> None:
    vault = Vault(served)
    client = encrypter(vault)
    client.create_data_key("kmip", master_key=mode)
    kms_key = vault.keys[0]["masterKey"]["keyId"]
    second = client.create_data_key("kmip", master_key=mode | {"keyId": kms_key})
    assert vault.keys[1]["masterKey"]["keyId"] == kms_key
    value = sealed(client, second, 7)

    moved = bson.decode(encrypter(vault).rewrap_many_data_key({}, "kmip", mode))["v"]
    assert len(moved) == 2 and {each["_id"] for each in moved} == {key["_id"] for key in vault.keys}
    assert all(each["masterKey"]["keyId"] != kms_key for each in moved)
    vault.keys = [key | next(each for each in moved if each["_id"] == key["_id"]) for key in vault.keys]
    assert opened(encrypter(vault), value) == 7


@pytest.mark.parametrize("mode", MODES)
def test_what_the_kms_refuses_stays_closed(served: Served, mode: dict[str, Any]) -> None:
    vault = Vault(served)
    client = encrypter(vault)
    key_id = client.create_data_key("kmip", master_key=mode)
    value = sealed(client, key_id, "secret")
    kms_key = make(Tag.UniqueIdentifier, vault.keys[0]["masterKey"]["keyId"])
    why = struct(Tag.RevocationReason, make(Tag.RevocationReasonCode, RevocationReasonCode.KeyCompromise))
    ask(served, Operation.Revoke, kms_key, why)
    if mode:  # a compromised key is not used; one that only keeps bytes may still be read by its owner
        with pytest.raises(MongoCryptError, match="Permission Denied"):
            opened(encrypter(vault), value)
    ask(served, Operation.Destroy, kms_key)
    with pytest.raises(MongoCryptError):
        opened(encrypter(vault), value)
    assert opened(client, value) == "secret", "a client keeps what it opened for a minute"


def test_a_kms_key_of_nobody(served: Served) -> None:
    for mode in ({}, {"delegated": True}):
        with pytest.raises(MongoCryptError):
            encrypter(Vault(served)).create_data_key("kmip", master_key=mode | {"keyId": "0" * 32})


def test_the_page_shows_what_works(served: Served) -> None:
    """Its code, with this server's address and files, makes a key, seals and opens."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for shown, here in (
        ("kmip.us-east.example:5696", f"{served.host}:{served.port}"),
        ("client.pem", str(served.identity_file)),
        ("ca.pem", str(served.ca_file)),
    ):
        assert shown in code
        code = code.replace(shown, here)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["shown"] == "4111 1111 1111 1111"
    assert uuid.UUID(bytes=bytes(names["key_id"])).version == 4
