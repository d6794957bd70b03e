"""Rules hold no I/O, no clock, no chance, no logging; and small house rules that a linter does not know.

The import contract in pyproject.toml sees packages; this reads every file, because an exception may be one file.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SRC = ROOT / "src" / "keymesh"

RULE_ROOMS = ("model", "crypto", "ledger", "control", "access", "orbital", "registry", "core", "edge", "kmip", "compat")

# Files of rule rooms that have effects, and why.
OWN_IO = {
    "crypto/pages.py": "key pages are locked and wiped through the operating system",
    "edge/client.py": "the library stands alone, so it holds its own I/O",
    "edge/client_clock.py": "of the library's own I/O: the raw clocks",
    "edge/client_farewell.py": "of the library's own I/O: what is told at the end, and for how long",
    "edge/client_elsewhere.py": "of the library's own I/O: one transport over all regions' Cores",
    "edge/client_measure.py": "of the library's own I/O: asks each Core how near it is",
    "edge/client_shell.py": "of the library's own I/O: drives the machine",
    "edge/client_sync.py": "of the library's own I/O: the thread behind the synchronous face",
    "edge/client_tls.py": "of the library's own I/O: certificates and contexts",
    "edge/client_transport.py": "of the library's own I/O: requests and streams",
    "edge/http1.py": "of the sidecar's own I/O: connections",
    "edge/http1_accept.py": "of the sidecar's own I/O: connections over TLS",
    "edge/http1_server.py": "of the sidecar's own I/O: listeners",
    "edge/sidecar.py": "the sidecar stands alone, so it holds its own I/O",
    "edge/sidecar_bind.py": "of the sidecar's own I/O: listening sockets",
    "edge/sidecar_callers.py": "of the sidecar's own I/O: who is at the other end",
    "edge/sidecar_process.py": "of the sidecar's own I/O: worker processes",
    "edge/sidecar_door.py": "of the sidecar's own I/O: listeners, and the thread of its Edges",
    "edge/sidecar_identities.py": "of the sidecar's own I/O: keys and certificates on disk",
    "edge/sidecar_routes.py": "of the sidecar's own I/O: metrics and logs",
}

# One thing allowed in one file, and why.
ALLOWED_USES: dict[tuple[str, str], str] = {
    ("compat/vault_form.py", "urllib"): "urllib.parse: text to text",
}

# fmt: off
EFFECT_MODULES = frozenset({
    "aiohttp", "alembic", "asyncio", "concurrent", "ctypes", "fcntl", "http", "io", "logging", "mmap",
    "multiprocessing", "os", "pathlib", "prometheus_client", "psycopg", "queue", "random", "resource", "rich",
    "sched", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver",
    "sqlalchemy", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib",
    "uuid", "uvloop",
})
# fmt: on
EFFECT_CALLS = frozenset({"open", "print", "input", "exec", "eval", "breakpoint", "__import__"})
EFFECT_METHODS = frozenset({"now", "utcnow", "today", "urandom", "generate_key", "token_bytes"})

MAX_MODULE_LINES = 400
MAX_UNDOCUMENTED_LINES = 20
OPEN_ENDS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error")) + r")\b")
MACHINE_PATHS = re.compile("|".join(("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", r"\.\./share" + r"d/")))


def effects_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each import or call in ``source`` that reaches clock, chance, I/O or a log."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                roots = [name.name.partition(".")[0] for name in names]
            case ast.ImportFrom(module=str(module), level=0):
                roots = [module.partition(".")[0]]
            case ast.Call(func=ast.Name(id=name)) if name in EFFECT_CALLS:
                yield node.lineno, name
                continue
            case ast.Call(func=ast.Attribute(attr=name)) if name in EFFECT_METHODS:
                yield node.lineno, name
                continue
            case _:
                continue
        yield from ((node.lineno, root) for root in roots if root in EFFECT_MODULES)


def undocumented_in(source: str) -> Iterator[tuple[int, str]]:
    """Public functions and methods that are neither documented nor short."""

    def walk(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(node.body)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_UNDOCUMENTED_LINES and ast.get_docstring(node) is None:
                    yield node.lineno, node.name

    yield from walk(ast.parse(source).body)


def modules(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms or (".",) for path in (SRC / room).rglob("*.py"))


def tracked_files() -> list[Path]:
    """Files that are, or without being ignored could be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_rule_rooms_have_no_effects() -> None:
    found = []
    for path in modules(*RULE_ROOMS):
        name = path.relative_to(SRC).as_posix()
        if name not in OWN_IO:
            found += [
                f"{name}:{line}: {what}"
                for line, what in effects_in(path.read_text())
                if (name, what) not in ALLOWED_USES
            ]
    assert not found, "clock, chance, I/O or logging in a rule:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import time", "time"),
        ("def f():\n    from os import urandom", "os"),
        ("import asyncio.subprocess as s", "asyncio"),
        ("import json, random", "random"),
        ("x = datetime.datetime.now(tz)", "now"),
        ("class A:\n    def f(self):\n        return open('x')", "open"),
        ("key = AESGCM.generate_key(256)", "generate_key"),
        ("from sqlalchemy.engine import Engine", "sqlalchemy"),
    ],
)
def test_effects_are_found(source: str, what: str) -> None:
    assert what in [name for _, name in effects_in(source)]


@pytest.mark.parametrize(
    "source",
    ["from keymesh.model.time import Instant", "import hashlib, json", "from . import time", "now = Instant(3)"],
)
def test_rules_are_not_blamed(source: str) -> None:
    assert not list(effects_in(source))


def test_every_exception_exists_or_is_dropped_soon() -> None:
    """An exception for a file that has no effect hides nothing today and something tomorrow."""
    idle = []
    for name in OWN_IO:
        path = SRC / name
        if path.exists() and not list(effects_in(path.read_text())):
            idle.append(name)
    for name, what in ALLOWED_USES:
        path = SRC / name
        if path.exists() and what not in [used for _, used in effects_in(path.read_text())]:
            idle.append(f"{name}: {what}")
    assert not idle


def test_modules_stay_readable() -> None:
    sizes = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_MODULE_LINES} == {}


def test_modules_and_long_public_functions_are_documented() -> None:
    found = []
    for path in modules():
        source = path.read_text()
        name = path.relative_to(ROOT).as_posix()
        if source.strip() and ast.get_docstring(ast.parse(source)) is None:
            found.append(f"{name}: module")
        found += [f"{name}:{line}: {function}" for line, function in undocumented_in(source)]
    assert not found, "no docstring:\n" + "\n".join(found)


def test_a_long_undocumented_function_is_found() -> None:
    body = "\n".join(f"        x{n} = {n}" for n in range(MAX_UNDOCUMENTED_LINES))
    assert [name for _, name in undocumented_in(f"class A:\n    def f(self):\n{body}")] == ["f"]
    assert not list(undocumented_in(f"class A:\n    def _f(self):\n{body}"))
    assert not list(undocumented_in(f'class A:\n    def f(self):\n        """Does."""\n{body}'))


def test_nothing_is_left_open_and_no_machine_is_named() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        name = path.relative_to(ROOT).as_posix()
        checks = [MACHINE_PATHS] if path.suffix == ".md" else [MACHINE_PATHS, OPEN_ENDS]
        for number, line in enumerate(text.splitlines(), 1):
            found += [f"{name}:{number}: {hit.group()}" for check in checks if (hit := check.search(line))]
    assert not found, "\n".join(found)
