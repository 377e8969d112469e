"""The composition root: what is made in which order, and how it ends.

Start: lock the state, sweep what a crash left, choose hypervisor and accelerator, set up
the network, open the socket or take over systemd's, say READY. End: stop accepting, let the
calls finish or cancel them, end the VMs, take the network down, let go of the state.
"""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from arrakis_rootfs.store import ImageStore
from arrakis_rpc.errors import UnsupportedError

from . import __version__
from .host.files import impassable
from .host.net.registry import open_network
from .host.processes import mark_children
from .host.vmm.hypervisors import open_hypervisors
from .machines.admission import Admission
from .machines.events import Events
from .machines.groups import open_vmm_groups
from .machines.pool import Pool
from .machines.standby import Standbys
from .machines.supervisor import Supervisor
from .machines.surroundings import Surroundings
from .machines.templates import Templates
from .machines.warm import WarmGuests
from .rpc_server import RpcServer, open_unix_listener
from .rpc_session import RpcSessions
from .service import Service
from .settings.config import Config
from .settings.http import HttpConfig
from .settings.paths import StatePaths
from .storage.merging import Merger
from .storage.store import Store
from .storage.tokens import TokenStore
from .upkeep.health import HealthWatch
from .upkeep.metrics import Metrics
from .upkeep.reload import reload_settings
from .upkeep.self_check import feed_watchdog, wait_answering
from .upkeep.service_manager import is_watching, take_sockets, tell, watchdog_seconds
from .upkeep.sweep import left_in_the_way, locked, owner_of

if TYPE_CHECKING:
    from .http import HttpServer

_DRAIN_DEADLINE = 1.0
_END_DEADLINE = 8.0

log = structlog.get_logger()


