"""The customer's own hand on a SoftHSM2 token: what they would do with their tools, from a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from keymesh.adapters.pkcs11_config import TOKENS_FILE, TokenConfig
from keymesh.adapters.pkcs11_descriptor import Pkcs11Descriptor
from keymesh.app.l1_pkcs11 import parse_pkcs11
from keymesh.model import strict_json

_PRELUDE: Final = """
import json, os, sys
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
asked = json.load(sys.stdin)
library = pkcs11.lib(asked["module"])
token = library.get_token(token_label=asked["token"])
session = token.open(rw=True, user_pin=asked["pin"])
def keys(label):
    return list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: label}))
"""


def by_hand(config: TokenConfig, code: str) -> str:
    """Run ``code`` on the token in another process: ``session``, ``token``, ``keys(label)`` are there."""
    asked = {"module": config.module, "token": config.token, "pin": Path(config.pin_file).read_text().strip()}
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code],
        input=json.dumps(asked),
        env={**os.environ, **config.env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_key(config: TokenConfig, label: str, *, use: str = "ENCRYPT DECRYPT", **template: bool) -> None:
    """A key as the customer would make it; ``template`` changes attributes."""
    flags = "|".join(f"MechanismFlag.{word}" for word in use.split())
    attributes = {"SENSITIVE": True, "EXTRACTABLE": False} | template
    inside = ", ".join(f"Attribute.{name}: {value}" for name, value in attributes.items())
    by_hand(
        config,
        f"session.generate_key(KeyType.AES, 256, label={label!r}, store=True, capabilities={flags},"
        f" template={{{inside}}})",
    )


def destroy_key(config: TokenConfig, label: str) -> None:
    by_hand(config, f"[key.destroy() for key in keys({label!r})]")


def write_tokens(directory: Path, *configs: TokenConfig) -> None:
    """``pkcs11.json`` of a Core."""
    path = directory / TOKENS_FILE
    path.touch(mode=0o600)
    path.write_bytes(strict_json.dumps({"tokens": list(configs)}))


def named(config: TokenConfig, key: str) -> Pkcs11Descriptor:
    return parse_pkcs11(f"pkcs11:token={config.token};object={key}")
