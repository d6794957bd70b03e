"""Certificates of all five scopes, made by the real Registry on a bench, and lies that its key signs.

``python -m tests.vectors.certificates`` writes the golden files anew; the files of a release stay as they are.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.unit.registry.harness import OFFICERS, ROOT, Bench, keys_of, purged, rotated, signer, with_tenant

from keymesh.control import evidence
from keymesh.control.purge_messages import BackupLine
from keymesh.control.signing import to_plain
from keymesh.control.trust import make_authority
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.ledger.maptree import root_of
from keymesh.model import strict_json
from keymesh.model.ids import Digest

GOLDEN: Final = Path(__file__).parent / "golden" / "certificates"
SCOPES: Final = {
    "key": "key:acme/pay@1",
    "service": "service:acme/pay",
    "tenant": "tenant:acme",
    "region": "region:us-west",
    "mesh": "mesh",
}
ROOT_FILE: Final = strict_json.dumps(
    {"mesh": "example", "root": {"version": 1, "keys": keys_of(*ROOT), "threshold": 2}, "genesis": "0" * 64}
)

Plain = Any


def certificate_of(scope: str, *, kind: str = "suspend", silent: bool = True, open_leases: int = 1) -> bytes:
    """Of ``scope``: the last of its holders is silent (so that both kinds of evidence are in it), the first has an
    open Edge lease."""
    bench = with_tenant()
    wide = scope == "mesh" or scope.startswith("region:")
    bench.ok(bench.scope_command(kind, scope, "s1", **({"by": OFFICERS[:2]} if wide else {})))
    namespace = "mesh" if wide else "acme"
    record = bench.state.kills[(namespace, "s1")].record
    regions = [node.removeprefix("node:").partition("/")[0] for node in record.holders]
    for region in regions[: -1 if silent and len(regions) > 1 else None]:
        bench.ack(region, namespace, record.seq, e_ms=5_000, open_leases=open_leases)
    bench.advance(70_000)
    return evidence.encode_certificate(_only(bench))


def destruction_certificate() -> bytes:
    """Of a tenant with two keys, purged in both of its regions: the first has an open Edge lease, the second had a wrap
    that the log does not name, and knows of backups that nobody can take back."""
    bench = purged()
    line = BackupLine(
        store="s3 https://s3.example backups/us",
        origin="us-west.n1",
        first=3,
        last=9,
        digest=Digest("d" * 64),
        kept_until=2**41,
    )
    bench.receipt("us-east", edge_leases_end_in_ms=5_000, open_edge_leases=1)
    bench.receipt("us-west", others=("e" * 64,), backups=(line,))
    bench.advance(10_000)
    return evidence.encode_certificate(_only(bench))


def changed_certificate(*, before: bool) -> bytes:
    """Of a suspension that the old voters committed before they were replaced, or the new ones after."""
    bench = with_tenant()
    if not before:
        bench.ok(bench.change_voters())
    bench.auto_read = not before  # so that the mesh is read only after the change
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    seq = bench.state.spaces["acme"].seq
    assert seq in bench.state.spaces["acme"].commits
    if before:
        bench.ok(bench.change_voters())
        bench.auto_read = True
        bench.settle()
    bench.ack("us-east", "acme", seq, e_ms=5_000, open_leases=1)
    bench.advance(70_000)
    return evidence.encode_certificate(_only(bench))


CHANGES: Final = {"voters-before": True, "voters-after": False}


def rotated_certificate(*, before: bool, scope: str = "mesh", n_sets: int = 1) -> bytes:
    """Of a suspension that the old officers signed before root and officers were rotated, or the new ones after."""
    bench = with_tenant()
    wide = scope == "mesh" or scope.startswith("region:")
    namespace = "mesh" if wide else "acme"
    bench.auto_read = not before

    def suspend(by: tuple[str, ...]) -> None:
        bench.ok(bench.scope_command("suspend", scope, "s1", **({"by": by} if wide else {})))

    if before:
        suspend(OFFICERS[:2])
    seq = bench.state.spaces[namespace].seq
    for n in range(1, n_sets + 1):
        bench.ok(bench.rotation(n))
    if not before:
        suspend(rotated(OFFICERS, n_sets)[1:])
        seq = bench.state.spaces[namespace].seq
    bench.auto_read = True
    bench.settle()
    bench.ack("us-east", namespace, seq, e_ms=5_000, open_leases=1)
    bench.advance(70_000)
    return evidence.encode_certificate(_only(bench))


ROTATIONS: Final = {"rotated-after": True, "rotated-before": False}


def rotation_lies() -> dict[str, tuple[str, bytes]]:
    """As ``golden_lies``, about keys that were rotated away: their word counts for nothing later."""
    after = rotated_certificate(before=False)
    entry = opened(opened(json.loads(after)["statement"])["entry"])
    word = opened(entry["body"]["authority"][0])

    def by_old(statement: Plain) -> None:
        sealed = entry["body"]["authority"][0]
        payload = strict_json.dumps(word)
        signatures = [signer(name).signature(payload, sealed["payloadType"]) for name in OFFICERS[:2]]
        signed = [{"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in signatures]
        body = {**entry["body"], "authority": [{**sealed, "signatures": signed}]}
        statement["entry"] = _resigned(statement["entry"], {**entry, "body": body})

    def without_the_rotation() -> bytes:
        bundle = json.loads(after)
        kept = [s for s in bundle["trust"]["support"] if opened(s["entry"])["kind"] != "trust.rotate"]
        bundle["trust"]["support"] = kept
        return strict_json.dumps(bundle)

    return {
        "officers-that-were-rotated-away": ("certificate-entry", with_statement(after, by_old)),
        "rotation-left-out": ("certificate-root", without_the_rotation()),
    }


def with_another_genesis() -> bytes:
    """Signed by the Registry alone: a node's key is another's, by a second genesis, of a root of the liar's own."""
    bundle = json.loads(rotated_certificate(before=False))
    trust, own = bundle["trust"], signer("liar")
    founding = next(s["entry"] for s in trust["support"] if opened(s["entry"])["kind"] == "mesh.genesis")
    row = {"signing_key": own.public_key.hex()}
    args = copy.deepcopy(opened(founding)["body"]["args"])
    args["nodes"]["us-west/n1"] = row
    args["root"] = {"version": 1, "keys": keys_of("liar"), "threshold": 1}
    said = opened(founding)
    word = make_authority(
        mesh="example", namespace="mesh", command_id=said["command_id"], kind="mesh.genesis", args=args,
        not_after=2**52, signers=[own],
    )  # fmt: skip
    other = _resigned(founding, {**said, "body": {"args": args, "authority": [to_plain(word)]}})
    trust["support"].append({"entry": other, "countersignatures": []})
    trust["rows"]["node/us-west/n1"] = base64.b64encode(strict_json.dumps(row)).decode()
    rows = {name: base64.b64decode(raw) for name, raw in trust["rows"].items()}
    trust["head"] = _resigned(trust["head"], {**opened(trust["head"]), "state": root_of(rows)})
    statement = opened(bundle["statement"])
    statement["mesh_head"] = hashlib.sha256(base64.b64decode(trust["head"]["payload"])).hexdigest()
    bundle["statement"] = resealed(bundle["statement"], statement, signer("registry"))
    return strict_json.dumps(bundle)


