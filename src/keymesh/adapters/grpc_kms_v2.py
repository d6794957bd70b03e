"""``v2.KeyManagementService`` on a Unix socket, by gRPC: what a Kubernetes API server connects to.

The messages are described here rather than generated: seven, of a few fields each.  Decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from keymesh.compat.k8s_kms import KubernetesKms
from keymesh.model.errors import KeymeshError, Refused, Unavailable

SERVICE: Final = "v2.KeyManagementService"
MESSAGE_MAX_BYTES: Final = 64 * 1024
RPCS_MAX: Final = 64
STOP_S: Final = 3.0
PATH_MAX_BYTES: Final = 100

_STRING: Final = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_BYTES: Final = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
_MESSAGE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
_ONE: Final = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
_MANY: Final = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
_ANNOTATIONS: Final = "annotations"
_SHAPES: Final[dict[str, tuple[tuple[str, int, int], ...]]] = {
    "StatusRequest": (),
    "StatusResponse": (("version", 1, _STRING), ("healthz", 2, _STRING), ("key_id", 3, _STRING)),
    "EncryptRequest": (("plaintext", 1, _BYTES), ("uid", 2, _STRING)),
    "EncryptResponse": (("ciphertext", 1, _BYTES), ("key_id", 2, _STRING), (_ANNOTATIONS, 3, _MESSAGE)),
    "DecryptRequest": (
        ("ciphertext", 1, _BYTES),
        ("uid", 2, _STRING),
        ("key_id", 3, _STRING),
        (_ANNOTATIONS, 4, _MESSAGE),
    ),
    "DecryptResponse": (("plaintext", 1, _BYTES),),
}


def _described() -> dict[str, Any]:
    """A class for each message, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="keymesh/kms_v2.proto", package="v2", syntax="proto3")
    for name, fields in _SHAPES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            if field != _ANNOTATIONS:
                message.field.add(name=field, number=number, type=kind, label=_ONE)
                continue
            entry = message.nested_type.add(name="AnnotationsEntry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=_STRING, label=_ONE)
            entry.field.add(name="value", number=2, type=_BYTES, label=_ONE)
            message.field.add(
                name=field, number=number, type=kind, label=_MANY, type_name=f".v2.{name}.AnnotationsEntry"
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v2.{name}")) for name in _SHAPES}


MESSAGES: Final = _described()


def status_code(why: KeymeshError) -> grpc.StatusCode:
    """Final errors are not to be retried; an authentication that failed says no more than malformed input does."""
    if why.code == "budget-spent":
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(why, Unavailable):
        return grpc.StatusCode.UNAVAILABLE
    if isinstance(why, Refused) and why.code != "bad-field":
        return grpc.StatusCode.PERMISSION_DENIED
    return grpc.StatusCode.INVALID_ARGUMENT


class KmsV2Server:
    """Serves ``kms`` on the Unix socket ``path``, which only its owner can open.  Use it on one asyncio loop."""

    def __init__(self, kms: KubernetesKms, path: Path) -> None:
        """Raises Refused for a path too long for a socket."""
        if len(os.fsencode(path)) > PATH_MAX_BYTES:
            raise Refused.bad_field("socket", f"a path of at most {PATH_MAX_BYTES} bytes")
        self._kms = kms
        self._path = path
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=RPCS_MAX,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
                ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
                ("grpc.so_reuseport", 0),
            ],
        )
        calls = {"Status": self._status, "Encrypt": self._encrypt, "Decrypt": self._decrypt}
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(call),
                request_deserializer=MESSAGES[f"{name}Request"].FromString,
                response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
            )
            for name, call in calls.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self) -> None:
        """Raises Refused where the socket cannot be had; what a dead process left there is to be gone by now."""
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as bad:
            raise Refused("address-in-use", f"cannot listen on {self._path.name}", field="socket") from bad
        finally:
            os.umask(before)
        await self._server.start()

    async def stop(self) -> None:
        """Finish what is being answered, within seconds."""
        await self._server.stop(STOP_S)
        self._path.unlink(missing_ok=True)

    async def _status(self, _: Any) -> Any:
        return MESSAGES["StatusResponse"](**(await self._kms.status())._asdict())

    async def _encrypt(self, request: Any) -> Any:
        return MESSAGES["EncryptResponse"](**(await self._kms.encrypt(request.plaintext, request.uid))._asdict())

    async def _decrypt(self, request: Any) -> Any:
        plaintext = await self._kms.decrypt(request.ciphertext, request.uid, request.key_id, tuple(request.annotations))
        return MESSAGES["DecryptResponse"](plaintext=plaintext)


def _answering(call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """``call`` with our errors as status codes."""

    async def answer(request: Any, context: Any) -> Any:
        try:
            return await call(request)
        except KeymeshError as why:
            return await context.abort(status_code(why), f"{why.message} [{why.code}]")

    return answer
