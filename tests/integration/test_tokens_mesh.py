"""A running mesh that takes tokens: people of two identity providers, one Core that shows no certificate, and the same
rights as by certificate for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import get_default_algorithms
from tests.integration.mesh.live import TIMING, until
from tests.servers.oidc import Provider
from tests.servers.openbao import openbao

from keymesh.access.identity import CoreIdentity, RegistryIdentity
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.key_files import load_signing_key
from keymesh.adapters.pki import fingerprint
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app import cli
from keymesh.app.admin_client import AdminClient
from keymesh.app.bootstrap import bootstrap, finish, make_plan
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.config_tokens import CoreTokens, IssuerSection, RegistryTokens
from keymesh.app.layout import Layout, load_plan
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.plan import ServerPlan
from keymesh.app.supervisor import children_of
from keymesh.app.token_parts import NodeLogin
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.crypto.jws import make_jws, to_base64url
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import MeshName, NodeId, RegionId

JWT_CORE, CERT_CORE = "us-east", "us-west"
ACME_ID, BOUND_ID = "https://id.acme.example", "https://bound.example"


def toml(value: Any) -> str:
    """``value`` inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@dataclass
class Mesh:
    """Processes of roles, each from a configuration file; ``acme`` signs the tokens of the tenant's own provider."""

    layout: Layout
    provider: Provider
    acme: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    processes: dict[str, ServerProcess] = field(default_factory=dict)

    def start(self) -> None:
        plan = make_plan({JWT_CORE: "us", CERT_CORE: "us"}, TIMING, links=False, allow_unlocked_memory=True)
        finish(self.layout, plan, bootstrap(self.layout, plan))
        jwk = get_default_algorithms()["EdDSA"].to_jwk(self.acme.public_key(), as_dict=True) | {"kid": "a1"}
        (self.layout.root / "acme-jwks.json").write_text(json.dumps({"keys": [jwk]}))
        self.operator = self.provider.person("ann")
        issuers = (self._corp(), self._acme(), self._bound())
        registry = msgspec.structs.replace(
            registry_config_of(self.layout, plan), tokens=RegistryTokens(issuers=issuers, nodes=True)
        )
        core = msgspec.structs.replace(
            core_config_of(self.layout, plan, JWT_CORE), tokens=CoreTokens(issuers=issuers, registry_auth="jwt")
        )
        argv = {child.name: child.argv for child in children_of(self.layout, plan)}
        argv["registry"] = self._with_config("registry", registry)
        argv[f"core-{JWT_CORE}"] = self._with_config("core", core)
        for name in ("customer-kms", "registry", f"core-{JWT_CORE}", f"core-{CERT_CORE}"):
            directory = self.layout.logs / name
            directory.mkdir()
            env = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            started = ServerPlan(name=name, argv=tuple(argv[name]), directory=directory, ready=lambda: True, env=env)
            self.processes[name] = ServerProcess(started)
            self.processes[name].spawn()

    def _corp(self) -> IssuerSection:
        """The mesh's own provider: who is who."""
        bao = self.provider.bao
        return IssuerSection(
            name="corp",
            issuer=self.provider.issuer,
            audience="keymesh",
            algorithm="ES256",
            jwks_url=self.provider.jwks_url,
            ca_file=str(bao.directory / "ca.pem"),
            cert_file=str(bao.ca.issue(bao.directory / "keymesh.pem", "keymesh")),
            names={self.operator: "operator"},
        )

    def _acme(self) -> IssuerSection:
        """The tenant's: who may do what there."""
        return IssuerSection(
            name="acme-id",
            issuer=ACME_ID,
            audience="keymesh",
            algorithm="EdDSA",
            jwks_file=str(self.layout.root / "acme-jwks.json"),
            tenant="acme",
            roles_claim="roles",
            roles={"admin": ("tenant-admin",), "keys": ("key-admin",)},
        )

    def _bound(self) -> IssuerSection:
        """The mesh's own again, whose tokens need the certificate beside them."""
        return IssuerSection(
            name="bound-id",
            issuer=BOUND_ID,
            audience="keymesh",
            algorithm="EdDSA",
            jwks_file=str(self.layout.root / "acme-jwks.json"),
            names={"ann": "operator", "zoe": "zoe"},
            bound=True,
            once=True,
            leeway_s=0,
        )

    def _with_config(self, role: str, config: Any) -> list[str]:
        path = self.layout.root / f"{role}.toml"
        plain = msgspec.to_builtins(config)
        path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in plain.items() if value is not None))
        return [sys.executable, "-m", f"keymesh.app.{role}_app", "--config", str(path)]

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()

    # --- people ------------------------------------------------------------------------------------------------------

    def token_file(self, token: str, name: str = "token") -> str:
        path = self.layout.root / f"{name}.jwt"
        path.touch(mode=0o600)
        path.write_text(token + "\n")
        return str(path)

    def of_acme(self, subject: str, *roles: str, **changed: Any) -> str:
        now = int(time.time())
        claims = {"iss": ACME_ID, "aud": "keymesh", "sub": subject, "iat": now, "exp": now + 600, "roles": list(roles)}
        return make_jws({"alg": "EdDSA", "kid": "a1"}, claims | changed, sign=self.acme.sign)

    async def do(self, *words: str, token: str | None = None, code: int = 0) -> Any:
        """What the command line prints; by the operator's certificate, or a token."""
        line = [*words, "--dir", str(self.layout.root), "--json"]
        line += [] if token is None else ["--token-file", self.token_file(token)]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            ended = await asyncio.to_thread(cli.main, line)
        assert ended == code, (words, ended, said.getvalue(), self._logs())
        return json.loads(said.getvalue())

    async def has_recorded(self) -> bool:
        """Whether the entries that the test's people caused are under their names."""

        def actors() -> set[tuple[str, str]]:
            uri = f"file:{self.layout.registry / 'projection.db'}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
                return set(database.execute("select kind, actor from entries"))

        return {
            ("tenant.create", "spiffe://dev/admin/operator"),
            ("service.set", "spiffe://dev/tenant/acme/person/acme-id/eve"),
            ("key.want", "spiffe://dev/tenant/acme/person/acme-id/kay"),
        } <= await asyncio.to_thread(actors)

    def _logs(self) -> str:
        return "\n".join(process.last_words() for process in self.processes.values())

    # --- machines ----------------------------------------------------------------------------------------------------

    def client(self, *, identity_file: Path | None = None, authorize: Any = None) -> PeerClient:
        """To the Registry, as whoever has that certificate or that token."""
        plan = load_plan(self.layout)
        some = identity_file or self.layout.admin / "operator.pem"
        tls = MeshTls(Credentials(some), MeshName(plan.mesh), self.layout.ca.read_bytes())
        context = tls.client(lambda i: isinstance(i, RegistryIdentity), anonymous=identity_file is None)
        return PeerClient(f"https://127.0.0.1:{plan.registry_port}", context, authorize=authorize)

    def node_login(self, region: str, *, key_of: str | None = None) -> Any:
        signer = Ed25519Signer(load_signing_key(self.layout.core(key_of or region) / "signing.pem"))
        mesh = MeshName(load_plan(self.layout).mesh)
        return NodeLogin(CoreIdentity(mesh=mesh, region=RegionId(region), node=NodeId("n1")), signer).authorization

    async def mode(self, region: str) -> str:
        async with AdminClient(self.layout, load_plan(self.layout)) as operator:
            try:
                status = await operator.call("GET", "/v1/status", target=region, timeout_s=5)
            except KeymeshError as away:
                return away.code
        return str(status["tenants"].get("acme", {}).get("mode", "absent"))

    async def serves(self) -> None:
        async def both() -> bool:
            return [await self.mode(region) for region in (JWT_CORE, CERT_CORE)] == ["synced", "synced"]

        await until(both, "both Cores holding a lease")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    with openbao(tmp_path_factory.mktemp("oidc")) as bao:
        provider = Provider(bao)
        provider.set_up()
        mesh = Mesh(Layout(root / "m"), provider)
        try:
            mesh.start()
            yield mesh
        finally:
            mesh.stop()
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
async def mesh(started: Mesh) -> AsyncIterator[Mesh]:
    """With tenant acme, made by the operator's token, served by both Cores."""

    async def booted() -> bool:
        async with AdminClient(started.layout, load_plan(started.layout)) as operator:
            try:
                regions = (await operator.call("GET", "/v1/regions", timeout_s=5))["regions"]
            except KeymeshError:
                return False
        return all(region["reachable"] for region in regions)

    await until(booted, "both Cores heard by the Registry")
    ann = started.provider.token("ann")
    if not (await started.do("tenant", "list"))["tenants"]:
        await started.do("tenant", "create", "acme", "--home", JWT_CORE, token=ann)
        await started.do("tenant", "create", "zebra", "--home", CERT_CORE, token=ann)
    await started.serves()
    yield started