def _resigned(envelope: Plain, entry: Plain) -> Plain:
    """The entry in an envelope as a certificate carries it, signed by the Registry."""
    payload = strict_json.dumps(entry)
    signature = signer("registry").signature(payload, envelope["payload_type"])
    return {
        "payload": base64.b64encode(payload).decode(),
        "payload_type": envelope["payload_type"],
        "signatures": [{"keyid": signature.keyid, "sig": base64.b64encode(signature.sig).decode()}],
    }


def change_lies() -> dict[str, tuple[str, bytes]]:
    """As ``golden_lies``, about sets of voters: none speaks outside its range, and none lends another its voices."""
    before, after = changed_certificate(before=True), changed_certificate(before=False)
    own = opened(json.loads(before)["statement"])["countersignatures"]

    def by_old(statement: Plain) -> None:
        votes = []
        for region in ("eu-central", "us-east", "us-west"):
            vote = opened(statement["countersignatures"][0]) | {"voter": region, "set_id": 1}
            votes.append(resealed(statement["countersignatures"][0], vote, signer(f"node-{region}")))
        statement["countersignatures"] = votes

    def one_of_each(statement: Plain) -> None:
        vote = opened(own[0]) | {"voter": "eu-west", "set_id": 2}
        statement["countersignatures"] = [own[0], resealed(own[0], vote, signer("node-eu-west"))]

    return {
        "voters-of-a-set-that-was-replaced": ("certificate-commit", with_statement(after, by_old)),
        "one-voice-of-each-set": ("certificate-commit", with_statement(before, one_of_each)),
    }


def _only(bench: Bench) -> evidence.Certificate:
    (ready,) = bench.certificates
    made = ready.certificate
    assert isinstance(made, evidence.Certificate)
    return made


# --- plain JSON and signatures ---------------------------------------------------------------------------------------


def opened(sealed: Plain) -> Plain:
    return json.loads(base64.b64decode(sealed["payload"]))


