"""The scripted daemon as a fixture, once for each way to reach it."""

import pytest
from scripted_daemon import scripted as scripted
from scripted_daemon import start_scripted as start_scripted


@pytest.fixture(params=["unix", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the SDK reaches the daemon."""
    transport: str = request.param
    return transport
