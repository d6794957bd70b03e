"""Request and response messages: header, batch, results.

Decides whether a message is one that its version allows, before any operation of it is looked at.  Bytes that cannot be
read get an answer too, in the version that every client knows.  Source: KMIP 1.4, sections 6-8; KMIP 2.1, sections 8-9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from keymesh.kmip.enums import BatchErrorContinuationOption, CredentialType, Operation, ResultReason, ResultStatus
from keymesh.kmip.faults import VERSIONS, Fault, Version, bad_message, reason_in
from keymesh.kmip.items import Fields, checked, make, maybe, number_of, struct, word_of
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType, encode, structure_header
from keymesh.model.limits import KMIP_BATCH_MAX

_MANDATORY: Final = 1  # AsynchronousIndicator of 2.x


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One request.  ``fault`` is why it cannot be served, found while it was read."""

    operation: int
    batch_id: bytes | None
    payload: Item | None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Request:
    version: Version
    batch: tuple[BatchItem, ...]
    on_error: BatchErrorContinuationOption = BatchErrorContinuationOption.Stop
    response_max_bytes: int | None = None
    username: str | None = None


class Unreadable(Exception):
    """The message is refused as a whole; ``version`` is what the answer is written in."""

    def __init__(self, version: Version, fault: Fault) -> None:
        super().__init__(fault.message)
        self.version = version
        self.fault = fault


def read(message: Item) -> Request:
    """Raises Unreadable."""
    version: Version = VERSIONS[-1]
    try:
        if message.tag != Tag.RequestMessage:
            raise bad_message("RequestMessage is needed")
        fields = Fields(message)
        header = fields.need_inside(Tag.RequestHeader)
        asked = _version(header.need(Tag.ProtocolVersion))
        if asked not in VERSIONS:
            version = nearest(asked)
            raise Fault(ResultReason.UnsupportedProtocolVersion, "ProtocolVersion: 1.0 to 1.4, 2.0 or 2.1")
        version = asked
        count = number_of(header.need(Tag.BatchCount))
        on_error = header.word(Tag.BatchErrorContinuationOption, BatchErrorContinuationOption)
        most = header.number(Tag.MaximumResponseSize)
        if most is not None and most < 0:
            raise bad_message("MaximumResponseSize: 0 or more")
        username = None
        if not header.is_empty:
            _header_rest(header)
            username = _credential(header.inside(Tag.Authentication))
            header.done()
        items = fields.many(Tag.BatchItem)
        fields.done()
        if not 1 <= len(items) <= KMIP_BATCH_MAX:
            raise bad_message(f"BatchItem: 1 to {KMIP_BATCH_MAX}, got {len(items)}")
        if count != len(items):
            raise bad_message(f"BatchCount: {len(items)}, the number of batch items")
        batch = tuple(_batch_item(item) for item in items)
        ids = [each.batch_id for each in batch]
        if len(batch) > 1 and (None in ids or len(set(ids)) < len(ids)):
            raise bad_message("UniqueBatchItemID: one for each item, each another")
    except Fault as fault:
        raise Unreadable(version, fault) from fault
    return Request(version, batch, on_error or BatchErrorContinuationOption.Stop, most, username)


def nearest(asked: Version) -> Version:
    """The version in which a client of a version that is not spoken is told so: its major's latest, or ours."""
    same = [version for version in VERSIONS if version[0] == asked[0]]
    return same[0] if same else (VERSIONS[0] if asked > VERSIONS[0] else VERSIONS[-1])


@lru_cache(maxsize=64)
def _version(item: Item) -> Version:
    fields = Fields(item)
    major, minor = fields.need(Tag.ProtocolVersionMajor), fields.need(Tag.ProtocolVersionMinor)
    fields.done()
    return number_of(major), number_of(minor)


def _header_rest(header: Fields) -> None:
    """Fields that change nothing here.  Raises Fault where one asks for what is not served."""
    indicator = header.raw(Tag.AsynchronousIndicator)
    if indicator is not None and indicator.type is ItemType.ENUMERATION and indicator.value == _MANDATORY:
        raise Fault(ResultReason.FeatureNotSupported, "AsynchronousIndicator: answers are synchronous")
    header.flag(Tag.AttestationCapableIndicator)
    header.many(Tag.AttestationType)
    header.flag(Tag.BatchOrderOption)  # items are taken in their order, asked or not
    header.number(Tag.TimeStamp)
    header.text(Tag.ClientCorrelationValue)
    header.text(Tag.ServerCorrelationValue)


