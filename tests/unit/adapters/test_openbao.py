"""What each of OpenBao's answers means, written out; and that no other bytes mean anything."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.adapters.openbao import BaoRefused, OpenBao, Why, _Envelope, _understood, check_mount, check_name
from keymesh.adapters.openbao_keystore import OpenBaoKeyStore
from keymesh.adapters.openbao_l1 import _raise_no
from keymesh.adapters.openbao_login import AppRoleLogin
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.model.errors import Integrity, Refused, Unavailable


def errors(*texts: str) -> dict[str, Any]:
    return {"errors": list(texts)}


MATRIX: list[tuple[int, Any, Why | str]] = [
    (400, errors("encryption key not found"), Why.NO_KEY),
    (400, errors("refusing to use soft-deleted key"), Why.KEY_DELETED),
    (400, errors("ciphertext or signature version is disallowed by policy (too old)"), Why.VERSION_WITHDRAWN),
    (400, errors("cipher: message authentication failed"), Why.NOT_OPENED),
    (400, errors("invalid ciphertext: version is too new"), Why.NOT_OPENED),
    (400, errors("check-and-set parameter did not match the current version"), Why.CHANGED),
    (400, errors("invalid role or secret ID"), Why.LOGIN),
    (400, errors("invalid certificate or no client certificate supplied"), Why.LOGIN),
    (400, errors("anything else"), Why.OTHER),
    (400, errors(), Why.OTHER),
    (403, errors("permission denied"), Why.DENIED),
    (403, errors("1 error occurred:\n\t* permission denied\n\n"), Why.DENIED),
    (404, errors(), Why.ABSENT),
    (404, errors('no handler for route "x/y". route entry not found.'), Why.NO_MOUNT),
    (503, errors("Vault is sealed"), "sealed"),
    (503, errors("something else"), "openbao-answer"),
    (429, errors('request path "x": rate limit quota exceeded'), "throttled"),
    (429, {"initialized": True, "sealed": False, "standby": True}, "standby"),
    (473, {"standby": True}, "standby"),
    (307, {}, "standby"),
    (500, errors("internal error"), "openbao-answer"),
    (500, errors("permission denied"), "openbao-answer"),
    (502, errors("encryption key not found"), "openbao-answer"),
    (200, errors("permission denied"), "openbao-answer"),
    (401, errors("permission denied"), "openbao-answer"),
    (403, {"data": {}}, "openbao-answer"),
    (403, {"errors": "permission denied"}, "openbao-answer"),
    (403, ["permission denied"], "openbao-answer"),
    (400, {"errors": [1]}, "openbao-answer"),
]


@pytest.mark.parametrize(("status", "body", "meaning"), MATRIX)
def test_every_answer_has_one_meaning(status: int, body: Any, meaning: Why | str) -> None:
    with pytest.raises((BaoRefused, Unavailable)) as said:
        _understood(status, json.dumps(body).encode(), may_miss=False)
    if isinstance(meaning, Why):
        assert isinstance(said.value, BaoRefused)
        assert said.value.why is meaning
    else:
        assert isinstance(said.value, Unavailable)
        assert said.value.code == meaning


def test_what_is_missing_may_be_an_answer() -> None:
    deleted = {"data": {"data": None, "metadata": {"version": 2}}}
    for body, data in ((errors(), None), (deleted, deleted["data"])):
        found = _understood(404, json.dumps(body).encode(), may_miss=True)
        assert (found.errors, found.data) == ([], data)
    with pytest.raises(BaoRefused):
        _understood(404, json.dumps(errors("no handler for route")).encode(), may_miss=True)
    assert _understood(204, b"", may_miss=False) == _Envelope()


L1_WORDS: dict[Why, type[Exception]] = {
    Why.DENIED: L1Denied,
    Why.LOGIN: L1Denied,
    Why.ABSENT: L1Denied,
    Why.NO_MOUNT: L1Denied,
    Why.NO_KEY: L1Denied,
    Why.KEY_DELETED: L1Denied,
    Why.VERSION_WITHDRAWN: L1Denied,
    Why.NOT_OPENED: Integrity,
    Why.CHANGED: L1Unreachable,
    Why.OTHER: L1Unreachable,
}


@pytest.mark.parametrize("why", Why)
def test_what_each_refusal_says_of_a_root_key(why: Why) -> None:
    with pytest.raises(L1_WORDS[why]):
        _raise_no(BaoRefused(why))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["data", "auth", "errors", "x"]), inner)
    ),
    max_leaves=12,
)


@given(status=st.integers(100, 599), raw=st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_answer_a_refusal_or_silence(status: int, raw: bytes) -> None:
    try:
        answer = _understood(status, raw, may_miss=False)
    except (BaoRefused, Unavailable):
        return
    assert 200 <= status < 300
    assert answer.errors is None


@pytest.mark.parametrize(
    "path", ["", "/", "a/", "/a", "a//b", "..", "a/../b", "a b", "a?b", "a%2f", "a/" * 9, "é", "x" * 64]
)
def test_paths_are_of_plain_names(path: str) -> None:
    with pytest.raises(Refused, match="mount"):
        check_mount("mount", path)
    with pytest.raises(Refused, match="key"):
        check_name("key", path)


class Recording(OpenBao):
    """Notes what it is asked, and answers nothing."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(["https://bao.test:8200"], ssl.create_default_context(), AppRoleLogin(tmp_path / "none"))
        self.asked: list[tuple[str, bool]] = []

    async def call(self, method: str, path: str, body: Any = None, *, repeatable: bool = True) -> Any:
        self.asked.append((path, repeatable))


async def test_no_write_is_sent_twice(tmp_path: Path) -> None:
    """A blob neither: the first may arrive long after the second was answered, and the blob dropped."""
    bao = Recording(tmp_path)
    store = OpenBaoKeyStore(bao, mount="kv", prefix="core")
    await store.put_blob("acme", "ab", b"blob")
    assert bao.asked == [("kv/data/core/blobs/acme/ab", False)]