async def test_people_by_token_have_their_roles_and_no_more(mesh: Mesh) -> None:
    """The operator of the mesh's provider; a tenant's admin of its own; neither anything else."""
    ann, eve, kay = mesh.provider.token("ann"), mesh.of_acme("eve", "admin"), mesh.of_acme("kay", "keys")
    await mesh.do("service", "create", "files", "--tenant", "acme", token=eve)
    assert [t["tenant"] for t in (await mesh.do("tenant", "list", token=eve))["tenants"]] == ["acme"]
    assert [t["tenant"] for t in (await mesh.do("tenant", "list", token=ann))["tenants"]] == ["acme", "zebra"]
    await mesh.do("key", "rotate", "service:acme/files", token=kay)
    refused = [
        (eve, ("tenant", "show", "zebra"), "not-found"),
        (eve, ("tenant", "show", "no-such"), "not-found"),
        (eve, ("suspend", "tenant:zebra"), "not-found"),
        (eve, ("region", "list"), "denied"),
        (kay, ("service", "create", "mail", "--tenant", "acme"), "denied"),
        (kay, ("suspend", "tenant:acme"), "denied"),
        (mesh.of_acme("max"), ("tenant", "show", "acme"), "not-found"),
        (mesh.provider.token("ann", "mail"), ("tenant", "list"), "unauthenticated"),
        (mesh.of_acme("eve", "admin", iss=mesh.provider.issuer), ("tenant", "list"), "unauthenticated"),
        (mesh.of_acme("eve", "admin", exp=1), ("tenant", "list"), "unauthenticated"),
        ("aa.bb.cc", ("tenant", "list"), "unauthenticated"),
    ]
    for token, words, code in refused:
        shown = await mesh.do(*words, token=token, code=1)
        assert shown["error"]["code"] == code, words
    await until(mesh.has_recorded, "the log naming the operator, eve and kay")


