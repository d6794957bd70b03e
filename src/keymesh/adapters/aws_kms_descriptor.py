"""Where a tenant's L1 is in AWS KMS, as its binding records it; and what a Core was given for it.

``replicas``: region to ARN; several are the replicas of one multi-region key (``mrk-...``, one account).  Nothing in a
binding is secret, and nothing in it says where a request goes or by whose credentials: that is this machine's file
``l1/TENANT/aws.json`` (mode 0600, see ``l1_credentials``), which names the ARNs that it is for:

    {"arns": [ARN, ...], "access_key_id": ID, "secret_access_key": SECRET}     an access key
    {"arns": [ARN, ...], "chain": true}                                        boto3's own chain (role, environment)

and beside either, for an endpoint that is not AWS's own, ``endpoint_url`` and ``ca_file`` (in the same directory).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.aws_kms_l1 import CONNECT_S, MISSING, READ_S, THREADS, AwsKmsL1
from keymesh.adapters.key_files import read_private
from keymesh.adapters.l1_credentials import l1_directory
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import AWS_KMS, REPLICAS_MAX, ProviderDescriptor, check_l1_url
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import check_label, check_region

FILE: Final = "aws.json"
_FILE_MAX_BYTES: Final = 64 * 1024
_ARN: Final = re.compile(
    r"arn:(aws|aws-cn|aws-us-gov):kms:([a-z0-9-]{1,32}):([0-9]{12}):key/((?:mrk-)?[a-zA-Z0-9-]{1,64})", re.ASCII
)


class AwsKmsDescriptor(ProviderDescriptor, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``key`` is the key id that all replicas share; ``binding`` is drawn once, and bound to every wrap."""

    binding: str

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.provider != AWS_KMS:
            raise Refused.bad_field("provider", AWS_KMS)
        if not 0 < len(self.replicas) <= REPLICAS_MAX:
            raise Refused.bad_field("replicas", f"1..{REPLICAS_MAX}")
        places = set()
        for name, arn in self.replicas.items():
            check_region(name)
            partition, _, account, key = arn_parts("replicas", arn)
            places.add((partition, account))
            if key != self.key:
                raise Refused.bad_field("replicas", "all of one key")
        if len(places) != 1:
            raise Refused.bad_field("replicas", "all of one account")
        if len(set(self.replicas.values())) > 1 and not self.key.startswith("mrk-"):
            raise Refused.bad_field("replicas", "several only of a multi-region key (mrk-...)")
        if self.ca_pem:
            raise Refused.bad_field("ca_pem", "empty: whom to trust is the Core's own to say")
        check_label("binding", self.binding)


def arn_parts(field: str, arn: str) -> tuple[str, str, str, str]:
    """(partition, region, account, key id).  Raises Refused naming ``field``."""
    found = _ARN.fullmatch(arn)
    if found is None:
        raise Refused.bad_field(field, "the ARN of a key, arn:aws:kms:REGION:ACCOUNT:key/ID; no alias")
    return found[1], found[2], found[3], found[4]


class _Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    arns: tuple[str, ...]
    access_key_id: str = ""
    secret_access_key: str = ""
    chain: bool = False
    endpoint_url: str = ""
    ca_file: str = ""

    def __repr__(self) -> str:
        return "_Given(...)"


def open_tenants_aws(descriptor: AwsKmsDescriptor, region: str, credentials: Credentials, tenant: str) -> AwsKmsL1:
    """The replica that ``region`` uses for ``tenant``, by what its customer gave this Core for these very keys.

    Raises Refused for a malformed descriptor, one that names keys which this Core's file does not, and without boto3.
    """
    descriptor.check()
    directory = l1_directory(credentials.identity_file.parent, tenant)
    arns = frozenset(descriptor.replicas.values())
    _given(directory, arns)
    arn = descriptor.replicas[descriptor.replica_for(region)]
    return AwsKmsL1(
        _maker(directory, arns, arn_parts("replicas", arn)[1]),
        stamp=partial(_stamp, directory / FILE),
        arn=arn,
        tenant=tenant,
        binding=descriptor.binding,
    )


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_mode)


def _given(directory: Path, arns: frozenset[str]) -> _Given:
    """What is for all of ``arns``.

    Raises Refused naming the file, and what is wrong with it, never what stands in it.
    """
    try:
        raw = read_private(directory / FILE, max_bytes=_FILE_MAX_BYTES)
    except OSError as bad:
        raise Refused.bad_field(FILE, "cannot be read") from bad
    try:
        given = strict_json.decode(raw, _Given, max_bytes=_FILE_MAX_BYTES)
    except Refused:
        raise Refused.bad_field(FILE, "a JSON object of arns, and an access key or chain") from None
    if given.chain == bool(given.access_key_id) or bool(given.access_key_id) != bool(given.secret_access_key):
        raise Refused.bad_field(FILE, "either access_key_id and secret_access_key, or chain")
    if not arns <= set(given.arns):
        raise Refused.bad_field("replicas", f"only keys that this Core's {FILE} has for the tenant")
    if given.endpoint_url:
        check_l1_url(f"{FILE}: endpoint_url", given.endpoint_url)
    if Path(given.ca_file).name != given.ca_file:
        raise Refused.bad_field(f"{FILE}: ca_file", "a file's name in the same directory")
    return given


def _maker(directory: Path, arns: frozenset[str], aws_region: str) -> Callable[[], Any]:
    """How boto3's client is made, where it is installed; that reads files, so it is done in a thread."""
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as missing:
        raise Refused("missing-extra", MISSING, field="provider") from missing

    def make() -> Any:
        given = _given(directory, arns)
        keys: dict[str, str] = {}
        if not given.chain:
            keys = {
                "aws_access_key_id": given.access_key_id,
                "aws_secret_access_key": given.secret_access_key,
            }
        session = boto3.session.Session(region_name=aws_region, **keys)
        own: dict[str, Any] = {"endpoint_url": given.endpoint_url} if given.endpoint_url else {}
        if given.ca_file:
            own["verify"] = str(directory / given.ca_file)
        return session.client(
            "kms",
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"total_max_attempts": 1, "mode": "standard"},  # the Core asks again, within its budget
                max_pool_connections=THREADS,
                ignore_configured_endpoint_urls=True,
            ),
            **own,
        )

    return make
