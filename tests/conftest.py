"""Fixtures for all suites: a real daemon on this machine, and what it must not leave behind."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("real_daemon")

from real_daemon import Daemon, copy_templates, passable_directory, running_daemon  # noqa: E402 -- after the rewrite is asked for

from arrakis import SandboxManager  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the end of the daemon's log with a test that failed."""
    report = yield
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and isinstance(daemon, Daemon):
        report.sections.append(("arrakisd's log", daemon.log_text()[-4000:]))
    return report


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """The session's state directory: its template is booted once."""
    with passable_directory() as directory:
        yield directory / "state"


@pytest.fixture(scope="session")
def daemon(state_dir: Path) -> Iterator[Daemon]:
    """One daemon for the whole session."""
    with running_daemon(state_dir) as running:
        yield running


@pytest.fixture(scope="session")
def booted(daemon: Daemon) -> Path:
    """The session's state directory, once it has the template of the default shape."""
    with SandboxManager(socket=daemon.socket) as manager:
        manager.templates.build()
    return daemon.state


@pytest.fixture
def manager(daemon: Daemon, booted: Path) -> Iterator[SandboxManager]:
    """An SDK manager; whatever a test started or stored is deleted, and nothing may be left."""
    with daemon.leaves_nothing(), SandboxManager(socket=daemon.socket) as manager:
        before = {snapshot.id for snapshot in manager.snapshots.list()}
        yield manager
        manager.destroy_all()
        for snapshot in manager.snapshots.list():
            if snapshot.id not in before:
                manager.snapshots.delete(snapshot.id)


@pytest.fixture
def template_state(booted: Path, daemon: Daemon) -> Iterator[Path]:
    """A state directory for a second daemon, with a copy of the session's template."""
    with daemon.leaves_nothing(), passable_directory() as directory:
        copy_templates(booted, directory / "state")
        yield directory / "state"
