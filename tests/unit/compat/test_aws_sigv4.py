"""Signature Version 4: botocore signs, we verify; whatever differs from what was signed is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.compat.aws_errors import AwsError
from keymesh.compat.aws_sigv4 import (
    SKEW_MS,
    canonical_path,
    canonical_request,
    check_signature,
    parse_authorization,
    read_claim,
)
from keymesh.compat.face import FaceRequest
from tests.unit.compat.aws import HOST, NOW_MS, REGION, SECRET, by_botocore, signed

GOOD = signed("Encrypt", {"KeyId": "alias/files", "Plaintext": "aGk="})
TOKEN = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
SEGMENT = st.text("abcXYZ019-._~%!$&'()*+,;=:@", max_size=8)


def verified(request: FaceRequest, secret: str | None = SECRET, now_ms: int = NOW_MS) -> bool:
    claim = read_claim(request, now_ms=now_ms, region=REGION, service="kms")
    return check_signature(request, claim, secret)


def with_header(request: FaceRequest, name: str, value: str | None) -> FaceRequest:
    """``name`` replaced, or with None taken away."""
    kept = tuple(pair for pair in request.headers if pair[0] != name)
    return replace(request, headers=kept if value is None else (*kept, (name, value)))


def test_the_canonical_request_is_the_specifications() -> None:
    """By hand, from the description of the form: method, path, query, headers, their names, hash of the body."""
    request = FaceRequest(
        method="POST",
        path="/a//b/./c/../d e",
        query="b=2&a=1&a=0",
        headers=(("x-b", "  two   words "), ("host", "kms"), ("x-b", "again"), ("not-signed", "x")),
        body=b"{}",
        peer="",
        correlation_id="c",
    )
    assert (
        canonical_request(request, ("host", "x-b"))
        == "\n".join(("POST", "/a/b/d%20e", "a=0&a=1&b=2", "host:kms", "x-b:two words,again", "", "host;x-b"))
        + "\n"
        + hashlib.sha256(b"{}").hexdigest()
    )


@given(
    method=st.sampled_from(["POST", "GET", "PUT"]),
    path=st.lists(SEGMENT, max_size=4),
    query=st.lists(st.tuples(TOKEN, TOKEN), max_size=5),
    headers=st.dictionaries(TOKEN.map(lambda name: f"x-amz-{name}"), VALUE, max_size=4),
    body=st.binary(max_size=200),
)
def test_what_botocore_signs_is_verified(
    method: str, path: list[str], query: list[tuple[str, str]], headers: dict[str, str], body: bytes
) -> None:
    for name in ("x-amz-date", "x-amz-content-sha", "x-amz-security-token"):
        headers.pop(name, None)
    where = "/" + "/".join(path)
    asked = f"?{'&'.join(f'{k}={v}' for k, v in query)}" if query else ""
    request = by_botocore(method, f"https://{HOST}{where}{asked}", {"Host": HOST, **headers}, body)
    assert verified(request)
    assert not verified(request, "t" * 40)
    assert not verified(request, None)
    assert not verified(replace(request, body=body + b"x"))
    assert not verified(replace(request, query=request.query + "&z=1"))
    assert not verified(replace(request, method="DELETE"))


@given(st.lists(st.sampled_from(["", ".", "..", "a", "b%2F", "c~"]), max_size=8), st.booleans())
def test_paths_are_normalised_as_botocore_does(segments: list[str], slash: bool) -> None:
    from urllib.parse import quote

    from botocore.utils import normalize_url_path

    path = "/" + "/".join(segments) + ("/" if slash else "")
    assert canonical_path(path) == quote(normalize_url_path(path), safe="/~")


@pytest.mark.parametrize("name", ["host", "x-amz-date", "x-amz-target", "content-type"])
def test_no_signed_header_may_be_changed_or_taken_away(name: str) -> None:
    assert verified(GOOD)
    if name != "x-amz-date":
        assert not verified(with_header(GOOD, name, "other"))
        assert not verified(with_header(GOOD, name, None))
    else:
        with pytest.raises(AwsError, match="Credential"):
            verified(with_header(GOOD, name, "20261231T235959Z"))
        with pytest.raises(AwsError, match="YYYYMMDDTHHMMSSZ"):
            verified(with_header(GOOD, name, None))


def test_a_header_of_amazons_that_is_not_signed_is_refused() -> None:
    with pytest.raises(AwsError, match="must be signed"):
        verified(with_header(GOOD, "x-amz-extra", "1"))
    header = GOOD.header("authorization") or ""
    with pytest.raises(AwsError, match="must be signed"):
        verified(with_header(GOOD, "authorization", header.replace("host;", "")))


@pytest.mark.parametrize("off_ms", [0, SKEW_MS, -SKEW_MS])
def test_a_clock_may_differ_by_five_minutes(off_ms: int) -> None:
    assert verified(GOOD, now_ms=NOW_MS + off_ms)


@pytest.mark.parametrize("off_ms", [SKEW_MS + 1_000, -SKEW_MS - 1_000, 86_400_000])
def test_and_by_no_more(off_ms: int) -> None:
    with pytest.raises(AwsError, match="5 minutes") as refused:
        verified(GOOD, now_ms=NOW_MS + off_ms)
    assert refused.value.name == "InvalidSignatureException"


def test_a_replay_in_the_window_is_what_aws_allows() -> None:
    assert verified(GOOD)
    assert verified(GOOD, now_ms=NOW_MS + 60_000)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "IncompleteSignatureException"),
        ("Bearer abc", "IncompleteSignatureException"),
        ("AWS4-HMAC-SHA256 Credential=A/20261128/us-east/kms/aws4_request", "IncompleteSignatureException"),
        ("AWS4-HMAC-SHA256 Credential=A, SignedHeaders=host, Signature=" + "0" * 64, "IncompleteSignatureException"),
        (
            "AWS4-HMAC-SHA256 Credential=A/b/c/kms/aws4_request, SignedHeaders=host;host, Signature=" + "0" * 64,
            "IncompleteSignatureException",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=A/b/c/kms/aws4_request, SignedHeaders=x;host, Signature=" + "0" * 64,
            "IncompleteSignatureException",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=A/b/c/kms/aws4_request, SignedHeaders=host, Signature=" + "0" * 63,
            "IncompleteSignatureException",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=A/b/c/kms/aws4_request, SignedHeaders=host, SignedHeaders=host",
            "IncompleteSignatureException",
        ),
        ("A" * 5_000, "IncompleteSignatureException"),
    ],
)
def test_a_malformed_authorization_is_refused(words: str, error: str) -> None:
    with pytest.raises(AwsError) as refused:
        parse_authorization(words)
    assert refused.value.name == error


def test_scope_token_body_hash_and_presigned_requests() -> None:
    with pytest.raises(AwsError, match="scoped to"):
        verified(signed("ListKeys", {}, region="eu-west"))
    with pytest.raises(AwsError, match="session tokens"):
        verified(with_header(GOOD, "x-amz-security-token", "t"))
    with pytest.raises(AwsError, match="presigned"):
        verified(replace(GOOD, query="X-Amz-Signature=0"))
    with pytest.raises(AwsError, match="not signed"):
        verified(with_header(GOOD, "authorization", None))
    with pytest.raises(AwsError, match="given twice"):
        verified(replace(GOOD, headers=(*GOOD.headers, ("authorization", "x"))))
    for wrong in ("UNSIGNED-PAYLOAD", "0" * 64):
        headers = {"Host": HOST, "X-Amz-Content-SHA256": wrong}
        with pytest.raises(AwsError, match="Sha256"):
            verified(by_botocore("POST", f"https://{HOST}/", headers, b"{}"))
