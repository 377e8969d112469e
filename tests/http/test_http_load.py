"""Many clients for a while, by the program that the benchmark uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from http_daemon import Web

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).parents[2] / "scripts" / "http_load.py"
NAMES = ["one", "two", "three", "four"]


@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_twenty_clients(web: Web, seconds: int) -> None:
    """Health, descriptions and commands in four VMs are all answered, and rightly."""
    with SandboxManager(socket=web.daemon.socket) as manager:
        for name in NAMES:
            manager.start_sandbox(name)
        ended = subprocess.run(
            [sys.executable, PROGRAM, str(web.port), *NAMES, f"--seconds={seconds}"],
            env={**os.environ, "ARRAKIS_TOKEN": web.token},
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=True,
        )
        told = json.loads(ended.stdout)
        assert told["errors"] == 0, told
        assert told["without_vmm"]["calls"] > told["exec"]["calls"] > 0
    assert "defect" not in web.daemon.log_text()
