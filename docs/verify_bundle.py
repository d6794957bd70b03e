#!/usr/bin/env python3
"""Check a certificate of a keymesh mesh, of a kill switch or of a destruction, with nothing but its root keys.

Written from docs/certificate.md alone; needs Python 3.11 and the package `cryptography`, no network, no clock, nothing
of keymesh.

    python verify_bundle.py --root trust.json tenant-acme.cert.json

Exit codes: 0 it holds; 1 the file is no certificate; 2 usage; 4 it is one, but does not hold.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BUNDLE_MAX, SEALED_MAX, STATE_MAX, ENTRY_MAX, ROOT_MAX = 4 << 20, 1 << 20, 256 << 10, 64 << 10, 64 << 10
DEPTH_MAX, SIGNATURES_MAX, SEQ_MAX, SIBLINGS_MAX = 32, 16, 1 << 24, 256
TYPE = "application/vnd.keymesh.%s.v1+json"


class Malformed(Exception):
    """The bytes are no certificate (or no root file)."""


class DoesNotHold(Exception):
    """It is a certificate, and what it says does not follow."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def need(truth, code, message):
    if not truth:
        raise DoesNotHold(code, message)


# --- strict JSON (section 1) -----------------------------------------------------------------------------------------


def _pairs(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a JSON object has a key twice")
    return found


def _int(text):
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise Malformed("an integer beyond 64 bits")
    return int(text)


def _no_float(text):
    raise Malformed(f"a number that is no integer: {text[:16]}")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_int, parse_float=_no_float, parse_constant=_no_float)


def depth_of(raw):
    deepest = depth = 0
    in_string = escaped = False
    for byte in raw:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def loads(raw, most):
    if len(raw) > most:
        raise Malformed(f"more than {most} bytes")
    if depth_of(raw) > DEPTH_MAX:
        raise Malformed(f"nested deeper than {DEPTH_MAX}")
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        dumps(value)  # lone surrogates have no UTF-8
    except (UnicodeError, json.JSONDecodeError, RecursionError):
        raise Malformed("not well-formed UTF-8 JSON") from None
    return value


