"""Fuzz target ``kmip``: the engine, fed with messages of every operation, their trees and bytes changed.

Before each input two tenants have objects.  Whatever comes, the answer is KMIP, within its limit, never our bug, and
holds nothing of the other tenant's.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from keymesh.app.fuzz.target import Fault
from keymesh.app.fuzz.ttlv import made_of
from keymesh.kmip.context import World
from keymesh.kmip.engine import Engine
from keymesh.kmip.memory import MemoryJournal, MemoryStore, OpenGate, PlainSealer
from keymesh.kmip.ports import Caller, Scope
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, decode, encode
from keymesh.kmip.xml_form import Element, element_of, item_of, parse
from keymesh.model.limits import KMIP_RESPONSE_MAX_BYTES

_NOW_S: Final = 1_700_000_000
_OURS: Final = Caller("client", Scope("acme", "files"))
_THEIRS: Final = Caller("other", Scope("umbra", "files"))
_SECRET: Final = b"\xc5THE OTHER TENANT'S\x5c" + bytes(range(200, 212))
_NAME: Final = "name-of-the-other-tenant"

_KEY: Final = """<{object}>{kind}<KeyBlock><KeyFormatType type="Enumeration" value="{format}"/><KeyValue><KeyMaterial
 type="ByteString" value="{material}"/></KeyValue>{of}</KeyBlock></{object}>"""
_AES: Final = """<CryptographicAlgorithm type="Enumeration" value="AES"/>
<CryptographicLength type="Integer" value="256"/>"""
_USAGE: Final = (
    '<CryptographicUsageMask type="Integer" value="Encrypt Decrypt WrapKey UnwrapKey MACGenerate MACVerify"/>'
)
_ACTIVE: Final = '<ActivationDate type="DateTime" value="1000"/>'
_UID: Final = '<UniqueIdentifier type="TextString" value="{uid}"/>'
_DATA: Final = '<Data type="ByteString" value="000102030405060708090a0b0c0d0e0f"/>'
_GCM: Final = """<CryptographicParameters><BlockCipherMode type="Enumeration" value="GCM"/>
<TagLength type="Integer" value="16"/><RandomIV type="Boolean" value="true"/></CryptographicParameters>"""
_CBC: Final = """<CryptographicParameters><BlockCipherMode type="Enumeration" value="CBC"/><PaddingMethod
 type="Enumeration" value="PKCS5"/></CryptographicParameters>"""
_WRAP: Final = """<KeyWrappingSpecification><WrappingMethod type="Enumeration" value="Encrypt"/>
<EncryptionKeyInformation>{uid}<CryptographicParameters>
<BlockCipherMode type="Enumeration" value="NISTKeyWrap"/></CryptographicParameters>
</EncryptionKeyInformation></KeyWrappingSpecification>"""


def _typed(name: str) -> str:
    return f'<ObjectType type="Enumeration" value="{name}"/>'


def _named(name: str) -> str:
    kind = '<NameType type="Enumeration" value="UninterpretedTextString"/>'
    return f'<Name><NameValue type="TextString" value="{name}"/>{kind}</Name>'


def _old(name: str, value: str) -> str:
    return f'<Attribute><AttributeName type="TextString" value="{name}"/><AttributeValue {value}/></Attribute>'


def _registered(material: str, name: str) -> str:
    key = _KEY.format(object="SymmetricKey", kind="", format="Raw", material=material, of=_AES)
    return f"{_typed('SymmetricKey')}<Attributes>{_USAGE}{_ACTIVE}{_named(name)}</Attributes>{key}"


_PASSWORD: Final = f"""{_typed("SecretData")}<Attributes>{_named("password")}</Attributes>{
    _KEY.format(
        object="SecretData",
        kind='<SecretDataType type="Enumeration" value="Password"/>',
        format="Opaque",
        material="70617373",
        of="",
    )
}"""
_OPAQUE: Final = f"""{_typed("OpaqueObject")}<Attributes>{_named("blob")}</Attributes><OpaqueObject><OpaqueDataType
 type="Enumeration" value="0x80000001"/><OpaqueDataValue type="ByteString" value="0102"/></OpaqueObject>"""

_OLD: Final = {
    "Create": _typed("SymmetricKey")
    + "<TemplateAttribute>"
    + _old("Cryptographic Algorithm", 'type="Enumeration" value="AES"')
    + _old("Cryptographic Length", 'type="Integer" value="256"')
    + _old("Cryptographic Usage Mask", 'type="Integer" value="Encrypt Decrypt"')
    + "</TemplateAttribute>",
    "AddAttribute": _UID + _old("x-mine", 'type="TextString" value="v"'),
    "ModifyAttribute": _UID + _old("Cryptographic Usage Mask", 'type="Integer" value="Encrypt"'),
    "DeleteAttribute": _UID + '<AttributeName type="TextString" value="Name"/>',
    "Locate": _old("State", 'type="Enumeration" value="Active"'),
    "GetAttributes": _UID,
}
"""Payloads in the form of 1.x, by operation."""

_NEW: Final = [
    ("Create", f"{_typed('SymmetricKey')}<Attributes>{_AES}{_USAGE}</Attributes>"),
    ("Register", _registered("11" * 32, "new")),
    ("Register", _PASSWORD),
    ("Register", _OPAQUE),
    ("Get", _UID),
    ("Get", _UID + _WRAP.format(uid=_UID)),
    ("GetAttributes", _UID),
    ("GetAttributes", _UID + '<AttributeReference type="Enumeration" value="State"/>'),
    ("GetAttributeList", _UID),
    ("AddAttribute", f"{_UID}<NewAttribute>{_named('n')}</NewAttribute>"),
    ("SetAttribute", f'{_UID}<NewAttribute><Sensitive type="Boolean" value="true"/></NewAttribute>'),
    ("ModifyAttribute", f"{_UID}<NewAttribute>{_USAGE}</NewAttribute>"),
    ("DeleteAttribute", f'{_UID}<AttributeReference type="Enumeration" value="Name"/>'),
    ("Locate", f'<MaximumItems type="Integer" value="2"/><Attributes>{_named("ours")}</Attributes>'),
    ("Locate", f"<Attributes>{_named(_NAME)}</Attributes>"),
    ("Locate", ""),
    ("Activate", _UID),
    ("Revoke", f"""{_UID}<RevocationReason><RevocationReasonCode type="Enumeration" value="KeyCompromise"/>
     </RevocationReason><CompromiseOccurrenceDate type="DateTime" value="6"/>"""),
    ("Destroy", _UID),
    ("Encrypt", f"{_UID}{_GCM}{_DATA}"),
    ("Encrypt", f"{_UID}{_CBC}{_DATA}" + '<InitIndicator type="Boolean" value="true"/>'),
    ("Decrypt", f'{_UID}{_CBC}{_DATA}<IVCounterNonce type="ByteString" value="{"00" * 16}"/>'),
    ("MAC", f"""{_UID}<CryptographicParameters><CryptographicAlgorithm type="Enumeration" value="HMAC_SHA256"/>
     </CryptographicParameters>{_DATA}"""),
    ("MACVerify", f'{_UID}{_DATA}<MACData type="ByteString" value="00"/>'),
    ("Hash", f"""<CryptographicParameters><HashingAlgorithm type="Enumeration" value="SHA_256"/>
     </CryptographicParameters>{_DATA}"""),
    ("RNGRetrieve", '<DataLength type="Integer" value="32"/>'),
    ("RNGSeed", _DATA),
    ("ReKey", _UID),
    ("Check", f"{_UID}{_USAGE}"),
    ("Log", '<LogMessage type="TextString" value="l"/>'),
    ("Query", '<QueryFunction type="Enumeration" value="QueryOperations"/>'),
    ("DiscoverVersions", ""),
]  # fmt: skip
"""(operation, payload) in the form of 2.1."""


class _Chance:
    """The same bytes in every run."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def token(self, n_bytes: int) -> bytes:
        return self._rng.randbytes(n_bytes)

    def seed(self, data: bytes) -> int | None:
        return len(data)


