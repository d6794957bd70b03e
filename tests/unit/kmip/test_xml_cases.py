"""Conformance cases: placeholders, what an answer may differ in and what it may not, which cases are skipped."""

from __future__ import annotations

import pytest

from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item
from keymesh.kmip.xml_cases import (
    NOW_SLACK_S,
    Bindings,
    Case,
    differences,
    read_case,
    request_item,
)
from keymesh.kmip.xml_form import item_of, parse
from keymesh.kmip.xml_scope import SEED_REASON, needs_another, provider_of, skip_reason
from keymesh.model.errors import Refused

NOW = 1_700_000_000


def text(name: str, value: str, kind: str = "TextString") -> str:
    return f'<{name} type="{kind}" value="{value}"/>'


def uid(value: str) -> str:
    return text("UniqueIdentifier", value)


def operation(name: str) -> str:
    return text("Operation", name, "Enumeration")


def asked(name: str, payload: str = "") -> str:
    inner = f"{operation(name)}<RequestPayload>{payload}</RequestPayload>"
    return f"<RequestMessage><BatchItem>{inner}</BatchItem></RequestMessage>"


def answered(name: str, payload: str = "", more: str = "") -> str:
    status = text("ResultStatus", "Success", "Enumeration")
    inner = f"{operation(name)}{status}{more}<ResponsePayload>{payload}</ResponsePayload>"
    return f"<ResponseMessage><BatchItem>{inner}</BatchItem></ResponseMessage>"


def case_of(*messages: str) -> Case:
    return read_case(f"<KMIP> # TIME 0\n{''.join(messages)}</KMIP>".encode())


def item(message: str) -> Item:
    return item_of(parse(message.encode()))


def compared(
    name: str,
    wanted: str,
    got: str,
    *,
    request: str = "",
    bindings: Bindings | None = None,
    more: str = "",
) -> list[str]:
    """What is told of ``got`` where ``wanted`` is expected in the payload of an answer."""
    bindings = bindings or Bindings()
    exchange = case_of(asked(name, request), answered(name, wanted)).exchanges[0]
    request_item(exchange, bindings, now=NOW)
    return differences(exchange, item(answered(name, got, more)), bindings, now=NOW)


# --- placeholders -----------------------------------------------------------------------------------------------------


def test_a_placeholder_is_bound_by_an_answer_and_stands_in_later_requests() -> None:
    bindings = Bindings()
    assert compared("Create", uid("$UNIQUE_IDENTIFIER_0"), uid("a"), bindings=bindings) == []
    (exchange,) = case_of(asked("Get", uid("$UNIQUE_IDENTIFIER_0")), answered("Get")).exchanges
    assert request_item(exchange, bindings, now=NOW) == item(asked("Get", uid("a")))
    assert compared("Get", uid("$UNIQUE_IDENTIFIER_0"), uid("a"), bindings=bindings) == []
    (told,) = compared("Get", uid("$UNIQUE_IDENTIFIER_0"), uid("b"), bindings=bindings)
    assert "was a, now it is b" in told
    (told,) = compared("Create", uid("$UNIQUE_IDENTIFIER_1"), uid("a"), bindings=bindings)
    assert "another object than $UNIQUE_IDENTIFIER_0" in told


def test_a_placeholder_that_nothing_was_bound_to_is_no_request() -> None:
    (exchange,) = case_of(asked("Get", uid("$UNIQUE_IDENTIFIER_0")), answered("Get")).exchanges
    bindings = Bindings()
    with pytest.raises(Refused, match="in no answer yet"):
        request_item(exchange, bindings, now=NOW)
    bindings.last[Tag.UniqueIdentifier] = "of another"
    with pytest.raises(Refused, match="in no answer yet"):
        request_item(exchange, bindings, now=NOW)


def test_the_name_of_an_element_stands_for_what_the_last_answer_had_there() -> None:
    bindings = Bindings()
    compared(
        "MAC",
        text("MACData", "aa", "ByteString"),
        text("MACData", "aa", "ByteString"),
        bindings=bindings,
    )
    (exchange,) = case_of(
        asked("MACVerify", text("MACData", "$MAC_DATA", "ByteString")),
        answered("MACVerify"),
    ).exchanges
    assert request_item(exchange, bindings, now=NOW) == item(asked("MACVerify", text("MACData", "aa", "ByteString")))