def dumps(value):
    """The one form: keys sorted, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


# --- shapes (section 2): what each object must have; nothing more may be there ---------------------------------------

ANY, STR, INT, BOOL, B64 = "any", "str", "int", "bool", "base64"
ABSENT = object()


class Opt:
    """A field that may be left out: it then has ``default`` (or stays out, where that is ABSENT)."""

    def __init__(self, shape, default):
        self.shape, self.default = shape, default


class Null:
    """``shape`` or null."""

    def __init__(self, shape):
        self.shape = shape


class List:
    def __init__(self, shape):
        self.shape = shape


class Map:
    def __init__(self, shape):
        self.shape = shape


def unbase64(text):
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise Malformed("base64 that is not in its one padded form")
    return raw


def shaped(value, shape, where="$"):
    """``value`` with defaults filled in, if it has ``shape``."""
    if shape is ANY:
        return value
    if isinstance(shape, Null):
        return None if value is None else shaped(value, shape.shape, where)
    if isinstance(shape, List):
        if type(value) is not list:
            raise Malformed(f"{where}: not a list")
        return [shaped(v, shape.shape, f"{where}[]") for v in value]
    if isinstance(shape, Map):
        if type(value) is not dict:
            raise Malformed(f"{where}: not an object")
        return {k: shaped(v, shape.shape, f"{where}.{k}") for k, v in value.items()}
    if isinstance(shape, dict):
        if type(value) is not dict:
            raise Malformed(f"{where}: not an object")
        if unknown := sorted(value.keys() - shape.keys()):
            raise Malformed(f"{where}: unknown field {unknown[0][:40]!r}")
        found = {}
        for name, inner in shape.items():
            if name in value:
                inner = inner.shape if isinstance(inner, Opt) else inner
                found[name] = shaped(value[name], inner, f"{where}.{name}")
            elif not isinstance(inner, Opt):
                raise Malformed(f"{where}: {name} is missing")
            elif inner.default is not ABSENT:
                found[name] = inner.default
        return found
    kind = {STR: str, B64: str, INT: int, BOOL: bool}[shape]
    if type(value) is not kind:
        raise Malformed(f"{where}: not {shape}")
    if shape is B64:
        unbase64(value)
    return value


ENVELOPE = {"payload": B64, "payload_type": STR, "signatures": List({"keyid": STR, "sig": B64})}
DSSE = {"payload": STR, "payloadType": STR, "signatures": List({"keyid": STR, "sig": STR})}
PROOF = {"siblings": List(STR), "row": Null({"key": STR, "value": B64})}
BUNDLE = {
    "trust": {
        "head": ENVELOPE,
        "rows": Map(B64),
        "support": List({"entry": ENVELOPE, "countersignatures": List(ANY)}),
    },
    "statement": ANY,
}
HOLDER = {"node": STR, "evidence": STR, "t": INT, "ack": ANY, "received_at": INT}
STATEMENT = {
    "mesh": STR,
    "mesh_head": STR,
    "scope": STR,
    "action": STR,
    "command_id": STR,
    "correlation_id": STR,
    "entry": ENVELOPE,
    "committed_at": INT,
    "countersignatures": List(ANY),
    "ttl_ms": INT,
    "holders": List(HOLDER),
    "t": INT,
    "issued_at": INT,
    "tenant": Null(ENVELOPE),
    "policy": Null(PROOF),
    "signers": Null(PROOF),
    "not_covered": List(STR),
    "rows": Opt(Map(B64), ABSENT),
}
ENTRY = {
    "mesh": STR,
    "epoch": INT,
    "namespace": STR,
    "seq": INT,
    "prev": STR,
    "mesh_seq": INT,
    "kind": STR,
    "body": {"args": Map(ANY), "authority": Opt(List(Map(ANY)), [])},
    "state": STR,
    "actor": STR,
    "correlation_id": STR,
    "command_id": STR,
    "issued_at": INT,
}
AUTHORITY = {"mesh": STR, "namespace": STR, "command_id": STR, "kind": STR, "args_sha256": STR, "not_after": INT}
VOTE = {
    "mesh": STR,
    "epoch": INT,
    "set_id": INT,
    "voter": STR,
    "blind": STR,
    "seq": INT,
    "entry_hash": STR,
    "restriction": BOOL,
    "serial": Opt(INT, ABSENT),
}
ACK = {
    "mesh": STR,
    "region": STR,
    "node": STR,
    "boot_id": STR,
    "counter": INT,
    "namespace": STR,
    "leaf": {"epoch": INT, "seq": INT, "entry_hash": STR, "state": STR},
    "outcome": STR,
    "reason": STR,
    "restrictions": List(
        {"scope": STR, "seq": INT, "entry_hash": Null(STR), "edge_leases_end_in_ms": INT, "open_edge_leases": INT}
    ),
    "correlation_id": STR,
}
KEY_VERSION = {"key": STR, "version": INT, "kid": STR, "digest": STR}
RECEIPT = {
    "mesh": STR,
    "region": STR,
    "node": STR,
    "boot_id": STR,
    "counter": INT,
    "namespace": STR,
    "epoch": INT,
    "seq": INT,
    "entry_hash": Null(STR),
    "admitted_seq": INT,
    "keys": List(KEY_VERSION),
    "others": List(STR),
    "backups": List(
        {"store": STR, "origin": STR, "first": INT, "last": INT, "digest": STR, "kept_until": INT},
    ),
    "edge_leases_end_in_ms": INT,
    "open_edge_leases": INT,
    "correlation_id": STR,
}

ROOT_ROW = {"version": INT, "keys": Map(STR), "threshold": INT}
DELEGATION = {"keys": Map(STR), "threshold": INT, "kinds": List(STR), "scope": STR}
SETTINGS = {
    "ttl_ms": INT,
    "heartbeat_ms": INT,
    "l1_probe_ms": INT,
    "l1_ttl_ms": INT,
    "snapshot_ms": INT,
    "salt": STR,
    "development": BOOL,
}
REGION = {
    "domain": STR,
    "failure_domain": STR,
    "ca_fingerprint": STR,
    "ivk_generation": Opt(INT, 1),
    "keystore_schema": Opt(INT, ABSENT),
}
NODE = {"signing_key": STR}
VOTERS = {"set_id": INT, "regions": List(STR)}
KEY = {"kid": STR, "revision": INT, "state": STR, "digest": STR, "parent": STR}
RESTRICTION = {"state": STR, "seq": INT, "command_id": STR}
POLICY = {
    "version": INT,
    "home": STR,
    "domain": STR,
    "regions": List(STR),
    "admins": List(STR),
    "ttl_ms": Opt(Null(INT), None),
    "standby": Opt(STR, "allow"),
}
SIGNERS = {"keys": Map(STR), "threshold": INT}
EPOCH = {"number": INT}
FIXED_ROWS = {"settings": SETTINGS, "root": ROOT_ROW, "voters": VOTERS, "epoch": EPOCH}
PAST_VOTERS = {"regions": List(STR), "until": INT}
NAMED_ROWS = {
    "delegation": DELEGATION,
    "region": REGION,
    "node": NODE,
    "restriction": RESTRICTION,
    "voters": PAST_VOTERS,
}

GENESIS = {
    "root": ROOT_ROW,
    "delegations": Map(DELEGATION),
    "settings": SETTINGS,
    "regions": Map(REGION),
    "nodes": Map(NODE),
    "voters": VOTERS,
}
OPEN = {"epoch": INT}
SEATS = {"set_id": INT, "regions": List(STR), "replaces": List(STR)}
KEY = {"kid": STR, "revision": INT, "state": STR, "digest": STR, "parent": STR}
ADOPT = {
    "restrictions": Opt(Map({"state": STR, "command_id": STR}), {}),
    "keys": Opt(Map(KEY), {}),
}
ROTATION = {"root": ROOT_ROW, "officers": DELEGATION, "replaces": STR, "genesis": STR}
JOIN = {"region": STR, "row": REGION, "nodes": Map(NODE)}
CREATE = {
    "policy": POLICY,
    "signers": SIGNERS,
    "binding_id": STR,
    "provider": STR,
    "descriptor": Map(ANY),
}
SCOPE = {
    "scope": STR,
    "reason": Opt(STR, ""),
    "abandon_children": Opt(BOOL, False),
    "upto_seq": Opt(INT, 0),
}
PURGE = {"scope": STR, "destroy_seq": INT}
# kind: (shape of its arguments, its namespace, whose word it needs beside the Registry's)
KINDS = {
    "mesh.genesis": (GENESIS, "mesh", "root"),
    "epoch.open": (OPEN, "mesh", "officers-always"),
    "epoch.adopt": (ADOPT, "any", None),
    "voters.change": (SEATS, "mesh", "officers-always"),
    "trust.rotate": (ROTATION, "mesh", "rotation"),
    "region.join": (JOIN, "mesh", "root"),
    "region.rotate-ivk": ({"region": STR, "generation": INT}, "mesh", None),
    "region.migrate-keystore": ({"region": STR, "schema": INT}, "mesh", None),
    "tenant.create": (CREATE, "tenant", "signers"),
    "suspend": (SCOPE, "any", "officers"),
    "revoke": (SCOPE, "any", "officers"),
    "resume": (SCOPE, "any", "officers"),
    "tenant.destroy": ({"scope": STR, "wait_ms": INT, "reason": Opt(STR, "")}, "tenant", None),
    "tenant.cancel-destroy": (SCOPE, "tenant", None),
    "tenant.purge": (PURGE, "tenant", None),
}

# of a certificate's action: the kind of its entry
ACTIONS = {"suspend": "suspend", "revoke": "revoke", "destroy": "tenant.purge"}

# --- signatures (section 3) ------------------------------------------------------------------------------------------

_P = 2**255 - 19
_Y8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
SMALL_ORDER = {0, 1, _P - 1, _Y8, _P - _Y8}


def key_id(raw):
    return hashlib.sha256(raw).hexdigest()


def public_key(name, text):
    """The key that ``text`` is, if ``name`` is its id and it is not of small order."""
    try:
        raw = bytes.fromhex(text)
        y = (int.from_bytes(raw, "little") & (2**255 - 1)) % _P
        if len(raw) != 32 or key_id(raw) != name or y in SMALL_ORDER:
            return None
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        return None


def signers_of(payload, payload_type, signatures, keys):
    """Ids of ``keys`` of which a signature verifies.  ``signatures``: pairs of key id and bytes."""
    if len(signatures) > SIGNATURES_MAX:
        raise Malformed(f"more than {SIGNATURES_MAX} signatures")
    kind = payload_type.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    found = set()
    for name, sig in signatures:
        key = public_key(name, keys[name]) if name in keys and len(sig) == 64 else None
        if key is not None:
            try:
                key.verify(sig, signed)
                found.add(name)
            except InvalidSignature:
                pass
    return found


def open_dsse(value):
    """(payload, type, signatures) of a DSSE object in its JSON form."""
    if len(dumps(value)) > SEALED_MAX:
        raise Malformed("a signed message that is too large")
    value = shaped(value, DSSE)
    if not 0 < len(value["payloadType"]) <= 128 or not 0 < len(value["signatures"]) <= SIGNATURES_MAX:
        raise Malformed("not a signed message")
    signatures = []
    for one in value["signatures"]:
        sig = unbase64(one["sig"])
        if len(sig) != 64 or not re.fullmatch("[0-9a-f]{64}", one["keyid"]):
            raise Malformed("not a signature")
        signatures.append((one["keyid"], sig))
    return unbase64(value["payload"]), value["payloadType"], signatures


def unseal(value, name, shape, keys):
    """The message ``name`` in a DSSE object, signed by one of ``keys``, in its one form."""
    payload, payload_type, signatures = open_dsse(value)
    if payload_type != TYPE % name or not signers_of(payload, payload_type, signatures, keys):
        raise Malformed("not signed by whom it must be")
    message = shaped(loads(payload, SEALED_MAX), shape)
    if dumps(message) != payload:
        raise Malformed("not in its one form")
    return message


# --- entries (section 4) ---------------------------------------------------------------------------------------------


class Entry:
    """A control-log entry, parsed, not yet verified."""

    def __init__(self, envelope):
        try:
            self.payload = unbase64(envelope["payload"])
            self.type = envelope["payload_type"]
            self.signatures = [(s["keyid"], unbase64(s["sig"])) for s in envelope["signatures"]]
            if self.type != TYPE % "entry":
                raise Malformed("not an entry")
            said = shaped(loads(self.payload, ENTRY_MAX), ENTRY)
            if dumps(said) != self.payload:
                raise Malformed("not in its one form")
        except Malformed as bad:
            raise DoesNotHold("certificate-entry", f"an entry in it is malformed: {bad}") from None
        self.said, self.hash = said, hashlib.sha256(self.payload).hexdigest()
        self.args, self.kind, self.namespace = said["body"]["args"], said["kind"], said["namespace"]


def is_label(text):
    return len(text) <= 63 and re.fullmatch(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", text) is not None


def parse_scope(text):
    """(kind, tenant, region) of a scope's text form."""
    if text == "mesh":
        return "mesh", None, None
    head, _, rest = text.partition(":")
    if head == "region" and is_label(rest):
        return "region", None, rest
    tenant, slash, tail = rest.partition("/")
    if is_label(tenant) and tenant != "mesh":
        if head in ("tenant", "destruction") and not slash:
            return head, tenant, None
        if head in ("service", "client") and is_label(tail):
            return head, tenant, None
        service, _, version = tail.partition("@")
        if head == "key" and is_label(service) and re.fullmatch("[1-9][0-9]{0,8}", version):
            return "key", tenant, None
    raise Malformed(f"not a scope: {text[:80]!r}")


