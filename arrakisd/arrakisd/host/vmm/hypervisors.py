"""The hypervisors of this host: the usual one, and those that somebody asks for by name."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from attrs import frozen

from arrakis_rpc.errors import ArrakisError, UnsupportedError

from ...settings.config import Config
from .interface import Driver, Verdict
from .registry import DRIVERS, make_driver

AUTO = "auto"
_FALLBACK = "qemu"

log = structlog.get_logger()


@frozen
class Hypervisor:
    """One that runs guests here, in which version, and what runs their instructions."""

    driver: Driver
    version: str
    verdict: Verdict

    @property
    def name(self) -> str:
        """What the settings and callers call it."""
        return self.driver.name

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.verdict.accelerator})"


class Hypervisors:
    """Makes each driver when it is asked for first. ``usual`` is for those who name none."""

    def __init__(self, config: Config, usual: Hypervisor) -> None:
        self.usual = usual
        self._config = config
        self._made = {usual.name: usual}
        self._making = trio.Lock()

    async def get(self, name: str | None) -> Hypervisor:
        """Give the one of a name, or the usual one; the first time may take seconds.

        Raises `NotFoundError` for a name that none has, `UnsupportedError` for one that cannot
        be used here.
        """
        if name is None or name == AUTO:
            return self.usual
        if name not in self._made:  # or nobody waits for the probe of another one
            async with self._making:
                if name not in self._made:
                    self._made[name] = await _open(make_driver(name, self._config))
        return self._made[name]

    def made(self, name: str) -> Hypervisor:
        """Give one that somebody has asked for; raises `UnsupportedError` for another."""
        if name not in self._made:
            raise UnsupportedError(f"{name} has not been tried on this host")
        return self._made[name]

    def has_made(self, name: str, version: str, accelerator: str) -> bool:
        """Whether one is in use here that wakes what was saved under this one."""
        made = self._made.get(name)
        return made is not None and (made.version, made.verdict.accelerator) == (
            version,
            accelerator,
        )


async def open_hypervisors(config: Config) -> Hypervisors:
    """Choose the usual one: that which the settings name, or the first that runs a guest here.

    Raises `NotFoundError` and `UnsupportedError`.
    """
    return Hypervisors(config, await choose_hypervisor(config))


async def choose_hypervisor(
    config: Config, drivers: dict[str, Callable[[Config], Driver]] = DRIVERS
) -> Hypervisor:
    """Give the one that the settings name, or the first that really runs a guest here."""
    if config.vmm != AUTO:
        return await _open(make_driver(config.vmm, config))
    problems: dict[str, ArrakisError] = {}
    for name, factory in drivers.items():
        try:
            return await _open(factory(config))
        except UnsupportedError as error:
            log.debug("VMM passed over", vmm=name, reason=error.message)
            problems[name] = error
    raise UnsupportedError(
        "no hypervisor can be used here: "
        + "; ".join(error.message for error in problems.values()),
        hint=problems[_FALLBACK].hint if _FALLBACK in problems else None,
    )


async def _open(driver: Driver) -> Hypervisor:
    version = await trio.to_thread.run_sync(driver.version)
    verdict = await driver.choose_accelerator()
    if verdict.accelerator == "tcg":
        log.warning("guests are emulated, which is slow", vmm=driver.name, reason=verdict.reason)
    else:
        log.info("accelerator", vmm=driver.name, name=verdict.accelerator, reason=verdict.reason)
    return Hypervisor(driver, version, verdict)