def test_now_is_an_instant_near_which_an_answer_must_be() -> None:
    def date(value: object) -> str:
        return text("ActivationDate", str(value), "DateTime")

    (exchange,) = case_of(asked("Create", date("$NOW-3600")), answered("Create")).exchanges
    assert request_item(exchange, Bindings(), now=NOW) == item(asked("Create", date(NOW - 3600)))
    assert compared("GetAttributes", date("$NOW-3600"), date(NOW - 3600)) == []
    assert compared("GetAttributes", date("$NOW-3600"), date(NOW - 3600 - NOW_SLACK_S)) == []
    assert compared("GetAttributes", date("$NOW-3600"), date(NOW)) != []
    assert compared("GetAttributes", date("$NOW"), date(NOW + NOW_SLACK_S + 1)) != []


def test_an_instant_is_pinned_only_where_a_request_gave_it() -> None:
    wanted, got = (
        text("DestroyDate", "1970-01-01T00:00:06+00:00", "DateTime"),
        text("DestroyDate", "9", "DateTime"),
    )
    assert compared("GetAttributes", wanted, got) == []
    assert compared("GetAttributes", wanted, got, request=wanted) != []


# --- what may differ --------------------------------------------------------------------------------------------------


def key(material: str, uid_value: str = "a") -> str:
    value = f"<KeyValue>{text('KeyMaterial', material, 'ByteString')}</KeyValue>"
    return f"{uid(uid_value)}<SymmetricKey><KeyBlock>{value}</KeyBlock></SymmetricKey>"


def test_bytes_that_the_server_drew_are_compared_by_length_and_others_are_pinned() -> None:
    bindings = Bindings()
    assert compared("Get", key("aaaa"), key("bbbb")) != [], "a key that was registered"
    compared("Create", uid("a"), uid("a"), bindings=bindings)
    assert "expected 2 bytes, got 3" in compared("Get", key("aaaa"), key("bbbbbb"), bindings=bindings)[0]
    assert compared("Get", key("aaaa"), key("bbbb"), bindings=bindings) == []
    assert compared("Get", key("aaaa"), key("bbbb"), bindings=bindings) == []
    assert "it was bbbb, now it is cccc" in compared("Get", key("aaaa"), key("cccc"), bindings=bindings)[0]
    assert compared("Get", key("aaaa", "c"), key("bbbb", "c"), bindings=bindings) != [], "another object"
    data = text("Data", "0102", "ByteString"), text("Data", "0304", "ByteString")
    assert compared("RNGRetrieve", *data) == []
    assert compared("Hash", *data) != []


def test_what_the_server_drew_is_given_back_and_opens_to_what_a_request_gave() -> None:
    plain, shown, drawn = (text("Data", value, "ByteString") for value in ("0102", "fd91", "0304"))
    bindings = Bindings()
    compared("Create", uid("a"), uid("a"), bindings=bindings)
    assert (
        compared(
            "Encrypt",
            uid("a") + shown,
            uid("a") + drawn,
            request=plain,
            bindings=bindings,
        )
        == []
    )
    (exchange,) = case_of(asked("Decrypt", shown), answered("Decrypt", uid("a") + plain)).exchanges
    assert request_item(exchange, bindings, now=NOW) == item(asked("Decrypt", drawn))
    for got, is_right in ((plain, True), (shown, False)):
        told = differences(exchange, item(answered("Decrypt", uid("a") + got)), bindings, now=NOW)
        assert (told == []) is is_right


def test_where_all_attributes_are_asked_for_there_may_be_more_and_not_fewer() -> None:
    one, two = (f"<Attributes>{inner}</Attributes>" for inner in (text("Comment", "c"), text("Comment", "c") * 2))
    assert compared("GetAttributes", one, two) == []
    assert (
        compared(
            "GetAttributes",
            one,
            two,
            request=text("AttributeReference", "Comment", "Enumeration"),
        )
        != []
    )
    assert compared("GetAttributes", two, one) != []
    old = [f"<Attribute>{text('AttributeName', name)}</Attribute>" for name in ("Name", "State")]
    assert compared("GetAttributes", old[0], old[1] + old[0]) == []
    assert (
        compared(
            "GetAttributes",
            old[0],
            old[1] + old[0],
            request=text("AttributeName", "Name"),
        )
        != []
    )


