"""Where a server listens: Unix sockets with the mode that fits their callers, TCP ports that workers share."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from keymesh.model.errors import Refused


def bind_unix(path: Path, *, shared: bool = False) -> socket.socket:
    """A bound Unix socket that only its owner can open, or with ``shared`` everybody (callers are then told apart by
    their credentials); a dead process's leftover is replaced.  Raises Refused ``address-in-use``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError as nobody:
            if not path.is_socket():  # a connection to any other file is refused as well
                raise Refused("address-in-use", f"{path.name} is there and not a socket", field="socket") from nobody
            path.unlink(missing_ok=True)
        except OSError as bad:
            raise Refused("address-in-use", f"cannot listen on {path.name}: {bad.strerror}", field="socket") from bad
        else:
            raise Refused("address-in-use", "another process listens on that socket", field="socket")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o111 if shared else 0o177)
    try:
        bound.bind(str(path))
    except OSError as bad:
        bound.close()
        raise Refused("address-in-use", f"cannot listen on {path.name}: {bad.strerror or bad}", field="socket") from bad
    finally:
        os.umask(before)
    return bound


def bind_tcp(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound TCP socket; ``shared``: on a port that workers of one host share.  Raises Refused ``address-in-use``."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as bad:
        raise Refused.bad_field("tcp", f"no address {host}: {bad.strerror or bad}") from bad
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(where)
    except OSError as bad:
        bound.close()
        raise Refused("address-in-use", f"cannot listen on {host}:{port}: {bad.strerror}", field="tcp") from bad
    return bound
