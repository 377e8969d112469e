"""How long a VM may live, and how long nobody may use it.

What counts as use is told by `in_use`: calls of clients, for as long as they last, and
forwarded connections. To look at a VM is no use of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from attrs import evolve

from arrakis_rpc.daemon_api import LimitsInfo, VmLimits

from ..settings.config import Config

_RETRY = 60.0


class Limits:
    """The limits of one VM. `watch` is the task that minds them."""

    def __init__(self, wanted: VmLimits | None, config: Config) -> None:
        defaults = VmLimits(
            config.ttl, config.idle_timeout, config.on_timeout, config.health.on_unresponsive
        )
        self.values = _changed(defaults, wanted or VmLimits())
        self._counts = False
        self._began = self._last_use = 0.0
        self._users = 0
        self._news = trio.Event()

    def begin(self) -> None:
        """Count from now on: the VM runs."""
        self._counts = True
        self._began = self._last_use = trio.current_time()
        self._tell()

    def halt(self) -> None:
        """Count no longer: the VM is suspended."""
        self._counts = False
        self._tell()

    def change(self, wanted: VmLimits) -> None:
        """Take over what is given; what is not stays, and 0 is no limit."""
        self.values = _changed(self.values, wanted)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Say that somebody uses the VM for the length of a block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._last_use = trio.current_time()

    def _ends(self) -> tuple[float, float]:
        """When its life is over, and when it has been idle for too long."""
        if not self._counts:
            return math.inf, math.inf
        last = trio.current_time() if self._users else self._last_use
        ttl, idle = self.values.ttl or math.inf, self.values.idle_timeout or math.inf
        return self._began + ttl, last + idle

    def overrun(self) -> str | None:
        """Say which limit has been reached; None if none."""
        life, idle = self._ends()
        now = trio.current_time()
        if life <= now:
            return f"its time to live of {self.values.ttl:g} s is over"
        if idle <= now:
            return f"nobody has used it for {self.values.idle_timeout:g} s"
        return None

    def info(self) -> LimitsInfo | None:
        """Describe them; None where there are none."""
        values, soonest = self.values, min(self._ends())
        policy = values.on_unresponsive or "leave"
        if not values.ttl and not values.idle_timeout and policy == "leave":
            return None
        left = soonest - trio.current_time()
        return LimitsInfo(
            ttl=values.ttl or None,
            idle_timeout=values.idle_timeout or None,
            on_timeout=values.on_timeout or "suspend",
            ends=None if math.isinf(left) else time.time() + left,
            on_unresponsive=policy,
        )

    async def watch(self, act: Callable[[], None]) -> None:
        """Have something done whenever a limit has been reached, until cancelled.

        Where it cannot be done, it is tried again after a while.
        """
        while True:
            news = self._news
            with trio.move_on_at(min(self._ends())):
                await news.wait()
            if self.overrun():
                act()
                with trio.move_on_after(_RETRY):
                    await news.wait()


def _changed(values: VmLimits, wanted: VmLimits) -> VmLimits:
    given = {
        name: value
        for name in ("ttl", "idle_timeout", "on_timeout", "on_unresponsive")
        if (value := getattr(wanted, name)) is not None
    }
    return evolve(values, **given)
