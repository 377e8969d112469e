"""Load a daemon by HTTP with many clients at once, and tell how it answers, as JSON.

Each client asks for the daemon's health, describes its VM, and now and then runs a command in it,
on one connection, with a moment between its calls as a program would have. The token is that in
ARRAKIS_TOKEN.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from http.client import HTTPConnection, HTTPException
from typing import Any

_TURN = ["health"] * 6 + ["info"] * 3 + ["exec"]
_MOST_TOLD = 5


class Load:
    """What all clients together have seen."""

    def __init__(self, port: int, token: str, vms: list[str], pause: float) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}"}
        self._vms = vms
        self._pause = pause
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()

    def run(self, clients: int, seconds: float) -> None:
        """Let so many clients ask for so long."""
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(n, until)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, until: float) -> None:
        chance = random.Random(number)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        vm = self._vms[number % len(self._vms)]
        while time.monotonic() < until:
            kind = chance.choice(_TURN)
            began = time.perf_counter()
            try:
                self._call(connection, kind, vm, f"{number} {began}")
            except (OSError, HTTPException, ValueError) as error:
                self.errors[f"{kind}: {error!r}"] += 1
                connection.close()
            self.took[kind].append(time.perf_counter() - began)
            time.sleep(chance.uniform(0, 2 * self._pause))
        connection.close()

    def _call(self, connection: HTTPConnection, kind: str, vm: str, text: str) -> None:
        match kind:
            case "health":
                answer = self._ask(connection, "GET", "/v1/health")
                good = answer["status"] == "healthy"
            case "info":
                answer = self._ask(connection, "GET", f"/v1/vms/{vm}")
                good = (answer["vmName"], answer["status"]) == (vm, "RUNNING")
            case _:
                body = {"cmd": f"echo {text}"}
                answer = self._ask(connection, "POST", f"/v1/vms/{vm}/cmd", body)
                good = answer == {"output": f"{text}\n", "error": ""}
        if not good:
            raise ValueError(f"answered {answer}")

    def _ask(self, connection: HTTPConnection, verb: str, path: str, body: Any = None) -> Any:
        text = None if body is None else json.dumps(body)
        connection.request(verb, path, text, self._headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {content[:200]!r}")
        return json.loads(content)


def percentile(values: list[float], percent: float) -> float:
    """Give the least value that so many percent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def in_ms(values: list[float]) -> dict[str, float]:
    """Give how many there are, and their percentiles in ms."""
    told = {f"p{percent}": percentile(values, percent) * 1000 for percent in (50, 99, 100)}
    return {"calls": len(values), **told}


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("vms", nargs="+", help="names of VMs that run")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pause", type=float, default=0.2, help="mean, in seconds")
    flags = parser.parse_args()
    load = Load(flags.port, os.environ["ARRAKIS_TOKEN"], flags.vms, flags.pause)
    load.run(flags.clients, flags.seconds)
    told = {
        "errors": sum(load.errors.values()),
        "first_errors": dict(load.errors.most_common(_MOST_TOLD)),
        "calls_s": sum(map(len, load.took.values())) / flags.seconds,
        "without_vmm": in_ms(load.took["health"] + load.took["info"]),
        "exec": in_ms(load.took["exec"]),
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
