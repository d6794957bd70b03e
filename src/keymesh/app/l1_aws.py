"""How the CLI names a root key in AWS KMS.

    aws-kms:ARN
    aws-kms:REGION=ARN,REGION=ARN,...

The second form names the replicas of one multi-region key by the mesh's regions that are to use them; in the first the
one key is every region's.  Does not ask AWS: its credentials are the Cores' (``adapters.aws_kms_descriptor``).
"""

from __future__ import annotations

import os
from typing import Final

from keymesh.adapters.aws_kms_descriptor import AwsKmsDescriptor, arn_parts
from keymesh.core.l1 import AWS_KMS, REPLICAS_MAX
from keymesh.model.errors import Refused

SCHEME: Final = "aws-kms:"
FORM: Final = "aws-kms:ARN or aws-kms:REGION=ARN,REGION=ARN"
_MAX_CHARS: Final = 8_192


def parse_aws_kms(url: str) -> AwsKmsDescriptor:
    """What a tenant's L1 binding records.  Raises Refused naming ``l1`` or a part of the record."""
    if not url.startswith(SCHEME) or len(url) > _MAX_CHARS:
        raise Refused.bad_field("l1", FORM)
    replicas: dict[str, str] = {}
    named = url.removeprefix(SCHEME).split(",")
    for one in named:
        region, equals, arn = one.rpartition("=")
        if (not equals and len(named) > 1) or region in replicas or len(named) > REPLICAS_MAX:
            raise Refused.bad_field("l1", f"{FORM}, each region once")
        replicas[region or arn_parts("l1", arn)[1]] = arn
    made = AwsKmsDescriptor(
        provider=AWS_KMS,
        key=arn_parts("l1", next(iter(replicas.values())))[3],
        replicas=replicas,
        ca_pem="",
        binding=f"b{os.urandom(8).hex()}",
    )
    made.check()
    return made