async def test_a_token_bound_to_the_operators_certificate(mesh: Mesh) -> None:
    """Good with it, once; not without it, not with another, not for another name."""
    leaf = Credentials(mesh.layout.admin / "operator.pem").certificate
    mine = {"x5t#S256": to_base64url(bytes.fromhex(fingerprint(leaf)))}

    def token(jti: str, **changed: Any) -> str:
        return mesh.of_acme("ann", iss=BOUND_ID, jti=jti, **{"cnf": mine, **changed})

    good = token("b-1")
    await mesh.do("region", "list", token=good)
    for bad in (
        good,  # on another connection
        token("b-2", cnf={"x5t#S256": to_base64url(bytes(32))}),
        token("b-3", sub="zoe"),
        mesh.of_acme("ann", iss=BOUND_ID, jti="b-4"),
    ):
        shown = await mesh.do("region", "list", token=bad, code=1)
        assert shown["error"]["code"] == "unauthenticated"
    async with mesh.client() as thief:
        header = {"Authorization": f"Bearer {token('b-5')}"}
        assert set((await answers(thief, header)).values()) == {"unauthenticated"}


async def test_a_restriction_by_token_where_the_registry_is_away(mesh: Mesh) -> None:
    """In force at a Core at once, an entry under the person's name on contact; and a resume by the same person."""
    eve, kay = mesh.of_acme("eve", "admin"), mesh.of_acme("kay", "keys")
    mesh.processes["registry"].kill()
    refused = await mesh.do("suspend", "tenant:acme", "--no-wait", token=kay, code=3)
    assert not refused.get("ok")
    await mesh.do("suspend", "tenant:acme", "--no-wait", token=eve)
    mesh.processes["registry"].spawn()

    async def entered() -> bool:
        try:
            shown = await mesh.do("tenant", "show", "acme")
        except AssertionError:
            return False
        return bool(shown["state"] == "suspended")

    await until(entered, "the suspension becoming an entry")
    await mesh.do("resume", "tenant:acme", token=eve)
    await mesh.serves()


