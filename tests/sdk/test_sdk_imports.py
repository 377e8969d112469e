"""What the SDK loads: little, and nothing of the daemon's."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import arrakis


def loaded_by(program: str) -> set[str]:
    """Run a program in a fresh interpreter; give the modules it has loaded."""
    told = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport json, sys; print(json.dumps([*sys.modules]))"],
        capture_output=True,
        check=True,
        text=True,
    )
    return set(json.loads(told.stdout.splitlines()[-1]))


def test_sdk_knows_neither_trio_nor_the_daemon() -> None:
    """All of the SDK and the command line together load no event loop and no daemon."""
    loaded = loaded_by(
        "import arrakis, arrakis.cli.main, arrakis.cli.terminal, arrakis.cli.doctor\n"
        "[getattr(arrakis, name) for name in dir(arrakis)]"
    )
    assert "arrakis.manager" in loaded
    assert loaded.isdisjoint({"trio", "arrakisd", "asyncio", "structlog", "anyio"})


def test_importing_arrakis_loads_nothing_else() -> None:
    """What is not used is not loaded: neither the protocol nor what it is made of."""
    loaded = loaded_by("import arrakis")
    assert loaded.isdisjoint({"arrakis_rpc", "attrs", "cattrs", "msgpack", "click", "socket"})


def test_help_needs_click_and_nothing_else() -> None:
    """Neither the SDK nor rich is loaded to show the help."""
    loaded = loaded_by("from arrakis.cli.main import cli, run; run(['exec', '--help'])\nprint()")
    assert loaded.isdisjoint({"arrakis_rpc", "attrs", "cattrs", "msgpack", "rich", "socket"})


def test_version_is_that_of_the_distribution() -> None:
    """The version that the SDK tells the daemon is the one that is installed."""
    assert arrakis.__version__ == version("arrakis")
