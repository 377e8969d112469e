"""A daemon that nobody reaches by HTTP."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from real_daemon import free_port, passable_directory, running_daemon, write_config


def imported(state: Path, *flags: str) -> set[str]:
    """The packages that a daemon has taken in when it is ready."""
    config = write_config(state, network='mode = "none"')
    with running_daemon(state, f"--config={config}", *flags) as daemon:
        return set(re.findall(r"^import time:.*\| +(\w+)", daemon.log_text(), re.MULTILINE))


def test_it_does_without_what_only_http_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither framework nor server is imported, which would be two fifths of its memory."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    stack = {"hypercorn", "quart", "quart_trio", "werkzeug", "wsproto", "h2", "jinja2"}
    with passable_directory() as directory:
        assert stack & imported(directory / "without") == set()
        assert stack <= imported(directory / "with", f"--http=127.0.0.1:{free_port()}")
