"""Real servers from installed binaries, each in a private directory on loopback: for ``keymesh up --full`` and tests.

One module a technology.  ``prepare`` writes a directory (configuration, certificates, data files; safe to repeat) and
returns a ``ServerPlan``; whoever runs it, the supervisor or ``child.ServerProcess`` in a test or a bench, starts it as
a direct child and ends it by pid.
"""
