"""Vault's ``transit/keys`` over the mesh: a key is a service of the tenant, its versions are the service's.

Making and rotating go to the Registry; what is read is what this process holds a lease of.  What a mesh does
otherwise than Vault is refused by name: keys are not exported, not deleted by a path (``keymesh revoke`` and the
tenant's destruction, which waits, end them), and which versions open is not a setting.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.compat.ring import Ring
from keymesh.compat.vault_form import Fields, VaultError
from keymesh.compat.vault_tokens import Token
from keymesh.model.errors import Refused
from keymesh.model.ids import check_service

KEY_TYPE: Final = "aes256-gcm96"
_AT_BIRTH: Final = {
    "derived": "one key protects everything under its name; a context is bound to each ciphertext without this",
    "convergent_encryption": "equal plaintexts never give equal ciphertexts here",
    "exportable": "keys are not exported",
    "allow_plaintext_backup": "keys are not exported",
    "auto_rotate_period": "rotation is a command here: keys/NAME/rotate, or `keymesh key rotate`",
    "key_size": f"{KEY_TYPE} has one size",
    "managed_key_name": "the tenant's root key is bound in the mesh",
    "managed_key_id": "the tenant's root key is bound in the mesh",
}
_LATER: Final = {
    "deletion_allowed": "keys are not deleted by a path; `keymesh revoke` ends their use",
    "exportable": _AT_BIRTH["exportable"],
    "allow_plaintext_backup": _AT_BIRTH["allow_plaintext_backup"],
    "auto_rotate_period": _AT_BIRTH["auto_rotate_period"],
}


class TransitKeys:
    """The keys of one tenant."""

    def __init__(self, ring: Ring, tenant: str) -> None:
        self._ring = ring
        self._tenant = tenant

    def names(self, token: Token) -> list[str]:
        """Those that ``token`` may read.  Raises VaultError where there are none."""
        found = [name for name in self._ring.services(self._tenant) if token.may("read", name)]
        if not found:
            raise VaultError(404)
        return found

    async def read(self, name: str) -> dict[str, Any]:
        """Raises VaultError where it is not there; without a lease what the Registry says, or its silence."""
        if name not in self._ring.services(self._tenant):
            raise VaultError(404)
        versions = self._ring.versions(self._tenant, name)
        if not versions:
            versions = tuple(one.version for one in (await self._ring.find(self._tenant, name)).versions)
        return {
            "name": name,
            "type": KEY_TYPE,
            "latest_version": max(versions, default=0),
            "min_available_version": 0,
            "min_decryption_version": min(versions, default=0),
            "min_encryption_version": 0,
            "keys": {str(version): 0 for version in versions},
            "derived": False,
            "exportable": False,
            "allow_plaintext_backup": False,
            "deletion_allowed": False,
            "auto_rotate_period": 0,
            "imported_key": False,
            "soft_deleted": False,
            "supports_encryption": True,
            "supports_decryption": True,
            "supports_derivation": False,
            "supports_signing": False,
        }

    async def create(self, name: str, asked: Fields) -> dict[str, Any]:
        """One that is there already stays as it is.  Raises VaultError, Refused, Unavailable."""
        kind = asked.text("type") or KEY_TYPE
        if kind != KEY_TYPE:
            raise VaultError(400, f"unknown key type {kind[:64]}: {KEY_TYPE} alone is served")
        asked.refuse(**_AT_BIRTH)
        check_service(name)
        if name not in self._ring.services(self._tenant):
            await self._ring.host(self._tenant)  # it may have been made elsewhere
        if name not in self._ring.services(self._tenant):
            await self._ring.create(self._tenant, name)
        return await self.read(name)

    async def rotate(self, name: str) -> dict[str, Any]:
        """Done once the new version protects new data here.  Raises VaultError, Refused, Unavailable."""
        if name not in self._ring.services(self._tenant):
            raise VaultError(400, "key not found")
        try:
            await self._ring.rotate(self._tenant, name)
        except Refused as no:
            if no.code == "not-found":
                raise VaultError(400, "key not found") from no
            raise
        return await self.read(name)

    async def configure(self, name: str, asked: Fields) -> dict[str, Any]:
        """Takes what is so anyway.  Raises VaultError for everything else."""
        if name not in self._ring.services(self._tenant):
            raise VaultError(400, f"no existing key named {name[:64]} could be found")
        asked.refuse(**_LATER)
        shown = await self.read(name)
        for field in ("min_decryption_version", "min_encryption_version"):
            wanted = asked.number(field, shown[field])
            if wanted > shown["latest_version"]:
                words = field.removesuffix("_version").replace("_", " ")
                raise VaultError(
                    400, f"cannot set {words} version of {wanted}, latest key version is {shown['latest_version']}"
                )
            if wanted not in (shown[field], 0):
                raise VaultError(
                    400,
                    f"{field}: not a setting here; `keymesh revoke` ends a version, and the version in use always "
                    "protects new data",
                )
        return shown

    def delete(self, name: str) -> None:
        """Raises VaultError always."""
        if name not in self._ring.services(self._tenant):
            raise VaultError(400, f"could not delete key; not found: {name[:64]}")
        raise VaultError(400, f"deletion is not allowed for this key: {_LATER['deletion_allowed']}")
