"""One contract for every backup store: written once, read as it was, never replaced, and what was changed shows."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.servers.s3 import S3Server, make_ca, s3_server

from keymesh.adapters.backup_directory import DirectoryStore, open_directory
from keymesh.adapters.backup_s3 import S3Endpoint, S3Store
from keymesh.control.backup_manifest import MARKER_NAME, chunk_name, manifest_name
from keymesh.control.backup_store import BackupStore
from keymesh.model.errors import Integrity, Refused, Unavailable

Open = Callable[[], BackupStore]
DATA = b"what was backed up"
NAME = chunk_name(hashlib.sha256(DATA).hexdigest())
BUCKETS = (f"backups-{n}" for n in itertools.count())
LONG = 1024 * 1024


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class Bucket:
    """A bucket of the test's own."""

    def __init__(self, server: S3Server, directory: Path, *, lock: bool = True) -> None:
        self.server, self.name = server, next(BUCKETS)
        server.bucket(self.name, lock=lock)
        self.secret = directory / "secret"
        self.secret.write_text("secret\n")
        self.secret.chmod(0o600)

    def endpoint(self, **fields: Any) -> S3Endpoint:
        given = {"url": self.server.url, "ca_file": self.server.ca_file, "secret_file": self.secret, **fields}
        return S3Endpoint(access_key_id="writer", **given)

    def store(self, *endpoints: S3Endpoint, bucket: str | None = None, prefix: str = "km/") -> S3Store:
        return S3Store(
            endpoints or (self.endpoint(),),
            bucket=bucket or self.name,
            prefix=prefix,
            region="us-east-1",
            retention_days=30,
            timeout_s=5,
            now=lambda: dt.datetime.now(dt.UTC),
        )


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    return Bucket(s3, tmp_path)


@pytest.fixture(params=["directory", "s3"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path / "store")
    return request.getfixturevalue("bucket").store  # type: ignore[no-any-return]


def test_what_is_put_is_there_for_every_later_life(open_store: Open) -> None:
    store = open_store()
    for name in (MARKER_NAME, NAME, manifest_name("registry", 7)):
        assert store.put(name, DATA)
        assert store.get(name, max_bytes=LONG) == DATA
    store.close()
    again = open_store()
    assert again.get(NAME, max_bytes=LONG) == DATA
    assert again.address == store.address
    assert "secret" not in again.address
    again.close()


def test_a_store_says_until_when_nobody_can_delete_what_it_keeps(open_store: Open) -> None:
    """With Object Lock the day is the object's own; whoever owns a directory decides."""
    store = open_store()
    before = time.time()
    store.put(manifest_name("registry", 7), DATA)
    kept_until = store.kept_until(manifest_name("registry", 7))
    if isinstance(store, DirectoryStore):
        assert kept_until == 0
    else:
        days = (kept_until / 1000 - before) / 86_400
        assert 29.99 < days < 30.01
    store.close()


def test_what_is_not_there_is_none_and_no_error(open_store: Open) -> None:
    store = open_store()
    store.put(MARKER_NAME, DATA)
    assert store.get(NAME, max_bytes=LONG) is None
    assert store.get(manifest_name("registry", 1), max_bytes=LONG) is None
    assert store.names("manifests/") == ()
    store.close()


def test_nothing_is_ever_overwritten(open_store: Open) -> None:
    store = open_store()
    assert store.put(NAME, DATA)
    assert not store.put(NAME, b"something else")
    assert not open_store().put(NAME, DATA)
    assert store.get(NAME, max_bytes=LONG) == DATA
    store.close()


def test_of_many_who_put_one_name_at_once_exactly_one_has_it(open_store: Open) -> None:
    name = manifest_name("registry", 1)
    open_store().put(MARKER_NAME, DATA)
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda n: open_store().put(name, b"%d" % n), range(3)))
    assert done.count(True) == 1
    assert open_store().get(name, max_bytes=LONG) == b"%d" % done.index(True)


