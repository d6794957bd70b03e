"""RabbitMQ: one broker in a private directory; AMQP, MQTT and management on loopback, TLS 1.3, client certificates.

Tried with 3.10.8, Debian's.  The broker and its ``epmd`` (its name service) listen on ports of their own, in one
process group; whatever Debian's wrapper would read from ``/etc/rabbitmq`` is left out.  Users, their rights and the
virtual host are a definitions file that the broker reads at each start, so one that lost all its data has them again.
As root it runs as the user ``rabbitmq``, who must be able to enter the directory; only its data
is that user's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.broker_limits import BODY_MAX_BYTES
from keymesh.adapters.files import write_file
from keymesh.app.servers.binaries import RABBITMQ
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ownership import check_reachable, hand_over, keep_own
from keymesh.app.servers.plan import READY_TRY_S, ServerPlan
from keymesh.model.states import Lane
from keymesh.orbital import broker
from keymesh.orbital.broker import EXCHANGE

USER: Final = "rabbitmq"  # of the operating system
VHOST: Final = "keymesh"
PROGRAMS: Final = Path("/usr/lib/rabbitmq/bin")
"""Debian's own place: what lies on the PATH there is a wrapper that wants to be root or ``rabbitmq``."""
START_S: Final = 90.0

_CONF: Final = """\
listeners.tcp = none
listeners.ssl.1 = 127.0.0.1:{settings.amqp_port}
ssl_options.cacertfile = {root}/ca.pem
ssl_options.certfile = {root}/server.pem
ssl_options.keyfile = {root}/server.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.versions.1 = tlsv1.3
auth_mechanisms.1 = EXTERNAL
auth_mechanisms.2 = PLAIN
ssl_cert_login_from = common_name
mqtt.listeners.tcp = none
mqtt.listeners.ssl.1 = 127.0.0.1:{settings.mqtt_port}
mqtt.allow_anonymous = false
mqtt.ssl_cert_login = true
mqtt.vhost = {settings.vhost}
mqtt.subscription_ttl = infinity
mqtt.prefetch = 32
management.ssl.ip = 127.0.0.1
management.ssl.port = {settings.management_port}
management.ssl.cacertfile = {root}/ca.pem
management.ssl.certfile = {root}/server.pem
management.ssl.keyfile = {root}/server.pem
management.ssl.verify = verify_peer
management.ssl.fail_if_no_peer_cert = true
management.ssl.versions.1 = tlsv1.3
load_definitions = {root}/definitions.json
max_message_size = {body_max}
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
"""
_ITS_OWN: Final = ("data", "logs", "home")
"""What the broker writes to; the directory around them, with its configuration and its log, is not the broker's."""
_PLUGINS: Final = "[rabbitmq_management,rabbitmq_mqtt,rabbitmq_auth_mechanism_ssl].\n"
_QUIET_VM: Final = "+sbwt none +sbwtdcpu none +sbwtdio none"  # no busy waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitSettings:
    """One broker, its ports all on 127.0.0.1; ``distribution_port`` is Erlang's, ``epmd_port`` its name service's."""

    directory: Path
    amqp_port: int
    mqtt_port: int
    management_port: int
    distribution_port: int
    epmd_port: int
    name: str = "rabbitmq"
    vhost: str = VHOST


@dataclass(frozen=True, slots=True)
class BrokerUser:
    """``password`` None: by client certificate alone, whose common name is ``name``.

    ``configure``, ``write``, ``read``: regular expressions over queue and exchange names; ``topics_write`` and
    ``topics_read``: over the routing keys of the exchange that tasks go through.
    """

    name: str
    password: str | None = None
    configure: str = ".*"
    write: str = ".*"
    read: str = ".*"
    topics_write: str = ".*"
    topics_read: str = ".*"
    tags: tuple[str, ...] = ()


def registry_user(name: str, password: str | None = None) -> BrokerUser:
    """Declares and binds the queues, publishes to all of them, reads none."""
    return BrokerUser(name, password, read=f"^{re.escape(EXCHANGE)}$")


def region_user(name: str, mesh: str, region: str, password: str | None = None) -> BrokerUser:
    """Consumes its own region's queues and parks what is poison there; nothing else.

    Every name is said to its end: a region's name may begin as another's does.  Of MQTT only the mesh and the region
    together are told apart (hyphens join them), so a virtual host serves one mesh alone.
    """
    lanes = [re.escape(broker.routing_key(mesh, region, lane)) for lane in Lane]
    parking = re.escape(broker.parking_key(mesh, region))
    sessions = [re.escape(broker.queue_of(broker.Protocol.MQTT, mesh, region, lane)) for lane in Lane]
    own = _one_of(*lanes, parking, *sessions)
    return BrokerUser(
        name,
        password,
        configure=own,
        write=f"{own}|^{re.escape(EXCHANGE)}$",
        read=f"{own}|^{re.escape(EXCHANGE)}$",
        topics_write=_one_of(parking),
        topics_read=_one_of(*lanes, parking),
    )


