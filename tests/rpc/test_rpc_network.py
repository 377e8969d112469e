"""What a VM may reach, as text: every form that is meant, and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from arrakis_rpc.converter import structure
from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.network_api import Egress, PortRequest, Target, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("93.184.215.14", Target(IPv4Network("93.184.215.14/32"), None, None)),
        ("93.184.0.0/16", Target(IPv4Network("93.184.0.0/16"), None, None)),
        ("93.184.0.0/16:443", Target(IPv4Network("93.184.0.0/16"), None, (443, 443))),
        ("example.com", Target(None, "example.com", None)),
        ("Example.COM.:80-90", Target(None, "example.com", (80, 90))),
        ("*.example.com:1-65535", Target(None, "*.example.com", (1, 65535))),
        ("_dmarc.example.com", Target(None, "_dmarc.example.com", None)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    """Addresses, networks and names, with a port, a range of ports, or all."""
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":80", "internet", "*", "*.", "*.*.com", "a.*.com", "example..com", "-a.com"),
        *("example.com:", "example.com:0", "example.com:65536", "example.com:9-8", "a.com:80:90"),
        *("example.com:http", "1.2.3", "1.2.3.4/33", "1.2.3.4/8", "::1", "[::1]:80", "a b.com"),
        *(
            "a.com\n",
            "http://example.com",
            "example.com/path",
            "a" * 64 + ".com",
            "a." * 127 + "aa",
        ),
    ],
)
def test_no_targets(text: str) -> None:
    """Whatever else is refused, and the refusal does not repeat it."""
    with pytest.raises(InvalidParamsError, match=r"allow\[1\]") as caught:
        structure({"mode": "allow", "allow": ["example.com", text]}, Egress)
    assert not text or len(text) < 5 or text not in str(caught.value)


def test_mode_and_targets() -> None:
    """Targets come with mode 'allow', and it with targets; the default is the internet."""
    assert structure({}, Egress) == Egress("internet", [])
    for wire in (
        {"mode": "allow"},
        {"mode": "none", "allow": ["a.com"]},
        {"mode": "internet", "allow": ["a.com"]},
        {"mode": "allow", "allow": ["a.com"] * 257},
    ):
        with pytest.raises(InvalidParamsError):
            structure(wire, Egress)


@pytest.mark.parametrize("port", [0, 65536, -1, "80", 80.0, None])
def test_ports(port: object) -> None:
    """A guest port is a number from 1 to 65535."""
    assert structure({"guest_port": 1}, PortRequest).guest_port == 1
    with pytest.raises(InvalidParamsError):
        structure({"guest_port": port}, PortRequest)