@pytest.mark.parametrize(
    ("name", "wanted", "got"),
    [
        ("Get", uid("a"), uid("b")),
        ("Get", uid("a"), ""),
        ("Get", "", uid("a")),
        ("Get", uid("a"), uid("a") + uid("a")),
        ("Get", uid("a"), text("UniqueIdentifier", "1", "Integer")),
        (
            "Get",
            text("State", "Active", "Enumeration"),
            text("State", "PreActive", "Enumeration"),
        ),
        ("Locate", uid("a") + uid("b"), uid("a")),
        ("Locate", uid("a"), uid("a") + uid("b")),
        ("Query", operation("Get") + operation("Locate"), operation("Get")),
        (
            "GetAttributeList",
            text("AttributeName", "State"),
            text("AttributeName", "Name"),
        ),
        ("Get", "<KeyValue><P/><Q/></KeyValue>", "<KeyValue><Q/><P/></KeyValue>"),
        (
            "Get",
            f"<Attributes><Attribute>{text('VendorIdentification', 'x')}</Attribute></Attributes>",
            f"<Attributes><Attribute>{text('VendorIdentification', 'y')}</Attribute></Attributes>",
        ),
    ],
)
def test_what_is_pinned(name: str, wanted: str, got: str) -> None:
    assert compared(name, wanted, got) != []


@pytest.mark.parametrize(
    ("name", "wanted", "got"),
    [
        ("Locate", uid("a") + uid("b"), uid("b") + uid("a")),
        ("Query", operation("Get"), operation("Locate") + operation("Get")),
        ("Query", text("VendorIdentification", "v"), text("VendorIdentification", "w")),
        (
            "GetAttributes",
            f"<Attribute>{text('AttributeName', 'Random Number Generator')}<AttributeValue/></Attribute>",
            f"<Attribute>{text('AttributeName', 'Random Number Generator')}"
            f"<AttributeValue>{text('RNGAlgorithm', '1', 'Enumeration')}</AttributeValue></Attribute>",
        ),
        (
            "Query",
            "<ServerInformation/>",
            f"<ServerInformation>{text('Comment', 'c')}</ServerInformation>",
        ),
        (
            "GetAttributeList",
            text("AttributeName", "State"),
            text("AttributeName", "Name") + text("AttributeName", "State"),
        ),
        (
            "GetAttributeList",
            text("AttributeName", "Object   Type"),
            text("AttributeName", "Object Type"),
        ),
        (
            "GetAttributes",
            f"<Attributes>{text('Comment', 'c')}{text('Description', 'd')}</Attributes>",
            f"<Attributes>{text('Description', 'd')}{text('Comment', 'c')}</Attributes>",
        ),
        (
            "AddAttribute",
            "<Attribute/>",
            f"<Attribute>{text('AttributeIndex', '0', 'Integer')}</Attribute>",
        ),
    ],
)
def test_what_may_differ(name: str, wanted: str, got: str) -> None:
    assert compared(name, wanted, got) == []


def test_a_message_s_text_says_nothing_and_its_reason_does() -> None:
    assert compared("Get", "", "", more=text("ResultMessage", "any")) == []
    assert compared("Get", "", "", more=text("ResultReason", "ItemNotFound", "Enumeration")) != []


def test_an_object_group_that_no_request_named_may_be_absent() -> None:
    name = text("AttributeName", "Object   Group")
    other = text("AttributeName", "State")
    assert compared("GetAttributeList", name + other, other) == []
    assert compared("GetAttributeList", name + other, other, request=name) != []
    assert compared("GetAttributeList", name + other, "") != []


