"""``keymesh customer-kms``: a stand-alone process that plays the customer's KMS, with a listener for each replica.

Decides who may ask for what: the owner's certificate everything, clients of the CAs that the owner allowed may wrap
and unwrap.  It shares nothing with the mesh: own directory, own CA, own port for each replica.  A development stand-in
for a cloud KMS: its keys lie in a file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509

from keymesh.access.identity import Identity
from keymesh.adapters import pki
from keymesh.adapters.customer_kms import (
    INFO_FILE,
    AllowedCa,
    CreateKey,
    KmsInfo,
    Unwrap,
    Unwrapped,
    Wrap,
    Wrapped,
    b64,
    read_info,
    unb64,
)
from keymesh.adapters.files import write_file
from keymesh.adapters.http_messages import Request, Response, Route, Stream, json_response
from keymesh.adapters.http_server import HttpMetrics, HttpServer, serve
from keymesh.adapters.tls import Credentials, PeerContext
from keymesh.app.args_kms import add_run_arguments
from keymesh.app.customer_kms_files import (
    CLIENTS_FILE,
    DEFAULT_NAME,
    KEYS_FILE,
    LOCK_FILE,
    OWNER_FILE,
    ROOT_FILE,
    SERVER_FILE,
    Clients,
    prepare,
)
from keymesh.app.customer_kms_store import AAD_MAX_BYTES, KmsStore
from keymesh.app.lifeline import die_with_parent, say_ready, wait_for_stop
from keymesh.app.logs import setup_logging
from keymesh.core.l1 import PLAIN_MAX_BYTES, REPLICAS_MAX, WRAPPED_MAX_BYTES
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import check_label

# --- the service -----------------------------------------------------------------------------------------------------


class Kms:
    """The KMS of one directory: keys, clients, and the routes of each replica."""

    def __init__(self, directory: Path, replicas: tuple[str, ...]) -> None:
        self.replicas = replicas
        self.store = KmsStore(directory / KEYS_FILE)
        self.clients = Clients(directory / CLIENTS_FILE)
        root_pem = (directory / ROOT_FILE).read_bytes()
        root = pki.parse_certificates(root_pem)[0]
        self.domain = pki.mesh_of_root(root)
        self._own_root = pki.fingerprint(root)
        self._owner_uri = f"spiffe://{self.domain}/owner/owner"
        self.context: PeerContext = Credentials(directory / SERVER_FILE).server_context(
            trust_pem=root_pem + self.clients.trust_pem(), check=self._check_peer
        )

    def _check_peer(self, leaf: x509.Certificate, root: x509.Certificate) -> Identity | None:
        """The handshake lets known CAs in, so that a client that may not use a key hears a clear no."""
        own = pki.fingerprint(root)
        if own == self._own_root:
            if pki.uri_of(leaf) != self._owner_uri:
                raise Refused.bad_field("certificate", "not the owner")
            return None
        mesh = self.clients.mesh_of(own)
        if mesh is None:
            raise Refused.bad_field("certificate", "not of a CA that the owner allowed")
        return pki.identity_of(leaf, mesh)

    def routes(self, replica: str) -> list[Route]:
        """What the listener of ``replica`` serves; keys and clients are shared with the others."""

        async def wrap(request: Request) -> Response:
            body = request.json(Wrap)
            plaintext = unb64("plaintext", body.plaintext, max_bytes=PLAIN_MAX_BYTES)
            wrapped = self.store.wrap(request.params["name"], replica, plaintext, _aad(body.aad))
            return json_response(Wrapped(wrapped=b64(wrapped)))

        async def unwrap(request: Request) -> Response:
            body = request.json(Unwrap)
            wrapped = unb64("wrapped", body.wrapped, max_bytes=WRAPPED_MAX_BYTES)
            plaintext = self.store.unwrap(request.params["name"], replica, wrapped, _aad(body.aad))
            return json_response(Unwrapped(plaintext=b64(plaintext)))

        async def create(request: Request) -> Response:
            return json_response(self.store.create(request.json(CreateKey).name), status=201)

        async def status(request: Request) -> Response:
            return json_response(self.store.status(request.params["name"]))

        async def disable(request: Request) -> Response:
            return json_response(self.store.disable(request.params["name"], self._replica_of(request)))

        async def enable(request: Request) -> Response:
            return json_response(self.store.enable(request.params["name"], self._replica_of(request)))

        async def allow(request: Request) -> Response:
            entry = request.json(AllowedCa)
            self.clients.allow(entry)
            self.context.load_verify_locations(cadata=entry.ca_pem)
            return json_response({})

        return [
            _route("POST", "/keys/{name}/wrap", wrap, self._may_use),
            _route("POST", "/keys/{name}/unwrap", unwrap, self._may_use),
            _route("POST", "/keys", create, self._is_owner),
            _route("GET", "/keys/{name}", status, self._is_owner),
            _route("POST", "/keys/{name}/disable", disable, self._is_owner),
            _route("POST", "/keys/{name}/enable", enable, self._is_owner),
            _route("POST", "/clients", allow, self._is_owner),
        ]

    def _is_owner(self, request: Request) -> bool:
        return request.peer is not None and request.peer.root == self._own_root and request.peer.uri == self._owner_uri

    def _may_use(self, request: Request) -> bool:
        peer = request.peer
        return self._is_owner(request) or (peer is not None and self.clients.may_use(peer.root, peer.identity))

    def _replica_of(self, request: Request) -> str | None:
        replica = request.query.get("replica")
        if request.query.keys() - {"replica"} or (replica is not None and replica not in self.replicas):
            raise Refused.bad_field("replica", f"one of {', '.join(self.replicas)}")
        return replica


def _route(
    method: str,
    path: str,
    handler: Callable[[Request], Awaitable[Response | Stream]],
    allow: Callable[[Request], bool],
) -> Route:
    return Route(method=method, path=path, handler=handler, allow=allow, body_max_bytes=64 * 1024)


def _aad(text: str) -> bytes:
    return unb64("aad", text, max_bytes=AAD_MAX_BYTES) if text else b""


# --- the process -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(
    directory: Path,
    replicas: Mapping[str, int],
    *,
    name: str = DEFAULT_NAME,
    allow_ca: tuple[str, ...] = (),
    host: str = "127.0.0.1",
) -> AsyncIterator[KmsInfo]:
    """The KMS of ``directory``, serving; ``replicas``: name to port (0: any).

    Raises Refused where another process serves the directory or a port is taken.
    """
    if not 0 < len(replicas) <= REPLICAS_MAX:
        raise Refused.bad_field("replicas", f"1..{REPLICAS_MAX}")
    for replica in replicas:
        check_label("replica", replica)
    with _locked(directory):
        prepare(directory, name=name, allow_ca=allow_ca)
        kms = Kms(directory, tuple(sorted(replicas)))
        metrics = HttpMetrics()
        servers: dict[str, HttpServer] = {}
        try:
            for replica, port in _ports(directory, replicas).items():
                servers[replica] = await serve(
                    kms.routes(replica), tls=kms.context, host=host, port=port, metrics=metrics
                )
            urls = {replica: f"https://{host}:{server.port}" for replica, server in servers.items()}
            info = KmsInfo(name=kms.domain, pid=os.getpid(), replicas=urls, ca=ROOT_FILE, owner=OWNER_FILE)
            write_file(directory / INFO_FILE, strict_json.dumps(info), mode=0o644)
            yield info
        finally:
            await asyncio.gather(*(server.close() for server in servers.values()))


async def run(
    directory: Path,
    replicas: Mapping[str, int],
    *,
    name: str = DEFAULT_NAME,
    allow_ca: tuple[str, ...] = (),
    host: str = "127.0.0.1",
) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with running(directory, replicas, name=name, allow_ca=allow_ca, host=host):
        say_ready()
        await wait_for_stop()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as taken:
            raise Refused("already-running", f"a customer KMS serves {directory}", field="dir") from taken
        yield


def _ports(directory: Path, replicas: Mapping[str, int]) -> dict[str, int]:
    """The wanted ports; where any will do, the last life's, since tenants' descriptors name it."""
    before: dict[str, str] = {}
    with contextlib.suppress(Refused):
        before = read_info(directory).replicas
    return {name: port or int(before.get(name, ":0").rpartition(":")[2]) for name, port in sorted(replicas.items())}


def parse_replicas(text: str) -> dict[str, int]:
    """``eu-central,us-east=9443`` as names and ports (0: any).  Raises Refused."""
    replicas: dict[str, int] = {}
    for part in text.split(","):
        name, given, port = part.partition("=")
        check_label("replica", name)
        if name in replicas or (given and not (port.isascii() and port.isdigit() and int(port) < 65_536)):
            raise Refused.bad_field("replicas", "NAME or NAME=PORT, each name once")
        replicas[name] = int(port) if given else 0
    return replicas


def main(args: argparse.Namespace) -> int:
    """The process; returns the exit code."""
    die_with_parent()
    setup_logging("customer-kms")
    try:
        allow_ca = tuple(path.read_text(encoding="ascii") for path in args.allow_ca)
        name = args.name or DEFAULT_NAME
        asyncio.run(run(args.dir, parse_replicas(args.replicas), name=name, allow_ca=allow_ca, host=args.host))
    except KeymeshError as error:
        print(f"customer-kms: {error.message}", file=sys.stderr)
        return int(error.exit_code)
    except (OSError, UnicodeError) as error:
        print(f"customer-kms: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="keymesh customer-kms", description="Play the customer's KMS.")
    add_run_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
