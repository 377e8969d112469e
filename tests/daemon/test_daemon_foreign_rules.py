"""Firewalls of others that are in a guest's way, in a network namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from arrakisd.host.net import foreign_rules

PROGRAM = """
import json, sys
from arrakisd.host.net import nftables
from arrakisd.host.net.foreign_rules import obstacles

nftables.apply(sys.argv[1])
print(json.dumps([[one.table, one.remedy] for one in obstacles("arrakis0")]))
"""
DROP = "{ type filter hook forward priority 0; policy drop; }"
DOCKER = f"add table ip filter; add chain ip filter FORWARD {DROP}; add chain ip filter DOCKER-USER"
SPOKEN_FOR = f"{DOCKER}; add rule ip filter DOCKER-USER iifname arrakis0 counter accept"
FIREWALL = f"add table inet walls; add chain inet walls guard {DROP}"


def found(rules: str) -> list[list[str]]:
    """Say what is in the way under such rules, and what mends it."""
    argv = ["unshare", "--net", sys.executable, "-c", PROGRAM, rules]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    answer: list[list[str]] = json.loads(ended.stdout)
    return answer


@pytest.mark.parametrize(
    "rules",
    [
        "add table inet empty",
        FIREWALL.replace("drop", "accept"),
        FIREWALL.replace("hook forward", "hook input"),
        FIREWALL.replace("inet", "ip6"),
        SPOKEN_FOR,
    ],
    ids=["none", "accepts", "of the host alone", "of other packets", "has a rule"],
)
def test_no_obstacle(rules: str) -> None:
    """Most rules of others are in nobody's way."""
    assert found(rules) == []


def test_docker() -> None:
    """Into Docker's table a rule is put where Docker leaves it."""
    ways = [f"iptables -I DOCKER-USER -{way} arrakis0 -j ACCEPT" for way in "io"]
    assert found(DOCKER) == [["ip filter", " && ".join(ways)]]


def test_firewall() -> None:
    """Into another's it is put before all others; it then is no obstacle any more."""
    [[table, remedy]] = found(FIREWALL)
    assert table == "inet walls"
    commands = [one.removeprefix("nft ") for one in remedy.split(" && ")]
    assert found("; ".join([FIREWALL, *commands])) == []


def test_library_without_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is listed in that form, that is an error which callers expect."""
    monkeypatch.setattr(foreign_rules.nftables, "listing", lambda _: b"")
    with pytest.raises(OSError, match="as JSON"):
        foreign_rules.obstacles("arrakis0")


@pytest.mark.parametrize("other", ["arrakis01", "docker0"])
def test_rule_for_another(other: str) -> None:
    """What is accepted of other bridges does not help."""
    assert found(SPOKEN_FOR.replace("arrakis0", other)) != []
