"""The agent's process: puts the parts together and serves until the port is lost."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from arrakis_rpc.guest_api import WORK_DIR

from .clock import ClockSetter
from .commands import Commands
from .device import open_port
from .files import Files
from .health import HealthReporter
from .identity import IdentityKeeper
from .kernel import LinuxKernel
from .network import Networks
from .poller import Poller, run
from .port import Port, PortLostError
from .session import Handler
from .sessions import Sessions, TokenFile
from .spawn import Spawner
from .tools import Tools
from .transfer import Transfer
from .warmup import warm_up

_COLLECT_EVERY = 50_000

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent; give its exit status."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    os.umask(0o022)
    try:
        run(partial(_serve, options))
    except PortLostError as error:
        _log.error("%s", error)
    return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="arrakis-agent", description=__doc__)
    parser.add_argument("--fd", type=int, help="an open socket to use in place of the port")
    parser.add_argument(
        "--state-dir", type=Path, default=Path("/run/arrakis-agent"), help="keeps the token"
    )
    parser.add_argument("--work-dir", default=WORK_DIR, help="what relative paths start from")
    return parser.parse_args(argv)


async def _serve(options: argparse.Namespace, poller: Poller) -> None:
    spawner = Spawner(options.work_dir)
    tools = Tools(spawner, poller)
    root = Path("/")
    kernel = LinuxKernel()
    files = Files(options.work_dir, tools.run)
    transfer = Transfer(options.work_dir)
    handlers: dict[str, Handler] = {
        "agent.health": HealthReporter(root, tools.run).report,
        "clock.set": ClockSetter(kernel).set,
        "exec.run": Commands(spawner, poller).run,
        "file.list": files.list,
        "file.mkdir": files.mkdir,
        "file.read": transfer.read,
        "file.remove": files.remove,
        "file.stat": files.stat,
        "file.write": transfer.write,
        "identity.apply": IdentityKeeper(root, kernel, Networks(root, tools.run)).apply,
    }
    warm_up()
    # What exists now stays. Without this each collection would walk over it, and touch
    # (that is: copy, in a restored machine) every page of it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
    fd = open_port() if options.fd is None else options.fd
    os.set_inheritable(fd, False)
    port = Port(fd, poller, reconnects=options.fd is None)
    await Sessions(port, TokenFile(options.state_dir), handlers).serve()


if __name__ == "__main__":
    sys.exit(main())