class _Clock:
    def seconds(self) -> int:
        return _NOW_S


class KmipTarget:
    """Each input meets the same objects: two of ours, one of another tenant's."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        store = MemoryStore()
        engine = self._engine(store, chance=1)
        theirs = self._made(engine, _THEIRS, _registered(_SECRET.hex(), _NAME))
        ours = [self._made(engine, _OURS, _registered("22" * 32, "ours")), self._made(engine, _OURS, _PASSWORD)]
        self._held = store.held
        self._seeds = [
            item
            for uid in (*ours, ours[0], theirs)
            for item in (
                *(_message(operation, payload.format(uid=uid), 2, 1) for operation, payload in _NEW),
                *(_message(operation, payload.format(uid=uid), 1, 4) for operation, payload in _OLD.items()),
            )
        ]
        self._seeds.append(_batch(self._seeds[:4]))

    def make(self, rng: random.Random) -> bytes:
        return made_of(rng, self._seeds)

    def run(self, data: bytes) -> None:
        store = MemoryStore({scope: dict(held) for scope, held in self._held.items()})
        theirs = dict(store.held[_THEIRS.scope])
        answer = self._loop.run_until_complete(self._engine(store, chance=2).handle(data, _OURS))
        if len(answer) > KMIP_RESPONSE_MAX_BYTES:
            raise Fault(f"an answer of {len(answer)} bytes")
        item = decode(answer)
        if item.tag != Tag.ResponseMessage or not isinstance(item.value, tuple) or len(item.value) < 2:
            raise Fault("the answer is no response with a batch item")
        if any(one.value == "InternalServerError" for one in element_of(item).all()):
            raise Fault("a fault of ours, told to the client")
        if _SECRET in answer or (_NAME.encode() in answer and _NAME.encode() not in data):
            raise Fault("an answer holds what is another tenant's")
        if store.held[_THEIRS.scope] != theirs:
            raise Fault("another tenant's objects changed")

    def _engine(self, store: MemoryStore, *, chance: int) -> Engine:
        return Engine(
            World(
                store=store,
                sealer=PlainSealer(),
                gate=OpenGate(),
                chance=_Chance(chance),
                journal=MemoryJournal(),
                clock=_Clock(),
            )
        )

    def _made(self, engine: Engine, caller: Caller, payload: str) -> str:
        request = encode(_message("Register", payload, 2, 1))
        answer = element_of(decode(self._loop.run_until_complete(engine.handle(request, caller))))
        (uid,) = (one.value for one in answer.all() if one.name == "UniqueIdentifier")
        return uid


def _message(operation: str, payload: str, major: int, minor: int) -> Item:
    return item_of(
        parse(
            f"""<RequestMessage><RequestHeader><ProtocolVersion>
<ProtocolVersionMajor type="Integer" value="{major}"/><ProtocolVersionMinor type="Integer" value="{minor}"/>
</ProtocolVersion><BatchCount type="Integer" value="1"/></RequestHeader>
<BatchItem><Operation type="Enumeration" value="{operation}"/><RequestPayload>{payload}</RequestPayload></BatchItem>
</RequestMessage>""".encode()
        )
    )


def _batch(messages: list[Item]) -> Item:
    """One message with the batch items of all, undone as a whole."""
    header, *items = (one for message in messages for one in element_of(message).inner)
    undo = Element("BatchErrorContinuationOption", "Enumeration", "Undo")
    count = Element("BatchCount", "Integer", str(len(messages)))
    items = [
        Element(
            "BatchItem",
            "Structure",
            "",
            (one.inner[0], Element("UniqueBatchItemID", "ByteString", f"{n:02x}"), one.inner[1]),
        )
        for n, one in enumerate(one for one in items if one.name == "BatchItem")
    ]
    whole = Element("RequestHeader", "Structure", "", (header.inner[0], undo, count))
    return item_of(Element("RequestMessage", "Structure", "", (whole, *items)))
