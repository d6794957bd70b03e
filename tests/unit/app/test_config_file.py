"""Configuration files as an adversary writes them: every fault at once, with its field, its line and no value."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from keymesh.app.config import CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_env import prefix_of, variable_of
from keymesh.app.config_faults import FAULTS_MAX, BadConfig, Fault
from keymesh.app.config_file import FILE_MAX_BYTES, Loaded, load_config, role_in_file
from keymesh.app.config_parts import Listen

CORE = """\
role = "core"
mesh = "dev"
region = "us-east"
data_dir = "data"
registries = ["https://r1.example:7600", "https://r2.example:7600"]
# who else there is
[listen]
port = 7601
[identity]
tls_file = "tls.pem"
signing_key_file = "signing.pem"
ca_file = "ca.pem"
trust_file = "trust.json"
[peers]
us-west = ["https://w.example:7601"]
"""
EDGE = """\
mesh = "dev"
region = "us-east"
data_dir = "."
listen_socket = "edge.sock"
cores = ["https://c.example:7601"]
ca_file = "ca.pem"
trust_file = "trust.json"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the files that the configurations name."""
    for name in ("tls.pem", "signing.pem", "ca.pem", "trust.json", "mesh-ca.pem"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def load(home: Path, text: str | bytes, role: str = "core", environ: Mapping[str, str] | None = None) -> Loaded:
    path = home / "some.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, role, environ or {})


def faults(
    home: Path, text: str | bytes, role: str = "core", environ: Mapping[str, str] | None = None
) -> dict[str, tuple[int | None, str]]:
    with pytest.raises(BadConfig) as bad:
        load(home, text, role, environ)
    assert bad.value.exit_code == 1
    assert len(bad.value.faults) == len({(f.field, f.line) for f in bad.value.faults})
    return {fault.field: (fault.line, fault.reason) for fault in bad.value.faults}


def test_a_whole_file(home: Path) -> None:
    loaded = load(home, CORE)
    core = loaded.config
    assert isinstance(core, CoreConfig)
    assert core.listen == Listen(port=7601)
    assert core.data_dir == str(home / "data"), "a relative path starts at the file's directory"
    assert core.identity.tls_file == str(home / "tls.pem")
    assert core.registries == ("https://r1.example:7600", "https://r2.example:7600")
    assert core.peers == {"us-west": ("https://w.example:7601",)}
    shown = {field: (value, str(origin)) for field, value, origin in loaded.fields}
    assert shown["registries[1]"] == ("https://r2.example:7600", "line 5")
    assert shown["listen.port"] == (7601, "line 8")
    assert shown["listen.host"] == ("127.0.0.1", "default")
    assert shown["identity.issuer_file"] == (None, "default")
    assert shown["timing.heartbeat_ms"] == (2_000, "default")
    assert shown["peers.us-west[0]"][1] == "line 15"
    assert not (home / "data").exists(), "reading makes nothing"


def test_an_absolute_path_stays_and_the_file_may_be_named_from_anywhere(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CORE.replace('"tls.pem"', f'"{home / "tls.pem"}"')
    load(home, text)
    monkeypatch.chdir(home.parent)
    loaded = load_config(Path(home.name) / "some.toml", "core", {})
    assert isinstance(loaded.config, CoreConfig)
    assert loaded.config.identity.tls_file == loaded.config.identity.signing_key_file.replace("signing", "tls")
    assert Path(loaded.config.data_dir).is_absolute()


def test_all_faults_come_at_once_in_the_order_of_their_lines(home: Path) -> None:
    text = """\
