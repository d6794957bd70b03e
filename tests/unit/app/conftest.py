"""A founded mesh to copy, made once where a module asks for it (``usefixtures("template")``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.app import founded


@pytest.fixture(scope="session")
def template() -> Iterator[None]:
    founded.make_template()
    yield
    founded.forget()