def test_names_are_listed_in_order_from_where_one_likes(open_store: Open) -> None:
    store = open_store()
    names = [manifest_name(origin, seq) for origin in ("registry", "us-east.n1") for seq in (1, 2, 9, 10)]
    for name in reversed(names):
        store.put(name, DATA)
    store.put(NAME, DATA)
    store.put(MARKER_NAME, DATA)
    assert list(store.names("manifests/")) == sorted(names)
    assert list(store.names("manifests/registry/")) == names[:4]
    assert list(store.names("manifests/registry/", after=names[1])) == names[2:4]
    assert store.names("manifests/registry/", after=names[3]) == ()
    store.close()


def test_more_than_is_asked_for_is_not_read(open_store: Open) -> None:
    store = open_store()
    store.put(NAME, DATA)
    assert store.get(NAME, max_bytes=len(DATA)) == DATA
    with pytest.raises(Integrity, match="more than"):
        store.get(NAME, max_bytes=len(DATA) - 1)
    store.close()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "/etc/passwd",
        "../outside",
        "chunks/../../outside",
        "chunks/ab/../" + "a" * 64,
        "manifests/registry/../../../outside",
        "manifests/../000000000001",
        "manifests/a..b/000000000001",
        "manifests/Registry/000000000001",
        "manifests/registry/1",
        "manifests/registry/000000000001\n",
        "manifests/registry/00000000000\u0661",
        "manifests/reg\0istry/000000000001",
        "manifests//000000000001",
        NAME.upper(),
        NAME + "/",
        "keymesh-backup.json/x",
    ],
)
def test_no_name_leads_anywhere_else(open_store: Open, name: str, tmp_path: Path) -> None:
    store = open_store()
    with pytest.raises(Refused) as put:
        store.put(name, DATA)
    with pytest.raises(Refused) as got:
        store.get(name, max_bytes=LONG)
    assert put.value.field == got.value.field == "name"
    assert not (tmp_path / "outside").exists()
    store.close()


# --- the directory ---------------------------------------------------------------------------------------------------


def test_in_a_directory_objects_are_read_only_and_what_a_crash_left_is_ignored(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put(manifest_name("registry", 1), DATA)
    path = tmp_path / "store" / manifest_name("registry", 1)
    assert path.stat().st_mode & 0o777 == 0o400
    assert path.stat().st_nlink == 1
    (path.parent / ".writing-abc").write_bytes(b"half")
    assert store.names("manifests/") == (manifest_name("registry", 1),)
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".writing-abc")] == [path.name]