async def test_a_core_without_a_certificate_comes_back_by_itself(mesh: Mesh) -> None:
    """The Registry is killed under it, and it is killed under the Registry: new connections, new tokens, leases."""
    for name in ("registry", f"core-{JWT_CORE}"):
        mesh.processes[name].kill()
        mesh.processes[name].spawn()
        await mesh.serves()


async def test_a_registry_that_takes_no_nodes_tokens(mesh: Mesh) -> None:
    """It hears only the Core that shows its certificate: so the other shows none."""
    file = mesh.layout.root / "registry.toml"
    written = file.read_text()
    assert '"nodes" = true' in written
    file.write_text(written.replace('"nodes" = true', '"nodes" = false'))
    mesh.processes["registry"].kill()
    mesh.processes["registry"].spawn()

    async def heard() -> set[str]:
        async with AdminClient(mesh.layout, load_plan(mesh.layout)) as operator:
            try:
                regions = (await operator.call("GET", "/v1/regions", timeout_s=5))["regions"]
            except KeymeshError:
                return set()
        return {region["region"] for region in regions if region["reachable"]}

    async def one() -> bool:
        return await heard() == {CERT_CORE}

    try:
        await until(one, f"{CERT_CORE} being heard")
        async with mesh.client(authorize=mesh.node_login(JWT_CORE)) as node:
            assert set((await answers(node)).values()) == {"unauthenticated"}
        assert await heard() == {CERT_CORE}
    finally:
        file.write_text(written)
        mesh.processes["registry"].kill()
        mesh.processes["registry"].spawn()
    await mesh.serves()


ROUTES = [
    ("GET", "/healthz"), ("GET", "/v1/channels/lane0?wait=no"), ("GET", "/v1/channels/nonsense"),
    ("GET", "/v1/tenants"), ("GET", "/v1/tenants/acme"), ("GET", "/v1/tenants/zebra"), ("GET", "/v1/tenants/nobody"),
    ("GET", "/v1/tenants/acme/services"), ("GET", "/v1/tenants/acme/services/none"), ("GET", "/v1/tenants/acme/keys"),
    ("GET", "/v1/regions"), ("GET", "/v1/regions/us-east"), ("GET", "/v1/status"), ("GET", "/v1/openapi.json"),
    ("GET", "/v1/restrictions/acme"), ("GET", "/v1/restrictions/mesh"), ("GET", "/v1/commands/acme/none"),
    ("GET", "/v1/certificates/none"), ("POST", "/v1/commands"), ("POST", "/v1/commands/batch"),
    ("POST", "/v1/messages"), ("GET", "/v1/nowhere"), ("DELETE", "/v1/tenants/acme"),
]  # fmt: skip


