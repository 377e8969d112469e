"""The drivers there are, in the order in which ``vmm = "auto"`` prefers them."""

from __future__ import annotations

from arrakis_rpc.errors import NotFoundError

from ...settings.config import Config
from .cloud_hypervisor import CloudHypervisorDriver
from .firecracker import FirecrackerDriver
from .interface import Driver, DriverFactory
from .qemu import QemuDriver

DRIVERS: dict[str, DriverFactory] = {
    "cloud-hypervisor": CloudHypervisorDriver,
    "qemu": QemuDriver,
    "firecracker": FirecrackerDriver,
}


def make_driver(name: str, config: Config) -> Driver:
    """Make the driver of a name; raises `NotFoundError` if there is none."""
    if name not in DRIVERS:
        known = ", ".join(["auto", *DRIVERS])
        raise NotFoundError(f"there is no VMM '{name}'", hint=f"known are: {known}")
    return DRIVERS[name](config)
