"""The operator's own certificate: nobody runs to renew it, so every command does."""

from __future__ import annotations

import time
from pathlib import Path

from keymesh.access.identity import AdminIdentity
from keymesh.adapters import key_files, pki
from keymesh.app.admin_client import operator_credentials
from keymesh.app.bootstrap import issue
from keymesh.app.layout import Layout
from keymesh.model.ids import MeshName
from keymesh.model.time import Instant

MESH = MeshName("dev")
NOW_MS = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000


def issued(root: Path, *, hours_ago: int) -> Layout:
    """A mesh directory with nothing but a CA and an operator."""
    layout = Layout(root)
    layout.pki.mkdir()
    layout.admin.mkdir()
    then = Instant(NOW_MS - hours_ago * HOUR_MS)
    authority = pki.create_intermediate(pki.create_root(MESH, now=then), None, now=then)
    key_files.write_authority(layout.pki / "mesh-ca.pem", authority)
    issue(authority, layout.admin / "operator.pem", AdminIdentity(mesh=MESH, name="operator"), now=then)
    return layout


def test_it_is_renewed_at_half_its_life_and_after_its_end(tmp_path: Path) -> None:
    for hours_ago in (13, 48):
        root = tmp_path / str(hours_ago)
        root.mkdir()
        certificate = operator_credentials(issued(root, hours_ago=hours_ago), MESH).certificate
        assert certificate.not_valid_after_utc.timestamp() * 1000 > NOW_MS + 23 * HOUR_MS
        assert pki.identity_of(certificate, MESH) == AdminIdentity(mesh=MESH, name="operator")


def test_a_young_one_stays_and_so_does_one_whose_issuer_is_elsewhere(tmp_path: Path) -> None:
    young, old = tmp_path / "young", tmp_path / "old"
    young.mkdir()
    old.mkdir()
    layouts = issued(young, hours_ago=1), issued(old, hours_ago=13)
    (layouts[1].pki / "mesh-ca.pem").unlink()
    for layout in layouts:
        before = (layout.admin / "operator.pem").read_bytes()
        operator_credentials(layout, MESH)
        assert (layout.admin / "operator.pem").read_bytes() == before
