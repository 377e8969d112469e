"""A service whose parts are real, on a directory of its own, and without a VM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from emulation import emulating

from arrakis_rootfs import ImageStore
from arrakisd.config import Config
from arrakisd.events import Events
from arrakisd.health import HealthWatch
from arrakisd.host.net.interface import NoNetwork
from arrakisd.merging import Merger
from arrakisd.metrics import Metrics
from arrakisd.paths import StatePaths
from arrakisd.pool import Pool
from arrakisd.service import Service
from arrakisd.standby import Standbys
from arrakisd.store import Store
from arrakisd.supervisor import Supervisor
from arrakisd.surroundings import Surroundings
from arrakisd.templates import Templates
from arrakisd.tokens import TokenStore
from arrakisd.warm import WarmGuests


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
