"""Every section that a role may have, whole, from a file and from the environment; what is wrong in it, by its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.app.test_config_file import CORE
from tests.unit.house.test_deploy_doc import sections

from keymesh.app.config import CoreConfig, RegistryConfig
from keymesh.app.config_faults import BadConfig
from keymesh.app.config_file import load_config

TOP = """\
mesh = "dev"
data_dir = "data"
[listen]
port = 7600
[identity]
tls_file = "some.pem"
signing_key_file = "some.pem"
ca_file = "some.pem"
trust_file = "some.pem"
"""
TOKENS = """
[[tokens.issuers]]
name = "corp"
issuer = "https://id.example/realm"
audience = "keymesh"
algorithm = "ES256"
typ = "at+jwt"
jwks_url = "https://id.example/keys"
ca_file = "some.pem"
cert_file = "some.pem"
key_file = "some.pem"
refresh_s = 60
max_age_s = 120
leeway_s = 5
lifetime_max_s = 600
once = true
bound = true
name_claim = "email"
roles_claim = "groups"
tenant = "acme"
tenant_claim = "org"
[tokens.issuers.roles]
"Mesh Auditors" = ["auditor"]
[[tokens.issuers]]
name = "lab"
issuer = "https://lab.example"
audience = "keymesh"
algorithm = "EdDSA"
jwks_file = "some.pem"
[tokens.issuers.names]
"person@lab.example" = "operator"
"""
BACKUP = """
[backup]
recipients = ["1111111111111111111111111111111111111111111111111111111111111111"]
interval_s = 20
full_every_s = 3600
domain = "DOMAIN"
[backup.s3]
bucket = "keymesh-backups"
retention_days = 30
region = "eu-1"
prefix = "mesh/"
timeout_s = 5
[[backup.s3.endpoints]]
url = "https://s3.example:9000"
ca_file = "some.pem"
username = "id"
password_file = "some.pem"
"""
REGISTRY = (
    TOP
    + """
[log]
kind = "etcd"
prefix = "mesh/"
cluster_id = "cafe"
connections = 8
timeout_ms = 1000
follow_ms = 20
[[log.endpoints]]
url = "https://e1.example:2379"
ca_file = "some.pem"
cert_file = "some.pem"
key_file = "some.pem"
[database]
kind = "postgresql"
[[database.endpoints]]
url = "postgresql://db.example/keymesh"
ca_file = "some.pem"
username = "keymesh"
password_file = "some.pem"
[broker]
regions = { us-east = "amqp", us-west = "mqtt" }
[[broker.endpoints]]
url = "amqps://mq.example:5671/mesh"
ca_file = "some.pem"
username = "registry"
password_file = "some.pem"
[tokens]
nodes = true
"""
    + TOKENS
    + BACKUP.replace("DOMAIN", "")
)
CORE_WHOLE = (
    CORE.replace("tls.pem", "some.pem")
    .replace("signing.pem", "some.pem")
    .replace('"ca.pem"', '"some.pem"')
    .replace("trust.json", "some.pem")
    + """
