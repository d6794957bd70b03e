"""A real RabbitMQ for tests: private directory and ports, mTLS listeners, a virtual host for each test."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tests.servers.etcd import TestCA

from keymesh.app.bootstrap import DEV_MESH
from keymesh.app.config_broker import BrokerPlan, CoreBroker, RegistryBroker
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.servers import rabbitmq
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.ownership import switches_user
from keymesh.app.servers.ports import free_ports
from keymesh.app.servers.rabbitmq import BrokerUser, RabbitSettings, region_user, registry_user
from keymesh.orbital.broker import EXCHANGE

ADMIN, ADMIN_PASSWORD = "overseer", "battery/staple@7"
PASSWORD: Final = "correct horse@battery/7"


@dataclass
class Rabbit:
    """One broker.  ``root`` holds its directory, the CA and the clients' certificates."""

    root: Path
    ca: TestCA
    settings: RabbitSettings
    server: ServerProcess
    vhosts: int = 0

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.server.start()

    def kill(self) -> None:
        """SIGKILL to all of it, and gone when this returns."""
        self.server.kill()

    def wipe(self) -> None:
        """All that a stopped broker had stored is gone."""
        rabbitmq.wipe(self.settings)

    # --- management ------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the management API."""
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        context.load_cert_chain(self.root / "client.pem")
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.settings.management_port, context=context, timeout=20
        )
        with contextlib.closing(connection):
            token = base64.b64encode(f"{ADMIN}:{ADMIN_PASSWORD}".encode()).decode()
            headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
            connection.request(method, f"/api{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            raw = answer.read()
        assert answer.status < 300, (method, path, answer.status, raw)
        return json.loads(raw) if raw else None

    def add_user(self, vhost: str, user: BrokerUser) -> None:
        """Make ``user``, with its rights in ``vhost``."""
        name = quote(user.name, safe="")
        secret = {"password_hash": ""} if user.password is None else {"password": user.password}
        self.call("PUT", f"/users/{name}", {**secret, "tags": ",".join(user.tags)})
        rights = rabbitmq.permissions(user, vhost)
        self.call("PUT", f"/permissions/{vhost}/{name}", {k: rights[k] for k in ("configure", "write", "read")})
        topics = rabbitmq.topic_permissions(user, vhost)
        self.call("PUT", f"/topic-permissions/{vhost}/{name}", {k: topics[k] for k in ("exchange", "write", "read")})

    def new_vhost(self) -> str:
        """A virtual host of the test's own."""
        self.vhosts += 1
        vhost = f"test{self.vhosts}"
        self.add_vhost(vhost)
        return vhost

    def add_vhost(self, vhost: str) -> None:
        self.call("PUT", f"/vhosts/{vhost}")
        self.add_user(vhost, BrokerUser(ADMIN, ADMIN_PASSWORD, tags=("administrator",)))

    def queue(self, vhost: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/queues/{vhost}/{quote(name, safe='')}")
        return found

    def depth(self, vhost: str, name: str) -> int:
        """Messages in a queue; 0 where the broker has no statistics of it yet."""
        return int(self.queue(vhost, name).get("messages", 0))

    def peek(self, vhost: str, name: str, count: int = 10) -> list[dict[str, Any]]:
        """Messages of a queue, which keeps them."""
        wanted = {"count": count, "ackmode": "ack_requeue_true", "encoding": "base64"}
        found: list[dict[str, Any]] = self.call("POST", f"/queues/{vhost}/{quote(name, safe='')}/get", wanted)
        return found

    def put(self, vhost: str, routing_key: str, body: bytes, **properties: Any) -> bool:
        """Publish anything, as the administrator; whether a queue took it."""
        message = {
            "routing_key": routing_key,
            "payload": base64.b64encode(body).decode(),
            "payload_encoding": "base64",
            "properties": {"delivery_mode": 2, **properties},
        }
        return bool(self.call("POST", f"/exchanges/{vhost}/{EXCHANGE}/publish", message)["routed"])

    def control(self, *words: str) -> None:
        """``rabbitmqctl``; it takes seconds."""
        user = (
            {"user": rabbitmq.USER, "group": rabbitmq.USER, "extra_groups": []} if switches_user(rabbitmq.USER) else {}
        )
        subprocess.run(
            [str(rabbitmq.program("rabbitmqctl")), *words],
            env=rabbitmq.environment(self.settings),
            cwd="/",
            check=True,
            capture_output=True,
            timeout=60,
            **user,  # type: ignore[call-overload]
        )

    # --- endpoints -------------------------------------------------------------------------------------------------

    def endpoint(
        self,
        vhost: str,
        user: str | None = None,
        *,
        scheme: str = "amqps",
        password: str = PASSWORD,
        identity: str = "client.pem",
        ca: str = "ca.pem",
        port: int | None = None,
    ) -> Endpoint:
        """As a configuration names it; the password lies in a file of its own."""
        number = port or (self.settings.amqp_port if scheme == "amqps" else self.settings.mqtt_port)
        secret = self.root / f"password-{abs(hash(password))}"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(password)
        return Endpoint(
            url=f"{scheme}://127.0.0.1:{number}/{vhost}",
            ca_file=str(self.root / ca),
            cert_file=str(self.root / identity),
            username=user,
            password_file=None if user is None else str(secret),
        )

    def broker_plan(self, vhost: str, regions: dict[str, str], *, mesh: str = DEV_MESH) -> BrokerPlan:
        """Users of their own for the Registry and each of ``regions``, and what an embedded mesh is told."""
        self.add_user(vhost, registry_user("registry", PASSWORD))
        cores = {}
        for region, protocol in regions.items():
            self.add_user(vhost, region_user(f"core-{region}", mesh, region, PASSWORD))
            where = self.endpoint(vhost, f"core-{region}", scheme=f"{protocol}s")
            cores[region] = CoreBroker(protocol=protocol, endpoints=(where,))  # type: ignore[arg-type]
        mine = RegistryBroker(endpoints=(self.endpoint(vhost, "registry"),), regions=regions)  # type: ignore[arg-type]
        return BrokerPlan(registry=mine, cores=cores)


@contextmanager
def running() -> Iterator[Rabbit]:
    root = Path(tempfile.mkdtemp(prefix="kmr"))
    root.chmod(0o755)
    ports = free_ports(5)
    settings = RabbitSettings(
        directory=root / "broker",
        amqp_port=ports[0],
        mqtt_port=ports[1],
        management_port=ports[2],
        distribution_port=ports[3],
        epmd_port=ports[4],
    )
    ca = TestCA("rabbitmq test root")
    (root / "ca.pem").write_bytes(ca.pem)
    ca.leaf(root / "client.pem")
    plan = rabbitmq.prepare(settings, ca.infra, [BrokerUser(ADMIN, ADMIN_PASSWORD, tags=("administrator",))])
    rabbit = Rabbit(root, ca, settings, ServerProcess(plan))
    try:
        rabbit.start()
        yield rabbit
    finally:
        rabbit.kill()
        shutil.rmtree(root, ignore_errors=True)
