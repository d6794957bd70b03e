"""Signature Version 4 in the ``Authorization`` header: whether a request was signed with a secret that we know.

Source: AWS's "Signature Version 4 signing process".  Refused beyond what it says: presigned URLs, session tokens,
unsigned payloads.  A request that was captured can be sent again for as long as its date is accepted, five minutes
either way: so AWS has it, and TLS is what keeps requests from being captured.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from keymesh.compat.aws_errors import AwsError
from keymesh.compat.face import FaceRequest
from keymesh.model.errors import Refused

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SKEW_MS: Final = 5 * 60_000
AUTHORIZATION_MAX: Final = 4_096
SIGNED_HEADERS_MAX: Final = 64
DATE_HEADER: Final = "x-amz-date"
BODY_HEADER: Final = "x-amz-content-sha256"
TOKEN_HEADER: Final = "x-amz-security-token"  # noqa: S105 - a header's name

_DATE: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEADER: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True, slots=True)
class Claim:
    """What an ``Authorization`` header says; nothing of it is true before ``check_signature``."""

    access_key_id: str
    day: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str

    @property
    def scope(self) -> str:
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


def incomplete(why: str) -> AwsError:
    return AwsError("IncompleteSignatureException", f"the request signature is not complete: {why}")


def parse_authorization(text: str) -> Claim:
    """Raises AwsError naming the part that is missing or malformed."""
    if len(text) > AUTHORIZATION_MAX:
        raise incomplete(f"Authorization has at most {AUTHORIZATION_MAX} characters")
    algorithm, _, rest = text.partition(" ")
    if algorithm != ALGORITHM:
        raise incomplete(f"only {ALGORITHM} is served")
    parts: dict[str, str] = {}
    for piece in rest.split(","):
        name, equals, value = piece.strip(" ").partition("=")
        if not equals or name in parts or name not in ("Credential", "SignedHeaders", "Signature"):
            raise incomplete("Authorization has Credential, SignedHeaders and Signature, each once")
        parts[name] = value
    if len(parts) != 3:
        raise incomplete("Authorization has Credential, SignedHeaders and Signature, each once")
    scope = parts["Credential"].split("/")
    if len(scope) != 5 or scope[4] != "aws4_request" or not all(scope):
        raise incomplete("Credential is KEY/YYYYMMDD/REGION/SERVICE/aws4_request")
    if not _SIGNATURE.fullmatch(parts["Signature"]):
        raise incomplete("Signature is 64 lower-case hex digits")
    headers = tuple(parts["SignedHeaders"].split(";"))
    if len(headers) > SIGNED_HEADERS_MAX or not all(map(_HEADER.fullmatch, headers)):
        raise incomplete("SignedHeaders are lower-case names")
    if list(headers) != sorted(set(headers)):
        raise incomplete("SignedHeaders are sorted, each once")
    return Claim(scope[0], scope[1], scope[2], scope[3], headers, parts["Signature"])


def read_claim(request: FaceRequest, *, now_ms: int, region: str, service: str) -> Claim:
    """The claim of a request that is for us and of now; whose it is and whether it is true is looked at after this.

    1. One ``Authorization``, no session token, nothing presigned.  2. The scope is our region's and service's.
    3. The date is within five minutes of ours, and on the scope's day.  4. ``host`` and every ``x-amz-*`` header are
    signed.  Raises AwsError.
    """
    try:
        given, date, body = (request.header(name) for name in ("authorization", DATE_HEADER, BODY_HEADER))
    except Refused as twice:
        raise incomplete(twice.message) from twice
    if given is None:
        raise AwsError("MissingAuthenticationTokenException", "the request is not signed")
    claim = parse_authorization(given)
    names = {name for name, _ in request.headers}
    if TOKEN_HEADER in names or "X-Amz-" in request.query:
        raise AwsError("UnrecognizedClientException", "no session tokens and no presigned requests here")
    if claim.region != region or claim.service != service:
        raise AwsError("InvalidSignatureException", f"Credential should be scoped to {region} and {service}")
    if date is None or not _DATE.fullmatch(date):
        raise incomplete("X-Amz-Date is YYYYMMDDTHHMMSSZ")
    if date[:8] != claim.day:
        raise AwsError("InvalidSignatureException", "the date of Credential is not that of X-Amz-Date")
    if abs(instant_of(date) - now_ms) > SKEW_MS:
        raise AwsError("InvalidSignatureException", "X-Amz-Date is more than 5 minutes from this server's clock")
    unsigned = {name for name in names if name == "host" or name.startswith("x-amz-")} - set(claim.signed_headers)
    if unsigned or "host" not in claim.signed_headers:
        raise incomplete("host and every x-amz-* header must be signed")
    if body is not None and body != hashlib.sha256(request.body).hexdigest():
        raise AwsError("InvalidSignatureException", "X-Amz-Content-Sha256 is not the body's")
    return claim


def check_signature(request: FaceRequest, claim: Claim, secret: str | None) -> bool:
    """Whether ``claim`` was made with ``secret``; None is the secret of a key that does not exist.

    Takes as long for that as for a wrong one, and compares in constant time.
    """
    try:
        expected = sign(request, claim, secret or "-")
    except KeyError:  # a signed header that did not come
        return False
    return hmac.compare_digest(expected, claim.signature) and secret is not None


def sign(request: FaceRequest, claim: Claim, secret: str) -> str:
    """The signature of ``request`` in ``claim``'s scope, over its signed headers.  Raises KeyError for absent ones."""
    hashed = hashlib.sha256(canonical_request(request, claim.signed_headers).encode("utf-8")).hexdigest()
    date = dict(request.headers)[DATE_HEADER]
    key = f"AWS4{secret}".encode()
    for part in (claim.day, claim.region, claim.service, "aws4_request"):
        key = _mac(key, part)
    return _mac(key, "\n".join((ALGORITHM, date, claim.scope, hashed))).hex()


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8"), "sha256")


def canonical_request(request: FaceRequest, signed_headers: Iterable[str]) -> str:
    """Raises KeyError for a signed header that is absent."""
    values: dict[str, list[str]] = {}
    for name, value in request.headers:
        values.setdefault(name, []).append(" ".join(value.split()))
    names = tuple(signed_headers)
    return "\n".join(
        (
            request.method,
            canonical_path(request.path),
            canonical_query(request.query),
            *(f"{name}:{','.join(values[name])}" for name in names),
            "",
            ";".join(names),
            hashlib.sha256(request.body).hexdigest(),
        )
    )


def canonical_path(path: str) -> str:
    """Dot segments and empty ones removed, then every byte that is not unreserved encoded, once more than it came."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            kept = kept[:-1]
        elif segment not in ("", "."):
            kept.append(segment)
    whole = "/" + "/".join(kept)
    if kept and path.endswith("/"):
        whole += "/"
    return "".join(chr(b) if b in _UNRESERVED or b == 0x2F else f"%{b:02X}" for b in whole.encode("utf-8"))


def canonical_query(query: str) -> str:
    """Pairs by name, then value, encoded as they came."""
    if not query:
        return ""
    pairs = sorted(piece.partition("=")[::2] for piece in query.split("&"))
    return "&".join(f"{name}={value}" for name, value in pairs)


def instant_of(date: str) -> int:
    """Unix ms of ``X-Amz-Date``.  Raises AwsError where there is no such day or time."""
    try:
        return int(datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() * 1_000)
    except ValueError as bad:
        raise incomplete("X-Amz-Date is no such day or time") from bad
