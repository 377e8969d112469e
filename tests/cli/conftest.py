"""The scripted daemon of the SDK's tests, and the command line as fixtures."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "sdk"))

from cli_harness import arrakis as arrakis
from scripted_daemon import scripted as scripted
from scripted_daemon import start_scripted as start_scripted
from terminal_harness import terminal as terminal


@pytest.fixture
def transport() -> str:
    """How those tests reach the daemon that do not use the fixture `arrakis`."""
    return "unix"
