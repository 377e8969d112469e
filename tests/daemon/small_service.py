"""A service whose parts are real, on a directory of its own, and without a VM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from emulation import emulating

from arrakis_rootfs import ImageStore
from arrakisd.host.net.interface import NoNetwork
from arrakisd.machines.events import Events
from arrakisd.machines.pool import Pool
from arrakisd.machines.standby import Standbys
from arrakisd.machines.supervisor import Supervisor
from arrakisd.machines.surroundings import Surroundings
from arrakisd.machines.templates import Templates
from arrakisd.machines.warm import WarmGuests
from arrakisd.service import Service
from arrakisd.settings.config import Config
from arrakisd.settings.paths import StatePaths
from arrakisd.storage.merging import Merger
from arrakisd.storage.store import Store
from arrakisd.storage.tokens import TokenStore
from arrakisd.upkeep.health import HealthWatch
from arrakisd.upkeep.metrics import Metrics


@asynccontextmanager
async def small_service(root: Path, **changes: Any) -> AsyncIterator[tuple[Service, Metrics]]:
    """Give a service, and what it measures, for the length of a block.

    ``changes`` replace parts: what does not fit makes a defect on purpose.
    """
    config = Config(state_dir=str(root / "state"), cache_dir=str(root / "cache"))
    paths = StatePaths(root / "state")
    store = Store(paths, None)
    store.load()
    network = NoNetwork()
    surroundings = Surroundings(config, paths, store, network, Merger(config, store))
    images, events = ImageStore(root / "images"), Events()
    hypervisors = emulating(config)
    async with trio.open_nursery() as nursery:
        pool = Pool(config.pool, store, hypervisors, surroundings.admission)
        standbys = Standbys(nursery, pool, surroundings, hypervisors)
        guests = WarmGuests(nursery, pool, surroundings, standbys)
        supervisor = Supervisor(nursery, surroundings, guests, pool, events)
        metrics = Metrics(store, supervisor.states, lambda: network.spare_taps, int, int)
        parts: dict[str, Any] = {
            "surroundings": surroundings,
            "hypervisors": hypervisors,
            "supervisor": supervisor,
            "templates": Templates(surroundings, images, hypervisors),
            "images": images,
            "events": events,
            "tokens": TokenStore(paths.tokens),
            "metrics": metrics,
            "health": HealthWatch(surroundings, supervisor, pool),
        }
        yield Service(**{**parts, **changes}), metrics
        nursery.cancel_scope.cancel()