def resealed(sealed: Plain, message: Plain, by: Ed25519Signer) -> Plain:
    """The message under the same type, signed by ``by``."""
    payload, kind = strict_json.dumps(message), sealed["payloadType"]
    signature = by.signature(payload, kind)
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": signature.keyid, "sig": base64.b64encode(signature.sig).decode()}],
    }


def with_statement(raw: bytes, change: Callable[[Plain], None], by: str = "registry") -> bytes:
    """The certificate with a changed statement, signed by the Registry itself: an operator that lies."""
    bundle = json.loads(raw)
    said = opened(bundle["statement"])
    change(said)
    bundle["statement"] = resealed(bundle["statement"], said, signer(by))
    return strict_json.dumps(bundle)


def with_ack(raw: bytes, change: Callable[[Plain], None]) -> bytes:
    """... and with a changed word of its first holder, signed by that node itself."""

    def lie(said: Plain) -> None:
        holder = said["holders"][0]
        word = opened(holder["ack"])
        change(word)
        region = holder["node"].removeprefix("node:").partition("/")[0]
        holder["ack"] = resealed(holder["ack"], word, signer(f"node-{region}"))

    return with_statement(raw, lie)


def with_ack_of(raw: bytes, word: Plain) -> bytes:
    """... and with ``word`` in place of its first holder's."""

    def lie(said: Plain) -> None:
        said.clear()
        said.update(word)

    return with_ack(raw, lie)


def with_votes(raw: bytes, change: Callable[[Plain], None]) -> bytes:
    """... and with countersignatures that the voters themselves changed."""

    def lie(said: Plain) -> None:
        votes = []
        for sealed in said["countersignatures"]:
            vote = opened(sealed)
            by = vote["voter"]
            change(vote)
            votes.append(resealed(sealed, vote, signer(f"node-{by}")))
        said["countersignatures"] = votes

    return with_statement(raw, lie)


# --- systematic mutation ---------------------------------------------------------------------------------------------

Path_ = tuple[str | int, ...]


