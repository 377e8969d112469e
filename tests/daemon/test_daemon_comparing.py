"""What two guests may say when they are compared."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from arrakis_rpc.connection import DataReceived, Event
from arrakis_rpc.errors import GuestError
from arrakisd.guest.comparing import compare
from arrakisd.guest.survey import MOST
from arrakisd.wire.peer import domain_error_in

FILE = [0o100644, 1, 0, 0, 0, ""]


class _Guest:
    """A guest that has its answers ready, whatever it is asked."""

    vm = "guest"

    def __init__(self, *answers: object) -> None:
        self._answers = iter(answers)

    @asynccontextmanager
    async def open_call(self, method: str, spec: object) -> AsyncIterator[Any]:
        yield self

    async def send(self, channel: str, data: bytes) -> None:
        pass

    async def receive(self) -> Event:
        return DataReceived(1, "stdout", json.dumps(next(self._answers)).encode() + b"\n")

    def consumed(self, event: DataReceived) -> None:
        pass


def survey(**changes: object) -> dict[str, object]:
    """What a guest says first."""
    return {"paths": [], "holes": [], "processes": [], **changes}


async def test_within_bounds() -> None:
    """As many files as there may be are compared."""
    paths = [f"/{number}" for number in range(MOST)]
    before: Any = _Guest(survey(), {})
    after: Any = _Guest(survey(paths=paths[:-1], holes=paths[-1:]), dict.fromkeys(paths, FILE))
    found = await compare(before, after)
    assert not found.complete
    assert {one.change for one in found.files} == {"added"}


NAMES = [f"/{number}" for number in range(MOST)]
TOO_MUCH = {
    "paths": [survey(paths=[*NAMES, "/one"])],
    "paths and holes": [survey(paths=NAMES, holes=["/one"])],
    "processes": [survey(processes=[[number, 1, ""] for number in range(MOST + 1)])],
    "files": [survey(), dict.fromkeys([*NAMES, "/one"], FILE)],
}


@pytest.mark.parametrize("answers", TOO_MUCH.values(), ids=TOO_MUCH.keys())
async def test_too_much(answers: list[object]) -> None:
    """A guest that names more than its survey would is not believed."""
    before: Any = _Guest(survey(), {})
    after: Any = _Guest(*answers, {})
    with pytest.raises(ExceptionGroup) as caught:
        await compare(before, after)
    error = domain_error_in(caught.value)
    assert isinstance(error, GuestError)
    assert "too much" in error.message
    assert str(MOST) in (error.hint or "")
