"""The engine's gate on a Core: the machine's word, asked for every operation and once more before every answer.

Every operation stands for one thing that ``may`` judges: opening what is stored, sealing what is new or changed, and
letting plaintext out, which waits for its durable record (DESIGN section 8).  What makes, changes or ends an object is
recorded by itself too; all other use is summed.  A refusal never says which rule it was; the receipts do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keymesh.access.identity import ClientIdentity
from keymesh.app.core_kmip_keys import ServiceKeys, used
from keymesh.app.core_kmip_records import KmipRecords
from keymesh.core import clients
from keymesh.kmip.enums import Operation as Kmip
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.ports import Caller
from keymesh.model.errors import Refused
from keymesh.model.ids import RegionId, TenantId
from keymesh.model.states import Operation

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

NEEDS: Final[dict[Kmip, Operation]] = {
    Kmip.Create: Operation.WRAP,
    Kmip.Register: Operation.WRAP,
    Kmip.ReKey: Operation.WRAP,
    Kmip.Activate: Operation.WRAP,
    Kmip.Revoke: Operation.WRAP,
    Kmip.Destroy: Operation.WRAP,
    Kmip.AddAttribute: Operation.WRAP,
    Kmip.ModifyAttribute: Operation.WRAP,
    Kmip.DeleteAttribute: Operation.WRAP,
    Kmip.SetAttribute: Operation.WRAP,
    Kmip.Get: Operation.EXPORT,
    Kmip.GetAttributes: Operation.UNWRAP,
    Kmip.GetAttributeList: Operation.UNWRAP,
    Kmip.Locate: Operation.UNWRAP,
    Kmip.Check: Operation.UNWRAP,
    Kmip.Encrypt: Operation.UNWRAP,
    Kmip.Decrypt: Operation.UNWRAP,
    Kmip.MAC: Operation.UNWRAP,
    Kmip.MACVerify: Operation.UNWRAP,
    Kmip.Hash: Operation.UNWRAP,
    Kmip.RNGRetrieve: Operation.UNWRAP,
    Kmip.RNGSeed: Operation.UNWRAP,
    Kmip.Log: Operation.UNWRAP,
    Kmip.Query: Operation.UNWRAP,
    Kmip.DiscoverVersions: Operation.UNWRAP,
}
"""What each served operation asks of the service's key; one that is not here is refused."""

RECORDED: Final = frozenset(
    {
        Kmip.Create,
        Kmip.Register,
        Kmip.ReKey,
        Kmip.Activate,
        Kmip.Revoke,
        Kmip.Destroy,
        Kmip.Get,
    }
)
"""Each by itself, before it is done."""
_MAKES: Final = frozenset({Kmip.Create, Kmip.Register})  # name no object that there is


class CoreGate:
    """For callers whose certificate the listener has accepted."""

    def __init__(self, core: CoreProcess, keys: ServiceKeys, records: KmipRecords) -> None:
        self._core = core
        self._keys = keys
        self._records = records

    async def admit(self, caller: Caller, operation: Kmip, target: ManagedObject | None) -> None:
        """Raises Refused; Unavailable where it could not be recorded."""
        self._check(caller, operation)
        if operation in RECORDED and (target is not None or operation in _MAKES):
            subject = caller.scope.service if target is None else f"{caller.scope.service}/{target.uid}"
            await self._records.keep(caller, f"kmip-{operation.name.lower()}", subject)
            self._check(caller, operation)
        if target is None:
            self._records.count(caller, operation.name)

    def still(self, caller: Caller) -> bool:
        """The client, its service and every key version that this request used may be served at this moment."""
        uses = used.get()
        if uses is None or self.why_not(caller, Operation.UNWRAP) or not self._keys.may_still(uses):
            self._records.deny(caller.scope.tenant, caller.name, "restricted-meanwhile", "answer")
            return False
        return True

    def why_not(self, caller: Caller, operation: Operation) -> str:
        """A stable word, empty where the caller may."""
        state, now = self._core.shell.state, self._core.shell.now()
        return clients.why_not(state, now, self._identity(caller), caller.scope.service, operation)

    def _check(self, caller: Caller, operation: Kmip) -> None:
        needs = NEEDS.get(operation)
        word = "not-served" if needs is None else self.why_not(caller, needs)
        if word:
            self._records.deny(caller.scope.tenant, caller.name, word, operation.name)
            raise Refused("denied", "not permitted")

    def _identity(self, caller: Caller) -> ClientIdentity:
        return ClientIdentity(
            mesh=self._core.tls.mesh,
            region=RegionId(self._core.region),
            tenant=TenantId(caller.scope.tenant),
            name=caller.name,
        )
