"""The ``backup`` section of a Registry's or a Core's configuration: where to, how often, and who may open it."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from keymesh.app.config_endpoint import Endpoint
from keymesh.crypto.recipients import RECIPIENTS_MAX, parse_recipient
from keymesh.model.errors import Refused
from keymesh.model.ids import check_label

INTERVAL_MIN_S: Final = 1
INTERVAL_MAX_S: Final = 24 * 3600
RETENTION_MAX_DAYS: Final = 36_500
ENDPOINTS_MAX: Final = 8


class S3Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An S3-compatible store with Object Lock.

    ``bucket``: exists, versioned, with Object Lock.  ``region``: as the store names it.  ``endpoints``: tried in this
    order; of each ``url`` (https), ``ca_file``, ``username`` (the access key's id) and ``password_file`` (its secret)
    are needed.  ``prefix``: put before every name, with its own slash at the end, or empty.
    ``retention_days``: how long nobody can delete what was written (compliance mode).  ``timeout_s``: of one request.
    """

    bucket: str
    endpoints: tuple[Endpoint, ...]
    retention_days: int
    region: str = "us-east-1"
    prefix: str = ""
    timeout_s: int = 10

    def check(self) -> None:
        """Raises Refused naming the field."""
        if not 3 <= len(self.bucket) <= 63 or not self.bucket.replace("-", "").replace(".", "").isalnum():
            raise Refused.bad_field("bucket", "3 to 63 letters, digits, dots and hyphens")
        if self.prefix and (not self.prefix.endswith("/") or self.prefix.startswith("/") or ".." in self.prefix):
            raise Refused.bad_field("prefix", "empty, or a path that ends with a slash and begins without one")
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise Refused.bad_field("endpoints", f"1 to {ENDPOINTS_MAX}")
        for n, endpoint in enumerate(self.endpoints):
            _check_endpoint(f"endpoints[{n}]", endpoint)
        if len({e.url for e in self.endpoints}) != len(self.endpoints):
            raise Refused.bad_field("endpoints", "each URL once")
        if not 1 <= self.retention_days <= RETENTION_MAX_DAYS:
            raise Refused.bad_field("retention_days", f"1 to {RETENTION_MAX_DAYS}")
        if not 1 <= self.timeout_s <= 600:
            raise Refused.bad_field("timeout_s", "1 to 600")


class BackupConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Backups of one process; exactly one of ``store_dir`` (an absolute path) and ``s3``.

    ``recipients``: public recovery keys as ``keymesh backup keygen`` prints them; any one opens every backup, and this
    process cannot.  ``domain``: the residency domain that a Core's store is for; it must be the Core's own, and empty
    for a Registry's.  ``interval_s``: between incremental backups; one is written where something changed.
    ``full_every_s``: a full one after so long.
    """

    recipients: tuple[str, ...]
    store_dir: str | None = None
    s3: S3Config | None = None
    domain: str = ""
    interval_s: int = 10
    full_every_s: int = 24 * 3600

    def check(self) -> None:
        """Raises Refused naming the field."""
        if (self.store_dir is None) is (self.s3 is None):
            raise Refused.bad_field("store_dir", "exactly one of store_dir and s3")
        if self.store_dir is not None and not self.store_dir.startswith("/"):
            raise Refused.bad_field("store_dir", "an absolute path")
        if not 1 <= len(self.recipients) <= RECIPIENTS_MAX or len(set(self.recipients)) != len(self.recipients):
            raise Refused.bad_field("recipients", f"1 to {RECIPIENTS_MAX} public keys, each once")
        for text in self.recipients:
            parse_recipient(text)
        if self.domain:
            check_label("domain", self.domain)
        if not INTERVAL_MIN_S <= self.interval_s <= INTERVAL_MAX_S:
            raise Refused.bad_field("interval_s", f"{INTERVAL_MIN_S} to {INTERVAL_MAX_S}")
        if self.full_every_s < self.interval_s:
            raise Refused.bad_field("full_every_s", "no less than interval_s")


def _check_endpoint(field: str, endpoint: Endpoint) -> None:
    parts = urlsplit(endpoint.url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.query or parts.path.strip("/"):
        raise Refused.bad_field(f"{field}.url", "https://HOST[:PORT], and nothing else in it")
    for name in ("ca_file", "username", "password_file"):
        if not getattr(endpoint, name):
            raise Refused.bad_field(f"{field}.{name}", "needed for an S3 store")
