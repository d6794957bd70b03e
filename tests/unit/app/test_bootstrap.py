"""What ``keymesh up`` makes before anything runs: private files, a genesis that verifies, and again after a crash."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
from msgspec import structs
from tests.unit.app.founded import REGIONS, TIMING, founded, plan_for, short_dir

from keymesh.access.identity import AdminIdentity, CoreIdentity, RegistryIdentity
from keymesh.adapters import key_files, pki
from keymesh.adapters.files import write_file
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.adapters.tls import Credentials
from keymesh.app import renewal
from keymesh.app.backup_files import load_recovery_key, public_of
from keymesh.app.bootstrap import bootstrap, finish, make_plan, parse_regions, voters_of
from keymesh.app.customer_kms_files import Clients
from keymesh.app.layout import DIR_ENV, Layout, MeshPlan, load_plan, resolve_dir, save_plan
from keymesh.app.servers.ports import free_ports
from keymesh.app.signing_keys import load_signer
from keymesh.app.trust_file import TrustFile, load_trust, save_trust
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import Genesis
from keymesh.control.signing import DsseSuite
from keymesh.control.trust import Pins, genesis_rows, verify_entry
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import KeyId, MeshName
from keymesh.model.time import Instant

pytestmark = pytest.mark.usefixtures("template")
PUBLIC = {"keys/ceremony.json", "genesis.json", "pki/ca.pem", "trust.json", "customer-kms/root.pem"}


def log_of(layout: Layout, plan: MeshPlan) -> list[SignedEntry]:
    async def read() -> list[SignedEntry]:
        log = SqliteControlLog(layout.registry / "log.db", mesh=plan.mesh)
        _, entries = await log.read(0)
        await log.close()
        return [signed for _, signed in entries]

    return asyncio.run(read())


def check_genesis(layout: Layout, plan: MeshPlan) -> SignedEntry:
    """The log holds exactly one entry, the pinned one, and it verifies against the pinned root alone."""
    (signed,) = log_of(layout, plan)
    trust = load_trust(layout.trust)
    assert signed.hash == trust.genesis
    pins = Pins(
        mesh=MeshName(trust.mesh),
        root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
        threshold=trust.root.threshold,
    )
    args = strict_json.convert(signed.entry.body.args, Genesis)
    suite = DsseSuite(load_signer(layout.registry / "signing.pem").signer)
    verify_entry(signed, genesis_rows(args), None, suite, pins=pins)
    return signed


def files(layout: Layout) -> dict[str, int]:
    return {
        path.relative_to(layout.root).as_posix(): path.stat().st_mode & 0o777
        for path in layout.root.rglob("*")
        if path.is_file()
    }


# --- a mesh ----------------------------------------------------------------------------------------------------------


def test_every_file_is_the_owners_alone_but_the_public_ones() -> None:
    with founded() as (layout, _):
        modes = files(layout)
        assert {name for name, mode in modes.items() if mode != 0o600} == PUBLIC
        assert {modes[name] for name in PUBLIC} == {0o644}
        assert len(modes) > 20
        for directory in (layout.root, layout.keys, layout.pki, layout.registry, layout.admin, layout.core("us-east")):
            assert directory.stat().st_mode & 0o077 == 0, directory
        assert b"PRIVATE" not in layout.ca.read_bytes()
        assert b"DEVELOPMENT" in (layout.keys / "DEVELOPMENT-KEYS.txt").read_bytes()


def test_the_genesis_verifies_with_the_pinned_root_and_names_everyone() -> None:
    with founded() as (layout, plan):
        signed = check_genesis(layout, plan)
        args = strict_json.convert(signed.entry.body.args, Genesis)
        assert sorted(args.regions) == sorted(plan.regions)
        assert args.voters.regions == tuple(sorted(plan.regions))
        assert (args.root.threshold, len(args.root.keys)) == (2, 3)
        assert args.settings.ttl_ms == TIMING.ttl_ms
        assert args.settings.development
        assert len(args.settings.salt) == 64
        for region in plan.regions:
            key = load_signer(layout.core(region) / "signing.pem")
            assert args.nodes[f"{region}/n1"].signing_key == key.public_hex
            authority = key_files.load_authority(layout.core(region) / "region-ca.pem", mesh=MeshName(plan.mesh))
            assert args.regions[region].ca_fingerprint == pki.fingerprint(authority.certificate)
        roots = {load_signer(layout.keys / f"root-{n}.pem").key_id for n in (1, 2, 3)}
        officers = {load_signer(layout.keys / f"officer-{n}.pem").key_id for n in (1, 2, 3)}
        assert roots == set(args.root.keys)
        assert officers == set(args.delegations["officers"].keys)
        assert len(roots | officers) == 6


def test_another_root_does_not_vouch_for_it() -> None:
    with founded() as (layout, plan), founded() as (other, _):
        trust = load_trust(layout.trust)
        stranger = load_signer(other.core("us-east") / "signing.pem")
        forged = trust.root.keys | {stranger.key_id: stranger.public_hex}
        first = sorted(trust.root.keys)[0]
        for keys in ({stranger.key_id: stranger.public_hex}, {k: v for k, v in forged.items() if k == first}):
            pins = Pins(mesh=MeshName(trust.mesh), root_keys={KeyId(k): v for k, v in keys.items()}, threshold=2)
            (signed,) = log_of(layout, plan)
            rows = genesis_rows(strict_json.convert(signed.entry.body.args, Genesis))
            with pytest.raises((Refused, Integrity)):
                verify_entry(signed, rows, None, DsseSuite(stranger.signer), pins=pins)


def test_every_certificate_is_its_owners() -> None:
    with founded() as (layout, plan):
        mesh = MeshName(plan.mesh)
        assert isinstance(identity(layout.registry / "tls.pem", mesh), RegistryIdentity)
        assert isinstance(identity(layout.admin / "operator.pem", mesh), AdminIdentity)
        for region in plan.regions:
            core = identity(layout.core(region) / "tls.pem", mesh)
            assert isinstance(core, CoreIdentity)
            assert core.region == region


def identity(path: Path, mesh: MeshName) -> object:
    return pki.identity_of(Credentials(path).certificate, mesh)


def test_after_an_unfinished_one_it_is_made_again_from_scratch() -> None:
    """A crash anywhere before the plan is written leaves a directory that the next ``up`` makes anew."""
    with short_dir() as path:
        layout, first = Layout(path / "m"), plan_for("us-east,us-west")
        finish(layout, first, bootstrap(layout, first))
        old = check_genesis(layout, first)
        layout.plan.unlink()
        with pytest.raises(Refused, match="no mesh"):
            load_plan(layout)
        second = plan_for("us-east,us-west")
        genesis = bootstrap(layout, second)  # a crash here: keys and trust are new, the log is gone
        assert not (layout.registry / "log.db").exists()
        genesis = bootstrap(layout, second)
        finish(layout, second, genesis)
        finish(layout, second, genesis)  # a crash between the log and the plan
        recovery_keys = load_plan(layout).recovery_keys
        assert load_plan(layout) == structs.replace(second, recovery_keys=recovery_keys)
        assert recovery_keys == (public_of(load_recovery_key(layout.recovery_key)),)
        assert check_genesis(layout, second).hash == genesis.hash != old.hash
        clients = Clients(layout.customer_kms / "clients.json")
        root = pki.parse_certificates(layout.ca.read_bytes())[0]
        assert clients.mesh_of(pki.fingerprint(root)) == second.mesh  # the mesh's own KMS knows the new CA
        assert set(files(layout)) >= PUBLIC


def test_a_path_too_long_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 100)
    with pytest.raises(Refused, match="too long") as refused:
        bootstrap(Layout(root), plan_for())
    assert refused.value.field == "dir"
    assert not root.exists()
    with short_dir() as path:
        deep = path / ("ü" * 20)  # bytes count, not characters
        with pytest.raises(Refused):
            bootstrap(Layout(deep), plan_for("a-region-with-a-rather-long-name-indeed"))
        assert not deep.exists()


def test_links_give_each_pair_a_port_of_its_own() -> None:
    plan = plan_for(links=True)
    assert plan.links is not None
    names = list(plan.regions)
    assert set(plan.links) == {f"{a} {b}" for a in names for b in [*names, "registry"] if a != b}
    assert plan.kms_ports is not None
    ports = [
        plan.registry_port,
        *(r.port for r in plan.regions.values()),
        *plan.links.values(),
        *plan.kms_ports.values(),
    ]
    assert len(set(ports)) == len(ports)
    assert plan.url("us-east", "us-west") == f"https://127.0.0.1:{plan.links['us-east us-west']}"
    assert plan.url("us-east", "us-east") == f"https://127.0.0.1:{plan.regions['us-east'].port}"
    assert plan_for().url("us-east", "registry").startswith("https://127.0.0.1:")
    with pytest.raises(Refused):
        plan.url("us-east", "mars")


def test_without_a_kms_of_its_own() -> None:
    plan = make_plan(parse_regions("a,b"), TIMING, links=False, allow_unlocked_memory=False, kms=False)
    with short_dir() as path:
        layout = Layout(path / "m")
        finish(layout, plan, bootstrap(layout, plan))
        assert not layout.customer_kms.exists()
        assert load_plan(layout).kms_ports is None


def test_ports_are_free_and_distinct() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", ports[0]))


# --- regions ---------------------------------------------------------------------------------------------------------


def test_regions_and_their_domains() -> None:
    assert parse_regions(REGIONS) == {"us-east": "us", "us-west": "us", "eu-central": "eu"}
    assert parse_regions(" a=b , c=d-e, f ") == {"a": "b", "c": "d-e", "f": "f"}
    assert parse_regions("a=b,c=d-e,f") == {"a": "b", "c": "d-e", "f": "f"}
    assert list(parse_regions("z,a,m")) == ["z", "a", "m"]  # the first holds the Registry
    assert len(parse_regions(",".join(f"r{n}" for n in range(16)))) == 16


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a,",
        ",a",
        "a,a",
        "a=x,a=y",
        "A",
        "a b",
        "a/b",
        "a=",
        "=b",
        "a=B",
        "a=b=c",
        "registry",
        "registry=x",
        "-a",
        "a.b",
        "x" * 64,
        "é",
        ",".join(f"r{n}" for n in range(17)),
    ],
)
def test_senseless_regions_are_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_regions(text)
    assert refused.value.field in ("regions", "region", "domain")


def test_three_voters_or_none_worth_the_name() -> None:
    def named(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, "d")

    assert voters_of(named("c", "a", "b", "d")) == ("a", "b", "c")
    assert voters_of(named("b", "a", "c")) == ("a", "b", "c")
    assert voters_of(named("b", "a")) == voters_of(named("a")) == ("a",)


# --- plan, trust, directories ----------------------------------------------------------------------------------------


def test_the_plan_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    layout, plan = Layout(tmp_path), plan_for(links=True)
    save_plan(layout, plan)
    assert load_plan(layout) == plan
    good = layout.plan.read_bytes()
    for bad in (b"", b"{}", good[:-1], good + b"x", good.replace(b'"version":1', b'"version":1,"more":1')):
        layout.plan.write_bytes(bad)
        with pytest.raises(Refused):
            load_plan(layout)


def test_the_directory_is_the_flags_then_the_environments_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DIR_ENV, raising=False)
    assert resolve_dir(None) == tmp_path.resolve() / ".keymesh"
    monkeypatch.setenv(DIR_ENV, "from-env")
    assert resolve_dir(None) == tmp_path.resolve() / "from-env"
    assert resolve_dir("given") == tmp_path.resolve() / "given"
    assert resolve_dir("/a/../b") == Path("/b")


def test_the_trust_file_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with founded() as (layout, _):
        trust = load_trust(layout.trust)
        save_trust(tmp_path / "t.json", trust)
        assert load_trust(tmp_path / "t.json") == trust
        raw = layout.trust.read_bytes()
        for bad in (b"", b"[]", raw[:-1], raw + b" {}", raw.replace(b'"mesh":', b'"mesh":"x","mesh":'), b"\xff"):
            (tmp_path / "t.json").write_bytes(bad)
            with pytest.raises(Refused):
                load_trust(tmp_path / "t.json")
        with pytest.raises(FileNotFoundError):
            load_trust(tmp_path / "absent")
        assert isinstance(trust, TrustFile)


# --- renewal ---------------------------------------------------------------------------------------------------------


def test_a_renewal_keeps_the_identity_and_changes_the_key() -> None:
    with founded() as (layout, plan):
        path, ca = layout.core("us-east") / "tls.pem", layout.core("us-east") / "region-ca.pem"
        credentials = Credentials(path)
        before = credentials.certificate
        assert not renewal.renew_if_due(credentials, ca, plan.mesh)
        assert credentials.certificate == before
        renewal.renew(credentials, ca, plan.mesh)
        after = credentials.certificate
        assert pki.uri_of(after) == pki.uri_of(before)
        assert after.public_key() != before.public_key()
        assert path.stat().st_mode & 0o777 == 0o600
        assert pki.parse_certificates(key_files.read_private(path))[0] == after


def test_a_renewal_is_due_at_half_life(monkeypatch: pytest.MonkeyPatch) -> None:
    with founded() as (layout, plan):
        credentials, ca = Credentials(layout.registry / "tls.pem"), layout.pki / "mesh-ca.pem"
        start, end = pki.validity_ms(credentials.certificate)
        at = (start + end) // 2
        monkeypatch.setattr(time, "time_ns", lambda: (at - 60_000) * 1_000_000)
        assert not renewal.renew_if_due(credentials, ca, plan.mesh)
        monkeypatch.setattr(time, "time_ns", lambda: (at + 60_000) * 1_000_000)
        assert renewal.renew_if_due(credentials, ca, plan.mesh)
        assert not pki.needs_renewal(credentials.certificate, Instant(at + 60_000))


def test_a_ca_of_another_region_renews_nothing() -> None:
    with founded() as (layout, plan):
        path = layout.core("us-east") / "tls.pem"
        raw, credentials = path.read_bytes(), Credentials(path)
        for ca in (layout.core("us-west") / "region-ca.pem", layout.pki / "mesh-ca.pem", layout.keys / "root-1.pem"):
            with pytest.raises(Refused):
                renewal.renew(credentials, ca, plan.mesh)
        assert path.read_bytes() == raw


def test_a_certificate_that_somebody_else_renews_is_re_read() -> None:
    """Only the same identity's, and only a whole one; until then the old one is shown."""
    with founded() as (layout, plan):
        path, ca = layout.core("us-east") / "tls.pem", layout.core("us-east") / "region-ca.pem"
        renewed = path.with_name("renewed.pem")
        write_file(renewed, path.read_bytes())
        renewal.renew(Credentials(renewed), ca, plan.mesh)
        credentials, before = Credentials(path), Credentials(path).certificate
        assert not renewal.reload_if_replaced(credentials, plan.mesh)
        foreign = (layout.core("us-west") / "tls.pem").read_bytes()
        for refused in (foreign, b"no certificate", renewed.read_bytes()[: len(renewed.read_bytes()) // 2]):
            write_file(path, refused)
            with pytest.raises(Refused):
                renewal.reload_if_replaced(credentials, plan.mesh)
            assert credentials.certificate == before
        write_file(path, renewed.read_bytes())
        assert renewal.reload_if_replaced(credentials, plan.mesh)
        assert credentials.certificate == Credentials(renewed).certificate != before


async def test_a_process_without_its_ca_looks_for_a_replaced_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "CHECK_S", 0.005)
    seen = asyncio.Event()
    monkeypatch.setattr(renewal, "reload_if_replaced", lambda *_: seen.set())
    with founded() as (layout, plan):
        credentials = Credentials(layout.registry / "tls.pem")
        keeper = asyncio.create_task(renewal.keep_certificate_fresh(credentials, None, plan.mesh))
        await asyncio.wait_for(seen.wait(), 10)
        keeper.cancel()


async def test_a_renewal_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewal, "CHECK_S", 0.005)
    with founded() as (layout, plan):
        credentials = Credentials(layout.registry / "tls.pem")
        _, end = pki.validity_ms(credentials.certificate)
        now = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: (end - 1_000) * 1_000_000)
        keeper = asyncio.create_task(renewal.keep_certificate_fresh(credentials, layout.pki / "absent.pem", plan.mesh))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(time, "time_ns", now)
        assert not keeper.done()
        assert len([r for r in caplog.records if r.message == "certificate not renewed"]) > 1
        keeper.cancel()
