"""Two verifiers of one specification: the product's and the stranger's agree, on what holds and on every lie."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.unit.registry.harness import ROOT, keys_of, rotated, signer
from tests.vectors import certificates as made

from keymesh.app import cli
from keymesh.control.evidence import verify_certificate
from keymesh.control.rows import RootRow
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "verify_bundle.py"
ROOT_ROW = strict_json.convert(json.loads(made.ROOT_FILE)["root"], RootRow)
SOUND = sorted(made.GOLDEN.glob("*.cert.json"))
LIES = sorted(made.GOLDEN.glob("refuse.*.json"))


def _stranger() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_bundle", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STRANGER: Any = _stranger()


def ours(raw: bytes) -> str:
    """``ok``, ``malformed`` or the code of the refusal."""
    try:
        verify_certificate(raw, root=ROOT_ROW, mesh="example")
    except Refused:
        return "malformed"
    except Integrity as bad:
        return bad.code
    return "ok"


def theirs(raw: bytes) -> str:
    try:
        STRANGER.verify(raw, made.ROOT_FILE)
    except STRANGER.Malformed:
        return "malformed"
    except STRANGER.DoesNotHold as bad:
        return str(bad.code)
    return "ok"


def agreed(raw: bytes) -> str:
    """What both say; the step at which they refuse may differ, whether they do may not."""
    mine, other = ours(raw), theirs(raw)
    assert (mine == "ok") == (other == "ok"), (mine, other)
    return mine


def test_the_stranger_needs_nothing_of_the_product() -> None:
    tree = ast.parse(SCRIPT.read_text())
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names - sys.stdlib_module_names == {"cryptography"}


def test_there_is_a_golden_certificate_of_every_scope() -> None:
    assert {p.name.removesuffix(".cert.json") for p in SOUND} == {
        *made.SCOPES, *made.CHANGES, *made.ROTATIONS, "revoked", "destroyed"
    }  # fmt: skip
    lies = (made.golden_lies, made.destruction_lies, made.change_lies, made.rotation_lies)
    assert len(LIES) == sum(len(of()) for of in lies)


@pytest.mark.parametrize("path", SOUND, ids=lambda p: p.name)
def test_golden_certificates_hold(path: Path) -> None:
    raw = path.read_bytes()
    verified = verify_certificate(raw, root=ROOT_ROW, mesh="example")
    said = STRANGER.verify(raw, made.ROOT_FILE)
    assert (said["scope"], said["action"], said["t"]) == (str(verified.scope), verified.action, verified.t)
    assert said["voters"] == list(verified.voters)
    assert (said["holders_by_ack"], said["holders_by_bound"]) == (list(verified.by_ack), list(verified.by_bound))


@pytest.mark.parametrize("path", [*SOUND, *LIES], ids=lambda p: p.name)
def test_the_command_says_what_the_stranger_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made.GOLDEN / "root.json"
    code = cli.main(["verify", str(path), "--root", str(root), "--json"])
    said = json.loads(capsys.readouterr().out)
    if path in LIES:
        assert (code, said["error"]["code"]) == (4, path.name.split(".")[1])
        assert STRANGER.main(["--root", str(root), str(path)]) == 4
        return
    assert (code, STRANGER.main(["--root", str(root), str(path)])) == (0, 0)
    other = json.loads(capsys.readouterr().out)
    for name in ("purged", "destroyed", "others", "backups"):
        assert said.get(name) == other.get(name) and (name in said) is (said["action"] == "destroy")
    assert {k: said[k] for k in ("scope", "action", "t", "until", "voters", "command_id", "not_covered")} == {
        k: other[k] for k in ("scope", "action", "t", "until", "voters", "command_id", "not_covered")
    }


@pytest.mark.parametrize("path", LIES, ids=lambda p: p.name)
def test_golden_lies_are_refused_by_both_at_the_same_step(path: Path) -> None:
    code = path.name.split(".")[1]
    assert (ours(path.read_bytes()), theirs(path.read_bytes())) == (code, code)


@pytest.mark.parametrize("scope", made.SCOPES.values())
def test_both_take_what_the_registry_makes_today(scope: str) -> None:
    for kind in ("suspend", "revoke"):
        for silent in (True, False):
            assert agreed(made.certificate_of(scope, kind=kind, silent=silent)) == "ok"


@pytest.mark.parametrize(("before", "voters"), [(True, {"eu-central"}), (False, {"eu-west"})])
def test_both_know_which_voters_counted_when(before: bool, voters: set[str]) -> None:
    raw = made.changed_certificate(before=before)
    assert agreed(raw) == "ok"
    said = STRANGER.verify(raw, made.ROOT_FILE)["voters"]
    assert said == list(verify_certificate(raw, root=ROOT_ROW, mesh="example").voters)
    assert set(said) & {"eu-central", "eu-west"} <= voters
    bundle = json.loads(raw)
    rows = bundle["trust"]["rows"]
    bundle["trust"]["rows"] = {name: row for name, row in rows.items() if name != "voters/1"}
    assert agreed(strict_json.dumps(bundle)) == "certificate-root", "the mesh's state says when a set counted"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("scope", ["mesh", "region:us-west", "tenant:acme"])
@pytest.mark.parametrize("n_sets", [1, 3])
def test_both_verify_by_the_founding_root_what_was_signed_before_and_after_rotations(
    before: bool, scope: str, n_sets: int
) -> None:
    assert agreed(made.rotated_certificate(before=before, scope=scope, n_sets=n_sets)) == "ok"


def test_both_take_the_root_of_a_later_set_where_the_chain_leads_to_it() -> None:
    def judged(raw: bytes, root: dict[str, Any]) -> str:
        pinned = strict_json.dumps({"mesh": "example", "root": root, "genesis": "0" * 64})
        try:
            STRANGER.verify(raw, pinned)
            said = "ok"
        except STRANGER.DoesNotHold as bad:
            said = str(bad.code)
        try:
            verify_certificate(raw, root=strict_json.convert(root, RootRow), mesh="example")
        except Integrity as bad:
            assert bad.code == said
        else:
            assert said == "ok"
        return said

    def root(version: int, names: tuple[str, ...]) -> dict[str, Any]:
        return {"version": version, "keys": keys_of(*names), "threshold": 2}

    raw = made.rotated_certificate(before=False, n_sets=2)
    second, third = (root(n + 1, rotated(ROOT, n)) for n in (1, 2))
    assert judged(raw, second) == judged(raw, third) == "ok"
    for other in (
        root(4, rotated(ROOT, 3)),
        root(2, rotated(ROOT, 2)),
        root(3, rotated(ROOT, 1)),
        {**third, "threshold": 1},
        root(2, ROOT),
    ):
        assert judged(raw, other) == "certificate-root"
    other_genesis = made.with_another_genesis()
    for pinned in (root(1, ROOT), second):
        assert judged(other_genesis, pinned) == "certificate-root", "a genesis founds one mesh, and its root says which"
    assert judged(made.certificate_of("mesh"), second) == "certificate-root", "it does not show the rotation"


def test_every_mutation_of_what_proves_a_rotation_is_judged_alike() -> None:
    """By whoever has neither the Registry's key nor a root's; and the Registry's own lies about an entry of its log."""
    bundle = json.loads(made.rotated_certificate(before=False))
    support = bundle["trust"]["support"]
    (at,) = [n for n, s in enumerate(support) if made.opened(s["entry"])["kind"] == "trust.rotate"]
    entry = made.opened(support[at]["entry"])
    for path in made.places(entry):
        for name, changed in made.mutants(entry, path):
            lie = json.loads(json.dumps(bundle))
            lie["trust"]["support"][at]["entry"] = made._resigned(support[at]["entry"], changed)
            if agreed(strict_json.dumps(lie)) == "ok" and changed != entry:
                # where it stands in the log (before what rests on it), what people read, and more signatures
                beside = {"prev", "mesh_seq", "state", "actor", "correlation_id", "issued_at", "epoch", "seq"}
                assert path[0] in beside or "signatures" in path or path[:2] == ("body", "authority"), (path, name)


