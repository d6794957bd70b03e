"""The roles that people hold; who holds which is ``access.roles``', what each may do ``access.admit``'s table."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Role(Enum):
    """``TENANT_ADMIN`` and ``KEY_ADMIN`` are held in one tenant, the others mesh-wide.

    A tenant's own auditor, whom only its identity provider names, is an ``AUDITOR`` of that tenant and nothing else.
    """

    TENANT_ADMIN = "tenant-admin"
    KEY_ADMIN = "key-admin"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    RECOVERY_OFFICER = "recovery-officer"


MESH_WIDE: Final = frozenset({Role.AUDITOR, Role.OPERATOR, Role.RECOVERY_OFFICER})
IN_TENANT: Final = frozenset({Role.TENANT_ADMIN, Role.KEY_ADMIN, Role.AUDITOR})
"""What a tenant's identity provider may say of a person."""
