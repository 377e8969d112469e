"""Whether the guest of a VM answers.

Whatever comes from its agent is a sign of life; only a guest that has been silent for a while is
asked. It is not judged by one answer that fails to come: a host may be overloaded, and a guest
slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import trio
from attrs import frozen

from arrakis_rpc.errors import ArrakisError
from arrakis_rpc.guest_api import FilePath

from ..guest.agent import GuestAgent
from ..settings.health import HealthConfig

_MOST_MISSED = 3
# A daemon that is scheduled so late cannot tell who of the two is slow.
_MOST_LATE = 1.0
# Answered from the guest's memory, and by the agents of the oldest snapshots too.
_QUESTION = "file.stat", FilePath("/")


@frozen
class _Silence:
    """When a guest was last heard, by the daemon's clock and in Unix time."""

    heard: float
    began: float


class Heartbeat:
    """That of one VM. `watch` is the task that listens."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._silence: _Silence | None = None

    def silent_since(self, agent: GuestAgent) -> float | None:
        """Since when, in Unix time, an agent has not answered; None for one that does."""
        silence = self._silence
        return silence.began if silence and agent.heard <= silence.heard else None

    async def watch(
        self, present: Callable[[], GuestAgent | None], tell: Callable[[bool], None]
    ) -> None:
        """Listen until cancelled; ``tell`` whenever the guest becomes silent, or is so no more.

        ``present`` gives its agent, or None while there is nobody to be asked.
        """
        if not self._config.interval:
            return
        missed, asked = 0, None
        while True:
            agent, now = present(), trio.current_time()
            if agent is not asked:
                missed, asked = 0, agent
            if agent is None:
                due = now + self._config.interval
            elif not missed and now < agent.heard + self._config.interval:
                due = agent.heard + self._config.interval
            elif await self._answers(agent):
                missed, due = 0, agent.heard + self._config.interval
            else:
                is_fair = trio.current_time() - now < self._config.timeout + _MOST_LATE
                missed += is_fair and present() is agent
                due = now + max(self._config.interval, self._config.timeout)
            if agent is not None:
                self._judge(agent, missed, tell)
            await trio.sleep_until(due)

    async def _answers(self, agent: GuestAgent) -> bool:
        """Ask, and wait for anything to come."""
        before = agent.heard
        # An error that the guest sent has been heard, too.
        with suppress(ArrakisError), trio.move_on_after(self._config.timeout):
            await agent.call(*_QUESTION)
        return agent.heard > before

    def _judge(self, agent: GuestAgent, missed: int, tell: Callable[[bool], None]) -> None:
        if missed >= _MOST_MISSED and self._silence is None:
            silent = trio.current_time() - agent.heard
            self._silence = _Silence(agent.heard, time.time() - silent)
            tell(True)
        elif self._silence is not None and self.silent_since(agent) is None:
            self._silence = None
            tell(False)