role = "edge"
mesh = "Dev"
regoin = "us-east"
data_dir = 3
registries = ["https://r:1", "http://r:2"]
node = ["n1"]
allow_unlocked_memory = "yes"
[listen]
port = 0
hosts = "x"
[timing]
heartbeat_ms = 1.5
[[identity]]
tls_file = "tls.pem"
[peers]
us-west = "https://w:1"
"""
    found = faults(home, text)
    assert found == {
        "region": (None, "missing; expected text"),
        "role": (1, "must be core"),
        "mesh": (2, "lower-case letters, digits and inner hyphens only"),
        "regoin": (3, "no such field; did you mean region?"),
        "data_dir": (4, "expected text, got a whole number"),
        "registries[1]": (5, "https://HOST:PORT, and nothing behind it"),
        "node": (6, "expected text, got a list"),
        "allow_unlocked_memory": (7, "expected true or false, got text"),
        "listen.port": (9, "1 to 65535"),
        "listen.hosts": (10, "no such field; did you mean host?"),
        "timing.heartbeat_ms": (12, "expected a whole number, got a number"),
        "identity": (13, "expected a table, got a list"),
        "peers.us-west": (16, "expected a list (text each), got text"),
    }
    with pytest.raises(BadConfig) as bad:
        load(home, text)
    lines = [fault.line for fault in bad.value.faults]
    assert lines == [*sorted(line for line in lines if line), None]
    assert "(and 12 more)" in bad.value.message


def test_what_is_missing_is_named_with_its_table(home: Path) -> None:
    found = faults(home, CORE.replace("port = 7601\n", "").replace('ca_file = "ca.pem"\n', ""))
    assert found == {
        "listen.port": (7, "missing; expected a whole number"),
        "identity.ca_file": (8, "missing; expected text"),
    }
    assert set(faults(home, "")) == {"mesh", "region", "data_dir", "listen", "identity", "registries"}


TEXTS: list[tuple[str, Any, int | None, str]] = [
    ("syntax", CORE + "x = \n", 16, "not TOML: Invalid value"),
    ("open-end", CORE + 'x = """', 16, "not TOML: "),
    ("duplicate-key", CORE.replace('region = "us-east"', 'mesh = "other"'), 3, "not TOML: Cannot overwrite a value"),
    ("duplicate-table", CORE + "[listen]\n", 16, "not TOML: Cannot declare ('listen',) twice"),
    ("table-over-value", CORE + "[mesh.x]\n", 16, "not TOML: "),
    ("bom", b"\xef\xbb\xbf" + CORE.encode(), 1, "begins with a byte-order mark"),
    ("utf-16", CORE.encode("utf-16"), 1, "not UTF-8"),
    ("latin-1", CORE.replace("who", "\xe4").encode("latin-1"), 6, "not UTF-8"),
    ("nul", CORE.replace("who", "\0"), 6, "not TOML: "),
    ("surrogate", b'x = "\xed\xa0\x80"', 1, "not UTF-8"),
    ("huge", CORE + "#" * FILE_MAX_BYTES, None, f"at most {FILE_MAX_BYTES} bytes"),
    ("long-line", CORE + "#" * 4_097, 16, "at most 4096 characters in a line"),
    ("deep", "x = " + "[" * 4_000, None, "nested too deeply"),
    ("deep-lines", "x = " + "[\n" * 30_000, None, "nested too deeply"),
    ("deep-closed", "x = " + "[" * 17 + "]" * 17, None, "nested too deeply"),
    ("deep-key", "a" + ".a" * 17 + " = 1", None, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "reason"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_what_is_no_toml_of_ours_is_one_fault_with_its_line(
    home: Path, text: str | bytes, line: int | None, reason: str
) -> None:
    found = faults(home, text)
    assert list(found) == [""]
    assert found[""][0] == line
    assert found[""][1].startswith(reason)


def test_a_file_that_is_not_there_or_no_file(home: Path) -> None:
    for path in (home / "absent.toml", home, Path("/dev/null/x")):
        with pytest.raises(BadConfig) as bad:
            load_config(path, "core", {})
        assert bad.value.faults[0].reason.startswith("the file cannot be read: ")


def test_a_file_that_everybody_may_write_is_not_believed(home: Path) -> None:
    load(home, CORE)
    (home / "some.toml").chmod(0o646)
    assert "everybody may write" in faults(home, CORE)[""][1]
    (home / "some.toml").chmod(0o640)
    load(home, CORE)


def test_paths_are_looked_for(home: Path) -> None:
    (home / "data").write_bytes(b"no directory")
    (home / "tls.pem").unlink()
    (home / "ca.pem").unlink()
    (home / "ca.pem").mkdir()
    text = CORE.replace('"trust.json"', '""').replace('"signing.pem"', '"a\\u0000b"')
    assert faults(home, text) == {
        "data_dir": (4, "there is something else than a directory"),
        "identity.tls_file": (10, "there is no such file"),
        "identity.signing_key_file": (11, "text without NUL"),
        "identity.ca_file": (12, "not a regular file"),
        "identity.trust_file": (13, "expected a path"),
    }
    long = faults(home, CORE.replace('"trust.json"', f'"{"x" * 300}"').replace('"data"', f'"{"y" * 300}"'))
    assert long["identity.trust_file"][1].startswith("cannot be looked at: ")
    assert long["data_dir"][1].startswith("cannot be looked at: ")


def test_a_file_that_may_not_be_read_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "ca.pem" or mode != os.R_OK)
    assert faults(home, CORE) == {"identity.ca_file": (12, "this user may not read it")}


