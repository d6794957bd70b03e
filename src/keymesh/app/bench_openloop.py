"""An open-loop load generator: requests are due at a constant rate, whatever the server does.

Latency counts from when a request was due, so a server that stalls is charged for everybody who would have waited.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import ssl
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

CONNECTIONS: Final = 16
HEAD_END: Final = b"\r\n\r\n"
SPIN_NS: Final = 60_000
GIVE_UP_S: Final = 5.0


def quantile(ordered: list[int], q: float) -> float:
    """In ms, of ns that are in order."""
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1e6, 4)


class Wire:
    """One connection, answers of one known size in the order of the requests."""

    def __init__(self, to: str, tls: Path | None = None) -> None:
        """``to``: a Unix socket's path, or with ``tls``, a directory with our certificate, HOST:PORT."""
        if tls is None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(to)
        else:
            host, _, port = to.rpartition(":")
            context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
            context.check_hostname = False  # names here are URIs
            context.load_cert_chain(tls / "edge.pem")
            bare = socket.create_connection((host, int(port)))
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = context.wrap_socket(bare)
        self.due: deque[int] = deque()
        self.owed = 0

    def size_of(self, raw: bytes) -> int:
        """Bytes of one answer to ``raw``.  Raises SystemExit unless it is a 200."""
        self.socket.sendall(raw)
        answer = b""
        while HEAD_END not in answer:
            answer += self.socket.recv(65_536)
        head, _, body = answer.partition(HEAD_END)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"the server answered {head.splitlines()[0]!r}")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += self.socket.recv(65_536)
        return len(head) + len(HEAD_END) + length


def offer(to: str, raw: bytes, *, rate: int, seconds: float) -> dict[str, float]:
    """Offer ``rate`` requests a second; latencies in ms by quantile, and how late the sends were themselves.

    Every answer has the size of the first one.  Raises SystemExit where it has not, or none comes.
    """
    wires = [Wire(to) for _ in range(CONNECTIONS)]
    size = max([wire.size_of(raw) for wire in wires])
    poll = selectors.EpollSelector()
    for wire in wires:
        wire.socket.setblocking(False)
        poll.register(wire.socket, selectors.EVENT_READ, wire)
    step, total = 1_000_000_000 // rate, int(rate * seconds)
    clock = time.perf_counter_ns
    start = clock() + 10_000_000
    took: list[int] = []
    late: list[int] = []
    sent = 0
    while len(took) < total:
        now = clock()
        while sent < total and (due := start + sent * step) <= now:
            wire = wires[sent % CONNECTIONS]
            wire.due.append(due)
            wire.socket.sendall(raw)
            late.append(clock() - due)
            sent += 1
        wait_ns = start + sent * step - clock() if sent < total else 1_000_000
        for key, _ in poll.select(0 if wait_ns < SPIN_NS else wait_ns / 1e9):
            wire = key.data
            wire.owed += len(wire.socket.recv(65_536))
            now = clock()
            while wire.owed >= size and wire.due:
                wire.owed -= size
                took.append(now - wire.due.popleft())
        if clock() - start > (seconds + GIVE_UP_S) * 1e9:
            raise SystemExit(f"{total - len(took)} answers are missing")
    if any(wire.owed for wire in wires):
        raise SystemExit("answers were not of one size")
    took.sort()
    late.sort()
    return {
        "p50_ms": quantile(took, 0.5),
        "p99_ms": quantile(took, 0.99),
        "p999_ms": quantile(took, 0.999),
        "send_late_p99_ms": quantile(late, 0.99),
    }


def one_by_one(to: str, raw: bytes, *, seconds: float, tls: Path | None = None) -> dict[str, float]:
    """One request at a time over one connection: latencies in ms."""
    wire = Wire(to, tls)
    size = wire.size_of(raw)
    clock, took = time.perf_counter_ns, []
    end = clock() + int(seconds * 1e9)
    send, receive = wire.socket.sendall, wire.socket.recv
    while (began := clock()) < end:
        send(raw)
        got = len(receive(65_536))
        while got < size:
            got += len(receive(65_536))
        took.append(clock() - began)
    took.sort()
    return {"p50_ms": quantile(took, 0.5), "p99_ms": quantile(took, 0.99), "per_s": round(len(took) / seconds)}


def main() -> int:
    """``--to PATH [--tls D] --path P --body B [--rate N] --seconds S [--cpu N]``; one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", required=True)
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", default="{}")
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    raw = (
        f"POST {args.path} HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(args.body)}\r\n\r\n{args.body}"
    ).encode()
    if args.rate:
        found = offer(args.to, raw, rate=args.rate, seconds=args.seconds)
    else:
        found = one_by_one(args.to, raw, seconds=args.seconds, tls=args.tls)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
