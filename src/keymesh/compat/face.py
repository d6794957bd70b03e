"""A face of another key service: one whole HTTP request in, one answer out.  Pure; the wire is ``adapters.face_http``.

What every face shares: where headers are found, and what its answer says of itself for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from keymesh.model.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceRequest:
    """``path`` and ``query`` as they came, still percent-encoded; ``headers`` with lower-case names, in their order.

    ``peer`` is an address for people; ``certificate`` the client's, DER, where it showed one that our root vouches
    for.  No content in ``repr``.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    peer: str
    certificate: bytes | None = field(default=None, repr=False)
    correlation_id: str

    def header(self, name: str) -> str | None:
        """The value of ``name`` (lower case); None where it is absent.  Raises Refused where it was given twice."""
        found = [value for key, value in self.headers if key == name]
        if len(found) > 1:
            raise Refused.bad_field(name, "given twice")
        return found[0] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceAnswer:
    """``operation`` is a word of the face's own, never the client's; ``said`` are facts for the log: no secret, no
    body.  ``notable``: worth a line though it went well."""

    status: int
    body: bytes = field(default=b"", repr=False)
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    operation: str = ""
    said: Mapping[str, str] = field(default_factory=dict)
    notable: bool = False


class Face(Protocol):
    """``name`` is what logs and metrics call it; ``body_max`` in bytes."""

    @property
    def name(self) -> str: ...

    @property
    def body_max(self) -> int: ...

    async def answer(self, request: FaceRequest) -> FaceAnswer:
        """Raises nothing but bugs."""
        ...

    def refuse(self, status: int, code: str, message: str) -> FaceAnswer:
        """The face's own form for what was refused before a request was whole, and for our bugs."""
        ...
