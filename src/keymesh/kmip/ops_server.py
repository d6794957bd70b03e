"""What is asked of the server itself: versions, Query, random bytes, Log, Interop.

Query says what is served and nothing else: it is generated from what is registered.  Source: KMIP 1.4, sections 4.25,
4.26, 4.35, 4.36; KMIP 2.1, sections 6.1.17, 6.1.27, 6.1.31, 6.1.43, 6.1.50, 6.1.51.
"""

from __future__ import annotations

from typing import Final

from keymesh.kmip.context import Context, Served
from keymesh.kmip.enums import InteropFunction, Operation, ProtectionStorageMask, QueryFunction, ResultReason
from keymesh.kmip.enums_crypto import RNGAlgorithm
from keymesh.kmip.faults import VERSIONS, Fault, bad_field, bad_message
from keymesh.kmip.items import Fields, checked, make, number_of, struct, word_of
from keymesh.kmip.keyblocks import TYPES
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType

RANDOM_MAX_BYTES: Final = 64 * 1024
_LATER: Final = {  # since which version a question may be asked; the first four always
    QueryFunction.QueryExtensionList: (1, 1),
    QueryFunction.QueryExtensionMap: (1, 1),
    QueryFunction.QueryAttestationTypes: (1, 2),
    QueryFunction.QueryRNGs: (1, 3),
    QueryFunction.QueryValidations: (1, 3),
    QueryFunction.QueryProfiles: (1, 3),
    QueryFunction.QueryCapabilities: (1, 3),
    QueryFunction.QueryClientRegistrationMethods: (1, 3),
    QueryFunction.QueryDefaultsInformation: (2, 0),
    QueryFunction.QueryStorageProtectionMasks: (2, 0),
}


async def discover_versions(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """Versions that both sides speak, in the server's order; all, where the client names none."""
    asked = []
    for item in fields.many(Tag.ProtocolVersion):
        inside = Fields(checked(item))
        major, minor = inside.number(Tag.ProtocolVersionMajor), inside.number(Tag.ProtocolVersionMinor)
        inside.done()
        if major is None or minor is None:
            raise bad_message("ProtocolVersion: major and minor")
        asked.append((major, minor))
    fields.done()
    return tuple(
        struct(
            Tag.ProtocolVersion,
            make(Tag.ProtocolVersionMajor, major),
            make(Tag.ProtocolVersionMinor, minor),
        )
        for major, minor in VERSIONS
        if not asked or (major, minor) in asked
    )


async def query(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    asked = []
    for item in fields.many(Tag.QueryFunction):
        function = word_of(Tag.QueryFunction, QueryFunction, number_of(checked(item)))
        if _LATER.get(function, (1, 0)) > ctx.version:
            raise bad_field(f"QueryFunction: {function.name} came with a later version")
        asked.append(function)
    fields.done()
    if not asked:
        raise bad_message("QueryFunction is needed")
    answers: list[Item] = []
    for function in QueryFunction:  # answers stand in the order of the specification's payload
        if function in asked:
            answers += _answer(ctx, function)
    return tuple(answers)


def _answer(ctx: Context, function: QueryFunction) -> list[Item]:
    match function:
        case QueryFunction.QueryOperations:
            return [make(Tag.Operation, operation) for operation in ctx.operations]
        case QueryFunction.QueryObjects:
            return [make(Tag.ObjectType, kind) for kind in TYPES]
        case QueryFunction.QueryServerInformation:
            return [make(Tag.VendorIdentification, ctx.world.vendor), struct(Tag.ServerInformation)]
        case QueryFunction.QueryRNGs:
            return [struct(Tag.RNGParameters, make(Tag.RNGAlgorithm, RNGAlgorithm.Unspecified))]
        case QueryFunction.QueryCapabilities:
            return [_capabilities(ctx)]
        case QueryFunction.QueryStorageProtectionMasks:
            return [make(Tag.ProtectionStorageMask, ProtectionStorageMask.Software)]
        case _:  # namespaces, extensions, attestation, validations, profiles, registration, defaults: none
            return []


def _capabilities(ctx: Context) -> Item:
    def flag(tag: Tag, *, value: bool) -> Item:
        return Item(tag, ItemType.BOOLEAN, value)

    later = ctx.version >= (1, 4)
    return struct(
        Tag.CapabilityInformation,
        flag(Tag.StreamingCapability, value=True),
        flag(Tag.AsynchronousCapability, value=False),
        flag(Tag.AttestationCapability, value=False),
        flag(Tag.BatchUndoCapability, value=True) if later else None,
        flag(Tag.BatchContinueCapability, value=True) if later else None,
    )


async def rng_retrieve(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    length = number_of(fields.need(Tag.DataLength))
    fields.done()
    if not 1 <= length <= RANDOM_MAX_BYTES:
        raise bad_field(f"DataLength: 1 to {RANDOM_MAX_BYTES}")
    return (make(Tag.Data, ctx.world.chance.token(length)),)


async def rng_seed(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """How much of a client's seed was taken: the generator's to say, and true, also where it is nothing."""
    data = fields.need_octets(Tag.Data)
    fields.done()
    taken = ctx.world.chance.seed(data)
    if taken is None:
        raise Fault(ResultReason.PermissionDenied, "Data: the generator takes no seed")
    return (make(Tag.DataLength, taken),)


async def log(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    message = fields.need_text(Tag.LogMessage)
    fields.done()
    await ctx.world.journal.note(ctx.caller, message)
    return ()


async def interop(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """Marks where a test begins and ends; there is nothing to reset for one caller alone."""
    function = fields.need_word(Tag.InteropFunction, InteropFunction)
    fields.text(Tag.InteropIdentifier)
    fields.done()
    if function is InteropFunction.Reset:
        raise Fault(ResultReason.FeatureNotSupported, "InteropFunction: Begin or End")
    return ()


OPS: Final = {
    Operation.DiscoverVersions: Served((1, 1), discover_versions),
    Operation.Query: Served((1, 0), query),
    Operation.RNGRetrieve: Served((1, 2), rng_retrieve),
    Operation.RNGSeed: Served((1, 2), rng_seed),
    Operation.Log: Served((2, 0), log),
}
INTEROP: Final = {Operation.Interop: Served((2, 0), interop)}