async def answers(client: PeerClient, headers: dict[str, str] | None = None) -> dict[str, str]:
    """Every route -> status, or the code of the refusal."""
    seen = {}
    for method, path in ROUTES:
        path, _, query = path.partition("?")
        body = b"{}" if method == "POST" else None
        try:
            status, _ = await client.request(
                method, path, body, headers=headers, query=dict([query.split("=")]) if query else None
            )
            seen[f"{method} {path}"] = str(status)
        except KeymeshError as no:
            seen[f"{method} {path}"] = no.code
    return seen


async def test_a_node_has_the_same_rights_by_either(mesh: Mesh) -> None:
    async with mesh.client(identity_file=mesh.layout.core(JWT_CORE) / "tls.pem") as by_certificate:
        expected = await answers(by_certificate)
    async with mesh.client(authorize=mesh.node_login(JWT_CORE)) as by_token:
        assert await answers(by_token) == expected
    assert expected["GET /v1/channels/lane0"] == "200"
    assert expected["GET /v1/tenants/acme"] == expected["POST /v1/commands"] == "denied"


async def test_an_administrator_has_the_same_rights_by_either(mesh: Mesh) -> None:
    async with mesh.client(identity_file=mesh.layout.admin / "operator.pem") as by_certificate:
        expected = await answers(by_certificate)
    async with mesh.client() as by_token:
        header = {"Authorization": f"Bearer {mesh.provider.token('ann')}"}
        assert await answers(by_token, header) == expected
        assert set((await answers(by_token)).values()) == {"unauthenticated"}
    assert expected["GET /v1/status"] == "200"
    assert expected["GET /v1/channels/lane0"] == expected["POST /v1/messages"] == "denied"


async def test_nodes_that_are_not_who_they_say(mesh: Mesh) -> None:
    """Another region's key; a certificate of one Core beside the token of the other."""
    async with mesh.client(authorize=mesh.node_login(JWT_CORE, key_of=CERT_CORE)) as forger:
        assert set((await answers(forger)).values()) == {"unauthenticated"}
    file = mesh.layout.core(CERT_CORE) / "tls.pem"
    async with mesh.client(identity_file=file, authorize=mesh.node_login(JWT_CORE)) as both:
        assert set((await answers(both)).values()) == {"unauthenticated"}
    async with mesh.client(identity_file=file, authorize=mesh.node_login(CERT_CORE)) as agreeing:
        assert (await answers(agreeing))["GET /v1/channels/lane0"] == "200"


async def test_a_core_takes_tokens_for_restrictions_alone(mesh: Mesh) -> None:
    plan, token = load_plan(mesh.layout), mesh.of_acme("eve", "admin")
    path = Path(mesh.token_file(token))
    async with AdminClient(mesh.layout, plan, token_file=path) as eve:
        for method, route in (("GET", "/v1/status"), ("POST", "/v1/seal"), ("GET", "/v1/tenants/acme/chain")):
            with pytest.raises(Refused) as no:
                await eve.call(method, route, {} if method == "POST" else None, target=JWT_CORE)
            assert no.value.code == "unauthenticated", route
        with pytest.raises(Refused) as no:
            await eve.call("POST", "/v1/restrict", {"scope": "tenant:zebra", "action": "suspend"}, target=JWT_CORE,
                           command_id="other-1")  # fmt: skip
        assert no.value.code == "not-found"


async def test_with_its_provider_gone_people_go_on_for_a_while(mesh: Mesh) -> None:
    ann = mesh.provider.token("ann")
    await mesh.do("tenant", "list", token=ann)
    mesh.provider.bao.kill()
    try:
        assert len((await mesh.do("tenant", "list", token=ann))["tenants"]) == 2
    finally:
        mesh.provider.bao.start()


async def test_no_token_is_in_any_log_or_file(mesh: Mesh) -> None:
    """Not the signature of one, nor what it says of somebody."""
    token = mesh.of_acme("eve", "admin", note="canary-1f3e")
    await mesh.do("tenant", "list", token=token)
    (mesh.layout.root / "token.jwt").unlink()
    needles = [token.rpartition(".")[2].encode(), b"canary-1f3e"]
    for path in mesh.layout.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), path
