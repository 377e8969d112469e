"""The drivers there are."""

from __future__ import annotations

from .interface import DriverFactory
from .qemu import QemuDriver

DRIVERS: dict[str, DriverFactory] = {
    "qemu": QemuDriver,
}
