"""One worker of an Edge host with several: started by ``edge_app``'s parent process, with the sidecar's arguments."""

from __future__ import annotations

import argparse
import sys

from keymesh.app.logs import setup_logging
from keymesh.edge import sidecar_process


def main() -> int:
    """Serve until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser()
    sidecar_process.add_arguments(parser)
    args = parser.parse_args()
    setup_logging(f"edge-{args.region}")
    return sidecar_process.main(args)


if __name__ == "__main__":
    sys.exit(main())