def test_in_a_directory_a_name_that_no_backup_has_is_an_alarm(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put(manifest_name("registry", 1), DATA)
    for odd in ("manifests/registry/..1", "manifests/registry/1", "manifests/UP/000000000001"):
        path = tmp_path / "store" / odd
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with pytest.raises(Integrity) as failed:
            store.names("manifests/")
        assert failed.value.code == "foreign-object"
        path.unlink()
        if "UP" in odd:
            path.parent.rmdir()
    assert store.names("manifests/")


def test_in_a_directory_no_link_is_followed_neither_to_read_nor_to_write(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not yours")
    store = DirectoryStore(tmp_path / "store")
    store.put(MARKER_NAME, DATA)
    shelf = tmp_path / "store" / "chunks"
    shelf.symlink_to(outside)
    for work in (lambda: store.put(NAME, DATA), lambda: store.get(NAME, max_bytes=LONG)):
        with pytest.raises(Integrity) as failed:
            work()
        assert failed.value.code == "foreign-object"
    shelf.unlink()
    target = tmp_path / "store" / NAME
    target.parent.mkdir(parents=True)
    target.symlink_to(outside / "secret")
    with pytest.raises(Integrity):
        store.get(NAME, max_bytes=LONG)
    assert not store.put(NAME, DATA)
    assert [p.name for p in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"not yours"


def test_a_pipe_in_a_directory_holds_up_nobody(tmp_path: Path) -> None:
    import os

    store = DirectoryStore(tmp_path / "store")
    path = tmp_path / "store" / NAME
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(Integrity):
        store.get(NAME, max_bytes=LONG)


def test_a_directory_that_is_away_is_not_an_empty_one(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "mount" / "store")
    works: list[Callable[[], Any]] = [
        lambda: store.put(NAME, DATA),
        lambda: store.get(NAME, max_bytes=LONG),
        lambda: store.names("manifests/"),
    ]
    for work in works:
        with pytest.raises(Unavailable) as failed:
            work()
        assert failed.value.code == "store-away"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    store = DirectoryStore(tmp_path / "store")
    store.put(MARKER_NAME, DATA)
    write = os.write

    def full(fd: int, content: Any) -> int:
        if len(content) > 4:
            return write(fd, content[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unavailable) as failed:
        store.put(NAME, DATA)
    assert failed.value.code == "store-full"
    monkeypatch.undo()
    assert store.get(NAME, max_bytes=LONG) is None
    assert list((tmp_path / "store" / NAME).parent.iterdir()) == []
    assert store.put(NAME, DATA)


def test_a_disk_that_fails_at_the_sync_has_written_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    store = DirectoryStore(tmp_path / "store")
    store.put(MARKER_NAME, DATA)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable):
        store.put(NAME, DATA)
    monkeypatch.undo()
    assert store.get(NAME, max_bytes=LONG) is None


def test_a_directory_is_named_absolutely() -> None:
    with pytest.raises(Refused):
        open_directory("backups")
    assert open_directory("/backups").address == "directory /backups"


# --- S3 --------------------------------------------------------------------------------------------------------------


def test_on_s3_an_object_is_locked_in_compliance_mode_for_the_retention(bucket: Bucket) -> None:
    store = bucket.store()
    store.put(NAME, DATA)
    admin = bucket.server.admin()
    (version,) = admin.list_object_versions(Bucket=bucket.name)["Versions"]
    assert version["Key"] == f"km/{NAME}"
    held = admin.head_object(Bucket=bucket.name, Key=version["Key"])
    assert held["ObjectLockMode"] == "COMPLIANCE"
    assert held["ObjectLockRetainUntilDate"] - dt.datetime.now(dt.UTC) > dt.timedelta(days=29)
    with pytest.raises(ClientError):
        admin.delete_object(Bucket=bucket.name, Key=version["Key"], VersionId=version["VersionId"])
    assert store.get(NAME, max_bytes=LONG) == DATA
    store.close()


def test_on_s3_what_was_put_over_or_hides_an_object_is_an_alarm_and_never_read(bucket: Bucket) -> None:
    store, admin = bucket.store(), bucket.server.admin()
    other = manifest_name("registry", 1)
    store.put(NAME, DATA)
    store.put(other, DATA)
    admin.put_object(Bucket=bucket.name, Key=f"km/{NAME}", Body=b"forged")
    admin.delete_object(Bucket=bucket.name, Key=f"km/{other}")
    for name in (NAME, other):
        with pytest.raises(Integrity) as failed:
            store.get(name, max_bytes=LONG)
        assert failed.value.code == "changed-object"
    assert store.names("manifests/") == (other,)  # hidden, and listed all the same
    first = min(admin.list_object_versions(Bucket=bucket.name, Prefix=f"km/{NAME}")["Versions"], key=_written)
    body = admin.get_object(Bucket=bucket.name, Key=first["Key"], VersionId=first["VersionId"])["Body"]
    assert body.read() == DATA  # a restore can have it
    store.close()


def _written(version: Any) -> Any:
    return version["LastModified"], not version["IsLatest"] and -1


def test_on_s3_a_bucket_that_would_keep_nothing_is_refused(s3: S3Server, tmp_path: Path) -> None:
    unlocked = Bucket(s3, tmp_path, lock=False)
    with pytest.raises(Refused) as failed:
        unlocked.store().put(NAME, DATA)
    assert (failed.value.code, failed.value.field) == ("no-object-lock", "s3.bucket")
    s3.admin().put_bucket_versioning(Bucket=unlocked.name, VersioningConfiguration={"Status": "Enabled"})
    with pytest.raises(Refused) as failed:
        unlocked.store().put(NAME, DATA)
    assert failed.value.code == "no-object-lock"
    with pytest.raises(Refused) as failed:
        unlocked.store(bucket="nobodys").put(NAME, DATA)
    assert failed.value.code == "no-bucket"
    assert "Contents" not in s3.admin().list_objects_v2(Bucket=unlocked.name)


def test_on_s3_the_next_endpoint_serves_where_the_first_is_away_or_not_believed(bucket: Bucket, tmp_path: Path) -> None:
    wrong_ca, _ = make_ca(tmp_path, "wrong")
    away = bucket.endpoint(url="https://127.0.0.1:9")
    unbelieved = bucket.endpoint(ca_file=wrong_ca)
    store = bucket.store(away, unbelieved, bucket.endpoint())
    assert store.put(NAME, DATA)
    store.close()
    with pytest.raises(Unavailable) as failed:
        bucket.store(away, unbelieved).put(NAME, DATA)
    assert failed.value.code == "store-away"


def test_on_s3_neither_environment_nor_home_says_whom_to_believe_or_where_to_go(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_ca, _ = make_ca(tmp_path, "wrong")
    (tmp_path / "config").write_text("[default]\nca_bundle = /nonexistent\nregion = mars\n[profile p]\nregion = x\n")
    for name, value in {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_PROFILE": "nobody",
        "AWS_CA_BUNDLE": str(wrong_ca),
        "REQUESTS_CA_BUNDLE": str(wrong_ca),
        "AWS_ENDPOINT_URL": "https://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "https://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_MAX_ATTEMPTS": "none",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    store = bucket.store()
    assert store.put(NAME, DATA)
    store.close()
    with pytest.raises(Unavailable):  # and the right CA in the environment helps no wrong one
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bucket.server.ca_file))
        bucket.store(bucket.endpoint(ca_file=wrong_ca)).put(NAME, DATA)


def test_on_s3_a_secret_that_others_can_read_is_refused(bucket: Bucket) -> None:
    bucket.secret.chmod(0o644)
    with pytest.raises(Refused):
        bucket.store().put(NAME, DATA)


def test_on_s3_an_expired_certificate_is_not_believed(tmp_path: Path) -> None:
    with s3_server(tmp_path / "expired", days=-1) as server:
        secret = tmp_path / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        store = S3Store(
            (S3Endpoint(server.url, server.ca_file, "writer", secret),),
            bucket="b",
            prefix="",
            region="us-east-1",
            retention_days=1,
            timeout_s=5,
            now=lambda: dt.datetime.now(dt.UTC),
        )
        with pytest.raises(Unavailable) as failed:
            store.get(NAME, max_bytes=LONG)
        assert failed.value.code == "store-away"


@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b"{}", b"<ListVersionsResult><Version/></ListVersionsResult>"]
)
def test_on_s3_what_speaks_something_else_is_a_store_that_is_away(tmp_path: Path, body: bytes) -> None:
    ca_file, identity = make_ca(tmp_path, "other")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    with speaking(body, identity) as url:
        store = S3Store(
            (S3Endpoint(url, ca_file, "writer", secret),),
            bucket="bucket",
            prefix="",
            region="us-east-1",
            retention_days=1,
            timeout_s=5,
            now=lambda: dt.datetime.now(dt.UTC),
        )
        works: list[Callable[[], Any]] = [
            lambda: store.put(NAME, DATA),
            lambda: store.get(NAME, max_bytes=LONG),
            lambda: store.names("manifests/"),
        ]
        for work in works:
            with pytest.raises((Unavailable, Refused)) as failed:
                work()
            assert failed.value.code in ("store-away", "no-object-lock")


@contextmanager
def speaking(body: bytes, identity: Path) -> Iterator[str]:
    """A TLS server that says ``body`` to everything."""

    class Says(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            versioning = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
            lock = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"
            asked = self.path.partition("?")[2]
            content = {"versioning": versioning, "object-lock": lock}.get(asked, body) if b"List" in body else body
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Says)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
