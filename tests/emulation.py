"""QEMU without KVM as the usual hypervisor, for parts of a daemon that a test puts together."""

from __future__ import annotations

from arrakisd.host.vmm.hypervisors import Hypervisor, Hypervisors
from arrakisd.host.vmm.interface import Verdict
from arrakisd.host.vmm.qemu import QemuDriver
from arrakisd.settings.config import Config


def emulating(config: Config) -> Hypervisors:
    """Give the hypervisors of a host on which nobody has tried KVM."""
    driver = QemuDriver(config)
    return Hypervisors(config, Hypervisor(driver, driver.version(), Verdict("tcg", "a test")))
