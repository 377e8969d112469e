"""Fixtures for all suites: a real daemon on this machine, and what it must not leave behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("real_daemon")

from real_daemon import (  # noqa: E402 -- after the rewrite is asked for
    Daemon,
    booted_once,
    copy_templates,
    free_port,
    passable_directory,
    running_daemon,
)

from arrakis import SandboxManager  # noqa: E402

# The same on every machine: no deadlines, no clock, and no chance in CI. ARRAKIS_EXPLORE=1 looks
# for new examples instead, many more of them.
settings.register_profile(
    "repeatable",
    derandomize=True,
    max_examples=50,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("repeatable"), derandomize=False, max_examples=2000
)
settings.load_profile("explore" if os.environ.get("ARRAKIS_EXPLORE") else "repeatable")


def pytest_configure() -> None:
    """Heed signals, here and in children, which who starts us in the background has us ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the end of the daemon's log with a test that failed."""
    report = yield
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and isinstance(daemon, Daemon):
        report.sections.append(("arrakisd's log", daemon.log_text()[-12000:]))
    return report


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of the session's daemon. All workers have one template, booted once."""
    worker = tmp_path_factory.getbasetemp()
    whole_run = worker.parent if "PYTEST_XDIST_WORKER" in os.environ else worker
    with passable_directory() as directory:
        copy_templates(booted_once(whole_run), directory / "state")
        yield directory / "state"


@pytest.fixture(scope="session")
def http_port() -> int:
    """Where the session's daemon serves HTTP."""
    return free_port()


@pytest.fixture(scope="session")
def token(daemon: Daemon) -> str:
    """What lets a client in there."""
    with SandboxManager(socket=daemon.socket) as manager:
        return manager.tokens.create("tests")


@pytest.fixture
def transport() -> str:
    """How the SDK reaches the daemon: "unix", unless a test is run for "http" as well."""
    return "unix"


@pytest.fixture(scope="session")
def daemon(state_dir: Path, http_port: int) -> Iterator[Daemon]:
    """One daemon for the whole session."""
    with running_daemon(state_dir, f"--http=127.0.0.1:{http_port}") as running:
        yield running


@pytest.fixture
def new_client(
    daemon: Daemon, transport: str, http_port: int, token: str
) -> Callable[[], SandboxManager]:
    """Make one more client of the session's daemon."""
    if transport == "http":
        return lambda: SandboxManager(f"http://127.0.0.1:{http_port}", token)
    return lambda: SandboxManager(socket=daemon.socket)


@pytest.fixture
def manager(daemon: Daemon, new_client: Callable[[], SandboxManager]) -> Iterator[SandboxManager]:
    """An SDK manager; whatever a test started or stored is deleted, and nothing may be left."""
    with daemon.leaves_nothing(), new_client() as manager:
        before = {snapshot.id for snapshot in manager.snapshots.list()}
        yield manager
        manager.destroy_all()
        for snapshot in manager.snapshots.list():
            if snapshot.id not in before:
                manager.snapshots.delete(snapshot.id)


@pytest.fixture
def template_state(state_dir: Path, daemon: Daemon) -> Iterator[Path]:
    """A state directory for a second daemon, with a copy of the session's template."""
    with daemon.leaves_nothing(), passable_directory() as directory:
        copy_templates(state_dir, directory / "state")
        yield directory / "state"
