"""``docs/deploy.md`` followed to the letter: its shell blocks, in order, in directories and on ports of the test's own.

A block that ends in ``run`` stays in the foreground, so it is started beside the test; every other must end well.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.integration.deployment import Deployment, blocks, deployment, free_range

from keymesh.model import strict_json

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def followed() -> Iterator[Deployment]:
    """All blocks, done or running."""
    with deployment() as made:
        for block in blocks("Step by step", free_range(5)):
            made.follow(block)
        yield made


def test_the_document_ends_with_a_file_sealed_and_opened(followed: Deployment) -> None:
    edge = followed.home / "hosts" / "edge-us-east"
    assert (edge / "again.txt").read_text() == "for nobody else\n"
    assert b"for nobody else" not in (edge / "report.txt.sealed").read_bytes()
    assert set(followed.hosts) == {"registry", "core-us-east", "core-us-west", "customer-kms", "edge-us-east"}


def test_both_regions_hold_the_tenant(followed: Deployment) -> None:
    status = strict_json.loads(
        followed.do("keymesh status --dir hosts/admin --json").replace(".", "_").encode(), max_bytes=2**20
    )
    assert all(region["reachable"] and "acme" in region["tenants"] for region in status["regions"].values())
    assert status["processes"] == {}, "no supervisor"


def test_a_host_writes_only_into_its_own_directory(followed: Deployment) -> None:
    for name in ("registry", "core-us-east", "core-us-west", "edge-us-east"):
        directory = followed.home / "hosts" / name
        written = {path.name for path in directory.iterdir()} - {"data", "edge.sock"}
        assert {n for n in written if n.endswith((".db", ".jsonl"))} == set()
        assert (directory / "data").stat().st_mode & 0o077 == 0
    assert not (followed.home / "mesh" / "registry").exists()


def test_an_edge_takes_no_certificate_but_its_own(followed: Deployment) -> None:
    """And a Core signs no request of another mesh, nor one whose fields and key disagree."""
    admin, edge = followed.home / "hosts" / "admin", followed.home / "hosts" / "edge-us-east"
    request = (admin / "files.request").read_text()
    certificate = (admin / "files.certificate").read_text()
    for name, text, code in (
        ("mesh", request.replace('"mesh":"dev"', '"mesh":"test"'), "bad-field"),
        ("region", request.replace('"region":"us-east"', '"region":"us-west"'), "bad-field"),
        ("tenant", request.replace('"tenant":"acme"', '"tenant":"zebra"'), "not-found"),
        ("unknown", request.replace('"mesh"', '"mush"'), "bad-field"),
        ("none", "no JSON", "bad-field"),
    ):
        (admin / f"{name}.request").write_text(text)
        refused = followed.refused(f"cd hosts/admin\nkeymesh pki issue {name}.request -o x --dir .")
        assert code in refused, (name, refused)
        assert not (admin / "x").exists()
    for name, text in (
        ("service", certificate.replace('"service":"files"', '"service":"mail"')),
        ("chain", certificate.replace("MII", "MIJ", 1)),
        ("path", certificate.replace('"tenant":"acme"', '"tenant":"../acme"')),
    ):
        (edge / name).write_text(text)
        followed.refused(f"cd hosts/edge-us-east\nkeymesh edge install {name} --config edge.toml")
    for words in ("request acme --config edge.toml -o x", "request acme/files --config core.toml -o x"):
        followed.refused(f"cd hosts/edge-us-east\nkeymesh edge {words}")
    assert not (edge / "x").exists()


def test_a_process_that_is_killed_serves_again_by_the_same_command(followed: Deployment) -> None:
    opened = "cd hosts/edge-us-east\nkeymesh open report.txt.sealed --socket edge.sock --force -o again.txt"
    followed.end("registry")
    followed.end("core-us-east")
    followed.do(opened)  # by the lease that it has
    followed.start(followed.hosts["core-us-east"].block)
    followed.start(followed.hosts["registry"].block)
    followed.end("edge-us-east", signal.SIGTERM)  # gives its lease back: a certificate need not wait for its end
    followed.environment["KEYMESH_EDGE__SERVICES"] = '["acme/mail"]'
    try:
        followed.start(followed.hosts["edge-us-east"].block)
    finally:
        del followed.environment["KEYMESH_EDGE__SERVICES"]
    followed.do(opened)
    identities = followed.home / "hosts" / "edge-us-east" / "data" / "identities" / "acme"
    assert {path.name for path in identities.iterdir()} == {"files", "mail"}, "what it is told of has a key"


def test_a_kill_switch_works_over_all_hosts(followed: Deployment) -> None:
    """The last of this module: nothing opens afterwards."""
    followed.do("cd hosts/admin\nkeymesh suspend tenant:acme --dir . -o acme.certificate")
    followed.do("keymesh verify hosts/admin/acme.certificate --root hosts/core-us-west/trust.json")
    refused = subprocess.run(
        ["keymesh", "open", "report.txt.sealed", "--socket", "edge.sock", "--force"],
        cwd=followed.home / "hosts" / "edge-us-east",
        env=followed.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (refused.returncode, "restricted" in refused.stderr) == (1, True), refused.stderr


def test_a_configuration_that_is_broken_meanwhile_is_refused_at_the_next_start(followed: Deployment) -> None:
    """And only there: whoever runs has read it."""
    path = followed.home / "hosts" / "core-us-west" / "core.toml"
    before = path.read_text()
    path.write_text(before.replace("[listen]", "[listn]"))
    try:
        done = subprocess.run(
            ["keymesh", "core", "run", "--config", "core.toml"],
            cwd=path.parent,
            env=followed.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        path.write_text(before)
    assert done.returncode == 1
    faults = [strict_json.loads(line.encode(), max_bytes=2**16)["fields"] for line in done.stderr.splitlines()]
    assert {(fault["field"], fault["line"]) for fault in faults} == {("listn", 9), ("listen", None)}