def delegates(row, kind):
    return kind in row["kinds"] or "*" in row["kinds"]


def check_quorum(entry, keys, threshold):
    """Keys of which ``threshold`` must have signed the command in ``entry``: section 4, step 4."""
    said, authority = entry.said, entry.said["body"]["authority"]
    if len(authority) > SIGNATURES_MAX:
        raise Malformed("too many authorities")
    wanted = {
        "mesh": said["mesh"],
        "namespace": said["namespace"],
        "command_id": said["command_id"],
        "kind": said["kind"],
        "args_sha256": hashlib.sha256(dumps(entry.args)).hexdigest(),
    }
    vouching = set()
    for sealed in authority:
        try:
            payload, payload_type, signatures = open_dsse(sealed)
            word = shaped(loads(payload, ENTRY_MAX), AUTHORITY)
        except Malformed:
            continue
        if payload_type != TYPE % "authority" or dumps(word) != payload:
            continue
        if {k: v for k, v in word.items() if k != "not_after"} == wanted:
            vouching |= signers_of(payload, payload_type, signatures, keys)
    if threshold < 1 or len(vouching) < threshold:
        raise Malformed(f"{entry.kind} needs {threshold} signatures, has {len(vouching)}")


def verify_entry(entry, rows, pins=None):
    """Section 4: everybody who had to sign ``entry`` did, by the delegations in ``rows`` (name -> parsed row)."""
    if entry.kind not in KINDS:
        raise Malformed(f"unknown kind {entry.kind[:40]!r}")
    shape, belongs, authority = KINDS[entry.kind]
    of_mesh = entry.namespace == "mesh"
    if not (of_mesh or is_label(entry.namespace)) or (belongs != "any" and (belongs == "mesh") is not of_mesh):
        raise Malformed(f"{entry.kind} in namespace {entry.namespace[:63]!r}")
    args = shaped(entry.args, shape)
    if entry.kind == "mesh.genesis":
        rows = {f"delegation/{role}": row for role, row in args["delegations"].items()}
    online = rows.get("delegation/registry")
    if online is None or len(signers_of(entry.payload, entry.type, entry.signatures, online["keys"])) < max(
        online["threshold"], 1
    ):
        raise Malformed("not signed by the Registry")
    if (online["scope"] != "any" and (online["scope"] == "mesh") is not of_mesh) or not delegates(online, entry.kind):
        raise Malformed("the Registry may not sign this")
    if authority == "root" and entry.kind == "mesh.genesis":
        own = args["root"]
        if pins is None or own["version"] < pins["version"]:  # a later set is pinned: check_mesh asks for it
            pins = own
        if own["keys"] != pins["keys"] or own["threshold"] != pins["threshold"]:
            raise Malformed("of another root")
        check_quorum(entry, pins["keys"], pins["threshold"])
    elif authority in ("root", "rotation"):
        if "root" not in rows:
            raise Malformed("no root")
        check_quorum(entry, rows["root"]["keys"], rows["root"]["threshold"])
        for new in (args["root"], args["officers"]) if authority == "rotation" else ():
            check_quorum(entry, new["keys"], new["threshold"])
    elif authority == "signers":
        check_quorum(entry, args["signers"]["keys"], args["signers"]["threshold"])
    elif authority == "officers-always" or (
        authority == "officers" and parse_scope(args["scope"])[0] in ("region", "mesh")
    ):
        officers = rows.get("delegation/officers")
        if officers is None or not delegates(officers, entry.kind):
            raise Malformed("no officers")
        check_quorum(entry, officers["keys"], officers["threshold"])


