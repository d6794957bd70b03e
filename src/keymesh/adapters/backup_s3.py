"""A backup store on S3 with Object Lock: every object is written if nobody has its name, and locked in compliance mode.

Of each name the *first* version is the object: it is locked, so it is there whatever was put over it or hidden it.  A
second version or a delete marker is reported, never read.  Nothing is taken from the environment or from files in the
home directory: endpoints, authorities, credentials and limits are the ones given, and no proxy is used.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import boto3
import botocore.session
from botocore import configprovider
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from keymesh.adapters.key_files import read_private
from keymesh.control.backup_manifest import split_manifest_name
from keymesh.control.backup_store import NAMES_MAX, check_name
from keymesh.model.errors import Integrity, Refused, Unavailable

SECRET_MAX_BYTES: Final = 1024
_PRECONDITION: Final = frozenset({"PreconditionFailed", "412"})
_DENIED: Final = frozenset(
    {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure"}
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """Where the store answers, whom to believe, and who asks.  The secret is read from its file at each connection."""

    url: str
    ca_file: Path
    access_key_id: str
    secret_file: Path


class S3Store:
    """``bucket`` under ``prefix``, at the first of ``endpoints`` that answers; ``timeout_s`` is of one request."""

    def __init__(
        self,
        endpoints: Sequence[S3Endpoint],
        *,
        bucket: str,
        prefix: str,
        region: str,
        retention_days: int,
        timeout_s: int,
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._endpoints, self._bucket, self._prefix = tuple(endpoints), bucket, prefix
        self._region, self._timeout_s = region, timeout_s
        self._retention = datetime.timedelta(days=retention_days)
        self._now = now
        self._client: Any = None
        self._served: S3Endpoint | None = None

    @property
    def address(self) -> str:
        return f"s3 {self._endpoints[0].url} {self._bucket}/{self._prefix}"

    def put(self, name: str, content: bytes) -> bool:
        """The store itself decides who was first, and locks what it took."""
        key = self._prefix + check_name(name)

        def write(client: Any) -> bool:
            try:
                answer = client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=content,
                    IfNoneMatch="*",
                    ChecksumAlgorithm="SHA256",
                    ObjectLockMode="COMPLIANCE",
                    ObjectLockRetainUntilDate=self._now() + self._retention,
                )
            except ClientError as bad:
                if _code(bad) in _PRECONDITION:
                    return False
                raise
            return bool(answer["VersionId"])  # a store that names no version has kept none

        return self._do(write)

    def get(self, name: str, *, max_bytes: int) -> bytes | None:
        key = self._prefix + check_name(name)

        def read(client: Any) -> bytes | None:
            version = self._only_version(client, key, name)
            if version is None:
                return None
            answer = client.get_object(Bucket=self._bucket, Key=key, VersionId=version)
            with answer["Body"] as body:
                content: bytes = body.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise Integrity("too-large", f"{name}: more than {max_bytes} bytes", field="name")
            return content

        return self._do(read)

    def names(self, prefix: str, *, after: str = "") -> tuple[str, ...]:
        def look(client: Any) -> tuple[str, ...]:
            pages = client.get_paginator("list_object_versions").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, KeyMarker=self._prefix + after if after else ""
            )
            found: set[str] = set()
            for page in pages:
                for line in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    found.add(line["Key"].removeprefix(self._prefix))
                    if len(found) > NAMES_MAX:
                        raise Integrity("foreign-object", f"more than {NAMES_MAX} names", field="name")
            return tuple(sorted(name for name in found if name > after))

        listed = self._do(look)
        for name in listed:
            split_manifest_name(name)
        return listed

    def kept_until(self, name: str) -> int:
        """As the lock of the object itself says."""
        key = self._prefix + check_name(name)
        said = self._do(lambda client: client.head_object(Bucket=self._bucket, Key=key))
        until = said.get("ObjectLockRetainUntilDate")
        return 0 if until is None else int(until.timestamp() * 1000)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- connections -------------------------------------------------------------------------------------------------

    def _only_version(self, client: Any, key: str, name: str) -> str | None:
        """The id of the object's first version.  Raises Integrity where there is anything beside it."""
        answer = client.list_object_versions(Bucket=self._bucket, Prefix=key, MaxKeys=16)
        versions = [v for v in answer.get("Versions", ()) if v["Key"] == key]
        hidden = [v for v in answer.get("DeleteMarkers", ()) if v["Key"] == key]
        if not versions and not hidden:
            return None
        if len(versions) != 1 or hidden:
            raise Integrity("changed-object", f"{name}: overwritten or hidden after it was written", field="name")
        return str(versions[0]["VersionId"])

    def _do(self, work: Callable[[Any], T]) -> T:
        """``work`` at the endpoint that served last, else at the others in order.

        Raises Refused where the store will not have us, Unavailable where none answers.
        """
        last: Exception | None = None
        for endpoint in self._in_order():
            try:
                if self._client is None:
                    self._client = self._connect(endpoint)
                    self._served = endpoint
                return work(self._client)
            except ClientError as bad:
                refusal = _refusal(bad)
                if refusal is not None:
                    raise refusal from bad
                last = bad
            except (BotoCoreError, OSError, KeyError, TypeError, ValueError) as bad:  # or what is no S3 that answers
                last = bad
            self.close()
        self._served = None
        raise Unavailable("store-away", f"no endpoint of the backup store serves: {type(last).__name__}") from last

    def _in_order(self) -> list[S3Endpoint]:
        others = [e for e in self._endpoints if e is not self._served]
        return others if self._served is None else [self._served, *others]

    def _connect(self, endpoint: S3Endpoint) -> Any:
        """A client that knows only what it was given, once the bucket is one that keeps what it is given."""
        secret = read_private(endpoint.secret_file, max_bytes=SECRET_MAX_BYTES).decode("ascii", "replace").strip()
        session = boto3.session.Session(
            aws_access_key_id=endpoint.access_key_id,
            aws_secret_access_key=secret,
            region_name=self._region,
            botocore_session=_bare_session(),
        )
        client = session.client(
            "s3",
            endpoint_url=endpoint.url,
            verify=str(endpoint.ca_file),
            config=Config(
                signature_version="s3v4",
                connect_timeout=self._timeout_s,
                read_timeout=self._timeout_s,
                retries={"total_max_attempts": 1, "mode": "standard"},
                proxies={},
                s3={"addressing_style": "path"},
                max_pool_connections=1,
            ),
        )
        try:
            self._check_bucket(client)
        except BaseException:
            client.close()
            raise
        return client

    def _check_bucket(self, client: Any) -> None:
        """Raises Refused for a bucket that is not versioned or has no Object Lock: it would keep nothing."""
        if client.get_bucket_versioning(Bucket=self._bucket).get("Status") != "Enabled":
            raise Refused("no-object-lock", f"bucket {self._bucket}: versioning is not enabled", field="s3.bucket")
        try:
            answer = client.get_object_lock_configuration(Bucket=self._bucket)
        except ClientError as bad:
            if "ObjectLockConfigurationNotFound" not in _code(bad):
                raise
            answer = {}
        if answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise Refused("no-object-lock", f"bucket {self._bucket}: it has no Object Lock", field="s3.bucket")


def _bare_session() -> Any:
    """A botocore session whose every setting is the library's default, whatever environment and home say."""
    session = botocore.session.Session()
    settings = session.get_component("config_store")
    for name, (_, _, default, _) in configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        value = os.devnull if name in ("config_file", "credentials_file") else default
        settings.set_config_provider(name, configprovider.ConstantProvider(value))
    return session


def _code(bad: ClientError) -> str:
    return str(bad.response.get("Error", {}).get("Code", ""))


def _refusal(bad: ClientError) -> Refused | None:
    """What no other endpoint and no later time changes."""
    code = _code(bad)
    if code in _DENIED:
        return Refused("store-denied", f"the backup store refuses these credentials ({code})", field="s3.endpoints")
    if code == "NoSuchBucket":
        return Refused("no-bucket", "the backup store has no such bucket", field="s3.bucket")
    return None
