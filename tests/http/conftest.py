"""One daemon with HTTP for all tests of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_daemon import Web, web_daemon
from real_daemon import copy_templates, passable_directory

from arrakis import SandboxManager


@pytest.fixture(scope="session")
def web_of_session(state_dir: Path) -> Iterator[Web]:
    with passable_directory() as directory:
        copy_templates(state_dir, directory / "state")
        with web_daemon(directory / "state") as web:
            yield web


@pytest.fixture
def web(web_of_session: Web) -> Iterator[Web]:
    """The daemon; what a test started or stored is deleted, and nothing may be left."""
    web = web_of_session
    with web.daemon.leaves_nothing(), SandboxManager(socket=web.daemon.socket) as manager:
        yield web
        manager.destroy_all()
        for snapshot in manager.snapshots.list():
            manager.snapshots.delete(snapshot.id)