def test_a_socket_has_a_short_name(home: Path) -> None:
    edge = load(home, EDGE, "edge").config
    assert isinstance(edge, EdgeConfig)
    found = faults(home, EDGE.replace("edge.sock", "e" * 101), "edge")
    assert found == {"listen_socket": (4, "too long for a Unix socket (at most 100 bytes in all)")}
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(edge.listen_socket)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@r.example:7600",
        "postgresql://u:hunter2@db/x",
        "amqp://x/?password=hunter2",
        "https://r/?client_secret=hunter2",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(home: Path, text: str) -> None:
    for wrong in (
        CORE.replace("https://r1.example:7600", text),
        CORE.replace('"dev"', f'"{text}"'),
        CORE.replace("7601\n[id", f'"{text}"\n[id'),
        CORE + f'[timing]\nheartbeat_ms = "{text}"\n',
        CORE.replace('"core"', f'"{text}"'),
        f'password = "{text}"\n' + CORE,
    ):
        found = faults(home, wrong)
        assert "hunter2" not in str(found)
    assert "password does not belong" in str(faults(home, CORE.replace("https://r1.example:7600", text)))


def test_dates_and_infinities_are_not_numbers(home: Path) -> None:
    assert faults(home, CORE.replace("7601\n[id", "1979-05-27\n[id")) == {
        "listen.port": (8, "expected a whole number, got a date or time")
    }
    assert faults(home, CORE.replace("7601\n[id", "inf\n[id"))["listen.port"][1].endswith("got a number")
    assert faults(home, CORE.replace("7601\n[id", "true\n[id"))["listen.port"][1].endswith("got true or false")


def test_faults_have_a_limit(home: Path) -> None:
    many = "".join(f"x{n} = 1\n" for n in range(5_000))
    with pytest.raises(BadConfig) as bad:
        load(home, many + CORE)
    assert len(bad.value.faults) == FAULTS_MAX


def test_a_file_full_of_dots_is_read_in_time(home: Path) -> None:
    """The longest keys and the most tables that fit: slow readers are quadratic there."""
    texts = [
        "".join(f"k{n}." + "a." * 2_000 + "a = 1\n" for n in range(16)),
        "\n".join(f"[t.x{n}]" for n in range(6_000)),
        "\n".join(f"[{'a.' * 1_000}x{n}]" for n in range(30)),
        "x = [" + "{},\n" * 16_000 + "]",
    ]
    began = time.process_time()
    for text in texts:
        faults(home, text)
    assert time.process_time() - began < 20


def test_the_files_own_role(home: Path) -> None:
    path = home / "some.toml"
    for text, line in (('mesh = "x"\n', None), ('\nrole = "mars"', 2), ("\n\nrole = 3", 3), ("role = [", 1)):
        path.write_text(text)
        with pytest.raises(BadConfig) as bad:
            role_in_file(path)
        assert bad.value.faults[0].line == line
    path.write_text('role = "edge"')
    assert role_in_file(path) == "edge"
    assert faults(home, CORE, "edge")["role"] == (1, "must be edge")


