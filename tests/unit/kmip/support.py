"""A client that builds messages item by item, an engine over memory, and a world that can be told what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from keymesh.kmip.context import World
from keymesh.kmip.engine import Engine
from keymesh.kmip.enums import (
    BatchErrorContinuationOption,
    CryptographicUsageMask,
    NameType,
    ObjectType,
    Operation,
    ResultReason,
    ResultStatus,
    RevocationReasonCode,
)
from keymesh.kmip.enums_crypto import CryptographicAlgorithm, KeyFormatType
from keymesh.kmip.faults import Version
from keymesh.kmip.items import make, struct
from keymesh.kmip.memory import MemoryJournal, MemoryStore, OpenGate, PlainSealer
from keymesh.kmip.ports import Caller, Scope
from keymesh.kmip.tables import ATTRIBUTE_NAME
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType, decode, encode

NOW_S = 1_700_000_000
ALL_USES = sum(CryptographicUsageMask)
ALICE = Caller("alice", Scope("acme", "files"))
MALLORY = Caller("mallory", Scope("evil", "files"))


@dataclass
class CountedChance:
    """Bytes that never repeat, and are the same in every run."""

    calls: int = 0
    taken: int | None = 0

    def token(self, n_bytes: int) -> bytes:
        self.calls += 1
        return (self.calls.to_bytes(8, "big") * (n_bytes // 8 + 1))[:n_bytes]

    def seed(self, data: bytes) -> int | None:
        return self.taken


@dataclass
class SetClock:
    now_s: int = NOW_S

    def seconds(self) -> int:
        return self.now_s


@dataclass(frozen=True)
class Answer:
    """One batch item of a response."""

    item: Item

    def all(self, tag: Tag) -> list[Item]:
        return _deep(self.item, tag)

    def value(self, tag: Tag) -> object:
        found = self.all(tag)
        return found[0].value if found else None

    @property
    def status(self) -> ResultStatus:
        return ResultStatus(_int(self.value(Tag.ResultStatus)))

    @property
    def reason(self) -> ResultReason | None:
        found = self.value(Tag.ResultReason)
        return None if found is None else ResultReason(_int(found))

    @property
    def uid(self) -> str:
        found = self.value(Tag.UniqueIdentifier)
        assert isinstance(found, str), self.reason
        return found


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _deep(item: Item, tag: Tag) -> list[Item]:
    if not isinstance(item.value, tuple):
        return []
    found = []
    for child in item.value:
        if child.tag == tag:
            found.append(child)
        found += _deep(child, tag)
    return found


def header(version: Version, count: int, *more: Item) -> Item:
    return struct(
        Tag.RequestHeader,
        struct(
            Tag.ProtocolVersion,
            make(Tag.ProtocolVersionMajor, version[0]),
            make(Tag.ProtocolVersionMinor, version[1]),
        ),
        *more,
        make(Tag.BatchCount, count),
    )


def batch_item(operation: Operation, *payload: Item, batch_id: bytes | None = None) -> Item:
    return struct(
        Tag.BatchItem,
        make(Tag.Operation, operation),
        None if batch_id is None else make(Tag.UniqueBatchItemID, batch_id),
        struct(Tag.RequestPayload, *payload),
    )


def message(version: Version, *items: Item, more: tuple[Item, ...] = ()) -> bytes:
    return encode(struct(Tag.RequestMessage, header(version, len(items), *more), *items))


def parsed(raw: bytes) -> tuple[Version, list[Answer]]:
    """(version, results) of a response, which must be well formed and count itself rightly."""
    whole = decode(raw)
    assert whole.tag == Tag.ResponseMessage and isinstance(whole.value, tuple)
    head = Answer(whole.value[0])
    answers = [Answer(child) for child in whole.value[1:]]
    assert head.value(Tag.BatchCount) == len(answers) >= 1
    version = _int(head.value(Tag.ProtocolVersionMajor)), _int(head.value(Tag.ProtocolVersionMinor))
    for answer in answers:
        assert (answer.reason is None) == (answer.status is not ResultStatus.OperationFailed)
    return version, answers


@dataclass
class Lab:
    """An engine and what it stands on."""

    store: MemoryStore = field(default_factory=MemoryStore)
    gate: OpenGate = field(default_factory=OpenGate)
    chance: CountedChance = field(default_factory=CountedChance)
    clock: SetClock = field(default_factory=SetClock)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    sealer: PlainSealer = field(default_factory=PlainSealer)
    interop: bool = False
    version: Version = (2, 1)

    def __post_init__(self) -> None:
        self.world = World(
            self.store, self.sealer, self.gate, self.chance, self.journal, self.clock, interop=self.interop
        )
        self.engine = Engine(self.world)

    async def ask(
        self, operation: Operation, *payload: Item, caller: Caller = ALICE, version: Version | None = None
    ) -> Answer:
        version = version or self.version
        spoken, answers = parsed(await self.engine.handle(message(version, batch_item(operation, *payload)), caller))
        assert spoken == version and len(answers) == 1
        return answers[0]

    async def batch(
        self,
        *items: tuple[Operation, tuple[Item, ...]],
        on_error: BatchErrorContinuationOption | None = None,
        most: int | None = None,
        caller: Caller = ALICE,
    ) -> list[Answer]:
        more: tuple[Item, ...] = () if on_error is None else (make(Tag.BatchErrorContinuationOption, on_error),)
        more += () if most is None else (make(Tag.MaximumResponseSize, most),)
        built = [batch_item(op, *payload, batch_id=bytes((at,))) for at, (op, payload) in enumerate(items, 1)]
        return parsed(await self.engine.handle(message(self.version, *built, more=more), caller))[1]

    async def key(self, *more: Item, caller: Caller = ALICE, active: bool = True, mask: int = ALL_USES) -> str:
        """A new AES key's identifier."""
        attributes = [*aes(mask), *more]
        if active:
            attributes.append(make(Tag.ActivationDate, self.clock.now_s))
        answer = await self.ask(Operation.Create, *new_key(*attributes), caller=caller, version=(2, 1))
        return answer.uid

    async def do(self, operation: Operation, uid: str, *more: Item, caller: Caller = ALICE) -> Answer:
        return await self.ask(operation, make(Tag.UniqueIdentifier, uid), *more, caller=caller)

    async def attribute(self, uid: str, tag: Tag) -> object:
        reference = Item(Tag.AttributeReference, ItemType.ENUMERATION, tag)
        answer = await self.ask(Operation.GetAttributes, make(Tag.UniqueIdentifier, uid), reference, version=(2, 1))
        values = answer.all(Tag.Attributes)[0].value
        assert isinstance(values, tuple)
        return values[0].value if values else None


