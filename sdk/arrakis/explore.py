"""Trying several ways from one state at once, and going on from the best of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field

from arrakis_rpc.errors import ArrakisError, NotFoundError

if TYPE_CHECKING:
    from .sandbox import Sandbox

    Action: TypeAlias = str | Sequence[str] | Callable[[Sandbox], Any]

MOST_ACTIONS = 64


@define
class Branch:
    """One action, and what came of it.

    ``result`` is what the action gave: a `Completed` for a command. ``score`` is None, and
    ``error`` says why, where the action or its scoring raised. ``sandbox`` is there in those
    that were kept.
    """

    action: Action
    result: Any = None
    score: float | None = None
    error: Exception | None = None
    sandbox: Sandbox | None = field(default=None, repr=False)


class ExplorationFailedError(ArrakisError):
    """No branch came to a score; see ``branches``, each of which has its ``error``."""

    def __init__(self, vm: str, branches: list[Branch]) -> None:
        super().__init__(
            f"none of {len(branches)} branches of '{vm}' came to a score; "
            f"the first failed with: {branches[0].error!r}",
            vm=vm,
            hint="the sandbox is as it was",
        )
        self.branches = branches


@define
class Exploration:
    """All branches, in the order of their actions, and those that were kept, the best first."""

    branches: list[Branch]
    kept: list[Branch]

    @property
    def best(self) -> Branch:
        """The winner, which now has the name of the sandbox it comes from."""
        return self.kept[0]

    @property
    def sandbox(self) -> Sandbox:
        """The winner's sandbox."""
        assert self.best.sandbox is not None
        return self.best.sandbox


def explore(
    source: Sandbox, actions: Sequence[Action], score: Callable[..., float], keep: int, workers: int
) -> Exploration:
    """Do what `Sandbox.explore` describes."""
    branches = [Branch(action) for action in actions]
    if not 1 <= len(branches) <= MOST_ACTIONS:
        raise ValueError(f"give 1 to {MOST_ACTIONS} actions, not {len(branches)}")
    if keep < 1 or workers < 1:
        raise ValueError("keep and workers are at least 1")
    name, takes_result = source.name, _takes_two(score)
    executor = ThreadPoolExecutor(workers, "explore")
    forks: list[Sandbox] = []
    names: list[str] = []
    try:
        forks = source.fork(len(branches))
        names = [fork.name for fork in forks]
        for branch, fork in zip(branches, forks, strict=True):
            branch.sandbox = fork
        for one in [executor.submit(_try, branch, score, takes_result) for branch in branches]:
            one.result()
        kept = _ranking(branches)[:keep]
        if not kept:
            raise ExplorationFailedError(name, branches)
        for branch in branches:
            if not any(branch is one for one in kept):
                _destroy(branch)
        winner = kept[0].sandbox
        assert winner is not None
        winner.rename(name, replace=True)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Whoever waits for a guest is let go by this. What has the source's name by now stays.
        for doomed in {*names, *(fork.name for fork in forks)} - {name}:
            with suppress(ArrakisError):
                type(source)(source._client, doomed).destroy()
        raise
    finally:
        executor.shutdown()
    return Exploration(branches, kept)


def _ranking(branches: list[Branch]) -> list[Branch]:
    scored = [(branch.score, branch) for branch in branches if branch.score is not None]
    return [branch for _, branch in sorted(scored, key=lambda one: one[0], reverse=True)]


def _try(branch: Branch, score: Callable[..., float], takes_result: bool) -> None:
    assert branch.sandbox is not None
    try:
        action = branch.action
        branch.result = action(branch.sandbox) if callable(action) else branch.sandbox.run(action)
        given = (branch.sandbox, branch.result) if takes_result else (branch.sandbox,)
        points = float(score(*given))
        if math.isnan(points):
            raise ValueError("the score is not a number")
        branch.score = points
    except Exception as error:  # noqa: BLE001 -- one branch's failure is not the others'
        branch.error = error


def _destroy(branch: Branch) -> None:
    if branch.sandbox is not None:
        with suppress(NotFoundError):  # its own action may have done so
            branch.sandbox.destroy()
    branch.sandbox = None


def _takes_two(score: Callable[..., float]) -> bool:
    try:
        inspect.signature(score).bind(None, None)
    except (TypeError, ValueError):  # of some built-in ones nothing is known
        return False
    return True