def is_free(statement: Any, path: made.Path_) -> bool:
    """What may be otherwise though both take it: words for people, a later date of issue, votes beyond a majority,
    a signature twice (it counts once), and beside a bound what goes with a word."""
    is_bound = path[0] == "holders" and len(path) > 2 and statement["holders"][path[1]]["evidence"] == "bound"
    free = {"not_covered", "issued_at", "countersignatures"}
    return path[0] in free or "signatures" in path or (is_bound and path[2] in ("ack", "received_at"))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["tenant:acme", "mesh", "destruction:acme"])
def test_every_mutation_of_what_the_registry_signs_is_judged_alike(scope: str) -> None:
    is_destruction = scope.startswith("destruction:")
    bundle = json.loads(made.destruction_certificate() if is_destruction else made.certificate_of(scope))
    statement = made.opened(bundle["statement"])
    taken: set[str] = set()
    for path in made.places(statement):
        for name, changed in made.mutants(statement, path):
            lie = made.resealed(bundle["statement"], changed, signer("registry"))
            if agreed(strict_json.dumps({**bundle, "statement": lie})) == "ok" and changed != statement:
                taken.add(str(path[0]))
                assert is_free(statement, path) or (is_destruction and path == ("committed_at",)), (path, name)
    assert "not_covered" in taken  # so the walk does reach what may change


