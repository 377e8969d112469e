"""The daemon's own process."""

from __future__ import annotations

import re
from pathlib import Path

from real_daemon import passable_directory, running_daemon


def test_open_files() -> None:
    """It may open as many files as its system allows, whatever the shell it was started from."""
    few = ("prlimit", "--nofile=300:5000", "--")
    with passable_directory() as directory, running_daemon(directory / "state", prefix=few) as one:
        limits = Path(f"/proc/{one.pid}/limits").read_text()
        found = re.search(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
        assert found
        assert found.groups() == ("5000", "5000")
