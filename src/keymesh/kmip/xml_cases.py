"""Conformance cases in the XML form: requests with placeholders, and whether an answer is the one that is expected.

Decides what a request says once its placeholders are filled in, and in what an answer differs; knows no file and no
server.  An answer may differ where the profiles permit it (KMIP 2.1 profiles, "Permitted Test Case
Variations"): instants, texts of messages, object groups that no request named, what the server chose (bytes by their
length), vendors' own words, further attributes, the order of attributes.  All else is pinned.

Bytes that the server drew, and that a later request of the case gives back, are given back as this server drew them.
Placeholders, whole values: ``$NOW``, ``$NOW-3600``; any other name is bound where an answer shows it first.  One that
no answer shows and that is the name of its element (``$MAC_DATA`` in ``MACData``) is what the last answer had there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from keymesh.kmip.ttlv import Item, ItemType
from keymesh.kmip.xml_form import (
    KINDS,
    Element,
    Value,
    element_of,
    item_of,
    meant,
    parse,
    tag_of,
    tidy,
)
from keymesh.model.errors import Refused

NOW: Final = re.compile(r"\$NOW(?:([+-])([0-9]{1,9}))?")
NOW_SLACK_S: Final = 600
"""An instant that is to be ``$NOW`` may be so far from it: cases take time, clocks of machines differ."""

_GENERATING: Final = frozenset({"Create", "CreateKeyPair", "ReKey", "ReKeyKeyPair", "DeriveKey"})
_IDENTIFIERS: Final = (
    "UniqueIdentifier",
    "PrivateKeyUniqueIdentifier",
    "PublicKeyUniqueIdentifier",
)
_IGNORED: Final = frozenset({"TimeStamp", "ResultMessage", "VendorIdentification", "ServerCorrelationValue"})
"""Their values say nothing; ``VendorIdentification`` only outside of attributes, where it is part of a name."""
_MAY_BE_ABSENT: Final = frozenset({"ResultMessage", "ServerCorrelationValue", "VendorIdentification"})
_MAY_BE_MORE: Final = frozenset(
    {
        "ResultMessage",
        "ServerCorrelationValue",
        "ClientCorrelationValue",
        "MessageExtension",
        "TemplateAttribute",
    }
)
_SERVERS_WORD: Final = frozenset({"ServerInformation", "RandomNumberGenerator"})
"""Structures in which a server tells of itself."""
_ANY_ORDER: Final = frozenset({"ResponsePayload", "Attributes", "TemplateAttribute"})
_MORE_ITEMS: Final = {
    "Query": frozenset({"Operation", "ObjectType", "ApplicationNamespace", "ExtensionInformation"}),
    "GetAttributeList": frozenset({"AttributeName", "AttributeReference"}),
    "DiscoverVersions": frozenset({"ProtocolVersion"}),
}
"""Operation -> what its answer may hold beyond what the case shows."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and the answer that is to come."""

    request: Element
    response: Element


@dataclass(frozen=True, slots=True)
class Case:
    exchanges: tuple[Exchange, ...]


def read_case(raw: bytes) -> Case:
    """The exchanges of a case's file, in order.  Raises Refused where it is no such file."""
    outermost = parse(raw)
    messages = [one for one in outermost.inner if one.name in ("RequestMessage", "ResponseMessage")]
    asked, answered = messages[::2], messages[1::2]
    turns = len(asked) == len(answered) > 0 and all(
        (a.name, b.name) == ("RequestMessage", "ResponseMessage") for a, b in zip(asked, answered, strict=True)
    )
    if not turns or len(messages) != len(outermost.inner):
        raise Refused.bad_field(outermost.name[:80], "requests and responses in turn, nothing else")
    return Case(tuple(map(Exchange, asked, answered)))


@dataclass(slots=True)
class Bindings:
    """What placeholders stand for, and what is known of the objects, while a case runs."""

    named: dict[str, Value] = field(default_factory=dict)
    said: set[tuple[str, str]] = field(default_factory=set)
    """(kind, text) of values that requests gave: the server has not chosen those."""
    generated: set[Value] = field(default_factory=set)
    """Identifiers of objects whose bytes the server drew."""
    last: dict[int, Value] = field(default_factory=dict)
    """By tag: what the answers had there last."""
    groups: bool = False
    """Whether a request named an object group."""
    drawn: dict[str, bytes] = field(default_factory=dict)
    """What the server drew where a case shows bytes that its author's server had drawn."""

    def copy(self) -> Bindings:
        return replace(self, named=dict(self.named), drawn=dict(self.drawn))

    def become(self, other: Bindings) -> None:
        self.named, self.drawn = other.named, other.drawn

    def value_of(self, element: Element) -> Value:
        """What the placeholder in a request's element stands for.  Raises Refused."""
        text = element.value
        if text in self.named:
            return self.named[text]
        last = self.last.get(tag_of(element))
        if last is None or text.replace("_", "").lower() != f"${element.name.lower()}":
            raise Refused.bad_field(element.name, f"{text} was in no answer yet")
        return last


