"""Fetching a key set: from a file, and over TLS from issuers that are down, slow, endless, elsewhere or impostors."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keymesh.adapters import jwks_source
from keymesh.adapters.jwk import JWKS_MAX_BYTES
from keymesh.adapters.jwks_source import FileSource, UrlSource, split_https
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.model.errors import Refused, Unavailable

SET = b'{"keys": []}'


def answer(status: int, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


@dataclass
class Site:
    """An issuer's web site that says ``says`` to everything."""

    says: bytes = answer(200, SET)
    silent: bool = False
    port: int = 0
    asked: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self.silent:
                await reader.read()
            writer.write(self.says)
            await writer.drain()
        writer.close()


CA = InfraCa.make("issuer CA")


@asynccontextmanager
async def site(tmp_path: Path, site: Site, *, ca: InfraCa = CA, asks: InfraCa | None = None) -> AsyncIterator[Site]:
    """``asks``: whose client certificates it requires."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.issue(tmp_path / "site.pem", "issuer", server=True))
    if asks is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=asks.pem.decode())
    listener = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    site.port = listener.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        listener.close()
        await listener.wait_closed()


def source(port: int, path: str = "/keys", ca: InfraCa = CA) -> UrlSource:
    return UrlSource(f"https://127.0.0.1:{port}{path}", ca_pem=ca.pem)


async def test_a_set_is_fetched_as_it_is(tmp_path: Path) -> None:
    async with site(tmp_path, Site()) as it:
        assert await source(it.port, "/realm/keys?v=2").load() == SET
    assert it.asked[0].startswith(b"GET /realm/keys?v=2 HTTP/1.1\r\n")
    assert b"cookie" not in it.asked[0].lower()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(tmp_path: Path, status: int) -> None:
    async with site(tmp_path, Site()) as other:
        moved = answer(status, b"", f"Location: https://127.0.0.1:{other.port}/keys")
        async with site(tmp_path, Site(moved)) as it:
            with pytest.raises(Unavailable, match=str(status)):
                await source(it.port).load()
        assert other.asked == []


@pytest.mark.parametrize("status", [204, 206, 400, 401, 404, 500, 503])
async def test_only_200_is_an_answer(tmp_path: Path, status: int) -> None:
    async with site(tmp_path, Site(answer(status, SET if status != 204 else b""))) as it:
        with pytest.raises(Unavailable):
            await source(it.port).load()


async def test_an_answer_that_never_ends_is_cut(tmp_path: Path) -> None:
    long = b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n" + b" " * (JWKS_MAX_BYTES + 1)
    async with site(tmp_path, Site(long)) as it:
        with pytest.raises(Unavailable, match="more than"):
            await source(it.port).load()


async def test_an_answer_that_never_comes_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_source, "FETCH_TIMEOUT_S", 0.2)
    async with site(tmp_path, Site(silent=True)) as it:
        with pytest.raises(Unavailable):
            await source(it.port).load()


async def test_an_issuer_that_is_not_there(tmp_path: Path) -> None:
    async with site(tmp_path, Site()) as it:
        port = it.port
    with pytest.raises(Unavailable):
        await source(port).load()


async def test_an_impostor_is_not_asked(tmp_path: Path) -> None:
    """Another authority's certificate, whatever the environment believes."""
    async with site(tmp_path, Site(), ca=InfraCa.make("issuer CA")) as it:
        with pytest.raises(Unavailable):
            await source(it.port).load()
        with pytest.raises(Unavailable):  # the right certificate for another name
            await UrlSource(f"https://localhost:{it.port}/keys", ca_pem=CA.pem).load()
    assert it.asked == []


async def test_an_issuer_that_asks_for_a_certificate(tmp_path: Path) -> None:
    mine = CA.issue(tmp_path / "mine.pem", "keymesh")
    async with site(tmp_path, Site(), asks=CA) as it:
        url = f"https://127.0.0.1:{it.port}/keys"
        assert await UrlSource(url, ca_pem=CA.pem, identity=(mine, None)).load() == SET
        with pytest.raises(Unavailable):
            await UrlSource(url, ca_pem=CA.pem).load()


def test_files_that_cannot_be_what_they_are_named_as(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ca_file"):
        UrlSource("https://x/", ca_pem=b"no PEM")
    with pytest.raises(Refused, match="ca_file"):
        UrlSource("https://x/", ca_pem="é".encode())
    for path in (tmp_path / "none.pem", tmp_path / "bad.pem"):
        (tmp_path / "bad.pem").write_text("no PEM")
        with pytest.raises(Refused, match="cert_file"):
            UrlSource("https://x/", ca_pem=CA.pem, identity=(path, None))


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/keys", "file:///etc/passwd", "https:///keys", "https://u:p@id.example/k", "https://u@h/k",
        "https://h/k#f", "https://h:0/k", "https://h:99999/k", "https://[::1/k", "https://h/a b", "https://h/\\..",
        "ftp://h/k", "", "https://h/\r\nX: y",
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Refused, match="jwks_url"):
        split_https("jwks_url", url)


def test_an_address_in_its_parts() -> None:
    assert split_https("u", "https://h:1/a/b?c=d") == ("https://h:1", "/a/b?c=d")
    assert split_https("u", "https://h") == ("https://h", "/")


async def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    it = FileSource(path)
    with pytest.raises(Unavailable, match="cannot be read"):
        await it.load()
    path.write_bytes(SET)
    assert await it.load() == SET
    path.write_bytes(b" " * (JWKS_MAX_BYTES + 100))
    assert len(await it.load()) == JWKS_MAX_BYTES + 1  # as much as says that it is too much
