"""A switch between network namespaces, with a weather of its own: frames of one port are carried to another, or not.

Each port is a TAP device in a namespace; a thread carries its Ethernet frames.  Every way (from one port to another)
has a rule of its own, so cuts may be one-way, and chance of its own, drawn from the seed: frames are lost, held back,
or held back longer so that later ones overtake them.  What is lost is lost silently, as on a real network.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NETWORK: Final = "10.213"
TAG: Final = "km"
FRAME_MAX_BYTES: Final = 2_048
HELD_MAX: Final = 20_000
REORDERED_S: Final = 0.03
"""How much longer a frame is held back so that others overtake it."""
_TUNSETIFF: Final = 0x400454CA
_TAP_NO_INFO: Final = 0x0002 | 0x1000
_TICK_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Rule:
    """``loss``, ``reorder``: shares of the frames."""

    cut: bool = False
    loss: float = 0.0
    delay_ms: float = 0.0
    reorder: float = 0.0


FAIR: Final = Rule()
CUT: Final = Rule(cut=True)


@dataclass(slots=True)
class Port:
    """``namespace`` empty: that of the test itself."""

    name: str
    number: int
    namespace: str
    fd: int
    device: str
    address: str

    @property
    def mac(self) -> bytes:
        return bytes((2, 0, 0, 0, 0, self.number))


@dataclass(slots=True)
class Counts:
    carried: int = 0
    cut: int = 0
    lost: int = 0
    reordered: int = 0


@dataclass(slots=True)
class Switch:
    """``start`` after all ports are there; rules may change at any time.  Needs root.

    Devices, namespaces and addresses (10.213.X.<port>) are those of this process, so that two may run at once.
    """

    seed: int
    ports: dict[str, Port] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    _rules: dict[tuple[str, str], Rule] = field(default_factory=dict)
    _chance: dict[tuple[str, str], random.Random] = field(default_factory=dict)
    _held: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _order: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    # --- ports -------------------------------------------------------------------------------------------------------

    def attach(self, name: str, number: int, *, own: bool = False) -> Port:
        """A port in a namespace made for it, or with ``own`` in the test's."""
        device = f"{TAG}{os.getpid()}p{number}"
        address = f"{NETWORK}.{os.getpid() % 250}.{number}"
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", device.encode(), _TAP_NO_INFO))
        port = Port(name, number, "" if own else f"{TAG}{os.getpid()}-{name}", fd, device, address)
        self.ports[name] = port
        if not own:
            ip("netns", "add", port.namespace)
            ip("link", "set", device, "netns", port.namespace)
            ip("link", "set", "lo", "up", namespace=port.namespace)
        ip("link", "set", device, "address", port.mac.hex(":"), namespace=port.namespace)
        ip("addr", "add", f"{port.address}/24", "dev", device, namespace=port.namespace)
        ip("link", "set", device, "up", namespace=port.namespace)
        return port

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Also of a switch that was never started; its namespaces go."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for port in self.ports.values():
            os.close(port.fd)
            if port.namespace:
                ip("netns", "del", port.namespace)

    # --- rules -------------------------------------------------------------------------------------------------------

    def rule(self, src: str, dst: str, rule: Rule) -> None:
        """From ``src`` to ``dst``, one way; ``*``: every port but the test's own."""
        for a in self._named(src):
            for b in self._named(dst):
                if a != b:
                    self._rules[a, b] = rule

    def cut(self, one: str, other: str = "*") -> None:
        """Both ways."""
        self.rule(one, other, CUT)
        self.rule(other, one, CUT)

    def heal(self) -> None:
        self._rules.clear()

    def _named(self, name: str) -> list[str]:
        return [port.name for port in self.ports.values() if port.namespace] if name == "*" else [name]

    # --- frames ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        by_mac = {port.mac: port for port in self.ports.values()}
        with selectors.DefaultSelector() as ready:
            for port in self.ports.values():
                ready.register(port.fd, selectors.EVENT_READ, port)
            while not self._stopping.is_set():
                wait_s = max(0.0, min(_TICK_S, self._held[0][0] - time.monotonic())) if self._held else _TICK_S
                for key, _ in ready.select(wait_s):
                    self._read(key.data, by_mac)
                while self._held and self._held[0][0] <= time.monotonic():
                    _, _, fd, frame = heapq.heappop(self._held)
                    _write(fd, frame)

    def _read(self, src: Port, by_mac: dict[bytes, Port]) -> None:
        while True:
            try:
                frame = os.read(src.fd, FRAME_MAX_BYTES)
            except BlockingIOError:
                return
            is_for_all = frame[0] & 1
            known = by_mac.get(frame[:6])
            for dst in self.ports.values() if is_for_all else [known] if known is not None else []:
                if dst is not src:
                    self._carry(src.name, dst, frame)

    def _carry(self, src: str, dst: Port, frame: bytes) -> None:
        rule = self._rules.get((src, dst.name), FAIR)
        chance = self._chance.setdefault((src, dst.name), random.Random(f"{self.seed}/{src}/{dst.name}"))
        if rule.cut or len(self._held) >= HELD_MAX:
            self.counts.cut += 1
            return
        if chance.random() < rule.loss:
            self.counts.lost += 1
            return
        held_s = rule.delay_ms / 1_000
        if chance.random() < rule.reorder:
            held_s += REORDERED_S
            self.counts.reordered += 1
        self.counts.carried += 1
        if held_s:
            self._order += 1
            heapq.heappush(self._held, (time.monotonic() + held_s, self._order, dst.fd, frame))
        else:
            _write(dst.fd, frame)


def _write(fd: int, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # its queue is full, or its device is going: lost
        os.write(fd, frame)


def ip(*words: str, namespace: str = "") -> None:
    """``ip`` in that namespace, which must succeed."""
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(["ip", *where, *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def sweep() -> None:
    """Remove the namespaces of processes that ended without a word."""
    for left in Path("/run/netns").glob(f"{TAG}[0-9]*-*"):
        if not Path("/proc", left.name.partition("-")[0].removeprefix(TAG)).exists():
            ip("netns", "del", left.name)
