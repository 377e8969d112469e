"""The ``arrakisd`` command."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from functools import partial
from pathlib import Path

import trio

from arrakis_rpc.errors import ArrakisError

from . import __version__
from .daemon import run_daemon
from .logs.configure import configure_logs
from .settings.config import load_config
from .upkeep.sweep import sweep
from .wire.peer import domain_error_in

_MOST_FILES = 65536


def main() -> None:
    """Run the daemon in the foreground."""
    flags = _parse()
    settings = {"state_dir": flags.state, "socket": flags.socket, "http_address": flags.http}
    read_config = partial(load_config, flags.config, settings, os.environ)
    try:
        config = read_config()
        if flags.check_config:
            sys.stdout.write(config.to_toml())
            return
        if flags.leftovers or flags.sweep:
            found = sweep(config, remove=flags.sweep)
            told = [{"kind": one.kind, "name": one.name} for one in found]
            sys.stdout.write(f"{json.dumps(told)}\n")
            return
        configure_logs(config.log_format, config.log_level)
        _take_files()
        trio.run(run_daemon, config, read_config)
    except (ArrakisError, ExceptionGroup) as problem:
        error = domain_error_in(problem)
        if error is None:
            raise
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.exit(f"arrakisd: {error.message}{hint}")


def _take_files() -> None:
    """Open as many files as the system lets us: a shell's usual limit is that of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="arrakisd",
        description="Supervise microVM sandboxes and serve them on a Unix socket.",
        epilog="example: arrakisd --state /tmp/arrakis --socket /tmp/arrakis/arrakisd.sock",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, in TOML")
    parser.add_argument("--state", metavar="DIR", help="where images, snapshots and VMs are kept")
    parser.add_argument("--socket", metavar="PATH", help="where to listen")
    parser.add_argument("--http", metavar="HOST:PORT", help="where to listen for HTTP, too")
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective settings and exit"
    )
    parser.add_argument(
        "--leftovers", action="store_true", help="print what a killed daemon has left, and exit"
    )
    parser.add_argument("--sweep", action="store_true", help="remove it, print it, and exit")
    parser.add_argument("--version", action="version", version=f"arrakisd {__version__}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