async def run_daemon(config: Config, read_config: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT; on return nothing of it is left but stored data.

    SIGHUP takes over what ``read_config`` gives then, as far as it can change at run time.
    """
    paths = StatePaths(Path(config.state_dir))
    identity = config.vmm_identity()
    _check_reach(config, identity)
    with locked(paths):
        owner = owner_of(paths)
        await trio.to_thread.run_sync(_sweep, paths)
        store = Store(paths, identity[1] if identity else None)
        await trio.to_thread.run_sync(store.load)
        tokens = TokenStore(paths.tokens)
        await trio.to_thread.run_sync(tokens.load)
        hypervisors = await open_hypervisors(config)
        images = ImageStore(paths.images, Path(config.cache_dir) / "images")
        await images.sweep()
        events, admission = Events(), Admission(config.limits)
        with (
            open_vmm_groups(config, paths, admission.memory_mib) as groups,
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
        ):
            async with (
                open_network(config.network, paths.network, owner) as network,
                trio.open_nursery() as vmms,
                trio.open_nursery() as machines,
            ):
                merger = Merger(config, store)
                machines.start_soon(merger.run)
                surroundings = Surroundings(
                    config, paths, store, network, merger, admission=admission, groups=groups
                )
                pool = Pool(config.pool, store, hypervisors, admission)
                standbys = Standbys(vmms, pool, surroundings, hypervisors)
                guests = WarmGuests(vmms, pool, surroundings, standbys)
                vmms.start_soon(pool.run)
                templates = Templates(surroundings, images, hypervisors)
                with suppress(OSError):  # a full disk is no reason not to start
                    await templates.keep_images()
                supervisor = Supervisor(machines, surroundings, guests, pool, events)
                await supervisor.take_over(templates.check_compatible)
                health = HealthWatch(surroundings, supervisor, pool)
                machines.start_soon(health.run)
                metrics = Metrics(
                    store,
                    supervisor.states,
                    lambda: network.spare_taps,
                    lambda: len(standbys.waiting),
                    lambda: len(guests.waiting),
                    health.problems,
                    lambda: health.free_bytes,
                )
                metrics.watch_admission(admission, lambda: supervisor.waiting_turns)
                service = Service(
                    surroundings,
                    hypervisors,
                    supervisor,
                    templates,
                    images,
                    events,
                    tokens,
                    metrics,
                    health,
                )
                sessions = RpcSessions(service)
                metrics.watch_connections(lambda: sessions.connections)
                reload = partial(reload_settings, surroundings, read_config)
                async with _open_http(config.http, service, sessions, tokens) as http:
                    await _serve_until_signalled(
                        config, sessions, http, supervisor, signals, reload
                    )
                machines.cancel_scope.cancel()
                vmms.cancel_scope.cancel()
    log.info("stopped")


@asynccontextmanager
async def _open_http(
    config: HttpConfig, service: Service, sessions: RpcSessions, tokens: TokenStore
) -> AsyncIterator[HttpServer | None]:
    """Listen for HTTP for the length of a block, where the settings have an address for it."""
    if config.address is None:
        yield None
        return
    from .http import open_http_server  # not above: it takes as much memory as all the rest

    async with open_http_server(config, service, sessions, tokens) as server:
        yield server


async def _serve_until_signalled(
    config: Config,
    sessions: RpcSessions,
    http: HttpServer | None,
    supervisor: Supervisor,
    signals: AsyncIterator[int],
    reload: Callable[[], None],
) -> None:
    handed = next((one for one in take_sockets() if one.family == socket.AF_UNIX), None)
    path = Path(handed.getsockname() if handed else config.socket)
    listening = open_unix_listener(path, config.socket_gid(), handed)
    async with listening as listener, trio.open_nursery() as nursery:
        server = RpcServer(sessions)
        nursery.start_soon(server.serve, listener)
        if http is not None:
            nursery.start_soon(http.serve)
            await http.wait_accepting()
        if is_watching():
            await wait_answering(path)
        if (every := watchdog_seconds()) is not None:
            nursery.start_soon(feed_watchdog, path, every)
        gc.collect()
        gc.freeze()  # what lives as long as the daemon need not be looked through: 80 ms a time
        tell(READY=1)
        log.info("ready", version=__version__, socket=str(path), state=config.state_dir)
        while (number := await anext(signals)) == signal.SIGHUP:
            reload()
        tell(STOPPING=1)
        log.info("stopping", signal=signal.Signals(number).name)
        nursery.start_soon(_pass_over, signals)
        server.stop_accepting()
        async with trio.open_nursery() as draining:
            draining.start_soon(sessions.drain, _DRAIN_DEADLINE)
            if http is not None:
                draining.start_soon(http.drain, _DRAIN_DEADLINE)
        await supervisor.suspend_all()
        # Before the calls are cancelled: with its VMM a snapshot in its shielded pause ends too.
        with trio.move_on_after(_END_DEADLINE, shield=True):
            await supervisor.end_all()
        if http is not None:
            http.cut()
        nursery.cancel_scope.cancel()


async def _pass_over(signals: AsyncIterator[int]) -> None:
    """Let no further signal cut the end short: it is bounded in time anyway."""
    async for number in signals:
        log.info("stopping already", signal=signal.Signals(number).name)


def _check_reach(config: Config, identity: tuple[int, int] | None) -> None:
    """Find out before the first start, and not from a message of the VMM's."""
    for place in (config.state_dir, config.cache_dir):
        if identity and (barrier := impassable(Path(place) / "in", identity)):
            raise UnsupportedError(
                f"VMMs run as user '{config.vmm_user}', which cannot reach {place}",
                hint=f"chmod o+x {barrier}",
            )


def _sweep(paths: StatePaths) -> None:
    """End the processes and remove the files of a daemon that was killed. Blocks."""
    found = list(left_in_the_way(paths))
    for one in found:
        one.remove()
    if orphans := [one.name for one in found if one.kind == "process"]:
        log.warning("ended what a killed daemon has left running", processes=orphans)
    mark_children(owner_of(paths))
    paths.vms.mkdir(parents=True, exist_ok=True)
