"""Whether a lease's policy is the Registry's word (DESIGN section 2): the grant carries the entry that set it.

Decides that once for each grant; that a policy never falls to an older version is ``rules.keeps_policy``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from keymesh.control.entry import parse_entry
from keymesh.control.kinds import SetService
from keymesh.control.signing import Suite, from_plain
from keymesh.crypto.dsse import Envelope
from keymesh.model import strict_json
from keymesh.model.errors import Integrity
from keymesh.model.ids import KeyId
from keymesh.orbital.edge_messages import LeaseGrant

POLICY_KIND = "service.set"


def verify_policy(grant: LeaseGrant, *, mesh: str, registry_keys: Mapping[KeyId, str], suite: Suite) -> None:
    """1. The entry is in its one form.  2. One of ``registry_keys`` (key id -> raw public key, hex) signed it.
    3. It is of this mesh, of the grant's tenant, and sets a service.  4. It sets this service to this very row.

    Raises Integrity, or Refused where the entry is malformed.
    """
    signed = parse_entry(_envelope(grant.policy_entry))
    if not suite.signers(signed.envelope, registry_keys):
        raise Integrity("policy-signature", "the Registry has not signed this policy", field="policy_entry")
    entry = signed.entry
    if (entry.mesh, entry.namespace, entry.kind) != (mesh, grant.tenant, POLICY_KIND):
        raise Integrity("policy-entry", "another entry than one that sets this policy", field="policy_entry")
    args = strict_json.convert(entry.body.args, SetService)
    if args.service != grant.service or args.row != grant.policy:
        raise Integrity("policy-row", "the entry sets another policy", field="policy")


def policy_verifier(*, mesh: str, registry_keys: Mapping[KeyId, str], suite: Suite) -> Callable[[LeaseGrant], None]:
    """``verify_policy`` for ``EdgeConfig``."""

    def verify(grant: LeaseGrant) -> None:
        verify_policy(grant, mesh=mesh, registry_keys=registry_keys, suite=suite)

    return verify


def _envelope(value: Any) -> Envelope:
    """As a machine holds it, as ``orbital.wire`` carries it, or the standard DSSE object."""
    if isinstance(value, Envelope):
        return value
    if isinstance(value, dict) and "payloadType" in value:
        return from_plain(value)
    try:
        return msgspec.convert(value, Envelope)
    except msgspec.ValidationError as bad:
        raise Integrity("policy-entry", "no entry came with this policy", field="policy_entry") from bad
