"""The daemons that are measured: with and without a network, and things made ready ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

from attrs import define
from bench_http import free_port
from demo import network_settings, temporary_daemon

from arrakis import SandboxManager

SETTINGS = f"{network_settings()}\n[pool]\nwarm = 0\n"  # what a start takes without them
UNCONNECTED_SETTINGS = '[network]\nmode = "none"\n[pool]\nwarm = 0\n'
POOL_SETTINGS = '[network]\nnamespace = "arrakis-bench-pool"\n'
UNCONNECTED_POOL_SETTINGS = '[network]\nmode = "none"\n'


def settle() -> None:
    """Wait until what was taken of the things made ready ahead is there again, and all is quiet."""
    time.sleep(2)


@define
class PreparedDaemon:
    """A daemon with the default pool."""

    manager: SandboxManager
    port: int
    token: str

    def wait_ready(self) -> None:
        """Wait until it has made ready all that it keeps so by default."""
        while not {"arrakis_warm_guests 1.0", "arrakis_standby_vmms 2.0"} <= self._metrics():
            time.sleep(0.2)
        time.sleep(0.5)  # until what was made ready has come to rest

    def _metrics(self) -> set[str]:
        request = Request(f"http://127.0.0.1:{self.port}/metrics")
        request.add_header("Authorization", f"Bearer {self.token}")
        with urlopen(request) as answer:
            return set(answer.read().decode().splitlines())


@contextmanager
def prepared_daemon(settings: str) -> Iterator[PreparedDaemon]:
    """Run a daemon of its own, with a template."""
    port = free_port()
    with (
        temporary_daemon(f"--http=127.0.0.1:{port}", settings=settings) as socket,
        SandboxManager(socket=str(socket)) as manager,
    ):
        manager.templates.build()
        yield PreparedDaemon(manager, port, manager.tokens.create("bench"))
