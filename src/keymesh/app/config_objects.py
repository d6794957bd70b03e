"""The section ``objects`` of a Core's configuration: how many regions have a KMIP object before its client hears so."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from keymesh.app.config_parts import check_services
from keymesh.model.errors import Refused

DURABILITIES: Final = ("async", "peer")


class ObjectsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``durability``: ``async`` (this region has it, others follow within seconds) or ``peer`` (one other allowed
    region has it as well).  ``peer_services``: TENANT/SERVICE names for which it is ``peer`` in any case."""

    durability: str = "async"
    peer_services: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises Refused naming the field."""
        if self.durability not in DURABILITIES:
            raise Refused.bad_field("durability", " or ".join(DURABILITIES))
        check_services("peer_services", self.peer_services)

    def durability_of(self, namespace: str, service: str) -> str:
        return "peer" if f"{namespace}/{service}" in self.peer_services else self.durability
