"""Events, and what is logged."""

from __future__ import annotations

import json

import pytest
import trio

from arrakisd.logs.configure import configure_logs
from arrakisd.machines.events import Events


async def test_all_subscribers() -> None:
    """Each subscriber gets every event from its subscription on, in order."""
    events = Events()
    events.publish("before")
    with events.subscribe() as first:
        events.publish("one", "vm-1", number=1)
        with events.subscribe() as second:
            events.publish("two")
            assert [first.receive_nowait().kind for _ in range(2)] == ["one", "two"]
            assert second.receive_nowait().kind == "two"
        events.publish("three", "vm-1", number=3)
        event = first.receive_nowait()
        assert (event.kind, event.vm, event.data) == ("three", "vm-1", {"number": 3})
        with pytest.raises(trio.WouldBlock):
            first.receive_nowait()


async def test_slow_subscriber() -> None:
    """One that falls too far behind misses the rest; publishing never waits, others see all."""
    events = Events()
    with events.subscribe() as slow, events.subscribe() as quick:
        for number in range(1500):
            events.publish("event", number=number)
            assert (await quick.receive()).data == {"number": number}
        seen = [event.data["number"] async for event in slow]
    assert seen == list(range(len(seen)))
    assert 100 < len(seen) < 1500


def test_secrets_in_logs(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs are JSON lines, in which nothing stands that is named like a secret."""
    import structlog

    try:
        configure_logs("json", "info")
        log = structlog.get_logger()
        log.info("call", vm="a", resync_token="s3cret", ssh_host_key="s3cret", Password="s3cret")
        log.debug("not at this level")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    assert "s3cret" not in line
    assert json.loads(line)["vm"] == "a"