[timing]
heartbeat_ms = 500
[keystore]
kind = "openbao"
mount = "kv"
prefix = "mesh"
login = "approle"
login_mount = "approle2"
role = "core"
approle_file = "some.pem"
[[keystore.endpoints]]
url = "https://bao.example:8200"
ca_file = "some.pem"
[seals]
order = ["pkcs11", "file"]
initial = ["file"]
deadline_ms = 1000
check_every_ms = 60000
[[seals.tokens]]
token = "region"
seal = true
module = "/usr/lib/libsofthsm2.so"
pin_file = "some.pem"
serial = "1234"
deadline_ms = 2000
[seals.tokens.env]
SOFTHSM2_CONF = "/etc/softhsm2.conf"
[broker]
protocol = "mqtt"
prefetch = 8
[[broker.endpoints]]
url = "mqtts://mq.example:8883/mesh"
ca_file = "some.pem"
username = "us-east"
password_file = "some.pem"
[objects]
durability = "peer"
peer_services = ["acme/payments"]
[kmip]
host = "0.0.0.0"
port = 5697
min_tls = "1.2"
tls_file = "some.pem"
connections = 100
connections_of_one = 10
requests_per_s = 50
certificate_h = 48
[tokens]
registry_auth = "jwt"
"""
    + TOKENS
    + BACKUP.replace("DOMAIN", "us")
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "some.pem").write_bytes(b"x")
    return tmp_path


def load(home: Path, text: str, role: str, environ: dict[str, str] | None = None) -> Any:
    (home / "some.toml").write_text(text)
    return load_config(home / "some.toml", role, environ or {})


@pytest.mark.parametrize(("role", "text"), [("registry", REGISTRY), ("core", CORE_WHOLE)])
def test_a_file_with_every_section(home: Path, role: str, text: str) -> None:
    """All of them are given here, so that a new one is tried too."""
    loaded = load(home, text, role)
    given = msgspec.to_builtins(loaded.config)
    for heading, shape in sections(type(loaded.config)):
        if heading.startswith("`"):
            place = heading.strip("`[]").split(".")
            found = given
            for step in place:
                found = found[step] if isinstance(found, dict) else found[0][step]
            assert found, f"the file above has no {heading}"
            one = found if isinstance(found, dict) else found[0]
            assert set(one) == set(shape.__struct_fields__)
    paths = [value for field, value, _ in loaded.fields if field.endswith("_file") and value is not None]
    assert set(paths) == {str(home / "some.pem")}, "relative ones start here, in every section"


def test_every_section_by_environment(home: Path) -> None:
    loaded = load(
        home,
        REGISTRY,
        "registry",
        {
            "KEYMESH_REGISTRY__LOG__ENDPOINTS__0__URL": "https://other.example:2379",
            "KEYMESH_REGISTRY__LOG__ENDPOINTS__1": '{"url": "https://e2.example:2379", "ca_file": "some.pem", '
            '"cert_file": "some.pem"}',
            "KEYMESH_REGISTRY__TOKENS__NODES": "false",
            "KEYMESH_REGISTRY__TOKENS__ISSUERS__1__NAMES": '{"Boss@lab.example": "operator"}',
            "KEYMESH_REGISTRY__BROKER__REGIONS__EU_WEST": "amqp",
            "KEYMESH_REGISTRY__BACKUP__INTERVAL_S": "30",
        },
    )
    config = loaded.config
    assert isinstance(config, RegistryConfig) and config.log and config.tokens and config.broker and config.backup
    assert [endpoint.url for endpoint in config.log.endpoints] == [
        "https://other.example:2379",
        "https://e2.example:2379",
    ]
    assert config.log.endpoints[1].ca_file == str(home / "some.pem")
    assert config.tokens.issuers[1].names == {"Boss@lab.example": "operator"}
    assert config.broker.regions == {"us-east": "amqp", "us-west": "mqtt", "eu-west": "amqp"}
    assert config.backup.interval_s == 30
    core = load(home, CORE_WHOLE, "core", {"KEYMESH_CORE__KEYSTORE__KIND": "openbao"}).config
    assert isinstance(core, CoreConfig) and core.keystore and core.keystore.endpoints


def test_a_section_that_was_not_there_by_environment_alone(home: Path) -> None:
    files = {"CA_FILE": "some.pem", "USERNAME": "keymesh", "PASSWORD_FILE": "some.pem"}
    prefix = "KEYMESH_REGISTRY__DATABASE__"
    environ = {f"{prefix}ENDPOINTS__0__{name}": value for name, value in files.items()}
    environ |= {f"{prefix}KIND": "postgresql", f"{prefix}ENDPOINTS__0__URL": "postgresql://db.example/keymesh"}
    config = load(home, TOP, "registry", environ).config
    assert config.database is not None and config.database.endpoints[0].username == "keymesh"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("port = 0", "1 to 65535"),
        ('min_tls = "1.1"', "must be one of 1.2, 1.3"),
        ('host = "a b"', "a host name or an address, without port"),
        ("connections_of_one = 0", "expected a whole number >= 1"),
        ("certificate_h = 2161", "expected a whole number <= 2160"),
        ("requests_per_s = true", "expected a whole number, got true or false"),
    ],
)
def test_faults_of_the_kmip_section(home: Path, line: str, reason: str) -> None:
    with pytest.raises(BadConfig) as bad:
        load(home, CORE + f"[kmip]\n{line}\n", "core")
    assert [(f.field, f.reason) for f in bad.value.faults if f.field.startswith("kmip")] == [
        (f"kmip.{line.partition(' ')[0]}", reason)
    ]


def line_of(text: str, start: str, nth: int = 1) -> int:
    found = [n for n, line in enumerate(text.splitlines(), start=1) if line.startswith(start)]
    return found[nth - 1]


def test_faults_in_sections_are_told_with_their_lines(home: Path) -> None:
    text = (
        REGISTRY.replace('kind = "etcd"', 'kind = "etdc"')
        .replace("follow_ms = 20", "folow_ms = 20")
        .replace('url = "postgresql://db.example/keymesh"', 'url = "postgresql://keymesh:hunter2@db.example/keymesh"')
        .replace('us-west = "mqtt"', 'us-west = "smtp"')
        .replace("leeway_s = 5", "leeway_s = 500")
        .replace("retention_days = 30", 'retention_days = "30"')
        .replace('username = "id"', "")
    )
    with pytest.raises(BadConfig) as bad:
        load(home, text, "registry")
    found = {fault.field: (fault.line, fault.reason) for fault in bad.value.faults}
    assert found == {
        "log.kind": (line_of(text, 'kind = "etdc"'), "must be one of sqlite, etcd"),
        "log.folow_ms": (line_of(text, "folow_ms"), "no such field; did you mean follow_ms?"),
        "database.endpoints[0].url": (
            line_of(text, 'url = "postgresql'),
            "a password does not belong in an address; a field that names a file takes it",
        ),
        "broker.regions.us-west": (line_of(text, "regions = "), "must be one of amqp, mqtt"),
        "tokens.issuers[0].leeway_s": (line_of(text, "leeway_s"), "0 to 300"),
        "backup.s3.retention_days": (line_of(text, "retention_days"), "expected a whole number, got text"),
    }
    assert "hunter2" not in str(bad.value.faults) + bad.value.message


def test_limits_of_a_section(home: Path) -> None:
    with pytest.raises(BadConfig) as bad:
        load(home, CORE_WHOLE.replace("prefetch = 8", "prefetch = 0"), "core")
    assert [(fault.field, fault.reason) for fault in bad.value.faults] == [
        ("broker.prefetch", "expected a whole number >= 1")
    ]