def request_item(exchange: Exchange, bindings: Bindings, *, now: int) -> Item:
    """The request, its placeholders filled in.  ``now``: seconds since 1970.

    Raises Refused where a placeholder was in no answer yet, or a word is unknown.
    """

    def look(element: Element) -> Value | None:
        text = element.value
        bindings.groups = bindings.groups or _is_of_a_group(element)
        if not text.startswith("$"):
            drawn = bindings.drawn.get(text) if element.kind == "ByteString" else None
            if drawn is None:
                bindings.said.add((element.kind, text))
            return drawn
        if (offset := now_offset(text)) is not None:
            return now + offset
        return bindings.value_of(element)

    return item_of(exchange.request, look)


def now_offset(text: str) -> int | None:
    """Seconds from now that ``text`` names; None where it is no such placeholder."""
    found = NOW.fullmatch(text)
    if found is None:
        return None
    return int(found[2] or 0) * (-1 if found[1] == "-" else 1)


def differences(exchange: Exchange, answer: Item, bindings: Bindings, *, now: int) -> list[str]:
    """Where ``answer`` is not the one expected, each a place and what is wrong there; binds placeholders."""
    _note(answer, bindings)
    asked, wanted = (
        [one for one in message.inner if one.name == "BatchItem"] for message in (exchange.request, exchange.response)
    )
    for_all = frozenset(id(b) for a, b in zip(asked, wanted, strict=False) if _asks_for_all(a))
    return _Comparison(bindings, now, for_all).run(exchange.response, answer)


def _asks_for_all(batch: Element) -> bool:
    """Whether a request wants every attribute there is, of which a case may show some."""
    payload = batch.find("RequestPayload")
    names = () if payload is None else [one.name for one in payload.inner]
    return batch.text("Operation") == "GetAttributes" and not {
        "AttributeName",
        "AttributeReference",
    } & set(names)


def _note(answer: Item, bindings: Bindings) -> None:
    waiting = [answer]
    while waiting:
        item = waiting.pop()
        if isinstance(item.value, tuple):
            waiting.extend(reversed(item.value))
        else:
            bindings.last[item.tag] = item.value
    for batch in element_of(answer).inner:
        payload = batch.find("ResponsePayload")
        if payload is not None and batch.text("Operation") in _GENERATING:
            bindings.generated |= {one.value for one in payload.inner if one.name in _IDENTIFIERS}


