"""Backups as a Registry and a Core have them: routes, who may ask, and sections that are another role's."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from tests.unit.app.founded import founded
from tests.unit.app.test_processes import Face, life_of_registry, registry

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.app.backup_domain import core_keeper
from keymesh.app.backup_files import load_recovery_key
from keymesh.app.backup_registry import registry_keeper
from keymesh.app.backup_verify import Opener, verify_registry
from keymesh.app.backup_wiring import backup_routes
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.core_app import CoreProcess
from keymesh.app.signing_keys import load_signer
from keymesh.app.trust_file import load_trust
from keymesh.control.signing import DsseSuite, VerifyOnly
from keymesh.control.trust import Pins
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import KeyId

pytestmark = pytest.mark.usefixtures("template")

STRANGER = "spiffe://dev/admin/stranger"


async def test_the_registry_backs_up_when_an_operator_asks_and_says_where_it_stands() -> None:
    with founded() as (layout, plan):
        async with life_of_registry(layout, plan) as (process, face):
            doors = Face(backup_routes(process.backups))
            before = await doors.ask("GET", "/v1/backups")
            assert (before["seq"], before["failing"]) == (0, "")
            made = await doors.ask("POST", "/v1/backups", body={})
            assert (made["seq"], made["epoch"], made["index"], made["entries"], made["failing"]) == (1, 1, 1, 1, "")
            assert (await doors.ask("POST", "/v1/backups", body={}))["seq"] == 1  # nothing is new
            assert (await doors.ask("POST", "/v1/backups", body={"full": True}))["seq"] == 2
            assert (await face.ask("GET", "/v1/status"))["backup"]["seq"] == 2
            for body in ({"full": 1}, {"fast": True}):
                with pytest.raises(Refused):
                    await doors.ask("POST", "/v1/backups", body=body)
            for method in ("GET", "POST"):
                with pytest.raises(Refused) as refused:
                    await doors.ask(method, "/v1/backups", STRANGER, {})
                assert refused.value.code == "denied"
        trust = load_trust(layout.trust)
        pins = Pins(
            mesh=trust.mesh,
            root_keys={KeyId(k): v for k, v in trust.root.keys.items()},
            threshold=trust.root.threshold,
        )
        opener = Opener(pins, DsseSuite(VerifyOnly()), load_recovery_key(layout.recovery_key), 2**50)
        report, replayed = verify_registry(DirectoryStore(layout.backups("")), opener)
        assert (report.manifests, replayed.index) == (2, 1)


async def test_a_process_without_a_section_has_no_backups_and_says_so() -> None:
    with founded() as (layout, plan):
        async with life_of_registry(layout, structs.replace(plan, recovery_keys=())) as (process, face):
            assert process.backups is None
            assert (await face.ask("GET", "/v1/status"))["backup"] is None
            for method in ("GET", "POST"):
                with pytest.raises(Refused) as refused:
                    await Face(backup_routes(None)).ask(method, "/v1/backups", body={})
                assert refused.value.code == "not-configured"


async def test_a_section_of_another_role_is_refused_at_the_start() -> None:
    with founded() as (layout, plan):
        config: Any = registry_config_of(layout, plan)
        async with registry() as (process, _):
            process.config = structs.replace(config, backup=structs.replace(config.backup, domain="us"))
            with pytest.raises(Refused) as refused:
                registry_keeper(process, load_signer(layout.registry / "signing.pem").signer)
            assert refused.value.field == "backup.domain"
        core = CoreProcess(core_config_of(layout, plan, "us-east"))
        signer = load_signer(layout.core("us-east") / "signing.pem").signer
        with pytest.raises(Unavailable):  # it has heard of no mesh yet
            await Face(backup_routes(core.backups)).ask("POST", "/v1/backups", body={})
        core.config = structs.replace(core.config, backup=config.backup)
        with pytest.raises(Refused) as refused:
            core_keeper(core, signer)
        assert refused.value.field == "backup.domain"
        core.config = structs.replace(core.config, backup=None)
        assert core_keeper(core, signer) is None
        core.receipts.close()
        core.records.close()
        core.voter_records.close()
