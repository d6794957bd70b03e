"""``keymesh doctor``: which checks a host and its roles need, all at once, each with a deadline of its own.

Decides what is looked at: every ``Endpoint``, every issuer of tokens and every certificate that a role's configuration
names, wherever it stands there; the Registry and the Cores that it speaks to; the disk under its data.  A check that
does not end in time has failed: the doctor never hangs.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from keymesh.access.identity import CoreIdentity, RegistryIdentity
from keymesh.adapters.key_files import read_private
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app import doctor_local as local
from keymesh.app import doctor_remote as remote
from keymesh.app.admin_client import AdminClient
from keymesh.app.config import Config, CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_tokens import IssuerSection
from keymesh.app.doctor_rules import Check, clock_offset_s, judge_certificate, judge_clock, judge_seal
from keymesh.app.servers.binaries import Binary
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MeshName

CHECK_S: Final = 5.0
CONNECT_S: Final = 3
_PORTS: Final = {"postgresql": 5432, "amqps": 5671, "mqtts": 8883, "https": 443}
_CERTIFICATES: Final = ("tls_file", "cert_file", "ca_file")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subject:
    """One role with its configuration.  ``name``: as the report calls it, ``core us-east``."""

    name: str
    config: Config


def subject_of(config: Config) -> Subject:
    """Named by role, and region where it has one."""
    match config:
        case RegistryConfig():
            return Subject(f"registry {config.node}", config)
        case CoreConfig() | EdgeConfig():
            return Subject(f"{config.role} {config.region}", config)


async def examine(
    subjects: list[Subject], *, needed: tuple[Binary, ...], extras: bool, operator: MeshTls | None = None
) -> list[Check]:
    """Every check, in a steady order.  ``operator``: with whose certificate roles are asked, where it is at hand."""
    work: list[Awaitable[list[Check]]] = [
        _local("python", local.check_python),
        _local("extras", partial(local.check_extras, needed=extras)),
        _local("memory-lock", local.check_memory),
    ]
    work += [
        _timed(f"binary {binary.name}", _one(local.check_binary(binary, needed=is_needed)))
        for binary, is_needed in local.local_binaries(needed)
    ]
    asked: set[str] = set()
    for subject in subjects:
        work += _of_subject(subject, operator, asked)
    return [check for checks in await asyncio.gather(*work) for check in checks]


def _of_subject(subject: Subject, operator: MeshTls | None, asked: set[str]) -> Iterator[Awaitable[list[Check]]]:
    config = subject.config
    name = f"{subject.name} disk"
    yield _local(name, partial(local.check_disk, name, Path(config.data_dir)))
    for field, value in walk(config):
        if isinstance(value, Endpoint):
            label = f"{subject.name} {field}"
            yield _timed(label, _endpoint(label, field, value))
        elif isinstance(value, IssuerSection):
            label = f"{subject.name} {field} keys"
            yield _timed(label, _issuer(label, value))
        elif field.rpartition(".")[2] in _CERTIFICATES and isinstance(value, str) and value not in asked:
            asked.add(value)
            label = f"{subject.name} {field}"
            yield _local(label, partial(local.check_certificate_file, label, Path(value)))
    for label, url, expected in _peers(config):
        if label not in asked:
            asked.add(label)
            yield _timed(label, _role(label, url, config, expected, operator))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a configuration with its place; an ``Endpoint`` or an issuer counts as one, and then comes what it
    holds."""
    if isinstance(value, (Endpoint, IssuerSection)):
        yield path, value
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from walk(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for n, item in enumerate(value):
            yield from walk(item, f"{path}[{n}]")
    elif value is not None:
        yield path, value


# --- endpoints -----------------------------------------------------------------------------------------------------


async def _endpoint(label: str, field: str, endpoint: Endpoint) -> list[Check]:
    parts = urlsplit(endpoint.url)
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443)
    section = re.split(r"[.\[]", field)[0]
    tls = _context(endpoint)
    if section != "backup":  # as the roles speak to all of these
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
    match parts.scheme, section:
        case "postgresql", _:
            seen = await remote.see_postgres(host, port, tls, _conninfo(endpoint, host, port))
        case "amqps", _:
            seen = await remote.see_amqp(host, port, tls)
        case "https", "log":
            seen = await remote.see_etcd(host, port, tls)
        case "https", "keystore" | "seals":
            seen = await remote.see_openbao(host, port, tls)
        case _:
            seen = await remote.see_tls(host, port, tls)
    return _judge(label, f"{host}:{port}", seen)


async def _issuer(label: str, section: IssuerSection) -> list[Check]:
    from keymesh.app.doctor_tokens import see_issuer, see_key_file

    if section.jwks_url is None:
        path = Path(section.jwks_file or "")
        return _judge(label, str(path), await in_daemon_thread(partial(see_key_file, path, section.algorithm)))
    return _judge(label, section.jwks_url, await see_issuer(section, section.jwks_url, _context(section)))


def _context(endpoint: Endpoint | IssuerSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=endpoint.ca_file)
    if endpoint.cert_file is not None:
        context.load_cert_chain(endpoint.cert_file, endpoint.key_file)
    return context