def _one_of(*expressions: str) -> str:
    return f"^({'|'.join(expressions)})$"


def prepare(settings: RabbitSettings, ca: InfraCa, users: Iterable[BrokerUser]) -> ServerPlan:
    """Certificate, configuration and users; what the broker has stored stays.

    Raises Refused where the program is missing or its user cannot come to the directory.
    """
    RABBITMQ.require()
    root = settings.directory
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_own(USER, root)
    check_reachable(USER, root)
    texts = {
        "rabbitmq.conf": _CONF.format(settings=settings, root=root, body_max=BODY_MAX_BYTES).encode(),
        "enabled_plugins": _PLUGINS.encode(),
        "definitions.json": json.dumps(definitions(users, settings.vhost)).encode(),
        "ca.pem": ca.pem,
    }
    for name, content in texts.items():
        write_file(root / name, content)
    ca.keep(root / "server.pem", settings.name, server=True)
    for name in _ITS_OWN:
        (root / name).mkdir(mode=0o700, exist_ok=True)
    hand_over(USER, *(root / name for name in (*texts, "server.pem", *_ITS_OWN)))
    return plan(settings)


def plan(settings: RabbitSettings) -> ServerPlan:
    """How to run what ``prepare`` has made."""
    epmd = f"epmd -address 127.0.0.1 -port {settings.epmd_port}"
    return ServerPlan(
        name=settings.name,
        # the name service ends with the broker, however that ends
        argv=("/bin/sh", "-c", f"setpriv --pdeathsig KILL {epmd} & exec {program('rabbitmq-server')}"),
        directory=settings.directory,
        ready=partial(_is_ready, settings),
        env=environment(settings),
        user=USER,
        start_s=START_S,
    )


def program(name: str) -> Path:
    """``rabbitmq-server`` or one of its tools.  Raises Refused where it is missing."""
    return PROGRAMS / name if (PROGRAMS / name).exists() else RABBITMQ.require().parent / name


def _is_ready(settings: RabbitSettings) -> bool:
    """Listeners open once everything else is there."""
    for port in (settings.amqp_port, settings.mqtt_port, settings.management_port):
        try:
            socket.create_connection(("127.0.0.1", port), READY_TRY_S / 3).close()
        except OSError:
            return False
    return True


def environment(settings: RabbitSettings) -> dict[str, str]:
    """Of the broker, and of ``rabbitmqctl`` that speaks to it."""
    root = settings.directory
    return {
        "PATH": f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(root / "home"),  # the cookie of its tools
        "LANG": "C.UTF-8",
        "RABBITMQ_CONF_ENV_FILE": str(root / "none"),
        "RABBITMQ_CONFIG_FILE": str(root / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(root / "data"),
        "RABBITMQ_LOG_BASE": str(root / "logs"),
        "RABBITMQ_NODENAME": f"keymesh{settings.amqp_port}@localhost",
        "RABBITMQ_DIST_PORT": str(settings.distribution_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {{127,0,0,1}} {_QUIET_VM}",
        "ERL_EPMD_PORT": str(settings.epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",
        "RUNNING_UNDER_SYSTEMD": "true",  # no shell between us and the broker
    }


def definitions(users: Iterable[BrokerUser], vhost: str) -> dict[str, Any]:
    """The definitions file: one virtual host, the users, what each may do in it."""
    found = tuple(users)
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": user.name,
                "password_hash": "" if user.password is None else password_hash(user.password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ",".join(user.tags),
            }
            for user in found
        ],
        "permissions": [permissions(user, vhost) for user in found],
        "topic_permissions": [topic_permissions(user, vhost) for user in found],
    }


def permissions(user: BrokerUser, vhost: str) -> dict[str, str]:
    rights = {"configure": user.configure, "write": user.write, "read": user.read}
    return {"user": user.name, "vhost": vhost, **rights}


def topic_permissions(user: BrokerUser, vhost: str) -> dict[str, str]:
    rights = {"write": user.topics_write, "read": user.topics_read}
    return {"user": user.name, "vhost": vhost, "exchange": EXCHANGE, **rights}


def password_hash(password: str) -> str:
    """As the broker keeps it: base64(salt || SHA-256(salt || password)), with 4 bytes of salt."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def wipe(settings: RabbitSettings) -> None:
    """Everything that a stopped broker has stored is gone; its configuration stays."""
    data = settings.directory / "data"
    shutil.rmtree(data)
    data.mkdir(mode=0o700)
    hand_over(USER, data)
