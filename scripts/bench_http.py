"""What HTTP costs: the same question to the same daemon, in turn over both transports."""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from arrakis import SandboxManager

ROUNDS = 500
CLIENTS = 20
LOAD_SECONDS = 120
LOADED_VMS = [f"load{number}" for number in range(4)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@contextmanager
def token_for(manager: SandboxManager, name: str) -> Iterator[str]:
    try:
        yield manager.tokens.create(name)
    finally:
        manager.tokens.revoke(name)


def load(manager: SandboxManager, port: int) -> dict[str, Any]:
    """Give what `http_load.py` tells of a daemon with some VMs."""
    for name in LOADED_VMS:
        manager.start_sandbox(name)
    with token_for(manager, "load") as token:
        script = Path(__file__).with_name("http_load.py")
        flags = [f"--clients={CLIENTS}", f"--seconds={LOAD_SECONDS}"]
        argv = [sys.executable, str(script), str(port), *LOADED_VMS, *flags]
        environment = {**os.environ, "ARRAKIS_TOKEN": token}
        said = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=True).stdout
    manager.destroy_all()
    told: dict[str, Any] = json.loads(said)
    return told


def rest_overhead(manager: SandboxManager, port: int) -> tuple[float, float]:
    """Give the medians of a health check by REST and by RPC, in ms.

    The client is the standard library's, on one connection, with a token that is checked.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    rest, rpc = [], []
    with token_for(manager, "overhead") as token, closing(connection):
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            connection.request("GET", "/v1/health", headers=headers)
            response = connection.getresponse()
            if response.status != 200 or not response.read():
                raise RuntimeError(f"the daemon answers {response.status}")
            between = time.perf_counter()
            manager.health()
            rest.append(between - began)
            rpc.append(time.perf_counter() - between)
    return statistics.median(rest) * 1000, statistics.median(rpc) * 1000
