"""Fuzz targets with faults in them, which the runner must find."""

from __future__ import annotations

import os
import random
import signal
import time

BAD = 37


class Sound:
    """Takes everything."""

    def make(self, rng: random.Random) -> bytes:
        return rng.randbytes(8)

    def run(self, data: bytes) -> None:
        pass


class Numbered(Sound):
    """Knows the number of the input it is fed."""

    def __init__(self) -> None:
        self.fed = -1

    def run(self, data: bytes) -> None:
        self.fed += 1
        if self.fed == BAD:
            self.fail()

    def fail(self) -> None:
        raise ValueError("planted")


class Killed(Numbered):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Computing(Numbered):
    def fail(self) -> None:
        while True:
            pass


class Waiting(Numbered):
    def fail(self) -> None:
        time.sleep(3_600)


class Leaking(Sound):
    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def run(self, data: bytes) -> None:
        self.kept.append(bytes(bytearray(b"\1" * 1_000_000)))


class Broken(Sound):
    def run(self, data: bytes) -> None:
        raise ValueError("always")
