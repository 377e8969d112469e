"""One container for all tests of the installed service."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from container import Container, booted_container


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the end of the journal with a test that failed."""
    report = yield
    container = getattr(item, "funcargs", {}).get("installed")
    if report.failed and isinstance(container, Container):
        report.sections.append(("journal", container.output("journalctl", "--lines=60")))
    return report


@pytest.fixture(scope="session")
def installed() -> Iterator[Container]:
    """A container in which the service is installed, and two users, of whom one may use it."""
    with booted_container() as container:
        container.install()
        container.run("useradd", "--groups=arrakis", "member")
        container.run("useradd", "stranger")
        yield container