def places(value: Plain, path: Path_ = ()) -> Iterator[Path_]:
    """Every place in a JSON value, leaves and containers, in order."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in sorted(value):
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))


def at(value: Plain, path: Path_) -> Plain:
    for step in path:
        value = value[step]
    return value


def mutants(value: Plain, path: Path_) -> Iterator[tuple[str, Plain]]:
    """Named copies of ``value``, each changed at ``path`` alone."""
    held = at(value, path)
    for name, new in _others(held):
        changed = copy.deepcopy(value)
        at(changed, path[:-1])[path[-1]] = new
        yield name, changed
    gone = copy.deepcopy(value)
    del at(gone, path[:-1])[path[-1]]
    yield "left out", gone


def _others(held: Plain) -> Iterator[tuple[str, Plain]]:
    match held:
        case bool():
            yield "negated", not held
        case int():
            yield "less", held - 1
            yield "more", held + 1
            yield "as text", str(held)
        case str():
            yield "empty", ""
            yield "longer", held + "x"
            if held:
                yield "changed", ("1" if held[0] != "1" else "2") + held[1:]
        case list():
            yield "twice", [*held, *held[:1]]
            yield "reversed", held[::-1]
            yield "short", held[1:]
            yield "as null", None
        case dict():
            yield "unknown field", {**held, "zz": 1}
            yield "as null", None
        case None:
            yield "as number", 0


# --- golden files ----------------------------------------------------------------------------------------------------


def golden_lies() -> dict[str, tuple[str, bytes]]:
    """Name -> (code, certificate): what a verifier must refuse though the Registry signed it."""
    raw = certificate_of("tenant:acme")

    def said(**fields: Any) -> Callable[[Plain], None]:
        return lambda statement: statement.update(fields)

    def holder(n: int, **fields: Any) -> Callable[[Plain], None]:
        return lambda statement: statement["holders"][n].update(fields)

    def word(**fields: Any) -> Callable[[Plain], None]:
        return lambda ack: ack["restrictions"][0].update(fields)

    good = opened(json.loads(raw)["statement"])
    both, bound = good["holders"], good["holders"][1]["t"]
    return {
        "holder-left-out": ("certificate-holders", with_statement(raw, said(holders=both[:1], t=both[0]["t"]))),
        "holder-twice": ("certificate-holders", with_statement(raw, said(holders=[both[0], both[0]], t=both[0]["t"]))),
        "order-changed": ("certificate-holders", with_statement(raw, said(holders=both[::-1]))),
        "bound-short-by-a-tick": ("certificate-evidence", with_statement(raw, holder(1, t=bound - 1))),
        "ttl-shortened": ("certificate-ttl", with_statement(raw, said(ttl_ms=good["ttl_ms"] - 1))),
        "earlier-t": ("certificate-t", with_statement(raw, said(t=good["t"] - 1))),
        "end-of-leases-lowered": ("certificate-evidence", with_ack(raw, word(edge_leases_end_in_ms=4_999))),
        "lease-hidden": ("certificate-evidence", with_ack(raw, word(open_edge_leases=0))),
        "word-of-another-mesh": ("certificate-evidence", with_ack(raw, lambda ack: ack.update(mesh="other"))),
        "word-of-an-older-epoch": ("certificate-evidence", with_ack(raw, lambda ack: ack["leaf"].update(epoch=0))),
        "word-about-another-entry": ("certificate-evidence", with_ack(raw, word(seq=2))),
        "votes-of-another-epoch": ("certificate-commit", with_votes(raw, lambda vote: vote.update(epoch=2))),
        "one-vote-twice": (
            "certificate-commit",
            with_statement(raw, said(countersignatures=good["countersignatures"][:1] * 2)),
        ),
        "signed-by-a-node": ("certificate-signature", with_statement(raw, said(), by="node-us-east")),
        "another-mesh": ("certificate-root", with_statement(raw, said(mesh="other"))),
    }


def destruction_lies() -> dict[str, tuple[str, bytes]]:
    """As ``golden_lies``, about a tenant that is destroyed: above all one with a region left out."""
    raw = destruction_certificate()
    good = opened(json.loads(raw)["statement"])
    both = good["holders"]
    bound = good["committed_at"] + good["ttl_ms"] + good["ttl_ms"] // 1_000 + 2_000

    def said(**fields: Any) -> bytes:
        return with_statement(raw, lambda statement: statement.update(fields))

    def word(**fields: Any) -> bytes:
        return with_ack(raw, lambda receipt: receipt.update(fields))

    def no_receipt(**fields: Any) -> bytes:
        return said(holders=[{**both[0], **fields}, both[1]], t=max(bound, good["t"]), issued_at=bound * 2)

    def of_another_state() -> bytes:
        rows = {name: row for name, row in good["rows"].items() if not name.startswith("key/")}
        return said(rows=rows)

    return {
        "region-left-out": ("certificate-holders", said(holders=both[:1], t=both[0]["t"])),
        "silence-in-place-of-a-receipt": ("certificate-evidence", no_receipt(evidence="bound", ack=None, t=bound)),
        "word-in-place-of-a-receipt": ("certificate-evidence", no_receipt(evidence="ack")),
        "receipt-of-another-purge": ("certificate-evidence", word(seq=1)),
        "receipt-of-an-older-epoch": ("certificate-evidence", word(epoch=0)),
        "receipt-of-an-earlier-admission": ("certificate-evidence", word(admitted_seq=0)),
        "receipt-of-another-tenant": ("certificate-evidence", word(namespace="globex")),
        "receipt-without-a-key": ("certificate-evidence", with_ack(raw, lambda receipt: receipt["keys"].pop())),
        "receipt-with-another-kid": (
            "certificate-evidence",
            with_ack(raw, lambda receipt: receipt["keys"][0].update(kid="0" * 32)),
        ),
        "receipt-that-hides-a-lease": ("certificate-evidence", word(open_edge_leases=0)),
        "receipt-of-the-other-node": ("certificate-evidence", no_receipt(ack=both[1]["ack"])),
        "keys-hidden": ("certificate-rows", of_another_state()),
        "rows-left-out": ("certificate-rows", with_statement(raw, lambda statement: statement.pop("rows"))),
        "destruction-called-a-kill": ("certificate-entry", said(action="revoke")),
        "destruction-before-t": ("certificate-t", said(issued_at=good["t"] - 1)),
    }


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    (GOLDEN / "root.json").write_bytes(ROOT_FILE)
    for name, scope in SCOPES.items():
        (GOLDEN / f"{name}.cert.json").write_bytes(certificate_of(scope))
    (GOLDEN / "revoked.cert.json").write_bytes(certificate_of("service:acme/pay", kind="revoke"))
    (GOLDEN / "destroyed.cert.json").write_bytes(destruction_certificate())
    for name, before in CHANGES.items():
        (GOLDEN / f"{name}.cert.json").write_bytes(changed_certificate(before=before))
    for name, before in ROTATIONS.items():
        (GOLDEN / f"{name}.cert.json").write_bytes(rotated_certificate(before=before))
    for name, (code, raw) in {**golden_lies(), **destruction_lies(), **change_lies(), **rotation_lies()}.items():
        (GOLDEN / f"refuse.{code}.{name}.json").write_bytes(raw)


if __name__ == "__main__":
    main()
