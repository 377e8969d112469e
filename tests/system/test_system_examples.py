"""The programs in examples/, as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_daemon import SLACK, Daemon

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_tree_search(manager: SandboxManager, daemon: Daemon) -> None:
    """The search repairs a program whose tests fail, several patches deep, and leaves nothing."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "tree_search.py"],
        env={**os.environ, "ARRAKIS_SOCKET": str(daemon.socket), "ARRAKIS_URL": ""},
        capture_output=True,
        text=True,
        timeout=SLACK * 60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("the program as it is\n")
    assert "6/6  kept" in ran.stdout
    _, _, program = ran.stdout.partition("repaired by: ")
    assert program.count(", ") >= 3
    assert "sorted(numbers)" in program
    assert manager.list_all() == []
