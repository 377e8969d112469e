"""Fixtures for all suites: a real daemon on this machine, and what it must not leave behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import Daemon, copy_templates, make_passable, running_daemon

from arrakis import SandboxManager


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's state directory: its template is booted once."""
    directory = tmp_path_factory.mktemp("arrakis")
    make_passable(directory)
    return directory / "state"


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
def template_state(
    booted: Path, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A state directory for a second daemon, with a copy of the session's template."""
    directory = tmp_path_factory.mktemp("second")
    make_passable(directory)
    with daemon.leaves_nothing():
        copy_templates(booted, directory / "state")
        yield directory / "state"
    shutil.rmtree(directory)
