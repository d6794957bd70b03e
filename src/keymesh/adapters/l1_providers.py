"""Which adapter reaches a tenant's root key: by the binding's provider."""

from __future__ import annotations

from typing import Any

from keymesh.adapters.customer_kms import open_provider
from keymesh.adapters.openbao_descriptor import OpenBaoDescriptor, open_openbao
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import OPENBAO, L1Provider, ProviderDescriptor
from keymesh.model import strict_json


def descriptor_of(provider: str, descriptor: dict[str, Any]) -> ProviderDescriptor:
    """A binding's descriptor in its provider's shape, not yet checked.  Raises Refused naming the field."""
    return strict_json.convert(descriptor, OpenBaoDescriptor if provider == OPENBAO else ProviderDescriptor)


def open_l1(descriptor: ProviderDescriptor, region: str, credentials: Credentials) -> L1Provider:
    """The replica that ``region`` uses, shown ``credentials``.  Raises Refused for a malformed descriptor."""
    if isinstance(descriptor, OpenBaoDescriptor):
        return open_openbao(descriptor, region, credentials)
    return open_provider(descriptor, region, credentials)
