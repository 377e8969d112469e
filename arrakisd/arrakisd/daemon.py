"""The composition root: what is made in which order, and how it ends.

Start: lock the state, sweep what a crash left, choose hypervisor and accelerator, open the
socket, say READY. End: stop accepting, let the calls finish or cancel them, end the VMs, let
go of the state.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import trio

from arrakis_rootfs.store import ImageStore
from arrakis_rpc.errors import AlreadyExistsError, UnsupportedError

from . import __version__
from .config import Config
from .events import Events
from .host.files import impassable
from .host.vmm.interface import Driver, Verdict
from .host.vmm.registry import choose_driver
from .machine import Surroundings
from .paths import StatePaths
from .rpc_server import RpcServer, open_unix_listener
from .service import Service
from .store import Store
from .supervisor import Supervisor
from .templates import Templates

_DRAIN_DEADLINE = 1.0
_END_DEADLINE = 8.0

log = structlog.get_logger()


async def run_daemon(config: Config) -> None:
    """Run until SIGTERM or SIGINT; on return nothing of it is left but stored data."""
    paths = StatePaths(Path(config.state_dir))
    identity = config.vmm_identity()
    _check_reach(config, identity)
    with _locked(paths):
        await trio.to_thread.run_sync(_sweep, paths)
        store = Store(paths, identity[1] if identity else None)
        await trio.to_thread.run_sync(store.load)
        surroundings = Surroundings(config, paths, store)
        driver = choose_driver(config)
        verdict = await _choose_accelerator(driver)
        images = ImageStore(paths.images, Path(config.cache_dir) / "images")
        templates = Templates(surroundings, images, driver, verdict.accelerator)
        events = Events()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as machines:
                supervisor = Supervisor(machines, surroundings, driver, events)
                service = Service(
                    surroundings, driver, supervisor, templates, images, events, verdict
                )
                await _serve_until_signalled(config, service, supervisor, signals)
                machines.cancel_scope.cancel()
    log.info("stopped")


async def _serve_until_signalled(
    config: Config, service: Service, supervisor: Supervisor, signals: AsyncIterator[int]
) -> None:
    listening = open_unix_listener(Path(config.socket), config.socket_gid())
    async with listening as listener, trio.open_nursery() as nursery:
        server = RpcServer(service)
        nursery.start_soon(server.serve, listener)
        _notify("READY=1")
        log.info("ready", version=__version__, socket=config.socket, state=config.state_dir)
        number = await anext(signals)
        _notify("STOPPING=1")
        log.info("stopping", signal=signal.Signals(number).name)
        nursery.start_soon(_pass_over, signals)
        await server.drain(_DRAIN_DEADLINE)
        # Before the calls are cancelled: with its VMM a snapshot in its shielded pause ends too.
        with trio.move_on_after(_END_DEADLINE, shield=True):
            await supervisor.destroy_all()
        nursery.cancel_scope.cancel()


async def _pass_over(signals: AsyncIterator[int]) -> None:
    """Let no further signal cut the end short: it is bounded in time anyway."""
    async for number in signals:
        log.info("stopping already", signal=signal.Signals(number).name)


async def _choose_accelerator(driver: Driver) -> Verdict:
    verdict = await driver.choose_accelerator()
    if verdict.accelerator == "tcg":
        log.warning("guests are emulated, which is slow", reason=verdict.reason)
    else:
        log.info("accelerator", name=verdict.accelerator, reason=verdict.reason)
    return verdict


def _check_reach(config: Config, identity: tuple[int, int] | None) -> None:
    """Find out before the first start, and not from a message of the VMM's."""
    for place in (config.state_dir, config.cache_dir):
        if identity and (barrier := impassable(Path(place) / "in", identity)):
            raise UnsupportedError(
                f"VMMs run as user '{config.vmm_user}', which cannot reach {place}",
                hint=f"chmod o+x {barrier}",
            )


@contextmanager
def _locked(paths: StatePaths) -> Iterator[None]:
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnsupportedError(
            f"cannot keep state in {paths.root}: {error.strerror}",
            hint="choose another place with --state, or run as root",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AlreadyExistsError(
            f"another arrakisd uses {paths.root}",
            hint="stop it, or give this one another state directory with --state",
        ) from None
    finally:
        os.close(lock)


def _sweep(paths: StatePaths) -> None:
    # VMMs of a daemon that was killed were killed with it by the kernel.
    shutil.rmtree(paths.vms, ignore_errors=True)
    paths.vms.mkdir(parents=True)


def _notify(message: str) -> None:
    """Tell systemd, where there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        sender.send(message.encode())
