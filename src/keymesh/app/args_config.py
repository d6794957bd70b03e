"""``keymesh config``, ``core``, ``edge``: their arguments, and what every ``run`` takes."""

from __future__ import annotations

from typing import Any, Final

from keymesh.app import args_face, args_vault
from keymesh.app.args_common import Later
from keymesh.app.args_mesh import add_timing

ROLES: Final = ("registry", "core", "edge")


def add_run(which: Any, role: str) -> None:
    """``run`` of a role, in the foreground, from its own configuration."""
    run = which.add_parser(
        "run",
        help="serve in the foreground, from a configuration file",
        epilog=f"example: keymesh {role} run --config {role}.toml",
    )
    run.add_argument("--config", required=True, metavar="FILE", help="see `keymesh config check`, docs/deploy.md")
    run.set_defaults(run=Later(f"{role}_app", "run"), dir=None, region=None)


def _register_serve(actions: Any) -> None:
    serve = actions.add_parser(
        "serve",
        help="serve one service in the foreground, from the files of `keymesh pki enrol`",
        epilog="example: keymesh edge serve --uds /run/keymesh.sock --identity edge-identity --core https://10.0.0.2:7601",
    )
    _add_own_edge(serve)
    serve.add_argument("--tcp", metavar="HOST:PORT", help="serve there too, over mutual TLS")
    serve.add_argument("--caller", action="append", default=[], metavar="UID=T/S", help="another user that may use it")
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="processes that serve (default 1)")
    serve.set_defaults(run=Later("cli_edge_serve", "run_serve"), dir=None, json=False)
    kms = actions.add_parser(
        "k8s-kms",
        help="be the KMS v2 plugin of a Kubernetes API server, from the files of `keymesh pki enrol`",
        epilog="example: keymesh edge k8s-kms --uds /run/keymesh/kms.sock --identity edge-identity"
        " --core https://10.0.0.2:7601",
    )
    _add_own_edge(kms)
    kms.set_defaults(run=Later("cli_edge_k8s", "run_k8s_kms"), dir=None, json=False)


def _add_own_edge(parser: Any) -> None:
    """What an Edge of one service needs, where there is no configuration."""
    parser.add_argument("--uds", required=True, metavar="PATH", help="Unix socket to serve on")
    parser.add_argument("--identity", required=True, metavar="D", help="directory that `keymesh pki enrol -o D` made")
    parser.add_argument("--core", required=True, action="append", metavar="URL", help="repeat for more, in order")
    parser.add_argument(
        "--state", metavar="D", help="where renewed certificates are kept (default: serve, in --identity)"
    )
    parser.add_argument("--allow-unlocked-memory", action="store_true", help="start though memory cannot be locked")


def _register_enrolment(actions: Any) -> None:
    """Of an Edge that no administrator's machine reaches: a request goes out, a certificate comes in, by hand."""
    request = actions.add_parser(
        "request",
        help="a certificate request for one service, from the running Edge; its key never leaves it",
        epilog="example: keymesh edge request acme/files --config edge.toml -o acme-files.request",
    )
    request.add_argument("service", metavar="T/S", help="what the Edge may mint and open for")
    request.add_argument("--config", required=True, metavar="FILE", help="the Edge's own")
    request.add_argument("-o", "--output", metavar="FILE", required=True, help="for `keymesh pki issue`")
    request.set_defaults(run=Later("cli_edge", "run_request"))
    install = actions.add_parser(
        "install",
        help="hand the running Edge the certificate for its request",
        epilog="example: keymesh edge install acme-files.certificate --config edge.toml",
    )
    install.add_argument("certificate", metavar="FILE", help="what `keymesh pki issue` wrote")
    install.add_argument("--config", required=True, metavar="FILE", help="the Edge's own")
    install.set_defaults(run=Later("cli_edge", "run_install"))
    for parser in (request, install):
        parser.add_argument("--json", action="store_true", help="print one JSON object for machines")


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    for role, what in (("core", "a region's Crypto Core"), ("edge", "an Edge host beside its applications")):
        parser = commands.add_parser(role, help=what)
        actions = parser.add_subparsers(dest=role, metavar="WHAT", required=True)
        add_run(actions, role)
        if role == "edge":
            _register_serve(actions)
            _register_enrolment(actions)
            args_face.register(actions)
            args_vault.register(actions)
    config = commands.add_parser("config", help="configuration files of roles on hosts of their own")
    which = config.add_subparsers(dest="config_command", metavar="WHAT", required=True)
    check = which.add_parser(
        "check",
        help="every fault of a file, with field, line and reason",
        epilog="example: keymesh config check core.toml --json",
    )
    check.set_defaults(run=Later("cli_config", "run_check"))
    show = which.add_parser(
        "show",
        help="the effective configuration, and where each value came from",
        epilog="example: keymesh config show core.toml",
    )
    show.set_defaults(run=Later("cli_config", "run_show"))
    for parser in (check, show):
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--role", choices=ROLES, help="default: the file's own `role` line")
        parser.add_argument("--json", action="store_true", help="print one JSON object for machines")
    _register_init(which)


def _register_init(which: Any) -> None:
    init = which.add_parser(
        "init",
        help="the development ceremony for roles on hosts of their own: a directory for each, with its configuration",
        epilog="example: keymesh config init --out mesh --regions us-east,us-west "
        "--host registry=10.0.0.1,us-east=10.0.0.2,us-west=10.0.0.3",
    )
    init.add_argument("--out", required=True, metavar="D", help="made; must not exist, or be empty")
    init.add_argument("--regions", metavar="R,...", help="name or name=domain (default: as `keymesh up`)")
    init.add_argument(
        "--host",
        metavar="H",
        help="where the roles run: one host, or ROLE=HOST,... with `registry` (`registry-r2`, ...), `customer-kms` or "
        "a region as ROLE (default: 127.0.0.1)",
    )
    init.add_argument(
        "--first-port", type=int, default=7600, metavar="N", help="the Registry's; the others' follow (default: 7600)"
    )
    shared = init.add_argument_group("several Registries", "which share an etcd, and best a PostgreSQL")
    shared.add_argument("--replicas", type=int, default=1, metavar="N", help="of the Registry (default: 1)")
    shared.add_argument("--etcd", default="", metavar="URL,...", help="https://HOST:PORT of each member")
    shared.add_argument("--postgresql", default="", metavar="URL,...", help="postgresql://HOST:PORT/DATABASE, in order")
    init.add_argument("--allow-unlocked-memory", action="store_true", help="run even where memory cannot be locked")
    add_timing(init.add_argument_group("timing", "of the mesh"))
    init.add_argument("--json", action="store_true", help="print one JSON object for machines")
    init.set_defaults(run=Later("cli_config", "run_init"))
