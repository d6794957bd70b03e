"""What a conformance case needs of a server: objects that another case leaves, and things that this server has not.

Decides by a case's content alone which of them a server of symmetric keys, secret data and opaque objects cannot pass,
and why; a file's name says nothing.  What is not named here is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from keymesh.kmip.xml_cases import Case
from keymesh.kmip.xml_form import Element, tidy

OBJECTS: Final = {
    "Certificate": "certificates",
    "CertificateRequest": "certificate requests",
    "PGPKey": "PGP keys",
    "PrivateKey": "private keys",
    "PublicKey": "public keys",
    "SplitKey": "split keys",
    "Template": "templates",
}
OPERATIONS: Final = {
    "Certify": "certificates",
    "CreateKeyPair": "key pairs",
    "CreateSplitKey": "split keys",
    "JoinSplitKey": "split keys",
    "PKCS_11": "PKCS#11 by way of KMIP",
    "ReCertify": "certificates",
    "ReKeyKeyPair": "key pairs",
    "SetEndpointRole": "a server that becomes a client (SetEndpointRole)",
    "Sign": "signatures",
    "SignatureVerify": "signatures",
    "Validate": "certificates",
}
ALGORITHMS: Final = {
    "DH": "Diffie-Hellman keys",
    "DSA": "DSA keys",
    "EC": "elliptic curve keys",
    "ECDH": "elliptic curve keys",
    "ECDSA": "elliptic curve keys",
    "ECMQV": "elliptic curve keys",
    "RSA": "RSA keys",
}
SEED_REASON: Final = "another answer to RNGSeed than this server's, which takes all of a seed; a server has one of them"

_MAKING: Final = frozenset({"Create", "Register", "Import", "ReKey", "DeriveKey", "CreateKeyPair"})
_ATTRIBUTE_HOLDERS: Final = frozenset({"Attributes", "TemplateAttribute"})


def skip_reason(case: Case) -> str:
    """Why no server of symmetric keys passes this case; "" where one can."""
    missing = dict.fromkeys(_missing(case))
    if missing:
        return f"needs {', '.join(missing)}"
    return SEED_REASON if _seeds_otherwise(case) else ""


def _missing(case: Case) -> Iterator[str]:
    """What the requests use, or a truthful Query is to list."""
    for exchange in case.exchanges:
        for element in exchange.request.all():
            yield from _named_by(element)
        for batch in _batches(exchange.response, "Query"):
            for element in batch.all():
                yield from _named_by(element)


def _named_by(element: Element) -> Iterator[str]:
    if not element.value:
        if element.name in OBJECTS:
            yield OBJECTS[element.name]
        return
    subject = element.name if not element.attribute else element.attribute.replace(" ", "")
    for name, words in (
        ("ObjectType", OBJECTS),
        ("Operation", OPERATIONS),
        ("CryptographicAlgorithm", ALGORITHMS),
    ):
        if subject == name and element.value in words:
            yield words[element.value]


def _batches(message: Element, operation: str) -> list[Element]:
    return [one for one in message.inner if one.name == "BatchItem" and one.text("Operation") == operation]


def _seeds_otherwise(case: Case) -> bool:
    """Whether a case is about a server that takes a part of a seed, nothing of it, or none from clients."""
    for exchange in case.exchanges:
        asked, answered = (
            _batches(exchange.request, "RNGSeed"),
            _batches(exchange.response, "RNGSeed"),
        )
        for ours, theirs in zip(asked, answered, strict=False):
            request, payload = (
                ours.find("RequestPayload"),
                theirs.find("ResponsePayload"),
            )
            given = 0 if request is None else len(request.text("Data")) // 2
            denied = theirs.text("ResultReason") == "PermissionDenied"
            if denied or (payload is not None and payload.text("DataLength") not in ("", str(given))):
                return True
    return False


# --- cases that go on where another one ended -----------------------------------------------------------------------


def needs_another(case: Case) -> bool:
    """Whether a case begins with an object that it did not make: it locates one and goes on with what it found."""
    return bool(_located_first(case))


def provider_of(case: Case, others: Mapping[str, Case]) -> str | None:
    """The name of the first one of ``others`` (in the order of their names) that makes what ``case`` locates."""
    wanted = _located_first(case)
    for name in sorted(others):
        if wanted and wanted <= _left_behind(others[name]):
            return name
    return None


def _located_first(case: Case) -> frozenset[Element]:
    """Attributes by which a case that made nothing yet locates something; empty where it does not."""
    exchange = case.exchanges[0]
    found = [
        payload
        for batch in _batches(exchange.response, "Locate")
        if (payload := batch.find("ResponsePayload")) is not None and payload.find("UniqueIdentifier") is not None
    ]
    operations = {batch.text("Operation") for batch in exchange.request.inner if batch.name == "BatchItem"}
    if not found or operations & _MAKING:
        return frozenset()
    return frozenset(_attributes(_batches(exchange.request, "Locate")))


def _left_behind(case: Case) -> frozenset[Element]:
    """Attributes of what a case makes and does not destroy."""
    asked = [exchange.request for exchange in case.exchanges]
    if any(_batches(request, "Destroy") for request in asked):
        return frozenset()
    making = [batch for request in asked for operation in sorted(_MAKING) for batch in _batches(request, operation)]
    return frozenset(_attributes(making))


def _attributes(batches: list[Element]) -> Iterator[Element]:
    """Attributes in the payloads of these batch items, 1.x ones by name and value, the object's type among them."""
    for batch in batches:
        payload = batch.find("RequestPayload")
        for one in () if payload is None else payload.inner:
            if one.name in _ATTRIBUTE_HOLDERS:
                yield from map(_plain, one.inner)
            elif one.name in ("Attribute", "ObjectType"):
                yield _plain(one)


def _plain(element: Element) -> Element:
    """The same without what tells nothing: spaces in values, and whether it stands in a Locate or a Create."""
    if element.name == "Attribute" and element.text("AttributeName") == "Object Type":
        return Element("ObjectType", "Enumeration", element.text("AttributeValue"))
    return Element(
        element.name,
        element.kind,
        tidy(element.value),
        tuple(map(_plain, element.inner)),
    )
