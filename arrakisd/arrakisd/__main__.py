"""The ``arrakisd`` command."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import trio

from arrakis_rpc.errors import ArrakisError

from . import __version__
from .config import load_config
from .daemon import run_daemon
from .logs import configure_logs
from .peer import domain_error_in


def main() -> None:
    """Run the daemon in the foreground."""
    flags = _parse()
    try:
        config = load_config(
            flags.config, {"state_dir": flags.state, "socket": flags.socket}, os.environ
        )
        if flags.check_config:
            sys.stdout.write(config.to_toml())
            return
        configure_logs(config.log_format, config.log_level)
        trio.run(run_daemon, config)
    except (ArrakisError, ExceptionGroup) as problem:
        error = domain_error_in(problem)
        if error is None:
            raise
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.exit(f"arrakisd: {error.message}{hint}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="arrakisd",
        description="Supervise microVM sandboxes and serve them on a Unix socket.",
        epilog="example: arrakisd --state /tmp/arrakis --socket /tmp/arrakis/arrakisd.sock",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, in TOML")
    parser.add_argument("--state", metavar="DIR", help="where images, snapshots and VMs are kept")
    parser.add_argument("--socket", metavar="PATH", help="where to listen")
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective settings and exit"
    )
    parser.add_argument("--version", action="version", version=f"arrakisd {__version__}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
