"""The documents agree with the code where a machine can tell: commands, sizes, names, paths."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from keymesh.app import cli
from keymesh.control import entry, evidence
from keymesh.crypto import aad, blob, chain, dsse, kid, shamir, stream, wrap
from keymesh.ledger import receipts
from keymesh.model import limits, strict_json
from keymesh.model.errors import ExitCode
from keymesh.sim.options import FAULT_CLASSES

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PARSER = cli.build_parser()
PATH = re.compile(r"`((?:tests|src|docs)/[\w./-]+)(?:::\w+)?`")
TEST = re.compile(r"`(tests/[\w./-]+\.py)::(\w+)`")


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command that does something."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(path)
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands(inner, (*path, name))


def shown_commands(text: str) -> list[str]:
    """The ``keymesh`` calls in the shell blocks of a document, without pipes and comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"\||&&", line)]
    return [re.split(r" [<>] ", part)[0] for part in parts if part.startswith("keymesh ")]


def test_every_command_has_a_section_with_an_example() -> None:
    text = (DOCS / "cli.md").read_text()
    sections = dict(re.findall(r"^### `([a-z0-9 -]+)`\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(commands(PARSER))
    for name, section in sections.items():
        assert any(shown.startswith(f"keymesh {name}") for shown in shown_commands(section)), name


def test_every_exit_code_is_explained() -> None:
    text = (DOCS / "cli.md").read_text()
    assert all(f"\n| {code.value} | " in text for code in ExitCode)


@pytest.mark.parametrize("name", ["README.md", "docs/cli.md", "docs/deploy.md", "docs/simulation.md"])
def test_commands_in_documents_can_be_read(name: str) -> None:
    shown = shown_commands((ROOT / name).read_text())
    assert shown
    for line in shown:
        PARSER.parse_args(shlex.split(line)[1:])


def test_commands_of_the_table_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| ", text[text.index("## Commands") :], re.MULTILINE)
    first_words = {words.split()[0] for row in rows for words in re.findall(r"`([a-z][^`]*)`", row.split("|")[0])}
    known = {word for name in commands(PARSER) for word in name.split()}
    assert first_words
    assert first_words <= known


SIZES = {
    f"{blob.L4_BLOB_BYTES} bytes, kept": blob.L4_BLOB_BYTES == 90,
    "At most 64 pairs and 8192 bytes": (limits.CONTEXT_MAX_PAIRS, limits.CONTEXT_MAX_BYTES) == (64, 8192),
    f"at most {wrap.WRAP_MAX_BYTES} (a cascade)": True,
    f"The binding id has 1 to {wrap.BINDING_ID_MAX_BYTES} bytes": True,
    f"the provider's part 1 to {wrap.PROVIDER_BLOB_MAX_BYTES}": True,
    f"so a binding has at most {wrap.BINDING_MAX_BYTES}": True,
    f"Chunks have {stream.CHUNK_MIN_BYTES} to {stream.CHUNK_MAX_BYTES} bytes": True,
    f"{stream.CHUNK_DEFAULT_BYTES} unless told": True,
    "at most 2^32": stream.CHUNKS_MAX == 2**32,
    f"the header has at most {stream.HEADER_MAX_BYTES} bytes": True,
    f"by its head: {len(stream.MAGIC) + 1 + 4} + header + 32": True,
    f"At most {chain.CHAIN_MAX_BYTES} bytes and {chain.CHAIN_MAX_KEYS} keys": True,
    f"at most {strict_json.MAX_DEPTH} deep": True,
    f"1 to {limits.SIGNATURES_MAX} of `keyid` and `sig`": True,
    f"payload of at most {limits.ENTRY_MAX_BYTES} bytes": True,
    f"Strict JSON, at most {evidence.CERTIFICATE_MAX_BYTES} bytes": True,
    f"(rounded up) + {evidence.CLOCK_SLACK_MS}": True,
    f"At most {receipts.RECORD_MAX_BYTES} bytes each": True,
    f"`{chain.FORMAT}`": True,
    f"`{entry.ENTRY_PAYLOAD_TYPE}`": True,
    f"`{entry.AUTHORITY_PAYLOAD_TYPE}`": True,
    f"`{receipts.RECEIPT_TYPE}`": True,
}


@pytest.mark.parametrize("words", SIZES)
def test_formats_say_the_codes_numbers(words: str) -> None:
    assert SIZES[words]
    assert words in (DOCS / "formats.md").read_text()


def test_formats_are_the_codes_bytes() -> None:
    """The AADs and heads as ``docs/formats.md`` writes them, built here by hand."""

    def lp(value: bytes) -> bytes:
        return len(value).to_bytes(4, "big") + value

    name, parent = bytes(range(16)), bytes(range(16, 32))
    context = b"\0\0\0\2" + lp(b"a") + lp(b"1") + lp(b"b") + lp(b"2")
    assert aad.encode_context({"b": "2", "a": "1"}) == context
    assert aad.encode_context({}) == bytes(4)
    assert aad.l4_aad("acme", name, {"b": "2", "a": "1"}) == b"keymesh/l4/1" + lp(b"acme") + name + context
    subject = aad.Subject(aad.Level.L3, "acme", "us", "files", 7, name)
    tail = lp(b"files") + b"\0\0\0\7" + name
    assert aad.wrap_aad(subject, parent) == b"keymesh/wrap/1" + lp(b"l3") + lp(b"acme") + lp(b"us") + lp(parent) + tail
    assert kid._INFO == b"keymesh/kid/1" and stream._INFO == b"keymesh/sealed/1"
    assert (blob.L4_VERSION, wrap.WRAP_VERSION, wrap.BINDING_VERSION, blob.SCHEME_XAES) == (1, 2, 3, 2)
    assert dsse.pae(b"xyz", "t") == b"DSSEv1 1 t 3 xyz"
    share = shamir.split(bytes(32), 2, 2, lambda n: bytes(n))[0]
    assert len(share.pack()) == 1 + 16 + 1 + 1 + 48 + 8
    assert share.to_text().startswith("keymesh-share-")


def test_entries_statements_and_chains_have_the_fields_that_are_written() -> None:
    text = (DOCS / "formats.md").read_text()
    for shape in (entry.Entry, entry.Authority, evidence.Statement, evidence.MeshState, chain.Chain, chain.ChainL3):
        missing = [field for field in shape.__struct_fields__ if f"`{field}`" not in text]
        assert not missing, (shape.__name__, missing)


def test_the_simulations_faults_are_named() -> None:
    text = (DOCS / "simulation.md").read_text()
    assert [fault for fault in FAULT_CLASSES if f"`{fault}`" not in text] == []


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")]), ids=lambda path: path.name)
def test_paths_in_documents_exist(path: Path) -> None:
    assert [name for name in PATH.findall(path.read_text()) if not (ROOT / name).exists()] == []


def test_tests_in_documents_exist() -> None:
    named = [(path.name, *found) for path in DOCS.glob("**/*.md") for found in TEST.findall(path.read_text())]
    assert named
    missing = [row for row in named if not re.search(rf"\bdef {row[2]}\(", (ROOT / row[1]).read_text())]
    assert missing == []
