"""Becomes a server: takes its user's rights, ties its life to its parent's, and executes it.

Usage: ``python -m keymesh.app.servers.launch PARENT-PID USER|'' PROGRAM [ARGUMENT...]``.  The kernel kills the server
when the *thread* that started it ends; so start servers from one that lasts.  Nothing is imported that need not be:
this runs once for every start of every server.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    parent, user, *command = argv
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # After the change of user, which would clear it.  SIGKILL: a server that is asked to end may wait for its clients.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the process that starts this server is gone")
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
