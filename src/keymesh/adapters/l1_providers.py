"""Which adapter reaches a root key, a tenant's or a seal's: by the binding's provider."""

from __future__ import annotations

from typing import Any

from keymesh.adapters.aws_kms_descriptor import AwsKmsDescriptor, open_tenants_aws
from keymesh.adapters.customer_kms import open_provider
from keymesh.adapters.openbao_descriptor import OpenBaoDescriptor, open_seals_openbao, open_tenants_openbao
from keymesh.adapters.pkcs11_descriptor import Pkcs11Descriptor, Tokens
from keymesh.adapters.tls import Credentials
from keymesh.core.l1 import AWS_KMS, OPENBAO, PKCS11, L1Provider, ProviderDescriptor
from keymesh.model import strict_json
from keymesh.model.errors import Refused

_SHAPES: dict[str, type[ProviderDescriptor]] = {
    AWS_KMS: AwsKmsDescriptor,
    OPENBAO: OpenBaoDescriptor,
    PKCS11: Pkcs11Descriptor,
}


def descriptor_of(provider: str, descriptor: dict[str, Any]) -> ProviderDescriptor:
    """A binding's descriptor in its provider's shape, not yet checked.  Raises Refused naming the field."""
    return strict_json.convert(descriptor, _SHAPES.get(provider, ProviderDescriptor))


def open_l1(
    descriptor: ProviderDescriptor, region: str, credentials: Credentials, tokens: Tokens, *, tenant: str
) -> L1Provider:
    """The replica that ``region`` uses for ``tenant``, by that tenant's credentials and tokens alone.

    Raises Refused for a malformed descriptor, or where this Core has nothing of the tenant's for it.
    """
    if isinstance(descriptor, Pkcs11Descriptor):
        return tokens.open_tenants(descriptor, tenant)
    if isinstance(descriptor, OpenBaoDescriptor):
        return open_tenants_openbao(descriptor, region, credentials, tenant)
    if isinstance(descriptor, AwsKmsDescriptor):
        return open_tenants_aws(descriptor, region, credentials, tenant)
    return open_provider(descriptor, region, credentials)


def open_seal_key(descriptor: ProviderDescriptor, region: str, credentials: Credentials, tokens: Tokens) -> L1Provider:
    """The same for a seal of the region's own, which no tenant can name.  Raises Refused for a malformed descriptor."""
    if isinstance(descriptor, Pkcs11Descriptor):
        return tokens.open_seals(descriptor)
    if isinstance(descriptor, OpenBaoDescriptor):
        return open_seals_openbao(descriptor, region, credentials)
    raise Refused.bad_field("provider", f"{OPENBAO} or {PKCS11}")
