"""What is really so: every entry, when it was truly committed, what is restricted, who may hold what.

Fed by the simulated log and by the voters' durable writes, in true time; never by what a machine believes.  Kinds and
scopes are interpreted here on their own, not with the product's ``reduce``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import ADOPT_TAIL, ROTATE_TRUST
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.scope import Scope, parse_scope

RESTRICTING = frozenset(("suspend", "revoke", "tenant.destroy", "tenant.purge"))
LIFTING = frozenset(("resume", "tenant.cancel-destroy"))
FOR_GOOD = frozenset(("revoke", "tenant.purge"))


@dataclass(slots=True)
class Fact:
    """One entry of the log, as it truly is.  Times are true ms; ``committed_at`` None: no voter majority yet."""

    namespace: str
    seq: int
    hash: str
    kind: str
    args: dict[str, Any]
    command_id: str
    index: int
    logged_at: int
    committed_at: int | None
    restrictions: dict[str, tuple[str, int]]  # scope -> (state, seq) after this entry
    in_force: dict[str, int]  # scope -> seq, of those of them that restrict
    signed: SignedEntry
    votes: set[tuple[int, str]] = field(default_factory=set)


@dataclass(slots=True)
class Restriction:
    """A stretch of time in which a scope is restricted; ``ended_at`` by a committed resume."""

    scope: Scope
    text: str
    seq: int
    revoked: bool
    committed_at: int
    ended_at: int | None = None
    first_seq: int = 0


class Ledger:
    """The omniscient view."""

    def __init__(self, voters: int) -> None:
        self.majority = voters // 2 + 1 if voters >= 3 else 0
        self.facts: dict[str, list[Fact]] = {}
        self.by_hash: dict[str, Fact] = {}
        self.by_command: dict[tuple[str, str], Fact] = {}
        self.allowed: dict[str, frozenset[str]] = {}
        self.ttl_ms: dict[str, int | None] = {}
        self.history: list[Restriction] = []
        self.open: dict[str, Restriction] = {}  # scope text -> the stretch that is on
        self.kids: dict[tuple[str, str, int], str] = {}
        self.restrictions: dict[str, list[Fact]] = {}  # namespace -> its suspensions and revocations
        self.words: dict[str, Fact] = {}  # scope -> the newest suspend, revoke or resume of it
        self.on_restricted: list[Callable[[Restriction], None]] = []

    def head(self, namespace: str) -> Fact | None:
        facts = self.facts.get(namespace)
        return facts[-1] if facts else None

    def fact(self, namespace: str, seq: int) -> Fact | None:
        if seq < 1 or namespace not in self.facts:
            return None
        try:
            return self.facts[namespace][seq - 1]
        except IndexError:
            return None

    def append(self, index: int, signed: SignedEntry, t: int) -> Fact:
        """A true commit to the log at ``t``."""
        e = signed.entry
        old = self.head(e.namespace)
        restrictions = dict(old.restrictions) if old else {}
        args = e.body.args
        commits = e.kind in RESTRICTING or e.kind in LIFTING
        if commits:
            state = "none" if e.kind in LIFTING else "revoked" if e.kind in FOR_GOOD else "suspended"
            restrictions[args["scope"]] = (state, e.seq)
        if e.kind == ADOPT_TAIL:
            for scope, row in args["restrictions"].items():
                if restrictions.get(scope, ("none", 0))[0] not in (row["state"], "revoked"):
                    restrictions[scope] = (row["state"], e.seq)
            for name, row in args["keys"].items():
                key, _, version = name.removeprefix("key/").rpartition("/")
                self.kids.setdefault((e.namespace, key, int(version)), row["kid"])
        if e.kind == "tenant.create":
            self.allowed[e.namespace] = frozenset(args["policy"]["regions"])
            self.ttl_ms[e.namespace] = args["policy"].get("ttl_ms")
        elif e.kind == "key.create":
            self.kids.setdefault((e.namespace, args["key"], args["version"]), args["kid"])
        waits = (commits or e.kind == ROTATE_TRUST) and self.majority
        fact = Fact(
            e.namespace,
            e.seq,
            signed.hash,
            e.kind,
            args,
            e.command_id,
            index,
            t,
            None if waits else t,
            restrictions,
            {scope: seq for scope, (word, seq) in restrictions.items() if word != "none"},
            signed,
        )
        self.facts.setdefault(e.namespace, []).append(fact)
        self.by_hash[signed.hash] = fact
        if e.kind in RESTRICTING:
            self.restrictions.setdefault(e.namespace, []).append(fact)
        self.by_command[e.namespace, e.command_id] = fact
        if commits:
            self.words[args["scope"]] = fact
        if commits and not waits:
            self._committed(fact, t)
        return fact

    def voted(self, entry_hash: str, voter: str, t: int, set_id: int = 1) -> Fact | None:
        """A voter has durably countersigned; the fact if that committed it."""
        fact = self.by_hash.get(entry_hash)
        if fact is None or (set_id, voter) in fact.votes:
            return None
        fact.votes.add((set_id, voter))
        if fact.committed_at is None and sum(of == set_id for of, _ in fact.votes) >= self.majority:
            fact.committed_at = t
            self._committed(fact, t)
            return fact
        return None

    def _committed(self, fact: Fact, t: int) -> None:
        if fact.kind == ROTATE_TRUST:
            return
        text = fact.args["scope"]
        current = self.open.get(text)
        if fact.kind in LIFTING:
            # it ends only what it was ordered after
            if current is not None and current.seq < fact.seq and not current.revoked:
                current.ended_at = t
                del self.open[text]
            return
        later = fact.namespace and any(
            f.kind in LIFTING and f.args["scope"] == text and f.committed_at is not None
            for f in self.facts[fact.namespace][fact.seq :]
        )
        if later and fact.kind not in FOR_GOOD:
            return
        if current is not None:
            current.revoked = current.revoked or fact.kind in FOR_GOOD
            current.seq = max(current.seq, fact.seq)
            return
        stretch = Restriction(parse_scope(text), text, fact.seq, fact.kind in FOR_GOOD, t, first_seq=fact.seq)
        self.open[text] = stretch
        self.history.append(stretch)
        for hook in self.on_restricted:
            hook(stretch)

    def may_hold(self, region: str, namespace: str) -> bool:
        return namespace == MESH_NAMESPACE or (namespace in self.allowed and region in self.allowed[namespace])

    def restricted(self, namespace: str, seq: int) -> dict[str, int]:
        """The restrictions in force after entry ``seq``: scope -> the entry that set it.  Not to be changed."""
        fact = self.fact(namespace, seq)
        return {} if fact is None else fact.in_force
