"""The scripted daemon of the SDK's tests, on a Unix socket."""

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / suite) for suite in ("sdk", "cli")]

from scripted_daemon import scripted as scripted
from scripted_daemon import start_scripted as start_scripted


@pytest.fixture
def transport() -> str:
    """How the server reaches the daemon."""
    return "unix"
