"""The networks there are, by the value of ``mode`` in ``[network]``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from ...settings.network import NetworkConfig
from .bridge_network import bridge_network, sweep_former
from .foreign_rules import obstacles
from .interface import HostNetwork, NoNetwork
from .namespace import Namespace
from .user_network import UserNetwork

log = structlog.get_logger()


@asynccontextmanager
async def open_network(
    config: NetworkConfig, directory: Path, owner: str
) -> AsyncIterator[HostNetwork]:
    """Set up the network that the settings ask for, for the length of a block."""
    await trio.to_thread.run_sync(sweep_former, config, directory, owner)
    if config.mode == "bridge":
        async with bridge_network(config, directory, owner) as bridged:
            await Namespace(config.namespace).run(partial(_warn_of_others, config.bridge))
            yield bridged
    elif config.mode == "user":
        network = UserNetwork(config, directory)
        await trio.to_thread.run_sync(network.ports.load)
        yield network
    else:
        yield NoNetwork()


def _warn_of_others(bridge: str) -> None:
    with suppress(OSError):  # nobody's network depends on it
        for one in obstacles(bridge):
            log.warning("another firewall drops what guests send", table=one.table, fix=one.remedy)