def test_every_mutation_of_a_receipt_is_judged_alike() -> None:
    """A node may sign what it likes about things beside the point; nothing else."""
    raw = made.destruction_certificate()
    receipt = made.opened(made.opened(json.loads(raw)["statement"])["holders"][0]["ack"])
    beside = {"boot_id", "counter", "correlation_id", "others", "backups"}
    alike = {("keys", "twice"), ("keys", "reversed"), ("entry_hash", "as null")}
    alike |= {("open_edge_leases", "more"), ("epoch", "more")}
    for path in made.places(receipt):
        for name, changed in made.mutants(receipt, path):
            lie = made.with_ack_of(raw, changed)
            if agreed(lie) == "ok" and changed != receipt:
                assert path[0] in beside or (path[0], name) in alike, (path, name)


def test_every_mutation_outside_the_statement_is_judged_alike() -> None:
    bundle = json.loads(made.certificate_of("tenant:acme"))
    for path in made.places(bundle):
        for name, changed in made.mutants(bundle, path):
            if agreed(strict_json.dumps(changed)) == "ok" and changed != bundle:
                # another's signature beside a good one, or proofs that nothing rests on
                assert path[:2] == ("trust", "support") or "signatures" in path, (path, name)


@pytest.mark.parametrize("what", ["ack", "votes"])
def test_every_mutation_of_a_word_is_judged_alike(what: str) -> None:
    raw = made.certificate_of("tenant:acme")
    statement = made.opened(json.loads(raw)["statement"])
    word = made.opened(statement["holders"][0]["ack"] if what == "ack" else statement["countersignatures"][0])
    change = made.with_ack if what == "ack" else made.with_votes
    free = {("boot_id",), ("counter",), ("reason",), ("correlation_id",), ("serial",), ("leaf", "state")}
    says_no_less = {  # a later leaf, the same word twice, one open lease more that ends no later
        (("leaf", "epoch"), "more"),
        (("leaf", "seq"), "more"),
        (("restrictions",), "twice"),
        (("restrictions", 0, "open_edge_leases"), "more"),
    }
    for path in made.places(word):
        for name, changed in made.mutants(word, path):

            def put(other: dict[str, Any], mine: dict[str, Any] = changed, keeps: bool = path[0] != "voter") -> None:
                mine = dict(mine)
                if what == "votes" and keeps:
                    mine["voter"] = other["voter"]
                other.clear()
                other.update(mine)

            if agreed(change(raw, put)) == "ok" and changed != word:
                assert path in free or (path, name) in says_no_less, (path, name)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b'{"statement":1,"statement":1}', b"[" * 99, b'{"a":1.0}'],
)
def test_what_is_no_certificate_is_none_to_both(raw: bytes) -> None:
    assert (ours(raw), theirs(raw)) == ("malformed", "malformed")


def test_white_space_is_free_and_another_form_of_base64_is_not() -> None:
    raw = made.certificate_of("region:us-west")
    bundle = json.loads(raw)
    assert agreed(json.dumps(bundle, indent=1).encode()) == "ok"
    text = next(v for v in sorted(bundle["trust"]["rows"].values()) if v.endswith("=="))
    other = text[:-3] + chr(ord(text[-3]) + 1) + "=="  # the same bytes to a lenient reader
    assert agreed(raw.replace(text.encode(), other.encode())) == "malformed"


@pytest.mark.parametrize(
    ("name", "code"), [("tenant.cert.json", 0), (LIES[0].name if LIES else "", 4), ("root.json", 1)]
)
def test_the_script_says_so_by_its_exit_code(name: str, code: int) -> None:
    root = made.GOLDEN / "root.json"
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "--root", str(root), str(made.GOLDEN / name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert (json.loads(done.stdout)["ok"] is True) if code == 0 else done.stderr.count("\n") == 1