# --- the map tree (section 5) ----------------------------------------------------------------------------------------


def lp(raw):
    return len(raw).to_bytes(4, "big") + raw


def sha(raw):
    return hashlib.sha256(raw).digest()


def path_of(name):
    return format(int.from_bytes(sha(name.encode()), "big"), "0256b")


def leaf(name, value):
    return sha(b"\0" + lp(name.encode()) + lp(value))


def root_of(rows):
    def over(some, depth):
        if not some:
            return sha(b"\2")
        if len(some) == 1:
            return leaf(some[0][1], some[0][2])
        left = [r for r in some if r[0][depth] == "0"]
        right = [r for r in some if r[0][depth] == "1"]
        return sha(b"\1" + over(left, depth + 1) + over(right, depth + 1))

    return over([(path_of(k), k, v) for k, v in rows.items()], 0).hex()


def proven(root, name, proof):
    """The value that ``proof`` shows to stand under ``root`` at ``name``."""
    path, siblings, row = path_of(name), proof["siblings"], proof["row"]
    if len(siblings) > SIBLINGS_MAX or not all(re.fullmatch("[0-9a-f]{64}", s) for s in siblings):
        raise Malformed("not a proof")
    if row is None or row["key"] != name:
        raise Malformed(f"no proof that {name} is there")
    value = unbase64(row["value"])
    running = leaf(name, value)
    for level in reversed(range(len(siblings))):
        beside = bytes.fromhex(siblings[level])
        running = sha(b"\1" + (running + beside if path[level] == "0" else beside + running))
    if running.hex() != root:
        raise Malformed("the proof leads to another root")
    return value


