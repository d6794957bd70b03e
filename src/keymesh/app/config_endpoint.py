"""One address of a shared dependency in a configuration file, with its own credentials.

A dependency takes an ordered list of these: the first that serves is used, the next when it does not.  Secrets are
never in the configuration: ``password_file`` and ``key_file`` name files that only the process may read.
"""

from __future__ import annotations

from msgspec import Struct


class Endpoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``url``: scheme, host, port and what the technology puts behind them; never a password.

    ``ca_file``: PEM of the only authorities that are believed.  ``cert_file``: PEM of the client's certificate chain;
    its key lies in ``key_file``, or in the same file.  ``username`` and ``password_file`` where there is no
    certificate, or the technology wants both.
    """

    url: str
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    username: str | None = None
    password_file: str | None = None
