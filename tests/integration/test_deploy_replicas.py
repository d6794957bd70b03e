"""``docs/deploy.md``, "Several Registries", to the letter, over a real etcd and a real PostgreSQL."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.deployment import Deployment, blocks, deployment, free_range
from tests.servers import postgres
from tests.servers.etcd import EtcdCluster

from keymesh.adapters.files import write_file
from keymesh.model import strict_json

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def followed() -> Iterator[Deployment]:
    """Two Registries and a Core."""
    with tempfile.TemporaryDirectory(prefix="kme", dir="/tmp") as place, postgres.postgres() as database:
        cluster = EtcdCluster(Path(place))
        try:
            cluster.start()
            with deployment() as made:
                for name, content in (
                    ("etcd-ca.pem", cluster.ca.pem),
                    ("etcd.pem", cluster.identity.read_bytes()),
                    ("postgresql-ca.pem", database.ca.read_bytes()),
                    ("postgresql.password", postgres.PASSWORD.encode()),
                ):
                    write_file(made.home / name, content)
                ports = {"2379": cluster.members[0].settings.client_port, "5432": database.port}
                for block in blocks("Several Registries", free_range(6), ports):
                    made.follow(block)
                yield made
        finally:
            cluster.stop()


def status(made: Deployment) -> str:
    return made.do("cd hosts/admin\nkeymesh status --dir . --json")


def test_what_one_replica_committed_the_other_goes_on_from(followed: Deployment) -> None:
    """A replica is lost for good; the CLI and the Core go on with the other."""
    assert set(followed.hosts) == {"registry", "registry-r2", "core-us-east"}
    suspend = "cd hosts/admin\nkeymesh suspend region:us-west --approve-key keys/officer-2.pem --no-wait --dir . --json"
    followed.do(suspend)
    followed.end("registry")
    shown = strict_json.loads(status(followed).replace(".", "_").encode(), max_bytes=2**20)
    assert shown["registry"]["reachable"] and shown["registry"]["index"] >= 2
    followed.do(suspend.replace("us-west", "us-east"))
    assert followed.hosts["core-us-east"].process.poll() is None


def test_a_log_of_another_ceremony_is_refused(followed: Deployment) -> None:
    """The same etcd for a second mesh of the same name: nothing is changed."""
    command = blocks("Several Registries", 1)[0].splitlines()[0].replace("--out mesh", "--out second")
    followed.do(command)
    first = (followed.home / "hosts" / "registry" / "registry.toml").read_text()
    second = followed.home / "second" / "registry"
    log_and_after = first[first.index("[[log.endpoints]]") :]
    text = (second / "registry.toml").read_text()
    (second / "registry.toml").write_text(text[: text.index("[[log.endpoints]]")] + log_and_after)
    for name in ("etcd-ca.pem", "etcd.pem", "postgresql-ca.pem", "postgresql.password"):
        write_file(second / name, (followed.home / name).read_bytes())
    before = status(followed)
    for words in ("init --config registry.toml --genesis genesis.json", "run --config registry.toml"):
        done = subprocess.run(
            ["keymesh", "registry", *words.split()],
            cwd=second,
            env=followed.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (1, 4), (words, done)
    after = status(followed)
    indices = [strict_json.loads(s.replace(".", "_").encode(), max_bytes=2**20)["registry"] for s in (before, after)]
    assert indices[0]["index"] == indices[1]["index"]


def test_missing_credentials_are_named_before_anything_is_asked(followed: Deployment) -> None:
    (followed.home / "hosts" / "registry" / "etcd.pem").rename(followed.home / "away.pem")
    try:
        said = subprocess.run(
            ["keymesh", "config", "check", "registry.toml", "--json"],
            cwd=followed.home / "hosts" / "registry",
            env=followed.environment,
            capture_output=True,
            timeout=60,
        )
    finally:
        (followed.home / "away.pem").rename(followed.home / "hosts" / "registry" / "etcd.pem")
    errors = strict_json.loads(said.stdout, max_bytes=2**16)["errors"]
    assert said.returncode == 1
    assert [(e["field"], e["reason"]) for e in errors] == [("log.endpoints[0].cert_file", "there is no such file")]
    assert errors[0]["line"]
