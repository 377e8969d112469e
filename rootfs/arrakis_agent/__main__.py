"""The agent's process: puts the parts together and serves until the port is lost."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from arrakis_rpc.guest_api import WORK_DIR

from .accepting_port import AcceptingPort, listen
from .clock import ClockSetter
from .commands import Commands
from .device import open_port, vsock_port
from .files import Files
from .health import HealthReporter
from .identity import IdentityKeeper
from .kernel import LinuxKernel
from .network import Networks
from .poller import Poller, run
from .port import Port, PortLostError
from .session import Handler
from .sessions import Sessions, TokenFile
from .spawn import Spawner, read_environment
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
    parser.add_argument("--listen-fd", type=int, help="one to accept on in place of vsock")
    parser.add_argument(
        "--state-dir", type=Path, default=Path("/run/arrakis-agent"), help="keeps the token"
    )
    parser.add_argument("--work-dir", default=WORK_DIR, help="what relative paths start from")
    parser.add_argument(
        "--environment",
        default="/usr/lib/arrakis/environment.json",
        help="what every command has in its environment",
    )
    return parser.parse_args(argv)


async def _serve(options: argparse.Namespace, poller: Poller) -> None:
    spawner = Spawner(options.work_dir, read_environment(options.environment))
    tools = Tools(spawner, poller)
    root = Path("/")
    kernel = LinuxKernel()
    files = Files(options.work_dir, tools.run)
    transfer = Transfer(options.work_dir)
    keeper = IdentityKeeper(root, kernel, Networks(root))
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
        "identity.apply": keeper.apply,
    }
    if (
        options.fd is None and options.listen_fd is None
    ):  # else it is a guest of a test's, with the host's files
        keeper.move_to_memory()
    warm_up()
    # What exists now stays. Without this each collection would walk over it, and touch
    # (that is: copy, in a restored machine) every page of it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
    port = _open(options, poller)
    await Sessions(port, TokenFile(options.state_dir), handlers).serve()


def _open(options: argparse.Namespace, poller: Poller) -> Port:
    if options.fd is not None:
        os.set_inheritable(options.fd, False)
        return Port(options.fd, poller, reconnects=False)
    if options.listen_fd is not None:
        os.set_inheritable(options.listen_fd, False)
        return AcceptingPort(socket.socket(fileno=options.listen_fd), poller)
    if (number := vsock_port()) is not None:
        return AcceptingPort(listen(number), poller)
    return Port(open_port(), poller, reconnects=True)


if __name__ == "__main__":
    sys.exit(main())