# --- step 1: the mesh ------------------------------------------------------------------------------------------------


def parse_mesh_row(name, raw):
    head, slash, rest = name.partition("/")
    shape = NAMED_ROWS.get(head) if slash else FIXED_ROWS.get(head)
    if shape is None:
        raise Malformed(f"unknown row {name[:80]!r}")
    row = shaped(loads(raw, STATE_MAX), shape)
    if dumps(row) != raw:
        raise Malformed(f"row {name[:80]!r} is not in its one form")
    if head == "restriction":
        if row["state"] not in ("suspended", "revoked", "none") or parse_scope(rest)[1] is not None:
            raise Malformed(f"row {name[:80]!r}")
    return row


def rows_given(entry):
    """The rows that a genesis, a region's joining, an epoch's opening, a change of voters or a rotation gives."""
    if entry.kind == "mesh.genesis":
        args = shaped(entry.args, GENESIS)
        return {
            "root": args["root"],
            "settings": args["settings"],
            "voters": args["voters"],
            **{f"delegation/{n}": r for n, r in args["delegations"].items()},
            **{f"region/{n}": r for n, r in args["regions"].items()},
            **{f"node/{n}": r for n, r in args["nodes"].items()},
        }
    if entry.kind == "epoch.open":
        return {"epoch": {"number": shaped(entry.args, OPEN)["epoch"]}}
    if entry.kind == "voters.change":
        args = shaped(entry.args, SEATS)
        past = {"regions": args["replaces"], "until": entry.said["seq"]}
        now = {"set_id": args["set_id"], "regions": args["regions"]}
        return {"voters": now, f"voters/{args['set_id'] - 1}": past}
    if entry.kind == "trust.rotate":
        args = shaped(entry.args, ROTATION)
        return {"root": args["root"], "delegation/officers": args["officers"]}
    args = shaped(entry.args, JOIN)
    region = args["region"]
    return {f"region/{region}": args["row"], **{f"node/{region}/{n}": r for n, r in args["nodes"].items()}}


def is_given(name, row, given):
    if given is None or not name.startswith("region/"):
        return given is not None and given == row
    moving = ("ivk_generation", "keystore_schema")
    return all(row.get(f, 0) >= given.get(f, 0) for f in moving) and {
        k: v for k, v in row.items() if k not in moving
    } == {k: v for k, v in given.items() if k not in moving}


def order_of(entry):
    return entry.said["epoch"], entry.said["seq"]


def set_digest(rows):
    """The digest of the trust set in ``rows``, which a rotation names."""
    who = rows.get("delegation/officers")
    who = None if who is None else {"keys": who["keys"], "threshold": who["threshold"]}
    return sha(dumps({"officers": who, "root": rows["root"]})).hex()


def trust_sets(genesis, found, trusted, pins):
    """[(since, rows)]: after which entry which root and officers are in force, from the genesis on."""
    sets = [((0, 0), trusted)]
    for entry in sorted(found, key=lambda e: (order_of(e), e.hash)):
        now = sets[-1][1]
        try:
            verify_entry(entry, now, pins)
        except Malformed:
            continue
        args = shaped(entry.args, ROTATION)
        said = (args["root"]["version"], args["replaces"], args["genesis"])
        if said == (now["root"]["version"] + 1, set_digest(now), genesis.hash):
            sets.append((order_of(entry), {**now, **rows_given(entry)}))
    return sets


def in_force(sets, entry):
    """The rows by which ``entry`` of the mesh is judged."""
    return next((rows for since, rows in reversed(sets) if since < order_of(entry)), sets[0][1])


