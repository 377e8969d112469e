"""The drivers there are, in the order in which ``vmm = "auto"`` prefers them."""

from __future__ import annotations

from arrakis_rpc.errors import InvalidParamsError, UnsupportedError

from ...config import Config
from .interface import Driver, DriverFactory
from .qemu import QemuDriver

DRIVERS: dict[str, DriverFactory] = {
    "qemu": QemuDriver,
}


def choose_driver(config: Config) -> Driver:
    """Give the driver that the settings name, or the first that is installed.

    Raises `InvalidParamsError` for a driver that does not exist, `UnsupportedError` if none is
    installed.
    """
    if config.vmm in DRIVERS:
        return DRIVERS[config.vmm](config)
    if config.vmm != "auto":
        known = ", ".join(["auto", *DRIVERS])
        raise InvalidParamsError(f"there is no VMM '{config.vmm}'", hint=f"known are: {known}")
    missing: list[UnsupportedError] = []
    for factory in DRIVERS.values():
        driver = factory(config)
        try:
            driver.version()
        except UnsupportedError as error:
            missing.append(error)
        else:
            return driver
    raise missing[0]
