"""``/metrics``, and the ids of requests, as clients of HTTP see them."""

from __future__ import annotations

import json
import re

import pytest
from http_daemon import Answer, Web
from prometheus_client.parser import text_string_to_metric_families

from arrakis import SandboxManager

pytestmark = pytest.mark.vm


def numbers(web: Web) -> dict[tuple[str, ...], float]:
    """Scrape; give all samples by name and labels' values, in the order of the labels' names."""
    answer = web.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_the_numbers_follow_what_is_done(web: Web) -> None:
    """Starts, forks, snapshots, commands, bytes and errors of all transports are counted."""
    before = numbers(web)
    size = 300_000

    def more(*name: str) -> float:
        return after[name] - before.get(name, 0.0)

    with SandboxManager(socket=web.daemon.socket) as manager:
        sandbox = manager.start_sandbox("measured")
        sandbox.run(f"head -c {size} /dev/zero", check=True)
        sandbox.files.write("in", bytes(size))
        snapshot = sandbox.snapshot()
        sandbox.fork(2)
        manager.restore("restored", snapshot)
        assert web.ask("GET", "/v1/vms/absent").status == 404
        after = numbers(web)
    for operation, count in {"start": 1, "restore": 1, "fork": 1, "snapshot": 1, "exec": 1}.items():
        assert more("arrakis_operation_seconds_count", operation) == count, operation
    assert more("arrakis_operation_seconds_sum", "start") > 0.01
    assert more("arrakis_vms", "RUNNING") == 4
    assert more("arrakis_stored", "snapshot") == 1
    assert more("arrakis_stored_bytes", "snapshot") > 0
    assert more("arrakis_guest_bytes_total", "in") == size
    assert more("arrakis_guest_bytes_total", "out") == size
    assert more("arrakis_errors_total", "-32001", "NotFoundError", "vm.info") == 1
    assert more("arrakis_connections") >= 1
    assert after["arrakis_spare_taps",] >= 0


def test_numbers_are_for_those_who_may_ask(web: Web) -> None:
    """Without a token there are none."""
    assert web.ask_as({}, "GET", "/metrics").status == 401


def logged(web: Web, request_id: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in web.daemon.log_text().splitlines()]
    return [line for line in lines if line.get("request_id") == request_id]


def test_an_id_that_the_client_chose(web: Web) -> None:
    """It comes back, in answers good and bad, and is in the lines of the log."""
    good = web.ask("GET", "/v1/health", X_Request_Id="mine-1")
    bad = web.ask("GET", "/v1/vms/absent", X_Request_Id="mine-2")
    assert (good.status, good.headers["x-request-id"]) == (200, "mine-1")
    assert (bad.status, bad.headers["x-request-id"]) == (404, "mine-2")
    assert [line["event"] for line in logged(web, "mine-2")] == ["call refused"]


@pytest.mark.parametrize("wish", ["", "x" * 65, "a b", "\x1b[31mred", 'a","b":"c', "é"])
def test_an_id_that_nobody_should_have(web: Web, wish: str) -> None:
    """It is replaced, and does not get into the log."""
    given = web.ask("GET", "/v1/vms/absent", X_Request_Id=wish).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}", given)
    assert len(logged(web, given)) == 1


def test_each_request_has_an_id(web: Web) -> None:
    """Also one that is refused before anything is done, and no two are the same."""
    answers: list[Answer] = [
        web.ask("GET", "/v1/health"),
        web.ask("GET", "/v1/health"),
        web.ask("GET", "/no/such/page"),
        web.ask_as({}, "GET", "/v1/health"),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