def aes(mask: int = ALL_USES, bits: int = 256) -> tuple[Item, ...]:
    return (
        make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.AES),
        make(Tag.CryptographicLength, bits),
        make(Tag.CryptographicUsageMask, mask),
    )


def new_key(*attributes: Item) -> tuple[Item, ...]:
    return make(Tag.ObjectType, ObjectType.SymmetricKey), struct(Tag.Attributes, *attributes)


def template(*attributes: Item) -> Item:
    """Attributes as 1.x writes them."""
    forms = (
        struct(
            Tag.Attribute,
            make(Tag.AttributeName, ATTRIBUTE_NAME[Tag(item.tag)]),
            Item(Tag.AttributeValue, item.type, item.value),
        )
        for item in attributes
    )
    return struct(Tag.TemplateAttribute, *forms)


def named(name: str) -> Item:
    return struct(Tag.Name, make(Tag.NameValue, name), make(Tag.NameType, NameType.UninterpretedTextString))


def vendors(name: str, value: str, vendor: str = "x") -> Item:
    return struct(
        Tag.Attribute,
        make(Tag.VendorIdentification, vendor),
        make(Tag.AttributeName, name),
        Item(Tag.AttributeValue, ItemType.TEXT_STRING, value),
    )


def reason(code: RevocationReasonCode) -> Item:
    return struct(Tag.RevocationReason, make(Tag.RevocationReasonCode, code))


def brought_key(material: bytes, *attributes: Item) -> tuple[Item, ...]:
    """The payload that registers an AES key."""
    block = struct(
        Tag.KeyBlock,
        make(Tag.KeyFormatType, KeyFormatType.Raw),
        struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.BYTE_STRING, material)),
        make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.AES),
        make(Tag.CryptographicLength, len(material) * 8),
    )
    return (
        make(Tag.ObjectType, ObjectType.SymmetricKey),
        struct(Tag.Attributes, *attributes),
        struct(Tag.SymmetricKey, block),
    )