def check_mesh(trust, mesh, pins):
    """(head entry, parsed rows, trust sets) of the mesh state, if it follows from the pinned root."""
    head = Entry(trust["head"])
    support = [Entry(item["entry"]) for item in trust["support"]]
    raw = {name: unbase64(value) for name, value in trust["rows"].items()}
    size = sum(len(e.payload) for e in (head, *support)) + sum(len(k) + len(v) for k, v in raw.items())
    said = head.said
    if size > STATE_MAX or said["mesh"] != mesh or head.namespace != "mesh":
        raise Malformed("of another mesh, or too large")
    if said["epoch"] < 1 or not 1 <= said["seq"] <= SEQ_MAX:
        raise Malformed("epochs and seqs count from 1")
    genesis = next((e for e in support if e.kind == "mesh.genesis"), None)
    if genesis is None or genesis.said["mesh"] != mesh:
        raise Malformed("no entry that founds this mesh")
    verify_entry(genesis, {}, pins)
    trusted = {n: r for n, r in rows_given(genesis).items() if n == "root" or n.startswith("delegation/")}
    end = order_of(head)
    rotations = [e for e in support if e.kind == "trust.rotate" and e.said["mesh"] == mesh and order_of(e) <= end]
    if head.kind == "trust.rotate":
        rotations.append(head)
    sets = trust_sets(genesis, rotations, trusted, pins)
    if trusted["root"]["version"] < pins["version"] and pins not in [rows["root"] for _, rows in sets]:
        raise Malformed("no rotation leads to the pinned root")
    verify_entry(head, in_force(sets, head), pins)
    if root_of(raw) != said["state"]:
        raise Malformed("the rows are not those that its newest entry attests")
    rows = {name: parse_mesh_row(name, value) for name, value in raw.items()}
    if len(sets) > 1 and any(rows.get(n) != sets[-1][1].get(n) for n in ("root", "delegation/officers")):
        raise Malformed("not the root and officers of the last rotation")
    given = []
    for entry in (*support, head):
        if entry.kind not in ("mesh.genesis", "region.join", "epoch.open", "voters.change", "trust.rotate"):
            continue
        e = entry.said
        if (e["mesh"], e["namespace"]) != (mesh, "mesh") or e["epoch"] > said["epoch"] or e["seq"] > said["seq"]:
            continue
        if entry.kind == "mesh.genesis" and (entry is not genesis or e["seq"] != 1 or e["prev"] != "0" * 64):
            continue
        try:
            verify_entry(entry, in_force(sets, entry), pins)
        except Malformed:
            continue
        given.append(rows_given(entry))
    for name, row in rows.items():
        if not name.startswith("restriction/") and not any(is_given(name, row, g.get(name)) for g in given):
            raise Malformed(f"no entry with the needed signatures gives {name}")
    return head, rows, sets


# --- steps 5 to 9 ----------------------------------------------------------------------------------------------------


def sets_for(entry, rows):
    """The set in force, then earlier ones that ``entry`` rests on, newest first."""
    if "voters" not in rows:
        return
    yield rows["voters"]
    for set_id in range(rows["voters"]["set_id"] - 1, 0, -1):
        past = rows.get(f"voters/{set_id}")
        if past is None or entry.said["mesh_seq"] >= past["until"]:
            return
        yield {"set_id": set_id, "regions": past["regions"]}


def committed_by(entry, countersignatures, rows):
    """Who countersigned under the first set of which a majority did; None where no set suffices."""
    if "voters" not in rows or len(set(rows["voters"]["regions"])) < 3:
        return voters_for(entry, countersignatures, rows, rows["voters"]) if "voters" in rows else set()
    for voters in sets_for(entry, rows):
        found, seats = voters_for(entry, countersignatures, rows, voters), len(set(voters["regions"]))
        if seats < 3 or len(found) >= seats // 2 + 1:
            return found
    return None


def voters_for(entry, countersignatures, rows, voters):
    """Regions of the set ``voters`` that countersigned exactly ``entry`` as a restriction."""
    settings = rows["settings"]
    wanted = {
        "mesh": entry.said["mesh"],
        "epoch": entry.said["epoch"],
        "set_id": voters["set_id"],
        "blind": hmac.new(bytes.fromhex(settings["salt"]), entry.namespace.encode(), hashlib.sha256).hexdigest(),
        "seq": entry.said["seq"],
        "entry_hash": entry.hash,
        "restriction": True,
    }
    found = set()
    for region in set(voters["regions"]):
        keys = {}
        for name, row in rows.items():
            if name.startswith(f"node/{region}/"):
                keys[key_id(bytes.fromhex(row["signing_key"]))] = row["signing_key"]
        for sealed in countersignatures:
            try:
                vote = unseal(sealed, "countersignature", VOTE, keys)
            except Malformed:
                continue
            if vote.get("serial") == 0:  # written by leaving it out
                continue
            vote.pop("serial", None)
            if vote == {**wanted, "voter": region}:
                found.add(region)
    return found


def holders_of(kind, region, policy, rows):
    """Every node of every region that the scope touches."""
    regions = {"mesh": None, "region": {region}}.get(kind, set() if policy is None else set(policy["regions"]))
    found = []
    for name in rows:
        if name.startswith("node/"):
            _, where, node = name.split("/", 2)
            if regions is None or where in regions:
                found.append(f"node:{where}/{node}")
    return sorted(found)