# --- the environment -------------------------------------------------------------------------------------------------


def test_every_kind_of_field_by_environment(home: Path) -> None:
    environ = {
        "KEYMESH_CORE__LISTEN__PORT": "17601",
        "KEYMESH_CORE__ALLOW_UNLOCKED_MEMORY": "true",
        "KEYMESH_CORE__REGISTRIES__1": "https://r3.example:7600",
        "KEYMESH_CORE__REGISTRIES__2": "https://r4.example:7600",
        "KEYMESH_CORE__PEERS__EU_WEST": '["https://e1:1", "https://e2:2"]',
        "KEYMESH_CORE__PEERS__EU_CENTRAL__0": "https://c1:1",
        "KEYMESH_CORE__TIMING": '{"heartbeat_ms": 500}',
        "KEYMESH_CORE__IDENTITY__ISSUER_FILE": "mesh-ca.pem",
        "KEYMESH_REGISTRY__LISTEN__PORT": "garbage of another role",
        "KEYMESH_DIR": "/x",
    }
    loaded = load(home, CORE, environ=environ)
    core = loaded.config
    assert isinstance(core, CoreConfig)
    assert core.listen.port == 17601
    assert core.allow_unlocked_memory
    assert core.registries == ("https://r1.example:7600", "https://r3.example:7600", "https://r4.example:7600")
    assert core.peers["eu-west"] == ("https://e1:1", "https://e2:2")
    assert core.peers["eu-central"] == ("https://c1:1",)
    assert core.peers["us-west"] == ("https://w.example:7601",)
    assert core.timing.heartbeat_ms == 500
    assert core.identity.issuer == home / "mesh-ca.pem"
    origins = {field: str(origin) for field, _, origin in loaded.fields}
    assert origins["registries[0]"] == "line 5"
    assert origins["registries[1]"] == "$KEYMESH_CORE__REGISTRIES__1"
    assert origins["listen.port"] == "$KEYMESH_CORE__LISTEN__PORT"
    assert origins["peers.eu-west[1]"] == "$KEYMESH_CORE__PEERS__EU_WEST"
    assert origins["timing.heartbeat_ms"] == "$KEYMESH_CORE__TIMING"


def test_the_whole_configuration_by_environment(home: Path) -> None:
    environ = {
        "KEYMESH_REGISTRY__MESH": "dev",
        "KEYMESH_REGISTRY__DATA_DIR": "/x/y",
        "KEYMESH_REGISTRY__LISTEN": '{"port": 7600}',
        "KEYMESH_REGISTRY__LISTEN__HOST": "0.0.0.0",
    }
    names = {"TLS_FILE": "tls.pem", "SIGNING_KEY_FILE": "signing.pem", "CA_FILE": "ca.pem", "TRUST_FILE": "trust.json"}
    environ |= {f"KEYMESH_REGISTRY__IDENTITY__{name}": file for name, file in names.items()}
    registry = load(home, "", "registry", environ).config
    assert isinstance(registry, RegistryConfig)
    assert registry.listen == Listen(port=7600, host="0.0.0.0")
    assert registry.data_dir == "/x/y"


def test_lists_in_the_environment_are_in_the_order_of_numbers(home: Path) -> None:
    urls = [f"https://r{n}:1" for n in range(12)]
    environ = {f"KEYMESH_CORE__REGISTRIES__{n}": url for n, url in enumerate(urls)}
    core = load(home, CORE, environ=environ).config
    assert isinstance(core, CoreConfig)
    assert list(core.registries) == urls


