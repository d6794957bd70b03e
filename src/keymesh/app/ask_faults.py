"""``--faults`` of ``keymesh sim ask``: ``cut=0.5/h:10m,region-death=0.1/h,loss=1%``, over what the file says.  Pure."""

from __future__ import annotations

import argparse
import re
from typing import Final

from msgspec import structs

from keymesh.app.args_common import duration_ms
from keymesh.app.config_ask import KINDS, AskConfig, AskFault, check_kind
from keymesh.model.errors import Refused
from keymesh.sim.ask.question import OF_MESSAGES

_RATE: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)/h(?::([0-9]{1,9}(?:ms|s|m|h|d)))?")
_SHARE: Final = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,6})?)%")


def with_faults(config: AskConfig, text: str) -> AskConfig:
    """``config`` with the kinds that ``text`` names as it says them, and the others as they were.  Raises Refused."""
    faults, messages = dict(config.faults), dict(config.messages)
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, said = part.partition("=")
        check_kind("faults", kind, (*KINDS, *OF_MESSAGES))
        if kind in OF_MESSAGES:
            share = _SHARE.fullmatch(said)
            if share is None:
                raise Refused.bad_field("faults", f"{kind}: a share of the messages, as in {kind}=0.1%")
            messages[kind] = float(share[1]) / 100
            continue
        rate = _RATE.fullmatch(said)
        if rate is None:
            raise Refused.bad_field("faults", f"{kind}: so many per hour, as in {kind}=0.5/h, or with a duration"
                                    f" {kind}=0.5/h:10m")  # fmt: skip
        old = faults.get(kind)
        faults[kind] = AskFault(per_hour=float(rate[1]), lasts_ms=old.lasts_ms if old else None)
        if rate[2] is not None:
            faults[kind] = structs.replace(faults[kind], lasts_ms=_duration(rate[2]))
        _checked(kind, faults[kind])
    changed = structs.replace(config, faults=faults, messages=messages)
    try:
        changed.check()
    except Refused as bad:
        raise Refused.bad_field("faults", bad.message) from bad
    return changed


def _duration(text: str) -> int:
    try:
        return duration_ms(text)
    except argparse.ArgumentTypeError as bad:
        raise Refused.bad_field("faults", str(bad)) from bad


def _checked(kind: str, fault: AskFault) -> None:
    try:
        fault.check()
    except Refused as bad:
        raise Refused.bad_field("faults", f"{kind}: {bad.message}") from bad
