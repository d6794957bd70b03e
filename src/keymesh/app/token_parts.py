"""The token parts of each role, as configured; None where the configuration has none.

What verifies people's tokens is imported only then: PyJWT comes with the full installation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from keymesh.access.identity import CoreIdentity, RegistryIdentity
from keymesh.access.token_nodes import RENEW_AFTER_MS, make_node_token
from keymesh.adapters.system import Stopwatch, SystemEntropy
from keymesh.adapters.tls import PeerSSLObject
from keymesh.app.config import CoreConfig, RegistryConfig
from keymesh.control.rows import Rows
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.model.errors import Unavailable
from keymesh.model.ids import MESH_NAMESPACE, MeshName, NodeId, RegionId
from keymesh.model.time import Instant

if TYPE_CHECKING:
    from keymesh.app.shell import Shell
    from keymesh.app.token_door import TokenDoor

TOKEN_ID_BYTES = 16


def registry_door(config: RegistryConfig, shell: Shell) -> TokenDoor | None:
    """Who checks tokens at the Registry."""
    if config.tokens is None:
        return None
    from keymesh.app.token_door import Nodes, TokenDoor, issuer_from

    def rows() -> Rows | None:
        space = shell.state.spaces.get(MESH_NAMESPACE) if shell.state.booted else None
        return None if space is None else space.rows

    mesh = MeshName(config.mesh)
    nodes = Nodes(RegistryIdentity(mesh=mesh, node=NodeId(config.node)), rows) if config.tokens.nodes else None
    issuers = [issuer_from(section) for section in config.tokens.issuers]
    return TokenDoor(mesh, issuers, now=shell.now, nodes=nodes)


def core_door(config: CoreConfig, shell: Shell) -> TokenDoor | None:
    """Who checks tokens at a Core: people's alone."""
    if config.tokens is None or not config.tokens.issuers:
        return None
    from keymesh.app.token_door import TokenDoor, issuer_from

    issuers = [issuer_from(section) for section in config.tokens.issuers]
    return TokenDoor(MeshName(config.mesh), issuers, now=shell.now)


async def keep_keys(door: TokenDoor | None) -> None:
    """Keep the issuers' keys fresh, for ever; ends where there are none."""
    if door is not None:
        await door.keep()


def node_login(config: CoreConfig, signer: Ed25519Signer) -> Callable[[PeerSSLObject], str] | None:
    """How a Core shows itself to the Registry; None: by its certificate."""
    if config.tokens is None or config.tokens.registry_auth == "certificate":
        return None
    node = CoreIdentity(mesh=MeshName(config.mesh), region=RegionId(config.region), node=NodeId(config.node))
    return NodeLogin(node, signer).authorization


class NodeLogin:
    """A Core's tokens to the Registry: one for each connection, made anew before it ends."""

    def __init__(self, node: CoreIdentity, signer: Ed25519Signer) -> None:
        self._node = node
        self._signer = signer
        self._entropy = SystemEntropy()
        self._watch = Stopwatch()
        self._made: WeakKeyDictionary[PeerSSLObject, tuple[str, Instant]] = WeakKeyDictionary()

    def authorization(self, tls: PeerSSLObject) -> str:
        """The header for a request on that connection.  Raises Unavailable where its handshake is not done."""
        now, _ = self._watch.observe()
        token, renew_at = self._made.get(tls, ("", now))
        if now >= renew_at:
            if tls.peer is None:
                raise Unavailable("unreachable", "the Registry has not shown its certificate")
            token = make_node_token(
                self._node,
                audience=tls.peer.uri,
                finished=tls.finished(),
                token_id=self._entropy.token(TOKEN_ID_BYTES).hex(),
                now=now,
                public_key=self._signer.public_key,
                sign=self._signer.sign_raw,
            )
            self._made[tls] = (token, Instant(now + RENEW_AFTER_MS))
        return f"Bearer {token}"
