"""The network of a sandbox: what is asked of the daemon, and what is refused before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from scripted_daemon import VM, Calls, Script, Server, answering

from arrakis import Forward, InvalidParamsError, PortRequest, SandboxManager

Start = Callable[[Script], Server]

WEB = {"guest_port": 8000, "host_port": 20000, "description": "web", "published": False}


def request(guest: int, host: int | None = None, description: str = "") -> dict[str, Any]:
    """What is sent for a port that is not published."""
    return {"guest_port": guest, "host_port": host, "description": description, "publish": False}


def test_start_and_restore_send_the_network_that_was_chosen(scripted: Start) -> None:
    """Each form of a policy and of a port arrives; what was not chosen is not sent."""
    start = Calls(VM)
    manager = scripted(answering(vm_start=start)).manager
    manager.start_sandbox("box", egress="none")
    manager.start_sandbox(
        "box", egress=("pypi.org:443",), ports=[80, "81", "8082:82", PortRequest(83, 8083, "x")]
    )
    manager.restore("box", "before", egress="internet", ports=[])
    manager.restore("box", "before")
    assert start.seen == [
        {"name": "box", "network": {"egress": {"mode": "none", "allow": []}}},
        {
            "name": "box",
            "network": {
                "egress": {"mode": "allow", "allow": ["pypi.org:443"]},
                "ports": [request(80), request(81), request(82, 8082), request(83, 8083, "x")],
            },
        },
        {
            "name": "box",
            "snapshot": "before",
            "network": {"egress": {"mode": "internet", "allow": []}, "ports": []},
        },
        {"name": "box", "snapshot": "before"},
    ]


def test_list_that_allows_nothing_is_no_default(scripted: Start) -> None:
    """An empty allow-list lets nothing out."""
    change = Calls({})
    scripted(answering(egress_set=change)).sandbox.set_egress([])
    assert change.seen == [{"vm": "box", "egress": {"mode": "none", "allow": []}}]


def test_ports_are_listed_added_and_removed(scripted: Start) -> None:
    """Forwards come back as objects; only what was given of a new one is sent."""
    add, remove = Calls(WEB), Calls({})
    server = scripted(answering(port_list={"ports": [WEB]}, port_add=add, port_remove=remove))
    ports = server.sandbox.ports
    web = Forward(guest_port=8000, host_port=20000, description="web", published=False)
    assert ports.list() == [web]
    assert ports.add(8000) == web
    ports.add(8000, 8080, "web", publish=True)
    ports.remove(20000)
    given = [call["port"] for call in add.seen]
    assert [given[0]["guest_port"], "host_port" in given[0]] == [8000, False]
    assert given[1] == {
        "guest_port": 8000,
        "host_port": 8080,
        "description": "web",
        "publish": True,
    }
    assert remove.seen == [{"vm": "box", "host_port": 20000}]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"egress": "pypi.org:443"}, "'none', 'internet' or a list of targets, not 'pypi.org:443'"),
        ({"egress": ["two words"]}, "allow[0] is neither an IPv4 network nor a domain name"),
        ({"egress": ["10.0.0.1/8"]}, "allow[0] is not an IPv4 network"),
        ({"egress": ["example.com:0"]}, "allow[0] is neither a port nor"),
        ({"egress": [443]}, "expected str, got int"),
        ({"egress": ["a.example"] * 257}, "more than 256 targets"),
        ({"ports": "8000"}, "ports is a list"),
        ({"ports": ["web"]}, "'web' is neither GUEST nor HOST:GUEST"),
        ({"ports": ["127.0.0.1:80:80"]}, "is neither GUEST nor HOST:GUEST"),
        ({"ports": ["٨٠"]}, "is neither GUEST nor HOST:GUEST"),
        ({"ports": [65536]}, "'guest_port' must be <= 65535"),
        ({"ports": ["0:80"]}, "'host_port' must be >= 1"),
        ({"ports": [True]}, "expected int, got bool"),
        ({"ports": [80.5]}, "expected int, got float"),
        ({"ports": [80] * 65}, "more than 64 ports"),
    ],
)
def test_nonsense_is_refused_before_the_daemon_is_asked(
    network: dict[str, Any], message: str
) -> None:
    """What is no policy, target or port is named where it was given: here is no daemon."""
    with pytest.raises(InvalidParamsError, match=re.escape(message)):
        SandboxManager(socket="/nowhere").start_sandbox("box", **network)