def test_batch_items_are_in_order() -> None:
    messages = [f"<BatchItem>{operation(name)}</BatchItem>" for name in ("Create", "Get")]
    there, back = ("".join(each) for each in (messages, messages[::-1]))
    case = case_of(asked("Create"), f"<ResponseMessage>{there}</ResponseMessage>")
    assert (
        differences(
            case.exchanges[0],
            item(f"<ResponseMessage>{there}</ResponseMessage>"),
            Bindings(),
            now=NOW,
        )
        == []
    )
    assert (
        differences(
            case.exchanges[0],
            item(f"<ResponseMessage>{back}</ResponseMessage>"),
            Bindings(),
            now=NOW,
        )
        != []
    )


@pytest.mark.parametrize(
    "text_of_file",
    [
        "<KMIP/>",
        f"<KMIP>{asked('Get')}</KMIP>",
        f"<KMIP>{answered('Get')}{asked('Get')}</KMIP>",
        "<KMIP><State/></KMIP>",
    ],
)
def test_what_is_no_case(text_of_file: str) -> None:
    with pytest.raises(Refused):
        read_case(text_of_file.encode())


# --- which cases are skipped ------------------------------------------------------------------------------------------


def typed(name: str) -> str:
    return text("ObjectType", name, "Enumeration")


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("CreateKeyPair", "", "needs key pairs"),
        ("Register", typed("PrivateKey"), "needs private keys"),
        ("Register", "<Certificate/>", "needs certificates"),
        (
            "Create",
            f"<Attributes>{text('CryptographicAlgorithm', 'DES3', 'Enumeration')}</Attributes>",
            "",
        ),
        (
            "Create",
            "<TemplateAttribute><Attribute>"
            + text("AttributeName", "Cryptographic   Algorithm")
            + text("AttributeValue", "RSA", "Enumeration")
            + "</Attribute></TemplateAttribute>",
            "needs RSA keys",
        ),
        (
            "Create",
            typed("SymmetricKey") + text("CryptographicAlgorithm", "SKIPJACK", "Enumeration"),
            "",
        ),
        (
            "Create",
            typed("SymmetricKey") + text("NameValue", "PrivateKey RSA Certificate DES3"),
            "",
        ),
        ("Register", typed("SecretData"), ""),
        ("Register", typed("OpaqueObject"), ""),
        ("NoSuchOperation", "", ""),
    ],
)
def test_a_case_is_skipped_for_what_it_uses(name: str, payload: str, reason: str) -> None:
    assert skip_reason(case_of(asked(name, payload), answered(name))) == reason


def test_a_query_that_is_to_list_what_is_not_there_is_skipped_and_no_other() -> None:
    listed = typed("PGPKey") + operation("Sign")
    assert skip_reason(case_of(asked("Query"), answered("Query", listed))) == "needs PGP keys, signatures"
    assert skip_reason(case_of(asked("Locate"), answered("Locate", listed))) == ""


def test_a_server_gives_one_of_the_answers_to_a_seed() -> None:
    def seeded(length: int) -> Case:
        taken = answered("RNGSeed", text("DataLength", str(length), "Integer"))
        return case_of(asked("RNGSeed", text("Data", "aabb", "ByteString")), taken)

    assert [skip_reason(seeded(n)) for n in (2, 1, 0)] == ["", SEED_REASON, SEED_REASON]


def test_a_case_may_go_on_where_another_one_ended() -> None:
    group = text("ObjectGroup", "g")
    goes_on = case_of(
        asked("Locate", f"<Attributes>{group}{typed('SecretData')}</Attributes>"),
        answered("Locate", uid("$U_0")),
    )
    makes = case_of(
        asked(
            "Register",
            f"{typed('SecretData')}<Attributes>{text('Comment', 'c')}{group}</Attributes>",
        ),
        answered("Register", uid("$U_0")),
    )
    ends = Case(makes.exchanges + case_of(asked("Destroy", uid("$U_0")), answered("Destroy")).exchanges)
    assert needs_another(goes_on)
    assert not needs_another(makes)
    assert not needs_another(case_of(asked("Locate"), answered("Locate"))), "nothing is to be found"
    assert provider_of(goes_on, {"a": goes_on, "b": ends, "c": makes}) == "c"
    assert provider_of(goes_on, {"b": ends}) is None