def _conninfo(endpoint: Endpoint, host: str, port: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "host": host,
        "port": port,
        "user": endpoint.username,
        "dbname": urlsplit(endpoint.url).path.strip("/"),
        "sslmode": "verify-full",
        "sslrootcert": endpoint.ca_file,
        "connect_timeout": CONNECT_S,
        "gssencmode": "disable",
        "application_name": "keymesh-doctor",
    }
    if endpoint.cert_file is not None:
        found |= {"sslcert": endpoint.cert_file, "sslkey": endpoint.key_file or endpoint.cert_file}
    if endpoint.password_file is not None:
        found["password"] = read_private(Path(endpoint.password_file)).decode().rstrip("\r\n")
    return found


# --- roles -----------------------------------------------------------------------------------------------------------


def _peers(config: Config) -> Iterator[tuple[str, str, Callable[[Any], bool] | None]]:
    """(label, address, who must be there) of each process of the mesh that it speaks to."""
    match config:
        case RegistryConfig():
            return
        case CoreConfig():
            for url in config.registries:
                yield f"registry at {url}", url, lambda i: isinstance(i, RegistryIdentity)
            for region, urls in sorted(config.peers.items()):
                for url in urls:
                    yield f"core {region} at {url}", url, partial(_is_core, region)
        case EdgeConfig():
            for url in config.cores:
                yield f"core {config.region} at {url}", url, None


def _is_core(region: str, identity: Any) -> bool:
    return isinstance(identity, CoreIdentity) and identity.region == region


async def _role(
    label: str, url: str, config: Config, expected: Callable[[Any], bool] | None, operator: MeshTls | None
) -> list[Check]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    if isinstance(config, EdgeConfig) or expected is None:  # it speaks with its services' certificates alone
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.load_verify_locations(cafile=config.ca_file if isinstance(config, EdgeConfig) else None)
        return _judge(label, url, await remote.see_tls(host, port, tls))
    own = operator or _own_tls(config)
    return _judge(label, url, await remote.see_role(host, port, own.client(expected)))


def _own_tls(config: RegistryConfig | CoreConfig) -> MeshTls:
    identity = config.identity
    ca_pem = Path(identity.ca_file).read_bytes()
    return MeshTls(Credentials(Path(identity.tls_file)), MeshName(config.mesh), ca_pem)


async def seal_checks(client: AdminClient, region: str) -> list[Check]:
    """What opens that region's MasterKey, by its Core's last try of each."""
    name = f"core {region} seals"

    async def ask() -> list[Check]:
        shown = await client.call("GET", "/v1/seals", target=region, timeout_s=CHECK_S)
        return [
            judge_seal(f"core {region} seal {seal['id']}", state=seal["state"], reason=seal["reason"] or "")
            for seal in shown["seals"]
        ] or [Check(name, False, "it has none", "look at the Core's log")]

    return await _timed(name, ask())


# --- verdicts --------------------------------------------------------------------------------------------------------


def _judge(label: str, where: str, seen: remote.Seen) -> list[Check]:
    said = ", ".join(filter(None, (f"version {seen.version}" if seen.version else "", *seen.notes)))
    fix = f"look at {where} and its log" if seen.trouble else ""
    checks = [Check(label, not seen.trouble, seen.trouble or said or "answers", fix)]
    if seen.certificate is not None:
        since, until = seen.certificate.not_valid_before_utc, seen.certificate.not_valid_after_utc
        checks.append(judge_certificate(f"{label} certificate", since=since, until=until, now=datetime.now(UTC)))
    if seen.time_s is not None:
        theirs, resolution_s = seen.time_s
        offset_s = clock_offset_s(sent=seen.sent, received=seen.received, theirs=theirs, resolution_s=resolution_s)
        checks.append(judge_clock(f"{label} clock", offset_s))
    return checks


async def _one(check: Awaitable[Check]) -> list[Check]:
    return [await check]


async def _local(label: str, look: Callable[[], Check]) -> list[Check]:
    return await _timed(label, _one(in_daemon_thread(look)))


async def _timed(label: str, work: Awaitable[list[Check]]) -> list[Check]:
    """``work``, or why there is no answer."""
    try:
        async with asyncio.timeout(CHECK_S):
            return await work
    except TimeoutError:
        return [Check(label, False, f"no answer within {CHECK_S:.0f} s", "look whether it stands still")]
    except ssl.SSLCertVerificationError as bad:
        return [Check(label, False, f"its certificate is not believed: {bad.verify_message or bad}", "name its CA")]
    except ImportError as lacking:
        return [Check(label, False, f"this host lacks the package {lacking.name}", local.EXTRAS_INSTALL)]
    except (OSError, asyncio.IncompleteReadError, KeymeshError, ValueError) as bad:
        return [Check(label, False, _why(bad), "start it, or correct its address and credentials")]


def _why(bad: Exception) -> str:
    match bad:
        case ConnectionRefusedError():
            return "nobody listens there"
        case ssl.SSLError():
            return f"no TLS connection: {bad.reason or bad}"
        case asyncio.IncompleteReadError():
            return "it closed the connection"
        case ConnectionResetError():
            return "it broke off: it may speak no TLS 1.3, or not know our certificate"
        case FileNotFoundError():
            return f"no file {bad.filename}"
    return str(bad) or type(bad).__name__


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """``work`` beside the loop; where it never comes back (a dead network disk), the process can end all the same."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(value: T | None, failed: BaseException | None) -> None:
        if not done.done():
            if failed is not None:
                done.set_exception(failed)
            else:
                done.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            value, failed = work(), None
        except Exception as bad:
            value, failed = None, bad
        try:
            loop.call_soon_threadsafe(finish, value, failed)
        except RuntimeError:  # the loop did not wait for us
            return

    threading.Thread(target=run, daemon=True).start()
    return await done