def _credential(authentication: Fields | None) -> str | None:
    """The name that a Credential claims.  The certificate is what proves it; a password proves nothing here."""
    if authentication is None:
        return None
    credential = Fields(checked(authentication.need(Tag.Credential)))
    authentication.done()
    if credential.need_word(Tag.CredentialType, CredentialType) is not CredentialType.UsernameAndPassword:
        raise Fault(ResultReason.AuthenticationNotSuccessful, "Credential: a certificate, or its name as username")
    value = credential.need_inside(Tag.CredentialValue)
    credential.done()
    name = value.need_text(Tag.Username)
    value.text(Tag.Password)
    value.done()
    return name


def _batch_item(item: Item) -> BatchItem:
    fields = Fields(checked(item))
    operation = number_of(fields.need(Tag.Operation))
    batch_id = fields.octets(Tag.UniqueBatchItemID)
    payload = fields.one(Tag.RequestPayload)
    ephemeral = fields.raw(Tag.Ephemeral)
    extension = fields.inside(Tag.MessageExtension)
    fields.done()
    fault = None
    if payload is None:
        fault = bad_message("RequestPayload is needed")
    elif ephemeral is not None and ephemeral.value:
        fault = Fault(ResultReason.FeatureNotSupported, "Ephemeral: false")
    elif extension is not None and extension.flag(Tag.CriticalityIndicator) is not False:
        fault = Fault(ResultReason.FeatureNotSupported, "MessageExtension: none is known")
    return BatchItem(operation, batch_id, payload, fault)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one batch item."""

    item: BatchItem | None  # none where the message was refused as a whole
    status: ResultStatus
    payload: tuple[Item, ...] | None = None
    fault: Fault | None = None
    wire: bytes | None = field(default=None, repr=False)
    """What ``written_result`` gives, where that is known already; it may hold key bytes."""


def succeeded(version: Version, item: BatchItem, payload: tuple[Item, ...]) -> Result:
    """Written at once, since an answer's size decides whether it is one."""
    wire = _written(version, item, ResultStatus.Success, payload, None)
    return Result(item, ResultStatus.Success, payload, wire=wire)


def written_result(version: Version, result: Result) -> bytes:
    """One batch item of a response."""
    if result.wire is not None:
        return result.wire
    return _written(version, result.item, result.status, result.payload, result.fault)


def _written(
    version: Version,
    asked: BatchItem | None,
    status: ResultStatus,
    payload: tuple[Item, ...] | None,
    fault: Fault | None,
) -> bytes:
    item = struct(
        Tag.BatchItem,
        None if asked is None else Item(Tag.Operation, ItemType.ENUMERATION, asked.operation),
        None if asked is None else maybe(Tag.UniqueBatchItemID, asked.batch_id),
        make(Tag.ResultStatus, status),
        None if fault is None else make(Tag.ResultReason, reason_in(version, fault.reason)),
        None if fault is None else make(Tag.ResultMessage, fault.message),
        None if payload is None else struct(Tag.ResponsePayload, *payload),
    )
    return encode(item)


def written(version: Version, now_s: int, results: list[bytes]) -> bytes:
    """The bytes of a response with these batch items."""
    header = _header(version, now_s, len(results))
    return b"".join((structure_header(Tag.ResponseMessage, len(header) + sum(map(len, results))), header, *results))


@lru_cache(maxsize=64)
def _header(version: Version, now_s: int, count: int) -> bytes:
    """The same for all responses of a second."""
    item = struct(
        Tag.ResponseHeader,
        struct(
            Tag.ProtocolVersion,
            make(Tag.ProtocolVersionMajor, version[0]),
            make(Tag.ProtocolVersionMinor, version[1]),
        ),
        make(Tag.TimeStamp, now_s),
        make(Tag.BatchCount, count),
    )
    return encode(item)


def failed(item: BatchItem | None, fault: Fault) -> Result:
    return Result(item, ResultStatus.OperationFailed, fault=fault)


def operation_of(item: BatchItem) -> Operation:
    """Raises Fault where the specification has no such operation."""
    return word_of(Tag.Operation, Operation, item.operation)