@dataclass(slots=True)
class _Comparison:
    """One answer beside one expected message."""

    bindings: Bindings
    now: int
    for_all: frozenset[int] = frozenset()
    """The expected batch items (by ``id``) that show attributes of which the request named none."""
    operation: str = ""
    more_attributes: bool = False
    chosen: bool = False
    """Whether the bytes in the payload at hand are of an object that the server generated."""

    def run(self, wanted: Element, got: Item) -> list[str]:
        """Every difference."""
        return self._same(wanted, got, wanted.name)

    def _same(self, wanted: Element, got: Item, place: str) -> list[str]:
        kind = KINDS[wanted.kind]
        if got.tag != tag_of(wanted):
            return [f"{place}: expected {wanted.name}, got {element_of(got).name}"]
        if got.type is not kind:
            return [f"{place}: expected a value of type {wanted.kind}, got {got.type.name}"]
        if not isinstance(got.value, tuple):
            return self._same_value(wanted, got, place)
        if wanted.name in _SERVERS_WORD or wanted.attribute.replace(" ", "") in _SERVERS_WORD:
            return []
        if wanted.name == "BatchItem":
            self._enter(wanted, got)
        return self._same_inner(wanted, got.value, place)

    def _enter(self, wanted: Element, got: Item) -> None:
        """Into a batch item: which operation, and whose bytes."""
        self.operation, self.more_attributes = (
            wanted.text("Operation"),
            id(wanted) in self.for_all,
        )
        payload = element_of(got).find("ResponsePayload")
        identifier = "" if payload is None else payload.text("UniqueIdentifier")
        self.chosen = identifier in self.bindings.generated

    def _same_inner(self, wanted: Element, got: Sequence[Item], place: str) -> list[str]:
        left = list(got)
        found: list[str] = []
        at = 0
        for number, one in enumerate(wanted.inner):
            inner_place = f"{place}/{one.name}" + (f"[{number}]" if _repeated(wanted, one.name) else "")
            match = self._match(wanted, one, left, at, inner_place)
            if isinstance(match, int):
                at = match
                del left[match]
            elif not self._may_lack(wanted, one, left):
                found += match
                at = _drop_first(left, one, at)
        found += [
            f"{place}: {element_of(more).name} is not expected" for more in left if not self._may_be_more(wanted, more)
        ]
        return found

    def _match(self, holder: Element, wanted: Element, left: list[Item], at: int, place: str) -> int | list[str]:
        """Where among ``left`` the wanted one is, or what is wrong with the one that comes nearest."""
        tag = tag_of(wanted)
        places = [n for n, item in enumerate(left) if item.tag == tag]
        if not places:
            return [f"{place}: missing"]
        if holder.name not in _ANY_ORDER:
            later = [n for n in places if n >= at]
            if not later:
                return [f"{place}: out of order"]
            places = later[:1]
        nearest: list[tuple[bool, int, list[str]]] = []
        for n in places:
            trial = replace(self, bindings=self.bindings.copy())
            wrong = trial._same(wanted, left[n], place)
            if not wrong:
                self.bindings.become(trial.bindings)
                return n
            nearest.append((not _names_it(wanted, left[n]), len(wrong), wrong))
        return min(nearest)[2]

    def _may_lack(self, holder: Element, wanted: Element, left: list[Item]) -> bool:
        """Whether an answer may do without ``wanted``: an object group that no request named, too."""
        if _may_be_absent(holder, wanted) and _lacks(left, wanted):
            return True
        parts = (wanted, *wanted.inner) if wanted.name == "Attribute" else (wanted,)
        return not self.bindings.groups and any(map(_is_of_a_group, parts))

    def _may_be_more(self, holder: Element, more: Item) -> bool:
        name = element_of(more).name
        if name in _MAY_BE_MORE or (name == "AttributeIndex" and more.value == 0):
            return True
        if self.more_attributes and (holder.name == "Attributes" or name == "Attribute"):
            return True
        if holder.name == "ResponsePayload":
            return name in _MORE_ITEMS.get(self.operation, ())
        return False

    def _same_value(self, wanted: Element, got: Item, place: str) -> list[str]:
        text, value = wanted.value, got.value
        assert not isinstance(value, tuple)
        if wanted.name in _IGNORED and "Attribute" not in place:
            return []
        if (offset := now_offset(text)) is not None:
            assert isinstance(value, int)
            near = abs(value - self.now - offset) <= NOW_SLACK_S
            return [] if near else [f"{place}: expected {text} ({self.now + offset}), got {value}"]
        if text.startswith("$"):
            return self._same_placeholder(text, value, place)
        if got.type is ItemType.DATE_TIME and not self._is_said(wanted):
            return []
        try:
            pinned = meant(wanted)
        except Refused as unknown:
            return [f"{place}: the case cannot be read: {unknown.message}"]
        if isinstance(value, bytes) and isinstance(pinned, bytes) and self._server_chose(wanted):
            return self._same_drawn(wanted.value, pinned, value, place)
        if pinned == value:
            return []
        return [f"{place}: expected {text}, got {element_of(got, wanted.attribute).value}"]

    def _same_placeholder(self, text: str, value: Value, place: str) -> list[str]:
        bound = self.bindings.named.get(text)
        if bound is not None:
            return [] if bound == value else [f"{place}: {text} was {_brief(bound)}, now it is {_brief(value)}"]
        if text.startswith("$UNIQUE_IDENTIFIER"):
            taken = [name for name, other in self.bindings.named.items() if other == value and name[:18] == text[:18]]
            if taken:
                return [f"{place}: {text} is to be another object than {taken[0]}"]
        self.bindings.named[text] = value
        return []

    def _same_drawn(self, shown: str, pinned: bytes, value: bytes, place: str) -> list[str]:
        """Bytes of the length shown; where the case shows the same ones again, the same ones."""
        if len(value) != len(pinned):
            return [f"{place}: expected {len(pinned)} bytes, got {len(value)}"]
        before = self.bindings.drawn.setdefault(shown, value)
        return [] if before == value else [f"{place}: it was {_brief(before)}, now it is {_brief(value)}"]

    def _is_said(self, wanted: Element) -> bool:
        return (wanted.kind, wanted.value) in self.bindings.said

    def _server_chose(self, wanted: Element) -> bool:
        """Bytes of an object that the server generated, or of its random numbers; none that a request gave."""
        return (self.chosen or self.operation == "RNGRetrieve") and not self._is_said(wanted)


def _is_of_a_group(element: Element) -> bool:
    """Whether an element is, or names, an object group."""
    names = (
        element.name,
        tidy(element.value).replace(" ", ""),
        element.attribute.replace(" ", ""),
    )
    return "ObjectGroup" in names


def _repeated(holder: Element, name: str) -> bool:
    return sum(one.name == name for one in holder.inner) > 1


def _may_be_absent(holder: Element, wanted: Element) -> bool:
    return wanted.name in _MAY_BE_ABSENT and "Attribute" not in holder.name


def _lacks(left: list[Item], wanted: Element) -> bool:
    tag = tag_of(wanted)
    return all(item.tag != tag for item in left)


def _drop_first(left: list[Item], wanted: Element, at: int) -> int:
    """Take the first of that tag away, so that it is not told again as unexpected."""
    tag = tag_of(wanted)
    for n, item in enumerate(left):
        if item.tag == tag:
            del left[n]
            return n
    return at


def _names_it(wanted: Element, got: Item) -> bool:
    """Whether ``got`` is an attribute of the wanted name, though of another value."""
    name = wanted.text("AttributeName")
    return bool(name) and element_of(got).text("AttributeName") == " ".join(name.split())


def _brief(value: Value) -> str:
    return value.hex()[:64] if isinstance(value, bytes) else str(value)[:64]
