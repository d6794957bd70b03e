"""Whether the files of a configuration belong together: the certificate is this process's own, of this mesh, in time.

What would otherwise be found out at a peer's door.  Reads files, changes none.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature

from keymesh.access.identity import CoreIdentity, Identity, RegistryIdentity
from keymesh.adapters import pki
from keymesh.adapters.key_files import load_authority, load_signing_key, read_private
from keymesh.app.config import Config, CoreConfig, EdgeConfig, RegistryConfig
from keymesh.app.config_faults import BadConfig, Fault
from keymesh.app.config_file import Loaded, load_config
from keymesh.app.config_shape import Report
from keymesh.app.trust_file import load_trust
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import MeshName, NodeId, RegionId


def load_checked(path: Path, role: str) -> Loaded:
    """``load_config``, and its identity's files.  Raises BadConfig with every fault."""
    loaded = load_config(path, role)
    lines = {field: origin.line for field, _, origin in loaded.fields}
    faults: list[Fault] = []
    observe_identity(
        loaded.config,
        lambda field, reason: faults.append(Fault(field, lines.get(field), reason)),
        now_ms=time.time_ns() // 1_000_000,
    )
    if faults:
        raise BadConfig(str(path), faults)
    return loaded


def observe_identity(config: Config, report: Report, *, now_ms: int) -> None:
    """Report every file that is not what its field says; ``now_ms``: Unix time."""
    mesh = MeshName(config.mesh)

    def asked(field: str, look: Callable[[], object]) -> Any:
        try:
            return look()
        except KeymeshError as bad:
            report(field, bad.message)
        except (OSError, ValueError) as bad:
            report(field, f"cannot be read: {type(bad).__name__}")
        return None

    if isinstance(config, EdgeConfig):
        from keymesh.edge.client import load_trust as load_edge_trust  # no other role carries the Edge

        asked("ca_file", lambda: _roots(config.ca_file, mesh))
        trust = asked("trust_file", lambda: load_edge_trust(config.trust_file))
        if trust is not None and trust.mesh != mesh:
            report("trust_file", "is of another mesh")
        return
    files = config.identity
    roots = asked("identity.ca_file", lambda: _roots(files.ca_file, mesh))
    asked("identity.signing_key_file", lambda: load_signing_key(Path(files.signing_key_file)))
    trust = asked("identity.trust_file", lambda: load_trust(Path(files.trust_file)))
    if trust is not None and trust.mesh != mesh:
        report("identity.trust_file", "is of another mesh")
    if files.issuer is not None:
        issuer = files.issuer
        asked("identity.issuer_file", lambda: load_authority(issuer, mesh=mesh))
    renews = files.issuer is not None
    asked("identity.tls_file", lambda: _check_tls(config, roots or [], None if renews else now_ms))


def _roots(file: str, mesh: MeshName) -> list[Any]:
    """The mesh's root certificates.  Raises Refused."""
    found = pki.parse_certificates(Path(file).read_bytes())
    if any(pki.mesh_of_root(root) != mesh for root in found):
        raise Refused("bad-config", "is of another mesh")
    return found


def _check_tls(config: RegistryConfig | CoreConfig, roots: list[Any], now_ms: int | None) -> None:
    """``now_ms``: None where an expired certificate would be renewed at once.  Raises Refused."""
    chain = pki.parse_certificates(read_private(Path(config.identity.tls_file)))
    mesh = MeshName(config.mesh)
    expected = _identity(config, mesh)
    if pki.uri_of(chain[0]) != str(expected):
        raise Refused("bad-config", f"the certificate is not that of {expected}")
    if roots and not _ends_in(chain, roots):
        raise Refused("bad-config", "the certificate does not come from ca_file's root")
    if now_ms is not None and now_ms >= pki.validity_ms(chain[0])[1]:
        raise Refused("bad-config", "the certificate has expired")


def _identity(config: RegistryConfig | CoreConfig, mesh: MeshName) -> Identity:
    node = NodeId(config.node)
    if isinstance(config, CoreConfig):
        return CoreIdentity(mesh=mesh, region=RegionId(config.region), node=node)
    return RegistryIdentity(mesh=mesh, node=node)


def _ends_in(chain: list[Any], roots: list[Any]) -> bool:
    """Leaf, intermediates, a root: each signed by the next."""
    for subject, issuer in itertools.pairwise(chain):
        if not _signed(subject, issuer):
            return False
    return any(_signed(chain[-1], root) for root in roots)


def _signed(subject: Any, issuer: Any) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