GARBAGE = [
    ("LISTEN__PORT", "76o1", "listen.port", "expected a whole number"),
    ("LISTEN__PORT", "", "listen.port", "expected a whole number"),
    ("LISTEN__PORT", "1" * 30, "listen.port", "expected a whole number"),
    ("LISTEN__PORT", "٣", "listen.port", "expected a whole number"),
    ("LISTEN__PORT", "70000", "listen.port", "1 to 65535"),
    ("LISTEN__PROT", "7601", "listen.prot", "no such field; did you mean port?"),
    ("listen__port", "7601", "listen", "no such field; did you mean listen?"),
    ("LISTEN__PORT__X", "1", "listen.port", "has no fields of its own"),
    ("", "1", "", "no such field"),
    ("LISTEN__", "1", "listen", "no such field"),
    ("ALLOW_UNLOCKED_MEMORY", "yes", "allow_unlocked_memory", "expected true or false"),
    ("REGISTRIES", "https://r:1", "registries", "expected a list (text each), as JSON"),
    ("REGISTRIES", '["https://r:1"', "registries", "expected a list (text each), as JSON"),
    ("REGISTRIES", "[1]", "registries[0]", "expected text, got a whole number"),
    ("REGISTRIES", '"https://r:1"', "registries", "expected a list (text each), got text"),
    ("REGISTRIES__7", "https://r:1", "registries", "a position from 0 to 2"),
    ("REGISTRIES__X", "https://r:1", "registries", "a position from 0 to 2"),
    ("REGISTRIES__99999999999", "https://r:1", "registries", "a position from 0 to 2"),
    ("REGISTRIES__0", "https://r2.example:7600", "registries[1]", "the same address twice"),
    ("PEERS__us-west", "[]", "peers", "names are capitals, digits and underscores"),
    ("PEERS", '{"a": "b", "a": "c"}', "peers", "expected a table, as JSON"),
    ("PEERS", "[" * 10_000, "peers", "expected a table, as JSON"),
    ("MESH", "de\nv", "mesh", "expected printable text"),
    ("MESH", "\udcff", "mesh", "expected printable text"),
    ("PEERS", '{"\udcff": []}', "peers", "expected a table, as JSON"),
    ("IDENTITY__TLS_FILE", "nosuch.pem", "identity.tls_file", "there is no such file"),
    ("ROLE", "edge", "role", "must be core"),
]


@pytest.mark.parametrize(
    ("name", "text", "field", "reason"), GARBAGE, ids=[f"{g[0]}-{n}" for n, g in enumerate(GARBAGE)]
)
def test_garbage_in_the_environment(home: Path, name: str, text: str, field: str, reason: str) -> None:
    found = faults(home, CORE, environ={f"KEYMESH_CORE__{name}": text})
    assert set(found) == {field}
    line, said = found[field]
    assert reason in said
    if field != "registries[1]":  # there it is the file's own item that became the second of two
        assert line is None


def test_the_environment_does_not_mend_what_the_file_has_wrong(home: Path) -> None:
    wrong = CORE.replace("[listen]\nport = 7601", "")
    variable = {"KEYMESH_CORE__LISTEN__PORT": "1", "KEYMESH_CORE__REGISTRIES__0": "https://r:1"}
    found = faults(home, "listen = 3\n" + wrong, environ=variable)
    assert found == {"listen": (None, "$KEYMESH_CORE__LISTEN__PORT: expected a table there")}
    with pytest.raises(BadConfig) as both:
        load(home, "listen = 3\n" + wrong, environ=variable)
    assert both.value.faults[0] == Fault("listen", 1, "expected a table, got a whole number")
    text = CORE.replace('registries = ["https://r1.example:7600", "https://r2.example:7600"]', 'registries = "x"')
    assert "registries" in faults(home, text, environ=variable)


def test_names_of_variables() -> None:
    assert prefix_of("core") == "KEYMESH_CORE__"
    assert variable_of("core", "peers.us-west[1]") == "KEYMESH_CORE__PEERS__US_WEST__1"
    assert variable_of("registry", "listen.port") == "KEYMESH_REGISTRY__LISTEN__PORT"


def test_a_fault_for_people() -> None:
    assert str(Fault("a.b", 3, "no")) == "line 3: a.b: no"
    assert str(Fault("", None, "no")) == "no"
    assert str(Fault("a", None, "no")) == "a: no"