def stretched(ms):
    """ms x 1.001, rounded up."""
    return ms + -(-ms // 1000)


def own_word(holder, name, shape, statement, entry, rows):
    """What the holder itself signed, about this tenant."""
    node = holder["node"]
    region, _, short = node.removeprefix("node:").partition("/")
    row = rows.get(f"node/{region}/{short}")
    keys = {} if row is None else {key_id(bytes.fromhex(row["signing_key"])): row["signing_key"]}
    try:
        word = unseal(holder["ack"], name, shape, keys)
    except Malformed:
        raise DoesNotHold("certificate-evidence", f"{node}: not its own word") from None
    about = (word["mesh"], word["region"], word["node"], word["namespace"])
    same = about == (statement["mesh"], region, short, entry.namespace)
    need(same, "certificate-evidence", f"{node}: a word about something else")
    return word


def check_end(holder, word, statement, entry):
    """The holder's end follows from its word, which came at a possible time."""
    rest = stretched(word["edge_leases_end_in_ms"]) if word["open_edge_leases"] else 0
    node, code = holder["node"], "certificate-evidence"
    need(holder["t"] == holder["received_at"] + rest, code, f"{node}: its end does not follow")
    possible = entry.said["issued_at"] <= holder["received_at"] <= statement["issued_at"]
    need(possible, code, f"{node}: received at no possible time")


def tenant_keys(statement, entry):
    """Every key version of a destroyed tenant, from its rows, which must be those that the entry attests."""
    try:
        rows = {name: unbase64(value) for name, value in statement["rows"].items()}
        need(root_of(rows) == entry.said["state"], "certificate-rows", "the rows are not what the entry attests")
        found = []
        for name, raw in rows.items():
            if name.startswith("key/"):
                row = shaped(loads(raw, STATE_MAX), KEY)
                key, _, version = name.removeprefix("key/").rpartition("/")
                found.append({"key": key, "version": int(version), "kid": row["kid"], "digest": row["digest"]})
        return found
    except (Malformed, ValueError, KeyError) as bad:
        raise DoesNotHold("certificate-rows", f"the tenant's rows: {bad}") from None


def check_purged(holder, statement, entry, rows, keys, admitted):
    """The receipt of a holder of a destroyed tenant, if it covers all that there was."""
    node, said = holder["node"], entry.said

    def need_it(truth, why):
        need(truth, "certificate-evidence", f"{node}: {why}")

    need_it(holder["evidence"] == "purged", "no receipt")
    receipt = own_word(holder, "purgereceipt", RECEIPT, statement, entry, rows)
    is_this = receipt["epoch"] >= said["epoch"] and receipt["seq"] == said["seq"]
    need_it(is_this, "a receipt of another purge")
    need_it(receipt["entry_hash"] in (None, entry.hash), "a receipt of another purge")
    need_it(receipt["admitted_seq"] == admitted, "a receipt of another admission")
    need_it(receipt["edge_leases_end_in_ms"] >= 0 and receipt["open_edge_leases"] >= 0, "an impossible receipt")
    need_it(all(key in receipt["keys"] for key in keys), "its receipt leaves a key out")
    check_end(holder, receipt, statement, entry)
    return receipt


def check_holder(holder, statement, entry, rows):
    node = holder["node"]

    def need_it(truth, why):
        need(truth, "certificate-evidence", f"{node}: {why}")

    if holder["evidence"] == "bound":
        end = statement["committed_at"] + stretched(statement["ttl_ms"]) + 2000
        need_it(holder["t"] == end, "not the bound")
        return
    need_it(holder["evidence"] == "ack", "unknown evidence")
    ack, said = own_word(holder, "ack", ACK, statement, entry, rows), entry.said
    mine, at = (said["epoch"], said["seq"]), (ack["leaf"]["epoch"], ack["leaf"]["seq"])
    need_it(ack["outcome"] in ("applied", "stale") and at >= mine, "does not name this entry")
    need_it(at != mine or ack["leaf"]["entry_hash"] == entry.hash, "does not name this entry")
    word = next(
        (
            w
            for w in ack["restrictions"]
            if (w["scope"], w["seq"]) == (statement["scope"], said["seq"])
            and w["entry_hash"] in (None, entry.hash)
            and w["edge_leases_end_in_ms"] >= 0
            and w["open_edge_leases"] >= 0
        ),
        None,
    )
    need_it(word is not None, "does not name this entry")
    check_end(holder, word, statement, entry)


def check_policy(statement, tenant, entry, rows):
    """Step 4: the tenant's policy, proved to stand in the state that the entry attests."""
    need(statement["tenant"] is not None, "certificate-tenant", "the entry that created the tenant is missing")
    created = Entry(statement["tenant"])
    said = (created.said["mesh"], created.kind, created.namespace)
    need(said == (statement["mesh"], "tenant.create", tenant), "certificate-tenant", "not what created this tenant")
    try:
        verify_entry(created, rows)
    except Malformed as bad:
        raise DoesNotHold("certificate-entry", f"the tenant's creation: {bad}") from None
    args = shaped(created.args, CREATE)
    for name in ("policy", "signers"):
        try:
            value = None if statement[name] is None else proven(entry.said["state"], name, statement[name])
        except Malformed as bad:
            raise DoesNotHold("certificate-policy", f"{name}: {bad}") from None
        need(value == dumps(args[name]), "certificate-policy", f"the attested state has other {name}")
    return args["policy"]


def destroyed(receipts):
    """What the receipts say together: every holder, key version, other wrap, and backup that stays."""
    keys = {(k["key"], k["version"], k["kid"], k["digest"]): k for r in receipts for k in r["keys"]}
    lines = {}
    for line in (line for r in receipts for line in r["backups"]):
        name = (line["store"], line["origin"])
        if name not in lines or lines[name]["last"] < line["last"]:
            lines[name] = line
    return {
        "purged": [f"node:{r['region']}/{r['node']}" for r in receipts],
        "destroyed": [keys[name] for name in sorted(keys)],
        "others": sorted({digest for r in receipts for digest in r["others"]}),
        "backups": [lines[name] for name in sorted(lines)],
    }


def utc(unix_ms):
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None


def verify(raw, root_file):
    """What the certificate in ``raw`` says, if it holds.  Raises Malformed or DoesNotHold."""
    pins = shaped(loads(root_file, ROOT_MAX), {"mesh": STR, "root": ROOT_ROW, "genesis": STR})
    bundle = shaped(loads(raw, BUNDLE_MAX), BUNDLE)
    try:  # 1
        head, rows, sets = check_mesh(bundle["trust"], pins["mesh"], pins["root"])
    except (Malformed, ValueError) as bad:
        raise DoesNotHold("certificate-root", f"the mesh state does not hold: {bad}") from None
    try:  # 2
        statement = unseal(bundle["statement"], "statement", STATEMENT, rows["delegation/registry"]["keys"])
    except (Malformed, KeyError) as bad:
        raise DoesNotHold("certificate-signature", f"not signed by this mesh's Registry: {bad}") from None
    same = (statement["mesh"], statement["mesh_head"]) == (head.said["mesh"], head.hash)
    need(same, "certificate-root", "the statement is about another mesh state")
    entry = Entry(statement["entry"])  # 3
    said = entry.said
    action = statement["action"]
    need(entry.kind == ACTIONS.get(action), "certificate-entry", "the entry is of another kind")
    for field, other in (("mesh", "mesh"), ("command_id",) * 2, ("correlation_id",) * 2):
        need(said[field] == statement[other], "certificate-entry", f"the entry has another {field}")
    need(entry.args.get("scope") == statement["scope"], "certificate-entry", "the entry has another scope")
    kind, tenant, region = parse_scope(statement["scope"])
    need(entry.namespace == (tenant or "mesh"), "certificate-entry", "the scope is not of the entry's namespace")
    need(said["mesh_seq"] <= head.said["seq"], "certificate-root", "the mesh state is older than the entry")
    by = in_force(sets, entry) if len(sets) > 1 and entry.namespace == "mesh" else {}
    try:
        verify_entry(entry, {**rows, **by})
    except Malformed as bad:
        raise DoesNotHold("certificate-entry", f"the entry: {bad}") from None
    policy = None if tenant is None else check_policy(statement, tenant, entry, rows)  # 4
    need("settings" in rows, "certificate-ttl", "a mesh without settings")
    voters = committed_by(entry, statement["countersignatures"], rows)  # 5
    need(voters is not None, "certificate-commit", "no majority of the voters countersigned it")
    ttl_ms = rows["settings"]["ttl_ms"]  # 6
    if policy is not None and policy["ttl_ms"] is not None:
        ttl_ms = min(ttl_ms, policy["ttl_ms"])
    need(statement["ttl_ms"] == ttl_ms, "certificate-ttl", "not the longest that a lease could carry")
    need(statement["committed_at"] >= said["issued_at"], "certificate-commit", "committed before it was issued")
    nodes = [h["node"] for h in statement["holders"]]  # 7
    need(nodes == holders_of(kind, region, policy, rows), "certificate-holders", "the holders are not the scope's")
    receipts = []
    if action == "destroy":  # 8
        keys, admitted = tenant_keys(statement, entry), Entry(statement["tenant"]).said["seq"]
        receipts = [check_purged(h, statement, entry, rows, keys, admitted) for h in statement["holders"]]
    else:
        for holder in statement["holders"]:
            check_holder(holder, statement, entry, rows)
    end = max([statement["committed_at"], *(h["t"] for h in statement["holders"])])  # 9
    need(statement["t"] == end, "certificate-t", "T does not follow from the evidence")
    need(statement["issued_at"] >= end, "certificate-t", "issued before T")
    return {
        "ok": True,
        "mesh": statement["mesh"],
        "scope": statement["scope"],
        "action": action,
        "t": statement["t"],
        "t_utc": utc(statement["t"]),
        "until": "a later committed resume" if action == "suspend" else "for ever",
        "voters": sorted(voters),
        "holders_by_ack": [h["node"] for h in statement["holders"] if h["evidence"] == "ack"],
        "holders_by_bound": [h["node"] for h in statement["holders"] if h["evidence"] == "bound"],
        **({} if action != "destroy" else destroyed(receipts)),
        "command_id": statement["command_id"],
        "not_covered": statement["not_covered"],
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Check a keymesh certificate with the root keys alone.")
    parser.add_argument("--root", required=True, metavar="ROOT.json", help="the mesh's trust.json, had from its owner")
    parser.add_argument("bundle", metavar="BUNDLE", help="the certificate")
    told = parser.parse_args(arguments)
    try:
        root, raw = Path(told.root).read_bytes(), Path(told.bundle).read_bytes()
    except OSError as bad:
        print(f"cannot read {bad.filename}: {bad.strerror}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(verify(raw, root), indent=2))
    except Malformed as bad:
        print(f"no certificate: {bad}", file=sys.stderr)
        return 1
    except DoesNotHold as bad:
        print(f"does not hold: {bad.code}: {bad}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
