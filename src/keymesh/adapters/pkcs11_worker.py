"""The process that loads a PKCS#11 library: one for each token, started by ``pkcs11_process``, gone with its parent.

A vendor's library may hang, crash, or keep what it once saw of a token for ever; here it does so outside the Core, and
is ended by ``kill -9``.  Serves one request after the other from its standard input until that ends.  Holds no key of
ours for longer than one request.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import BinaryIO, Final

from keymesh.adapters.pkcs11_messages import (
    Answer,
    Done,
    Failed,
    MakeKey,
    Open,
    Request,
    Unwrap,
    Why,
    Wrap,
    pack,
    read_request,
)
from keymesh.crypto.pages import harden_process

_PR_SET_PDEATHSIG: Final = 1


def main(parent: int) -> int:
    """Until standard input ends, or ``parent`` (a pid) is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    harden_process(allow_unlocked_memory=True)
    serve(sys.stdin.buffer, answers)
    return 0


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer each request; after a failed ``Open`` every one the same."""
    try:
        from keymesh.adapters.pkcs11_token import Token, TokenFailed, open_token
    except ImportError:
        answers.write(pack(Failed(Why.LIBRARY, "python-pkcs11 is not installed")))
        answers.flush()
        return

    def carry_out(request: Request, token: Token) -> Answer:
        match request:
            case Wrap(key=key, plain=plain, aad=aad):
                return Done(token.wrap(key, plain, aad))
            case Unwrap(key=key, wrapped=wrapped, aad=aad):
                return Done(token.unwrap(key, wrapped, aad))
            case MakeKey(key=key):
                token.make_key(key)
                return Done()
            case Open():
                return Failed(Why.DEVICE, "opened twice")

    token: Token | None = None
    while (request := read_request(requests)) is not None:
        answer: Answer
        try:
            if token is None:
                if not isinstance(request, Open):
                    return
                token, answer = open_token(request), Done()
            else:
                answer = carry_out(request, token)
        except TokenFailed as failed:
            answer = Failed(failed.why, failed.detail)
        answers.write(pack(answer))
        answers.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
